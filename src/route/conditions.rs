//! What a route asks of a request beside host and path. All conditions must hold; one with several values holds by one of
//! them; one on a value holds by its test.
//!
//! What is asked for is read when it is asked, and not before: a table without conditions never looks at a field.
//! - **Field**: its lines, joined by a comma (as RFC 9110 §5.3 has it); names without regard to case.
//! - **Query**: the first parameter of that name; name and value decoded (`%41`, and `+` for a blank).
//! - **Cookie**: the first of that name, as it was sent.
//! - **Not**: holds whenever the test does not, so also where there is no such field, parameter or cookie.
//! - **Labels**: of workloads, which the configuration knows by identity or address. Who has those that are asked for was looked up
//!   when the configuration was read; a request is compared with those workloads, one after the other.
//!
//! Refuses to trust what a caller says about itself: the peer is what the handshake proved, the source is the
//! connection's own address.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Regex;
use crate::authorize::{Call, Fields};
use crate::identity::{IdMatch, SpiffeId};

/// A request, as routes ask for it.
#[derive(Debug)]
pub struct Request<'r, 'c, F> {
    /// Host without port; `None` for a request without one.
    pub host: Option<&'r [u8]>,
    /// Path without query; `/` for CONNECT, which is routed by its host.
    pub path: &'r [u8],
    /// What stands behind the question mark.
    pub query: &'r [u8],
    /// Who calls, the method, the fields.
    pub call: &'r Call<'c, F>,
}

/// What a route asks of a request beside host and path. An empty list asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Conditions {
    /// Names of listeners.
    pub listeners: Vec<Arc<str>>,
    /// Ports of listeners.
    pub ports: Vec<u16>,
    /// Methods, octet for octet. A WebSocket is a GET, whatever the version of HTTP.
    pub methods: Vec<Box<str>>,
    /// Whether it must be gRPC (or gRPC-Web): by its content-type.
    pub grpc: bool,
    /// Verified identities of the peer.
    pub from: Vec<IdMatch>,
    /// What workloads that call are labelled with.
    pub labels: Option<Labelled>,
    /// Ranges of the connection's own source address.
    pub sources: Vec<ipnet::IpNet>,
    /// Fields by their names in lower case, all of which must hold.
    pub headers: Vec<(Box<str>, Test)>,
    /// Parameters of the query, all of which must hold.
    pub query: Vec<(Box<str>, Test)>,
    /// Cookies, all of which must hold.
    pub cookies: Vec<(Box<str>, Test)>,
}

/// Labels, and which workloads have them all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Labelled {
    /// Names and values, in the order of their names.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// By what each of those workloads is known.
    pub workloads: Vec<Workload>,
}

/// By what a workload is known; where both are given both must hold. An empty list asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Workload {
    /// Its verified identity: one of these.
    pub from: Vec<IdMatch>,
    /// The connection's own source address: in one of these.
    pub sources: Vec<ipnet::IpNet>,
}

/// A test of one value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Test {
    /// What the value must be.
    pub what: What,
    /// Whether it is just what it must not be.
    pub not: bool,
}

/// What a value must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// There.
    Present,
    /// Octet for octet.
    Exact(Box<str>),
    /// With this at its begin.
    Prefix(Box<str>),
    /// With this at its end.
    Suffix(Box<str>),
    /// Wholly matched.
    Regex(Regex),
    /// A whole decimal number, from the first to before the second.
    Range(i64, i64),
}

/// The first condition that a request does not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet<'c> {
    /// It came by another listener.
    Listener,
    /// It came to another port.
    Port,
    /// Its method.
    Method,
    /// It is no gRPC.
    Grpc,
    /// Who calls is another, or unknown.
    From,
    /// Who calls is no workload with these labels.
    Labels(&'c Labelled),
    /// It comes from elsewhere.
    Source,
    /// The field of that name.
    Header(&'c str, &'c Test),
    /// The parameter of that name.
    Query(&'c str, &'c Test),
    /// The cookie of that name.
    Cookie(&'c str, &'c Test),
}

