//! gRPC, rows r01 to r14 of the list: tonic on both sides where a real client and server can show it (the health service is the
//! service called: it has a unary and a streaming method), the h2 crate where they would not do it. R-6 (retries by grpc-status)
//! and R-11 (health checks by this proxy) come with retries and health checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use ringmesh::authorize::Verdict;
use tokio_stream::StreamExt as _;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::support::GUARD;
use crate::support::http2::{Service, call, frame, local, read, request, send};
use crate::support::mesh::Config;
use crate::support::origin::Origin;

fn over_http2(service: &Service) -> Config {
    Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"")
}

fn grpc_request() -> Request<()> {
    let mut request = request("POST", "/pkg.Service/Method");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request
}

/// A message with its prefix.
fn message(length: usize) -> Vec<u8> {
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    message.resize(5 + length, b'm');
    message
}

fn head() -> http::response::Builder {
    Response::builder().header("content-type", "application/grpc")
}

fn ok_trailers() -> HeaderMap {
    [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))].into_iter().collect()
}

/// A tonic server whose service does what the name asks for: `status N` fails so, `many N` streams so many, anything else is
/// serving.
fn tonic_service() -> Service {
    Service::by_connection(|stream, _| async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
        let server = tonic::transport::Server::builder().add_service(HealthServer::new(Obeying));
        let _ = server.serve_with_incoming(incoming).await;
    })
}

struct Obeying;

type Answers =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Obeying {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let asked = &request.get_ref().service;
        if let Some(code) = asked.strip_prefix("status ") {
            return Err(Status::new(code.parse::<i32>().unwrap().into(), "as \u{e4}sked: 100%"));
        }
        let mut response = tonic::Response::new(HealthCheckResponse { status: 1 });
        if let Some(value) = request.metadata().get_bin("octets-bin") {
            response.metadata_mut().insert_bin("octets-bin", value.clone());
        }
        Ok(response)
    }

    type WatchStream = Answers;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Answers>, Status> {
        let many: i32 = request.get_ref().service.strip_prefix("many ").unwrap().parse().unwrap();
        let answers = (0..many).map(|n| Ok(HealthCheckResponse { status: n % 4 }));
        Ok(tonic::Response::new(Box::pin(tokio_stream::iter(answers))))
    }
}

async fn tonic_client(address: std::net::SocketAddr) -> HealthClient<tonic::transport::Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[test]
fn r01_trailers_are_kept_to_the_end_also_where_a_hop_speaks_http11() {
    let (told, asked) = mpsc::channel();
    let service = Service::scripted(move |request, mut respond| {
        told.send(request.headers().get("te").cloned()).unwrap();
        async move {
            let whole = read(request).await;
            let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
            let mut trailers = ok_trailers();
            trailers.insert("x-end", HeaderValue::from_static("yes"));
            send(&mut stream, whole.body.into(), Some(trailers)).await;
        }
    });
    let near = over_http2(&service).start();
    let far = Config::default()
        .service_at("app", &[&near.address.to_string()], "protocol = \"http1\"")
        .forwarding("via = \"first\"\n")
        .start();
    for mesh in [&near, &far] {
        let response = call(mesh.address, grpc_request(), &message(3), None).unwrap();
        assert_eq!(response.head.headers["content-type"], "application/grpc");
        assert_eq!(response.body, message(3));
        let trailers = response.trailers.unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-end"]),
            (&"0".parse().unwrap(), &"yes".parse().unwrap())
        );
        assert_eq!(asked.recv().unwrap().unwrap(), "trailers");
    }
    let (far, near) = (far.finish(), near.finish());
    for seen in [far.grpc, near.grpc] {
        assert!(seen.request_messages > 0 && seen.request_messages == seen.response_messages, "{seen:?}");
    }
    assert_eq!((far.grpc_statuses(), near.grpc_statuses()), ("0:1".into(), "0:2".into()));
}

