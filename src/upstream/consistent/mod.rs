//! Tables for consistent hashing: a key leads to the same endpoint as long as that is there, whatever becomes of others.
//! Built by control with the rest of a service's [plan](super::plan), read by all shards.
//!
//! What a table holds depends on the addresses and weights of its endpoints alone, not on their order in a file, on the
//! proxy or on the time: all proxies with the same endpoints agree. The hash is [XXH64](mod@xxh64), seed 0, of an address as it
//! is written (`127.0.0.1:9000`, `unix:/run/app.sock`).
//!
//! Whoever asks says which endpoints it takes ([`Table::find`]). One that it does not take is passed over in an order that
//! is a part of the table: on the ring the next points, with maglev the places that the key leads to next. So the keys of
//! an endpoint that is away spread over the others, each always to the same one.

mod maglev;
mod ring;
pub(super) mod xxh64;

pub use maglev::Maglev;
pub use ring::Ring;
use xxh64::{avalanche, xxh64};

use super::spec::Address;

/// Keys to endpoints. Endpoints are named by their place in the list that the table was built of.
#[derive(Debug)]
pub enum Table {
    /// Points on a circle.
    Ring(Ring),
    /// A permutation of its own for each endpoint.
    Maglev(Maglev),
}

/// An endpoint that a table is built of.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// What it is known by.
    pub address: &'a Address,
    /// Its part relative to the others.
    pub weight: u16,
}

impl Table {
    /// The first endpoint for this key that is taken, if one is. Costs a few nanoseconds where the first is; where hardly
    /// any is, as much as looking at all.
    pub fn find(&self, key: u64, mut takes: impl FnMut(usize) -> bool) -> Option<usize> {
        let (found, count) = match self {
            Self::Ring(ring) => (ring.find(key, &mut takes), ring.members()),
            Self::Maglev(maglev) => (maglev.find(key, &mut takes), maglev.members()),
        };
        if found.is_some() || count == 0 {
            return found;
        }
        // Nearly all are passed over: all others are looked at, from a place that the key leads to.
        let first = (avalanche(key) % count as u64) as usize;
        (first..count).chain(0..first).find(|&n| takes(n))
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.bytes(),
            Self::Maglev(maglev) => maglev.bytes(),
        }
    }
}

/// A number within a range, by a hash: as even as the hash (one multiplication in place of a division).
fn within(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

#[cfg(test)]
#[path = "consistent_test.rs"]
mod tests;
