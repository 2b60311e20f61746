//! Faults that last: bodies that a route cuts or slows on purpose, through all four translations; requests that nobody answers;
//! callers that leave meanwhile.

use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;

use crate::support::End;
use crate::support::client::Cut;
use crate::support::http2::{
    CANCEL, DATA, END_STREAM, HEADERS, RST_STREAM, Raw, Service, call, fields, read, request, send,
};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::Origin;
use crate::support::wire::Message;

const INTERNAL_ERROR: u32 = 2;

fn letters(len: usize) -> Vec<u8> {
    (0..len).map(|n| b'a' + (n % 26) as u8).collect()
}

/// Answers `/told/N` with so many octets whose number it tells, `/untold/N` with as many in chunks, with a trailer.
fn h1() -> Origin {
    Origin::answering(|request| {
        let (told, len) = asked(request.target());
        let body = letters(len);
        let mut out = b"HTTP/1.1 200 OK\r\n".to_vec();
        if told {
            out.extend_from_slice(format!("content-length: {len}\r\n\r\n").as_bytes());
            if request.method() != "HEAD" {
                out.extend_from_slice(&body);
            }
            return out;
        }
        out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        for chunk in body.chunks(700) {
            out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\nx-end: yes\r\n\r\n");
        out
    })
}

fn h2() -> Service {
    Service::scripted(|request, mut respond| async move {
        let (told, len) = asked(request.uri().path());
        let mut response = Response::builder().status(200);
        if told {
            response = response.header("content-length", len);
        }
        let ended = request.method() == "HEAD";
        let mut stream = respond.send_response(response.body(()).unwrap(), ended).unwrap();
        if !ended {
            let trailers = (!told).then(|| [("x-end".parse().unwrap(), "yes".parse().unwrap())]);
            send(&mut stream, Bytes::from(letters(len)), trailers.map(http::HeaderMap::from_iter)).await;
        }
    })
}

fn asked(target: &str) -> (bool, usize) {
    let (kind, len) = target[1..].split_once('/').unwrap();
    (kind == "told", len.parse().unwrap())
}

/// The same in front of both services.
struct Both {
    _origins: (Origin, Service),
    meshes: [(&'static str, Mesh); 2],
}

impl Both {
    fn with(keys: &str) -> Self {
        let (h1, h2) = (h1(), h2());
        let config = |config: Config| {
            config.routes(&format!("[[route]]\nservice = \"app\"\n{keys}\n")).log("json").start()
        };
        let to_h2 = Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"");
        let meshes = [("1", config(Config::new(&[&h1]))), ("2", config(to_h2))];
        Self { _origins: (h1, h2), meshes }
    }

    fn finish(self) -> Vec<Seen> {
        self.meshes.into_iter().map(|(_, mesh)| mesh.finish()).collect()
    }
}

fn kinds(seen: &Seen) -> String {
    seen.faults.kinds().map(|(kind, n)| format!("{kind}:{n} ")).collect()
}

fn whole_by_http1(mesh: &Mesh, target: &str) -> Message {
    let mut client = mesh.client();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.response()
}

/// The front of a body that is cut for a caller by HTTP/1.1.
fn cut_by_http1(mesh: &Mesh, target: &str) -> Vec<u8> {
    let mut client = mesh.client();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    match client.cut() {
        Cut::Truncated(Some(front), End::Fin) => front.body,
        cut => panic!("{target}: {cut:?}"),
    }
}

/// The same by HTTP/2.
fn cut_by_http2(mesh: &Mesh, target: &str) -> Vec<u8> {
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", target, &[]));
    let (body, code) = raw.body(1);
    assert_eq!(code, Some(INTERNAL_ERROR), "{target}");
    body
}

#[test]
fn a_body_is_cut_where_it_shall_be_through_all_four_and_that_is_no_failure() {
    let both = Both::with("fault = { truncate = { after = \"1000B\" } }");
    for (to, mesh) in &both.meshes {
        for target in ["/told/3000", "/untold/3000", "/told/60000"] {
            assert_eq!(cut_by_http1(mesh, target), letters(1000), "1 to {to}: {target}");
            assert_eq!(cut_by_http2(mesh, target), letters(1000), "2 to {to}: {target}");
        }
        // What is no longer than that stays whole, with its end, and its connection goes on.
        for target in ["/told/1000", "/untold/1000", "/told/0", "/untold/10"] {
            let whole = whole_by_http1(mesh, target);
            assert_eq!(whole.body, letters(asked(target).1), "1 to {to}: {target}");
            assert_eq!(whole.trailer("x-end").len(), usize::from(target.starts_with("/untold")), "{to}");
            let whole = call(mesh.address, request("GET", target), b"", None).unwrap();
            assert_eq!(whole.body, letters(asked(target).1), "2 to {to}: {target}");
        }
        let mut client = mesh.client();
        client.send("HEAD /told/3000 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response_to_head().one("content-length"), Some("3000".into()));
    }
    for seen in both.finish() {
        assert_eq!((kinds(&seen), seen.failures.len(), seen.by_class[2]), ("truncate:6 ".into(), 0, 15));
        let lines = seen.lines();
        let cut: Vec<_> = lines.iter().filter(|line| line["fault"] == "truncate").collect();
        assert_eq!(cut.len(), 6);
        for line in cut {
            assert_eq!((&line["status"], &line["failure"]), (&200.into(), &serde_json::Value::Null));
            assert_eq!(line["response_bytes"], 1000, "{line}");
        }
        assert!(lines.iter().filter(|line| line["fault"] != "truncate").all(|line| line["fault"].is_null()));
    }
}

#[test]
fn a_part_of_a_body_is_cut_off_where_its_length_is_told() {
    let both = Both::with("fault = { truncate = { after_percent = 25, after = \"10B\" } }");
    for (_, mesh) in &both.meshes {
        assert_eq!(cut_by_http1(mesh, "/told/4000"), letters(1000));
        assert_eq!(cut_by_http2(mesh, "/told/4000"), letters(1000));
        assert_eq!(cut_by_http1(mesh, "/untold/4000"), letters(10));
        assert_eq!(cut_by_http2(mesh, "/untold/4000"), letters(10));
    }
    both.finish();
    let both = Both::with("fault = { truncate = { after_percent = 0 } }");
    for (_, mesh) in &both.meshes {
        assert_eq!(cut_by_http1(mesh, "/told/40"), b"");
        assert_eq!(cut_by_http2(mesh, "/told/40"), b"");
        assert_eq!(whole_by_http1(mesh, "/untold/40").body, letters(40));
    }
    both.finish();
}

#[test]
fn who_could_take_a_cut_body_for_a_whole_one_is_reset() {
    let both = Both::with("fault = { truncate = { after = \"5B\" } }");
    for (to, mesh) in &both.meshes {
        let mut client = mesh.client();
        client.send("GET /untold/40 HTTP/1.0\r\nHost: a\r\n\r\n");
        assert!(matches!(client.cut(), Cut::Truncated(_, End::Reset) | Cut::Nothing(End::Reset)), "{to}");
    }
    both.finish();
}

#[test]
fn a_slow_body_takes_its_time_and_arrives_whole_through_all_four() {
    let both = Both::with("fault = { bandwidth = { response_rate = \"16KiB\" } }");
    for (to, mesh) in &both.meshes {
        for target in ["/told/8192", "/untold/8192"] {
            let began = Instant::now();
            let by_http1 = whole_by_http1(mesh, target);
            // Half a second but for the slack of a sixteenth. No upper bound: the machine may be busy.
            assert!(began.elapsed() >= Duration::from_millis(430), "1 to {to}: {:?}", began.elapsed());
            assert_eq!(by_http1.body, letters(8192), "1 to {to}: {target}");
            assert_eq!(by_http1.trailer("x-end").len(), usize::from(target.starts_with("/untold")), "{to}");
            let began = Instant::now();
            let by_http2 = call(mesh.address, request("GET", target), b"", None).unwrap();
            assert!(began.elapsed() >= Duration::from_millis(430), "2 to {to}: {:?}", began.elapsed());
            assert_eq!(by_http2.body, letters(8192), "2 to {to}: {target}");
            assert_eq!(by_http2.trailers.is_some(), target.starts_with("/untold"), "{to}");
        }
        // The connection goes on.
        let mut client = mesh.client();
        for _ in 0..2 {
            client.send("GET /told/10 HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().body, letters(10));
        }
    }
    for seen in both.finish() {
        assert_eq!((kinds(&seen), seen.failures.len(), seen.by_class[2]), ("bandwidth:6 ".into(), 0, 6));
    }
}

/// A mesh before a service of each version that takes all of a request, and says how long its body was and which trailer it had.
fn taking(keys: &str) -> (Vec<(&'static str, Mesh)>, (Origin, Service)) {
    let h1 = Origin::answering(|request| {
        let said = format!("{} {}", request.body.len(), request.trailer("x-end").len());
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len()).into_bytes()
    });
    let h2 = Service::scripted(|request, mut respond| async move {
        let whole = read(request).await;
        let trailers = whole.trailers.map_or(0, |trailers| usize::from(trailers.contains_key("x-end")));
        let said = format!("{} {trailers}", whole.body.len());
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        send(&mut stream, said.into(), None).await;
    });
    let config = |config: Config| {
        config.routes(&format!("[[route]]\nservice = \"app\"\n{keys}\n")).log("json").start()
    };
    let to_h2 = Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"");
    (vec![("1", config(Config::new(&[&h1]))), ("2", config(to_h2))], (h1, h2))
}

#[test]
fn a_slow_request_takes_its_time_and_arrives_whole_through_all_four() {
    let (meshes, _services) = taking("fault = { bandwidth = { request_rate = \"16KiB\" } }");
    let body = String::from_utf8(letters(8192)).unwrap();
    for (to, mesh) in &meshes {
        let mut client = mesh.client();
        let head = "PUT /x HTTP/1.1\r\nHost: a\r\n";
        let told = format!("{head}Content-Length: 8192\r\n\r\n{body}");
        let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
        for chunk in body.as_bytes().chunks(1000) {
            chunked += &format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap());
        }
        chunked += "0\r\nx-end: yes\r\n\r\n";
        for (wire, said) in [(told, "8192 0"), (chunked, "8192 1")] {
            let began = Instant::now();
            client.send(wire);
            // The connection goes on.
            assert_eq!(client.response().text(), said, "1 to {to}");
            // Half a second but for the slack of a sixteenth. No upper bound: the machine may be busy.
            assert!(began.elapsed() >= Duration::from_millis(430), "1 to {to}: {:?}", began.elapsed());
        }
        let trailers = || http::HeaderMap::from_iter([("x-end".parse().unwrap(), "yes".parse().unwrap())]);
        for (trailers, said) in [(None, "8192 0"), (Some(trailers()), "8192 1")] {
            let began = Instant::now();
            let whole = call(mesh.address, request("PUT", "/x"), body.as_bytes(), trailers).unwrap();
            assert_eq!(String::from_utf8(whole.body).unwrap(), said, "2 to {to}");
            assert!(began.elapsed() >= Duration::from_millis(430), "2 to {to}: {:?}", began.elapsed());
        }
        // One without a body is not slow, and nothing was done to it.
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "0 0");
    }
    for (to, mesh) in meshes {
        let seen = mesh.finish();
        assert_eq!(
            (kinds(&seen), seen.failures.len(), seen.by_class[2]),
            ("bandwidth:4 ".into(), 0, 5),
            "{to}"
        );
        let lines = seen.lines();
        assert!(
            lines.iter().all(|line| line["request_bytes"] == 8192 || line["fault"].is_null()),
            "{lines:?}"
        );
    }
}

#[test]
fn a_request_that_is_too_slow_for_its_route_is_answered_and_little_of_it_was_taken() {
    const SENT: usize = 8 << 20;
    let (meshes, _services) = taking("timeout = \"1s\"\nfault = { bandwidth = { request_rate = \"1KiB\" } }");
    std::thread::scope(|scope| {
        for (to, mesh) in &meshes {
            scope.spawn(move || {
                let mut client = mesh.client();
                let head = format!("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {SENT}\r\n\r\n");
                client.send(head);
                let mut sending = client.socket().try_clone().unwrap();
                // Until nobody takes it any more.
                let sender = std::thread::spawn(move || drop(sending.write_all(&letters(SENT))));
                assert_eq!(client.response().status(), 408, "1 to {to}");
                drop(client);
                sender.join().unwrap();
            });
            scope.spawn(move || {
                let whole = call(mesh.address, request("PUT", "/x"), &letters(SENT), None).unwrap();
                assert_eq!(whole.head.status, 408, "2 to {to}");
            });
        }
    });
    for (to, mesh) in meshes {
        let seen = mesh.finish();
        assert_eq!(seen.failures.get("request.local.timeout"), Some(&2), "{to}: {:?}", seen.failures);
        for line in seen.lines() {
            // What was read and waits: the caller is held back, and its body is not kept here.
            let taken = line["request_bytes"].as_u64().unwrap();
            assert!(taken > 0 && taken <= 256 << 10, "{to}: {line}");
        }
    }
}

#[test]
fn an_answer_does_not_wait_for_the_rest_of_a_slow_request() {
    let h1 = Origin::scripted(|visit| {
        if visit.head().is_some() {
            visit.send("HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno");
            visit.drain();
        }
    });
    let h2 = Service::scripted(|_, mut respond| async move {
        let response = Response::builder().status(403).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    });
    // A megabyte takes a quarter of an hour.
    let route = "[[route]]\nservice = \"app\"\nfault = { bandwidth = { request_rate = \"1KiB\" } }\n";
    let to_h2 = Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"");
    for (to, config) in [("1", Config::new(&[&h1])), ("2", to_h2)] {
        let mesh = config.routes(route).start();
        let mut client = mesh.client();
        client.send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
        client.send(letters(100_000));
        assert_eq!(client.response().status(), 403, "1 to {to}");
        let whole = call(mesh.address, request("PUT", "/x"), &letters(1_000_000), None).unwrap();
        assert_eq!(whole.head.status, 403, "2 to {to}");
        drop(client);
        mesh.finish();
    }
}

