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
//! after `10 s × ln(slow / usual)` without any probe. An endpoint that has not answered yet counts as fast as this
//! service usually is, or 30 ms before the first answer of all. A failure counts as an answer after 1 s or 10 × the
//! usual, whichever is longer: refusing fast must not look fast. The other three do not look at failures of exchanges;
//! passing over an endpoint that fails, or that cannot be connected to, is the breaker's work (`upstream::breaker`).
//!
//! Refuses to know sockets, and to forget an exchange: each `started` needs its `ended` on the same balancer.

use fastrand::Rng;

use super::spec::{Balance, Service};

/// One shard's choice among the endpoints of one service, and what it has seen of them. Endpoints are named by their
/// index in `Service::endpoints`.
#[derive(Debug)]
pub struct Balancer {
    balance: Balance,
    /// By endpoint.
    loads: Box<[Load]>,
    shares: Shares,
    turns: Turns,
    usual: Usual,
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
        let weights = || service.endpoints.iter().map(|e| e.weight.max(1));
        let equal = service.endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        Self {
            balance: service.balance,
            loads: service.endpoints.iter().map(|_| Load::new()).collect(),
            shares: if equal { Shares::Equal } else { Shares::unequal(&weights().collect::<Vec<_>>()) },
            turns: match service.balance {
                Balance::RoundRobin if equal => Turns::Circle { next: None },
                Balance::RoundRobin => {
                    Turns::Due { shuffled: false, heap: weights().enumerate().map(Turn::new).collect() }
                }
                Balance::PeakEwma | Balance::LeastRequest | Balance::Random => Turns::Unused,
            },
            usual: Usual { latency_ns: 0.0 },
        }
    }

    /// An endpoint that `skip` does not refuse (because it was tried before, for instance), or `None` when there is
    /// none. Does not count as in flight until `started` says so.
    pub fn pick(&mut self, now_ns: u64, rng: &mut Rng, skip: impl Fn(usize) -> bool) -> Option<usize> {
        match self.loads.len() {
            0 => return None,
            1 => return (!skip(0)).then_some(0),
            _ => {}
        }
        match self.balance {
            Balance::Random => self.draw(rng, &skip),
            Balance::RoundRobin => self.turns.next(self.loads.len(), rng, &skip),
            Balance::LeastRequest => {
                let (first, second) = self.draw_two(rng, &skip)?;
                let cost = |e: usize| self.loads[e].in_flight as f32 * self.shares.relief(e);
                Some(if cost(second) < cost(first) { second } else { first })
            }
            Balance::PeakEwma => {
                let (first, second) = self.draw_two(rng, &skip)?;
                let cost = |e: usize| {
                    let load = &self.loads[e];
                    load.latency_ns(now_ns, self.usual)
                        * (load.in_flight as f32 * self.shares.relief(e) + 1.0)
                };
                Some(if cost(second) < cost(first) { second } else { first })
            }
        }
    }

    /// An attempt on this endpoint begins (with connecting, where that is needed).
    pub fn started(&mut self, endpoint: usize) {
        debug_assert!(endpoint < self.loads.len(), "an endpoint of another balancer");
        if let Some(load) = self.loads.get_mut(endpoint) {
            load.in_flight += 1;
        }
    }

    /// What was seen of the endpoint's latency does not count any more: it has been passed over, and is used again.
    pub fn forget(&mut self, endpoint: usize) {
        if let Some(load) = self.loads.get_mut(endpoint) {
            load.estimate_ns = f32::INFINITY;
        }
    }

    /// The attempt has ended: once for each `started`.
    pub fn ended(&mut self, endpoint: usize, now_ns: u64, outcome: Outcome) {
        debug_assert!(endpoint < self.loads.len(), "an endpoint of another balancer");
        let Some(load) = self.loads.get_mut(endpoint) else { return };
        debug_assert!(load.in_flight > 0, "ended without started");
        load.in_flight = load.in_flight.saturating_sub(1);
        if self.balance != Balance::PeakEwma {
            return;
        }
        match outcome {
            Outcome::Answered { latency_ns } => {
                load.observe(latency_ns as f32, now_ns);
                self.usual.observe(latency_ns as f32);
            }
            Outcome::Failed => {
                load.observe(FAILURE_NS.max(self.usual.latency_ns() * FAILURE_FACTOR), now_ns);
            }
            Outcome::Cancelled => {}
        }
    }

    /// Takes over what `old` learned of the endpoints that are still there; `places` as `spec::former_places` gives them.
    /// What is in flight stays with the old balancer, where it will end.
    pub fn carry_over(&mut self, old: &Self, places: &[Option<usize>]) {
        if self.balance != Balance::PeakEwma || old.balance != Balance::PeakEwma {
            return;
        }
        self.usual = old.usual;
        for (load, place) in self.loads.iter_mut().zip(places) {
            if let Some(before) = place.and_then(|n| old.loads.get(n)) {
                (load.estimate_ns, load.at_ns) = (before.estimate_ns, before.at_ns);
            }
        }
    }

    /// How many endpoints there are to choose from.
    pub fn len(&self) -> usize {
        self.loads.len()
    }

    /// Whether there is no endpoint at all.
    pub fn is_empty(&self) -> bool {
        self.loads.is_empty()
    }

    /// Attempts in flight to this endpoint, for limits and admin; 0 for an endpoint that is not there.
    pub fn in_flight(&self, endpoint: usize) -> u32 {
        self.loads.get(endpoint).map_or(0, |load| load.in_flight)
    }

    /// What peak EWMA holds this endpoint's latency to be, for admin; `None` before its first answer and where another
    /// way of balancing is configured.
    pub fn latency_ns(&self, endpoint: usize, now_ns: u64) -> Option<u64> {
        let load = self.loads.get(endpoint)?;
        load.estimate_ns.is_finite().then(|| load.latency_ns(now_ns, self.usual) as u64)
    }

    /// One endpoint at random, by weight.
    fn draw(&self, rng: &mut Rng, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..DRAWS_MAX {
            let drawn = self.shares.draw(rng, self.loads.len());
            if !skip(drawn) {
                return Some(drawn);
            }
        }
        self.shares.draw_among(rng, self.loads.len(), skip)
    }

    /// Two endpoints at random, by weight; different ones where weights are equal and none is skipped.
    fn draw_two(&self, rng: &mut Rng, skip: &impl Fn(usize) -> bool) -> Option<(usize, usize)> {
        if matches!(self.shares, Shares::Equal) {
            let first = below(rng, self.loads.len());
            let second = below(rng, self.loads.len() - 1);
            let second = second + usize::from(second >= first);
            if !skip(first) && !skip(second) {
                return Some((first, second));
            }
        }
        Some((self.draw(rng, skip)?, self.draw(rng, skip)?))
    }
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
        let faded = self.estimate_ns * decay(now_ns.saturating_sub(self.at_ns));
        faded.max(usual_ns * 0.5).min(self.estimate_ns)
    }

    fn observe(&mut self, latency_ns: f32, now_ns: u64) {
        self.estimate_ns = if !self.estimate_ns.is_finite() || latency_ns > self.estimate_ns {
            latency_ns
        } else {
            let kept = decay(now_ns.saturating_sub(self.at_ns));
            self.estimate_ns * kept + latency_ns * (1.0 - kept)
        };
        self.at_ns = now_ns;
    }
}

