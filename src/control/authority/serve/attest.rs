//! Who is at the other end of a Unix socket, as the kernel says, and which identities rules give to such a program.
//!
//! The kernel noted user, group and process when the peer connected. The process is held by a pidfd from then on: its
//! number may be given to another one, the descriptor is not. An executable is compared as a file (device and inode), not
//! by its path: a process in its own mount namespace can have anything at any path. Refuses to believe what a peer says.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::identity::SpiffeId;

/// A peer.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: i32,
    /// For the log: as its own mount namespace calls it.
    pub(super) executable: Option<PathBuf>,
    file: Option<FileId>,
    process: OwnedFd,
}

/// What tells one file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// Who gets an identity: everything that is given must be so; something is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) id: SpiffeId,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) executable: Option<PathBuf>,
}

impl Caller {
    /// Who has connected.
    ///
    /// # Errors
    /// When the process has ended already, or the kernel is older than 5.3 (no pidfd).
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(socket)?;
        let process = pidfd_open(peer.pid, PidfdFlags::empty())?;
        let link = PathBuf::from(format!("/proc/{}/exe", peer.pid.as_raw_nonzero()));
        // Another user's process shows its executable to root only; rules that ask for one do not match then.
        let file = FileId::of(&link).ok();
        let executable = fs::read_link(&link).ok();
        let caller = Self {
            uid: peer.uid.as_raw(),
            gid: peer.gid.as_raw(),
            pid: Pid::as_raw(Some(peer.pid)),
            executable,
            file,
            process,
        };
        // What stood under that number in /proc was this process only if it is alive now.
        if caller.has_ended() { Err(io::ErrorKind::NotConnected.into()) } else { Ok(caller) }
    }

    /// Whether the process that connected has ended. Somebody else may hold its socket then.
    pub(super) fn has_ended(&self) -> bool {
        let mut end = [rustix::event::PollFd::new(&self.process, rustix::event::PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // Not to be told is not to know that it lives.
        !matches!(rustix::event::poll(&mut end, Some(&at_once)), Ok(0))
    }

    /// The identities that rules give it, in their order, each once.
    pub(super) fn identities(&self, rules: &[Rule]) -> Vec<SpiffeId> {
        let mut ids: Vec<SpiffeId> = Vec::new();
        for rule in rules.iter().filter(|rule| self.matches(rule)) {
            if !ids.contains(&rule.id) {
                ids.push(rule.id.clone());
            }
        }
        ids
    }

    fn matches(&self, rule: &Rule) -> bool {
        let executable = |path: &PathBuf| self.file.is_some() && FileId::of(path).ok() == self.file;
        (rule.uid.is_some() || rule.gid.is_some() || rule.executable.is_some())
            && rule.uid.is_none_or(|uid| uid == self.uid)
            && rule.gid.is_none_or(|gid| gid == self.gid)
            && rule.executable.as_ref().is_none_or(executable)
    }
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::metadata(path)?;
        Ok(Self { device: file.dev(), inode: file.ino() })
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid={} gid={} pid={} executable=", self.uid, self.gid, self.pid)?;
        match &self.executable {
            // Another process chose the name: nothing of it may look like a line of the log.
            Some(path) => write!(f, "{path:?}"),
            None => f.write_str("(not readable)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn rule(id: &str) -> Rule {
        Rule { id: SpiffeId::parse(id).unwrap(), uid: None, gid: None, executable: None }
    }

    fn me() -> Caller {
        let (one, _other) = UnixStream::pair().unwrap();
        Caller::of(&one).unwrap()
    }

    #[test]
    fn the_kernel_says_who_it_is() {
        let caller = me();
        assert_eq!(caller.uid, rustix::process::geteuid().as_raw());
        assert_eq!(caller.gid, rustix::process::getegid().as_raw());
        assert_eq!(caller.pid, std::process::id().cast_signed());
        assert_eq!(caller.executable.as_deref(), Some(&*std::env::current_exe().unwrap()));
        assert!(!caller.has_ended());
    }

    #[test]
    fn all_that_is_given_must_be_so_and_something_must_be_given() {
        let caller = me();
        let exe = std::env::current_exe().unwrap();
        let base = rule("spiffe://mesh.local/a");
        let given = |uid, gid, executable| Rule { uid, gid, executable, ..base.clone() };
        assert!(!caller.matches(&base), "a rule that asks for nothing would be for everybody");
        assert!(caller.matches(&given(Some(caller.uid), None, None)));
        assert!(caller.matches(&given(Some(caller.uid), Some(caller.gid), Some(exe.clone()))));
        assert!(!caller.matches(&given(Some(caller.uid + 1), Some(caller.gid), Some(exe.clone()))));
        assert!(!caller.matches(&given(Some(caller.uid), Some(caller.gid + 1), Some(exe))));
        assert!(!caller.matches(&given(Some(caller.uid), None, Some("/bin/sh".into()))));
        assert!(!caller.matches(&given(Some(caller.uid), None, Some("/nonexistent".into()))));
        let blind = Caller { file: None, ..me() };
        assert!(
            !blind.matches(&given(None, None, Some("/nonexistent".into()))),
            "unknown is not equal to unknown"
        );
    }

    #[test]
    fn several_identities_come_in_the_order_of_the_rules_each_once() {
        let caller = me();
        let mine = |id| Rule { uid: Some(caller.uid), ..rule(id) };
        let rules = [
            mine("spiffe://mesh.local/b"),
            Rule { uid: Some(caller.uid + 1), ..rule("spiffe://mesh.local/x") },
            mine("spiffe://mesh.local/a"),
            mine("spiffe://mesh.local/b"),
        ];
        let ids: Vec<String> = caller.identities(&rules).iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["spiffe://mesh.local/b", "spiffe://mesh.local/a"]);
    }

    #[test]
    fn the_end_of_the_process_is_noticed() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let caller = Caller { process, ..me() };
        assert!(!caller.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(caller.has_ended());
    }
}
