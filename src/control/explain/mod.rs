//! `ringmesh explain` and `/explain`: what becomes of a request that need not exist, and why nothing else.
//!
//! Writes the head as it would come by HTTP/1.1, has it read by what reads heads of shards ([`Snapshot::understand`]), and asks the
//! snapshot that shards serve by, by the same look-ups ([`Table::find_id`](crate::route::Table::find_id), the rules' `decide`), so
//! that it cannot say anything else than what happens. What it adds, one judgement for each other
//! route, is compared with the table by a test of the table. Called by `main` and by the admin server; changes nothing.
//!
//! Refuses to guess: what only a running proxy knows (who is connected, which endpoint is chosen) is not told.

mod actions;
mod attempts;
pub mod command;
mod deadline;
mod load;
mod policies;
mod question;
mod refusal;
mod report;
mod shared_limits;
mod traced;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::authorize::{Call, Caller, Fields as _, Verdict};
use crate::config::{Compiled, conditions_text, host_text, path_text, test_text};
use crate::route::{Judgement, PathRank, Rank, Request, Route, RouteMatch, Unmet};
use crate::snapshot::{Listener, ListenerTls, Snapshot};
use policies::Chosen;
use question::Lines;
pub(super) use question::Question;
use refusal::Refusal;
pub(super) use report::text;

/// Other routes that are told of, unless all are asked for: the nearest ones.
const OTHERS_MAX: usize = 20;

/// The generation of a snapshot that no proxy serves by: no name has been resolved for it.
const NEVER_SERVED: u64 = 0;

/// What is told.
#[derive(Debug, PartialEq)]
pub(super) struct Explanation {
    /// In the order of the path of a request; a name may stand once for each service.
    pub(super) lines: Vec<Line>,
    /// Other routes and why it is not them, the nearest first.
    pub(super) others: Vec<Other>,
    /// How many more there are.
    pub(super) left_out: usize,
    /// Whether it would be sent on, or answered by its route, and not refused.
    pub(super) is_served: bool,
}

/// One thing that applies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// `listener`, `route`, `timeouts`.
    pub(super) name: &'static str,
    /// What it holds for, where that is a service.
    pub(super) service: Option<Arc<str>>,
    /// For people.
    pub(super) text: String,
    /// For programs.
    pub(super) json: Value,
}

/// A route that it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) route: Arc<str>,
    /// What comes in the way first: `host`, `path`, `match.headers`, `rank`.
    pub(super) by: &'static str,
    /// In words.
    pub(super) why: String,
}

impl Line {
    fn new(name: &'static str, text: impl Into<String>, json: Value) -> Self {
        Self { name, service: None, text: text.into(), json }
    }
}

/// What becomes of a request.
pub(super) fn explain(
    compiled: &Compiled,
    snapshot: &Snapshot,
    question: &Question,
    all: bool,
) -> Explanation {
    let mut lines = Vec::new();
    let listener = listener(snapshot, question);
    let tls = listener.map(|listener| tls_word(compiled, listener));
    lines.push(listener_line(snapshot, question, listener, tls));
    lines.extend(question.port.filter(|port| !has_port(snapshot, *port)).map(|port| {
        note(&format!(
            "no listener has port {port}: what follows holds for one that takes what was sent there"
        ))
    }));
    let peer = match (&question.from, tls) {
        (Some(_), Some("off" | "terminate")) => {
            lines.push(note("this listener does not learn who calls: the identity counts for nothing"));
            None
        }
        (None, Some("strict")) => {
            lines.push(note(
                "without an identity this listener takes no connection: what follows needs one (--from)",
            ));
            None
        }
        (from, _) => from.as_ref(),
    };
    let caller = Caller {
        listener: listener.map_or("", |listener| &listener.name),
        port: question.port.or_else(|| Some(listener?.address.port())).unwrap_or(0),
        source: question.source,
        peer,
    };
    let head = match snapshot.understand(&question.head()) {
        Ok(head) => head,
        Err(cause) => {
            // Whatever it was to be: nobody knows.
            lines.push(Refusal::of_head(cause).line(false));
            return Explanation { lines, others: Vec::new(), left_out: 0, is_served: false };
        }
    };
    let fields = Lines { all: &question.lines, host: head.authority.as_deref() };
    // As shards see it: a CONNECT has no path.
    let path = head.path.as_deref().unwrap_or(if head.connect { "" } else { "*" });
    let call = Call { caller, method: question.method.as_bytes(), path: path.as_bytes(), fields: &fields };
    let request = Request {
        host: head.host.as_deref().map(str::as_bytes),
        path: head.path.as_deref().unwrap_or("/").as_bytes(),
        query: head.query.as_bytes(),
        call: &call,
    };
    let found = snapshot.routes.find_id(&request);
    let route = found.and_then(|id| Some((id, snapshot.routes.route(id)?)));
    let is_allowed = access(snapshot, &call, route.map(|(_, route)| route), &mut lines);
    lines.extend(compiled.tracing.as_ref().map(|tracing| traced::line(tracing, &fields)));
    let best = found.and_then(|id| rank_of(snapshot.routes.matches().get(id as usize)?, id, &request));
    let encrypted = match tls {
        // Both are taken; who says who it is, is encrypted.
        Some("permissive") => peer.is_some(),
        tls => tls.is_some_and(|tls| tls != "off"),
    };
    let chosen =
        route.map(|(_, route)| Chosen { compiled, snapshot, route, head: &head, encrypted, call: &call });
    let refusal = Refusal::of(&head, is_allowed, chosen.as_ref());
    let is_grpc = is_grpc(snapshot, &call);
    match route {
        None => {
            let text = "none: answered with 404 (route.local.no_route)";
            lines.push(Line::new("route", text, Value::Null));
            lines.extend(refusal.as_ref().map(|refusal| refusal.line(is_grpc)));
        }
        Some((id, route)) => {
            let matching = snapshot.routes.matches().get(id as usize);
            let means = matching.map(|matching| keys(matching)).unwrap_or_default();
            let text = format!("{}: {}", route.name, means.join(", "));
            lines.push(Line::new("route", text, json!({ "name": &*route.name, "match": means })));
            if let Some(place) = compiled.place_of_route(id) {
                lines.push(Line::new("place", &*place, json!(place)));
            }
            lines.extend(refusal.as_ref().map(|refusal| refusal.line(is_grpc)));
            lines.extend(chosen.iter().flat_map(policies::of));
        }
    }
    let (others, left_out) = others(snapshot, &request, found, best.as_ref(), all);
    Explanation { lines, others, left_out, is_served: refusal.is_none() }
}

