//! `[service.breaker]` with its defaults filled in, and what of it does not fit together. Called by `compile`.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use super::super::compiled::{BreakerMarks, CompiledService};
use super::super::defaults;
use super::super::effective::BREAKER_KEYS;
use super::super::raw::{At, Raw, RawBreaker, RawService};
use super::super::report::{Place, Problem, Problems};
use super::super::values::{duration_text, quoted};
use super::service::is_alone;
use super::{From, value_or};
use crate::upstream::spec::Breaker;

/// Most services have this one.
static DEFAULT: LazyLock<Arc<Breaker>> = LazyLock::new(|| Arc::new(rules(&RawBreaker::default())));

/// The rules of a service, and where they came from; `None` where it has none.
pub(super) fn breaker(
    raw: Option<&RawBreaker>,
    from: &From<'_>,
) -> (Option<Arc<Breaker>>, Option<Box<BreakerMarks>>) {
    let Some(raw) = raw else { return (Some(Arc::clone(&DEFAULT)), None) };
    let marks = [
        from.mark_of(raw.enabled.as_ref()),
        from.mark_of(raw.consecutive_unreachable.as_ref()),
        from.mark_of(raw.consecutive_failures.as_ref()),
        from.mark_of(raw.consecutive_unanswered.as_ref()),
        from.mark_of(raw.failure_percent.as_ref()),
        from.mark_of(raw.window.as_ref()),
        from.mark_of(raw.requests_min.as_ref()),
        from.mark_of(raw.slow_factor.as_ref()),
        from.mark_of(raw.slow_min.as_ref()),
        from.mark_of(raw.pending_min.as_ref()),
        from.mark_of(raw.counts_too_many.as_ref()),
        from.mark_of(raw.ejection_base.as_ref()),
        from.mark_of(raw.ejection_max.as_ref()),
        from.mark_of(raw.ejection_multiplier.as_ref()),
        from.mark_of(raw.ejection_jitter_percent.as_ref()),
        from.mark_of(raw.ejected_percent_max.as_ref()),
        from.mark_of(raw.panic_percent.as_ref()),
        from.mark_of(raw.trial_requests.as_ref()),
    ];
    let is_on = value_or(raw.enabled, defaults::BREAKER_ENABLED);
    (is_on.then(|| Arc::new(rules(raw))), Some(Box::new(marks)))
}

fn rules(raw: &RawBreaker) -> Breaker {
    Breaker {
        consecutive_unreachable: value_or(
            raw.consecutive_unreachable,
            defaults::BREAKER_CONSECUTIVE_UNREACHABLE.default,
        ),
        consecutive_failures: value_or(
            raw.consecutive_failures,
            defaults::BREAKER_CONSECUTIVE_FAILURES.default,
        ),
        consecutive_unanswered: value_or(
            raw.consecutive_unanswered,
            defaults::BREAKER_CONSECUTIVE_UNANSWERED.default,
        ),
        failure_percent: value_or(raw.failure_percent, defaults::BREAKER_FAILURE_PERCENT.default),
        window: value_or(raw.window, defaults::BREAKER_WINDOW.default),
        requests_min: value_or(raw.requests_min, defaults::BREAKER_REQUESTS_MIN.default),
        slow_factor: value_or(raw.slow_factor, defaults::BREAKER_SLOW_FACTOR.default),
        slow_min: value_or(raw.slow_min, defaults::BREAKER_SLOW_MIN.default),
        pending_min: value_or(raw.pending_min, defaults::BREAKER_PENDING_MIN.default),
        counts_too_many: value_or(raw.counts_too_many, defaults::BREAKER_COUNTS_TOO_MANY),
        ejection_base: value_or(raw.ejection_base, defaults::BREAKER_EJECTION_BASE.default),
        ejection_max: value_or(raw.ejection_max, defaults::BREAKER_EJECTION_MAX.default),
        ejection_multiplier: value_or(raw.ejection_multiplier, defaults::BREAKER_EJECTION_MULTIPLIER.default),
        ejection_jitter_percent: value_or(
            raw.ejection_jitter_percent,
            defaults::BREAKER_EJECTION_JITTER_PERCENT.default,
        ),
        ejected_percent_max: value_or(raw.ejected_percent_max, defaults::BREAKER_EJECTED_PERCENT_MAX.default),
        panic_percent: value_or(raw.panic_percent, defaults::BREAKER_PANIC_PERCENT.default),
        trial_requests: value_or(raw.trial_requests, defaults::BREAKER_TRIAL_REQUESTS.default),
    }
}

