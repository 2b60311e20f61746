//! Responses: taken from HTTP/1.1, prepared for an HTTP/2 caller, and written for an HTTP/1.1 one.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue, InvalidHeaderValue};
use http::{Response, StatusCode, response};

use super::names::name;
use super::origin::ORIGIN_FIELD;
use super::request;
use crate::failure::Cause;
use crate::http::fields::{Known, known, write_u64};
use crate::http::h1::{self, ResponseOptions, write_field, write_status_line};
use crate::http::websocket::Accept;
use crate::http::{Framing, Version};
use crate::shard::clock::Clock;

/// The values of a head in one piece that they share, so that each is not copied by itself. Of short heads only: the table of what was
/// said before, which h2 keeps for each connection, can hold a hundred values of as many heads, and there may be many callers.
struct Values {
    shared: Bytes,
    at: usize,
}

impl Values {
    const MAX: usize = 256;

    fn of(response: &h1::Response<'_>) -> Self {
        let length = response.parts().iter().map(|part| part.value.len()).sum::<usize>();
        let mut all = Vec::new();
        if length <= Self::MAX {
            all.reserve_exact(length);
            response.parts().iter().for_each(|part| all.extend_from_slice(part.value));
        }
        Self { shared: all.into(), at: 0 }
    }

    /// The next one, which is this.
    fn next(&mut self, value: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
        let at = self.at;
        self.skip(value);
        match self.at > self.shared.len() {
            true => HeaderValue::from_bytes(value),
            false => HeaderValue::from_maybe_shared(self.shared.slice(at..self.at)),
        }
    }

    /// The next one, which is this, is not wanted.
    fn skip(&mut self, value: &[u8]) {
        self.at += value.len();
    }
}

