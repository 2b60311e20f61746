//! `retry` of `[[service]]` and `[[route]]`: whether and when a request is sent once more. Called by `decode`.

use std::time::Duration;

use toml::de::DeValue;

use super::super::raw::{At, RawRetry};
use super::super::reader::{Item, Reader};
use super::super::report::Problem;
use super::super::schema::Section;
use super::super::values::Complaint;
use super::super::{defaults, nearest, policy_text};
use super::word;
use crate::upstream::retry::{Hedge, Statuses, WORDS, Word};
use crate::upstream::tail::Quantile;

/// Methods of one policy.
const METHODS_MAX: usize = 32;

pub(super) fn retry(
    reader: &mut Reader<'_>,
    section: &'static Section,
    item: &Item<'_>,
) -> Option<Box<RawRetry>> {
    if let DeValue::String(_) = item.get_ref() {
        let off = reader.parsed(section.path, item, "off", |text| match text {
            "off" => Ok(()),
            _ => Err(Complaint {
                message: format!("`{text}` is not known"),
                help: "write \"off\", or a table with some of its keys, such as { attempts_max = 2 }".into(),
            }),
        })?;
        return Some(Box::new(RawRetry { off: Some(off), ..RawRetry::default() }));
    }
    let table = reader.table(section, item)?;
    let value = |key| table.value(key);
    let raw = RawRetry {
        off: None,
        attempts_max: value("attempts_max")
            .and_then(|item| reader.count(&defaults::RETRY_ATTEMPTS_MAX, item)),
        on: value("on").and_then(|item| on(reader, item)),
        statuses: value("statuses").and_then(|item| statuses(reader, item)),
        methods: value("methods").and_then(|item| methods(reader, item)),
        attempt_timeout: value("attempt_timeout").and_then(|item| attempt_timeout(reader, item)),
        backoff_base: value("backoff_base")
            .and_then(|item| reader.duration(&defaults::RETRY_BACKOFF_BASE, item)),
        backoff_max: value("backoff_max")
            .and_then(|item| reader.duration(&defaults::RETRY_BACKOFF_MAX, item)),
        retry_after_max: value("retry_after_max")
            .and_then(|item| reader.duration(&defaults::RETRY_AFTER_MAX, item)),
        body_bytes_max: value("body_bytes_max")
            .and_then(|item| reader.size(&defaults::RETRY_BODY_BYTES_MAX, item)),
        budget_percent: value("budget_percent").and_then(|item| budget_percent(reader, item)),
        budget_floor: value("budget_floor")
            .and_then(|item| reader.count(&defaults::RETRY_BUDGET_FLOOR, item)),
        attempt_header: value("attempt_header").and_then(|item| reader.flag("retry.attempt_header", item)),
        hedge_after: value("hedge_after").and_then(|item| hedge_after(reader, item)),
    };
    Some(Box::new(raw))
}

fn on(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<&'static Word>>> {
    const KEY: &str = "retry.on";
    let known = || WORDS.iter().map(|known| known.word);
    let entries = reader.list(KEY, item, WORDS.len())?;
    let mut variable = 0;
    let mut words = Vec::with_capacity(entries.len());
    for entry in entries {
        let word = reader.parsed(KEY, entry, "gateway-error", |text| {
            let help = match text {
                "retriable-status-codes" => "write the statuses themselves: statuses = [500]".to_owned(),
                _ => {
                    let all: Vec<_> = known().map(|word| format!("\"{word}\"")).collect();
                    let guess =
                        nearest::did_you_mean(text, known()).map_or_else(String::new, |guess| guess + " ");
                    format!("{guess}Possible: {}", all.join(", "))
                }
            };
            WORDS
                .iter()
                .find(|known| known.word == text)
                .ok_or_else(|| Complaint { message: format!("`{text}` is not known"), help })
        });
        if let Some(word) = word {
            variable = if variable > 0 { variable } else { word.variable };
            words.push(word.value);
        }
    }
    Some(At { value: words, place: reader.place(item.span()), variable })
}

