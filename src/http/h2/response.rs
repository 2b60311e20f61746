//! Responses: taken from HTTP/1.1, prepared for an HTTP/2 caller, and written for an HTTP/1.1 one.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, response};

use super::origin::ORIGIN_FIELD;
use super::request;
use crate::failure::Cause;
use crate::http::fields::{Known, known, write_u64};
use crate::http::h1::{self, ResponseOptions, write_field, write_status_line};
use crate::http::websocket::Accept;
use crate::http::{Framing, Version};
use crate::shard::clock::Clock;

/// A response head that came by HTTP/1.1, for an HTTP/2 caller.
///
/// # Errors
/// When a part of it cannot be said in HTTP/2.
pub fn from_h1(response: &h1::Response<'_>, clock: &Clock) -> Result<Response<()>, Cause> {
    let mut out = Response::new(());
    *out.status_mut() = StatusCode::from_u16(response.status).map_err(|_| Cause::BadStartLine)?;
    *out.version_mut() = http::Version::HTTP_2;
    let mut refused = None;
    let headers = out.headers_mut();
    headers.reserve(response.parts().len() + 1);
    response.end_to_end(|name, value| {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            (Ok(name), Ok(value)) => drop(headers.append(name, value)),
            (Err(_), _) => refused = Some(Cause::BadFieldName),
            (_, Err(_)) => refused = Some(Cause::BadFieldValue),
        }
    });
    if let Some(cause) = refused {
        return Err(cause);
    }
    if !response.is_interim() {
        if let Some(length) = response.length_to_tell() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        add_date(headers, clock);
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
    if headers.contains_key(header::DATE) {
        return;
    }
    let mut date = Vec::with_capacity(32);
    clock.write_date(&mut date);
    if let Ok(value) = HeaderValue::from_bytes(&date) {
        headers.insert(header::DATE, value);
    }
}
