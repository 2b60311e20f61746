//! Tunnels of which one end or both are HTTP/2, rows w01 to w13 and g21: extended CONNECT, CONNECT, and what passes between
//! them and what HTTP/1.1 has for the same. Also between two proxies of a mesh, where the way between them does not show.

use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use ringmesh::authorize::{Action, Rule, TextMatch, Verdict};
use ringmesh::identity::ALPN_MESH;
use ringmesh::shard::link::Order;
use ringmesh::snapshot::ListenerTls;
use ringmesh::upstream::spec::{Protocol, Tls};
use tungstenite::Message as Frame;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;

use crate::support::authority::Authority;
use crate::support::client::Client;
use crate::support::http2::{Raw, Service, request};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, Visit, ok};
use crate::support::stream::{Caller, Ended, Stream, connect, websocket};
use crate::support::{End, GUARD};

const HOUR: Duration = Duration::from_secs(3600);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const LARGE: usize = 3_000_000;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// What a service does in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Play {
    /// Sends back what comes, and ends when that does.
    Echo,
    /// Takes all that comes to its end, then sends [`LARGE`] octets and ends.
    Answer,
    /// Sends [`LARGE`] octets and ends; then takes what comes, to its end.
    Lead,
    /// Takes an octet and resets.
    Reset,
    /// Says nothing, and does not end before it is cut, where that can be known.
    Sleep,
}

/// How the service saw the tunnel end, and how many octets came.
type Fates = Arc<Mutex<Vec<(usize, Ended)>>>;

fn play_h1(play: Play, visit: &mut Visit, fates: &Fates) {
    let mut came = 0;
    if play == Play::Lead {
        visit.send(pattern(LARGE));
        visit.finish();
    }
    let end = match play {
        Play::Reset => {
            visit.bytes(1);
            visit.reset();
            return;
        }
        Play::Echo => loop {
            let bytes = visit.some();
            if bytes.is_empty() {
                break visit.drain();
            }
            came += bytes.len();
            visit.send(bytes);
        },
        Play::Answer | Play::Lead | Play::Sleep => loop {
            match visit.bytes(65_536).len() {
                65_536 => came += 65_536,
                rest => {
                    came += rest;
                    break visit.drain();
                }
            }
        },
    };
    if play == Play::Answer {
        visit.send(pattern(LARGE));
    }
    let ended = if end == End::Fin { Ended::Fin } else { Ended::Reset(Reason::NO_ERROR) };
    fates.lock().unwrap().push((came, ended));
}

async fn play_h2(play: Play, mut recv: RecvStream, mut send: h2::SendStream<Bytes>, fates: Fates) {
    let mut came = 0;
    if play == Play::Lead {
        crate::support::http2::send(&mut send, pattern(LARGE).into(), None).await;
    }
    let ended = loop {
        match recv.data().await {
            Some(Ok(piece)) => {
                came += piece.len();
                recv.flow_control().release_capacity(piece.len()).unwrap();
                match play {
                    Play::Echo => {
                        send.reserve_capacity(piece.len());
                        drop(send.send_data(piece, false));
                    }
                    Play::Reset => return send.send_reset(Reason::INTERNAL_ERROR),
                    Play::Answer | Play::Lead | Play::Sleep => {}
                }
            }
            None if play == Play::Sleep => {
                let reason = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
                break reason.map_or(Ended::Gone, Ended::Reset);
            }
            None => break Ended::Fin,
            Some(Err(error)) if error.is_reset() => break Ended::Reset(error.reason().unwrap()),
            Some(Err(_)) => break Ended::Gone,
        }
    };
    fates.lock().unwrap().push((came, ended));
    match play {
        Play::Answer => crate::support::http2::send(&mut send, pattern(LARGE).into(), None).await,
        Play::Echo | Play::Sleep => drop(send.send_data(Bytes::new(), true)),
        Play::Lead | Play::Reset => {}
    }
}

/// A service, of either version, that agrees to everything and then plays.
struct Far {
    _h1: Option<Origin>,
    _h2: Option<Service>,
    endpoint: String,
    keys: &'static str,
    fates: Fates,
}

