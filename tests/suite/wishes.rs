//! What callers say of the retries and timeouts of their own requests: by HTTP/1.1, HTTP/2 and gRPC, to services that speak
//! either; where a route listens, and where none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use ringmesh::config;

use super::breaker::{By, Stage, counted, text};
use crate::support::client::Client;
use crate::support::http2::{Service, call, read, request, send};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, ok};
use crate::support::{Gate, Watched, stream};

const RETRY_ON: (&str, &str) = ("x-envoy-retry-on", "5xx");
const QUICK: &str = "retry = { backoff_base = \"0s\", attempts_max = 1, statuses = [], on = [] }\n";
const SICK: &str = "HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nsick";

/// A service that answers so many requests with 503 before it answers any other with 200, by either version; it notes all that
/// it is asked, names of fields in lower case.
struct Sick {
    came: Arc<Watched<Vec<Vec<String>>>>,
    mesh: Mesh,
    _alive: (Option<Origin>, Option<Service>),
}

impl Sick {
    fn start(is_http2: bool, times: usize, route: &str) -> Self {
        let came = Arc::new(Watched::new(Vec::new()));
        let theirs = Arc::clone(&came);
        let note = move |names: Vec<String>| {
            let mut count = 0;
            theirs.change(|came| {
                came.push(names);
                count = came.len();
            });
            count <= times
        };
        let config = Config::default().log("json").routes(&format!("[[route]]\nservice = \"app\"\n{route}"));
        if is_http2 {
            let service = Service::scripted(move |request, mut respond| {
                let names = request.headers().keys().map(ToString::to_string).collect();
                let is_sick = note(names);
                async move {
                    let _ = read(request).await;
                    let response = Response::builder().status(if is_sick { 503 } else { 200 });
                    let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    send(&mut stream, Bytes::from_static(b"said"), None).await;
                }
            });
            let keys = format!("protocol = \"http2\"\n{QUICK}");
            let mesh = config.service_at("app", &[&service.endpoint], &keys).start();
            Self { came, mesh, _alive: (None, Some(service)) }
        } else {
            let origin = Origin::answering(move |request| {
                let names = request.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
                if note(names) { SICK.into() } else { ok(request) }
            });
            let mesh = config.service("app", &[&origin], QUICK).start();
            Self { came, mesh, _alive: (Some(origin), None) }
        }
    }

    /// What came, and what was seen of it.
    fn end(self) -> (Vec<Vec<String>>, Seen) {
        let seen = self.mesh.finish();
        let mut all = Vec::new();
        self.came.change(|came| all.append(came));
        (all, seen)
    }
}

