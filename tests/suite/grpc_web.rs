//! gRPC-Web: what browsers send by either version of HTTP, against a service that speaks gRPC. Octets on the browser's side are
//! written and read by hand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::support::client::Client;
use crate::support::http2::{Service, call, local, read, request, send};
use crate::support::mesh::Config;
use crate::support::origin::Origin;
use crate::support::wire::Message;

/// Two messages, and what a gRPC server makes of them as text.
const ASKED: &[u8] = b"\0\0\0\0\x03one\0\0\0\0\0";
/// A frame of trailers.
const END: &[u8] = b"\x80\0\0\0\x23grpc-status:0\r\nx-end-bin:AAEC/w==\r\n";

/// Answers with the messages that came; fails where the name says so. Asserts that what comes is gRPC.
fn service() -> Service {
    Service::scripted(|request, mut respond| async move {
        let fields = request.headers().clone();
        assert!(fields["content-type"].to_str().unwrap().starts_with("application/grpc+proto"), "{fields:?}");
        assert_eq!(fields["te"], "trailers");
        let head = Response::builder().header("content-type", "application/grpc+proto");
        match request.uri().path() {
            "/fails" => {
                let head = head.header("grpc-status", "5").header("grpc-message", "no%20such");
                drop(respond.send_response(head.body(()).unwrap(), true));
            }
            "/page" => {
                let head = Response::builder().status(404).header("content-type", "text/html");
                let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                send(&mut stream, Bytes::from_static(b"<html>"), None).await;
            }
            _ => {
                let timeout = fields.get("grpc-timeout").cloned();
                let whole = read(request).await;
                let head = head.header("echo-timeout", timeout.unwrap_or(HeaderValue::from_static("none")));
                let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                trailers.insert("x-end-bin", HeaderValue::from_static("AAEC/w=="));
                send(&mut stream, whole.body.into(), Some(trailers)).await;
            }
        }
    })
}

fn translating(service: &Service) -> Config {
    Config::default()
        .service_at("app", &[&service.endpoint], "protocol = \"http2\"")
        .change(|snapshot| snapshot.listeners[0].grpc_web = true)
}

fn http2_request(path: &str, content_type: &str) -> Request<()> {
    let mut request = request("POST", path);
    request.headers_mut().insert("content-type", content_type.parse().unwrap());
    request
}

