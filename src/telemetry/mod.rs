//! What is measured. Written by one shard without lock, allocation or waiting; handed to control as an [`Interval`]
//! once a second through `shard::link`; merged, exported and shown by control alone.
//!
//! Memory is bounded by what is in use: a service's [`ServiceCounts`] are allocated at its first exchange and given
//! back after a while without any; at most `SERVICES_MAX` services are told apart per shard, the rest share one entry.

pub mod access;
pub mod faults;
pub mod mirrored;
pub mod recorder;
pub mod retries;
pub mod routes;
pub mod rules;
pub mod spans;

use std::sync::Arc;

use hdrhistogram::Histogram;
use smallvec::SmallVec;

use crate::failure::{Cause, Failure};
use crate::http::grpc::Status;

/// Services told apart per shard; the exchanges of further ones are counted under [`OVERFLOW_SERVICE`].
pub const SERVICES_MAX: usize = 1024;
/// The name under which services past [`SERVICES_MAX`] are counted together.
pub const OVERFLOW_SERVICE: &str = "(other)";
/// The name under which requests are counted that met no service (refused heads, no route).
pub const NO_SERVICE: &str = "(none)";
/// The name under which requests are counted that no rule of `[[authorization]]` met and the default refused.
pub const DEFAULT_RULE: &str = "(default)";
/// The name under which rules beyond the number told apart are counted together.
pub const OVERFLOW_RULE: &str = "(other)";

/// Kinds of HTTP/2 floods, as [`ShardTotals::floods`] counts them: frames of which a peer sent far more than it can need.
pub const FLOODS: [&str; 8] =
    ["ping", "settings", "priority", "reset", "continuation", "empty_data", "window_update", "unknown_frame"];
/// Kinds of failures of connections told apart per interval, and by control.
pub const CONNECTION_FAILURES_MAX: usize = 64;

/// What one shard saw since the last interval that it could hand over (one second, unless control was late).
#[derive(Debug, Default)]
pub struct Interval {
    /// Which shard.
    pub shard: u16,
    /// Per service with at least one exchange in the interval.
    pub services: Vec<ServiceInterval>,
    /// Per route with at least one exchange in the interval.
    pub routes: Vec<routes::RouteInterval>,
    /// Connections that failed before there was an exchange (their handshake, as a rule), by failure; at most
    /// [`CONNECTION_FAILURES_MAX`].
    pub connection_failures: Vec<(Failure, u64)>,
    /// Those of further kinds.
    pub connection_failures_other: u64,
    /// State and totals of the shard at the end of the interval.
    pub shard_totals: ShardTotals,
    /// What rules of `[[authorization]]` did.
    pub rules: Vec<rules::RuleCount>,
    /// Open connections that were closed because they are not allowed any more, by cause.
    pub revoked: SmallVec<[(Cause, u64); 4]>,
}

impl Interval {
    /// One in which nothing happened.
    pub fn new(shard: u16) -> Self {
        Self {
            shard,
            services: Vec::new(),
            routes: Vec::new(),
            connection_failures: Vec::new(),
            connection_failures_other: 0,
            shard_totals: ShardTotals::default(),
            rules: Vec::new(),
            revoked: SmallVec::new(),
        }
    }
}

/// One service's part of an interval.
#[derive(Debug)]
pub struct ServiceInterval {
    /// The service's name, or [`NO_SERVICE`], [`OVERFLOW_SERVICE`].
    pub service: Arc<str>,
    /// What was counted.
    pub counts: Box<ServiceCounts>,
}

/// Counters and histograms of one service, of one shard, over one interval.
#[derive(Debug)]
pub struct ServiceCounts {
    /// Exchanges ended in the interval, by the class of the status sent downstream: index 1 to 5 for 1xx to 5xx,
    /// index 0 where no status was sent.
    pub by_class: [u64; 6],
    /// Exchanges that ended badly, by failure. At most one per exchange.
    pub failures: SmallVec<[(Failure, u64); 4]>,
    /// gRPC calls among them.
    pub grpc: GrpcCounts,
    /// Attempts beyond the first, of any exchange.
    pub further_attempts: u64,
    /// Those of them that a retry policy made, and those that it did not.
    pub retries: retries::RetryCounts,
    /// Copies of requests of others for it: counted here only.
    pub mirrored: mirrored::MirrorCounts,
    /// What was done on purpose.
    pub faults: faults::FaultCounts,
    /// Bytes of request bodies taken from callers.
    pub request_body_bytes: u64,
    /// Bytes of response bodies sent to callers.
    pub response_body_bytes: u64,
    /// From the request's first byte here to the response's first byte here, ns.
    pub first_byte: Histogram<u32>,
    /// From the request's first byte here to the response's last byte handed to the kernel, ns.
    pub whole: Histogram<u32>,
    /// The proxy's own share of `whole`: the whole minus the waits for either peer, ns.
    pub own: Histogram<u32>,
}

