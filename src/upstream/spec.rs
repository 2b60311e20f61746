//! What control declares of a service: immutable, shared by all shards, built by `config::compile`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::affinity::HashRule;
use super::caps::Caps;
use super::plan::Plan;
use super::{budget, retry};
use crate::identity::IdMatch;

/// A logical destination with one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name in configuration, log and metrics; also how its state is found again after a reload.
    pub name: Arc<str>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Where it runs. Names are already resolved: one endpoint per address.
    pub endpoints: Vec<Endpoint>,
    /// How connections to it are kept.
    pub pool: Pool,
    /// How long each wait on it may last.
    pub timeouts: Timeouts,
    /// How many endpoints are tried when connecting fails, the first included.
    pub connect_attempts_max: u8,
    /// Which HTTP it speaks.
    pub protocol: Protocol,
    /// Whether it is spoken to encrypted.
    pub tls: Tls,
    /// How HTTP/2 connections to it are shared.
    pub http2: Http2,
    /// When an endpoint is passed over for a while; `None`: never.
    pub breaker: Option<Arc<Breaker>>,
    /// Whether and when a request is sent once more, where its route does not say.
    pub retry: Arc<retry::Policy>,
    /// Its attempts in progress, of all shards; kept as long as there is a service of this name.
    pub meter: budget::Shared,
    /// How it is found out whether an endpoint is well without a request; `None`: not.
    pub probe: Option<Arc<Probe>>,
    /// How much it may be given at a time; `None` for whatever comes.
    pub caps: Option<Arc<Caps>>,
    /// What of all endpoints may be chosen, and by what. Boxed: most services have none of it.
    pub choice: Option<Box<Choice>>,
    /// What follows for the balancers of all shards.
    pub planned: Planned,
}

/// What of the endpoints of a service may be chosen, and by what, beyond [`Balance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What a request's key is made of, with a balancer that hashes.
    pub hash: Vec<HashRule>,
    /// How its table is built.
    pub consistent: Consistent,
    /// Where this proxy is.
    pub own_zone: Option<Arc<str>>,
    /// How its own zone is preferred.
    pub zones: Zones,
    /// Subsets by label.
    pub subsets: Vec<Subset>,
    /// How an endpoint that is new, or came back, is given more and more.
    pub slow_start: Option<SlowStart>,
}

impl Choice {
    /// What holds where nothing is said.
    pub const DEFAULT: Self = Self {
        hash: Vec::new(),
        consistent: Consistent { ring_points: 256, maglev_places: 65_537, overload_percent: None },
        own_zone: None,
        zones: Zones { prefer_own: true, endpoints_min: 6, callers_percent: None },
        subsets: Vec::new(),
        slow_start: None,
    };
}

impl Default for Choice {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How tables of consistent hashing are built and used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consistent {
    /// Points on the ring of an endpoint of average weight.
    pub ring_points: u32,
    /// Places in the table of maglev, a prime.
    pub maglev_places: u32,
    /// An endpoint that has more than so many percent of its part of what is in flight is passed over; `None`: never.
    pub overload_percent: Option<u32>,
}

/// How the proxy's own zone is preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// Whether it is.
    pub prefer_own: bool,
    /// Of services with fewer endpoints (of one priority) all zones are used alike.
    pub endpoints_min: u32,
    /// Hundredths of a percent of all callers of the service that are in this zone; `None`: as many as in each other zone.
    pub callers_percent: Option<u16>,
}

/// The endpoints that have all of these labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// Its name in routes.
    pub name: Arc<str>,
    /// What they must have.
    pub labels: Labels,
    /// What is used in its place when no endpoint has them.
    pub fallback: Fallback,
}

/// What is used in the place of a subset without endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// Nothing: 503.
    #[default]
    None,
    /// Any endpoint of the service.
    Any,
    /// Another subset, by its index; if that has none either, nothing.
    Subset(u16),
}

/// Labels: name and value, in the order of their names, no name twice.
pub type Labels = Vec<(Arc<str>, Arc<str>)>;

/// How an endpoint that is new, or came back, is given more and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowStart {
    /// How long it takes until it has its whole part.
    pub window: Duration,
    /// Hundredths: 100 is a straight line, more is more at once.
    pub aggression: u16,
    /// Percent of its weight that it has at once.
    pub weight_percent_min: u8,
}

/// The plan of a service, made once: by control, before shards see the service. It follows from what is declared, so that
/// services with the same declaration are the same.
#[derive(Debug, Clone, Default)]
pub struct Planned(OnceLock<Arc<Plan>>);

impl PartialEq for Planned {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Planned {}

impl Service {
    /// What follows from the declaration for balancers. Made now if it was not before.
    pub fn plan(&self) -> &Arc<Plan> {
        self.planned.0.get_or_init(|| Arc::new(Plan::new(self)))
    }

    /// What its connections are counted by, where there may not be any number.
    pub fn counts_connections(&self) -> Option<&Arc<Caps>> {
        self.caps.as_ref().filter(|caps| caps.connections_max != u32::MAX)
    }

