//! The compiled table: host, then path, then conditions. Built by `config::compile`, read by `proxy` once per exchange.
//!
//! Precedence is that of the Gateway API: of all routes that match host *and* path *and* conditions, the one with the
//! most specific host wins (exact, then the longest `*.suffix`, then any), and among those of one host the one with the
//! most specific path (exact, template, expression, the longest prefix), and among those the one whose conditions ask
//! for more. So a request that no route under its own host means falls through to a less specific host that has one; who
//! wants a host to be closed gives it a route for `/`. (Envoy and nginx choose the host alone and then answer 404, which
//! would make "any host" mean "any host that is not named elsewhere".)
//!
//! The cost of [`Table::find_id`] does not grow with the number of routes: one look-up by hash for the exact host, one
//! per label (at most as many as the longest suffix has) for wildcards, and for each host that is present one per
//! segment boundary (at most as many as its longest prefix has, and only at lengths that some path of that host has).
//! What is found there is a route, or where routes differ by conditions a cell of them; templates and expressions are a
//! side way that only hosts have which need it. Nothing that a caller sends is ever inserted, so no caller can lengthen
//! a chain; the hash is seeded per table all the same, so that nobody can tell in advance which configured names lie
//! close together.
//!
//! Refuses to decode paths, and to know what a service is. Allocates only for a condition on a field of several lines or
//! on an encoded parameter, beyond 128 octets.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::cell::Cell;
use super::lengths::Lengths;
use super::patterns::{NO_SLOT, Patterns, Slot};
use super::{HostMatch, PathMatch, Request, Route, RouteMatch};
use crate::authorize::{Call, Caller, Fields};

/// Finds the route of a request. Cost does not grow with the number of routes.
#[derive(Default, Clone)]
pub struct Table {
    /// In the order of adding; everything else refers to them by index.
    routes: Vec<Route>,
    /// What each of them means.
    matches: Vec<Arc<RouteMatch>>,
    /// Hosts by their whole name.
    exact: HashTable<Host>,
    /// Hosts by `.suffix`.
    suffixes: HashTable<Host>,
    /// The dots of the suffix with most of them: no wildcard needs a look further left.
    suffix_dots_max: usize,
    /// The lengths that occur among suffixes.
    suffix_lengths: Lengths,
    /// The paths of routes for any host. Their host id is [`ANY_HOST`].
    any: Paths,
    /// All paths except the prefix `/`, of all hosts: one table, because 10 000 small ones would be mostly slack.
    paths: HashTable<Path>,
    /// What slots from [`CELLS`] on stand for.
    cells: Vec<Arc<Cell>>,
    /// What `Paths::patterns` stands for.
    patterns: Vec<Arc<Patterns>>,
    /// Whether any route lets connections become WebSockets.
    websockets: bool,
    seed: RandomState,
}

/// Collects what routes mean and reports overlaps.
#[derive(Debug, Default)]
pub struct TableBuilder {
    /// In the order of adding.
    matches: Vec<Arc<RouteMatch>>,
    /// The routes of each host and path.
    places: HashMap<(HostMatch, PathMatch), Vec<u32>>,
    /// Where routes of one place have conditions: which of them has the same.
    alike: HashMap<Alike, u32>,
}

/// Another route means the same requests of one of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Which of the hosts, by its place in [`RouteMatch::hosts`].
    pub host: usize,
    /// The other route, by the number of those added before it.
    pub other: u32,
}

impl Table {
    /// A host name has at most 255 octets (RFC 1035 §2.3.4); a longer one has no route, not even one for any host.
    pub const HOST_BYTES_MAX: usize = 255;

    /// The route for a GET without fields from nowhere: for those who know that no route asks for more.
    pub fn find(&self, host: Option<&[u8]>, path: &[u8]) -> Option<&Route> {
        let caller = Caller { listener: "", port: 0, source: IpAddr::V4(Ipv4Addr::UNSPECIFIED), peer: None };
        let call = Call { caller, method: b"GET", path, fields: &Bare };
        self.route(self.find_id(&Request { host, path, query: &[], call: &call })?)
    }

