//! Builds [`Credentials`]: rustls's two configurations from one certificate, its key and the bundles. Called by control.
//!
//! TLS 1.3 only, a certificate from both sides, no resumption, no tickets, no early data and no SNI: every connection
//! of the mesh is verified anew by what is trusted at that moment. Keeps the key inside rustls.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundles::Bundles;
use super::verify::{self, Verifier};
use super::{ALPN_MESH, ALPN_MESH_WITHOUT_LANES, Credentials};
use crate::failure::Cause;

/// Why a certificate and a key are none to work with, in words for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPair {
    /// No certificate at all.
    #[error("there is no certificate")]
    Missing,
    /// The leaf cannot be read.
    #[error("the certificate cannot be read")]
    Certificate,
    /// The leaf has not exactly one SPIFFE id.
    #[error("the certificate has not exactly one SPIFFE id")]
    Identity,
    /// The key cannot be read, or is of a kind that is not used here.
    #[error("the key cannot be read: it must be an ECDSA, Ed25519 or RSA key")]
    Key,
    /// The key is another one's.
    #[error("the key is not the certificate's")]
    Mismatch,
    /// rustls refuses to be configured so.
    #[error("TLS cannot be configured with it")]
    Tls,
}

/// The protocols that the mesh offers, in the order of preference.
pub fn mesh_protocols(http2: bool) -> Vec<Vec<u8>> {
    let all: &[&[u8]] = match http2 {
        true => &[ALPN_MESH, ALPN_MESH_WITHOUT_LANES, b"h2", b"http/1.1"],
        false => &[b"http/1.1"],
    };
    all.iter().map(|protocol| protocol.to_vec()).collect()
}

impl Credentials {
    /// From a chain (leaf first, without the root), its key and the bundles; `protocols` are offered by ALPN.
    ///
    /// # Errors
    /// When the leaf has no SPIFFE id, or the key is not its own. Whether anybody trusts the chain is not asked: that
    /// is the others' business.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        bundles: Arc<Bundles>,
        protocols: &[Vec<u8>],
    ) -> Result<Self, BadPair> {
        let id = verify::leaf_id(chain.first().ok_or(BadPair::Missing)?).map_err(|cause| match cause {
            Cause::BadIdentity => BadPair::Identity,
            _ => BadPair::Certificate,
        })?;
        let not_after = ends(&chain[0]).ok_or(BadPair::Certificate)?;
        let pair = Arc::new(pair(chain.clone(), key)?);
        let verifier = Arc::new(Verifier::new(Arc::clone(&bundles)));

        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|_| BadPair::Tls)?
            .with_client_cert_verifier(Arc::clone(&verifier) as _)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&pair))));
        server.alpn_protocols = protocols.to_vec();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;

        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|_| BadPair::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        client.alpn_protocols = protocols.to_vec();
        client.resumption = Resumption::disabled();
        client.enable_sni = false;

        Ok(Self { id, chain, not_after, server: Arc::new(server), client: Arc::new(client), bundles })
    }
}

/// A chain and its key as rustls wants them.
///
/// # Errors
/// When the key is not the leaf's own.
pub fn pair(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<CertifiedKey, BadPair> {
    // By reference: rustls's other ways in take a copy of the key, and drop it without wiping it.
    let key = aws_lc_rs::sign::any_supported_type(key).map_err(|_| BadPair::Key)?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) => Ok(pair),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(BadPair::Mismatch),
        Err(rustls::Error::NoCertificatesPresented) => Err(BadPair::Missing),
        Err(_) => Err(BadPair::Certificate),
    }
}

/// The one provider of cryptography. X25519MLKEM768 first: what is recorded today stays closed to the quantum computers
/// of later years. AES-128 first: as safe here, and less work than AES-256.
pub fn provider() -> Arc<CryptoProvider> {
    static ONE: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let groups: Vec<&'static dyn SupportedKxGroup> =
            vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: groups,
            ..aws_lc_rs::default_provider()
        })
    };
    Arc::clone(ONE.get_or_init(make))
}

/// SHA-256 of all parts together.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = [0; 32];
    if let Some(suite) = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
        let mut running = suite.common.hash_provider.start();
        parts.iter().for_each(|part| running.update(part));
        hash.copy_from_slice(running.finish().as_ref());
    }
    hash
}

/// When a certificate ends, seconds of the Unix time.
fn ends(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}
