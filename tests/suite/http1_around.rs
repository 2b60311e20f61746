//! Around the exchange, rows h87 to h95: loops, slow peers, what is added and what is never touched.

use crate::support::End;
use crate::support::client::Cut;
use crate::support::mesh::Config;
use crate::support::origin::Origin;
use crate::support::rig::{Rig, assert_refusal};

fn with(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
}

#[test]
fn h87_a_request_that_was_here_before_is_refused() {
    let rig = Rig::plain();
    for via in [
        "1.1 hop",
        "1.1 HOP",
        "1.0 first, 1.1 hop",
        "1.1 hop (comment)",
        "1.1  hop ",
        "HTTP/1.1 hop",
        "1.1 a\r\nVia: 2 hop",
    ] {
        rig.refused(with(&format!("Via: {via}")), 508, "loop_detected");
    }
    // Others may have similar names.
    for via in ["1.1 hop2", "1.1 first, 1.1 hop.example", "1.1 other (hop)", "hop"] {
        assert_eq!(rig.forwarded(with(&format!("Via: {via}"))).all("via").len(), 2, "{via}");
    }
    assert_eq!(rig.done().requests.len(), 4);
}

#[test]
fn h87_a_proxy_that_is_its_own_service_answers_once() {
    // A listener whose address is known before the proxy that is configured to connect to it.
    let mut mesh = Config::default().service_at("app", &["127.0.0.1:1"], "").start();
    let own = mesh.address.to_string();
    mesh.reload(&Config::default().service_at("app", &[&own], ""));
    let mut client = mesh.client();
    client.send(with("X: y"));
    assert_eq!(client.response().status(), 508);
    drop(client);
    let seen = mesh.finish();
    assert_eq!(seen.totals.downstream_accepted, 2, "one round, not more");
}

#[test]
fn h88_credentials_for_proxies_go_no_further() {
    let rig = Rig::before(Origin::answering(|_| {
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n".to_vec()
    }));
    let mut client = rig.client();
    client.send(with("Proxy-Authorization: Basic x\r\nProxy-Authenticate: y"));
    let response = client.response();
    assert!(!response.has("proxy-authenticate"));
    drop(client);
    let seen = &rig.done().requests[0];
    assert!(!seen.has("proxy-authorization") && !seen.has("proxy-authenticate"));
}

#[test]
fn h89_h90_h91_content_and_what_describes_it_are_never_modified() {
    let response = b"HTTP/1.1 421 Misdirected Request\r\nAllow: GET,,PUT\r\nWWW-Authenticate: Basic realm=\"a, b\", \
                     Digest x\r\nCache-Control: no-transform\r\nContent-Encoding: gzip\r\nVary: *\r\nServer: x\r\nAge: \
                     3\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\xff";
    let rig = Rig::before(Origin::answering(|_| response.to_vec()));
    let mut client = rig.client();
    client.send(with("Accept-Encoding: gzip"));
    let seen = client.response();
    assert_eq!(seen.start, "HTTP/1.1 421 Misdirected Request");
    for (name, want) in [
        ("allow", "GET,,PUT"),
        ("www-authenticate", "Basic realm=\"a, b\", Digest x"),
        ("cache-control", "no-transform"),
        ("content-encoding", "gzip"),
        ("vary", "*"),
        ("server", "x"),
        ("age", "3"),
    ] {
        assert_eq!(seen.one(name).as_deref(), Some(want));
    }
    assert_eq!(seen.body, b"\x1f\x8b\x00\xff");
}

#[test]
fn h92_a_slow_head_is_answered_with_408() {
    let rig = Rig::with(|c| c.timeouts("head = \"50ms\"\nidle = \"1h\""));
    for part in ["G", "GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r", "\r\nGET"] {
        let mut client = rig.client();
        client.send(part);
        assert_refusal(&mut client, part.as_bytes(), &[(408, "timeout")]);
    }
    // Also behind a request that was served.
    let mut client = rig.client();
    client.send(format!("{}GET", with("X: y")));
    assert_eq!(client.response().text(), "/a");
    assert_refusal(&mut client, b"GET", &[(408, "timeout")]);
    drop(client);
    let done = rig.done();
    assert_eq!((done.requests.len(), done.seen.failures["head.downstream.timeout"]), (1, 5));
}

