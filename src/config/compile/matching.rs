//! What routes mean: [`RouteMatch`]es out of what the files say, no two of them alike, and doubts about those that no
//! request will reach. Called by `compile`.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::compiled::{Extra, Mark};
use super::super::raw::{At, ListenerTlsWord, Raw, RawGrpc, RawMatch, RawRoute, RawWorkload};
use super::super::report::{Place, Problem, Problems};
use super::super::route_text::{conditions_text, path_text};
use super::super::values;
use super::policy::{check_listener_names, listener_names};
use super::{From, hosts_of};
use crate::route::{
    BadRegex, Conditions, HostMatch, Labelled, Overlap, PathMatch, Regex, RouteMatch, TableBuilder, Template,
    Test, What, Workload,
};
use crate::upstream::spec::Labels;

/// What all routes mean, in their order. Those that are in error already are left out, so that the numbers are right only
/// when there are no errors.
pub(super) fn collect(raw: &Raw, problems: &mut Problems) -> TableBuilder {
    let names = listener_names(raw);
    let listeners = raw.routes.iter().filter_map(|route| route.matching.as_ref()?.listeners.as_ref());
    check_listener_names(&names, listeners.flat_map(|at| &at.value), problems);
    let mut builder = TableBuilder::default();
    let mut routes: Vec<&RawRoute> = Vec::with_capacity(raw.routes.len());
    for route in raw.routes.iter().filter(|route| route.match_is_right) {
        let Some(matching) = route_match(route, &raw.workloads, problems) else { continue };
        let matching = Arc::new(matching);
        match builder.add(Arc::clone(&matching)) {
            Ok(_) => routes.push(route),
            Err(overlaps) => {
                for Overlap { host, other } in overlaps {
                    overlap(route, &matching, host, routes[other as usize], problems);
                }
            }
        }
    }
    builder
}

fn overlap(route: &RawRoute, matching: &RouteMatch, host: usize, other: &RawRoute, problems: &mut Problems) {
    let host = &matching.hosts()[host];
    problems.error(|| {
        let (_, path) = path_text(&matching.path);
        let kind = match &matching.path {
            PathMatch::Exact(_) => "path",
            PathMatch::Prefix(_) => "path prefix",
            PathMatch::Template(_) => "path template",
            PathMatch::Regex(_) => "path regex",
        };
        let path = super::super::reader::shortened(path.trim_matches('"')).into_owned();
        let shown = match host {
            HostMatch::Any => "any host".into(),
            _ => format!("host {}", values::host_text(host)),
        };
        let conditions = if matching.conditions.is_empty() { "" } else { " under the same conditions" };
        Problem::at(place_of(route, host), format!("two routes serve {shown} and {kind} {path}{conditions}"))
            .label("again here")
            .other(place_of(other, host), "first here")
            .help("take one of them out, or tell them apart by host, path or `match`")
    });
}

/// Where a route says that it serves a host.
fn place_of(route: &RawRoute, host: &HostMatch) -> Place {
    let same = |known: &HostMatch| values::host_text(known) == values::host_text(host);
    let of_host = hosts_of(route).and_then(|hosts| hosts.iter().find(|(known, _)| same(known)));
    of_host.map_or_else(|| path_place(route), |(_, place)| *place)
}

fn path_place(route: &RawRoute) -> Place {
    let path = route.path.as_ref().or(route.path_prefix.as_ref()).map(|at| at.place);
    path.or_else(|| route.path_template.as_ref().map(|at| at.place))
        .or_else(|| route.path_regex.as_ref().map(|at| at.place))
        .or_else(|| route.matching.as_ref()?.grpc.as_ref().map(|at| at.place))
        .unwrap_or(route.place)
}

