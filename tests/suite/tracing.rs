//! Distributed tracing on the path: which context a service is sent for which a caller sent, what spans an exchange has, and how they
//! hang together. By both versions of HTTP on both sides; spans as a shard leaves them for control.

use std::sync::Arc;

use http::{HeaderValue, Request};
use ringmesh::identity::{ALPN_MESH, IdMatch};
use ringmesh::snapshot::ListenerTls;
use ringmesh::upstream::spec::Tls;

use crate::support::authority::Authority;
use crate::support::http2::{Service, call, request};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, ok};
use crate::support::spans::{Span, left, only};
use crate::support::wire::Message;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// Everything to the first service, traced with these keys.
fn traced(config: Config, keys: &str) -> Config {
    routed(config, keys, "[[route]]\nname = \"all\"\nservice = \"app\"\n")
}

fn routed(config: Config, keys: &str, routes: &str) -> Config {
    let tracing = format!("[tracing]\nendpoint = \"http://127.0.0.1:1\"\n{keys}\n");
    config.routes(&format!("{routes}{tracing}")).log("json")
}

/// All that was counted, and the spans that are left.
fn finish(mesh: Mesh) -> (Seen, Vec<Span>) {
    let link = Arc::clone(&mesh.link);
    let seen = mesh.finish();
    assert_eq!(seen.totals.spans_dropped, 0);
    (seen, left(&link))
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// Sends a request with these fields by HTTP/1.1; what the service saw.
fn get(mesh: &Mesh, app: &Origin, fields: &str) -> Message {
    let before = app.recorded().iter().map(|r| r.requests().len()).sum::<usize>();
    let mut client = mesh.client();
    client.send(format!("GET /a?b=1 HTTP/1.1\r\nHost: a.test:81\r\nUser-Agent: me\r\n{fields}\r\n"));
    assert_eq!(client.response().status(), 200);
    app.wait_requests(before + 1).last().cloned().unwrap()
}

#[test]
fn a_recorded_exchange_is_a_span_and_its_attempt_is_one_below_it() {
    let app = Origin::plain();
    let mesh = traced(Config::new(&[&app]), "sample_percent = 0").start();
    let sent =
        get(&mesh, &app, &format!("traceparent: {}\r\ntracestate: v=1\r\ntracestate: w=2\r\n", parent("01")));
    let endpoint = app.endpoint.clone();
    let (seen, spans) = finish(mesh);
    let (server, client) = (only(&spans, "server"), only(&spans, "client"));
    assert_eq!((&*server.trace, &*server.parent, &*server.name), (TRACE, SPAN, "GET all"));
    assert_eq!((&*client.trace, &*client.parent, &*client.name), (TRACE, &*server.id, "GET app"));
    assert_eq!((server.flags, client.flags), (0x301, 0x101), "only the caller is another process");
    assert!(server.nanos.0 <= client.nanos.0 && client.nanos.1 <= server.nanos.1, "one within the other");
    assert_eq!(sent.one("traceparent"), Some(client.traceparent("01")));
    assert_eq!(sent.all("tracestate"), ["v=1", "w=2"]);
    assert_eq!((&*server.state, server.is_error, client.is_error), ("v=1", false, false));

    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/a"),
        ("url.query", "b=1"),
        ("url.scheme", "http"),
        ("server.address", "a.test"),
        ("server.port", "81"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "me"),
        ("http.response.status_code", "200"),
        ("error.type", ""),
        ("ringmesh.listener", "inbound"),
        ("ringmesh.route", "all"),
        ("ringmesh.service", "app"),
        ("ringmesh.attempts", "1"),
        ("ringmesh.fault", ""),
    ] {
        assert_eq!(server.of(name), value, "{name}");
    }
    let (address, port) = endpoint.rsplit_once(':').unwrap();
    for (name, value) in [
        ("http.request.method", "GET"),
        ("server.address", "a.test"),
        ("network.peer.address", address),
        ("network.peer.port", port),
        ("http.response.status_code", "200"),
        ("http.request.resend_count", ""),
        ("ringmesh.service", "app"),
        ("ringmesh.endpoint", &endpoint),
    ] {
        assert_eq!(client.of(name), value, "{name}");
    }
    let line = &seen.lines()[0];
    assert_eq!((line["trace_id"].as_str(), line["sampled"].as_bool()), (Some(TRACE), Some(true)));
}

