//! What a shard does about memory: knows how much of its room is spoken for, refuses, sees to it that what is in flight hardly grows
//! where memory is tight, and gives back what lies idle. What is decided where stands in `pressure`.

use std::cell::Cell;

use super::blocks;
use super::buffers::{Buffer, Buffers};
use super::pressure::{Load, Pressure, Spoken};
use super::state::Shard;
use crate::io::sealed;
use crate::route::{Priority, Route};

/// See [`Shard::expect_head`].
pub struct Expected<'s>(&'s Cell<u64>);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Shard {
    /// How short of memory the process is: as control has told, and by what is spoken for on this shard.
    pub fn pressure(&self) -> Pressure {
        let told = self.link.pressure();
        self.spoken().map_or(told, |spoken| told.with(spoken))
    }

    /// Whether bodies go on in small pieces, because memory is short or might become so.
    pub fn is_tight(&self) -> bool {
        let told = self.link.pressure();
        told > Pressure::None || self.spoken().is_some_and(|spoken| told.is_tight(spoken))
    }

    /// What is spoken for of what this shard may take until control looks again; `None` without a ceiling.
    fn spoken(&self) -> Option<Spoken> {
        let load = || Load {
            connections: self.totals.downstream_open.get() + self.tally.open.get(),
            buffers: self.buffers.taken() as u64,
            large: self.buffers.large_taken() as u64,
            heads: self.totals.heads_awaited.get(),
            awaited: self.totals.answers_awaited.get(),
            handshakes: self.totals.handshakes_open.get(),
        };
        let (spoken, since) = self.link.spoken(self.since.get(), load)?;
        self.since.set(since);
        Some(spoken)
    }

    /// Whether a connection that lay quiet, without a buffer, may ask again. Where not even a refusal has room it is closed, as
    /// it would have been a moment later: thousands may wake at once.
    pub fn rouses(&self) -> bool {
        let rouses = self.pressure() < Pressure::All;
        if !rouses {
            self.closed_for_memory(1);
        }
        rouses
    }

    /// A buffer waits for what a caller says first, until this is dropped.
    pub fn expect_head(&self) -> Expected<'_> {
        let count = &self.totals.heads_awaited;
        count.set(count.get() + 1);
        Expected(count)
    }

    /// A buffer for a body of which so much may come: a large one, unless memory is tight.
    pub fn take_for_body(&self, left: u64) -> Option<Buffer> {
        match left > Buffers::SMALL as u64 / 2 && !self.is_tight() {
            true => self.buffers.take_large(),
            false => self.buffers.take_small(),
        }
    }

    /// Empties a buffer for the next part of a body of which so much may still come. Large and few operations for a long one; where
    /// memory is tight small and many.
    pub fn empty_for_body(&self, buffer: &mut Buffer, left: u64) {
        buffer.clear();
        let is_large = buffer.capacity() >= Buffers::LARGE;
        if (is_large || left > Buffers::SMALL as u64 / 2)
            && self.is_tight() == is_large
            && let Some(other) = if is_large { self.buffers.take_small() } else { self.buffers.take_large() }
        {
            self.buffers.give(std::mem::replace(buffer, other));
        }
    }

    /// How many octets at the end of a buffer stay free at the next read of an answer: where memory is tight all but a page, so
    /// that what is in flight hardly grows.
    pub fn keeps_free(&self, buffer: &[u8], capacity: usize) -> usize {
        const PAGE: usize = 4096;
        match self.is_tight() {
            true => capacity.saturating_sub((buffer.len() + 1).next_multiple_of(PAGE)),
            false => 0,
        }
    }

    /// Whether a new request is refused because memory is short.
    pub fn sheds(&self, route: Option<&Route>) -> bool {
        let pressure = self.pressure();
        pressure > Pressure::Connections
            && pressure.refuses(route.map_or_else(Priority::default, |r| r.priority))
    }

    /// Gives back what lies idle where memory is short: connections that have been quiet for a second, buffers that are kept ready.
    /// At once when that begins, and then once a second.
    pub(super) fn relieve(&self, again: bool) {
        /// As long as a quiet caller holds a buffer.
        const QUIET_NS: u64 = 1_000_000_000;
        let pressure = self.pressure();
        if pressure == Pressure::None || (!again && pressure <= self.relieved.get()) {
            self.relieved.set(pressure);
            return;
        }
        self.relieved.set(pressure);
        let before = self.clock.now().saturating_sub(QUIET_NS);
        let mut closed = self.deadlines.end_quiet(&self.clock);
        for service in self.view().services.borrow().values() {
            closed += service.close_quiet(before);
        }
        self.buffers.release();
        sealed::release();
        blocks::release();
        // Connections of HTTP/2 see to it themselves.
        self.watch.wake_all();
        self.closed_for_memory(closed);
    }

    /// Counts idle connections that were closed because memory is short.
    pub(crate) fn closed_for_memory(&self, closed: u64) {
        self.totals.memory_closed.set(self.totals.memory_closed.get() + closed);
    }
}
