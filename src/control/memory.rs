//! The ceiling on memory: measures what the process holds, takes the steps (`shard::pressure`), and tells the shards. Run by the
//! control loop; answers of the admin address stand on none of it.
//!
//! Measured is what is resident (`VmRSS`): what the process itself can give back. What the kernel holds for its sockets
//! counts in a cgroup but not here; so a ceiling that is taken from a cgroup is nine tenths of its limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::machine;
use super::state::State;
use crate::config::MemoryMax;
use crate::shard::link::{Pressure, give_back, room};

/// What was measured last, for the pages.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Octets resident.
    pub resident: AtomicU64,
    /// The ceiling, octets; 0 for none.
    pub ceiling: AtomicU64,
    /// The step, by its number.
    pub step: AtomicU64,
}

/// Looks again and again.
pub(super) struct Memory {
    meter: Box<dyn Fn() -> Option<u64> + Send>,
    step: Pressure,
    /// The limit of the cgroup, and until when it is believed.
    limit: (Option<u64>, Instant),
    /// When it is to be looked next.
    next: Instant,
    /// When the allocator gave back last what control does not use.
    released: Instant,
}

impl Memory {
    /// Between two looks without a ceiling: for the pages.
    const CALM: Duration = Duration::from_secs(1);
    /// And with one: what a shard has taken since the last look is guessed, and a guess that is too high refuses somebody until the next.
    const WATCHFUL: Duration = Duration::from_millis(250);
    /// Once half of the ceiling is used.
    const CLOSE: Duration = Duration::from_millis(50);
    /// Between two times that the allocator gives back, where memory is short.
    const RELEASE_EVERY: Duration = Duration::from_secs(1);
    /// How long the limit of a cgroup is believed: it may be changed while the process runs.
    const LIMIT_FOR: Duration = Duration::from_secs(10);

    /// Of this process.
    pub(super) fn new() -> Self {
        Self::measured_by(Box::new(resident))
    }

    /// By another meter.
    pub(super) fn measured_by(meter: Box<dyn Fn() -> Option<u64> + Send>) -> Self {
        let now = Instant::now();
        Self { meter, step: Pressure::None, limit: (None, now), next: now, released: now }
    }

    /// Waits until it is time to look.
    pub(super) async fn due(&self) {
        tokio::time::sleep_until(self.next).await;
    }

    /// Looks, and tells the shards if the step has changed.
    pub(super) fn look(&mut self, state: &State) {
        let now = Instant::now();
        let ceiling = match state.live().compiled.memory_max() {
            MemoryMax::Off => None,
            MemoryMax::Bytes(bytes) => Some(bytes),
            MemoryMax::Cgroup => {
                if now >= self.limit.1 {
                    self.limit = (machine::memory_limit().map(|limit| limit / 10 * 9), now + Self::LIMIT_FOR);
                }
                self.limit.0
            }
        };
        state.links.iter().for_each(|link| link.looks());
        // What cannot be measured is no reason to refuse anything.
        let used = (self.meter)().unwrap_or(0);
        let step = ceiling.map_or(Pressure::None, |ceiling| self.step.next(used, ceiling));
        let told = &state.memory;
        told.resident.store(used, Ordering::Relaxed);
        told.ceiling.store(ceiling.unwrap_or(0), Ordering::Relaxed);
        told.step.store(step as u64, Ordering::Relaxed);
        let before = std::mem::replace(&mut self.step, step);
        if step > Pressure::None && now >= self.released + Self::RELEASE_EVERY {
            // What control has freed; shards do the same.
            self.released = now;
            give_back();
        }
        if step != before {
            say(before, step, used, ceiling);
            for link in &state.links {
                link.press(step);
            }
        }
        let room = ceiling.map(|ceiling| room(used, ceiling) / state.links.len().max(1) as u64);
        state.links.iter().for_each(|link| link.looked(room));
        self.next = now
            + match ceiling {
                None => Self::CALM,
                Some(ceiling) if used < ceiling / 2 => Self::WATCHFUL,
                Some(_) => Self::CLOSE,
            };
    }
}

fn say(before: Pressure, step: Pressure, used: u64, ceiling: Option<u64>) {
    let (resident_mib, ceiling_mib) = (used >> 20, ceiling.unwrap_or(0) >> 20);
    let does = match step {
        Pressure::None => "nothing is refused any more",
        Pressure::Idle => "what lies idle is closed",
        Pressure::Connections => "new connections are closed at once",
        Pressure::Sheddable => "requests of sheddable routes are refused",
        Pressure::Default => "requests of all but critical routes are refused",
        Pressure::All => "all new requests are refused",
    };
    let (from, to) = (before.label(), step.label());
    if step > before {
        tracing::warn!(from, to, resident_mib, ceiling_mib, "memory is short: {does}");
    } else {
        tracing::info!(from, to, resident_mib, ceiling_mib, "memory is less short: {does}");
    }
}

/// Octets of this process that are in memory.
fn resident() -> Option<u64> {
    resident_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmRSS:      6140 kB`
fn resident_in(status: &str) -> Option<u64> {
    let kib: u64 = machine::status_field(status, "VmRSS")?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resident_is_a_line_of_the_status() {
        assert_eq!(resident_in("Name:\tx\nVmRSS:\t    6140 kB\nThreads:\t3\n"), Some(6140 << 10));
        for odd in ["", "VmRSS:", "VmRSS: x kB", "VmRSS: 5 pages", "VmRSS: 18446744073709551615 kB"] {
            assert_eq!(resident_in(odd), None, "{odd}");
        }
        assert!(resident().unwrap() > 1 << 20);
    }
}
