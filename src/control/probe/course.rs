//! What a row of probes says of an endpoint: passing, failing, or not known yet, and when to probe again. Pure: the random
//! number is an argument.

use std::time::Duration;

use crate::upstream::spec::Probe;

/// An endpoint, as probes have found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Course {
    state: State,
    /// Results in a row that are not as the state is.
    against: u8,
}

/// What probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing yet.
    Unknown,
    /// It is well.
    Passing,
    /// It is not.
    Failing,
}

/// One probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// The endpoint itself says that it must be left at once.
    FailedAtOnce,
    /// Nothing, because this proxy could not ask.
    Nothing,
}

impl Course {
    /// Nothing is known.
    pub(super) const fn new() -> Self {
        Self { state: State::Unknown, against: 0 }
    }

    /// What probes say.
    pub(super) const fn state(self) -> State {
        self.state
    }

    /// Takes a result in; whether the state has changed. The first one decides alone.
    pub(super) fn take(&mut self, found: Found, rules: &Probe) -> bool {
        let says = match found {
            Found::Nothing => return false,
            Found::Passed => State::Passing,
            Found::Failed | Found::FailedAtOnce => State::Failing,
        };
        if says == self.state {
            self.against = 0;
            return false;
        }
        let wanted = match (self.state, found) {
            (State::Unknown, _) | (_, Found::FailedAtOnce) => 1,
            (State::Passing, _) => rules.unhealthy,
            (State::Failing, _) => rules.healthy,
        };
        self.against = self.against.saturating_add(1);
        if self.against < wanted {
            return false;
        }
        *self = Self { state: says, against: 0 };
        true
    }

    /// How long until the next probe; `chance` is from 0 to 1. Sooner while something is doubtful.
    pub(super) fn pause(self, rules: &Probe, chance: f64) -> Duration {
        let pause = if self.state == State::Passing && self.against == 0 {
            rules.interval
        } else {
            rules.interval_unhealthy.min(rules.interval)
        };
        pause.mul_f64(1.0 + f64::from(rules.jitter_percent) / 100.0 * chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::spec::ProbeKind;

    fn rules() -> Probe {
        Probe {
            kind: ProbeKind::Tcp,
            interval: Duration::from_secs(10),
            interval_unhealthy: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
            jitter_percent: 10,
            waits: false,
            port: None,
        }
    }

    #[test]
    fn the_first_result_decides_alone_and_later_ones_need_company() {
        for (first, state) in [(Found::Passed, State::Passing), (Found::Failed, State::Failing)] {
            let mut course = Course::new();
            assert!(course.take(first, &rules()));
            assert_eq!(course.state(), state);
        }
        let mut course = Course::new();
        let mut changes = Vec::new();
        let (pass, fail) = (Found::Passed, Found::Failed);
        for found in [pass, fail, fail, pass, fail, fail, fail, pass, fail, pass, pass, fail] {
            changes.push(course.take(found, &rules()));
        }
        let at: Vec<_> =
            changes.iter().enumerate().filter(|(_, changed)| **changed).map(|(n, _)| n).collect();
        assert_eq!((at, course.state()), (vec![0, 6, 10], State::Passing));
        assert!(course.take(Found::FailedAtOnce, &rules()), "whatever the threshold");
        assert_eq!(course.state(), State::Failing);
        let mut course = Course::new();
        assert!(!course.take(Found::Nothing, &rules()), "who could not ask knows nothing");
        assert_eq!(course, Course::new());
    }

    #[test]
    fn it_is_asked_sooner_while_it_is_not_well() {
        let mut course = Course::new();
        assert_eq!(course.pause(&rules(), 0.0), Duration::from_secs(1));
        course.take(Found::Passed, &rules());
        assert_eq!(course.pause(&rules(), 0.0), Duration::from_secs(10));
        assert_eq!(course.pause(&rules(), 1.0), Duration::from_secs(11));
        course.take(Found::Failed, &rules());
        assert_eq!(course.pause(&rules(), 0.0), Duration::from_secs(1), "one has failed");
        course.take(Found::Passed, &rules());
        assert_eq!(course.pause(&rules(), 0.0), Duration::from_secs(10));
        course.take(Found::FailedAtOnce, &rules());
        assert_eq!(course.pause(&rules(), 0.0), Duration::from_secs(1));
        // Never later than when it is well, whatever was written.
        let odd = Probe { interval_unhealthy: Duration::from_secs(60), ..rules() };
        assert_eq!(course.pause(&odd, 0.0), Duration::from_secs(10));
    }
}
