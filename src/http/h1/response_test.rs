//! Tests of `response`: what is accepted leaves as one canonical head, what is refused says why, whatever the cuts.

use super::super::head_test::{LIMITS, NEXT_LIMITS, assert_canonical};
use super::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

/// A response as it is passed on where nothing is special.
const PLAIN: ResponseOptions =
    ResponseOptions { version: Version::Http11, framing: Framing::None, close: false };

/// Reads a response to a request with that method.
fn read<R>(wire: &[u8], method: Method, then: impl FnOnce(&Response<'_>) -> R) -> Parsed<R> {
    read_response(wire, &LIMITS, method, then)
}

/// What is written for a head that is accepted, the body framed as it came.
fn rewritten(wire: &str, method: Method, options: ResponseOptions) -> String {
    let clock = Clock::new();
    let result = read(wire.as_bytes(), method, |response| {
        let mut out = Vec::new();
        write_response_head(
            response,
            ResponseOptions { framing: response.framing, ..options },
            &clock,
            &mut out,
        );
        String::from_utf8(out).unwrap()
    });
    match result {
        Parsed::Whole(out) => out,
        other => panic!("{wire:?}: {other:?}"),
    }
}

fn refusal(wire: &[u8]) -> Option<Cause> {
    match read(wire, Method::Idempotent, |_| ()) {
        Parsed::Refused(cause) => Some(cause),
        Parsed::Partial | Parsed::Whole(()) => None,
    }
}

#[test]
fn a_head_leaves_in_canonical_form() {
    for (wire, want) in [
        (
            "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 005\r\nB:  1\t\r\nA: 2\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nDate: now\r\nB: 1\r\nA: 2\r\ncontent-length: 5\r\n\r\n",
        ),
        // Whatever the reason phrase is, and whether it is there.
        (
            "HTTP/1.1 200\r\nDate: d\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\nDate: d\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 \r\nDate: d\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\nDate: d\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "HTTP/1.1 599 Not (at all): 1\r\nDate: d\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 599 Not (at all): 1\r\nDate: d\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 \u{fc}\r\nDate: d\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\nDate: d\r\ncontent-length: 0\r\n\r\n",
        ),
        // Our version goes to the caller, whatever came.
        (
            "HTTP/1.0 404 No\r\nDate: d\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 404 No\r\nDate: d\r\ncontent-length: 3\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nDate: d\r\n\r\n",
            "HTTP/1.1 200 OK\r\nDate: d\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        // Lines of the same name stay apart and in order; nothing end-to-end is touched.
        (
            "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: 1\r\nSet-Cookie: b=2\r\nAllow: \r\nWWW-Authenticate: x\r\nDate: d\r\n\r\n",
            "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: 1\r\nSet-Cookie: b=2\r\nAllow: \r\nWWW-Authenticate: x\r\nDate: d\r\n\r\n",
        ),
        // Of the last hop, and named by it.
        (
            "HTTP/1.1 200 OK\r\nConnection: x-hop, set-cookie, content-length\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: x\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nTE: x\r\nSet-Cookie: a\r\nDate: d\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nDate: d\r\ncontent-length: 1\r\n\r\n",
        ),
        // Which hop failed stays known.
        (
            "HTTP/1.1 503 No\r\nx-ringmesh-failure: connect.upstream.refused\r\nDate: d\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 503 No\r\nx-ringmesh-failure: connect.upstream.refused\r\nDate: d\r\ncontent-length: 0\r\n\r\n",
        ),
        // Interim ones get nothing added.
        ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        ("HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"),
    ] {
        assert_eq!(rewritten(wire, Method::Idempotent, PLAIN), want, "{wire:?}");
    }
}

const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn read_handshake(lines: &str) -> Parsed<String> {
    let wire = format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n");
    let accept = ACCEPT.as_bytes().try_into().unwrap();
    read_handshake_response(wire.as_bytes(), &LIMITS, accept, |response| {
        let mut out = Vec::new();
        write_response_head(response, PLAIN, &Clock::new(), &mut out);
        String::from_utf8(out).unwrap()
    })
}

#[test]
fn the_answer_to_a_handshake_leaves_with_one_connection_field() {
    let lines = format!(
        "Connection: X, Upgrade\r\nX: y\r\nUpgrade: WebSocket\r\nContent-Length: 0\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\
         Sec-WebSocket-Protocol: chat\r\n"
    );
    let Parsed::Whole(out) = read_handshake(&lines) else { panic!("{lines}") };
    assert_eq!(
        out,
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: chat\r\n\
             connection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
    );
}

#[test]
fn an_answer_that_is_none_to_the_handshake_is_refused() {
    let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
    for lines in [
        String::new(),
        accept.clone(),
        format!("Connection: upgrade\r\n{accept}"),
        format!("Upgrade: websocket\r\n{accept}"),
        format!("Connection: upgrade\r\nUpgrade: h2c\r\n{accept}"),
        format!("Connection: upgrade\r\nUpgrade: websocket, h2c\r\n{accept}"),
        format!("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n{accept}"),
        "Connection: upgrade\r\nUpgrade: websocket\r\n".to_owned(),
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOO=\r\n"
            .to_owned(),
        format!("Connection: upgrade\r\nUpgrade: websocket\r\n{accept}{accept}"),
    ] {
        let read = read_handshake(&lines);
        assert!(matches!(read, Parsed::Refused(Cause::UnexpectedUpgrade)), "{lines:?}: {read:?}");
    }
}

#[test]
fn a_missing_date_is_added() {
    let out = rewritten("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", Method::Idempotent, PLAIN);
    let date = out.strip_prefix("HTTP/1.1 200 OK\r\ndate: ").unwrap();
    let date = date.strip_suffix("\r\ncontent-length: 1\r\n\r\n").unwrap();
    assert!(
        date.len() == 29 && date.ends_with(" GMT") && httpdate::parse_http_date(date).is_ok(),
        "{date:?}"
    );
}

#[test]
fn the_connection_field_is_ours() {
    let wire = "HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (version, close, want) in [
        (Version::Http11, false, ""),
        (Version::Http11, true, "connection: close\r\n"),
        (Version::Http10, false, "connection: keep-alive\r\n"),
        (Version::Http10, true, "connection: close\r\n"),
    ] {
        let out = rewritten(wire, Method::Idempotent, ResponseOptions { version, close, ..PLAIN });
        assert_eq!(
            out,
            format!("HTTP/1.1 200 OK\r\nDate: d\r\ncontent-length: 0\r\n{want}\r\n"),
            "{version:?} {close}"
        );
    }
}

#[test]
fn the_end_of_a_body_depends_on_status_and_method() {
    use Framing::{Chunked, Length, UntilClose};
    const LENGTH: &str = "Content-Length: 5\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    // Status, method, fields; the framing, and the framing field that is written.
    for (status, method, fields, framing, written) in [
        (200, Method::Idempotent, "", UntilClose, ""),
        (200, Method::Idempotent, LENGTH, Length(5), "content-length: 5\r\n"),
        (200, Method::Other, CHUNKED, Chunked, "transfer-encoding: chunked\r\n"),
        // What a GET would have been answered with stays.
        (200, Method::Head, LENGTH, Framing::None, "content-length: 5\r\n"),
        (200, Method::Head, CHUNKED, Framing::None, ""),
        (200, Method::Head, "", Framing::None, ""),
        (304, Method::Idempotent, LENGTH, Framing::None, "content-length: 5\r\n"),
        (304, Method::Idempotent, CHUNKED, Framing::None, ""),
        (204, Method::Idempotent, LENGTH, Framing::None, ""),
        (204, Method::Idempotent, CHUNKED, Framing::None, ""),
        (205, Method::Idempotent, LENGTH, Length(5), "content-length: 5\r\n"),
        (103, Method::Idempotent, LENGTH, Framing::None, ""),
    ] {
        let wire = format!("HTTP/1.1 {status} x\r\nDate: d\r\n{fields}\r\n");
        let Parsed::Whole(got) = read(wire.as_bytes(), method, |r| r.framing) else { panic!("{wire:?}") };
        assert_eq!(got, framing, "{status} {method:?} {fields:?}");
        let out = rewritten(&wire, method, PLAIN);
        assert_eq!(out, format!("HTTP/1.1 {status} x\r\nDate: d\r\n{written}\r\n"), "{method:?} {fields:?}");
    }
    // The caller may need another framing than the one that came.
    let clock = Clock::new();
    for (framing, want) in [(Chunked, "transfer-encoding: chunked\r\n"), (UntilClose, "")] {
        let mut out = Vec::new();
        read(b"HTTP/1.1 200 x\r\nDate: d\r\n\r\n", Method::Other, |r| {
            write_response_head(r, ResponseOptions { framing, ..PLAIN }, &clock, &mut out);
        });
        assert_eq!(String::from_utf8(out).unwrap(), format!("HTTP/1.1 200 x\r\nDate: d\r\n{want}\r\n"));
    }
}

#[test]
fn the_connection_lives_as_version_fields_and_framing_say() {
    for (wire, alive, idle) in [
        ("HTTP/1.1 200 x\r\nContent-Length: 0\r\n", true, None),
        ("HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n", true, None),
        ("HTTP/1.1 200 x\r\nContent-Length: 0\r\nConnection: x, close\r\n", false, None),
        ("HTTP/1.1 200 x\r\n", false, None),
        ("HTTP/1.1 204 x\r\n", true, None),
        ("HTTP/1.0 200 x\r\nContent-Length: 0\r\n", false, None),
        ("HTTP/1.0 200 x\r\nContent-Length: 0\r\nConnection: keep-alive\r\n", true, None),
        ("HTTP/1.0 200 x\r\nConnection: keep-alive\r\n", false, None),
        ("HTTP/1.1 204 x\r\nKeep-Alive: max=3, Timeout = 5\r\n", true, Some(5)),
        ("HTTP/1.1 204 x\r\nKeep-Alive: timeout=x, timeout=7\r\n", true, Some(7)),
        ("HTTP/1.1 204 x\r\nKeep-Alive: timeout\r\n", true, None),
    ] {
        let head = format!("{wire}\r\n");
        let Parsed::Whole(got) =
            read(head.as_bytes(), Method::Idempotent, |r| (r.keep_alive, r.idle_seconds))
        else {
            panic!("{wire:?}")
        };
        assert_eq!(got, (alive, idle), "{wire:?}");
    }
}

/// Bytes, and why they are refused: every cause that a response head can have.
const REFUSED: &[(&str, Cause)] = &[
    // What is left of another response.
    ("\r\nHTTP/1.1 200 OK\r\n\r\n", Cause::BadStartLine),
    ("\n", Cause::BadStartLine),
    ("xHTTP/1.1 200 OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 20 OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 2000 OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 099 OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 600 OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 abc OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1  200 OK\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 200 O\0K\r\n\r\n", Cause::BadStartLine),
    ("HTTP/1.1 200 OK\rX: 1\r\n\r\n", Cause::BadStartLine),
    ("HTTP/3.0 200 OK\r\n\r\n", Cause::BadVersion),
    ("HTTP/1.1\t200 OK\r\n\r\n", Cause::BadVersion),
    ("Hello", Cause::BadVersion),
    ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Cause::BadFieldName),
    ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Cause::BadFieldName),
    ("HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", Cause::BadFieldValue),
    ("HTTP/1.1 200 OK\r\nConnection: a b\r\n\r\n", Cause::BadFieldValue),
    ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Cause::ObsoleteFold),
    ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", Cause::BareCrOrLf),
    ("HTTP/1.1 200 OK\nA: b\r\n\r\n", Cause::BareCrOrLf),
    ("HTTP/1.1 200 OK\r\nA: b\r\n\n", Cause::BareCrOrLf),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Cause::LengthAndEncoding),
    ("HTTP/1.1 204 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Cause::LengthAndEncoding),
    ("HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n", Cause::BadLength),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Cause::LengthRepeated),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", Cause::BadEncoding),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Cause::BadEncoding),
    ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Cause::EncodingInOld),
    (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        Cause::UnexpectedUpgrade,
    ),
];

