//! What control declares of how much a service may be given at a time, with the counts that all shards share. The counts
//! outlive a reload: whoever was counted under the old declaration is counted under the new one.
//!
//! Refuses to decide: see `limiter`.

use std::sync::Arc;

use super::gate::{Count, Gate};
use super::line::Patience;

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
    /// What is counted.
    pub counts: Counts,
}

impl Caps {
    /// Makes the ceilings hold for what is counted.
    pub fn apply(&self) {
        self.counts.exchanges.set(self.exchanges_max, self.pending_max);
        self.counts.retries.set(self.retries_max);
    }
}

/// What the shards count together. All are equal: they are no part of what is declared.
#[derive(Debug, Clone)]
pub struct Counts(Arc<Counted>);

/// The counts of one service.
#[derive(Debug)]
pub struct Counted {
    /// Exchanges, and those who wait.
    pub exchanges: Gate,
    /// Retries.
    pub retries: Count,
}

impl Counts {
    /// Nothing counted; no ceilings until [`Caps::apply`].
    pub fn new() -> Self {
        Self(Arc::new(Counted { exchanges: Gate::new(u32::MAX, 0), retries: Count::new(u32::MAX) }))
    }

    /// Whether both are the same, not only equal.
    pub fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

impl std::ops::Deref for Counts {
    type Target = Counted;

    fn deref(&self) -> &Counted {
        &self.0
    }
}

impl PartialEq for Counts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Counts {}
