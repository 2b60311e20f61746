//! Fields, hop-by-hop and forwarding, rows h42 to h56.

use crate::support::origin::Origin;
use crate::support::rig::Rig;
use crate::support::wire::Framing;

fn with(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
}

#[test]
fn h42_bad_field_names_are_refused() {
    let rig = Rig::plain();
    for line in [
        &b"A B: c"[..],
        b"A(: c",
        b"A): c",
        b"\"A\": c",
        b"A\0: c",
        b"A\x01: c",
        b"A\x7f: c",
        b"A\xff: c",
        b"A\xc3\xa9: c",
        b": c",
        b"no colon",
        b"A,B: c",
        b"A/B: c",
        b"A[]: c",
        b"{A}: c",
        b"A@: c",
        b"A?: c",
        b"A=: c",
        b"<A>: c",
        b"A\\: c",
        b"Transfer-Encoding(: chunked",
        b"Transfer-Encoding\0: chunked",
        b"Transfer-Encoding",
        b"A;: c",
    ] {
        let bytes = [b"POST / HTTP/1.1\r\nHost: a\r\n", line, b"\r\nX: y\r\n\r\n"].concat();
        rig.refused(bytes, 400, "bad_field_name");
    }
    rig.done_unseen();
}

#[test]
fn h43_h44_control_characters_in_values_are_refused() {
    let rig = Rig::plain();
    for octet in (0..0x20).chain([0x7f]) {
        if octet == b'\t' || octet == b'\n' {
            continue;
        }
        let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX: b", &[octet][..], b"c\r\nY: z\r\n\r\n"].concat();
        rig.refused_as(bytes, &[(400, "bad_field_value"), (400, "bare_cr_or_lf")]);
    }
    rig.done_unseen();
}

#[test]
fn h44_other_octets_are_opaque() {
    let rig = Rig::plain();
    let value: Vec<u8> = (0x80..=0xff).chain(*b"\t !\"#()<>@,;:\\/[]?={}~").collect();
    let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &value[..], b"\r\n\r\n"].concat();
    let seen = rig.forwarded(bytes);
    let (_, got) = seen.fields.iter().find(|(name, _)| name == "x").unwrap();
    assert_eq!(*got, value);
}

#[test]
fn h45_folded_lines_are_refused() {
    let rig = Rig::plain();
    for lines in ["X: a\r\n b", "X: a\r\n\tb", "X:\r\n b", "X: a\r\n ", "X: a\r\n b\r\n c\r\nY: z"] {
        rig.refused(with(lines), 400, "obsolete_fold");
    }
    rig.done_unseen();
}

#[test]
fn h46_h47_order_empty_fields_and_unknown_fields_are_kept() {
    let rig = Rig::plain();
    let seen = rig.forwarded(with(
        "X-A: 1\r\nB: 2\r\nx-a: 3\r\nX-Empty:\r\nX-A:  4 5 \t\r\nX-Blank:  \r\n!#$%&'*+-.^_`|~: odd",
    ));
    assert_eq!(seen.all("x-a"), ["1", "3", "4 5"]);
    assert_eq!((seen.all("x-empty"), seen.all("x-blank")), (vec![String::new()], vec![String::new()]));
    assert_eq!(seen.one("!#$%&'*+-.^_`|~").unwrap(), "odd");
    let names: Vec<_> = seen.fields.iter().map(|(name, _)| name.as_str()).take(5).collect();
    assert_eq!(names, ["host", "x-a", "b", "x-a", "x-empty"]);
}

