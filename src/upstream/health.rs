//! What all shards together know of the health of a service's endpoints: atomics that shards write and control reads.
//! Nobody waits for anybody; a write that is lost in a race is made again by the next attempt.
//!
//! Control makes a [`Health`] for each service of a snapshot and keeps it over reloads for the endpoints that stay
//! ([`Health::kept`]). Its memory is taken when the first shard uses the service. The rules by which an endpoint is ejected
//! and comes back are in `upstream::breaker`; this file holds what they write, and refuses to decide.
//!
//! Times are those of `shard::clock`, which is the same for all shards of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use once_cell::race::OnceBox;

use super::spec::{Endpoint, former_places};

/// The health of a service's endpoints, as far as somebody has used them.
#[derive(Debug, Default)]
pub struct Health {
    known: OnceBox<Known>,
}

/// What is known of a service that is in use.
#[derive(Debug)]
pub struct Known {
    /// By the index of the endpoint.
    pub endpoints: Box<[Arc<Standing>]>,
    /// Of all of them together; also over reloads.
    pub counts: Arc<Counts>,
}

/// What happened to the endpoints of a service.
#[derive(Debug, Default)]
pub struct Counts {
    /// Counts up with each change of a [`Word`], so that shards need look at no endpoint until it does.
    pub changes: AtomicU64,
    /// Ejections, by [`Reason`].
    pub ejections: [AtomicU64; Reason::ALL.len()],
    /// Endpoints that came back.
    pub returns: AtomicU64,
    /// Ejections that were due and not made: as many as may be are ejected, or the others are no better.
    pub spared: AtomicU64,
    /// How often so few were healthy that all were used.
    pub panics: AtomicU64,
    /// Whether it is so now.
    pub panicking: AtomicBool,
    /// Probes that were as they should be.
    pub probes_passed: AtomicU64,
    /// Those that were not.
    pub probes_failed: AtomicU64,
}

/// Why an endpoint is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// It takes no connections.
    Connect = 1,
    /// Exchanges in a row ended without an answer: reset, closed, or the time was up.
    NoAnswer = 2,
    /// Answers in a row were failures.
    Failures = 3,
    /// Too many of the answers of a while were failures.
    FailureRate = 4,
    /// It answers far more slowly than the others.
    Slow = 5,
    /// It has long given no answer while the others give theirs.
    Pending = 6,
}

impl Reason {
    /// Every reason, for tables.
    pub const ALL: [Self; 6] =
        [Self::Connect, Self::NoAnswer, Self::Failures, Self::FailureRate, Self::Slow, Self::Pending];

    /// The word used in log, metrics and admin.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::NoAnswer => "no_answer",
            Self::Failures => "failures",
            Self::FailureRate => "failure_rate",
            Self::Slow => "slow",
            Self::Pending => "pending",
        }
    }

    const fn of(bits: u64) -> Option<Self> {
        match bits {
            1 => Some(Self::Connect),
            2 => Some(Self::NoAnswer),
            3 => Some(Self::Failures),
            4 => Some(Self::FailureRate),
            5 => Some(Self::Slow),
            6 => Some(Self::Pending),
            _ => None,
        }
    }
}

/// What fails in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Streak {
    /// No connection could be made.
    Unreachable = 0,
    /// There was no answer.
    Unanswered = 1,
    /// The answer was a failure.
    Failure = 2,
}

/// What probes say of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Probed {
    /// There are none.
    Unprobed = 0,
    /// Nothing yet, and it is used until they do.
    Unknown = 1,
    /// Nothing yet, and it is passed over until they do.
    Awaited = 2,
    /// It is well.
    Passing = 3,
    /// It is not.
    Failing = 4,
}

impl Probed {
    /// Whether it is passed over for that.
    pub const fn is_out(self) -> bool {
        matches!(self, Self::Awaited | Self::Failing)
    }
}

