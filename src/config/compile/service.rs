//! Listeners and services with their defaults filled in. Called by `compile`, once everything is checked.

use std::sync::Arc;

use super::super::compiled::{CompiledListener, CompiledService, Declared, EdgeFiles, TerminationFiles};
use super::super::defaults;
use super::super::raw::{ListenerTlsWord, RawEndpoint, RawHttp2, RawListener, RawService, ServiceTlsWord};
use super::super::values::Target;
use super::{From, narrow, numbered_name, value_or};
use crate::snapshot::{Listener, ListenerTls};
use crate::upstream::budget;
use crate::upstream::spec::{self, Address, Endpoint, Service};

/// `None` without an address, which is reported by then.
pub(super) fn listener(raw: RawListener, index: usize, from: &From<'_>) -> Option<CompiledListener> {
    let address = raw.address?;
    let marks = [
        from.mark(address.place, address.variable),
        from.mark_of(raw.tls.as_ref()),
        from.mark_of(raw.certificate.as_ref()),
        from.mark_of(raw.key.as_ref()),
        from.mark_of(raw.version_min.as_ref()),
        from.mark_of(raw.grpc_web.as_ref()),
    ];
    let tls = match value_or(raw.tls, ListenerTlsWord::Off) {
        ListenerTlsWord::Off => ListenerTls::Off,
        ListenerTlsWord::Permissive => ListenerTls::Permissive,
        // Until control has read certificate and key, nobody is let in.
        ListenerTlsWord::Strict | ListenerTlsWord::Terminate => ListenerTls::Strict,
    };
    let termination = match (raw.certificate, raw.key) {
        (Some(certificate), Some(key)) => Some(TerminationFiles {
            certificate: certificate.value,
            key: key.value,
            version_min: value_or(raw.version_min, defaults::TLS_VERSION_MIN),
        }),
        _ => None,
    };
    let name = raw.name.map_or_else(|| numbered_name("listener", index), |at| at.value);
    let listener =
        Listener { name, address: address.value, tls, grpc_web: value_or(raw.grpc_web, defaults::GRPC_WEB) };
    Some(CompiledListener { listener, termination, marks })
}

