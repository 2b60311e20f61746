//! The chapter about breakers: one of five endpoints answers 500, then hangs. Further attempts are off and the balancer goes
//! round, so that what is seen is the breaker alone: the usual balancer avoids whoever hangs by itself.

use std::time::Duration;

use super::endpoint::Conduct;
use super::past::Past;
use super::script::{Claim, Phase, Script, Shown, Verdict, length, percent};

const ENDPOINTS: usize = 5;
/// The one that does badly.
const SICK: usize = 2;
const RATE: u32 = 300;
const WELL: Conduct = Conduct::Well(4, 8);

/// For a chapter of this length.
pub(super) fn script(whole: Duration, without_it: bool) -> Script {
    // A minute has the defaults; what is shorter must come back sooner, and what is longer need not wait longer.
    let ejection = (whole / 40).min(Duration::from_secs(1));
    let hangs_until = (whole / 30).min(Duration::from_secs(2));
    let settled = (whole / 12).min(Duration::from_secs(2));
    let breaker = match without_it {
        true => "breaker = { enabled = false }".to_owned(),
        false => format!(
            "breaker = {{ ejection_base = \"{}\", ejection_max = \"{}\" }}",
            length(ejection),
            length(4 * ejection)
        ),
    };
    let service = format!(
        "# What is seen is the breaker alone: no retries, and no balancer that avoids whoever is slow.\nretry = \"off\"\nbalance = \"round-robin\"\ntimeouts = {{ response = \"{}\" }}\n{breaker}",
        length(hangs_until)
    );
    let phase = |title: &str, share, sick, claims| Phase {
        title: title.to_owned(),
        share,
        rate: RATE,
        conducts: (0..ENDPOINTS).map(|n| if n == SICK { sick } else { WELL }).collect(),
        service: service.clone(),
        claims,
    };
    let contained = || {
        let seconds = settled.as_secs_f64();
        vec![
            Claim::fails_below(format!("after {seconds:.1} s less than 1 % fail"), settled, 0.01),
            Claim::new("the endpoint is passed over", |past| {
                let why = past.passed_over.get(SICK).and_then(Option::as_deref);
                Verdict::new(why.unwrap_or("it is used"), why.is_some())
            }),
        ]
    };
    let back = || {
        vec![
            Claim::none_fails(),
            Claim::new("at the end the endpoint has half of its fair share or more", |past| {
                let seen = past.last_share_of(SICK);
                Verdict::new(percent(seen), seen >= 0.5 / ENDPOINTS as f64)
            }),
        ]
    };
    let used = Claim::new("all five are used", |past: &Past| {
        let out = past.passed_over.iter().flatten().count();
        Verdict::new(format!("{} of {ENDPOINTS}", ENDPOINTS - out), out == 0)
    });
    let broken = Conduct::Fails { work_ms: (4, 8), status: 500, one_of: 1 };
    Script {
        title: "an endpoint that does badly is passed over, and comes back when it does well",
        endpoints: ENDPOINTS,
        places: None,
        route: "",
        shown: Shown::Breaker,
        phases: vec![
            phase("all five endpoints are well", 14, WELL, vec![Claim::none_fails(), used]),
            phase("one of five answers 500", 22, broken, contained()),
            phase("it is well again", 21, WELL, back()),
            phase("it takes requests and never answers", 22, Conduct::Hangs, contained()),
            phase("it is well again", 21, WELL, back()),
        ],
    }
}
