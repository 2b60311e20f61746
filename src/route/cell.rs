//! Routes of one place in the table that differ by their conditions: which of them is meant.
//!
//! They are asked in order, the most specific first. Where there are many, most differ by one exact value (a tenant in a
//! field, a version in a cookie): those are found by a look-up of the request's own value, so that the number of values
//! does not count; what is left is asked one by one, as long as it comes before what was found.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::conditions::{Request, What};
use super::{Conditions, RouteMatch};
use crate::authorize::Fields;

/// Routes of one place, at least one of which has conditions.
pub(super) struct Cell {
    /// In the order in which they are asked.
    ordered: Box<[u32]>,
    /// Where there are many.
    index: Option<Box<Index>>,
}

/// Places in the order of asking, by what leads to them.
struct Index {
    keys: Box<[Key]>,
    /// What no key leads to.
    rest: Box<[u32]>,
}

/// Routes that ask for an exact value of the same field, parameter, cookie or identity.
struct Key {
    of: Of,
    values: HashTable<(Box<[u8]>, Places)>,
    seed: RandomState,
}

/// Places in the order of asking.
type Places = SmallVec<[u32; 4]>;

/// What a value is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Header(Box<str>),
    Query(Box<str>),
    Cookie(Box<str>),
    Peer,
}

impl Cell {
    /// So few are asked one by one.
    const FEW: usize = 8;
    /// Keys that are looked up at most.
    const KEYS_MAX: usize = 4;

    pub(super) fn new(mut routes: Vec<u32>, matches: &[Arc<RouteMatch>]) -> Self {
        let conditions = |route: u32| &matches[route as usize].conditions;
        routes.sort_by_key(|route| Reverse(conditions(*route).rank(*route)));
        let index = (routes.len() > Self::FEW).then(|| Box::new(Index::new(&routes, conditions)));
        Self { ordered: routes.into(), index: index.filter(|index| !index.keys.is_empty()) }
    }

    /// The first route that is meant.
    pub(super) fn find<F: Fields>(
        &self,
        request: &Request<'_, '_, F>,
        matches: &[Arc<RouteMatch>],
    ) -> Option<u32> {
        let meant = |route: &u32| {
            matches.get(*route as usize).is_some_and(|m| m.conditions.first_unmet(request).is_none())
        };
        let Some(index) = &self.index else { return self.ordered.iter().copied().find(meant) };
        let mut lists: SmallVec<[&[u32]; Self::KEYS_MAX + 1]> = SmallVec::new();
        lists.push(&index.rest);
        lists.extend(index.keys.iter().filter_map(|key| key.places(request)));
        loop {
            let next = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
            let route = self.ordered.get(next[0] as usize)?;
            if meant(route) {
                return Some(*route);
            }
            *next = &next[1..];
        }
    }
}

impl Index {
    fn new<'m>(routes: &[u32], conditions: impl Fn(u32) -> &'m Conditions) -> Self {
        // What has most values parts the routes best.
        let mut counts: BTreeMap<Of, HashSet<Box<[u8]>>> = BTreeMap::new();
        for route in routes {
            exact_values(conditions(*route))
                .for_each(|(of, values)| counts.entry(of).or_default().extend(values));
        }
        let counts = counts.into_iter().map(|(of, values)| (of, values.len()));
        let mut most: Vec<(Of, usize)> = counts.filter(|(_, count)| *count > Cell::FEW / 2).collect();
        most.sort_by_key(|(_, count)| Reverse(*count));
        most.truncate(Cell::KEYS_MAX);
        let mut places: Vec<HashMap<Box<[u8]>, Places>> = vec![HashMap::new(); most.len()];
        let mut rest = Vec::new();
        for (place, route) in (0_u32..).zip(routes) {
            let values: Vec<(Of, Vec<Box<[u8]>>)> = exact_values(conditions(*route)).collect();
            let key = most.iter().position(|(of, _)| values.iter().any(|(own, _)| own == of));
            let Some(key) = key else {
                rest.push(place);
                continue;
            };
            for value in
                values.into_iter().filter(|(of, _)| *of == most[key].0).flat_map(|(_, values)| values)
            {
                places[key].entry(value).or_default().push(place);
            }
        }
        let keys = most.into_iter().zip(places).filter(|(_, places)| !places.is_empty());
        let keys = keys.map(|((of, _), places)| {
            let seed = RandomState::default();
            let mut values = HashTable::with_capacity(places.len());
            for entry in places {
                values.insert_unique(hash(&seed, &entry.0), entry, |entry| hash(&seed, &entry.0));
            }
            Key { of, values, seed }
        });
        Self { keys: keys.collect(), rest: rest.into() }
    }
}

/// What conditions ask to be exactly something, each with the values of which it must be one.
fn exact_values(conditions: &Conditions) -> impl Iterator<Item = (Of, Vec<Box<[u8]>>)> {
    use crate::identity::IdMatch;
    let peers: Option<Vec<Box<[u8]>>> = conditions
        .from
        .iter()
        .map(|from| match from {
            IdMatch::Exact(id) => Some(id.as_str().as_bytes().into()),
            IdMatch::Below(_) | IdMatch::Any => None,
        })
        .collect();
    let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| (Of::Peer, peers));
    type Kind<'c> = (&'c [(Box<str>, super::Test)], fn(Box<str>) -> Of);
    let kinds: [Kind<'_>; 3] = [
        (&conditions.headers, Of::Header),
        (&conditions.query, Of::Query),
        (&conditions.cookies, Of::Cookie),
    ];
    let fields = kinds.into_iter().flat_map(|(tests, of)| {
        tests.iter().filter_map(move |(name, test): &(Box<str>, super::Test)| match &test.what {
            What::Exact(text) if !test.not => {
                Some((of(name.clone()), vec![Box::<[u8]>::from(text.as_bytes())]))
            }
            _ => None,
        })
    });
    fields.chain(peers)
}

impl Key {
    /// The routes that ask for the value that the request has.
    fn places<F: Fields>(&self, request: &Request<'_, '_, F>) -> Option<&[u32]> {
        match &self.of {
            Of::Header(name) => self.of_value(request.header(name)?.octets()),
            Of::Query(name) => self.of_value(request.parameter(name)?.octets()),
            Of::Cookie(name) => self.of_value(request.cookie(name)?),
            Of::Peer => self.of_value(request.call.caller.peer?.as_str().as_bytes()),
        }
    }

    fn of_value(&self, value: &[u8]) -> Option<&[u32]> {
        let found = self.values.find(hash(&self.seed, value), |(known, _)| **known == *value);
        found.map(|(_, places)| &places[..])
    }
}

fn hash(seed: &RandomState, octets: &[u8]) -> u64 {
    let mut hasher = seed.build_hasher();
    hasher.write(octets);
    hasher.finish()
}
