//! What applies to further attempts: how many, after what, how soon, and how many at a time. Called by `explain`, a line of its own.

use serde_json::{Value, json};

use super::Line;
use super::policies::{At, Chosen, limit};
use crate::config::hedge_text;
use crate::upstream::retry::{Hedge, Policy, Reason, Statuses};

/// The policy of the route, else of the service.
pub(super) fn line(chosen: &Chosen<'_>, At { service, .. }: &At<'_>) -> Option<Line> {
    let endpoints = service.connect_attempts_max;
    let of_route = chosen.route.retry.as_deref();
    let (of_all, wishes) = (of_route.unwrap_or(&service.retry), chosen.wishes());
    let (text, json) =
        policy(wishes.as_ref().map_or(of_all, |wishes| wishes.policy(of_all)), service.endpoints.len() > 1);
    let text = format!(
        "up to {endpoints} endpoint{} until one takes the connection; {text}",
        if endpoints == 1 { "" } else { "s" }
    );
    let by = if of_route.is_some() { "route" } else { "service" };
    Some(Line::new(
        "attempts",
        text,
        json!({ "connect_attempts_max": endpoints, "retry_by": by, "retry": json }),
    ))
}

/// What its callers may say of retries and timeouts, and what was made of what this one says. The lines of timeout and attempts show
/// what holds then.
pub(super) fn caller_may(chosen: &Chosen<'_>) -> Option<Line> {
    let may = chosen.route.caller_may.as_deref().filter(|_| !chosen.is_answered())?;
    let times = [may.timeout_max, may.attempt_timeout_max].map(|max| max.map(limit));
    let [whole, each] = times.map(Option::unzip);
    let ask = |max: Option<String>| max.unwrap_or_else(|| "what holds for all".into());
    let said = chosen.wishes().map(|wishes| {
        for service in chosen.services() {
            let _ = wishes.policy(chosen.route.retry.as_deref().unwrap_or(&service.service.retry));
        }
        wishes.outcome(chosen.route.timeout).label()
    });
    let text = format!(
        "may ask for attempts up to {}, time up to {}, an attempt's up to {}; {}",
        ask(may.attempts_max.map(|max| max.to_string())),
        ask(whole.0),
        ask(each.0),
        match said {
            None => "this one says nothing",
            Some("capped") => "what this one says is capped",
            Some("ignored") => "of what this one says some is ignored",
            Some(_) => "what this one says holds",
        }
    );
    let json = json!({
        "attempts_max": may.attempts_max, "timeout_max_seconds": whole.1, "attempt_timeout_max_seconds": each.1,
        "wishes": said,
    });
    Some(Line::new("caller_may", text, json))
}

/// Where there is one endpoint there is no attempt beside another.
fn policy(policy: &Policy, may_hedge: bool) -> (String, Value) {
    if policy.is_off() {
        return ("one attempt, whatever comes of it".into(), Value::Null);
    }
    let mut after: Vec<String> = Reason::ALL
        .iter()
        .filter(|reason| policy.on.has(**reason))
        .map(|reason| reason.label().into())
        .collect();
    let statuses = ranges(policy.statuses);
    after.extend(statuses.iter().cloned());
    let after = if after.is_empty() { "nothing".into() } else { after.join(", ") };
    let (base, longest) = (limit(policy.backoff_base), limit(policy.backoff_max));
    let percent = f64::from(policy.budget.millionths) / 10_000.0;
    let mut text = format!(
        "up to {} attempts in all, after {after}; after pauses of up to {}, {} at most; as many at a time as {percent} % of those in \
         progress, or {}",
        policy.attempts_max,
        pauses(policy),
        longest.0,
        policy.budget.floor
    );
    let hedge = hedge_text(policy).filter(|_| may_hedge);
    let is_ended = hedge.is_none() || policy.hedge != Some(Hedge::InPlace);
    let each = policy.attempt_timeout.filter(|_| is_ended).map(limit);
    if let Some((each, _)) = &each {
        text += &format!("; each has {each} until it is answered");
    }
    if let Some(after) = &hedge {
        text += &format!("; another one beside it where it is not answered after {after}");
    }
    if !policy.methods.is_empty() {
        text += &format!("; {} may be sent twice, too", policy.methods.join(", "));
    }
    let reasons: Vec<&str> =
        Reason::ALL.iter().filter(|reason| policy.on.has(**reason)).map(|reason| reason.label()).collect();
    let json = json!({
        "attempts_max": policy.attempts_max, "on": reasons, "statuses": statuses, "methods": policy.methods,
        "attempt_timeout_seconds": each.map(|each| each.1), "backoff_base_seconds": base.1,
        "backoff_max_seconds": longest.1, "budget_percent": percent, "budget_floor": policy.budget.floor,
        "body_bytes_max": policy.body_bytes_max, "hedge_after": hedge,
    });
    (text, json)
}

/// The longest that each pause may be, up to the fifth: see [`Policy::pause_ns`].
fn pauses(policy: &Policy) -> String {
    const SHOWN_MAX: u32 = 5;
    let count = u32::from(policy.attempts_max).saturating_sub(1);
    let longest = |n: u32| policy.backoff_base.saturating_mul((1 << n) - 1).min(policy.backoff_max);
    let mut all: Vec<String> = (1..=count.min(SHOWN_MAX)).map(|n| limit(longest(n)).0).collect();
    all.dedup();
    if count > SHOWN_MAX && longest(SHOWN_MAX) < policy.backoff_max {
        all.push("…".into());
    }
    all.join(", ")
}

/// Statuses as they would be written: those in a row together.
fn ranges(statuses: Statuses) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for status in statuses.iter() {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == status => *last = status,
            _ => ranges.push((status, status)),
        }
    }
    let text = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.into_iter().map(text).collect()
}
