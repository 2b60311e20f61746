//! Limits that are shared with other proxies: what `policies` tells of which of them a request is asked about, and in which words.

use serde_json::json;

use super::Line;
use super::policies::{Chosen, limit};
use crate::quota::global::{Global, Of, OnFailure, Spec, descriptor};

/// All of its route, also those that are not asked because a field is missing.
pub(super) fn line(chosen: &Chosen<'_>) -> Option<Line> {
    let asks = chosen.route.asks.as_deref()?;
    let limits = || {
        let ids = asks.iter().flat_map(|ask| &ask.limits);
        ids.filter_map(|id| chosen.snapshot.globals.get(*id as usize))
    };
    let entries = |global| descriptor(global, &chosen.route.name, chosen.call);
    let text = limits().map(|global| told(global, entries(global))).collect::<Vec<_>>().join("; ");
    let json = limits().map(|global| {
        let Spec { name, service, domain, hits, timeout_ns, on_failure, .. } = &global.spec;
        let entries = entries(global);
        let descriptor = entries.as_ref().map(|entries| {
            entries.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect::<Vec<_>>()
        });
        json!({
            "name": &**name, "service": &**service, "domain": &**domain, "hits": hits, "asked": entries.is_some(),
            "descriptor": descriptor, "timeout_seconds": time(*timeout_ns).1, "on_failure": word(*on_failure),
        })
    });
    Some(Line::new("shared", text, json.collect()))
}

fn told(global: &Global, entries: Option<Vec<(&str, String)>>) -> String {
    let Spec { name, service, domain, timeout_ns, on_failure, .. } = &global.spec;
    let Some(entries) = entries else {
        let missing = global.spec.entries.iter().filter_map(|entry| match &entry.of {
            Of::Header(name) => Some(&**name),
            Of::Route | Of::Identity | Of::Source | Of::Constant(_) => None,
        });
        let missing = missing.collect::<Vec<_>>().join(" and ");
        return format!("{name}: not asked, because it needs {missing}");
    };
    let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let within = time(*timeout_ns).0;
    let then = match on_failure {
        OnFailure::Pass => "passes",
        OnFailure::Refuse => "is refused",
    };
    let entries = entries.join(", ");
    format!(
        "{name}: {service} is asked about {entries} of {domain}, and without an answer in {within} it {then}"
    )
}

fn word(on_failure: OnFailure) -> &'static str {
    match on_failure {
        OnFailure::Pass => "pass",
        OnFailure::Refuse => "refuse",
    }
}

fn time(ns: u64) -> (String, serde_json::Value) {
    limit(std::time::Duration::from_nanos(ns))
}
