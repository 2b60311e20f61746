use std::collections::VecDeque;
use std::task::Waker;

use super::*;
use crate::upstream::caps::Counts;
use crate::upstream::line::Patience;

const MS: u64 = 1_000_000;

struct Silent;

impl Bell for Silent {
    fn ring(&self) {}
}

fn door(exchanges_max: u32, pending_max: u32) -> (Rc<Limiter>, Arc<Caps>) {
    let patience = Patience { timeout_ns: 100 * MS, target_ns: 5 * MS };
    let caps = Arc::new(Caps {
        exchanges_max,
        pending_max,
        patience,
        retries_max: 1,
        connections_max: u32::MAX,
        concurrency: None,
        admission: None,
        counts: Counts::new(1),
    });
    caps.apply();
    (Limiter::new(Arc::clone(&caps), &Doors::new(Arc::new(Silent), 0)), caps)
}

fn enter(limiter: &Rc<Limiter>, priority: Priority, now: u64) -> Entry {
    limiter.enter(priority, now, || 0.5)
}

fn inside(entry: Entry) -> Pass {
    match entry {
        Entry::In(pass) => pass,
        Entry::Wait(_) => panic!("it waits"),
        Entry::Refused(cause) => panic!("{}", cause.label()),
    }
}

fn waits(entry: Entry) -> Waiting {
    match entry {
        Entry::Wait(waiting) => waiting,
        Entry::In(_) => panic!("it is let in"),
        Entry::Refused(cause) => panic!("{}", cause.label()),
    }
}

fn told(waiting: &mut Waiting) -> Option<Result<Pass, Cause>> {
    match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(told) => Some(told),
        Poll::Pending => None,
    }
}

#[test]
fn who_leaves_the_line_gives_its_place_there_back_and_whoever_was_granted_in_vain_hands_it_on() {
    let (limiter, caps) = door(1, 2);
    let pass = inside(enter(&limiter, Priority::Default, 0));
    let (first, mut second) =
        (waits(enter(&limiter, Priority::Default, 0)), waits(enter(&limiter, Priority::Default, 0)));
    assert!(matches!(enter(&limiter, Priority::Default, 0), Entry::Refused(Cause::QueueFull)));
    drop(first);
    assert_eq!(caps.counts.exchanges.waiting(), 1);
    let third = waits(enter(&limiter, Priority::Default, 0));
    drop(pass);
    let second_pass = told(&mut second).unwrap().ok().unwrap();
    drop(second_pass);
    // The third was granted it and has not looked yet.
    assert_eq!(caps.counts.exchanges.taken(), 1);
    drop(third);
    let gate = &caps.counts.exchanges;
    assert_eq!((gate.taken(), gate.waiting(), gate.tickets()), (0, 0, 0));
}

#[test]
fn in_a_full_line_the_important_take_the_place_of_the_less_important() {
    let (limiter, caps) = door(1, 1);
    let pass = inside(enter(&limiter, Priority::Sheddable, 0));
    let mut low = waits(enter(&limiter, Priority::Sheddable, 0));
    let mut high = waits(enter(&limiter, Priority::Critical, 0));
    assert!(matches!(told(&mut low), Some(Err(Cause::QueueFull))));
    assert_eq!(caps.counts.exchanges.waiting(), 1);
    assert!(matches!(enter(&limiter, Priority::Default, 0), Entry::Refused(Cause::QueueFull)));
    drop(pass);
    assert!(matches!(told(&mut high), Some(Ok(_))));
}

#[test]
fn who_has_waited_too_long_is_told_so_when_somebody_else_comes_to_his_turn() {
    let (limiter, caps) = door(1, 8);
    let pass = inside(enter(&limiter, Priority::Default, 0));
    let mut old = waits(enter(&limiter, Priority::Default, 0));
    let mut new = waits(enter(&limiter, Priority::Default, 99 * MS));
    assert_eq!(old.until_ns, 100 * MS);
    pass.end(Outcome::default(), 101 * MS);
    assert!(matches!(told(&mut old), Some(Err(Cause::QueueTimeout))));
    assert!(matches!(told(&mut new), Some(Ok(_))));
    assert_eq!(caps.counts.exchanges.waiting(), 0);
}

