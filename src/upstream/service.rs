//! What one shard knows of one service: who is busy, what is idle, what was learned. Made at the service's first
//! exchange, carried over from snapshot to snapshot for the endpoints that stay.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::balance::{Balancer, Outcome, Wanted};
use super::berths::Berths;
use super::breaker::{Begun, Breaker, Change, Role, Verdict};
use super::budget::Gauge;
use super::health::{Health, Probed, Reason};
use super::limiter::{Doors, Limiter};
use super::pool::Pool;
use super::shared::SharedPool;
use super::spec;
use super::tail::Tail;

/// A service on this shard.
pub struct Service {
    /// What control declared.
    pub spec: Arc<spec::Service>,
    /// Where its exchanges are counted: an index of `telemetry::recorder`.
    pub recorder_slot: u32,
    /// What all shards know of its endpoints.
    pub health: Arc<Health>,
    /// Its attempts in progress on this shard.
    pub gauge: Rc<Gauge>,
    /// Lets in as many exchanges as the service may be given; `None` where it is given whatever comes.
    pub limiter: Option<Rc<Limiter>>,
    /// Where its connections are counted; `None` where there may be any number.
    pub berths: Option<Rc<Berths>>,
    balancer: RefCell<Balancer>,
    /// Where there is a choice, or copies are sent, and it is not switched off.
    breaker: OnceCell<RefCell<Box<Breaker>>>,
    /// How long it takes to answer, from when somebody first asks.
    tail: OnceCell<Rc<Tail>>,
    /// By endpoint. Shared with the service's state of an earlier snapshot as long as its exchanges last.
    pools: Vec<Rc<Pools>>,
}

/// The connections of one endpoint.
#[derive(Default)]
pub struct Pools {
    /// Of HTTP/1.1: one exchange at a time on each.
    pub h1: Pool,
    /// Of HTTP/2: shared.
    pub h2: Rc<SharedPool>,
}

/// One attempt on one endpoint: counted in the balancer until it is dropped.
pub struct Attempt {
    service: Rc<Service>,
    /// Index in `spec.endpoints`.
    pub endpoint: u32,
    /// Whether it goes on a connection that was there before, which may turn out to be dead.
    pub reused: Cell<bool>,
    answered: Cell<bool>,
    waits: Cell<bool>,
    is_tunnel: Cell<bool>,
    said: Cell<Said>,
    /// What the breaker knows it by, in parts that leave no gap.
    generation: Cell<u32>,
    role: Cell<Role>,
    /// When it ended, and how long the answer took, or the failure.
    at_ns: Cell<u64>,
    after_ns: Cell<u64>,
}

/// What is said of an endpoint when its attempt ends. With its times apart, because the future of every connection has
/// room for an attempt.
#[derive(Clone, Copy)]
enum Said {
    /// Nothing, yet or for good.
    Nothing,
    /// All is said.
    All,
    /// It answered; the verdict.
    Answered(Plain),
    /// It failed; the verdict.
    Failed(Plain),
}

/// A [`Verdict`] without its time.
#[derive(Clone, Copy)]
enum Plain {
    Good,
    Unreachable,
    Unanswered,
    OutOfTime,
    Failure,
    Nothing,
}

impl Service {
    /// A service that has seen nothing. `doors` are those of its shard.
    pub fn new(spec: Arc<spec::Service>, health: Arc<Health>, recorder_slot: u32, doors: &Rc<Doors>) -> Self {
        let limiter = spec.caps.as_ref().map(|caps| Limiter::new(Arc::clone(caps), doors));
        let berths = spec.counts_connections().map(|caps| Berths::new(Arc::clone(caps), &doors.berths));
        let balancer = RefCell::new(Balancer::new(&spec));
        let pools = spec.endpoints.iter().map(|_| Rc::default()).collect();
        let gauge = Rc::new(Gauge::new(&spec.meter));
        Self {
            breaker: begun(breaker(&spec, &health, 2)),
            spec,
            recorder_slot,
            health,
            gauge,
            limiter,
            berths,
            balancer,
            tail: OnceCell::new(),
            pools,
        }
    }

