//! What numbers allow to conclude: exact bounds of a rate (Clopper and Pearson) and of a quantile (order statistics), each missed with at
//! most a given probability, however few numbers there are and whatever their distribution. Pure.

use super::super::latency::Latency;

/// The least rate that `hits` of `n` allow: a rate below it would give so many with at most this probability.
pub(super) fn rate_low(hits: u64, n: u64, alpha: f64) -> f64 {
    if hits == 0 || n == 0 {
        return 0.0;
    }
    // P(at least `hits` at rate p) rises with p.
    bisect(|p| 1.0 - binomial(hits - 1, n, p) < alpha)
}

/// The highest rate that `hits` of `n` allow.
pub(super) fn rate_high(hits: u64, n: u64, alpha: f64) -> f64 {
    if hits >= n {
        return 1.0;
    }
    // P(at most `hits` at rate p) falls with p.
    bisect(|p| binomial(hits, n, p) > alpha)
}

/// The least value that the quantile `q` of what is measured may have, ns.
pub(super) fn quantile_low(latency: &Latency, q: f64, alpha: f64) -> u64 {
    let n = latency.count();
    // The largest rank whose value lies above the quantile with at most that probability: fewer than `rank` below it.
    let rank = largest(n, |rank| binomial(rank - 1, n, q) <= alpha);
    latency.at_rank(rank).map_or(0, |(low, _)| low)
}

/// The highest value that it may have; `None` where the numbers do not tell.
pub(super) fn quantile_high(latency: &Latency, q: f64, alpha: f64) -> Option<u64> {
    let n = latency.count();
    // The smallest rank whose value lies below the quantile with at most that probability.
    let rank = largest(n, |rank| 1.0 - binomial(rank - 1, n, q) > alpha) + 1;
    latency.at_rank(rank).map(|(_, high)| high)
}

/// The largest number from 1 to `n` that is so, where all below it are; 0 if none is.
fn largest(n: u64, is_so: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, n + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_so(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Up to which number from 0 to 1 it is so.
fn bisect(is_so: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if is_so(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// P(at most `k` of `n`), each with probability `p`.
fn binomial(k: u64, n: u64, p: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    incomplete_beta((n - k) as f64, k as f64 + 1.0, 1.0 - p)
}

/// The regularized incomplete beta function, by its continued fraction (Abramowitz and Stegun 26.5.8, Lentz's method).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    // It converges quickly on one side of the mean only.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(a, b, x) / a
    } else {
        1.0 - front * fraction(b, a, 1.0 - x) / b
    }
}

fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut result = d;
    // Terms needed grow with the root of a and b: ten thousand are enough for billions of samples.
    for m in 1..10_000 {
        let m = f64::from(m);
        for step in [
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        ] {
            d = 1.0 / away_from_zero(1.0 + step * d);
            c = away_from_zero(1.0 + step / c);
            result *= d * c;
        }
        if (d * c - 1.0).abs() < 1e-14 {
            break;
        }
    }
    result
}

/// By Lanczos' approximation, within 1e-13.
fn ln_gamma(x: f64) -> f64 {
    const OF: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let t = x + 7.5;
    let sum = (1..).zip(OF).fold(0.999_999_999_999_809_9, |sum, (n, of)| sum + of / (x + f64::from(n)));
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::ServiceCounts;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    /// Against sums of the terms themselves.
    #[test]
    fn the_binomial_distribution_is_right() {
        for (n, p) in [(1_u64, 0.3), (10, 0.5), (50, 0.01), (200, 0.9), (1000, 0.002)] {
            let mut term = (n as f64 * (1.0_f64 - p).ln()).exp();
            let mut sum = 0.0;
            for k in 0..n {
                sum += term;
                assert!(
                    close(binomial(k, n, p), sum),
                    "{k} of {n} at {p}: {} is not {sum}",
                    binomial(k, n, p)
                );
                term *= (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
            }
        }
        assert!(close(binomial(500_000, 1_000_000, 0.5), 0.5 + 0.000_398_942));
    }

    /// Known values: 0 of n by its formula, and the classic example of 10 of 100 at 95 %.
    #[test]
    fn the_bounds_of_rates_are_clopper_and_pearsons() {
        assert!(close(rate_high(0, 100, 0.025), 1.0 - 0.025_f64.powf(0.01)));
        assert!(close(rate_low(100, 100, 0.025), 0.025_f64.powf(0.01)));
        assert!(
            (rate_low(10, 100, 0.025) - 0.049).abs() < 1e-3
                && (rate_high(10, 100, 0.025) - 0.1762).abs() < 1e-4
        );
        assert_eq!(
            (rate_low(0, 5, 0.01), rate_high(5, 5, 0.01), rate_low(0, 0, 0.1), rate_high(0, 0, 0.1)),
            (0.0, 1.0, 0.0, 1.0)
        );
    }

    fn latency(values: impl Iterator<Item = u64>) -> Latency {
        let mut counts = ServiceCounts::new();
        values.for_each(|value| counts.first_byte.saturating_record(value));
        let mut latency = Latency::default();
        latency.record(&counts.first_byte);
        latency
    }

    #[test]
    fn the_bounds_of_quantiles_hold_the_quantile_and_say_so_when_they_cannot() {
        let thousand = latency((1..=1000).map(|n| n * 1_000_000));
        let (low, high) =
            (quantile_low(&thousand, 0.5, 0.001), quantile_high(&thousand, 0.5, 0.001).unwrap());
        // 500 ± 3.1 standard deviations of the rank (15.8), within the 1 % of a bucket.
        assert!(
            (440_000_000..460_000_000).contains(&low) && (540_000_000..560_000_000).contains(&high),
            "{low} {high}"
        );
        assert_eq!(quantile_high(&latency([1_000_000; 50].into_iter()), 0.99, 0.001), None);
        assert_eq!(quantile_low(&latency(std::iter::empty()), 0.5, 0.001), 0);
        assert_eq!(quantile_high(&latency(std::iter::empty()), 0.5, 0.001), None);
    }

    /// Each bound misses the truth no more often than it may: 4000 draws, 5 standard deviations above the 1 %.
    #[test]
    #[expect(clippy::print_stdout, reason = "seeds are printed, so that a failure can be repeated")]
    fn bounds_are_missed_as_seldom_as_they_say() {
        const DRAWS: u32 = 4000;
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
        println!("RINGMESH_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut missed = [0_u32; 4];
        for _ in 0..DRAWS {
            let (n, rate) = (300, 0.03);
            let hits = (0..n).filter(|_| rng.f64() < rate).count() as u64;
            missed[0] += u32::from(rate_low(hits, n, 0.01) > rate);
            missed[1] += u32::from(rate_high(hits, n, 0.01) < rate);
            // Evenly from 0 to 1 s: the quantile 0.9 is 900 ms.
            let drawn = latency((0..n).map(|_| 1000 + (rng.f64() * 1e9) as u64));
            missed[2] += u32::from(quantile_low(&drawn, 0.9, 0.01) > 900_001_000);
            missed[3] += u32::from(quantile_high(&drawn, 0.9, 0.01).is_some_and(|high| high < 900_000_000));
        }
        println!("{missed:?} of {DRAWS}");
        let most = (f64::from(DRAWS) * 0.01 + 5.0 * (f64::from(DRAWS) * 0.01 * 0.99).sqrt()) as u32;
        assert!(missed.iter().all(|missed| *missed <= most), "{missed:?}");
    }
}
