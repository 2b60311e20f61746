//! Which endpoints of a service are passed over because they fail, for how long, and how they come back. One [`Breaker`]
//! per shard and service; what it finds lies in `upstream::health`, for all shards.
//!
//! Pure: time is an argument, randomness a generator that it is given, so that all of it is shown by simulation
//! (tests/simulation.rs), with one shard and with many.
//!
//! # Ejection
//! - **connect**: no connection could be made, as often in a row as is configured (once, by default); of many attempts that
//!   began before, one counts.
//! - **`no_answer`**, **failures**: so many exchanges in a row without an answer, or answers that are failures. The streaks
//!   are one for all shards: a success on any of them ends both.
//! - **`failure_rate`**: of the answers of a window, if they are enough. A shard adds its failures at once and its successes
//!   before that, or several times a second.
//! - **slow**: half of the answers of a window took `slow_factor` times as long as the median of the endpoints, and longer
//!   than `slow_min`.
//! - **pending**: `pending_min` attempts wait for that long, and nothing has been answered meanwhile and none that began
//!   later, on whichever shard, while others answer. No timeout need run out. What is waited for is an answer to a request that has been sent:
//!   who uploads slowly counts for nothing.
//!
//! But for the first, which needs no comparison, an endpoint is ejected only if at least half of the others that are used
//! are well (their last exchange was good, and nobody waits): when all fail alike, it is not the endpoint. And only if
//! no more than `ejected_percent_max` are ejected then, or it is the only one.
//!
//! # The way back
//! When the time is over, one attempt finds out for all others and all shards, which go on passing the endpoint over. It
//! is the next attempt of any exchange, its first. `trial_requests` good ones in a row, and the endpoint is used again; one
//! that fails, and it is passed over for longer. A trial that has an answer and goes on, such as a stream, is good when
//! the time would be over again. What is remembered of ejections falls by one for each window without one.
//!
//! # Probes, and endpoints that drain
//! An endpoint that fails its probes, or waits for its first one, is passed over like one that is ejected, without trials. One
//! that is to drain is passed over always, unless no other is left.
//!
//! # Panic
//! When of the endpoints that take connections fewer than `panic_percent` are not out, those are used all. Attempts on
//! them are trials, too, as far as they succeed. Where no other is left, any is used.
//!
//! Refuses to know what a status means (`proxy` judges), and to choose among the endpoints that are left (`balance`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use smallvec::SmallVec;

use super::health::{Health, Known, Reason, Standing, Streak, Tally, Word};
use super::spec;

/// One shard's part of watching over a service's endpoints.
#[derive(Debug)]
pub struct Breaker {
    rules: Arc<spec::Breaker>,
    health: Arc<Health>,
    rng: Rng,
    /// By endpoint.
    locals: Box<[Local]>,
    /// Endpoints that get nothing new, in order.
    drained: Box<[u32]>,
    /// Endpoints that are not simply used.
    out: Vec<u32>,
    /// Those that were in `out` and are used again, until somebody asks.
    returned: Vec<u32>,
    /// As `Counts::changes` was when `out` was made.
    seen: u64,
    panicking: bool,
    /// Counts looks, so that the age of an attempt can be told.
    generation: u32,
    looked_at_ns: u64,
    look_at_ns: u64,
    /// By age in looks: no attempt of that age began before then.
    since_ns: [u64; AGES],
    /// What is slow at present.
    slow_ns: u64,
    changes: SmallVec<[Change; 2]>,
    changes_lost: u64,
}

/// What one shard has seen of one endpoint and not told yet.
#[derive(Debug, Clone, Default)]
struct Local {
    /// Attempts that wait for an answer, by age in looks; the last are those that have waited too long.
    pending: [u32; AGES],
    /// Those that wait and began before this look: they are no longer counted, because one that began later has its answer.
    overtaken_before: u32,
    overtaken: u32,
    /// How many of the last are told.
    stuck_told: u32,
    good: u32,
    slow: u32,
    latency_us: u64,
}