    /// The same service under a new declaration: endpoints that are still there keep pools and averages.
    pub fn carried_over(
        old: &Self,
        spec: Arc<spec::Service>,
        health: Arc<Health>,
        doors: &Rc<Doors>,
        now: u64,
    ) -> Self {
        let places = spec::former_places(&old.spec.endpoints, &spec.endpoints);
        let mut balancer = Balancer::new(&spec);
        balancer.carry_over(&old.balancer.borrow(), &places, now);
        let mut left: Vec<Option<&Rc<Pools>>> = old.pools.iter().map(Some).collect();
        let mut take = |place: usize| left.get_mut(place).and_then(Option::take).map(Rc::clone);
        let berths = match (&old.berths, spec.counts_connections()) {
            (Some(berths), Some(caps)) if berths.counts(caps) => {
                berths.adopt(Arc::clone(caps));
                Some(Rc::clone(berths))
            }
            (before, caps) => {
                before.iter().for_each(|berths| berths.open());
                caps.map(|caps| Berths::new(Arc::clone(caps), &doors.berths))
            }
        };
        // What was spoken in plain text yesterday, or to somebody else, is no connection for today; neither is what is not
        // counted where connections are.
        let same = old.spec.tls == spec.tls
            && old.spec.protocol == spec.protocol
            && (berths.is_none() || old.berths.is_some());
        let pools = places
            .into_iter()
            .map(|place| place.filter(|_| same).and_then(&mut take).unwrap_or_default())
            .collect();
        for gone in left.into_iter().flatten() {
            gone.h1.close_idle();
            gone.h2.leave();
        }
        let limiter = match (&old.limiter, &spec.caps) {
            (Some(limiter), Some(caps)) if limiter.counts(caps) => {
                limiter.adopt(Arc::clone(caps));
                Some(Rc::clone(limiter))
            }
            (before, caps) => {
                before.iter().for_each(|limiter| limiter.open());
                caps.as_ref().map(|caps| Limiter::new(Arc::clone(caps), doors))
            }
        };
        let balancer = RefCell::new(balancer);
        let recorder_slot = old.recorder_slot;
        // What is in progress goes on being counted where it was.
        let gauge = Rc::clone(&old.gauge);
        Self {
            breaker: begun(breaker(&spec, &health, if old.breaker.get().is_some() { 1 } else { 2 })),
            spec,
            recorder_slot,
            health,
            gauge,
            limiter,
            berths,
            balancer,
            tail: old.tail.get().map_or_else(OnceCell::new, |tail| OnceCell::from(Rc::clone(tail))),
            pools,
        }
    }

    /// Whether a copy of a request has somewhere to go: an endpoint that is not passed over, or whose time is over, so that the copy
    /// finds out for all. From then on there is a breaker also where nothing is to be chosen.
    pub fn takes_copies(&self, now: u64) -> bool {
        if self.breaker.get().is_none()
            && let Some(breaker) = breaker(&self.spec, &self.health, 1)
        {
            // There was none a line ago.
            let _ = self.breaker.set(breaker);
        }
        let Some(breaker) = self.breaker.get() else { return true };
        let mut breaker = breaker.borrow_mut();
        !breaker.is_troubled(now) || breaker.has_any(now)
    }

    /// Chooses an endpoint for an attempt, none of `tried`; where it can, in another zone than theirs, since what is wrong may be
    /// wrong with the zone. Not so with a key, which leads to the same endpoints from everywhere.
    pub fn pick(
        self: &Rc<Self>,
        now: u64,
        rng: &mut fastrand::Rng,
        wanted: Wanted,
        tried: &[u32],
    ) -> Option<Attempt> {
        if wanted.key.is_none()
            && let Some(elsewhere) = self.elsewhere(tried, now)
        {
            let skip = |e: usize| !elsewhere.get(e).is_some_and(|is| *is);
            let picked = self.pick_among(now, rng, wanted, tried, skip);
            if let Some(picked) = picked.filter(|picked| !skip(picked.endpoint as usize)) {
                return Some(picked);
            }
        }
        self.pick_among(now, rng, wanted, tried, |_| false)
    }

