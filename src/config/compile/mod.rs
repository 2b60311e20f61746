//! [`Raw`] to [`Compiled`]: fills in the defaults and checks how values fit together. All errors at once; `warn` adds what
//! is legal but surely unintended once there are none.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

mod action;
mod answers;
mod balance;
mod breaker;
mod caller_may;
mod canary;
mod caps;
mod global_limit;
mod matching;
mod policy;
mod probe;
mod rate_limit;
mod retry;
mod service;
mod shown;
mod tracing;

pub(super) use action::serving;
pub(super) use answers::warn as warn_of_actions;
pub(super) use balance::warn as warn_of_balance;
pub(super) use breaker::{values as breaker_values, warn as warn_of_breakers};
pub(super) use caps::{CompiledCaps, warn as warn_of_caps};
pub(super) use matching::warn as warn_of_matching;
pub(super) use policy::warn as warn_of_policy;
pub(super) use probe::values as probe_values;
pub(super) use probe::warn as warn_of_probes;
pub(super) use rate_limit::{CompiledRateLimit, Limit};
pub(super) use retry::warn as warn_of_retries;
pub(super) use tracing::pairs_text;

use super::compiled::{AccessLog, Compiled, CompiledRoute, Mark, Origins, Settings};
use super::defaults::{self, Key};
use super::nearest::did_you_mean;
use super::raw::{At, Destination, Raw, RawForwarding, RawHttp2, RawLimits, RawRoute, Shards, Via};
use super::report::{Place, Problem, Problems, Source};
use super::values;
use super::warn;
use crate::authorize;
use crate::route::mirror::Mirror;
use crate::route::{Action, HostMatch, Priority, Route, RouteMatch, TableBuilder};
use crate::snapshot::{Forwarding, Http2, Limits, Timeouts};

/// Everything checked; `None` when `problems` has errors.
pub(super) fn compile(raw: Raw, sources: &[Source], problems: &mut Problems) -> Option<Compiled> {
    check_names(&raw, problems);
    check_addresses(&raw, problems);
    let services_by_name: HashMap<&str, u32> = (0..)
        .zip(&raw.services)
        .filter_map(|(index, service)| Some((&*service.name.as_ref()?.value, index)))
        .collect();
    let found = find_services(&raw, &services_by_name, problems);
    balance::check(&raw, &found, problems);
    let table = matching::collect(&raw, problems);
    check_limits(&raw, problems);
    for concurrency in raw.services.iter().filter_map(|service| service.concurrency.as_ref()) {
        caps::check(concurrency, problems);
    }
    policy::check(&raw, problems);
    rate_limit::check(&raw, problems);
    canary::check(&raw, problems);
    breaker::check(&raw.services, problems);
    probe::check(&raw.services, problems);
    retry::check(&raw, problems);
    caller_may::check(&raw, problems);
    answers::check(&raw, problems);
    tracing::check(&raw, problems);
    if problems.errors() == 0 {
        check_listeners(&raw, problems);
    }
    if problems.errors() > 0 {
        return None;
    }
    warn::warn(&raw, &found, table.matches(), problems);
    drop(services_by_name);
    Some(assemble(raw, &found, table, sources))
}

// --- checks ---

fn check_names(raw: &Raw, problems: &mut Problems) {
    let listeners = raw.listeners.iter().map(|listener| listener.name.as_ref());
    unique("listener", listeners, true, problems);
    unique("service", raw.services.iter().map(|service| service.name.as_ref()), false, problems);
    unique("route", raw.routes.iter().map(|route| route.name.as_ref()), true, problems);
    unique("canary", raw.canaries.iter().map(|canary| canary.name.as_ref()), false, problems);
    let rules = raw.authorizations.iter().map(|rule| rule.name.as_ref());
    unique("authorization", rules, true, problems);
    unique("workload", raw.workloads.iter().map(|workload| workload.name.as_ref()), true, problems);
    unique("rate_limit", raw.rate_limits.iter().map(|limit| limit.name.as_ref()), true, problems);
}

