//! CPU time and memory of a process with all its threads and children, from /proc.
//!
//! Called by `compare`. A process that ends while it is read counts as nothing.

use std::fs;
use std::ops::{Add, Sub};

/// Kernel clock ticks a second in /proc/PID/stat: a constant of Linux's interface to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// Microseconds of CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// From schedstat: exact.
    pub(crate) total: f64,
    /// From stat: in steps of 10 ms.
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Add for Cpu {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self { total: self.total + o.total, user: self.user + o.user, system: self.system + o.system }
    }
}

impl Sub for Cpu {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self { total: self.total - o.total, user: self.user - o.user, system: self.system - o.system }
    }
}

/// CPU used so far by `pid` and all that it started.
pub(crate) fn cpu(pid: u32) -> Cpu {
    tree(pid).into_iter().map(cpu_of_one).fold(Cpu::default(), Add::add)
}

fn cpu_of_one(pid: u32) -> Cpu {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds: f64 = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<f64>().ok())
        .sum();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (user, system) = user_and_system(&stat).unwrap_or_default();
    Cpu { total: nanoseconds / 1e3, user, system }
}

/// Fields 14 and 15 of stat, in microseconds. The name before them may contain anything but ends with the last `)`.
fn user_and_system(stat: &str) -> Option<(f64, f64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || Some(fields.next()?.parse::<f64>().ok()? / TICKS_PER_SECOND * 1e6);
    Some((next()?, next()?))
}

/// KiB resident: the plain sum over the processes, and the sum in which shared pages are divided among their users.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) rss: f64,
    pub(crate) pss: f64,
}

pub(crate) fn memory(pid: u32) -> Memory {
    let mut sum = Memory::default();
    for pid in tree(pid) {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        sum.rss += kib(&rollup, "Rss:");
        sum.pss += kib(&rollup, "Pss:");
    }
    sum
}

fn kib(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
}

fn tree(root: u32) -> Vec<u32> {
    let mut pids = vec![root];
    let mut at = 0;
    while at < pids.len() {
        let threads = fs::read_dir(format!("/proc/{}/task", pids[at])).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            pids.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        at += 1;
    }
    pids
}

/// How long a CPU has been busy, and how long it has been there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    busy: f64,
    all: f64,
}

impl Ticks {
    /// Share of the time between two readings.
    pub(crate) fn busy_since(self, earlier: Self) -> f64 {
        (self.busy - earlier.busy) / (self.all - earlier.all).max(1.0)
    }
}

/// From /proc/stat.
pub(crate) fn cpu_ticks(cpu: usize) -> Ticks {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let name = format!("cpu{cpu} ");
    let line = stat.lines().find_map(|l| l.strip_prefix(&name)).unwrap_or_default();
    let ticks: Vec<f64> = line.split_ascii_whitespace().filter_map(|t| t.parse().ok()).take(8).collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum(); // idle and waiting for disks
    Ticks { busy: all - idle, all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 1 0 0 0 150 250 0 0 20 0 1 0 0 0 0";
        assert_eq!(user_and_system(stat), Some((1.5e6, 2.5e6)));
        assert_eq!(user_and_system(""), None);
    }

    #[test]
    fn own_memory_and_cpu_are_found() {
        let own = std::process::id();
        assert!(memory(own).rss > 100.0 && memory(own).pss > 100.0);
        assert!(cpu(own).total > 0.0);
        assert_eq!(kib("Rss:      1234 kB\nPss: 1 kB\n", "Rss:"), 1234.0);
    }
}