    /// Which endpoints are in other zones than those tried, and used; `None` where there are none. Of no lower priority than the
    /// first of those: that has traffic when those before it fail.
    fn elsewhere(&self, tried: &[u32], now: u64) -> Option<Vec<bool>> {
        let of = |e: u32| self.spec.endpoints.get(e as usize);
        let first = of(*tried.first()?).filter(|first| first.zone.is_some())?;
        let mut breaker = self.breaker.get().map(|breaker| breaker.borrow_mut());
        let is_troubled = breaker.as_mut().is_some_and(|breaker| breaker.is_troubled(now));
        let elsewhere = |(n, endpoint): (usize, &spec::Endpoint)| {
            let is_near = |tried| of(tried).is_some_and(|tried| tried.zone == endpoint.zone);
            endpoint.priority <= first.priority
                && !tried.iter().any(|tried| is_near(*tried))
                && !(is_troubled && breaker.as_ref().is_some_and(|breaker| breaker.is_out(n)))
        };
        let elsewhere: Vec<bool> = self.spec.endpoints.iter().enumerate().map(elsewhere).collect();
        elsewhere.contains(&true).then_some(elsewhere)
    }

    fn pick_among(
        self: &Rc<Self>,
        now: u64,
        rng: &mut fastrand::Rng,
        wanted: Wanted,
        tried: &[u32],
        also_skipped: impl Fn(usize) -> bool,
    ) -> Option<Attempt> {
        let mut balancer = self.balancer.borrow_mut();
        let balancer = &mut *balancer;
        let skip = |e: usize| tried.iter().any(|t| *t as usize == e) || also_skipped(e);
        let (endpoint, begun) = match self.breaker.get() {
            None => (balancer.pick_for(now, rng, wanted, skip)?, Begun::default()),
            Some(breaker) => {
                let mut breaker = breaker.borrow_mut();
                let is_troubled = breaker.is_troubled(now);
                if balancer.counts_usable() {
                    balancer.usable(now, breaker.version(), |e| !breaker.is_out(e));
                }
                let endpoint = if is_troubled {
                    // With a key only its own endpoint is found out about: no session goes astray for that.
                    let own = wanted.key.map(|_| balancer.pick_for(now, rng, wanted, skip));
                    let may_try = |e: usize| {
                        tried.is_empty()
                            && self.spec.plan().has(wanted.subset, e)
                            && !also_skipped(e)
                            && own.is_none_or(|own| own == Some(e))
                    };
                    breaker.choose_among(now, &may_try, &skip, |skip| {
                        balancer.pick_for(now, rng, wanted, skip)
                    })?
                } else {
                    balancer.pick_for(now, rng, wanted, skip)?
                };
                if breaker.has_returned() {
                    breaker.take_returned().into_iter().for_each(|e| balancer.returned(e as usize, now));
                }
                (endpoint, breaker.begin(endpoint, now))
            }
        };
        balancer.started(endpoint);
        self.gauge.began();
        Some(Attempt {
            service: Rc::clone(self),
            // A service has at most 10 000 endpoints.
            endpoint: u32::try_from(endpoint).unwrap_or(u32::MAX),
            reused: Cell::new(false),
            answered: Cell::new(false),
            waits: Cell::new(self.breaker.get().is_some()),
            said: Cell::new(Said::Nothing),
            generation: Cell::new(begun.generation),
            role: Cell::new(begun.role),
            at_ns: Cell::new(now),
            after_ns: Cell::new(0),
            is_tunnel: Cell::new(false),
        })
    }

