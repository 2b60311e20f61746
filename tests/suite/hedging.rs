//! Hedges: a request that is not answered for long goes to another endpoint, too; who answers first is heard, the other is ended
//! and not blamed. By both versions of HTTP on both sides.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response};

use crate::support::client::Client;
use crate::support::http2::{self, CANCEL, END_STREAM, RST_STREAM, Raw, Service, call, read, request};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, Visit};
use crate::support::{End, Watched};

/// As soon as it may be: these tests are not about time, and nothing ends by itself in theirs. What comes first waits until it is ended, or until others have come.
const SOON: &str = "balance = \"round-robin\"\ntimeouts = { response = \"1h\" }\nretry = { backoff_base = \"0s\", hedge_after = \"1ms\", attempt_header = true, methods = [\"POST\"] }\n";

/// What becomes of a request.
#[derive(Clone, Copy)]
enum Does {
    /// It is never answered.
    Hang,
    /// It is answered with this status when so many requests have come.
    Answer(u16, usize),
    /// Its connection or stream is reset when so many requests have come.
    Reset(usize),
}

/// What becomes of one before which so many came, and which is this attempt of its exchange.
type Script = fn(usize, usize) -> Does;

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Came {
    endpoint: usize,
    method: String,
    body: String,
    /// Which attempt of its exchange it is, as the proxy says: what comes first need not have been sent first.
    attempt: usize,
}

#[derive(Default)]
struct Notes {
    came: Vec<Came>,
    /// How those ended that were not answered.
    ended: Vec<String>,
    /// Nobody waits for others any more.
    is_over: bool,
}

/// A service with two endpoints; what becomes of a request depends on how many came before, and on which attempt it is.
struct Two {
    notes: Arc<Watched<Notes>>,
    endpoints: Vec<String>,
    is_http2: bool,
    _alive: (Vec<Origin>, Vec<Service>),
}

impl Two {
    fn new(is_http2: bool, does: Script) -> Self {
        let notes = Arc::new(Watched::new(Notes::default()));
        let mut alive = (Vec::new(), Vec::new());
        let mut endpoints = Vec::new();
        for endpoint in 0..2 {
            let notes = Arc::clone(&notes);
            if is_http2 {
                let service = Service::scripted(move |request, respond| {
                    h2_script(Arc::clone(&notes), endpoint, does, request, respond)
                });
                endpoints.push(service.endpoint.clone());
                alive.1.push(service);
            } else {
                let origin = Origin::scripted(move |visit| h1_script(&notes, endpoint, does, visit));
                endpoints.push(origin.endpoint.clone());
                alive.0.push(origin);
            }
        }
        Self { notes, endpoints, is_http2, _alive: alive }
    }

    fn before(&self, keys: &str) -> Mesh {
        self.before_route(keys, "")
    }

    fn before_route(&self, keys: &str, of_route: &str) -> Mesh {
        let endpoints: Vec<&str> = self.endpoints.iter().map(String::as_str).collect();
        let protocol = if self.is_http2 { "protocol = \"http2\"\n" } else { "" };
        Config::default()
            .service_at("app", &endpoints, &format!("{protocol}{keys}"))
            .routes(&format!("[[route]]\nservice = \"app\"\n{of_route}\n"))
            .log("json")
            .start()
    }

    fn wait_came(&self, count: usize) -> Vec<Came> {
        self.notes.wait("requests", |notes| (notes.came.len() >= count).then(|| notes.came.clone()))
    }

    fn wait_ended(&self, count: usize) -> Vec<String> {
        self.notes.wait("ends", |notes| (notes.ended.len() >= count).then(|| notes.ended.clone()))
    }

    /// How one ends that nobody wants any more.
    fn given_up(&self) -> String {
        if self.is_http2 { "reset 8".to_owned() } else { "closed".to_owned() }
    }
}

fn note(notes: &Watched<Notes>, came: Came) -> usize {
    notes.change(|notes| {
        notes.came.push(came);
        notes.came.len() - 1
    })
}

fn wait_for(notes: &Watched<Notes>, count: usize) {
    notes.wait("the others", |notes| (notes.is_over || notes.came.len() >= count).then_some(()));
}