/// No two of a kind have the same name. What has none is called by its number, and may clash with a given name.
fn unique<'r>(
    kind: &str,
    names: impl Iterator<Item = Option<&'r At<Arc<str>>>> + Clone,
    numbered: bool,
    problems: &mut Problems,
) {
    let mut first: HashMap<&str, Place> = HashMap::new();
    for name in names.clone().flatten() {
        match first.get(&*name.value) {
            Some(&place) => problems.error(|| {
                Problem::at(name.place, format!("two {kind}s are called `{}`", name.value))
                    .label("again here")
                    .other(place, "first here")
                    .help("give each a name of its own: log and metrics tell them apart by it")
            }),
            None => drop(first.insert(&name.value, name.place)),
        }
    }
    if numbered {
        for (index, _) in names.enumerate().filter(|(_, name)| name.is_none()) {
            let name = numbered_name(kind, index);
            if let Some(&place) = first.get(&*name) {
                problems.error(|| {
                    Problem::at(
                        place,
                        format!("`{name}` is what {kind} number {} is called, which has no name", index + 1),
                    )
                    .help("choose another name, or give the other one a name as well")
                });
            }
        }
    }
}

fn numbered_name(kind: &str, index: usize) -> Arc<str> {
    format!("{kind}-{}", index + 1).into()
}

fn check_addresses(raw: &Raw, problems: &mut Problems) {
    let mut first: HashMap<SocketAddr, Place> = HashMap::new();
    for address in
        raw.listeners.iter().filter_map(|listener| listener.address).filter(|at| at.value.port() != 0)
    {
        match first.get(&address.value) {
            Some(&place) => problems.error(|| {
                Problem::at(address.place, format!("two listeners on {}", address.value))
                    .label("again here")
                    .other(place, "first here")
                    .help("take one of them out: routes belong to no listener in particular")
            }),
            None => drop(first.insert(address.value, address.place)),
        }
    }
    let (admin, admin_place) = match raw.admin_address {
        Some(At { value: None, .. }) => return,
        Some(At { value: Some(address), place, .. }) => (address, Some(place)),
        None => match default_admin() {
            Some(address) => (address, None),
            None => return,
        },
    };
    for (&listener, &place) in first.iter().filter(|&(&listener, _)| collide(listener, admin)) {
        problems.error(|| {
            let problem =
                Problem::at(place, format!("{listener} cannot be bound beside the admin server on {admin}"))
                    .help("choose another port, or another `address` in [admin]");
            match admin_place {
                Some(admin_place) => problem.label("the listener").other(admin_place, "the admin server"),
                None => problem.label("the admin server's default"),
            }
        });
    }
}

/// Whether the kernel refuses the second of two addresses, the admin server's being without SO_REUSEPORT.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && overlap
}

/// For each route the indices of its services; 0 for one that is in error.
fn find_services(raw: &Raw, services: &HashMap<&str, u32>, problems: &mut Problems) -> Vec<Vec<u32>> {
    // In the order of the files, so that the same file always gets the same advice.
    let names = || raw.services.iter().filter_map(|service| Some(&*service.name.as_ref()?.value));
    let mut find = |name: &At<Box<str>>| {
        if let Some(&index) = services.get(&*name.value) {
            return index;
        }
        problems.error(|| {
            let help = did_you_mean(&name.value, names()).unwrap_or_else(|| match services.len() {
                0 => "add one: [[service]]".into(),
                1..=10 => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
                count => format!("there are {count} others; add it, or name one of them"),
            });
            Problem::at(
                name.place,
                format!("there is no service `{}`", super::reader::shortened(&name.value)),
            )
            .label("not declared")
            .help(help)
        });
        0
    };
    raw.routes.iter().map(|route| action::services_of(route).map(&mut find).collect()).collect()
}

/// The hosts of a route, each with its place; `None` for any host.
pub(super) fn hosts_of(route: &RawRoute) -> Option<&[(HostMatch, Place)]> {
    route.hosts.as_ref().map(|hosts| &*hosts.value).filter(|hosts| !hosts.is_empty())
}

