//! What a shard owns, and how a snapshot is applied to it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::blocks;
use super::buffers::Buffers;
use super::clock::{Clock, ns};
use super::cohort::Cohort;
use super::link::{Link, Notice};
use super::live::{self, Live};
use super::pressure::{Pressure, Since};
use super::watched::Watch;
use crate::failure::Failure;
use crate::io::sealed;
use crate::io::timed::Deadlines;
use crate::snapshot::Snapshot;
use crate::telemetry::access::AccessLog;
use crate::telemetry::recorder::{NO_SERVICE_SLOT, Recorder};
use crate::telemetry::routes::RouteSlot;
use crate::telemetry::spans::Spans;
use crate::telemetry::{CONNECTION_FAILURES_MAX, FLOODS, ShardTotals};
use crate::upstream::limiter::Doors;
use crate::upstream::pool::Tally;
use crate::upstream::service::Service;

/// Everything that a shard's tasks share. `Cell`s and `RefCell`s, borrowed for single statements, never over an await.
pub struct Shard {
    /// The connection to control.
    pub link: Arc<Link>,
    /// Time.
    pub clock: Rc<Clock>,
    /// Deadlines of all connections.
    pub deadlines: Rc<Deadlines>,
    /// I/O buffers.
    pub buffers: Buffers,
    /// Counts and latencies.
    pub recorder: RefCell<Recorder>,
    /// Access log lines.
    pub access_log: RefCell<AccessLog>,
    /// Its spans.
    pub spans: RefCell<Spans>,
    /// Upstream connections.
    pub tally: Rc<Tally>,
    /// Connections that are looked after.
    pub watch: Watch,
    /// Who stands aside for others that are ready.
    pub cohort: Rc<Cohort>,
    /// Connections that end when they are not allowed any more.
    pub live: Rc<Live>,
    /// What the shard counts of itself.
    pub totals: Totals,
    /// How I/O by HTTP/2 goes, of which exchanges see nothing.
    pub gathered: Gathered,
    pub(super) stall_threshold_ns: u64,
    /// How long a connection of the mesh is kept at least, whatever the ends of leaves say.
    pub(super) age_min: Duration,
    /// When control was last told of each kind of failed handshake.
    told: RefCell<Vec<(Failure, u64)>>,
    rng: RefCell<fastrand::Rng>,
    view: RefCell<Rc<View>>,
    /// Services that are gone from the configuration but may have exchanges in flight.
    vanished: RefCell<Vec<Rc<Service>>>,
    /// Who waits for a place at a service.
    pub(super) doors: Rc<Doors>,
    draining: Cell<bool>,
    /// The pressure that was last acted upon.
    pub(super) relieved: Cell<Pressure>,
    /// What was held when control last looked at the process's memory.
    pub(super) since: Cell<Since>,
}

/// An exchange to which something is done on purpose, until it is dropped.
pub struct Faulty(Rc<Shard>);

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.0.link.together.faults.give_back();
    }
}

/// A copy of a request in progress, until it is dropped.
pub struct Mirrored(Rc<Shard>);

impl Drop for Mirrored {
    fn drop(&mut self) {
        self.0.link.together.mirrored.give_back();
    }
}

/// When octets of HTTP/2 came and how long others took to leave, last: the turns of the loop are the same for all
/// connections. What the proxy itself takes of an exchange's time is told with these.
#[derive(Default)]
pub struct Gathered {
    /// When something was last read.
    pub arrived_at: Cell<u64>,
    /// From the first octet handed over until the write that took it was over, ns.
    pub departing_ns: Cell<u64>,
}

/// A snapshot, and what this shard knows of its services. An exchange keeps the view that it began with.
pub struct View {
    /// What control gave.
    pub snapshot: Arc<Snapshot>,
    /// By the index in `snapshot.services`; made at the first exchange of each.
    pub(super) services: RefCell<InUse>,
    /// Where routes are counted, by their index; made at the first exchange.
    route_slots: OnceCell<Box<[Cell<RouteSlot>]>>,
    link: Arc<Link>,
}

/// Services by id. The ids are our own, so that no caller can make them collide.
type InUse = HashMap<u32, Rc<Service>, foldhash::fast::FixedState>;

