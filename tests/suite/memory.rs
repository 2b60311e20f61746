//! What is given up when memory is short, step by step: over real sockets, with the steps told by the test in place of control.

use ringmesh::shard::link::Pressure;

use crate::support::End;
use crate::support::client::Client;
use crate::support::http2::{END_STREAM, GOAWAY, NO_ERROR, Outcome, Raw, fields};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, ok};

const ROUTES: &str = "[[route]]\nservice = \"app\"\n[[route]]\npath_prefix = \"/later\"\nservice = \"app\"\npriority = \
                      \"sheddable\"\n[[route]]\npath_prefix = \"/now\"\nservice = \"app\"\npriority = \"critical\"\n";

fn mesh(app: &Origin) -> Mesh {
    Config::new(&[app]).routes(ROUTES).log("json").start()
}

fn ask(client: &mut Client, path: &str) -> u16 {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.response().status()
}

#[test]
fn what_gives_way_to_others_is_refused_first_and_who_is_connected_stays() {
    let app = Origin::plain();
    let mesh = mesh(&app);
    let mut client = mesh.client();
    let mut raw = Raw::connect(mesh.address);
    let mut stream = 1;
    let paths = ["/later", "/", "/now"];
    let steps = [
        (Pressure::None, [200, 200, 200]),
        (Pressure::Idle, [200, 200, 200]),
        (Pressure::Connections, [200, 200, 200]),
        (Pressure::Sheddable, [503, 200, 200]),
        (Pressure::Default, [503, 503, 200]),
        (Pressure::All, [503, 503, 503]),
        (Pressure::None, [200, 200, 200]),
    ];
    for (step, want) in steps {
        mesh.link.press(step);
        assert_eq!(paths.map(|path| ask(&mut client, path)), want, "{step:?} by HTTP/1.1");
        let by_http2 = paths.map(|path| {
            raw.head(END_STREAM, stream, &fields("GET", path, &[]));
            stream += 2;
            match raw.outcome(stream - 2) {
                Outcome::Status(status) => status,
                other => panic!("{step:?} {path}: {other:?}"),
            }
        });
        assert_eq!(by_http2, want, "{step:?} by HTTP/2");
    }
    // A body that was not asked for does not hide the answer.
    mesh.link.press(Pressure::All);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    let refused = client.response();
    assert_eq!(refused.one("x-ringmesh-failure").as_deref(), Some("admit.local.overloaded"));
    drop((client, raw));
    let seen = mesh.finish();
    assert_eq!(seen.failures["admit.local.overloaded"], 13, "{:?}", seen.failures);
    assert_eq!(seen.by_class[2], 30);
}

#[test]
fn what_is_in_flight_is_not_touched() {
    let (gate, app) = Origin::gated();
    let mesh = mesh(&app);
    let mut client = mesh.client();
    client.send("GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/later", &[]));
    app.wait_requests(2);
    mesh.link.press(Pressure::All);
    mesh.settle(1);
    gate.open();
    assert_eq!(client.response().text(), "/later");
    assert_eq!(raw.body(1), (b"/later".to_vec(), None));
    drop((client, raw));
    let seen = mesh.finish();
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
}

#[test]
fn new_connections_are_closed_at_once_until_there_is_memory_again() {
    let app = Origin::plain();
    let mut mesh = mesh(&app);
    let mut before = mesh.client();
    assert_eq!(ask(&mut before, "/"), 200);
    mesh.link.press(Pressure::Connections);
    for _ in 0..3 {
        // Closed before anything is read.
        assert!(matches!(mesh.client().end(), End::Fin | End::Reset));
    }
    assert_eq!(ask(&mut before, "/"), 200);
    mesh.link.press(Pressure::Idle);
    let mut after = mesh.client();
    assert_eq!(ask(&mut after, "/"), 200);
    let totals = mesh.wait_totals(|totals| totals.memory_refused > 0);
    assert_eq!((totals.memory_refused, totals.downstream_accepted, totals.downstream_refused), (3, 2, 0));
    drop((before, after));
    mesh.finish();
}

#[test]
fn a_shard_takes_no_more_than_its_room_until_control_has_looked_again() {
    let app = Origin::plain();
    let mesh = mesh(&app);
    mesh.link.looked(Some(100 * 1024));
    let mut kept: Vec<Client> = Vec::new();
    let mut closed = 0;
    // Each caller and its connection to the service are 16 KiB.
    for _ in 0..20 {
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        match client.try_response(false) {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                kept.push(client);
            }
            Err(_) => closed += 1,
        }
    }
    assert!((4..=12).contains(&kept.len()), "{} of 20 were let in", kept.len());
    assert_eq!(kept.len() + closed, 20);
    assert_eq!(ask(&mut kept[0], "/"), 200, "who is there goes on");
    // It was not so bad.
    mesh.link.looked(Some(1 << 30));
    let mut after = mesh.client();
    assert_eq!(ask(&mut after, "/"), 200);
    // No ceiling any more.
    mesh.link.looked(None);
    let more: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = mesh.client();
            assert_eq!(ask(&mut client, "/"), 200);
            client
        })
        .collect();
    drop((kept, after, more));
    mesh.finish();
}

#[test]
fn what_lies_idle_is_closed_on_both_sides_and_what_is_used_is_not() {
    let gate = std::sync::Arc::new(crate::support::Gate::default());
    let theirs = std::sync::Arc::clone(&gate);
    let app = Origin::answering(move |request| {
        if request.target() == "/slow" {
            theirs.pass();
        }
        ok(request)
    });
    let mut mesh = mesh(&app);
    let mut used = mesh.client();
    used.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    app.wait_requests(1);
    let mut idle = mesh.client();
    assert_eq!(ask(&mut idle, "/"), 200);
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    let totals = mesh.wait_totals(|totals| totals.upstream_idle > 0);
    assert_eq!(totals.memory_closed, 0);

    mesh.link.press(Pressure::Idle);
    // Each has to be quiet for a second.
    assert_eq!(idle.end(), End::Fin);
    assert_eq!(raw.until(GOAWAY).code(), NO_ERROR);
    while raw.event().is_some() {}
    // Buffers are held by the one exchange in flight; none is kept ready.
    let totals = mesh.wait_totals(|totals| {
        (totals.upstream_idle, totals.downstream_open) == (0, 1) && totals.buffer_bytes <= 4 * 16_384
    });
    assert!(totals.memory_closed >= 3, "{totals:?}");
    gate.open();
    assert_eq!(used.response().text(), "/slow");
    drop((used, raw));
    mesh.finish();
}

#[test]
fn a_request_that_is_held_up_on_purpose_is_not_when_it_is_refused() {
    let app = Origin::plain();
    let routes = "[[route]]\nservice = \"app\"\nfault = { delay = { fixed = \"5m\" } }\n";
    let mesh = Config::new(&[&app]).routes(routes).start();
    let mut client = mesh.client();
    let mut raw = Raw::connect(mesh.address);
    // Both are connected when it begins.
    raw.settle();
    mesh.settle(1);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nx: ");
    mesh.link.press(Pressure::All);
    client.send("y\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    assert_eq!(raw.outcome(1), Outcome::Status(503));
    drop((client, raw));
    mesh.finish();
}