/// A service of each version of HTTP that says what context it was sent.
fn echoes() -> (Origin, Service) {
    let told = |request: &Message| {
        let mut answer = String::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
        for (name, value) in &request.fields {
            answer += &format!("echo-{name}: {}\r\n", value.escape_ascii());
        }
        (answer + "\r\n").into_bytes()
    };
    (Origin::answering(told), Service::echoing())
}

/// What a service was sent, by all four ways in turn: its fields, each in one line.
fn by_all_ways(
    keys: &str,
    fields: &[(&str, &str)],
    mut judge: impl FnMut(&str, &dyn Fn(&str) -> Vec<String>, &[Span], &Seen),
) {
    let (h1, h2) = echoes();
    for service in ["h1", "h2"] {
        for caller in ["h1", "h2"] {
            let config = match service {
                "h1" => Config::new(&[&h1]),
                _ => Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\""),
            };
            let mesh = traced(config, keys).start();
            let told: Vec<(String, String)> = match caller {
                "h1" => {
                    let mut client = mesh.client();
                    let fields: String =
                        fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                    client.send(format!("GET /a HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
                    let response = client.response();
                    assert_eq!(response.status(), 200);
                    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
                    response.fields.iter().map(|(n, v)| (n.to_ascii_lowercase(), text(v))).collect()
                }
                _ => {
                    let mut asked = request("GET", "/a");
                    for (name, value) in fields {
                        let name: http::HeaderName = name.parse().unwrap();
                        asked.headers_mut().append(name, value.parse().unwrap());
                    }
                    let whole = call(mesh.address, asked, b"", None).unwrap();
                    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
                    whole.head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect()
                }
            };
            let (seen, spans) = finish(mesh);
            let all = |name: &str| {
                let name = format!("echo-{name}");
                told.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.clone()).collect()
            };
            judge(&format!("{caller} to {service}"), &all, &spans, &seen);
        }
    }
}

#[test]
fn each_way_between_versions_passes_the_context_on() {
    let parent = parent("03");
    let fields = [("traceparent", &*parent), ("tracestate", "v=1")];
    by_all_ways("sample_percent = 0", &fields, |way, told, spans, _| {
        let (server, client) = (only(spans, "server"), only(spans, "client"));
        assert_eq!((&*server.parent, &*client.parent), (SPAN, &*server.id), "{way}");
        assert_eq!(told("traceparent"), [client.traceparent("03")], "{way}");
        assert_eq!(told("tracestate"), ["v=1"], "{way}");
        let version = if way.starts_with("h1") { "1.1" } else { "2" };
        assert_eq!(server.of("network.protocol.version"), version, "{way}");
        assert!(told("b3").is_empty(), "{way}");
    });
}

#[test]
fn what_a_caller_decided_against_is_passed_on_as_it_came() {
    let parent = parent("00");
    let fields = [("traceparent", &*parent), ("tracestate", "v=1"), ("b3", "kept")];
    by_all_ways("sample_percent = 100", &fields, |way, told, spans, seen| {
        assert!(spans.is_empty(), "{way}: {spans:?}");
        assert_eq!(told("traceparent"), [&*parent], "{way}");
        assert_eq!((told("tracestate"), told("b3")), (vec!["v=1".into()], vec!["kept".into()]), "{way}");
        let line = &seen.lines()[0];
        assert_eq!(
            (line["trace_id"].as_str(), line["sampled"].as_bool()),
            (Some(TRACE), Some(false)),
            "{way}"
        );
    });
}