fn http11_request(path: &str, content_type: &str, body: &[u8], chunk: Option<usize>) -> Vec<u8> {
    let mut out =
        format!("POST {path} HTTP/1.1\r\nhost: app.test\r\ncontent-type: {content_type}\r\n").into_bytes();
    match chunk {
        None => out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes()),
        Some(_) => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
    }
    match chunk {
        None => out.extend_from_slice(body),
        Some(size) => {
            for piece in body.chunks(size) {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
    out
}

/// Reads base64 that is padded in between, group by group.
fn from_text(text: &[u8]) -> Vec<u8> {
    assert_eq!(text.len() % 4, 0, "whole groups");
    text.chunks(4).flat_map(|group| STANDARD.decode(group).unwrap()).collect()
}

fn ask(client: &mut Client, bytes: Vec<u8>) -> Message {
    client.send(bytes).response()
}

#[test]
fn a_call_in_octets_has_its_trailers_in_the_body_by_both_versions() {
    let service = service();
    let mesh = translating(&service).start();
    let wanted = [ASKED, END].concat();
    let response = call(mesh.address, http2_request("/", "application/grpc-web+proto"), ASKED, None).unwrap();
    assert_eq!(response.head.headers["content-type"], "application/grpc-web+proto");
    assert_eq!((&response.body, response.trailers), (&wanted, None));
    let mut client = mesh.client();
    // Whole and in chunks of any size, one after the other on a connection.
    for chunk in [None, Some(1), Some(7), Some(100)] {
        let response = ask(&mut client, http11_request("/", "application/grpc-web+proto", ASKED, chunk));
        assert_eq!(response.status(), 200, "{chunk:?}");
        assert_eq!(response.one("content-type").as_deref(), Some("application/grpc-web+proto"));
        assert_eq!((&response.body, &response.trailers[..]), (&wanted, &[][..]), "{chunk:?}");
    }
    let seen = mesh.finish();
    assert_eq!(seen.grpc_statuses(), "0:5");
    assert_eq!((seen.grpc.request_messages, seen.grpc.response_messages), (10, 10));
}

#[test]
fn a_call_in_text_is_the_same_in_base64() {
    let service = service();
    let mesh = translating(&service).start();
    let wanted = [ASKED, END].concat();
    // As one, and message by message, each padded.
    let one = STANDARD.encode(ASKED);
    let two = STANDARD.encode(&ASKED[..8]) + &STANDARD.encode(&ASKED[8..]);
    assert!(two.trim_end_matches('=').contains('='), "{two}");
    let mut client = mesh.client();
    for text in [&one, &two] {
        let request = http2_request("/", "application/grpc-web-text+proto");
        let response = call(mesh.address, request, text.as_bytes(), None).unwrap();
        assert_eq!(response.head.headers["content-type"], "application/grpc-web-text+proto");
        assert_eq!(from_text(&response.body), wanted);
        for chunk in [None, Some(1), Some(3), Some(5)] {
            let request = http11_request("/", "application/grpc-web-text+proto", text.as_bytes(), chunk);
            let response = ask(&mut client, request);
            assert_eq!(from_text(&response.body), wanted, "{chunk:?}");
        }
    }
    let seen = mesh.finish();
    assert_eq!((seen.grpc.request_messages, seen.grpc.response_messages), (20, 20));
}

#[test]
fn what_is_no_base64_reaches_no_service_as_a_whole_call() {
    let service = Service::scripted(|request, mut respond| async move {
        let mut body = request.into_body();
        while let Some(piece) = body.data().await {
            // Its end never comes: a reset does.
            let Ok(piece) = piece else { return };
            let _ = body.flow_control().release_capacity(piece.len());
        }
        drop(respond.send_response(Response::new(()), true));
    });
    let mesh = translating(&service).start();
    for bad in ["AAAA!!!!", "AAAAA"] {
        let request = http2_request("/", "application/grpc-web-text+proto");
        let response = call(mesh.address, request, bad.as_bytes(), None).unwrap();
        assert_eq!(response.head.headers["content-type"], "application/grpc-web-text");
        assert_eq!(response.head.headers["grpc-status"], "13", "{bad}");
        for chunk in [None, Some(2)] {
            let mut client = mesh.client();
            client.send(http11_request("/", "application/grpc-web-text+proto", bad.as_bytes(), chunk));
            let response = client.response();
            assert_eq!(
                (response.status(), response.one("grpc-status").as_deref()),
                (200, Some("13")),
                "{bad}"
            );
        }
    }
    let seen = mesh.finish();
    assert_eq!((seen.of_cause("bad_grpc_web_text"), seen.grpc_statuses()), (6, "13:6".into()));
}

#[test]
fn a_response_without_body_keeps_its_status_in_the_head() {
    let service = service();
    let mesh = translating(&service).start();
    let mut client = mesh.client();
    let text = STANDARD.encode(ASKED);
    for (path, code) in [("/fails", "5"), ("/page", "12")] {
        let request = http2_request(path, "application/grpc-web+proto");
        let response = call(mesh.address, request, ASKED, None).unwrap();
        assert_eq!((response.head.status.as_u16(), response.body.len()), (200, 0));
        assert_eq!(response.head.headers["grpc-status"], code);
        let request = http11_request(path, "application/grpc-web-text+proto", text.as_bytes(), None);
        let response = ask(&mut client, request);
        assert_eq!((response.status(), response.body.len()), (200, 0));
        assert_eq!(response.one("grpc-status").as_deref(), Some(code));
        assert!(response.one("content-type").unwrap().starts_with("application/grpc-web-text"));
    }
    assert_eq!(mesh.finish().grpc_statuses(), "5:2 12:2");
}

#[test]
fn what_fails_here_is_told_as_grpc_web_tells_it() {
    let mesh = Config::default()
        .service_at("app", &["unix:/nonexistent"], "protocol = \"http2\"")
        .change(|snapshot| snapshot.listeners[0].grpc_web = true)
        .start();
    let response = call(mesh.address, http2_request("/", "application/grpc-web+proto"), ASKED, None).unwrap();
    assert_eq!(response.head.headers["content-type"], "application/grpc-web");
    assert_eq!(response.head.headers["grpc-status"], "14");
    let mut client = mesh.client();
    for chunk in [None, Some(4)] {
        let request = http11_request("/", "application/grpc-web-text", b"AAAAAAA=", chunk);
        let response = mesh.client().send(request).response();
        assert_eq!((response.status(), response.one("grpc-status").as_deref()), (200, Some("14")));
        assert_eq!(response.one("content-type").as_deref(), Some("application/grpc-web-text"));
        assert!(response.one("grpc-message").unwrap().contains("connect.upstream.refused"));
        assert_eq!(response.body, b"");
    }
    // Anybody else is answered as ever.
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    assert_eq!(mesh.finish().grpc_statuses(), "14:3");
}

#[test]
fn r05_a_browsers_timeout_is_kept_to_and_passed_on() {
    let service = service();
    let mesh = translating(&service).start();
    let bytes = http11_request("/", "application/grpc-web+proto\r\ngrpc-timeout: 20S", ASKED, None);
    let response = ask(&mut mesh.client(), bytes);
    let written = response.one("echo-timeout").unwrap();
    let told = ringmesh::http::grpc::timeout(written.as_bytes()).unwrap();
    assert!(written != "20S" && told <= std::time::Duration::from_secs(20), "{written}");
    mesh.finish();
}

#[test]
fn a_stream_reaches_the_browser_message_by_message() {
    let (told, asked) = tokio::sync::mpsc::unbounded_channel::<()>();
    let asked = std::sync::Arc::new(tokio::sync::Mutex::new(asked));
    let service = Service::scripted(move |_, mut respond| {
        let asked = std::sync::Arc::clone(&asked);
        async move {
            let head = Response::builder().header("content-type", "application/grpc");
            let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
            for n in 0..5 {
                stream.send_data(vec![0, 0, 0, 0, 1, n].into(), false).unwrap();
                // Goes on when the browser has it.
                asked.lock().await.recv().await.unwrap();
            }
            let status = [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))];
            stream.send_trailers(status.into_iter().collect()).unwrap();
        }
    });
    let mesh = translating(&service).start();
    local(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let (send_request, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut send_request = send_request.ready().await.unwrap();
        let request = http2_request("/", "application/grpc-web-text");
        let (response, _) = send_request.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        for n in 0..5 {
            let piece = body.data().await.unwrap().unwrap();
            assert_eq!(from_text(&piece), [0, 0, 0, 0, 1, n]);
            told.send(()).unwrap();
        }
        let end = body.data().await.unwrap().unwrap();
        assert_eq!(from_text(&end), b"\x80\0\0\0\x0fgrpc-status:0\r\n");
        assert!(body.data().await.is_none() && body.trailers().await.unwrap().is_none());
    });
    mesh.finish();
}

