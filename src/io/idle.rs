//! The clock of a tunnel: how long neither direction has moved a byte.
//!
//! Both directions share one, because a long silence in one of them is what WebSockets and CONNECT are made of. It needs
//! no timer per operation: a byte costs one store, and one alarm per tunnel looks when the earliest end could have come.
//! A write in flight has a deadline of its own (that of its [`Patience`](super::Patience)), because what it has handed over
//! so far is known to it alone; meanwhile this clock does not run out.

use std::cell::Cell;
use std::future::pending;
use std::time::Duration;

use super::timed::Alarm;
use crate::shard::clock::{Clock, NEVER, ns};

/// When a byte moved last.
pub struct Idle<'c> {
    /// The shard's clock.
    pub clock: &'c Clock,
    /// How long is too long.
    pub timeout: Duration,
    alarm: Alarm,
    moved_at: Cell<u64>,
    writing: Cell<u32>,
}

impl<'c> Idle<'c> {
    /// A write that may have moved bytes is looked after so often within the timeout.
    const LOOKS_WHILE_WRITING: u32 = 8;

    /// A clock that begins now.
    pub fn new(clock: &'c Clock, alarm: Alarm, timeout: Duration) -> Self {
        Self { clock, timeout, alarm, moved_at: Cell::new(clock.now()), writing: Cell::new(0) }
    }

    /// A byte has moved: the moment that silence would end the tunnel at.
    pub fn moved(&self) -> u64 {
        self.moved_at.set(self.clock.now());
        self.clock.after(self.timeout)
    }

    /// A write begins that has a deadline of its own.
    pub fn write_begins(&self) {
        self.writing.set(self.writing.get() + 1);
    }

    /// It has ended.
    pub fn write_ends(&self) {
        self.writing.set(self.writing.get() - 1);
    }

    /// Waits until nothing has moved for the timeout; less when a drain has lasted long enough. May be dropped.
    pub async fn run_out(&self) {
        loop {
            let now = self.clock.now();
            let end = self.moved_at.get().saturating_add(ns(self.timeout));
            if (end <= now && self.writing.get() == 0) || self.alarm.is_cut() {
                return;
            }
            let next = if end <= now { now + ns(self.timeout / Self::LOOKS_WHILE_WRITING) } else { end };
            // Not never: that is what a drain does not cut short.
            self.alarm.until(next.min(NEVER - 1), pending::<()>()).await;
        }
    }
}
