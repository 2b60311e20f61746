//! Active probes of all kinds against real services, and endpoints that drain. What is asserted are states and numbers of
//! requests, never how long something took.

#![allow(clippy::disallowed_methods, reason = "no shard: a test looks again and again")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Response};
use prost::Message as _;

use crate::breaker::{By, Stage, counted, text, until};
use crate::support::authority::{Authority, TLS13, uri};
use crate::support::folder::Folder;
use crate::support::http2;
use crate::support::origin::{Origin, ok};
use crate::support::wire::Message;
use crate::support::{End, GUARD};

/// Probes that follow each other soon, and no breaker that would find out first.
fn keys(probe: &str) -> String {
    format!(
        "balance = \"round-robin\"\nbreaker = {{ enabled = false }}\nprobe = {{ {probe}, interval = \"10ms\", \
         interval_unhealthy = \"10ms\", timeout = \"5s\" }}\n"
    )
}

/// A service of which the health answers as the switch says, and everything else well.
fn switched(
    answer: impl Fn(bool, &Message) -> Vec<u8> + Send + Sync + 'static,
) -> (Origin, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let well = Arc::new(AtomicBool::new(true));
    let requests = Arc::<AtomicUsize>::default();
    let (theirs, count) = (Arc::clone(&well), Arc::clone(&requests));
    let (origin, _) = counted(move |visit, request| {
        if request.target().starts_with("/health") {
            return visit.send(answer(theirs.load(Ordering::Acquire), request));
        }
        count.fetch_add(1, Ordering::AcqRel);
        visit.send(ok(request))
    });
    (origin, well, requests)
}

/// Nothing goes to it although it would answer; then it does.
#[track_caller]
fn assert_follows(stage: &Stage, by: By, endpoint: &str, well: &AtomicBool, requests: &AtomicUsize) {
    for _ in 0..2 {
        until("it passes", || stage.state(endpoint).0 == "used");
        let before = requests.load(Ordering::Acquire);
        for _ in 0..8 {
            assert_eq!(stage.ask(by), Some(200));
        }
        assert!(requests.load(Ordering::Acquire) > before, "it gets its part");
        well.store(false, Ordering::Release);
        until("it fails", || stage.state(endpoint).0 == "failing_probe");
        let before = requests.load(Ordering::Acquire);
        for _ in 0..8 {
            assert_eq!(stage.ask(by), Some(200));
        }
        assert_eq!(requests.load(Ordering::Acquire), before, "it is passed over");
        well.store(true, Ordering::Release);
    }
}

#[test]
fn an_endpoint_that_fails_http_probes_is_passed_over_until_it_passes_them() {
    for shards in [1, 3] {
        let (origin, well, requests) = switched(|well, request| {
            assert_eq!(request.one("host").as_deref(), Some("probe.test"));
            assert_eq!(request.target(), "/health?deep");
            let status = if well { 204 } else { 503 };
            format!("HTTP/1.1 {status} Oh\r\n{}\r\n", if well { "" } else { "Content-Length: 0\r\n" })
                .into_bytes()
        });
        let good = Origin::plain();
        let probe =
            "kind = \"http\", path = \"/health?deep\", host = \"probe.test\", statuses = [204, \"404-405\"]";
        // The other one answers 200, which is no status that is asked for.
        let stage = Stage::new(shards, &[&origin.endpoint, &good.endpoint], &keys(probe));
        until("the other one fails", || stage.state(&good.endpoint).0 == "failing_probe");
        stage.end();
        let probe = "kind = \"http\", path = \"/health?deep\", host = \"probe.test\"";
        let stage = Stage::new(shards, &[&origin.endpoint, &good.endpoint], &keys(probe));
        assert_follows(&stage, By::Http1, &origin.endpoint, &well, &requests);
        let metrics = stage.page("/metrics");
        assert!(metrics.contains("ringmesh_probes_total{service=\"app\",result=\"failed\"} "), "{metrics}");
        stage.end();
    }
}

