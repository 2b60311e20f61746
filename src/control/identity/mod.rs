//! Where this proxy's identity comes from: one interface, several sources, all on the control thread.
//!
//! A source sends [`Material`] whenever there is something new, and [`SourceError`] when it could not get any; what works
//! stays in use until something better came. The keyring takes what they send, looks at it as a peer would, and has it
//! published. Refuses to show a key to anybody but rustls.

mod edge;
mod embedded;
mod facts;
mod files;
mod keyring;
pub(in crate::control) mod machine;
mod pem;
mod rotation;
pub mod workload_api;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use zeroize::Zeroize;

use crate::config::{self, Compiled};
use crate::failure::Cause;
use crate::identity::credentials::BadPair;
use crate::identity::{Bundles, SpiffeId, TrustDomain, credentials, verify};
use crate::upstream::spec::Protocol;

pub(super) use facts::Facts;
pub(super) use keyring::{Keyring, Status};

/// One certificate with its key, and whom to trust.
pub struct Material {
    /// Who it says we are.
    pub id: SpiffeId,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Wiped when dropped; goes into rustls and nowhere else.
    pub key: PrivateKeyDer<'static>,
    /// The roots of our own trust domain, and of those federated.
    pub bundles: Bundles,
}

/// Why a source has nothing new, in words for the operator, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct SourceError {
    /// What went wrong, and with which file, socket or certificate.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What a source sends.
pub type Update = Result<Arc<Material>, SourceError>;

/// All that the configuration says of certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// What is presented to the mesh.
    pub identity: Option<IdentitySettings>,
    /// For listeners that terminate TLS.
    pub terminations: Vec<TerminationSettings>,
    /// For services outside of the mesh.
    pub edges: Vec<EdgeSettings>,
}

impl TlsSettings {
    /// What a configuration says.
    pub(super) fn of(compiled: &Compiled) -> Self {
        let identity = compiled.identity.as_ref().map(|identity| IdentitySettings {
            source: match identity.source.clone() {
                config::IdentitySource::Embedded { folder, trust_domain, id, leaf_ttl } => {
                    IdentitySource::Embedded { folder, trust_domain, id, leaf_ttl }
                }
                config::IdentitySource::Files { certificate, key, bundle } => {
                    IdentitySource::Files { certificate, key, bundle }
                }
                config::IdentitySource::WorkloadApi { socket, id } => {
                    IdentitySource::WorkloadApi { socket, id }
                }
            },
            federated: identity.federated.clone(),
        });
        let terminations = compiled.terminations().map(|termination| TerminationSettings {
            listener: termination.listener.into(),
            certificate: termination.certificate.to_owned(),
            key: termination.key.to_owned(),
            tls12: termination.version_min == config::TlsVersion::V1_2,
        });
        let edges = compiled.edges().map(|edge| EdgeSettings {
            service: edge.service.into(),
            server_name: edge.server_name.clone(),
            ca: edge.ca.map(Path::to_owned),
            protocol: edge.protocol,
        });
        let collector = compiled.collector_edge().map(|(server_name, ca, protocol)| EdgeSettings {
            service: config::Tracing::EDGE.into(),
            server_name,
            ca: ca.map(Path::to_owned),
            protocol,
        });
        Self { identity, terminations: terminations.collect(), edges: edges.chain(collector).collect() }
    }
}

/// Who we are and whom we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySettings {
    /// Where the identity comes from.
    pub source: IdentitySource,
    /// Other trust domains, with a PEM file of roots each. Watched.
    pub federated: Vec<(TrustDomain, PathBuf)>,
}

/// Where an identity comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// From ringmesh's own authority, in a folder.
    Embedded {
        /// The authority's.
        folder: PathBuf,
        /// The authority's.
        trust_domain: TrustDomain,
        /// Who this proxy is.
        id: SpiffeId,
        /// How long a leaf lives.
        leaf_ttl: Duration,
    },
    /// From PEM files that somebody else renews. Watched.
    Files {
        /// Leaf first, then what stands between it and the root.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// The roots of its trust domain.
        bundle: PathBuf,
    },
    /// From a SPIFFE Workload API.
    WorkloadApi {
        /// `unix:/PATH`; what the environment variable SPIFFE_ENDPOINT_SOCKET says if not given.
        socket: Option<String>,
        /// Which one, if there are several; the first otherwise.
        id: Option<SpiffeId>,
    },
}

