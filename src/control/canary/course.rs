//! The course of one canary: its steps, what is counted in each, and the judgement. Pure: told how much time has passed and
//! what was seen, says what has come of it. docs/traffic.md has the rules in full.
//!
//! A canary is found worse when even the best that its numbers allow is worse than the worst that the baseline's allow, by
//! more than is tolerated: exact bounds on both sides, so that a canary that is no worse is rolled back with at most the
//! configured probability over its whole course, all looks together. Doubt does not promote: a step whose numbers look worse
//! without proof lasts longer.

use std::time::Duration;

use super::super::latency::Latency;
use super::super::store::Window;
use super::bounds::{quantile_high, quantile_low, rate_high, rate_low};
use crate::config::CanaryRules;

/// Where a canary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It goes through its steps.
    Running,
    /// It stays at its share; nothing is judged.
    Paused,
    /// It has all requests.
    Promoted,
    /// The baseline has all requests.
    RolledBack,
}

/// What has come of a moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The next step has begun, with this share in percent.
    Step(f64),
    /// The last step is reached.
    Promoted,
    /// It was found worse.
    RolledBack(String),
    /// The step is over and its numbers look worse, but prove nothing: it goes on.
    Doubt(String),
}

/// One canary on its way.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) rules: CanaryRules,
    pub(super) phase: Phase,
    /// Index into the steps.
    pub(super) step: usize,
    /// How long the step has lasted, pauses left out.
    pub(super) lasted: Duration,
    pub(super) canary: Tally,
    pub(super) baseline: Tally,
    /// Why it stands where it does.
    pub(super) reason: String,
    /// Looks taken in this step.
    looks: u32,
    /// Samples of the canary at which the next look is due.
    next_look: u64,
    /// How long the step lasts when it is in doubt.
    until: Duration,
}

/// What was seen of a service in a step.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) exchanges: u64,
    pub(super) errors: u64,
    /// Attempts that failed and had another one in their place, so that callers have not seen it.
    pub(super) retried: u64,
    pub(super) latency: Latency,
}

impl Tally {
    fn add(&mut self, window: &Window) {
        self.exchanges += window.exchanges;
        self.errors += window.errors;
        self.retried += window.retried;
        self.latency.add(&window.first_byte);
    }

    /// Attempts: a canary whose failures retries hide is worse all the same.
    fn attempts(&self) -> u64 {
        self.exchanges + self.retried
    }

    /// Of those: failed.
    pub(super) fn failed(&self) -> u64 {
        self.errors + self.retried
    }

    /// Share of attempts that failed.
    pub(super) fn error_rate(&self) -> f64 {
        if self.attempts() == 0 { 0.0 } else { self.failed() as f64 / self.attempts() as f64 }
    }
}

/// What is compared of the latencies, and how it is called.
const QUANTILES: [(f64, &str); 2] = [(0.5, "p50"), (0.99, "p99")];
/// What is compared in all.
const TESTS: f64 = 1.0 + QUANTILES.len() as f64;
/// Samples before the first look: fewer prove nothing but a canary that is dead, which these do, too.
const FIRST_LOOK: u64 = 20;

impl Course {
    /// At its first step.
    pub(super) fn new(rules: CanaryRules) -> Self {
        let until = rules.step_time;
        Self {
            rules,
            phase: Phase::Running,
            step: 0,
            lasted: Duration::ZERO,
            canary: Tally::default(),
            baseline: Tally::default(),
            reason: "begun".into(),
            looks: 0,
            next_look: FIRST_LOOK,
            until,
        }
    }

    /// Where it stood when the process ended: the step begins anew.
    pub(super) fn at(rules: CanaryRules, phase: Phase, step: usize, reason: String) -> Self {
        let last = rules.steps.len().saturating_sub(1);
        // With fewer steps than there were, it may be at the end.
        let phase = if step >= last && phase == Phase::Running { Phase::Promoted } else { phase };
        Self { phase, step: step.min(last), reason, ..Self::new(rules) }
    }

    /// The canary's share in percent.
    pub(super) fn share(&self) -> f64 {
        match self.phase {
            Phase::Running | Phase::Paused => self.rules.steps.get(self.step).copied().unwrap_or(100.0),
            Phase::Promoted => 100.0,
            Phase::RolledBack => 0.0,
        }
    }