    /// The same, among those to which a connection of HTTP/1.1 lies idle here.
    pub fn pick_at_rest(
        self: &Rc<Self>,
        now: u64,
        rng: &mut fastrand::Rng,
        wanted: Wanted,
        tried: &[u32],
    ) -> Option<Attempt> {
        let away = |e: usize| self.pools.get(e).is_none_or(|pool| pool.h1.idle() == 0);
        if (0..self.pools.len()).all(away) {
            return None;
        }
        let picked = self.pick_among(now, rng, wanted, tried, away);
        picked.filter(|attempt| !away(attempt.endpoint as usize))
    }

    /// How long it takes to answer; notes that from now on.
    pub fn tail(&self) -> &Tail {
        self.tail.get_or_init(Rc::default)
    }

    /// The connections of an endpoint.
    pub fn pools(&self, endpoint: usize) -> &Rc<Pools> {
        &self.pools[endpoint]
    }

    /// Once a second: closes idle connections that are too old or dead, or go to an endpoint that takes none. Which
    /// endpoints were ejected or came back, as this shard was the one to find out, and how many more.
    pub fn sweep(&self, now: u64) -> (SmallVec<[Change; 2]>, u64) {
        self.gauge.tell();
        self.yield_connections();
        for pool in &self.pools {
            pool.h1.sweep(&self.spec.pool, now);
        }
        let Some(breaker) = self.breaker.get() else { return Default::default() };
        let mut breaker = breaker.borrow_mut();
        // Also where nobody calls any more, so that others need not wait for what this shard knows.
        if breaker.is_troubled(now) {
            let known = self.health.of(self.pools.len());
            for (n, (pool, standing)) in self.pools.iter().zip(&known.endpoints).enumerate() {
                let drains = self.spec.endpoints.get(n).is_some_and(|endpoint| endpoint.drain);
                if drains || standing.word().reason() == Some(Reason::Connect) {
                    pool.h1.close_idle();
                }
                if drains {
                    pool.h2.leave();
                }
            }
        }
        breaker.take_changes()
    }

    /// Closes a connection that lies at rest, if there is one: the one that has been idle for longest of the endpoint that has
    /// most of them, or a shared one, which takes a moment. Whether it is closed already.
    pub fn close_one(&self) -> Option<bool> {
        let most = self.pools.iter().max_by_key(|pool| pool.h1.idle());
        if most.is_some_and(|pool| pool.h1.close_oldest()) {
            return Some(true);
        }
        self.pools.iter().any(|pool| pool.h2.leave_one()).then_some(false)
    }

    /// Closes connections at rest that other shards wait for, or that are more than there may be.
    pub fn yield_connections(&self) {
        let Some(berths) = &self.berths else { return };
        let asked_for = berths.asked_for();
        let closed = (0..asked_for).take_while(|_| self.close_one().is_some()).count();
        berths.passes_on(asked_for - u32::try_from(closed).unwrap_or(asked_for));
        if self.pools.iter().any(|pool| pool.h1.idle() > 0 || pool.h2.is_at_rest()) {
            berths.offer();
        }
    }

    /// Closes connections of HTTP/1.1 that have been idle since before then, because memory is short; how many.
    pub fn close_quiet(&self, before: u64) -> u64 {
        self.pools.iter().map(|pool| pool.h1.close_quiet(before)).sum()
    }

    /// Closes all idle connections: the service is gone from the configuration.
    pub fn close_idle(&self) {
        for pool in &self.pools {
            pool.h1.close_idle();
            pool.h2.leave();
        }
    }
}

