//! Sources, the keyring and edges, with real files; and a whole control side that publishes what they bring.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;

use rustls::pki_types::ServerName;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::embedded::{Asked, Embedded};
use super::files::Files;
use super::*;
use crate::config;
use crate::control::authority::{Authority, Grace, Issued};
use crate::control::testing::{Folder, eventually, fake_shard, page};
use crate::control::watch::Watch;
use crate::control::{Proxy, Start, start};
use crate::identity::Refusal;
use crate::identity::testing::{Ca, Leaf, live, now};
use crate::snapshot::Presented;

const ID: &str = "spiffe://mesh.local/ns/shop/sa/cart";
/// Only a failing test waits so long.
const GUARD: Duration = Duration::from_secs(30);

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

/// Writes a key as one should.
fn write_key(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let path = folder.write(name, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn write_all(folder: &Folder, leaf: &Leaf, roots: &[&Ca]) -> Files {
    Files {
        certificate: folder.write("tls.crt", &leaf.chain_pem()),
        key: write_key(folder, "tls.key", &leaf.key_pem()),
        bundle: folder.write("ca.crt", &roots.iter().map(|root| root.pem()).collect::<String>()),
    }
}

fn settings(files: &Files) -> TlsSettings {
    let Files { certificate, key, bundle } = files.clone();
    let source = IdentitySource::Files { certificate, key, bundle };
    TlsSettings {
        identity: Some(IdentitySettings { source, federated: Vec::new() }),
        ..TlsSettings::default()
    }
}

async fn keyring(settings: &TlsSettings) -> Keyring {
    let mut keyring = Keyring::new(true);
    let prepared = keyring.prepare(settings).unwrap();
    keyring.adopt(prepared, GUARD).await;
    keyring
}

/// The serial number of the leaf that is presented.
fn presented(keyring: &Keyring) -> Option<Vec<u8>> {
    keyring.presented().identity.map(|identity| identity.chain[0].to_vec())
}

fn problem(keyring: &Keyring) -> Option<SourceError> {
    keyring.status().lock().unwrap().problem.as_ref().map(|(_, problem)| problem.clone())
}

// --- files ---

#[test]
fn files_that_a_peer_would_refuse_are_refused_with_their_names_and_a_remedy() {
    let folder = Folder::new("identity-refused");
    let root = Ca::root("root");
    let good = root.leaf(ID);
    let files = write_all(&folder, &good, &[&root]);
    assert_eq!(files.load(now()).unwrap().id.as_str(), ID);

    let refused = |leaf: &Leaf, key: &str, roots: &[&Ca]| {
        let files = write_all(&folder, leaf, roots);
        write_key(&folder, "tls.key", key);
        let error = files.load(now()).unwrap_err();
        assert!(!error.remedy.is_empty());
        error.what
    };
    let other = root.leaf(ID);
    let said = refused(&good, &other.key_pem(), &[&root]);
    assert!(said.contains("tls.crt and ") && said.contains("tls.key"), "t21: {said}");
    let said = refused(&root.leaf_with(ID, |p| live(p, -60, -1)), &good.key_pem(), &[&root]);
    assert!(said.contains("is not the certificate's"), "{said}");
    let ended = root.leaf_with(ID, |p| live(p, -60, -1));
    assert!(refused(&ended, &ended.key_pem(), &[&root]).contains("has ended"));
    let early = root.leaf_with(ID, |p| live(p, 60, 90));
    assert!(refused(&early, &early.key_pem(), &[&root]).contains("not valid yet"));
    assert!(refused(&good, &good.key_pem(), &[&Ca::root("other")]).contains("no root of the bundle"));
    let two = root.leaf_with(ID, |p| p.subject_alt_names.push(crate::identity::testing::uri(ID)));
    assert!(refused(&two, &two.key_pem(), &[&root]).contains("exactly one SPIFFE id"));
    assert!(refused(&good, "", &[&root]).contains("has no key"));
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(refused(&good, locked, &[&root]).contains("passphrase"));
    let cut = good.key_pem();
    assert!(refused(&good, &cut[..cut.len() / 2], &[&root]).contains("has no key"));

    let files = write_all(&folder, &good, &[&root]);
    let whole = good.chain_pem();
    for cut in [0, 10, whole.len() / 2, whole.len() - 30] {
        folder.write("tls.crt", &whole[..cut]);
        let said = files.load(now()).unwrap_err().what;
        assert!(said.contains("tls.crt"), "cut at {cut}: {said}");
    }
    std::fs::remove_file(&files.certificate).unwrap();
    assert!(files.load(now()).unwrap_err().what.contains("cannot be read"));
}

#[test]
fn t18_t19_a_revocation_list_is_refused_and_not_passed_over_whatever_its_age() {
    let folder = Folder::new("identity-crl");
    let root = Ca::root("root");
    let files = write_all(&folder, &root.leaf(ID), &[&root]);
    let day = Duration::from_secs(86_400);
    for next in [SystemTime::now() + day, SystemTime::now() - day] {
        let list = rcgen::CertificateRevocationListParams {
            this_update: (SystemTime::now() - 2 * day).into(),
            next_update: next.into(),
            crl_number: rcgen::SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let mut params = root.params.clone();
        params.key_usages.push(rcgen::KeyUsagePurpose::CrlSign);
        let list = list.signed_by(&rcgen::Issuer::from_params(&params, &root.key)).unwrap().pem().unwrap();
        folder.write("ca.crt", &(root.pem() + &list));
        let error = files.load(now()).unwrap_err();
        assert!(error.what.contains("ca.crt has a revocation list"), "{error:?}");
        assert!(error.remedy.contains("deny"));
        folder.write("ca.crt", &root.pem());
        assert!(files.load(now()).is_ok());
    }
}

#[test]
fn keys_of_every_usual_kind_are_read() {
    let folder = Folder::new("identity-kinds");
    let root = Ca::root("root");
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let leaf = root.sign(&crate::identity::testing::leaf_params(ID), key);
        let files = write_all(&folder, &leaf, &[&root]);
        assert_eq!(files.load(now()).unwrap().id.as_str(), ID, "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_wrong_pair_on_the_way_to_a_right_one_changes_nothing_but_is_said() {
    let folder = Folder::new("identity-pair");
    let root = Ca::root("root");
    let (first, second) = (root.leaf(ID), root.leaf(ID));
    let files = write_all(&folder, &first, &[&root]);
    let mut keyring = keyring(&settings(&files)).await;
    assert_eq!(presented(&keyring).unwrap(), first.chain[0].to_vec());

    folder.write("tls.crt", &second.chain_pem());
    // Wrong now. Nothing to publish comes of it; the source looks again by itself, and finds the second key some time.
    let status = keyring.status();
    let complained = async {
        while status.lock().unwrap().rotations_bad == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = keyring.changed() => panic!("a wrong pair was published"),
        done = timeout(GUARD, complained) => done.unwrap(),
    }
    assert_eq!(presented(&keyring).unwrap(), first.chain[0].to_vec());
    assert!(problem(&keyring).unwrap().what.contains("the key is not the certificate's"));

    write_key(&folder, "tls.key", &second.key_pem());
    timeout(GUARD, keyring.changed()).await.unwrap();
    assert_eq!(presented(&keyring).unwrap(), second.chain[0].to_vec());
    assert_eq!(problem(&keyring), None);
    assert_eq!(keyring.status().lock().unwrap().rotations_good, 2);
}

#[tokio::test]
async fn a_certificate_that_begins_later_is_taken_when_it_has_begun() {
    let folder = Folder::new("identity-begins");
    let root = Ca::root("root");
    // On a slow machine a second may be over before the first look.
    let mut wait = 1;
    let (leaf, mut keyring) = loop {
        let begins = unix_now() + wait;
        let leaf = root.leaf_with(ID, |params| live(params, wait as i64, 3600));
        let files = write_all(&folder, &leaf, &[&root]);
        let keyring = keyring(&settings(&files)).await;
        if unix_now() < begins {
            break (leaf, keyring);
        }
        wait *= 2;
    };
    assert!(problem(&keyring).unwrap().what.contains("not valid yet"));
    assert_eq!(presented(&keyring), None);
    // No file changes any more; the source looks again by itself, before the watch would after half a minute.
    timeout(Duration::from_secs(20), keyring.changed()).await.unwrap();
    assert_eq!(presented(&keyring).unwrap(), leaf.chain[0].to_vec());
}

#[tokio::test]
async fn a_kubernetes_volume_that_is_swapped_is_noticed() {
    let folder = Folder::new("identity-kubernetes");
    let root = Ca::root("root");
    let version = |name: &str| {
        let leaf = root.leaf(ID);
        std::fs::create_dir(folder.path(name)).unwrap();
        folder.write(&format!("{name}/tls.crt"), &leaf.chain_pem());
        write_key(&folder, &format!("{name}/tls.key"), &leaf.key_pem());
        folder.write(&format!("{name}/ca.crt"), &root.pem());
        leaf
    };
    let first = version("..1");
    symlink("..1", folder.path("..data")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(Path::new("..data").join(name), folder.path(name)).unwrap();
    }
    let [certificate, key, bundle] = ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.path(name));
    let mut keyring = keyring(&settings(&Files { certificate, key, bundle })).await;
    assert_eq!(presented(&keyring).unwrap(), first.chain[0].to_vec());
    let second = version("..2");
    symlink("..2", folder.path("..data_tmp")).unwrap();
    std::fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    timeout(GUARD, keyring.changed()).await.unwrap();
    assert_eq!(presented(&keyring).unwrap(), second.chain[0].to_vec());
}

#[tokio::test]
async fn a_federated_bundle_is_trusted_for_its_domain_and_followed() {
    let folder = Folder::new("identity-federated");
    let (root, theirs, next) = (Ca::root("root"), Ca::root("theirs"), Ca::root("next"));
    let files = write_all(&folder, &root.leaf(ID), &[&root]);
    let mut settings = settings(&files);
    let path = folder.write("other.pem", "not yet\n");
    settings.identity.as_mut().unwrap().federated = vec![(domain("other.org"), path)];
    let mut keyring = keyring(&settings).await;
    let trusted =
        |keyring: &Keyring| keyring.presented().identity.unwrap().bundles.roots("other.org").to_vec();
    assert_eq!(trusted(&keyring), vec![]);
    for (text, expected) in [
        (theirs.pem(), vec![theirs.der.clone()]),
        (theirs.pem() + &next.pem(), vec![theirs.der.clone(), next.der.clone()]),
    ] {
        folder.write("other.pem", &text);
        timeout(GUARD, keyring.changed()).await.unwrap();
        assert_eq!(trusted(&keyring), expected);
    }
    folder.write("other.pem", "-----BEGIN CERT");
    let before = keyring.presented().identity.unwrap();
    let status = keyring.status();
    status.lock().unwrap().problem = None;
    let complained = async {
        while status.lock().unwrap().problem.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = keyring.changed() => panic!("a broken bundle was published"),
        done = timeout(GUARD, complained) => done.unwrap(),
    }
    assert!(Arc::ptr_eq(&before, &keyring.presented().identity.unwrap()), "what works stays");
}

// --- embedded ---

/// An authority without a folder, which can be told to fail and to take another root.
struct Fake {
    root: Arc<Mutex<Ca>>,
    issued: Arc<AtomicU64>,
    /// So many questions from the second on are not answered.
    failures: u64,
}

impl Asked for Fake {
    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, SourceError> {
        let number = self.issued.fetch_add(1, Ordering::SeqCst);
        if (1..=self.failures).contains(&number) {
            return Err(SourceError { what: format!("failure {number}"), remedy: "wait".into() });
        }
        let to = i64::try_from(ttl.as_secs()).unwrap();
        let leaf = self.root.lock().unwrap().leaf_with(id.as_str(), |params| live(params, -60, to));
        let (not_before, not_after) = (now() - 60, now() + ttl.as_secs());
        Ok(Issued { key: leaf.private_key(), chain: leaf.chain, not_before, not_after })
    }

    fn bundle(&self) -> Result<Vec<CertificateDer<'static>>, SourceError> {
        Ok(vec![self.root.lock().unwrap().der.clone()])
    }
}

fn embedded(ttl: u64, failures: u64) -> (Arc<Mutex<Ca>>, Arc<AtomicU64>, mpsc::Receiver<Update>) {
    let (root, next) = (Arc::new(Mutex::new(Ca::root("root"))), Arc::default());
    let asked = Fake { root: Arc::clone(&root), issued: Arc::default(), failures };
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    let embedded = Embedded { asked, id: id(ID), ttl: Duration::from_secs(ttl), next: Arc::clone(&next) };
    tokio::spawn(embedded.run(sender));
    (root, next, updates)
}

async fn update(updates: &mut mpsc::Receiver<Update>) -> Update {
    timeout(GUARD, updates.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_leaf_is_renewed_before_it_ends_and_what_fails_is_tried_again() {
    let (_, next, mut updates) = embedded(4, 2);
    let first = update(&mut updates).await.unwrap();
    first.vet(now()).unwrap();
    assert_eq!(update(&mut updates).await.unwrap_err().what, "failure 1");
    assert_eq!(update(&mut updates).await.unwrap_err().what, "failure 2");
    first.vet(now()).expect("renewal began while the first was good");
    let second = update(&mut updates).await.unwrap();
    assert_ne!(first.chain, second.chain);
    assert!(next.load(Ordering::SeqCst) >= now());
}

#[tokio::test]
async fn a_root_that_another_process_changes_is_noticed_without_a_renewal_being_due() {
    let (root, _, mut updates) = embedded(86_400, 0);
    let first = update(&mut updates).await.unwrap();
    *root.lock().unwrap() = Ca::root("another");
    let second = update(&mut updates).await.unwrap();
    assert_ne!(first.bundles, second.bundles);
    second.vet(now()).unwrap();
}

#[tokio::test]
async fn the_real_authority_is_asked_and_its_rotations_are_followed() {
    let folder = Folder::new("identity-embedded");
    let at = folder.path("ca");
    let source = IdentitySource::Embedded {
        folder: at.clone(),
        trust_domain: domain("mesh.local"),
        id: id(ID),
        leaf_ttl: Duration::from_secs(60),
    };
    let identity = Some(IdentitySettings { source, federated: Vec::new() });
    let mut keyring = keyring(&TlsSettings { identity, ..TlsSettings::default() }).await;
    let first = keyring.presented().identity.unwrap();
    assert_eq!((first.id.as_str(), first.bundles.roots("mesh.local").len()), (ID, 1));
    Authority::open(&at).unwrap().rotate_root(Grace::LeavesEnd).unwrap();
    timeout(GUARD, keyring.changed()).await.unwrap();
    let second = keyring.presented().identity.unwrap();
    assert_eq!(second.bundles.roots("mesh.local").len(), 2, "the old and the new");
    assert!(second.bundles.covers(&first.bundles));
}

// --- the keyring ---

#[tokio::test]
async fn an_identity_that_has_ended_stays_and_is_not_ready() {
    let folder = Folder::new("identity-ended");
    let root = Ca::root("root");
    let files = write_all(&folder, &root.leaf(ID), &[&root]);
    let keyring = keyring(&settings(&files)).await;
    let status = keyring.status();
    let status = status.lock().unwrap();
    assert_eq!(status.unready(now()), None);
    let said = status.unready(now() + 7200).unwrap();
    assert!(said.contains("has ended") && said.contains(ID), "{said}");
    assert!(presented(&keyring).is_some());
}

#[tokio::test]
async fn another_source_takes_over_when_it_has_something_and_none_takes_all_away() {
    let folder = Folder::new("identity-sources");
    let root = Ca::root("root");
    let leaf = root.leaf(ID);
    let files = write_all(&folder, &leaf, &[&root]);
    let mut keyring = keyring(&settings(&files)).await;
    let missing = Files { certificate: folder.path("later.crt"), ..files.clone() };
    let prepared = keyring.prepare(&settings(&missing)).unwrap();
    keyring.adopt(prepared, GUARD).await;
    assert_eq!(presented(&keyring).unwrap(), leaf.chain[0].to_vec(), "the old one, until the new is there");
    assert!(problem(&keyring).unwrap().what.contains("later.crt"));
    let later = root.leaf(ID);
    write_key(&folder, "tls.key", &later.key_pem());
    folder.write("later.crt", &later.chain_pem());
    timeout(GUARD, keyring.changed()).await.unwrap();
    assert_eq!(presented(&keyring).unwrap(), later.chain[0].to_vec());
    let prepared = keyring.prepare(&TlsSettings::default()).unwrap();
    keyring.adopt(prepared, GUARD).await;
    assert_eq!(presented(&keyring), None);
}

#[tokio::test]
async fn no_key_is_in_anything_that_is_printed() {
    let folder = Folder::new("identity-printed");
    let root = Ca::root("root");
    let leaf = root.leaf(ID);
    let files = write_all(&folder, &leaf, &[&root]);
    let keyring = keyring(&settings(&files)).await;
    let material = files.load(now()).unwrap();
    let termination = TerminationSettings {
        listener: "edge".into(),
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        tls12: false,
    };
    let tls = TlsSettings { terminations: vec![termination], ..TlsSettings::default() };
    let (built, _) = edge::build(&tls, (&TlsSettings::default(), &edge::Built::default()), true).unwrap();
    let status = keyring.status();
    let printed = format!("{material:?} {:?} {status:?} {built:?} {files:?} {tls:?}", keyring.presented());
    let der = leaf.key.serialize_der();
    let list = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let base64 = leaf.key_pem().lines().nth(1).unwrap().to_owned();
    // The secret scalar of a P-256 key stands at octet 36 of its PKCS #8.
    for secret in [list(&der[36..52]), hex(&der[36..52]), base64] {
        assert!(!printed.contains(&secret), "{printed}");
    }
    assert!(printed.contains(ID), "it prints something");
}

// --- edges ---

fn host_leaf(root: &Ca, host: &str) -> Leaf {
    root.leaf_with("spiffe://unused/a", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(host.try_into().unwrap())];
    })
}

fn edges(folder: &Folder, leaf: &Leaf, root: &Ca) -> TlsSettings {
    TlsSettings {
        identity: None,
        terminations: vec![TerminationSettings {
            listener: "edge".into(),
            certificate: folder.write("edge.crt", &leaf.chain_pem()),
            key: write_key(folder, "edge.key", &leaf.key_pem()),
            tls12: true,
        }],
        edges: vec![EdgeSettings {
            service: "outside".into(),
            server_name: ServerName::try_from("shop.example").unwrap(),
            ca: Some(folder.write("edge-ca.crt", &root.pem())),
            protocol: Protocol::Auto,
        }],
    }
}

fn shake(presented: &Presented) -> Result<Vec<u8>, rustls::Error> {
    let (server, edge) = (&presented.terminations["edge"].server, &presented.edges["outside"]);
    let mut server = rustls::ServerConnection::new(Arc::clone(server)).unwrap();
    let mut client =
        rustls::ClientConnection::new(Arc::clone(&edge.client), edge.server_name.clone()).unwrap();
    for _ in 0..6 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut &*wire).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut &*wire).unwrap();
        client.process_new_packets()?;
    }
    assert_eq!(server.server_name(), Some("shop.example"), "SNI is sent");
    Ok(client.alpn_protocol().unwrap().to_vec())
}