#[test]
fn where_nobody_decided_the_percentage_does_and_all_who_follow_are_told() {
    for (percent, flags) in [("0", "02"), ("100", "03")] {
        by_all_ways(&format!("sample_percent = {percent}"), &[], |way, told, spans, seen| {
            let [sent] = &told("traceparent")[..] else { panic!("{way}: {:?}", told("traceparent")) };
            assert!(sent.starts_with("00-") && sent.ends_with(&format!("-{flags}")), "{way}: {sent}");
            assert_eq!(spans.len(), if percent == "0" { 0 } else { 2 }, "{way}");
            if percent == "100" {
                let server = only(spans, "server");
                assert_eq!(server.parent, "", "{way}");
                assert_eq!(*sent, only(spans, "client").traceparent(flags), "{way}");
                assert_eq!(seen.lines()[0]["trace_id"], *server.trace, "{way}");
            }
        });
    }
}

/// Trace Context §3.2 and §4.3: what is not valid, or stands twice, begins a new trace, to which the old one's state does not belong.
#[test]
fn a_context_that_is_not_valid_begins_a_new_trace() {
    let right = parent("01");
    let long = format!("{right}-more");
    let upper = right.to_uppercase();
    for wrong in [&[&*long][..], &[&*upper], &[&*right, &*right], &["ff-nonsense"]] {
        let mut fields: Vec<(&str, &str)> = wrong.iter().map(|value| ("traceparent", *value)).collect();
        fields.push(("tracestate", "v=1"));
        for percent in ["0", "100"] {
            by_all_ways(&format!("sample_percent = {percent}"), &fields, |way, told, spans, _| {
                let [sent] = &told("traceparent")[..] else {
                    panic!("{way} {wrong:?}: {:?}", told("traceparent"))
                };
                assert!(!sent.contains(TRACE) && sent.len() == 55, "{way} {wrong:?}: {sent}");
                assert_eq!(told("tracestate"), [""; 0], "{way} {wrong:?}");
                assert!(spans.iter().all(|span| span.trace != TRACE && span.state.is_empty()), "{way}");
                assert_eq!(spans.len(), if percent == "0" { 0 } else { 2 }, "{way}");
            });
        }
    }
}

#[test]
fn b3_is_read_and_written_where_it_is_asked_for() {
    let keys = "propagate = [\"w3c\", \"b3\"]\nsample_percent = 0";
    let single = format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90");
    let multi = [
        ("X-B3-TraceId", TRACE),
        ("X-B3-SpanId", SPAN),
        ("X-B3-ParentSpanId", "05e3ac9a4f6e3b90"),
        ("X-B3-Sampled", "1"),
    ];
    for fields in [&[("b3", &*single)][..], &multi] {
        by_all_ways(keys, fields, |way, told, spans, _| {
            let (server, client) = (only(spans, "server"), only(spans, "client"));
            assert_eq!((&*server.trace, &*server.parent), (TRACE, SPAN), "{way}");
            assert_eq!(told("traceparent"), [client.traceparent("01")], "{way}");
            assert_eq!(told("b3"), [format!("{TRACE}-{}-1", client.id)], "{way}");
            assert_eq!(
                (told("x-b3-traceid"), told("x-b3-spanid")),
                (vec![TRACE.into()], vec![client.id.clone()])
            );
            assert_eq!(
                (told("x-b3-sampled"), told("x-b3-parentspanid")),
                (vec!["1".into()], vec![]),
                "{way}"
            );
        });
    }
    // Decided against, and in one format only: all are told.
    by_all_ways(keys, &[("b3", "0")], |way, told, spans, _| {
        assert!(spans.is_empty(), "{way}");
        let [sent] = &told("traceparent")[..] else { panic!("{way}") };
        assert!(sent.ends_with("-02"), "{way}: {sent}");
        assert_eq!(told("x-b3-sampled"), ["0"], "{way}");
    });
    let debug = format!("{SPAN}-{SPAN}-d");
    by_all_ways(keys, &[("b3", &debug)], |way, told, spans, _| {
        assert_eq!(only(spans, "server").trace, format!("{}{SPAN}", "0".repeat(16)), "{way}");
        assert!(told("b3")[0].ends_with("-d") && told("x-b3-flags") == ["1"], "{way}");
    });
    // W3C's goes first.
    let parent = parent("00");
    by_all_ways(keys, &[("b3", &single), ("traceparent", &parent)], |way, told, spans, _| {
        assert!(spans.is_empty() && told("b3") == [format!("{TRACE}-{SPAN}-0")], "{way}: {:?}", told("b3"));
        assert_eq!(told("traceparent"), [&*parent], "{way}");
    });
}

