//! Round robin among the endpoints of a group: in a circle, or by a heap where weights differ. Named by their places.

use fastrand::Rng;

use super::plan::{Group, Shares, below};

/// Whose turn it is. Shards begin at different endpoints, so that many shards (and many proxies) do not all call the
/// first endpoint first.
#[derive(Debug)]
pub(super) enum Turns {
    /// Weights are equal.
    Circle {
        /// `None` before the first pick.
        next: Option<usize>,
    },
    /// Weights differ: a binary heap, the earliest due at the root.
    Due {
        /// Whether the first turns have been spread at random.
        shuffled: bool,
        heap: Box<[Turn]>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// When it is due, in a time of its own that passes with picks and wraps around; compare with [`Turn::before`].
    pub(super) due: u64,
    /// From one turn to the next: inverse to the weight.
    stride: u64,
    endpoint: usize,
}

impl Turn {
    /// The stride of weight 1. Divided by weights up to 1000 it is exact to one in 4 × 10⁶, and all strides are so far
    /// below 2⁶³ that turns which are due can be told from those which were, also when the time wraps around.
    pub(super) const STRIDE: u64 = 1 << 32;

    fn new((endpoint, weight): (usize, u16)) -> Self {
        let stride = Self::STRIDE / u64::from(weight);
        Self { due: stride, stride, endpoint }
    }

    fn before(&self, other: &Self) -> bool {
        match (self.due.wrapping_sub(other.due)) as i64 {
            0 => self.endpoint < other.endpoint,
            difference => difference < 0,
        }
    }
}

impl Turns {
    /// Those of a group.
    pub(super) fn of(group: &Group) -> Self {
        match &group.shares {
            Shares::Equal => Self::Circle { next: None },
            Shares::Unequal(_) => {
                let heap = (0..group.len).map(|place| Turn::new((place, group.shares.weight(place))));
                Self::Due { shuffled: false, heap: heap.collect() }
            }
        }
    }

    pub(super) fn next(
        &mut self,
        count: usize,
        rng: &mut Rng,
        skip: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match self {
            Self::Circle { next } => {
                let first = next.unwrap_or_else(|| below(rng, count));
                let picked = (first..count).chain(0..first).find(|&e| !skip(e))?;
                *next = Some(if picked + 1 == count { 0 } else { picked + 1 });
                Some(picked)
            }
            Self::Due { shuffled, heap } => {
                if !*shuffled {
                    *shuffled = true;
                    for turn in &mut **heap {
                        turn.due = rng.u64(..turn.stride);
                    }
                    heap.sort_unstable_by_key(|turn| turn.due);
                }
                if skip(heap[0].endpoint) {
                    // One that is skipped loses this turn and stands behind the one that is picked: were it to keep
                    // its turns, it would get all of them in one burst when it is skipped no longer.
                    let earliest = |a: Turn, b: Turn| if b.before(&a) { b } else { a };
                    let due = heap.iter().copied().filter(|turn| !skip(turn.endpoint)).reduce(earliest)?.due;
                    while skip(heap[0].endpoint) {
                        heap[0].due = due.wrapping_add(heap[0].stride);
                        sift_root(heap);
                    }
                }
                let picked = heap[0].endpoint;
                heap[0].due = heap[0].due.wrapping_add(heap[0].stride);
                sift_root(heap);
                Some(picked)
            }
        }
    }
}

/// Restores the order of a heap whose root has become later.
fn sift_root(heap: &mut [Turn]) {
    let mut at = 0;
    loop {
        let mut earliest = at;
        for child in [2 * at + 1, 2 * at + 2] {
            if child < heap.len() && heap[child].before(&heap[earliest]) {
                earliest = child;
            }
        }
        if earliest == at {
            return;
        }
        heap.swap(at, earliest);
        at = earliest;
    }
}
