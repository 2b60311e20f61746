//! `[route.match]`: what a route asks for beside host and path. Called by `decode`. Refuses an empty list or table: it
//! would be read as "nothing" and mean "everything".

use toml::de::DeValue;

use super::super::raw::{At, RawGrpc, RawMatch};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::Complaint;
use super::super::{defaults, policy_text, route_text, schema};
use super::policy::{entries, listeners, not_empty, ports};
use super::tls::ID_EXAMPLE;
use crate::route::{Test, What};

/// The conditions of a route.
pub(super) fn matching(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Box<RawMatch>> {
    let table = reader.table(&schema::ROUTE_MATCH, item)?;
    if !not_empty(reader, "route.match", item) {
        return None;
    }
    let place = reader.place(item.span());
    let mut given = |key: &'static str, name: &str| {
        let item = table.value(key)?;
        not_empty(reader, name, item).then_some(item)
    };
    let from_item = given("from", "route.match.from");
    let labels_item = given("labels", "route.match.labels");
    let sources_item = given("sources", "route.match.sources");
    let methods_item = given("methods", "route.match.methods");
    let listeners_item = given("listeners", "route.match.listeners");
    let ports_item = given("ports", "route.match.ports");
    Some(Box::new(RawMatch {
        place,
        listeners: listeners_item.and_then(|item| listeners(reader, "route.match.listeners", item)),
        ports: ports_item.and_then(|item| ports(reader, "route.match.ports", item)),
        methods: methods_item
            .and_then(|item| entries(reader, "route.match.methods", item, "GET", policy_text::method)),
        grpc: table.value("grpc").and_then(|item| grpc(reader, item)),
        from: from_item
            .and_then(|item| entries(reader, "route.match.from", item, ID_EXAMPLE, policy_text::from)),
        labels: labels_item.and_then(|item| super::balance::labels(reader, "route.match.labels", item)),
        sources: sources_item
            .and_then(|item| entries(reader, "route.match.sources", item, "10.0.0.0/8", policy_text::source)),
        headers: tests(reader, &table, "headers", "route.match.headers", policy_text::field_name),
        query: tests(reader, &table, "query", "route.match.query", route_text::parameter),
        cookies: tests(reader, &table, "cookies", "route.match.cookies", route_text::cookie),
    }))
}