/// Adds the errors of how values fit together.
pub(super) fn check(services: &[RawService], problems: &mut Problems) {
    for raw in services.iter().filter_map(|service| service.breaker.as_deref()) {
        let base = value_or(raw.ejection_base, defaults::BREAKER_EJECTION_BASE.default);
        let max = value_or(raw.ejection_max, defaults::BREAKER_EJECTION_MAX.default);
        // One of them is set: the defaults fit.
        if base > max
            && let Some(place) = raw.ejection_base.or(raw.ejection_max).map(|at| at.place)
        {
            problems.error(|| {
                let (base, max) = (duration_text(base), duration_text(max));
                Problem::at(
                    place,
                    format!("an endpoint cannot be passed over for {base} first and {max} at most"),
                )
                .help("let ejection_base be no more than ejection_max")
            });
        }
    }
}

/// What has no effect.
pub(in crate::config) fn warn(raw: &Raw, problems: &mut Problems) {
    let mirrors = raw.routes.iter().filter_map(|route| route.action.mirror.as_ref());
    let copied: HashSet<&str> =
        mirrors.flat_map(|at| &at.value).map(|mirror| &*mirror.service.value).collect();
    for service in &raw.services {
        let Some(breaker) = &service.breaker else { continue };
        let rules = rules_given(breaker);
        let is_off = breaker.enabled.filter(|at| !at.value);
        match (rules.first(), is_off) {
            (Some(&(_, place)), Some(off)) => problems.warn(|| {
                let names: Vec<String> = rules.iter().map(|(key, _)| format!("`{key}`")).collect();
                Problem::at(place, format!("no effect while the breaker is off: {}", names.join(", ")))
                    .label("not used")
                    .other(off.place, "off")
                    .help("take them out, or `enabled = false`")
            }),
            (None, Some(_)) => {}
            // Whoever gets copies has one: it spares the copies, not the requests.
            (first, None)
                if is_alone(service)
                    && !service.name.as_ref().is_some_and(|name| copied.contains(&*name.value)) =>
            {
                let place = first.map(|(_, place)| *place).or_else(|| breaker.enabled.map(|at| at.place));
                if let Some(place) = place {
                    problems.warn(|| {
                        Problem::at(
                            place,
                            "a service with one endpoint has no breaker: no other could be asked",
                        )
                        .label("not used")
                        .help("add another endpoint, or take `breaker` out")
                    });
                }
            }
            (_, None) => {}
        }
    }
}

/// Each rule that stands in the file, and where.
fn rules_given(raw: &RawBreaker) -> Vec<(&'static str, Place)> {
    fn place<T: Copy>(at: Option<At<T>>) -> Option<Place> {
        at.map(|at| at.place)
    }
    // In the order of the keys, without `enabled`.
    let places = [
        place(raw.consecutive_unreachable),
        place(raw.consecutive_failures),
        place(raw.consecutive_unanswered),
        place(raw.failure_percent),
        place(raw.window),
        place(raw.requests_min),
        place(raw.slow_factor),
        place(raw.slow_min),
        place(raw.pending_min),
        place(raw.counts_too_many),
        place(raw.ejection_base),
        place(raw.ejection_max),
        place(raw.ejection_multiplier),
        place(raw.ejection_jitter_percent),
        place(raw.ejected_percent_max),
        place(raw.panic_percent),
        place(raw.trial_requests),
    ];
    let keys = BREAKER_KEYS.iter().skip(1).map(|key| key.rsplit('.').next().unwrap_or(key));
    keys.zip(places).filter_map(|(key, place)| Some((key, place?))).collect()
}

/// What is in force, in the order of [`BREAKER_KEYS`]; of a breaker that is off only that.
pub(in crate::config) fn values(compiled: &CompiledService) -> [Option<String>; BREAKER_KEYS.len()] {
    let Some(rules) = compiled.service.breaker.as_deref() else {
        let mut off = [const { None }; BREAKER_KEYS.len()];
        off[0] = Some("false".to_owned());
        return off;
    };
    let time = |duration| Some(quoted(&duration_text(duration)));
    [
        Some("true".to_owned()),
        Some(rules.consecutive_unreachable.to_string()),
        Some(rules.consecutive_failures.to_string()),
        Some(rules.consecutive_unanswered.to_string()),
        Some(rules.failure_percent.to_string()),
        time(rules.window),
        Some(rules.requests_min.to_string()),
        Some(rules.slow_factor.to_string()),
        time(rules.slow_min),
        Some(rules.pending_min.to_string()),
        Some(rules.counts_too_many.to_string()),
        time(rules.ejection_base),
        time(rules.ejection_max),
        Some(rules.ejection_multiplier.to_string()),
        Some(rules.ejection_jitter_percent.to_string()),
        Some(rules.ejected_percent_max.to_string()),
        Some(rules.panic_percent.to_string()),
        Some(rules.trial_requests.to_string()),
    ]
}
