//! HTTP/2 from callers and to services, and every translation between it and HTTP/1.1.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use crate::support::client::Client;
use crate::support::http2::{Service, call, local, read, request, send};
use crate::support::mesh::Config;
use crate::support::origin::Origin;

/// Bodies around the sizes of frames, windows and buffers.
const SIZES: [usize; 7] = [1, 1000, 16_384, 16_385, 65_536, 300_000, 3_000_000];

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn over_http2(service: &Service) -> Config {
    Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"")
}

#[test]
fn a_request_and_its_response_pass_from_http2_to_http11() {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    let mut get = request("GET", "/a?b=c");
    get.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    get.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    let response = call(mesh.address, get, b"", None).unwrap();
    assert_eq!(response.head.status, 200);
    let came = &origin.wait_requests(1)[0];
    assert_eq!(came.start, "GET /a?b=c HTTP/1.1");
    assert_eq!(came.one("host").as_deref(), Some("app.test"));
    // Row G-15: the crumbs are one field again.
    assert_eq!(came.one("cookie").as_deref(), Some("a=1; b=2"));
    assert_eq!(came.one("via").as_deref(), Some("2.0 hop"));
    mesh.finish();
}

#[test]
fn bodies_of_all_sizes_pass_whole_through_all_translations() {
    let h2 = Service::echoing();
    let h1 = Origin::answering(|request| {
        let mut out = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for piece in request.body.chunks(10_000) {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n\r\n");
        out
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2).start());
    for size in SIZES {
        let body = pattern(size);
        for mesh in [&to_h1, &to_h2] {
            let response = call(mesh.address, request("POST", "/"), &body, None).unwrap();
            assert!(response.body == body, "{size} octets from HTTP/2");
        }
        let mut client = to_h2.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n")).send(&body);
        assert!(client.response().body == body, "{size} octets from HTTP/1.1 to HTTP/2");
        let mut chunked = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for piece in body.chunks(4321) {
            chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            chunked.extend_from_slice(piece);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        client.send(&chunked);
        assert!(client.response().body == body, "{size} chunked octets from HTTP/1.1 to HTTP/2");
    }
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn g19_trailers_pass_in_all_directions() {
    let h2 = Service::echoing();
    let h1 = Origin::scripted(|visit| {
        while visit.request().is_some() {
            visit.send(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-end: yes\r\n\r\n",
            );
        }
    });
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", HeaderValue::from_static("yes"));
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2).start());
    for mesh in [&to_h1, &to_h2] {
        let response = call(mesh.address, request("POST", "/"), b"body", Some(trailers.clone())).unwrap();
        assert_eq!(response.trailers.unwrap()["x-end"], "yes");
    }
    let mut client = to_h2.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-end: yes\r\n\r\n");
    let response = client.response();
    assert_eq!(response.trailer("x-end"), ["yes"]);
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn what_concerns_one_hop_stays_on_it_and_the_rest_passes() {
    let service = Service::echoing();
    let mesh = over_http2(&service).start();
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nhost: shop.test\r\nconnection: close, x-hop\r\nx-hop: 1\r\nkeep-alive: 1\r\nx-end: 2\r\n\r\n");
    let response = client.response();
    assert_eq!(response.one("echo-x-end").as_deref(), Some("2"));
    assert_eq!(response.one("echo-x-hop"), None);
    assert_eq!(response.one("echo-connection"), None);
    assert_eq!(response.one("echo-target").as_deref(), Some("http://shop.test/x"));
    assert_eq!(response.one("connection").as_deref(), Some("close"), "the caller wanted it to end");
    mesh.finish();
}

#[test]
fn many_exchanges_share_few_connections() {
    let service = Service::echoing();
    let mut mesh = over_http2(&service).start();
    local(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let (send_request, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut waiting = Vec::new();
        for n in 0..90 {
            let mut send_request = send_request.clone().ready().await.unwrap();
            let (response, _) = send_request.send_request(request("GET", &format!("/{n}")), true).unwrap();
            waiting.push(response);
        }
        for (n, response) in waiting.into_iter().enumerate() {
            let response = response.await.unwrap();
            assert_eq!(response.headers()["echo-target"], format!("http://app.test/{n}"));
        }
    });
    let totals = mesh.wait_totals(|totals| totals.upstream_connected > 0);
    assert_eq!(totals.upstream_connected, 1);
    mesh.finish();
}

#[test]
fn a_failure_is_told_as_http2_tells_it() {
    let mesh = Config::default().service_at("app", &["unix:/nonexistent"], "").start();
    let response = call(mesh.address, request("GET", "/"), b"", None).unwrap();
    assert_eq!(response.head.status, 503);
    assert_eq!(response.head.headers["x-ringmesh-failure"], "connect.upstream.refused");
    mesh.finish();
}

#[test]
fn r02_a_failed_grpc_call_gets_a_grpc_status() {
    let mesh = Config::default().service_at("app", &["unix:/nonexistent"], "").start();
    let mut call_request = request("POST", "/pkg.Service/Method");
    call_request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let response = call(mesh.address, call_request, b"\0\0\0\0\0", None).unwrap();
    assert_eq!(response.head.status, 200);
    assert_eq!(response.head.headers["grpc-status"], "14");
    assert_eq!(response.head.headers["content-type"], "application/grpc");
    mesh.finish();
}

#[test]
fn r05_a_grpc_timeout_is_honoured_and_passed_on_reduced() {
    let (told, asked) = std::sync::mpsc::channel();
    let service = Service::scripted(move |request, respond| {
        let told = told.clone();
        async move {
            told.send(request.headers()["grpc-timeout"].to_str().unwrap().to_owned()).unwrap();
            // Never answers; lives until the proxy resets the stream.
            let mut respond = respond;
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    });
    let mesh = over_http2(&service).start();
    let mut call_request = request("POST", "/pkg.Service/Method");
    call_request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    call_request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("300m"));
    let response = call(mesh.address, call_request, b"\0\0\0\0\0", None).unwrap();
    assert_eq!(response.head.headers["grpc-status"], "4", "deadline exceeded");
    let told = asked.recv().unwrap();
    let (digits, unit) = told.split_at(told.len() - 1);
    let nanos = digits.parse::<u64>().unwrap()
        * [("n", 1), ("u", 1_000), ("m", 1_000_000)].iter().find(|(u, _)| *u == unit).unwrap().1;
    assert!(nanos <= 300_000_000, "{told}");
    mesh.finish();
}

#[test]
fn a_stream_that_the_caller_resets_ends_upstream_at_once() {
    let (told, ended) = std::sync::mpsc::channel();
    let begun = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&begun);
    let service = Service::scripted(move |_, respond| {
        let told = told.clone();
        seen.store(true, Ordering::Release);
        async move {
            let mut respond = respond;
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            told.send(reason.is_ok()).unwrap();
        }
    });
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.drain();
    });
    let (to_h2, to_h1) = (over_http2(&service).start(), Config::new(&[&origin]).start());
    for mesh in [&to_h2, &to_h1] {
        local(async {
            let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
            let (send_request, connection) = h2::client::handshake(stream).await.unwrap();
            let driven = tokio::task::spawn_local(connection);
            let mut send_request = send_request.ready().await.unwrap();
            let (response, mut stream) = send_request.send_request(request("GET", "/"), true).unwrap();
            if std::ptr::eq(mesh, &raw const to_h1) {
                while origin.recorded().is_empty() {
                    tokio::task::yield_now().await;
                }
            } else {
                while !begun.load(Ordering::Acquire) {
                    tokio::task::yield_now().await;
                }
            }
            stream.send_reset(h2::Reason::CANCEL);
            drop((response, stream, send_request));
            let _ = driven.await;
        });
    }
    assert!(ended.recv_timeout(crate::support::GUARD).unwrap(), "the service sees the reset");
    origin.wait_end(0);
    to_h2.finish();
    to_h1.finish();
}

