//! A shard's door to a service that may be given so much at a time: lets an exchange in, lets it wait, or turns it away.
//!
//! What is counted is shared by all shards (`gate`), who waits here is this shard's (`line`). A place is held by a
//! [`Pass`] and given back when that is dropped, however the exchange ends, by a panic, too. Time is an argument; a pass
//! that is dropped uses the last one seen. Refuses to wait itself, and to set alarms: see `proxy::admit`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use super::caps::Caps;
use super::gate::{Bell, Seat};
use super::line::{Line, Ticket};
use crate::failure::Cause;
use crate::route::Priority;

/// The doors of a shard that somebody waits at.
pub struct Doors {
    /// How other shards tell this one that it was handed a place.
    bell: Arc<dyn Bell>,
    /// Those with tickets out.
    waiting: RefCell<Vec<Weak<Limiter>>>,
}

/// The door.
pub struct Limiter {
    caps: RefCell<Arc<Caps>>,
    doors: Rc<Doors>,
    seat: Arc<Seat>,
    line: RefCell<Line<Rc<Waiter>>>,
    /// Tickets of this shard that are out: at least as many as wait here.
    tickets: Cell<u32>,
    /// Whether it is among those of the shard with tickets out.
    listed: Cell<bool>,
    now_ns: Cell<u64>,
}

/// What becomes of an exchange at the door.
pub enum Entry {
    /// It is let in.
    In(Pass),
    /// It may wait.
    Wait(Waiting),
    /// It is turned away.
    Refused(Cause),
}

/// A place. Given back when dropped.
pub struct Pass {
    limiter: Rc<Limiter>,
}

/// A place in the line, for as long as it is not dropped.
pub struct Waiting {
    limiter: Rc<Limiter>,
    waiter: Rc<Waiter>,
    ticket: Ticket,
    /// When it has been long enough.
    pub until_ns: u64,
}

struct Waiter {
    told: Cell<Told>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy)]
enum Told {
    Nothing,
    Granted,
    Refused(Cause),
    Over,
}

/// A retry in progress, until dropped.
pub struct Retry(Arc<Caps>);

impl Doors {
    /// Those of a shard that `bell` tells when it was handed a place.
    pub fn new(bell: Arc<dyn Bell>) -> Rc<Self> {
        Rc::new(Self { bell, waiting: RefCell::default() })
    }

    /// Gives out the places that other shards have handed to this one.
    pub fn serve(&self, now_ns: u64) {
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.retain(|limiter| {
            let Some(limiter) = limiter.upgrade() else { return false };
            limiter.serve(now_ns);
            limiter.listed.set(limiter.tickets.get() > 0);
            limiter.listed.get()
        });
        // Who was woken runs later; nobody has come to a door meanwhile.
        self.waiting.borrow_mut().append(&mut waiting);
    }
}

impl Limiter {
    /// One of the doors of a shard.
    pub fn new(caps: Arc<Caps>, doors: &Rc<Doors>) -> Rc<Self> {
        Rc::new(Self {
            caps: RefCell::new(caps),
            seat: Seat::new(Arc::clone(&doors.bell)),
            doors: Rc::clone(doors),
            line: RefCell::default(),
            tickets: Cell::new(0),
            listed: Cell::new(false),
            now_ns: Cell::new(0),
        })
    }

    /// Asks for a place.
    pub fn enter(self: &Rc<Self>, priority: Priority, now_ns: u64) -> Entry {
        self.now_ns.set(now_ns);
        if self.caps.borrow().counts.exchanges.enter() {
            return Entry::In(Pass { limiter: Rc::clone(self) });
        }
        self.wait(priority, now_ns)
    }