impl Far {
    fn h1(play: Play) -> Self {
        let fates = Fates::default();
        let theirs = Arc::clone(&fates);
        let origin = Origin::scripted(move |visit| {
            let Some(head) = visit.head() else { return };
            let accept = derive_accept_key(head.one("sec-websocket-key").unwrap().as_bytes());
            visit.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            ));
            play_h1(play, visit, &theirs);
        });
        let endpoint = origin.endpoint.clone();
        Self { _h1: Some(origin), _h2: None, endpoint, keys: "", fates }
    }

    /// One that is spoken to without HTTP: behind a plain CONNECT.
    fn raw(play: Play) -> Self {
        let fates = Fates::default();
        let theirs = Arc::clone(&fates);
        let origin = Origin::scripted(move |visit| play_h1(play, visit, &theirs));
        let endpoint = origin.endpoint.clone();
        Self { _h1: Some(origin), _h2: None, endpoint, keys: "", fates }
    }

    fn h2(play: Play) -> Self {
        let fates = Fates::default();
        let theirs = Arc::clone(&fates);
        let service = Service::scripted(move |request, mut respond| {
            let fates = Arc::clone(&theirs);
            async move {
                assert_eq!(request.method(), "CONNECT");
                let Ok(send) = respond.send_response(Response::new(()), false) else { return };
                play_h2(play, request.into_body(), send, fates).await;
            }
        });
        let endpoint = service.endpoint.clone();
        Self { _h1: None, _h2: Some(service), endpoint, keys: "protocol = \"http2\"", fates }
    }

    fn mesh(&self) -> Mesh {
        self.config().start()
    }

    fn config(&self) -> Config {
        Config::default().service_at("app", &[&self.endpoint], self.keys).tunnels(true, true, HOUR)
    }

    /// Waits until the service has seen an end.
    fn fate(&self) -> (usize, Ended) {
        let began = std::time::Instant::now();
        loop {
            if let Some(fate) = self.fates.lock().unwrap().first() {
                return *fate;
            }
            assert!(began.elapsed() < GUARD, "the service waits in vain for an end");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

/// A caller, of either version, that is in a tunnel.
enum Near {
    H1(Client),
    H2(Box<Stream>),
}

impl Near {
    fn h1_websocket(mesh: &Mesh) -> Self {
        let mut client = mesh.client();
        client.send(format!(
            "GET /chat HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        ));
        let response = client.response();
        assert_eq!(response.status(), 101, "{response:?}");
        assert_eq!(response.one("sec-websocket-accept").as_deref(), Some(ACCEPT));
        Self::H1(client)
    }

    fn h2_websocket(mesh: &Mesh) -> Self {
        Self::h2(mesh, websocket("/chat").body(()).unwrap())
    }

    fn h1_connect(mesh: &Mesh) -> Self {
        let mut client = mesh.client();
        client.send("CONNECT app.test:80 HTTP/1.1\r\nHost: app.test:80\r\n\r\n");
        let head = client.take_head();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Self::H1(client)
    }

    fn h2_connect(mesh: &Mesh) -> Self {
        Self::h2(mesh, connect("app.test:80"))
    }

    fn h2(mesh: &Mesh, request: Request<()>) -> Self {
        let stream = Stream::open(mesh.address, request);
        assert_eq!(stream.head.status, 200, "{:?}", stream.head);
        assert!(!stream.head.headers.contains_key("sec-websocket-accept"));
        assert!(!stream.head.headers.contains_key("content-length"));
        Self::H2(Box::new(stream))
    }

    fn say(&mut self, bytes: &[u8]) {
        match self {
            Self::H1(client) => drop(client.send(bytes)),
            Self::H2(stream) => assert!(stream.say(bytes)),
        }
    }

    #[track_caller]
    fn take(&mut self, len: usize) -> Vec<u8> {
        match self {
            Self::H1(client) => client.take(len),
            Self::H2(stream) => stream.take(len),
        }
    }

    fn finish(&mut self) {
        match self {
            Self::H1(client) => drop(client.finish()),
            Self::H2(stream) => stream.finish(),
        }
    }

    fn end(&mut self) -> Ended {
        match self {
            Self::H1(client) => match client.end() {
                End::Fin => Ended::Fin,
                _ => Ended::Reset(Reason::NO_ERROR),
            },
            Self::H2(stream) => stream.end().1,
        }
    }

    #[track_caller]
    fn there_and_back(&mut self, bytes: &[u8]) {
        self.say(bytes);
        assert_eq!(self.take(bytes.len()), bytes);
    }
}

type Open = fn(&Mesh) -> Near;

/// Every way that a tunnel can come and go on by, at least one of which is HTTP/2: a name, the caller, the service.
fn ways(play: Play) -> Vec<(&'static str, Open, Far)> {
    vec![
        ("websocket 2 to 1", Near::h2_websocket, Far::h1(play)),
        ("websocket 1 to 2", Near::h1_websocket, Far::h2(play)),
        ("websocket 2 to 2", Near::h2_websocket, Far::h2(play)),
        ("connect 2 to bytes", Near::h2_connect, Far::raw(play)),
        ("connect 1 to 2", Near::h1_connect, Far::h2(play)),
        ("connect 2 to 2", Near::h2_connect, Far::h2(play)),
    ]
}

fn is_reset(ended: Ended) -> bool {
    matches!(ended, Ended::Reset(_))
}

#[test]
fn g21_extended_connect_is_announced_where_a_route_lets_it_begin() {
    for (allowed, announced) in [(true, true), (false, false)] {
        let origin = Origin::plain();
        let mesh = Config::new(&[&origin]).tunnels(allowed, true, HOUR).start();
        let mut raw = Raw::connect(mesh.address);
        let settings = raw.next().unwrap();
        assert_eq!(settings.kind, 4);
        let found = settings.payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]);
        assert_eq!(found, announced, "{settings:?}");
        drop(raw);
        mesh.finish();
    }
}

#[test]
fn w01_w10_an_extended_connect_becomes_a_handshake_with_a_key_of_our_own() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::clone(&keys);
    let origin = Origin::scripted(move |visit| {
        let head = visit.head().unwrap();
        assert_eq!(head.start, "GET /chat?x=1 HTTP/1.1");
        for (name, value) in [
            ("host", "app.test"),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "chat, superchat"),
            ("sec-websocket-extensions", "permessage-deflate"),
            ("via", "2.0 hop"),
        ] {
            assert_eq!(head.one(name).as_deref(), Some(value), "{name}");
        }
        for name in ["content-length", "transfer-encoding", "te", ":protocol"] {
            assert!(!head.has(name), "{name}");
        }
        let key = head.one("sec-websocket-key").unwrap();
        let accept = derive_accept_key(key.as_bytes());
        theirs.lock().unwrap().push(key);
        // What comes behind the head in the same packet is the tunnel's.
        visit.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\nearly"
        ));
        assert_eq!(visit.bytes(5), b"hello");
        visit.send("bye");
    });
    let mesh = Config::new(&[&origin]).start();
    for _ in 0..2 {
        let request = websocket("/chat?x=1")
            .header("sec-websocket-protocol", "chat, superchat")
            .header("sec-websocket-extensions", "permessage-deflate")
            // A key that a caller sends all the same means nothing, and is not the one that is answered.
            .header("sec-websocket-key", KEY)
            .header("te", "trailers");
        // Row w04: sent before the answer.
        let mut stream = Caller::new(mesh.address).ask(request.body(()).unwrap(), b"hello").unwrap();
        assert_eq!(
            (stream.head.status.as_u16(), &stream.head.headers["sec-websocket-protocol"]),
            (200, &"chat".parse().unwrap())
        );
        for name in ["sec-websocket-accept", "upgrade", "connection", "content-length"] {
            assert!(!stream.head.headers.contains_key(name), "{name}");
        }
        assert_eq!(stream.end(), (b"earlybye".to_vec(), Ended::Fin));
        stream.finish();
    }
    let keys = keys.lock().unwrap();
    assert!(keys.len() == 2 && keys[0] != keys[1] && !keys.contains(&KEY.to_owned()), "{keys:?}");
    assert!(mesh.finish().failures.is_empty());
}