/// A gRPC server whose health is as the switch says.
fn grpc() -> (http2::Service, Arc<AtomicBool>, Arc<AtomicUsize>) {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
    let well = Arc::new(AtomicBool::new(true));
    let requests = Arc::<AtomicUsize>::default();
    let (theirs, count) = (Arc::clone(&well), Arc::clone(&requests));
    let service = http2::Service::scripted(move |request, mut respond| {
        let (well, count) = (Arc::clone(&theirs), Arc::clone(&count));
        async move {
            let whole = http2::read(request).await;
            let mut message = Vec::new();
            if whole.head.uri.path() == "/grpc.health.v1.Health/Check" {
                let asked = HealthCheckRequest::decode(&whole.body[5..]).unwrap();
                assert_eq!(asked.service, "shop.Cart");
                let is_well = well.load(Ordering::Acquire);
                let status = if is_well { ServingStatus::Serving } else { ServingStatus::NotServing };
                message = HealthCheckResponse { status: status.into() }.encode_to_vec();
            } else {
                count.fetch_add(1, Ordering::AcqRel);
            }
            let mut framed = vec![0];
            framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
            framed.extend_from_slice(&message);
            let response = Response::builder().status(200).header("content-type", "application/grpc");
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            http2::send(&mut stream, Bytes::from(framed), Some(trailers)).await;
        }
    });
    (service, well, requests)
}

#[test]
fn an_endpoint_that_fails_grpc_probes_is_passed_over_until_it_passes_them() {
    let (service, well, requests) = grpc();
    let (other, _, _) = grpc();
    let probe = "kind = \"grpc\", grpc_service = \"shop.Cart\"";
    let keys = format!("{}protocol = \"http2\"\n", keys(probe));
    let stage = Stage::new(2, &[&service.endpoint, &other.endpoint], &keys);
    assert_follows(&stage, By::Grpc, &service.endpoint, &well, &requests);
    stage.end();
}

#[test]
fn a_tcp_probe_finds_out_whether_an_endpoint_takes_connections_and_brings_it_back() {
    let good = Origin::plain();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = address.to_string();
    drop(listener);
    // Here the breaker finds out, too; a trial by a request would come in an hour.
    let probe = "balance = \"round-robin\"\nbreaker = { ejection_base = \"1h\", ejection_max = \"1h\" }\nprobe = { kind = \
                 \"tcp\", interval = \"10ms\", interval_unhealthy = \"10ms\" }\n";
    let stage = Stage::new(1, &[&endpoint, &good.endpoint], probe);
    until("it fails", || stage.state(&endpoint).0 == "failing_probe");
    assert_used_once_it_listens(stage, address);
}

#[test]
fn a_tls_probe_finds_out_whether_an_endpoint_is_who_it_should_be() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let serving = |server| {
        Origin::tls(server, |visit| {
            while let Some(request) = visit.request() {
                visit.send(ok(&request));
            }
        })
    };
    let good = serving(ours.host("shop.example").server());
    let renamed = serving(ours.host("cart.example").server());
    let foreign = serving(theirs.host("shop.example").server());
    let folder = Folder::new();
    let ca = folder.write("ca.pem", &ours.pem());
    for kind in ["tls", "http"] {
        let edge = format!(
            "{}tls = \"edge\"\nserver_name = \"shop.example\"\nca = {ca:?}\n",
            keys(&format!("kind = \"{kind}\""))
        );
        let stage = Stage::new(1, &[&good.endpoint, &renamed.endpoint, &foreign.endpoint], &edge);
        for bad in [&renamed, &foreign] {
            until("it fails", || stage.state(&bad.endpoint).0 == "failing_probe");
        }
        until("it is probed", || {
            let metrics = stage.page("/metrics");
            metrics.lines().any(|line| {
                line.strip_prefix("ringmesh_probes_total{service=\"app\",result=\"passed\"} ")
                    .is_some_and(|count| count.parse::<u64>().unwrap() > 0)
            })
        });
        assert_eq!(stage.state(&good.endpoint).0, "used", "{kind}");
        stage.end();
    }
}

