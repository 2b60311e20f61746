//! `fault` of a `[[route]]`: what it does to its requests on purpose. Called by `action`.

use std::num::NonZeroU64;
use std::time::Duration;

use super::super::raw::At;
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::{defaults, schema};
use super::canary;
use crate::route::fault::{Abort, Bandwidth, Delay, Fault, How, Spread, Truncate, Where};
use crate::route::percent::Percent;

pub(super) fn fault(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Fault>> {
    let before = reader.problems.errors();
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT, item)?;
    let delay = table.value("delay").and_then(|item| delay(reader, item));
    let abort = table.value("abort").and_then(|item| abort(reader, item));
    let truncate = table.value("truncate").and_then(|item| truncate(reader, item));
    let bandwidth = table.value("bandwidth").and_then(|item| bandwidth(reader, item));
    let by_header = table.value("by_header").and_then(|item| reader.flag("route.fault.by_header", item));
    let by_header = by_header.is_some_and(|at| at.value);
    let fault = Fault { delay, abort, truncate, bandwidth, by_header };
    if reader.problems.errors() == before && fault == Fault::default() {
        reader.problems.error(|| {
            Problem::at(place, "this fault does nothing").help(
                "write fault = { delay = { percent = 10, fixed = \"200ms\" } }, `abort`, `truncate`, `bandwidth` or by_header = true",
            )
        });
    }
    Some(At { value: fault, place, variable: 0 })
}

fn share(reader: &mut Reader<'_>, key: &str, table: &Opened<'_>) -> Percent {
    let percent = table.value("percent").and_then(|item| canary::percent(reader, key, item, (0.0, 100.0)));
    percent.and_then(|at| Percent::new(at.value)).unwrap_or(Percent::ALL)
}

fn delay(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Delay> {
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT_DELAY, item)?;
    let percent = share(reader, "route.fault.delay.percent", &table);
    let mut time =
        |name, key| table.value(name).map(|item| reader.duration(key, item).ok_or(Wrong)).transpose();
    // Each mistake is told, not the first alone.
    let fixed = time("fixed", &defaults::FAULT_DELAY);
    let exponential = time("exponential", &defaults::FAULT_DELAY_EXPONENTIAL);
    let normal = time("normal", &defaults::FAULT_DELAY_NORMAL);
    let deviation = time("deviation", &defaults::FAULT_DELAY_DEVIATION);
    let least = time("least", &defaults::FAULT_DELAY_LEAST);
    let most = time("most", &defaults::FAULT_DELAY_MOST);
    let (fixed, exponential, normal) = (fixed.ok()?, exponential.ok()?, normal.ok()?);
    let (deviation, least, most) = (deviation.ok()?, least.ok()?, most.ok()?);
    if let (Some(least), Some(most)) = (&least, &most)
        && least.value > most.value
    {
        reader.problems.error(|| {
            Problem::at(most.place, "the longest delay is shorter than the shortest")
                .other(least.place, "the shortest")
                .help("let `least` be no more than `most`")
        });
        return None;
    }
    let is_bounded = least.is_some() && most.is_some();
    let bounds = (
        least.as_ref().map_or(Duration::ZERO, |least| least.value),
        most.as_ref().map_or(Fault::DELAY_MAX, |most| most.value),
    );
    let ((least, most), spread) = match (fixed, exponential, normal, deviation) {
        (Some(fixed), None, None, None) if least.is_none() && most.is_none() => {
            ((fixed.value, fixed.value), Spread::Even)
        }
        (None, None, None, None) if is_bounded => (bounds, Spread::Even),
        (None, Some(mean), None, None) => (bounds, Spread::Exponential { mean: mean.value }),
        (None, None, Some(mean), Some(deviation)) => {
            (bounds, Spread::Normal { mean: mean.value, deviation: deviation.value })
        }
        _ => {
            reader.problems.error(|| {
                Problem::at(
                    place,
                    "a delay is `fixed`, `exponential`, `normal` with a `deviation`, or from `least` to `most`",
                )
                .help("write delay = { percent = 10, fixed = \"200ms\" }, or { normal = \"200ms\", deviation = \"50ms\", most = \"1s\" }")
            });
            return None;
        }
    };
    Some(Delay { percent, least, most, spread })
}

