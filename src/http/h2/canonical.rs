//! A request head that was written here for an HTTP/1.1 service, as HTTP/2 says it.
//!
//! Such a head has one form (`METHOD target HTTP/1.1`, then `name: value` line by line, nothing folded, nothing around a value), in which
//! it was written from what had been judged. So it is cut at its line ends and colons, in place of a parser that would look for all that
//! cannot be in it; each part is looked at when it becomes a name, a value, or a part of the URI, and there what may not stand in HTTP/2 is
//! refused. Refuses to read what callers sent: that is for `http::h1`.

use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue, InvalidHeaderName};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Uri};

use super::names::name;
use super::origin::Origin;
use super::request::{FOR, HOST_OF, ORIGIN, PROTO, scheme};
use crate::failure::Cause;
use crate::http::fields::{Known, known};

/// Reads a head that was written here for an HTTP/1.1 service, for one that speaks HTTP/2, maybe over TLS (`set_scheme` says
/// what that changes). `origin` is for a ringmesh. A body may lie behind the head, and is not looked at.
///
/// # Errors
/// When a part of it cannot be said in HTTP/2.
pub fn from_canonical(head: &[u8], origin: Option<Origin>, encrypted: bool) -> Result<Request<()>, Cause> {
    let (length, lines) = measure(head).ok_or(Cause::BadStartLine)?;
    let head = Head::of(&head[..length]);
    let mut line = head.line(0).ok_or(Cause::BadStartLine)?;
    let (method, target) = head.start(&line).ok_or(Cause::BadStartLine)?;
    // The first line is no field; one more for the origin.
    let mut headers = HeaderMap::try_with_capacity(lines).map_err(|_| Cause::HeadTooLarge)?;
    let mut host = 0..0;
    loop {
        line = head.line(line.end + 2).ok_or(Cause::BadStartLine)?;
        if line.is_empty() {
            break;
        }
        let (field, value) = head.field(&line).ok_or(Cause::BadFieldName)?;
        let field = head.text(&field).ok_or(Cause::BadFieldName)?;
        match known(field) {
            Known::Host => host = value,
            Known::Connection | Known::TransferEncoding => {}
            Known::Te => drop(headers.insert(header::TE, HeaderValue::from_static("trailers"))),
            known => {
                let name = name_of(known, field).map_err(|_| Cause::BadFieldName)?;
                headers.try_append(name, head.value(value)?).map_err(|_| Cause::HeadTooLarge)?;
            }
        }
    }
    if let Some(origin) = origin {
        headers.insert(ORIGIN, origin.value());
    }
    let bad = |_| Cause::BadTarget;
    let mut uri = http::uri::Parts::default();
    if &head.octets()[method.clone()] == b"CONNECT" {
        uri.authority = Some(Authority::from_maybe_shared(head.part(target)).map_err(bad)?);
    } else {
        uri.scheme = Some(scheme(encrypted));
        uri.authority = Some(Authority::from_maybe_shared(head.part(host)).map_err(bad)?);
        uri.path_and_query = Some(PathAndQuery::from_maybe_shared(head.part(target)).map_err(bad)?);
    }
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Cause::BadTarget)?;
    *request.method_mut() = http::Method::from_bytes(&head.octets()[method]).map_err(|_| Cause::BadMethod)?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// How long the head is, its empty line included, and how many lines it has before that.
fn measure(octets: &[u8]) -> Option<(usize, usize)> {
    let (mut start, mut lines) = (0, 0);
    for end in memchr::memchr_iter(b'\n', octets) {
        if octets[start..end] == *b"\r" {
            return Some((end + 1, lines));
        }
        (start, lines) = (end + 1, lines + 1);
    }
    None
}

/// The name of a field. What every mesh adds is there already; other names are remembered.
fn name_of(known: Known, field: &str) -> Result<HeaderName, InvalidHeaderName> {
    match known {
        Known::Via => Ok(header::VIA),
        Known::XForwardedFor => Ok(FOR),
        Known::XForwardedHost => Ok(HOST_OF),
        Known::XForwardedProto => Ok(PROTO),
        Known::ContentLength => Ok(header::CONTENT_LENGTH),
        _ => name(field),
    }
}

/// A head, and what is cut out of it.
enum Head<'h> {
    /// In one piece that its parts share, so that each is not copied by itself.
    Shared(Bytes),
    /// Long ones: the table of what was said before, which h2 keeps for each connection, can hold a hundred parts of as many heads.
    Lent(&'h [u8]),
}

impl<'h> Head<'h> {
    /// Octets of a head that its parts share, at most.
    const SHARED_MAX: usize = 1024;

    fn of(head: &'h [u8]) -> Self {
        match head.len() <= Self::SHARED_MAX {
            true => Self::Shared(Bytes::copy_from_slice(head)),
            false => Self::Lent(head),
        }
    }

    fn octets(&self) -> &[u8] {
        match self {
            Self::Shared(head) => head,
            Self::Lent(head) => head,
        }
    }

    fn part(&self, part: Range<usize>) -> Bytes {
        match self {
            Self::Shared(head) => head.slice(part),
            Self::Lent(head) => Bytes::copy_from_slice(&head[part]),
        }
    }

    fn value(&self, part: Range<usize>) -> Result<HeaderValue, Cause> {
        match self {
            Self::Shared(head) => HeaderValue::from_maybe_shared(head.slice(part)),
            Self::Lent(head) => HeaderValue::from_bytes(&head[part]),
        }
        .map_err(|_| Cause::BadFieldValue)
    }

    fn text(&self, part: &Range<usize>) -> Option<&str> {
        std::str::from_utf8(&self.octets()[part.clone()]).ok()
    }