#[test]
fn a_probe_of_the_mesh_presents_our_certificate_and_wants_theirs() {
    let authority = Authority::new("mesh");
    let id = |name: &str| format!("spiffe://mesh.local/ns/shop/sa/{name}");
    let serving = |name: &str| {
        // Asks for a certificate, too.
        let leaf = authority.leaf(|params| params.subject_alt_names = vec![uri(&id(name))]);
        Origin::tls(authority.mutual_server(&leaf, TLS13), |visit| {
            while let Some(request) = visit.request() {
                visit.send(ok(&request));
            }
        })
    };
    let (stock, cart) = (serving("stock"), serving("cart"));
    let own = authority.workload(&id("shop"));
    let folder = Folder::new();
    let certificate = folder.write("own.pem", &own.chain_pem());
    let key = folder.write("own.key", &own.key_pem());
    let bundle = folder.write("bundle.pem", &authority.pem());
    let identity = format!(
        "identity = {{ source = \"files\", certificate = {certificate:?}, key = {key:?}, bundle = {bundle:?} }}\n"
    );
    let mesh = format!(
        "{}tls = \"mesh\"\nidentities = [{:?}]\n",
        keys("kind = \"http\", statuses = [200]"),
        id("stock")
    );
    let text = identity + &text(1, &[&stock.endpoint, &cart.endpoint], &mesh);
    let stage = Stage::of(&text);
    until("the other one fails", || stage.state(&cart.endpoint).0 == "failing_probe");
    until("it is asked", || stock.recorded().iter().any(|one| one.bytes.starts_with(b"GET / HTTP/1.1\r\n")));
    assert_eq!(stage.state(&stock.endpoint).0, "used");
    assert!(cart.recorded().iter().all(|one| one.bytes.is_empty()), "a stranger gets nothing");
    stage.end();
}

#[test]
fn an_endpoint_waits_for_its_first_probe_where_it_is_told_to_and_not_otherwise() {
    for (start, state) in [("optimistic", "used"), ("wait", "awaiting_probe")] {
        // Never answers a probe.
        let (origin, requests) = counted(|visit, request| {
            if request.target() == "/" {
                visit.drain();
                return false;
            }
            visit.send(ok(request))
        });
        let good = Origin::plain();
        let keys = format!(
            "balance = \"round-robin\"\nprobe = {{ kind = \"http\", start = \"{start}\", timeout = \"1m\" }}\n"
        );
        let stage = Stage::new(1, &[&origin.endpoint, &good.endpoint], &keys);
        until("the other one passes", || stage.state(&good.endpoint).0 == "used");
        assert_eq!(stage.state(&origin.endpoint).0, state);
        until("it is probed", || requests.load(Ordering::Acquire) > 0);
        for _ in 0..10 {
            assert_eq!(stage.ask(By::Http1), Some(200));
        }
        let asked = requests.load(Ordering::Acquire) - 1;
        assert_eq!(asked, if start == "wait" { 0 } else { 5 }, "{start}");
        stage.end();
    }
}

#[test]
fn an_endpoint_that_says_so_in_an_answer_is_left_at_once_until_it_passes_again() {
    for by in [By::Http1, By::Http2] {
        let leave = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&leave);
        let (origin, requests) = counted(move |visit, request| {
            if request.target() == "/" {
                // Only the first probe is answered.
                return visit.send(ok(request));
            }
            let wish = if theirs.load(Ordering::Acquire) {
                "X-Envoy-Immediate-Health-Check-Fail: 1\r\n"
            } else {
                ""
            };
            visit.send(format!("HTTP/1.1 200 OK\r\n{wish}Content-Length: 0\r\n\r\n"))
        });
        let good = Origin::plain();
        // The next probe is far away.
        let stage = Stage::new(
            1,
            &[&origin.endpoint, &good.endpoint],
            "balance = \"round-robin\"\nprobe = { kind = \"http\", interval = \"1h\" }\n",
        );
        until("it is probed", || requests.load(Ordering::Acquire) == 1);
        // What it found is known: it would speak for the endpoint.
        until("both pass", || probes(&stage, "passed") == 2);
        leave.store(true, Ordering::Release);
        while stage.state(&origin.endpoint).0 == "used" {
            assert_eq!(stage.ask(by), Some(200));
            assert!(requests.load(Ordering::Acquire) <= 2, "one answer is enough");
        }
        assert_eq!(stage.state(&origin.endpoint).0, "failing_probe");
        let before = requests.load(Ordering::Acquire);
        for _ in 0..6 {
            assert_eq!(stage.ask(by), Some(200));
        }
        assert_eq!(requests.load(Ordering::Acquire), before, "{by:?}");
        stage.end();
    }
}