#[test]
fn r02_what_fails_here_is_told_in_trailers_only() {
    let service = tonic_service();
    let dead = ["unix:/nonexistent"];
    let silent = Service::scripted(|_, mut respond| async move {
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
    });
    let route = |keys: &str| {
        format!("[[route]]\nservice = \"app\"\npath_prefix = \"/grpc.health.v1.Health\"\n{keys}\n")
    };
    let to = |endpoints: &[&str]| Config::default().service_at("app", endpoints, "protocol = \"http2\"");
    let cases = [
        (
            to(&dead).routes("[[route]]\nservice = \"app\"\npath = \"/other\"\n"),
            Code::Unimplemented,
            "route.local.no_route",
        ),
        (to(&dead), Code::Unavailable, "connect.upstream.refused"),
        (to(&[]), Code::Unavailable, "balance.upstream.no_endpoint"),
        (
            to(&[&silent.endpoint]).routes(&route("timeout = \"50ms\"")),
            Code::DeadlineExceeded,
            "response.upstream.timeout",
        ),
        (
            over_http2(&service).authorization(Vec::new(), Verdict::Deny),
            Code::PermissionDenied,
            "authorize.downstream.denied",
        ),
        (over_http2(&service).limits("body_bytes_max = \"3B\"\n"), Code::ResourceExhausted, "body_too_large"),
    ];
    for (config, code, label) in cases {
        let mesh = config.logged().start();
        let status = local(async {
            let mut client = tonic_client(mesh.address).await;
            client.check(ask("a long enough question")).await.unwrap_err()
        });
        assert_eq!(status.code(), code, "{label}: {status:?}");
        assert!(status.message().contains(label), "{label}: {status:?}");
        let seen = mesh.finish();
        assert_eq!(seen.grpc_statuses(), format!("{}:1", code as i32), "{label}");
        // HTTP says that all is well.
        assert_eq!(seen.by_class, [0, 0, 1, 0, 0, 0], "{label}");
        assert!(seen.log.contains(&format!("\"grpc_status\":\"{}\"", code as i32)), "{}", seen.log);
    }
}

#[test]
fn calls_are_routed_by_service_and_method() {
    let service = tonic_service();
    let routes = [
        ("method", "{ service = \"grpc.health.v1.Health\", method = \"Check\" }"),
        ("service", "{ service = \"grpc.health.v1.Health\" }"),
        ("any-watch", "{ method = \"Watch\" }"),
        ("grpc", "{}"),
    ];
    let mut tables = "[[route]]\nname = \"all\"\nservice = \"app\"\n".to_owned();
    for (name, grpc) in routes {
        tables += &format!("[[route]]\nname = \"{name}\"\nservice = \"app\"\nmatch = {{ grpc = {grpc} }}\n");
    }
    let mesh = over_http2(&service).routes(&tables).logged().start();
    local(async {
        let mut client = tonic_client(mesh.address).await;
        client.check(ask("")).await.unwrap();
        client.watch(ask("many 1")).await.unwrap().into_inner().next().await.unwrap().unwrap();
    });
    let grpc = |path: &str| {
        let mut grpc = grpc_request();
        *grpc.uri_mut() = format!("http://app.test{path}").parse().unwrap();
        grpc
    };
    call(mesh.address, grpc("/other.Service/Watch"), &message(3), None).unwrap();
    call(mesh.address, grpc("/other.Service/Check"), &message(3), None).unwrap();
    let mut plain = grpc("/grpc.health.v1.Health/Check");
    plain.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    call(mesh.address, plain, b"{}", None).unwrap();
    let lines = mesh.finish().lines();
    let mut taken: Vec<_> = lines
        .iter()
        .map(|line| (line["target"].as_str().unwrap().to_owned(), line["route"].as_str().unwrap().to_owned()))
        .collect();
    taken.sort();
    let expected = [
        ("/grpc.health.v1.Health/Check", "all"),
        ("/grpc.health.v1.Health/Check", "method"),
        ("/grpc.health.v1.Health/Watch", "any-watch"),
        ("/other.Service/Check", "grpc"),
        ("/other.Service/Watch", "any-watch"),
    ];
    assert_eq!(taken, expected.map(|(target, route)| (target.to_owned(), route.to_owned())));
}

