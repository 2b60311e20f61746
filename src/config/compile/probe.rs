//! `[service.probe]` with its defaults filled in, and what of it does not fit together. Called by `compile`.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::compiled::{CompiledService, ProbeMarks};
use super::super::decode::{PROBE_WORDS, START_WORDS};
use super::super::defaults;
use super::super::effective::PROBE_KEYS;
use super::super::raw::{ProbeWord, Raw, RawProbe, RawService, ServiceTlsWord};
use super::super::report::{Problem, Problems};
use super::super::values::{Target, duration_text, quoted};
use super::{From, value_or};
use crate::upstream::spec::{Probe, ProbeKind};

/// The probes of a service, and where they came from; `None` where it has none.
pub(super) fn probe(
    raw: Option<&RawProbe>,
    from: &From<'_>,
) -> (Option<Arc<Probe>>, Option<Box<ProbeMarks>>) {
    let Some((raw, word)) = raw.and_then(|raw| Some((raw, raw.kind?.value))) else { return (None, None) };
    let marks = [
        from.mark_of(raw.kind.as_ref()),
        from.mark_of(raw.path.as_ref()),
        from.mark_of(raw.host.as_ref()),
        from.mark_of(raw.statuses.as_ref()),
        from.mark_of(raw.grpc_service.as_ref()),
        from.mark_of(raw.port.as_ref()),
        from.mark_of(raw.interval.as_ref()),
        from.mark_of(raw.interval_unhealthy.as_ref()),
        from.mark_of(raw.timeout.as_ref()),
        from.mark_of(raw.healthy.as_ref()),
        from.mark_of(raw.unhealthy.as_ref()),
        from.mark_of(raw.jitter_percent.as_ref()),
        from.mark_of(raw.start.as_ref()),
    ];
    let kind = match word {
        ProbeWord::Http => ProbeKind::Http {
            path: raw.path.as_ref().map_or_else(|| defaults::PROBE_PATH.into(), |at| at.value.clone()),
            host: raw.host.as_ref().map(|at| at.value.clone()),
            statuses: raw
                .statuses
                .as_ref()
                .map_or_else(|| vec![defaults::PROBE_STATUSES], |at| at.value.clone())
                .into(),
        },
        ProbeWord::Grpc => ProbeKind::Grpc {
            service: raw.grpc_service.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        },
        ProbeWord::Tcp => ProbeKind::Tcp,
        ProbeWord::Tls => ProbeKind::Tls,
    };
    let probe = Probe {
        kind,
        interval: value_or(raw.interval, defaults::PROBE_INTERVAL.default),
        interval_unhealthy: value_or(raw.interval_unhealthy, defaults::PROBE_INTERVAL_UNHEALTHY.default),
        timeout: value_or(raw.timeout, defaults::PROBE_TIMEOUT.default),
        healthy: value_or(raw.healthy, defaults::PROBE_HEALTHY.default),
        unhealthy: value_or(raw.unhealthy, defaults::PROBE_UNHEALTHY.default),
        jitter_percent: value_or(raw.jitter_percent, defaults::PROBE_JITTER_PERCENT.default),
        waits: value_or(raw.start, defaults::PROBE_WAITS),
        port: raw.port.map(|at| at.value),
    };
    (Some(Arc::new(probe)), Some(Box::new(marks)))
}

