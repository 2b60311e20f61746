//! The one ordinary thread: sources, compile, publish, admin, export. May block, lock and allocate; never on the path.
//!
//! [`Proxy::start`] reads the configuration, binds every socket, then starts the control thread, which starts the
//! shards and returns when all of them accept. `main` and the demo own a `Proxy`; so do tests, in their own process.
//! Everything that can fail at the start fails before the first connection is accepted.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "control may lock and look at the clock; where that matters for tests, `now` is an argument"
)]

mod admin;
pub mod authority;
pub mod canary;
mod caps;
mod collector;
mod discovery;
pub mod doctor;
mod endpoints;
pub mod explain;
mod export;
mod health;
pub mod identity;
mod latency;
mod listen;
mod log;
mod log_writer;
pub mod machine;
mod memory;
mod pages;
mod probe;
mod quotas;
mod reload;
mod run;
mod signal;
mod start;
mod state;
mod store;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::config::{self, Look, Report};
use crate::shard;
use crate::shard::link::Link;

pub use listen::BindError;
pub use log::log;
pub use reload::ReloadError;
pub use run::Ended;

/// How a proxy is started.
pub struct Start {
    /// Where the configuration comes from.
    pub source: Source,
    /// Whether SIGTERM, SIGINT, SIGHUP and SIGUSR1 of the process are this proxy's. One proxy in a process at most.
    pub signals: bool,
    /// Whether changes of the files are noticed by themselves.
    pub watch: bool,
    /// What `${NAME}` in the configuration stands for.
    pub env: Env,
    /// Starts a shard; tests put their own in place of [`shard::spawn`].
    pub spawn: Spawn,
    /// Name servers to ask in place of the system's; empty: /etc/resolv.conf and /etc/hosts.
    pub name_servers: Vec<SocketAddr>,
}

/// Looks up a variable of the environment.
pub type Env = fn(&str) -> Option<String>;

/// A configuration that is being read.
type Loading = oneshot::Receiver<Result<config::Loaded, Report>>;

/// Starts a shard's thread.
pub type Spawn = fn(shard::Plan) -> io::Result<JoinHandle<()>>;

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files, read together, and again at each reload.
    Files(Vec<PathBuf>),
    /// A text in memory, replaced by [`Proxy::reload`].
    Text {
        /// What reports call it.
        name: String,
        /// TOML.
        text: String,
    },
}

/// Why a proxy could not be started. `Display` says what to do about it.
#[derive(Debug)]
pub enum StartError {
    /// The configuration has errors: all of them.
    Config(Report),
    /// The configuration is right, but not for this machine.
    Machine(String),
    /// An address cannot be listened on.
    Bind(BindError),
    /// Something else that the operating system refused.
    Runtime {
        /// What was being done.
        what: String,
        /// What was answered.
        error: io::Error,
    },
}

/// A running proxy. Dropping it drains it and does not wait; [`Proxy::join`] waits.
pub struct Proxy {
    state: Arc<state::State>,
    commands: mpsc::Sender<run::Command>,
    thread: Option<JoinHandle<Ended>>,
}

impl Start {
    /// As `ringmesh run` starts: files, watched; signals; the real shards.
    pub fn files(paths: Vec<PathBuf>) -> Self {
        Self { signals: true, watch: true, ..Self::of(Source::Files(paths)) }
    }

    /// Inside another program: a text, no signals, the real shards.
    pub fn text(text: impl Into<String>) -> Self {
        Self::of(Source::Text { name: "configuration".into(), text: text.into() })
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            signals: false,
            watch: false,
            env: config::process_environment,
            spawn: shard::spawn,
            name_servers: Vec::new(),
        }
    }
}

impl Proxy {
    /// Starts a proxy; returns when every shard accepts on every listener.
    ///
    /// # Errors
    /// When the configuration has errors, an address cannot be bound, or a shard cannot be started. Nothing is left
    /// running then.
    pub fn start(start: Start) -> Result<Self, StartError> {
        // Before the files are read, or a change in between would be missed.
        let watched = match &start.source {
            Source::Files(files) if start.watch => files.clone(),
            _ => Vec::new(),
        };
        let watch = watch::Watch::new(watched);
        let loading = start.source.load(start.env).map_err(|error| StartError::Runtime {
            what: "start a thread to read the configuration".into(),
            error,
        })?;
        let loaded = match loading.blocking_recv() {
            Ok(loaded) => loaded.map_err(StartError::Config)?,
            Err(_) => {
                let error = io::Error::other("reading it panicked; please report this with the log above");
                return Err(StartError::Runtime { what: "read the configuration".into(), error });
            }
        };
        if !loaded.warnings.is_empty() {
            tracing::warn!("configuration has warnings\n{}", loaded.warnings);
        }
        let prepared = start::prepare(start, loaded.compiled, watch)?;

        // The thread says what became of it once; the channel holds that one word.
        let (told, word) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("ringmesh-control".into())
            .spawn(move || start::thread(prepared, &told))
            .map_err(|error| StartError::Runtime { what: "start the control thread".into(), error })?;
        match word.recv() {
            Ok(Ok((state, commands))) => Ok(Self { state, commands, thread: Some(thread) }),
            Ok(Err(error)) => {
                let _ = thread.join();
                Err(error)
            }
            Err(_) => Err(StartError::Runtime {
                what: "start".into(),
                error: io::Error::other("the control thread panicked; please report this with the log above"),
            }),
        }
    }