    /// So much time has passed, in which this was seen.
    pub(super) fn pass(&mut self, time: Duration, canary: &Window, baseline: &Window) -> Option<Event> {
        if self.phase != Phase::Running {
            return None;
        }
        self.lasted += time;
        self.canary.add(canary);
        self.baseline.add(baseline);
        let samples = self.canary.exchanges;
        let over = self.lasted >= self.until && samples >= self.rules.samples_min;
        if samples >= self.next_look || over {
            // By half more each time: what is spent on looks that come soon after another is wasted.
            self.next_look = (samples + samples / 2).max(FIRST_LOOK);
            self.looks += 1;
            if let Some(worse) = self.worse() {
                return Some(self.roll_back(worse));
            }
        }
        if !over {
            return None;
        }
        if let Some(doubt) = self.doubt() {
            self.until = self.lasted + self.rules.step_time;
            self.reason.clone_from(&doubt);
            return Some(Event::Doubt(doubt));
        }
        Some(self.advance("its numbers are no worse than the baseline's"))
    }

    /// To the next step, whatever the numbers say.
    pub(super) fn advance(&mut self, why: &str) -> Event {
        let last = self.rules.steps.len().saturating_sub(1);
        self.begin((self.step + 1).min(last), why);
        if self.step == last {
            self.phase = Phase::Promoted;
            return Event::Promoted;
        }
        self.phase = Phase::Running;
        Event::Step(self.share())
    }

    /// All requests go to the canary.
    pub(super) fn promote(&mut self, why: &str) {
        self.begin(self.rules.steps.len().saturating_sub(1), why);
        self.phase = Phase::Promoted;
    }

    /// All requests go to the baseline.
    pub(super) fn roll_back(&mut self, why: String) -> Event {
        self.phase = Phase::RolledBack;
        self.reason.clone_from(&why);
        Event::RolledBack(why)
    }

    /// From the first step on.
    pub(super) fn restart(&mut self, why: &str) {
        self.begin(0, why);
        self.phase = Phase::Running;
    }

    fn begin(&mut self, step: usize, why: &str) {
        *self = Self { step, reason: why.to_owned(), ..Self::new(self.rules.clone()) };
    }

    /// How probable a mistake may be in one bound of this look: all of them together stay below what is configured, because
    /// 1/(1·2) + 1/(2·3) + ... = 1.
    fn alpha(&self) -> f64 {
        let looks = f64::from(self.looks);
        // The last step is not judged; each test has two bounds.
        let steps = self.rules.steps.len().saturating_sub(1).max(1) as f64;
        self.rules.false_alarms_max / steps / TESTS / (looks * (looks + 1.0)) / 2.0
    }

    /// What proves that it is worse, if anything does.
    fn worse(&self) -> Option<String> {
        let (canary, baseline, alpha) = (&self.canary, &self.baseline, self.alpha());
        let least = rate_low(canary.failed(), canary.attempts(), alpha);
        let most = rate_high(baseline.failed(), baseline.attempts(), alpha);
        if least > most + self.rules.errors_tolerated {
            return Some(format!(
                "errors: at least {:.2} % of the canary's ({} of {}), at most {:.2} % of the baseline's ({} of {})",
                least * 100.0,
                canary.failed(),
                canary.attempts(),
                most * 100.0,
                baseline.failed(),
                baseline.attempts()
            ));
        }
        QUANTILES.into_iter().find_map(|(q, name)| {
            let least = quantile_low(&canary.latency, q, alpha);
            let most = quantile_high(&baseline.latency, q, alpha)?;
            (least as f64 > most as f64 * (1.0 + self.rules.latency_tolerated)).then(|| {
                format!(
                    "{name}: at least {:.1} ms of the canary, at most {:.1} ms of the baseline",
                    least as f64 / 1e6,
                    most as f64 / 1e6
                )
            })
        })
    }

    /// What looks worse.
    fn doubt(&self) -> Option<String> {
        let (canary, baseline) = (&self.canary, &self.baseline);
        if baseline.exchanges == 0 {
            return Some("the baseline has no requests to compare with".into());
        }
        if canary.error_rate() > baseline.error_rate() + self.rules.errors_tolerated {
            return Some(format!(
                "errors look worse: {:.2} % of the canary's, {:.2} % of the baseline's",
                canary.error_rate() * 100.0,
                baseline.error_rate() * 100.0
            ));
        }
        QUANTILES.into_iter().find_map(|(q, name)| {
            let (mine, theirs) = (canary.latency.quantile(q)?, baseline.latency.quantile(q)?);
            (mine as f64 > theirs as f64 * (1.0 + self.rules.latency_tolerated)).then(|| {
                format!(
                    "{name} looks worse: {:.1} ms of the canary, {:.1} ms of the baseline",
                    mine as f64 / 1e6,
                    theirs as f64 / 1e6
                )
            })
        })
    }
}

#[cfg(test)]
#[path = "course_test.rs"]
mod tests;
