//! Buffers for ciphertext on its way out, kept by each thread for its next write.
//!
//! What rustls encrypts into has to be initialised. A fresh buffer for each write meant to zero it first, in memory that was cold;
//! what comes back from here keeps the octets that were sent from it last, which were ciphertext, to be written over. They
//! are few: a buffer is here only while nothing is being written from it. Refuses to know rustls and sockets.

use std::cell::RefCell;

/// Buffers kept ready: at most 1 MiB a shard.
const KEPT_MAX: usize = 8;
/// What one is made for: a record.
const BYTES_MIN: usize = 17 * 1024;
/// What growing makes of one that took the longest write.
const BYTES_MAX: usize = 128 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer with octets in it that mean nothing, maybe none.
pub(super) fn take() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(BYTES_MIN))
}

/// Takes a buffer that is not used any more; frees one that is too small to be worth it or too large, and where enough are here.
pub(super) fn give(buffer: Vec<u8>) {
    if (BYTES_MIN..=BYTES_MAX).contains(&buffer.capacity()) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT_MAX {
                spare.push(buffer);
            }
        });
    }
}

/// Once a second: frees one, so that what is not needed any more goes.
pub(crate) fn trim() {
    drop(SPARE.with_borrow_mut(Vec::pop));
}

/// Frees all.
pub(crate) fn release() {
    SPARE.take();
}

/// Memory of those kept ready on this thread.
pub(crate) fn bytes() -> usize {
    SPARE.with_borrow(|spare| spare.iter().map(Vec::capacity).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_it_is_kept_a_few_of_it_and_goes_when_it_lies_unused() {
        release();
        give(Vec::with_capacity(BYTES_MIN - 1));
        give(Vec::with_capacity(BYTES_MAX + 1));
        give(Vec::new());
        assert_eq!(bytes(), 0, "too small to be worth it, or grown too large");
        for _ in 0..KEPT_MAX + 3 {
            give(Vec::with_capacity(BYTES_MIN));
        }
        assert_eq!(bytes(), KEPT_MAX * BYTES_MIN);
        let one = take();
        assert_eq!((one.capacity(), bytes()), (BYTES_MIN, (KEPT_MAX - 1) * BYTES_MIN));
        trim();
        assert_eq!(bytes(), (KEPT_MAX - 2) * BYTES_MIN);
        release();
        assert_eq!(bytes(), 0);
        assert!(take().capacity() >= BYTES_MIN);
    }
}
