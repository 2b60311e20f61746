//! Names in endpoints to addresses: by the hosts file and DNS, again and again as their TTL runs out. Asked by the
//! control loop, which compiles a new snapshot when a set of addresses has changed, and only then.
//!
//! IPv4 addresses are used, and IPv6 where a name has no IPv4. A name that cannot be resolved keeps its last good
//! addresses and is asked again with growing pauses; one that never could be has none, and its service answers
//! `no_endpoint`. The resolver is built when there is a name to resolve, and again when /etc/resolv.conf or /etc/hosts
//! has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// All names of the configuration and what they stand for.
pub(super) struct Discovery {
    names: BTreeMap<Arc<str>, Name>,
    lookups: JoinSet<Outcome>,
    resolver: Option<(Stamp, TokioResolver)>,
    /// Name servers in place of the system's, and no hosts file; empty: the system's.
    servers: Vec<SocketAddr>,
    pace: Pace,
    counts: Arc<Counts>,
}

/// How lookups went, since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Lookups answered with addresses.
    pub good: AtomicU64,
    /// Lookups that failed.
    pub bad: AtomicU64,
}

/// How often names are looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Lower bound of a TTL. DNS of service registries often says 0; asking more than once a second helps nobody.
    pub ttl_min: Duration,
    /// Upper bound: a record of a day must not delay a move by a day. Envoy and HAProxy ask every 5 to 10 s.
    pub ttl_max: Duration,
    /// Pause after the first failure; doubles to `ttl_max`.
    pub retry: Duration,
}

#[derive(Debug)]
struct Name {
    addresses: Vec<IpAddr>,
    due: Instant,
    asking: bool,
    failures: u32,
    /// Services that have it in an endpoint, for the log.
    services: String,
}

impl Name {
    /// Services that the log names.
    const SERVICES_SHOWN_MAX: usize = 3;

    fn said_unresolved(&self, name: &str, error: &str) -> String {
        let services = &self.services;
        let meanwhile = match self.addresses.len() {
            0 => "it has no addresses yet, so these endpoints are missing".to_owned(),
            1 => "its last good address stays in use".to_owned(),
            n => format!("its last {n} good addresses stay in use"),
        };
        format!(
            "name {name} of {services} cannot be resolved ({error}); {meanwhile}: check the name, /etc/hosts and \
             /etc/resolv.conf"
        )
    }
}

struct Outcome {
    name: Arc<str>,
    answer: Result<(BTreeSet<IpAddr>, Instant), String>,
}

/// When /etc/resolv.conf and /etc/hosts were changed.
type Stamp = [Option<SystemTime>; 2];

impl Default for Pace {
    fn default() -> Self {
        Self {
            ttl_min: Duration::from_secs(1),
            ttl_max: Duration::from_secs(60),
            retry: Duration::from_secs(1),
        }
    }
}

impl Discovery {
    /// Names resolved; further ones stay without addresses, which is logged.
    pub(super) const NAMES_MAX: usize = 4096;
    /// Addresses used of one name: the lowest ones, so that the choice does not change with the order of the answer.
    pub(super) const ADDRESSES_MAX: usize = 64;
    /// Lookups in flight.
    const LOOKUPS_MAX: usize = 32;
    /// How long one lookup may take in all, with its retries.
    const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

    /// Nothing to resolve yet.
    pub(super) fn new(servers: Vec<SocketAddr>, pace: Pace) -> Self {
        Self {
            names: BTreeMap::new(),
            lookups: JoinSet::new(),
            resolver: None,
            servers,
            pace,
            counts: Arc::default(),
        }
    }

