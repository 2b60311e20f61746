//! How long the whole exchange may take: what the route says, or its caller in one of the ways that hold here, and which services are
//! told what is left of it. Called by `explain`, a line of its own.

use std::time::Duration;

use serde_json::json;

use super::policies::{Chosen, limit};
use super::{Line, is_grpc};
use crate::authorize::Fields;
use crate::route::deadline::{EXPECTED_TIMEOUT, GRPC_TIMEOUT, expected_timeout};
use crate::snapshot::Snapshot;

/// A time that a caller says by a field.
struct Said {
    field: &'static str,
    /// Why that is not listened to, if it is not.
    unheard: Option<&'static str>,
    /// `None` for what cannot be understood.
    timeout: Option<Duration>,
}

/// The shortest of all that holds.
pub(super) fn line(chosen: &Chosen<'_>) -> Option<Line> {
    if chosen.is_answered() {
        return None;
    }
    let of_route = chosen.route.timeout;
    let timeout = chosen.wishes().map_or(of_route, |wishes| wishes.timeout(of_route));
    let mut shortest = (timeout.unwrap_or(Duration::MAX), None);
    let (mut unheard, mut tells) = (Vec::new(), Vec::new());
    let is_grpc = is_grpc(chosen.snapshot, chosen.call);
    let mut said = said(chosen, is_grpc);
    // The soonest first: what comes behind changes nothing.
    said.sort_by_key(|said| said.timeout);
    for Said { field, unheard: why, timeout } in said {
        match (why, timeout) {
            (Some(why), _) => unheard.push((field, why)),
            (None, None) => unheard.push((field, "it cannot be understood")),
            (None, Some(timeout)) if timeout < shortest.0 => shortest = (timeout, Some(field)),
            (None, Some(_)) => unheard.push((field, "it is no sooner")),
        }
    }
    // A call that says no time has none to be told of, unless the exchange has.
    if chosen.route.deadline_field && shortest.0 != Duration::MAX {
        tells.push(EXPECTED_TIMEOUT);
    }
    if is_grpc && shortest.0 != Duration::MAX {
        tells.push(GRPC_TIMEOUT);
    }
    let (length, seconds) = limit(shortest.0);
    let mut text = format!("{length} for the whole exchange");
    if let Some(by) = shortest.1 {
        text += &format!(", by {by}");
    }
    for (field, why) in &unheard {
        text += &format!("; {field} changes nothing: {why}");
    }
    if !tells.is_empty() {
        text += &format!("; a service is told what is left by {}", tells.join(" and "));
    }
    let unheard: Vec<_> = unheard.iter().map(|(field, why)| json!({ "field": field, "why": why })).collect();
    let json = json!({ "exchange_seconds": seconds, "by": shortest.1, "unheard": unheard, "tells": tells });
    Some(Line::new("timeout", text, json))
}

/// What its caller says by fields that callers may use without `caller_may`.
fn said(chosen: &Chosen<'_>, is_grpc: bool) -> Vec<Said> {
    let first = |name: &'static str| chosen.call.fields.lines(name).next();
    let expected = first(EXPECTED_TIMEOUT).map(|value| Said {
        field: EXPECTED_TIMEOUT,
        unheard: (!chosen.route.deadline_field).then_some("the route has no deadline_header"),
        timeout: expected_timeout(value),
    });
    let of_grpc = first(GRPC_TIMEOUT).map(|value| Said {
        field: GRPC_TIMEOUT,
        unheard: (!is_grpc).then_some("content-type does not say that this is gRPC"),
        timeout: Snapshot::grpc_timeout(value),
    });
    expected.into_iter().chain(of_grpc).collect()
}
