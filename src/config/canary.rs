//! `[[canary]]`: a service that takes over from another step by step, as control conducts it. Types, and how they are shown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::compiled::{Extra, Mark};
use super::values::{duration_text, quoted};

/// A canary, checked: its route has a split with both services, and belongs to no other canary.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// Its name in log, metrics and commands.
    pub name: Arc<str>,
    /// The route whose split it conducts.
    pub route: Arc<str>,
    /// The service that is known to work.
    pub baseline: Arc<str>,
    /// The service that is to take over.
    pub canary: Arc<str>,
    /// How.
    pub rules: CanaryRules,
    /// The file in which it is kept where it stands.
    pub state: PathBuf,
}

/// How a canary goes through its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct CanaryRules {
    /// Shares of the canary in percent: rising, the last is 100.
    pub steps: Box<[f64]>,
    /// How long each lasts at least.
    pub step_time: Duration,
    /// Exchanges of the canary that a step needs at least.
    pub samples_min: u64,
    /// By how much its error rate may exceed the baseline's: 0.005 for half a percent more.
    pub errors_tolerated: f64,
    /// By how much its latencies may exceed the baseline's: 0.25 for a quarter longer.
    pub latency_tolerated: f64,
    /// How probable it may be that one that is no worse is rolled back, over its whole course.
    pub false_alarms_max: f64,
}

/// A canary and where its values came from.
#[derive(Debug)]
pub(super) struct CompiledCanary {
    pub(super) canary: Canary,
    pub(super) shown: Box<[Extra]>,
}

/// A fraction as percent.
pub(super) fn percent_text(fraction: f64) -> String {
    // Six digits: what is written comes out as it was.
    let text = format!("{:.6}", fraction * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Each key with its value, in the order of `marks`.
pub(super) fn shown(canary: &Canary, marks: [Mark; 10]) -> Box<[Extra]> {
    let Canary { route, baseline, canary, rules, state, .. } = canary;
    let steps: Vec<String> = rules.steps.iter().map(|step| percent_text(step / 100.0)).collect();
    let values = [
        ("route", quoted(route)),
        ("baseline", quoted(baseline)),
        ("canary", quoted(canary)),
        ("steps", format!("[{}]", steps.join(", "))),
        ("step_time", quoted(&duration_text(rules.step_time))),
        ("samples_min", rules.samples_min.to_string()),
        ("errors_tolerated", percent_text(rules.errors_tolerated)),
        ("latency_tolerated", percent_text(rules.latency_tolerated)),
        ("false_alarms_max", percent_text(rules.false_alarms_max)),
        ("state", quoted(&state.display().to_string())),
    ];
    values.into_iter().zip(marks).map(|((key, value), mark)| Extra { key, value, mark }).collect()
}
