//! Bodies on their way through: the chunked coding (RFC 9112 §7.1) read strictly and written anew.
//!
//! A body is reframed in the buffer that it was read into: pieces of data are moved together, the new chunk's size is
//! written in front of them (a [`HEADROOM`] is kept free for it) and its end behind them. So a chunk that came in one
//! read is not copied at all. Chunk extensions are dropped; trailers are kept apart from the header section.

use std::mem::MaybeUninit;
use std::ops::Range;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::Framing;
use super::fields::{ConnectionOptions, Known, known};
use crate::failure::Cause;
use crate::snapshot::Limits;

/// Bytes kept free at the front of a buffer that a body is read into, for a chunk's size line.
pub const HEADROOM: usize = 16;
/// Bytes kept free at the end of such a buffer, for the end of a chunk and of the body.
pub const TAILROOM: usize = 16;

/// What one buffer of body became.
#[derive(Debug, PartialEq, Eq)]
pub struct Reframed {
    /// What is to be sent on, in the same buffer.
    pub send: Range<usize>,
    /// What came behind the end of the body (the next request, or what a bad origin sent).
    pub rest: Range<usize>,
    /// Bytes of content among what is to be sent.
    pub content: usize,
    /// Whether the body has ended.
    pub ended: bool,
}

/// Follows one body from one framing to another.
#[derive(Debug)]
pub struct Reframer {
    from: Framing,
    to: Framing,
    left: u64,
    decoder: ChunkedDecoder,
    /// Trailers that are not passed on because the message's Connection field nominates them.
    without: Vec<Box<str>>,
}

impl Reframer {
    /// A body that comes framed one way and leaves another. `to` is `Chunked`, `UntilClose`, or the same length.
    pub fn new(from: Framing, to: Framing) -> Self {
        let left = match from {
            Framing::Length(n) => n,
            Framing::None => 0,
            Framing::Chunked | Framing::UntilClose => u64::MAX,
        };
        Self { from, to, left, decoder: ChunkedDecoder::default(), without: Vec::new() }
    }

    /// The same, without trailers of these names (RFC 9110 §7.6.1).
    #[must_use]
    pub fn without_trailers(mut self, names: Vec<Box<str>>) -> Self {
        self.without = names;
        self
    }

    /// Whether nothing (more) belongs to the body.
    pub fn is_ended(&self) -> bool {
        match self.from {
            Framing::None | Framing::Length(_) => self.left == 0,
            Framing::Chunked => self.decoder.state == State::End,
            Framing::UntilClose => false,
        }
    }

    /// Whether nothing of the body has come, and the next connection can have all of it.
    pub fn is_untouched(&self) -> bool {
        match self.from {
            Framing::None => true,
            Framing::Length(all) => self.left == all,
            Framing::Chunked => self.decoder == ChunkedDecoder::default(),
            Framing::UntilClose => false,
        }
    }

    /// Whether the end of the connection is the end of the body.
    pub fn ends_with_connection(&self) -> bool {
        self.from == Framing::UntilClose
    }

    /// Bytes that may still come, for the size of the next read; `u64::MAX` when unknown.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Reframes what was read into `buffer` behind `start` (at least [`HEADROOM`] when the body leaves chunked).
    ///
    /// # Errors
    /// The cause when the body breaks the grammar or a limit.
    pub fn reframe(
        &mut self,
        buffer: &mut Vec<u8>,
        start: usize,
        limits: &Limits,
    ) -> Result<Reframed, Cause> {
        let end = buffer.len();
        let (data, rest, ended) = match self.from {
            Framing::None => (start..start, start..end, true),
            Framing::Length(_) => {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(end - start);
                self.left -= take as u64;
                (start..start + take, start + take..end, self.left == 0)
            }
            Framing::UntilClose => (start..end, end..end, false),
            Framing::Chunked => {
                let (data, consumed) = self.decoder.gather(buffer, start, limits)?;
                (data, consumed..end, self.decoder.state == State::End)
            }
        };
        let content = data.len();
        if self.to != Framing::Chunked {
            return Ok(Reframed { send: data, rest, content, ended });
        }
        let mut send = data;
        if content > 0 {
            send.start -= write_size_before(content, &mut buffer[..send.start]);
            send.end = write_behind(b"\r\n", send.end, &rest, buffer);
        }
        // With trailers the end is written with them: see `take_trailers`.
        if ended && self.decoder.trailers.is_empty() {
            const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
            if content > 0 {
                send.end = write_behind(LAST_CHUNK, send.end, &rest, buffer);
            } else {
                // The end may have come cut, so that only a byte of it is in this buffer: the headroom has space.
                send = start - LAST_CHUNK.len()..start;
                buffer[send.clone()].copy_from_slice(LAST_CHUNK);
            }
        }
        // The buffer may have grown by what was written behind its end.
        let rest = if rest.is_empty() { send.end..send.end } else { rest };
        Ok(Reframed { send, rest, content, ended })
    }

