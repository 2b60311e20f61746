//! Deadlines of I/O: the only place that times out or cancels an operation.
//!
//! Dropping a read in flight loses bytes, so nothing here drops one. A wait is ended from the kernel's side: the socket
//! is shut down, the operation completes, and whoever waited learns from its slot that it was the deadline. That costs
//! the path two stores per wait and needs no timer per operation: one task per shard ([`Deadlines::run`]) looks over
//! all slots when the earliest deadline comes. The one wait that must not end the connection, for the first byte of the
//! next request, is cancelled instead ([`OnDeadline::Cancel`]), so that an idle connection can give its buffer back.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use monoio::io::{CancelHandle, Canceller};

use super::sys;
use crate::shard::clock::{Clock, NEVER};

/// The deadlines of all connections of a shard.
pub struct Deadlines {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    /// When `run` looks next. Arming an earlier deadline wakes it.
    next_look: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    draining: Cell<bool>,
    /// No wait lasts longer: [`NEVER`] until all is cut.
    ends: Cell<u64>,
}

/// What happens to a read whose deadline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeadline {
    /// The receiving side is shut down: no more can be read, an answer can still be written.
    ShutdownRead,
    /// The connection is shut down.
    Shutdown,
    /// The read is cancelled; the connection stays as it was.
    Cancel,
    /// There is no socket: whoever waits is woken ([`Alarm`], [`Lane`](super::lane::Lane)).
    Wake,
}

/// In place of a socket: whoever waits is woken, and does by itself what the kernel would have done.
const NO_SOCKET: RawFd = -1;

struct Slot {
    socket: RawFd,
    read_at: u64,
    write_at: u64,
    on_read: OnDeadline,
    read_fired: bool,
    write_fired: bool,
    /// Writes that are over; it wraps.
    writes: u32,
    /// The read in flight was cancelled from outside.
    cancelled: bool,
    /// Waiting for the next request and holding nothing: closed first when the proxy drains.
    idle: bool,
    canceller: Option<Canceller>,
    waker: Option<Waker>,
    /// Of a write, where there is no socket.
    write_waker: Option<Waker>,
}

/// A deadline for waits that are not on a socket of their own: for a stream among many, for a free place. What is waited
/// for must bear to be dropped.
pub struct Alarm {
    ticket: Ticket,
}

/// A connection's place in the table; gives it back when dropped, which must be before the socket is closed.
pub struct Ticket {
    deadlines: Rc<Deadlines>,
    slot: u32,
}

impl Deadlines {
    /// Looks are at least this far apart, so that a thousand different deadlines do not mean a thousand looks.
    const LOOK_SPACING: Duration = Duration::from_millis(5);
    /// The longest sleep: the runtime's timers need not reach further.
    const SLEEP_MAX: Duration = Duration::from_secs(3600);
    /// While draining, a connection that has been silent for this long is closed.
    pub const DRAIN_IDLE: Duration = Duration::from_secs(1);

    /// For the waits of a connection that begin when all is cut: a write that the kernel takes at once, mostly.
    const LAST_WORDS: Duration = Duration::from_millis(100);

    /// A place for a connection.
    pub fn register(self: &Rc<Self>, socket: RawFd) -> Ticket {
        let slot = Slot {
            socket,
            read_at: NEVER,
            write_at: NEVER,
            on_read: OnDeadline::Shutdown,
            read_fired: false,
            write_fired: false,
            writes: 0,
            cancelled: false,
            idle: false,
            canceller: None,
            waker: None,
            write_waker: None,
        };
        let mut slots = self.slots.borrow_mut();
        let index = if let Some(index) = self.free.borrow_mut().pop() {
            slots[index as usize] = slot;
            index
        } else {
            slots.push(slot);
            u32::try_from(slots.len() - 1).unwrap_or(u32::MAX)
        };
        Ticket { deadlines: Rc::clone(self), slot: index }
    }

    /// The shard's drain has begun: connections that are or become idle do not stay long.
    pub fn drain(&self, clock: &Clock) {
        self.draining.set(true);
        let soon = clock.after(Self::DRAIN_IDLE);
        for slot in self.slots.borrow_mut().iter_mut().filter(|s| s.idle) {
            slot.read_at = slot.read_at.min(soon);
        }
        self.wake_for(soon);
    }