/// A request in one of the ways that there are; its status.
fn ask(mesh: &Mesh, method: &str, body: &str, fields: &[(&str, &str)], way: usize) -> u16 {
    if way == 1 {
        let mut asking = request(method, "/x");
        for (name, value) in fields {
            asking
                .headers_mut()
                .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        return call(mesh.address, asking, body.as_bytes(), None).unwrap().head.status.as_u16();
    }
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut client = mesh.client();
    let head = format!("{method} /x HTTP/1.1\r\nHost: a\r\n{fields}");
    match way {
        0 => client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())),
        _ => {
            client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\n"));
            client.send(format!("{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &body[..1], body.len() - 1, &body[1..]))
        }
    };
    client.response().status()
}

fn wishes(seen: &Seen) -> String {
    let all: Vec<String> = seen.retries.wishes().map(|(result, n)| format!("{result}:{n}")).collect();
    let lines = seen.lines();
    let logged: Vec<&str> = lines.iter().filter_map(|line| line["wishes"].as_str()).collect();
    format!("{} {}", all.join(" "), logged.join(" ")).trim().to_owned()
}

#[test]
fn a_request_is_sent_again_as_its_caller_says_and_the_service_is_not_told_of_it() {
    let said = [
        ("x-envoy-retry-on", "5xx, retriable-status-codes"),
        ("X-Envoy-Max-Retries", "2"),
        ("x-envoy-retriable-status-codes", "404"),
    ];
    for is_http2 in [false, true] {
        for (body, ways) in [("", 2), ("octets", 3)] {
            for way in 0..ways {
                let sick = Sick::start(is_http2, 2, "caller_may = { attempts_max = 3 }\n");
                assert_eq!(ask(&sick.mesh, "PUT", body, &said, way), 200, "{is_http2} {body} {way}");
                let (came, seen) = sick.end();
                assert_eq!(came.len(), 3, "{is_http2} {body} {way}");
                assert!(!came.iter().flatten().any(|name| name.starts_with("x-envoy-")), "{came:?}");
                assert_eq!(wishes(&seen), "taken:1 taken");
                assert_eq!(seen.lines()[0]["attempts"], 3);
            }
        }
    }
}

#[test]
fn who_says_nothing_or_too_much_has_what_the_configuration_gives() {
    for is_http2 in [false, true] {
        for way in 0..2 {
            for (route, fields, attempts, outcome) in [
                // Nothing is said.
                ("caller_may = { attempts_max = 3 }\n", &[][..], 1, ""),
                // Nobody listens: the fields are the service's.
                ("", &[RETRY_ON, ("x-envoy-max-retries", "2")][..], 1, ""),
                // More than there may be.
                (
                    "caller_may = { attempts_max = 3 }\n",
                    &[RETRY_ON, ("x-envoy-max-retries", "9")],
                    3,
                    "capped:1 capped",
                ),
                ("caller_may = {}\n", &[RETRY_ON, ("x-envoy-max-retries", "9")], 1, "capped:1 capped"),
                // What is odd says nothing, and the rest holds.
                (
                    "caller_may = { attempts_max = 3 }\n",
                    &[("x-envoy-retry-on", "5xx,unheard-of"), ("x-envoy-max-retries", "many")],
                    2,
                    "ignored:1 ignored",
                ),
                // Statuses are listed, and nobody says that the list counts.
                (
                    "caller_may = { attempts_max = 3 }\n",
                    &[("x-envoy-retriable-status-codes", "503"), ("x-envoy-max-retries", "2")],
                    1,
                    "ignored:1 ignored",
                ),
                // The caller does, or the route.
                (
                    "caller_may = { attempts_max = 3 }\n",
                    &[
                        ("x-envoy-retriable-status-codes", "503"),
                        ("x-envoy-retry-on", "retriable-status-codes"),
                    ],
                    2,
                    "taken:1 taken",
                ),
                (
                    "caller_may = { attempts_max = 3 }\nretry = { attempts_max = 1, backoff_base = \"0s\", on = [], statuses = [500] }\n",
                    &[("x-envoy-retriable-status-codes", "503")],
                    2,
                    "taken:1 taken",
                ),
                // What may not be done twice is not, whoever wishes it.
                (
                    "caller_may = { attempts_max = 3 }\nmatch = { methods = [\"POST\"] }\n",
                    &[RETRY_ON, ("x-envoy-max-retries", "2")],
                    1,
                    "taken:1 taken",
                ),
                // Nor beyond the budget.
                (
                    "caller_may = { attempts_max = 3 }\nretry = { attempts_max = 1, budget_percent = 0, budget_floor = 0 }\n",
                    &[RETRY_ON, ("x-envoy-max-retries", "2")],
                    1,
                    "taken:1 taken",
                ),
            ] {
                let sick = Sick::start(is_http2, 9, route);
                let method = if route.contains("POST") { "POST" } else { "GET" };
                assert_eq!(ask(&sick.mesh, method, "", fields, way), 503, "{route} {way}");
                let (came, seen) = sick.end();
                assert_eq!(
                    (came.len(), wishes(&seen)),
                    (attempts, outcome.into()),
                    "{route} {fields:?} {way}"
                );
                let told = came.iter().flatten().filter(|name| name.starts_with("x-envoy-")).count();
                assert_eq!(told, if route.is_empty() { 2 } else { 0 }, "{route}: {came:?}");
            }
        }
    }
}

/// Two services of each version that answer when the gate is open.
fn gated(is_http2: bool) -> (Arc<Gate>, String, (Option<Origin>, Option<Service>)) {
    if !is_http2 {
        let (gate, origin) = Origin::gated();
        return (gate, origin.endpoint.clone(), (Some(origin), None));
    }
    let gate = Arc::new(Gate::default());
    let theirs = Arc::clone(&gate);
    let service = Service::scripted(move |request, mut respond| {
        let gate = Arc::clone(&theirs);
        async move {
            let _ = read(request).await;
            tokio::task::spawn_blocking(move || gate.pass()).await.unwrap();
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            send(&mut stream, Bytes::from_static(b"late"), None).await;
        }
    });
    (gate, service.endpoint.clone(), (None, Some(service)))
}

#[test]
fn a_timeout_is_what_the_caller_says_shorter_or_up_to_the_ceiling_longer() {
    const FIELD: &str = "x-envoy-upstream-rq-timeout-ms";
    for is_http2 in [false, true] {
        let (gate, endpoint, _alive) = gated(is_http2);
        let protocol = if is_http2 { "protocol = \"http2\"\n" } else { "" };
        let config = |route: &str| {
            let keys = format!("{protocol}retry = \"off\"\ntimeouts = {{ response = \"1h\" }}\n");
            let route = format!("[[route]]\nservice = \"app\"\n{route}");
            Config::default().service_at("app", &[&endpoint], &keys).routes(&route).log("json").start()
        };
        let short = config("timeout = \"1h\"\ncaller_may = {}\n");
        let long = config("timeout = \"50ms\"\ncaller_may = { timeout_max = \"1h\" }\n");
        std::thread::scope(|scope| {
            let mut late = Vec::new();
            for way in 0..2 {
                // Shorter than the route's hour: comes to an end here, where nobody else ends it.
                assert_eq!(ask(&short, "GET", "", &[(FIELD, "30")], way), 504, "{is_http2} {way}");
                // Longer than the route's: there when one that came later and has the route's own has ended.
                for asked in ["3600000", "0"] {
                    let long = &long;
                    late.push(scope.spawn(move || ask(long, "GET", "", &[(FIELD, asked)], way)));
                }
            }
            long.wait_open(4);
            for way in 0..2 {
                assert_eq!(ask(&long, "GET", "", &[], way), 504, "{is_http2} {way}");
            }
            gate.open();
            for late in late {
                assert_eq!(late.join().unwrap(), 200, "{is_http2}");
            }
        });
        assert_eq!(wishes(&short.finish()), "taken:2 taken taken");
        let long = long.finish();
        assert_eq!(long.retries.wishes().collect::<Vec<_>>(), [("taken", 2), ("capped", 2)]);
        assert_eq!(long.failures.len(), 1, "{:?}", long.failures);
    }
}

#[test]
fn an_attempt_that_its_caller_hurries_is_not_the_endpoints_fault() {
    let hang = || {
        counted(|visit, _| {
            visit.drain();
            false
        })
    };
    let well = || counted(|visit, request| visit.send(ok(request)));
    let keys = "balance = \"round-robin\"\nbreaker = { ejection_base = \"1h\", ejection_max = \"1h\", consecutive_unanswered = 1, pending_min = 0, slow_min = \"1h\" }\n";
    for (hurried, by) in [(true, By::Http1), (true, By::Http2), (false, By::Http1), (false, By::Http2)] {
        let ((ill, count), (fine, _)) = (hang(), well());
        let retry = "retry = { backoff_base = \"0s\", attempts_max = 2, on = [] }";
        let retry = if hurried {
            retry.to_owned()
        } else {
            retry.replace("on =", "attempt_timeout = \"20ms\", on =")
        };
        let text = text(1, &[&ill.endpoint, &fine.endpoint], keys).replace("retry = \"off\"", &retry)
            + "caller_may = {}\n";
        let stage = Stage::of(&text);
        let said: &[(&str, &str)] =
            if hurried { &[("x-envoy-upstream-rq-per-try-timeout-ms", "20")] } else { &[] };
        for _ in 0..4 {
            let status = match by {
                By::Http1 => {
                    let fields: String =
                        said.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                    let mut client = Client::connect(stage.listener);
                    client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
                    client.response().status()
                }
                By::Http2 | By::Grpc => {
                    let mut asking = request("GET", "/x");
                    for (name, value) in said {
                        asking.headers_mut().insert(*name, value.parse().unwrap());
                    }
                    call(stage.listener, asking, b"", None).unwrap().head.status.as_u16()
                }
            };
            assert_eq!(status, 200, "another endpoint is asked: {hurried} {by:?}");
        }
        assert!(count.load(Ordering::Acquire) > 0);
        let state = stage.state(&ill.endpoint).0;
        assert_eq!(state, if hurried { "used" } else { "ejected" }, "{by:?}");
        stage.end();
    }
}

/// An origin that answers, but for the first request that comes to any that counts by `asked`.
fn silent_at_first(asked: &Arc<AtomicUsize>) -> Origin {
    let asked = Arc::clone(asked);
    Origin::scripted(move |visit| {
        while let Some(request) = visit.request() {
            if asked.fetch_add(1, Ordering::AcqRel) == 0 {
                visit.drain();
                return;
            }
            visit.send(ok(&request));
        }
    })
}

#[test]
fn an_attempt_that_has_had_its_time_is_hedged_where_the_caller_says_so() {
    let fields =
        [("x-envoy-upstream-rq-per-try-timeout-ms", "5"), ("x-envoy-hedge-on-per-try-timeout", "true")];
    for way in 0..2 {
        let asked = Arc::new(AtomicUsize::new(0));
        let (one, other) = (silent_at_first(&asked), silent_at_first(&asked));
        let mesh = Config::default()
            .service(
                "app",
                &[&one, &other],
                "timeouts = { response = \"1h\" }\nretry = { on = [], statuses = [], attempts_max = 2 }\n",
            )
            .routes("[[route]]\nservice = \"app\"\ncaller_may = {}\n")
            .log("json")
            .start();
        assert_eq!(ask(&mesh, "GET", "", &fields, way), 200, "{way}");
        let seen = mesh.finish();
        assert_eq!(asked.load(Ordering::Acquire), 2);
        assert_eq!((seen.retries.hedges_won, wishes(&seen)), (1, "taken:1 taken".into()));
    }
}

#[test]
fn an_attempt_that_cannot_be_hedged_is_ended_when_it_has_had_its_time() {
    let fields =
        [("x-envoy-upstream-rq-per-try-timeout-ms", "20"), ("x-envoy-hedge-on-per-try-timeout", "true")];
    for (endpoints, way, body) in [
        // Nowhere else to go.
        (1, 0, ""),
        (1, 1, ""),
        (1, 1, "octets"),
        // Not all of it was there.
        (2, 2, "octets"),
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let origins: Vec<Origin> = (0..endpoints).map(|_| silent_at_first(&asked)).collect();
        let keys = "timeouts = { response = \"1h\" }\nretry = { on = [], statuses = [], attempts_max = 2 }\n";
        let mesh = Config::default()
            .service("app", &origins.iter().collect::<Vec<_>>(), keys)
            .routes("[[route]]\nservice = \"app\"\ncaller_may = {}\n")
            .log("json")
            .start();
        assert_eq!(ask(&mesh, "PUT", body, &fields, way), 200, "{endpoints} {way} {body}");
        let seen = mesh.finish();
        assert_eq!(asked.load(Ordering::Acquire), 2, "{endpoints} {way} {body}");
        let line = &seen.lines()[0];
        assert_eq!(
            (&line["retried"], &line["hedge"]),
            (&"timeout".into(), &serde_json::Value::Null),
            "{line}"
        );
    }
}

#[test]
fn a_tunnel_that_cannot_be_hedged_is_not_waited_for_longer_than_its_caller_says() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (one, other) = (silent_at_first(&asked), silent_at_first(&asked));
    let keys = "timeouts = { response = \"1h\" }\nretry = { on = [], statuses = [], attempts_max = 1, methods = [\"CONNECT\"] }\n";
    let mesh = Config::default()
        .service("app", &[&one, &other], keys)
        .routes("[[route]]\nservice = \"app\"\nupgrades = [\"websocket\"]\ncaller_may = {}\n")
        .start();
    let asking = stream::websocket("/")
        .header("x-envoy-upstream-rq-per-try-timeout-ms", "20")
        .header("x-envoy-hedge-on-per-try-timeout", "true");
    let answered = stream::Caller::new(mesh.address).ask(asking.body(()).unwrap(), b"").unwrap();
    assert_eq!(answered.head.status, 504);
    drop(answered);
    assert_eq!(mesh.finish().retries.hedges_won, 0);
}

