//! Time on a shard: nanoseconds since the process started its first clock, read once per poll of a task. It is the same on
//! all shards, so that what one writes of a time means the same to another.
//!
//! All decisions of one poll see the same `now`; a poll takes a few microseconds, which is less than anything that is
//! decided by time here. Tests own the value: nothing on the data side reads the system's clock but [`Clock::refresh`].

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// A shard's clock.
#[derive(Debug)]
pub struct Clock {
    /// As `ORIGIN_NS`, without looking there each time.
    origin_ns: u64,
    now_ns: Cell<u64>,
    date: RefCell<(u64, [u8; 29])>,
}

/// CLOCK_MONOTONIC when the first clock of the process started, less one millisecond; 0 before that.
static ORIGIN_NS: AtomicU64 = AtomicU64::new(0);

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

impl Clock {
    /// A clock; the first one starts at one millisecond: 0 is kept for "never happened".
    pub fn new() -> Self {
        let mine_ns = read(ClockId::Monotonic).saturating_sub(1_000_000);
        let first = ORIGIN_NS.compare_exchange(0, mine_ns, Ordering::Relaxed, Ordering::Relaxed);
        let clock = Self {
            origin_ns: first.map_or_else(|first| first, |_| mine_ns),
            now_ns: Cell::new(1_000_000),
            date: RefCell::new((0, [b' '; 29])),
        };
        clock.refresh();
        clock.refresh_date();
        clock
    }

    /// The time of the machine when this clock was 0, ns: with that, times of different shards can be compared.
    pub fn origin(&self) -> u64 {
        self.origin_ns
    }

    /// As [`Self::now`], but the same for all shards.
    pub fn common(&self) -> u64 {
        self.origin_ns.saturating_add(self.now())
    }

    /// The time at the start of the present poll, ns.
    pub fn now(&self) -> u64 {
        self.now_ns.get()
    }

    /// Reads the system's clock: at the start of every poll, and where a poll has done much.
    pub fn refresh(&self) -> u64 {
        let now = read(ClockId::Monotonic).saturating_sub(self.origin_ns);
        self.now_ns.set(now);
        now
    }

    /// The time as of the kernel's last tick: up to 4 ms (CONFIG_HZ=250) or 10 ms (100) behind, at a quarter of the cost
    /// of reading it. Does not change `now`.
    pub fn coarse(&self) -> u64 {
        read(ClockId::MonotonicCoarse).saturating_sub(self.origin_ns)
    }

    /// `now` plus a timeout.
    pub fn after(&self, timeout: Duration) -> u64 {
        self.now().saturating_add(ns(timeout))
    }

    /// The value for a `Date` field (RFC 9110 §5.6.7), at most a second old.
    pub fn write_date(&self, out: &mut Vec<u8>) {
        if self.now() / 1_000_000_000 != self.date.borrow().0 {
            self.refresh_date();
        }
        out.extend_from_slice(&self.date.borrow().1);
    }

    fn refresh_date(&self) {
        let mut date = self.date.borrow_mut();
        date.0 = self.now() / 1_000_000_000;
        // Written in place, because a String once a second would be the only allocation of a warm shard. It fits: the
        // format has 29 octets.
        let _ = write!(&mut date.1[..], "{}", httpdate::HttpDate::from(SystemTime::now()));
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither is ever negative on this clock.
    let (seconds, nanos) =
        (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// A duration as nanoseconds, saturating.
pub fn ns(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(NEVER - 1)
}
