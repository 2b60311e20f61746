//! HTTP/2 (RFC 9113) as far as a load generator and its origin need it: frames in and out, field sections, flow control
//! of one connection. No sockets: bytes come in by [`Framer::next`], bytes to write lie in [`Framer::pending`].
//!
//! Called by `client` and `origin`, each of which keeps its own streams. Written apart from the proxy, which uses the
//! h2 crate: a mistake that both shared would not be seen; and lighter than that, because the load side has one CPU for
//! both ends. It refuses push, and ignores priorities.

pub(crate) mod hpack;
mod huffman;

use crate::wire::{ECHO_BYTES, Echo};
use hpack::{Decoder, Encoder, Malformed};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a peer may send on one stream before it must wait for us.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// And on all streams of a connection together.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Both sides' SETTINGS_MAX_FRAME_SIZE unless they say otherwise; we never do.
const FRAME_BYTES: usize = 16_384;
const WINDOW_DEFAULT: u32 = 65_535;
/// Octets of one field section on the wire, at most, over all its frames.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const CANCEL: u32 = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// What a peer's bytes mean to the streams of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A field section, to be read from [`Framer::head`]; also trailers and interim responses.
    Head {
        stream: u32,
        end: bool,
    },
    /// `flow` counts against the windows and contains padding.
    Body {
        stream: u32,
        bytes: u64,
        flow: u32,
        end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    /// More may be sent: on one stream, or on all of them (0).
    Window {
        stream: u32,
        more: i64,
    },
    /// The windows of all streams have changed by this.
    InitialWindow(i64),
    /// Streams above `last` were not looked at.
    GoAway {
        last: u32,
        code: u32,
    },
}

/// The fields that matter here.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// 0 in requests and trailers.
    pub(crate) status: u16,
    /// `:path`; empty in responses and trailers.
    pub(crate) path: Vec<u8>,
    pub(crate) is_head_method: bool,
    pub(crate) echo: Option<Echo>,
    pub(crate) length: Option<u64>,
}

impl Head {
    fn clear(&mut self) {
        self.path.clear();
        *self = Self { path: std::mem::take(&mut self.path), ..Self::default() };
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        match name {
            b":status" => {
                self.status = decimal(value).and_then(|n| u16::try_from(n).ok()).ok_or(BAD_FIELD)?
            }
            b":path" => self.path.extend_from_slice(value),
            b":method" => self.is_head_method = value == b"HEAD",
            b"x-echo" => self.echo = <[u8; ECHO_BYTES]>::try_from(value).ok(),
            b"content-length" => self.length = Some(decimal(value).ok_or(BAD_FIELD)?),
            // RFC 9113 8.2: what is not allowed in HTTP/2 is malformed.
            b"connection" | b"transfer-encoding" | b"keep-alive" | b"upgrade" => {
                return Err(Malformed("a field of the connection"));
            }
            _ if name.iter().any(u8::is_ascii_uppercase) => return Err(Malformed("a name in upper case")),
            _ => {}
        }
        Ok(())
    }
}

const BAD_FIELD: Malformed = Malformed("a field is no number");

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// One end of a connection.
pub(crate) struct Framer {
    /// Of the preface that a server is yet to read.
    preface_left: usize,
    /// A frame that came in pieces; DATA is never kept.
    partial: Vec<u8>,
    /// A DATA frame under way: its stream, what is left of it, whether it ends the stream.
    body: Option<(u32, usize, bool)>,
    /// A section under way: its stream, whether it ends the stream, its octets.
    section: Option<(u32, bool)>,
    block: Vec<u8>,
    pub(crate) head: Head,
    decoder: Decoder,
    encoder: Encoder,
    scratch: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    /// What we may send on the connection.
    pub(crate) window: i64,
    /// What we may send on a new stream.
    pub(crate) stream_window: i64,
    pub(crate) streams_max: u32,
    frame_max: usize,
    /// Taken in since the last update of the connection's window.
    taken: u32,
}

