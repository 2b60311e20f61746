//! Responses made by the proxy itself.
//!
//! They say in plain words what happened and, where allowed, in `x-ringmesh-failure` which hop failed and why, so that
//! whoever calls need not guess whether a 503 came from the service or from the mesh.

use bytes::Bytes;

use super::fields::write_u64;
use super::grpc::{self, Code, Dialect};
use super::h1::{write_field, write_status_line};
use crate::failure::{Cause, Failure, Side};
use crate::shard::clock::Clock;

/// The name of the field that tells which hop failed and why.
pub const FAILURE_FIELD: &str = "x-ringmesh-failure";

/// What a response made here depends on.
#[derive(Debug, Clone, Copy)]
pub struct Told<'s> {
    /// The service meant, where one was found.
    pub service: Option<&'s str>,
    /// Whether the caller may know what failed.
    pub failure_field: bool,
    /// Whether the request was HEAD, so that no body may follow.
    pub head: bool,
    /// Whether the connection ends after it.
    pub close: bool,
    /// Whether the caller spoke HTTP/1.0, where a connection lives on only if told so.
    pub http10: bool,
    /// The limit that a request met which came too soon.
    pub quota: Option<Exceeded<'s>>,
    /// How a gRPC caller speaks it, and the code: it gets a trailers-only response.
    pub grpc: Option<(Dialect, Code)>,
}

/// What is told of a limit (draft-ietf-httpapi-ratelimit-headers): `ratelimit-policy` and `ratelimit`.
#[derive(Debug, Clone, Copy)]
pub struct Exceeded<'s> {
    /// Its name.
    pub name: &'s str,
    /// So many requests at once, and as many in so many seconds, where that is known.
    pub policy: Option<(u32, u64)>,
    /// When the next one may come, where that is known.
    pub wait_seconds: Option<u64>,
}

impl Exceeded<'_> {
    /// Names and values of the fields.
    fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self { name, policy, wait_seconds } = self;
        let wait = wait_seconds.map(|wait| ("retry-after", wait.to_string()));
        let policy =
            policy.map(|(quota, window)| ("ratelimit-policy", format!("\"{name}\";q={quota};w={window}")));
        let left = wait_seconds.map_or_else(String::new, |wait| format!(";t={wait}"));
        [
            wait,
            policy,
            Some(("ratelimit", format!("\"{name}\";r=0{left}"))),
            // So that no proxy on the way tries again: Envoy's name for it.
            Some(("x-envoy-ratelimited", "true".into())),
        ]
        .into_iter()
        .flatten()
    }
}