    /// The line that begins at `from`, without its end.
    fn line(&self, from: usize) -> Option<Range<usize>> {
        let rest = self.octets().get(from..)?;
        let length = memchr::memchr(b'\n', rest)?.checked_sub(1)?;
        (rest[length] == b'\r').then_some(from..from + length)
    }

    /// Method and target of a first line.
    fn start(&self, line: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
        let rest = self.octets()[line.clone()].strip_suffix(b" HTTP/1.1")?;
        let method = memchr::memchr(b' ', rest)?;
        Some((line.start..line.start + method, line.start + method + 1..line.start + rest.len()))
    }

    /// Name and value of a field.
    fn field(&self, line: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
        let octets = &self.octets()[line.clone()];
        let name = memchr::memchr(b':', octets)?;
        let value = octets[name + 1..].trim_ascii();
        // Where nothing but white space follows, the value is nowhere.
        let start = line.end - octets[name + 1..].trim_ascii_start().len();
        Some((line.start..line.start + name, start..start + value.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Version;

    fn read(head: &str) -> Result<Request<()>, Cause> {
        from_canonical(head.as_bytes(), None, true)
    }

    fn fields(request: &Request<()>) -> Vec<(&str, &[u8])> {
        request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    #[test]
    fn a_head_says_the_same_as_before_however_long_it_is() {
        for length in [0, 1, 40, Head::SHARED_MAX, 20_000] {
            let long = "v".repeat(length);
            let head = format!(
                "POST /a/b?c=%20d HTTP/1.1\r\nhost: shop.example:8080\r\nX-A: {long}\r\nx-forwarded-for: 10.0.0.1, \
                 ::1\r\nx-forwarded-proto: http\r\nx-forwarded-host: shop.example\r\nvia: 1.1 other\r\nx-a: second: \
                 2\r\nx-empty: \r\nte: trailers\r\nconnection: te\r\ncontent-length: 5\r\nvia: 1.1 own\r\n\r\n"
            );
            let request = from_canonical(head.as_bytes(), Some(Origin(Version::Http11)), false).unwrap();
            assert_eq!(request.method(), "POST");
            assert_eq!(request.version(), http::Version::HTTP_2);
            assert_eq!(request.uri(), "http://shop.example:8080/a/b?c=%20d");
            let wanted: [(&str, &[u8]); 11] = [
                ("x-a", long.as_bytes()),
                ("x-a", b"second: 2"),
                ("x-forwarded-for", b"10.0.0.1, ::1"),
                ("x-forwarded-proto", b"http"),
                ("x-forwarded-host", b"shop.example"),
                ("via", b"1.1 other"),
                ("via", b"1.1 own"),
                ("x-empty", b""),
                ("te", b"trailers"),
                ("content-length", b"5"),
                ("ringmesh-origin", b"1.1"),
            ];
            assert_eq!(fields(&request), wanted, "{length}");
        }
    }

    #[test]
    fn what_lies_behind_it_is_no_part_of_it_however_many_lines_that_has() {
        let head = "POST / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\ncontent-length: 9\r\n\r\n";
        let alone = read(head).unwrap();
        for behind in ["\n".repeat(200_000), "\r\n".repeat(500), "x: y\r\n\r\n".to_owned(), "\0".to_owned()] {
            let request = read(&format!("{head}{behind}")).unwrap();
            assert_eq!(request.headers(), alone.headers());
            assert_eq!(request.headers().capacity(), alone.headers().capacity(), "room for what is there");
        }
    }

    #[test]
    fn more_fields_than_can_be_said_are_refused() {
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(40_000));
        assert_eq!(read(&head).err(), Some(Cause::HeadTooLarge));
    }

    #[test]
    fn whatever_octets_a_value_may_have_it_keeps() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nx-bytes: \x80\xff\t~ \"\r\n\r\n";
        let request = from_canonical(head, None, true).unwrap();
        assert_eq!(fields(&request), [("x-bytes", &b"\x80\xff\t~ \""[..])]);
        assert_eq!(request.uri(), "https://a/");
    }

    #[test]
    fn special_forms_of_targets_stay_what_they_are() {
        let request = read("CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n").unwrap();
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&http::Method::CONNECT, "db.example:5432")
        );
        assert!(request.uri().scheme().is_none() && request.uri().path_and_query().is_none());
        let request = read("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        assert_eq!(request.uri().path_and_query().unwrap(), "*");
    }

    #[test]
    fn what_nobody_here_writes_is_refused() {
        for (head, cause) in [
            ("", Cause::BadStartLine),
            ("GET / HTTP/1.1", Cause::BadStartLine),
            ("GET / HTTP/1.1\r\nhost: a\r\n", Cause::BadStartLine),
            ("\n\n", Cause::BadStartLine),
            ("GET / HTTP/1.1\nhost: a\n\n", Cause::BadStartLine),
            ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", Cause::BadStartLine),
            ("GET HTTP/1.1\r\nhost: a\r\n\r\n", Cause::BadStartLine),
            ("GET / HTTP/1.1\r\nhost a\r\n\r\n", Cause::BadFieldName),
            ("GET / HTTP/1.1\r\nhost: a\r\nx y: b\r\n\r\n", Cause::BadFieldName),
            ("GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n", Cause::BadFieldName),
            ("GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n", Cause::BadFieldName),
            ("GET / HTTP/1.1\r\nhost: a\r\nx: b\rc\r\n\r\n", Cause::BadFieldValue),
            ("GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", Cause::BadFieldValue),
            ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", Cause::BadTarget),
            ("GET / HTTP/1.1\r\n\r\n", Cause::BadTarget),
            ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", Cause::BadTarget),
            ("G@T / HTTP/1.1\r\nhost: a\r\n\r\n", Cause::BadMethod),
        ] {
            assert_eq!(read(head).err(), Some(cause), "{head:?}");
        }
    }
}
