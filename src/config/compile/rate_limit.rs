//! `[[rate_limit]]`: finds the routes that each limits, and what is shown of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::compiled::{CompiledRoute, CompiledService, Extra, Mark};
use super::super::decode::{RawRateLimit, by_text};
use super::super::defaults;
use super::super::nearest::did_you_mean;
use super::super::raw::{At, Raw};
use super::super::report::{Problem, Problems};
use super::super::values::{duration_text, quoted};
use super::{From, global_limit, numbered_name, value_or};
use crate::quota::global::Global;
use crate::quota::{Quota, Spec};

/// A limit, and what is shown of it.
#[derive(Debug)]
pub(in crate::config) struct CompiledRateLimit {
    pub(in crate::config) limit: Limit,
    pub(in crate::config) shown: Box<[Extra]>,
}

/// Who counts.
#[derive(Debug)]
pub(in crate::config) enum Limit {
    /// This proxy.
    Local(Arc<Quota>),
    /// A service, for several proxies.
    Global(Arc<Global>),
}

impl CompiledRateLimit {
    /// What it is called.
    pub(in crate::config) fn name(&self) -> &Arc<str> {
        match &self.limit {
            Limit::Local(quota) => &quota.spec.name,
            Limit::Global(global) => &global.spec.name,
        }
    }
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
    global_limit::check(raw, problems);
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
    services: &[CompiledService],
    from: &From<'_>,
) -> Vec<CompiledRateLimit> {
    let mut of: Vec<(Vec<u32>, Vec<u32>)> = vec![Default::default(); routes.len()];
    let names: HashMap<Arc<str>, usize> =
        routes.iter().enumerate().map(|(id, route)| (Arc::clone(&route.route.name), id)).collect();
    let services: HashMap<&str, u32> =
        (0..).zip(services).map(|(id, service)| (&*service.service.name, id)).collect();
    let mut limits = Vec::with_capacity(raw.len());
    let (mut locals, mut globals) = (0, Vec::new());
    for (index, raw) in raw.into_iter().enumerate() {
        let is_global = raw.global.is_some();
        let mut note = |route: usize| {
            let (local, global) = &mut of[route];
            let (ids, id) = if is_global { (global, globals.len() as u32) } else { (local, locals) };
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        };
        match &raw.routes {
            None => (0..routes.len()).for_each(note),
            Some(named) => {
                named.value.iter().filter_map(|name| names.get(&name.value)).copied().for_each(&mut note)
            }
        }
        let limit = rate_limit(raw, index, from);
        match &limit.limit {
            Limit::Local(_) => locals += 1,
            Limit::Global(global) => globals.push(Arc::clone(global)),
        }
        limits.push(limit);
    }
    for (route, (local, global)) in routes.iter_mut().zip(of) {
        route.route.quotas = (!local.is_empty()).then(|| local.into());
        route.route.asks = global_limit::asks(&global, &globals, &services);
    }
    limits
}

fn rate_limit(raw: RawRateLimit, index: usize, from: &From<'_>) -> CompiledRateLimit {
    let name = raw.name.map_or_else(|| numbered_name("rate_limit", index), |at| at.value);
    if let Some(global) = raw.global {
        let (global, mut shown) = global_limit::global_limit(name, global, from);
        shown.extend(routes_shown(raw.routes.as_ref(), from));
        return CompiledRateLimit { limit: Limit::Global(global), shown: shown.into() };
    }
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
    shown.extend(routes_shown(raw.routes.as_ref(), from));
    let mut show = |key, value: String, mark: Mark| shown.push(Extra { key, value, mark });
    let keys_max = value_or(raw.keys_max, defaults::RATE_LIMIT_KEYS_MAX.default);
    show("keys_max", keys_max.to_string(), from.mark_of(raw.keys_max.as_ref()));
    let spec = Spec { name, rate, per_ns: ns(per), burst, by: by.into(), keys_max };
    CompiledRateLimit { limit: Limit::Local(Arc::new(Quota::new(spec))), shown: shown.into() }
}

fn routes_shown(routes: Option<&At<Vec<At<Arc<str>>>>>, from: &From<'_>) -> Option<Extra> {
    let names: Vec<String> = routes?.value.iter().map(|name| quoted(&name.value)).collect();
    Some(Extra { key: "routes", value: format!("[{}]", names.join(", ")), mark: from.mark_of(routes) })
}

pub(super) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
