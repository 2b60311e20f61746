//! What is counted of faults that routes make on purpose.

use crate::route::fault::Made;

/// Faults of one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Made, by the number of their [`Made`].
    pub made: [u64; Made::ALL.len()],
    /// Not made, because as many as there may be were going on.
    pub refused: u64,
}

impl FaultCounts {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.made.iter_mut().zip(other.made) {
            *mine += theirs;
        }
        self.refused += other.refused;
    }

    /// Kinds that there were, as labels, and how many.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Made::ALL.into_iter().map(Made::label).zip(self.made).filter(|(_, n)| *n > 0)
    }
}
