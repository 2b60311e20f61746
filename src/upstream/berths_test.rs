//! Berths of a service at several shards: one step after the other, then real threads.

use std::sync::atomic::AtomicUsize;
use std::task::Waker;

use super::*;
use crate::upstream::caps::Counts;
use crate::upstream::line::Patience;

const MS: u64 = 1_000_000;

fn caps(connections_max: u32, counts: &Counts) -> Arc<Caps> {
    caps_with(connections_max, 8, counts)
}

fn caps_with(connections_max: u32, pending_max: u32, counts: &Counts) -> Arc<Caps> {
    let caps = Caps {
        exchanges_max: u32::MAX,
        connections_max,
        pending_max,
        patience: Patience { timeout_ns: 1000 * MS, target_ns: 1000 * MS },
        retries_max: u32::MAX,
        concurrency: None,
        admission: None,
        counts: counts.clone(),
    };
    caps.apply();
    Arc::new(caps)
}

#[derive(Default)]
struct Rung(AtomicUsize);

impl Bell for Rung {
    fn ring(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

struct Shard {
    berths: Rc<Berths>,
    doors: Rc<Doors>,
    rung: Arc<Rung>,
}

fn shards(connections_max: u32) -> ([Shard; 2], Counts) {
    let counts = Counts::new(1);
    let caps = caps(connections_max, &counts);
    let shard = |_| {
        let rung = Arc::<Rung>::default();
        let doors = Doors::new(Arc::<Rung>::clone(&rung));
        Shard { berths: Berths::new(Arc::clone(&caps), &doors), doors, rung }
    };
    ([0, 1].map(shard), counts)
}

impl Shard {
    fn take(&self) -> Option<Berth> {
        self.berths.take()
    }

    fn wait(&self) -> Waiting {
        self.berths.wait().ok().unwrap()
    }

    /// What came of waiting, by now.
    fn turn(&self, waiting: &mut Waiting) -> Option<Turn> {
        self.doors.serve();
        match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }
}

#[test]
fn there_are_never_more_than_the_ceiling_and_what_is_given_back_goes_to_who_waits() {
    let ([a, b], counts) = shards(2);
    let (first, second) = (a.take().unwrap(), b.take().unwrap());
    assert!(a.take().is_none() && b.take().is_none());
    let mut waiting = b.wait();
    assert!(b.turn(&mut waiting).is_none());
    drop(first);
    assert_eq!(b.rung.0.load(SeqCst), 1);
    assert!(a.take().is_none(), "it is another's already");
    let Some(Turn::Berth(third)) = b.turn(&mut waiting) else { panic!("it is free") };
    drop((second, third));
    assert_eq!(counts.connections.gate.taken(), 0);
    assert!(a.take().is_some());
}

#[test]
fn as_many_wait_as_may() {
    let ([a, _], _counts) = shards(1);
    let _first = a.take().unwrap();
    let waiting: Vec<Waiting> = (0..8).map(|_| a.wait()).collect();
    assert!(matches!(a.berths.wait(), Err(Cause::QueueFull)));
    drop(waiting);
    a.wait();
}

#[test]
fn what_comes_to_rest_is_first_for_who_waits_at_its_own_shard() {
    let ([a, b], _counts) = shards(1);
    let berth = a.take().unwrap();
    let (mut other, mut own) = (b.wait(), a.wait());
    // The first goes to the other shard, which has none; the next one in five milliseconds.
    assert_eq!(a.berths.comes_to_rest(1000 * MS), Rest::Close);
    assert_eq!(a.berths.comes_to_rest(1004 * MS), Rest::Keep);
    a.berths.rests();
    assert!(matches!(a.turn(&mut own), Some(Turn::Look)));
    assert!(b.turn(&mut other).is_none());
    let _own = a.wait();
    assert_eq!(a.berths.comes_to_rest(1005 * MS), Rest::Close);
    drop(berth);
    assert!(matches!(b.turn(&mut other), Some(Turn::Berth(_))));
}

#[test]
fn who_comes_while_others_wait_or_are_about_to_look_is_behind_them() {
    let ([a, _], _counts) = shards(1);
    let _berth = a.take().unwrap();
    assert!(!a.berths.has_line());
    let mut waiting = a.wait();
    assert!(a.berths.has_line());
    assert_eq!(a.berths.comes_to_rest(0), Rest::Keep);
    a.berths.rests();
    assert!(a.berths.has_line(), "it has not looked yet");
    assert!(matches!(a.turn(&mut waiting), Some(Turn::Look)));
    assert!(!a.berths.has_line());
}

#[test]
fn a_shard_with_connections_at_rest_is_asked_for_them_and_passes_on_what_it_does_not_have() {
    let ([a, b], counts) = shards(2);
    let c = {
        let doors = Doors::new(Arc::new(Rung::default()));
        (Berths::new(caps(2, &counts), &doors), doors)
    };
    let (mine, its) = (a.take().unwrap(), c.0.take().unwrap());
    for berths in [&a.berths, &c.0] {
        assert_eq!(berths.comes_to_rest(0), Rest::Keep);
        berths.rests();
    }
    let mut waiting = b.wait();
    assert!(a.doors.are_asked() && !a.doors.are_asked() && !c.1.are_asked());
    assert_eq!((a.berths.asked_for(), a.berths.asked_for()), (1, 0));
    // It is in use again.
    a.berths.passes_on(1);
    assert!(c.1.are_asked());
    assert_eq!(c.0.asked_for(), 1);
    drop(its);
    assert!(matches!(b.turn(&mut waiting), Some(Turn::Berth(_))));
    drop(mine);
}

#[test]
fn an_offer_that_comes_just_after_somebody_has_asked_is_seen() {
    let ([a, b], _counts) = shards(1);
    let _berth = a.take().unwrap();
    assert_eq!(a.berths.comes_to_rest(0), Rest::Keep);
    let _waiting = b.wait();
    a.berths.rests();
    assert!(a.doors.are_asked());
    assert_eq!(a.berths.asked_for(), 1);
}

#[test]
fn what_nobody_wants_any_more_goes_on_to_the_next() {
    let ([a, b], counts) = shards(1);
    let berth = a.take().unwrap();
    let (gone, mut late, mut next) = (b.wait(), b.wait(), a.wait());
    drop(gone);
    drop(berth);
    b.doors.serve();
    // Granted, and gone before it has seen that.
    assert!(b.turn(&mut late).is_some());
    b.doors.serve();
    assert!(matches!(a.turn(&mut next), Some(Turn::Berth(_))));
    assert_eq!(counts.connections.gate.waiting(), 0);
}

#[test]
fn what_lies_at_rest_and_was_not_looked_for_is_for_the_next_who_waits() {
    let ([a, _], _counts) = shards(1);
    let _berth = a.take().unwrap();
    let (gone, mut next) = (a.wait(), a.wait());
    a.berths.rests();
    drop(gone);
    assert!(matches!(a.turn(&mut next), Some(Turn::Look)));
}

#[test]
fn a_lower_ceiling_asks_for_what_is_above_it_and_a_higher_one_lets_in() {
    let ([a, b], counts) = shards(3);
    let mut held: Vec<Berth> = (0..3).map(|_| a.take().unwrap()).collect();
    a.berths.adopt(caps(1, &counts));
    assert_eq!(a.berths.asked_for(), 2);
    held.pop();
    assert!(a.take().is_none());
    assert_eq!(a.berths.asked_for(), 1);
    let mut waiting = b.wait();
    held.pop();
    assert!(b.turn(&mut waiting).is_none(), "one is as many as there may be");
    b.berths.adopt(caps(2, &counts));
    assert!(matches!(b.turn(&mut waiting), Some(Turn::Berth(_))));
}

/// A shard whose exchanges take and lay down connections as chance has it.
struct World<'w> {
    open: &'w AtomicU32,
    most: &'w AtomicU32,
    berths: Rc<Berths>,
    doors: Rc<Doors>,
    rest: Vec<Berth>,
    busy: Vec<Berth>,
    waiting: Vec<Waiting>,
    rng: fastrand::Rng,
    now: u64,
}

impl World<'_> {
    const AT_A_TIME: usize = 3;

