//! Connections that become tunnels, rows w01 to w13: WebSocket handshakes and CONNECT, what passes through, what ends
//! them. With raw sockets, with a WebSocket client and service that are not ours, and with curl.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh::authorize::{Action, Rule, TextMatch, Verdict};
use ringmesh::shard::link::Order;
use ringmesh::snapshot::ListenerTls;
use ringmesh::upstream::spec::Tls;
use rustls::ClientConfig;
use tungstenite::{Message as Frame, protocol::WebSocketConfig};

use crate::support::authority::{Authority, TLS13};
use crate::support::client::Client;
use crate::support::mesh::Config;
use crate::support::origin::{Origin, Recorded, Visit, ok};
use crate::support::rig::Rig;
use crate::support::wire::Message;
use crate::support::{End, GUARD, Gate};

const HOUR: Duration = Duration::from_secs(3600);

/// A handshake, with the key of RFC 6455, and lines behind it.
fn handshake(lines: &str) -> String {
    format!(
        "GET /chat?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

const CONNECT: &str = "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n";

/// A service that agrees to every handshake and then does as `tunnel` says.
fn agreeing(tunnel: impl Fn(&mut Visit) + Send + Sync + 'static) -> Origin {
    Origin::scripted(move |visit| {
        if visit.head().is_some() {
            visit.send(AGREED);
            tunnel(visit);
        }
    })
}

/// Sends back what comes, until that ends; then ends as well.
fn echo(visit: &mut Visit) {
    loop {
        let byte = visit.bytes(1);
        if byte.is_empty() || !visit.send(byte) {
            return;
        }
    }
}

/// A client that is through the handshake.
fn opened(rig: &Rig) -> Client {
    let mut client = rig.client();
    client.send(handshake(""));
    assert_eq!(client.response().status(), 101);
    client
}

#[track_caller]
fn there_and_back(client: &mut Client, bytes: &[u8]) {
    client.send(bytes);
    assert_eq!(client.take(bytes.len()), bytes);
}

/// What the service got as heads.
fn heads(recorded: &[Recorded]) -> Vec<Message> {
    recorded.iter().flat_map(Recorded::requests).collect()
}

#[test]
fn w01_the_handshake_is_forwarded_with_its_fields_and_answered_with_those_of_the_service() {
    let origin = Origin::scripted(|visit| {
        let head = visit.head().unwrap();
        for (name, value) in [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "chat, superchat"),
            ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
            ("origin", "http://example"),
        ] {
            assert_eq!(head.one(name).as_deref(), Some(value), "{name}");
        }
        assert!(!head.has("content-length") && !head.has("transfer-encoding") && !head.has("te"));
        visit.send(AGREED.replace(
            "\r\n\r\n",
            "\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        ));
        echo(visit);
    });
    let rig = Rig::before(origin);
    let mut client = rig.client();
    client.send(handshake(
        "Origin: http://example\r\nTE: trailers\r\nSec-WebSocket-Protocol: chat, superchat\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
    ));
    let response = client.response();
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("sec-websocket-protocol", "chat"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ] {
        assert_eq!(response.one(name).as_deref(), Some(value), "{name}");
    }
    there_and_back(&mut client, b"GET /not-a-request HTTP/1.1\r\n\r\n\0\xff");
}

#[test]
fn w01_a_route_without_websockets_refuses_the_handshake() {
    let rig = Rig::with(|c| c.tunnels(false, true, HOUR));
    rig.refused(handshake(""), 501, "upgrade_refused");
    rig.done_unseen();
}

#[test]
fn w01_a_handshake_is_sent_again_when_the_pooled_connection_was_dead() {
    let origin = Origin::scripted(|visit| {
        while let Some(head) = visit.head() {
            if head.has("upgrade") && visit.number == 0 {
                return;
            }
            if head.has("upgrade") {
                visit.send(AGREED);
                return echo(visit);
            }
            visit.send(ok(&head));
        }
    });
    let rig = Rig::before(origin);
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "/a");
    client.send(handshake(""));
    assert_eq!(client.response().status(), 101);
    there_and_back(&mut client, b"x");
    drop(client);
    assert_eq!(rig.mesh.finish().totals.replays, 1);
}

#[test]
fn w02_an_answer_that_is_not_101_is_a_response_like_others() {
    let rig = Rig::before(Origin::answering(|request| match request.has("upgrade") {
        true => b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 12\r\nContent-Length: 2\r\n\r\nno"
            .to_vec(),
        false => ok(request),
    }));
    let mut client = rig.client();
    for n in 0..3 {
        client.send(handshake(""));
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (426, "no"));
        assert_eq!(response.one("sec-websocket-version").unwrap(), "12");
        assert!(!response.has("connection") && !response.has("upgrade"));
        let target = format!("/{n}");
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.response().text(), target);
    }
    drop(client);
    let done = rig.done();
    assert_eq!((done.requests.len(), done.connections), (6, 1), "both connections live on");
}