/// One endpoint. What every attempt reads lies apart from what is written while all is well.
#[derive(Debug, Default)]
pub struct Standing {
    read: Read,
    written: Written,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Read {
    word: AtomicU64,
    /// Connections in a row that could not be made, exchanges without an answer, and answers that were failures: 21 bits
    /// each, from below.
    streaks: AtomicU64,
    /// A [`Probed`].
    probed: AtomicU8,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Written {
    window: Window,
    answered_at_ns: AtomicU64,
    overtaken_before_ns: AtomicU64,
    stuck_before_ns: AtomicU64,
    stuck: AtomicU32,
    latency_us: AtomicU32,
}

impl Health {
    /// What is known; `None` until somebody has used the service.
    pub fn known(&self) -> Option<&Known> {
        self.known.get()
    }

    /// What is known, from now on.
    pub fn of(&self, endpoints: usize) -> &Known {
        self.known.get_or_init(|| {
            let endpoints = (0..endpoints).map(|_| Arc::default()).collect();
            Box::new(Known { endpoints, counts: Arc::default() })
        })
    }

    /// The health of the same service with other endpoints: those that stay keep what is known of them.
    pub fn kept(old: &Arc<Self>, was: &[Endpoint], is: &[Endpoint]) -> Arc<Self> {
        let same = was.len() == is.len() && was.iter().zip(is).all(|(a, b)| a.address == b.address);
        if same {
            return Arc::clone(old);
        }
        let new = Self::default();
        if let Some(known) = old.known() {
            let endpoints = former_places(was, is)
                .into_iter()
                .map(|place| place.and_then(|n| known.endpoints.get(n)).map(Arc::clone).unwrap_or_default())
                .collect();
            let counts = Arc::clone(&known.counts);
            counts.changed();
            // It is new: nobody can have been before.
            let _ = new.known.set(Box::new(Known { endpoints, counts }));
        }
        Arc::new(new)
    }
}

impl Counts {
    /// A word has changed.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Ejections for that reason.
    pub fn ejections(&self, reason: Reason) -> &AtomicU64 {
        &self.ejections[reason as usize - 1]
    }
}

impl Standing {
    /// Whether, why and until when it is passed over.
    pub fn word(&self) -> Word {
        Word(self.read.word.load(Ordering::Acquire))
    }

    /// Changes it, unless somebody was faster.
    pub fn change(&self, from: Word, to: Word) -> bool {
        self.read.word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// One more of a streak: how many there are in a row.
    pub fn failed(&self, streak: Streak) -> u32 {
        const BITS: u32 = 21;
        let shift = streak as u32 * BITS;
        // One runs over into the next after two million in a row, which adds one to that.
        let before = self.read.streaks.fetch_add(1 << shift, Ordering::Relaxed);
        (before >> shift & ((1 << BITS) - 1)) as u32 + 1
    }

    /// What probes say.
    pub fn probed(&self) -> Probed {
        match self.read.probed.load(Ordering::Acquire) {
            1 => Probed::Unknown,
            2 => Probed::Awaited,
            3 => Probed::Passing,
            4 => Probed::Failing,
            _ => Probed::Unprobed,
        }
    }

    /// What probes say from now on; whether it is something else than before.
    pub fn set_probed(&self, probed: Probed) -> bool {
        self.read.probed.swap(probed as u8, Ordering::AcqRel) != probed as u8
    }

    /// It takes connections, as a probe has found. If it is passed over because it took none, it is used again; what it answers
    /// to requests only they find out. Whether something has changed.
    pub fn bring_back(&self) -> bool {
        let word = self.word();
        // Its memory of ejections begins to fade when this one would have been over.
        let is_back = word.reason() == Some(Reason::Connect)
            && self.change(word, Word::used(word.level(), word.at_ns()));
        if is_back {
            self.forget();
        }
        is_back
    }

    /// An answer that is none: no streak goes on. Writes nothing where there is none. A failure that another shard tells at the same
    /// moment came last: it and the streak that it belongs to stay.
    pub fn succeeded(&self) {
        let streaks = self.read.streaks.load(Ordering::Relaxed);
        if streaks != 0 {
            let _ = self.read.streaks.compare_exchange(streaks, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// It would be ejected and is not: it must fail as often again before that is looked at again. It goes on failing.
    pub fn spare(&self) {
        self.read.streaks.store(1, Ordering::Relaxed);
    }

    /// Whether its last exchange failed.
    pub fn is_failing(&self) -> bool {
        self.read.streaks.load(Ordering::Relaxed) != 0
    }

    /// Begins anew.
    pub fn forget(&self) {
        self.read.streaks.store(0, Ordering::Relaxed);
        self.written.window.clear();
        self.written.latency_us.store(0, Ordering::Relaxed);
    }

    /// What it did in the last while.
    pub fn window(&self) -> &Window {
        &self.written.window
    }

    /// It has answered, with whatever. Written about every 8 ms.
    pub fn answered(&self, now_ns: u64) {
        const PACE_NS: u64 = 1 << 23;
        let at = &self.written.answered_at_ns;
        if now_ns.saturating_sub(at.load(Ordering::Relaxed)) >= PACE_NS {
            at.store(now_ns, Ordering::Relaxed);
        }
    }

    /// When it answered last, to about 8 ms; 0 for never.
    pub fn answered_at_ns(&self) -> u64 {
        self.written.answered_at_ns.load(Ordering::Relaxed)
    }

    /// An attempt that began no earlier than that has its answer. Written once for each look of a shard.
    pub fn overtook(&self, since_ns: u64) {
        let before = &self.written.overtaken_before_ns;
        if before.load(Ordering::Relaxed) < since_ns {
            before.fetch_max(since_ns, Ordering::Relaxed);
        }
    }

    /// What began before that says nothing by waiting: one that began later has its answer, on this shard or another.
    pub fn overtaken_before_ns(&self) -> u64 {
        self.written.overtaken_before_ns.load(Ordering::Relaxed)
    }

    /// So many more (or fewer) attempts wait for an answer for too long.
    pub fn add_stuck(&self, before: u32, now: u32) {
        if now > before {
            self.written.stuck.fetch_add(now - before, Ordering::Relaxed);
        } else if before > now {
            self.written.stuck.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Some of them began only just before that. Said before they are added.
    pub fn stuck_before(&self, since_ns: u64) {
        self.written.stuck_before_ns.fetch_max(since_ns, Ordering::Relaxed);
    }

    /// Attempts that wait for an answer for too long, on all shards. None where one that began later than all of them has its
    /// answer: a shard that has nothing else to do takes back what it has said only when it has.
    pub fn stuck(&self) -> u32 {
        let stuck = self.written.stuck.load(Ordering::Relaxed);
        let before_ns = self.written.stuck_before_ns.load(Ordering::Relaxed);
        if stuck > 0 && self.overtaken_before_ns() >= before_ns { 0 } else { stuck }
    }

    /// Takes a shard's mean of so many latencies in. A write that is lost in a race is no matter.
    pub fn add_latency(&self, mean_us: u32, answers: u32) {
        /// Long enough that a shard with few answers does not set it.
        const ANSWERS: f32 = 32.0;
        let before = self.latency_us();
        let part = if before == 0 { 1.0 } else { answers as f32 / (answers as f32 + ANSWERS) };
        let after = before as f32 + (mean_us as f32 - before as f32) * part;
        self.written.latency_us.store((after as u32).max(1), Ordering::Relaxed);
    }

    /// How long it takes for an answer that is no failure; 0 before the first.
    pub fn latency_us(&self) -> u32 {
        self.written.latency_us.load(Ordering::Relaxed)
    }
}

/// An endpoint's state, in one word, so that it changes at once: why it is passed over (nothing: it is not), until when,
/// how often in a row, and how far trials have come. For one that is not passed over, since when.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    const ON_TRIAL: u64 = 1 << 4;
    const ANSWERED: u64 = 1 << 5;
    const SUCCESSES: u32 = 6;
    const LEVEL: u32 = 12;
    const AT: u32 = 18;
    /// The time is kept in 2¹⁶ ns: 65 µs, for 146 years.
    const UNIT: u32 = 16;
    /// Six bits.
    const SIXTY_THREE: u64 = 63;

    /// It is used, since then; so often in a row it was ejected before.
    pub const fn used(level: u8, since_ns: u64) -> Self {
        Self((since_ns >> Self::UNIT) << Self::AT | (level as u64 & Self::SIXTY_THREE) << Self::LEVEL)
    }

    /// It is passed over until then.
    pub const fn ejected(reason: Reason, level: u8, until_ns: u64) -> Self {
        Self(Self::used(level, until_ns).0 | reason as u64)
    }

    /// A trial finds out for all others, which wait for it until then.
    #[must_use]
    pub const fn on_trial(self, level: u8, until_ns: u64) -> Self {
        Self(
            Self::used(level, until_ns).0
                | self.0 & (0xf | Self::SIXTY_THREE << Self::SUCCESSES)
                | Self::ON_TRIAL,
        )
    }

    /// The trial has got an answer, and goes on.
    #[must_use]
    pub const fn answered(self) -> Self {
        Self(self.0 | Self::ANSWERED)
    }

    /// One more trial was good: the next one may begin.
    #[must_use]
    pub fn one_more(self, now_ns: u64) -> Self {
        let successes = u64::from(self.successes()).saturating_add(1).min(Self::SIXTY_THREE);
        Self(Self::used(self.level(), now_ns).0 | self.0 & 0xf | successes << Self::SUCCESSES)
    }

    /// The trial was broken off: another one may begin.
    #[must_use]
    pub fn again(self, now_ns: u64) -> Self {
        Self(Self::used(self.level(), now_ns).0 | self.0 & (0xf | Self::SIXTY_THREE << Self::SUCCESSES))
    }

    /// Why it is passed over; `None` where it is used.
    pub const fn reason(self) -> Option<Reason> {
        Reason::of(self.0 & 0xf)
    }

    /// Whether it is used.
    pub const fn is_used(self) -> bool {
        self.0 & 0xf == 0
    }

    /// Whether a trial is going on.
    pub const fn is_on_trial(self) -> bool {
        self.0 & Self::ON_TRIAL != 0
    }

    /// Whether the trial that is going on has got an answer.
    pub const fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED != 0
    }

    /// Trials in a row that were good.
    pub const fn successes(self) -> u8 {
        (self.0 >> Self::SUCCESSES & Self::SIXTY_THREE) as u8
    }

    /// How often it was ejected, trials that failed included, as far as that is not forgotten.
    pub const fn level(self) -> u8 {
        (self.0 >> Self::LEVEL & Self::SIXTY_THREE) as u8
    }

    /// Until when it is passed over; of one that is used, since when.
    pub const fn at_ns(self) -> u64 {
        self.0 >> Self::AT << Self::UNIT
    }
}

impl Default for Word {
    fn default() -> Self {
        Self::used(0, 0)
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} level {} at {} trial {} {} of {}",
            self.reason().map_or("used", Reason::label),
            self.level(),
            self.at_ns(),
            self.is_on_trial(),
            self.is_answered(),
            self.successes()
        )
    }
}

/// Answers of the last while, in ten parts of it.
#[derive(Debug, Default)]
pub struct Window([AtomicU64; Self::PARTS as usize]);

/// Answers (and exchanges without one), and of those what failed and what was slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub all: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were slow.
    pub slow: u32,
}

impl Window {
    /// How many parts there are.
    pub const PARTS: u64 = 10;

    /// Adds to that part, counted from the beginning of time. More than 65 535 in a part count as proportions.
    pub fn add(&self, part: u64, more: Tally) {
        let slot = &self.0[(part % Self::PARTS) as usize];
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (number, before) = unpack(word);
            let mut sum = if number == part as u16 { before } else { Tally::default() };
            sum.all = sum.all.saturating_add(more.all);
            sum.failed = sum.failed.saturating_add(more.failed);
            sum.slow = sum.slow.saturating_add(more.slow);
            while sum.all > u32::from(u16::MAX) {
                sum = Tally { all: sum.all / 2, failed: sum.failed / 2, slow: sum.slow / 2 };
            }
            Some(pack(part as u16, sum))
        });
    }

    /// All that is not older than ten parts.
    pub fn sum(&self, part: u64) -> Tally {
        self.0.iter().fold(Tally::default(), |sum, slot| {
            let (number, tally) = unpack(slot.load(Ordering::Relaxed));
            if u64::from((part as u16).wrapping_sub(number)) >= Self::PARTS {
                return sum;
            }
            Tally { all: sum.all + tally.all, failed: sum.failed + tally.failed, slow: sum.slow + tally.slow }
        })
    }

    fn clear(&self) {
        for slot in &self.0 {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

fn unpack(word: u64) -> (u16, Tally) {
    let [number, all, failed, slow] = [48, 32, 16, 0].map(|shift| (word >> shift) as u16);
    (number, Tally { all: all.into(), failed: failed.into(), slow: slow.into() })
}

fn pack(number: u16, tally: Tally) -> u64 {
    let part = |n: u32| u64::from(n.min(u16::MAX.into()));
    u64::from(number) << 48 | part(tally.all) << 32 | part(tally.failed) << 16 | part(tally.slow)
}

#[cfg(test)]
mod tests {
    use super::super::spec::testing::endpoint;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_word_says_what_was_put_into_it() {
        let unit = 1 << Word::UNIT;
        for reason in Reason::ALL {
            for level in [0, 1, 63] {
                let at = 123_456 * SECOND;
                let word = Word::ejected(reason, level, at);
                assert_eq!((word.reason(), word.level()), (Some(reason), level));
                assert!(at - word.at_ns() < unit && !word.is_on_trial() && !word.is_used());
                let trial = word.on_trial(level, at + SECOND);
                assert!(trial.is_on_trial() && !trial.is_answered() && trial.at_ns() > word.at_ns());
                assert!(trial.answered().is_answered());
                let once = trial.answered().one_more(at);
                assert_eq!((once.successes(), once.reason(), once.is_on_trial()), (1, Some(reason), false));
                let second = once.on_trial(level, at).again(at);
                assert_eq!((second.successes(), second.is_on_trial()), (1, false));
                assert_eq!((0..100).fold(once, |word, _| word.one_more(at)).successes(), 63);
            }
        }
        assert!(Word::used(5, SECOND).is_used());
        assert_eq!(Reason::ALL.map(|reason| Reason::of(reason as u64)), Reason::ALL.map(Some));
    }

    #[test]
    fn a_window_forgets_what_is_older_than_itself_and_keeps_proportions() {
        let window = Window::default();
        let one = Tally { all: 10, failed: 4, slow: 1 };
        for part in 100..115 {
            window.add(part, one);
        }
        assert_eq!(window.sum(114), Tally { all: 100, failed: 40, slow: 10 });
        assert_eq!(window.sum(120), Tally { all: 40, failed: 16, slow: 4 });
        assert_eq!(window.sum(124), Tally::default());
        // Also where the number of the part runs over.
        window.add(65_535, one);
        window.add(65_536, one);
        assert_eq!(window.sum(65_536).all, 20);
        let busy = Window::default();
        busy.add(7, Tally { all: 1_000_000, failed: 500_000, slow: 250_000 });
        let sum = busy.sum(7);
        assert!(
            sum.all <= 65_535 && sum.failed.abs_diff(sum.all / 2) <= 2 && sum.slow.abs_diff(sum.all / 4) <= 2
        );
    }

    #[test]
    fn endpoints_that_stay_keep_their_health() {
        let list = |ports: &[u16]| -> Vec<Endpoint> { ports.iter().map(|port| endpoint(*port, 1)).collect() };
        let old = Arc::new(Health::default());
        // Nobody has used it: nothing to keep.
        assert!(Health::kept(&old, &list(&[1, 2]), &list(&[2])).known().is_none());
        let known = old.of(3);
        assert!(known.endpoints[1].change(Word::default(), Word::ejected(Reason::Slow, 2, SECOND)));
        known.counts.returns.fetch_add(7, Ordering::Relaxed);
        assert!(Arc::ptr_eq(&old, &Health::kept(&old, &list(&[1, 2, 3]), &list(&[1, 2, 3]))));
        let new = Health::kept(&old, &list(&[1, 2, 3]), &list(&[9, 2]));
        let kept = new.known().unwrap();
        assert_eq!(kept.endpoints.len(), 2);
        assert!(Arc::ptr_eq(&kept.endpoints[1], &known.endpoints[1]));
        assert!(kept.endpoints[0].word().is_used());
        assert_eq!(kept.counts.returns.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn an_endpoint_in_use_costs_three_cache_lines() {
        assert_eq!(size_of::<Standing>(), 192);
        assert_eq!(size_of::<Health>(), 8);
    }
}
