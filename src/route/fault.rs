//! Faults that a route makes on purpose, so that callers can be seen to bear them: a delay, an end that is none of the service's,
//! bodies that are slow, a response that ends too soon (`shape`). Pure: random numbers are arguments. Called by `downstream::turn`.
//!
//! Refuses to be without end: a delay has a ceiling, whoever asks for it, and so has a silence.

use std::f64::consts::TAU;
use std::num::NonZeroU64;
use std::time::Duration;

use super::percent::Percent;
use crate::authorize::Fields;

/// What a route may do to its requests. Boxed in the route, since hardly any has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// They wait.
    pub delay: Option<Delay>,
    /// They are ended here.
    pub abort: Option<Abort>,
    /// The bodies of responses end too soon.
    pub truncate: Option<Truncate>,
    /// Bodies are slow.
    pub bandwidth: Option<Bandwidth>,
    /// Whether a request may ask for a fault itself.
    pub by_header: bool,
}

/// A wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Of so many.
    pub percent: Percent,
    /// The shortest and the longest. What is drawn beyond is the shortest, or the longest.
    pub least: Duration,
    /// See above.
    pub most: Duration,
    /// How waits are spread.
    pub spread: Spread,
}

/// How waits are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// From the shortest to the longest all are as probable.
    Even,
    /// As the times between events that come by chance: many short ones, few long ones.
    Exponential {
        /// On average.
        mean: Duration,
    },
    /// Around a middle.
    Normal {
        /// The middle.
        mean: Duration,
        /// The standard deviation.
        deviation: Duration,
    },
}

/// An end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// Of so many.
    pub percent: Percent,
    /// How.
    pub how: How,
}

/// How a request is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Answered with this status, 400 to 599.
    Status(u16),
    /// Answered with this code of gRPC, 1 to 16; whoever does not speak it gets 503.
    Grpc(u8),
    /// Its connection, or its stream, is reset.
    Reset,
    /// It is taken and nothing is ever heard of it, as when a peer has lost its power. So long at most, then it is reset.
    HalfOpen(Duration),
}

/// A body that ends too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate {
    /// Of so many.
    pub percent: Percent,
    /// Where.
    pub at: Where,
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Where {
    /// After so much of its length, where that is told beforehand.
    pub part: Option<Percent>,
    /// After so many octets, else.
    pub after: Option<u64>,
}

/// Bodies that are slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of so many.
    pub percent: Percent,
    /// So many octets a second of the request.
    pub request_rate: Option<NonZeroU64>,
    /// So many of the response.
    pub response_rate: Option<NonZeroU64>,
}

/// What is done to one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drawn {
    /// It waits so long.
    pub delay: Option<Duration>,
    /// Then it is ended so; what stands below is nothing then.
    pub abort: Option<How>,
    /// The body of its response ends there.
    pub truncate: Option<Where>,
    /// The body of its response has so many octets a second.
    pub response_rate: Option<NonZeroU64>,
    /// Its own body has so many.
    pub request_rate: Option<NonZeroU64>,
}

/// What was done, for log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Made {
    /// It waited.
    Delay,
    /// It was answered.
    Abort,
    /// It was reset.
    Reset,
    /// It waited, and was answered.
    DelayAbort,
    /// It waited, and was reset.
    DelayReset,
    /// It was never answered.
    HalfOpen,
    /// It waited, and was never answered.
    DelayHalfOpen,
    /// Its response ended too soon.
    Truncate,
    /// It waited, and its response ended too soon.
    DelayTruncate,
    /// Its body or its response was slow.
    Bandwidth,
    /// It waited, and its body or its response was slow.
    DelayBandwidth,
    /// Its body or its response was slow, and its response ended too soon.
    BandwidthTruncate,
    /// All of that.
    DelayBandwidthTruncate,
}

