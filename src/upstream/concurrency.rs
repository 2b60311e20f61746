//! How many exchanges a service bears at a time, learnt from its latency: as long as that is what it is when little is asked
//! of it, more may be asked; when it is longer, something queues there, and less is. Pure: time and chance are arguments.
//!
//! Once in a `window` the mean of what was measured is compared with the *baseline*, the mean when little is asked:
//! - within `tolerance` of it, and as many in progress as may be: the limit grows, by its square root at most and by less the
//!   nearer it comes to the tolerance;
//! - beyond, and half as many in progress on average as may be: it shrinks in proportion, by half at most, and half of that
//!   at once.
//!
//! The mean, for where a limit is in use all the time it is how many are in progress over how many are answered (Little): it
//! says at once what queues. A median does not where all exchanges take about as long: those that find a place take as long as
//! ever, those that do not twice as long, and until they are more than half of all it shows nothing.
//!
//! Within the tolerance nothing says by itself whether it queues there or the service is slower the more it does. What a
//! limit brings does, where it keeps exchanges out: *a step* up that made all of them longer by as much as there are more has
//! brought nothing, and is taken back; one down that made them shorter by as much has cost nothing, and stays. Then the limit
//! rests for some seconds. Where chance makes more of a difference than the step, up to the tolerance is where it goes.
//!
//! The baseline is measured whenever no more than half of the limit is in use. Where that does not happen for ten seconds
//! and the limit keeps exchanges out, it is halved until a hundred exchanges that began after that have been answered: that
//! costs a few percent of some tens of milliseconds, where Envoy goes down to three for fifty exchanges, which is an outage
//! for a service that bears a hundred. A limit that keeps nobody out is not doubted: to halve it would refuse those whom the
//! service bears. A mean that falls when the limit is halved says that it was too high, and is measured again after a second. A
//! limit that came down by a quarter and took nothing off the latency came down in vain: then the latency is the service's
//! own, and becomes the baseline; so a service that has become slower is not strangled. That it was bearable in between, once, by
//! chance, does not make two ways of one.
//!
//! Refuses to judge answers: errors are no latencies (`admission` is for those), and a timeout counts as what was waited, up
//! to three medians as everything does: a few that take for ever do not say that all take longer.

use fastrand::Rng;

/// How it learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The limit is never lower.
    pub limit_min: u32,
    /// And never higher.
    pub limit_max: u32,
    /// What it begins with.
    pub limit_initial: u32,
    /// How much longer than the baseline the mean may be, as a part of it.
    pub tolerance: f64,
    /// How often it decides, ns.
    pub window_ns: u64,
}

impl Eq for Settings {}

/// One exchange that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was let in, ns.
    pub since_ns: u64,
    /// When it was answered, ns.
    pub now_ns: u64,
    /// How many were in progress then.
    pub taken: u32,
}

/// What is known of a service.
#[derive(Debug)]
pub struct Estimator {
    settings: Settings,
    rng: Rng,
    limit: f64,
    baseline_ns: Option<f64>,
    /// When it is to be measured again, whether or not little is asked.
    probe_at_ns: u64,
    probe: Option<Probe>,
    /// The window: when it began, the most that were in progress, the sum of that over all answers, how many these were, what
    /// was measured.
    began_ns: u64,
    peak: u32,
    in_progress: u64,
    answers: u64,
    latencies: Latencies,
    /// The mean of the last windows with this limit.
    smooth_ns: Option<f64>,
    /// Limit and mean when the limit began to come down, or was looked at since.
    before: Option<(f64, f64)>,
    search: Search,
}