#[test]
fn without_the_table_nothing_is_touched_and_nothing_is_written() {
    let app = Origin::plain();
    let mesh = Config::new(&[&app]).log("json").start();
    let sent =
        get(&mesh, &app, "traceparent: nonsense\r\nTraceParent: again\r\ntracestate: v=1\r\nb3: 1\r\n");
    assert_eq!((sent.all("traceparent").len(), sent.one("b3").unwrap()), (2, "1".into()));
    assert!(!get(&mesh, &app, "").has("traceparent"));
    let (seen, spans) = finish(mesh);
    assert!(spans.is_empty() && seen.lines().iter().all(|line| line["trace_id"].is_null()));
}

const S503: &[u8] = b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nbusy";

#[test]
fn each_attempt_is_a_span_of_its_own_and_the_service_is_told_which() {
    let app = Origin::answering({
        let asked = std::sync::atomic::AtomicUsize::new(0);
        move |request| match asked.fetch_add(1, std::sync::atomic::Ordering::AcqRel) % 2 {
            0 => S503.to_vec(),
            _ => ok(request),
        }
    });
    let keys = "retry = { backoff_base = \"0s\" }\n";
    let mesh = traced(Config::default().service("app", &[&app], keys), "sample_percent = 100").start();
    let mut client = mesh.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!(call(mesh.address, request("GET", "/a"), b"", None).unwrap().head.status, 200);
    drop(client);
    let (_, spans) = finish(mesh);
    let requests: Vec<Message> = app.settle().iter().flat_map(|r| r.requests()).collect();
    let servers: Vec<&Span> = spans.iter().filter(|span| span.kind == "server").collect();
    assert_eq!((servers.len(), spans.len(), requests.len()), (2, 6, 4));
    for server in servers {
        assert_eq!((server.of("ringmesh.attempts"), server.of("ringmesh.retry")), ("2", "gateway_error"));
        assert!(!server.is_error);
        let attempts: Vec<&Span> = spans.iter().filter(|span| span.parent == server.id).collect();
        let [first, second] = attempts[..] else { panic!("{attempts:?}") };
        assert_ne!(first.id, second.id);
        assert_eq!((first.of("http.response.status_code"), first.is_error), ("503", true));
        assert_eq!((first.of("error.type"), first.of("http.request.resend_count")), ("503", ""));
        assert_eq!((second.of("http.response.status_code"), second.is_error), ("200", false));
        assert_eq!(
            (second.of("http.request.resend_count"), second.of("ringmesh.retry")),
            ("1", "gateway_error")
        );
        for attempt in [first, second] {
            let told = Some(attempt.traceparent("03"));
            assert_eq!(requests.iter().filter(|request| request.one("traceparent") == told).count(), 1);
        }
    }
}

