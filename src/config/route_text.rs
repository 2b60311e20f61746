//! The grammar of what routes ask for: templates and expressions of paths, values of fields, gRPC names. Text to value, or
//! a complaint that says what to write; and back again. Pure; called by `decode` and `effective`.

use super::values::{self, Complaint, quoted};
use crate::route::filled::Form;
use crate::route::{BadRegex, BadTemplate, Conditions, PathMatch, Regex, Template, Test, What};

fn complain<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Complaint> {
    Err(Complaint { message: message.into(), help: help.into() })
}

/// A template of paths.
pub(super) fn template(text: &str) -> Result<Template, Complaint> {
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(BadTemplate { what, help }) => return complain(what, help),
    };
    for literal in template.literals() {
        values::path(&format!("/{literal}"))?;
    }
    Ok(template)
}

/// A path to be filled with what a template stands for.
pub(super) fn form(text: &str) -> Result<Form, Complaint> {
    let form = match Form::parse(text) {
        Ok(form) => form,
        Err(BadTemplate { what, help }) => return complain(what, help),
    };
    // Each by itself: an octet is encoded within one piece, or not at all.
    for literal in form.literals() {
        values::path(&format!("/{literal}"))?;
    }
    Ok(form)
}

/// An expression for whole paths.
pub(super) fn path_regex(text: &str) -> Result<Regex, Complaint> {
    let regex = regex(text)?;
    if !regex.may_begin_with(b'/') {
        return complain(
            format!("`{}` matches no path: each begins with `/`", super::reader::shortened(text)),
            format!(
                "the whole path must match; write {} or {}",
                quoted(&format!("/{text}")),
                quoted(&format!(".*{text}"))
            ),
        );
    }
    Ok(regex)
}

/// An expression.
pub(super) fn regex(text: &str) -> Result<Regex, Complaint> {
    let shown = super::reader::shortened(text);
    Regex::parse(text).or_else(|bad| match bad {
        BadRegex::Empty => complain("an empty expression", "write one such as \"v[0-9]+\""),
        BadRegex::TooLong => complain(
            format!("an expression of {} characters", text.len()),
            format!("at most {} are taken; write several routes", Regex::BYTES_MAX),
        ),
        BadRegex::Syntax { what, at } => complain(
            format!("`{shown}` is no expression: {what} at character {}", characters(text, at)),
            "the grammar is RE2's, as in Envoy and Istio: no look-around, no back-references; `\\` before a character that \
             is to stand for itself",
        ),
        BadRegex::TooLarge => complain(
            format!("the automaton for `{shown}` takes more than {} KiB", Regex::AUTOMATON_BYTES_MAX / 1024),
            "what counts far behind a `.*` does that (`.*a.{20}`): put it at the begin, or count less",
        ),
    })
}

/// The place in characters, from 1, of an octet.
fn characters(text: &str, at: usize) -> usize {
    text.char_indices().take_while(|(n, _)| *n < at).count() + 1
}

/// What stands in a value or a part of it.
pub(super) fn value(text: &str) -> Result<Box<str>, Complaint> {
    match text.chars().find(|&c| c.is_control() && c != '\t') {
        Some(bad) => complain(format!("`{}` is never sent in a value", bad.escape_debug()), "take it out"),
        None => Ok(text.into()),
    }
}

/// As [`value`], of which a part must be there.
pub(super) fn part(text: &str) -> Result<Box<str>, Complaint> {
    match text {
        "" => complain("every value has an empty part", "write `present = true` for one that is there"),
        _ => value(text),
    }
}

/// The name of a parameter, as it stands when it is decoded.
pub(super) fn parameter(text: &str) -> Result<Box<str>, Complaint> {
    match text {
        "" => complain("a parameter has a name", "write it without `=`, such as version"),
        _ => value(text),
    }
}

/// The name of a cookie.
pub(super) fn cookie(text: &str) -> Result<Box<str>, Complaint> {
    let bad = text.chars().find(|&c| !c.is_ascii_graphic() || "()<>@,;:\\\"/[]?={}".contains(c));
    match bad {
        Some(bad) => complain(
            format!("`{}` cannot stand in the name of a cookie", bad.escape_debug()),
            "write its name alone, a word of letters, digits, `-` and `_`",
        ),
        None if text.is_empty() => complain("the name of a cookie is empty", "write its name"),
        None => Ok(text.into()),
    }
}

