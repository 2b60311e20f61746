//! How much a service is given at a time, with the defaults filled in. Called by `compile::service`; `effective` and `warn`
//! ask it what to show and what is doubtful.

use std::sync::Arc;
use std::time::Duration;

use super::super::compiled::{Extra, Mark};
use super::super::decode::{RawAdmission, RawCaps, RawConcurrency};
use super::super::defaults;
use super::super::raw::At;
use super::super::report::{Problem, Problems};
use super::super::values::{duration_text, quoted};
use super::{From, value_or};
use crate::upstream::caps::{Caps, Counts};
use crate::upstream::line::Patience;
use crate::upstream::{admission, concurrency};

/// The keys, in the order of their marks.
const KEYS: [&str; 6] = [
    "caps.exchanges_max",
    "caps.connections_max",
    "caps.pending_max",
    "caps.queue_timeout",
    "caps.queue_target",
    "caps.retries_max",
];

/// What is in force, and where it came from.
#[derive(Debug)]
pub(in crate::config) struct CompiledCaps {
    exchanges_max: u32,
    connections_max: u32,
    pending_max: u32,
    queue_timeout: Duration,
    queue_target: Duration,
    retries_max: u32,
    marks: [Mark; 6],
    concurrency: Option<concurrency::Settings>,
    admission: Option<admission::Settings>,
    /// The keys of the last two.
    extras: Box<[Extra]>,
}

pub(super) fn caps(
    raw: Option<RawCaps>,
    concurrency: Option<RawConcurrency>,
    admission: Option<RawAdmission>,
    from: &From<'_>,
) -> CompiledCaps {
    let raw = raw.unwrap_or_default();
    let mut extras = Vec::new();
    CompiledCaps {
        concurrency: concurrency.map(|raw| concurrency_settings(&raw, from, &mut extras)),
        admission: admission.map(|raw| admission_settings(&raw, from, &mut extras)),
        extras: extras.into(),
        marks: [
            from.mark_of(raw.exchanges_max.as_ref()),
            from.mark_of(raw.connections_max.as_ref()),
            from.mark_of(raw.pending_max.as_ref()),
            from.mark_of(raw.queue_timeout.as_ref()),
            from.mark_of(raw.queue_target.as_ref()),
            from.mark_of(raw.retries_max.as_ref()),
        ],
        exchanges_max: value_or(raw.exchanges_max, defaults::CAPS_EXCHANGES_MAX.default),
        connections_max: value_or(raw.connections_max, defaults::CAPS_CONNECTIONS_MAX.default),
        pending_max: value_or(raw.pending_max, defaults::CAPS_PENDING_MAX.default),
        queue_timeout: value_or(raw.queue_timeout, defaults::CAPS_QUEUE_TIMEOUT.default),
        queue_target: value_or(raw.queue_target, defaults::CAPS_QUEUE_TARGET.default),
        retries_max: value_or(raw.retries_max, defaults::CAPS_RETRIES_MAX.default),
    }
}

impl CompiledCaps {
    /// For the shards; `None` where there is no ceiling.
    pub(super) fn declared(&self) -> Option<Arc<Caps>> {
        let is_capped =
            [self.exchanges_max, self.connections_max, self.retries_max].iter().any(|max| *max != u32::MAX);
        if !is_capped && self.concurrency.is_none() && self.admission.is_none() {
            return None;
        }
        let caps = Caps {
            exchanges_max: self.exchanges_max,
            pending_max: self.pending_max,
            patience: Patience {
                timeout_ns: ns(self.queue_timeout),
                target_ns: ns(self.queue_target.min(self.queue_timeout)),
            },
            retries_max: self.retries_max,
            connections_max: self.connections_max,
            concurrency: self.concurrency,
            admission: self.admission,
            counts: Counts::new(fastrand::u64(..)),
        };
        caps.apply();
        Some(Arc::new(caps))
    }

