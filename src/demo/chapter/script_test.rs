//! Scripts are whole, their configurations right, and their claims see what they are for.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::demo::chapter::load::{End, Outcome};
use crate::demo::chapter::past::Worked;
use crate::demo::chapter::{LENGTHS, breaker, canary, faults, overload, retries, show};

const MINUTE: Duration = Duration::from_secs(60);

fn scripts(length: Duration, without_it: bool) -> [Script; 5] {
    [
        breaker::script(length, without_it),
        retries::script(without_it),
        overload::script(without_it),
        canary::script(length, without_it),
        faults::script(without_it),
    ]
}

fn addresses(count: usize) -> Vec<SocketAddr> {
    (0..count).map(|n| SocketAddr::from(([127, 0, 0, 1], 9000 + n as u16))).collect()
}

#[test]
fn every_phase_has_its_part_its_endpoints_and_something_to_show() {
    for script in scripts(MINUTE, false) {
        assert_eq!(script.phases.iter().map(|phase| phase.share).sum::<u32>(), 100, "{}", script.title);
        for phase in &script.phases {
            assert_eq!(phase.conducts.len(), script.endpoints, "{}", phase.title);
            assert!(!phase.claims.is_empty() && phase.rate > 0, "{}", phase.title);
            assert!(script.length_of(phase, LENGTHS.0) >= Duration::from_millis(1400), "{}", phase.title);
        }
    }
}

#[test]
fn every_configuration_is_one_without_errors_or_warnings() {
    for (length, without_it) in [(LENGTHS.0, false), (MINUTE, false), (LENGTHS.1, false), (MINUTE, true)] {
        for script in scripts(length, without_it) {
            for phase in &script.phases {
                let text = script.config(phase, &addresses(script.endpoints), Path::new("/tmp"));
                let loaded = crate::config::parse("shop.toml", &text, &|_| None);
                let loaded = loaded.unwrap_or_else(|report| panic!("{text}\n{report}"));
                assert!(loaded.warnings.is_empty(), "{text}\n{}", loaded.warnings);
            }
        }
    }
}

/// What a phase of ten seconds was like in which requests ended so, evenly, answered by endpoints in turn.
fn past(counts: [(u64, End); 3], took_ms: u64, endpoints: usize) -> Past {
    let all: u64 = counts.iter().map(|(count, _)| count).sum();
    // Each kind spread over the phase.
    let outcomes = counts.iter().flat_map(|(count, end)| {
        (0..*count).map(move |n| {
            let due = Duration::from_millis(10_000 * n / count.max(&1));
            let took = Duration::from_millis(if *end == End::Refused { 2 } else { took_ms });
            Outcome { due, took, by: Some(n as usize % endpoints), end: end.clone() }
        })
    });
    let worked = Worked { arrived: all / endpoints as u64, done: 10, worked: Duration::from_millis(800) };
    Past {
        length: Duration::from_secs(10),
        outcomes: outcomes.collect(),
        endpoints: vec![worked; endpoints],
        passed_over: vec![None; endpoints],
    }
}

fn ends(answered: u64, refused: u64, failed: u64) -> [(u64, End); 3] {
    [(answered, End::Answered), (refused, End::Refused), (failed, End::Failed("500".into()))]
}

fn held(script: &Script, phase: usize, pasts: &[Past]) -> Vec<bool> {
    script.phases[phase].claims.iter().map(|claim| (claim.judge)(pasts).held).collect()
}