/// Adds the errors of how values fit together.
pub(super) fn check(services: &[RawService], problems: &mut Problems) {
    for service in services {
        let Some((raw, kind)) = service.probe.as_deref().and_then(|raw| Some((raw, raw.kind?))) else {
            continue;
        };
        let other = [
            ("path", ProbeWord::Http, raw.path.as_ref().map(|at| at.place)),
            ("host", ProbeWord::Http, raw.host.as_ref().map(|at| at.place)),
            ("statuses", ProbeWord::Http, raw.statuses.as_ref().map(|at| at.place)),
            ("grpc_service", ProbeWord::Grpc, raw.grpc_service.as_ref().map(|at| at.place)),
        ];
        for (key, goes_with, place) in other {
            if let Some(place) = place.filter(|_| kind.value != goes_with) {
                let word =
                    PROBE_WORDS.iter().find(|(_, word)| *word == goes_with).map_or("", |(text, _)| text);
                problems.error(|| {
                    Problem::at(place, format!("{key} goes with kind = \"{word}\" only"))
                        .other(kind.place, "the kind")
                        .help("take it out, or change the kind")
                });
            }
        }
        let is_plain = service.tls.tls.is_none_or(|tls| tls.value == ServiceTlsWord::Off);
        if kind.value == ProbeWord::Tls && is_plain {
            problems.error(|| {
                Problem::at(kind.place, "a TLS probe of a service that is spoken to in plain text")
                    .help("write kind = \"tcp\", or let the service have tls = \"mesh\" or \"edge\"")
            });
        }
    }
}

/// Warns where one port for all does not tell endpoints apart, or is none.
pub(in crate::config) fn warn(raw: &Raw, problems: &mut Problems) {
    for service in &raw.services {
        let Some(port) = service.probe.as_deref().and_then(|probe| probe.port) else { continue };
        let mut first = HashMap::new();
        for endpoint in service.endpoints.as_ref().map_or(&[][..], |at| &at.value) {
            let host = match &endpoint.target {
                Target::Ip(address) => address.ip().to_string(),
                Target::Name(name, _) => name.to_string(),
                Target::Unix(_) => {
                    problems.warn(|| {
                        Problem::at(
                            endpoint.place,
                            format!("{} has no port: it is probed where it is", endpoint.target),
                        )
                        .other(port.place, "the port for probes")
                        .help("take the port out, or give its service probes of its own")
                    });
                    continue;
                }
            };
            if let Some(&other) = first.get(&host) {
                problems.warn(|| {
                    let port = port.value;
                    Problem::at(endpoint.place, format!("endpoints of {host} are all probed at port {port}: what answers there decides for each"))
                        .other(other, "the first of them")
                        .help("take `port` out, so that each is probed where it is called")
                });
                break;
            }
            first.insert(host, endpoint.place);
        }
    }
}

/// What is in force, in the order of [`PROBE_KEYS`]; nothing of a service without probes.
pub(in crate::config) fn values(compiled: &CompiledService) -> [Option<String>; PROBE_KEYS.len()] {
    let Some(probe) = compiled.service.probe.as_deref() else { return [const { None }; PROBE_KEYS.len()] };
    let time = |duration| Some(quoted(&duration_text(duration)));
    let word = |kind| PROBE_WORDS.iter().find(|(_, word)| *word == kind).map(|(text, _)| quoted(text));
    let (kind, path, host, statuses, grpc_service) = match &probe.kind {
        ProbeKind::Http { path, host, statuses } => {
            let range = |(from, to): &(u16, u16)| {
                if from == to { from.to_string() } else { quoted(&format!("{from}-{to}")) }
            };
            let all = statuses.iter().map(range).collect::<Vec<_>>().join(", ");
            (ProbeWord::Http, Some(quoted(path)), host.as_deref().map(quoted), Some(format!("[{all}]")), None)
        }
        ProbeKind::Grpc { service } => (ProbeWord::Grpc, None, None, None, Some(quoted(service))),
        ProbeKind::Tcp => (ProbeWord::Tcp, None, None, None, None),
        ProbeKind::Tls => (ProbeWord::Tls, None, None, None, None),
    };
    [
        word(kind),
        path,
        host,
        statuses,
        grpc_service,
        probe.port.map(|port| port.to_string()),
        time(probe.interval),
        time(probe.interval_unhealthy),
        time(probe.timeout),
        Some(probe.healthy.to_string()),
        Some(probe.unhealthy.to_string()),
        Some(probe.jitter_percent.to_string()),
        START_WORDS.iter().find(|(_, waits)| *waits == probe.waits).map(|(text, _)| quoted(text)),
    ]
}
