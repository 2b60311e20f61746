//! Notices that a configuration file has changed: by inotify on the directories (a watch on the file itself would stay
//! with the old file when an editor renames a new one over it), and by reading it every 30 seconds in case events are
//! not to be had (network file systems, watches used up). Asked by the control loop.
//!
//! Survives what a Kubernetes volume does: `config.toml` is a link to `..data/config.toml`, and `..data` is a link that
//! is swapped by rename; the files' own directory sees that rename. Where a file is a link into another directory,
//! that directory is watched too. Only a change of content counts; a file that is missing is waited for, because it is
//! in the middle of being replaced or else the running configuration is the better one.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Watches the files of one configuration.
pub(super) struct Watch {
    files: Vec<PathBuf>,
    /// Content when it was last read, whether it was good or not: a bad file is reported once.
    seen: Option<u64>,
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
    /// Names in those directories that matter; anything else (logs, for instance) must not wake control.
    names: Arc<Mutex<HashSet<OsString>>>,
    events: Arc<Notify>,
    /// First and last event of a burst.
    burst: Option<(Instant, Instant)>,
    poll: Instant,
    missing: bool,
    /// What a missing file means.
    absence: Absence,
}

/// What a missing file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// Nothing yet: it is waited for.
    Waited,
    /// A change like any other: whoever reads it says what is missing.
    Change,
}

impl Watch {
    /// How long it has to be quiet: an editor's save is several events within milliseconds.
    const QUIET: Duration = Duration::from_millis(100);
    /// How long a burst may go on before the file is looked at anyway.
    const BURST_MAX: Duration = Duration::from_secs(1);
    /// Between two looks without any event.
    const POLL: Duration = Duration::from_secs(30);

    /// Starts watching. Call it before the files are read, so that no change is missed in between. No files: never
    /// says anything, and costs no thread.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        Self::of(files, Absence::Waited)
    }

    /// As [`Watch::new`], for files that are read one by one, each of which may be missing: that counts as a change.
    pub(super) fn certificates(files: Vec<PathBuf>) -> Self {
        Self::of(files, Absence::Change)
    }

    fn of(files: Vec<PathBuf>, absence: Absence) -> Self {
        let mut watch = Self {
            seen: content(&files, absence),
            absence,
            files,
            watcher: None,
            directories: BTreeSet::new(),
            names: Arc::default(),
            events: Arc::default(),
            burst: None,
            poll: Instant::now() + Self::POLL,
            missing: false,
        };
        if !watch.files.is_empty() {
            watch.watcher = watch.notifier();
            watch.follow();
        }
        watch
    }

    /// Returns when the content has changed and has been quiet for a moment. Nothing is lost when this future is
    /// dropped.
    pub(super) async fn changed(&mut self) {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let look = match self.burst {
                Some((first, last)) => (last + Self::QUIET).min(first + Self::BURST_MAX),
                None => self.poll,
            };
            tokio::select! {
                () = self.events.notified() => {
                    let now = Instant::now();
                    self.burst = Some((self.burst.map_or(now, |b| b.0), now));
                }
                () = sleep_until(look) => {
                    self.burst = None;
                    if self.look() {
                        return;
                    }
                }
            }
        }
    }

    /// Takes the present content as known: the caller is about to read it.
    pub(super) fn mark(&mut self) {
        self.seen = content(&self.files, self.absence).or(self.seen);
        self.follow();
    }

    fn look(&mut self) -> bool {
        self.poll = Instant::now() + Self::POLL;
        self.follow();
        let now = content(&self.files, self.absence);
        let missing = now.is_none();
        if missing && !self.missing {
            tracing::warn!(
                files = ?self.files,
                "configuration file cannot be read; the running configuration stays: put the file back"
            );
        }
        self.missing = missing;
        let changed = now.is_some() && now != self.seen;
        self.seen = now.or(self.seen);
        changed
    }

    fn notifier(&self) -> Option<RecommendedWatcher> {
        let (events, names) = (Arc::clone(&self.events), Arc::clone(&self.names));
        let seen = move |event: notify::Result<notify::Event>| {
            let relevant = match &event {
                // Reading the file to look at it must not count as an event of it.
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => false,
                Ok(event) => {
                    let names = names.lock().unwrap_or_else(PoisonError::into_inner);
                    let known = |p: &PathBuf| p.file_name().is_some_and(|n| names.contains(n));
                    event.need_rescan() || event.paths.iter().any(|p| known(p) || is_toml(p))
                }
                Err(_) => true,
            };
            if relevant {
                events.notify_one();
            }
        };
        notify::recommended_watcher(seen)
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "file changes are noticed within 30 s only, because inotify is not available: \
                     raise fs.inotify.max_user_instances, or send SIGHUP after a change"
                );
            })
            .ok()
    }

    /// Watches the directories that the files are in now; links may lead elsewhere than before.
    fn follow(&mut self) {
        let mut directories = BTreeSet::new();
        let mut names = HashSet::from([OsString::from("..data")]);
        for file in &self.files {
            for path in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
                if path.is_dir() {
                    directories.insert(path.clone());
                }
                names.extend(path.file_name().map(OsString::from));
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                directories.insert(parent.unwrap_or_else(|| Path::new(".")).to_owned());
            }
        }
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.directories.difference(&directories) {
            // Fails when the directory itself has gone, which ends its watch too.
            let _ = watcher.unwatch(gone);
        }
        for directory in &directories {
            // Each time anew: a directory that was replaced by one of the same name has no watch any more. One that
            // cannot be watched is tried again at the next look.
            let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
        }
        self.directories = directories;
    }
}