    /// Ends the connections that wait for the next request and hold no buffer any more; how many.
    pub fn end_quiet(&self, clock: &Clock) -> u64 {
        let now = clock.now();
        let mut ended = 0;
        for slot in self.slots.borrow_mut().iter_mut() {
            if slot.idle && slot.on_read == OnDeadline::ShutdownRead && slot.read_at > now {
                slot.read_at = now;
                ended += 1;
            }
        }
        if ended > 0 {
            self.wake_for(now);
        }
        ended
    }

    /// Every wait ends now, and those that begin later end soon: time enough to tell a caller that it is cut.
    pub fn cut(&self, clock: &Clock) {
        self.ends.set(clock.after(Self::LAST_WORDS));
        let now = clock.now();
        for slot in self.slots.borrow_mut().iter_mut() {
            for at in [&mut slot.read_at, &mut slot.write_at] {
                if *at != NEVER {
                    *at = now;
                }
            }
        }
        self.wake_for(now);
    }

    /// Whether `cut` was called.
    pub fn is_cut(&self) -> bool {
        self.ends.get() != NEVER
    }

    /// An alarm, not set.
    pub fn alarm(self: &Rc<Self>) -> Alarm {
        Alarm { ticket: self.register_without_socket() }
    }

    /// A place for what has no socket.
    pub(super) fn register_without_socket(self: &Rc<Self>) -> Ticket {
        let ticket = self.register(NO_SOCKET);
        // Also while nobody waits: it may be brought forward then, and there is no socket to shut down.
        self.slots.borrow_mut()[ticket.slot as usize].on_read = OnDeadline::Wake;
        ticket
    }

    /// Whether `drain` was called.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// The task that makes deadlines come true; runs as long as the shard.
    pub async fn run(self: Rc<Self>, clock: Rc<Clock>) {
        loop {
            let now = clock.refresh();
            let earliest = self.fire(now);
            let spacing = crate::shard::clock::ns(Self::LOOK_SPACING);
            let next = earliest.max(now + spacing);
            self.next_look.set(next);
            let mut timer = std::pin::pin!(async {
                match next {
                    NEVER => std::future::pending().await,
                    at => monoio::time::sleep(Duration::from_nanos(at - now).min(Self::SLEEP_MAX)).await,
                }
            });
            // Woken by the timer, or by `wake_for` when something earlier was armed. Dropping a timer loses nothing.
            poll_fn(|cx| {
                if self.next_look.get() < next {
                    return Poll::Ready(());
                }
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                timer.as_mut().poll(cx)
            })
            .await;
        }
    }

    /// Ends all waits whose deadline is not after `now`; the earliest deadline left.
    fn fire(&self, now: u64) -> u64 {
        let mut earliest = NEVER;
        for slot in self.slots.borrow_mut().iter_mut() {
            if slot.read_at <= now {
                slot.read_at = NEVER;
                slot.read_fired = true;
                match slot.on_read {
                    OnDeadline::ShutdownRead => sys::shutdown_read(slot.socket),
                    OnDeadline::Shutdown => sys::shutdown_both(slot.socket),
                    OnDeadline::Cancel => slot.canceller = slot.canceller.take().map(Canceller::cancel),
                    OnDeadline::Wake => {
                        if let Some(waker) = slot.waker.take() {
                            waker.wake();
                        }
                    }
                }
            }
            if slot.write_at <= now {
                slot.write_at = NEVER;
                slot.write_fired = true;
                match slot.socket {
                    NO_SOCKET => slot.write_waker.take().into_iter().for_each(Waker::wake),
                    socket => sys::shutdown_both(socket),
                }
            }
            earliest = earliest.min(slot.read_at).min(slot.write_at);
        }
        earliest
    }

    fn wake_for(&self, deadline: u64) {
        if deadline < self.next_look.get() {
            self.next_look.set(deadline);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            next_look: Cell::default(),
            waker: RefCell::default(),
            draining: Cell::default(),
            ends: Cell::new(NEVER),
        }
    }
}

