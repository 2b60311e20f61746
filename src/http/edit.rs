//! What is changed in a head that was written here, or is about to be sent by HTTP/2: fields out, in place of others, and more;
//! the target and the host of a request. Called where a route has changes; `route::changes` says which.
//!
//! Works on what is canonical, so that one list of edits gives the same head in every version of HTTP. Refuses control octets
//! in values, whoever made them: nothing can be added that ends a line. Never given names that frame a message or concern one
//! hop: the configuration refuses those.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Uri, request};

use super::fields::write_u64;
use super::h1::write_field;

/// Stands in a value where the status of the response will be.
pub const STATUS: u8 = 0;

/// What is changed in the fields of one head, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Edits(Vec<(HeaderName, Edit)>);

#[derive(Debug, PartialEq, Eq)]
enum Edit {
    /// All lines of it.
    Remove,
    /// In place of all lines of it.
    Set(Vec<u8>),
    /// One more line.
    Add(Vec<u8>),
}

impl Edits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By how much a head may grow.
    pub fn bytes(&self) -> usize {
        let added = self.0.iter().map(|(name, edit)| match edit {
            Edit::Remove => 0,
            Edit::Set(value) | Edit::Add(value) => name.as_str().len() + value.len() + 8,
        });
        added.sum()
    }

    /// Takes a field out.
    pub fn remove(&mut self, name: &HeaderName) {
        self.0.push((name.clone(), Edit::Remove));
    }

    /// Sets a field; takes it out where there is no value.
    pub fn set(&mut self, name: &HeaderName, value: Vec<u8>) {
        let value = legal(value);
        self.0.push((name.clone(), if value.is_empty() { Edit::Remove } else { Edit::Set(value) }));
    }

    /// Adds a field, where there is a value.
    pub fn add(&mut self, name: &HeaderName, value: Vec<u8>) {
        let value = legal(value);
        if !value.is_empty() {
            self.0.push((name.clone(), Edit::Add(value)));
        }
    }

    /// Changes fields that go on by HTTP/2.
    pub fn apply(&self, fields: &mut HeaderMap, status: u16) {
        for (name, edit) in &self.0 {
            let value = |value: &[u8]| HeaderValue::from_bytes(&with_status(value, status));
            match edit {
                Edit::Remove => drop(fields.remove(name)),
                // Cannot fail: control octets have been taken out.
                Edit::Set(bytes) => drop(value(bytes).map(|value| fields.insert(name, value))),
                Edit::Add(bytes) => drop(value(bytes).map(|value| fields.append(name, value))),
            }
        }
    }

    /// Changes a canonical head that lies in `out` from `start` on, perhaps with a body behind it.
    pub fn apply_to_head(&self, out: &mut Vec<u8>, start: usize, status: u16) {
        let Some(end) = out.get(start..).and_then(|head| memchr::memmem::find(head, b"\r\n\r\n")) else {
            return;
        };
        // Behind the last field; the empty line stays in front of what follows.
        let behind = out.split_off(start + end + 2);
        for (name, edit) in &self.0 {
            if !matches!(edit, Edit::Add(_)) {
                take_out(out, start, name.as_str());
            }
            if let Edit::Set(value) | Edit::Add(value) = edit {
                write_field(name.as_str(), &with_status(value, status), out);
            }
        }
        out.extend_from_slice(&behind);
    }
}

/// Takes all lines of a field out of a head without its empty line.
fn take_out(out: &mut Vec<u8>, start: usize, name: &str) {
    let line_end = |out: &[u8], from: usize| {
        memchr::memmem::find(&out[from..], b"\r\n").map_or(out.len(), |at| from + at + 2)
    };
    let mut from = line_end(out, start);
    let mut kept = from;
    while from < out.len() {
        let end = line_end(out, from);
        let line = &out[from..end];
        let is_it = line.get(name.len()) == Some(&b':')
            && line.get(..name.len()).is_some_and(|front| front.eq_ignore_ascii_case(name.as_bytes()));
        if !is_it {
            out.copy_within(from..end, kept);
            kept += end - from;
        }
        from = end;
    }
    out.truncate(kept);
}

/// A value without control octets and without white space at its ends.
fn legal(mut value: Vec<u8>) -> Vec<u8> {
    value.retain(|b| *b >= b' ' && *b != 0x7f || matches!(*b, b'\t' | STATUS));
    let end = value.trim_ascii_end().len();
    value.truncate(end);
    let start = value.len() - value.trim_ascii_start().len();
    value.drain(..start);
    value
}

fn with_status(value: &[u8], status: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 3);
    for octet in value {
        match *octet {
            STATUS => write_u64(status.into(), &mut out),
            octet => out.push(octet),
        }
    }
    out
}