/// It was told what is wrong.
struct Wrong;

fn truncate(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Truncate> {
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT_TRUNCATE, item)?;
    let percent = share(reader, "route.fault.truncate.percent", &table);
    let after = table.value("after").and_then(|item| reader.size(&defaults::FAULT_TRUNCATE_AFTER, item));
    let bounds = defaults::FAULT_TRUNCATE_PERCENT;
    let part = table
        .value("after_percent")
        .and_then(|item| canary::percent(reader, "route.fault.truncate.after_percent", item, bounds))
        .and_then(|at| Percent::new(at.value));
    if ["after", "after_percent"].iter().all(|key| table.value(key).is_none()) {
        reader.problems.error(|| {
            Problem::at(place, "where a body is cut says `after` or `after_percent`")
                .help("write truncate = { percent = 1, after = \"1KiB\" }")
        });
        return None;
    }
    Some(Truncate { percent, at: Where { part, after: after.map(|after| after.value) } })
}

fn bandwidth(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Bandwidth> {
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT_BANDWIDTH, item)?;
    let percent = share(reader, "route.fault.bandwidth.percent", &table);
    if ["request_rate", "response_rate"].iter().all(|key| table.value(key).is_none()) {
        reader.problems.error(|| {
            Problem::at(place, "a bandwidth needs a `response_rate` or a `request_rate`")
                .help("write bandwidth = { percent = 10, response_rate = \"64KiB\" }, which is a second's")
        });
        return None;
    }
    let mut rate = |word, key| {
        let rate = table.value(word).and_then(|item| reader.size(key, item));
        rate.and_then(|rate| NonZeroU64::new(rate.value))
    };
    let request_rate = rate("request_rate", &defaults::FAULT_REQUEST_RATE);
    let response_rate = rate("response_rate", &defaults::FAULT_RESPONSE_RATE);
    Some(Bandwidth { percent, request_rate, response_rate })
}

fn abort(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Abort> {
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT_ABORT, item)?;
    let percent = share(reader, "route.fault.abort.percent", &table);
    let status = table.value("status").and_then(|item| reader.count(&defaults::FAULT_STATUS, item));
    let code = table.value("grpc_status").and_then(|item| reader.count(&defaults::FAULT_GRPC_STATUS, item));
    let reset = table.value("reset").and_then(|item| reader.flag("route.fault.abort.reset", item));
    let half_open = table.value("half_open_max");
    let half_open = half_open.and_then(|item| reader.duration(&defaults::FAULT_HALF_OPEN, item));
    let given: Vec<Place> = ["status", "grpc_status", "reset", "half_open_max"]
        .into_iter()
        .filter_map(|key| Some(reader.place(table.value(key)?.span())))
        .collect();
    let how = match given[..] {
        [_] => match (status, code, half_open, reset) {
            (Some(status), ..) => Some(How::Status(status.value)),
            (_, Some(code), ..) => Some(How::Grpc(code.value)),
            (_, _, Some(most), _) => Some(How::HalfOpen(most.value)),
            (.., Some(reset)) if reset.value => Some(How::Reset),
            (.., Some(reset)) => {
                reader.problems.error(|| {
                    Problem::at(reset.place, "an abort that resets nothing")
                        .help("write `reset = true`, or `status = 503`")
                });
                None
            }
            _ => None,
        },
        [first, second, ..] => {
            reader.problems.error(|| {
                Problem::at(second, "an abort is one of `status`, `grpc_status`, `reset` and `half_open_max`")
                    .label("the second")
                    .other(first, "the first")
                    .help("keep one of them")
            });
            None
        }
        [] => {
            reader.problems.error(|| {
                Problem::at(
                    place,
                    "an abort needs one of `status`, `grpc_status`, `reset` and `half_open_max`",
                )
                .help("write abort = { percent = 1, status = 503 }")
            });
            None
        }
    };
    how.map(|how| Abort { percent, how })
}
