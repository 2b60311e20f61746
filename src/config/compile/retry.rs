//! `retry` with its defaults filled in. Called by `compile`, once everything is checked.

use std::sync::{Arc, OnceLock};

use super::super::compiled::CompiledRetry;
use super::super::defaults;
use super::super::raw::{At, Raw, RawRetry, RawService};
use super::super::report::{Place, Problem, Problems};
use super::super::values;
use super::action::serving;
use super::service::is_alone;
use super::{From, narrow, value_or};
use crate::upstream::budget::Budget;
use crate::upstream::retry::{Hedge, Policy, Reasons, Statuses, WORDS, Word};

/// What holds where nothing is said: the same for all.
pub(super) fn default_policy() -> Arc<Policy> {
    static DEFAULT: OnceLock<Arc<Policy>> = OnceLock::new();
    Arc::clone(DEFAULT.get_or_init(|| Arc::new(policy(RawRetry::default()))))
}

pub(super) fn retry(raw: RawRetry, from: &From<'_>) -> CompiledRetry {
    let marks = [
        from.mark_of(raw.attempts_max.as_ref().map(|at| at.with(())).or(raw.off).as_ref()),
        from.mark_of(raw.on.as_ref()),
        from.mark_of(raw.statuses.as_ref()),
        from.mark_of(raw.methods.as_ref()),
        from.mark_of(raw.attempt_timeout.as_ref()),
        from.mark_of(raw.backoff_base.as_ref()),
        from.mark_of(raw.backoff_max.as_ref()),
        from.mark_of(raw.retry_after_max.as_ref()),
        from.mark_of(raw.body_bytes_max.as_ref()),
        from.mark_of(raw.budget_percent.as_ref()),
        from.mark_of(raw.budget_floor.as_ref()),
        from.mark_of(raw.attempt_header.as_ref()),
        from.mark_of(raw.hedge_after.as_ref()),
    ];
    let words = words_of(&raw);
    let statuses = raw.statuses.map_or(defaults::RETRY_STATUSES, |at| at.value);
    CompiledRetry {
        on: words.iter().map(|word| word.word).collect(),
        statuses,
        policy: Arc::new(policy(raw)),
        marks: Box::new(marks),
    }
}

/// Reports times and numbers that do not fit together.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    let of_services = raw.services.iter().filter_map(|service| service.retry.as_deref());
    for retry in of_services.chain(raw.routes.iter().filter_map(|route| route.retry.as_deref())) {
        let base = retry.backoff_base.map_or(defaults::RETRY_BACKOFF_BASE.default, |at| at.value);
        let max = retry.backoff_max.map_or(defaults::RETRY_BACKOFF_MAX.default, |at| at.value);
        if base > max
            && let Some(place) = retry.backoff_base.or(retry.backoff_max).map(|at| at.place)
        {
            problems.error(|| {
                let (base, max) = (values::duration_text(base), values::duration_text(max));
                Problem::at(place, format!("a first pause of {base} is more than any may be, {max}"))
                    .help("let retry.backoff_base be no more than retry.backoff_max")
            });
        }
        check_hedge(retry, problems);
    }
}

/// Reports a hedge that there would never be.
fn check_hedge(retry: &RawRetry, problems: &mut Problems) {
    let Some(At { value: Some(hedge), place, .. }) = retry.hedge_after else { return };
    if retry.attempts_max.is_some_and(|at| at.value < 2) {
        problems.error(|| {
            Problem::at(place, "a request with one attempt is not hedged")
                .help("let retry.attempts_max be 2 or more: the hedge counts")
        });
    }
    let timeout = retry.attempt_timeout.and_then(|at| at.value);
    if let (Hedge::After(after), Some(timeout)) = (hedge, timeout)
        && after >= timeout
    {
        problems.error(|| {
            let (after, timeout) = (values::duration_text(after), values::duration_text(timeout));
            Problem::at(
                place,
                format!("a hedge after {after} would come after the attempt has ended, {timeout}"),
            )
            .help("let retry.hedge_after be less than retry.attempt_timeout")
        });
    }
}

