//! What a shard counts of `[[authorization]]`: how often which rule refused or was only to be noted, and connections
//! that were closed because they are not allowed any more. Handed over with the interval.
//!
//! What passes by a rule is not counted: that is what exchanges are counted for.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::OVERFLOW_RULE;

/// How often a rule had this outcome on this listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCount {
    /// The listener.
    pub listener: Arc<str>,
    /// The rule's name, or [`super::DEFAULT_RULE`], [`super::OVERFLOW_RULE`].
    pub rule: Arc<str>,
    /// What it did.
    pub outcome: Outcome,
    /// How often.
    pub count: u64,
}

/// What a rule did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// A rule refused.
    Deny,
    /// A rule was to be noted.
    Audit,
    /// No rule matched and the default refused.
    DefaultDeny,
}

impl Outcome {
    /// The label `action`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Audit => "audit",
            Self::DefaultDeny => "default-deny",
        }
    }
}

/// A shard's counts since it last handed them over. Keeps its memory.
#[derive(Debug, Default)]
pub(super) struct RuleCounts {
    counts: HashTable<RuleCount>,
}

impl RuleCounts {
    /// Told apart per interval; the rest is counted under [`OVERFLOW_RULE`], by listener.
    const TOLD_MAX: usize = 1024;

    /// Counts once. Allocates where it is the first of its kind in the interval and there were never so many kinds.
    pub(super) fn count(&mut self, listener: &Arc<str>, rule: &Arc<str>, outcome: Outcome) {
        let hash = hash(listener, rule, outcome);
        let same = |c: &RuleCount| c.outcome == outcome && c.rule == *rule && c.listener == *listener;
        if let Some(counted) = self.counts.find_mut(hash, same) {
            counted.count += 1;
        } else if self.counts.len() < Self::TOLD_MAX || **rule == *OVERFLOW_RULE {
            let counted =
                RuleCount { listener: Arc::clone(listener), rule: Arc::clone(rule), outcome, count: 1 };
            self.counts.insert_unique(hash, counted, |c| self::hash(&c.listener, &c.rule, c.outcome));
        } else {
            self.count(listener, &OVERFLOW_RULE.into(), outcome);
        }
    }

    /// Hands all over.
    pub(super) fn drain_into(&mut self, to: &mut Vec<RuleCount>) {
        to.extend(self.counts.drain());
    }
}

/// Names are the operator's own, so that no caller can make them collide.
fn hash(listener: &str, rule: &str, outcome: Outcome) -> u64 {
    FixedState::default().hash_one((listener, rule, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_bounded_and_start_anew_when_they_are_handed_over() {
        let mut counts = RuleCounts::default();
        let listener = Arc::from("in");
        for n in 0..2 * RuleCounts::TOLD_MAX {
            counts.count(&listener, &format!("rule-{n}").into(), Outcome::Deny);
            counts.count(&listener, &"rule-0".into(), Outcome::Deny);
        }
        let mut told = Vec::new();
        counts.drain_into(&mut told);
        let of = |rule: &str| told.iter().find(|c| *c.rule == *rule).map_or(0, |c| c.count);
        let max = RuleCounts::TOLD_MAX as u64;
        assert_eq!((told.len() as u64, of("rule-0"), of(OVERFLOW_RULE)), (max + 1, 2 * max + 1, max));
        told.clear();
        counts.drain_into(&mut told);
        assert!(told.is_empty());
        counts.count(&listener, &"rule-0".into(), Outcome::Deny);
        counts.count(&listener, &"rule-0".into(), Outcome::Audit);
        counts.drain_into(&mut told);
        assert_eq!(told.iter().map(|c| c.count).collect::<Vec<_>>(), [1, 1]);
    }
}