/// Whether it goes on as a call of gRPC: gRPC-Web does where its listener translates it.
fn is_grpc(snapshot: &Snapshot, call: &Call<'_, Lines<'_>>) -> bool {
    let kind = call.fields.lines("content-type").next();
    kind.is_some_and(|kind| snapshot.is_grpc(call.caller.listener, kind))
}

fn note(text: &str) -> Line {
    Line::new("note", text, json!(text))
}

/// Whether it asks about a listener that there is.
///
/// # Errors
/// When it does not.
pub(super) fn check_listener(snapshot: &Snapshot, question: &Question) -> Result<(), String> {
    match &question.listener {
        Some(name) if !snapshot.listeners.iter().any(|listener| *listener.name == **name) => {
            let names: Vec<&str> = snapshot.listeners.iter().map(|listener| &*listener.name).collect();
            Err(format!("there is no listener `{name}`: there are {}", names.join(", ")))
        }
        _ => Ok(()),
    }
}

/// Whether a listener has that port. Which one the kernel gave is not known here.
fn has_port(snapshot: &Snapshot, port: u16) -> bool {
    snapshot.listeners.iter().map(|listener| listener.address.port()).any(|own| own == 0 || own == port)
}

/// The listener that it comes by: the one that is named, the one with the port, or the first.
fn listener<'s>(snapshot: &'s Snapshot, question: &Question) -> Option<&'s Listener> {
    let named = |listener: &&Listener| question.listener.as_ref().is_none_or(|name| **name == *listener.name);
    let with_port = |listener: &&Listener| question.port.is_none_or(|port| port == listener.address.port());
    let mut known = snapshot.listeners.iter().filter(named);
    known.clone().find(with_port).or_else(|| known.next())
}

/// As it is written in a file. Until its certificate has been read, a listener that is to show one is strict.
fn tls_word(compiled: &Compiled, listener: &Listener) -> &'static str {
    match listener.tls {
        _ if compiled.terminations().any(|termination| *termination.listener == *listener.name) => {
            "terminate"
        }
        ListenerTls::Off => "off",
        ListenerTls::Permissive => "permissive",
        ListenerTls::Strict => "strict",
        ListenerTls::Terminate(_) => "terminate",
    }
}

fn listener_line(
    snapshot: &Snapshot,
    question: &Question,
    listener: Option<&Listener>,
    tls: Option<&'static str>,
) -> Line {
    let (Some(listener), Some(tls)) = (listener, tls) else {
        return Line::new("listener", "none: there is no listener of that name", Value::Null);
    };
    let is_assumed = question.listener.is_none() && question.port.is_none() && snapshot.listeners.len() > 1;
    let assumed = if is_assumed { "; the first one, as none was named" } else { "" };
    let text = format!("{} on {}, tls {tls}{assumed}", listener.name, listener.address);
    let json = json!({ "name": &*listener.name, "address": listener.address.to_string(), "tls": tls });
    Line::new("listener", text, json)
}

