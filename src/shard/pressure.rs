//! How short of memory the process is, in steps, and what each means: the cheapest is given up first. Pure. Control measures and
//! takes the steps (`control::memory`), shards ask what is refused. Between two looks of control a shard knows by itself how
//! much is spoken for: what it has taken since, for thousands of callers may come in a tenth of a second, and what is
//! promised to those whom it has let in and who have not taken it yet, for they are answered whatever comes.
//!
//! Nothing here ends what is in flight: an exchange, a tunnel, a connection that is in use goes on. But its bodies go on in
//! small pieces where memory is tight ([`Pressure::is_tight`]), so that it hardly grows.

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

    /// The step, as told, for a shard of whose room so much is spoken for.
    #[must_use]
    pub fn with(self, Spoken { octets, room }: Spoken) -> Self {
        match octets {
            octets if octets >= room => Self::All,
            octets if octets >= room / 4 * 3 => self.max(Self::Connections),
            _ => self,
        }
    }

    /// Whether bodies go on in small pieces on such a shard: before anybody is refused.
    pub fn is_tight(self, Spoken { octets, room }: Spoken) -> bool {
        self > Self::None || octets >= room / 2
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

/// What a shard may take until control looks at the process's memory again, and how much of that is taken or promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    /// Octets taken since control looked, and promised.
    pub octets: u64,
    /// Octets that it may take.
    pub room: u64,
}

/// What a shard has let in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Open connections of both sides.
    pub connections: u64,
    /// Octets of buffers in use.
    pub buffers: u64,
    /// Large buffers among them.
    pub large: u64,
    /// Buffers that nothing has come into: of connections that a first request is awaited on, for a moment.
    pub heads: u64,
    /// Exchanges whose answer has not begun.
    pub awaited: u64,
    /// Handshakes in progress with callers.
    pub handshakes: u64,
}

impl Load {
    /// Twice what a connection needs while it is idle.
    const CONNECTION: u64 = 8 * 1024;
    /// A page of what the caller sends, and one of what he is told, if only that he is refused.
    const HEAD: u64 = 8 * 1024;
    /// The connection with the service, and a page of each of the buffers that the answer goes through.
    const AWAITED: u64 = 12 * 1024;
    /// What a body may still write to of a large buffer: half. Where memory is tight it is exchanged for a small one at the next
    /// read.
    const LARGE: u64 = 64 * 1024;
    /// What a handshake needs while it lasts.
    const HANDSHAKE: u64 = 24 * 1024;

    /// About how many octets that is, as far as it may grow within a moment: of buffers half, for hardly any is written to whole.
    pub fn holds(&self) -> u64 {
        self.connections * Self::CONNECTION + self.buffers / 2
    }

    /// About how many octets more it will be whoever else comes: those who were let in are answered.
    pub fn promised(&self) -> u64 {
        self.heads * Self::HEAD
            + self.awaited * Self::AWAITED
            + self.large * Self::LARGE
            + self.handshakes * Self::HANDSHAKE
    }
}

/// What a shard held when control last looked at the process's memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Since {
    look: u64,
    held: u64,
}

impl Since {
    /// The same at this look, before which the shard had said that it held so much. What was taken while control looked it may
    /// have seen or not: it counts as taken since. What was given back meanwhile is free.
    #[must_use]
    pub fn at(self, look: u64, held: u64, load: &Load) -> Self {
        if look == self.look { self } else { Self { look, held: held.min(load.holds()) } }
    }

    /// What is spoken for of so much room.
    pub fn spoken(&self, load: &Load, room: u64) -> Spoken {
        Spoken { octets: load.holds().saturating_sub(self.held) + load.promised(), room }
    }
}

/// How much more all shards together may take until it is looked again, where so much of the ceiling is used: to nine tenths of it, and
/// then half of what is left. The rest is for what is guessed wrong.
pub fn room(used: u64, ceiling: u64) -> u64 {
    let left = ceiling.saturating_sub(used);
    left.saturating_sub(ceiling / 10).max(left / 2)
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
        let spoken = |octets| Spoken { octets, room: 100 };
        assert_eq!(
            [0, 74, 75, 99, 100, 1000].map(|octets| Pressure::None.with(spoken(octets))),
            [
                Pressure::None,
                Pressure::None,
                Pressure::Connections,
                Pressure::Connections,
                Pressure::All,
                Pressure::All
            ]
        );
        assert_eq!(Pressure::Default.with(spoken(80)), Pressure::Default);
        assert_eq!(Pressure::None.with(Spoken { octets: 0, room: 0 }), Pressure::All);
    }

    #[test]
    fn bodies_go_in_small_pieces_before_anybody_is_refused() {
        let spoken = |octets| Spoken { octets, room: 100 };
        assert_eq!([0, 49, 50, 74].map(|n| Pressure::None.is_tight(spoken(n))), [false, false, true, true]);
        assert_eq!([49, 50, 74].map(|n| Pressure::None.with(spoken(n))), [Pressure::None; 3]);
        assert!(Pressure::Idle.is_tight(spoken(0)));
    }

    #[test]
    fn shards_may_take_less_than_what_is_left() {
        let seen = [0, 500, 799, 800, 900, 999, 1000, 2000].map(|used| room(used, 1000));
        assert_eq!(seen, [900, 400, 101, 100, 50, 0, 0, 0]);
        assert_eq!(room(0, u64::MAX), u64::MAX - u64::MAX / 10);
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
