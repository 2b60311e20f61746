//! `ringmesh ca serve`: the SPIFFE Workload API on a Unix socket, from the authority of a folder.
//!
//! One thread, one process beside the proxies; they (source `workload-api`) and other programs ask it. Who asks is attested
//! when it connects (`attest`), which identities that means is looked up in the rules (`rules`) at each call and each
//! renewal, what is said is in `service`. Refuses to listen where somebody listens already.

mod attest;
mod rules;
mod service;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Authority;
use super::command::tell;
use super::folder::refused;
use crate::control::identity::SourceError;
use crate::identity::TrustDomain;
use attest::Caller;
use rules::Settings;
use service::{Current, WorkloadApi};

/// What the command line says in place of the file.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) socket: Option<PathBuf>,
    pub(super) state: Option<PathBuf>,
    pub(super) trust_domain: Option<TrustDomain>,
}

/// Serves until a signal; gives the exit code.
pub(super) fn run(config: &Path, overrides: Overrides, err: &mut dyn Write) -> u8 {
    let settings = match Settings::load(config, &overrides) {
        Ok(settings) => settings,
        Err(problems) => {
            // Nobody reads any more: the exit code still tells.
            let _ = write!(err, "{problems}");
            return 2;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime
        .map_err(|error| {
            refused(format!("cannot start: {error}"), "look at the limits of this user: ulimit -a")
        })
        .and_then(|runtime| runtime.block_on(serve(config, &overrides, settings)));
    match served {
        Ok(()) => 0,
        Err(error) => {
            tell(&error, err);
            1
        }
    }
}

async fn serve(config: &Path, overrides: &Overrides, settings: Settings) -> Result<(), SourceError> {
    let cannot = |error: io::Error| refused(format!("cannot wait for signals: {error}"), "look at ulimit -n");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;

    let authority = Authority::open_or_init(&settings.state, &settings.trust_domain)?;
    let socket = Socket::bind(&settings.socket, settings.socket_mode)?;
    let rules = settings.rules.as_slice().into();
    let (publish, current) = watch::channel(Current { rules, bundle: authority.bundle()? });
    tracing::info!(
        socket = %settings.socket.display(),
        trust_domain = %settings.trust_domain,
        rules = settings.rules.len(),
        "serving the workload api"
    );
    let accept = accept(&socket.listener, &settings, |caller| WorkloadApi {
        caller,
        authority: authority.clone(),
        current: current.clone(),
        leaf_ttl: settings.leaf_ttl,
    });
    let mut accept = std::pin::pin!(accept);
    let mut poll = tokio::time::interval(BUNDLE_POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut readable = true;
    loop {
        tokio::select! {
            never = &mut accept => match never {},
            _ = poll.tick() => readable = follow(&authority, &publish, readable),
            _ = hangup.recv() => reload(config, overrides, &settings, &publish),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ended by a signal; identities that were given stay valid until they end");
    Ok(())
}

/// Publishes a bundle that has changed: by time, or by another process. Gives whether it could be read.
fn follow(authority: &Authority, publish: &watch::Sender<Current>, could_before: bool) -> bool {
    match authority.bundle() {
        Ok(bundle) => {
            publish.send_if_modified(|current| {
                let changed = current.bundle != bundle;
                if changed {
                    tracing::info!(roots = bundle.len(), "the bundle has changed");
                    current.bundle = bundle;
                }
                changed
            });
            true
        }
        Err(error) => {
            if could_before {
                tracing::error!(error = %error.what, remedy = %error.remedy, "cannot read the authority");
            }
            false
        }
    }
}

/// Reads the rules again. What else is in the file is for the next start.
fn reload(config: &Path, overrides: &Overrides, before: &Settings, publish: &watch::Sender<Current>) {
    match Settings::load(config, overrides) {
        Err(problems) => tracing::error!("the rules stay as they are\n{problems}"),
        Ok(settings) if settings.trust_domain != before.trust_domain => {
            tracing::error!("the rules stay as they are: another trust domain is served by another process");
        }
        Ok(settings) => {
            let others = |s: &Settings| (s.socket.clone(), s.socket_mode, s.state.clone(), s.leaf_ttl);
            if others(&settings) != others(before) {
                tracing::warn!("only the rules were read again; what else has changed is for the next start");
            }
            tracing::info!(rules = settings.rules.len(), "rules read again");
            publish.send_modify(|current| current.rules = settings.rules.into());
        }
    }
}

/// Accepts for ever; each connection is a task that ends with the process.
async fn accept(
    listener: &UnixListener,
    settings: &Settings,
    api: impl Fn(Arc<Caller>) -> WorkloadApi,
) -> Infallible {
    let counts = Arc::new(Counts { open: Mutex::default(), connections_max: settings.connections_max });
    let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.streams_max)
        .max_header_list_size(16 * 1024)
        // A process that is stopped keeps its place for a minute and no longer.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: some come back when others close.
                tracing::warn!(%error, "cannot accept; raise ulimit -n if it goes on");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let caller = match Caller::of(&stream) {
            Ok(caller) => Arc::new(caller),
            Err(error) => {
                tracing::warn!(%error, "closed: cannot tell who has connected");
                continue;
            }
        };
        let Some(place) = Counts::take(&counts, caller.uid) else {
            tracing::warn!(caller = %caller, "closed: too many connections, see connections_max");
            continue;
        };
        let api = api(caller);
        let answer = service_fn(move |request| api.clone().call(request));
        let connection = http2.serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

/// Open connections, by user.
struct Counts {
    open: Mutex<HashMap<u32, usize>>,
    connections_max: usize,
}

/// A connection's place among them.
struct Place {
    counts: Arc<Counts>,
    uid: u32,
}

impl Counts {
    /// Half of all places at most for one user, so that nobody can shut out everybody else.
    fn take(counts: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut open = counts.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let of_user = open.get(&uid).copied().unwrap_or(0);
        if all >= counts.connections_max || of_user >= counts.connections_max / 2 {
            return None;
        }
        open.insert(uid, of_user + 1);
        Some(Place { counts: Arc::clone(counts), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.counts.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.uid)),
        }
    }
}

/// The socket, with its file, which is removed with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    fn bind(path: &Path, mode: u32) -> Result<Self, SourceError> {
        let cannot = |error: io::Error| {
            refused(
                format!("cannot listen on {}: {error}", path.display()),
                "name a socket in a folder that this user may write to; its path has at most 107 octets",
            )
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(cannot)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(cannot)?;
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(cannot)?;
        let inode = fs::symlink_metadata(path).map_err(cannot)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody else's by now, perhaps.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a process that was killed; refuses where somebody listens or something else lies.
fn remove_stale(path: &Path) -> Result<(), SourceError> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(()) };
    if !file.file_type().is_socket() {
        return Err(refused(
            format!("{} is there and is no socket", path.display()),
            "name another path, or look what it is and move it away",
        ));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| {
                refused(
                    format!("cannot remove the old socket {}: {error}", path.display()),
                    "remove it yourself",
                )
            })
        }
        Ok(_) => Err(refused(
            format!("another process listens on {}", path.display()),
            format!("find it with `ss -xlp src {}`, or name another socket", path.display()),
        )),
        Err(error) => Err(refused(
            format!("{} is there and cannot be asked: {error}", path.display()),
            "run as the user that made it, or name another socket",
        )),
    }
}

/// How soon a rotation that another process began is noticed: one small file is read.
const BUNDLE_POLL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places() {
        let counts = Arc::new(Counts { open: Mutex::default(), connections_max: 6 });
        let mine: Vec<_> = (0..3).map(|_| Counts::take(&counts, 1).unwrap()).collect();
        assert!(Counts::take(&counts, 1).is_none());
        let theirs: Vec<_> = (0..3).map(|n| Counts::take(&counts, 2 + n).unwrap()).collect();
        assert!(Counts::take(&counts, 9).is_none(), "all are taken");
        drop(mine);
        assert!(Counts::take(&counts, 1).is_some());
        drop(theirs);
        assert!(counts.open.lock().unwrap().is_empty(), "nothing stays behind");
    }
}
