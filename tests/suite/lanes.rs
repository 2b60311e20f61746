//! HTTP/1.1 over streams of a connection between two ringmeshes: what goes over a lane, what comes of it when the other end does not do as it
//! should, and who may ask for one. One end is a proxy, the other writes its own frames; or both are proxies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringmesh::identity::{ALPN_MESH, ALPN_MESH_WITHOUT_LANES, IdMatch};
use ringmesh::snapshot::ListenerTls;
use ringmesh::upstream::spec::Tls;

use crate::support::authority::{Authority, TLS13};
use crate::support::client::Client;
use crate::support::http2::{
    ACK, CANCEL, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, GOAWAY, HEADERS, NO_ERROR, PING,
    REFUSED_STREAM, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block, fields, frame,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, Visit, ok};
use crate::support::{Gate, Watched};

const NEAR: &str = "spiffe://mesh.local/ns/shop/sa/near";
const FAR: &str = "spiffe://mesh.local/ns/shop/sa/far";
const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// A far end that writes its own frames.
struct Peer<'v> {
    visit: &'v mut Visit,
}

impl<'v> Peer<'v> {
    fn begin(visit: &'v mut Visit, settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        visit.bytes(24);
        visit.send(frame(SETTINGS, 0, 0, &payload));
        Self { visit }
    }

    /// The next frame of a stream, or that of a connection that ends; housekeeping is done.
    fn next(&mut self) -> Option<Frame> {
        loop {
            let head = self.visit.bytes(9);
            let [a, b, c, kind, flags, stream @ ..]: [u8; 9] = head.try_into().ok()?;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let payload = self.visit.bytes(length);
            let frame = Frame { kind, flags, stream: u32::from_be_bytes(stream), payload };
            match kind {
                SETTINGS if flags & ACK == 0 => {
                    self.send(SETTINGS, ACK, 0, b"");
                }
                PING if flags & ACK == 0 => {
                    self.send(PING, ACK, 0, &frame.payload);
                }
                SETTINGS | PING | WINDOW_UPDATE => {}
                _ => return Some(frame),
            }
        }
    }

    /// Takes one frame; whether it is that.
    fn is_answer_to_ping(&mut self) -> bool {
        let head = self.visit.bytes(9);
        self.visit.bytes(usize::from(head[1]) << 8 | usize::from(head[2]));
        head[3] == PING && head[4] & ACK != 0
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.visit.send(frame(kind, flags, stream, payload));
    }

    fn agree(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]));
    }

    /// The next request over a lane, all of it in one frame; its lane.
    fn request(&mut self) -> Option<(u32, String)> {
        loop {
            let frame = self.next()?;
            match frame.kind {
                HEADERS => self.agree(frame.stream),
                DATA if !frame.payload.is_empty() => {
                    return Some((frame.stream, String::from_utf8(frame.payload).unwrap()));
                }
                _ => {}
            }
        }
    }

    fn answer(&mut self, lane: u32) {
        self.send(DATA, 0, lane, ANSWER);
    }

    fn serve_one(&mut self) {
        let (lane, _) = self.request().unwrap();
        self.answer(lane);
    }

    /// The far end of [`Gates::ask`]: the lanes of the two.
    fn serve_two(&mut self, gates: &Gates) -> (u32, u32) {
        self.serve_one();
        let (first, _) = self.request().unwrap();
        gates.asked.open();
        let (second, _) = self.request().unwrap();
        self.answer(second);
        gates.answered.pass();
        self.answer(first);
        (first, second)
    }
}

/// Two callers at the same time, in an order that is known: whose request comes first is answered last.
struct Gates {
    asked: Arc<Gate>,
    answered: Arc<Gate>,
}

impl Gates {
    /// For either end.
    fn two() -> (Self, Self) {
        let [asked, answered] = [(); 2].map(|()| Arc::new(Gate::default()));
        (Self { asked: Arc::clone(&asked), answered: Arc::clone(&answered) }, Self { asked, answered })
    }

    fn ask(&self, near: &Mesh) -> [Client; 2] {
        let [mut a, mut b] = [near.client(), near.client()];
        // So that it is known what the other end speaks: else each would open a connection.
        a.send(GET);
        assert_eq!(a.response().status(), 200);
        a.send(GET);
        self.asked.pass();
        b.send(GET);
        assert_eq!(b.response().status(), 200);
        self.answered.open();
        assert_eq!(a.response().status(), 200);
        [a, b]
    }
}