/// How fast the whole service usually answers this shard: a plain moving average over answers, to compare with.
#[derive(Debug, Clone, Copy)]
struct Usual {
    /// 0 before the first answer.
    latency_ns: f32,
}

impl Usual {
    fn latency_ns(self) -> f32 {
        if self.latency_ns == 0.0 { COLD_NS } else { self.latency_ns }
    }

    fn observe(&mut self, latency_ns: f32) {
        // Long enough that one slow endpoint of ten does not set it, short enough to be right after a few dozen.
        const ANSWERS: f32 = 64.0;
        self.latency_ns = match self.latency_ns {
            0.0 => latency_ns.max(1.0),
            before => (before + (latency_ns - before) / ANSWERS).max(1.0),
        };
    }
}

/// The endpoints' parts of the traffic.
#[derive(Debug)]
enum Shares {
    Equal,
    /// By endpoint.
    Unequal(Box<[Share]>),
}

/// One endpoint's part, and its column of the alias table (Vose): a column is drawn evenly, then 32 random bits below
/// `threshold` mean its own endpoint and others mean `alias`.
#[derive(Debug)]
struct Share {
    threshold: u32,
    alias: u32,
    /// Mean weight / own weight: one request weighs less on an endpoint of more weight.
    relief: f32,
    /// Own weight.
    weight: u16,
}

impl Shares {
    fn unequal(weights: &[u16]) -> Self {
        let count = weights.len() as u64;
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        let mut shares: Box<[Share]> = weights
            .iter()
            .enumerate()
            .map(|(n, &weight)| Share {
                threshold: u32::MAX,
                alias: n as u32,
                relief: total as f32 / (count as f32 * f32::from(weight)),
                weight,
            })
            .collect();
        // In units of 1 / (count × total), in which each column has room for `total`: integers, hence exact.
        let mut room: Vec<u64> = weights.iter().map(|&w| u64::from(w) * count).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|&n| room[n] < total);
        while let (Some(&less), Some(&more)) = (small.last(), large.last()) {
            small.pop();
            shares[less].threshold = ((room[less] << 32) / total) as u32;
            shares[less].alias = more as u32;
            room[more] -= total - room[less];
            if room[more] < total {
                large.pop();
                small.push(more);
            }
        }
        Self::Unequal(shares)
    }

    fn draw(&self, rng: &mut Rng, count: usize) -> usize {
        match self {
            Self::Equal => below(rng, count),
            Self::Unequal(shares) => {
                let bits = rng.u64(..);
                // The upper half chooses the column, the lower half within it.
                let column = (((bits >> 32) * count as u64) >> 32) as usize;
                let share = &shares[column];
                if (bits as u32) < share.threshold { column } else { share.alias as usize }
            }
        }
    }

    /// As `draw`, among those that are not skipped: O(n).
    fn draw_among(&self, rng: &mut Rng, count: usize, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        let weight = |e: usize| match self {
            Self::Equal => 1,
            Self::Unequal(shares) => u64::from(shares[e].weight),
        };
        let left = || (0..count).filter(|&e| !skip(e));
        let total: u64 = left().map(weight).sum();
        if total == 0 {
            return None;
        }
        let mut point = rng.u64(..total);
        left().find(|&e| {
            let weight = weight(e);
            let found = point < weight;
            point = point.saturating_sub(weight);
            found
        })
    }

    fn relief(&self, endpoint: usize) -> f32 {
        match self {
            Self::Equal => 1.0,
            Self::Unequal(shares) => shares[endpoint].relief,
        }
    }
}

