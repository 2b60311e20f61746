//! The judgement by seeded simulation: how often a canary that is no worse is rolled back, how often a bad one gets through,
//! and how soon one that is dead is found.
#![allow(clippy::print_stdout, reason = "seeds and rates are printed, so that a failure can be repeated")]

use super::*;
use crate::telemetry::ServiceCounts;

fn rules() -> CanaryRules {
    CanaryRules {
        steps: [1.0, 5.0, 25.0, 50.0, 100.0].into(),
        step_time: Duration::from_secs(60),
        samples_min: 300,
        errors_tolerated: 0.005,
        latency_tolerated: 0.25,
        false_alarms_max: 0.01,
    }
}

fn seed() -> u64 {
    let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
    println!("RINGMESH_SEED={seed}");
    seed
}

/// How a service behaves.
#[derive(Clone, Copy)]
struct Conduct {
    errors: f64,
    /// Of those: seen by no caller, as another attempt went well.
    hidden: f64,
    /// Times are spread as a log-normal around this.
    median_ms: f64,
    /// Share of exchanges that take twenty times as long.
    slow: f64,
}

const GOOD: Conduct = Conduct { errors: 0.002, hidden: 0.0, median_ms: 10.0, slow: 0.005 };

fn seconds_of(rng: &mut fastrand::Rng, requests: u64, conduct: Conduct) -> Window {
    let mut counts = ServiceCounts::new();
    let mut window = Window { length: Duration::from_secs(1), exchanges: requests, ..Window::default() };
    for _ in 0..requests {
        let is_error = u64::from(rng.f64() < conduct.errors);
        *if rng.f64() < conduct.hidden { &mut window.retried } else { &mut window.errors } += is_error;
        // Box and Muller.
        let normal = (-2.0 * rng.f64().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
        let slow = if rng.f64() < conduct.slow { 20.0 } else { 1.0 };
        counts.first_byte.saturating_record((conduct.median_ms * 1e6 * (0.5 * normal).exp() * slow) as u64);
    }
    window.first_byte.record(&counts.first_byte);
    window
}

/// The course of a canary with so many requests a second in all; how many seconds it took.
fn run(rng: &mut fastrand::Rng, rate: u64, canary: Conduct, seconds_max: u32) -> (Course, u32) {
    let mut course = Course::new(rules());
    for second in 0..seconds_max {
        let mine = (0..rate).filter(|_| rng.f64() * 100.0 < course.share()).count() as u64;
        let (mine, theirs) = (seconds_of(rng, mine, canary), seconds_of(rng, rate - mine, GOOD));
        course.pass(Duration::from_secs(1), &mine, &theirs);
        if course.phase != Phase::Running {
            return (course, second + 1);
        }
    }
    (course, seconds_max)
}

/// 40 whole courses of a canary that is the same as its baseline. At most 1 % may be rolled back: 7 of 40 would be met once in
/// five million runs.
#[test]
fn a_canary_that_is_no_worse_is_hardly_ever_rolled_back() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut ended = [0; 3];
    for _ in 0..40 {
        let (course, _) = run(&mut rng, 100, GOOD, 3600);
        match course.phase {
            Phase::Promoted => ended[0] += 1,
            Phase::RolledBack => ended[1] += 1,
            Phase::Running | Phase::Paused => ended[2] += 1,
        }
    }
    println!(
        "the same as its baseline: {} promoted, {} rolled back, {} in doubt after an hour",
        ended[0], ended[1], ended[2]
    );
    assert!(ended[1] < 7 && ended[0] > 30, "{ended:?}");
}

