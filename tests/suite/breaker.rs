//! Endpoints that are ill: they fail, reset, refuse, hang, are slow; over HTTP/1.1, HTTP/2 and gRPC, with one shard and with
//! several. What is asserted are numbers of requests and states, never how long something took.

#![allow(
    clippy::disallowed_methods,
    reason = "no shard: a service may be slow, and a test looks again and again"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};
use ringmesh::control::{Proxy, Start};
use socket2::{Domain, Socket, Type};

use crate::support::client::Client;
use crate::support::http2;
use crate::support::origin::{Origin, ok};
use crate::support::{GUARD, Gate};

/// A whole proxy before a service with several endpoints.
pub(crate) struct Stage {
    pub(crate) proxy: Proxy,
    pub(crate) listener: SocketAddr,
    admin: SocketAddr,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum By {
    Http1,
    Http2,
    Grpc,
}

/// In turn, so that each endpoint gets its part whatever it does; no trials until somebody has lived an hour.
const KEYS: &str = "balance = \"round-robin\"\nbreaker = { ejection_base = \"1h\", ejection_max = \"1h\" }\n";

pub(crate) fn text(shards: usize, endpoints: &[&str], keys: &str) -> String {
    format!(
        "shards = {shards}\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \
         \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = {endpoints:?}\nretry = \"off\"\n{keys}\n[[route]]\nservice = \"app\"\n"
    )
}

impl Stage {
    pub(crate) fn new(shards: usize, endpoints: &[&str], keys: &str) -> Self {
        Self::of(&text(shards, endpoints, keys))
    }

    pub(crate) fn of(text: &str) -> Self {
        let proxy = Proxy::start(Start::text(text)).unwrap();
        let (listener, admin) = (proxy.listener("in").unwrap(), proxy.admin().unwrap());
        Self { proxy, listener, admin }
    }

    /// A request on a connection of its own, which any shard may take; the status, if there was an answer.
    pub(crate) fn ask(&self, by: By) -> Option<u16> {
        match by {
            By::Http1 => {
                let mut client = Client::connect(self.listener);
                client.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                client.try_response(false).ok().map(|response| response.status())
            }
            By::Http2 | By::Grpc => {
                let mut request = http2::request(if by == By::Grpc { "POST" } else { "GET" }, "/x");
                if by == By::Grpc {
                    let kind = http::HeaderValue::from_static("application/grpc");
                    request.headers_mut().insert("content-type", kind);
                }
                // An empty message, as gRPC has it.
                let body: &[u8] = if by == By::Grpc { &[0; 5] } else { b"" };
                http2::call(self.listener, request, body, None).ok().map(|whole| whole.head.status.as_u16())
            }
        }
    }

    /// Whether the answer to a request has that field; `None` if it is no good one.
    pub(crate) fn says(&self, by: By, field: &str) -> Option<bool> {
        if by == By::Http1 {
            let mut client = Client::connect(self.listener);
            client.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = client.response();
            return (answer.status() == 200).then(|| answer.one(field).is_some());
        }
        let head = http2::call(self.listener, http2::request("GET", "/x"), b"", None).ok()?.head;
        (head.status == 200).then(|| head.headers.contains_key(field))
    }

    /// The state of an endpoint, and why it is so.
    pub(crate) fn state(&self, endpoint: &str) -> (String, String) {
        let page = self.page("/services?format=json");
        let body = page.split_once("\r\n\r\n").unwrap().1;
        let json: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {page}"));
        let endpoints = json["services"][0]["endpoints"].as_array().unwrap().clone();
        let one = endpoints.iter().find(|e| e["address"] == endpoint).unwrap_or_else(|| panic!("{page}"));
        let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        (word("state"), word("reason"))
    }

    fn is_out(&self, endpoint: &str) -> bool {
        self.state(endpoint).0 != "used"
    }

    pub(crate) fn page(&self, path: &str) -> String {
        let mut client = Client::connect(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        let response = client.response();
        format!("HTTP/1.1 {}\r\n\r\n{}", response.status(), response.text())
    }

    pub(crate) fn end(self) {
        self.proxy.drain();
        self.proxy.join();
    }
}

pub(crate) fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < GUARD, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// A service of HTTP/1.1 that counts its requests.
pub(crate) fn counted(
    answer: impl Fn(&mut crate::support::origin::Visit, &crate::support::wire::Message) -> bool
    + Send
    + Sync
    + 'static,
) -> (Origin, Arc<AtomicUsize>) {
    let count: Arc<AtomicUsize> = Arc::default();
    let theirs = Arc::clone(&count);
    let origin = Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            theirs.fetch_add(1, Ordering::AcqRel);
            if !answer(visit, &request) {
                return;
            }
        }
    });
    (origin, count)
}

