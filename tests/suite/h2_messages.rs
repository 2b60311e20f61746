//! Translations between HTTP/2 and HTTP/1.1 (rows s3 of the list), and rows G-12 to G-17: a malformed message is never
//! forwarded, in either direction, to or from a peer of either version.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderValue, Response};

use crate::support::http2::{
    COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PROTOCOL_ERROR, Raw,
    RawService, Service, block, call, fields, read, request,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;

/// A mesh before a service of each version, and how many requests the services have seen whole.
struct Two {
    h1: Origin,
    _h2: Service,
    seen: Arc<AtomicUsize>,
    meshes: [Mesh; 2],
}

impl Two {
    fn start() -> Self {
        let seen = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&seen);
        let h2 = Service::scripted(move |request, mut respond| {
            let seen = Arc::clone(&theirs);
            async move {
                let (_, mut body) = request.into_parts();
                while let Some(Ok(piece)) = body.data().await {
                    let _ = body.flow_control().release_capacity(piece.len());
                }
                if body.is_end_stream() || matches!(body.trailers().await, Ok(Some(_))) {
                    seen.fetch_add(1, Ordering::AcqRel);
                    drop(respond.send_response(Response::new(()), true));
                }
            }
        });
        let h1 = Origin::plain();
        let to_h2 = Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"").start();
        let meshes = [Config::new(&[&h1]).start(), to_h2];
        Self { h1, _h2: h2, seen, meshes }
    }

    /// Sends a request in frames of its own; it is refused, and others on the connection too or not.
    #[track_caller]
    fn refuses(&self, what: &str, frames: impl Fn(&mut Raw)) {
        for mesh in &self.meshes {
            let mut raw = Raw::connect(mesh.address);
            frames(&mut raw);
            let outcome = raw.outcome(1);
            let right = match outcome {
                Outcome::Reset(code) => code == PROTOCOL_ERROR,
                Outcome::Goaway(code) => [PROTOCOL_ERROR, COMPRESSION_ERROR].contains(&code),
                Outcome::Status(status) => [400, 405].contains(&status),
                Outcome::End => false,
            };
            assert!(right, "{what}: {outcome:?}");
        }
    }

    #[track_caller]
    fn refuses_fields(&self, fields: &[(&str, &str)]) {
        self.refuses(&format!("{fields:?}"), |raw| {
            raw.head(END_STREAM, 1, fields);
        });
    }

    /// Somebody else is served, and of what was refused nothing has reached a service whole.
    #[track_caller]
    fn done(self) {
        let Self { h1, _h2, seen, meshes } = self;
        for mesh in meshes {
            assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 200);
            mesh.finish();
        }
        assert_eq!(seen.load(Ordering::Acquire), 1);
        let requests: Vec<_> =
            h1.settle().iter().flat_map(crate::support::origin::Recorded::requests).collect();
        assert_eq!(requests.len(), 1, "{requests:?}");
    }
}

#[test]
fn g13_names_and_values_that_http2_does_not_know_are_refused() {
    let two = Two::start();
    let names = ["X-Upper", "a b", "a\0", "a\r\nx", "a\n", "", "a:b", "a\u{e4}", "a\t", "(", "\u{7f}"];
    let values = ["a\rb", "a\nb", "a\0b", " a", "a ", "\ta", "a\t", "a\r\nx: y", "a\u{7f}", "a\u{1}"];
    for name in names {
        two.refuses_fields(&fields("GET", "/", &[(name, "x")]));
    }
    for value in values {
        two.refuses_fields(&fields("GET", "/", &[("x", value)]));
    }
    two.done();
}

