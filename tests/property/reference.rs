//! What a stream of bytes means, by the letter of RFC 9112, for judging what a peer sent. Takes any correct form, not
//! only the canonical one; where two readers could differ it means nothing, and nothing behind it does.

use crate::support::wire::{Framing, Message};

/// A request that was sent whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Path and query, or `*`.
    pub target: String,
    pub body: Vec<u8>,
    /// Values of `X-Id`.
    pub ids: Vec<Vec<u8>>,
}

/// What a service meant by its bytes.
#[derive(Debug)]
pub enum Meant {
    Whole(Response),
    /// The front of a response, or none at all, and why.
    Nothing(#[expect(dead_code, reason = "shown when a test fails")] &'static str),
}

/// A response that was sent whole.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
    pub framing: Framing,
    pub ids: Vec<Vec<u8>>,
}

impl Request {
    /// Whether that is what arrived.
    pub fn is(&self, message: &Message) -> bool {
        self.method == message.method()
            && self.target == message.target()
            && self.body == message.body
            && self.ids == ids(message)
    }
}

impl Response {
    /// Whether that is what the caller got.
    pub fn is_answered_by(&self, message: &Message) -> bool {
        self.status == message.status() && self.body == message.body && self.ids == ids(message)
    }
}

/// The requests that a caller has sent whole before it closed, up to the first thing that is none.
pub fn requests(mut bytes: &[u8]) -> Vec<Request> {
    let mut all = Vec::new();
    while let Some((request, close, rest)) = request(bytes) {
        all.push(request);
        if close {
            break;
        }
        bytes = rest;
    }
    all
}

/// The final response that a service has sent, after which it closed its side or will.
pub fn response(mut bytes: &[u8], head: bool) -> Meant {
    loop {
        let Some((line, fields, rest)) = head_of(bytes) else { return Meant::Nothing("no head") };
        let Some((minor, status)) = status_line(line) else { return Meant::Nothing("no status line") };
        let Some(framing) = framing(&fields, minor == 0) else { return Meant::Nothing("no framing") };
        let ids = values(&fields, "x-id");
        if status == 101 {
            return Meant::Nothing("101");
        }
        if (100..200).contains(&status) {
            bytes = rest;
            continue;
        }
        let none = head || status == 204 || status == 304;
        let framing = if none { Framing::None } else { framing.unwrap_or(Framing::UntilClose) };
        let body = match framing {
            Framing::None => Some(Vec::new()),
            Framing::UntilClose => Some(rest.to_vec()),
            framing => body(framing, rest).map(|(body, _)| body),
        };
        return match body {
            Some(body) => Meant::Whole(Response { status, body, framing, ids }),
            None => Meant::Nothing("no whole body"),
        };
    }
}

/// A request, whether the connection ends with it, and what is behind it.
fn request(bytes: &[u8]) -> Option<(Request, bool, &[u8])> {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let (line, fields, rest) = head_of(bytes)?;
    let line = std::str::from_utf8(line).ok()?;
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, version] = words[..] else { return None };
    let minor = version.strip_prefix("HTTP/1.")?.parse::<u8>().ok().filter(|_| version.len() == 8)?;
    let hosts = values(&fields, "host");
    if !is_token(method.as_bytes()) || hosts.len() > 1 || minor > 0 && hosts.is_empty() {
        return None;
    }
    if !target.bytes().all(|b| (b'!'..=b'~').contains(&b)) {
        return None;
    }
    let target = if target.starts_with('/') || target == "*" {
        target.to_owned()
    } else {
        let (_, rest) = target.split_once("://")?;
        match rest.find(['/', '?']).map(|at| &rest[at..]) {
            Some(path) if path.starts_with('/') => path.to_owned(),
            Some(query) => format!("/{query}"),
            None if method == "OPTIONS" => "*".to_owned(),
            None => "/".to_owned(),
        }
    };
    let (body, rest) = body(framing(&fields, minor == 0)?.unwrap_or(Framing::None), rest)?;
    let options: Vec<_> = values(&fields, "connection")
        .iter()
        .flat_map(|v| {
            v.split(|b| *b == b',').map(|o| o.trim_ascii().to_ascii_lowercase()).collect::<Vec<_>>()
        })
        .collect();
    let says = |what: &[u8]| options.iter().any(|o| o == what);
    let close = says(b"close") || minor == 0 && !says(b"keep-alive");
    // What Connection names does not go further.
    let ids = if says(b"x-id") { Vec::new() } else { values(&fields, "x-id") };
    Some((Request { method: method.to_owned(), target, body, ids }, close, rest))
}

