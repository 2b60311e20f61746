//! Certificates for tests: an authority of the test's own, and leaves that are right but for what the test changes.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "the black-box tests include this file too")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A CA's certificate with its key.
pub struct Ca {
    pub params: CertificateParams,
    pub key: KeyPair,
    pub der: CertificateDer<'static>,
}

/// A leaf, with whatever stands between it and the root.
pub struct Leaf {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

impl Ca {
    /// A root with this common name.
    pub fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    pub fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    /// An issuer below this one.
    pub fn issuer(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.signer()).unwrap().der().clone();
        Self { params, key, der }
    }

    /// A leaf with this id, good for an hour from a minute ago.
    pub fn leaf(&self, id: &str) -> Leaf {
        self.leaf_with(id, |_| {})
    }

    pub fn leaf_with(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = leaf_params(id);
        change(&mut params);
        self.sign(&params, KeyPair::generate().unwrap())
    }

    pub fn sign(&self, params: &CertificateParams, key: KeyPair) -> Leaf {
        let der = params.signed_by(&key, &self.signer()).unwrap().der().clone();
        Leaf { chain: vec![der], key }
    }

    pub fn signer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }
}

impl Leaf {
    /// With these certificates behind it.
    pub fn behind(mut self, issuers: &[&Ca]) -> Self {
        self.chain.extend(issuers.iter().map(|issuer| issuer.der.clone()));
        self
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// What a CA has.
pub fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live(&mut params, -3600, 365 * 24 * 3600);
    params
}

/// What a leaf has.
pub fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    live(&mut params, -60, 3600);
    params
}

/// From and to so many seconds from now.
pub fn live(params: &mut CertificateParams, from: i64, to: i64) {
    let at = |offset: i64| {
        let now = SystemTime::now();
        let step = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { now - step } else { now + step }
    };
    params.not_before = at(from).into();
    params.not_after = at(to).into();
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// Seconds of the Unix time.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
