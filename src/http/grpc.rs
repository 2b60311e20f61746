//! gRPC as far as an intermediary must know it: the outcome of a call is in `grpc-status`, not in the status of HTTP.
//!
//! Refuses to look into messages: where one ends concerns nobody here.

use std::time::Duration;

use crate::failure::{Cause, Failure, Side};

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
        Cause::NoRoute => Code::Unimplemented,
        Cause::Timeout => Code::DeadlineExceeded,
        Cause::Denied => Code::PermissionDenied,
        Cause::BodyTooLarge | Cause::HeadTooLarge | Cause::Flood => Code::ResourceExhausted,
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

/// Writes what is left of a timeout, never more than it is.
pub fn write_timeout(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
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
        for nanos in [0, 1, 999, 99_999_999, 100_000_000, 123_456_789_012, 9_999_999_999_999_999] {
            let left = Duration::from_nanos(nanos);
            let again = timeout(write_timeout(left).as_bytes()).unwrap();
            assert!(again <= left && left - again <= left / 1000, "{left:?} became {again:?}");
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
    fn messages_are_percent_encoded() {
        assert_eq!(encode_message("a 50% b\n\u{e4}"), "a 50%25 b%0A%C3%A4");
    }
}
