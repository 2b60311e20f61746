//! Which endpoint of a service is chosen: how its keys fit together, and what they become. Called by `compile`.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::compiled::{ChoiceMarks, CompiledService};
use super::super::defaults;
use super::super::nearest::did_you_mean;
use super::super::raw::{Raw, RawChoice, RawRoute, RawService};
use super::super::reader::shortened;
use super::super::report::{Place, Problem, Problems};
use super::super::values::Target;
use super::{From, value_or};
use crate::upstream::spec::{self, Choice, Fallback, SlowStart, Subset};

/// Checks each service by itself, and the subsets that routes name. `found` has the indices of each route's services.
pub(super) fn check(raw: &Raw, found: &[Vec<u32>], problems: &mut Problems) {
    for service in &raw.services {
        of_hash(service, problems);
        of_subsets(service, problems);
    }
    for (route, found) in raw.routes.iter().zip(found) {
        let shares = route.action.split.as_ref().map_or(&[][..], |split| &split.value);
        let named = route
            .subset
            .iter()
            .take(found.len())
            .chain(shares.iter().filter_map(|share| share.subset.as_ref()));
        let of_shares = shares.iter().zip(found).filter(|(share, _)| share.subset.is_some()).map(|(_, n)| n);
        let services = found.iter().take(route.subset.iter().len()).chain(of_shares);
        for (named, service) in named.zip(services) {
            let Some(service) = raw.services.get(*service as usize) else { continue };
            if subset_number(service, &named.value).is_some() {
                continue;
            }
            problems.error(|| {
                let name = service.name.as_ref().map_or("", |at| &at.value);
                let names = || service.choice.subsets.iter().filter_map(|s| Some(&*s.name.as_ref()?.value));
                let help = did_you_mean(&named.value, names()).unwrap_or_else(|| match names().count() {
                    0 => format!("add one to `{name}`: [[service.subset]]"),
                    _ => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
                });
                let subset = shortened(&named.value);
                Problem::at(named.place, format!("service `{name}` has no subset `{subset}`"))
                    .label("not declared")
                    .help(help)
            });
        }
    }
}

