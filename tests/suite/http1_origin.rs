//! Responses from a bad service, rows h68 to h86: the caller can always tell what is whole, and what follows a response
//! never becomes another caller's.

use std::sync::Arc;

use crate::support::client::Cut;
use crate::support::mesh::Seen;
use crate::support::origin::{Origin, ok};
use crate::support::rig::Rig;
use crate::support::wire::Framing;
use crate::support::{End, Gate};

/// What the service does behind its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Keep,
    Close,
    Reset,
}

/// A service that answers `/n` with the n-th of these.
fn answers(table: Vec<(Vec<u8>, Then)>) -> Origin {
    Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            let Some((bytes, then)) = request.target()[1..].parse().ok().and_then(|n: usize| table.get(n))
            else {
                visit.send(ok(&request));
                continue;
            };
            visit.send(bytes);
            match then {
                Then::Keep => {}
                Then::Close => return,
                Then::Reset => return visit.reset(),
            }
        }
    })
}

fn get(n: usize) -> String {
    format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Every response is answered with 502 and one of these causes, and its connection is not used again.
fn all_bad(responses: &[&[u8]], then: Then, causes: &[&str]) -> Seen {
    let rig = Rig::before(answers(responses.iter().map(|r| (r.to_vec(), then)).collect()));
    for (n, response) in responses.iter().enumerate() {
        let mut client = rig.client();
        client.send(get(n));
        let answer = client.response();
        let label = answer.one("x-ringmesh-failure").unwrap_or_default();
        assert_eq!(answer.status(), 502, "{}: {answer:?}", response.escape_ascii());
        assert!(
            causes.iter().any(|cause| label.ends_with(&format!(".upstream.{cause}"))),
            "{}: {label}",
            response.escape_ascii()
        );
        // The caller's own connection is in order, and serves on.
        client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "/next");
    }
    let done = rig.done();
    assert_eq!(done.requests.len(), 2 * responses.len());
    assert!(done.connections > responses.len(), "a connection that had talked nonsense was used again");
    done.seen
}

#[test]
fn h68_length_and_encoding_together_are_a_bad_response() {
    all_bad(
        &[
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ],
        Then::Keep,
        &["content_length_and_transfer_encoding"],
    );
}

#[test]
fn h69_several_or_invalid_lengths_are_a_bad_response() {
    let responses: Vec<Vec<u8>> = [
        "5\r\nContent-Length: 6",
        "5\r\nContent-Length: 5",
        "5, 5",
        "5, 6",
        "+5",
        "-5",
        "0x5",
        "",
        "5;",
        "5 5",
        "five",
        "18446744073709551616",
        "5,",
    ]
    .iter()
    .map(|v| format!("HTTP/1.1 200 OK\r\nContent-Length: {v}\r\n\r\nhello").into_bytes())
    .collect();
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    all_bad(&responses, Then::Keep, &["content_length_repeated", "bad_content_length"]);
}

#[test]
fn h70_a_body_that_is_cut_never_looks_whole() {
    let gate = Arc::new(Gate::default());
    for then in [Then::Close, Then::Reset] {
        for (head, body) in [
            ("Content-Length: 11", "hello"),
            ("Content-Length: 200000", "hello"),
            ("Transfer-Encoding: chunked", "b\r\nhello"),
            ("Transfer-Encoding: chunked", "5\r\nhello"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n"),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n"),
        ] {
            for version in ["1.1", "1.0"] {
                let theirs = Arc::clone(&gate);
                let rig = Rig::before(Origin::scripted(move |visit| {
                    visit.request().unwrap();
                    visit.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
                    theirs.pass();
                    if then == Then::Reset {
                        visit.reset();
                    }
                }));
                let mut client = rig.client();
                client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"));
                // The head is on its way before the cut, or a reset might overtake it.
                client.wait_bytes(15);
                gate.open();
                match client.cut() {
                    Cut::Truncated(Some(response), end) => {
                        assert_eq!(response.status(), 200);
                        assert!("hello".starts_with(&response.text()), "{head} {body:?}: {response:?}");
                        if response.framing == Framing::UntilClose {
                            assert_eq!(end, End::Reset, "{head} {body:?}: only that tells");
                        }
                    }
                    // A reset may destroy what was not read yet.
                    Cut::Nothing(End::Reset) | Cut::Truncated(None, End::Reset) if version == "1.0" => {}
                    other => panic!("{head} {body:?} {version}: {other:?}"),
                }
                drop(client);
                let seen = rig.done().seen;
                assert_eq!(seen.of_cause("closed_early") + seen.of_cause("reset"), 1, "{:?}", seen.failures);
            }
        }
    }
}

