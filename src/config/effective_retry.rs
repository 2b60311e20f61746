//! What is in force of `retry`, key by key. Called by `effective`.

use std::time::Duration;

use super::compiled::{CompiledRetry, Mark};
use super::defaults;
use super::effective::{Setting, list};
use super::values::{duration_text, quoted, size_text};
use crate::upstream::retry::{Hedge, Policy};

/// In the order of their values and marks.
pub(super) const RETRY_KEYS: [&str; 13] = [
    "retry.attempts_max",
    "retry.on",
    "retry.statuses",
    "retry.methods",
    "retry.attempt_timeout",
    "retry.backoff_base",
    "retry.backoff_max",
    "retry.retry_after_max",
    "retry.body_bytes_max",
    "retry.budget_percent",
    "retry.budget_floor",
    "retry.attempt_header",
    "retry.hedge_after",
];

impl super::compiled::Compiled {
    /// Adds what is in force of further attempts of a service or route. `said` is what it says itself.
    pub(super) fn retry(
        &self,
        settings: &mut Vec<Setting>,
        (kind, name): (&str, &str),
        policy: &Policy,
        said: Option<&CompiledRetry>,
    ) {
        let marks = said.map_or(&[Mark::DEFAULT; RETRY_KEYS.len()][..], |said| &said.marks);
        // Of one that is off, and of one of which nothing is said, only how many there are: there may be thousands.
        let shown = if policy.is_off() || said.is_none() { 1 } else { RETRY_KEYS.len() };
        let values = RETRY_KEYS.into_iter().zip(values(policy, said).map(Some)).take(shown);
        self.entry(settings, kind, name, values, marks);
    }
}

fn values(policy: &Policy, said: Option<&CompiledRetry>) -> [String; RETRY_KEYS.len()] {
    let time = |duration: Duration| quoted(&duration_text(duration));
    let on = said.map_or(&defaults::RETRY_ON[..], |said| &said.on);
    let statuses: Vec<u16> = said.map_or(defaults::RETRY_STATUSES, |said| said.statuses).iter().collect();
    [
        policy.attempts_max.to_string(),
        list(on.iter().map(|word| quoted(word)), on.len()),
        list(statuses.iter().map(u16::to_string), statuses.len()),
        list(policy.methods.iter().map(|method| quoted(method)), policy.methods.len()),
        policy.attempt_timeout.map_or_else(|| quoted("off"), time),
        time(policy.backoff_base),
        time(policy.backoff_max),
        time(policy.retry_after_max),
        quoted(&size_text(policy.body_bytes_max.into())),
        (f64::from(policy.budget.millionths) / 10_000.0).to_string(),
        policy.budget.floor.to_string(),
        policy.attempt_field.to_string(),
        quoted(&hedge_text(policy).unwrap_or_else(|| "off".into())),
    ]
}

/// When there is a hedge, as it is written in the file; `None` for never.
pub(crate) fn hedge_text(policy: &Policy) -> Option<String> {
    match policy.hedge? {
        Hedge::After(after) => Some(duration_text(after)),
        Hedge::Quantile(quantile) => Some(format!("p{}", f64::from(quantile.thousandths()) / 10.0)),
        Hedge::InPlace => policy.attempt_timeout.map(duration_text),
    }
}
