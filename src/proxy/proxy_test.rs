//! What every connection pays for, held to a size.

use super::*;

/// Multiplied by the open connections. With what the runtime and the frame add (56 bytes) it fits a block of 2 KiB of the
/// allocator; one byte more costs half a KiB. Far too small fails as well, so that the bound stays a bound.
#[test]
fn the_future_of_a_connection_stays_small() {
    let size = size_of_output(&serve);
    assert!((1700..=1992).contains(&size), "{size} bytes");
}

fn size_of_output<A, B, C, D, E, F: Future>(_: &impl Fn(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}
