//! The shard's I/O buffers: taken when bytes are there, given back when they are gone.
//!
//! Two sizes. Small ones hold heads and short bodies; large ones carry long bodies, because fewer and larger operations
//! are what a long body's cost is made of (58 → 42 µs for 100 KiB between 16 and 64 KiB). What is given back is kept
//! for the next taker up to a limit and trimmed when unused. What is in use is bounded by [`Buffers::BYTES_MAX`];
//! reaching it, `take_*` refuses and the exchange is shed.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

use crate::snapshot::Limits;

const _: () = assert!(Limits::HEAD_CEILING as usize == Buffers::LARGE, "what may be configured must fit");

/// A shard's buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    small: RefCell<Vec<Buffer>>,
    large: RefCell<Vec<Buffer>>,
    /// Bytes taken and not given back.
    taken: Cell<usize>,
    /// Large buffers among that.
    large_taken: Cell<usize>,
    /// The fewest small and large buffers that lay ready since the last trim.
    spare_min: Cell<(usize, usize)>,
}

/// A buffer that was taken: a `Vec<u8>`, and what it counts as, which stays however it grows. Its capacity alone would not
/// tell: a small one that doubles three times is as large as a large one. One word, because the future of a connection
/// has room for many. The default was not taken: it has no room, counts as nothing, and is only freed when given back.
#[derive(Debug, Default)]
pub struct Buffer(Option<Box<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    bytes: Vec<u8>,
    counts_as: Size,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Size {
    #[default]
    Nothing,
    Small,
    Large,
}

impl Buffer {
    fn new(counts_as: Size) -> Self {
        Self(Some(Box::new(Taken { bytes: Vec::with_capacity(counts_as.bytes()), counts_as })))
    }
}

impl Size {
    const fn bytes(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Small => Buffers::SMALL,
            Self::Large => Buffers::LARGE,
        }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        static EMPTY: Vec<u8> = Vec::new();
        self.0.as_ref().map_or(&EMPTY, |taken| &taken.bytes)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0.get_or_insert_default().bytes
    }
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
    pub fn take_small(&self) -> Option<Buffer> {
        self.take(&self.small, Size::Small)
    }

    /// An empty large buffer, or `None` when `BYTES_MAX` are in use.
    pub fn take_large(&self) -> Option<Buffer> {
        self.take(&self.large, Size::Large)
    }

    /// Gives a buffer back. One that has grown beyond its size is freed, and counts no more than when it was taken.
    pub fn give(&self, mut buffer: Buffer) {
        let counts_as = buffer.0.as_ref().map_or(Size::Nothing, |taken| taken.counts_as);
        let (list, kept_max) = match counts_as {
            Size::Nothing => return,
            Size::Small => (&self.small, Self::SMALL_KEPT_MAX),
            Size::Large => (&self.large, Self::LARGE_KEPT_MAX),
        };
        let size = counts_as.bytes();
        debug_assert!(self.taken.get() >= size, "given back to other buffers than taken from");
        self.taken.set(self.taken.get().saturating_sub(size));
        if counts_as == Size::Large {
            self.large_taken.set(self.large_taken.get().saturating_sub(1));
        }
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

    /// Frees all that are kept ready.
    pub fn release(&self) {
        self.small.borrow_mut().clear();
        self.large.borrow_mut().clear();
        self.spare_min.set((0, 0));
    }

    /// Bytes in use.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Large buffers in use.
    pub fn large_taken(&self) -> usize {
        self.large_taken.get()
    }

    /// Bytes held: in use and ready for use.
    pub fn bytes(&self) -> usize {
        self.taken.get() + self.small.borrow().len() * Self::SMALL + self.large.borrow().len() * Self::LARGE
    }

    fn take(&self, list: &RefCell<Vec<Buffer>>, counts_as: Size) -> Option<Buffer> {
        let size = counts_as.bytes();
        if self.taken.get() + size > Self::BYTES_MAX {
            return None;
        }
        self.taken.set(self.taken.get() + size);
        if counts_as == Size::Large {
            self.large_taken.set(self.large_taken.get() + 1);
        }
        let mut list = list.borrow_mut();
        let buffer = list.pop();
        let (small, large) = self.spare_min.get();
        self.spare_min.set(if counts_as == Size::Small {
            (small.min(list.len()), large)
        } else {
            (small, large.min(list.len()))
        });
        Some(buffer.unwrap_or_else(|| Buffer::new(counts_as)))
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
        let take: [fn(&Buffers) -> Option<Buffer>; 2] = [Buffers::take_small, Buffers::take_large];
        for take in take {
            // The third is a small one as large as a large one; the last is what doubling makes of either.
            for capacity in [0, Buffers::SMALL * 3, Buffers::LARGE, Buffers::LARGE * 2] {
                let _other = (buffers.take_small().unwrap(), buffers.take_large().unwrap());
                let before = buffers.taken.get();
                let mut a = take(&buffers).unwrap();
                a.reserve_exact(capacity);
                assert!(a.capacity() >= capacity);
                buffers.give(a);
                assert_eq!(buffers.taken.get(), before, "{capacity}");
            }
        }
    }

    #[test]
    fn a_buffer_whose_bytes_are_lent_or_lost_is_still_counted_back() {
        let buffers = Buffers::default();
        let mut a = buffers.take_large().unwrap();
        drop(std::mem::take(&mut *a));
        buffers.give(std::mem::take(&mut a));
        buffers.give(a);
        buffers.give(Buffer::default());
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
