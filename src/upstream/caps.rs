//! What control declares of how much a service may be given at a time, with the counts that all shards share. The counts
//! outlive a reload: whoever was counted under the old declaration is counted under the new one.
//!
//! Refuses to decide: see `limiter`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam::atomic::AtomicCell;

use super::concurrency::Estimator;
use super::gate::{Count, Gate};
use super::line::Patience;
use super::{admission, berths, concurrency};

/// How much a service may be given at a time. [`u32::MAX`] is no ceiling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Exchanges in progress, of the whole proxy.
    pub exchanges_max: u32,
    /// Exchanges that wait for a place, of the whole proxy.
    pub pending_max: u32,
    /// How long they may wait.
    pub patience: Patience,
    /// Retries in progress, of the whole proxy.
    pub retries_max: u32,
    /// Open connections, of the whole proxy.
    pub connections_max: u32,
    /// How what the service bears is learnt; `None` where it is not.
    pub concurrency: Option<concurrency::Settings>,
    /// When exchanges are turned away because the service fails; `None` for never.
    pub admission: Option<admission::Settings>,
    /// What is counted.
    pub counts: Counts,
}

impl Caps {
    /// Makes the ceilings hold for what is counted.
    pub fn apply(&self) {
        let counts = &self.counts;
        counts.exchanges.set(self.exchanges_max, self.pending_max);
        match (self.concurrency, counts.estimator.take()) {
            (None, _) => {
                counts.exchanges.set_limit(u32::MAX);
                counts.baseline_ns.store(0, Relaxed);
            }
            (Some(settings), None) => {
                counts.exchanges.set_limit(settings.limit_initial);
                counts.estimator.store(Some(Box::new(Estimator::new(settings, counts.seed))));
            }
            // It takes new settings with the next exchange.
            (Some(_), known) => counts.estimator.store(known),
        }
        counts.retries.set(self.retries_max);
        counts.connections.gate.set(self.connections_max, self.pending_max);
    }
}

/// What the shards count together. All are equal: they are no part of what is declared.
#[derive(Clone)]
pub struct Counts(Arc<Counted>);

/// The counts of one service.
pub struct Counted {
    /// Exchanges, and those who wait.
    pub exchanges: Gate,
    /// Retries.
    pub retries: Count,
    /// Connections, and those who wait for one.
    pub connections: berths::Counted,
    /// What is learnt. It goes from shard to shard: who has it learns, who finds it gone keeps what he measured for the next
    /// time.
    pub(super) estimator: AtomicCell<Option<Box<Estimator>>>,
    /// What it takes for the latency when little is asked, ns, for whoever asks meanwhile. 0: not known.
    pub(super) baseline_ns: AtomicU64,
    seed: u64,
}

impl Counts {
    /// Nothing counted; no ceilings until [`Caps::apply`]. The seed is for when to look anew what the service bears.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Counted {
            exchanges: Gate::new(u32::MAX, 0),
            retries: Count::new(u32::MAX),
            connections: berths::Counted::default(),
            estimator: AtomicCell::new(None),
            baseline_ns: AtomicU64::new(0),
            seed,
        }))
    }

    /// The latency when little is asked, as it was learnt last; `None` where nothing was.
    pub fn baseline(&self) -> Option<Duration> {
        let ns = self.0.baseline_ns.load(Relaxed);
        (ns > 0).then(|| Duration::from_nanos(ns))
    }

    /// Whether both are the same, not only equal.
    pub fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::ops::Deref for Counts {
    type Target = Counted;

    fn deref(&self) -> &Counted {
        &self.0
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counted { exchanges, retries, connections, .. } = &*self.0;
        write!(f, "Counts({exchanges:?}, {retries:?}, {:?})", connections.gate)
    }
}

impl PartialEq for Counts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Counts {}
