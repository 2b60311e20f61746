//! What this machine (or container) offers: CPUs and their quota, io_uring, limits, rights. Asked by `control` for the
//! number of shards, and by `doctor`.
//!
//! Everything that reads a file of the kernel is split in two: reading, and a pure function from its text to a value.
//! What cannot be read counts as absent, never as an error: a container hides much, and a proxy starts nevertheless.
//! Refuses to change anything: no limit is raised and no thread is pinned here.

use std::fmt;
use std::path::{Path, PathBuf};

use io_uring::IoUring;
use rustix::process::Resource;

use crate::config::{self, Shards};

/// The shards to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// One entry for each shard: the CPU that its thread is pinned to, or `None` where the scheduler decides.
    pub cpus: Vec<Option<usize>>,
    /// What is legal but surely not meant, in words for the log.
    pub warning: Option<String>,
}

/// Why a choice of shards cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardsError {
    /// None at all.
    #[error("shards: at least one is needed\n  help: write shards = \"auto\" for one per CPU")]
    None,
    /// A CPU that is not there or not in the affinity mask.
    #[error(
        "shards: CPU {cpu} is not among those that this process may use ({allowed})\n  help: taskset, a cpuset or the \
         container's limits decide that; write shards = \"auto\" to follow them"
    )]
    NotAllowed {
        /// The one named.
        cpu: usize,
        /// Those allowed, as ranges.
        allowed: String,
    },
    /// Two shards on one CPU would only take turns.
    #[error("shards: CPU {0} is named twice\n  help: give each shard a CPU of its own")]
    Repeated(usize),
}

/// The shards that `choice` means on this machine. Call it before any thread is pinned.
///
/// # Errors
/// When the choice names CPUs that may not be used, or no shard. (How many there may be is checked by `config`.)
pub fn shards_for(choice: &Shards) -> Result<Placement, ShardsError> {
    Cpus::of_this_process().shards_for(choice)
}

/// The CPUs that this process may use, and how much of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpus {
    /// The affinity mask, ascending; never empty.
    pub allowed: Vec<usize>,
    /// The tightest quota of the cgroups that this process is in.
    pub quota: Option<Quota>,
}

/// A ceiling on CPU time.
#[derive(Debug, Clone, PartialEq)]
pub struct Quota {
    /// In CPUs: 0.5 is half of one.
    pub cpus: f64,
    /// The file that says so.
    pub source: PathBuf,
}

impl Cpus {
    /// Reads mask and quota.
    pub fn of_this_process() -> Self {
        let mut allowed: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        if allowed.is_empty() {
            // The call has room for 1024 CPUs only; the file has no such limit.
            allowed = read(Path::new("/proc/self/status"))
                .and_then(|status| parse_cpu_list(status_field(&status, "Cpus_allowed_list")?))
                .unwrap_or_else(|| vec![0]);
        }
        allowed.sort_unstable();
        Self { allowed, quota: find_quota(read) }
    }

    /// The shards that `choice` means with these CPUs.
    ///
    /// A shard is pinned where it has a CPU of its own: when the shards take the whole mask, or when CPUs are named. If
    /// they take only a part of the mask, the scheduler places them: every proxy on a machine of 64 CPUs would
    /// otherwise pin its one shard to the same first CPU.
    ///
    /// # Errors
    /// As [`shards_for`].
    pub fn shards_for(&self, choice: &Shards) -> Result<Placement, ShardsError> {
        let count = match choice {
            Shards::Auto => self.allowed.len().min(self.paid_for()).min(usize::from(config::SHARDS_MAX)),
            Shards::Count(count) => usize::from(*count),
            Shards::Cpus(cpus) => cpus.len(),
        };
        if count == 0 {
            return Err(ShardsError::None);
        }
        let cpus = match choice {
            Shards::Cpus(cpus) => self.named(cpus)?,
            Shards::Auto | Shards::Count(_) if count < self.allowed.len() => vec![None; count],
            Shards::Auto | Shards::Count(_) => (0..count).map(|n| self.allowed.get(n).copied()).collect(),
        };
        Ok(Placement { cpus, warning: self.warn_of(count) })
    }

    fn named(&self, cpus: &[usize]) -> Result<Vec<Option<usize>>, ShardsError> {
        for (n, &cpu) in cpus.iter().enumerate() {
            if !self.allowed.contains(&cpu) {
                return Err(ShardsError::NotAllowed { cpu, allowed: ranges(&self.allowed) });
            }
            if cpus[..n].contains(&cpu) {
                return Err(ShardsError::Repeated(cpu));
            }
        }
        Ok(cpus.iter().copied().map(Some).collect())
    }

