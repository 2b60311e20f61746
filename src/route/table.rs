//! The compiled table: host, then path, longest first. Built by `config::compile`, read by `proxy` once per exchange.
//!
//! Precedence is that of the Gateway API: of all routes that match host *and* path, the one with the most specific
//! host wins (exact, then the longest `*.suffix`, then any), and among those of one host the one with the most specific
//! path (exact, then the longest prefix). So a request whose path has no route under its own host falls through to a
//! less specific host that has one; who wants a host to be closed gives it a route for `/`. (Envoy and nginx choose the
//! host alone and then answer 404, which would make "any host" mean "any host that is not named elsewhere".)
//!
//! The cost of [`Table::find`] does not grow with the number of routes: one look-up by hash for the exact host, one per
//! label (at most as many as the longest suffix has) for wildcards, and for each host that is present one per segment
//! boundary (at most as many as its longest prefix has, and only at lengths that some path of that host has). Nothing
//! that a caller sends is ever inserted, so no caller can lengthen a chain; the hash is seeded per table all the same,
//! so that nobody can tell in advance which configured names lie close together.
//!
//! Refuses to allocate in `find`, to decode paths, and to know what a service is.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{HostMatch, PathMatch, Route};

/// Finds the route of a request. Cost does not grow with the number of routes.
#[derive(Default)]
pub struct Table {
    /// In the order of adding; everything else refers to them by index.
    routes: Vec<Route>,
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
    /// Whether any route lets connections become WebSockets.
    websockets: bool,
    seed: RandomState,
}

/// Collects routes and reports overlaps.
#[derive(Debug)]
pub struct TableBuilder {
    /// In the order of adding.
    routes: Vec<Route>,
    /// Normalised host to its id. `HostMatch::Any` is always [`ANY_HOST`] and not in here.
    ids: HashMap<HostMatch, u32>,
    /// By id.
    hosts: Vec<Paths>,
    /// Host id and normalised path to routes; without the prefix `/`.
    paths: HashMap<Key, Cell>,
}

/// Why a route cannot be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableError {
    /// Another route has the same host and path. The number counts the calls of [`TableBuilder::add`] that succeeded
    /// before the one that added that other route.
    Overlap(usize),
}

impl Table {
    /// A host name has at most 255 octets (RFC 1035 §2.3.4); a longer one has no route, not even one for any host.
    pub const HOST_BYTES_MAX: usize = 255;

    /// The route for a host (without port, any case, a final dot does not count; `None` for a request without one) and
    /// a path (without query).
    pub fn find(&self, host: Option<&[u8]>, path: &[u8]) -> Option<&Route> {
        self.routes.get(self.find_id(host, path)? as usize)
    }

    /// As [`Table::find`]: the route's index in [`Table::routes`].
    pub fn find_id(&self, host: Option<&[u8]>, path: &[u8]) -> Option<u32> {
        let named = match host {
            Some(host) => {
                let host = host.strip_suffix(b".").unwrap_or(host);
                if host.len() > Self::HOST_BYTES_MAX {
                    return None;
                }
                self.find_named(host, path)
            }
            None => None,
        };
        named.or_else(|| self.find_path(ANY_HOST, &self.any, path))
    }

    /// How many pairs of host and path have a route.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether no request has a route.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// All routes, in the order of adding; one that was added for several hosts appears once for each.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Changes routes in place; what they are found by stays.
    pub fn change(&mut self, with: impl FnMut(&mut Route)) {
        self.routes.iter_mut().for_each(with);
    }

    /// Whether any route lets connections become WebSockets.
    pub fn takes_websockets(&self) -> bool {
        self.websockets
    }

    /// Looks under the exact host, then under suffixes from the longest. `host` has at most `HOST_BYTES_MAX` octets.
    fn find_named(&self, host: &[u8], path: &[u8]) -> Option<u32> {
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
            && let Some(route) = self.find_path(found.id, &found.paths, path)
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
            .find_map(|found| self.find_path(found.id, &found.paths, path))
    }

    /// The most specific path of one host.
    fn find_path(&self, host: u32, paths: &Paths, path: &[u8]) -> Option<u32> {
        if paths.lengths.has(path.len())
            && let Some(found) = self.look_up_path(host, path)
        {
            // Every entry has at least one of the two, and an exact path beats any prefix.
            return Some(if found.exact == NO_ROUTE { found.prefix } else { found.exact });
        }
        let mut rest = &path[..paths.reach(path)];
        while let Some(slash) = rest.iter().rposition(|&b| b == b'/') {
            rest = &path[..slash];
            if paths.lengths.has(slash)
                && let Some(found) = self.look_up_path(host, rest)
                && found.prefix != NO_ROUTE
            {
                return Some(found.prefix);
            }
        }
        (paths.all != NO_ROUTE).then_some(paths.all)
    }

    fn look_up_host<'t>(&self, hosts: &'t HashTable<Host>, name: &[u8]) -> Option<&'t Host> {
        hosts.find(hash_host(&self.seed, name), |host| host.name[..] == *name)
    }

    fn look_up_path(&self, host: u32, path: &[u8]) -> Option<&Path> {
        self.paths
            .find(hash_path(&self.seed, host, path), |entry| entry.host == host && entry.path[..] == *path)
    }

    /// Bytes on the heap, without the routes' names (which are shared with others).
    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        let spilled = |text: &Text| if text.spilled() { text.capacity() } else { 0 };
        self.routes.capacity() * size_of::<Route>()
            + self.exact.allocation_size()
            + self.suffixes.allocation_size()
            + self.paths.allocation_size()
            + self.exact.iter().chain(&self.suffixes).map(|host| spilled(&host.name)).sum::<usize>()
            + self.paths.iter().map(|path| spilled(&path.path)).sum::<usize>()
    }
}