/// What of it never happens. `found` has the indices of each route's services.
pub(in crate::config) fn warn(raw: &Raw, found: &[Vec<u32>], problems: &mut Problems) {
    for service in &raw.services {
        if let Some(retry) = &service.retry {
            of_services(retry, &[service], problems);
        }
    }
    for (route, found) in raw.routes.iter().zip(found) {
        if let Some(retry) = &route.retry {
            of_services(retry, &serving(raw, route, found), problems);
        }
    }
}

/// Waits that end before by what their services are given, and hedges that have nowhere to go.
fn of_services(retry: &RawRetry, services: &[&RawService], problems: &mut Problems) {
    let response_of =
        |service: &RawService| service.response.map_or(defaults::RESPONSE.default, |at| at.value);
    let Some(longest) = services.iter().max_by_key(|service| response_of(service)) else { return };
    let (response, written) = (response_of(longest), longest.response);
    let mut never = |place: Place, message: String, key: &str| {
        problems.warn(|| {
            let text = values::duration_text(response);
            let problem = Problem::at(place, format!("{message}, which comes after {text}"))
                .label("never comes to that")
                .help(format!("let {key} be less than {text}, or raise timeouts.response"));
            match written {
                Some(at) => problem.other(at.place, "how long the service may take"),
                None => problem,
            }
        });
    };
    if let Some(At { value: Some(timeout), place, .. }) = retry.attempt_timeout
        && timeout > response
    {
        let text = values::duration_text(timeout);
        never(
            place,
            format!("no attempt takes {text}: each is ended by timeouts.response"),
            "retry.attempt_timeout",
        );
    }
    let Some(At { value: Some(hedge), place, .. }) = retry.hedge_after else { return };
    if services.iter().all(|service| is_alone(service)) {
        problems.warn(|| {
            Problem::at(place, "a request to a service with one endpoint is not hedged")
                .label("never comes to that")
                .help("add another endpoint, or take `hedge_after` out")
        });
    } else if let Hedge::After(after) = hedge
        && after >= response
    {
        let text = values::duration_text(after);
        never(
            place,
            format!("no hedge begins after {text}: the attempt is ended by timeouts.response"),
            "retry.hedge_after",
        );
    }
}

fn words_of(raw: &RawRetry) -> Vec<&'static Word> {
    match &raw.on {
        Some(at) => at.value.clone(),
        None => WORDS.iter().filter(|word| defaults::RETRY_ON.contains(&word.word)).collect(),
    }
}

fn policy(raw: RawRetry) -> Policy {
    let words = words_of(&raw);
    let own = raw.statuses.map_or(defaults::RETRY_STATUSES, |at| at.value);
    Policy {
        attempts_max: match raw.off {
            Some(_) => 1,
            None => value_or(raw.attempts_max, defaults::RETRY_ATTEMPTS_MAX.default),
        },
        on: words.iter().fold(Reasons::NONE, |all, word| all.and(word.reasons)),
        statuses: words.iter().fold(own, |all: Statuses, word| all.and(word.statuses)),
        lists_statuses: own != Statuses::NONE,
        methods: value_or(raw.methods, Vec::new()).into(),
        attempt_timeout: value_or(raw.attempt_timeout, None),
        backoff_base: value_or(raw.backoff_base, defaults::RETRY_BACKOFF_BASE.default),
        backoff_max: value_or(raw.backoff_max, defaults::RETRY_BACKOFF_MAX.default),
        retry_after_max: value_or(raw.retry_after_max, defaults::RETRY_AFTER_MAX.default),
        body_bytes_max: narrow(value_or(raw.body_bytes_max, defaults::RETRY_BODY_BYTES_MAX.default)),
        budget: Budget {
            millionths: value_or(raw.budget_percent, defaults::RETRY_BUDGET_PERCENT.default),
            floor: value_or(raw.budget_floor, defaults::RETRY_BUDGET_FLOOR.default),
        },
        attempt_field: value_or(raw.attempt_header, defaults::RETRY_ATTEMPT_HEADER),
        hedge: value_or(raw.hedge_after, None),
        is_hurried: false,
    }
}