/// Whose turn it is. Shards begin at different endpoints, so that many shards (and many proxies) do not all call the
/// first endpoint first.
#[derive(Debug)]
enum Turns {
    /// Not round robin.
    Unused,
    /// Weights are equal.
    Circle {
        /// `None` before the first pick.
        next: Option<usize>,
    },
    /// Weights differ: a binary heap, the earliest due at the root.
    Due {
        /// Whether the first turns have been spread at random.
        shuffled: bool,
        heap: Box<[Turn]>,
    },
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    /// When it is due, in a time of its own that passes with picks and wraps around; compare with [`Turn::before`].
    due: u64,
    /// From one turn to the next: inverse to the weight.
    stride: u64,
    endpoint: usize,
}

impl Turn {
    /// The stride of weight 1. Divided by weights up to 1000 it is exact to one in 4 × 10⁶, and all strides are so far
    /// below 2⁶³ that turns which are due can be told from those which were, also when the time wraps around.
    const STRIDE: u64 = 1 << 32;

    fn new((endpoint, weight): (usize, u16)) -> Self {
        let stride = Self::STRIDE / u64::from(weight);
        Self { due: stride, stride, endpoint }
    }

    fn before(&self, other: &Self) -> bool {
        match (self.due.wrapping_sub(other.due)) as i64 {
            0 => self.endpoint < other.endpoint,
            difference => difference < 0,
        }
    }
}

impl Turns {
    fn next(&mut self, count: usize, rng: &mut Rng, skip: &impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Unused => None,
            Self::Circle { next } => {
                let first = next.unwrap_or_else(|| below(rng, count));
                let picked = (first..count).chain(0..first).find(|&e| !skip(e))?;
                *next = Some(if picked + 1 == count { 0 } else { picked + 1 });
                Some(picked)
            }
            Self::Due { shuffled, heap } => {
                if !*shuffled {
                    *shuffled = true;
                    for turn in &mut **heap {
                        turn.due = rng.u64(..turn.stride);
                    }
                    heap.sort_unstable_by_key(|turn| turn.due);
                }
                if skip(heap[0].endpoint) {
                    // One that is skipped loses this turn and stands behind the one that is picked: were it to keep
                    // its turns, it would get all of them in one burst when it is skipped no longer.
                    let earliest = |a: Turn, b: Turn| if b.before(&a) { b } else { a };
                    let due = heap.iter().copied().filter(|turn| !skip(turn.endpoint)).reduce(earliest)?.due;
                    while skip(heap[0].endpoint) {
                        heap[0].due = due.wrapping_add(heap[0].stride);
                        sift_root(heap);
                    }
                }
                let picked = heap[0].endpoint;
                heap[0].due = heap[0].due.wrapping_add(heap[0].stride);
                sift_root(heap);
                Some(picked)
            }
        }
    }
}

/// Restores the order of a heap whose root has become later.
fn sift_root(heap: &mut [Turn]) {
    let mut at = 0;
    loop {
        let mut earliest = at;
        for child in [2 * at + 1, 2 * at + 2] {
            if child < heap.len() && heap[child].before(&heap[earliest]) {
                earliest = child;
            }
        }
        if earliest == at {
            return;
        }
        heap.swap(at, earliest);
        at = earliest;
    }
}

/// `exp(−Δt / 10 s)`.
fn decay(elapsed_ns: u64) -> f32 {
    let x = elapsed_ns as f32 / DECAY_NS;
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

/// An even number below `count`, which is at most 2³² (one multiplication; the bias of at most count / 2³² is nothing).
fn below(rng: &mut Rng, count: usize) -> usize {
    ((u64::from(rng.u32(..)) * count as u64) >> 32) as usize
}

/// The time constant of the average: 10 s, as Finagle and Linkerd have it. After 23 s a tenth of a peak is left.
const DECAY_NS: f32 = 10e9;
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

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
