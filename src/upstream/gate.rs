//! Places at a service that all shards of the proxy share: counted exactly, without a lock, and handed on to the most important,
//! and among equals in the order in which they were asked for.
//!
//! One word holds how many places are taken and how many tickets are out, so that no step can see one without the other:
//! a place is taken while there is one and nobody waits; who finds none leaves a ticket, which names his shard and how
//! important he is; a place that is given back goes to the shard of the oldest of the most important tickets, without being
//! free in between, or becomes free. So there is never one more than the ceiling, nothing is lost between two shards, no
//! shard keeps places that it does not use (with a ceiling of 1 any of them can have it), and shards come to their turn in
//! the order of their tickets. Which of its equally important waiters gets the place is a shard's own business (`line`,
//! `limiter`).
//!
//! A ticket is never taken back. A shard whose waiter has gone uses it for the next one as important, or hands the place on
//! when it comes; so there are at most as many tickets of a shard as waiters that it once had at a time. Where a ceiling is
//! lowered, places are not handed on until fewer are taken. Atomic operations on shared words cost 5 ns while one shard
//! is at it and 40 to 100 ns when many are, twice for each exchange: less than to lend out places in chunks and to call
//! them back would.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use crossbeam::queue::SegQueue;

use crate::route::Priority;

/// Between two steps that other shards may come between: where tests let them.
#[cfg(not(test))]
const fn step() {}
#[cfg(test)]
use tests::step;

/// Tells a shard that something was left for it. Called from any thread; must not wait.
pub trait Bell: Send + Sync {
    /// Tells it.
    fn ring(&self);
}

/// Places that all shards share.
pub struct Gate {
    /// Places taken in the low half, tickets in the high one.
    state: AtomicU64,
    /// As configured.
    cap: AtomicU32,
    /// As learnt.
    limit: AtomicU32,
    /// Those who wait, and how many may.
    waiting: AtomicU32,
    waiting_max: AtomicU32,
    /// By priority.
    tickets: [SegQueue<Arc<Seat>>; Priority::COUNT],
}

/// Where a shard finds the places that it was handed.
pub struct Seat {
    /// By priority, in a third of the word each.
    granted: AtomicU64,
    /// The shard takes nothing more.
    closed: AtomicBool,
    bell: Arc<dyn Bell>,
}

const TICKET: u64 = 1 << 32;

/// Bits for what was granted by one priority: twice as many as tickets there are, which are no more than wait at a time, for
/// which a million is the most that can be configured.
const GRANTED_BITS: usize = 21;

/// By priority.
const fn granted(word: u64) -> [u32; Priority::COUNT] {
    const ONE: u64 = (1 << GRANTED_BITS) - 1;
    [(word & ONE) as u32, (word >> GRANTED_BITS & ONE) as u32, (word >> (2 * GRANTED_BITS) & ONE) as u32]
}

/// Places taken, tickets.
const fn halves(state: u64) -> (u32, u32) {
    (state as u32, (state >> 32) as u32)
}

impl Gate {
    /// For so many at a time, and so many who wait. [`u32::MAX`] is no ceiling.
    pub fn new(cap: u32, waiting_max: u32) -> Self {
        Self {
            state: AtomicU64::new(0),
            cap: AtomicU32::new(cap),
            limit: AtomicU32::new(u32::MAX),
            waiting: AtomicU32::new(0),
            waiting_max: AtomicU32::new(waiting_max),
            tickets: [const { SegQueue::new() }; Priority::COUNT],
        }
    }

    /// Takes a place, if there is one and nobody waits.
    pub fn enter(&self) -> bool {
        let room = self.room();
        step();
        let taken = |state| {
            let (taken, tickets) = halves(state);
            (tickets == 0 && taken < room).then_some(state + 1)
        };
        self.state.fetch_update(SeqCst, SeqCst, taken).is_ok()
    }

