//! `ringmesh doctor`: what this machine offers, what that costs, and the one line that fixes it.
//!
//! Called by `main`. Looks and reports; refuses to change anything, to need a configuration, and to call a machine
//! unusable on which the proxy would run more slowly: only what makes running impossible is a failure.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::identity::machine::Footing;
use super::machine::{Limit, Machine, ranges};
use crate::config::{AUTHORITY_FOLDER, Shards};

/// Writes a table, or a JSON object, to `out`. Gives the exit code: 1 when running is impossible, else 0.
///
/// # Errors
/// When `out` cannot be written to.
pub fn run(json: bool, out: &mut dyn Write) -> io::Result<u8> {
    let mut checks = checks(&Machine::look());
    checks.extend(identity(&Footing::look(Path::new(AUTHORITY_FOLDER))));
    let possible = checks.iter().all(|check| check.status != Status::Fail);
    if json {
        serde_json::to_writer_pretty(&mut *out, &Report { possible, checks: &checks })?;
        writeln!(out)?;
    } else {
        write_table(&checks, possible, out)?;
    }
    Ok(u8::from(!possible))
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'c> {
    /// Whether the proxy can run here.
    possible: bool,
    checks: &'c [Check],
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    found: String,
    status: Status,
    /// What to do about it, and what it costs otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As good as it gets.
    Ok,
    /// Nothing that is there today needs it.
    Note,
    /// It runs, with less speed or without something.
    Warn,
    /// It cannot run.
    Fail,
}

fn checks(machine: &Machine) -> Vec<Check> {
    vec![
        kernel(machine),
        io_uring(machine),
        ring_flags(machine),
        locked_memory(machine),
        open_files(machine),
        cpus(machine),
        quota(machine),
        shards(machine),
        nft(machine),
        net_admin(machine),
    ]
}

fn kernel(machine: &Machine) -> Check {
    let found = machine.kernel.clone();
    match machine.kernel_version() {
        version if version >= (6, 1) => ok("kernel", found),
        _ => warn(
            "kernel",
            found,
            "Linux 6.1 or later has DEFER_TASKRUN: about 15 % less CPU per request than 5.19",
        ),
    }
}

fn io_uring(machine: &Machine) -> Check {
    let name = "io_uring";
    let Some(errno) = refusal(machine) else {
        return ok(name, "works".to_owned());
    };
    let found = match machine.io_uring_disabled {
        Some(value @ 1..) => format!("refused: kernel.io_uring_disabled = {value}"),
        _ => format!("refused: {}", io::Error::from_raw_os_error(errno)),
    };
    let without = "until then the shards use epoll: up to a tenth more CPU per request";
    warn(name, found, format!("{} ({without})", ring_remedy(machine)))
}

/// The error number of the plainest way of setting up a ring, which is refused only when all are.
fn refusal(machine: &Machine) -> Option<i32> {
    machine.rings.last()?.refused
}

/// What to do where a ring is refused, or only granted without its flags. Also for the start's log and error.
pub(super) fn ring_remedy(machine: &Machine) -> String {
    let Some(errno) = refusal(machine) else {
        return match machine.kernel_version() {
            version if version < (6, 1) => "use Linux 6.1 or later".to_owned(),
            _ => "see `ringmesh doctor`".to_owned(),
        };
    };
    match machine.io_uring_disabled {
        Some(1..) => "sysctl -w kernel.io_uring_disabled=0",
        _ if errno == rustix::io::Errno::NOMEM.raw_os_error() => {
            "ulimit -l unlimited (LimitMEMLOCK=infinity in systemd)"
        }
        _ if machine.seccomp => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile; Docker 25 and \
             containerd 2 forbid them by default: --security-opt seccomp=<profile>, in Kubernetes \
             securityContext.seccompProfile"
        }
        _ => "use a kernel that is built with CONFIG_IO_URING (5.11 or later)",
    }
    .to_owned()
}

fn ring_flags(machine: &Machine) -> Check {
    let name = "ring flags";
    match machine.best_ring() {
        Some(best) if machine.rings.first() == Some(best) => ok(name, best.flags.to_owned()),
        Some(best) => warn(
            name,
            best.flags.to_owned(),
            "DEFER_TASKRUN needs Linux 6.1 (a few per cent less CPU per request), COOP_TASKRUN 5.19 (a quarter less \
             than none)",
        ),
        None => warn(name, "no ring".to_owned(), "see io_uring"),
    }
}

