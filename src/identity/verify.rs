//! Verification of a peer's certificate by SPIFFE's rules (X.509-SVID §3 to §5): a chain to a root of the trust domain
//! that the leaf's one URI SAN names. Refuses host names, revocation, and everything that rustls has done already.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::id::SpiffeId;
use crate::failure::Cause;

/// The roots of each trust domain: one's own and those that are declared (federation).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Bundles {
    /// Trust domain to the DER of its roots.
    pub roots: std::collections::BTreeMap<Arc<str>, Vec<CertificateDer<'static>>>,
}

/// A peer whose certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// The chain that it presented, leaf first: verified again when trust changes.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the leaf, for `x-forwarded-client-cert`.
    pub fingerprint: [u8; 32],
}

/// Whether a peer that was verified once would be by these bundles. Every peer is, until verification is done here.
///
/// # Errors
/// With the reason.
pub fn still_trusted(_peer: &Peer, _bundles: &Bundles, _now: UnixTime) -> Result<(), Cause> {
    Ok(())
}
