//! `[[authorization]]`. Called by `decode`. Refuses a condition with an empty list: it would be read as "nobody" and
//! mean "everybody".

use std::sync::Arc;

use toml::de::DeValue;

use super::super::raw::{At, Fields, RawAuthorization};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::Complaint;
use super::super::{defaults, policy_text};
use super::tls::ID_EXAMPLE;
use super::{missing, name};
use crate::authorize::Action;

/// How `authorization.action` is written.
pub(in crate::config) const ACTION_WORDS: [(&str, Action); 3] =
    [("allow", Action::Allow), ("deny", Action::Deny), ("audit", Action::Audit)];

pub(super) fn authorization(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawAuthorization {
    if table.value("action").is_none() {
        missing(reader, place, "action", "a rule", "action = \"allow\"");
    }
    let mut text = |key: &'static str| {
        let item = table.value(key)?;
        not_empty(reader, &format!("authorization.{key}"), item).then_some(item)
    };
    let [listeners, from, sources, ports, methods, paths] =
        ["listeners", "from", "sources", "ports", "methods", "paths"].map(&mut text);
    RawAuthorization {
        name: table.value("name").and_then(|item| name(reader, "authorization.name", item, "shop-may-read")),
        action: table
            .value("action")
            .and_then(|item| reader.choice("authorization.action", item, &ACTION_WORDS)),
        listeners: listeners.and_then(|item| self::listeners(reader, "authorization.listeners", item)),
        from: from
            .and_then(|item| entries(reader, "authorization.from", item, ID_EXAMPLE, policy_text::from)),
        sources: sources.and_then(|item| {
            entries(reader, "authorization.sources", item, "10.0.0.0/8", policy_text::source)
        }),
        ports: ports.and_then(|item| self::ports(reader, "authorization.ports", item)),
        methods: methods
            .and_then(|item| entries(reader, "authorization.methods", item, "GET", policy_text::method)),
        paths: paths
            .and_then(|item| entries(reader, "authorization.paths", item, "/api/*", policy_text::path)),
        headers: table.value("headers").and_then(|item| headers(reader, item)),
    }
}

/// Reports a list or table that is empty; `full` is the whole name of its key.
pub(super) fn not_empty(reader: &mut Reader<'_>, full: &str, item: &Item<'_>) -> bool {
    let empty = match item.get_ref() {
        DeValue::Array(array) => array.is_empty(),
        DeValue::Table(table) => table.is_empty(),
        _ => false,
    };
    if empty {
        let place = reader.place(item.span());
        reader.problems.error(|| {
            let key = full.rsplit('.').next().unwrap_or(full);
            Problem::at(place, format!("{full} is empty, so that it would mean all, not none"))
                .help(format!("leave `{key}` out for all, or write whom it concerns"))
        });
    }
    !empty
}

/// Strings of a grammar. Those that are wrong are reported and left out.
pub(super) fn entries<T>(
    reader: &mut Reader<'_>,
    key: &str,
    item: &Item<'_>,
    example: &str,
    grammar: impl Fn(&str) -> Result<T, Complaint>,
) -> Option<At<Vec<T>>> {
    let list = reader.list(key, item, defaults::CONDITION_MAX)?;
    let mut variable = 0;
    let mut values = Vec::with_capacity(list.len());
    for entry in list {
        if let Some(value) = reader.parsed(key, entry, example, &grammar) {
            variable = if variable > 0 { variable } else { value.variable };
            values.push(value.value);
        }
    }
    Some(At { value: values, place: reader.place(item.span()), variable })
}

pub(super) fn listeners(
    reader: &mut Reader<'_>,
    key: &str,
    item: &Item<'_>,
) -> Option<At<Vec<At<Arc<str>>>>> {
    let list = reader.list(key, item, defaults::LISTENERS_MAX)?;
    let mut variable = 0;
    let mut listeners = Vec::with_capacity(list.len());
    for entry in list {
        if let Some(name) = reader.string(key, entry, "inbound") {
            variable = if variable > 0 { variable } else { name.variable };
            let text = Arc::from(name.value.as_ref());
            listeners.push(name.with(text));
        }
    }
    Some(At { value: listeners, place: reader.place(item.span()), variable })
}

pub(super) fn ports(reader: &mut Reader<'_>, name: &'static str, item: &Item<'_>) -> Option<At<Vec<u16>>> {
    let key = defaults::Key { name, default: 8080, min: 1, max: u16::MAX };
    let list = reader.list(key.name, item, defaults::CONDITION_MAX)?;
    let mut variable = 0;
    let mut ports = Vec::with_capacity(list.len());
    for entry in list {
        if let Some(port) = reader.count(&key, entry) {
            variable = if variable > 0 { variable } else { port.variable };
            ports.push(port.value);
        }
    }
    Some(At { value: ports, place: reader.place(item.span()), variable })
}

fn headers(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Fields>> {
    let key = "authorization.headers";
    let DeValue::Table(table) = item.get_ref() else {
        let help = "write { \"x-tier\" = \"gold\" }, with \"*\" for a field that is there".into();
        return reader.wrong_type(key, item, "a table", help);
    };
    if !not_empty(reader, key, item) {
        return None;
    }
    let mut variable = 0;
    let mut headers: Fields = Vec::with_capacity(table.len());
    for (count, (name, value)) in table.iter().enumerate() {
        let place = reader.place(name.span());
        if count == HEADERS_MAX {
            reader.problems.error(|| {
                Problem::at(place, format!("more of {key} than there may be"))
                    .label("the first one too many")
                    .help(format!("at most {HEADERS_MAX} fields are compared"))
            });
            break;
        }
        let field = match policy_text::field_name(name.get_ref()) {
            Ok(field) => Some(field),
            Err(Complaint { message, help }) => {
                reader.problems.error(|| Problem::at(place, format!("{key}: {message}")).help(help));
                None
            }
        };
        let value = reader.parsed(key, value, "gold", policy_text::field_value);
        let (Some(field), Some(value)) = (field, value) else { continue };
        if headers.iter().any(|(known, _)| *known == field) {
            reader.problems.error(|| {
                Problem::at(place, format!("{key}: `{field}` is written twice, in different case"))
                    .help("take one of the two out")
            });
            continue;
        }
        variable = if variable > 0 { variable } else { value.variable };
        headers.push((field, value.value));
    }
    Some(At { value: headers, place: reader.place(item.span()), variable })
}

/// Fields of one rule.
const HEADERS_MAX: usize = 32;
