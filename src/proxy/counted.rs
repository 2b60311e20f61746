//! What is open at a shard, counted for as long as it lasts, however it ends. Held by `serve` and by both exchanges.

use std::rc::Rc;

use crate::shard::Shard;

/// Counts an open downstream connection, which was let in ([`Shard::lets_in`]), until it is dropped.
pub(super) struct Open(Rc<Shard>);

impl Open {
    pub(super) fn count(shard: &Rc<Shard>) -> Self {
        shard.totals.downstream_open.set(shard.totals.downstream_open.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.totals.downstream_open.set(self.0.totals.downstream_open.get() - 1);
        self.0.let_out();
    }
}

/// Counts an exchange in progress until it is dropped.
pub(super) struct InProgress(Rc<Shard>);

impl InProgress {
    pub(super) fn count(shard: &Rc<Shard>) -> Self {
        shard.totals.exchanges_open.set(shard.totals.exchanges_open.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.totals.exchanges_open.set(self.0.totals.exchanges_open.get() - 1);
    }
}

/// Counts an exchange that waits for its answer until it is dropped: what it may yet take of memory is promised.
pub(super) struct Awaiting(Rc<Shard>);

impl Awaiting {
    pub(super) fn count(shard: &Rc<Shard>) -> Self {
        shard.totals.answers_awaited.set(shard.totals.answers_awaited.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.0.totals.answers_awaited.set(self.0.totals.answers_awaited.get() - 1);
    }
}
