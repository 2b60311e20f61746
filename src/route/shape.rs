//! A body that a fault makes slow, or one of a response that it ends too soon: how many of its octets may go next, and when. Pure: what
//! time it is is an argument. Called by those who pass bodies on (`proxy::shaped`), which there is one of at a time.
//!
//! Slow is a token bucket that holds [`Shape::SLACK_NS`] of the rate, from which a half of that is taken at a time: who is woken
//! too late gets what he was late for, and nobody gets a burst that could be seen.

use std::cell::Cell;
use std::num::NonZeroU64;

use super::fault::{Drawn, Where};
use super::percent::Percent;

/// What is done to a body.
#[derive(Debug)]
pub struct Shape {
    truncate: Option<Where>,
    /// After so many octets it ends; more than any body has where it does not.
    end: Cell<u64>,
    rate: Option<NonZeroU64>,
    /// Until then all of the rate is used, ns.
    used_until: Cell<u64>,
    passed: Cell<u64>,
    was_truncated: Cell<bool>,
    was_slowed: Cell<bool>,
}

/// What becomes of a body next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing more of it goes on.
    Truncated,
    /// So many octets, and not before then (ns).
    Octets(usize, u64),
}

impl Shape {
    /// What the rate makes up for when somebody was late, ns: a sixteenth of a second, as Envoy fills its bucket.
    const SLACK_NS: u64 = 1_000_000_000 / 16;

    /// What is drawn for a request, as far as it is about the body of its response.
    pub fn of(drawn: &Drawn) -> Option<Self> {
        let Drawn { truncate, response_rate: rate, .. } = *drawn;
        (truncate.is_some() || rate.is_some()).then(|| Self {
            truncate,
            end: Cell::new(u64::MAX),
            rate,
            used_until: Cell::default(),
            passed: Cell::default(),
            was_truncated: Cell::default(),
            was_slowed: Cell::default(),
        })
    }

    /// The same, as far as it is about its own body.
    pub fn of_request(drawn: &Drawn) -> Option<Self> {
        Self::of(&Drawn { response_rate: drawn.request_rate, ..Drawn::default() })
    }

    /// A body begins that is so long, where that is told.
    pub fn begin(&self, length: Option<u64>) {
        let Some(Where { part, after }) = self.truncate else { return };
        // The float is of no matter: below 2^53 octets it is exact, and beyond that nobody counts.
        let of_length = |part: Percent| length.map(|all| (all as f64 * part.value() / 100.0) as u64);
        self.end.set(part.and_then(of_length).or(after).unwrap_or(u64::MAX));
    }

    /// How many of `want` octets go on next. Called for one at least.
    pub fn next(&self, want: usize, now: u64) -> Next {
        let left = self.end.get().saturating_sub(self.passed.get());
        if left == 0 {
            self.was_truncated.set(true);
            return Next::Truncated;
        }
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(want);
        let Some(rate) = self.rate else { return Next::Octets(want, now) };
        self.was_slowed.set(true);
        let part = usize::try_from(rate.get() / 32).unwrap_or(usize::MAX).max(1);
        let count = part.min(want);
        let used_until = self.used_until.get().max(now.saturating_sub(Self::SLACK_NS));
        Next::Octets(count, (used_until + cost_ns(count, rate)).max(now))
    }

    /// So many of those have gone.
    pub fn gone(&self, count: usize, now: u64) {
        self.passed.set(self.passed.get() + count as u64);
        if let Some(rate) = self.rate {
            let used_until = self.used_until.get().max(now.saturating_sub(Self::SLACK_NS));
            self.used_until.set(used_until + cost_ns(count, rate));
        }
    }

    /// Octets that have gone.
    pub fn passed(&self) -> u64 {
        self.passed.get()
    }

    /// Whether the body was ended too soon.
    pub fn was_truncated(&self) -> bool {
        self.was_truncated.get()
    }

    /// Whether anything of it had to keep to a rate.
    pub fn was_slowed(&self) -> bool {
        self.was_slowed.get()
    }
}

