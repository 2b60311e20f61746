//! Actions and changes of a route, as they would be written in a file: for the admin's `/config`. Bounded by what may be
//! written; of a body only its front is shown.

use http::HeaderName;

use super::super::raw::{RawPath, RawRedirect, RawRewrite};
use super::super::values::{duration_text, quoted, size_text};
use crate::route::answer::Respond;
use crate::route::changes::FieldChanges;
use crate::route::cors::{Cors, Origin};
use crate::route::fault::{Bandwidth, Fault, How, Spread, Truncate, Where};
use crate::route::path::NewPath;
use crate::route::split::{SameSite, SetCookie};
use crate::route::text::Text;

/// Characters of a body.
const BODY_SHOWN_MAX: usize = 80;

pub(super) fn cookie(set: &SetCookie) -> String {
    let same_site = match set.same_site {
        SameSite::Lax => "lax",
        SameSite::Strict => "strict",
        SameSite::None => "none",
    };
    let mut keys = vec![format!("name = {}", quoted(&set.name))];
    keys.extend(set.ttl.map(|ttl| format!("ttl = {}", quoted(&duration_text(ttl)))));
    keys.push(format!("path = {}", quoted(&set.path)));
    keys.push(format!("secure = {}, http_only = {}", set.secure, set.http_only));
    keys.push(format!("same_site = {}", quoted(same_site)));
    format!("set_cookie = {}", table(&keys))
}

pub(super) fn redirect(redirect: &RawRedirect) -> String {
    let mut keys = vec![format!("status = {}", redirect.status)];
    keys.extend(redirect.scheme.map(|scheme| format!("scheme = {}", quoted(scheme))));
    keys.extend(redirect.host.as_ref().map(|host| format!("host = {}", quoted(host))));
    keys.extend(redirect.port.map(|port| format!("port = {port}")));
    keys.extend(redirect.path.as_ref().map(path));
    keys.extend((!redirect.keep_query).then(|| "query = \"drop\"".into()));
    table(&keys)
}

pub(super) fn rewrite(rewrite: &RawRewrite) -> String {
    let mut keys: Vec<String> = rewrite.path.iter().map(path).collect();
    keys.extend(rewrite.host.as_ref().map(|host| format!("host = {}", quoted(host))));
    keys.extend((!rewrite.keep_query).then(|| "query = \"drop\"".into()));
    table(&keys)
}

fn path(path: &RawPath) -> String {
    match path {
        RawPath::Prefix(to) => format!("path_prefix = {}", quoted(if to.is_empty() { "/" } else { to })),
        RawPath::Made(NewPath::Whole(path)) => format!("path = {}", quoted(path)),
        RawPath::Made(NewPath::Regex(replace)) => {
            format!("path_regex = {}, path_to = {}", quoted(replace.as_str()), quoted(replace.to()))
        }
        // Made of the other kind when the route is put together.
        RawPath::Made(NewPath::Prefix { to, .. }) => format!("path_prefix = {}", quoted(to)),
        RawPath::Made(NewPath::Filled(filled)) => format!("path_template = {}", quoted(filled.as_str())),
        RawPath::Form(form) => format!("path_template = {}", quoted(form.value.as_str())),
    }
}

pub(super) fn respond(respond: &Respond) -> String {
    let mut keys = vec![format!("status = {}", respond.status)];
    if !respond.body.is_empty() {
        let body = String::from_utf8_lossy(&respond.body);
        let front: String = body.chars().take(BODY_SHOWN_MAX).collect();
        let more = if front.len() < body.len() { "..." } else { "" };
        keys.push(format!("body = {}", quoted(&(front + more))));
    }
    keys.extend(respond.content_type.as_ref().map(|kind| format!("content_type = {}", quoted(kind))));
    keys.extend((!respond.fields.is_empty()).then(|| format!("headers = {}", texts(&respond.fields))));
    table(&keys)
}

