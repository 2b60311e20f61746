//! How much a service is given at a time, with the defaults filled in. Called by `compile::service`; `effective` and `warn`
//! ask it what to show and what is doubtful.

use std::sync::Arc;
use std::time::Duration;

use super::super::compiled::Mark;
use super::super::decode::RawCaps;
use super::super::defaults;
use super::super::report::{Problem, Problems};
use super::super::values::{duration_text, quoted};
use super::{From, value_or};
use crate::upstream::caps::{Caps, Counts};
use crate::upstream::line::Patience;

/// The keys, in the order of their marks.
const KEYS: [&str; 5] =
    ["caps.exchanges_max", "caps.pending_max", "caps.queue_timeout", "caps.queue_target", "caps.retries_max"];

/// What is in force, and where it came from.
#[derive(Debug)]
pub(in crate::config) struct CompiledCaps {
    exchanges_max: u32,
    pending_max: u32,
    queue_timeout: Duration,
    queue_target: Duration,
    retries_max: u32,
    marks: [Mark; 5],
}

pub(super) fn caps(raw: Option<RawCaps>, from: &From<'_>) -> CompiledCaps {
    let raw = raw.unwrap_or_default();
    CompiledCaps {
        marks: [
            from.mark_of(raw.exchanges_max.as_ref()),
            from.mark_of(raw.pending_max.as_ref()),
            from.mark_of(raw.queue_timeout.as_ref()),
            from.mark_of(raw.queue_target.as_ref()),
            from.mark_of(raw.retries_max.as_ref()),
        ],
        exchanges_max: value_or(raw.exchanges_max, defaults::CAPS_EXCHANGES_MAX.default),
        pending_max: value_or(raw.pending_max, defaults::CAPS_PENDING_MAX.default),
        queue_timeout: value_or(raw.queue_timeout, defaults::CAPS_QUEUE_TIMEOUT.default),
        queue_target: value_or(raw.queue_target, defaults::CAPS_QUEUE_TARGET.default),
        retries_max: value_or(raw.retries_max, defaults::CAPS_RETRIES_MAX.default),
    }
}

impl CompiledCaps {
    /// For the shards; `None` where there is no ceiling.
    pub(super) fn declared(&self) -> Option<Arc<Caps>> {
        if self.exchanges_max == u32::MAX && self.retries_max == u32::MAX {
            return None;
        }
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let caps = Caps {
            exchanges_max: self.exchanges_max,
            pending_max: self.pending_max,
            patience: Patience {
                timeout_ns: ns(self.queue_timeout),
                target_ns: ns(self.queue_target.min(self.queue_timeout)),
            },
            retries_max: self.retries_max,
            counts: Counts::new(),
        };
        caps.apply();
        Some(Arc::new(caps))
    }

    /// Each key with its value and where that came from.
    pub(in crate::config) fn shown(&self) -> impl Iterator<Item = (&'static str, String, Mark)> {
        let ceiling = |max: u32| if max == u32::MAX { quoted("unlimited") } else { max.to_string() };
        let time = |duration: Duration| quoted(&duration_text(duration));
        let values = [
            ceiling(self.exchanges_max),
            self.pending_max.to_string(),
            time(self.queue_timeout),
            time(self.queue_target),
            ceiling(self.retries_max),
        ];
        KEYS.into_iter().zip(values).zip(self.marks).map(|((key, value), mark)| (key, value, mark))
    }
}

/// What has no effect.
pub(in crate::config) fn warn(raw: &RawCaps, problems: &mut Problems) {
    if raw.exchanges_max.is_none() {
        let queue = [
            ("pending_max", raw.pending_max.map(|at| at.place)),
            ("queue_timeout", raw.queue_timeout.map(|at| at.place)),
            ("queue_target", raw.queue_target.map(|at| at.place)),
        ];
        for (key, place) in queue {
            if let Some(place) = place {
                problems.warn(|| {
                    Problem::at(place, format!("`{key}` has no effect: nobody waits without a ceiling"))
                        .help("set exchanges_max, or take it out")
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