fn locked_memory(machine: &Machine) -> Check {
    let name = "locked memory";
    let found = in_bytes(machine.memlock);
    // Since 5.12 rings are charged to the memory cgroup and not to this limit.
    let counts = machine.kernel_version() < (5, 12);
    match machine.memlock.soft {
        Some(soft) if counts && soft < LOCKED_MEMORY_MIN => warn(
            name,
            found,
            "ulimit -l unlimited (LimitMEMLOCK=infinity in systemd): before Linux 5.12 rings need it",
        ),
        _ => ok(name, found),
    }
}

fn open_files(machine: &Machine) -> Check {
    let name = "open files";
    let found = machine.files.to_string();
    match machine.files.soft {
        Some(soft) if soft < FILES_MIN => Check {
            check: name,
            found,
            status: Status::Fail,
            remedy: Some(format!("ulimit -n 65536: {FILES_MIN} are needed for rings, listeners and links")),
        },
        Some(soft) if soft < FILES_WANTED => warn(
            name,
            found,
            "ulimit -n 65536 (LimitNOFILE=65536 in systemd): 20 000 connections and as many to the services need two \
             files each",
        ),
        _ => ok(name, found),
    }
}

fn cpus(machine: &Machine) -> Check {
    let allowed = &machine.cpus.allowed;
    ok("CPUs", format!("{} ({})", allowed.len(), ranges(allowed)))
}

fn quota(machine: &Machine) -> Check {
    let name = "CPU quota";
    match &machine.cpus.quota {
        None => ok(name, "none".to_owned()),
        Some(quota) => {
            let found = format!("{} CPUs ({})", quota.cpus, quota.source.display());
            if quota.cpus < 1.0 {
                warn(
                    name,
                    found,
                    "give it at least one CPU, or no limit: a spent quota stops the proxy for up to 100 ms",
                )
            } else {
                ok(name, found)
            }
        }
    }
}

fn shards(machine: &Machine) -> Check {
    let name = "shards = \"auto\"";
    match machine.cpus.shards_for(&Shards::Auto) {
        Ok(shards) => {
            let pinned: Vec<usize> = shards.cpus.iter().copied().flatten().collect();
            let place = if pinned.is_empty() {
                "not pinned".to_owned()
            } else {
                format!("on CPU {}", ranges(&pinned))
            };
            ok(name, format!("{}, {place}", shards.cpus.len()))
        }
        Err(error) => Check { check: name, found: error.to_string(), status: Status::Fail, remedy: None },
    }
}

fn nft(machine: &Machine) -> Check {
    match &machine.nft {
        Some(path) => ok("nft", path.display().to_string()),
        None => note(
            "nft",
            "not found".to_owned(),
            "nothing needs it yet; install nftables, if traffic is to be redirected on this machine",
        ),
    }
}

fn net_admin(machine: &Machine) -> Check {
    if machine.net_admin {
        ok("CAP_NET_ADMIN", "yes".to_owned())
    } else {
        note(
            "CAP_NET_ADMIN",
            "no".to_owned(),
            "nothing needs it yet; --cap-add NET_ADMIN, or run as root, if traffic is to be redirected on this machine",
        )
    }
}

/// Who this machine's workloads can be. What is not there is not missed: not every proxy has an identity.
fn identity(footing: &Footing) -> Vec<Check> {
    let clock = if footing.now < Footing::CLOCK_MIN {
        let found = format!("{} seconds since 1970", footing.now);
        warn("clock", found, "set it (chrony, systemd-timesyncd): no certificate of today is valid yet")
    } else {
        ok("clock", httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(footing.now)))
    };
    let authority = match &footing.authority {
        None => note(
            "authority",
            "none in the usual place".to_owned(),
            "`ringmesh ca init` makes one, where there is no other",
        ),
        Some(folder) => {
            let path = folder.path.display();
            if folder.mode & 0o022 != 0 {
                let found = format!("{path} may be written to by others (mode {:o})", folder.mode);
                warn(
                    "authority",
                    found,
                    format!("find out who wrote there, then: chmod 700 {path}; it is not used as it is"),
                )
            } else if let Some(key) = folder.open_keys.first() {
                let key = key.display();
                let found = format!("{key} can be read by others");
                warn(
                    "authority",
                    found,
                    format!("chmod 600 {key}; who has read it can be anybody in the mesh"),
                )
            } else {
                ok("authority", path.to_string())
            }
        }
    };
    let workload_api = match &footing.workload_api {
        None => note(
            "workload API",
            "SPIFFE_ENDPOINT_SOCKET is not set".to_owned(),
            "only identities from there need it: `ringmesh ca serve`, SPIRE",
        ),
        Some((endpoint, None)) => ok("workload API", endpoint.clone()),
        Some((endpoint, Some(why))) => {
            let found = format!("{endpoint}: {why}");
            warn(
                "workload API",
                found,
                "start `ringmesh ca serve` or the agent of SPIRE, and let this user connect to its socket",
            )
        }
    };
    // The commands that hold keys see to it themselves.
    let core_dumps = ok("core dumps", "never of a process that holds keys".to_owned());
    vec![clock, authority, workload_api, core_dumps]
}

