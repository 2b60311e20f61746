//! A configuration that is right: what `compile` makes, what control runs from. Makes snapshots; knows which names are
//! to be resolved; tells `effective` what stands where it does. Immutable, free of the files' text.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::canary::{Canary, CompiledCanary};
use super::collector::{CollectorProtocol, Tracing};
use super::compile::{CompiledCaps, CompiledRateLimit, Limit};
use super::defaults;
use super::raw::{Destination, MemoryMax, Shards};
use super::values::Target;
use crate::authorize;
use crate::identity::{SpiffeId, TrustDomain};
use crate::quota::Quota;
use crate::quota::global::Global;
use crate::route::{Route, RouteMatch, Table};
use crate::shard::RuntimeChoice;
use crate::snapshot::{AccessLogFormat, Forwarding, Http2, Limits, Listener, Snapshot, Timeouts};
use crate::upstream::caps::Caps;
use crate::upstream::retry::{Policy, Statuses};
use crate::upstream::spec::{Address, Endpoint, Labels, Planned, Protocol, Service};

/// How names are resolved: a name and a port to addresses, none if it does not resolve.
pub type Names<'a> = &'a dyn Fn(&str, u16) -> Vec<SocketAddr>;

/// A checked configuration.
#[derive(Debug)]
pub struct Compiled {
    /// What concerns the process and the control thread, not the shards.
    pub settings: Settings,
    /// Who this proxy is and by whose word; `None` without `[identity]`.
    pub identity: Option<Identity>,
    pub(super) listeners: Vec<CompiledListener>,
    pub(super) services: Vec<CompiledService>,
    pub(super) routes: Vec<CompiledRoute>,
    pub(super) canaries: Vec<CompiledCanary>,
    /// Where this proxy is.
    pub(super) zone: Option<Arc<str>>,
    /// Of these routes. Made once, because a snapshot is made whenever a name resolves to something else.
    pub(super) table: Arc<Table>,
    pub(super) authorization: Arc<authorize::Policy>,
    /// For each rule where its values came from, in the order of `effective::RULE_KEYS`.
    pub(super) rule_marks: Vec<RuleMarks>,
    /// Names of workloads, and how each would be written.
    pub(super) workloads: Vec<(Arc<str>, Vec<Extra>)>,
    pub(super) rate_limits: Vec<CompiledRateLimit>,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    pub(super) http2: Http2,
    pub(super) forwarding: Forwarding,
    pub(super) memory_max: MemoryMax,
    /// Where spans go; `None` without `[tracing]`.
    pub tracing: Option<Tracing>,
    pub(super) origins: Origins,
}

/// `[identity]`: who this proxy is, by whose word, and which other trust domains it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where its certificate comes from.
    pub source: IdentitySource,
    /// Other trust domains, each with the file of its roots (PEM). None twice, and none our own as far as it is known.
    pub federated: Vec<(TrustDomain, PathBuf)>,
}

/// Where the certificate of this proxy comes from. Paths are as they are written; nothing has been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// An authority of its own.
    Embedded {
        /// Where the authority keeps its key.
        folder: PathBuf,
        /// The trust domain that it signs for.
        trust_domain: TrustDomain,
        /// Within `trust_domain`.
        id: SpiffeId,
        /// How long a certificate is valid, 1 s to 30 days.
        leaf_ttl: Duration,
    },
    /// PEM files that somebody else renews.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The key of the leaf.
        key: PathBuf,
        /// The roots of our own trust domain.
        bundle: PathBuf,
    },
    /// The SPIFFE Workload API.
    WorkloadApi {
        /// `unix:/absolute/path` or `unix:///absolute/path`; `None`: `$SPIFFE_ENDPOINT_SOCKET` of the process.
        socket: Option<String>,
        /// Which identity to take, if it offers several; `None`: its first.
        id: Option<SpiffeId>,
    },
}

/// The least version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A listener with `tls = "terminate"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Termination<'a> {
    /// Its name.
    pub listener: &'a str,
    /// The file of its chain, leaf first (PEM).
    pub certificate: &'a Path,
    /// The file of its key (PEM).
    pub key: &'a Path,
    /// The least version of TLS.
    pub version_min: TlsVersion,
}

/// A service with `tls = "edge"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge<'a> {
    /// Its name.
    pub service: &'a str,
    /// The name that its certificate must have.
    pub server_name: &'a ServerName<'static>,
    /// The file of the roots (PEM); `None`: the public ones.
    pub ca: Option<&'a Path>,
    /// Which HTTP it speaks.
    pub protocol: Protocol,
}

