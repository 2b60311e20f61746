//! What all shards have seen together: per service since the start and over the last ten seconds, per shard the last
//! totals. Fed by the control loop once a second, read by `export` and `pages`.
//!
//! Memory follows what is in use. A service has an entry from its first exchange on; its last ten seconds are dropped
//! as they age; a service that is no longer configured is forgotten `EXPIRY` after it was configured or had traffic
//! for the last time (five minutes: longer than any usual scrape interval, so that the last exchanges are scraped).
//! At most `SERVICES_MAX` services and `FAILURES_MAX` failures a service are told apart; what comes after is counted
//! under `(other)`. Pure: `now` is an argument.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::latency::Latency;
use crate::failure::{Cause, Failure};
use crate::telemetry::faults::FaultCounts;
use crate::telemetry::mirrored::MirrorCounts;
use crate::telemetry::retries::RetryCounts;
use crate::telemetry::routes::{OVERFLOW_ROUTE, RouteCounts};
use crate::telemetry::rules::{Outcome, RuleCount};
use crate::telemetry::{
    CONNECTION_FAILURES_MAX, DEFAULT_RULE, GrpcCounts, Interval, NO_SERVICE, OVERFLOW_RULE, OVERFLOW_SERVICE,
    ServiceCounts, ShardTotals,
};

/// All that control knows from the shards.
#[derive(Debug)]
pub(super) struct Store {
    services: BTreeMap<Arc<str>, Service>,
    routes: BTreeMap<Arc<str>, Route>,
    configured_routes: HashSet<Arc<str>>,
    configured: HashSet<Arc<str>>,
    shards: Vec<Shard>,
    /// Connections that failed before there was an exchange, by failure.
    connection_failures: BTreeMap<Failure, u64>,
    /// Those of kinds past [`CONNECTION_FAILURES_MAX`].
    connection_failures_other: u64,
    /// What rules did: how often, and when that was told last.
    rules: BTreeMap<RuleKey, (u64, Instant)>,
    configured_rules: HashSet<Arc<str>>,
    /// Connections closed because they were not allowed any more.
    revoked: BTreeMap<Cause, u64>,
    /// When the last seconds ended, newest last; one more than `WINDOW` to measure from.
    ends: VecDeque<Instant>,
    /// Number of the second that is being filled.
    second: u64,
}

/// Listener, rule, outcome.
type RuleKey = (Arc<str>, Arc<str>, Outcome);

/// One service since the start of the process, or since it was last forgotten.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// Exchanges by class of status; see [`ServiceCounts::by_class`].
    pub by_class: [u64; 6],
    /// Failures by kind.
    pub failures: BTreeMap<Failure, u64>,
    /// Failures of kinds past `FAILURES_MAX`.
    pub failures_other: u64,
    /// gRPC calls.
    pub grpc: GrpcCounts,
    /// Attempts beyond the first.
    pub further_attempts: u64,
    /// Those of a retry policy.
    pub retries: RetryCounts,
    /// Copies of requests.
    pub mirrored: MirrorCounts,
    /// What was done on purpose.
    pub faults: FaultCounts,
    /// Bytes of request bodies.
    pub request_body_bytes: u64,
    /// Bytes of response bodies.
    pub response_body_bytes: u64,
    /// Time to the first byte.
    pub first_byte: Latency,
    /// Time to the last byte.
    pub whole: Latency,
    /// The proxy's own share.
    pub own: Latency,
    seconds: VecDeque<Second>,
    /// Since when it is not configured any more, or had its last traffic after that.
    gone: Option<Instant>,
}

/// One route since the start of the process, or since it was last forgotten.
#[derive(Debug)]
pub(super) struct Route {
    /// Exchanges by class of status.
    pub by_class: [u64; 6],
    /// gRPC calls that failed although that does not say so.
    pub grpc_errors: u64,
    /// Failures by kind, at most [`Store::FAILURES_MAX`].
    pub failures: BTreeMap<Failure, u64>,
    /// Failures of further kinds.
    pub failures_other: u64,
    /// Time to the last byte.
    pub whole: Latency,
    /// When it was told of last.
    told: Instant,
}

