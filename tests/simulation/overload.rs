//! A service that is offered three times what it bears, behind the doors of several shards: what comes through, how long it
//! takes, what waits, and how soon it is as before.
//!
//! The service has `SERVERS` places that each serve one exchange at a time, whoever came first; what is let in beyond that
//! queues there, which is what the doors are to prevent. Arrivals are Poisson. Bounds: with 40 000 arrivals and more a
//! goodput has a standard deviation below 1 %, and 5 σ are within the distance to the bound.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::SegQueue;
use fastrand::Rng;
use ringmesh::failure::Cause;
use ringmesh::route::Priority;
use ringmesh::upstream::caps::{Caps, Counts};
use ringmesh::upstream::gate::Bell;
use ringmesh::upstream::limiter::{Doors, Entry, Limiter, Outcome, Pass, Waiting};
use ringmesh::upstream::line::Patience;
use ringmesh::upstream::{admission, concurrency};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const SERVERS: usize = 16;
const SHARDS: usize = 4;
/// Of one exchange, on average.
const MEAN_NS: f64 = 10.0 * MS as f64;
/// Exchanges a second.
const CAPACITY: f64 = SERVERS as f64 * SECOND as f64 / MEAN_NS;

/// How long the service takes for one exchange.
#[derive(Debug, Clone, Copy)]
enum Takes {
    /// Exactly the same. Who finds no server waits for as long as another takes: of 17 exchanges 16 take what they always took.
    Exactly,
    /// The same but for a twentieth.
    Same,
    /// A fifth longer where all servers are busy than where none is, as where they share memory and caches: it is slower the
    /// more it does, and does more all the same.
    Busier,
    /// Half to one and a half of the mean, evenly.
    Even,
    Exponential,
    /// Nine of ten are short, one is long: ten times as long.
    TwoKinds,
}

const ALL: [Takes; 6] =
    [Takes::Exactly, Takes::Same, Takes::Busier, Takes::Even, Takes::Exponential, Takes::TwoKinds];

impl Takes {
    fn draw(self, busy: usize, rng: &mut Rng) -> u64 {
        let part = match self {
            Self::Exactly => 1.0,
            Self::Busier => (0.95 + rng.f64() / 10.0) * (0.8 + 0.2 * busy as f64 / SERVERS as f64),
            Self::Same => 0.95 + rng.f64() / 10.0,
            Self::Even => 0.5 + rng.f64(),
            Self::Exponential => -(1.0 - rng.f64()).ln(),
            // 0.9 x + 0.1 · 10 x = 1
            Self::TwoKinds if rng.f64() < 0.1 => 10.0 / 1.9,
            Self::TwoKinds => 1.0 / 1.9,
        };
        (MEAN_NS * part) as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// The service has served this one.
    Served(u64),
    /// It has waited at the door for as long as it may.
    Late(u64),
}

struct Asked {
    at_ns: u64,
    shard: usize,
    priority: Priority,
    pass: Option<Pass>,
    waiting: Option<Waiting>,
}

/// What was seen over a stretch of time.
#[derive(Debug, Default)]
struct Seen {
    arrived: [u64; Priority::COUNT],
    served: [u64; Priority::COUNT],
    refused: HashMap<Cause, u64>,
    /// From arrival to answer, of those served, ns.
    took_ns: Vec<u64>,
    waiting_max: u32,
    inside_max: usize,
}

struct World {
    now_ns: u64,
    rng: Rng,
    takes: Takes,
    /// Whether answers are good.
    well: bool,
    caps: Arc<Caps>,
    shards: Vec<(Rc<Limiter>, Rc<Doors>, Arc<Rung>)>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    asked: HashMap<u64, Asked>,
    next: u64,
    busy: usize,
    queue: VecDeque<u64>,
    woken: Arc<SegQueue<u64>>,
    rate: f64,
    priorities: &'static [Priority],
    /// Whether all that is critical comes to the first shard and nothing else does, as by the one connection of one caller.
    apart: bool,
    seen: Seen,
}

#[derive(Default)]
struct Rung(AtomicBool);

impl Bell for Rung {
    fn ring(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Woken(u64, Arc<SegQueue<u64>>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.1.push(self.0);
    }
}

impl World {
    fn new(takes: Takes, declared: impl FnOnce(&mut Caps), rng: &mut Rng) -> Self {
        let mut caps = Caps {
            exchanges_max: u32::MAX,
            pending_max: 1024,
            patience: Patience { timeout_ns: 100 * MS, target_ns: 5 * MS },
            retries_max: u32::MAX,
            connections_max: u32::MAX,
            concurrency: None,
            admission: None,
            counts: Counts::new(rng.u64(..)),
        };
        declared(&mut caps);
        caps.apply();
        let caps = Arc::new(caps);
        let shards = (0..SHARDS)
            .map(|n| {
                let rung = Arc::new(Rung::default());
                // Clocks of shards begin at different times.
                let doors = Doors::new(Arc::<Rung>::clone(&rung), n as u64 * SECOND);
                (Limiter::new(Arc::clone(&caps), &doors), doors, rung)
            })
            .collect();
        Self {
            now_ns: 100 * SECOND,
            rng: rng.fork(),
            takes,
            well: true,
            caps,
            shards,
            events: BinaryHeap::new(),
            asked: HashMap::new(),
            next: 0,
            busy: 0,
            queue: VecDeque::new(),
            woken: Arc::default(),
            rate: 0.0,
            priorities: &[Priority::Default],
            apart: false,
            seen: Seen::default(),
        }
    }

