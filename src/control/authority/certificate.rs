//! Makes certificates by SPIFFE's rules (X.509-SVID §2 to §4) and reads what the authority has to know of its own. Pure:
//! the time is an argument, nothing is read or written. Refuses to sign what somebody else wrote: names, usages and
//! lengths of life are decided here.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{SpiffeId, TrustDomain};

/// From when to when a certificate is valid, seconds of the Unix time, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

/// Why a certificate or key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    #[error("{0}")]
    Made(#[from] rcgen::Error),
    #[error("no random numbers: {0}")]
    Random(&'static str),
    #[error("it is not a certificate: {0}")]
    NotOne(String),
}

/// A new P-256 key: every verifier knows it, and a signature is 64 octets.
pub(super) fn new_key() -> Result<KeyPair, CertificateError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

/// A root: signs itself, may sign issuers, which may sign leaves.
pub(super) fn root(
    domain: &TrustDomain,
    number: u32,
    key: &KeyPair,
    validity: Validity,
) -> Result<CertificateDer<'static>, CertificateError> {
    let mut params = authority(domain, "root", number, validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    Ok(params.self_signed(key)?.into())
}

/// An issuer: signed by a root, may sign leaves only.
pub(super) fn issuer(
    domain: &TrustDomain,
    number: u32,
    key: &KeyPair,
    root: (&CertificateDer<'_>, &KeyPair),
    validity: Validity,
) -> Result<CertificateDer<'static>, CertificateError> {
    let mut params = authority(domain, "issuer", number, validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let root = Issuer::from_ca_cert_der(root.0, root.1)?;
    Ok(params.signed_by(key, &root)?.into())
}

/// A leaf: an X.509-SVID for this id.
pub(super) fn leaf(
    id: &SpiffeId,
    key: &KeyPair,
    issuer: (&CertificateDer<'_>, &KeyPair),
    validity: Validity,
) -> Result<CertificateDer<'static>, CertificateError> {
    // The name is empty, which makes the URI critical: who this is stands in one place.
    let mut params = params(id.as_str(), DistinguishedName::new(), validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(issuer.0, issuer.1)?;
    Ok(params.signed_by(key, &issuer)?.into())
}

/// From when to when a certificate is valid.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, CertificateError> {
    let parsed = parse(certificate)?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    Ok(Validity {
        not_before: seconds(parsed.validity().not_before.timestamp()),
        not_after: seconds(parsed.validity().not_after.timestamp()),
    })
}

/// Whether a key is the one of a certificate.
pub(super) fn belongs(key: &KeyPair, certificate: &CertificateDer<'_>) -> Result<bool, CertificateError> {
    Ok(*parse(certificate)?.public_key().subject_public_key.data == *key.public_key_raw())
}

/// SHA-256 of a certificate.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut sum = [0; 32];
    // The suite is only the way to its hash: aws-lc-rs is not named outside of rustls in this house.
    if let Some(suite) = provider::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
        sum.copy_from_slice(suite.common.hash_provider.hash(certificate).as_ref());
    }
    sum
}

fn authority(
    domain: &TrustDomain,
    kind: &str,
    number: u32,
    validity: Validity,
) -> Result<CertificateParams, CertificateError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "ringmesh");
    // The number alone repeats from one trust domain to the next; a chain is built by names, so they must differ.
    name.push(DnType::CommonName, format!("{kind} {number} {}", hex(&random::<8>()?)));
    let mut params = params(&format!("spiffe://{domain}"), name, validity)?;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(
    uri: &str,
    name: DistinguishedName,
    validity: Validity,
) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.serial_number = Some(serial()?);
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(validity.not_before);
    params.not_after = epoch + Duration::from_secs(validity.not_after);
    Ok(params)
}

/// 127 random bits: positive, never zero, at most 20 octets (RFC 5280 §4.1.2.2), and no two alike.
fn serial() -> Result<SerialNumber, CertificateError> {
    let mut octets = random::<16>()?;
    octets[0] = octets[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&octets))
}

fn random<const N: usize>() -> Result<[u8; N], CertificateError> {
    let mut octets = [0; N];
    let source = provider::default_provider().secure_random;
    source.fill(&mut octets).map_err(|_| CertificateError::Random("the system's source gave none"))?;
    Ok(octets)
}

fn parse<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, CertificateError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(CertificateError::NotOne(error.to_string())),
    }
}

/// Lower case, two digits an octet.
pub(super) fn hex(octets: &[u8]) -> String {
    use std::fmt::Write as _;
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}
