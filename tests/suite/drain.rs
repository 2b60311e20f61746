//! The end of a shard: what is in flight is finished, the rest is told, and the thread ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringmesh::shard::link::Order;

use crate::support::client::Cut;
use crate::support::origin::{Origin, ok};
use crate::support::rig::Rig;
use crate::support::{End, Gate};

fn gated() -> (Arc<Gate>, Rig) {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let origin = Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            if request.target() == "/held" {
                theirs.pass();
            }
            visit.send(ok(&request));
        }
    });
    (gate, Rig::before(origin))
}

#[test]
fn what_is_in_flight_is_finished_and_told_that_it_is_the_last() {
    let (gate, rig) = gated();
    let mut held = rig.client();
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut streaming = rig.client();
    streaming.send("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel");
    rig.origin.wait_requests(1);
    rig.origin.wait_bytes(b"hel");
    rig.mesh.order(Order::Drain);
    rig.mesh.settle(1);
    gate.open();
    streaming.send("lo");
    for (client, want) in [(&mut held, "/held"), (&mut streaming, "/b")] {
        let response = client.response();
        assert_eq!((response.text().as_str(), response.one("connection").unwrap().as_str()), (want, "close"));
    }
    assert_eq!(streaming.end(), End::Fin);
    let link = Arc::clone(&rig.mesh.link);
    let done = rig.done();
    assert_eq!(done.requests.len(), 2, "no further request is taken");
    assert_eq!(link.vitals.ended.load(Ordering::Acquire), 1);
    assert!(done.seen.failures.is_empty());
}

#[test]
fn idle_connections_are_closed_and_new_ones_refused() {
    let (_, rig) = gated();
    let mut used = rig.client();
    used.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(used.response().text(), "/a");
    let mut unused = rig.client();
    rig.mesh.order(Order::Drain);
    assert_eq!((used.end(), unused.end()), (End::Fin, End::Fin));
    let address = rig.mesh.address;
    let done = rig.done();
    assert_eq!(done.requests.len(), 1);
    assert!(std::net::TcpStream::connect(address).is_err(), "the listener is closed");
}

#[test]
fn a_request_on_a_connection_that_was_idle_when_the_drain_began_is_served() {
    let (_, rig) = gated();
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response();
    rig.mesh.order(Order::Drain);
    // Sent before the connection is told to be over: served, and the last.
    client.send("GET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!((response.text(), response.one("connection").unwrap()), ("/b".into(), "close".into()));
    assert_eq!(client.end(), End::Fin);
}

#[test]
fn a_listener_can_be_given_up_alone() {
    let (_, rig) = gated();
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response();
    rig.mesh.order(Order::Unlisten("inbound".into()));
    rig.mesh.settle(1);
    // What is open stays.
    client.send("GET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!((response.text(), response.has("connection")), ("/b".into(), false));
}

#[test]
fn what_is_cut_when_the_drain_has_lasted_long_enough_is_told_and_recorded() {
    let origin = Origin::scripted(|visit| {
        while let Some(request) = visit.head() {
            match request.target() {
                "/half" => drop(visit.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")),
                "/old" => drop(visit.send("HTTP/1.1 200 OK\r\n\r\nhalf")),
                _ => {}
            }
            visit.drain();
        }
    });
    let rig = Rig::before_with(origin, |c| c.log("json"));
    let send = |bytes: &str| {
        let mut client = rig.client();
        client.send(bytes);
        client
    };
    let mut half = send("GET /half HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut old = send("GET /old HTTP/1.0\r\nHost: a\r\n\r\n");
    let mut unanswered = send("GET /unanswered HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut sending = send("POST /sending HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf");
    let mut head = send("GET /head HTTP/1.1\r\nHo");
    rig.origin.wait_connections(4);
    rig.origin.wait_bytes(b"half");
    for client in [&mut half, &mut old] {
        while !client.wait_bytes(1).ends_with(b"half") {
            let more = client.wait_bytes(1).len() + 1;
            client.wait_bytes(more);
        }
    }
    rig.mesh.order(Order::Drain);
    rig.mesh.order(Order::Cut);
    for (client, label) in [
        (&mut unanswered, "response.local.draining"),
        (&mut sending, "request.local.draining"),
        (&mut head, "head.local.draining"),
    ] {
        let response = client.response();
        assert_eq!((response.status(), response.one("x-ringmesh-failure").unwrap().as_str()), (503, label));
    }
    assert!(matches!(half.cut(), Cut::Truncated(_, End::Fin)));
    // Its end is the end of the connection: only a reset tells that it is cut.
    assert!(matches!(old.cut(), Cut::Truncated(_, End::Reset)));
    let seen = rig.done().seen;
    let mut lines: Vec<_> = seen
        .lines()
        .iter()
        .map(|line| format!("{} {} {}", line["target"], line["status"], line["failure"]).replace('"', ""))
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "/half 200 body.local.draining",
            "/head 503 head.local.draining",
            "/old 200 body.local.draining",
            "/sending 503 request.local.draining",
            "/unanswered 503 response.local.draining",
        ]
    );
    assert_eq!(seen.of_cause("draining"), 5);
}
