//! The frame around every task of a shard: reads the clock before each poll, measures how long it took, and keeps a
//! panic inside the task.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use super::link::Notice;
use super::state::Shard;

/// Starts a task on this shard. A panic ends the task alone: it is counted and reported with its cause, and what the
/// task owned (its connection, its counts) is dropped.
pub(crate) fn spawn(shard: &Rc<Shard>, task: impl Future<Output = ()> + 'static) {
    let shard = Rc::clone(shard);
    // The runtime's handle is not needed: nobody waits for a task.
    drop(monoio::spawn(async move {
        let mut task = pin!(task);
        poll_fn(|cx| framed(&shard, || task.as_mut().poll(cx)).unwrap_or(Poll::Ready(()))).await;
    }));
}

/// Runs one step on the shard within the frame; `None` when it panicked.
pub(super) fn framed<R>(shard: &Shard, step: impl FnOnce() -> R) -> Option<R> {
    let began = shard.clock.refresh();
    // What a half-done step may have left behind is dropped with its task; what the shard owns is borrowed for single
    // statements only.
    let result = catch_unwind(AssertUnwindSafe(step));
    let held_ns = shard.clock.refresh() - began;
    if held_ns > shard.stall_threshold_ns {
        shard.stalled(held_ns);
    }
    match result {
        Ok(result) => Some(result),
        Err(cause) => {
            shard.totals.panics.set(shard.totals.panics.get() + 1);
            let cause = cause
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| cause.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown".to_owned());
            shard.notice(Notice::Panic { cause });
            None
        }
    }
}