    /// Whole CPUs that the quota pays for. Half a CPU is one shard: it is throttled, but two would be more often.
    fn paid_for(&self) -> usize {
        // A quota that was rounded (199 999 of 100 000 µs) means the whole number.
        self.quota.as_ref().map_or(usize::MAX, |quota| ((quota.cpus + 0.01) as usize).max(1))
    }

    fn warn_of(&self, count: usize) -> Option<String> {
        let allowed = self.allowed.len();
        if count > allowed {
            return Some(format!(
                "{count} shards on {allowed} CPUs: the last {} are not pinned and take turns with the others; \
                 write shards = {allowed} or \"auto\"",
                count - allowed
            ));
        }
        let quota = self.quota.as_ref().filter(|_| count > self.paid_for())?;
        Some(format!(
            "{count} shards, but the quota is {} CPUs ({}): all stop together when it is spent, for up to 100 ms; \
             write shards = {} or \"auto\", or raise the limit",
            quota.cpus,
            quota.source.display(),
            self.paid_for()
        ))
    }
}

/// All that `doctor` looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// As `uname -r` prints it.
    pub kernel: String,
    /// CPUs and quota.
    pub cpus: Cpus,
    /// Locked memory, bytes.
    pub memlock: Limit,
    /// Open files.
    pub files: Limit,
    /// `kernel.io_uring_disabled`: 0 for all, 1 for privileged ones only, 2 for nobody; `None` before Linux 6.6.
    pub io_uring_disabled: Option<u32>,
    /// What became of setting up a ring in each way, the best first.
    pub rings: Vec<Ring>,
    /// Whether system calls pass a seccomp filter, as in most containers.
    pub seccomp: bool,
    /// The first `nft` in `PATH` or the places where distributions put it.
    pub nft: Option<PathBuf>,
    /// CAP_NET_ADMIN is among the effective capabilities.
    pub net_admin: bool,
}

/// A resource limit; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// In force.
    pub soft: Option<u64>,
    /// Up to which this process may raise it.
    pub hard: Option<u64>,
}

/// One way of setting up a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// The flags asked for.
    pub flags: &'static str,
    /// The error number with which the kernel refused, or `None` when it works. (0 where there is no number.)
    pub refused: Option<i32>,
}

impl Machine {
    /// Looks at this machine. Takes about a millisecond.
    pub fn look() -> Self {
        let status = read(Path::new("/proc/self/status")).unwrap_or_default();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: Cpus::of_this_process(),
            memlock: limit(Resource::Memlock),
            files: limit(Resource::Nofile),
            io_uring_disabled: read(Path::new("/proc/sys/kernel/io_uring_disabled"))
                .and_then(|text| text.trim().parse().ok()),
            rings: try_rings(),
            seccomp: status_field(&status, "Seccomp").is_some_and(|mode| mode != "0"),
            nft: find_program("nft"),
            net_admin: status_field(&status, "CapEff")
                .and_then(parse_capabilities)
                .is_some_and(has_net_admin),
        }
    }

    /// Major and minor number of the kernel; (0, 0) when it is called something else.
    pub fn kernel_version(&self) -> (u32, u32) {
        parse_kernel(&self.kernel).unwrap_or_default()
    }

    /// The best way of setting up a ring that works here.
    pub fn best_ring(&self) -> Option<&Ring> {
        self.rings.iter().find(|ring| ring.refused.is_none())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text =
            |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        write!(f, "{}", text(self.soft))?;
        if self.soft == self.hard { Ok(()) } else { write!(f, " (can be raised to {})", text(self.hard)) }
    }
}

/// CPU numbers as `0-3,8`.
pub fn ranges(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let text = |(first, last): (usize, usize)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// The ways in which a shard sets up its ring, the best first: the same steps down that a shard takes.
fn try_rings() -> Vec<Ring> {
    // Small: it is closed at once, and only the flags are in question.
    const ENTRIES: u32 = 8;
    let outcome =
        |result: std::io::Result<IoUring>| result.err().map(|error| error.raw_os_error().unwrap_or(0));
    vec![
        Ring {
            flags: "SINGLE_ISSUER + DEFER_TASKRUN",
            refused: outcome(IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES)),
        },
        Ring {
            flags: "COOP_TASKRUN",
            refused: outcome(IoUring::builder().setup_coop_taskrun().build(ENTRIES)),
        },
        Ring { flags: "none", refused: outcome(IoUring::builder().build(ENTRIES)) },
    ]
}

