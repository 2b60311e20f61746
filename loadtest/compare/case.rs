//! The cases of a comparison: what load each has, what stands around the proxy, and which bars ringmesh is measured by.
//!
//! Called by `compare`. The bars are the project's own aims; a summary says which were reached.

use clap::ValueEnum;

use super::peer::{Kind, Shape};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CaseName {
    /// HTTP/1.1 keep-alive, 64 connections, closed loop, 1 KiB.
    A,
    /// As a, with 100 KiB.
    E,
    /// 5 000 requests/s, open loop, 64 connections, 1 KiB.
    Open,
    /// HTTP/2 in plain text on both sides, 8 connections of 16 streams, 1 KiB.
    H2,
    /// The same, with HTTP/1.1 to the origin.
    H2h1,
    /// HTTP/1.1 from callers as in a, HTTP/2 in plain text to the origin.
    H1h2,
    /// TLS 1.3 from callers, HTTP/1.1 keep-alive, 64 connections, 1 KiB.
    Tls,
    /// A full TLS 1.3 handshake for each request.
    Handshake,
    /// Through two proxies with mTLS between them, both on the proxy's CPU; CPU is the sum.
    Mesh,
    /// As a, with whatever decides or limits configured, and nothing of it having cause to.
    Policies,
    /// The client straight to the origin, as a further row of each case with load.
    Direct,
    /// Resident memory idle and with 1 000 idle connections, plain and TLS, and start time.
    Memory,
    /// All of them.
    All,
}

/// A case with load.
pub(super) struct Case {
    pub(super) name: CaseName,
    pub(super) key: &'static str,
    pub(super) title: &'static str,
    pub(super) target: &'static str,
    pub(super) rate: Option<f64>,
    pub(super) shape: Shape,
    pub(super) connections: usize,
    /// Exchanges at a time on each connection of HTTP/2; `None`: HTTP/1.1.
    pub(super) streams: Option<usize>,
    pub(super) new_connection: bool,
}

impl Case {
    pub(super) fn tls(&self) -> bool {
        self.shape == Shape::Tls
    }
}

const PLAIN: Case = Case {
    name: CaseName::A,
    key: "a",
    title: "HTTP/1.1 keep-alive, 64 connections, closed loop, 1 KiB",
    target: "/size/1024",
    rate: None,
    shape: Shape::Plain,
    connections: 64,
    streams: None,
    new_connection: false,
};

pub(super) const CASES: [Case; 10] = [
    PLAIN,
    Case {
        name: CaseName::E,
        key: "e",
        title: "HTTP/1.1 keep-alive, 64 connections, closed loop, 100 KiB",
        target: "/size/102400",
        ..PLAIN
    },
    Case {
        name: CaseName::Open,
        key: "open",
        title: "HTTP/1.1 keep-alive, 64 connections, open loop at 5 000 requests/s, 1 KiB",
        rate: Some(5000.0),
        ..PLAIN
    },
    Case {
        name: CaseName::H2,
        key: "h2",
        title: "HTTP/2 in plain text on both sides, 8 connections of 16 streams, closed loop, 1 KiB",
        shape: Shape::H2,
        connections: 8,
        streams: Some(16),
        ..PLAIN
    },
    Case {
        name: CaseName::H2h1,
        key: "h2h1",
        title: "HTTP/2 in plain text from callers, HTTP/1.1 to the origin, 8 connections of 16 streams, closed loop, 1 KiB",
        shape: Shape::H2h1,
        connections: 8,
        streams: Some(16),
        ..PLAIN
    },
    Case {
        name: CaseName::H1h2,
        key: "h1h2",
        title: "HTTP/1.1 keep-alive, HTTP/2 in plain text to the origin, 64 connections, closed loop, 1 KiB",
        shape: Shape::H1h2,
        ..PLAIN
    },
    Case {
        name: CaseName::Tls,
        key: "tls",
        title: "TLS 1.3 from callers, HTTP/1.1 keep-alive, 64 connections, closed loop, 1 KiB",
        shape: Shape::Tls,
        ..PLAIN
    },
    Case {
        name: CaseName::Handshake,
        key: "handshake",
        title: "A full TLS 1.3 handshake (X25519, P-256) for each request, 64 at a time, closed loop, 1 KiB",
        shape: Shape::Tls,
        new_connection: true,
        ..PLAIN
    },
    Case {
        name: CaseName::Mesh,
        key: "mesh",
        title: "Through two proxies with mTLS between them, HTTP/1.1 keep-alive around, 64 connections, closed loop, 1 KiB",
        shape: Shape::Mesh,
        ..PLAIN
    },
    Case {
        name: CaseName::Policies,
        key: "policies",
        title: "As a, ringmesh once more with 60 routes by conditions, a split that sticks to a header, caps, a retry policy and rules of \
                authorization, none of which refuses or repeats anything",
        shape: Shape::Policies,
        ..PLAIN
    },
];

/// What ringmesh is to reach.
pub(super) struct Bar {
    pub(super) of: Kind,
    pub(super) case: &'static str,
    /// A number of a row.
    pub(super) number: &'static str,
    pub(super) what: &'static str,
    /// Relative to the best of these, or as it is if there are none.
    pub(super) relative_to: &'static [Kind],
    pub(super) at_most: f64,
}

const HAPROXY: &[Kind] = &[Kind::Haproxy, Kind::HaproxyH2];
const NGINX: &[Kind] = &[Kind::Nginx];
const ENVOY: &[Kind] = &[Kind::Envoy];

const fn cpu(case: &'static str, relative_to: &'static [Kind], at_most: f64) -> Bar {
    Bar { of: Kind::Ringmesh, case, number: "cpu_us", what: "CPU µs/request", relative_to, at_most }
}

pub(super) const BARS: [Bar; 17] = [
    cpu("h2", HAPROXY, 0.95),
    cpu("h2", ENVOY, 0.6),
    cpu("h2h1", HAPROXY, 0.95),
    cpu("h2h1", ENVOY, 0.6),
    cpu("tls", HAPROXY, 0.75),
    cpu("tls", NGINX, 0.75),
    cpu("tls", ENVOY, 0.3),
    cpu("handshake", HAPROXY, 0.65),
    cpu("handshake", NGINX, 0.65),
    cpu("handshake", ENVOY, 0.7),
    cpu("mesh", HAPROXY, 0.85),
    cpu("mesh", ENVOY, 0.25),
    Bar { of: Kind::OneField, ..cpu("mesh", HAPROXY, 0.85) },
    Bar { of: Kind::Policies, ..cpu("policies", &[Kind::Ringmesh], 1.05) },
    Bar { of: Kind::Policies, ..cpu("policies", HAPROXY, 0.95) },
    // 14 MB
    Bar {
        of: Kind::Ringmesh,
        case: "memory",
        number: "idle_kib",
        what: "idle KiB",
        relative_to: &[],
        at_most: 13_671.0,
    },
    Bar {
        of: Kind::Ringmesh,
        case: "memory",
        number: "tls_per_connection_kib",
        what: "KiB per idle TLS connection after a request",
        relative_to: &[],
        at_most: 10.0,
    },
];
