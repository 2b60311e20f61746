//! What the authority remembers between processes, and what follows from it at a moment. Pure: the time is an argument.
//!
//! A root goes through three phases, and the clock alone moves it on, so that every process that reads the same state at
//! the same moment sees the same:
//! ```text
//!            rotate-root          signs_from of the next root       the last leaf under it has ended
//! announced ────────────► signs ───────────────────────────► retiring ─────────────────────────────► gone
//! ```
//! Announced, signing and retiring roots are trusted; exactly one signs. Refuses to have more than one rotation at a
//! time: two roots at most.

use serde::{Deserialize, Serialize};

/// The state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Of this form; another one was written by a later ringmesh.
    pub(super) version: u32,
    /// Whose authority this is.
    pub(super) trust_domain: String,
    /// Oldest first. Empty while the first one is being made: nothing was ever signed then.
    pub(super) roots: Vec<Root>,
}

/// One root; its files are named by its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) number: u32,
    /// The issuer in use under it; made when it is first needed.
    pub(super) issuer: Option<u32>,
    /// From when on it signs, seconds of the Unix time.
    pub(super) signs_from: u64,
    /// No leaf that was signed under it ends later, seconds of the Unix time; 0 before the first one.
    pub(super) leaves_until: u64,
}

/// Where a root is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Trusted and not used yet: everybody is to learn it before somebody meets a leaf under it.
    Announced,
    /// Signs.
    Signs,
    /// Trusted until the last leaf under it has ended.
    Retiring,
}

impl State {
    pub(super) const VERSION: u32 = 1;
    /// How far a verifier's clock may be behind: so much longer a root stays trusted than its last leaf lives.
    pub(super) const CLOCK_SKEW: u64 = 300;

    /// Nothing made yet.
    pub(super) fn new(trust_domain: &str) -> Self {
        Self { version: Self::VERSION, trust_domain: trust_domain.to_owned(), roots: Vec::new() }
    }

    /// The index of the root that signs. The first one if the clock is before all of them.
    pub(super) fn signer(&self, now: u64) -> Option<usize> {
        let signs = self.roots.iter().rposition(|root| root.signs_from <= now);
        signs.or_else(|| (!self.roots.is_empty()).then_some(0))
    }

    /// Where the root at `index` is; `None`: gone.
    pub(super) fn phase(&self, index: usize, now: u64) -> Option<Phase> {
        let signer = self.signer(now)?;
        match index.cmp(&signer) {
            std::cmp::Ordering::Greater => Some(Phase::Announced),
            std::cmp::Ordering::Equal => Some(Phase::Signs),
            std::cmp::Ordering::Less => (now < self.roots[index].trusted_until()).then_some(Phase::Retiring),
        }
    }

    /// The roots that are trusted, oldest first.
    pub(super) fn trusted(&self, now: u64) -> impl Iterator<Item = (&Root, Phase)> {
        self.roots.iter().enumerate().filter_map(move |(index, root)| Some((root, self.phase(index, now)?)))
    }

    /// Takes out the roots that are gone and gives them.
    pub(super) fn take_gone(&mut self, now: u64) -> Vec<Root> {
        let gone = (0..self.roots.len()).take_while(|&index| self.phase(index, now).is_none()).count();
        self.roots.drain(..gone).collect()
    }

    /// When the signer or the set of trusted roots changes next, if nobody does anything.
    pub(super) fn changes_at(&self, now: u64) -> Option<u64> {
        let moments = self.trusted(now).filter_map(|(root, phase)| match phase {
            Phase::Announced => Some(root.signs_from),
            Phase::Retiring => Some(root.trusted_until()),
            Phase::Signs => None,
        });
        moments.min()
    }
}

impl Root {
    /// Until when it is trusted once it signs no more.
    pub(super) const fn trusted_until(&self) -> u64 {
        self.leaves_until.saturating_add(if self.leaves_until == 0 { 0 } else { State::CLOCK_SKEW })
    }
}