fn check_limits(raw: &Raw, problems: &mut Problems) {
    let head = raw.limits.head_bytes_max.map_or(defaults::HEAD_BYTES_MAX.default, |at| at.value);
    let target = raw.limits.target_bytes_max.map_or(defaults::TARGET_BYTES_MAX.default, |at| at.value);
    if target > head
        && let Some(place) = raw.limits.target_bytes_max.or(raw.limits.head_bytes_max).map(|at| at.place)
    {
        problems.error(|| {
            let (target, head) = (values::size_text(target), values::size_text(head));
            Problem::at(place, format!("a target of {target} does not fit in a head of {head}"))
                .help("let limits.target_bytes_max be no more than limits.head_bytes_max")
        });
    }
}

/// Without a listener nobody can call, which nobody wants: it is what a file looks like that is just being written, and
/// taking it would close the last listener. Told when nothing else is wrong: a misspelt table is told of as such.
fn check_listeners(raw: &Raw, problems: &mut Problems) {
    if raw.listeners.is_empty() {
        problems.error(|| {
            Problem::nowhere("there is no listener: nobody could call this proxy").help(
                "add one: [[listener]] with address = \"127.0.0.1:15001\". Is the file being written just now? \
                 Write it beside and rename it. To close all listeners, stop the proxy",
            )
        });
    }
}

// --- assembly ---

fn assemble(raw: Raw, found: &[Vec<u32>], table: TableBuilder, sources: &[Source]) -> Compiled {
    let mut origins = Origins {
        files: sources.iter().map(|source| Arc::clone(&source.name)).collect(),
        variables: raw.variables,
        marks: HashMap::new(),
    };
    let mut from = From { sources, origins: &mut origins };
    let timeouts = Timeouts {
        head: from.key(&defaults::HEAD, raw.timeouts.head),
        idle: from.key(&defaults::IDLE, raw.timeouts.idle),
        body_stall: from.key(&defaults::BODY_STALL, raw.timeouts.body_stall),
        stream_idle: from.value(defaults::STREAM_IDLE.name, raw.timeouts.stream_idle, || None),
        drain: from.key(&defaults::DRAIN, raw.timeouts.drain),
        handshake: from.key(&defaults::HANDSHAKE, raw.timeouts.handshake),
    };
    let access_log = raw.access_log.then(|| AccessLog {
        path: from.value("access_log.path", raw.access_log_path, || Destination::Stdout),
        format: from.value("access_log.format", raw.access_log_format, || defaults::ACCESS_LOG_FORMAT),
    });
    let settings = Settings {
        shards: from.value("shards", raw.shards, || Shards::Auto),
        runtime: from.value("runtime", raw.runtime, || defaults::RUNTIME),
        stall_threshold: from.key(&defaults::STALL_THRESHOLD, raw.stall_threshold),
        admin: from.value("admin.address", raw.admin_address, default_admin),
        access_log,
        drain: timeouts.drain,
    };
    let limits = limits(&raw.limits, &mut from);
    let http2 = http2(&raw.http2, &mut from);
    let forwarding = forwarding(raw.forwarding, &mut from);
    let memory_max = from.value(defaults::MEMORY_MAX.name, raw.memory_max, || defaults::MEMORY_MAX_DEFAULT);
    let identity = policy::identity(raw.identity, &mut from);
    let tracing = tracing::tracing(raw.tracing, &mut from);
    let listeners = raw
        .listeners
        .into_iter()
        .enumerate()
        .filter_map(|(index, raw)| service::listener(raw, index, &from))
        .collect();
    let zone = raw.zone.map(|at| from.value("zone.name", Some(at), || "".into()));
    let services: Vec<_> =
        raw.services.into_iter().map(|raw| service::service(raw, zone.as_ref(), &from)).collect();
    let mut routes: Vec<CompiledRoute> = raw
        .routes
        .into_iter()
        .enumerate()
        .zip(found.iter().zip(table.matches()))
        .map(|((index, raw), (found, matching))| {
            let action = action::action(&raw, found, &services);
            let subset = balance::subset_of(&raw, found, &services);
            let mirror = action::mirror(&raw, found);
            route(raw, index, (action, subset, mirror), Arc::clone(matching), &from)
        })
        .collect();
    let rate_limits = rate_limit::rate_limits(raw.rate_limits, &mut routes, &services, &from);
    let canaries = raw.canaries.into_iter().map(|raw| canary::canary(raw, &from)).collect();
    let table = Arc::new(table.build(routes.iter().map(|compiled| compiled.route.clone()).collect()));
    let default =
        from.value("authorization_default", raw.authorization_default, || defaults::AUTHORIZATION_DEFAULT);
    let workloads = raw
        .workloads
        .into_iter()
        .enumerate()
        .map(|(index, raw)| policy::workload(raw, index, &from))
        .collect();
    let (rules, rule_marks) = raw
        .authorizations
        .into_iter()
        .enumerate()
        .filter_map(|(index, raw)| policy::rule(raw, index, &from))
        .unzip();
    Compiled {
        settings,
        identity,
        listeners,
        services,
        routes,
        canaries,
        table,
        authorization: Arc::new(authorize::Policy::new(rules, default).unwrap_or_else(|_| {
            // No file has more rules than `decode` takes; if one had, nobody would be let in.
            authorize::Policy::new(Vec::new(), authorize::Verdict::Deny).unwrap_or_default()
        })),
        rule_marks,
        workloads,
        rate_limits,
        zone,
        limits,
        timeouts,
        http2,
        forwarding,
        memory_max,
        tracing,
        origins,
    }
}

