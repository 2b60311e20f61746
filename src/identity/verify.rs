//! Verification of a peer's certificate by SPIFFE's rules (X.509-SVID §3 to §5): a chain to a root of the trust domain
//! that the leaf's one URI SAN names. Used by rustls in handshakes of both sides, and by shards on open connections when
//! trust shrinks.
//!
//! Refuses host names (whoever it is, it says so by its id; whether that is who was meant is decided after the
//! handshake) and revocation lists: leaves live for hours, and trust ends with the root.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, VerifiedPath};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::bundles::Bundles;
use super::credentials::{provider, sha256};
use super::id::SpiffeId;
use crate::failure::Cause;

/// Certificates in a chain that is looked at; longer ones are refused. SPIRE's and Istio's have two to four.
pub const CHAIN_MAX: usize = 12;
/// Bits of an RSA key, at least.
const RSA_BITS_MIN: usize = 2048;

/// A peer whose certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// The chain that it presented, leaf first: verified again when trust changes.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the leaf, for `x-forwarded-client-cert`.
    pub fingerprint: [u8; 32],
    /// When the leaf ends, seconds of the Unix time.
    pub not_after: u64,
}

/// Why a chain was refused, as it travels through rustls; [`Refusal::of`] finds it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub Cause);

/// Who sent this chain. Only for one that a handshake has verified: nothing is verified here.
///
/// # Errors
/// When the leaf cannot be read or has not exactly one canonical id.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, Cause> {
    let leaf = chain.first().ok_or(Cause::CertificateMissing)?;
    let parsed = read(leaf)?;
    let id = id_of(&parsed)?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    Ok(Peer { id, fingerprint: sha256(&[leaf]), not_after, chain })
}

/// The id that a leaf carries.
///
/// # Errors
/// When it cannot be read or has not exactly one canonical id.
pub fn leaf_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Cause> {
    id_of(&read(leaf)?)
}

/// Whether a certificate is for that host, a name or an address.
pub fn is_for_host(leaf: &CertificateDer<'_>, host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let Ok(name) = ServerName::try_from(host) else { return false };
    EndEntityCert::try_from(leaf).is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Looks at one's own chain as peers will, as a server's and as a client's.
///
/// # Errors
/// With the reason why peers with these bundles would refuse it.
pub fn own(of: &[CertificateDer<'_>], bundles: &Bundles, now: UnixTime) -> Result<SpiffeId, Cause> {
    let (leaf, rest) = of.split_first().ok_or(Cause::CertificateMissing)?;
    chain(leaf, rest, bundles, now, KeyUsage::client_auth())?;
    chain(leaf, rest, bundles, now, KeyUsage::server_auth())
}

/// Whether a peer that was verified once would be by these bundles. That certificates have ended meanwhile is no reason:
/// a connection outlives the leaf that it began with, as a rotation must not cut it. That its root has gone is one.
///
/// # Errors
/// With the reason, [`Cause::UntrustedDomain`] or [`Cause::UnknownIssuer`] as a rule.
pub fn still_trusted(peer: &Peer, bundles: &Bundles, now: UnixTime) -> Result<(), Cause> {
    let (leaf, rest) = peer.chain.split_first().ok_or(Cause::CertificateMissing)?;
    let parsed = rest.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let began = read(leaf)?.validity().not_before.timestamp();
    let ends = std::iter::once(&read(leaf)?)
        .chain(&parsed)
        .map(|certificate| certificate.validity().not_after.timestamp())
        // One that had ended before the leaf began is not part of the path.
        .filter(|end| *end >= began)
        .min()
        .and_then(|end| u64::try_from(end).ok())
        .unwrap_or(u64::MAX);
    let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs().min(ends)));
    chain(leaf, rest, bundles, then, AnyUsage).map(drop)
}