/// What the rules say; whether it passes.
fn access(
    snapshot: &Snapshot,
    call: &Call<'_, Lines<'_>>,
    route: Option<&Route>,
    lines: &mut Vec<Line>,
) -> bool {
    if route.is_some_and(|route| route.answers_preflight(call)) {
        let json = json!({ "allowed": true, "rule": null, "ambiguous_path": false, "audited": [] });
        lines.push(Line::new("access", "allowed, as a preflight, which no rule is asked about", json));
        return true;
    }
    let policy = &snapshot.authorization;
    let mut audited = Vec::new();
    let decision =
        policy.decide(call, |id| audited.extend(policy.rule(id).map(|rule| rule.name.to_string())));
    let is_allowed = decision.verdict == Verdict::Allow;
    let rule = decision.rule.and_then(|id| policy.rule(id));
    let by = match rule {
        Some(rule) => format!("by rule {}", rule.name),
        None if policy.rules().is_empty() => "there are no rules".into(),
        None => "by authorization_default: no rule decides".into(),
    };
    let mut text = if is_allowed { format!("allowed, {by}") } else { format!("denied with 403, {by}") };
    if decision.ambiguous_path {
        text += "; servers understand this path differently, so that every deny with paths means it";
    }
    if !audited.is_empty() {
        text += &format!("; noted by {}", audited.join(", "));
    }
    let json = json!({
        "allowed": is_allowed, "rule": rule.map(|rule| &*rule.name), "ambiguous_path": decision.ambiguous_path,
        "audited": audited,
    });
    lines.push(Line::new("access", text, json));
    is_allowed
}

/// Keys and values of what a route means.
fn keys(matching: &RouteMatch) -> Vec<String> {
    let hosts: Vec<String> =
        matching.hosts.iter().take(10).map(|host| format!("{:?}", host_text(host))).collect();
    let more = if matching.hosts.len() > hosts.len() { ", …" } else { "" };
    let hosts = (!hosts.is_empty()).then(|| format!("hosts = [{}{more}]", hosts.join(", ")));
    let (key, path) = path_text(&matching.path);
    let conditions = conditions_text(&matching.conditions);
    let conditions = conditions.into_iter().map(|(key, value)| format!("{key} = {value}"));
    hosts.into_iter().chain([format!("{key} = {path}")]).chain(conditions).collect()
}

fn rank_of(matching: &RouteMatch, id: u32, request: &Request<'_, '_, Lines<'_>>) -> Option<Rank> {
    match matching.judge(id, request) {
        Judgement::Meant(rank) => Some(rank),
        Judgement::Host | Judgement::Path | Judgement::Condition(_) => None,
    }
}

// --- the others ---

/// Why it is none of the other routes: those that mean it as well first, then those whose conditions it does not meet, then
/// those of its host. Routes of other hosts are counted, and told when all are asked for.
fn others(
    snapshot: &Snapshot,
    request: &Request<'_, '_, Lines<'_>>,
    found: Option<u32>,
    best: Option<&Rank>,
    all: bool,
) -> (Vec<Other>, usize) {
    let mut ranked: Vec<(u8, u32)> = Vec::new();
    for (id, matching) in (0..).zip(snapshot.routes.matches()).filter(|(id, _)| Some(*id) != found) {
        let near = match matching.judge(id, request) {
            Judgement::Meant(_) => 0,
            Judgement::Condition(_) => 1,
            Judgement::Path => 2,
            Judgement::Host => 3,
        };
        ranked.push((near, id));
    }
    ranked.sort_unstable();
    let total = ranked.len();
    if !all {
        ranked.retain(|(near, _)| *near < 3);
        ranked.truncate(OTHERS_MAX);
    }
    let other = |(_, id): (u8, u32)| {
        let (matching, route) = (snapshot.routes.matches().get(id as usize)?, snapshot.routes.route(id)?);
        let (by, why) = match matching.judge(id, request) {
            Judgement::Meant(rank) => beaten(&rank, best),
            Judgement::Condition(unmet) => unmet_text(matching, &unmet, request),
            Judgement::Path => {
                let (key, path) = path_text(&matching.path);
                (key, format!("{key} = {path} does not mean this path"))
            }
            Judgement::Host => {
                let hosts: Vec<String> = matching.hosts().iter().take(5).map(host_text).collect();
                let more = if matching.hosts().len() > hosts.len() { ", …" } else { "" };
                ("hosts", format!("serves {}{more}", hosts.join(", ")))
            }
        };
        Some(Other { route: Arc::clone(&route.name), by, why })
    };
    let shown: Vec<Other> = ranked.into_iter().filter_map(other).collect();
    let left_out = total - shown.len();
    (shown, left_out)
}