/// What happened to a service in a stretch of time.
#[derive(Debug, Default, Clone)]
pub(super) struct Window {
    /// How long it was.
    pub length: Duration,
    /// Exchanges ended.
    pub exchanges: u64,
    /// Of those: answered with 5xx, with nothing, or with a failure of gRPC.
    pub errors: u64,
    /// Attempts that failed in another way than their exchange: others were made in their place.
    pub retried: u64,
    /// Time to the first byte.
    pub first_byte: Latency,
    /// Time to the last byte.
    pub whole: Latency,
    /// The proxy's own share.
    pub own: Latency,
}

/// One shard, as it was at its last interval.
#[derive(Debug, Default, Clone)]
pub(super) struct Shard {
    /// Its gauges and totals.
    pub totals: ShardTotals,
    /// The runtime that it got, and what was refused before; `None`: the best, at once.
    pub runtime: Option<(&'static str, String)>,
}

#[derive(Debug, Default)]
struct Second {
    number: u64,
    exchanges: u64,
    errors: u64,
    retried: u64,
    first_byte: Latency,
    whole: Latency,
    own: Latency,
}

impl Store {
    /// Services told apart; the exchanges of further ones are counted under [`OVERFLOW_SERVICE`].
    pub(super) const SERVICES_MAX: usize = 2 * crate::telemetry::SERVICES_MAX;
    /// Routes told apart; the exchanges of further ones are counted under [`OVERFLOW_ROUTE`].
    pub(super) const ROUTES_MAX: usize = 2 * crate::telemetry::routes::ROUTES_MAX;
    /// Kinds of failure told apart per service.
    pub(super) const FAILURES_MAX: usize = 64;
    /// Listeners × rules × outcomes told apart; further ones are counted under [`OVERFLOW_RULE`].
    pub(super) const RULES_MAX: usize = 4096;
    /// How long a service or rule that is not configured any more is kept.
    pub(super) const EXPIRY: Duration = Duration::from_secs(300);
    /// Seconds kept one by one.
    pub(super) const WINDOW: u64 = 10;

    /// An empty store for so many shards.
    pub(super) fn new(shards: usize, now: Instant) -> Self {
        Self {
            services: BTreeMap::new(),
            routes: BTreeMap::new(),
            configured_routes: HashSet::new(),
            configured: HashSet::new(),
            shards: vec![Shard::default(); shards],
            connection_failures: BTreeMap::new(),
            connection_failures_other: 0,
            rules: BTreeMap::new(),
            configured_rules: HashSet::new(),
            revoked: BTreeMap::new(),
            ends: VecDeque::from([now]),
            second: 0,
        }
    }

    /// Says which services are configured from now on.
    pub(super) fn configure(&mut self, names: impl Iterator<Item = Arc<str>>, now: Instant) {
        self.configured = names.chain([NO_SERVICE.into(), OVERFLOW_SERVICE.into()]).collect();
        for (name, service) in &mut self.services {
            service.gone = if self.configured.contains(name) { None } else { service.gone.or(Some(now)) };
        }
    }

    /// Says which routes are configured from now on.
    pub(super) fn configure_routes(&mut self, names: impl Iterator<Item = Arc<str>>) {
        self.configured_routes = names.chain([OVERFLOW_ROUTE.into()]).collect();
    }

    /// Says which rules are configured from now on.
    pub(super) fn configure_rules(&mut self, names: impl Iterator<Item = Arc<str>>) {
        self.configured_rules = names.chain([DEFAULT_RULE.into(), OVERFLOW_RULE.into()]).collect();
    }

    /// Adds an interval and clears its counts, so that it can go back to its shard. The names stay in it: the shard
    /// decides which of its services keep their memory.
    pub(super) fn merge(&mut self, interval: &mut Interval, now: Instant) {
        if let Some(shard) = self.shards.get_mut(usize::from(interval.shard)) {
            shard.totals = interval.shard_totals;
        }
        for (failure, n) in interval.connection_failures.drain(..) {
            let known = self.connection_failures.contains_key(&failure);
            if known || self.connection_failures.len() < CONNECTION_FAILURES_MAX {
                *self.connection_failures.entry(failure).or_default() += n;
            } else {
                self.connection_failures_other += n;
            }
        }
        self.connection_failures_other += std::mem::take(&mut interval.connection_failures_other);
        for part in &mut interval.services {
            if !part.counts.is_empty() {
                self.merge_service(&part.service, &part.counts, now);
            }
            part.counts.clear();
        }
        for part in &mut interval.routes {
            self.merge_route(&part.route, &part.counts, now);
            part.counts.clear();
        }
        for counted in &interval.rules {
            self.merge_rule(counted, now);
        }
        for (cause, count) in &interval.revoked {
            *self.revoked.entry(*cause).or_default() += count;
        }
    }

