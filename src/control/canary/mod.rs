//! Canaries: services that take over from others step by step, conducted by control. Fed by the control loop once a second with
//! what the shards have seen, after which it publishes the shares that have changed; asked by the admin pages, told by
//! `ringmesh canary`.
//!
//! What is decided is decided in `course`, what numbers prove in `bounds`; both are pure. Where a canary stands is kept in a
//! file of its own (`file`), so that a restart neither begins anew nor promotes what was rolled back.

mod bounds;
pub mod command;
mod course;
mod file;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::pages::{Shown, Table, duration};
use super::store::{Store, Window};
use crate::config::Canary;
use crate::route::Action;
use crate::route::split::Pair;
use crate::snapshot::Snapshot;
use course::{Course, Event, Phase, Tally};

/// All canaries.
#[derive(Debug, Default)]
pub(super) struct Canaries(BTreeMap<Arc<str>, One>);

#[derive(Debug)]
struct One {
    canary: Canary,
    course: Course,
    /// How often it went on, was held in doubt, was promoted, was rolled back.
    moves: [u64; 4],
    /// Times that its state could not be kept.
    unkept: u64,
}

/// What is told of moves, in their order.
const MOVES: [&str; 4] = ["step", "doubt", "promoted", "rolled_back"];

/// What a person tells a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// All requests to the canary, at once.
    Promote,
    /// All requests to the baseline, at once.
    Rollback,
    /// Stay at this share.
    Pause,
    /// Go on.
    Resume,
    /// Begin anew.
    Restart,
}

impl Order {
    /// Every order.
    pub(super) const ALL: [Self; 5] =
        [Self::Promote, Self::Rollback, Self::Pause, Self::Resume, Self::Restart];

    /// Its word in paths and on the command line.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Rollback => "rollback",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
        }
    }

    /// By its word.
    pub(super) fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.word() == word)
    }
}

impl Phase {
    const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
        }
    }

    fn named(word: &str) -> Option<Self> {
        [Self::Running, Self::Paused, Self::Promoted, Self::RolledBack]
            .into_iter()
            .find(|phase| phase.word() == word)
    }
}

