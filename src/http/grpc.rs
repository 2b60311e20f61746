//! gRPC as far as an intermediary must know it: the outcome of a call is in `grpc-status`, not in the status of HTTP.
//!
//! Messages are counted by their prefixes, on the way, and held by nobody; what is in them, how large they may be and how they
//! are compressed concerns nobody here. An answer that is not gRPC becomes one, without its body: clients should map its HTTP status
//! themselves (gRPC, http-grpc-status-mapping.md), but tonic takes its text for messages, and a browser sees nothing.

use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{StatusCode, response};

use super::grpc_web::Form;
use crate::failure::{Cause, Failure, Side};

/// How a call is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// gRPC over HTTP/2; also as it goes on where a hop speaks HTTP/1.1.
    Native,
    /// gRPC-Web.
    Web(Form),
}

impl Dialect {
    /// Of a request with this Content-Type.
    pub fn of(content_type: &[u8]) -> Option<Self> {
        let is = |dialect: &Self| {
            let media_type = dialect.media_type();
            content_type.split_at_checked(media_type.len()).is_some_and(|(head, rest)| {
                head.eq_ignore_ascii_case(media_type.as_bytes())
                    && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
            })
        };
        [Self::Native, Self::Web(Form::Binary), Self::Web(Form::Text)].into_iter().find(is)
    }

    /// Of a request with this head, as it came by HTTP/1.1 and was found right.
    pub fn of_head(head: &[u8]) -> Option<Self> {
        const NAME: &[u8] = b"content-type:";
        let mut lines = head.split(|octet| *octet == b'\n');
        let named = |line: &&[u8]| line.get(..NAME.len()).is_some_and(|n| n.eq_ignore_ascii_case(NAME));
        Self::of(lines.find(named)?[NAME.len()..].trim_ascii())
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Native => "application/grpc",
            Self::Web(form) => form.media_type(),
        }
    }
}

/// Codes that are made here (gRPC, statuscodes.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The caller went away.
    Cancelled = 1,
    /// Nobody knows.
    Unknown = 2,
    /// The deadline came first.
    DeadlineExceeded = 4,
    /// The caller may not.
    PermissionDenied = 7,
    /// A limit was met.
    ResourceExhausted = 8,
    /// There is no such method here.
    Unimplemented = 12,
    /// Something broke a rule.
    Internal = 13,
    /// The service cannot be reached now.
    Unavailable = 14,
    /// It is not known who calls.
    Unauthenticated = 16,
}

/// The code for a call that this proxy ends.
pub fn code_of(failure: Failure) -> Code {
    match failure.cause {
        Cause::StreamReset | Cause::Closed | Cause::Reset if failure.side == Side::Downstream => {
            Code::Cancelled
        }
        Cause::NoRoute => Code::Unimplemented,
        Cause::Timeout | Cause::StreamIdle => Code::DeadlineExceeded,
        Cause::Denied => Code::PermissionDenied,
        Cause::RateLimited | Cause::BodyTooLarge | Cause::HeadTooLarge | Cause::Flood => {
            Code::ResourceExhausted
        }
        _ if failure.side == Side::Downstream => code_of_status(failure.status()),
        _ => Code::Unavailable,
    }
}

/// The code for an answer that is not gRPC (gRPC, http-grpc-status-mapping.md).
pub fn code_of_status(status: u16) -> Code {
    match status {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Makes a trailers-only response of an answer that is not gRPC, for a caller that speaks `dialect`; whether it was one. Fields that
/// do not tell of its body stay.
pub fn adopt(parts: &mut response::Parts, dialect: Dialect) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let is_grpc = kind.map(|kind| Dialect::of(kind.as_bytes()).is_some());
    let is_ours = is_grpc.unwrap_or(parts.status == StatusCode::OK);
    if is_ours || parts.headers.contains_key("grpc-status") {
        return false;
    }
    let text = format!("ringmesh: HTTP status {} in place of a gRPC response", parts.status.as_u16());
    let code = code_of_status(parts.status.as_u16());
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE, header::TRAILER] {
        parts.headers.remove(name);
    }
    parts.status = StatusCode::OK;
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(dialect.media_type()));
    parts.headers.insert("grpc-status", HeaderValue::from(code as u16));
    if let Ok(message) = HeaderValue::from_str(&encode_message(&text)) {
        parts.headers.insert("grpc-message", message);
    }
    true
}

