//! `x-forwarded-client-cert`: tells the service whose certificate was verified, in the format that Envoy made known.
//!
//! Refuses to pass on what callers send under that name (in any case, with `_` for `-`, in trailers): a service that
//! reads it must be able to believe it.

use crate::identity::{Peer, SpiffeId};

/// The field's name.
pub const NAME: &str = "x-forwarded-client-cert";

/// What the field tells.
#[derive(Debug, Clone, Copy)]
pub struct ClientCert<'s> {
    /// Who this proxy is.
    pub by: Option<&'s SpiffeId>,
    /// Whose certificate was verified.
    pub peer: &'s Peer,
}

impl ClientCert<'_> {
    /// Octets of the field's value.
    pub fn value_len(&self) -> usize {
        let by = self.by.map_or(0, |by| "By=;".len() + by.as_str().len());
        by + "Hash=;URI=".len() + 2 * self.peer.fingerprint.len() + self.peer.id.as_str().len()
    }

    /// Writes the field's value: `By=<our id>;Hash=<SHA-256 of the leaf, hexadecimal>;URI=<the peer's id>`. Ids have no
    /// octets that would have to be quoted.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Some(by) = self.by {
            out.extend_from_slice(b"By=");
            out.extend_from_slice(by.as_str().as_bytes());
            out.push(b';');
        }
        out.extend_from_slice(b"Hash=");
        // In one piece: it is in each request.
        let mut hash = [0; 64];
        for (digits, octet) in hash.chunks_exact_mut(2).zip(self.peer.fingerprint) {
            let digit = |n: u8| b"0123456789abcdef"[usize::from(n)];
            digits.copy_from_slice(&[digit(octet >> 4), digit(octet & 15)]);
        }
        out.extend_from_slice(&hash);
        out.extend_from_slice(b";URI=");
        out.extend_from_slice(self.peer.id.as_str().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_as_envoy_writes_it() {
        let id = |text| SpiffeId::parse(text).unwrap();
        let (own, peer) =
            (id("spiffe://mesh.local/ns/shop/sa/cart"), id("spiffe://mesh.local/ns/shop/sa/web"));
        let mut fingerprint = [0xa7; 32];
        fingerprint[0] = 0x0f;
        let peer = Peer { id: peer, chain: Vec::new(), fingerprint, not_after: 0 };
        let value = |by| {
            let mut out = Vec::new();
            let client_cert = ClientCert { by, peer: &peer };
            client_cert.write(&mut out);
            assert_eq!(out.len(), client_cert.value_len());
            String::from_utf8(out).unwrap()
        };
        let rest = format!("Hash=0f{};URI=spiffe://mesh.local/ns/shop/sa/web", "a7".repeat(31));
        assert_eq!(value(Some(&own)), format!("By=spiffe://mesh.local/ns/shop/sa/cart;{rest}"));
        assert_eq!(value(None), rest);
    }
}