    /// One more waits, unless as many as may do; whoever it is leaves a ticket then, or has one left. Until
    /// [`Gate::waits_no_more`].
    pub fn waits(&self) -> bool {
        let most = self.waiting_max.load(SeqCst);
        step();
        let one_more = |waiting| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    /// One who waited does not any more.
    pub fn waits_no_more(&self) {
        self.waiting.fetch_sub(1, SeqCst);
    }

    /// A place for this shard, when its turn comes: maybe at once, if one has become free meanwhile.
    pub fn ticket(&self, seat: &Arc<Seat>, priority: Priority) {
        // First the ticket, then its number: who finds a number finds a ticket.
        step();
        self.tickets[priority as usize].push(Arc::clone(seat));
        step();
        self.state.fetch_add(TICKET, SeqCst);
        self.settle(seat);
    }

    /// Gives a place back: to whoever is next. If that is the shard itself (`own`), it is not told.
    pub fn leave(&self, own: &Arc<Seat>) {
        let mut places = 1;
        while places > 0 {
            places -= 1;
            if self.give_back() {
                places += self.next_seat(own);
            }
        }
    }

    /// Hands out what is free to those who wait: after a ceiling was raised.
    pub fn settle(&self, own: &Arc<Seat>) {
        loop {
            let room = self.room();
            step();
            let handed_out = |state| {
                let (taken, tickets) = halves(state);
                (tickets > 0 && taken < room).then(|| state + 1 - TICKET)
            };
            if self.state.fetch_update(SeqCst, SeqCst, handed_out).is_err() {
                return;
            }
            for _ in 0..self.next_seat(own) {
                self.leave(own);
            }
        }
    }

    /// A place that was taken is free again (`false`), or belongs to the next ticket (`true`).
    fn give_back(&self) -> bool {
        let room = self.room();
        let handed_on = |state| {
            let (taken, tickets) = halves(state);
            tickets > 0 && taken <= room
        };
        step();
        let given_back = |state: u64| Some(if handed_on(state) { state - TICKET } else { state - 1 });
        self.state.fetch_update(SeqCst, SeqCst, given_back).is_ok_and(handed_on)
    }

    /// Hands a place to the next ticket, of which there is one; how many come back because that shard is gone.
    fn next_seat(&self, own: &Arc<Seat>) -> u32 {
        loop {
            for (priority, tickets) in Priority::ALL.into_iter().zip(&self.tickets) {
                step();
                if let Some(seat) = tickets.pop() {
                    return seat.grant(priority, Arc::ptr_eq(&seat, own));
                }
            }
            // There is one for each that was counted. Whoever took it where this one had yet to look left another one where
            // it had looked before.
        }
    }

    fn room(&self) -> u32 {
        step();
        self.cap.load(SeqCst).min(self.limit.load(SeqCst))
    }

    /// Sets the ceilings. Those who wait notice when a shard calls [`Gate::settle`].
    pub fn set(&self, cap: u32, waiting_max: u32) {
        self.cap.store(cap, SeqCst);
        self.waiting_max.store(waiting_max, SeqCst);
    }

    /// Sets the ceiling that is learnt, beside the one that is configured. As [`Gate::set`].
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, SeqCst);
    }

    /// The lower of both ceilings.
    pub fn ceiling(&self) -> u32 {
        self.room()
    }

    /// Places taken, by all shards.
    pub fn taken(&self) -> u32 {
        halves(self.state.load(SeqCst)).0
    }

    /// Those who wait, on all shards.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// Tickets that are out, those of waiters who are gone included.
    pub fn tickets(&self) -> u32 {
        halves(self.state.load(SeqCst)).1
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (taken, tickets) = halves(self.state.load(SeqCst));
        write!(f, "Gate({taken} of {}, {} waiting, {tickets} tickets)", self.room(), self.waiting())
    }
}

impl Seat {
    /// One with nothing on it.
    pub fn new(bell: Arc<dyn Bell>) -> Arc<Self> {
        Arc::new(Self { granted: AtomicU64::new(0), closed: AtomicBool::new(false), bell })
    }

    /// The places that were handed to this shard since the last call, by the priority of the tickets; `None` for none at all.
    pub fn take(&self) -> Option<[u32; Priority::COUNT]> {
        step();
        if self.granted.load(SeqCst) == 0 {
            return None;
        }
        Some(granted(self.granted.swap(0, SeqCst)))
    }

    /// Takes nothing more; what was handed over before and is to be given back.
    #[must_use]
    pub fn close(&self) -> u32 {
        step();
        self.closed.store(true, SeqCst);
        step();
        granted(self.granted.swap(0, SeqCst)).iter().sum()
    }

    /// Hands one over; how many come back.
    fn grant(&self, priority: Priority, is_own: bool) -> u32 {
        step();
        let before = self.granted.fetch_add(1 << (GRANTED_BITS * priority as usize), SeqCst);
        step();
        if self.closed.load(SeqCst) {
            return granted(self.granted.swap(0, SeqCst)).iter().sum();
        }
        // It was told before, or is the one that calls.
        if before == 0 && !is_own {
            self.bell.ring();
        }
        0
    }
}

/// A count with a ceiling that nobody waits for.
#[derive(Debug)]
pub struct Count {
    taken: AtomicU32,
    max: AtomicU32,
}

impl Count {
    /// For so many at a time.
    pub const fn new(max: u32) -> Self {
        Self { taken: AtomicU32::new(0), max: AtomicU32::new(max) }
    }

    /// Takes one, if there is one.
    pub fn take(&self) -> bool {
        let max = self.max.load(SeqCst);
        self.taken.fetch_update(SeqCst, SeqCst, |taken| (taken < max).then_some(taken + 1)).is_ok()
    }

    /// Gives one back.
    pub fn give_back(&self) {
        self.taken.fetch_sub(1, SeqCst);
    }

    /// Sets the ceiling.
    pub fn set(&self, max: u32) {
        self.max.store(max, SeqCst);
    }

    /// Those taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(SeqCst)
    }

    /// The ceiling.
    pub fn max(&self) -> u32 {
        self.max.load(SeqCst)
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod tests;