/// Puts another target or host into a canonical request head.
pub fn retarget_head(head: &mut Vec<u8>, target: Option<&[u8]>, host: Option<&[u8]>) {
    let line_end = memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1);
    if let Some(host) = host
        && let Some(rest) = head.get(line_end..).and_then(|rest| rest.strip_prefix(b"host: "))
    {
        let len = memchr::memchr(b'\r', rest).unwrap_or(rest.len());
        let from = line_end + b"host: ".len();
        head.splice(from..from + len, host.iter().copied());
    }
    if let Some(target) = target
        && let Some(first) = memchr::memchr(b' ', &head[..line_end])
        && let Some(last) = memchr::memrchr(b' ', &head[..line_end])
        && first < last
    {
        head.splice(first + 1..last, target.iter().copied());
    }
}

/// The same for one that goes on by HTTP/2.
pub fn retarget(parts: &mut request::Parts, target: Option<&[u8]>, host: Option<&[u8]>) {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    if let Some(target) = target.and_then(|target| PathAndQuery::try_from(target).ok()) {
        uri.path_and_query = Some(target);
    }
    if let Some(host) = host.and_then(|host| host.try_into().ok()) {
        uri.authority = Some(host);
    }
    // Of parts that were one a moment ago, and of the same kinds.
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> HeaderName {
        HeaderName::from_bytes(name.as_bytes()).unwrap()
    }

    fn edits() -> Edits {
        let mut edits = Edits::default();
        edits.remove(&name("x-gone"));
        edits.set(&name("x-set"), b"new".to_vec());
        edits.add(&name("x-more"), b"1".to_vec());
        edits.add(&name("x-more"), b" 2\r\nEvil: 1 ".to_vec());
        edits.set(&name("x-empty"), b"\r\n \x01".to_vec());
        edits.add(&name("x-none"), Vec::new());
        edits.set(&name("x-status"), [b"was ", &[STATUS][..]].concat());
        edits
    }

    #[test]
    fn a_head_and_its_fields_are_changed_alike() {
        let mut out =
            b"before HTTP/1.1 200 OK\r\nX-Gone: 1\r\nx-gone : 2\r\nx-set: old\r\nx-SET: older\r\nx-empty: \
                        theirs\r\nx-sett: kept\r\nX-GONE: 3\r\n\r\nx-gone: body\r\n\r\n"
                .to_vec();
        let start = b"before ".len();
        edits().apply_to_head(&mut out, start, 200);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "before HTTP/1.1 200 OK\r\nx-gone : 2\r\nx-sett: kept\r\nx-set: new\r\nx-more: 1\r\nx-more: 2Evil: \
             1\r\nx-status: was 200\r\n\r\nx-gone: body\r\n\r\n"
        );
        let mut fields = HeaderMap::new();
        for (field, value) in
            [("x-gone", "1"), ("x-set", "old"), ("x-set", "older"), ("x-empty", "theirs"), ("x-sett", "kept")]
        {
            fields.append(name(field), HeaderValue::from_static(value));
        }
        edits().apply(&mut fields, 503);
        let mut shown: Vec<_> =
            fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        shown.sort();
        assert_eq!(
            shown,
            ["x-more: 1", "x-more: 2Evil: 1", "x-set: new", "x-sett: kept", "x-status: was 503"]
        );
    }

    #[test]
    fn a_head_without_fields_and_one_that_is_none_are_left_whole() {
        for head in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204", ""] {
            let mut out = head.as_bytes().to_vec();
            let mut edits = Edits::default();
            edits.remove(&name("a"));
            edits.apply_to_head(&mut out, 0, 204);
            assert_eq!(out, head.as_bytes());
        }
    }

    #[test]
    fn target_and_host_are_put_in_place_in_every_version() {
        let head = "GET /a%20b?c=d HTTP/1.1\r\nhost: shop.example:80\r\nx: host: y\r\n\r\n";
        let changed = |target: Option<&str>, host: Option<&str>| {
            let mut out = head.as_bytes().to_vec();
            retarget_head(&mut out, target.map(str::as_bytes), host.map(str::as_bytes));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(changed(None, None), head);
        assert_eq!(changed(Some("/"), Some("b")), "GET / HTTP/1.1\r\nhost: b\r\nx: host: y\r\n\r\n");
        let mut parts = http::Request::get("http://shop.example/a?b=c").body(()).unwrap().into_parts().0;
        retarget(&mut parts, Some(b"/x?y"), Some(b"b:81"));
        assert_eq!(parts.uri, "http://b:81/x?y");
        retarget(&mut parts, None, None);
        assert_eq!(parts.uri, "http://b:81/x?y");
    }
}