/// Ages told apart: a look lasts a third of what is slow, so that what has become four looks old has waited for three.
const AGES: usize = 5;
const OLD: usize = AGES - 1;
/// Between two looks for each endpoint: with 10 000 of them a look takes some 100 µs, and a thousandth of the time.
const LOOK_PER_ENDPOINT_NS: u64 = 20_000;
/// Endpoints that others are compared with.
const PEERS_MAX: usize = 64;
/// Changes that wait to be told.
const CHANGES_MAX: usize = 64;

/// An attempt as the breaker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Begun {
    pub(super) generation: u32,
    pub(super) role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Role {
    /// On an endpoint that is used.
    #[default]
    Usual,
    /// It finds out whether the endpoint is well again.
    Trial,
    /// On an endpoint that is passed over, because no other was left.
    LastResort,
}

/// What an attempt says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Good {
        /// From the request's first byte sent to the response's first byte received.
        latency_ns: u64,
    },
    /// No connection could be made.
    Unreachable,
    /// There was no answer: reset, closed, or the service's time was up.
    Unanswered,
    /// The time of the caller or the route was up after so long; whether that was short is no fault of the endpoint.
    OutOfTime {
        /// How long it was.
        after_ns: u64,
    },
    /// It answered that it failed, or the answer broke off.
    Failure,
    /// Nothing.
    Nothing,
}

/// An endpoint that was ejected, or is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Its index.
    pub endpoint: u32,
    /// Why it was ejected, for how long; `None`: it is used again.
    pub ejected: Option<(Reason, u64)>,
}

impl Breaker {
    /// A breaker for a service with so many endpoints, of which these get nothing new (in order).
    pub fn new(
        rules: Arc<spec::Breaker>,
        health: Arc<Health>,
        endpoints: usize,
        drained: Box<[u32]>,
        rng: Rng,
    ) -> Self {
        // The memory is there before the first attempt.
        let _ = health.of(endpoints);
        Self {
            rules,
            health,
            rng,
            locals: vec![Local::default(); endpoints].into(),
            drained,
            out: Vec::new(),
            returned: Vec::new(),
            seen: 0,
            panicking: false,
            generation: 0,
            looked_at_ns: 0,
            look_at_ns: 0,
            since_ns: [0; AGES],
            slow_ns: u64::MAX,
            changes: SmallVec::new(),
            changes_lost: 0,
        }
    }

    /// Whether an endpoint is passed over: else any may be picked. Looks around when it is time for that.
    pub fn is_troubled(&mut self, now_ns: u64) -> bool {
        if now_ns >= self.look_at_ns {
            self.look(now_ns);
        } else if self.known().counts.changes.load(Ordering::Acquire) != self.seen {
            self.refresh();
        }
        !self.out.is_empty()
    }

    /// Chooses an endpoint by `pick`, which is told what to skip; `skip` is what must not be chosen. With `first`, the
    /// first attempt of an exchange, an endpoint whose time is over is chosen before all others.
    pub fn choose(
        &mut self,
        now_ns: u64,
        first: bool,
        skip: &dyn Fn(usize) -> bool,
        pick: impl FnMut(&dyn Fn(usize) -> bool) -> Option<usize>,
    ) -> Option<usize> {
        self.choose_among(now_ns, &|_| first, skip, pick)
    }

    /// As [`Breaker::choose`], where `may_try` says which endpoints the attempt may find out about.
    pub fn choose_among(
        &mut self,
        now_ns: u64,
        may_try: &dyn Fn(usize) -> bool,
        skip: &dyn Fn(usize) -> bool,
        mut pick: impl FnMut(&dyn Fn(usize) -> bool) -> Option<usize>,
    ) -> Option<usize> {
        if !self.is_troubled(now_ns) {
            return pick(skip);
        }
        let due = |e: &usize| self.is_due(*e, now_ns) && !skip(*e) && may_try(*e);
        if let Some(due) = self.out.iter().map(|e| *e as usize).find(due) {
            return Some(due);
        }
        pick(&|e| skip(e) || self.is_out(e)).or_else(|| pick(skip))
    }

    /// Whether an endpoint is passed over as long as there are others.
    pub fn is_out(&self, endpoint: usize) -> bool {
        let standing = self.standing(endpoint);
        match standing.word().reason() {
            Some(Reason::Connect) => true,
            Some(_) if !self.panicking => true,
            _ => self.drains(endpoint) || (!self.panicking && standing.probed().is_out()),
        }
    }

