//! What the tasks of the control thread share: the control loop writes it, the admin pages read it, and the owner of a
//! `Proxy` asks it for addresses. Locks are held for copying or for writing a page, never across an await; no shard
//! ever touches them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::canary::Canaries;
use super::collector;
use super::discovery;
use super::identity;
use super::log_writer::LogWriter;
use super::memory::Measured;
use super::store::Store;
use crate::config::{Compiled, Settings};
use crate::shard::link::{Link, Order};
use crate::snapshot::Snapshot;

/// Shared state of the control side.
pub(super) struct State {
    /// One per shard, by number.
    pub links: Vec<Arc<Link>>,
    /// The CPU that each shard is pinned to.
    pub cpus: Vec<Option<usize>>,
    /// What the shards have seen.
    pub store: Mutex<Store>,
    /// What runs now.
    pub live: Mutex<Live>,
    /// The access log's writer, if there is a log.
    pub log: Mutex<Option<LogWriter>>,
    /// The admin address.
    pub admin: Option<SocketAddr>,
    /// What has become of spans.
    pub spans: Arc<collector::Counts>,
    /// How name lookups went.
    pub lookups: Arc<discovery::Counts>,
    /// Services that take over from others.
    pub canaries: Mutex<Canaries>,
    /// Certificates, as the keyring tells of them.
    identity: Arc<Mutex<identity::Status>>,
    /// Admin connections refused because there were too many.
    pub admin_refused: AtomicU64,
    /// What was measured of memory last.
    pub memory: Measured,
    /// Set from the first SIGTERM on.
    pub draining: AtomicBool,
    /// Tells those who wait for it that `draining` has just been set.
    pub drain_begins: tokio::sync::Notify,
    /// Set for a shard whose thread ended without being told to.
    pub lost: Vec<AtomicBool>,
    /// When the process started, by both clocks.
    pub started: (Instant, SystemTime),
    /// The number of the last ping sent to each shard.
    pings: Vec<AtomicU64>,
}

/// The configuration in use.
pub(super) struct Live {
    /// As compiled.
    pub compiled: Arc<Compiled>,
    /// As published last.
    pub snapshot: Arc<Snapshot>,
    /// Listeners as they are bound.
    pub listeners: Vec<Place>,
    /// Reloads that took effect.
    pub reloads_good: u64,
    /// Reloads that were refused.
    pub reloads_bad: u64,
    /// When the configuration was last refused, and why.
    pub refused: Option<(SystemTime, String)>,
    /// Whether a good one has come since.
    pub refused_before: bool,
    /// What takes effect at a start only, as it was then.
    pub at_start: Settings,
    /// Keys whose new value waits for a restart.
    pub waiting: Vec<&'static str>,
}

/// A listener as it is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The name that the shards know it by.
    pub name: Arc<str>,
    /// The address that was configured.
    pub configured: SocketAddr,
    /// The address that it has.
    pub address: SocketAddr,
}

impl State {
    /// How long `/ready` waits for a shard. Kubernetes gives a probe one second by default.
    const PONG_MAX: Duration = Duration::from_secs(1);

    /// Nothing seen, nothing lost.
    pub(super) fn new(
        links: Vec<Arc<Link>>,
        cpus: Vec<Option<usize>>,
        live: Live,
        log: Option<LogWriter>,
        admin: Option<SocketAddr>,
        lookups: Arc<discovery::Counts>,
        identity: Arc<Mutex<identity::Status>>,
    ) -> Self {
        let started = (Instant::now(), SystemTime::now());
        let shards = links.len();
        let mut store = Store::new(shards, started.0);
        store.configure(live.snapshot.services.iter().map(|s| Arc::clone(&s.name)), started.0);
        store.configure_routes(live.snapshot.routes.routes().iter().map(|r| Arc::clone(&r.name)));
        store.configure_rules(live.snapshot.authorization.rules().iter().map(|r| Arc::clone(&r.name)));
        Self {
            links,
            cpus,
            store: Mutex::new(store),
            live: Mutex::new(live),
            log: Mutex::new(log),
            admin,
            spans: Arc::default(),
            lookups,
            canaries: Mutex::default(),
            identity,
            admin_refused: AtomicU64::new(0),
            memory: Measured::default(),
            draining: AtomicBool::new(false),
            drain_begins: tokio::sync::Notify::new(),
            lost: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            started,
            pings: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// What the shards have seen.
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs now.
    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The access log's writer.
    pub(super) fn log(&self) -> MutexGuard<'_, Option<LogWriter>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Services that take over from others.
    pub(super) fn canaries(&self) -> MutexGuard<'_, Canaries> {
        self.canaries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Certificates.
    pub(super) fn identity(&self) -> MutexGuard<'_, identity::Status> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is no identity, or none that peers accept, where there is to be one.
    pub(super) fn identity_missing(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.identity().unready(now)
    }

    /// Whether traffic is welcome: there is an identity if there is to be one, every shard answers a ping through its ring, accepts, and nothing is draining.
    ///
    /// # Errors
    /// One line for each reason why not.
    pub(super) async fn ready(&self) -> Result<(), Vec<String>> {
        if self.draining.load(Ordering::Acquire) {
            return Err(vec!["draining: told to stop".into()]);
        }
        let mut awaited = Vec::new();
        let mut reasons: Vec<String> = self.identity_missing().into_iter().collect();
        for (link, (ping, lost)) in self.links.iter().zip(self.pings.iter().zip(&self.lost)) {
            let shard = link.shard;
            if lost.load(Ordering::Acquire) {
                reasons.push(format!("shard {shard}: its thread has ended; restart the process"));
                continue;
            }
            // One ping in flight per shard serves all who ask: the queue of orders cannot be filled from outside.
            let last = ping.load(Ordering::Acquire);
            if link.vitals.pong.load(Ordering::Acquire) >= last {
                if link.order(Order::Ping(last + 1)).is_err() {
                    reasons.push(format!("shard {shard}: takes no orders"));
                    continue;
                }
                ping.store(last + 1, Ordering::Release);
            }
            awaited.push((link, ping.load(Ordering::Acquire)));
        }
        let deadline = tokio::time::Instant::now() + Self::PONG_MAX;
        let silent = |awaited: &[(&Arc<Link>, u64)]| {
            awaited
                .iter()
                .filter(|(link, ping)| link.vitals.pong.load(Ordering::Acquire) < *ping)
                .map(|(link, _)| link.shard)
                .collect::<Vec<_>>()
        };
        while !silent(&awaited).is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for shard in silent(&awaited) {
            reasons.push(format!("shard {shard}: no answer within 1 s; something keeps its thread"));
        }
        for (link, _) in &awaited {
            if link.vitals.accepting.load(Ordering::Acquire) == 0 {
                reasons.push(format!("shard {}: does not accept yet", link.shard));
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}