/// How much conditions ask for, in the order in which that counts: what decides between routes of one host and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    methods: bool,
    headers: usize,
    query: usize,
    cookies: usize,
    from: bool,
    labels: usize,
    sources: bool,
    place: bool,
}

/// A value as it is compared: nearly always a piece of the head.
pub(super) enum Value<'v> {
    Piece(&'v [u8]),
    Made(SmallVec<[u8; 128]>),
}

impl Conditions {
    /// Sorts what has no order of its own and takes out what stands twice, so that the same conditions are equal.
    pub fn normalize(&mut self) {
        self.listeners.sort_unstable();
        self.listeners.dedup();
        self.ports.sort_unstable();
        self.ports.dedup();
        self.methods.sort_unstable();
        self.methods.dedup();
        self.from.sort_by_cached_key(IdMatch::to_string);
        self.from.dedup();
        self.sources.sort_unstable();
        self.sources.dedup();
        for fields in [&mut self.headers, &mut self.query, &mut self.cookies] {
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How much is asked.
    pub fn specificity(&self) -> Specificity {
        Specificity {
            methods: !self.methods.is_empty(),
            headers: self.headers.len() + usize::from(self.grpc),
            query: self.query.len(),
            cookies: self.cookies.len(),
            from: !self.from.is_empty(),
            labels: self.labels.as_ref().map_or(0, |labelled| labelled.labels.len()),
            sources: !self.sources.is_empty(),
            place: !self.listeners.is_empty() || !self.ports.is_empty(),
        }
    }

    /// What comes first is asked first: more specific ones, then those that stand first in the file.
    pub(super) fn rank(&self, route: u32) -> (Specificity, Reverse<u32>) {
        (self.specificity(), Reverse(route))
    }

    /// The first condition that a request does not meet, the cheap ones first; `None` when it meets all.
    pub fn first_unmet<F: Fields>(&self, request: &Request<'_, '_, F>) -> Option<Unmet<'_>> {
        let caller = &request.call.caller;
        let unmet = |named: bool, unmet| named.then_some(unmet);
        unmet(
            !self.listeners.is_empty() && !self.listeners.iter().any(|name| **name == *caller.listener),
            Unmet::Listener,
        )
        .or_else(|| unmet(!self.ports.is_empty() && !self.ports.contains(&caller.port), Unmet::Port))
        .or_else(|| {
            let is_meant = self.methods.iter().any(|method| method.as_bytes() == request.call.method);
            unmet(!self.methods.is_empty() && !is_meant, Unmet::Method)
        })
        .or_else(|| {
            let meant = |peer| self.from.iter().any(|from| from.matches(peer));
            unmet(!self.from.is_empty() && !caller.peer.is_some_and(meant), Unmet::From)
        })
        .or_else(|| {
            let is_meant = |labelled: &&Labelled| labelled.means(caller.peer, caller.source);
            self.labels.as_ref().filter(|labelled| !is_meant(labelled)).map(Unmet::Labels)
        })
        .or_else(|| {
            let source = caller.source.to_canonical();
            let meant = || self.sources.iter().any(|range| range.contains(&source));
            unmet(!self.sources.is_empty() && !meant(), Unmet::Source)
        })
        .or_else(|| unmet(self.grpc && !request.is_grpc(), Unmet::Grpc))
        .or_else(|| {
            let test = |(name, test): &&(Box<str>, Test)| !test.is_met(request.header(name));
            self.headers.iter().find(test).map(|(name, test)| Unmet::Header(name, test))
        })
        .or_else(|| {
            let test = |(name, test): &&(Box<str>, Test)| !test.is_met(request.parameter(name));
            self.query.iter().find(test).map(|(name, test)| Unmet::Query(name, test))
        })
        .or_else(|| {
            let test =
                |(name, test): &&(Box<str>, Test)| !test.is_met(request.cookie(name).map(Value::Piece));
            self.cookies.iter().find(test).map(|(name, test)| Unmet::Cookie(name, test))
        })
    }

    /// Whether every request that meets `narrower` meets these: as far as that can be told by looking at one condition
    /// after the other.
    pub fn include(&self, narrower: &Self) -> bool {
        fn lists<T: PartialEq>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            wide.is_empty()
                || (!narrow.is_empty() && narrow.iter().all(|n| wide.iter().any(|w| w == n || covers(w, n))))
        }
        let fields = |wide: &[(Box<str>, Test)], narrow: &[(Box<str>, Test)]| {
            wide.iter().all(|(name, wide)| narrow.iter().any(|(n, test)| n == name && wide.includes(test)))
        };
        lists(&self.listeners, &narrower.listeners, |_, _| false)
            && lists(&self.ports, &narrower.ports, |_, _| false)
            && lists(&self.methods, &narrower.methods, |_, _| false)
            && lists(&self.from, &narrower.from, |wide, narrow| match (wide, narrow) {
                (IdMatch::Any, _) => true,
                (_, IdMatch::Exact(id)) => wide.matches(id),
                (IdMatch::Below(wide), IdMatch::Below(narrow)) => narrow.starts_with(&**wide),
                (_, _) => false,
            })
            && self.labels.as_ref().is_none_or(|wide| {
                narrower
                    .labels
                    .as_ref()
                    .is_some_and(|narrow| wide.labels.iter().all(|label| narrow.labels.contains(label)))
            })
            && lists(&self.sources, &narrower.sources, |wide, narrow| wide.contains(narrow))
            && (!self.grpc || narrower.grpc)
            && fields(&self.headers, &narrower.headers)
            && fields(&self.query, &narrower.query)
            && fields(&self.cookies, &narrower.cookies)
    }
}