#[test]
fn a_probe_asks_at_the_port_that_is_named_and_knows_nothing_of_the_endpoints_own() {
    let (health, well, _) = switched(|well, _| {
        format!("HTTP/1.1 {} Oh\r\nContent-Length: 0\r\n\r\n", if well { 200 } else { 503 }).into_bytes()
    });
    let port: std::net::SocketAddr = health.endpoint.parse().unwrap();
    let (origin, asked) = counted(|visit, request| visit.send(ok(request)));
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let probe = format!(
        "balance = \"round-robin\"\nbreaker = {{ ejection_base = \"1h\", ejection_max = \"1h\" }}\nprobe = {{ kind = \"http\", path = \
         \"/health\", port = {}, interval = \"10ms\", interval_unhealthy = \"10ms\" }}\n",
        port.port()
    );
    let stage = Stage::new(1, &[&origin.endpoint, &dead], &probe);
    let passed = |stage: &Stage| probes(stage, "passed");
    // All are well at that port.
    until("both pass", || passed(&stage) >= 4);
    for _ in 0..4 {
        assert_eq!(stage.ask(By::Http1), Some(200));
    }
    until("one refuses", || stage.state(&dead) == ("ejected".into(), "connect".into()));
    let before = passed(&stage);
    until("it goes on passing there", || passed(&stage) >= before + 10);
    assert_eq!(
        stage.state(&dead),
        ("ejected".into(), "connect".into()),
        "which says nothing of its own port"
    );
    assert_eq!(asked.load(Ordering::Acquire), 4, "requests and no probes");
    well.store(false, Ordering::Release);
    until("both fail", || stage.state(&origin.endpoint).0 == "failing_probe");
    stage.end();
}

#[test]
fn a_probe_brings_back_an_endpoint_that_was_ejected_because_it_took_no_connections() {
    let good = Origin::plain();
    let (origin, address) = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (
            Origin::on(
                listener,
                |visit| while visit.request().is_some_and(|request| visit.send(ok(&request))) {},
            ),
            address,
        )
    };
    let endpoint = address.to_string();
    // A trial by a request would come in an hour, and its probes do not fail for long.
    let keys = "balance = \"round-robin\"\nbreaker = { ejection_base = \"1h\", ejection_max = \"1h\" }\nprobe = { kind = \
                \"tcp\", interval = \"10ms\", interval_unhealthy = \"10ms\", unhealthy = 100 }\n";
    let stage = Stage::new(1, &[&endpoint, &good.endpoint], keys);
    until("it passes", || stage.page("/metrics").contains("result=\"passed\""));
    drop(origin.settle());
    while stage.state(&endpoint).0 == "used" {
        assert_eq!(stage.ask(By::Http1), Some(200), "the other one has it");
    }
    assert_used_once_it_listens(stage, address);
}

/// Listens where nobody did, and waits until both endpoints, in turn, get requests.
fn assert_used_once_it_listens(stage: Stage, address: std::net::SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    let origin = Origin::on(socket.into(), |visit| {
        while let Some(request) = visit.request() {
            visit.send(ok(&request));
        }
    });
    until("it is used", || stage.state(&address.to_string()).0 == "used");
    for _ in 0..4 {
        assert_eq!(stage.ask(By::Http1), Some(200));
    }
    origin.wait_requests(2);
    stage.end();
}

