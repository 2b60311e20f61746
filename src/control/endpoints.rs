//! How the endpoints of services are, for `/services` and `/metrics`. Called by `pages` and `export`; reads what the shards
//! have written into the snapshot's `health`, at the moment that somebody asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::export::Page;
use super::state::State;
use super::store::Store;
use crate::upstream::health::{Health, Known, Probed, Reason, Standing};
use crate::upstream::spec;

/// What an endpoint is at present.
const STATES: [&str; 6] = ["used", "ejected", "trial", "failing_probe", "awaiting_probe", "draining"];

fn state(endpoint: &spec::Endpoint, standing: Option<&Standing>) -> &'static str {
    let word = standing.map(Standing::word).unwrap_or_default();
    let [used, ejected, trial, failing_probe, awaiting_probe, draining] = STATES;
    match (standing.map(Standing::probed), word.reason()) {
        _ if endpoint.drain => draining,
        (Some(Probed::Failing), _) => failing_probe,
        (Some(Probed::Awaited), _) => awaiting_probe,
        (_, Some(_)) if word.is_on_trial() => trial,
        (_, Some(_)) => ejected,
        (_, None) => used,
    }
}

/// `10`, or `10, 2 out`.
pub(super) fn cell(service: &spec::Service, health: &Health) -> String {
    let known = health.known();
    let standing = |n: usize| known.and_then(|known| known.endpoints.get(n)).map(|standing| &**standing);
    let is_out = |(n, endpoint): &(usize, &spec::Endpoint)| state(endpoint, standing(*n)) != STATES[0];
    match service.endpoints.iter().enumerate().filter(is_out).count() {
        0 => service.endpoints.len().to_string(),
        out => format!("{}, {out} out", service.endpoints.len()),
    }
}

/// Every endpoint with what is known of it.
pub(super) fn json(service: &spec::Service, health: &Health) -> Vec<Value> {
    let known = health.known();
    let one = |(n, endpoint): (usize, &spec::Endpoint)| {
        let standing = known.and_then(|known| known.endpoints.get(n));
        let word = standing.map(|standing| standing.word()).unwrap_or_default();
        json!({
            "address": endpoint.address.to_string(),
            "weight": endpoint.weight,
            "zone": endpoint.zone.as_deref(),
            "priority": endpoint.priority,
            "labels": labels(endpoint.labels.as_deref()),
            "state": state(endpoint, standing.map(|standing| &**standing)),
            "reason": word.reason().map(Reason::label),
            "ejections_in_row": word.level(),
            "latency_seconds": standing.map(|s| s.latency_us()).filter(|us| *us > 0).map(|us| f64::from(us) / 1e6),
        })
    };
    service.endpoints.iter().enumerate().map(one).collect()
}

/// Every subset, with how many endpoints it has.
pub(super) fn subsets(service: &spec::Service) -> Vec<Value> {
    let one = |(subset, number): (&spec::Subset, u16)| {
        json!({
            "name": &*subset.name,
            "labels": labels(Some(&subset.labels)),
            "endpoints": service.plan().endpoints_of(number),
        })
    };
    service.choice().subsets.iter().zip(1..).map(one).collect()
}

fn labels(labels: Option<&spec::Labels>) -> Value {
    let all = labels.map_or(&[][..], |labels| labels);
    Value::Object(all.iter().map(|(name, value)| (name.to_string(), json!(&**value))).collect())
}

/// Of services that are in use and have more than one endpoint; of no more than are told apart elsewhere.
pub(super) fn metrics(page: &mut Page<'_, '_>, of: &State) -> fmt::Result {
    let snapshot = Arc::clone(&of.live().snapshot);
    let known: Vec<(&spec::Service, &Known)> = snapshot
        .services
        .iter()
        .zip(&snapshot.health)
        .filter_map(|(service, health)| Some((&**service, health.known()?)))
        .take(Store::SERVICES_MAX)
        .collect();
    if known.is_empty() {
        return Ok(());
    }
    page.gauge(
        "endpoints",
        "Endpoints of services that are in use and have several, or have probes, by what they are",
        None,
        known.iter().flat_map(|(service, known)| {
            let endpoints = service.endpoints.iter().zip(&known.endpoints);
            let all: Vec<&str> = endpoints.map(|(e, standing)| state(e, Some(standing))).collect();
            STATES.into_iter().map(move |wanted| {
                let count = all.iter().filter(|state| **state == wanted).count();
                ([("service", &*service.name), ("state", wanted)], count as f64)
            })
        }),
    )?;
    page.counter(
        "breaker_ejections",
        "Times that an endpoint was ejected, by the reason",
        None,
        known.iter().flat_map(|(service, known)| {
            Reason::ALL.into_iter().map(move |reason| {
                let count = known.counts.ejections(reason).load(Ordering::Relaxed);
                ([("service", &*service.name), ("reason", reason.label())], count)
            })
        }),
    )?;
    let each = |value: fn(&Known) -> u64| {
        known.iter().map(move |(service, known)| ([("service", &*service.name)], value(known)))
    };
    page.counter(
        "breaker_returns",
        "Times that an ejected endpoint was used again",
        None,
        each(|known| known.counts.returns.load(Ordering::Relaxed)),
    )?;
    page.counter(
        "breaker_spared",
        "Ejections that were due and not made: enough are ejected, or the others are no better",
        None,
        each(|known| known.counts.spared.load(Ordering::Relaxed)),
    )?;
    page.counter(
        "breaker_panics",
        "Times that too few were healthy and all were used",
        None,
        each(|known| known.counts.panics.load(Ordering::Relaxed)),
    )?;
    page.counter(
        "probes",
        "Probes of endpoints, by whether they found what they should",
        None,
        known.iter().filter(|(service, _)| service.probe.is_some()).flat_map(|(service, known)| {
            let of = |result, count: &std::sync::atomic::AtomicU64| {
                ([("service", &*service.name), ("result", result)], count.load(Ordering::Relaxed))
            };
            [of("passed", &known.counts.probes_passed), of("failed", &known.counts.probes_failed)]
        }),
    )?;
    page.gauge(
        "breaker_panicking",
        "1 while it is so",
        None,
        each(|known| known.counts.panicking.load(Ordering::Relaxed).into()).map(|(l, n)| (l, n as f64)),
    )
}
