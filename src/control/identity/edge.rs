//! TLS with those outside of the mesh: certificates that listeners present (terminations), and roots by which services are
//! verified by name. Built from files; what is built has a digest of all that went in, so that only a change is one.
//!
//! Listeners resume sessions by tickets, as browsers expect, since no certificate of a caller decides there. Services are
//! not resumed: their connections are pooled, and rustls's store of tickets is a lock between shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use zeroize::Zeroize;

use super::facts::Facts;
use super::{EdgeSettings, SourceError, TerminationSettings, TlsSettings, pem, refused, unix_now};
use crate::identity::credentials::{self, BadPair, provider, sha256};
use crate::snapshot::Termination;
use crate::upstream::spec::{EdgeTls, Protocol};

/// Where systems keep the roots of the public: Debian, Ubuntu, Alpine and Arch; Fedora and RHEL; SUSE; newer Fedora; BSD.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Everything built, by name of the listener or service.
#[derive(Debug, Clone, Default)]
pub(super) struct Built {
    pub(super) terminations: BTreeMap<Arc<str>, (Termination, Vec<Facts>)>,
    pub(super) edges: BTreeMap<Arc<str>, EdgeTls>,
}

/// Builds all. `before` is what works until now: where a listener or a service with the same settings cannot be built
/// anew, it stays, and the error is told beside.
///
/// # Errors
/// When one that there was not before cannot be built.
pub(super) fn build(
    settings: &TlsSettings,
    before: (&TlsSettings, &Built),
    http2: bool,
) -> Result<(Built, Vec<SourceError>), SourceError> {
    let (was, works) = before;
    let mut built = Built::default();
    let mut problems = Vec::new();
    for one in &settings.terminations {
        let of = |error: SourceError| SourceError {
            what: format!("TLS of listener `{}`: {}", one.listener, error.what),
            ..error
        };
        let kept = works.terminations.get(&one.listener).filter(|_| was.terminations.contains(one));
        let made = match (termination(one, kept.map(|(kept, _)| kept), http2).map_err(of), kept) {
            (Ok(made), _) => made,
            (Err(error), Some(kept)) => {
                problems.push(error);
                kept.clone()
            }
            (Err(error), None) => return Err(error),
        };
        built.terminations.insert(Arc::clone(&one.listener), made);
    }
    let mut stores = BTreeMap::new();
    for one in &settings.edges {
        let of = |error: SourceError| SourceError {
            what: format!("TLS of service `{}`: {}", one.service, error.what),
            ..error
        };
        let kept = works.edges.get(&one.service).filter(|_| was.edges.contains(one));
        let made = match (edge(one, &mut stores, http2).map_err(of), kept) {
            (Ok(made), Some(kept)) if made == *kept => kept.clone(),
            (Ok(made), _) => made,
            (Err(error), Some(kept)) => {
                problems.push(error);
                kept.clone()
            }
            (Err(error), None) => return Err(error),
        };
        built.edges.insert(Arc::clone(&one.service), made);
    }
    Ok((built, problems))
}

/// The files that matter.
pub(super) fn files(settings: &TlsSettings) -> Vec<PathBuf> {
    let terminations =
        settings.terminations.iter().flat_map(|one| [one.certificate.clone(), one.key.clone()]);
    let edges = settings.edges.iter().filter_map(|one| one.ca.clone().or_else(system_roots));
    let mut files: Vec<_> = terminations.chain(edges).collect();
    files.sort();
    files.dedup();
    files
}

impl Built {
    /// Whether shards would notice no difference.
    pub(super) fn same(&self, other: &Self) -> bool {
        let digests = |built: &Self| {
            built.terminations.iter().map(|(name, (t, _))| (Arc::clone(name), t.digest)).collect::<Vec<_>>()
        };
        digests(self) == digests(other) && self.edges == other.edges
    }
}

