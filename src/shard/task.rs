//! The frame around every task of a shard: reads the clock before each poll, measures how long it took, and keeps a
//! panic inside the task.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::link::Notice;
use super::state::Shard;

/// Starts a task on this shard. A panic ends the task alone: it is counted and reported with its cause, and what the
/// task owned (its connection, its counts) is dropped.
pub(crate) fn spawn(shard: &Rc<Shard>, task: impl Future<Output = ()> + 'static) {
    // The runtime's handle is not needed: nobody waits for a task.
    drop(monoio::spawn(Framed { shard: Rc::clone(shard), task }));
}

/// A future in a box, made where it stays. `Box::pin` of a finished future copies all of it, mostly room that holds nothing yet:
/// two KiB a request, 1 % of its CPU. To be used where each request passes.
pub(crate) fn boxed<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}

pin_project! {
    /// A task in its frame. A type of its own, because an `async` block would hold the task twice (as what it captured
    /// and as what it pinned), and there is one per connection.
    struct Framed<F> {
        shard: Rc<Shard>,
        #[pin]
        task: F,
    }
}

impl<F: Future<Output = ()>> Future for Framed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        framed(this.shard, || this.task.poll(cx)).unwrap_or(Poll::Ready(()))
    }
}

/// Runs one step on the shard within the frame; `None` when it panicked.
pub(super) fn framed<R>(shard: &Shard, step: impl FnOnce() -> R) -> Option<R> {
    let began = shard.clock.refresh();
    // What a half-done step may have left behind is dropped with its task; what the shard owns is borrowed for single
    // statements only.
    let result = catch_unwind(AssertUnwindSafe(step));
    if shard.clock.coarse().saturating_sub(began) > shard.stall_threshold_ns {
        shard.stalled(shard.clock.refresh() - began);
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
