//! What has come of `[[rate_limit]]`, for metrics. What shards count is in the limits themselves: see `quota`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::export::Page;
use super::state::State;
use super::store::Store;
use crate::quota::global::{OnFailure, Why};

/// Of as many limits as services are told apart.
pub(super) fn metrics(page: &mut Page<'_, '_>, of: &State) -> fmt::Result {
    let snapshot = Arc::clone(&of.live().snapshot);
    let quotas = || snapshot.quotas.iter().take(Store::SERVICES_MAX);
    let globals = || snapshot.globals.iter().take(Store::SERVICES_MAX);
    if snapshot.quotas.is_empty() && snapshot.globals.is_empty() {
        return Ok(());
    }
    let counted = quotas().map(|quota| (&*quota.spec.name, &quota.counts.passed, &quota.counts.refused));
    let shared = globals().map(|global| (&*global.spec.name, &global.counts.passed, &global.counts.refused));
    page.counter(
        "rate_limit_requests",
        "Requests that a rate limit was asked for, by what came of it: a refused one is counted for the limit that refused it",
        None,
        counted.chain(shared).flat_map(|(name, passed, refused)| {
            let of = |outcome, count: &AtomicU64| {
                ([("limit", name), ("outcome", outcome)], count.load(Ordering::Relaxed))
            };
            [of("passed", passed), of("refused", refused)]
        }),
    )?;
    if !snapshot.globals.is_empty() {
        page.counter(
            "rate_limit_failures",
            "Requests that the service of a rate limit said nothing of, by why, and by what the limit does with such",
            None,
            globals().flat_map(|global| {
                let outcome = match global.spec.on_failure {
                    OnFailure::Pass => "passed",
                    OnFailure::Refuse => "refused",
                };
                Why::ALL.into_iter().zip(&global.counts.failed).map(move |(why, count)| {
                    let labels = [("limit", &*global.spec.name), ("why", why.label()), ("outcome", outcome)];
                    (labels, count.load(Ordering::Relaxed))
                })
            }),
        )?;
    }
    if snapshot.quotas.is_empty() {
        return Ok(());
    }
    page.counter(
        "rate_limit_crowded",
        "Requests whose key found no bucket of its own, because there were keys_max or more, and took from the one for all such",
        None,
        quotas().map(|quota| ([("limit", &*quota.spec.name)], quota.counts.crowded.load(Ordering::Relaxed))),
    )
}