    fn opens(&mut self, berth: Berth) {
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(open, SeqCst);
        self.busy.push(berth);
    }

    fn closes(&self, berth: Berth) {
        self.open.fetch_sub(1, SeqCst);
        drop(berth);
    }

    fn wants(&mut self, is_behind: bool) {
        if !is_behind {
            if let Some(berth) = self.rest.pop() {
                return self.busy.push(berth);
            }
            if let Some(berth) = self.berths.take() {
                return self.opens(berth);
            }
        }
        self.waiting.push(self.berths.wait().ok().unwrap());
    }

    fn turns(&mut self) {
        self.doors.serve();
        if self.doors.are_asked() {
            let asked_for = self.berths.asked_for() as usize;
            let closed = asked_for.min(self.rest.len());
            for berth in self.rest.split_off(self.rest.len() - closed) {
                self.closes(berth);
            }
            self.berths.passes_on((asked_for - closed) as u32);
            if !self.rest.is_empty() {
                self.berths.offer();
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            match Pin::new(&mut waiting).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.waiting.push(waiting),
                Poll::Ready(Turn::Berth(berth)) => self.opens(berth),
                Poll::Ready(Turn::Look) => self.wants(false),
            }
        }
    }

    fn ends_one(&mut self) {
        let berth = self.busy.swap_remove(self.rng.usize(..self.busy.len()));
        self.now += self.rng.u64(..2 * MS);
        if self.berths.comes_to_rest(self.now) == Rest::Close || self.rng.u8(..) < 16 {
            return self.closes(berth);
        }
        self.rest.push(berth);
        self.berths.rests();
    }
}

