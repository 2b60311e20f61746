//! A histogram kept as the list of its buckets that are not empty: what control keeps of the shards' hdrhistograms.
//!
//! A shard's histogram has 2 800 counters whether they are used or not; ten seconds of three of them for each service
//! would be 330 KiB a service. Latencies of one second fall into some hundred buckets, so a list of (value, count) is
//! a few KiB and grows with what was seen, never with what is configured. Used by `store`; refuses to record single
//! values: only shards do.

use hdrhistogram::Histogram;

/// Non-empty buckets by rising value, and the sum of all values.
#[derive(Debug, Clone, Default)]
pub(super) struct Latency {
    buckets: Vec<Bucket>,
    /// Number of values.
    count: u64,
    /// Sum of all values, ns, each taken as the middle of its bucket (within 1 %). 128 bits: 100 000 exchanges a second
    /// of one second each would fill 64 bits in two days.
    sum_ns: u128,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// The smallest and the largest value that fall into it, ns.
    low: u64,
    high: u64,
    /// How many did.
    count: u64,
}

impl Latency {
    /// Adds what a shard recorded.
    pub(super) fn record(&mut self, histogram: &Histogram<u32>) {
        if histogram.is_empty() {
            return;
        }
        let mut other = Self::default();
        for step in histogram.iter_recorded() {
            let (high, count) = (step.value_iterated_to(), step.count_since_last_iteration());
            other.buckets.push(Bucket { low: histogram.lowest_equivalent(high), high, count });
            other.count += count;
            other.sum_ns += u128::from(histogram.median_equivalent(high)) * u128::from(count);
        }
        self.add(&other);
    }

    /// Adds what `other` holds.
    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        // Most values of a second fall into buckets that are already there; only new ones are inserted.
        let mut at = 0;
        for bucket in &other.buckets {
            at += self.buckets[at..].partition_point(|b| b.high < bucket.high);
            match self.buckets.get_mut(at) {
                Some(mine) if mine.high == bucket.high => mine.count += bucket.count,
                _ => self.buckets.insert(at, *bucket),
            }
        }
    }

    /// Number of values.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all values, s.
    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// The value (ns) that a share `q` (0 to 1) of all values does not exceed; `None` when there are none.
    pub(super) fn quantile(&self, q: f64) -> Option<u64> {
        let rank = ((self.count as f64 * q).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        self.buckets.iter().find_map(|bucket| {
            seen += bucket.count;
            (seen >= rank).then_some(bucket.high)
        })
    }

    /// The smallest and the largest value that the one of this rank (from 1) may have had, ns.
    pub(super) fn at_rank(&self, rank: u64) -> Option<(u64, u64)> {
        let mut seen = 0;
        self.buckets.iter().filter(|_| rank > 0).find_map(|bucket| {
            seen += bucket.count;
            (seen >= rank).then_some((bucket.low, bucket.high))
        })
    }

    /// Counts between fixed bounds (upper bound in s; the last is +Inf), as a Prometheus histogram wants them before
    /// accumulation. A bucket that lies across a bound counts below it, because a value equal to the bound must: an error
    /// of at most the bucket's 1 %.
    pub(super) fn between(&self, bounds_ns: &[u64]) -> Vec<(f64, u64)> {
        let mut out = Vec::with_capacity(bounds_ns.len() + 1);
        let mut from = 0;
        for &bound in bounds_ns {
            let to = from + self.buckets[from..].partition_point(|b| b.low <= bound);
            out.push((bound as f64 / 1e9, self.buckets[from..to].iter().map(|b| b.count).sum()));
            from = to;
        }
        out.push((f64::INFINITY, self.buckets[from..].iter().map(|b| b.count).sum()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::ServiceCounts;

    #[test]
    fn it_says_what_the_histogram_says() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut whole = ServiceCounts::new().whole;
        let mut latency = Latency::default();
        let mut exact_ns = 0u128;
        for _ in 0..10 {
            let mut part = ServiceCounts::new().whole;
            for _ in 0..rng.usize(0..500) {
                let ns = 1_000 + (rng.f64().powi(4) * 3e9) as u64;
                exact_ns += u128::from(ns);
                part.record(ns).unwrap();
            }
            whole.add(&part).unwrap();
            latency.record(&part);
        }
        assert_eq!(latency.count(), whole.len());
        for q in [0.001, 0.5, 0.9, 0.99, 0.999, 1.0] {
            assert_eq!(latency.quantile(q), Some(whole.value_at_quantile(q)), "quantile {q}");
        }
        let error = (latency.sum_seconds() - exact_ns as f64 / 1e9).abs() / (exact_ns as f64 / 1e9);
        assert!(error < 0.01, "sum is off by {error}");
        let between = latency.between(&[1_000_000, 10_000_000, 1_000_000_000]);
        assert_eq!(between.iter().map(|b| b.1).sum::<u64>(), whole.len());
        assert_eq!(between.last().unwrap().0, f64::INFINITY);
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Latency::default().quantile(0.5), None);
        assert_eq!(Latency::default().between(&[1]).len(), 2);
    }
}