    /// Whether the next attempt on it would find out whether it is well again.
    fn is_due(&self, endpoint: usize, now_ns: u64) -> bool {
        let standing = self.standing(endpoint);
        let word = standing.word();
        let is_over = !word.is_used() && now_ns >= word.at_ns();
        is_over && !standing.probed().is_out() && !self.drains(endpoint)
    }

    /// Whether there is an endpoint that is not passed over, or one that is due; asked once it is known that some are passed over.
    pub fn has_any(&self, now_ns: u64) -> bool {
        self.out.len() < self.locals.len()
            || self.out.iter().any(|e| !self.is_out(*e as usize) || self.is_due(*e as usize, now_ns))
    }

    /// Whether it gets nothing new.
    fn drains(&self, endpoint: usize) -> bool {
        u32::try_from(endpoint).is_ok_and(|endpoint| self.drained.binary_search(&endpoint).is_ok())
    }

    /// Another number whenever [`Breaker::is_out`] may have changed, since [`Breaker::is_troubled`] was asked last.
    pub fn version(&self) -> u64 {
        self.seen << 1 | u64::from(self.panicking)
    }

    /// An attempt begins.
    pub fn begin(&mut self, endpoint: usize, now_ns: u64) -> Begun {
        let role = if self.out.is_empty() { Role::Usual } else { self.role(endpoint, now_ns) };
        self.locals[endpoint].pending[0] += 1;
        Begun { generation: self.generation, role }
    }

    /// The attempt waits for an answer again: its request has been sent at last.
    #[must_use]
    pub fn wait(&mut self, endpoint: usize, begun: Begun, now_ns: u64) -> Begun {
        if now_ns >= self.look_at_ns {
            self.look(now_ns);
        }
        self.locals[endpoint].pending[0] += 1;
        Begun { generation: self.generation, ..begun }
    }

    /// The attempt does not wait for an answer any more: it has one, it ends, or its request is not sent yet.
    pub fn wait_no_more(&mut self, endpoint: usize, begun: Begun) {
        let age = self.age(begun);
        let standing = &self.health.of(self.locals.len()).endpoints[endpoint];
        let local = &mut self.locals[endpoint];
        let place = if is_before(begun.generation, local.overtaken_before) {
            &mut local.overtaken
        } else {
            &mut local.pending[age]
        };
        debug_assert!(*place > 0, "it did not wait");
        *place = place.saturating_sub(1);
        if local.stuck_told > local.pending[OLD] {
            local.tell_stuck(standing);
        }
    }

    /// The first octet of an answer has come; that it is waited for no more has been said.
    pub fn answered(&mut self, endpoint: usize, begun: Begun, now_ns: u64) {
        let age = self.age(begun);
        let standing = &self.health.of(self.locals.len()).endpoints[endpoint];
        // Of the oldest it is not known which of them began before this one.
        if age < OLD {
            let local = &mut self.locals[endpoint];
            if local.overtake(age, begun.generation) {
                local.tell_stuck(standing);
            }
            standing.overtook(self.since_ns[age]);
        }
        standing.answered(now_ns);
        if begun.role == Role::Trial {
            let word = standing.word();
            if word.is_on_trial() {
                standing.change(word, word.answered());
            }
        }
    }

    /// The attempt has ended; that it waits no more has been said.
    pub fn ended(&mut self, endpoint: usize, begun: Begun, verdict: Verdict, now_ns: u64) {
        match verdict {
            Verdict::Good { latency_ns } => {
                let is_slow = latency_ns > self.slow_ns;
                let local = &mut self.locals[endpoint];
                local.good = local.good.saturating_add(1);
                local.slow = local.slow.saturating_add(u32::from(is_slow));
                local.latency_us = local.latency_us.saturating_add(latency_ns / 1000);
                self.standing(endpoint).succeeded();
            }
            Verdict::OutOfTime { after_ns } if after_ns < self.patience_ns() => {}
            Verdict::Unreachable | Verdict::Unanswered | Verdict::OutOfTime { .. } | Verdict::Failure => {
                self.failed(endpoint, verdict, now_ns);
            }
            Verdict::Nothing => {}
        }
        if begun.role != Role::Usual {
            self.tried(endpoint, begun.role, verdict, now_ns);
        }
    }

