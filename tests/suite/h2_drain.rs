//! The end of shared connections to services, and of two proxies in a row: what is in flight is finished, whoever goes
//! first, and the service is told by GOAWAY.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringmesh::shard::link::Order;

use crate::support::http2::{
    DATA, END_STREAM, GOAWAY, NO_ERROR, Outcome, Raw, RawService, call, fields, request,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;
use crate::support::{GUARD, Watched};

fn over_http2(endpoint: &str) -> Config {
    Config::default().service_at("app", &[endpoint], "protocol = \"http2\"\n")
}

/// A service that answers at once and remembers how its connections ended: the code of the last GOAWAY.
fn telling() -> (RawService, Arc<Watched<Vec<Option<u32>>>>) {
    let ends = Arc::new(Watched::<Vec<Option<u32>>>::default());
    let theirs = Arc::clone(&ends);
    let service = RawService::scripted(move |_, raw| {
        let mut code = None;
        while let Some(frame) = raw.event() {
            match frame.kind {
                crate::support::http2::HEADERS => {
                    raw.head(0, frame.stream, &[(":status", "200")]);
                    raw.frame(DATA, END_STREAM, frame.stream, b"ok");
                }
                GOAWAY => code = Some(frame.code()),
                _ => {}
            }
        }
        theirs.change(|ends| ends.push(code));
    });
    (service, ends)
}

#[test]
fn an_idle_connection_to_a_service_ends_with_goaway_when_the_proxy_has_drained() {
    let (service, ends) = telling();
    let mesh = over_http2(&service.endpoint).start();
    assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 200);
    mesh.finish();
    assert_eq!(ends.wait("the end", |ends| ends.first().copied()), Some(NO_ERROR));
}

#[test]
fn an_idle_connection_to_a_service_ends_with_goaway_when_its_time_has_come() {
    let (service, ends) = telling();
    let mesh = over_http2(&service.endpoint).keys("pool = { idle_timeout = \"1s\" }").start();
    assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 200);
    assert_eq!(ends.wait("the end", |ends| ends.first().copied()), Some(NO_ERROR));
    mesh.finish();
}

#[test]
fn a_connection_to_an_endpoint_that_is_gone_ends_at_once_or_with_its_last_exchange() {
    let (service, ends) = telling();
    let origin = Origin::plain();
    let mut mesh = over_http2(&service.endpoint).start();
    assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 200);
    mesh.reload(&Config::new(&[&origin]));
    // A request makes the shard use the new one.
    assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 200);
    assert_eq!(ends.wait("the end", |ends| ends.first().copied()), Some(NO_ERROR));
    mesh.finish();
}

/// A request through two proxies whose body is half sent when one of them drains; then the other.
fn in_a_row(first: fn(&Mesh, &Mesh)) {
    let requests = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&requests);
    let origin = Origin::answering(move |request| {
        theirs.fetch_add(1, Ordering::AcqRel);
        let mut out =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len()).into_bytes();
        out.extend_from_slice(&request.body);
        out
    });
    let near_service = Config::new(&[&origin]).forwarding("via = \"b\"").start();
    let near_caller = over_http2(&near_service.address.to_string()).forwarding("via = \"a\"").start();
    let mut raw = Raw::connect(near_caller.address);
    let mut old = near_caller.client();
    old.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\non");
    raw.head(0, 1, &fields("POST", "/", &[]));
    raw.frame(DATA, 0, 1, b"on");
    raw.settle();
    // Both are on their way, on one connection between the proxies.
    origin.wait_bytes(b"on");
    origin.wait_connections(2);
    first(&near_caller, &near_service);
    raw.frame(DATA, END_STREAM, 1, b"ly");
    old.send("ly");
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(raw.body(1), (b"only".to_vec(), None));
    assert_eq!(old.response().text(), "only");
    drop((raw, old));
    let (a, b) = (near_caller.finish(), near_service.finish());
    assert!(a.failures.is_empty() && b.failures.is_empty(), "{:?} {:?}", a.failures, b.failures);
    assert_eq!(requests.load(Ordering::Acquire), 2);
}

#[test]
fn two_in_a_row_lose_nothing_when_the_one_near_the_service_drains_first() {
    in_a_row(|a, b| {
        b.order(Order::Drain);
        b.settle(1);
        a.settle(1);
        a.order(Order::Drain);
        a.settle(2);
    });
}

#[test]
fn two_in_a_row_lose_nothing_when_the_one_near_the_caller_drains_first() {
    in_a_row(|a, b| {
        a.order(Order::Drain);
        a.settle(1);
        b.order(Order::Drain);
        b.settle(1);
    });
}

#[test]
fn requests_go_on_over_another_connection_when_the_service_drains() {
    // Two proxies near the service; one drains while requests go on, and not one of them fails.
    let origin = Origin::plain();
    let (one, other) = (Config::new(&[&origin]).start(), Config::new(&[&origin]).start());
    let endpoints = [one.address.to_string(), other.address.to_string()];
    let mesh = Config::default()
        .service_at("app", &[&endpoints[0], &endpoints[1]], "protocol = \"http2\"\n")
        .forwarding("via = \"a\"")
        .start();
    let done = AtomicUsize::new(0);
    let mut one = Some(one);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = mesh.client();
                for n in 0..200 {
                    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
                    let response = client.response();
                    assert_eq!(response.status(), 200, "{n}: {response:?}");
                    done.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        let began = std::time::Instant::now();
        while done.load(Ordering::Acquire) < 200 && began.elapsed() < GUARD {
            std::thread::yield_now();
        }
        one.take().unwrap().finish();
    });
    assert!(mesh.finish().failures.is_empty());
}