/// Writes the response for a failure.
pub fn write_failure(failure: Failure, told: Told<'_>, clock: &Clock, out: &mut Vec<u8>) {
    let body = failure_text(failure, told);
    start(status(failure, told), clock, out);
    if status(failure, told) == 405 {
        // RFC 9110 §15.5.6 wants to be told what is allowed.
        out.extend_from_slice(b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
    }
    if let Some(seconds) = retry_after(failure) {
        out.extend_from_slice(b"retry-after: ");
        out.extend_from_slice(seconds.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in told.quota.iter().flat_map(Exceeded::fields) {
        for part in [name, ": ", &value, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    if told.failure_field {
        out.extend_from_slice(FAILURE_FIELD.as_bytes());
        out.extend_from_slice(b": ");
        failure.write_label(out);
        out.extend_from_slice(b"\r\n");
    }
    if let Some((dialect, code)) = told.grpc {
        for part in ["content-type: ", dialect.media_type(), "\r\ngrpc-status: "] {
            out.extend_from_slice(part.as_bytes());
        }
        write_u64(code as u64, out);
        out.extend_from_slice(b"\r\ngrpc-message: ");
        out.extend_from_slice(message(&body).as_bytes());
        out.extend_from_slice(b"\r\ncontent-length: 0\r\n");
        end(told, out);
        return;
    }
    out.extend_from_slice(b"content-type: text/plain; charset=utf-8\r\ncontent-length: ");
    write_u64(body.len() as u64, out);
    out.extend_from_slice(b"\r\n");
    end(told, out);
    if !told.head {
        out.extend_from_slice(&body);
    }
}

/// The status for a failure: gRPC has its own.
pub fn status(failure: Failure, told: Told<'_>) -> u16 {
    if told.grpc.is_some() { 200 } else { failure.status() }
}

/// When to come again, for those who were turned away because there is too much for now: seconds is all that can be said, and
/// one is the least.
fn retry_after(failure: Failure) -> Option<&'static str> {
    matches!(failure.cause, Cause::QueueFull | Cause::QueueTimeout | Cause::NotAdmitted).then_some("1")
}

/// The response for a failure, for a caller that speaks HTTP/2.
pub fn typed_failure(failure: Failure, told: Told<'_>, clock: &Clock) -> (http::Response<()>, Bytes) {
    let mut label = Vec::with_capacity(64);
    failure.write_label(&mut label);
    let mut response = http::Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    let status = http::StatusCode::from_u16(status(failure, told));
    *response.status_mut() = status.unwrap_or(http::StatusCode::BAD_GATEWAY);
    let fields = response.headers_mut();
    let mut date = Vec::with_capacity(32);
    clock.write_date(&mut date);
    let mut add = |name: &'static str, value: &[u8]| {
        // Words of ours and a date: always legal.
        if let Ok(value) = http::HeaderValue::from_bytes(value) {
            fields.insert(name, value);
        }
    };
    add("date", &date);
    if let Some(seconds) = retry_after(failure) {
        add("retry-after", seconds.as_bytes());
    }
    for (name, value) in told.quota.iter().flat_map(Exceeded::fields) {
        add(name, value.as_bytes());
    }
    if told.failure_field {
        add(FAILURE_FIELD, &label);
    }
    let text = failure_text(failure, told);
    if let Some((dialect, code)) = told.grpc {
        add("content-type", dialect.media_type().as_bytes());
        add("grpc-status", (code as u8).to_string().as_bytes());
        add("grpc-message", message(&text).as_bytes());
        return (response, Bytes::new());
    }
    add("content-type", b"text/plain; charset=utf-8");
    add("content-length", text.len().to_string().as_bytes());
    (response, if told.head { Bytes::new() } else { text.into() })
}

/// The same for `grpc-message`.
fn message(text: &[u8]) -> String {
    grpc::encode_message(String::from_utf8_lossy(text).trim_end())
}

/// What a person reads.
fn failure_text(failure: Failure, told: Told<'_>) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    body.extend_from_slice(b"ringmesh: ");
    if told.failure_field {
        failure.write_label(&mut body);
        if let (Side::Upstream, Some(service)) = (failure.side, told.service) {
            body.extend_from_slice(b" (service ");
            body.extend_from_slice(service.as_bytes());
            body.push(b')');
        }
    } else {
        body.extend_from_slice(reason(failure.status()).as_bytes());
    }
    body.push(b'\n');
    body
}

/// Writes a response that a route makes.
pub fn write_made(
    parts: &http::response::Parts,
    body: &[u8],
    told: Told<'_>,
    clock: &Clock,
    out: &mut Vec<u8>,
) {
    write_status_line(parts.status, out);
    for (name, value) in &parts.headers {
        write_field(name.as_str(), value.as_bytes(), out);
    }
    if !parts.headers.contains_key(http::header::DATE) {
        out.extend_from_slice(b"date: ");
        clock.write_date(out);
        out.extend_from_slice(b"\r\n");
    }
    // RFC 9110 §8.6: 204 has none, and of 304 it would speak of another body.
    let has_body = !matches!(parts.status.as_u16(), 204 | 304);
    if has_body {
        out.extend_from_slice(b"content-length: ");
        write_u64(body.len() as u64, out);
        out.extend_from_slice(b"\r\n");
    }
    end(told, out);
    if has_body && !told.head {
        out.extend_from_slice(body);
    }
}

/// The same, for a caller that speaks HTTP/2.
pub fn typed_made(
    mut parts: http::response::Parts,
    body: Bytes,
    head: bool,
    clock: &Clock,
) -> (http::Response<()>, Bytes) {
    parts.version = http::Version::HTTP_2;
    let has_body = !matches!(parts.status.as_u16(), 204 | 304);
    let fields = &mut parts.headers;
    if has_body && !fields.contains_key("grpc-status") {
        fields.insert(http::header::CONTENT_LENGTH, body.len().into());
    }
    let mut date = Vec::with_capacity(32);
    clock.write_date(&mut date);
    if let Ok(date) = http::HeaderValue::from_bytes(&date) {
        fields.entry(http::header::DATE).or_insert(date);
    }
    (http::Response::from_parts(parts, ()), if has_body && !head { body } else { Bytes::new() })
}

/// Writes the answer to an OPTIONS request that may not go further (Max-Forwards: 0, RFC 9110 §7.6.2).
pub fn write_options(told: Told<'_>, clock: &Clock, out: &mut Vec<u8>) {
    start(200, clock, out);
    out.extend_from_slice(b"content-length: 0\r\n");
    end(told, out);
}

/// Writes the answer to a CONNECT: from here on the connection is the tunnel's (RFC 9110 §9.3.6: no framing fields).
pub fn write_connected(clock: &Clock, out: &mut Vec<u8>) {
    start(200, clock, out);
    out.extend_from_slice(b"\r\n");
}

fn start(status: u16, clock: &Clock, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_u64(status.into(), out);
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\ndate: ");
    clock.write_date(out);
    out.extend_from_slice(b"\r\n");
}

fn end(told: Told<'_>, out: &mut Vec<u8>) {
    if told.close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if told.http10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase of a status that the proxy makes (RFC 9110 §15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Error",
    }
}
