//! HTTP/1.1 heads (RFC 9112): taken apart with httparse, judged and framed by our own rules, re-emitted canonically.
//!
//! Refuses rather than repairs: what is refused says so by a [`Cause`], and nothing of it is
//! passed on. What is passed on is never a copy of what came: each line is written anew from the parts that were
//! understood, so that the next hop cannot understand it differently.

#[cfg(test)]
mod head_test;
mod request;
mod response;

pub use request::{Forwarding, Request, Target, Upgrade, read_request};
pub(super) use request::{has_pseudonym, write_field, write_ip};
pub use response::{Response, ResponseOptions, read_handshake_response, read_response, write_response_head};

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
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
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

#[cfg(test)]
mod tests {
    use super::*;

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
