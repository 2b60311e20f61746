//! What follows from a service's declaration for its balancers, worked out once by control and shared by all shards: groups
//! of endpoints that are drawn from (by subset, priority and zone), with their alias tables and tables of hashing.
//!
//! A service without any of these has one set of one group, of all endpoints in their order, and pays for nothing. Which
//! group gets how much while some endpoints are away is the business of [`census`](super::census).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;

use super::consistent::{Maglev, Member, Ring, Table};
use super::spec::{Balance, Fallback, Service};

/// The plan of a service.
#[derive(Debug)]
pub struct Plan {
    /// First that of all endpoints, then one for each subset.
    sets: Box<[Set]>,
    groups: Box<[Group]>,
}

/// The endpoints that a route may mean.
#[derive(Debug, Clone)]
pub struct Set {
    /// By priority, lowest number first. None is empty.
    pub(super) tiers: Box<[Tier]>,
    /// All groups of its tiers.
    pub(super) groups: Range<u32>,
    /// A bit for each endpoint; `None` for all of them.
    members: Option<Box<[u64]>>,
}

impl Set {
    /// Whether an endpoint is one of them.
    pub(super) fn has(&self, endpoint: usize) -> bool {
        let bit =
            |words: &[u64]| words.get(endpoint / 64).is_some_and(|word| word >> (endpoint % 64) & 1 == 1);
        self.members.as_deref().is_none_or(bit)
    }
}

/// The endpoints of one priority.
#[derive(Debug, Clone)]
pub(super) struct Tier {
    /// By zone, where zones matter, else one.
    pub(super) groups: Range<u32>,
    /// The part of the service's callers that this zone has, and its group, where it is preferred.
    pub(super) own: Option<(u32, f64)>,
}

/// Endpoints that are drawn from together. Named by their place in the group.
#[derive(Debug)]
pub struct Group {
    /// Index in `Service::endpoints` by place; `None` where the two are the same.
    endpoints: Option<Box<[u32]>>,
    pub(super) len: usize,
    pub(super) shares: Shares,
    /// With a balancer that hashes.
    pub(super) table: Option<Table>,
    /// All weights.
    pub(super) weight: u64,
}

impl Plan {
    pub(super) fn new(service: &Service) -> Self {
        let all: Vec<u32> = (0..u32::try_from(service.endpoints.len()).unwrap_or(u32::MAX)).collect();
        let choice = service.choice();
        let mut groups = Vec::new();
        let mut sets = vec![set(service, &all, &mut groups)];
        let subset = |n: usize| -> Vec<u32> {
            let Some(subset) = choice.subsets.get(n) else { return Vec::new() };
            all.iter()
                .copied()
                .filter(|&e| service.endpoints[e as usize].has_labels(&subset.labels))
                .collect()
        };
        for (n, declared) in choice.subsets.iter().enumerate() {
            let mut chosen = subset(n);
            match declared.fallback {
                _ if !chosen.is_empty() => {}
                Fallback::None => {}
                Fallback::Any => {
                    sets.push(sets[0].clone());
                    continue;
                }
                Fallback::Subset(other) => chosen = subset(other.into()),
            }
            let set = set(service, &chosen, &mut groups);
            sets.push(set);
        }
        Self { sets: sets.into(), groups: groups.into() }
    }

    /// The set of all endpoints (0), or of a subset. None that is not there is asked for; it would have no endpoints.
    pub(super) fn set(&self, subset: u16) -> Option<&Set> {
        self.sets.get(usize::from(subset))
    }

