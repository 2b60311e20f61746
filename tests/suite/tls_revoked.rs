//! Open connections that are not allowed any more: trust that shrinks, rules, demands on callers and on services that
//! change. Each test has one that must end and one beside it that must not.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ringmesh::authorize::{Action, Rule, Verdict};
use ringmesh::identity::{ALPN_MESH, Credentials, IdMatch};
use ringmesh::snapshot::ListenerTls;
use ringmesh::upstream::spec::Tls;

use crate::support::authority::{Authority, Leaf, TLS13, credentials, uri};
use crate::support::client::{Client, Cut};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, ok};
use crate::support::{End, Gate};

const APP: &str = "spiffe://mesh.local/ns/shop/sa/app";
const CALLER: &str = "spiffe://mesh.local/ns/shop/sa/caller";
const OTHER: &str = "spiffe://mesh.local/ns/shop/sa/other";
const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
/// What two proxies may agree on.
const PROTOCOLS: [&[u8]; 3] = [ALPN_MESH, b"h2", b"http/1.1"];

/// A proxy that is `own`, before a service.
fn inbound(own: &Arc<Credentials>, tls: ListenerTls, origin: &Origin) -> Config {
    let own = Arc::clone(own);
    Config::new(&[origin]).forwarding("via = \"far\"\n").change(move |snapshot| {
        snapshot.listeners[0].tls = tls.clone();
        snapshot.identity = Some(Arc::clone(&own));
    })
}

/// A proxy that is `own`, before one of the mesh that must be one of `ids`.
fn outbound(own: &Arc<Credentials>, ids: &[&str], to: &Mesh) -> Config {
    let own = Arc::clone(own);
    let ids: Vec<_> = ids.iter().map(|id| IdMatch::parse(id).unwrap()).collect();
    Config::default().service_at("app", &[&to.address.to_string()], "").change(move |snapshot| {
        Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(ids.clone());
        snapshot.identity = Some(Arc::clone(&own));
    })
}

/// A service that does not answer `/hold`, and closes when the gate is opened.
fn holding() -> (Arc<Gate>, Origin) {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let origin = Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            if request.target() == "/hold" {
                return theirs.pass();
            }
            visit.send(ok(&request));
        }
    });
    (gate, origin)
}

fn served(client: &mut Client) {
    client.send(GET);
    assert_eq!(client.response().text(), "/a");
}

/// So many were ended for this reason, counted and told.
#[track_caller]
fn assert_revoked(seen: &Seen, cause: &str, count: u64, one: &str) {
    let revoked: Vec<_> = seen.revoked.iter().map(|(cause, n)| (cause.as_str(), *n)).collect();
    assert_eq!(revoked, [(cause, count)]);
    let told: u64 = seen.revocations.iter().map(|(_, n, _)| n).sum();
    assert_eq!(told, count, "{:?}", seen.revocations);
    assert!(
        seen.revocations.iter().all(|(c, _, words)| c == cause && words.contains(one)),
        "{:?}",
        seen.revocations
    );
}

#[test]
fn callers_whose_root_is_not_trusted_any_more_end_also_within_an_exchange() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let leaf = new.workload(APP);
    let trusting = |roots: &[&Authority]| credentials(&leaf, roots, &[b"http/1.1"]);
    let (gate, origin) = holding();
    let config = |roots: &[&Authority]| inbound(&trusting(roots), ListenerTls::Strict, &origin);
    let mut mesh = config(&[&old, &new]).start();
    let client =
        |of: &Authority| mesh.client().tls(new.anybody_client(Some(&of.workload(CALLER)), TLS13), "app.test");
    let (mut stays, mut goes, mut asks) = (client(&new), client(&old), client(&old));
    served(&mut stays);
    served(&mut goes);
    served(&mut asks);
    asks.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    origin.wait_requests(4);
    mesh.reload(&config(&[&new]));
    assert_eq!(goes.end(), End::Cut);
    assert!(matches!(asks.cut(), Cut::Nothing(End::Cut)), "nothing that looks like an answer");
    served(&mut stays);
    // What trusts nobody else now, but all that it trusted, ends nothing.
    mesh.reload(&config(&[&new]));
    served(&mut stays);
    drop((stays, goes, asks));
    gate.open();
    assert_revoked(&mesh.finish(), "unknown_issuer", 2, CALLER);
}

#[test]
fn two_proxies_part_when_the_inner_one_does_not_trust_the_outer_one_any_more() {
    for alpn in PROTOCOLS {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let origin = Origin::plain();
        let theirs = new.workload(APP);
        let far = |roots: &[&Authority]| {
            inbound(&credentials(&theirs, roots, &[alpn]), ListenerTls::Strict, &origin)
        };
        let mut inner = far(&[&old, &new]).start();
        let outer = |of: &Authority| {
            outbound(&credentials(&of.workload(CALLER), &[&new], &[alpn]), &[APP], &inner).start()
        };
        let (stays, goes) = (outer(&new), outer(&old));
        let (mut staying, mut going) = (stays.client(), goes.client());
        served(&mut staying);
        served(&mut going);
        inner.reload(&far(&[&new]));
        inner.wait_open(1);
        served(&mut staying);
        going.send(GET);
        let refused = going.response();
        assert!(matches!(refused.status(), 502 | 503), "{refused:?}");
        drop((staying, going));
        // The inner one says that it is going; the outer ones live to hear it.
        let seen = inner.finish();
        assert_eq!(stays.finish().totals.tls_handshakes, 1, "on the same connection");
        goes.finish();
        assert_revoked(&seen, "unknown_issuer", 1, CALLER);
        assert!(seen.connection_failures["handshake.downstream.unknown_issuer"] >= 1);
        assert_eq!(origin.settle().iter().map(|r| r.requests().len()).sum::<usize>(), 3);
    }
}

