//! Choosing an endpoint of a service. One [`Balancer`] per shard and service; `proxy` asks it once per attempt.
//!
//! Pure: time and randomness are arguments, so that all of it is shown by simulation (tests/simulation.rs). Nothing in
//! `pick`, `started` and `ended` allocates; all but the last resorts (every draw was skipped) are O(1), round robin by
//! unequal weights is O(log n).
//!
//! # Weights
//! `share(e) = weight(e) / Σ weight`, `w(e) = weight(e) / mean weight`.
//! - **random**: e with probability `share(e)`, by an alias table.
//! - **round robin**: e is due every `1 / share(e)` picks, earliest due first: evenly spread, never in bursts.
//! - **least request**: two draws as for random; the lower `in_flight / w` of the two, the first drawn on a tie.
//! - **peak EWMA**: two draws as for random; the lower `latency × (in_flight / w + 1)`, the first drawn on a tie.
//!
//! With equal weights the two draws differ. With unequal ones they may coincide: that keeps the traffic of e between
//! `share²` (it loses against every other) and `2 share − share²` (it wins), so that a weight is respected even where two
//! endpoints are all there is, and nobody starves.
//!
//! # Latency
//! Peak EWMA as in Finagle and Linkerd: an answer slower than the estimate replaces it at once, a faster one is averaged
//! in by `exp(−Δt / 10 s)`, and the estimate that is compared fades by the same rule while nothing is heard (down to half
//! of what is usual, so that load still counts after a quiet night). An endpoint which was slow is therefore asked again
//! after `10 s × ln(slow / usual)` without any probe. Where the service answers this shard less than ten times a second, the
//! 10 s are stretched to the time of a hundred answers, at most to 100 s: one that is fifty times slower then gets one
//! request of some four hundred whatever the rate, and does not show in the p99 of callers. An endpoint that has not answered yet counts as fast as this
//! service usually is, or 30 ms before the first answer of all. A failure counts as an answer after 1 s or 10 × the
//! usual, whichever is longer: refusing fast must not look fast. The others do not look at failures of exchanges;
//! passing over an endpoint that fails, or that cannot be connected to, is the breaker's work (`upstream::breaker`).
//!
//! Refuses to know sockets, and to forget an exchange: each `started` needs its `ended` on the same balancer.

use std::sync::Arc;

use fastrand::Rng;

use super::affinity::Key;
use super::census::Census;
use super::consistent::xxh64::avalanche;
use super::plan::{Group, Plan, Shares, below};
use super::rise::Rise;
use super::spec::{Balance, Service};
use super::turns::Turns;

/// One shard's choice among the endpoints of one service, and what it has seen of them. Endpoints are named by their
/// index in `Service::endpoints`.
#[derive(Debug)]
pub struct Balancer {
    /// What is drawn from.
    plan: Arc<Plan>,
    seen: Seen,
    /// By group, with round robin only.
    turns: Box<[Turns]>,
    /// Where there is more than one group, or loads are bounded.
    census: Option<Box<Census>>,
}

/// What was seen of the endpoints.
#[derive(Debug)]
struct Seen {
    balance: Balance,
    /// By endpoint.
    loads: Box<[Load]>,
    usual: Usual,
    /// Attempts begun and not ended.
    in_flight: u32,
    /// How much more than its part an endpoint may have in flight, where that is bounded.
    overload: Option<f64>,
    /// With slow start.
    rise: Option<Box<Rise>>,
}

/// What an exchange wants of its endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// The subset, as `Service::subset_named` numbers it; 0 for any endpoint.
    pub subset: u16,
    /// What a balancer that hashes goes by; without it, anywhere.
    pub key: Option<Key>,
}

/// How an attempt ended, as far as it says something of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was a response, whatever its status.
    Answered {
        /// From the request's first byte sent to the response's first byte received.
        latency_ns: u64,
    },
    /// There was none, and the endpoint (or the way to it) is to blame: refused, reset, timed out, not HTTP.
    Failed,
    /// It ended for a reason that says nothing of the endpoint, such as a caller that went away.
    Cancelled,
}

