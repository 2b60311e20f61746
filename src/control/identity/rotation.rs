//! When a certificate is renewed, how long to wait after a failure, and how loudly to speak of one that is not renewed.
//! Pure: moments are arguments (seconds of the Unix time), and so is chance (0.0 to 1.0).

use std::time::Duration;

/// Between two looks at the clock while waiting for a moment. A machine that slept, or whose clock was set, is noticed
/// by the next look.
pub(super) const LOOK: Duration = Duration::from_secs(15);

/// Where a certificate stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// More than half is left.
    Young,
    /// Half or less is left: it should have been renewed.
    Old,
    /// A tenth or less is left.
    Last,
    /// It has ended.
    Ended,
}

impl Standing {
    /// At this moment.
    pub(crate) fn at(not_before: u64, not_after: u64, now: u64) -> Self {
        let (life, left) = (not_after.saturating_sub(not_before), not_after.saturating_sub(now));
        if now > not_after {
            Self::Ended
        } else if left <= life / 10 {
            Self::Last
        } else if left <= life / 2 {
            Self::Old
        } else {
            Self::Young
        }
    }
}

/// How long after it was obtained a certificate is renewed: half of what it had left then, and up to a twentieth more or
/// less, so that those who began together do not ask together for ever. Not sooner than a second: one that is nearly
/// over is no reason to run in circles.
pub(super) fn renew_after(obtained: u64, not_after: u64, chance: f64) -> Duration {
    let left = not_after.saturating_sub(obtained) as f64;
    Duration::from_secs_f64((left * (0.45 + 0.1 * chance)).max(1.0))
}

/// The pause after so many failures in a row: up to 1 s after the first, doubling, all of it by chance, up to five minutes
/// or a twentieth of the certificate's life, whichever is less. At least 100 ms.
pub(super) fn retry_after(failures: u32, life: u64, chance: f64) -> Duration {
    const MOST: f64 = 300.0;
    let most = (life as f64 / 20.0).clamp(1.0, MOST);
    let doubled = 2f64.powi(i32::try_from(failures.saturating_sub(1).min(16)).unwrap_or(16));
    Duration::from_secs_f64((doubled.min(most) * chance).max(0.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy that renews by these rules until `end`, asking a source that is down while `down` says so. Returns how
    /// often it asked, and how many seconds it presented a certificate that had ended.
    fn simulate(ttl: u64, end: f64, seed: u64, down: impl Fn(f64) -> bool) -> (u32, f64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut now, mut not_after, mut failures, mut asked, mut ended) = (0.0, ttl as f64, 0, 0, 0.0);
        let mut next = renew_after(0, ttl, random.f64()).as_secs_f64();
        while next < end {
            ended += (next - f64::max(now, not_after)).max(0.0);
            now = next;
            asked += 1;
            let pause = if down(now) {
                failures += 1;
                retry_after(failures, ttl, random.f64())
            } else {
                failures = 0;
                not_after = now + ttl as f64;
                renew_after(now as u64, not_after as u64, random.f64())
            };
            next = now + pause.as_secs_f64();
        }
        (asked, ended)
    }

    #[test]
    fn renewal_is_around_half_life_and_spread() {
        for (ttl, least, most) in [(86_400, 38_880.0, 47_520.0), (10, 4.5, 5.5)] {
            let all: Vec<f64> = (0..=100)
                .map(|n| renew_after(1000, 1000 + ttl, f64::from(n) / 100.0).as_secs_f64())
                .collect();
            assert!((all[0] - least).abs() < 0.01 && (all[100] - most).abs() < 0.01, "{ttl}: {all:?}");
        }
        assert_eq!(renew_after(1000, 900, 0.5), Duration::from_secs(1), "one that has ended");
    }

    #[test]
    fn a_year_without_trouble_asks_twice_a_day_and_presents_nothing_ended() {
        let (asked, ended) = simulate(86_400, 365.0 * 86_400.0, 1, |_| false);
        assert!((700..=760).contains(&asked), "{asked}");
        assert!(ended < f64::EPSILON);
    }

    #[test]
    fn an_outage_shorter_than_what_is_left_is_not_noticed_and_costs_few_questions() {
        for seed in 0..50 {
            // Ten hours out of every day; half a day is left when renewal is due.
            let down = |now: f64| now % 86_400.0 < 36_000.0;
            let (asked, ended) = simulate(86_400, 30.0 * 86_400.0, seed, down);
            assert!(ended < f64::EPSILON, "seed {seed}: {ended} s");
            assert!(asked < 30 * 300, "seed {seed}: {asked}");
        }
    }

    #[test]
    fn leaves_of_ten_seconds_survive_an_outage_of_three() {
        for seed in 0..50 {
            let (_, ended) = simulate(10, 600.0, seed, |now| now % 60.0 < 3.0);
            assert!(ended < f64::EPSILON, "seed {seed}: {ended} s");
        }
    }

    #[test]
    fn pauses_grow_and_stop_growing() {
        let longest = |failures| retry_after(failures, 86_400, 1.0).as_secs_f64();
        assert_eq!([1, 2, 3, 9, 100].map(longest), [1.0, 2.0, 4.0, 256.0, 300.0]);
        assert_eq!(retry_after(100, 10, 1.0), Duration::from_secs(1), "a short life has no time to wait");
        assert_eq!(retry_after(1, 86_400, 0.0), Duration::from_millis(100));
    }

    #[test]
    fn standings() {
        let at = |now| Standing::at(1000, 2000, now);
        assert_eq!(
            [900, 1000, 1499, 1500, 1899, 1900, 2000, 2001].map(at),
            [
                Standing::Young,
                Standing::Young,
                Standing::Young,
                Standing::Old,
                Standing::Old,
                Standing::Last,
                Standing::Last,
                Standing::Ended
            ]
        );
    }
}
