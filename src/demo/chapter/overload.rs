//! The chapter about overload: three times as much as a service can do, with nothing configured and with a ceiling. The route
//! has a timeout, as callers have: what waits too long is work for nobody.

use std::time::Duration;

use super::endpoint::Conduct;
use super::past::share;
use super::script::{Claim, Phase, Script, Shown, Verdict, percent};

/// What the endpoint works on at a time, and how long: 75 requests a second.
const PLACES: usize = 6;
const WORK_MS: u64 = 80;
/// How long a caller would wait: what waits longer is work for nobody.
const ROUTE: &str = "timeout = \"1500ms\"\n";
/// 0.6 times and three times what it can do.
const CALM: u32 = 45;
const TOO_MUCH: u32 = 225;

const NOTHING: &str = "# nothing is configured";
/// Twice as many as it works on at a time, so that it always has one to begin, on a machine that stutters, too.
const CAPS: &str = "caps = { exchanges_max = 12, pending_max = 64, queue_timeout = \"200ms\" }";

/// For any length.
pub(super) fn script(without_it: bool) -> Script {
    let caps = if without_it { NOTHING } else { CAPS };
    let phase = |title: &str, share, rate, service: &str, claims| Phase {
        title: title.to_owned(),
        share,
        rate,
        conducts: vec![Conduct::Well(WORK_MS, WORK_MS)],
        service: service.to_owned(),
        claims,
    };
    Script {
        title: "what is too much is turned away at once, and the rest is served as if nothing were",
        endpoints: 1,
        places: Some(PLACES),
        route: ROUTE,
        shown: Shown::Queue,
        phases: vec![
            phase("0.6 times what the service can do", 15, CALM, NOTHING, vec![Claim::none_fails()]),
            phase(
                "three times as much as it can, no caps",
                25,
                TOO_MUCH,
                NOTHING,
                vec![Claim::over("the slowest answers take five times as long or more as is usual", |all| {
                    let usual = all.first().and_then(|calm| calm.answers(0.5));
                    let slow = all.last().and_then(|past| past.answers(0.99));
                    Verdict::times(slow, usual, |ratio| ratio >= 5.0)
                })],
            ),
            phase("0.6 times, no caps", 15, CALM, NOTHING, vec![Claim::none_fails()]),
            phase(
                "three times as much, with caps",
                30,
                TOO_MUCH,
                caps,
                vec![
                    Claim::new(
                        "80 % or more of what the service can do is done, and for callers that wait",
                        |past| {
                            let (good, all) = (past.goodput(), past.capacity(PLACES));
                            let seen = format!("{good:.0} of {all:.0} a second, {}", percent(good / all));
                            Verdict::new(seen, good >= 0.8 * all)
                        },
                    ),
                    Claim::over("the slowest answers take half as long at most as without caps", |all| {
                        let without = all.get(1).and_then(|past| past.answers(0.99));
                        let slow = all.last().and_then(|past| past.answers(0.99));
                        Verdict::times(slow, without, |ratio| ratio <= 0.5)
                    }),
                    Claim::new("who is refused hears it sooner than who is let in is answered", |past| {
                        Verdict::times(past.refusals(0.5), past.answers(0.5), |ratio| ratio < 1.0)
                    }),
                    Claim::new("less than 1 % run into the timeout", |past| {
                        let counts = past.counts();
                        let seen = share(counts.failed, counts.all);
                        Verdict::new(percent(seen), seen < 0.01)
                    }),
                ],
            ),
            phase(
                "0.6 times, with caps",
                15,
                CALM,
                caps,
                vec![Claim::fails_below("less than 2 % are refused or fail", Duration::ZERO, 0.02)],
            ),
        ],
    }
}
