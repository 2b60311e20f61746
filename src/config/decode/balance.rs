//! What of a `[[service]]` says which of its endpoints is chosen, beyond `balance`: hash policy, zones, subsets, slow start,
//! and what of an endpoint these go by. Called by `service`.

use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::super::policy_text;
use super::super::raw::{At, RawChoice, RawSubset};
use super::super::reader::{Item, Opened, Reader, shortened};
use super::super::report::{Place, Problem};
use super::super::values::{self, Complaint};
use super::super::{defaults, schema};
use super::{missing, name, word};
use crate::upstream::affinity::{Cookie, HashOn, HashRule};
use crate::upstream::spec::Labels;

/// The keys of a service that are about the choice.
pub(super) fn choice(reader: &mut Reader<'_>, table: &Opened<'_>) -> RawChoice {
    let mut raw = RawChoice {
        hash: table.value("hash").and_then(|item| hash(reader, item)),
        subsets: table.value("subset").map(|item| subsets(reader, item)).unwrap_or_default(),
        ..RawChoice::default()
    };
    raw.is_hash_wrong = table.value("hash").is_some() && raw.hash.is_none();
    if let Some(item) = table.value("consistent") {
        raw.consistent_place = Some(reader.place(item.span()));
        if let Some(table) = reader.table(&schema::CONSISTENT, item) {
            raw.ring_points =
                table.value("ring_points").and_then(|item| reader.count(&defaults::RING_POINTS, item));
            raw.maglev_places =
                table.value("maglev_places").and_then(|item| reader.count(&defaults::MAGLEV_PLACES, item));
            raw.overload_percent = table.value("overload_percent").and_then(|item| {
                let key = &defaults::OVERLOAD_PERCENT;
                match word(reader, key.name, item, "off") {
                    Some(off) => Some(off.with(None)),
                    None => reader.count(key, item).map(|at| at.with(Some(at.value))),
                }
            });
        }
    }
    if let Some(item) = table.value("zones") {
        raw.zones_place = Some(reader.place(item.span()));
        if let Some(table) = reader.table(&schema::ZONES, item) {
            raw.prefer_own =
                table.value("prefer_own").and_then(|item| reader.flag("service.zones.prefer_own", item));
            raw.zone_endpoints_min = table
                .value("endpoints_min")
                .and_then(|item| reader.count(&defaults::ZONE_ENDPOINTS_MIN, item));
            raw.callers_percent = table
                .value("callers_percent")
                .and_then(|item| hundredths(reader, &defaults::CALLERS_PERCENT, item));
        }
    }
    if let Some(item) = table.value("slow_start")
        && let Some(table) = reader.table(&schema::SLOW_START, item)
    {
        if table.value("window").is_none() {
            let place = reader.place(item.span());
            missing(reader, place, "window", "slow_start", "window = \"30s\"");
        }
        raw.slow_start_window =
            table.value("window").and_then(|item| reader.duration(&defaults::SLOW_START_WINDOW, item));
        raw.aggression =
            table.value("aggression").and_then(|item| hundredths(reader, &defaults::AGGRESSION, item));
        raw.weight_percent_min = table
            .value("weight_percent_min")
            .and_then(|item| reader.count(&defaults::WEIGHT_PERCENT_MIN, item));
    }
    raw
}

