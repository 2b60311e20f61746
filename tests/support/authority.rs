//! Certificates made at test time, and what both sides of TLS are configured with.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ringmesh::identity::{Bundles, Credentials, TrustDomain};
use ringmesh::snapshot::Termination;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};

/// A root with its key.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub der: CertificateDer<'static>,
}

/// A chain (leaf first) with the leaf's key.
pub struct Leaf {
    pub chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

pub const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
pub const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    /// A leaf with this SPIFFE id, good for both sides.
    pub fn workload(&self, id: &str) -> Leaf {
        self.leaf(|params| params.subject_alt_names = vec![uri(id)])
    }

    /// A leaf for this host.
    pub fn host(&self, name: &str) -> Leaf {
        self.leaf(|params| {
            params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(name).unwrap())];
        })
    }

    /// A leaf that is right but for what `change` does to it.
    pub fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Leaf { chain: vec![der], key }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        roots
    }

    /// What a ringmesh presents that is `leaf` (its id is `id`), and trusts: this authority.
    pub fn credentials(&self, id: &str, leaf: &Leaf, alpn: &[&[u8]]) -> Arc<Credentials> {
        let credentials = credentials(leaf, &[self], alpn);
        assert_eq!(credentials.id.to_string(), id);
        credentials
    }

    /// A server that wants a certificate of this authority.
    pub fn mutual_server(&self, leaf: &Leaf, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider());
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(leaf.chain.clone(), leaf.key())
            .unwrap();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server
    }

    /// A client that trusts everybody whom this authority has signed, whatever the name; with a certificate or without.
    pub fn anybody_client(
        &self,
        leaf: Option<&Leaf>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()), provider());
        let verifier = Arc::new(Anybody { inner: inner.build().unwrap(), roots: self.roots() });
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        match leaf {
            Some(leaf) => builder.with_client_auth_cert(leaf.chain.clone(), leaf.key()).unwrap(),
            None => builder.with_no_client_auth(),
        }
    }

    /// A client that trusts hosts whom this authority has signed.
    pub fn host_client(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }

    pub fn pem(&self) -> String {
        pem(&self.der)
    }
}

impl Leaf {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    /// Chain and key in one text.
    pub fn pem(&self) -> String {
        self.chain_pem() + &self.key_pem()
    }

    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem).collect()
    }

    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// What an edge presents that has this certificate.
    pub fn termination(&self, alpn: &[&[u8]]) -> Termination {
        let mut server = self.server();
        server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let leaf = Arc::new(self.chain[0].clone());
        Termination::new(server, leaf, [1; 32])
    }

    /// A server that asks nobody for a certificate.
    pub fn server(&self) -> ServerConfig {
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key())
            .unwrap()
    }
}

/// What a ringmesh presents that is `leaf`, and trusts: these authorities, for names of mesh.local.
pub fn credentials(leaf: &Leaf, roots: &[&Authority], alpn: &[&[u8]]) -> Arc<Credentials> {
    let mut bundles = Bundles::default();
    let domain = TrustDomain::parse("mesh.local").unwrap();
    bundles.set(&domain, roots.iter().map(|root| root.der.clone()).collect()).unwrap();
    let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(Credentials::new(leaf.chain.clone(), &leaf.key(), Arc::new(bundles), &alpn).unwrap())
}

pub fn uri(id: &str) -> SanType {
    SanType::URI(Ia5String::try_from(id).unwrap())
}

fn pem(der: &CertificateDer<'static>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// Verifies the chain and not the name.
#[derive(Debug)]
struct Anybody {
    inner: Arc<WebPkiServerVerifier>,
    roots: RootCertStore,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.roots,
            rest,
            now,
            algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
