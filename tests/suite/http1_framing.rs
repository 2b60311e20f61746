//! Framing of requests, rows h01 to h14: where two readers could see different messages, nothing is forwarded.

use crate::support::End;
use crate::support::client::Cut;
use crate::support::origin::Origin;
use crate::support::rig::Rig;
use crate::support::wire::Framing;

/// A POST with these lines behind Host, and a body.
fn post(lines: &str, body: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}")
}

#[test]
fn h01_content_length_and_transfer_encoding_is_refused() {
    let rig = Rig::plain();
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "transfer-encoding: CHUNKED\r\nX: y\r\ncontent-length: 10",
    ] {
        rig.refused(post(lines, "0\r\n\r\n"), 400, "content_length_and_transfer_encoding");
    }
    let seen = rig.done_unseen();
    assert_eq!(seen.of_cause("content_length_and_transfer_encoding"), 4);
}

#[test]
fn h02_h03_several_lengths_are_refused_whether_equal_or_not() {
    let rig = Rig::plain();
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 6\r\nX: y\r\nContent-Length: 5",
        "Content-Length: 5, 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 05",
        "Content-Length: 5, 5",
        "Content-Length: 5,5",
    ] {
        rig.refused(post(lines, "hello"), 400, "content_length_repeated");
    }
    assert_eq!(rig.done_unseen().of_cause("content_length_repeated"), 7);
}

#[test]
fn h04_a_length_that_is_not_digits_or_not_a_u64_is_refused() {
    let rig = Rig::plain();
    for value in [
        "+5",
        "-5",
        "-0",
        "0x5",
        "\"5\"",
        "5_0",
        "5;",
        "5e0",
        "5.0",
        "",
        " ",
        ",",
        "5,",
        ",5",
        "5 5",
        "5\u{a0}",
        "٥",
        "５",
        "five",
        "18446744073709551616",
        "99999999999999999999",
        "000000000000000000000000005",
        "340282366920938463463374607431768211461",
    ] {
        rig.refused_as(
            post(&format!("Content-Length: {value}"), "hello"),
            &[(400, "bad_content_length"), (400, "content_length_repeated")],
        );
    }
    rig.done_unseen();
}

#[test]
fn h04_the_largest_lengths_do_not_wrap() {
    for length in ["18446744073709551615", "9223372036854775808", "4294967296", "4294967301"] {
        let rig = Rig::plain();
        let mut client = rig.client();
        client.send(post(&format!("Content-Length: {length}"), "hello"));
        rig.origin.wait_bytes(b"hello");
        client.finish();
        assert!(matches!(client.cut(), Cut::Nothing(_)), "{length}");
        let recorded = rig.origin.recorded();
        let head = String::from_utf8_lossy(&recorded[0].bytes).into_owned();
        assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
        rig.done_unseen();
    }
}

#[test]
fn h05_leading_zeros_of_a_length_are_not_forwarded() {
    let rig = Rig::plain();
    for (value, want) in [("005", "5"), ("00000000000000000005", "5"), ("\t5 ", "5")] {
        let seen = rig.forwarded(post(&format!("Content-Length: {value}"), "hello"));
        assert_eq!((seen.one("content-length").unwrap(), seen.text()), (want.into(), "hello".into()));
    }
    assert_eq!(rig.forwarded(post("Content-Length: 000", "")).one("content-length").unwrap(), "0");
}

#[test]
fn h06_a_transfer_encoding_that_is_not_exactly_chunked_is_refused() {
    let rig = Rig::plain();
    for value in [
        "chunked, chunked",
        "chunked,chunked",
        "chunked, gzip",
        "gzip, chunked",
        "gzip",
        "identity",
        "xchunked",
        "chunkedx",
        "x-chunked",
        "chunked;q=1",
        "chunked;",
        "\"chunked\"",
        "'chunked'",
        "chunked,",
        ",chunked",
        "chun ked",
        "chunked identity",
        "chunk",
        "",
        "chunked\u{a0}",
    ] {
        let lines = format!("Transfer-Encoding: {value}");
        rig.refused(post(&lines, "0\r\n\r\n"), 400, "bad_transfer_encoding");
    }
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nX: y\r\ntransfer-encoding: gzip",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    ] {
        rig.refused(post(lines, "0\r\n\r\n"), 400, "bad_transfer_encoding");
    }
    for value in
        ["\x0bchunked", "chunked\x0b", "chunked\0", "\0chunked", "chun\0ked", "\x0cchunked", "chunked\x1f"]
    {
        rig.refused(post(&format!("Transfer-Encoding: {value}"), "0\r\n\r\n"), 400, "bad_field_value");
    }
    rig.done_unseen();
}

