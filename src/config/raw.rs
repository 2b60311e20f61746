//! Exactly the files: every key optional, every value with the place where it stands. Filled by `decode` (types, units
//! and bounds are right by then), consumed by `compile` (which sees how values fit together). No logic.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::collector::{CollectorProtocol, Endpoint};
use super::compiled::TlsVersion;
use super::decode::{RawAdmission, RawCaps, RawConcurrency, RawRateLimit};
use super::report::Place;
use super::values::Target;
use crate::authorize::{Action, TextMatch, Verdict};
use crate::identity::{IdMatch, SpiffeId, TrustDomain};
use crate::route::answer::Respond;
use crate::route::changes::FieldChanges;
use crate::route::cors::Cors;
use crate::route::fault::Fault;
use crate::route::filled::Form;
use crate::route::path::NewPath;
use crate::route::percent::Percent;
use crate::route::split::Sticky;
use crate::route::wish::May;
use crate::route::{HostMatch, Priority, Regex, Template, Test, Upgrades};
use crate::shard::RuntimeChoice;
use crate::snapshot::{AccessLogFormat, ForwardedFields, Paths};
use crate::trace::Formats;
use crate::upstream::affinity::HashRule;
use crate::upstream::retry::{Hedge, Statuses, Word};
use crate::upstream::spec::{Balance, Labels, Protocol};

/// A value and where it came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
    /// Index into [`Raw::variables`], plus one, of the environment variable that had a part in it; 0 for none.
    pub(super) variable: u16,
}

impl<T> At<T> {
    /// The same place with another value.
    pub(super) fn with<U>(self, value: U) -> At<U> {
        At { value, place: self.place, variable: self.variable }
    }
}

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) shards: Option<At<Shards>>,
    pub(super) runtime: Option<At<RuntimeChoice>>,
    pub(super) stall_threshold: Option<At<Duration>>,
    /// `None` inside: `"off"`.
    pub(super) admin_address: Option<At<Option<SocketAddr>>>,
    /// Whether there is a table `[access_log]`.
    pub(super) access_log: bool,
    pub(super) access_log_path: Option<At<Destination>>,
    pub(super) access_log_format: Option<At<AccessLogFormat>>,
    pub(super) limits: RawLimits,
    pub(super) timeouts: RawTimeouts,
    pub(super) http2: RawHttp2,
    pub(super) forwarding: RawForwarding,
    pub(super) memory_max: Option<At<MemoryMax>>,
    pub(super) tracing: RawTracing,
    pub(super) identity: RawIdentity,
    /// `zone.name`.
    pub(super) zone: Option<At<Arc<str>>>,
    pub(super) authorization_default: Option<At<Verdict>>,
    pub(super) listeners: Vec<RawListener>,
    pub(super) services: Vec<RawService>,
    pub(super) routes: Vec<RawRoute>,
    pub(super) authorizations: Vec<RawAuthorization>,
    pub(super) workloads: Vec<RawWorkload>,
    pub(super) rate_limits: Vec<RawRateLimit>,
    pub(super) canaries: Vec<RawCanary>,
    /// Names of the environment variables used.
    pub(super) variables: Vec<Arc<str>>,
}

/// `shards`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shards {
    /// One per CPU that this process may use and has quota for.
    Auto,
    /// That many, 1 to 1024; where they run is as with `Auto`.
    Count(u16),
    /// One pinned to each of these CPUs; not empty, no CPU twice.
    Cpus(Vec<usize>),
}

/// `access_log.path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file to append to.
    File(PathBuf),
}

/// `overload.memory_max`: how much memory the process may hold before it begins to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryMax {
    /// As much as it takes.
    Off,
    /// By the limit of the cgroup, where there is one.
    Cgroup,
    /// So many octets.
    Bytes(u64),
}

/// `forwarding.via`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Via {
    Auto,
    Off,
    Pseudonym(Arc<str>),
}

/// Pairs of name and value of the operator's own.
pub(super) type Pairs = Box<[(Box<str>, Box<str>)]>;

/// `[tracing]`.
#[derive(Debug, Default)]
pub(super) struct RawTracing {
    /// Of the first table of that name.
    pub(super) place: Option<Place>,
    pub(super) endpoint: Option<At<Endpoint>>,
    pub(super) protocol: Option<At<CollectorProtocol>>,
    pub(super) ca: Option<At<PathBuf>>,
    pub(super) headers: Option<At<Pairs>>,
    pub(super) timeout: Option<At<Duration>>,
    pub(super) waiting_bytes_max: Option<At<u64>>,
    pub(super) sample_percent: Option<At<Percent>>,
    pub(super) propagate: Option<At<Formats>>,
    pub(super) service_name: Option<At<Arc<str>>>,
    pub(super) attributes: Option<At<Pairs>>,
}