#[test]
fn an_endpoint_that_cannot_be_reached_has_a_span_that_says_so() {
    let app = Origin::plain();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = closed.local_addr().unwrap().to_string();
    drop(closed);
    let config = Config::default().service_at(
        "app",
        &[&dead, &app.endpoint],
        "balance = \"round-robin\"\nbreaker = { enabled = false }\n",
    );
    let mesh = traced(config, "sample_percent = 100").start();
    // One of the two begins with the one that is dead.
    get(&mesh, &app, "");
    get(&mesh, &app, "");
    let (_, spans) = finish(mesh);
    let failed: Vec<&Span> = spans.iter().filter(|span| span.of("ringmesh.endpoint") == dead).collect();
    assert!(!failed.is_empty(), "{spans:#?}");
    for span in failed {
        assert_eq!((span.of("error.type"), span.is_error), ("refused", true));
        assert_eq!(span.of("ringmesh.failure"), "connect.upstream.refused");
        assert_eq!(span.of("http.response.status_code"), "");
        let other = spans.iter().find(|other| other.parent == span.parent && other.id != span.id).unwrap();
        assert_eq!(
            (other.of("http.request.resend_count"), other.is_error),
            ("", false),
            "nothing was sent before"
        );
    }

    // And where there is no other, the exchange ends with it.
    let mesh = traced(Config::default().service_at("app", &[&dead], ""), "sample_percent = 100").start();
    let mut client = mesh.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    drop(client);
    let (_, spans) = finish(mesh);
    let (server, client) = (only(&spans, "server"), only(&spans, "client"));
    assert_eq!((server.of("error.type"), server.of("http.response.status_code")), ("refused", "503"));
    assert!(server.is_error && client.is_error && client.of("http.response.status_code").is_empty());
}

/// Issue 4: what is done on purpose is always marked, in log, metric and trace.
#[test]
fn a_fault_made_on_purpose_is_marked_by_the_word_that_log_and_metric_have() {
    let app = Origin::plain();
    for (fault, mark, status, is_error) in [
        ("{ delay = { fixed = \"1ms\" } }", "delay", "200", false),
        ("{ abort = { status = 418 } }", "abort", "418", false),
        ("{ abort = { status = 503 } }", "abort", "503", true),
        ("{ delay = { fixed = \"1ms\" }, abort = { status = 503 } }", "delay_abort", "503", true),
        ("{ truncate = { after = \"1B\" } }", "truncate", "200", false),
        ("{ abort = { reset = true } }", "reset", "", false),
    ] {
        let routes = format!("[[route]]\nname = \"all\"\nservice = \"app\"\nfault = {fault}\n");
        let mesh = routed(Config::new(&[&app]), "sample_percent = 100", &routes).start();
        let mut client = mesh.client();
        client.send("GET /some/path HTTP/1.1\r\nHost: a\r\n\r\n");
        let _ = client.try_response(false);
        let _ = call(mesh.address, request("GET", "/some/path"), b"", None);
        drop(client);
        let (seen, spans) = finish(mesh);
        let servers: Vec<&Span> = spans.iter().filter(|span| span.kind == "server").collect();
        assert_eq!(servers.len(), 2, "{fault}: {spans:?}");
        for server in servers {
            assert_eq!((server.of("ringmesh.fault"), server.is_error), (mark, is_error), "{fault}");
            assert_eq!(server.of("http.response.status_code"), status, "{fault}");
            assert_eq!((server.of("ringmesh.failure"), server.of("ringmesh.route")), ("", "all"), "{fault}");
        }
        let kinds: String = seen.faults.kinds().map(|(kind, n)| format!("{kind}:{n}")).collect();
        assert_eq!(kinds, format!("{mark}:2"));
        assert!(seen.lines().iter().all(|line| line["fault"] == mark), "{fault}");
    }
}

fn grpc(path: &str) -> Request<()> {
    let mut asked = request("POST", path);
    asked.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    asked.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    asked
}

