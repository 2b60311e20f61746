use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use x509_parser::prelude::*;

use super::*;

/// Some day in 2026.
const NOW: u64 = 1_790_000_000;
const HOUR: u64 = 3600;

/// A folder of the test's own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("ringmesh-authority-{}-{number}", std::process::id())))
    }

    fn open(&self) -> Authority {
        Authority::open_or_init_at(&self.0, &domain("mesh.local"), NOW).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn cart() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/cart").unwrap()
}

fn issue(authority: &Authority, now: u64) -> Issued {
    authority.issue_at(&cart(), Authority::LEAF_TTL, now).unwrap()
}

/// Whether a chain leads to one of these roots at a moment, as an independent verifier sees it.
fn verifies(issued: &Issued, bundle: &[CertificateDer<'static>], now: u64) -> Result<(), webpki::Error> {
    let anchors: Vec<_> = bundle.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
    let leaf = webpki::EndEntityCert::try_from(&issued.chain[0])?;
    let at = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now));
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &issued.chain[1..],
            at,
            usage,
            None,
            None,
        )?;
    }
    Ok(())
}

#[test]
fn a_leaf_leads_to_the_bundle_and_ends_when_asked() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let issued = issue(&authority, NOW);
    let bundle = authority.bundle_at(NOW).unwrap();
    assert_eq!((issued.not_before, issued.not_after), (NOW - 60, NOW + 24 * HOUR));
    assert_eq!(bundle.len(), 1);
    verifies(&issued, &bundle, NOW).unwrap();
    verifies(&issued, &bundle, NOW - 60).unwrap();
    assert!(verifies(&issued, &bundle, NOW + 24 * HOUR + 1).is_err());
}

#[test]
fn certificates_keep_the_rules_of_spiffe() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let issued = issue(&authority, NOW);
    let uris = |certificate: &X509Certificate<'_>| -> Vec<String> {
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        names
            .value
            .general_names
            .iter()
            .map(|name| match name {
                GeneralName::URI(uri) => (*uri).to_owned(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(uris(&leaf), [cart().as_str()]);
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical, "its name is empty");
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(extended.value.server_auth && extended.value.client_auth && !extended.value.any);
    assert!((8..=20).contains(&leaf.raw_serial().len()) && leaf.raw_serial()[0] & 0x80 == 0);

    let bundle = authority.bundle_at(NOW).unwrap();
    let (_, issuer) = X509Certificate::from_der(&issued.chain[1]).unwrap();
    let (_, root) = X509Certificate::from_der(&bundle[0]).unwrap();
    for (ca, length) in [(&issuer, 0), (&root, 1)] {
        assert_eq!(uris(ca), ["spiffe://mesh.local"]);
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(length));
        let usage = ca.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        assert!(ca.subject().iter().count() > 0);
    }
    let id_of = |certificate: &X509Certificate<'_>| -> Vec<u8> {
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
            .unwrap()
    };
    let above = |certificate: &X509Certificate<'_>| -> Vec<u8> {
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    Some(id.key_identifier.as_ref().unwrap().0.to_vec())
                }
                _ => None,
            })
            .unwrap()
    };
    assert_eq!(above(&leaf), id_of(&issuer));
    assert_eq!(above(&issuer), id_of(&root));
    assert_ne!(id_of(&leaf), id_of(&issuer));
    let again = issue(&authority, NOW);
    let (_, again) = X509Certificate::from_der(&again.chain[0]).unwrap();
    assert_ne!(again.raw_serial(), leaf.raw_serial());
    assert_ne!(again.public_key().raw, leaf.public_key().raw, "each leaf has a key of its own");
}

#[test]
fn files_are_readable_by_their_owner_only() {
    let scratch = Scratch::new();
    scratch.open();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scratch.0), 0o700);
    let files = scratch.files();
    assert_eq!(files, ["authority.json", "issuer-1.key", "issuer-1.pem", "lock", "root-1.key", "root-1.pem"]);
    for file in files {
        assert_eq!(mode(&scratch.0.join(&file)), 0o600, "{file}");
    }
}

#[test]
fn what_is_there_is_opened_and_not_made_anew() {
    let scratch = Scratch::new();
    let first = scratch.open().bundle_at(NOW).unwrap();
    assert_eq!(scratch.open().bundle_at(NOW).unwrap(), first);
    assert_eq!(Authority::open(&scratch.0).unwrap().trust_domain(), &domain("mesh.local"));
    let error = Authority::open_or_init(&scratch.0, &domain("other.local")).unwrap_err();
    assert!(error.what.contains("trust domain mesh.local, not of other.local"), "{error:?}");
    assert!(Authority::open(Path::new("/nonexistent/ca")).unwrap_err().remedy.contains("ringmesh ca init"));
}

