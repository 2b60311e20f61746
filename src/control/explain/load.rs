//! How much a route and a service are given, and who gives way: what `policies` tells of rate limits, caps, queue, and what is
//! learnt.

use std::time::Duration;

use serde_json::{Value, json};

use super::Line;
use super::policies::{At, Chosen, limit};
use crate::config::size_text;
use crate::quota::{By, Spec};
use crate::route::Priority;
use crate::upstream::caps::Caps;

/// What of a body is taken.
pub(super) fn body(chosen: &Chosen<'_>) -> Option<Line> {
    let most = chosen.snapshot.limits.body_bytes_max;
    let is_read = most > 0 && !chosen.is_answered() && !chosen.is_tunnel();
    let text = format!("of {} at most", size_text(most));
    is_read.then(|| Line::new("body", text, json!({ "body_bytes_max": most })))
}

pub(super) fn priority(chosen: &Chosen<'_>) -> Option<Line> {
    let (word, means) = match chosen.route.priority {
        Priority::Critical => ("critical", "gives way to nobody"),
        Priority::Default => return None,
        Priority::Sheddable => ("sheddable", "gives way to everybody"),
    };
    Some(Line::new("priority", format!("{word}: {means}"), json!({ "priority": word })))
}

pub(super) fn rate_limits(chosen: &Chosen<'_>) -> Option<Line> {
    let ids = chosen.route.quotas.as_deref()?;
    let of = || ids.iter().filter_map(|id| chosen.snapshot.quotas.get(*id as usize));
    let told = of().map(|quota| {
        let Spec { name, rate, per_ns, burst, by, .. } = &quota.spec;
        let by = match by.is_empty() {
            true => String::new(),
            false => format!(" for each {}", by.iter().map(word_of).collect::<Vec<_>>().join(" and ")),
        };
        format!("{name}: {rate} in {}, {burst} at once{by}", time(*per_ns).0)
    });
    let text = told.collect::<Vec<_>>().join("; ");
    let json = of().map(|quota| {
        let Spec { name, rate, per_ns, burst, by, .. } = &quota.spec;
        let by: Vec<String> = by.iter().map(word_of).collect();
        json!({ "name": &**name, "rate": rate, "per_seconds": time(*per_ns).1, "burst": burst, "by": by })
    });
    Some(Line::new("rate limits", text, json.collect()))
}

fn word_of(by: &By) -> String {
    match by {
        By::Route => "route".into(),
        By::Identity => "identity".into(),
        By::Source => "source".into(),
        By::Header(name) => name.to_string(),
    }
}

fn ceiling(max: u32) -> Value {
    if max == u32::MAX { Value::Null } else { max.into() }
}

fn time(ns: u64) -> (String, Value) {
    limit(Duration::from_nanos(ns))
}

pub(super) fn caps(_: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let Caps { exchanges_max, connections_max, pending_max, patience, retries_max, counts, .. } =
        &**service.caps.as_ref()?;
    let ((timeout, timeout_json), (target, target_json)) =
        (time(patience.timeout_ns), time(patience.target_ns));
    let (taken, waiting) = (counts.exchanges.taken(), counts.exchanges.waiting());
    let mut parts = Vec::new();
    if counts.exchanges.ceiling() != u32::MAX {
        parts.push(format!(
            "{} exchanges ({taken} now), then {pending_max} wait ({waiting} now) for {timeout}, or {target} while too much comes",
            counts.exchanges.ceiling()
        ));
    }
    let connections = &counts.connections.gate;
    if *connections_max != u32::MAX {
        parts.push(format!(
            "{connections_max} connections ({} now), then {pending_max} wait ({} now) for {timeout}",
            connections.taken(),
            connections.waiting()
        ));
    }
    if *retries_max != u32::MAX {
        parts.push(format!("{retries_max} retries"));
    }
    if parts.is_empty() {
        return None;
    }
    let json = json!({
        "exchanges_max": ceiling(*exchanges_max), "ceiling": ceiling(counts.exchanges.ceiling()),
        "exchanges": taken, "connections_max": ceiling(*connections_max), "connections": connections.taken(),
        "connections_pending": connections.waiting(), "pending_max": pending_max, "pending": waiting, "queue_timeout_seconds": timeout_json,
        "queue_target_seconds": target_json, "retries_max": ceiling(*retries_max),
    });
    Some(Line::new("caps", parts.join("; "), json))
}

pub(super) fn concurrency(_: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let caps = service.caps.as_ref()?;
    let of = caps.concurrency.as_ref()?;
    let now = caps.counts.exchanges.ceiling();
    let tolerance = of.tolerance * 100.0;
    let text = format!(
        "learnt: {} to {} exchanges, while half of them take at most {tolerance:.0} % longer than when little is asked",
        of.limit_min, of.limit_max
    );
    let json = json!({
        "limit_min": of.limit_min, "limit_max": of.limit_max, "ceiling": now, "tolerance_percent": tolerance,
    });
    Some(Line::new("concurrency", text, json))
}

pub(super) fn admission(_: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let of = service.caps.as_ref()?.admission.as_ref()?;
    let (success_min, refuse_max) = (of.success_min * 100.0, of.refuse_max * 100.0);
    let window = time(of.window_ns);
    let text = format!(
        "when less than {success_min:.0} % of {} or more in {} end well some are turned away, {refuse_max:.0} % at most",
        of.exchanges_min, window.0
    );
    let json = json!({
        "success_min_percent": success_min, "refuse_max_percent": refuse_max, "window_seconds": window.1,
        "exchanges_min": of.exchanges_min,
    });
    Some(Line::new("admission", text, json))
}