/// A response head that came by HTTP/1.1, for an HTTP/2 caller.
///
/// # Errors
/// When a part of it cannot be said in HTTP/2.
pub fn from_h1(response: &h1::Response<'_>, clock: &Clock) -> Result<Response<()>, Cause> {
    let mut out = Response::new(());
    *out.status_mut() = StatusCode::from_u16(response.status).map_err(|_| Cause::BadStartLine)?;
    *out.version_mut() = http::Version::HTTP_2;
    let headers = out.headers_mut();
    headers.reserve(response.parts().len() + 1);
    let mut values = Values::of(response);
    for part in response.parts() {
        if response.is_end_to_end(part) {
            let name = name(part.name).map_err(|_| Cause::BadFieldName)?;
            headers.append(name, values.next(part.value).map_err(|_| Cause::BadFieldValue)?);
        } else {
            values.skip(part.value);
        }
    }
    if !response.is_interim() {
        if let Some(length) = response.length_to_tell() {
            headers.append(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if !response.has_date() {
            add_date(headers, clock);
        }
    }
    Ok(out)
}

/// Makes a response that came by HTTP/2 ready for an HTTP/2 caller.
pub fn end_to_end(parts: &mut response::Parts, clock: &Clock) {
    let mut has_date = false;
    super::remove(&mut parts.headers, |name| match known(name.as_str()) {
        Known::HopByHop => true,
        Known::Date => {
            has_date = true;
            false
        }
        _ => name.as_str() == ORIGIN_FIELD,
    });
    parts.version = http::Version::HTTP_2;
    if !has_date && !parts.status.is_informational() {
        add_date(&mut parts.headers, clock);
    }
}

/// How the body of a response that came by HTTP/2 ends for an HTTP/1.1 caller. `ended`: there is none.
///
/// # Errors
/// When its Content-Length is none.
pub(crate) fn framing(
    parts: &response::Parts,
    ended: bool,
    head: bool,
    version: Version,
) -> Result<Framing, Cause> {
    let length = request::length(&parts.headers)?;
    Ok(match (parts.status.as_u16(), length) {
        (100..200 | 204 | 304, _) => Framing::None,
        _ if head => Framing::None,
        (_, Some(n)) => Framing::Length(n),
        (_, None) if ended => Framing::Length(0),
        (_, None) if version == Version::Http10 => Framing::UntilClose,
        (_, None) => Framing::Chunked,
    })
}

/// Writes a response that came by HTTP/2 for an HTTP/1.1 caller.
pub fn write_h1_response(
    parts: &response::Parts,
    options: ResponseOptions,
    clock: &Clock,
    out: &mut Vec<u8>,
) {
    write_status_line(parts.status, out);
    let mut has_date = false;
    let mut length = None;
    for (name, value) in &parts.headers {
        match known(name.as_str()) {
            Known::Connection | Known::HopByHop | Known::KeepAlive | Known::Te | Known::Upgrade => continue,
            Known::TransferEncoding => continue,
            Known::ContentLength => {
                length = Some(value);
                continue;
            }
            Known::Date => has_date = true,
            Known::Other if name.as_str() == ORIGIN_FIELD => continue,
            _ => {}
        }
        write_field(name.as_str(), value.as_bytes(), out);
    }
    if !parts.status.is_informational() {
        if !has_date {
            out.extend_from_slice(b"date: ");
            clock.write_date(out);
            out.extend_from_slice(b"\r\n");
        }
        match (options.framing, length) {
            (Framing::Length(n), _) => {
                out.extend_from_slice(b"content-length: ");
                write_u64(n, out);
                out.extend_from_slice(b"\r\n");
            }
            (Framing::Chunked, _) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            (Framing::None, Some(value)) if parts.status != StatusCode::NO_CONTENT => {
                write_field("content-length", value.as_bytes(), out);
            }
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

/// Makes the answer that begins a tunnel ready for an HTTP/2 caller: 200, without what only HTTP/1.1 says.
pub fn agree(parts: &mut response::Parts, clock: &Clock) {
    parts.status = StatusCode::OK;
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    end_to_end(parts, clock);
}

/// Writes the answer that agrees to an extended CONNECT as the one to a WebSocket handshake that wants this accept.
pub fn write_h1_agreed(parts: &mut response::Parts, accept: &Accept, clock: &Clock, out: &mut Vec<u8>) {
    parts.status = StatusCode::SWITCHING_PROTOCOLS;
    parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    let options = ResponseOptions { version: Version::Http11, framing: Framing::None, close: false };
    write_h1_response(parts, options, clock, out);
    // In place of the empty line.
    out.truncate(out.len() - 2);
    out.extend_from_slice(b"sec-websocket-accept: ");
    out.extend_from_slice(accept);
    out.extend_from_slice(b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
}

/// Adds our hop to Via: one more field, as the list's end (RFC 9110 §7.6.3, §5.3).
pub fn append_via(headers: &mut HeaderMap, version: &str, pseudonym: &str) {
    let mut value = Vec::with_capacity(version.len() + 1 + pseudonym.len());
    value.extend_from_slice(version.as_bytes());
    value.push(b' ');
    value.extend_from_slice(pseudonym.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        headers.append(header::VIA, value);
    }
}

fn add_date(headers: &mut HeaderMap, clock: &Clock) {
    let mut date = Vec::with_capacity(32);
    clock.write_date(&mut date);
    if let Ok(value) = HeaderValue::from_bytes(&date) {
        headers.insert(header::DATE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Method;
    use crate::http::h1::Parsed;
    use crate::http::h1::head_test::NEXT_LIMITS;

    /// Whatever their number and length, and whatever lies between them that is not passed on.
    #[test]
    fn each_field_of_a_response_from_http1_has_its_own_value() {
        for length in [0, 1, 20, Values::MAX / 3, Values::MAX, 3000] {
            let value = |n: u8| char::from(b'a' + n).to_string().repeat(length);
            let (a, b, c) = (value(0), value(1), value(2));
            let head = format!(
                "HTTP/1.1 200 OK\r\nx-a: {a}\r\nKeep-Alive: timeout=5\r\nConnection: x-gone\r\nX-B: {b}\r\nx-gone: \
                 gone\r\nx-b: {c}\r\ncontent-length: 7\r\ndate: today\r\n\r\n"
            );
            let read = h1::read_response(head.as_bytes(), &NEXT_LIMITS, Method::Idempotent, |response| {
                from_h1(response, &Clock::new())
            });
            let Parsed::Whole(Ok(response)) = read else { panic!("{read:?}") };
            let fields: Vec<_> =
                response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            let wanted: [(&str, &[u8]); 5] = [
                ("x-a", a.as_bytes()),
                ("x-b", b.as_bytes()),
                ("x-b", c.as_bytes()),
                ("date", b"today"),
                ("content-length", b"7"),
            ];
            assert_eq!(fields, wanted, "{length}");
        }
    }
}
