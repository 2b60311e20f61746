//! Where the sidecars' configurations lie while the demo runs.
//!
//! The folder is removed with the demo. A demo that is killed cannot remove its own, so every demo removes those that
//! nobody holds any more: a folder is locked (flock) by the demo that made it, for as long as that lives.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const PREFIX: &str = "ringmesh-demo-";

/// A folder of this demo's own; removed when dropped.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Under the system's folder for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn new() -> io::Result<Self> {
        Self::under(&std::env::temp_dir())
    }

    fn under(parent: &Path) -> io::Result<Self> {
        remove_abandoned(parent);
        let path = parent.join(format!("{PREFIX}{}-{:06x}", std::process::id(), fastrand::u32(..1 << 24)));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next demo.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of demos that were killed. Those of other users stay: they cannot be removed.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(folder) = File::open(entry.path()) else { continue };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_ends_with_its_demo_and_an_abandoned_one_with_the_next() {
        let parent = std::env::temp_dir().join(format!("ringmesh-folder-{}", std::process::id()));
        fs::create_dir(&parent).unwrap();
        let abandoned = parent.join(format!("{PREFIX}1-000000"));
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("front.toml"), "").unwrap();
        let other = parent.join("else");
        fs::create_dir(&other).unwrap();

        let first = Folder::under(&parent).unwrap();
        assert!(!abandoned.exists() && other.exists());
        let second = Folder::under(&parent).unwrap();
        assert!(first.path().exists(), "it is in use");
        let paths = [first.path().to_owned(), second.path().to_owned()];
        drop((first, second));
        assert!(!paths[0].exists() && !paths[1].exists());
        fs::remove_dir_all(&parent).unwrap();
    }
}