#[test]
fn what_is_refused_says_why_however_much_of_it_is_there() {
    for (wire, cause) in REFUSED {
        let wire = wire.as_bytes();
        assert_eq!(refusal(wire), Some(*cause), "{}", wire.escape_ascii());
        for cut in 0..wire.len() {
            match read(&wire[..cut], Method::Idempotent, |_| ()) {
                Parsed::Partial => {}
                Parsed::Refused(early) => assert_eq!(early, *cause, "{}", wire[..cut].escape_ascii()),
                Parsed::Whole(()) => panic!("{} is whole", wire[..cut].escape_ascii()),
            }
        }
    }
}

#[test]
fn limits_hold_also_while_the_head_is_not_whole() {
    let head = |n: usize| {
        let mut head = b"HTTP/1.1 200 OK\r\nA: ".to_vec();
        head.resize(n - 4, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        head
    };
    assert_eq!(refusal(&head(4096)), None);
    assert_eq!(refusal(&head(4097)), Some(Cause::HeadTooLarge));
    assert_eq!(refusal(&head(5000)[..4096]), Some(Cause::HeadTooLarge));
    assert_eq!(refusal(&head(5000)[..4095]), None);
    let fields = |n: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(n)).into_bytes();
    assert_eq!(refusal(&fields(64)), None);
    assert_eq!(refusal(&fields(65)), Some(Cause::HeadTooLarge));
    let cut = fields(65).len() - 2;
    assert_eq!(refusal(&fields(65)[..cut]), Some(Cause::HeadTooLarge), "before the end is there");
}

