//! Every reason to refuse a chain, in both directions, and what must not be refused.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use super::super::credentials::mesh_protocols;
use super::super::testing::{Ca, Leaf, leaf_params, live, now, uri};
use super::super::{Credentials, TrustDomain};
use super::*;

const ID: &str = "spiffe://mesh.local/ns/shop/sa/cart";

fn bundles(of: &[(&str, &[&Ca])]) -> Bundles {
    let mut bundles = Bundles::default();
    for (domain, roots) in of {
        let roots = roots.iter().map(|root| root.der.clone()).collect();
        bundles.set(&TrustDomain::parse(domain).unwrap(), roots).unwrap();
    }
    bundles
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// What both directions say; they must agree.
fn verdict_at(leaf: &Leaf, bundles: &Bundles, time: u64) -> Result<(), Cause> {
    let verifier = Verifier::new(Arc::new(bundles.clone()));
    let (first, rest) = leaf.chain.split_first().unwrap();
    let host = ServerName::try_from("whoever.invalid").unwrap();
    let as_server = verifier.verify_server_cert(first, rest, &host, &[], at(time)).map(drop);
    let as_client = verifier.verify_client_cert(first, rest, at(time)).map(drop);
    assert_eq!(as_server.is_ok(), as_client.is_ok());
    let causes = [as_server, as_client].map(|verdict| verdict.map_err(|error| Refusal::of(&error).unwrap()));
    assert_eq!(causes[0], causes[1]);
    causes[0]
}

fn verdict(leaf: &Leaf, bundles: &Bundles) -> Result<(), Cause> {
    verdict_at(leaf, bundles, now())
}

/// The verdict on a leaf of the one root that is trusted, changed.
fn verdict_on(change: impl FnOnce(&mut CertificateParams)) -> Result<(), Cause> {
    let root = Ca::root("root");
    verdict(&root.leaf_with(ID, change), &bundles(&[("mesh.local", &[&root])]))
}

#[test]
fn a_right_leaf_is_let_in_directly_and_through_issuers() {
    let root = Ca::root("root");
    let issuer = root.issuer("issuer", |_| {});
    let below = issuer.issuer("below", |_| {});
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict(&root.leaf(ID), &trusted), Ok(()));
    assert_eq!(verdict(&issuer.leaf(ID).behind(&[&issuer]), &trusted), Ok(()));
    assert_eq!(verdict(&below.leaf(ID).behind(&[&below, &issuer]), &trusted), Ok(()));
    assert_eq!(verdict(&below.leaf(ID).behind(&[&issuer, &below, &root]), &trusted), Ok(()), "in any order");
    let peer = peer(&below.leaf(ID).behind(&[&below, &issuer]).chain).unwrap();
    assert_eq!((peer.id.as_str(), peer.chain.len()), (ID, 3));
}

#[test]
fn names_of_hosts_may_stand_beside_the_id_and_usages_may_be_left_out() {
    let dns = |params: &mut CertificateParams| {
        params.subject_alt_names.push(SanType::DnsName("cart.shop".try_into().unwrap()));
    };
    assert_eq!(verdict_on(dns), Ok(()));
    assert_eq!(verdict_on(|params| params.extended_key_usages.clear()), Ok(()));
    let more = |params: &mut CertificateParams| params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
    assert_eq!(verdict_on(more), Ok(()));
}

#[test]
fn t01_expired() {
    assert_eq!(verdict_on(|params| live(params, -3600, -1)), Err(Cause::CertificateExpired));
    let root = Ca::root("root");
    let issuer = root.issuer("issuer", |params| live(params, -3600, -60));
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict(&issuer.leaf(ID).behind(&[&issuer]), &trusted), Err(Cause::CertificateExpired));
    let root = Ca::root_with("root", |params| live(params, -3600, -60));
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict(&root.leaf(ID), &trusted), Err(Cause::CertificateExpired), "a root ends, too");
}

#[test]
fn t01_t02_the_clock_is_the_one_given() {
    let root = Ca::root("root");
    let leaf = root.leaf(ID);
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict_at(&leaf, &trusted, now() + 3500), Ok(()));
    assert_eq!(verdict_at(&leaf, &trusted, now() + 3700), Err(Cause::CertificateExpired));
    assert_eq!(verdict_at(&leaf, &trusted, now() - 120), Err(Cause::CertificateNotYetValid));
}

#[test]
fn t02_not_yet_valid() {
    assert_eq!(verdict_on(|params| live(params, 60, 3600)), Err(Cause::CertificateNotYetValid));
}

