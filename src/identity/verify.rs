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

/// Why a chain was refused, as it travels through rustls in a `CertificateError::Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub Cause);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.label())
    }
}

impl std::error::Error for Refusal {}

/// Who sent this chain. Only for one that a handshake has verified: nothing is verified here.
///
/// # Errors
/// When the leaf cannot be read or has not exactly one canonical id.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, Cause> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let leaf = chain.first().ok_or(Cause::CertificateMissing)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Cause::BadCertificate)?;
    let names = parsed.subject_alternative_name().map_err(|_| Cause::BadCertificate)?;
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(Cause::BadIdentity) };
    let id = SpiffeId::parse(uri).map_err(|_| Cause::BadIdentity)?;
    let mut fingerprint = [0; 32];
    if let Some(suite) = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
        fingerprint.copy_from_slice(suite.common.hash_provider.hash(leaf).as_ref());
    }
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    Ok(Peer { id, chain, fingerprint })
}

/// Whether a peer that was verified once would be by these bundles. Every peer is, until verification is done here.
///
/// # Errors
/// With the reason.
pub fn still_trusted(_peer: &Peer, _bundles: &Bundles, _now: UnixTime) -> Result<(), Cause> {
    Ok(())
}
