//! `[[rate_limit]]` with a `service`: finds the service, and which of a route's limits are asked together. Called by `rate_limit`.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::compiled::{Extra, Mark};
use super::super::decode::{ON_FAILURE_WORDS, RawGlobalLimit, entry_text};
use super::super::defaults;
use super::super::nearest::did_you_mean;
use super::super::raw::{At, Raw};
use super::super::report::{Place, Problem, Problems};
use super::super::values::{duration_text, quoted};
use super::{From, value_or};
use crate::quota::global::{Ask, Global, Spec};
use crate::upstream::spec::Protocol;

/// Services that there are not, or that cannot be asked; routes with more limits than are asked at a time.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    for global in raw.rate_limits.iter().filter_map(|limit| limit.global.as_ref()) {
        let named = |name: &At<Arc<str>>| *name.value == *global.service.value;
        match raw.services.iter().find(|service| service.name.as_ref().is_some_and(named)) {
            None => problems.error(|| {
                let names = raw.services.iter().filter_map(|service| Some(&*service.name.as_ref()?.value));
                let name = super::super::reader::shortened(&global.service.value);
                Problem::at(global.service.place, format!("there is no service `{name}`"))
                    .label("not declared")
                    .help(did_you_mean(&global.service.value, names).unwrap_or_else(|| {
                        format!("add it: [[service]] with name = {} and protocol = \"http2\"", quoted(&name))
                    }))
            }),
            Some(service) if service.protocol.as_ref().is_none_or(|at| at.value != Protocol::Http2) => {
                let place = service.protocol.as_ref().map_or(service.place, |at| at.place);
                problems.error(|| {
                    let name = super::super::reader::shortened(&global.service.value);
                    Problem::at(
                        global.service.place,
                        format!(
                            "service `{name}` is not said to speak HTTP/2, which a rate limit is asked by"
                        ),
                    )
                    .other(place, "here")
                    .help("add protocol = \"http2\" to it")
                });
            }
            Some(_) => {}
        }
    }
    too_many(raw, problems);
}

fn too_many(raw: &Raw, problems: &mut Problems) {
    let globals = || raw.rate_limits.iter().filter_map(|limit| Some((limit.global.as_ref()?, &limit.routes)));
    let of_all = || globals().filter(|(_, routes)| routes.is_none());
    let mut more: HashMap<&str, usize> = HashMap::new();
    let mut told = |place: Place, count: usize| {
        if count == defaults::RATE_LIMITS_ASKED_MAX + 1 {
            problems.error(|| {
                let most = defaults::RATE_LIMITS_ASKED_MAX;
                Problem::at(place, format!("more than {most} limits that services count concern one route"))
                    .help("say of some of them which `routes` they limit")
            });
        }
    };
    of_all().enumerate().for_each(|(n, (global, _))| told(global.service.place, n + 1));
    for name in globals().filter_map(|(_, routes)| routes.as_ref()).flat_map(|routes| &routes.value) {
        let count = more.entry(&name.value).or_insert_with(|| of_all().count());
        *count += 1;
        told(name.place, *count);
    }
}

/// A limit, and what is shown of it.
pub(super) fn global_limit(
    name: Arc<str>,
    raw: RawGlobalLimit,
    from: &From<'_>,
) -> (Arc<Global>, Vec<Extra>) {
    let mut shown = Vec::new();
    let mut show = |key, value: String, mark: Mark| shown.push(Extra { key, value, mark });
    let RawGlobalLimit { service, domain, entries, hits, timeout, on_failure } = raw;
    show("service", quoted(&service.value), from.mark_of(Some(&service)));
    let mark = from.mark_of(domain.as_ref());
    let domain = value_or(domain, "".into());
    show("domain", quoted(&domain), mark);
    let mark = from.mark_of(entries.as_ref());
    let entries = value_or(entries, Vec::new());
    show("by", format!("[{}]", entries.iter().map(entry_text).collect::<Vec<_>>().join(", ")), mark);
    let mark = from.mark_of(hits.as_ref());
    let hits = value_or(hits, defaults::RATE_LIMIT_HITS.default);
    show("hits", hits.to_string(), mark);
    let mark = from.mark_of(timeout.as_ref());
    let timeout = value_or(timeout, defaults::RATE_LIMIT_TIMEOUT.default);
    show("timeout", quoted(&duration_text(timeout)), mark);
    let mark = from.mark_of(on_failure.as_ref());
    let on_failure = value_or(on_failure, defaults::RATE_LIMIT_ON_FAILURE);
    let word = ON_FAILURE_WORDS.iter().find(|(_, known)| *known == on_failure).map_or("", |(word, _)| word);
    show("on_failure", quoted(word), mark);
    let spec = Spec {
        name,
        service: service.value.as_ref().into(),
        domain,
        entries: entries.into(),
        hits,
        timeout_ns: super::rate_limit::ns(timeout),
        on_failure,
    };
    (Arc::new(Global::new(spec)), shown)
}

/// Which of a route's limits are asked together: those of one service and one domain, in the order of the files.
pub(super) fn asks(of: &[u32], globals: &[Arc<Global>], services: &HashMap<&str, u32>) -> Option<Box<[Ask]>> {
    let mut asks: Vec<(&str, u32, Vec<u32>)> = Vec::new();
    for id in of {
        let Some(Spec { service, domain, .. }) = globals.get(*id as usize).map(|global| &global.spec) else {
            continue;
        };
        let Some(service) = services.get(&**service) else { continue };
        match asks.iter_mut().find(|(known, by, _)| *known == &**domain && by == service) {
            Some((_, _, limits)) => limits.push(*id),
            None => asks.push((domain, *service, vec![*id])),
        }
    }
    let asks = asks.into_iter().map(|(_, service, limits)| Ask { service, limits: limits.into() });
    Some(asks.collect::<Box<[Ask]>>()).filter(|asks| !asks.is_empty())
}
