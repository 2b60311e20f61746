//! The control loop: everything that changes while the proxy runs, one thing after the other. Started by `start`; the
//! admin pages and the owner of the `Proxy` talk to it through `Command`s.
//!
//! Life: serving → draining → ended. Once a second it takes in what the shards have measured. A reload or a change of
//! addresses compiles a snapshot and publishes it (`reload`); what cannot be applied is refused before anything is changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, sleep};

use super::Source;
use super::canary;
use super::collector::Target;
use super::discovery::Discovery;
use super::doctor;
use super::identity::Keyring;
use super::listen::Bound;
use super::log_writer::LogWriter;
use super::machine::Machine;
use super::memory::Memory;
use super::probe::Plan;
use super::reload::ReloadError;
use super::signal::{self, Action, Phase, Signals};
use super::state::State;
use super::watch::Watch;
use crate::config::{Destination, Settings};
use crate::failure::Stage;
use crate::shard::link::{Link, Notice, Order};

/// What the loop is told.
pub(super) enum Command {
    /// Take a new configuration: this text, or what the source says now.
    Reload {
        /// `None`: read the source again.
        text: Option<String>,
        /// Told what became of it.
        reply: Reply,
    },
    /// Tell a canary what to do.
    Canary {
        /// Which one.
        name: String,
        /// What.
        order: canary::Order,
        /// Told where it stands now, or why it cannot be.
        reply: tokio::sync::oneshot::Sender<Result<String, String>>,
    },
    /// Drain, then end.
    Drain,
    /// End at once.
    Stop,
}

/// Told the generation that is in use now, or why it was refused.
pub(super) type Reply = Box<dyn FnOnce(Result<u64, ReloadError>) + Send>;

/// How a proxy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything in flight was finished.
    Drained,
    /// `timeouts.drain` ran out with so many connections open.
    DrainTimeout {
        /// Downstream connections that were cut.
        connections: u64,
    },
    /// Told to end at once: a second SIGTERM, or [`super::Proxy::stop`].
    Stopped,
    /// All shards ended without being told to, or control panicked.
    Failed,
}

impl Ended {
    /// 0 after a drain (its timeout is the operator's own choice), 1 otherwise.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Drained | Self::DrainTimeout { .. } => 0,
            Self::Stopped | Self::Failed => 1,
        }
    }
}

/// Commands waiting; further ones are refused as busy.
pub(super) const COMMANDS_MAX: usize = 16;
/// How long a shard may take to run a new snapshot before the reload is reported as done anyway.
pub(super) const APPLY_MAX: Duration = Duration::from_secs(2);
/// Between two looks at what is soon to happen (a shard accepts, or applies).
pub(super) const SOON: Duration = Duration::from_millis(1);
/// Between two looks whether the shards have drained.
const DRAIN_PACE: Duration = Duration::from_millis(5);
/// How long shards may take to cut and record what a drain has left. A wait ends within 100 ms; a connection that is just
/// being made has up to its timeout.
const CUT_MAX: Duration = Duration::from_secs(1);
/// The runtime of a shard that could not have any.
pub(super) const NO_RUNTIME: &str = "none";
/// Between two rounds of merging.
const TICK: Duration = Duration::from_secs(1);
/// Shards hand over once a second since their start. Were it time for both at the same moment, a second would now and
/// then be merged into the next, and the last one be shown as empty.
const MERGE_AFTER: Duration = Duration::from_millis(1_250);

pub(super) struct Control {
    pub(super) state: Arc<State>,
    pub(super) source: Source,
    pub(super) env: super::Env,
    /// As they were at the start: what a restart would change.
    pub(super) settings: Settings,
    /// Where the access log is written now.
    pub(super) log_to: Option<Destination>,
    pub(super) discovery: Discovery,
    pub(super) keyring: Keyring,
    pub(super) watch: Watch,
    pub(super) signals: Signals,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) shards: Vec<JoinHandle<()>>,
    /// Draining since then.
    pub(super) drain_began: Option<Instant>,
    /// Draining until then.
    pub(super) deadline: Option<tokio::time::Instant>,
    /// When the deadline had come and what was open was cut: until when that may take, and how many connections it was.
    pub(super) cut: Option<(tokio::time::Instant, u64)>,
    /// Ticks since a configuration was read.
    pub(super) ticks: u32,
    /// What is to be probed.
    pub(super) probes: watch::Sender<Plan>,
    /// Where spans go.
    pub(super) collector: watch::Sender<Option<Target>>,
}

