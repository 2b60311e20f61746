//! How many requests there may be in a time, of one kind: `[[rate_limit]]`, compiled, and the decision. Pure: time is an argument.
//! Asked when the rules let a request pass, before its service is asked for anything; further attempts are not asked again.
//!
//! All limits of a route are asked in the order of the files, and a request that one of them refuses takes nothing from the
//! others. What is taken is shared by all shards and exact: see [`bucket`], and [`keys`] for what holds where there are many keys.
//!
//! Refuses to wait: who comes too soon is told when to come again. Buckets are this proxy's own; a limit that several proxies share is
//! asked of a service, which [`global`] knows how to ask.

pub mod bucket;
pub mod global;
pub mod keys;
pub mod messages;

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use crate::authorize::{Call, Fields};
use bucket::{Bucket, Pace};
use keys::Keys;

/// One limit, with what was taken of it. Outlives a reload that does not change it.
#[derive(Debug)]
pub struct Quota {
    /// What was declared.
    pub spec: Spec,
    /// What has come of it.
    pub counts: Counts,
    pace: Pace,
    buckets: Buckets,
}

/// A limit as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name in log, metrics and answers.
    pub name: Arc<str>,
    /// So many requests...
    pub rate: u32,
    /// ...in so much time, ns.
    pub per_ns: u64,
    /// And so many at once.
    pub burst: u32,
    /// What has a bucket of its own; nothing: one for all.
    pub by: Box<[By]>,
    /// So many keys at a time, about.
    pub keys_max: u32,
}

/// What makes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The route.
    Route,
    /// Who the handshake proved the caller to be; those who have not are one.
    Identity,
    /// The connection's own source address, of IPv6 the first 64 bits: a host has all of those below.
    Source,
    /// The lines of a field; requests without it are one.
    Header(Box<str>),
}

/// What has come of a limit, for control to read.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that passed.
    pub passed: AtomicU64,
    /// Requests that were refused.
    pub refused: AtomicU64,
    /// Requests whose key had no bucket of its own.
    pub crowded: AtomicU64,
}

#[derive(Debug)]
enum Buckets {
    One(Bucket),
    Many(Keys, RandomState),
}

/// A request that came too soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooSoon {
    /// By which limit.
    pub name: Arc<str>,
    /// What holds, where that is known.
    pub policy: Option<Policy>,
    /// When the next one may come: in so many seconds, at least one; where that is known.
    pub wait_seconds: Option<u64>,
}

/// What is told of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// So many requests at once...
    pub quota: u32,
    /// ...and as many in so many seconds.
    pub window_seconds: u64,
}

impl Quota {
    /// Nothing taken.
    pub fn new(spec: Spec) -> Self {
        let buckets = match spec.by.is_empty() {
            true => Buckets::One(Bucket::default()),
            false => Buckets::Many(Keys::new(spec.keys_max), RandomState::new()),
        };
        Self { pace: Pace::new(spec.rate, spec.per_ns, spec.burst), counts: Counts::default(), spec, buckets }
    }

    /// In how many seconds an empty bucket is full, rounded up.
    pub fn window_seconds(&self) -> u64 {
        seconds(self.pace.burst_ns)
    }

    fn too_soon(&self, wait_ns: u64) -> TooSoon {
        let policy = Policy { quota: self.spec.burst, window_seconds: self.window_seconds() };
        let name = Arc::clone(&self.spec.name);
        TooSoon { name, policy: Some(policy), wait_seconds: Some(seconds(wait_ns)) }
    }

    fn bucket<F: Fields>(&self, route: &str, call: &Call<'_, F>, now_ns: u64) -> &Bucket {
        let (keys, seed) = match &self.buckets {
            Buckets::One(bucket) => return bucket,
            Buckets::Many(keys, seed) => (keys, seed),
        };
        let mut hasher = seed.build_hasher();
        for by in &self.spec.by {
            by.hash(route, call, &mut hasher);
        }
        let (bucket, is_own) = keys.bucket(hasher.finish(), now_ns);
        if !is_own {
            self.counts.crowded.fetch_add(1, Ordering::Relaxed);
        }
        bucket
    }
}

impl By {
    fn hash<F: Fields>(&self, route: &str, call: &Call<'_, F>, hasher: &mut impl Hasher) {
        match self {
            Self::Route => route.hash(hasher),
            Self::Identity => call.caller.peer.map(crate::identity::SpiffeId::as_str).hash(hasher),
            Self::Source => match call.caller.source.to_canonical() {
                IpAddr::V4(source) => source.octets().hash(hasher),
                IpAddr::V6(source) => source.octets()[..8].hash(hasher),
            },
            Self::Header(name) => {
                for line in call.fields.lines(name) {
                    // With its length, so that two lines are never one.
                    line.hash(hasher);
                }
                usize::MAX.hash(hasher);
            }
        }
    }
}

/// Takes a token of each of these limits (indices into all of them), or of none.
pub fn charge<F: Fields>(
    quotas: &[Arc<Quota>],
    of: &[u32],
    route: &str,
    call: &Call<'_, F>,
    now_ns: u64,
) -> Option<Box<TooSoon>> {
    if let [only] = of
        && let Some(quota) = quotas.get(*only as usize)
    {
        // Nearly always: nothing to be put back.
        let taken = quota.bucket(route, call, now_ns).take(quota.pace, now_ns);
        let count = if taken.is_ok() { &quota.counts.passed } else { &quota.counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
        return taken.err().map(|wait_ns| Box::new(quota.too_soon(wait_ns)));
    }
    let mut taken = SmallVec::<[(&Quota, &Bucket); 8]>::new();
    for quota in of.iter().filter_map(|id| quotas.get(*id as usize)) {
        let bucket = quota.bucket(route, call, now_ns);
        if let Err(wait_ns) = bucket.take(quota.pace, now_ns) {
            quota.counts.refused.fetch_add(1, Ordering::Relaxed);
            for (quota, bucket) in taken {
                bucket.put_back(quota.pace);
            }
            return Some(Box::new(quota.too_soon(wait_ns)));
        }
        taken.push((quota, bucket));
    }
    for (quota, _) in taken {
        quota.counts.passed.fetch_add(1, Ordering::Relaxed);
    }
    None
}

fn seconds(ns: u64) -> u64 {
    ns.div_ceil(1_000_000_000).max(1)
}

#[cfg(test)]
#[path = "quota_test.rs"]
mod tests;
