//! Where this proxy's identity comes from: one interface, several sources, all on the control thread.
//!
//! A source sends [`Material`] whenever there is something new, and [`SourceError`] when it could not get any; what works
//! stays in use until something better came. Refuses to show a key to anybody but rustls.

pub mod workload_api;

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity::{Bundles, SpiffeId};

/// One certificate with its key, and whom to trust.
pub struct Material {
    /// Who it says we are.
    pub id: SpiffeId,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Wiped when dropped (by pki-types); goes into rustls and nowhere else.
    pub key: PrivateKeyDer<'static>,
    /// The roots of our own trust domain, and of those federated.
    pub bundles: Bundles,
}

/// Why a source has nothing new, in words for the operator, with the remedy.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct SourceError {
    /// What went wrong, and with which file, socket or certificate.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What a source sends.
pub type Update = Result<Arc<Material>, SourceError>;
