//! How many exchanges a service bears at a time, learnt from its latency: as long as that is what it is when little is asked
//! of it, more may be asked; when it is longer, something queues there, and less is. Pure: time and chance are arguments.
//!
//! Once in a `window` the median of what was measured is compared with the *baseline*, the median when little is asked:
//! - within `tolerance` of it, and as many in progress as may be: the limit grows, by its square root at most and by less the
//!   nearer it comes to the tolerance;
//! - beyond, and half as many in progress on average as may be: it shrinks in proportion, by half at most, and half of that
//!   at once.
//!
//! The baseline is measured whenever no more than half of the limit is in use. Where that does not happen for ten seconds
//! and the limit keeps exchanges out, it is halved until a hundred exchanges that began after that have been answered: that
//! costs a few percent of some tens of milliseconds, where Envoy goes down to three for fifty exchanges, which is an outage
//! for a service that bears a hundred. A limit that keeps nobody out is not doubted: to halve it would refuse those whom the
//! service bears. A median that falls when the limit is halved says that it was too high, and is measured again after a second. A
//! limit that came down by a quarter and took nothing off the latency came down in vain: then the latency is the service's
//! own, and becomes the baseline; so a service that has become slower is not strangled.
//!
//! Refuses to judge answers: errors are no latencies (`admission` is for those), and a timeout counts as what was waited.

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
    /// How much longer than the baseline the median may be, as a part of it.
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
    /// The median of the last windows.
    median_ns: Option<f64>,
    /// Limit and median when the limit began to come down, or was looked at since.
    before: Option<(f64, f64)>,
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
    /// A probe is over after so many: the median of an exponential latency is then within 15 %, one time of three not.
    const PROBE_SAMPLES: usize = 100;
    /// Without a probe, or little asked, for so long: the baseline is doubted. Longer for slow services: 200 times it.
    const PROBE_EVERY_NS: u64 = 10_000_000_000;
    const PROBE_EVERY_LATENCIES: f64 = 200.0;
    /// A limit that was reached keeps exchanges out when so much of it is in use on average: where less is, it was reached
    /// by chance for a moment, and halving it would refuse more than it ever did.
    const KEEPS_OUT: f64 = 0.75;
    /// After a probe that found the limit too high.
    const PROBE_SOON_NS: u64 = 1_000_000_000;
    /// A probe lasts no longer: this, or 20 times the baseline.
    const PROBE_MAX_NS: u64 = 2_000_000_000;

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
            median_ns: None,
            before: None,
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
        self.peak = self.peak.max(sample.taken);
        if let Some(probe) = &mut self.probe {
            if f64::from(sample.taken) <= probe.limit {
                probe.clean_ns.get_or_insert(now_ns);
            }
            if probe.clean_ns.is_some_and(|clean_ns| sample.since_ns >= clean_ns) {
                probe.latencies.push(latency_ns);
            }
            let most_ns = self.baseline_ns.map_or(0.0, |ns| 20.0 * ns);
            let most_ns = (most_ns as u64).max(Self::PROBE_MAX_NS);
            let enough = probe.latencies.len() >= Self::PROBE_SAMPLES;
            if enough || now_ns.saturating_sub(probe.began_ns) > most_ns {
                self.end_probe(now_ns);
            }
            return;
        }
        self.latencies.push(latency_ns);
        self.in_progress += u64::from(sample.taken);
        self.answers += 1;
        if self.latencies.len() >= Self::SAMPLES_MIN
            && now_ns.saturating_sub(self.began_ns) >= self.settings.window_ns
        {
            self.decide(now_ns);
        }
    }

    fn decide(&mut self, now_ns: u64) {
        let (median_ns, error_ns) = self.latencies.median();
        let peak = f64::from(self.peak);
        // Some hundreds of answers of some thousands in progress: far from what f64 holds exactly.
        let mean = self.in_progress as f64 / self.answers as f64;
        let keeps_out = peak >= self.limit.floor() && mean >= self.limit * Self::KEEPS_OUT;
        self.begin_window(now_ns);
        if peak <= self.limit / 2.0 {
            // Little is asked. Slowly: a burst that was not seen as such should not teach much. At once where it is much
            // less; what differs by chance alone must not draw the baseline down, whence what is usual would be too long.
            let known_ns = self.baseline_ns.unwrap_or(median_ns);
            let weight = if median_ns < 0.7 * known_ns { 0.5 } else { 0.2 };
            self.baseline_ns = Some(known_ns + (median_ns - known_ns) * weight);
            (self.median_ns, self.before) = (None, None);
            self.doubt_later(now_ns, Self::PROBE_EVERY_NS);
            return;
        }
        let smooth_ns = self.median_ns.map_or(median_ns, |known_ns| (known_ns + median_ns) / 2.0);
        self.median_ns = Some(smooth_ns);
        if keeps_out && (self.baseline_ns.is_none() || now_ns >= self.probe_at_ns) {
            let limit = self.bounded(self.limit / 2.0);
            self.probe =
                Some(Probe { limit, began_ns: now_ns, clean_ns: None, latencies: Latencies::default() });
            return;
        }
        // The first that is known, where it must do until it is doubted.
        let baseline_ns = *self.baseline_ns.get_or_insert(median_ns);
        let bearable_ns = baseline_ns * (1.0 + self.settings.tolerance);
        // Upwards the newest counts as well, or it would go on growing after it was enough.
        let worse_ns = smooth_ns.max(median_ns);
        if worse_ns <= bearable_ns {
            self.before = None;
            if peak >= self.limit.floor() * 0.9 {
                // The nearer to what is bearable, the less.
                let room = (bearable_ns - worse_ns) / (bearable_ns - baseline_ns).max(1.0);
                self.limit = self.bounded(self.limit + self.limit.sqrt() * room.min(1.0));
            }
            return;
        }
        // What is longer by no more than chance makes it says nothing. Where less than half of the limit is in use on average,
        // it is not the limit that makes it long.
        if smooth_ns <= bearable_ns + error_ns || mean < self.limit / 2.0 {
            return;
        }
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
        self.limit = self.bounded(self.limit * f64::midpoint(1.0, gradient));
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
        let (median_ns, error_ns) = probe.latencies.median();
        let measured_ns = median_ns + error_ns;
        let was_too_high = self.median_ns.is_some_and(|median_ns| measured_ns < 0.75 * median_ns);
        self.baseline_ns = Some(match self.baseline_ns {
            // About the same: both are right.
            Some(known_ns) if (0.7..=1.4).contains(&(measured_ns / known_ns)) => {
                f64::midpoint(known_ns, measured_ns)
            }
            _ => measured_ns,
        });
        self.median_ns = None;
        self.doubt_later(now_ns, if was_too_high { Self::PROBE_SOON_NS } else { Self::PROBE_EVERY_NS });
    }

    fn begin_window(&mut self, now_ns: u64) {
        self.latencies.clear();
        (self.began_ns, self.peak, self.in_progress, self.answers) = (now_ns, 0, 0, 0);
    }

    /// Proxies that began together should not all probe together.
    fn doubt_later(&mut self, now_ns: u64, after_ns: u64) {
        let slow_ns = self.baseline_ns.unwrap_or(0.0) * Self::PROBE_EVERY_LATENCIES;
        let after_ns = (after_ns as f64).max(slow_ns) * (1.0 + 0.15 * self.rng.f64());
        self.probe_at_ns = now_ns.saturating_add(after_ns as u64);
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

    /// The median, and how far it may be off by chance alone, ns: its standard error, by the distance of the quartiles
    /// (0.93 of it over the root of how many there are, for normal distributions; 0.91 for exponential ones). Of at least one.
    fn median(&self) -> (f64, f64) {
        let mut ns = smallvec::SmallVec::<[u64; Self::MOST]>::from_slice(&self.ns);
        ns.sort_unstable();
        let quartiles = ns[ns.len() * 3 / 4] - ns[ns.len() / 4];
        let error_ns = 0.92 * quartiles as f64 / (ns.len() as f64).sqrt();
        // A clock has at least that resolution, and nothing is divided by nothing.
        (ns[ns.len() / 2].max(1) as f64, error_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SETTINGS: Settings =
        Settings { limit_min: 2, limit_max: 1000, limit_initial: 20, tolerance: 0.25, window_ns: 100 * MS };

    /// So many windows of a service that bears `capacity` at a time, each for 10 ms, where as much is asked as is let in
    /// (`asked` at the most).
    fn run(estimator: &mut Estimator, now_ns: &mut u64, windows: u32, capacity: f64, asked: u32) {
        for _ in 0..windows * 40 {
            *now_ns += 100 * MS / 40;
            let taken = asked.min(estimator.limit());
            let latency_ns = (10.0 * MS as f64 * (f64::from(taken) / capacity).max(1.0)) as u64;
            estimator.learn(SETTINGS, Sample { since_ns: *now_ns - latency_ns, now_ns: *now_ns, taken });
        }
    }

    /// So many exchanges within a window, that took that long each, with so many in progress.
    fn window(estimator: &mut Estimator, now_ns: &mut u64, latency_ns: u64, taken: u32, exchanges: u64) {
        for _ in 0..exchanges {
            *now_ns += 100 * MS / exchanges;
            estimator.learn(SETTINGS, Sample { since_ns: *now_ns - latency_ns, now_ns: *now_ns, taken });
        }
    }

    /// One that knows that 10 ms are usual where little is asked.
    fn calm() -> (Estimator, u64) {
        let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
        for _ in 0..3 {
            window(&mut estimator, &mut now, 10 * MS, 5, 20);
        }
        assert_eq!((estimator.baseline_ns(), estimator.limit()), (Some(10 * MS), 20));
        (estimator, now)
    }

    #[test]
    fn it_grows_where_it_is_full_and_by_less_the_nearer_it_comes_to_what_is_bearable() {
        // 12.5 ms are bearable: of the root of 20, which is 4.47, so much as there is room.
        for (latency_us, taken, limit) in
            [(10_000, 20, 24), (11_250, 20, 22), (12_000, 20, 20), (10_000, 18, 24), (10_000, 17, 20)]
        {
            let (mut estimator, mut now) = calm();
            window(&mut estimator, &mut now, latency_us * 1000, taken, 40);
            assert_eq!(estimator.limit(), limit, "{latency_us} us, {taken} in progress");
        }
    }

    #[test]
    fn it_stays_within_its_bounds_however_long_everything_takes() {
        let (mut estimator, mut now) = calm();
        let bounded = Settings { limit_min: 15, limit_max: 30, ..SETTINGS };
        let mut seen = (u32::MAX, 0);
        for n in 0..40_u64 * 100 {
            now += 100 * MS / 40;
            // Ever longer, then as short as can be.
            let latency_ns = if n < 2_000 { 10 * MS + n * MS } else { MS };
            estimator
                .learn(bounded, Sample { since_ns: now - latency_ns, now_ns: now, taken: estimator.limit() });
            seen = (seen.0.min(estimator.limit()), seen.1.max(estimator.limit()));
        }
        assert_eq!(seen, (15, 30));
    }

    #[test]
    fn what_is_usual_comes_down_at_once_and_goes_up_slowly() {
        let (mut estimator, mut now) = calm();
        window(&mut estimator, &mut now, 20 * MS, 5, 40);
        assert_eq!(estimator.baseline_ns(), Some(12 * MS));
        window(&mut estimator, &mut now, 5 * MS, 5, 40);
        assert_eq!(estimator.baseline_ns(), Some(8_500_000));
        // And slowly where that may be chance.
        window(&mut estimator, &mut now, 7 * MS, 5, 40);
        assert_eq!(estimator.baseline_ns(), Some(8_200_000));
    }

    #[test]
    fn what_is_usual_is_doubted_where_little_is_never_asked_and_measured_by_what_begins_then() {
        let (mut estimator, mut now) = calm();
        // Ten seconds, and 15 % by chance.
        now += 12_000 * MS;
        window(&mut estimator, &mut now, 10 * MS, 20, 40);
        assert_eq!(estimator.limit(), 10, "half of it, for as long as is measured");
        // What was in progress before says nothing, however much of it ends now.
        window(&mut estimator, &mut now, 30 * MS, 20, 200);
        assert_eq!((estimator.limit(), estimator.baseline_ns()), (10, Some(10 * MS)));
        // Of these the first fifth began before there was as little as there should be.
        window(&mut estimator, &mut now, 20 * MS, 10, 125);
        assert_eq!(estimator.limit(), 20, "enough was measured");
        assert_eq!(estimator.baseline_ns(), Some(20 * MS), "by those that began then alone");
        // Too few in two seconds say nothing.
        now += 12_000 * MS;
        window(&mut estimator, &mut now, 20 * MS, 20, 40);
        assert_eq!(estimator.limit(), 10);
        for _ in 0..15 {
            window(&mut estimator, &mut now, 40 * MS, 10, 1);
            now += 50 * MS;
        }
        assert_eq!((estimator.limit(), estimator.baseline_ns()), (20, Some(20 * MS)));
    }

    #[test]
    fn a_limit_that_keeps_nobody_out_is_not_halved_whatever_is_doubted() {
        // Of 20: never all, or all for a moment only.
        for (usual, most) in [(19, 19), (14, 20)] {
            let (mut estimator, mut now) = calm();
            now += 12_000 * MS;
            for _ in 0..100 {
                // More than is bearable, so that it does not grow, and not so smooth that it shrinks.
                window(&mut estimator, &mut now, 12_500_000, usual, 39);
                window(&mut estimator, &mut now, 12_500_000, most, 1);
                assert_eq!(estimator.limit(), 20, "{usual} and {most} in progress");
            }
            // What was doubted still is.
            window(&mut estimator, &mut now, 12_500_000, 20, 40);
            window(&mut estimator, &mut now, 12_500_000, 20, 40);
            assert_eq!(estimator.limit(), 10);
        }
        // Nor where nothing is known yet.
        let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
        window(&mut estimator, &mut now, 10 * MS, 15, 40);
        assert_eq!((estimator.limit(), estimator.baseline_ns()), (20, Some(10 * MS)));
    }

    /// A window of 40 exchanges, of which each `taken` and latency is told by its number.
    fn mixed(estimator: &mut Estimator, now_ns: &mut u64, of: impl Fn(u64) -> (u32, u64)) {
        for n in 0..40 {
            *now_ns += 100 * MS / 40;
            let (taken, latency_ns) = of(n);
            estimator.learn(SETTINGS, Sample { since_ns: *now_ns - latency_ns, now_ns: *now_ns, taken });
        }
    }

    #[test]
    fn it_does_not_shrink_where_less_than_half_of_it_is_in_use() {
        // 12.5 ms are bearable. Of 20 at most 12 are in use each time: 9 on average, then 11.
        for (usual, limit) in [(8, 20), (11, 16)] {
            let (mut estimator, mut now) = calm();
            mixed(&mut estimator, &mut now, |n| (if n % 4 == 0 { 12 } else { usual }, 20 * MS));
            assert_eq!((estimator.limit(), estimator.baseline_ns()), (limit, Some(10 * MS)), "{usual}");
        }
    }

    #[test]
    fn it_does_not_shrink_by_what_may_be_chance() {
        // The median is 13 ms, and 12.5 are bearable. Where a half of all takes 3 or 30 ms it may as well be 9 or 17.
        for (others, limit) in [([3 * MS, 30 * MS], 20), ([13 * MS; 2], 19)] {
            let (mut estimator, mut now) = calm();
            mixed(&mut estimator, &mut now, |n| {
                (20, if n % 3 == 0 { 13 * MS } else { others[(n % 3) as usize - 1] })
            });
            assert_eq!(estimator.limit(), limit, "{others:?}");
        }
    }

    #[test]
    fn a_probe_errs_to_the_side_of_letting_in() {
        let (mut estimator, mut now) = calm();
        now += 12_000 * MS;
        window(&mut estimator, &mut now, 10 * MS, 20, 40);
        assert_eq!(estimator.limit(), 10, "half of it, for as long as is measured");
        estimator.learn(SETTINGS, Sample { since_ns: now - MS, now_ns: now, taken: 10 });
        now += 100 * MS;
        for n in 0..100_u64 {
            now += MS;
            let latency_ns = [5, 5, 5, 10, 10, 10, 10, 25, 25, 25][(n % 10) as usize] * MS;
            estimator.learn(SETTINGS, Sample { since_ns: now - latency_ns, now_ns: now, taken: 10 });
        }
        // The median is 10 ms, its standard error 0.92 x (25 - 5) / 10; and the mean of that and what was known.
        assert_eq!((estimator.limit(), estimator.baseline_ns()), (20, Some(10_920_000)));
    }

    #[test]
    fn it_finds_what_a_service_bears_from_below_and_from_above() {
        for capacity in [8.0, 50.0, 300.0] {
            let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
            run(&mut estimator, &mut now, 400, capacity, u32::MAX);
            let part = f64::from(estimator.limit()) / capacity;
            assert!((0.6..=1.7).contains(&part), "{} for {capacity}: {estimator:?}", estimator.limit());
        }
    }

    #[test]
    fn it_neither_grows_nor_shrinks_while_little_is_asked() {
        let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
        run(&mut estimator, &mut now, 400, 50.0, 5);
        assert_eq!(estimator.limit(), 20);
        assert_eq!(estimator.baseline_ns(), Some(10 * MS));
    }

    #[test]
    fn a_service_that_becomes_slower_for_good_is_not_strangled() {
        let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
        run(&mut estimator, &mut now, 200, 50.0, u32::MAX);
        // From now on each takes 40 ms, whatever is asked: the limit comes down, in vain, and goes up again.
        let mut least = u32::MAX;
        for _ in 0..200 * 40 {
            now += 100 * MS / 40;
            let taken = estimator.limit();
            least = least.min(taken);
            estimator.learn(SETTINGS, Sample { since_ns: now - 40 * MS, now_ns: now, taken });
        }
        assert!(estimator.limit() > 100, "{estimator:?}");
        assert!(least >= 10, "{least}");
    }

    #[test]
    fn settings_that_change_hold_at_once() {
        let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
        run(&mut estimator, &mut now, 100, 300.0, u32::MAX);
        let lower = Settings { limit_max: 7, ..SETTINGS };
        estimator.learn(lower, Sample { since_ns: now - MS, now_ns: now, taken: 1 });
        assert!(estimator.limit() <= 7);
    }
}
