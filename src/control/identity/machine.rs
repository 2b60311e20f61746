//! What a machine has for identities, as `ringmesh doctor` tells it: the folder of an authority, the Workload API, the
//! clock. Looks and changes nothing; needs no configuration, so it looks where things are by default.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::unix_now;

/// What `doctor` wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Footing {
    /// The folder of an authority, where there is one in the usual place.
    pub(in crate::control) authority: Option<AuthorityFolder>,
    /// Where SPIFFE_ENDPOINT_SOCKET points, and why nobody answers there, if nobody does.
    pub(in crate::control) workload_api: Option<(String, Option<String>)>,
    /// Seconds of the Unix time.
    pub(in crate::control) now: u64,
}

/// An authority's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct AuthorityFolder {
    pub(in crate::control) path: PathBuf,
    /// Its permissions.
    pub(in crate::control) mode: u32,
    /// Keys in it that others than the owner may read.
    pub(in crate::control) open_keys: Vec<PathBuf>,
}

impl Footing {
    /// Earlier than this version was made: no certificate of today would be valid.
    pub(in crate::control) const CLOCK_MIN: u64 = 1_767_225_600; // 2026-01-01

    /// Looks at this machine; `authority` is where its folder would be.
    pub(in crate::control) fn look(authority: &Path) -> Self {
        let endpoint = std::env::var("SPIFFE_ENDPOINT_SOCKET").ok().filter(|value| !value.is_empty());
        Self {
            authority: AuthorityFolder::look(authority),
            workload_api: endpoint.map(|endpoint| {
                let why = unanswered(&endpoint);
                (endpoint, why)
            }),
            now: unix_now(),
        }
    }
}

impl AuthorityFolder {
    fn look(path: &Path) -> Option<Self> {
        let mode = std::fs::metadata(path).ok()?.mode() & 0o777;
        // Not readable for whoever asks: then it is not open to others either.
        let files = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let keys = files.filter(|file| file.extension().is_some_and(|end| end == "key"));
        let is_open = |key: &PathBuf| std::fs::metadata(key).is_ok_and(|file| file.mode() & 0o077 != 0);
        Some(Self { path: path.to_owned(), mode, open_keys: keys.filter(is_open).collect() })
    }
}

fn unanswered(endpoint: &str) -> Option<String> {
    match endpoint.strip_prefix("unix:") {
        Some(path) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            UnixStream::connect(path).err().map(|error| error.to_string())
        }
        None => Some("only unix: is supported".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::Folder;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_folder_and_its_open_keys_are_seen_and_a_socket_is_asked() {
        let folder = Folder::new("identity-footing");
        let path = folder.path("");
        assert_eq!(AuthorityFolder::look(&folder.path("missing")), None);
        for (name, mode) in [("root-1.key", 0o600), ("issuer-1.key", 0o644), ("root-1.pem", 0o644)] {
            let file = folder.write(name, "");
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let seen = AuthorityFolder::look(&path).unwrap();
        assert_eq!(seen.open_keys, [folder.path("issuer-1.key")]);

        let socket = folder.path("w.sock");
        let endpoint = format!("unix://{}", socket.display());
        assert!(unanswered(&endpoint).is_some() && unanswered("tcp://127.0.0.1:1").is_some());
        let _listens = UnixListener::bind(&socket).unwrap();
        assert_eq!(unanswered(&endpoint), None);
    }
}
