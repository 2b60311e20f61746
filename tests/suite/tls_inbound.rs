//! TLS with callers: rows t01 to t34 of the list of what must be refused, as far as this proxy itself answers for them
//! (which chains are good is the verifier's business), and that what is sent encrypted is served like anything else.

use std::io::Write;
use std::sync::Arc;

use rcgen::{DnType, ExtendedKeyUsagePurpose, IsCa, SanType};
use ringmesh::shard::link::Order;
use ringmesh::snapshot::{ListenerTls, Snapshot};
use rustls::{ClientConfig, HandshakeKind};

use crate::support::authority::{Authority, Leaf, TLS12, TLS13, credentials, uri};
use crate::support::client::{Client, Cut};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::Origin;
use crate::support::rig::{Rig, SMUGGLED, assert_refusal};
use crate::support::{End, Gate};

const APP: &str = "spiffe://mesh.local/ns/shop/sa/app";
const CALLER: &str = "spiffe://mesh.local/ns/shop/sa/caller";
const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

/// A proxy that presents `APP`.
struct Mutual {
    authority: Authority,
    rig: Rig,
}

impl Mutual {
    fn new(mode: ListenerTls) -> Self {
        Self::before(Origin::plain(), mode, |_| {})
    }

    fn before(
        origin: Origin,
        mode: ListenerTls,
        more: impl Fn(&mut Snapshot) + Send + Sync + 'static,
    ) -> Self {
        let authority = Authority::new("mesh");
        let credentials = authority.credentials(APP, &authority.workload(APP), &[b"http/1.1"]);
        let rig = Rig::before_with(origin, |config| {
            config.forwarding("forwarded = \"append\"\n").change(move |snapshot| {
                snapshot.listeners[0].tls = mode.clone();
                snapshot.identity = Some(Arc::clone(&credentials));
                more(snapshot);
            })
        });
        Self { authority, rig }
    }

    fn config(&self) -> ClientConfig {
        self.authority.anybody_client(Some(&self.authority.workload(CALLER)), TLS13)
    }

    fn client(&self) -> Client {
        self.rig.client().tls(self.config(), "app.test")
    }

    /// A caller with this certificate is refused for this reason, and nothing of it reaches the service.
    #[track_caller]
    fn refuses(self, leaf: Option<&Leaf>, cause: &str) {
        let config = self.authority.anybody_client(leaf, TLS13);
        self.refuses_client(config, cause);
    }

    #[track_caller]
    fn refuses_client(self, config: ClientConfig, cause: &str) {
        let mut client = self.rig.client().tls(config, "app.test");
        client.send(GET);
        assert!(matches!(client.cut(), Cut::Nothing(End::Tls | End::Cut)), "{cause}");
        drop(client);
        assert_refused(&self.rig.done_unseen(), &format!("handshake.downstream.{cause}"));
    }
}

/// One connection failed, and why stands in the counters and in the log.
#[track_caller]
fn assert_refused(seen: &Seen, label: &str) {
    let counted: Vec<_> = seen.connection_failures.iter().map(|(f, n)| (f.as_str(), *n)).collect();
    assert_eq!(counted, [(label, 1)]);
    assert_eq!(seen.handshakes.len(), 1, "{:?}", seen.handshakes);
    assert!(seen.handshakes[0].0 == label && !seen.handshakes[0].1.is_empty(), "{:?}", seen.handshakes);
    assert!(seen.failures.is_empty() && seen.totals.tls_handshakes == 0, "it is no exchange");
}

#[test]
fn a_caller_with_a_certificate_is_served_and_its_connection_serves_more() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let mut client = mutual.client();
    for _ in 0..3 {
        client.send(GET);
        assert_eq!(client.response().text(), "/a");
    }
    client.send("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().one("connection").as_deref(), Some("close"));
    assert_eq!(client.end(), End::Fin, "closed with close_notify");
    drop(client);
    let done = mutual.rig.done();
    assert_eq!((done.requests.len(), done.seen.totals.tls_handshakes), (4, 1));
    assert_eq!(done.requests[0].one("x-forwarded-proto").as_deref(), Some("https"));
    assert!(done.seen.connection_failures.is_empty() && done.seen.handshakes.is_empty());
}