impl ServiceCounts {
    /// Lowest value told apart, ns.
    pub const LATENCY_MIN_NS: u64 = 1_000;
    /// Largest value recorded; longer ones count as this. One minute: longer exchanges are streams, not latencies.
    pub const LATENCY_MAX_NS: u64 = 60_000_000_000;
    /// Largest own share recorded, ns.
    pub const OWN_MAX_NS: u64 = 1_000_000_000;
    /// Two significant digits: an error of at most 1 %, 11 KiB per histogram.
    pub const SIGNIFICANT_DIGITS: u8 = 2;

    /// All zero.
    pub fn new() -> Self {
        Self {
            by_class: [0; 6],
            failures: SmallVec::new(),
            grpc: GrpcCounts::default(),
            further_attempts: 0,
            retries: retries::RetryCounts::default(),
            mirrored: mirrored::MirrorCounts::default(),
            faults: faults::FaultCounts::default(),
            request_body_bytes: 0,
            response_body_bytes: 0,
            first_byte: histogram(Self::LATENCY_MAX_NS),
            whole: histogram(Self::LATENCY_MAX_NS),
            own: histogram(Self::OWN_MAX_NS),
        }
    }

    /// Exchanges ended in the interval.
    pub fn exchanges(&self) -> u64 {
        self.by_class.iter().sum()
    }

    /// Whether nothing was counted: not even what is counted apart from exchanges, as copies of others' requests are.
    pub fn is_empty(&self) -> bool {
        self.exchanges() + self.further_attempts + self.request_body_bytes + self.response_body_bytes == 0
            && self.retries == retries::RetryCounts::default()
            && self.mirrored == mirrored::MirrorCounts::default()
            && self.faults == faults::FaultCounts::default()
    }

    /// Counts one more exchange that ended with `failure`.
    pub fn count_failure(&mut self, failure: Failure) {
        match self.failures.iter_mut().find(|(f, _)| *f == failure) {
            Some((_, n)) => *n += 1,
            None => self.failures.push((failure, 1)),
        }
    }

    /// Counts one more exchange, answered with a status of this class, that was a gRPC call.
    pub fn count_grpc(&mut self, ended: &recorder::GrpcEnded, class: usize) {
        self.grpc.by_status[ended.status.index()] += 1;
        self.grpc.errors += u64::from(ended.status.is_error() && (1..5).contains(&class));
        self.grpc.request_messages += ended.request_messages;
        self.grpc.response_messages += ended.response_messages;
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.by_class.iter_mut().zip(other.by_class) {
            *mine += theirs;
        }
        for &(failure, n) in &other.failures {
            match self.failures.iter_mut().find(|(f, _)| *f == failure) {
                Some((_, mine)) => *mine += n,
                None => self.failures.push((failure, n)),
            }
        }
        self.grpc.add(&other.grpc);
        self.further_attempts += other.further_attempts;
        self.retries.add(&other.retries);
        self.mirrored.add(&other.mirrored);
        self.faults.add(&other.faults);
        self.request_body_bytes += other.request_body_bytes;
        self.response_body_bytes += other.response_body_bytes;
        for (mine, theirs) in [
            (&mut self.first_byte, &other.first_byte),
            (&mut self.whole, &other.whole),
            (&mut self.own, &other.own),
        ] {
            // Same bounds by construction, so adding cannot fail.
            let _ = mine.add(theirs);
        }
    }

    /// All zero again; keeps the memory.
    pub fn clear(&mut self) {
        self.by_class = [0; 6];
        self.failures.clear();
        self.grpc = GrpcCounts::default();
        self.further_attempts = 0;
        self.retries = retries::RetryCounts::default();
        self.mirrored = mirrored::MirrorCounts::default();
        self.faults = faults::FaultCounts::default();
        self.request_body_bytes = 0;
        self.response_body_bytes = 0;
        self.first_byte.reset();
        self.whole.reset();
        self.own.reset();
    }
}

/// gRPC calls of one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GrpcCounts {
    /// By the index of their [`Status`].
    pub by_status: [u64; Status::COUNT],
    /// Calls that failed although the status of HTTP does not say so (gRPC's failures come with 200).
    pub errors: u64,
    /// Messages from callers.
    pub request_messages: u64,
    /// Messages from the service.
    pub response_messages: u64,
}

