//! What a `[[route]]` changes and answers: `request_headers`, `response_headers`, `rewrite`, `redirect`, `respond`, `cors`. Called
//! by `decode`. Refuses fields that frame a message or concern one hop, and what could be understood in two ways.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use toml::de::DeValue;

use super::super::raw::{At, RawPath};
use super::super::reader::{Item, Opened, Reader};
use super::super::report::{Place, Problem};
use super::super::values::{self, Complaint};
use super::super::{defaults, policy_text, route_text, schema};
use super::word;
use crate::route::answer::Respond;
use crate::route::changes::{FieldChanges, is_free};
use crate::route::cors::{Cors, Origin};
use crate::route::path::{BadReplace, NewPath, Replace};
use crate::route::text::{BadText, Text, VALUES};

/// `request_headers` or `response_headers`.
pub(super) fn fields(
    reader: &mut Reader<'_>,
    key: &'static str,
    item: &Item<'_>,
) -> Option<At<FieldChanges>> {
    let section = if key == "request_headers" { &schema::REQUEST_HEADERS } else { &schema::RESPONSE_HEADERS };
    let table = reader.table(section, item)?;
    let of_response = key == "response_headers";
    let mut remove = Vec::new();
    if let Some(item) = table.value("remove") {
        let key = format!("route.{key}.remove");
        for entry in reader.list(&key, item, FieldChanges::FIELDS_MAX)? {
            if let Some(name) = reader.parsed(&key, entry, "x-internal", free_field) {
                remove.push((name.value, name.place));
            }
        }
    }
    let mut of = |word: &'static str| {
        let Some(item) = table.value(word) else { return Vec::new() };
        texts(reader, &format!("route.{key}.{word}"), item, of_response)
    };
    let (set, add) = (of("set"), of("add"));
    for (name, place) in &remove {
        if let Some((_, _, other)) = set.iter().chain(&add).find(|(known, _, _)| known == name) {
            let (place, other) = (*place, *other);
            reader.problems.error(|| {
                Problem::at(place, format!("route.{key}: `{name}` is removed and set"))
                    .label("removed here")
                    .other(other, "set here")
                    .help("`set` takes out what there is; leave out `remove`")
            });
        }
    }
    let without_place = |list: Vec<(HeaderName, Text, Place)>| {
        list.into_iter().map(|(name, text, _)| (name, text)).collect::<Vec<_>>().into_boxed_slice()
    };
    let value = FieldChanges {
        remove: remove.into_iter().map(|(name, _)| name).collect(),
        set: without_place(set),
        add: without_place(add),
    };
    Some(At { value, place: reader.place(item.span()), variable: 0 })
}

/// A table of fields and their values; a value may be a list where a field may stand several times.
fn texts(
    reader: &mut Reader<'_>,
    key: &str,
    item: &Item<'_>,
    of_response: bool,
) -> Vec<(HeaderName, Text, Place)> {
    let DeValue::Table(table) = item.get_ref() else {
        let help = "write { \"x-source\" = \"%{source}\" }".into();
        let _: Option<()> = reader.wrong_type(key, item, "a table", help);
        return Vec::new();
    };
    let mut texts: Vec<(HeaderName, Text, Place)> = Vec::with_capacity(table.len());
    for (name, value) in table {
        let place = reader.place(name.span());
        let field = match free_field(name.get_ref()) {
            Ok(field) => field,
            Err(Complaint { message, help }) => {
                reader.problems.error(|| Problem::at(place, format!("{key}: {message}")).help(help));
                continue;
            }
        };
        let Some(text) = reader.parsed(key, value, "%{source}", |text| self::text(text, of_response)) else {
            continue;
        };
        if texts.len() == FieldChanges::FIELDS_MAX {
            reader.problems.error(|| {
                Problem::at(place, format!("more of {key} than there may be"))
                    .label("the first one too many")
                    .help(format!("at most {} fields are changed", FieldChanges::FIELDS_MAX))
            });
            break;
        }
        if texts.iter().any(|(known, _, _)| *known == field) {
            reader.problems.error(|| {
                Problem::at(place, format!("{key}: `{field}` is written twice, in different case"))
                    .help("take one of the two out")
            });
            continue;
        }
        texts.push((field, text.value, place));
    }
    texts
}

fn free_field(text: &str) -> Result<HeaderName, Complaint> {
    let name = policy_text::field_name(text)?;
    if !is_free(&name) {
        let help = if &*name == "host" {
            "write rewrite = { host = \"app.example\" }"
        } else {
            "leave it out: ringmesh writes and reads this field itself, or it concerns one hop only"
        };
        return Err(Complaint { message: format!("`{name}` cannot be changed"), help: help.into() });
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Complaint {
        message: format!("`{name}` is no field"),
        help: "write a name such as x-tier".into(),
    })
}

