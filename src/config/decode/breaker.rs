//! `[service.breaker]`. Called by `decode::service`.

use super::super::raw::RawBreaker;
use super::super::reader::{Item, Reader};
use super::super::{defaults, schema};

pub(super) fn breaker(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<RawBreaker> {
    let table = reader.table(&schema::BREAKER, item)?;
    let enabled = table.value("enabled").and_then(|item| reader.flag("service.breaker.enabled", item));
    macro_rules! read {
        ($kind:ident, $name:literal, $key:ident) => {
            table.value($name).and_then(|item| reader.$kind(&defaults::$key, item))
        };
    }
    Some(RawBreaker {
        enabled,
        consecutive_unreachable: read!(count, "consecutive_unreachable", BREAKER_CONSECUTIVE_UNREACHABLE),
        consecutive_failures: read!(count, "consecutive_failures", BREAKER_CONSECUTIVE_FAILURES),
        consecutive_unanswered: read!(count, "consecutive_unanswered", BREAKER_CONSECUTIVE_UNANSWERED),
        failure_percent: read!(count, "failure_percent", BREAKER_FAILURE_PERCENT),
        window: read!(duration, "window", BREAKER_WINDOW),
        requests_min: read!(count, "requests_min", BREAKER_REQUESTS_MIN),
        slow_factor: read!(count, "slow_factor", BREAKER_SLOW_FACTOR),
        slow_min: read!(duration, "slow_min", BREAKER_SLOW_MIN),
        pending_min: read!(count, "pending_min", BREAKER_PENDING_MIN),
        counts_too_many: table
            .value("counts_too_many")
            .and_then(|item| reader.flag("service.breaker.counts_too_many", item)),
        ejection_base: read!(duration, "ejection_base", BREAKER_EJECTION_BASE),
        ejection_max: read!(duration, "ejection_max", BREAKER_EJECTION_MAX),
        ejection_multiplier: read!(count, "ejection_multiplier", BREAKER_EJECTION_MULTIPLIER),
        ejection_jitter_percent: read!(count, "ejection_jitter_percent", BREAKER_EJECTION_JITTER_PERCENT),
        ejected_percent_max: read!(count, "ejected_percent_max", BREAKER_EJECTED_PERCENT_MAX),
        panic_percent: read!(count, "panic_percent", BREAKER_PANIC_PERCENT),
        trial_requests: read!(count, "trial_requests", BREAKER_TRIAL_REQUESTS),
    })
}