    /// The route for a request: its index in [`Table::routes`]. The host is without port and of any case, a final dot does
    /// not count.
    pub fn find_id<F: Fields>(&self, request: &Request<'_, '_, F>) -> Option<u32> {
        let named = match request.host {
            Some(host) => {
                let host = host.strip_suffix(b".").unwrap_or(host);
                if host.len() > Self::HOST_BYTES_MAX {
                    return None;
                }
                self.find_named(host, request)
            }
            None => None,
        };
        named.or_else(|| self.find_path(ANY_HOST, &self.any, request))
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether no request has a route.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// All routes, in the order of adding, which is that of the files.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The same, in which routes do something else; what they are found by stays.
    #[must_use]
    pub fn changed(&self, with: impl FnMut(&mut Route)) -> Self {
        let mut table = self.clone();
        table.routes.iter_mut().for_each(with);
        table
    }

    /// One route.
    pub fn route(&self, id: u32) -> Option<&Route> {
        self.routes.get(id as usize)
    }

    /// Which requests each route means, in the same order.
    pub fn matches(&self) -> &[Arc<RouteMatch>] {
        &self.matches
    }

    /// Whether any route lets connections become WebSockets.
    pub fn takes_websockets(&self) -> bool {
        self.websockets
    }

    /// Looks under the exact host, then under suffixes from the longest. `host` has at most `HOST_BYTES_MAX` octets.
    fn find_named<F: Fields>(&self, host: &[u8], request: &Request<'_, '_, F>) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() {
            return None;
        }
        let mut lower = [0; Self::HOST_BYTES_MAX];
        let host = {
            let lower = lower.get_mut(..host.len())?;
            lower.copy_from_slice(host);
            lower.make_ascii_lowercase();
            &*lower
        };
        if let Some(found) = self.look_up_host(&self.exact, host)
            && let Some(route) = self.find_path(found.id, &found.paths, request)
        {
            return Some(route);
        }
        if self.suffixes.is_empty() {
            return None;
        }
        let mut leftmost = host.len();
        for _ in 0..self.suffix_dots_max {
            match host[..leftmost].iter().rposition(|&b| b == b'.') {
                Some(dot) => leftmost = dot,
                None => break,
            }
        }
        // At least one octet must stand before the dot: `*` is one or more labels. Dots further right are longer in
        // what they cut off, so the first hit is the longest suffix.
        (leftmost.max(1)..host.len())
            .filter(|&dot| host[dot] == b'.' && self.suffix_lengths.has(host.len() - dot))
            .filter_map(|dot| self.look_up_host(&self.suffixes, &host[dot..]))
            .find_map(|found| self.find_path(found.id, &found.paths, request))
    }

    /// The most specific path of one host.
    fn find_path<F: Fields>(&self, host: u32, paths: &Paths, request: &Request<'_, '_, F>) -> Option<u32> {
        let path = request.path;
        let whole = if paths.lengths.has(path.len()) { self.look_up_path(host, path) } else { None };
        if let Some(found) = whole
            && let Some(route) = self.choose(found.exact, request)
        {
            return Some(route);
        }
        if let Some(patterns) = self.patterns.get(paths.patterns as usize)
            && patterns.may_mean(path)
            && let Some(route) = self.find_pattern(patterns, request)
        {
            return Some(route);
        }
        if let Some(found) = whole
            && let Some(route) = self.choose(found.prefix, request)
        {
            return Some(route);
        }
        let mut rest = &path[..paths.reach(path)];
        while let Some(slash) = rest.iter().rposition(|&b| b == b'/') {
            rest = &path[..slash];
            if paths.lengths.has(slash)
                && let Some(found) = self.look_up_path(host, rest)
                && let Some(route) = self.choose(found.prefix, request)
            {
                return Some(route);
            }
        }
        self.choose(paths.all, request)
    }

    /// The route of a slot that means the request.
    fn choose<F: Fields>(&self, slot: Slot, request: &Request<'_, '_, F>) -> Option<u32> {
        match slot {
            ..CELLS => Some(slot),
            NO_SLOT => None,
            _ => self.choose_by_conditions(slot, request),
        }
    }

    #[cold]
    #[inline(never)]
    fn choose_by_conditions<F: Fields>(&self, slot: Slot, request: &Request<'_, '_, F>) -> Option<u32> {
        self.cells.get((slot - CELLS) as usize)?.find(request, &self.matches)
    }

