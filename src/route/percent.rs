//! A share of requests. Pure: the random number is an argument.

use std::fmt;

/// So many of a hundred; fractions of a percent, too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(f64);

/// It is never NaN.
impl Eq for Percent {}

impl Percent {
    /// All of them.
    pub const ALL: Self = Self(100.0);

    /// `None` for what is not from 0 to 100.
    pub fn new(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// Whether one of them is meant, by an evenly distributed number.
    pub fn means(self, random: u64) -> bool {
        /// What a float tells apart.
        const STEPS: f64 = (1_u64 << 53) as f64;
        ((random >> 11) as f64) < self.0 / 100.0 * STEPS
    }

    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_means_none_all_means_all_and_a_part_as_many_as_it_says() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut meant = |percent: f64| {
            let percent = Percent::new(percent).unwrap();
            (0..100_000).filter(|_| percent.means(rng.u64(..))).count()
        };
        assert_eq!((meant(0.0), meant(100.0)), (0, 100_000));
        // 7 standard deviations of a binomial distribution.
        assert!(meant(25.0).abs_diff(25_000) < 960);
        assert!(meant(0.5).abs_diff(500) < 157);
        assert!(!Percent::new(0.0).unwrap().means(0) && Percent::ALL.means(u64::MAX));
        for wrong in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Percent::new(wrong), None);
        }
    }
}
