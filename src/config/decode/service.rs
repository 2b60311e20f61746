//! `[[service]]` with its endpoints. Called by `decode`.

use std::sync::Arc;

use toml::de::DeValue;

use super::super::raw::{At, RawEndpoint, RawService};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::Place;
use super::super::{defaults, schema, values};
use super::{BALANCE_WORDS, missing, name};
use crate::upstream::spec::Protocol;

/// How `service.protocol` is written.
pub(in crate::config) const PROTOCOL_WORDS: [(&str, Protocol); 3] =
    [("auto", Protocol::Auto), ("http1", Protocol::Http1), ("http2", Protocol::Http2)];

pub(super) fn service(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawService {
    if table.value("name").is_none() {
        missing(reader, place, "name", "a service", "name = \"app\"");
    }
    let mut raw = RawService {
        place,
        name: table.value("name").and_then(|item| name(reader, "service.name", item, "app")),
        balance: table
            .value("balance")
            .and_then(|item| reader.choice("service.balance", item, &BALANCE_WORDS)),
        endpoints: table.value("endpoints").and_then(|item| endpoints(reader, item)),
        connect_attempts_max: table
            .value("connect_attempts_max")
            .and_then(|item| reader.count(&defaults::CONNECT_ATTEMPTS_MAX, item)),
        protocol: table
            .value("protocol")
            .and_then(|item| reader.choice("service.protocol", item, &PROTOCOL_WORDS)),
        tls: Box::new(super::tls::service(reader, table)),
        http2: table.value("http2").and_then(|item| super::tls::service_http2(reader, item)).map(Box::new),
        choice: Box::new(super::balance::choice(reader, table)),
        breaker: table.value("breaker").and_then(|item| super::breaker::breaker(reader, item)).map(Box::new),
        probe: table.value("probe").and_then(|item| super::probe::probe(reader, item)).map(Box::new),
        caps: table.value("caps").and_then(|item| super::caps::caps(reader, item)).map(Box::new),
        concurrency: table
            .value("concurrency")
            .and_then(|item| super::caps::concurrency(reader, item))
            .map(Box::new),
        admission: table
            .value("admission")
            .and_then(|item| super::caps::admission(reader, item))
            .map(Box::new),
        idle_max: None,
        idle_timeout: None,
        connections_max: None,
        connect: None,
        response: None,
        body_stall: None,
        retry: table
            .value("retry")
            .and_then(|item| super::retry::retry(reader, &schema::SERVICE_RETRY, item)),
    };
    if let Some(pool) = table.value("pool").and_then(|item| reader.table(&schema::POOL, item)) {
        raw.idle_max = pool.value("idle_max").and_then(|item| reader.count(&defaults::POOL_IDLE_MAX, item));
        raw.idle_timeout =
            pool.value("idle_timeout").and_then(|item| reader.duration(&defaults::POOL_IDLE_TIMEOUT, item));
        raw.connections_max = pool
            .value("connections_max")
            .and_then(|item| reader.count(&defaults::POOL_CONNECTIONS_MAX, item));
    }
    if let Some(times) =
        table.value("timeouts").and_then(|item| reader.table(&schema::SERVICE_TIMEOUTS, item))
    {
        raw.connect = times.value("connect").and_then(|item| reader.duration(&defaults::CONNECT, item));
        raw.response = times.value("response").and_then(|item| reader.duration(&defaults::RESPONSE, item));
        raw.body_stall =
            times.value("body_stall").and_then(|item| reader.duration(&defaults::SERVICE_BODY_STALL, item));
    }
    raw
}

fn endpoints(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<RawEndpoint>>> {
    let entries = reader.list("service.endpoints", item, defaults::ENDPOINTS_MAX)?;
    let mut variable = 0;
    let mut endpoints = Vec::with_capacity(entries.len());
    for entry in entries {
        let place = reader.place(entry.span());
        let (address, table) = match entry.get_ref() {
            DeValue::Table(table) => {
                let table = reader.open(&schema::ENDPOINT, table);
                if table.value("address").is_none() {
                    missing(reader, place, "address", "an endpoint", "address = \"127.0.0.1:9000\"");
                }
                (table.value("address"), Some(table))
            }
            DeValue::String(_) => (Some(entry), None),
            _ => {
                let help = "write \"127.0.0.1:9000\" or { address = \"127.0.0.1:9000\", weight = 1 }";
                reader.wrong_type::<()>("an endpoint", entry, "an address or a table", help.into());
                (None, None)
            }
        };
        let value = |key| table.as_ref().and_then(|table| table.value(key));
        let weight = value("weight").map(|item| reader.count(&defaults::WEIGHT, item));
        let zone = value("zone").map(|item| name(reader, "service.endpoints.zone", item, "a"));
        let priority = value("priority").and_then(|item| reader.count(&defaults::PRIORITY, item));
        let labels =
            value("labels").and_then(|item| super::balance::labels(reader, "service.endpoints.labels", item));
        let drain = value("drain").and_then(|item| reader.flag("service.endpoints.drain", item));
        let target = address
            .and_then(|item| reader.parsed("service.endpoints", item, "127.0.0.1:9000", values::target));
        let variables = [
            target.as_ref().map(|at| at.variable),
            weight.flatten().map(|at| at.variable),
            zone.as_ref().and_then(|zone| zone.as_ref().map(|at| at.variable)),
            priority.map(|at| at.variable),
            labels.as_ref().map(|at| at.variable),
            drain.map(|at| at.variable),
        ];
        variable = variables
            .into_iter()
            .flatten()
            .fold(variable, |first, next| if first > 0 { first } else { next });
        if let Some(target) = target {
            endpoints.push(RawEndpoint {
                place: target.place,
                target: target.value,
                weight: weight.flatten().map_or(defaults::WEIGHT.default, |at| at.value),
                zone: zone.flatten().map(|zone| reader.word(&zone.value)),
                priority: priority.map_or(defaults::PRIORITY.default, |at| at.value),
                labels: labels.map(|at| Arc::new(at.value)),
                drain: drain.is_some_and(|at| at.value),
            });
        }
    }
    Some(At { value: endpoints, place: reader.place(item.span()), variable })
}
