//! What is in force, key by key, and where each value came from: for the admin's `/config`. Made on demand and bounded.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::canary::CompiledCanary;
use super::compiled::{
    Compiled, CompiledListener, CompiledRoute, CompiledService, Extra, Identity, IdentitySource, Mark,
    Origins, Settings,
};
use super::decode::{
    ACTION_WORDS, BALANCE_WORDS, FORWARDED_WORDS, LISTENER_TLS_WORDS, PATHS_WORDS, PRIORITY_WORDS,
    PROTOCOL_WORDS, RUNTIME_WORDS, SERVICE_TLS_WORDS, SOURCE_WORDS, VERDICT_WORDS, VERSION_WORDS,
};
use super::effective_choice as choice;
use super::policy_text::match_text;
use super::raw::{Destination, ListenerTlsWord, MemoryMax, ServiceTlsWord, Shards, SourceWord};
use super::route_text::path_text;
use super::values::{duration_text, host_text, quoted, size_text};
use crate::authorize::Rule;
use crate::route::{Action, Upgrades};
use crate::snapshot::{AccessLogFormat, ListenerTls};
use crate::upstream::spec::Tls;

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
const SERVICE_KEYS: [&str; 20] = [
    "balance",
    "endpoints",
    "connect_attempts_max",
    "protocol",
    "tls",
    "identities",
    "server_name",
    "ca",
    "pool.idle_max",
    "pool.idle_timeout",
    "pool.connections_max",
    "timeouts.connect",
    "timeouts.response",
    "timeouts.body_stall",
    "http2.connections_max",
    "http2.streams_max",
    "http2.stream_window",
    "http2.connection_window",
    "http2.ping_interval",
    "http2.ping_timeout",
];

/// The keys of a service's breaker, in the order of its marks.
pub(super) const BREAKER_KEYS: [&str; 18] = [
    "breaker.enabled",
    "breaker.consecutive_unreachable",
    "breaker.consecutive_failures",
    "breaker.consecutive_unanswered",
    "breaker.failure_percent",
    "breaker.window",
    "breaker.requests_min",
    "breaker.slow_factor",
    "breaker.slow_min",
    "breaker.pending_min",
    "breaker.counts_too_many",
    "breaker.ejection_base",
    "breaker.ejection_max",
    "breaker.ejection_multiplier",
    "breaker.ejection_jitter_percent",
    "breaker.ejected_percent_max",
    "breaker.panic_percent",
    "breaker.trial_requests",
];

/// The keys of a service's probes, in the order of their marks.
pub(super) const PROBE_KEYS: [&str; 13] = [
    "probe.kind",
    "probe.path",
    "probe.host",
    "probe.statuses",
    "probe.grpc_service",
    "probe.port",
    "probe.interval",
    "probe.interval_unhealthy",
    "probe.timeout",
    "probe.healthy",
    "probe.unhealthy",
    "probe.jitter_percent",
    "probe.start",
];

/// The keys of a listener, in the order of its marks.
const LISTENER_KEYS: [&str; 6] = ["address", "tls", "certificate", "key", "tls_version_min", "grpc_web"];

/// The keys of a rule, in the order of its marks.
const RULE_KEYS: [&str; 8] =
    ["action", "listeners", "from", "sources", "ports", "methods", "paths", "headers"];

