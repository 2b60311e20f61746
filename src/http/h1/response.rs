//! A response head: taken apart, judged, and written anew for the caller.

use std::mem::MaybeUninit;

use super::request::write_field;
use super::{Parsed, cause_of, has_bare_line_ends};
use crate::failure::Cause;
use crate::http::fields::{self, ConnectionOptions, FramingFields, Known, known, write_u64};
use crate::http::websocket::Accept;
use crate::http::{Framing, Method, Version};
use crate::shard::clock::Clock;
use crate::snapshot::Limits;

/// A response head that broke no rule. Borrows from the buffer that it was read from.
#[derive(Debug)]
pub struct Response<'b> {
    /// 100 to 599.
    pub status: u16,
    /// The version of the origin.
    pub version: Version,
    /// How the body ends, the request's method considered.
    pub framing: Framing,
    /// Whether the origin lets the connection live after the response.
    pub keep_alive: bool,
    /// Seconds that the origin says it keeps an idle connection for (`Keep-Alive: timeout=`).
    pub idle_seconds: Option<u64>,
    /// Bytes of the head in the buffer.
    pub head_len: usize,
    reason: &'b str,
    has_date: bool,
    length: Option<u64>,
    connection: ConnectionOptions<'b>,
    parts: &'b [httparse::Header<'b>],
}

/// How a response is passed on.
#[derive(Debug, Clone, Copy)]
pub struct ResponseOptions {
    /// The version of the request.
    pub version: Version,
    /// How the body's end is told to the caller.
    pub framing: Framing,
    /// Whether this connection ends after the response.
    pub close: bool,
}

/// Adds a field to a head that has just been written.
pub fn add_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    debug_assert!(out.ends_with(b"\r\n\r\n"), "not behind a head");
    out.truncate(out.len() - 2);
    write_field(name, value, out);
    out.extend_from_slice(b"\r\n");
}