#[test]
fn r02_what_the_service_answers_in_trailers_only_is_the_callers() {
    let service = tonic_service();
    let mesh = over_http2(&service).start();
    local(async {
        let mut client = tonic_client(mesh.address).await;
        for code in 1..=16 {
            let status = client.check(ask(&format!("status {code}"))).await.unwrap_err();
            assert_eq!((status.code() as i32, status.message()), (code, "as \u{e4}sked: 100%"));
        }
        assert_eq!(client.check(ask("")).await.unwrap().get_ref().status(), ServingStatus::Serving);
    });
    let seen = mesh.finish();
    assert_eq!(seen.grpc.by_status[..17], [1; 17]);
    // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
    assert_eq!(seen.grpc.errors, 6);
    assert_eq!((seen.grpc.request_messages, seen.grpc.response_messages), (17, 1));
}

#[test]
fn r03_an_answer_that_is_not_grpc_becomes_what_clients_should_make_of_it() {
    let service = Service::scripted(|request, mut respond| async move {
        let status = request.uri().path().trim_start_matches('/').to_owned();
        let whole = Response::builder()
            .status(status.as_str())
            .header("content-type", "text/plain")
            .header("content-length", "10")
            .header("retry-after", "7");
        let mut stream = respond.send_response(whole.body(()).unwrap(), false).unwrap();
        send(&mut stream, Bytes::from_static(b"the reason"), None).await;
    });
    let origin = Origin::answering(|request| {
        let status = request.start.split([' ', '/']).nth(2).unwrap();
        format!("HTTP/1.1 {status} X\r\ncontent-type: text/plain\r\ncontent-length: 10\r\nretry-after: 7\r\n\r\nthe reason")
            .into_bytes()
    });
    let (to_h2, to_h1) = (over_http2(&service).start(), Config::new(&[&origin]).start());
    let map = [
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (429, 14),
        (500, 2),
        (502, 14),
        (503, 14),
        (504, 14),
        (418, 2),
        (200, 2),
    ];
    for mesh in [&to_h2, &to_h1] {
        for (status, code) in map {
            let mut request = grpc_request();
            *request.uri_mut() = format!("http://app.test/{status}").parse().unwrap();
            let response = call(mesh.address, request, &message(1), None).unwrap();
            let fields = &response.head.headers;
            assert_eq!(
                (response.head.status.as_u16(), response.body.len(), response.trailers),
                (200, 0, None)
            );
            assert_eq!(fields["content-type"], "application/grpc", "{status}");
            assert_eq!(fields["grpc-status"], code.to_string(), "{status}");
            let told = fields["grpc-message"].to_str().unwrap();
            assert!(told.contains(&format!("HTTP status {status}")), "{told}");
            assert!(!fields.contains_key("content-length") && fields["retry-after"] == "7");
        }
    }
    for seen in [to_h2.finish(), to_h1.finish()] {
        assert_eq!(seen.grpc_statuses(), "2:3 7:1 12:1 13:1 14:4 16:1");
    }
}

