//! Why a handshake failed, as a cause. The words of rustls are for the log; what counts, is shown and is acted upon is this.

use rustls::{CertificateError, Error};

use super::verify::Refusal;
use crate::failure::Cause;

/// What an error of rustls is called in a failure.
pub fn cause(error: &Error) -> Cause {
    match error {
        Error::AlertReceived(_) => Cause::HandshakeRefused,
        Error::NoCertificatesPresented => Cause::CertificateMissing,
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::InvalidCertRevocationList(_) => Cause::BadCertificate,
        // What remains is a peer that does not speak TLS, or none that goes with ours (version, suite, ALPN).
        _ => Cause::BadHandshake,
    }
}

fn of_certificate(error: &CertificateError) -> Cause {
    match error {
        CertificateError::Other(other) => {
            other.0.downcast_ref::<Refusal>().map_or(Cause::BadCertificate, |refusal| refusal.0)
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Cause::CertificateExpired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Cause::CertificateNotYetValid
        }
        CertificateError::UnknownIssuer => Cause::UnknownIssuer,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Cause::WrongUsage
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Cause::WrongIdentity
        }
        // Encoding, signature, algorithm, revocation, a critical extension that nobody knows.
        _ => Cause::BadCertificate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, OtherError, PeerIncompatible};
    use std::sync::Arc;

    #[test]
    fn reasons_of_a_verifier_and_of_rustls_come_through() {
        let of = |error| cause(&Error::InvalidCertificate(error));
        let refusal = OtherError(Arc::new(Refusal(Cause::UntrustedDomain)));
        assert_eq!(of(CertificateError::Other(refusal)), Cause::UntrustedDomain);
        let strange = OtherError(Arc::new(std::fmt::Error));
        assert_eq!(of(CertificateError::Other(strange)), Cause::BadCertificate);
        assert_eq!(of(CertificateError::Expired), Cause::CertificateExpired);
        assert_eq!(of(CertificateError::NotValidYet), Cause::CertificateNotYetValid);
        assert_eq!(of(CertificateError::UnknownIssuer), Cause::UnknownIssuer);
        assert_eq!(of(CertificateError::InvalidPurpose), Cause::WrongUsage);
        assert_eq!(of(CertificateError::NotValidForName), Cause::WrongIdentity);
        assert_eq!(of(CertificateError::BadSignature), Cause::BadCertificate);
        assert_eq!(cause(&Error::NoCertificatesPresented), Cause::CertificateMissing);
        assert_eq!(cause(&Error::AlertReceived(AlertDescription::UnknownCA)), Cause::HandshakeRefused);
        let versions = PeerIncompatible::Tls12NotOffered;
        assert_eq!(cause(&Error::PeerIncompatible(versions)), Cause::BadHandshake);
    }
}
