//! The life of a caller's connection, rows h63 to h67.

use ringmesh::telemetry::ShardTotals;

use crate::support::End;
use crate::support::client::Cut;
use crate::support::origin::{Origin, ok};
use crate::support::rig::Rig;

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn h63_pipelined_requests_are_answered_in_order() {
    let rig = Rig::before(Origin::answering(|request| {
        if request.target().ends_with('7') {
            // Another framing now and then.
            let body = request.target();
            return format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
            .into_bytes();
        }
        ok(request)
    }));
    let mut all = String::new();
    for n in 0..200 {
        all += &match n % 5 {
            0 => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
            1 => format!(
                "POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            ),
            2 => format!(
                "POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n{}",
                "x".repeat(20_000)
            ),
            _ => get(&format!("/{n}")),
        };
    }
    for pieces in [usize::MAX, 1000] {
        let mut client = rig.client();
        client.send_in_pieces(all.as_bytes(), pieces);
        for n in 0..200 {
            assert_eq!(client.response().text(), format!("/{n}"));
        }
    }
    let done = rig.done();
    let want: Vec<_> = (0..200).chain(0..200).map(|n| format!("/{n}")).collect();
    assert_eq!(done.requests.iter().map(|r| r.target().to_owned()).collect::<Vec<_>>(), want);
    assert_eq!(done.connections, 1);
}

#[test]
fn h63_head_and_responses_without_body_do_not_shift_the_order() {
    let rig = Rig::before(Origin::answering(|request| match request.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\n".to_vec(),
        _ => ok(request),
    }));
    let mut client = rig.client();
    client.send(format!("HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n{}{}{}", get("/204"), get("/304"), get("/end")));
    assert_eq!(client.response_to_head().one("content-length").unwrap(), "2");
    assert_eq!(client.response().status(), 204);
    assert_eq!(client.response().one("content-length").unwrap(), "7");
    assert_eq!(client.response().text(), "/end");
    drop(client);
    assert_eq!(rig.done().connections, 1);
}

#[test]
fn h63_a_head_that_is_refused_gets_no_body_either() {
    let rig = Rig::plain();
    for request in [
        "HEAD / HTTP/1.1\r\n\r\n",
        "\r\nHEAD / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
    ] {
        let mut client = rig.client();
        client.send(request);
        assert_eq!(client.response_to_head().status(), 400, "{request:?}");
        assert_eq!(client.end(), End::Fin);
    }
    rig.done_unseen();
}

#[test]
fn h64_nothing_is_served_behind_a_request_that_closes() {
    let rig = Rig::plain();
    for last in [
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Close\r\n\r\n",
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: CLOSE\r\n\r\n",
        "GET /last HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET /last HTTP/1.0\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n",
        "POST /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = rig.client();
        client.send(format!("{}{last}{}", get("/first"), get("/never")));
        assert_eq!(client.response().text(), "/first");
        let response = client.response();
        assert_eq!((response.text(), response.one("connection").unwrap()), ("/last".into(), "close".into()));
        assert!(matches!(client.cut(), Cut::Nothing(_)), "{last:?}");
    }
    let done = rig.done();
    assert!(done.requests.iter().all(|r| r.target() != "/never"));
    assert_eq!(done.connections, 1, "that the caller closes does not concern the service's connection");
}

#[test]
fn h64_http10_may_ask_to_keep_the_connection() {
    let rig = Rig::plain();
    let mut client = rig.client();
    for _ in 0..3 {
        client.send("GET /a HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n");
        assert_eq!(client.response().one("connection").unwrap(), "keep-alive");
    }
    client.send("GET /a HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().one("connection").unwrap(), "close");
    assert_eq!(client.end(), End::Fin);
}

#[test]
fn h65_a_caller_that_half_closes_gets_its_response() {
    let (gate, origin) = Origin::gated();
    let rig = Rig::before(origin);
    let mut clients = Vec::new();
    for bytes in [
        get("/a"),
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".into(),
        format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n{}", "x".repeat(200_000)),
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(),
        "GET /a HTTP/1.0\r\n\r\n".into(),
    ] {
        let mut client = rig.client();
        client.send(bytes).finish();
        clients.push(client);
    }
    rig.origin.wait_requests(5);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "/a");
        assert_eq!(client.end(), End::Fin);
    }
    drop(clients);
    assert_eq!(rig.done().requests.len(), 5);
}