impl Made {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Delay,
        Self::Abort,
        Self::Reset,
        Self::DelayAbort,
        Self::DelayReset,
        Self::HalfOpen,
        Self::DelayHalfOpen,
        Self::Truncate,
        Self::DelayTruncate,
        Self::Bandwidth,
        Self::DelayBandwidth,
        Self::BandwidthTruncate,
        Self::DelayBandwidthTruncate,
    ];

    /// What these are together; `None` for nothing. What was aborted has no body to be slow or cut.
    pub const fn of(delay: bool, abort: Option<How>, truncate: bool, bandwidth: bool) -> Option<Self> {
        Some(match (delay, abort, bandwidth, truncate) {
            (false, None, false, false) => return None,
            (true, None, false, false) => Self::Delay,
            (false, Some(How::Status(_) | How::Grpc(_)), ..) => Self::Abort,
            (true, Some(How::Status(_) | How::Grpc(_)), ..) => Self::DelayAbort,
            (false, Some(How::Reset), ..) => Self::Reset,
            (true, Some(How::Reset), ..) => Self::DelayReset,
            (false, Some(How::HalfOpen(_)), ..) => Self::HalfOpen,
            (true, Some(How::HalfOpen(_)), ..) => Self::DelayHalfOpen,
            (false, None, false, true) => Self::Truncate,
            (true, None, false, true) => Self::DelayTruncate,
            (false, None, true, false) => Self::Bandwidth,
            (true, None, true, false) => Self::DelayBandwidth,
            (false, None, true, true) => Self::BandwidthTruncate,
            (true, None, true, true) => Self::DelayBandwidthTruncate,
        })
    }

    /// The word in log and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Reset => "reset",
            Self::DelayAbort => "delay_abort",
            Self::DelayReset => "delay_reset",
            Self::HalfOpen => "half_open",
            Self::DelayHalfOpen => "delay_half_open",
            Self::Truncate => "truncate",
            Self::DelayTruncate => "delay_truncate",
            Self::Bandwidth => "bandwidth",
            Self::DelayBandwidth => "delay_bandwidth",
            Self::BandwidthTruncate => "bandwidth_truncate",
            Self::DelayBandwidthTruncate => "delay_bandwidth_truncate",
        }
    }
}

impl Drawn {
    /// What that is called; `None` where nothing is done.
    pub const fn made(&self) -> Option<Made> {
        let is_slow = self.response_rate.is_some() || self.request_rate.is_some();
        Made::of(self.delay.is_some(), self.abort, self.truncate.is_some(), is_slow)
    }
}

/// The fields by which a request asks for a fault: Envoy's.
pub const FIELDS: [&str; 4] = [
    "x-envoy-fault-delay-request",
    "x-envoy-fault-abort-request",
    "x-envoy-fault-abort-grpc-request",
    "x-envoy-fault-throughput-response",
];

impl Fault {
    /// The longest delay.
    pub const DELAY_MAX: Duration = Duration::from_secs(300);

    /// The slowest and the fastest rate, octets a second: below, a body would take a part of it at a time that is none.
    pub const RATES: [u64; 2] = [1024, 1 << 30];

    /// Whether nothing is done but what a request asks for.
    pub fn is_asked_for(&self) -> bool {
        self.delay.is_none() && self.abort.is_none() && self.truncate.is_none() && self.bandwidth.is_none()
    }

    /// What is done to a request with these fields. `random` gives evenly distributed numbers.
    pub fn draw<F: Fields>(&self, fields: &F, mut random: impl FnMut() -> u64) -> Drawn {
        let mut drawn = Drawn {
            delay: self
                .delay
                .filter(|delay| delay.percent.means(random()))
                .map(|delay| delay.draw([random(), random()])),
            abort: self.abort.filter(|abort| abort.percent.means(random())).map(|abort| abort.how),
            truncate: self.truncate.filter(|t| t.percent.means(random())).map(|truncate| truncate.at),
            ..Drawn::default()
        };
        if let Some(bandwidth) = self.bandwidth.filter(|bandwidth| bandwidth.percent.means(random())) {
            drawn.response_rate = bandwidth.response_rate;
            drawn.request_rate = bandwidth.request_rate;
        }
        if self.by_header && fields.may_have_envoys() {
            let [delay, status, code, throughput] = FIELDS.map(|name| number(fields, name));
            if let Some(ms) = delay {
                drawn.delay = Some(Duration::from_millis(ms.into()).min(Self::DELAY_MAX));
            }
            if let Some(status) = status.filter(|status| (400..600).contains(status)) {
                drawn.abort = Some(How::Status(status as u16));
            }
            if let Some(code) = code.filter(|code| (1..17).contains(code)) {
                drawn.abort = Some(How::Grpc(code as u8));
            }
            let [_, fastest] = Self::RATES;
            let rate = throughput.and_then(|kib| NonZeroU64::new(u64::from(kib) << 10));
            if let Some(rate) = rate.filter(|rate| rate.get() <= fastest) {
                drawn.response_rate = Some(rate);
            }
        }
        if drawn.abort.is_some() {
            drawn = Drawn { truncate: None, response_rate: None, request_rate: None, ..drawn };
        }
        drawn
    }
}

impl Delay {
    fn draw(&self, random: [u64; 2]) -> Duration {
        let [first, second] = random.map(between_0_and_1);
        let seconds = match self.spread {
            Spread::Even => {
                let between = self.most.saturating_sub(self.least).as_nanos();
                // The high half of the product: as even as can be. Fits: below five minutes.
                let part = (between * u128::from(random[0])) >> 64;
                return self.least + Duration::from_nanos(part as u64);
            }
            Spread::Exponential { mean } => -first.ln() * mean.as_secs_f64(),
            // Box and Muller's.
            Spread::Normal { mean, deviation } => {
                let standard = (-2.0 * first.ln()).sqrt() * (TAU * second).cos();
                standard.mul_add(deviation.as_secs_f64(), mean.as_secs_f64())
            }
        };
        // Neither is ever NaN: the logarithm is one of a number above 0.
        let seconds = seconds.clamp(self.least.as_secs_f64(), self.most.as_secs_f64());
        Duration::from_secs_f64(seconds).clamp(self.least, self.most)
    }
}

