//! How much of what services may be given is in use, for `/services` and `/metrics`. Called by `pages` and `export`; reads what
//! the shards count (`upstream::gate`) and have learnt (`upstream::concurrency`), at the moment that somebody asks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::registry::Unit;
use serde_json::{Value, json};

use super::export::Page;
use super::state::State;
use super::store::Store;
use crate::upstream::caps::Caps;

/// What there is a ceiling for, and how many wait for it, where one can.
struct Use {
    of: &'static str,
    in_use: u32,
    ceiling: u32,
    waiting: Option<u32>,
}

fn uses(caps: &Caps) -> [Use; 3] {
    let (exchanges, connections) = (&caps.counts.exchanges, &caps.counts.connections.gate);
    let retries = &caps.counts.retries;
    [
        Use {
            of: "exchanges",
            in_use: exchanges.taken(),
            ceiling: exchanges.ceiling(),
            waiting: Some(exchanges.waiting()),
        },
        Use {
            of: "connections",
            in_use: connections.taken(),
            ceiling: connections.ceiling(),
            waiting: Some(connections.waiting()),
        },
        Use { of: "retries", in_use: retries.taken(), ceiling: retries.max(), waiting: None },
    ]
}

/// Every ceiling that there is.
pub(super) fn json(caps: &Caps) -> Value {
    let limited = uses(caps).into_iter().filter(|of| of.ceiling < u32::MAX);
    let mut all: serde_json::Map<String, Value> = limited
        .map(|Use { of, in_use, ceiling, waiting }| {
            (of.to_owned(), json!({ "in_use": in_use, "ceiling": ceiling, "waiting": waiting }))
        })
        .collect();
    if let Some(baseline) = caps.counts.baseline() {
        all.insert("baseline_seconds".to_owned(), json!(baseline.as_secs_f64()));
    }
    Value::Object(all)
}

/// Of services with a ceiling of any kind; of no more than are told apart elsewhere.
pub(super) fn metrics(page: &mut Page<'_, '_>, of: &State) -> fmt::Result {
    let snapshot = Arc::clone(&of.live().snapshot);
    let capped: Vec<(&str, &Caps)> = snapshot
        .services
        .iter()
        .filter_map(|service| Some((&*service.name, service.caps.as_deref()?)))
        .take(Store::SERVICES_MAX)
        .collect();
    if capped.is_empty() {
        return Ok(());
    }
    let limited = || {
        let all = capped.iter().flat_map(|(name, caps)| uses(caps).map(|of| (*name, of)));
        all.filter(|(_, of)| of.ceiling < u32::MAX)
    };
    page.gauge(
        "capped_in_use",
        "Exchanges, connections and retries in progress, of services where there is a ceiling for them",
        None,
        limited().map(|(name, of)| ([("service", name), ("of", of.of)], f64::from(of.in_use))),
    )?;
    page.gauge(
        "capped_max",
        "How many there may be: what is configured, or what was learnt (`concurrency`) if that is less",
        None,
        limited().map(|(name, of)| ([("service", name), ("of", of.of)], f64::from(of.ceiling))),
    )?;
    page.gauge(
        "capped_waiting",
        "Exchanges that wait for a place, or for a connection",
        None,
        limited().filter_map(|(name, of)| Some(([("service", name), ("of", of.of)], f64::from(of.waiting?)))),
    )?;
    let learnt: Vec<_> = capped
        .iter()
        .filter_map(|(name, caps)| Some(([("service", *name)], caps.counts.baseline()?.as_secs_f64())))
        .collect();
    if learnt.is_empty() {
        return Ok(());
    }
    page.gauge(
        "concurrency_baseline",
        "The latency when little is asked, as learnt: what the limit is decided by",
        Some(Unit::Seconds),
        learnt.into_iter(),
    )
}
