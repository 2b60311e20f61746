//! Expect and interim responses, rows h57 to h62.

use std::sync::Arc;

use crate::support::client::Cut;
use crate::support::origin::{Origin, ok};
use crate::support::rig::Rig;
use crate::support::{End, Gate};

const EXPECTING: &str = "POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn h57_the_services_100_reaches_a_caller_that_waits_for_it() {
    let rig = Rig::before(Origin::scripted(|visit| {
        while let Some(head) = visit.head() {
            assert!(head.one("expect").unwrap().eq_ignore_ascii_case("100-continue"));
            visit.send("HTTP/1.1 100 Continue\r\n\r\n");
            assert_eq!(visit.bytes(5), b"hello");
            visit.send(ok(&head));
        }
    }));
    let mut client = rig.client();
    for expect in ["100-continue", "100-Continue"] {
        client.send(EXPECTING.replace("100-continue", expect));
        assert_eq!(client.response().start, "HTTP/1.1 100 Continue");
        client.send("hello");
        assert_eq!(client.response().status(), 200);
    }
    // A caller that does not wait gets both.
    client.send(format!("{EXPECTING}hello"));
    let statuses: Vec<_> = client.responses().iter().map(|r| r.status()).collect();
    assert_eq!(statuses, [100, 200]);
    drop(client);
    let done = rig.done();
    assert_eq!((done.requests.len(), done.connections), (3, 1));
}

#[test]
fn h57_a_final_answer_in_place_of_100_ends_the_exchange_without_the_body() {
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.head().unwrap();
        visit.send("HTTP/1.1 413 Too Big\r\nContent-Length: 2\r\n\r\nno");
        visit.drain();
    }));
    let mut client = rig.client();
    client.send(EXPECTING);
    let response = client.response();
    assert_eq!((response.status(), response.text()), (413, "no".into()));
    assert_eq!(response.one("connection").unwrap(), "close");
    assert_eq!(client.end(), End::Fin);
    drop(client);
    assert_eq!(rig.done().requests.len(), 0, "the request was never whole");
}

#[test]
fn h57_a_caller_that_sends_the_body_without_a_100_is_served() {
    let rig = Rig::plain();
    let mut client = rig.client();
    // The service answers only when all is there, so nobody sends a 100.
    client.send(EXPECTING);
    rig.origin.wait_bytes(b"\r\n\r\n");
    client.send("hello");
    assert_eq!(client.response().status(), 200);
    // Where no body is announced there is nothing to expect.
    client.send("GET /b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.response().text(), "/b");
    drop(client);
    assert!(!rig.done().requests[1].has("expect"));
}

#[test]
fn h58_an_unknown_expectation_is_answered_with_417() {
    let rig = Rig::plain();
    for value in ["200-ok", "100-continue, x", "", "x=y", "100-continuex", "\"100-continue\""] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: {value}\r\n\r\n");
        rig.refused(bytes, 417, "expectation_failed");
    }
    rig.done_unseen();
}

#[test]
fn h59_an_http10_caller_never_gets_an_interim_response() {
    let rig = Rig::before(Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            assert!(!request.has("expect"), "HTTP/1.0 knows no expectations");
            visit.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    client.send("POST /a HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.end(), End::Fin);
    drop(client);
    rig.done();
}

#[test]
fn h60_early_hints_are_forwarded_before_the_final_response_is_there() {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let rig = Rig::before(Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            visit.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n");
            theirs.pass();
            visit.send("HTTP/1.1 199 Strange\r\n\r\n");
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    let hints = client.response();
    assert_eq!((hints.status(), hints.one("link").unwrap()), (103, "</x>".into()));
    assert!(!hints.has("connection") && !hints.has("x-hop") && !hints.has("date"), "{hints:?}");
    gate.open();
    let statuses: Vec<_> = client.responses().iter().map(|r| r.status()).collect();
    assert_eq!(statuses, [199, 200]);
    drop(client);
    rig.done();
}

#[test]
fn h60_interim_responses_may_come_in_any_pieces() {
    let rig = Rig::before(Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            let all = [
                &b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"[..],
                &ok(&request),
            ]
            .concat();
            for octet in all {
                visit.send([octet]);
            }
        }
    }));
    let mut client = rig.client();
    for _ in 0..3 {
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        let statuses: Vec<_> = client.responses().iter().map(|r| r.status()).collect();
        assert_eq!(statuses, [102, 103, 200]);
    }
    drop(client);
    assert_eq!(rig.done().connections, 1);
}

#[test]
fn h61_a_101_that_nobody_asked_for_is_a_bad_response() {
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.request().unwrap();
        visit.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
        visit.drain();
    }));
    for (n, lines) in ["X: y", "Connection: upgrade\r\nUpgrade: h2c"].into_iter().enumerate() {
        let mut client = rig.client();
        client.send(format!("GET /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status(), 502);
        assert_eq!(response.one("x-ringmesh-failure").unwrap(), "response.upstream.unexpected_upgrade");
        // No tunnel, and the service's connection is closed.
        rig.origin.wait_end(n);
    }
    assert_eq!(rig.done().seen.of_cause("unexpected_upgrade"), 2);
}

#[test]
fn h62_an_endless_row_of_interim_responses_is_ended() {
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.request().unwrap();
        while visit.send("HTTP/1.1 100 Continue\r\n\r\n") {}
    }));
    for version in ["1.1", "1.0"] {
        let mut client = rig.client();
        client.send(format!("GET /a HTTP/{version}\r\nHost: a\r\n\r\n"));
        let all = client.responses();
        assert_eq!(all.len(), if version == "1.1" { 17 } else { 1 });
        let last = all.last().unwrap();
        assert_eq!(last.status(), 502);
        assert_eq!(last.one("x-ringmesh-failure").unwrap(), "response.upstream.too_many_interim_responses");
    }
    assert_eq!(rig.done().seen.of_cause("too_many_interim_responses"), 2);
}

#[test]
fn h62_a_service_that_goes_silent_behind_an_interim_response_is_not_waited_for_forever() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            visit.request().unwrap();
            visit.send("HTTP/1.1 103 Early Hints\r\n\r\n");
            visit.drain();
        }),
        |c| c.keys("timeouts = { response = \"50ms\" }"),
    );
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    let statuses: Vec<_> = client.responses().iter().map(|r| r.status()).collect();
    assert_eq!(statuses, [103, 504]);
    drop(client);
    rig.done();
}

#[test]
fn h62_a_service_that_goes_silent_behind_its_100_is_not_waited_for_forever() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            visit.head().unwrap();
            visit.send("HTTP/1.1 100 Continue\r\n\r\n");
            visit.drain();
        }),
        |c| c.keys("timeouts = { response = \"50ms\" }"),
    );
    let mut client = rig.client();
    client.send(EXPECTING);
    assert_eq!(client.response().status(), 100);
    client.send("hello");
    let response = client.response();
    assert_eq!(response.status(), 504);
    assert_eq!(response.one("x-ringmesh-failure").unwrap(), "response.upstream.timeout");
    drop(client);
    rig.done();
}

#[test]
fn h62_a_service_that_closes_behind_an_interim_response_is_reported() {
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.request().unwrap();
        visit.send("HTTP/1.1 100 Continue\r\n\r\n");
    }));
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    let statuses: Vec<_> = client.responses().iter().map(|r| r.status()).collect();
    assert_eq!(statuses, [100, 502]);
    client.finish();
    assert!(matches!(client.cut(), Cut::Nothing(End::Fin)));
}
