//! How long a service takes to answer, for who wants to know when one request has taken longer than most: the quantiles of
//! what one shard has seen lately. Pure: what was seen is an argument.
//!
//! A histogram with eight buckets to each doubling, so that what is told is at most an eighth more than what is; its counts are
//! halved when [`Tail::SAMPLES_MAX`] have come, so that the last few thousand count for most. An attempt that is given up
//! because another one was sooner counts as long as it had lasted: it was one of the slow ones, and without it each hedge
//! would make the next one sooner.

use std::cell::{Cell, RefCell};

/// A part of all, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantile(u16);

impl Quantile {
    /// The least: what is asked is when a request is slow.
    pub const MIN: u16 = 500;
    /// The greatest.
    pub const MAX: u16 = 999;

    /// So many thousandths; `None` out of the bounds.
    pub fn new(thousandths: u16) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&thousandths).then_some(Self(thousandths))
    }

    /// In thousandths.
    pub fn thousandths(self) -> u16 {
        self.0
    }
}

/// What was seen of a service.
pub struct Tail {
    counts: RefCell<[u32; Self::BUCKETS]>,
    samples: Cell<u32>,
    /// The quantile asked for last, what it was (0: too few were seen), and how many may be seen before it is looked up again.
    known: Cell<(u16, u64, u32)>,
}

impl Default for Tail {
    fn default() -> Self {
        Self { counts: RefCell::new([0; Self::BUCKETS]), samples: Cell::new(0), known: Cell::new((0, 0, 0)) }
    }
}

impl Tail {
    /// Fewer say nothing of a tail.
    pub const SAMPLES_MIN: u32 = 100;
    /// As many as are kept: then each counts half.
    pub const SAMPLES_MAX: u32 = 4096;
    /// Looked up anew after so many.
    const STALE_AFTER: u32 = 64;
    /// To each doubling.
    const STEPS: usize = 8;
    /// The first doubling begins at 2^16 ns, 66 µs.
    const FIRST_BITS: u32 = 16;
    /// Up to 2^36 ns, 69 s.
    const DOUBLINGS: usize = 20;
    const BUCKETS: usize = Self::STEPS * Self::DOUBLINGS + 1;

    /// An answer took so long, or an attempt was given up after that.
    pub fn saw(&self, latency_ns: u64) {
        let mut counts = self.counts.borrow_mut();
        counts[Self::bucket(latency_ns)] += 1;
        let (quantile, value, left) = self.known.get();
        self.known.set((quantile, value, left.saturating_sub(1)));
        self.samples.set(self.samples.get() + 1);
        if self.samples.get() >= Self::SAMPLES_MAX {
            counts.iter_mut().for_each(|count| *count /= 2);
            self.samples.set(counts.iter().sum());
        }
    }

    /// What this part of all answers did not take longer than; `None` while too few were seen.
    pub fn at(&self, quantile: Quantile) -> Option<u64> {
        let (known, mut value, left) = self.known.get();
        if known != quantile.0 || left == 0 {
            value = self.look_up(quantile);
            // Until there are enough each one counts.
            self.known.set((quantile.0, value, if value == 0 { 0 } else { Self::STALE_AFTER }));
        }
        (value > 0).then_some(value)
    }

    fn look_up(&self, quantile: Quantile) -> u64 {
        let samples = self.samples.get();
        if samples < Self::SAMPLES_MIN {
            return 0;
        }
        let rank = (u64::from(samples) * u64::from(quantile.0)).div_ceil(1000);
        let mut seen = 0;
        let counts = self.counts.borrow();
        let at = counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        Self::end(at.unwrap_or(Self::BUCKETS - 1))
    }

    fn bucket(latency_ns: u64) -> usize {
        let Some(doubling) = latency_ns.max(1).ilog2().checked_sub(Self::FIRST_BITS) else { return 0 };
        let below = 1_u64 << (doubling + Self::FIRST_BITS);
        // Less than eight: what is above the doubling, in eighths of it.
        let step = ((latency_ns - below) / (below / Self::STEPS as u64)) as usize;
        (1 + doubling as usize * Self::STEPS + step).min(Self::BUCKETS - 1)
    }