#[test]
fn t01_t02_a_certificate_out_of_its_time_is_refused() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let expired = mutual.authority.leaf(|params| {
        params.subject_alt_names = vec![uri(CALLER)];
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    mutual.refuses(Some(&expired), "certificate_expired");
    let mutual = Mutual::new(ListenerTls::Permissive);
    let early = mutual.authority.leaf(|params| {
        params.subject_alt_names = vec![uri(CALLER)];
        params.not_before = rcgen::date_time_ymd(2101, 1, 1);
        params.not_after = rcgen::date_time_ymd(2102, 1, 1);
    });
    mutual.refuses(Some(&early), "certificate_not_yet_valid");
}

#[test]
fn t03_t04_a_certificate_of_another_authority_is_refused_whatever_its_name() {
    Mutual::new(ListenerTls::Strict)
        .refuses(Some(&Authority::new("other").workload(CALLER)), "unknown_issuer");
    let namesake = Authority::new("mesh").workload(CALLER);
    let mutual = Mutual::new(ListenerTls::Strict);
    let config = mutual.authority.anybody_client(Some(&namesake), TLS13);
    let mut client = mutual.rig.client().tls(config, "app.test");
    client.send(GET);
    assert!(matches!(client.cut(), Cut::Nothing(_)));
    drop(client);
    // Its name finds the root and its signature does not fit.
    let seen = mutual.rig.done_unseen();
    let labels: Vec<_> = seen.connection_failures.into_keys().collect();
    let right = ["handshake.downstream.bad_certificate", "handshake.downstream.unknown_issuer"];
    assert!(labels.len() == 1 && right.contains(&labels[0].as_str()), "{labels:?}");
}

#[test]
fn t09_t10_t11_a_certificate_without_exactly_one_id_is_refused() {
    for names in [
        vec![uri(CALLER), uri(APP)],
        vec![],
        vec![SanType::DnsName("caller.mesh.local".try_into().unwrap())],
        vec![uri("spiffe://mesh.local/ns/../caller")],
    ] {
        let mutual = Mutual::new(ListenerTls::Strict);
        let leaf = mutual.authority.leaf(|params| {
            params.distinguished_name.push(DnType::CommonName, CALLER);
            params.subject_alt_names = names;
        });
        let mut client =
            mutual.rig.client().tls(mutual.authority.anybody_client(Some(&leaf), TLS13), "app.test");
        client.send(GET);
        assert!(matches!(client.cut(), Cut::Nothing(_)));
        drop(client);
        assert_refused(&mutual.rig.done_unseen(), "handshake.downstream.bad_identity");
    }
}

#[test]
fn t13_a_certificate_for_servers_only_is_none_of_a_caller() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let leaf = mutual.authority.leaf(|params| {
        params.subject_alt_names = vec![uri(CALLER)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    mutual.refuses(Some(&leaf), "wrong_certificate_usage");
}

#[test]
fn t17_a_ca_is_no_caller() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let leaf = mutual.authority.leaf(|params| {
        params.subject_alt_names = vec![uri(CALLER)];
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let config = mutual.authority.anybody_client(Some(&leaf), TLS13);
    let mut client = mutual.rig.client().tls(config, "app.test");
    client.send(GET);
    assert!(matches!(client.cut(), Cut::Nothing(_)));
    drop(client);
    assert_eq!(mutual.rig.done_unseen().connection_failures.len(), 1);
}

#[test]
fn t22_a_caller_without_a_certificate_is_refused() {
    Mutual::new(ListenerTls::Strict).refuses(None, "certificate_missing");
    Mutual::new(ListenerTls::Permissive).refuses(None, "certificate_missing");
}

#[test]
fn t23_plain_text_to_a_strict_listener_is_told_why() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let mut client = mutual.rig.client();
    let bytes = format!("{GET}{SMUGGLED}");
    client.send(&bytes);
    assert_refusal(&mut client, bytes.as_bytes(), &[(400, "tls_required")]);
    drop(client);
    assert_refused(&mutual.rig.done_unseen(), "handshake.downstream.tls_required");
}

#[test]
fn t23_a_permissive_listener_takes_both_and_one_without_tls_takes_no_handshake() {
    let mutual = Mutual::new(ListenerTls::Permissive);
    let mut plain = mutual.rig.client();
    plain.send(GET);
    assert_eq!(plain.response().text(), "/a");
    let mut encrypted = mutual.client();
    encrypted.send(GET);
    assert_eq!(encrypted.response().text(), "/a");
    drop((plain, encrypted));
    let done = mutual.rig.done();
    let protos: Vec<_> = done.requests.iter().map(|r| r.one("x-forwarded-proto").unwrap()).collect();
    assert_eq!(protos, ["http", "https"]);

    let mutual = Mutual::new(ListenerTls::Off);
    let mut client = mutual.client();
    client.send(GET);
    assert!(matches!(client.cut(), Cut::Nothing(End::Tls)), "a refusal in plain text is no TLS");
    drop(client);
    let seen = mutual.rig.done_unseen();
    assert_eq!(seen.failures.values().sum::<u64>(), 1);
}

#[test]
fn t24_an_older_version_is_refused() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let leaf = mutual.authority.workload(CALLER);
    let config = mutual.authority.anybody_client(Some(&leaf), TLS12);
    mutual.refuses_client(config, "bad_handshake");
}

#[test]
fn t26_a_caller_that_speaks_another_protocol_is_refused() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let mut config = mutual.config();
    config.alpn_protocols = vec![b"spdy/3".to_vec()];
    mutual.refuses_client(config, "bad_handshake");
}

#[test]
fn t28_no_tickets_are_sent_to_callers_of_the_mesh() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let config = mutual.config();
    for _ in 0..2 {
        let mut client = mutual.rig.client().tls(config.clone(), "app.test");
        client.send(GET);
        assert_eq!(client.response().text(), "/a");
        assert_eq!(client.rustls().tls13_tickets_received(), 0);
        assert_ne!(client.rustls().handshake_kind(), Some(HandshakeKind::Resumed));
    }
    mutual.rig.done();
}

