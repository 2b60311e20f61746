//! What a shard counts of each route: exchanges by class, failures, and how long they took. Written at the end of each exchange,
//! handed over with the interval.
//!
//! Smaller and coarser than what is counted of services, because there may be many more routes: a histogram of eight buckets to a
//! doubling, 900 octets, so that counting costs a few nanoseconds. Memory follows use: a route has counts from its first exchange
//! in an interval until they are handed over. At most [`ROUTES_MAX`] are told apart, the rest shares one entry.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::failure::Failure;

/// Routes told apart per shard; the exchanges of further ones are counted under [`OVERFLOW_ROUTE`].
pub const ROUTES_MAX: usize = 1024;
/// The name under which routes past [`ROUTES_MAX`] are counted together.
pub const OVERFLOW_ROUTE: &str = "(other)";

/// One route's part of an interval.
#[derive(Debug)]
pub struct RouteInterval {
    /// The route's name, or [`OVERFLOW_ROUTE`].
    pub route: Arc<str>,
    /// What was counted.
    pub counts: Box<RouteCounts>,
}

/// Counters of one route, of one shard, over one interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteCounts {
    /// As of services.
    pub by_class: [u64; 6],
    /// gRPC calls that failed although the status of HTTP does not say so.
    pub grpc_errors: u64,
    /// Exchanges that ended badly, by failure.
    pub failures: SmallVec<[(Failure, u64); 2]>,
    /// From the request's first byte here to the response's last byte; tunnels are left out.
    pub whole: Spread,
}

/// How values of time are spread: eight buckets to a doubling, from a microsecond to more than a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread([u32; Self::BUCKETS]);

impl Spread {
    /// 2^10 ns to 2^36 ns, and one bucket for what is longer.
    pub const BUCKETS: usize = 26 * 8 + 1;
    const SHIFT: u32 = 10;

    /// Counts a time.
    pub fn record(&mut self, ns: u64) {
        self.0[Self::bucket(ns)] = self.0[Self::bucket(ns)].saturating_add(1);
    }

    /// Each bucket that is not empty: the smallest and the largest value that fall into it, and how many did.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let some = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        some.map(|(n, count)| (Self::low(n), Self::low(n + 1) - 1, u64::from(*count)))
    }

    fn bucket(ns: u64) -> usize {
        let ns = ns.max(1 << Self::SHIFT);
        let octave = ns.ilog2() - Self::SHIFT;
        let eighth = (ns >> (ns.ilog2() - 3)) & 7;
        (octave as usize * 8 + eighth as usize).min(Self::BUCKETS - 1)
    }

    fn low(bucket: usize) -> u64 {
        if bucket == 0 {
            return 0;
        }
        (8 + bucket as u64 % 8) << (bucket as u32 / 8 + Self::SHIFT - 3)
    }
}

impl Default for Spread {
    fn default() -> Self {
        Self([0; Self::BUCKETS])
    }
}

impl RouteCounts {
    /// Counts an exchange; `whole_ns` of what is no tunnel.
    pub fn record(&mut self, status: u16, failure: Option<Failure>, whole_ns: Option<u64>) {
        let class = usize::from(status / 100);
        self.by_class[if class < 6 { class } else { 0 }] += 1;
        if let Some(failure) = failure {
            match self.failures.iter_mut().find(|(known, _)| *known == failure) {
                Some((_, n)) => *n += 1,
                None => self.failures.push((failure, 1)),
            }
        }
        if let Some(whole_ns) = whole_ns {
            self.whole.record(whole_ns);
        }
    }

    /// All zero again.
    pub fn clear(&mut self) {
        self.by_class = [0; 6];
        self.grpc_errors = 0;
        self.failures.clear();
        self.whole = Spread::default();
    }
}

/// The slots of a shard's routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Changes when all slots come free: what a view has learnt of slots holds within one only.
    epoch: u16,
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, u16>,
    #[expect(clippy::vec_box, reason = "they travel boxed")]
    spare: Vec<Box<RouteCounts>>,
}

#[derive(Debug)]
struct Slot {
    route: Arc<str>,
    counts: Option<Box<RouteCounts>>,
}

/// Where a route is counted, as a view remembers it: found again without a look-up as long as that is right. 0: not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteSlot(u32);

impl Routes {
    /// What was counted last there was a gRPC call that failed.
    pub(super) fn note_grpc_error(&mut self, at: RouteSlot) {
        let slot = self.slots.get_mut(at.0 as usize & 0xffff);
        if let Some(counts) = slot.and_then(|slot| slot.counts.as_mut()) {
            counts.grpc_errors += 1;
        }
    }

    /// Counts an exchange of a route; gives where, for the next time.
    pub(super) fn record(
        &mut self,
        known: RouteSlot,
        route: &Arc<str>,
        status: u16,
        failure: Option<Failure>,
        whole_ns: Option<u64>,
    ) -> RouteSlot {
        let known = if known.0 >> 16 == u32::from(self.epoch) + 1 { known } else { self.find(route) };
        if let Some(slot) = self.slots.get_mut(known.0 as usize & 0xffff) {
            let counts = slot.counts.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
            counts.record(status, failure, whole_ns);
        }
        known
    }