fn grpc(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<RawGrpc>> {
    let table = reader.table(&schema::ROUTE_GRPC, item)?;
    let service = table.value("service").and_then(|item| {
        reader.parsed("route.match.grpc.service", item, "shop.v1.Cart", route_text::grpc_service)
    });
    let method = table
        .value("method")
        .and_then(|item| reader.parsed("route.match.grpc.method", item, "AddItem", route_text::grpc_method));
    let variable = [&service, &method].iter().filter_map(|at| at.as_ref()).map(|at| at.variable).max();
    let value = RawGrpc { service: service.map(|at| at.value), method: method.map(|at| at.value) };
    Some(At { value, place: reader.place(item.span()), variable: variable.unwrap_or(0) })
}

/// Names and what is asked of their values.
type Tests = Vec<(Box<str>, Test, Place)>;

fn tests(
    reader: &mut Reader<'_>,
    table: &Opened<'_>,
    key: &'static str,
    full: &'static str,
    name: impl Fn(&str) -> Result<Box<str>, Complaint>,
) -> Tests {
    let Some(item) = table.value(key) else { return Vec::new() };
    let DeValue::Table(table) = item.get_ref() else {
        let help = "write { name = \"value\" }, or { name = { prefix = \"...\" } }".into();
        let _: Option<()> = reader.wrong_type(full, item, "a table", help);
        return Vec::new();
    };
    if !not_empty(reader, full, item) {
        return Vec::new();
    }
    let mut tests: Tests = Vec::with_capacity(table.len());
    for (count, (written, value)) in table.iter().enumerate() {
        let place = reader.place(written.span());
        if count == TESTS_MAX {
            reader.problems.error(|| {
                Problem::at(place, format!("more of {full} than there may be"))
                    .label("the first one too many")
                    .help(format!("at most {TESTS_MAX} are compared"))
            });
            break;
        }
        let name = match name(written.get_ref()) {
            Ok(name) => Some(name),
            Err(Complaint { message, help }) => {
                reader.problems.error(|| Problem::at(place, format!("{full}: {message}")).help(help));
                None
            }
        };
        let test = test(reader, full, value);
        let (Some(name), Some(test)) = (name, test) else { continue };
        if tests.iter().any(|(known, ..)| *known == name) {
            reader.problems.error(|| {
                Problem::at(place, format!("{full}: `{name}` is written twice, in different case"))
                    .help("take one of the two out")
            });
            continue;
        }
        tests.push((name, test, place));
    }
    tests
}

/// What is asked of one value: a text for just this, or a table.
fn test(reader: &mut Reader<'_>, full: &str, item: &Item<'_>) -> Option<Test> {
    if let DeValue::String(_) = item.get_ref() {
        let exact = reader.parsed(full, item, "gold", route_text::value)?.value;
        return Some(Test { what: What::Exact(exact), not: false });
    }
    if !matches!(item.get_ref(), DeValue::Table(_)) {
        let help = "write a text for just this value, or one of { exact | prefix | suffix | regex | present | range = ... }";
        return reader.wrong_type(full, item, "a text or a table", help.into());
    }
    let table = reader.table(&schema::ROUTE_TEST, item)?;
    let place = reader.place(item.span());
    let is_not = |reader: &mut Reader<'_>| table.value("not").map(|item| reader.flag(full, item));
    let not = match is_not(reader) {
        None => false,
        Some(not) => not?.value,
    };
    let text = |reader: &mut Reader<'_>, key, grammar: fn(&str) -> Result<Box<str>, Complaint>| {
        table.value(key).map(|item| reader.parsed(full, item, "gold", grammar).map(|at| at.value))
    };
    let mut found: Vec<Option<Test>> = Vec::new();
    let plain = |what: Option<What>| what.map(|what| Test { what, not });
    found.extend(text(reader, "exact", route_text::value).map(|text| plain(text.map(What::Exact))));
    found.extend(text(reader, "prefix", route_text::part).map(|text| plain(text.map(What::Prefix))));
    found.extend(text(reader, "suffix", route_text::part).map(|text| plain(text.map(What::Suffix))));
    if let Some(item) = table.value("regex") {
        let regex = reader.parsed(full, item, "v[0-9]+", route_text::regex);
        found.push(plain(regex.map(|at| What::Regex(at.value))));
    }
    if let Some(item) = table.value("range") {
        found.push(plain(range(reader, full, item)));
    }
    if let Some(item) = table.value("present") {
        found.push(present(reader, full, item, not, place));
    }
    let count = found.len();
    if count == 1 {
        return found.pop().flatten();
    }
    reader.problems.error(|| {
        let message = match count {
            0 => format!("{full}: nothing is asked of the value"),
            _ => format!("{full}: a value has one test, this one {count}"),
        };
        Problem::at(place, message).help(
            "write one of exact, prefix, suffix, regex, present, range; and `not = true` to turn it round",
        )
    });
    None
}

fn present(reader: &mut Reader<'_>, full: &str, item: &Item<'_>, not: bool, place: Place) -> Option<Test> {
    let present = reader.flag(full, item)?.value;
    if !present && not {
        reader.problems.error(|| {
            Problem::at(place, format!("{full}: not absent is present")).help("write present = true")
        });
        return None;
    }
    Some(Test { what: What::Present, not: not || !present })
}

/// `[from, to)` in whole numbers.
fn range(reader: &mut Reader<'_>, full: &str, item: &Item<'_>) -> Option<What> {
    let place = reader.place(item.span());
    let help = "write two whole numbers, the first one included and the second one not: [100, 200]";
    let numbers = reader.list(full, item, 2)?;
    let numbers: Option<Vec<i64>> =
        numbers.iter().map(|n| Reader::number(n).and_then(|n| i64::try_from(n).ok())).collect();
    let Some(&[from, to]) = numbers.as_deref() else {
        reader.problems.error(|| Problem::at(place, format!("{full}: not a range of numbers")).help(help));
        return None;
    };
    if from >= to {
        reader.problems.error(|| {
            Problem::at(place, format!("{full}: no number is from {from} to before {to}"))
                .label("empty")
                .help(help)
        });
        return None;
    }
    Some(What::Range(from, to))
}

/// Tests of one kind in one route.
const TESTS_MAX: usize = defaults::TESTS_MAX;
