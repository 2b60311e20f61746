//! `[[rate_limit]]` with a `service`: a limit that several proxies share. Called by `rate_limit`, which reads what both kinds have.

use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::super::raw::At;
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::{Complaint, quoted};
use super::super::{defaults, policy_text, schema};
use super::missing;
use super::policy::not_empty;
use crate::quota::global::{Entry, Of, OnFailure};

/// How `rate_limit.on_failure` is written.
pub(in crate::config) const ON_FAILURE_WORDS: [(&str, OnFailure); 2] =
    [("pass", OnFailure::Pass), ("refuse", OnFailure::Refuse)];

/// What only such a limit has.
#[derive(Debug)]
pub(in crate::config) struct RawGlobalLimit {
    pub(in crate::config) service: At<Box<str>>,
    pub(in crate::config) domain: Option<At<Arc<str>>>,
    pub(in crate::config) entries: Option<At<Vec<Entry>>>,
    pub(in crate::config) hits: Option<At<u32>>,
    pub(in crate::config) timeout: Option<At<Duration>>,
    pub(in crate::config) on_failure: Option<At<OnFailure>>,
}

/// What only limits of this proxy alone have.
const OF_LOCAL: [&str; 4] = ["rate", "per", "burst", "keys_max"];

/// What only limits that are shared have.
const OF_GLOBAL: [&str; 4] = ["domain", "hits", "timeout", "on_failure"];

/// Reports what only a limit that is shared has.
pub(super) fn none(reader: &mut Reader<'_>, table: &Opened<'_>) {
    for (key, place) in given(reader, table, &OF_GLOBAL) {
        reader.problems.error(|| {
            Problem::at(place, format!("`{key}` is of limits that a service counts"))
                .help("name that service: service = \"limits\"; or take it out")
        });
    }
}

pub(super) fn global_limit(
    reader: &mut Reader<'_>,
    table: &Opened<'_>,
    service: &Item<'_>,
    place: Place,
) -> Option<RawGlobalLimit> {
    for (key, place) in given(reader, table, &OF_LOCAL) {
        reader.problems.error(|| {
            Problem::at(place, format!("`{key}` cannot be said here: the service of this limit counts, and knows how many there may be"))
                .help("take it out and write it in the configuration of that service; or take `service` out for a limit of this proxy alone")
        });
    }
    if table.value("by").is_none() {
        missing(
            reader,
            place,
            "by",
            "a rate limit that a service counts",
            "by = [{ header = \"x-tenant\" }]",
        );
    }
    if table.value("domain").is_none() {
        missing(reader, place, "domain", "a rate limit that a service counts", "domain = \"shop\"");
    }
    let service = reader.string("rate_limit.service", service, "limits").map(|text| {
        let name = text.value.as_ref().into();
        text.with(name)
    })?;
    Some(RawGlobalLimit {
        service,
        domain: table.value("domain").and_then(|item| {
            let text = reader.parsed("rate_limit.domain", item, "shop", |text| word(text).map(Arc::from))?;
            Some(text)
        }),
        entries: table.value("by").and_then(|item| entries(reader, item)),
        hits: table.value("hits").and_then(|item| reader.count(&defaults::RATE_LIMIT_HITS, item)),
        timeout: table.value("timeout").and_then(|item| reader.duration(&defaults::RATE_LIMIT_TIMEOUT, item)),
        on_failure: table
            .value("on_failure")
            .and_then(|item| reader.choice("rate_limit.on_failure", item, &ON_FAILURE_WORDS)),
    })
}

fn given(reader: &Reader<'_>, table: &Opened<'_>, keys: &[&'static str]) -> Vec<(&'static str, Place)> {
    keys.iter().filter_map(|key| Some((*key, reader.place(table.value(key)?.span())))).collect()
}

fn entries(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<Entry>>> {
    const KEY: &str = "rate_limit.by";
    if !not_empty(reader, KEY, item) {
        return None;
    }
    let place = reader.place(item.span());
    let mut all = Vec::new();
    for entry in reader.list(KEY, item, defaults::RATE_LIMIT_BY_MAX)? {
        let entry = match entry.get_ref() {
            DeValue::Table(_) => table(reader, entry),
            _ => reader.parsed(KEY, entry, "identity", of_word).map(|at| at.value),
        };
        all.extend(entry);
    }
    Some(At { value: all, place, variable: 0 })
}

fn table(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Entry> {
    let table = reader.table(&schema::RATE_LIMIT_BY, item)?;
    let key = table.value("key").map(|item| reader.parsed("rate_limit.by.key", item, "tenant", word));
    let (default, of) = match (table.value("header"), table.value("value")) {
        (Some(item), None) => {
            let name =
                reader.parsed("rate_limit.by.header", item, "x-tenant", policy_text::field_name)?.value;
            (name.clone(), Of::Header(name))
        }
        (None, Some(item)) => {
            let value = reader.parsed("rate_limit.by.value", item, "checkout", word)?.value;
            ("generic_key".into(), Of::Constant(value))
        }
        (header, _) => {
            let place = reader.place(item.span());
            reader.problems.error(|| {
                let message = match header {
                    Some(_) => "such an entry has either `header` or `value`",
                    None => "such an entry needs `header` or `value`",
                };
                Problem::at(place, message)
                    .help("write { header = \"x-tenant\" }, or { value = \"checkout\" } for a value that is always the same")
            });
            return None;
        }
    };
    let key = match key {
        Some(key) => key?.value,
        None => default,
    };
    Some(Entry { key, of })
}

fn of_word(text: &str) -> Result<Entry, Complaint> {
    let (key, of) = match text {
        "route" => ("route", Of::Route),
        "identity" => ("identity", Of::Identity),
        "source" => ("remote_address", Of::Source),
        _ => {
            return Err(Complaint {
                message: format!("`{}` is not known", super::super::reader::shortened(text)),
                help: "write \"route\", \"identity\", \"source\", { header = \"x-tenant\" } or { value = \"checkout\" }".into(),
            });
        }
    };
    Ok(Entry { key: key.into(), of })
}

fn word(text: &str) -> Result<Box<str>, Complaint> {
    const BYTES_MAX: usize = 256;
    let is_legal = (1..=BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control);
    if is_legal {
        return Ok(text.into());
    }
    Err(Complaint {
        message: format!("`{}` is not a word", super::super::reader::shortened(text)),
        help: format!(
            "write what the service's configuration has, 1 to {BYTES_MAX} octets without control characters"
        ),
    })
}

/// As it is written.
pub(in crate::config) fn text(Entry { key, of }: &Entry) -> String {
    let with_key = |what: &str, value: &str, default: &str| {
        let key = if **key == *default { String::new() } else { format!(", key = {}", quoted(key)) };
        format!("{{ {what} = {}{key} }}", quoted(value))
    };
    match of {
        Of::Route => quoted("route"),
        Of::Identity => quoted("identity"),
        Of::Source => quoted("source"),
        Of::Header(name) => with_key("header", name, name),
        Of::Constant(value) => with_key("value", value, "generic_key"),
    }
}