#[derive(Debug, Default)]
pub(super) struct RawLimits {
    pub(super) head_bytes_max: Option<At<u64>>,
    pub(super) target_bytes_max: Option<At<u64>>,
    pub(super) paths: Option<At<Paths>>,
    pub(super) fields_max: Option<At<u16>>,
    /// 0: `"unlimited"`.
    pub(super) body_bytes_max: Option<At<u64>>,
    pub(super) connections_max: Option<At<u32>>,
    pub(super) interim_responses_max: Option<At<u16>>,
    pub(super) handshakes_max: Option<At<u32>>,
    pub(super) mirrored_max: Option<At<u32>>,
    pub(super) mirrored_body_bytes_max: Option<At<u64>>,
    pub(super) faults_max: Option<At<u32>>,
}

#[derive(Debug, Default)]
pub(super) struct RawTimeouts {
    pub(super) head: Option<At<Duration>>,
    pub(super) idle: Option<At<Duration>>,
    pub(super) body_stall: Option<At<Duration>>,
    /// `"off"`: `None`.
    pub(super) stream_idle: Option<At<Option<Duration>>>,
    pub(super) drain: Option<At<Duration>>,
    pub(super) handshake: Option<At<Duration>>,
}

/// `[http2]` and `http2` of a service; only the latter has `connections_max`.
#[derive(Debug, Default)]
pub(super) struct RawHttp2 {
    pub(super) connections_max: Option<At<u32>>,
    pub(super) streams_max: Option<At<u32>>,
    pub(super) stream_window: Option<At<u64>>,
    pub(super) connection_window: Option<At<u64>>,
    /// Zero: `"off"`.
    pub(super) ping_interval: Option<At<Duration>>,
    pub(super) ping_timeout: Option<At<Duration>>,
}

/// `identity.source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceWord {
    Embedded,
    Files,
    WorkloadApi,
}

#[derive(Debug, Default)]
pub(super) struct RawIdentity {
    /// Where the table begins, if there is one.
    pub(super) place: Option<Place>,
    /// Whether its keys are free of errors, so that what is missing can be told.
    pub(super) is_wrong: bool,
    pub(super) source: Option<At<SourceWord>>,
    pub(super) trust_domain: Option<At<TrustDomain>>,
    pub(super) id: Option<At<SpiffeId>>,
    pub(super) folder: Option<At<PathBuf>>,
    pub(super) leaf_ttl: Option<At<Duration>>,
    pub(super) certificate: Option<At<PathBuf>>,
    pub(super) key: Option<At<PathBuf>>,
    pub(super) bundle: Option<At<PathBuf>>,
    pub(super) socket: Option<At<String>>,
    /// Without those that are in error.
    pub(super) federated: Option<At<Vec<RawFederated>>>,
}

/// The place is that of the trust domain.
#[derive(Debug)]
pub(super) struct RawFederated {
    pub(super) place: Place,
    pub(super) trust_domain: TrustDomain,
    pub(super) bundle: PathBuf,
}

#[derive(Debug, Default)]
pub(super) struct RawForwarding {
    pub(super) via: Option<At<Via>>,
    pub(super) forwarded: Option<At<ForwardedFields>>,
    pub(super) failure_header: Option<At<bool>>,
}

#[derive(Debug)]
pub(super) struct RawListener {
    /// Where the table begins.
    pub(super) place: Place,
    /// Which keys stand in the file, right or wrong.
    pub(super) has: Has,
    pub(super) name: Option<At<Arc<str>>>,
    pub(super) address: Option<At<SocketAddr>>,
    pub(super) tls: Option<At<ListenerTlsWord>>,
    pub(super) certificate: Option<At<PathBuf>>,
    pub(super) key: Option<At<PathBuf>>,
    pub(super) version_min: Option<At<TlsVersion>>,
    pub(super) grpc_web: Option<At<bool>>,
}

/// Keys that go with some values of `tls` only, and where each stands, so that what does not go with it is told even if
/// its value is wrong.
pub(super) type Has = Vec<(&'static str, Place)>;

/// `listener.tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListenerTlsWord {
    Off,
    Permissive,
    Strict,
    Terminate,
}

/// `service.tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceTlsWord {
    Off,
    Mesh,
    Edge,
}