#[test]
fn h07_the_case_of_chunked_does_not_matter() {
    let rig = Rig::plain();
    for value in ["ChUnKeD", "CHUNKED", "chunked", " chunked\t"] {
        let seen = rig.forwarded(post(&format!("Transfer-Encoding: {value}"), "5\r\nhello\r\n0\r\n\r\n"));
        assert_eq!((seen.framing, seen.text()), (Framing::Chunked, "hello".into()));
        assert_eq!(seen.one("transfer-encoding").unwrap(), "chunked");
    }
}

#[test]
fn h08_white_space_before_a_colon_is_refused() {
    let rig = Rig::plain();
    for lines in [
        "Content-Length : 5",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "X-Y  : v",
        "Connection : close",
        "Authorization\t: x",
    ] {
        rig.refused(post(lines, "0\r\n\r\n"), 400, "bad_field_name");
    }
    rig.refused("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_field_name");
    rig.done_unseen();
}

#[test]
fn h09_transfer_encoding_in_http10_is_refused() {
    let rig = Rig::plain();
    for lines in ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nConnection: keep-alive"] {
        let bytes = format!("POST /a HTTP/1.0\r\nHost: a\r\n{lines}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        rig.refused(bytes, 400, "transfer_encoding_in_http10");
    }
    rig.done_unseen();
}

#[test]
fn h10_a_fold_that_hides_chunked_is_refused() {
    let rig = Rig::plain();
    for lines in [
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \r\n\tchunked",
        "Transfer-Encoding: x\r\n chunked",
        "Transfer-Encoding: chunked\r\n , gzip",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tTransfer-Encoding: chunked",
        "Content-Length: 5\r\n 0",
        "Content-Length:\r\n 5",
        "X: y\r\n  \r\nTransfer-Encoding: chunked",
    ] {
        rig.refused(post(lines, "0\r\n\r\n"), 400, "obsolete_fold");
    }
    rig.done_unseen();
}

#[test]
fn h11_a_bare_line_end_that_hides_chunked_is_refused() {
    let rig = Rig::plain();
    for lines in [
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\n",
        "Transfer-Encoding: chunked\r",
        "X: y\r\r\nTransfer-Encoding: chunked",
        "X:\nTransfer-Encoding: chunked",
        "Content-Length: 5\nX: y",
    ] {
        rig.refused(post(lines, "0\r\n\r\n"), 400, "bare_cr_or_lf");
    }
    rig.done_unseen();
}

#[test]
fn h12_a_body_of_get_is_framed_like_any_other() {
    let rig = Rig::plain();
    for method in ["GET", "DELETE", "OPTIONS", "PATCH", "FOO"] {
        let head = format!("{method} /a HTTP/1.1\r\nHost: a\r\n");
        let seen = rig.forwarded(format!("{head}Content-Length: 5\r\n\r\nhello"));
        assert_eq!(
            (seen.method(), seen.framing, seen.text().as_str()),
            (method, Framing::Length(5), "hello")
        );
        let seen = rig.forwarded(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
        assert_eq!((seen.method(), seen.framing, seen.text().as_str()), (method, Framing::Chunked, "hello"));
    }
    let done = rig.done();
    assert_eq!(done.requests.len(), 10, "a body was taken for a request");
}

#[test]
fn h13_a_request_that_ends_early_never_looks_whole() {
    let by_length = post("Content-Length: 11", "hello world");
    let chunked = post("Transfer-Encoding: chunked", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
    let with_trailer = post("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n");
    for wire in [&by_length, &chunked, &with_trailer] {
        let head = wire.find("\r\n\r\n").unwrap() + 4;
        for reset in [false, true] {
            let rig = Rig::plain();
            // Every cut of the body, each on a connection of its own.
            for cut in head..wire.len() {
                let mut client = rig.client();
                client.send(&wire[..cut]);
                // So that the proxy is in the middle of it.
                rig.origin.wait_connections(cut - head + 1);
                if reset {
                    client.reset();
                } else {
                    client.finish();
                    assert!(matches!(client.cut(), Cut::Nothing(_)), "cut at {cut} of {wire:?}");
                }
                // The service sees the end of the connection, and nothing whole before it.
                rig.origin.wait_end(cut - head);
            }
            let seen = rig.done_unseen();
            let early = seen.of_cause("closed_early") + seen.of_cause("reset");
            assert_eq!(early, (wire.len() - head) as u64, "{:?}", seen.failures);
        }
    }
}

#[test]
fn h14_names_with_underscores_do_not_frame() {
    let rig = Rig::before(Origin::plain());
    let mut client = rig.client();
    client.send(
        "POST /a HTTP/1.1\r\nHost: a\r\nContent_Length: 23\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: \
         chunked\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    for target in ["/a", "/b", "/c"] {
        assert_eq!(client.response().text(), target);
    }
    assert_eq!(client.end(), End::Fin);
    let requests = rig.done().requests;
    assert_eq!(requests.iter().map(|r| r.framing).collect::<Vec<_>>(), [Framing::None; 3]);
    assert_eq!(requests[0].one("content_length").unwrap(), "23");
    assert_eq!(requests[1].one("transfer_encoding").unwrap(), "chunked");
}
