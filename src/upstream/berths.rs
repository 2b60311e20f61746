//! Leave to have connections to a service open: as many as `caps.connections_max` says, of all shards together, those at rest and
//! those being made included. A berth is taken before a connection is made and given back when that is gone.
//!
//! What is counted is shared by all shards (`gate`); connections are not: each shard has its own. So one that finds no berth
//! first closes one of its own that lies at rest, then asks a shard that has one at rest to close that, and waits in line. A
//! connection that comes to rest goes to who waits at its own shard, and else is closed for who waits at another; where both wait
//! the others get one in [`GIVES_AFTER_NS`] at most, so that a shard which has none gets some and connections are still used again.
//!
//! Refuses to connect, to close connections and to wait itself: see `proxy::connect`, `service`, `pool`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll};

use crossbeam::queue::SegQueue;

use super::caps::Caps;
use super::gate::{Bell, Gate, Seat};
use super::waiter::{Told, Waiter};
use crate::failure::Cause;
use crate::route::Priority;

/// A shard whose own exchanges wait gives a connection to another shard's no sooner after the last one than this: what a new
/// connection costs is then spent two hundred times a second at most.
const GIVES_AFTER_NS: u64 = 5_000_000;

/// What the shards count together.
pub struct Counted {
    /// Connections, and those who wait for one.
    pub gate: Gate,
    /// Shards with connections at rest, each once.
    idlers: SegQueue<Arc<Idler>>,
}

/// A shard that may have connections to a service at rest, as other shards see it.
struct Idler {
    /// It is in the queue.
    offered: AtomicBool,
    /// So many connections it is asked to close.
    wanted: AtomicU32,
    /// One of its idlers is asked.
    asked: Arc<AtomicBool>,
    bell: Arc<dyn Bell>,
}

/// The berths of one service at one shard.
pub struct Berths {
    caps: RefCell<Arc<Caps>>,
    doors: Rc<Doors>,
    seat: Arc<Seat>,
    idler: Arc<Idler>,
    line: RefCell<VecDeque<Rc<Waiter<Turned>>>>,
    /// Those who were told to look and have not yet.
    looking: Cell<u32>,
    /// Tickets of this shard that are out: at least as many as wait here.
    tickets: Cell<u32>,
    /// When a connection was given to another shard's last although somebody waited here.
    gave_at: Cell<u64>,
    /// Whether it is among those of the shard with tickets out.
    listed: Cell<bool>,
}

/// How a shard learns what other shards have done.
pub struct Doors {
    bell: Arc<dyn Bell>,
    asked: Arc<AtomicBool>,
    /// Those with tickets out.
    waiting: RefCell<Vec<Weak<Berths>>>,
}

/// Leave to have one connection. Given back when dropped.
pub struct Berth(Rc<Berths>);

/// A place in the line, until it is dropped.
pub struct Waiting {
    berths: Rc<Berths>,
    waiter: Rc<Waiter<Turned>>,
}

/// What has come of waiting.
pub enum Turn {
    /// A connection may be made.
    Berth(Berth),
    /// A connection of this shard has come to rest: it may be for who waited.
    Look,
}

/// What one that waits is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turned {
    Granted,
    Look,
}

/// What becomes of a connection that has come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It is kept.
    Keep,
    /// It is to be closed: another shard waits for it.
    Close,
}

impl Default for Counted {
    /// Nothing counted, no ceiling.
    fn default() -> Self {
        Self { gate: Gate::new(u32::MAX, 0), idlers: SegQueue::new() }
    }
}

impl Counted {
    /// Asks a shard that has connections at rest to close one, if there is such a shard beside `own`.
    fn ask(&self, own: &Arc<Idler>) {
        while let Some(idler) = self.idlers.pop() {
            idler.offered.store(false, SeqCst);
            if !Arc::ptr_eq(&idler, own) {
                return idler.ask();
            }
        }
    }
}

impl Idler {
    /// To close one.
    fn ask(&self) {
        self.wanted.fetch_add(1, SeqCst);
        self.asked.store(true, SeqCst);
        self.bell.ring();
    }
}

