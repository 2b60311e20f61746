//! What a route makes of a request besides choosing its service: an answer of its own, another head, CORS, a canary. Called by
//! `policies`, one function a line; asks the same leaves that shards ask.

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderName;
use serde_json::{Value, json};

use super::Line;
use super::policies::Chosen;
use super::question::Lines;
use crate::config::{duration_text, size_text};
use crate::route::Action;
use crate::route::answer::Respond;
use crate::route::changes::{Change, FieldChanges};
use crate::route::cors::{Cors, Kind, Origin};
use crate::route::fault::{Bandwidth, Fault, How, Spread, Truncate, Where};
use crate::route::split::Sticky;
use crate::route::text::Seen;

/// Stands where the status of the response will be: no value has such an octet.
const STATUS: u8 = 0;

/// A request as changes see it.
fn with_seen<T>(chosen: &Chosen<'_>, then: impl FnOnce(&Seen<'_, '_, Lines<'_>>) -> T) -> T {
    let service = chosen.certain().map_or("", |(service, _)| chosen.service_name(service));
    then(&Seen {
        call: chosen.call,
        target: chosen.head.target.as_bytes(),
        host: chosen.head.authority.as_deref().unwrap_or_default().as_bytes(),
        encrypted: chosen.encrypted,
        route: &chosen.route.name,
        service,
    })
}