#[tokio::test]
async fn edges_are_verified_by_name_and_followed_when_their_files_change() {
    let folder = Folder::new("identity-edges");
    let root = Ca::root("public");
    let settings = edges(&folder, &host_leaf(&root, "shop.example"), &root);
    let mut keyring = keyring(&settings).await;
    let first = keyring.presented();
    assert_eq!(shake(&first), Ok(b"h2".to_vec()));

    let wrong = host_leaf(&root, "other.example");
    folder.write("edge.crt", &wrong.chain_pem());
    write_key(&folder, "edge.key", &wrong.key_pem());
    timeout(GUARD, async {
        // The files may be seen between the two writes, which changes nothing.
        while keyring.presented().terminations == first.terminations {
            keyring.changed().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(Refusal::of(&shake(&keyring.presented()).unwrap_err()), Some(Cause::WrongIdentity));
    assert_eq!(keyring.presented().edges, first.edges, "what did not change is the same");

    let stranger = Ca::root("stranger");
    folder.write("edge-ca.crt", &stranger.pem());
    timeout(GUARD, keyring.changed()).await.unwrap();
    assert_eq!(Refusal::of(&shake(&keyring.presented()).unwrap_err()), Some(Cause::UnknownIssuer));
}

/// What a caller that keeps tickets is served with, twice: how the second handshake was, with what was presented then.
fn again(first: &Presented, second: &Presented, root: &Ca) -> Option<rustls::HandshakeKind> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.der.clone()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(credentials::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut kind = None;
    for presented in [first, second] {
        let name = ServerName::try_from("shop.example").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        assert!(client.early_data().is_none(), "t29: what could be replayed is not invited");
        let mut server =
            rustls::ServerConnection::new(Arc::clone(&presented.terminations["edge"].server)).unwrap();
        for _ in 0..6 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &*wire).unwrap();
            server.process_new_packets().unwrap();
            assert!(server.early_data().is_none());
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &*wire).unwrap();
            client.process_new_packets().unwrap();
        }
        kind = client.handshake_kind();
    }
    kind
}