#[test]
fn r03_tonic_sees_the_code_and_not_a_broken_message() {
    let origin =
        Origin::answering(|_| b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n".to_vec());
    let mesh = Config::new(&[&origin]).start();
    let status = local(async { tonic_client(mesh.address).await.check(ask("")).await.unwrap_err() });
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(mesh.finish().grpc_statuses(), "14:1");
}

#[test]
fn r04_a_reset_has_the_code_that_its_reason_means() {
    let service = Service::scripted(|request, mut respond| async move {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (when, reason) = path.split_once('/').unwrap();
        let reason = Reason::from(reason.parse::<u32>().unwrap());
        if when == "before" {
            respond.send_reset(reason);
            return;
        }
        let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
        stream.send_data(message(1).into(), false).unwrap();
        // Goes on when the caller has the message.
        let whole = read(request).await;
        assert_eq!(whole.body, message(2));
        stream.send_reset(reason);
    });
    let mesh = over_http2(&service).logged().start();
    let cases = [
        (Reason::REFUSED_STREAM, 14, Reason::INTERNAL_ERROR),
        (Reason::CANCEL, 1, Reason::CANCEL),
        (Reason::ENHANCE_YOUR_CALM, 8, Reason::ENHANCE_YOUR_CALM),
        (Reason::INADEQUATE_SECURITY, 7, Reason::INADEQUATE_SECURITY),
        (Reason::INTERNAL_ERROR, 13, Reason::INTERNAL_ERROR),
    ];
    for (reason, code, told) in cases {
        let asked = |when: &str| {
            let mut request = grpc_request();
            *request.uri_mut() = format!("http://app.test/{when}/{}", u32::from(reason)).parse().unwrap();
            request
        };
        let response = call(mesh.address, asked("before"), &message(2), None).unwrap();
        assert_eq!(response.head.status, 200, "{reason}");
        assert_eq!(response.head.headers["grpc-status"], code.to_string(), "{reason}");
        local(async {
            let mut caller = Caller::connect(mesh.address).await;
            let (response, mut stream) = caller.send.send_request(asked("after"), false).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(next(&mut body).await.unwrap(), message(1));
            send(&mut stream, message(2).into(), None).await;
            assert_eq!(next(&mut body).await.unwrap_err().reason(), Some(told), "{reason}");
        });
    }
    let seen = mesh.finish();
    assert_eq!(seen.grpc_statuses(), "1:2 7:2 8:2 13:2 14:2");
}

#[test]
fn r04_a_caller_that_goes_away_has_cancelled() {
    let (told, asked) = mpsc::channel();
    let service = Service::scripted(move |_, mut respond| {
        let told = told.clone();
        async move {
            told.send(Reason::NO_ERROR).unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            told.send(reason.unwrap()).unwrap();
        }
    });
    let mesh = over_http2(&service).start();
    local(async {
        let mut caller = Caller::connect(mesh.address).await;
        let (response, mut stream) = caller.send.send_request(grpc_request(), false).unwrap();
        stream.send_data(message(1).into(), false).unwrap();
        while asked.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        stream.send_reset(Reason::CANCEL);
        drop((response, stream));
        drop(caller.send);
        let _ = caller.driven.await;
    });
    assert_eq!(asked.recv_timeout(GUARD).unwrap(), Reason::CANCEL);
    assert_eq!(mesh.finish().grpc_statuses(), "1:1");
}

#[test]
fn r05_a_timeout_is_only_ever_made_shorter() {
    let (told, asked) = mpsc::channel();
    let service = Service::scripted(move |request, mut respond| {
        let timeout = request.headers().get("grpc-timeout").map(|v| v.to_str().unwrap().to_owned());
        told.send(timeout).unwrap();
        async move { drop(respond.send_response(head().header("grpc-status", "0").body(()).unwrap(), true)) }
    });
    let routed = over_http2(&service).routes("[[route]]\nservice = \"app\"\ntimeout = \"10s\"\n").start();
    let plain = over_http2(&service).start();
    let ask = |mesh: &crate::support::mesh::Mesh, timeout: Option<&str>| -> Option<Duration> {
        let mut request = grpc_request();
        if let Some(timeout) = timeout {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        call(mesh.address, request, &message(0), None).unwrap();
        let told = asked.recv().unwrap()?;
        Some(ringmesh::http::grpc::timeout(told.as_bytes()).unwrap_or_else(|| panic!("{told}")))
    };
    let second = Duration::from_secs(1);
    // The caller's, if it is the shorter one; else the route's, also where the caller has none.
    for (timeout, most) in [(Some("1S"), second), (Some("99999999H"), 10 * second), (None, 10 * second)] {
        let told = ask(&routed, timeout).unwrap();
        assert!(told <= most && told > most / 2, "{timeout:?} became {told:?}");
    }
    assert_eq!(ask(&plain, None), None);
    let told = ask(&plain, Some("2000000u")).unwrap();
    assert!(told <= 2 * second && told > second, "{told:?}");
    routed.finish();
    plain.finish();
}

#[test]
fn r05_a_timeout_holds_also_behind_a_hop_by_http11() {
    let silent = Service::scripted(|_, mut respond| async move {
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
    });
    let mesh = over_http2(&silent).keys("\ntimeouts = { response = \"1h\" }").start();
    let mut client = mesh.client();
    client.send("POST /p.S/M HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ngrpc-timeout: 20m\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0");
    let response = client.response();
    assert_eq!((response.status(), response.one("grpc-status").as_deref()), (200, Some("4")));
    assert_eq!(mesh.finish().grpc_statuses(), "4:1");
}

#[test]
fn r05_a_timeout_holds_also_for_a_service_that_speaks_http11_and_while_a_place_is_waited_for() {
    // The service answers nothing, and has an hour for that. No answer in time is DEADLINE_EXCEEDED, no place in time UNAVAILABLE.
    let code = |mesh: &crate::support::mesh::Mesh| {
        let mut request = grpc_request();
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("20m"));
        let head = call(mesh.address, request, &message(0), None).unwrap().head;
        (head.status.as_u16(), head.headers.get("grpc-status").map(|code| code.to_str().unwrap().to_owned()))
    };
    let keys = "\ntimeouts = { response = \"1h\" }\ncaps = { exchanges_max = 1, queue_timeout = \"1h\" }";
    let (gate, silent) = Origin::gated();
    let mesh = Config::new(&[&silent]).keys(keys).start();
    assert_eq!(code(&mesh), (200, Some("4".into())));
    let mut client = mesh.client();
    client.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n");
    // The gate is shut: the first has gone, and this one holds the place.
    silent.wait_bytes(b"GET /held");
    assert_eq!(code(&mesh), (200, Some("14".into())));
    gate.open();
    assert_eq!(client.response().text(), "/held");
    drop(client);
    mesh.finish();
}

#[test]
fn r07_a_response_without_a_status_is_a_failure() {
    let service = Service::scripted(|request, mut respond| async move {
        let odd = request.uri().path() == "/odd";
        let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
        let odd = odd.then(|| {
            [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("17"))]
                .into_iter()
                .collect()
        });
        send(&mut stream, message(9).into(), odd).await;
    });
    let mesh = over_http2(&service).logged().start();
    let mut odd = grpc_request();
    *odd.uri_mut() = "http://app.test/odd".parse().unwrap();
    for request in [grpc_request(), odd] {
        call(mesh.address, request, &message(0), None).unwrap();
    }
    let seen = mesh.finish();
    assert_eq!((seen.grpc_statuses(), seen.grpc.errors), ("other:1 absent:1".into(), 2));
    assert!(seen.log.contains("\"grpc_status\":\"absent\""), "{}", seen.log);
}

