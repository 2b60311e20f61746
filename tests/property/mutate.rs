//! Random messages, and what attackers and broken peers do to them.

use fastrand::Rng;

/// What a peer sends.
#[derive(Debug, Clone)]
pub struct Sent {
    pub bytes: Vec<u8>,
    /// Whether it is no longer what was made.
    pub touched: bool,
    /// What was done to it.
    pub how: String,
}

impl Sent {
    pub fn has(&self, what: &[u8]) -> bool {
        self.bytes.windows(what.len()).any(|w| w == what)
    }
}

/// A sound request with this id.
pub fn random_request(rng: &mut Rng, id: &str) -> Vec<u8> {
    let method = *rng
        .choice(&["GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "FOO"])
        .unwrap();
    let target = match rng.u8(..8) {
        0 => format!("http://a.example/{id}"),
        1 => format!("/{id}?q=%20;/../&x"),
        2 => format!("/{id}/{}", "x".repeat(rng.usize(..3000))),
        _ => format!("/{id}"),
    };
    let mut out = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    let mut fields = vec![format!("Host: {id}"), format!("X-Id: {id}")];
    for _ in 0..rng.usize(..5) {
        fields.push(random_field(rng));
    }
    let bodiless = method == "GET" && rng.u8(..4) > 0;
    write_message(rng, &mut out, fields, bodiless, id);
    out
}

/// A sound response with this id.
pub fn random_response(rng: &mut Rng, id: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.u8(..8).saturating_sub(5) {
        out.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    }
    let status = *rng
        .choice(&[
            "200 OK",
            "200 OK",
            "200 OK",
            "404 Not Found",
            "500 ",
            "201",
            "204 No Content",
            "304 Not Modified",
        ])
        .unwrap();
    let version = if rng.u8(..10) == 0 { "HTTP/1.0" } else { "HTTP/1.1" };
    out.extend_from_slice(format!("{version} {status}\r\n").as_bytes());
    let mut fields = vec![format!("X-Id: {id}")];
    for _ in 0..rng.usize(..4) {
        fields.push(random_field(rng));
    }
    if status.starts_with("204") || status.starts_with("304") {
        out.extend_from_slice(fields.join("\r\n").as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
    } else if version == "HTTP/1.0" || rng.u8(..6) == 0 {
        // Ends with the connection.
        let body = random_body(rng, id);
        out.extend_from_slice(fields.join("\r\n").as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(&body);
    } else {
        write_message(rng, &mut out, fields, false, id);
    }
    out
}

/// Does between none and three things to a stream.
pub fn mutated(rng: &mut Rng, bytes: Vec<u8>) -> Sent {
    let original = bytes.clone();
    let mut sent = Sent { bytes, touched: false, how: "untouched".into() };
    let count = if rng.u8(..4) == 0 { 0 } else { rng.usize(1..4) };
    for n in 0..count {
        let how = mutate(rng, &mut sent.bytes);
        sent.how = if n == 0 { how } else { format!("{}, {how}", sent.how) };
    }
    sent.touched = sent.bytes != original;
    sent
}

/// The stream as it is cut into writes.
pub fn pieces(rng: &mut Rng, bytes: &[u8]) -> Vec<Vec<u8>> {
    let size = match rng.u8(..6) {
        0 => 1,
        1 => rng.usize(2..9),
        2 => rng.usize(10..200),
        _ => return vec![bytes.to_vec()],
    };
    // Bytewise for the front only: a long body in single bytes tests nothing but patience.
    let front = bytes.len().min(size.saturating_mul(400));
    let mut all: Vec<Vec<u8>> = bytes[..front].chunks(size.max(1)).map(<[u8]>::to_vec).collect();
    all.extend(bytes[front..].chunks(10_000).map(<[u8]>::to_vec));
    all
}

fn random_field(rng: &mut Rng) -> String {
    let length = rng.usize(..200);
    match rng.u8(..12) {
        0 => "Connection: keep-alive".into(),
        1 => "Connection: X-Hop\r\nX-Hop: 1".into(),
        2 => "TE: trailers".into(),
        3 => "Keep-Alive: timeout=100".into(),
        4 => "X-Empty:".into(),
        5 => "Accept:\t*/* ".into(),
        6 => "Cookie: a=b; c=\"d\"".into(),
        7 => "X-Forwarded-For: 10.0.0.1".into(),
        8 => "Content_Length: 7".into(),
        9 => "Upgrade: h2c".into(),
        10 => format!("X-Long: {}", "y".repeat(length * 20)),
        _ => format!("X-{length}: v{length}"),
    }
}

/// Bodies that look like messages: whoever loses count takes them for such.
fn random_body(rng: &mut Rng, id: &str) -> Vec<u8> {
    match rng.u8(..6) {
        0 => Vec::new(),
        1 => format!("GET /smuggled-{id} HTTP/1.1\r\nHost: s\r\n\r\n").into_bytes(),
        2 => b"0\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
        3 => (0..rng.usize(1..300)).map(|_| rng.u8(..)).collect(),
        4 => vec![b'z'; rng.usize(1..60_000)],
        _ => format!("the body of {id}").into_bytes(),
    }
}

fn write_message(rng: &mut Rng, out: &mut Vec<u8>, mut fields: Vec<String>, bodiless: bool, id: &str) {
    let body = if bodiless { Vec::new() } else { random_body(rng, id) };
    let chunked = !bodiless && rng.bool();
    if chunked {
        fields.push(rng.choice(["Transfer-Encoding: chunked", "transfer-encoding:CHUNKED"]).unwrap().into());
    } else if !bodiless {
        fields.push(format!("Content-Length: {}", body.len()));
    }
    rng.shuffle(&mut fields);
    out.extend_from_slice(fields.join("\r\n").as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    if !chunked {
        out.extend_from_slice(&body);
        return;
    }
    let mut rest = &body[..];
    while !rest.is_empty() {
        let size = rng.usize(1..=rest.len());
        let extension = *rng.choice(&["", "", "", ";a", ";a=\"b;c\""]).unwrap();
        let line = if rng.bool() {
            format!("{size:x}{extension}\r\n")
        } else {
            format!("{size:04X}{extension}\r\n")
        };
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(&rest[..size]);
        out.extend_from_slice(b"\r\n");
        rest = &rest[size..];
    }
    out.extend_from_slice(b"0\r\n");
    for n in 0..rng.u8(..8).saturating_sub(5) {
        out.extend_from_slice(format!("X-Trailer-{n}: {id}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Does one thing to a stream, and says what.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) -> String {
    const OCTETS: &[u8] = b"\r\n\0 \t:;,0159afxAF\"\x0b\x7f\xff";
    const LINES: &[&[u8]] = &[
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 99999\r\n",
        b"Connection: close\r\n",
        b"Connection: content-length\r\n",
        b"X: y\n",
        b" folded\r\n",
        b"\r\n",
        b"0\r\n\r\n",
        b"Host: other\r\n",
        b"GET /smuggled HTTP/1.1\r\nHost: s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Id: evil\r\nContent-Length: 0\r\n\r\n",
        b"Expect: 100-continue\r\n",
    ];
    let at = place(rng, bytes);
    match rng.u8(..11) {
        0 | 1 => {
            if let Some(octet) = bytes.get_mut(at) {
                *octet ^= 1 << rng.u8(..8);
            }
            format!("a bit at {at}")
        }
        2 => {
            if let Some(octet) = bytes.get_mut(at) {
                *octet = *rng.choice(OCTETS).unwrap();
            }
            format!("an octet at {at}")
        }
        3 | 4 => {
            bytes.insert(at, *rng.choice(OCTETS).unwrap());
            format!("one more at {at}")
        }
        5 => {
            let end = (at + rng.usize(1..12)).min(bytes.len());
            bytes.drain(at..end);
            format!("without {at}..{end}")
        }
        6 | 7 => {
            // At the start of a line, where it hurts.
            let at = line_start(bytes, at);
            bytes.splice(at..at, rng.choice(LINES).unwrap().iter().copied());
            format!("one more line at {at}")
        }
        8 => {
            let start = line_start(bytes, at);
            let end = bytes[start..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| start + n + 1);
            let line = bytes[start..end].to_vec();
            bytes.splice(start..start, line);
            format!("the line at {start} twice")
        }
        9 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        _ => {
            // A part of the stream again, somewhere else.
            let end = (at + rng.usize(1..200)).min(bytes.len());
            let part = bytes[at..end].to_vec();
            let to = place(rng, bytes);
            bytes.splice(to..to, part);
            format!("{at}..{end} again at {to}")
        }
    }
}

/// Somewhere, mostly in a head or near what frames.
fn place(rng: &mut Rng, bytes: &[u8]) -> usize {
    let found = |what: &[u8]| {
        bytes
            .windows(what.len())
            .enumerate()
            .filter(|(_, w)| w.eq_ignore_ascii_case(what))
            .map(|(n, _)| n)
            .collect::<Vec<_>>()
    };
    let near = match rng.u8(..6) {
        0 => found(b"\r\n\r\n"),
        1 => found(b"content-length"),
        2 => found(b"transfer-encoding"),
        3 => found(b"\r\n"),
        _ => Vec::new(),
    };
    match rng.choice(&near) {
        Some(start) => (start + rng.usize(..24)).min(bytes.len()),
        None => {
            let front = if rng.bool() { 300 } else { usize::MAX };
            rng.usize(..=bytes.len().min(front))
        }
    }
}

fn line_start(bytes: &[u8], at: usize) -> usize {
    bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1)
}
