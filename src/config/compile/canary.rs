//! `[[canary]]`: finds the route and the services that each names, and puts it together.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::canary::{Canary, CanaryRules, CompiledCanary, shown};
use super::super::defaults;
use super::super::nearest::did_you_mean;
use super::super::raw::{At, Raw, RawCanary, RawRoute};
use super::super::report::{Problem, Problems};
use super::{From, numbered_name, value_or};

/// No two of a route; each with a route whose split has both services.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    for (n, canary) in raw.canaries.iter().enumerate() {
        let Some(At { value: name, place, .. }) = &canary.route else { continue };
        let names: Vec<Arc<str>> =
            raw.routes.iter().enumerate().map(|(n, route)| name_of(route, n)).collect();
        let Some(route) = names.iter().position(|known| **known == **name).map(|at| &raw.routes[at]) else {
            problems.error(|| {
                let near = did_you_mean(name, names.iter().map(|name| &**name));
                Problem::at(*place, format!("there is no route `{name}`"))
                    .label("not declared")
                    .help(near.unwrap_or_else(|| "name one of the routes".into()))
            });
            continue;
        };
        if let Some(first) = raw.canaries[..n]
            .iter()
            .filter_map(|other| other.route.as_ref())
            .find(|other| other.value == *name)
        {
            let first = first.place;
            problems.error(|| {
                Problem::at(*place, format!("two canaries for the route `{name}`"))
                    .label("again here")
                    .other(first, "first here")
                    .help("let one end before the next begins")
            });
        }
        if let Some(first) = raw.canaries[..n].iter().find(|other| state_of(other) == state_of(canary)) {
            let place = |canary: &RawCanary| {
                canary.state.as_ref().map(|at| at.place).or_else(|| canary.name.as_ref().map(|at| at.place))
            };
            if let (Some(again), Some(first)) = (place(canary), place(first)) {
                problems.error(|| {
                    Problem::at(
                        again,
                        format!("two canaries keep where they stand in {}", state_of(canary).display()),
                    )
                    .label("again here")
                    .other(first, "first here")
                    .help("give one of them another `state`")
                });
            }
        }
        let Some(split) = &route.action.split else {
            let (place, route) = (*place, route.place);
            problems.error(|| {
                Problem::at(place, format!("the route `{name}` has no split"))
                    .other(route, "this route")
                    .help("write split = [{ service = \"shop\", weight = 1 }, { service = \"shop-next\", weight = 0 }] in place of its service")
            });
            continue;
        };
        for service in [&canary.baseline, &canary.canary].into_iter().flatten() {
            if !split.value.iter().any(|share| share.service.value == service.value) {
                let (place, split) = (service.place, split.place);
                problems.error(|| {
                    Problem::at(
                        place,
                        format!("service `{}` is not in the split of route `{name}`", service.value),
                    )
                    .other(split, "this split")
                    .help("add it there, with a weight of 0 if it is to get nothing without the canary")
                });
            }
        }
        if let (Some(baseline), Some(canary)) = (&canary.baseline, &canary.canary)
            && baseline.value == canary.value
        {
            let (baseline, canary) = (baseline.place, canary.place);
            problems.error(|| {
                Problem::at(canary, "baseline and canary are the same service")
                    .other(baseline, "the baseline")
                    .help("name two; of subsets of one service, let one be a service of its own: a canary is judged by what is counted of services")
            });
        }
    }
}

fn name_of(route: &RawRoute, n: usize) -> Arc<str> {
    route.name.as_ref().map_or_else(|| numbered_name("route", n), |name| Arc::clone(&name.value))
}

/// The file in which it is kept where it stands.
fn state_of(raw: &RawCanary) -> PathBuf {
    let name = raw.name.as_ref().map_or("", |at| &at.value).replace('/', "-");
    let default = || PathBuf::from(format!("{}/canary-{name}.json", defaults::STATE_FOLDER));
    raw.state.as_ref().map_or_else(default, |at| at.value.clone())
}

pub(super) fn canary(raw: RawCanary, from: &From<'_>) -> CompiledCanary {
    let text = |at: Option<At<Box<str>>>| at.map_or_else(|| "".into(), |at| Arc::<str>::from(at.value));
    let marks = [
        from.mark_of(raw.route.as_ref()),
        from.mark_of(raw.baseline.as_ref()),
        from.mark_of(raw.canary.as_ref()),
        from.mark_of(raw.steps.as_ref()),
        from.mark_of(raw.step_time.as_ref()),
        from.mark_of(raw.samples_min.as_ref()),
        from.mark_of(raw.errors_tolerated.as_ref()),
        from.mark_of(raw.latency_tolerated.as_ref()),
        from.mark_of(raw.false_alarms_max.as_ref()),
        from.mark_of(raw.state.as_ref()),
    ];
    let canary = Canary {
        state: state_of(&raw),
        name: raw.name.map_or_else(|| "".into(), |at| at.value),
        route: text(raw.route),
        baseline: text(raw.baseline),
        canary: text(raw.canary),
        rules: CanaryRules {
            steps: raw.steps.map_or_else(|| defaults::STEPS.into(), |at| at.value),
            step_time: value_or(raw.step_time, defaults::STEP_TIME.default),
            samples_min: value_or(raw.samples_min, defaults::SAMPLES_MIN.default).into(),
            errors_tolerated: value_or(raw.errors_tolerated, defaults::ERRORS_TOLERATED),
            latency_tolerated: value_or(raw.latency_tolerated, defaults::LATENCY_TOLERATED),
            false_alarms_max: value_or(raw.false_alarms_max, defaults::FALSE_ALARMS_MAX),
        },
    };
    let shown = shown(&canary, marks);
    CompiledCanary { canary, shown }
}