/// What a shard counts of itself.
#[derive(Debug, Default)]
pub struct Totals {
    /// Open downstream connections.
    pub downstream_open: Cell<u64>,
    /// Accepted ones.
    pub downstream_accepted: Cell<u64>,
    /// Those over the limit.
    pub downstream_refused: Cell<u64>,
    /// Those closed at once because memory is short.
    pub memory_refused: Cell<u64>,
    /// Idle ones, of both sides, closed because memory is short.
    pub memory_closed: Cell<u64>,
    /// Buffers that wait for the first that a caller says.
    pub heads_awaited: Cell<u64>,
    /// Exchanges that wait for the first of their answer.
    pub answers_awaited: Cell<u64>,
    /// TLS handshakes with callers in progress.
    pub handshakes_open: Cell<u64>,
    /// TLS handshakes that succeeded, with callers and with services.
    pub tls_handshakes: Cell<u64>,
    /// Exchanges in progress.
    pub exchanges_open: Cell<u64>,
    /// Tunnels among them.
    pub tunnels_open: Cell<u64>,
    /// Exchanges replayed on another connection.
    pub replays: Cell<u64>,
    /// Tasks that kept the shard too long.
    pub stalls: Cell<u64>,
    /// The longest of them.
    pub stall_max_ns: Cell<u64>,
    /// HTTP/2 connections ended because of a flood, by `http::h2::watch::Flood`.
    pub floods: [Cell<u64>; FLOODS.len()],
    /// Panics caught.
    pub panics: Cell<u64>,
    notices_dropped: Cell<u64>,
}

impl Shard {
    /// A shard that has seen nothing, with its first snapshot.
    pub(super) fn new(
        link: Arc<Link>,
        stall_threshold: Duration,
        age_min: Duration,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        let clock = Rc::new(Clock::new());
        link.together.set(&snapshot.limits);
        Self {
            doors: Doors::new(Arc::<Link>::clone(&link), clock.origin()),
            clock,
            deadlines: Rc::default(),
            buffers: Buffers::default(),
            recorder: RefCell::default(),
            access_log: RefCell::default(),
            spans: RefCell::default(),
            tally: Rc::default(),
            watch: Watch::default(),
            cohort: Rc::default(),
            live: Rc::default(),
            totals: Totals::default(),
            gathered: Gathered::default(),
            told: RefCell::default(),
            stall_threshold_ns: ns(stall_threshold),
            age_min,
            rng: RefCell::new(fastrand::Rng::new()),
            view: RefCell::new(Rc::new(View::new(snapshot, Arc::clone(&link)))),
            vanished: RefCell::default(),
            draining: Cell::new(false),
            relieved: Cell::default(),
            since: Cell::default(),
            link,
        }
    }

    /// The view for a new exchange.
    pub fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// Puts a new snapshot in place: the next exchange sees it. Cannot fail. Services that stay keep pools and
    /// averages; the cost is that of the services in use, not of those configured. Whether open connections must be
    /// looked through, because it changes who may do what or whom this proxy trusts, and nobody is at it.
    #[must_use]
    pub(super) fn apply(&self, snapshot: Arc<Snapshot>) -> bool {
        let generation = snapshot.generation;
        let new = View::new(snapshot, Arc::clone(&self.link));
        let mut differs;
        {
            let old = self.view.borrow();
            let mut kept = new.services.borrow_mut();
            differs = live::judges_differently(&new.snapshot, &old.snapshot);
            for service in old.services.borrow().values() {
                match new.snapshot.service_named(&service.spec.name) {
                    Some(id) => {
                        let spec = &new.snapshot.services[id as usize];
                        let health = &new.snapshot.health[id as usize];
                        let same = Arc::ptr_eq(spec, &service.spec) || **spec == *service.spec;
                        differs |= !same && spec.tls != service.spec.tls;
                        let carried = if same && Arc::ptr_eq(health, &service.health) {
                            Rc::clone(service)
                        } else {
                            let (spec, health) = (Arc::clone(spec), Arc::clone(health));
                            let now = self.clock.now();
                            Rc::new(Service::carried_over(service, spec, health, &self.doors, now))
                        };
                        kept.insert(id, carried);
                    }
                    None => {
                        service.close_idle();
                        self.vanished.borrow_mut().push(Rc::clone(service));
                    }
                }
            }
        }
        self.link.together.set(&new.snapshot.limits);
        drop(self.view.replace(Rc::new(new)));
        self.link.vitals.generation.store(generation, Ordering::Release);
        differs && self.live.renew()
    }