#[test]
fn t03_unknown_issuer() {
    let (known, stranger) = (Ca::root("known"), Ca::root("stranger"));
    let trusted = bundles(&[("mesh.local", &[&known])]);
    assert_eq!(verdict(&stranger.leaf(ID), &trusted), Err(Cause::UnknownIssuer));
    assert_eq!(verdict(&stranger.leaf(ID).behind(&[&stranger]), &trusted), Err(Cause::UnknownIssuer));
}

#[test]
fn t04_signed_by_itself_under_the_issuers_name() {
    let root = Ca::root("root");
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict(&Ca::root("root").leaf(ID), &trusted), Err(Cause::UnknownIssuer));
    let mut params = leaf_params(ID);
    params.distinguished_name = root.params.distinguished_name;
    let key = KeyPair::generate().unwrap();
    let chain = vec![params.self_signed(&key).unwrap().der().clone()];
    assert_eq!(verdict(&Leaf { chain, key }, &trusted), Err(Cause::UnknownIssuer));
}

#[test]
fn t05_a_root_vouches_for_its_own_domain_only() {
    let (ours, theirs) = (Ca::root("ours"), Ca::root("theirs"));
    let other = "spiffe://other.org/ns/shop/sa/cart";
    let trusted = bundles(&[("mesh.local", &[&ours])]);
    assert_eq!(verdict(&theirs.leaf(other), &trusted), Err(Cause::UntrustedDomain));
    assert_eq!(verdict(&ours.leaf(other), &trusted), Err(Cause::UntrustedDomain));
    let federated = bundles(&[("mesh.local", &[&ours]), ("other.org", &[&theirs])]);
    assert_eq!(verdict(&theirs.leaf(other), &federated), Ok(()));
    assert_eq!(verdict(&theirs.leaf(ID), &federated), Err(Cause::UnknownIssuer), "names us, signed by them");
    assert_eq!(verdict(&ours.leaf(other), &federated), Err(Cause::UnknownIssuer), "names them, signed by us");
}

#[test]
fn t06_a_longer_domain_is_another_one() {
    let root = Ca::root("root");
    let trusted = bundles(&[("mesh.local", &[&root])]);
    for id in [
        "spiffe://mesh.local.evil.com/ns/shop/sa/cart",
        "spiffe://mesh.locale/a",
        "spiffe://evil.mesh.local/a",
    ] {
        assert_eq!(verdict(&root.leaf(id), &trusted), Err(Cause::UntrustedDomain), "{id}");
    }
}

#[test]
fn t07_t12_ids_that_are_not_canonical() {
    for id in [
        "SPIFFE://mesh.local/a",
        "spiffe://Mesh.local/a",
        "spiffe://mesh.local/%61",
        "spiffe://mesh.local/a/../b",
        "spiffe://mesh.local/a/./b",
        "spiffe://mesh.local/a/",
        "spiffe://mesh.local//a",
        "spiffe://mesh.local/a?b",
        "spiffe://mesh.local/a#b",
        "spiffe://mesh.local:443/a",
        "spiffe://u@mesh.local/a",
        "spiffe://mesh.local/a\0b",
        "spiffe://mesh.local\0.evil.com/a",
        "spiffe://mesh.local/a\0",
        "https://mesh.local/a",
        "spiffe://mesh.local",
        "",
    ] {
        assert_eq!(verdict_on(|p| p.subject_alt_names = vec![uri(id)]), Err(Cause::BadIdentity), "{id:?}");
    }
}

#[test]
fn t09_two_uris() {
    for second in ["spiffe://mesh.local/b", ID, "https://mesh.local/b"] {
        let both = |params: &mut CertificateParams| params.subject_alt_names.push(uri(second));
        assert_eq!(verdict_on(both), Err(Cause::BadIdentity), "{second}");
    }
}

#[test]
fn t09_a_name_that_cannot_be_read_counts() {
    let root = Ca::root("root");
    // GeneralNames: the id, then a URI with an octet that is no ASCII.
    let mut names = vec![0x86, u8::try_from(ID.len()).unwrap()];
    names.extend(ID.as_bytes());
    names.extend([0x86, 3, b'a', 0xff, b'b']);
    let mut content = vec![0x30, u8::try_from(names.len()).unwrap()];
    content.extend(names);
    let leaf = root.leaf_with(ID, |params| {
        params.subject_alt_names.clear();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
    });
    assert_eq!(verdict(&leaf, &bundles(&[("mesh.local", &[&root])])), Err(Cause::BadIdentity));
}