    /// How lookups went.
    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Says which names are configured from now on, each with its service, and waits until the new ones are resolved, at most until `wait` has
    /// passed. Names that were known keep what is known of them.
    pub(super) async fn configure(&mut self, names: impl Iterator<Item = (&str, &str)>, wait: Duration) {
        let now = Instant::now();
        let mut known = std::mem::take(&mut self.names);
        let mut of_services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, service) in names {
            of_services.entry(name).or_default().insert(service);
        }
        let mut names = of_services;
        if names.len() > Self::NAMES_MAX {
            tracing::warn!(
                names = names.len(),
                names_max = Self::NAMES_MAX,
                "too many names in endpoints; the last ones are not resolved: use addresses, or fewer names"
            );
            names = names.into_iter().take(Self::NAMES_MAX).collect();
        }
        for (name, services) in names {
            let fresh = || Name {
                addresses: Vec::new(),
                due: now,
                asking: false,
                failures: 0,
                services: String::new(),
            };
            let mut entry = known.remove(name).unwrap_or_else(fresh);
            entry.services = of_services_text(&services);
            self.names.insert(name.into(), entry);
        }
        let deadline = now + wait;
        while self.names.values().any(|n| n.addresses.is_empty() && n.failures == 0) {
            self.ask_due(Instant::now());
            match timeout_at(deadline, self.lookups.join_next()).await {
                Ok(Some(Ok(outcome))) => {
                    self.settle(outcome);
                }
                Ok(Some(Err(_))) => {}
                Ok(None) | Err(_) => break,
            }
        }
        for (name, entry) in self.names.iter().filter(|(_, n)| n.addresses.is_empty() && n.failures == 0) {
            tracing::warn!(
                %name, asking = entry.asking,
                "name is not resolved yet; its endpoints are missing until it is: check the name and /etc/resolv.conf"
            );
        }
    }

    /// Names without any address.
    pub(super) fn unresolved(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, n)| n.addresses.is_empty()).map(|(name, _)| &**name)
    }

    /// The addresses of a name, with a port.
    pub(super) fn addresses(&self, name: &str, port: u16) -> Vec<SocketAddr> {
        let addresses = self.names.get(name).map_or(&[][..], |n| &n.addresses);
        addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }

    /// Returns when the addresses of a name have changed. Nothing is lost when this future is dropped.
    pub(super) async fn changed(&mut self) {
        loop {
            self.ask_due(Instant::now());
            let due = self.names.values().filter(|n| !n.asking).map(|n| n.due).min();
            let waiting = !self.lookups.is_empty();
            let full = self.lookups.len() >= Self::LOOKUPS_MAX;
            tokio::select! {
                Some(outcome) = self.lookups.join_next(), if waiting => {
                    let mut changed = outcome.is_ok_and(|o| self.settle(o));
                    // What arrives together goes into one snapshot.
                    while let Some(outcome) = self.lookups.try_join_next() {
                        changed |= outcome.is_ok_and(|o| self.settle(o));
                    }
                    if changed {
                        return;
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && !full => {}
                else => std::future::pending().await,
            }
        }
    }

    fn ask_due(&mut self, now: Instant) {
        let free = Self::LOOKUPS_MAX.saturating_sub(self.lookups.len());
        let due: Vec<Arc<str>> = self
            .names
            .iter()
            .filter(|(_, n)| !n.asking && n.due <= now)
            .map(|(name, _)| Arc::clone(name))
            .take(free)
            .collect();
        for name in due {
            let Some(resolver) = self.resolver() else { return };
            if let Some(entry) = self.names.get_mut(&name) {
                entry.asking = true;
            }
            self.lookups.spawn(async move {
                let answer = match timeout_at(now + Self::LOOKUP_TIMEOUT, resolver.lookup_ip(&*name)).await {
                    Ok(Ok(found)) => Ok((found.iter().collect(), Instant::from_std(found.valid_until()))),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("no answer in 10 s".to_owned()),
                };
                Outcome { name, answer }
            });
        }
    }

    /// Whether the addresses changed.
    fn settle(&mut self, outcome: Outcome) -> bool {
        let now = Instant::now();
        let Pace { ttl_min, ttl_max, retry } = self.pace;
        // It may have left the configuration in the meantime.
        let Some(entry) = self.names.get_mut(&outcome.name) else { return false };
        entry.asking = false;
        match outcome.answer {
            Ok((found, until)) if !found.is_empty() => {
                self.counts.good.fetch_add(1, Ordering::Relaxed);
                let ttl = until.saturating_duration_since(now).clamp(ttl_min, ttl_max);
                // Up to a tenth earlier, so that many proxies do not ask in step.
                entry.due = now + ttl.mul_f64(1.0 - fastrand::f64() * 0.1);
                entry.failures = 0;
                if found.len() > Self::ADDRESSES_MAX {
                    tracing::warn!(
                        name = %outcome.name, addresses = found.len(), addresses_max = Self::ADDRESSES_MAX,
                        "name has too many addresses; only the lowest are used: split it into several names"
                    );
                }
                let found: Vec<IpAddr> = found.into_iter().take(Self::ADDRESSES_MAX).collect();
                let changed = found != entry.addresses;
                if changed {
                    tracing::info!(name = %outcome.name, addresses = ?found, "name resolved");
                    entry.addresses = found;
                }
                changed
            }
            failed => {
                self.counts.bad.fetch_add(1, Ordering::Relaxed);
                let error = failed.err().unwrap_or_else(|| "no addresses".to_owned());
                entry.failures = entry.failures.saturating_add(1);
                let pause = retry.saturating_mul(1 << (entry.failures - 1).min(16)).min(ttl_max);
                entry.due = now + pause.mul_f64(1.0 - fastrand::f64() * 0.1);
                // The first of a row is said, the others are counted.
                if entry.failures == 1 {
                    tracing::warn!("{}", entry.said_unresolved(&outcome.name, &error));
                }
                false
            }
        }
    }

    fn resolver(&mut self) -> Option<TokioResolver> {
        let changed = |path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let stamp = [changed("/etc/resolv.conf"), changed("/etc/hosts")];
        if self.resolver.as_ref().is_none_or(|(s, _)| *s != stamp) {
            match build(&self.servers) {
                Ok(resolver) => self.resolver = Some((stamp, resolver)),
                Err(error) => {
                    tracing::error!(%error, "names cannot be resolved: check /etc/resolv.conf");
                    for name in self.names.values_mut() {
                        name.due = Instant::now() + self.pace.ttl_max;
                        name.failures += 1;
                    }
                    return None;
                }
            }
        }
        self.resolver.as_ref().map(|(_, resolver)| resolver.clone())
    }
}

/// `service a`, `services a, b`, with a bound.
fn of_services_text(services: &BTreeSet<&str>) -> String {
    let mut shown: Vec<&str> = services.iter().copied().take(Name::SERVICES_SHOWN_MAX).collect();
    let more = services.len() - shown.len();
    let rest = format!("{more} more");
    if more > 0 {
        shown.push(&rest);
    }
    format!("service{} {}", if services.len() == 1 { "" } else { "s" }, shown.join(", "))
}

fn build(servers: &[SocketAddr]) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let tune = |options: &mut ResolverOpts| {
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        // The names' own table is the cache.
        options.cache_size = 0;
        options.timeout = options.timeout.min(Duration::from_secs(2));
    };
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio().or_else(|error| {
            // Without resolv.conf the hosts file and `localhost` still work.
            tracing::warn!(%error, "/etc/resolv.conf cannot be used; only /etc/hosts is");
            let empty = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
            Ok::<_, hickory_resolver::net::NetError>(TokioResolver::builder_with_config(
                empty,
                TokioRuntimeProvider::default(),
            ))
        })?
    } else {
        let server = |address: &SocketAddr| {
            let mut udp = ConnectionConfig::udp();
            udp.port = address.port();
            NameServerConfig::new(address.ip(), true, vec![udp])
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    tune(builder.options_mut());
    if !servers.is_empty() {
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
    }
    builder.build()
}

#[cfg(test)]
#[path = "discovery_test.rs"]
mod tests;
