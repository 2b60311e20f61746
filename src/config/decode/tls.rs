//! `[identity]`, `[http2]`, and what listeners and services say about TLS and HTTP/2. Which of these keys go together is
//! seen by `compile`. Called by `decode`.

use std::path::PathBuf;
use std::time::Duration;

use super::super::compiled::TlsVersion;
use super::super::defaults::{self, Key};
use super::super::raw::{
    At, Has, ListenerTlsWord, RawFederated, RawHttp2, RawIdentity, RawListener, RawServiceTls,
    ServiceTlsWord, SourceWord,
};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::Place;
use super::super::{policy_text, schema, values};
use super::{missing, name, once, word};

/// How `identity.source` is written.
pub(in crate::config) const SOURCE_WORDS: [(&str, SourceWord); 3] = [
    ("embedded", SourceWord::Embedded),
    ("files", SourceWord::Files),
    ("workload-api", SourceWord::WorkloadApi),
];

/// How `listener.tls` is written.
pub(in crate::config) const LISTENER_TLS_WORDS: [(&str, ListenerTlsWord); 4] = [
    ("off", ListenerTlsWord::Off),
    ("permissive", ListenerTlsWord::Permissive),
    ("strict", ListenerTlsWord::Strict),
    ("terminate", ListenerTlsWord::Terminate),
];

/// How `service.tls` is written.
pub(in crate::config) const SERVICE_TLS_WORDS: [(&str, ServiceTlsWord); 3] =
    [("off", ServiceTlsWord::Off), ("mesh", ServiceTlsWord::Mesh), ("edge", ServiceTlsWord::Edge)];

/// How `listener.tls_version_min` is written.
pub(in crate::config) const VERSION_WORDS: [(&str, TlsVersion); 2] =
    [("1.3", TlsVersion::V1_3), ("1.2", TlsVersion::V1_2)];

pub(super) fn identity(reader: &mut Reader<'_>, item: &Item<'_>, raw: &mut RawIdentity) {
    let errors_before = reader.problems.errors();
    raw.place.get_or_insert_with(|| reader.place(item.span()));
    if let Some(table) = reader.table(&schema::IDENTITY, item) {
        identity_keys(reader, &table, raw);
    }
    raw.is_wrong |= reader.problems.errors() > errors_before;
}

fn identity_keys(reader: &mut Reader<'_>, table: &Opened<'_>, raw: &mut RawIdentity) {
    if let Some(item) = table.value("source") {
        let value = reader.choice("identity.source", item, &SOURCE_WORDS);
        once(reader, "identity.source", &mut raw.source, value);
    }
    if let Some(item) = table.value("trust_domain") {
        let key = "identity.trust_domain";
        let value = reader.parsed(key, item, defaults::TRUST_DOMAIN, policy_text::trust_domain);
        once(reader, key, &mut raw.trust_domain, value);
    }
    if let Some(item) = table.value("id") {
        let value = reader.parsed("identity.id", item, ID_EXAMPLE, policy_text::id);
        once(reader, "identity.id", &mut raw.id, value);
    }
    if let Some(item) = table.value("leaf_ttl") {
        let value = reader.duration(&defaults::LEAF_TTL, item);
        once(reader, defaults::LEAF_TTL.name, &mut raw.leaf_ttl, value);
    }
    if let Some(item) = table.value("socket") {
        let example = "unix:/run/spire/agent.sock";
        let value = reader.parsed("identity.socket", item, example, policy_text::workload_socket);
        once(reader, "identity.socket", &mut raw.socket, value);
    }
    for (name, full, example, slot) in [
        ("folder", "identity.folder", defaults::FOLDER, &mut raw.folder),
        ("certificate", "identity.certificate", "/etc/ringmesh/chain.pem", &mut raw.certificate),
        ("key", "identity.key", "/etc/ringmesh/key.pem", &mut raw.key),
        ("bundle", "identity.bundle", "/etc/ringmesh/bundle.pem", &mut raw.bundle),
    ] {
        if let Some(item) = table.value(name) {
            let value = reader.parsed(full, item, example, policy_text::file);
            once(reader, full, slot, value);
        }
    }
    if let Some(item) = table.value("federated") {
        let value = federated(reader, item);
        once(reader, "identity.federated", &mut raw.federated, value);
    }
}

/// What an id looks like.
pub(super) const ID_EXAMPLE: &str = "spiffe://mesh.local/ns/default/sa/shop";

