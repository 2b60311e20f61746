//! Bodies through all four translations (1→1, 1→2, 2→1, 2→2): of every size both ways at once, broken off at either end,
//! answered early, announced and not. What is cut is told as cut; what is whole arrives whole.

use bytes::Bytes;
use http::{HeaderValue, Response};

use crate::support::GUARD;
use crate::support::http2::{
    CANCEL, DATA, END_STREAM, GOAWAY, HEADERS, NO_ERROR, Outcome, RST_STREAM, Raw, RawService, Service, call,
    fields, request, send,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, Recorded};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn over_http2(endpoint: &str) -> Mesh {
    Config::default().service_at("app", &[endpoint], "protocol = \"http2\"").start()
}

/// A service of HTTP/1.1 that gives back what it gets, chunked or not as it came.
fn h1_echo() -> Origin {
    Origin::answering(|request| {
        let mut out =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len()).into_bytes();
        out.extend_from_slice(&request.body);
        out
    })
}

#[test]
fn large_bodies_pass_whole_both_ways_through_all_four() {
    let (h1, h2) = (h1_echo(), Service::echoing());
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2.endpoint));
    for size in [500_000, 20_000_000] {
        let body = pattern(size);
        for (name, mesh) in [("1", &to_h1), ("2", &to_h2)] {
            let mut client = mesh.client();
            client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"));
            // Both ways at once: a service that streams back needs its answer to be read.
            std::thread::scope(|scope| {
                let mut writer = client.socket().try_clone().unwrap();
                let octets = &body;
                scope.spawn(move || std::io::Write::write_all(&mut writer, octets).unwrap());
                assert!(client.response().body == body, "{size} octets, 1 to {name}");
            });
            for length in [None, Some(size)] {
                let mut post = request("POST", "/");
                if let Some(length) = length {
                    post.headers_mut().insert("content-length", HeaderValue::from(length));
                }
                let response = call(mesh.address, post, &body, None).unwrap();
                assert!(response.body == body, "{size} octets, 2 to {name}");
            }
        }
    }
    assert!(to_h1.finish().failures.is_empty());
    assert!(to_h2.finish().failures.is_empty());
}

#[test]
fn uploads_side_by_side_on_one_connection_to_the_service_all_arrive() {
    // More than the connection's window at a time, so that they wait for each other.
    let h2 = Service::echoing();
    let mesh = over_http2(&h2.endpoint);
    let body = pattern(500_000);
    std::thread::scope(|scope| {
        for n in 0..24 {
            let (mesh, body) = (&mesh, &body);
            scope.spawn(move || {
                if n % 2 == 0 {
                    let response = call(mesh.address, request("POST", "/"), body, None).unwrap();
                    assert!(response.body == *body);
                } else {
                    let mut client = mesh.client();
                    client.send(format!(
                        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    ));
                    std::thread::scope(|scope| {
                        let mut writer = client.socket().try_clone().unwrap();
                        scope.spawn(move || std::io::Write::write_all(&mut writer, body).unwrap());
                        assert!(client.response().body == *body);
                    });
                }
            });
        }
    });
    let seen = mesh.finish();
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
}