fn edge(authority: &Authority) -> ListenerTls {
    ListenerTls::Terminate(authority.host("shop.test").termination(&[]))
}

fn edge_rig() -> (Authority, Rig) {
    let authority = Authority::new("public");
    let mode = edge(&authority);
    let rig = Rig::with(|config| config.change(move |snapshot| snapshot.listeners[0].tls = mode.clone()));
    (authority, rig)
}

#[test]
fn t29_an_edge_needs_no_certificate_of_its_callers_and_resumes_without_early_data() {
    let (authority, rig) = edge_rig();
    let mut config = authority.host_client();
    config.enable_early_data = true;
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut client = rig.client().tls(config.clone(), "shop.test");
        // t29: what could be replayed is not taken.
        assert!(client.rustls().early_data().is_none());
        client.send("GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        assert_eq!(client.response().text(), "/a");
        kinds.push(client.rustls().handshake_kind());
    }
    assert_eq!(kinds[1], Some(HandshakeKind::Resumed));
    let mut plain = rig.client();
    plain.send(GET);
    assert_refusal(&mut plain, GET.as_bytes(), &[(400, "tls_required")]);
    drop(plain);
    assert_eq!(rig.done().requests.len(), 2);
}

#[test]
fn t27_an_edge_serves_only_hosts_that_its_certificate_is_for_or_that_were_asked_for() {
    let authority = Authority::new("public");
    let leaf = authority.leaf(|params| {
        let names = ["shop.test", "*.shop.test"];
        params.subject_alt_names = names.map(|n| SanType::DnsName(n.try_into().unwrap())).to_vec();
    });
    let mode = ListenerTls::Terminate(leaf.termination(&[]));
    let rig = Rig::with(|config| config.change(move |snapshot| snapshot.listeners[0].tls = mode.clone()));
    let get = |host: &str| format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let client = |config: ClientConfig, sni: &str| rig.client().tls(config, sni);
    let mut served = client(authority.host_client(), "shop.test");
    for host in ["shop.test", "SHOP.test:8443", "shop.test.", "www.shop.test"] {
        served.send(get(host));
        assert_eq!(served.response().text(), "/a", "{host}");
    }
    served.send("GET /a HTTP/1.0\r\n\r\n");
    assert_eq!(served.response().status(), 200, "who names no host cannot name a wrong one");
    for host in ["other.test", "a.b.shop.test", "shop.test.evil.test", "127.0.0.1", "[::1]"] {
        let mut client = client(authority.host_client(), "shop.test");
        let bytes = get(host) + SMUGGLED;
        client.send(&bytes);
        assert_refusal(&mut client, bytes.as_bytes(), &[(421, "misdirected"), (400, "bad_host")]);
    }
    // The caller's choice, if it takes the certificate; and one that names no host is not held to any.
    let mut any = authority.anybody_client(None, TLS13);
    let mut asked = client(any.clone(), "other.test");
    asked.send(get("other.test"));
    assert_eq!(asked.response().status(), 200);
    any.enable_sni = false;
    let mut silent = client(any, "shop.test");
    silent.send(get("other.test"));
    assert_eq!(silent.response().status(), 200);
    drop((served, asked, silent));
    assert_eq!(rig.done().requests.len(), 7);
}