/// Each of several ways to be bad, 10 times. One that gets through would need its numbers to look good at the end of four steps.
#[test]
fn a_bad_canary_does_not_get_through() {
    let mut rng = fastrand::Rng::with_seed(seed());
    for (what, conduct) in [
        ("5 % errors", Conduct { errors: 0.05, ..GOOD }),
        ("5 % errors that retries hide", Conduct { errors: 0.05, hidden: 1.0, ..GOOD }),
        ("twice as slow", Conduct { median_ms: 20.0, ..GOOD }),
        ("one of twenty very slow", Conduct { slow: 0.05, ..GOOD }),
        ("all errors", Conduct { errors: 1.0, ..GOOD }),
    ] {
        let (mut back, mut through, mut seconds) = (0, 0, 0);
        for _ in 0..10 {
            let (course, took) = run(&mut rng, 100, conduct, 1200);
            back += u32::from(course.phase == Phase::RolledBack);
            through += u32::from(course.phase == Phase::Promoted);
            seconds += took;
        }
        println!("{what}: {back} of 10 rolled back after {} s in the mean, {through} promoted", seconds / 10);
        assert_eq!((through, back), (0, 10), "{what}");
    }
}

#[test]
fn one_that_is_dead_is_found_by_its_first_requests() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let (course, seconds) = run(&mut rng, 100, Conduct { errors: 1.0, ..GOOD }, 600);
    assert_eq!(course.phase, Phase::RolledBack);
    assert!(
        course.canary.exchanges <= 40 && seconds <= 60,
        "{} requests in {seconds} s",
        course.canary.exchanges
    );
    assert!(course.reason.contains("errors: at least"), "{}", course.reason);
    assert_eq!(course.share(), 0.0);
}

#[test]
fn a_step_lasts_until_there_are_enough_samples_and_no_doubt() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut course = Course::new(rules());
    let nothing = Window::default();
    for _ in 0..600 {
        assert_eq!(course.pass(Duration::from_secs(1), &nothing, &seconds_of(&mut rng, 10, GOOD)), None);
    }
    assert_eq!((course.step, course.share()), (0, 1.0));
    // Enough of them, and no worse.
    let event = course.pass(
        Duration::from_secs(1),
        &seconds_of(&mut rng, 2000, GOOD),
        &seconds_of(&mut rng, 2000, GOOD),
    );
    assert_eq!((event, course.step, course.lasted), (Some(Event::Step(5.0)), 1, Duration::ZERO));
    // A little worse: no proof, no promotion.
    let little = Conduct { errors: 0.02, ..GOOD };
    let mut doubts = 0;
    for _ in 0..180 {
        let event = course.pass(
            Duration::from_secs(1),
            &seconds_of(&mut rng, 2, little),
            &seconds_of(&mut rng, 50, GOOD),
        );
        doubts += u32::from(matches!(event, Some(Event::Doubt(_))));
    }
    assert!(course.step == 1 || course.phase == Phase::RolledBack, "{course:?}");
    assert!(doubts <= 3, "once a step's time: {doubts}");
    // Without a baseline there is nothing to compare with.
    course.restart("again");
    let event = course.pass(Duration::from_secs(61), &seconds_of(&mut rng, 1000, GOOD), &nothing);
    assert!(matches!(event, Some(Event::Doubt(why)) if why.contains("no requests to compare with")));
}

#[test]
fn it_goes_where_it_is_told() {
    let mut course = Course::new(rules());
    course.phase = Phase::Paused;
    let mut rng = fastrand::Rng::with_seed(7);
    let dead = Conduct { errors: 1.0, ..GOOD };
    assert_eq!(
        course.pass(
            Duration::from_secs(100),
            &seconds_of(&mut rng, 500, dead),
            &seconds_of(&mut rng, 500, GOOD)
        ),
        None
    );
    assert_eq!((course.phase, course.share()), (Phase::Paused, 1.0));
    for share in [5.0, 25.0, 50.0] {
        assert_eq!(course.advance("told to"), Event::Step(share));
    }
    assert_eq!(course.advance("told to"), Event::Promoted);
    assert_eq!((course.phase, course.share()), (Phase::Promoted, 100.0));
    course.roll_back("told to".into());
    assert_eq!((course.phase, course.share()), (Phase::RolledBack, 0.0));
    course.restart("told to");
    assert_eq!((course.phase, course.share()), (Phase::Running, 1.0));
    course.promote("told to");
    assert_eq!(course.share(), 100.0);
    let again = Course::at(rules(), Phase::Running, 99, "as it was".into());
    assert_eq!((again.step, again.share(), again.phase), (4, 100.0, Phase::Promoted));
}
