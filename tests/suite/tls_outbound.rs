//! TLS with services: the rows of `tls_inbound` seen from the other side. A service that is not who it should be gets no
//! octet of a request; the caller gets 503 with the reason.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use ringmesh::identity::{ALPN_MESH, IdMatch};
use ringmesh::snapshot::{ListenerTls, Snapshot};
use ringmesh::upstream::spec::{EdgeTls, Protocol, Tls};
use rustls::ServerConfig;
use rustls::pki_types::ServerName;

use crate::support::authority::{Authority, Leaf, TLS12, TLS13, uri};
use crate::support::http2;
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, Visit, ok};
use crate::support::rig::Rig;

const PROXY: &str = "spiffe://mesh.local/ns/shop/sa/proxy";
const SERVICE: &str = "spiffe://mesh.local/ns/shop/sa/service";
const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

fn plain(visit: &mut Visit) {
    while let Some(request) = visit.request() {
        visit.send(ok(&request));
    }
}

/// The first service is spoken to in this way, by a proxy that is `PROXY`.
fn speaking(authority: &Authority, tls: Tls) -> impl Fn(&mut Snapshot) + Send + Sync + use<> {
    let credentials = authority.credentials(PROXY, &authority.workload(PROXY), &[b"http/1.1"]);
    move |snapshot| {
        Arc::make_mut(&mut snapshot.services[0]).tls = tls.clone();
        snapshot.identity = Some(Arc::clone(&credentials));
    }
}

fn mesh_rig(authority: &Authority, server: ServerConfig, ids: &[&str]) -> Rig {
    let ids = ids.iter().map(|id| IdMatch::parse(id).unwrap()).collect();
    let change = speaking(authority, Tls::Mesh(ids));
    Rig::before_with(Origin::tls(server, plain), |config| config.change(change))
}

fn edge(authority: &Authority, name: &str) -> Tls {
    Tls::Edge(EdgeTls {
        client: Arc::new(authority.host_client()),
        server_name: ServerName::try_from(name.to_owned()).unwrap(),
        digest: [1; 32],
    })
}

fn edge_rig(authority: &Authority, origin: Origin, name: &str) -> Rig {
    let change = speaking(authority, edge(authority, name));
    Rig::before_with(origin, |config| config.change(change))
}

/// The caller gets 503 with this reason, and the service nothing.
#[track_caller]
fn assert_refuses(rig: Rig, cause: &str) {
    let label = format!("handshake.upstream.{cause}");
    let mut client = rig.client();
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    let response = client.response();
    assert_eq!((response.status(), response.one("x-ringmesh-failure").as_deref()), (503, Some(&*label)));
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n");
    assert_eq!(client.response().status(), 503);
    drop(client);
    let Rig { mesh, origin, .. } = rig;
    let seen = mesh.finish();
    assert!(origin.settle().iter().all(|r| r.bytes.is_empty()), "not an octet");
    assert_eq!(seen.failures.get(&label), Some(&2), "{:?}", seen.failures);
    assert!(
        !seen.handshakes.is_empty()
            && seen.handshakes.iter().all(|(l, words)| *l == label && !words.is_empty())
    );
}

#[track_caller]
fn assert_serves(rig: &Rig) {
    let mut client = rig.client();
    for _ in 0..3 {
        client.send(GET);
        assert_eq!(client.response().text(), "/a");
    }
}

#[test]
fn a_service_of_the_mesh_is_spoken_to_on_one_connection() {
    let authority = Authority::new("mesh");
    for ids in [&[][..], &[SERVICE], &["spiffe://mesh.local/ns/shop/*"], &["spiffe://mesh.local/x", SERVICE]]
    {
        let rig = mesh_rig(&authority, authority.mutual_server(&authority.workload(SERVICE), TLS13), ids);
        assert_serves(&rig);
        let done = rig.done();
        assert_eq!((done.requests.len(), done.connections, done.seen.totals.tls_handshakes), (3, 1, 1));
    }
}