    /// What may be chosen, and by what.
    pub fn choice(&self) -> &Choice {
        static DEFAULT: Choice = Choice::DEFAULT;
        self.choice.as_deref().unwrap_or(&DEFAULT)
    }

    /// What a request's key is made of; nothing where none is needed.
    pub fn hash_rules(&self) -> &[HashRule] {
        match &self.choice {
            Some(choice) if self.balance.hashes() => &choice.hash,
            Some(_) | None => &[],
        }
    }

    /// The number by which [`Wanted`](super::balance::Wanted) calls a subset.
    pub fn subset_named(&self, name: &str) -> Option<u16> {
        let index = self.choice().subsets.iter().position(|subset| *subset.name == *name)?;
        u16::try_from(index + 1).ok()
    }
}

/// Active probes of each endpoint, by control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// Between two probes of an endpoint that is well.
    pub interval: Duration,
    /// While it is not, or that is not known or in doubt.
    pub interval_unhealthy: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// Good ones in a row until it is used again.
    pub healthy: u8,
    /// Bad ones in a row until it is passed over.
    pub unhealthy: u8,
    /// Later by chance by up to so much, percent.
    pub jitter_percent: u8,
    /// Whether an endpoint is passed over until its first probe is good.
    pub waits: bool,
    /// Another port than the endpoint's.
    pub port: Option<u16>,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// A GET that is answered with one of these statuses.
    Http {
        /// The path.
        path: Box<str>,
        /// What Host says; the service's name where nothing is said.
        host: Option<Box<str>>,
        /// Ranges, both ends inclusive.
        statuses: Box<[(u16, u16)]>,
    },
    /// `grpc.health.v1.Health/Check` of this service, answered with SERVING.
    Grpc {
        /// Empty: the server as a whole.
        service: Box<str>,
    },
    /// That it takes a connection.
    Tcp,
    /// That it does a handshake.
    Tls,
}

/// When an endpoint is ejected, for how long, and how it comes back. See `upstream::breaker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// Attempts to connect in a row that fail; 0: never for that.
    pub consecutive_unreachable: u32,
    /// Answers in a row that are failures; 0: never for that.
    pub consecutive_failures: u32,
    /// Exchanges in a row without an answer; 0: never for that.
    pub consecutive_unanswered: u32,
    /// Part of the answers of a window that are failures, percent; 0: never for that.
    pub failure_percent: u8,
    /// The window.
    pub window: Duration,
    /// Answers in it below which nothing is said of it.
    pub requests_min: u32,
    /// How many times slower than the others is slow; 0: never for that.
    pub slow_factor: u32,
    /// What is not slow, whatever the others do.
    pub slow_min: Duration,
    /// Attempts that wait for that long, while the others answer; 0: never for that.
    pub pending_min: u32,
    /// Whether 429 and `RESOURCE_EXHAUSTED` are failures.
    pub counts_too_many: bool,
    /// How long it is passed over at first.
    pub ejection_base: Duration,
    /// And at most.
    pub ejection_max: Duration,
    /// Each time in a row so many times as long.
    pub ejection_multiplier: u8,
    /// Up to so much longer, by chance, percent.
    pub ejection_jitter_percent: u8,
    /// Ejected at a time for what they answer, percent of all; one always may be.
    pub ejected_percent_max: u8,
    /// Where fewer are healthy, all are used, percent; 0: never.
    pub panic_percent: u8,
    /// Trials in a row that must be good before it is used again.
    pub trial_requests: u8,
}

impl Breaker {
    /// Rules by which nobody is ejected.
    pub fn off() -> Self {
        Self {
            consecutive_unreachable: 0,
            consecutive_failures: 0,
            consecutive_unanswered: 0,
            failure_percent: 0,
            slow_factor: 0,
            ..Self::default()
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive_unreachable: 1,
            consecutive_failures: 5,
            consecutive_unanswered: 5,
            failure_percent: 50,
            window: Duration::from_secs(10),
            requests_min: 20,
            slow_factor: 10,
            slow_min: Duration::from_millis(250),
            pending_min: 3,
            counts_too_many: false,
            ejection_base: Duration::from_secs(1),
            ejection_max: Duration::from_secs(30),
            ejection_multiplier: 2,
            ejection_jitter_percent: 20,
            ejected_percent_max: 50,
            panic_percent: 50,
            trial_requests: 3,
        }
    }
}

/// Which HTTP a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// What it chooses by ALPN; HTTP/1.1 without TLS.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, without TLS by prior knowledge (h2c).
    Http2,
}

/// Whether a service is spoken to encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tls {
    /// Plain text.
    #[default]
    Off,
    /// mTLS within the mesh; the peer must be one of these. Empty: anybody of our own trust domain.
    Mesh(Vec<IdMatch>),
    /// TLS to a server outside of the mesh, verified by name against public or given roots.
    Edge(EdgeTls),
}