fn h1_script(notes: &Watched<Notes>, endpoint: usize, does: Script, visit: &mut Visit) {
    while let Some(request) = visit.request() {
        let (method, body) = (request.method().to_owned(), request.text());
        let attempt = request.one("x-envoy-attempt-count").map_or(0, |n| n.parse().unwrap());
        let before = note(notes, Came { endpoint, method, body, attempt });
        match does(before, attempt) {
            Does::Hang => {
                let end = visit.drain();
                let end = if matches!(end, End::Fin | End::Reset) {
                    "closed".to_owned()
                } else {
                    format!("{end:?}")
                };
                notes.change(|notes| notes.ended.push(end));
                return;
            }
            Does::Answer(status, count) => {
                wait_for(notes, count);
                let text = format!("{attempt} says {status}");
                visit.send(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
            }
            Does::Reset(count) => {
                wait_for(notes, count);
                visit.reset();
                return;
            }
        }
    }
}

async fn h2_script(
    notes: Arc<Watched<Notes>>,
    endpoint: usize,
    does: Script,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let is_grpc = request.headers().contains_key("grpc-timeout");
    let whole = read(request).await;
    let attempt = whole.head.headers.get("x-envoy-attempt-count");
    let attempt = attempt.map_or(0, |n| n.to_str().unwrap().parse().unwrap());
    let (method, body) = (whole.head.method.to_string(), String::from_utf8(whole.body).unwrap());
    let before = note(&notes, Came { endpoint, method, body, attempt });
    match does(before, attempt) {
        Does::Hang => {
            let end = match std::future::poll_fn(|cx| respond.poll_reset(cx)).await {
                Ok(reason) => format!("reset {}", u32::from(reason)),
                Err(error) => error.to_string(),
            };
            notes.change(|notes| notes.ended.push(end));
        }
        Does::Answer(status, count) => {
            wait_for(&notes, count);
            let mut head = Response::builder().status(status);
            if is_grpc {
                head = head.header("content-type", "application/grpc");
            }
            let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
            let trailers = is_grpc.then(|| {
                [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]
                    .into_iter()
                    .collect()
            });
            http2::send(&mut stream, format!("{attempt} says {status}").into(), trailers).await;
        }
        Does::Reset(count) => {
            wait_for(&notes, count);
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }
}

/// The caller speaks HTTP/1.1 or HTTP/2.
fn ask(address: SocketAddr, by_http2: bool, method: &str, body: &str) -> (u16, String) {
    if by_http2 {
        let whole = call(address, request(method, "/x"), body.as_bytes(), None).unwrap();
        return (whole.head.status.as_u16(), String::from_utf8(whole.body).unwrap());
    }
    let mut client = Client::connect(address);
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\n{length}\r\n{body}"));
    let response = client.response();
    (response.status(), response.text())
}

fn reasons(seen: &Seen) -> String {
    let all: Vec<String> = seen.retries.reasons().map(|(reason, n)| format!("{reason}:{n}")).collect();
    all.join(" ")
}

fn refusals(seen: &Seen) -> String {
    let all: Vec<String> = seen.retries.refusals().map(|(why, n)| format!("{why}:{n}")).collect();
    all.join(" ")
}

/// By each version to each: what the caller speaks, and what the service does.
const WAYS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn a_request_that_is_not_answered_goes_to_another_endpoint_too_and_who_answers_is_heard() {
    for (caller, service) in WAYS {
        for (method, body) in [("GET", ""), ("POST", "some octets")] {
            let two = Two::new(service, |_, n| if n == 1 { Does::Hang } else { Does::Answer(200, 0) });
            let mesh = two.before(SOON);
            assert_eq!(ask(mesh.address, caller, method, body), (200, "2 says 200".to_owned()));
            assert_eq!(two.wait_ended(1), [two.given_up()], "{caller} {service} {method}");
            let came = two.wait_came(2);
            assert_ne!(came[0].endpoint, came[1].endpoint, "{caller} {service} {method}");
            for came in &came {
                assert_eq!((&*came.method, &*came.body), (method, body), "{caller} {service}");
            }
            let seen = mesh.finish();
            assert_eq!((reasons(&seen), seen.retries.hedges_won), ("hedge:1".to_owned(), 1));
            assert_eq!((seen.retries.succeeded, seen.failures.len(), seen.by_class[2]), (1, 0, 1));
            let line = &seen.lines()[0];
            assert_eq!(line["attempts"], 2, "{line}");
            assert_eq!((&line["retried"], &line["hedge"]), (&"hedge".into(), &"won".into()));
            let heard = came.iter().find(|came| came.attempt == 2).unwrap();
            assert_eq!(line["endpoint"], two.endpoints[heard.endpoint]);
        }
    }
}

#[test]
fn a_hedge_that_is_not_sooner_is_ended() {
    for (caller, service) in WAYS {
        for body in ["", "some octets"] {
            let two = Two::new(service, |_, n| if n == 1 { Does::Answer(200, 2) } else { Does::Hang });
            let mesh = two.before(SOON);
            assert_eq!(ask(mesh.address, caller, "PUT", body), (200, "1 says 200".to_owned()));
            assert_eq!(two.wait_ended(1), [two.given_up()], "{caller} {service}");
            let seen = mesh.finish();
            assert_eq!((reasons(&seen), seen.retries.hedges_won), ("hedge:1".to_owned(), 0));
            let line = &seen.lines()[0];
            assert_eq!((&line["attempts"], &line["hedge"]), (&2.into(), &"lost".into()));
            let came = two.wait_came(2);
            let heard = came.iter().find(|came| came.attempt == 1).unwrap();
            assert_eq!(line["endpoint"], two.endpoints[heard.endpoint]);
        }
    }
}

/// Both are answered at the same moment, so that now and then one has its whole head when nobody wants it any more.
#[test]
fn what_was_read_for_nobody_is_given_back() {
    for caller in [false, true] {
        let two = Two::new(false, |before, _| Does::Answer(200, before / 2 * 2 + 2));
        let mut mesh = two.before(SOON);
        for _ in 0..200 {
            assert_eq!(ask(mesh.address, caller, "GET", "").0, 200);
        }
        mesh.wait_totals(|totals| totals.downstream_open == 0 && totals.buffer_bytes == 0);
        let seen = mesh.finish();
        assert_eq!((reasons(&seen), seen.by_class[2], seen.failures.len()), ("hedge:200".to_owned(), 200, 0));
    }
}

#[test]
fn an_answer_that_is_worth_another_attempt_does_not_win() {
    for (caller, service) in WAYS {
        // That of the hedge, whichever is sooner; that of the first attempt, while the hedge is waited for; that it breaks off.
        let cases: [(Script, &str); 3] = [
            (|_, n| if n == 1 { Does::Answer(200, 2) } else { Does::Answer(503, 0) }, "1 says 200"),
            (|_, n| if n == 1 { Does::Answer(503, 2) } else { Does::Answer(200, 0) }, "2 says 200"),
            (|_, n| if n == 1 { Does::Reset(2) } else { Does::Answer(200, 0) }, "2 says 200"),
        ];
        for (does, text) in cases {
            let two = Two::new(service, does);
            let mesh = two.before(SOON);
            assert_eq!(ask(mesh.address, caller, "GET", ""), (200, text.to_owned()), "{caller} {service}");
            let seen = mesh.finish();
            assert_eq!((two.wait_came(2).len(), reasons(&seen)), (2, "hedge:1".to_owned()));
        }
    }
}

#[test]
fn when_neither_brings_anything_the_caller_gets_what_there_is() {
    let keys = "balance = \"round-robin\"\nretry = { backoff_base = \"0s\", hedge_after = \"1ms\", attempt_header = true, attempts_max = 2 }\n";
    for (caller, service) in WAYS {
        let two = Two::new(service, |_, _| Does::Answer(503, 2));
        let mesh = two.before(keys);
        let (status, text) = ask(mesh.address, caller, "GET", "");
        assert!(status == 503 && text.ends_with("says 503"), "{caller} {service}: {status} {text}");
        let seen = mesh.finish();
        assert_eq!((reasons(&seen), refusals(&seen)), ("hedge:1".to_owned(), "attempts:1".to_owned()));
        assert_eq!((two.wait_came(2).len(), seen.by_class[5]), (2, 1));
    }
    // A third attempt, where there may be one: it is a retry, and no endpoint is left that was not tried.
    for (caller, service) in WAYS {
        let two = Two::new(service, |_, n| if n < 3 { Does::Answer(503, 2) } else { Does::Answer(200, 0) });
        let mesh = two.before(SOON);
        assert_eq!(
            ask(mesh.address, caller, "GET", ""),
            (200, "3 says 200".to_owned()),
            "{caller} {service}"
        );
        assert_eq!(reasons(&mesh.finish()), "gateway_error:1 hedge:1");
    }
}

#[test]
fn what_may_not_be_done_twice_is_not_hedged() {
    for (caller, service) in WAYS {
        let two = Two::new(service, |_, _| Does::Hang);
        let mesh = two.before_route("retry = { hedge_after = \"1ms\" }\n", "timeout = \"200ms\"");
        assert_eq!(ask(mesh.address, caller, "POST", "").0, 504, "{caller} {service}");
        two.wait_ended(1);
        assert_eq!(
            (two.wait_came(1).len(), reasons(&mesh.finish())),
            (1, String::new()),
            "{caller} {service}"
        );
    }
}

#[test]
fn there_are_no_more_hedges_than_there_may_be() {
    let with =
        |keys: &str| format!("balance = \"round-robin\"\nretry = {{ hedge_after = \"1ms\", {keys} }}\n");
    let cases = [
        ("GET", "", with("budget_percent = 0, budget_floor = 0"), "budget:1"),
        ("PUT", "octets", with("body_bytes_max = \"3B\""), "body:1"),
        ("GET", "", with("attempts_max = 3") + "caps = { retries_max = 0 }\n", "caps:1"),
    ];
    for (caller, service) in [(false, true), (true, false)] {
        for (method, body, keys, refused) in &cases {
            // Nothing but the end of the test lets it answer.
            let two = Two::new(service, |_, _| Does::Answer(200, usize::MAX));
            let mut mesh = two.before(keys);
            let address = mesh.address;
            std::thread::scope(|scope| {
                let asking = scope.spawn(|| ask(address, caller, method, body).0);
                mesh.wait_seen(|seen| refusals(seen) == *refused);
                two.notes.change(|notes| notes.is_over = true);
                assert_eq!(asking.join().unwrap(), 200, "{caller} {service} {refused}");
            });
            assert_eq!(
                (two.wait_came(1).len(), reasons(&mesh.finish())),
                (1, String::new()),
                "{caller} {service}"
            );
        }
    }
}

#[test]
fn a_caller_that_goes_away_ends_both() {
    for service in [false, true] {
        let two = Two::new(service, |_, _| Does::Hang);
        let mesh = two.before(SOON);
        let mut raw = Raw::connect(mesh.address);
        raw.head(END_STREAM, 1, &http2::fields("GET", "/x", &[]));
        two.wait_came(2);
        raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
        assert_eq!(two.wait_ended(2), [two.given_up(), two.given_up()]);
        drop(raw);
        let seen = mesh.finish();
        assert_eq!(
            (seen.retries.hedges_won, seen.of_cause("http2_stream_reset")),
            (0, 1),
            "{:?}",
            seen.failures
        );
    }
}

#[test]
fn a_time_that_is_up_ends_both() {
    for (caller, service) in WAYS {
        let two = Two::new(service, |_, _| Does::Hang);
        let mesh = two.before_route(SOON, "timeout = \"300ms\"");
        assert_eq!(ask(mesh.address, caller, "GET", "").0, 504, "{caller} {service}");
        two.wait_ended(2);
        let seen = mesh.finish();
        assert_eq!((two.wait_came(2).len(), reasons(&seen)), (2, "hedge:1".to_owned()));
        assert_eq!(seen.of_cause("timeout"), 1);
    }
}

#[test]
fn services_are_told_which_attempt_it_is() {
    let keys = "retry = { hedge_after = \"1ms\", attempt_header = true }\n";
    for (caller, service) in WAYS {
        let two = Two::new(service, |_, n| if n == 1 { Does::Hang } else { Does::Answer(200, 0) });
        let mesh = two.before(keys);
        assert_eq!(ask(mesh.address, caller, "GET", "").0, 200);
        let mut told: Vec<_> = two.wait_came(2).iter().map(|came| came.attempt).collect();
        told.sort_unstable();
        assert_eq!(told, [1, 2], "{caller} {service}");
    }
}

#[test]
fn who_was_not_sooner_is_not_blamed() {
    // One failure of either kind would eject it for long.
    let keys = "balance = \"round-robin\"\nretry = { hedge_after = \"1ms\", attempt_header = true }\n\
                breaker = { consecutive_failures = 1, consecutive_unanswered = 1, consecutive_unreachable = 1, \
                ejection_base = \"30s\", slow_min = \"60s\" }\n";
    for (caller, service) in WAYS {
        let two = Two::new(service, |_, n| if n == 1 { Does::Hang } else { Does::Answer(200, 0) });
        let mesh = two.before(keys);
        for _ in 0..4 {
            assert_eq!(ask(mesh.address, caller, "GET", "").0, 200);
        }
        let came = two.wait_came(8);
        // In turn, the hedges included: the one that is asked first would be the other one if it were ejected.
        let mut first = came.iter().filter(|came| came.attempt == 1).map(|came| came.endpoint);
        let one = first.next();
        assert!(first.all(|endpoint| Some(endpoint) == one), "{caller} {service}: {came:?}");
        assert_eq!(mesh.finish().retries.hedges_won, 4);
    }
}

#[test]
fn the_time_may_be_a_percentile_of_what_the_service_takes() {
    let keys = "balance = \"round-robin\"\nretry = { hedge_after = \"p99\", attempt_header = true }\n";
    for caller in [false, true] {
        // With the hundredth answer enough is known, and the next request is hedged. None before it can have been.
        let two = Two::new(false, |before, _| if before == 100 { Does::Hang } else { Does::Answer(200, 0) });
        let mesh = two.before(keys);
        let mut client = mesh.client();
        for _ in 0..100 {
            client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status(), 200);
        }
        assert_eq!(ask(mesh.address, caller, "GET", ""), (200, "2 says 200".to_owned()));
        drop(client);
        let seen = mesh.finish();
        assert!(seen.retries.hedges_won == 1 && seen.failures.is_empty());
    }
}

#[test]
fn a_grpc_call_is_hedged_and_its_trailers_are_those_of_the_winner() {
    let two = Two::new(true, |_, n| if n == 1 { Does::Hang } else { Does::Answer(200, 0) });
    let mesh = two.before(SOON);
    let mut call_request = request("POST", "/pkg.Service/Method");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "10S")] {
        call_request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let whole = call(mesh.address, call_request, b"\0\0\0\0\x02hi", None).unwrap();
    assert_eq!(whole.body, b"2 says 200");
    assert_eq!(whole.trailers.unwrap()["grpc-status"], "0");
    assert_eq!(two.wait_ended(1), [two.given_up()]);
    assert!(two.wait_came(2).iter().all(|came| came.body == "\0\0\0\0\x02hi"));
    let seen = mesh.finish();
    assert_eq!((seen.grpc_statuses(), seen.retries.hedges_won), ("0:1".to_owned(), 1));
}

