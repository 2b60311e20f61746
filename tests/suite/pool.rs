//! Upstream connections: reuse, dead ones, replays, other endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::folder::Folder;
use crate::support::mesh::Config;
use crate::support::origin::{Origin, ok};
use crate::support::rig::Rig;
use crate::support::{End, Gate, Watched};

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn post(target: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
}

/// An address that is taken and where nobody listens, as long as this lives.
struct Nobody {
    endpoint: String,
    _bound: Socket,
}

fn nobody() -> Nobody {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let endpoint = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    Nobody { endpoint, _bound: socket }
}

#[test]
fn a_connection_serves_one_request_after_another_of_any_caller() {
    let rig = Rig::plain();
    for n in 0..20 {
        let mut client = rig.client();
        for target in [format!("/{n}/a"), format!("/{n}/b")] {
            client.send(get(&target));
            assert_eq!(client.response().text(), target);
        }
        client.send(post("/p"));
        assert_eq!(client.response().text(), "/p");
    }
    let done = rig.done();
    assert_eq!((done.requests.len(), done.connections), (60, 1));
    assert_eq!(done.seen.totals.upstream_connected, 1);
}

#[test]
fn a_connection_that_the_service_has_closed_is_not_used_again() {
    for method in [get, post] {
        let closed = Arc::new(Gate::default());
        let tell = Arc::clone(&closed);
        let rig = Rig::before(Origin::scripted(move |visit| {
            while let Some(request) = visit.request() {
                visit.send(ok(&request));
                if visit.number == 0 {
                    visit.finish();
                    tell.open();
                    visit.drain();
                }
            }
        }));
        let mut client = rig.client();
        client.send(method("/1"));
        assert_eq!(client.response().text(), "/1");
        closed.pass();
        client.send(method("/2"));
        assert_eq!(client.response().text(), "/2");
        drop(client);
        let done = rig.done();
        let totals = done.seen.totals;
        assert_eq!((done.connections, totals.upstream_found_dead, totals.replays), (2, 1, 0));
    }
}

#[test]
fn a_get_is_replayed_once_when_its_reused_connection_dies_before_the_first_byte() {
    for reset in [false, true] {
        let rig = Rig::before(Origin::scripted(move |visit| {
            while let Some(request) = visit.request() {
                if visit.number == 0 && request.target() != "/warm" {
                    if reset {
                        visit.reset();
                    }
                    return;
                }
                visit.send(ok(&request));
            }
        }));
        let mut client = rig.client();
        client.send(get("/warm"));
        assert_eq!(client.response().text(), "/warm");
        client.send(get("/twice"));
        assert_eq!(client.response().text(), "/twice");
        drop(client);
        let done = rig.done();
        assert_eq!((done.connections, done.seen.totals.replays), (2, 1));
        assert_eq!(done.requests.iter().filter(|r| r.target() == "/twice").count(), 2);
        assert!(done.seen.failures.is_empty(), "{:?}", done.seen.failures);
    }
}

