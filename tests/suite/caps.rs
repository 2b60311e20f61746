//! How much a service is given at a time: who is let in, who waits, who is turned away and how that is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use ringmesh::control::{Proxy, Start};

use crate::support::client::Client;
use crate::support::http2::{CANCEL, RST_STREAM, Raw, Service, call, fields, request};
use crate::support::mesh::Config;
use crate::support::origin::{Origin, ok};
use crate::support::rig::Rig;
use crate::support::{End, Gate, Watched};

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A service that answers when the gate is open, capped so.
fn capped(caps: &str) -> (Arc<Gate>, Rig) {
    let (gate, origin) = Origin::gated();
    let caps = format!("caps = {{ {caps} }}");
    (gate, Rig::before_with(origin, |config| config.keys(&caps)))
}

#[test]
fn what_finds_no_place_waits_for_it_and_comes_in_the_order_in_which_it_came() {
    let (gate, mut rig) = capped("exchanges_max = 1, queue_timeout = \"1h\"");
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..4 {
        let mut client = rig.client();
        client.send(get(&format!("/{n}")));
        // It is at the door before the next one comes.
        rig.mesh.wait_totals(|totals| totals.exchanges_open == n + 1);
        clients.push(client);
    }
    assert_eq!(rig.origin.wait_requests(1).len(), 1, "the service has one at a time");
    gate.open();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    let done = rig.done();
    let targets: Vec<String> = done.requests.iter().map(|request| request.target().to_owned()).collect();
    assert_eq!((targets.join(" "), done.connections), ("/0 /1 /2 /3".to_owned(), 1));
}

#[test]
fn the_time_in_the_line_is_not_the_proxys_own() {
    for by_http2 in [false, true] {
        let (gate, origin) = Origin::gated();
        let caps = "caps = { exchanges_max = 1, queue_timeout = \"1h\" }";
        let mut mesh = Config::new(&[&origin]).keys(caps).log("json").start();
        let mut first = mesh.client();
        first.send(get("/first"));
        origin.wait_requests(1);
        let address = mesh.address;
        let second = std::thread::spawn(move || {
            if by_http2 {
                return call(address, request("GET", "/second"), b"", None).unwrap().head.status.as_u16();
            }
            let mut client = Client::connect(address);
            client.send(get("/second"));
            client.response().status()
        });
        mesh.wait_totals(|totals| totals.exchanges_open == 2);
        // It waits from here on, and for so long at least.
        let waits = Instant::now();
        while waits.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let waited_us = waits.elapsed().as_micros() as u64;
        gate.open();
        assert_eq!((first.response().status(), second.join().unwrap()), (200, 200));
        drop(first);
        let seen = mesh.finish();
        let line = seen.lines().into_iter().find(|line| line["target"] == "/second").unwrap();
        let [whole, own] = ["whole_us", "own_us"].map(|field| line[field].as_u64().unwrap());
        assert!(own + waited_us <= whole, "waited {waited_us} us: {line}");
    }
}

#[test]
fn where_nobody_may_wait_it_is_turned_away_and_told_when_to_come_again() {
    let (gate, rig) = capped("exchanges_max = 1, pending_max = 0");
    let mut first = rig.client();
    first.send(get("/first"));
    rig.origin.wait_requests(1);
    let mut second = rig.client();
    for _ in 0..2 {
        second.send(get("/second"));
        let refused = second.response();
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.one("x-ringmesh-failure").as_deref(), Some("admit.local.queue_full"));
        assert_eq!(refused.one("retry-after").as_deref(), Some("1"));
    }
    let by_http2 = call(rig.mesh.address, request("GET", "/"), b"", None).unwrap();
    assert_eq!(by_http2.head.status, 503);
    assert_eq!(by_http2.head.headers["retry-after"], "1");
    assert_eq!(by_http2.head.headers["x-ringmesh-failure"], "admit.local.queue_full");
    let mut grpc = request("POST", "/s/M");
    grpc.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let grpc = call(rig.mesh.address, grpc, b"", None).unwrap();
    assert_eq!(
        (grpc.head.status.as_u16(), &grpc.head.headers["grpc-status"]),
        (200, &HeaderValue::from_static("14"))
    );
    gate.open();
    assert_eq!(first.response().text(), "/first");
    // The place is free again, also for a connection that was refused.
    second.send(get("/third"));
    assert_eq!(second.response().text(), "/third");
    drop((first, second));
    let done = rig.done();
    assert_eq!(done.requests.len(), 2, "the service has seen nothing of the others");
    assert_eq!(done.seen.failures["admit.local.queue_full"], 4);
}

