//! The start, in the order in which things can fail: addresses, names, access log, shards. Called by `Proxy::start`, the
//! first part on the caller's thread, the second on the control thread. When it fails nothing is left running.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::canary::Canaries;
use super::collector::{self, Ending, Target};
use super::discovery::{Discovery, Pace};
use super::identity::{Keyring, TlsSettings};
use super::listen::{self, Bound};
use super::log_writer::{self, LogWriter};
use super::machine::{Machine, Placement};
use super::probe::{self, Prober};
use super::run::{COMMANDS_MAX, Command, Control, Ended, NO_RUNTIME, SOON, give_out};
use super::signal::Signals;
use super::state::{Live, Place, State};
use super::watch::Watch;
use super::{Spawn, Start, StartError, admin, doctor, machine};
use crate::config::{Compiled, Settings};
use crate::shard::link::{Link, Order};
use crate::shard::{Plan, RuntimeChoice};
use crate::snapshot::Listener;

/// How long shards may take to accept. They need some milliseconds; a machine that swaps needs more.
const START_MAX: Duration = Duration::from_secs(10);
/// How long names may take at the start and at a reload; services whose names are not known by then wait for them.
pub(super) const NAMES_WAIT: Duration = Duration::from_secs(2);
/// How long the first identity may take at the start and at a reload; afterwards it is waited for while running.
pub(super) const IDENTITY_WAIT: Duration = Duration::from_secs(2);
/// How long sending the last spans may take at the end: with `timeouts.drain` within the 30 s that Kubernetes gives.
const SPANS_WAIT: Duration = Duration::from_secs(3);
/// Whether HTTP/2 is offered by ALPN.
const HTTP2: bool = true;

/// All that is needed to run, with nothing running yet.
pub(super) struct Prepared {
    start: Start,
    compiled: Compiled,
    watch: Watch,
    cpus: Vec<Option<usize>>,
    bound: Vec<Bound>,
    admin: Option<TcpListener>,
    links: Vec<(Arc<Link>, UnixStream)>,
}

/// Binds every socket.
///
/// # Errors
/// When one cannot be bound, or the machine has not what the configuration asks for.
pub(super) fn prepare(start: Start, compiled: Compiled, watch: Watch) -> Result<Prepared, StartError> {
    let placement = machine::shards_for(&compiled.settings.shards);
    let Placement { cpus, warning } = placement.map_err(|error| StartError::Machine(error.to_string()))?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    let bind = |listener: &Listener| listen::bind(listener, cpus.len()).map_err(StartError::Bind);
    let bound = compiled.listeners().map(bind).collect::<Result<Vec<_>, _>>()?;
    let admin = compiled.settings.admin.map(listen::bind_admin).transpose().map_err(StartError::Bind)?;
    // Ceilings come with the first snapshot.
    let together = Arc::default();
    let links = (0..cpus.len())
        .map(|shard| Link::among(u16::try_from(shard).unwrap_or(u16::MAX), &together))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| StartError::Runtime { what: "make the links to the shards".into(), error })?;
    Ok(Prepared { start, compiled, watch, cpus, bound, admin, links })
}

type Started = Result<(Arc<State>, mpsc::Sender<Command>), StartError>;

/// The control thread: starts the shards, says so (or why not) through `told`, and runs until the proxy has ended.
pub(super) fn thread(prepared: Prepared, told: &SyncSender<Started>) -> Ended {
    let failed = |error| {
        let _ = told.send(Err(error));
        Ended::Failed
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return failed(StartError::Runtime { what: "build the control thread's runtime".into(), error });
        }
    };
    let ended = runtime.block_on(async {
        match Control::start(prepared).await {
            Ok((control, commands, spans)) => {
                let state = Arc::clone(&control.state);
                let _ = told.send(Ok((Arc::clone(&state), commands)));
                let ended = Box::pin(control.run()).await;
                // Told twice to end means at once.
                let most = if ended == Ended::Stopped { Duration::ZERO } else { SPANS_WAIT };
                spans.finish(most).await;
                if let Some(log) = state.log().as_mut() {
                    log.finish();
                }
                ended
            }
            Err(error) => failed(error),
        }
    });
    // Not waited for: a lookup that blocks must not keep a process that is done.
    runtime.shutdown_background();
    ended
}