#[test]
fn a_slow_body_is_not_slower_than_its_route_lets_it_be() {
    // Long enough for the head of the answer, whatever else the machine does.
    let both = Both::with("timeout = \"3s\"\nfault = { bandwidth = { response_rate = \"1KiB\" } }");
    std::thread::scope(|scope| {
        for (_, mesh) in &both.meshes {
            scope.spawn(|| {
                let front = cut_by_http1(mesh, "/told/9000");
                assert!(!front.is_empty() && front.len() < 9000);
            });
            scope.spawn(|| cut_by_http2(mesh, "/told/9000"));
        }
    });
    for seen in both.finish() {
        assert_eq!(
            (kinds(&seen), seen.of_cause("timeout")),
            ("bandwidth:2 ".into(), 2),
            "{:?}",
            seen.failures
        );
        assert_eq!(seen.failures.get("body.local.timeout"), Some(&2), "{:?}", seen.failures);
    }
}

#[test]
fn faults_come_together_and_a_request_may_ask_for_a_slow_answer() {
    let both = Both::with(
        "fault = { by_header = true, delay = { fixed = \"1ms\" }, truncate = { after = \"3000B\" } }",
    );
    for (_, mesh) in &both.meshes {
        let began = Instant::now();
        let mut client = mesh.client();
        client.send("GET /told/4000 HTTP/1.1\r\nHost: a\r\nx-envoy-fault-throughput-response: 6\r\n\r\n");
        let Cut::Truncated(Some(front), _) = client.cut() else { panic!("no front") };
        assert_eq!(front.body, letters(3000));
        assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
        assert_eq!(cut_by_http2(mesh, "/told/4000"), letters(3000));
    }
    for seen in both.finish() {
        assert_eq!(kinds(&seen), "delay_truncate:1 delay_bandwidth_truncate:1 ");
    }
}