    /// Ends the second that is being filled, and forgets what is too old.
    pub(super) fn tick(&mut self, now: Instant) {
        self.second += 1;
        self.ends.push_back(now);
        while self.ends.len() as u64 > Self::WINDOW + 1 {
            self.ends.pop_front();
        }
        let oldest = self.second.saturating_sub(Self::WINDOW);
        self.services.retain(|_, service| {
            while service.seconds.front().is_some_and(|s| s.number < oldest) {
                service.seconds.pop_front();
            }
            service.gone.is_none_or(|gone| now.saturating_duration_since(gone) < Self::EXPIRY)
        });
        self.routes.retain(|name, route| {
            self.configured_routes.contains(name) || now.saturating_duration_since(route.told) < Self::EXPIRY
        });
        self.rules.retain(|(_, rule, _), (_, told)| {
            self.configured_rules.contains(rule) || now.saturating_duration_since(*told) < Self::EXPIRY
        });
    }

    /// What rules did: listener, rule, outcome, how often.
    pub(super) fn rules(&self) -> impl Iterator<Item = (&str, &str, Outcome, u64)> {
        self.rules.iter().map(|((listener, rule, outcome), (n, _))| (&**listener, &**rule, *outcome, *n))
    }

    /// Connections closed because they were not allowed any more, by cause.
    pub(super) fn revoked(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.revoked.iter().map(|(cause, n)| (cause.label(), *n))
    }

    /// Notes which runtime a shard got; whether it is the first that got this one.
    pub(super) fn set_runtime(&mut self, shard: u16, used: &'static str, refused: String) -> bool {
        let runtime = Some((used, refused));
        let first = self.shards.iter().all(|other| other.runtime != runtime);
        if let Some(shard) = self.shards.get_mut(usize::from(shard)) {
            shard.runtime = runtime;
        }
        first
    }

    /// The services that had traffic, by name.
    pub(super) fn services(&self) -> impl Iterator<Item = (&str, &Service)> + Clone {
        self.services.iter().map(|(name, service)| (&**name, service))
    }

    /// A service that had traffic.
    pub(super) fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// The routes that had traffic, by name.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&str, &Route)> + Clone {
        self.routes.iter().map(|(name, route)| (&**name, route))
    }

    /// The shards, by number.
    pub(super) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Connections that failed before there was an exchange: those by failure, and the rest.
    pub(super) fn connection_failures(&self) -> (&BTreeMap<Failure, u64>, u64) {
        (&self.connection_failures, self.connection_failures_other)
    }

    /// How long the last whole second was.
    pub(super) fn last_second(&self) -> Duration {
        let mut ends = self.ends.iter().rev();
        match (ends.next(), ends.next()) {
            (Some(end), Some(start)) => end.saturating_duration_since(*start),
            _ => Duration::ZERO,
        }
    }

    /// What happened to `service` in the last `seconds` (at most [`Self::WINDOW`]) whole seconds.
    pub(super) fn window(&self, service: &Service, seconds: u64) -> Window {
        let seconds = seconds.min(Self::WINDOW);
        let from = self.ends.len().saturating_sub(1 + usize::try_from(seconds).unwrap_or(0));
        let length = match (self.ends.get(from), self.ends.back()) {
            (Some(start), Some(end)) => end.saturating_duration_since(*start),
            _ => Duration::ZERO,
        };
        let mut window = Window { length, ..Window::default() };
        let oldest = self.second.saturating_sub(seconds);
        for second in service.seconds.iter().filter(|s| (oldest..self.second).contains(&s.number)) {
            window.exchanges += second.exchanges;
            window.errors += second.errors;
            window.retried += second.retried;
            window.first_byte.add(&second.first_byte);
            window.whole.add(&second.whole);
            window.own.add(&second.own);
        }
        window
    }

