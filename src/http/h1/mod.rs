//! HTTP/1.1 heads (RFC 9112): taken apart with httparse, judged and framed by our own rules, re-emitted canonically.
//!
//! Refuses rather than repairs: what is refused says so by a [`Cause`], and nothing of it is
//! passed on. What is passed on is never a copy of what came: each line is written anew from the parts that were
//! understood, so that the next hop cannot understand it differently.

#[cfg(test)]
pub(super) mod head_test;
mod request;
mod response;

pub use request::{Forwarding, Request, Target, Upgrade, read_request};
pub(super) use request::{has_pseudonym, write_field, write_ip};
pub(super) use response::write_status_line;
pub use response::{
    Response, ResponseOptions, add_field, read_handshake_response, read_response, write_response_head,
};

use super::fields;
use crate::failure::Cause;

/// What a buffer was found to hold.
#[derive(Debug)]
pub enum Parsed<T> {
    /// Not yet a whole head.
    Partial,
    /// Bytes that are no acceptable head.
    Refused(Cause),
    /// A head.
    Whole(T),
}

/// Puts a word to httparse's verdict. Looks at the bytes again, because the verdict does not tell a folded line from a
/// bad name; this is the path of refusals only.
fn cause_of(error: httparse::Error, head: &[u8]) -> Cause {
    match error {
        httparse::Error::HeaderName if has_folded_line(head) => Cause::ObsoleteFold,
        httparse::Error::HeaderName => Cause::BadFieldName,
        httparse::Error::HeaderValue if has_bare_cr(head) => Cause::BareCrOrLf,
        httparse::Error::HeaderValue => Cause::BadFieldValue,
        httparse::Error::NewLine => Cause::BareCrOrLf,
        httparse::Error::TooManyHeaders => Cause::HeadTooLarge,
        httparse::Error::Version => Cause::BadVersion,
        httparse::Error::Status | httparse::Error::Token => Cause::BadStartLine,
    }
}

/// Whether every line of a head ends with CRLF and no CR stands elsewhere (RFC 9112 §2.2). httparse takes a bare LF.
fn has_bare_line_ends(head: &[u8]) -> bool {
    // All octets at once: lines are short, and to search for each end takes three times as long.
    let is_bare = |(before, octet): (&u8, &u8)| u8::from(*octet == b'\n') & u8::from(*before != b'\r');
    let behind = head.get(1..).unwrap_or_default();
    head.first() == Some(&b'\n') || head.iter().zip(behind).fold(0, |bare, pair| bare | is_bare(pair)) != 0
}

fn has_bare_cr(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', head).any(|at| head.get(at + 1).is_some_and(|next| *next != b'\n'))
}

fn has_folded_line(head: &[u8]) -> bool {
    head.windows(2).any(|pair| pair[0] == b'\n' && matches!(pair[1], b' ' | b'\t'))
}

/// Where a head ends, for one that comes in pieces: so that it is parsed once, not once per piece.
pub fn head_end(buffer: &[u8], searched: usize) -> Option<usize> {
    // The end may begin up to three bytes before what was searched.
    let start = searched.saturating_sub(3);
    for at in memchr::memchr_iter(b'\n', &buffer[start..]).map(|at| at + start) {
        match buffer.get(at + 1) {
            Some(b'\n') => return Some(at + 2),
            Some(b'\r') if buffer.get(at + 2) == Some(&b'\n') => return Some(at + 3),
            _ => {}
        }
    }
    None
}

/// What can be made out of a request that was refused, for the log: nothing was judged. Parts of what came, and empty
/// where there are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Glimpse<'b> {
    /// The first word of the first line, if it is a token.
    pub method: &'b [u8],
    /// The second word.
    pub target: &'b [u8],
    /// The value of the first Host field.
    pub host: &'b [u8],
}

/// Looks at the front of a buffer that holds a refused request. The path of refusals only.
pub fn glimpse(buffer: &[u8]) -> Glimpse<'_> {
    let mut lines = buffer.trim_ascii_start().split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end);
    let line = lines.next().unwrap_or_default();
    let mut words = line.splitn(3, |b| *b == b' ');
    let (Some(method), Some(target)) = (words.next().filter(|m| fields::is_token(m)), words.next()) else {
        return Glimpse::default();
    };
    let value = |line: &'_ [u8]| {
        let (name, value) = line.split_at(memchr::memchr(b':', line)?);
        name.eq_ignore_ascii_case(b"host").then_some(value.len() - 1)
    };
    let host = lines
        .take_while(|line| !line.is_empty())
        .find_map(|line| Some(line[line.len() - value(line)?..].trim_ascii_start()));
    Glimpse { method, target, host: host.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_ends_without_cr_is_seen_wherever_it_is() {
        let slowly =
            |head: &[u8]| (0..head.len()).any(|at| head[at] == b'\n' && (at == 0 || head[at - 1] != b'\r'));
        let mut heads = vec![Vec::new()];
        for _ in 0..7 {
            heads =
                heads.iter().flat_map(|head| b"a\r\n".map(|octet| [head, &[octet][..]].concat())).collect();
            assert!(heads.iter().all(|head| has_bare_line_ends(head) == slowly(head)));
        }
        for length in [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200] {
            let mut head = b"x: y\r\n".repeat(length)[..length].to_vec();
            assert!(!has_bare_line_ends(&head));
            for at in 0..length {
                let before = std::mem::replace(&mut head[at], b'\n');
                assert_eq!(has_bare_line_ends(&head), slowly(&head), "{at} of {length}");
                head[at] = before;
            }
        }
    }

    #[test]
    fn what_can_be_made_out_of_a_refused_head_is_shown_and_nothing_else() {
        let seen = |bytes: &'static [u8]| {
            let Glimpse { method, target, host } = glimpse(bytes);
            [method, target, host].map(|part| std::str::from_utf8(part).unwrap_or("?"))
        };
        assert_eq!(
            seen(b"\r\nTRACE /a?b HTTP/1.1\r\nx: host: no\r\nHOST:  c:1 \r\n\r\n"),
            ["TRACE", "/a?b", "c:1"]
        );
        assert_eq!(seen(b"GET / HTTP/1.1\r\n\r\nhost: body"), ["GET", "/", ""]);
        assert_eq!(seen(b"GET /half"), ["GET", "/half", ""]);
        assert_eq!(seen(b"GET / HTTP/1.1\r\nHost"), ["GET", "/", ""]);
        for nothing in [&b""[..], b"GET", b"\x16\x03\x01 \x02", b"G(T / HTTP/1.1\r\n", b"\r\n \r\n"] {
            assert_eq!(glimpse(nothing), Glimpse::default(), "{nothing:?}");
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_whatever_the_pieces() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nbody\n\n";
        let whole = head_end(head, 0);
        assert_eq!(whole, Some(27));
        for cut in 0..27 {
            assert_eq!(head_end(&head[..cut], 0), None, "cut at {cut}");
            assert_eq!(head_end(head, cut), whole, "continued at {cut}");
        }
        assert_eq!(head_end(b"GET / HTTP/1.1\nhost: a\n\n", 0), Some(24));
    }
}