    #[cold]
    #[inline(never)]
    fn find_pattern<F: Fields>(&self, patterns: &Patterns, request: &Request<'_, '_, F>) -> Option<u32> {
        let choose = |slot| self.choose(slot, request);
        patterns.template(request.path, &choose).or_else(|| {
            // Expressions are not more or less specific than each other.
            let mut best = None;
            patterns.each_regex(request.path, |slot| {
                let ranked = choose(slot).and_then(|route| {
                    let of = self.matches.get(route as usize)?;
                    Some((of.conditions.rank(route), route))
                });
                best = best.max(ranked);
            });
            best.map(|(_, route)| route)
        })
    }

    fn look_up_host<'t>(&self, hosts: &'t HashTable<Host>, name: &[u8]) -> Option<&'t Host> {
        hosts.find(hash_host(&self.seed, name), |host| host.name[..] == *name)
    }

    fn look_up_path(&self, host: u32, path: &[u8]) -> Option<&Path> {
        self.paths
            .find(hash_path(&self.seed, host, path), |entry| entry.host == host && entry.path[..] == *path)
    }

    /// Bytes on the heap, without what is shared with others: names, and what routes mean.
    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        let spilled = |text: &Text| if text.spilled() { text.capacity() } else { 0 };
        self.routes.capacity() * size_of::<Route>()
            + self.matches.capacity() * size_of::<Arc<RouteMatch>>()
            + self.exact.allocation_size()
            + self.suffixes.allocation_size()
            + self.paths.allocation_size()
            + self.exact.iter().chain(&self.suffixes).map(|host| spilled(&host.name)).sum::<usize>()
            + self.paths.iter().map(|path| spilled(&path.path)).sum::<usize>()
    }
}

/// No fields.
struct Bare;

impl Fields for Bare {
    fn values(&self, _: &str) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }
}

impl TableBuilder {
    /// Adds what a route means; gives its number. Hosts are compared without regard to case and to a final dot, prefixes
    /// without regard to a final slash, templates without regard to the names of their variables. No host stands twice.
    ///
    /// # Errors
    /// For each host under which an earlier route has exactly this path and these conditions; nothing is added then.
    pub fn add(&mut self, matching: Arc<RouteMatch>) -> Result<u32, Vec<Overlap>> {
        // 32 bits are enough, and one less: a route has taken some hundred bytes of configuration before it comes here,
        // so that the machine's memory ends before the numbers do.
        let id = self.matches.len() as u32;
        let path = normal_path(&matching.path);
        let keys: Vec<_> = matching.hosts().iter().map(|host| (normal_host(host), path.clone())).collect();
        let twins = |(host, key): (usize, &(HostMatch, PathMatch))| {
            let place = self.places.get(key)?;
            let other = if place.len() == 1 {
                let same = self.matches[place[0] as usize].conditions == matching.conditions;
                same.then_some(place[0])
            } else {
                self.alike.get(&Alike(place[0], Arc::clone(&matching), key.0.clone())).copied()
            };
            other.map(|other| Overlap { host, other })
        };
        let overlaps: Vec<Overlap> = keys.iter().enumerate().filter_map(twins).collect();
        if !overlaps.is_empty() {
            return Err(overlaps);
        }
        for key in keys {
            let host = key.0.clone();
            match self.places.entry(key) {
                Entry::Vacant(place) => drop(place.insert(vec![id])),
                Entry::Occupied(mut place) => {
                    let place = place.get_mut();
                    let first = place[0];
                    if place.len() == 1 {
                        let own = Arc::clone(&self.matches[first as usize]);
                        self.alike.insert(Alike(first, own, host.clone()), first);
                    }
                    self.alike.insert(Alike(first, Arc::clone(&matching), host), id);
                    place.push(id);
                }
            }
        }
        self.matches.push(matching);
        Ok(id)
    }

    /// What was added, in this order.
    pub fn matches(&self) -> &[Arc<RouteMatch>] {
        &self.matches
    }