/// The code for a stream that the service has reset (gRPC over HTTP/2, "Errors").
pub fn code_of_reset(reason: h2::Reason) -> Code {
    match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

/// How a call ended, as far as telemetry tells outcomes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u8);

impl Status {
    /// How many there are.
    pub const COUNT: usize = 19;
    /// `grpc-status` is none of the codes from 0 to 16.
    pub const OTHER: Self = Self(17);
    /// The service ended the response without a `grpc-status`.
    pub const ABSENT: Self = Self(18);
    /// Their labels, by index.
    pub const LABELS: [&str; Self::COUNT] = [
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "other",
        "absent",
    ];

    /// Reads the value of `grpc-status`.
    pub fn read(value: &[u8]) -> Self {
        let known = Self::LABELS.iter().take(17).position(|label| label.as_bytes() == value);
        known.and_then(|code| u8::try_from(code).ok()).map_or(Self::OTHER, Self)
    }

    /// From 0, below [`Self::COUNT`].
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// The word in metrics and log: the code, `other` or `absent`.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// Whether it is the service's failure, or the proxy's: unknown, deadline exceeded, unimplemented, internal,
    /// unavailable, data loss (as OpenTelemetry's conventions have it for servers), and what is no proper end. The others
    /// are answers to what the caller asked.
    pub fn is_error(self) -> bool {
        matches!(self.0, 2 | 4 | 12..=15) || self == Self::OTHER || self == Self::ABSENT
    }

    /// Whether it says that the service is not well: deadline exceeded, resource exhausted, internal, unavailable, data loss (what
    /// Envoy's admission control does not call a success), and what is no status.
    pub fn is_overload_or_outage(self) -> bool {
        matches!(self.0, 4 | 8 | 13..=15) || self == Self::OTHER
    }
}

impl From<Code> for Status {
    fn from(code: Code) -> Self {
        Self(code as u8)
    }
}

/// Counts messages by their prefixes: a flag and four octets of length before each. What comes in pieces of any size is skipped,
/// not looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Messages {
    whole: u64,
    /// Octets of the prefix that have come, and the length as far as it is known.
    prefix: u8,
    left: u32,
}

impl Messages {
    const PREFIX: u8 = 5;

    /// Messages that have come to their end.
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// The next octets of a body.
    pub fn feed(&mut self, mut octets: &[u8]) {
        loop {
            if self.prefix == Self::PREFIX {
                let skipped = octets.len().min(self.left as usize);
                octets = &octets[skipped..];
                // At most `left`, which is a u32.
                self.left -= u32::try_from(skipped).unwrap_or(self.left);
                if self.left > 0 {
                    return;
                }
                self.whole += 1;
                self.prefix = 0;
            }
            let Some((octet, rest)) = octets.split_first() else { return };
            octets = rest;
            if self.prefix > 0 {
                self.left = self.left << 8 | u32::from(*octet);
            }
            self.prefix += 1;
        }
    }
}

/// Reads `grpc-timeout`: 1 to 8 digits and a unit.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0_u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes what is left of a timeout, never more than it is; of nothing a nanosecond, for a timeout is positive.
pub fn write_timeout(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let left = left.max(Duration::from_nanos(1));
    for (unit, n) in [
        ('n', left.as_nanos()),
        ('u', left.as_micros()),
        ('m', left.as_millis()),
        ('S', left.as_secs().into()),
        ('M', (left.as_secs() / 60).into()),
    ] {
        if n <= MOST {
            return format!("{n}{unit}");
        }
    }
    format!("{}H", left.as_secs() / 3600)
}

