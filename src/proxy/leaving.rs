//! Callers by HTTP/1.1 that leave while their request waits in this proxy: the only way to learn of it is to read. Called by what
//! waits before anything is done upstream (a place at the service, a fault).

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::downstream::Downstream;
use crate::io::{Connection, Fault};
use crate::shard::clock::NEVER;

/// What becomes of what the caller sends meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// It stays in the input, for later. When that is full nothing more is read, and so the caller's end is not seen.
    Keep,
    /// It is dropped, and so is all that lies in the input behind so many octets: nobody will want it.
    DropBehind(usize),
}

/// Waits for `wait`, which must bear to be dropped, unless the caller closes its side: then `None`.
pub(super) async fn unless_gone<F: Future>(
    downstream: &mut Downstream,
    meanwhile: Meanwhile,
    mut wait: Pin<&mut F>,
) -> Option<F::Output> {
    let caller = downstream.connection.control();
    let Downstream { connection: Connection { reader, .. }, input, .. } = downstream;
    let over = Cell::new(false);
    let mut gone = pin!(async {
        if let Meanwhile::DropBehind(front) = meanwhile {
            input.truncate(front);
        }
        // Without room nothing can be read, not even the end.
        while !over.get() && input.len() < input.capacity() {
            match reader.read_cancelable(input, 0, NEVER).await {
                Ok(0) | Err(Fault::Closed | Fault::Reset | Fault::Alert) => return true,
                Ok(_) => {
                    if let Meanwhile::DropBehind(front) = meanwhile {
                        input.truncate(front);
                    }
                }
                Err(_) => return false,
            }
        }
        false
    });
    let mut watched = true;
    let output = poll_fn(|cx| {
        if let Poll::Ready(output) = wait.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if watched && let Poll::Ready(gone) = gone.as_mut().poll(cx) {
            watched = false;
            if gone {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    })
    .await;
    if watched {
        over.set(true);
        caller.cancel_read();
        // No read in flight is dropped. What it brings in its last moment is kept.
        gone.await;
    }
    output
}
