//! What applies to a request that a route has taken, one function a feature. Called by `explain`.
//!
//! A feature that changes what becomes of requests adds its function to [`OF_ROUTE`] or [`OF_SERVICE`], in the order of the
//! path; one that is not configured tells nothing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::endpoints::json as states;
use super::question::Lines;
use super::{Line, NEVER_SERVED, actions, attempts, deadline, load, shared_limits};
use crate::authorize::Call;
use crate::config::{Compiled, choice_text, duration_text};
use crate::route::split::{Split, Sticky};
use crate::route::wish::Wishes;
use crate::route::{Action, Route};
use crate::snapshot::{Snapshot, Understood};
use crate::upstream::health::Health;
use crate::upstream::spec::{Balance, ProbeKind, Protocol, Service, Tls};

/// A request and the route that takes it.
pub(super) struct Chosen<'s> {
    /// What the files say: names that are not resolved, files that are read later.
    pub(super) compiled: &'s Compiled,
    pub(super) snapshot: &'s Snapshot,
    pub(super) route: &'s Route,
    /// As it was understood.
    pub(super) head: &'s Understood,
    /// Whether it would come encrypted.
    pub(super) encrypted: bool,
    pub(super) call: &'s Call<'s, Lines<'s>>,
}

/// What applies whatever service it is.
const OF_ROUTE: [fn(&Chosen<'_>) -> Option<Line>; 17] = [
    load::body,
    load::rate_limits,
    shared_limits::line,
    load::priority,
    actions::fault,
    actions::answer,
    service,
    actions::cookie,
    actions::canary,
    actions::rewrite,
    actions::request_fields,
    actions::response_fields,
    actions::cors,
    actions::mirror,
    attempts::caller_may,
    deadline::line,
    upgrades,
];

/// What applies on the way to a service.
const OF_SERVICE: [fn(&Chosen<'_>, &At<'_>) -> Option<Line>; 10] = [
    load::admission,
    load::caps,
    load::concurrency,
    timeouts,
    attempts::line,
    connection,
    breaker,
    probe,
    choice,
    endpoints,
];

/// A service, and what is known of its endpoints.
pub(super) struct At<'s> {
    pub(super) service: &'s Service,
    health: &'s Health,
    /// What of it the route may mean: a subset, 0 for any endpoint; several of a split.
    subsets: Vec<u16>,
}

impl At<'_> {
    /// Whether it may be this endpoint.
    fn may_be(&self, endpoint: usize) -> bool {
        self.subsets.iter().any(|subset| self.service.plan().has(*subset, endpoint))
    }
}

/// All that applies.
pub(super) fn of(chosen: &Chosen<'_>) -> Vec<Line> {
    let mut lines: Vec<Line> = OF_ROUTE.iter().filter_map(|policy| policy(chosen)).collect();
    for service in chosen.services() {
        let of = OF_SERVICE.iter().filter_map(|policy| policy(chosen, &service));
        lines.extend(of.map(|line| Line { service: Some(Arc::clone(&service.service.name)), ..line }));
    }
    lines
}