#[test]
fn g14_fields_of_a_connection_are_refused() {
    let two = Two::start();
    for field in [
        ("connection", "close"),
        ("connection", "x"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("te", "trailers;q=0.5"),
    ] {
        two.refuses_fields(&fields("GET", "/", &[field]));
    }
    two.done();
}

#[test]
fn g16_pseudo_fields_are_as_they_must_be() {
    let two = Two::start();
    let all = fields("GET", "/", &[]);
    for n in 0..all.len() {
        // Each twice; each but :authority missing; each behind a field.
        let mut twice = all.clone();
        twice.push(all[n]);
        two.refuses_fields(&twice);
        let mut missing = all.clone();
        missing.remove(n);
        if all[n].0 != ":authority" {
            two.refuses_fields(&missing);
        }
        missing.extend([("x", "y"), all[n]]);
        two.refuses_fields(&missing);
    }
    for field in [(":status", "200"), (":unknown", "x"), (":protocol", "websocket"), (":", "x")] {
        let mut more = vec![field];
        more.extend_from_slice(&all);
        two.refuses_fields(&more);
    }
    // CONNECT has neither path nor scheme, unless it is an extended one.
    two.refuses_fields(&fields("CONNECT", "/", &[]));
    for path in ["", "x", "/ a", "/\ta", " /", "/ ", "/\0", "/\u{e4}\u{7f}", "http://app/"] {
        two.refuses_fields(&fields("GET", path, &[]));
    }
    for method in ["", "G T", "GET ", " GET", "G\tT", "GET\0", "G:T", "GET / HTTP/1.1\r\nx: y\r\n\r\n"] {
        two.refuses_fields(&fields(method, "/", &[]));
    }
    two.done();
}

#[test]
fn g17_authority_is_host_and_both_are_one() {
    let two = Two::start();
    let with = |authority, host: Option<&'static str>| {
        let mut all =
            vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", authority)];
        all.extend(host.map(|host| ("host", host)));
        all
    };
    two.refuses_fields(&with("a", Some("b")));
    two.refuses_fields(&with("a:80", Some("a:81")));
    for authority in ["u@a", "a b", "a/b", "a\r\nx: y", "a,b", "[::1", "a:x", "a?b", "a#b"] {
        two.refuses_fields(&with(authority, None));
        two.refuses_fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", authority)]);
    }
    two.refuses_fields(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        ("host", "a"),
        ("host", "a"),
    ]);
    two.done();

    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect(mesh.address);
    for (n, fields) in [
        with("shop.test:81", None),
        with("shop.test:81", Some("Shop.Test:81")),
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "shop.test:81")],
    ]
    .iter()
    .enumerate()
    {
        let stream = 2 * n as u32 + 1;
        raw.head(END_STREAM, stream, fields);
        assert_eq!(raw.outcome(stream), Outcome::Status(200));
        let hosts = origin.wait_requests(n + 1)[n].all("host");
        assert_eq!(hosts, ["shop.test:81"], "{fields:?}");
    }
    drop(raw);
    mesh.finish();
}

#[test]
fn g12_a_length_that_disagrees_with_the_body_never_looks_whole() {
    let two = Two::start();
    two.refuses_fields(&fields("POST", "/", &[("content-length", "5")]));
    for value in ["+5", "5x", "", "-1", "0x5", "5,5", "5 5", "99999999999999999999"] {
        two.refuses(value, |raw| {
            raw.head(0, 1, &fields("POST", "/", &[("content-length", value)]));
            raw.frame(DATA, END_STREAM, 1, b"hello");
        });
    }
    two.refuses("twice", |raw| {
        raw.head(0, 1, &fields("POST", "/", &[("content-length", "5"), ("content-length", "5")]));
        raw.frame(DATA, END_STREAM, 1, b"hello");
    });
    for (what, pieces) in [
        ("less", &[(&b"hell"[..], END_STREAM)][..]),
        ("less in two", &[(&b"he"[..], 0), (&b""[..], END_STREAM)][..]),
        ("more", &[(&b"hello!"[..], END_STREAM)][..]),
        ("more in two", &[(&b"hello"[..], 0), (&b"!"[..], END_STREAM)][..]),
        ("nothing", &[(&b""[..], END_STREAM)][..]),
    ] {
        two.refuses(what, |raw| {
            raw.head(0, 1, &fields("POST", "/", &[("content-length", "5")]));
            for (piece, flags) in pieces {
                raw.frame(DATA, *flags, 1, piece);
            }
        });
    }
    // A body that ends with trailers too early.
    two.refuses("trailers", |raw| {
        raw.head(0, 1, &fields("POST", "/", &[("content-length", "5")]));
        raw.frame(DATA, 0, 1, b"hell");
        raw.head(END_STREAM, 1, &[("x", "y")]);
    });
    two.done();
}

#[test]
fn g12_trailers_that_are_malformed_never_make_a_message_whole() {
    let two = Two::start();
    for trailer in [("X-Upper", "x"), ("x", "a\r\nb"), ("x", " a"), ("connection", "close"), ("", "x")] {
        two.refuses(&format!("{trailer:?}"), |raw| {
            raw.head(0, 1, &fields("POST", "/", &[]));
            raw.frame(DATA, 0, 1, b"hello");
            raw.head(END_STREAM, 1, &[trailer]);
        });
    }
    two.refuses("trailers that end nothing", |raw| {
        raw.head(0, 1, &fields("POST", "/", &[]));
        raw.frame(DATA, 0, 1, b"hello");
        raw.head(0, 1, &[("x", "y")]);
    });
    two.done();
}

