//! Faults that a route makes on purpose, so that callers can be seen to bear them: a delay, and an answer that is none of the service. Pure:
//! random numbers are arguments. Called by `downstream::turn`.
//!
//! Refuses to be without end: a delay has a ceiling, whoever asks for it.

use std::time::Duration;

use super::percent::Percent;
use crate::authorize::Fields;

/// What a route may do to its requests. Boxed in the route, since hardly any has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// They wait.
    pub delay: Option<Delay>,
    /// They are ended here.
    pub abort: Option<Abort>,
    /// Whether a request may ask for a fault itself.
    pub by_header: bool,
}

/// A wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Of so many.
    pub percent: Percent,
    /// The shortest and the longest; between them all are as probable.
    pub least: Duration,
    /// See above.
    pub most: Duration,
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
}

/// What is done to one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drawn {
    /// It waits so long.
    pub delay: Option<Duration>,
    /// Then it is ended so.
    pub abort: Option<How>,
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
}

impl Made {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Delay, Self::Abort, Self::Reset, Self::DelayAbort, Self::DelayReset];

    /// The word in log and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Reset => "reset",
            Self::DelayAbort => "delay_abort",
            Self::DelayReset => "delay_reset",
        }
    }
}

impl Drawn {
    /// What that is called; `None` where nothing is done.
    pub fn made(&self) -> Option<Made> {
        Some(match (self.delay.is_some(), self.abort) {
            (false, None) => return None,
            (true, None) => Made::Delay,
            (false, Some(How::Reset)) => Made::Reset,
            (false, Some(How::Status(_) | How::Grpc(_))) => Made::Abort,
            (true, Some(How::Reset)) => Made::DelayReset,
            (true, Some(How::Status(_) | How::Grpc(_))) => Made::DelayAbort,
        })
    }
}

/// The fields by which a request asks for a fault: Envoy's.
pub const FIELDS: [&str; 3] =
    ["x-envoy-fault-delay-request", "x-envoy-fault-abort-request", "x-envoy-fault-abort-grpc-request"];

impl Fault {
    /// The longest delay.
    pub const DELAY_MAX: Duration = Duration::from_secs(300);

    /// What is done to a request with these fields. `random` gives evenly distributed numbers.
    pub fn draw<F: Fields>(&self, fields: &F, mut random: impl FnMut() -> u64) -> Drawn {
        let mut drawn = Drawn {
            delay: self.delay.filter(|delay| delay.percent.means(random())).map(|delay| delay.draw(random())),
            abort: self.abort.filter(|abort| abort.percent.means(random())).map(|abort| abort.how),
        };
        if self.by_header {
            let [delay, status, code] = FIELDS.map(|name| number(fields, name));
            if let Some(ms) = delay {
                drawn.delay = Some(Duration::from_millis(ms.into()).min(Self::DELAY_MAX));
            }
            if let Some(status) = status.filter(|status| (400..600).contains(status)) {
                drawn.abort = Some(How::Status(status as u16));
            }
            if let Some(code) = code.filter(|code| (1..17).contains(code)) {
                drawn.abort = Some(How::Grpc(code as u8));
            }
        }
        drawn
    }
}

impl Delay {
    fn draw(&self, random: u64) -> Duration {
        let between = self.most.saturating_sub(self.least).as_nanos();
        // The high half of the product: as even as can be. Fits: below five minutes.
        let part = (between * u128::from(random)) >> 64;
        self.least + Duration::from_nanos(part as u64)
    }
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
            delay: Some(Delay { percent: percent(50.0), least, most }),
            abort: Some(Abort { percent: percent(10.0), how: How::Status(503) }),
            by_header: false,
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

    #[test]
    fn a_request_asks_for_a_fault_only_where_it_may() {
        let asks = |lines: &[(&'static str, &'static str)]| Lines(lines.to_vec());
        let none = Fault { delay: None, abort: None, by_header: true };
        let [delay, status, code] = FIELDS;
        for (lines, want) in [
            (vec![(delay, "20")], Drawn { delay: Some(Duration::from_millis(20)), abort: None }),
            (vec![(delay, "4000000000")], Drawn { delay: Some(Fault::DELAY_MAX), abort: None }),
            (vec![(status, "418")], Drawn { delay: None, abort: Some(How::Status(418)) }),
            (vec![(status, "418"), (code, "14")], Drawn { delay: None, abort: Some(How::Grpc(14)) }),
            (vec![(status, "200")], Drawn::default()),
            (vec![(code, "17")], Drawn::default()),
            (vec![(delay, "-1"), (status, "x")], Drawn::default()),
            (vec![(delay, "1"), (delay, "2")], Drawn::default()),
        ] {
            assert_eq!(none.draw(&asks(&lines), || 0), want, "{lines:?}");
            let may_not = Fault { by_header: false, ..none.clone() };
            assert_eq!(may_not.draw(&asks(&lines), || 0), Drawn::default());
        }
    }

    #[test]
    fn what_is_done_has_a_name() {
        let drawn = |delay: bool, abort| Drawn { delay: delay.then_some(Duration::ZERO), abort };
        assert_eq!(drawn(false, None).made(), None);
        let made = |delay, abort| drawn(delay, abort).made().unwrap().label();
        assert_eq!((made(true, None), made(false, Some(How::Grpc(1)))), ("delay", "abort"));
        assert_eq!((made(false, Some(How::Reset)), made(true, Some(How::Reset))), ("reset", "delay_reset"));
        assert_eq!(made(true, Some(How::Status(500))), "delay_abort");
        for (n, made) in Made::ALL.into_iter().enumerate() {
            assert_eq!(made as usize, n);
        }
    }
}