fn text(text: &str, of_response: bool) -> Result<Text, Complaint> {
    const BYTES_MAX: usize = 4096;
    let complain = |message: String, help: String| Err(Complaint { message, help });
    if text.len() > BYTES_MAX {
        return complain(
            format!("a value of {} bytes", text.len()),
            format!("at most {BYTES_MAX} are taken"),
        );
    }
    match Text::parse(text) {
        Ok(text) if text.has_status() && !of_response => {
            complain("a request has no %{status}".into(), "it can stand in response_headers".into())
        }
        Ok(text) => Ok(text),
        Err(BadText::Percent) => complain(
            "`%` begins a value".into(),
            "write %% for a percent sign, or %{source} for a value".into(),
        ),
        Err(BadText::Open) => complain("`%{` without `}`".into(), "write a value such as %{source}".into()),
        Err(BadText::Unknown(name)) => {
            let near = super::super::nearest::did_you_mean(&name, VALUES);
            let all = VALUES.map(|name| format!("%{{{name}}}")).join(" ");
            let help =
                near.map_or_else(|| format!("there are: {all}"), |near| format!("{near} There are: {all}"));
            complain(format!("there is no value `{name}`"), help)
        }
        Err(BadText::Control(bad)) => {
            complain(format!("`{}` cannot stand in a field", bad.escape_debug()), "take it out".into())
        }
    }
}

/// Which of the keys of a path is given; at most one.
pub(super) fn path(
    reader: &mut Reader<'_>,
    of: &'static str,
    table: &Opened<'_>,
    place: Place,
) -> Option<At<RawPath>> {
    let key = |word: &str| format!("route.{of}.{word}");
    let given: Vec<_> = ["path", "path_prefix", "path_template", "path_regex"]
        .into_iter()
        .filter_map(|word| Some((word, table.value(word)?)))
        .collect();
    if let [(first, _), (second, item), ..] = given[..] {
        let at = reader.place(item.span());
        reader.problems.error(|| {
            Problem::at(at, format!("`{of}` has either `{first}` or `{second}`")).help("keep one of them")
        });
        return None;
    }
    if let (Some(item), false) = (table.value("path_to"), given.iter().any(|(word, _)| *word == "path_regex"))
    {
        let at = reader.place(item.span());
        reader.problems.error(|| {
            Problem::at(at, "`path_to` without `path_regex`")
                .help("write path_regex = \"/user/(.*)\" and path_to = \"/u/$1\"")
        });
    }
    let (word, item) = *given.first()?;
    match word {
        "path_regex" => {
            let Some(to) = table.value("path_to") else {
                reader.problems.error(|| {
                    Problem::at(place, "`path_regex` without `path_to`")
                        .help("write what comes in its place, such as path_to = \"/u/$1\"")
                });
                return None;
            };
            let regex = reader.string(&key("path_regex"), item, "/user/(.*)")?;
            let to = reader.string(&key("path_to"), to, "/u/$1")?;
            match Replace::parse(&regex.value, &to.value) {
                Ok(replace) => Some(regex.with(RawPath::Made(NewPath::Regex(replace)))),
                Err(BadReplace::Regex(why)) => {
                    let help = "write an expression for the whole path, such as \"/user/(.*)\"".into();
                    let message = format!("it is no expression: {why}");
                    reader.complain(&key("path_regex"), &regex, Complaint { message, help });
                    None
                }
                Err(BadReplace::Group(group, groups)) => {
                    let message = format!("`${group}`, but path_regex has {groups} groups in brackets");
                    let help = "number the groups from $1; $$ is a dollar sign".into();
                    reader.complain(&key("path_to"), &to, Complaint { message, help });
                    None
                }
                Err(BadReplace::Dollar) => {
                    let message = "`$` begins a group".into();
                    let help = "write $1 for the first group, $$ for a dollar sign".into();
                    reader.complain(&key("path_to"), &to, Complaint { message, help });
                    None
                }
            }
        }
        "path_template" => {
            let form = reader.parsed(&key("path_template"), item, "/v2/{id}", route_text::form)?;
            let value = RawPath::Form(form.clone());
            Some(form.with(value))
        }
        "path" => {
            let path =
                reader.parsed(&key("path"), item, "/new", |text| values::path(text).map(Box::<str>::from))?;
            let value = RawPath::Made(NewPath::Whole(path.value.clone()));
            Some(path.with(value))
        }
        _ => {
            let path = reader
                .parsed(&key("path_prefix"), item, "/new", |text| values::path(text).map(Box::<str>::from))?;
            let value = RawPath::Prefix(path.value.trim_end_matches('/').into());
            Some(path.with(value))
        }
    }
}