    /// The table: `routes` are those that belong to what was added, in the same order.
    pub fn build(mut self, mut routes: Vec<Route>) -> Table {
        debug_assert_eq!(routes.len(), self.matches.len());
        routes.shrink_to_fit();
        self.matches.shrink_to_fit();
        let mut table = Table {
            websockets: routes.iter().any(|route| route.upgrades.websocket),
            routes,
            matches: self.matches,
            exact: HashTable::new(),
            suffixes: HashTable::new(),
            paths: HashTable::with_capacity(self.places.len()),
            ..Table::default()
        };
        let mut hosts = Hosts::default();
        let mut cells: HashMap<(u32, Box<[u8]>), Slots> = HashMap::new();
        for ((host, path), routes) in self.places {
            let host = hosts.id(host);
            let slot = table.slot(routes);
            let (text, exact) = match path {
                PathMatch::Exact(path) => (path.into_boxed_bytes(), true),
                PathMatch::Prefix(prefix) => (prefix.into_boxed_bytes(), false),
                PathMatch::Template(template) => {
                    hosts.patterns(host).0.push((template, slot));
                    continue;
                }
                PathMatch::Regex(regex) => {
                    hosts.patterns(host).1.push((regex, slot));
                    continue;
                }
            };
            if text.is_empty() && !exact {
                hosts.paths[host as usize].all = slot;
                continue;
            }
            let slots = cells.entry((host, text)).or_insert(Slots { exact: NO_SLOT, prefix: NO_SLOT });
            *(if exact { &mut slots.exact } else { &mut slots.prefix }) = slot;
        }
        for ((host, text), Slots { exact, prefix }) in cells {
            let paths = &mut hosts.paths[host as usize];
            paths.lengths.add(text.len());
            if prefix != NO_SLOT {
                paths.prefix_bytes_max = paths.prefix_bytes_max.max(text.len() as u32);
                paths.segments_max = paths.segments_max.max(slashes(&text).count() as u32);
            }
            let path = Path { host, exact, prefix, path: Text::from_slice(&text) };
            let hash = hash_path(&table.seed, host, &text);
            table.paths.insert_unique(hash, path, |path| hash_path(&table.seed, path.host, &path.path));
        }
        for (host, (templates, regexes)) in hosts.patterns {
            hosts.paths[host as usize].patterns = table.patterns.len() as u32;
            table.patterns.push(Arc::new(Patterns::new(&templates, regexes)));
        }
        for (host, id) in hosts.ids {
            let paths = hosts.paths[id as usize];
            let (hosts, name) = match host {
                HostMatch::Any => {
                    table.any = paths;
                    continue;
                }
                HostMatch::Exact(name) => (&mut table.exact, name.into_boxed_bytes()),
                HostMatch::Suffix(suffix) => {
                    let suffix = suffix.into_boxed_bytes();
                    table.suffix_lengths.add(suffix.len());
                    let dots = suffix.iter().filter(|&&b| b == b'.').count();
                    table.suffix_dots_max = table.suffix_dots_max.max(dots);
                    (&mut table.suffixes, suffix)
                }
            };
            let host = Host { id, paths, name: Text::from_slice(&name) };
            hosts.insert_unique(hash_host(&table.seed, &name), host, |host| {
                hash_host(&table.seed, &host.name)
            });
        }
        // They grew by doubling.
        table.cells.shrink_to_fit();
        table.exact.shrink_to_fit(|host| hash_host(&table.seed, &host.name));
        table.suffixes.shrink_to_fit(|host| hash_host(&table.seed, &host.name));
        table
    }
}

impl Table {
    /// The slot of the routes of one place: the route itself where it is the only one and asks for nothing more.
    fn slot(&mut self, routes: Vec<u32>) -> Slot {
        if let [only] = routes[..]
            && self.matches[only as usize].conditions.is_empty()
        {
            return only;
        }
        self.cells.push(Arc::new(Cell::new(routes, &self.matches)));
        CELLS + (self.cells.len() - 1) as u32
    }
}

/// Hosts while the table is built.
struct Hosts {
    ids: HashMap<HostMatch, u32>,
    /// By id.
    paths: Vec<Paths>,
    patterns: HashMap<u32, HostPatterns>,
}

/// Templates and expressions of one host, each with its slot.
type HostPatterns = (Vec<(super::Template, Slot)>, Vec<(super::Regex, Slot)>);

impl Hosts {
    fn id(&mut self, host: HostMatch) -> u32 {
        let next = self.paths.len() as u32;
        let id = *self.ids.entry(host).or_insert(next);
        if id == next {
            self.paths.push(Paths::EMPTY);
        }
        id
    }

    fn patterns(&mut self, host: u32) -> &mut HostPatterns {
        self.patterns.entry(host).or_default()
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            ids: HashMap::from([(HostMatch::Any, ANY_HOST)]),
            paths: vec![Paths::EMPTY],
            patterns: HashMap::new(),
        }
    }
}

