//! The chapter about further attempts: one answer of ten is 503, then all are; with and without a budget. The breaker is off,
//! so that what is seen are the attempts alone.

use super::endpoint::Conduct;
use super::past::{Past, share};
use super::script::{Claim, Phase, Script, Shown, Verdict, percent};

const ENDPOINTS: usize = 4;
const RATE: u32 = 200;
/// Attempts of one request, as by default.
const ATTEMPTS_MAX: f64 = 3.0;

const OFF: &str = "breaker = { enabled = false }   # what is seen are the attempts alone\nretry = \"off\"";
const DEFAULTS: &str =
    "breaker = { enabled = false }   # what is seen are the attempts alone\n# retry is as it is by default";
const PLAIN: &str = "breaker = { enabled = false }   # what is seen are the attempts alone\nretry = { budget_percent = 100, \
                     budget_floor = 1000000 }   # no budget to speak of";

/// For any length.
pub(super) fn script(without_it: bool) -> Script {
    let phase = |title: &str, share, conduct, service: &str, claims| Phase {
        title: title.to_owned(),
        share,
        rate: RATE,
        conducts: vec![conduct; ENDPOINTS],
        service: if without_it { OFF.to_owned() } else { service.to_owned() },
        claims,
    };
    let (well, unwell) = (Conduct::Well(4, 8), Conduct::Fails { work_ms: (4, 8), status: 503, one_of: 10 });
    // Slow as well, as what is overloaded is: many are in progress at a time, and it is by their number that a budget goes.
    let broken = Conduct::Fails { work_ms: (300, 300), status: 503, one_of: 1 };
    let failed = |past: &Past| {
        let counts = past.counts();
        share(counts.failed + counts.refused, counts.all)
    };
    Script {
        title: "further attempts hide what fails now and then, and their budget keeps them from making things worse",
        endpoints: ENDPOINTS,
        places: None,
        route: "",
        shown: Shown::Attempts,
        phases: vec![
            phase(
                "one answer of ten is 503, no retries",
                20,
                unwell,
                OFF,
                vec![Claim::new("about one request of ten fails", move |past| {
                    Verdict::share(failed(past), (0.05, 0.15))
                })],
            ),
            phase(
                "one answer of ten is 503, retries as by default",
                20,
                unwell,
                DEFAULTS,
                vec![
                    Claim::over("not a fifth as many fail as without", move |all| {
                        let [first, .., last] = all else { return Verdict::new("nothing", false) };
                        let (seen, before) = (failed(last), failed(first));
                        Verdict::new(
                            format!("{}, and {}", percent(seen), percent(before)),
                            seen < before / 5.0,
                        )
                    }),
                    Claim::new("1.05 to 1.25 attempts a request", |past| {
                        Verdict::number(past.attempts(), (1.05, 1.25))
                    }),
                ],
            ),
            phase(
                "all answers are 503, retries without a budget",
                20,
                broken,
                PLAIN,
                vec![Claim::new("the service gets close to three times the requests", |past| {
                    Verdict::number(past.attempts(), (0.85 * ATTEMPTS_MAX, ATTEMPTS_MAX))
                })],
            ),
            phase(
                "all answers are 503, the budget is as by default",
                20,
                broken,
                DEFAULTS,
                vec![Claim::new("the service gets 1.05 to 1.4 times the requests", |past| {
                    Verdict::number(past.attempts(), (1.05, 1.4))
                })],
            ),
            phase(
                "all is well again",
                20,
                well,
                DEFAULTS,
                vec![
                    Claim::none_fails(),
                    Claim::new("one attempt a request", |past| Verdict::number(past.attempts(), (1.0, 1.01))),
                ],
            ),
        ],
    }
}
