//! What one shard knows of one service: who is busy, what is idle, what was learned. Made at the service's first
//! exchange, carried over from snapshot to snapshot for the endpoints that stay.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::balance::{Balancer, Outcome};
use super::pool::Pool;
use super::shared::SharedPool;
use super::spec;

/// A service on this shard.
pub struct Service {
    /// What control declared.
    pub spec: Arc<spec::Service>,
    /// Where its exchanges are counted: an index of `telemetry::recorder`.
    pub recorder_slot: u32,
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
}

impl Service {
    /// A service that has seen nothing.
    pub fn new(spec: Arc<spec::Service>, recorder_slot: u32) -> Self {
        let balancer = RefCell::new(Balancer::new(&spec));
        let pools = spec.endpoints.iter().map(|_| Rc::default()).collect();
        Self { spec, recorder_slot, balancer, pools }
    }

    /// The same service under a new declaration: endpoints that are still there keep pools and averages.
    pub fn carried_over(old: &Self, spec: Arc<spec::Service>) -> Self {
        let mut balancer = Balancer::new(&spec);
        balancer.carry_over(&old.balancer.borrow(), &old.spec, &spec);
        let mut pools: Vec<Rc<Pools>> = Vec::with_capacity(spec.endpoints.len());
        // What was spoken in plain text yesterday, or to somebody else, is no connection for today.
        let same_tls = old.spec.tls == spec.tls;
        // A service has few endpoints or changes seldom; both lists in the same order is the usual case.
        for (n, endpoint) in spec.endpoints.iter().enumerate() {
            let same_place = old.spec.endpoints.get(n).is_some_and(|e| e.address == endpoint.address);
            let at = if same_place {
                Some(n)
            } else {
                old.spec.endpoints.iter().position(|e| e.address == endpoint.address)
            };
            pools.push(at.filter(|_| same_tls).map_or_else(Rc::default, |at| Rc::clone(&old.pools[at])));
        }
        for gone in old.pools.iter().filter(|p| !pools.iter().any(|q| Rc::ptr_eq(p, q))) {
            gone.h1.close_idle();
            gone.h2.leave();
        }
        Self { spec, recorder_slot: old.recorder_slot, balancer: RefCell::new(balancer), pools }
    }

    /// Chooses an endpoint for an attempt, none of `tried`.
    pub fn pick(self: &Rc<Self>, now: u64, rng: &mut fastrand::Rng, tried: &[u32]) -> Option<Attempt> {
        let mut balancer = self.balancer.borrow_mut();
        let endpoint = balancer.pick(now, rng, |e| tried.iter().any(|t| *t as usize == e))?;
        balancer.started(endpoint, now);
        Some(Attempt {
            service: Rc::clone(self),
            // A service has at most 10 000 endpoints.
            endpoint: u32::try_from(endpoint).unwrap_or(u32::MAX),
            outcome: Cell::new(Outcome::Cancelled),
            now: Cell::new(now),
        })
    }

    /// The connections of an endpoint.
    pub fn pools(&self, endpoint: usize) -> &Rc<Pools> {
        &self.pools[endpoint]
    }

    /// Once a second: closes idle connections that are too old or dead.
    pub fn sweep(&self, now: u64) {
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
    }
}
