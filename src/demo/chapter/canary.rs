//! The chapter about canaries: a new version that is as good takes over step by step; one that fails, and one that is slow, are
//! taken back. Further attempts are off, so that callers meet all that the new version does.

use std::time::Duration;

use super::endpoint::Conduct;
use super::past::{Past, share};
use super::script::{Claim, Phase, Script, Shown, Tables, Verdict, percent};

/// The endpoint of the new version; 0 is that of the old one.
const NEW: usize = 1;
const RATE: u32 = 300;
const WELL: Conduct = Conduct::Well(4, 8);
/// From this part of a phase on it must be decided.
const DECIDED: f64 = 0.9;

/// For a chapter of this length.
pub(super) fn script(whole: Duration, without_it: bool) -> Script {
    // The first phase has to go through three steps, each of which is looked at once a second.
    let step = (whole / 20).max(Duration::from_secs(1));
    let phase = |title: &str, share, name: &'static str, new, claims| Phase {
        title: title.to_owned(),
        share,
        rate: RATE,
        conducts: vec![WELL, new],
        tables: tables(name, step, without_it),
        claims,
    };
    let has = |what: &str, held: fn(f64) -> bool| {
        Claim::new(what, move |past: &Past| {
            let seen = past.share_of(NEW, DECIDED);
            Verdict::new(percent(seen), held(seen))
        })
    };
    let taken_back = || has("at the end the new version gets nothing", |seen| seen == 0.0);
    let fails = Conduct::Fails { work_ms: (4, 8), status: 500, one_of: 3 };
    Script {
        title: "a new version takes over step by step, and is taken back when it is proven worse",
        endpoints: 2,
        places: None,
        shown: Shown::Versions,
        phases: vec![
            phase(
                "the new version is as good as the old one",
                44,
                "shop-2",
                WELL,
                vec![Claim::none_fails(), has("at the end the new version gets all", |seen| seen > 0.99)],
            ),
            phase(
                "the next version answers 500 to one of three",
                28,
                "shop-3",
                fails,
                vec![
                    Claim::new("less than 3 % of all requests fail", |past| {
                        let counts = past.counts();
                        let seen = share(counts.failed, counts.all);
                        Verdict::new(percent(seen), counts.all > 0 && seen < 0.03)
                    }),
                    taken_back(),
                ],
            ),
            phase(
                "one more version is a hundred times as slow",
                28,
                "shop-4",
                Conduct::Well(500, 700),
                vec![Claim::none_fails(), taken_back()],
            ),
        ],
    }
}

/// The old version, the new one by this name, and a canary for it. Without one: half of the requests each, and nobody looks.
fn tables(name: &'static str, step: Duration, without_it: bool) -> Box<Tables> {
    let (old_weight, new_weight) = if without_it { (1, 1) } else { (1, 0) };
    Box::new(move |endpoints, folder| {
        let [old, new] = [0, NEW].map(|n| endpoints.get(n).map(ToString::to_string).unwrap_or_default());
        let mut text = format!(
            "\
[[service]]
name = \"shop\"
endpoints = [\"{old}\"]
retry = \"off\"

[[service]]
name = \"{name}\"
endpoints = [\"{new}\"]
retry = \"off\"

[[route]]
name = \"shop\"
split = [{{ service = \"shop\", weight = {old_weight} }}, {{ service = \"{name}\", weight = {new_weight} }}]
"
        );
        if !without_it {
            let state = folder.join(format!("{name}.json"));
            text += &format!(
                "
# Steps of moments, where a real one has minutes; and times may differ more, since a demo may meet a busy machine.
[[canary]]
name = \"{name}\"
route = \"shop\"
baseline = \"shop\"
canary = \"{name}\"
steps = [10, 50, 100]
step_time = \"{}ms\"
samples_min = 20
latency_tolerated = 100
state = \"{}\"
",
                step.as_millis(),
                state.display()
            );
        }
        text
    })
}
