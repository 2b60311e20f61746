//! At the door of a service that may be given so much at a time: before anything is done for an exchange upstream.
//!
//! Who finds no place waits, for as long as the service's queue lets it, and leaves when its caller does. The place is kept
//! in the account of the exchange and given back when that is closed; a tunnel gives it back when it begins.
//! Both callers come by here; where nothing is configured it is one branch.

use std::future::Future;
use std::pin::pin;

use super::Path;
use super::from_h2::Call;
use super::leaving::{Meanwhile, unless_gone};
use super::relay::unless_reset;
use crate::downstream::Downstream;
use crate::failure::{Cause, Failure, Stage};
use crate::route::Route;
use crate::upstream::limiter::{Entry, Waiting};

const fn refused(cause: Cause) -> Failure {
    Failure::local(Stage::Admit, cause)
}

impl Path<'_> {
    /// Takes a place at the service, or a place among those who wait for one.
    pub(super) fn admit(&self, route: Option<&Route>) -> Result<Option<Waiting>, Failure> {
        self.account.awaits(self.shard);
        let Some(limiter) = &self.service.limiter else { return Ok(None) };
        let priority = route.map_or_else(Default::default, |route| route.priority);
        let chance = || self.shard.rng(fastrand::Rng::f64);
        match limiter.enter(priority, self.shard.clock.now(), chance) {
            Entry::In(pass) => {
                self.account.place.set(pass);
                Ok(None)
            }
            Entry::Wait(waiting) => Ok(Some(waiting)),
            Entry::Refused(cause) => Err(refused(cause)),
        }
    }

    /// Waits for the place. A caller by HTTP/1.1 that closes its side meanwhile has gone; what it sends is kept for later.
    pub(super) async fn wait_for_place(
        &self,
        waiting: Waiting,
        downstream: &mut Downstream,
    ) -> Result<(), Failure> {
        let alarm = self.shard.deadlines.alarm();
        let place = pin!(alarm.until(waiting.until_ns.min(self.deadline), waiting));
        // For others to be answered: not this proxy's own time.
        self.account.wait(self.shard.clock.now());
        let place = unless_gone(downstream, Meanwhile::Keep, place).await;
        self.account.waited(self.shard.clock.now());
        match place {
            None => Err(Failure::downstream(Stage::Admit, Cause::Closed)),
            Some(place) => self.took(place),
        }
    }

    pub(super) fn took(&self, place: Option<<Waiting as Future>::Output>) -> Result<(), Failure> {
        match place {
            Some(Ok(pass)) => {
                self.account.place.set(pass);
                Ok(())
            }
            Some(Err(cause)) => Err(refused(cause)),
            None => Err(refused(Cause::QueueTimeout)),
        }
    }
}

impl Call<'_> {
    /// Waits for the place; no longer once the caller has reset the stream.
    pub(super) async fn wait_for_place(&self, waiting: Waiting) -> Result<(), Failure> {
        let alarm = self.path.shard.deadlines.alarm();
        let place = alarm.until(waiting.until_ns.min(self.path.deadline), waiting);
        let reset = |cx: &mut std::task::Context<'_>| self.respond.borrow_mut().poll_reset(cx);
        self.path.account.wait(self.path.shard.clock.now());
        let (place, was_reset) = unless_reset(reset, || alarm.by(0), place).await;
        self.path.account.waited(self.path.shard.clock.now());
        if was_reset {
            return Err(Failure::downstream(Stage::Admit, Cause::StreamReset));
        }
        self.path.took(place)
    }
}