#[test]
fn t10_t11_no_uri_at_all() {
    let bare = |params: &mut CertificateParams| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(rcgen::DnType::CommonName, ID);
    };
    assert_eq!(verdict_on(bare), Err(Cause::BadIdentity));
    let dns = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::DnsName("mesh.local".try_into().unwrap())];
    };
    assert_eq!(verdict_on(dns), Err(Cause::BadIdentity));
}

#[test]
fn t13_extended_usage_of_the_other_side() {
    let root = Ca::root("root");
    let verifier = Verifier::new(Arc::new(bundles(&[("mesh.local", &[&root])])));
    let only = |usage| root.leaf_with(ID, |params| params.extended_key_usages = vec![usage]);
    let host = ServerName::try_from("whoever.invalid").unwrap();
    let server =
        |leaf: &Leaf| verifier.verify_server_cert(&leaf.chain[0], &[], &host, &[], at(now())).map(drop);
    let client = |leaf: &Leaf| verifier.verify_client_cert(&leaf.chain[0], &[], at(now())).map(drop);
    let refused = |verdict: Result<(), rustls::Error>| Refusal::of(&verdict.unwrap_err());
    let (for_server, for_client) =
        (only(ExtendedKeyUsagePurpose::ServerAuth), only(ExtendedKeyUsagePurpose::ClientAuth));
    assert_eq!(server(&for_server), Ok(()));
    assert_eq!(client(&for_client), Ok(()));
    assert_eq!(refused(server(&for_client)), Some(Cause::WrongUsage));
    assert_eq!(refused(client(&for_server)), Some(Cause::WrongUsage));
    assert_eq!(refused(client(&only(ExtendedKeyUsagePurpose::CodeSigning))), Some(Cause::WrongUsage));
}

#[test]
fn t14_the_issuer_is_missing() {
    let root = Ca::root("root");
    let issuer = root.issuer("issuer", |_| {});
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict(&issuer.leaf(ID), &trusted), Err(Cause::UnknownIssuer));
    let other = root.issuer("another", |_| {});
    assert_eq!(verdict(&issuer.leaf(ID).behind(&[&other]), &trusted), Err(Cause::UnknownIssuer));
}

#[test]
fn t15_a_leaf_signs_a_leaf() {
    let root = Ca::root("root");
    let trusted = bundles(&[("mesh.local", &[&root])]);
    let named = |params: &mut CertificateParams| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
        params.is_ca = IsCa::NoCa;
    };
    let leaf = root.leaf_with("spiffe://mesh.local/evil", named);
    let mut params = leaf_params("spiffe://mesh.local/evil");
    named(&mut params);
    let as_ca = Ca { params, key: leaf.key, der: leaf.chain[0].clone() };
    assert_eq!(verdict(&as_ca.leaf(ID).behind(&[&as_ca]), &trusted), Err(Cause::WrongUsage));
    let forgetful = root.issuer("forgetful", |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert_eq!(
        verdict(&forgetful.leaf(ID).behind(&[&forgetful]), &trusted),
        Err(Cause::WrongUsage),
        "an issuer that may not sign certificates"
    );
}