#[test]
fn a_slow_or_cut_body_of_http2_is_left_when_its_caller_resets_it() {
    let both = Both::with("fault = { bandwidth = { response_rate = \"1KiB\" } }");
    let mut seen = Vec::new();
    for (_, mut mesh) in both.meshes {
        let mut raw = Raw::connect(mesh.address);
        raw.head(END_STREAM, 1, &fields("GET", "/told/1000000", &[]));
        raw.until(DATA);
        raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
        mesh.wait_seen(|seen| seen.failures.contains_key("body.downstream.http2_stream_reset"));
        drop(raw);
        seen.push(kinds(&mesh.finish()));
    }
    assert_eq!(seen, ["bandwidth:1 ", "bandwidth:1 "]);
}

#[test]
fn a_half_open_request_is_never_answered_and_reset_at_its_bound() {
    let app = h1();
    let fault = "[[route]]\nservice = \"app\"\nfault = { abort = { half_open_max = \"50ms\" } }\n";
    // The timeout of the route would be an answer.
    let mesh = Config::new(&[&app]).routes(&format!("{fault}timeout = \"1ms\"\n")).log("json").start();
    let began = Instant::now();
    let mut client = mesh.client();
    client.send("GET /told/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.end(), End::Reset);
    let error = call(mesh.address, request("GET", "/told/1"), b"", None).err().unwrap();
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert!(began.elapsed() >= Duration::from_millis(100));
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.by_class[0], seen.failures.len()), ("half_open:2 ".into(), 2, 0));
    assert!(seen.lines().iter().all(|line| line["fault"] == "half_open" && line["failure"].is_null()));
    assert!(app.settle().is_empty(), "no service sees it");
}