#[test]
fn a_grpc_call_is_sent_again_after_the_codes_that_its_caller_names() {
    for (said, attempts) in [("resource-exhausted, cancelled", 2), ("unavailable", 1), ("5xx", 1)] {
        let count = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&count);
        let service = Service::scripted(move |request, mut respond| {
            let n = theirs.fetch_add(1, Ordering::AcqRel);
            async move {
                assert!(!request.headers().contains_key("x-envoy-retry-grpc-on"));
                let _ = read(request).await;
                let code = if n == 0 { "8" } else { "0" };
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", code);
                respond.send_response(response.body(()).unwrap(), true).unwrap();
            }
        });
        let keys = format!("protocol = \"http2\"\n{QUICK}");
        let mesh = Config::default()
            .service_at("app", &[&service.endpoint], &keys)
            .routes("[[route]]\nservice = \"app\"\ncaller_may = { attempts_max = 2 }\n")
            .start();
        let mut asking = request("POST", "/pkg.Service/Method");
        asking.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        asking.headers_mut().insert("x-envoy-retry-grpc-on", said.parse().unwrap());
        let whole = call(mesh.address, asking, &[0; 5], None).unwrap();
        let code = if attempts == 2 { "0" } else { "8" };
        assert_eq!(
            (&whole.head.headers["grpc-status"], count.load(Ordering::Acquire)),
            (&code.parse().unwrap(), attempts),
            "{said}"
        );
        mesh.finish();
    }
}

