//! Time as the load generator sees it: nanoseconds of CLOCK_MONOTONIC in a `u64`, comparable between processes of one
//! machine, and a timer that an event loop can wait for with better than millisecond accuracy.
//!
//! Called by every event loop here. It refuses to know wall-clock time except for naming a results folder.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

pub(crate) const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of CLOCK_MONOTONIC. A vDSO call, about 20 ns.
pub(crate) fn now_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.cast_unsigned() * SECOND + t.tv_nsec.cast_unsigned()
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A timerfd, because epoll's own timeout counts whole milliseconds and is subject to the thread's timer slack.
///
/// It is registered edge-triggered and never read: setting it again clears its count, and each expiry is a new edge, so
/// one system call per wake-up is all that it costs.
pub(crate) struct Timer {
    fd: OwnedFd,
    armed_for: u64,
}

impl Timer {
    pub(crate) fn register(registry: &Registry, token: Token) -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { fd, armed_for: 0 })
    }

    /// Wakes the loop at `at_ns`. Does nothing when the timer is armed for that moment already and it is yet to come.
    pub(crate) fn arm(&mut self, at_ns: u64, now: u64) -> io::Result<()> {
        if self.armed_for == at_ns && at_ns > now {
            return Ok(());
        }
        self.armed_for = at_ns;
        let at = at_ns.max(1); // zero would disarm
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: (at / SECOND).cast_signed(), tv_nsec: (at % SECOND).cast_signed() },
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &spec)?;
        Ok(())
    }
}

/// Reads `50ms`, `1.5s`, `200us`, `2m`, `1h`. A bare number is refused: it would leave the unit to guessing.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(|| format!("`{text}` has no unit (us, ms, s, m, h)"))?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    let seconds = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time (us, ms, s, m, h)")),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|error| format!("`{text}`: {error}"))
}

/// Reads `1024`, `1KiB`, `100KiB`, `2MiB` into bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{unit}` is no unit of size (B, KiB, MiB, GiB)")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_units() {
        assert_eq!(parse_duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("200us"), Ok(Duration::from_micros(200)));
        assert!(parse_duration("5").is_err());
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("-5s").is_err());
    }

    #[test]
    fn sizes_may_carry_units() {
        assert_eq!(parse_size("1024"), Ok(1024));
        assert_eq!(parse_size("100KiB"), Ok(102_400));
        assert!(parse_size("1kb").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }
}