    /// The address that a listener is bound to: with port 0 in the configuration, the one that the kernel chose.
    pub fn listener(&self, name: &str) -> Option<SocketAddr> {
        self.state.live().listeners.iter().find(|p| &*p.name == name).map(|p| p.address)
    }

    /// The admin address; `None` when it is off.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.state.admin
    }

    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.state.links.len()
    }

    /// The links to the shards, for tests and measurements.
    pub fn links(&self) -> &[Arc<Link>] {
        &self.state.links
    }

    /// Puts a configuration into effect; returns its generation when all shards run it.
    ///
    /// # Errors
    /// When the text has errors or a new listener cannot be bound. Nothing has changed then.
    pub fn reload(&self, text: &str) -> Result<u64, ReloadError> {
        self.ask_reload(Some(text.to_owned()))
    }

    /// Reads the files again, as on SIGHUP.
    ///
    /// # Errors
    /// As [`Proxy::reload`].
    pub fn reload_source(&self) -> Result<u64, ReloadError> {
        self.ask_reload(None)
    }

    /// Starts draining: not ready, no new connections, what is in flight is finished. Use [`Proxy::join`] to wait.
    pub fn drain(&self) {
        // Full only while many reloads wait; closed when the thread has ended already.
        let _ = self.commands.try_send(run::Command::Drain);
    }

    /// Drains when `wait` returns. It is called on a thread of its own, for which the end of the process does not wait.
    ///
    /// # Errors
    /// When that thread cannot be made.
    pub fn drain_after(&self, wait: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let commands = self.commands.clone();
        std::thread::Builder::new().name("ringmesh-until".into()).spawn(move || {
            wait();
            // Closed when the proxy has ended meanwhile.
            let _ = commands.blocking_send(run::Command::Drain);
        })?;
        Ok(())
    }

    /// Ends at once: what is in flight is lost. Shards' threads live until the process ends.
    pub fn stop(&self) {
        let _ = self.commands.try_send(run::Command::Stop);
    }

    /// Waits until the proxy has ended, by [`Proxy::drain`] or by a signal.
    pub fn join(mut self) -> Ended {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            // Its panic has been printed.
            Some(Err(_)) | None => Ended::Failed,
        }
    }

    fn ask_reload(&self, text: Option<String>) -> Result<u64, ReloadError> {
        let (reply, answer) = sync_channel(1);
        let reply = Box::new(move |result| {
            let _ = reply.send(result);
        });
        self.commands.try_send(run::Command::Reload { text, reply }).map_err(|_| ReloadError::Busy)?;
        answer.recv().unwrap_or(Err(ReloadError::Busy))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.drain();
        }
    }
}

impl Source {
    /// Reads and checks, on a thread that ends with it: what reading took (some 50 MB for ten thousand services) goes
    /// back to the system, and control goes on answering meanwhile.
    fn load(&self, env: Env) -> io::Result<Loading> {
        let (told, loading) = oneshot::channel();
        let source = self.clone();
        std::thread::Builder::new().name("ringmesh-load".into()).spawn(move || {
            let loaded = match &source {
                Self::Files(paths) => config::load(paths, &env),
                Self::Text { name, text } => config::parse(name, text, &env),
            };
            drop(source);
            // Whoever asked may have gone.
            let _ = told.send(loaded);
        })?;
        Ok(loading)
    }
}

impl StartError {
    /// As `Display`, drawn for where it is shown.
    pub fn render(&self, look: Look) -> String {
        match self {
            Self::Config(report) => report.render(look),
            other => other.to_string(),
        }
    }

    /// The last line: what came of it all.
    pub fn conclusion(&self) -> String {
        match self {
            Self::Config(report) => {
                let errors = report.errors();
                let plural = if errors == 1 { "" } else { "s" };
                format!("not started: {errors} error{plural} in the configuration")
            }
            Self::Machine(_) | Self::Bind(_) | Self::Runtime { .. } => "not started".to_owned(),
        }
    }

    /// 2 when the configuration is at fault, 1 when the machine is.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Machine(_) => 2,
            Self::Bind(_) | Self::Runtime { .. } => 1,
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(report) => report.fmt(f),
            Self::Machine(problem) => f.write_str(problem),
            Self::Bind(error) => error.fmt(f),
            Self::Runtime { what, error } => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod testing;

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