#[test]
fn h48_what_connection_names_is_removed_in_both_directions() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nX-Hop: 1\r\nConnection: x-hop, X-Sum\r\nX-Stays: 2\r\nConnection: X-Other\r\nX-OTHER: 3\r\n\
          Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Kept: 2\r\n\r\n"
            .to_vec()
    });
    let rig = Rig::before(origin);
    let mut client = rig.client();
    client.send(
        "POST /a HTTP/1.1\r\nHost: a\r\nConnection: X-Hop , ,x-sum\r\nX-Hop: 1\r\nx-hop: 2\r\nX-Stays: 3\r\nConnection: \
         X-Other\r\nX-Other: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Kept: 2\r\n\r\n",
    );
    let response = client.response();
    drop(client);
    let done = rig.done();
    for message in [&response, &done.requests[0]] {
        for gone in ["connection", "x-hop", "x-other"] {
            assert!(!message.has(gone), "{gone} in {message:?}");
        }
        assert!(message.has("x-stays"));
        assert_eq!(message.trailer("x-kept"), ["2"]);
        assert_eq!(message.trailer("x-sum"), [""; 0], "a trailer that Connection names: {message:?}");
    }
}

#[test]
fn h48_too_many_nominations_are_refused_and_bad_ones_too() {
    let rig = Rig::plain();
    let many: Vec<_> = (0..40).map(|n| format!("x-{n}")).collect();
    rig.refused(with(&format!("Connection: {}", many.join(","))), 431, "head_too_large");
    for value in ["a b", "a;b", "\"close\"", "clo\u{e9}se"] {
        rig.refused(with(&format!("Connection: {value}")), 400, "bad_field_value");
    }
    rig.done_unseen();
}

#[test]
fn h49_hop_by_hop_fields_are_removed_although_nobody_named_them() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTE: x\r\nUpgrade: h2c\r\nContent-Length: \
          0\r\n\r\n"
            .to_vec()
    });
    let rig = Rig::before(origin);
    let mut client = rig.client();
    client.send(with(
        "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: foo\r\nTrailer: x",
    ));
    let response = client.response();
    client.send(with("TE: gzip;q=0.5, Trailers\r\nConnection: te"));
    client.response();
    drop(client);
    let requests = rig.done().requests;
    for message in [&response, &requests[0]] {
        for gone in ["keep-alive", "proxy-connection", "te", "upgrade", "connection", "transfer-encoding"] {
            assert!(!message.has(gone), "{gone} in {message:?}");
        }
    }
    assert_eq!(requests[1].one("te").unwrap(), "trailers");
    assert_eq!(requests[1].one("connection").unwrap(), "te");
}

#[test]
fn h50_connection_cannot_remove_what_the_next_hop_relies_on() {
    let rig = Rig::plain();
    let seen = rig.forwarded(
        "POST /a HTTP/1.1\r\nHost: a\r\nConnection: Host, Content-Length, Authorization, X-Forwarded-For, \
         X-Forwarded-Proto, Cookie, Via, X-Request-Id, Traceparent, Content-Type\r\nContent-Length: 2\r\nAuthorization: \
         secret\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nCookie: c=1\r\nX-Request-Id: 7\r\nTraceparent: \
         t\r\nContent-Type: text/plain\r\n\r\nhi",
    );
    for (name, want) in [
        ("host", "a"),
        ("content-length", "2"),
        ("authorization", "secret"),
        ("x-forwarded-for", "10.0.0.1, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("cookie", "c=1"),
        ("via", "1.1 hop"),
        ("x-request-id", "7"),
        ("traceparent", "t"),
        ("content-type", "text/plain"),
    ] {
        assert_eq!(seen.one(name).as_deref(), Some(want), "{name}");
    }
    assert!(!seen.has("connection"));
}

#[test]
fn h51_an_upgrade_to_h2c_is_not_forwarded_and_the_request_is_served() {
    let rig = Rig::plain();
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Connection: upgrade\r\nUpgrade: foo/2, h2c",
    ] {
        let seen = rig.forwarded(with(lines));
        for gone in ["upgrade", "http2-settings", "connection"] {
            assert!(!seen.has(gone), "{gone} in {seen:?}");
        }
    }
}

#[test]
fn h51_an_upgrade_with_a_choice_of_protocols_is_refused() {
    let rig = Rig::plain();
    rig.refused(with("Connection: Upgrade\r\nUpgrade: h2c, WebSocket"), 501, "upgrade_refused");
    rig.done_unseen();
}

