//! What is in force, key by key, and where each value came from: for the admin's `/config`. Made on demand and bounded.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::compiled::{Compiled, CompiledRoute, CompiledService, Mark, Origins};
use super::decode::{BALANCE_WORDS, FORWARDED_WORDS, RUNTIME_WORDS};
use super::raw::{Destination, Shards};
use super::values::{duration_text, host_text, quoted, size_text};
use crate::route::PathMatch;
use crate::snapshot::AccessLogFormat;

/// Listeners, services and routes that are told of; of the rest their number.
pub(super) const EFFECTIVE_ENTRIES_MAX: usize = 1000;
/// Endpoints or hosts of one entry that are told of.
const LIST_ENTRIES_MAX: usize = 50;

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `limits.fields_max`, `service.app.pool.idle_max`.
    pub key: String,
    /// The value as it would be written in a file.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// No file says it.
    Default,
    /// A file says it, in this line (from 1).
    File {
        /// The file, as it was named.
        file: Arc<str>,
        /// The line.
        line: u32,
    },
    /// A file says it with the help of an environment variable (the first one, if several).
    Environment {
        /// The variable.
        name: Arc<str>,
        /// The file, as it was named.
        file: Arc<str>,
        /// The line.
        line: u32,
    },
}

/// The keys of a service, in the order of its marks.
const SERVICE_KEYS: [&str; 9] = [
    "balance",
    "endpoints",
    "connect_attempts_max",
    "pool.idle_max",
    "pool.idle_timeout",
    "pool.connections_max",
    "timeouts.connect",
    "timeouts.response",
    "timeouts.body_stall",
];

impl Compiled {
    /// Every key in force: first those that exist once, then listeners, services and routes, of each kind at most
    /// a thousand; a last entry with a comment as value tells how many are left out.
    pub fn effective(&self) -> Vec<Setting> {
        let mut settings = self.scalars();
        for compiled in self.listeners.iter().take(EFFECTIVE_ENTRIES_MAX) {
            settings.push(Setting {
                key: format!("listener.{}.address", compiled.listener.name),
                value: quoted(&compiled.listener.address.to_string()),
                origin: self.origins.origin(compiled.marks[0]),
            });
        }
        left_out(&mut settings, "listener", self.listeners.len());
        for compiled in self.services.iter().take(EFFECTIVE_ENTRIES_MAX) {
            let values = service_values(compiled);
            for ((key, value), mark) in SERVICE_KEYS.into_iter().zip(values).zip(compiled.marks) {
                let key = format!("service.{}.{key}", compiled.service.name);
                settings.push(Setting { key, value, origin: self.origins.origin(mark) });
            }
        }
        left_out(&mut settings, "service", self.services.len());
        for compiled in self.routes.iter().take(EFFECTIVE_ENTRIES_MAX) {
            for ((key, value), mark) in self.route_values(compiled).into_iter().zip(compiled.marks) {
                let key = format!("route.{}.{key}", compiled.route.name);
                settings.push(Setting { key, value, origin: self.origins.origin(mark) });
            }
        }
        left_out(&mut settings, "route", self.routes.len());
        settings
    }

    fn scalars(&self) -> Vec<Setting> {
        let Self { settings, limits, timeouts, forwarding, .. } = self;
        let time = |duration: Duration| quoted(&duration_text(duration));
        let bytes = |size: u64| quoted(&size_text(size));
        let word = |text: &str| quoted(text);
        let mut values = vec![
            ("shards", shards_text(&settings.shards)),
            ("runtime", word(written(&RUNTIME_WORDS, &settings.runtime))),
            ("stall_threshold", time(settings.stall_threshold)),
            (
                "admin.address",
                settings.admin.map_or_else(|| word("off"), |address| word(&address.to_string())),
            ),
        ];
        if let Some(log) = &settings.access_log {
            let path = match &log.path {
                Destination::Stdout => word("stdout"),
                Destination::Stderr => word("stderr"),
                Destination::File(path) => word(&path.display().to_string()),
            };
            let format = match log.format {
                AccessLogFormat::Json => "json",
                AccessLogFormat::Text => "text",
            };
            values.extend([("access_log.path", path), ("access_log.format", word(format))]);
        }
        let body = if limits.body_bytes_max == 0 { word("unlimited") } else { bytes(limits.body_bytes_max) };
        values.extend([
            ("limits.head_bytes_max", bytes(limits.head_bytes_max.into())),
            ("limits.target_bytes_max", bytes(limits.target_bytes_max.into())),
            ("limits.fields_max", limits.fields_max.to_string()),
            ("limits.body_bytes_max", body),
            ("limits.connections_max", limits.connections_max.to_string()),
            ("limits.interim_responses_max", limits.interim_responses_max.to_string()),
            ("timeouts.head", time(timeouts.head)),
            ("timeouts.idle", time(timeouts.idle)),
            ("timeouts.body_stall", time(timeouts.body_stall)),
            ("timeouts.drain", time(timeouts.drain)),
            ("forwarding.via", word(forwarding.via.as_deref().unwrap_or("off"))),
            ("forwarding.forwarded", word(written(&FORWARDED_WORDS, &forwarding.forwarded))),
            ("forwarding.failure_header", forwarding.failure_header.to_string()),
        ]);
        let origin =
            |key| self.origins.marks.get(key).map_or(Origin::Default, |&mark| self.origins.origin(mark));
        values
            .into_iter()
            .map(|(key, value)| Setting { key: key.into(), value, origin: origin(key) })
            .collect()
    }

