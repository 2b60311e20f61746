//! `[[canary]]`. Called by `decode`.

use std::path::PathBuf;

use toml::de::DeValue;

use super::super::defaults;
use super::super::raw::{At, RawCanary};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::Complaint;
use super::{missing, name};

pub(super) fn canary(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawCanary {
    for (key, example) in [
        ("name", "name = \"shop\""),
        ("route", "route = \"shop\""),
        ("baseline", "baseline = \"shop\""),
        ("canary", "canary = \"shop-next\""),
    ] {
        if table.value(key).is_none() {
            missing(reader, place, key, "a canary", example);
        }
    }
    let mut named = |key: &'static str| {
        table.value(key).and_then(|item| {
            let text = reader.string(&format!("canary.{key}"), item, "shop")?;
            let name = text.value.as_ref().into();
            Some(text.with(name))
        })
    };
    let (route, baseline, canary) = (named("route"), named("baseline"), named("canary"));
    RawCanary {
        name: table.value("name").and_then(|item| name(reader, "canary.name", item, "shop")),
        route,
        baseline,
        canary,
        steps: table.value("steps").and_then(|item| steps(reader, item)),
        step_time: table.value("step_time").and_then(|item| reader.duration(&defaults::STEP_TIME, item)),
        samples_min: table.value("samples_min").and_then(|item| reader.count(&defaults::SAMPLES_MIN, item)),
        errors_tolerated: table.value("errors_tolerated").and_then(|item| {
            fraction(percent(reader, "canary.errors_tolerated", item, defaults::ERRORS_TOLERATED_BOUNDS))
        }),
        latency_tolerated: table.value("latency_tolerated").and_then(|item| {
            fraction(percent(reader, "canary.latency_tolerated", item, defaults::LATENCY_TOLERATED_BOUNDS))
        }),
        false_alarms_max: table.value("false_alarms_max").and_then(|item| {
            fraction(percent(reader, "canary.false_alarms_max", item, defaults::FALSE_ALARMS_BOUNDS))
        }),
        state: table
            .value("state")
            .and_then(|item| reader.parsed("canary.state", item, "/var/lib/ringmesh/shop.json", file)),
    }
}

fn file(text: &str) -> Result<PathBuf, Complaint> {
    match text {
        _ if text.contains('\0') => Err(Complaint {
            message: "a path cannot contain a NUL character".into(),
            help: "take it out".into(),
        }),
        _ if text.contains('/') && !text.ends_with('/') => Ok(PathBuf::from(text)),
        _ => Err(Complaint {
            message: format!("`{text}` is not the path of a file"),
            help: "write one with a `/`, such as \"/var/lib/ringmesh/shop.json\"".into(),
        }),
    }
}

/// Shares in percent.
fn steps(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Box<[f64]>>> {
    let place = reader.place(item.span());
    let mut steps: Vec<f64> = Vec::new();
    for entry in reader.list("canary.steps", item, defaults::STEPS_MAX)? {
        let step = percent(reader, "canary.steps", entry, (0.01, 100.0))?;
        if steps.last().is_some_and(|last| *last >= step.value) {
            reader.problems.error(|| {
                Problem::at(step.place, "canary.steps do not rise")
                    .help("write shares that rise, such as [1, 5, 25, 50, 100]")
            });
            return None;
        }
        steps.push(step.value);
    }
    if steps.last() != Some(&100.0) || steps.len() < 2 {
        reader.problems.error(|| {
            Problem::at(place, "canary.steps do not lead from a part of the requests to all of them")
                .help("write at least two, the last of them 100, such as [1, 5, 25, 50, 100]")
        });
        return None;
    }
    Some(At { value: steps.into(), place, variable: 0 })
}

/// Percent as a fraction.
fn fraction(percent: Option<At<f64>>) -> Option<At<f64>> {
    percent.map(|at| at.with(at.value / 100.0))
}

/// A number of percent.
fn percent(reader: &mut Reader<'_>, key: &str, item: &Item<'_>, (min, max): (f64, f64)) -> Option<At<f64>> {
    let number = match item.get_ref() {
        DeValue::Integer(_) => Reader::number(item).map(|number| number.clamp(-1_000_000, 1_000_000) as f64),
        DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
        _ => None,
    };
    let place = reader.place(item.span());
    match number {
        None => reader.wrong_type(
            key,
            item,
            "a number of percent",
            format!("write one from {min} to {max}, without quotes"),
        ),
        Some(number) if (min..=max).contains(&number) => Some(At { value: number, place, variable: 0 }),
        Some(number) => {
            reader.problems.error(|| {
                Problem::at(place, format!("{key} is {number} %, out of its bounds"))
                    .help(format!("write a number from {min} to {max}"))
            });
            None
        }
    }
}