#[test]
fn an_answer_before_the_end_of_the_upload_is_passed_on_whole() {
    let h1 = Origin::scripted(|visit| {
        visit.head();
        visit.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
        visit.finish();
        visit.drain();
    });
    let h2 = Service::scripted(|request, mut respond| async move {
        // The body is dropped unread: h2 resets the stream behind the answer.
        drop(request);
        let response = Response::builder().status(413).body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        send(&mut stream, Bytes::from_static(b"no"), None).await;
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2.endpoint));
    for (name, mesh) in [("1", &to_h1), ("2", &to_h2)] {
        for size in [10, 500_000, 5_000_000] {
            let mut client = mesh.client();
            client
                .send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"))
                .send(pattern(size));
            let response = client.response();
            assert_eq!((response.status(), response.text().as_str()), (413, "no"), "{size}, 1 to {name}");
            let mut raw = Raw::connect(mesh.address);
            raw.head(0, 1, &fields("POST", "/", &[]));
            for piece in pattern(size.min(60_000)).chunks(16_000) {
                raw.frame(DATA, 0, 1, piece);
            }
            assert_eq!(raw.outcome(1), Outcome::Status(413), "{size}, 2 to {name}");
            assert_eq!(raw.body(1).0, b"no");
            // The rest is not wanted, which is no error (RFC 9113 §8.1), and the connection serves on.
            let end = raw.until(RST_STREAM);
            assert!([NO_ERROR, CANCEL].contains(&end.code()), "{end:?}");
            raw.settle();
        }
    }
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn an_upload_that_the_caller_breaks_off_never_looks_whole_to_the_service() {
    let h1 = Origin::scripted(|visit| {
        visit.head();
        visit.drain();
    });
    let (told, ends) = std::sync::mpsc::channel();
    let h2 = Service::scripted(move |request, respond| {
        let told = told.clone();
        async move {
            let _respond = respond;
            let (_, mut body) = request.into_parts();
            let end = loop {
                match body.data().await {
                    Some(Ok(piece)) => drop(body.flow_control().release_capacity(piece.len())),
                    Some(Err(error)) => break error.reason(),
                    None => break None,
                }
            };
            told.send(end).unwrap();
        }
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2.endpoint));
    for length in [false, true] {
        for how in ["reset", "fin", "goaway"] {
            for mesh in [&to_h1, &to_h2] {
                let mut raw = Raw::connect(mesh.address);
                let more: &[(&str, &str)] = if length { &[("content-length", "100000")] } else { &[] };
                raw.head(0, 1, &fields("POST", "/", more));
                raw.frame(DATA, 0, 1, &[7; 10_000]);
                raw.settle();
                match how {
                    "reset" => drop(raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())),
                    "fin" => raw.finish(),
                    _ => {
                        raw.frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]);
                        raw.finish();
                    }
                }
                if std::ptr::eq(mesh, &raw const to_h2) {
                    let end = ends.recv_timeout(GUARD).unwrap();
                    assert!(end.is_some(), "2 to 2, {how}: a reset, not an end");
                }
            }
        }
        let mut client = to_h2.client();
        let framing = if length {
            "content-length: 100000\r\n\r\n"
        } else {
            "transfer-encoding: chunked\r\n\r\n2710\r\n"
        };
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}")).send(vec![7; 10_000]);
        client.finish();
        assert!(ends.recv_timeout(GUARD).unwrap().is_some(), "1 to 2: a reset, not an end");
    }
    to_h1.finish();
    to_h2.finish();
    for recorded in h1.settle() {
        assert_eq!(recorded.requests().len(), 0, "a whole message");
        assert!(recorded.end.is_some());
    }
}

#[test]
fn a_response_that_the_service_breaks_off_is_told_to_the_caller() {
    for how in ["reset", "closed", "goaway"] {
        let service = RawService::scripted(move |_, raw| {
            while let Some((stream, _)) = raw.request() {
                raw.head(0, stream, &[(":status", "200")]);
                raw.frame(DATA, 0, stream, b"half");
                raw.settle();
                match how {
                    "reset" => drop(raw.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())),
                    "goaway" => {
                        raw.frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
                        return;
                    }
                    _ => return,
                }
            }
        });
        let mesh = over_http2(&service.endpoint);
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        client.cut();
        let mut raw = Raw::connect(mesh.address);
        raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
        assert_eq!(raw.outcome(1), Outcome::Status(200), "{how}");
        let (_, reset) = raw.body(1);
        assert!(reset.is_some(), "{how}");
        drop((client, raw));
        mesh.finish();
    }
}

#[test]
fn a_caller_that_resets_a_response_ends_it_at_the_service() {
    let body = vec![7; 1 << 20];
    let h1 = Origin::scripted(move |visit| {
        visit.request();
        visit.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut chunk = format!("{:x}\r\n", body.len()).into_bytes();
        chunk.extend_from_slice(&body);
        chunk.extend_from_slice(b"\r\n");
        while visit.send(&chunk) {}
    });
    let (told, ends) = std::sync::mpsc::channel();
    let h2 = Service::scripted(move |_, mut respond| {
        let told = told.clone();
        async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            loop {
                stream.reserve_capacity(10_000);
                match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(room)) => drop(stream.send_data(Bytes::from(vec![7; room]), false)),
                    _ => break,
                }
            }
            told.send(()).unwrap();
        }
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2.endpoint));
    for mesh in [&to_h1, &to_h2] {
        let mut raw = Raw::connect(mesh.address);
        raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
        raw.until(DATA);
        raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
        raw.settle();
    }
    let mut client = to_h2.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.wait_bytes(1000);
    client.reset();
    for _ in 0..2 {
        ends.recv_timeout(GUARD).unwrap();
    }
    to_h1.finish();
    to_h2.finish();
    assert!(h1.settle().iter().all(|recorded| recorded.over));
}