/// Where the limit is on its way to what is right within the tolerance.
#[derive(Debug, Clone, Copy)]
enum Search {
    /// Nothing is known: by the latency alone.
    Open,
    /// It was changed, to see what that brings.
    Step { way: Way, from: f64, latency: Mean },
    /// It was found right, and is believed to be until then. After that it is tried whether it still is.
    Rest { until_ns: u64, next: Way },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// The mean of what was measured, and how far it may be off by chance alone: its standard error, ns.
#[derive(Debug, Clone, Copy)]
struct Mean {
    ns: f64,
    error_ns: f64,
}

#[derive(Debug)]
struct Probe {
    limit: f64,
    began_ns: u64,
    /// Since when no more than the limit have been in progress.
    clean_ns: Option<u64>,
    latencies: Latencies,
}

/// The newest of what was measured.
#[derive(Debug, Default)]
struct Latencies {
    ns: Vec<u64>,
    next: usize,
}

impl Estimator {
    /// A window has at least so many.
    const SAMPLES_MIN: usize = 20;
    /// A probe is over after so many: the mean of an exponential latency is then within 10 %, one time of three not.
    const PROBE_SAMPLES: usize = 100;
    /// Without a probe, or little asked, for so long: the baseline is doubted. Longer for slow services: 200 times it.
    const PROBE_EVERY_NS: u64 = 10_000_000_000;
    const PROBE_EVERY_LATENCIES: f64 = 200.0;
    /// A limit that was reached keeps exchanges out when so much of it is in use on average: where less is, it was reached
    /// by chance for a moment, and halving it would refuse more than it ever did.
    const KEEPS_OUT: f64 = 0.75;
    /// After a probe that found the limit too high.
    const PROBE_SOON_NS: u64 = 1_000_000_000;
    /// A limit that was found right is left alone for so long, and then tried by a step up and one down. One up lasts a window and can
    /// make a tenth of what is answered in it late, one down can cost as much: of all answers that is a third of a percent each,
    /// which a p99 does not see.
    const REST_NS: u64 = 3_000_000_000;
    /// A probe lasts no longer: this, or 20 times the baseline.
    pub const PROBE_MAX_NS: u64 = 2_000_000_000;