/// How long so many octets are a part of the rate. Fits: a part is a 32nd of a second.
fn cost_ns(count: usize, rate: NonZeroU64) -> u64 {
    (count as u64).saturating_mul(1_000_000_000) / rate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::fault::Fault;

    const SECOND: u64 = 1_000_000_000;

    fn shape(truncate: Option<Where>, rate: u64) -> Shape {
        Shape::of(&Drawn { truncate, response_rate: NonZeroU64::new(rate), ..Drawn::default() }).unwrap()
    }

    fn at(part: Option<f64>, after: Option<u64>) -> Option<Where> {
        Some(Where { part: part.and_then(Percent::new), after })
    }

    #[test]
    fn a_body_keeps_to_its_rate_whatever_it_comes_in_and_however_late_it_is_asked_for() {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
        eprintln!("RINGMESH_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let [slowest, fastest] = Fault::RATES;
        for rate in [slowest, 10_000, 64 << 10, 12_345_678, fastest] {
            let shape = shape(None, rate);
            shape.begin(None);
            let began = rng.u64(..SECOND * 1000);
            let (mut now, mut gone) = (began, 0_u64);
            while now < began + 20 * SECOND {
                let piece = rng.usize(1..200_000);
                let mut left = piece;
                while left > 0 {
                    let Next::Octets(count, when) = shape.next(left, now) else { panic!("truncated") };
                    assert!((1..=left).contains(&count) && when >= now);
                    // A timer is late, but not by more than the slack has room for.
                    now = when + rng.u64(..Shape::SLACK_NS / 3);
                    // Of what may go not all has to.
                    let went = rng.usize(1..=count);
                    shape.gone(went, now);
                    left -= went;
                    gone += went as u64;
                    // Never more than the rate and the slack.
                    let most = (now - began + Shape::SLACK_NS) as f64 / SECOND as f64 * rate as f64;
                    assert!(gone as f64 <= most + 1.0, "{gone} octets of {most} at {rate}");
                }
            }
            assert_eq!(shape.passed(), gone);
        }
        // From nothing: what little is wanted comes at its time.
        assert_eq!(shape(None, 1024).next(5, 0), Next::Octets(5, 5 * SECOND / 1024));
    }

    #[test]
    fn who_is_always_a_little_late_still_gets_all_of_the_rate() {
        for rate in [1024, 100_000, 8 << 20] {
            let shape = shape(None, rate);
            let began = 77 * SECOND;
            let mut now = began;
            let mut gone = 0;
            while now < began + 10 * SECOND {
                let Next::Octets(count, when) = shape.next(1 << 20, now) else { panic!("truncated") };
                now = when + 7_000_000;
                shape.gone(count, now);
                gone += count as u64;
            }
            let want = rate * 10;
            assert!(gone.abs_diff(want) <= want / 50, "{gone} of {want}");
            assert!(shape.was_slowed());
        }
    }

    #[test]
    fn after_a_pause_there_is_no_burst_but_the_slack() {
        let shape = shape(None, 32_000);
        shape.gone(1000, SECOND);
        let Next::Octets(count, when) = shape.next(1 << 20, 100 * SECOND) else { panic!("truncated") };
        assert_eq!((count, when), (1000, 100 * SECOND));
        shape.gone(count, when);
        // The slack is two parts.
        assert_eq!(shape.next(1 << 20, when), Next::Octets(1000, when));
        shape.gone(count, when);
        assert_eq!(shape.next(1 << 20, when), Next::Octets(1000, when + SECOND / 32));
    }

    #[test]
    fn a_body_ends_where_it_shall_and_not_where_it_is_shorter() {
        for (truncate, length, want) in [
            (at(None, Some(100)), None, Some(100)),
            (at(None, Some(100)), Some(1000), Some(100)),
            (at(None, Some(100)), Some(100), None),
            (at(None, Some(0)), Some(1), Some(0)),
            (at(Some(50.0), None), Some(1000), Some(500)),
            // What is not known has no half.
            (at(Some(50.0), None), None, None),
            (at(Some(50.0), Some(7)), None, Some(7)),
            (at(Some(50.0), Some(7)), Some(1000), Some(500)),
            (at(Some(33.3), None), Some(10), Some(3)),
        ] {
            let shape = shape(truncate, 0);
            shape.begin(length);
            let mut left = length.unwrap_or(1000) as usize;
            while left > 0 {
                match shape.next(left.min(40), 0) {
                    Next::Truncated => break,
                    Next::Octets(count, 0) => {
                        shape.gone(count, 0);
                        left -= count;
                    }
                    Next::Octets(_, when) => panic!("waits until {when}"),
                }
            }
            let ended = shape.was_truncated().then(|| shape.passed());
            assert_eq!(ended, want, "{truncate:?} of {length:?}");
            assert!(!shape.was_slowed());
        }
    }

    #[test]
    fn both_are_done_at_once() {
        let shape = shape(at(None, Some(10)), 1024);
        shape.begin(None);
        let Next::Octets(count, _) = shape.next(500, SECOND) else { panic!("truncated") };
        assert_eq!(count, 10);
        shape.gone(10, SECOND);
        assert_eq!(shape.next(490, SECOND), Next::Truncated);
        assert!(shape.was_truncated() && shape.was_slowed());
        assert!(Shape::of(&Drawn::default()).is_none());
    }
}