impl Chosen<'_> {
    /// The service that it goes to for certain, and its subset; `None` where chance decides, or where the route answers itself.
    pub(super) fn certain(&self) -> Option<(u32, u16)> {
        let mut is_certain = true;
        let chosen = self.route.choose(self.call, || {
            is_certain = false;
            0
        });
        chosen.filter(|_| is_certain).map(|chosen| (chosen.service, chosen.subset))
    }

    /// What it says of retries and timeouts, where it may.
    pub(super) fn wishes(&self) -> Option<Wishes> {
        self.route.caller_may.as_ref()?.read(self.call.fields)
    }

    /// Whether it is answered here, and goes nowhere.
    pub(super) fn is_answered(&self) -> bool {
        let by_route = match &self.route.action {
            Action::Redirect(_) => true,
            // What a CONNECT is answered with success is a tunnel.
            Action::Respond(respond) => !(self.head.connect && (200..300).contains(&respond.status)),
            Action::Service(_) | Action::Split(_) => false,
        };
        by_route || self.head.ends_here || actions::preflight(self).is_some()
    }

    /// Whether it asks for a tunnel.
    pub(super) fn is_tunnel(&self) -> bool {
        self.head.connect || self.head.websocket
    }

    /// Whether it is asked about files, and not of a proxy.
    pub(super) fn is_never_served(&self) -> bool {
        self.snapshot.generation == NEVER_SERVED
    }

    /// The endpoints of a service.
    pub(super) fn endpoints_of(&self, service: u32) -> Option<Line> {
        let health = self.snapshot.health.get(service as usize)?;
        let service = self.snapshot.services.get(service as usize)?;
        endpoints(self, &At { service, health, subsets: vec![0] })
    }

    /// The services that it may go to.
    pub(super) fn services(&self) -> Vec<At<'_>> {
        let all = match self.certain() {
            _ if self.is_answered() => Vec::new(),
            Some(service) => vec![service],
            None => match &self.route.action {
                Action::Split(split) => split
                    .shares()
                    .iter()
                    .filter(|share| share.weight > 0)
                    .map(|share| (share.service, share.subset))
                    .collect(),
                Action::Service(service) => vec![(*service, self.route.subset)],
                Action::Redirect(_) | Action::Respond(_) => Vec::new(),
            },
        };
        let mut found: Vec<(u32, At<'_>)> = Vec::new();
        for (number, subset) in all {
            if let Some((_, at)) = found.iter_mut().find(|(other, _)| *other == number) {
                at.subsets.push(subset);
                continue;
            }
            let (services, health) = (&self.snapshot.services, &self.snapshot.health);
            if let (Some(service), Some(health)) =
                (services.get(number as usize), health.get(number as usize))
            {
                found.push((number, At { service, health, subsets: vec![subset] }));
            }
        }
        found.into_iter().map(|(_, at)| at).collect()
    }

    /// What a service is called, with its subset.
    pub(super) fn name(&self, service: u32, subset: u16) -> String {
        let Some(service) = self.snapshot.services.get(service as usize) else { return String::new() };
        match subset_name(service, subset) {
            Some(subset) => format!("{} subset {subset}", service.name),
            None => service.name.to_string(),
        }
    }

    /// What a service is called.
    pub(super) fn service_name(&self, service: u32) -> &str {
        self.snapshot.services.get(service as usize).map_or("", |service| &service.name)
    }
}

/// The name of a subset; `None` of the one that is all endpoints.
fn subset_name(service: &Service, subset: u16) -> Option<&str> {
    let index = usize::from(subset).checked_sub(1)?;
    service.choice().subsets.get(index).map(|subset| &*subset.name)
}

fn service(chosen: &Chosen<'_>) -> Option<Line> {
    if chosen.is_answered() {
        return None;
    }
    let certain = chosen.certain().map(|(service, subset)| chosen.name(service, subset));
    let split = match &chosen.route.action {
        Action::Service(_) => {
            let name = certain?;
            let json = json!({ "name": name, "by": "route" });
            return Some(Line::new("service", name, json));
        }
        Action::Split(split) => split,
        Action::Redirect(_) | Action::Respond(_) => return None,
    };
    let shares = shares(chosen, split);
    let told: Vec<String> =
        shares.iter().map(|(name, share)| format!("{name} {:.3} %", share * 100.0)).collect();
    let told = told.join(", ").replace(".000 %", " %");
    let by = match split.sticky() {
        None => "chance".into(),
        Some(Sticky::Header(name)) => format!("field {name}"),
        Some(Sticky::Cookie(name)) => format!("cookie {name}"),
        Some(Sticky::SetCookie(set)) => format!("cookie {}, which is set", set.name),
        Some(Sticky::Source) => "the address of the caller".into(),
        Some(Sticky::Identity) => "the identity of the caller".into(),
    };
    let text = match (certain.as_deref(), split.sticky()) {
        (Some(name), Some(_)) => format!("{name}, by {by} (of {told})"),
        (Some(name), None) => name.into(),
        (None, Some(_)) => format!("by chance, as it has no {by}: {told}"),
        (None, None) => format!("by chance: {told}"),
    };
    let shares: Vec<Value> =
        shares.iter().map(|(name, share)| json!({ "service": name, "share": share })).collect();
    Some(Line::new("service", text, json!({ "name": certain, "by": by, "shares": shares })))
}

fn shares(chosen: &Chosen<'_>, split: &Split) -> Vec<(String, f64)> {
    let total: f64 = split.shares().iter().map(|share| f64::from(share.weight)).sum();
    let share = |share: &crate::route::split::Share| {
        (chosen.name(share.service, share.subset), f64::from(share.weight) / total)
    };
    split.shares().iter().map(share).collect()
}

pub(super) fn limit(duration: Duration) -> (String, Value) {
    match duration {
        Duration::MAX => ("off".into(), Value::Null),
        _ => (duration_text(duration), json!(duration.as_secs_f64())),
    }
}

