//! What a `[[route]]` does with its requests: exactly one of `service`, `split`, `redirect` and `respond`, and what goes with
//! them. Called by `decode`.

use toml::de::DeValue;

use super::super::raw::{At, RawAction, RawPath, RawRedirect, RawRewrite, RawShare};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::{self, Complaint};
use super::super::{defaults, policy_text, route_text, schema};
use super::{changes, fault, mirror, missing};
use crate::route::Template;
use crate::route::split::{SameSite, SetCookie, Split, Sticky};

/// The keys of which a route has exactly one.
const ACTIONS: [&str; 4] = ["service", "split", "redirect", "respond"];

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
    if matches!(given[..], [("redirect" | "respond", _)]) {
        let (answer, other) = given[0];
        for key in ["subset", "rewrite", "request_headers", "mirror", "caller_may"] {
            if let Some(item) = table.value(key) {
                let place = reader.place(item.span());
                reader.problems.error(|| {
                    Problem::at(place, format!("`{key}` does not go with `{answer}`"))
                        .label("not used")
                        .other(other, "nothing goes on from here")
                        .help("take it out")
                });
            }
        }
    }
    let split = table.value("split").and_then(|item| split(reader, item));
    let sticky = table.value("sticky").and_then(|item| sticky(reader, item));
    if let (Some(subset), Some(_)) = (table.value("subset"), table.value("split")) {
        let place = reader.place(subset.span());
        reader.problems.error(|| {
            Problem::at(place, "`subset` beside `split`: of which of its services?")
                .help("write it within the split: { service = \"a\", subset = \"v2\", weight = 10 }")
        });
    }
    if let (Some(sticky), None) = (&sticky, table.value("split")) {
        let place = sticky.place;
        reader.problems.error(|| {
            Problem::at(place, "`sticky` without `split`: there is only one service to stay with")
                .help("write split = [{ service = \"a\", weight = 90 }, { service = \"b\", weight = 10 }], or take it out")
        });
    }
    let mut fields = |key| table.value(key).and_then(|item| changes::fields(reader, key, item));
    let (request_headers, response_headers) = (fields("request_headers"), fields("response_headers"));
    Box::new(RawAction {
        split,
        sticky,
        redirect: table.value("redirect").and_then(|item| redirect(reader, table, item)),
        respond: table.value("respond").and_then(|item| changes::respond(reader, item)),
        rewrite: table.value("rewrite").and_then(|item| rewrite(reader, table, item)),
        request_headers,
        response_headers,
        cors: table.value("cors").and_then(|item| changes::cors(reader, item)),
        mirror: table.value("mirror").and_then(|item| mirror::mirror(reader, item)),
        fault: table.value("fault").and_then(|item| fault::fault(reader, item)),
    })
}

/// The name of a subset.
pub(super) fn subset(reader: &mut Reader<'_>, key: &str, item: &Item<'_>) -> Option<At<Box<str>>> {
    let text = reader.string(key, item, "v2")?;
    let name = text.value.as_ref().into();
    Some(text.with(name))
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
            let subset = table.value("subset");
            let subset = subset.and_then(|item| self::subset(reader, "route.split.subset", item));
            shares.push(RawShare { service, subset, weight });
        }
    }
    if reader.problems.errors() == before && shares.iter().all(|share| share.weight == 0) {
        reader.problems.error(|| {
            Problem::at(place, "a split needs a service with a weight above 0")
                .help("write split = [{ service = \"a\", weight = 90 }, { service = \"b\", weight = 10 }]")
        });
    }
    for (n, share) in shares.iter().enumerate() {
        if let Some(first) = shares[..n].iter().find(|first| first.name() == share.name()) {
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

fn redirect(reader: &mut Reader<'_>, route: &Opened<'_>, item: &Item<'_>) -> Option<At<RawRedirect>> {
    const SCHEMES: [(&str, &str); 2] = [("https", "https"), ("http", "http")];
    const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];
    let before = reader.problems.errors();
    let table = reader.table(&schema::REDIRECT, item)?;
    let place = reader.place(item.span());
    let sends = |number: i128| STATUSES.iter().any(|status| i128::from(*status) == number);
    let status = table.value("status").and_then(|item| match Reader::number(item) {
        // No bounds would say which.
        Some(number) if !sends(number) => {
            Some(At { value: number, place: reader.place(item.span()), variable: 0 })
        }
        _ => reader.count(&defaults::REDIRECT_STATUS, item).map(|at| at.with(i128::from(at.value))),
    });
    if let Some(status) = status.filter(|status| !sends(status.value)) {
        reader.problems.error(|| {
            Problem::at(status.place, format!("{} does not send anybody anywhere", status.value))
                .help("write 301, 302, 303, 307 or 308")
        });
    }
    let scheme =
        table.value("scheme").and_then(|item| reader.choice("route.redirect.scheme", item, &SCHEMES));
    let host = table
        .value("host")
        .and_then(|item| reader.parsed("route.redirect.host", item, "www.shop.example", host_alone));
    let port = table.value("port").and_then(|item| reader.count(&defaults::REDIRECT_PORT, item));
    let path = changes::path(reader, "redirect", &table, place);
    check_prefix(reader, route, path.as_ref());
    let keep_query = changes::keeps_query(reader, "redirect", &table);
    if reader.problems.errors() == before
        && scheme.is_none()
        && host.is_none()
        && port.is_none()
        && path.is_none()
    {
        reader.problems.error(|| {
            Problem::at(place, "this redirect sends callers to where they are").help(
                "write what is different: scheme, host, port, path, path_prefix, path_template or path_regex",
            )
        });
    }
    let value = RawRedirect {
        status: status
            .and_then(|at| u16::try_from(at.value).ok())
            .unwrap_or(defaults::REDIRECT_STATUS.default),
        scheme: scheme.map(|at| at.value),
        host: host.map(|at| at.value),
        port: port.map(|at| at.value),
        path: path.map(|at| at.value),
        keep_query,
    };
    Some(At { value, place, variable: 0 })
}

/// A host, whose port has a key of its own.
fn host_alone(text: &str) -> Result<Box<str>, Complaint> {
    match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && changes::host(host).is_ok() => Err(Complaint {
            message: "the port of a redirect stands by itself".into(),
            help: format!("write host = \"{host}\", port = {port}"),
        }),
        _ => changes::host(text),
    }
}

