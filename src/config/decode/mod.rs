//! The parsed TOML to [`Raw`]: which keys there are and of what kind. Every mistake is reported and the walk goes on, so
//! that one run shows them all. Several files decode into the same `Raw`; what may stand only once and stands twice is
//! an error that shows both places. Refuses what `schema` does not know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

mod action;
mod balance;
mod breaker;
mod caller_may;
mod canary;
mod caps;
mod changes;
mod fault;
mod global_limit;
mod matching;
mod mirror;
mod overload;
mod policy;
mod probe;
mod rate_limit;
mod retry;
mod service;
mod tls;
mod tracing;
mod workload;

pub(super) use caps::{PRIORITY_WORDS, RawAdmission, RawCaps, RawConcurrency};
pub(super) use global_limit::{ON_FAILURE_WORDS, RawGlobalLimit, text as entry_text};
pub(super) use policy::ACTION_WORDS;
pub(super) use probe::{PROBE_WORDS, START_WORDS};
pub(super) use rate_limit::{RawRateLimit, text as by_text};
pub(super) use service::PROTOCOL_WORDS;
pub(super) use tls::{LISTENER_TLS_WORDS, SERVICE_TLS_WORDS, SOURCE_WORDS, VERSION_WORDS};
pub(super) use tracing::PROTOCOL_WORDS as TRACING_PROTOCOL_WORDS;

use super::raw::{At, Destination, Hosts, Raw, RawForwarding, RawLimits, RawRoute, RawTimeouts, Shards, Via};
use super::reader::{Item, Opened, Reader};
use super::report::{Place, Problem};
use super::values::{self, Complaint};
use super::{defaults, route_text, schema};
use crate::authorize::Verdict;
use crate::route::Upgrades;
use crate::shard::RuntimeChoice;
use crate::snapshot::{AccessLogFormat, ForwardedFields, Paths};
use crate::upstream::spec::Balance;

