//! The two-way connection between control and one shard: latest-wins snapshot, bounded queues, a doorbell.
//!
//! Control never touches what a shard owns and never wakes one of its tasks (the runtime forbids it): it leaves
//! something here and rings, which is one byte on a socket pair that the shard reads through its ring. Other shards ring,
//! too, when they hand over a place at a service (`upstream::gate`). A shard never
//! waits for control: a full queue means "keep it and try at the next tick", or "drop and count" where the queue's
//! field says so.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crossbeam::atomic::AtomicCell;
use crossbeam::queue::ArrayQueue;

pub use super::blocks::release as give_back;
pub use super::pressure::{Load, Pressure, Since, Spoken, room};
use super::together::Together;
use crate::failure::{Cause, Failure};
use crate::snapshot::Snapshot;
use crate::telemetry::Interval;
use crate::telemetry::spans::Chunk;
use crate::upstream::gate::Bell;
use crate::upstream::health::Reason;
use crate::upstream::spec::Address;

/// Shared by control and one shard.
pub struct Link {
    /// Which shard.
    pub shard: u16,
    /// The newest snapshot that the shard has not taken yet.
    next: AtomicCell<Option<Arc<Snapshot>>>,
    /// What else the shard is to do, in order.
    orders: ArrayQueue<Order>,
    /// Control's end of the doorbell; non-blocking. A full pipe is fine: the shard will wake anyway.
    doorbell: UnixStream,

    /// Intervals for control to merge. Full: the shard adds to the interval it holds and counts `intervals_merged`.
    pub intervals: ArrayQueue<Box<Interval>>,
    /// Intervals that control has merged and cleared, for the shard to use again.
    pub spent: ArrayQueue<Box<Interval>>,
    /// Snapshots that the shard no longer uses, to be dropped by control.
    pub retired: ArrayQueue<Arc<Snapshot>>,
    /// Things to be logged. Full: dropped and counted.
    pub notices: ArrayQueue<Notice>,
    /// Chunks of whole access log lines, to be written out by control. Full: lines are dropped and counted.
    pub chunks: ArrayQueue<Vec<u8>>,
    /// Chunks that control has written and emptied, for the shard to use again.
    pub spent_chunks: ArrayQueue<Vec<u8>>,
    /// Chunks of whole spans, to be sent to the collector by control. Full: spans are dropped and counted.
    pub spans: ArrayQueue<Chunk>,
    /// Chunks that control has taken and emptied, for the shard to use again.
    pub spent_spans: ArrayQueue<Chunk>,
    /// What control may look at at any time.
    pub vitals: Vitals,
    /// What all shards of the proxy count together.
    pub(super) together: Arc<Together>,
}

/// What a shard is told beside snapshots.
#[derive(Debug)]
pub enum Order {
    /// Accept on this socket, for the listener of that name.
    Listen(Arc<str>, std::net::TcpListener),
    /// Stop accepting for the listener of that name; open connections stay until they are done.
    Unlisten(Arc<str>),
    /// Stop accepting, close idle connections, tell the others with `Connection: close`, end when all are done.
    Drain,
    /// The drain has lasted long enough: end every wait, so that what is still open is recorded as cut, and end.
    Cut,
    /// Answer by setting `Vitals::pong` to this number: proves that the data path runs.
    Ping(u64),
}

/// Something on a shard that an operator should read.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Open connections were ended because they are not allowed any more.
    Revoked {
        /// Why.
        cause: Cause,
        /// How many at once.
        connections: u64,
        /// One of them, in words.
        one: String,
    },
    /// A connection's task panicked; the connection was closed.
    Panic { cause: String },
    /// A task kept the shard for this long.
    Stall { held_ns: u64 },
    /// The runtime that the shard got, unless it is the best: `None` if it got none, and then it ends. `refused` says
    /// what was asked for in vain (nothing where this one was chosen), `cost` what that means.
    Runtime { used: Option<&'static str>, refused: String, cost: &'static str },
    /// Accepting failed (out of file descriptors, for instance).
    Accept { listener: Arc<str>, error: String },
    /// A TLS handshake failed: with whom (address, and listener or service), and in whose words why.
    Handshake { failure: Failure, peer: String, words: String },
    /// An endpoint was ejected (why, and for how many ns), or is used again.
    Breaker { service: Arc<str>, endpoint: Option<Address>, ejected: Option<(Reason, u64)> },
    /// An order could not be carried out.
    Failed { what: String },
}

/// What control may look at at any time.
#[derive(Debug, Default)]
pub struct Vitals {
    /// The number of the last ping answered.
    pub pong: AtomicU64,
    /// The generation of the snapshot in use; 0 before the first.
    pub generation: AtomicU64,
    /// Open downstream connections.
    pub downstream_open: AtomicU64,
    /// 1 when all listeners of the first snapshot accept.
    pub accepting: AtomicU64,
    /// 1 when the shard has drained and its thread is about to end.
    pub ended: AtomicU64,
    /// How short of memory the process is, by number. Written by control.
    pressure: AtomicU8,
    /// How often control has looked at the process's memory.
    looks: AtomicU64,
    /// How many octets more than then the shard may hold until it looks again, and one; 0 where there is no ceiling.
    room: AtomicU64,
    /// What the shard last said that it holds, and what that was when control last began to look.
    holds: AtomicU64,
    held: AtomicU64,
}