#[test]
fn shards_share_few_connections_exactly_and_everybody_gets_one() {
    const SHARDS: usize = 6;
    const EACH: usize = 400;
    let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    for connections_max in [1, 2, 5, 40] {
        let counts = Counts::new(1);
        let declared = caps_with(connections_max, 100, &counts);
        let (open, most, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for n in 0..SHARDS {
                let (declared, open, most, done) = (Arc::clone(&declared), &open, &most, &done);
                scope.spawn(move || {
                    let doors = Doors::new(Arc::new(Rung::default()));
                    let berths = Berths::new(declared, &doors);
                    let rng = fastrand::Rng::with_seed(seed ^ (n as u64) << 32);
                    let (rest, busy, waiting) = Default::default();
                    let mut world = World { open, most, berths, doors, rest, busy, waiting, rng, now: 0 };
                    let mut left = EACH;
                    while left > 0 || !world.busy.is_empty() || !world.waiting.is_empty() {
                        world.turns();
                        if left > 0 && world.busy.len() + world.waiting.len() < World::AT_A_TIME {
                            left -= 1;
                            let is_behind = world.berths.has_line();
                            world.wants(is_behind);
                        } else if !world.busy.is_empty() {
                            world.ends_one();
                        } else {
                            std::thread::yield_now();
                        }
                    }
                    done.fetch_add(1, SeqCst);
                    while done.load(SeqCst) < SHARDS {
                        world.turns();
                        std::thread::yield_now();
                    }
                });
            }
        });
        let most = most.load(SeqCst);
        assert!(most <= connections_max, "{most} of {connections_max}, RINGMESH_SEED={seed}");
        let left = (counts.connections.gate.taken(), counts.connections.gate.waiting());
        assert_eq!(left, (0, 0), "RINGMESH_SEED={seed}");
    }
}