#[test]
fn a_head_in_two_pieces_is_read_as_in_one() {
    let wire =
        "HTTP/1.1 200 OK\r\nA: 1\r\nConnection: x-hop\r\nX-Hop: 2\r\nContent-Length: 3\r\nDate: d\r\n\r\n";
    for cut in 0..wire.len() {
        let piece = &wire.as_bytes()[..cut];
        assert!(
            matches!(read(piece, Method::Idempotent, |_| ()), Parsed::Partial),
            "{}",
            piece.escape_ascii()
        );
    }
    let with_more = format!("{wire}HTTP/1.1 500 x\r\n");
    let Parsed::Whole(len) = read(with_more.as_bytes(), Method::Idempotent, |r| r.head_len) else { panic!() };
    assert_eq!(len, wire.len());
    assert_eq!(rewritten(&with_more, Method::Idempotent, PLAIN), rewritten(wire, Method::Idempotent, PLAIN));
}

/// A head that is nearly right, made of pieces that matter.
fn near_heads() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("HTTP/1.1 200 OK"),
        Just("HTTP/1.1 204"),
        Just("HTTP/1.1 304 Not Modified"),
        Just("HTTP/1.0 200 "),
        Just("HTTP/1.1 103 Early Hints"),
        Just("HTTP/1.1 500 \u{fc}"),
    ];
    let name = prop_oneof![
        3 => prop_oneof![
            Just("Content-Length"), Just("Transfer-Encoding"), Just("Connection"), Just("Date"), Just("Keep-Alive"),
            Just("Upgrade"), Just("Via"), Just("Trailer"), Just("Set-Cookie"),
        ].prop_map(str::to_owned),
        1 => "[!-~]{0,12}",
    ];
    let value = prop_oneof![
        3 => prop_oneof![
            Just("a"), Just("5"), Just("chunked"), Just("close"), Just("timeout=5"), Just("set-cookie, a"), Just(""),
        ].prop_map(|v| v.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ];
    let end = prop_oneof![20 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\n ")];
    let field = (name, prop_oneof![10 => Just(": "), 1 => Just(":"), 1 => Just(" : ")], value, end);
    (line, proptest::collection::vec(field, 0..6)).prop_map(|(line, fields)| {
        let mut head = format!("{line}\r\n").into_bytes();
        for (name, colon, value, end) in fields {
            for part in [name.as_bytes(), colon.as_bytes(), &value, end.as_bytes()] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(b"\r\n");
        head
    })
}

/// What must survive a hop.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    framing: Framing,
    others: Vec<(String, Vec<u8>)>,
}

fn seen(response: &Response<'_>) -> Seen {
    let others = response
        .parts
        .iter()
        .filter(|part| known(part.name) == Known::Other && !response.connection.nominates(part.name));
    Seen {
        status: response.status,
        framing: response.framing,
        others: others.map(|part| (part.name.to_owned(), part.value.to_vec())).collect(),
    }
}

/// What is accepted is written in a form in which it is accepted again as the same, and which leaves no room for doubt.
fn check_round_trip(wire: &[u8], method: Method) -> bool {
    let clock = Clock::new();
    let first = read(wire, method, |response| {
        let mut out = Vec::new();
        write_response_head(
            response,
            ResponseOptions { framing: response.framing, ..PLAIN },
            &clock,
            &mut out,
        );
        (seen(response), out)
    });
    let Parsed::Whole((first, out)) = first else { return false };
    let Parsed::Whole(again) = read_response(&out, &NEXT_LIMITS, method, |r| (seen(r), r.head_len)) else {
        panic!("{} became {}", wire.escape_ascii(), out.escape_ascii());
    };
    assert_eq!((first, out.len()), again, "{} became {}", wire.escape_ascii(), out.escape_ascii());
    assert_canonical(&out);
    true
}

#[test]
fn near_heads_are_often_accepted() {
    // Else the property below shows nothing.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let accepted = (0..300)
        .filter(|_| check_round_trip(&near_heads().new_tree(&mut runner).unwrap().current(), Method::Other))
        .count();
    assert!(accepted > 30, "{accepted} of 300");
}

proptest! {
    #[test]
    fn what_is_accepted_is_accepted_as_the_same_by_the_next_hop(wire in near_heads(), head in any::<bool>()) {
        check_round_trip(&wire, if head { Method::Head } else { Method::Idempotent });
    }

    #[test]
    fn no_bytes_make_it_panic(wire in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_round_trip(&wire, Method::Idempotent);
        let behind = [b"HTTP/1.1 200 OK\r\n", wire.as_slice()].concat();
        check_round_trip(&behind, Method::Idempotent);
    }
}
