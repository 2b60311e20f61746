//! The gate between shards: every order of steps that a seeded scheduler can think of, then real threads.

#![allow(clippy::disallowed_types, reason = "threads of tests take turns by a lock")]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicU32;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use super::*;
use crate::failure::Cause;
use crate::route::Priority;
use crate::upstream::caps::{Caps, Counts};
use crate::upstream::limiter::{Doors, Entry, Limiter, Pass, Waiting};
use crate::upstream::line::Patience;

/// Threads of which one runs at a time; at each step of any of them chance says who goes on.
struct Turns {
    state: Mutex<(fastrand::Rng, usize, Vec<bool>)>,
    changed: Condvar,
}

thread_local! {
    static TURN: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

/// Another thread may come between here.
pub(super) fn step() {
    let Some((turns, me)) = TURN.with_borrow(Clone::clone) else { return };
    let mut state = turns.lock();
    turns.choose(&mut state);
    turns.wait(state, me);
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, (fastrand::Rng, usize, Vec<bool>)> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn choose(&self, state: &mut (fastrand::Rng, usize, Vec<bool>)) {
        let running: Vec<usize> = (0..state.2.len()).filter(|n| state.2[*n]).collect();
        if !running.is_empty() {
            state.1 = running[state.0.usize(..running.len())];
            self.changed.notify_all();
        }
    }

    fn wait(&self, mut state: MutexGuard<'_, (fastrand::Rng, usize, Vec<bool>)>, me: usize) {
        while state.1 != me {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Runs each of `threads` in turns that `seed` decides.
fn in_turns(seed: u64, threads: Vec<Box<dyn FnOnce() + Send>>) {
    let running = vec![true; threads.len()];
    let turns = Arc::new(Turns {
        state: Mutex::new((fastrand::Rng::with_seed(seed), 0, running)),
        changed: Condvar::new(),
    });
    let handles: Vec<_> = (0..)
        .zip(threads)
        .map(|(me, thread)| {
            let turns = Arc::clone(&turns);
            std::thread::spawn(move || {
                turns.wait(turns.lock(), me);
                TURN.set(Some((Arc::clone(&turns), me)));
                let ended = catch_unwind(AssertUnwindSafe(thread));
                TURN.set(None);
                let mut state = turns.lock();
                state.2[me] = false;
                turns.choose(&mut state);
                drop(state);
                if let Err(cause) = ended {
                    resume_unwind(cause);
                }
            })
        })
        .collect();
    for handle in handles {
        if let Err(cause) = handle.join() {
            eprintln!("seed {seed}");
            resume_unwind(cause);
        }
    }
}

struct Silent;

impl Bell for Silent {
    fn ring(&self) {}
}

const NS: u64 = 1_000_000;

fn caps(exchanges_max: u32, pending_max: u32, counts: &Counts) -> Arc<Caps> {
    let patience = Patience { timeout_ns: 1000 * NS, target_ns: 1000 * NS };
    let counts = counts.clone();
    let caps = Caps {
        exchanges_max,
        pending_max,
        patience,
        retries_max: u32::MAX,
        connections_max: u32::MAX,
        concurrency: None,
        admission: None,
        counts,
    };
    Arc::new(caps)
}

/// What is inside and waits, as the threads themselves count it.
#[derive(Default)]
struct Truth {
    inside: AtomicU32,
    most: AtomicU32,
    served: AtomicU32,
}

impl Truth {
    fn enter(&self) {
        self.served.fetch_add(1, SeqCst);
        self.most.fetch_max(self.inside.fetch_add(1, SeqCst) + 1, SeqCst);
    }

    fn leave(&self, pass: Pass) {
        // Before the place is free.
        self.inside.fetch_sub(1, SeqCst);
        drop(pass);
    }
}

fn poll(waiting: &mut Waiting) -> Poll<Result<Pass, Cause>> {
    std::pin::Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
}

/// A shard that does at random what shards do; at its end it holds nothing and waits for nothing.
fn shard(truth: &Truth, counts: &Counts, declared: &[(u32, u32)], steps: u32, rng: &mut fastrand::Rng) {
    let doors = Doors::new(Arc::new(Silent), 0);
    let limiter = Limiter::new(caps(declared[0].0, declared[0].1, counts), &doors);
    let (mut passes, mut waitings): (Vec<Pass>, Vec<Waiting>) = (Vec::new(), Vec::new());
    let settle = |passes: &mut Vec<Pass>, waitings: &mut Vec<Waiting>| {
        doors.serve(0);
        waitings.retain_mut(|waiting| match poll(waiting) {
            Poll::Pending => true,
            Poll::Ready(pass) => {
                if let Ok(pass) = pass {
                    truth.enter();
                    passes.push(pass);
                }
                false
            }
        });
    };
    for _ in 0..steps {
        match rng.u32(..10) {
            0..4 => match limiter.enter(Priority::ALL[rng.usize(..3)], 0, || 0.5) {
                Entry::In(pass) => {
                    truth.enter();
                    passes.push(pass);
                }
                Entry::Wait(waiting) => waitings.push(waiting),
                Entry::Refused(_) => {}
            },
            4..7 if !passes.is_empty() => truth.leave(passes.swap_remove(rng.usize(..passes.len()))),
            // A panic gives its place back, too.
            7 if !passes.is_empty() => {
                let pass = passes.swap_remove(rng.usize(..passes.len()));
                truth.inside.fetch_sub(1, SeqCst);
                let unwound = catch_unwind(AssertUnwindSafe(move || {
                    let _pass = pass;
                    resume_unwind(Box::new("made up"));
                }));
                assert!(unwound.is_err());
            }
            8 if !waitings.is_empty() => drop(waitings.swap_remove(rng.usize(..waitings.len()))),
            9 => {
                let (exchanges_max, pending_max) = declared[rng.usize(..declared.len())];
                let caps = caps(exchanges_max, pending_max, counts);
                caps.apply();
                limiter.adopt(caps);
            }
            _ => settle(&mut passes, &mut waitings),
        }
    }
    waitings.clear();
    for pass in passes {
        truth.leave(pass);
    }
    doors.serve(0);
}

fn at_rest(counts: &Counts) {
    let gate = &counts.exchanges;
    assert_eq!((gate.taken(), gate.tickets(), gate.waiting()), (0, 0, 0), "{gate:?}");
    assert!(gate.tickets.iter().all(SegQueue::is_empty));
}

fn seeds() -> impl Iterator<Item = u64> {
    let first = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = first.unwrap_or_else(|| fastrand::u64(..1 << 48));
    eprintln!("RINGMESH_SEED={first}");
    first..
}

#[test]
fn in_any_order_of_steps_no_place_is_lost_and_none_is_given_twice() {
    for seed in seeds().take(150) {
        for declared in [&[(1, 8)][..], &[(2, 3)], &[(3, 4), (1, 4), (2, 1)]] {
            let counts = Counts::new(1);
            caps(declared[0].0, declared[0].1, &counts).apply();
            let truth = Arc::new(Truth::default());
            let threads = (0..3_u64).map(|n| {
                let (counts, truth) = (counts.clone(), Arc::clone(&truth));
                let mut rng = fastrand::Rng::with_seed(seed ^ (n << 50));
                Box::new(move || shard(&truth, &counts, declared, 14, &mut rng)) as Box<dyn FnOnce() + Send>
            });
            in_turns(seed, threads.collect());
            let most = declared.iter().map(|(cap, _)| *cap).max().unwrap();
            assert!(truth.most.load(SeqCst) <= most, "{} of {most}, seed {seed}", truth.most.load(SeqCst));
            at_rest(&counts);
        }
    }
}

#[test]
fn whoever_waits_comes_to_his_turn_in_any_order_of_steps() {
    // One place, three shards, each of which wants it several times and never gives up: all get it.
    for seed in seeds().take(150) {
        let counts = Counts::new(1);
        caps(1, 8, &counts).apply();
        let truth = Arc::new(Truth::default());
        let threads = (0..3).map(|n| {
            let (counts, truth) = (counts.clone(), Arc::clone(&truth));
            Box::new(move || {
                let doors = Doors::new(Arc::new(Silent), 0);
                let limiter = Limiter::new(caps(1, 8, &counts), &doors);
                for round in 0..4 {
                    // By turns, so that none is always the least important.
                    let priority = Priority::ALL[(n + round) % 3];
                    let pass = match limiter.enter(priority, 0, || 0.5) {
                        Entry::In(pass) => pass,
                        Entry::Wait(mut waiting) => {
                            // By far more turns than the other two need for all that they do.
                            let pass = (0..10_000).find_map(|_| {
                                step();
                                doors.serve(0);
                                match poll(&mut waiting) {
                                    Poll::Ready(pass) => pass.ok(),
                                    Poll::Pending => None,
                                }
                            });
                            pass.expect("its turn never comes")
                        }
                        Entry::Refused(_) => panic!("eight may wait"),
                    };
                    truth.enter();
                    step();
                    truth.leave(pass);
                }
            }) as Box<dyn FnOnce() + Send>
        });
        in_turns(seed, threads.collect());
        assert_eq!((truth.served.load(SeqCst), truth.most.load(SeqCst)), (12, 1), "seed {seed}");
        at_rest(&counts);
    }
}

#[test]
fn sixteen_threads_share_one_place_and_shards_come_to_their_turn_in_order() {
    const SHARDS: usize = 16;
    const EACH: u32 = 200;
    let counts = Counts::new(1);
    caps(1, 64, &counts).apply();
    let truth = Truth::default();
    std::thread::scope(|scope| {
        for _ in 0..SHARDS {
            scope.spawn(|| {
                struct Unpark(std::thread::Thread);
                impl Bell for Unpark {
                    fn ring(&self) {
                        self.0.unpark();
                    }
                }
                let doors = Doors::new(Arc::new(Unpark(std::thread::current())), 0);
                let limiter = Limiter::new(caps(1, 64, &counts), &doors);
                for _ in 0..EACH {
                    let pass = match limiter.enter(Priority::Default, 0, || 0.5) {
                        Entry::In(pass) => pass,
                        Entry::Wait(mut waiting) => loop {
                            doors.serve(0);
                            match poll(&mut waiting) {
                                Poll::Ready(pass) => break pass.ok().unwrap(),
                                // Nobody but the bell wakes it.
                                Poll::Pending => std::thread::park(),
                            }
                        },
                        Entry::Refused(_) => panic!("each waits once at a time"),
                    };
                    truth.enter();
                    truth.leave(pass);
                }
            });
        }
    });
    assert_eq!(truth.served.load(SeqCst), EACH * SHARDS as u32);
    assert_eq!(truth.most.load(SeqCst), 1);
    at_rest(&counts);
}

/// One place that the first of these shards has, for which these then ask; the one of that number leaves then, and those
/// of `after` ask. In which order they come to their turn.
fn in_turn(
    asked: &[(usize, Priority)],
    leaves: Option<usize>,
    after: &[(usize, Priority)],
) -> Vec<(usize, Priority)> {
    let counts = Counts::new(1);
    let declared = caps(1, 64, &counts);
    declared.apply();
    let shards: Vec<_> = (0..4)
        .map(|_| {
            let doors = Doors::new(Arc::new(Silent), 0);
            (Limiter::new(Arc::clone(&declared), &doors), doors)
        })
        .collect();
    let enter = |n: usize, priority| shards[n].0.enter(priority, 0, || 0.5);
    let wait = |&(n, priority): &(usize, Priority)| match enter(n, priority) {
        Entry::Wait(waiting) => (n, priority, waiting),
        Entry::In(_) | Entry::Refused(_) => panic!("it waits"),
    };
    let Entry::In(first) = enter(0, Priority::Sheddable) else { panic!("there is room") };
    let mut waiting: Vec<_> = asked.iter().map(wait).collect();
    if let Some(leaves) = leaves {
        drop(waiting.remove(leaves));
    }
    waiting.extend(after.iter().map(wait));
    let (mut order, mut held) = (Vec::new(), Some(first));
    while let Some(pass) = held.take() {
        drop(pass);
        // A place may go on from one that has no use for it to one that was looked at already.
        for (_, doors) in shards.iter().chain(&shards) {
            doors.serve(0);
        }
        waiting.retain_mut(|(n, priority, waiting)| match poll(waiting) {
            Poll::Ready(pass) => {
                order.push((*n, *priority));
                held = pass.ok();
                false
            }
            Poll::Pending => true,
        });
    }
    drop(shards);
    at_rest(&counts);
    order
}

#[test]
fn places_go_to_shards_in_the_order_in_which_they_asked() {
    // The third asks twice, the first, who has the place, last.
    let asked = [2, 1, 3, 2, 0].map(|n| (n, Priority::Default));
    assert_eq!(in_turn(&asked, None, &[]), asked);
}

#[test]
fn places_go_to_the_most_important_on_whatever_shard_they_wait() {
    use Priority::{Critical, Default, Sheddable};
    let asked = [
        (0, Sheddable),
        (1, Default),
        (0, Default),
        (2, Critical),
        (1, Sheddable),
        (0, Critical),
        (1, Critical),
    ];
    // One that is gone leaves its ticket: the place goes on to the next one that is as important, elsewhere.
    let order = in_turn(&asked, Some(6), &[(2, Critical)]);
    let expected = [
        (2, Critical),
        (0, Critical),
        (2, Critical),
        (1, Default),
        (0, Default),
        (0, Sheddable),
        (1, Sheddable),
    ];
    assert_eq!(order, expected);
}

#[test]
fn a_lower_ceiling_is_reached_before_anybody_else_comes_in_and_a_higher_one_lets_in_at_once() {
    let counts = Counts::new(1);
    let (three, one) = (caps(3, 8, &counts), caps(1, 8, &counts));
    three.apply();
    let doors = Doors::new(Arc::new(Silent), 0);
    let limiter = Limiter::new(Arc::clone(&three), &doors);
    let enter = || limiter.enter(Priority::Default, 0, || 0.5);
    let mut passes: Vec<Pass> = (0..3)
        .map(|_| match enter() {
            Entry::In(pass) => pass,
            Entry::Wait(_) | Entry::Refused(_) => panic!("there is room"),
        })
        .collect();
    let (Entry::Wait(mut a), Entry::Wait(mut b)) = (enter(), enter()) else { panic!("they wait") };
    one.apply();
    limiter.adopt(one);
    passes.truncate(1);
    assert!(poll(&mut a).is_pending(), "one is inside, as many as may be");
    passes.clear();
    let Poll::Ready(Ok(pass)) = poll(&mut a) else { panic!("its turn") };
    assert!(poll(&mut b).is_pending());
    three.apply();
    limiter.adopt(three);
    let Poll::Ready(Ok(other)) = poll(&mut b) else { panic!("there is room again") };
    drop((pass, other));
    at_rest(&counts);
}