    /// Nothing is known.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            rng: Rng::with_seed(seed),
            limit: f64::from(settings.limit_initial),
            baseline_ns: None,
            probe_at_ns: 0,
            probe: None,
            began_ns: 0,
            peak: 0,
            in_progress: 0,
            answers: 0,
            latencies: Latencies::default(),
            smooth_ns: None,
            before: None,
            search: Search::Open,
        }
    }

    /// The limit as of now.
    pub fn limit(&self) -> u32 {
        let limit = self.probe.as_ref().map_or(self.limit, |probe| probe.limit);
        // Within the bounds, which are u32.
        limit as u32
    }

    /// What is known of the service's latency when little is asked, ns.
    pub fn baseline_ns(&self) -> Option<u64> {
        self.baseline_ns.map(|ns| ns as u64)
    }

    /// Learns from one more, by settings that may have changed.
    pub fn learn(&mut self, settings: Settings, sample: Sample) {
        if settings != self.settings {
            self.settings = settings;
            self.limit = self.bounded(self.limit);
        }
        let now_ns = sample.now_ns;
        let latency_ns = now_ns.saturating_sub(sample.since_ns);
        if let Some(probe) = &mut self.probe {
            if f64::from(sample.taken) <= probe.limit {
                probe.clean_ns.get_or_insert(now_ns);
            }
            if probe.clean_ns.is_some_and(|clean_ns| sample.since_ns >= clean_ns) {
                probe.latencies.push(latency_ns);
            }
            if probe.latencies.len() >= Self::PROBE_SAMPLES {
                self.end_probe(now_ns);
            }
            return self.end_overdue(now_ns);
        }
        if now_ns < self.began_ns {
            // As many as were let in before the limit changed are still in progress.
            return;
        }
        self.latencies.push(latency_ns);
        self.peak = self.peak.max(sample.taken);
        self.in_progress += u64::from(sample.taken);
        self.answers += 1;
        if self.latencies.len() >= Self::SAMPLES_MIN
            && now_ns.saturating_sub(self.began_ns) >= self.settings.window_ns
        {
            self.decide(now_ns);
        }
    }

    fn decide(&mut self, now_ns: u64) {
        let newest = self.latencies.mean();
        let peak = f64::from(self.peak);
        // Some hundreds of answers of some thousands in progress: far from what f64 holds exactly.
        let in_progress = self.in_progress as f64 / self.answers as f64;
        let keeps_out = peak >= self.limit.floor() && in_progress >= self.limit * Self::KEEPS_OUT;
        self.begin_window(now_ns);
        if std::env::var_os("DBG").is_some() {
            eprintln!(
                "{:.2} limit {:.2} peak {peak} inprog {in_progress:.1} mean {:.2} err {:.2} smooth {:?} base {:?} search {:?}",
                now_ns as f64 / 1e9,
                self.limit,
                newest.ns / 1e6,
                newest.error_ns / 1e6,
                self.smooth_ns.map(|n| (n / 1e4).round() / 100.0),
                self.baseline_ns.map(|n| (n / 1e4).round() / 100.0),
                self.search
            );
        }
        if peak <= self.limit / 2.0 {
            // Little is asked. Slowly: a burst that was not seen as such should not teach much. At once where it is much
            // less; what differs by chance alone must not draw the baseline down, whence what is usual would be too long.
            let known_ns = self.baseline_ns.unwrap_or(newest.ns);
            let is_much_less = newest.ns + 3.0 * newest.error_ns < 0.7 * known_ns;
            let weight = if is_much_less { 0.5 } else { 0.2 };
            self.baseline_ns = Some(known_ns + (newest.ns - known_ns) * weight);
            (self.smooth_ns, self.before) = (None, None);
            self.doubt_later(now_ns, Self::PROBE_EVERY_NS);
            return;
        }
        let smooth_ns = self.smooth_ns.map_or(newest.ns, |known_ns| f64::midpoint(known_ns, newest.ns));
        self.smooth_ns = Some(smooth_ns);
        if keeps_out && (self.baseline_ns.is_none() || now_ns >= self.probe_at_ns) {
            let limit = self.bounded(self.limit / 2.0);
            self.probe =
                Some(Probe { limit, began_ns: now_ns, clean_ns: None, latencies: Latencies::default() });
            return;
        }
        // The first that is known, where it must do until it is doubted.
        let baseline_ns = *self.baseline_ns.get_or_insert(newest.ns);
        let bearable_ns = baseline_ns * (1.0 + self.settings.tolerance);
        if keeps_out && self.takes_back(newest, bearable_ns, now_ns) {
            return;
        }
        // Upwards the newest counts as well, or it would go on growing after it was enough.
        let worse_ns = smooth_ns.max(newest.ns);
        // What is longer by no more than chance makes it says nothing.
        let is_bearable = worse_ns <= bearable_ns || smooth_ns <= bearable_ns + newest.error_ns;
        if is_bearable {
            // Not below that: what is bearable once by chance has not been for the limit to have come down.
            if self.before.is_some_and(|(limit, _)| self.limit >= limit) {
                self.before = None;
            }
            // The nearer to what is bearable, the less.
            let room = (bearable_ns - worse_ns) / (bearable_ns - baseline_ns).max(1.0);
            let more = self.limit.sqrt() * room.clamp(0.0, 1.0);
            if keeps_out {
                self.step(newest, baseline_ns, more, now_ns);
            } else if peak >= self.limit.floor() * 0.9 && !self.rests(now_ns) {
                self.set(self.limit + more, newest, now_ns);
            }
            return;
        }
        // Where less than half of the limit is in use on average, it is not the limit that makes it long.
        if in_progress < self.limit / 2.0 {
            return;
        }
        self.search = Search::Open;
        match self.before {
            None => self.before = Some((self.limit, smooth_ns)),
            Some((limit, before_ns)) if self.limit <= 0.75 * limit => {
                if smooth_ns > 0.87 * before_ns {
                    self.baseline_ns = Some(smooth_ns / (1.0 + self.settings.tolerance));
                    self.before = None;
                    return;
                }
                self.before = Some((self.limit, smooth_ns));
            }
            Some(_) => {}
        }
        let gradient = (bearable_ns / smooth_ns).max(0.5);
        self.set(self.limit * f64::midpoint(1.0, gradient), newest, now_ns);
    }

    /// Goes a step on, within the tolerance and where the limit keeps exchanges out; `more` is how far up if nothing is known.
    fn step(&mut self, newest: Mean, baseline_ns: f64, more: f64, now_ns: u64) {
        let is_usual =
            newest.ns <= baseline_ns * (1.0 + self.settings.tolerance / 4.0) + 2.0 * newest.error_ns;
        // As many as it would have if all that takes longer than usual were queueing; one less, if nothing does.
        let fewer = (self.limit * (baseline_ns / newest.ns).max(0.75)).round().min(self.limit - 1.0);
        // Where chance makes about as much of a difference, only those would seem to go well that began with a window that was
        // slow by chance.
        let is_telling = newest.ns * (1.0 - fewer / self.limit) > 6.0 * newest.error_ns;
        let from = self.limit;
        let (way, to) = match self.search {
            Search::Rest { until_ns, .. } if now_ns < until_ns => return,
            Search::Rest { next: Way::Down, .. } if is_telling => (Way::Down, fewer),
            Search::Open | Search::Step { way: Way::Down, .. } if is_telling && !is_usual => {
                (Way::Down, fewer)
            }
            // It went well, and that was all there was to take off.
            Search::Step { way: Way::Down, .. } => return self.rest(Way::Down, now_ns),
            _ if more == 0.0 => return self.rest(Way::Down, now_ns),
            // It was right until now.
            Search::Rest { .. } => (Way::Up, from + (from * 0.05).max(1.0)),
            // Less than one changes nothing that could be seen.
            Search::Open | Search::Step { way: Way::Up, .. } => (Way::Up, from + more.max(1.0)),
        };
        self.set(to, newest, now_ns);
        // At a bound of the limit it does not change.
        let is_seen = self.limit as u32 != from as u32;
        self.search = if is_seen { Search::Step { way, from, latency: newest } } else { Search::Open };
    }

    /// Takes back the last step, if there was one and it was in vain, or cost something.
    fn takes_back(&mut self, newest: Mean, bearable_ns: f64, now_ns: u64) -> bool {
        let Search::Step { way, from, latency } = self.search else { return false };
        // What holds is whole.
        let limits = self.limit.floor() / from.floor();
        // If it all queues there, the latency has changed as the limit has; half of that is where neither is nearer.
        let follows = (newest.ns / latency.ns).ln() / limits.ln() >= 0.5;
        let errors = (newest.ns - latency.ns).abs() / newest.error_ns.hypot(latency.error_ns);
        let is_wrong = match way {
            Way::Up => follows && errors > 2.0,
            // More, for a step down begins where it takes longer, and what does so by chance is less the next time. Beyond what is
            // bearable it has to come down whatever that costs.
            Way::Down => !(follows && errors > 3.0) && newest.ns <= bearable_ns,
        };
        if is_wrong {
            self.set(from, newest, now_ns);
            match way {
                // It may have been too high before: that is tried at once.
                Way::Up => self.search = Search::Rest { until_ns: now_ns, next: Way::Down },
                Way::Down => self.rest(Way::Up, now_ns),
            }
        }
        is_wrong
    }

    fn rest(&mut self, next: Way, now_ns: u64) {
        let until_ns = now_ns.saturating_add(self.scattered(Self::REST_NS as f64));
        self.search = Search::Rest { until_ns, next };
    }

    fn rests(&self, now_ns: u64) -> bool {
        matches!(self.search, Search::Rest { until_ns, .. } if now_ns < until_ns)
    }

    /// What was let in until now is answered first; what is measured after that is of the new limit.
    fn set(&mut self, limit: f64, newest: Mean, now_ns: u64) {
        let limit = self.bounded(limit);
        if limit as u32 != self.limit as u32 {
            self.smooth_ns = None;
            self.begin_window(now_ns.saturating_add(newest.ns as u64));
        }
        self.limit = limit;
    }

    /// Ends a probe that has taken too long. To be asked where nothing may be let in, for where nothing is answered nothing is learnt.
    pub fn end_overdue(&mut self, now_ns: u64) {
        let most_ns = self.baseline_ns.map_or(0.0, |ns| 20.0 * ns);
        let most_ns = (most_ns as u64).max(Self::PROBE_MAX_NS);
        if self.probe.as_ref().is_some_and(|probe| now_ns.saturating_sub(probe.began_ns) > most_ns) {
            self.end_probe(now_ns);
        }
    }

    fn end_probe(&mut self, now_ns: u64) {
        let Some(probe) = self.probe.take() else { return };
        self.begin_window(now_ns);
        self.before = None;
        if probe.latencies.len() < Self::SAMPLES_MIN {
            // Too few to say anything.
            self.doubt_later(now_ns, Self::PROBE_EVERY_NS);
            return;
        }
        // What chance may have taken off it is added: too low a baseline would strangle the service until the next probe.
        let mean = probe.latencies.mean();
        let measured_ns = mean.ns + mean.error_ns;
        if std::env::var_os("DBG").is_some() {
            eprintln!(
                "{:.2} PROBE mean {:.2} err {:.2} n {} known {:?} smooth {:?}",
                now_ns as f64 / 1e9,
                mean.ns / 1e6,
                mean.error_ns / 1e6,
                probe.latencies.len(),
                self.baseline_ns,
                self.smooth_ns
            );
        }
        let was_too_high = self.smooth_ns.is_some_and(|smooth_ns| measured_ns < 0.75 * smooth_ns);
        self.baseline_ns = Some(match self.baseline_ns {
            // About the same, or less by what may be chance still: both are right. What is less indeed is less again in a second.
            Some(known_ns) if (0.5..=1.4).contains(&(measured_ns / known_ns)) => {
                f64::midpoint(known_ns, measured_ns)
            }
            _ => measured_ns,
        });
        self.smooth_ns = None;
        self.doubt_later(now_ns, if was_too_high { Self::PROBE_SOON_NS } else { Self::PROBE_EVERY_NS });
    }

    fn begin_window(&mut self, now_ns: u64) {
        self.latencies.clear();
        (self.began_ns, self.peak, self.in_progress, self.answers) = (now_ns, 0, 0, 0);
    }

    /// Proxies that began together should not all probe together.
    fn doubt_later(&mut self, now_ns: u64, after_ns: u64) {
        let slow_ns = self.baseline_ns.unwrap_or(0.0) * Self::PROBE_EVERY_LATENCIES;
        self.probe_at_ns = now_ns.saturating_add(self.scattered((after_ns as f64).max(slow_ns)));
    }

    fn scattered(&mut self, ns: f64) -> u64 {
        (ns * (1.0 + 0.15 * self.rng.f64())) as u64
    }

    fn bounded(&self, limit: f64) -> f64 {
        limit.clamp(f64::from(self.settings.limit_min), f64::from(self.settings.limit_max))
    }
}