#[test]
fn a_get_is_replayed_once_only() {
    let rig = Rig::before(Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            if request.target() != "/warm" {
                return;
            }
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    client.send(get("/warm"));
    client.response();
    client.send(get("/never"));
    let response = client.response();
    assert_eq!(response.status(), 502);
    // The caller's connection serves on.
    client.send(get("/warm"));
    assert_eq!(client.response().status(), 200);
    drop(client);
    let done = rig.done();
    assert_eq!(done.requests.iter().filter(|r| r.target() == "/never").count(), 2);
    assert_eq!(done.seen.totals.replays, 1);
}

#[test]
fn nothing_is_replayed_when_a_byte_of_the_response_has_come() {
    let rig = Rig::before(Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            if request.target() != "/warm" {
                visit.send("H");
                return;
            }
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    client.send(get("/warm"));
    client.response();
    client.send(get("/once"));
    assert_eq!(client.response().status(), 502);
    drop(client);
    let done = rig.done();
    assert_eq!(done.requests.iter().filter(|r| r.target() == "/once").count(), 1);
}

#[test]
fn what_may_be_replayed_is_what_is_idempotent() {
    for (method, replayed) in [
        ("GET", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("PUT", true),
        ("DELETE", true),
        ("POST", false),
        ("PATCH", false),
        ("FOO", false),
        ("get", false),
    ] {
        let rig = Rig::before(Origin::scripted(|visit| {
            while let Some(request) = visit.request() {
                if visit.number == 0 && request.target() == "/x" {
                    return;
                }
                visit.send(ok(&request));
            }
        }));
        let mut client = rig.client();
        client.send(get("/warm"));
        client.response();
        client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"));
        let response = client.try_response(method == "HEAD").unwrap();
        assert_eq!(response.status(), if replayed { 200 } else { 502 }, "{method}");
        drop(client);
        let seen = rig.done().requests;
        let sent: Vec<_> = seen.iter().filter(|r| r.target() == "/x").map(|r| r.text()).collect();
        assert_eq!(sent, if replayed { vec!["hi", "hi"] } else { vec!["hi"] }, "{method}");
    }
}

#[test]
fn a_service_that_closes_idle_connections_at_once_fails_no_get() {
    // Closes each connection right behind its response without saying so: the worst case of a short idle timeout.
    let rig = Rig::before(Origin::scripted(|visit| {
        for _ in 0..2 {
            let Some(request) = visit.request() else { return };
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    for n in 0..500 {
        client.send(get(&format!("/{n}")));
        let response = client.response();
        assert_eq!((response.status(), response.text()), (200, format!("/{n}")));
    }
    drop(client);
    let done = rig.done();
    assert!(done.seen.failures.is_empty(), "{:?}", done.seen.failures);
    assert!(done.seen.totals.upstream_found_dead + done.seen.totals.replays > 0);
}

#[test]
fn the_age_at_which_a_service_closes_is_learned() {
    const ROUNDS: u64 = 30;
    // Closes what was idle for 40 ms, and says so.
    let closed: Arc<Watched<usize>> = Arc::default();
    let tell = Arc::clone(&closed);
    let rig = Rig::before(Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            visit.send(ok(&request));
            visit.waits_for(Duration::from_millis(40));
        }
        visit.finish();
        tell.change(|closed| *closed += 1);
    }));
    let mut client = rig.client();
    for n in 0..ROUNDS {
        client.send(if n % 2 == 0 { get("/x") } else { post("/x") });
        assert_eq!(client.response().text(), "/x");
        closed.wait("the end of a connection", |closed| (*closed as u64 > n).then_some(()));
    }
    drop(client);
    let done = rig.done();
    assert!(done.seen.failures.is_empty(), "{:?}", done.seen.failures);
    // Each death at some age takes the limit to three quarters of it, and no connection is younger than 40 ms when it is
    // to be used again: from 1 s, a dozen deaths are enough never to look at a dead one again.
    let dead = done.seen.totals.upstream_found_dead;
    assert!(dead > 0 && dead < ROUNDS - 10, "{dead} of {ROUNDS}");
}

#[test]
fn a_hint_of_a_short_keep_alive_is_believed() {
    // "timeout=0" means that the connection is not worth keeping.
    let rig = Rig::before(Origin::answering(|request| {
        let mut answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: max=5, timeout=1\r\n".to_vec();
        answer.extend_from_slice(&ok(request)[17..]);
        answer
    }));
    let mut mesh_and = rig;
    let mut client = mesh_and.client();
    client.send(get("/1"));
    let response = client.response();
    assert!(!response.has("keep-alive"));
    // Younger than half a second or not, it is gone when the sweeps of the next seconds have passed.
    let totals = mesh_and
        .mesh
        .wait_totals(|t| t.upstream_connected == 1 && t.upstream_idle == 0 && t.upstream_open == 0);
    assert_eq!(totals.upstream_found_dead, 0, "closed by us, because it was too old");
    assert_eq!(mesh_and.origin.wait_end(0), End::Fin);
    drop(client);
    mesh_and.done();
}

#[test]
fn an_idle_timeout_of_zero_and_an_idle_max_of_zero_keep_no_connection() {
    for keys in ["pool = { idle_max = 0 }", "pool = { idle_timeout = \"0s\" }"] {
        let rig = Rig::with(|c| c.keys(keys));
        let mut client = rig.client();
        for n in 0..3 {
            client.send(get(&format!("/{n}")));
            assert_eq!(client.response().status(), 200);
        }
        drop(client);
        let done = rig.done();
        assert_eq!((done.requests.len(), done.connections), (3, 3), "{keys}");
    }
}

#[test]
fn a_connect_failure_moves_on_to_another_endpoint_whatever_the_method() {
    let origin = Origin::plain();
    let dead = nobody();
    let mesh = Config::default()
        .service_at(
            "app",
            &[&dead.endpoint, &origin.endpoint, "unix:/nonexistent/ringmesh-test.sock"],
            "balance = \"round-robin\"\nconnect_attempts_max = 3",
        )
        .start();
    for n in 0..30 {
        let mut client = mesh.client();
        client.send(if n % 2 == 0 { get("/x") } else { post("/x") });
        assert_eq!(client.response().text(), "/x");
        // The body comes later: streamed.
        client.send("POST /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send("2\r\nhi\r\n0\r\n\r\n");
        assert_eq!(client.response().text(), "/y");
    }
    let seen = mesh.finish();
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    let requests: usize = origin.settle().iter().map(|r| r.requests().len()).sum();
    assert_eq!(requests, 60);
}

#[test]
fn an_endpoint_that_refuses_costs_few_requests_another_attempt() {
    let origin = Origin::plain();
    let dead = nobody();
    let mesh = Config::default()
        .service_at(
            "app",
            &[&dead.endpoint, &origin.endpoint],
            "balance = \"round-robin\"\npool = { idle_max = 0 }",
        )
        .log("json")
        .start();
    let mut client = mesh.client();
    for _ in 0..40 {
        client.send(get("/x"));
        assert_eq!(client.response().text(), "/x");
    }
    drop(client);
    let lines = mesh.finish().lines();
    // Once at first, and then at most as many times as the waits double in whatever time this took.
    let again = lines.iter().filter(|line| line["attempts"] != 1).count();
    assert!(lines.len() == 40 && (1..10).contains(&again), "{again} of {}", lines.len());
}

#[test]
fn when_no_endpoint_can_be_reached_the_answer_is_503_and_says_so() {
    let (one, other) = (nobody(), nobody());
    let mesh = Config::default().service_at("app", &[&one.endpoint, &other.endpoint], "").start();
    let mut client = mesh.client();
    for request in [get("/"), post("/")] {
        client.send(request);
        let response = client.response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.one("x-ringmesh-failure").unwrap(), "connect.upstream.refused");
        assert!(response.text().contains("app"), "{}", response.text());
    }
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.one("connection").unwrap()), (503, "close".into()));
    assert_eq!(client.end(), End::Fin);
    drop(client);
    let seen = mesh.finish();
    assert_eq!((seen.failures["connect.upstream.refused"], seen.by_class[5]), (3, 3));
}

#[test]
fn no_more_endpoints_are_tried_than_configured() {
    let origin = Origin::plain();
    // Only one attempt is allowed.
    let (one, other) = (nobody(), nobody());
    let mesh = Config::default()
        .service_at(
            "app",
            &[&one.endpoint, &other.endpoint, &origin.endpoint],
            "balance = \"round-robin\"\nconnect_attempts_max = 1",
        )
        .start();
    let mut statuses = Vec::new();
    let mut client = mesh.client();
    for _ in 0..6 {
        client.send(get("/"));
        statuses.push(client.response().status());
    }
    assert!(statuses.contains(&503) && statuses.iter().all(|s| matches!(s, 200 | 503)), "{statuses:?}");
}

#[test]
fn a_service_on_a_unix_socket_is_served() {
    let folder = Folder::new();
    let rig = Rig::before(Origin::unix(&folder.path("origin.sock"), |visit| {
        while let Some(request) = visit.request() {
            visit.send(ok(&request));
        }
    }));
    let mut client = rig.client();
    client.send(get("/a")).send(post("/b"));
    assert_eq!((client.response().text(), client.response().text()), ("/a".into(), "/b".into()));
    client.send(format!(
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n{}",
        "x".repeat(500_000)
    ));
    assert_eq!(client.response().text(), "/c");
    drop(client);
    let done = rig.done();
    assert_eq!((done.requests.len(), done.connections), (3, 1));
    assert_eq!(done.requests[2].body.len(), 500_000);
}

#[test]
fn connections_over_an_endpoints_limit_are_shed_with_503() {
    let (gate, origin) = Origin::gated();
    let rig = Rig::before_with(origin, |c| c.keys("pool = { connections_max = 2 }"));
    let mut held: Vec<_> = (0..2).map(|_| rig.client()).collect();
    for client in &mut held {
        client.send(get("/held"));
    }
    rig.origin.wait_requests(2);
    let mut client = rig.client();
    client.send(get("/shed"));
    let response = client.response();
    assert_eq!(response.status(), 503);
    assert_eq!(response.one("x-ringmesh-failure").unwrap(), "connect.upstream.overloaded");
    gate.open();
    for client in &mut held {
        assert_eq!(client.response().text(), "/held");
    }
    client.send(get("/served"));
    assert_eq!(client.response().text(), "/served");
    drop((client, held));
    assert_eq!(rig.done().connections, 2);
}

#[test]
fn a_service_without_endpoints_is_answered_for_with_503() {
    // A name that does not resolve.
    let mesh = Config::default().service_at("app", &["app.internal:80"], "").start();
    let mut client = mesh.client();
    client.send(get("/"));
    let response = client.response();
    assert_eq!(
        (response.status(), response.one("x-ringmesh-failure").unwrap()),
        (503, "balance.upstream.no_endpoint".into())
    );
}

#[test]
fn requests_are_spread_over_endpoints() {
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    let origins: Vec<_> = counts
        .iter()
        .map(|count| {
            let count = Arc::clone(count);
            Origin::answering(move |request| {
                count.fetch_add(1, Ordering::Relaxed);
                ok(request)
            })
        })
        .collect();
    let mesh =
        Config::default().service("app", &[&origins[0], &origins[1]], "balance = \"round-robin\"").start();
    let mut client = mesh.client();
    for _ in 0..20 {
        client.send(get("/"));
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(counts.map(|c| c.load(Ordering::Relaxed)), [10, 10]);
}
