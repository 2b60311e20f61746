//! What has come of `[[rate_limit]]`, for metrics. What shards count is in the limits themselves: see `quota`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::export::Page;
use super::state::State;
use super::store::Store;

/// Of as many limits as services are told apart.
pub(super) fn metrics(page: &mut Page<'_, '_>, of: &State) -> fmt::Result {
    let snapshot = Arc::clone(&of.live().snapshot);
    let quotas = || snapshot.quotas.iter().take(Store::SERVICES_MAX);
    if snapshot.quotas.is_empty() {
        return Ok(());
    }
    page.counter(
        "rate_limit_requests",
        "Requests that a rate limit was asked for, by what came of it: a refused one is counted for the limit that refused it",
        None,
        quotas().flat_map(|quota| {
            let of = |outcome, count: &std::sync::atomic::AtomicU64| {
                ([("limit", &*quota.spec.name), ("outcome", outcome)], count.load(Ordering::Relaxed))
            };
            [of("passed", &quota.counts.passed), of("refused", &quota.counts.refused)]
        }),
    )?;
    page.counter(
        "rate_limit_crowded",
        "Requests whose key found no bucket of its own, because there were keys_max or more, and took from the one for all such",
        None,
        quotas().map(|quota| ([("limit", &*quota.spec.name)], quota.counts.crowded.load(Ordering::Relaxed))),
    )
}
