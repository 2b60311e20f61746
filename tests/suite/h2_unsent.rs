//! Shared connections to services that come and go: what has not left for one goes to another (RFC 9113 §8.7), streamed
//! bodies included of which nothing was taken, and nothing waits within a connection that another could have.

use std::sync::Arc;

use crate::support::http2::{
    ACK, DATA, END_STREAM, GOAWAY, HEADERS, NO_ERROR, Outcome, Raw, RawService, SETTINGS, fields,
};
use crate::support::mesh::Config;
use crate::support::{Gate, Watched};

fn before(service: &RawService) -> Config {
    Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"\n")
}

/// On its first connection it says of each request that it did not take it. Beside it: the requests that have reached it.
fn going() -> (RawService, Arc<Watched<usize>>) {
    let requests = Arc::<Watched<usize>>::default();
    let theirs = Arc::clone(&requests);
    let service = RawService::scripted(move |number, raw| {
        while let Some(frame) = raw.event() {
            if frame.kind == HEADERS {
                theirs.change(|n| *n += 1);
                if number == 0 {
                    let mut payload = (frame.stream - 1).to_be_bytes().to_vec();
                    payload.extend_from_slice(&NO_ERROR.to_be_bytes());
                    raw.frame(GOAWAY, 0, 0, &payload);
                }
            }
            if frame.kind == DATA && frame.flags & END_STREAM != 0 {
                raw.head(0, frame.stream, &[(":status", "200")]);
                raw.frame(DATA, END_STREAM, frame.stream, &frame.payload);
            }
        }
    });
    (service, requests)
}

#[test]
fn g22_a_streamed_request_of_whose_body_nothing_has_come_goes_to_another_connection() {
    for lines in ["content-length: 5\r\n", "transfer-encoding: chunked\r\n"] {
        let (service, requests) = going();
        let mesh = before(&service).start();
        let mut client = mesh.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n"));
        // The body comes when the second connection has the request.
        requests.wait("the second time", |n| (*n == 2).then_some(()));
        client.send(if lines.starts_with('t') { "5\r\nhello\r\n0\r\n\r\n" } else { "hello" });
        assert_eq!(client.response().text(), "hello", "{lines}");
        // And the connection is in step with its caller.
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
        assert_eq!(client.response().text(), "hi", "{lines}");
        drop(client);
        let seen = mesh.finish();
        assert_eq!((seen.totals.replays, seen.failures.len()), (1, 0), "{lines}");
    }
    let (service, requests) = going();
    let mesh = before(&service).start();
    let mut raw = Raw::connect(mesh.address);
    raw.head(0, 1, &fields("POST", "/", &[]));
    requests.wait("the second time", |n| (*n == 2).then_some(()));
    raw.frame(DATA, END_STREAM, 1, b"hello");
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(raw.body(1), (b"hello".to_vec(), None));
    drop(raw);
    let seen = mesh.finish();
    assert_eq!((seen.totals.replays, seen.failures.len()), (1, 0));
}

#[test]
fn g22_a_streamed_request_of_whose_body_something_was_taken_is_not_sent_again() {
    let requests = Arc::<Watched<usize>>::default();
    let theirs = Arc::clone(&requests);
    // It waits for a piece of the body.
    let service = RawService::scripted(move |_, raw| {
        while let Some(frame) = raw.event() {
            if frame.kind == HEADERS {
                theirs.change(|n| *n += 1);
            }
            if frame.kind == DATA {
                let mut payload = (frame.stream - 1).to_be_bytes().to_vec();
                payload.extend_from_slice(&NO_ERROR.to_be_bytes());
                raw.frame(GOAWAY, 0, 0, &payload);
            }
        }
    });
    let mesh = before(&service).start();
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nh");
    assert_eq!(client.response().status(), 503);
    let mut raw = Raw::connect(mesh.address);
    raw.head(0, 1, &fields("POST", "/", &[]));
    raw.frame(DATA, 0, 1, b"h");
    assert_eq!(raw.outcome(1), Outcome::Status(503));
    drop((client, raw));
    let seen = mesh.finish();
    assert_eq!((seen.totals.replays, seen.of_cause("http2_going_away")), (0, 2));
    assert_eq!(requests.wait("all", |n| Some(*n)), 2);
}

#[test]
fn calls_wait_for_what_a_service_takes_and_not_within_a_connection_to_it() {
    // It takes one at a time on each connection, and says so late.
    let asked = Arc::<Gate>::default();
    let (say, finish) = (Arc::<Gate>::default(), Arc::<Gate>::default());
    let theirs = (Arc::clone(&asked), Arc::clone(&say), Arc::clone(&finish));
    let service = RawService::without_settings(move |number, raw| {
        let (asked, say, finish) = &theirs;
        if number == 0 {
            // Not even our settings are acknowledged before.
            let Some(first) = std::iter::from_fn(|| raw.next()).find(|frame| frame.kind == HEADERS) else {
                return;
            };
            asked.open();
            say.pass();
            raw.settings(&[(3, 1)]);
            raw.frame(SETTINGS, ACK, 0, &[]);
            finish.pass();
            raw.head(END_STREAM, first.stream, &[(":status", "200")]);
        } else {
            raw.settings(&[(3, 1)]);
        }
        while let Some((stream, _)) = raw.request() {
            raw.head(END_STREAM, stream, &[(":status", "200")]);
        }
    });
    // Nobody is to give up while the test looks on.
    let mut mesh = before(&service).keys("timeouts = { connect = \"60s\" }").start();
    let mut held = mesh.client();
    held.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    asked.pass();
    let mut others = [mesh.client(), mesh.client(), mesh.client()];
    for other in &mut others {
        other.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    mesh.wait_totals(|totals| totals.exchanges_open == 4);
    say.open();
    for other in &mut others {
        assert_eq!(other.response().status(), 200);
    }
    finish.open();
    assert_eq!(held.response().status(), 200);
    drop((held, others));
    assert!(mesh.finish().failures.is_empty());
}