pub(super) fn fields(changes: &FieldChanges) -> String {
    let mut keys = Vec::new();
    keys.extend((!changes.set.is_empty()).then(|| format!("set = {}", texts(&changes.set))));
    keys.extend((!changes.add.is_empty()).then(|| format!("add = {}", texts(&changes.add))));
    keys.extend(
        (!changes.remove.is_empty())
            .then(|| format!("remove = {}", list(changes.remove.iter().map(HeaderName::as_str)))),
    );
    table(&keys)
}

fn texts(fields: &[(HeaderName, Text)]) -> String {
    let all: Vec<String> = fields
        .iter()
        .map(|(name, text)| format!("{} = {}", quoted(name.as_str()), quoted(&text.to_string())))
        .collect();
    table(&all)
}

pub(super) fn cors(cors: &Cors) -> String {
    let origins: Vec<String> = cors
        .origins
        .iter()
        .map(|origin| match origin {
            Origin::Any => quoted("*"),
            Origin::Exact(exact) => quoted(exact),
            Origin::Below(scheme, end) => quoted(&format!("{scheme}*{end}")),
            Origin::Regex(regex) => table(&[format!("regex = {}", quoted(regex.as_str()))]),
        })
        .collect();
    let mut keys = vec![format!("origins = [{}]", origins.join(", "))];
    for (key, words) in [("methods", &cors.methods), ("headers", &cors.headers), ("expose", &cors.expose)] {
        keys.extend(
            (!words.is_empty()).then(|| format!("{key} = {}", list(words.iter().map(|word| &**word)))),
        );
    }
    let age = cors.max_age.map_or_else(|| "off".into(), duration_text);
    keys.push(format!("max_age = {}, credentials = {}", quoted(&age), cors.credentials));
    table(&keys)
}

pub(super) fn fault(fault: &Fault) -> String {
    let mut keys = Vec::new();
    keys.extend(fault.delay.map(|delay| {
        let [least, most] = [delay.least, delay.most].map(|time| quoted(&duration_text(time)));
        let spread = match delay.spread {
            Spread::Even if least == most => format!("fixed = {most}"),
            Spread::Even => format!("least = {least}, most = {most}"),
            Spread::Exponential { mean } => {
                format!("exponential = {}, least = {least}, most = {most}", quoted(&duration_text(mean)))
            }
            Spread::Normal { mean, deviation } => format!(
                "normal = {}, deviation = {}, least = {least}, most = {most}",
                quoted(&duration_text(mean)),
                quoted(&duration_text(deviation))
            ),
        };
        format!("delay = {{ percent = {}, {spread} }}", delay.percent)
    }));
    keys.extend(fault.abort.map(|abort| {
        let how = match abort.how {
            How::Status(status) => format!("status = {status}"),
            How::Grpc(code) => format!("grpc_status = {code}"),
            How::Reset => "reset = true".into(),
            How::HalfOpen(most) => format!("half_open_max = {}", quoted(&duration_text(most))),
        };
        format!("abort = {{ percent = {}, {how} }}", abort.percent)
    }));
    keys.extend(fault.truncate.map(|Truncate { percent, at: Where { part, after } }| {
        let after = after.map(|after| format!(", after = {}", quoted(&size_text(after)))).unwrap_or_default();
        let part = part.map(|part| format!(", after_percent = {part}")).unwrap_or_default();
        format!("truncate = {{ percent = {percent}{after}{part} }}")
    }));
    keys.extend(fault.bandwidth.map(|Bandwidth { percent, request_rate, response_rate }| {
        let rate = |key: &str, rate: Option<std::num::NonZeroU64>| {
            rate.map(|rate| format!(", {key} = {}", quoted(&size_text(rate.get())))).unwrap_or_default()
        };
        let rates = rate("request_rate", request_rate) + &rate("response_rate", response_rate);
        format!("bandwidth = {{ percent = {percent}{rates} }}")
    }));
    keys.extend(fault.by_header.then(|| "by_header = true".into()));
    table(&keys)
}

fn list<'w>(words: impl Iterator<Item = &'w str>) -> String {
    format!("[{}]", words.map(quoted).collect::<Vec<_>>().join(", "))
}

fn table(keys: &[String]) -> String {
    if keys.is_empty() { "{}".into() } else { format!("{{ {} }}", keys.join(", ")) }
}
