//! What became of a phase, in numbers: what claims are judged by and what the summary shows. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Seen;
use super::load::{End, Outcome};

/// A phase that is over.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    /// How long requests were begun.
    pub length: Duration,
    /// What became of each.
    pub outcomes: Vec<Outcome>,
    /// What each endpoint saw in it, by number.
    pub endpoints: Vec<Worked>,
    /// Why each endpoint was passed over when it ended, by number; `None`: it was used.
    pub passed_over: Vec<Option<String>>,
}

/// What an endpoint saw during a phase.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Worked {
    /// Requests, each attempt of them.
    pub arrived: u64,
    /// Work that was done to its end.
    pub done: u64,
    /// How long that took in all.
    pub worked: Duration,
}

impl Worked {
    /// Between two looks.
    pub(super) fn between(before: Seen, after: Seen) -> Self {
        Self {
            arrived: after.arrived.saturating_sub(before.arrived),
            done: after.done.saturating_sub(before.done),
            worked: after.worked.saturating_sub(before.worked),
        }
    }
}

/// Requests, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// All that have ended.
    pub all: u64,
    /// With 200.
    pub answered: u64,
    /// By the proxy itself, with 503.
    pub refused: u64,
    /// Otherwise.
    pub failed: u64,
}

impl Counts {
    /// Of these.
    pub(super) fn of<'o>(outcomes: impl IntoIterator<Item = &'o Outcome>) -> Self {
        outcomes.into_iter().fold(Self::default(), |mut counts, outcome| {
            counts.all += 1;
            match outcome.end {
                End::Answered => counts.answered += 1,
                End::Refused => counts.refused += 1,
                End::Failed(_) => counts.failed += 1,
            }
            counts
        })
    }
}

/// A part of something; nothing of nothing is 0.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// How long such requests took (s) that a share of them does not exceed; `None` when there are none.
pub(super) fn quantile<'o>(
    outcomes: impl IntoIterator<Item = &'o Outcome>,
    which: fn(&End) -> bool,
    q: f64,
) -> Option<f64> {
    let mut all: Vec<Duration> =
        outcomes.into_iter().filter(|outcome| which(&outcome.end)).map(|outcome| outcome.took).collect();
    all.sort_unstable();
    let rank = (all.len() as f64 * q).ceil() as usize;
    all.get(rank.saturating_sub(1)).map(Duration::as_secs_f64)
}

impl Past {
    /// All requests.
    pub(super) fn counts(&self) -> Counts {
        Counts::of(&self.outcomes)
    }

    /// Those that were due after this time.
    pub(super) fn counts_after(&self, after: Duration) -> Counts {
        Counts::of(self.outcomes.iter().filter(|outcome| outcome.due >= after))
    }

    /// How long what was answered took (s).
    pub(super) fn answers(&self, q: f64) -> Option<f64> {
        quantile(&self.outcomes, |end| *end == End::Answered, q)
    }

    /// How long it took to be refused (s).
    pub(super) fn refusals(&self, q: f64) -> Option<f64> {
        quantile(&self.outcomes, |end| *end == End::Refused, q)
    }

    /// Attempts that reached an endpoint, for each request.
    pub(super) fn attempts(&self) -> f64 {
        share(self.endpoints.iter().map(|endpoint| endpoint.arrived).sum(), self.outcomes.len() as u64)
    }

    /// Of the answers of the last third of the phase the part that came from one endpoint.
    pub(super) fn last_share_of(&self, endpoint: usize) -> f64 {
        let last = self.outcomes.iter().filter(|outcome| outcome.due >= self.length * 2 / 3);
        let (its, all) = last
            .filter_map(|outcome| outcome.by)
            .fold((0, 0), |(its, all), by| (its + u64::from(by == endpoint), all + 1));
        share(its, all)
    }

    /// Requests a second that were answered.
    pub(super) fn goodput(&self) -> f64 {
        self.counts().answered as f64 / self.length.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Requests a second that so many places for work can serve, going by how long work took here.
    pub(super) fn capacity(&self, places: usize) -> f64 {
        let done: u64 = self.endpoints.iter().map(|endpoint| endpoint.done).sum();
        let worked: Duration = self.endpoints.iter().map(|endpoint| endpoint.worked).sum();
        places as f64 * done as f64 / worked.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Why requests failed, the most frequent first: so many reasons and one for the rest.
    pub(super) fn reasons(&self, most: usize) -> Vec<(u64, Arc<str>)> {
        let mut counted: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
        for outcome in &self.outcomes {
            if let End::Failed(why) = &outcome.end {
                *counted.entry(why).or_default() += 1;
            }
        }
        let mut all: Vec<(u64, Arc<str>)> =
            counted.into_iter().map(|(why, times)| (times, Arc::clone(why))).collect();
        all.sort_by_key(|(times, _)| std::cmp::Reverse(*times));
        let rest: u64 = all.iter().skip(most).map(|(times, _)| times).sum();
        all.truncate(most);
        all.extend((rest > 0).then(|| (rest, "other reasons".into())));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(due_ms: u64, took_ms: u64, by: Option<usize>, end: End) -> Outcome {
        Outcome { due: Duration::from_millis(due_ms), took: Duration::from_millis(took_ms), by, end }
    }

    fn past() -> Past {
        let failed = |why: &str| End::Failed(why.into());
        Past {
            length: Duration::from_secs(3),
            outcomes: vec![
                outcome(0, 10, Some(0), End::Answered),
                outcome(500, 1, Some(1), failed("500")),
                outcome(900, 1, Some(1), failed("500")),
                outcome(1000, 90, None, failed("reset")),
                outcome(1500, 2, None, End::Refused),
                outcome(2000, 20, Some(0), End::Answered),
                outcome(2400, 40, Some(1), End::Answered),
                outcome(2500, 30, Some(1), End::Answered),
            ],
            endpoints: vec![
                Worked { arrived: 2, done: 2, worked: Duration::from_millis(30) },
                Worked { arrived: 8, done: 4, worked: Duration::from_millis(90) },
            ],
            passed_over: vec![None, None],
        }
    }

    #[test]
    fn requests_are_counted_by_what_became_of_them_and_when_they_were_due() {
        let past = past();
        assert_eq!(past.counts(), Counts { all: 8, answered: 4, refused: 1, failed: 3 });
        let after = past.counts_after(Duration::from_secs(1));
        assert_eq!(after, Counts { all: 5, answered: 3, refused: 1, failed: 1 });
        assert_eq!(past.reasons(1), [(2, "500".into()), (1, "other reasons".into())]);
        assert_eq!(past.reasons(5).len(), 2);
    }

    #[test]
    fn latencies_are_those_of_one_kind_of_end() {
        let past = past();
        assert_eq!([0.25, 0.5, 0.99, 1.0].map(|q| past.answers(q)), [0.01, 0.02, 0.04, 0.04].map(Some));
        assert_eq!(past.refusals(0.5), Some(0.002));
        assert_eq!(Past::default().answers(0.5), None);
    }

    #[test]
    fn shares_attempts_and_capacity() {
        let past = past();
        assert!((past.attempts() - 1.25).abs() < 1e-9);
        // The last second: one from 0, two from 1.
        assert!((past.last_share_of(1) - 2.0 / 3.0).abs() < 1e-9);
        assert!((past.goodput() - 4.0 / 3.0).abs() < 1e-9);
        // 20 ms each, three at a time.
        assert!((past.capacity(3) - 150.0).abs() < 1e-9);
        let nothing = Past::default();
        assert_eq!((nothing.attempts(), nothing.last_share_of(0), nothing.goodput()), (0.0, 0.0, 0.0));
    }
}