impl Control {
    /// Runs until the proxy has ended.
    pub(super) async fn run(mut self) -> Ended {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + MERGE_AFTER, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut memory = Memory::new();
        loop {
            let serving = self.deadline.is_none();
            tokio::select! {
                told = self.signals.next() => {
                    let phase = self.drain_began.map_or(Phase::Serving, |at| Phase::Draining(at.elapsed()));
                    match signal::act(phase, told) {
                        Action::Drain => self.drain().await,
                        Action::EndNow => {
                            tracing::warn!("told to stop twice; what is in flight is cut");
                            return Ended::Stopped;
                        }
                        Action::Reload => {
                            tracing::info!("SIGHUP: reading the configuration again");
                            let _ = self.reload(None).await;
                        }
                        Action::Reopen => self.state.log().iter().for_each(LogWriter::reopen),
                        Action::Nothing => {}
                    }
                }
                Some(command) = self.commands.recv() => match command {
                    Command::Reload { text, reply } if serving => reply(self.reload(text).await),
                    Command::Reload { reply, .. } => reply(Err(ReloadError::Busy)),
                    Command::Canary { name, order, reply } => {
                        // Whoever asked may have gone.
                        let _ = reply.send(self.order_canary(&name, order));
                    }
                    Command::Drain if serving => self.drain().await,
                    Command::Drain => {}
                    Command::Stop => return Ended::Stopped,
                },
                _ = tick.tick() => {
                    self.merge();
                    self.conduct();
                    self.give_back();
                    if self.all_lost() {
                        return Ended::Failed;
                    }
                }
                () = memory.due() => memory.look(&self.state),
                () = self.watch.changed(), if serving => {
                    tracing::info!("configuration file has changed");
                    let _ = self.reload(None).await;
                }
                () = self.discovery.changed(), if serving => self.republish("addresses in use"),
                // Also while draining: what is open may still call, and calls present the certificate.
                () = self.keyring.changed() => self.republish("certificates in use"),
                () = sleep(DRAIN_PACE), if !serving => {
                    if let Some(ended) = self.drained().await {
                        self.merge();
                        return ended;
                    }
                }
            }
        }
    }

    /// Takes in what the shards have left for control.
    fn merge(&self) {
        let now = Instant::now();
        let mut store = self.state.store();
        for link in &self.state.links {
            // A shard hands over once a second; what it adds meanwhile is for the next round.
            for _ in 0..link.intervals.len() {
                let Some(mut interval) = link.intervals.pop() else { break };
                store.merge(&mut interval, now);
                // Full: the shard has enough of them.
                let _ = link.spent.push(interval);
            }
            while link.retired.pop().is_some() {}
        }
        store.tick(now);
        drop(store);
        self.take_notices();
        for (n, thread) in self.shards.iter().enumerate().filter(|(_, t)| t.is_finished()) {
            let told = self.deadline.is_some();
            let known = self.state.lost.get(n).is_none_or(|l| l.swap(true, Ordering::AcqRel));
            if !told && !known {
                let name = thread.thread().name().unwrap_or_default().to_owned();
                tracing::error!(shard = n, name, "shard has ended; not ready any more: restart the process");
            }
        }
    }

    /// Lets a second pass for the canaries, and publishes the shares that have changed.
    fn conduct(&self) {
        let changed = {
            // The store first, as the pages do.
            let store = self.state.store();
            self.state.canaries().pass(&store)
        };
        if changed {
            self.republish("shares of a canary in use");
        }
    }

    /// Tells a canary what to do.
    fn order_canary(&self, name: &str, order: canary::Order) -> Result<String, String> {
        let (changed, said) = self.state.canaries().order(name, order)?;
        if changed {
            self.republish("shares of a canary in use");
        }
        Ok(said)
    }

