//! The two fields that prove a WebSocket handshake (RFC 6455 §4.2.2): the caller's key and the service's answer to it.
//!
//! A 101 is believed only with the right answer: then both ends mean the same handshake, and no cache and no service
//! that echoes fields can turn a connection into a tunnel. Knows nothing of frames: behind the handshake all is bytes.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What a service has to answer in `Sec-WebSocket-Accept`.
pub type Accept = [u8; 28];

/// The answer to a key, or `None` when it is none: 16 octets in Base64.
pub fn accept_of(key: &[u8]) -> Option<Accept> {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let mut nonce = [0; 18];
    if key.len() != 24 || STANDARD.decode_slice(key, &mut nonce).ok()? != 16 {
        return None;
    }
    let mut hashed = [0; 24 + GUID.len()];
    hashed[..24].copy_from_slice(key);
    hashed[24..].copy_from_slice(GUID);
    let mut accept = [0; 28];
    STANDARD.encode_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &hashed), &mut accept).ok()?;
    Some(accept)
}

/// A key made of 16 random octets: for a caller that sends none (RFC 8441 over HTTP/2).
pub fn key_of(nonce: [u8; 16]) -> [u8; 24] {
    let mut key = [b'='; 24];
    // It fits: 16 octets are 24 in Base64.
    let _ = STANDARD.encode_slice(nonce, &mut key);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), Some(*b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(key_of(*b"the sample nonce"), *b"dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn what_is_not_sixteen_octets_is_no_key() {
        for bad in
            ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ= ", "dGhlIHNhbXBsZSBub25jZXh4", "AAAA"]
        {
            assert_eq!(accept_of(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