    /// So many arrivals a second for so long; what was seen meanwhile.
    fn run(&mut self, rate: f64, length_ns: u64) -> Seen {
        let until_ns = self.now_ns + length_ns;
        let was_idle = self.rate == 0.0;
        self.rate = rate;
        if was_idle {
            self.events.push(Reverse((self.now_ns, Event::Arrival)));
        }
        while let Some(Reverse((at_ns, event))) = self.events.peek().copied() {
            if at_ns >= until_ns {
                break;
            }
            self.events.pop();
            self.now_ns = at_ns;
            match event {
                Event::Arrival => {
                    let gap_ns = -(1.0 - self.rng.f64()).ln() * SECOND as f64 / self.rate;
                    self.events.push(Reverse((at_ns + gap_ns as u64, Event::Arrival)));
                    self.arrive();
                }
                Event::Served(id) => self.served(id),
                Event::Late(id) => {
                    if let Some(asked) = self.asked.get_mut(&id)
                        && asked.waiting.take().is_some()
                    {
                        self.refused(id, Cause::QueueTimeout);
                    }
                }
            }
            self.doors();
            self.seen.waiting_max = self.seen.waiting_max.max(self.caps.counts.exchanges.waiting());
            self.seen.inside_max = self.seen.inside_max.max(self.busy + self.queue.len());
        }
        self.now_ns = until_ns;
        std::mem::take(&mut self.seen)
    }

    fn arrive(&mut self) {
        let (id, any) = (self.next, self.rng.usize(..SHARDS));
        self.next += 1;
        let priority = self.priorities[self.rng.usize(..self.priorities.len())];
        let shard = match (self.apart, priority) {
            (false, _) => any,
            (true, Priority::Critical) => 0,
            (true, _) => 1 + any % (SHARDS - 1),
        };
        self.seen.arrived[priority as usize] += 1;
        let mut asked = Asked { at_ns: self.now_ns, shard, priority, pass: None, waiting: None };
        // Time of the shard: the door adds its origin.
        let now_ns = self.now_ns - shard as u64 * SECOND;
        let rng = &mut self.rng;
        match self.shards[shard].0.enter(priority, now_ns, || rng.f64()) {
            Entry::In(pass) => {
                asked.pass = Some(pass);
                self.asked.insert(id, asked);
                self.let_in(id);
            }
            Entry::Wait(waiting) => {
                let left_ns = waiting.until_ns - now_ns;
                self.events.push(Reverse((self.now_ns + left_ns, Event::Late(id))));
                asked.waiting = Some(waiting);
                self.asked.insert(id, asked);
                self.look(id);
            }
            Entry::Refused(cause) => *self.seen.refused.entry(cause).or_default() += 1,
        }
    }

    fn let_in(&mut self, id: u64) {
        if self.busy < SERVERS {
            self.begin(id);
        } else {
            self.queue.push_back(id);
        }
    }

    fn begin(&mut self, id: u64) {
        self.busy += 1;
        let takes_ns = self.takes.draw(self.busy, &mut self.rng);
        self.events.push(Reverse((self.now_ns + takes_ns, Event::Served(id))));
    }

    fn served(&mut self, id: u64) {
        self.busy -= 1;
        if let Some(next) = self.queue.pop_front() {
            self.begin(next);
        }
        let Some(asked) = self.asked.remove(&id) else { return };
        self.seen.took_ns.push(self.now_ns - asked.at_ns);
        self.seen.served[asked.priority as usize] += 1;
        let now_ns = self.now_ns - asked.shard as u64 * SECOND;
        let outcome = Outcome { well: Some(self.well), answered_ns: self.well.then_some(now_ns) };
        if let Some(pass) = asked.pass {
            pass.end(outcome, now_ns);
        }
    }

