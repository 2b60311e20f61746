//! How many exchanges are turned away because the service fails, so that it is left room to recover: what Google's book on
//! reliability calls client-side throttling, with the numbers of Envoy's admission control. Pure: time and chance are
//! arguments.
//!
//! Of `n` exchanges that ended in the last `window`, `s` well, the next one is turned away with the probability
//! `(n - s / success_min) / (n + 1)`, `refuse_max` at the most: none while as many end well as should, ever more as fewer do,
//! and those that are let in tell when it is over. What is turned away is not counted. The unimportant go first: for
//! `sheddable` it is the square root of that, for `critical` the square.
//!
//! Each shard counts for itself, as each proxy does: they all see the same service.

use crate::route::Priority;

/// When and how much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The part of exchanges that should end well.
    pub success_min: f64,
    /// The part that is turned away at the most: the rest finds out when it is over.
    pub refuse_max: f64,
    /// What is looked back to, ns.
    pub window_ns: u64,
    /// With fewer in the window nobody is turned away.
    pub exchanges_min: u32,
}

impl Eq for Settings {}

/// What has become of the exchanges of the last window, in tenths of it.
#[derive(Debug, Default)]
pub struct Admission {
    tenths: [Tenth; Self::TENTHS],
    /// All of them together: asked for with each exchange, while a tenth passes seldom.
    sum: Tenth,
    /// The place of the newest.
    newest: usize,
    /// When that began.
    began_ns: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Tenth {
    ended: u32,
    well: u32,
}

impl Admission {
    const TENTHS: usize = 10;

    /// An exchange has ended, well or not.
    pub fn ended(&mut self, settings: &Settings, well: bool, now_ns: u64) {
        self.advance(settings, now_ns);
        for tenth in [&mut self.tenths[self.newest], &mut self.sum] {
            tenth.ended = tenth.ended.saturating_add(1);
            tenth.well = tenth.well.saturating_add(u32::from(well));
        }
    }

    /// Whether the next one is turned away; `chance` is from 0 to 1, exclusive, and asked for only where it is needed.
    pub fn refuses(
        &mut self,
        settings: &Settings,
        priority: Priority,
        chance: impl FnOnce() -> f64,
        now_ns: u64,
    ) -> bool {
        let part = self.part(settings, now_ns);
        if part == 0.0 {
            return false;
        }
        let most = settings.refuse_max;
        let part = match priority {
            // Of what is below the ceiling, or at it all would be alike.
            Priority::Critical => part.min(most).powi(2),
            Priority::Default => part.min(most),
            Priority::Sheddable => part.sqrt().min(most),
        };
        chance() < part
    }

    /// The part that is turned away, before its ceiling.
    fn part(&mut self, settings: &Settings, now_ns: u64) -> f64 {
        self.advance(settings, now_ns);
        let Tenth { ended, well } = self.sum;
        if ended == well || ended < settings.exchanges_min {
            return 0.0;
        }
        let (ended, well) = (f64::from(ended), f64::from(well));
        ((ended - well / settings.success_min) / (ended + 1.0)).max(0.0)
    }

    /// Forgets what is older than the window.
    fn advance(&mut self, settings: &Settings, now_ns: u64) {
        let tenth_ns = (settings.window_ns / Self::TENTHS as u64).max(1);
        let since_ns = now_ns.saturating_sub(self.began_ns);
        if since_ns < tenth_ns {
            return;
        }
        let passed = since_ns / tenth_ns;
        self.began_ns += passed * tenth_ns;
        for _ in 0..passed.min(Self::TENTHS as u64) {
            self.newest = (self.newest + 1) % Self::TENTHS;
            let old = std::mem::take(&mut self.tenths[self.newest]);
            self.sum.ended = self.sum.ended.saturating_sub(old.ended);
            self.sum.well = self.sum.well.saturating_sub(old.well);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SETTINGS: Settings =
        Settings { success_min: 0.95, refuse_max: 0.8, window_ns: 10 * SECOND, exchanges_min: 20 };

    fn after(good: u32, bad: u32) -> Admission {
        let mut admission = Admission::default();
        for n in 0..good + bad {
            admission.ended(&SETTINGS, n < good, SECOND);
        }
        admission
    }

    #[test]
    fn nobody_is_turned_away_while_as_many_end_well_as_should() {
        for (good, bad) in [(100, 0), (95, 5), (950, 50), (0, 19), (1, 0)] {
            assert_eq!(after(good, bad).part(&SETTINGS, SECOND), 0.0, "{good} and {bad}");
        }
    }

    #[test]
    fn ever_more_are_as_fewer_end_well() {
        let part = |good, bad| after(good, bad).part(&SETTINGS, SECOND);
        // By the formula: (1000 - s / 0.95) / 1001.
        for (good, expected) in [(900, 0.0526), (500, 0.4732), (0, 0.9990)] {
            let part = part(good, 1000 - good);
            assert!((part - expected).abs() < 0.001, "{part} for {good}");
        }
    }

    #[test]
    fn some_are_always_let_in_and_the_unimportant_go_first() {
        let mut admission = after(0, 1000);
        let mut refused = |priority, chance| admission.refuses(&SETTINGS, priority, || chance, SECOND);
        assert!(!refused(Priority::Default, 0.81) && !refused(Priority::Sheddable, 0.81));
        assert!(refused(Priority::Default, 0.79) && refused(Priority::Sheddable, 0.79));
        // The square of 0.8.
        assert!(refused(Priority::Critical, 0.63) && !refused(Priority::Critical, 0.65));
        // A part of 0.473: 0.688 of the sheddable, 0.224 of the critical.
        let mut half = after(500, 500);
        let mut refused = |priority, chance| half.refuses(&SETTINGS, priority, || chance, SECOND);
        assert!(refused(Priority::Sheddable, 0.6) && !refused(Priority::Default, 0.6));
        assert!(refused(Priority::Default, 0.3) && !refused(Priority::Critical, 0.3));
    }

    #[test]
    fn another_window_holds_from_the_next_tenth_on() {
        let long = Settings { window_ns: 100 * SECOND, ..SETTINGS };
        // By the clock the number of a long tenth is smaller than that of a short one.
        let mut admission = after(0, 1000);
        assert!(admission.part(&SETTINGS, 9 * SECOND) > 0.9);
        assert!(admission.part(&long, 10 * SECOND) > 0.9);
        assert_eq!(admission.part(&long, 110 * SECOND), 0.0);
        for _ in 0..100 {
            admission.ended(&long, false, 110 * SECOND);
        }
        assert!(admission.part(&SETTINGS, 111 * SECOND) > 0.9);
        assert_eq!(admission.part(&SETTINGS, 121 * SECOND), 0.0);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut admission = after(0, 1000);
        assert!(admission.part(&SETTINGS, 10 * SECOND) > 0.9);
        assert_eq!(admission.part(&SETTINGS, 11 * SECOND), 0.0);
        let mut admission = after(0, 1000);
        assert_eq!(admission.part(&SETTINGS, 1000 * SECOND), 0.0);
        // Time that is not later than before changes nothing.
        let mut admission = after(0, 1000);
        assert!(admission.part(&SETTINGS, 0) > 0.9);
    }
}