#[test]
fn w02_what_was_sent_in_the_hope_of_a_tunnel_is_never_read_as_a_request() {
    let rig = Rig::plain();
    let mut client = rig.client();
    client.send(handshake("") + "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.one("connection").unwrap().as_str()), (200, "close"));
    assert_eq!(client.end(), End::Fin);
    assert_eq!(rig.done().requests.len(), 1);

    // What comes later, but before the answer.
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let rig = Rig::before(Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            theirs.pass();
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    client.send(handshake(""));
    rig.origin.wait_requests(1);
    client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    gate.open();
    let response = client.response();
    assert_eq!((response.status(), response.one("connection").unwrap().as_str()), (200, "close"));
    assert_eq!(client.end(), End::Fin);
    assert_eq!(rig.done().requests.len(), 1);
}

#[test]
fn w03_a_101_that_does_not_prove_to_be_the_answer_is_502() {
    let right = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let answers = Arc::new([
        format!("Connection: upgrade\r\n{right}"),
        format!("Upgrade: websocket\r\n{right}"),
        format!("Connection: upgrade\r\nUpgrade: h2c\r\n{right}"),
        "Connection: upgrade\r\nUpgrade: websocket\r\n".to_owned(),
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            .to_owned(),
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"
            .to_owned(),
    ]);
    let theirs = Arc::clone(&answers);
    let rig = Rig::before(Origin::scripted(move |visit| {
        visit.head();
        let lines = &theirs[visit.number];
        visit.send(format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nHTTP/1.1 200 OK\r\n\r\n"));
        visit.drain();
    }));
    for (n, lines) in answers.iter().enumerate() {
        let mut client = rig.client();
        client.send(handshake(""));
        let response = client.response();
        assert_eq!(response.status(), 502, "{lines}");
        assert_eq!(response.one("x-ringmesh-failure").unwrap(), "response.upstream.unexpected_upgrade");
        drop(client);
        rig.origin.wait_end(n);
    }
    assert_eq!(rig.done().seen.of_cause("unexpected_upgrade"), answers.len() as u64);
}

#[test]
fn w04_early_bytes_wait_for_the_101_and_none_are_lost() {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let early: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = early.clone();
    let rig = Rig::before(Origin::scripted(move |visit| {
        visit.head();
        visit.send("HTTP/1.1 103 Early Hints\r\n\r\n");
        theirs.pass();
        let mut answer = AGREED.as_bytes().to_vec();
        answer.extend_from_slice(&expected);
        visit.send(answer);
        assert!(visit.bytes(expected.len()) == expected, "early bytes have changed");
        visit.send("end");
    }));
    let mut client = rig.client();
    let mut bytes = handshake("").into_bytes();
    bytes.extend_from_slice(&early);
    client.send(bytes);
    // The interim response has gone the whole way since then.
    assert_eq!(client.response().status(), 103);
    let there = rig.origin.recorded()[0].bytes.clone();
    assert!(there.ends_with(b"\r\n\r\n"), "bytes behind the head have left before the 101");
    gate.open();
    assert_eq!(client.response().status(), 101);
    assert!(client.take(early.len()) == early, "bytes behind the 101 have changed");
    assert_eq!(client.take(3), b"end");
}

#[test]
fn w05_each_direction_ends_alone() {
    // The caller ends first: what the service says after that arrives.
    let rig = Rig::before(agreeing(|visit| {
        assert_eq!(visit.drain(), End::Fin);
        visit.send("x".repeat(100_000));
    }));
    let mut client = opened(&rig);
    client.send("last words").finish();
    assert_eq!(client.take(100_000).len(), 100_000);
    assert_eq!(client.end(), End::Fin);
    rig.origin.wait_bytes(b"last words");
    assert!(rig.mesh.finish().failures.is_empty());

    // The service ends first.
    let rig = Rig::before(agreeing(|visit| {
        visit.send("last words");
        visit.finish();
        assert_eq!(visit.drain(), End::Fin);
    }));
    let mut client = opened(&rig);
    assert_eq!(client.take(10), b"last words");
    assert_eq!(client.end(), End::Fin);
    client.send("still here").finish();
    rig.origin.wait_bytes(b"still here");
    assert_eq!(rig.origin.wait_end(0), End::Fin);
    assert!(rig.mesh.finish().failures.is_empty());
}

#[test]
fn w06_a_reset_passes_as_a_reset() {
    let rig = Rig::before(agreeing(|visit| {
        visit.bytes(1);
        visit.reset();
    }));
    let mut client = opened(&rig);
    client.send("x");
    assert_eq!(client.end(), End::Reset);
    assert_eq!(rig.mesh.finish().failures["body.upstream.reset"], 1);

    let rig = Rig::before(agreeing(|visit| {
        visit.drain();
    }));
    let client = opened(&rig);
    client.reset();
    assert_eq!(rig.origin.wait_end(0), End::Reset);
    assert_eq!(rig.mesh.finish().failures["body.downstream.reset"], 1);
}

#[test]
fn w07_silence_in_both_directions_ends_a_tunnel() {
    let idle = Duration::from_millis(100);
    let rig = Rig::before_with(
        agreeing(|visit| {
            visit.drain();
        }),
        |c| c.tunnels(true, false, idle),
    );
    let began = Instant::now();
    let mut client = opened(&rig);
    assert_eq!(client.end(), End::Fin);
    assert!(began.elapsed() >= idle, "not before its time");
    assert_eq!(rig.origin.wait_end(0), End::Fin);
    assert_eq!(rig.mesh.finish().failures["body.local.timeout"], 1);
}

#[test]
fn w07_a_side_that_takes_nothing_ends_a_tunnel_too() {
    let rig = Rig::before_with(agreeing(|visit| while visit.send([0; 65_536]) {}), |c| {
        c.tunnels(true, false, Duration::from_millis(200))
    });
    let client = opened(&rig);
    rig.origin.wait_connections(1);
    let mut mesh = rig.mesh;
    let seen = mesh.wait_seen(|seen| seen.of_cause("timeout") == 1);
    assert_eq!(seen.totals.tunnels_open, 0);
    drop(client);
}

#[test]
fn w08_no_timeout_of_route_or_service_ends_a_tunnel() {
    let limit = Duration::from_millis(150);
    let rig = Rig::before_with(agreeing(echo), |c| {
        c.keys("timeouts = { response = \"150ms\", body_stall = \"150ms\" }")
            .timeouts("body_stall = \"150ms\"\nidle = \"150ms\"\nhead = \"150ms\"")
            .routes("[[route]]\nservice = \"app\"\ntimeout = \"150ms\"\n")
    });
    let mut client = opened(&rig);
    silence(&rig, 3 * limit);
    there_and_back(&mut client, b"still there");
    client.finish();
    assert_eq!(client.end(), End::Fin);
    assert!(rig.mesh.finish().failures.is_empty());
}

/// Lets time pass by the system's clock while the shard turns.
fn silence(rig: &Rig, length: Duration) {
    let began = Instant::now();
    let mut number = 1;
    while began.elapsed() < length {
        number += 1;
        rig.mesh.settle(number);
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn w09_a_drain_lets_tunnels_go_on_and_waits_for_them() {
    let rig = Rig::before(agreeing(echo));
    let mut client = opened(&rig);
    there_and_back(&mut client, b"before");
    rig.mesh.order(Order::Drain);
    // Longer than a connection without a tunnel may be silent then.
    silence(&rig, Duration::from_millis(2300));
    there_and_back(&mut client, b"after");
    client.finish();
    assert_eq!(client.end(), End::Fin);
    let seen = rig.mesh.finish();
    assert_eq!((seen.totals.tunnels_open, seen.totals.downstream_open), (0, 0));
    assert!(seen.failures.is_empty());
}

#[test]
fn w09_the_end_of_a_drain_is_the_end_of_tunnels_too() {
    let rig = Rig::before_with(agreeing(echo), |c| c.tunnels(true, true, Duration::MAX).logged());
    let (mut parked, mut busy) = (opened(&rig), opened(&rig));
    there_and_back(&mut parked, b"x");
    // Longer than a buffer is held for: it waits without one.
    silence(&rig, Duration::from_millis(1300));
    there_and_back(&mut busy, b"x");
    rig.mesh.order(Order::Drain);
    rig.mesh.order(Order::Cut);
    assert_ne!((parked.end(), busy.end()), (End::Cut, End::Cut));
    drop((parked, busy));
    let seen = rig.mesh.finish();
    assert_eq!(seen.failures.into_iter().collect::<Vec<_>>(), [("body.local.draining".to_owned(), 2)]);
    assert_eq!(seen.log.matches("body.local.draining").count(), 2, "{}", seen.log);
}

#[test]
fn w12_a_byte_in_either_direction_keeps_a_tunnel() {
    let idle = Duration::from_millis(300);
    let speaks = move |visit: &mut Visit| {
        let began = Instant::now();
        while began.elapsed() < 4 * idle && visit.send("x") {
            std::thread::park_timeout(idle / 15);
        }
        visit.send("end");
    };
    let rig = Rig::before_with(agreeing(speaks), |c| c.tunnels(true, false, idle));
    let mut client = opened(&rig);
    while client.take(1) == b"x" {}
    assert_eq!(client.take(2), b"nd");
    assert_eq!(client.end(), End::Fin);
    drop(client);
    assert!(rig.mesh.finish().failures.is_empty());

    let listens = |visit: &mut Visit| {
        while visit.bytes(1) == b"x" {}
        visit.send("end");
    };
    let rig = Rig::before_with(agreeing(listens), |c| c.tunnels(true, false, idle));
    let mut client = opened(&rig);
    let began = Instant::now();
    while began.elapsed() < 4 * idle {
        client.send("x");
        std::thread::park_timeout(idle / 15);
    }
    client.send("y");
    assert_eq!(client.take(3), b"end");
    drop(client);
    assert!(rig.mesh.finish().failures.is_empty());
}

#[test]
fn w13_bytes_are_counted_while_a_tunnel_lives_and_its_length_is_no_latency() {
    let rig = Rig::before(agreeing(echo));
    let mut client = opened(&rig);
    there_and_back(&mut client, &[7; 1000]);
    let Rig { mut mesh, origin, .. } = rig;
    // The bytes of one record are told with the next: about a second later.
    let seen = mesh.wait_seen(|seen| {
        there_and_back(&mut client, b"x");
        seen.bytes.0 >= 1000 && seen.bytes.1 >= 1000
    });
    assert_eq!((seen.totals.tunnels_open, seen.totals.exchanges_open, seen.by_class[1]), (1, 1, 0));
    client.finish();
    assert_eq!(client.end(), End::Fin);
    let seen = mesh.finish();
    let sent = origin.settle()[0].bytes.len() as u64;
    let head = handshake("").len() as u64;
    assert!(seen.bytes.0 > 1000 && seen.bytes.0 + head / 2 < sent, "{:?} of {sent}", seen.bytes);
    assert_eq!(seen.bytes.0, seen.bytes.1, "all came back");
    assert_eq!((seen.by_class[1], seen.latencies, seen.totals.tunnels_open), (1, (1, 0), 0));
    assert!(seen.failures.is_empty());
}

#[test]
fn tunnels_at_rest_hold_no_buffer() {
    let mut rig = Rig::before(agreeing(echo));
    let mut clients: Vec<_> = (0..40).map(|_| opened(&rig)).collect();
    for client in &mut clients {
        there_and_back(client, b"x");
    }
    rig.mesh.wait_totals(|totals| totals.tunnels_open == 40 && totals.buffer_bytes < 10 * 16_384);
    for client in &mut clients {
        there_and_back(client, b"y");
        client.finish();
        assert_eq!(client.end(), End::Fin);
    }
    drop(clients);
    assert_eq!(rig.mesh.finish().by_class[1], 40);
}

#[test]
fn a_slow_reader_slows_the_writer_and_fills_no_memory() {
    const LEN: usize = 48 << 20;
    let mut rig = Rig::before(agreeing(|visit| {
        let piece: Vec<u8> = (0..65_536_u32).map(|n| (n % 253) as u8).collect();
        for _ in 0..LEN / piece.len() {
            visit.send(&piece);
        }
        visit.finish();
        visit.drain();
    }));
    let mut client = opened(&rig);
    client.take(1);
    let totals = rig.mesh.wait_totals(|totals| totals.tunnels_open == 1 && totals.downstream_open == 1);
    assert!(totals.buffer_bytes < 1 << 20, "{totals:?}");
    let mut at = 1;
    while at < LEN {
        let len = (LEN - at).min(1 << 20);
        let bytes = client.take(len);
        assert!(bytes.iter().zip(at..).all(|(b, n)| *b == (n % 65_536 % 253) as u8), "changed behind {at}");
        at += len;
    }
    assert_eq!(client.end(), End::Fin);
    let totals = rig.mesh.wait_totals(|totals| totals.tunnels_open == 1);
    assert!(totals.buffer_bytes < 2 << 20, "{totals:?}");
    client.finish();
    drop(client);
    assert!(rig.mesh.finish().failures.is_empty());
}

fn rule(action: Action, path: Option<&str>) -> Rule {
    Rule {
        name: "of-tunnels".into(),
        action,
        listeners: Vec::new(),
        from: Vec::new(),
        sources: Vec::new(),
        ports: Vec::new(),
        methods: if path.is_some() { Vec::new() } else { vec!["CONNECT".into()] },
        paths: path.map(|path| TextMatch::Exact(path.into())).into_iter().collect(),
        headers: Vec::new(),
    }
}

#[test]
fn who_may_not_gets_403_before_anything_is_said_of_tunnels() {
    // Neither is allowed by the route, which whoever may not ask does not learn.
    let denied = vec![rule(Action::Deny, Some("/chat")), rule(Action::Deny, None)];
    let rig = Rig::with(|c| c.tunnels(false, false, HOUR).authorization(denied.clone(), Verdict::Allow));
    for head in [handshake(""), CONNECT.to_owned()] {
        let mut client = rig.client();
        client.send(head);
        let response = client.response();
        assert_eq!(response.status(), 403);
        assert_eq!(response.one("x-ringmesh-failure").unwrap(), "authorize.downstream.denied");
    }
    rig.done_unseen();
    // Where the default denies, a CONNECT is allowed by its method.
    let rig = Rig::before_with(Origin::scripted(echo), |c| {
        c.tunnels(true, true, HOUR).authorization(vec![rule(Action::Allow, None)], Verdict::Deny)
    });
    let mut client = rig.client();
    client.send(CONNECT);
    assert!(client.take_head().starts_with("HTTP/1.1 200 "));
    there_and_back(&mut client, b"x");
}

#[test]
fn rules_that_change_end_the_tunnels_that_they_would_not_let_begin() {
    let mut rig = Rig::before_with(agreeing(echo), |c| c.logged());
    let mut client = opened(&rig);
    there_and_back(&mut client, b"x");
    rig.reload(|c| c.authorization(vec![rule(Action::Deny, Some("/other"))], Verdict::Allow));
    there_and_back(&mut client, b"y");
    rig.reload(|c| c.authorization(vec![rule(Action::Deny, Some("/chat"))], Verdict::Allow));
    assert_eq!(client.end(), End::Fin);
    assert_eq!(rig.origin.wait_end(0), End::Fin);
    drop(client);
    let seen = rig.mesh.finish();
    assert_eq!(
        seen.failures.into_iter().collect::<Vec<_>>(),
        [("authorize.downstream.denied".to_owned(), 1)]
    );
    assert!(
        seen.log.contains("\"status\":101") && seen.log.contains("authorize.downstream.denied"),
        "{}",
        seen.log
    );
}

/// A rig whose callers and whose service are peers of a mesh, and the configuration of a caller.
fn mutual(tunnel: impl Fn(&mut Visit) + Send + Sync + 'static) -> (Rig, ClientConfig) {
    const PROXY: &str = "spiffe://mesh.local/ns/shop/sa/proxy";
    let authority = Authority::new("mesh");
    let credentials = authority.credentials(PROXY, &authority.workload(PROXY), &[b"http/1.1"]);
    let leaf = authority.workload("spiffe://mesh.local/ns/shop/sa/app");
    let origin = Origin::tls(authority.mutual_server(&leaf, TLS13), tunnel);
    let rig = Rig::before_with(origin, |c| {
        c.change(move |snapshot| {
            snapshot.listeners[0].tls = ListenerTls::Strict;
            Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(Vec::new());
            snapshot.identity = Some(Arc::clone(&credentials));
        })
    });
    let caller = authority.workload("spiffe://mesh.local/ns/shop/sa/caller");
    (rig, authority.anybody_client(Some(&caller), TLS13))
}

#[test]
fn tunnels_go_through_tls_on_both_sides_and_each_direction_ends_alone() {
    let (rig, config) = mutual(|visit| {
        let head = visit.head().unwrap();
        assert!(
            head.one("x-forwarded-client-cert")
                .unwrap()
                .contains("URI=spiffe://mesh.local/ns/shop/sa/caller")
        );
        // Behind the head in the same record.
        visit.send(AGREED.to_owned() + "early");
        assert_eq!(visit.bytes(3_000_000).len(), 3_000_000);
        assert!(visit.bytes(1).is_empty(), "the caller has ended");
        visit.send(vec![b'z'; 3_000_000]);
    });
    let mut client = rig.client().tls(config, "app.test");
    client.send(handshake("") + "hello");
    assert_eq!(client.response().status(), 101);
    assert_eq!(client.take(5), b"early");
    client.send(vec![b'a'; 3_000_000 - 5]).finish();
    assert!(client.take(3_000_000).iter().all(|byte| *byte == b'z'));
    assert_eq!(client.end(), End::Fin);
    drop(client);
    let seen = rig.mesh.finish();
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    assert_eq!(seen.bytes, (3_000_000, 3_000_005));
}

#[test]
fn a_reset_passes_through_tls_as_a_cut() {
    let (rig, config) = mutual(|visit| {
        visit.head().unwrap();
        visit.send(AGREED);
        visit.bytes(2);
    });
    let mut client = rig.client().tls(config, "app.test");
    client.send(handshake(""));
    assert_eq!(client.response().status(), 101);
    client.send("x");
    client.reset();
    // No close_notify: what came is not whole.
    assert_ne!(rig.origin.wait_end(0), End::Fin);
    assert_eq!(rig.mesh.finish().failures.keys().collect::<Vec<_>>(), ["body.downstream.reset"]);
}

/// A WebSocket service that is not ours, on one connection: sends every message back, and closes in order.
fn serve_websocket() -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        let mut socket = tungstenite::accept(stream).unwrap();
        loop {
            match socket.read() {
                Ok(frame @ (Frame::Text(_) | Frame::Binary(_))) => socket.send(frame).unwrap(),
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed) => return,
                Err(error) => panic!("the service: {error}"),
            }
        }
    });
    (address, service)
}

#[test]
fn a_websocket_client_and_service_understand_each_other() {
    let (address, service) = serve_websocket();
    let mesh = Config::default().service_at("app", &[&address], "").start();
    let stream = TcpStream::connect(mesh.address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let settings = WebSocketConfig::default();
    let (mut socket, response) =
        tungstenite::client::client_with_config("ws://app.test/chat", stream, Some(settings)).unwrap();
    assert_eq!(response.status(), 101);
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 249) as u8).collect();
    for frame in
        [Frame::text("hello"), Frame::binary(large), Frame::text("x".repeat(70_000)), Frame::binary(vec![])]
    {
        socket.send(frame.clone()).unwrap();
        assert!(socket.read().unwrap() == frame, "another message came back");
    }
    // A message in pieces, with a ping between them.
    fragments(&mut socket);
    socket.close(None).unwrap();
    let end = loop {
        match socket.read() {
            Ok(Frame::Close(_) | Frame::Pong(_)) => {}
            Ok(frame) => panic!("after the close: {frame:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
    service.join().unwrap();
    drop(socket);
    let seen = mesh.finish();
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    assert!(seen.bytes.0 > 5_000_000 && seen.bytes.1 > 5_000_000);
}

fn fragments(socket: &mut tungstenite::WebSocket<TcpStream>) {
    use tungstenite::protocol::frame::Frame as Raw;
    use tungstenite::protocol::frame::coding::{Data, OpCode};
    let piece = vec![b'z'; 100_000];
    for n in 0..10 {
        let code = OpCode::Data(if n == 0 { Data::Text } else { Data::Continue });
        socket.send(Frame::Frame(Raw::message(piece.clone(), code, n == 9))).unwrap();
        if n == 5 {
            socket.send(Frame::Ping(b"between".to_vec().into())).unwrap();
        }
    }
    let mut pong = false;
    loop {
        match socket.read().unwrap() {
            Frame::Pong(bytes) => pong |= bytes == b"between"[..],
            Frame::Text(text) => {
                assert!(pong && text.len() == 1_000_000);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn h40_connect_is_a_tunnel_to_the_service_of_the_route_where_that_allows_it() {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let origin = Origin::scripted(move |visit| {
        // Nothing but what was sent behind the head, and what looks like HTTP is not touched.
        assert_eq!(visit.bytes(24), b"GET / HTTP/1.1\nearly\r\n\r\n");
        theirs.pass();
        visit.send("HTTP/1.1 101 not HTTP\r\n\r\n");
        echo(visit);
    });
    let rig = Rig::before_with(origin, |c| c.tunnels(true, true, HOUR));
    let mut client = rig.client();
    client.send(CONNECT.to_owned() + "GET / HTTP/1.1\nearly\r\n\r\n");
    let head = client.take_head();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    gate.open();
    assert_eq!(client.take(25), b"HTTP/1.1 101 not HTTP\r\n\r\n");
    there_and_back(&mut client, b"\0\x16\x03\x01");
    client.finish();
    assert_eq!(client.end(), End::Fin);
    assert!(heads(&rig.origin.recorded()).is_empty());
    let seen = rig.mesh.finish();
    assert_eq!((seen.by_class[2], seen.latencies, seen.bytes), (1, (1, 0), (28, 29)));
    assert!(seen.failures.is_empty());
}

#[test]
fn h40_a_connect_that_fails_says_why_and_nothing_behind_it_is_read() {
    let rig = Rig::with(|c| c.tunnels(true, true, HOUR));
    for (bytes, status, cause) in [
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
        ("CONNECT u@a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "userinfo_in_target"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 400, "upgrade_with_body"),
    ] {
        rig.refused(bytes, status, cause);
    }
    rig.done_unseen();
    // The service cannot be reached.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mesh = Config::default().service_at("app", &[&gone], "").tunnels(true, true, HOUR).start();
    let mut client = mesh.client();
    client.send(CONNECT.to_owned() + "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status(), 503);
    assert_eq!(response.one("x-ringmesh-failure").unwrap(), "connect.upstream.refused");
    assert_eq!(client.end(), End::Fin);
    drop(client);
    assert_eq!(mesh.finish().by_class, [0, 0, 0, 0, 0, 1]);
}

#[test]
fn h40_curl_tunnels_through_connect() {
    let rig = Rig::with(|c| c.tunnels(true, true, HOUR));
    let proxy = format!("http://{}", rig.mesh.address);
    let curl = std::process::Command::new("curl")
        .args(["-sS", "--max-time", "30", "--noproxy", "", "--proxytunnel", "--proxy", &proxy])
        .args(["http://app.test:8080/through/the/tunnel", "http://app.test:8080/again"])
        .output()
        .unwrap();
    assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "/through/the/tunnel/again");
    let done = rig.done();
    assert_eq!(
        (done.requests.len(), done.seen.by_class[2]),
        (2, 1),
        "one tunnel, of which the proxy saw no request"
    );
    assert!(done.requests.iter().all(|r| !r.has("via") && r.one("host").unwrap() == "app.test:8080"));
}
