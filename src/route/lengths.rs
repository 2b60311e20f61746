//! Which lengths the keys of a table have, in one word: most look-ups that find nothing end here, before anything is hashed.

/// A set of lengths: bit n for n octets, the last bit for 63 and more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lengths(u64);

impl Lengths {
    /// Nothing has any.
    pub(super) const NONE: Self = Self(0);

    /// Something has this one.
    pub(super) fn add(&mut self, length: usize) {
        self.0 |= 1 << length.min(63);
    }

    /// Whether something may have this one; a no is never wrong.
    pub(super) const fn has(self, length: usize) -> bool {
        let bit = if length < 63 { length } else { 63 };
        (self.0 >> bit) & 1 == 1
    }
}