#[test]
fn a_half_open_request_is_taken_whole_and_its_caller_may_leave() {
    let app = h1();
    let fault = "[[route]]\nservice = \"app\"\nfault = { abort = { half_open_max = \"5m\" } }\n";
    let mut mesh = Config::new(&[&app]).routes(fault).start();
    let body = letters(8 << 20);
    let mut client = mesh.client();
    client.send(format!("POST /told/1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    // More than any buffer has room for.
    client.socket().write_all(&body).unwrap();
    drop(client);
    mesh.wait_seen(|seen| seen.failures.contains_key("head.downstream.closed_early"));

    let mut raw = Raw::connect(mesh.address);
    raw.head(0, 1, &fields("POST", "/told/1", &[]));
    let mut left = 256 << 10;
    // Only as the window lets it, which opens again as what it let is taken.
    let (mut stream, mut connection) = (65_535_usize, 65_535_usize);
    while left > 0 {
        let part = left.min(stream).min(connection).min(16_384);
        if part > 0 {
            raw.frame(DATA, 0, 1, &body[..part]);
            (left, stream, connection) = (left - part, stream - part, connection - part);
            continue;
        }
        let update = raw.until(crate::support::http2::WINDOW_UPDATE);
        let by = u32::from_be_bytes(update.payload[..4].try_into().unwrap()) as usize;
        if update.stream == 0 { connection += by } else { stream += by }
    }
    raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    mesh.wait_seen(|seen| seen.failures.contains_key("head.downstream.http2_stream_reset"));
    drop(raw);
    // And a drain does not wait for those that are left.
    let mut last = mesh.client();
    last.send("GET /told/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    mesh.wait_totals(|totals| totals.exchanges_open == 1);
    let seen = mesh.finish();
    assert_eq!(last.end(), End::Reset);
    assert_eq!((kinds(&seen), seen.failures.len()), ("half_open:3 ".into(), 2));
    assert!(app.settle().is_empty());
}

#[test]
fn a_caller_that_leaves_during_a_delay_is_noticed_then() {
    let app = h1();
    let fault = "[[route]]\nservice = \"app\"\nfault = { delay = { fixed = \"5m\" } }\n";
    let mut mesh = Config::new(&[&app]).routes(fault).start();
    let mut client = mesh.client();
    client.send("POST /told/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\nthe front");
    mesh.wait_totals(|totals| totals.exchanges_open == 1);
    // What comes meanwhile does not hide the end.
    client.send("more of it");
    drop(client);
    mesh.wait_seen(|seen| seen.failures.contains_key("head.downstream.closed_early"));
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/told/1", &[]));
    mesh.wait_totals(|totals| totals.exchanges_open == 1);
    raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    mesh.wait_seen(|seen| seen.failures.contains_key("head.downstream.http2_stream_reset"));
    drop(raw);
    assert_eq!(kinds(&mesh.finish()), "delay:2 ");
    assert!(app.settle().is_empty());
}

#[test]
fn what_comes_during_a_delay_is_kept() {
    let app = Origin::answering(|request| {
        let mut out =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len()).into_bytes();
        out.extend_from_slice(&request.body);
        out
    });
    let fault = "[[route]]\nservice = \"app\"\nfault = { delay = { fixed = \"60ms\" } }\n";
    let mesh = Config::new(&[&app]).routes(fault).start();
    // Within what the input has room for, and more than that.
    for size in [9000, 300_000] {
        let body = letters(size);
        let mut client = mesh.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"));
        std::thread::sleep(Duration::from_millis(5));
        client.socket().write_all(&body).unwrap();
        // And the next request behind it.
        client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.response().body == body, "{size}");
        assert_eq!(client.response().body, b"");
    }
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.failures.len()), ("delay:4 ".into(), 0));
}

#[test]
fn a_head_that_the_body_waits_for_is_not_held_back() {
    // The service sends its head, and its body only when it is told that the head has arrived.
    let (gate, origin) = {
        let gate = std::sync::Arc::new(crate::support::Gate::default());
        let theirs = std::sync::Arc::clone(&gate);
        let origin = Origin::scripted(move |visit| {
            while visit.request().is_some() {
                visit.send("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n");
                theirs.pass();
                visit.send(letters(20));
            }
        });
        (gate, origin)
    };
    let fault = "[[route]]\nservice = \"app\"\nfault = { bandwidth = { response_rate = \"1KiB\" } }\n";
    let mesh = Config::new(&[&origin]).routes(fault).start();
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.take_head().starts_with("HTTP/1.1 200"));
    gate.open();
    assert_eq!(client.take(20), letters(20));
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    raw.until(HEADERS);
    assert_eq!(raw.body(1), (letters(20), None));
    drop((client, raw));
    mesh.finish();
}