    fn find(&mut self, route: &Arc<str>) -> RouteSlot {
        let full = self.slots.len() >= ROUTES_MAX - 1 && !self.by_name.contains_key(route);
        // Names of routes have no brackets: this is nobody's own.
        let name = if full { OVERFLOW_ROUTE.into() } else { Arc::clone(route) };
        let next = self.slots.len();
        // At most `ROUTES_MAX`.
        let slot = *self.by_name.entry(Arc::clone(&name)).or_insert(next as u16);
        if usize::from(slot) == next {
            self.slots.push(Slot { route: name, counts: None });
        }
        RouteSlot((u32::from(self.epoch) + 1) << 16 | u32::from(slot))
    }

    /// Hands all over. When all slots are taken they come free: some may be of routes that are gone.
    pub(super) fn hand_over(&mut self, to: &mut Vec<RouteInterval>) {
        for slot in &mut self.slots {
            if let Some(counts) = slot.counts.take() {
                to.push(RouteInterval { route: Arc::clone(&slot.route), counts });
            }
        }
        self.spare.truncate(to.len());
        // Those that are used find a place again.
        if self.slots.len() >= ROUTES_MAX {
            self.slots.clear();
            self.by_name.clear();
            self.epoch = (self.epoch + 1) % (u16::MAX - 1);
        }
    }

    /// Takes cleared counts back.
    pub(super) fn take_back(&mut self, routes: &mut Vec<RouteInterval>) {
        self.spare.extend(routes.drain(..).map(|route| route.counts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Cause, Stage};

    #[test]
    fn a_time_falls_into_a_bucket_that_holds_it_within_an_eighth() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            // The first bucket takes all that is shorter, too.
            let ns = 1 << rng.u32(11..36) | rng.u64(..1 << 10);
            let mut spread = Spread::default();
            spread.record(ns);
            let (low, high, count) = spread.buckets().next().unwrap();
            assert!(low <= ns && ns <= high && count == 1, "{low} {ns} {high}");
            assert!((high - low) as f64 <= ns as f64 / 8.0, "{low} {ns} {high}");
        }
        for ns in [0, 1, 1023, 1 << 36, u64::MAX] {
            let mut spread = Spread::default();
            spread.record(ns);
            assert_eq!(spread.buckets().count(), 1, "{ns}");
        }
    }

    #[test]
    fn routes_are_counted_by_name_and_found_again_without_one() {
        let failure = Failure::upstream(Stage::Response, Cause::Timeout);
        let mut routes = Routes::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let at_a = routes.record(RouteSlot::default(), &a, 200, None, Some(5_000_000));
        let at_b = routes.record(RouteSlot::default(), &b, 504, Some(failure), None);
        assert_ne!(at_a, at_b);
        // A name is not looked at where the slot is known.
        assert_eq!(routes.record(at_a, &b, 0, Some(failure), Some(1)), at_a);
        let mut interval = Vec::new();
        routes.hand_over(&mut interval);
        let shown: Vec<_> = interval
            .iter()
            .map(|part| {
                (
                    &*part.route,
                    part.counts.by_class,
                    part.counts.failures.to_vec(),
                    part.counts.whole.buckets().count(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("a", [1, 0, 1, 0, 0, 0], vec![(failure, 1)], 2),
                ("b", [0, 0, 0, 0, 0, 1], vec![(failure, 1)], 0)
            ]
        );
        interval.iter_mut().for_each(|part| part.counts.clear());
        routes.take_back(&mut interval);
        routes.hand_over(&mut interval);
        assert!(interval.is_empty());
    }

    #[test]
    fn beyond_the_ceiling_routes_are_counted_together_and_places_come_free_again() {
        let mut routes = Routes::default();
        let name = |n: usize| -> Arc<str> { format!("route-{n}").into() };
        for n in 0..2 * ROUTES_MAX {
            routes.record(RouteSlot::default(), &name(n), 200, None, None);
        }
        let mut interval = Vec::new();
        routes.hand_over(&mut interval);
        assert_eq!(interval.len(), ROUTES_MAX);
        let other = interval.iter().find(|part| &*part.route == OVERFLOW_ROUTE).unwrap();
        assert_eq!(other.counts.by_class[2] as usize, ROUTES_MAX + 1);
        // What a view knew before is not believed.
        let mut interval = Vec::new();
        let slot = routes.record(RouteSlot(1 << 16), &name(9999), 200, None, None);
        routes.record(slot, &name(9999), 200, None, None);
        routes.hand_over(&mut interval);
        assert_eq!(
            (interval.len(), &*interval[0].route, interval[0].counts.by_class[2]),
            (1, "route-9999", 2)
        );
    }
}