#[test]
fn services_whose_root_is_not_trusted_any_more_are_left_also_within_an_exchange() {
    for alpn in PROTOCOLS {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let ours = new.workload(CALLER);
        let trusting = |roots: &[&Authority]| credentials(&ours, roots, &[alpn]);
        let (gate, origin) = holding();
        let far = |of: &Authority| {
            inbound(&credentials(&of.workload(APP), &[&new], &[alpn]), ListenerTls::Strict, &origin).start()
        };
        let (stays, goes) = (far(&new), far(&old));
        let config = |roots: &[&Authority], to: &Mesh| outbound(&trusting(roots), &[APP], to);
        let mut to_stays = config(&[&old, &new], &stays).start();
        let mut to_goes = config(&[&old, &new], &goes).start();
        let [mut staying, mut going, mut asking] = [to_stays.client(), to_goes.client(), to_goes.client()];
        served(&mut staying);
        asking.send("POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        origin.wait_requests(2);
        served(&mut going);
        to_stays.reload(&config(&[&new], &stays));
        to_goes.reload(&config(&[&new], &goes));
        assert_eq!(asking.response().status(), 502);
        goes.wait_open(0);
        served(&mut staying);
        going.send(GET);
        let refused = going.response();
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.one("x-ringmesh-failure").as_deref(), Some("handshake.upstream.unknown_issuer"));
        drop((staying, going, asking));
        gate.open();
        stays.finish();
        goes.finish();
        let seen = to_stays.finish();
        assert!(seen.revoked.is_empty() && seen.totals.tls_handshakes == 1, "{:?}", seen.revoked);
        // By HTTP/1.1 there were two connections: one at rest, and one in use.
        let connections = if alpn == b"http/1.1" { 2 } else { 1 };
        let seen = to_goes.finish();
        assert_revoked(&seen, "unknown_issuer", connections, APP);
        assert_eq!(seen.totals.upstream_found_dead, 0, "nobody learns from it that the service closes early");
    }
}

