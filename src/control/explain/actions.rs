//! What a route makes of a request besides choosing its service: an answer of its own, another head, CORS, a canary. Called by
//! `policies`, one function a line; asks the same leaves that shards ask.

use http::HeaderName;
use serde_json::{Value, json};

use super::Line;
use super::policies::Chosen;
use super::question::Lines;
use crate::config::{duration_text, size_text};
use crate::route::Action;
use crate::route::changes::{Change, FieldChanges};
use crate::route::cors::{Kind, Origin};
use crate::route::fault::{Bandwidth, Fault, How, Spread, Truncate, Where};
use crate::route::mirror::Mirror;
use crate::route::text::Seen;

/// Stands where the status of the response will be: no value has such an octet.
const STATUS: u8 = 0;

/// A request as changes see it.
fn with_seen<T>(chosen: &Chosen<'_>, then: impl FnOnce(&Seen<'_, '_, Lines<'_>>) -> T) -> T {
    let question = chosen.question;
    let target = match question.query.is_empty() {
        true => question.path.clone(),
        false => format!("{}?{}", question.path, question.query),
    };
    let service = chosen.certain().map_or("", |(service, _)| chosen.service_name(service));
    then(&Seen {
        call: chosen.call,
        target: target.as_bytes(),
        host: question.authority.as_deref().unwrap_or_default().as_bytes(),
        encrypted: chosen.encrypted,
        route: &chosen.route.name,
        service,
    })
}

fn words(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// What the route answers itself.
pub(super) fn answer(chosen: &Chosen<'_>) -> Option<Line> {
    match &chosen.route.action {
        Action::Service(_) | Action::Split(_) => None,
        Action::Redirect(redirect) => {
            let status = redirect.status;
            let to = with_seen(chosen, |seen| redirect.location(seen)).ok().map(|to| words(&to));
            let text = match &to {
                Some(to) => format!("by the route, with {status} to {to}"),
                None => "by the route, with 414: it would be sent to a path that is too long".into(),
            };
            Some(Line::new("answer", text, json!({ "by": "redirect", "status": status, "location": to })))
        }
        Action::Respond(respond) => {
            let (status, length) = (respond.status, respond.body.len());
            let text = format!("by the route, with {status} and a body of {length} octets");
            Some(Line::new(
                "answer",
                text,
                json!({ "by": "respond", "status": status, "body_bytes": length }),
            ))
        }
    }
}

/// What it goes on as.
pub(super) fn rewrite(chosen: &Chosen<'_>) -> Option<Line> {
    let rewrite = chosen.route.changes.as_ref()?.rewrite.as_ref()?;
    let host = rewrite.host.as_deref();
    let (target, too_long) = match with_seen(chosen, |seen| rewrite.target(seen)) {
        Ok(target) => (target.map(|target| words(&target)), false),
        Err(_) => (None, true),
    };
    let mut parts: Vec<String> = target.iter().cloned().collect();
    parts.extend(too_long.then(|| "nothing, but 414: the new path would be too long".into()));
    parts.extend(host.map(|host| format!("for host {host}")));
    let json = json!({ "target": target, "host": host, "too_long": too_long });
    Some(Line::new("rewrite", format!("goes on as {}", parts.join(", ")), json))
}

/// Changes of fields, in words.
#[derive(Default)]
struct Told(Vec<String>);

impl Change for Told {
    fn remove(&mut self, name: &HeaderName) {
        self.0.push(format!("without {name}"));
    }

    fn set(&mut self, name: &HeaderName, value: Vec<u8>) {
        self.0.push(format!("{name}: {}", value_words(&value)));
    }

    fn add(&mut self, name: &HeaderName, value: Vec<u8>) {
        self.0.push(format!("one more {name}: {}", value_words(&value)));
    }
}

/// Where the status of the response will stand, its name does.
fn value_words(value: &[u8]) -> String {
    words(value).replace(char::from(STATUS), "%{status}")
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
    fields(chosen, "head", &chosen.route.changes.as_ref()?.request)
}

/// What is changed in the fields of the response.
pub(super) fn response_fields(chosen: &Chosen<'_>) -> Option<Line> {
    fields(chosen, "response", &chosen.route.changes.as_ref()?.response)
}

/// Whether a page may read what is answered.
pub(super) fn cors(chosen: &Chosen<'_>) -> Option<Line> {
    let cors = chosen.route.changes.as_ref()?.cors.as_ref()?;
    let (kind, asks, may) = with_seen(chosen, |seen| {
        let origin = cors.origin(seen).map(words);
        let may = cors.origin(seen).is_some_and(|origin| cors.allows(origin));
        (cors.kind(seen), origin, may)
    });
    let verb = if may { "may" } else { "may not" };
    let text = match (kind, &asks) {
        (Kind::Preflight(true), _) => "a preflight, answered here with 204".into(),
        (Kind::Preflight(false), _) => "a preflight of an origin that may not, answered here with 403".into(),
        (Kind::Plain, Some(origin)) => format!("pages of {origin} {verb} read the response"),
        (Kind::Plain, None) => "asked by no page of another origin".into(),
    };
    let origins: Vec<String> = cors.origins.iter().map(origin_words).collect();
    let preflight = matches!(kind, Kind::Preflight(_));
    let json = json!({ "origin": asks, "allowed": may, "preflight": preflight, "origins": origins });
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
    let mirrors = chosen.route.mirror.as_deref()?;
    let of = |mirror: &Mirror| (chosen.name(mirror.service, 0), mirror.percent);
    let words: Vec<String> =
        mirrors.iter().map(of).map(|(name, percent)| format!("{percent} % to {name}")).collect();
    let json = mirrors.iter().map(of);
    let json: Value = json.map(|(name, of)| json!({ "service": name, "percent": of.value() })).collect();
    Some(Line::new("mirror", format!("copied, and answers dropped: {}", words.join(", ")), json))
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
    let canary = chosen.compiled.canaries().find(|canary| canary.route == chosen.route.name)?;
    let steps: Vec<String> = canary.rules.steps.iter().map(ToString::to_string).collect();
    let text = format!(
        "{}: {} takes over from {} by {} %",
        canary.name,
        canary.canary,
        canary.baseline,
        steps.join(", ")
    );
    let json: Value = json!({
        "name": &*canary.name, "baseline": &*canary.baseline, "canary": &*canary.canary,
        "steps_percent": &*canary.rules.steps,
    });
    Some(Line::new("canary", text, json))
}