/// A service of HTTP/2 that answers each call with this status and, in trailers, `grpc-status`; with `None` never.
fn http2_service(
    answer: impl Fn() -> Option<(u16, &'static str)> + Send + Sync + 'static,
) -> (http2::Service, Arc<AtomicUsize>) {
    let count: Arc<AtomicUsize> = Arc::default();
    let theirs = Arc::clone(&count);
    let answer = Arc::new(answer);
    let service = http2::Service::scripted(move |request, mut respond| {
        theirs.fetch_add(1, Ordering::AcqRel);
        let answer = Arc::clone(&answer);
        async move {
            http2::read(request).await;
            let Some((status, grpc)) = answer() else { return std::future::pending().await };
            let response = Response::builder().status(status).header("content-type", "application/grpc");
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static(grpc));
            http2::send(&mut stream, Bytes::from_static(&[0; 5]), Some(trailers)).await;
        }
    });
    (service, count)
}

/// Asks until the endpoint is out, and then some more: none of those goes there.
#[track_caller]
fn assert_ejected(stage: &Stage, by: By, ill: &str, count: &AtomicUsize, reason: &str, told: &str) -> usize {
    let mut asked = 0;
    while !stage.is_out(ill) {
        stage.ask(by);
        asked += 1;
        assert!(asked < 200, "{told}: still used after {asked} requests, of which it got {count:?}");
    }
    assert_eq!(stage.state(ill), ("ejected".into(), reason.into()), "{told}");
    let before = count.load(Ordering::Acquire);
    for _ in 0..12 {
        assert_eq!(stage.ask(by), Some(200), "{told}");
    }
    assert_eq!(count.load(Ordering::Acquire), before, "{told}: it was asked although it is out");
    before
}

#[test]
fn an_endpoint_that_fails_is_out_after_five_failures_whatever_the_number_of_shards() {
    for shards in [1, 3] {
        for by in [By::Http1, By::Http2] {
            for (kind, reason) in
                [("500", "failures"), ("cut", "failures"), ("reset", "no_answer"), ("closed", "no_answer")]
            {
                let told = format!("{kind} by {by:?} with {shards} shards");
                let good = [Origin::plain(), Origin::plain()];
                let (ill, count) = counted(move |visit, request| {
                    match kind {
                        "500" => visit.send("HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"),
                        "cut" => visit.send("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nno"),
                        "reset" => {
                            visit.reset();
                            true
                        }
                        _ => request.target() == "/x",
                    };
                    kind == "500"
                });
                let endpoints = [&*good[0].endpoint, &ill.endpoint, &good[1].endpoint];
                let stage = Stage::new(shards, &endpoints, KEYS);
                let before = assert_ejected(&stage, by, &ill.endpoint, &count, reason, &told);
                // An answer may be with the caller before its shard has told the others: one or two more.
                assert!((5..=7).contains(&before), "{told}: {before}");
                stage.end();
            }
        }
    }
}

#[test]
fn an_endpoint_that_fails_by_http2_or_grpc_is_out_after_five_failures() {
    for shards in [1, 3] {
        for (by, status, grpc) in
            [(By::Grpc, 200, "14"), (By::Grpc, 200, "13"), (By::Http2, 503, "0"), (By::Http1, 500, "0")]
        {
            let told = format!("{status} and {grpc} by {by:?} with {shards} shards");
            let good = [http2_service(|| Some((200, "0"))).0, http2_service(|| Some((200, "0"))).0];
            let (ill, count) = http2_service(move || Some((status, grpc)));
            let endpoints = [&*good[0].endpoint, &ill.endpoint, &good[1].endpoint];
            let stage = Stage::new(shards, &endpoints, &format!("{KEYS}protocol = \"http2\"\n"));
            let before = assert_ejected(&stage, by, &ill.endpoint, &count, "failures", &told);
            assert!((5..=7).contains(&before), "{told}: {before}");
            stage.end();
        }
    }
}

#[test]
fn an_endpoint_that_takes_no_connections_is_out_after_one_attempt() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nobody = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    for shards in [1, 3] {
        for by in [By::Http1, By::Http2] {
            let good = Origin::plain();
            let stage = Stage::new(shards, &[&good.endpoint, &nobody], KEYS);
            let mut asked = 0;
            while !stage.is_out(&nobody) {
                assert_eq!(stage.ask(by), Some(200), "another endpoint is tried");
                asked += 1;
                assert!(asked <= 2 * shards + 2, "{asked}");
            }
            assert_eq!(stage.state(&nobody), ("ejected".into(), "connect".into()));
            for _ in 0..10 {
                assert_eq!(stage.ask(by), Some(200));
            }
            let metrics = stage.page("/metrics");
            let line = "ringmesh_breaker_ejections_total{service=\"app\",reason=\"connect\"} 1\n";
            assert!(metrics.contains(line), "{metrics}");
            assert!(metrics.contains("ringmesh_endpoints{service=\"app\",state=\"ejected\"} 1"), "{metrics}");
            stage.end();
        }
    }
}