impl Alarm {
    /// Waits for `wait` until `deadline`; `None` when that came first. Then `wait` is left as it is, and may be waited
    /// for again.
    pub async fn until<F: Future + Unpin>(&self, deadline: u64, mut wait: F) -> Option<F::Output> {
        let mut armed = false;
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut wait).poll(cx) {
                if armed {
                    self.ticket.disarm_read();
                }
                return Poll::Ready(Some(output));
            }
            if !std::mem::replace(&mut armed, true) {
                self.ticket.arm_read(deadline, OnDeadline::Wake);
            }
            if self.ticket.wake_on_deadline(cx.waker()) {
                self.ticket.disarm_read();
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }

    /// For who polls by itself: `waker` is woken at `deadline`.
    pub fn set(&self, deadline: u64, waker: &Waker) {
        self.ticket.arm_read(deadline, OnDeadline::Wake);
        self.ticket.wake_on_deadline(waker);
    }

    /// Whether the deadline that was set has come, told once; else `waker` is woken when it does.
    pub fn has_rung(&self, waker: &Waker) -> bool {
        self.ticket.wake_on_deadline(waker) && self.ticket.disarm_read()
    }

    /// Whether [`Deadlines::cut`] was called.
    pub fn is_cut(&self) -> bool {
        self.ticket.deadlines.is_cut()
    }

    /// Brings the deadline of a wait in progress forward.
    pub fn by(&self, deadline: u64) {
        self.ticket.read_by(deadline);
    }
}

impl Ticket {
    /// Whether the deadline has come; else `waker` is woken when it does.
    fn wake_on_deadline(&self, waker: &Waker) -> bool {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        if !slot.waker.as_ref().is_some_and(|w| w.will_wake(waker)) {
            slot.waker = Some(waker.clone());
        }
        slot.read_fired
    }

    /// A read begins that shall end by `deadline`.
    pub(super) fn arm_read(&self, deadline: u64, on_deadline: OnDeadline) {
        let deadline = deadline.min(self.deadlines.ends.get());
        {
            let mut slots = self.deadlines.slots.borrow_mut();
            let slot = &mut slots[self.slot as usize];
            slot.read_at = deadline;
            slot.on_read = on_deadline;
            slot.read_fired = false;
        }
        self.deadlines.wake_for(deadline);
    }

    /// The wait for the next request begins: to be cancelled at `deadline`.
    pub(super) fn arm_idle(&self, deadline: u64) -> CancelHandle {
        let deadline = deadline.min(self.deadlines.ends.get());
        let handle = {
            let mut slots = self.deadlines.slots.borrow_mut();
            let slot = &mut slots[self.slot as usize];
            slot.read_at = deadline;
            slot.on_read = OnDeadline::Cancel;
            slot.read_fired = false;
            slot.cancelled = false;
            slot.idle = true;
            slot.canceller.get_or_insert_with(Canceller::new).handle()
        };
        self.deadlines.wake_for(deadline);
        handle
    }

    /// A read begins that shall end by `deadline` and can be cancelled before.
    pub(super) fn arm_cancelable(&self, deadline: u64) -> CancelHandle {
        let handle = self.arm_idle(deadline);
        self.deadlines.slots.borrow_mut()[self.slot as usize].idle = false;
        handle
    }

    /// For the next operation of a cancelable read that is made of several.
    pub(super) fn cancel_handle(&self) -> CancelHandle {
        let mut slots = self.deadlines.slots.borrow_mut();
        slots[self.slot as usize].canceller.get_or_insert_with(Canceller::new).handle()
    }

    /// Whether the cancelable read that is armed was cancelled, by its deadline or from outside: maybe just when an
    /// operation of it had ended by itself.
    pub(super) fn is_cancelled(&self) -> bool {
        let slots = self.deadlines.slots.borrow();
        let slot = &slots[self.slot as usize];
        slot.read_fired || slot.cancelled
    }