#[test]
fn w03_w10_an_answer_that_does_not_belong_to_our_key_is_502() {
    for answer in [
        // The right answer to another key.
        format!(
            "HTTP/1.1 101 Ok\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        ),
        "HTTP/1.1 101 Ok\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Ok\r\n\r\n".to_owned(),
    ] {
        let origin = Origin::scripted(move |visit| {
            visit.head().unwrap();
            visit.send(&answer);
            assert!(visit.bytes(1).is_empty(), "nothing of the tunnel leaves");
        });
        let mesh = Config::new(&[&origin]).start();
        let request = websocket("/chat").body(()).unwrap();
        let mut stream = Caller::new(mesh.address).ask(request, b"early").unwrap();
        assert_eq!(stream.head.status, 502);
        assert_eq!(stream.text(), "ringmesh: response.upstream.unexpected_upgrade (service app)\n");
        drop(stream);
        assert_eq!(mesh.finish().failures["response.upstream.unexpected_upgrade"], 1);
    }
}

#[test]
fn w02_w10_another_answer_is_a_response_like_others() {
    // From HTTP/1.1, whose connection serves on.
    let origin = Origin::scripted(|visit| {
        while let Some(head) = visit.head() {
            visit.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
            visit.send(match head.target() {
                "/no" => {
                    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno"
                }
                _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            });
        }
    });
    let mesh = Config::new(&[&origin]).start();
    for _ in 0..2 {
        let mut stream = Stream::open(mesh.address, websocket("/no").body(()).unwrap());
        assert_eq!(
            (stream.head.status.as_u16(), &stream.head.headers["www-authenticate"]),
            (401, &"Basic".parse().unwrap())
        );
        assert_eq!(stream.text(), "no");
        assert_eq!(stream.other(request("GET", "/")), 200);
    }
    mesh.finish();
    assert_eq!(origin.settle().len(), 1, "one connection is enough");
    // From HTTP/2 to HTTP/1.1 and HTTP/2, in whose connection other requests follow.
    let service = Service::scripted(|request, mut respond| async move {
        let status = if request.method() == "CONNECT" { 403 } else { 200 };
        let head = Response::builder().status(status).header("x-why", "because").body(()).unwrap();
        respond.send_response(head, false).unwrap().send_data("no".into(), true).unwrap();
        // The other direction is ended, not reset: there is nothing to be sorry for.
        assert!(request.into_body().data().await.is_none_or(|piece| piece.is_ok()));
    });
    let mesh = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"").start();
    let mut stream = Stream::open(mesh.address, websocket("/no").body(()).unwrap());
    assert_eq!((stream.head.status.as_u16(), stream.text().as_str()), (403, "no"));
    assert_eq!(stream.other(request("GET", "/")), 200);
    let mut client = mesh.client();
    for _ in 0..2 {
        client.send(format!(
            "GET /no HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        ));
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (403, "no"));
        assert_eq!(response.one("x-why").as_deref(), Some("because"));
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status(), 200);
    }
    drop((client, stream));
    assert!(mesh.finish().failures.is_empty());
}