#[test]
fn an_endpoint_that_has_said_so_in_an_answer_must_pass_as_often_as_one_that_has_failed() {
    const HEALTHY: usize = 40;
    let (leave, probes) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
    let (theirs, count) = (Arc::clone(&leave), Arc::clone(&probes));
    let (origin, _) = counted(move |visit, request| {
        if request.target() == "/health" {
            count.fetch_add(1, Ordering::AcqRel);
            return visit.send(ok(request));
        }
        let wish =
            if theirs.load(Ordering::Acquire) { "X-Envoy-Immediate-Health-Check-Fail: 1\r\n" } else { "" };
        visit.send(format!("HTTP/1.1 200 OK\r\n{wish}Content-Length: 0\r\n\r\n"))
    });
    let good = Origin::plain();
    let keys = format!(
        "balance = \"round-robin\"\nprobe = {{ kind = \"http\", path = \"/health\", interval = \"20ms\", interval_unhealthy = \
         \"20ms\", healthy = {HEALTHY} }}\n"
    );
    let stage = Stage::new(1, &[&origin.endpoint, &good.endpoint], &keys);
    until("both pass", || self::probes(&stage, "passed") >= 4);
    until("it is used", || stage.state(&origin.endpoint).0 == "used");
    leave.store(true, Ordering::Release);
    let before = probes.load(Ordering::Acquire);
    for _ in 0..2 {
        assert_eq!(stage.ask(By::Http1), Some(200));
    }
    leave.store(false, Ordering::Release);
    // It may be that it has come back already; then it has passed so often.
    until("it is used", || stage.state(&origin.endpoint).0 == "used");
    assert!(
        probes.load(Ordering::Acquire) >= before + HEALTHY,
        "{}",
        probes.load(Ordering::Acquire) - before
    );
    stage.end();
}

#[test]
fn a_probe_without_an_answer_in_its_time_has_failed() {
    // Takes connections, and answers neither a request nor a handshake.
    let silent = || Origin::scripted(|visit| _ = visit.drain());
    let authority = Authority::new("ours");
    let folder = Folder::new();
    let ca = folder.write("ca.pem", &authority.pem());
    let edge = format!("tls = \"edge\"\nserver_name = \"shop.example\"\nca = {ca:?}\n");
    for (kind, tls) in [("http", ""), ("tls", edge.as_str())] {
        let (one, other) = (silent(), silent());
        let probe = format!(
            "probe = {{ kind = \"{kind}\", interval = \"10ms\", interval_unhealthy = \"10ms\", timeout = \"50ms\" }}\n{tls}"
        );
        let stage = Stage::new(1, &[&one.endpoint, &other.endpoint], &probe);
        until("it fails", || stage.state(&one.endpoint).0 == "failing_probe");
        stage.end();
    }
}

/// A gRPC server that says it is serving, with these fields in its head and this status behind.
fn serving(field: Option<&'static str>, code: &'static str) -> http2::Service {
    use tonic_health::pb::HealthCheckResponse;
    use tonic_health::pb::health_check_response::ServingStatus;
    http2::Service::scripted(move |request, mut respond| async move {
        let _ = http2::read(request).await;
        let message = HealthCheckResponse { status: ServingStatus::Serving.into() }.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        framed.extend_from_slice(&message);
        let mut response = Response::builder().status(200).header("content-type", "application/grpc");
        if let Some(field) = field {
            response = response.header(field, "1");
        }
        let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(code));
        http2::send(&mut stream, Bytes::from(framed), Some(trailers)).await;
    })
}

#[test]
fn an_endpoint_that_says_so_to_a_probe_is_left_at_once_whatever_else_it_says() {
    const WISH: &str = "x-envoy-immediate-health-check-fail";
    let patient = "interval = \"10ms\", interval_unhealthy = \"10ms\", unhealthy = 100";
    let (leaves, stays) = (serving(Some(WISH), "0"), serving(None, "0"));
    let keys = format!("protocol = \"http2\"\nprobe = {{ kind = \"grpc\", {patient} }}\n");
    let stage = Stage::new(1, &[&leaves.endpoint, &stays.endpoint], &keys);
    until("it is left", || stage.state(&leaves.endpoint).0 == "failing_probe");
    assert_eq!(stage.state(&stays.endpoint).0, "used");
    stage.end();
    // By HTTP it passes first, so that its threshold would hold.
    let (origin, well, _) = switched(|well, _| {
        let wish = if well { String::new() } else { format!("{WISH}: 1\r\n") };
        format!("HTTP/1.1 200 OK\r\n{wish}Content-Length: 0\r\n\r\n").into_bytes()
    });
    let good = Origin::plain();
    let keys = format!("probe = {{ kind = \"http\", path = \"/health\", {patient} }}\n");
    let stage = Stage::new(1, &[&origin.endpoint, &good.endpoint], &keys);
    until("it has passed", || stage.page("/metrics").contains("result=\"passed\""));
    until("it is used", || stage.state(&origin.endpoint).0 == "used");
    well.store(false, Ordering::Release);
    let began = probes(&stage, "failed");
    until("it is left", || stage.state(&origin.endpoint).0 == "failing_probe");
    assert!(probes(&stage, "failed") < began + 100, "before its threshold");
    stage.end();
}