fn limit(resource: Resource) -> Limit {
    let limit = rustix::process::getrlimit(resource);
    Limit { soft: limit.current, hard: limit.maximum }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The tightest quota from this process's cgroup up to the root, in version 2 and version 1. `read` gives the text of a
/// file.
fn find_quota(read: impl Fn(&Path) -> Option<String>) -> Option<Quota> {
    let groups = parse_cgroups(&read(Path::new("/proc/self/cgroup"))?);
    let mounts = parse_cgroup_mounts(&read(Path::new("/proc/self/mountinfo"))?);
    let unified = mounts.unified.iter().zip(&groups.unified).flat_map(|(mount, group)| mount.folders(group));
    let unified = unified.filter_map(|folder| {
        let source = folder.join("cpu.max");
        Some(Quota { cpus: parse_cpu_max(&read(&source)?)?, source })
    });
    let old = mounts.cpu.iter().zip(&groups.cpu).flat_map(|(mount, group)| mount.folders(group));
    let old = old.filter_map(|folder| {
        let source = folder.join("cpu.cfs_quota_us");
        let cpus = parse_cfs(&read(&source)?, &read(&folder.join("cpu.cfs_period_us"))?)?;
        Some(Quota { cpus, source })
    });
    unified.chain(old).min_by(|a, b| a.cpus.total_cmp(&b.cpus))
}

/// The tightest limit on memory of this process's cgroups (version 2), octets.
pub fn memory_limit() -> Option<u64> {
    find_memory_limit(read)
}

fn find_memory_limit(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let group = parse_cgroups(&read(Path::new("/proc/self/cgroup"))?).unified?;
    let mount = parse_cgroup_mounts(&read(Path::new("/proc/self/mountinfo"))?).unified?;
    let limits = mount.folders(&group).into_iter().filter_map(|folder| {
        // `max` for none.
        read(&folder.join("memory.max"))?.trim().parse().ok()
    });
    limits.min()
}

/// The cgroups of a process that can limit CPU time.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    /// Its place in the hierarchy of version 2.
    unified: Option<String>,
    /// Its place in the hierarchy of version 1 that has the `cpu` controller.
    cpu: Option<String>,
}

/// `/proc/self/cgroup`: `number:controllers:path`, version 2 as `0::path`.
fn parse_cgroups(text: &str) -> Groups {
    let mut groups = Groups::default();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if number == "0" && controllers.is_empty() {
            groups.unified = Some(path.to_owned());
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            groups.cpu = Some(path.to_owned());
        }
    }
    groups
}

/// Where the hierarchies are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounts {
    unified: Option<Mount>,
    cpu: Option<Mount>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The cgroup that the mount shows as its top: `/`, or in a container without cgroup namespace the container's own.
    root: String,
    /// Where.
    point: PathBuf,
}

impl Mount {
    /// The folders of `group` and of all groups above it that the mount shows, lowest first.
    fn folders(&self, group: &str) -> Vec<PathBuf> {
        // A group outside what the mount shows (`/..` in a namespace, for instance): its top is the best that is known.
        let below = if self.root == "/" { Some(group) } else { group.strip_prefix(&*self.root) };
        let below = below.unwrap_or("").trim_start_matches('/');
        if below.split('/').any(|name| name == "..") {
            return vec![self.point.clone()];
        }
        let lowest = self.point.join(below);
        lowest.ancestors().take_while(|folder| folder.starts_with(&self.point)).map(Path::to_owned).collect()
    }
}

/// `/proc/self/mountinfo`: `… root point … - type source options` (proc(5)).
fn parse_cgroup_mounts(text: &str) -> Mounts {
    let mut mounts = Mounts::default();
    for line in text.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let mut place = place.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let (Some(root), Some(point)) = (place.next(), place.next()) else { continue };
        let mount = || Some(Mount { root: root.to_owned(), point: PathBuf::from(point) });
        match (kind.next(), kind.nth(1)) {
            (Some("cgroup2"), _) => mounts.unified = mounts.unified.or_else(mount),
            (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "cpu") => {
                mounts.cpu = mounts.cpu.or_else(mount);
            }
            _ => {}
        }
    }
    mounts
}

/// `cpu.max` of version 2: `quota period` in microseconds, or `max period`.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    // A missing period is the default of 100 ms.
    parse_cfs(words.next()?, words.next().unwrap_or("100000"))
}

/// `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1; a quota of -1 is none.
fn parse_cfs(quota: &str, period: &str) -> Option<f64> {
    let quota: f64 = quota.trim().parse().ok()?;
    let period: f64 = period.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0 && quota.is_finite()).then(|| quota / period)
}

/// `0-3,8` as in `Cpus_allowed_list`.
fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // No kernel is built for more; a file that says so is not believed.
        if last > 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The value of one line of `/proc/self/status`.
pub(super) fn status_field<'t>(status: &'t str, name: &str) -> Option<&'t str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn parse_capabilities(hexadecimal: &str) -> Option<u64> {
    u64::from_str_radix(hexadecimal, 16).ok()
}

fn has_net_admin(capabilities: u64) -> bool {
    // linux/capability.h
    const CAP_NET_ADMIN: u32 = 12;
    (capabilities >> CAP_NET_ADMIN) & 1 == 1
}

fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