#[test]
fn who_has_waited_for_long_enough_is_told_so() {
    let (gate, rig) = capped("exchanges_max = 1, queue_timeout = \"20ms\"");
    let mut first = rig.client();
    first.send(get("/first"));
    rig.origin.wait_requests(1);
    let mut second = rig.client();
    second.send(get("/second"));
    let refused = second.response();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.one("x-ringmesh-failure").as_deref(), Some("admit.local.queue_timeout"));
    let by_http2 = call(rig.mesh.address, request("GET", "/"), b"", None).unwrap();
    assert_eq!(by_http2.head.headers["x-ringmesh-failure"], "admit.local.queue_timeout");
    gate.open();
    assert_eq!(first.response().text(), "/first");
    drop((first, second));
    assert_eq!(rig.done().seen.failures["admit.local.queue_timeout"], 2);
}

#[test]
fn a_caller_that_goes_away_leaves_the_line() {
    let (gate, mut rig) = capped("exchanges_max = 1, pending_max = 1, queue_timeout = \"1h\"");
    let mut first = rig.client();
    first.send(get("/first"));
    rig.origin.wait_requests(1);

    let mut second = rig.client();
    second.send(get("/second"));
    rig.mesh.wait_totals(|totals| totals.exchanges_open == 2);
    drop(second);
    rig.mesh.wait_seen(|seen| seen.failures.contains_key("admit.downstream.closed_early"));

    let mut third = Raw::connect(rig.mesh.address);
    third.head(5, 1, &fields("GET", "/third", &[]));
    rig.mesh.wait_totals(|totals| totals.exchanges_open == 2);
    third.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    rig.mesh.wait_seen(|seen| seen.failures.contains_key("admit.downstream.http2_stream_reset"));

    // There is room for one more in the line only if both have left it.
    let mut fourth = rig.client();
    fourth.send(get("/fourth"));
    rig.mesh.wait_totals(|totals| totals.exchanges_open == 2);
    gate.open();
    assert_eq!(first.response().text(), "/first");
    assert_eq!(fourth.response().text(), "/fourth");
    drop((first, third, fourth));
    let done = rig.done();
    assert_eq!(done.requests.len(), 2);
    assert_eq!(done.seen.of_cause("queue_full"), 0);
    // Neither had an answer.
    assert_eq!((done.seen.by_class[0], done.seen.by_class[4]), (2, 0));
}

#[test]
fn what_a_caller_sends_while_it_waits_is_not_lost() {
    let (gate, mut rig) = capped("exchanges_max = 1, queue_timeout = \"1h\"");
    let mut first = rig.client();
    first.send(get("/first"));
    rig.origin.wait_requests(1);
    let mut second = rig.client();
    second.send("POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    rig.mesh.wait_totals(|totals| totals.exchanges_open == 2);
    second.send("world").send(get("/third"));
    gate.open();
    assert_eq!(first.response().text(), "/first");
    assert_eq!(second.response().text(), "/second");
    assert_eq!(second.response().text(), "/third");
    drop((first, second));
    let done = rig.done();
    assert_eq!(done.requests[1].body, b"helloworld");
}

/// Four who ask, one after the other, where one may be inside: the others wait.
fn four_of_which_one_is_inside(rig: &mut Rig) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..4).map(|_| rig.client()).collect();
    for (n, client) in (1..).zip(&mut clients) {
        client.send(get("/"));
        rig.mesh.wait_totals(|totals| totals.exchanges_open == n);
    }
    rig.origin.wait_requests(1);
    clients
}

#[test]
fn a_higher_ceiling_lets_in_who_waits_and_a_lower_one_nobody_until_fewer_are_inside() {
    let (gate, mut rig) = capped("exchanges_max = 1, queue_timeout = \"1h\"");
    let mut clients = four_of_which_one_is_inside(&mut rig);
    let endpoint = rig.origin.endpoint.clone();
    let capped_at = |most: u32| {
        let caps = format!("caps = {{ exchanges_max = {most}, queue_timeout = \"1h\" }}");
        Config::default().service_at("app", &[&endpoint], &caps)
    };
    rig.reload(|_| capped_at(3));
    rig.origin.wait_requests(3);
    rig.mesh.settle(1);
    assert_eq!(rig.origin.recorded().len(), 3);
    rig.reload(|_| capped_at(1));
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    drop(clients);
    rig.done();
}