/// Percent-encodes a `grpc-message` (gRPC over HTTP/2, "Responses").
pub fn encode_message(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Stage;

    #[test]
    fn r05_timeouts_are_read_strictly_and_never_grow() {
        assert_eq!(timeout(b"1S"), Some(Duration::from_secs(1)));
        assert_eq!(timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", " 1S"] {
            assert_eq!(timeout(bad.as_bytes()), None, "{bad:?}");
        }
        let short = [0, 1, 999, 99_999_999, 100_000_000, 123_456_789_012, 9_999_999_999_999_999];
        let long = [99_999_999, 123_456_789, 5_999_999_999, 6_000_000_059, 99_999_999 * 3600];
        for left in short.map(Duration::from_nanos).into_iter().chain(long.map(Duration::from_secs)) {
            let again = timeout(write_timeout(left).as_bytes()).unwrap();
            let least = left.max(Duration::from_nanos(1));
            assert!(again <= least && least - again <= left / 1000, "{left:?} became {again:?}");
        }
    }

    #[test]
    fn r02_failures_have_the_codes_that_clients_expect() {
        let cases = [
            (Failure::local(Stage::Route, Cause::NoRoute), Code::Unimplemented),
            (Failure::upstream(Stage::Connect, Cause::Refused), Code::Unavailable),
            (Failure::upstream(Stage::Balance, Cause::NoEndpoint), Code::Unavailable),
            (Failure::upstream(Stage::Response, Cause::Timeout), Code::DeadlineExceeded),
            (Failure::downstream(Stage::Authorize, Cause::Denied), Code::PermissionDenied),
            (Failure::downstream(Stage::Request, Cause::StreamReset), Code::Cancelled),
        ];
        for (failure, code) in cases {
            assert_eq!(code_of(failure), code, "{failure}");
        }
        let map =
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (500, 2)];
        for (status, code) in map {
            assert_eq!(code_of_status(status) as u8, code, "{status}");
        }
    }

    #[test]
    fn dialects_are_told_by_their_media_type() {
        let of = |value: &str| Dialect::of(value.as_bytes());
        assert_eq!(of("application/grpc"), Some(Dialect::Native));
        assert_eq!(of("APPLICATION/grpc+proto"), Some(Dialect::Native));
        assert_eq!(of("application/grpc-web;x=y"), Some(Dialect::Web(Form::Binary)));
        assert_eq!(of("application/grpc-web-text"), Some(Dialect::Web(Form::Text)));
        for other in ["", "application/grp", "application/grpcx", "application/grpc-webs", "text/plain"] {
            assert_eq!(of(other), None, "{other}");
        }
        let head = b"POST / HTTP/1.1\r\nhost: a\r\nContent-Type:  application/grpc-web+proto \r\n\r\n";
        assert_eq!(Dialect::of_head(head), Some(Dialect::Web(Form::Binary)));
        assert_eq!(Dialect::of_head(b"GET / HTTP/1.1\r\nx-content-type: application/grpc\r\n\r\n"), None);
    }

    #[test]
    fn r04_resets_have_the_codes_that_clients_expect() {
        let map = [
            (h2::Reason::REFUSED_STREAM, 14),
            (h2::Reason::CANCEL, 1),
            (h2::Reason::ENHANCE_YOUR_CALM, 8),
            (h2::Reason::INADEQUATE_SECURITY, 7),
            (h2::Reason::NO_ERROR, 13),
            (h2::Reason::PROTOCOL_ERROR, 13),
            (h2::Reason::INTERNAL_ERROR, 13),
        ];
        for (reason, code) in map {
            assert_eq!(code_of_reset(reason) as u8, code, "{reason}");
        }
    }

    #[test]
    fn r09_statuses_are_codes_and_two_words() {
        for code in 0..=16 {
            let status = Status::read(code.to_string().as_bytes());
            assert_eq!((status.index(), status.label()), (code, &*code.to_string()));
        }
        for odd in ["", "17", "00", "-1", "ok", "other", "absent"] {
            assert_eq!(Status::read(odd.as_bytes()), Status::OTHER, "{odd:?}");
        }
        assert_eq!(Status::from(Code::Unavailable).label(), "14");
        assert!(Status::ABSENT.is_error() && Status::OTHER.is_error() && !Status::read(b"0").is_error());
        assert!(!Status::read(b"5").is_error(), "that there is no such thing is an answer");
    }

    #[test]
    fn r08_messages_are_counted_in_pieces_of_any_size() {
        let mut wire = Vec::new();
        for length in [0_u32, 1, 5, 300, 0, 70_000] {
            wire.push(0);
            wire.extend_from_slice(&length.to_be_bytes());
            wire.resize(wire.len() + length as usize, 0xff);
        }
        for size in [1, 2, 3, 4, 5, 6, 7, 1000, wire.len()] {
            let mut messages = Messages::default();
            for piece in wire.chunks(size) {
                messages.feed(piece);
            }
            assert_eq!(messages.whole(), 6, "pieces of {size}");
        }
        let mut cut = Messages::default();
        cut.feed(&wire[..wire.len() - 1]);
        assert_eq!(cut.whole(), 5, "one that is cut is none");
        cut.feed(&[0, 0, 0, 0, 0, 0]);
        assert_eq!(cut.whole(), 7);
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(encode_message("a 50% b\n\u{e4}"), "a 50%25 b%0A%C3%A4");
    }
}
