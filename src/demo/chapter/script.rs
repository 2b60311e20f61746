//! What a chapter consists of: phases with what changes in each and what must hold, and how that is judged. Pure: the
//! scripts themselves are `breaker`, `retries`, `overload`, `canary` and `faults`, and `mod` plays them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::endpoint::Conduct;
use super::past::{Counts, Past, share};
use crate::demo::board::time;

/// What is played.
pub(super) struct Script {
    /// What it is about, in a line.
    pub title: &'static str,
    /// Endpoints of the one service.
    pub endpoints: usize,
    /// Requests that an endpoint works on at a time; the others wait in it.
    pub places: Option<usize>,
    /// What is shown beside the numbers of the client.
    pub shown: Shown,
    /// In their order.
    pub phases: Vec<Phase>,
}

/// What is shown beside the numbers of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Which endpoints are passed over, and what each gets.
    Breaker,
    /// Attempts for each request.
    Attempts,
    /// Who works and who waits.
    Queue,
    /// What the old and the new version get.
    Versions,
    /// How many are held up, and how many fail.
    Faults,
}

/// A part of a chapter in which nothing changes.
pub(super) struct Phase {
    /// What is so.
    pub title: String,
    /// Of the length of the chapter, percent.
    pub share: u32,
    /// Requests a second.
    pub rate: u32,
    /// What each endpoint does.
    pub conducts: Vec<Conduct>,
    /// What the proxy is configured with behind its listener.
    pub tables: Box<Tables>,
    /// What must hold.
    pub claims: Vec<Claim>,
}

/// What must hold when a phase is over.
pub(super) struct Claim {
    /// In words.
    pub text: String,
    /// Judges it by the phases until then, its own the last.
    pub judge: Box<Judge>,
}

/// Judges by the phases until then.
pub(super) type Judge = dyn Fn(&[Past]) -> Verdict;

/// Services and routes for these endpoints; what the proxy has to keep lies in that folder.
pub(super) type Tables = dyn Fn(&[SocketAddr], &Path) -> String;

/// One service with all endpoints and one route to it: with these lines beside what they must have.
pub(super) fn one_service(service: impl Into<String>, route: &'static str) -> Box<Tables> {
    let service = service.into();
    Box::new(move |endpoints, _| {
        let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
        format!(
            "[[service]]\nname = \"shop\"\nendpoints = [{}]\n{service}\n\n[[route]]\nname = \"shop\"\nservice = \"shop\"\n{route}",
            endpoints.join(", ")
        )
    })
}

/// What was seen in place of what was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The value.
    pub seen: String,
    /// Whether it is as claimed.
    pub held: bool,
}

impl Script {
    /// How long a phase is in a chapter of this length.
    pub(super) fn length_of(&self, phase: &Phase, whole: Duration) -> Duration {
        whole * phase.share / 100
    }

    /// The configuration of the proxy in a phase.
    pub(super) fn config(&self, phase: &Phase, endpoints: &[SocketAddr], folder: &Path) -> String {
        format!(
            "\
# The proxy of a chapter of `ringmesh demo`: {}.
# Phase: {}. The chapter writes this file anew for each phase.
shards = 1

[admin]
address = \"127.0.0.1:0\"

[timeouts]
drain = \"5s\"

[[listener]]
name = \"inbound\"
address = \"127.0.0.1:0\"

{}",
            self.title,
            phase.title,
            (phase.tables)(endpoints, folder)
        )
    }
}

impl Claim {
    /// Judged by the phase alone.
    pub(super) fn new(text: impl Into<String>, judge: impl Fn(&Past) -> Verdict + 'static) -> Self {
        Self::over(text, move |all| match all.last() {
            Some(past) => judge(past),
            None => Verdict::new("nothing", false),
        })
    }

    /// Judged by all phases until then.
    pub(super) fn over(text: impl Into<String>, judge: impl Fn(&[Past]) -> Verdict + 'static) -> Self {
        Self { text: text.into(), judge: Box::new(judge) }
    }

    /// No request failed or was refused.
    pub(super) fn none_fails() -> Self {
        Self::new("no request fails", |past| {
            let Counts { all, answered, .. } = past.counts();
            Verdict::new(format!("{} of {all}", all - answered), all > 0 && answered == all)
        })
    }

    /// Of the requests that were due after this time less than this part was not answered.
    pub(super) fn fails_below(text: impl Into<String>, after: Duration, part: f64) -> Self {
        Self::new(text, move |past| {
            let Counts { all, answered, .. } = past.counts_after(after);
            let seen = share(all - answered, all);
            let held = all > 0 && seen < part;
            Verdict::new(format!("{} of {all}, {}", all - answered, percent(seen)), held)
        })
    }
}

impl Verdict {
    /// This was seen.
    pub(super) fn new(seen: impl Into<String>, held: bool) -> Self {
        Self { seen: seen.into(), held }
    }

    /// A part of something, between these.
    pub(super) fn share(seen: f64, between: (f64, f64)) -> Self {
        Self::new(percent(seen), (between.0..=between.1).contains(&seen))
    }

    /// A number for each request, between these.
    pub(super) fn number(seen: f64, between: (f64, f64)) -> Self {
        Self::new(format!("{seen:.2}"), (between.0..=between.1).contains(&seen))
    }

    /// One time (s) at most so many times as long as another, or at least, as `held` has it of their ratio.
    pub(super) fn times(seen: Option<f64>, other: Option<f64>, held: impl Fn(f64) -> bool) -> Self {
        let text = format!("{}, and {}", time(seen), time(other));
        match (seen, other) {
            (Some(seen), Some(other)) if other > 0.0 => Self::new(text, held(seen / other)),
            _ => Self::new(text, false),
        }
    }
}

/// `12.3 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A length as configurations write it.
pub(super) fn length(length: Duration) -> String {
    format!("{}ms", length.as_millis())
}

#[cfg(test)]
#[path = "script_test.rs"]
mod tests;