impl Latencies {
    const MOST: usize = 256;

    fn push(&mut self, ns: u64) {
        if self.ns.len() < Self::MOST {
            self.ns.push(ns);
        } else {
            self.ns[self.next % Self::MOST] = ns;
            self.next += 1;
        }
    }

    fn len(&self) -> usize {
        self.ns.len()
    }

    fn clear(&mut self) {
        self.ns.clear();
        self.next = 0;
    }

    /// The mean of what is measured, each up to three medians. Of at least one.
    ///
    /// The error is that of the means of eight parts, one after the other: where one waits for another, what is long by turns and
    /// always as often is no error (batch means: Law and Kelton, "Simulation Modeling and Analysis").
    fn mean(&self) -> Mean {
        const PARTS: usize = 8;
        let mut sorted = smallvec::SmallVec::<[u64; Self::MOST]>::from_slice(&self.ns);
        let middle = sorted.len() / 2;
        // A clock has at least that resolution, and nothing is divided by nothing.
        let most_ns = (*sorted.select_nth_unstable(middle).1).max(1).saturating_mul(3);
        let mean_of = |part: &[u64]| {
            let sum: f64 = part.iter().map(|&ns| ns.min(most_ns) as f64).sum();
            sum / part.len() as f64
        };
        let mean_ns = mean_of(&self.ns);
        let parts = self.ns.chunks(self.ns.len().div_ceil(PARTS));
        let many = parts.len() as f64;
        let squares: f64 = parts.map(|part| (mean_of(part) - mean_ns).powi(2)).sum();
        let error_ns = if many > 1.0 { (squares / (many * (many - 1.0))).sqrt() } else { mean_ns };
        Mean { ns: mean_ns.max(1.0), error_ns }
    }
}

#[cfg(test)]
#[path = "concurrency_test.rs"]
mod tests;
