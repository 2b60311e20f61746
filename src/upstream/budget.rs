//! How many further attempts of a service there may be at a time: a share of its exchanges in progress, and a floor.
//!
//! One [`Meter`] per service and proxy, shared by all shards. How many further attempts there are is exact: each asks the one
//! counter, which is seldom. How many attempts there are in all would be a counter that every exchange of every shard
//! writes to; so each shard's [`Gauge`] tells its own number when it has changed by an eighth or by eight, before it asks
//! for a further attempt, and once a second. What others have not told yet makes the budget a little larger or smaller, by an
//! eighth at most, or by the one further attempt that eight exchanges are worth. Nobody waits for anybody.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// How many further attempts there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of the attempts in progress so many millionths.
    pub millionths: u32,
    /// So many in any case.
    pub floor: u32,
}

impl Budget {
    /// How many there may be while so many attempts are in progress.
    pub fn ceiling(self, active: u64) -> u32 {
        let share = active.saturating_mul(self.millionths.into()) / 1_000_000;
        u32::try_from(share).unwrap_or(u32::MAX).max(self.floor)
    }
}

/// What all shards know of a service's attempts.
#[derive(Debug, Default)]
pub struct Meter {
    /// In progress, as far as shards have told.
    active: AtomicI64,
    /// Further ones in progress or waiting for their time.
    further: AtomicU32,
}

/// A meter as a part of a declaration: the same service has the same one, whatever else changes.
#[derive(Debug, Clone, Default)]
pub struct Shared(pub Arc<Meter>);

impl PartialEq for Shared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Shared {}

/// One shard's attempts of a service.
#[derive(Debug)]
pub struct Gauge {
    meter: Arc<Meter>,
    own: Cell<u32>,
    /// What the meter was told of it.
    told: Cell<u32>,
}

/// A further attempt, until it is dropped.
#[derive(Debug)]
pub struct Further(Arc<Meter>);

impl Meter {
    /// Attempts in progress, as far as shards have told.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }

    /// Further attempts in progress or waiting for their time.
    pub fn further(&self) -> u32 {
        self.further.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// A change that the meter is told of at once.
    const STEP: u32 = 8;

    /// Of a shard that has none in progress.
    pub fn new(meter: &Shared) -> Self {
        Self { meter: Arc::clone(&meter.0), own: Cell::new(0), told: Cell::new(0) }
    }

    /// An attempt begins.
    pub fn began(&self) {
        self.own.set(self.own.get() + 1);
        self.tell_if_much();
    }

    /// An attempt has ended.
    pub fn ended(&self) {
        self.own.set(self.own.get().saturating_sub(1));
        self.tell_if_much();
    }

    /// Attempts of this shard in progress.
    pub fn own(&self) -> u32 {
        self.own.get()
    }

    /// Tells the meter.
    pub fn tell(&self) {
        let (own, told) = (self.own.get(), self.told.replace(self.own.get()));
        if own != told {
            self.meter.active.fetch_add(i64::from(own) - i64::from(told), Ordering::Relaxed);
        }
    }

    /// A further attempt, if the budget has room for one.
    pub fn further(&self, budget: Budget) -> Option<Further> {
        self.tell();
        let ceiling = budget.ceiling(self.meter.active());
        let add = |further: u32| (further < ceiling).then_some(further + 1);
        let added = self.meter.further.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.is_ok().then(|| Further(Arc::clone(&self.meter)))
    }

    fn tell_if_much(&self) {
        let (own, told) = (self.own.get(), self.told.get());
        if own.abs_diff(told) >= Self::STEP.max(told / 8) {
            self.tell();
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.own.set(0);
        self.tell();
    }
}

impl Drop for Further {
    fn drop(&mut self) {
        self.0.further.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIFTH: Budget = Budget { millionths: 200_000, floor: 3 };

    #[test]
    fn a_budget_is_a_share_and_never_less_than_its_floor() {
        for (active, ceiling) in [(0, 3), (15, 3), (20, 4), (1000, 200), (u64::MAX, u32::MAX)] {
            assert_eq!(FIFTH.ceiling(active), ceiling, "{active}");
        }
        assert_eq!(Budget { millionths: 0, floor: 0 }.ceiling(1 << 40), 0);
    }

    #[test]
    fn shards_share_one_budget() {
        let meter = Shared::default();
        let shards: Vec<_> = (0..4).map(|_| Gauge::new(&meter)).collect();
        for gauge in &shards {
            for _ in 0..100 {
                gauge.began();
            }
        }
        // A fifth of what was told: 400, less what three shards may not have told yet.
        let mut further = Vec::new();
        for gauge in shards.iter().cycle() {
            let Some(one) = gauge.further(FIFTH) else { break };
            further.push(one);
        }
        assert!((75..=80).contains(&further.len()), "{}", further.len());
        shards.iter().for_each(Gauge::tell);
        let all = std::iter::from_fn(|| shards[0].further(FIFTH)).map(|one| further.push(one)).count();
        assert_eq!(further.len(), 80, "{all} more when all is told");
        assert_eq!(meter.0.further(), 80);
        drop(further.pop());
        assert!(shards[3].further(FIFTH).is_some(), "one has ended");
    }

    #[test]
    fn what_ends_is_told_and_nothing_is_left_behind() {
        let meter = Shared::default();
        {
            let gauge = Gauge::new(&meter);
            let further = gauge.further(FIFTH);
            for n in 1..=1000 {
                gauge.began();
                let untold = u64::from(gauge.own()) - meter.0.active();
                assert!(untold <= u64::from(Gauge::STEP.max(n / 8)), "{untold} untold of {n}");
            }
            for _ in 0..1000 {
                gauge.ended();
            }
            assert!(meter.0.active() < u64::from(Gauge::STEP));
            gauge.tell();
            assert_eq!((meter.0.active(), meter.0.further()), (0, 1));
            gauge.began();
            drop(further);
        }
        assert_eq!((meter.0.active(), meter.0.further()), (0, 0));
    }
}
