//! `[[rate_limit]]`: how many requests there may be in a time, and of what. Called by `decode`.

use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::super::raw::At;
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::{Complaint, quoted};
use super::super::{defaults, policy_text, schema};
use super::global_limit::{self, RawGlobalLimit};
use super::policy::not_empty;
use super::{missing, name};
use crate::quota::By;

/// `[[rate_limit]]`.
#[derive(Debug)]
pub(in crate::config) struct RawRateLimit {
    pub(in crate::config) name: Option<At<Arc<str>>>,
    pub(in crate::config) rate: Option<At<u32>>,
    pub(in crate::config) per: Option<At<Duration>>,
    pub(in crate::config) burst: Option<At<u32>>,
    pub(in crate::config) by: Option<At<Vec<By>>>,
    /// Names of routes.
    pub(in crate::config) routes: Option<At<Vec<At<Arc<str>>>>>,
    pub(in crate::config) keys_max: Option<At<u32>>,
    /// Where several proxies share it.
    pub(in crate::config) global: Option<RawGlobalLimit>,
}

pub(super) fn rate_limit(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawRateLimit {
    let name = table.value("name").and_then(|item| name(reader, "rate_limit.name", item, "per-tenant"));
    let routes = table.value("routes").and_then(|item| routes(reader, item));
    if let Some(service) = table.value("service") {
        let global = global_limit::global_limit(reader, table, service, place);
        return RawRateLimit {
            name,
            rate: None,
            per: None,
            burst: None,
            by: None,
            routes,
            keys_max: None,
            global,
        };
    }
    if table.value("rate").is_none() {
        missing(reader, place, "rate", "a rate limit", "rate = 100");
    }
    global_limit::none(reader, table);
    RawRateLimit {
        name,
        rate: table.value("rate").and_then(|item| reader.count(&defaults::RATE_LIMIT_RATE, item)),
        per: table.value("per").and_then(|item| reader.duration(&defaults::RATE_LIMIT_PER, item)),
        burst: table.value("burst").and_then(|item| reader.count(&defaults::RATE_LIMIT_BURST, item)),
        by: table.value("by").and_then(|item| by(reader, item)),
        routes,
        keys_max: table.value("keys_max").and_then(|item| reader.count(&defaults::RATE_LIMIT_KEYS_MAX, item)),
        global: None,
    }
}

fn by(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<By>>> {
    const KEY: &str = "rate_limit.by";
    let place = reader.place(item.span());
    let mut all: Vec<By> = Vec::new();
    for entry in reader.list(KEY, item, defaults::RATE_LIMIT_BY_MAX)? {
        let by = match entry.get_ref() {
            DeValue::Table(_) => {
                let Some(table) = reader.table(&schema::RATE_LIMIT_BY, entry) else { continue };
                let place = reader.place(entry.span());
                for key in ["key", "value"] {
                    if let Some(item) = table.value(key) {
                        let place = reader.place(item.span());
                        reader.problems.error(|| {
                            Problem::at(
                                place,
                                format!("`{key}` is for a service that counts, and this limit has none"),
                            )
                            .help("take it out, or add service = \"limits\"")
                        });
                    }
                }
                let Some(item) = table.value("header") else {
                    missing(reader, place, "header", "such an entry", "header = \"x-tenant\"");
                    continue;
                };
                let name = reader.parsed("rate_limit.by.header", item, "x-tenant", policy_text::field_name);
                name.map(|name| By::Header(name.value))
            }
            _ => reader.parsed(KEY, entry, "identity", word).map(|word| word.value),
        };
        let Some(by) = by else { continue };
        if all.contains(&by) {
            let again = reader.place(entry.span());
            reader.problems.error(|| {
                Problem::at(again, format!("{} is twice in `by`", text(&by))).help("take one of the two out")
            });
            continue;
        }
        all.push(by);
    }
    Some(At { value: all, place, variable: 0 })
}

fn word(text: &str) -> Result<By, Complaint> {
    match text {
        "route" => Ok(By::Route),
        "identity" => Ok(By::Identity),
        "source" => Ok(By::Source),
        _ => Err(Complaint {
            message: format!("`{}` is not known", super::super::reader::shortened(text)),
            help: "write \"route\", \"identity\", \"source\" or { header = \"x-tenant\" }".into(),
        }),
    }
}

/// As it is written.
pub(in crate::config) fn text(by: &By) -> String {
    match by {
        By::Route => quoted("route"),
        By::Identity => quoted("identity"),
        By::Source => quoted("source"),
        By::Header(name) => format!("{{ header = {} }}", quoted(name)),
    }
}

fn routes(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<At<Arc<str>>>>> {
    const KEY: &str = "rate_limit.routes";
    if !not_empty(reader, KEY, item) {
        return None;
    }
    let place = reader.place(item.span());
    let mut all = Vec::new();
    for entry in reader.list(KEY, item, defaults::CONDITION_MAX)? {
        if let Some(text) = reader.string(KEY, entry, "app") {
            let name = Arc::from(text.value.as_ref());
            all.push(text.with(name));
        }
    }
    Some(At { value: all, place, variable: 0 })
}
