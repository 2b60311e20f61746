//! Which group of a [plan](super::plan) gets how much, by how many of its endpoints are usable. One per shard and service,
//! where there is more than one group or loads are bounded; counted anew when an endpoint went or came, at most as often
//! as costs a fifth of a percent of the shard. Pure: time is an argument.
//!
//! # Priorities
//! The health of a priority is `min(1, 1.4 × usable / all)`, by weight. The first gets as much of the traffic as its health,
//! the next as much of the rest as its own, and so on; where all together come to less than 1 each gets its part of the sum.
//! This is Envoy's rule with its overprovisioning factor of 140 %: below 71 % of the first (1 / 1.4) the next is used.
//!
//! # Zones
//! Of one priority, with Z zones among its endpoints: u = usable weight in this zone / usable weight, c = callers in this
//! zone / callers (1 / Z unless it is declared). While u ≥ c everything stays in the zone. Else u / c of it does, and the
//! rest goes to the other zones by what they have beyond their own callers' part, `max(0, u_z − c_z)`, c_z = (1 − c) / (Z − 1).
//! So each usable endpoint has the same load where all proxies do so and callers are spread as it is declared. This is
//! Envoy's zone aware routing, which learns c from its control plane.

use super::plan::{Plan, Set, Tier};

/// Where the traffic goes.
#[derive(Debug)]
pub(super) struct Census {
    /// By set.
    cuts: Box<[Vec<Cut>]>,
    /// By group.
    counted: Box<[Counted]>,
    counted_at_ns: u64,
    /// What was counted; `None` before the first time.
    version: Option<u64>,
}

/// Up to here (in parts of 2³²) traffic goes to that group.
#[derive(Debug, Clone, Copy)]
struct Cut {
    upto: u64,
    group: u32,
}

/// What is known of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    /// Of its endpoints that are usable.
    weight: u64,
    /// Of the traffic of its set, from 0 to 1.
    part: f64,
}

impl Census {
    /// By how much more than needed a priority is held to be provisioned. As Envoy.
    const OVERPROVISIONING: f64 = 1.4;

    pub(super) fn new(plan: &Plan) -> Self {
        let mut census = Self {
            cuts: plan.sets().iter().map(|_| Vec::new()).collect(),
            counted: plan.groups().iter().map(|_| Counted::default()).collect(),
            counted_at_ns: 0,
            version: None,
        };
        // Until somebody says otherwise all are usable.
        census.count(plan, |_| true);
        census
    }

    /// Counts, if that is due: not for a version that was counted before.
    pub(super) fn refresh(&mut self, plan: &Plan, now_ns: u64, version: u64, usable: impl Fn(usize) -> bool) {
        if self.version == Some(version) {
            return;
        }
        // A microsecond for each endpoint, of which looking at it takes two thousandths.
        let pause_ns = 1000 * plan.groups().iter().map(|group| group.len as u64).sum::<u64>();
        if now_ns < self.counted_at_ns.saturating_add(pause_ns) && self.counted_at_ns != 0 {
            return;
        }
        (self.version, self.counted_at_ns) = (Some(version), now_ns);
        self.count(plan, usable);
    }

    fn count(&mut self, plan: &Plan, usable: impl Fn(usize) -> bool) {
        for (group, counted) in plan.groups().iter().zip(&mut self.counted) {
            counted.weight = 0;
            for (endpoint, weight) in group.weights() {
                counted.weight += if usable(endpoint) { weight } else { 0 };
            }
        }
        for (set, cuts) in plan.sets().iter().zip(&mut self.cuts) {
            cuts.clear();
            divide(plan, set, &mut self.counted);
            let mut sum = 0.0;
            for group in set.groups.clone() {
                let part = self.counted[group as usize].part;
                sum += part;
                if part > 0.0 {
                    cuts.push(Cut { upto: (sum * 2f64.powi(32)) as u64, group });
                }
            }
            // What rounding leaves open.
            if let Some(last) = cuts.last_mut() {
                last.upto = 1 << 32;
            }
        }
    }

    /// The group that a request of a set goes to, by 32 bits that are random or of its key.
    pub(super) fn group(&self, subset: u16, bits: u32) -> Option<u32> {
        let cuts = self.cuts.get(usize::from(subset))?;
        cuts.iter().find(|cut| u64::from(bits) < cut.upto).map(|cut| cut.group)
    }

    /// The part of the traffic of its set that an endpoint of this group and weight ought to have.
    pub(super) fn part(&self, group: u32, weight: u64) -> f64 {
        let Counted { weight: all, part } = self.counted[group as usize];
        if all == 0 { 1.0 } else { part * weight as f64 / all as f64 }
    }
}

/// Works out the parts of all groups of a set.
fn divide(plan: &Plan, set: &Set, counted: &mut [Counted]) {
    let weights = |tier: &Tier, counted: &[Counted]| -> (f64, f64) {
        let groups = tier.groups.start as usize..tier.groups.end as usize;
        let usable: u64 = counted[groups.clone()].iter().map(|counted| counted.weight).sum();
        let all: u64 = plan.groups()[groups].iter().map(|group| group.weight).sum();
        (usable as f64, all as f64)
    };
    let health = |tier: &Tier, counted: &[Counted]| {
        let (usable, all) = weights(tier, counted);
        if usable >= all { 1.0 } else { (Census::OVERPROVISIONING * usable / all).min(1.0) }
    };
    let sum: f64 = set.tiers.iter().map(|tier| health(tier, counted)).sum();
    let mut left = 1.0;
    for (n, tier) in set.tiers.iter().enumerate() {
        let part = match sum {
            // None is usable: the first stands for all, and is asked whether it is so.
            0.0 => f64::from(u8::from(n == 0)),
            sum => (health(tier, counted) / sum.min(1.0)).min(left),
        };
        left -= part;
        among_zones(plan, tier, part, counted);
    }
}

fn among_zones(plan: &Plan, tier: &Tier, part: f64, counted: &mut [Counted]) {
    let groups = tier.groups.start as usize..tier.groups.end as usize;
    let usable: u64 = counted[groups.clone()].iter().map(|counted| counted.weight).sum();
    let share = |counted: &[Counted], group: usize| {
        // Where none is usable, by all weights.
        if usable == 0 {
            let all: u64 = plan.groups()[groups.clone()].iter().map(|group| group.weight).sum();
            plan.groups()[group].weight as f64 / all as f64
        } else {
            counted[group].weight as f64 / usable as f64
        }
    };
    let Some((own, callers)) = tier.own else {
        for group in groups.clone() {
            counted[group].part = part * share(counted, group);
        }
        return;
    };
    let own = own as usize;
    let stays = if callers > 0.0 { (share(counted, own) / callers).min(1.0) } else { 1.0 };
    let others_callers = (1.0 - callers) / (groups.len() - 1).max(1) as f64;
    let beyond = |counted: &[Counted], group: usize| {
        if group == own { 0.0 } else { (share(counted, group) - others_callers).max(0.0) }
    };
    let all_beyond: f64 = groups.clone().map(|group| beyond(counted, group)).sum();
    let others = 1.0 - share(counted, own);
    for group in groups.clone() {
        let of_rest = match group {
            _ if group == own => 0.0,
            _ if all_beyond > 0.0 => beyond(counted, group) / all_beyond,
            _ if others > 0.0 => share(counted, group) / others,
            _ => 0.0,
        };
        let own_part = if group == own { stays } else { 0.0 };
        counted[group].part = part * (own_part + (1.0 - stays) * of_rest);
    }
}

#[cfg(test)]
#[path = "census_test.rs"]
mod tests;