pub(super) fn service(raw: RawService, own_zone: Option<&Arc<str>>, from: &From<'_>) -> CompiledService {
    let http2 = raw.http2.map_or_else(RawHttp2::default, |boxed| *boxed);
    let marks = [
        from.mark_of(raw.balance.as_ref()),
        from.mark_of(raw.endpoints.as_ref()),
        from.mark_of(raw.connect_attempts_max.as_ref()),
        from.mark_of(raw.protocol.as_ref()),
        from.mark_of(raw.tls.tls.as_ref()),
        from.mark_of(raw.tls.identities.as_ref()),
        from.mark_of(raw.tls.server_name.as_ref()),
        from.mark_of(raw.tls.ca.as_ref()),
        from.mark_of(raw.idle_max.as_ref()),
        from.mark_of(raw.idle_timeout.as_ref()),
        from.mark_of(raw.connections_max.as_ref()),
        from.mark_of(raw.connect.as_ref()),
        from.mark_of(raw.response.as_ref()),
        from.mark_of(raw.body_stall.as_ref()),
        from.mark_of(http2.connections_max.as_ref()),
        from.mark_of(http2.streams_max.as_ref()),
        from.mark_of(http2.stream_window.as_ref()),
        from.mark_of(http2.connection_window.as_ref()),
        from.mark_of(http2.ping_interval.as_ref()),
        from.mark_of(http2.ping_timeout.as_ref()),
    ];
    let (probe, probe_marks) = super::probe::probe(raw.probe.as_deref(), from);
    let (breaker, breaker_marks) = super::breaker::breaker(raw.breaker.as_deref(), from);
    let retry = raw.retry.map(|raw| super::retry::retry(*raw, from));
    let caps = super::caps::caps(
        raw.caps.map(|boxed| *boxed),
        raw.concurrency.map(|boxed| *boxed),
        raw.admission.map(|boxed| *boxed),
        from,
    );
    let tls = *raw.tls;
    let (tls, edge) = match value_or(tls.tls, ServiceTlsWord::Off) {
        ServiceTlsWord::Off => (spec::Tls::Off, None),
        ServiceTlsWord::Mesh => (spec::Tls::Mesh(value_or(tls.identities, Vec::new())), None),
        ServiceTlsWord::Edge => {
            let ca = tls.ca.map(|at| at.value);
            // Until the files have been read it is like a service of the mesh: nothing is sent in plain text.
            let until_read = spec::Tls::Mesh(Vec::new());
            (until_read, tls.server_name.map(|at| EdgeFiles { server_name: at.value, ca }))
        }
    };
    let balance = value_or(raw.balance, defaults::BALANCE);
    let (choice, choice_marks) = super::balance::choice(*raw.choice, balance, own_zone, from);
    let declared = raw.endpoints.map(|at| at.value).unwrap_or_default();
    let named = declared.iter().any(|endpoint| matches!(endpoint.target, Target::Name(..)));
    let mut service = Service {
        name: raw.name.map_or_else(|| "".into(), |at| at.value),
        balance,
        endpoints: Vec::new(),
        pool: spec::Pool {
            idle_max: value_or(raw.idle_max, defaults::POOL_IDLE_MAX.default),
            idle_timeout: value_or(raw.idle_timeout, defaults::POOL_IDLE_TIMEOUT.default),
            connections_max: value_or(raw.connections_max, defaults::POOL_CONNECTIONS_MAX.default),
        },
        timeouts: spec::Timeouts {
            connect: value_or(raw.connect, defaults::CONNECT.default),
            response: value_or(raw.response, defaults::RESPONSE.default),
            body_stall: value_or(raw.body_stall, defaults::SERVICE_BODY_STALL.default),
        },
        connect_attempts_max: value_or(raw.connect_attempts_max, defaults::CONNECT_ATTEMPTS_MAX.default),
        protocol: value_or(raw.protocol, defaults::PROTOCOL),
        tls,
        http2: spec::Http2 {
            connections_max: value_or(http2.connections_max, defaults::SERVICE_CONNECTIONS_MAX.default),
            streams_max: value_or(http2.streams_max, defaults::SERVICE_STREAMS_MAX.default),
            stream_window: narrow(value_or(http2.stream_window, defaults::SERVICE_STREAM_WINDOW.default)),
            connection_window: narrow(value_or(
                http2.connection_window,
                defaults::SERVICE_CONNECTION_WINDOW.default,
            )),
            ping_interval: value_or(http2.ping_interval, defaults::SERVICE_PING_INTERVAL.default),
            ping_timeout: value_or(http2.ping_timeout, defaults::SERVICE_PING_TIMEOUT.default),
        },
        choice,
        planned: spec::Planned::default(),
        breaker,
        retry: retry.as_ref().map_or_else(super::retry::default_policy, |retry| Arc::clone(&retry.policy)),
        meter: budget::Shared::default(),
        probe,
        caps: caps.declared(),
    };
    let declared = if named {
        Some(
            declared
                .into_iter()
                .map(|RawEndpoint { target, weight, zone, priority, labels, drain, .. }| Declared {
                    target,
                    weight,
                    zone,
                    priority,
                    labels,
                    drain,
                })
                .collect(),
        )
    } else {
        service.endpoints = addresses(declared);
        None
    };
    CompiledService {
        service: Arc::new(service),
        declared,
        edge,
        caps,
        marks,
        choice_marks,
        breaker_marks,
        probe_marks,
        retry,
    }
}

/// Whether there is one endpoint and never more: a name may stand for several.
pub(super) fn is_alone(service: &RawService) -> bool {
    let endpoints = service.endpoints.as_ref().map_or(&[][..], |at| &at.value);
    let Some((first, rest)) = endpoints.split_first() else { return false };
    !matches!(first.target, Target::Name(..)) && rest.iter().all(|other| other.target == first.target)
}

/// Endpoints that need no resolving, each address once.
fn addresses(declared: Vec<RawEndpoint>) -> Vec<Endpoint> {
    let mut seen = std::collections::HashSet::with_capacity(declared.len());
    let mut endpoints = Vec::with_capacity(declared.len());
    for RawEndpoint { target, weight, zone, priority, labels, drain, .. } in declared {
        let address = match target {
            Target::Ip(address) => Address::Ip(address),
            Target::Unix(path) => Address::Unix(path),
            Target::Name(..) => continue,
        };
        if seen.insert(address.clone()) {
            endpoints.push(Endpoint { address, weight, zone, priority, labels, drain });
        }
    }
    endpoints
}