    /// What nothing in the bucket is longer than.
    fn end(bucket: usize) -> u64 {
        let Some(at) = bucket.checked_sub(1) else { return 1 << Self::FIRST_BITS };
        let below = 1_u64 << (Self::FIRST_BITS as usize + at / Self::STEPS);
        below + below / Self::STEPS as u64 * (at % Self::STEPS + 1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn seeded() -> (u64, fastrand::Rng) {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        (seed, fastrand::Rng::with_seed(seed))
    }

    fn quantile(thousandths: u16) -> Quantile {
        Quantile::new(thousandths).unwrap()
    }

    #[test]
    fn a_quantile_is_told_to_an_eighth_above_what_it_is() {
        let (seed, mut rng) = seeded();
        for round in 0..50 {
            let tail = Tail::default();
            let (least, factor) = (rng.u64(1000..5 * MS), 1.0 + rng.f64() * 200.0);
            let mut seen: Vec<u64> =
                (0..4000).map(|_| (least as f64 * factor.powf(rng.f64())) as u64).collect();
            seen.iter().for_each(|latency_ns| tail.saw(*latency_ns));
            seen.sort_unstable();
            for thousandths in [500, 900, 950, 990, 999] {
                let rank = (seen.len() * usize::from(thousandths)).div_ceil(1000);
                let exact = seen[rank - 1].max(1 << Tail::FIRST_BITS);
                let told = tail.at(quantile(thousandths)).unwrap();
                assert!(
                    (exact..=exact + exact / 8 + 8).contains(&told),
                    "{round}: p{thousandths} {exact} {told}, RINGMESH_SEED={seed}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_told_before_enough_was_seen() {
        let tail = Tail::default();
        for _ in 0..Tail::SAMPLES_MIN - 1 {
            tail.saw(MS);
            assert_eq!(tail.at(quantile(950)), None);
        }
        tail.saw(MS);
        assert!(tail.at(quantile(950)).is_some_and(|told| (MS..=MS + MS / 8).contains(&told)));
    }

    #[test]
    fn it_follows_a_service_that_becomes_slower_or_faster() {
        let tail = Tail::default();
        let seen = |latency_ns: u64, times: u32| {
            (0..times).for_each(|_| tail.saw(latency_ns));
            tail.at(quantile(900)).unwrap()
        };
        assert!(seen(MS, 10_000) < 2 * MS);
        assert!(seen(80 * MS, 10_000) > 70 * MS);
        assert!(seen(MS, 20_000) < 2 * MS);
    }

    /// Who is given up counts as long as it lasted: the part that is hedged stays what was asked for.
    #[test]
    fn hedges_do_not_make_the_next_ones_sooner() {
        let (seed, mut rng) = seeded();
        let tail = Tail::default();
        let p95 = quantile(950);
        let (mut hedged, mut all) = (0_u32, 0_u32);
        for n in 0..200_000_u32 {
            // Between 1 and 100 ms, evenly on a scale of doublings.
            let latency_ns = (MS as f64 * 100.0_f64.powf(rng.f64())) as u64;
            let given_up = tail.at(p95).filter(|after_ns| *after_ns < latency_ns);
            tail.saw(given_up.map_or(latency_ns, |after_ns| after_ns + MS));
            if n > 20_000 {
                (all, hedged) = (all + 1, hedged + u32::from(given_up.is_some()));
            }
        }
        let part = f64::from(hedged) / f64::from(all);
        assert!((0.02..=0.055).contains(&part), "{part}, RINGMESH_SEED={seed}");
    }

    #[test]
    fn any_number_is_borne() {
        let tail = Tail::default();
        for latency_ns in [0, 1, 65_535, 65_536, u64::MAX, 1 << 36, (1 << 36) - 1] {
            (0..50).for_each(|_| tail.saw(latency_ns));
            assert!(Tail::end(Tail::bucket(latency_ns)) >= latency_ns.min(1 << 36));
        }
        for at in 1..Tail::BUCKETS - 1 {
            assert_eq!(Tail::bucket(Tail::end(at) - 1), at);
            assert_eq!(Tail::bucket(Tail::end(at)), at + 1);
        }
        assert_eq!((Quantile::new(499), Quantile::new(1000)), (None, None));
    }
}
