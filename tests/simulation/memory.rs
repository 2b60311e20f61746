//! More callers than there is memory for, against the decisions of shards and control: whatever comes, and however late control
//! looks, what the process holds stays below its ceiling, and who comes afterwards is served.

use std::sync::Arc;

use fastrand::Rng;
use ringmesh::route::Priority;
use ringmesh::shard::link::{Link, Load, Pressure, Since, Spoken, room};

use super::seeded;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What it really takes: as measured, or a little more.
mod real {
    use super::KIB;

    pub(super) const PROCESS: u64 = 12 * 1024 * KIB;
    pub(super) const CALLER: u64 = 5 * KIB;
    /// What a caller sent, and what is made of it for the service.
    pub(super) const REQUEST: u64 = 8 * KIB;
    /// The connection with the service, and a page of what it answers.
    pub(super) const ANSWER: u64 = 9 * KIB;
    /// What comes of a body at once at most.
    pub(super) const BURST: u64 = 64 * KIB;
}

const SMALL: u64 = 16 * KIB;
const LARGE: u64 = 128 * KIB;

#[derive(Clone, Copy, PartialEq)]
enum Caller {
    /// Has connected, and is given a buffer for what it says.
    Fresh,
    /// Holds no buffer.
    Quiet,
    /// Is being told that it is refused.
    Refused,
    /// Its request is with the service.
    Waits,
    /// It is being answered, by way of a large buffer or a small one, of which so much was written to.
    Answered { large: bool, written: u64 },
}

impl Caller {
    fn load(self) -> Load {
        let caller = Load { connections: 1, ..Load::default() };
        match self {
            Self::Quiet => caller,
            Self::Fresh => Load { buffers: SMALL, heads: 1, ..caller },
            Self::Refused => Load { buffers: 2 * SMALL, ..caller },
            Self::Waits => Load { buffers: 2 * SMALL, awaited: 1, ..caller },
            Self::Answered { large: false, .. } => Load { connections: 2, buffers: 3 * SMALL, ..caller },
            Self::Answered { large: true, .. } => {
                Load { connections: 2, buffers: 2 * SMALL + LARGE, large: 1, ..caller }
            }
        }
    }

    fn resident(self) -> u64 {
        match self {
            Self::Quiet | Self::Fresh => real::CALLER,
            Self::Waits | Self::Refused => real::CALLER + real::REQUEST,
            Self::Answered { written, .. } => real::CALLER + real::REQUEST + real::ANSWER + written,
        }
    }
}

struct Shard {
    link: Arc<Link>,
    since: Since,
    callers: Vec<Caller>,
    load: Load,
    resident: u64,
}

impl Shard {
    fn new(number: u16) -> Self {
        let link = Link::new(number).expect("a link").0;
        Self { link, since: Since::default(), callers: Vec::new(), load: Load::default(), resident: 0 }
    }

    fn spoken(&mut self) -> Spoken {
        let load = self.load;
        let (spoken, since) = self.link.spoken(self.since, || load).expect("there is a ceiling");
        self.since = since;
        spoken
    }

    fn pressure(&mut self) -> Pressure {
        let spoken = self.spoken();
        self.link.pressure().with(spoken)
    }

    fn is_tight(&mut self) -> bool {
        let spoken = self.spoken();
        self.link.pressure().is_tight(spoken)
    }

    fn count(&mut self, caller: Caller, comes: bool) {
        let load = caller.load();
        let add = |to: &mut u64, n: u64| *to = if comes { *to + n } else { *to - n };
        add(&mut self.load.connections, load.connections);
        add(&mut self.load.buffers, load.buffers);
        add(&mut self.load.large, load.large);
        add(&mut self.load.heads, load.heads);
        add(&mut self.load.awaited, load.awaited);
        add(&mut self.resident, caller.resident());
    }

    fn becomes(&mut self, n: usize, caller: Caller) {
        self.count(self.callers[n], false);
        self.count(caller, true);
        self.callers[n] = caller;
    }

    /// As many as may come until somebody is refused; with requests or without. How many were let in.
    fn come(&mut self, count: usize, ask: bool) -> usize {
        for n in 0..count {
            if self.pressure().refuses_connections() {
                return n;
            }
            self.callers.push(Caller::Fresh);
            self.count(Caller::Fresh, true);
            if ask {
                self.ask(self.callers.len() - 1);
            }
        }
        count
    }

    fn ask(&mut self, n: usize) {
        // The buffers are taken before it is known what the request is.
        self.becomes(n, Caller::Refused);
        if !self.pressure().refuses(Priority::Default) {
            self.becomes(n, Caller::Waits);
        }
    }