/// Adds one file, or a part of it, to `raw`.
pub(super) fn file<'t>(reader: &mut Reader<'_>, table: &'t DeTable<'t>, raw: &mut Raw) {
    let top = reader.open(&schema::TOP, table);
    if let Some(item) = top.value("shards") {
        let value = shards(reader, item);
        once(reader, "shards", &mut raw.shards, value);
    }
    if let Some(item) = top.value("runtime") {
        let value = reader.choice("runtime", item, &RUNTIME_WORDS);
        once(reader, "runtime", &mut raw.runtime, value);
    }
    if let Some(item) = top.value("stall_threshold") {
        let value = reader.duration(&defaults::STALL_THRESHOLD, item);
        once(reader, "stall_threshold", &mut raw.stall_threshold, value);
    }
    if let Some(item) = top.value("authorization_default") {
        let value = reader.choice("authorization_default", item, &VERDICT_WORDS);
        once(reader, "authorization_default", &mut raw.authorization_default, value);
    }
    if let Some(admin) = top.value("admin").and_then(|item| reader.table(&schema::ADMIN, item))
        && let Some(item) = admin.value("address")
    {
        let value = reader.parsed("admin.address", item, defaults::ADMIN_ADDRESS, |text| match text {
            "off" => Ok(None),
            _ => values::listen_address(text, defaults::ADMIN_ADDRESS).map(Some),
        });
        once(reader, "admin.address", &mut raw.admin_address, value);
    }
    if let Some(item) = top.value("access_log") {
        raw.access_log = true;
        if let Some(table) = reader.table(&schema::ACCESS_LOG, item) {
            access_log(reader, &table, raw);
        }
    }
    if let Some(table) = top.value("limits").and_then(|item| reader.table(&schema::LIMITS, item)) {
        limits(reader, &table, &mut raw.limits);
    }
    if let Some(table) = top.value("timeouts").and_then(|item| reader.table(&schema::TIMEOUTS, item)) {
        timeouts(reader, &table, &mut raw.timeouts);
    }
    if let Some(table) = top.value("http2").and_then(|item| reader.table(&schema::HTTP2, item)) {
        tls::http2(reader, &table, &mut raw.http2);
    }
    if let Some(item) = top.value("zone") {
        let value = balance::zone(reader, item);
        once(reader, "zone.name", &mut raw.zone, value);
    }
    if let Some(item) = top.value("identity") {
        tls::identity(reader, item, &mut raw.identity);
    }
    if let Some(table) = top.value("forwarding").and_then(|item| reader.table(&schema::FORWARDING, item)) {
        forwarding(reader, &table, &mut raw.forwarding);
    }
    if let Some(table) = top.value("overload").and_then(|item| reader.table(&schema::OVERLOAD, item)) {
        overload::overload(reader, &table, &mut raw.memory_max);
    }
    if let Some(item) = top.value("tracing")
        && let Some(table) = reader.table(&schema::TRACING, item)
    {
        let place = reader.place(item.span());
        tracing::tracing(reader, &table, place, &mut raw.tracing);
    }
    if let Some(item) = top.value("listener") {
        for (table, place) in
            reader.tables(&schema::LISTENER, item, defaults::LISTENERS_MAX - raw.listeners.len())
        {
            raw.listeners.push(tls::listener(reader, &table, place));
        }
    }
    if let Some(item) = top.value("service") {
        for (table, place) in
            reader.tables(&schema::SERVICE, item, defaults::SERVICES_MAX - raw.services.len())
        {
            raw.services.push(service::service(reader, &table, place));
        }
    }
    if let Some(item) = top.value("route") {
        for (table, place) in reader.tables(&schema::ROUTE, item, defaults::ROUTES_MAX - raw.routes.len()) {
            raw.routes.push(route(reader, &table, place));
        }
    }
    if let Some(item) = top.value("canary") {
        for (table, place) in
            reader.tables(&schema::CANARY, item, defaults::CANARIES_MAX - raw.canaries.len())
        {
            raw.canaries.push(canary::canary(reader, &table, place));
        }
    }
    if let Some(item) = top.value("workload") {
        let left = defaults::WORKLOADS_MAX - raw.workloads.len();
        for (table, place) in reader.tables(&schema::WORKLOAD, item, left) {
            raw.workloads.push(workload::workload(reader, &table, place));
        }
    }
    if let Some(item) = top.value("authorization") {
        let left = defaults::AUTHORIZATIONS_MAX - raw.authorizations.len();
        for (table, place) in reader.tables(&schema::AUTHORIZATION, item, left) {
            raw.authorizations.push(policy::authorization(reader, &table, place));
        }
    }
    if let Some(item) = top.value("rate_limit") {
        let left = defaults::RATE_LIMITS_MAX - raw.rate_limits.len();
        for (table, place) in reader.tables(&schema::RATE_LIMIT, item, left) {
            raw.rate_limits.push(rate_limit::rate_limit(reader, &table, place));
        }
    }
}

/// Keeps the first value; a second one, from another file, is an error.
fn once<T>(reader: &mut Reader<'_>, key: &str, slot: &mut Option<At<T>>, value: Option<At<T>>) {
    match (&slot, value) {
        (_, None) => {}
        (None, Some(value)) => *slot = Some(value),
        (Some(first), Some(second)) => {
            let (first, second) = (first.place, second.place);
            reader.problems.error(|| {
                Problem::at(second, format!("{key} is set twice"))
                    .label("set again here")
                    .other(first, "first set here")
                    .help("take one of the two out")
            });
        }
    }
}

