//! Tasks that are ready at the same time go through the same code one after the other.
//!
//! The code of one request is larger than a CPU's first cache of instructions. A shard that takes each request from its first octet to its
//! last fetches all of it anew for each: some 1200 lines of 64 octets where a request by HTTP/1.1 goes on by HTTP/2, by valgrind's count for
//! a cache of 32 KiB. Where a task stands aside in the middle ([`Cohort::regroup`]), those that are ready come to the same place first, and
//! then all go on: each half is fetched once for all of them. (Larus and Parkes, "Using Cohort Scheduling to Enhance Server Performance",
//! USENIX 2002.)
//!
//! A task that is alone would pay for that with one more turn and gain nothing: where the last cohorts were small it goes straight on, but
//! for one in [`PROBE`] that finds out. Refuses to know what tasks do, to order them, and to wait for any that is not ready.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Fewer than these are no cohort.
const SIZE_MIN: u32 = 4;
/// While there is none, one in so many stands aside.
const PROBE: u32 = 16;

/// Those of a shard that stand aside.
#[derive(Default)]
pub struct Cohort {
    waiting: RefCell<Vec<Waker>>,
    /// Of the task that wakes them.
    leader: RefCell<Option<Waker>>,
    /// How many came from the first that stood aside until all were woken, the last time.
    size: Cell<u32>,
    /// How many have come since that was, or since one stood aside.
    came: Cell<u32>,
}

/// See [`Cohort::regroup`].
#[must_use]
pub struct Regroup<'c> {
    cohort: &'c Cohort,
    /// It has stood aside, or does not.
    done: bool,
}

impl Cohort {
    /// Lets the tasks that are ready now come as far.
    pub fn regroup(&self) -> Regroup<'_> {
        let came = self.came.get().saturating_add(1);
        self.came.set(came);
        let is_alone = self.size.get() < SIZE_MIN && (came < PROBE || !self.waiting.borrow().is_empty());
        Regroup { cohort: self, done: is_alone }
    }

    /// Wakes those that stand aside, behind all that were ready before the first of them did. To be run as a task.
    pub async fn lead(self: Rc<Self>) {
        let mut woken = Vec::new();
        poll_fn(|cx| {
            self.leader.borrow_mut().get_or_insert_with(|| cx.waker().clone());
            std::mem::swap(&mut woken, &mut *self.waiting.borrow_mut());
            if !woken.is_empty() {
                self.size.set(self.came.replace(0));
            }
            woken.drain(..).for_each(Waker::wake);
            Poll::<()>::Pending
        })
        .await;
    }
}

impl Future for Regroup<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Whoever woke it the second time: all that is lost is company.
        if std::mem::replace(&mut self.done, true) {
            return Poll::Ready(());
        }
        // Without a leader, where the shard has not begun, nobody would wake it.
        let Some(leader) = &*self.cohort.leader.borrow() else { return Poll::Ready(()) };
        let mut waiting = self.cohort.waiting.borrow_mut();
        if waiting.is_empty() {
            self.cohort.came.set(1);
            leader.wake_by_ref();
        }
        waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of so many tasks did, in the order in which they did it: `a` before it stands aside, `b` after.
    fn run(tasks: usize, rounds: usize) -> String {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
        runtime.block_on(async {
            let (cohort, said) = (Rc::new(Cohort::default()), Rc::new(RefCell::new(String::new())));
            drop(monoio::spawn(Rc::clone(&cohort).lead()));
            for _ in 0..rounds {
                let all: Vec<_> = (0..tasks)
                    .map(|_| {
                        let (cohort, said) = (Rc::clone(&cohort), Rc::clone(&said));
                        monoio::spawn(async move {
                            said.borrow_mut().push('a');
                            cohort.regroup().await;
                            said.borrow_mut().push('b');
                        })
                    })
                    .collect();
                for task in all {
                    task.await;
                }
                said.borrow_mut().push(' ');
            }
            said.take()
        })
    }

    #[test]
    fn those_that_are_ready_come_to_the_same_place_before_one_goes_on() {
        let said = run(40, 3);
        let rounds: Vec<_> = said.split_whitespace().collect();
        // Nobody knows at first that there are others: the sixteenth finds out, and goes on behind all of them.
        assert_eq!(rounds[0], format!("{}a{}b", "ab".repeat(15), "ab".repeat(24)));
        for round in &rounds[1..] {
            assert_eq!(*round, format!("{}{}", "a".repeat(40), "b".repeat(40)));
        }
    }

    #[test]
    fn where_few_are_ready_they_go_straight_on_but_for_one_now_and_then() {
        let said = run(1, 64);
        assert_eq!(said, "ab ".repeat(64));
        let said = run(SIZE_MIN as usize - 1, 40);
        let aside = said.split_whitespace().filter(|round| *round != "ababab").count();
        assert!((1..=40 * 3 / PROBE as usize).contains(&aside), "{said}");
    }

    #[test]
    fn a_cohort_that_has_become_small_is_none_any_more() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
        let cohort = Rc::new(Cohort::default());
        runtime.block_on(async {
            drop(monoio::spawn(Rc::clone(&cohort).lead()));
            for (tasks, is_one) in [(PROBE as usize + 3, true), (1, false)] {
                for _ in 0..2 {
                    let all: Vec<_> = (0..tasks)
                        .map(|_| {
                            let cohort = Rc::clone(&cohort);
                            monoio::spawn(async move { cohort.regroup().await })
                        })
                        .collect();
                    for task in all {
                        task.await;
                    }
                }
                assert_eq!(cohort.size.get() >= SIZE_MIN, is_one, "{tasks}");
            }
        });
    }
}
