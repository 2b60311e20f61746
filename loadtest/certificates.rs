//! Certificates for one run: an authority, a server's certificate, and one for each end of a mesh. P-256 throughout.
//!
//! Called by `compare` and the trials. It refuses to keep anything: all lies in the folder of the run, and is gone with it.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

/// Files of PEM.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// The authority's own certificate: what those who verify believe.
    pub(crate) ca: PathBuf,
    /// For `localhost`, 127.0.0.1 and ::1.
    pub(crate) server: Pair,
    /// For the two proxies of a mesh: `spiffe://mesh.local/a` and `…/b`, also for the name `localhost`.
    pub(crate) a: Pair,
    pub(crate) b: Pair,
}

#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one file, as HAProxy wants it.
    pub(crate) both: PathBuf,
}

pub(crate) fn make(dir: &Path) -> Result<Files, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "loadtest");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, key()?).map_err(|e| e.to_string())?;
    let ca = dir.join("ca.pem");
    write(&ca, &authority.pem())?;
    Ok(Files {
        ca,
        server: pair(dir, "server", None, &authority)?,
        a: pair(dir, "a", Some("spiffe://mesh.local/a"), &authority)?,
        b: pair(dir, "b", Some("spiffe://mesh.local/b"), &authority)?,
    })
}

fn pair(
    dir: &Path,
    name: &str,
    identity: Option<&str>,
    authority: &CertifiedIssuer<'_, KeyPair>,
) -> Result<Pair, String> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let mut params = CertificateParams::new(names).map_err(|e| e.to_string())?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(identity) = identity {
        params
            .subject_alt_names
            .push(SanType::URI(identity.try_into().map_err(|e| format!("{identity}: {e}"))?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = key()?;
    let certificate = params.signed_by(&key, authority).map_err(|e| e.to_string())?.pem();
    let file = |ending: &str| dir.join(format!("{name}{ending}"));
    let pair = Pair { certificate: file(".pem"), key: file("-key.pem"), both: file("-both.pem") };
    write(&pair.certificate, &certificate)?;
    write(&pair.key, &key.serialize_pem())?;
    write(&pair.both, &format!("{certificate}{}", key.serialize_pem()))?;
    Ok(pair)
}

fn key() -> Result<KeyPair, String> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
