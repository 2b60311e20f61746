//! HTTP/1.1 as far as a load generator and its origin need it: finding a head, its framing and its echo mark, walking
//! chunked bodies, and one message that is built once and sent many times.
//!
//! Called by `client` and `origin`. Written apart from the proxy on purpose: a mistake that both shared would not be
//! seen. It refuses to repair: what it does not understand is a `Malformed` that ends the connection.

/// Bytes of a head, at most. Longer ones are malformed.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Width of the echo mark: sixteen hexadecimal digits, so that it can be written in place.
pub(crate) const ECHO_BYTES: usize = 16;
pub(crate) type Echo = [u8; ECHO_BYTES];

/// What a head says about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Neither length nor coding: no body in a request, until close in a response.
    None,
    Length(u64),
    Chunked,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The parts of a head that matter here, borrowed from the bytes read.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// Without its line end.
    pub(crate) first_line: &'a [u8],
    pub(crate) framing: Framing,
    /// `connection: close` was said.
    pub(crate) close: bool,
    /// `expect: 100-continue` was said.
    pub(crate) expect: bool,
    pub(crate) echo: Option<Echo>,
    /// Bytes of the head with its empty line.
    pub(crate) len: usize,
}

/// Reads one head from the start of `bytes`; `None` when it is not whole yet.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<Head<'_>>, Malformed> {
    let Some((first_line, mut at)) = line(bytes, 0) else { return unfinished(bytes) };
    if first_line.is_empty() {
        return Err(Malformed("empty first line"));
    }
    let mut head =
        Head { first_line, framing: Framing::None, close: false, expect: false, echo: None, len: 0 };
    loop {
        let Some((field, next)) = line(bytes, at) else { return unfinished(bytes) };
        at = next;
        let Some(&first) = field.first() else {
            head.len = at;
            return Ok(Some(head));
        };
        // Most fields are told apart by their first letter and never looked at again.
        match first | 0x20 {
            b'c' => {
                if let Some(value) = value_of(field, b"content-length") {
                    let length = parse_decimal(value).ok_or(Malformed("content-length is not a number"))?;
                    if head.framing != Framing::None {
                        return Err(Malformed("framed twice"));
                    }
                    head.framing = Framing::Length(length);
                } else if let Some(value) = value_of(field, b"connection") {
                    head.close |=
                        value.split(|&b| b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"close"));
                }
            }
            b't' => {
                if let Some(value) = value_of(field, b"transfer-encoding") {
                    if !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Malformed("a transfer coding other than chunked"));
                    }
                    if head.framing != Framing::None {
                        return Err(Malformed("framed twice"));
                    }
                    head.framing = Framing::Chunked;
                }
            }
            b'x' => {
                if let Some(value) = value_of(field, b"x-echo") {
                    head.echo = value.try_into().ok();
                }
            }
            b'e' => {
                if let Some(value) = value_of(field, b"expect") {
                    head.expect = value.eq_ignore_ascii_case(b"100-continue");
                }
            }
            _ => {}
        }
    }
}

fn unfinished<T>(bytes: &[u8]) -> Result<Option<T>, Malformed> {
    if bytes.len() >= HEAD_BYTES_MAX { Err(Malformed("head too long")) } else { Ok(None) }
}

/// The line that starts at `at`, without CRLF, and where the next one starts.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = &bytes[at..];
    let end = memchr::memchr(b'\n', rest)?;
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    Some((line, at + end + 1))
}

fn value_of<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if field.len() <= name.len()
        || field[name.len()] != b':'
        || !field[..name.len()].eq_ignore_ascii_case(name)
    {
        return None;
    }
    Some(field[name.len() + 1..].trim_ascii())
}

fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &b| b.is_ascii_digit().then(|| sum * 10 + u64::from(b - b'0')))
}

/// The status of a response's first line.
pub(crate) fn parse_status(first_line: &[u8]) -> Result<u16, Malformed> {
    let (Some(version), Some(digits)) = (first_line.get(..9), first_line.get(9..12)) else {
        return Err(Malformed("status line too short"));
    };
    if version != b"HTTP/1.1 " && version != b"HTTP/1.0 " {
        return Err(Malformed("not HTTP/1"));
    }
    let status = parse_decimal(digits).ok_or(Malformed("status is not a number"))?;
    Ok(u16::try_from(status).unwrap_or(0))
}

/// Walks a chunked body without keeping it.
#[derive(Debug, Default)]
pub(crate) struct Chunked {
    step: Step,
    /// Bytes of the current chunk that are yet to come, or its size while that is being read.
    left: u64,
    /// Digits of the current size, or bytes of the current trailer line.
    seen: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Size,
    Extension,
    Bytes,
    BytesEnd,
    Trailer,
    Done,
}

