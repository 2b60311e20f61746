//! What people want to know of a certificate, for log, pages and metrics.

use std::fmt::Write;

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{credentials, verify};

/// What tells one certificate from another. Empty and zero where it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its SPIFFE id if it has one, its subject otherwise.
    pub(crate) name: String,
    /// Hexadecimal.
    pub(crate) serial: String,
    /// SHA-256 of its DER, hexadecimal.
    pub(crate) fingerprint: String,
    /// Seconds of the Unix time.
    pub(crate) not_before: u64,
    /// Seconds of the Unix time.
    pub(crate) not_after: u64,
}

impl Facts {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let fingerprint = hex(&credentials::sha256(&[certificate]));
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return Self {
                name: String::new(),
                serial: String::new(),
                fingerprint,
                not_before: 0,
                not_after: 0,
            };
        };
        let moment = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        Self {
            name: verify::leaf_id(certificate)
                .map_or_else(|_| parsed.subject().to_string(), |id| id.to_string()),
            serial: hex(parsed.raw_serial()),
            fingerprint,
            not_before: moment(parsed.validity().not_before),
            not_after: moment(parsed.validity().not_after),
        }
    }

    pub(super) fn all(certificates: &[CertificateDer<'_>]) -> Vec<Self> {
        certificates.iter().map(Self::of).collect()
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "subject": self.name, "serial": self.serial, "fingerprint_sha256": self.fingerprint,
            "not_before_unix_seconds": self.not_before, "not_after_unix_seconds": self.not_after,
        })
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(2 * octets.len()), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}