impl Balancer {
    /// A balancer that has seen nothing.
    pub fn new(service: &Service) -> Self {
        let plan = Arc::clone(service.plan());
        let choice = service.choice();
        let overload = choice.consistent.overload_percent.filter(|_| service.balance.hashes());
        let count = service.endpoints.len();
        let turns = match service.balance {
            Balance::RoundRobin => plan.groups().iter().map(Turns::of).collect(),
            _ => Box::default(),
        };
        let counts = overload.is_some() || plan.sets().iter().any(|set| set.groups.len() > 1);
        Self {
            census: counts.then(|| Box::new(Census::new(&plan))),
            turns,
            seen: Seen {
                balance: service.balance,
                loads: (0..count).map(|_| Load::new()).collect(),
                usual: Usual::NEW,
                in_flight: 0,
                overload: overload.map(|percent| f64::from(percent) / 100.0),
                rise: choice.slow_start.as_ref().map(|declared| Box::new(Rise::new(declared, count))),
            },
            plan,
        }
    }

    /// An endpoint that `skip` does not refuse (because it was tried before, for instance), or `None` when there is
    /// none. Does not count as in flight until `started` says so.
    pub fn pick(&mut self, now_ns: u64, rng: &mut Rng, skip: impl Fn(usize) -> bool) -> Option<usize> {
        self.pick_for(now_ns, rng, Wanted::default(), skip)
    }

    /// As [`Balancer::pick`], for an exchange that wants something of its endpoint.
    pub fn pick_for(
        &mut self,
        now_ns: u64,
        rng: &mut Rng,
        wanted: Wanted,
        skip: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let Self { plan, seen, turns, census } = self;
        let groups = plan.set(wanted.subset)?.groups.clone();
        let key = wanted.key.map(Key::get);
        let pick = |group: u32, rng: &mut Rng, turns: &mut [Turns]| {
            let census = census.as_deref();
            let choosing =
                Choosing { group: &plan.groups()[group as usize], number: group, seen, census, now_ns };
            choosing.pick(rng, turns.get_mut(group as usize), key, &skip)
        };
        match groups.len() {
            0 => return None,
            1 => return pick(groups.start, rng, turns),
            _ => {}
        }
        // Its own hash decides for a key, so that one priority gets the same keys from everybody.
        let bits = key.map_or_else(|| rng.u32(..), |key| avalanche(!key) as u32);
        let first = census.as_ref().and_then(|census| census.group(wanted.subset, bits));
        let others = groups.filter(|group| Some(*group) != first);
        first.into_iter().chain(others).find_map(|group| pick(group, rng, turns))
    }

    /// Whether it has to be told which endpoints are usable ([`Balancer::usable`]).
    pub fn counts_usable(&self) -> bool {
        self.census.is_some()
    }

    /// Which endpoints are usable: not passed over. `version` is another one whenever that may have changed.
    pub fn usable(&mut self, now_ns: u64, version: u64, usable: impl Fn(usize) -> bool) {
        if let Some(census) = &mut self.census {
            census.refresh(&self.plan, now_ns, version, usable);
        }
    }

    /// An attempt on this endpoint begins (with connecting, where that is needed).
    pub fn started(&mut self, endpoint: usize) {
        debug_assert!(endpoint < self.seen.loads.len(), "an endpoint of another balancer");
        if let Some(load) = self.seen.loads.get_mut(endpoint) {
            load.in_flight += 1;
            self.seen.in_flight += 1;
        }
    }

    /// The endpoint has been passed over, and is used again: what was seen of its latency does not count any more, and with
    /// slow start it gets its part by and by.
    pub fn returned(&mut self, endpoint: usize, now_ns: u64) {
        if let Some(load) = self.seen.loads.get_mut(endpoint) {
            load.estimate_ns = f32::INFINITY;
        }
        if let Some(rise) = &mut self.seen.rise {
            rise.begin(endpoint, now_ns);
        }
    }

    /// The attempt has ended: once for each `started`.
    pub fn ended(&mut self, endpoint: usize, now_ns: u64, outcome: Outcome) {
        debug_assert!(endpoint < self.seen.loads.len(), "an endpoint of another balancer");
        let Seen { balance, loads, usual, in_flight, .. } = &mut self.seen;
        let Some(load) = loads.get_mut(endpoint) else { return };
        debug_assert!(load.in_flight > 0, "ended without started");
        load.in_flight = load.in_flight.saturating_sub(1);
        *in_flight = in_flight.saturating_sub(1);
        if *balance != Balance::PeakEwma {
            return;
        }
        match outcome {
            Outcome::Answered { latency_ns } => {
                load.observe(latency_ns as f32, now_ns, *usual);
                usual.observe(latency_ns as f32, now_ns);
            }
            Outcome::Failed => {
                load.observe(FAILURE_NS.max(usual.latency_ns() * FAILURE_FACTOR), now_ns, *usual);
            }
            Outcome::Cancelled => {}
        }
    }