fn hash(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<HashRule>>> {
    let key = "service.hash";
    let entries = reader.list(key, item, defaults::HASH_MAX)?;
    let mut rules = Vec::with_capacity(entries.len());
    let (mut is_wrong, mut sets_cookie) = (false, None);
    for entry in entries {
        let DeValue::Table(table) = entry.get_ref() else {
            let help = "write { header = \"x-user\" }, { cookie = \"sid\" }, { source = true }, { query = \"user\" } or \
                        { identity = true }";
            reader.wrong_type::<()>("an entry of service.hash", entry, "a table", help.into());
            is_wrong = true;
            continue;
        };
        let table = reader.open(&schema::HASH, table);
        let place = reader.place(entry.span());
        let Some(rule) = hash_rule(reader, &table, place) else {
            is_wrong = true;
            continue;
        };
        if let HashOn::Cookie(Cookie { ttl: Some(_), .. }) = &rule.on
            && let Some(first) = sets_cookie.replace(place)
        {
            reader.problems.error(|| {
                Problem::at(place, "service.hash: two cookies with a `ttl`")
                    .label("the second")
                    .other(first, "the first")
                    .help("one cookie is set at most: take the `ttl` of the other out")
            });
            is_wrong = true;
        }
        rules.push(rule);
    }
    (!is_wrong).then(|| At { value: rules, place: reader.place(item.span()), variable: 0 })
}

/// What an entry of `service.hash` may go by.
const HASHED: [&str; 5] = ["header", "cookie", "source", "query", "identity"];

fn hash_rule(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> Option<HashRule> {
    let given: Vec<&str> = HASHED.into_iter().filter(|key| table.value(key).is_some()).collect();
    let &[kind] = &*given else {
        reader.problems.error(|| {
            let found = if given.is_empty() { "none is there".to_owned() } else { given.join(" and ") };
            Problem::at(place, "an entry of service.hash goes by one thing")
                .label(found)
                .help(format!("write one of: {}; for two things write two entries", HASHED.join(", ")))
        });
        return None;
    };
    for key in ["ttl", "path"].into_iter().filter(|_| kind != "cookie") {
        if let Some(item) = table.value(key) {
            let place = reader.place(item.span());
            reader.problems.error(|| {
                Problem::at(place, format!("service.hash: `{key}` goes with `cookie` only"))
                    .help("take it out")
            });
            return None;
        }
    }
    let terminal = match table.value("terminal") {
        Some(item) => reader.flag("service.hash.terminal", item)?.value,
        None => false,
    };
    let item = table.value(kind)?;
    let on = match kind {
        "header" => HashOn::Header(
            reader.parsed("service.hash.header", item, "x-user", policy_text::field_name)?.value,
        ),
        "cookie" => {
            let name = |text: &str| match text {
                _ if text.len() <= NAME_MAX && values::token(text).is_ok() => Ok(text.into()),
                _ => Err(Complaint {
                    message: format!("`{}` cannot be the name of a cookie", shortened(text)),
                    help: "write a word of letters, digits, `-` and `_`, such as \"sid\"".into(),
                }),
            };
            HashOn::Cookie(Cookie {
                name: reader.parsed("service.hash.cookie", item, "sid", name)?.value,
                ttl: match table.value("ttl") {
                    Some(item) => Some(reader.duration(&defaults::HASH_COOKIE_TTL, item)?.value),
                    None => None,
                },
                path: match table.value("path") {
                    Some(item) => reader.parsed("service.hash.path", item, "/", cookie_path)?.value,
                    None => "/".into(),
                },
            })
        }
        "query" => {
            let name = |text: &str| match text {
                "" => Err(Complaint { message: "the name is empty".into(), help: "write one".into() }),
                _ if text.len() > NAME_MAX || text.contains(['&', '=', '#', ' ']) => Err(Complaint {
                    message: format!("`{}` cannot be the name of a parameter", shortened(text)),
                    help: "write it as it stands in a query, such as \"user\"".into(),
                }),
                _ => Ok(text.into()),
            };
            HashOn::Query(reader.parsed("service.hash.query", item, "user", name)?.value)
        }
        flag => {
            let key = if flag == "source" { "service.hash.source" } else { "service.hash.identity" };
            let set = reader.flag(key, item)?;
            if !set.value {
                reader.problems.error(|| {
                    Problem::at(set.place, format!("{key} = false says nothing")).help("take the entry out")
                });
                return None;
            }
            if flag == "source" { HashOn::Source } else { HashOn::Identity }
        }
    };
    Some(HashRule { on, terminal })
}

/// Longest name of a cookie or a parameter.
const NAME_MAX: usize = 128;

fn cookie_path(text: &str) -> Result<Box<str>, Complaint> {
    let path = values::path(text)?;
    if path.contains([';', ',']) {
        return Err(Complaint {
            message: "a cookie's path cannot contain `;` or `,`".into(),
            help: "take it out".into(),
        });
    }
    Ok(path.into())
}

fn subsets(reader: &mut Reader<'_>, item: &Item<'_>) -> Vec<RawSubset> {
    let tables = reader.tables(&schema::SUBSET, item, defaults::SUBSETS_MAX);
    let subset = |(table, place): (Opened<'_>, Place)| {
        for (key, example) in [("name", "name = \"v2\""), ("labels", "labels = { version = \"v2\" }")] {
            if table.value(key).is_none() {
                missing(reader, place, key, "a subset", example);
            }
        }
        RawSubset {
            name: table.value("name").and_then(|item| name(reader, "service.subset.name", item, "v2")),
            labels: table.value("labels").and_then(|item| labels(reader, "service.subset.labels", item)),
            fallback: table
                .value("fallback")
                .and_then(|item| name(reader, "service.subset.fallback", item, "any")),
        }
    };
    tables.into_iter().map(subset).collect()
}

/// A table of labels; not empty.
pub(super) fn labels(reader: &mut Reader<'_>, key: &str, item: &Item<'_>) -> Option<At<Labels>> {
    let help = "write { version = \"v2\" }";
    let table: &DeTable<'_> = match item.get_ref() {
        DeValue::Table(table) => table,
        _ => return reader.wrong_type(key, item, "a table", help.into()),
    };
    let place = reader.place(item.span());
    if table.is_empty() || table.len() > defaults::LABELS_MAX {
        reader.problems.error(|| {
            Problem::at(place, format!("{key}: {} labels", table.len()))
                .help(format!("write 1 to {}", defaults::LABELS_MAX))
        });
        return None;
    }
    let mut variable = 0;
    let mut labels = Labels::with_capacity(table.len());
    for (label, value) in table {
        let label_place = reader.place(label.span());
        if let Err(Complaint { message, help }) = values::name(label.get_ref()) {
            reader.problems.error(|| Problem::at(label_place, format!("{key}: {message}")).help(help));
        }
        if let Some(value) = name(reader, key, value, "v2") {
            variable = if variable > 0 { variable } else { value.variable };
            labels.push((reader.word(label.get_ref()), reader.word(&value.value)));
        }
    }
    labels.sort();
    Some(At { value: labels, place, variable })
}

/// A number with up to two digits behind the point, in hundredths. The bounds are hundredths, too.
fn hundredths(reader: &mut Reader<'_>, key: &defaults::Key<u32>, item: &Item<'_>) -> Option<At<u32>> {
    let place = reader.place(item.span());
    let number = match item.get_ref() {
        DeValue::Integer(_) => Reader::number(item).map(|n| n as f64),
        DeValue::Float(float) => float.as_str().replace('_', "").parse::<f64>().ok(),
        _ => {
            let help = format!("write a number, such as {}", f64::from(key.default) / 100.0);
            return reader.wrong_type(key.name, item, "a number", help);
        }
    };
    let value = number.map(|n| n * 100.0).filter(|n| *n >= key.min.into() && *n <= key.max.into());
    let whole = value.filter(|n| (n - n.round()).abs() < 1e-6);
    let Some(value) = whole else {
        reader.problems.error(|| {
            let (min, max) = (f64::from(key.min) / 100.0, f64::from(key.max) / 100.0);
            Problem::at(place, format!("{} is out of its bounds", key.name))
                .help(format!("write {min} to {max}, with at most two digits behind the point"))
        });
        return None;
    };
    Some(At { value: value.round() as u32, place, variable: 0 })
}

/// `[zone]`.
pub(super) fn zone(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Arc<str>>> {
    let table = reader.table(&schema::ZONE, item)?;
    match table.value("name") {
        Some(item) => name(reader, "zone.name", item, "eu-1a"),
        None => {
            let place = reader.place(item.span());
            missing(reader, place, "name", "[zone]", "name = \"${ZONE}\"");
            None
        }
    }
}