#[test]
fn a_call_of_grpc_is_told_of_as_one() {
    let service = Service::scripted(|request, mut respond| async move {
        let code = if request.uri().path().ends_with("Bad") { "13" } else { "0" };
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", code)
            .header("echo-traceparent", &request.headers()["traceparent"]);
        respond.send_response(response.body(()).unwrap(), true).unwrap();
    });
    let config = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"");
    let mesh = traced(config, "sample_percent = 100").start();
    let good = call(mesh.address, grpc("/pkg.Shop/Buy"), b"", None).unwrap();
    let bad = call(mesh.address, grpc("/pkg.Shop/Bad"), b"", None).unwrap();
    let (_, spans) = finish(mesh);
    for (whole, method, code, is_error) in [(good, "Buy", "0", false), (bad, "Bad", "13", true)] {
        let of_call: Vec<&Span> = spans.iter().filter(|span| span.of("rpc.method") == method).collect();
        let [client, server] = of_call[..] else { panic!("{spans:#?}") };
        assert_eq!((client.kind, server.kind), ("client", "server"));
        assert_eq!(whole.head.headers["echo-traceparent"], *client.traceparent("03"));
        for span in [client, server] {
            assert_eq!(span.name, format!("pkg.Shop/{method}"));
            assert_eq!((span.of("rpc.system"), span.of("rpc.service")), ("grpc", "pkg.Shop"));
            assert_eq!((span.of("rpc.grpc.status_code"), span.is_error), (code, is_error), "{span:?}");
            assert_eq!(span.of("error.type"), if is_error { "13" } else { "" });
        }
    }

    // A fault is marked here as well.
    let routes = "[[route]]\nname = \"all\"\nservice = \"app\"\nfault = { abort = { grpc_status = 14 } }\n";
    let config = Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"");
    let mesh = routed(config, "sample_percent = 100", routes).start();
    let whole = call(mesh.address, grpc("/pkg.Shop/Buy"), b"", None).unwrap();
    assert_eq!(whole.head.headers["grpc-status"], "14");
    let (_, spans) = finish(mesh);
    let server = only(&spans, "server");
    assert_eq!((server.of("ringmesh.fault"), server.of("rpc.grpc.status_code")), ("abort", "14"));
    assert_eq!((server.is_error, spans.len()), (true, 1));
}