#[test]
fn t01_t02_t03_t13_a_bad_certificate_of_a_service_is_refused() {
    let authority = Authority::new("mesh");
    let time = |from, to| {
        authority.leaf(|params| {
            params.subject_alt_names = vec![uri(SERVICE)];
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        })
    };
    let of_client = authority.leaf(|params| {
        params.subject_alt_names = vec![uri(SERVICE)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let cases: [(Leaf, &str); 4] = [
        (time(2001, 2002), "certificate_expired"),
        (time(2101, 2102), "certificate_not_yet_valid"),
        (Authority::new("other").workload(SERVICE), "unknown_issuer"),
        (of_client, "wrong_certificate_usage"),
    ];
    for (leaf, cause) in cases {
        assert_refuses(mesh_rig(&authority, authority.mutual_server(&leaf, TLS13), &[SERVICE]), cause);
    }
}

#[test]
fn t05_t06_t08_a_service_that_is_somebody_else_is_refused() {
    let authority = Authority::new("mesh");
    for (id, expected, cause) in [
        ("spiffe://mesh.local/ns/shop/sa/other", &[SERVICE][..], "wrong_identity"),
        ("spiffe://mesh.local/ns/shopping/sa/service", &["spiffe://mesh.local/ns/shop/*"], "wrong_identity"),
        ("spiffe://mesh.local.evil.com/ns/shop/sa/service", &[], "untrusted_domain"),
        ("spiffe://other.local/ns/shop/sa/service", &["*"], "untrusted_domain"),
    ] {
        let server = authority.mutual_server(&authority.workload(id), TLS13);
        assert_refuses(mesh_rig(&authority, server, expected), cause);
    }
}

#[test]
fn t09_t10_a_service_without_exactly_one_id_is_refused() {
    let authority = Authority::new("mesh");
    for names in [vec![uri(SERVICE), uri(PROXY)], vec![]] {
        let leaf = authority.leaf(|params| params.subject_alt_names = names);
        let rig = mesh_rig(&authority, authority.mutual_server(&leaf, TLS13), &["*"]);
        assert_refuses(rig, "bad_identity");
    }
}

#[test]
fn t23_a_service_in_plain_text_is_refused() {
    let authority = Authority::new("mesh");
    // What comes is no TLS, so that the alert that says so is all that the service gets.
    let origin = Origin::scripted(|visit| {
        visit.bytes(1);
        visit.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        visit.drain();
    });
    let change = speaking(&authority, Tls::Mesh(Vec::new()));
    let Rig { mesh, origin, .. } = Rig::before_with(origin, |config| config.change(change));
    let mut client = mesh.client();
    client.send(GET);
    let response = client.response();
    assert_eq!(response.status(), 503);
    assert_eq!(response.one("x-ringmesh-failure").as_deref(), Some("handshake.upstream.bad_handshake"));
    drop(client);
    mesh.finish();
    for recorded in origin.settle() {
        assert!(!recorded.bytes.windows(3).any(|w| w == b"GET"));
    }
}

#[test]
fn t24_t26_a_service_with_another_version_or_protocol_is_refused() {
    let authority = Authority::new("mesh");
    let leaf = authority.workload(SERVICE);
    assert_refuses(mesh_rig(&authority, authority.mutual_server(&leaf, TLS12), &[]), "handshake_refused");
    let mut server = authority.mutual_server(&leaf, TLS13);
    server.alpn_protocols = vec![b"spdy/3".to_vec()];
    assert_refuses(mesh_rig(&authority, server, &[]), "handshake_refused");
}

#[test]
fn t33_a_service_that_does_not_finish_its_handshake_is_given_up_in_time() {
    let authority = Authority::new("mesh");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    });
    let speaking = speaking(&authority, Tls::Mesh(Vec::new()));
    let config = Config::default().service_at("app", &[&address], "").change(move |snapshot| {
        speaking(snapshot);
        Arc::make_mut(&mut snapshot.services[0]).timeouts.connect = Duration::from_millis(50);
    });
    let mesh = config.start();
    let mut client = mesh.client();
    client.send(GET);
    let response = client.response();
    assert_eq!(response.status(), 503);
    assert_eq!(response.one("x-ringmesh-failure").as_deref(), Some("handshake.upstream.timeout"));
    drop(client);
    mesh.finish();
    assert_eq!(silent.join().unwrap()[0], 0x16);
}

#[test]
fn another_endpoint_is_tried_when_a_handshake_fails() {
    let authority = Authority::new("mesh");
    let bad = authority.mutual_server(&Authority::new("other").workload(SERVICE), TLS13);
    let good = authority.mutual_server(&authority.workload(SERVICE), TLS13);
    let (bad, good) = (Origin::tls(bad, plain), Origin::tls(good, plain));
    let config = Config::default()
        .service("app", &[&bad, &good], "connect_attempts_max = 2")
        .change(speaking(&authority, Tls::Mesh(Vec::new())));
    let mesh = config.start();
    for _ in 0..10 {
        let mut client = mesh.client();
        client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.response().text(), "/a");
    }
    mesh.finish();
    assert!(bad.settle().iter().all(|r| r.bytes.is_empty()));
    assert_eq!(good.settle().iter().map(|r| r.requests().len()).sum::<usize>(), 10);
}