#[test]
fn a_breaker_that_does_nothing_is_noticed() {
    let script = breaker::script(MINUTE, false);
    let well = past(ends(1000, 0, 0), 6, 5);
    assert_eq!(held(&script, 0, std::slice::from_ref(&well)), [true, true]);
    let mut contained = past(ends(995, 0, 5), 6, 5);
    assert_eq!(held(&script, 1, &[well.clone(), contained.clone()]), [true, false], "used all the same");
    contained.passed_over[2] = Some("failures".to_owned());
    assert_eq!(held(&script, 1, &[well.clone(), contained]), [true, true]);
    let mut other = past(ends(800, 0, 200), 6, 5);
    other.passed_over[1] = Some("failures".to_owned());
    assert_eq!(held(&script, 1, &[well.clone(), other]), [false, false], "too many, and the wrong one");
    assert_eq!(held(&script, 2, std::slice::from_ref(&well)), [true, true]);
    assert_eq!(
        held(&script, 2, &[past(ends(999, 0, 1), 6, 2)]),
        [false, false],
        "one fails, nothing for the third"
    );
    assert!(!held(&script, 0, &[Past::default()])[0], "nothing is no proof");
}

#[test]
fn retries_that_do_nothing_or_too_much_are_noticed() {
    let script = retries::script(false);
    let without = past(ends(900, 0, 100), 6, 4);
    assert_eq!(held(&script, 0, std::slice::from_ref(&without)), [true]);
    assert_eq!(held(&script, 0, &[past(ends(1000, 0, 0), 6, 4)]), [false], "the endpoints fail too seldom");
    assert_eq!(held(&script, 1, &[without.clone(), without.clone()]), [false, false]);
    let attempts = |mut past: Past, times: f64| {
        for endpoint in &mut past.endpoints {
            endpoint.arrived = (endpoint.arrived as f64 * times) as u64;
        }
        past
    };
    let hidden = attempts(past(ends(999, 0, 1), 6, 4), 1.11);
    assert_eq!(held(&script, 1, &[without, hidden]), [true, true]);
    let all_fail = || past(ends(0, 0, 1000), 900, 4);
    assert_eq!(held(&script, 2, &[attempts(all_fail(), 2.99)]), [true]);
    assert_eq!(held(&script, 3, &[attempts(all_fail(), 1.22)]), [true]);
    assert_eq!(held(&script, 3, &[attempts(all_fail(), 2.0)]), [false], "the budget does not bind");
    assert_eq!(held(&script, 3, &[all_fail()]), [false], "there were none");
    assert_eq!(held(&script, 4, &[past(ends(1000, 0, 0), 6, 4)]), [true, true]);
}

#[test]
fn caps_that_let_all_in_or_too_little_are_noticed() {
    let script = overload::script(false);
    let calm = past(ends(450, 0, 0), 80, 1);
    let climbs = past(ends(100, 0, 2150), 1400, 1);
    assert_eq!(held(&script, 0, std::slice::from_ref(&calm)), [true]);
    assert_eq!(held(&script, 1, &[calm.clone(), climbs.clone()]), [true]);
    assert_eq!(held(&script, 1, &[calm.clone(), calm.clone()]), [false], "nothing was overloaded");
    let before = [calm.clone(), climbs.clone(), calm.clone()];
    let then = |last: Past| [&before[..], &[last]].concat();
    assert_eq!(held(&script, 3, &then(past(ends(700, 1550, 0), 150, 1))), [true; 4]);
    assert_eq!(held(&script, 3, &then(climbs)), [false; 4], "as without");
    let starved = past(ends(300, 1950, 0), 80, 1);
    assert_eq!(held(&script, 3, &then(starved)), [false, true, true, true], "too much is refused");
    assert_eq!(held(&script, 4, std::slice::from_ref(&calm)), [true]);
    assert_eq!(held(&script, 4, &[past(ends(440, 10, 0), 80, 1)]), [false]);
}

