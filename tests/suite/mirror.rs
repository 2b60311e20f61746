//! Copies of requests for other services, over real sockets: what they get, and that callers notice nothing whatever becomes of them.

use bytes::Bytes;
use http::Response;

use ringmesh::telemetry::mirrored::Unsent;

use crate::support::client::Client;
use crate::support::http2::{Service, call, read, request, send};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::{Origin, ok};
use crate::support::wire::Message;

const ALL: &str = "[[route]]\nservice = \"app\"\nmirror = [{ service = \"copy\" }]\n";

fn config(app: &Origin, routes: &str) -> Config {
    Config::new(&[app]).routes(routes).log("json")
}

fn ask(client: &mut Client, head: &str, body: &str) -> (u16, String) {
    client.send(format!("{head}\r\n\r\n{body}"));
    let response = client.response();
    (response.status(), response.text())
}

/// Requests in the ways that there are, each with its body if it has one.
const WAYS: usize = 5;

fn one_way(mesh: &Mesh, way: usize) -> (u16, String) {
    let mut client = mesh.client();
    match way {
        0 => ask(&mut client, "GET /x HTTP/1.1\r\nHost: a.test:81", ""),
        1 => ask(&mut client, "POST /x HTTP/1.1\r\nHost: a.test:81\r\nContent-Length: 6", "octets"),
        2 => {
            client
                .send("POST /x HTTP/1.1\r\nHost: a.test:81\r\nTransfer-Encoding: chunked\r\n\r\n2\r\noc\r\n");
            ask(&mut client, "4\r\ntets\r\n0", "")
        }
        3 => {
            let whole = call(mesh.address, request("POST", "/x"), b"octets", None).unwrap();
            (whole.head.status.as_u16(), String::from_utf8(whole.body).unwrap())
        }
        _ => {
            let whole = call(mesh.address, request("GET", "/x"), b"", None).unwrap();
            (whole.head.status.as_u16(), String::from_utf8(whole.body).unwrap())
        }
    }
}

fn body_of(way: usize) -> &'static str {
    if matches!(way, 0 | 4) { "" } else { "octets" }
}

fn classes(seen: &Seen) -> String {
    seen.mirrored.classes().map(|(class, n)| format!("{class}:{n} ")).collect()
}

fn reasons(seen: &Seen) -> String {
    seen.mirrored.reasons().map(|(why, n)| format!("{why}:{n} ")).collect()
}

#[test]
fn a_copy_is_what_the_service_gets_but_for_its_host() {
    for way in 0..WAYS {
        let (app, copy) = (
            Origin::plain(),
            Origin::answering(|_| b"HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\nwrong".to_vec()),
        );
        let routes = "[[route]]\nservice = \"app\"\nrewrite = { path_prefix = \"/v2\" }\nrequest_headers = { set = { x-set = \"1\" } }\n\
                      mirror = [{ service = \"copy\" }]\n";
        let mut mesh = config(&app, routes).service("copy", &[&copy], "").start();
        assert_eq!(one_way(&mesh, way), (200, "/v2/x".to_owned()), "{way}");
        copy.wait_requests(1);
        mesh.wait_seen(|seen| classes(seen) == "5xx:1 ");
        let seen = mesh.finish();
        assert_eq!(
            (seen.by_class[2], seen.by_class[5], reasons(&seen)),
            (1, 0, String::new()),
            "copies are no exchanges"
        );
        assert_eq!(seen.lines().len(), 1, "nor in the log");
        let one = |origin: Origin| -> Message {
            origin.settle().into_iter().flat_map(|r| r.requests()).next().unwrap()
        };
        let (app, copy) = (one(app), one(copy));
        assert_eq!(
            (copy.method(), copy.target(), copy.text()),
            (app.method(), "/v2/x", body_of(way).to_owned()),
            "{way}"
        );
        let host = app.one("host").unwrap();
        let marked = host.replace("test", "test-shadow");
        assert_eq!(copy.one("host").unwrap(), marked, "{way}");
        assert_ne!(host, marked);
        let names = |message: &Message| {
            let mut all: Vec<String> = message
                .fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
                .collect();
            all.retain(|line| !line.starts_with("host:"));
            all.sort();
            all
        };
        assert_eq!(names(&copy), names(&app), "{way}");
    }
}

