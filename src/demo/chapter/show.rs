//! What a chapter shows: a block a second while it runs, a table and what held when it ends. Numbers to lines; pure, draws
//! nothing itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::{Conduct, Seen};
use super::faults::HELD_UP;
use super::load::{End, Outcome};
use super::past::{Counts, Past, quantile, share};
use super::script::{Script, Shown, Verdict, percent};
use crate::demo::board::{draw, place, remember, time, unoptimized};
use crate::demo::terminal::{Line, Style};
use Style::{Bad, Bold, Curve, Dim, Good, Plain};

/// Columns of what stands before a curve.
const ROW_COLUMNS: usize = 62;
/// A curve of fewer is left out.
const CURVE_MIN: usize = 6;
/// Reasons shown for a phase.
const REASONS_MAX: usize = 3;

/// All that is shown while it runs.
pub(super) struct View<'s> {
    /// The name of the chapter.
    pub name: &'static str,
    /// What is played.
    pub script: &'s Script,
    /// The phase, from 0.
    pub phase: usize,
    /// How long the chapter has run, and is to run.
    pub elapsed: Duration,
    /// How long it is to run.
    pub whole: Duration,
    /// Where callers come in.
    pub inbound: SocketAddr,
    /// The proxy's admin address.
    pub admin: SocketAddr,
    /// The proxy's configuration.
    pub config: PathBuf,
    /// The last second.
    pub second: Second,
    /// 99th percentiles by seconds, newest last.
    pub curve: VecDeque<f64>,
}

/// What was seen of a second.
#[derive(Debug, Clone, Default)]
pub(super) struct Second {
    /// How long it really was.
    pub length: Duration,
    /// What ended in it.
    pub outcomes: Vec<Outcome>,
    /// Requests that reached each endpoint in it.
    pub arrived: Vec<u64>,
    /// How each endpoint is.
    pub endpoints: Vec<Seen>,
    /// Why each endpoint is passed over; `None`: it is used.
    pub passed_over: Vec<Option<String>>,
    /// Exchanges in progress in the proxy.
    pub open: u64,
}

impl Second {
    fn p50_and_p99(&self) -> [Option<f64>; 2] {
        [0.5, 0.99].map(|q| quantile(&self.outcomes, |end| *end == End::Answered, q))
    }

    fn per_second(&self, count: u64) -> String {
        format!("{:.0}", count as f64 / self.length.as_secs_f64().max(1e-3))
    }

    /// For each request that was begun at this rate.
    fn attempts(&self, rate: u32) -> f64 {
        let arrived: u64 = self.arrived.iter().sum();
        arrived as f64 / (f64::from(rate) * self.length.as_secs_f64()).max(1.0)
    }
}