impl Settings {
    /// The keys that take effect at a start only, with their values as they would be written in a file.
    pub fn at_start(&self) -> [(&'static str, String); 4] {
        let admin = self.admin.map_or_else(|| "off".to_owned(), |address| address.to_string());
        [
            ("shards", shards_text(&self.shards)),
            ("runtime", quoted(written(&RUNTIME_WORDS, &self.runtime))),
            ("stall_threshold", quoted(&duration_text(self.stall_threshold))),
            ("admin.address", quoted(&admin)),
        ]
    }
}

impl Compiled {
    /// Every key in force: first those that exist once, then listeners, services and routes, of each kind at most
    /// a thousand; a last entry with a comment as value tells how many are left out.
    pub fn effective(&self) -> Vec<Setting> {
        let mut settings = self.scalars();
        for compiled in self.listeners.iter().take(EFFECTIVE_ENTRIES_MAX) {
            let values = listener_values(compiled);
            let name = &compiled.listener.name;
            self.entry(
                &mut settings,
                "listener",
                name,
                LISTENER_KEYS.into_iter().zip(values),
                &compiled.marks,
            );
        }
        left_out(&mut settings, "listener", self.listeners.len());
        for compiled in self.services.iter().take(EFFECTIVE_ENTRIES_MAX) {
            let values = service_values(compiled);
            let name = &compiled.service.name;
            self.entry(&mut settings, "service", name, SERVICE_KEYS.into_iter().zip(values), &compiled.marks);
            let values = choice::KEYS.into_iter().zip(choice::values(&compiled.service));
            self.entry(&mut settings, "service", name, values, &compiled.choice_marks);
            let values = BREAKER_KEYS.into_iter().zip(super::compile::breaker_values(compiled));
            let marks = compiled.breaker_marks.as_deref().unwrap_or(&[Mark::DEFAULT; BREAKER_KEYS.len()]);
            self.entry(&mut settings, "service", name, values, marks);
            self.retry(&mut settings, ("service", name), &compiled.service.retry, compiled.retry.as_ref());
            if let Some(marks) = compiled.probe_marks.as_deref() {
                let values = PROBE_KEYS.into_iter().zip(super::compile::probe_values(compiled));
                self.entry(&mut settings, "service", name, values, marks);
            }
            for (key, value, mark) in compiled.caps.shown() {
                self.entry(&mut settings, "service", name, [(key, Some(value))], &[mark]);
            }
        }
        left_out(&mut settings, "service", self.services.len());
        for compiled in self.routes.iter().take(EFFECTIVE_ENTRIES_MAX) {
            let name = &compiled.route.name;
            self.entry(&mut settings, "route", name, self.route_values(compiled), &compiled.marks);
            self.extras(&mut settings, &format!("route.{name}"), &compiled.extras);
            if let Some(policy) = &compiled.route.retry {
                self.retry(&mut settings, ("route", name), policy, compiled.retry.as_ref());
            }
        }
        left_out(&mut settings, "route", self.routes.len());
        for (rule, marks) in
            self.authorization.rules().iter().zip(&self.rule_marks).take(EFFECTIVE_ENTRIES_MAX)
        {
            let values = RULE_KEYS.into_iter().zip(rule_values(rule));
            self.entry(&mut settings, "authorization", &rule.name, values, marks);
        }
        left_out(&mut settings, "authorization", self.authorization.rules().len());
        for (name, shown) in self.workloads.iter().take(EFFECTIVE_ENTRIES_MAX) {
            self.extras(&mut settings, &format!("workload.{name}"), shown);
        }
        left_out(&mut settings, "workload", self.workloads.len());
        for limit in &self.rate_limits {
            self.extras(&mut settings, &format!("rate_limit.{}", limit.name()), &limit.shown);
        }
        for CompiledCanary { canary, shown } in &self.canaries {
            self.extras(&mut settings, &format!("canary.{}", canary.name), shown);
        }
        settings
    }

    fn extras(&self, settings: &mut Vec<Setting>, entry: &str, extras: &[Extra]) {
        for Extra { key, value, mark } in extras {
            let (key, value) = (format!("{entry}.{key}"), value.clone());
            settings.push(Setting { key, value, origin: self.origins.origin(*mark) });
        }
    }

    /// Adds those keys of an entry that have a value.
    pub(super) fn entry(
        &self,
        settings: &mut Vec<Setting>,
        kind: &str,
        name: &str,
        values: impl IntoIterator<Item = (&'static str, Option<String>)>,
        marks: &[Mark],
    ) {
        for ((key, value), &mark) in values.into_iter().zip(marks) {
            if let Some(value) = value {
                let key = format!("{kind}.{name}.{key}");
                settings.push(Setting { key, value, origin: self.origins.origin(mark) });
            }
        }
    }

    fn scalars(&self) -> Vec<Setting> {
        let Self { settings, limits, timeouts, http2, forwarding, .. } = self;
        let time = |duration: Duration| quoted(&duration_text(duration));
        let bytes = |size: u64| quoted(&size_text(size));
        let word = |text: &str| quoted(text);
        let mut values = settings.at_start().to_vec();
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
            ("limits.paths", word(written(&PATHS_WORDS, &limits.paths))),
            ("limits.fields_max", limits.fields_max.to_string()),
            ("limits.body_bytes_max", body),
            ("limits.connections_max", limits.connections_max.to_string()),
            ("limits.interim_responses_max", limits.interim_responses_max.to_string()),
            ("limits.handshakes_max", limits.handshakes_max.to_string()),
            ("limits.faults_max", limits.faults_max.to_string()),
            ("limits.mirrored_max", limits.mirrored_max.to_string()),
            ("limits.mirrored_body_bytes_max", bytes(limits.mirrored_body_bytes_max.into())),
            ("timeouts.head", time(timeouts.head)),
            ("timeouts.idle", time(timeouts.idle)),
            ("timeouts.body_stall", time(timeouts.body_stall)),
            ("timeouts.stream_idle", timeouts.stream_idle.map_or_else(|| quoted("off"), time)),
            ("timeouts.drain", time(timeouts.drain)),
            ("timeouts.handshake", time(timeouts.handshake)),
            ("http2.streams_max", http2.streams_max.to_string()),
            ("http2.stream_window", bytes(http2.stream_window.into())),
            ("http2.connection_window", bytes(http2.connection_window.into())),
            ("http2.ping_interval", ping_text(http2.ping_interval)),
            ("http2.ping_timeout", time(http2.ping_timeout)),
            ("forwarding.via", word(forwarding.via.as_deref().unwrap_or("off"))),
            ("forwarding.forwarded", word(written(&FORWARDED_WORDS, &forwarding.forwarded))),
            ("forwarding.failure_header", forwarding.failure_header.to_string()),
            (
                "overload.memory_max",
                match self.memory_max {
                    MemoryMax::Off => word("off"),
                    MemoryMax::Cgroup => word("cgroup"),
                    MemoryMax::Bytes(size) => bytes(size),
                },
            ),
        ]);
        values.push((
            "authorization_default",
            word(written(&VERDICT_WORDS, &self.authorization.default_verdict())),
        ));
        values.extend(self.zone.iter().map(|zone| ("zone.name", quoted(zone))));
        if let Some(identity) = &self.identity {
            values.extend(identity_values(identity));
        }
        if let Some(tracing) = &self.tracing {
            values.extend(tracing.shown());
        }
        let origin =
            |key| self.origins.marks.get(key).map_or(Origin::Default, |&mark| self.origins.origin(mark));
        values
            .into_iter()
            .map(|(key, value)| Setting { key: key.into(), value, origin: origin(key) })
            .collect()
    }