#[test]
fn t27_sni_plays_no_part_in_the_mesh() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let mut client = mutual.rig.client().tls(mutual.config(), "somebody.test");
    client.send(GET);
    assert_eq!(client.response().text(), "/a");
    drop(client);
    mutual.rig.done();
}

#[test]
fn t31_new_credentials_are_for_new_connections() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    // What is presented, and who is trusted: as in a rotation, step by step.
    let config = |presented: &Authority, trusted: &[&Authority], origin: &Origin| {
        let credentials = credentials(&presented.workload(APP), trusted, &[b"http/1.1"]);
        Config::new(&[origin]).change(move |snapshot| {
            snapshot.listeners[0].tls = ListenerTls::Strict;
            snapshot.identity = Some(Arc::clone(&credentials));
        })
    };
    let origin = Origin::plain();
    let mut mesh = Mesh::start(&config(&old, &[&old], &origin));
    let client = |mesh: &Mesh, of: &Authority, server: &Authority| {
        mesh.client().tls(server.anybody_client(Some(&of.workload(CALLER)), TLS13), "app.test")
    };
    let mut first = client(&mesh, &old, &old);
    first.send(GET);
    assert_eq!(first.response().text(), "/a");
    mesh.reload(&config(&old, &[&old, &new], &origin));
    mesh.reload(&config(&new, &[&old, &new], &origin));
    first.send(GET);
    assert_eq!(first.response().text(), "/a", "what is open goes on");
    let (mut second, mut third) = (client(&mesh, &new, &new), client(&mesh, &old, &new));
    for client in [&mut second, &mut third] {
        client.send(GET);
        assert_eq!(client.response().text(), "/a");
    }
    mesh.reload(&config(&new, &[&new], &origin));
    let mut late = client(&mesh, &old, &new);
    late.send(GET);
    assert!(matches!(late.cut(), Cut::Nothing(_)), "the old authority is refused from now on");
    second.send(GET);
    assert_eq!(second.response().text(), "/a");
    assert_eq!([first.end(), third.end()], [End::Cut; 2], "and who is there by it has to go");
    drop((first, second, third, late));
    let seen = mesh.finish();
    assert_eq!((seen.totals.tls_handshakes, seen.revoked["unknown_issuer"]), (3, 2));
    assert_eq!(seen.connection_failures["handshake.downstream.unknown_issuer"], 1);
}

#[test]
fn t32_a_request_that_is_cut_is_not_served_as_whole() {
    // By the end of the connection without close_notify, and within a record.
    for record in [false, true] {
        let mutual = Mutual::new(ListenerTls::Strict);
        let mut client = mutual.client();
        client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
        mutual.rig.origin.wait_bytes(b"hello");
        if record {
            let mut sealed = Vec::new();
            client.rustls().writer().write_all(b"world").unwrap();
            client.rustls().write_tls(&mut sealed).unwrap();
            client.socket().write_all(&sealed[..sealed.len() - 1]).unwrap();
        }
        client.socket().shutdown(std::net::Shutdown::Write).unwrap();
        assert!(matches!(client.cut(), Cut::Nothing(_)));
        drop(client);
        let seen = mutual.rig.done_unseen();
        assert_eq!(seen.of_cause("closed_early"), 1, "{:?}", seen.failures);
    }
}