#[test]
fn who_waits_for_a_place_or_a_connection_is_let_in_where_a_reload_takes_the_ceiling_away() {
    for ceiling in ["exchanges_max", "connections_max"] {
        let (gate, mut rig) = capped(&format!("{ceiling} = 1, queue_timeout = \"1h\""));
        let mut clients = four_of_which_one_is_inside(&mut rig);
        let endpoint = rig.origin.endpoint.clone();
        rig.reload(|_| Config::default().service_at("app", &[&endpoint], ""));
        rig.origin.wait_requests(4);
        gate.open();
        for client in &mut clients {
            assert_eq!(client.response().status(), 200, "{ceiling}");
        }
        drop(clients);
        rig.done();
    }
}

#[test]
fn a_tunnel_gives_its_place_back_when_it_begins() {
    let rig = Rig::before_with(
        Origin::scripted(|visit| {
            while let Some(request) = visit.request() {
                if request.target() == "/socket" {
                    visit.send(
                        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                         sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                    );
                    visit.drain();
                    return;
                }
                visit.send(ok(&request));
            }
        }),
        |config| config.keys("caps = { exchanges_max = 1, pending_max = 0 }"),
    );
    let mut socket = rig.client();
    socket.send(
        "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert!(socket.take_head().starts_with("HTTP/1.1 101 "));
    let mut other = rig.client();
    other.send(get("/other"));
    assert_eq!(other.response().text(), "/other");
    drop(other);
    socket.finish();
    assert_eq!(socket.end(), End::Fin);
    rig.done();
}

#[test]
fn a_service_that_speaks_http2_is_capped_as_well() {
    let service = Service::echoing();
    let mesh = Config::default()
        .service_at(
            "app",
            &[&service.endpoint],
            "protocol = \"http2\"\ncaps = { exchanges_max = 2, queue_timeout = \"1h\" }",
        )
        .start();
    let callers: Vec<_> = (0..8)
        .map(|n| {
            let address = mesh.address;
            std::thread::spawn(move || call(address, request("POST", "/"), &[n; 10_000], None).unwrap())
        })
        .collect();
    for (n, caller) in (0..).zip(callers) {
        let response = caller.join().unwrap();
        assert_eq!(response.head.status, 200);
        assert!(response.body == [n; 10_000]);
    }
    mesh.finish();
}

/// Four shards, one place for all of them, forty callers: never two at the service, everybody served.
#[test]
fn a_ceiling_holds_exactly_for_all_shards_together() {
    const CALLERS: usize = 40;
    const EACH: usize = 5;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let origin = Origin::answering({
        let most = Arc::clone(&most);
        move |request| {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
            ok(request)
        }
    });
    let proxy = Proxy::start(Start::text(format!(
        "shards = 4\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n[[service]]\n\
         name = \"app\"\nendpoints = [\"{}\"]\ncaps = {{ exchanges_max = 1, queue_timeout = \"1h\" }}\n[[route]]\nservice = \
         \"app\"\n",
        origin.endpoint
    )))
    .unwrap();
    let address = proxy.listener("in").unwrap();
    let served = Arc::new(Watched::<usize>::default());
    for _ in 0..CALLERS {
        let served = Arc::clone(&served);
        std::thread::spawn(move || {
            let mut client = Client::connect(address);
            for n in 0..EACH {
                client.send(get(&format!("/{n}")));
                assert_eq!(client.response().text(), format!("/{n}"));
            }
            served.change(|served| *served += 1);
        });
    }
    served.wait("all callers", |served| (*served == CALLERS).then_some(()));
    assert_eq!(most.load(Ordering::SeqCst), 1);
    proxy.drain();
    proxy.join();
}

#[test]
fn a_service_that_fails_is_given_less() {
    let origin = Origin::answering(|request| match request.target() {
        "/well" => ok(request),
        _ => b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".to_vec(),
    });
    let rig = Rig::before_with(origin, |config| {
        config.keys("admission = { exchanges_min = 100, window = \"1h\", refuse_max_percent = 100 }")
    });
    let mut client = rig.client();
    for _ in 0..100 {
        client.send(get("/badly"));
        assert_eq!(client.response().status(), 500);
    }
    // 100 of 101: of a thousand ten are let in, and each makes it more. That nobody is turned away has a chance of 1e-2000.
    let mut refused = 0;
    for _ in 0..1000 {
        client.send(get("/badly"));
        let response = client.response();
        if response.status() == 503 {
            assert_eq!(response.one("x-ringmesh-failure").as_deref(), Some("admit.local.not_admitted"));
            assert_eq!(response.one("retry-after").as_deref(), Some("1"));
            refused += 1;
        }
    }
    assert!(refused > 900, "{refused}");
    drop(client);
    let done = rig.done();
    assert_eq!(done.requests.len(), 1100 - refused, "the service has seen nothing of those");
}

#[test]
fn what_a_service_bears_is_learnt_and_what_is_learnt_survives_a_reload() {
    // The gate is shut: nothing is answered, so the limit is what it begins with.
    let (gate, mut rig) = {
        let (gate, origin) = Origin::gated();
        let keys = "concurrency = { limit_initial = 2 }\ncaps = { pending_max = 0 }";
        (gate, Rig::before_with(origin, |config| config.keys(keys)))
    };
    let mut clients: Vec<Client> = (0..3).map(|_| rig.client()).collect();
    for client in &mut clients[..2] {
        client.send(get("/"));
    }
    rig.origin.wait_requests(2);
    clients[2].send(get("/"));
    assert_eq!(clients[2].response().one("x-ringmesh-failure").as_deref(), Some("admit.local.queue_full"));
    // What is in progress stays counted.
    let endpoint = rig.origin.endpoint.clone();
    rig.reload(|_| {
        let keys = "concurrency = { limit_initial = 2, limit_max = 3 }\ncaps = { pending_max = 0 }";
        Config::default().service_at("app", &[&endpoint], keys)
    });
    clients[2].send(get("/"));
    assert_eq!(clients[2].response().one("x-ringmesh-failure").as_deref(), Some("admit.local.queue_full"));
    gate.open();
    for client in &mut clients[..2] {
        assert_eq!(client.response().status(), 200);
    }
    // Answered at once, one after the other: nothing queues anywhere, and nobody is turned away any more.
    for _ in 0..200 {
        clients[2].send(get("/"));
        assert_eq!(clients[2].response().status(), 200);
    }
    drop(clients);
    rig.done();
}

/// Four shards, three connections for all of them, forty callers.
fn four_shards(endpoint: &str, queue_timeout: &str) -> (Proxy, std::net::SocketAddr) {
    let proxy = Proxy::start(Start::text(format!(
        "shards = 4\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n[[service]]\n\
         name = \"app\"\nendpoints = [\"{endpoint}\"]\ncaps = {{ connections_max = 3, queue_timeout = \"{queue_timeout}\" }}\n\
         retry = {{ attempts_max = 1 }}\n[[route]]\nservice = \"app\"\n"
    )))
    .unwrap();
    let address = proxy.listener("in").unwrap();
    (proxy, address)
}

#[test]
fn open_connections_are_counted_exactly_for_all_shards_together() {
    let (gate, origin) = Origin::gated();
    let (proxy, address) = four_shards(&origin.endpoint, "50ms");
    let told = Arc::new(Watched::<Vec<Option<String>>>::default());
    for _ in 0..40 {
        let told = Arc::clone(&told);
        std::thread::spawn(move || {
            let mut client = Client::connect(address);
            let response = client.send(get("/")).response();
            told.change(|told| told.push(response.one("x-ringmesh-failure")));
        });
    }
    // Nobody gives his connection back before the others have waited in vain.
    told.wait("those that find none", |told| (told.len() == 37).then_some(()));
    assert_eq!(origin.recorded().len(), 3);
    gate.open();
    let told = told.wait("all", |told| (told.len() == 40).then(|| told.clone()));
    let refused = Some("connect.local.queue_timeout".to_owned());
    assert!(told[..37].iter().all(|failure| *failure == refused), "{told:?}");
    assert!(told[37..].iter().all(Option::is_none), "{told:?}");
    proxy.drain();
    proxy.join();
}

#[test]
fn connections_go_from_shard_to_shard_until_everybody_is_served() {
    const CALLERS: usize = 40;
    const EACH: usize = 10;
    let origin = Origin::plain();
    let (proxy, address) = four_shards(&origin.endpoint, "1h");
    let served = Arc::new(Watched::<usize>::default());
    for _ in 0..CALLERS {
        let served = Arc::clone(&served);
        std::thread::spawn(move || {
            let mut client = Client::connect(address);
            for n in 0..EACH {
                client.send(get(&format!("/{n}")));
                assert_eq!(client.response().text(), format!("/{n}"));
            }
            served.change(|served| *served += 1);
        });
    }
    served.wait("all callers", |served| (*served == CALLERS).then_some(()));
    proxy.drain();
    proxy.join();
    let visits = origin.settle();
    assert_eq!(visits.iter().map(|visit| visit.requests().len()).sum::<usize>(), CALLERS * EACH);
}

#[test]
fn who_finds_no_connection_has_the_one_that_comes_to_rest_in_the_order_in_which_they_came() {
    let (gate, mut rig) = capped("connections_max = 1, queue_timeout = \"1h\"");
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..4 {
        let mut client = rig.client();
        client.send(get(&format!("/{n}")));
        rig.mesh.wait_totals(|totals| totals.exchanges_open == n + 1);
        clients.push(client);
    }
    assert_eq!(rig.origin.wait_requests(1).len(), 1);
    gate.open();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    let done = rig.done();
    let targets: Vec<String> = done.requests.iter().map(|request| request.target().to_owned()).collect();
    assert_eq!((targets.join(" "), done.connections), ("/0 /1 /2 /3".to_owned(), 1));
}

#[test]
fn who_has_waited_for_a_connection_for_long_enough_or_may_not_wait_is_told_so() {
    for (keys, cause) in [
        ("connections_max = 1, queue_timeout = \"20ms\"", "queue_timeout"),
        ("connections_max = 1, pending_max = 0", "queue_full"),
    ] {
        let failure = format!("connect.local.{cause}");
        let (gate, rig) = capped(keys);
        let mut first = rig.client();
        first.send(get("/first"));
        rig.origin.wait_requests(1);
        let mut second = rig.client();
        second.send(get("/second"));
        let refused = second.response();
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.one("x-ringmesh-failure"), Some(failure.clone()));
        assert_eq!(refused.one("retry-after").as_deref(), Some("1"));
        let by_http2 = call(rig.mesh.address, request("GET", "/"), b"", None).unwrap();
        assert_eq!(by_http2.head.headers["x-ringmesh-failure"].to_str().unwrap(), failure);
        gate.open();
        assert_eq!(first.response().text(), "/first");
        drop((first, second));
        let done = rig.done();
        assert_eq!((done.requests.len(), done.connections), (1, 1));
        assert_eq!(done.seen.failures[failure.as_str()], 2);
    }
}