    fn route_values(&self, compiled: &CompiledRoute) -> [(&'static str, Option<String>); 7] {
        let hosts = &compiled.matching.hosts;
        let (path_key, path) = path_text(&compiled.matching.path);
        let service = match &compiled.route.action {
            Action::Service(service) => self.services.get(*service as usize),
            Action::Split(_) | Action::Redirect(_) | Action::Respond(_) => None,
        };
        let service = service.map(|to| quoted(&to.service.name));
        let Upgrades { websocket, connect } = compiled.route.upgrades;
        let upgrades: Vec<&str> = [(websocket, "websocket"), (connect, "connect")]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| *word)
            .collect();
        let tunnel_idle = match compiled.route.tunnel_idle {
            Duration::MAX => "off".into(),
            idle => duration_text(idle),
        };
        let timeout = compiled.route.timeout.map_or_else(|| "off".into(), duration_text);
        [
            // An empty list is not how any host is written.
            (
                "hosts",
                (!hosts.is_empty())
                    .then(|| list(hosts.iter().map(|host| quoted(&host_text(host))), hosts.len())),
            ),
            (path_key, Some(path)),
            ("service", service),
            ("timeout", Some(quoted(&timeout))),
            ("upgrades", Some(list(upgrades.iter().map(|word| quoted(word)), upgrades.len()))),
            ("tunnel_idle", Some(quoted(&tunnel_idle))),
            ("priority", Some(quoted(written(&PRIORITY_WORDS, &compiled.route.priority)))),
        ]
    }
}

fn left_out(settings: &mut Vec<Setting>, kind: &str, count: usize) {
    if count > EFFECTIVE_ENTRIES_MAX {
        let value = format!("# {} more are not shown", count - EFFECTIVE_ENTRIES_MAX);
        settings.push(Setting { key: kind.into(), value, origin: Origin::Default });
    }
}

fn service_values(compiled: &CompiledService) -> [Option<String>; 20] {
    let service = &compiled.service;
    let time = |duration: Duration| quoted(&duration_text(duration));
    let endpoints = match &compiled.declared {
        Some(declared) => list(
            declared.iter().map(|one| {
                choice::endpoint(
                    &one.target.to_string(),
                    one.weight,
                    one.zone.as_deref(),
                    one.priority,
                    one.labels.as_deref(),
                    one.drain,
                )
            }),
            declared.len(),
        ),
        None => list(
            service.endpoints.iter().map(|one| {
                choice::endpoint(
                    &one.address.to_string(),
                    one.weight,
                    one.zone.as_deref(),
                    one.priority,
                    one.labels.as_deref(),
                    one.drain,
                )
            }),
            service.endpoints.len(),
        ),
    };
    let (tls, identities) = match &service.tls {
        _ if compiled.edge.is_some() => (ServiceTlsWord::Edge, None),
        Tls::Mesh(ids) if ids.is_empty() => (ServiceTlsWord::Mesh, None),
        Tls::Mesh(ids) => {
            (ServiceTlsWord::Mesh, Some(list(ids.iter().map(|id| quoted(&id.to_string())), ids.len())))
        }
        Tls::Off | Tls::Edge(_) => (ServiceTlsWord::Off, None),
    };
    let edge = compiled.edge.as_ref();
    let http2 = &service.http2;
    let bytes = |size: u32| quoted(&size_text(size.into()));
    [
        Some(quoted(written(&BALANCE_WORDS, &service.balance))),
        Some(endpoints),
        Some(service.connect_attempts_max.to_string()),
        Some(quoted(written(&PROTOCOL_WORDS, &service.protocol))),
        Some(quoted(written(&SERVICE_TLS_WORDS, &tls))),
        identities,
        edge.map(|edge| quoted(&edge.server_name.to_str())),
        edge.and_then(|edge| edge.ca.as_deref()).map(file_text),
        Some(service.pool.idle_max.to_string()),
        Some(time(service.pool.idle_timeout)),
        Some(service.pool.connections_max.to_string()),
        Some(time(service.timeouts.connect)),
        Some(time(service.timeouts.response)),
        Some(time(service.timeouts.body_stall)),
        Some(http2.connections_max.to_string()),
        Some(http2.streams_max.to_string()),
        Some(bytes(http2.stream_window)),
        Some(bytes(http2.connection_window)),
        Some(ping_text(http2.ping_interval)),
        Some(time(http2.ping_timeout)),
    ]
}

