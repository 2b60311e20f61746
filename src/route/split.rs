//! Which of several services a request goes to: by chance, or the same one for the same caller. Called through
//! [`Route::choose`](super::Route::choose).
//!
//! By chance the shares are those of the weights, request by request. By a key (weighted rendezvous hashing: each service draws
//! a number from the key and its own name, divides by its weight, and the best draw wins) the same key goes to the same
//! service in every proxy and after every restart, and a change of weights moves a key only from a service whose weight fell to
//! one whose weight rose, relative to each other. Two services of which one takes over from the other (a canary) draw as one first,
//! so that nobody else's keys move. Refuses to look whether a service can be reached: a split is what was written,
//! and a service without endpoints answers 503 for its share.

use std::time::Duration;

use super::cookie;
use crate::authorize::{Call, Fields};

/// Several services with their shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    shares: Box<[Share]>,
    total: u64,
    /// How a caller stays with its service; `None`: by chance each time.
    sticky: Option<Sticky>,
    /// Which takes over from which.
    pair: Option<Pair>,
}

/// Two services, as indices into `Snapshot::services`, of which one takes over from the other step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The one that gives.
    pub baseline: u32,
    /// The one that takes.
    pub canary: u32,
}

/// A service's part of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Index into `Snapshot::services`.
    pub service: u32,
    /// The subset of its endpoints, as `Service::subset_named` numbers it; 0 for any.
    pub subset: u16,
    /// Relative to the others.
    pub weight: u32,
    /// What its draws depend on besides the key: its name, so that the order of the files does not matter.
    seed: u64,
}

/// By what a caller stays with its service. Without it (no such field, no identity) a request goes by chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sticky {
    /// The value of a header field; of several lines the first.
    Header(Box<str>),
    /// The value of a cookie that the service or the browser sets.
    Cookie(Box<str>),
    /// The caller's address, without port.
    Source,
    /// The caller's verified identity.
    Identity,
    /// A cookie that this proxy sets where it is missing.
    SetCookie(Box<SetCookie>),
}

/// A cookie that the proxy sets. Its value is a number drawn once, not the name of a service: so the shares hold for all
/// callers whatever the weights become, and a service that is gone leaves nobody behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetCookie {
    /// Its name, a token.
    pub name: Box<str>,
    /// How long the browser keeps it; `None`: until it is closed.
    pub ttl: Option<Duration>,
    /// Below which path it is sent.
    pub path: Box<str>,
    /// Only over TLS.
    pub secure: bool,
    /// Not for scripts.
    pub http_only: bool,
    /// Whether other sites' requests carry it.
    pub same_site: SameSite,
}

/// Whether a cookie goes with requests that other sites cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// Never.
    Strict,
    /// Only when the user goes there.
    Lax,
    /// Always; browsers want `Secure` with it.
    None,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Index into `Snapshot::services`.
    pub service: u32,
    /// The subset of its endpoints; 0 for any.
    pub subset: u16,
    /// The value of the cookie that the caller is to be given.
    pub cookie: Option<u64>,
}

impl Share {
    /// A share of a service with this name.
    pub fn new(service: u32, name: &str, weight: u32) -> Self {
        Self { service, subset: 0, weight, seed: hash(name.as_bytes()) }
    }

    /// The same share of one subset of the service.
    #[must_use]
    pub fn within(self, name: &str, subset: u16) -> Self {
        // Not the same as another service whose name is the two together.
        Self { subset, seed: self.seed.rotate_left(1) ^ hash(name.as_bytes()), ..self }
    }
}

impl Split {
    /// Services in one split.
    pub const SHARES_MAX: usize = 32;
    /// The largest weight.
    pub const WEIGHT_MAX: u32 = 1_000_000;

    /// A split; `None` without a weight above 0.
    pub fn new(shares: Vec<Share>, sticky: Option<Sticky>) -> Option<Self> {
        let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
        (total > 0).then(|| Self { shares: shares.into(), total, sticky, pair: None })
    }

    /// The shares, as they were written.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// How a caller stays with its service.
    pub fn sticky(&self) -> Option<&Sticky> {
        self.sticky.as_ref()
    }

    /// The same with other weights, in the order of [`Split::shares`], where one service of `pair` takes over from the other; `None`
    /// where no weight is above 0.
    pub fn weighted(&self, weights: &[u32], pair: Pair) -> Option<Self> {
        let with = |(share, weight): (&Share, &u32)| Share { weight: *weight, ..share.clone() };
        let split = Self::new(self.shares.iter().zip(weights).map(with).collect(), self.sticky.clone())?;
        Some(Self { pair: Some(pair), ..split })
    }