#[test]
fn h66_an_early_response_is_delivered_whole_and_the_body_is_never_parsed() {
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.head().unwrap();
        visit.send("HTTP/1.1 403 No\r\nContent-Length: 7\r\n\r\nno way!");
        visit.drain();
    }));
    // The body looks like requests. Its end is never sent, so that no response to it can come too late to be early.
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100_000);
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    for bytes in [
        format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len() + 1),
        format!("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
    ] {
        let mut client = rig.client();
        client.send(bytes);
        let response = client.response();
        assert_eq!((response.status(), response.text()), (403, "no way!".into()));
        assert_eq!(response.one("connection").unwrap(), "close");
        assert_eq!(client.end(), End::Fin, "a reset could have destroyed the response");
    }
    assert_eq!(rig.done().requests, []);
}

#[test]
fn h66_an_early_response_of_a_service_that_closes_at_once_is_delivered() {
    // The service closes with unread bytes, which resets its connection: what it said before that must get through.
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.head().unwrap();
        visit.send("HTTP/1.1 413 Too Big\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!");
        visit.finish();
        visit.drain();
    }));
    let mut client = rig.client();
    client.send(format!(
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 9000001\r\n\r\n{}",
        "x".repeat(9_000_000)
    ));
    let response = client.response();
    assert_eq!((response.status(), response.text()), (413, "no!".into()));
    assert_eq!(client.end(), End::Fin);
}

#[test]
fn h67_a_post_is_not_sent_again_when_its_connection_dies() {
    let rig = Rig::before(Origin::scripted(|visit| {
        // Answers once, then takes one request and closes.
        if let Some(request) = visit.request() {
            visit.send(ok(&request));
            visit.request();
        }
    }));
    let mut client = rig.client();
    client.send(get("/warm"));
    assert_eq!(client.response().status(), 200);
    client.send("POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let response = client.response();
    assert_eq!(response.status(), 502);
    assert!(response.one("x-ringmesh-failure").unwrap().starts_with("response.upstream."));
    drop(client);
    let done = rig.done();
    assert_eq!(done.requests.iter().filter(|r| r.target() == "/once").count(), 1);
    assert_eq!(done.seen.totals.replays, 0);
}

#[test]
fn connections_that_were_quiet_for_a_while_are_served_and_their_end_is_seen() {
    let mut rig = Rig::plain();
    let mut clients: Vec<_> = (0..60).map(|_| rig.client()).collect();
    for client in clients.iter_mut().step_by(2) {
        client.send(get("/before"));
        assert_eq!(client.response().text(), "/before");
    }
    // Quiet connections give their buffers back, of which then most are freed.
    let quiet = |totals: &ShardTotals| totals.downstream_open == 60 && totals.buffer_bytes < 20 * 16_384;
    for round in 0..2 {
        rig.mesh.wait_totals(quiet);
        for (n, client) in clients.iter_mut().enumerate() {
            let target = format!("/{round}/{n}");
            match n % 3 {
                0 => client.send(get(&target)),
                1 => client.send_in_pieces(get(&target).as_bytes(), 5),
                _ => client.send(format!(
                    "POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                )),
            };
            assert_eq!(client.response().text(), target);
        }
    }
    rig.mesh.wait_totals(quiet);
    for client in &mut clients {
        assert_eq!(client.finish().end(), End::Fin);
    }
    drop(clients);
    assert_eq!(rig.done().seen.by_class[2], 150);
}