#[test]
fn t16_the_path_is_longer_than_allowed() {
    let root = Ca::root("root");
    let short = root.issuer("short", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = short.issuer("below", |_| {});
    let trusted = bundles(&[("mesh.local", &[&root])]);
    assert_eq!(verdict(&short.leaf(ID).behind(&[&short]), &trusted), Ok(()));
    assert_eq!(verdict(&below.leaf(ID).behind(&[&below, &short]), &trusted), Err(Cause::WrongUsage));
}

#[test]
fn t17_a_ca_as_leaf_and_usages_that_a_leaf_may_not_have() {
    let ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(verdict_on(ca), Err(Cause::WrongUsage));
    for usages in [
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
        vec![KeyUsagePurpose::KeyEncipherment],
        vec![],
    ] {
        assert_eq!(verdict_on(|p| p.key_usages.clone_from(&usages)), Err(Cause::WrongUsage), "{usages:?}");
    }
}

#[test]
fn t20_weak_keys_and_signatures() {
    let root = Ca::root("root");
    let trusted = bundles(&[("mesh.local", &[&root])]);
    // Made by openssl, since rcgen makes no weak ones: RSA with 1024 bits, and RSA 2048 signed with SHA-1. Where a root
    // is not ours the verdict could be about that; what is weak is seen first.
    let weak_key = CertificateDer::from(include_bytes!("testing/rsa1024.der").to_vec());
    let leaf = Leaf { chain: vec![weak_key.clone()], key: KeyPair::generate().unwrap() };
    assert_eq!(verdict(&leaf, &trusted), Err(Cause::BadCertificate));
    let mut behind = root.leaf(ID);
    behind.chain.push(weak_key);
    assert_eq!(verdict(&behind, &trusted), Err(Cause::BadCertificate));
    let sha1_root = CertificateDer::from(include_bytes!("testing/sha1-root.der").to_vec());
    let sha1_leaf = CertificateDer::from(include_bytes!("testing/sha1-leaf.der").to_vec());
    let mut of_sha1 = Bundles::default();
    of_sha1.set(&TrustDomain::parse("mesh.local").unwrap(), vec![sha1_root]).unwrap();
    let leaf = Leaf { chain: vec![sha1_leaf], key: KeyPair::generate().unwrap() };
    assert_eq!(verdict(&leaf, &of_sha1), Err(Cause::BadCertificate));
    let rsa =
        Ca::root("root").sign(&leaf_params(ID), KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap());
    assert_eq!(verdict(&rsa, &trusted), Err(Cause::UnknownIssuer), "RSA is not refused as such");
}

#[test]
fn t34_long_chains_and_garbage() {
    let root = Ca::root("root");
    let trusted = bundles(&[("mesh.local", &[&root])]);
    let mut long = root.leaf(ID);
    long.chain.extend((1..CHAIN_MAX).map(|_| root.der.clone()));
    assert_eq!(verdict(&long, &trusted), Ok(()));
    long.chain.push(root.der.clone());
    assert_eq!(verdict(&long, &trusted), Err(Cause::BadCertificate));
    let good = root.leaf(ID);
    for cut in 0..good.chain[0].len() {
        let chain = vec![CertificateDer::from(good.chain[0][..cut].to_vec())];
        let leaf = Leaf { chain, key: KeyPair::generate().unwrap() };
        assert_eq!(verdict(&leaf, &trusted), Err(Cause::BadCertificate), "cut at {cut}");
    }
    let mut more = good.chain[0].to_vec();
    more.push(0);
    let leaf = Leaf { chain: vec![CertificateDer::from(more)], key: KeyPair::generate().unwrap() };
    assert_eq!(verdict(&leaf, &trusted), Err(Cause::BadCertificate), "something behind it");
    for (at, _) in good.chain[0].iter().enumerate() {
        let mut flipped = good.chain[0].to_vec();
        flipped[at] ^= 0x04;
        // One direction: a changed usage is refused for different reasons.
        let verifier = Verifier::new(Arc::new(trusted.clone()));
        let verdict = verifier.verify_client_cert(&CertificateDer::from(flipped), &[], self::at(now()));
        assert!(verdict.is_err(), "bit flipped in octet {at}");
    }
}

#[test]
fn an_open_connection_ends_with_its_root_and_not_with_its_leaf() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let issuer = old.issuer("issuer", |params| live(params, -3600, 7200));
    let peer = peer(&issuer.leaf(ID).behind(&[&issuer]).chain).unwrap();
    let both = bundles(&[("mesh.local", &[&old, &new])]);
    for later in [0, 4000, 8000] {
        assert_eq!(still_trusted(&peer, &both, at(now() + later)), Ok(()), "after {later} s");
    }
    let shrunken = bundles(&[("mesh.local", &[&new])]);
    assert_eq!(still_trusted(&peer, &shrunken, at(now())), Err(Cause::UnknownIssuer));
    let other = bundles(&[("other.org", &[&old])]);
    assert_eq!(still_trusted(&peer, &other, at(now())), Err(Cause::UntrustedDomain));
    assert!(both.covers(&shrunken) && !shrunken.covers(&both) && both.covers(&both));
}

#[test]
fn bundles_refuse_what_is_no_root() {
    let root = Ca::root("root");
    let domain = TrustDomain::parse("mesh.local").unwrap();
    let mut bundles = Bundles::default();
    assert!(bundles.set(&domain, vec![]).is_err());
    assert!(bundles.set(&domain, root.leaf(ID).chain).is_err());
    assert!(bundles.set(&domain, vec![CertificateDer::from(vec![1, 2, 3])]).is_err());
    let problem = bundles.set(&domain, vec![root.der.clone(), root.leaf(ID).chain[0].clone()]).unwrap_err();
    assert!(problem.to_string().contains("certificate 2 in the bundle of mesh.local"), "{problem}");
    assert_eq!(bundles, Bundles::default());
}

/// Handshakes in memory: what the peers are told, and what they agree on.
mod handshakes {
    use rustls::{ClientConnection, ServerConnection};

    use super::*;