#[test]
fn h70_a_bad_chunk_that_comes_with_the_head_is_answered_with_502() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bodies = [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        "\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
    ];
    let responses: Vec<_> = bodies.iter().map(|b| format!("{CHUNKED}{b}").into_bytes()).collect();
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    all_bad(&responses, Then::Keep, &["bad_chunk"]);
}

#[test]
fn h70_a_bad_chunk_that_comes_later_cuts_the_response() {
    for bad in ["x\r\n", "5\r\nhelloX", "0\r\nno colon\r\n\r\n", "-1\r\n", "5\n"] {
        for version in ["1.1", "1.0"] {
            let gate = Arc::new(Gate::default());
            let theirs = Arc::clone(&gate);
            let rig = Rig::before(Origin::scripted(move |visit| {
                visit.request().unwrap();
                visit.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
                theirs.pass();
                visit.send(bad);
                visit.drain();
            }));
            let mut client = rig.client();
            client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"));
            client.wait_bytes(15);
            gate.open();
            match client.cut() {
                Cut::Truncated(Some(response), end) => {
                    assert!(response.framing == Framing::Chunked || end == End::Reset, "{bad:?} {version}");
                }
                Cut::Nothing(End::Reset) | Cut::Truncated(None, End::Reset) if version == "1.0" => {}
                other => panic!("{bad:?} {version}: {other:?}"),
            }
            drop(client);
            assert_eq!(rig.done().seen.of_cause("bad_chunk"), 1);
        }
    }
}

#[test]
fn h71_a_body_that_ends_with_the_connection_is_framed_anew() {
    let long = "x".repeat(300_000);
    let table = [
        (format!("HTTP/1.1 200 OK\r\n\r\n{long}"), long),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello".to_owned(), "hello".to_owned()),
        ("HTTP/1.0 200 OK\r\n\r\nhello".to_owned(), "hello".to_owned()),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), String::new()),
    ];
    let rig =
        Rig::before(answers(table.iter().map(|(r, _)| (r.clone().into_bytes(), Then::Close)).collect()));
    let mut client = rig.client();
    for (n, (_, want)) in table.iter().enumerate() {
        // To a 1.1 caller as chunked, on a connection that lives on.
        client.send(get(n));
        let response = client.response();
        assert_eq!((response.framing, response.text() == *want), (Framing::Chunked, true), "{n}");
        // To a 1.0 caller until the connection ends, which it does well.
        let mut old = rig.client();
        old.send(format!("GET /{n} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
        let response = old.response();
        assert_eq!((response.framing, response.text() == *want), (Framing::UntilClose, true), "{n}");
        assert_eq!(response.one("connection").unwrap(), "close");
        assert_eq!(old.end(), End::Fin);
    }
    drop(client);
    assert!(rig.done().seen.failures.is_empty());
}

#[test]
fn h72_an_http10_caller_gets_a_chunked_body_without_chunks() {
    let rig = Rig::before(Origin::scripted(|visit| {
        visit.request().unwrap();
        visit.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n");
        visit.send("6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n");
        visit.drain();
    }));
    let mut client = rig.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.framing, response.text()), (Framing::UntilClose, "hello world".into()));
    assert!(!response.has("transfer-encoding") && !response.has("x-sum"));
    assert_eq!((response.one("connection").unwrap(), client.end()), ("close".into(), End::Fin));
}

#[test]
fn h73_the_length_of_a_response_to_head_is_kept_and_a_body_is_dropped() {
    let table = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some("5"), true),
        ("HTTP/1.1 200 OK\r\n\r\n", None, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None, true),
        (
            "HTTP/1.1 404 No\r\nContent-Length: 18446744073709551615\r\n\r\n",
            Some("18446744073709551615"),
            true,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some("5"), false),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 39\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Some("39"),
            false,
        ),
    ];
    for (response, length, reused) in table {
        let rig = Rig::before(answers(vec![(response.into(), Then::Keep)]));
        let mut client = rig.client();
        client.send("HEAD /0 HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.response_to_head();
        assert_eq!(answer.one("content-length").as_deref(), length, "{response:?}");
        client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "/next");
        drop(client);
        assert_eq!(rig.done().connections, if reused { 1 } else { 2 }, "{response:?}");
    }
}