fn rewrite(reader: &mut Reader<'_>, route: &Opened<'_>, item: &Item<'_>) -> Option<At<RawRewrite>> {
    let before = reader.problems.errors();
    let table = reader.table(&schema::REWRITE, item)?;
    let place = reader.place(item.span());
    let path = changes::path(reader, "rewrite", &table, place);
    check_prefix(reader, route, path.as_ref());
    let host = table.value("host").and_then(|item| {
        reader.parsed("route.rewrite.host", item, "app.example", |text| {
            // With a port, too: it is what the service sees as its own address.
            let (name, port) = match text.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok() => (name, Some(port)),
                _ => (text, None),
            };
            let name = changes::host(name)?;
            Ok(port.map_or_else(|| name.clone(), |port| format!("{name}:{port}").into()))
        })
    });
    let keep_query = changes::keeps_query(reader, "rewrite", &table);
    if reader.problems.errors() == before && path.is_none() && host.is_none() && keep_query {
        reader.problems.error(|| {
            Problem::at(place, "this rewrite changes nothing")
                .help("write what is to be different: path, path_prefix, path_template, path_regex or host")
        });
    }
    let value = RawRewrite { path: path.map(|at| at.value), keep_query, host: host.map(|at| at.value) };
    Some(At { value, place, variable: 0 })
}

/// A prefix is replaced by another where the route is found by one.
fn check_prefix(reader: &mut Reader<'_>, route: &Opened<'_>, path: Option<&At<RawPath>>) {
    let other = ["path", "path_template", "path_regex"].iter().find_map(|key| route.value(key));
    if let (Some(At { value: RawPath::Prefix(_), place, .. }), Some(exact)) = (path, other) {
        let (place, exact) = (*place, reader.place(exact.span()));
        reader.problems.error(|| {
            Problem::at(
                place,
                "`path_prefix` takes the place of the route's own path_prefix, which it has not",
            )
            .other(exact, "found by this")
            .help("write `path`, or `path_regex` with `path_to`, in place of `path_prefix`")
        });
    }
}

/// A path is filled where the route is found by a template that has the variables.
pub(super) fn check_variables(
    reader: &mut Reader<'_>,
    action: &RawAction,
    route: &Opened<'_>,
    from: Option<&At<Template>>,
) {
    let rewrite = action.rewrite.as_ref().and_then(|rewrite| rewrite.value.path.as_ref());
    let redirect = action.redirect.as_ref().and_then(|redirect| redirect.value.path.as_ref());
    let Some(RawPath::Form(form)) = rewrite.or(redirect) else { return };
    let Some(from) = from else {
        // One that is none is told of where it stands.
        if route.value("path_template").is_none() {
            reader.problems.error(|| {
                Problem::at(
                    form.place,
                    "`path_template` is filled from the route's own path_template, which it has not",
                )
                .help(
                    "find the route by path_template = \"/users/{id}\", or write `path_regex` with `path_to`",
                )
            });
        }
        return;
    };
    if let Err(name) = form.value.of(&from.value) {
        let names: Vec<String> = from.value.names().map(|name| format!("{{{name}}}")).collect();
        reader.problems.error(|| {
            Problem::at(form.place, format!("`{{{name}}}` stands for nothing"))
                .other(from.place, "no such variable in this")
                .help(format!("there are: {}", names.join(" ")))
        });
    }
}

