//! Faults that a route makes on purpose, over real sockets: what callers by HTTP/1.1 and HTTP/2 see, and what log and metrics tell.

use std::time::{Duration, Instant};

use ringmesh::config;

use crate::support::End;
use crate::support::http2::{call, request};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::Origin;

fn mesh(app: &Origin, fault: &str) -> Mesh {
    of(app, fault).start()
}

fn of(app: &Origin, fault: &str) -> Config {
    Config::new(&[app]).routes(&format!("[[route]]\nservice = \"app\"\nfault = {fault}\n")).log("json")
}

fn kinds(seen: &Seen) -> String {
    seen.faults.kinds().map(|(kind, n)| format!("{kind}:{n} ")).collect()
}

#[test]
fn an_abort_is_answered_here_and_is_no_failure() {
    let app = Origin::plain();
    let mesh = mesh(&app, "{ abort = { status = 418 } }");
    let mut client = mesh.client();
    // The connection goes on.
    for _ in 0..2 {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status(), response.has("x-ringmesh-failure")), (418, false));
        assert!(response.text().contains("on purpose"));
    }
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.response().status(), 418);
    assert_eq!(call(mesh.address, request("POST", "/x"), b"abc", None).unwrap().head.status, 418);
    drop(client);
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.by_class[4], seen.failures.len()), ("abort:4 ".into(), 4, 0));
    assert!(seen.lines().iter().all(|line| line["fault"] == "abort" && line["failure"].is_null()));
    assert!(app.settle().is_empty(), "no service sees it");
}

#[test]
fn a_grpc_caller_is_aborted_by_a_code_and_others_by_503() {
    let app = Origin::plain();
    let mesh = mesh(&app, "{ abort = { grpc_status = 8 } }");
    let mut asked = request("POST", "/a.B/C");
    asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    asked.headers_mut().insert("te", "trailers".parse().unwrap());
    let whole = call(mesh.address, asked, b"", None).unwrap();
    assert_eq!((whole.head.status.as_u16(), whole.head.headers["grpc-status"].as_bytes()), (200, &b"8"[..]));
    assert_eq!(call(mesh.address, request("GET", "/x"), b"", None).unwrap().head.status, 503);
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    drop(client);
    assert_eq!(kinds(&mesh.finish()), "abort:3 ");
}

#[test]
fn a_reset_ends_the_connection_or_the_stream() {
    let app = Origin::plain();
    let mesh = mesh(&app, "{ abort = { reset = true } }");
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.end(), End::Reset);
    let error = call(mesh.address, request("GET", "/x"), b"", None).err().unwrap();
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.by_class[0]), ("reset:2 ".into(), 2));
    assert!(app.settle().is_empty());
}

#[test]
fn a_delay_holds_a_request_up_and_nothing_else() {
    let app = Origin::plain();
    let mesh = mesh(&app, "{ delay = { least = \"20ms\", most = \"30ms\" } }");
    let began = Instant::now();
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "/x");
    assert_eq!(call(mesh.address, request("GET", "/x"), b"", None).unwrap().head.status, 200);
    // No upper bound: the machine may be busy.
    assert!(began.elapsed() >= Duration::from_millis(40));
    drop(client);
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.by_class[2]), ("delay:2 ".into(), 2));
    let lines = seen.lines();
    assert!(lines.iter().all(|line| line["fault"] == "delay" && line["status"] == 200), "{lines:?}");
}

#[test]
fn a_delay_that_takes_all_the_time_there_is_is_no_failure_of_a_service_that_was_never_asked() {
    let app = Origin::plain();
    let routes = "[[route]]\nservice = \"app\"\ntimeout = \"20ms\"\nfault = { delay = { fixed = \"1m\" } }\n";
    let mesh = Config::new(&[&app]).routes(routes).log("json").start();
    let mut client = mesh.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert_eq!(
        (response.status(), response.one("x-ringmesh-failure").as_deref()),
        (504, Some("route.local.timeout"))
    );
    let by_http2 = call(mesh.address, request("GET", "/x"), b"", None).unwrap().head;
    assert_eq!(by_http2.status, 504);
    assert_eq!(by_http2.headers["x-ringmesh-failure"], "route.local.timeout");
    drop(client);
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.failures["route.local.timeout"]), ("delay:2 ".into(), 2));
    assert!(app.settle().is_empty());
}

