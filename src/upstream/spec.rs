//! What control declares of a service: immutable, shared by all shards, built by `config::compile`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
}

/// One address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// Its share relative to the others, 1 to 1000.
    pub weight: u16,
    /// Where it runs, for log and admin (balancing by zone comes with zone-aware routing).
    pub zone: Option<Arc<str>>,
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

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
