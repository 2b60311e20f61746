//! How an origin behaves whatever its URLs say, changed while it runs: it fails, hangs, is slow; and how much it can do at
//! a time. What a trial wants to know of it is counted here.
//!
//! Shared by the origin's threads with the trial that started them. HTTP/1.1 only: trials speak it to their origins.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::nanos;

/// Behaviour and counts of one origin.
#[derive(Debug, Default)]
pub(crate) struct Conduct {
    /// 0: as the URL says; [`HANG`]; a status; [`SLOW`] and a factor.
    behaviour: AtomicU32,
    arrivals: AtomicU64,
    /// The longest that a request had to wait for its turn, ns.
    waited_max: AtomicU64,
}

const HANG: u32 = 1;
const SLOW: u32 = 1 << 16;

/// What an origin does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// What the URL says.
    Well,
    /// It takes them and never answers.
    Hang,
    /// It answers all of them with this status.
    Status(u16),
    /// Delays that the URL asks for are so many times longer.
    Slow(u16),
}

/// Longer than any trial: nobody waits for it.
pub(super) const NEVER: u64 = u64::MAX / 4;

impl Conduct {
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        let word = match behaviour {
            Behaviour::Well => 0,
            Behaviour::Hang => HANG,
            Behaviour::Status(status) => status.into(),
            Behaviour::Slow(factor) => SLOW + u32::from(factor),
        };
        self.behaviour.store(word, Ordering::Relaxed);
    }

    /// Requests that came so far.
    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::Relaxed)
    }

    /// The longest that a request had to wait for its turn since this was asked last.
    pub(crate) fn take_waited_max(&self) -> Duration {
        Duration::from_nanos(self.waited_max.swap(0, Ordering::Relaxed))
    }

    /// A request has come. What is done with it.
    pub(super) fn arrived(&self) -> Behaviour {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
        match self.behaviour.load(Ordering::Relaxed) {
            0 => Behaviour::Well,
            HANG => Behaviour::Hang,
            word @ SLOW.. => Behaviour::Slow(u16::try_from(word - SLOW).unwrap_or(u16::MAX)),
            status => Behaviour::Status(u16::try_from(status).unwrap_or(500)),
        }
    }

    fn waited(&self, time: u64) {
        self.waited_max.fetch_max(time, Ordering::Relaxed);
    }
}

/// A service of limited capacity: so many requests at a time, each for so long; the others wait in line, as long as it
/// takes, also those whose caller has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) at_a_time: u32,
    pub(crate) service_time: Duration,
}

impl Capacity {
    /// Requests a second.
    pub(crate) fn rate(self) -> f64 {
        f64::from(self.at_a_time) / self.service_time.as_secs_f64()
    }
}

/// Who waits for what, of one thread of an origin.
#[derive(Debug)]
pub(super) struct Line {
    /// When each of those that serve is free again.
    free_at: BinaryHeap<Reverse<u64>>,
    service_time: u64,
}

impl Line {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            free_at: (0..capacity.at_a_time.max(1)).map(|_| Reverse(0)).collect(),
            service_time: nanos(capacity.service_time),
        }
    }

    /// A request that comes now is answered after this long.
    pub(super) fn join(&mut self, now: u64, conduct: Option<&Conduct>) -> u64 {
        let Reverse(free_at) = self.free_at.pop().unwrap_or(Reverse(now));
        let begins = free_at.max(now);
        let ends = begins + self.service_time;
        self.free_at.push(Reverse(ends));
        if let Some(conduct) = conduct {
            conduct.waited(begins - now);
        }
        ends - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviours_come_back_as_they_were_set() {
        let conduct = Conduct::default();
        let all = [Behaviour::Well, Behaviour::Hang, Behaviour::Status(500), Behaviour::Slow(50)];
        for behaviour in all {
            conduct.behave(behaviour);
            assert_eq!(conduct.arrived(), behaviour);
        }
        assert_eq!(conduct.arrivals(), all.len() as u64);
    }

    #[test]
    fn who_comes_when_all_are_busy_waits_for_the_first_that_is_free() {
        let conduct = Conduct::default();
        let mut line = Line::new(Capacity { at_a_time: 2, service_time: Duration::from_nanos(10) });
        let waits: Vec<u64> =
            [0, 1, 2, 3, 100].into_iter().map(|now| line.join(now, Some(&conduct))).collect();
        // Two begin at once; the third when the first has ended (at 10), the fourth at 11; the last finds nobody.
        assert_eq!(waits, [10, 10, 18, 18, 10]);
        assert_eq!(conduct.take_waited_max(), Duration::from_nanos(8));
        assert_eq!(conduct.take_waited_max(), Duration::ZERO);
    }
}