    /// Each key with its value and where that came from.
    pub(in crate::config) fn shown(&self) -> impl Iterator<Item = (&'static str, String, Mark)> {
        let extras = self.extras.iter().map(|extra| (extra.key, extra.value.clone(), extra.mark));
        let ceiling = |max: u32| if max == u32::MAX { quoted("unlimited") } else { max.to_string() };
        let time = |duration: Duration| quoted(&duration_text(duration));
        let values = [
            ceiling(self.exchanges_max),
            ceiling(self.connections_max),
            self.pending_max.to_string(),
            time(self.queue_timeout),
            time(self.queue_target),
            ceiling(self.retries_max),
        ];
        KEYS.into_iter()
            .zip(values)
            .zip(self.marks)
            .map(|((key, value), mark)| (key, value, mark))
            .chain(extras)
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn concurrency_settings(
    raw: &RawConcurrency,
    from: &From<'_>,
    extras: &mut Vec<Extra>,
) -> concurrency::Settings {
    let mut count = |key, at: Option<At<u32>>, default| {
        let value = value_or(at, default);
        extras.push(Extra { key, value: value.to_string(), mark: from.mark_of(at.as_ref()) });
        value
    };
    let limit_max = count("concurrency.limit_max", raw.limit_max, defaults::CONCURRENCY_LIMIT_MAX.default);
    // A default gives way to what is written.
    let limit_min = defaults::CONCURRENCY_LIMIT_MIN.default.min(limit_max);
    let limit_min = count("concurrency.limit_min", raw.limit_min, limit_min);
    let limit_initial =
        defaults::CONCURRENCY_LIMIT_INITIAL.default.clamp(limit_min.min(limit_max), limit_max);
    let limit_initial = count("concurrency.limit_initial", raw.limit_initial, limit_initial);
    let tolerance = count(
        "concurrency.tolerance_percent",
        raw.tolerance_percent,
        defaults::CONCURRENCY_TOLERANCE_PERCENT.default,
    );
    let window = value_or(raw.window, defaults::CONCURRENCY_WINDOW.default);
    let (value, mark) = (quoted(&duration_text(window)), from.mark_of(raw.window.as_ref()));
    extras.push(Extra { key: "concurrency.window", value, mark });
    let tolerance = f64::from(tolerance) / 100.0;
    concurrency::Settings { limit_min, limit_max, limit_initial, tolerance, window_ns: ns(window) }
}

fn admission_settings(raw: &RawAdmission, from: &From<'_>, extras: &mut Vec<Extra>) -> admission::Settings {
    let mut count = |key, at: Option<At<u32>>, default| {
        let value = value_or(at, default);
        extras.push(Extra { key, value: value.to_string(), mark: from.mark_of(at.as_ref()) });
        value
    };
    let success_min = count(
        "admission.success_min_percent",
        raw.success_min_percent,
        defaults::ADMISSION_SUCCESS_MIN_PERCENT.default,
    );
    let refuse_max = count(
        "admission.refuse_max_percent",
        raw.refuse_max_percent,
        defaults::ADMISSION_REFUSE_MAX_PERCENT.default,
    );
    let exchanges_min =
        count("admission.exchanges_min", raw.exchanges_min, defaults::ADMISSION_EXCHANGES_MIN.default);
    let window = value_or(raw.window, defaults::ADMISSION_WINDOW.default);
    let (value, mark) = (quoted(&duration_text(window)), from.mark_of(raw.window.as_ref()));
    extras.push(Extra { key: "admission.window", value, mark });
    let part = |percent: u32| f64::from(percent) / 100.0;
    admission::Settings {
        success_min: part(success_min),
        refuse_max: part(refuse_max),
        window_ns: ns(window),
        exchanges_min,
    }
}

/// Limits that contradict each other.
pub(in crate::config) fn check(raw: &RawConcurrency, problems: &mut Problems) {
    let at = |at: Option<At<u32>>, default| at.map_or((default, None), |at| (at.value, Some(at.place)));
    let (max, max_place) = at(raw.limit_max, defaults::CONCURRENCY_LIMIT_MAX.default);
    for (key, limit) in [("limit_min", raw.limit_min), ("limit_initial", raw.limit_initial)] {
        let Some(limit) = limit.filter(|limit| limit.value > max) else { continue };
        problems.error(|| {
            let problem = Problem::at(limit.place, format!("{key} is more than limit_max, which is {max}"))
                .help(format!("write at most {max}, or raise limit_max"));
            match max_place {
                Some(place) => problem.label("the limit").other(place, "the ceiling"),
                None => problem.label("the limit"),
            }
        });
    }
    let (min, min_place) = at(raw.limit_min, defaults::CONCURRENCY_LIMIT_MIN.default);
    if let (Some(initial), Some(place)) = (raw.limit_initial.filter(|limit| limit.value < min), min_place) {
        problems.error(|| {
            Problem::at(initial.place, format!("limit_initial is less than limit_min, which is {min}"))
                .label("the limit")
                .other(place, "the floor")
                .help(format!("write at least {min}"))
        });
    }
}

/// What has no effect.
pub(in crate::config) fn warn(raw: &RawCaps, learnt: Option<&RawConcurrency>, problems: &mut Problems) {
    if let (Some(least), Some(most)) = (learnt.and_then(|learnt| learnt.limit_min), raw.exchanges_max)
        && least.value > most.value
    {
        problems.warn(|| {
            let most_text = most.value;
            Problem::at(
                least.place,
                format!("nothing is learnt: exchanges_max is {most_text}, and holds before"),
            )
            .label("the least that is learnt")
            .other(most.place, "what holds")
            .help(format!("let concurrency.limit_min be less than {most_text}, or raise caps.exchanges_max"))
        });
    }
    if raw.exchanges_max.is_none() && learnt.is_none() {
        // Who waits for a connection has a line of another kind.
        let connections = raw.connections_max.is_some();
        let queue = [
            ("pending_max", raw.pending_max.map(|at| at.place).filter(|_| !connections)),
            ("queue_timeout", raw.queue_timeout.map(|at| at.place).filter(|_| !connections)),
            ("queue_target", raw.queue_target.map(|at| at.place)),
        ];
        for (key, place) in queue {
            if let Some(place) = place {
                problems.warn(|| {
                    Problem::at(place, format!("`{key}` has no effect: nobody waits without a ceiling"))
                        .help("set exchanges_max, add [service.concurrency], or take it out")
                });
            }
        }
    }
    if let (Some(target), timeout) =
        (raw.queue_target, raw.queue_timeout.map_or(defaults::CAPS_QUEUE_TIMEOUT.default, |at| at.value))
        && target.value > timeout
    {
        problems.warn(|| {
            Problem::at(
                target.place,
                format!("a target longer than the timeout of {}", duration_text(timeout)),
            )
            .help("write at most the timeout; the same turns shedding off")
        });
    }
}