#[test]
fn without_a_place_to_wait_it_is_turned_away_at_once() {
    let (limiter, _) = door(1, 0);
    let pass = inside(enter(&limiter, Priority::Critical, 0));
    assert!(matches!(enter(&limiter, Priority::Critical, 0), Entry::Refused(Cause::QueueFull)));
    drop(pass);
    inside(enter(&limiter, Priority::Sheddable, 0));
}

#[test]
fn retries_have_a_ceiling_of_their_own() {
    let (limiter, caps) = door(1, 0);
    let retry = limiter.retry();
    assert!(retry.is_some() && limiter.retry().is_none());
    drop(retry);
    assert_eq!(caps.counts.retries.taken(), 0);
    assert!(limiter.retry().is_some());
}

/// A door whose limit is learnt, beginning with 4.
fn learning() -> Rc<Limiter> {
    let settings = crate::upstream::concurrency::Settings {
        limit_min: 1,
        limit_max: 100,
        limit_initial: 4,
        tolerance: 0.25,
        window_ns: 100 * MS,
    };
    let (limiter, caps) = door(u32::MAX, 0);
    let caps = Arc::new(Caps {
        exchanges_max: u32::MAX,
        pending_max: 0,
        patience: caps.patience,
        retries_max: 1,
        connections_max: u32::MAX,
        concurrency: Some(settings),
        admission: None,
        counts: caps.counts.clone(),
    });
    caps.apply();
    limiter.adopt(caps);
    limiter
}

/// As many as are let in.
fn all(limiter: &Rc<Limiter>, now: u64) -> Vec<Pass> {
    let let_in = || match enter(limiter, Priority::Default, now) {
        Entry::In(pass) => Some(pass),
        Entry::Wait(_) | Entry::Refused(_) => None,
    };
    std::iter::from_fn(let_in).take(100).collect()
}

#[test]
fn a_measurement_that_nobody_answers_any_more_does_not_hold_half_of_the_limit_for_ever() {
    let limiter = learning();
    let mut now = 1000 * MS;
    let mut inside: VecDeque<Pass> = all(&limiter, now).into();
    assert_eq!(inside.len(), 4);
    // Nothing is known: it is measured with two at a time. Until then one comes for each that is answered.
    while inside.len() > 2 {
        now += 2 * MS;
        assert!(now < 2000 * MS, "it is not measured");
        let answered = Outcome { well: Some(true), answered_ns: Some(now) };
        inside.pop_front().unwrap().end(answered, now);
        inside.extend(all(&limiter, now));
    }
    // They leave without an answer, and so do the next ones.
    drop(inside);
    now += 1000 * MS;
    assert_eq!(all(&limiter, now).len(), 2);
    now += 1100 * MS;
    assert_eq!(all(&limiter, now).len(), 4, "two seconds are as long as it may take");
    // A service that never answers is asked no more for that.
    now += 10_000 * MS;
    assert_eq!(all(&limiter, now).len(), 4);
}

#[test]
fn what_is_learnt_is_how_many_are_let_in() {
    let limiter = learning();
    let mut now = 1000 * MS;
    let mut inside_at_most = |at_a_time: usize, latency_ns: u64, rounds: u32| {
        let mut most = 0;
        for _ in 0..rounds {
            let mut passes = Vec::new();
            while passes.len() < at_a_time
                && let Entry::In(pass) = enter(&limiter, Priority::Default, now)
            {
                passes.push(pass);
            }
            most = most.max(passes.len());
            now += latency_ns;
            for pass in passes {
                pass.end(Outcome { well: Some(true), answered_ns: Some(now) }, now);
            }
        }
        most
    };
    // One at a time takes 10 ms; as many as may come do so, too: more are let in. Then they take longer, and fewer are.
    assert_eq!(inside_at_most(1, 10 * MS, 100), 1);
    assert_eq!(inside_at_most(100, 10 * MS, 1), 4);
    let grown = inside_at_most(100, 10 * MS, 200);
    assert!(grown > 20, "{grown}");
    inside_at_most(100, 40 * MS, 20);
    let shrunk = inside_at_most(100, 40 * MS, 1);
    assert!(shrunk < grown, "{shrunk} of {grown}");
}