#[test]
fn a_request_may_ask_where_the_route_lets_it() {
    let app = Origin::plain();
    for (fault, want) in [("{ by_header = true }", 499), ("{ delay = { percent = 0, fixed = \"1s\" } }", 200)]
    {
        let mesh = mesh(&app, fault);
        let mut client = mesh.client();
        client.send(
            "GET /x HTTP/1.1\r\nHost: a\r\nX-Envoy-Fault-Abort-Request: 499\r\nx-envoy-fault-delay-request: 1\r\n\r\n",
        );
        assert_eq!(client.response().status(), want, "{fault}");
        let mut asked = request("GET", "/x");
        asked.headers_mut().insert("x-envoy-fault-abort-request", "499".parse().unwrap());
        assert_eq!(call(mesh.address, asked, b"", None).unwrap().head.status.as_u16(), want, "{fault}");
        assert_eq!(call(mesh.address, request("GET", "/x"), b"", None).unwrap().head.status, 200);
        drop(client);
        let seen = mesh.finish();
        assert_eq!(kinds(&seen), if want == 200 { "" } else { "abort:1 delay_abort:1 " });
    }
}

#[test]
fn faults_are_bounded_and_what_is_more_passes_unharmed() {
    let (gate, app) = Origin::gated();
    let config = of(&app, "{ delay = { fixed = \"1ms\" } }").limits("faults_max = 1\n");
    let mesh = config.start();
    let mut first = mesh.client();
    first.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
    // It has been held up, and keeps its place to its end.
    app.wait_requests(1);
    let mut second = mesh.client();
    second.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n");
    app.wait_requests(2);
    gate.open();
    assert_eq!((first.response().status(), second.response().status()), (200, 200));
    drop((first, second));
    let seen = mesh.finish();
    assert_eq!((kinds(&seen), seen.faults.refused), ("delay:1 ".into(), 1));
}

#[test]
fn what_is_wrong_with_a_fault_is_told_with_its_remedy() {
    let base = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"a\"\nendpoints = [\"127.0.0.1:1\"]\n[[route]]\nservice = \"a\"\n";
    for (fault, want) in [
        ("{}", "this fault does nothing"),
        ("{ delay = { percent = 5 } }", "a delay is `fixed`, `exponential`"),
        ("{ delay = { fixed = \"1s\", least = \"1s\" } }", "a delay is `fixed`, `exponential`"),
        ("{ delay = { least = \"1s\" } }", "a delay is `fixed`, `exponential`"),
        ("{ delay = { normal = \"1s\" } }", "`normal` with a `deviation`"),
        ("{ delay = { exponential = \"1s\", deviation = \"1s\" } }", "a delay is `fixed`, `exponential`"),
        ("{ delay = { exponential = \"1s\", normal = \"1s\" } }", "a delay is `fixed`, `exponential`"),
        (
            "{ delay = { exponential = \"1s\", least = \"2s\", most = \"1s\" } }",
            "the longest delay is shorter",
        ),
        ("{ delay = { normal = \"1s\", deviation = \"0s\" } }", "out of its bounds"),
        ("{ delay = { least = \"2s\", most = \"1s\" } }", "the longest delay is shorter"),
        ("{ delay = { fixed = \"10m\" } }", "out of its bounds"),
        ("{ abort = { percent = 5 } }", "needs one of `status`"),
        ("{ abort = { status = 503, reset = true } }", "is one of `status`"),
        ("{ abort = { status = 200 } }", "out of its bounds"),
        ("{ abort = { reset = false } }", "resets nothing"),
        ("{ abort = { half_open_max = \"10m\" } }", "out of its bounds"),
        ("{ abort = { half_open_max = \"1m\", reset = true } }", "is one of `status`"),
        ("{ truncate = { percent = 5 } }", "says `after` or `after_percent`"),
        ("{ truncate = { after_percent = 100 } }", "out of its bounds"),
        ("{ truncate = { after = 5 } }", "needs a unit"),
        ("{ bandwidth = { percent = 5 } }", "needs a `response_rate` or a `request_rate`"),
        ("{ bandwidth = { response_rate = \"100B\" } }", "out of its bounds"),
    ] {
        let report = match config::parse("bad.toml", &format!("{base}fault = {fault}\n"), &|_| None) {
            Ok(_) => panic!("{fault}: no error"),
            Err(report) => report.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        assert!(report.contains(want), "{fault}: no `{want}` in\n{report}");
    }
}