impl Doors {
    /// Those of a shard that `bell` tells.
    pub fn new(bell: Arc<dyn Bell>) -> Rc<Self> {
        Rc::new(Self { bell, asked: Arc::default(), waiting: RefCell::default() })
    }

    /// Gives out the berths that other shards have handed to this one.
    pub fn serve(&self) {
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.retain(|berths| {
            let Some(berths) = berths.upgrade() else { return false };
            berths.serve();
            berths.listed.set(berths.tickets.get() > 0);
            berths.listed.get()
        });
        self.waiting.borrow_mut().append(&mut waiting);
    }

    /// Whether other shards have asked for connections of this one since the last call: then each service is to say so.
    pub fn are_asked(&self) -> bool {
        self.asked.load(SeqCst) && self.asked.swap(false, SeqCst)
    }
}

impl Berths {
    /// Of a service that is capped so.
    pub fn new(caps: Arc<Caps>, doors: &Rc<Doors>) -> Rc<Self> {
        let idler = Idler {
            offered: AtomicBool::new(false),
            wanted: AtomicU32::new(0),
            asked: Arc::clone(&doors.asked),
            bell: Arc::clone(&doors.bell),
        };
        Rc::new(Self {
            caps: RefCell::new(caps),
            seat: Seat::new(Arc::clone(&doors.bell)),
            doors: Rc::clone(doors),
            idler: Arc::new(idler),
            line: RefCell::default(),
            looking: Cell::new(0),
            tickets: Cell::new(0),
            gave_at: Cell::new(0),
            listed: Cell::new(false),
        })
    }

    /// Whether somebody waits here, or is about to take what has come to rest: who comes now is behind.
    pub fn has_line(&self) -> bool {
        self.looking.get() > 0 || !self.line.borrow().is_empty()
    }

    /// A berth, if there is one and nobody waits.
    pub fn take(self: &Rc<Self>) -> Option<Berth> {
        self.caps().counts.connections.gate.enter().then(|| Berth(Rc::clone(self)))
    }