#[test]
fn r08_each_message_passes_before_the_next_is_sent() {
    let service = Service::scripted(|request, mut respond| async move {
        let mut body = request.into_body();
        let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
        while let Some(piece) = body.data().await {
            stream.send_data(piece.unwrap(), false).unwrap();
        }
        stream.send_trailers(ok_trailers()).unwrap();
    });
    let near = over_http2(&service).start();
    let far = Config::default()
        .service_at("app", &[&near.address.to_string()], "protocol = \"http1\"")
        .forwarding("via = \"first\"\n")
        .start();
    for mesh in [&near, &far] {
        local(async {
            let mut caller = Caller::connect(mesh.address).await;
            let (response, mut stream) = caller.send.send_request(grpc_request(), false).unwrap();
            let mut body = response.await.unwrap().into_body();
            for length in 0..20 {
                stream.send_data(message(length).into(), false).unwrap();
                let mut echo = Vec::new();
                while echo.len() < length + 5 {
                    echo.extend_from_slice(&next(&mut body).await.unwrap());
                }
                assert_eq!(echo, message(length));
            }
            stream.send_data(Bytes::new(), true).unwrap();
            assert!(body.data().await.is_none());
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        });
    }
    for (seen, calls) in [(far.finish(), 1), (near.finish(), 2)] {
        assert_eq!(seen.grpc.by_status[0], calls);
        assert_eq!((seen.grpc.request_messages, seen.grpc.response_messages), (20 * calls, 20 * calls));
    }
}