#[derive(Debug)]
pub(super) struct RawService {
    /// Where the table begins.
    pub(super) place: Place,
    pub(super) name: Option<At<Arc<str>>>,
    pub(super) balance: Option<At<Balance>>,
    /// Without those that are in error.
    pub(super) endpoints: Option<At<Vec<RawEndpoint>>>,
    pub(super) connect_attempts_max: Option<At<u8>>,
    pub(super) protocol: Option<At<Protocol>>,
    /// `tls` and what goes with some of its values only; boxed, because most services have none of it.
    pub(super) tls: Box<RawServiceTls>,
    pub(super) http2: Option<Box<RawHttp2>>,
    /// Boxed, because most services have none of it.
    pub(super) choice: Box<RawChoice>,
    pub(super) breaker: Option<Box<RawBreaker>>,
    pub(super) probe: Option<Box<RawProbe>>,
    pub(super) caps: Option<Box<RawCaps>>,
    pub(super) concurrency: Option<Box<RawConcurrency>>,
    pub(super) admission: Option<Box<RawAdmission>>,
    pub(super) idle_max: Option<At<u32>>,
    pub(super) idle_timeout: Option<At<Duration>>,
    pub(super) connections_max: Option<At<u32>>,
    pub(super) connect: Option<At<Duration>>,
    pub(super) response: Option<At<Duration>>,
    pub(super) body_stall: Option<At<Duration>>,
    /// Boxed: most services have none.
    pub(super) retry: Option<Box<RawRetry>>,
}

/// `retry` of a service or route. Lists are without those entries that are in error.
#[derive(Debug, Default)]
pub(super) struct RawRetry {
    /// `"off"` in place of a table.
    pub(super) off: Option<At<()>>,
    pub(super) attempts_max: Option<At<u8>>,
    pub(super) on: Option<At<Vec<&'static Word>>>,
    pub(super) statuses: Option<At<Statuses>>,
    pub(super) methods: Option<At<Vec<Box<str>>>>,
    /// `None` inside: `"off"`.
    pub(super) attempt_timeout: Option<At<Option<Duration>>>,
    pub(super) backoff_base: Option<At<Duration>>,
    pub(super) backoff_max: Option<At<Duration>>,
    pub(super) retry_after_max: Option<At<Duration>>,
    pub(super) body_bytes_max: Option<At<u64>>,
    /// In millionths.
    pub(super) budget_percent: Option<At<u32>>,
    pub(super) budget_floor: Option<At<u32>>,
    pub(super) attempt_header: Option<At<bool>>,
    /// `None` inside: `"off"`.
    pub(super) hedge_after: Option<At<Option<Hedge>>>,
}

#[derive(Debug, Default)]
pub(super) struct RawServiceTls {
    /// Which keys stand in the file, right or wrong.
    pub(super) has: Has,
    pub(super) tls: Option<At<ServiceTlsWord>>,
    /// Without those that are in error.
    pub(super) identities: Option<At<Vec<IdMatch>>>,
    pub(super) server_name: Option<At<rustls::pki_types::ServerName<'static>>>,
    pub(super) ca: Option<At<PathBuf>>,
}

/// `[service.breaker]`.
#[derive(Debug, Default)]
pub(super) struct RawBreaker {
    pub(super) enabled: Option<At<bool>>,
    pub(super) consecutive_unreachable: Option<At<u32>>,
    pub(super) consecutive_failures: Option<At<u32>>,
    pub(super) consecutive_unanswered: Option<At<u32>>,
    pub(super) failure_percent: Option<At<u8>>,
    pub(super) window: Option<At<Duration>>,
    pub(super) requests_min: Option<At<u32>>,
    pub(super) slow_factor: Option<At<u32>>,
    pub(super) slow_min: Option<At<Duration>>,
    pub(super) pending_min: Option<At<u32>>,
    pub(super) counts_too_many: Option<At<bool>>,
    pub(super) ejection_base: Option<At<Duration>>,
    pub(super) ejection_max: Option<At<Duration>>,
    pub(super) ejection_multiplier: Option<At<u8>>,
    pub(super) ejection_jitter_percent: Option<At<u8>>,
    pub(super) ejected_percent_max: Option<At<u8>>,
    pub(super) panic_percent: Option<At<u8>>,
    pub(super) trial_requests: Option<At<u8>>,
}

/// `service.probe.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeWord {
    Http,
    Grpc,
    Tcp,
    Tls,
}

