//! The shard's I/O buffers: taken when bytes are there, given back when they are gone.
//!
//! Two sizes. Small ones hold heads and short bodies; large ones carry long bodies, because fewer and larger operations
//! are what a long body's cost is made of (58 → 42 µs for 100 KiB between 16 and 64 KiB). What is given back is kept
//! for the next taker up to a limit and trimmed when unused. What is in use is bounded by [`Buffers::BYTES_MAX`];
//! reaching it, `take_*` refuses and the exchange is shed.

use std::cell::{Cell, RefCell};

use crate::snapshot::Limits;

const _: () = assert!(Limits::HEAD_CEILING as usize == Buffers::LARGE, "what may be configured must fit");

/// A shard's buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    small: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
    /// Bytes taken and not given back.
    taken: Cell<usize>,
    /// The fewest small and large buffers that lay ready since the last trim.
    spare_min: Cell<(usize, usize)>,
}

impl Buffers {
    /// Bytes of a small buffer: the head of nearly every message and a body of a few KiB in one read.
    pub const SMALL: usize = 16 * 1024;
    /// Bytes of a large buffer: 100 KiB in two reads, a socket's default receive window in one. It takes the largest head.
    pub const LARGE: usize = 128 * 1024;
    /// Small buffers kept ready (4 MiB).
    const SMALL_KEPT_MAX: usize = 256;
    /// Large buffers kept ready (4 MiB).
    const LARGE_KEPT_MAX: usize = 32;
    /// Bytes in use per shard: 1 GiB is 20 000 short exchanges that wait for their service, or 8 000 long bodies; one
    /// more is shed. Resident is what was written to: about a quarter.
    pub const BYTES_MAX: usize = 1024 * 1024 * 1024;

    /// An empty small buffer, or `None` when `BYTES_MAX` are in use.
    pub fn take_small(&self) -> Option<Vec<u8>> {
        self.take(&self.small, Self::SMALL)
    }

    /// An empty large buffer, or `None` when `BYTES_MAX` are in use.
    pub fn take_large(&self) -> Option<Vec<u8>> {
        self.take(&self.large, Self::LARGE)
    }

    /// Gives a buffer back. One that has grown beyond its size is freed.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let (list, kept_max, size) = match buffer.capacity() {
            0 => return,
            Self::LARGE => (&self.large, Self::LARGE_KEPT_MAX, Self::LARGE),
            // A small one that grew counts as the small one that it was taken as.
            _ => (&self.small, Self::SMALL_KEPT_MAX, Self::SMALL),
        };
        self.taken.set(self.taken.get().saturating_sub(size));
        let mut list = list.borrow_mut();
        if buffer.capacity() == size && list.len() < kept_max {
            buffer.clear();
            list.push(buffer);
        }
    }

    /// Once a second: frees half of what lay unused for the whole of it.
    pub fn trim(&self) {
        let (small, large) = self.spare_min.get();
        for (list, spare) in [(&self.small, small), (&self.large, large)] {
            let mut list = list.borrow_mut();
            let keep = list.len().saturating_sub(spare.div_ceil(2));
            list.truncate(keep);
        }
        self.spare_min.set((self.small.borrow().len(), self.large.borrow().len()));
    }

    /// Bytes held: in use and ready for use.
    pub fn bytes(&self) -> usize {
        self.taken.get() + self.small.borrow().len() * Self::SMALL + self.large.borrow().len() * Self::LARGE
    }

    fn take(&self, list: &RefCell<Vec<Vec<u8>>>, size: usize) -> Option<Vec<u8>> {
        if self.taken.get() + size > Self::BYTES_MAX {
            return None;
        }
        self.taken.set(self.taken.get() + size);
        let mut list = list.borrow_mut();
        let buffer = list.pop();
        let (small, large) = self.spare_min.get();
        self.spare_min.set(if size == Self::SMALL {
            (small.min(list.len()), large)
        } else {
            (small, large.min(list.len()))
        });
        Some(buffer.unwrap_or_else(|| Vec::with_capacity(size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_trimmed_when_idle() {
        let buffers = Buffers::default();
        let (a, b) = (buffers.take_small().unwrap(), buffers.take_large().unwrap());
        let at = a.as_ptr();
        buffers.give(a);
        buffers.give(b);
        let again = buffers.take_small().unwrap();
        assert_eq!(again.as_ptr(), at);
        assert_eq!(buffers.bytes(), Buffers::SMALL + Buffers::LARGE);
        buffers.trim();
        buffers.trim();
        assert_eq!(buffers.bytes(), Buffers::SMALL, "the large one lay unused between two trims");
    }

    #[test]
    fn a_grown_buffer_counts_as_what_it_was_taken_as() {
        let buffers = Buffers::default();
        let mut a = buffers.take_small().unwrap();
        a.resize(Buffers::SMALL * 3, 0);
        buffers.give(a);
        assert_eq!(buffers.bytes(), 0);
    }

    #[test]
    fn the_limit_refuses() {
        let buffers = Buffers::default();
        let mut held = Vec::new();
        while let Some(b) = buffers.take_large() {
            held.push(b);
        }
        assert_eq!(held.len(), Buffers::BYTES_MAX / Buffers::LARGE);
        buffers.give(held.pop().unwrap());
        assert!(buffers.take_large().is_some());
    }
}
