//! What is counted of copies of requests: what came of them, and why there was none. Apart from the exchanges of the service, so
//! that a copy moves nobody's error rate.

/// Why a request was not copied although its route says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Unsent {
    /// As many copies as there may be were in progress.
    Busy,
    /// The body of the request was longer than what is kept.
    Body,
    /// The request was never whole.
    Cut,
    /// The service was given all that it may be given.
    Caps,
    /// All endpoints of the service are passed over, and it was not the time to see whether one is well again.
    Ejected,
}

impl Unsent {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Busy, Self::Body, Self::Cut, Self::Caps, Self::Ejected];

    /// The word in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Body => "body",
            Self::Cut => "cut",
            Self::Caps => "caps",
            Self::Ejected => "ejected",
        }
    }
}

/// Copies for one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MirrorCounts {
    /// Sent, by the class of the status that the service answered; index 0: without one.
    pub by_class: [u64; 6],
    /// Not sent, by the number of the reason.
    pub unsent: [u64; Unsent::ALL.len()],
}

impl MirrorCounts {
    /// Counts one that was sent. `status` 0: it was not answered.
    pub fn record(&mut self, status: u16) {
        let class = usize::from(status / 100);
        self.by_class[if class < 6 { class } else { 0 }] += 1;
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.by_class.iter_mut().zip(other.by_class) {
            *mine += theirs;
        }
        for (mine, theirs) in self.unsent.iter_mut().zip(other.unsent) {
            *mine += theirs;
        }
    }

    /// Classes that there were, as labels, and how many.
    pub fn classes(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(self.by_class).filter(|(_, n)| *n > 0)
    }

    /// Why there was none, as labels, and how often.
    pub fn reasons(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Unsent::ALL.into_iter().map(Unsent::label).zip(self.unsent).filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_by_its_label() {
        let mut counts = MirrorCounts::default();
        counts.record(0);
        counts.record(503);
        counts.unsent[Unsent::Body as usize] = 2;
        let mut sum = counts;
        sum.add(&counts);
        assert_eq!(sum.classes().collect::<Vec<_>>(), [("none", 2), ("5xx", 2)]);
        assert_eq!(sum.reasons().collect::<Vec<_>>(), [("body", 4)]);
        for (n, why) in Unsent::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, n);
        }
    }
}