/// With fewer endpoints than `least` there is none: requests have nothing to choose with one.
fn breaker(spec: &spec::Service, health: &Arc<Health>, least: usize) -> Option<RefCell<Box<Breaker>>> {
    let drained: Box<[u32]> = (0..).zip(&spec.endpoints).filter(|(_, e)| e.drain).map(|(n, _)| n).collect();
    let rules = match &spec.breaker {
        _ if spec.endpoints.len() < least => return None,
        Some(rules) => Arc::clone(rules),
        // Probes say something also where requests say nothing.
        None if spec.probe.is_some() || !drained.is_empty() => Arc::new(spec::Breaker::off()),
        None => return None,
    };
    let rng = fastrand::Rng::new();
    let breaker = Breaker::new(rules, Arc::clone(health), spec.endpoints.len(), drained, rng);
    Some(RefCell::new(Box::new(breaker)))
}

fn begun(breaker: Option<RefCell<Box<Breaker>>>) -> OnceCell<RefCell<Box<Breaker>>> {
    breaker.map_or_else(OnceCell::new, OnceCell::from)
}

impl Attempt {
    /// The endpoint answered after this long; now that the answer has ended it says this of it.
    pub fn answered(&self, latency_ns: u64, verdict: Verdict, now: u64) {
        self.said.set(Said::Answered(verdict.into()));
        self.at_ns.set(now);
        self.after_ns.set(latency_ns);
        if let Some(tail) = self.service.tail.get() {
            tail.saw(latency_ns);
        }
    }

    /// Another attempt was sooner, and this one is given up after so long. That is no failure; but how long it took is known to be
    /// more than that, and it may be more than its endpoint has for any answer.
    pub fn was_outrun(&self, after_ns: u64, now: u64) {
        self.answered(after_ns, Verdict::OutOfTime { after_ns }, now);
    }

    /// The endpoint is to blame for the failure of the attempt.
    pub fn failed(&self, verdict: Verdict, now: u64) {
        self.said.set(Said::Failed(verdict.into()));
        self.at_ns.set(now);
        if let Verdict::OutOfTime { after_ns } = verdict {
            self.after_ns.set(after_ns);
        }
    }

    /// What is known of it is told now, and it goes on: a tunnel, whose end says nothing of the endpoint.
    pub fn goes_on(&self) {
        self.tell();
        self.service.balancer.borrow_mut().started(self.endpoint as usize);
        // It lasts, and says nothing of how many further attempts the service can bear.
        if !self.is_tunnel.replace(true) {
            self.service.gauge.ended();
        }
    }

    /// No connection to the endpoint could be made.
    pub fn unreachable(&self, now: u64) {
        self.failed(Verdict::Unreachable, now);
    }

    /// An octet of an answer has come; whether it is the first one.
    pub fn answers(&self, now: u64) -> bool {
        let first = !self.answered.replace(true);
        if first {
            self.uploads();
            if let Some(breaker) = self.service.breaker.get() {
                breaker.borrow_mut().answered(self.endpoint as usize, self.begun(), now);
            }
        }
        first
    }

    /// Whether anything of an answer has come: then the request may not be sent again.
    pub fn has_answered(&self) -> bool {
        self.answered.get()
    }

    /// The request is not whole yet: how long it takes is not for the endpoint to answer.
    pub fn uploads(&self) {
        if self.waits.replace(false)
            && let Some(breaker) = self.service.breaker.get()
        {
            breaker.borrow_mut().wait_no_more(self.endpoint as usize, self.begun());
        }
    }

    /// The request is whole now: from now on the answer is waited for.
    pub fn uploaded(&self, now: u64) {
        if !self.answered.get()
            && !self.waits.get()
            && let Some(breaker) = self.service.breaker.get()
        {
            let begun = breaker.borrow_mut().wait(self.endpoint as usize, self.begun(), now);
            self.generation.set(begun.generation);
            self.role.set(begun.role);
            self.waits.set(true);
        }
    }

    /// Whether 429 and the like count against the endpoint.
    pub fn counts_too_many(&self) -> bool {
        self.service.spec.breaker.as_ref().is_some_and(|rules| rules.counts_too_many)
    }