fn set_cookie(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<Sticky> {
    const SAME_SITE: [(&str, SameSite); 3] =
        [("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)];
    let table = reader.table(&schema::SET_COOKIE, item)?;
    let place = reader.place(item.span());
    let flag = |reader: &mut Reader<'_>, key: &'static str, default: bool| {
        let at =
            table.value(key).and_then(|item| reader.flag(&format!("route.sticky.set_cookie.{key}"), item));
        at.map_or(default, |at| at.value)
    };
    let name = match table.value("name") {
        Some(item) => reader.parsed("route.sticky.set_cookie.name", item, "variant", cookie_name),
        None => {
            missing(reader, place, "name", "a cookie", "name = \"variant\"");
            None
        }
    };
    let ttl = table.value("ttl").and_then(|item| reader.duration(&defaults::COOKIE_TTL, item));
    let path = table.value("path").and_then(|item| {
        reader.parsed("route.sticky.set_cookie.path", item, "/", |text| match text.contains(';') {
            false => values::path(text).map(Box::<str>::from),
            true => {
                Err(Complaint { message: "`;` ends the path of a cookie".into(), help: "take it out".into() })
            }
        })
    });
    let (secure, http_only) = (flag(reader, "secure", false), flag(reader, "http_only", true));
    let same_site = table
        .value("same_site")
        .and_then(|item| reader.choice("route.sticky.set_cookie.same_site", item, &SAME_SITE))
        .map_or(SameSite::Lax, |at| at.value);
    if same_site == SameSite::None && !secure {
        reader.problems.error(|| {
            Problem::at(place, "browsers drop a cookie with same_site = \"none\" that is not secure")
                .help("write secure = true, or another same_site")
        });
    }
    let path = path.map_or_else(|| "/".into(), |at| at.value);
    if let Some(name) = &name {
        check_prefix_of_name(reader, name, secure, &path);
    }
    Some(Sticky::SetCookie(Box::new(SetCookie {
        name: name?.value,
        ttl: ttl.map(|at| at.value),
        path,
        secure,
        http_only,
        same_site,
    })))
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
            "set_cookie" => set_cookie(reader, item),
            "source" => flag(reader, "route.sticky.source", item).map(|()| Sticky::Source),
            _ => flag(reader, "route.sticky.identity", item).map(|()| Sticky::Identity),
        };
        found.push((sticky, reader.place(item.span())));
    }
    if found.len() != 1 {
        reader.problems.error(|| {
            Problem::at(found.get(1).map_or(place, |(_, place)| *place), "`sticky` tells callers apart by exactly one thing")
                .help("write { header = \"x-user\" }, { cookie = \"user\" }, { source = true }, { identity = true } or { set_cookie = { name = \"variant\" } }")
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

/// Names that promise something to browsers, which drop the cookie where that is not so (RFC 6265bis §4.1.3).
fn check_prefix_of_name(reader: &mut Reader<'_>, name: &At<Box<str>>, secure: bool, path: &str) {
    let begins =
        |prefix: &str| name.value.get(..prefix.len()).is_some_and(|b| b.eq_ignore_ascii_case(prefix));
    let (prefix, help) = match (begins("__Host-"), begins("__Secure-")) {
        (true, _) if !secure || path != "/" => ("__Host-", "write secure = true and path = \"/\""),
        (_, true) if !secure => ("__Secure-", "write secure = true"),
        _ => return,
    };
    reader.problems.error(|| {
        Problem::at(
            name.place,
            format!("browsers drop a cookie `{prefix}...` that is not what its name says"),
        )
        .help(format!("{help}, or another name"))
    });
}

/// The name of a cookie (RFC 6265 §4.1.1).
fn cookie_name(text: &str) -> Result<Box<str>, Complaint> {
    const BYTES_MAX: usize = 128;
    if text.len() > BYTES_MAX {
        return Err(Complaint {
            message: format!("a name of {} characters", text.len()),
            help: format!("write one of {BYTES_MAX} at most, such as \"variant\""),
        });
    }
    route_text::cookie(text)
}