fn upgrades(chosen: &Chosen<'_>) -> Option<Line> {
    if chosen.is_answered() {
        return None;
    }
    let of = chosen.route.upgrades;
    let words: Vec<&str> =
        [(of.websocket, "websocket"), (of.connect, "connect")].iter().filter(|w| w.0).map(|w| w.1).collect();
    let idle = limit(chosen.route.tunnel_idle);
    let text = match words.is_empty() {
        true => "none".into(),
        false => format!("{}, idle for {} at most", words.join(" and "), idle.0),
    };
    Some(Line::new("upgrades", text, json!({ "kinds": words, "idle_seconds": idle.1 })))
}

fn timeouts(_: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let of = &service.timeouts;
    let [connect, response, stall] = [of.connect, of.response, of.body_stall].map(limit);
    let text = format!("connect {}, response {}, body without progress {}", connect.0, response.0, stall.0);
    let json = json!({
        "connect_seconds": connect.1, "response_seconds": response.1, "body_stall_seconds": stall.1,
    });
    Some(Line::new("timeouts", text, json))
}

fn connection(chosen: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let protocol = match service.protocol {
        Protocol::Auto => "auto",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
    };
    let tls = match &service.tls {
        // Until its roots have been read, such a service is like one of the mesh.
        _ if chosen.compiled.edges().any(|edge| *edge.service == *service.name) => "edge",
        Tls::Off => "off",
        Tls::Mesh(_) => "mesh",
        Tls::Edge(_) => "edge",
    };
    let most = service.pool.connections_max;
    let text =
        format!("protocol {protocol}, tls {tls}, {most} of HTTP/1.1 to an endpoint from each shard at most");
    let json = json!({ "protocol": protocol, "tls": tls, "connections_max": most });
    Some(Line::new("connection", text, json))
}

/// Where there is one endpoint, nothing is passed over for another. Names may resolve to any number.
fn breaker(chosen: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let may_be_more =
        chosen.is_never_served() && chosen.compiled.names_of_services().any(|(_, of)| *of == *service.name);
    let rules = service.breaker.as_deref().filter(|_| service.endpoints.len() > 1 || may_be_more)?;
    let mut by = Vec::new();
    let mut add = |counts: bool, text: String| by.extend(counts.then_some(text));
    add(rules.consecutive_unreachable > 0, format!("{} without a connection", rules.consecutive_unreachable));
    add(rules.consecutive_failures > 0, format!("{} failures in a row", rules.consecutive_failures));
    add(rules.consecutive_unanswered > 0, format!("{} without an answer", rules.consecutive_unanswered));
    add(rules.failure_percent > 0, format!("{} % failures", rules.failure_percent));
    add(rules.slow_factor > 0, format!("{} times slower than the others", rules.slow_factor));
    let (base, longest) = (limit(rules.ejection_base), limit(rules.ejection_max));
    let text = format!("an endpoint is ejected for {} to {} by {}", base.0, longest.0, by.join(", or "));
    let json = json!({
        "consecutive_unreachable": rules.consecutive_unreachable,
        "consecutive_failures": rules.consecutive_failures, "consecutive_unanswered": rules.consecutive_unanswered,
        "failure_percent": rules.failure_percent, "slow_factor": rules.slow_factor,
        "ejection_base_seconds": base.1, "ejection_max_seconds": longest.1,
    });
    Some(Line::new("breaker", text, json))
}

fn probe(_: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let rules = service.probe.as_deref()?;
    let (kind, what) = match &rules.kind {
        ProbeKind::Http { path, host, statuses } => {
            let range = |(from, to): &(u16, u16)| match from == to {
                true => from.to_string(),
                false => format!("{from}-{to}"),
            };
            let statuses: Vec<String> = statuses.iter().map(range).collect();
            let host = host.as_deref().unwrap_or(&service.name);
            ("http", format!("GET {path} of {host}, answered with {}", statuses.join(", ")))
        }
        ProbeKind::Grpc { service } if service.is_empty() => ("grpc", "grpc.health.v1 of the server".into()),
        ProbeKind::Grpc { service } => ("grpc", format!("grpc.health.v1 of {service}")),
        ProbeKind::Tcp => ("tcp", "a connection".into()),
        ProbeKind::Tls => ("tls", "a handshake".into()),
    };
    let port = rules.port.map_or_else(String::new, |port| format!(" at port {port}"));
    let [interval, soon, timeout] = [rules.interval, rules.interval_unhealthy, rules.timeout].map(limit);
    let first = if rules.waits { "waits for the first" } else { "is used before the first" };
    let text = format!(
        "{what}{port}, every {}, or {} while in doubt; within {}; out after {}, back after {}; {first}",
        interval.0, soon.0, timeout.0, rules.unhealthy, rules.healthy
    );
    let json = json!({
        "kind": kind, "interval_seconds": interval.1, "interval_unhealthy_seconds": soon.1,
        "timeout_seconds": timeout.1, "healthy": rules.healthy, "unhealthy": rules.unhealthy, "port": rules.port,
        "waits": rules.waits,
    });
    Some(Line::new("probe", text, json))
}

