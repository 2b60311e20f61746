//! Further attempts: which failures and answers are worth one, where that is safe, what is sent again, how many there may be, and
//! what the caller, the service, log and metrics are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;

use crate::support::http2::{self, CANCEL, RST_STREAM, RawService, Service, call, request};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, Visit, ok};
use crate::support::wire::Message;
use crate::support::{End, Gate};

/// Pauses as short as they may be: these tests are not about time.
const QUICK: &str = "retry = { backoff_base = \"0s\" }\n";

/// A service whose first answers are these, and then 200 with the target: by its whole, whatever the connection.
fn first(answers: &'static [&'static str]) -> (Arc<AtomicUsize>, Origin) {
    let asked = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&asked);
    let origin = Origin::answering(move |request| {
        let n = theirs.fetch_add(1, Ordering::AcqRel);
        answers.get(n).map_or_else(|| ok(request), |answer| answer.as_bytes().to_vec())
    });
    (asked, origin)
}

const S500: &str = "HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\nsick";
const S503: &str = "HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nbusy";

fn before(origin: &Origin, keys: &str) -> Mesh {
    Config::default().service("app", &[origin], keys).log("json").start()
}

fn reasons(seen: &Seen) -> String {
    let all: Vec<String> = seen.retries.reasons().map(|(reason, n)| format!("{reason}:{n}")).collect();
    all.join(" ")
}

fn refusals(seen: &Seen) -> String {
    let all: Vec<String> = seen.retries.refusals().map(|(why, n)| format!("{why}:{n}")).collect();
    all.join(" ")
}

#[test]
fn an_answer_that_is_worth_another_attempt_is_not_seen_by_the_caller() {
    let cases: [(&'static [&'static str], &str); 2] = [(&[S500], "server_error"), (&[S503], "gateway_error")];
    for (answers, reason) in cases {
        for method in ["GET", "PUT", "DELETE"] {
            let body = if method == "PUT" { "some octets" } else { "" };
            for n in 0..ways(body) {
                let (count, origin) = first(answers);
                let mesh = before(&origin, QUICK);
                let answer = one_way(&mesh, method, body, n);
                assert_eq!(answer, (200, "/x".to_owned()), "{method} {n}");
                let seen = mesh.finish();
                assert_eq!(count.load(Ordering::Acquire), 2, "{method} {n}");
                assert_eq!((reasons(&seen), seen.retries.succeeded), (format!("{reason}:1"), 1));
                let line = &seen.lines()[0];
                assert_eq!((line["attempts"].as_u64(), line["retried"].as_str()), (Some(2), Some(reason)));
                let requests: Vec<Message> = origin.settle().iter().flat_map(|r| r.requests()).collect();
                for request in requests {
                    assert_eq!((request.method(), request.text()), (method, body.to_owned()), "{n}");
                }
            }
        }
    }
}

