//! What a `[[route]]` does with its requests: exactly one of `service` and `split`, and `sticky`. Called by `decode`.

use toml::de::DeValue;

use super::super::raw::{At, RawAction, RawShare};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::{self, Complaint};
use super::super::{defaults, policy_text, schema};
use super::missing;
use crate::route::split::{Split, Sticky};

/// The keys of which a route has exactly one.
const ACTIONS: [&str; 2] = ["service", "split"];

pub(super) fn action(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> Box<RawAction> {
    let given: Vec<(&str, Place)> =
        ACTIONS.into_iter().filter_map(|key| Some((key, reader.place(table.value(key)?.span())))).collect();
    match given[..] {
        [] => missing(reader, place, "service", "a route", "service = \"app\""),
        [(first, other), (second, at), ..] => reader.problems.error(|| {
            Problem::at(at, format!("a route has either `{first}` or `{second}`"))
                .label("the second")
                .other(other, "the first")
                .help("keep the one that says what becomes of its requests")
        }),
        [_] => {}
    }
    let split = table.value("split").and_then(|item| split(reader, item));
    let sticky = table.value("sticky").and_then(|item| sticky(reader, item));
    if let (Some(sticky), None) = (&sticky, table.value("split")) {
        let place = sticky.place;
        reader.problems.error(|| {
            Problem::at(place, "`sticky` without `split`: there is only one service to stay with")
                .help("write split = [{ service = \"a\", weight = 90 }, { service = \"b\", weight = 10 }], or take it out")
        });
    }
    Box::new(RawAction { split, sticky })
}

fn split(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<RawShare>>> {
    let before = reader.problems.errors();
    let place = reader.place(item.span());
    let mut shares = Vec::new();
    for (table, place) in reader.tables(&schema::SPLIT, item, Split::SHARES_MAX) {
        let service = match table.value("service") {
            Some(item) => reader.string("route.split.service", item, "app").map(|text| {
                let name = text.value.as_ref().into();
                text.with(name)
            }),
            None => {
                missing(reader, place, "service", "a share of a split", "service = \"app\"");
                None
            }
        };
        let weight = match table.value("weight") {
            Some(item) => reader.count(&defaults::SPLIT_WEIGHT, item).map(|at| at.value),
            None => Some(defaults::SPLIT_WEIGHT.default),
        };
        if let (Some(service), Some(weight)) = (service, weight) {
            shares.push(RawShare { service, weight });
        }
    }
    if reader.problems.errors() == before && shares.iter().all(|share| share.weight == 0) {
        reader.problems.error(|| {
            Problem::at(place, "a split needs a service with a weight above 0")
                .help("write split = [{ service = \"a\", weight = 90 }, { service = \"b\", weight = 10 }]")
        });
    }
    for (n, share) in shares.iter().enumerate() {
        if let Some(first) = shares[..n].iter().find(|first| first.service.value == share.service.value) {
            let (first, again) = (first.service.place, share.service.place);
            reader.problems.error(|| {
                Problem::at(again, format!("service `{}` is twice in this split", share.service.value))
                    .label("again here")
                    .other(first, "first here")
                    .help("give it one weight")
            });
        }
    }
    Some(At { value: shares, place, variable: 0 })
}

fn sticky(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Sticky>> {
    let table = reader.table(&schema::STICKY, item)?;
    let place = reader.place(item.span());
    let mut found = Vec::new();
    for key in schema::STICKY.keys {
        let Some(item) = table.value(key) else { continue };
        let sticky = match *key {
            "header" => reader
                .parsed("route.sticky.header", item, "x-user", policy_text::field_name)
                .map(|at| Sticky::Header(at.value)),
            "cookie" => reader
                .parsed("route.sticky.cookie", item, "user", cookie_name)
                .map(|at| Sticky::Cookie(at.value)),
            "source" => flag(reader, "route.sticky.source", item).map(|()| Sticky::Source),
            _ => flag(reader, "route.sticky.identity", item).map(|()| Sticky::Identity),
        };
        found.push((sticky, reader.place(item.span())));
    }
    if found.len() != 1 {
        reader.problems.error(|| {
            Problem::at(found.get(1).map_or(place, |(_, place)| *place), "`sticky` tells callers apart by exactly one thing")
                .help("write { header = \"x-user\" }, { cookie = \"user\" }, { source = true } or { identity = true }")
        });
    }
    let (sticky, _) = found.into_iter().next()?;
    Some(At { value: sticky?, place, variable: 0 })
}

/// Only `true` says something.
fn flag(reader: &mut Reader<'_>, key: &str, item: &Item<'_>) -> Option<()> {
    if let DeValue::Boolean(false) = item.get_ref() {
        let place = reader.place(item.span());
        reader.problems.error(|| {
            Problem::at(place, format!("{key} is false, which says nothing"))
                .help("write true, or take it out")
        });
        return None;
    }
    reader.flag(key, item).map(drop)
}

/// The name of a cookie (RFC 6265 §4.1.1).
fn cookie_name(text: &str) -> Result<Box<str>, Complaint> {
    values::token(text).map(|()| text.into())
}