impl Labelled {
    /// Whether a workload with these labels calls.
    fn means(&self, peer: Option<&SpiffeId>, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.workloads.iter().any(|Workload { from, sources }| {
            (from.is_empty() || peer.is_some_and(|peer| from.iter().any(|from| from.matches(peer))))
                && (sources.is_empty() || sources.iter().any(|range| range.contains(&source)))
        })
    }
}

impl Test {
    /// Whether a value passes. No value passes only where it must not be.
    pub(super) fn is_met(&self, value: Option<Value<'_>>) -> bool {
        value.is_some_and(|value| self.what.is(value.octets())) != self.not
    }

    /// Whether every value that passes `narrower` passes this: as far as that can be told easily.
    fn includes(&self, narrower: &Self) -> bool {
        if self.not != narrower.not {
            return self.not && self.what.excludes(&narrower.what);
        }
        let (wide, narrow) =
            if self.not { (&narrower.what, &self.what) } else { (&self.what, &narrower.what) };
        wide.includes(narrow)
    }
}

impl What {
    fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Regex(regex) => regex.matches(value),
            Self::Range(from, to) => number(value).is_some_and(|n| (*from..*to).contains(&n)),
        }
    }

    /// Whether all values that are `narrow` are this.
    fn includes(&self, narrow: &Self) -> bool {
        match (self, narrow) {
            (Self::Present, _) => true,
            (_, Self::Exact(text)) => self.is(text.as_bytes()),
            (Self::Prefix(wide), Self::Prefix(narrow)) => narrow.starts_with(&**wide),
            (Self::Suffix(wide), Self::Suffix(narrow)) => narrow.ends_with(&**wide),
            (Self::Range(from, to), Self::Range(a, b)) => from <= a && b <= to,
            (_, _) => self == narrow,
        }
    }

    /// Whether no value that is `other` is this.
    fn excludes(&self, other: &Self) -> bool {
        match other {
            Self::Exact(text) => !self.is(text.as_bytes()),
            _ => false,
        }
    }
}