#[test]
fn h74_204_and_304_have_no_body_whatever_the_service_says() {
    let table = [
        ("HTTP/1.1 204 No Content\r\n\r\n", None, true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None, true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", None, false),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", None, false),
        ("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", None, false),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n", Some("5"), true),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", None, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", Some("5"), false),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None, false),
    ];
    for (response, length, reused) in table {
        let rig = Rig::before(answers(vec![(response.into(), Then::Keep)]));
        let mut client = rig.client();
        client.send(get(0));
        let answer = client.response();
        assert_eq!(
            (answer.framing, answer.one("content-length").as_deref()),
            (Framing::None, length),
            "{response:?}"
        );
        assert!(!answer.has("transfer-encoding"));
        client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "/next", "{response:?}");
        drop(client);
        assert_eq!(rig.done().connections, if reused { 1 } else { 2 }, "{response:?}");
    }
}

#[test]
fn h75_what_follows_a_whole_response_never_answers_another_request() {
    const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let long = "x".repeat(100_000);
    for response in [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{POISON}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{POISON}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{POISON}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n{POISON}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{long}{POISON}"),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokx".to_owned(),
    ] {
        let rig = Rig::before(answers(vec![(response.clone().into_bytes(), Then::Keep)]));
        let mut client = rig.client();
        client.send(format!("{}GET /next HTTP/1.1\r\nHost: a\r\n\r\n", get(0)));
        assert!(!client.response().text().contains("evil"));
        assert_eq!(client.response().text(), "/next");
        client.send("GET /last HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "/last");
        drop(client);
        assert_eq!(rig.done().connections, 2, "{response:?}");
    }
}

#[test]
fn h75_what_comes_while_a_connection_is_idle_never_answers_a_request() {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let sent = Arc::new(Gate::default());
    let told = Arc::clone(&sent);
    let rig = Rig::before(Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            visit.send(ok(&request));
            if visit.number == 0 {
                theirs.pass();
                visit.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
                told.open();
            }
        }
    }));
    let mut client = rig.client();
    client.send(get(1));
    assert_eq!(client.response().text(), "/1");
    gate.open();
    sent.pass();
    client.send(get(2));
    assert_eq!(client.response().text(), "/2");
    drop(client);
    let done = rig.done();
    assert_eq!((done.connections, done.seen.totals.upstream_found_dead), (2, 1));
}

#[test]
fn h76_h77_bad_fields_are_a_bad_response() {
    let lines: Vec<&[u8]> = vec![
        b"Content-Length : 5",
        b"X : y",
        b"X\t: y",
        b"X: a\r\n b",
        b"X:\r\n\tb",
        b"X: a\rb",
        b"X: a\0b",
        b"X: a\x01b",
        b"X: a\x7f",
        b"A B: c",
        b": c",
        b"no colon",
        b"X\0: y",
        b"X\xff: y",
        b"X: a\nY: b",
        b" X: y",
        b"Transfer-Encoding:\r\n chunked",
    ];
    let responses: Vec<_> = lines
        .iter()
        .map(|line| [b"HTTP/1.1 200 OK\r\nA: b\r\n", *line, b"\r\nContent-Length: 0\r\n\r\n"].concat())
        .collect();
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    all_bad(&responses, Then::Keep, &["bad_field_name", "obsolete_fold", "bare_cr_or_lf", "bad_field_value"]);
}