#[test]
fn without_an_identity_no_service_of_the_mesh_is_spoken_to() {
    let authority = Authority::new("mesh");
    let server = authority.mutual_server(&authority.workload(SERVICE), TLS13);
    let rig = Rig::before_with(Origin::tls(server, plain), |config| {
        config.change(|snapshot| {
            Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(Vec::new());
        })
    });
    let mut client = rig.client();
    client.send(GET);
    let response = client.response();
    assert_eq!(response.status(), 503);
    assert_eq!(response.one("x-ringmesh-failure").as_deref(), Some("handshake.local.identity_missing"));
    drop(client);
    assert_eq!(rig.done().connections, 0);
}

#[test]
fn a_service_that_refuses_our_certificate_says_so_in_place_of_an_answer() {
    let authority = Authority::new("mesh");
    let server = Authority::new("other").mutual_server(&authority.workload(SERVICE), TLS13);
    let rig = mesh_rig(&authority, server, &[]);
    let mut client = rig.client();
    client.send(GET);
    let response = client.response();
    assert_eq!(response.status(), 502);
    // By its alert, or by the reset that came first.
    let label = response.one("x-ringmesh-failure").unwrap();
    let right = ["response.upstream.handshake_refused", "response.upstream.reset", "request.upstream.reset"];
    assert!(right.contains(&label.as_str()), "{label}");
    drop(client);
    rig.done_unseen();
}

#[test]
fn a_server_outside_of_the_mesh_is_known_by_its_name() {
    let authority = Authority::new("public");
    // It sends session tickets, which are none of the response and do not make a pooled connection look used.
    let script = |visit: &mut Visit| {
        while let Some(request) = visit.request() {
            assert_eq!(visit.rustls().server_name(), Some("shop.test"));
            visit.send(ok(&request));
        }
    };
    let origin = Origin::tls(authority.host("shop.test").server(), script);
    let rig = edge_rig(&authority, origin, "shop.test");
    assert_serves(&rig);
    assert_eq!(rig.done().connections, 1);

    let origin = Origin::tls(authority.host("other.test").server(), plain);
    assert_refuses(edge_rig(&authority, origin, "shop.test"), "wrong_identity");
    let origin = Origin::tls(Authority::new("other").host("shop.test").server(), plain);
    assert_refuses(edge_rig(&authority, origin, "shop.test"), "unknown_issuer");
}

#[test]
fn t32_h94_a_body_that_ends_with_the_connection_is_whole_only_with_close_notify() {
    let authority = Authority::new("mesh");
    for whole in [true, false] {
        let server = authority.mutual_server(&authority.workload(SERVICE), TLS13);
        let origin = Origin::tls(server, move |visit| {
            visit.request();
            visit.send("HTTP/1.1 200 OK\r\n\r\nhello");
            if whole {
                visit.close_notify();
            }
            visit.finish();
            visit.drain();
        });
        let change = speaking(&authority, Tls::Mesh(Vec::new()));
        let rig = Rig::before_with(origin, |config| config.change(change));
        let mut client = rig.client();
        client.send(GET);
        match client.try_response(false) {
            Ok(response) => assert!(whole && response.text() == "hello"),
            Err(cut) => assert!(!whole, "{cut:?}"),
        }
        drop(client);
        let seen = rig.done().seen;
        assert_eq!(seen.failures.get("body.upstream.closed_early").copied().unwrap_or(0), u64::from(!whole));
    }
}

#[test]
fn a_connection_in_plain_text_is_not_used_when_the_service_is_encrypted() {
    let authority = Authority::new("mesh");
    let origin = Origin::plain();
    let mut mesh = Mesh::start(&Config::new(&[&origin]));
    let mut client = mesh.client();
    client.send(GET);
    assert_eq!(client.response().text(), "/a");
    mesh.reload(&Config::new(&[&origin]).change(speaking(&authority, Tls::Mesh(Vec::new()))));
    client.send(GET);
    assert_eq!(client.response().status(), 503, "it is idle and open, and speaks plain text");
    drop(client);
    mesh.finish();
    assert_eq!(origin.settle()[0].requests().len(), 1);
}

