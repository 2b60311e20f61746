//! What a route changes about the messages that it passes: fields, path and host, CORS. Pure: says what is to be changed, and
//! leaves the changing to whoever holds the message.
//!
//! Refuses fields that frame a message, concern one hop, or carry what only this proxy may say ([`is_free`]).

use http::HeaderName;

use super::cors::Cors;
use super::path::NewPath;
use super::text::{Seen, Text};
use crate::authorize::Fields;

/// What a route changes. Boxed in the route, since most have none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Of requests.
    pub request: FieldChanges,
    /// Of responses, whoever makes them.
    pub response: FieldChanges,
    /// Where requests go on as others.
    pub rewrite: Option<Rewrite>,
    /// For which pages of other origins browsers may show what this route answers.
    pub cors: Option<Box<Cors>>,
}

/// What is changed about fields. First some are taken out, then some set, then some added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldChanges {
    /// Out.
    pub remove: Box<[HeaderName]>,
    /// In place of all lines of that name; out, where the value comes out empty.
    pub set: Box<[(HeaderName, Text)]>,
    /// One more line, unless the value comes out empty.
    pub add: Box<[(HeaderName, Text)]>,
}

/// Path and host that a request goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// `None`: the path stays.
    pub path: Option<NewPath>,
    /// Whether the query stays.
    pub keep_query: bool,
    /// Host, perhaps with port; `None`: it stays.
    pub host: Option<Box<str>>,
}

/// Takes down what is to be changed in the fields of a head, in this order.
pub trait Change {
    /// All lines of it go.
    fn remove(&mut self, name: &HeaderName);
    /// In place of all lines of it.
    fn set(&mut self, name: &HeaderName, value: Vec<u8>);
    /// One more line.
    fn add(&mut self, name: &HeaderName, value: Vec<u8>);
}

impl FieldChanges {
    /// Fields in one list.
    pub const FIELDS_MAX: usize = 32;

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Tells of each change, with its value; `status` stands for the status of the response.
    pub fn tell<F: Fields>(&self, seen: &Seen<'_, '_, F>, status: u8, to: &mut impl Change) {
        let value = |text: &Text| {
            let mut value = Vec::with_capacity(64);
            text.write(seen, status, &mut value);
            value
        };
        self.remove.iter().for_each(|name| to.remove(name));
        self.set.iter().for_each(|(name, text)| to.set(name, value(text)));
        self.add.iter().for_each(|(name, text)| to.add(name, value(text)));
    }
}

impl Rewrite {
    /// The field that tells a service what path and query were asked for: Envoy's, which services know.
    pub const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

    /// Path and query that a request goes on with; `None` where they stay.
    ///
    /// # Errors
    /// When they come out longer than any target may be.
    pub fn target<F>(&self, seen: &Seen<'_, '_, F>) -> Result<Option<Vec<u8>>, TooLong> {
        let mut out = Vec::with_capacity(seen.target.len() + 64);
        match &self.path {
            Some(path) => path.write(seen.call.path, &mut out)?,
            None if self.keep_query => return Ok(None),
            None => out.extend_from_slice(seen.call.path),
        }
        if self.keep_query
            && let Some(query) = seen.query()
        {
            out.push(b'?');
            out.extend_from_slice(query);
        }
        if out.len() > TARGET_BYTES_MAX {
            return Err(TooLong);
        }
        Ok(Some(out))
    }
}

/// A path came out longer than [`TARGET_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// The longest target that a rewrite may make: four times what services take at most by default.
pub const TARGET_BYTES_MAX: usize = 32 * 1024;

/// Whether a field may be changed by a route.
pub fn is_free(name: &str) -> bool {
    const BOUND: [&str; 23] = [
        // They frame the message.
        "content-length",
        "transfer-encoding",
        "trailer",
        // They concern one hop (RFC 9110 §7.6.1), or the connection.
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "upgrade",
        "http2-settings",
        "expect",
        "max-forwards",
        // `rewrite` changes it.
        "host",
        // Handshakes of WebSocket are checked.
        "sec-websocket-accept",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        // Loops are found by it.
        "via",
        // What only this proxy may say.
        "x-forwarded-client-cert",
        "x-ringmesh-failure",
        "ringmesh-origin",
        "x-envoy-original-path",
    ];
    !BOUND.iter().any(|bound| bound.eq_ignore_ascii_case(name))
}