impl GrpcCounts {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.by_status.iter_mut().zip(other.by_status) {
            *mine += theirs;
        }
        self.errors += other.errors;
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }

    /// Statuses that there were calls of, as labels, and how many.
    pub fn statuses(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Status::LABELS.into_iter().zip(self.by_status).filter(|(_, n)| *n > 0)
    }
}

impl Default for ServiceCounts {
    fn default() -> Self {
        Self::new()
    }
}

/// State and totals of a shard: gauges are of now, the rest counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardTotals {
    /// Open downstream connections (gauge).
    pub downstream_open: u64,
    /// Downstream connections accepted.
    pub downstream_accepted: u64,
    /// Downstream connections refused because `connections_max` was reached.
    pub downstream_refused: u64,
    /// Downstream connections closed at once because memory was short.
    pub memory_refused: u64,
    /// Idle connections, of both sides, closed because memory was short.
    pub memory_closed: u64,
    /// TLS handshakes that succeeded, with callers and with services.
    pub tls_handshakes: u64,
    /// Exchanges in progress (gauge).
    pub exchanges_open: u64,
    /// Tunnels among them: upgraded connections and CONNECT (gauge).
    pub tunnels_open: u64,
    /// Open upstream connections, idle ones included (gauge).
    pub upstream_open: u64,
    /// Idle upstream connections (gauge).
    pub upstream_idle: u64,
    /// Upstream connections established.
    pub upstream_connected: u64,
    /// Pooled connections found dead when they were to be used.
    pub upstream_found_dead: u64,
    /// Exchanges replayed because a reused connection died before the first byte of the response.
    pub replays: u64,
    /// Times that one task kept the shard longer than `stall_threshold`.
    pub stalls: u64,
    /// The longest of them, ns.
    pub stall_max_ns: u64,
    /// HTTP/2 connections ended because of a flood, by the index in [`FLOODS`].
    pub floods: [u64; FLOODS.len()],
    /// Panics caught in a connection's task.
    pub panics: u64,
    /// Access log lines dropped because control could not keep up.
    pub log_lines_dropped: u64,
    /// Spans dropped because control could not keep up, or the collector is away.
    pub spans_dropped: u64,
    /// Notices to control dropped because it could not keep up.
    pub notices_dropped: u64,
    /// Intervals that could not be handed over in time and were merged into the next.
    pub intervals_merged: u64,
    /// Bytes of I/O buffers held, in use or ready for use (gauge).
    pub buffer_bytes: u64,
}

fn histogram(max_ns: u64) -> Histogram<u32> {
    // The bounds are constants that the crate accepts: low >= 1, high >= 2 * low, digits <= 5.
    #[expect(clippy::expect_used, reason = "constant arguments; a test constructs it")]
    Histogram::new_with_bounds(ServiceCounts::LATENCY_MIN_NS, max_ns, ServiceCounts::SIGNIFICANT_DIGITS)
        .expect("constant bounds are valid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Stage;

    #[test]
    fn adding_and_clearing_keeps_sums() {
        let failure = Failure::upstream(Stage::Response, Cause::Timeout);
        let mut a = ServiceCounts::new();
        a.by_class[2] = 3;
        a.whole.saturating_record(2_000_000);
        a.count_failure(failure);
        let mut b = ServiceCounts::new();
        b.add(&a);
        b.add(&a);
        assert_eq!((b.exchanges(), b.whole.len(), b.failures[0]), (6, 2, (failure, 2)));
        let unavailable =
            recorder::GrpcEnded { status: Status::read(b"14"), request_messages: 1, response_messages: 2 };
        // What HTTP calls an error already is not one more.
        for class in [2, 5] {
            b.count_grpc(&unavailable, class);
        }
        let mut both = GrpcCounts::default();
        both.add(&b.grpc);
        both.add(&b.grpc);
        assert_eq!(both.statuses().collect::<Vec<_>>(), [("14", 4)]);
        assert_eq!((both.errors, both.request_messages, both.response_messages), (2, 4, 8));
        b.clear();
        assert_eq!(b.grpc, GrpcCounts::default());
        assert_eq!((b.exchanges(), b.whole.len(), b.failures.len()), (0, 0, 0));
    }

    #[test]
    fn a_minute_and_more_counts_as_a_minute() {
        let mut counts = ServiceCounts::new();
        counts.whole.saturating_record(3_600_000_000_000);
        assert!(counts.whole.max() >= ServiceCounts::LATENCY_MAX_NS);
    }
}