/// TLS to a server outside of the mesh.
#[derive(Clone)]
pub struct EdgeTls {
    /// Roots, versions, ALPN.
    pub client: Arc<rustls::ClientConfig>,
    /// The name that its certificate must have; also sent as SNI.
    pub server_name: rustls::pki_types::ServerName<'static>,
    /// What tells two of them apart: a hash of all that went in.
    pub digest: [u8; 32],
}

impl PartialEq for EdgeTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for EdgeTls {}

impl std::fmt::Debug for EdgeTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EdgeTls({:?})", self.server_name)
    }
}

/// How HTTP/2 connections to a service are shared, per shard and endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// Connections per endpoint and shard.
    pub connections_max: u32,
    /// Exchanges at a time on one connection, if the peer allows as many.
    pub streams_max: u32,
    /// Octets of response body on the way per stream.
    pub stream_window: u32,
    /// Octets of response body on the way per connection.
    pub connection_window: u32,
    /// A ping after this long without a frame while exchanges are open; zero for none.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_timeout: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            connections_max: 8,
            streams_max: 100,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
        }
    }
}

/// One address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// Its share relative to the others, 1 to 1000.
    pub weight: u16,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
    /// 0 is used first; the next ones when too little of it is there.
    pub priority: u8,
    /// What subsets choose by. Shared by all endpoints that have the same.
    pub labels: Option<Arc<Labels>>,
    /// Whether it gets nothing new.
    pub drain: bool,
}

impl Endpoint {
    /// One with nothing but an address.
    pub const fn new(address: Address) -> Self {
        Self { address, weight: 1, zone: None, priority: 0, labels: None, drain: false }
    }

    /// Whether it has all of these labels.
    pub fn has_labels(&self, wanted: &Labels) -> bool {
        let own = self.labels.as_deref().map_or(&[][..], |labels| labels);
        wanted.iter().all(|label| own.contains(label))
    }
}

/// A TCP address or the path of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Ip(SocketAddr),
    /// A stream socket in the file system.
    Unix(Arc<Path>),
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Of two random endpoints the one with the lower peak-EWMA of latency × requests in flight.
    #[default]
    PeakEwma,
    /// Of two random endpoints the one with fewer requests in flight per weight.
    LeastRequest,
    /// In turn, smoothly by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// By the request's key, on a ring of points.
    RingHash,
    /// By the request's key, in a table of places.
    Maglev,
}

impl Balance {
    /// Whether a request's key decides.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// How connections to a service are kept, per shard and endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Idle connections kept per endpoint and shard; 0 keeps none.
    pub idle_max: u32,
    /// How long an idle connection is kept, unless the upstream is seen to close earlier.
    pub idle_timeout: Duration,
    /// Open connections per endpoint and shard, idle ones included.
    pub connections_max: u32,
}

/// How long each wait on a service may last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection to be established.
    pub connect: Duration,
    /// From the whole request sent to the response head.
    pub response: Duration,
    /// Between two reads of a response body, or two writes of a request body.
    pub body_stall: Duration,
}

/// For each endpoint of `new` its place in `old`, by address: how a shard finds again what it knows of those that stay.
/// An address that is listed twice has the same place or its first one. O(old + new): it runs on shards, and a service
/// has up to 10 000 endpoints.
pub fn former_places(old: &[Endpoint], new: &[Endpoint]) -> Vec<Option<usize>> {
    // Made for the first that has moved: most reloads leave most endpoints where they were.
    let mut by_address = None;
    let place = |(n, endpoint): (usize, &Endpoint)| match old.get(n) {
        Some(same) if same.address == endpoint.address => Some(n),
        _ => by_address
            .get_or_insert_with(|| -> HashMap<&Address, usize> {
                old.iter().enumerate().rev().map(|(n, e)| (&e.address, n)).collect()
            })
            .get(&endpoint.address)
            .copied(),
    };
    new.iter().enumerate().map(place).collect()
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Declarations for the tests of this folder.

    use super::*;

    /// A service with these weights, its endpoints on ports from 1 on.
    pub(in crate::upstream) fn service(balance: Balance, weights: &[u16]) -> Service {
        Service {
            name: "s".into(),
            balance,
            endpoints: (1..).zip(weights).map(|(port, &weight)| endpoint(port, weight)).collect(),
            pool: Pool { idle_max: 1, idle_timeout: Duration::from_secs(1), connections_max: 1 },
            timeouts: Timeouts {
                connect: Duration::from_secs(1),
                response: Duration::from_secs(1),
                body_stall: Duration::from_secs(1),
            },
            connect_attempts_max: 1,
            protocol: Protocol::Auto,
            tls: Tls::Off,
            http2: Http2::default(),
            choice: None,
            planned: Planned::default(),
            breaker: None,
            retry: Arc::new(retry::Policy::off()),
            meter: budget::Shared::default(),
            probe: None,
            caps: None,
        }
    }

    /// An endpoint on that port.
    pub(in crate::upstream) fn endpoint(port: u16, weight: u16) -> Endpoint {
        Endpoint { weight, ..Endpoint::new(Address::Ip(SocketAddr::from(([127, 0, 0, 1], port)))) }
    }
}