    /// Where this request goes. `random` gives evenly distributed numbers; it is asked only where it is needed.
    pub fn choose<F: Fields>(&self, call: &Call<'_, F>, random: impl FnOnce() -> u64) -> Chosen {
        let mut cookie = None;
        let share = match &self.sticky {
            None => self.share_by_chance(random()),
            Some(sticky) => match sticky.with_key(call, |key| self.share_by_key(key)) {
                Some(share) => share,
                None => {
                    let token = random();
                    match sticky {
                        Sticky::SetCookie(_) => {
                            cookie = Some(token);
                            self.share_by_key(&written(token))
                        }
                        _ => self.share_by_chance(token),
                    }
                }
            },
        };
        Chosen { service: share.service, subset: share.subset, cookie }
    }

    /// By an evenly distributed number.
    pub fn by_chance(&self, random: u64) -> u32 {
        self.share_by_chance(random).service
    }

    /// By what the caller is told by.
    pub fn by_key(&self, key: &[u8]) -> u32 {
        self.share_by_key(key).service
    }

    fn share_by_chance(&self, random: u64) -> &Share {
        // The high half of the product: as even as can be without a loop.
        let mut point = ((u128::from(random) * u128::from(self.total)) >> 64) as u64;
        for share in &self.shares {
            match point.checked_sub(share.weight.into()) {
                Some(rest) => point = rest,
                None => return share,
            }
        }
        // Of numbers below the sum one lies within. There is a share, or there were no split.
        &self.shares[self.shares.len() - 1]
    }

    fn share_by_key(&self, key: &[u8]) -> &Share {
        let key = hash(key);
        let mut best = (f64::INFINITY, &self.shares[0]);
        for share in self.shares.iter().filter(|share| share.weight > 0 && !self.is_of_pair(share)) {
            let score = -draw(key ^ share.seed).ln() / f64::from(share.weight);
            if score < best.0 {
                best = (score, share);
            }
        }
        match self.pair {
            Some(pair) => self.share_of_pair(pair, key, best),
            None => best.1,
        }
    }

    fn is_of_pair(&self, share: &Share) -> bool {
        self.pair.is_some_and(|Pair { baseline, canary }| [baseline, canary].contains(&share.service))
    }

    /// Both draw as one, with what they weigh together. Within it the canary has the keys below its part: as that grows it takes
    /// more and gives none back.
    fn share_of_pair<'s>(&'s self, pair: Pair, key: u64, best: (f64, &'s Share)) -> &'s Share {
        let of = |service: u32| self.shares.iter().filter(move |share| share.service == service);
        let both = || of(pair.canary).chain(of(pair.baseline));
        let weight: u64 = both().map(|share| u64::from(share.weight)).sum();
        let seed = of(pair.baseline).next().map_or(0, |share| share.seed);
        if weight == 0 || -draw(key ^ seed).ln() / weight as f64 >= best.0 {
            return best.1;
        }
        // Another number of the same key.
        let mut point = draw(mixed(key ^ seed).rotate_left(32) ^ seed) * weight as f64;
        let within = |share: &&Share| {
            point -= f64::from(share.weight);
            point < 0.0
        };
        both().find(within).unwrap_or(best.1)
    }
}

/// A number between 0 and 1 with 53 bits, never either.
fn draw(hash: u64) -> f64 {
    ((mixed(hash) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

impl Sticky {
    fn with_key<F: Fields, R>(&self, call: &Call<'_, F>, then: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match self {
            Self::Header(name) => call.fields.values(name).next().filter(|value| !value.is_empty()).map(then),
            Self::Cookie(name) => cookie::value(call.fields.values("cookie"), name).map(then),
            Self::SetCookie(set) => cookie::value(call.fields.values("cookie"), &set.name).map(then),
            Self::Identity => call.caller.peer.map(|peer| then(peer.as_str().as_bytes())),
            // Mapped addresses are the same caller.
            Self::Source => Some(match call.caller.source.to_canonical() {
                std::net::IpAddr::V4(v4) => then(&v4.octets()),
                std::net::IpAddr::V6(v6) => then(&v6.octets()),
            }),
        }
    }
}

impl SetCookie {
    /// Writes the value of the `Set-Cookie` field that gives a caller this number.
    pub fn write(&self, token: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(&written(token));
        out.extend_from_slice(b"; Path=");
        out.extend_from_slice(self.path.as_bytes());
        if let Some(ttl) = self.ttl {
            out.extend_from_slice(b"; Max-Age=");
            out.extend_from_slice(ttl.as_secs().max(1).to_string().as_bytes());
        }
        if self.secure {
            out.extend_from_slice(b"; Secure");
        }
        if self.http_only {
            out.extend_from_slice(b"; HttpOnly");
        }
        out.extend_from_slice(match self.same_site {
            SameSite::Strict => b"; SameSite=Strict",
            SameSite::Lax => b"; SameSite=Lax",
            SameSite::None => b"; SameSite=None",
        });
    }
}

/// A number as the value of a cookie.
fn written(token: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|n| DIGITS[(token >> (60 - 4 * n)) as usize & 15])
}

/// FNV-1a: the same in every process and every version, unlike the hashes of tables.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finish of MurmurHash3: FNV alone is uneven in its high bits.
fn mixed(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
#[path = "split_test.rs"]
mod tests;