    /// Whether the endpoint may say in its answers that it wants to be left at once.
    pub fn is_probed(&self) -> bool {
        self.service.spec.probe.is_some()
    }

    /// The endpoint has said so: it is passed over until it passes its probes.
    pub fn wants_to_be_left(&self) {
        let known = self.service.health.of(self.service.pools.len());
        if let Some(standing) = known.endpoints.get(self.endpoint as usize)
            && standing.set_probed(Probed::Failing)
        {
            known.counts.changed();
        }
    }

    /// Its address.
    pub fn address(&self) -> &spec::Address {
        &self.service.spec.endpoints[self.endpoint as usize].address
    }

    /// Its HTTP/1.1 connections.
    pub fn pool(&self) -> &Pool {
        &self.service.pools(self.endpoint as usize).h1
    }

    /// Its HTTP/2 connections.
    pub fn shared(&self) -> &Rc<SharedPool> {
        &self.service.pools(self.endpoint as usize).h2
    }

    fn begun(&self) -> Begun {
        Begun { generation: self.generation.get(), role: self.role.get() }
    }

    /// Tells balancer and breaker.
    fn tell(&self) {
        self.uploads();
        let (at_ns, after_ns) = (self.at_ns.get(), self.after_ns.get());
        let (outcome, plain) = match self.said.replace(Said::All) {
            Said::Nothing => (Outcome::Cancelled, Some(Plain::Nothing)),
            Said::All => (Outcome::Cancelled, None),
            Said::Answered(plain) => (Outcome::Answered { latency_ns: after_ns }, Some(plain)),
            Said::Failed(plain) => (Outcome::Failed, Some(plain)),
        };
        if let (Some(breaker), Some(plain)) = (self.service.breaker.get(), plain) {
            let verdict = plain.after(after_ns);
            let mut breaker = breaker.borrow_mut();
            breaker.ended(self.endpoint as usize, self.begun(), verdict, at_ns);
        }
        self.service.balancer.borrow_mut().ended(self.endpoint as usize, at_ns, outcome);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.tell();
        if !self.is_tunnel.get() {
            self.service.gauge.ended();
        }
    }
}

impl Plain {
    fn after(self, after_ns: u64) -> Verdict {
        match self {
            Self::Good => Verdict::Good { latency_ns: after_ns },
            Self::Unreachable => Verdict::Unreachable,
            Self::Unanswered => Verdict::Unanswered,
            Self::OutOfTime => Verdict::OutOfTime { after_ns },
            Self::Failure => Verdict::Failure,
            Self::Nothing => Verdict::Nothing,
        }
    }
}

impl From<Verdict> for Plain {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Good { .. } => Self::Good,
            Verdict::Unreachable => Self::Unreachable,
            Verdict::Unanswered => Self::Unanswered,
            Verdict::OutOfTime { .. } => Self::OutOfTime,
            Verdict::Failure => Self::Failure,
            Verdict::Nothing => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::affinity::Key;
    use super::spec::testing::{endpoint, service};
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn endpoints_that_stay_keep_pools_and_averages_whatever_becomes_of_the_list() {
        let lists: [&[u16]; 9] = [
            &[1, 2, 3, 4],
            &[4, 3, 2, 1],
            &[9, 1, 2, 3, 4],
            &[1, 2, 9, 3, 4],
            &[2, 3, 4],
            &[1, 4],
            &[3, 8, 1, 9],
            &[9, 8],
            &[],
        ];
        for ports in lists {
            let old = seen(&[1, 2, 3, 4]);
            let new = Service::carried_over(&old, declared(ports), Arc::default(), &silent(), 0);
            assert_eq!(new.pools.len(), ports.len());
            let balancer = new.balancer.borrow();
            for (n, port) in ports.iter().enumerate() {
                let before = (1..=4).contains(port).then(|| usize::from(*port) - 1);
                for (place, pool) in old.pools.iter().enumerate() {
                    assert_eq!(Rc::ptr_eq(&new.pools[n], pool), before == Some(place), "{ports:?}: {port}");
                }
                let expected = before.map(|_| u64::from(*port) * MS);
                assert_eq!(balancer.latency_ns(n, 0), expected, "{ports:?}: {port}");
            }
        }
    }