/// A proxy before that end, which runs `script` for each connection.
fn near(
    keys: &str,
    alpn: &[&[u8]],
    script: impl Fn(usize, &mut Visit) + Send + Sync + 'static,
) -> (Mesh, Origin) {
    let authority = Authority::new("mesh");
    let mut server = authority.mutual_server(&authority.workload(FAR), TLS13);
    server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let connections = AtomicUsize::new(0);
    let far = Origin::tls(server, move |visit| script(connections.fetch_add(1, Ordering::SeqCst), visit));
    (before(&authority, keys, &far.endpoint).start(), far)
}

fn before(authority: &Authority, keys: &str, endpoint: &str) -> Config {
    let ours =
        authority.credentials(NEAR, &authority.workload(NEAR), &[ALPN_MESH, ALPN_MESH_WITHOUT_LANES, b"h2"]);
    Config::default().service_at("app", &[endpoint], keys).change(move |snapshot| {
        Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(vec![IdMatch::parse(FAR).unwrap()]);
        snapshot.identity = Some(Arc::clone(&ours));
    })
}

/// A proxy that may be asked for lanes, before a service, and what to call it with.
fn far(origin: &Origin, more: impl FnOnce(Config) -> Config) -> (Mesh, Authority) {
    let authority = Authority::new("mesh");
    let ours = authority.credentials(FAR, &authority.workload(FAR), &[ALPN_MESH, ALPN_MESH_WITHOUT_LANES]);
    let config = more(Config::new(&[origin]).logged()).change(move |snapshot| {
        snapshot.listeners[0].tls = ListenerTls::Strict;
        snapshot.identity = Some(Arc::clone(&ours));
    });
    (config.start(), authority)
}

/// A caller of such a proxy that writes its own frames.
struct Caller(Client);

impl Caller {
    fn of(far: &Mesh, authority: &Authority, alpn: &[u8]) -> Self {
        let mut config = authority.anybody_client(Some(&authority.workload(NEAR)), TLS13);
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut client = Client::connect(far.address).tls(config, "far.test");
        client.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, b"")].concat());
        Self(client)
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) {
        self.0.send(frame(kind, flags, stream, payload.as_ref()));
    }

    fn ask(&mut self, stream: u32) {
        let head = fields("POST", "/", &[("ringmesh-origin", "lane")]);
        self.send(HEADERS, END_HEADERS, stream, block(&head));
    }

    /// The next frame of a stream, or that of a connection that ends.
    fn next(&mut self) -> Frame {
        loop {
            let [a, b, c, kind, flags, stream @ ..]: [u8; 9] = self.0.take(9).try_into().unwrap();
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let payload = self.0.take(length);
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, b""),
                PING if flags & ACK == 0 => self.send(PING, ACK, 0, payload),
                SETTINGS | PING | WINDOW_UPDATE => {}
                _ => return Frame { kind, flags, stream: u32::from_be_bytes(stream), payload },
            }
        }
    }

    /// What comes over a lane until it is so long, or the lane ends; and how it ended, if it did.
    fn text(&mut self, lane: u32, until: &str) -> (String, Option<u8>) {
        let mut text = String::new();
        while !text.ends_with(until) {
            let frame = self.next();
            assert_eq!(frame.stream, lane, "{frame:?}");
            match frame.kind {
                HEADERS => assert_eq!(frame.status(), 200),
                DATA => text.push_str(std::str::from_utf8(&frame.payload).unwrap()),
                _ => return (text, Some(frame.kind)),
            }
            if frame.flags & END_STREAM != 0 {
                return (text, Some(frame.kind));
            }
        }
        (text, None)
    }
}

#[test]
fn requests_of_several_callers_go_over_one_lane_one_after_the_other() {
    let (near, far) = near("", &[ALPN_MESH], |_, visit| {
        let mut peer = Peer::begin(visit, &[]);
        for request in [GET, POST, GET, POST] {
            let (lane, came) = peer.request().unwrap();
            assert_eq!(lane, 1);
            assert!(came.starts_with(request.split("\r\n").next().unwrap()), "{came}");
            assert!(came.ends_with(request.rsplit("\r\n\r\n").next().unwrap()), "{came}");
            assert!(!came.contains("ringmesh-origin"), "{came}");
            peer.answer(lane);
        }
        peer.visit.drain();
    });
    for _ in 0..2 {
        let mut client = near.client();
        for request in [GET, POST] {
            client.send(request);
            assert_eq!(client.response().text(), "ok");
        }
    }
    let seen = near.finish();
    assert_eq!((seen.failures.len(), seen.totals.replays), (0, 0));
    drop(far);
}

