//! What routes answer by themselves and never should: redirects to where callers are, preflights that no route takes,
//! cookies that are taken out again. Called by `compile` and `warn`.
//!
//! Refuses to guess: where another route may take over, or an expression may change the path, nothing is said.

use std::collections::HashSet;
use std::sync::Arc;

use http::header;

use super::super::raw::{At, ListenerTlsWord, Raw, RawListener, RawRedirect, RawRoute};
use super::super::report::{Problem, Problems};
use super::action::new_path;
use super::policy::listener_names;
use super::value_or;
use crate::route::path::NewPath;
use crate::route::split::Sticky;
use crate::route::{Conditions, HostMatch, PathMatch, RouteMatch};

// --- redirects ---

/// Reports redirects whose callers come back for ever.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    for route in raw.routes.iter().filter(|route| route.match_is_right) {
        let Some(At { value: redirect, place, .. }) = &route.action.redirect else { continue };
        let stays = redirect.scheme.is_none() && redirect.host.is_none() && redirect.port.is_none();
        if stays && redirect.path.is_some() && keeps_path(route, redirect) && comes_back(route, redirect) {
            problems.error(|| {
                Problem::at(*place, "this redirect sends callers to where they are")
                    .label("the same path")
                    .help("write another path, or what else is different: scheme, host, port")
            });
        }
    }
}

/// Whether the path stays as it is, for certain.
fn keeps_path(route: &RawRoute, redirect: &RawRedirect) -> bool {
    match redirect.path.as_ref().map(|path| new_path(route, path)) {
        None => true,
        Some(NewPath::Whole(whole)) => route.path.as_ref().is_some_and(|own| own.value == whole),
        Some(NewPath::Prefix { from, to }) => from == to,
        Some(NewPath::Regex(_) | NewPath::Filled(_)) => false,
    }
}

/// Whether the route means the next request of the caller as well, if host and path are its own: it may be a GET, and
/// without a query.
fn comes_back(route: &RawRoute, redirect: &RawRedirect) -> bool {
    let Some(matching) = &route.matching else { return true };
    let methods = matching.methods.as_ref();
    methods.is_none_or(|methods| methods.value.iter().any(|method| &**method == "GET"))
        && (matching.query.is_empty() || redirect.keep_query)
        && matching.grpc.is_none()
}

/// Redirects to the scheme that callers have come by, or to a path that the route itself serves.
fn of_redirect(raw: &Raw, route: &RawRoute, paths: &Paths<'_>, problems: &mut Problems) {
    let Some(At { value: redirect, place, .. }) = &route.action.redirect else { return };
    if redirect.host.is_some() || redirect.port.is_some() || !comes_back(route, redirect) {
        return;
    }
    if let Some(scheme) = redirect.scheme {
        if keeps_path(route, redirect) && every_caller_has(scheme, raw, route) {
            problems.warn(|| {
                let other =
                    if scheme == "http" { "scheme = \"https\", host or port" } else { "host or port" };
                Problem::at(
                    *place,
                    format!("this redirect sends callers to where they are: all come by {scheme}"),
                )
                .label("the same scheme")
                .help(format!("write what is different: {other}, or a path"))
            });
        }
        return;
    }
    let Some(own) = &route.path_prefix else { return };
    let target = match redirect.path.as_ref().map(|path| new_path(route, path)) {
        Some(NewPath::Whole(whole)) => whole,
        Some(NewPath::Prefix { from, to }) if from != to => to,
        _ => return,
    };
    if is_below(&target, &own.value) && !paths.may_take(&target, &own.value) {
        problems.warn(|| {
            Problem::at(*place, "this redirect leads to this route again: its callers never arrive")
                .label("where they are sent")
                .other(own.place, "which is below this")
                .help("add a [[route]] for the new path, or choose one that is not below the route's own")
        });
    }
}

/// Whether a path is a prefix or below it, by whole segments.
fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether whoever this route answers has come by that scheme.
fn every_caller_has(scheme: &str, raw: &Raw, route: &RawRoute) -> bool {
    let meant = route.matching.as_ref().and_then(|matching| matching.listeners.as_ref());
    let names = listener_names(raw);
    let speaks = |listener: &RawListener| match value_or(listener.tls, ListenerTlsWord::Off) {
        ListenerTlsWord::Off => scheme == "http",
        ListenerTlsWord::Strict | ListenerTlsWord::Terminate => scheme == "https",
        ListenerTlsWord::Permissive => false,
    };
    names
        .iter()
        .zip(&raw.listeners)
        .filter(|(name, _)| meant.is_none_or(|meant| meant.value.iter().any(|at| at.value == **name)))
        .all(|(_, listener)| speaks(listener))
}

/// Paths that routes are found by.
#[derive(Default)]
struct Paths<'r> {
    exact: HashSet<&'r str>,
    prefixes: HashSet<&'r str>,
    /// Whether there are templates or expressions.
    others: bool,
}

impl<'r> Paths<'r> {
    fn new(matches: &'r [Arc<RouteMatch>]) -> Self {
        let mut paths = Self::default();
        for matching in matches {
            match &matching.path {
                PathMatch::Exact(path) => drop(paths.exact.insert(path)),
                PathMatch::Prefix(prefix) => drop(paths.prefixes.insert(prefix.trim_end_matches('/'))),
                PathMatch::Template(_) | PathMatch::Regex(_) => paths.others = true,
            }
        }
        paths
    }

