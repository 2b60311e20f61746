//! What a route answers itself: a redirect, or a response as it is configured. Pure.

use bytes::Bytes;
use http::{HeaderName, header};

use super::changes::{Change, TooLong};
use super::path::NewPath;
use super::text::{Seen, Text};
use crate::authorize::Fields;

/// Sends callers elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`; `None`: that of the request.
    pub scheme: Option<&'static str>,
    /// Host without port; `None`: that of the request.
    pub host: Option<Box<str>>,
    /// `None`: that of the request, or none where the scheme or the host is another.
    pub port: Option<u16>,
    /// `None`: that of the request.
    pub path: Option<NewPath>,
    /// Whether the query goes with it.
    pub keep_query: bool,
}

/// A response as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Further fields.
    pub fields: Box<[(HeaderName, Text)]>,
    /// What the body is.
    pub content_type: Option<Box<str>>,
    /// Empty for 204 and 304.
    pub body: Bytes,
}

impl Redirect {
    /// Where callers are sent; `None` where that is where they are, as with an expression that does not match: they would come back
    /// without end, and remember a 308.
    ///
    /// # Errors
    /// When the path comes out longer than any target may be.
    pub fn elsewhere<F: Fields>(&self, seen: &Seen<'_, '_, F>) -> Result<Option<Vec<u8>>, TooLong> {
        let here =
            Self { status: self.status, scheme: None, host: None, port: None, path: None, keep_query: true };
        let (to, here) = (self.location(seen)?, here.location(seen)?);
        Ok((to != here).then_some(to))
    }

    /// An absolute URL, where the request says for which host it is.
    fn location<F: Fields>(&self, seen: &Seen<'_, '_, F>) -> Result<Vec<u8>, TooLong> {
        let mut out = Vec::with_capacity(seen.host.len() + seen.target.len() + 32);
        let (host, port) = split(seen.host);
        let host = self.host.as_deref().map_or(host, str::as_bytes);
        if !host.is_empty() {
            let scheme = self.scheme.unwrap_or_else(|| seen.scheme());
            out.extend_from_slice(scheme.as_bytes());
            out.extend_from_slice(b"://");
            out.extend_from_slice(host);
            let same = self.host.is_none() && self.scheme.is_none_or(|scheme| scheme == seen.scheme());
            let own = self.port.map(|port| port.to_string().into_bytes());
            let port = own.as_deref().or_else(|| port.filter(|_| same)).unwrap_or_default();
            let usual: &[u8] = if scheme == "https" { b"443" } else { b"80" };
            if !port.is_empty() && port != usual {
                out.push(b':');
                out.extend_from_slice(port);
            }
        }
        let begin = out.len();
        match &self.path {
            Some(path) => path.write(seen.call.path, &mut out)?,
            None => out.extend_from_slice(seen.call.path),
        }
        // Without a host `//x` would be one (RFC 3986 §4.2).
        if begin == 0 && out.starts_with(b"//") {
            out.splice(0..0, *b"/.");
        }
        if self.keep_query
            && let Some(query) = seen.query()
        {
            out.push(b'?');
            out.extend_from_slice(query);
        }
        Ok(out)
    }
}

impl Respond {
    /// The largest body.
    pub const BODY_BYTES_MAX: usize = 64 * 1024;

    /// Tells of its fields, without the length.
    pub fn tell<F: Fields>(&self, seen: &Seen<'_, '_, F>, status: u8, to: &mut impl Change) {
        if let Some(kind) = &self.content_type {
            to.set(&header::CONTENT_TYPE, kind.as_bytes().to_vec());
        }
        for (name, text) in &self.fields {
            let mut value = Vec::with_capacity(64);
            text.write(seen, status, &mut value);
            to.set(name, value);
        }
    }
}

/// Host and port of an authority; brackets stay.
fn split(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let from = memchr::memrchr(b']', authority).unwrap_or(0);
    match memchr::memchr(b':', &authority[from..]) {
        Some(at) => (&authority[..from + at], Some(&authority[from + at + 1..])),
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::with;
    use super::*;

    #[test]
    fn a_redirect_changes_what_it_says_and_keeps_the_rest() {
        let plain =
            Redirect { status: 302, scheme: None, host: None, port: None, path: None, keep_query: true };
        let whole = |path: &str| Some(NewPath::Whole(path.into()));
        let to = |redirect: &Redirect| {
            let location = with("GET", "/a//b?c=d", &[], |seen| redirect.location(seen)).unwrap();
            String::from_utf8(location).unwrap()
        };
        for (redirect, want) in [
            (Redirect { scheme: Some("https"), ..plain.clone() }, "https://shop.example/a//b?c=d"),
            (Redirect { scheme: Some("http"), ..plain.clone() }, "http://shop.example:8080/a//b?c=d"),
            (
                Redirect { scheme: Some("https"), port: Some(8443), ..plain.clone() },
                "https://shop.example:8443/a//b?c=d",
            ),
            (
                Redirect { scheme: Some("https"), port: Some(443), ..plain.clone() },
                "https://shop.example/a//b?c=d",
            ),
            (Redirect { host: Some("b.example".into()), ..plain.clone() }, "http://b.example/a//b?c=d"),
            (Redirect { path: whole("/x"), ..plain.clone() }, "http://shop.example:8080/x?c=d"),
            (
                Redirect { path: whole("/x"), keep_query: false, ..plain.clone() },
                "http://shop.example:8080/x",
            ),
        ] {
            assert_eq!(to(&redirect), want, "{redirect:?}");
        }
        // HTTP/1.0 without Host.
        let location = with("GET", "//evil.test/x", &[], |seen| {
            let seen = Seen { host: b"", call: seen.call, route: "", service: "", ..*seen };
            plain.location(&seen)
        });
        assert_eq!(location.unwrap(), b"/.//evil.test/x");
    }

    #[test]
    fn hosts_are_told_from_ports() {
        assert_eq!(split(b"a.b:80"), (&b"a.b"[..], Some(&b"80"[..])));
        assert_eq!(split(b"a.b"), (&b"a.b"[..], None));
        assert_eq!(split(b"[::1]:80"), (&b"[::1]"[..], Some(&b"80"[..])));
        assert_eq!(split(b"[::1]"), (&b"[::1]"[..], None));
    }
}