#[test]
fn requests_at_the_same_time_have_a_lane_each() {
    let (gates, theirs) = Gates::two();
    let (near, _far) = near("", &[ALPN_MESH], move |_, visit| {
        let mut peer = Peer::begin(visit, &[(MAX_CONCURRENT_STREAMS, 100)]);
        let (first, second) = peer.serve_two(&theirs);
        assert_ne!(first, second);
        // The one that was used last is used first.
        assert_eq!(peer.request().unwrap().0, first);
        peer.answer(first);
        peer.visit.drain();
    });
    let [mut a, b] = gates.ask(&near);
    a.send(GET);
    assert_eq!(a.response().status(), 200);
    drop((a, b));
    assert!(near.finish().failures.is_empty());
}

#[test]
fn what_is_no_request_for_a_lane_has_a_stream_of_its_own() {
    // Each with what of it comes in DATA.
    let requests = [
        ("GET /a HTTP/1.0\r\nHost: a\r\n\r\n", ""),
        ("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "hi"),
        (
            "POST /a HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 2\r\n\r\nhi",
            "hi",
        ),
    ];
    let (near, _far) = near("", &[ALPN_MESH], move |_, visit| {
        let mut peer = Peer::begin(visit, &[]);
        for (_, body) in requests {
            let (mut came, mut is_over) = (Vec::new(), false);
            let mut stream = 0;
            while !is_over {
                let frame = peer.next().unwrap();
                is_over = frame.flags & END_STREAM != 0;
                stream = frame.stream;
                if frame.kind == DATA {
                    came.extend(frame.payload);
                }
            }
            assert_eq!(came, body.as_bytes());
            peer.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "204")]));
        }
        peer.visit.drain();
    });
    for (request, _) in requests {
        let mut client = near.client();
        client.send(request);
        assert!(matches!(client.response().status(), 200 | 204), "{request}");
    }
    near.finish();
}

#[test]
fn a_request_for_which_the_window_has_no_room_does_not_wait_in_a_lane() {
    let (near, _far) = near("", &[ALPN_MESH], |_, visit| {
        let mut peer = Peer::begin(visit, &[(INITIAL_WINDOW_SIZE, 500)]);
        peer.serve_one();
        // It ends with its head.
        let stream = loop {
            let frame = peer.next().unwrap();
            assert_ne!(frame.kind, DATA, "{frame:?}");
            if frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                break frame.stream;
            }
        };
        peer.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "204")]));
        peer.visit.drain();
    });
    let mut client = near.client();
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(500)));
    assert_eq!(client.response().status(), 204);
    drop(client);
    assert!(near.finish().failures.is_empty());
}

#[test]
fn who_does_not_know_lanes_is_asked_for_none() {
    let (near, _far) = near("", &[ALPN_MESH_WITHOUT_LANES], |_, visit| {
        let mut peer = Peer::begin(visit, &[]);
        let frame = peer.next().unwrap();
        assert_eq!((frame.kind, frame.flags & END_STREAM), (HEADERS, END_STREAM));
        peer.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &block(&[(":status", "204")]));
        peer.visit.drain();
    });
    let mut client = near.client();
    client.send(GET);
    assert_eq!(client.response().status(), 204);
    drop(client);
    assert!(near.finish().failures.is_empty());
}

#[test]
fn a_request_of_which_the_other_end_took_nothing_is_sent_again_whatever_it_is() {
    for by_goaway in [false, true] {
        let (near, _far) = near("", &[ALPN_MESH], move |number, visit| {
            let mut peer = Peer::begin(visit, &[]);
            let mut refused = number > 0;
            while let Some(frame) = peer.next() {
                if frame.kind == DATA && !frame.payload.is_empty() && !std::mem::replace(&mut refused, true) {
                    if by_goaway {
                        peer.send(GOAWAY, 0, 0, &[0_u32.to_be_bytes(), NO_ERROR.to_be_bytes()].concat());
                    } else {
                        peer.send(RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes());
                    }
                } else if frame.kind == DATA && !frame.payload.is_empty() {
                    assert!(frame.payload.starts_with(b"POST /a"));
                    peer.agree(frame.stream);
                    peer.answer(frame.stream);
                }
            }
        });
        let mut client = near.client();
        client.send(POST);
        assert_eq!(client.response().text(), "ok", "by GOAWAY: {by_goaway}");
        drop(client);
        let seen = near.finish();
        assert_eq!((seen.failures.len(), seen.totals.replays), (0, 1), "by GOAWAY: {by_goaway}");
    }
}