fn words(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// Whether it is a preflight, and of a page that may.
pub(super) fn preflight(chosen: &Chosen<'_>) -> Option<bool> {
    let cors = chosen.route.changes.as_ref()?.cors.as_ref()?;
    match with_seen(chosen, |seen| cors.kind(seen)) {
        Kind::Preflight(may) => Some(may),
        Kind::Plain => None,
    }
}

/// Whether the path that it would be sent on with, or elsewhere, is too long.
pub(super) fn is_too_long(chosen: &Chosen<'_>) -> bool {
    let rewrite = chosen.route.changes.as_ref().and_then(|changes| changes.rewrite.as_ref());
    match (&chosen.route.action, rewrite) {
        (Action::Redirect(redirect), _) => with_seen(chosen, |seen| redirect.elsewhere(seen)).is_err(),
        (Action::Service(_) | Action::Split(_), Some(rewrite)) => {
            chosen.head.target.starts_with('/') && with_seen(chosen, |seen| rewrite.target(seen)).is_err()
        }
        _ => false,
    }
}

/// What is answered here.
pub(super) fn answer(chosen: &Chosen<'_>) -> Option<Line> {
    if !chosen.is_answered() {
        return None;
    }
    let made = |by: &str, status: u16| {
        let text = match by {
            "cors" => format!("by cors, with {status}"),
            _ => format!("by this proxy, with {status}: Max-Forwards lets it go no further"),
        };
        Some(Line::new("answer", text, json!({ "by": by, "status": status })))
    };
    match (&chosen.route.action, preflight(chosen)) {
        (_, Some(may)) => made("cors", if may { 204 } else { 403 }),
        (Action::Service(_) | Action::Split(_), None) => made("max_forwards", 200),
        (Action::Redirect(redirect), None) => {
            let to = with_seen(chosen, |seen| redirect.elsewhere(seen));
            let (status, text) = match &to {
                Ok(Some(to)) => {
                    (redirect.status, format!("by the route, with {} to {}", redirect.status, words(to)))
                }
                Ok(None) => (404, "by the route, with 404: the redirect would lead to itself".into()),
                Err(_) => {
                    (redirect.status, "by the route: it would be sent to a path that is too long".into())
                }
            };
            let to = to.ok().flatten().map(|to| words(&to));
            Some(Line::new("answer", text, json!({ "by": "redirect", "status": status, "location": to })))
        }
        (Action::Respond(respond), None) => Some(responded(chosen, respond)),
    }
}

/// An answer as it is configured. The mark of its body tells two apart that begin alike.
fn responded(chosen: &Chosen<'_>, respond: &Respond) -> Line {
    const SHOWN_MAX: usize = 60;
    let (status, length) = (respond.status, respond.body.len());
    let mut told = Told::default();
    with_seen(chosen, |seen| respond.tell(seen, STATUS, &mut told));
    let body = words(&respond.body);
    let begin: String = body.chars().take(SHOWN_MAX).collect();
    let mark = digest(&SHA256, &respond.body);
    let mark: String = mark.as_ref().iter().take(4).map(|octet| format!("{octet:02x}")).collect();
    let mut text = format!("by the route, with {status} and a body of {length} octets");
    if length > 0 {
        let more = if begin.len() < body.len() { "…" } else { "" };
        text += &format!(": {begin:?}{more} (sha256 {mark})");
    }
    for field in &told.0 {
        text += &format!("; {field}");
    }
    let json = json!({
        "by": "respond", "status": status, "body_bytes": length, "body": begin, "body_sha256": mark,
        "fields": told.0,
    });
    Line::new("answer", text, json)
}

/// The cookie that a caller gets who has none yet.
pub(super) fn cookie(chosen: &Chosen<'_>) -> Option<Line> {
    let Action::Split(split) = &chosen.route.action else { return None };
    let Some(Sticky::SetCookie(cookie)) = split.sticky() else { return None };
    chosen.route.choose(chosen.call, || 0)?.cookie?;
    let mut value = Vec::new();
    cookie.write(0, &mut value);
    // Its value is a number drawn by chance.
    let value = words(&value).replacen("0000000000000000", "…", 1);
    Some(Line::new("cookie", format!("set-cookie: {value}"), json!(value)))
}

/// What it goes on as.
pub(super) fn rewrite(chosen: &Chosen<'_>) -> Option<Line> {
    if chosen.is_answered() {
        return None;
    }
    let rewrite = chosen.route.changes.as_ref()?.rewrite.as_ref()?;
    // As shards do it: `*` stays, and so does where a CONNECT goes.
    let host = rewrite.host.as_deref().filter(|_| !chosen.call.path.is_empty());
    let new = match chosen.head.target.starts_with('/') {
        true => with_seen(chosen, |seen| rewrite.target(seen)),
        false => Ok(None),
    };
    let (target, too_long) = match new {
        Ok(target) => (target.map(|target| words(&target)), false),
        Err(_) => (None, true),
    };
    let as_what = match (&target, too_long) {
        (Some(target), _) => Some(format!("as {target}")),
        (None, true) => Some("as nothing: the new path would be too long".into()),
        (None, false) => None,
    };
    let parts: Vec<String> = as_what.into_iter().chain(host.map(|host| format!("for host {host}"))).collect();
    let json = json!({ "target": target, "host": host, "too_long": too_long });
    (!parts.is_empty()).then(|| Line::new("rewrite", format!("goes on {}", parts.join(", ")), json))
}

/// Changes of fields, in words.
#[derive(Default)]
struct Told(Vec<String>);

impl Change for Told {
    fn remove(&mut self, name: &HeaderName) {
        self.0.push(format!("without {name}"));
    }

    fn set(&mut self, name: &HeaderName, value: Vec<u8>) {
        match value_words(&value) {
            // As edits have it.
            value if value.is_empty() => self.remove(name),
            value => self.0.push(format!("{name}: {value}")),
        }
    }

    fn add(&mut self, name: &HeaderName, value: Vec<u8>) {
        let value = value_words(&value);
        if !value.is_empty() {
            self.0.push(format!("one more {name}: {value}"));
        }
    }
}

/// Fields as they come out, without what is taken out before.
#[derive(Default)]
struct ComeOut(Vec<String>);

impl Change for ComeOut {
    fn remove(&mut self, _: &HeaderName) {}

    fn set(&mut self, name: &HeaderName, value: Vec<u8>) {
        let value = value_words(&value);
        if !value.is_empty() {
            self.0.push(format!("{name}: {value}"));
        }
    }

    fn add(&mut self, name: &HeaderName, value: Vec<u8>) {
        self.set(name, value);
    }
}

/// Where the status of the response will stand, its name does.
fn value_words(value: &[u8]) -> String {
    words(value).trim_ascii().replace(char::from(STATUS), "%{status}")
}

fn fields(chosen: &Chosen<'_>, name: &'static str, changes: &FieldChanges) -> Option<Line> {
    if changes.is_empty() {
        return None;
    }
    let mut told = Told::default();
    with_seen(chosen, |seen| changes.tell(seen, STATUS, &mut told));
    Some(Line::new(name, told.0.join(", "), json!(told.0)))
}

/// What is changed in the fields of the request.
pub(super) fn request_fields(chosen: &Chosen<'_>) -> Option<Line> {
    if chosen.is_answered() {
        return None;
    }
    fields(chosen, "head", &chosen.route.changes.as_ref()?.request)
}

/// What is changed in the fields of the response.
pub(super) fn response_fields(chosen: &Chosen<'_>) -> Option<Line> {
    fields(chosen, "response", &chosen.route.changes.as_ref()?.response)
}

/// Whether a page may read what is answered.
pub(super) fn cors(chosen: &Chosen<'_>) -> Option<Line> {
    let cors = chosen.route.changes.as_ref()?.cors.as_ref()?;
    let mut fields = ComeOut::default();
    let (kind, asks, may) = with_seen(chosen, |seen| {
        let origin = cors.origin(seen).map(words);
        let may = cors.origin(seen).is_some_and(|origin| cors.allows(origin));
        let kind = cors.kind(seen);
        match kind {
            Kind::Preflight(true) => cors.tell_preflight(seen, &mut fields),
            Kind::Preflight(false) => Cors::tell_vary(&mut fields),
            Kind::Plain => cors.tell(seen, &mut fields),
        }
        (kind, origin, may)
    });
    let ComeOut(fields) = fields;
    let verb = if may { "may" } else { "may not" };
    let mut text: String = match (kind, &asks) {
        (Kind::Preflight(true), _) => "a preflight, answered here with 204".into(),
        (Kind::Preflight(false), _) => "a preflight of an origin that may not, answered here with 403".into(),
        (Kind::Plain, Some(origin)) => format!("pages of {origin} {verb} read the response"),
        (Kind::Plain, None) => "asked by no page of another origin".into(),
    };
    for field in &fields {
        text += &format!("; {field}");
    }
    let origins: Vec<String> = cors.origins.iter().map(origin_words).collect();
    let preflight = matches!(kind, Kind::Preflight(_));
    let json = json!({ "origin": asks, "allowed": may, "preflight": preflight, "origins": origins, "fields": fields });
    Some(Line::new("cors", text, json))
}

fn origin_words(origin: &Origin) -> String {
    match origin {
        Origin::Any => "*".into(),
        Origin::Exact(exact) => exact.to_string(),
        Origin::Below(scheme, end) => format!("{scheme}*{end}"),
        Origin::Regex(regex) => regex.as_str().to_owned(),
    }
}

/// Who gets copies.
pub(super) fn mirror(chosen: &Chosen<'_>) -> Option<Line> {
    let mirrors = chosen.route.mirror.as_deref().filter(|_| !chosen.is_answered() && !chosen.is_tunnel())?;
    let body_bytes_max = chosen.snapshot.limits.mirrored_body_bytes_max;
    let (mut words, mut list) = (Vec::new(), Vec::new());
    for mirror in mirrors {
        let (name, percent) = (chosen.name(mirror.service, 0), mirror.percent);
        let Line { text, json, .. } = chosen.endpoints_of(mirror.service)?;
        words.push(format!("{percent} % to {name} ({text})"));
        list.push(json!({
            "service": name, "percent": percent.value(), "endpoints": json["endpoints"], "names": json["names"],
            "balance": json["balance"], "body_bytes_max": body_bytes_max,
        }));
    }
    let most = size_text(body_bytes_max.into());
    let text =
        format!("copied, and answers dropped: {}; not with a body of more than {most}", words.join(", "));
    Some(Line::new("mirror", text, json!(list)))
}

/// What is done on purpose.
pub(super) fn fault(chosen: &Chosen<'_>) -> Option<Line> {
    let fault = chosen.route.fault.as_ref()?;
    let mut parts = Vec::new();
    if let Some(delay) = &fault.delay {
        let bounds = format!("{} to {}", duration_text(delay.least), duration_text(delay.most));
        let time = match delay.spread {
            Spread::Even if delay.least == delay.most => duration_text(delay.most),
            Spread::Even => bounds,
            Spread::Exponential { mean } => {
                format!("{bounds}, exponentially, {} on average", duration_text(mean))
            }
            Spread::Normal { mean, deviation } => {
                format!("{bounds}, normally, {} ± {}", duration_text(mean), duration_text(deviation))
            }
        };
        parts.push(format!("{} % are held up for {time}", delay.percent));
    }
    if let Some(abort) = &fault.abort {
        let how = match abort.how {
            How::Status(status) => format!("answered with {status}"),
            How::Grpc(code) => format!("answered with gRPC status {code}"),
            How::Reset => "reset".into(),
            How::HalfOpen(most) => format!("never answered, and reset after {}", duration_text(most)),
        };
        parts.push(format!("{} % are {how}", abort.percent));
    }
    if let Some(Truncate { percent, at: Where { part, after } }) = fault.truncate {
        let part = part.map(|part| format!("{part} % of their length"));
        let after = after.map(size_text);
        let place = match (part, after) {
            (Some(part), Some(after)) => format!("{part}, or {after} where that is not told"),
            (part, after) => part.or(after).unwrap_or_default(),
        };
        parts.push(format!("bodies of {percent} % of responses are cut after {place}"));
    }
    if let Some(Bandwidth { percent, request_rate, response_rate }) = fault.bandwidth {
        for (what, rate) in [("requests", request_rate), ("responses", response_rate)] {
            let rate = rate.map(|rate| size_text(rate.get()));
            parts.extend(rate.map(|rate| format!("bodies of {percent} % of {what} have {rate}/s")));
        }
    }
    if fault.by_header {
        // What this one asks for itself: no chance is asked.
        let asks = Fault { by_header: true, ..Fault::default() }.draw(chosen.call.fields, || 0);
        parts.push(match asks.made() {
            Some(made) => format!("this one asks for {}", made.label()),
            None => "requests may ask for one".into(),
        });
    }
    let json = json!({ "by_header": fault.by_header, "words": parts });
    Some(Line::new("fault", format!("on purpose: {}", parts.join("; ")), json))
}

/// Who conducts the split. What the shares are at this moment stands with the service.
pub(super) fn canary(chosen: &Chosen<'_>) -> Option<Line> {
    if chosen.is_answered() {
        return None;
    }
    let canary = chosen.compiled.canaries().find(|canary| canary.route == chosen.route.name)?;
    let steps: Vec<String> = canary.rules.steps.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{}: {} takes over from {} by {} %",
        canary.name,
        canary.canary,
        canary.baseline,
        steps.join(", ")
    );
    if chosen.is_never_served() {
        text += "; the shares are those that a proxy begins with: those of a running one are in its /explain, and in `ringmesh canary status`";
    }
    let json: Value = json!({
        "name": &*canary.name, "baseline": &*canary.baseline, "canary": &*canary.canary,
        "steps_percent": &*canary.rules.steps,
    });
    Some(Line::new("canary", text, json))
}