#[test]
fn h78_a_status_line_without_reason_is_taken_and_odd_ones_are_bad() {
    let good = [
        ("HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 "),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 "),
        (
            "HTTP/1.1 299 Very Strange; (text)\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 299 Very Strange; (text)",
        ),
        ("HTTP/1.0 599 X\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 599 X"),
    ];
    let rig = Rig::before(answers(good.iter().map(|(r, _)| (r.as_bytes().to_vec(), Then::Keep)).collect()));
    for (n, (response, want)) in good.iter().enumerate() {
        let mut client = rig.client();
        client.send(get(n));
        assert_eq!(client.response().start, *want, "{response:?}");
    }
    rig.done();
    let lines = [
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 000 OK",
        "HTTP/1.1 600 OK",
        "HTTP/1.1 999 OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1 -20 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/3.0 200 OK",
        "HTTP/2 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/1.2 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.10 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1200 OK",
        "HTTP/1.1",
        "200 OK",
        "garbage",
        "<html>",
        "ICY 200 OK",
        "SSH-2.0-OpenSSH",
        "GET / HTTP/1.1",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "\nHTTP/1.1 200 OK",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1 200OK",
    ];
    let responses: Vec<_> =
        lines.iter().map(|l| format!("{l}\r\nContent-Length: 0\r\n\r\n").into_bytes()).collect();
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    all_bad(
        &responses,
        Then::Close,
        &["bad_start_line", "bad_version", "bare_cr_or_lf", "bad_field_name", "closed_early"],
    );
}

#[test]
fn h79_hop_by_hop_fields_of_a_response_are_removed() {
    let rig = Rig::before(answers(vec![(
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nKeep-Alive: timeout=9\r\nX-Hop: 1\r\nProxy-Authenticate: \
          x\r\nProxy-Connection: y\r\nUpgrade: h2c\r\nX-Stays: 1\r\nContent-Length: 0\r\n\r\n"
            .to_vec(),
        Then::Keep,
    )]));
    let mut client = rig.client();
    client.send(get(0));
    let response = client.response();
    let names: Vec<_> = response.fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["x-stays", "date", "content-length"]);
}

#[test]
fn h80_date_is_added_if_missing_and_never_rewritten() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let rig = Rig::before(answers(vec![
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), Then::Keep),
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDate: {date}\r\n\r\n").into_bytes(), Then::Keep),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDate: not a date\r\n\r\n".to_vec(), Then::Keep),
    ]));
    let mut dates = Vec::new();
    for n in 0..3 {
        let mut client = rig.client();
        client.send(get(n));
        dates.push(client.response().one("date").unwrap());
    }
    assert_eq!(dates[1..], [date, "not a date"]);
    let added = httpdate::parse_http_date(&dates[0]).unwrap();
    let age = std::time::SystemTime::now().duration_since(added).unwrap();
    assert!(age.as_secs() < 3600, "{}", dates[0]);
}

#[test]
fn h81_set_cookie_lines_are_neither_joined_nor_moved() {
    let rig = Rig::before(answers(vec![(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Expires=Sun, 06 Nov 1994 08:49:37 GMT\r\nX: 1\r\nset-cookie: b=2\r\nX: \
          2\r\nSet-Cookie: a=3\r\nContent-Length: 0\r\n\r\n"
            .to_vec(),
        Then::Keep,
    )]));
    let mut client = rig.client();
    client.send(get(0));
    let response = client.response();
    assert_eq!(response.all("set-cookie"), ["a=1; Expires=Sun, 06 Nov 1994 08:49:37 GMT", "b=2", "a=3"]);
    assert_eq!(response.all("x"), ["1", "2"]);
}

#[test]
fn h82_trailers_of_a_response_are_forwarded_apart_from_the_fields() {
    let rig = Rig::before(Origin::answering(|request| {
        assert_eq!(request.one("te").as_deref(), Some("trailers"));
        b"HTTP/1.1 200 OK\r\nTrailer: grpc-status\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: \
          0\r\nContent-Length: 9\r\nSet-Cookie: a=b\r\nTransfer-Encoding: x\r\ngrpc-message: fine\r\n\r\n"
            .to_vec()
    }));
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let response = client.response();
    let names: Vec<_> = response.trailers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["grpc-status", "grpc-message"]);
    assert!(!response.has("grpc-status") && response.has("trailer"));
    drop(client);
    assert_eq!(rig.done().connections, 1);
}