#[test]
fn two_that_begin_at_once_make_one_root() {
    let scratch = Scratch::new();
    let bundles: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| scratch.open().bundle_at(NOW).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(bundles.iter().all(|bundle| *bundle == bundles[0]));
    assert_eq!(scratch.files().len(), 6, "{:?}", scratch.files());
}

#[test]
fn broken_files_are_told_and_never_written_over() {
    for name in ["authority.json", "issuer-1.key", "issuer-1.pem", "root-1.pem"] {
        let scratch = Scratch::new();
        scratch.open();
        let path = scratch.0.join(name);
        let whole = std::fs::read(&path).unwrap();
        for text in [&b""[..], &whole[..whole.len() / 2], b"not what it should be"] {
            std::fs::write(&path, text).unwrap();
            let error = Authority::open_or_init_at(&scratch.0, &domain("mesh.local"), NOW).unwrap_err();
            assert!(error.what.contains(name) && error.remedy.contains("copy"), "{error:?}");
            assert_eq!(std::fs::read(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        let error = Authority::open_or_init_at(&scratch.0, &domain("mesh.local"), NOW).unwrap_err();
        assert!(error.what.contains(name), "{error:?}");
        std::fs::write(&path, &whole).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        issue(&scratch.open(), NOW);
    }
}

#[test]
fn a_beginning_that_was_interrupted_is_finished() {
    let scratch = Scratch::new();
    let folder = Folder::open_or_create(&scratch.0).unwrap();
    folder.replace(STATE, serde_json::to_string(&State::new("mesh.local")).unwrap().as_bytes()).unwrap();
    folder.write_new("root-1.key", b"half").unwrap();
    let authority = scratch.open();
    issue(&authority, NOW);
    assert_eq!(authority.status_at(NOW).unwrap().roots[0].number, 2);
    assert_eq!(std::fs::read(scratch.0.join("root-1.key")).unwrap(), b"half");
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let scratch = Scratch::new();
    scratch.open();
    let key = scratch.0.join("issuer-1.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Authority::open(&scratch.0).unwrap_err();
    assert!(error.what.contains("issuer-1.key") && error.remedy.contains("chmod 600"), "{error:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o770)).unwrap();
    assert!(Authority::open(&scratch.0).unwrap_err().remedy.contains("chmod 700"));
}

#[test]
fn requests_out_of_bounds_are_refused() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let refused = |id: &str, ttl: u64| {
        let id = SpiffeId::parse(id).unwrap();
        authority.issue_at(&id, Duration::from_secs(ttl), NOW).unwrap_err().what
    };
    assert!(refused("spiffe://other.local/a", HOUR).contains("not of trust domain mesh.local"));
    assert!(refused("spiffe://mesh.local", HOUR).contains("has no path"));
    assert!(refused("spiffe://mesh.local/a", 0).contains("cannot live for"));
    assert!(refused("spiffe://mesh.local/a", 365 * DAY).contains("cannot live for"));
    assert!(
        authority.issue_at(&cart(), Authority::LEAF_TTL, NOW - HOUR).unwrap_err().remedy.contains("clock")
    );
}

#[test]
fn the_issuer_is_renewed_in_its_last_third_and_no_leaf_is_cut_short() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let bundle = authority.bundle_at(NOW).unwrap();
    let first = issue(&authority, NOW).chain[1].clone();
    assert_eq!(issue(&authority, NOW + 243 * DAY).chain[1], first);
    let late = NOW + 244 * DAY;
    let issued = authority.issue_at(&cart(), Authority::LEAF_TTL_MAX, late).unwrap();
    assert_ne!(issued.chain[1], first);
    assert_eq!(issued.not_after, late + Authority::LEAF_TTL_MAX.as_secs());
    verifies(&issued, &bundle, issued.not_after).unwrap();
    assert!(!scratch.files().contains(&"issuer-1.key".to_owned()), "the old key is gone");
}

#[test]
fn a_root_is_replaced_and_no_living_leaf_is_ever_untrusted() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let (mut now, step) = (NOW, HOUR / 2);
    // Everybody has a leaf, the bundle that came with it, and renews both at half life.
    let mut proxies: Vec<(Issued, Vec<CertificateDer<'static>>)> = Vec::new();
    let renew = |now| (issue(&authority, now), authority.bundle_at(now).unwrap());
    for n in 0..4 {
        proxies.push(renew(now + n * step));
    }
    now += 4 * step;
    authority.rotate_root_at(Grace::LeavesEnd, now).unwrap();
    let mut sizes = Vec::new();
    for _ in 0..200 {
        let size = authority.bundle_at(now).unwrap().len();
        if sizes.last() != Some(&size) {
            sizes.push(size);
        }
        for proxy in &mut proxies {
            if now >= proxy.0.not_after - 12 * HOUR {
                *proxy = renew(now);
            }
        }
        for (issued, _) in &proxies {
            for (_, bundle) in &proxies {
                verifies(issued, bundle, now).unwrap();
            }
            // Also whoever hears of a change at once.
            verifies(issued, &authority.bundle_at(now).unwrap(), now).unwrap();
        }
        now += step;
    }
    assert_eq!(sizes, [2, 1], "the new root came at once, the old one left");
    let status = authority.status_at(now).unwrap();
    assert_eq!(status.roots.len(), 1);
    assert_eq!((status.roots[0].number, status.roots[0].phase), (2, Phase::Signs));
    issue(&authority, now);
    assert!(!scratch.files().iter().any(|file| file.starts_with("root-1")), "{:?}", scratch.files());
}

#[test]
fn phases_follow_the_grace_and_the_last_leaf() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let old = authority.bundle_at(NOW).unwrap();
    let leaf = issue(&authority, NOW);
    let phases = |now| -> Vec<(u32, Phase)> {
        authority.status_at(now).unwrap().roots.iter().map(|root| (root.number, root.phase)).collect()
    };
    let status = authority.rotate_root_at(Grace::For(Duration::from_secs(HOUR)), NOW).unwrap();
    assert_eq!(status.changes_at, Some(NOW + HOUR));
    assert_eq!(phases(NOW), [(1, Phase::Signs), (2, Phase::Announced)]);
    verifies(&issue(&authority, NOW + HOUR - 1), &old, NOW + HOUR - 1).unwrap();
    assert_eq!(phases(NOW + HOUR), [(1, Phase::Retiring), (2, Phase::Signs)]);
    assert!(verifies(&issue(&authority, NOW + HOUR), &old, NOW + HOUR).is_err(), "the new root signs");
    // One leaf was issued an hour after `leaf`.
    let until = authority.status_at(NOW + HOUR).unwrap().changes_at.unwrap();
    assert!(until > leaf.not_after + HOUR && until < leaf.not_after + 3 * HOUR, "{until}");
    assert_eq!(phases(until - 1).len(), 2);
    assert_eq!(phases(until), [(2, Phase::Signs)]);
    assert_eq!(authority.status_at(until).unwrap().changes_at, None);
}

#[test]
fn one_rotation_at_a_time_and_an_announced_root_can_be_hurried() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    issue(&authority, NOW);
    authority.rotate_root_at(Grace::LeavesEnd, NOW).unwrap();
    let error = authority.rotate_root_at(Grace::LeavesEnd, NOW + 1).unwrap_err();
    assert!(error.what.contains("under way") && error.remedy.contains("--now"), "{error:?}");
    let status = authority.rotate_root_at(Grace::For(Duration::ZERO), NOW + 1).unwrap();
    assert_eq!(
        status.roots.iter().map(|root| root.phase).collect::<Vec<_>>(),
        [Phase::Retiring, Phase::Signs]
    );
    let error = authority.rotate_root_at(Grace::For(Duration::ZERO), NOW + 2).unwrap_err();
    assert!(error.what.contains("root 1 is still trusted"), "{error:?}");
}

#[test]
fn a_root_in_its_last_years_is_replaced_by_itself() {
    let scratch = Scratch::new();
    let authority = scratch.open();
    let last_fifth = NOW + 2920 * DAY;
    let before = issue(&authority, last_fifth - HOUR);
    assert_eq!(authority.bundle_at(last_fifth - HOUR).unwrap().len(), 1);
    let after = issue(&authority, last_fifth + HOUR);
    let bundle = authority.bundle_at(last_fifth + HOUR).unwrap();
    assert_eq!(bundle.len(), 2);
    verifies(&before, &bundle, last_fifth + HOUR).unwrap();
    verifies(&after, &bundle, last_fifth + HOUR).unwrap();
}