impl Control {
    async fn start(prepared: Prepared) -> Result<(Self, mpsc::Sender<Command>, Ending), StartError> {
        let Prepared { start, compiled, watch, cpus, bound, admin, links } = prepared;
        let runtime = |what: &str| {
            let what = what.to_owned();
            move |error| StartError::Runtime { what, error }
        };
        let signals = if start.signals {
            Signals::take().map_err(runtime("take over signals"))?
        } else {
            Signals::none()
        };
        let mut discovery = Discovery::new(start.name_servers, Pace::default());
        discovery.configure(compiled.names_of_services(), NAMES_WAIT).await;
        let mut keyring = Keyring::new(HTTP2);
        let certificates = keyring
            .prepare(&TlsSettings::of(&compiled))
            .map_err(|error| StartError::Machine(format!("{error}\n  help: {}", error.remedy)))?;
        keyring.adopt(certificates, IDENTITY_WAIT).await;
        let mut snapshot = compiled.snapshot(1, &|name, port| discovery.addresses(name, port));
        let presented = keyring.presented();
        snapshot.present(&presented);
        let target = Target::of(&compiled, &presented, snapshot.identity.as_ref());
        let mut canaries = Canaries::default();
        canaries.configure(compiled.canaries());
        canaries.apply(&mut snapshot);
        let snapshot = Arc::new(snapshot);

        let (links, doorbells): (Vec<_>, Vec<_>) = links.into_iter().unzip();
        let settings = compiled.settings.clone();
        let log = match &settings.access_log {
            Some(log) => {
                let what = format!("open the access log {}", log_writer::shown(&log.path));
                Some(LogWriter::start(log.path.clone(), links.clone()).map_err(runtime(&what))?)
            }
            None => None,
        };
        let listeners = bound.iter().map(Place::from).collect();
        let live = Live {
            compiled: Arc::new(compiled),
            snapshot: Arc::clone(&snapshot),
            listeners,
            reloads_good: 0,
            reloads_bad: 0,
            refused: None,
            refused_before: false,
            at_start: settings.clone(),
            waiting: Vec::new(),
        };
        let admin_address = admin.as_ref().and_then(|a| a.local_addr().ok());
        let state =
            Arc::new(State::new(links, cpus, live, log, admin_address, discovery.counts(), keyring.status()));
        *state.canaries() = canaries;
        // Before the first request: who waits for its first probe is marked so.
        let (probes, plan) = watch::channel(probe::Plan::of(&snapshot));
        let prober = Prober::new(plan);
        for link in &state.links {
            link.publish(Arc::clone(&snapshot));
        }
        give_out(&state, bound).await;
        let shards = spawn(&state, doorbells, start.spawn, &settings)?;
        let collector = collector::start(state.links.clone(), &state.spans, target);
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let control = Self {
            state,
            source: start.source,
            env: start.env,
            log_to: settings.access_log.as_ref().map(|log| log.path.clone()),
            settings,
            discovery,
            keyring,
            watch,
            signals,
            commands,
            shards,
            drain_began: None,
            deadline: None,
            cut: None,
            ticks: 0,
            probes,
            collector: collector.target,
        };
        tokio::spawn(prober.run());
        control.until_accepting().await?;
        if let Some(listener) = admin {
            tokio::spawn(admin::serve(listener, Arc::clone(&control.state), sender.clone()));
        }
        control.say_where();
        Ok((control, sender, collector.ending))
    }

    async fn until_accepting(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + START_MAX;
        let accepts = |link: &Arc<Link>| link.vitals.accepting.load(Ordering::Acquire) != 0;
        while !self.state.links.iter().all(accepts) {
            self.take_notices();
            let ended = self.shards.iter().position(JoinHandle::is_finished);
            let late = Instant::now() >= deadline;
            if ended.is_some() || late {
                let (what, error) = match ended {
                    // Once more: its last word may have come after the look above.
                    Some(shard) => {
                        self.take_notices();
                        self.why_ended(shard)
                    }
                    None => ("start the shards".to_owned(), "one does not accept after 10 s".to_owned()),
                };
                stop(&self.state);
                return Err(StartError::Runtime { what, error: io::Error::other(error) });
            }
            sleep(SOON).await;
        }
        self.take_notices();
        Ok(())
    }

    /// What could not be done, and why.
    fn why_ended(&self, shard: usize) -> (String, String) {
        let store = self.state.store();
        let runtime = store.shards().get(shard).and_then(|shard| shard.runtime.as_ref());
        let Some((_, refused)) = runtime.filter(|(used, _)| *used == NO_RUNTIME) else {
            return (format!("start shard {shard}"), "its thread ended; the log above says why".to_owned());
        };
        let remedy = match self.settings.runtime {
            RuntimeChoice::IoUring => {
                let ring = doctor::ring_remedy(&Machine::look());
                format!("{ring}; or write runtime = \"auto\", which uses epoll where io_uring is refused")
            }
            RuntimeChoice::Auto | RuntimeChoice::Epoll => {
                "are the limits of open files and of memory reached? see `ringmesh doctor`".to_owned()
            }
        };
        (format!("build a runtime for shard {shard}"), format!("{refused}\n  help: {remedy}"))
    }

    fn say_where(&self) {
        let shards = self.state.links.len();
        for place in &self.state.live().listeners {
            tracing::info!(listener = %place.name, address = %place.address, shards, "listening");
        }
        if let Some(address) = self.state.admin {
            tracing::info!(%address, "admin");
        }
        let names = self.discovery.unresolved().count();
        if let Some(reason) = self.state.identity_missing() {
            // It ends with the line that says which identity is in use.
            tracing::warn!(%reason, "started, but not ready");
        } else if names > 0 {
            tracing::warn!(names, "ready, but some names are not resolved yet");
        } else {
            tracing::info!("ready");
        }
    }
}

impl From<&Bound> for Place {
    fn from(bound: &Bound) -> Self {
        Self { name: Arc::clone(&bound.name), configured: bound.configured, address: bound.address }
    }
}

/// Starts all shards, or none.
fn spawn(
    state: &State,
    doorbells: Vec<UnixStream>,
    spawn: Spawn,
    settings: &Settings,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let mut shards = Vec::with_capacity(doorbells.len());
    for ((link, doorbell), cpu) in state.links.iter().zip(doorbells).zip(&state.cpus) {
        let plan = Plan {
            shard: link.shard,
            cpu: *cpu,
            link: Arc::clone(link),
            doorbell,
            stall_threshold: settings.stall_threshold,
            age_min: Plan::AGE_MIN,
            runtime: settings.runtime,
        };
        match spawn(plan) {
            Ok(thread) => shards.push(thread),
            Err(error) => {
                stop(state);
                return Err(StartError::Runtime { what: format!("start shard {}", link.shard), error });
            }
        }
    }
    Ok(shards)
}

/// Tells the shards that have started to end.
fn stop(state: &State) {
    for link in &state.links {
        let _ = link.order(Order::Drain);
    }
}
