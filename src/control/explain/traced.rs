//! Whether a request would be recorded for distributed tracing, and who decides that. Asks what shards ask.

use serde_json::json;

use super::Line;
use super::question::Lines;
use crate::authorize::Fields as _;
use crate::config::Tracing;
use crate::trace::propagation::{B3_FIELDS, Fields, TRACEPARENT};

pub(super) fn line(tracing: &Tracing, lines: &Lines<'_>) -> Line {
    let mut fields = Fields::default();
    for name in [TRACEPARENT].into_iter().chain(B3_FIELDS) {
        lines.lines(name).for_each(|value| fields.see(name.as_bytes(), value));
    }
    let incoming = fields.read(tracing.rules.formats);
    let sample = tracing.rules.sample;
    let trace = match incoming.parent {
        Some(parent) => format!("trace {}", parent.trace),
        None => "a new trace".to_owned(),
    };
    let (percent, why) = match incoming.decided {
        Some(true) => (100.0, "its caller says that it is recorded".to_owned()),
        Some(false) => (0.0, "its caller says that it is not recorded".to_owned()),
        None => (sample.value(), format!("its caller says nothing: {sample} % are recorded")),
    };
    let to = tracing.endpoint.to_string();
    let json = json!({
        "trace_id": incoming.parent.map(|parent| parent.trace.to_string()),
        "recorded_percent": percent,
        "decided_by": if incoming.decided.is_some() { "caller" } else { "sample_percent" },
        "endpoint": to,
    });
    Line::new("trace", format!("{trace}; {why}; spans go to {to}"), json)
}