#[test]
fn h92_a_slow_body_is_answered_with_408_and_never_looks_whole() {
    let rig = Rig::with(|c| c.timeouts("body_stall = \"50ms\""));
    for bytes in [
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut client = rig.client();
        client.send(bytes);
        assert_refusal(&mut client, bytes.as_bytes(), &[(408, "timeout")]);
    }
    assert_eq!(rig.done_unseen().failures["request.downstream.timeout"], 3);
}

#[test]
fn h92_a_slow_service_is_answered_for_with_504() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            visit.request().unwrap();
            if visit.number % 2 == 1 {
                visit.send("HTTP/1.1 200 OK\r\nContent-Le");
            }
            visit.drain();
        }),
        |c| c.keys("timeouts = { response = \"50ms\" }"),
    );
    for n in 0..2 {
        for request in [
            with("X: y"),
            "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        ] {
            let mut client = rig.client();
            client.send(request);
            let response = client.response();
            assert_eq!(response.status(), 504);
            assert_eq!(response.one("x-ringmesh-failure").unwrap(), "response.upstream.timeout");
        }
        rig.origin.wait_end(n);
    }
    let done = rig.done();
    assert_eq!((done.connections, done.seen.failures["response.upstream.timeout"]), (4, 4));
}

#[test]
fn h92_a_service_that_stalls_in_the_body_cuts_the_response() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            visit.request().unwrap();
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell");
            visit.drain();
        }),
        |c| c.keys("timeouts = { body_stall = \"50ms\" }"),
    );
    let mut client = rig.client();
    client.send(with("X: y"));
    let Cut::Truncated(Some(response), End::Fin) = client.cut() else { panic!("not cut") };
    assert_eq!(response.text(), "hell");
    drop(client);
    assert_eq!(rig.done().seen.failures["body.upstream.timeout"], 1);
}

#[test]
fn h92_a_caller_that_does_not_read_is_not_waited_for_forever() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            visit.request().unwrap();
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            while visit.send([0; 65_536]) {}
        }),
        |c| c.timeouts("body_stall = \"50ms\""),
    );
    let mut client = rig.client();
    client.send(with("X: y"));
    // Reads nothing: the service's connection is ended none the less, which its script sees.
    rig.origin.wait_connections(1);
    let done = rig.done();
    assert_eq!(done.seen.failures["body.downstream.timeout"], 1);
    drop(client);
}

#[test]
fn h92_the_whole_exchange_has_a_deadline_where_the_route_says_so() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            visit.request();
            visit.drain();
        }),
        |c| c.routes("[[route]]\nservice = \"app\"\ntimeout = \"300ms\"\n"),
    );
    let mut client = rig.client();
    client.send(with("X: y"));
    assert_eq!(client.response().status(), 504);
    // With a body that does not come either.
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    assert!(matches!(client.response().status(), 408 | 504));
    drop(client);
    rig.done();
}

#[test]
fn h93_idle_connections_are_closed_without_a_word() {
    let rig = Rig::with(|c| c.timeouts("idle = \"50ms\""));
    let mut never_used = rig.client();
    assert_eq!(never_used.end(), End::Fin);
    // On a busy machine the connection may be closed before the request is on its way.
    let mut used = loop {
        let mut client = rig.client();
        client.send(with("X: y"));
        if client.try_response(false).is_ok_and(|response| response.text() == "/a") {
            break client;
        }
    };
    assert_eq!(used.end(), End::Fin);
    // Bytes that are no beginning of a request do not keep it.
    let mut empty_line = rig.client();
    empty_line.send("\r\n").finish();
    assert_eq!(empty_line.end(), End::Fin);
    assert!(rig.done().seen.failures.is_empty());
}