#[test]
fn a_connection_at_rest_makes_room_for_one_to_another_endpoint() {
    let origins = [Origin::plain(), Origin::plain()];
    let keys = "balance = \"round-robin\"\npool = { idle_timeout = \"1h\" }\ncaps = { connections_max = 1, queue_timeout = \"1h\" }";
    let mesh = Config::new(&[&origins[0], &origins[1]]).keys(keys).start();
    let mut client = Client::connect(mesh.address);
    for n in 0..6 {
        client.send(get(&format!("/{n}")));
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    drop(client);
    mesh.finish();
    for origin in origins {
        assert_eq!(origin.settle().len(), 3, "each request found the other's connection at rest");
    }
}

#[test]
fn who_waits_for_one_endpoint_takes_a_connection_to_another_that_comes_to_rest() {
    let gate = Arc::new(Gate::default());
    let origins = [(); 2].map(|()| {
        let gate = Arc::clone(&gate);
        Origin::answering(move |request| {
            gate.pass();
            ok(request)
        })
    });
    let keys = "balance = \"round-robin\"\ncaps = { connections_max = 1, queue_timeout = \"1h\" }";
    let mut mesh = Config::new(&[&origins[0], &origins[1]]).keys(keys).start();
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..6 {
        let mut client = mesh.client();
        client.send(get(&format!("/{n}")));
        mesh.wait_totals(|totals| totals.exchanges_open == n + 1);
        clients.push(client);
    }
    gate.open();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    drop(clients);
    let seen = mesh.finish();
    assert_eq!(seen.totals.upstream_connected, 1);
}

#[test]
fn shared_connections_are_counted_as_well_and_end_when_others_want_theirs() {
    let services = [Service::echoing(), Service::echoing()];
    let keys = "protocol = \"http2\"\nbalance = \"round-robin\"\ncaps = { connections_max = 1, queue_timeout = \"1h\" }";
    let endpoints = services.each_ref().map(|service| service.endpoint.as_str());
    let mesh = Config::default().service_at("app", &endpoints, keys).start();
    for n in 0..6_u8 {
        let response = call(mesh.address, request("POST", "/"), &[n; 1000], None).unwrap();
        assert!(response.body == [n; 1000]);
    }
    let seen = mesh.finish();
    assert_eq!(seen.totals.upstream_connected, 6, "each found the other's at rest");
}

#[test]
fn a_ceiling_that_is_lowered_closes_what_lies_at_rest_and_one_that_is_new_holds_from_then_on() {
    let (gate, mut rig) = capped("connections_max = 3, queue_timeout = \"1h\"");
    let endpoint = rig.origin.endpoint.clone();
    let with = |keys: &str| Config::default().service_at("app", &[&endpoint], keys);
    let mut clients: Vec<Client> = (0..3).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    rig.origin.wait_requests(3);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    rig.reload(|_| with("caps = { connections_max = 1 }"));
    rig.mesh.wait_totals(|totals| totals.upstream_open == 1);
    // Without a ceiling nothing is counted; what was opened then is not used once there is one again.
    rig.reload(|_| with(""));
    rig.mesh.wait_totals(|totals| totals.upstream_open == 1);
    assert_eq!(clients[0].send(get("/")).response().status(), 200);
    rig.reload(|_| with("caps = { connections_max = 1 }"));
    assert_eq!(clients[0].send(get("/")).response().status(), 200);
    drop(clients);
    let done = rig.done();
    assert_eq!((done.requests.len(), done.connections), (5, 4));
}

#[test]
fn who_wants_a_new_connection_because_a_kept_one_had_died_does_not_get_another_that_was_kept_meanwhile() {
    for by_http2 in [false, true] {
        let gate = Arc::new(Gate::default());
        let theirs = Arc::clone(&gate);
        // The first two connections are closed as soon as they are used again, the first one when it is told to.
        let origin = Origin::scripted(move |visit| {
            while let Some(request) = visit.request() {
                if request.target() == "/again" && visit.number < 2 {
                    theirs.pass();
                    return;
                }
                visit.send(ok(&request));
            }
        });
        let mut rig = Rig::before_with(origin, |config| {
            config.keys("caps = { connections_max = 1, queue_timeout = \"1h\" }")
        });
        let mut client = rig.client();
        assert_eq!(client.send(get("/warm")).response().text(), "/warm");
        let address = rig.mesh.address;
        let asking =
            by_http2.then(|| std::thread::spawn(move || call(address, request("GET", "/again"), b"", None)));
        if !by_http2 {
            client.send(get("/again"));
        }
        rig.origin.wait_requests(2);
        // Has the next connection, and leaves it at rest for who waits.
        let mut other = rig.client();
        other.send(get("/other"));
        rig.mesh.wait_totals(|totals| totals.exchanges_open == 2);
        gate.open();
        assert_eq!(other.response().text(), "/other");
        let status = match asking {
            Some(asking) => asking.join().unwrap().unwrap().head.status.as_u16(),
            None => client.response().status(),
        };
        assert_eq!(status, 200, "by HTTP/2: {by_http2}");
        drop((client, other));
        let done = rig.done();
        let targets: Vec<String> = done.requests.iter().map(|request| request.target().to_owned()).collect();
        assert_eq!((targets.join(" "), done.connections), ("/warm /again /other /again".to_owned(), 3));
        assert_eq!(done.seen.totals.replays, 1);
    }
}

#[test]
fn a_hedge_that_waits_for_a_connection_takes_one_to_its_endpoint_that_comes_to_rest() {
    let (gate, asked) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let origins = [(); 2].map(|()| {
        let (gate, asked) = (Arc::clone(&gate), Arc::clone(&asked));
        Origin::scripted(move |visit| {
            while let Some(request) = visit.request() {
                match request.target() {
                    "/held" => gate.pass(),
                    // Whichever comes first is never answered.
                    _ if asked.fetch_add(1, Ordering::SeqCst) == 0 => {
                        visit.drain();
                        return;
                    }
                    _ => {}
                }
                visit.send(ok(&request));
            }
        })
    });
    let keys = "balance = \"round-robin\"\ntimeouts = { response = \"1h\" }\nretry = { on = [], statuses = [], hedge_after = \
                \"1ms\" }\ncaps = { connections_max = 2, queue_timeout = \"1h\" }";
    let mut mesh = Config::new(&[&origins[0], &origins[1]]).keys(keys).start();
    let mut held = mesh.client();
    // Not sent twice.
    held.send("POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    mesh.wait_totals(|totals| totals.upstream_open == 1);
    let mut slow = mesh.client();
    slow.send(get("/slow"));
    mesh.wait_seen(|seen| seen.retries.by_reason.iter().sum::<u64>() == 1);
    gate.open();
    assert_eq!(held.response().text(), "/held");
    assert_eq!(slow.response().text(), "/slow");
    drop((held, slow));
    let seen = mesh.finish();
    assert_eq!((seen.retries.hedges_won, seen.totals.upstream_connected), (1, 2));
}

/// A proxy with an admin address before this endpoint, and what its pages say.
fn with_admin(endpoint: &str, keys: &str) -> (Proxy, impl Fn(&str) -> String) {
    let text = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{endpoint}\"]\n{keys}\n[[route]]\nservice = \"app\"\n"
    );
    let proxy = Proxy::start(Start::text(text)).unwrap();
    let admin = proxy.admin().unwrap();
    let page = move |path: &str| {
        let mut client = Client::connect(admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        String::from_utf8(client.response().body).unwrap()
    };
    (proxy, page)
}

#[test]
fn metrics_and_services_tell_what_is_in_use_of_what_there_may_be_and_who_waits() {
    let (gate, origin) = Origin::gated();
    let (proxy, page) = with_admin(
        &origin.endpoint,
        "caps = { exchanges_max = 2, connections_max = 7, queue_timeout = \"1h\" }",
    );
    let mut clients: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = Client::connect(proxy.listener("in").unwrap());
            client.send(get("/"));
            client
        })
        .collect();
    let waiting = "ringmesh_capped_waiting{service=\"app\",of=\"exchanges\"} 3.0";
    let metrics = loop {
        let metrics = page("/metrics");
        if metrics.contains(waiting) {
            break metrics;
        }
    };
    origin.wait_requests(2);
    for line in [
        "ringmesh_capped_in_use{service=\"app\",of=\"exchanges\"} 2.0",
        "ringmesh_capped_max{service=\"app\",of=\"exchanges\"} 2.0",
        "ringmesh_capped_in_use{service=\"app\",of=\"connections\"} 2.0",
        "ringmesh_capped_max{service=\"app\",of=\"connections\"} 7.0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("of=\"retries\""), "there is no ceiling for them: {metrics}");
    let services: serde_json::Value = serde_json::from_str(&page("/services?format=json")).unwrap();
    let caps = &services["services"][0]["caps"];
    assert_eq!(caps["exchanges"], serde_json::json!({ "in_use": 2, "ceiling": 2, "waiting": 3 }));
    assert_eq!(caps.as_object().unwrap().len(), 2, "{caps}");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    drop(clients);
    proxy.stop();
}

#[test]
fn metrics_tell_what_was_learnt_of_how_much_a_service_bears() {
    let origin = Origin::plain();
    let (proxy, page) =
        with_admin(&origin.endpoint, "concurrency = { limit_initial = 30, window = \"1ms\" }");
    assert!(page("/metrics").contains("ringmesh_capped_max{service=\"app\",of=\"exchanges\"} 30.0"));
    let mut client = Client::connect(proxy.listener("in").unwrap());
    // Something once twenty were answered, and a millisecond has passed.
    let baseline = loop {
        client.send(get("/"));
        assert_eq!(client.response().status(), 200);
        let metrics = page("/metrics");
        if let Some((_, rest)) = metrics.split_once("ringmesh_concurrency_baseline_seconds{service=\"app\"} ")
        {
            break rest.lines().next().unwrap().parse::<f64>().unwrap();
        }
    };
    assert!(baseline > 0.0);
    drop(client);
    proxy.stop();
}
