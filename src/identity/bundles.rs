//! Whom we trust: the roots of each trust domain, made ready once so that a handshake parses none of them. Refuses to
//! be one merged store: a root vouches for the names of its own domain and for no others (SPIFFE-ID §3).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::id::TrustDomain;
use super::verify::weak_key;

/// The roots of each trust domain: one's own and those that are declared (federation).
#[derive(Debug, Default, Clone)]
pub struct Bundles {
    domains: BTreeMap<Arc<str>, Roots>,
}

/// The roots of one trust domain.
#[derive(Debug, Clone)]
pub(super) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    /// In the order of `certificates`.
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// First and last second of each, in the same order.
    periods: Vec<(i64, i64)>,
}

/// What is wrong with a bundle, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    /// A trust domain without roots trusts nobody: leave it out instead.
    #[error("the bundle of {0} has no certificate")]
    Empty(TrustDomain),
    /// A certificate that cannot be read, is no CA's, or has a weak key.
    #[error("certificate {number} in the bundle of {domain} {problem}")]
    Root {
        /// Whose bundle.
        domain: TrustDomain,
        /// From 1.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More roots than [`Bundles::ROOTS_MAX`], or more domains than [`Bundles::DOMAINS_MAX`].
    #[error("the bundle of {0} is too large, or there are too many bundles")]
    TooMany(TrustDomain),
}

impl Bundles {
    /// Roots of one trust domain: while a root is replaced there are two, and each one is a signature to try.
    pub const ROOTS_MAX: usize = 32;
    /// Trust domains; further ones are refused.
    pub const DOMAINS_MAX: usize = 256;

    /// Trusts these roots, and no others, for the names of `domain`.
    ///
    /// # Errors
    /// When there is none, when one is not a CA's certificate, or when there are too many. Nothing has changed then.
    pub fn set(
        &mut self,
        domain: &TrustDomain,
        mut certificates: Vec<CertificateDer<'static>>,
    ) -> Result<(), BadBundle> {
        certificates.dedup();
        if certificates.is_empty() {
            return Err(BadBundle::Empty(domain.clone()));
        }
        let new = !self.domains.contains_key(domain.as_str());
        if certificates.len() > Self::ROOTS_MAX || (new && self.domains.len() >= Self::DOMAINS_MAX) {
            return Err(BadBundle::TooMany(domain.clone()));
        }
        let mut roots = Roots { certificates: Vec::new(), anchors: Vec::new(), periods: Vec::new() };
        for (n, certificate) in certificates.into_iter().enumerate() {
            let bad = |problem| BadBundle::Root { domain: domain.clone(), number: n + 1, problem };
            let (anchor, period) = prepare(&certificate).map_err(bad)?;
            roots.anchors.push(anchor);
            roots.periods.push(period);
            roots.certificates.push(certificate);
        }
        self.domains.insert(domain.as_str().into(), roots);
        Ok(())
    }

    /// The roots of a trust domain; none when it is not trusted.
    pub fn roots(&self, domain: &str) -> &[CertificateDer<'static>] {
        self.domains.get(domain).map_or(&[], |roots| &roots.certificates)
    }

    /// All that is trusted, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &[CertificateDer<'static>])> {
        self.domains.iter().map(|(domain, roots)| (domain, &*roots.certificates))
    }

    /// Whether everything that `before` trusted is trusted here: if so, no open connection has to be looked at again.
    pub fn covers(&self, before: &Self) -> bool {
        before.iter().all(|(domain, roots)| {
            let now = self.roots(domain);
            roots.iter().all(|root| now.contains(root))
        })
    }

    pub(super) fn of(&self, domain: &str) -> Option<&Roots> {
        self.domains.get(domain)
    }
}

impl PartialEq for Bundles {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Bundles {}

impl Roots {
    /// Whether this anchor, one of `anchors`, is in its period. webpki looks at the periods of the other certificates.
    pub(super) fn in_period(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let same = |(known, _): &(&TrustAnchor<'_>, _)| std::ptr::eq::<TrustAnchor<'_>>(*known, anchor);
        let found = self.anchors.iter().zip(&self.periods).find(same);
        found.is_some_and(|(_, (from, to))| (*from..=*to).contains(&now))
    }
}

type Prepared = (TrustAnchor<'static>, (i64, i64));

fn prepare(certificate: &CertificateDer<'_>) -> Result<Prepared, &'static str> {
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|_| "cannot be read")?.to_owned();
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "cannot be read")?;
    if !parsed.is_ca() {
        return Err("is not a CA's: it must say CA:TRUE");
    }
    if parsed.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("may not sign certificates: its key usage lacks keyCertSign");
    }
    if weak_key(&parsed) {
        return Err("has an RSA key of less than 2048 bits");
    }
    let validity = parsed.validity();
    Ok((anchor, (validity.not_before.timestamp(), validity.not_after.timestamp())))
}
