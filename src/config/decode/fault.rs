//! `fault` of a `[[route]]`: what it does to its requests on purpose. Called by `action`.

use super::super::raw::At;
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::{defaults, schema};
use super::canary;
use crate::route::fault::{Abort, Delay, Fault, How};
use crate::route::percent::Percent;

pub(super) fn fault(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Fault>> {
    let before = reader.problems.errors();
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT, item)?;
    let delay = table.value("delay").and_then(|item| delay(reader, item));
    let abort = table.value("abort").and_then(|item| abort(reader, item));
    let by_header = table.value("by_header").and_then(|item| reader.flag("route.fault.by_header", item));
    let by_header = by_header.is_some_and(|at| at.value);
    if reader.problems.errors() == before && delay.is_none() && abort.is_none() && !by_header {
        reader.problems.error(|| {
            Problem::at(place, "this fault does nothing").help(
                "write fault = { delay = { percent = 10, fixed = \"200ms\" } }, `abort` or by_header = true",
            )
        });
    }
    Some(At { value: Fault { delay, abort, by_header }, place, variable: 0 })
}

fn share(reader: &mut Reader<'_>, key: &str, table: &Opened<'_>) -> Percent {
    let percent = table.value("percent").and_then(|item| canary::percent(reader, key, item, (0.0, 100.0)));
    percent.and_then(|at| Percent::new(at.value)).unwrap_or(Percent::ALL)
}

fn delay(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Delay> {
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT_DELAY, item)?;
    let percent = share(reader, "route.fault.delay.percent", &table);
    let mut time = |name, key| table.value(name).and_then(|item| reader.duration(key, item));
    let fixed = time("fixed", &defaults::FAULT_DELAY);
    let (least, most) =
        (time("least", &defaults::FAULT_DELAY_LEAST), time("most", &defaults::FAULT_DELAY_MOST));
    let given = ["fixed", "least", "most"].map(|key| table.value(key).is_some());
    match (fixed, least, most) {
        (Some(fixed), None, None) if given == [true, false, false] => {
            Some(Delay { percent, least: fixed.value, most: fixed.value })
        }
        (None, Some(least), Some(most)) if least.value <= most.value => {
            Some(Delay { percent, least: least.value, most: most.value })
        }
        (None, Some(least), Some(most)) => {
            reader.problems.error(|| {
                Problem::at(most.place, "the longest delay is shorter than the shortest")
                    .other(least.place, "the shortest")
                    .help("let `least` be no more than `most`")
            });
            None
        }
        _ if matches!(given, [true, false, false] | [false, true, true]) => None,
        _ => {
            reader.problems.error(|| {
                Problem::at(place, "a delay is either `fixed`, or from `least` to `most`")
                    .help("write delay = { percent = 10, fixed = \"200ms\" }")
            });
            None
        }
    }
}

fn abort(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Abort> {
    let place = reader.place(item.span());
    let table = reader.table(&schema::FAULT_ABORT, item)?;
    let percent = share(reader, "route.fault.abort.percent", &table);
    let status = table.value("status").and_then(|item| reader.count(&defaults::FAULT_STATUS, item));
    let code = table.value("grpc_status").and_then(|item| reader.count(&defaults::FAULT_GRPC_STATUS, item));
    let reset = table.value("reset").and_then(|item| reader.flag("route.fault.abort.reset", item));
    let given: Vec<Place> = ["status", "grpc_status", "reset"]
        .into_iter()
        .filter_map(|key| Some(reader.place(table.value(key)?.span())))
        .collect();
    let how = match given[..] {
        [_] => match (status, code, reset) {
            (Some(status), ..) => Some(How::Status(status.value)),
            (_, Some(code), _) => Some(How::Grpc(code.value)),
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
                Problem::at(second, "an abort is one of `status`, `grpc_status` and `reset`")
                    .label("the second")
                    .other(first, "the first")
                    .help("keep one of them")
            });
            None
        }
        [] => {
            reader.problems.error(|| {
                Problem::at(place, "an abort needs one of `status`, `grpc_status` and `reset`")
                    .help("write abort = { percent = 1, status = 503 }")
            });
            None
        }
    };
    how.map(|how| Abort { percent, how })
}