    /// This shard's state of a service of a view.
    pub fn service(&self, view: &View, id: u32) -> Rc<Service> {
        if let Some(service) = view.services.borrow().get(&id) {
            return Rc::clone(service);
        }
        let spec = &view.snapshot.services[id as usize];
        let health = &view.snapshot.health[id as usize];
        let slot = self.recorder.borrow_mut().slot(&spec.name);
        let service = Service::new(Arc::clone(spec), Arc::clone(health), slot, &self.doors);
        let service = Rc::new(service);
        view.services.borrow_mut().insert(id, Rc::clone(&service));
        service
    }

    /// The shard's random numbers: for choices, not for secrets.
    pub fn rng<R>(&self, with: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        with(&mut self.rng.borrow_mut())
    }

    /// Closes connections at rest that other shards wait for.
    pub(super) fn yield_connections(&self) {
        if self.doors.berths.are_asked() {
            for service in self.view().services.borrow().values() {
                service.yield_connections();
            }
        }
    }

    /// Lets a connection of a caller in, unless the shards together have `connections_max` of them. Who was let in is to be let out.
    pub fn lets_in(&self) -> bool {
        self.link.together.callers.take()
    }

    /// One has ended.
    pub fn let_out(&self) {
        self.link.together.callers.give_back();
    }

    /// Offers a place for something done on purpose: of the `faults_max` that the shards together have. Where there was none and one was wanted,
    /// it is counted for that service.
    pub fn admit_fault(
        self: &Rc<Self>,
        view: &View,
        service: Option<u32>,
        takes: impl FnOnce(&dyn Fn() -> Option<Faulty>) -> bool,
    ) {
        let place = || self.link.together.faults.take().then(|| Faulty(Rc::clone(self)));
        if !takes(&place) {
            let slot = service.map_or(View::NO_SERVICE, |id| self.service(view, id).recorder_slot);
            self.recorder.borrow_mut().record_fault_refused(slot);
        }
    }

    /// A place for one more copy of a request: of the `mirrored_max` that the shards together have.
    pub fn mirror(self: &Rc<Self>) -> Option<Mirrored> {
        let room = self.pressure() == Pressure::None && self.link.together.mirrored.take();
        room.then(|| Mirrored(Rc::clone(self)))
    }

    /// Lets a handshake with a caller begin, unless the shards together have `handshakes_max` of them. One that has begun is to be ended.
    pub fn begins_handshake(&self) -> bool {
        let begins = self.link.together.handshakes.take();
        self.totals.handshakes_open.set(self.totals.handshakes_open.get() + u64::from(begins));
        begins
    }

    /// One is over.
    pub fn ends_handshake(&self) {
        self.totals.handshakes_open.set(self.totals.handshakes_open.get() - 1);
        self.link.together.handshakes.give_back();
    }

    /// Counts a connection that failed before there was an exchange, and tells control, once a second for each cause.
    /// `words` are for the log.
    pub(crate) fn connection_failed(
        &self,
        failure: Failure,
        peer: impl std::fmt::Display,
        words: impl std::fmt::Display,
    ) {
        self.recorder.borrow_mut().connection_failed(failure);
        self.tell_handshake(failure, peer, words);
    }

    /// Tells control of a handshake that failed, once a second for each failure.
    pub(crate) fn tell_handshake(
        &self,
        failure: Failure,
        peer: impl std::fmt::Display,
        words: impl std::fmt::Display,
    ) {
        const PACE_NS: u64 = 1_000_000_000;
        let now = self.clock.now();
        {
            let mut told = self.told.borrow_mut();
            let kinds = told.len();
            match told.iter_mut().find(|(f, _)| *f == failure) {
                Some((_, at)) if now < *at + PACE_NS => return,
                Some((_, at)) => *at = now,
                None if kinds < CONNECTION_FAILURES_MAX => told.push((failure, now)),
                None => return,
            }
        }
        self.notice(Notice::Handshake { failure, peer: peer.to_string(), words: words.to_string() });
    }

    /// Whether the proxy is draining: every response is the last on its connection.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether what is still open is cut, because the drain has lasted long enough.
    pub fn is_cut(&self) -> bool {
        self.deadlines.is_cut()
    }

    pub(super) fn drain(&self) {
        self.draining.set(true);
        self.deadlines.drain(&self.clock);
        self.watch.wake_all();
    }