#[test]
fn a_copy_goes_to_a_service_by_http2_as_well() {
    for way in 0..WAYS {
        let app = Origin::plain();
        let (told, tell) = std::sync::mpsc::channel();
        let told = std::sync::Mutex::new(told);
        let copy = Service::scripted(move |request, mut respond| {
            let told = told.lock().unwrap().clone();
            async move {
                let whole = read(request).await;
                let response = Response::builder().status(204).body(()).unwrap();
                let mut stream = respond.send_response(response, false).unwrap();
                send(&mut stream, Bytes::from_static(b"dropped"), None).await;
                told.send((whole.head.uri.to_string(), String::from_utf8(whole.body).unwrap())).unwrap();
            }
        });
        let mut mesh =
            config(&app, ALL).service_at("copy", &[&copy.endpoint], "protocol = \"http2\"").start();
        assert_eq!(one_way(&mesh, way).0, 200, "{way}");
        let (uri, body) = tell.recv().unwrap();
        assert!(uri.contains("-shadow") && uri.ends_with("/x"), "{way}: {uri}");
        assert_eq!(body, body_of(way), "{way}");
        mesh.wait_seen(|seen| !classes(seen).is_empty());
        mesh.finish();
    }
}

#[test]
fn a_service_that_is_dead_or_stalls_is_not_noticed() {
    let app = Origin::plain();
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let mut mesh = config(&app, ALL).service_at("copy", &[&dead], "").start();
    for way in 0..WAYS {
        assert_eq!(one_way(&mesh, way), (200, "/x".to_owned()), "{way}");
    }
    let all = |seen: &Seen| {
        seen.mirrored.by_class[0] + seen.mirrored.unsent[Unsent::Ejected as usize] == WAYS as u64
    };
    assert!(all(&mesh.wait_seen(all)) && mesh.finish().failures.is_empty());

    // Takes requests and answers none of them, until it is let go: by then all callers have their answers.
    let (gate, stalled) = Origin::gated();
    let mut mesh = config(&app, ALL).service("copy", &[&stalled], "").start();
    for way in 0..WAYS {
        assert_eq!(one_way(&mesh, way), (200, "/x".to_owned()), "{way}");
    }
    stalled.wait_requests(WAYS);
    gate.open();
    mesh.wait_seen(|seen| classes(seen) == format!("2xx:{WAYS} "));
    mesh.finish();
}

