//! `[service.probe]`. Called by `decode::service`.

use toml::de::DeValue;

use super::super::raw::{At, ProbeWord, RawProbe};
use super::super::reader::{Item, Reader};
use super::super::report::Problem;
use super::super::{defaults, schema, values};

/// How `service.probe.kind` is written.
pub(in crate::config) const PROBE_WORDS: [(&str, ProbeWord); 4] =
    [("http", ProbeWord::Http), ("grpc", ProbeWord::Grpc), ("tcp", ProbeWord::Tcp), ("tls", ProbeWord::Tls)];
/// How `service.probe.start` is written: whether an endpoint waits for its first probe.
pub(in crate::config) const START_WORDS: [(&str, bool); 2] = [("optimistic", false), ("wait", true)];

pub(super) fn probe(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RawProbe> {
    let table = reader.table(&schema::PROBE, item)?;
    let place = reader.place(item.span());
    if table.value("kind").is_none() {
        super::missing(reader, place, "kind", "a probe", "kind = \"http\"");
    }
    let text = |reader: &mut Reader<'_>, key: &'static str, full: &str, example: &str| {
        let value = reader.string(full, table.value(key)?, example)?;
        Some(At {
            value: value.value.into_owned().into_boxed_str(),
            place: value.place,
            variable: value.variable,
        })
    };
    Some(RawProbe {
        kind: table.value("kind").and_then(|item| reader.choice("service.probe.kind", item, &PROBE_WORDS)),
        path: table.value("path").and_then(|item| {
            reader.parsed("service.probe.path", item, "/", |text| values::path_and_query(text).map(Box::from))
        }),
        host: text(reader, "host", "service.probe.host", "shop.example"),
        statuses: table.value("statuses").and_then(|item| statuses(reader, item)),
        grpc_service: text(reader, "grpc_service", "service.probe.grpc_service", "shop.Cart"),
        port: table.value("port").and_then(|item| reader.count(&defaults::PROBE_PORT, item)),
        interval: table.value("interval").and_then(|item| reader.duration(&defaults::PROBE_INTERVAL, item)),
        interval_unhealthy: table
            .value("interval_unhealthy")
            .and_then(|item| reader.duration(&defaults::PROBE_INTERVAL_UNHEALTHY, item)),
        timeout: table.value("timeout").and_then(|item| reader.duration(&defaults::PROBE_TIMEOUT, item)),
        healthy: table.value("healthy").and_then(|item| reader.count(&defaults::PROBE_HEALTHY, item)),
        unhealthy: table.value("unhealthy").and_then(|item| reader.count(&defaults::PROBE_UNHEALTHY, item)),
        jitter_percent: table
            .value("jitter_percent")
            .and_then(|item| reader.count(&defaults::PROBE_JITTER_PERCENT, item)),
        start: table.value("start").and_then(|item| reader.choice("service.probe.start", item, &START_WORDS)),
    })
}

/// `[200, "300-399"]`.
fn statuses(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<(u16, u16)>>> {
    let entries = reader.list("service.probe.statuses", item, defaults::PROBE_STATUSES_MAX)?;
    let mut ranges = Vec::with_capacity(entries.len());
    for entry in entries {
        let range = match entry.get_ref() {
            DeValue::String(text) => {
                text.split_once('-').and_then(|(from, to)| Some((status(from)?, status(to)?)))
            }
            _ => Reader::number(entry)
                .and_then(|number| status(&number.to_string()))
                .map(|status| (status, status)),
        };
        match range.filter(|(from, to)| from <= to) {
            Some(range) => ranges.push(range),
            None => {
                let place = reader.place(entry.span());
                reader.problems.error(|| {
                    Problem::at(place, "service.probe.statuses: not a status, nor a range of them")
                        .help("write 200 or \"200-399\", from 200 to 599")
                });
            }
        }
    }
    let place = reader.place(item.span());
    if ranges.is_empty() {
        reader.problems.error(|| {
            Problem::at(place, "service.probe.statuses: no probe could be good").help("write [\"200-399\"]")
        });
        return None;
    }
    Some(At { value: ranges, place, variable: 0 })
}

fn status(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|status| (200..600).contains(status))
}
