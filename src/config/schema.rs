//! Which keys exist, and where. The decoder refuses all others; `config/reference.toml` is checked against this list in
//! both directions. A key is added here, in `raw`, `decode`, `defaults`, `compile` and in `reference.toml`.

/// One table of the file.
#[derive(Debug)]
pub(super) struct Section {
    /// Its path from the top, with dots; empty for the top.
    pub(super) path: &'static str,
    /// How it is opened in a file.
    pub(super) header: &'static str,
    /// What it may contain.
    pub(super) keys: &'static [&'static str],
}

pub(super) static TOP: Section = Section {
    path: "",
    header: "the top of the file",
    keys: &[
        "shards",
        "runtime",
        "stall_threshold",
        "authorization_default",
        "admin",
        "access_log",
        "limits",
        "timeouts",
        "http2",
        "forwarding",
        "overload",
        "tracing",
        "identity",
        "zone",
        "workload",
        "listener",
        "service",
        "route",
        "authorization",
        "rate_limit",
        "canary",
    ],
};
pub(super) static ADMIN: Section = Section { path: "admin", header: "[admin]", keys: &["address"] };
pub(super) static ACCESS_LOG: Section =
    Section { path: "access_log", header: "[access_log]", keys: &["path", "format"] };
pub(super) static LIMITS: Section = Section {
    path: "limits",
    header: "[limits]",
    keys: &[
        "head_bytes_max",
        "target_bytes_max",
        "paths",
        "fields_max",
        "body_bytes_max",
        "connections_max",
        "interim_responses_max",
        "handshakes_max",
        "mirrored_max",
        "mirrored_body_bytes_max",
        "faults_max",
    ],
};
pub(super) static TIMEOUTS: Section = Section {
    path: "timeouts",
    header: "[timeouts]",
    keys: &["head", "idle", "body_stall", "stream_idle", "drain", "handshake"],
};
pub(super) static HTTP2: Section = Section {
    path: "http2",
    header: "[http2]",
    keys: &["streams_max", "stream_window", "connection_window", "ping_interval", "ping_timeout"],
};
pub(super) static FORWARDING: Section =
    Section { path: "forwarding", header: "[forwarding]", keys: &["via", "forwarded", "failure_header"] };
pub(super) static OVERLOAD: Section =
    Section { path: "overload", header: "[overload]", keys: &["memory_max"] };
pub(super) static TRACING: Section = Section {
    path: "tracing",
    header: "[tracing]",
    keys: &[
        "endpoint",
        "protocol",
        "ca",
        "headers",
        "timeout",
        "waiting_bytes_max",
        "sample_percent",
        "propagate",
        "service_name",
        "attributes",
    ],
};
pub(super) static IDENTITY: Section = Section {
    path: "identity",
    header: "[identity]",
    keys: &[
        "source",
        "trust_domain",
        "id",
        "folder",
        "leaf_ttl",
        "certificate",
        "key",
        "bundle",
        "socket",
        "federated",
    ],
};
pub(super) static FEDERATED: Section = Section {
    path: "identity.federated",
    header: "an entry of `federated` in [identity]",
    keys: &["trust_domain", "bundle"],
};
pub(super) static LISTENER: Section = Section {
    path: "listener",
    header: "[[listener]]",
    keys: &["name", "address", "tls", "certificate", "key", "tls_version_min", "grpc_web"],
};
pub(super) static SERVICE: Section = Section {
    path: "service",
    header: "[[service]]",
    keys: &[
        "name",
        "balance",
        "endpoints",
        "connect_attempts_max",
        "protocol",
        "tls",
        "identities",
        "server_name",
        "ca",
        "pool",
        "timeouts",
        "http2",
        "hash",
        "consistent",
        "zones",
        "slow_start",
        "subset",
        "breaker",
        "retry",
        "probe",
        "caps",
        "concurrency",
        "admission",
    ],
};
pub(super) static ENDPOINT: Section = Section {
    path: "service.endpoints",
    header: "an endpoint of a [[service]]",
    keys: &["address", "weight", "zone", "priority", "labels", "drain"],
};
pub(super) static HASH: Section = Section {
    path: "service.hash",
    header: "an entry of `hash` in a [[service]]",
    keys: &["header", "cookie", "ttl", "path", "source", "query", "identity", "terminal"],
};
pub(super) static CONSISTENT: Section = Section {
    path: "service.consistent",
    header: "`consistent` of a [[service]]",
    keys: &["ring_points", "maglev_places", "overload_percent"],
};
pub(super) static ZONES: Section = Section {
    path: "service.zones",
    header: "`zones` of a [[service]]",
    keys: &["prefer_own", "endpoints_min", "callers_percent"],
};
pub(super) static SLOW_START: Section = Section {
    path: "service.slow_start",
    header: "`slow_start` of a [[service]]",
    keys: &["window", "aggression", "weight_percent_min"],
};
pub(super) static SUBSET: Section =
    Section { path: "service.subset", header: "[[service.subset]]", keys: &["name", "labels", "fallback"] };