fn write_table(checks: &[Check], possible: bool, out: &mut dyn Write) -> io::Result<()> {
    let width = checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    for Check { check, found, status, remedy } in checks {
        let status = match status {
            Status::Ok => "ok  ",
            Status::Note => "note",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        writeln!(out, "{status}  {check:width$}  {found}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "      {:width$}  → {remedy}", "")?;
        }
    }
    let warnings = checks.iter().filter(|check| check.status == Status::Warn).count();
    match (possible, warnings) {
        (false, _) => writeln!(out, "\nringmesh cannot run here: see FAIL above"),
        (true, 0) => writeln!(out, "\nringmesh runs here at its best"),
        (true, n) => writeln!(out, "\nringmesh runs here; {n} of {} could be better", checks.len()),
    }
}

/// A limit of bytes: `8 MiB (can be raised to unlimited)`.
fn in_bytes(limit: Limit) -> String {
    let text = |bytes: Option<u64>| match bytes {
        None => "unlimited".to_owned(),
        Some(bytes) if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        Some(bytes) if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        Some(bytes) => format!("{bytes} bytes"),
    };
    if limit.soft == limit.hard {
        text(limit.soft)
    } else {
        format!("{} (can be raised to {})", text(limit.soft), text(limit.hard))
    }
}

fn ok(check: &'static str, found: String) -> Check {
    Check { check, found, status: Status::Ok, remedy: None }
}

fn note(check: &'static str, found: String, remedy: impl Into<String>) -> Check {
    Check { check, found, status: Status::Note, remedy: Some(remedy.into()) }
}

fn warn(check: &'static str, found: String, remedy: impl Into<String>) -> Check {
    Check { check, found, status: Status::Warn, remedy: Some(remedy.into()) }
}

/// Listeners, rings, doorbells, the admin socket, a log: a proxy with fewer cannot even say what is wrong.
const FILES_MIN: u64 = 64;
/// `limits.connections_max` defaults to 20 000; each may hold one connection upstream; the rest is for the proxy itself.
const FILES_WANTED: u64 = 2 * 20_000 + 1_000;
/// A ring of 1024 entries with its completions takes some 100 KiB; this is room for a few dozen shards.
const LOCKED_MEMORY_MIN: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::identity::machine::AuthorityFolder;
    use crate::control::machine::{Cpus, Quota, Ring};

    #[test]
    fn a_good_machine_has_nothing_to_fix() {
        let checks = checks(&good());
        assert!(
            checks.iter().all(|check| check.status == Status::Ok && check.remedy.is_none()),
            "{checks:#?}"
        );
    }

    #[test]
    fn each_lack_is_found_and_has_a_remedy() {
        let eperm = rustix::io::Errno::PERM.raw_os_error();
        let refused =
            || good().rings.into_iter().map(|ring| Ring { refused: Some(eperm), ..ring }).collect::<Vec<_>>();
        let einval = Some(rustix::io::Errno::INVAL.raw_os_error());
        let mut second_best = good().rings;
        second_best[0].refused = einval;
        for (check, machine, remedy) in [
            ("kernel", Machine { kernel: "5.15.0-1-generic".into(), ..good() }, "Linux 6.1"),
            (
                "io_uring",
                Machine { rings: refused(), io_uring_disabled: Some(2), ..good() },
                "sysctl -w kernel.io_uring_disabled=0",
            ),
            ("io_uring", Machine { rings: refused(), seccomp: true, ..good() }, "seccomp"),
            ("io_uring", Machine { rings: refused(), ..good() }, "CONFIG_IO_URING"),
            ("ring flags", Machine { rings: second_best, ..good() }, "DEFER_TASKRUN"),
            ("ring flags", Machine { rings: refused(), ..good() }, "see io_uring"),
            (
                "locked memory",
                Machine { memlock: limit(65_536), kernel: "5.4.0".into(), ..good() },
                "ulimit -l unlimited",
            ),
            ("open files", Machine { files: limit(1024), ..good() }, "ulimit -n 65536"),
            ("CPU quota", Machine { cpus: half_a_cpu(), ..good() }, "at least one CPU"),
        ] {
            let found = checks(&machine).into_iter().find(|found| found.check == check).unwrap();
            assert_eq!(found.status, Status::Warn, "{found:?}");
            assert!(found.remedy.as_ref().unwrap().contains(remedy), "{found:?}");
        }
    }

    #[test]
    fn what_nothing_needs_yet_is_a_note_and_no_flaw() {
        let checks = checks(&Machine { nft: None, net_admin: false, ..good() });
        let notes: Vec<_> = checks.iter().filter(|c| c.status == Status::Note).map(|c| c.check).collect();
        assert_eq!(notes, ["nft", "CAP_NET_ADMIN"]);
        let mut table = Vec::new();
        write_table(&checks, true, &mut table).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.ends_with("\nringmesh runs here at its best\n"), "{table}");
        assert!(table.contains(" 8 MiB\n"), "{table}");
    }

    #[test]
    fn bytes_are_in_the_unit_that_fits() {
        let limit = |soft, hard| in_bytes(Limit { soft, hard });
        assert_eq!(limit(Some(8 << 20), None), "8 MiB (can be raised to unlimited)");
        assert_eq!(limit(Some(65_536), Some(65_536)), "64 KiB");
        assert_eq!(limit(Some(100), Some(8 << 20)), "100 bytes (can be raised to 8 MiB)");
    }

    #[test]
    fn only_what_makes_running_impossible_fails() {
        let checks = checks(&Machine { files: limit(32), ..good() });
        assert_eq!(checks.iter().filter(|check| check.status == Status::Fail).count(), 1);
        let mut table = Vec::new();
        write_table(&checks, false, &mut table).unwrap();
        assert!(String::from_utf8(table).unwrap().contains("cannot run here"));
    }

    #[test]
    fn this_machine_gets_a_table_and_json() {
        let (mut table, mut json) = (Vec::new(), Vec::new());
        assert_eq!(run(false, &mut table).unwrap(), run(true, &mut json).unwrap());
        let table = String::from_utf8(table).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        for check in json["checks"].as_array().unwrap() {
            let name = check["check"].as_str().unwrap();
            assert!(table.contains(name), "{name} is missing in\n{table}");
            assert!(["ok", "note", "warn", "fail"].contains(&check["status"].as_str().unwrap()));
            assert_eq!(check["remedy"].is_string(), check["status"] != "ok", "{check}");
        }
    }

    #[test]
    fn who_workloads_can_be_is_told_with_its_remedies() {
        let good = Footing {
            authority: Some(AuthorityFolder { path: "/ca".into(), mode: 0o700, open_keys: Vec::new() }),
            workload_api: Some(("unix:/w".into(), None)),
            now: Footing::CLOCK_MIN,
        };
        assert!(identity(&good).iter().all(|check| check.status == Status::Ok));
        let none = Footing { authority: None, workload_api: None, now: 0 };
        let bad = Footing {
            authority: Some(AuthorityFolder { mode: 0o770, ..good.authority.clone().unwrap() }),
            workload_api: Some(("unix:/w".into(), Some("refused".into()))),
            now: good.now,
        };
        let keys =
            AuthorityFolder { open_keys: vec!["/ca/root-1.key".into()], ..good.authority.clone().unwrap() };
        let open = Footing { authority: Some(keys), ..good };
        for (footing, check, status) in [
            (&none, "clock", Status::Warn),
            (&none, "authority", Status::Note),
            (&none, "workload API", Status::Note),
            (&bad, "authority", Status::Warn),
            (&bad, "workload API", Status::Warn),
            (&open, "authority", Status::Warn),
        ] {
            let found = identity(footing).into_iter().find(|row| row.check == check).unwrap();
            assert!(found.status == status && found.remedy.is_some(), "{found:?}");
        }
    }

    fn good() -> Machine {
        let ring = |flags| Ring { flags, refused: None };
        Machine {
            kernel: "6.8.0-45-generic".into(),
            cpus: Cpus { allowed: vec![0, 1], quota: None },
            memlock: limit(8 << 20),
            files: Limit { soft: Some(65_536), hard: None },
            io_uring_disabled: Some(0),
            rings: vec![ring("SINGLE_ISSUER + DEFER_TASKRUN"), ring("COOP_TASKRUN"), ring("none")],
            seccomp: false,
            nft: Some("/usr/sbin/nft".into()),
            net_admin: true,
        }
    }

    fn limit(soft: u64) -> Limit {
        Limit { soft: Some(soft), hard: Some(soft) }
    }

    fn half_a_cpu() -> Cpus {
        Cpus {
            allowed: vec![0, 1],
            quota: Some(Quota { cpus: 0.5, source: "/sys/fs/cgroup/cpu.max".into() }),
        }
    }
}