#[test]
fn an_endpoint_that_hangs_is_out_before_any_timeout() {
    let keys = "balance = \"round-robin\"\ntimeouts = { response = \"1h\" }\nbreaker = { ejection_base = \"1h\", \
                ejection_max = \"1h\" }\n";
    for shards in [1, 3] {
        for by in [By::Http1, By::Grpc] {
            let told = format!("by {by:?} with {shards} shards");
            let gate = Arc::new(Gate::default());
            let theirs = Arc::clone(&gate);
            let (ill_h1, _) = counted(move |visit, request| {
                theirs.pass();
                visit.send(ok(request))
            });
            let (ill_h2, _) = http2_service(|| None);
            let good_h1 = [Origin::plain(), Origin::plain()];
            let good_h2 = [http2_service(|| Some((200, "0"))).0, http2_service(|| Some((200, "0"))).0];
            let (endpoints, ill, keys) = match by {
                By::Http1 | By::Http2 => (
                    [&*good_h1[0].endpoint, &ill_h1.endpoint, &good_h1[1].endpoint],
                    &*ill_h1.endpoint,
                    keys.to_owned(),
                ),
                By::Grpc => (
                    [&*good_h2[0].endpoint, &ill_h2.endpoint, &good_h2[1].endpoint],
                    &*ill_h2.endpoint,
                    format!("{keys}protocol = \"http2\"\n"),
                ),
            };
            let stage = Stage::new(shards, &endpoints, &keys);
            // Callers that do not wait for their answers, so that those who hang keep nobody from calling.
            let mut callers = Vec::new();
            until(&format!("it is out, {told}"), || {
                callers.push(Client::connect(stage.listener));
                let caller = callers.last_mut().unwrap();
                match by {
                    By::Http1 | By::Http2 => drop(caller.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")),
                    By::Grpc => {
                        // A call as a head and one message: the preface, SETTINGS, HEADERS, DATA with END_STREAM.
                        let fields = http2::fields(
                            "POST",
                            "/x",
                            &[("content-type", "application/grpc"), ("te", "trailers")],
                        );
                        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
                        bytes.extend(http2::frame(http2::SETTINGS, 0, 0, &[]));
                        bytes.extend(http2::frame(
                            http2::HEADERS,
                            http2::END_HEADERS,
                            1,
                            &http2::block(&fields),
                        ));
                        bytes.extend(http2::frame(http2::DATA, http2::END_STREAM, 1, &[0; 5]));
                        caller.send(bytes);
                    }
                }
                stage.is_out(ill)
            });
            assert_eq!(stage.state(ill), ("ejected".into(), "pending".into()), "{told}");
            for _ in 0..12 {
                assert_eq!(stage.ask(by), Some(200), "{told}");
            }
            gate.open();
            drop(callers);
            stage.proxy.stop();
        }
    }
}

#[test]
fn an_endpoint_that_is_far_slower_than_the_others_is_out() {
    let keys = "balance = \"round-robin\"\nbreaker = { slow_min = \"20ms\", slow_factor = 2, requests_min = 5, \
                ejection_base = \"1h\", ejection_max = \"1h\" }\n";
    let (ill, count) = counted(|visit, request| {
        std::thread::sleep(Duration::from_millis(400));
        visit.send(ok(request))
    });
    let good = [Origin::plain(), Origin::plain()];
    let stage = Stage::new(2, &[&good[0].endpoint, &ill.endpoint, &good[1].endpoint], keys);
    assert_ejected(&stage, By::Http1, &ill.endpoint, &count, "slow", "slow");
    stage.end();
}

#[test]
fn what_a_caller_did_wrong_is_no_fault_of_the_endpoint_and_429_is_one_where_that_is_configured() {
    for (status, keys, out) in [
        (404, "", false),
        (501, "", false),
        (429, "", false),
        (429, "breaker = { counts_too_many = true, ejection_base = \"1h\", ejection_max = \"1h\" }\n", true),
    ] {
        let good = [Origin::plain(), Origin::plain()];
        let (ill, count) =
            counted(move |visit, _| visit.send(format!("HTTP/1.1 {status} Oh\r\nContent-Length: 0\r\n\r\n")));
        let endpoints = [&*good[0].endpoint, &ill.endpoint, &good[1].endpoint];
        let stage = Stage::new(1, &endpoints, &format!("balance = \"round-robin\"\n{keys}"));
        if out {
            assert_ejected(&stage, By::Http1, &ill.endpoint, &count, "failures", "429");
        } else {
            while count.load(Ordering::Acquire) < 15 {
                stage.ask(By::Http1);
            }
            assert_eq!(stage.state(&ill.endpoint), ("used".into(), String::new()), "{status}");
        }
        stage.end();
    }
}

#[test]
fn an_endpoint_comes_back_when_trials_are_good_and_a_reload_forgets_nothing() {
    for shards in [1, 3] {
        let ill = Arc::new(AtomicBool::new(true));
        let theirs = Arc::clone(&ill);
        let (patient, count) = counted(move |visit, request| {
            let answer = if theirs.load(Ordering::Acquire) {
                b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_vec()
            } else {
                ok(request)
            };
            visit.send(answer)
        });
        let good = [Origin::plain(), Origin::plain()];
        let endpoints = [&*good[0].endpoint, &patient.endpoint];
        let stage = Stage::new(shards, &endpoints, KEYS);
        assert_ejected(&stage, By::Http1, &patient.endpoint, &count, "failures", "before");

        // Another list, in another order, and other rules for the next time.
        let more = [&*patient.endpoint, &good[1].endpoint, &good[0].endpoint];
        let soon =
            "balance = \"round-robin\"\nbreaker = { ejection_base = \"5ms\", ejection_max = \"5ms\" }\n";
        stage.proxy.reload(&text(shards, &more, soon)).unwrap();
        assert_eq!(stage.state(&patient.endpoint), ("ejected".into(), "failures".into()));
        let before = count.load(Ordering::Acquire);
        for _ in 0..12 {
            assert_eq!(stage.ask(By::Http1), Some(200));
        }
        assert_eq!(count.load(Ordering::Acquire), before);

        // Its hour is not over. One that is ejected by the rules of now comes back.
        let fresh = Arc::new(AtomicBool::new(true));
        let theirs = Arc::clone(&fresh);
        let (other, _) = counted(move |visit, request| {
            let answer = if theirs.load(Ordering::Acquire) {
                b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_vec()
            } else {
                ok(request)
            };
            visit.send(answer)
        });
        let third = Origin::plain();
        let all =
            [&*patient.endpoint, &good[0].endpoint, &good[1].endpoint, &other.endpoint, &third.endpoint];
        stage.proxy.reload(&text(shards, &all, soon)).unwrap();
        until("the other one is out, too", || {
            stage.ask(By::Http1);
            stage.page("/metrics").contains("reason=\"failures\"} 2\n")
        });
        fresh.store(false, Ordering::Release);
        until("it is used again", || {
            stage.ask(By::Http1);
            !stage.is_out(&other.endpoint)
        });
        assert!(stage.is_out(&patient.endpoint));
        let metrics = stage.page("/metrics");
        assert!(metrics.contains("ringmesh_breaker_returns_total{service=\"app\"} 1\n"), "{metrics}");
        stage.end();
    }
}

#[test]
fn switched_off_nobody_is_passed_over() {
    let good = Origin::plain();
    let (ill, count) = counted(|visit, _| visit.send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"));
    let keys = "balance = \"round-robin\"\nbreaker = { enabled = false }\n";
    let stage = Stage::new(1, &[&good.endpoint, &ill.endpoint], keys);
    for _ in 0..40 {
        stage.ask(By::Http1);
    }
    assert!(count.load(Ordering::Acquire) >= 20, "{count:?}");
    stage.end();
}

#[test]
fn failed_calls_of_grpc_are_errors_of_their_route_as_of_their_service() {
    let (service, _) = http2_service(|| Some((200, "14")));
    let stage = Stage::new(1, &[&service.endpoint], "protocol = \"http2\"\n");
    for _ in 0..3 {
        assert_eq!(stage.ask(By::Grpc), Some(200));
    }
    // Shards tell once a second.
    let told = || {
        let metrics = stage.page("/metrics");
        metrics
            .lines()
            .any(|line| line.starts_with("ringmesh_route_grpc_errors_total{") && line.ends_with("} 3"))
    };
    until("they are told", told);
    let page = stage.page("/routes?format=json");
    let routes: serde_json::Value = serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        (&routes["routes"][0]["errors"], &routes["routes"][0]["exchanges"]),
        (&3.into(), &3.into()),
        "{page}"
    );
    stage.end();
}
