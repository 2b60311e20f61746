//! `[tracing]`: fills in the defaults, and finds what does not go together.

use super::super::collector::{CollectorProtocol, Tracing};
use super::super::defaults;
use super::super::raw::{Raw, RawTracing};
use super::super::report::{Problem, Problems};
use super::super::values::quoted;
use super::From;
use crate::trace::{Formats, Rules};

pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    let RawTracing { endpoint: Some(endpoint), protocol, ca, .. } = &raw.tracing else { return };
    let protocol = protocol.map_or(defaults::TRACING_PROTOCOL, |at| at.value);
    if protocol == CollectorProtocol::Grpc && !endpoint.value.path.is_empty() {
        problems.error(|| {
            Problem::at(endpoint.place, "tracing.endpoint: gRPC has no path of its own")
                .help(format!("take `{}` out, or write protocol = \"http\"", endpoint.value.path))
        });
    }
    if let Some(ca) = ca.as_ref().filter(|_| !endpoint.value.encrypted) {
        problems.error(|| {
            Problem::at(ca.place, "tracing.ca: the endpoint is not encrypted")
                .other(endpoint.place, "the endpoint")
                .help("write https://, or take `ca` out")
        });
    }
}

pub(super) fn tracing(raw: RawTracing, from: &mut From<'_>) -> Option<Tracing> {
    let endpoint = raw.endpoint?;
    let sample = from.value("tracing.sample_percent", raw.sample_percent, defaults::sample_percent);
    let formats = from.value("tracing.propagate", raw.propagate, || Formats { b3: false });
    Some(Tracing {
        rules: Rules { sample, formats },
        protocol: from.value("tracing.protocol", raw.protocol, || defaults::TRACING_PROTOCOL),
        timeout: from.key(&defaults::TRACING_TIMEOUT, raw.timeout),
        waiting_bytes_max: from.key(&defaults::TRACING_WAITING_BYTES_MAX, raw.waiting_bytes_max),
        ca: raw.ca.map(|at| from.value("tracing.ca", Some(at), Default::default)),
        headers: from.value("tracing.headers", raw.headers, Default::default),
        service_name: raw.service_name.map(|at| from.value("tracing.service_name", Some(at), || "".into())),
        attributes: from.value("tracing.attributes", raw.attributes, Default::default),
        endpoint: {
            let default = endpoint.value.clone();
            from.value("tracing.endpoint", Some(endpoint), || default)
        },
    })
}

/// A table in one line.
pub(in crate::config) fn pairs_text(pairs: &[(Box<str>, Box<str>)]) -> String {
    let pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
    if pairs.is_empty() { "{}".into() } else { format!("{{ {} }}", pairs.join(", ")) }
}