#[test]
fn t32_a_broken_record_ends_the_connection() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let mut client = mutual.client();
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    mutual.rig.origin.wait_bytes(b"hello");
    let mut sealed = Vec::new();
    client.rustls().writer().write_all(b"world").unwrap();
    client.rustls().write_tls(&mut sealed).unwrap();
    *sealed.last_mut().unwrap() ^= 1;
    client.socket().write_all(&sealed).unwrap();
    assert!(matches!(client.cut(), Cut::Nothing(End::Tls)), "an alert says so");
    drop(client);
    mutual.rig.done_unseen();
}

#[test]
fn t33_a_handshake_that_takes_too_long_is_ended() {
    let short = |snapshot: &mut Snapshot| {
        snapshot.timeouts.handshake = std::time::Duration::from_millis(30);
    };
    let mutual = Mutual::before(Origin::plain(), ListenerTls::Strict, short);
    let mut slow = mutual.rig.client();
    slow.send([0x16, 3, 1, 0, 200, 1]);
    assert!(matches!(slow.end(), End::Fin | End::Reset));
    drop(slow);
    // Nothing at all is no failure: somebody looked whether the port is open.
    let mut silent = mutual.rig.client();
    assert!(matches!(silent.end(), End::Fin | End::Reset));
    drop(silent);
    assert_refused(&mutual.rig.done_unseen(), "handshake.downstream.timeout");
}

#[test]
fn t33_handshakes_in_progress_are_bounded() {
    let one = |snapshot: &mut Snapshot| snapshot.limits.handshakes_max = 1;
    let mut mutual = Mutual::before(Origin::plain(), ListenerTls::Strict, one);
    let mut held = mutual.rig.client();
    held.send([0x16, 3, 1, 0, 200, 1]);
    // The second is closed once the first has begun; until then it is only slow as well.
    let mut second = mutual.rig.client();
    second.send([0x16, 3, 1, 0, 200, 1]);
    assert!(matches!(second.end(), End::Fin | End::Reset));
    drop((second, held));
    mutual.rig.mesh.wait_totals(|totals| totals.downstream_open == 0);
    let mut client = mutual.client();
    client.send(GET);
    assert_eq!(client.response().text(), "/a", "there is room again");
    drop(client);
    let seen = mutual.rig.done().seen;
    assert_eq!(seen.connection_failures.get("handshake.local.overloaded"), Some(&1));
}

#[test]
fn t34_a_large_chain_is_read_and_one_that_is_too_long_refused() {
    // A certificate with thousands of names of hosts beside its id, and one with many strangers behind it.
    let large = |authority: &Authority| {
        authority.leaf(|params| {
            params.subject_alt_names = vec![uri(CALLER)];
            params.subject_alt_names.extend(
                (0..600)
                    .map(|n| SanType::DnsName(format!("{n}.{}.test", "x".repeat(50)).try_into().unwrap())),
            );
        })
    };
    let mutual = Mutual::new(ListenerTls::Strict);
    let leaf = large(&mutual.authority);
    let bytes: usize = leaf.chain.iter().map(|c| c.len()).sum();
    assert!(bytes > 32 * 1024, "{bytes}");
    let mut client = mutual.rig.client().tls(mutual.authority.anybody_client(Some(&leaf), TLS13), "app.test");
    client.send(GET);
    assert_eq!(client.response().text(), "/a");
    drop(client);
    mutual.rig.done();

    let mutual = Mutual::new(ListenerTls::Strict);
    let mut leaf = mutual.authority.workload(CALLER);
    leaf.chain.extend((0..50).map(|n| Authority::new(&format!("{n} {}", "x".repeat(200))).der));
    mutual.refuses(Some(&leaf), "bad_certificate");
}