    /// Something happens to some.
    fn step(&mut self, rng: &mut Rng, mood: &Mood) {
        for n in (0..self.callers.len()).rev() {
            match self.callers[n] {
                Caller::Fresh if rng.f64() < mood.asks => self.ask(n),
                Caller::Quiet if rng.f64() < mood.asks => {
                    if self.pressure() < Pressure::All {
                        self.ask(n);
                    } else {
                        self.count(Caller::Quiet, false);
                        self.callers.swap_remove(n);
                    }
                }
                Caller::Fresh | Caller::Refused if rng.f64() < 0.1 => self.becomes(n, Caller::Quiet),
                Caller::Waits if rng.f64() < mood.answers => {
                    let large = !self.is_tight();
                    self.becomes(n, Caller::Answered { large, written: 0 });
                }
                Caller::Answered { .. } if rng.f64() < mood.ends => self.becomes(n, Caller::Quiet),
                Caller::Answered { large: true, written } if rng.f64() < mood.bodies => {
                    // It came into the buffer that there was; before the next comes a small one takes its place.
                    let written = written.max(rng.u64(..real::BURST));
                    self.becomes(n, Caller::Answered { large: true, written });
                    if self.is_tight() {
                        self.becomes(n, Caller::Answered { large: false, written: 0 });
                    }
                }
                _ => {}
            }
        }
    }
}

/// How often what happens, of a caller in a step.
struct Mood {
    asks: f64,
    answers: f64,
    bodies: f64,
    ends: f64,
}

fn resident(shards: &[Shard]) -> u64 {
    real::PROCESS + shards.iter().map(|shard| shard.resident).sum::<u64>()
}

#[test]
fn whatever_comes_the_process_stays_below_its_ceiling_and_serves_again() {
    let mut rng = seeded();
    for run in 0..16 {
        let ceiling = [48, 64, 96, 128][run % 4] * MIB;
        let mut shards: Vec<Shard> = (0..rng.u16(1..4)).map(Shard::new).collect();
        let (mut pressure, mut peak, mut let_in, mut refused) = (Pressure::None, 0, 0, 0);
        let mut look_at = 0;
        for now in 0..150 {
            // Every now and then everything changes: answers come together after nothing came for long.
            let one = |rng: &mut Rng| [0.0, 0.01, 0.9][rng.usize(..3)];
            let mood =
                Mood { asks: one(&mut rng), answers: one(&mut rng), bodies: one(&mut rng), ends: 0.01 };
            let crowd = if now % 10 == 0 { rng.usize(..3000) } else { rng.usize(..20) };
            let ask = rng.bool();
            let mut happens = |shards: &mut [Shard], rng: &mut Rng| {
                for shard in shards.iter_mut() {
                    let came = shard.come(crowd, ask);
                    let_in += came;
                    refused += crowd - came;
                    shard.step(rng, &mood);
                }
                peak = peak.max(resident(shards));
            };
            if now < look_at {
                happens(&mut shards, &mut rng);
                continue;
            }
            // Control looks, and things happen meanwhile: before it has seen, and before it has told.
            shards.iter().for_each(|shard| shard.link.looks());
            let late = |rng: &mut Rng| now > 0 && rng.bool();
            if late(&mut rng) {
                happens(&mut shards, &mut rng);
            }
            let used = resident(&shards);
            if late(&mut rng) {
                happens(&mut shards, &mut rng);
            }
            pressure = pressure.next(used, ceiling);
            let count = shards.len() as u64;
            for shard in &shards {
                shard.link.press(pressure);
                shard.link.looked(Some(room(used, ceiling) / count));
            }
            look_at = now + rng.u64(1..8);
        }
        assert!(peak <= ceiling, "run {run}: {} KiB of {}", peak / KIB, ceiling / KIB);
        assert!(peak > ceiling / 2 && let_in > 100 && refused > 0, "run {run}: {peak} {let_in} {refused}");
        // All go, and one comes.
        for shard in &mut shards {
            *shard =
                Shard { link: Arc::clone(&shard.link), since: shard.since, ..Shard::new(shard.link.shard) };
        }
        let used = resident(&shards);
        pressure = pressure.next(used, ceiling);
        let count = shards.len() as u64;
        for shard in &mut shards {
            shard.link.looks();
            shard.link.press(pressure);
            shard.link.looked(Some(room(used, ceiling) / count));
            assert_eq!(shard.come(1, true), 1);
            assert!(shard.callers[0] == Caller::Waits, "run {run}");
        }
    }
}