/// A request in one of the ways that there are: by HTTP/1.1 with its body, by HTTP/2, in chunks, with the body behind the head.
/// The status and body that the caller gets.
fn one_way(mesh: &Mesh, method: &str, body: &str, way: usize) -> (u16, String) {
    let mut client = mesh.client();
    match way {
        0 => {
            client.send(format!(
                "{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        }
        1 => {
            let whole = call(mesh.address, request(method, "/x"), body.as_bytes(), None).unwrap();
            return (whole.head.status.as_u16(), String::from_utf8(whole.body).unwrap());
        }
        2 => {
            client
                .send(format!("{method} /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"));
            client.send(format!("{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &body[..1], body.len() - 1, &body[1..]));
        }
        _ => {
            client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
            client.send(body);
        }
    }
    let response = client.response();
    (response.status(), response.text())
}

fn ways(body: &str) -> usize {
    if body.is_empty() { 2 } else { 4 }
}

#[test]
fn when_attempts_are_used_up_the_caller_gets_the_last_answer_as_it_was() {
    let last = "HTTP/1.1 503 Later\r\nX-Reason: none\r\nContent-Length: 9\r\n\r\nthe third";
    let answers: &'static [&'static str] = Box::leak(Box::new([S500, S503, last]));
    for body in ["", "octets"] {
        for way in 0..ways(body) {
            let (count, origin) = first(answers);
            let mesh = before(&origin, QUICK);
            assert_eq!(one_way(&mesh, "PUT", body, way), (503, "the third".to_owned()), "{way}");
            let seen = mesh.finish();
            assert_eq!(count.load(Ordering::Acquire), 3);
            assert_eq!(reasons(&seen), "gateway_error:1 server_error:1");
            assert_eq!((refusals(&seen), seen.retries.succeeded), ("attempts:1".to_owned(), 0));
            assert_eq!((seen.by_class[5], seen.failures.len()), (1, 0), "an answer is no failure of ours");
        }
    }
}

#[test]
fn what_may_not_be_done_twice_is_not_asked_twice() {
    for (keys, times) in [(QUICK, 1), ("retry = { backoff_base = \"0s\", methods = [\"POST\"] }\n", 2)] {
        for way in 0..ways("octets") {
            let (count, origin) = first(&[S503]);
            let mesh = before(&origin, keys);
            let (status, _) = one_way(&mesh, "POST", "octets", way);
            assert_eq!(status, if times == 1 { 503 } else { 200 }, "{way}");
            let seen = mesh.finish();
            assert_eq!(count.load(Ordering::Acquire), times, "{way}");
            assert_eq!(refusals(&seen), "", "what is not safe is not counted as refused");
        }
    }
}

#[test]
fn a_connection_that_ends_before_there_is_an_answer_is_worth_another_attempt() {
    // Before anything of the response, within its head, or reset.
    type Ending = fn(&mut Visit);
    let endings: [(Ending, &str); 4] = [
        (|_| {}, "reset"),
        (
            |visit| {
                visit.send("HTTP/1.1 200 OK\r\nConten");
            },
            "reset",
        ),
        (|visit| visit.reset(), "reset"),
        (
            |visit| {
                visit.send("HTTP/9 nonsense\r\n\r\n");
            },
            "bad_response",
        ),
    ];
    for (ending, reason) in endings {
        for (method, status) in [("GET", 200), ("POST", 502)] {
            for way in 0..2 {
                let origin = Origin::scripted(move |visit| {
                    while let Some(request) = visit.request() {
                        if visit.number == 0 {
                            return ending(visit);
                        }
                        visit.send(ok(&request));
                    }
                });
                let mesh = before(&origin, QUICK);
                assert_eq!(one_way(&mesh, method, "", way).0, status, "{method} {reason}");
                let seen = mesh.finish();
                assert_eq!(reasons(&seen), if status == 200 { format!("{reason}:1") } else { String::new() });
                assert_eq!(seen.totals.replays, 0);
            }
        }
    }
}

#[test]
fn a_stream_that_is_reset_before_there_is_an_answer_is_worth_another_attempt() {
    let service = RawService::scripted(|number, raw| {
        while let Some((stream, _)) = raw.request() {
            if number == 0 && stream == 1 {
                raw.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
                continue;
            }
            raw.head(http2::END_STREAM, stream, &[(":status", "204")]);
        }
    });
    let keys = format!("protocol = \"http2\"\n{QUICK}");
    for way in 0..2 {
        let service = &service;
        let mesh = Config::default().service_at("app", &[&service.endpoint], &keys).start();
        assert_eq!(one_way(&mesh, "GET", "", way).0, 204);
        let seen = mesh.finish();
        assert!(matches!(&*reasons(&seen), "reset:1" | ""), "only the first connection does it");
    }
}

#[test]
fn another_endpoint_is_preferred() {
    // Nine good ones would hide a second choice of the bad one; of two it is every other time.
    let (bad_asked, bad) = first(&[S500; 1000]);
    let good = Origin::plain();
    let mesh = Config::default()
        .service("app", &[&bad, &good], &format!("balance = \"round-robin\"\n{QUICK}"))
        .start();
    let mut client = mesh.client();
    for n in 0..40 {
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    drop(client);
    let seen = mesh.finish();
    let asked = bad_asked.load(Ordering::Acquire) as u64;
    assert!(asked > 0 && seen.retries.succeeded == asked, "{asked}: {:?}", seen.retries);
}

#[test]
fn a_body_that_is_too_large_to_be_kept_is_sent_once() {
    let keys = "retry = { backoff_base = \"0s\", body_bytes_max = \"4B\" }\n";
    for (body, status) in [("four", 200), ("fives", 500)] {
        // Of a body that is whole with its head nothing need be kept, and one behind it may be so.
        for way in 1..3 {
            let (_, origin) = first(&[S500]);
            let mesh = before(&origin, keys);
            // What is chunked is kept as it came.
            let expected = if way == 2 { 500 } else { status };
            assert_eq!(one_way(&mesh, "PUT", body, way).0, expected, "{body} {way}");
            let seen = mesh.finish();
            assert_eq!(refusals(&seen), if expected == 500 { "body:1" } else { "" }, "{body} {way}");
        }
    }
}

#[test]
fn large_bodies_are_sent_again_as_they_were() {
    // Up to the limit, in pieces of any size, to services of both kinds.
    let body = "0123456789abcdef".repeat(4000);
    let answers = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&answers);
    let echo = Service::scripted(move |request, mut respond| {
        let refuse = theirs.fetch_add(1, Ordering::AcqRel).is_multiple_of(2);
        async move {
            let whole = http2::read(request).await;
            let status = if refuse { 503 } else { 200 };
            let head = Response::builder().status(status).body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            http2::send(&mut stream, Bytes::from(whole.body), None).await;
        }
    });
    let by_h1 = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&by_h1);
    let origin = Origin::answering(move |request| {
        if theirs.fetch_add(1, Ordering::AcqRel).is_multiple_of(2) {
            return S503.as_bytes().to_vec();
        }
        let body = request.text();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    for (endpoint, protocol) in [(&echo.endpoint, "http2"), (&origin.endpoint, "http1")] {
        let keys = format!(
            "protocol = {protocol:?}\nretry = {{ backoff_base = \"0s\", body_bytes_max = \"100KiB\" }}\n"
        );
        let mesh = Config::default().service_at("app", &[endpoint], &keys).start();
        for way in 0..4 {
            let (status, text) = one_way(&mesh, "PUT", &body, way);
            assert_eq!((status, text.len()), (200, body.len()), "{protocol} {way}");
            assert!(text == body, "{protocol} {way}");
        }
        assert_eq!(mesh.finish().retries.succeeded, 4, "{protocol}");
    }
}

#[test]
fn an_early_answer_is_followed_by_another_attempt_while_the_body_still_comes() {
    // The service refuses when it has seen the head; the caller sends the rest of the body when there is another attempt.
    let gate = Arc::new(Gate::default());
    let opens = Arc::clone(&gate);
    let origin = Origin::scripted(move |visit| {
        while let Some(head) = visit.head() {
            if visit.number == 0 {
                visit.send(S503);
                visit.drain();
                return;
            }
            opens.open();
            let body = visit.bytes(6);
            assert_eq!(body, b"abcdef");
            visit.send(ok(&head));
        }
    });
    let mesh = before(&origin, QUICK);
    let mut client = mesh.client();
    client.send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    gate.pass();
    client.send("def");
    assert_eq!(client.response().text(), "/x");
    // And the connection goes on.
    client.send("PUT /y HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabcdef");
    assert_eq!(client.response().text(), "/y");
    drop(client);
    mesh.finish();
}

#[test]
fn the_budget_bounds_further_attempts_at_a_time() {
    // Ten requests fail, and what is sent once more is not answered until all of them have.
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let origin = Origin::answering(move |request| {
        if request.one("x-envoy-attempt-count").unwrap() == "2" {
            theirs.pass();
        }
        S503.as_bytes().to_vec()
    });
    let keys = "retry = { attempts_max = 2, backoff_base = \"0s\", budget_percent = 0, budget_floor = 3, attempt_header = true }\n";
    let mut mesh = before(&origin, keys);
    let mut clients: Vec<_> = (0..10).map(|_| mesh.client()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    // Seven are answered by what they got; three have another attempt.
    let seen = mesh.wait_seen(|seen| refusals(seen) == "budget:7");
    assert_eq!(reasons(&seen), "gateway_error:3");
    gate.open();
    for client in &mut clients {
        assert_eq!((client.response().status()), 503);
    }
    // Their places are free again.
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    drop((client, clients));
    let seen = mesh.finish();
    assert_eq!(
        (refusals(&seen), reasons(&seen)),
        ("attempts:4 budget:7".to_owned(), "gateway_error:4".to_owned())
    );
}

#[test]
fn a_service_that_asks_to_be_left_alone_is_left_alone() {
    let later = "HTTP/1.1 503 X\r\nRetry-After: 2\r\nContent-Length: 4\r\n\r\nbusy";
    let soon = "HTTP/1.1 503 X\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy";
    let limited = "HTTP/1.1 503 X\r\nX-Envoy-RateLimited: true\r\nContent-Length: 4\r\n\r\nbusy";
    for (answer, status, refused) in [(later, 503, "retry_after:1"), (soon, 200, ""), (limited, 503, "")] {
        for way in 0..2 {
            let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
            let (_, origin) = first(answers);
            let mesh = before(&origin, QUICK);
            assert_eq!(one_way(&mesh, "GET", "", way).0, status, "{answer}");
            assert_eq!(refusals(&mesh.finish()), refused, "{answer}");
        }
    }
}

#[test]
fn an_attempt_has_a_time_of_its_own() {
    // The first attempt is never answered.
    let origin = Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            if visit.number == 0 {
                visit.drain();
                return;
            }
            visit.send(ok(&request));
        }
    });
    let keys = "retry = { backoff_base = \"0s\", attempt_timeout = \"20ms\", on = [], statuses = [] }\n";
    for way in 0..2 {
        let mesh = before(&origin, keys);
        assert_eq!(one_way(&mesh, "GET", "", way).0, 200);
        let seen = mesh.finish();
        assert!(matches!(&*reasons(&seen), "timeout:1" | ""), "only the first connection does it");
    }
    assert!(matches!(origin.recorded()[0].end, Some(End::Fin | End::Reset)));
}

#[test]
fn a_route_may_say_otherwise() {
    let routes = "[[route]]\npath = \"/x\"\nservice = \"app\"\nretry = \"off\"\n[[route]]\nservice = \"app\"\n\
                  retry = { backoff_base = \"0s\" }\n";
    let (count, origin) = first(&[S503]);
    let mesh = Config::default().service("app", &[&origin], "").routes(routes).start();
    assert_eq!(one_way(&mesh, "GET", "", 0).0, 503);
    assert_eq!(count.load(Ordering::Acquire), 1);
    mesh.finish();
    let (count, origin) = first(&[S503]);
    let mesh = Config::default().service("app", &[&origin], "retry = \"off\"\n").routes(routes).start();
    let mut client = mesh.client();
    client.send("GET /y HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "/y");
    assert_eq!(count.load(Ordering::Acquire), 2);
    drop(client);
    mesh.finish();
}

#[test]
fn a_connection_whose_answer_was_not_passed_on_is_used_again() {
    let (_, origin) = first(&[S500]);
    let mesh = before(&origin, QUICK);
    for way in 0..2 {
        assert_eq!(one_way(&mesh, "GET", "", way).0, 200);
    }
    assert_eq!(mesh.finish().totals.upstream_connected, 1);
    // Unless there is more to come of it.
    let origin = Origin::scripted(|visit| {
        while let Some(request) = visit.request() {
            if visit.number == 0 {
                visit.send("HTTP/1.1 500 X\r\nContent-Length: 10\r\n\r\nsick");
                assert_ne!(visit.drain(), End::Cut);
                return;
            }
            visit.send(ok(&request));
        }
    });
    for way in 0..2 {
        let mesh = before(&origin, QUICK);
        assert_eq!(one_way(&mesh, "GET", "", way).0, 200);
        mesh.finish();
    }
}

#[test]
fn calls_of_grpc_are_sent_again_when_the_service_says_that_it_is_unavailable() {
    // In the head: nothing of a response has come. In the trailers: it is the caller's to say.
    for (in_head, code, calls) in
        [(true, "14", 2), (true, "13", 1), (true, "5", 1), (false, "14", 1), (true, "0", 1)]
    {
        let asked = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&asked);
        let service = Service::scripted(move |request, mut respond| {
            let n = theirs.fetch_add(1, Ordering::AcqRel);
            async move {
                let whole = http2::read(request).await;
                assert_eq!(whole.body, b"\0\0\0\0\x01x");
                let head = Response::builder().header("content-type", "application/grpc");
                let status = if n == 0 { code } else { "0" };
                if in_head {
                    let head = head.header("grpc-status", status).body(()).unwrap();
                    respond.send_response(head, true).unwrap();
                    return;
                }
                let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                stream.send_trailers(trailers).unwrap();
            }
        });
        let keys = format!("protocol = \"http2\"\n{QUICK}");
        let mesh = Config::default().service_at("app", &[&service.endpoint], &keys).start();
        let mut grpc = request("POST", "/pkg.Service/Method");
        grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        grpc.headers_mut().insert("te", "trailers".parse().unwrap());
        let answer = call(mesh.address, grpc, b"\0\0\0\0\x01x", None).unwrap();
        assert_eq!(answer.head.status, 200);
        let seen = mesh.finish();
        assert_eq!(asked.load(Ordering::Acquire), calls, "{in_head} {code}");
        let told = if calls == 2 { "0" } else { code };
        assert_eq!(seen.grpc_statuses(), format!("{told}:1"), "{in_head} {code}");
        assert_eq!(seen.grpc.request_messages, 1, "of one call, however often it was sent");
        assert_eq!(reasons(&seen), if calls == 2 { "grpc_unavailable:1" } else { "" });
    }
}

#[test]
fn trailers_of_a_request_are_sent_again() {
    let answers = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&answers);
    let service = Service::scripted(move |request, mut respond| {
        let n = theirs.fetch_add(1, Ordering::AcqRel);
        async move {
            let whole = http2::read(request).await;
            assert_eq!(whole.trailers.unwrap()["x-sum"], "7");
            let head = Response::builder().status(if n == 0 { 503 } else { 204 }).body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
    });
    let keys = format!("protocol = \"http2\"\n{QUICK}");
    let mesh = Config::default().service_at("app", &[&service.endpoint], &keys).start();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let answer = call(mesh.address, request("PUT", "/x"), b"octets", Some(trailers)).unwrap();
    assert_eq!((answer.head.status.as_u16(), answers.load(Ordering::Acquire)), (204, 2));
    mesh.finish();
}

#[test]
fn an_endpoint_that_comes_back_while_a_request_waits_serves_it() {
    // Nobody listens at first; a pause later somebody does. The socket is bound all the time, so that nobody takes its port.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let endpoint = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    let keys =
        "retry = { backoff_base = \"20ms\", backoff_max = \"20ms\", attempts_max = 9, budget_floor = 100 }\n";
    let mut mesh = Config::default().service_at("app", &[&endpoint], keys).start();
    let mut clients: Vec<_> = (0..20).map(|_| mesh.client()).collect();
    for client in &mut clients {
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    }
    mesh.wait_seen(|seen| !reasons(seen).is_empty());
    // Those that have used up their attempts by now are told; the others are served.
    socket.listen(128).unwrap();
    let _origin = Origin::on(socket.into(), |visit| {
        while let Some(request) = visit.request() {
            visit.send(ok(&request));
        }
    });
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status()).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    drop(clients);
    let seen = mesh.finish();
    assert!(reasons(&seen).starts_with("connect_failure:"), "{:?}", seen.retries);
}

#[test]
fn services_are_told_which_attempt_it_is_where_that_is_wanted() {
    let keys = "retry = { backoff_base = \"0s\", attempt_header = true }\n";
    for way in 0..4 {
        let (_, origin) = first(&[S500, S500]);
        let mesh = before(&origin, keys);
        assert_eq!(one_way(&mesh, "PUT", "octets", way), (200, "/x".to_owned()));
        mesh.finish();
        let told: Vec<String> = origin
            .settle()
            .iter()
            .flat_map(|r| r.requests())
            .map(|request| request.one("x-envoy-attempt-count").unwrap())
            .collect();
        assert_eq!(told, ["1", "2", "3"], "{way}");
    }
    let service = Service::echoing();
    let keys = format!("protocol = \"http2\"\n{keys}");
    let mesh = Config::default().service_at("app", &[&service.endpoint], &keys).start();
    let mut asking = request("GET", "/x");
    asking.headers_mut().insert("x-envoy-attempt-count", "7".parse().unwrap());
    let answer = call(mesh.address, asking, b"", None).unwrap();
    assert_eq!(answer.head.headers["echo-x-envoy-attempt-count"], "1", "the caller's own is not passed on");
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nX-Envoy-Attempt-Count: 7\r\n\r\n");
    assert_eq!(client.response().one("echo-x-envoy-attempt-count").unwrap(), "1");
    drop(client);
    mesh.finish();
}

#[test]
fn a_deadline_is_passed_on_and_cuts_the_work_on_both_sides() {
    let routes = "[[route]]\nservice = \"app\"\ntimeout = \"20s\"\ndeadline_header = true\n";
    let field = "x-envoy-expected-rq-timeout-ms";
    // Told: what is left of the route's, or of the caller's if that is sooner; of the attempt's, sooner still.
    for (keys, said, at_most) in [
        ("", "", 15_000),
        ("timeouts = { response = \"1h\" }\n", "", 20_000),
        ("", "9000", 9_000),
        ("retry = { attempt_timeout = \"4s\" }\n", "9000", 4_000),
        ("", "nonsense", 15_000),
    ] {
        for way in 0..2 {
            let origin = Origin::plain();
            let mesh = Config::default().service("app", &[&origin], keys).routes(routes).start();
            if way == 0 {
                let mut client = mesh.client();
                client.send(format!(
                    "GET /x HTTP/1.1\r\nHost: a\r\nX-Envoy-Expected-Rq-Timeout-Ms: {said}\r\n\r\n"
                ));
                assert_eq!(client.response().status(), 200);
            } else {
                let mut asking = request("GET", "/x");
                asking.headers_mut().insert(field, said.parse().unwrap());
                assert_eq!(call(mesh.address, asking, b"", None).unwrap().head.status, 200);
            }
            mesh.finish();
            let requests: Vec<Message> = origin.settle().iter().flat_map(|r| r.requests()).collect();
            let told: u64 = requests[0].one(field).unwrap().parse().unwrap();
            // The machine may be slow, but not by more than the guard.
            assert!(told <= at_most && told + 30_000 >= at_most, "{keys:?} {said:?}: {told}");
        }
    }
    // Also by HTTP/2, and none where the route tells none.
    let service = Service::echoing();
    for (routes, is_told) in [(routes, true), ("[[route]]\nservice = \"app\"\ntimeout = \"20s\"\n", false)] {
        let mesh = Config::default()
            .service_at("app", &[&service.endpoint], "protocol = \"http2\"\n")
            .routes(routes)
            .start();
        let mut asking = request("GET", "/x");
        asking.headers_mut().insert(field, "30000".parse().unwrap());
        let echo = format!("echo-{field}");
        let by_http2 = call(mesh.address, asking, b"", None).unwrap();
        let mut client = mesh.client();
        client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{field}: 30000\r\n\r\n"));
        let by_http1 = client.response().one(&echo).unwrap();
        for told in [by_http2.head.headers[&echo].to_str().unwrap(), &by_http1] {
            let told: u64 = told.parse().unwrap();
            // What the service has to answer in, or what the caller wrote.
            assert!(if is_told { (1..=15_000).contains(&told) } else { told == 30_000 }, "{told}");
        }
        drop(client);
        mesh.finish();
    }
    // It is what the caller wrote, whatever the route makes of that for the service; told is what is left of it, not what the
    // route wrote.
    for change in
        ["set = { x-envoy-expected-rq-timeout-ms = \"1\" }", "remove = [\"x-envoy-expected-rq-timeout-ms\"]"]
    {
        let routes = format!("{routes}request_headers = {{ {change} }}\n");
        for way in 0..2 {
            let origin = Origin::plain();
            let mesh = Config::default().service("app", &[&origin], "").routes(&routes).start();
            if way == 0 {
                let mut client = mesh.client();
                client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{field}: 9000\r\n\r\n"));
                assert_eq!(client.response().status(), 200, "{change}");
            } else {
                let mut asking = request("GET", "/x");
                asking.headers_mut().insert(field, "9000".parse().unwrap());
                assert_eq!(call(mesh.address, asking, b"", None).unwrap().head.status, 200, "{change}");
            }
            mesh.finish();
            let requests: Vec<Message> = origin.settle().iter().flat_map(|r| r.requests()).collect();
            let told: u64 = requests[0].one(field).unwrap().parse().unwrap();
            assert!((2..=9_000).contains(&told), "{change} {way}: {told}");
        }
    }
    // Honoured: the caller is answered then, and the service's connection ends.
    for way in 0..2 {
        let origin = Origin::scripted(|visit| {
            visit.request();
            visit.drain();
        });
        let mesh = Config::default().service("app", &[&origin], "").routes(routes).start();
        if way == 0 {
            let mut client = mesh.client();
            client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{field}: 30\r\n\r\n"));
            assert_eq!(client.response().status(), 504);
        } else {
            let mut asking = request("GET", "/x");
            asking.headers_mut().insert(field, "30".parse().unwrap());
            assert_eq!(call(mesh.address, asking, b"", None).unwrap().head.status, 504);
        }
        origin.wait_end(0);
        mesh.finish();
    }
}