#[test]
fn a_caller_that_resets_while_the_service_is_silent_harms_nobody() {
    // In the middle of a response that has begun, of which nothing more comes; and in the middle of an upload of which
    // nothing is taken.
    let origin = Origin::scripted(|visit| {
        let Some(head) = visit.head() else { return };
        if head.target() == "/bystander" {
            visit.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        } else if head.target() == "/silent" {
            visit.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n");
        } else {
            visit.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno");
        }
        visit.drain();
    });
    let mesh = Config::new(&[&origin]).start();
    for (path, method) in [("/silent", "GET"), ("/silent", "POST"), ("/early", "POST")] {
        let mut raw = Raw::connect(mesh.address);
        raw.head(if method == "GET" { END_STREAM } else { 0 }, 1, &fields(method, path, &[]));
        for _ in 0..4 {
            if method == "POST" {
                raw.frame(DATA, 0, 1, &[7; 16_000]);
            }
        }
        raw.until(HEADERS);
        raw.until(DATA);
        raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
        raw.settle();
        let mut bystander = mesh.client();
        bystander.send("GET /bystander HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(bystander.response().status(), 200, "{method} {path}");
    }
    mesh.finish();
}

#[test]
fn a_body_that_is_expected_is_asked_for_end_to_end() {
    let h1 = Origin::scripted(|visit| {
        while let Some(head) = visit.head() {
            assert_eq!(head.one("expect").as_deref(), Some("100-continue"));
            visit.send("HTTP/1.1 100 Continue\r\n\r\n");
            let body = visit.bytes(5);
            assert_eq!(body, b"hello");
            visit.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let h2 = RawService::scripted(|_, raw| {
        while let Some((stream, ended)) = raw.request() {
            assert!(!ended);
            raw.head(0, stream, &[(":status", "100")]);
            while raw.until(DATA).flags & END_STREAM == 0 {}
            raw.head(0, stream, &[(":status", "200")]);
            raw.frame(DATA, END_STREAM, stream, b"ok");
        }
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2.endpoint));
    for (name, mesh) in [("1", &to_h1), ("2", &to_h2)] {
        let mut client = mesh.client();
        client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(client.response().status(), 100, "1 to {name}");
        client.send("hello");
        assert_eq!(client.response().text(), "ok", "1 to {name}");
        let mut raw = Raw::connect(mesh.address);
        raw.head(0, 1, &fields("POST", "/", &[("expect", "100-continue"), ("content-length", "5")]));
        assert_eq!(raw.until(HEADERS).status(), 100, "2 to {name}");
        raw.frame(DATA, END_STREAM, 1, b"hello");
        assert_eq!(raw.outcome(1), Outcome::Status(200), "2 to {name}");
        drop((client, raw));
    }
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn a_length_that_a_response_does_not_keep_cuts_it() {
    let h1 = Origin::scripted(|visit| {
        visit.request();
        visit.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    });
    let mesh = Config::new(&[&h1]).start();
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    let (body, reset) = raw.body(1);
    assert!(body == b"half" && reset.is_some(), "{body:?} {reset:?}");
    drop(raw);
    mesh.finish();
}

#[test]
fn a_body_over_the_limit_is_refused_wherever_it_grows_over_it() {
    let (h1, h2) = (
        Origin::plain(),
        Service::scripted(|request, mut respond| async move {
            let (_, mut body) = request.into_parts();
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
            }
            if body.is_end_stream() {
                drop(respond.send_response(Response::new(()), true));
            }
        }),
    );
    for (name, config) in [
        ("1", Config::new(&[&h1])),
        ("2", Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"")),
    ] {
        let mesh = config.limits("body_bytes_max = \"1KiB\"").start();
        for (announced, length) in [(Some("1025"), 1_025), (None, 1_025), (None, 100_000)] {
            let mut raw = Raw::connect(mesh.address);
            let more: Vec<_> = announced.iter().map(|length| ("content-length", *length)).collect();
            raw.head(0, 1, &fields("POST", "/", &more));
            for piece in vec![7; length].chunks(16_000).take(4) {
                raw.frame(DATA, 0, 1, piece);
            }
            assert_eq!(raw.outcome(1), Outcome::Status(413), "2 to {name}, {announced:?} {length}");
        }
        let whole = call(mesh.address, request("POST", "/"), &[7; 1_024], None).unwrap();
        assert_eq!(whole.head.status, 200);
        mesh.finish();
    }
    let whole: usize = h1.settle().iter().map(|recorded| Recorded::requests(recorded).len()).sum();
    assert_eq!(whole, 1);
}