fn shards(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Shards>> {
    const HELP: &str = "write \"auto\", a number of shards such as 2, or a list of CPUs such as [0, 2]";
    let key = defaults::Key { name: "shards", default: 1, min: 1, max: defaults::SHARDS_MAX };
    match item.get_ref() {
        DeValue::String(text) if text == "auto" => {
            Some(At { value: Shards::Auto, place: reader.place(item.span()), variable: 0 })
        }
        DeValue::String(_) => {
            let value = reader.parsed("shards", item, "auto", |text| match (text, text.parse::<u16>()) {
                ("auto", _) => Ok(Shards::Auto),
                (_, Ok(count)) if (key.min..=key.max).contains(&count) => Ok(Shards::Count(count)),
                _ => Err(Complaint {
                    message: format!("`{text}` is not a number of shards"),
                    help: HELP.into(),
                }),
            })?;
            if value.variable == 0
                && let Shards::Count(count) = value.value
            {
                return reader.wrong_type(
                    "shards",
                    item,
                    "a number",
                    format!("write {count} without quotes"),
                );
            }
            Some(value)
        }
        DeValue::Array(_) => cpus(reader, item),
        DeValue::Integer(_) => {
            let count = reader.count(&key, item)?;
            Some(count.with(Shards::Count(count.value)))
        }
        _ => reader.wrong_type("shards", item, "\"auto\", a number or a list", HELP.into()),
    }
}

fn cpus(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Shards>> {
    let entries = reader.list("shards", item, usize::from(defaults::SHARDS_MAX))?;
    let place = reader.place(item.span());
    if entries.is_empty() {
        reader.problems.error(|| {
            Problem::at(place, "shards: an empty list of CPUs")
                .help("write \"auto\" or at least one CPU: [0]")
        });
        return None;
    }
    let mut cpus = Vec::with_capacity(entries.len());
    for entry in entries {
        let entry_place = reader.place(entry.span());
        match Reader::number(entry).and_then(|n| usize::try_from(n).ok()).filter(|&cpu| cpu <= CPU_MAX) {
            Some(cpu) if cpus.contains(&cpu) => reader.problems.error(|| {
                Problem::at(entry_place, format!("shards: CPU {cpu} is listed twice"))
                    .help("give each shard a CPU of its own")
            }),
            Some(cpu) => cpus.push(cpu),
            None => reader.problems.error(|| {
                Problem::at(entry_place, "shards: not the number of a CPU")
                    .help(format!("write whole numbers from 0 to {CPU_MAX}, as in /proc/cpuinfo"))
            }),
        }
    }
    (cpus.len() == entries.len()).then_some(At { value: Shards::Cpus(cpus), place, variable: 0 })
}

/// The highest CPU number that Linux can be built for (`CONFIG_NR_CPUS`), less one.
const CPU_MAX: usize = 8191;

fn access_log(reader: &mut Reader<'_>, table: &Opened<'_>, raw: &mut Raw) {
    if let Some(item) = table.value("path") {
        let value = reader.parsed("access_log.path", item, defaults::ACCESS_LOG_PATH, destination);
        once(reader, "access_log.path", &mut raw.access_log_path, value);
    }
    if let Some(item) = table.value("format") {
        let words = [("json", AccessLogFormat::Json), ("text", AccessLogFormat::Text)];
        let value = reader.choice("access_log.format", item, &words);
        once(reader, "access_log.format", &mut raw.access_log_format, value);
    }
}

/// A word without a slash is a misspelt stream more often than a file.
pub(super) fn destination(text: &str) -> Result<Destination, Complaint> {
    match text {
        "stdout" => Ok(Destination::Stdout),
        "stderr" => Ok(Destination::Stderr),
        _ if text.contains('\0') => Err(Complaint {
            message: "a path cannot contain a NUL character".into(),
            help: "take it out".into(),
        }),
        _ if text.contains('/') && !text.ends_with('/') => Ok(Destination::File(PathBuf::from(text))),
        _ => Err(Complaint {
            message: format!("`{text}` is neither a stream nor the path of a file"),
            help: "write \"stdout\", \"stderr\", or a path with a `/`, such as \"./access.log\"".into(),
        }),
    }
}

fn limits(reader: &mut Reader<'_>, table: &Opened<'_>, raw: &mut RawLimits) {
    if let Some(item) = table.value("head_bytes_max") {
        let value = reader.size(&defaults::HEAD_BYTES_MAX, item);
        once(reader, defaults::HEAD_BYTES_MAX.name, &mut raw.head_bytes_max, value);
    }
    if let Some(item) = table.value("target_bytes_max") {
        let value = reader.size(&defaults::TARGET_BYTES_MAX, item);
        once(reader, defaults::TARGET_BYTES_MAX.name, &mut raw.target_bytes_max, value);
    }
    if let Some(item) = table.value("paths") {
        let value = reader.choice("limits.paths", item, &PATHS_WORDS);
        once(reader, "limits.paths", &mut raw.paths, value);
    }
    if let Some(item) = table.value("fields_max") {
        let value = reader.count(&defaults::FIELDS_MAX, item);
        once(reader, defaults::FIELDS_MAX.name, &mut raw.fields_max, value);
    }
    if let Some(item) = table.value("body_bytes_max") {
        let key = &defaults::BODY_BYTES_MAX;
        let value = match word(reader, key.name, item, "unlimited") {
            Some(unlimited) => Some(unlimited.with(0)),
            None => reader.size(key, item),
        };
        once(reader, key.name, &mut raw.body_bytes_max, value);
    }
    if let Some(item) = table.value("connections_max") {
        let value = reader.count(&defaults::CONNECTIONS_MAX, item);
        once(reader, defaults::CONNECTIONS_MAX.name, &mut raw.connections_max, value);
    }
    if let Some(item) = table.value("interim_responses_max") {
        let value = reader.count(&defaults::INTERIM_RESPONSES_MAX, item);
        once(reader, defaults::INTERIM_RESPONSES_MAX.name, &mut raw.interim_responses_max, value);
    }
    if let Some(item) = table.value("mirrored_max") {
        let value = reader.count(&defaults::MIRRORED_MAX, item);
        once(reader, defaults::MIRRORED_MAX.name, &mut raw.mirrored_max, value);
    }
    if let Some(item) = table.value("mirrored_body_bytes_max") {
        let value = reader.size(&defaults::MIRRORED_BODY_BYTES_MAX, item);
        once(reader, defaults::MIRRORED_BODY_BYTES_MAX.name, &mut raw.mirrored_body_bytes_max, value);
    }
    if let Some(item) = table.value("faults_max") {
        let value = reader.count(&defaults::FAULTS_MAX, item);
        once(reader, defaults::FAULTS_MAX.name, &mut raw.faults_max, value);
    }
    if let Some(item) = table.value("handshakes_max") {
        let value = reader.count(&defaults::HANDSHAKES_MAX, item);
        once(reader, defaults::HANDSHAKES_MAX.name, &mut raw.handshakes_max, value);
    }
}

/// A word that stands in place of a quantity, if the value is this word.
fn word(reader: &mut Reader<'_>, key: &str, item: &Item<'_>, word: &str) -> Option<At<()>> {
    match item.get_ref() {
        DeValue::String(text) if text.contains("${") => {
            // A reference that cannot be replaced is reported by whoever reads the quantity.
            let expanded = super::environment::expand(text, reader.environment).ok()?;
            if expanded.text != word {
                return None;
            }
            Some(reader.string(key, item, word)?.with(()))
        }
        DeValue::String(text) if text == word => {
            Some(At { value: (), place: reader.place(item.span()), variable: 0 })
        }
        _ => None,
    }
}

fn timeouts(reader: &mut Reader<'_>, table: &Opened<'_>, raw: &mut RawTimeouts) {
    for (name, key, slot) in [
        ("head", &defaults::HEAD, &mut raw.head),
        ("idle", &defaults::IDLE, &mut raw.idle),
        ("body_stall", &defaults::BODY_STALL, &mut raw.body_stall),
        ("drain", &defaults::DRAIN, &mut raw.drain),
        ("handshake", &defaults::HANDSHAKE, &mut raw.handshake),
    ] {
        if let Some(item) = table.value(name) {
            let value = reader.duration(key, item);
            once(reader, key.name, slot, value);
        }
    }
    if let Some(item) = table.value("stream_idle") {
        let key = &defaults::STREAM_IDLE;
        let value = match word(reader, key.name, item, "off") {
            Some(off) => Some(off.with(None)),
            None => reader.duration(key, item).map(|at| {
                let idle = Some(at.value);
                at.with(idle)
            }),
        };
        once(reader, key.name, &mut raw.stream_idle, value);
    }
}

fn forwarding(reader: &mut Reader<'_>, table: &Opened<'_>, raw: &mut RawForwarding) {
    if let Some(item) = table.value("via") {
        let value = reader.parsed("forwarding.via", item, defaults::VIA, |text| match text {
            "auto" => Ok(Via::Auto),
            "off" => Ok(Via::Off),
            _ => values::token(text).map(|()| Via::Pseudonym(text.into())),
        });
        once(reader, "forwarding.via", &mut raw.via, value);
    }
    if let Some(item) = table.value("forwarded") {
        let value = reader.choice("forwarding.forwarded", item, &FORWARDED_WORDS);
        once(reader, "forwarding.forwarded", &mut raw.forwarded, value);
    }
    if let Some(item) = table.value("failure_header") {
        let value = reader.flag("forwarding.failure_header", item);
        once(reader, "forwarding.failure_header", &mut raw.failure_header, value);
    }
}

/// How `runtime` is written.
pub(super) const RUNTIME_WORDS: [(&str, RuntimeChoice); 3] =
    [("auto", RuntimeChoice::Auto), ("io_uring", RuntimeChoice::IoUring), ("epoll", RuntimeChoice::Epoll)];

/// How `forwarding.forwarded` is written.
pub(super) const FORWARDED_WORDS: [(&str, ForwardedFields); 3] = [
    ("keep", ForwardedFields::Keep),
    ("append", ForwardedFields::Append),
    ("replace", ForwardedFields::Replace),
];

/// How `limits.paths` is written.
pub(super) const PATHS_WORDS: [(&str, Paths); 3] =
    [("any", Paths::Any), ("no_dot_segments", Paths::NoDotSegments), ("one_meaning", Paths::OneMeaning)];

/// How `authorization_default` is written.
pub(super) const VERDICT_WORDS: [(&str, Verdict); 2] = [("allow", Verdict::Allow), ("deny", Verdict::Deny)];

/// How `service.balance` is written.
pub(super) const BALANCE_WORDS: [(&str, Balance); 6] = [
    ("peak-ewma", Balance::PeakEwma),
    ("least-request", Balance::LeastRequest),
    ("round-robin", Balance::RoundRobin),
    ("random", Balance::Random),
    ("ring-hash", Balance::RingHash),
    ("maglev", Balance::Maglev),
];

/// A name. One with wrong characters is kept, so that what refers to it is not reported as well.
fn name(reader: &mut Reader<'_>, key: &str, item: &Item<'_>, example: &str) -> Option<At<Arc<str>>> {
    let text = reader.string(key, item, example)?;
    if let Err(complaint) = values::name(&text.value) {
        reader.complain(key, &text, complaint);
    }
    let name = text.value.as_ref().into();
    Some(text.with(name))
}

fn missing(reader: &mut Reader<'_>, place: Place, key: &str, of: &str, example: &str) {
    reader
        .problems
        .error(|| Problem::at(place, format!("{of} needs `{key}`")).help(format!("add `{example}`")));
}

fn route(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawRoute {
    let action = action::action(reader, table, place);
    let errors_before = reader.problems.errors();
    let path_of = |reader: &mut Reader<'_>, key: &str, item| {
        reader.parsed(key, item, "/api", |text| values::path(text).map(Box::<str>::from))
    };
    let paths = PATH_KEYS.iter().filter_map(|key| Some((*key, reader.place(table.value(key)?.span()))));
    if let [(first, path), (second, other), ..] = paths.collect::<Vec<_>>()[..] {
        reader.problems.error(|| {
            Problem::at(other, format!("a route has either `{first}` or `{second}`"))
                .label("the second")
                .other(path, "the first")
                .help("keep `path` for this path alone, `path_prefix` for it and all below; write two routes for both")
        });
    }
    let hosts = table.value("hosts").and_then(|item| hosts(reader, item));
    let path = table.value("path").and_then(|item| path_of(reader, "route.path", item));
    let path_prefix = table.value("path_prefix").and_then(|item| path_of(reader, "route.path_prefix", item));
    let path_template = table
        .value("path_template")
        .and_then(|item| reader.parsed("route.path_template", item, "/users/{id}", route_text::template));
    action::check_variables(reader, &action, table, path_template.as_ref());
    let path_regex = table
        .value("path_regex")
        .and_then(|item| reader.parsed("route.path_regex", item, "/v[0-9]+/.*", route_text::path_regex));
    let matching = table.value("match").and_then(|item| matching::matching(reader, item));
    let match_is_right = reader.problems.errors() == errors_before;
    RawRoute {
        place,
        name: table.value("name").and_then(|item| name(reader, "route.name", item, "app")),
        hosts,
        path,
        path_prefix,
        path_template,
        path_regex,
        matching,
        service: table.value("service").and_then(|item| reader.string("route.service", item, "app")).map(
            |text| {
                let name = text.value.as_ref().into();
                text.with(name)
            },
        ),
        action,
        subset: table.value("subset").and_then(|item| action::subset(reader, "route.subset", item)),
        timeout: table.value("timeout").and_then(|item| timeout(reader, item)),
        upgrades: table.value("upgrades").and_then(|item| upgrades(reader, item)),
        tunnel_idle: table.value("tunnel_idle").and_then(|item| {
            let key = &defaults::TUNNEL_IDLE;
            match word(reader, key.name, item, "off") {
                Some(off) => Some(off.with(Duration::MAX)),
                None => reader.duration(key, item),
            }
        }),
        deadline_header: table
            .value("deadline_header")
            .and_then(|item| reader.flag("route.deadline_header", item)),
        retry: table.value("retry").and_then(|item| retry::retry(reader, &schema::ROUTE_RETRY, item)),
        caller_may: table.value("caller_may").and_then(|item| caller_may::caller_may(reader, item)),
        priority: table
            .value("priority")
            .and_then(|item| reader.choice("route.priority", item, &PRIORITY_WORDS)),
        match_is_right,
    }
}

/// Of which a route has one.
const PATH_KEYS: [&str; 4] = ["path", "path_prefix", "path_template", "path_regex"];

fn hosts(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Hosts>> {
    if !policy::not_empty(reader, "route.hosts", item) {
        return None;
    }
    let entries = reader.list("route.hosts", item, defaults::HOSTS_MAX)?;
    let mut variable = 0;
    let mut hosts = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(host) = reader.parsed("route.hosts", entry, "shop.example", values::host) {
            variable = if variable > 0 { variable } else { host.variable };
            hosts.push((host.value, host.place));
        }
    }
    Some(At { value: hosts, place: reader.place(item.span()), variable })
}

fn timeout(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Option<Duration>>> {
    let key = &defaults::ROUTE_TIMEOUT;
    match word(reader, key.name, item, "off") {
        Some(off) => Some(off.with(None)),
        None => reader.duration(key, item).map(|at| at.with(Some(at.value))),
    }
}

fn upgrades(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Upgrades>> {
    const WORDS: [(&str, bool); 2] = [("websocket", true), ("connect", false)];
    let entries = reader.list("route.upgrades", item, WORDS.len())?;
    let mut variable = 0;
    let mut upgrades = Upgrades { websocket: false, connect: false };
    for entry in entries {
        let Some(word) = reader.choice("route.upgrades", entry, &WORDS) else { continue };
        variable = if variable > 0 { variable } else { word.variable };
        if word.value {
            upgrades.websocket = true;
        } else {
            upgrades.connect = true;
        }
    }
    Some(At { value: upgrades, place: reader.place(item.span()), variable })
}