/// `[service.probe]`.
#[derive(Debug)]
pub(super) struct RawProbe {
    pub(super) kind: Option<At<ProbeWord>>,
    pub(super) path: Option<At<Box<str>>>,
    pub(super) host: Option<At<Box<str>>>,
    /// Not empty; both ends inclusive.
    pub(super) statuses: Option<At<Vec<(u16, u16)>>>,
    pub(super) grpc_service: Option<At<Box<str>>>,
    pub(super) port: Option<At<u16>>,
    pub(super) interval: Option<At<Duration>>,
    pub(super) interval_unhealthy: Option<At<Duration>>,
    pub(super) timeout: Option<At<Duration>>,
    pub(super) healthy: Option<At<u8>>,
    pub(super) unhealthy: Option<At<u8>>,
    pub(super) jitter_percent: Option<At<u8>>,
    /// Whether it waits for its first probe.
    pub(super) start: Option<At<bool>>,
}

#[derive(Debug)]
pub(super) struct RawEndpoint {
    pub(super) place: Place,
    pub(super) target: Target,
    pub(super) weight: u16,
    pub(super) zone: Option<Arc<str>>,
    pub(super) priority: u8,
    pub(super) labels: Option<Arc<Labels>>,
    pub(super) drain: bool,
}

/// What is said of the choice among endpoints, beyond `balance`.
#[derive(Debug, Default)]
pub(super) struct RawChoice {
    pub(super) hash: Option<At<Vec<HashRule>>>,
    /// Whether there is a `hash` that is in error.
    pub(super) is_hash_wrong: bool,
    /// Where the table stands, if there is one.
    pub(super) consistent_place: Option<Place>,
    pub(super) ring_points: Option<At<u32>>,
    pub(super) maglev_places: Option<At<u32>>,
    /// `None` inside: `"off"`.
    pub(super) overload_percent: Option<At<Option<u32>>>,
    /// Where the table stands, if there is one.
    pub(super) zones_place: Option<Place>,
    pub(super) prefer_own: Option<At<bool>>,
    pub(super) zone_endpoints_min: Option<At<u32>>,
    /// In hundredths.
    pub(super) callers_percent: Option<At<u32>>,
    pub(super) subsets: Vec<RawSubset>,
    pub(super) slow_start_window: Option<At<Duration>>,
    /// In hundredths.
    pub(super) aggression: Option<At<u32>>,
    pub(super) weight_percent_min: Option<At<u8>>,
}

#[derive(Debug)]
pub(super) struct RawSubset {
    pub(super) name: Option<At<Arc<str>>>,
    pub(super) labels: Option<At<Labels>>,
    pub(super) fallback: Option<At<Arc<str>>>,
}

/// Hosts of a route, each with its place.
pub(super) type Hosts = Vec<(HostMatch, Place)>;

#[derive(Debug)]
pub(super) struct RawRoute {
    pub(super) place: Place,
    pub(super) name: Option<At<Arc<str>>>,
    /// Without those that are in error, each with its place.
    pub(super) hosts: Option<At<Hosts>>,
    pub(super) path: Option<At<Box<str>>>,
    pub(super) path_prefix: Option<At<Box<str>>>,
    pub(super) path_template: Option<At<Template>>,
    pub(super) path_regex: Option<At<Regex>>,
    /// Boxed, because most routes have none.
    pub(super) matching: Option<Box<RawMatch>>,
    pub(super) service: Option<At<Box<str>>>,
    /// What else it may do with its requests. Boxed, because most routes have none of it.
    pub(super) action: Box<RawAction>,
    pub(super) subset: Option<At<Box<str>>>,
    /// `None` inside: `"off"`.
    pub(super) timeout: Option<At<Option<Duration>>>,
    pub(super) upgrades: Option<At<Upgrades>>,
    /// The longest there is: `"off"`.
    pub(super) tunnel_idle: Option<At<Duration>>,
    pub(super) retry: Option<Box<RawRetry>>,
    pub(super) deadline_header: Option<At<bool>>,
    pub(super) caller_may: Option<At<May>>,
    pub(super) priority: Option<At<Priority>>,
    /// Whether hosts and path are free of errors, so that it can be compared with other routes.
    pub(super) match_is_right: bool,
}

/// `route.match`. Lists are without those entries that are in error.
#[derive(Debug)]
pub(super) struct RawMatch {
    pub(super) place: Place,
    /// Each with its place.
    pub(super) listeners: Option<At<Vec<At<Arc<str>>>>>,
    pub(super) ports: Option<At<Vec<u16>>>,
    pub(super) methods: Option<At<Vec<Box<str>>>>,
    pub(super) grpc: Option<At<RawGrpc>>,
    pub(super) from: Option<At<Vec<IdMatch>>>,
    pub(super) labels: Option<At<Labels>>,
    pub(super) sources: Option<At<Vec<ipnet::IpNet>>>,
    /// Each with the place of its name.
    pub(super) headers: Vec<(Box<str>, Test, Place)>,
    pub(super) query: Vec<(Box<str>, Test, Place)>,
    pub(super) cookies: Vec<(Box<str>, Test, Place)>,
}