#[test]
fn ceilings_that_are_none_are_mistakes() {
    let services = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"a\"\nendpoints = \
                    [\"127.0.0.1:1\"]\n[[route]]\n";
    for (route, wants) in [
        ("service = \"a\"\ncaller_may = { timeout_max = \"3s\" }", &["`timeout_max` without `timeout`"][..]),
        (
            "service = \"a\"\ntimeout = \"5s\"\ncaller_may = { timeout_max = \"3s\" }",
            &["timeout_max = 3s is less than what holds for all, 5s", "leave it out"],
        ),
        (
            "service = \"a\"\nretry = { attempts_max = 4 }\ncaller_may = { attempts_max = 2 }",
            &["attempts_max = 2 is less than what holds for all, 4"],
        ),
        (
            "service = \"a\"\nretry = { attempt_timeout = \"2s\" }\ncaller_may = { attempt_timeout_max = \"1s\" }",
            &["attempt_timeout_max = 1s is less than what holds for all, 2s"],
        ),
        ("service = \"a\"\ncaller_may = { attempts_max = 99 }", &["out of its bounds"]),
        ("service = \"a\"\ncaller_may = { attempt_max = 2 }", &["attempt_max", "attempts_max"]),
        ("redirect = { scheme = \"https\" }\ncaller_may = {}", &["`caller_may` does not go with `redirect`"]),
    ] {
        let report = match config::parse("bad.toml", &format!("{services}{route}\n"), &|_| None) {
            Ok(_) => panic!("{route}: no error"),
            Err(report) => report.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        for want in wants {
            assert!(report.contains(want), "{route}: no `{want}` in\n{report}");
        }
    }
}