#[test]
fn long_bodies_pass_in_both_directions_at_once() {
    let authority = Authority::new("mesh");
    let server = authority.mutual_server(&authority.workload(SERVICE), TLS13);
    // Echoes while it comes.
    let origin = Origin::tls(server, |visit| {
        let head = visit.head().unwrap();
        let mut left: usize = head.one("content-length").unwrap().parse().unwrap();
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n"));
        while left > 0 {
            let piece = visit.bytes(left.min(50_000));
            left -= piece.len();
            visit.send(piece);
        }
        visit.drain();
    });
    let change = speaking(&authority, Tls::Mesh(Vec::new()));
    let Rig { mesh, origin, .. } = Rig::before_with(origin, |config| config.change(change));
    let body: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut client = mesh.client();
    client.send(format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    let mut got = 0;
    for piece in body.chunks(100_000) {
        client.send(piece);
        got += piece.len();
        client.wait_bytes(got);
    }
    assert!(client.response().body == body);
    drop(client);
    mesh.finish();
    origin.settle();
}

/// Caller, proxy, proxy, service: what the two proxies agree on does not show at either end.
#[test]
fn two_proxies_speak_to_each_other_whatever_they_agree_on() {
    let authority = Authority::new("mesh");
    let body: Vec<u8> = (0..500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for alpn in [&[ALPN_MESH, b"h2", b"http/1.1"][..], &[b"h2"], &[b"http/1.1"], &[]] {
        let origin = Origin::answering(|request| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
            [head.as_bytes(), &request.body].concat()
        });
        let theirs = authority.credentials(SERVICE, &authority.workload(SERVICE), alpn);
        let far = Config::new(&[&origin]).forwarding("via = \"far\"\n").change(move |snapshot| {
            snapshot.listeners[0].tls = ListenerTls::Strict;
            snapshot.identity = Some(Arc::clone(&theirs));
        });
        let far = far.start();
        let ours = authority.credentials(PROXY, &authority.workload(PROXY), alpn);
        let near =
            Config::default().service_at("app", &[&far.address.to_string()], "").change(move |snapshot| {
                Arc::make_mut(&mut snapshot.services[0]).tls =
                    Tls::Mesh(vec![IdMatch::parse(SERVICE).unwrap()]);
                snapshot.identity = Some(Arc::clone(&ours));
            });
        let near = near.start();
        let mut client = near.client();
        for _ in 0..3 {
            client.send(format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
            client.send(&body);
            assert!(client.response().body == body);
            client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.response().text(), "hi");
        }
        drop(client);
        // The far one says that it is going; the near one lives to hear it.
        let far = far.finish();
        let near = near.finish();
        assert_eq!((near.totals.tls_handshakes, far.totals.tls_handshakes), (1, 1), "{alpn:?}");
        assert!(
            near.failures.is_empty() && far.failures.is_empty(),
            "{:?} {:?}",
            near.failures,
            far.failures
        );
        let requests: usize = origin.settle().iter().map(|r| r.requests().len()).sum();
        assert_eq!(requests, 6);
    }
}

#[test]
fn the_protocol_of_a_service_is_kept_to() {
    let authority = Authority::new("mesh");
    let with = |protocol: Protocol| {
        let mut server = authority.mutual_server(&authority.workload(SERVICE), TLS13);
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if protocol == Protocol::Http2 {
            server.alpn_protocols.remove(0);
        }
        let ours = authority.credentials(PROXY, &authority.workload(PROXY), &[ALPN_MESH, b"h2", b"http/1.1"]);
        Rig::before_with(Origin::tls(server, plain), |config| {
            config.change(move |snapshot| {
                let service = Arc::make_mut(&mut snapshot.services[0]);
                service.tls = Tls::Mesh(Vec::new());
                service.protocol = protocol;
                snapshot.identity = Some(Arc::clone(&ours));
            })
        })
    };
    let rig = with(Protocol::Http1);
    assert_serves(&rig);
    rig.done();
    assert_refuses(with(Protocol::Http2), "bad_handshake");
}

/// To an encrypted one it is `https`, which Envoy sees: `process::mtls`.
#[test]
fn the_scheme_is_that_of_the_hop_and_not_that_of_the_caller() {
    let service = http2::Service::echoing();
    let config = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"");
    let mesh = config.start();
    for scheme in ["http", "https"] {
        let uri = format!("{scheme}://app.test/a?b");
        let request = http::Request::builder().method("GET").uri(uri).body(()).unwrap();
        let response = http2::call(mesh.address, request, b"", None).unwrap();
        assert_eq!(response.head.headers["echo-target"], "http://app.test/a?b");
    }
    mesh.finish();
}
