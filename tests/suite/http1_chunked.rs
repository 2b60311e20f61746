//! The chunked coding, rows h15 to h21: read strictly, written anew, never copied.

use crate::support::End;
use crate::support::rig::{Rig, SMUGGLED, assert_refusal};
use crate::support::wire::Framing;

const HEAD: &str = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn h15_sizes_in_any_case_and_with_leading_zeros_are_taken() {
    let rig = Rig::plain();
    for (body, want) in [
        ("0\r\n\r\n", ""),
        ("000\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("00005\r\nhello\r\n00\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\na\r\nabcdefghij\r\n0\r\n\r\n", "0123456789abcdefghij"),
        ("0000000000000001\r\nx\r\n0000000000000000\r\n\r\n", "x"),
        ("1\r\n\r\r\n1\r\n\n\r\n4\r\n0\r\n\r\r\n0\r\n\r\n", "\r\n0\r\n\r"),
    ] {
        for pieces in [usize::MAX, 1, 3] {
            let seen = rig.forwarded_in_pieces(format!("{HEAD}{body}"), pieces);
            assert_eq!((seen.framing, seen.text()), (Framing::Chunked, want.to_owned()), "{body:?}");
        }
    }
    rig.done();
}

#[test]
fn h16_extensions_are_ignored_and_not_forwarded() {
    let rig = Rig::plain();
    for body in [
        "5;a\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0;last\r\n\r\n",
        "5;a=\"x;y\"\r\nhello\r\n0\r\n\r\n",
        "5;a=\"x\\\"y\";b=c;\r\nhello\r\n0;x=\"0\"\r\n\r\n",
        "5;\r\nhello\r\n0;\r\n\r\n",
        "5; a = b\r\nhello\r\n0\r\n\r\n",
    ] {
        // That the service's parser takes the bytes says that there is nothing but sizes.
        assert_eq!(rig.forwarded(format!("{HEAD}{body}")).text(), "hello", "{body:?}");
    }
    rig.done();
}

const BAD: &[&str] = &[
    // h17: sizes
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-1\r\nhello\r\n0\r\n\r\n",
    "5_\r\nhello\r\n0\r\n\r\n",
    "5_0\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "\t5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5\t\r\nhello\r\n0\r\n\r\n",
    "5,\r\nhello\r\n0\r\n\r\n",
    "5.\r\nhello\r\n0\r\n\r\n",
    "\"5\"\r\nhello\r\n0\r\n\r\n",
    "٥\r\nhello\r\n0\r\n\r\n",
    ";a\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    "00000000000000005\r\nhello\r\n0\r\n\r\n",
    // h17: data and size disagree
    "5\r\nhelloX\r\n0\r\n\r\n",
    "4\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    // h18: line ends and odd octets
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5\r\rhello\r\n0\r\n\r\n",
    "5\0\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;a\0b\r\nhello\r\n0\r\n\r\n",
    "5;a\x7f\r\nhello\r\n0\r\n\r\n",
    "5 ;a\r\nhello\r\n0\r\n\r\n",
    "5;\n\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\r0\r\n\r\n",
    "5\r\nhello\r\r\n0\r\n\r\n",
    "5\r\nhello\r\n\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\n\r\n",
    "5\r\nhello\r\n0\n\n",
    "5\r\nhello\r\n0\r\n\rX",
    "5\r\nhello\r\n0\r\nX: y\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\rZ: z\r\n\r\n",
    "5\r\nhello\r\n0\r\nX\0: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
    "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
    "5\r\nhello\r\n0\r\n: y\r\n\r\n",
];

#[test]
fn h17_h18_a_bad_chunk_is_refused_and_nothing_is_forwarded_as_whole() {
    let rig = Rig::plain();
    for body in BAD {
        rig.refused(format!("{HEAD}{body}"), 400, "bad_chunk");
    }
    assert_eq!(rig.done_unseen().of_cause("bad_chunk"), BAD.len() as u64);
}

#[test]
fn h17_h18_a_bad_chunk_behind_a_head_that_is_on_its_way_ends_the_request() {
    let rig = Rig::plain();
    for (n, body) in BAD.iter().enumerate() {
        let mut client = rig.client();
        client.send(HEAD);
        rig.origin.wait_connections(n + 1);
        let bytes = format!("{body}{SMUGGLED}");
        client.send_in_pieces(bytes.as_bytes(), 7);
        assert_refusal(&mut client, bytes.as_bytes(), &[(400, "bad_chunk")]);
        rig.origin.wait_end(n);
    }
    rig.done_unseen();
}

#[test]
fn h19_extensions_and_trailers_are_bounded() {
    let rig = Rig::plain();
    let extension = "x".repeat(64 * 1024);
    let trailers = "X-Trailer: 0123456789012345678901234567890123456789012345678\r\n".repeat(2048);
    let many = format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(1000);
    let fields = "a: b\r\n".repeat(5000);
    for body in [
        format!("5;{extension}\r\nhello\r\n0\r\n\r\n"),
        format!("5\r\nhello\r\n0;{extension}\r\n\r\n"),
        format!("{many}0\r\n\r\n"),
        format!("5\r\nhello\r\n0\r\n{trailers}\r\n"),
        format!("5\r\nhello\r\n0\r\n{fields}\r\n"),
        format!("5\r\nhello\r\n0\r\nX: {extension}\r\n\r\n"),
    ] {
        rig.refused(format!("{HEAD}{body}"), 431, "head_too_large");
    }
    assert_eq!(rig.done_unseen().of_cause("head_too_large"), 6);
}

#[test]
fn h20_trailers_stay_trailers_and_those_that_frame_route_or_authorise_are_dropped() {
    let rig = Rig::plain();
    let trailers = "X-Sum: 7\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\nHost: evil\r\nAuthorization: x\r\nCookie: \
                    c=1\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\nTrailer: x\r\nTE: trailers\r\nVia: 1.1 x\r\n\
                    Expect: 100-continue\r\nMax-Forwards: 1\r\nCache-Control: no-store\r\ngrpc-status: 0\r\nx-sum: 8\r\n";
    for pieces in [usize::MAX, 1] {
        let mut client = rig.client();
        client.send_in_pieces(format!("{HEAD}5\r\nhello\r\n0\r\n{trailers}\r\n").as_bytes(), pieces);
        assert_eq!(client.response().status(), 200);
    }
    for seen in rig.done().requests {
        let names: Vec<_> = seen.trailers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-sum", "grpc-status", "x-sum"]);
        assert_eq!(seen.trailer("x-sum"), ["7", "8"]);
        for name in ["x-sum", "grpc-status", "authorization", "cookie"] {
            assert!(!seen.has(name), "{name} was merged into the header section");
        }
        assert_eq!(seen.one("host").unwrap(), "a");
    }
}

#[test]
fn h21_what_follows_the_last_chunk_is_the_next_request_and_nothing_else() {
    let rig = Rig::plain();
    let mut client = rig.client();
    client.send(format!("{HEAD}5\r\nhello\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n"));
    assert_eq!((client.response().text(), client.response().text()), ("/a".into(), "/b".into()));
    // Also cut in the middle of the end.
    client.send(format!("{HEAD}5\r\nhello\r\n0\r\n\r")).send("\nGET /c HTTP/1.1\r\nHost: c\r\n\r\n");
    assert_eq!((client.response().text(), client.response().text()), ("/a".into(), "/c".into()));
    // No request at all.
    client.send(format!("{HEAD}0\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
    assert_eq!(client.response().text(), "/a");
    let refusal = client.response();
    assert_eq!((refusal.status(), client.end()), (400, End::Fin));
    let targets: Vec<_> = rig.done().requests.iter().map(|r| r.target().to_owned()).collect();
    assert_eq!(targets.len(), 5);
}