fn termination(
    settings: &TerminationSettings,
    kept: Option<&Termination>,
    http2: bool,
) -> Result<(Termination, Vec<Facts>), SourceError> {
    let TerminationSettings { listener: _, certificate, key: key_path, tls12 } = settings;
    let chain = pem::certificates(certificate)?;
    let facts = Facts::all(&chain);
    let mut key = pem::key(key_path)?;
    let digest = digest(&[&[u8::from(*tls12), u8::from(http2)], key.secret_der()], &chain);
    let leaf = chain.first().cloned();
    let pair = credentials::pair(chain, &key);
    key.zeroize();
    let names = format!("{} and {}", certificate.display(), key_path.display());
    let pair = pair.map_err(|bad| refused(bad, &names))?;
    let leaf = Arc::new(leaf.ok_or_else(|| refused(BadPair::Missing, &names))?);
    if let Some(leaf) = facts.first().filter(|leaf| leaf.not_after < unix_now()) {
        let error = SourceError {
            what: format!("the certificate in {} has ended ({})", certificate.display(), leaf.name),
            remedy: "renew it, and look why nobody did; is the clock right?".into(),
        };
        // What is there now is not worse, as a rule. At a start there is nothing else, and callers will see it.
        if kept.is_some() {
            return Err(error);
        }
        tracing::error!("{}: {}", error.what, error.remedy);
    }
    if let Some(kept) = kept.filter(|kept| kept.digest == digest) {
        // With the keys of its tickets.
        return Ok((kept.clone(), facts));
    }
    let tls = |_| refused(BadPair::Tls, &names);
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(*tls12))
        .map_err(tls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    let offered: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    server.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = Ticketer::new().map_err(tls)?;
    server.send_tls13_tickets = 1;
    server.max_early_data_size = 0;
    Ok((Termination::new(server, leaf, digest), facts))
}

/// Roots that several services have are in memory once.
type Stores = BTreeMap<PathBuf, (Arc<WebPkiServerVerifier>, [u8; 32])>;

fn edge(settings: &EdgeSettings, stores: &mut Stores, http2: bool) -> Result<EdgeTls, SourceError> {
    let EdgeSettings { service: _, server_name, ca, protocol } = settings;
    let path = ca.clone().or_else(system_roots).ok_or_else(|| SourceError {
        what: format!("this system has no file of roots: none of {}", SYSTEM_ROOTS.join(", ")),
        remedy: "install ca-certificates, or name a PEM file with the service's roots".into(),
    })?;
    let (verifier, of_roots) = match stores.get(&path) {
        Some(known) => known.clone(),
        None => {
            let made = roots(&path, ca.is_some())?;
            stores.insert(path, made.clone());
            made
        }
    };
    let shown = server_name.to_str();
    let offered: &[&[u8]] = match protocol {
        Protocol::Auto if http2 => &[b"h2", b"http/1.1"],
        Protocol::Http2 => &[b"h2"],
        Protocol::Auto | Protocol::Http1 => &[b"http/1.1"],
    };
    let digest = sha256(&[&of_roots, &offered.concat(), shown.as_bytes()]);
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(true))
        .map_err(|_| refused(BadPair::Tls, &shown))?
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    client.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
    client.resumption = Resumption::disabled();
    Ok(EdgeTls { client: Arc::new(client), server_name: server_name.clone(), digest })
}

/// For the verification of servers by name, and a digest.
fn roots(path: &Path, strictly: bool) -> Result<(Arc<WebPkiServerVerifier>, [u8; 32]), SourceError> {
    let certificates = pem::certificates(path)?;
    let digest = digest(&[], &certificates);
    let of_all = certificates.len();
    let mut store = RootCertStore::empty();
    let (good, bad) = store.add_parsable_certificates(certificates);
    // A system's file has exotic ones now and then; in one's own file each one is meant.
    if good == 0 || (strictly && bad > 0) {
        return Err(SourceError {
            what: format!("{bad} of the {of_all} certificates in {} cannot be used as roots", path.display()),
            remedy: "give X.509 certificates of CAs, as PEM".into(),
        });
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
        .build()
        .map_err(|_| refused(BadPair::Tls, &path.display().to_string()))?;
    Ok((verifier, digest))
}

fn system_roots() -> Option<PathBuf> {
    SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists())
}

fn digest(first: &[&[u8]], certificates: &[CertificateDer<'_>]) -> [u8; 32] {
    let parts: Vec<&[u8]> = first.iter().copied().chain(certificates.iter().map(|c| &**c)).collect();
    // Lengths first: where one part ends must not be a matter of opinion.
    let lengths: Vec<u8> = parts.iter().flat_map(|part| (part.len() as u64).to_le_bytes()).collect();
    let all: Vec<&[u8]> = std::iter::once(&*lengths).chain(parts).collect();
    sha256(&all)
}

fn versions(tls12: bool) -> &'static [&'static SupportedProtocolVersion] {
    static ONE: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    static BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
    if tls12 { BOTH } else { ONE }
}