/// By what a route that means the request as well comes behind.
fn beaten(rank: &Rank, best: Option<&Rank>) -> (&'static str, String) {
    let Some(best) = best else { return ("rank", "comes behind".into()) };
    if rank.host != best.host {
        return ("hosts", "means it as well, by a less specific host".into());
    }
    if rank.path != best.path {
        let by = match (&rank.path, &best.path) {
            (PathRank::Prefix(_), PathRank::Prefix(_)) => "a shorter prefix",
            (PathRank::Template(_), PathRank::Template(_)) => "a less exact template",
            (PathRank::Prefix(_), _) => "a prefix, which comes last",
            (PathRank::Regex, _) => "an expression, which comes behind exact paths and templates",
            (PathRank::Template(_) | PathRank::Exact, _) => "a template, which comes behind exact paths",
        };
        return ("path", format!("means it as well, by {by}"));
    }
    if rank.conditions != best.conditions {
        return ("match", "means it as well, and asks for less in `match`".into());
    }
    ("order", "means it as well, and stands later in the files".into())
}

/// What is not met, and what was found in its place.
fn unmet_text(
    matching: &RouteMatch,
    unmet: &Unmet<'_>,
    request: &Request<'_, '_, Lines<'_>>,
) -> (&'static str, String) {
    let conditions = &matching.conditions;
    let caller = &request.call.caller;
    let test = |kind, name: &str, test| {
        let found = request.value(unmet);
        let found = found.map_or_else(
            || "it is not there".into(),
            |value| format!("it is {:?}", String::from_utf8_lossy(&value)),
        );
        format!("{kind} {name} = {}: {found}", test_text(test))
    };
    let list = |values: Vec<String>| match values.len() {
        0..=5 => values.join(", "),
        more => format!("{} and {} more", values[..5].join(", "), more - 5),
    };
    match unmet {
        Unmet::Listener => {
            let names = conditions.listeners.iter().map(ToString::to_string).collect();
            ("match.listeners", format!("serves listener {}", list(names)))
        }
        Unmet::Port => {
            let ports = conditions.ports.iter().map(ToString::to_string).collect();
            ("match.ports", format!("serves port {}, this is {}", list(ports), caller.port))
        }
        Unmet::Method => {
            let methods = conditions.methods.iter().map(ToString::to_string).collect();
            ("match.methods", format!("serves {}", list(methods)))
        }
        Unmet::Grpc => ("match.grpc", "serves gRPC, which content-type does not say that this is".into()),
        Unmet::From => {
            let ids = conditions.from.iter().map(ToString::to_string).collect();
            let who = caller.peer.map_or_else(|| "nobody known".into(), ToString::to_string);
            ("match.from", format!("serves {}, this is {who}", list(ids)))
        }
        Unmet::Labels(labelled) => {
            let labels = labelled.labels.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
            let who = caller.peer.map_or_else(|| "nobody known".into(), ToString::to_string);
            let known = match labelled.workloads.len() {
                0 => "no workload has them".into(),
                1 => "of one workload".into(),
                count => format!("of {count} workloads"),
            };
            let labels = list(labels);
            ("match.labels", format!("serves {labels} ({known}), this is {who} from {}", caller.source))
        }
        Unmet::Source => {
            let nets = conditions.sources.iter().map(ToString::to_string).collect();
            ("match.sources", format!("serves {}, this comes from {}", list(nets), caller.source))
        }
        Unmet::Header(name, of) => ("match.headers", test("field", name, of)),
        Unmet::Query(name, of) => ("match.query", test("parameter", name, of)),
        Unmet::Cookie(name, of) => ("match.cookies", test("cookie", name, of)),
    }
}

impl Explanation {
    /// For programs: `version` is raised when a name changes its meaning.
    pub(super) fn json(&self, question: &Question) -> Value {
        let mut object = serde_json::Map::new();
        object.insert("version".into(), json!(1));
        object.insert("request".into(), question.json());
        object.insert("served".into(), json!(self.is_served));
        let mut notes = Vec::new();
        let mut services: BTreeMap<&str, BTreeMap<&str, &Value>> = BTreeMap::new();
        for line in &self.lines {
            match (line.name, &line.service) {
                ("note", _) => notes.push(line.json.clone()),
                (name, Some(service)) => {
                    services.entry(service).or_default().insert(name, &line.json);
                }
                (name, None) => drop(object.insert(name.into(), line.json.clone())),
            }
        }
        object.insert("services".into(), json!(services));
        object.insert("notes".into(), json!(notes));
        let other = |other: &Other| json!({ "route": &*other.route, "by": other.by, "why": other.why });
        object.insert("others".into(), self.others.iter().map(other).collect());
        object.insert("others_left_out".into(), json!(self.left_out));
        Value::Object(object)
    }
}

#[cfg(test)]
#[path = "explain_test.rs"]
mod tests;