/// A proxy before this one would leave it for what one of its endpoints says.
#[test]
fn what_an_endpoint_says_to_a_request_of_being_left_goes_no_further_and_only_who_is_probed_is_believed() {
    const WISH: &str = "x-envoy-immediate-health-check-fail";
    // Once, and nothing is asked after that.
    let probe = "probe = { kind = \"tcp\", interval = \"1h\", timeout = \"5s\" }\n";
    let by_http1 = |field: &'static str| {
        let answer = format!("HTTP/1.1 200 OK\r\nX-A: 1\r\n{field}X-B: 2\r\nContent-Length: 0\r\n\r\n");
        counted(move |visit, _| visit.send(answer.clone().into_bytes())).0
    };
    for believes in [true, false] {
        for (http2, by) in [(false, By::Http1), (false, By::Http2), (true, By::Http1), (true, By::Http2)] {
            let told = format!("believes {believes}, service by HTTP/2 {http2}, {by:?}");
            let old = [by_http1("X-Envoy-Immediate-Health-Check-Fail: true\r\n"), by_http1("")];
            let new = [serving(Some(WISH), "0"), serving(None, "0")];
            let (endpoints, protocol) = match http2 {
                true => (new.each_ref().map(|service| &*service.endpoint), "protocol = \"http2\"\n"),
                false => (old.each_ref().map(|origin| &*origin.endpoint), ""),
            };
            let keys = format!("balance = \"round-robin\"\n{protocol}{}", if believes { probe } else { "" });
            let stage = Stage::new(1, &endpoints, &keys);
            if believes {
                until("both have passed", || probes(&stage, "passed") == 2);
            }
            // In turn.
            let mut said = [(); 2].map(|()| stage.says(by, WISH).unwrap());
            said.sort_unstable();
            assert_eq!(said, [false, !believes], "{told}");
            let state = if believes { "failing_probe" } else { "used" };
            assert_eq!(stage.state(endpoints[0]).0, state, "{told}");
            stage.end();
        }
    }
}