#[test]
fn a_service_that_must_be_somebody_else_now_is_left() {
    for alpn in PROTOCOLS {
        let authority = Authority::new("mesh");
        let own = |id: &str| credentials(&authority.workload(id), &[&authority], &[alpn]);
        let (gate, origin) = holding();
        let far = inbound(&own(APP), ListenerTls::Strict, &origin).start();
        let ours = own(CALLER);
        let mut near = outbound(&ours, &[APP], &far).start();
        let mut client = near.client();
        client.send("POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        origin.wait_requests(1);
        near.reload(&outbound(&ours, &[APP, OTHER], &far));
        near.settle(1);
        near.reload(&outbound(&ours, &[OTHER], &far));
        assert!(matches!(client.response().status(), 502 | 503));
        drop(client);
        gate.open();
        far.finish();
        assert_revoked(&near.finish(), "wrong_identity", 1, APP);
    }
}

#[test]
fn callers_that_are_denied_now_end_whatever_they_speak() {
    for alpn in PROTOCOLS {
        let authority = Authority::new("mesh");
        let own = |id: &str| credentials(&authority.workload(id), &[&authority], &[alpn]);
        let origin = Origin::plain();
        let inner = inbound(&own(APP), ListenerTls::Strict, &origin);
        let rule = |name: &str, from: &str, paths: bool| Rule {
            name: name.into(),
            action: Action::Deny,
            listeners: Vec::new(),
            from: vec![IdMatch::parse(from).unwrap()],
            sources: Vec::new(),
            ports: Vec::new(),
            methods: Vec::new(),
            paths: if paths { vec![ringmesh::authorize::TextMatch::Exact("/b".into())] } else { Vec::new() },
            headers: Vec::new(),
        };
        let mut far = inner.start();
        let [goes, stays] = [OTHER, CALLER].map(|id| outbound(&own(id), &[APP], &far).start());
        let (mut going, mut staying) = (goes.client(), stays.client());
        served(&mut going);
        served(&mut staying);
        // What depends on the request ends nothing.
        let by_path = rule("by-path", CALLER, true);
        far.reload(&inner.clone().authorization(vec![by_path.clone()], Verdict::Allow));
        far.settle(1);
        far.reload(&inner.clone().authorization(vec![by_path, rule("gone", OTHER, false)], Verdict::Allow));
        far.wait_open(1);
        going.send(GET);
        assert_eq!(going.response().status(), 403);
        served(&mut staying);
        drop((going, staying));
        let seen = far.finish();
        assert_eq!(stays.finish().totals.tls_handshakes, 1);
        goes.finish();
        assert_revoked(&seen, "denied", 1, OTHER);
    }
}

#[test]
fn plain_text_ends_when_a_listener_becomes_strict() {
    let authority = Authority::new("mesh");
    let own = credentials(&authority.workload(APP), &[&authority], &[b"http/1.1"]);
    for before in [ListenerTls::Off, ListenerTls::Permissive] {
        let origin = Origin::plain();
        let mut mesh = inbound(&own, before.clone(), &origin).start();
        let (mut speaks, mut silent) = (mesh.client(), mesh.client());
        served(&mut speaks);
        let mut encrypted = (before == ListenerTls::Permissive).then(|| {
            mesh.client().tls(authority.anybody_client(Some(&authority.workload(CALLER)), TLS13), "app.test")
        });
        if let Some(encrypted) = &mut encrypted {
            served(encrypted);
        }
        mesh.wait_open(2 + u64::from(encrypted.is_some()));
        mesh.reload(&inbound(&own, ListenerTls::Strict, &origin));
        assert_eq!(speaks.end(), End::Fin);
        silent.send(GET);
        match before {
            // It was a connection for requests from the beginning.
            ListenerTls::Off => assert_eq!(silent.end(), End::Fin),
            _ => assert_eq!(silent.response().status(), 400, "it is asked how it comes when it does"),
        }
        if let Some(encrypted) = &mut encrypted {
            served(encrypted);
        }
        drop((speaks, silent, encrypted));
        let ended = if before == ListenerTls::Off { 2 } else { 1 };
        assert_revoked(&mesh.finish(), "tls_required", ended, "somebody without identity");
    }
}

#[test]
fn a_handshake_that_began_with_more_trust_is_judged_by_what_is_left() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let leaf = new.workload(APP);
    let origin = Origin::plain();
    let config = |roots: &[&Authority]| {
        inbound(&credentials(&leaf, roots, &[b"http/1.1"]), ListenerTls::Strict, &origin)
    };
    let mut mesh = config(&[&old, &new]).start();
    let mut client = mesh.client().tls(new.anybody_client(Some(&old.workload(CALLER)), TLS13), "app.test");
    // Its hello is answered, and it takes its time with the rest.
    let mut hello = Vec::new();
    client.rustls().write_tls(&mut hello).unwrap();
    client.socket().write_all(&hello).unwrap();
    let mut answer = vec![0; 16 * 1024];
    let n = client.socket().read(&mut answer).unwrap();
    client.rustls().read_tls(&mut &answer[..n]).unwrap();
    client.rustls().process_new_packets().unwrap();
    mesh.reload(&config(&[&new]));
    client.send(GET);
    assert!(matches!(client.cut(), Cut::Nothing(_)));
    drop(client);
    let seen = mesh.finish();
    assert_eq!(seen.connection_failures["handshake.downstream.unknown_issuer"], 1);
    assert_eq!(origin.settle().len(), 0);
}

/// A leaf that ends within the test.
fn ending(authority: &Authority, id: &str) -> Leaf {
    authority.leaf(|params| {
        params.subject_alt_names = vec![uri(id)];
        params.not_after = (SystemTime::now() + Duration::from_secs(2)).into();
    })
}

#[test]
fn a_connection_runs_out_when_a_leaf_has_ended_that_it_began_with_and_no_request_fails() {
    const LONG: Duration = Duration::from_secs(3600);
    // Which of the two minds it: the one that opened the connection, or the one that accepted it.
    for (near_age, far_age) in [(Duration::ZERO, LONG), (LONG, Duration::ZERO)] {
        for alpn in [PROTOCOLS[0], PROTOCOLS[2]] {
            let authority = Authority::new("mesh");
            let own = |leaf: &Leaf| credentials(leaf, &[&authority], &[alpn]);
            let origin = Origin::plain();
            let far = |leaf: &Leaf| inbound(&own(leaf), ListenerTls::Strict, &origin).age_min(far_age);
            let mut inner = far(&ending(&authority, APP)).start();
            let near = |leaf: &Leaf| outbound(&own(leaf), &[APP], &inner).age_min(near_age);
            let (before, after) = (near(&ending(&authority, CALLER)), near(&authority.workload(CALLER)));
            let mut outer = before.start();
            let mut client = outer.client();
            served(&mut client);
            outer.reload(&after);
            inner.reload(&far(&authority.workload(APP)));
            served(&mut client);
            let mut stays = 0;
            outer.wait_totals(|totals| {
                served(&mut client);
                stays += u32::from(totals.tls_handshakes == 1);
                totals.tls_handshakes > 1
            });
            assert!(stays > 0, "not by the rotation itself");
            drop(client);
            let inner = inner.finish();
            let outer = outer.finish();
            assert_eq!((inner.totals.tls_handshakes, outer.totals.tls_handshakes), (2, 2));
            assert!(inner.failures.is_empty() && outer.failures.is_empty());
            assert!(inner.revoked.is_empty() && outer.revoked.is_empty());
        }
    }
}
