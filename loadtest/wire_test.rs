use super::*;

fn head(text: &str) -> Head<'_> {
    parse_head(text.as_bytes()).expect("well formed").expect("whole")
}

#[test]
fn a_head_gives_framing_close_and_echo() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 42\r\nX-Echo: 00000000000000ff\r\nconnection: foo, Close\r\n\r\nrest";
    let head = head(text);
    assert_eq!(head.framing, Framing::Length(42));
    assert_eq!(head.echo, Some(echo_of(255)));
    assert!(head.close);
    assert_eq!(&text.as_bytes()[head.len..], b"rest");
    assert_eq!(parse_status(head.first_line), Ok(200));
}

#[test]
fn a_head_in_pieces_is_awaited() {
    let text = b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n";
    for cut in 0..text.len() {
        assert!(parse_head(&text[..cut]).expect("well formed").is_none(), "cut at {cut}");
    }
    assert!(parse_head(text).expect("well formed").is_some());
}

#[test]
fn conflicting_or_unknown_framing_is_refused() {
    for fields in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "content-length: 3\r\ncontent-length: 3",
        "transfer-encoding: gzip",
        "content-length: -1",
        "content-length: 3x",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        assert!(parse_head(text.as_bytes()).is_err(), "{fields}");
    }
    assert!(parse_head(&vec![b'a'; HEAD_BYTES_MAX]).is_err());
}

#[test]
fn fields_that_only_start_alike_are_ignored() {
    let head = head("HTTP/1.1 200 OK\r\ncontent-length-hint: 9\r\nx-echo-2: 1\r\ncontent-lengt: 1\r\n\r\n");
    assert_eq!(head.framing, Framing::None);
    assert_eq!(head.echo, None);
}

#[test]
fn status_lines_that_are_no_http_are_refused() {
    assert!(parse_status(b"HTTP/2 200").is_err());
    assert!(parse_status(b"HTTP/1.1 2xx OK").is_err());
    assert!(parse_status(b"").is_err());
    assert_eq!(parse_status(b"HTTP/1.1 503"), Ok(503));
}

#[test]
fn a_chunked_body_is_walked_alike_however_it_is_cut() {
    let body = b"5;name=value\r\nhello\r\nA\r\n0123456789\r\n0\r\ntrailer: x\r\n\r\n";
    let mut stream = body.to_vec();
    stream.extend_from_slice(b"HTTP/1.1");
    for cut in 0..=stream.len() {
        let mut chunked = Chunked::default();
        let (first, body_first) = chunked.advance(&stream[..cut]).expect("well formed");
        let (second, body_second) = chunked.advance(&stream[first..]).expect("well formed");
        assert!(chunked.done(), "cut at {cut}");
        assert_eq!(first + second, body.len(), "cut at {cut}");
        assert_eq!(body_first + body_second, 15, "cut at {cut}");
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for body in ["x\r\n", "\r\n", "3\r\nabcd\r\n", "1234567890123456\r\n", ";ext\r\n"] {
        assert!(Chunked::default().advance(body.as_bytes()).is_err(), "{body:?}");
    }
}

#[test]
fn a_chunked_message_is_read_back_by_the_walker() {
    let mut message = Message::chunked(b"head\r\n\r\n", 40_000);
    let bytes = message.rest(8, &echo_of(0)).to_vec();
    let mut chunked = Chunked::default();
    assert_eq!(chunked.advance(&bytes), Ok((bytes.len(), 40_000)));
    assert!(chunked.done());
}

#[test]
fn a_message_longer_than_its_block_repeats_it_seamlessly() {
    let head = b"HTTP/1.1 200 OK\r\nx-echo: ----------------\r\n\r\n";
    let body_len = (2 * BLOCK_BYTES + 12_345) as u64;
    let mut message = Message::new(head, body_len);
    let (mut sent, mut out) = (0u64, Vec::new());
    while sent < message.total() {
        let rest = message.rest(sent, &echo_of(7));
        let step = rest.len().min(70_001); // as a socket would: less than offered
        out.extend_from_slice(&rest[..step]);
        sent += step as u64;
    }
    assert_eq!(out.len() as u64, head.len() as u64 + body_len);
    assert_eq!(parse_head(&out).expect("well formed").expect("whole").echo, Some(echo_of(7)));
    for (i, &byte) in out[head.len()..].iter().enumerate() {
        assert_eq!(byte, PATTERN[i % 64], "at {i}");
    }
}

#[test]
fn echo_marks_are_hexadecimal() {
    assert_eq!(&echo_of(0), b"0000000000000000");
    assert_eq!(&echo_of(0x0123_4567_89ab_cdef), b"0123456789abcdef");
}

#[test]
fn pieces_of_a_body_fit_together() {
    let (mut body, mut at) = (Vec::new(), 0);
    while at < 100_000 {
        let piece = pattern(at, 20_000);
        assert!(piece.len() >= 16 * 1024);
        body.extend_from_slice(piece);
        at += piece.len() as u64;
    }
    assert!(body.iter().enumerate().all(|(i, &byte)| byte == PATTERN[i % 64]));
}