/// What rustls asks in both directions.
#[derive(Debug)]
pub struct Verifier {
    bundles: Arc<Bundles>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Trusts whom these bundles trust.
    pub fn new(bundles: Arc<Bundles>) -> Self {
        Self { bundles, algorithms: provider().signature_verification_algorithms }
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Names of CAs help nobody: a peer has one identity.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        chain(leaf, rest, &self.bundles, now, KeyUsage::client_auth()).map_err(told)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        chain(leaf, rest, &self.bundles, now, KeyUsage::server_auth()).map_err(told)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Everything that is asked of a chain, the cheap things first.
fn chain(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    bundles: &Bundles,
    now: UnixTime,
    usage: impl ExtendedKeyUsageValidator,
) -> Result<SpiffeId, Cause> {
    if rest.len() >= CHAIN_MAX {
        return Err(Cause::BadCertificate);
    }
    let end = EndEntityCert::try_from(leaf).map_err(|error| cause(&error))?;
    let parsed = read(leaf)?;
    let id = id_of(&parsed)?;
    check_usage(&parsed)?;
    if weak_key(&parsed) {
        return Err(Cause::BadCertificate);
    }
    for certificate in rest {
        if weak_key(&read(certificate)?) {
            return Err(Cause::BadCertificate);
        }
    }
    let roots = bundles.of(id.trust_domain()).ok_or(Cause::UntrustedDomain)?;
    let path = |path: &VerifiedPath<'_>| {
        for between in path.intermediate_certificates() {
            let der = between.der();
            let may_sign = read(&der).is_ok_and(|c| match c.key_usage() {
                // Without the extension nothing is ruled out (RFC 5280 §4.2.1.3); CA:TRUE is asked for by webpki.
                Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
                Err(_) => false,
            });
            if !may_sign {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
        }
        if roots.in_period(path.anchor(), now) {
            Ok(())
        } else {
            Err(webpki::Error::CertExpired { time: now, not_after: now })
        }
    };
    let algorithms = provider().signature_verification_algorithms.all;
    end.verify_for_usage(algorithms, &roots.anchors, rest, now, usage, None, Some(&path))
        .map_err(|error| cause(&error))?;
    Ok(id)
}

/// Exactly one URI SAN, a canonical id with a path (X.509-SVID §2 and §4.1). Names of hosts may stand beside it.
fn id_of(leaf: &X509Certificate<'_>) -> Result<SpiffeId, Cause> {
    let names = leaf.subject_alternative_name().map_err(|_| Cause::BadIdentity)?;
    let names = names.ok_or(Cause::BadIdentity)?;
    let mut ids = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(text) => Some(Ok(*text)),
        // It may be a URI that was not understood: not one that is there and does not count.
        GeneralName::Invalid(..) => Some(Err(Cause::BadIdentity)),
        _ => None,
    });
    let id = ids.next().ok_or(Cause::BadIdentity)??;
    if ids.next().is_some() {
        return Err(Cause::BadIdentity);
    }
    let id = SpiffeId::parse(id).map_err(|_| Cause::BadIdentity)?;
    if id.path().is_empty() {
        return Err(Cause::BadIdentity);
    }
    Ok(id)
}

/// A leaf signs handshakes and nothing else (X.509-SVID §4.2 and §4.3).
fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), Cause> {
    let usage = leaf.key_usage().map_err(|_| Cause::BadCertificate)?.ok_or(Cause::WrongUsage)?.value;
    let signs_only = usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign();
    let ca = leaf.basic_constraints().map_err(|_| Cause::BadCertificate)?.is_some_and(|b| b.value.ca);
    if signs_only && !ca { Ok(()) } else { Err(Cause::WrongUsage) }
}

/// Whether its key is too short; what webpki cannot verify with, it calls a bad signature or does not look at.
pub(super) fn weak_key(certificate: &X509Certificate<'_>) -> bool {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => key.key_size() < RSA_BITS_MIN,
        _ => false,
    }
}

fn read<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, Cause> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(Cause::BadCertificate),
    }
}

/// For those who were looked at before: any usage.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn cause(error: &webpki::Error) -> Cause {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => Cause::CertificateExpired,
        Error::CertNotValidYet { .. } => Cause::CertificateNotYetValid,
        // A bad signature by a known name: whoever signed was not the one known.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Cause::UnknownIssuer,
        Error::CaUsedAsEndEntity
        | Error::EndEntityUsedAsCa
        | Error::PathLenConstraintViolated
        | Error::EmptyEkuExtension
        | Error::RequiredEkuNotFoundContext(_)
        | Error::NameConstraintViolation => Cause::WrongUsage,
        _ => Cause::BadCertificate,
    }
}

/// As rustls is told: its own word where it has one, since that chooses the alert that the peer sees.
fn told(cause: Cause) -> rustls::Error {
    let error = match cause {
        Cause::UnknownIssuer => CertificateError::UnknownIssuer,
        Cause::CertificateExpired => CertificateError::Expired,
        Cause::CertificateNotYetValid => CertificateError::NotValidYet,
        Cause::WrongUsage => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(Refusal(other)))),
    };
    rustls::Error::InvalidCertificate(error)
}

impl Refusal {
    /// Why a handshake failed, if it was because of the peer's certificate.
    pub fn of(error: &rustls::Error) -> Option<Cause> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(Cause::CertificateMissing),
            rustls::Error::InvalidCertificate(error) => Some(match error {
                CertificateError::Other(OtherError(inner)) => {
                    inner.downcast_ref::<Self>().map_or(Cause::BadCertificate, |refusal| refusal.0)
                }
                CertificateError::UnknownIssuer => Cause::UnknownIssuer,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Cause::CertificateExpired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Cause::CertificateNotYetValid
                }
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                    Cause::WrongUsage
                }
                // A server outside of the mesh that is not the one whose name was asked for.
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Cause::WrongIdentity
                }
                _ => Cause::BadCertificate,
            }),
            _ => None,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.label())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
#[path = "verify_test.rs"]
mod tests;