#[test]
fn w01_w10_a_handshake_becomes_an_extended_connect_and_is_answered_for_its_key() {
    let service = Service::scripted(|request, mut respond| async move {
        assert_eq!(request.method(), "CONNECT");
        assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(request.uri().to_string(), "http://app.test/chat?x=1");
        let headers = request.headers();
        for name in ["connection", "upgrade", "sec-websocket-key", "te", "host"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert_eq!(headers["sec-websocket-version"], "13");
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        assert_eq!(headers["via"], "1.1 hop");
        let head = Response::builder()
            .header("sec-websocket-protocol", "chat")
            // Whatever it says here: it does not know the key.
            .header("sec-websocket-accept", "nonsense");
        let send = respond.send_response(head.body(()).unwrap(), false).unwrap();
        play_h2(Play::Echo, request.into_body(), send, Fates::default()).await;
    });
    let mesh = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"").start();
    let mut client = mesh.client();
    client.send(format!(
        "GET /chat?x=1 HTTP/1.1\r\nHost: app.test\r\nTE: trailers\r\nConnection: Upgrade, TE\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: {KEY}\r\n\r\nearly"
    ));
    let response = client.response();
    assert_eq!(response.start, "HTTP/1.1 101 Switching Protocols");
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", ACCEPT),
        ("sec-websocket-protocol", "chat"),
    ] {
        assert_eq!(response.one(name).as_deref(), Some(value), "{name}");
    }
    assert!(!response.has("content-length") && !response.has("transfer-encoding"));
    assert_eq!(client.take(5), b"early");
    client.send("\0\u{ff}").finish();
    assert_eq!(client.take(3), "\0\u{ff}".as_bytes());
    assert_eq!(client.end(), End::Fin);
    drop(client);
    assert!(mesh.finish().failures.is_empty());
}

#[test]
fn w10_bytes_pass_whole_and_in_order_on_every_way() {
    for (name, open, far) in ways(Play::Echo) {
        let mesh = far.mesh();
        let mut near = open(&mesh);
        let all = pattern(200_000);
        for piece in all.chunks(1 + all.len() / 7) {
            near.there_and_back(piece);
        }
        near.finish();
        assert_eq!(near.end(), Ended::Fin, "{name}");
        assert_eq!(far.fate(), (all.len(), Ended::Fin), "{name}");
        drop(near);
        let seen = mesh.finish();
        assert!(seen.failures.is_empty(), "{name}: {:?}", seen.failures);
        assert_eq!(seen.bytes, (200_000, 200_000), "{name}");
    }
}

#[test]
fn w05_each_direction_ends_alone_on_every_way() {
    for (name, open, far) in ways(Play::Answer) {
        let mesh = far.mesh();
        let mut near = open(&mesh);
        near.say(&pattern(LARGE));
        near.finish();
        assert!(near.take(LARGE) == pattern(LARGE), "{name}");
        assert_eq!((near.end(), far.fate()), (Ended::Fin, (LARGE, Ended::Fin)), "{name}");
        drop(near);
        assert!(mesh.finish().failures.is_empty(), "{name}");
    }
    for (name, open, far) in ways(Play::Lead) {
        let mesh = far.mesh();
        let mut near = open(&mesh);
        assert!(near.take(LARGE) == pattern(LARGE), "{name}");
        assert_eq!(near.end(), Ended::Fin, "{name}");
        near.say(&pattern(LARGE));
        near.finish();
        assert_eq!(far.fate(), (LARGE, Ended::Fin), "{name}");
        drop(near);
        assert!(mesh.finish().failures.is_empty(), "{name}");
    }
}

#[test]
fn w06_w11_a_reset_passes_as_a_reset_on_every_way() {
    for half_closed in [false, true] {
        for (name, open, far) in ways(Play::Sleep) {
            if half_closed && !name.ends_with("2 to 2") {
                // After the end of a connection nothing is left that could tell of a reset; a stream has.
                continue;
            }
            let mesh = far.mesh();
            let mut near = open(&mesh);
            near.say(b"x");
            match near {
                Near::H2(mut stream) => {
                    if half_closed {
                        stream.finish();
                    }
                    stream.reset(Reason::CANCEL);
                }
                Near::H1(client) => client.reset(),
            }
            let ended = far.fate().1;
            match name.split(' ').next() {
                // Which of the two reasons it is depends on whether its end was read before its reset.
                _ if half_closed => assert!(is_reset(ended), "{name}: {ended:?}"),
                _ if !name.ends_with("to 2") => assert!(is_reset(ended), "{name}: {ended:?}"),
                Some("websocket") => assert_eq!(ended, Ended::Reset(Reason::CANCEL), "{name}"),
                _ => assert_eq!(ended, Ended::Reset(Reason::CONNECT_ERROR), "{name}"),
            }
            assert_eq!(failures(mesh.finish()), ["body.downstream.reset"], "{name} {half_closed}");
        }
    }
    for (name, open, far) in ways(Play::Reset) {
        let mesh = far.mesh();
        let mut near = open(&mesh);
        near.say(b"x");
        let ended = near.end();
        let wanted = match &near {
            Near::H1(_) => Reason::NO_ERROR,
            Near::H2(_) if name.starts_with("websocket") => Reason::CANCEL,
            Near::H2(_) => Reason::CONNECT_ERROR,
        };
        assert_eq!(ended, Ended::Reset(wanted), "{name}");
        drop(near);
        assert_eq!(failures(mesh.finish()), ["body.upstream.reset"], "{name}");
    }
}