/// What concerns the process and the control thread. `shards`, `runtime`, `stall_threshold` and `admin` are read once, at
/// the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many shards, and where.
    pub shards: Shards,
    /// What the shards may run on.
    pub runtime: RuntimeChoice,
    /// A task that keeps a shard longer than this is counted and reported.
    pub stall_threshold: Duration,
    /// Where the admin server listens; `None` for nowhere.
    pub admin: Option<SocketAddr>,
    /// Where exchanges are logged; `None` for nowhere.
    pub access_log: Option<AccessLog>,
    /// From SIGTERM to the end of what is in flight.
    pub drain: Duration,
}

/// Where and how exchanges are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// Where the lines go.
    pub path: Destination,
    /// How a line looks.
    pub format: AccessLogFormat,
}

impl Settings {
    /// The keys that differ from the `running` ones although they take effect at a start only.
    pub fn need_restart(&self, running: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        if self.shards != running.shards {
            keys.push("shards");
        }
        if self.runtime != running.runtime {
            keys.push("runtime");
        }
        if self.stall_threshold != running.stall_threshold {
            keys.push("stall_threshold");
        }
        if self.admin != running.admin {
            keys.push("admin.address");
        }
        keys
    }
}

impl Compiled {
    /// How much memory the process may hold before it begins to refuse.
    pub fn memory_max(&self) -> MemoryMax {
        self.memory_max
    }

    /// The immutable state for the shards. `names` gives the addresses of a name and port that [`Self::names`] told of;
    /// none is fine: the service then lacks these endpoints. Services without names are shared between snapshots.
    pub fn snapshot(&self, generation: u64, names: Names<'_>) -> Snapshot {
        let services: Vec<_> = self.services.iter().map(|compiled| compiled.resolved(names)).collect();
        // Tables are built here, so that no shard has to.
        for service in &services {
            service.plan();
        }
        Snapshot {
            generation,
            listeners: self.listeners.iter().map(|compiled| compiled.listener.clone()).collect(),
            routes: Arc::clone(&self.table),
            by_name: Snapshot::order_by_name(&services),
            health: services.iter().map(|_| Arc::default()).collect(),
            services,
            limits: self.limits.clone(),
            timeouts: self.timeouts.clone(),
            forwarding: self.forwarding.clone(),
            access_log: self.settings.access_log.as_ref().map(|log| log.format),
            tracing: self.tracing.as_ref().map(|tracing| tracing.rules),
            identity: None,
            authorization: Arc::clone(&self.authorization),
            quotas: self.quotas().cloned().collect(),
            globals: self.globals().cloned().collect(),
            http2: self.http2,
        }
    }

    /// Every name that has to be resolved, with the service that has it in an endpoint.
    pub fn names_of_services(&self) -> impl Iterator<Item = (&str, &str)> {
        self.services.iter().flat_map(|compiled| {
            let names = compiled.declared.iter().flatten().filter_map(|declared| match &declared.target {
                Target::Name(host, _) => Some(&**host),
                Target::Ip(_) | Target::Unix(_) => None,
            });
            names.map(|name| (name, &*compiled.service.name))
        })
    }

    /// Where a route stands, as `file:line`.
    pub fn place_of_route(&self, id: u32) -> Option<String> {
        let compiled = self.routes.get(id as usize)?;
        let marks = compiled.marks.iter().chain(compiled.extras.iter().map(|extra| &extra.mark));
        // The line of its first key.
        let mark = marks.filter(|mark| **mark != Mark::DEFAULT).min_by_key(|mark| (mark.file, mark.line))?;
        let file = self.origins.files.get(usize::from(mark.file))?;
        Some(format!("{file}:{}", mark.line))
    }

    /// Every name and port that has to be resolved, in the order of the files; a name in two services comes twice.
    pub fn names(&self) -> impl Iterator<Item = (&str, u16)> {
        self.services.iter().filter_map(|compiled| compiled.declared.as_ref()).flatten().filter_map(
            |declared| match &declared.target {
                Target::Name(host, port) => Some((&**host, *port)),
                Target::Ip(_) | Target::Unix(_) => None,
            },
        )
    }

