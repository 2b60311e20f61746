//! The key of a request: what consistent hashing goes by. Pure; asked only for services that hash.
//!
//! Each rule that finds its value adds the [XXH64](super::consistent) of it: `key = rotate(key, 1) ^ hash(value)`, as Envoy
//! combines them, so that the order of the rules counts. After a `terminal` rule that found one the others are not asked.
//! Where no rule finds anything there is no key, and the request goes anywhere.
//!
//! Values are octets as they came: a header's lines one after the other, a cookie's first occurrence, a query's first
//! parameter of that name (not decoded), the source address without port, the verified identity.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use super::consistent::xxh64::xxh64;
use crate::authorize::{Call, Fields};
use crate::route::cookie;

/// One part of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashRule {
    /// What is hashed.
    pub on: HashOn,
    /// Whether the rules behind it are asked only if it found nothing.
    pub terminal: bool,
}

/// What is hashed of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The lines of a header, by its name in lower case.
    Header(Box<str>),
    /// A cookie.
    Cookie(Cookie),
    /// The address that the connection comes from.
    Source,
    /// A parameter of the query.
    Query(Box<str>),
    /// Who the caller's certificate says it is.
    Identity,
}

/// A cookie, and whether it is set where a caller has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// How long one lasts that this proxy sets, zero for as long as the browser runs; `None`: it sets none.
    pub ttl: Option<Duration>,
    /// The path that it is set for.
    pub path: Box<str>,
}

/// A key. Never 0, so that none takes no room.
pub type Key = NonZeroU64;

/// What an exchange goes by within its service.
#[derive(Debug, Default)]
pub struct Affinity {
    /// The subset of its endpoints, as `Service::subset_named` numbers it; 0 for any.
    pub subset: u16,
    /// The key, if a rule found something.
    pub key: Option<Key>,
    /// A cookie that the response has to set.
    pub minted: Option<Minted>,
}

/// A cookie that is set.
#[derive(Debug, PartialEq, Eq)]
pub struct Minted(String);

impl Minted {
    /// The value of the field Set-Cookie. `HttpOnly`, because no script needs it; `Secure` where the caller came encrypted.
    fn new(cookie: &Cookie, value: &str, encrypted: bool) -> Self {
        let Cookie { name, ttl, path } = cookie;
        let mut text = format!("{name}={value}; Path={path}");
        if let Some(ttl) = ttl.filter(|ttl| !ttl.is_zero()) {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
        }
        text.push_str(if encrypted { "; Secure; HttpOnly" } else { "; HttpOnly" });
        Self(text)
    }

    /// The value of the field.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key of a request. `query` is what follows its `?`; `random` is asked for the value of a cookie that is set.
pub fn affinity<F: Fields>(
    rules: &[HashRule],
    call: &Call<'_, F>,
    query: &[u8],
    encrypted: bool,
    random: impl FnOnce() -> u64,
) -> Affinity {
    let mut random = Some(random);
    let mut found = Affinity::default();
    let mut key = None;
    for rule in rules {
        let hash = match &rule.on {
            HashOn::Header(name) => lines(call.fields, name),
            HashOn::Cookie(cookie) => {
                let there = cookie::value(call.fields.values("cookie"), &cookie.name);
                match there {
                    Some(value) => Some(xxh64(value, 0)),
                    None => random.take_if(|_| cookie.ttl.is_some()).map(|random| {
                        let value = format!("{:016x}", random());
                        found.minted = Some(Minted::new(cookie, &value, encrypted));
                        xxh64(value.as_bytes(), 0)
                    }),
                }
            }
            HashOn::Source => Some(match call.caller.source.to_canonical() {
                IpAddr::V4(address) => xxh64(&address.octets(), 0),
                IpAddr::V6(address) => xxh64(&address.octets(), 0),
            }),
            HashOn::Query(name) => parameter(query, name).map(|value| xxh64(value, 0)),
            HashOn::Identity => call.caller.peer.map(|id| xxh64(id.as_str().as_bytes(), 0)),
        };
        if let Some(hash) = hash {
            key = Some(key.unwrap_or(0_u64).rotate_left(1) ^ hash);
            if rule.terminal {
                break;
            }
        }
    }
    // 0 and 1 share their endpoint.
    found.key = key.map(|key| Key::new(key).unwrap_or(Key::MIN));
    found
}

/// The lines of a header: that of two lines differs from that of one with both.
fn lines(fields: &impl Fields, name: &str) -> Option<u64> {
    let hash = |before: Option<u64>, line: &[u8]| Some(xxh64(line, before.unwrap_or(0)));
    fields.values(name).fold(None, hash)
}

/// The value of a parameter.
fn parameter<'q>(query: &'q [u8], name: &str) -> Option<&'q [u8]> {
    query.split(|octet| *octet == b'&').find_map(|pair| {
        let rest = pair.strip_prefix(name.as_bytes())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"=") }
    })
}

#[cfg(test)]
#[path = "affinity_test.rs"]
mod tests;