/// Takes values or their defaults and notes where they came from.
struct From<'a> {
    sources: &'a [Source],
    origins: &'a mut Origins,
}

impl From<'_> {
    fn key<T: Copy>(&mut self, key: &Key<T>, at: Option<At<T>>) -> T {
        self.value(key.name, at, || key.default)
    }

    fn value<T>(&mut self, name: &'static str, at: Option<At<T>>, default: impl FnOnce() -> T) -> T {
        match at {
            Some(at) => {
                let mark = self.mark(at.place, at.variable);
                self.origins.marks.insert(name, mark);
                at.value
            }
            None => default(),
        }
    }

    fn mark(&self, place: Place, variable: u16) -> Mark {
        let line = self.sources.get(usize::from(place.file)).map_or(1, |source| source.line(place.start));
        Mark { line, file: place.file, variable }
    }

    fn mark_of<T>(&self, at: Option<&At<T>>) -> Mark {
        at.map_or(Mark::DEFAULT, |at| self.mark(at.place, at.variable))
    }
}

fn limits(raw: &RawLimits, from: &mut From<'_>) -> Limits {
    Limits {
        head_bytes_max: narrow(from.key(&defaults::HEAD_BYTES_MAX, raw.head_bytes_max)),
        target_bytes_max: narrow(from.key(&defaults::TARGET_BYTES_MAX, raw.target_bytes_max)),
        paths: from.value("limits.paths", raw.paths, || defaults::PATHS),
        fields_max: from.key(&defaults::FIELDS_MAX, raw.fields_max),
        body_bytes_max: from.key(&defaults::BODY_BYTES_MAX, raw.body_bytes_max),
        connections_max: from.key(&defaults::CONNECTIONS_MAX, raw.connections_max),
        interim_responses_max: from.key(&defaults::INTERIM_RESPONSES_MAX, raw.interim_responses_max),
        handshakes_max: from.key(&defaults::HANDSHAKES_MAX, raw.handshakes_max),
        faults_max: from.key(&defaults::FAULTS_MAX, raw.faults_max),
        mirrored_max: from.key(&defaults::MIRRORED_MAX, raw.mirrored_max),
        mirrored_body_bytes_max: narrow(
            from.key(&defaults::MIRRORED_BODY_BYTES_MAX, raw.mirrored_body_bytes_max),
        ),
    }
}