fn of_hash(service: &RawService, problems: &mut Problems) {
    let balance = value_or(service.balance, defaults::BALANCE);
    let RawChoice { hash, maglev_places, .. } = &*service.choice;
    match hash {
        Some(hash) if !balance.hashes() => problems.error(|| {
            Problem::at(hash.place, "hash goes with balance = \"ring-hash\" or \"maglev\" only")
                .help("write one of them, or take `hash` out")
        }),
        Some(hash) if hash.value.is_empty() => problems.error(|| {
            Problem::at(hash.place, "hash is empty: no request would have a key")
                .help("write what it goes by, such as [{ header = \"x-user\" }]")
        }),
        None if balance.hashes() && !service.choice.is_hash_wrong => {
            if let Some(balance) = service.balance {
                problems.error(|| {
                    Problem::at(balance.place, "a balancer that hashes needs `hash`")
                        .label("by which key?")
                        .help("add hash = [{ header = \"x-user\" }], or cookie, source, query, identity")
                });
            }
        }
        _ => {}
    }
    if let Some(places) = maglev_places.filter(|at| !is_prime(at.value)) {
        problems.error(|| {
            let next = (places.value..).find(|n| is_prime(*n)).unwrap_or(defaults::MAGLEV_PLACES.default);
            Problem::at(
                places.place,
                format!("service.consistent.maglev_places: {} is no prime", places.value),
            )
            .help(format!("write {next}: the steps through the table have to reach every place"))
        });
    }
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn of_subsets(service: &RawService, problems: &mut Problems) {
    let mut first: HashMap<&str, Place> = HashMap::new();
    for subset in &service.choice.subsets {
        let Some(name) = &subset.name else { continue };
        if ["any", "none"].contains(&&*name.value) {
            problems.error(|| {
                Problem::at(name.place, format!("a subset cannot be called `{}`", name.value))
                    .help("it is a word of `fallback`: choose another")
            });
        }
        match first.get(&*name.value) {
            Some(&place) => problems.error(|| {
                Problem::at(name.place, format!("two subsets are called `{}`", name.value))
                    .label("again here")
                    .other(place, "first here")
                    .help("give each a name of its own")
            }),
            None => drop(first.insert(&name.value, name.place)),
        }
    }
    for subset in &service.choice.subsets {
        let Some(fallback) = subset.fallback.as_ref().filter(|at| !["any", "none"].contains(&&*at.value))
        else {
            continue;
        };
        let own = subset.name.as_ref().is_some_and(|name| name.value == fallback.value);
        if own || !first.contains_key(&*fallback.value) {
            problems.error(|| {
                let subset = shortened(&fallback.value);
                let message = if own {
                    format!("subset `{subset}` cannot stand in for itself")
                } else {
                    format!("there is no subset `{subset}` to fall back to")
                };
                Problem::at(fallback.place, message)
                    .help("write \"none\" (503), \"any\" (all endpoints), or the name of another subset")
            });
        }
    }
}

/// The number of a subset within its service, from 1.
fn subset_number(service: &RawService, name: &str) -> Option<u16> {
    let named =
        |subset: &super::super::raw::RawSubset| subset.name.as_ref().is_some_and(|at| *at.value == *name);
    let index = service.choice.subsets.iter().position(named)?;
    u16::try_from(index + 1).ok()
}

/// The number of the subset of a route, 0 for none.
pub(super) fn subset_of(route: &RawRoute, found: &[u32], services: &[CompiledService]) -> u16 {
    let service = found.first().and_then(|service| services.get(*service as usize));
    let named = route.subset.as_ref().zip(service);
    named.and_then(|(subset, to)| to.service.subset_named(&subset.value)).unwrap_or(0)
}

/// What is legal but surely unintended.
pub(in crate::config) fn warn(raw: &Raw, problems: &mut Problems) {
    for service in &raw.services {
        let choice = &*service.choice;
        if let Some(place) = choice.zones_place.filter(|_| raw.zone.is_none()) {
            problems.warn(|| {
                Problem::at(place, "`zones` does nothing: this proxy does not know its own zone")
                    .help("add [zone] with name = \"${ZONE}\", or take it out")
            });
        }
        let hashes = value_or(service.balance, defaults::BALANCE).hashes();
        if let Some(place) = choice.consistent_place.filter(|_| !hashes) {
            problems.warn(|| {
                Problem::at(place, "`consistent` does nothing: this balancer does not hash")
                    .help("write balance = \"ring-hash\" or \"maglev\", or take it out")
            });
        }
        let endpoints = service.endpoints.as_ref().map_or(&[][..], |at| &at.value);
        for subset in &choice.subsets {
            let (Some(name), Some(labels)) = (&subset.name, &subset.labels) else { continue };
            let has = |own: &Option<Arc<spec::Labels>>| {
                labels.value.iter().all(|label| own.as_ref().is_some_and(|own| own.contains(label)))
            };
            if !endpoints.iter().any(|endpoint| has(&endpoint.labels)) {
                let fallback = subset.fallback.as_ref().map_or("none", |at| &at.value);
                let then = match fallback {
                    "none" => "its requests are answered with 503".into(),
                    "any" => "its requests go to any endpoint".into(),
                    other => format!("its requests go to `{other}`"),
                };
                problems.warn(|| {
                    Problem::at(
                        labels.place,
                        format!("no endpoint has the labels of subset `{}`: {then}", name.value),
                    )
                    .help("add `labels` to endpoints, or take the subset out")
                });
            }
        }
        let places = value_or(choice.maglev_places, defaults::MAGLEV_PLACES.default);
        let literal = endpoints.iter().filter(|e| !matches!(e.target, Target::Name(..))).count();
        if let Some(balance) = service.balance.filter(|at| at.value == spec::Balance::Maglev)
            && literal.saturating_mul(100) > places as usize
        {
            problems.warn(|| {
                Problem::at(
                    balance.place,
                    format!("{literal} endpoints share {places} places: less than 100 each"),
                )
                .help(
                    "raise consistent.maglev_places to a larger prime, such as 655373, or use \"ring-hash\"",
                )
            });
        }
    }
}

/// What is chosen by, if anything is said; and where that came from.
pub(super) fn choice(
    raw: RawChoice,
    balance: spec::Balance,
    own_zone: Option<&Arc<str>>,
    from: &From<'_>,
) -> (Option<Box<Choice>>, ChoiceMarks) {
    let marks = [
        from.mark_of(raw.hash.as_ref()),
        from.mark_of(raw.ring_points.as_ref()),
        from.mark_of(raw.maglev_places.as_ref()),
        from.mark_of(raw.overload_percent.as_ref()),
        from.mark_of(raw.prefer_own.as_ref()),
        from.mark_of(raw.zone_endpoints_min.as_ref()),
        from.mark_of(raw.callers_percent.as_ref()),
        from.mark_of(raw.slow_start_window.as_ref()),
        from.mark_of(raw.aggression.as_ref()),
        from.mark_of(raw.weight_percent_min.as_ref()),
        from.mark_of(raw.subsets.first().and_then(|subset| subset.name.as_ref())),
    ];
    let names: Vec<Option<Arc<str>>> =
        raw.subsets.iter().map(|subset| subset.name.as_ref().map(|at| Arc::clone(&at.value))).collect();
    let number = |name: &str| names.iter().position(|known| known.as_deref() == Some(name));
    let fallback = |word: &str| match word {
        "none" => Fallback::None,
        "any" => Fallback::Any,
        name => number(name).and_then(|n| u16::try_from(n).ok()).map_or(Fallback::None, Fallback::Subset),
    };
    let subsets = raw
        .subsets
        .into_iter()
        .filter_map(|subset| {
            Some(Subset {
                name: subset.name?.value,
                labels: subset.labels?.value,
                fallback: subset.fallback.map_or(Fallback::None, |at| fallback(&at.value)),
            })
        })
        .collect();
    let slow_start = raw.slow_start_window.map(|window| SlowStart {
        window: window.value,
        aggression: u16::try_from(value_or(raw.aggression, defaults::AGGRESSION.default)).unwrap_or(u16::MAX),
        weight_percent_min: value_or(raw.weight_percent_min, defaults::WEIGHT_PERCENT_MIN.default),
    });
    let choice = Choice {
        hash: value_or(raw.hash, Vec::new()),
        consistent: spec::Consistent {
            ring_points: value_or(raw.ring_points, defaults::RING_POINTS.default),
            maglev_places: value_or(raw.maglev_places, defaults::MAGLEV_PLACES.default),
            overload_percent: value_or(raw.overload_percent, None),
        },
        own_zone: own_zone.cloned(),
        zones: spec::Zones {
            prefer_own: value_or(raw.prefer_own, defaults::PREFER_OWN_ZONE),
            endpoints_min: value_or(raw.zone_endpoints_min, defaults::ZONE_ENDPOINTS_MIN.default),
            callers_percent: raw.callers_percent.and_then(|at| u16::try_from(at.value).ok()),
        },
        subsets,
        slow_start,
    };
    let says_something = balance.hashes() || choice != Choice::DEFAULT;
    (says_something.then(|| Box::new(choice)), marks)
}