type Fields<'b> = Vec<(String, &'b [u8])>;

/// Start line, fields, and what is behind the head.
fn head_of(bytes: &[u8]) -> Option<(&[u8], Fields<'_>, &[u8])> {
    let (lines, rest) = lines(bytes)?;
    let (start, fields) = lines.split_first()?;
    let fields = fields.iter().map(|line| field(line)).collect::<Option<_>>()?;
    Some((start, fields, rest))
}

/// Lines up to an empty one; each ends with CRLF and has no CR, LF or NUL elsewhere.
fn lines(bytes: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        if line.is_empty() {
            return Some((lines, rest));
        }
        if line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            return None;
        }
        lines.push(line);
    }
}

fn field(line: &[u8]) -> Option<(String, &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let good = is_token(name) && value.iter().all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f);
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    good.then(|| (String::from_utf8_lossy(name).to_ascii_lowercase(), &value[start..end]))
}

/// `None`: no two readers would agree. `Some(None)`: no field says any.
#[expect(clippy::option_option, reason = "absent and wrong are different")]
fn framing(fields: &Fields<'_>, old: bool) -> Option<Option<Framing>> {
    let lengths = values(fields, "content-length");
    let encodings = values(fields, "transfer-encoding");
    match (&lengths[..], &encodings[..]) {
        ([], []) => Some(None),
        ([one], []) => {
            let digits = !one.is_empty() && one.iter().all(u8::is_ascii_digit);
            let n = std::str::from_utf8(one).ok()?.parse().ok()?;
            digits.then_some(Some(Framing::Length(n)))
        }
        ([], [one]) if one.eq_ignore_ascii_case(b"chunked") && !old => Some(Some(Framing::Chunked)),
        _ => None,
    }
}

/// The body and what is behind it, if all of it is there.
fn body(framing: Framing, bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    match framing {
        Framing::None => Some((Vec::new(), bytes)),
        Framing::Length(n) => {
            let n = usize::try_from(n).ok()?;
            Some((bytes.get(..n)?.to_vec(), &bytes[n..]))
        }
        Framing::Chunked => chunked(bytes),
        Framing::UntilClose => Some((bytes.to_vec(), &[])),
    }
}

fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut body, mut rest) = (Vec::new(), bytes);
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let extension = &line[digits..];
        let good = digits > 0
            && (extension.is_empty() || extension[0] == b';')
            && extension.iter().all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f);
        if !good {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
    let (trailers, rest) = lines(rest)?;
    trailers.iter().all(|line| field(line).is_some()).then_some((body, rest))
}

fn status_line(line: &[u8]) -> Option<(u8, u16)> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let minor = rest.first().filter(|b| matches!(b, b'0' | b'1'))? - b'0';
    let rest = rest[1..].strip_prefix(b" ")?;
    let digits = rest.get(..3)?;
    let reason = &rest[3..];
    let good = digits.iter().all(u8::is_ascii_digit)
        && (b'1'..=b'5').contains(&digits[0])
        && (reason.is_empty() || reason[0] == b' ')
        && reason.iter().all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f);
    let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
    good.then_some((minor, status))
}

fn values(fields: &Fields<'_>, name: &str) -> Vec<Vec<u8>> {
    fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.to_vec()).collect()
}

fn ids(message: &Message) -> Vec<Vec<u8>> {
    message.fields.iter().filter(|(n, _)| n == "x-id").map(|(_, v)| v.clone()).collect()
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}