    pub(super) fn sets(&self) -> &[Set] {
        &self.sets
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether a subset has this endpoint, or its fallback if it has none of its own.
    pub fn has(&self, subset: u16, endpoint: usize) -> bool {
        self.set(subset).is_some_and(|set| set.has(endpoint))
    }

    /// How many endpoints a subset has, its fallback's if it has none of its own.
    pub fn endpoints_of(&self, subset: u16) -> usize {
        let groups = self.set(subset).map_or(0..0, |set| set.groups.start as usize..set.groups.end as usize);
        self.groups[groups].iter().map(|group| group.len).sum()
    }

    /// Bytes of the tables of hashing.
    pub fn table_bytes(&self) -> usize {
        self.groups.iter().filter_map(|group| group.table.as_ref()).map(Table::bytes).sum()
    }
}

fn set(service: &Service, endpoints: &[u32], groups: &mut Vec<Group>) -> Set {
    let endpoint = |e: u32| &service.endpoints[e as usize];
    let mut by_priority: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
    for &e in endpoints {
        by_priority.entry(endpoint(e).priority).or_default().push(e);
    }
    let begin = next(groups);
    let tiers = by_priority.values().map(|members| tier(service, members, groups)).collect();
    let members = (endpoints.len() < service.endpoints.len()).then(|| {
        let mut words = vec![0_u64; service.endpoints.len().div_ceil(64)];
        for &e in endpoints {
            words[e as usize / 64] |= 1 << (e % 64);
        }
        words.into()
    });
    Set { tiers, groups: begin..next(groups), members }
}

fn tier(service: &Service, members: &[u32], groups: &mut Vec<Group>) -> Tier {
    let begin = next(groups);
    let choice = service.choice();
    let zones = &choice.zones;
    let zone = |e: u32| service.endpoints[e as usize].zone.as_ref();
    let own = choice.own_zone.as_ref().filter(|own| {
        zones.prefer_own
            // A key has to lead to the same endpoint from everywhere.
            && !service.balance.hashes()
            && members.len() >= zones.endpoints_min as usize
            && members.iter().any(|&e| zone(e) == Some(own))
            && members.iter().any(|&e| zone(e) != Some(own))
    });
    let Some(own) = own else {
        groups.push(Group::new(service, members));
        return Tier { groups: begin..next(groups), own: None };
    };
    let mut by_zone: BTreeMap<Option<&Arc<str>>, Vec<u32>> = BTreeMap::new();
    for &e in members {
        by_zone.entry(zone(e)).or_default().push(e);
    }
    let callers = zones.callers_percent.map_or(1.0 / by_zone.len() as f64, |part| f64::from(part) / 1e4);
    let mut own_group = begin;
    for (zone, members) in by_zone {
        if zone == Some(own) {
            own_group = next(groups);
        }
        groups.push(Group::new(service, &members));
    }
    Tier { groups: begin..next(groups), own: Some((own_group, callers)) }
}

fn next(groups: &[Group]) -> u32 {
    u32::try_from(groups.len()).unwrap_or(u32::MAX)
}

impl Group {
    fn new(service: &Service, members: &[u32]) -> Self {
        let endpoint = |e: &u32| &service.endpoints[*e as usize];
        let weights: Vec<u16> = members.iter().map(|e| endpoint(e).weight.max(1)).collect();
        let all = members.iter().zip(0..).all(|(&e, n)| e == n);
        let hashed = || -> Vec<Member<'_>> {
            let both = members.iter().zip(&weights);
            both.map(|(e, &weight)| Member { address: &endpoint(e).address, weight }).collect()
        };
        let consistent = &service.choice().consistent;
        Self {
            endpoints: if all { None } else { Some(members.into()) },
            len: members.len(),
            shares: if weights.windows(2).all(|pair| pair[0] == pair[1]) {
                Shares::Equal
            } else {
                Shares::unequal(&weights)
            },
            table: match service.balance {
                Balance::RingHash => Some(Table::Ring(Ring::new(&hashed(), consistent.ring_points))),
                Balance::Maglev => Some(Table::Maglev(Maglev::new(&hashed(), consistent.maglev_places))),
                Balance::PeakEwma | Balance::LeastRequest | Balance::RoundRobin | Balance::Random => None,
            },
            weight: weights.iter().map(|&w| u64::from(w)).sum(),
        }
    }

    /// The endpoint at a place.
    pub(super) fn endpoint(&self, place: usize) -> usize {
        match &self.endpoints {
            None => place,
            Some(endpoints) => endpoints[place] as usize,
        }
    }

    /// All endpoints with their weights.
    pub(super) fn weights(&self) -> impl Iterator<Item = (usize, u64)> {
        (0..self.len).map(|place| (self.endpoint(place), self.weight_at(place)))
    }

    /// The weight of the endpoint at a place.
    pub(super) fn weight_at(&self, place: usize) -> u64 {
        match &self.shares {
            Shares::Equal => self.weight / self.len as u64,
            Shares::Unequal(_) => self.shares.weight(place).into(),
        }
    }
}

/// The endpoints' parts of the traffic.
#[derive(Debug)]
pub(super) enum Shares {
    Equal,
    /// By endpoint.
    Unequal(Box<[Share]>),
}

/// One endpoint's part, and its column of the alias table (Vose): a column is drawn evenly, then 32 random bits below
/// `threshold` mean its own endpoint and others mean `alias`.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) threshold: u32,
    pub(super) alias: u32,
    /// Mean weight / own weight: one request weighs less on an endpoint of more weight.
    relief: f32,
    /// Own weight.
    weight: u16,
}

impl Shares {
    pub(super) fn unequal(weights: &[u16]) -> Self {
        let count = weights.len() as u64;
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        let mut shares: Box<[Share]> = weights
            .iter()
            .enumerate()
            .map(|(n, &weight)| Share {
                threshold: u32::MAX,
                alias: n as u32,
                relief: total as f32 / (count as f32 * f32::from(weight)),
                weight,
            })
            .collect();
        // In units of 1 / (count × total), in which each column has room for `total`: integers, hence exact.
        let mut room: Vec<u64> = weights.iter().map(|&w| u64::from(w) * count).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|&n| room[n] < total);
        while let (Some(&less), Some(&more)) = (small.last(), large.last()) {
            small.pop();
            shares[less].threshold = ((room[less] << 32) / total) as u32;
            shares[less].alias = more as u32;
            room[more] -= total - room[less];
            if room[more] < total {
                large.pop();
                small.push(more);
            }
        }
        Self::Unequal(shares)
    }

    pub(super) fn draw(&self, rng: &mut Rng, count: usize) -> usize {
        match self {
            Self::Equal => below(rng, count),
            Self::Unequal(shares) => {
                let bits = rng.u64(..);
                // The upper half chooses the column, the lower half within it.
                let column = (((bits >> 32) * count as u64) >> 32) as usize;
                let share = &shares[column];
                if (bits as u32) < share.threshold { column } else { share.alias as usize }
            }
        }
    }

    /// The weight at a place.
    pub(super) fn weight(&self, place: usize) -> u16 {
        match self {
            Self::Equal => 1,
            Self::Unequal(shares) => shares[place].weight,
        }
    }

    pub(super) fn relief(&self, endpoint: usize) -> f32 {
        match self {
            Self::Equal => 1.0,
            Self::Unequal(shares) => shares[endpoint].relief,
        }
    }
}

/// An even number below `count`, which is at most 2³² (one multiplication; the bias of at most count / 2³² is nothing).
pub(super) fn below(rng: &mut Rng, count: usize) -> usize {
    ((u64::from(rng.u32(..)) * count as u64) >> 32) as usize
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
