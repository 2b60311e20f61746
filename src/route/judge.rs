//! Whether one route means a request, and if so how specifically, or else why not: what the table does for all routes at
//! once, said of one. Called to explain a decision; the tests of the table compare the two.

use std::cmp::Reverse;

use super::conditions::Specificity;
use super::{HostMatch, PathMatch, Request, RouteMatch, Table, Unmet};
use crate::authorize::Fields;

/// What a route is to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement<'m> {
    /// It serves other hosts.
    Host,
    /// It serves other paths.
    Path,
    /// A condition is not met: the first of them.
    Condition(Unmet<'m>),
    /// It means the request; the highest of all ranks decides.
    Meant(Rank),
}

/// How specific a route that means a request is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The host.
    pub host: HostRank,
    /// The path.
    pub path: PathRank,
    /// The conditions.
    pub conditions: Specificity,
    /// The place in the files.
    pub order: Reverse<u32>,
}

/// How specific a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostRank {
    /// Any host.
    Any,
    /// Below a suffix of so many octets.
    Suffix(usize),
    /// This one.
    Exact,
}

/// How specific a path is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRank {
    /// Below a prefix of so many octets.
    Prefix(usize),
    /// Of an expression.
    Regex,
    /// Of a template: how exact each of its segments is.
    Template(Vec<u8>),
    /// This one.
    Exact,
}

impl RouteMatch {
    /// What this route, of that number, is to a request.
    pub fn judge<F: Fields>(&self, number: u32, request: &Request<'_, '_, F>) -> Judgement<'_> {
        let host = request.host.map(|host| host.strip_suffix(b".").unwrap_or(host));
        if host.is_some_and(|host| host.len() > Table::HOST_BYTES_MAX) {
            return Judgement::Host;
        }
        let Some(host) = self.hosts().iter().filter_map(|known| rank_host(known, host)).max() else {
            return Judgement::Host;
        };
        let Some(path) = rank_path(&self.path, request.path) else { return Judgement::Path };
        match self.conditions.first_unmet(request) {
            Some(unmet) => Judgement::Condition(unmet),
            None => Judgement::Meant(Rank {
                host,
                path,
                conditions: self.conditions.specificity(),
                order: Reverse(number),
            }),
        }
    }
}

fn rank_host(host: &HostMatch, asked: Option<&[u8]>) -> Option<HostRank> {
    let name = |name: &str| name.strip_suffix('.').unwrap_or(name).len();
    match (host, asked) {
        (HostMatch::Any, _) => Some(HostRank::Any),
        (_, None) => None,
        (HostMatch::Exact(own), Some(asked)) => {
            own.as_bytes()[..name(own)].eq_ignore_ascii_case(asked).then_some(HostRank::Exact)
        }
        (HostMatch::Suffix(own), Some(asked)) => {
            let own = &own.as_bytes()[..name(own)];
            let at = asked.len().checked_sub(own.len()).filter(|at| *at > 0)?;
            asked[at..].eq_ignore_ascii_case(own).then_some(HostRank::Suffix(own.len()))
        }
    }
}

fn rank_path(path: &PathMatch, asked: &[u8]) -> Option<PathRank> {
    match path {
        PathMatch::Exact(path) => (path.as_bytes() == asked).then_some(PathRank::Exact),
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix).as_bytes();
            let below =
                asked.strip_prefix(prefix).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')));
            (prefix.is_empty() || below).then_some(PathRank::Prefix(prefix.len()))
        }
        PathMatch::Template(template) => {
            template.matches(asked).then(|| PathRank::Template(template.exactness().collect()))
        }
        PathMatch::Regex(regex) => regex.matches(asked).then_some(PathRank::Regex),
    }
}