    /// The end of the incoming body was the end of the connection (`UntilClose` only): what is left to be sent.
    pub fn finish(&self, out: &mut Vec<u8>) {
        if self.to == Framing::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// When the body has ended, and with trailers: writes the last chunk with those that may be passed on.
    ///
    /// # Errors
    /// The cause when they break the grammar.
    pub fn take_trailers(&mut self, limits: &Limits, out: &mut Vec<u8>) -> Result<(), Cause> {
        if self.decoder.state != State::End || self.decoder.trailers.is_empty() {
            return Ok(());
        }
        let section = std::mem::take(&mut self.decoder.trailers);
        let before = out.len();
        out.extend_from_slice(b"0\r\n");
        write_trailers(&section, &self.without, limits, out)?;
        out.extend_from_slice(b"\r\n");
        if self.to != Framing::Chunked {
            // There is no place for them, but they had to be right.
            out.truncate(before);
        }
        Ok(())
    }
}

impl Reframer {
    /// When the body has ended, and with trailers: those that may be passed on, for HTTP/2.
    ///
    /// # Errors
    /// The cause when they break the grammar.
    pub fn typed_trailers(&mut self, limits: &Limits) -> Result<Option<HeaderMap>, Cause> {
        if self.decoder.state != State::End || self.decoder.trailers.is_empty() {
            return Ok(None);
        }
        let section = std::mem::take(&mut self.decoder.trailers);
        let mut lines = Vec::with_capacity(section.len() + 2);
        write_trailers(&section, &self.without, limits, &mut lines)?;
        lines.extend_from_slice(b"\r\n");
        let mut parts = [httparse::EMPTY_HEADER; Limits::FIELDS_CEILING as usize];
        let Ok(httparse::Status::Complete((_, parts))) = httparse::parse_headers(&lines, &mut parts) else {
            return Err(Cause::BadChunk);
        };
        let mut trailers = HeaderMap::with_capacity(parts.len());
        for part in parts {
            let name = HeaderName::from_bytes(part.name.as_bytes()).map_err(|_| Cause::BadFieldName)?;
            let value = HeaderValue::from_bytes(part.value).map_err(|_| Cause::BadFieldValue)?;
            trailers.append(name, value);
        }
        Ok((!trailers.is_empty()).then_some(trailers))
    }
}

/// Whether a trailer of HTTP/2 may be passed on.
fn is_trailer(name: &str) -> bool {
    matches!(known(name), Known::Other | Known::Date) && !NOT_IN_TRAILERS.contains(&name)
}

/// Takes away trailers that may change framing, routing or identity (RFC 9110 §6.5.1).
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let bad: Vec<HeaderName> = trailers.keys().filter(|name| !is_trailer(name.as_str())).cloned().collect();
    for name in bad {
        trailers.remove(name);
    }
}