fn statuses(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Statuses>> {
    let key = defaults::Key {
        name: "retry.statuses",
        default: Statuses::MIN,
        min: Statuses::MIN,
        max: Statuses::MAX,
    };
    let entries = reader.list(key.name, item, usize::from(key.max - key.min) + 1)?;
    let mut variable = 0;
    let mut statuses = Statuses::NONE;
    for entry in entries {
        let Some(status) = reader.count(&key, entry) else { continue };
        variable = if variable > 0 { variable } else { status.variable };
        statuses = statuses.with(status.value, status.value);
    }
    Some(At { value: statuses, place: reader.place(item.span()), variable })
}

fn methods(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<Box<str>>>> {
    let entries = reader.list("retry.methods", item, METHODS_MAX)?;
    let mut variable = 0;
    let mut methods = Vec::with_capacity(entries.len());
    for entry in entries {
        let method = reader.parsed("retry.methods", entry, "POST", |text| match text {
            // Left out, it means none besides those that are idempotent.
            "*" => Err(Complaint {
                message: "`*` is not a method".into(),
                help: "write each one that may be sent again, such as \"POST\"".into(),
            }),
            _ => policy_text::method(text),
        });
        if let Some(method) = method {
            variable = if variable > 0 { variable } else { method.variable };
            methods.push(method.value);
        }
    }
    Some(At { value: methods, place: reader.place(item.span()), variable })
}

fn attempt_timeout(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Option<Duration>>> {
    let key = &defaults::RETRY_ATTEMPT_TIMEOUT;
    match word(reader, key.name, item, "off") {
        Some(off) => Some(off.with(None)),
        None => reader.duration(key, item).map(|at| at.with(Some(at.value))),
    }
}

/// A duration, or a percentile: `"p95"`, `"p99.5"`.
fn hedge_after(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Option<Hedge>>> {
    let key = &defaults::RETRY_HEDGE_AFTER;
    if let Some(off) = word(reader, key.name, item, "off") {
        return Some(off.with(None));
    }
    let is_percentile = matches!(item.get_ref(), DeValue::String(text) if text.starts_with('p'));
    if !is_percentile {
        return reader.duration(key, item).map(|at| at.with(Some(Hedge::After(at.value))));
    }
    reader.parsed(key.name, item, "p95", |text| {
        let percent = text.strip_prefix('p').and_then(|number| number.parse::<f64>().ok());
        let thousandths = percent.map(|percent| percent * 10.0).filter(|n| n.fract().abs() < 1e-6);
        let quantile =
            thousandths.filter(|n| (0.0..=1000.0).contains(n)).and_then(|n| Quantile::new(n as u16));
        quantile.map(|quantile| Some(Hedge::Quantile(quantile))).ok_or_else(|| Complaint {
            message: format!("`{text}` is no percentile from p50 to p99.9"),
            help: "write one such as \"p95\", with at most one decimal, or a duration such as \"50ms\""
                .into(),
        })
    })
}

/// A number from 0 to 100, also with a fraction, as millionths.
fn budget_percent(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<u32>> {
    let key = &defaults::RETRY_BUDGET_PERCENT;
    let text = match item.get_ref() {
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        _ => {
            return reader.wrong_type(
                key.name,
                item,
                "a number",
                "write one from 0 to 100, such as 20".into(),
            );
        }
    };
    let place = reader.place(item.span());
    let millionths = text.replace('_', "").parse::<f64>().ok().map(|percent| percent * 10_000.0);
    match millionths.filter(|millionths| (0.0..=f64::from(key.max)).contains(millionths)) {
        Some(millionths) => Some(At { value: millionths.round() as u32, place, variable: 0 }),
        None => {
            reader.problems.error(|| {
                Problem::at(place, format!("{} is {text}, out of its bounds", key.name))
                    .help("write a number from 0 to 100, such as 20 or 0.5")
            });
            None
        }
    }
}