fn choice(_: &Chosen<'_>, at: &At<'_>) -> Option<Line> {
    let of = at.service.choice.as_deref()?;
    let keys = choice_text(at.service);
    let named =
        |subset: &u16| Some((subset_name(at.service, *subset)?, at.service.plan().endpoints_of(*subset)));
    let subsets: Vec<(&str, usize)> = at.subsets.iter().filter_map(named).collect();
    let mut parts: Vec<String> = subsets
        .iter()
        .map(|(name, count)| {
            format!("subset {name} ({count} endpoint{})", if *count == 1 { "" } else { "s" })
        })
        .collect();
    parts.extend(of.own_zone.as_ref().map(|zone| format!("this proxy is in zone {zone}")));
    parts.extend(keys.iter().map(|(key, value)| format!("{key} = {value}")));
    let subsets: Vec<Value> =
        subsets.iter().map(|(name, count)| json!({ "name": name, "endpoints": count })).collect();
    let keys: serde_json::Map<String, Value> =
        keys.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
    let json = json!({ "subsets": subsets, "own_zone": of.own_zone.as_deref(), "keys": keys });
    (!parts.is_empty()).then(|| Line::new("choice", parts.join(", "), json))
}

fn endpoints(chosen: &Chosen<'_>, at: &At<'_>) -> Option<Line> {
    let At { service, health, .. } = at;
    const SHOWN_MAX: usize = 20;
    let balance = match service.balance {
        Balance::PeakEwma => "peak-ewma",
        Balance::LeastRequest => "least-request",
        Balance::RoundRobin => "round-robin",
        Balance::Random => "random",
        Balance::RingHash => "ring-hash",
        Balance::Maglev => "maglev",
    };
    let endpoint = |(endpoint, state): (&crate::upstream::spec::Endpoint, &Value)| {
        let state = match (state["state"].as_str().unwrap_or_default(), state["reason"].as_str()) {
            ("used", _) => String::new(),
            (word, Some(reason)) if matches!(word, "ejected" | "trial") => format!(" {word} for {reason}"),
            (word, _) => format!(" {}", word.replace('_', " ")),
        };
        let weight =
            if endpoint.weight == 1 { String::new() } else { format!(" weight {}", endpoint.weight) };
        let zone = endpoint.zone.as_ref().map_or_else(String::new, |zone| format!(" in {zone}"));
        let priority = match endpoint.priority {
            0 => String::new(),
            priority => format!(" priority {priority}"),
        };
        format!("{}{weight}{priority}{zone}{state}", endpoint.address)
    };
    let mut states = states(service, health);
    let meant: Vec<usize> = (0..service.endpoints.len()).filter(|n| at.may_be(*n)).collect();
    let shown = meant.iter().take(SHOWN_MAX).map(|&n| endpoint((&service.endpoints[n], &states[n])));
    let shown: Vec<String> = shown.collect();
    let states: Vec<Value> = meant.iter().map(|&n| states[n].take()).collect();
    let more = match meant.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = chosen.compiled.names_of_services().filter(|(_, of)| *of == &*service.name);
    let mut names: Vec<&str> = names.map(|(name, _)| name).collect();
    names.dedup();
    let text = match (shown.is_empty(), names.is_empty()) {
        (true, true) => "none: answered with 503 (balance.upstream.no_endpoint)".into(),
        (true, false) => format!("what {} resolves to, by {balance}", names.join(", ")),
        (false, true) => format!("{}{more}, by {balance}", shown.join(", ")),
        (false, false) => format!("{}{more}, of {}, by {balance}", shown.join(", "), names.join(", ")),
    };
    let json = json!({ "balance": balance, "endpoints": states, "names": names });
    Some(Line::new("endpoints", text, json))
}