#[test]
fn h83_an_encoding_that_is_not_exactly_chunked_is_a_bad_response() {
    let responses: Vec<Vec<u8>> = [
        "chunked, chunked",
        "gzip, chunked",
        "chunked, gzip",
        "identity",
        "gzip",
        "xchunked",
        "chunked;q=1",
        "",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
    ]
    .iter()
    .map(|v| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {v}\r\n\r\n5\r\nhello\r\n0\r\n\r\n").into_bytes())
    .chain([b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()])
    .collect();
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    all_bad(&responses, Then::Keep, &["bad_transfer_encoding", "transfer_encoding_in_http10"]);
}

#[test]
fn h84_a_response_head_without_end_is_a_bad_response() {
    let responses = [
        format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
        format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "a: b\r\n".repeat(5000)).into_bytes(),
        format!("HTTP/1.1 200 {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
    ];
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    all_bad(&responses, Then::Keep, &["head_too_large"]);
    // A large one that is within the limit is passed on.
    let long = "x".repeat(60_000);
    let rig = Rig::before(answers(vec![(
        format!("HTTP/1.1 200 OK\r\nX: {long}\r\nContent-Length: 2\r\n\r\nok").into_bytes(),
        Then::Keep,
    )]));
    let mut client = rig.client();
    client.send(get(0));
    let response = client.response();
    assert_eq!((response.one("x").unwrap() == long, response.text()), (true, "ok".into()));
}

#[test]
fn h84_the_largest_head_that_can_be_configured_is_passed_on_to_its_last_byte() {
    const LARGEST: usize = 128 * 1024;
    let response = |len: usize, more: &str, body: &str| {
        let front = format!("HTTP/1.1 200 OK\r\n{more}\r\nX: ");
        let bytes = format!("{front}{}\r\n\r\n{body}", "x".repeat(len - front.len() - 4)).into_bytes();
        (bytes, Then::Keep)
    };
    let (length, chunked) = ("Content-Length: 5", "Transfer-Encoding: chunked");
    let table = vec![
        response(LARGEST, length, "hello"),
        response(LARGEST, chunked, "5\r\nhello\r\n0\r\n\r\n"),
        // With a buffer that is full of head and body, the end of a chunk finds no room in it.
        response(LARGEST - 100, chunked, &format!("100\r\n{}\r\n0\r\n\r\n", "y".repeat(256))),
        response(LARGEST + 1, length, "hello"),
        response(LARGEST + 1, chunked, "5\r\nhello\r\n0\r\n\r\n"),
    ];
    let rig = Rig::before_with(answers(table), |c| c.limits("head_bytes_max = \"128KiB\""));
    let mut client = rig.client();
    for (n, body) in ["hello".to_owned(), "hello".to_owned(), "y".repeat(256)].into_iter().enumerate() {
        client.send(get(n));
        let response = client.response();
        assert_eq!((response.status(), response.text() == body), (200, true), "{n}");
        assert!(response.one("x").unwrap().len() > LARGEST - 200, "{n}");
    }
    for n in [3, 4] {
        client.send(get(n));
        let response = client.response();
        let label = response.one("x-ringmesh-failure").unwrap();
        assert_eq!((response.status(), label.as_str()), (502, "response.upstream.head_too_large"), "{n}");
    }
}

#[test]
fn h85_a_service_that_closes_without_an_answer_is_reported_and_not_asked_again() {
    for then in [Then::Close, Then::Reset] {
        for part in ["", "HTTP/1.1 200 OK\r\nContent-Le", "H"] {
            let rig = Rig::before(answers(vec![(part.into(), then)]));
            for request in [get(0), "POST /0 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".into()] {
                let mut client = rig.client();
                client.send(request);
                let response = client.response();
                assert_eq!(response.status(), 502);
                let label = response.one("x-ringmesh-failure").unwrap();
                assert!(
                    label.starts_with("response.upstream.closed") || label == "response.upstream.reset",
                    "{label}"
                );
            }
            let done = rig.done();
            assert_eq!((done.requests.len(), done.connections, done.seen.totals.replays), (2, 2, 0));
        }
    }
}

#[test]
fn h86_an_http10_response_is_forwarded_as_http11_and_its_connection_kept_only_if_it_says_so() {
    for (lines, reused) in
        [("X: y", false), ("Connection: keep-alive", true), ("Connection: keep-alive, close", false)]
    {
        let bytes = format!("HTTP/1.0 200 OK\r\n{lines}\r\nContent-Length: 2\r\n\r\nok").into_bytes();
        let rig = Rig::before(answers(vec![(bytes, Then::Keep)]));
        let mut client = rig.client();
        for _ in 0..2 {
            client.send(get(0));
            let response = client.response();
            assert_eq!((response.start.as_str(), response.text()), ("HTTP/1.1 200 OK", "ok".into()));
            assert!(!response.has("connection"));
        }
        drop(client);
        assert_eq!(rig.done().connections, if reused { 1 } else { 2 }, "{lines}");
    }
}
