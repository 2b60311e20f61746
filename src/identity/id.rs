//! SPIFFE ids (SPIFFE-ID §2): `spiffe://trust-domain/path`, compared octet by octet. What is not canonical is refused,
//! never made so: two spellings of one id would be two identities to a rule.

use std::sync::Arc;

/// A trust domain: 1 to 255 of `a-z 0-9 . - _`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// An id, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Octets of `spiffe://` and the trust domain.
    path_at: u16,
}

/// Which ids are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IdMatch {
    /// Exactly this one.
    Exact(SpiffeId),
    /// `spiffe://domain/a/b/*`: everything below, by whole segments (stored without the `*`, with the slash). With no
    /// segment before the star (`spiffe://domain/*`) the whole trust domain.
    Below(Arc<str>),
    /// `*`: anybody with a verified identity.
    Any,
}

/// What is wrong with an id, in words for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadId(pub &'static str);

impl SpiffeId {
    /// Longest id (SPIFFE-ID §2.3).
    pub const BYTES_MAX: usize = 2048;
    const SCHEME: &'static str = "spiffe://";

    /// Reads an id.
    ///
    /// # Errors
    /// When it is not exactly one: wrong scheme (in another case, too), empty or bad trust domain, port, user, query,
    /// fragment, percent-encoding, empty segment, dot segment, final slash, too long.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        if text.len() > Self::BYTES_MAX {
            return Err(BadId("it is longer than 2048 octets"));
        }
        let rest = text.strip_prefix(Self::SCHEME).ok_or(BadId("it does not begin with spiffe://"))?;
        let domain_len = rest.find('/').unwrap_or(rest.len());
        TrustDomain::parse(&rest[..domain_len])?;
        check_path(&rest[domain_len..])?;
        // At most 9 + 255.
        let path_at = u16::try_from(Self::SCHEME.len() + domain_len)
            .map_err(|_| BadId("its trust domain is too long"))?;
        Ok(Self { text: text.into(), path_at })
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[Self::SCHEME.len()..self.path_at as usize]
    }

    /// Its path, with the first slash; empty for the id of the trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[self.path_at as usize..]
    }
}

impl std::fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl TrustDomain {
    /// Reads a trust domain.
    ///
    /// # Errors
    /// When it is empty, too long, or has other characters than `a-z 0-9 . - _`.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        if text.is_empty() {
            return Err(BadId("its trust domain is empty"));
        }
        if text.len() > 255 {
            return Err(BadId("its trust domain is longer than 255 octets"));
        }
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !text.bytes().all(legal) {
            return Err(BadId("its trust domain may have a-z, 0-9, `.`, `-` and `_` only"));
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl IdMatch {
    /// Reads `*`, an id, or an id that ends in `/*`.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`], and when a star stands elsewhere.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_suffix("/*") {
            Some(before) => {
                SpiffeId::parse(before)?;
                Ok(Self::Below(text[..text.len() - 1].into()))
            }
            None if text.contains('*') => Err(BadId("a star may stand alone or behind the last slash only")),
            None => SpiffeId::parse(text).map(Self::Exact),
        }
    }

    /// Whether a service that may be one of `ids` may be `peer`. None named: anybody of one's `own` trust domain.
    pub fn expects(ids: &[Self], peer: &SpiffeId, own: &SpiffeId) -> bool {
        if ids.is_empty() {
            return peer.trust_domain() == own.trust_domain();
        }
        ids.iter().any(|id| id.matches(peer))
    }

    /// Whether `id` is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(one) => one == id,
            Self::Below(prefix) => id.as_str().len() > prefix.len() && id.as_str().starts_with(&**prefix),
            Self::Any => true,
        }
    }
}

impl std::fmt::Display for IdMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(id) => id.fmt(f),
            Self::Below(prefix) => write!(f, "{prefix}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

fn check_path(path: &str) -> Result<(), BadId> {
    let Some(path) = path.strip_prefix('/') else { return Ok(()) };
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    for segment in path.split('/') {
        match segment {
            "" => return Err(BadId("it has an empty segment or ends in a slash")),
            "." | ".." => return Err(BadId("it has a dot segment")),
            _ if !segment.bytes().all(legal) => {
                return Err(BadId("its path may have letters, digits, `.`, `-`, `_` and `/` only"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_right_come_apart_where_they_should() {
        let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/cart").unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("mesh.local", "/ns/shop/sa/cart"));
        let bare = SpiffeId::parse("spiffe://mesh.local").unwrap();
        assert_eq!((bare.trust_domain(), bare.path()), ("mesh.local", ""));
    }

    #[test]
    fn t07_every_other_spelling_is_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe:///a",
            "SPIFFE://mesh.local/a",
            "spiffe://Mesh.local/a",
            "https://mesh.local/a",
            "spiffe://mesh.local/",
            "spiffe://mesh.local/a/",
            "spiffe://mesh.local//a",
            "spiffe://mesh.local/a/./b",
            "spiffe://mesh.local/a/../b",
            "spiffe://mesh.local/%61",
            "spiffe://mesh.local/a?b",
            "spiffe://mesh.local/a#b",
            "spiffe://mesh.local:443/a",
            "spiffe://user@mesh.local/a",
            "spiffe://mesh.local/a\0b",
            "spiffe://mesh.local/ä",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
        assert!(SpiffeId::parse(&format!("spiffe://mesh.local/{}", "a".repeat(2048))).is_err());
    }

    #[test]
    fn t06_a_prefix_ends_at_a_segment_and_a_domain_at_its_end() {
        let id = |text| SpiffeId::parse(text).unwrap();
        let below = IdMatch::parse("spiffe://mesh.local/ns/shop/*").unwrap();
        assert!(below.matches(&id("spiffe://mesh.local/ns/shop/sa/cart")));
        assert!(!below.matches(&id("spiffe://mesh.local/ns/shop")));
        assert!(!below.matches(&id("spiffe://mesh.local/ns/shopping/sa/cart")));
        let domain = IdMatch::parse("spiffe://mesh.local/*").unwrap();
        assert!(domain.matches(&id("spiffe://mesh.local/a")));
        assert!(!domain.matches(&id("spiffe://mesh.local.evil.com/a")));
        assert!(IdMatch::parse("spiffe://mesh.*/a").is_err());
        assert!(IdMatch::parse("spiffe://mesh.local*").is_err());
    }
}
