//! Fields by which proxies and services tell each other of attempts and deadlines (Envoy's), in heads of HTTP/1.1 that are written
//! already: read, or put in place of what stands there.

use std::cell::Cell;
use std::ops::Range;

pub(super) use crate::route::deadline::EXPECTED_TIMEOUT as DEADLINE;
use crate::route::deadline::expected_timeout;
use crate::shard::clock::{NEVER, ns};

/// Which attempt it is.
pub(super) const ATTEMPT: &str = "x-envoy-attempt-count";

/// What is known of these fields in an exchange. In one octet, because there is an account per connection.
#[derive(Debug, Default)]
pub(super) struct Telling(Cell<u8>);

impl Telling {
    const DEADLINE: u8 = 1;
    const NONE: u8 = 2;

    /// The service is told what is left of its time.
    pub(super) fn tell_deadline(&self) {
        self.0.set(self.0.get() | Self::DEADLINE);
    }

    /// Whether it is.
    pub(super) fn tells_deadline(&self) -> bool {
        self.0.get() & Self::DEADLINE != 0
    }

    /// Notes whether it is known that none of them stands in the head that goes to the service.
    pub(super) fn note_none(&self, is_known: bool) {
        let without = self.0.get() & !Self::NONE;
        self.0.set(if is_known { without | Self::NONE } else { without });
    }

    /// Whether that is known.
    pub(super) fn is_none(&self) -> bool {
        self.0.get() & Self::NONE != 0
    }
}

/// When a request that began then must have ended by what its caller says; [`NEVER`] where that is nothing, or no number.
pub(super) fn deadline(started: u64, value: Option<&[u8]>) -> u64 {
    value.and_then(expected_timeout).map_or(NEVER, |timeout| started.saturating_add(ns(timeout)))
}

/// The value of the first such field of a head.
pub(super) fn value<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let line = lines(head).find(|line| is_named(&head[line.clone()], name))?;
    Some(&head[line.start + name.len() + 1..line.end])
}

/// Takes such fields out of a head; what is behind it stays there. How long the head is then.
pub(super) fn take_out(request: &mut Vec<u8>, mut head_len: usize, name: &str) -> usize {
    let mut from = 0;
    while let Some(line) = {
        let rest = &request[from..head_len];
        lines(rest).find(|line| is_named(&rest[line.clone()], name))
    } {
        head_len -= line.len();
        request.drain(from + line.start..from + line.end);
        from += line.start;
    }
    head_len
}

/// Adds the field to a head that has none of that name. What is behind the head stays there.
pub(super) fn put(request: &mut Vec<u8>, head_len: usize, name: &str, value: u64) {
    // As many digits as the largest number has.
    let mut digits = [0; 20];
    let (mut left, mut first) = (value, digits.len());
    while left > 0 || first == digits.len() {
        first -= 1;
        digits[first] = b'0' + (left % 10) as u8;
        left /= 10;
    }
    // Before the empty line that ends the head. By hand: an iterator that is spliced in took a quarter of a microsecond.
    let (end, behind) = (head_len.saturating_sub(2), request.len());
    let parts = [name.as_bytes(), b": ", &digits[first..], b"\r\n"];
    if head_len == behind {
        // Nearly always: there is no body.
        request.truncate(end);
        parts.iter().for_each(|part| request.extend_from_slice(part));
        return request.extend_from_slice(b"\r\n");
    }
    let added: usize = parts.iter().map(|part| part.len()).sum();
    request.resize(behind + added, 0);
    request.copy_within(end..behind, end + added);
    let mut at = end;
    for part in parts {
        request[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

/// Where the lines of a head stand, their ends included.
pub(super) fn lines(head: &[u8]) -> impl Iterator<Item = Range<usize>> {
    memchr::memchr_iter(b'\n', head).scan(0, |from, end| Some(std::mem::replace(from, end + 1)..end + 1))
}

fn is_named(line: &[u8], name: &str) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        && line.get(name.len()) == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_takes_the_place_of_what_stands_there() {
        let with = |head: &str, body: &str, number| {
            let mut request = format!("{head}{body}").into_bytes();
            let head_len = take_out(&mut request, head.len(), ATTEMPT);
            put(&mut request, head_len, ATTEMPT, number);
            String::from_utf8(request).unwrap()
        };
        let first = with("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "x-envoy-attempt-count: 7\r\n", 1);
        assert_eq!(
            first,
            "GET / HTTP/1.1\r\nhost: a\r\nx-envoy-attempt-count: 1\r\n\r\nx-envoy-attempt-count: 7\r\n"
        );
        let second = with(
            "GET / HTTP/1.1\r\nX-Envoy-Attempt-Count: 1\r\nhost: a\r\nx-envoy-attempt-count: 8\r\nx-envoy-attempt-counts: 3\r\n\r\n",
            "",
            12,
        );
        assert_eq!(
            second,
            "GET / HTTP/1.1\r\nhost: a\r\nx-envoy-attempt-counts: 3\r\nx-envoy-attempt-count: 12\r\n\r\n"
        );
        let alone = with("GET / HTTP/1.1\r\n\r\n", "", 0);
        assert_eq!(alone, "GET / HTTP/1.1\r\nx-envoy-attempt-count: 0\r\n\r\n");
    }

    #[test]
    fn a_deadline_is_a_number_of_milliseconds_or_none() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nX-Envoy-Expected-Rq-Timeout-Ms:  250 \r\n\r\n";
        assert_eq!(deadline(1_000_000, value(head, DEADLINE)), 251_000_000);
        assert_eq!(value(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", DEADLINE), None);
        for odd in ["", "-1", "1s", "0x10", "99999999999999999999999"] {
            assert_eq!(deadline(5, Some(odd.as_bytes())), NEVER, "{odd}");
        }
        assert_eq!(deadline(5, Some(b"0")), 5);
        assert!(deadline(5, Some(b"18446744073709551615")) > 1 << 62);
    }
}
