//! What is given up when memory is short, step by step: over real sockets, with the steps told by the test in place of control.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringmesh::shard::buffers::Buffers;
use ringmesh::shard::link::Pressure;

use crate::support::client::Client;
use crate::support::http2::{DATA, END_STREAM, GOAWAY, HEADERS, NO_ERROR, Outcome, Raw, RawService, fields};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, ok};
use crate::support::{End, Gate};

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

/// Those of the exchanges that wait, and a few for connections that are shared. The buffer that a request was written from, or that the
/// answer will be written to, would be one more for each.
#[test]
fn who_waits_for_a_service_of_another_version_holds_no_buffer_to_write_with() {
    const WAITING: usize = 12;
    let in_use = |mesh: &mut Mesh, each: usize| {
        let [least, most] =
            [WAITING * each, WAITING * each + WAITING / 2].map(|n| (n * Buffers::SMALL) as u64);
        mesh.wait_totals(|totals| {
            totals.exchanges_open == WAITING as u64 && (least..=most).contains(&totals.buffer_bytes)
        });
    };

    // By HTTP/2 to HTTP/1.1: one to read the answer into.
    let (gate, app) = Origin::gated();
    let mut mesh = mesh(&app);
    let mut raw = Raw::connect(mesh.address);
    for n in 0..WAITING as u32 {
        raw.head(END_STREAM, n * 2 + 1, &fields("GET", "/", &[]));
    }
    app.wait_requests(WAITING);
    in_use(&mut mesh, 1);
    gate.open();
    for _ in 0..WAITING {
        while raw.until(DATA).flags & END_STREAM == 0 {}
    }
    drop(raw);
    mesh.finish();

    // By HTTP/1.1 to HTTP/2: what was read, and what is to be sent again if need be.
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let service = RawService::scripted(move |_, raw| {
        let waiting: Vec<u32> = (0..WAITING).map_while(|_| Some(raw.request()?.0)).collect();
        theirs.pass();
        for stream in waiting {
            raw.head(END_STREAM, stream, &[(":status", "200")]);
        }
        raw.request();
    });
    let mut mesh =
        Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"\n").start();
    let mut clients: Vec<Client> = (0..WAITING).map(|_| mesh.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    in_use(&mut mesh, 2);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    drop(clients);
    mesh.finish();
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
fn who_was_let_in_counts_with_what_the_answer_will_take_until_it_comes() {
    const ROOM: u64 = 64 * 1024;
    let (gate, app) = Origin::gated();
    let mesh = mesh(&app);
    let mut raw = Raw::connect(mesh.address);
    let mut waiting: Vec<Client> = (0..3).map(|_| mesh.client()).collect();
    for (n, client) in waiting.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        raw.head(END_STREAM, 1 + 2 * n as u32, &fields("GET", "/", &[]));
    }
    // In use, and so not closed.
    let mut late = mesh.client();
    late.send("GET /now HTTP/1.1\r\nHost: a\r\nx: ");
    app.wait_requests(6);
    // Control has looked, and nothing was taken since: six answers are more than there is room for, whoever asks how.
    mesh.link.looks();
    mesh.link.looked(Some(ROOM));
    late.send("y\r\n\r\n");
    assert_eq!(late.response().status(), 503);
    raw.head(END_STREAM, 7, &fields("GET", "/now", &[]));
    assert_eq!(raw.outcome(7), Outcome::Status(503));
    // They are answered, and as much room is enough.
    gate.open();
    for client in &mut waiting {
        assert_eq!(client.response().status(), 200);
        assert_eq!(raw.until(HEADERS).status(), 200);
    }
    mesh.link.looks();
    mesh.link.looked(Some(ROOM));
    assert_eq!(ask(&mut waiting[0], "/now"), 200);
    raw.head(END_STREAM, 9, &fields("GET", "/now", &[]));
    assert_eq!(raw.outcome(9), Outcome::Status(200));
    drop((waiting, late, raw));
    mesh.finish();
}

#[test]
fn what_is_taken_while_control_looks_counts_as_taken_since() {
    let app = Origin::plain();
    let mesh = mesh(&app);
    let mut first = mesh.client();
    mesh.link.looked(Some(1 << 30));
    assert_eq!(ask(&mut first, "/"), 200);
    // In use, and so not closed.
    first.send("GET / HTTP/1.1\r\nHost: a\r\nx: ");
    mesh.link.looks();
    // Between the beginning of the look and its end.
    let more: Vec<Client> = (0..16)
        .map(|_| {
            let mut client = mesh.client();
            assert_eq!(ask(&mut client, "/"), 200);
            client
        })
        .collect();
    mesh.link.looked(Some(64 * 1024));
    first.send("y\r\n\r\n");
    assert_eq!(first.response().status(), 503, "so many callers are more than the room");
    mesh.link.looks();
    mesh.link.looked(Some(64 * 1024));
    assert_eq!(ask(&mut first, "/"), 200, "those were seen");
    drop((first, more));
    mesh.finish();
}

const PART: usize = 200_000;

/// Sends a body in four parts, one gate between two.
fn in_parts(gates: &Arc<[Gate; 3]>) -> Origin {
    let gates = Arc::clone(gates);
    Origin::scripted(move |visit| {
        while visit.request().is_some() {
            visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 4 * PART));
            for gate in &*gates {
                visit.send(vec![b'x'; PART]);
                gate.pass();
            }
            visit.send(vec![b'x'; PART]);
        }
    })
}

const LARGE: u64 = Buffers::LARGE as u64;

