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
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use smallvec::SmallVec;

use super::admission::Admission;
use super::berths;
use super::caps::Caps;
use super::concurrency::{Estimator, Sample};
use super::gate::{Bell, Seat};
use super::line::{Line, Ticket};
use super::waiter::{Told, Waiter};
use crate::failure::Cause;
use crate::route::Priority;

/// The doors of a shard that somebody waits at.
pub struct Doors {
    /// How other shards tell this one that it was handed a place.
    bell: Arc<dyn Bell>,
    /// The time of all shards when that of this one began.
    origin_ns: u64,
    /// Those with tickets out.
    waiting: RefCell<Vec<Weak<Limiter>>>,
    /// Those of berths.
    pub berths: Rc<berths::Doors>,
}

/// The door.
pub struct Limiter {
    caps: RefCell<Arc<Caps>>,
    doors: Rc<Doors>,
    seat: Arc<Seat>,
    line: RefCell<Line<Rc<Waiter<Granted>>>>,
    /// Tickets of this shard that are out, by priority: at least as many as wait here.
    tickets: [Cell<u32>; Priority::COUNT],
    /// How exchanges have ended on this shard.
    admission: RefCell<Admission>,
    /// What was measured and is not learnt from yet.
    measured: RefCell<Vec<Sample>>,
    /// When that was done last.
    learnt_ns: Cell<u64>,
    /// Emptied passes, for the next ones: none is allocated once warm.
    #[expect(clippy::vec_box, reason = "they go out boxed, so that an exchange holds one word")]
    spare: RefCell<Vec<Box<Held>>>,
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

/// A place, or none. Given back when dropped.
#[derive(Default)]
pub struct Pass(Option<Box<Held>>);

struct Held {
    /// `None` of a spare one.
    limiter: Option<Rc<Limiter>>,
    since_ns: u64,
}

/// How an exchange has ended, as far as it tells of the service.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Whether well; `None` where that is not the service's doing.
    pub well: Option<bool>,
    /// When it was answered, or when that was given up.
    pub answered_ns: Option<u64>,
}

/// A place in the line, for as long as it is not dropped.
pub struct Waiting {
    limiter: Rc<Limiter>,
    waiter: Rc<Waiter<Granted>>,
    ticket: Ticket,
    /// When it has been long enough.
    pub until_ns: u64,
}

/// What one that waits is told.
type Granted = Result<(), Cause>;

/// A retry in progress, until dropped.
pub struct Retry(Arc<Caps>);

impl Doors {
    /// Those of a shard that `bell` tells when it was handed a place. `origin_ns` is the time of all shards when this one's is 0.
    pub fn new(bell: Arc<dyn Bell>, origin_ns: u64) -> Rc<Self> {
        let berths = berths::Doors::new(Arc::clone(&bell));
        Rc::new(Self { bell, origin_ns, waiting: RefCell::default(), berths })
    }

    /// Gives out the places that other shards have handed to this one.
    pub fn serve(&self, now_ns: u64) {
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.retain(|limiter| {
            let Some(limiter) = limiter.upgrade() else { return false };
            limiter.serve(now_ns);
            limiter.listed.set(limiter.tickets.iter().any(|tickets| tickets.get() > 0));
            limiter.listed.get()
        });
        // Who was woken runs later; nobody has come to a door meanwhile.
        self.waiting.borrow_mut().append(&mut waiting);
        self.berths.serve();
    }
}

impl Limiter {
    /// Measured and not learnt from; with more, what another shard learns from is enough.
    const MEASURED_MAX: usize = 64;
    /// What was measured is learnt from together, so often at most: a window lasts a hundred of these, and the estimator is taken
    /// and given back by exchanges of memory that all shards share.
    const LEARN_NS: u64 = 1_000_000;
    /// Emptied passes kept.
    const SPARE_MAX: usize = 1024;

    /// One of the doors of a shard.
    pub fn new(caps: Arc<Caps>, doors: &Rc<Doors>) -> Rc<Self> {
        Rc::new(Self {
            caps: RefCell::new(caps),
            seat: Seat::new(Arc::clone(&doors.bell)),
            doors: Rc::clone(doors),
            line: RefCell::default(),
            tickets: Default::default(),
            admission: RefCell::default(),
            measured: RefCell::default(),
            learnt_ns: Cell::new(0),
            spare: RefCell::default(),
            listed: Cell::new(false),
            now_ns: Cell::new(0),
        })
    }