    /// Takes over what `old` learned of the endpoints that are still there; `places` as `spec::former_places` gives them.
    /// What is in flight stays with the old balancer, where it will end.
    pub fn carry_over(&mut self, old: &Self, places: &[Option<usize>], now_ns: u64) {
        let (seen, old) = (&mut self.seen, &old.seen);
        if let Some(rise) = &mut seen.rise {
            rise.carry_over(old.rise.as_deref(), places, now_ns);
        }
        let averages = seen.balance == Balance::PeakEwma && old.balance == Balance::PeakEwma;
        if !averages {
            return;
        }
        seen.usual = old.usual;
        for (load, place) in seen.loads.iter_mut().zip(places) {
            if let Some(before) = place.and_then(|n| old.loads.get(n)) {
                (load.estimate_ns, load.at_ns) = (before.estimate_ns, before.at_ns);
            }
        }
    }

    /// How many endpoints there are to choose from.
    pub fn len(&self) -> usize {
        self.seen.loads.len()
    }

    /// Whether there is no endpoint at all.
    pub fn is_empty(&self) -> bool {
        self.seen.loads.is_empty()
    }

    /// Attempts in flight to this endpoint, for limits and admin; 0 for an endpoint that is not there.
    pub fn in_flight(&self, endpoint: usize) -> u32 {
        self.seen.loads.get(endpoint).map_or(0, |load| load.in_flight)
    }

    /// What peak EWMA holds this endpoint's latency to be, for admin; `None` before its first answer and where another
    /// way of balancing is configured.
    pub fn latency_ns(&self, endpoint: usize, now_ns: u64) -> Option<u64> {
        let load = self.seen.loads.get(endpoint)?;
        load.estimate_ns.is_finite().then(|| load.latency_ns(now_ns, self.seen.usual) as u64)
    }
}

/// A choice within one group. `skip` and what it answers are of endpoints, the rest is of their places.
struct Choosing<'c> {
    group: &'c Group,
    number: u32,
    seen: &'c Seen,
    census: Option<&'c Census>,
    now_ns: u64,
}

