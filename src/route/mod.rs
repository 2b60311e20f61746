//! Which service was meant: a request to a route, by host, path and conditions.
//!
//! Pure: knows no socket and no clock. Paths are matched octet for octet as they were sent (no decoding, no removal of
//! dot segments), because what is matched must be what is forwarded.
//!
//! Of all routes that match, the one with the most specific host is meant; of those the one with the most specific path:
//! exact, template, expression, prefix; of those the one that asks for more ([`Conditions::specificity`]); of those the
//! first in the files. [`Table`] finds it without trying them all, [`RouteMatch::judge`] says of one route why (not).

mod action;
pub mod answer;
mod cell;
pub mod changes;
mod conditions;
pub mod cookie;
pub mod cors;
pub mod deadline;
pub mod fault;
pub mod filled;
mod judge;
mod lengths;
pub mod mirror;
pub mod path;
mod patterns;
pub mod percent;
mod pieces;
mod regex;
pub mod shape;
pub mod split;
mod table;
mod template;
pub mod text;
pub mod wish;

use std::sync::Arc;
use std::time::Duration;

pub use action::Action;
pub use conditions::{Conditions, Labelled, Request, Specificity, Test, Unmet, What, Workload};
pub use judge::{HostRank, Judgement, PathRank, Rank};
pub use regex::{BadRegex, Regex};
pub use table::{Overlap, Table, TableBuilder};
pub use template::{BadTemplate, Template};

use crate::quota::global::Ask;
use crate::upstream::retry;

/// What becomes of the requests that a [`RouteMatch`] means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name in log and metrics.
    pub name: Arc<str>,
    /// What becomes of its requests.
    pub action: Action,
    /// Of the one service that they go to, the subset of its endpoints, as `Service::subset_named` numbers it; 0 for any.
    pub subset: u16,
    /// What is changed about its messages. Boxed, because most routes change nothing.
    pub changes: Option<Box<changes::Changes>>,
    /// What is done to its requests on purpose; `None` for nearly all.
    pub fault: Option<Box<fault::Fault>>,
    /// Services that get copies of its requests; `None` for most.
    pub mirror: Option<Arc<[mirror::Mirror]>>,
    /// From the request's head to the last byte of the response; `None` for no limit.
    pub timeout: Option<Duration>,
    /// What a connection may be turned into on this route.
    pub upgrades: Upgrades,
    /// How long a tunnel (an upgraded connection, a CONNECT) may lie without a byte in either direction.
    pub tunnel_idle: Duration,
    /// Whether and when a request is sent once more; `None` where its service says.
    pub retry: Option<Arc<retry::Policy>>,
    /// What callers may say of retries and timeouts; `None` for nothing.
    pub caller_may: Option<Box<wish::May>>,
    /// Whether the caller may say when it stops waiting, and the service is told what is left.
    pub deadline_field: bool,
    /// Who gives way where there is not enough for all.
    pub priority: Priority,
    /// How often it may be taken: indices into `Snapshot::quotas`; `None` where nothing says.
    pub quotas: Option<Box<[u32]>>,
    /// What is to be asked of those who count for several proxies; `None` where nothing is.
    pub asks: Option<Box<[Ask]>>,
}

/// Who gives way to whom where there is not enough for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// To nobody.
    Critical,
    /// To what is critical.
    #[default]
    Default,
    /// To everybody: what can be done later, or not at all.
    Sheddable,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// All of them, the most important first.
    pub const ALL: [Self; Self::COUNT] = [Self::Critical, Self::Default, Self::Sheddable];
}

/// What a connection may be turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrades {
    /// `Upgrade: websocket`, and extended CONNECT with that protocol.
    pub websocket: bool,
    /// CONNECT: a tunnel to the service of the route, whatever the target says.
    pub connect: bool,
}

impl Default for Upgrades {
    fn default() -> Self {
        Self { websocket: true, connect: false }
    }
}

/// Which hosts a route serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// Every host, also a request without one (HTTP/1.0).
    Any,
    /// Exactly this host, compared without regard to case, without port.
    Exact(Box<str>),
    /// `*.suffix`: one or more labels before `.suffix` (stored without the `*`, with the dot).
    Suffix(Box<str>),
}

/// Which paths a route serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// Exactly this path (the query does not count).
    Exact(Box<str>),
    /// This path and everything below it, by whole segments: `/a` matches `/a` and `/a/b`, not `/ab`. `/` matches all.
    Prefix(Box<str>),
    /// Paths of this form.
    Template(Template),
    /// Paths that match wholly.
    Regex(Regex),
}

/// Which requests a route serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    /// One of these; empty: any host.
    pub hosts: Box<[HostMatch]>,
    /// This path.
    pub path: PathMatch,
    /// All of these. In their normal form ([`Conditions::normalize`]).
    pub conditions: Conditions,
}

impl RouteMatch {
    /// The hosts, [`HostMatch::Any`] among them if there are none.
    pub fn hosts(&self) -> &[HostMatch] {
        if self.hosts.is_empty() { &[HostMatch::Any] } else { &self.hosts }
    }
}
