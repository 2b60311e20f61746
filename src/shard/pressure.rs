//! How short of memory the process is, in steps, and what each means: the cheapest is given up first. Pure. Control measures and
//! takes the steps (`control::memory`), shards ask what is refused. Between two looks of control a shard knows by itself how
//! much it has taken: thousands of callers may come in a tenth of a second.
//!
//! Nothing here touches what is in flight: an exchange, a tunnel, a connection that is in use goes on.

use crate::route::Priority;

/// A step. Each means what those before it mean, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Pressure {
    /// There is enough.
    #[default]
    None,
    /// What lies idle is closed and given back; no copies of requests are made.
    Idle,
    /// New connections are closed at once.
    Connections,
    /// New requests of routes that give way to others are refused.
    Sheddable,
    /// And those of all that are not critical.
    Default,
    /// All.
    All,
}

impl Pressure {
    /// All of them, the least first.
    pub const STEPS: [Self; 6] =
        [Self::None, Self::Idle, Self::Connections, Self::Sheddable, Self::Default, Self::All];

    /// A step is left when less is used than where it begins, by this much of the ceiling, ‰: else it would be left and taken
    /// again with every connection.
    const SLACK_PERMILLE: u64 = 30;

    /// How much of the ceiling is used where it begins, ‰.
    pub const fn begins_permille(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Idle => 800,
            Self::Connections => 900,
            Self::Sheddable => 950,
            Self::Default => 980,
            Self::All => 1000,
        }
    }

    /// The step after this one, when so many octets of `ceiling` are in use: up at once, however far; down as far as it is clear
    /// that it may be.
    #[must_use]
    pub fn next(self, used: u64, ceiling: u64) -> Self {
        let reaches = |permille: u64| u128::from(used) * 1000 >= u128::from(ceiling) * u128::from(permille);
        let holds = |step: &Self| match *step {
            Self::None => true,
            step if step > self => reaches(step.begins_permille()),
            step => reaches(step.begins_permille() - Self::SLACK_PERMILLE),
        };
        Self::STEPS.into_iter().rev().find(holds).unwrap_or_default()
    }

    /// The step, as told, for a shard that holds so much more than when control last looked, of what it may.
    #[must_use]
    pub fn with_growth(self, grown: u64, room: u64) -> Self {
        match grown {
            grown if grown >= room => Self::All,
            grown if grown >= room / 4 * 3 => self.max(Self::Connections),
            _ => self,
        }
    }

    /// The step with this number; the last one for what is none.
    pub fn of(number: u8) -> Self {
        Self::STEPS.get(usize::from(number)).copied().unwrap_or(Self::All)
    }

    /// The word in log and admin pages.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Idle => "idle",
            Self::Connections => "connections",
            Self::Sheddable => "sheddable",
            Self::Default => "default",
            Self::All => "all",
        }
    }

    /// Whether new connections are refused.
    pub fn refuses_connections(self) -> bool {
        self >= Self::Connections
    }

    /// Whether new requests of this priority are refused.
    pub fn refuses(self, priority: Priority) -> bool {
        self >= match priority {
            Priority::Critical => Self::All,
            Priority::Default => Self::Default,
            Priority::Sheddable => Self::Sheddable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn steps_are_taken_where_they_begin_and_left_below_that() {
        let (ceiling, mut step) = (1000 * MIB, Pressure::None);
        let course = [
            (0, Pressure::None),
            (799, Pressure::None),
            (800, Pressure::Idle),
            // Around the edge nothing changes.
            (799, Pressure::Idle),
            (801, Pressure::Idle),
            (770, Pressure::Idle),
            (769, Pressure::None),
            // Up at once, however far.
            (960, Pressure::Sheddable),
            (949, Pressure::Sheddable),
            (919, Pressure::Connections),
            (1005, Pressure::All),
            (970, Pressure::All),
            (969, Pressure::Default),
            (2000, Pressure::All),
            // Down as far as may be.
            (100, Pressure::None),
        ];
        for (used, want) in course {
            step = step.next(used * MIB, ceiling);
            assert_eq!(step, want, "at {used} of 1000");
        }
    }

    #[test]
    fn whatever_the_memory_does_a_step_is_never_lower_than_its_beginning_nor_higher_than_its_slack() {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(19);
        eprintln!("RINGMESH_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for ceiling in [1, 17, 64 * MIB, u64::MAX / 2, u64::MAX] {
            let mut step = Pressure::None;
            for _ in 0..10_000 {
                let used =
                    (u128::from(ceiling) * u128::from(rng.u64(..1200)) / 1000).min(u64::MAX.into()) as u64;
                let before = step;
                step = step.next(used, ceiling);
                let permille = |step: Pressure| u128::from(ceiling) * u128::from(step.begins_permille());
                let used = u128::from(used) * 1000;
                for other in Pressure::STEPS {
                    assert!(used < permille(other) || step >= other, "{used} of {ceiling}: {step:?}");
                }
                let slack = u128::from(ceiling) * 30;
                assert!(
                    step == Pressure::None || used + slack >= permille(step),
                    "{used} of {ceiling}: {step:?}"
                );
                assert!(step <= before || used >= permille(step), "{before:?} to {step:?}");
            }
        }
    }

    #[test]
    fn a_shard_that_grows_between_two_looks_stops_where_its_room_ends() {
        let grown = |grown| Pressure::None.with_growth(grown, 100);
        assert_eq!(
            [0, 74, 75, 99, 100, 1000].map(grown),
            [
                Pressure::None,
                Pressure::None,
                Pressure::Connections,
                Pressure::Connections,
                Pressure::All,
                Pressure::All
            ]
        );
        assert_eq!(Pressure::Default.with_growth(80, 100), Pressure::Default);
        assert_eq!(Pressure::None.with_growth(0, 0), Pressure::All);
    }

    #[test]
    fn what_is_cheapest_goes_first() {
        let refused = |step: Pressure| Priority::ALL.into_iter().filter(|p| step.refuses(*p)).count();
        assert_eq!(Pressure::STEPS.map(refused), [0, 0, 0, 1, 2, 3]);
        assert!(
            Pressure::Sheddable.refuses(Priority::Sheddable)
                && !Pressure::Default.refuses(Priority::Critical)
        );
        assert_eq!(
            Pressure::STEPS.map(Pressure::refuses_connections),
            [false, false, true, true, true, true]
        );
        for (n, step) in Pressure::STEPS.into_iter().enumerate() {
            assert_eq!((step as usize, Pressure::of(n as u8)), (n, step));
        }
        assert_eq!(Pressure::of(200), Pressure::All);
    }
}