    /// What shards do when they are rung, and those who wait when they are woken.
    fn doors(&mut self) {
        loop {
            let mut quiet = true;
            for (n, (_, doors, rung)) in self.shards.iter().enumerate() {
                if rung.0.swap(false, Ordering::SeqCst) {
                    doors.serve(self.now_ns - n as u64 * SECOND);
                    quiet = false;
                }
            }
            while let Some(id) = self.woken.pop() {
                self.look(id);
                quiet = false;
            }
            if quiet {
                return;
            }
        }
    }

    fn look(&mut self, id: u64) {
        let Some(asked) = self.asked.get_mut(&id) else { return };
        let Some(waiting) = &mut asked.waiting else { return };
        let waker = Waker::from(Arc::new(Woken(id, Arc::clone(&self.woken))));
        match Pin::new(waiting).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {}
            Poll::Ready(Ok(pass)) => {
                (asked.waiting, asked.pass) = (None, Some(pass));
                self.let_in(id);
            }
            Poll::Ready(Err(cause)) => {
                asked.waiting = None;
                self.refused(id, cause);
            }
        }
    }

    fn refused(&mut self, id: u64, cause: Cause) {
        self.asked.remove(&id);
        *self.seen.refused.entry(cause).or_default() += 1;
    }
}

impl Seen {
    fn p99_ns(&mut self) -> u64 {
        let at = self.took_ns.len() * 99 / 100;
        *self.took_ns.select_nth_unstable(at).1
    }

    fn goodput(&self, length_ns: u64) -> f64 {
        self.took_ns.len() as f64 * SECOND as f64 / length_ns as f64 / CAPACITY
    }