#[test]
fn without_an_identity_nobody_is_served_by_tls() {
    let authority = Authority::new("mesh");
    let rig =
        Rig::with(|config| config.change(|snapshot| snapshot.listeners[0].tls = ListenerTls::Permissive));
    let config = authority.anybody_client(Some(&authority.workload(CALLER)), TLS13);
    let mut client = rig.client().tls(config, "app.test");
    client.send(GET);
    assert!(matches!(client.cut(), Cut::Nothing(End::Cut | End::Reset)));
    let mut plain = rig.client();
    plain.send(GET);
    assert_eq!(plain.response().text(), "/a");
    drop((client, plain));
    let done = rig.done();
    assert_refused(&Seen { failures: Default::default(), ..done.seen }, "handshake.local.identity_missing");
}

#[test]
fn long_bodies_pass_in_both_directions_whatever_the_pieces() {
    let echo = || {
        Origin::answering(|request| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
            [head.as_bytes(), &request.body].concat()
        })
    };
    let mutual = Mutual::before(echo(), ListenerTls::Strict, |_| {});
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let head = format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut client = mutual.client();
    client.send(&head).send_in_pieces(&body, 77_777);
    assert!(client.response().body == body);
    client.send(&head).send_in_pieces(&body[..4096], 1).send(&body[4096..]);
    assert!(client.response().body == body);
    // A key update in the middle.
    client.rustls().refresh_traffic_keys().unwrap();
    client.send(&head).send(&body);
    assert!(client.response().body == body);
    drop(client);
    mutual.rig.done();
}

#[test]
fn records_that_come_octet_by_octet_are_put_together() {
    let mutual = Mutual::new(ListenerTls::Strict);
    let mut client = mutual.client();
    client.send(GET);
    assert_eq!(client.response().text(), "/a");
    let mut sealed = Vec::new();
    for _ in 0..2 {
        client.rustls().writer().write_all(GET.as_bytes()).unwrap();
        client.rustls().write_tls(&mut sealed).unwrap();
    }
    for octet in sealed {
        client.socket().write_all(&[octet]).unwrap();
    }
    assert_eq!((client.response().text(), client.response().text()), ("/a".into(), "/a".into()));
    drop(client);
    assert_eq!(mutual.rig.done().requests.len(), 3);
}

#[test]
fn an_early_answer_reaches_a_caller_that_still_sends() {
    let origin = Origin::scripted(|visit| {
        visit.head();
        visit.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        visit.drain();
    });
    let mutual = Mutual::before(origin, ListenerTls::Strict, |_| {});
    let mut client = mutual.client();
    // Half of a record is under way when the answer comes: the read is cancelled and nothing waits for the rest.
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello");
    assert_eq!((client.response().status(), client.end()), (413, End::Fin));
    drop(client);
    mutual.rig.done_unseen();
}

#[test]
fn a_quiet_connection_holds_no_buffer_and_is_served_again() {
    let mut mutual = Mutual::new(ListenerTls::Strict);
    let mut clients: Vec<_> = (0..20).map(|_| mutual.client()).collect();
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.response().text(), "/a");
    }
    mutual.rig.mesh.wait_totals(|totals| totals.downstream_open == 20 && totals.buffer_bytes < 20 * 16_384);
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.response().text(), "/a");
    }
    drop(clients);
    assert_eq!(mutual.rig.done().requests.len(), 40);
}

#[test]
fn a_drain_ends_quiet_connections_with_close_notify() {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let origin = Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            if request.target() == "/held" {
                theirs.pass();
            }
            visit.send(crate::support::origin::ok(&request));
        }
    });
    let mutual = Mutual::before(origin, ListenerTls::Strict, |_| {});
    let (mut quiet, mut held) = (mutual.client(), mutual.client());
    quiet.send(GET);
    quiet.response();
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    mutual.rig.origin.wait_requests(2);
    mutual.rig.mesh.order(Order::Drain);
    assert_eq!(quiet.end(), End::Fin);
    gate.open();
    assert_eq!(held.response().one("connection").as_deref(), Some("close"));
    assert_eq!(held.end(), End::Fin);
    drop((quiet, held));
    mutual.rig.done();
}