/// TLS at a listener for callers outside of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminationSettings {
    /// The listener's name.
    pub listener: Arc<str>,
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// Whether TLS 1.2 is spoken too.
    pub tls12: bool,
}

/// TLS to a service outside of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeSettings {
    /// The service's name.
    pub service: Arc<str>,
    /// The name that its certificate must have: a host's, or an address.
    pub server_name: ServerName<'static>,
    /// PEM with its roots; the system's if not given.
    pub ca: Option<PathBuf>,
    /// Which HTTP is offered by ALPN.
    pub protocol: Protocol,
}

/// Updates on the way to the keyring. The keyring takes each at once; a source that is faster waits.
pub const UPDATES_MAX: usize = 4;

impl Drop for Material {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Material").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Material {
    /// Looks at it as a peer of its own trust domain would.
    ///
    /// # Errors
    /// When the key is another's, the id is not what it says, or a peer would refuse the chain now.
    pub fn vet(&self, now: u64) -> Result<(), SourceError> {
        credentials::pair(self.chain.clone(), &self.key).map_err(|error| refused(error, "this identity"))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let id = verify::own(&self.chain, &self.bundles, now).map_err(unfit)?;
        if id == self.id {
            return Ok(());
        }
        Err(SourceError {
            what: format!("the certificate is {id}'s, not {}'s", self.id),
            remedy: "name the id that the source gives, or have it give the one named".into(),
        })
    }
}

/// Has the kernel refuse to write this process's memory into a core dump and to let others trace it: keys are in it.
/// Called once there is an identity to protect; `ringmesh` under a debugger or a profiler needs root from then on.
pub(super) fn seal() {
    let sealed = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if let Err(error) = sealed {
        tracing::warn!(%error, "core dumps cannot be ruled out; set LimitCORE=0 for the service");
    }
}

/// Seconds of the Unix time.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// In the words for an operator.
fn refused(error: BadPair, whose: &str) -> SourceError {
    let remedy = match error {
        BadPair::Missing | BadPair::Certificate => "give a PEM or DER certificate, X.509 version 3",
        BadPair::Identity => "its SAN must have exactly one URI, spiffe://trust-domain/path",
        BadPair::Key => "give an ECDSA, Ed25519 or RSA key of at least 2048 bits, without passphrase",
        BadPair::Mismatch => {
            "give the two that were made together; write both before the proxy is to see them"
        }
        BadPair::Tls => "please report this",
    };
    SourceError { what: format!("{whose}: {error}"), remedy: remedy.into() }
}

/// Why a peer would not let us in, in the words for an operator.
fn unfit(cause: Cause) -> SourceError {
    let (what, remedy) = match cause {
        Cause::CertificateExpired => ("has ended", "renew it, and look why nobody did; is the clock right?"),
        Cause::CertificateNotYetValid => ("is not valid yet", "wait, or set this machine's clock"),
        Cause::UnknownIssuer => (
            "leads to no root of the bundle",
            "add its root to the bundle, and what stands between to the certificate's file",
        ),
        Cause::UntrustedDomain => ("is of a trust domain without bundle", "give the bundle of its domain"),
        Cause::WrongUsage => (
            "may not be used so",
            "a leaf needs CA:FALSE, key usage digitalSignature alone, and both serverAuth and clientAuth or neither",
        ),
        Cause::BadIdentity => (
            "has not exactly one SPIFFE id with a path",
            "its SAN must have exactly one URI, spiffe://trust-domain/path",
        ),
        _ => ("is broken, or weak", "use ECDSA P-256, or RSA with at least 2048 bits and SHA-256"),
    };
    SourceError { what: format!("the certificate {what}: every peer would refuse it"), remedy: remedy.into() }
}

#[cfg(test)]
#[path = "identity_test.rs"]
mod tests;