    /// Logs what the shards have to say.
    pub(super) fn take_notices(&self) {
        for link in &self.state.links {
            let shard = link.shard;
            while let Some(notice) = link.notices.pop() {
                match notice {
                    Notice::Panic { cause } => {
                        tracing::error!(
                            shard,
                            cause,
                            "a connection's task panicked and was closed; please report this"
                        );
                    }
                    Notice::Stall { held_ns } => {
                        let held = Duration::from_nanos(held_ns);
                        tracing::warn!(
                            shard,
                            ?held,
                            "a task kept the shard; others waited: is the CPU shared or throttled?"
                        );
                    }
                    Notice::Runtime { used, refused, cost } => {
                        let used_or_none = used.unwrap_or(NO_RUNTIME);
                        let first = self.state.store().set_runtime(shard, used_or_none, refused.clone());
                        // Once for all shards: they meet the same kernel. A shard without any stops the start, which says why.
                        if let (Some(used), true) = (used, first) {
                            say_runtime(used, &refused, cost);
                        }
                    }
                    Notice::Accept { listener, error } => {
                        tracing::error!(shard, %listener, error, "cannot accept: is the limit of open files reached?");
                    }
                    Notice::Handshake { failure, peer, words } => {
                        let what = match failure.stage {
                            Stage::Handshake => "a TLS handshake failed",
                            _ => "a connection was given up",
                        };
                        tracing::warn!(shard, peer, %failure, reason = words, "{what}");
                    }
                    Notice::Revoked { cause, connections, one } => {
                        tracing::warn!(
                            shard,
                            connections,
                            cause = cause.label(),
                            one_of_them = one,
                            "open connections were closed: they are not allowed any more"
                        );
                    }
                    Notice::Breaker { service, endpoint, ejected } => {
                        let endpoint = endpoint.map_or_else(String::new, |address| address.to_string());
                        match ejected {
                            Some((reason, length_ns)) => tracing::warn!(
                                shard,
                                %service,
                                endpoint,
                                reason = reason.label(),
                                for_ms = length_ns / 1_000_000,
                                "an endpoint is passed over"
                            ),
                            None => tracing::info!(shard, %service, endpoint, "an endpoint is used again"),
                        }
                    }
                    Notice::Failed { what } => {
                        tracing::error!(shard, what, "an order could not be carried out")
                    }
                }
            }
        }
    }

    /// Some seconds after a configuration was read, has the allocator return what reading took: it does so when a page
    /// is taken or freed after a second's delay, and an idle control thread does neither. Ten thousand services: 94 MB
    /// resident before, 30 after.
    fn give_back(&mut self) {
        self.ticks = self.ticks.saturating_add(1);
        if (3..6).contains(&self.ticks) {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        }
    }

    fn all_lost(&self) -> bool {
        self.deadline.is_none() && self.state.lost.iter().all(|l| l.load(Ordering::Acquire))
    }

    async fn drain(&mut self) {
        self.state.draining.store(true, Ordering::Release);
        self.state.drain_begins.notify_waiters();
        let timeout = self.state.live().snapshot.timeouts.drain;
        self.drain_began = Some(Instant::now());
        self.deadline = Some(tokio::time::Instant::now() + timeout);
        tracing::info!(?timeout, "draining");
        for link in &self.state.links {
            order(link, Order::Drain).await;
        }
    }

    /// How it ended, if it has. When the time is up, the shards are told to cut what is open, and given a moment for it:
    /// what is cut is counted and has its line in the access log.
    async fn drained(&mut self) -> Option<Ended> {
        let ended = |(link, thread): (&Arc<Link>, &JoinHandle<()>)| {
            link.vitals.ended.load(Ordering::Acquire) != 0 || thread.is_finished()
        };
        if self.state.links.iter().zip(&self.shards).all(ended) {
            return Some(match self.cut {
                Some((_, connections)) => Ended::DrainTimeout { connections },
                None => {
                    tracing::info!("drained");
                    Ended::Drained
                }
            });
        }
        if let Some((until, connections)) = self.cut {
            let over = tokio::time::Instant::now() >= until;
            return over.then_some(Ended::DrainTimeout { connections });
        }
        if self.deadline.is_some_and(|d| tokio::time::Instant::now() >= d) {
            let open = |link: &Arc<Link>| link.vitals.downstream_open.load(Ordering::Relaxed);
            let connections = self.state.links.iter().map(open).sum();
            tracing::warn!(
                connections,
                "timeouts.drain ran out; connections are cut: raise it if they were wanted"
            );
            self.cut = Some((tokio::time::Instant::now() + CUT_MAX, connections));
            for link in &self.state.links {
                order(link, Order::Cut).await;
            }
        }
        None
    }
}

fn say_runtime(used: &str, refused: &str, cost: &str) {
    if refused.is_empty() {
        return tracing::info!(used, cost, "runtime, as configured");
    }
    let remedy = doctor::ring_remedy(&Machine::look());
    tracing::warn!(used, refused, cost, "the kernel refused a faster runtime: {remedy}");
}

/// Gives each shard its socket of each listener.
pub(super) async fn give_out(state: &State, bound: Vec<Bound>) {
    for Bound { name, sockets, .. } in bound {
        for (link, socket) in state.links.iter().zip(sockets) {
            order(link, Order::Listen(Arc::clone(&name), socket)).await;
        }
    }
}

/// Gives an order, waiting for room in the queue. A shard that takes none for two seconds is stuck or gone.
pub(super) async fn order(link: &Link, order: Order) {
    let deadline = Instant::now() + APPLY_MAX;
    let mut waiting = order;
    while let Err(back) = link.order(waiting) {
        if Instant::now() >= deadline {
            tracing::error!(shard = link.shard, order = ?back, "shard takes no orders; something keeps its thread");
            return;
        }
        waiting = back;
        sleep(SOON).await;
    }
}
