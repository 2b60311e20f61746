//! Reads certificates and keys from PEM files. What it reads of a key is wiped, also what is thrown away on the way;
//! refuses keys with a passphrase, and says so when others can read the file.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use zeroize::Zeroizing;

use super::SourceError;

/// Octets of a file: bundles of the whole world's roots have a quarter of that.
const FILE_MAX: u64 = 1 << 20;

/// All certificates of a file, in its order; other sections are passed over, but not revocation lists: nobody looks at
/// them here, and whoever puts one there counts on it.
///
/// # Errors
/// When the file cannot be read, has a section that is broken, no certificate, or a revocation list.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let text = read(path)?;
    if section(&text, b"X509 CRL").is_some() {
        return Err(SourceError {
            what: format!("{} has a revocation list, which would not be looked at", path.display()),
            remedy: "take it out; refuse an identity by a rule: [[authorization]] with action = \"deny\" and from = \
                     [its id], which also closes its connections"
                .into(),
        });
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| SourceError {
        what: format!("{} is broken: {error}", path.display()),
        remedy: "write it whole under another name, then rename it to this one".into(),
    })?;
    if found.is_empty() {
        return Err(SourceError {
            what: format!("{} has no certificate", path.display()),
            remedy: "it must have sections that begin with -----BEGIN CERTIFICATE-----".into(),
        });
    }
    Ok(found)
}

/// The first key of a file.
///
/// # Errors
/// When the file cannot be read, has no key, or one with a passphrase.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, SourceError> {
    let text = read(path)?;
    if let Ok(file) = std::fs::metadata(path) {
        let mode = file.mode() & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(
                key = %path.display(), mode = format!("{mode:03o}"),
                "the key can be read by others than its owner: chmod 600"
            );
        }
    }
    let bad = |what: &str, remedy: &str| SourceError {
        what: format!("{} {what}", path.display()),
        remedy: remedy.to_owned(),
    };
    let kinds: [(&[u8], Make); 3] = [
        (b"PRIVATE KEY", |der| PrivatePkcs8KeyDer::from(der).into()),
        (b"EC PRIVATE KEY", |der| PrivateSec1KeyDer::from(der).into()),
        (b"RSA PRIVATE KEY", |der| PrivatePkcs1KeyDer::from(der).into()),
    ];
    for (label, make) in kinds {
        let Some(body) = section(&text, label) else { continue };
        let mut letters = Zeroizing::new(Vec::with_capacity(body.len()));
        letters.extend(body.iter().filter(|octet| !octet.is_ascii_whitespace()));
        // Room for all of it: a vector that grows leaves its old copy behind.
        let mut der = Vec::with_capacity(letters.len());
        return match STANDARD.decode_vec(&*letters, &mut der) {
            Ok(()) => Ok(make(der)),
            Err(_) => {
                zeroize::Zeroize::zeroize(&mut der);
                Err(bad("is broken", "write it whole under another name, then rename it to this one"))
            }
        };
    }
    if section(&text, b"ENCRYPTED PRIVATE KEY").is_some() {
        return Err(bad(
            "has a passphrase",
            "store it without: openssl pkey -in OLD -out NEW; chmod 600 NEW",
        ));
    }
    Err(bad("has no key", "it must have a section that begins with -----BEGIN PRIVATE KEY-----"))
}

type Make = fn(Vec<u8>) -> PrivateKeyDer<'static>;

/// What stands between the two marks of a section.
fn section<'t>(text: &'t [u8], label: &[u8]) -> Option<&'t [u8]> {
    let begin = [b"-----BEGIN ".as_slice(), label, b"-----"].concat();
    let end = [b"-----END ".as_slice(), label, b"-----"].concat();
    let from = memchr::memmem::find(text, &begin)? + begin.len();
    let length = memchr::memmem::find(&text[from..], &end)?;
    Some(&text[from..from + length])
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let cannot = |error: std::io::Error| SourceError {
        what: format!("{} cannot be read: {error}", path.display()),
        remedy: "check the path, and that the proxy's user may read it".into(),
    };
    let file = File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    if size > FILE_MAX {
        return Err(SourceError {
            what: format!("{} is larger than {FILE_MAX} octets", path.display()),
            remedy: "name a PEM file with the certificates that are needed".into(),
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    file.take(FILE_MAX).read_to_end(&mut text).map_err(cannot)?;
    Ok(text)
}