    /// Asks for a place. `chance` is from 0 to 1, exclusive.
    pub fn enter(self: &Rc<Self>, priority: Priority, now_ns: u64, chance: impl FnOnce() -> f64) -> Entry {
        self.now_ns.set(now_ns);
        let entered = {
            let caps = self.caps.borrow();
            if let Some(settings) = &caps.admission
                && self.admission.borrow_mut().refuses(settings, priority, chance, now_ns)
            {
                return Entry::Refused(Cause::NotAdmitted);
            }
            caps.counts.exchanges.enter()
        };
        if entered {
            return Entry::In(self.pass());
        }
        self.wait(priority, now_ns)
    }

    fn pass(self: &Rc<Self>) -> Pass {
        let mut held =
            self.spare.borrow_mut().pop().unwrap_or_else(|| Box::new(Held { limiter: None, since_ns: 0 }));
        held.limiter = Some(Rc::clone(self));
        held.since_ns = self.now_ns.get();
        Pass(Some(held))
    }

    fn wait(self: &Rc<Self>, priority: Priority, now_ns: u64) -> Entry {
        let caps = self.caps();
        let gate = &caps.counts.exchanges;
        // Nothing was answered for as long as that: what is measured, with half of the limit, is measured no more.
        let is_silent = now_ns.saturating_sub(self.learnt_ns.get()) > Estimator::PROBE_MAX_NS;
        if is_silent && self.ends_overdue(&caps, now_ns) && gate.enter() {
            return Entry::In(self.pass());
        }
        if !gate.waits() {
            // Who makes room leaves his place among those who wait, too.
            let Some(displaced) = self.line.borrow_mut().displace(priority) else {
                return Entry::Refused(Cause::QueueFull);
            };
            displaced.tell(Err(Cause::QueueFull));
        }
        let waiter = Rc::<Waiter<Granted>>::default();
        let (ticket, until_ns, waiting) = {
            let mut line = self.line.borrow_mut();
            let (ticket, until_ns) = line.push(Rc::clone(&waiter), priority, caps.patience, now_ns);
            (ticket, until_ns, line.len(priority))
        };
        let of_these = &self.tickets[priority as usize];
        let tickets = of_these.get();
        if (tickets as usize) < waiting {
            if !self.listed.replace(true) {
                self.doors.waiting.borrow_mut().push(Rc::downgrade(self));
            }
            of_these.set(tickets + 1);
            gate.ticket(&self.seat, priority);
        }
        self.serve(now_ns);
        Entry::Wait(Waiting { limiter: Rc::clone(self), waiter, ticket, until_ns })
    }

    /// Gives the places that were handed to this shard to those who wait, or hands them on.
    pub fn serve(&self, now_ns: u64) {
        self.now_ns.set(now_ns);
        while let Some(places) = self.seat.take() {
            let caps = self.caps();
            for (priority, places) in Priority::ALL.into_iter().zip(places) {
                (0..places).for_each(|_| self.use_place(&caps, priority, now_ns));
            }
        }
    }

    /// Gives a place that was handed to this shard to who waits for one of that priority, or hands it on.
    fn use_place(&self, caps: &Caps, priority: Priority, now_ns: u64) {
        let gate = &caps.counts.exchanges;
        let tickets = &self.tickets[priority as usize];
        tickets.set(tickets.get() - 1);
        let mut late = SmallVec::<[Rc<Waiter<Granted>>; 4]>::new();
        let next = self.line.borrow_mut().next(priority, caps.patience, now_ns, |waiter| late.push(waiter));
        for waiter in late {
            gate.waits_no_more();
            waiter.tell(Err(Cause::QueueTimeout));
        }
        match next {
            Some(waiter) => {
                gate.waits_no_more();
                waiter.tell(Ok(()));
            }
            None => gate.leave(&self.seat),
        }
    }

    /// The declaration has changed, and with it the ceilings. What is counted has not.
    pub fn adopt(&self, caps: Arc<Caps>) {
        if caps.concurrency.is_none() {
            // Another shard may have learnt one more just when that ended.
            caps.counts.exchanges.set_limit(u32::MAX);
            caps.counts.baseline_ns.store(0, Relaxed);
        }
        *self.caps.borrow_mut() = caps;
        self.settle();
    }