impl View<'_> {
    /// Takes a second in.
    pub(super) fn learn(&mut self, second: Second) {
        remember(&mut self.curve, second.p50_and_p99()[1]);
        self.second = second;
    }

    /// Where everything is.
    pub(super) fn places(&self) -> Vec<Line> {
        vec![
            place("call it", format!("curl -i http://{}/", self.inbound)),
            place("the proxy", format!("curl http://{}/services", self.admin)),
            place("configured by", self.config.display().to_string()),
        ]
    }

    /// What happens now, in a line.
    fn heading(&self) -> String {
        let phase = &self.script.phases[self.phase];
        format!("{} of {}: {}", self.phase + 1, self.script.phases.len(), phase.title)
    }

    /// The block for a terminal.
    pub(super) fn live(&self, columns: usize) -> Vec<Line> {
        let phase = &self.script.phases[self.phase];
        let elapsed = format!("{} s of {} s", self.elapsed.as_secs(), self.whole.as_secs_f64().ceil());
        let mut lines = vec![
            Line::new()
                .add(Bold, format!("ringmesh demo: {}   {elapsed}", self.name))
                // Where there is not room for all, the time matters more.
                .add(Dim, format!("   {}{}", self.script.title, unoptimized())),
            Line::new(),
            Line::new().add(Dim, "phase ").add(Bold, self.heading()),
            Line::new(),
        ];
        let room = columns.saturating_sub(ROW_COLUMNS + 3);
        let room = if room < CURVE_MIN { 0 } else { room };
        let head = ["REQUESTS/S", "ANSWERED/S", "REFUSED/S", "FAILED/S", "P50", "P99"];
        lines.push(
            Line::new()
                .add(Dim, cells(&head.map(str::to_owned)))
                .add(Dim, if room > 20 { "   P99, BY SECONDS" } else { "" }),
        );
        let second = &self.second;
        let counts = Counts::of(&second.outcomes);
        let [p50, p99] = second.p50_and_p99().map(time);
        let [begun, answered] = [phase.rate.to_string(), second.per_second(counts.answered)];
        let [refused, failed] = [counts.refused, counts.failed].map(|count| second.per_second(count));
        lines.push(
            Line::new()
                .add(Plain, format!("{begun:>10}{answered:>12}"))
                .add(if counts.refused > 0 { Bold } else { Plain }, format!("{refused:>11}"))
                .add(if counts.failed > 0 { Bad } else { Plain }, format!("{failed:>10}"))
                .add(Plain, format!("{p50:>10}{p99:>9}   "))
                .add(Curve, draw(&self.curve, room)),
        );
        lines.push(Line::new());
        lines.extend(self.endpoints());
        lines.push(Line::new());
        lines.push(Line::new().add(Dim, "when this phase is over"));
        lines.extend(phase.claims.iter().map(|claim| Line::new().add(Plain, format!("  {}", claim.text))));
        lines.push(Line::new());
        lines.extend(self.places());
        lines
    }

    /// The endpoints, and what the chapter is about.
    fn endpoints(&self) -> Vec<Line> {
        let phase = &self.script.phases[self.phase];
        let second = &self.second;
        let arrived: u64 = second.arrived.iter().sum();
        let mut lines =
            vec![Line::new().add(Dim, format!("{:<10}{:>7}   {:<36}STATE", "ENDPOINT", "GETS", "DOES"))];
        for (n, conduct) in phase.conducts.iter().enumerate() {
            let gets = percent(share(second.arrived.get(n).copied().unwrap_or(0), arrived));
            let out = second.passed_over.get(n).and_then(Option::as_deref);
            let state = out.map_or_else(|| "used".to_owned(), |why| format!("passed over: {why}"));
            lines.push(
                Line::new()
                    .add(Plain, format!("{n:<10}{gets:>7}   "))
                    .add(if is_well(*conduct) { Plain } else { Bad }, format!("{:<36}", conduct.to_string()))
                    .add(if out.is_some() { Bad } else { Plain }, state),
            );
        }
        lines.push(Line::new());
        lines.push(Line::new().add(Bold, self.about()));
        lines
    }

    /// What the chapter is about, in a line.
    fn about(&self) -> String {
        let second = &self.second;
        match self.script.shown {
            Shown::Breaker => {
                let out: Vec<String> = second
                    .passed_over
                    .iter()
                    .enumerate()
                    .filter_map(|(n, why)| Some(format!("{n} ({})", why.as_deref()?)))
                    .collect();
                let out = if out.is_empty() { "nobody".to_owned() } else { out.join(", ") };
                let arrived: u64 = second.arrived.iter().sum();
                let shares: Vec<String> =
                    second.arrived.iter().map(|n| format!("{:.0}", share(*n, arrived) * 100.0)).collect();
                format!("passed over: {out}   shares: {} %", shares.join(" "))
            }
            Shown::Versions => {
                let all: u64 = second.arrived.iter().sum();
                let [old, new] =
                    [0, 1].map(|n| percent(share(second.arrived.get(n).copied().unwrap_or(0), all)));
                format!("the old version gets {old}, the new one {new}")
            }
            Shown::Faults => {
                let held_up = second.outcomes.iter().filter(|outcome| outcome.took >= HELD_UP).count();
                let counts = Counts::of(&second.outcomes);
                let arrived: u64 = second.arrived.iter().sum();
                format!(
                    "{} are held up, {} fail, {} reach the service",
                    percent(share(held_up as u64, counts.all)),
                    percent(share(counts.failed + counts.refused, counts.all)),
                    percent(share(arrived, counts.all))
                )
            }
            Shown::Attempts => {
                format!("{:.2} attempts a request", second.attempts(self.script.phases[self.phase].rate))
            }
            Shown::Queue => {
                let sum = |value: fn(&Seen) -> u64| second.endpoints.iter().map(value).sum::<u64>();
                let (works, waits) = (sum(|seen| seen.at_work), sum(|seen| seen.waits));
                format!(
                    "the service works on {works}, {waits} wait in it, {} are open in the proxy",
                    second.open
                )
            }
        }
    }

    /// A line, where a block cannot be redrawn in place.
    pub(super) fn plain(&self) -> Line {
        let second = &self.second;
        let counts = Counts::of(&second.outcomes);
        let [p50, p99] = second.p50_and_p99().map(time);
        let [answered, refused, failed] =
            [counts.answered, counts.refused, counts.failed].map(|count| second.per_second(count));
        Line::new().add(
            Plain,
            format!(
                "{:>4} s  {}/s: {answered} answered, {refused} refused, {failed} failed, p50 {p50}, p99 {p99}; {}",
                self.elapsed.as_secs(),
                self.script.phases[self.phase].rate,
                self.about()
            ),
        )
    }

    /// Says that a phase begins, where a block cannot be redrawn in place.
    pub(super) fn begins(&self) -> Vec<Line> {
        vec![Line::new(), Line::new().add(Bold, format!("phase {}", self.heading()))]
    }
}