#[test]
fn without_the_key_and_for_http11_services_it_passes_as_it_is() {
    let echo = Service::echoing();
    let off = Config::default().service_at("app", &[&echo.endpoint], "protocol = \"http2\"").start();
    let response = call(off.address, http2_request("/", "application/grpc-web-text"), b"AAAA", None).unwrap();
    assert_eq!(response.head.headers["echo-content-type"], "application/grpc-web-text");
    assert_eq!(response.body, b"AAAA");
    let response = ask(&mut off.client(), http11_request("/", "application/grpc-web-text", b"AAAA", None));
    assert_eq!(response.one("echo-content-type").as_deref(), Some("application/grpc-web-text"));
    assert_eq!(response.body, b"AAAA");
    let origin = Origin::plain();
    let on = Config::new(&[&origin]).change(|snapshot| snapshot.listeners[0].grpc_web = true).start();
    call(on.address, http2_request("/", "application/grpc-web-text"), b"AAAA", None).unwrap();
    let came = &origin.wait_requests(1)[0];
    assert_eq!(
        (came.one("content-type").as_deref(), &came.body[..]),
        (Some("application/grpc-web-text"), &b"AAAA"[..])
    );
    assert_eq!((off.finish().grpc_statuses(), on.finish().grpc_statuses()), (String::new(), String::new()));
}
