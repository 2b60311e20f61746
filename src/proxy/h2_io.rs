//! What the gathered I/O of HTTP/2 needs of a shard: buffers, time, and the counting of floods.

use std::rc::Rc;

use crate::http::h2::watch::Watch;
use crate::io::gather::{Inspect, Lender};
use crate::shard::Shard;
use crate::shard::clock::Clock;

/// A shard as lender.
#[derive(Clone)]
pub(super) struct Lent(Rc<Shard>);

impl Lent {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        Self(Rc::clone(shard))
    }
}

impl Lender for Lent {
    fn small(&self) -> Option<Vec<u8>> {
        self.0.buffers.take_small()
    }

    fn large(&self) -> Option<Vec<u8>> {
        self.0.buffers.take_large()
    }

    fn give(&self, buffer: Vec<u8>) {
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
    fn inspect(&mut self, bytes: &[u8]) -> bool {
        match self.watch.feed(bytes) {
            Ok(()) => true,
            Err(flood) => {
                let count = &self.shard.totals.floods[flood as usize];
                count.set(count.get() + 1);
                false
            }
        }
    }
}
