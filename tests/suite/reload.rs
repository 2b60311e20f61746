//! What a new snapshot changes, when, and what it keeps.

use std::sync::Arc;

use crate::support::End;
use crate::support::mesh::Config;
use crate::support::origin::Origin;

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn the_next_request_of_an_open_connection_sees_the_new_snapshot() {
    let (old, new) =
        (Origin::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold".to_vec()), Origin::plain());
    let mut mesh = Config::default().service("old", &[&old], "").start();
    let mut client = mesh.client();
    client.send(get("/1"));
    assert_eq!(client.response().text(), "old");
    let config = Config::default().service("new", &[&new], "");
    mesh.reload(&config);
    client.send(get("/2"));
    assert_eq!(client.response().text(), "/2");
    // The idle connection to the service that is gone is closed.
    assert_eq!(old.wait_end(0), End::Fin);
    // Limits and added fields as well.
    mesh.reload(&config.clone().forwarding("via = \"other\"").limits("fields_max = 2"));
    client.send(get("/3"));
    assert_eq!(client.response().text(), "/3");
    assert_eq!(new.wait_requests(2)[1].one("via").unwrap(), "1.1 other");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\n\r\n");
    assert_eq!(client.response().status(), 431);
    drop(client);
    assert_eq!(mesh.finish().totals.downstream_accepted, 1);
}

#[test]
fn an_exchange_ends_with_the_snapshot_that_it_began_with() {
    let (gate, old) = Origin::gated();
    let new = Origin::plain();
    let mut mesh = Config::default().service("old", &[&old], "").start();
    let mut client = mesh.client();
    client.send(get("/held"));
    old.wait_requests(1);
    mesh.reload(&Config::default().service("new", &[&new], ""));
    gate.open();
    assert_eq!(client.response().text(), "/held");
    client.send(get("/next"));
    assert_eq!(client.response().text(), "/next");
    drop(client);
    assert!(mesh.finish().failures.is_empty());
    assert_eq!(new.settle()[0].requests().len(), 1);
}

#[test]
fn the_connections_of_a_service_that_stays_are_kept() {
    let (kept, gone) = (Origin::plain(), Origin::plain());
    let routes = "[[route]]\npath_prefix = \"/kept\"\nservice = \"kept\"\n";
    let both = Config::default()
        .service("kept", &[&kept], "")
        .service("gone", &[&gone], "")
        .routes(&format!("{routes}[[route]]\npath_prefix = \"/gone\"\nservice = \"gone\"\n"));
    let mut mesh = both.start();
    let mut client = mesh.client();
    for target in ["/kept", "/gone"] {
        client.send(get(target));
        assert_eq!(client.response().text(), target);
    }
    mesh.reload(&Config::default().service("kept", &[&kept], "").routes(routes));
    client.send(get("/kept/2"));
    assert_eq!(client.response().text(), "/kept/2");
    client.send(get("/gone"));
    assert_eq!(client.response().status(), 404);
    assert_eq!(gone.wait_end(0), End::Fin);
    // Other endpoints and keys of the same service do not hurt those that stay.
    let more = Origin::plain();
    mesh.reload(
        &Config::default().service("kept", &[&kept, &more], "balance = \"round-robin\"").routes(routes),
    );
    for n in 0..4 {
        client.send(get(&format!("/kept/{n}")));
        assert_eq!(client.response().status(), 200);
    }
    // An endpoint that is gone is closed.
    mesh.reload(&Config::default().service("kept", &[&more], "").routes(routes));
    assert_eq!(kept.wait_end(0), End::Fin);
    client.send(get("/kept/last"));
    assert_eq!(client.response().text(), "/kept/last");
    drop(client);
    let seen = mesh.finish();
    assert_eq!(seen.failures.keys().collect::<Vec<_>>(), ["route.local.no_route"]);
    let (kept, more) = (kept.settle(), more.settle());
    assert_eq!((kept.len(), more.len()), (1, 1), "one connection each, over all reloads");
    assert_eq!(kept[0].requests().len() + more[0].requests().len(), 7);
}

#[test]
fn a_hundred_reloads_fail_no_request() {
    let origin = Origin::plain();
    let one = Config::new(&[&origin]);
    let other = one.clone().timeouts("idle = \"1m\"").forwarding("via = \"other\"");
    let mut mesh = one.start();
    let address = mesh.address;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut client = crate::support::client::Client::connect(address);
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) || count < 10 {
                    client.send(get("/x"));
                    assert_eq!(client.response().text(), "/x");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for n in 0..100 {
        mesh.reload(if n % 2 == 0 { &other } else { &one });
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let sent: usize = callers.into_iter().map(|c| c.join().unwrap()).sum();
    let seen = mesh.finish();
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    assert_eq!(seen.by_class[2] as usize, sent);
    assert!(origin.settle().len() <= 4, "no connection was dropped for a reload");
}

#[test]
fn a_connection_that_outlives_its_service_or_endpoint_is_closed_after_its_exchange() {
    let (gate, old) = Origin::gated();
    let new = Origin::plain();
    let config = Config::default().service("app", &[&old], "");
    let mut mesh = config.start();
    let mut client = mesh.client();
    client.send(get("/held"));
    old.wait_requests(1);
    // The endpoint goes while it is in use.
    mesh.reload(&Config::default().service("app", &[&new], ""));
    gate.open();
    assert_eq!(client.response().text(), "/held");
    assert_eq!(old.wait_end(0), End::Fin);
}
