//! Every default and every bound, with unit, reason, and what the neighbours use (Envoy, HAProxy, nginx, Linkerd), so
//! that whoever moves from one of them knows what changes. `decode` checks the bounds, `compile` fills in the defaults,
//! `config/reference.toml` shows both and is compared with the code by a test.

use std::time::Duration;

use super::collector::CollectorProtocol;
use super::compiled::TlsVersion;
use super::raw::MemoryMax;
use crate::authorize::Verdict;
use crate::quota::global::OnFailure;
use crate::route::Upgrades;
use crate::route::fault::Fault;
use crate::route::percent::Percent;
use crate::route::split::Split;
use crate::shard::RuntimeChoice;
use crate::snapshot::{AccessLogFormat, ForwardedFields, Limits, Paths};
use crate::upstream::retry::Statuses;
use crate::upstream::spec::{Balance, Protocol};

/// A key with a default and, both inclusive, the least and the largest value taken.
#[derive(Debug)]
pub(super) struct Key<T> {
    /// The full name.
    pub(super) name: &'static str,
    /// The value if the file says nothing.
    pub(super) default: T,
    pub(super) min: T,
    pub(super) max: T,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

const fn key<T>(name: &'static str, default: T, min: T, max: T) -> Key<T> {
    Key { name, default, min, max }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

// --- the process ---

/// Most shards: one per CPU of the largest machines sold.
pub const SHARDS_MAX: u16 = 1024;

/// The best that the kernel grants, because a proxy that runs more slowly is better than none. No neighbour has the
/// choice: Envoy, HAProxy, nginx and Linkerd use epoll.
pub(super) const RUNTIME: RuntimeChoice = RuntimeChoice::Auto;

/// 20 ms: a shard that is kept that long delays every other connection on it by as much; the slowest task that serves
/// traffic takes well under 1 ms. HAProxy's watchdog warns after 100 ms, Envoy's counts a miss after 200 ms.
pub(super) const STALL_THRESHOLD: Key<Duration> =
    key("stall_threshold", Duration::from_millis(20), Duration::from_micros(100), seconds(60));

/// Loopback only, because the admin server asks nobody who he is. Envoy's sidecars and ztunnel use 15000 as well.
pub(super) const ADMIN_ADDRESS: &str = "127.0.0.1:15000";

/// Where `[access_log]` writes if it does not say: what a container's log collector reads. As Envoy in Istio.
pub(super) const ACCESS_LOG_PATH: &str = "stdout";

/// JSON, because log lines are read by programs first. Istio: text; Linkerd: apache or json.
pub(super) const ACCESS_LOG_FORMAT: AccessLogFormat = AccessLogFormat::Json;

// --- what a caller may take ---

/// 64 KiB: room for the largest cookies and tokens met in practice. Envoy 60 KiB, nginx 32 KiB in 8 KiB lines,
/// HAProxy 16 KiB. At least 1 KiB, or ordinary requests fail; the ceiling is the buffer that a head is read into.
pub(super) const HEAD_BYTES_MAX: Key<u64> =
    key("limits.head_bytes_max", 64 << 10, 1 << 10, Limits::HEAD_CEILING as u64);

/// 16 KiB: RFC 9112 section 3 wants 8000 octets supported; browsers and caches stop at 8 to 64 KiB. nginx 8 KiB.
pub(super) const TARGET_BYTES_MAX: Key<u64> =
    key("limits.target_bytes_max", 16 << 10, 64, HEAD_BYTES_MAX.max);

/// 128 fields. Envoy 100, HAProxy 101, Apache 100. The ceiling is the size of the table that a head is split into.
pub(super) const FIELDS_MAX: Key<u16> = key("limits.fields_max", 128, 1, Limits::FIELDS_CEILING);

/// No limit (0): bodies are streamed, so their size costs no memory. Envoy and HAProxy none, nginx 1 MiB.
pub(super) const BODY_BYTES_MAX: Key<u64> = key("limits.body_bytes_max", 0, 1, u64::MAX >> 1);

/// 20 000 for the whole proxy: with 4 KiB for an idle connection that is 80 MiB, and a caller cannot take more.
/// Envoy none by default, HAProxy derives it from the file limit, nginx 512 per process.
pub(super) const CONNECTIONS_MAX: Key<u32> = key("limits.connections_max", 20_000, 1, 10_000_000);

/// 16 interim responses: far more than any server sends, few enough to end a stream of them. Envoy and HAProxy: none.
pub(super) const INTERIM_RESPONSES_MAX: Key<u16> = key("limits.interim_responses_max", 16, 0, 1000);

/// 256 for the whole proxy: a handshake is the dearest thing that a caller without any right can ask for, so that few
/// are under way at a time and the others wait. Envoy and nginx none, HAProxy none unless `maxsslconn` is set.
pub(super) const HANDSHAKES_MAX: Key<u32> = key("limits.handshakes_max", 256, 1, 1_000_000);

/// 1024 copies of requests for the whole proxy: with 64 KiB of body each that is 64 MiB. Envoy and Istio none but the breaker of
/// the service that gets them.
pub(super) const MIRRORED_MAX: Key<u32> = key("limits.mirrored_max", 1024, 0, 1_000_000);

/// 64 KiB of a body are kept for a copy, as for a retry. Envoy 1 MiB, what it buffers.
pub(super) const MIRRORED_BODY_BYTES_MAX: Key<u64> =
    key("limits.mirrored_body_bytes_max", 64 << 10, 1, 16 << 20);

/// 100 exchanges of the whole proxy: enough to see what callers make of it, too few to take a fleet down by a slip. Envoy none
/// unless `max_active_faults` is set.
pub(super) const FAULTS_MAX: Key<u32> = key("limits.faults_max", 100, 0, 1_000_000);

/// By the limit of the cgroup: who is limited is killed at the limit, and to refuse a little before that is better in every case; who is
/// not has the machine, whose memory is not ours to share out. Where a size is given: 1 MiB at least. Envoy and Istio nothing
/// unless an overload manager is configured, Linkerd and HAProxy nothing, nginx nothing.
pub(super) const MEMORY_MAX_DEFAULT: MemoryMax = MemoryMax::Cgroup;
pub(super) const MEMORY_MAX: Key<u64> = key("overload.memory_max", 512 << 20, 1 << 20, 1 << 50);

// --- tracing ---

/// What OpenTelemetry's collectors and SDKs speak by default, as Envoy does and Linkerd's.
pub(super) const TRACING_PROTOCOL: CollectorProtocol = CollectorProtocol::Grpc;

/// 10 s, as the protocol's specification has it. Nobody but the spans waits for it.
pub(super) const TRACING_TIMEOUT: Key<Duration> =
    key("tracing.timeout", seconds(10), Duration::from_millis(10), seconds(300));

/// 4 MiB: some eight thousand spans, beside 1 MiB a shard. OpenTelemetry's SDKs keep 2048 spans, Envoy's tracer 5 s of them.
pub(super) const TRACING_WAITING_BYTES_MAX: Key<u64> =
    key("tracing.waiting_bytes_max", 4 << 20, 128 << 10, 1 << 30);

/// 1 % of those for whom nobody decided: enough to see what is usual, and little beside what else a request costs. Istio 1 %, Envoy
/// 100 %, Linkerd none (it never begins a trace).
pub(super) fn sample_percent() -> Percent {
    Percent::new(1.0).unwrap_or(Percent::ALL)
}

// --- how long a caller may take ---

/// 10 s for a whole head once it has begun: any client that sends slower holds a connection for nothing. nginx 60 s,
/// HAProxy none unless `timeout http-request` is set, Envoy none unless `request_headers_timeout` is set.
pub(super) const HEAD: Key<Duration> = key("timeouts.head", seconds(10), MILLISECOND, DAY);

/// 5 min between requests: longer than the pools of the usual clients keep a connection, so that they close first and
/// no request meets a closing connection. Envoy 1 h, nginx 75 s, HAProxy as `timeout client`.
pub(super) const IDLE: Key<Duration> = key("timeouts.idle", seconds(300), MILLISECOND, DAY);

/// 30 s without a byte of progress. nginx 60 s, Envoy 5 min (stream idle), HAProxy `timeout client`.
pub(super) const BODY_STALL: Key<Duration> = key("timeouts.body_stall", seconds(30), MILLISECOND, DAY);

/// Off: `body_stall` bounds the silence of either side. Where that is long, because streams may be silent on one side, this bounds
/// the silence of both. Envoy 5 min (and no bound for one side alone).
pub(super) const STREAM_IDLE: Key<Duration> = key("timeouts.stream_idle", DAY, MILLISECOND, DAY);

/// 25 s: ends within the 30 s that Kubernetes gives before SIGKILL. Envoy 600 s, Istio 5 s, Linkerd 120 s.
pub(super) const DRAIN: Key<Duration> = key("timeouts.drain", seconds(25), Duration::ZERO, DAY);

/// 10 s for a TLS handshake: two round trips, even over a bad link. nginx 60 s, HAProxy as
/// `timeout client`, Envoy none unless `transport_socket_connect_timeout` is set.
pub(super) const HANDSHAKE: Key<Duration> = key("timeouts.handshake", seconds(10), MILLISECOND, DAY);

// --- HTTP/2, with callers and with services ---

/// 100 exchanges at a time on one connection: the least that RFC 9113 section 6.5.2 recommends. HAProxy 100,
/// nginx 128, Envoy 1024.
pub(super) const STREAMS_MAX: Key<u32> = key("http2.streams_max", 100, 1, 10_000);

/// 256 KiB on the way per stream: 80 Mbit/s at 25 ms. At least the 64 KiB that a peer may send before it learns
/// otherwise. Envoy 16 MiB, HAProxy and nginx 64 KiB.
pub(super) const STREAM_WINDOW: Key<u64> = key("http2.stream_window", 256 << 10, 64 << 10, 16 << 20);

/// 1 MiB on the way per connection: the most that a caller makes us keep if its service does not read. Envoy 24 MiB.
pub(super) const CONNECTION_WINDOW: Key<u64> = key("http2.connection_window", 1 << 20, 64 << 10, 256 << 20);

/// 30 s without a frame, then a ping: dead peers behind a NAT are found within a minute. Envoy none, Linkerd 10 s;
/// gRPC servers take one ping in 5 min without exchanges, and any number with data between.
pub(super) const PING_INTERVAL: Key<Duration> = key("http2.ping_interval", seconds(30), MILLISECOND, DAY);

/// 10 s for the answer. Linkerd 3 s, gRPC 20 s.
pub(super) const PING_TIMEOUT: Key<Duration> = key("http2.ping_timeout", seconds(10), MILLISECOND, DAY);

// --- who this proxy is and who may call ---

/// Everything is allowed that no rule denies: a first configuration works, and a proxy without identities could tell
/// nobody apart. As Istio and Linkerd.
pub(super) const AUTHORIZATION_DEFAULT: Verdict = Verdict::Allow;

/// The domain that the embedded authority signs for: a name that nobody owns. Istio `cluster.local`, SPIRE must be told.
pub(super) const TRUST_DOMAIN: &str = "mesh.local";

/// Where the embedded authority keeps its key: state that must survive a restart belongs below /var/lib.
pub const FOLDER: &str = "/var/lib/ringmesh/ca";

/// 24 h: a stolen key is of use for a day at most, and a broken authority may be broken for half a day. Istio and
/// Linkerd 24 h, SPIRE 1 h.
pub(super) const LEAF_TTL: Key<Duration> =
    key("identity.leaf_ttl", seconds(24 * 3600), seconds(1), seconds(30 * 24 * 3600));

/// TLS 1.3 at edges: every client of the last six years has it. nginx, HAProxy and Envoy 1.2.
pub(super) const TLS_VERSION_MIN: TlsVersion = TlsVersion::V1_3;

/// Off: a service that speaks gRPC-Web itself would not get it any more. Envoy needs a filter for it.
pub(super) const GRPC_WEB: bool = false;

/// Any: services know their own paths, and whoever repairs them serves something else than was asked for. Envoy and HAProxy any
/// unless told otherwise; Istio and Consul have Envoy resolve dot segments.
pub(super) const PATHS: Paths = Paths::Any;

// --- what is added to messages ---

/// `Via` is what RFC 9110 section 7.6.3 asks of an intermediary, and it stops loops. Envoy and HAProxy: off.
pub(super) const VIA: &str = "auto";

/// Append, as HAProxy's `option forwardfor` and Envoy's `use_remote_address` do: a sidecar has proxies before it.
pub(super) const FORWARDED: ForwardedFields = ForwardedFields::Append;

/// On: who calls should learn which hop failed. Linkerd on (`l5d-proxy-error`), Envoy off (response flags in its log).
pub(super) const FAILURE_HEADER: bool = true;

// --- services ---

/// Latency and load together, which avoids both slow and busy endpoints. Linkerd the same, Envoy and HAProxy in turn,
/// Istio least request.
pub(super) const BALANCE: Balance = Balance::PeakEwma;

/// 3 endpoints at most are tried for one request: two dead ones in a row are a rollout, three an outage. HAProxy
/// 3 retries, nginx every server once, Envoy none unless asked.
pub(super) const CONNECT_ATTEMPTS_MAX: Key<u8> = key("service.connect_attempts_max", 3, 1, 32);

/// What the service chooses by ALPN; without TLS HTTP/1.1, which every server has. As Linkerd; Envoy and HAProxy
/// HTTP/1.1, nginx HTTP/1.1.
pub(super) const PROTOCOL: Protocol = Protocol::Auto;

/// Every endpoint gets the same share. As all neighbours.
pub(super) const WEIGHT: Key<u16> = key("service.endpoints.weight", 1, 1, 1000);

/// Every endpoint is used at first. Envoy the same, up to 128 priorities.
pub(super) const PRIORITY: Key<u8> = key("service.endpoints.priority", 0, 0, 15);

/// 256 points on the ring for an endpoint of average weight: its part differs from its share by 6 % (1/√256), at 16 bytes
/// a point. Envoy 1024 on the whole ring, ketama 160 each.
pub(super) const RING_POINTS: Key<u32> = key("service.consistent.ring_points", 256, 1, 65_536);

/// 65 537 places of two bytes, as Maglev's paper and Envoy: at most 655 endpoints to be even to one percent.
pub(super) const MAGLEV_PLACES: Key<u32> = key("service.consistent.maglev_places", 65_537, 101, 5_000_011);

/// Off: loads are not bounded unless asked for. Google's paper and HAProxy suggest 125 to 150; Envoy must be told.
pub(super) const OVERLOAD_PERCENT: Key<u32> = key("service.consistent.overload_percent", 150, 100, 10_000);

/// A cookie that is set for affinity lasts an hour in what hints show; none is set unless asked for. As Envoy.
pub(super) const HASH_COOKIE_TTL: Key<Duration> =
    key("service.hash.ttl", seconds(3600), Duration::ZERO, seconds(400 * 24 * 3600));

/// The own zone is preferred where it is known, because to name it says no less. Istio the same; Envoy must be told.
pub(super) const PREFER_OWN_ZONE: bool = true;

/// 6 endpoints: with fewer the share of one zone is too coarse to be divided. As Envoy.
pub(super) const ZONE_ENDPOINTS_MIN: Key<u32> = key("service.zones.endpoints_min", 6, 2, 10_000);

/// In hundredths. As many callers in each zone that has endpoints, unless it is said. Envoy learns it from its control plane.
pub(super) const CALLERS_PERCENT: Key<u32> = key("service.zones.callers_percent", 3_333, 1, 10_000);

/// Off unless asked for, because the latency that an endpoint is held to have already keeps it from being flooded. Envoy and HAProxy off.
pub(super) const SLOW_START_WINDOW: Key<Duration> =
    key("service.slow_start.window", seconds(30), MILLISECOND, DAY);

/// In hundredths: 1.0, a straight line. As Envoy.
pub(super) const AGGRESSION: Key<u32> = key("service.slow_start.aggression", 100, 1, 10_000);

/// 10 %: enough to warm up by. As Envoy.
pub(super) const WEIGHT_PERCENT_MIN: Key<u8> = key("service.slow_start.weight_percent_min", 10, 1, 100);

/// 256 idle connections per endpoint and shard. nginx must be told, HAProxy none of its own, Envoy no bound.
pub(super) const POOL_IDLE_MAX: Key<u32> = key("service.pool.idle_max", 256, 0, 1_000_000);

/// 60 s: shorter than most servers keep them (nginx 75 s, Apache 5 s is learnt), so that we close first. nginx 60 s,
/// HAProxy 5 s, Envoy 1 h, Linkerd 3 s.
pub(super) const POOL_IDLE_TIMEOUT: Key<Duration> =
    key("service.pool.idle_timeout", seconds(60), Duration::ZERO, DAY);

/// 1024 open connections per endpoint and shard. Envoy 1024 per service and worker, HAProxy and nginx none.
pub(super) const POOL_CONNECTIONS_MAX: Key<u32> = key("service.pool.connections_max", 1024, 1, 1_000_000);

/// 1 s for one connection: as long as Linux waits before it repeats a lost SYN; another endpoint is tried instead.
/// Envoy 5 s, Linkerd 1 s, nginx 60 s, HAProxy must be told.
pub(super) const CONNECT: Key<Duration> = key("service.timeouts.connect", seconds(1), MILLISECOND, DAY);

/// 15 s from the request sent to the response head. Envoy 15 s (whole response), nginx 60 s, HAProxy must be told,
/// Linkerd none.
pub(super) const RESPONSE: Key<Duration> = key("service.timeouts.response", seconds(15), MILLISECOND, DAY);

/// 30 s without a byte of progress, as on the caller's side.
pub(super) const SERVICE_BODY_STALL: Key<Duration> =
    key("service.timeouts.body_stall", seconds(30), MILLISECOND, DAY);

/// 8 HTTP/2 connections per endpoint and shard: 800 exchanges at a time. Linkerd 1.
pub(super) const SERVICE_CONNECTIONS_MAX: Key<u32> = key("service.http2.connections_max", 8, 1, 1000);
/// As with callers; a service that allows fewer gets fewer.
pub(super) const SERVICE_STREAMS_MAX: Key<u32> = Key { name: "service.http2.streams_max", ..STREAMS_MAX };
/// As with callers.
pub(super) const SERVICE_STREAM_WINDOW: Key<u64> =
    Key { name: "service.http2.stream_window", ..STREAM_WINDOW };
/// As with callers.
pub(super) const SERVICE_CONNECTION_WINDOW: Key<u64> =
    Key { name: "service.http2.connection_window", ..CONNECTION_WINDOW };
/// As with callers.
pub(super) const SERVICE_PING_INTERVAL: Key<Duration> =
    Key { name: "service.http2.ping_interval", ..PING_INTERVAL };
/// As with callers.
pub(super) const SERVICE_PING_TIMEOUT: Key<Duration> =
    Key { name: "service.http2.ping_timeout", ..PING_TIMEOUT };

// --- breakers ---

/// On: an endpoint that fails is not asked for a while. Envoy and Linkerd off, Istio off unless there is `outlierDetection`.
pub(super) const BREAKER_ENABLED: bool = true;
/// Once: whoever takes no connection serves nobody. HAProxy 3, Envoy 5.
pub(super) const BREAKER_CONSECUTIVE_UNREACHABLE: Key<u32> =
    key("service.breaker.consecutive_unreachable", 1, 0, 10_000);
/// 5 answers in a row that are failures. Envoy 5, Linkerd 7.
pub(super) const BREAKER_CONSECUTIVE_FAILURES: Key<u32> =
    key("service.breaker.consecutive_failures", 5, 0, 10_000);
/// 5 exchanges in a row without an answer. Envoy 5 (`consecutive_local_origin_failure`).
pub(super) const BREAKER_CONSECUTIVE_UNANSWERED: Key<u32> =
    key("service.breaker.consecutive_unanswered", 5, 0, 10_000);
/// Half of the answers: fewer may be what callers ask for. Linkerd a fifth, Envoy 85 (and off).
pub(super) const BREAKER_FAILURE_PERCENT: Key<u8> = key("service.breaker.failure_percent", 50, 0, 100);
/// 10 s, as Envoy and Linkerd.
pub(super) const BREAKER_WINDOW: Key<Duration> =
    key("service.breaker.window", seconds(10), Duration::from_millis(100), seconds(600));
/// 20 answers: half of fewer is chance. Envoy 50, Linkerd 5.
pub(super) const BREAKER_REQUESTS_MIN: Key<u32> = key("service.breaker.requests_min", 20, 1, 65_535);
/// Ten times as slow as the others is another kind of slow. Neither Envoy nor Linkerd has it.
pub(super) const BREAKER_SLOW_FACTOR: Key<u32> = key("service.breaker.slow_factor", 10, 0, 100_000);
/// 250 ms: what is faster is not worth an ejection, such as an endpoint on another continent.
pub(super) const BREAKER_SLOW_MIN: Key<Duration> =
    key("service.breaker.slow_min", Duration::from_millis(250), MILLISECOND, seconds(3600));
/// 3 attempts in a row: one may be a request that takes long, and two of them meet now and then.
pub(super) const BREAKER_PENDING_MIN: Key<u32> = key("service.breaker.pending_min", 3, 0, 10_000);
/// 429 is an answer to a caller that asks too much. As Envoy; Linkerd (unified) counts it.
pub(super) const BREAKER_COUNTS_TOO_MANY: bool = false;
/// 1 s: a trial costs one request. Linkerd 1 s, Envoy 30 s.
pub(super) const BREAKER_EJECTION_BASE: Key<Duration> =
    key("service.breaker.ejection_base", seconds(1), MILLISECOND, DAY);
/// 30 s: how long it takes at most until one that is well again is noticed. Linkerd 1 min, Envoy 5 min.
pub(super) const BREAKER_EJECTION_MAX: Key<Duration> =
    key("service.breaker.ejection_max", seconds(30), MILLISECOND, DAY);
/// Doubled each time. As Linkerd; Envoy adds `base` each time.
pub(super) const BREAKER_EJECTION_MULTIPLIER: Key<u8> = key("service.breaker.ejection_multiplier", 2, 1, 16);
/// Up to a fifth longer, so that many proxies do not try at the same moment. Linkerd 50, Envoy 0.
pub(super) const BREAKER_EJECTION_JITTER_PERCENT: Key<u8> =
    key("service.breaker.ejection_jitter_percent", 20, 0, 100);
/// Half of the endpoints: the others must bear the load. Envoy 10, Linkerd no bound.
pub(super) const BREAKER_EJECTED_PERCENT_MAX: Key<u8> =
    key("service.breaker.ejected_percent_max", 50, 0, 100);
/// Half, as Envoy; Istio and Linkerd none.
pub(super) const BREAKER_PANIC_PERCENT: Key<u8> = key("service.breaker.panic_percent", 50, 0, 100);
/// 3 requests that are answered well, one after the other. Linkerd 1, Envoy none.
pub(super) const BREAKER_TRIAL_REQUESTS: Key<u8> = key("service.breaker.trial_requests", 3, 1, 60);
/// No ceiling: what a service bears only its operator knows, and a wrong number is an outage that nobody asked for. Envoy
/// 1024 requests for each service, which Istio raises to 2^32; Linkerd 100 000 for the proxy; HAProxy must be told.
pub(super) const CAPS_EXCHANGES_MAX: Key<u32> = key("service.caps.exchanges_max", u32::MAX, 1, 10_000_000);

/// 1024 wait at most: 16 MiB of heads. Envoy 1024, Consul the same by way of it.
pub(super) const CAPS_PENDING_MAX: Key<u32> = key("service.caps.pending_max", 1024, 0, 1_000_000);

/// 100 ms: a burst that lasts longer is too much load. Envoy does not let requests wait for others to end, HAProxy
/// `timeout queue`, or that of connecting.
pub(super) const CAPS_QUEUE_TIMEOUT: Key<Duration> =
    key("service.caps.queue_timeout", Duration::from_millis(100), MILLISECOND, seconds(3600));

/// 5 ms: as CoDel, and as Facebook uses it for requests. No neighbour has it.
pub(super) const CAPS_QUEUE_TARGET: Key<Duration> =
    key("service.caps.queue_target", Duration::from_millis(5), MILLISECOND, seconds(3600));

/// No ceiling but that of each endpoint's pool. Envoy 1024 for each service, which Istio raises to 2^32.
pub(super) const CAPS_CONNECTIONS_MAX: Key<u32> =
    key("service.caps.connections_max", u32::MAX, 1, 10_000_000);

/// No ceiling: the budget of retries is the better one. Envoy 3, which Istio raises to 2^32.
pub(super) const CAPS_RETRIES_MAX: Key<u32> = key("service.caps.retries_max", u32::MAX, 0, 10_000_000);

/// 2 at least: with one at a time nothing can be told of what more would do. Envoy 3.
pub(super) const CONCURRENCY_LIMIT_MIN: Key<u32> = key("service.concurrency.limit_min", 2, 1, 1_000_000);

/// 1000, as Envoy.
pub(super) const CONCURRENCY_LIMIT_MAX: Key<u32> = key("service.concurrency.limit_max", 1000, 1, 1_000_000);

/// 20 to begin with: what nearly every service bears; it is a few windows from there to what it is. Envoy 3, Netflix's
/// limiters 20.
pub(super) const CONCURRENCY_LIMIT_INITIAL: Key<u32> =
    key("service.concurrency.limit_initial", 20, 1, 1_000_000);

/// 25 % above the latency when little is asked is taken for chance, as Envoy's buffer.
pub(super) const CONCURRENCY_TOLERANCE_PERCENT: Key<u32> =
    key("service.concurrency.tolerance_percent", 25, 1, 400);

/// 100 ms, as Envoy: soon enough for a burst, long enough for a mean.
pub(super) const CONCURRENCY_WINDOW: Key<Duration> =
    key("service.concurrency.window", Duration::from_millis(100), MILLISECOND, seconds(60));

/// 95 %: as Envoy.
pub(super) const ADMISSION_SUCCESS_MIN_PERCENT: Key<u32> =
    key("service.admission.success_min_percent", 95, 1, 100);

/// 80 %: a fifth finds out whether it is over. As Envoy.
pub(super) const ADMISSION_REFUSE_MAX_PERCENT: Key<u32> =
    key("service.admission.refuse_max_percent", 80, 1, 100);

/// 10 s: it is as long until all is as before. Envoy 30 s, Google's book two minutes.
pub(super) const ADMISSION_WINDOW: Key<Duration> =
    key("service.admission.window", seconds(10), Duration::from_millis(10), seconds(3600));

/// 20 exchanges in the window of a shard: fewer are no statistics. Envoy none by default.
pub(super) const ADMISSION_EXCHANGES_MIN: Key<u32> = key("service.admission.exchanges_min", 20, 1, 1_000_000);

/// What somebody who limits must say; the number is what hints show. A million a second is more than a proxy carries.
pub(super) const RATE_LIMIT_RATE: Key<u32> = key("rate_limit.rate", 100, 1, 1_000_000);

/// A second. Envoy's fill interval has no default and is 50 ms at least.
pub(super) const RATE_LIMIT_PER: Key<Duration> = key("rate_limit.per", seconds(1), MILLISECOND, DAY);

/// As `rate`, unless it is said.
pub(super) const RATE_LIMIT_BURST: Key<u32> = key("rate_limit.burst", 100, 1, 10_000_000);

/// 10 000 keys are 320 KiB. Envoy 20 for the values of a wildcard.
pub(super) const RATE_LIMIT_KEYS_MAX: Key<u32> = key("rate_limit.keys_max", 10_000, 1, 1_000_000);

/// As one request. A million in one is more than a limit of its size would let pass.
pub(super) const RATE_LIMIT_HITS: Key<u32> = key("rate_limit.hits", 1, 1, 1_000_000);

/// 20 ms, as Envoy: the request waits for it.
pub(super) const RATE_LIMIT_TIMEOUT: Key<Duration> =
    key("rate_limit.timeout", Duration::from_millis(20), MILLISECOND, seconds(60));

/// As Envoy: a service that only counts stops nothing.
pub(super) const RATE_LIMIT_ON_FAILURE: OnFailure = OnFailure::Pass;

/// Limits of one route that services count: each is a descriptor in what is asked for each request.
pub(super) const RATE_LIMITS_ASKED_MAX: usize = 32;

// --- probes ---

/// What every server has. Envoy, HAProxy and Kubernetes must be told.
pub(super) const PROBE_PATH: &str = "/";
/// As Kubernetes; Envoy 200.
pub(super) const PROBE_STATUSES: (u16, u16) = (200, 399);
/// Ranges of statuses.
pub(super) const PROBE_STATUSES_MAX: usize = 64;
/// None of its own: the endpoint's. The number is what hints show.
pub(super) const PROBE_PORT: Key<u16> = key("service.probe.port", 8080, 1, 65_535);
/// 10 s: Kubernetes 10 s, HAProxy 2 s, Envoy must be told.
pub(super) const PROBE_INTERVAL: Key<Duration> =
    key("service.probe.interval", seconds(10), Duration::from_millis(10), DAY);
/// 1 s, so that one that is well again is used soon.
pub(super) const PROBE_INTERVAL_UNHEALTHY: Key<Duration> =
    key("service.probe.interval_unhealthy", seconds(1), Duration::from_millis(10), DAY);
/// 1 s. Kubernetes 1 s, HAProxy as the interval, Envoy must be told.
pub(super) const PROBE_TIMEOUT: Key<Duration> =
    key("service.probe.timeout", seconds(1), MILLISECOND, seconds(60));
/// 2 in a row. HAProxy 2, Kubernetes 1, Envoy must be told.
pub(super) const PROBE_HEALTHY: Key<u8> = key("service.probe.healthy", 2, 1, 100);
/// 3 in a row. HAProxy and Kubernetes 3, Envoy must be told.
pub(super) const PROBE_UNHEALTHY: Key<u8> = key("service.probe.unhealthy", 3, 1, 100);
/// Up to a tenth later, so that many proxies do not ask at once.
pub(super) const PROBE_JITTER_PERCENT: Key<u8> = key("service.probe.jitter_percent", 10, 0, 100);
/// Used before the first probe: a start must not wait for it, and requests find out as well. Envoy waits, for
/// `initial_fetch_timeout` and longer.
pub(super) const PROBE_WAITS: bool = false;

/// WebSocket, because a client that asks for it has a server that answers; no CONNECT, because a tunnel is out of sight
/// of all rules. Linkerd and HAProxy the same, Envoy none, nginx must be told.
pub(super) const UPGRADES: Upgrades = Upgrades { websocket: true, connect: false };

/// 1 h without a byte in either direction: a WebSocket whose ends keep it alive never meets it, a forgotten one goes.
/// Envoy 1 h, HAProxy must be told (`timeout tunnel`), nginx 60 s.
pub(super) const TUNNEL_IDLE: Key<Duration> =
    key("route.tunnel_idle", seconds(3600), MILLISECOND, seconds(30 * 24 * 3600));

/// Every service of a split gets the same share. Istio wants all weights or none, Consul all, Linkerd (HTTPRoute) 1.
pub(super) const SPLIT_WEIGHT: Key<u32> = key("route.split.weight", 1, 0, Split::WEIGHT_MAX);

/// 302: a browser asks again next time. A permanent one is remembered for good, mistakes too. Gateway API 302, Envoy 301.
pub(super) const REDIRECT_STATUS: Key<u16> = key("route.redirect.status", 302, 301, 308);
/// No default of its own: that of the request, or none where scheme or host change.
pub(super) const REDIRECT_PORT: Key<u16> = key("route.redirect.port", 443, 1, u16::MAX);

/// 200 unless said otherwise. Envoy must be told.
pub(super) const RESPOND_STATUS: Key<u16> = key("route.respond.status", 200, 200, 599);

/// Until the browser is closed unless a time is said (the hour here is what hints show). Envoy the same.
pub(super) const COOKIE_TTL: Key<Duration> =
    key("route.sticky.set_cookie.ttl", seconds(3600), seconds(1), seconds(400 * 24 * 3600));

/// No defaults of their own (what stands here is what hints show). Five minutes at most: longer is a hang, which an abort shows as well.
pub(super) const FAULT_DELAY: Key<Duration> =
    key("route.fault.delay.fixed", seconds(1), MILLISECOND, Fault::DELAY_MAX);
pub(super) const FAULT_DELAY_LEAST: Key<Duration> =
    key("route.fault.delay.least", Duration::ZERO, Duration::ZERO, Fault::DELAY_MAX);
pub(super) const FAULT_DELAY_MOST: Key<Duration> =
    key("route.fault.delay.most", seconds(1), MILLISECOND, Fault::DELAY_MAX);
/// The average of an exponential delay; the middle of a normal one, and how far from it most are.
pub(super) const FAULT_DELAY_EXPONENTIAL: Key<Duration> =
    key("route.fault.delay.exponential", Duration::from_millis(100), MILLISECOND, Fault::DELAY_MAX);
pub(super) const FAULT_DELAY_NORMAL: Key<Duration> =
    key("route.fault.delay.normal", Duration::from_millis(100), Duration::ZERO, Fault::DELAY_MAX);
pub(super) const FAULT_DELAY_DEVIATION: Key<Duration> =
    key("route.fault.delay.deviation", Duration::from_millis(20), MILLISECOND, Fault::DELAY_MAX);
/// No default: as long as callers are to be patient for. Five minutes at most, as a delay.
pub(super) const FAULT_HALF_OPEN: Key<Duration> =
    key("route.fault.abort.half_open_max", seconds(60), MILLISECOND, Fault::DELAY_MAX);
/// No default. Below 1 KiB/s a body never ends; Envoy takes whole KiB/s, too.
pub(super) const FAULT_RESPONSE_RATE: Key<u64> =
    key("route.fault.bandwidth.response_rate", 64 << 10, Fault::RATES[0], Fault::RATES[1]);
/// The same of requests.
pub(super) const FAULT_REQUEST_RATE: Key<u64> =
    key("route.fault.bandwidth.request_rate", 64 << 10, Fault::RATES[0], Fault::RATES[1]);
/// No default: "0B" cuts behind the head.
pub(super) const FAULT_TRUNCATE_AFTER: Key<u64> = key("route.fault.truncate.after", 1 << 10, 0, 1 << 40);
/// Of all that is told there must be something to cut.
pub(super) const FAULT_TRUNCATE_PERCENT: (f64, f64) = (0.0, 99.99);
pub(super) const FAULT_STATUS: Key<u16> = key("route.fault.abort.status", 503, 400, 599);
pub(super) const FAULT_GRPC_STATUS: Key<u8> = key("route.fault.abort.grpc_status", 14, 1, 16);

/// 10 min: a preflight for each page view, not for each request, and a change is seen soon. Browsers 5 s where nothing is
/// said, and no more than 2 h (Chrome) or 24 h (Firefox). Envoy and Istio nothing.
pub(super) const CORS_MAX_AGE: Key<Duration> =
    key("route.cors.max_age", seconds(600), Duration::ZERO, seconds(24 * 3600));
/// Origins, methods, fields of one `cors`: each origin is compared in turn.
pub(super) const CORS_ENTRIES_MAX: usize = 64;

/// 1, 5, 25, 50 and 100 %: few requests meet a canary that is broken, and each step sees several times what the last one did.
/// Argo Rollouts and Flagger must be told.
pub(super) const STEPS: [f64; 5] = [1.0, 5.0, 25.0, 50.0, 100.0];
/// Steps of one canary.
pub(super) const STEPS_MAX: usize = 20;

/// 5 min a step: long enough for what a service does once a minute, and 20 minutes in all.
pub(super) const STEP_TIME: Key<Duration> =
    key("canary.step_time", seconds(300), seconds(1), seconds(7 * 24 * 3600));

/// 500 requests: the 99th percentile of fewer says nothing.
pub(super) const SAMPLES_MIN: Key<u32> = key("canary.samples_min", 500, 20, 1_000_000_000);

/// Half a percent more errors are tolerated, and latencies by a quarter longer: less than that is often the weather.
pub(super) const ERRORS_TOLERATED: f64 = 0.005;
/// In percent.
pub(super) const ERRORS_TOLERATED_BOUNDS: (f64, f64) = (0.0, 100.0);
/// See above.
pub(super) const LATENCY_TOLERATED: f64 = 0.25;
/// In percent.
pub(super) const LATENCY_TOLERATED_BOUNDS: (f64, f64) = (0.0, 10_000.0);

/// One of a hundred canaries that are no worse may be rolled back: its operator looks, and starts it again.
pub(super) const FALSE_ALARMS_MAX: f64 = 0.01;
/// In percent.
pub(super) const FALSE_ALARMS_BOUNDS: (f64, f64) = (0.0001, 50.0);

/// Where canaries keep where they stand: state that must survive a restart belongs below /var/lib.
pub(super) const STATE_FOLDER: &str = "/var/lib/ringmesh";

/// Each is looked at once a second.
pub(super) const CANARIES_MAX: usize = 100;

/// A whole exchange has no limit unless its route sets one: only its author knows what is long (the 30 s here are what
/// hints show). Envoy 15 s, Istio and Linkerd none, HAProxy and nginx none.
pub(super) const ROUTE_TIMEOUT: Key<Duration> = key("route.timeout", seconds(30), MILLISECOND, DAY);

/// No more than what holds for all, unless it is said (three is what hints show). Envoy has no ceiling.
pub(super) const CALLER_ATTEMPTS_MAX: Key<u8> =
    key("route.caller_may.attempts_max", 3, 1, RETRY_ATTEMPTS_MAX.max);

/// As long as the route's own at most, unless it is said (the 30 s are what hints show). Envoy has no ceiling.
pub(super) const CALLER_TIMEOUT_MAX: Key<Duration> =
    key("route.caller_may.timeout_max", seconds(30), MILLISECOND, DAY);

/// The same of one attempt; the service's `timeouts.response` holds in any case.
pub(super) const CALLER_ATTEMPT_TIMEOUT_MAX: Key<Duration> =
    key("route.caller_may.attempt_timeout_max", seconds(1), MILLISECOND, DAY);

/// Off: who may say how long others work for him must be trusted. gRPC's own deadlines are always passed on. Envoy sends and
/// honours such fields at all times, Linkerd only its own.
pub(super) const DEADLINE_HEADER: bool = false;

// --- further attempts ---

/// 3 attempts at most, the first included: one bad endpoint of ten is met twice in a row by one request of a hundred, three
/// times by one of a thousand, and an endpoint that was met is not asked again. Istio 3, Envoy and Linkerd 1 (off).
pub(super) const RETRY_ATTEMPTS_MAX: Key<u8> = key("retry.attempts_max", 3, 1, 9);

/// What says that this endpoint, now, is the trouble, and another may do better. Istio the same with `cancelled` in place of
/// `gateway-error`, Envoy and Linkerd nothing.
pub(super) const RETRY_ON: [&str; 5] =
    ["reset", "gateway-error", "connect-failure", "refused-stream", "unavailable"];

/// 500, besides what `on` says: an endpoint that is broken answers so. Only what is idempotent is sent again. Istio 503.
pub(super) const RETRY_STATUSES: Statuses = Statuses::NONE.with(500, 500);

/// No limit for one attempt but the service's own (`timeouts.response`): how slow is too slow only its author knows (1 s is
/// what hints show). As all neighbours.
pub(super) const RETRY_ATTEMPT_TIMEOUT: Key<Duration> =
    key("retry.attempt_timeout", seconds(1), MILLISECOND, DAY);

/// 25 ms at most before the first further attempt, on average half of it. As Envoy.
pub(super) const RETRY_BACKOFF_BASE: Key<Duration> =
    key("retry.backoff_base", Duration::from_millis(25), Duration::ZERO, seconds(60));

/// 250 ms at most before any. As Envoy.
pub(super) const RETRY_BACKOFF_MAX: Key<Duration> =
    key("retry.backoff_max", Duration::from_millis(250), Duration::ZERO, seconds(600));

/// 1 s: who asks for a longer pause is believed, and the caller is told. Envoy ignores Retry-After unless told, then 300 s.
pub(super) const RETRY_AFTER_MAX: Key<Duration> =
    key("retry.retry_after_max", seconds(1), Duration::ZERO, seconds(300));

/// 64 KiB of a request's body are kept for another attempt: nearly all calls, and 64 MiB if a thousand of them wait. Linkerd
/// the same, Envoy 1 MiB, HAProxy 16 KiB.
pub(super) const RETRY_BODY_BYTES_MAX: Key<u64> = key("retry.body_bytes_max", 64 << 10, 0, 16 << 20);

/// 20 % of what is in progress: a service that fails gets a fifth more work, not three times as much. Envoy (where it is used)
/// and Linkerd the same.
pub(super) const RETRY_BUDGET_PERCENT: Key<u32> = key("retry.budget_percent", 200_000, 0, 1_000_000);

/// 10 at a time in any case, so that a service with few calls has a second chance, too. Envoy 3, Linkerd 10 a second.
pub(super) const RETRY_BUDGET_FLOOR: Key<u32> = key("retry.budget_floor", 10, 0, 1_000_000);

/// Off: one more field that most services do not read. Envoy off, Istio on.
pub(super) const RETRY_ATTEMPT_HEADER: bool = false;

/// Off: a hedge is more work for a service, and only its author knows what it costs. Envoy off.
pub(super) const RETRY_HEDGE_AFTER: Key<Duration> = key(
    "retry.hedge_after",
    // Never shown: it is off.
    seconds(1),
    Duration::from_millis(1),
    seconds(3600),
);

// --- how much there may be ---

/// Files that make up one configuration.
pub(super) const FILES_MAX: usize = 1000;
/// Bytes of one file: ten times the largest configuration that is tested (10 000 services with 10 endpoints).
pub(super) const FILE_BYTES_MAX: u64 = 64 << 20;
/// Each costs a socket per shard.
pub(super) const LISTENERS_MAX: usize = 64;
/// Ten times what is tested.
pub(super) const SERVICES_MAX: usize = 100_000;
/// As services.
pub(super) const ROUTES_MAX: usize = 100_000;
/// Each is looked at for each request.
pub(super) const AUTHORIZATIONS_MAX: usize = 10_000;
/// `[[workload]]`, all files together. A request is compared with those that a route asks for one after the other.
pub(super) const WORKLOADS_MAX: usize = 1000;
/// Each of those that limit a route is asked for each of its requests.
pub(super) const RATE_LIMITS_MAX: usize = 1000;
/// What makes a key.
pub(super) const RATE_LIMIT_BY_MAX: usize = 8;
/// Values of one condition of a rule, and identities of a service.
pub(super) const CONDITION_MAX: usize = 1000;
/// Tests of fields, of parameters and of cookies of one route: as many as Gateway API takes of each, twice.
pub(super) const TESTS_MAX: usize = 32;
/// Trust domains besides our own.
pub(super) const FEDERATED_MAX: usize = 100;
/// Parts of one key.
pub(super) const HASH_MAX: usize = 8;
/// Subsets of one service. With a balancer that hashes each has a table of its own.
pub(super) const SUBSETS_MAX: usize = 64;
/// Labels of one endpoint.
pub(super) const LABELS_MAX: usize = 16;
/// Hosts of one route.
pub(super) const HOSTS_MAX: usize = 1000;
/// Endpoints of one service, also after its names are resolved.
pub(super) const ENDPOINTS_MAX: usize = 10_000;