impl Choosing<'_> {
    /// An endpoint of the group.
    fn pick(
        &self,
        rng: &mut Rng,
        turns: Option<&mut Turns>,
        key: Option<u64>,
        skip: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let group = self.group;
        let skip = |place: usize| skip(group.endpoint(place));
        let place = match group.len {
            0 => None,
            1 => (!skip(0)).then_some(0),
            _ => match self.seen.balance {
                Balance::Random => self.draw(rng, &skip),
                Balance::RoundRobin => self.in_turn(rng, turns?, &skip),
                Balance::LeastRequest => self.better_of_two(rng, &skip, |load| load.in_flight(self, 0.0)),
                Balance::PeakEwma => self.better_of_two(rng, &skip, |load| {
                    load.load.latency_ns(self.now_ns, self.seen.usual) * load.in_flight(self, 1.0)
                }),
                Balance::RingHash | Balance::Maglev => self.by_key(key.unwrap_or_else(|| rng.u64(..)), &skip),
            },
        };
        place.map(|place| group.endpoint(place))
    }

    /// Whose turn it is. One that is rising loses some of its turns.
    fn in_turn(&self, rng: &mut Rng, turns: &mut Turns, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        let mut picked = turns.next(self.group.len, rng, skip)?;
        if self.is_rising() {
            for _ in 0..RISING_DRAWS_MAX {
                if rng.f32() < self.risen(picked) {
                    break;
                }
                picked = turns.next(self.group.len, rng, skip)?;
            }
        }
        Some(picked)
    }

    /// Where the key leads. One that is rising takes a part of its keys, and more of them by and by: a key that it has taken
    /// stays. One with too much in flight is passed over; where all have too much none is.
    fn by_key(&self, key: u64, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        let table = self.group.table.as_ref()?;
        let rising = self.is_rising();
        let takes = |place: usize| {
            !skip(place) && (!rising || self.risen(place) > fraction(avalanche(key ^ RISING_SALT)))
        };
        let bounded = match (self.seen.overload, self.census) {
            (Some(overload), Some(census)) => {
                let in_flight = f64::from(self.seen.in_flight + 1) * overload;
                table.find(key, |place| {
                    takes(place) && {
                        let part = census.part(self.number, self.group.weight_at(place));
                        let load = &self.seen.loads[self.group.endpoint(place)];
                        f64::from(load.in_flight) < (in_flight * part).ceil()
                    }
                })
            }
            _ => None,
        };
        let taken = bounded.or_else(|| table.find(key, takes));
        // All of them rise, and none takes this key yet.
        if rising { taken.or_else(|| table.find(key, |place| !skip(place))) } else { taken }
    }

    /// Of two at random the one that costs less, the first drawn on a tie.
    fn better_of_two(
        &self,
        rng: &mut Rng,
        skip: &impl Fn(usize) -> bool,
        cost: impl Fn(LoadAt<'_>) -> f32,
    ) -> Option<usize> {
        let (first, second) = self.draw_two(rng, skip)?;
        let load = |place: usize| LoadAt { load: &self.seen.loads[self.group.endpoint(place)], place };
        Some(if cost(load(second)) < cost(load(first)) { second } else { first })
    }

    /// One at random, by weight.
    fn draw(&self, rng: &mut Rng, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        let rising = self.is_rising();
        for _ in 0..if rising { RISING_DRAWS_MAX } else { DRAWS_MAX } {
            let drawn = self.group.shares.draw(rng, self.group.len);
            if !skip(drawn) && (!rising || rng.f32() < self.risen(drawn)) {
                return Some(drawn);
            }
        }
        self.draw_among(rng, skip)
    }

    /// As `draw`, by counting those that are not skipped: O(n).
    fn draw_among(&self, rng: &mut Rng, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        let rising = self.is_rising();
        let weight = |place: usize| {
            let weight = u64::from(self.group.shares.weight(place));
            if rising { ((weight << 16) as f32 * self.risen(place)).max(1.0) as u64 } else { weight }
        };
        let left = || (0..self.group.len).filter(|&place| !skip(place));
        let total: u64 = left().map(weight).sum();
        if total == 0 {
            return None;
        }
        let mut point = rng.u64(..total);
        left().find(|&place| {
            let weight = weight(place);
            let found = point < weight;
            point = point.saturating_sub(weight);
            found
        })
    }

    /// Two at random, by weight; different ones where weights are equal and none is skipped.
    fn draw_two(&self, rng: &mut Rng, skip: &impl Fn(usize) -> bool) -> Option<(usize, usize)> {
        if matches!(self.group.shares, Shares::Equal) && !self.is_rising() {
            let first = below(rng, self.group.len);
            let second = below(rng, self.group.len - 1);
            let second = second + usize::from(second >= first);
            if !skip(first) && !skip(second) {
                return Some((first, second));
            }
        }
        Some((self.draw(rng, skip)?, self.draw(rng, skip)?))
    }

    fn is_rising(&self) -> bool {
        self.seen.rise.as_ref().is_some_and(|rise| rise.is_under_way(self.now_ns))
    }

    /// The part of its weight that an endpoint has by now.
    fn risen(&self, place: usize) -> f32 {
        let endpoint = self.group.endpoint(place);
        self.seen.rise.as_ref().map_or(1.0, |rise| rise.factor(endpoint, self.now_ns))
    }
}

/// A load, and whose it is.
struct LoadAt<'l> {
    load: &'l Load,
    place: usize,
}

impl LoadAt<'_> {
    /// What is in flight and so much more, by what the endpoint can bear.
    fn in_flight(&self, choosing: &Choosing<'_>, more: f32) -> f32 {
        let in_flight = self.load.in_flight as f32 * choosing.group.shares.relief(self.place);
        (if choosing.is_rising() { in_flight / choosing.risen(self.place) } else { in_flight }) + more
    }
}

/// A hash as a number from 0 to below 1.
fn fraction(hash: u64) -> f32 {
    // 24 bits: all that the type holds.
    (hash >> 40) as f32 / (1_u32 << 24) as f32
}

/// What is known of one endpoint.
#[derive(Debug, Clone)]
struct Load {
    /// Attempts begun and not ended.
    in_flight: u32,
    /// The peak-sensitive average of latencies at `at_ns`; infinite before the first.
    estimate_ns: f32,
    /// When `estimate_ns` was last updated.
    at_ns: u64,
}

impl Load {
    const fn new() -> Self {
        Self { in_flight: 0, estimate_ns: f32::INFINITY, at_ns: 0 }
    }

