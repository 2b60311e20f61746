//! Who waits on a shard until it is told something: one that stands in a line ([`Waiter`], of `berths` and `limiter`), or all that
//! wait for the same ([`Crowd`], of `shared`).
//!
//! Of one thread. Who gives up is forgotten at once, whether or not anybody is told after that. Refuses to know time, and in which
//! order who is told what.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// One that waits, and what it was told.
pub struct Waiter<T> {
    told: Cell<Told<T>>,
    waker: RefCell<Option<Waker>>,
}

/// How far one is that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<T> {
    /// It waits.
    Nothing,
    /// It was told this and has not heard it yet.
    This(T),
    /// It has.
    Over,
}

impl<T> Default for Waiter<T> {
    fn default() -> Self {
        Self { told: Cell::new(Told::Nothing), waker: RefCell::default() }
    }
}

impl<T: Copy> Waiter<T> {
    /// Once.
    pub fn tell(&self, what: T) {
        self.told.set(Told::This(what));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// How far it is.
    pub fn told(&self) -> Told<T> {
        self.told.get()
    }

    /// Hears what it was told, once.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<T> {
        if let Told::This(what) = self.told.get() {
            self.told.set(Told::Over);
            return Poll::Ready(what);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Those who wait for the same.
#[derive(Default)]
pub struct Crowd {
    /// Each with its number, in the order in which they came.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    /// How many have come.
    came: Cell<u64>,
    /// How often they were told.
    told: Cell<u64>,
}

/// Waits until the crowd is told the next time.
pub struct Waits<'c> {
    crowd: &'c Crowd,
    told: u64,
    /// Its number, once it was asked.
    number: Option<u64>,
}

impl Crowd {
    /// One more.
    pub fn wait(&self) -> Waits<'_> {
        Waits { crowd: self, told: self.told.get(), number: None }
    }

    /// All who have waited.
    pub fn tell(&self) {
        self.told.set(self.told.get().wrapping_add(1));
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}

impl Waits<'_> {
    /// Where it stands. From the front: of those who give up most have waited for longest.
    fn place(&self, waiting: &VecDeque<(u64, Waker)>) -> Option<usize> {
        waiting.iter().position(|(number, _)| Some(*number) == self.number)
    }
}

impl Future for Waits<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let crowd = self.crowd;
        if crowd.told.get() != self.told {
            return Poll::Ready(());
        }
        let mut waiting = crowd.waiting.borrow_mut();
        // Others may wake whoever waits, too: a deadline does.
        match self.place(&waiting) {
            Some(place) if waiting[place].1.will_wake(cx.waker()) => {}
            Some(place) => waiting[place].1 = cx.waker().clone(),
            None => {
                let number = crowd.came.get();
                crowd.came.set(number + 1);
                self.number = Some(number);
                waiting.push_back((number, cx.waker().clone()));
            }
        }
        Poll::Pending
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if self.number.is_none() || self.crowd.told.get() != self.told {
            return;
        }
        let mut waiting = self.crowd.waiting.borrow_mut();
        let left = self.place(&waiting).and_then(|place| waiting.remove(place));
        drop(waiting);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::Wake;

    use super::*;

    /// Tells its number when it is woken.
    struct Telling(u8, Sender<u8>);

    impl Wake for Telling {
        fn wake(self: Arc<Self>) {
            self.1.send(self.0).unwrap();
        }
    }

    struct Woken(Sender<u8>, Receiver<u8>);

    impl Default for Woken {
        fn default() -> Self {
            let (to, from) = channel();
            Self(to, from)
        }
    }

    impl Woken {
        fn poll<F: Future + Unpin>(&self, number: u8, future: &mut F) -> bool {
            let waker = Waker::from(Arc::new(Telling(number, self.0.clone())));
            Pin::new(future).poll(&mut Context::from_waker(&waker)).is_ready()
        }

        fn take(&self) -> Vec<u8> {
            self.1.try_iter().collect()
        }
    }

    #[test]
    fn who_gives_up_is_forgotten_although_nobody_is_told() {
        let (crowd, woken) = (Crowd::default(), Woken::default());
        for _ in 0..1000 {
            let mut waits = crowd.wait();
            assert!(!woken.poll(0, &mut waits));
            // A deadline wakes it in vain.
            assert!(!woken.poll(0, &mut waits));
            assert_eq!(crowd.waiting.borrow().len(), 1);
        }
        assert_eq!(crowd.waiting.borrow().len(), 0);
        drop(crowd.wait());
    }

    #[test]
    fn all_who_still_wait_are_told_once_and_in_the_order_in_which_they_came() {
        let (crowd, woken) = (Crowd::default(), Woken::default());
        let mut all: Vec<_> = (0..4).map(|_| crowd.wait()).collect();
        for (number, waits) in (0..).zip(&mut all) {
            assert!(!woken.poll(number, waits));
        }
        // By another task.
        assert!(!woken.poll(7, &mut all[2]));
        drop(all.remove(1));
        crowd.tell();
        assert_eq!(woken.take(), [0, 7, 3]);
        for waits in &mut all {
            assert!(woken.poll(0, waits));
        }
        let mut late = crowd.wait();
        assert!(!woken.poll(9, &mut late));
        // Those before, who were told, leave the others alone.
        drop(all);
        crowd.tell();
        assert_eq!(woken.take(), [9]);
        assert!(woken.poll(9, &mut late));
    }

    #[test]
    fn one_hears_what_it_was_told_once() {
        let (waiter, woken) = (Waiter::<u8>::default(), Woken::default());
        let mut hears = std::future::poll_fn(|cx| waiter.poll(cx));
        assert!(!woken.poll(1, &mut hears));
        assert!(!woken.poll(2, &mut hears));
        assert_eq!(waiter.told(), Told::Nothing);
        waiter.tell(5);
        assert_eq!((waiter.told(), woken.take()), (Told::This(5), vec![2]));
        assert!(woken.poll(2, &mut hears));
        assert_eq!(waiter.told(), Told::Over);
        assert!(!woken.poll(2, &mut hears));
    }
}