/// A whole decimal number, with nothing around it.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl<F: Fields> Request<'_, '_, F> {
    /// What was found where a condition is not met; `None` where there is nothing, and for what is no value.
    pub fn value(&self, unmet: &Unmet<'_>) -> Option<Vec<u8>> {
        let value = match unmet {
            Unmet::Header(name, _) => self.header(name)?,
            Unmet::Query(name, _) => self.parameter(name)?,
            Unmet::Cookie(name, _) => Value::Piece(self.cookie(name)?),
            Unmet::Listener
            | Unmet::Port
            | Unmet::Method
            | Unmet::Grpc
            | Unmet::From
            | Unmet::Labels(_)
            | Unmet::Source => return None,
        };
        Some(value.octets().to_vec())
    }

    /// The lines of a field, joined.
    pub(super) fn header(&self, name: &str) -> Option<Value<'_>> {
        let mut lines = self.call.fields.lines(name);
        let first = lines.next()?;
        let Some(second) = lines.next() else { return Some(Value::Piece(first)) };
        let mut joined = SmallVec::from_slice(first);
        for line in std::iter::once(second).chain(lines) {
            joined.push(b',');
            joined.extend_from_slice(line);
        }
        Some(Value::Made(joined))
    }

    /// The first parameter of a name, decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<Value<'_>> {
        self.query.split(|b| *b == b'&').find_map(|pair| {
            let equals = memchr::memchr(b'=', pair);
            let key = &pair[..equals.unwrap_or(pair.len())];
            let value = equals.map_or(&[][..], |equals| &pair[equals + 1..]);
            (!pair.is_empty() && is_decoded(key, name)).then(|| {
                if memchr::memchr2(b'%', b'+', value).is_none() {
                    Value::Piece(value)
                } else {
                    Value::Made(decoded(value).collect())
                }
            })
        })
    }

    /// The first cookie of a name.
    pub(super) fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.call.fields.lines("cookie").flat_map(|line| line.split(|b| *b == b';')).find_map(|crumb| {
            let crumb = crumb.trim_ascii();
            let equals = memchr::memchr(b'=', crumb)?;
            (&crumb[..equals] == name.as_bytes()).then(|| &crumb[equals + 1..])
        })
    }

    fn is_grpc(&self) -> bool {
        self.call.fields.lines("content-type").next().is_some_and(|kind| {
            const GRPC: &[u8] = b"application/grpc";
            let Some((head, rest)) = kind.split_at_checked(GRPC.len()) else { return false };
            let rest = match rest.split_at_checked(4) {
                Some((web, rest)) if web.eq_ignore_ascii_case(b"-web") => match rest.split_at_checked(5) {
                    Some((text, rest)) if text.eq_ignore_ascii_case(b"-text") => rest,
                    _ => rest,
                },
                _ => rest,
            };
            head.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        })
    }
}

fn is_decoded(encoded: &[u8], text: &str) -> bool {
    if memchr::memchr2(b'%', b'+', encoded).is_none() {
        return encoded == text.as_bytes();
    }
    decoded(encoded).eq(text.bytes())
}

/// The octets that a piece of a query stands for. What is no encoding stands for itself.
fn decoded(encoded: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = encoded;
    std::iter::from_fn(move || {
        if let [b'%', high, low, after @ ..] = rest
            && let Some((high, low)) = hex(*high).zip(hex(*low))
        {
            rest = after;
            return Some(high << 4 | low);
        }
        let (first, after) = rest.split_first()?;
        rest = after;
        Some(if *first == b'+' { b' ' } else { *first })
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

impl Value<'_> {
    pub(super) fn octets(&self) -> &[u8] {
        match self {
            Self::Piece(piece) => piece,
            Self::Made(made) => made,
        }
    }
}

#[cfg(test)]
#[path = "conditions_test.rs"]
mod tests;