fn failures(seen: Seen) -> Vec<String> {
    seen.failures.into_keys().collect()
}

#[test]
fn w07_w12_silence_ends_a_tunnel_and_bytes_keep_it_on_every_way() {
    let idle = Duration::from_millis(400);
    for (name, open, far) in ways(Play::Echo) {
        let mesh = far.config().tunnels(true, true, idle).start();
        let mut near = open(&mesh);
        let began = std::time::Instant::now();
        while began.elapsed() < 3 * idle {
            near.there_and_back(b"x");
            std::thread::park_timeout(idle / 20);
        }
        let ended = near.end();
        match near {
            Near::H1(_) => assert_eq!(ended, Ended::Fin, "{name}"),
            Near::H2(_) => assert_eq!(ended, Ended::Reset(Reason::CANCEL), "{name}"),
        }
        far.fate();
        drop(near);
        assert_eq!(failures(mesh.finish()), ["body.local.timeout"], "{name}");
    }
}

#[test]
fn w08_the_timeout_of_the_route_is_for_the_handshake_alone() {
    let far = Far::h1(Play::Echo);
    let routes = "[[route]]\nservice = \"app\"\ntimeout = \"300ms\"\n";
    let mesh = Config::default().service_at("app", &[&far.endpoint], "").routes(routes).start();
    let mut near = Near::h2_websocket(&mesh);
    std::thread::park_timeout(Duration::from_millis(700));
    near.there_and_back(b"x");
    drop(near);
    mesh.finish();
}

#[test]
fn w09_a_drain_says_goaway_lets_tunnels_go_on_and_cuts_them_in_the_end() {
    let far = Far::h1(Play::Echo);
    let mesh = far.config().logged().start();
    let mut near = Near::h2_websocket(&mesh);
    near.there_and_back(b"before");
    mesh.order(Order::Drain);
    mesh.settle(1);
    near.there_and_back(b"after");
    let Near::H2(mut stream) = near else { unreachable!() };
    mesh.order(Order::Cut);
    assert!(matches!(stream.end(), (_, Ended::Reset(_) | Ended::Gone)));
    far.fate();
    drop(stream);
    let seen = mesh.finish();
    assert!(seen.log.contains("body.local.draining"), "{}", seen.log);
    assert_eq!(failures(seen), ["body.local.draining"]);
}

#[test]
fn w13_bytes_are_counted_while_a_tunnel_lives_and_a_line_tells_of_it_at_its_end() {
    let far = Far::h1(Play::Echo);
    let mut mesh = far.config().logged().start();
    let mut near = Near::h2_websocket(&mesh);
    near.there_and_back(&[7; 1000]);
    let seen = mesh.wait_seen(|seen| {
        near.there_and_back(b"x");
        seen.bytes.0 >= 1000 && seen.bytes.1 >= 1000
    });
    assert_eq!((seen.totals.tunnels_open, seen.totals.exchanges_open), (1, 1));
    assert!(seen.log.is_empty(), "{}", seen.log);
    near.finish();
    assert_eq!(near.end(), Ended::Fin);
    drop(near);
    let seen = mesh.finish();
    let line: serde_json::Value = serde_json::from_str(seen.log.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["method"], &line["target"], &line["status"]),
        (&"CONNECT".into(), &"/chat".into(), &200.into())
    );
    assert_eq!(line["request_bytes"], seen.bytes.0);
    assert_eq!(line["response_bytes"], seen.bytes.1);
    assert!(line["whole_us"].as_u64().unwrap() > 500_000, "{line}");
    assert_eq!((seen.by_class[2], seen.latencies, seen.totals.tunnels_open), (1, (1, 0), 0));
}

#[test]
fn a_side_that_does_not_read_stops_the_other_and_fills_no_memory() {
    const LEN: usize = 24 << 20;
    for h2_service in [false, true] {
        let service = Service::scripted(|request, mut respond| async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            crate::support::http2::send(&mut send, pattern(LEN).into(), None).await;
            drop(request);
        });
        let origin = Origin::scripted(|visit| {
            let key = visit.head().unwrap().one("sec-websocket-key").unwrap();
            visit.send(format!(
                "HTTP/1.1 101 Ok\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                derive_accept_key(key.as_bytes())
            ));
            visit.send(pattern(LEN));
            visit.finish();
            visit.drain();
        });
        let (endpoint, keys) =
            if h2_service { (&service.endpoint, "protocol = \"http2\"") } else { (&origin.endpoint, "") };
        let mut mesh = Config::default().service_at("app", &[endpoint], keys).start();
        let mut stream = Stream::open(mesh.address, websocket("/").body(()).unwrap());
        stream.take(1);
        let totals = mesh.wait_totals(|totals| totals.tunnels_open == 1 && totals.downstream_open == 1);
        assert!(totals.buffer_bytes < 2 << 20, "{totals:?}");
        assert!(stream.take(LEN - 1) == pattern(LEN)[1..], "{h2_service}");
        assert_eq!(stream.end().1, Ended::Fin);
        stream.finish();
        drop(stream);
        let seen = mesh.finish();
        assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    }
}