#[test]
fn faults_that_are_not_made_or_too_many_are_noticed() {
    let script = faults::script(false);
    let calm = past(ends(1000, 0, 0), 6, 1);
    assert_eq!(held(&script, 0, std::slice::from_ref(&calm)), [true, true]);
    assert_eq!(held(&script, 1, std::slice::from_ref(&calm)), [false, false, false], "none was made");
    assert_eq!(held(&script, 2, std::slice::from_ref(&calm)), [false, false], "none was made");
    assert_eq!(held(&script, 3, std::slice::from_ref(&calm)), [true, false], "none was made");
    let slow = |mut past: Past, one_of: usize| {
        past.outcomes.iter_mut().step_by(one_of).for_each(|o| o.took = faults::HELD_UP);
        past
    };
    let reach = |mut past: Past, part: f64| {
        past.endpoints.iter_mut().for_each(|e| e.arrived = (e.arrived as f64 * part) as u64);
        past
    };
    let as_told = reach(slow(past(ends(900, 0, 100), 6, 1), 5), 0.9);
    assert_eq!(held(&script, 1, std::slice::from_ref(&as_told)), [true; 3]);
    assert_eq!(held(&script, 1, &[slow(past(ends(500, 0, 500), 6, 1), 1)]), [false; 3], "too many");
    let mut cut = slow(past(ends(900, 0, 100), 6, 1), 10);
    assert_eq!(held(&script, 2, std::slice::from_ref(&cut)), [false, true], "they fail otherwise");
    for outcome in cut.outcomes.iter_mut().filter(|outcome| outcome.end != End::Answered) {
        outcome.end = End::Failed("unexpected end of file".into());
    }
    assert_eq!(held(&script, 2, std::slice::from_ref(&cut)), [true, true]);
    assert_eq!(held(&script, 3, &[slow(calm.clone(), 20)]), [true, true]);
    assert_eq!(held(&script, 3, &[slow(calm, 1)]), [true, false], "the budget does not bind");
}

#[test]
fn a_canary_that_is_not_conducted_is_noticed() {
    let script = canary::script(MINUTE, false);
    // Both get half to the end.
    let halves = past(ends(1000, 0, 0), 6, 2);
    assert_eq!(held(&script, 0, std::slice::from_ref(&halves)), [true, false]);
    assert_eq!(held(&script, 1, &[past(ends(840, 0, 160), 6, 2)]), [false, false]);
    assert_eq!(held(&script, 2, std::slice::from_ref(&halves)), [true, false]);
    let only = |endpoint: usize, failed: u64| {
        let mut past = past(ends(1000 - failed, 0, failed), 6, 2);
        past.outcomes
            .iter_mut()
            .filter(|o| o.due >= Duration::from_secs(8))
            .for_each(|o| o.by = Some(endpoint));
        past
    };
    assert_eq!(held(&script, 0, &[only(1, 0)]), [true, true]);
    assert_eq!(held(&script, 1, &[only(0, 10)]), [true, true]);
    assert_eq!(held(&script, 2, &[only(0, 0)]), [true, true]);
}

#[test]
fn the_summary_has_a_row_for_each_phase_and_holds_only_when_all_was_played_and_held() {
    let script = overload::script(false);
    let calm = past(ends(450, 0, 0), 80, 1);
    let pasts = vec![calm; 5];
    let verdicts: Vec<Vec<Verdict>> = script
        .phases
        .iter()
        .map(|phase| phase.claims.iter().map(|_| Verdict::new("1 of 2", true)).collect())
        .collect();
    let text = |pasts: &[Past], verdicts: &[Vec<Verdict>]| {
        let (lines, held) = show::summary(&script, pasts, verdicts);
        let lines: Vec<String> = lines.iter().map(|line| line.render(false, 200)).collect();
        (lines.join("\n"), held)
    };
    let (all, well) = text(&pasts, &verdicts);
    assert!(well, "{all}");
    for (n, phase) in script.phases.iter().enumerate() {
        assert!(all.contains(&format!("{} {}", n + 1, phase.title)), "{all}");
    }
    assert_eq!(all.matches(" yes ").count(), 8, "{all}");
    let mut one_not = verdicts.clone();
    one_not[3][1].held = false;
    let (all, well) = text(&pasts, &one_not);
    assert!(!well && all.matches(" NO ").count() == 1, "{all}");
    let (some, well) = text(&pasts[..2], &verdicts[..1]);
    assert!(!well && some.contains("not reached") && !some.contains("3 0.6 times, no caps "), "{some}");
    let failing = vec![past(ends(1, 0, 7), 80, 1)];
    assert!(text(&failing, &[]).0.contains("    7 × 500"));
}
