//! Whether `caller_may` of a route fits what holds for all, and how it is shown. Called by `compile`.

use super::super::raw::{Raw, RawRoute};
use super::super::report::{Problem, Problems};
use super::super::values::{duration_text, quoted};
use crate::route::wish::May;

/// Reports ceilings that are none.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    raw.routes.iter().for_each(|route| check_route(route, problems));
}

fn check_route(route: &RawRoute, problems: &mut Problems) {
    let Some(at) = &route.caller_may else { return };
    let mut error = |message: String, help: &str| {
        problems.error(|| Problem::at(at.place, message).help(help));
    };
    let less = |what: &str, max: String, own: String| {
        format!("{what} = {max} is less than what holds for all, {own}")
    };
    const HELP: &str = "write more, or leave it out: then callers may ask for no more than holds for all";
    match (at.value.timeout_max, route.timeout.and_then(|at| at.value)) {
        (Some(_), None) => error(
            "`timeout_max` without `timeout`: whoever says nothing has no limit".into(),
            "write the route's own timeout, such as timeout = \"15s\", or leave out `timeout_max`",
        ),
        (Some(max), Some(own)) if max < own => {
            error(less("timeout_max", duration_text(max), duration_text(own)), HELP);
        }
        (Some(_) | None, _) => {}
    }
    let Some(retry) = &route.retry else { return };
    if let (Some(max), Some(own)) = (at.value.attempts_max, retry.attempts_max.map(|at| at.value))
        && max < own
    {
        error(less("attempts_max", max.to_string(), own.to_string()), HELP);
    }
    if let (Some(max), Some(own)) =
        (at.value.attempt_timeout_max, retry.attempt_timeout.and_then(|at| at.value))
        && max < own
    {
        error(less("attempt_timeout_max", duration_text(max), duration_text(own)), HELP);
    }
}

/// As it would be written.
pub(super) fn text(may: &May) -> String {
    let mut keys = Vec::new();
    keys.extend(may.attempts_max.map(|max| format!("attempts_max = {max}")));
    let mut time = |key: &str, max: Option<std::time::Duration>| {
        keys.extend(max.map(|max| format!("{key} = {}", quoted(&duration_text(max)))));
    };
    time("timeout_max", may.timeout_max);
    time("attempt_timeout_max", may.attempt_timeout_max);
    if keys.is_empty() { "{}".into() } else { format!("{{ {} }}", keys.join(", ")) }
}