#[test]
fn tunnels_at_rest_hold_no_buffer_and_share_connections() {
    let far = Far::h2(Play::Echo);
    let mut mesh = far.mesh();
    let mut nears: Vec<_> = (0..30).map(|_| Near::h2_websocket(&mesh)).collect();
    for near in &mut nears {
        near.there_and_back(b"x");
    }
    let totals = mesh.wait_totals(|totals| totals.tunnels_open == 30 && totals.buffer_bytes < 4 * 16_384);
    assert_eq!(totals.upstream_open, 1, "{totals:?}");
    for near in &mut nears {
        near.there_and_back(b"y");
        near.finish();
        assert_eq!(near.end(), Ended::Fin);
    }
    drop(nears);
    assert!(mesh.finish().failures.is_empty());
}

#[test]
fn what_is_not_allowed_or_not_understood_is_refused_by_http2_too() {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).tunnels(true, false, HOUR).start();
    let refused = |mesh: &Mesh, request: Request<()>| {
        let mut stream = Caller::new(mesh.address).ask(request, b"early").unwrap();
        (stream.head.status.as_u16(), stream.text())
    };
    let told = |status: u16, why: &str| (status, format!("ringmesh: {why}\n"));
    assert_eq!(refused(&mesh, connect("app.test:80")), told(405, "route.local.method_refused"));
    let mut unknown = websocket("/").body(()).unwrap();
    unknown.extensions_mut().insert(h2::ext::Protocol::from_static("connect-udp"));
    assert_eq!(refused(&mesh, unknown), told(501, "head.downstream.upgrade_refused"));
    let body = websocket("/").header("content-length", "5").body(()).unwrap();
    assert_eq!(refused(&mesh, body), told(400, "head.downstream.upgrade_with_body"));
    assert!(mesh.finish().bytes == (0, 0));
    // One route has WebSockets, so that they are announced; the other has not.
    let routes =
        "[[route]]\nservice = \"app\"\n[[route]]\npath_prefix = \"/api\"\nservice = \"app\"\nupgrades = []\n";
    let mesh = Config::new(&[&origin]).routes(routes).start();
    assert_eq!(refused(&mesh, websocket("/api").body(()).unwrap()), told(501, "route.local.upgrade_refused"));
    mesh.finish();
    assert!(origin.settle().is_empty(), "nothing reached the service");
    // The service cannot be reached.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mesh = Config::default().service_at("app", &[&gone], "").tunnels(true, true, HOUR).start();
    assert_eq!(
        refused(&mesh, websocket("/").body(()).unwrap()),
        told(503, "connect.upstream.refused (service app)")
    );
    assert_eq!(refused(&mesh, connect("app.test:80")), told(503, "connect.upstream.refused (service app)"));
    mesh.finish();
}

fn deny(path: &str, methods: &[&str]) -> Rule {
    Rule {
        name: "no".into(),
        action: Action::Deny,
        listeners: Vec::new(),
        from: Vec::new(),
        sources: Vec::new(),
        ports: Vec::new(),
        methods: methods.iter().map(|method| (*method).into()).collect(),
        paths: vec![TextMatch::Exact(path.into())],
        headers: Vec::new(),
    }
}

#[test]
fn rules_see_the_handshake_in_an_extended_connect_and_end_its_tunnel_when_they_change() {
    let far = Far::h1(Play::Echo);
    let config = far.config();
    // A rule about GET holds whatever the version of HTTP.
    let mut mesh = config.clone().authorization(vec![deny("/secret", &["GET"])], Verdict::Allow).start();
    let mut stream = Caller::new(mesh.address).ask(websocket("/secret").body(()).unwrap(), b"early").unwrap();
    assert_eq!(
        (stream.head.status.as_u16(), stream.text().as_str()),
        (403, "ringmesh: authorize.downstream.denied\n")
    );
    drop(stream);
    let mut stream = Stream::open(mesh.address, websocket("/chat").body(()).unwrap());
    stream.say("x");
    assert_eq!(stream.take(1), b"x");
    mesh.reload(&config.clone().authorization(vec![deny("/other", &["GET"])], Verdict::Allow));
    stream.say("y");
    assert_eq!(stream.take(1), b"y");
    mesh.reload(&config.authorization(vec![deny("/chat", &["GET"])], Verdict::Allow));
    assert_eq!(stream.end().1, Ended::Reset(Reason::CANCEL));
    far.fate();
    // Its connection goes on.
    assert_eq!(stream.other(websocket("/chat").body(()).unwrap()), 403);
    drop(stream);
    assert_eq!(mesh.finish().failures["authorize.downstream.denied"], 3);
}