pub(super) static ZONE: Section = Section { path: "zone", header: "[zone]", keys: &["name"] };
pub(super) static POOL: Section = Section {
    path: "service.pool",
    header: "`pool` of a [[service]]",
    keys: &["idle_max", "idle_timeout", "connections_max"],
};
pub(super) static SERVICE_TIMEOUTS: Section = Section {
    path: "service.timeouts",
    header: "`timeouts` of a [[service]]",
    keys: &["connect", "response", "body_stall"],
};
pub(super) static SERVICE_HTTP2: Section = Section {
    path: "service.http2",
    header: "`http2` of a [[service]]",
    keys: &[
        "connections_max",
        "streams_max",
        "stream_window",
        "connection_window",
        "ping_interval",
        "ping_timeout",
    ],
};
pub(super) static BREAKER: Section = Section {
    path: "service.breaker",
    header: "`breaker` of a [[service]]",
    keys: &[
        "enabled",
        "consecutive_unreachable",
        "consecutive_failures",
        "consecutive_unanswered",
        "failure_percent",
        "window",
        "requests_min",
        "slow_factor",
        "slow_min",
        "pending_min",
        "counts_too_many",
        "ejection_base",
        "ejection_max",
        "ejection_multiplier",
        "ejection_jitter_percent",
        "ejected_percent_max",
        "panic_percent",
        "trial_requests",
    ],
};
/// What `retry` of a service and of a route may contain.
const RETRY_KEYS: &[&str] = &[
    "attempts_max",
    "on",
    "statuses",
    "methods",
    "attempt_timeout",
    "backoff_base",
    "backoff_max",
    "retry_after_max",
    "body_bytes_max",
    "budget_percent",
    "budget_floor",
    "attempt_header",
    "hedge_after",
];
pub(super) static SERVICE_RETRY: Section =
    Section { path: "service.retry", header: "`retry` of a [[service]]", keys: RETRY_KEYS };
pub(super) static ROUTE_RETRY: Section =
    Section { path: "route.retry", header: "`retry` of a [[route]]", keys: RETRY_KEYS };