/// A hash of all files' content; `None` when one cannot be read and that is no change. A directory stands for its `*.toml`,
/// as in `config`. What was read is wiped: some of these files are keys.
fn content(files: &[PathBuf], absence: Absence) -> Option<u64> {
    let mut hash = DefaultHasher::new();
    for file in files {
        let inside = if file.is_dir() { toml_files(file)? } else { vec![file.clone()] };
        for file in inside {
            let bytes = match (std::fs::read(&file), absence) {
                (Ok(bytes), _) => zeroize::Zeroizing::new(bytes),
                (Err(_), Absence::Waited) => return None,
                (Err(_), Absence::Change) => continue,
            };
            hash.write(file.as_os_str().as_encoded_bytes());
            hash.write_usize(bytes.len());
            hash.write(&bytes);
        }
    }
    Some(hash.finish())
}

fn toml_files(directory: &Path) -> Option<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| is_toml(p)).collect();
    files.sort();
    Some(files)
}

fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "toml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::Folder;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A generous bound on what takes a tenth of a second; only a failing test waits for it.
    const LONG: Duration = Duration::from_secs(20);

    async fn changes(watch: &mut Watch) {
        tokio::time::timeout(LONG, watch.changed()).await.expect("a change that was made is noticed");
    }

    /// Whether a look finds anything, without waiting for an event.
    fn quiet(watch: &mut Watch) -> bool {
        !watch.look()
    }

    #[tokio::test]
    async fn writing_in_place_and_renaming_over_are_noticed() {
        let folder = Folder::new("watch-rename");
        let file = folder.write("ringmesh.toml", "one");
        let mut watch = Watch::new(vec![file.clone()]);
        fs::write(&file, "two").unwrap();
        changes(&mut watch).await;
        for n in 0..3 {
            let new = folder.write(".ringmesh.toml.swp", &format!("three {n}"));
            fs::rename(new, &file).unwrap();
            changes(&mut watch).await;
        }
        assert!(quiet(&mut watch), "and once only");
    }

    #[tokio::test]
    async fn a_swap_of_the_data_link_is_noticed() {
        let folder = Folder::new("watch-kubernetes");
        for (n, text) in [(1, "one"), (2, "two"), (3, "three")] {
            fs::create_dir(folder.path(&format!("..{n}"))).unwrap();
            folder.write(&format!("..{n}/ringmesh.toml"), text);
        }
        symlink("..1", folder.path("..data")).unwrap();
        symlink("..data/ringmesh.toml", folder.path("ringmesh.toml")).unwrap();
        let mut watch = Watch::new(vec![folder.path("ringmesh.toml")]);
        for n in [2, 3] {
            symlink(format!("..{n}"), folder.path("..data_tmp")).unwrap();
            fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
            fs::remove_dir_all(folder.path(&format!("..{}", n - 1))).unwrap();
            changes(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn a_change_behind_a_link_into_another_directory_is_noticed() {
        let folder = Folder::new("watch-link");
        fs::create_dir(folder.path("elsewhere")).unwrap();
        let real = folder.write("elsewhere/real.toml", "one");
        symlink(&real, folder.path("ringmesh.toml")).unwrap();
        let mut watch = Watch::new(vec![folder.path("ringmesh.toml")]);
        fs::write(&real, "two").unwrap();
        changes(&mut watch).await;
    }

    #[tokio::test]
    async fn a_file_more_in_a_directory_is_noticed() {
        let folder = Folder::new("watch-directory");
        fs::create_dir(folder.path("conf.d")).unwrap();
        folder.write("conf.d/a.toml", "one");
        let mut watch = Watch::new(vec![folder.path("conf.d")]);
        folder.write("conf.d/b.toml", "two");
        changes(&mut watch).await;
        folder.write("conf.d/notes.txt", "three");
        assert!(quiet(&mut watch));
        fs::remove_file(folder.path("conf.d/a.toml")).unwrap();
        changes(&mut watch).await;
    }

    #[tokio::test]
    async fn what_does_not_change_the_content_is_no_change() {
        let folder = Folder::new("watch-same");
        let file = folder.write("ringmesh.toml", "one");
        let mut watch = Watch::new(vec![file.clone()]);
        fs::write(&file, "one").unwrap();
        folder.write("neighbour.log", "noise");
        assert!(quiet(&mut watch));
        fs::remove_file(&file).unwrap();
        assert!(quiet(&mut watch), "a missing file is waited for");
        fs::write(&file, "one").unwrap();
        assert!(quiet(&mut watch), "and is the same when it comes back");
        fs::write(&file, "two").unwrap();
        watch.mark();
        assert!(quiet(&mut watch), "what was marked is known");
    }
}
