//! What is legal but surely unintended. Called by `compile` once there are no errors, so that no warning is the shadow of
//! an error. Each says what will happen and how to say that it is meant, or how to change it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::compile::hosts_of;
use super::defaults;
use super::raw::{At, MemoryMax, Raw, RawRetry, RawRoute, RawService};
use super::report::{Problem, Problems};
use super::values::{self, Target};
use crate::route::RouteMatch;
use crate::upstream::retry::Hedge;

/// Adds the warnings. `found` has the indices of each route's services, `matches` what each route means.
pub(super) fn warn(raw: &Raw, found: &[Vec<u32>], matches: &[Arc<RouteMatch>], problems: &mut Problems) {
    if raw.routes.is_empty() {
        problems.warn(|| {
            Problem::nowhere("there is no route: every request is answered with 404")
                .help("add one: [[route]] with service = \"app\"")
        });
    }
    if let Some(drain) = raw.timeouts.drain.filter(|drain| drain.value.is_zero()) {
        problems.warn(|| {
            Problem::at(drain.place, "timeouts.drain is 0: SIGTERM cuts what is in flight")
                .help("write how long it may take to finish, such as \"25s\"")
        });
    }
    super::compile::warn_of_policy(raw, problems);
    super::compile::warn_of_matching(raw, matches, problems);
    super::compile::warn_of_balance(raw, problems);
    super::compile::warn_of_probes(raw, problems);
    super::compile::warn_of_actions(raw, matches, problems);
    super::compile::warn_of_breakers(raw, problems);
    super::compile::warn_of_retries(raw, found, problems);
    of_memory(raw, problems);
    let listening: HashSet<_> =
        raw.listeners.iter().filter_map(|listener| listener.address).map(|at| at.value).collect();
    let used: HashSet<u32> = found.iter().flatten().copied().collect();
    let asked = raw.rate_limits.iter().filter_map(|limit| Some(&*limit.global.as_ref()?.service.value));
    let asked: HashSet<&str> = asked.collect();
    for (index, service) in (0_u32..).zip(&raw.services) {
        if !used.contains(&index)
            && let Some(name) = &service.name
            && !asked.contains(&*name.value)
        {
            problems.warn(|| {
                Problem::at(name.place, format!("no route leads to service `{}`", name.value))
                    .label("never used")
                    .help(format!(
                        "add a [[route]] with service = {}, or take it out",
                        values::quoted(&name.value)
                    ))
            });
        }
        of_endpoints(service, &listening, problems);
        of_pool(service, problems);
        if let Some(caps) = &service.caps {
            super::compile::warn_of_caps(caps, service.concurrency.as_deref(), problems);
        }
    }
    let target_bytes_max =
        raw.limits.target_bytes_max.map_or(defaults::TARGET_BYTES_MAX.default, |at| at.value);
    for (route, services) in raw.routes.iter().zip(found) {
        of_path(route, target_bytes_max, problems);
        of_hosts(route, problems);
        of_timeouts(route, &super::compile::serving(raw, route, services), problems);
    }
}

fn of_endpoints(service: &RawService, listening: &HashSet<std::net::SocketAddr>, problems: &mut Problems) {
    let endpoints = service.endpoints.as_ref().map_or(&[][..], |at| &at.value);
    if endpoints.is_empty() {
        let place = service.endpoints.as_ref().map_or(service.place, |at| at.place);
        let name = service.name.as_ref().map_or("", |at| &at.value);
        problems.warn(|| {
            Problem::at(
                place,
                format!("service `{name}` has no endpoints: its requests are answered with 503"),
            )
            .help("add some: endpoints = [\"127.0.0.1:9000\"]")
        });
    }
    let mut first = HashMap::with_capacity(endpoints.len());
    for endpoint in endpoints {
        if let Some(&place) = first.get(&endpoint.target) {
            problems.warn(|| {
                Problem::at(endpoint.place, format!("endpoint {} is listed twice", endpoint.target))
                    .label("ignored")
                    .other(place, "first here")
                    .help("give the first a `weight` if it is to get more")
            });
        } else {
            first.insert(&endpoint.target, endpoint.place);
        }
        if let Target::Ip(address) = endpoint.target {
            if is_own(address, listening) {
                problems.warn(|| {
                    Problem::at(endpoint.place, format!("endpoint {address} is a listener of this proxy"))
                        .label("it would call itself")
                        .help("write the address of the service itself")
                });
            } else if address.ip().is_unspecified() {
                let loopback = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
                problems.warn(|| {
                    Problem::at(
                        endpoint.place,
                        format!("{} is an address to listen on, not to call", address.ip()),
                    )
                    .help(format!("write \"{loopback}:{}\" if it runs on this machine", address.port()))
                });
            }
        }
    }
}

/// Whether a listener accepts what is sent to an address: the same, or all addresses of its family where this is one of
/// this machine for certain.
fn is_own(address: std::net::SocketAddr, listening: &HashSet<std::net::SocketAddr>) -> bool {
    let mut all = address;
    all.set_ip(if address.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    });
    listening.contains(&address) || (address.ip().is_loopback() && listening.contains(&all))
}

fn of_pool(service: &RawService, problems: &mut Problems) {
    let keeps = service.idle_max.is_none_or(|at| at.value > 0);
    if let Some(timeout) = service.idle_timeout.filter(|at| at.value.is_zero() && keeps) {
        problems.warn(|| {
            Problem::at(timeout.place, "an idle_timeout of 0: no connection is used twice")
                .help("write idle_max = 0 if that is meant, or a time such as \"60s\"")
        });
    }
    let connections_max =
        service.connections_max.map_or(defaults::POOL_CONNECTIONS_MAX.default, |at| at.value);
    if let Some(idle) = service.idle_max.filter(|at| at.value > connections_max) {
        problems.warn(|| {
            Problem::at(idle.place, format!("more idle connections than the {connections_max} there may be"))
                .help(format!("write at most {connections_max}, or raise connections_max"))
        });
    }
}

