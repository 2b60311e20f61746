//! The chapter about faults: endpoints that do well, and a route that holds requests up, answers them, keeps silent and cuts bodies
//! on purpose; within a budget. Retries and breaker are as by default: none of it is for them.

use std::time::Duration;

use super::endpoint::Conduct;
use super::past::{Past, share};
use super::script::{Claim, Phase, Script, Shown, Verdict, one_service, percent};

const ENDPOINTS: usize = 3;
const RATE: u32 = 200;
/// Held up for so long at least: far longer than the endpoints work.
pub(super) const HELD_UP: Duration = Duration::from_millis(300);

const FAULT: &str = "# One request of five is held up, one of ten is answered here.\nfault = { delay = { percent = 20, exponential = \"100ms\", least = \"300ms\", most = \"1s\" }, abort = { percent = 10, status = 503 } }";
const BODIES: &str = "# One body of ten is cut before its first octet; one request of ten is taken and forgotten.\nfault = { truncate = { percent = 10, after = \"0B\" }, abort = { percent = 10, half_open_max = \"400ms\" } }";
const BUDGET: &str = "fault = { delay = { fixed = \"400ms\" } }\n\n[limits]\nfaults_max = 4   # at a time; what is more passes unharmed";

/// For any length.
pub(super) fn script(without_it: bool) -> Script {
    let phase = |title: &str, share, route: &'static str, claims| Phase {
        title: title.to_owned(),
        share,
        rate: RATE,
        conducts: vec![Conduct::Well(4, 8); ENDPOINTS],
        tables: one_service("", if without_it { "" } else { route }),
        claims,
    };
    let failed = |past: &Past| {
        let counts = past.counts();
        share(counts.failed + counts.refused, counts.all)
    };
    let of = |part: f64, (low, high): (f64, f64)| Verdict::new(percent(part), (low..=high).contains(&part));
    let unharmed = || {
        vec![
            Claim::none_fails(),
            Claim::new("less than one request of ten takes 300 ms", move |past| {
                of(held_up(past), (0.0, 0.1))
            }),
        ]
    };
    Script {
        title: "a route does badly on purpose, as much as it is told and no more",
        endpoints: ENDPOINTS,
        places: None,
        shown: Shown::Faults,
        phases: vec![
            phase("no fault", 15, "", unharmed()),
            phase(
                "one of five is held up, one of ten answered with 503",
                25,
                FAULT,
                vec![
                    Claim::new("about one request of ten fails", move |past| of(failed(past), (0.05, 0.16))),
                    Claim::new("about one of five takes 300 ms or more", move |past| {
                        of(held_up(past), (0.12, 0.32))
                    }),
                    Claim::new("those that are answered here do not reach the service", |past| {
                        Verdict::number(past.attempts(), (0.84, 0.95))
                    }),
                ],
            ),
            phase(
                "one body of ten is cut, one request of ten forgotten",
                25,
                BODIES,
                vec![
                    Claim::new("about one body of ten is cut", move |past| {
                        of(share(cut(past), past.counts().all), (0.045, 0.16))
                    }),
                    Claim::new("about one of ten takes 300 ms or more", move |past| {
                        of(held_up(past), (0.05, 0.2))
                    }),
                ],
            ),
            phase(
                "all are held up, but no more than four at a time",
                20,
                BUDGET,
                vec![
                    Claim::none_fails(),
                    // Four at a time for 400 ms each are 10 of 200 a second.
                    Claim::new("a few are, not one of eight", move |past| of(held_up(past), (0.01, 0.125))),
                ],
            ),
            phase("no fault any more", 15, "", unharmed()),
        ],
    }
}

/// Of all requests those that took so long.
pub(super) fn held_up(past: &Past) -> f64 {
    let long = past.outcomes.iter().filter(|outcome| outcome.took >= HELD_UP).count();
    share(long as u64, past.outcomes.len() as u64)
}

/// Requests whose answer broke off.
fn cut(past: &Past) -> u64 {
    past.reasons(usize::MAX - 1)
        .iter()
        .filter(|(_, why)| why.contains("end of file"))
        .map(|(count, _)| count)
        .sum()
}