    /// Takes from the `running` configuration every service that is the same here, so that it is in memory once, and of those
    /// that have changed what is counted of them: their new ceilings hold for that from now on. The same of rate limits: one that
    /// has not changed goes on.
    pub fn share(&mut self, running: &Self) {
        let known: std::collections::HashMap<&str, &Arc<Service>> =
            running.services.iter().map(|compiled| (&*compiled.service.name, &compiled.service)).collect();
        for compiled in &mut self.services {
            match known.get(&*compiled.service.name) {
                Some(same) if **same == compiled.service => compiled.service = Arc::clone(same),
                Some(before) => {
                    let service = Arc::make_mut(&mut compiled.service);
                    service.meter = before.meter.clone();
                    if let (Some(before), Some(caps)) = (&before.caps, &service.caps) {
                        let caps = Caps { counts: before.counts.clone(), ..Caps::clone(caps) };
                        caps.apply();
                        service.caps = Some(Arc::new(caps));
                    }
                }
                None => {}
            }
        }
        let quotas: std::collections::HashMap<&str, &Arc<Quota>> =
            running.quotas().map(|quota| (&*quota.spec.name, quota)).collect();
        let globals: std::collections::HashMap<&str, &Arc<Global>> =
            running.globals().map(|global| (&*global.spec.name, global)).collect();
        for CompiledRateLimit { limit, .. } in &mut self.rate_limits {
            match limit {
                Limit::Local(quota) => {
                    if let Some(same) = quotas.get(&*quota.spec.name).filter(|same| same.spec == quota.spec) {
                        *quota = Arc::clone(same);
                    }
                }
                Limit::Global(global) => {
                    if let Some(same) =
                        globals.get(&*global.spec.name).filter(|same| same.spec == global.spec)
                    {
                        *global = Arc::clone(same);
                    }
                }
            }
        }
    }

    /// Limits of this proxy alone.
    fn quotas(&self) -> impl Iterator<Item = &Arc<Quota>> {
        self.rate_limits.iter().filter_map(|limit| match &limit.limit {
            Limit::Local(quota) => Some(quota),
            Limit::Global(_) => None,
        })
    }

    /// Limits that are shared with other proxies.
    fn globals(&self) -> impl Iterator<Item = &Arc<Global>> {
        self.rate_limits.iter().filter_map(|limit| match &limit.limit {
            Limit::Global(global) => Some(global),
            Limit::Local(_) => None,
        })
    }

    /// Where to listen.
    pub fn listeners(&self) -> impl ExactSizeIterator<Item = &Listener> {
        self.listeners.iter().map(|compiled| &compiled.listener)
    }

    /// The listeners that terminate TLS. In a snapshot they are strict, so that nobody is let in, until whoever reads the
    /// files puts what was read in place.
    pub fn terminations(&self) -> impl Iterator<Item = Termination<'_>> {
        self.listeners.iter().filter_map(|compiled| {
            let TerminationFiles { certificate, key, version_min } = compiled.termination.as_ref()?;
            let listener = &*compiled.listener.name;
            Some(Termination { listener, certificate, key, version_min: *version_min })
        })
    }

    /// The services outside of the mesh. In a snapshot they are like services of the mesh, so that nothing is sent in plain
    /// text, until whoever reads the files puts what was read in place.
    pub fn edges(&self) -> impl Iterator<Item = Edge<'_>> {
        self.services.iter().filter_map(|compiled| {
            let EdgeFiles { server_name, ca } = compiled.edge.as_ref()?;
            let Service { name, protocol, .. } = &*compiled.service;
            Some(Edge { service: name, server_name, ca: ca.as_deref(), protocol: *protocol })
        })
    }

    /// The collector, if it is spoken to by TLS: with the name that its certificate must have.
    pub fn collector_edge(&self) -> Option<(ServerName<'static>, Option<&Path>, Protocol)> {
        let tracing = self.tracing.as_ref().filter(|tracing| tracing.endpoint.encrypted)?;
        let name = ServerName::try_from(tracing.endpoint.host.to_string()).ok()?;
        let protocol = match tracing.protocol {
            CollectorProtocol::Grpc => Protocol::Http2,
            CollectorProtocol::Http => Protocol::Http1,
        };
        Some((name, tracing.ca.as_deref(), protocol))
    }

    /// The canaries.
    pub fn canaries(&self) -> impl Iterator<Item = &Canary> {
        self.canaries.iter().map(|compiled| &compiled.canary)
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// How many routes there are.
    pub fn route_count(&self) -> usize {
        self.routes.len()
    }
}

#[derive(Debug)]
pub(super) struct CompiledListener {
    pub(super) listener: Listener,
    /// With `tls = "terminate"` only.
    pub(super) termination: Option<TerminationFiles>,
    /// Where its values came from, in the order of `effective::LISTENER_KEYS`.
    pub(super) marks: [Mark; 6],
}

#[derive(Debug)]
pub(super) struct TerminationFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) version_min: TlsVersion,
}

#[derive(Debug)]
pub(super) struct EdgeFiles {
    pub(super) server_name: ServerName<'static>,
    pub(super) ca: Option<PathBuf>,
}

/// Where the values of a rule came from.
pub(super) type RuleMarks = [Mark; 8];

/// Where the values of a breaker came from.
pub(super) type BreakerMarks = [Mark; super::effective::BREAKER_KEYS.len()];

/// Where the values of probes came from.
pub(super) type ProbeMarks = [Mark; super::effective::PROBE_KEYS.len()];