#[test]
fn times_and_percentiles_that_cannot_be_are_mistakes() {
    let told = |keys: &str| {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:1\"\n[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:2\"]\n\
             retry = {{ {keys} }}\n[[route]]\nservice = \"app\"\n"
        );
        ringmesh::config::parse("bad.toml", &text, &|_| None)
            .err()
            .map(|report| report.to_string())
            .unwrap_or_default()
    };
    for good in ["\"off\"", "\"1ms\"", "\"1h\"", "\"p50\"", "\"p95\"", "\"p99.9\""] {
        assert_eq!(told(&format!("hedge_after = {good}")), "", "{good}");
    }
    for (keys, expected) in [
        ("hedge_after = \"p49\"", "`p49` is no percentile from p50 to p99.9"),
        ("hedge_after = \"p99.95\"", "`p99.95` is no percentile"),
        ("hedge_after = \"p100\"", "`p100` is no percentile"),
        ("hedge_after = \"p\"", "`p` is no percentile"),
        ("hedge_after = \"50\"", "has no unit"),
        ("hedge_after = \"10us\"", "out of its bounds"),
        ("hedge_after = \"50ms\", attempts_max = 1", "a request with one attempt is not hedged"),
        (
            "hedge_after = \"50ms\", attempt_timeout = \"50ms\"",
            "would come after the attempt has ended, 50ms",
        ),
    ] {
        let told = told(keys);
        assert!(told.contains(expected), "{keys}: {told}");
    }
}