impl Link {
    /// Intervals in flight: control merges every second, four mean it may be three seconds late.
    const INTERVALS_MAX: usize = 4;
    /// Orders waiting: a reload gives at most two per listener; control waits when it is full.
    const ORDERS_MAX: usize = 256;
    /// Notices waiting.
    const NOTICES_MAX: usize = 64;
    /// Access log chunks in flight: with 64 KiB each, 1 MiB of log lines per shard.
    pub const CHUNKS_MAX: usize = 16;
    /// Chunks of spans in flight: with 64 KiB each, 1 MiB of spans per shard, which is some two thousand.
    pub const SPAN_CHUNKS_MAX: usize = 16;

    /// A link, and the shard's end of the doorbell.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(shard: u16) -> io::Result<(Arc<Self>, UnixStream)> {
        Self::among(shard, &Arc::default())
    }

    /// The same for one of several shards, which count some things together.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn among(shard: u16, together: &Arc<Together>) -> io::Result<(Arc<Self>, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let link = Self {
            shard,
            next: AtomicCell::new(None),
            orders: ArrayQueue::new(Self::ORDERS_MAX),
            doorbell: ours,
            intervals: ArrayQueue::new(Self::INTERVALS_MAX),
            spent: ArrayQueue::new(Self::INTERVALS_MAX),
            retired: ArrayQueue::new(Self::INTERVALS_MAX),
            notices: ArrayQueue::new(Self::NOTICES_MAX),
            chunks: ArrayQueue::new(Self::CHUNKS_MAX),
            spent_chunks: ArrayQueue::new(Self::CHUNKS_MAX),
            spans: ArrayQueue::new(Self::SPAN_CHUNKS_MAX),
            spent_spans: ArrayQueue::new(Self::SPAN_CHUNKS_MAX),
            vitals: Vitals::default(),
            together: Arc::clone(together),
        };
        Ok((Arc::new(link), theirs))
    }

    /// Control: makes `snapshot` the next one, in place of one that the shard has not taken yet.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        drop(self.next.swap(Some(snapshot)));
        self.ring();
    }

    /// Control: adds an order.
    ///
    /// # Errors
    /// Gives the order back when `ORDERS_MAX` are waiting.
    pub fn order(&self, order: Order) -> Result<(), Order> {
        self.orders.push(order)?;
        self.ring();
        Ok(())
    }

    /// Control: so short of memory is the process from now on.
    pub fn press(&self, pressure: Pressure) {
        self.vitals.pressure.store(pressure as u8, Ordering::Release);
        self.ring();
    }

    /// Control: is going to look at the process's memory. What the shard takes from here on may be seen, or not.
    pub fn looks(&self) {
        self.vitals.held.store(self.vitals.holds.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Control: has looked. Until it does again the shard may hold so many octets more; `None`: there is no
    /// ceiling.
    pub fn looked(&self, room: Option<u64>) {
        self.vitals.room.store(room.map_or(0, |room| room.saturating_add(1)), Ordering::Relaxed);
        self.vitals.looks.fetch_add(1, Ordering::Release);
    }

    /// Shard: what is spoken for of what it may take, and what is known of the last look from here on; `None` without a ceiling.
    pub fn spoken(&self, since: Since, load: impl FnOnce() -> Load) -> Option<(Spoken, Since)> {
        let look = self.vitals.looks.load(Ordering::Acquire);
        let room = self.vitals.room.load(Ordering::Relaxed).checked_sub(1)?;
        let load = load();
        self.vitals.holds.store(load.holds(), Ordering::Relaxed);
        let since = since.at(look, self.vitals.held.load(Ordering::Relaxed), &load);
        Some((since.spoken(&load, room), since))
    }

    /// How short of memory the process is.
    pub fn pressure(&self) -> Pressure {
        Pressure::of(self.vitals.pressure.load(Ordering::Relaxed))
    }

    /// Shard: the newest snapshot, once.
    pub fn take_snapshot(&self) -> Option<Arc<Snapshot>> {
        self.next.take()
    }

    /// Shard: the next order.
    pub fn take_order(&self) -> Option<Order> {
        self.orders.pop()
    }

    /// Control: whether the shard runs generation `generation` or a later one.
    pub fn runs(&self, generation: u64) -> bool {
        self.vitals.generation.load(Ordering::Acquire) >= generation
    }

    fn ring(&self) {
        // WouldBlock: bytes are waiting already. Any other error: the shard is gone, which control sees by `ended`.
        let _ = (&self.doorbell).write(&[1]);
    }
}

/// Another shard has handed a place at a service to this one.
impl Bell for Link {
    fn ring(&self) {
        Self::ring(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_doorbell_rings_and_never_blocks() {
        let (link, mut theirs) = Link::new(0).unwrap();
        for n in 0..100_000 {
            // Far more rings than the socket buffer holds, and nobody reads.
            let _ = link.order(Order::Ping(n));
        }
        let mut byte = [0];
        theirs.read_exact(&mut byte).unwrap();
        assert!(matches!(link.take_order(), Some(Order::Ping(0))));
    }
}
