//! `grpc.health.v1` on the admin address, asked by tonic.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ringmesh::control::{Proxy, Start};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus::{self, NotServing, ServiceUnknown, Serving};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::support::http2::{call, local, request};
use crate::support::origin::Origin;
use crate::support::{GUARD, Gate};

fn text(origin: &Origin, more: &str) -> String {
    format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\nservice = \"app\"\n\
         [[service]]\nname = \"empty\"\nendpoints = []\n{more}",
        origin.endpoint
    )
}

async fn client(address: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

async fn check(client: &mut HealthClient<Channel>, service: &str) -> Result<ServingStatus, Code> {
    let asked = HealthCheckRequest { service: service.to_owned() };
    client.check(asked).await.map(|answer| answer.get_ref().status()).map_err(|status| status.code())
}

async fn watch(client: &mut HealthClient<Channel>, service: &str) -> Streaming<HealthCheckResponse> {
    let asked = HealthCheckRequest { service: service.to_owned() };
    client.watch(asked).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    stream.message().await.unwrap().expect("it goes on").status()
}

#[test]
fn r11_health_is_what_ready_says_and_changes_are_told() {
    let gate = std::sync::Arc::new(Gate::default());
    let closed = std::sync::Arc::clone(&gate);
    let origin = Origin::scripted(move |visit| {
        visit.request();
        closed.pass();
        visit.send("HTTP/1.1 204 No Content\r\n\r\n");
    });
    let proxy = Proxy::start(Start::text(text(&origin, ""))).unwrap();
    let admin = proxy.admin().unwrap();
    assert!(get(admin, "/ready").starts_with("HTTP/1.1 200 "), "HTTP/1.1 is spoken on the same port");
    // An exchange that keeps the proxy from ending.
    let mut caller = TcpStream::connect(proxy.listener("in").unwrap()).unwrap();
    caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    origin.wait_requests(1);
    local(async {
        let mut client = client(admin).await;
        for (service, wanted) in [
            ("", Ok(Serving)),
            ("app", Ok(Serving)),
            ("empty", Ok(NotServing)),
            ("nothing", Err(Code::NotFound)),
            ("later", Err(Code::NotFound)),
        ] {
            assert_eq!(check(&mut client, service).await, wanted, "{service:?}");
        }
        let mut all = watch(&mut client, "").await;
        let mut later = watch(&mut client, "later").await;
        assert_eq!((next(&mut all).await, next(&mut later).await), (Serving, ServiceUnknown));
        let more = format!("[[service]]\nname = \"later\"\nendpoints = [\"{}\"]\n", origin.endpoint);
        proxy.reload(&text(&origin, &more)).unwrap();
        assert_eq!(next(&mut later).await, Serving);
        proxy.drain();
        // Only what has changed was told.
        assert_eq!((next(&mut all).await, next(&mut later).await), (NotServing, NotServing));
        assert_eq!(check(&mut client, "").await, Ok(NotServing));
    });
    assert!(get(admin, "/ready").starts_with("HTTP/1.1 503 "));
    gate.open();
    proxy.join();
}

#[test]
fn r11_other_services_are_not_there_and_pages_are_by_both_versions() {
    let origin = Origin::plain();
    let proxy = Proxy::start(Start::text(text(&origin, ""))).unwrap();
    let admin = proxy.admin().unwrap();
    let mut other = request("POST", "/pkg.Service/Method");
    other.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response = call(admin, other, b"\0\0\0\0\0", None).unwrap();
    assert_eq!(response.head.headers["grpc-status"], "12");
    let response = call(admin, request("GET", "/live"), b"", None).unwrap();
    assert_eq!((response.head.status.as_u16(), &response.body[..]), (200, &b"live\n"[..]));
    // A beginning that two versions share is no version yet.
    for start in ["P", "PRI", "PUT"] {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.write_all(start.as_bytes()).unwrap();
        stream.write_all(b"X / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{start}: {answer}");
    }
    proxy.drain();
    proxy.join();
}

#[test]
fn r09_metrics_and_pages_tell_grpc_calls_apart() {
    let service = crate::support::http2::Service::scripted(|request, mut respond| async move {
        let code = request.uri().path().trim_start_matches('/').to_owned();
        crate::support::http2::read(request).await;
        let head =
            http::Response::builder().header("content-type", "application/grpc").header("grpc-status", code);
        drop(respond.send_response(head.body(()).unwrap(), true));
    });
    let config = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
         [[service]]\nname = \"app\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n[[route]]\nservice = \"app\"\n",
        service.endpoint
    );
    let proxy = Proxy::start(Start::text(config)).unwrap();
    let (listener, admin) = (proxy.listener("in").unwrap(), proxy.admin().unwrap());
    for code in ["0", "0", "5", "14", "99"] {
        let mut asked = request("POST", &format!("/{code}"));
        asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        call(listener, asked, b"\0\0\0\0\x01a", None).unwrap();
    }
    // Shards hand over once a second.
    let began = std::time::Instant::now();
    let metrics = loop {
        let page = get(admin, "/metrics");
        if page.contains("ringmesh_exchanges_total{service=\"app\",class=\"2xx\"} 5\n") {
            break page;
        }
        assert!(began.elapsed() < GUARD, "{page}");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    };
    for line in [
        "grpc_calls_total{service=\"app\",grpc_status=\"0\"} 2",
        "grpc_calls_total{service=\"app\",grpc_status=\"5\"} 1",
        "grpc_calls_total{service=\"app\",grpc_status=\"14\"} 1",
        "grpc_calls_total{service=\"app\",grpc_status=\"other\"} 1",
        "grpc_request_messages_total{service=\"app\"} 5",
        "grpc_response_messages_total{service=\"app\"} 0",
    ] {
        assert!(metrics.contains(&format!("ringmesh_{line}\n")), "{line} is not in\n{metrics}");
    }
    let services = get(admin, "/services");
    assert!(services.contains("0:2 5:1 14:1 other:1"), "{services}");
    let json = get(admin, "/services?format=json");
    let json: serde_json::Value = serde_json::from_str(json.split_once("\r\n\r\n").unwrap().1).unwrap();
    let app = &json["services"][0];
    assert_eq!((&app["grpc"]["by_status"]["14"], &app["grpc"]["request_messages"]), (&1.into(), &5.into()));
    assert_eq!(app["errors"], 2, "unavailable, and what is no code");
    let operations = include_str!("../../docs/operations.md");
    for name in ["grpc_calls", "grpc_request_messages", "grpc_response_messages", "grpc_status"] {
        assert!(operations.contains(&format!("`{name}`")), "docs/operations.md does not tell of {name}");
    }
    proxy.drain();
    proxy.join();
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