impl Canaries {
    /// Takes the canaries that are configured. One that stays the same goes on where it is; one that is new goes on where its
    /// file says it stood, if that was the same canary.
    pub(super) fn configure<'c>(&mut self, canaries: impl Iterator<Item = &'c Canary>) {
        let mut before = std::mem::take(&mut self.0);
        for canary in canaries {
            let same = before.remove(&canary.name).filter(|one| one.is_about(canary));
            let one = match same {
                // Other rules hold from the present step on.
                Some(one) if one.canary.rules == canary.rules => One { canary: canary.clone(), ..one },
                Some(one) => {
                    let Course { phase, step, reason, .. } = one.course;
                    let course = Course::at(canary.rules.clone(), phase, step, reason);
                    One { canary: canary.clone(), course, ..one }
                }
                None => One::read(canary),
            };
            self.0.insert(Arc::clone(&canary.name), one);
        }
    }

    /// Each at its first step, as a proxy begins that finds nothing kept. Reads no file, and keeps nothing.
    pub(super) fn at_first_step<'c>(canaries: impl Iterator<Item = &'c Canary>) -> Self {
        let new = |canary: &Canary| {
            let course = Course::new(canary.rules.clone());
            (Arc::clone(&canary.name), One { canary: canary.clone(), course, moves: [0; 4], unkept: 0 })
        };
        Self(canaries.map(new).collect())
    }

    /// Puts the shares into a snapshot: those of the two services of each canary, within what they have of the split together.
    pub(super) fn apply(&self, snapshot: &mut Snapshot) {
        let mut changes = Vec::new();
        for one in self.0.values() {
            let services =
                (snapshot.service_named(&one.canary.baseline), snapshot.service_named(&one.canary.canary));
            if let (Some(baseline), Some(canary)) = services {
                changes.push((&one.canary.route, (baseline, canary), one.course.share()));
            }
        }
        if changes.is_empty() {
            return;
        }
        let changed = snapshot.routes.changed(|route| {
            let Action::Split(split) = &route.action else { return };
            let of = |(name, ..): &&(&Arc<str>, (u32, u32), f64)| **name == route.name;
            let Some((_, services, share)) = changes.iter().find(of) else { return };
            let shares = split.shares().iter().map(|share| (share.service, share.weight));
            let pair = Pair { baseline: services.0, canary: services.1 };
            if let Some(split) = split.weighted(&weights(shares, *services, *share), pair) {
                route.action = Action::Split(Arc::new(split));
            }
        });
        snapshot.routes = Arc::new(changed);
    }

    /// A second has passed, in which this was seen. Whether a share has changed.
    pub(super) fn pass(&mut self, store: &Store) -> bool {
        let mut changed = false;
        for (name, one) in &mut self.0 {
            let window = |service: &str| {
                store.service(service).map_or_else(Window::default, |service| store.window(service, 1))
            };
            let (canary, baseline) = (window(&one.canary.canary), window(&one.canary.baseline));
            let time = store.last_second();
            if let Some(event) = one.course.pass(time, &canary, &baseline) {
                changed |= !matches!(event, Event::Doubt(_));
                one.tell(name, &event);
            }
        }
        changed
    }

    /// Tells a canary what to do; whether a share has changed, and where it stands now.
    ///
    /// # Errors
    /// What to say where there is no such canary, or where it cannot do that.
    pub(super) fn order(&mut self, name: &str, order: Order) -> Result<(bool, String), String> {
        let Some((name, one)) = self.0.iter_mut().find(|(known, _)| &***known == name) else {
            let all: Vec<&str> = self.0.keys().map(|name| &**name).collect();
            return Err(match all[..] {
                [] => "there is no canary".to_owned(),
                _ => format!("there is no canary `{name}`; there are: {}", all.join(", ")),
            });
        };
        let (before, phase) = (one.course.share(), one.course.phase);
        match (order, phase) {
            (Order::Promote, _) => {
                one.course.promote("told to");
                one.tell(name, &Event::Promoted);
            }
            (Order::Rollback, _) => {
                let event = one.course.roll_back("told to".into());
                one.tell(name, &event);
            }
            (Order::Restart, _) => {
                one.course.restart("told to begin anew");
                one.tell(name, &Event::Step(one.course.share()));
            }
            (Order::Pause, Phase::Running) => one.course.phase = Phase::Paused,
            (Order::Resume, Phase::Paused) => one.course.phase = Phase::Running,
            (Order::Pause, _) => {
                return Err(format!("`{name}` is {}: only one that is running pauses", phase.word()));
            }
            (Order::Resume, _) => {
                return Err(format!(
                    "`{name}` is {}: only one that is paused goes on; see restart",
                    phase.word()
                ));
            }
        }
        if matches!(order, Order::Pause | Order::Resume) {
            tracing::info!(canary = %name, phase = one.course.phase.word(), "canary told to");
            one.keep(name);
        }
        let (share, phase) = (one.course.share(), one.course.phase.word());
        Ok((share != before, format!("{name} is {phase} at {share} %")))
    }

    /// `/canary`
    pub(super) fn page(&self) -> Shown {
        let mut table = Table::new(&[
            "canary", "phase", "share", "step", "for", "requests", "errors", "p50", "p99", "baseline",
            "errors", "p50", "p99", "why",
        ]);
        let mut list = Vec::new();
        for (name, One { canary, course, moves, unkept }) in &self.0 {
            let steps = &course.rules.steps;
            let mut cells = vec![
                name.to_string(),
                course.phase.word().to_owned(),
                format!("{} %", course.share()),
                format!("{} of {}", course.step + 1, steps.len()),
                format!("{} s", course.lasted.as_secs()),
            ];
            for tally in [&course.canary, &course.baseline] {
                cells.push(tally.exchanges.to_string());
                cells.push(tally.failed().to_string());
                for q in [0.5, 0.99] {
                    cells.push(tally.latency.quantile(q).map_or_else(|| "-".to_owned(), duration));
                }
            }
            cells.push(course.reason.clone());
            table.row(cells);
            list.push(json!({
                "name": &**name, "route": &*canary.route, "baseline": &*canary.baseline, "canary": &*canary.canary,
                "phase": course.phase.word(), "share_percent": course.share(), "steps_percent": &**steps,
                "step": course.step + 1, "step_seconds": course.lasted.as_secs_f64(),
                "seen": { "canary": tally(&course.canary), "baseline": tally(&course.baseline) },
                "reason": course.reason, "state_not_kept": unkept,
                "moves": MOVES.into_iter().zip(*moves).map(|(word, n)| (word.to_owned(), json!(n))).collect::<serde_json::Map<_, _>>(),
            }));
        }
        let mut text = table.text();
        if self.0.is_empty() {
            text = "no canary is configured\n".into();
        } else {
            text.push_str("\nrequests, failed attempts and times to the first byte of the present step; shards tell once a second\n");
        }
        Shown { text, json: json!({ "canaries": list }) }
    }

    /// Name and share of each, for metrics.
    pub(super) fn shares(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, one)| (&**name, one.course.share()))
    }

    /// Name and phase of each, for metrics.
    pub(super) fn phases(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.0.iter().map(|(name, one)| (&**name, one.course.phase.word()))
    }

    /// Name, kind and number of moves, for metrics.
    pub(super) fn moves(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.0
            .iter()
            .flat_map(|(name, one)| MOVES.into_iter().zip(one.moves).map(|(word, n)| (&**name, word, n)))
    }

    /// Name and how often its state could not be kept, for metrics.
    pub(super) fn unkept(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, one)| (&**name, one.unkept))
    }
}