impl Chunked {
    /// Takes what belongs to the body from `bytes`. Returns the bytes used and how many of them were body; ask
    /// [`Chunked::done`] whether the body is complete.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, u64), Malformed> {
        let (mut at, mut body) = (0, 0);
        while at < bytes.len() && self.step != Step::Done {
            if self.step == Step::Bytes {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += here;
                body += here as u64;
                self.left -= here as u64;
                if self.left == 0 {
                    self.step = Step::BytesEnd;
                }
                continue;
            }
            self.control_byte(bytes[at])?;
            at += 1;
        }
        Ok((at, body))
    }

    pub(crate) fn done(&self) -> bool {
        self.step == Step::Done
    }

    fn control_byte(&mut self, byte: u8) -> Result<(), Malformed> {
        match (&self.step, byte) {
            (Step::Size, b'\n') => self.size_line_end()?,
            (Step::Size, b';' | b'\r') => self.step = Step::Extension,
            (Step::Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed("chunk size is not a number"))?;
                self.seen += 1;
                if self.seen > 15 {
                    return Err(Malformed("chunk size too long"));
                }
                self.left = self.left << 4 | u64::from(digit);
            }
            (Step::Extension, b'\n') => self.size_line_end()?,
            (Step::BytesEnd, b'\n') => (self.step, self.seen) = (Step::Size, 0),
            (Step::BytesEnd | Step::Trailer, b'\r') | (Step::Extension, _) => {}
            (Step::BytesEnd, _) => return Err(Malformed("chunk longer than its size")),
            (Step::Trailer, b'\n') if self.seen == 0 => self.step = Step::Done,
            (Step::Trailer, b'\n') => self.seen = 0,
            (Step::Trailer, _) => self.seen += 1,
            (Step::Bytes | Step::Done, _) => {}
        }
        Ok(())
    }

    fn size_line_end(&mut self) -> Result<(), Malformed> {
        if self.seen == 0 {
            return Err(Malformed("chunk without size"));
        }
        self.seen = 0;
        self.step = if self.left == 0 { Step::Trailer } else { Step::Bytes };
        Ok(())
    }
}

/// Body bytes that are kept with a message; longer bodies repeat them.
const BLOCK_BYTES: usize = 256 * 1024;
/// Divides `BLOCK_BYTES`, so that byte `i` of every body is `PATTERN[i % 64]` however often the block is repeated.
const PATTERN: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n";

/// Up to `len` bytes of a body from its byte `at` on, without keeping any.
pub(crate) fn pattern(at: u64, len: usize) -> &'static [u8] {
    const PIECE: usize = 16 * 1024 + PATTERN.len();
    static BLOCK: [u8; PIECE] = {
        let (mut block, mut i) = ([0; PIECE], 0);
        while i < PIECE {
            block[i] = PATTERN[i % PATTERN.len()];
            i += 1;
        }
        block
    };
    let from = (at % PATTERN.len() as u64) as usize;
    &BLOCK[from..(from + len).min(PIECE)]
}

/// A request or response built once and sent many times: head and the start of the body lie in one piece, so that a
/// small message is one write, and only the echo mark is changed in place.
pub(crate) struct Message {
    bytes: Vec<u8>,
    head_len: usize,
    total: u64,
    echo_at: Option<usize>,
}

impl Message {
    /// `head` is a whole head with its empty line; when `echo` is set it must contain an `x-echo` field whose value is
    /// [`ECHO_BLANK`].
    pub(crate) fn new(head: &[u8], body_len: u64) -> Self {
        let echo_at = head.windows(ECHO_BYTES).position(|w| w == ECHO_BLANK);
        let kept = usize::try_from(body_len).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let mut bytes = head.to_vec();
        bytes.extend(PATTERN.iter().copied().cycle().take(kept));
        Self { bytes, head_len: head.len(), total: head.len() as u64 + body_len, echo_at }
    }

    /// The same with a chunked body of chunks of at most 16 KiB. The whole body is kept, so it should be short.
    pub(crate) fn chunked(head: &[u8], body_len: usize) -> Self {
        let mut message = Self::new(head, 0);
        let body: Vec<u8> = PATTERN.iter().copied().cycle().take(body_len).collect();
        for chunk in body.chunks(16 * 1024) {
            message.bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            message.bytes.extend_from_slice(chunk);
            message.bytes.extend_from_slice(b"\r\n");
        }
        message.bytes.extend_from_slice(b"0\r\n\r\n");
        message.total = message.bytes.len() as u64;
        message
    }

    /// Bytes on the wire.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The next bytes to write when `sent` of this message have left already.
    pub(crate) fn rest(&mut self, sent: u64, echo: &Echo) -> &[u8] {
        if let Some(at) = self.echo_at {
            self.bytes[at..at + ECHO_BYTES].copy_from_slice(echo);
        }
        let sent_here = usize::try_from(sent).unwrap_or(usize::MAX);
        if sent_here < self.bytes.len() {
            return &self.bytes[sent_here..];
        }
        let block = &self.bytes[self.head_len..];
        let left = self.total - sent;
        let from = usize::try_from((sent - self.head_len as u64) % BLOCK_BYTES as u64).unwrap_or(0);
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(block.len() - from);
        &block[from..from + here]
    }
}

/// Stands where the echo mark goes.
pub(crate) const ECHO_BLANK: &[u8; ECHO_BYTES] = b"----------------";

/// Sixteen hexadecimal digits of a sequence number.
pub(crate) fn echo_of(sequence: u64) -> Echo {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut echo = [0; ECHO_BYTES];
    for (i, byte) in echo.iter_mut().enumerate() {
        *byte = DIGITS[(sequence >> (60 - 4 * i) & 15) as usize];
    }
    echo
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