fn http2(raw: &RawHttp2, from: &mut From<'_>) -> Http2 {
    Http2 {
        streams_max: from.key(&defaults::STREAMS_MAX, raw.streams_max),
        stream_window: narrow(from.key(&defaults::STREAM_WINDOW, raw.stream_window)),
        connection_window: narrow(from.key(&defaults::CONNECTION_WINDOW, raw.connection_window)),
        ping_interval: from.key(&defaults::PING_INTERVAL, raw.ping_interval),
        ping_timeout: from.key(&defaults::PING_TIMEOUT, raw.ping_timeout),
    }
}

/// The bounds of the keys are within the types; what could not be would be the largest.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn forwarding(raw: RawForwarding, from: &mut From<'_>) -> Forwarding {
    Forwarding {
        via: match from.value("forwarding.via", raw.via, || Via::Auto) {
            Via::Auto => Some(pseudonym()),
            Via::Off => None,
            Via::Pseudonym(name) => Some(name),
        },
        forwarded: from.value("forwarding.forwarded", raw.forwarded, || defaults::FORWARDED),
        failure_header: from
            .value("forwarding.failure_header", raw.failure_header, || defaults::FAILURE_HEADER),
    }
}

/// `ringmesh-` and six hexadecimal digits, made once per process: a loop is found by meeting one's own pseudonym, so
/// it must survive reloads and differ from the neighbours'.
fn pseudonym() -> Arc<str> {
    static PSEUDONYM: OnceLock<Arc<str>> = OnceLock::new();
    Arc::clone(PSEUDONYM.get_or_init(|| format!("ringmesh-{:06x}", fastrand::u32(..0x0100_0000)).into()))
}

fn default_admin() -> Option<SocketAddr> {
    defaults::ADMIN_ADDRESS.parse().ok()
}

fn value_or<T>(at: Option<At<T>>, default: T) -> T {
    at.map_or(default, |at| at.value)
}

fn route(
    raw: RawRoute,
    index: usize,
    (action, subset, mirror): (Action, u16, Option<Arc<[Mirror]>>),
    matching: Arc<RouteMatch>,
    from: &From<'_>,
) -> CompiledRoute {
    let mut extras = matching::shown(&raw, &matching, from);
    extras.extend(action::extras(&raw, from));
    let changes = action::changes(&raw);
    let fault = raw.action.fault.as_ref().map(|at| Box::new(at.value.clone()));
    let marks = [
        from.mark_of(raw.hosts.as_ref()),
        from.mark_of(raw.path.as_ref().or(raw.path_prefix.as_ref()))
            .or_else(|| from.mark_of(raw.path_template.as_ref()))
            .or_else(|| from.mark_of(raw.path_regex.as_ref())),
        from.mark_of(raw.service.as_ref()),
        from.mark_of(raw.timeout.as_ref()),
        from.mark_of(raw.upgrades.as_ref()),
        from.mark_of(raw.tunnel_idle.as_ref()),
        from.mark_of(raw.priority.as_ref()),
    ];
    let timeout: Option<Duration> = raw.timeout.and_then(|at| at.value);
    let name = raw.name.map_or_else(|| numbered_name("route", index), |at| at.value);
    let retry = raw.retry.map(|raw| retry::retry(*raw, from));
    CompiledRoute {
        route: Route {
            name,
            action,
            subset,
            changes,
            fault,
            mirror,
            timeout,
            upgrades: value_or(raw.upgrades, defaults::UPGRADES),
            tunnel_idle: value_or(raw.tunnel_idle, defaults::TUNNEL_IDLE.default),
            retry: retry.as_ref().map(|retry| Arc::clone(&retry.policy)),
            caller_may: raw.caller_may.map(|at| Box::new(at.value)),
            deadline_field: value_or(raw.deadline_header, defaults::DEADLINE_HEADER),
            priority: value_or(raw.priority, Priority::Default),
            quotas: None,
            asks: None,
        },
        matching,
        marks,
        retry,
        extras: extras.into(),
    }
}