    #[test]
    fn thousands_in_another_order_are_all_found_again() {
        let mut ports: Vec<u16> = (1..=10_000).collect();
        let old = seen(&ports);
        ports.rotate_left(4_321);
        let new = Service::carried_over(&old, declared(&ports), Arc::default(), &silent(), 0);
        for (n, port) in ports.iter().enumerate() {
            assert!(Rc::ptr_eq(&new.pools[n], &old.pools[usize::from(*port) - 1]), "{port}");
        }
    }

    #[test]
    fn an_address_that_is_listed_twice_has_two_pools() {
        for (before, after) in [(&[1, 1, 2], &[2, 1, 1]), (&[1, 2, 3], &[1, 1, 1]), (&[1, 1, 1], &[2, 3, 1])]
        {
            let new = Service::carried_over(&seen(before), declared(after), Arc::default(), &silent(), 0);
            let different = |a: usize, b: usize| !Rc::ptr_eq(&new.pools[a], &new.pools[b]);
            assert!(different(0, 1) && different(1, 2) && different(0, 2), "{before:?} {after:?}");
        }
    }

    /// A service with breakers, whose first endpoint is to be found out about from then on.
    fn troubled(change: impl FnOnce(&mut spec::Service)) -> (Rc<Service>, u64) {
        let mut declared = (*declared(&[1, 2, 3, 4])).clone();
        declared.breaker = Some(Arc::default());
        change(&mut declared);
        let service = Rc::new(Service::new(Arc::new(declared), Arc::default(), 0, &silent()));
        let mut rng = fastrand::Rng::with_seed(19);
        let now = 1000 * MS;
        loop {
            let attempt = service.pick(now, &mut rng, Wanted::default(), &[]).unwrap();
            if attempt.endpoint == 0 {
                attempt.unreachable(now);
                break;
            }
        }
        // A second, and a fifth by chance.
        (service, now + 2_000 * MS)
    }

    #[test]
    fn an_endpoint_that_is_used_again_is_measured_anew() {
        let (service, mut now) = troubled(|_| {});
        let mut rng = fastrand::Rng::with_seed(20);
        assert!(
            service.balancer.borrow().latency_ns(0, now) >= Some(700 * MS),
            "it failed, as after a second"
        );
        for _ in 0..3 {
            let attempt = service.pick(now, &mut rng, Wanted::default(), &[]).unwrap();
            assert_eq!(attempt.endpoint, 0, "a trial");
            now += MS;
            attempt.answers(now);
            attempt.answered(MS, Verdict::Good { latency_ns: MS }, now);
        }
        assert!(service.health.known().unwrap().endpoints[0].word().is_used());
        drop(service.pick(now, &mut rng, Wanted::default(), &[]));
        assert_eq!(service.balancer.borrow().latency_ns(0, now), None);
    }