impl Framer {
    pub(crate) fn client() -> Self {
        let mut framer = Self::new();
        framer.out.extend_from_slice(PREFACE);
        framer.settings(&[(2, 0), (4, STREAM_WINDOW)]); // no push
        framer
    }

    /// `streams_max`: exchanges at a time that a client may open.
    pub(crate) fn server(streams_max: u32) -> Self {
        let mut framer = Self::new();
        framer.preface_left = PREFACE.len();
        framer.settings(&[(3, streams_max), (4, STREAM_WINDOW)]);
        framer
    }

    fn new() -> Self {
        Self {
            preface_left: 0,
            partial: Vec::new(),
            body: None,
            section: None,
            block: Vec::new(),
            head: Head::default(),
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            scratch: Vec::new(),
            out: Vec::new(),
            written: 0,
            window: i64::from(WINDOW_DEFAULT),
            stream_window: i64::from(WINDOW_DEFAULT),
            streams_max: u32::MAX,
            frame_max: FRAME_BYTES,
            taken: 0,
        }
    }

    // --- in ---

    /// Uses `bytes` up to the next event; `None` when they are used up.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, Malformed> {
        while !bytes.is_empty() {
            if self.preface_left > 0 {
                self.preface(bytes)?;
                continue;
            }
            if let Some((stream, left, end)) = self.body {
                let here = left.min(bytes.len());
                *bytes = &bytes[here..];
                self.body = (here < left).then_some((stream, left - here, end));
                return Ok(Some(self.took_body(stream, here, here, end && here == left)));
            }
            if let Some(event) = self.frame(bytes)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn preface(&mut self, bytes: &mut &[u8]) -> Result<(), Malformed> {
        let wanted = &PREFACE[PREFACE.len() - self.preface_left..];
        let here = wanted.len().min(bytes.len());
        if bytes[..here] != wanted[..here] {
            return Err(Malformed("not the preface of HTTP/2"));
        }
        *bytes = &bytes[here..];
        self.preface_left -= here;
        Ok(())
    }

    /// One frame, from what was kept of it and `bytes`.
    fn frame(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, Malformed> {
        if self.partial.is_empty()
            && let Some(length) = whole_frame(bytes)
        {
            let (frame, rest) = bytes.split_at(length);
            *bytes = rest;
            return self.whole(frame);
        }
        let mut partial = std::mem::take(&mut self.partial);
        fill(&mut partial, bytes, 9);
        if partial.len() < 9 {
            self.partial = partial;
            return Ok(None);
        }
        let (length, kind, flags, stream) = header(&partial);
        if length > FRAME_BYTES {
            return Err(Malformed("a frame too long"));
        }
        if kind == DATA && flags & PADDED == 0 && self.section.is_none() {
            let end = flags & END_STREAM != 0;
            if stream == 0 {
                return Err(Malformed("DATA on stream 0"));
            }
            if length == 0 {
                return Ok(Some(self.took_body(stream, 0, 0, end)));
            }
            self.body = Some((stream, length, end));
            return Ok(None);
        }
        fill(&mut partial, bytes, 9 + length);
        if partial.len() < 9 + length {
            self.partial = partial;
            return Ok(None);
        }
        let event = self.whole(&partial);
        partial.clear();
        self.partial = partial; // its memory is used again
        event
    }

    fn whole(&mut self, frame: &[u8]) -> Result<Option<Event>, Malformed> {
        let (length, kind, flags, stream) = header(frame);
        let mut payload = &frame[9..];
        if length > FRAME_BYTES {
            return Err(Malformed("a frame too long"));
        }
        if self.section.is_some() != (kind == CONTINUATION) {
            return Err(Malformed("a section interrupted, or continued without a beginning"));
        }
        if matches!(kind, DATA | HEADERS | RST_STREAM | CONTINUATION) == (stream == 0)
            && kind <= CONTINUATION
            && !matches!(kind, WINDOW_UPDATE | 2)
        {
            return Err(Malformed("a frame on the wrong stream"));
        }
        if matches!(kind, DATA | HEADERS) && flags & PADDED != 0 {
            let (&pad, rest) = payload.split_first().ok_or(Malformed("no length of padding"))?;
            let kept =
                rest.len().checked_sub(usize::from(pad)).ok_or(Malformed("more padding than frame"))?;
            payload = &rest[..kept];
        }
        let end = flags & END_STREAM != 0;
        match kind {
            DATA => return Ok(Some(self.took_body(stream, payload.len(), length, end))),
            HEADERS => {
                if flags & PRIORITY != 0 {
                    payload = payload.get(5..).ok_or(Malformed("no priority"))?;
                }
                self.block.clear();
                self.section = Some((stream, end));
                return self.section_piece(stream, payload, flags);
            }
            CONTINUATION => return self.section_piece(stream, payload, flags),
            RST_STREAM => return Ok(Some(Event::Reset { stream, code: number(payload)? })),
            SETTINGS if flags & ACK == 0 => return self.take_settings(payload),
            PUSH_PROMISE => return Err(Malformed("push")),
            PING if flags & ACK == 0 => {
                if payload.len() != 8 {
                    return Err(Malformed("a ping of other than eight octets"));
                }
                self.frame_head(8, PING, ACK, 0);
                self.out.extend_from_slice(payload);
            }
            GOAWAY => {
                let code = number(payload.get(4..).unwrap_or_default())?;
                return Ok(Some(Event::GoAway { last: number(payload)? & 0x7fff_ffff, code }));
            }
            WINDOW_UPDATE => {
                let more = i64::from(number(payload)? & 0x7fff_ffff);
                if stream == 0 {
                    self.window += more;
                }
                return Ok(Some(Event::Window { stream, more }));
            }
            _ => {} // acknowledgements, priorities, and what is not known
        }
        Ok(None)
    }

    fn section_piece(&mut self, stream: u32, piece: &[u8], flags: u8) -> Result<Option<Event>, Malformed> {
        let Some((begun, end)) = self.section else { return Err(Malformed("no section")) };
        if begun != stream || self.block.len() + piece.len() > BLOCK_BYTES_MAX {
            return Err(Malformed("a section of two streams, or too long"));
        }
        self.block.extend_from_slice(piece);
        if flags & END_HEADERS == 0 {
            return Ok(None);
        }
        self.section = None;
        self.head.clear();
        let (head, mut judged) = (&mut self.head, Ok(()));
        self.decoder.decode(&self.block, |name, value| {
            if judged.is_ok() {
                judged = head.take(name, value);
            }
        })?;
        judged?;
        Ok(Some(Event::Head { stream, end }))
    }

    fn took_body(&mut self, stream: u32, bytes: usize, flow: usize, end: bool) -> Event {
        let flow = flow as u32; // at most a frame
        self.taken += flow;
        if self.taken >= CONNECTION_WINDOW / 2 {
            let taken = std::mem::take(&mut self.taken);
            self.window_update(0, taken);
        }
        Event::Body { stream, bytes: bytes as u64, flow, end }
    }

    fn take_settings(&mut self, payload: &[u8]) -> Result<Option<Event>, Malformed> {
        if !payload.len().is_multiple_of(6) {
            return Err(Malformed("settings cut short"));
        }
        let mut change = None;
        for setting in payload.chunks_exact(6) {
            let value = number(&setting[2..])?;
            match u16::from_be_bytes([setting[0], setting[1]]) {
                1 => self.encoder.set_table_max(value),
                3 => self.streams_max = value,
                4 => {
                    let before = std::mem::replace(&mut self.stream_window, i64::from(value));
                    change = Some(change.unwrap_or(0) + self.stream_window - before);
                }
                5 => self.frame_max = (value as usize).clamp(FRAME_BYTES, 4 * FRAME_BYTES),
                _ => {}
            }
        }
        self.frame_head(0, SETTINGS, ACK, 0);
        Ok(change.map(Event::InitialWindow))
    }

    // --- out ---

    /// What is to be written, in order.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// So many octets of it were.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
    }

    /// A field section; `write` tells its fields to the encoder.
    pub(crate) fn send_head(
        &mut self,
        stream: u32,
        end: bool,
        write: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        let mut block = std::mem::take(&mut self.scratch);
        block.clear();
        self.encoder.begin(&mut block);
        write(&mut self.encoder, &mut block);
        let mut pieces = block.chunks(self.frame_max.max(1)).peekable();
        let (mut kind, mut flags) = (HEADERS, if end { END_STREAM } else { 0 });
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= END_HEADERS;
            }
            self.frame_head(piece.len(), kind, flags, stream);
            self.out.extend_from_slice(piece);
            (kind, flags) = (CONTINUATION, 0);
        }
        self.scratch = block;
    }

    /// How much of a stream's body fits in one frame now.
    pub(crate) fn room(&self, stream_window: i64) -> usize {
        usize::try_from(self.window.min(stream_window)).unwrap_or(0).min(self.frame_max)
    }

    /// One DATA frame, no longer than [`Framer::room`].
    pub(crate) fn send_body(&mut self, stream: u32, bytes: &[u8], end: bool) {
        self.window -= bytes.len() as i64;
        self.frame_head(bytes.len(), DATA, if end { END_STREAM } else { 0 }, stream);
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn window_update(&mut self, stream: u32, more: u32) {
        self.frame_head(4, WINDOW_UPDATE, 0, stream);
        self.out.extend_from_slice(&more.to_be_bytes());
    }

    pub(crate) fn reset(&mut self, stream: u32, code: u32) {
        self.frame_head(4, RST_STREAM, 0, stream);
        self.out.extend_from_slice(&code.to_be_bytes());
    }

    pub(crate) fn go_away(&mut self, last: u32, code: u32) {
        self.frame_head(8, GOAWAY, 0, 0);
        self.out.extend_from_slice(&last.to_be_bytes());
        self.out.extend_from_slice(&code.to_be_bytes());
    }

    fn settings(&mut self, values: &[(u16, u32)]) {
        self.frame_head(6 * values.len(), SETTINGS, 0, 0);
        for (name, value) in values {
            self.out.extend_from_slice(&name.to_be_bytes());
            self.out.extend_from_slice(&value.to_be_bytes());
        }
        self.window_update(0, CONNECTION_WINDOW - WINDOW_DEFAULT);
    }

    fn frame_head(&mut self, length: usize, kind: u8, flags: u8, stream: u32) {
        let [_, a, b, c] = (length as u32).to_be_bytes(); // at most a frame
        self.out.extend_from_slice(&[a, b, c, kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
    }
}

/// Length, kind, flags, stream; `bytes` has at least nine.
fn header(bytes: &[u8]) -> (usize, u8, u8, u32) {
    let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
    let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]) & 0x7fff_ffff;
    (length, bytes[3], bytes[4], stream)
}

/// Octets of the frame that `bytes` begin with, if it is all there.
fn whole_frame(bytes: &[u8]) -> Option<usize> {
    let length = 9 + header(bytes.get(..9)?).0;
    (bytes.len() >= length).then_some(length)
}

/// Moves octets into `partial` until it has `wanted`.
fn fill(partial: &mut Vec<u8>, bytes: &mut &[u8], wanted: usize) {
    let here = wanted.saturating_sub(partial.len()).min(bytes.len());
    partial.extend_from_slice(&bytes[..here]);
    *bytes = &bytes[here..];
}

fn number(bytes: &[u8]) -> Result<u32, Malformed> {
    let four = bytes.first_chunk::<4>().ok_or(Malformed("a frame too short"))?;
    Ok(u32::from_be_bytes(*four))
}

#[cfg(test)]
#[path = "framer_test.rs"]
mod tests;