#[test]
fn a_lane_that_is_cut_in_the_middle_of_an_answer_cuts_the_answer_and_no_other() {
    let (near, _far) = near("", &[ALPN_MESH], |_, visit| {
        let mut peer = Peer::begin(visit, &[]);
        let (cut, _) = peer.request().unwrap();
        let (whole, _) = peer.request().unwrap();
        peer.send(DATA, 0, cut, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal");
        peer.send(RST_STREAM, 0, cut, &CANCEL.to_be_bytes());
        peer.answer(whole);
        // And the rest of the connection is in order.
        let (next, _) = peer.request().unwrap();
        assert_eq!(next, whole);
        peer.answer(next);
        peer.visit.drain();
    });
    let [mut a, mut b] = [near.client(), near.client()];
    a.send(GET);
    near.wait_open(2);
    b.send(GET);
    assert_eq!(
        [a.try_response(false).is_ok(), b.try_response(false).is_ok()].iter().filter(|ok| **ok).count(),
        1
    );
    let mut c = near.client();
    c.send(GET);
    assert_eq!(c.response().text(), "ok");
    drop((a, b, c));
    let seen = near.finish();
    assert_eq!(seen.failures.len(), 1);
}

#[test]
fn a_lane_that_was_ended_at_rest_or_says_what_it_was_not_asked_is_not_used_again() {
    for (flags, payload) in [(END_STREAM, &b""[..]), (0, ANSWER)] {
        let [at_rest, ended] = [(); 2].map(|()| Arc::new(Gate::default()));
        let theirs = (Arc::clone(&at_rest), Arc::clone(&ended));
        let (near, _far) = near("", &[ALPN_MESH], move |_, visit| {
            let mut peer = Peer::begin(visit, &[]);
            let (lane, _) = peer.request().unwrap();
            peer.answer(lane);
            theirs.0.pass();
            peer.send(DATA, flags, lane, payload);
            peer.send(PING, 0, 0, &[7; 8]);
            // When that is answered, what was sent before has been read.
            while !peer.is_answer_to_ping() {}
            theirs.1.open();
            let (other, _) = peer.request().unwrap();
            assert_ne!(other, lane);
            peer.answer(other);
            peer.visit.drain();
        });
        let mut client = near.client();
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
        at_rest.open();
        ended.pass();
        client.send(GET);
        assert_eq!(client.response().text(), "ok", "{payload:?}");
        drop(client);
        assert!(near.finish().failures.is_empty());
    }
}

#[test]
fn a_lane_is_served_as_a_connection_of_its_caller() {
    let origin = Origin::plain();
    let (far, authority) = far(&origin, |config| config);
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    caller.ask(1);
    // Two at once, in three pieces.
    let both = format!("{GET}{}", POST.replace("/a", "/b"));
    for piece in both.as_bytes().chunks(both.len() / 3 + 1) {
        caller.send(DATA, 0, 1, piece);
    }
    let (text, _) = caller.text(1, "/b");
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\n\r\n/aHTTP/1.1 200 OK\r\n"),
        "{text}"
    );
    // Beside it, a request as a stream of its own.
    caller.send(HEADERS, END_HEADERS | END_STREAM, 3, block(&fields("GET", "/c", &[])));
    while caller.next().flags & END_STREAM == 0 {}
    caller.send(DATA, END_STREAM, 1, b"");
    assert_eq!(caller.text(1, "never").1, Some(DATA), "it says that it has ended, too");
    drop(caller);
    let seen = far.finish();
    assert!(seen.failures.is_empty() && seen.connection_failures.is_empty());
    let lines: Vec<_> = seen.lines().iter().map(|l| (l["target"].clone(), l["protocol"].clone())).collect();
    assert_eq!(
        lines,
        [("/a", "HTTP/1.1"), ("/b", "HTTP/1.1"), ("/c", "HTTP/2")].map(|(t, p)| (t.into(), p.into()))
    );
    for request in origin.settle().iter().flat_map(|came| came.requests()) {
        let cert = request.one("x-forwarded-client-cert").unwrap();
        assert!(cert.contains(&format!("URI={NEAR}")), "{cert}");
        assert_eq!(request.one("x-forwarded-proto").as_deref(), Some("https"));
        assert!(!request.has("ringmesh-origin"));
    }
}