/// Reads a response head from the front of `buffer` and calls `then` with it.
pub fn read_response<R>(
    buffer: &[u8],
    limits: &Limits,
    method: Method,
    then: impl FnOnce(&Response<'_>) -> R,
) -> Parsed<R> {
    read(buffer, limits, method, None, then)
}

/// As [`read_response`], for a WebSocket handshake: a 101 is taken when it has this answer to the caller's key.
pub fn read_handshake_response<R>(
    buffer: &[u8],
    limits: &Limits,
    accept: &Accept,
    then: impl FnOnce(&Response<'_>) -> R,
) -> Parsed<R> {
    read(buffer, limits, Method::Idempotent, Some(accept), then)
}

fn read<R>(
    buffer: &[u8],
    limits: &Limits,
    method: Method,
    accept: Option<&Accept>,
    then: impl FnOnce(&Response<'_>) -> R,
) -> Parsed<R> {
    // httparse skips empty lines, which are forgiven before requests only: here they are what is left of another response.
    if buffer.first().is_some_and(|first| *first != b'H') {
        return Parsed::Refused(Cause::BadStartLine);
    }
    let mut parts = [const { MaybeUninit::uninit() }; Limits::FIELDS_CEILING as usize];
    let fields_max = usize::from(limits.fields_max.min(Limits::FIELDS_CEILING));
    let mut parsed = httparse::Response::new(&mut []);
    let result = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        buffer,
        &mut parts[..fields_max],
    );
    match result {
        Ok(httparse::Status::Complete(len)) if len > limits.head_bytes_max as usize => {
            Parsed::Refused(Cause::HeadTooLarge)
        }
        Ok(httparse::Status::Complete(len)) if has_bare_line_ends(&buffer[..len]) => {
            Parsed::Refused(Cause::BareCrOrLf)
        }
        Ok(httparse::Status::Complete(len)) => match Response::judge(parsed, len, method, accept) {
            Ok(response) => Parsed::Whole(then(&response)),
            Err(cause) => Parsed::Refused(cause),
        },
        Ok(httparse::Status::Partial) if buffer.len() >= limits.head_bytes_max as usize => {
            Parsed::Refused(Cause::HeadTooLarge)
        }
        Ok(httparse::Status::Partial) => Parsed::Partial,
        Err(error) => Parsed::Refused(cause_of(error, buffer)),
    }
}

impl<'b> Response<'b> {
    fn judge(
        parsed: httparse::Response<'b, 'b>,
        head_len: usize,
        method: Method,
        accept: Option<&Accept>,
    ) -> Result<Self, Cause> {
        let status = parsed.code.ok_or(Cause::BadStartLine)?;
        if !(100..600).contains(&status) {
            return Err(Cause::BadStartLine);
        }
        let version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
        let mut response = Self {
            status,
            version,
            framing: Framing::None,
            keep_alive: true,
            idle_seconds: None,
            head_len,
            reason: parsed.reason.unwrap_or_default(),
            has_date: false,
            length: None,
            connection: ConnectionOptions::default(),
            parts: parsed.headers,
        };
        let mut framing = FramingFields::default();
        for part in response.parts {
            match known(part.name) {
                Known::Connection => response.connection.read(part.value)?,
                Known::ContentLength => framing.length(part.value)?,
                Known::TransferEncoding => framing.encoding(part.value)?,
                Known::Date => response.has_date = true,
                Known::KeepAlive => response.idle_seconds = idle_seconds(part.value),
                Known::Other | Known::HopByHop | Known::Expect | Known::Forwarded | Known::Host => {}
                Known::MaxForwards | Known::Te | Known::Upgrade | Known::Via | Known::FailureReport => {}
                Known::ClientCert => {}
                Known::XForwardedFor | Known::XForwardedHost | Known::XForwardedProto => {}
                Known::SecWebSocketKey => {}
            }
        }
        let framed = framing.framing(version == Version::Http10, Framing::UntilClose)?;
        response.length = framing.length_value();
        response.framing = match (status, method) {
            (101, _) if !accept.is_some_and(|accept| response.is_handshake(accept)) => {
                return Err(Cause::UnexpectedUpgrade);
            }
            (100..200 | 204 | 304, _) | (_, Method::Head) => Framing::None,
            _ => framed,
        };
        response.keep_alive = match version {
            Version::Http11 => !response.connection.close,
            Version::Http10 => response.connection.keep_alive && !response.connection.close,
        } && response.framing != Framing::UntilClose;
        Ok(response)
    }

    /// Trailers that Connection nominates: they concern this hop only, like the fields of these names.
    pub fn nominated_trailers(&self) -> Vec<Box<str>> {
        if self.framing == Framing::Chunked { self.connection.nominated_trailers() } else { Vec::new() }
    }

    /// The value of the first line of a field.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.parts.iter().find(|part| part.name.eq_ignore_ascii_case(name)).map(|part| part.value)
    }

    /// The fields as they came.
    pub(in crate::http) fn parts(&self) -> &[httparse::Header<'b>] {
        self.parts
    }

    /// Whether one of its fields may be passed on; framing may not.
    pub(in crate::http) fn is_end_to_end(&self, part: &httparse::Header<'_>) -> bool {
        let hop = matches!(
            known(part.name),
            Known::Connection
                | Known::HopByHop
                | Known::KeepAlive
                | Known::Te
                | Known::Upgrade
                | Known::TransferEncoding
                | Known::ContentLength
        );
        !hop && !self.connection.nominates(part.name)
    }

    /// Whether it says when it was made.
    pub(in crate::http) fn has_date(&self) -> bool {
        self.has_date && !self.connection.nominates("date")
    }

    /// The Content-Length that a caller is told: the body's, or what a GET would have been answered with.
    pub(in crate::http) fn length_to_tell(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(n) => Some(n),
            Framing::None if self.status != 204 => self.length,
            _ => None,
        }
    }

    /// Whether it changes to WebSocket, to nothing else, and proves that it means the caller's handshake.
    fn is_handshake(&self, accept: &Accept) -> bool {
        let values = |name: &'static str| {
            self.parts.iter().filter(move |part| part.name.eq_ignore_ascii_case(name)).map(|part| part.value)
        };
        let mut accepts = values("sec-websocket-accept");
        let mut protocols = values("upgrade").flat_map(fields::list);
        self.version == Version::Http11
            && self.connection.upgrade
            && protocols.next().is_some_and(|p| p.eq_ignore_ascii_case(b"websocket"))
            && protocols.next().is_none()
            && accepts.next() == Some(accept)
            && accepts.next().is_none()
    }

    /// Whether it has a field of that name, which is written in lower case.
    pub fn has_field(&self, name: &str) -> bool {
        self.parts.iter().any(|field| field.name.eq_ignore_ascii_case(name))
    }

    /// Whether it is one of those before the final one (RFC 9110 §15.2).
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// Writes a response head for the caller: HTTP/1.1, canonical, without what concerned only the last hop.
pub fn write_response_head(
    response: &Response<'_>,
    options: ResponseOptions,
    clock: &Clock,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_u64(response.status.into(), out);
    out.push(b' ');
    out.extend_from_slice(response.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for part in response.parts {
        match known(part.name) {
            Known::Connection | Known::HopByHop | Known::KeepAlive | Known::Te | Known::Upgrade => continue,
            Known::TransferEncoding | Known::ContentLength => continue,
            // A failure further down the chain is of use to the caller: which hop it was stays in it.
            Known::FailureReport
            | Known::Other
            | Known::Date
            | Known::Expect
            | Known::Forwarded
            | Known::Host => {}
            Known::MaxForwards | Known::Via | Known::ClientCert => {}
            Known::XForwardedFor | Known::XForwardedHost | Known::XForwardedProto => {}
            Known::SecWebSocketKey => {}
        }
        if !response.connection.nominates(part.name) {
            write_field(part.name, part.value, out);
        }
    }
    if response.status == 101 {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    }
    if !response.is_interim() {
        if !response.has_date {
            out.extend_from_slice(b"date: ");
            clock.write_date(out);
            out.extend_from_slice(b"\r\n");
        }
        match (options.framing, response.length) {
            (Framing::Length(n), _) => write_length(n, out),
            (Framing::Chunked, _) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // What a GET would have been answered with (RFC 9110 §8.6); not for 204, which has none.
            (Framing::None, Some(n)) if response.status != 204 => write_length(n, out),
            (Framing::None | Framing::UntilClose, _) => {}
        }
        if options.close {
            out.extend_from_slice(b"connection: close\r\n");
        } else if options.version == Version::Http10 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_length(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    write_u64(n, out);
    out.extend_from_slice(b"\r\n");
}

/// `timeout` of a Keep-Alive field, a hint that is not in any standard in force but widely sent.
fn idle_seconds(value: &[u8]) -> Option<u64> {
    fields::list(value).find_map(|option| {
        let at = memchr::memchr(b'=', option)?;
        let (name, seconds) = (option[..at].trim_ascii(), option[at + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"timeout") { fields::parse_u64(seconds) } else { None }
    })
}

/// Writes the status line of a response that was taken apart.
pub(in crate::http) fn write_status_line(status: http::StatusCode, out: &mut Vec<u8>) {
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
#[path = "response_test.rs"]
mod tests;