impl TableBuilder {
    /// Adds a route for a host and a path. Hosts are compared without regard to case and to a final dot, prefixes
    /// without regard to a final slash.
    ///
    /// # Errors
    /// When an earlier route has exactly this host and path; nothing is added then.
    pub fn add(&mut self, host: HostMatch, path: PathMatch, route: Route) -> Result<(), TableError> {
        let (text, exact) = match path {
            PathMatch::Exact(path) => (path.into_boxed_bytes(), true),
            PathMatch::Prefix(prefix) => {
                (prefix.strip_suffix('/').unwrap_or(&prefix).as_bytes().into(), false)
            }
        };
        let host = self.host_id(host);
        let paths = &mut self.hosts[host as usize];
        let slot = if text.is_empty() && !exact {
            &mut paths.all
        } else {
            let cell = self.paths.entry(Key { host, text }).or_insert(Cell::EMPTY);
            if exact { &mut cell.exact } else { &mut cell.prefix }
        };
        if *slot != NO_ROUTE {
            return Err(TableError::Overlap(*slot as usize));
        }
        // 32 bits are enough: a route has taken some hundred bytes of configuration before it comes here, so that the
        // machine's memory ends before the numbers do.
        *slot = self.routes.len() as u32;
        self.routes.push(route);
        Ok(())
    }

    /// The table.
    pub fn build(mut self) -> Table {
        self.routes.shrink_to_fit();
        let mut table = Table {
            websockets: self.routes.iter().any(|route| route.upgrades.websocket),
            routes: self.routes,
            exact: HashTable::new(),
            suffixes: HashTable::new(),
            paths: HashTable::with_capacity(self.paths.len()),
            ..Table::default()
        };
        for (Key { host, text }, cell) in self.paths {
            let paths = &mut self.hosts[host as usize];
            paths.lengths.add(text.len());
            if cell.prefix != NO_ROUTE {
                paths.prefix_bytes_max = paths.prefix_bytes_max.max(text.len() as u32);
                paths.segments_max = paths.segments_max.max(slashes(&text).count() as u32);
            }
            let path = Path { host, exact: cell.exact, prefix: cell.prefix, path: Text::from_slice(&text) };
            let hash = hash_path(&table.seed, host, &text);
            table.paths.insert_unique(hash, path, |path| hash_path(&table.seed, path.host, &path.path));
        }
        for (host, id) in self.ids {
            let paths = self.hosts[id as usize];
            let (hosts, name) = match host {
                HostMatch::Any => continue,
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
        table.any = self.hosts[ANY_HOST as usize];
        // They grew by doubling.
        table.exact.shrink_to_fit(|host| hash_host(&table.seed, &host.name));
        table.suffixes.shrink_to_fit(|host| hash_host(&table.seed, &host.name));
        table
    }

    fn host_id(&mut self, host: HostMatch) -> u32 {
        let normal =
            |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into_boxed_str();
        let host = match host {
            HostMatch::Any => return ANY_HOST,
            HostMatch::Exact(name) => HostMatch::Exact(normal(&name)),
            HostMatch::Suffix(suffix) => {
                debug_assert!(suffix.starts_with('.'), "a suffix is stored with its dot: {suffix}");
                HostMatch::Suffix(normal(&suffix))
            }
        };
        // As with routes, 32 bits are enough.
        let next = self.hosts.len() as u32;
        let id = *self.ids.entry(host).or_insert(next);
        if id == next {
            self.hosts.push(Paths::EMPTY);
        }
        id
    }
}

impl Default for TableBuilder {
    fn default() -> Self {
        Self { routes: Vec::new(), ids: HashMap::new(), hosts: vec![Paths::EMPTY], paths: HashMap::new() }
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
    /// The route for the prefix `/`, or `NO_ROUTE`.
    all: u32,
    /// The length of its longest prefix.
    prefix_bytes_max: u32,
    /// The slashes of the prefix with most of them; 0 when it has no prefix but `/`.
    segments_max: u32,
}

/// A configured path of one host.
struct Path {
    /// As it was configured; a prefix without its final slash, and never empty.
    path: Text,
    /// Whose it is.
    host: u32,
    /// The route for exactly this path, or `NO_ROUTE`.
    exact: u32,
    /// The route for this path and all below, or `NO_ROUTE`. At least one of the two is a route.
    prefix: u32,
}

/// A path of a host while they are collected.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    host: u32,
    text: Box<[u8]>,
}

/// The routes of a path while they are collected.
#[derive(Debug)]
struct Cell {
    exact: u32,
    prefix: u32,
}

/// A set of lengths: bit n for n octets, the last bit for 63 and more.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths(u64);

impl Lengths {
    fn add(&mut self, length: usize) {
        self.0 |= 1 << length.min(63);
    }

    fn has(self, length: usize) -> bool {
        (self.0 >> length.min(63)) & 1 == 1
    }
}

impl Paths {
    const EMPTY: Self = Self { lengths: Lengths(0), all: NO_ROUTE, prefix_bytes_max: 0, segments_max: 0 };

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

impl Cell {
    const EMPTY: Self = Self { exact: NO_ROUTE, prefix: NO_ROUTE };
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
/// In place of a route's index.
const NO_ROUTE: u32 = u32::MAX;

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