#[test]
fn nobody_but_a_ringmesh_gets_a_lane() {
    let forged = "GET /forged HTTP/1.1\r\nHost: a\r\n\r\n";
    // A ringmesh that does not know them, or somebody who speaks HTTP/2 with the mesh.
    let origin = Origin::plain();
    let (far, authority) = far(&origin, |config| config.forwarding("via = \"far\"\n"));
    let mut caller = Caller::of(&far, &authority, ALPN_MESH_WITHOUT_LANES);
    caller.ask(1);
    caller.send(DATA, END_STREAM, 1, forged);
    while caller.next().flags & END_STREAM == 0 {}
    drop(caller);
    // Somebody behind a proxy that may have them.
    let near = before(&authority, "", &far.address.to_string()).start();
    let mut raw = Raw::connect(near.address);
    raw.head(0, 1, &fields("POST", "/", &[("ringmesh-origin", "lane")]));
    raw.frame(DATA, END_STREAM, 1, forged.as_bytes());
    raw.body(1);
    let mut client = near.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nringmesh-origin: lane\r\nContent-Length: {}\r\n\r\n{forged}",
        forged.len()
    ));
    assert_eq!(client.response().status(), 200);
    drop((raw, client));
    near.finish();
    far.finish();
    let requests: Vec<_> = origin.settle().iter().flat_map(|came| came.requests()).collect();
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert_eq!((request.method(), request.target(), request.text().as_str()), ("POST", "/", forged));
    }
}

#[test]
fn half_a_head_is_waited_for_no_longer_on_a_lane() {
    let origin = Origin::plain();
    let (far, authority) = far(&origin, |config| config.timeouts("head = \"150ms\"\n"));
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    caller.ask(1);
    caller.send(DATA, 0, 1, b"GET / HTTP/1.1\r\nHo");
    let (text, end) = caller.text(1, "never");
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert_eq!(end, Some(DATA));
    // Nothing at all is no reason to end one.
    caller.ask(3);
    caller.send(DATA, 0, 3, GET);
    caller.text(3, "/a");
    drop(caller);
    assert_eq!(far.finish().of_cause("timeout"), 1);
}

#[test]
fn nonsense_on_a_lane_is_answered_and_ends_it_and_no_other() {
    let origin = Origin::plain();
    let (far, authority) = far(&origin, |config| config);
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    caller.ask(1);
    caller.send(DATA, 0, 1, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n");
    let (text, end) = caller.text(1, "never");
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    assert_eq!(end, Some(DATA));
    caller.ask(3);
    // The preface of HTTP/2 is none here.
    caller.send(DATA, 0, 3, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let (text, _) = caller.text(3, "never");
    assert!(text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 505"), "{text}");
    caller.ask(5);
    caller.send(DATA, 0, 5, GET);
    caller.text(5, "/a");
    drop(caller);
    assert_eq!(far.finish().failures.len(), 2);
}

#[test]
fn lanes_are_bounded_as_all_streams_are() {
    let origin = Origin::plain();
    let (far, authority) = far(&origin, |config| config.keys("[http2]\nstreams_max = 2\n"));
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    for lane in [1, 3, 5] {
        caller.ask(lane);
    }
    let mut refused = None;
    while refused.is_none() {
        let frame = caller.next();
        refused = (frame.kind == RST_STREAM).then(|| (frame.stream, frame.code()));
    }
    assert_eq!(refused, Some((5, REFUSED_STREAM)));
    drop(caller);
    far.finish();
}

#[test]
fn an_answer_that_is_not_taken_ends_its_lane_and_no_other() {
    let origin = Origin::answering(|_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{}", "x".repeat(200_000)).into_bytes()
    });
    let (far, authority) = far(&origin, |config| config.timeouts("body_stall = \"200ms\"\n"));
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    caller.ask(1);
    caller.send(DATA, 0, 1, GET);
    // The window of 65535 octets is never opened.
    let (text, end) = caller.text(1, "never");
    assert!(text.len() <= 65_535 && end == Some(RST_STREAM), "{} {end:?}", text.len());
    drop(caller);
    let seen = far.finish();
    assert_eq!(seen.failures.len(), 1);
}

#[test]
fn who_gives_up_a_request_ends_that_at_once_and_no_other() {
    let origin = Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            if request.target() == "/hold" {
                visit.drain();
                return;
            }
            visit.send(ok(&request));
        }
    });
    let (far, authority) = far(&origin, |config| config);
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    caller.ask(1);
    caller.send(DATA, 0, 1, GET.replace("/a", "/hold"));
    origin.wait_requests(1);
    caller.send(RST_STREAM, 0, 1, CANCEL.to_be_bytes());
    // The service need not go on.
    origin.wait_end(0);
    caller.ask(3);
    caller.send(DATA, 0, 3, GET);
    let mut text = String::new();
    while !text.ends_with("/a") {
        let frame = caller.next();
        if (frame.kind, frame.stream) == (DATA, 3) {
            text.push_str(std::str::from_utf8(&frame.payload).unwrap());
        }
    }
    drop(caller);
    let seen = far.finish();
    assert_eq!((seen.failures.len(), seen.of_cause("http2_stream_reset")), (1, 1));
}