const NEAR: &str = "spiffe://mesh.local/ns/shop/sa/near";
const FAR: &str = "spiffe://mesh.local/ns/shop/sa/far";

/// Two proxies of a mesh, the far one before `far`, that agree on one of these protocols.
fn two(far: &Far, alpn: &'static [&'static [u8]], websockets: bool, connect: bool) -> (Mesh, Mesh) {
    let authority = Authority::new("mesh");
    let theirs = authority.credentials(FAR, &authority.workload(FAR), alpn);
    let there = far.config().tunnels(websockets, connect, HOUR).forwarding("via = \"far\"\n").change(
        move |snapshot| {
            snapshot.listeners[0].tls = ListenerTls::Strict;
            snapshot.identity = Some(Arc::clone(&theirs));
        },
    );
    let there = there.start();
    let ours = authority.credentials(NEAR, &authority.workload(NEAR), alpn);
    let here = Config::default()
        .service_at("app", &[&there.address.to_string()], "")
        .tunnels(true, true, HOUR)
        .change(move |snapshot| {
            Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(Vec::new());
            snapshot.identity = Some(Arc::clone(&ours));
        });
    (here.start(), there)
}

#[test]
fn between_two_proxies_a_tunnel_comes_out_as_it_went_in() {
    for alpn in [&[ALPN_MESH, b"h2", b"http/1.1"][..], &[b"h2"], &[b"http/1.1"], &[]] {
        for (name, open, far) in [
            ("websocket 1 to 1", Near::h1_websocket as Open, Far::h1(Play::Answer)),
            ("websocket 2 to 1", Near::h2_websocket, Far::h1(Play::Answer)),
            ("websocket 1 to 2", Near::h1_websocket, Far::h2(Play::Answer)),
            ("websocket 2 to 2", Near::h2_websocket, Far::h2(Play::Answer)),
            ("connect 1", Near::h1_connect, Far::raw(Play::Answer)),
            ("connect 2", Near::h2_connect, Far::raw(Play::Answer)),
        ] {
            let (here, there) = two(&far, alpn, true, true);
            let mut near = open(&here);
            near.say(&pattern(LARGE));
            near.finish();
            assert!(near.take(LARGE) == pattern(LARGE), "{name} {alpn:?}");
            assert_eq!((near.end(), far.fate()), (Ended::Fin, (LARGE, Ended::Fin)), "{name} {alpn:?}");
            drop(near);
            let (there, here) = (there.finish(), here.finish());
            assert!(
                here.failures.is_empty() && there.failures.is_empty(),
                "{name} {alpn:?}: {:?} {:?}",
                here.failures,
                there.failures
            );
            assert_eq!((here.totals.tls_handshakes, there.totals.tls_handshakes), (1, 1), "{name} {alpn:?}");
            if let Some(origin) = &far._h1
                && name.starts_with("websocket")
            {
                let head = &origin.recorded()[0].bytes;
                let head = String::from_utf8_lossy(&head[..head.len().min(1000)]).into_owned();
                assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
                assert!(head.contains(&format!("URI={NEAR}")) && !head.contains("ringmesh-origin"), "{head}");
            }
        }
    }
}

#[test]
fn between_two_proxies_a_reset_passes_too() {
    for (name, open, far) in [
        ("websocket", Near::h1_websocket as Open, Far::h1(Play::Reset)),
        ("connect", Near::h1_connect, Far::raw(Play::Reset)),
    ] {
        let (here, there) = two(&far, &[ALPN_MESH], true, true);
        let mut near = open(&here);
        near.say(b"x");
        assert!(is_reset(near.end()), "{name}");
        drop(near);
        let (there, here) = (there.finish(), here.finish());
        assert_eq!(
            (failures(here), failures(there)),
            (vec!["body.upstream.reset".into()], vec!["body.upstream.reset".into()])
        );
    }
}