#[test]
fn h95_forwarding_fields_are_kept_appended_to_or_replaced() {
    let lines = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Host: h\r\nX-Forwarded-For: 10.0.0.2\r\nX-Forwarded-Proto: \
                 https\r\nForwarded: for=x";
    let me = "127.0.0.1";
    type Want<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let table: [(&str, Want<'_>, Want<'_>); 3] = [
        ("keep", (&["10.0.0.1", "10.0.0.2"], &["https"], &["h"], &["for=x"]), (&[], &[], &[], &[])),
        (
            "append",
            (&["10.0.0.1, 10.0.0.2, 127.0.0.1"], &["https"], &["h"], &["for=x"]),
            (&[me], &["http"], &["a"], &[]),
        ),
        ("replace", (&[me], &["http"], &["a"], &[]), (&[me], &["http"], &["a"], &[])),
    ];
    for (mode, with_fields, without) in table {
        let rig = Rig::with(|c| c.forwarding(&format!("forwarded = \"{mode}\"")));
        for (bytes, want) in [(with(lines), with_fields), (with("X: y"), without)] {
            let seen = rig.forwarded(bytes);
            assert_eq!(seen.all("x-forwarded-for"), want.0, "{mode}");
            assert_eq!(seen.all("x-forwarded-proto"), want.1, "{mode}");
            assert_eq!(seen.all("x-forwarded-host"), want.2, "{mode}");
            assert_eq!(seen.all("forwarded"), want.3, "{mode}");
        }
        rig.done();
    }
}

#[test]
fn h95_ids_of_requests_and_traces_are_passed_on_and_failure_reports_are_not_believed() {
    let rig = Rig::plain();
    let seen = rig.forwarded(with(
        "X-Request-Id: 1\r\nTraceparent: 00-a-b-01\r\nTracestate: x=y\r\nX-Ringmesh-Failure: z",
    ));
    assert_eq!(seen.one("x-request-id").unwrap(), "1");
    assert_eq!(seen.one("traceparent").unwrap(), "00-a-b-01");
    assert_eq!(seen.one("tracestate").unwrap(), "x=y");
    assert!(!seen.has("x-ringmesh-failure"));
}

#[test]
fn a_request_without_a_route_is_answered_with_404_and_the_connection_serves_on() {
    let rig = Rig::with(|c| c.routes("[[route]]\npath_prefix = \"/a\"\nservice = \"app\"\n"));
    let mut client = rig.client();
    client.send(
        "GET /b HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    );
    for _ in 0..2 {
        let response = client.response();
        assert_eq!(
            (response.status(), response.one("x-ringmesh-failure").unwrap()),
            (404, "route.local.no_route".into())
        );
        assert!(!response.has("connection"));
    }
    client.send("HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response_to_head().status(), 404);
    client.send(with("X: y"));
    assert_eq!(client.response().text(), "/a");
    // A body that is not there yet cannot be followed by another request.
    client.send("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello");
    assert_refusal(&mut client, b"POST /b", &[(404, "no_route")]);
    drop(client);
    let done = rig.done();
    assert_eq!((done.requests.len(), done.seen.of_cause("no_route")), (1, 4));
}

#[test]
fn what_failed_can_be_kept_from_the_caller() {
    let rig = Rig::with(|c| {
        c.forwarding("failure_header = false").routes("[[route]]\npath = \"/x\"\nservice = \"app\"\n")
    });
    let mut client = rig.client();
    client.send(with("X: y"));
    let response = client.response();
    assert_eq!((response.status(), response.has("x-ringmesh-failure")), (404, false));
    assert!(!response.text().contains("no_route"), "{}", response.text());
}

#[test]
fn connections_over_the_limit_are_closed_and_counted() {
    let rig = Rig::with(|c| c.limits("connections_max = 2"));
    let mut first = rig.client();
    let mut second = rig.client();
    for client in [&mut first, &mut second] {
        client.send(with("X: y"));
        assert_eq!(client.response().status(), 200);
    }
    let mut third = rig.client();
    assert!(matches!(third.cut(), Cut::Nothing(_)));
    drop((first, second, third));
    assert_eq!(rig.done().seen.totals.downstream_refused, 1);
}