#[test]
fn who_resets_what_was_not_answered_again_and_again_is_sent_away() {
    let origin = Origin::scripted(|visit| {
        if visit.request().is_some() {
            visit.drain();
        }
    });
    let (far, authority) = far(&origin, |config| config);
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    // 200 may be (http::h2::watch); each has reached the service, so that none is forgotten before it has begun.
    for n in 0..201 {
        let lane = 2 * n + 1;
        caller.ask(lane);
        caller.send(DATA, 0, lane, GET);
        origin.wait_requests(n as usize + 1);
        caller.send(RST_STREAM, 0, lane, CANCEL.to_be_bytes());
    }
    loop {
        let frame = caller.next();
        if frame.kind == GOAWAY {
            assert_eq!(frame.code(), ENHANCE_YOUR_CALM);
            break;
        }
    }
    drop(caller);
    far.finish();
}

#[test]
fn who_drains_ends_the_lanes_that_are_at_rest() {
    // The far end: says GOAWAY, and ends a lane that its caller leaves open.
    let origin = Origin::plain();
    let (far, authority) = far(&origin, |config| config);
    let mut caller = Caller::of(&far, &authority, ALPN_MESH);
    caller.ask(1);
    caller.send(DATA, 0, 1, GET);
    caller.text(1, "/a");
    let finishing = std::thread::spawn(move || far.finish());
    let mut seen = Vec::new();
    while !seen.contains(&(DATA, END_STREAM)) {
        let frame = caller.next();
        seen.push((frame.kind, frame.flags & END_STREAM));
    }
    assert!(seen.iter().any(|(kind, _)| *kind == GOAWAY), "{seen:?}");
    drop(caller);
    assert!(finishing.join().unwrap().failures.is_empty());
    // The near end: a GOAWAY ends those that are at rest at once, so that the far end has nothing to wait for.
    let ended = Arc::<Watched<bool>>::default();
    let theirs = Arc::clone(&ended);
    let (near, _far) = near("", &[ALPN_MESH], move |_, visit| {
        let mut peer = Peer::begin(visit, &[]);
        let (lane, _) = peer.request().unwrap();
        peer.answer(lane);
        peer.send(GOAWAY, 0, 0, &[lane.to_be_bytes(), NO_ERROR.to_be_bytes()].concat());
        while let Some(frame) = peer.next() {
            if (frame.kind, frame.stream) == (RST_STREAM, lane) {
                return theirs.change(|ended| *ended = true);
            }
        }
    });
    let mut client = near.client();
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    ended.wait("the end of the lane", |ended| ended.then_some(()));
    drop(client);
    near.finish();
}

#[test]
fn lanes_that_are_not_needed_any_more_are_ended_and_make_room_for_other_streams() {
    // It takes two streams at a time: two lanes, then a lane at rest has to go for a stream of another kind.
    let (gates, theirs) = Gates::two();
    let (near, _far) = near("", &[ALPN_MESH], move |_, visit| {
        let mut peer = Peer::begin(visit, &[(MAX_CONCURRENT_STREAMS, 2)]);
        let (first, second) = peer.serve_two(&theirs);
        let mut ended = Vec::new();
        loop {
            let frame = peer.next().unwrap();
            match frame.kind {
                RST_STREAM if [first, second].contains(&frame.stream) => ended.push(frame.stream),
                HEADERS => {
                    peer.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &block(&[(":status", "204")]));
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(ended.len(), 1);
        peer.visit.drain();
    });
    let [a, b] = gates.ask(&near);
    let mut raw = Raw::connect(near.address);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    assert_eq!(raw.outcome(1), crate::support::http2::Outcome::Status(204));
    drop((a, b, raw));
    assert!(near.finish().failures.is_empty());
}