    fn latency_ns(&self, now_ns: u64, usual: Usual) -> f32 {
        let usual_ns = usual.latency_ns();
        if !self.estimate_ns.is_finite() {
            return usual_ns;
        }
        let faded = self.estimate_ns * decay(now_ns.saturating_sub(self.at_ns), usual.fade_ns);
        faded.max(usual_ns * 0.5).min(self.estimate_ns)
    }

    fn observe(&mut self, latency_ns: f32, now_ns: u64, usual: Usual) {
        self.estimate_ns = if !self.estimate_ns.is_finite() || latency_ns > self.estimate_ns {
            latency_ns
        } else {
            let kept = decay(now_ns.saturating_sub(self.at_ns), usual.fade_ns);
            self.estimate_ns * kept + latency_ns * (1.0 - kept)
        };
        self.at_ns = now_ns;
    }
}

/// How fast the whole service usually answers this shard, and how often: plain moving averages over answers.
#[derive(Debug, Clone, Copy)]
struct Usual {
    /// 0 before the first answer.
    latency_ns: f32,
    /// From one answer to the next.
    interval_ns: f32,
    /// In what time estimates fade to 1/e.
    fade_ns: f32,
    /// When the last answer came.
    at_ns: u64,
}

impl Usual {
    const NEW: Self = Self { latency_ns: 0.0, interval_ns: 0.0, fade_ns: FADE_NS, at_ns: u64::MAX };

    fn latency_ns(self) -> f32 {
        if self.latency_ns == 0.0 { COLD_NS } else { self.latency_ns }
    }

    fn observe(&mut self, latency_ns: f32, now_ns: u64) {
        // Long enough that one slow endpoint of ten does not set it, short enough to be right after a few dozen.
        const ANSWERS: f32 = 64.0;
        self.latency_ns = match self.latency_ns {
            0.0 => latency_ns.max(1.0),
            before => (before + (latency_ns - before) / ANSWERS).max(1.0),
        };
        // A quiet night is no more than a pause.
        let pause_ns = (now_ns.saturating_sub(self.at_ns) as f32).min(PAUSE_NS);
        self.interval_ns += (pause_ns - self.interval_ns) / ANSWERS;
        self.fade_ns = (self.interval_ns * FADE_ANSWERS).clamp(FADE_NS, FADE_NS_MAX);
        self.at_ns = now_ns;
    }
}

/// `exp(−Δt / fade)`.
fn decay(elapsed_ns: u64, fade_ns: f32) -> f32 {
    let x = elapsed_ns as f32 / fade_ns;
    if x < 0.02 {
        // The usual case, a fraction of a second since the last answer: two terms are exact to 10⁻⁶ there.
        1.0 - x + x * x * 0.5
    } else if x < 16.0 {
        (-x).exp()
    } else {
        // Less than 10⁻⁶ is left; the denormal numbers further down would cost a hundred times as much to compute with.
        0.0
    }
}

/// The time constant of the average: 10 s, as Finagle and Linkerd have it. After 23 s a tenth of a peak is left.
const FADE_NS: f32 = 10e9;
/// And that of a service which is seldom called: 100 s. Below one answer a second a slow endpoint has more than its one
/// request of four hundred, because it should not be forgotten for longer than some minutes.
const FADE_NS_MAX: f32 = 100e9;
/// In between it is the time of so many answers.
const FADE_ANSWERS: f32 = 100.0;
/// No pause between answers counts for more: twice what the longest fading takes for one.
const PAUSE_NS: f32 = 2.0 * FADE_NS_MAX / FADE_ANSWERS;
/// The latency before the first answer of all: 30 ms, as Linkerd has it. It is the same for all endpoints, so it decides
/// nothing but how a first failure compares.
const COLD_NS: f32 = 30e6;
/// A failure counts as an answer after at least this: what a timeout that a caller notices is about.
const FAILURE_NS: f32 = 1e9;
/// And after at least so many times the usual latency, for services that are slow anyway.
const FAILURE_FACTOR: f32 = 10.0;
/// Draws before those that are skipped are left out by counting. With half of the endpoints skipped, one of 16 picks
/// comes to that.
const DRAWS_MAX: usize = 4;
/// Draws while somebody is rising: with a tenth of its weight each, 16 of 100 picks come to counting.
const RISING_DRAWS_MAX: usize = 16;
/// Makes the part of keys that a rising endpoint takes another than that which leads to it.
const RISING_SALT: u64 = 0x5bd1_e995_9e37_79b1;

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
