//! What the gathered I/O of HTTP/2 needs of a shard: buffers, time, and the counting of floods.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};

use crate::http::h2::watch::{Flood, Watch};
use crate::io::gather::{Inspect, Lender, Vital};
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::shard::clock::{Clock, NEVER, ns};
use crate::telemetry::FLOODS;

const _: () = assert!(Flood::ALL.len() == FLOODS.len(), "each has a label");

/// A shard as lender.
#[derive(Clone)]
pub(super) struct Lent(Rc<Shard>);

impl Lent {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        Self(Rc::clone(shard))
    }
}

impl Lender for Lent {
    type Buffer = Buffer;

    fn small(&self) -> Option<Buffer> {
        self.0.buffers.take_small()
    }

    fn large(&self) -> Option<Buffer> {
        self.0.buffers.take_large()
    }

    fn give(&self, buffer: Buffer) {
        self.0.buffers.give(buffer);
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }
}

/// Counts frames against their budgets, and what went over them.
pub(super) struct Floods {
    shard: Rc<Shard>,
    watch: Watch,
}

impl Floods {
    pub(super) fn of_caller(shard: &Rc<Shard>) -> Self {
        Self { shard: Rc::clone(shard), watch: Watch::of_caller() }
    }

    pub(super) fn of_service(shard: &Rc<Shard>) -> Self {
        Self { shard: Rc::clone(shard), watch: Watch::of_service() }
    }
}

impl Inspect for Floods {
    fn sent(&mut self, octets: u64) {
        self.watch.sent(octets);
    }

    fn inspect(&mut self, bytes: &[u8]) -> bool {
        self.watch.at(self.shard.clock.now());
        match self.watch.feed(bytes) {
            Ok(()) => true,
            Err(flood) => {
                let count = &self.shard.totals.floods[flood as usize];
                count.set(count.get() + 1);
                false
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.watch.has_begun()
    }
}

/// Pings a connection that is silent although exchanges are open on it.
pub(super) struct Keepalive {
    ping: Option<PingPong>,
    interval_ns: u64,
    timeout_ns: u64,
    pinged_at: Option<u64>,
}

impl Keepalive {
    pub(super) fn new(ping: Option<PingPong>, interval: Duration, timeout: Duration) -> Self {
        Self { ping, interval_ns: ns(interval), timeout_ns: ns(timeout), pinged_at: None }
    }

    /// When to look again; `None` when the peer did not answer in time.
    pub(super) fn poll(&mut self, vital: &Vital<Lent>, now: u64, cx: &mut Context<'_>) -> Option<u64> {
        let Some(ping) = self.ping.as_mut().filter(|_| self.interval_ns > 0) else { return Some(NEVER) };
        if self.pinged_at.is_some() && matches!(ping.poll_pong(cx), Poll::Ready(Ok(_))) {
            self.pinged_at = None;
        }
        match self.pinged_at {
            Some(at) if now >= at + self.timeout_ns => None,
            Some(at) => Some(at + self.timeout_ns),
            None if now >= vital.last_read_at() + self.interval_ns => {
                if ping.send_ping(Ping::opaque()).is_ok() {
                    self.pinged_at = Some(now);
                    // Sent by the next poll of the connection, which shall be now.
                    cx.waker().wake_by_ref();
                }
                Some(now + self.timeout_ns)
            }
            None => Some(vital.last_read_at() + self.interval_ns),
        }
    }
}