#[test]
fn a_long_answer_goes_on_by_way_of_a_small_buffer_while_memory_is_short() {
    for by_http2 in [false, true] {
        let gates = Arc::default();
        let app = in_parts(&gates);
        let mut mesh = mesh(&app);
        let (mut client, mut raw) = (mesh.client(), Raw::connect_with(mesh.address, &[(4, 1 << 30)]));
        if by_http2 {
            raw.frame(8, 0, 0, &(1_u32 << 30).to_be_bytes());
            raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
        } else {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        mesh.wait_totals(|totals| totals.buffer_bytes >= LARGE);
        mesh.link.press(Pressure::Idle);
        gates[0].open();
        mesh.wait_totals(|totals| totals.buffer_bytes < LARGE);
        mesh.link.press(Pressure::None);
        gates[1].open();
        mesh.wait_totals(|totals| totals.buffer_bytes >= LARGE);
        gates[2].open();
        let body = if by_http2 { raw.body(1).0 } else { client.response().body };
        assert_eq!(body.len(), 4 * PART);
        drop((client, raw));
        mesh.finish();
    }
}

#[test]
fn a_long_request_goes_on_by_way_of_a_small_buffer_while_memory_is_short() {
    let app = Origin::plain();
    let mut mesh = mesh(&app);
    let mut client = mesh.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 3 * PART));
    client.send(vec![b'x'; PART]);
    mesh.wait_totals(|totals| totals.buffer_bytes >= LARGE);
    mesh.link.press(Pressure::Idle);
    client.send(vec![b'x'; PART]);
    mesh.wait_totals(|totals| totals.buffer_bytes < LARGE);
    client.send(vec![b'x'; PART]);
    assert_eq!(client.response().status(), 200);
    assert_eq!(app.wait_requests(1)[0].body.len(), 3 * PART);
    drop(client);
    mesh.finish();
}

#[test]
fn an_answer_is_read_by_the_page_while_memory_is_short() {
    let app = Origin::answering(|_| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {PART}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + PART, b'x');
        answer
    });
    let mesh = mesh(&app);
    mesh.link.press(Pressure::Idle);
    // What was read at once is a frame of its own.
    let mut raw = Raw::connect_with(mesh.address, &[(4, 1 << 30)]);
    raw.frame(8, 0, 0, &(1_u32 << 30).to_be_bytes());
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    let (mut whole, mut ended) = (0, false);
    while !ended {
        let frame = raw.until(DATA);
        assert!(frame.payload.len() <= 4096, "{}", frame.payload.len());
        whole += frame.payload.len();
        ended = frame.flags & END_STREAM != 0;
    }
    assert_eq!(whole, PART);
    drop(raw);
    mesh.finish();
}

/// More than the kernel holds of two connections: whoever sends so much waits for the reader.
const FLOOD: usize = 32 << 20;

#[test]
fn a_tunnel_goes_on_by_way_of_small_buffers_while_memory_is_short() {
    let gates = Arc::<[Gate; 3]>::default();
    let theirs = Arc::clone(&gates);
    let app = Origin::scripted(move |visit| {
        if visit.request().is_none() {
            return;
        }
        visit.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: \
             s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        for gate in &*theirs {
            gate.pass();
            let mut left = FLOOD;
            while left > 0 {
                let came = visit.bytes(left.min(65_536)).len();
                assert!(came > 0, "{left} octets did not come");
                left -= came;
            }
        }
    });
    let mut mesh = mesh(&app);
    let mut caller = std::net::TcpStream::connect(mesh.address).unwrap();
    caller
        .write_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    let mut answer = [0; 12];
    caller.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    let sends = std::thread::spawn(move || {
        caller.write_all(&vec![b'x'; 3 * FLOOD]).unwrap();
        caller
    });
    // The service reads nothing: what is on its way stays in the buffer that it was read to.
    mesh.wait_totals(|totals| totals.buffer_bytes >= LARGE);
    mesh.link.press(Pressure::Idle);
    gates[0].open();
    mesh.wait_totals(|totals| totals.buffer_bytes < LARGE && totals.buffer_bytes > 0);
    mesh.link.press(Pressure::None);
    gates[1].open();
    mesh.wait_totals(|totals| totals.buffer_bytes >= LARGE);
    gates[2].open();
    drop(sends.join().unwrap());
    mesh.finish();
}

#[test]
fn a_body_that_needs_a_large_buffer_is_not_kept_for_another_attempt_while_memory_is_short() {
    // 16 KiB are what every exchange may have.
    for (step, length, want) in [
        (Pressure::None, 40_000, (200, 2)),
        (Pressure::Idle, 40_000, (503, 1)),
        (Pressure::Idle, 12_000, (200, 2)),
    ] {
        let asked = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&asked);
        let app = Origin::answering(move |request| match theirs.fetch_add(1, Ordering::AcqRel) {
            0 => b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
            _ => ok(request),
        });
        let keys = "retry = { backoff_base = \"0s\", body_bytes_max = \"100KiB\" }\n";
        let mesh = Config::default().service("app", &[&app], keys).log("json").start();
        mesh.link.press(step);
        let mut client = mesh.client();
        client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        client.send(vec![b'x'; length]);
        let status = client.response().status();
        assert_eq!((status, asked.load(Ordering::Acquire)), want, "{step:?}, {length} octets");
        drop(client);
        mesh.finish();
    }
}

#[test]
fn what_lies_idle_is_closed_on_both_sides_and_what_is_used_is_not() {
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
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