    /// Takes a place in the line.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn wait(self: &Rc<Self>) -> Result<Waiting, Cause> {
        let caps = self.caps();
        let counted = &caps.counts.connections;
        if !counted.gate.waits() {
            return Err(Cause::QueueFull);
        }
        let waiter = Rc::<Waiter<Turned>>::default();
        let waiting = {
            let mut line = self.line.borrow_mut();
            line.push_back(Rc::clone(&waiter));
            line.len()
        };
        let tickets = self.tickets.get();
        if (tickets as usize) < waiting {
            if !self.listed.replace(true) {
                self.doors.waiting.borrow_mut().push(Rc::downgrade(self));
            }
            self.tickets.set(tickets + 1);
            counted.gate.ticket(&self.seat, Priority::default());
        }
        self.serve();
        if waiter.told() == Told::Nothing {
            counted.ask(&self.idler);
        }
        Ok(Waiting { berths: Rc::clone(self), waiter })
    }

    /// A connection has come to rest. Who waits here is told when it lies where it can be taken: [`Berths::rests`].
    pub fn comes_to_rest(&self, now: u64) -> Rest {
        if !self.others_wait() {
            return Rest::Keep;
        }
        if !self.line.borrow().is_empty() {
            if now < self.gave_at.get().saturating_add(GIVES_AFTER_NS) {
                return Rest::Keep;
            }
            self.gave_at.set(now);
        }
        Rest::Close
    }

    /// It was kept: for who waits here first, or for others to ask for.
    pub fn rests(&self) {
        if self.lets_look() {
            return;
        }
        self.offer();
        // Who began to wait before that may not have seen the offer.
        if self.others_wait() {
            self.idler.ask();
        }
    }

    fn others_wait(&self) -> bool {
        self.caps.borrow().counts.connections.gate.tickets() > self.tickets.get()
    }

    /// The next in the line may look for a connection; whether there is one.
    fn lets_look(&self) -> bool {
        let waiter = self.leaves_line();
        if let Some(waiter) = &waiter {
            self.looking.set(self.looking.get() + 1);
            waiter.tell(Turned::Look);
        }
        waiter.is_some()
    }

    fn has_looked(&self) {
        self.looking.set(self.looking.get() - 1);
    }

    /// Lets other shards know that connections lie at rest here.
    pub fn offer(&self) {
        let offered = &self.idler.offered;
        if !offered.load(SeqCst) && !offered.swap(true, SeqCst) {
            self.caps.borrow().counts.connections.idlers.push(Arc::clone(&self.idler));
        }
    }

    /// Whether anybody waits.
    pub fn is_wanted(&self) -> bool {
        !self.line.borrow().is_empty() || self.others_wait()
    }

    /// How many connections at rest other shards ask for, since the last call, or how many there are above the ceiling.
    pub fn asked_for(&self) -> u32 {
        let wanted = match self.idler.wanted.load(SeqCst) {
            0 => 0,
            _ => self.idler.wanted.swap(0, SeqCst),
        };
        let caps = self.caps.borrow();
        let gate = &caps.counts.connections.gate;
        wanted.max(gate.taken().saturating_sub(gate.ceiling()))
    }

    /// So many of them are not here: somebody else may have them.
    pub fn passes_on(&self, wanted: u32) {
        for _ in 0..wanted {
            self.caps().counts.connections.ask(&self.idler);
        }
    }

    /// The declaration has changed, and with it the ceiling. What is counted has not.
    pub fn adopt(&self, caps: Arc<Caps>) {
        *self.caps.borrow_mut() = caps;
        self.caps().counts.connections.gate.settle(&self.seat);
        self.serve();
    }

    /// Nothing declares a ceiling any more: who waits is let in.
    pub fn open(&self) {
        self.caps().counts.connections.gate.set(u32::MAX, u32::MAX);
        self.caps().counts.connections.gate.settle(&self.seat);
        self.serve();
    }

    /// Whether it counts what `caps` do.
    pub fn counts(&self, caps: &Caps) -> bool {
        self.caps.borrow().counts.are(&caps.counts)
    }

    /// Gives the berths that were handed to this shard to those who wait, or hands them on.
    fn serve(&self) {
        while let Some(places) = self.seat.take() {
            for _ in 0..places.into_iter().sum() {
                self.tickets.set(self.tickets.get() - 1);
                match self.leaves_line() {
                    Some(waiter) => waiter.tell(Turned::Granted),
                    None => self.caps().counts.connections.gate.leave(&self.seat),
                }
            }
        }
    }

    /// Who is next.
    fn leaves_line(&self) -> Option<Rc<Waiter<Turned>>> {
        let waiter = self.line.borrow_mut().pop_front()?;
        self.caps.borrow().counts.connections.gate.waits_no_more();
        Some(waiter)
    }

    fn give_back(&self) {
        self.caps().counts.connections.gate.leave(&self.seat);
        self.serve();
    }

    fn caps(&self) -> Arc<Caps> {
        Arc::clone(&self.caps.borrow())
    }
}

impl Drop for Berths {
    fn drop(&mut self) {
        let caps = self.caps();
        for _ in 0..self.seat.close() {
            caps.counts.connections.gate.leave(&self.seat);
        }
    }
}

impl Berth {
    /// Whose it is.
    pub fn berths(&self) -> &Rc<Berths> {
        &self.0
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl Future for Waiting {
    type Output = Turn;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Turn> {
        self.waiter.poll(cx).map(|turned| match turned {
            Turned::Granted => Turn::Berth(Berth(Rc::clone(&self.berths))),
            Turned::Look => {
                self.berths.has_looked();
                Turn::Look
            }
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        match self.waiter.told() {
            Told::Nothing => {
                let mut line = self.berths.line.borrow_mut();
                let before = line.len();
                line.retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
                if line.len() < before {
                    self.berths.caps.borrow().counts.connections.gate.waits_no_more();
                }
            }
            // It came just when nobody wanted it any more.
            Told::This(Turned::Granted) => self.berths.give_back(),
            // It lies there still.
            Told::This(Turned::Look) => {
                self.berths.has_looked();
                self.berths.rests();
            }
            Told::Over => {}
        }
    }
}

#[cfg(test)]
#[path = "berths_test.rs"]
mod tests;