#[test]
fn a_peer_that_takes_no_websockets_by_http2_is_asked_by_http11_or_not_at_all() {
    let far = Far::h1(Play::Echo);
    // It may choose: it is asked as it would be without HTTP/2, and says itself why it refuses.
    let (here, there) = two(&far, &[b"h2", b"http/1.1"], false, true);
    let mut client = here.client();
    let handshake = format!(
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    client.send(&handshake);
    let response = client.response();
    assert_eq!(
        (response.status(), response.text().as_str()),
        (501, "ringmesh: route.local.upgrade_refused\n")
    );
    let mut stream = Stream::open(here.address, websocket("/chat").body(()).unwrap());
    assert_eq!(
        (stream.head.status.as_u16(), stream.text().as_str()),
        (501, "ringmesh: route.local.upgrade_refused\n")
    );
    drop((client, stream));
    let (there, here) = (there.finish(), here.finish());
    assert!(here.failures.is_empty(), "{:?}", here.failures);
    assert_eq!(there.failures["route.local.upgrade_refused"], 2);
    // It is to be spoken to by HTTP/2 alone.
    let there = far.config().tunnels(false, true, HOUR).start();
    let here = Config::default()
        .service_at("app", &[&there.address.to_string()], "protocol = \"http2\"")
        .change(|snapshot| assert_eq!(snapshot.services[0].protocol, Protocol::Http2));
    let here = here.start();
    let mut client = here.client();
    client.send(&handshake);
    let response = client.response();
    assert_eq!(
        (response.status(), response.text().as_str()),
        (502, "ringmesh: request.upstream.upgrade_refused (service app)\n")
    );
    let mut stream = Stream::open(here.address, websocket("/chat").body(()).unwrap());
    assert_eq!(
        (stream.head.status.as_u16(), stream.text().as_str()),
        (502, "ringmesh: request.upstream.upgrade_refused (service app)\n")
    );
    drop((client, stream));
    assert!(there.finish().failures.is_empty(), "it was not asked");
    assert_eq!(failures(here.finish()), ["request.upstream.upgrade_refused"]);
}

#[test]
fn another_endpoint_is_tried_when_one_that_takes_no_websockets_by_http2_cannot_be_asked_by_http11() {
    const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
    let authority = Authority::new("mesh");
    let far = Far::h1(Play::Echo);
    let there = |websockets: bool| {
        let theirs = authority.credentials(FAR, &authority.workload(FAR), ALPN);
        let there = far.config().tunnels(websockets, true, HOUR).forwarding("via = \"far\"\n");
        let there = there.change(move |snapshot| {
            snapshot.listeners[0].tls = ListenerTls::Strict;
            snapshot.identity = Some(Arc::clone(&theirs));
        });
        there.start()
    };
    let (without, with) = (there(false), there(true));
    // One connection gets through, the one by HTTP/2; those after it do not.
    let narrow = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (narrow_address, behind) = (narrow.local_addr().unwrap(), without.address);
    let relay = std::thread::spawn(move || {
        let (caller, _) = narrow.accept().unwrap();
        let service = TcpStream::connect(behind).unwrap();
        let ways =
            [(caller.try_clone(), service.try_clone()), (Ok(service), Ok(caller))].map(|(from, to)| {
                let (mut from, mut to) = (from.unwrap(), to.unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                })
            });
        let (refused, _) = narrow.accept().unwrap();
        drop((refused, narrow));
        for way in ways {
            way.join().unwrap();
        }
    });
    let ours = authority.credentials(NEAR, &authority.workload(NEAR), ALPN);
    let here = Config::default()
        .service_at(
            "app",
            &[&narrow_address.to_string(), &with.address.to_string()],
            "balance = \"round-robin\"\nconnect_attempts_max = 2\n",
        )
        .tunnels(true, true, HOUR)
        .change(move |snapshot| {
            Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(Vec::new());
            snapshot.identity = Some(Arc::clone(&ours));
        })
        .start();
    // In turn, so that one of two begins with the endpoint that is of no use.
    for _ in 0..2 {
        let mut near = Near::h1_websocket(&here);
        near.there_and_back(b"there and back");
        drop(near);
        far.fate();
    }
    let here = here.finish();
    relay.join().unwrap();
    assert!(here.failures.is_empty(), "{:?}", here.failures);
    for there in [without, with] {
        there.finish();
    }
}

#[test]
fn a_handshake_is_sent_again_when_the_pooled_connection_was_dead() {
    let origin = Origin::scripted(|visit| {
        while let Some(head) = visit.head() {
            match head.one("sec-websocket-key") {
                Some(_) if visit.number == 0 => return,
                Some(key) => {
                    visit.send(format!(
                        "HTTP/1.1 101 Ok\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                        derive_accept_key(key.as_bytes())
                    ));
                    return play_h1(Play::Echo, visit, &Fates::default());
                }
                None => drop(visit.send(ok(&head))),
            }
        }
    });
    let mesh = Config::new(&[&origin]).start();
    let mut client = mesh.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "/a");
    let mut near = Near::h2_websocket(&mesh);
    near.there_and_back(b"x");
    drop((near, client));
    let seen = mesh.finish();
    assert_eq!(seen.totals.replays, 1);
}

/// A WebSocket client that is not ours, on whatever stands below, and a service that is not ours.
#[test]
fn a_websocket_client_and_service_understand_each_other_over_http2() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
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
    let mesh = Config::default().service_at("app", &[&address], "").start();
    let stream = Stream::open(mesh.address, websocket("/chat").body(()).unwrap());
    assert_eq!(stream.head.status, 200);
    let mut socket = tungstenite::WebSocket::from_raw_socket(stream, Role::Client, None);
    for frame in [
        Frame::text("hello"),
        Frame::binary(pattern(500_000)),
        Frame::text("x".repeat(70_000)),
        Frame::binary(vec![]),
    ] {
        socket.send(frame.clone()).unwrap();
        assert!(socket.read().unwrap() == frame, "another message came back");
    }
    socket.send(Frame::Ping(b"ping".to_vec().into())).unwrap();
    assert_eq!(socket.read().unwrap(), Frame::Pong(b"ping".to_vec().into()));
    socket.close(None).unwrap();
    let end = loop {
        match socket.read() {
            Ok(Frame::Close(_)) => {}
            Ok(frame) => panic!("after the close: {frame:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
    service.join().unwrap();
    drop(socket);
    mesh.finish();
}
