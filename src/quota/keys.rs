//! Buckets by key, of all shards together: as much memory as was said, whoever calls.
//!
//! A key's set is found by its hash; in it the key has a bucket, takes one that is full (which is as if nobody had ever taken
//! from it, so that nothing is forgotten), or, where none is, shares one bucket with all who find none. So those who are known
//! keep what they have while somebody makes up new names. No lock: a place changes hands by one exchange. When two shards bring the
//! same key at the same moment it may get two places, of which the second is forgotten: one burst more, once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::bucket::Bucket;

/// The buckets.
#[derive(Debug)]
pub struct Keys {
    sets: Box<[Set]>,
    /// Of those who find no place.
    shared: Bucket,
}

#[derive(Debug, Default)]
struct Set([Place; Keys::WAYS]);

#[derive(Debug, Default)]
struct Place {
    /// Whose it is: a hash; 0 before anybody's.
    key: AtomicU64,
    bucket: Bucket,
}

impl Keys {
    /// Places of a set: with twice as many places as keys, less than one of a hundred finds its set full.
    const WAYS: usize = 16;

    /// For about so many at a time.
    pub fn new(keys_max: u32) -> Self {
        let sets = (keys_max as usize * 2).div_ceil(Self::WAYS).max(1);
        Self { sets: (0..sets).map(|_| Set::default()).collect(), shared: Bucket::default() }
    }

    /// The bucket of a key, given by an even hash of it, and whether it is its own.
    pub fn bucket(&self, hash: u64, now_ns: u64) -> (&Bucket, bool) {
        let key = hash | 1;
        // The upper bits of the product: as even as the hash.
        let at = (u128::from(hash) * self.sets.len() as u128) >> 64;
        let Some(Set(places)) = self.sets.get(at as usize) else { return (&self.shared, false) };
        if let Some(place) = places.iter().find(|place| place.key.load(Ordering::Relaxed) == key) {
            return (&place.bucket, true);
        }
        for place in places {
            let known = place.key.load(Ordering::Relaxed);
            if !place.bucket.is_full(now_ns) {
                continue;
            }
            let taken = place.key.compare_exchange(known, key, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() || taken == Err(key) {
                return (&place.bucket, true);
            }
        }
        (&self.shared, false)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::bucket::Pace;
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn who_is_known_keeps_what_he_has_while_others_make_up_names() {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let mut rng = fastrand::Rng::with_seed(seed);
        let keys = Keys::new(1000);
        let pace = Pace::new(1, 3600 * S, 10);
        let take = |hash, now| keys.bucket(hash, now).0.take(pace, now).is_ok();
        // A thousand honest ones have taken one each.
        let honest: Vec<u64> = (0..1000).map(|_| rng.u64(..)).collect();
        let own = honest.iter().filter(|hash| keys.bucket(**hash, S).1 && take(**hash, S)).count();
        // Sets of sixteen with eight each on average: more than sixteen in one of them has a chance of 0.4 %; that 50 of 1000 keys
        // are in such sets has one far below a millionth.
        assert!(own > 950, "{own}, RINGMESH_SEED={seed}");
        // A hundred thousand names share what is left: places of their own for a thousand or so, and one bucket for all others.
        let passed = (0..100_000).filter(|_| take(rng.u64(..), S)).count();
        assert!(passed <= 2000 + 10, "{passed}, RINGMESH_SEED={seed}");
        // Who was there still has nine.
        let mut left = HashMap::new();
        for hash in honest.iter().filter(|hash| keys.bucket(**hash, S).1) {
            *left.entry(*hash).or_insert(0) += (0..20).filter(|_| take(*hash, S)).count();
        }
        assert!(left.len() > 950 && left.values().all(|left| *left == 9), "{left:?}, RINGMESH_SEED={seed}");
        // Hours later all places are free again.
        let later = 11 * 3600 * S;
        assert!((0..100).all(|_| take(rng.u64(..), later)));
    }

    #[test]
    fn shards_together_take_what_there_is_and_no_more() {
        let keys = Keys::new(64);
        let pace = Pace::new(1, 3600 * S, 1000);
        let hashes: Vec<u64> = (1..=8).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        for hash in &hashes {
            assert!(keys.bucket(*hash, S).1);
            assert!(keys.bucket(*hash, S).0.take(pace, S).is_ok());
        }
        let passed: usize = std::thread::scope(|scope| {
            let shards: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..8000).filter(|n| keys.bucket(hashes[n % 8], S).0.take(pace, S).is_ok()).count()
                    })
                })
                .collect();
            shards.into_iter().map(|shard| shard.join().unwrap()).sum()
        });
        assert_eq!(passed, 8 * 999);
    }
}
