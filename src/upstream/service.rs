//! What one shard knows of one service: who is busy, what is idle, what was learned. Made at the service's first
//! exchange, carried over from snapshot to snapshot for the endpoints that stay.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::balance::{Balancer, Outcome};
use super::budget::Gauge;
use super::limiter::{Doors, Limiter};
use super::pool::Pool;
use super::shared::SharedPool;
use super::spec;

/// A service on this shard.
pub struct Service {
    /// What control declared.
    pub spec: Arc<spec::Service>,
    /// Where its exchanges are counted: an index of `telemetry::recorder`.
    pub recorder_slot: u32,
    /// Its attempts in progress on this shard.
    pub gauge: Rc<Gauge>,
    /// Lets in as many exchanges as the service may be given; `None` where it is given whatever comes.
    pub limiter: Option<Rc<Limiter>>,
    balancer: RefCell<Balancer>,
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
    outcome: Cell<Outcome>,
    now: Cell<u64>,
    is_tunnel: Cell<bool>,
}

impl Service {
    /// A service that has seen nothing. `doors` are those of its shard.
    pub fn new(spec: Arc<spec::Service>, recorder_slot: u32, doors: &Rc<Doors>) -> Self {
        let limiter = spec.caps.as_ref().map(|caps| Limiter::new(Arc::clone(caps), doors));
        let balancer = RefCell::new(Balancer::new(&spec));
        let pools = spec.endpoints.iter().map(|_| Rc::default()).collect();
        let gauge = Rc::new(Gauge::new(&spec.meter));
        Self { spec, recorder_slot, gauge, limiter, balancer, pools }
    }

    /// The same service under a new declaration: endpoints that are still there keep pools and averages.
    pub fn carried_over(old: &Self, spec: Arc<spec::Service>, doors: &Rc<Doors>) -> Self {
        let places = spec::former_places(&old.spec.endpoints, &spec.endpoints);
        let mut balancer = Balancer::new(&spec);
        balancer.carry_over(&old.balancer.borrow(), &places);
        let mut left: Vec<Option<&Rc<Pools>>> = old.pools.iter().map(Some).collect();
        let mut take = |place: usize| left.get_mut(place).and_then(Option::take).map(Rc::clone);
        // What was spoken in plain text yesterday, or to somebody else, is no connection for today.
        let same = old.spec.tls == spec.tls && old.spec.protocol == spec.protocol;
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
            (_, caps) => caps.as_ref().map(|caps| Limiter::new(Arc::clone(caps), doors)),
        };
        // What is in progress goes on being counted where it was.
        let gauge = Rc::clone(&old.gauge);
        Self {
            spec,
            recorder_slot: old.recorder_slot,
            gauge,
            limiter,
            balancer: RefCell::new(balancer),
            pools,
        }
    }

    /// Chooses an endpoint for an attempt, none of `tried`.
    pub fn pick(self: &Rc<Self>, now: u64, rng: &mut fastrand::Rng, tried: &[u32]) -> Option<Attempt> {
        let mut balancer = self.balancer.borrow_mut();
        let endpoint = balancer.pick(now, rng, |e| tried.iter().any(|t| *t as usize == e))?;
        balancer.started(endpoint, now);
        self.gauge.began();
        Some(Attempt {
            service: Rc::clone(self),
            // A service has at most 10 000 endpoints.
            endpoint: u32::try_from(endpoint).unwrap_or(u32::MAX),
            outcome: Cell::new(Outcome::Cancelled),
            now: Cell::new(now),
            is_tunnel: Cell::new(false),
        })
    }

    /// The connections of an endpoint.
    pub fn pools(&self, endpoint: usize) -> &Rc<Pools> {
        &self.pools[endpoint]
    }

    /// Once a second: closes idle connections that are too old or dead.
    pub fn sweep(&self, now: u64) {
        self.gauge.tell();
        for pool in &self.pools {
            pool.h1.sweep(&self.spec.pool, now);
        }
    }

    /// Closes all idle connections: the service is gone from the configuration.
    pub fn close_idle(&self) {
        for pool in &self.pools {
            pool.h1.close_idle();
            pool.h2.leave();
        }
    }
}

impl Attempt {
    /// The endpoint answered after this long.
    pub fn answered(&self, latency_ns: u64, now: u64) {
        self.outcome.set(Outcome::Answered { latency_ns });
        self.now.set(now);
    }

    /// The endpoint is to blame for the failure of the attempt.
    pub fn failed(&self, now: u64) {
        self.outcome.set(Outcome::Failed);
        self.now.set(now);
    }

    /// What is known of it is told to the balancer now, and it goes on: a tunnel, whose end says nothing of the endpoint.
    pub fn goes_on(&self, now: u64) {
        let mut balancer = self.service.balancer.borrow_mut();
        balancer.ended(self.endpoint as usize, self.now.get(), self.outcome.replace(Outcome::Cancelled));
        balancer.started(self.endpoint as usize, now);
        drop(balancer);
        // It lasts, and says nothing of how many further attempts the service can bear.
        if !self.is_tunnel.replace(true) {
            self.service.gauge.ended();
        }
    }

    /// No connection to the endpoint could be made.
    pub fn unreachable(&self, now: u64) {
        self.outcome.set(Outcome::Unreachable);
        self.now.set(now);
    }

    /// A connection to the endpoint was made.
    pub fn reached(&self) {
        self.service.balancer.borrow_mut().reached(self.endpoint as usize);
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
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.service.balancer.borrow_mut().ended(self.endpoint as usize, self.now.get(), self.outcome.get());
        if !self.is_tunnel.get() {
            self.service.gauge.ended();
        }
    }
}

#[cfg(test)]
mod tests {
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
            let new = Service::carried_over(&old, declared(ports), &silent());
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
        let new = Service::carried_over(&old, declared(&ports), &silent());
        for (n, port) in ports.iter().enumerate() {
            assert!(Rc::ptr_eq(&new.pools[n], &old.pools[usize::from(*port) - 1]), "{port}");
        }
    }

    #[test]
    fn an_address_that_is_listed_twice_has_two_pools() {
        for (before, after) in [(&[1, 1, 2], &[2, 1, 1]), (&[1, 2, 3], &[1, 1, 1]), (&[1, 1, 1], &[2, 3, 1])]
        {
            let new = Service::carried_over(&seen(before), declared(after), &silent());
            let different = |a: usize, b: usize| !Rc::ptr_eq(&new.pools[a], &new.pools[b]);
            assert!(different(0, 1) && different(1, 2) && different(0, 2), "{before:?} {after:?}");
        }
    }

    /// A service of which every endpoint has answered within as many milliseconds as its port says.
    fn seen(ports: &[u16]) -> Service {
        let service = Service::new(declared(ports), 0, &silent());
        for (n, port) in ports.iter().enumerate() {
            let mut balancer = service.balancer.borrow_mut();
            balancer.started(n, 0);
            balancer.ended(n, 0, Outcome::Answered { latency_ns: u64::from(*port) * MS });
        }
        service
    }

    fn silent() -> Rc<Doors> {
        struct Silent;
        impl crate::upstream::gate::Bell for Silent {
            fn ring(&self) {}
        }
        Doors::new(Arc::new(Silent))
    }

    fn declared(ports: &[u16]) -> Arc<spec::Service> {
        let mut declared = service(spec::Balance::PeakEwma, &[]);
        declared.endpoints = ports.iter().map(|port| endpoint(*port, 1)).collect();
        Arc::new(declared)
    }
}