    fn route_values(&self, compiled: &CompiledRoute) -> [(&'static str, String); 4] {
        let path = match &compiled.path {
            PathMatch::Exact(path) => ("path", quoted(path)),
            PathMatch::Prefix(prefix) => ("path_prefix", quoted(prefix)),
        };
        let service = self.services.get(compiled.route.service as usize).map_or("", |to| &to.service.name);
        let timeout = compiled.route.timeout.map_or_else(|| "off".into(), duration_text);
        [
            ("hosts", list(compiled.hosts.iter().map(|host| quoted(&host_text(host))), compiled.hosts.len())),
            path,
            ("service", quoted(service)),
            ("timeout", quoted(&timeout)),
        ]
    }
}

fn left_out(settings: &mut Vec<Setting>, kind: &str, count: usize) {
    if count > EFFECTIVE_ENTRIES_MAX {
        let value = format!("# {} more are not shown", count - EFFECTIVE_ENTRIES_MAX);
        settings.push(Setting { key: kind.into(), value, origin: Origin::Default });
    }
}

fn service_values(compiled: &CompiledService) -> [String; 9] {
    let service = &compiled.service;
    let time = |duration: Duration| quoted(&duration_text(duration));
    let endpoints = match &compiled.declared {
        Some(declared) => list(
            declared.iter().map(|one| endpoint(&one.target.to_string(), one.weight, one.zone.as_deref())),
            declared.len(),
        ),
        None => list(
            service
                .endpoints
                .iter()
                .map(|one| endpoint(&one.address.to_string(), one.weight, one.zone.as_deref())),
            service.endpoints.len(),
        ),
    };
    [
        quoted(written(&BALANCE_WORDS, &service.balance)),
        endpoints,
        service.connect_attempts_max.to_string(),
        service.pool.idle_max.to_string(),
        time(service.pool.idle_timeout),
        service.pool.connections_max.to_string(),
        time(service.timeouts.connect),
        time(service.timeouts.response),
        time(service.timeouts.body_stall),
    ]
}

fn endpoint(address: &str, weight: u16, zone: Option<&str>) -> String {
    if weight == super::defaults::WEIGHT.default && zone.is_none() {
        return quoted(address);
    }
    let mut text = format!("{{ address = {}, weight = {weight}", quoted(address));
    if let Some(zone) = zone {
        let _ = write!(text, ", zone = {}", quoted(zone));
    }
    text + " }"
}

fn list(entries: impl Iterator<Item = String>, count: usize) -> String {
    let shown: Vec<String> = entries.take(LIST_ENTRIES_MAX).collect();
    let more = match count.saturating_sub(LIST_ENTRIES_MAX) {
        0 => String::new(),
        more => format!(" # and {more} more"),
    };
    format!("[{}]{more}", shown.join(", "))
}

fn shards_text(shards: &Shards) -> String {
    match shards {
        Shards::Auto => quoted("auto"),
        Shards::Count(count) => count.to_string(),
        Shards::Cpus(cpus) => list(cpus.iter().map(usize::to_string), cpus.len()),
    }
}

fn written<'w, T: PartialEq>(words: &[(&'w str, T)], value: &T) -> &'w str {
    words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word)
}

impl Origins {
    fn origin(&self, mark: Mark) -> Origin {
        if mark == Mark::DEFAULT {
            return Origin::Default;
        }
        let file = self.files.get(usize::from(mark.file)).cloned().unwrap_or_else(|| "".into());
        let line = mark.line;
        match usize::from(mark.variable).checked_sub(1).and_then(|index| self.variables.get(index)) {
            Some(name) => Origin::Environment { name: Arc::clone(name), file, line },
            None => Origin::File { file, line },
        }
    }
}