#[test]
fn r08_a_stream_goes_as_fast_as_it_is_read() {
    const WHOLE: usize = 64 << 20;
    let handed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&handed);
    let service = Service::scripted(move |request, mut respond| {
        let counted = Arc::clone(&counted);
        async move {
            let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
            if request.uri().path() == "/short" {
                stream.send_trailers(ok_trailers()).unwrap();
                return;
            }
            let mut left = Bytes::from(message(WHOLE - 5));
            while !left.is_empty() {
                stream.reserve_capacity(left.len().min(64 * 1024));
                let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
                    return;
                };
                counted.fetch_add(room, Ordering::Relaxed);
                stream.send_data(left.split_to(room.min(left.len())), false).unwrap();
            }
            stream.send_trailers(ok_trailers()).unwrap();
        }
    });
    let mesh = over_http2(&service).start();
    local(async {
        let mut caller = Caller::connect(mesh.address).await;
        let (response, _stream) = caller.send.send_request(grpc_request(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let first = body.data().await.unwrap().unwrap();
        // Another call on the same connections has its turn a thousand times, and the stream stays where it is.
        for _ in 0..1000 {
            let mut short = grpc_request();
            *short.uri_mut() = "http://app.test/short".parse().unwrap();
            let mut send = caller.send.clone().ready().await.unwrap();
            let mut body = send.send_request(short, true).unwrap().0.await.unwrap().into_body();
            assert!(body.data().await.is_none() && body.trailers().await.unwrap().is_some());
        }
        let far = handed.load(Ordering::Relaxed);
        assert!(far < 4 << 20, "{far} octets have left the service although nobody reads them");
        body.flow_control().release_capacity(first.len()).unwrap();
        let mut octets = first.len();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            octets += piece.len();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
        assert_eq!(octets, WHOLE);
    });
    let seen = mesh.finish();
    // how large a message is concerns the two ends.
    assert_eq!((seen.grpc.response_messages, seen.grpc_statuses()), (1, "0:1001".into()));
}

#[test]
fn r09_a_real_stream_is_counted_message_by_message() {
    let service = tonic_service();
    let mesh = over_http2(&service).logged().start();
    local(async {
        let mut client = tonic_client(mesh.address).await;
        let mut stream = client.watch(ask("many 20000")).await.unwrap().into_inner();
        let mut n = 0;
        while let Some(answer) = stream.next().await {
            assert_eq!(answer.unwrap().status, n % 4);
            n += 1;
        }
        assert_eq!(n, 20_000);
    });
    let seen = mesh.finish();
    assert_eq!((seen.grpc.request_messages, seen.grpc.response_messages), (1, 20_000));
    let line: serde_json::Value = serde_json::from_str(seen.log.lines().next().unwrap()).unwrap();
    assert_eq!((&line["grpc_status"], &line["grpc_response_messages"]), (&"0".into(), &20_000.into()));
}

#[test]
fn r10_binary_metadata_passes_as_it_is() {
    let service = tonic_service();
    let mesh = over_http2(&service).start();
    let octets: Vec<u8> = (0..=255).collect();
    local(async {
        let mut client = tonic_client(mesh.address).await;
        let mut request = tonic::Request::new(ask(""));
        request.metadata_mut().insert_bin("octets-bin", MetadataValue::from_bytes(&octets));
        let response = client.check(request).await.unwrap();
        assert_eq!(response.metadata().get_bin("octets-bin").unwrap().to_bytes().unwrap(), octets);
    });
    mesh.finish();
    let echo = Service::echoing();
    let mesh = over_http2(&echo).start();
    // Padded or not, several in one, some that are no base64: nobody reads them here.
    for value in ["AAEC", "AAE=", "AAE", "AAE,AAEC==, AA", "?"] {
        let mut request = grpc_request();
        request.headers_mut().append("x-bin", value.parse().unwrap());
        request.headers_mut().append("x-bin", HeaderValue::from_static("AA"));
        let response = call(mesh.address, request, &message(0), None).unwrap();
        let echoed: Vec<_> = response.head.headers.get_all("echo-x-bin").iter().collect();
        assert_eq!(echoed.last().unwrap(), &"AA", "{value}");
    }
    mesh.finish();
}

#[test]
fn r12_a_goaway_for_too_many_pings_leads_to_a_new_connection() {
    let service = Service::by_connection(|stream, number| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            if number == 0 && request.uri().path() == "/last" {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            let head = head().header("grpc-status", "0").header("x-connection", number.to_string());
            drop(respond.send_response(head.body(()).unwrap(), true));
        }
    });
    let mesh = over_http2(&service).start();
    let ask = |path: &str| {
        let mut request = grpc_request();
        *request.uri_mut() = format!("http://app.test{path}").parse().unwrap();
        let fields = call(mesh.address, request, &message(0), None).unwrap().head.headers;
        let shown = |name: &str| fields.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        (shown("grpc-status"), shown("x-connection"))
    };
    assert_eq!(ask("/"), ("0".into(), "0".into()));
    assert_eq!(ask("/last"), ("14".into(), String::new()));
    assert_eq!(ask("/"), ("0".into(), "1".into()));
    mesh.finish();
}