pub(super) static PROBE: Section = Section {
    path: "service.probe",
    header: "`probe` of a [[service]]",
    keys: &[
        "kind",
        "path",
        "host",
        "statuses",
        "grpc_service",
        "port",
        "interval",
        "interval_unhealthy",
        "timeout",
        "healthy",
        "unhealthy",
        "jitter_percent",
        "start",
    ],
};
pub(super) static CAPS: Section = Section {
    path: "service.caps",
    header: "`caps` of a [[service]]",
    keys: &[
        "exchanges_max",
        "connections_max",
        "pending_max",
        "queue_timeout",
        "queue_target",
        "retries_max",
    ],
};
pub(super) static CONCURRENCY: Section = Section {
    path: "service.concurrency",
    header: "`concurrency` of a [[service]]",
    keys: &["limit_min", "limit_max", "limit_initial", "tolerance_percent", "window"],
};
pub(super) static ADMISSION: Section = Section {
    path: "service.admission",
    header: "`admission` of a [[service]]",
    keys: &["success_min_percent", "refuse_max_percent", "window", "exchanges_min"],
};
pub(super) static RATE_LIMIT: Section = Section {
    path: "rate_limit",
    header: "[[rate_limit]]",
    keys: &[
        "name",
        "rate",
        "per",
        "burst",
        "by",
        "routes",
        "keys_max",
        "service",
        "domain",
        "hits",
        "timeout",
        "on_failure",
    ],
};
pub(super) static RATE_LIMIT_BY: Section = Section {
    path: "rate_limit.by",
    header: "an entry of `by` of a [[rate_limit]]",
    keys: &["header", "key", "value"],
};
pub(super) static ROUTE: Section = Section {
    path: "route",
    header: "[[route]]",
    keys: &[
        "name",
        "hosts",
        "path",
        "path_prefix",
        "path_template",
        "path_regex",
        "match",
        "service",
        "subset",
        "split",
        "sticky",
        "redirect",
        "respond",
        "rewrite",
        "request_headers",
        "response_headers",
        "cors",
        "mirror",
        "fault",
        "timeout",
        "upgrades",
        "tunnel_idle",
        "retry",
        "deadline_header",
        "caller_may",
        "priority",
    ],
};
pub(super) static CALLER_MAY: Section = Section {
    path: "route.caller_may",
    header: "`caller_may` of a [[route]]",
    keys: &["attempts_max", "timeout_max", "attempt_timeout_max"],
};
pub(super) static ROUTE_MATCH: Section = Section {
    path: "route.match",
    header: "`match` of a [[route]]",
    keys: &[
        "methods",
        "headers",
        "query",
        "cookies",
        "from",
        "labels",
        "sources",
        "ports",
        "listeners",
        "grpc",
    ],
};
pub(super) static ROUTE_GRPC: Section = Section {
    path: "route.match.grpc",
    header: "`grpc` in `match` of a [[route]]",
    keys: &["service", "method"],
};
/// Beside the others: the names above it are the operator's.
pub(super) static ROUTE_TEST: Section = Section {
    path: "route.match",
    header: "a test in `match` of a [[route]]",
    keys: &["exact", "prefix", "suffix", "regex", "present", "range", "not"],
};
pub(super) static SPLIT: Section = Section {
    path: "route.split",
    header: "a share of `split` in a [[route]]",
    keys: &["service", "weight", "subset"],
};
pub(super) static STICKY: Section = Section {
    path: "route.sticky",
    header: "`sticky` of a [[route]]",
    keys: &["header", "cookie", "source", "identity", "set_cookie"],
};
pub(super) static SET_COOKIE: Section = Section {
    path: "route.sticky.set_cookie",
    header: "`set_cookie` of `sticky` in a [[route]]",
    keys: &["name", "ttl", "path", "secure", "http_only", "same_site"],
};
pub(super) static REDIRECT: Section = Section {
    path: "route.redirect",
    header: "`redirect` of a [[route]]",
    keys: &[
        "status",
        "scheme",
        "host",
        "port",
        "path",
        "path_prefix",
        "path_template",
        "path_regex",
        "path_to",
        "query",
    ],
};
pub(super) static RESPOND: Section = Section {
    path: "route.respond",
    header: "`respond` of a [[route]]",
    keys: &["status", "body", "content_type", "headers"],
};
pub(super) static REWRITE: Section = Section {
    path: "route.rewrite",
    header: "`rewrite` of a [[route]]",
    keys: &["path", "path_prefix", "path_template", "path_regex", "path_to", "query", "host"],
};
pub(super) static REQUEST_HEADERS: Section = Section {
    path: "route.request_headers",
    header: "`request_headers` of a [[route]]",
    keys: &["set", "add", "remove"],
};
pub(super) static RESPONSE_HEADERS: Section = Section {
    path: "route.response_headers",
    header: "`response_headers` of a [[route]]",
    keys: &["set", "add", "remove"],
};
pub(super) static CORS: Section = Section {
    path: "route.cors",
    header: "`cors` of a [[route]]",
    keys: &["origins", "methods", "headers", "expose", "max_age", "credentials"],
};
pub(super) static CORS_ORIGIN: Section = Section {
    path: "route.cors.origins",
    header: "an entry of `origins` in `cors` of a [[route]]",
    keys: &["regex"],
};
pub(super) static MIRROR: Section = Section {
    path: "route.mirror",
    header: "an entry of `mirror` in a [[route]]",
    keys: &["service", "percent"],
};
pub(super) static FAULT: Section = Section {
    path: "route.fault",
    header: "`fault` of a [[route]]",
    keys: &["delay", "abort", "truncate", "bandwidth", "by_header"],
};
pub(super) static FAULT_DELAY: Section = Section {
    path: "route.fault.delay",
    header: "`delay` of `fault` in a [[route]]",
    keys: &["percent", "fixed", "least", "most", "exponential", "normal", "deviation"],
};
pub(super) static FAULT_ABORT: Section = Section {
    path: "route.fault.abort",
    header: "`abort` of `fault` in a [[route]]",
    keys: &["percent", "status", "grpc_status", "reset", "half_open_max"],
};
pub(super) static FAULT_TRUNCATE: Section = Section {
    path: "route.fault.truncate",
    header: "`truncate` of `fault` in a [[route]]",
    keys: &["percent", "after", "after_percent"],
};
pub(super) static FAULT_BANDWIDTH: Section = Section {
    path: "route.fault.bandwidth",
    header: "`bandwidth` of `fault` in a [[route]]",
    keys: &["percent", "request_rate", "response_rate"],
};
pub(super) static WORKLOAD: Section =
    Section { path: "workload", header: "[[workload]]", keys: &["name", "from", "sources", "labels"] };
