//! A bucket of tokens in one number: when it will be full again. Pure: time is an argument, the same for all shards.
//!
//! That is the generic cell rate algorithm: a token is `every_ns` of time, and there is one as long as the bucket would be full
//! within `burst_ns`. One atomic, so that what all shards take together is exact, without a lock and without refilling.

use std::sync::atomic::{AtomicU64, Ordering};

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// One token in so much time, ns; at least 1.
    pub every_ns: u64,
    /// All of them in so much time: `every_ns` times as many as it holds.
    pub burst_ns: u64,
}

/// A bucket, full to begin with.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When it will be full.
    full_at_ns: AtomicU64,
}

impl Pace {
    /// `rate` tokens in `per_ns`, up to `burst` of them.
    pub fn new(rate: u32, per_ns: u64, burst: u32) -> Self {
        let every_ns = (per_ns / u64::from(rate.max(1))).max(1);
        Self { every_ns, burst_ns: every_ns.saturating_mul(u64::from(burst.max(1))) }
    }
}

impl Bucket {
    /// Takes a token.
    ///
    /// # Errors
    /// In how many nanoseconds there will be one.
    pub fn take(&self, pace: Pace, now_ns: u64) -> Result<(), u64> {
        // Nothing else is told by it: only that no two take the same token.
        let mut full_at_ns = self.full_at_ns.load(Ordering::Relaxed);
        loop {
            let next_ns = full_at_ns.max(now_ns).saturating_add(pace.every_ns);
            let latest_ns = now_ns.saturating_add(pace.burst_ns);
            if next_ns > latest_ns {
                return Err(next_ns - latest_ns);
            }
            match self.full_at_ns.compare_exchange_weak(
                full_at_ns,
                next_ns,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(newer) => full_at_ns = newer,
            }
        }
    }

    /// Gives one back that was taken and is not used.
    pub fn put_back(&self, pace: Pace) {
        self.full_at_ns.fetch_sub(pace.every_ns, Ordering::Relaxed);
    }

    /// Whether it is as if nobody had ever taken from it.
    pub fn is_full(&self, now_ns: u64) -> bool {
        self.full_at_ns.load(Ordering::Relaxed) <= now_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_burst_at_once_and_then_one_by_one() {
        let (bucket, pace) = (Bucket::default(), Pace::new(10, S, 5));
        let now = 100 * S;
        for _ in 0..5 {
            assert_eq!(bucket.take(pace, now), Ok(()));
        }
        assert_eq!(bucket.take(pace, now), Err(S / 10));
        assert_eq!(bucket.take(pace, now + S / 20), Err(S / 20));
        assert_eq!(bucket.take(pace, now + S / 10), Ok(()));
        assert_eq!(bucket.take(pace, now + S / 10), Err(S / 10));
        // Full again, and not more than full.
        assert!(!bucket.is_full(now + S / 2));
        assert!(bucket.is_full(now + S));
        let taken = (0..20).filter(|_| bucket.take(pace, now + 10 * S).is_ok()).count();
        assert_eq!(taken, 5);
    }

    #[test]
    fn what_is_put_back_can_be_taken_again() {
        let (bucket, pace) = (Bucket::default(), Pace::new(1, S, 2));
        assert_eq!(bucket.take(pace, S), Ok(()));
        assert_eq!(bucket.take(pace, S), Ok(()));
        bucket.put_back(pace);
        assert_eq!(bucket.take(pace, S), Ok(()));
        assert_eq!(bucket.take(pace, S), Err(S));
    }

    #[test]
    fn any_numbers_are_borne() {
        for (rate, per, burst) in [(0, 0, 0), (u32::MAX, 1, u32::MAX), (1, u64::MAX, u32::MAX)] {
            let (bucket, pace) = (Bucket::default(), Pace::new(rate, per, burst));
            assert_eq!(bucket.take(pace, 0), Ok(()));
            let _ = bucket.take(pace, u64::MAX);
        }
    }
}