    /// Whether a route may be meant by a path rather than one with that prefix.
    fn may_take(&self, path: &str, rather_than: &str) -> bool {
        let own = rather_than.trim_end_matches('/');
        self.others
            || self.exact.contains(path)
            || above(path).any(|prefix| prefix.len() > own.len() && self.prefixes.contains(prefix))
    }
}

/// A path and all prefixes above it, without a slash at the end.
fn above(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path.trim_end_matches('/')), |path| {
        path.rsplit_once('/').map(|(above, _)| above)
    })
}

// --- preflights ---

/// Fields that browsers send before they ask (Fetch §4.8).
fn is_sent_beforehand(field: &str) -> bool {
    const SENT: [&str; 13] = [
        "accept",
        "accept-encoding",
        "accept-language",
        "access-control-request-headers",
        "access-control-request-method",
        "connection",
        "host",
        "origin",
        "referer",
        "sec-fetch-dest",
        "sec-fetch-mode",
        "sec-fetch-site",
        "user-agent",
    ];
    SENT.contains(&field)
}

/// Whether a preflight meets these, as far as it is asked for method, fields and cookies.
fn takes_preflights(conditions: &Conditions) -> bool {
    (conditions.methods.is_empty() || conditions.methods.iter().any(|method| &**method == "OPTIONS"))
        && conditions.headers.iter().all(|(name, test)| test.not || is_sent_beforehand(name))
        && conditions.cookies.iter().all(|(_, test)| test.not)
        && !conditions.grpc
}

/// Hosts and paths of routes that answer preflights.
type Answering<'r> = HashSet<(&'r HostMatch, &'r PathMatch)>;

fn answering<'r>(raw: &Raw, matches: &'r [Arc<RouteMatch>]) -> Answering<'r> {
    let answers =
        raw.routes.iter().zip(matches).filter(|(route, matching)| {
            route.action.cors.is_some() && takes_preflights(&matching.conditions)
        });
    answers.flat_map(|(_, matching)| matching.hosts().iter().map(|host| (host, &matching.path))).collect()
}

/// Whether other routes answer the preflights for this one.
fn are_answered(matching: &RouteMatch, answering: &Answering<'_>) -> bool {
    let begin = match &matching.path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => Some(&**path),
        PathMatch::Template(_) | PathMatch::Regex(_) => None,
    };
    let prefixes = begin.into_iter().flat_map(above).map(|prefix| match prefix {
        "" => PathMatch::Prefix("/".into()),
        _ => PathMatch::Prefix(prefix.into()),
    });
    let paths: Vec<PathMatch> =
        prefixes.chain([matching.path.clone(), PathMatch::Prefix("/".into())]).collect();
    matching.hosts().iter().all(|host| {
        [host, &HostMatch::Any].iter().any(|host| paths.iter().any(|path| answering.contains(&(*host, path))))
    })
}

/// Routes with `cors` that never see a preflight.
fn of_preflights(
    route: &RawRoute,
    matching: &RouteMatch,
    answering: &Answering<'_>,
    problems: &mut Problems,
) {
    let (Some(cors), Some(asked)) = (&route.action.cors, &route.matching) else { return };
    if takes_preflights(&matching.conditions) || are_answered(matching, answering) {
        return;
    }
    let message = "browsers that ask beforehand (OPTIONS) are not answered by this route";
    if let Some(methods) = &asked.methods
        && !methods.value.iter().any(|method| &**method == "OPTIONS")
    {
        problems.warn(|| {
            Problem::at(cors.place, message)
                .label("not asked for preflights")
                .other(methods.place, "without OPTIONS")
                .help("add \"OPTIONS\" to `methods`")
        });
        return;
    }
    let header = asked.headers.iter().find(|(name, test, _)| !test.not && !is_sent_beforehand(name));
    let cookie = asked.cookies.iter().find(|(_, test, _)| !test.not);
    if let Some((name, _, place)) = header.or(cookie) {
        let what = if header.is_some() { "field" } else { "cookie" };
        problems.warn(|| {
            Problem::at(cors.place, format!("{message}: they send no {what} `{name}` then"))
                .label("not asked for preflights")
                .other(*place, "not sent beforehand")
                .help("add a [[route]] with the same host, path and `cors`, and match = { methods = [\"OPTIONS\"] }")
        });
    }
}

// --- cookies ---

/// A cookie that the route sets and takes out.
fn of_cookie(route: &RawRoute, problems: &mut Problems) {
    let (Some(sticky), Some(fields)) = (&route.action.sticky, &route.action.response_headers) else { return };
    let changed = fields.value.remove.iter().chain(fields.value.set.iter().map(|(name, _)| name));
    if matches!(sticky.value, Sticky::SetCookie(_))
        && changed.into_iter().any(|name| *name == header::SET_COOKIE)
    {
        problems.warn(|| {
            Problem::at(fields.place, "this takes the cookie out as well that `sticky` sets")
                .label("takes out set-cookie")
                .other(sticky.place, "sets one")
                .help("leave `set-cookie` out, or tell callers apart by something else than a cookie that is set")
        });
    }
}

/// What is legal but surely unintended. Called by `warn`, when there are no errors.
pub(in crate::config) fn warn(raw: &Raw, matches: &[Arc<RouteMatch>], problems: &mut Problems) {
    let (paths, answering) = (Paths::new(matches), answering(raw, matches));
    for (route, matching) in raw.routes.iter().zip(matches) {
        of_redirect(raw, route, &paths, problems);
        of_preflights(route, matching, &answering, problems);
        of_cookie(route, problems);
    }
}