/// The full name of a gRPC service: `shop.v1.Cart`.
pub(super) fn grpc_service(text: &str) -> Result<Box<str>, Complaint> {
    if let Some((service, method)) = text.trim_start_matches('/').split_once('/') {
        return complain(
            "this is more than the name of a service",
            format!("write service = {}, method = {}", quoted(service), quoted(method)),
        );
    }
    if text.is_empty() || !text.split('.').all(is_identifier) {
        return complain(
            format!("`{}` is not the name of a gRPC service", super::reader::shortened(text)),
            "write it in full as in its .proto file, package first, such as \"shop.v1.Cart\"",
        );
    }
    Ok(text.into())
}

/// The name of a method of a gRPC service.
pub(super) fn grpc_method(text: &str) -> Result<Box<str>, Complaint> {
    if !is_identifier(text) {
        return complain(
            format!("`{}` is not the name of a gRPC method", super::reader::shortened(text)),
            "write it as in its .proto file, such as \"AddItem\"",
        );
    }
    Ok(text.into())
}

fn is_identifier(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty() && text.bytes().all(legal) && !text.as_bytes()[0].is_ascii_digit()
}

// --- back again ---

/// How a test is written.
pub(crate) fn test_text(test: &Test) -> String {
    let what = match &test.what {
        What::Exact(text) if !test.not => return quoted(text),
        What::Present if test.not => return "{ present = false }".into(),
        What::Present => "present = true".into(),
        What::Exact(text) => format!("exact = {}", quoted(text)),
        What::Prefix(text) => format!("prefix = {}", quoted(text)),
        What::Suffix(text) => format!("suffix = {}", quoted(text)),
        What::Regex(regex) => format!("regex = {}", quoted(regex.as_str())),
        What::Range(from, to) => format!("range = [{from}, {to}]"),
    };
    if test.not { format!("{{ {what}, not = true }}") } else { format!("{{ {what} }}") }
}

/// The key and the value that a path is written with.
pub(crate) fn path_text(path: &PathMatch) -> (&'static str, String) {
    match path {
        PathMatch::Exact(path) => ("path", quoted(path)),
        PathMatch::Prefix(prefix) => ("path_prefix", quoted(prefix)),
        PathMatch::Template(template) => ("path_template", quoted(template.as_str())),
        PathMatch::Regex(regex) => ("path_regex", quoted(regex.as_str())),
    }
}

/// The keys and values that conditions are written with.
pub(crate) fn conditions_text(conditions: &Conditions) -> Vec<(&'static str, String)> {
    fn list<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
        const SHOWN_MAX: usize = 50;
        let shown: Vec<String> = values.iter().take(SHOWN_MAX).map(text).collect();
        match values.len().saturating_sub(SHOWN_MAX) {
            0 => format!("[{}]", shown.join(", ")),
            more => format!("[{}] # and {more} more", shown.join(", ")),
        }
    }
    let tests = |tests: &[(Box<str>, Test)]| {
        let all: Vec<String> =
            tests.iter().map(|(name, test)| format!("{} = {}", quoted(name), test_text(test))).collect();
        format!("{{ {} }}", all.join(", "))
    };
    let Conditions { listeners, ports, methods, grpc, from, labels, sources, headers, query, cookies } =
        conditions;
    let mut keys = Vec::new();
    let mut add = |asked: bool, key, text: &dyn Fn() -> String| {
        if asked {
            keys.push((key, text()));
        }
    };
    add(!listeners.is_empty(), "match.listeners", &|| list(listeners, |name| quoted(name)));
    add(!ports.is_empty(), "match.ports", &|| list(ports, u16::to_string));
    add(!methods.is_empty(), "match.methods", &|| list(methods, |method| quoted(method)));
    add(*grpc, "match.grpc", &|| "{}".into());
    add(!from.is_empty(), "match.from", &|| list(from, |id| quoted(&id.to_string())));
    add(labels.is_some(), "match.labels", &|| {
        labels.as_ref().map_or_else(String::new, |of| super::effective_choice::labels(&of.labels))
    });
    add(!sources.is_empty(), "match.sources", &|| list(sources, |net| quoted(&net.to_string())));
    add(!headers.is_empty(), "match.headers", &|| tests(headers));
    add(!query.is_empty(), "match.query", &|| tests(query));
    add(!cookies.is_empty(), "match.cookies", &|| tests(cookies));
    keys
}