#[test]
fn s3_what_h2_takes_out_of_a_message_is_seen_by_nobody() {
    // Pseudo-fields in trailers, and a fragment: the h2 crate drops them before anybody can refuse them.
    let service = Service::echoing();
    let mesh = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"").start();
    let mut raw = Raw::connect(mesh.address);
    raw.head(0, 1, &fields("POST", "/a#b", &[]));
    raw.frame(DATA, 0, 1, b"hello");
    raw.head(END_STREAM, 1, &[(":path", "/other"), ("x-end", "yes")]);
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(raw.body(1).0, b"hello");
    let echoed = call(mesh.address, request("GET", "/a#b"), b"", None).unwrap();
    assert_eq!(echoed.head.headers["echo-target"], "http://app.test/a");
    drop(raw);
    mesh.finish();
}

#[test]
fn g15_cookie_crumbs_are_one_field_for_services_of_either_version() {
    let (h1, h2) = (Origin::plain(), Service::echoing());
    let to_h1 = Config::new(&[&h1]).start();
    let to_h2 = Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"").start();
    let mut get = request("GET", "/");
    for crumb in ["a=1", "b=2; c=3", "d=4"] {
        get.headers_mut().append("cookie", HeaderValue::from_static(crumb));
    }
    call(to_h1.address, get.clone(), b"", None).unwrap();
    assert_eq!(h1.wait_requests(1)[0].all("cookie"), ["a=1; b=2; c=3; d=4"]);
    let echoed = call(to_h2.address, get, b"", None).unwrap();
    assert_eq!(echoed.head.headers["echo-cookie"], "a=1; b=2; c=3; d=4");
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn s3_options_asterisk_stays_what_it_is() {
    let (h1, h2) = (
        Origin::plain(),
        Service::scripted(|request, mut respond| async move {
            let whole = read(request).await;
            let path = whole.head.uri.path().to_owned();
            let response = Response::builder().header("path", path).body(()).unwrap();
            drop(respond.send_response(response, true));
        }),
    );
    let to_h1 = Config::new(&[&h1]).start();
    let to_h2 = Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"").start();
    for mesh in [&to_h1, &to_h2] {
        let mut raw = Raw::connect(mesh.address);
        raw.head(END_STREAM, 1, &fields("OPTIONS", "*", &[]));
        assert_eq!(raw.outcome(1), Outcome::Status(200));
    }
    assert_eq!(h1.wait_requests(1)[0].start, "OPTIONS * HTTP/1.1");
    let mut client = to_h2.client();
    client.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.response().one("path").as_deref(), Some("*"));
    to_h1.finish();
    to_h2.finish();
}

/// What a service answers, and what callers of both versions make of it.
#[track_caller]
fn answered(
    what: &str,
    method: &'static str,
    answer: impl Fn(&mut Raw, u32) + Send + Sync + 'static,
) -> (u16, Outcome) {
    let service = RawService::scripted(move |_, raw| {
        while let Some((stream, _)) = raw.request() {
            answer(raw, stream);
        }
    });
    let mesh = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"").start();
    let mut client = mesh.client();
    client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
    let h1 = match client.try_response(method == "HEAD") {
        Ok(response) => {
            assert!(
                response.status() != 200 || method == "HEAD" || response.body == b"hello",
                "{what}: {response:?}"
            );
            response.status()
        }
        Err(_) => 0,
    };
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields(method, "/", &[]));
    let mut h2 = raw.outcome(1);
    if h2 == Outcome::Status(200) && method != "HEAD" {
        let (body, reset) = raw.body(1);
        match reset {
            Some(code) => h2 = Outcome::Reset(code),
            None => assert_eq!(body, b"hello", "{what}"),
        }
    }
    drop((client, raw));
    mesh.finish();
    (h1, h2)
}

#[test]
fn s3_malformed_responses_are_never_forwarded() {
    for field in [
        ("X-Upper", "x"),
        ("a b", "x"),
        ("", "x"),
        ("x", "a\r\nb"),
        ("x", "a\0"),
        ("x", " a"),
        ("x", "a\t"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "1"),
        ("upgrade", "h2c"),
        (":status", "200"),
        ("content-length", "4"),
        ("content-length", "6"),
        ("content-length", "x"),
    ] {
        let (h1, h2) = answered(&format!("{field:?}"), "GET", move |raw, stream| {
            raw.head(0, stream, &[(":status", "200"), field]);
            raw.frame(DATA, END_STREAM, stream, b"hello");
        });
        // Where the head is right, and only the body shows that it is not, what was begun is cut.
        assert!([502, 0].contains(&h1), "{field:?}: {h1}");
        assert!(matches!(h2, Outcome::Status(502) | Outcome::Reset(_)), "{field:?}: {h2:?}");
    }
    for fields in [
        &[][..],
        &[("x", "y")],
        &[(":status", "")],
        &[(":status", "20")],
        &[(":status", "abc")],
        &[("x", "y"), (":status", "200")],
    ] {
        let (h1, h2) = answered(&format!("{fields:?}"), "GET", move |raw, stream| {
            raw.frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(fields));
        });
        assert_eq!((h1, h2), (502, Outcome::Status(502)), "{fields:?}");
    }
}