/// Evenly distributed, never 0 and never 1.
fn between_0_and_1(random: u64) -> f64 {
    /// What a float tells apart.
    const STEPS: f64 = (1_u64 << 53) as f64;
    ((random >> 11) as f64 + 0.5) / STEPS
}

/// The only value of a field, if it is a number.
fn number<F: Fields>(fields: &F, name: &str) -> Option<u32> {
    let mut values = fields.values(name);
    let first = values.next()?;
    if values.next().is_some() {
        return None;
    }
    std::str::from_utf8(first).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lines(Vec<(&'static str, &'static str)>);

    impl Fields for Lines {
        fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.lines(name)
        }

        fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.0.iter().filter(move |(line, _)| *line == name).map(|(_, value)| value.as_bytes())
        }
    }

    fn percent(percent: f64) -> Percent {
        Percent::new(percent).unwrap()
    }

    fn fault() -> Fault {
        let (least, most) = (Duration::from_millis(100), Duration::from_millis(300));
        Fault {
            delay: Some(Delay { percent: percent(50.0), least, most, spread: Spread::Even }),
            abort: Some(Abort { percent: percent(10.0), how: How::Status(503) }),
            ..Fault::default()
        }
    }

    #[test]
    fn as_many_requests_as_configured_wait_as_long_as_configured_and_are_ended() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (mut delays, mut aborts) = (Vec::new(), 0);
        for _ in 0..20_000 {
            let drawn = fault().draw(&Lines(Vec::new()), || rng.u64(..));
            delays.extend(drawn.delay.map(|delay| delay.as_millis()));
            aborts += usize::from(drawn.abort == Some(How::Status(503)));
        }
        // 7 standard deviations.
        assert!(
            delays.len().abs_diff(10_000) < 500 && aborts.abs_diff(2_000) < 300,
            "{} {aborts}",
            delays.len()
        );
        let mean = delays.iter().sum::<u128>() / delays.len() as u128;
        assert!((195..205).contains(&mean), "{mean}");
        assert!(delays.iter().all(|delay| (100..=300).contains(delay)));
    }

    /// Waits of 200 000 draws, in order, in seconds.
    fn waits(spread: Spread, least: Duration, most: Duration) -> Vec<f64> {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
        eprintln!("RINGMESH_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let delay = Some(Delay { percent: Percent::ALL, least, most, spread });
        let fault = Fault { delay, ..Fault::default() };
        let mut waits: Vec<f64> = (0..200_000)
            .map(|_| fault.draw(&Lines(Vec::new()), || rng.u64(..)).delay.unwrap().as_secs_f64())
            .collect();
        waits.sort_by(f64::total_cmp);
        waits
    }

    /// The largest distance between what came and what theory says, at points inside of the bounds. For 200 000 draws more than
    /// 0.0062 is seen once in a million times (Kolmogorov: sqrt(-ln(5e-7) / 2 / 200 000)).
    fn distance(waits: &[f64], below: impl Fn(f64) -> f64) -> f64 {
        let all = waits.len() as f64;
        let inside = 1..waits.len() - 1;
        inside
            .filter(|n| waits[*n] > waits[0] && waits[*n] < waits[waits.len() - 1])
            .map(|n| (below(waits[n]) - n as f64 / all).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn waits_are_spread_as_theory_has_it() {
        let ms = Duration::from_millis;
        let even = waits(Spread::Even, ms(100), ms(300));
        assert!(distance(&even, |s| (s - 0.1) / 0.2) < 0.0062);
        let exponential = waits(Spread::Exponential { mean: ms(100) }, Duration::ZERO, ms(400));
        assert!(distance(&exponential, |s| 1.0 - (-s / 0.1).exp()) < 0.0062);
        // What is beyond the bound waits as long as that: e^-4 of them, within 7 standard deviations.
        let at_most = exponential.iter().filter(|s| **s == 0.4).count();
        assert!(at_most.abs_diff(3663) < 420, "{at_most}");
        let normal = Spread::Normal { mean: ms(100), deviation: ms(20) };
        let normal = waits(normal, Duration::ZERO, ms(130));
        let below = |s: f64| {
            // Zelen and Severo's, right to seven digits.
            let z = (s - 0.1) / 0.02;
            let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
            let sum = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_530]
                .into_iter()
                .fold(0.0, |sum, part| (sum + part) * t);
            let above = (-z * z / 2.0).exp() / TAU.sqrt() * sum;
            if z > 0.0 { 1.0 - above } else { above }
        };
        assert!(distance(&normal, below) < 0.0062);
        // Above one and a half deviations are 6.681 %.
        let at_most = normal.iter().filter(|s| **s == 0.13).count();
        assert!(at_most.abs_diff(13_361) < 800, "{at_most}");
    }

    #[test]
    fn no_number_makes_a_wait_leave_its_bounds() {
        let (least, most) = (Duration::from_millis(3), Duration::from_millis(50));
        let mean = Duration::from_millis(10);
        let spreads =
            [Spread::Even, Spread::Exponential { mean }, Spread::Normal { mean, deviation: mean * 100 }];
        for spread in spreads {
            let delay = Delay { percent: Percent::ALL, least, most, spread };
            for first in [0, 1, u64::MAX / 2, u64::MAX] {
                for second in [0, u64::MAX / 2, u64::MAX] {
                    let wait = delay.draw([first, second]);
                    assert!((least..=most).contains(&wait), "{spread:?} {first} {second}: {wait:?}");
                }
            }
        }
    }

    #[test]
    fn a_request_asks_for_a_fault_only_where_it_may() {
        let asks = |lines: &[(&'static str, &'static str)]| Lines(lines.to_vec());
        let none = Fault { by_header: true, ..Fault::default() };
        let [delay, status, code, throughput] = FIELDS;
        let wait = |delay| Drawn { delay: Some(delay), ..Drawn::default() };
        let abort = |how| Drawn { abort: Some(how), ..Drawn::default() };
        let slow = |rate| Drawn { response_rate: NonZeroU64::new(rate), ..Drawn::default() };
        for (lines, want) in [
            (vec![(delay, "20")], wait(Duration::from_millis(20))),
            (vec![(delay, "4000000000")], wait(Fault::DELAY_MAX)),
            (vec![(status, "418")], abort(How::Status(418))),
            (vec![(status, "418"), (code, "14")], abort(How::Grpc(14))),
            (vec![(status, "200")], Drawn::default()),
            (vec![(code, "17")], Drawn::default()),
            (vec![(delay, "-1"), (status, "x")], Drawn::default()),
            (vec![(delay, "1"), (delay, "2")], Drawn::default()),
            (vec![(throughput, "64")], slow(64 << 10)),
            (vec![(throughput, "0")], Drawn::default()),
            (vec![(throughput, "4000000000")], Drawn::default()),
            (vec![(throughput, "64"), (status, "418")], abort(How::Status(418))),
        ] {
            assert_eq!(none.draw(&asks(&lines), || 0), want, "{lines:?}");
            let may_not = Fault { by_header: false, ..none.clone() };
            assert_eq!(may_not.draw(&asks(&lines), || 0), Drawn::default());
        }
        // What is out of bounds takes nothing off what is configured.
        let rate = NonZeroU64::new(1024);
        let bandwidth = Bandwidth { percent: percent(100.0), response_rate: rate, request_rate: rate };
        let both = Fault { bandwidth: Some(bandwidth), ..none };
        for (value, kib) in [("0", 1), ("4000000000", 1), ("64", 64)] {
            let drawn = both.draw(&asks(&[(throughput, value)]), || 0);
            assert_eq!(drawn.response_rate, NonZeroU64::new(kib << 10), "{value}");
        }
    }

    #[test]
    fn what_is_done_has_a_name() {
        let (status, open) = (Some(How::Status(500)), Some(How::HalfOpen(Duration::ZERO)));
        let made =
            |delay, abort, truncate, slow| Made::of(delay, abort, truncate, slow).map_or("-", Made::label);
        let mut names = Vec::new();
        for abort in [None, status, Some(How::Grpc(1)), Some(How::Reset), open] {
            for (truncate, slow) in [(false, false), (true, false), (false, true), (true, true)] {
                for delay in [false, true] {
                    let name = made(delay, abort, truncate, slow);
                    // It says what it is made of.
                    assert_eq!(name.starts_with("delay"), delay, "{name}");
                    assert_eq!(name.contains("abort"), matches!(abort, Some(How::Status(_) | How::Grpc(_))));
                    assert_eq!(name.contains("reset"), abort == Some(How::Reset));
                    assert_eq!(name.contains("half_open"), abort == open);
                    assert_eq!(name.contains("truncate"), truncate && abort.is_none());
                    assert_eq!(name.contains("bandwidth"), slow && abort.is_none());
                    names.push(name);
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Made::ALL.len() + 1);
        for (n, made) in Made::ALL.into_iter().enumerate() {
            assert_eq!(made as usize, n);
        }
    }
}
