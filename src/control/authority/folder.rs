//! The authority's files: written whole or not at all, read with their permissions checked, locked while they change.
//!
//! A new file is written beside its place, synced, moved there, and the folder is synced: after a crash each file is the
//! old or the new one. Refuses to write over a key or a certificate (only the state is ever replaced), to use keys that
//! others may read, and to wait for a lock for ever.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::control::identity::SourceError;

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

/// Holds the lock while it lives. Nobody else changes the folder meanwhile, this process included.
#[derive(Debug)]
pub(super) struct Locked {
    _file: File,
}

impl Folder {
    /// How long another process may hold the lock. It needs milliseconds.
    const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
    /// Largest file that is read: a state of two roots has 500 octets.
    const FILE_BYTES_MAX: u64 = 1024 * 1024;

    /// A folder, made if there is none, readable by its owner only.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, SourceError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
            refused(
                format!("cannot make the folder {}: {error}", path.display()),
                "name a folder that this user may write to, or make it: install -d -m 700 -o USER FOLDER",
            )
        })?;
        let folder = Self { path: path.to_owned() };
        if folder.names()?.is_empty() {
            // One that was made for this. Somebody else's is refused below if it is open to others.
            let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
        }
        let mode = fs::metadata(path).map_err(|error| folder.cannot("look at", path, &error))?.mode();
        if mode & 0o022 != 0 {
            return Err(refused(
                format!(
                    "{} may be written to by others than its owner (mode {:o})",
                    path.display(),
                    mode & 0o7777
                ),
                format!("find out who wrote there, then: chmod 700 {}", path.display()),
            ));
        }
        Ok(folder)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of the files in it.
    pub(super) fn names(&self) -> Result<Vec<String>, SourceError> {
        let cannot = |error| self.cannot("list", &self.path, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(cannot)? {
            names.push(entry.map_err(cannot)?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Takes the lock.
    pub(super) fn lock(&self) -> Result<Locked, SourceError> {
        let path = self.file("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| self.cannot("open", &path, &error))?;
        let deadline = Instant::now() + Self::LOCK_TIMEOUT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(refused(
                        format!("another process has held {} for 5 s", path.display()),
                        format!(
                            "find it with `fuser -v {}`; it is stopped or its disk hangs",
                            path.display()
                        ),
                    ));
                }
                Err(error) => {
                    return Err(refused(
                        format!("cannot lock {}: {error}", path.display()),
                        "use a file system that has flock",
                    ));
                }
            }
        }
    }

    /// The text of a file; `None` when there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, SourceError> {
        let path = self.file(name);
        match self.read_checked(&path, false) {
            Ok(text) => Ok(Some(text.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.cannot("read", &path, &error)),
        }
    }

    /// The text of a key, wiped after use; `None` when there is none.
    pub(super) fn read_key(&self, name: &str) -> Result<Option<Zeroizing<String>>, SourceError> {
        let path = self.file(name);
        match self.read_checked(&path, true) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none() =>
            {
                Err(refused(
                    format!("{} may be read by others than its owner", path.display()),
                    format!(
                        "chmod 600 {}; if somebody else may have read it, begin anew in another folder",
                        path.display()
                    ),
                ))
            }
            Err(error) => Err(self.cannot("read", &path, &error)),
        }
    }

    fn read_checked(&self, path: &Path, secret: bool) -> io::Result<Zeroizing<String>> {
        let file = File::open(path)?;
        let attributes = file.metadata()?;
        if secret && attributes.mode() & 0o077 != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if attributes.len() > Self::FILE_BYTES_MAX {
            return Err(io::Error::other("it is larger than 1 MiB"));
        }
        let mut text = Zeroizing::new(String::with_capacity(attributes.len() as usize + 1));
        io::Read::read_to_string(&mut io::Read::take(file, Self::FILE_BYTES_MAX), &mut text)?;
        Ok(text)
    }

    /// Writes a new file that nobody else may read. One of that name is an error.
    pub(super) fn write_new(&self, name: &str, text: &[u8]) -> Result<(), SourceError> {
        let path = self.file(name);
        if path.symlink_metadata().is_ok() {
            return Err(refused(
                format!("{} is there already", path.display()),
                "nothing is ever written over a key or a certificate: look what it is and move it away",
            ));
        }
        self.replace(name, text)
    }

    /// Writes a file that nobody else may read, in place of the one of that name.
    pub(super) fn replace(&self, name: &str, text: &[u8]) -> Result<(), SourceError> {
        let path = self.file(name);
        write_whole(&path, text, 0o600).map_err(|error| self.cannot("write", &path, &error))
    }

    /// Removes a file that nobody needs any more. One that cannot be removed is said so and stays.
    pub(super) fn remove(&self, name: &str) {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot remove; please remove it yourself")
            }
        }
    }

    fn cannot(&self, what: &str, path: &Path, error: &io::Error) -> SourceError {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("run as the user that owns {}: ls -ld {0}", self.path.display())
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on its disk".to_owned(),
            io::ErrorKind::ReadOnlyFilesystem => "put the folder on a disk that may be written to".to_owned(),
            _ => "look at the file and its disk".to_owned(),
        };
        refused(format!("cannot {what} {}: {error}", path.display()), remedy)
    }
}

/// Writes a file whole or not at all: beside its place, synced, moved there, the folder synced.
pub(super) fn write_whole(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        // One that a crash left behind is nobody's.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// An error with its remedy.
pub(super) fn refused(what: impl Into<String>, remedy: impl Into<String>) -> SourceError {
    SourceError { what: what.into(), remedy: remedy.into() }
}