/// Paths that no request can carry.
fn of_path(route: &RawRoute, target_bytes_max: u64, problems: &mut Problems) {
    let Some(path) = route.path.as_ref().or(route.path_prefix.as_ref()) else { return };
    if path.value.len() as u64 > target_bytes_max {
        problems.warn(|| {
            let longest = values::size_text(target_bytes_max);
            Problem::at(
                path.place,
                "no request can reach this route: its path is longer than a target may be",
            )
            .help(format!("raise limits.target_bytes_max, which is \"{longest}\", or shorten the path"))
        });
    }
    if path.value.split('/').any(|segment| segment == "." || segment == "..") {
        problems.warn(|| {
            Problem::at(
                path.place,
                "clients resolve `.` and `..` before they send a path: hardly a request reaches this",
            )
            .help("write the path without them")
        });
    }
    if path.value.contains('*') {
        let before = path.value.split('*').next().unwrap_or("/");
        problems.warn(|| {
            Problem::at(path.place, "`*` in a path is matched as the character itself")
                .help(format!("write path_prefix = \"{}\" for all below it", values::prefix(before)))
        });
    }
}

fn of_hosts(route: &RawRoute, problems: &mut Problems) {
    let mut first = HashMap::new();
    for (host, place) in hosts_of(route).unwrap_or_default() {
        if let Some(&other) = first.get(host) {
            problems.warn(|| {
                Problem::at(*place, format!("host {} is listed twice", values::host_text(host)))
                    .label("ignored")
                    .other(other, "first here")
                    .help("take one of the two out")
            });
        } else {
            first.insert(host, *place);
        }
    }
}

/// What the process holds with nothing to do is less than half of this.
const MEMORY_LEAST: u64 = 32 << 20;

fn of_memory(raw: &Raw, problems: &mut Problems) {
    let Some(At { value: MemoryMax::Bytes(most), place, .. }) = raw.memory_max else { return };
    if most < MEMORY_LEAST {
        problems.warn(|| {
            let (most, least) = (values::size_text(most), values::size_text(MEMORY_LEAST));
            Problem::at(place, format!("with {most} requests are refused for what the process itself holds"))
                .label("for all that it holds")
                .help(format!("write \"{least}\" or more, or \"cgroup\" for the limit of the cgroup"))
        });
    }
}

/// Waits that a file sets and that their route never grants in full. Defaults are not held against anybody.
fn of_timeouts(route: &RawRoute, services: &[&RawService], problems: &mut Problems) {
    let Some(timeout) = route.timeout.and_then(|at| Some(at.with(at.value?))) else { return };
    for service in services {
        for (key, wait) in [("timeouts.connect", service.connect), ("timeouts.response", service.response)] {
            of_wait(timeout, key, wait, "the wait on the service", problems);
        }
        let queue = service.caps.as_ref().and_then(|caps| caps.queue_timeout);
        of_wait(timeout, "caps.queue_timeout", queue, "the wait for a place at the service", problems);
        if let (Some(retry), None) = (&service.retry, &route.retry) {
            of_attempts(timeout, retry, problems);
        }
    }
    if let Some(retry) = &route.retry {
        of_attempts(timeout, retry, problems);
    }
    if let Some(fault) = &route.action.fault
        && let Some(delay) = fault.value.delay.as_ref().filter(|delay| delay.least >= timeout.value)
    {
        problems.warn(|| {
            let text = values::duration_text(timeout.value);
            let shortest = values::duration_text(delay.least);
            Problem::at(
                fault.place,
                format!("a delay of {shortest} ends in 504 each time: the route gives up after {text}"),
            )
            .label("the fault")
            .other(timeout.place, "the whole exchange")
            .help(format!(
                "let the delay be less than {text}, or write abort = {{ status = 504 }} if that is meant"
            ))
        });
    }
}

fn of_wait(
    timeout: At<Duration>,
    key: &str,
    wait: Option<At<Duration>>,
    label: &'static str,
    problems: &mut Problems,
) {
    let Some(wait) = wait.filter(|wait| wait.value > timeout.value) else { return };
    problems.warn(|| {
        let text = values::duration_text(timeout.value);
        Problem::at(timeout.place, format!("the route gives up after {text}, before its service does"))
            .label("the whole exchange")
            .other(wait.place, label)
            .help(format!(
                "let the route's timeout be at least {}, or lower {key}",
                values::duration_text(wait.value)
            ))
    });
}

fn of_attempts(timeout: At<Duration>, retry: &RawRetry, problems: &mut Problems) {
    let attempt = retry.attempt_timeout.and_then(|at| Some(at.with(at.value?)));
    of_wait(timeout, "retry.attempt_timeout", attempt, "the wait on one attempt", problems);
    if let Some(At { value: Some(Hedge::After(after)), place, .. }) = retry.hedge_after
        && after >= timeout.value
    {
        problems.warn(|| {
            let (after, text) = (values::duration_text(after), values::duration_text(timeout.value));
            Problem::at(place, format!("no hedge begins after {after}: the route gives up after {text}"))
                .label("never comes to that")
                .other(timeout.place, "the whole exchange")
                .help(format!("let retry.hedge_after be less than {text}, or raise the route's timeout"))
        });
    }
}