#[derive(Debug)]
pub(super) struct RawGrpc {
    pub(super) service: Option<Box<str>>,
    pub(super) method: Option<Box<str>>,
}

/// What a route does with its requests, besides `service`.
#[derive(Debug, Default)]
pub(super) struct RawAction {
    /// Without those that are in error.
    pub(super) split: Option<At<Vec<RawShare>>>,
    pub(super) sticky: Option<At<Sticky>>,
    pub(super) redirect: Option<At<RawRedirect>>,
    pub(super) respond: Option<At<Respond>>,
    pub(super) rewrite: Option<At<RawRewrite>>,
    pub(super) request_headers: Option<At<FieldChanges>>,
    pub(super) response_headers: Option<At<FieldChanges>>,
    pub(super) cors: Option<At<Cors>>,
    pub(super) mirror: Option<At<Vec<RawMirror>>>,
    pub(super) fault: Option<At<Fault>>,
}

/// A service that gets copies.
#[derive(Debug)]
pub(super) struct RawMirror {
    pub(super) service: At<Box<str>>,
    pub(super) percent: Percent,
}

/// Shares and tolerances are fractions, steps percent.
#[derive(Debug)]
pub(super) struct RawCanary {
    pub(super) name: Option<At<Arc<str>>>,
    pub(super) route: Option<At<Box<str>>>,
    pub(super) baseline: Option<At<Box<str>>>,
    pub(super) canary: Option<At<Box<str>>>,
    pub(super) steps: Option<At<Box<[f64]>>>,
    pub(super) step_time: Option<At<Duration>>,
    pub(super) samples_min: Option<At<u32>>,
    pub(super) errors_tolerated: Option<At<f64>>,
    pub(super) latency_tolerated: Option<At<f64>>,
    pub(super) false_alarms_max: Option<At<f64>>,
    pub(super) state: Option<At<PathBuf>>,
}

/// Another path for a request.
#[derive(Debug, Clone)]
pub(super) enum RawPath {
    Made(NewPath),
    /// In place of the prefix of the route, without a final slash.
    Prefix(Box<str>),
    /// With the variables of the template of the route.
    Form(At<Form>),
}

/// `redirect`.
#[derive(Debug)]
pub(super) struct RawRedirect {
    pub(super) status: u16,
    pub(super) scheme: Option<&'static str>,
    pub(super) host: Option<Box<str>>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<RawPath>,
    pub(super) keep_query: bool,
}

/// `rewrite`.
#[derive(Debug)]
pub(super) struct RawRewrite {
    pub(super) path: Option<RawPath>,
    pub(super) keep_query: bool,
    pub(super) host: Option<Box<str>>,
}

/// A share of a split.
#[derive(Debug)]
pub(super) struct RawShare {
    pub(super) service: At<Box<str>>,
    pub(super) subset: Option<At<Box<str>>>,
    pub(super) weight: u32,
}

impl RawShare {
    /// What it leads to.
    pub(super) fn name(&self) -> (&str, Option<&str>) {
        (&self.service.value, self.subset.as_ref().map(|subset| &*subset.value))
    }
}

/// What is known of a workload. Lists are without those entries that are in error.
#[derive(Debug)]
pub(super) struct RawWorkload {
    pub(super) name: Option<At<Arc<str>>>,
    pub(super) from: Option<At<Vec<IdMatch>>>,
    pub(super) sources: Option<At<Vec<ipnet::IpNet>>>,
    pub(super) labels: Option<At<Labels>>,
}

/// Header fields of a rule, names in lower case.
pub(super) type Fields = Vec<(Box<str>, TextMatch)>;

/// Lists are without those entries that are in error.
#[derive(Debug)]
pub(super) struct RawAuthorization {
    pub(super) name: Option<At<Arc<str>>>,
    pub(super) action: Option<At<Action>>,
    /// Each with its place.
    pub(super) listeners: Option<At<Vec<At<Arc<str>>>>>,
    pub(super) from: Option<At<Vec<IdMatch>>>,
    pub(super) sources: Option<At<Vec<ipnet::IpNet>>>,
    pub(super) ports: Option<At<Vec<u16>>>,
    pub(super) methods: Option<At<Vec<Box<str>>>>,
    pub(super) paths: Option<At<Vec<TextMatch>>>,
    pub(super) headers: Option<At<Fields>>,
}