    /// What has changed since it was asked last, and how many changes were not kept.
    pub fn take_changes(&mut self) -> (SmallVec<[Change; 2]>, u64) {
        (std::mem::take(&mut self.changes), std::mem::take(&mut self.changes_lost))
    }

    /// Endpoints that are used again, as this shard has learned since it was asked last.
    pub fn take_returned(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.returned)
    }

    /// Whether there are any.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    fn known(&self) -> &Known {
        self.health.of(self.locals.len())
    }

    fn standing(&self, endpoint: usize) -> &Standing {
        &self.known().endpoints[endpoint]
    }

    /// How long may be waited before it is too long.
    fn patience_ns(&self) -> u64 {
        if self.slow_ns == u64::MAX { ns(self.rules.slow_min) } else { self.slow_ns }
    }

    // --- ejection ---

    fn failed(&mut self, endpoint: usize, verdict: Verdict, now_ns: u64) {
        self.tell(endpoint, now_ns);
        let part = self.part(now_ns);
        let standing = self.standing(endpoint);
        standing.window().add(part, Tally { all: 1, failed: 1, slow: 0 });
        let (streak, streak_max, reason) = match verdict {
            Verdict::Unreachable => {
                (Streak::Unreachable, self.rules.consecutive_unreachable, Reason::Connect)
            }
            Verdict::Failure => (Streak::Failure, self.rules.consecutive_failures, Reason::Failures),
            _ => (Streak::Unanswered, self.rules.consecutive_unanswered, Reason::NoAnswer),
        };
        let streak = standing.failed(streak);
        if !standing.word().is_used() {
            return;
        }
        if streak_max > 0 && streak >= streak_max {
            return self.eject(endpoint, reason, now_ns);
        }
        let percent = u64::from(self.rules.failure_percent);
        if percent > 0 {
            let sum = standing.window().sum(part);
            let enough = sum.all >= self.rules.requests_min;
            if enough && u64::from(sum.failed) * 100 >= percent * u64::from(sum.all) {
                self.eject(endpoint, Reason::FailureRate, now_ns);
            }
        }
    }

    fn eject(&mut self, endpoint: usize, reason: Reason, now_ns: u64) {
        let standing = self.standing(endpoint);
        let word = standing.word();
        if !word.is_used() {
            return;
        }
        if reason != Reason::Connect && !(self.has_room() && self.others_are_well(endpoint)) {
            self.known().counts.spared.fetch_add(1, Ordering::Relaxed);
            return standing.spare();
        }
        let level = self.level_now(word, now_ns).saturating_add(1);
        let length_ns = self.length_ns(level);
        let standing = self.standing(endpoint);
        if !standing.change(word, Word::ejected(reason, level, now_ns.saturating_add(length_ns))) {
            return;
        }
        standing.forget();
        let counts = &self.known().counts;
        counts.ejections(reason).fetch_add(1, Ordering::Relaxed);
        counts.changed();
        self.note(Change { endpoint: endpoint as u32, ejected: Some((reason, length_ns)) });
        self.refresh();
    }

    /// Whether one more may be ejected for what it does.
    fn has_room(&self) -> bool {
        let endpoints = &self.known().endpoints;
        let is_ejected = |word: Word| word.reason().is_some_and(|reason| reason != Reason::Connect);
        let ejected = endpoints.iter().filter(|standing| is_ejected(standing.word())).count();
        let most = endpoints.len() * usize::from(self.rules.ejected_percent_max) / 100;
        ejected < most.max(1)
    }

    /// Whether at least half of the others that are used are well. Of many, some are asked.
    fn others_are_well(&self, endpoint: usize) -> bool {
        let (mut others, mut well) = (0_usize, 0_usize);
        for (n, standing) in self.peers() {
            if n != endpoint && standing.word().is_used() && !standing.probed().is_out() {
                others += 1;
                well += usize::from(!standing.is_failing() && standing.stuck() == 0);
            }
        }
        others > 0 && well * 2 >= others
    }

    /// Evenly, where they are many.
    fn peers(&self) -> impl Iterator<Item = (usize, &Standing)> {
        let endpoints = &self.known().endpoints;
        let step = endpoints.len().div_ceil(PEERS_MAX).max(1);
        let first = self.generation as usize % step;
        endpoints.iter().enumerate().skip(first).step_by(step).map(|(n, standing)| (n, &**standing))
    }

    /// How often it was ejected, as far as it is not forgotten by now.
    fn level_now(&self, word: Word, now_ns: u64) -> u8 {
        let windows = now_ns.saturating_sub(word.at_ns()) / ns(self.rules.window).max(1);
        word.level().saturating_sub(u8::try_from(windows).unwrap_or(u8::MAX))
    }

    fn length_ns(&mut self, level: u8) -> u64 {
        let times = u64::from(self.rules.ejection_multiplier).saturating_pow(u32::from(level.max(1)) - 1);
        let length_ns = ns(self.rules.ejection_base).saturating_mul(times).min(ns(self.rules.ejection_max));
        let jitter = f64::from(self.rules.ejection_jitter_percent) / 100.0;
        length_ns.saturating_add((length_ns as f64 * jitter * self.rng.f64()) as u64)
    }

    // --- the way back ---

    /// What an attempt on an endpoint is, where not all are used.
    fn role(&mut self, endpoint: usize, now_ns: u64) -> Role {
        let mut word = self.standing(endpoint).word();
        if word.is_on_trial() && word.is_answered() && now_ns >= word.at_ns() {
            // A stream, maybe.
            self.good_trial(endpoint, word, now_ns);
            word = self.standing(endpoint).word();
        }
        if word.is_used() {
            return Role::Usual;
        }
        if now_ns < word.at_ns() {
            return Role::LastResort;
        }
        // The one before has got no answer in all the time.
        let level = word.level().saturating_add(u8::from(word.is_on_trial()));
        let until_ns = now_ns.saturating_add(self.length_ns(level));
        if self.standing(endpoint).change(word, word.on_trial(level, until_ns)) {
            Role::Trial
        } else {
            Role::LastResort
        }
    }

    /// An attempt on an endpoint that was passed over has ended.
    fn tried(&mut self, endpoint: usize, role: Role, verdict: Verdict, now_ns: u64) {
        let word = self.standing(endpoint).word();
        let Some(reason) = word.reason() else { return };
        let is_trial = role == Role::Trial && word.is_on_trial();
        let failed = match verdict {
            Verdict::Good { latency_ns } if latency_ns <= self.slow_ns => None,
            Verdict::Good { .. } if matches!(reason, Reason::Slow | Reason::Pending) => Some(Reason::Slow),
            Verdict::Good { .. } => None,
            Verdict::Unreachable => Some(Reason::Connect),
            Verdict::Unanswered => Some(Reason::NoAnswer),
            Verdict::Failure => Some(Reason::Failures),
            Verdict::OutOfTime { after_ns } if after_ns >= self.patience_ns() => Some(Reason::NoAnswer),
            Verdict::OutOfTime { .. } | Verdict::Nothing => {
                if is_trial {
                    self.standing(endpoint).change(word, word.again(now_ns));
                }
                return;
            }
        };
        match failed {
            None => self.good_trial(endpoint, word, now_ns),
            // Many may fail together; one finds out.
            Some(_) if !is_trial => {}
            // It takes connections now: for what it answers it needs room among those that are ejected.
            Some(now) if reason == Reason::Connect && now != reason && !self.has_room() => {
                self.put_back(endpoint, word, now_ns);
            }
            Some(now) => {
                let level = word.level().saturating_add(1);
                let until_ns = now_ns.saturating_add(self.length_ns(level));
                if self.standing(endpoint).change(word, Word::ejected(now, level, until_ns)) && now != reason
                {
                    // Whether all are used depends on it.
                    self.known().counts.changed();
                }
            }
        }
    }

    fn good_trial(&mut self, endpoint: usize, word: Word, now_ns: u64) {
        if word.successes().saturating_add(1) >= self.rules.trial_requests {
            self.put_back(endpoint, word, now_ns);
        } else {
            self.standing(endpoint).change(word, word.one_more(now_ns));
        }
    }

    fn put_back(&mut self, endpoint: usize, word: Word, now_ns: u64) {
        let standing = self.standing(endpoint);
        if standing.change(word, Word::used(word.level(), now_ns)) {
            standing.forget();
            let counts = &self.known().counts;
            counts.returns.fetch_add(1, Ordering::Relaxed);
            counts.changed();
            self.note(Change { endpoint: endpoint as u32, ejected: None });
            self.refresh();
        }
    }

    fn note(&mut self, change: Change) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(change);
        } else {
            self.changes_lost += 1;
        }
    }

    // --- looking around ---

    /// Tells the other shards what this one has seen, and compares the endpoints.
    fn look(&mut self, now_ns: u64) {
        let pace_ns = self.pace_ns();
        let most_ns = pace_ns.max(self.locals.len() as u64 * LOOK_PER_ENDPOINT_NS);
        // What has begun since the last look did so before the time for this one.
        let late_ns = now_ns.saturating_sub(self.looked_at_ns.saturating_add(most_ns));
        let steps = 1 + usize::try_from(late_ns / pace_ns).unwrap_or(OLD).min(OLD);
        // By these it is told who is overtaken: after a quiet time all are too old to tell by those from now on.
        let (generation, since_ns) = (self.generation, self.since_ns);
        self.generation = self.generation.wrapping_add(steps as u32);
        self.since_ns.copy_within(0..AGES - steps, steps);
        self.since_ns[..steps].fill(now_ns);
        for endpoint in 0..self.locals.len() {
            let standing = &self.health.of(self.locals.len()).endpoints[endpoint];
            let local = &mut self.locals[endpoint];
            let overtaken_ns = standing.overtaken_before_ns();
            if let Some(age) = since_ns[..OLD].iter().position(|since_ns| *since_ns <= overtaken_ns) {
                local.overtake(age, generation.wrapping_sub(age as u32));
            }
            let some_are_old = local.grow_older(steps);
            if some_are_old && local.pending[OLD] > 0 {
                standing.stuck_before(self.since_ns[OLD - 1]);
            }
            local.tell_stuck(standing);
            self.tell(endpoint, now_ns);
        }
        self.slow_ns = self.slow_now_ns();
        self.looked_at_ns = now_ns;
        self.look_at_ns =
            now_ns.saturating_add(self.pace_ns().max(self.locals.len() as u64 * LOOK_PER_ENDPOINT_NS));
        if self.slow_ns != u64::MAX {
            for endpoint in 0..self.locals.len() {
                self.compare(endpoint, now_ns);
            }
        }
        self.refresh();
    }

    fn pace_ns(&self) -> u64 {
        (self.patience_ns() / (AGES as u64 - 2)).max(1_000_000)
    }

    /// How many looks ago it began, up to [`OLD`].
    fn age(&self, begun: Begun) -> usize {
        usize::try_from(self.generation.wrapping_sub(begun.generation)).unwrap_or(OLD).min(OLD)
    }

    fn tell(&mut self, endpoint: usize, now_ns: u64) {
        let part = self.part(now_ns);
        let standing = &self.health.of(self.locals.len()).endpoints[endpoint];
        let local = &mut self.locals[endpoint];
        if local.good > 0 {
            standing.window().add(part, Tally { all: local.good, failed: 0, slow: local.slow });
            let mean_us = local.latency_us / u64::from(local.good);
            standing.add_latency(u32::try_from(mean_us).unwrap_or(u32::MAX), local.good);
            (local.good, local.slow, local.latency_us) = (0, 0, 0);
        }
    }

    /// `slow_factor` times the median, the lower one of two: what is slow must be so beside the others.
    fn slow_now_ns(&self) -> u64 {
        if self.rules.slow_factor == 0 {
            return u64::MAX;
        }
        let latencies = self.peers().map(|(_, standing)| standing.latency_us()).filter(|us| *us > 0);
        let mut latencies: SmallVec<[u32; PEERS_MAX]> = latencies.collect();
        if latencies.is_empty() {
            return u64::MAX;
        }
        let middle = (latencies.len() - 1) / 2;
        let (_, usual_us, _) = latencies.select_nth_unstable(middle);
        let slow_ns = u64::from(*usual_us) * 1000 * u64::from(self.rules.slow_factor);
        slow_ns.max(ns(self.rules.slow_min))
    }

    fn compare(&mut self, endpoint: usize, now_ns: u64) {
        let part = self.part(now_ns);
        let standing = self.standing(endpoint);
        let pending_min = self.rules.pending_min;
        let is_silent = now_ns.saturating_sub(standing.answered_at_ns()) >= self.slow_ns;
        if pending_min > 0 && is_silent && standing.stuck() >= pending_min {
            if standing.word().is_used() && self.somebody_answers(endpoint, now_ns) {
                self.eject(endpoint, Reason::Pending, now_ns);
            }
            return;
        }
        // Only where there is something to find: the sum is ten words.
        if standing.latency_us() != 0 && standing.word().is_used() {
            let latency_ns = u64::from(standing.latency_us()) * 1000;
            if latency_ns * 4 < self.slow_ns {
                return;
            }
            let sum = standing.window().sum(part);
            if sum.all >= self.rules.requests_min && sum.slow * 2 >= sum.all {
                self.eject(endpoint, Reason::Slow, now_ns);
            }
        }
    }

    fn somebody_answers(&self, endpoint: usize, now_ns: u64) -> bool {
        self.peers().any(|(n, standing)| {
            n != endpoint && now_ns.saturating_sub(standing.answered_at_ns()) < self.slow_ns
        })
    }

    /// The part of the window that it is.
    fn part(&self, now_ns: u64) -> u64 {
        now_ns / (ns(self.rules.window) / super::health::Window::PARTS).max(1)
    }

    /// Finds out which endpoints are not simply used.
    fn refresh(&mut self) {
        let known = self.health.of(self.locals.len());
        self.seen = known.counts.changes.load(Ordering::Acquire);
        // Of those that do not drain: the ones that take no connections, and the ones that are out for another reason.
        let (mut refusing, mut ejected) = (0_usize, 0_usize);
        let mut before = std::mem::take(&mut self.out);
        for (n, standing) in (0_u32..).zip(&known.endpoints) {
            let drains = self.drained.binary_search(&n).is_ok();
            match standing.word().reason() {
                None if !drains && !standing.probed().is_out() => continue,
                _ if drains => {}
                Some(Reason::Connect) => refusing += 1,
                _ => ejected += 1,
            }
            self.out.push(n);
        }
        before.retain(|e| self.out.binary_search(e).is_err());
        self.returned.append(&mut before);
        let usable = known.endpoints.len() - self.drained.len() - refusing;
        let healthy = usable - ejected;
        self.panicking = ejected > 0 && healthy * 100 < usable * usize::from(self.rules.panic_percent);
        if known.counts.panicking.swap(self.panicking, Ordering::Relaxed) != self.panicking && self.panicking
        {
            known.counts.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Local {
    /// Whether some of them have waited for too long now.
    fn grow_older(&mut self, looks: usize) -> bool {
        let before = self.pending[OLD];
        for _ in 0..looks.min(OLD) {
            self.pending[OLD] += self.pending[OLD - 1];
            self.pending.copy_within(0..OLD - 1, 1);
            self.pending[0] = 0;
        }
        self.pending[OLD] > before
    }

    /// One of that age and look has its answer: those that are older are not counted any more. Whether there may be some.
    fn overtake(&mut self, age: usize, generation: u32) -> bool {
        if !is_before(self.overtaken_before, generation) {
            return false;
        }
        self.overtaken_before = generation;
        self.overtaken += self.pending[age + 1..].iter().sum::<u32>();
        self.pending[age + 1..].fill(0);
        true
    }

    fn tell_stuck(&mut self, standing: &Standing) {
        if self.pending[OLD] != self.stuck_told {
            standing.add_stuck(self.stuck_told, self.pending[OLD]);
            self.stuck_told = self.pending[OLD];
        }
    }
}

/// Of two numbers of looks, which run over after decades.
fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "breaker_test.rs"]
mod tests;