    /// Nothing declares ceilings any more: who waits is let in.
    pub fn open(&self) {
        let caps = self.caps();
        caps.counts.exchanges.set(u32::MAX, u32::MAX);
        caps.counts.exchanges.set_limit(u32::MAX);
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

    /// An exchange that was let in at `since_ns` has ended so.
    fn learn(&self, since_ns: u64, outcome: Outcome, now_ns: u64) {
        let caps = self.caps.borrow();
        if let (Some(settings), Some(well)) = (&caps.admission, outcome.well) {
            self.admission.borrow_mut().ended(settings, well, now_ns);
        }
        let (Some(settings), Some(answered_ns)) = (caps.concurrency, outcome.answered_ns) else { return };
        let origin_ns = self.doors.origin_ns;
        let mut measured = self.measured.borrow_mut();
        measured.push(Sample {
            since_ns: origin_ns + since_ns,
            now_ns: origin_ns + answered_ns,
            taken: caps.counts.exchanges.taken(),
        });
        let is_soon = now_ns.saturating_sub(self.learnt_ns.get()) < Self::LEARN_NS;
        if is_soon && measured.len() < Self::MEASURED_MAX {
            return;
        }
        let mut lent = Lent::take(&caps);
        let Some(estimator) = lent.as_mut().and_then(|lent| lent.estimator.as_mut()) else {
            if measured.len() >= Self::MEASURED_MAX {
                measured.clear();
            }
            return;
        };
        self.learnt_ns.set(now_ns);
        let before = estimator.limit();
        for sample in measured.drain(..) {
            estimator.learn(settings, sample);
        }
        let limit = estimator.limit();
        // While it is lent, so that the newest is the last that is set.
        if limit != before {
            caps.counts.exchanges.set_limit(limit);
        }
        caps.counts.baseline_ns.store(estimator.baseline_ns().unwrap_or(0), Relaxed);
        drop((lent, measured));
        if limit > before {
            self.settle();
        }
    }

    /// Ends a measurement that is overdue; whether more may be let in now. Once in a while: others may have learnt meanwhile.
    fn ends_overdue(&self, caps: &Caps, now_ns: u64) -> bool {
        self.learnt_ns.set(now_ns);
        let mut lent = Lent::take(caps);
        let Some(estimator) = lent.as_mut().and_then(|lent| lent.estimator.as_mut()) else { return false };
        let before = estimator.limit();
        estimator.end_overdue(self.doors.origin_ns + now_ns);
        let limit = estimator.limit();
        if limit != before {
            caps.counts.exchanges.set_limit(limit);
        }
        drop(lent);
        if limit > before {
            self.settle();
        }
        limit > before
    }

    fn settle(&self) {
        self.caps().counts.exchanges.settle(&self.seat);
        self.serve(self.now_ns.get());
    }

    fn give_back(&self) {
        self.caps.borrow().counts.exchanges.leave(&self.seat);
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
    pub fn end(self, outcome: Outcome, now_ns: u64) {
        if let Some(held) = &self.0
            && let Some(limiter) = &held.limiter
        {
            limiter.now_ns.set(now_ns);
            limiter.learn(held.since_ns, outcome, now_ns);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(mut held) = self.0.take() else { return };
        let Some(limiter) = held.limiter.take() else { return };
        {
            let mut spare = limiter.spare.borrow_mut();
            if spare.len() < Limiter::SPARE_MAX {
                spare.push(held);
            }
        }
        limiter.give_back();
    }
}

/// The estimator of a service while this shard has it; goes back when dropped.
struct Lent<'c> {
    caps: &'c Caps,
    estimator: Option<Box<Estimator>>,
}

impl<'c> Lent<'c> {
    /// `None` while another shard has it.
    fn take(caps: &'c Caps) -> Option<Self> {
        let estimator = caps.counts.estimator.take();
        estimator.is_some().then_some(Self { caps, estimator })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.caps.counts.estimator.store(self.estimator.take());
    }
}

impl Future for Waiting {
    type Output = Result<Pass, Cause>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.waiter.poll(cx).map_ok(|()| self.limiter.pass())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        match self.waiter.told() {
            Told::Nothing => {
                let caps = self.limiter.caps();
                let now_ns = self.limiter.now_ns.get();
                let left = self.limiter.line.borrow_mut().remove(self.ticket, caps.patience, now_ns);
                if left.is_some() {
                    caps.counts.exchanges.waits_no_more();
                }
            }
            // It came just when nobody wanted it any more.
            Told::This(Ok(())) => self.limiter.give_back(),
            Told::This(Err(_)) | Told::Over => {}
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