    fn merge_route(&mut self, name: &Arc<str>, counts: &RouteCounts, now: Instant) {
        let full = self.routes.len() >= Self::ROUTES_MAX && !self.routes.contains_key(name);
        let name = if full { Arc::from(OVERFLOW_ROUTE) } else { Arc::clone(name) };
        let route = self.routes.entry(name).or_insert_with(|| Route {
            by_class: [0; 6],
            grpc_errors: 0,
            failures: BTreeMap::new(),
            failures_other: 0,
            whole: Latency::default(),
            told: now,
        });
        route.told = now;
        route.grpc_errors += counts.grpc_errors;
        for (mine, theirs) in route.by_class.iter_mut().zip(counts.by_class) {
            *mine += theirs;
        }
        for &(failure, n) in &counts.failures {
            if route.failures.len() < Self::FAILURES_MAX || route.failures.contains_key(&failure) {
                *route.failures.entry(failure).or_default() += n;
            } else {
                route.failures_other += n;
            }
        }
        route.whole.record_spread(&counts.whole);
    }

    fn merge_rule(&mut self, counted: &RuleCount, now: Instant) {
        let mut key = (Arc::clone(&counted.listener), Arc::clone(&counted.rule), counted.outcome);
        if self.rules.len() >= Self::RULES_MAX && !self.rules.contains_key(&key) {
            key.1 = OVERFLOW_RULE.into();
        }
        let (count, told) = self.rules.entry(key).or_insert((0, now));
        *count += counted.count;
        *told = now;
    }

    fn merge_service(&mut self, name: &Arc<str>, counts: &ServiceCounts, now: Instant) {
        let full = self.services.len() >= Self::SERVICES_MAX && !self.services.contains_key(name);
        let name = if full { Arc::from(OVERFLOW_SERVICE) } else { Arc::clone(name) };
        // An exchange may end after its service has left the configuration.
        let gone = (!self.configured.contains(&name)).then_some(now);
        let service = self.services.entry(name).or_default();
        service.gone = gone;
        service.add(counts);
        if service.seconds.back().is_none_or(|s| s.number != self.second) {
            service.seconds.push_back(Second { number: self.second, ..Second::default() });
        }
        if let Some(second) = service.seconds.back_mut() {
            second.exchanges += counts.exchanges();
            second.errors += counts.by_class[5] + counts.by_class[0] + counts.grpc.errors;
            second.retried += counts.retries.failed_attempts();
            second.first_byte.record(&counts.first_byte);
            second.whole.record(&counts.whole);
            second.own.record(&counts.own);
        }
    }
}

impl Service {
    /// Exchanges ended.
    pub(super) fn exchanges(&self) -> u64 {
        self.by_class.iter().sum()
    }

    /// Of those: answered with 5xx, with nothing, or with a failure of gRPC.
    pub(super) fn errors(&self) -> u64 {
        self.by_class[5] + self.by_class[0] + self.grpc.errors
    }

    fn add(&mut self, counts: &ServiceCounts) {
        for (mine, theirs) in self.by_class.iter_mut().zip(counts.by_class) {
            *mine += theirs;
        }
        for &(failure, n) in &counts.failures {
            if self.failures.len() < Store::FAILURES_MAX || self.failures.contains_key(&failure) {
                *self.failures.entry(failure).or_default() += n;
            } else {
                self.failures_other += n;
            }
        }
        self.grpc.add(&counts.grpc);
        self.further_attempts += counts.further_attempts;
        self.retries.add(&counts.retries);
        self.mirrored.add(&counts.mirrored);
        self.faults.add(&counts.faults);
        self.request_body_bytes += counts.request_body_bytes;
        self.response_body_bytes += counts.response_body_bytes;
        self.first_byte.record(&counts.first_byte);
        self.whole.record(&counts.whole);
        self.own.record(&counts.own);
    }
}

impl Window {
    /// Exchanges a second.
    pub(super) fn rate(&self) -> f64 {
        match self.length.as_secs_f64() {
            0.0 => 0.0,
            length => self.exchanges as f64 / length,
        }
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