/// A route of one place: two are the same when their conditions are. The place is told by its first route and the host.
#[derive(Debug)]
struct Alike(u32, Arc<RouteMatch>, HostMatch);

impl PartialEq for Alike {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 && self.2 == other.2 && self.1.conditions == other.1.conditions
    }
}

impl Eq for Alike {}

impl Hash for Alike {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.conditions.hash(state);
        self.2.hash(state);
    }
}

pub(super) fn normal_host(host: &HostMatch) -> HostMatch {
    let normal = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into_boxed_str();
    match host {
        HostMatch::Any => HostMatch::Any,
        HostMatch::Exact(name) => HostMatch::Exact(normal(name)),
        HostMatch::Suffix(suffix) => {
            debug_assert!(suffix.starts_with('.'), "a suffix is stored with its dot: {suffix}");
            HostMatch::Suffix(normal(suffix))
        }
    }
}

fn normal_path(path: &PathMatch) -> PathMatch {
    match path {
        PathMatch::Prefix(prefix) => PathMatch::Prefix(prefix.strip_suffix('/').unwrap_or(prefix).into()),
        other => other.clone(),
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { routes, exact, suffixes, .. } = self;
        write!(f, "Table {{ {} routes, {} hosts, {} suffixes }}", routes.len(), exact.len(), suffixes.len())
    }
}

/// A host name or path. 24 octets lie in the entry itself, so that comparing a usual one touches no further memory.
type Text = SmallVec<[u8; 24]>;

/// A configured host. One cache line.
#[derive(Clone)]
struct Host {
    /// Lower case, without final dot; a suffix with its first dot.
    name: Text,
    /// Tells its paths from those of other hosts.
    id: u32,
    /// What is known of its paths without looking at them.
    paths: Paths,
}

/// What is known of one host's paths without looking at them.
#[derive(Debug, Clone, Copy)]
struct Paths {
    /// The lengths that occur among its paths.
    lengths: Lengths,
    /// The slot of the prefix `/`.
    all: Slot,
    /// Its templates and expressions: an index into `Table::patterns`, or `NO_SLOT`.
    patterns: u32,
    /// The length of its longest prefix.
    prefix_bytes_max: u32,
    /// The slashes of the prefix with most of them; 0 when it has no prefix but `/`.
    segments_max: u32,
}

/// A configured path of one host.
#[derive(Clone)]
struct Path {
    /// As it was configured; a prefix without its final slash, and never empty.
    path: Text,
    /// Whose it is.
    host: u32,
    /// The slot of exactly this path.
    exact: Slot,
    /// The slot of this path and all below. At least one of the two is not empty.
    prefix: Slot,
}

/// The slots of a path while they are collected.
struct Slots {
    exact: Slot,
    prefix: Slot,
}

impl Paths {
    const EMPTY: Self = Self {
        lengths: Lengths::NONE,
        all: NO_SLOT,
        patterns: NO_SLOT,
        prefix_bytes_max: 0,
        segments_max: 0,
    };

    /// How much of `path` can hold the slash that ends a prefix: whatever a caller sends, no more octets are looked at
    /// than the longest prefix has, and no more slashes than the one with most of them.
    fn reach(&self, path: &[u8]) -> usize {
        if self.segments_max == 0 {
            return 0;
        }
        let octets = path.len().min(self.prefix_bytes_max as usize + 1);
        match slashes(&path[..octets]).nth(self.segments_max as usize) {
            Some(slash) => slash + 1,
            None => octets,
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::EMPTY
    }
}

fn slashes(path: &[u8]) -> impl Iterator<Item = usize> {
    path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(at, _)| at)
}

fn hash_host(seed: &RandomState, name: &[u8]) -> u64 {
    let mut hasher = seed.build_hasher();
    hasher.write(name);
    hasher.finish()
}

fn hash_path(seed: &RandomState, host: u32, path: &[u8]) -> u64 {
    let mut hasher = seed.build_hasher();
    hasher.write_u32(host);
    hasher.write(path);
    hasher.finish()
}

/// The id of "any host".
const ANY_HOST: u32 = 0;
/// Slots below are routes, those from here on cells; the last one is nothing.
const CELLS: Slot = 1 << 31;

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