pub(super) static AUTHORIZATION: Section = Section {
    path: "authorization",
    header: "[[authorization]]",
    keys: &["name", "action", "listeners", "from", "sources", "ports", "methods", "paths", "headers"],
};

pub(super) static CANARY: Section = Section {
    path: "canary",
    header: "[[canary]]",
    keys: &[
        "name",
        "route",
        "baseline",
        "canary",
        "steps",
        "step_time",
        "samples_min",
        "errors_tolerated",
        "latency_tolerated",
        "false_alarms_max",
        "state",
    ],
};

/// All of them, in the order of `config/reference.toml`.
pub(super) static SECTIONS: &[&Section] = &[
    &TOP,
    &ADMIN,
    &ACCESS_LOG,
    &LIMITS,
    &TIMEOUTS,
    &HTTP2,
    &FORWARDING,
    &OVERLOAD,
    &TRACING,
    &IDENTITY,
    &FEDERATED,
    &ZONE,
    &LISTENER,
    &SERVICE,
    &ENDPOINT,
    &POOL,
    &SERVICE_TIMEOUTS,
    &SERVICE_HTTP2,
    &HASH,
    &CONSISTENT,
    &ZONES,
    &SLOW_START,
    &SUBSET,
    &BREAKER,
    &SERVICE_RETRY,
    &PROBE,
    &CAPS,
    &CONCURRENCY,
    &ADMISSION,
    &ROUTE,
    &CALLER_MAY,
    &ROUTE_MATCH,
    &ROUTE_GRPC,
    &ROUTE_RETRY,
    &SPLIT,
    &STICKY,
    &SET_COOKIE,
    &REDIRECT,
    &RESPOND,
    &REWRITE,
    &REQUEST_HEADERS,
    &RESPONSE_HEADERS,
    &CORS,
    &CORS_ORIGIN,
    &MIRROR,
    &FAULT,
    &FAULT_DELAY,
    &FAULT_ABORT,
    &FAULT_TRUNCATE,
    &FAULT_BANDWIDTH,
    &WORKLOAD,
    &AUTHORIZATION,
    &RATE_LIMIT,
    &RATE_LIMIT_BY,
    &CANARY,
];

/// Words of other proxies for what is called otherwise here.
pub(super) static ELSEWHERE: [(&str, &str); 20] = [
    ("cluster", "service"),
    ("clusters", "service"),
    ("backend", "service"),
    ("backends", "service"),
    ("upstream", "service"),
    ("upstreams", "service"),
    ("frontend", "listener"),
    ("bind", "listener"),
    ("server", "listener"),
    ("listen", "address"),
    ("servers", "endpoints"),
    ("virtual_hosts", "route"),
    ("lb_policy", "balance"),
    ("principals", "from"),
    ("policy", "authorization"),
    ("mtls", "tls"),
    ("sni", "server_name"),
    ("cert", "certificate"),
    ("private_key", "key"),
    ("trust_bundle", "bundle"),
];
