//! How many shards, and on which CPUs. Called once, by `start`.
//!
//! `auto` is one shard for each CPU that this process may use: its affinity mask, less what the cgroup's CPU quota
//! leaves of it, rounded down (a quota is a bound on CPU time: a shard more than it pays for would be throttled in the
//! middle of exchanges). Shards are pinned where they fill the whole mask; a part of the mask is left to the scheduler,
//! because every sidecar of a machine would choose the same first CPUs. A list of CPUs is obeyed to the letter.

use std::fs;
use std::path::Path;

use crate::config::Shards;

/// Shards that `auto` makes at most, which is also what a configuration may ask for.
const SHARDS_MAX: usize = 1024;

/// One entry per shard: the CPU to pin it to, if any.
///
/// # Errors
/// Says which CPU of the list this process may not use.
pub(super) fn place(choice: &Shards) -> Result<Vec<Option<usize>>, String> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
    place_on(choice, &allowed, quota(Path::new("/")))
}

fn place_on(choice: &Shards, allowed: &[usize], quota: Option<f64>) -> Result<Vec<Option<usize>>, String> {
    let spread = |count: usize| {
        let count = count.clamp(1, SHARDS_MAX);
        if count == allowed.len() { allowed.iter().copied().map(Some).collect() } else { vec![None; count] }
    };
    match choice {
        Shards::Auto => {
            let paid = quota.map_or(usize::MAX, |q| (q + 0.01) as usize);
            Ok(spread(allowed.len().min(paid)))
        }
        Shards::Count(count) => Ok(spread(usize::from(*count))),
        Shards::Cpus(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            Some(cpu) => Err(format!(
                "`shards` names CPU {cpu}, which this process may not use\n  help: it may use {allowed:?}; see `taskset -p $$` \
                 and the cpuset of the cgroup, or write `shards = \"auto\"`"
            )),
            None if cpus.is_empty() => Ok(spread(1)),
            None => Ok(cpus.iter().copied().map(Some).collect()),
        },
    }
}

/// The CPU quota of this process's cgroup, or of one above it, in CPUs.
fn quota(root: &Path) -> Option<f64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut smallest: Option<f64> = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let mount = match controllers {
            "" => "sys/fs/cgroup".into(),
            c if c.split(',').any(|c| c == "cpu") => format!("sys/fs/cgroup/{c}"),
            _ => continue,
        };
        // In a container the path may be that of the host while the mount shows the container's own group as root.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let directory = root.join(&mount).join(group);
            let found = match controllers {
                "" => fs::read_to_string(directory.join("cpu.max")).ok().and_then(|t| ratio(&t)),
                _ => v1(&directory),
            };
            smallest = match (smallest, found) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
    smallest
}

/// `"50000 100000"` is half a CPU, `"max 100000"` no limit.
fn ratio(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn v1(directory: &Path) -> Option<f64> {
    let read = |name| fs::read_to_string(directory.join(name)).ok();
    ratio(&format!("{} {}", read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_mask_less_the_quota() {
        let auto = |allowed: &[usize], quota| place_on(&Shards::Auto, allowed, quota).unwrap();
        assert_eq!(auto(&[2, 3], None), [Some(2), Some(3)]);
        assert_eq!(auto(&[0, 1, 2, 3], Some(2.9)), [None, None]);
        assert_eq!(auto(&[0, 1], Some(0.5)), [None], "half a CPU is one shard");
        assert_eq!(auto(&[7], Some(0.5)), [Some(7)]);
        assert_eq!(auto(&[], None), [None], "a mask that cannot be read is one shard");
    }

    #[test]
    fn a_list_is_obeyed_or_refused() {
        let cpus = |list: &[usize]| place_on(&Shards::Cpus(list.into()), &[0, 2], None);
        assert_eq!(cpus(&[2, 2, 0]).unwrap(), [Some(2), Some(2), Some(0)]);
        let error = cpus(&[0, 1]).unwrap_err();
        assert!(error.contains("CPU 1") && error.contains("[0, 2]"), "{error}");
        assert_eq!(place_on(&Shards::Count(1), &[0, 2], None).unwrap(), [None]);
        assert_eq!(place_on(&Shards::Count(2), &[0, 2], None).unwrap(), [Some(0), Some(2)]);
    }

    #[test]
    fn the_smallest_quota_on_the_way_to_the_root_counts() {
        let root = std::env::temp_dir().join(format!("ringmesh-cpus-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "0::/pods/app\n");
        write("sys/fs/cgroup/pods/app/cpu.max", "max 100000\n");
        assert_eq!(quota(&root), None);
        write("sys/fs/cgroup/pods/cpu.max", "50000 100000\n");
        assert_eq!(quota(&root), Some(0.5));
        write("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/a\n");
        write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "150000\n");
        write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota(&root), Some(1.5));
        write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n");
        assert_eq!(quota(&root), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
