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
        "admin",
        "access_log",
        "limits",
        "timeouts",
        "forwarding",
        "listener",
        "service",
        "route",
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
        "fields_max",
        "body_bytes_max",
        "connections_max",
        "interim_responses_max",
    ],
};
pub(super) static TIMEOUTS: Section =
    Section { path: "timeouts", header: "[timeouts]", keys: &["head", "idle", "body_stall", "drain"] };
pub(super) static FORWARDING: Section =
    Section { path: "forwarding", header: "[forwarding]", keys: &["via", "forwarded", "failure_header"] };
pub(super) static LISTENER: Section =
    Section { path: "listener", header: "[[listener]]", keys: &["name", "address"] };
pub(super) static SERVICE: Section = Section {
    path: "service",
    header: "[[service]]",
    keys: &["name", "balance", "endpoints", "connect_attempts_max", "pool", "timeouts"],
};
pub(super) static ENDPOINT: Section = Section {
    path: "service.endpoints",
    header: "an endpoint of a [[service]]",
    keys: &["address", "weight", "zone"],
};
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
pub(super) static ROUTE: Section = Section {
    path: "route",
    header: "[[route]]",
    keys: &["name", "hosts", "path", "path_prefix", "service", "timeout"],
};

/// All of them, in the order of `config/reference.toml`.
pub(super) static SECTIONS: [&Section; 12] = [
    &TOP,
    &ADMIN,
    &ACCESS_LOG,
    &LIMITS,
    &TIMEOUTS,
    &FORWARDING,
    &LISTENER,
    &SERVICE,
    &ENDPOINT,
    &POOL,
    &SERVICE_TIMEOUTS,
    &ROUTE,
];

/// Words of other proxies for what is called otherwise here.
pub(super) static ELSEWHERE: [(&str, &str); 13] = [
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
];
