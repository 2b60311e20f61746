//! Who is who: SPIFFE ids, the trust of each domain, and what this proxy presents.
//!
//! Both sides name this module: control makes [`Credentials`] (from its own authority, from files, from a Workload API) and
//! puts them into a snapshot; shards present and verify with them. Refuses to read files, to ask anybody for anything,
//! and to let a private key out: it goes into rustls's configuration and nowhere else.

mod bundles;
pub mod credentials;
pub mod handshake;
pub mod id;
#[cfg(test)]
pub(crate) mod testing;
pub mod verify;

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

pub use bundles::{BadBundle, Bundles};
pub use id::{IdMatch, SpiffeId, TrustDomain};
pub use verify::{Peer, Refusal};

/// What this proxy presents and whom it trusts, from one rotation to the next. Immutable: a rotation makes a new one and
/// publishes a snapshot with it; handshakes that begin later use it, open connections go on.
pub struct Credentials {
    /// Who this proxy is.
    pub id: SpiffeId,
    /// The chain that is presented, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the leaf ends, seconds of the Unix time.
    pub not_after: u64,
    /// For mesh callers: asks for a certificate, offers [`ALPN_MESH`], `h2`, `http/1.1`.
    pub server: Arc<rustls::ServerConfig>,
    /// For mesh services: presents the certificate; who the peer is is checked after the handshake
    /// ([`IdMatch`] of the service), before anything is sent.
    pub client: Arc<rustls::ClientConfig>,
    /// Whom it trusts.
    pub bundles: Arc<Bundles>,
}

/// The protocol of two ringmeshes: HTTP/2 whose messages say how they came (`http::h2::origin`), so that HTTP/1 comes
/// out as it went in, over lanes where a request is whole (`io::lane`). Offered before all others.
pub const ALPN_MESH: &[u8] = b"ringmesh/2";

/// The same without lanes, for those that do not know them yet.
pub const ALPN_MESH_WITHOUT_LANES: &[u8] = b"ringmesh/1";

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the configurations: they own the key.
        f.debug_struct("Credentials")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