#[test]
fn h52_upgrade_in_http10_is_ignored() {
    let rig = Rig::plain();
    for protocol in ["websocket", "h2c"] {
        let seen = rig.forwarded(format!(
            "GET /a HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        ));
        assert!(!seen.has("upgrade") && !seen.has("connection"));
    }
}

#[test]
fn h53_via_is_added_behind_that_of_earlier_hops() {
    let rig = Rig::plain();
    assert_eq!(rig.forwarded(with("X: y")).all("via"), ["1.1 hop"]);
    assert_eq!(
        rig.forwarded(with("Via: 1.0 first (x), 2 second")).all("via"),
        ["1.0 first (x), 2 second", "1.1 hop"]
    );
    assert_eq!(rig.forwarded("GET / HTTP/1.0\r\n\r\n").all("via"), ["1.0 hop"]);
    rig.done();
    let rig = Rig::with(|c| c.forwarding("via = \"off\""));
    assert_eq!(rig.forwarded(with("Via: 1.1 first")).all("via"), ["1.1 first"]);
}

#[test]
fn h54_max_forwards_counts_down_and_is_never_invented() {
    let rig = Rig::plain();
    let options = |n: &str| format!("OPTIONS /a HTTP/1.1\r\nHost: a\r\nMax-Forwards: {n}\r\n\r\n");
    assert_eq!(rig.forwarded(options("10")).one("max-forwards").unwrap(), "9");
    assert_eq!(rig.forwarded(options("1")).one("max-forwards").unwrap(), "0");
    assert!(!rig.forwarded("OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\n").has("max-forwards"));
    // With other methods it means nothing and is left alone.
    assert_eq!(rig.forwarded(with("Max-Forwards: 5")).one("max-forwards").unwrap(), "5");
    for bad in ["-1", "x", "", "1, 2"] {
        rig.refused(options(bad), 400, "bad_field_value");
    }
    let before = rig.origin.recorded().iter().map(|r| r.requests().len()).sum::<usize>();
    let mut client = rig.client();
    client.send(options("0")).send(with("X: y"));
    let answer = client.response();
    assert_eq!((answer.status(), answer.body.len()), (200, 0));
    assert_eq!(client.response().text(), "/a");
    drop(client);
    assert_eq!(rig.done().requests.len(), before + 1, "the one with 0 goes no further");
}

#[test]
fn h55_what_concerns_the_ends_is_forwarded_unchanged() {
    let rig = Rig::plain();
    let lines = [
        ("authorization", "Basic dTpw"),
        ("cookie", "a=b; c=\"d\""),
        ("if-none-match", "\"x\", W/\"y\""),
        ("if-match", "*"),
        ("if-modified-since", "Sat, 29 Oct 1994 19:43:31 GMT"),
        ("if-unmodified-since", "nonsense"),
        ("if-range", "\"x\""),
        ("range", "bytes=0-0,-1"),
        ("accept-encoding", "gzip, identity;q=0"),
        ("content-encoding", "gzip"),
        ("content-type", "text/html; charset=x"),
        ("referer", "http://u:p@x/"),
        ("user-agent", "a (b; c)"),
        ("x-request-id", "id"),
        ("traceparent", "00-a-b-01"),
        ("cache-control", "no-transform"),
        ("date", "yesterday"),
        ("pragma", "x"),
        ("age", "1"),
        ("server", "x"),
    ];
    let text: Vec<_> = lines.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let seen = rig.forwarded(with(&text.join("\r\n")));
    for (name, value) in lines {
        assert_eq!(seen.one(name).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn h56_upgrade_with_a_body_is_framed_or_refused() {
    let rig = Rig::plain();
    let post = |lines: &str, body: &str| format!("POST /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}");
    for (framing, body) in
        [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")]
    {
        let websocket = format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{framing}");
        rig.refused(post(&websocket, body), 400, "upgrade_with_body");
        let h2c = format!("Connection: Upgrade\r\nUpgrade: h2c\r\n{framing}");
        let seen = rig.forwarded(post(&h2c, body));
        assert_eq!((seen.text().as_str(), seen.has("upgrade")), ("hello", false));
        assert_ne!(seen.framing, Framing::None);
    }
    assert_eq!(rig.done().requests.len(), 2);
}
