//! Connections that must be looked after although nothing comes from them: shared HTTP/2 connections, which are pinged,
//! told of a drain, and closed when idle. Each says when it wants to be looked at next; the shard's tick, once a second,
//! wakes those whose time has come. Refuses to know what they do then.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

use super::clock::NEVER;

/// All that are watched on a shard.
#[derive(Default)]
pub struct Watch {
    all: RefCell<Vec<Weak<Watched>>>,
}

/// One that is watched; no longer when it is dropped.
pub struct Watched {
    due: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// Begins to watch.
    pub fn register(&self) -> Rc<Watched> {
        let watched = Rc::new(Watched { due: Cell::new(NEVER), waker: RefCell::default() });
        self.all.borrow_mut().push(Rc::downgrade(&watched));
        watched
    }

    /// Wakes those that are due.
    pub fn tick(&self, now: u64) {
        self.wake(|watched| watched.due.get() <= now);
    }

    /// Wakes all.
    pub fn wake_all(&self) {
        self.wake(|_| true);
    }

    fn wake(&self, which: impl Fn(&Watched) -> bool) {
        self.all.borrow_mut().retain(|weak| {
            let Some(watched) = weak.upgrade() else { return false };
            if which(&watched)
                && let Some(waker) = watched.waker.borrow_mut().take()
            {
                waker.wake();
            }
            true
        });
    }
}

impl Watched {
    /// To be called in every poll: whom to wake, and when at the latest.
    pub fn look_at(&self, due: u64, cx: &Context<'_>) {
        self.due.set(due);
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}
