//! What is counted of further attempts: why there were some, why there was none, and what came of them.

use crate::route::wish::Outcome;
use crate::upstream::retry::Reason;

/// Why there was no further attempt although it was worth one and safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// There had been as many as there may be.
    Attempts,
    /// The service has too many further attempts in progress.
    Budget,
    /// The request's body had not been kept.
    Body,
    /// There was no time left for one.
    Deadline,
    /// The service asked to be left alone for longer than is waited for.
    Asked,
    /// The service is given as many as `caps.retries_max` lets it.
    Caps,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Attempts, Self::Budget, Self::Body, Self::Deadline, Self::Asked, Self::Caps];

    /// The word in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Body => "body",
            Self::Deadline => "deadline",
            Self::Asked => "retry_after",
            Self::Caps => "caps",
        }
    }
}

/// What became of an attempt that began beside another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeEnd {
    /// It was sooner.
    Won,
    /// It was not, or failed.
    Lost,
}

impl HedgeEnd {
    /// The word in the log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
        }
    }
}

/// Further attempts of one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryCounts {
    /// Begun, by the number of their [`Reason`].
    pub by_reason: [u64; Reason::COUNT],
    /// Not begun, by the number of the [`Refusal`].
    pub refused: [u64; Refusal::ALL.len()],
    /// Exchanges that ended well after at least one.
    pub succeeded: u64,
    /// Those that began beside another attempt and were sooner.
    pub hedges_won: u64,
    /// Exchanges whose callers said something of retries or timeouts, by the number of what was made of it.
    pub wishes: [u64; Outcome::ALL.len()],
}

impl RetryCounts {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.by_reason.iter_mut().zip(other.by_reason) {
            *mine += theirs;
        }
        for (mine, theirs) in self.refused.iter_mut().zip(other.refused) {
            *mine += theirs;
        }
        for (mine, theirs) in self.wishes.iter_mut().zip(other.wishes) {
            *mine += theirs;
        }
        self.succeeded += other.succeeded;
        self.hedges_won += other.hedges_won;
    }

    /// Attempts that failed and had another one in their place.
    pub fn failed_attempts(&self) -> u64 {
        // Who is hedged has not failed.
        self.by_reason.iter().sum::<u64>() - self.by_reason[Reason::Hedge as usize]
    }

    /// Reasons that there were further attempts for, as labels, and how many.
    pub fn reasons(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Reason::ALL.iter().map(|reason| reason.label()).zip(self.by_reason).filter(|(_, n)| *n > 0)
    }

    /// What was made of what callers said, as labels, and how often.
    pub fn wishes(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Outcome::ALL.into_iter().map(Outcome::label).zip(self.wishes).filter(|(_, n)| *n > 0)
    }

    /// Why there was none, as labels, and how often.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Refusal::ALL.into_iter().map(Refusal::label).zip(self.refused).filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_by_its_label() {
        let mut counts = RetryCounts::default();
        counts.by_reason[Reason::Timeout as usize] = 2;
        counts.refused[Refusal::Asked as usize] = 1;
        counts.wishes[Outcome::Capped as usize] = 3;
        let mut sum = RetryCounts::default();
        sum.add(&counts);
        sum.add(&counts);
        assert_eq!(sum.reasons().collect::<Vec<_>>(), [("timeout", 4)]);
        assert_eq!(sum.refusals().collect::<Vec<_>>(), [("retry_after", 2)]);
        assert_eq!(sum.wishes().collect::<Vec<_>>(), [("capped", 6)]);
        for (n, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, n);
        }
    }
}
