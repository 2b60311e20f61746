//! `[[rate_limit]]`: finds the routes that each limits, and what is shown of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::compiled::{CompiledRoute, Extra, Mark};
use super::super::decode::{RawRateLimit, by_text};
use super::super::defaults;
use super::super::nearest::did_you_mean;
use super::super::raw::{At, Raw};
use super::super::report::{Problem, Problems};
use super::super::values::{duration_text, quoted};
use super::{From, numbered_name, value_or};
use crate::quota::{Quota, Spec};

/// A limit, and what is shown of it.
#[derive(Debug)]
pub(in crate::config) struct CompiledRateLimit {
    pub(in crate::config) quota: Arc<Quota>,
    pub(in crate::config) shown: Box<[Extra]>,
}

/// Names that are no route's.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    let names: HashMap<Arc<str>, usize> = raw
        .routes
        .iter()
        .enumerate()
        .map(|(index, route)| (route_name(route.name.as_ref(), index), index))
        .collect();
    for route in raw.rate_limits.iter().filter_map(|limit| limit.routes.as_ref()).flat_map(|at| &at.value) {
        if !names.contains_key(&route.value) {
            problems.error(|| {
                let known = raw.routes.iter().filter_map(|route| Some(&*route.name.as_ref()?.value));
                Problem::at(
                    route.place,
                    format!("there is no route `{}`", super::super::reader::shortened(&route.value)),
                )
                .label("not declared")
                .help(
                    did_you_mean(&route.value, known)
                        .unwrap_or_else(|| "give the route that is meant this `name`".into()),
                )
            });
        }
    }
    for limit in &raw.rate_limits {
        if let (Some(keys), None) = (&limit.keys_max, limit.by.as_ref().filter(|by| !by.value.is_empty())) {
            problems.warn(|| {
                Problem::at(keys.place, "`keys_max` has no effect: there is one bucket for all without `by`")
                    .help("take it out, or write by = [\"source\"]")
            });
        }
    }
}

fn route_name(name: Option<&At<Arc<str>>>, index: usize) -> Arc<str> {
    name.map_or_else(|| numbered_name("route", index), |at| Arc::clone(&at.value))
}

/// The limits, which the routes learn of.
pub(super) fn rate_limits(
    raw: Vec<RawRateLimit>,
    routes: &mut [CompiledRoute],
    from: &From<'_>,
) -> Vec<CompiledRateLimit> {
    let mut of: Vec<Vec<u32>> = vec![Vec::new(); routes.len()];
    let names: HashMap<Arc<str>, usize> =
        routes.iter().enumerate().map(|(id, route)| (Arc::clone(&route.route.name), id)).collect();
    let mut limits = Vec::with_capacity(raw.len());
    for (id, raw) in (0_u32..).zip(raw) {
        match &raw.routes {
            None => of.iter_mut().for_each(|of| of.push(id)),
            Some(routes) => {
                for id_of_route in routes.value.iter().filter_map(|name| names.get(&name.value)) {
                    if of[*id_of_route].last() != Some(&id) {
                        of[*id_of_route].push(id);
                    }
                }
            }
        }
        limits.push(rate_limit(raw, id as usize, from));
    }
    for (route, of) in routes.iter_mut().zip(of) {
        route.route.quotas = (!of.is_empty()).then(|| of.into());
    }
    limits
}

fn rate_limit(raw: RawRateLimit, index: usize, from: &From<'_>) -> CompiledRateLimit {
    let mut shown = Vec::new();
    let mut show = |key, value: String, mark: Mark| shown.push(Extra { key, value, mark });
    let rate = value_or(raw.rate, defaults::RATE_LIMIT_RATE.default);
    show("rate", rate.to_string(), from.mark_of(raw.rate.as_ref()));
    let per = value_or(raw.per, defaults::RATE_LIMIT_PER.default);
    show("per", quoted(&duration_text(per)), from.mark_of(raw.per.as_ref()));
    // As many as come in the time anyway.
    let burst = value_or(raw.burst, rate);
    show("burst", burst.to_string(), from.mark_of(raw.burst.as_ref()));
    let by = raw.by.as_ref().map_or(&[][..], |at| &at.value);
    let words: Vec<String> = by.iter().map(by_text).collect();
    show("by", format!("[{}]", words.join(", ")), from.mark_of(raw.by.as_ref()));
    if let Some(routes) = &raw.routes {
        let names: Vec<String> = routes.value.iter().map(|name| quoted(&name.value)).collect();
        show("routes", format!("[{}]", names.join(", ")), from.mark_of(Some(routes)));
    }
    let keys_max = value_or(raw.keys_max, defaults::RATE_LIMIT_KEYS_MAX.default);
    show("keys_max", keys_max.to_string(), from.mark_of(raw.keys_max.as_ref()));
    let spec = Spec {
        name: raw.name.map_or_else(|| numbered_name("rate_limit", index), |at| at.value),
        rate,
        per_ns: ns(per),
        burst,
        by: by.into(),
        keys_max,
    };
    CompiledRateLimit { quota: Arc::new(Quota::new(spec)), shown: shown.into() }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