#[test]
fn what_this_proxy_answers_itself_is_a_span_too() {
    let app = Origin::plain();
    let routes = "[[route]]\nname = \"here\"\npath = \"/here\"\nrespond = { status = 204 }\n[[route]]\npath_prefix = \"/app\"\nservice = \"app\"\n[[route]]\nname = \"slow\"\npath = \"/soon\"\nrespond = { status = 200 }\n[[rate_limit]]\nname = \"one\"\nrate = 1\nper = \"24h\"\nburst = 1\nroutes = [\"slow\"]\n";
    let mesh = routed(Config::new(&[&app]), "sample_percent = 100", routes).start();
    let ask = |target: &str| {
        let mut client = mesh.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.response().status()
    };
    assert_eq!((ask("/here"), ask("/none"), ask("/soon"), ask("/soon")), (204, 404, 200, 429));
    // A method is understood, and the rest is refused.
    let mut client = mesh.client();
    client.send("GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    drop(client);
    let (_, spans) = finish(mesh);
    let of = |path: &str, status: &str| {
        let found =
            |span: &&Span| span.of("url.path") == path && span.of("http.response.status_code") == status;
        spans.iter().find(found).unwrap_or_else(|| panic!("{path}: {spans:#?}"))
    };
    assert_eq!(spans.len(), 5);
    assert_eq!((&*of("/here", "204").name, of("/here", "204").of("ringmesh.route")), ("GET here", "here"));
    let none = of("/none", "404");
    assert_eq!(
        (&*none.name, none.is_error, none.of("ringmesh.failure")),
        ("GET", false, "route.local.no_route")
    );
    assert_eq!(of("/soon", "429").of("ringmesh.rate_limit"), "one");
    let bad = of("/bad", "400");
    assert!(bad.of("ringmesh.failure").starts_with("head.downstream."), "{bad:?}");
    assert!(!bad.is_error && spans.iter().all(|span| span.kind == "server"));
}

#[test]
fn what_callers_write_is_cut_and_hides_what_may_be_secret() {
    let app = Origin::plain();
    let mesh = traced(Config::new(&[&app]), "sample_percent = 100").start();
    let long = "x".repeat(5000);
    let mut client = mesh.client();
    client.send(format!("BREW /{long}?token=hush HTTP/1.1\r\nHost: a\r\nUser-Agent: {long}\r\n\r\n"));
    assert_eq!(client.response().status(), 200);
    client.send("GET /a?id=1&Access_Token=hush HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    drop(client);
    let (_, spans) = finish(mesh);
    let [_, long, _, short] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((&*long.name, long.of("http.request.method")), ("HTTP all", "_OTHER"));
    assert_eq!(long.of("http.request.method_original"), "BREW");
    assert_eq!((long.of("url.path").len(), long.of("user_agent.original").len()), (1024, 1024));
    assert_eq!(short.of("url.query"), "id=1&Access_Token=REDACTED");
}

#[test]
fn two_proxies_and_their_callers_make_one_trace() {
    const NEAR: &str = "spiffe://mesh.local/ns/shop/sa/near";
    const FAR: &str = "spiffe://mesh.local/ns/shop/sa/far";
    let authority = Authority::new("mesh");
    for alpn in [&b"http/1.1"[..], ALPN_MESH] {
        let app = Origin::plain();
        let theirs = authority.credentials(FAR, &authority.workload(FAR), &[alpn]);
        let far = traced(Config::new(&[&app]).forwarding("via = \"far\"\n"), "sample_percent = 0").change(
            move |snapshot| {
                snapshot.listeners[0].tls = ListenerTls::Strict;
                snapshot.identity = Some(Arc::clone(&theirs));
            },
        );
        let far = far.start();
        let ours = authority.credentials(NEAR, &authority.workload(NEAR), &[alpn]);
        let near = Config::default().service_at("app", &[&far.address.to_string()], "");
        let near = traced(near, "sample_percent = 100").change(move |snapshot| {
            Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(vec![IdMatch::parse(FAR).unwrap()]);
            snapshot.identity = Some(Arc::clone(&ours));
        });
        let near = near.start();
        let sent = get(&near, &app, "");
        let (_, near) = finish(near);
        let (_, far) = finish(far);
        // The near one decided; the far one would not have.
        let chain =
            [only(&near, "server"), only(&near, "client"), only(&far, "server"), only(&far, "client")];
        assert_eq!(chain[0].parent, "");
        for pair in chain.windows(2) {
            assert_eq!((&pair[1].parent, &pair[1].trace), (&pair[0].id, &pair[0].trace));
        }
        assert_eq!(sent.one("traceparent"), Some(chain[3].traceparent("03")));
        assert_eq!((chain[2].of("ringmesh.peer_identity"), chain[2].of("url.scheme")), (NEAR, "https"));
    }
}

#[test]
fn a_hedge_is_a_span_beside_the_one_that_it_outruns() {
    let slow = Origin::scripted(|visit| {
        let _ = visit.request();
        visit.drain();
    });
    let fast = Origin::plain();
    let keys = "balance = \"round-robin\"\nretry = { backoff_base = \"0s\", hedge_after = \"1ms\" }\nbreaker = { enabled = false }\n";
    let mesh =
        traced(Config::default().service("app", &[&slow, &fast], keys), "sample_percent = 100").start();
    let mut outrun = 0;
    // Round robin: of two that follow each other one begins with the slow one, unless a hedge came between.
    for _ in 0..2 {
        let mut client = mesh.client();
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status(), 200);
        assert_eq!(call(mesh.address, request("GET", "/a"), b"", None).unwrap().head.status, 200);
    }
    let (_, spans) = finish(mesh);
    let fast_at = fast.endpoint.clone();
    let sent: Vec<Message> = fast.settle().iter().flat_map(|r| r.requests()).collect();
    for span in spans.iter().filter(|span| span.of("ringmesh.hedge") == "outrun") {
        outrun += 1;
        assert_eq!((span.of("ringmesh.endpoint"), span.is_error), (&*slow.endpoint, false));
        let won = spans.iter().find(|other| other.parent == span.parent && other.id != span.id).unwrap();
        assert_eq!((won.of("ringmesh.hedge"), won.of("ringmesh.endpoint")), ("won", &*fast_at));
        assert_eq!((won.of("http.response.status_code"), won.kind), ("200", "client"));
        assert!(sent.iter().any(|request| request.one("traceparent") == Some(won.traceparent("03"))));
        let server = spans.iter().find(|other| other.id == span.parent).unwrap();
        assert_eq!(server.of("ringmesh.hedge"), "won");
    }
    assert!(outrun > 0, "{spans:#?}");
}

#[test]
fn a_copy_for_a_mirror_belongs_to_the_exchange() {
    let (app, shadow) = (Origin::plain(), Origin::plain());
    let routes = "[[route]]\nname = \"all\"\nservice = \"app\"\nmirror = [{ service = \"shadow\" }]\n";
    let config = Config::new(&[&app]).service("shadow", &[&shadow], "");
    let mesh = routed(config, "sample_percent = 100", routes).start();
    get(&mesh, &app, "");
    assert_eq!(call(mesh.address, request("GET", "/a"), b"", None).unwrap().head.status, 200);
    let copies = shadow.wait_requests(2);
    let (_, spans) = finish(mesh);
    let servers: Vec<String> =
        spans.iter().filter(|span| span.kind == "server").map(|span| span.traceparent("03")).collect();
    for copy in copies {
        assert!(servers.contains(&copy.one("traceparent").unwrap()), "{servers:?}");
    }
    assert_eq!(spans.len(), 4);
}

#[test]
fn a_websocket_is_one_span_from_its_handshake_to_its_end() {
    let app = Origin::scripted(|visit| {
        let request = visit.request().unwrap();
        let key = request.one("sec-websocket-key").unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        visit.send(format!(
            "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        ));
        let some = visit.some();
        visit.send(some);
        visit.drain();
        visit.finish();
    });
    let mesh = traced(Config::new(&[&app]), "sample_percent = 100").start();
    let mut client = mesh.client();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert!(client.take_head().starts_with("HTTP/1.1 101"));
    client.send("hi");
    assert_eq!(client.take(2), b"hi");
    client.finish();
    client.end();
    let (_, spans) = finish(mesh);
    let (server, client) = (only(&spans, "server"), only(&spans, "client"));
    assert_eq!((server.of("http.response.status_code"), server.of("url.path")), ("101", "/ws"));
    assert_eq!(client.parent, server.id);
}

#[test]
fn a_reload_holds_for_the_next_request() {
    let app = Origin::plain();
    let config = |percent: &str| traced(Config::new(&[&app]), &format!("sample_percent = {percent}"));
    let mut mesh = config("0").start();
    let mut client = mesh.client();
    let mut ask = |path: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.response().status(), 200);
    };
    ask("/1");
    mesh.reload(&config("100"));
    ask("/2");
    mesh.reload(&Config::new(&[&app]));
    ask("/3");
    drop(client);
    let (_, spans) = finish(mesh);
    assert_eq!(only(&spans, "server").of("url.path"), "/2");
    assert!(!app.settle()[0].requests()[2].has("traceparent"));
}

/// By the numbers that the shard draws: how many are recorded is binomial, and 8 standard deviations of 2000 × 0.25 are 155.
#[test]
fn as_many_are_recorded_as_the_percentage_says() {
    let app = Origin::plain();
    let mesh = traced(Config::new(&[&app]), "sample_percent = 25.0").start();
    let mut client = mesh.client();
    for _ in 0..2000 {
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status(), 200);
    }
    drop(client);
    let (_, spans) = finish(mesh);
    let servers = spans.iter().filter(|span| span.kind == "server").count();
    assert!(servers.abs_diff(500) < 155, "{servers}");
}