fn is_well(conduct: Conduct) -> bool {
    matches!(conduct, Conduct::Well(..))
}

fn cells([begun, answered, refused, failed, p50, p99]: &[String; 6]) -> String {
    format!("{begun:>10}{answered:>12}{refused:>11}{failed:>10}{p50:>10}{p99:>9}")
}

/// What came of the phases that are over, a verdict for each of their claims; whether all of the script was played and held.
pub(super) fn summary(script: &Script, pasts: &[Past], verdicts: &[Vec<Verdict>]) -> (Vec<Line>, bool) {
    let widest = script.phases.iter().map(|phase| phase.title.chars().count()).max().unwrap_or(0) + 2;
    let head = ["REQUESTS", "ANSWERED", "REFUSED", "FAILED", "P50", "P99", "ATTEMPTS"];
    let row = |cells: [String; 7]| {
        let [requests, answered, refused, failed, p50, p99, attempts] = cells;
        format!("{requests:>10}{answered:>10}{refused:>9}{failed:>8}{p50:>9}{p99:>9}{attempts:>10}")
    };
    let mut lines =
        vec![Line::new().add(Dim, format!("{:<widest$}{}", "  PHASE", row(head.map(str::to_owned))))];
    for (n, (phase, past)) in script.phases.iter().zip(pasts).enumerate() {
        let counts = past.counts();
        lines.push(
            Line::new().add(Bold, format!("{} {:<width$}", n + 1, phase.title, width = widest - 2)).add(
                Plain,
                row([
                    counts.all.to_string(),
                    counts.answered.to_string(),
                    counts.refused.to_string(),
                    counts.failed.to_string(),
                    time(past.answers(0.5)),
                    time(past.answers(0.99)),
                    format!("{:.2}", past.attempts()),
                ]),
            ),
        );
        for (times, why) in past.reasons(REASONS_MAX) {
            lines.push(Line::new().add(Dim, format!("    {times} × {why}")));
        }
    }
    lines.push(Line::new());
    let claims = || script.phases.iter().flat_map(|phase| &phase.claims);
    let widest = claims().map(|claim| claim.text.chars().count()).max().unwrap_or(0) + 2;
    lines.push(Line::new().add(Dim, format!("  {:<widest$}{:<8}SEEN", "WHAT MUST HOLD", "HELD")));
    let mut all_held = true;
    for (n, phase) in script.phases.iter().enumerate() {
        for (m, claim) in phase.claims.iter().enumerate() {
            let verdict = verdicts.get(n).and_then(|verdicts| verdicts.get(m));
            let (style, held, seen) = match verdict {
                Some(Verdict { held: true, seen }) => (Good, "yes", seen.as_str()),
                Some(Verdict { held: false, seen }) => (Bad, "NO", seen.as_str()),
                None => (Dim, "-", "not reached"),
            };
            all_held &= held == "yes";
            lines.push(
                Line::new()
                    .add(Bold, format!("{} ", n + 1))
                    .add(Plain, format!("{:<widest$}", claim.text))
                    .add(style, format!("{held:<8}"))
                    .add(Plain, seen),
            );
        }
    }
    (lines, all_held)
}