#[tokio::test]
async fn t28_t29_tickets_of_an_edge_resume_without_early_data_and_end_with_its_certificate() {
    let folder = Folder::new("identity-tickets");
    let root = Ca::root("public");
    let settings = edges(&folder, &host_leaf(&root, "shop.example"), &root);
    let mut keyring = keyring(&settings).await;
    let first = keyring.presented();
    assert_eq!(again(&first, &first, &root), Some(rustls::HandshakeKind::Resumed));
    let renewed = host_leaf(&root, "shop.example");
    folder.write("edge.crt", &renewed.chain_pem());
    write_key(&folder, "edge.key", &renewed.key_pem());
    timeout(GUARD, async {
        while keyring.presented().terminations == first.terminations {
            keyring.changed().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(again(&first, &keyring.presented(), &root), Some(rustls::HandshakeKind::Full));
}

#[tokio::test]
async fn an_edge_that_cannot_be_built_refuses_a_configuration_but_not_one_that_works() {
    let folder = Folder::new("identity-edges-bad");
    let root = Ca::root("public");
    let leaf = host_leaf(&root, "shop.example");
    let settings = edges(&folder, &leaf, &root);
    let keyring = keyring(&settings).await;
    write_key(&folder, "edge.key", &root.leaf(ID).key_pem());
    let prepared = keyring.prepare(&settings);
    assert!(prepared.is_ok(), "the same settings: what works stays");
    assert!(problem(&keyring).unwrap().what.contains("listener `edge`"));
    let mut changed = settings.clone();
    changed.terminations[0].tls12 = false;
    let said = keyring.prepare(&changed).err().unwrap().what;
    assert!(said.contains("edge.crt and ") && said.contains("edge.key"), "t21: {said}");
    write_key(&folder, "edge.key", &leaf.key_pem());
    let mut other = settings.clone();
    other.edges[0].ca = Some(folder.path("missing.pem"));
    let said = keyring.prepare(&other).err().unwrap().what;
    assert!(said.contains("service `outside`") && said.contains("missing.pem"), "{said}");
    other.edges[0].ca = None;
    assert!(keyring.prepare(&other).is_ok(), "the system's roots");
}

// --- the whole ---

/// As TOML.
fn as_toml(tls: &TlsSettings) -> String {
    let mut text = "shards = 2\n[admin]\naddress = \"127.0.0.1:0\"\n".to_owned();
    if let Some(IdentitySettings { source: IdentitySource::Files { certificate, key, bundle }, .. }) =
        &tls.identity
    {
        text += &format!(
            "[identity]\nsource = \"files\"\ncertificate = {certificate:?}\nkey = {key:?}\nbundle = {bundle:?}\n"
        );
    }
    if tls.terminations.is_empty() {
        text += "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n";
    }
    for TerminationSettings { listener, certificate, key, .. } in &tls.terminations {
        text += &format!(
            "[[listener]]\nname = {listener:?}\naddress = \"127.0.0.1:0\"\ntls = \"terminate\"\n\
             certificate = {certificate:?}\nkey = {key:?}\n"
        );
    }
    for EdgeSettings { service, server_name, ca, .. } in &tls.edges {
        let name = server_name.to_str();
        text += &format!(
            "[[service]]\nname = {service:?}\nendpoints = [\"127.0.0.1:9\"]\ntls = \"edge\"\nserver_name = {name:?}\n"
        );
        if let Some(ca) = ca {
            text += &format!("ca = {ca:?}\n");
        }
        text += &format!("[[route]]\nservice = {service:?}\n");
    }
    text
}

/// As `Proxy::start`, with these certificates.
fn started(tls: &TlsSettings) -> Proxy {
    let text = as_toml(tls);
    let loaded = config::parse("configuration", &text, &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let begin = Start { spawn: fake_shard, ..Start::text(text) };
    let prepared = start::prepare(begin, loaded.compiled, Watch::new(Vec::new())).unwrap();
    let (told, word) = sync_channel(1);
    let thread = std::thread::spawn(move || start::thread(prepared, &told));
    let (state, commands) = word.recv().unwrap().unwrap();
    Proxy { state, commands, thread: Some(thread) }
}

#[test]
fn a_rotation_reaches_every_shard_by_a_snapshot_of_the_same_configuration() {
    let folder = Folder::new("identity-whole");
    let root = Ca::root("root");
    let first = root.leaf(ID);
    let files = write_all(&folder, &first, &[&root]);
    let mut tls = edges(&folder, &host_leaf(&root, "shop.example"), &root);
    tls.identity = settings(&files).identity;
    let proxy = started(&tls);
    let admin = proxy.admin().unwrap();
    let snapshot = Arc::clone(&proxy.state.live().snapshot);
    assert_eq!(snapshot.identity.as_ref().unwrap().chain, first.chain);
    assert!(matches!(snapshot.listeners[0].tls, crate::snapshot::ListenerTls::Terminate(_)));
    assert!(matches!(snapshot.services[0].tls, crate::upstream::spec::Tls::Edge(_)));
    assert_eq!(page(admin, "/ready").0, 200);
    let dumpable = rustix::process::dumpable_behavior().unwrap();
    assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);

    let second = root.leaf(ID);
    folder.write("tls.crt", &second.chain_pem());
    write_key(&folder, "tls.key", &second.key_pem());
    let presents_second = || {
        let live = proxy.state.live();
        live.snapshot.identity.as_ref().unwrap().chain == second.chain
    };
    eventually("the second leaf is published", presents_second);
    eventually("every shard runs it", || {
        proxy.links().iter().all(|link| link.vitals.generation.load(Ordering::Acquire) == 2)
    });

    let (_, shown) = page(admin, "/identity?format=json");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["id"], &shown["chain"][0]["subject"]), (&ID.into(), &ID.into()));
    assert_eq!(shown["bundles"]["mesh.local"].as_array().unwrap().len(), 1);
    assert_eq!(shown["rotations"]["good"], 2);
    let (_, text) = page(admin, "/identity");
    assert!(text.contains(ID) && text.contains("trusted for mesh.local"), "{text}");
    assert!(text.contains("presented by listener edge"), "{text}");
    let (_, metrics) = page(admin, "/metrics");
    for line in [
        format!("ringmesh_certificate_expiry_seconds{{role=\"leaf\",scope=\"mesh\",subject=\"{ID}\",number=\"0\"}}"),
        "ringmesh_certificate_expiry_seconds{role=\"root\",scope=\"mesh.local\",subject=\"CN=root\",number=\"0\"}".into(),
        "ringmesh_certificate_expiry_seconds{role=\"termination\",scope=\"listener edge\"".into(),
        "ringmesh_identity_rotations_total{result=\"good\"} 2".into(),
    ] {
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    // The text says nothing of certificates: with it they go.
    proxy.reload(&as_toml(&TlsSettings::default())).unwrap();
    assert!(proxy.state.live().snapshot.identity.is_none());
    assert_eq!(page(admin, "/ready").0, 200);
    proxy.drain();
    proxy.join();
}

#[test]
fn a_proxy_without_its_identity_runs_and_is_not_ready_until_it_has_one() {
    let folder = Folder::new("identity-late");
    let root = Ca::root("root");
    let leaf = root.leaf(ID);
    let files = write_all(&folder, &leaf, &[&root]);
    std::fs::remove_file(&files.certificate).unwrap();
    let proxy = started(&settings(&files));
    let admin = proxy.admin().unwrap();
    let (status, said) = page(admin, "/ready");
    assert_eq!(status, 503);
    assert!(said.contains("identity: none yet") && said.contains("tls.crt"), "{said}");
    assert!(page(admin, "/identity").1.contains("tls.crt cannot be read"));
    folder.write("tls.crt", &leaf.chain_pem());
    eventually("ready with its identity", || page(admin, "/ready").0 == 200);
    proxy.drain();
    proxy.join();
}