/// `query`: whether it stays.
pub(super) fn keeps_query(reader: &mut Reader<'_>, of: &str, table: &Opened<'_>) -> bool {
    const WORDS: [(&str, bool); 2] = [("keep", true), ("drop", false)];
    let Some(item) = table.value("query") else { return true };
    reader.choice(&format!("route.{of}.query"), item, &WORDS).is_none_or(|at| at.value)
}

/// A host that requests are sent for or callers sent to: exactly one.
pub(super) fn host(text: &str) -> Result<Box<str>, Complaint> {
    match values::host(text)? {
        crate::route::HostMatch::Exact(host) => Ok(host),
        _ => Err(Complaint {
            message: format!("`{text}` stands for several hosts"),
            help: "write one, such as \"app.example\"".into(),
        }),
    }
}

pub(super) fn respond(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Respond>> {
    let table = reader.table(&schema::RESPOND, item)?;
    let place = reader.place(item.span());
    let status = match table.value("status") {
        Some(item) => reader.count(&defaults::RESPOND_STATUS, item)?.value,
        None => defaults::RESPOND_STATUS.default,
    };
    let body = match table.value("body") {
        Some(item) => {
            let text = reader.string("route.respond.body", item, "closed for today")?;
            if text.value.len() > Respond::BODY_BYTES_MAX {
                let (length, place) = (text.value.len(), text.place);
                reader.problems.error(|| {
                    Problem::at(place, format!("route.respond.body has {length} bytes")).help(format!(
                        "at most {} are kept in memory; let a service answer",
                        Respond::BODY_BYTES_MAX
                    ))
                });
                return None;
            }
            Bytes::copy_from_slice(text.value.as_bytes())
        }
        None => Bytes::new(),
    };
    if matches!(status, 204 | 304) && !body.is_empty() {
        reader.problems.error(|| {
            Problem::at(place, format!("a response with status {status} has no body"))
                .help("leave out `body`")
        });
    }
    let content_type = match table.value("content_type") {
        Some(item) => Some(reader.parsed("route.respond.content_type", item, "text/plain", value)?.value),
        None => (!body.is_empty()).then(|| "text/plain; charset=utf-8".into()),
    };
    let fields = match table.value("headers") {
        Some(item) => texts(reader, "route.respond.headers", item, true),
        None => Vec::new(),
    };
    let fields = fields.into_iter().map(|(name, text, _)| (name, text)).collect();
    Some(At { value: Respond { status, fields, content_type, body }, place, variable: 0 })
}

/// A plain value of a field.
fn value(text: &str) -> Result<Box<str>, Complaint> {
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => Err(Complaint {
            message: format!("`{}` cannot stand in a field", bad.escape_debug()),
            help: "take it out".into(),
        }),
        None if text.trim().is_empty() => {
            Err(Complaint { message: "it is empty".into(), help: "write one, such as \"text/plain\"".into() })
        }
        None => Ok(text.trim().into()),
    }
}