#[test]
fn g18_interim_responses_pass() {
    let origin = Origin::scripted(|visit| {
        while visit.request().is_some() {
            visit.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let mesh = Config::new(&[&origin]).start();
    local(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let (send_request, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut send_request = send_request.ready().await.unwrap();
        let (mut response, _) = send_request.send_request(request("GET", "/"), true).unwrap();
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(interim.status(), 103);
        assert_eq!(interim.headers()["link"], "</a>");
        assert_eq!(response.await.unwrap().status(), 200);
    });
    mesh.finish();
}

#[test]
fn responses_without_a_body_have_none_in_either_version() {
    let h1 = Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            let status = if request.start.contains("/204") { "204 No Content" } else { "200 OK" };
            let length = if request.start.contains("/204") { "" } else { "content-length: 5\r\n" };
            visit.send(format!("HTTP/1.1 {status}\r\n{length}\r\n"));
        }
    });
    let h2 = Service::scripted(|request, mut respond| async move {
        let no_content = request.uri().path() == "/204";
        let mut response = Response::builder().status(if no_content { 204 } else { 200 });
        if !no_content {
            response = response.header("content-length", "5");
        }
        drop(respond.send_response(response.body(()).unwrap(), true));
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2).start());
    for mesh in [&to_h1, &to_h2] {
        let head = call(mesh.address, request("HEAD", "/"), b"", None).unwrap();
        assert_eq!((head.head.headers["content-length"].to_str().unwrap(), head.body.len()), ("5", 0));
        let none = call(mesh.address, request("GET", "/204"), b"", None).unwrap();
        assert_eq!((none.head.status.as_u16(), none.body.len()), (204, 0));
    }
    let mut client = to_h2.client();
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.response_to_head().one("content-length").as_deref(), Some("5"));
    client.send("GET /204 HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.response().one("content-length"), None);
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn a_response_that_breaks_off_is_seen_as_cut() {
    let h1 = Origin::scripted(|visit| {
        visit.request();
        visit.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    });
    let h2 = Service::scripted(|_, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(b"half"), false).unwrap();
        for _ in 0..100 {
            // A reset takes the place of what was not written yet.
            tokio::task::yield_now().await;
        }
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    let (to_h1, to_h2) = (Config::new(&[&h1]).start(), over_http2(&h2).start());
    for mesh in [&to_h1, &to_h2] {
        let got = call(mesh.address, request("GET", "/"), b"", None);
        assert!(got.is_err(), "a reset, not an end: {got:?}");
    }
    let mut client = to_h2.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.cut();
    to_h1.finish();
    to_h2.finish();
}

#[test]
fn g10_a_drain_lets_streams_end_and_tells_the_caller() {
    let service = Service::scripted(|request, mut respond| async move {
        let whole = read(request).await;
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        send(&mut stream, whole.body.into(), None).await;
    });
    let mesh = over_http2(&service).start();
    local(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let (send_request, connection) = h2::client::handshake(stream).await.unwrap();
        let driven = tokio::task::spawn_local(connection);
        let mut send_request = send_request.ready().await.unwrap();
        let (response, mut stream) = send_request.send_request(request("POST", "/"), false).unwrap();
        stream.send_data(Bytes::from_static(b"one "), false).unwrap();
        // The proxy has the stream when it has sent something back on the connection: the settings and a ping's answer.
        mesh.settle(1);
        mesh.order(ringmesh::shard::link::Order::Drain);
        stream.send_data(Bytes::from_static(b"two"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut bytes = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            bytes.extend_from_slice(&piece);
            let _ = body.flow_control().release_capacity(piece.len());
        }
        assert_eq!(bytes, b"one two");
        drop((send_request, stream, body));
        driven.await.unwrap().unwrap();
    });
    mesh.finish();
}

#[test]
fn other_first_octets_are_still_http11() {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    for method in ["PUT", "POST", "PRIX", "PATCH"] {
        let mut client: Client = mesh.client();
        client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(client.response().status(), 200, "{method}");
    }
    mesh.finish();
}