/// Writes trailers of HTTP/2 as the end of a chunked body.
pub fn write_typed_trailers(trailers: &HeaderMap, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter().filter(|(name, _)| is_trailer(name.as_str())) {
        super::h1::write_field(name.as_str(), value.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes `content` as one chunk, behind what is in `out`.
pub fn write_chunk(content: &[u8], out: &mut Vec<u8>) {
    let mut size = [0_u8; HEADROOM];
    let length = write_size_before(content.len(), &mut size);
    out.extend_from_slice(&size[HEADROOM - length..]);
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
}

/// Fields that mean something before the body only, or that name somebody.
const NOT_IN_TRAILERS: &[&str] =
    &["authorization", "cookie", "set-cookie", "cache-control", "trailer", "age"];

/// Writes those trailers that may not change framing, routing or identity (RFC 9110 §6.5.1).
fn write_trailers(
    section: &[u8],
    without: &[Box<str>],
    limits: &Limits,
    out: &mut Vec<u8>,
) -> Result<(), Cause> {
    let mut parts = [const { MaybeUninit::uninit() }; Limits::FIELDS_CEILING as usize];
    let fields_max = usize::from(limits.fields_max.min(Limits::FIELDS_CEILING));
    // httparse reads a field section as part of a head; a start line of our own makes it one.
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    head.extend_from_slice(section);
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(&head, &mut parts[..fields_max]) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Cause::HeadTooLarge),
        Ok(_) | Err(_) => return Err(Cause::BadChunk),
    }
    let mut connection = ConnectionOptions::default();
    for part in parsed.headers.iter().filter(|p| known(p.name) == Known::Connection) {
        connection.read(part.value)?;
    }
    for part in parsed.headers.iter() {
        let may_pass = matches!(known(part.name), Known::Other | Known::Date)
            && !NOT_IN_TRAILERS.iter().any(|n| n.eq_ignore_ascii_case(part.name))
            && !connection.nominates(part.name)
            && !without.iter().any(|n| n.eq_ignore_ascii_case(part.name));
        if may_pass {
            super::h1::write_field(part.name, part.value, out);
        }
    }
    Ok(())
}

/// Reads the chunked coding. Strict: hexadecimal digits, CRLF, nothing else (RFC 9112 §7.1 with §2.2).
#[derive(Debug, Default, PartialEq, Eq)]
struct ChunkedDecoder {
    state: State,
    /// Of the present chunk: its size so far, then what is left of its data.
    left: u64,
    digits: u8,
    /// Bytes of extensions of the present chunk.
    extension: usize,
    /// Bytes of extensions beyond the bytes of data, over the whole body.
    excess: i64,
    /// The trailer section as it came, its last empty line included; empty when there is none.
    trailers: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line of the trailer section.
    TrailerStart,
    TrailerLine,
    /// Behind the CR of the empty line that ends the body.
    EndLf,
    End,
}

impl ChunkedDecoder {
    /// More digits than a u64 can have mean nothing but trouble, leading zeros included.
    const DIGITS_MAX: u8 = 16;
    /// Bytes of extensions of one chunk.
    const EXTENSION_MAX: usize = 4 * 1024;
    /// Bytes of extensions that a body may have beyond its bytes of data.
    const EXCESS_MAX: i64 = 64 * 1024;

    /// Moves the data in `buffer[start..]` together; where it lies, and where what was understood ends.
    fn gather(
        &mut self,
        buffer: &mut [u8],
        start: usize,
        limits: &Limits,
    ) -> Result<(Range<usize>, usize), Cause> {
        let mut at = start;
        let mut data = start..start;
        while at < buffer.len() && self.state != State::End {
            if self.state == State::Data {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len() - at);
                if data.is_empty() {
                    data = at..at + take;
                } else {
                    buffer.copy_within(at..at + take, data.end);
                    data.end += take;
                }
                at += take;
                self.left -= take as u64;
                self.excess = self.excess.saturating_sub_unsigned(take as u64).max(0);
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.step(buffer[at], limits)?;
            at += 1;
        }
        Ok((data, at))
    }

    fn step(&mut self, byte: u8, limits: &Limits) -> Result<(), Cause> {
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.digits == Self::DIGITS_MAX {
                    return Err(Cause::BadChunk);
                }
                self.digits += 1;
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                State::Size
            }
            (State::Size, b'\r') if self.digits > 0 => State::SizeLf,
            (State::Size, b';') if self.digits > 0 => State::Extension,
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension += 1;
                self.excess += 1;
                if self.extension > Self::EXTENSION_MAX || self.excess > Self::EXCESS_MAX {
                    return Err(Cause::HeadTooLarge);
                }
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                self.extension = 0;
                if self.left == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::TrailerStart, b'\r') => {
                if !self.trailers.is_empty() {
                    self.trailer_byte(byte, limits)?;
                }
                State::EndLf
            }
            (State::TrailerStart | State::TrailerLine, _) => {
                let line_ends = byte == b'\n';
                if line_ends && self.trailers.last() != Some(&b'\r') {
                    return Err(Cause::BadChunk);
                }
                self.trailer_byte(byte, limits)?;
                if line_ends { State::TrailerStart } else { State::TrailerLine }
            }
            (State::EndLf, b'\n') => {
                if !self.trailers.is_empty() {
                    self.trailer_byte(byte, limits)?;
                }
                State::End
            }
            _ => return Err(Cause::BadChunk),
        };
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8, limits: &Limits) -> Result<(), Cause> {
        if self.trailers.len() >= limits.head_bytes_max as usize {
            return Err(Cause::HeadTooLarge);
        }
        self.trailers.push(byte);
        Ok(())
    }
}

/// Writes `size CRLF` so that it ends where `front` ends; its length.
fn write_size_before(size: usize, front: &mut [u8]) -> usize {
    let mut at = front.len() - 2;
    front[at..].copy_from_slice(b"\r\n");
    let mut left = size;
    loop {
        at -= 1;
        front[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
        if left == 0 {
            return front.len() - at;
        }
    }
}

/// Writes `bytes` at `at`: over what has been understood, or behind the end of the buffer. Never over `rest`.
fn write_behind(bytes: &[u8], at: usize, rest: &Range<usize>, buffer: &mut Vec<u8>) -> usize {
    let end = at + bytes.len();
    debug_assert!(rest.is_empty() || end <= rest.start, "a chunk's end takes no more room than it came with");
    if end > buffer.len() {
        buffer.resize(end, 0);
    }
    buffer[at..end].copy_from_slice(bytes);
    end
}

#[cfg(test)]
#[path = "body_test.rs"]
mod tests;