    fn part(&self, priority: Priority) -> f64 {
        self.served[priority as usize] as f64 / self.arrived[priority as usize] as f64
    }
}

fn learning(caps: &mut Caps) {
    caps.concurrency = Some(concurrency::Settings {
        limit_min: 2,
        limit_max: 1000,
        limit_initial: 20,
        tolerance: 0.25,
        window_ns: 100 * MS,
    });
}

fn capped(caps: &mut Caps) {
    caps.exchanges_max = SERVERS as u32;
}

/// The p99 of a tenth of the load, without doors.
fn unloaded_ns(takes: Takes, rng: &mut Rng) -> u64 {
    World::new(takes, |_| {}, rng).run(CAPACITY / 10.0, 60 * SECOND).p99_ns()
}

#[test]
fn at_three_times_the_load_what_a_service_bears_comes_through_and_soon() {
    let mut rng = super::seeded();
    for takes in ALL {
        let unloaded_ns = unloaded_ns(takes, &mut rng);
        for (how, declared) in [("capped", capped as fn(&mut Caps)), ("learning", learning)] {
            let mut world = World::new(takes, declared, &mut rng);
            // Ordinary traffic first, from which is learnt, then the load begins at once.
            world.run(CAPACITY / 3.0, 10 * SECOND);
            let mut begin = world.run(3.0 * CAPACITY, SECOND);
            let mut seen = world.run(3.0 * CAPACITY, 29 * SECOND);
            let (goodput, p99) = (seen.goodput(29 * SECOND), seen.p99_ns() as f64 / unloaded_ns as f64);
            eprintln!(
                "{takes:?} {how}: goodput {goodput:.3}, p99 {p99:.2} of unloaded {:.1} ms (in the first second {:.2}), limit {}, \
                 {} waited, {} inside, {:?}",
                unloaded_ns as f64 / MS as f64,
                begin.p99_ns() as f64 / unloaded_ns as f64,
                world.caps.counts.exchanges.ceiling(),
                seen.waiting_max,
                seen.inside_max,
                seen.refused,
            );
            assert!(goodput >= 0.9, "{takes:?} {how}: {goodput}");
            assert!(p99 <= 2.0, "{takes:?} {how}: {p99}");
            // Nobody waits longer than the target, so no more than arrive in it, and those who wait for the timer.
            assert!(seen.waiting_max < 100, "{takes:?} {how}: {}", seen.waiting_max);
            // The load ends: a second later all is as it was.
            world.run(CAPACITY / 2.0, SECOND);
            let mut after = world.run(CAPACITY / 2.0, 10 * SECOND);
            let p99 = after.p99_ns() as f64 / unloaded_ns as f64;
            // Of what was learnt by chance, see the next one; a cap refuses nobody.
            let refused =
                after.refused.values().sum::<u64>() as f64 / after.arrived.iter().sum::<u64>() as f64;
            let bearable = if how == "capped" { 0.0 } else { 0.02 };
            assert!(p99 <= 1.5 && refused <= bearable, "{takes:?} {how}: {p99}, {:?}", after.refused);
        }
    }
}

/// Chance can leave a limit too low after the load: of 408 worlds in none, so in less than one of a hundred (95 %), and four of
/// twelve are then less than one run in a hundred thousand. Before only limits that keep exchanges out were halved to be measured, it was 28
/// of 120.
#[test]
fn a_limit_learnt_under_load_refuses_nobody_whom_the_service_bears() {
    let mut rng = super::seeded();
    let mut refusing = Vec::new();
    for _ in 0..12 {
        let mut world = World::new(Takes::Exponential, learning, &mut rng);
        world.run(CAPACITY / 3.0, 5 * SECOND);
        world.run(3.0 * CAPACITY, 10 * SECOND);
        world.run(CAPACITY / 2.0, SECOND);
        // Long enough for the baseline to be doubted several times.
        let seen = world.run(CAPACITY / 2.0, 40 * SECOND);
        let ceiling = world.caps.counts.exchanges.ceiling();
        eprintln!("limit {ceiling}, {:?} of {} refused", seen.refused, seen.arrived.iter().sum::<u64>());
        refusing.extend((!seen.refused.is_empty()).then_some(ceiling));
    }
    assert!(refusing.len() <= 3, "{refusing:?}");
}

#[test]
fn where_there_is_not_enough_for_all_the_important_are_served_and_the_sheddable_give_way() {
    let mut rng = super::seeded();
    let mut world = World::new(Takes::Exponential, capped, &mut rng);
    world.priorities = &[
        Priority::Critical,
        Priority::Default,
        Priority::Default,
        Priority::Sheddable,
        Priority::Sheddable,
        Priority::Sheddable,
    ];
    world.run(2.0 * CAPACITY, SECOND);
    let seen = world.run(2.0 * CAPACITY, 29 * SECOND);
    let parts =
        [Priority::Critical, Priority::Default, Priority::Sheddable].map(|priority| seen.part(priority));
    eprintln!("{parts:?}, goodput {:.3}", seen.goodput(29 * SECOND));
    // A third of what the service bears is critical, two thirds are ordinary, as much again is neither.
    assert!(parts[0] >= 0.99 && parts[1] >= 1.5 * parts[2], "{parts:?}");
    assert!(seen.goodput(29 * SECOND) >= 0.9);
}

/// Four fifths of what the service bears is critical and comes to one of four shards, six times as much is not and comes to the others.
#[test]
fn the_important_are_served_though_all_of_them_come_to_one_shard() {
    let mut rng = super::seeded();
    let mut world = World::new(Takes::Exponential, capped, &mut rng);
    world.apart = true;
    world.priorities = &[
        Priority::Critical,
        Priority::Default,
        Priority::Sheddable,
        Priority::Sheddable,
        Priority::Sheddable,
        Priority::Sheddable,
        Priority::Sheddable,
    ];
    let rate = 0.8 * 7.0 * CAPACITY;
    world.run(rate, SECOND);
    let seen = world.run(rate, 29 * SECOND);
    let parts = Priority::ALL.map(|priority| seen.part(priority));
    eprintln!("{parts:?}, goodput {:.3}", seen.goodput(29 * SECOND));
    // What is left for all others is a fifth, of which the sheddable get hardly any.
    assert!(parts[0] >= 0.99 && parts[2] <= 0.01, "{parts:?}");
    assert!(seen.goodput(29 * SECOND) >= 0.95);
}

#[test]
fn a_service_that_fails_is_left_room_and_gets_all_again_when_it_has_recovered() {
    let mut rng = super::seeded();
    let settings =
        admission::Settings { success_min: 0.95, refuse_max: 0.8, window_ns: 10 * SECOND, exchanges_min: 20 };
    let mut world = World::new(Takes::Even, |caps| caps.admission = Some(settings), &mut rng);
    let rate = CAPACITY / 2.0;
    assert!(world.run(rate, 20 * SECOND).refused.is_empty());
    world.well = false;
    world.run(rate, 10 * SECOND);
    let failing = world.run(rate, 20 * SECOND);
    let part = failing.refused[&Cause::NotAdmitted] as f64 / failing.arrived.iter().sum::<u64>() as f64;
    // The ceiling: what is let in beyond finds out whether it is over. 16 000 arrivals: 5 σ are 0.016.
    assert!((0.78..=0.82).contains(&part), "{part}");
    world.well = true;
    // All failures have left the window then.
    world.run(rate, 11 * SECOND);
    assert!(world.run(rate, 10 * SECOND).refused.is_empty());
}