#[test]
fn s3_trailers_of_a_response_that_are_malformed_cut_it() {
    for trailer in [("X-Upper", "x"), ("x", "a\r\nb"), ("x", " a")] {
        let (h1, h2) = answered(&format!("{trailer:?}"), "GET", move |raw, stream| {
            raw.head(0, stream, &[(":status", "200")]);
            raw.frame(DATA, 0, stream, b"hello");
            raw.head(END_STREAM, stream, &[trailer]);
        });
        assert!(h1 == 0 && matches!(h2, Outcome::Reset(_)), "{trailer:?}: {h1} {h2:?}");
    }
}

#[test]
fn s3_a_response_that_has_no_body_has_none_whatever_the_service_sends() {
    for (status, method) in [("204", "GET"), ("304", "GET"), ("200", "HEAD")] {
        let (h1, h2) = answered(status, method, move |raw, stream| {
            raw.head(0, stream, &[(":status", status)]);
            raw.frame(DATA, END_STREAM, stream, b"hello");
        });
        let status: u16 = status.parse().unwrap();
        assert_eq!(h1, status, "{method}");
        assert!(h2 == Outcome::Status(status) || matches!(h2, Outcome::Reset(_)), "{method}: {h2:?}");
    }
    // To a caller that speaks HTTP/2 as well, the head is all there is.
    let service = RawService::scripted(|_, raw| {
        while let Some((stream, _)) = raw.request() {
            raw.head(0, stream, &[(":status", "204")]);
            raw.frame(DATA, END_STREAM, stream, b"hello");
        }
    });
    let mesh = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"").start();
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    assert_ne!(raw.until(HEADERS).flags & END_STREAM, 0);
    drop(raw);
    mesh.finish();
    // The length of what a GET would have brought is told.
    let (h1, h2) = answered("304", "GET", |raw, stream| {
        raw.head(END_STREAM, stream, &[(":status", "304"), ("content-length", "5")]);
    });
    assert_eq!((h1, h2), (304, Outcome::Status(304)));
}

#[test]
fn s3_switching_protocols_is_no_answer_of_http2() {
    let (h1, h2) = answered("101", "GET", |raw, stream| {
        raw.head(0, stream, &[(":status", "101"), ("x", "y")]);
        raw.head(0, stream, &[(":status", "200")]);
        raw.frame(DATA, END_STREAM, stream, b"hello");
    });
    assert_eq!((h1, h2), (502, Outcome::Status(502)));
    // Nor from a service that speaks HTTP/1.1, to a caller that speaks HTTP/2.
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nx");
        visit.drain();
    });
    let mesh = Config::new(&[&origin]).start();
    let response = call(mesh.address, request("GET", "/"), b"", None).unwrap();
    assert_eq!(response.head.status, 502);
    assert_eq!(response.head.headers["x-ringmesh-failure"], "response.upstream.unexpected_upgrade");
    mesh.finish();
}

#[test]
fn g24_what_looks_like_http11_in_a_body_stays_body() {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    let body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for length in [None, Some(body.len().to_string())] {
        let mut raw = Raw::connect(mesh.address);
        let more: Vec<_> = length.iter().map(|length| ("content-length", length.as_str())).collect();
        raw.head(0, 1, &fields("POST", "/", &more));
        for octet in body {
            raw.frame(DATA, 0, 1, &[*octet]);
        }
        raw.frame(DATA, END_STREAM, 1, b"");
        assert_eq!(raw.outcome(1), Outcome::Status(200));
    }
    mesh.finish();
    let requests: Vec<_> =
        origin.settle().iter().flat_map(crate::support::origin::Recorded::requests).collect();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.start == "POST / HTTP/1.1" && request.body == body));
}

#[test]
fn g03_a_field_block_may_come_in_any_pieces() {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect(mesh.address);
    let block = block(&fields("GET", "/in-pieces", &[("x", "y")]));
    raw.frame(HEADERS, END_STREAM, 1, &block[..1]);
    // More than a few pieces are a flood: see a11.
    let pieces: Vec<_> = block[1..].chunks(block.len() / 4).collect();
    for (n, piece) in pieces.iter().enumerate() {
        raw.frame(CONTINUATION, if n + 1 == pieces.len() { END_HEADERS } else { 0 }, 1, piece);
    }
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(origin.wait_requests(1)[0].target(), "/in-pieces");
    drop(raw);
    mesh.finish();
}