/// A server that says that it is pinged too often is pinged half as often on the next connection. That a ping does not come
/// before its time holds on the busiest machine.
#[test]
fn r12_who_was_pinged_too_often_is_pinged_less() {
    // More than the second that a ping may be late, so that twice is told from once.
    const INTERVAL: Duration = Duration::from_millis(1300);
    let (told, pinged) = mpsc::channel();
    let service = Service::by_connection(move |mut stream, number| {
        let told = told.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
            let mut quiet_since = std::time::Instant::now();
            loop {
                let mut head = [0; 9];
                if stream.read_exact(&mut head).await.is_err() {
                    return;
                }
                let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                stream.read_exact(&mut payload).await.unwrap();
                match (head[3], head[4]) {
                    (4, 0) => {
                        stream.write_all(&frame(4, 1, 0, &[])).await.unwrap();
                        quiet_since = std::time::Instant::now();
                    }
                    (6, 0) if number == 0 => {
                        told.send(quiet_since.elapsed()).unwrap();
                        let goaway = [&[0, 0, 0, 1, 0, 0, 0, 11][..], b"too_many_pings"].concat();
                        stream.write_all(&frame(7, 0, 0, &goaway)).await.unwrap();
                        return;
                    }
                    (6, 0) => {
                        told.send(quiet_since.elapsed()).unwrap();
                        stream.write_all(&frame(6, 1, 0, &payload)).await.unwrap();
                        // :status 200, grpc-status: 0.
                        let block = [&[0x88, 0, 11][..], b"grpc-status", &[1, b'0']].concat();
                        stream.write_all(&frame(1, 5, 1, &block)).await.unwrap();
                    }
                    _ => {}
                }
            }
        }
    });
    let mesh = over_http2(&service).keys("\nhttp2 = { ping_interval = \"1300ms\" }").start();
    for (times, code) in [(1, "14"), (2, "0")] {
        let response = call(mesh.address, grpc_request(), &message(0), None).unwrap();
        assert_eq!(response.head.headers["grpc-status"], code);
        let quiet = pinged.recv().unwrap();
        // The clock of the proxy is a few milliseconds coarse.
        assert!(
            quiet + INTERVAL / 20 >= INTERVAL * times,
            "pinged after {quiet:?}, not {times} times {INTERVAL:?}"
        );
    }
    mesh.finish();
}

#[test]
fn r14_a_limit_on_streams_leads_to_more_connections() {
    let (open, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let (calls, all) = (Arc::clone(&open), Arc::clone(&connections));
    let service = Service::by_connection(move |stream, _| {
        let calls = Arc::clone(&calls);
        all.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(100);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let calls = Arc::clone(&calls);
                tokio::task::spawn_local(async move {
                    calls.fetch_add(1, Ordering::Relaxed);
                    let mut stream = respond.send_response(head().body(()).unwrap(), false).unwrap();
                    // Until all are there.
                    while calls.load(Ordering::Relaxed) < 250 {
                        tokio::task::yield_now().await;
                    }
                    stream.send_trailers(ok_trailers()).unwrap();
                });
            }
        }
    });
    let mesh = over_http2(&service)
        .keys("\nhttp2 = { streams_max = 1000, connections_max = 8 }")
        .change(|snapshot| snapshot.http2.streams_max = 1000)
        .start();
    local(async {
        let caller = Caller::connect(mesh.address).await;
        let mut waiting = Vec::new();
        for _ in 0..250 {
            let mut send = caller.send.clone().ready().await.unwrap();
            waiting.push(send.send_request(grpc_request(), true).unwrap().0);
        }
        for response in waiting {
            let mut body = response.await.unwrap().into_body();
            assert!(body.data().await.is_none());
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        }
    });
    assert_eq!(mesh.finish().grpc_statuses(), "0:250");
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

/// A caller on the h2 crate.
struct Caller {
    send: h2::client::SendRequest<Bytes>,
    driven: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Caller {
    async fn connect(address: std::net::SocketAddr) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        // As many as a test wants at once.
        builder.initial_max_send_streams(1000);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let driven = tokio::task::spawn_local(connection);
        Self { send: send.ready().await.unwrap(), driven }
    }
}

/// The next piece of a body.
async fn next(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let piece = body.data().await.expect("goes on")?;
    body.flow_control().release_capacity(piece.len())?;
    Ok(piece)
}