fn listener_values(compiled: &CompiledListener) -> [Option<String>; 6] {
    let files = compiled.termination.as_ref();
    let tls = match compiled.listener.tls {
        _ if files.is_some() => ListenerTlsWord::Terminate,
        ListenerTls::Off => ListenerTlsWord::Off,
        ListenerTls::Permissive => ListenerTlsWord::Permissive,
        ListenerTls::Strict => ListenerTlsWord::Strict,
        ListenerTls::Terminate(_) => ListenerTlsWord::Terminate,
    };
    [
        Some(quoted(&compiled.listener.address.to_string())),
        Some(quoted(written(&LISTENER_TLS_WORDS, &tls))),
        files.map(|files| file_text(&files.certificate)),
        files.map(|files| file_text(&files.key)),
        files.map(|files| quoted(written(&VERSION_WORDS, &files.version_min))),
        Some(compiled.listener.grpc_web.to_string()),
    ]
}

/// Conditions that are not given have no value.
fn rule_values(rule: &Rule) -> [Option<String>; 8] {
    fn shown<T>(values: &[T], text: impl Fn(&T) -> String) -> Option<String> {
        (!values.is_empty()).then(|| list(values.iter().map(text), values.len()))
    }
    let fields: Vec<String> = rule
        .headers
        .iter()
        .take(LIST_ENTRIES_MAX)
        .map(|(name, value)| format!("{} = {}", quoted(name), quoted(&match_text(value))))
        .collect();
    [
        Some(quoted(written(&ACTION_WORDS, &rule.action))),
        shown(&rule.listeners, |name| quoted(name)),
        shown(&rule.from, |id| quoted(&id.to_string())),
        shown(&rule.sources, |net| quoted(&net.to_string())),
        shown(&rule.ports, u16::to_string),
        shown(&rule.methods, |method| quoted(method)),
        shown(&rule.paths, |path| quoted(&match_text(path))),
        (!fields.is_empty()).then(|| format!("{{ {} }}", fields.join(", "))),
    ]
}

/// Where a key lies is no secret; its content is never read here.
fn identity_values(identity: &Identity) -> Vec<(&'static str, String)> {
    let word = |source: SourceWord| ("identity.source", quoted(written(&SOURCE_WORDS, &source)));
    let mut values = match &identity.source {
        IdentitySource::Embedded { folder, trust_domain, id, leaf_ttl } => vec![
            word(SourceWord::Embedded),
            ("identity.trust_domain", quoted(trust_domain.as_str())),
            ("identity.id", quoted(id.as_str())),
            ("identity.folder", file_text(folder)),
            ("identity.leaf_ttl", quoted(&duration_text(*leaf_ttl))),
        ],
        IdentitySource::Files { certificate, key, bundle } => vec![
            word(SourceWord::Files),
            ("identity.certificate", file_text(certificate)),
            ("identity.key", file_text(key)),
            ("identity.bundle", file_text(bundle)),
        ],
        IdentitySource::WorkloadApi { socket, id } => {
            let mut values = vec![word(SourceWord::WorkloadApi)];
            values.extend(socket.as_ref().map(|socket| ("identity.socket", quoted(socket))));
            values.extend(id.as_ref().map(|id| ("identity.id", quoted(id.as_str()))));
            values
        }
    };
    let entries = identity.federated.iter().map(|(domain, bundle)| {
        format!("{{ trust_domain = {}, bundle = {} }}", quoted(domain.as_str()), file_text(bundle))
    });
    values.push(("identity.federated", list(entries, identity.federated.len())));
    values
}

fn file_text(path: &Path) -> String {
    quoted(&path.display().to_string())
}

fn ping_text(interval: Duration) -> String {
    if interval.is_zero() { quoted("off") } else { quoted(&duration_text(interval)) }
}

pub(super) fn list(entries: impl Iterator<Item = String>, count: usize) -> String {
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