    /// Cancels what was armed as cancelable.
    pub(super) fn cancel_read(&self) {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        slot.cancelled = true;
        slot.canceller = slot.canceller.take().map(Canceller::cancel);
        if slot.socket == NO_SOCKET {
            slot.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// A read of a lane begins: as [`Ticket::arm_read`], and it may be cancelled.
    pub(super) fn arm_lane(&self, deadline: u64) {
        self.arm_read(deadline, OnDeadline::Wake);
        self.deadlines.slots.borrow_mut()[self.slot as usize].cancelled = false;
    }

    /// Whether the read of a lane that is armed has been ended, by its deadline or from outside; else `waker` is woken when it is.
    pub(super) fn has_ended(&self, waker: &Waker) -> bool {
        self.wake_on_deadline(waker) || self.is_cancelled()
    }

    /// Whether the write to a lane that is armed has come to its deadline; else `waker` is woken when it does.
    pub(super) fn write_has_ended(&self, waker: &Waker) -> bool {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        slot.write_waker.get_or_insert_with(|| waker.clone()).clone_from(waker);
        slot.write_fired
    }

    /// Wakes who waits on a lane.
    pub(super) fn wake(&self) {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        let wakers = [slot.waker.take(), slot.write_waker.take()];
        drop(slots);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Brings the deadline of a read in flight forward.
    pub(super) fn read_by(&self, deadline: u64) {
        {
            let mut slots = self.deadlines.slots.borrow_mut();
            let slot = &mut slots[self.slot as usize];
            slot.read_at = slot.read_at.min(deadline);
        }
        self.deadlines.wake_for(deadline);
    }

    /// The wait for the next request goes on without a buffer: the connection ends at `deadline`.
    pub(super) fn arm_parked(&self, clock: &Clock, deadline: u64) {
        // Its task closes it then, and says so where it is encrypted.
        self.arm_read(self.parked_until(clock, deadline), OnDeadline::ShutdownRead);
        self.deadlines.slots.borrow_mut()[self.slot as usize].idle = true;
    }

    /// The same on a lane.
    pub(super) fn arm_parked_lane(&self, clock: &Clock, deadline: u64) {
        self.arm_lane(self.parked_until(clock, deadline));
        self.deadlines.slots.borrow_mut()[self.slot as usize].idle = true;
    }

    fn parked_until(&self, clock: &Clock, deadline: u64) -> u64 {
        match self.deadlines.draining.get() {
            true => deadline.min(clock.after(Deadlines::DRAIN_IDLE)),
            false => deadline,
        }
    }

    /// The read has ended: whether its deadline ended it.
    pub(super) fn disarm_read(&self) -> bool {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        slot.read_at = NEVER;
        slot.idle = false;
        std::mem::take(&mut slot.read_fired)
    }

    /// A write begins that shall end by `deadline`.
    pub(super) fn arm_write(&self, deadline: u64) {
        let deadline = deadline.min(self.deadlines.ends.get());
        {
            let mut slots = self.deadlines.slots.borrow_mut();
            let slot = &mut slots[self.slot as usize];
            slot.write_at = deadline;
            slot.write_fired = false;
        }
        self.deadlines.wake_for(deadline);
    }

    /// Puts the deadline of a write in flight off. Costs one look too early at most: nobody need be woken.
    pub(super) fn write_until(&self, deadline: u64) {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        if slot.write_at != NEVER {
            slot.write_at = deadline;
        }
    }

    /// The write has ended: whether its deadline ended it.
    pub(super) fn disarm_write(&self) -> bool {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        slot.write_at = NEVER;
        slot.writes = slot.writes.wrapping_add(1);
        std::mem::take(&mut slot.write_fired)
    }

    /// How many writes are over, parts of long ones included; it wraps.
    pub(super) fn writes(&self) -> u32 {
        self.deadlines.slots.borrow()[self.slot as usize].writes
    }

    /// The socket that this is the place of.
    pub(super) fn socket(&self) -> RawFd {
        self.deadlines.slots.borrow()[self.slot as usize].socket
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut slots = self.deadlines.slots.borrow_mut();
        let slot = &mut slots[self.slot as usize];
        slot.read_at = NEVER;
        slot.write_at = NEVER;
        slot.idle = false;
        slot.canceller = None;
        slot.waker = None;
        slot.write_waker = None;
        drop(slots);
        self.deadlines.free.borrow_mut().push(self.slot);
    }
}