    fn credentials(leaf: &Leaf, bundles: &Bundles) -> Credentials {
        let bundles = Arc::new(bundles.clone());
        Credentials::new(leaf.chain.clone(), &leaf.private_key(), bundles, &mesh_protocols(true)).unwrap()
    }

    /// How it ended for the server and for the client.
    fn shake(
        server: &Arc<rustls::ServerConfig>,
        client: &Arc<rustls::ClientConfig>,
    ) -> (ServerConnection, ClientConnection, [Result<(), rustls::Error>; 2]) {
        let host = ServerName::try_from("whoever.invalid").unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), host).unwrap();
        let mut ends = [Ok(()), Ok(())];
        for _ in 0..8 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &*wire).unwrap();
            if ends[0].is_ok() {
                ends[0] = server.process_new_packets().map(drop);
            }
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &*wire).unwrap();
            if ends[1].is_ok() {
                ends[1] = client.process_new_packets().map(drop);
            }
        }
        (server, client, ends)
    }

    #[test]
    fn two_of_the_mesh_agree_on_the_best_there_is() {
        let root = Ca::root("root");
        let trusted = bundles(&[("mesh.local", &[&root])]);
        let [a, b] = ["spiffe://mesh.local/a", "spiffe://mesh.local/b"]
            .map(|id| credentials(&root.leaf(id), &trusted));
        let (server, client, ends) = shake(&b.server, &a.client);
        assert_eq!(ends, [Ok(()), Ok(())]);
        assert_eq!(peer(server.peer_certificates().unwrap()).unwrap().id, a.id);
        assert_eq!(peer(client.peer_certificates().unwrap()).unwrap().id, b.id);
        assert_eq!(server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let group = server.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(server.alpn_protocol(), Some(super::super::super::ALPN_MESH));
        assert_eq!(server.server_name(), None, "no SNI is sent");
        let (_, client, _) = shake(&b.server, &a.client);
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full), "t28: nothing is resumed");
    }

    #[test]
    fn t22_no_certificate() {
        let root = Ca::root("root");
        let trusted = bundles(&[("mesh.local", &[&root])]);
        let server = credentials(&root.leaf(ID), &trusted).server;
        let nobody = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(Arc::new(trusted))))
            .with_no_client_auth();
        let (_, _, [server, _]) = shake(&server, &Arc::new(nobody));
        assert_eq!(Refusal::of(&server.unwrap_err()), Some(Cause::CertificateMissing));
    }

    #[test]
    fn t24_tls_1_2() {
        let root = Ca::root("root");
        let trusted = bundles(&[("mesh.local", &[&root])]);
        let server = credentials(&root.leaf(ID), &trusted).server;
        let old = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(Arc::new(trusted))))
            .with_no_client_auth();
        let (_, _, [server, _]) = shake(&server, &Arc::new(old));
        assert!(matches!(server, Err(rustls::Error::PeerIncompatible(_))), "{server:?}");
    }

    #[test]
    fn reasons_survive_the_handshake_in_both_directions() {
        let (root, stranger) = (Ca::root("root"), Ca::root("stranger"));
        let trusted = bundles(&[("mesh.local", &[&root])]);
        let good = credentials(&root.leaf(ID), &trusted);
        let all = bundles(&[("mesh.local", &[&root, &stranger]), ("other.org", &[&stranger])]);
        for (bad, cause) in [
            (root.leaf_with(ID, |p| live(p, -60, -1)), Cause::CertificateExpired),
            (root.leaf_with(ID, |p| live(p, 60, 90)), Cause::CertificateNotYetValid),
            (stranger.leaf(ID), Cause::UnknownIssuer),
            (stranger.leaf("spiffe://other.org/a"), Cause::UntrustedDomain),
            (root.leaf_with(ID, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]), Cause::WrongUsage),
        ] {
            let bad = credentials(&bad, &all);
            let (_, _, [server, _]) = shake(&good.server, &bad.client);
            assert_eq!(Refusal::of(&server.unwrap_err()), Some(cause), "as a server");
            let (_, _, [_, client]) = shake(&bad.server, &good.client);
            assert_eq!(Refusal::of(&client.unwrap_err()), Some(cause), "as a client");
        }
    }

    #[test]
    fn t21_a_key_of_somebody_else() {
        let root = Ca::root("root");
        let bundles = Arc::new(bundles(&[("mesh.local", &[&root])]));
        let (a, b) = (root.leaf(ID), root.leaf(ID));
        let made = Credentials::new(a.chain, &b.private_key(), bundles, &[]);
        assert_eq!(made.unwrap_err(), crate::identity::credentials::BadPair::Mismatch);
    }
}