    /// Closes all idle upstream connections: the drain is done.
    pub(super) fn close_idle(&self) {
        for service in self.view().services.borrow().values() {
            service.close_idle();
        }
    }

    /// Once a second: sweeps pools, trims buffers, hands telemetry over.
    pub(super) fn tick(&self) {
        let now = self.clock.refresh();
        let view = self.view();
        for service in view.services.borrow().values() {
            let (changes, lost) = service.sweep(now);
            for change in changes {
                let endpoint = service.spec.endpoints.get(change.endpoint as usize);
                self.notice(Notice::Breaker {
                    service: Arc::clone(&service.spec.name),
                    endpoint: endpoint.map(|endpoint| endpoint.address.clone()),
                    ejected: change.ejected,
                });
            }
            self.totals.notices_dropped.set(self.totals.notices_dropped.get() + lost);
        }
        self.vanished.borrow_mut().retain(|service| {
            let in_use = Rc::strong_count(service) > 1;
            if !in_use {
                self.recorder.borrow_mut().retire(service.recorder_slot);
            }
            in_use
        });
        self.watch.tick(now);
        self.relieve(true);
        self.buffers.trim();
        sealed::trim();
        blocks::trim();
        self.recorder.borrow_mut().hand_over(&self.link, self.shard_totals());
        self.access_log.borrow_mut().flush(&self.link);
        self.spans.borrow_mut().flush(&self.link);
        self.link.vitals.downstream_open.store(self.totals.downstream_open.get(), Ordering::Relaxed);
    }

    /// Tells control of something, or counts that it could not.
    pub(crate) fn notice(&self, notice: Notice) {
        if self.link.notices.push(notice).is_err() {
            self.totals.notices_dropped.set(self.totals.notices_dropped.get() + 1);
        }
    }

    pub(super) fn stalled(&self, held_ns: u64) {
        self.totals.stalls.set(self.totals.stalls.get() + 1);
        self.totals.stall_max_ns.set(self.totals.stall_max_ns.get().max(held_ns));
        self.notice(Notice::Stall { held_ns });
    }

    fn shard_totals(&self) -> ShardTotals {
        let totals = &self.totals;
        ShardTotals {
            downstream_open: totals.downstream_open.get(),
            downstream_accepted: totals.downstream_accepted.get(),
            downstream_refused: totals.downstream_refused.get(),
            memory_refused: totals.memory_refused.get(),
            memory_closed: totals.memory_closed.get(),
            tls_handshakes: totals.tls_handshakes.get(),
            exchanges_open: totals.exchanges_open.get(),
            tunnels_open: totals.tunnels_open.get(),
            upstream_open: self.tally.open.get(),
            upstream_idle: self.tally.idle.get(),
            upstream_connected: self.tally.connected.get(),
            upstream_found_dead: self.tally.found_dead.get(),
            replays: totals.replays.get(),
            stalls: totals.stalls.get(),
            stall_max_ns: totals.stall_max_ns.get(),
            floods: std::array::from_fn(|n| totals.floods[n].get()),
            panics: totals.panics.get(),
            log_lines_dropped: self.access_log.borrow().dropped(),
            spans_dropped: self.spans.borrow().dropped(),
            notices_dropped: totals.notices_dropped.get(),
            intervals_merged: 0,
            buffer_bytes: (self.buffers.bytes() + sealed::bytes()) as u64,
        }
    }
}

impl View {
    fn new(snapshot: Arc<Snapshot>, link: Arc<Link>) -> Self {
        Self { snapshot, services: RefCell::default(), route_slots: OnceCell::new(), link }
    }

    /// What is known of where a route is counted.
    pub fn route_slot(&self, id: u32) -> Option<&Cell<RouteSlot>> {
        let make = || self.snapshot.routes.routes().iter().map(|_| Cell::default()).collect();
        self.route_slots.get_or_init(make).get(id as usize)
    }

    /// Where exchanges are counted that met no service.
    pub const NO_SERVICE: u32 = NO_SERVICE_SLOT;
}

impl Drop for View {
    fn drop(&mut self) {
        // The last owner of a big snapshot takes milliseconds to free it: that is control's time, not the shard's.
        // Full: control is behind by four reloads, and this shard pays for one.
        let _ = self.link.retired.push(Arc::clone(&self.snapshot));
    }
}