/// Addresses where nobody listens.
fn dead(count: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

#[test]
fn a_service_that_refuses_all_gets_no_copy_but_those_that_find_out_whether_it_is_well() {
    let app = Origin::plain();
    for protocol in ["protocol = \"http1\"\n", "protocol = \"http2\"\n"] {
        for count in [1, 3] {
            // For an hour: whoever has failed is not tried again.
            let keys = format!("{protocol}breaker = {{ ejection_base = \"1h\", ejection_max = \"1h\" }}");
            let dead = dead(count);
            let endpoints: Vec<&str> = dead.iter().map(String::as_str).collect();
            let mut mesh = config(&app, ALL).service_at("copy", &endpoints, &keys).start();
            // The first one tries all of them.
            assert_eq!(one_way(&mesh, 0).0, 200);
            mesh.wait_seen(|seen| classes(seen) == "none:1 ");
            for _ in 0..3 {
                for way in 0..WAYS {
                    assert_eq!(one_way(&mesh, way).0, 200, "{way}");
                }
            }
            let left_out = format!("ejected:{} ", 3 * WAYS);
            let seen = mesh.wait_seen(|seen| reasons(seen) == left_out);
            assert_eq!(classes(&seen), "none:1 ", "{count} {protocol}");
            mesh.finish();
        }
    }
}

#[test]
fn a_service_that_is_well_again_gets_all_copies_again() {
    let app = Origin::plain();
    let dead = dead(1).remove(0);
    let keys = "breaker = { ejection_base = \"20ms\", ejection_max = \"20ms\" }";
    let mut mesh = config(&app, ALL).service_at("copy", &[&dead], keys).start();
    let address = mesh.address;
    let ask = || ask(&mut Client::connect(address), "GET /x HTTP/1.1\r\nHost: a", "");
    // It is tried now and then, and in between it is not.
    mesh.wait_seen(|seen| {
        assert_eq!(ask().0, 200);
        seen.mirrored.by_class[0] >= 3 && seen.mirrored.unsent[Unsent::Ejected as usize] >= 3
    });
    let copy = Origin::on(std::net::TcpListener::bind(&dead).unwrap(), |visit| {
        while let Some(request) = visit.request() {
            visit.send(ok(&request));
        }
    });
    mesh.wait_seen(|seen| {
        assert_eq!(ask().0, 200);
        seen.mirrored.by_class[2] >= 6
    });
    // It has been found well: what was left out until now is all that is.
    mesh.settle(1);
    let before = mesh.wait_seen(|_| true).mirrored.by_class[2];
    copy.wait_requests(usize::try_from(before).unwrap());
    let left_out = reasons(&mesh.wait_seen(|_| true));
    for way in 0..WAYS {
        assert_eq!(one_way(&mesh, way).0, 200);
    }
    mesh.wait_seen(|seen| seen.mirrored.by_class[2] >= before + WAYS as u64);
    assert_eq!(reasons(&mesh.finish()), left_out);
}

#[test]
fn copies_are_bounded_and_what_is_more_is_counted() {
    let app = Origin::plain();
    let (gate, stalled) = Origin::gated();
    let limits = "mirrored_max = 1\nmirrored_body_bytes_max = \"10B\"\n";
    let mut mesh = config(&app, ALL).limits(limits).service("copy", &[&stalled], "").start();
    assert_eq!(one_way(&mesh, 0).0, 200);
    stalled.wait_requests(1);
    assert_eq!((one_way(&mesh, 1).0, one_way(&mesh, 4).0), (200, 200));
    mesh.wait_seen(|seen| reasons(seen) == "busy:2 ");
    gate.open();
    mesh.wait_seen(|seen| classes(seen) == "2xx:1 ");
    // Longer than is kept: known beforehand, or found out.
    let long = "0123456789a";
    let mut client = mesh.client();
    for (head, body) in [
        ("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 11", long.to_owned()),
        ("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", format!("b\r\n{long}\r\n0\r\n\r\n")),
    ] {
        assert_eq!(ask(&mut client, head, &body), (200, "/x".to_owned()));
    }
    assert_eq!(call(mesh.address, request("POST", "/x"), long.as_bytes(), None).unwrap().head.status, 200);
    // A caller that goes away before its request is whole.
    let mut gone = mesh.client();
    gone.send("POST /gone HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nfour");
    app.wait_bytes(b"four");
    gone.reset();
    mesh.wait_seen(|seen| reasons(seen) == "busy:2 body:3 cut:1 ");
    // Not the service's fault, and its place has come free: the next one is copied.
    assert_eq!(one_way(&mesh, 1).0, 200);
    mesh.wait_seen(|seen| classes(seen) == "2xx:2 ");
    mesh.finish();
    assert_eq!(stalled.settle().iter().flat_map(|r| r.requests()).count(), 2);
}

#[test]
fn a_body_in_pieces_before_a_second_request_is_copied_whole_and_alone() {
    let (app, copy) = (Origin::plain(), Origin::plain());
    let mut mesh = config(&app, ALL).service("copy", &[&copy], "").start();
    let mut client = mesh.client();
    client.send("POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\noct");
    app.wait_bytes(b"oct");
    client.send("etsPOST /two HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(client.response().text(), "/one");
    client.send("1;x=y\r\nd\r\n0\r\nx-trailer: 1\r\n\r\nGET /three HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((client.response().text(), client.response().text()), ("/two".into(), "/three".into()));
    mesh.wait_seen(|seen| classes(seen) == "2xx:3 ");
    mesh.finish();
    let mut copies: Vec<(String, String)> =
        copy.settle().iter().flat_map(|r| r.requests()).map(|r| (r.target().to_owned(), r.text())).collect();
    copies.sort();
    let want = [("/one", "octets"), ("/three", ""), ("/two", "abcd")];
    assert_eq!(copies, want.map(|(target, body)| (target.to_owned(), body.to_owned())));
}

#[test]
fn a_further_attempt_makes_no_second_copy() {
    for way in [1, 2, 3] {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let app =
            Origin::answering(move |request| match asked.fetch_add(1, std::sync::atomic::Ordering::AcqRel) {
                0 => b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
                _ => ok(request),
            });
        let copy = Origin::plain();
        let retry = "retry = { backoff_base = \"0s\", methods = [\"POST\"] }\n";
        let mut mesh = Config::default()
            .service("app", &[&app], retry)
            .service("copy", &[&copy], "")
            .routes(ALL)
            .start();
        assert_eq!(one_way(&mesh, way), (200, "/x".to_owned()), "{way}");
        mesh.wait_seen(|seen| classes(seen) == "2xx:1 ");
        assert_eq!(mesh.finish().retries.succeeded, 1);
        let copies: Vec<String> = copy.settle().iter().flat_map(|r| r.requests()).map(|r| r.text()).collect();
        assert_eq!(copies, ["octets"], "{way}");
    }
}

#[test]
fn a_part_of_the_requests_is_copied_to_each_service_by_itself() {
    let (app, half, none) = (Origin::plain(), Origin::plain(), Origin::plain());
    let routes = "[[route]]\nservice = \"app\"\nmirror = [{ service = \"half\", percent = 50 }, { service = \"none\", percent = 0 }]\n";
    let mut mesh = config(&app, routes).service("half", &[&half], "").service("none", &[&none], "").start();
    let mut client = mesh.client();
    for _ in 0..400 {
        assert_eq!(ask(&mut client, "GET / HTTP/1.1\r\nHost: a", "").0, 200);
    }
    let copied = |seen: &Seen| seen.mirrored.classes().map(|(_, n)| n).sum::<u64>();
    // 10 standard deviations to either side.
    mesh.wait_seen(|seen| copied(seen) >= 100);
    let copied = copied(&mesh.finish());
    assert!(copied <= 300, "{copied}");
    assert!(none.settle().is_empty());
}

#[test]
fn what_is_wrong_with_a_mirror_is_told_with_its_remedy() {
    let base = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"a\"\nendpoints = [\"127.0.0.1:1\"]\n[[route]]\n";
    for (route, want) in [
        ("service = \"a\"\nmirror = [{ percent = 5 }]", "an entry of `mirror` needs `service`"),
        ("service = \"a\"\nmirror = [{ service = \"b\" }]", "there is no service `b`"),
        ("service = \"a\"\nmirror = [{ service = \"a\", percent = 101 }]", "out of its bounds"),
        ("service = \"a\"\nmirror = [{ service = \"a\" }, { service = \"a\" }]", "gets copies twice"),
        ("respond = { status = 204 }\nmirror = [{ service = \"a\" }]", "`mirror` does not go with `respond`"),
    ] {
        let report = match ringmesh::config::parse("bad.toml", &format!("{base}{route}\n"), &|_| None) {
            Ok(_) => panic!("{route}: no error"),
            Err(report) => report.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        assert!(report.contains(want), "{route}: no `{want}` in\n{report}");
    }
}