fn federated(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<RawFederated>>> {
    let tables = reader.tables(&schema::FEDERATED, item, defaults::FEDERATED_MAX);
    let mut variable = 0;
    let mut federated = Vec::with_capacity(tables.len());
    for (table, place) in tables {
        let of = "a federated trust domain";
        if table.value("trust_domain").is_none() {
            missing(reader, place, "trust_domain", of, "trust_domain = \"partner.example\"");
        }
        if table.value("bundle").is_none() {
            missing(reader, place, "bundle", of, "bundle = \"/etc/ringmesh/partner.pem\"");
        }
        let domain = table.value("trust_domain").and_then(|item| {
            let key = "identity.federated.trust_domain";
            reader.parsed(key, item, "partner.example", policy_text::trust_domain)
        });
        let bundle =
            table.value("bundle").and_then(|item| file(reader, "identity.federated.bundle", item, "partner"));
        for used in [domain.as_ref().map(|at| at.variable), bundle.as_ref().map(|at| at.variable)] {
            variable = if variable > 0 { variable } else { used.unwrap_or(0) };
        }
        if let (Some(domain), Some(bundle)) = (domain, bundle) {
            let place = domain.place;
            federated.push(RawFederated { place, trust_domain: domain.value, bundle: bundle.value });
        }
    }
    Some(At { value: federated, place: reader.place(item.span()), variable })
}

fn file(reader: &mut Reader<'_>, key: &str, item: &Item<'_>, example: &str) -> Option<At<PathBuf>> {
    reader.parsed(key, item, &format!("/etc/ringmesh/{example}.pem"), policy_text::file)
}

pub(super) fn listener(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawListener {
    let name = table.value("name").and_then(|item| name(reader, "listener.name", item, "inbound"));
    let address = table.value("address").and_then(|item| {
        reader.parsed("listener.address", item, "127.0.0.1:15001", |text| {
            values::listen_address(text, "127.0.0.1:15001")
        })
    });
    if table.value("address").is_none() {
        missing(reader, place, "address", "a listener", "address = \"127.0.0.1:15001\"");
    }
    RawListener {
        place,
        has: has(reader, table, &["tls", "certificate", "key", "tls_version_min"]),
        name,
        address,
        tls: table.value("tls").and_then(|item| reader.choice("listener.tls", item, &LISTENER_TLS_WORDS)),
        certificate: table
            .value("certificate")
            .and_then(|item| file(reader, "listener.certificate", item, "shop.example")),
        key: table.value("key").and_then(|item| file(reader, "listener.key", item, "shop.example.key")),
        version_min: table
            .value("tls_version_min")
            .and_then(|item| reader.choice("listener.tls_version_min", item, &VERSION_WORDS)),
        grpc_web: table.value("grpc_web").and_then(|item| reader.flag("listener.grpc_web", item)),
    }
}

fn has(reader: &Reader<'_>, table: &Opened<'_>, keys: &[&'static str]) -> Has {
    keys.iter().filter_map(|&key| Some((key, reader.place(table.value(key)?.span())))).collect()
}

/// What a service says about TLS.
pub(super) fn service(reader: &mut Reader<'_>, table: &Opened<'_>) -> RawServiceTls {
    RawServiceTls {
        has: has(reader, table, &["tls", "identities", "server_name", "ca"]),
        tls: table.value("tls").and_then(|item| reader.choice("service.tls", item, &SERVICE_TLS_WORDS)),
        identities: table.value("identities").and_then(|item| {
            let grammar = policy_text::identity_of_service;
            if !super::policy::not_empty(reader, "service.identities", item) {
                return None;
            }
            super::policy::entries(reader, "service.identities", item, ID_EXAMPLE, grammar)
        }),
        server_name: table.value("server_name").and_then(|item| {
            reader.parsed("service.server_name", item, "api.example", policy_text::server_name)
        }),
        ca: table.value("ca").and_then(|item| file(reader, "service.ca", item, "roots")),
    }
}

/// `[http2]`.
pub(super) fn http2(reader: &mut Reader<'_>, table: &Opened<'_>, raw: &mut RawHttp2) {
    let read = http2_keys(reader, table, &HTTP2_KEYS);
    once(reader, HTTP2_KEYS.streams_max.name, &mut raw.streams_max, read.streams_max);
    once(reader, HTTP2_KEYS.stream_window.name, &mut raw.stream_window, read.stream_window);
    once(reader, HTTP2_KEYS.connection_window.name, &mut raw.connection_window, read.connection_window);
    once(reader, HTTP2_KEYS.ping_interval.name, &mut raw.ping_interval, read.ping_interval);
    once(reader, HTTP2_KEYS.ping_timeout.name, &mut raw.ping_timeout, read.ping_timeout);
}

/// `http2` of a service.
pub(super) fn service_http2(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RawHttp2> {
    let table = reader.table(&schema::SERVICE_HTTP2, item)?;
    let mut raw = http2_keys(reader, &table, &SERVICE_HTTP2_KEYS);
    raw.connections_max = table
        .value("connections_max")
        .and_then(|item| reader.count(&defaults::SERVICE_CONNECTIONS_MAX, item));
    Some(raw)
}

struct Http2Keys {
    streams_max: Key<u32>,
    stream_window: Key<u64>,
    connection_window: Key<u64>,
    ping_interval: Key<Duration>,
    ping_timeout: Key<Duration>,
}

static HTTP2_KEYS: Http2Keys = Http2Keys {
    streams_max: defaults::STREAMS_MAX,
    stream_window: defaults::STREAM_WINDOW,
    connection_window: defaults::CONNECTION_WINDOW,
    ping_interval: defaults::PING_INTERVAL,
    ping_timeout: defaults::PING_TIMEOUT,
};

static SERVICE_HTTP2_KEYS: Http2Keys = Http2Keys {
    streams_max: defaults::SERVICE_STREAMS_MAX,
    stream_window: defaults::SERVICE_STREAM_WINDOW,
    connection_window: defaults::SERVICE_CONNECTION_WINDOW,
    ping_interval: defaults::SERVICE_PING_INTERVAL,
    ping_timeout: defaults::SERVICE_PING_TIMEOUT,
};

fn http2_keys(reader: &mut Reader<'_>, table: &Opened<'_>, keys: &Http2Keys) -> RawHttp2 {
    RawHttp2 {
        connections_max: None,
        streams_max: table.value("streams_max").and_then(|item| reader.count(&keys.streams_max, item)),
        stream_window: table.value("stream_window").and_then(|item| reader.size(&keys.stream_window, item)),
        connection_window: table
            .value("connection_window")
            .and_then(|item| reader.size(&keys.connection_window, item)),
        ping_interval: table.value("ping_interval").and_then(|item| {
            match word(reader, keys.ping_interval.name, item, "off") {
                Some(off) => Some(off.with(Duration::ZERO)),
                None => reader.duration(&keys.ping_interval, item),
            }
        }),
        ping_timeout: table.value("ping_timeout").and_then(|item| reader.duration(&keys.ping_timeout, item)),
    }
}