fn tally(tally: &Tally) -> Value {
    let seconds = |q| tally.latency.quantile(q).map(|ns| ns as f64 / 1e9);
    json!({
        "exchanges": tally.exchanges, "errors": tally.errors, "retried": tally.retried, "error_rate": tally.error_rate(),
        "p50_seconds": seconds(0.5), "p99_seconds": seconds(0.99),
    })
}

impl One {
    /// Whether it is about the same services on the same route.
    fn is_about(&self, canary: &Canary) -> bool {
        (&self.canary.route, &self.canary.baseline, &self.canary.canary)
            == (&canary.route, &canary.baseline, &canary.canary)
    }

    /// As its file says; from the first step on where there is none.
    fn read(canary: &Canary) -> Self {
        let rules = canary.rules.clone();
        let new = |course| Self { canary: canary.clone(), course, moves: [0; 4], unkept: 0 };
        let name = &canary.name;
        match file::read(canary) {
            Ok(Some(file::Kept { phase, step, reason })) => {
                let course = Course::at(rules, phase, step, reason);
                tracing::info!(canary = %name, phase = course.phase.word(), share = course.share(), "canary goes on");
                new(course)
            }
            Ok(None) => {
                let mut one = new(Course::new(rules));
                tracing::info!(canary = %name, share = one.course.share(), "canary begins");
                one.keep(name);
                one
            }
            // Nobody knows whether it was rolled back: not a moment to send anybody there.
            Err(problem) => {
                let why = format!("{}: {problem}", canary.state.display());
                tracing::error!(canary = %name, problem = why, "canary stays rolled back: where it stood cannot be read; see `ringmesh canary restart`");
                let mut course = Course::new(rules);
                course.roll_back(why);
                new(course)
            }
        }
    }

    fn tell(&mut self, name: &str, event: &Event) {
        let share = self.course.share();
        let at = match event {
            Event::Step(_) => 0,
            Event::Doubt(_) => 1,
            Event::Promoted => 2,
            Event::RolledBack(_) => 3,
        };
        self.moves[at] += 1;
        match event {
            Event::Step(_) => {
                tracing::info!(canary = name, share, reason = self.course.reason, "canary takes a step")
            }
            Event::Promoted => tracing::info!(canary = name, reason = self.course.reason, "canary promoted"),
            Event::RolledBack(why) => tracing::warn!(canary = name, reason = why, "canary rolled back"),
            Event::Doubt(why) => {
                tracing::warn!(canary = name, share, reason = why, "canary stays at its step");
                return;
            }
        }
        self.keep(name);
    }