#[derive(Debug)]
pub(super) struct CompiledService {
    /// The service with those endpoints that need no resolving.
    pub(super) service: Arc<Service>,
    /// All endpoints as declared, if there is a name among them.
    pub(super) declared: Option<Box<[Declared]>>,
    /// With `tls = "edge"` only.
    pub(super) edge: Option<EdgeFiles>,
    /// How much it is given at a time.
    pub(super) caps: CompiledCaps,
    /// Where its values came from, in the order of `effective::SERVICE_KEYS`.
    pub(super) marks: [Mark; 20],
    /// Where the values of its choice came from, in the order of `effective_choice::KEYS`.
    pub(super) choice_marks: ChoiceMarks,
    /// The same for `effective::BREAKER_KEYS`; `None` where no file says anything of it.
    pub(super) breaker_marks: Option<Box<BreakerMarks>>,
    /// The same for `effective::PROBE_KEYS`.
    pub(super) probe_marks: Option<Box<ProbeMarks>>,
    /// If it says something of it itself.
    pub(super) retry: Option<CompiledRetry>,
}

/// What a service or a route says of further attempts.
#[derive(Debug)]
pub(super) struct CompiledRetry {
    pub(super) policy: Arc<Policy>,
    /// The words of `on`, as they are written.
    pub(super) on: Box<[&'static str]>,
    /// The statuses of their own.
    pub(super) statuses: Statuses,
    /// Where its values came from, in the order of `effective::RETRY_KEYS`.
    pub(super) marks: Box<[Mark]>,
}

/// Where the values of a choice came from.
pub(super) type ChoiceMarks = [Mark; 11];

/// An endpoint as declared.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) target: Target,
    pub(super) weight: u16,
    pub(super) zone: Option<Arc<str>>,
    pub(super) priority: u8,
    pub(super) labels: Option<Arc<Labels>>,
    pub(super) drain: bool,
}

impl CompiledService {
    fn resolved(&self, names: Names<'_>) -> Arc<Service> {
        let Some(declared) = &self.declared else { return Arc::clone(&self.service) };
        let mut seen = std::collections::HashSet::new();
        let mut endpoints = Vec::with_capacity(declared.len());
        for one in declared {
            let addresses: Vec<Address> = match &one.target {
                Target::Ip(address) => vec![Address::Ip(*address)],
                Target::Unix(path) => vec![Address::Unix(Arc::clone(path))],
                Target::Name(host, port) => names(host, *port).into_iter().map(Address::Ip).collect(),
            };
            for address in addresses {
                // An address is an endpoint's identity: the same one by two names counts once, the first.
                if endpoints.len() < defaults::ENDPOINTS_MAX && seen.insert(address.clone()) {
                    let Declared { weight, priority, drain, .. } = *one;
                    let (zone, labels) = (one.zone.clone(), one.labels.clone());
                    endpoints.push(Endpoint { address, weight, zone, priority, labels, drain });
                }
            }
        }
        // The plan is that of the new endpoints.
        let planned = Planned::default();
        Arc::new(Service { endpoints, planned, ..Service::clone(&self.service) })
    }
}

#[derive(Debug)]
pub(super) struct CompiledRoute {
    pub(super) route: Route,
    pub(super) matching: Arc<RouteMatch>,
    /// Where its values came from, in the order of `effective::ROUTE_KEYS`.
    pub(super) marks: [Mark; 7],
    /// If it says something of it itself.
    pub(super) retry: Option<CompiledRetry>,
    /// What it has that few routes have, as it is shown.
    pub(super) extras: Box<[Extra]>,
}

/// A key that few entries have: shown where it is given.
#[derive(Debug)]
pub(super) struct Extra {
    pub(super) key: &'static str,
    /// As it would be written in a file.
    pub(super) value: String,
    pub(super) mark: Mark,
}

/// Where a value came from, in eight bytes: ten thousand services have two hundred thousand of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// From 1; 0 means that no file says it: a default.
    pub(super) line: u32,
    /// Index into `Origins::files`.
    pub(super) file: u16,
    /// Index into `Origins::variables`, plus one; 0 for none.
    pub(super) variable: u16,
}

impl Mark {
    /// No file says it.
    pub(super) const DEFAULT: Self = Self { line: 0, file: 0, variable: 0 };

    /// This one, or another where no file says it.
    pub(super) fn or_else(self, other: impl FnOnce() -> Self) -> Self {
        if self == Self::DEFAULT { other() } else { self }
    }
}

/// Where values came from.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pub(super) files: Vec<Arc<str>>,
    pub(super) variables: Vec<Arc<str>>,
    /// Of the keys that exist once, those that a file sets.
    pub(super) marks: std::collections::HashMap<&'static str, Mark>,
}