/// How many probes of all endpoints had that result.
fn probes(stage: &Stage, result: &str) -> u64 {
    let metrics = stage.page("/metrics");
    let start = format!("ringmesh_probes_total{{service=\"app\",result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&*start)?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_status_of_grpc_counts_more_than_what_the_message_says() {
    let (bad, good) = (serving(None, "12"), serving(None, "0"));
    let keys = format!("{}protocol = \"http2\"\n", keys("kind = \"grpc\""));
    let stage = Stage::new(1, &[&bad.endpoint, &good.endpoint], &keys);
    until("it fails", || stage.state(&bad.endpoint).0 == "failing_probe");
    until("the other one passes", || stage.page("/metrics").contains("result=\"passed\""));
    assert_eq!(stage.state(&good.endpoint).0, "used");
    stage.end();
}

#[test]
fn an_endpoint_that_is_probed_no_more_is_used_whatever_was_found() {
    let (origin, _, requests) = switched(|_, _| b"HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n".to_vec());
    let good = Origin::plain();
    let endpoints = [&*origin.endpoint, &*good.endpoint];
    let stage = Stage::new(1, &endpoints, &keys("kind = \"http\", path = \"/health\""));
    until("it fails", || stage.state(&origin.endpoint).0 == "failing_probe");
    stage.proxy.reload(&text(1, &endpoints, "balance = \"round-robin\"\n")).unwrap();
    until("it is used", || stage.state(&origin.endpoint).0 == "used");
    for _ in 0..4 {
        assert_eq!(stage.ask(By::Http1), Some(200));
    }
    assert_eq!(requests.load(Ordering::Acquire), 2);
    stage.end();
}

#[test]
fn idle_connections_to_an_endpoint_that_drains_are_closed() {
    let origin = Origin::plain();
    let (told, goaways) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let service = http2::RawService::scripted(move |_, raw| {
        if let Some((stream, _)) = raw.request() {
            raw.head(http2::END_STREAM, stream, &[(":status", "200")]);
            let _ = told.lock().unwrap().send(raw.goaway());
        }
    });
    let plain = "balance = \"round-robin\"\n";
    for (endpoint, keys) in [(&origin.endpoint, plain), (&service.endpoint, "protocol = \"http2\"\n")] {
        let stage = Stage::new(1, &[endpoint], keys);
        assert_eq!(stage.ask(By::Http1), Some(200));
        let good = Origin::plain();
        let draining = text(1, &[&good.endpoint], keys).replace(
            &format!("{:?}]", good.endpoint),
            &format!("{:?}, {{ address = {endpoint:?}, drain = true }}]", good.endpoint),
        );
        stage.proxy.reload(&draining).unwrap();
        // Nobody asks for anything. Who ends it says so.
        if *endpoint == origin.endpoint {
            assert_eq!(origin.wait_end(0), End::Fin);
        } else {
            assert_eq!(goaways.recv_timeout(GUARD), Ok(Some(0)));
        }
        stage.end();
    }
}

#[test]
fn an_endpoint_that_drains_gets_nothing_new_and_finishes_what_it_has() {
    let (gate, slow) = Origin::gated();
    let good = Origin::plain();
    let plain = "balance = \"round-robin\"\n";
    let stage = Stage::new(1, &[&slow.endpoint], plain);
    let mut held = crate::support::client::Client::connect(stage.listener);
    held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    slow.wait_requests(1);
    let draining = text(1, &[&good.endpoint], plain).replace(
        &format!("{:?}]", good.endpoint),
        &format!("{:?}, {{ address = {:?}, drain = true }}]", good.endpoint, slow.endpoint),
    );
    stage.proxy.reload(&draining).unwrap();
    assert_eq!(stage.state(&slow.endpoint).0, "draining");
    for _ in 0..10 {
        assert_eq!(stage.ask(By::Http1), Some(200));
    }
    gate.open();
    assert_eq!(held.response().text(), "/held");
    assert_eq!(slow.wait_requests(1).len(), 1);
    stage.end();
}

#[test]
fn each_mistake_of_a_probe_has_its_own_words() {
    for (text, expected) in [
        (
            "[[service]]\nname = \"a\"\nprobe = { path = \"/\" }",
            "a probe needs `kind`; add `kind = \"http\"`",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"htp\" }",
            "`htp` is not known; did you mean \"http\"?",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"tcp\", path = \"/\" }",
            "path goes with kind = \"http\" only",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", grpc_service = \"a\" }",
            "grpc_service goes with kind = \"grpc\" only",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", path = \"/a?b#c\" }",
            "`#` is never sent in a query",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"tls\" }",
            "a TLS probe of a service that is spoken to in plain text",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", statuses = [] }",
            "service.probe.statuses: no probe could be good",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", statuses = [\"300-200\"] }",
            "not a status, nor a range of them",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", statuses = [99] }",
            "not a status, nor a range of them",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", interval = \"1ms\" }",
            "the least is \"10ms\"",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", healthy = 0 }",
            "write a number from 1 to 100",
        ),
        (
            "[[service]]\nname = \"a\"\nprobe = { kind = \"http\", start = \"now\" }",
            "`now` is not known; write \"optimistic\" or \"wait\"",
        ),
    ] {
        let report = ringmesh::config::parse("test.toml", text, &|_| None).unwrap_err();
        let lines: Vec<String> = report.lines().collect();
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{text}\nwanted: {expected}\nfound: {lines:#?}"
        );
    }
}