    #[test]
    fn nobody_finds_out_about_an_endpoint_that_he_would_not_be_sent_to() {
        let labels = |version: &str| vec![("version".into(), version.into())];
        let subsets = ["v1", "v2"].map(|name| spec::Subset {
            name: name.into(),
            labels: labels(name),
            fallback: spec::Fallback::None,
        });
        let (service, now) = troubled(|declared| {
            for (n, endpoint) in declared.endpoints.iter_mut().enumerate() {
                endpoint.labels = Some(Arc::new(labels(if n < 2 { "v1" } else { "v2" })));
            }
            declared.choice =
                Some(Box::new(spec::Choice { subsets: subsets.into(), ..spec::Choice::DEFAULT }));
        });
        let mut rng = fastrand::Rng::with_seed(21);
        for _ in 0..20 {
            let other = service.pick(now, &mut rng, Wanted { subset: 2, key: None }, &[]).unwrap();
            assert!(other.endpoint >= 2, "{}", other.endpoint);
        }
        let own = service.pick(now, &mut rng, Wanted { subset: 1, key: None }, &[]).unwrap();
        assert_eq!(own.endpoint, 0);

        // With a key, only those whose keys lead there.
        let (service, now) = troubled(|declared| declared.balance = spec::Balance::Maglev);
        let mut balancer = Balancer::new(&service.spec);
        let mut keys =
            (1..200_u64).map(|n| Wanted { subset: 0, key: Key::new(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) });
        let mut leads_to = |wanted| balancer.pick_for(now, &mut fastrand::Rng::new(), wanted, |_| false);
        for wanted in keys.by_ref().filter(|wanted| leads_to(*wanted) != Some(0)).take(20).collect::<Vec<_>>()
        {
            let attempt = service.pick(now, &mut rng, wanted, &[]).unwrap();
            assert_eq!(Some(attempt.endpoint as usize), leads_to(wanted));
        }
        let own = keys.find(|wanted| leads_to(*wanted) == Some(0)).unwrap();
        assert_eq!(service.pick(now, &mut rng, own, &[]).unwrap().endpoint, 0);
    }

    /// A service of which every endpoint has answered within as many milliseconds as its port says.
    fn seen(ports: &[u16]) -> Service {
        let service = Service::new(declared(ports), Arc::default(), 0, &silent());
        for (n, port) in ports.iter().enumerate() {
            let mut balancer = service.balancer.borrow_mut();
            balancer.started(n);
            balancer.ended(n, 0, Outcome::Answered { latency_ns: u64::from(*port) * MS });
        }
        service
    }

    fn silent() -> Rc<Doors> {
        struct Silent;
        impl crate::upstream::gate::Bell for Silent {
            fn ring(&self) {}
        }
        Doors::new(Arc::new(Silent), 0)
    }

    #[test]
    fn another_attempt_goes_to_another_zone_if_there_is_one_that_is_used_and_not_to_a_lower_priority() {
        let mut declared = Arc::unwrap_or_clone(declared(&[1, 2, 3, 4, 5]));
        let places = [("a", 0), ("a", 0), ("b", 0), ("a", 0), ("c", 1)];
        for (endpoint, (zone, priority)) in declared.endpoints.iter_mut().zip(places) {
            (endpoint.zone, endpoint.priority) = (Some(zone.into()), priority);
        }
        declared.breaker = Some(Arc::default());
        let service = Rc::new(Service::new(Arc::new(declared), Arc::default(), 0, &silent()));
        let mut rng = fastrand::Rng::new();
        let mut seen_after = |tried: &[u32]| {
            let mut seen: Vec<u32> = (0..200)
                .filter_map(|_| service.pick(1000 * MS, &mut rng, Wanted::default(), tried))
                .map(|attempt| attempt.endpoint)
                .collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(seen_after(&[0]), [2]);
        assert_eq!(seen_after(&[2]), [0, 1, 3]);
        // In both zones one was tried: as if there were none.
        assert_eq!(seen_after(&[0, 2]), [1, 3]);
        assert_eq!(seen_after(&[]), [0, 1, 2, 3]);
        // It takes no connections.
        let only = service.pick(1000 * MS, &mut fastrand::Rng::new(), Wanted::default(), &[0, 1, 3]).unwrap();
        assert_eq!(only.endpoint, 2);
        only.unreachable(1000 * MS);
        drop(only);
        assert_eq!(seen_after(&[0]), [1, 3]);
    }

    fn declared(ports: &[u16]) -> Arc<spec::Service> {
        let mut declared = service(spec::Balance::PeakEwma, &[]);
        declared.endpoints = ports.iter().map(|port| endpoint(*port, 1)).collect();
        Arc::new(declared)
    }
}