    fn keep(&mut self, name: &str) {
        let Course { phase, step, reason, .. } = &self.course;
        let kept = file::Kept { phase: *phase, step: *step, reason: reason.clone() };
        if let Err(error) = file::write(&self.canary, &kept) {
            self.unkept += 1;
            tracing::error!(
                canary = name, file = %self.canary.state.display(), %error,
                "where a canary stands cannot be kept: a restart begins anew or where it was before; make the folder writable"
            );
        }
    }
}

/// The weights of a split, where the canary has this share (in percent) of what the two services have together.
fn weights(
    shares: impl Iterator<Item = (u32, u32)>,
    (baseline, canary): (u32, u32),
    percent: f64,
) -> Vec<u32> {
    /// What all weights are together: a hundredth of a percent is still a large number.
    const TOTAL: f64 = 1e9;
    let shares: Vec<(u32, u32)> = shares.collect();
    let is_ours = |service: u32| [baseline, canary].contains(&service);
    let both: f64 =
        shares.iter().filter(|(service, _)| is_ours(*service)).map(|(_, weight)| f64::from(*weight)).sum();
    let others: f64 =
        shares.iter().filter(|(service, _)| !is_ours(*service)).map(|(_, weight)| f64::from(*weight)).sum();
    // A split in which the two have nothing gets them with a weight of one.
    let both = both.max(1.0);
    let scaled = |weight: f64| (weight / (both + others) * TOTAL).round() as u32;
    // A service that stands there more than once, by subsets, divides what it has as it was written, or evenly.
    let part = |service: u32, weight: u32| {
        let (mut all, mut count) = (0.0, 0.0);
        for (_, weight) in shares.iter().filter(|(other, _)| *other == service) {
            all += f64::from(*weight);
            count += 1.0;
        }
        if all > 0.0 { f64::from(weight) / all } else { 1.0 / count }
    };
    shares
        .iter()
        .map(|&(service, weight)| match service {
            _ if service == canary => scaled(both * percent / 100.0 * part(service, weight)),
            _ if service == baseline => scaled(both * (1.0 - percent / 100.0) * part(service, weight)),
            _ => scaled(weight.into()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_canary_are_within_what_the_two_have_of_the_split() {
        let of = |shares: &[(u32, u32)], percent| {
            let weights = weights(shares.iter().copied(), (0, 1), percent);
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            weights
                .into_iter()
                .map(|weight| (f64::from(weight) / total * 1e6).round() / 1e4)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&[(0, 1), (1, 0)], 1.0), [99.0, 1.0]);
        assert_eq!(of(&[(0, 1), (1, 0)], 0.01), [99.99, 0.01]);
        assert_eq!(of(&[(0, 1), (1, 0)], 0.0), [100.0, 0.0]);
        assert_eq!(of(&[(0, 1), (1, 0)], 100.0), [0.0, 100.0]);
        assert_eq!(of(&[(0, 50), (1, 30), (2, 20)], 25.0), [60.0, 20.0, 20.0]);
        assert_eq!(of(&[(0, 0), (1, 0), (2, 0)], 25.0), [75.0, 25.0, 0.0]);
        assert_eq!(of(&[(0, 1_000_000), (1, 0), (2, 1_000_000)], 50.0), [25.0, 25.0, 50.0]);
        // Subsets of one service.
        assert_eq!(of(&[(0, 30), (0, 10), (1, 0)], 20.0), [60.0, 20.0, 20.0]);
        assert_eq!(of(&[(0, 100), (1, 0), (1, 0)], 20.0), [80.0, 10.0, 10.0]);
    }
}