/// What a route means; `None` when its parts contradict each other.
fn route_match(route: &RawRoute, workloads: &[RawWorkload], problems: &mut Problems) -> Option<RouteMatch> {
    let mut hosts: Vec<HostMatch> = Vec::new();
    for (host, _) in hosts_of(route).unwrap_or_default() {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    let grpc = route.matching.as_ref().and_then(|matching| matching.grpc.as_ref());
    let named = grpc.filter(|at| at.value.service.is_some() || at.value.method.is_some());
    let path = match (&route.path, &route.path_prefix, &route.path_template, &route.path_regex) {
        (Some(path), ..) => Some(PathMatch::Exact(path.value.clone())),
        (_, Some(prefix), ..) => Some(PathMatch::Prefix(values::prefix(&prefix.value).into())),
        (_, _, Some(template), _) => Some(PathMatch::Template(template.value.clone())),
        (.., Some(regex)) => Some(PathMatch::Regex(regex.value.clone())),
        (None, None, None, None) => None,
    };
    let path = match (path, named) {
        (Some(_), Some(grpc)) => {
            problems.error(|| {
                Problem::at(grpc.place, "the service and the method of a gRPC call are its path")
                    .label("a path")
                    .other(path_place(route), "another path")
                    .help("take one of the two out; `grpc = {}` asks for gRPC alone")
            });
            return None;
        }
        (Some(path), None) => path,
        (None, Some(grpc)) => grpc_path(&grpc.value)?,
        (None, None) => PathMatch::Prefix("/".into()),
    };
    let conditions = route.matching.as_deref().map(|raw| conditions(raw, workloads)).unwrap_or_default();
    if let (Some(grpc), Some(matching)) = (grpc, route.matching.as_deref())
        && let Some(methods) = matching.methods.as_ref()
        && !methods.value.iter().any(|method| &**method == "POST")
    {
        problems.error(|| {
            Problem::at(methods.place, "no request is meant: every gRPC call is a POST")
                .label("without POST")
                .other(grpc.place, "gRPC")
                .help("take `methods` out")
        });
        return None;
    }
    Some(RouteMatch { hosts: hosts.into(), path, conditions })
}

/// `/service/method`, all methods of a service, or the method of any service.
fn grpc_path(grpc: &RawGrpc) -> Option<PathMatch> {
    Some(match (&grpc.service, &grpc.method) {
        (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}").into()),
        (Some(service), None) => PathMatch::Prefix(format!("/{service}").into()),
        (None, Some(method)) => PathMatch::Template(Template::parse(&format!("/{{service}}/{method}")).ok()?),
        (None, None) => PathMatch::Prefix("/".into()),
    })
}

fn conditions(raw: &RawMatch, workloads: &[RawWorkload]) -> Conditions {
    fn values<T: Clone>(at: Option<&At<Vec<T>>>) -> Vec<T> {
        at.map(|at| at.value.clone()).unwrap_or_default()
    }
    let tests = |tests: &[(Box<str>, Test, Place)]| {
        tests.iter().map(|(name, test, _)| (name.clone(), test.clone())).collect()
    };
    let listeners = raw.listeners.as_ref().map(|at| &at.value[..]).unwrap_or_default();
    let mut conditions = Conditions {
        listeners: listeners.iter().map(|at| Arc::clone(&at.value)).collect(),
        ports: values(raw.ports.as_ref()),
        methods: values(raw.methods.as_ref()),
        grpc: raw.grpc.is_some(),
        from: values(raw.from.as_ref()),
        labels: raw.labels.as_ref().map(|labels| labelled(&labels.value, workloads)),
        sources: values(raw.sources.as_ref()),
        headers: tests(&raw.headers),
        query: tests(&raw.query),
        cookies: tests(&raw.cookies),
    };
    conditions.normalize();
    conditions
}

/// The workloads that have all of these labels.
fn labelled(labels: &Labels, workloads: &[RawWorkload]) -> Labelled {
    let has_all = |workload: &&RawWorkload| {
        let own = workload.labels.as_ref().map(|own| &own.value[..]).unwrap_or_default();
        labels.iter().all(|label| own.contains(label))
    };
    let known = |workload: &RawWorkload| Workload {
        from: workload.from.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        sources: workload.sources.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
    };
    Labelled { labels: labels.clone(), workloads: workloads.iter().filter(has_all).map(known).collect() }
}

/// The conditions of a route as `/config` shows them.
pub(super) fn shown(raw: &RawRoute, matching: &RouteMatch, from: &From<'_>) -> Vec<Extra> {
    let mark = raw.matching.as_ref().map_or(Mark::DEFAULT, |raw| from.mark(raw.place, 0));
    let conditions = conditions_text(&matching.conditions).into_iter();
    conditions.map(|(key, value)| Extra { key, value, mark }).collect()
}

// --- doubts ---

/// What is legal but surely unintended. Called by `warn`, when there are no errors.
pub(in crate::config) fn warn(raw: &Raw, matches: &[Arc<RouteMatch>], problems: &mut Problems) {
    for route in &raw.routes {
        of_branches(route, problems);
        if let Some(matching) = &route.matching {
            of_place(raw, matching, problems);
            of_identity(raw, matching, problems);
            of_labels(raw, matching, problems);
            of_values(matching, problems);
        }
    }
    let mut shadowed = of_one_path(matches);
    of_regexes(matches, &mut shadowed);
    let mut shadowed: Vec<(u32, u32)> = shadowed.into_iter().collect();
    shadowed.sort_unstable();
    for (route, by) in shadowed {
        let (place, by) = (path_place(&raw.routes[route as usize]), &raw.routes[by as usize]);
        problems.warn(|| {
            Problem::at(place, "no request reaches this route: another one comes before it and means all of its requests")
                .label("never used")
                .other(path_place(by), "this one")
                .help("ask for more here, for less there, or take one of the two out (docs/traffic.md says which comes first)")
        });
    }
}

/// Branches of an expression that no path begins like: `|` parts all of it, which many forget.
fn of_branches(route: &RawRoute, problems: &mut Problems) {
    let Some(At { value: regex, place, .. }) = &route.path_regex else { return };
    let branches = regex.branches();
    // A flag in front holds for all of them.
    if branches.iter().any(|branch| branch.starts_with("(?")) {
        return;
    }
    let is_dead = |branch: &&&str| match Regex::parse(branch) {
        Ok(regex) => !regex.may_begin_with(b'/'),
        Err(bad) => bad == BadRegex::Empty,
    };
    let Some(dead) = branches.iter().find(is_dead) else { return };
    problems.warn(|| {
        let before = branches[0].rsplit_once('/').map(|(before, _)| format!("{before}/"));
        let before = before.filter(|before| !before.contains(['(', '[']));
        let help = match before {
            Some(before) => {
                let rest = branches.iter().map(|branch| branch.strip_prefix(&*before).unwrap_or(branch));
                let rest: Vec<&str> = rest.collect();
                format!("write {}", values::quoted(&format!("{before}(?:{})", rest.join("|"))))
            }
            None => "put what `|` is to part in brackets, such as \"/x/(?:a|b)\"".into(),
        };
        let shown = super::super::reader::shortened(dead);
        Problem::at(*place, format!("the branch `{shown}` matches no path: each begins with `/`"))
            .label("`|` parts all of it")
            .help(help)
    });
}

fn of_place(raw: &Raw, matching: &RawMatch, problems: &mut Problems) {
    let Some(ports) = &matching.ports else { return };
    let names = listener_names(raw);
    let meant = |name: &Arc<str>| {
        matching.listeners.as_ref().is_none_or(|listeners| listeners.value.iter().any(|at| at.value == *name))
    };
    let known: Vec<u16> = names
        .iter()
        .zip(&raw.listeners)
        .filter(|(name, _)| meant(name))
        .filter_map(|(_, listener)| Some(listener.address?.value.port()))
        .collect();
    // Which one port 0 becomes is not known here.
    if !known.contains(&0) && !ports.value.iter().any(|port| known.contains(port)) {
        let of = if matching.listeners.is_some() { "these listeners" } else { "the listeners" };
        let known: Vec<String> = known.iter().map(u16::to_string).collect();
        problems.warn(|| {
            Problem::at(ports.place, format!("no request reaches this route: none of {of} has such a port"))
                .help(format!("they have: {}", known.join(", ")))
        });
    }
}

fn of_identity(raw: &Raw, matching: &RawMatch, problems: &mut Problems) {
    let Some(from) = &matching.from else { return };
    let tells = |tls: Option<At<ListenerTlsWord>>| {
        tls.is_some_and(|at| matches!(at.value, ListenerTlsWord::Permissive | ListenerTlsWord::Strict))
    };
    if !raw.listeners.iter().any(|listener| tells(listener.tls)) {
        problems.warn(|| {
            Problem::at(from.place, "no request reaches this route: no listener learns who calls")
                .help("write tls = \"strict\" or \"permissive\" in a [[listener]], or take `from` out")
        });
    }
}

fn of_labels(raw: &Raw, matching: &RawMatch, problems: &mut Problems) {
    let Some(labels) = &matching.labels else { return };
    if labelled(&labels.value, &raw.workloads).workloads.is_empty() {
        problems.warn(|| {
            let message = "no request reaches this route: no [[workload]] has all of these labels";
            Problem::at(labels.place, message).help(match raw.workloads.len() {
                0 => {
                    "add one: [[workload]] with `labels` and, by what it is known, `from` or `sources`".into()
                }
                1 => "there is one; its labels are others".to_owned(),
                count => format!("there are {count}; their labels are others"),
            })
        });
    }
}

fn of_values(matching: &RawMatch, problems: &mut Problems) {
    for (name, test, place) in matching.headers.iter().chain(&matching.query).chain(&matching.cookies) {
        if let What::Exact(text) = &test.what
            && let Some(before) = text.strip_suffix('*')
        {
            problems.warn(|| {
                let instead = match before {
                    "" => format!("{name} = {{ present = true }}"),
                    _ => format!("{name} = {{ prefix = {} }}", values::quoted(before)),
                };
                Problem::at(*place, "`*` in a value is matched as the character itself")
                    .help(format!("write {instead}"))
            });
        }
    }
    for (_, _, place) in matching.headers.iter().filter(|(name, ..)| &**name == "x-forwarded-client-cert") {
        problems.warn(|| {
            Problem::at(*place, "x-forwarded-client-cert is never there: callers' own are removed")
                .help("write match.from for who calls")
        });
    }
}

/// Routes that are compared with each other under one host and path.
const COMPARED_MAX: usize = 256;

/// Routes of one host and path of which a more specific or earlier one means all requests: each with that one.
fn of_one_path(matches: &[Arc<RouteMatch>]) -> HashMap<u32, u32> {
    let mut groups: HashMap<(&HostMatch, &PathMatch), Vec<u32>> = HashMap::new();
    for (number, matching) in (0..).zip(matches) {
        for host in matching.hosts() {
            groups.entry((host, &matching.path)).or_default().push(number);
        }
    }
    // By how many of its hosts a route is not reached, and by which other.
    let mut unreached: HashMap<u32, (usize, u32)> = HashMap::new();
    for mut group in groups.into_values().filter(|group| group.len() > 1) {
        sort(&mut group, matches);
        for (at, number) in group.iter().enumerate() {
            let own = &matches[*number as usize].conditions;
            let before = &group[at.saturating_sub(COMPARED_MAX)..at];
            let by = before.iter().find(|other| matches[**other as usize].conditions.include(own));
            if let Some(by) = by {
                let entry = unreached.entry(*number).or_insert((0, *by));
                entry.0 += 1;
            }
        }
    }
    let everywhere = |number: u32, count: usize| matches[number as usize].hosts().len() == count;
    unreached
        .into_iter()
        .filter(|(n, (count, _))| everywhere(*n, *count))
        .map(|(n, (_, by))| (n, by))
        .collect()
}

/// Expressions that end in `.*` come before prefixes, and before other expressions that are less specific.
fn of_regexes(matches: &[Arc<RouteMatch>], shadowed: &mut HashMap<u32, u32>) {
    let begins = |number: u32| match &matches[number as usize].path {
        PathMatch::Regex(regex) => Some((regex.literal_prefix().to_vec(), false)),
        PathMatch::Prefix(prefix) => Some((prefix.as_bytes().to_vec(), true)),
        PathMatch::Exact(_) | PathMatch::Template(_) => None,
    };
    let mut wide: HashMap<&HostMatch, Vec<u32>> = HashMap::new();
    for (number, matching) in (0..).zip(matches) {
        if let PathMatch::Regex(regex) = &matching.path
            && regex.is_prefix_only()
        {
            for host in matching.hosts() {
                wide.entry(host).or_default().push(number);
            }
        }
    }
    if wide.is_empty() {
        return;
    }
    wide.values_mut().for_each(|group| {
        sort(group, matches);
        group.truncate(COMPARED_MAX);
    });
    for (number, matching) in (0..).zip(matches) {
        let Some((begin, is_prefix)) = begins(number) else { continue };
        let by = |host: &HostMatch| {
            let others = wide.get(host)?.iter().copied().filter(|other| *other != number);
            let mut before =
                others.filter(|other| is_prefix || rank(*other, matches) > rank(number, matches));
            before.find(|other| {
                let PathMatch::Regex(regex) = &matches[*other as usize].path else { return false };
                begin.starts_with(regex.literal_prefix())
                    && matches[*other as usize].conditions.include(&matching.conditions)
            })
        };
        let found: Option<Vec<u32>> = matching.hosts().iter().map(by).collect();
        if let Some(first) = found.and_then(|found| found.first().copied()) {
            shadowed.entry(number).or_insert(first);
        }
    }
}

fn rank(number: u32, matches: &[Arc<RouteMatch>]) -> impl Ord + use<> {
    (matches[number as usize].conditions.specificity(), std::cmp::Reverse(number))
}

fn sort(group: &mut [u32], matches: &[Arc<RouteMatch>]) {
    group.sort_by_key(|number| std::cmp::Reverse(rank(*number, matches)));
}