    fn wait(self: &Rc<Self>, priority: Priority, now_ns: u64) -> Entry {
        let caps = self.caps();
        let gate = &caps.counts.exchanges;
        if !gate.waits() {
            // Who makes room leaves his place among those who wait, too.
            let Some(displaced) = self.line.borrow_mut().displace(priority) else {
                return Entry::Refused(Cause::QueueFull);
            };
            displaced.tell(Told::Refused(Cause::QueueFull));
        }
        let waiter = Rc::new(Waiter { told: Cell::new(Told::Nothing), waker: RefCell::default() });
        let (ticket, until_ns, waiting) = {
            let mut line = self.line.borrow_mut();
            let (ticket, until_ns) = line.push(Rc::clone(&waiter), priority, caps.patience, now_ns);
            (ticket, until_ns, line.len())
        };
        let tickets = self.tickets.get();
        if (tickets as usize) < waiting {
            if !self.listed.replace(true) {
                self.doors.waiting.borrow_mut().push(Rc::downgrade(self));
            }
            self.tickets.set(tickets + 1);
            gate.ticket(&self.seat);
        }
        self.serve(now_ns);
        Entry::Wait(Waiting { limiter: Rc::clone(self), waiter, ticket, until_ns })
    }

    /// Gives the places that were handed to this shard to those who wait, or hands them on.
    pub fn serve(&self, now_ns: u64) {
        self.now_ns.set(now_ns);
        let caps = self.caps();
        let gate = &caps.counts.exchanges;
        loop {
            let places = self.seat.take();
            if places == 0 {
                return;
            }
            for _ in 0..places {
                self.tickets.set(self.tickets.get() - 1);
                let mut late = SmallVec::<[Rc<Waiter>; 4]>::new();
                let next = self.line.borrow_mut().next(caps.patience, now_ns, |waiter| late.push(waiter));
                for waiter in late {
                    gate.waits_no_more();
                    waiter.tell(Told::Refused(Cause::QueueTimeout));
                }
                match next {
                    Some(waiter) => {
                        gate.waits_no_more();
                        waiter.tell(Told::Granted);
                    }
                    None => gate.leave(&self.seat),
                }
            }
        }
    }

    /// The declaration has changed, and with it the ceilings. What is counted has not.
    pub fn adopt(&self, caps: Arc<Caps>) {
        *self.caps.borrow_mut() = caps;
        self.settle();
    }

    /// Whether it counts what `caps` do.
    pub fn counts(&self, caps: &Caps) -> bool {
        self.caps.borrow().counts.are(&caps.counts)
    }

    /// A retry may be made, if there are not too many in progress.
    pub fn retry(&self) -> Option<Retry> {
        let caps = self.caps();
        caps.counts.retries.take().then(|| Retry(caps))
    }

    fn settle(&self) {
        self.caps().counts.exchanges.settle(&self.seat);
        self.serve(self.now_ns.get());
    }

    fn give_back(&self) {
        self.caps().counts.exchanges.leave(&self.seat);
        self.serve(self.now_ns.get());
    }

    fn caps(&self) -> Arc<Caps> {
        Arc::clone(&self.caps.borrow())
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        // Nobody waits here any more; what is handed over from now on goes on to others.
        let caps = self.caps();
        for _ in 0..self.seat.close() {
            caps.counts.exchanges.leave(&self.seat);
        }
    }
}

impl Pass {
    /// The exchange has ended.
    pub fn end(self, now_ns: u64) {
        self.limiter.now_ns.set(now_ns);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.limiter.give_back();
    }
}

impl Future for Waiting {
    type Output = Result<Pass, Cause>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.waiter.told.get() {
            Told::Nothing => {
                let mut waker = self.waiter.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Told::Granted => {
                self.waiter.told.set(Told::Over);
                Poll::Ready(Ok(Pass { limiter: Rc::clone(&self.limiter) }))
            }
            Told::Refused(cause) => Poll::Ready(Err(cause)),
            Told::Over => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        match self.waiter.told.get() {
            Told::Nothing => {
                let caps = self.limiter.caps();
                let now_ns = self.limiter.now_ns.get();
                if self.limiter.line.borrow_mut().remove(self.ticket, caps.patience, now_ns).is_some() {
                    caps.counts.exchanges.waits_no_more();
                }
            }
            // It came just when nobody wanted it any more.
            Told::Granted => self.limiter.give_back(),
            Told::Refused(_) | Told::Over => {}
        }
    }
}

impl Waiter {
    fn tell(&self, told: Told) {
        self.told.set(told);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        self.0.counts.retries.give_back();
    }
}

#[cfg(test)]
#[path = "limiter_test.rs"]
mod tests;
