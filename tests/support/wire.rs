//! A second, strict parser of HTTP/1.1 messages: takes exactly the canonical form that the proxy promises to emit, and
//! says of anything else why not. Shares no code with the proxy.

/// A message and how it was framed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The start line without its end.
    pub start: String,
    /// Names in lower case, in order.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
    pub framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// What a stream of bytes begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parse {
    /// A message, and its length in bytes.
    Whole(Message, usize),
    /// The front of one: its head if that is there, with as much of the body as came.
    Partial(Option<Message>),
    /// Nothing that the proxy may ever emit.
    Bad(String),
}

/// Whose messages are parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    /// A response, and whether to HEAD.
    Response {
        head: bool,
    },
}

impl Message {
    /// The method of a request.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap()
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.start[9..12].parse().unwrap()
    }

    /// All values of a field, as text.
    pub fn all(&self, name: &str) -> Vec<String> {
        values(&self.fields, name)
    }

    /// The only value of a field; `None` without it, a panic with several.
    pub fn one(&self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        assert!(all.len() < 2, "{name} stands {} times in {self:?}", all.len());
        all.pop()
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(n, _)| n == name)
    }

    /// All values of a trailer, as text.
    pub fn trailer(&self, name: &str) -> Vec<String> {
        values(&self.trailers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Parses the message at the front of `bytes`. `ended`: no more will come.
pub fn parse(kind: Kind, bytes: &[u8], ended: bool) -> Parse {
    match read(kind, bytes, ended) {
        Ok(parse) => parse,
        Err(why) => Parse::Bad(format!("{why} in {:?}", shown(bytes))),
    }
}

/// All messages of a stream, and what is left behind them: nothing, a part of one, or why it is none.
pub fn parse_all(kind: Kind, mut bytes: &[u8]) -> (Vec<Message>, Parse) {
    let mut messages = Vec::new();
    loop {
        match parse(kind, bytes, false) {
            Parse::Whole(message, len) => {
                messages.push(message);
                bytes = &bytes[len..];
            }
            rest => return (messages, rest),
        }
    }
}

/// Bytes as a text that a person can read, cut to a bearable length.
pub fn shown(bytes: &[u8]) -> String {
    const MAX: usize = 600;
    let text = bytes[..bytes.len().min(MAX)].escape_ascii().to_string();
    if bytes.len() > MAX { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

fn read(kind: Kind, bytes: &[u8], ended: bool) -> Result<Parse, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        // What is there of a head must be a possible one.
        let line = find(bytes, b"\r\n").map(|end| &bytes[..end]);
        if let Some(line) = line {
            start_line(kind, line)?;
        }
        return Ok(Parse::Partial(None));
    };
    let mut lines = split_lines(&bytes[..end + 2])?.into_iter();
    let start = start_line(kind, lines.next().ok_or("no start line")?)?;
    let fields = lines.map(field).collect::<Result<Vec<_>, _>>()?;
    let framing = framing(kind, &start, &fields)?;
    let mut message = Message { start, fields, body: Vec::new(), trailers: Vec::new(), framing };
    let body = end + 4;
    let rest = &bytes[body..];
    match framing {
        Framing::None => Ok(Parse::Whole(message, body)),
        Framing::Length(n) => {
            let n = usize::try_from(n).map_err(|_| "a length beyond memory")?;
            message.body = rest[..rest.len().min(n)].to_vec();
            Ok(if rest.len() < n { Parse::Partial(Some(message)) } else { Parse::Whole(message, body + n) })
        }
        Framing::UntilClose => {
            message.body = rest.to_vec();
            Ok(if ended { Parse::Whole(message, bytes.len()) } else { Parse::Partial(Some(message)) })
        }
        Framing::Chunked => match chunked(rest, &mut message)? {
            Some(len) => Ok(Parse::Whole(message, body + len)),
            None => Ok(Parse::Partial(Some(message))),
        },
    }
}

fn start_line(kind: Kind, line: &[u8]) -> Result<String, String> {
    let line = std::str::from_utf8(line).map_err(|_| "a start line that is not text")?;
    let mut words = line.splitn(3, ' ');
    let (a, b, c) = (words.next(), words.next(), words.next());
    match (kind, a, b, c) {
        (Kind::Request, Some(method), Some(target), Some("HTTP/1.1")) => {
            let origin_form =
                target.starts_with('/') && target.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b'#');
            let asterisk = target == "*" && method == "OPTIONS";
            if method.is_empty() || !method.bytes().all(is_token) || !(origin_form || asterisk) {
                return Err("a bad request line".into());
            }
        }
        (Kind::Response { .. }, Some("HTTP/1.1"), Some(status), Some(reason)) => {
            let good = status.len() == 3
                && status.bytes().all(|b| b.is_ascii_digit())
                && (b'1'..=b'5').contains(&status.as_bytes()[0])
                && reason.chars().all(|c| c == '\t' || c >= ' ' && c != '\x7f');
            if !good {
                return Err("a bad status line".into());
            }
        }
        _ => return Err("no start line".into()),
    }
    Ok(line.to_owned())
}

fn framing(kind: Kind, start: &str, fields: &[(String, Vec<u8>)]) -> Result<Framing, String> {
    let lengths = values(fields, "content-length");
    let encodings = values(fields, "transfer-encoding");
    let length = match &lengths[..] {
        [] => None,
        [one] => {
            let canonical = one.parse::<u64>().ok().filter(|n| n.to_string() == *one);
            Some(canonical.ok_or("a bad content-length")?)
        }
        _ => return Err("several content-length".into()),
    };
    let chunked = match &encodings[..] {
        [] => false,
        [one] if one == "chunked" => true,
        _ => return Err("a bad transfer-encoding".into()),
    };
    if chunked && length.is_some() {
        return Err("content-length and transfer-encoding".into());
    }
    if kind == Kind::Request && values(fields, "host").len() != 1 {
        return Err("not exactly one host".into());
    }
    let by_fields = match (length, chunked) {
        (Some(n), _) => Some(Framing::Length(n)),
        (None, true) => Some(Framing::Chunked),
        (None, false) => None,
    };
    match kind {
        Kind::Request => Ok(by_fields.unwrap_or(Framing::None)),
        Kind::Response { head } => {
            let status: u16 = start[9..12].parse().map_err(|_| "a bad status")?;
            let interim = status < 200;
            if (interim || status == 204) && by_fields.is_some() {
                return Err("framing where there is no body".into());
            }
            if interim || status == 204 || status == 304 || head {
                return Ok(Framing::None);
            }
            Ok(by_fields.unwrap_or(Framing::UntilClose))
        }
    }
}

/// Reads a chunked body into the message; its length, or `None` when more must come.
fn chunked(bytes: &[u8], message: &mut Message) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return if bytes.len() - at > 18 { Err("an endless chunk size".into()) } else { Ok(None) };
        };
        let size = &bytes[at..at + end];
        let canonical = !size.is_empty()
            && size.len() <= 15
            && size.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
            && (size.len() == 1 || size[0] != b'0');
        if !canonical {
            return Err(format!("the chunk size {:?}", shown(size)));
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
        at += end + 2;
        if size == 0 {
            break;
        }
        let data = &bytes[at..];
        message.body.extend_from_slice(&data[..data.len().min(size)]);
        match data.get(size..size + 2) {
            Some(b"\r\n") => at += size + 2,
            Some(_) => return Err("no CRLF behind a chunk".into()),
            None if data.len() == size + 1 && data[size] != b'\r' => {
                return Err("no CR behind a chunk".into());
            }
            None => return Ok(None),
        }
    }
    // Trailers, each a line, and an empty line.
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            return Ok(Some(at));
        }
        message.trailers.push(field(line)?);
    }
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), String> {
    let colon = line.iter().position(|b| *b == b':').ok_or("a line without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(format!("the field name {:?}", shown(name)));
    }
    let value = value.strip_prefix(b" ").ok_or("no space behind a colon")?;
    let good = value.iter().all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f)
        && !matches!(value.first(), Some(b' ' | b'\t'))
        && !matches!(value.last(), Some(b' ' | b'\t'));
    if !good {
        return Err(format!("the field value {:?}", shown(value)));
    }
    Ok((String::from_utf8(name.to_ascii_lowercase()).unwrap(), value.to_vec()))
}

/// Lines that each end with CRLF, and no other CR or LF.
fn split_lines(bytes: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while let Some(end) = find(rest, b"\r\n") {
        let line = &rest[..end];
        if line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            return Err("a bare CR, a bare LF or a NUL".into());
        }
        lines.push(line);
        rest = &rest[end + 2..];
    }
    if rest.is_empty() { Ok(lines) } else { Err("a line without its end".into()) }
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

fn values(fields: &[(String, Vec<u8>)], name: &str) -> Vec<String> {
    fields.iter().filter(|(n, _)| n == name).map(|(_, v)| String::from_utf8_lossy(v).into_owned()).collect()
}