pub(super) fn cors(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Cors>> {
    let table = reader.table(&schema::CORS, item)?;
    let place = reader.place(item.span());
    let list = |reader: &mut Reader<'_>,
                word: &'static str,
                example: &str,
                grammar: fn(&str) -> Result<Box<str>, Complaint>| {
        let Some(item) = table.value(word) else { return Vec::new() };
        let key = format!("route.cors.{word}");
        let entries = reader.list(&key, item, defaults::CORS_ENTRIES_MAX).unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| reader.parsed(&key, entry, example, grammar))
            .map(|at| at.value)
            .collect()
    };
    let any_or_field = |text: &str| if text == "*" { Ok("*".into()) } else { policy_text::field_name(text) };
    let any_or_method = |text: &str| if text == "*" { Ok("*".into()) } else { policy_text::method(text) };
    let mut methods = list(reader, "methods", "GET", any_or_method);
    if methods.is_empty() {
        methods = ["GET", "HEAD", "POST"].map(Box::from).into();
    }
    let headers = list(reader, "headers", "x-token", any_or_field);
    let expose = list(reader, "expose", "x-total", any_or_field);
    let before = reader.problems.errors();
    let mut origins = Vec::new();
    let mut any = None;
    if let Some(item) = table.value("origins") {
        for entry in reader.list("route.cors.origins", item, defaults::CORS_ENTRIES_MAX)? {
            let Some(origin) = origin(reader, entry) else { continue };
            if means_any(&origin) {
                any = Some(reader.place(entry.span()));
            }
            origins.push(origin);
        }
    }
    if origins.is_empty() && reader.problems.errors() == before {
        reader.problems.error(|| {
            Problem::at(place, "`cors` without `origins`")
                .help("write whose pages may read what this route answers, such as origins = [\"https://shop.example\"]")
        });
    }
    let max_age = table.value("max_age").and_then(|item| {
        match word(reader, defaults::CORS_MAX_AGE.name, item, "off") {
            Some(_) => Some(None),
            None => reader.duration(&defaults::CORS_MAX_AGE, item).map(|at| Some(at.value)),
        }
    });
    let max_age: Option<Duration> = max_age.unwrap_or(Some(defaults::CORS_MAX_AGE.default));
    let credentials = table
        .value("credentials")
        .and_then(|item| reader.flag("route.cors.credentials", item))
        .is_some_and(|at| at.value);
    if let (true, Some(any)) = (credentials, any) {
        reader.problems.error(|| {
            Problem::at(
                any,
                "`credentials` with any origin: every page could read what its visitors may see here",
            )
            .label("any origin")
            .help("name the origins, or leave out `credentials`")
        });
    }
    if credentials && expose.iter().any(|name| &**name == "*") {
        reader.problems.error(|| {
            Problem::at(place, "`expose = [\"*\"]` means nothing to a browser where there are credentials")
                .help("name the fields")
        });
    }
    let value = Cors {
        origins: origins.into(),
        methods: methods.into(),
        headers: headers.into(),
        expose: expose.into(),
        max_age,
        credentials,
    };
    Some(At { value, place, variable: 0 })
}

/// Whether pages of any site may: an expression takes two sites that nobody can have (RFC 2606 §2) and that have little in
/// common only if it takes all.
fn means_any(origin: &Origin) -> bool {
    match origin {
        Origin::Any => true,
        Origin::Regex(regex) => [&b"https://7q-x.k.invalid"[..], b"https://w0.invalid:8443"]
            .iter()
            .all(|site| regex.matches(site)),
        Origin::Exact(_) | Origin::Below(..) => false,
    }
}

/// `"https://shop.example"`, `"https://*.shop.example"`, `"*"`, `"null"`, or `{ regex = "…" }`.
fn origin(reader: &mut Reader<'_>, entry: &Item<'_>) -> Option<Origin> {
    let key = "route.cors.origins";
    if let DeValue::Table(_) = entry.get_ref() {
        let table = reader.table(&schema::CORS_ORIGIN, entry)?;
        let item = table.value("regex")?;
        let text = reader.string("route.cors.origins.regex", item, "https://[a-z]+\\.shop\\.example")?;
        return match Replace::parse(&text.value, "") {
            Ok(regex) => Some(Origin::Regex(regex)),
            Err(BadReplace::Regex(why)) => {
                let help = "write an expression for the whole origin".into();
                reader.complain(
                    key,
                    &text,
                    Complaint { message: format!("it is no expression: {why}"), help },
                );
                None
            }
            Err(BadReplace::Group(..) | BadReplace::Dollar) => None,
        };
    }
    let parsed = reader.parsed(key, entry, "https://shop.example", |text| {
        if text == "*" {
            return Ok(Origin::Any);
        }
        if text == "null" {
            return Ok(Origin::Exact("null".into()));
        }
        let complain = |message: String| {
            let help =
                "write scheme and host, such as \"https://shop.example\" or \"https://*.shop.example\"";
            Err(Complaint { message, help: help.into() })
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return complain(format!("`{text}` has no scheme"));
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, Some(port)),
            _ => (rest, None),
        };
        if rest.contains('/') {
            return complain(format!("`{text}` has a path, which browsers do not send"));
        }
        if matches!((scheme, port), ("https", Some("443")) | ("http", Some("80"))) {
            return complain(format!("`{text}` has the usual port, which browsers leave out"));
        }
        if scheme != scheme.to_ascii_lowercase() || rest != rest.to_ascii_lowercase() {
            return complain(format!("`{text}` is not in lower case, as browsers write it"));
        }
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        Ok(match values::host(host)? {
            crate::route::HostMatch::Suffix(suffix) => {
                Origin::Below(format!("{scheme}://").into(), format!("{suffix}{port}").into())
            }
            _ => Origin::Exact(text.into()),
        })
    });
    parsed.map(|at| at.value)
}
