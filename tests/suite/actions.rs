//! What a route changes and answers, over real sockets: callers and services by HTTP/1.1 and HTTP/2, the same for all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use ringmesh::authorize::Verdict;
use ringmesh::config;

use crate::support::client::Client;
use crate::support::http2::{Service, call, read, request, send};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, ok};
use crate::support::wire::Message;

/// A service that says in its response what it was asked: by HTTP/1.1, as `echoing` does by HTTP/2.
fn echoing() -> Origin {
    Origin::answering(|asked: &Message| {
        let mut out = String::from("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n");
        for (name, value) in &asked.fields {
            out += &format!("echo-{name}: {}\r\n", String::from_utf8_lossy(value));
        }
        let host = asked.one("host").unwrap_or_default();
        out +=
            &format!("echo-method: {}\r\necho-target: http://{host}{}\r\n", asked.method(), asked.target());
        out += "access-control-allow-origin: https://theirs.example\r\nx-theirs: 1\r\nx-old: 2\r\nvary: accept\r\n\r\n";
        out.into_bytes()
    })
}

/// A mesh before a service of each version.
struct Both {
    meshes: [Mesh; 2],
    _h1: Origin,
    _h2: Service,
}

/// A response, whatever it came by.
#[derive(Debug)]
struct Answer {
    status: u16,
    fields: BTreeMap<String, Vec<String>>,
    body: String,
}

impl Answer {
    fn one(&self, name: &str) -> Option<&str> {
        let all = self.fields.get(name)?;
        assert_eq!(all.len(), 1, "{name}: {self:?}");
        Some(&all[0])
    }
}

impl Both {
    fn start(route: &str) -> Self {
        let (h1, h2) = (echoing(), Service::echoing());
        let of =
            |config: Config| config.routes(&format!("[[route]]\nname = \"r\"\n{route}\n")).logged().start();
        let meshes = [
            of(Config::new(&[&h1])),
            of(Config::default().service_at("app", &[&h2.endpoint], "protocol = \"http2\"")),
        ];
        Self { meshes, _h1: h1, _h2: h2 }
    }

    /// Asks by both versions at both meshes; `then` judges each of the four.
    #[track_caller]
    fn each(&self, method: &str, target: &str, fields: &[(&str, &str)], then: impl Fn(&Answer)) {
        for mesh in &self.meshes {
            then(&by_http1(&mut mesh.client(), method, target, fields));
            then(&by_http2(mesh, method, target, fields));
        }
    }
}

fn by_http1(client: &mut Client, method: &str, target: &str, fields: &[(&str, &str)]) -> Answer {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n"));
    let response = if method == "HEAD" { client.response_to_head() } else { client.response() };
    let mut fields = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &response.fields {
        let value = String::from_utf8(value.clone()).unwrap();
        fields.entry(name.to_ascii_lowercase()).or_default().push(value);
    }
    Answer { status: response.status(), fields, body: response.text() }
}

fn by_http2(mesh: &Mesh, method: &str, target: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request: Request<()> = request(method, target);
    for (name, value) in fields {
        request
            .headers_mut()
            .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    let whole = call(mesh.address, request, b"", None).unwrap();
    let mut fields = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &whole.head.headers {
        fields.entry(name.to_string()).or_default().push(value.to_str().unwrap().to_owned());
    }
    Answer { status: whole.head.status.as_u16(), fields, body: String::from_utf8(whole.body).unwrap() }
}

#[test]
fn fields_of_requests_are_set_added_and_taken_out_whatever_is_spoken() {
    let both = Both::start(
        "service = \"app\"\n[route.request_headers]\nset = { x-user = \"%{header.x-in}\", x-id = \"%{identity}\", x-all = \
         \"%{method} %{path} %{query} %{target} %{host} %{scheme} %{source} %{listener} %{route} %{service} 100%%\" \
         }\nadd = { x-more = \"new\", x-none = \"%{header.x-none}\" }\nremove = [\"X-Secret\", \"cookie\"]\n",
    );
    let fields = [
        ("x-in", "in"),
        ("x-user", "mine"),
        ("x-user", "again"),
        ("x-id", "forged"),
        ("x-more", "old"),
        ("x-secret", "1"),
        ("cookie", "a=b"),
    ];
    both.each("GET", "/a/b?c=d", &fields, |answer| {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.one("echo-x-user"), Some("in"), "{answer:?}");
        assert_eq!(answer.one("echo-x-id"), None, "who has no identity cannot say so: {answer:?}");
        assert_eq!(
            answer.one("echo-x-all"),
            Some("GET /a/b c=d /a/b?c=d app.test http 127.0.0.1 inbound r app 100%")
        );
        let more = &answer.fields["echo-x-more"];
        assert_eq!((more.join(","), answer.one("echo-x-none")), ("old,new".into(), None));
        assert!(!answer.fields.contains_key("echo-x-secret") && !answer.fields.contains_key("echo-cookie"));
    });
}

#[test]
fn fields_of_responses_are_changed_whoever_makes_them() {
    let changes = "[route.response_headers]\nset = { x-old = \"new\", x-status = \"%{status} of %{service} for %{header.x-in}\" \
                   }\nadd = { x-more = \"1\" }\nremove = [\"x-theirs\", \"server\"]\n";
    let both = Both::start(&format!("service = \"app\"\n{changes}"));
    both.each("GET", "/", &[("x-in", "in")], |answer| {
        assert_eq!(answer.one("x-old"), Some("new"), "{answer:?}");
        assert_eq!(answer.one("x-status"), Some("200 of app for in"));
        assert_eq!((answer.one("x-more"), answer.one("x-theirs")), (Some("1"), None));
    });
    // Also of failures.
    let mesh = Config::default()
        .service_at("app", &["unix:/nonexistent/ringmesh.sock"], "")
        .routes(&format!("[[route]]\nservice = \"app\"\n{changes}"))
        .start();
    for answer in [by_http1(&mut mesh.client(), "GET", "/", &[]), by_http2(&mesh, "GET", "/", &[])] {
        assert_eq!((answer.status, answer.one("x-status")), (503, Some("503 of app for")), "{answer:?}");
        assert!(answer.body.starts_with("ringmesh: connect.upstream."), "{answer:?}");
    }
}

#[test]
fn nothing_in_a_value_ends_a_line() {
    let both = Both::start(
        "service = \"app\"\nrequest_headers = { set = { x-copy = \"%{header.x-in}\" } }\nresponse_headers = { set = { x-copy = \
         \"%{header.x-in}%{query}\" } }\n",
    );
    // What a head may carry at most: octets from 0x80 on, tabs, every sign.
    let value = "a\tb: c; d=\"e\" %0d%0aEvil: 1";
    both.each("GET", "/?%0D%0AEvil:1", &[("x-in", value)], |answer| {
        assert_eq!(answer.one("echo-x-copy"), Some(value));
        assert_eq!(answer.one("x-copy"), Some(&*format!("{value}%0D%0AEvil:1")));
        assert!(!answer.fields.contains_key("evil"), "{answer:?}");
    });
    // A line that was smuggled into the value is refused before that.
    let mut client = both.meshes[0].client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nx-in: a\nEvil: 1\r\n\r\n");
    assert_eq!(client.response().status(), 400);
}

#[test]
fn path_and_host_are_rewritten_and_the_query_stays() {
    for (route, target, wants, original) in [
        (
            "path_prefix = \"/api\"\nrewrite = { path_prefix = \"/v2\" }",
            "/api/x%20y?q=1",
            "http://app.test/v2/x%20y?q=1",
            true,
        ),
        ("path_prefix = \"/api\"\nrewrite = { path_prefix = \"/\" }", "/api?q", "http://app.test/?q", true),
        ("rewrite = { path_prefix = \"/all\" }", "/x", "http://app.test/all/x", true),
        ("rewrite = { path = \"/fixed\", query = \"drop\" }", "/x?y", "http://app.test/fixed", true),
        (
            "rewrite = { path_regex = \"/user/([0-9]+)/(.*)\", path_to = \"/u/$2/$1\" }",
            "/user/7/a?q",
            "http://app.test/u/a/7?q",
            true,
        ),
        (
            "rewrite = { path_regex = \"/user/([0-9]+)\", path_to = \"/u/$1\" }",
            "/other",
            "http://app.test/other",
            true,
        ),
        (
            "path_template = \"/u/{id}/i/{rest=**}\"\nrewrite = { path_template = \"/v2/{rest}/of-{id}\" }",
            "/u/a%2Fb%7B/i/x//../%C3%A9?q={id}&r=/",
            "http://app.test/v2/x//../%C3%A9/of-a%2Fb%7B?q={id}&r=/",
            true,
        ),
        (
            "path_template = \"/u/{id}/{rest=**}\"\nrewrite = { path_template = \"/v2/{rest}\", query = \"drop\" }",
            "/u/7/?q=1",
            "http://app.test/v2/",
            true,
        ),
        ("rewrite = { host = \"app.internal:8080\" }", "/x?y", "http://app.internal:8080/x?y", false),
        ("rewrite = { query = \"drop\" }", "/x?y", "http://app.test/x", true),
    ] {
        let both = Both::start(&format!("service = \"app\"\n{route}"));
        both.each("GET", target, &[("x-envoy-original-path", "/forged")], |answer| {
            assert_eq!(answer.one("echo-target"), Some(wants), "{route}: {answer:?}");
            let kept = if original { target } else { "/forged" };
            assert_eq!(answer.one("echo-x-envoy-original-path"), Some(kept), "{route}: {answer:?}");
            assert_eq!(answer.one("echo-x-forwarded-host"), Some("app.test"), "{route}: {answer:?}");
        });
    }
    // What it came as is what the log shows; a path that would come out too long is refused.
    let both = Both::start("service = \"app\"\nrewrite = { path_regex = \"(.*)\", path_to = \"$1$1$1\" }");
    let long = format!("/{}", "x".repeat(12_000));
    both.each("GET", &long, &[], |answer| assert_eq!(answer.status, 414));
    let filled = Both::start(
        "service = \"app\"\npath_template = \"/{a}\"\nrewrite = { path_template = \"/{a}/{a}/{a}\" }",
    );
    filled.each("GET", &long, &[], |answer| assert_eq!(answer.status, 414));
    both.each("GET", "/a", &[], |answer| {
        assert_eq!(answer.one("echo-target"), Some("http://app.test/a/a/a"))
    });
    let [mesh, _] = both.meshes;
    let lines = mesh.finish().lines();
    assert!(
        lines.iter().any(|line| line["target"] == "/a")
            && !lines.iter().any(|line| line["target"] == "/a/a/a")
    );
}

/// What is kept for a further attempt has been changed already, or is changed anew: never both.
#[test]
fn a_further_attempt_has_the_same_changes_once() {
    let keys = "retry = { backoff_base = \"0s\", attempt_header = true }\n";
    let route = "[[route]]\nservice = \"app\"\nrewrite = { path_regex = \"(.*)\", path_to = \"$1$1\" }\n\
                 request_headers = { add = { x-more = \"1\" } }\nresponse_headers = { add = { x-back = \"%{status}\" } }\n";
    let sick = "HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nsick";
    for body in ["", "octets"] {
        let asked = AtomicUsize::new(0);
        let origin = Origin::answering(move |request| match asked.fetch_add(1, Ordering::AcqRel) % 2 {
            0 => sick.as_bytes().to_vec(),
            _ => ok(request),
        });
        let asked = Arc::<AtomicUsize>::default();
        let service = Service::scripted(move |request, mut respond| {
            let n = asked.fetch_add(1, Ordering::AcqRel);
            async move {
                let (path, more) =
                    (request.uri().path().to_owned(), request.headers().get_all("x-more").iter().count());
                let _ = read(request).await;
                let status = if n.is_multiple_of(2) { 503 } else { 200 };
                let response = Response::builder().status(status).body(()).unwrap();
                let mut stream = respond.send_response(response, false).unwrap();
                send(&mut stream, format!("{path} {more}").into(), None).await;
            }
        });
        let by_http2 = format!("protocol = \"http2\"\n{keys}");
        let meshes = [
            Config::default().service("app", &[&origin], keys).routes(route).start(),
            Config::default().service_at("app", &[&service.endpoint], &by_http2).routes(route).start(),
        ];
        for mesh in &meshes {
            for way in 0..2 {
                let (status, back, text) = match way {
                    0 => {
                        let mut client = mesh.client();
                        let length = body.len();
                        client.send(format!(
                            "PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
                        ));
                        let response = client.response();
                        (response.status(), response.all("x-back"), response.text())
                    }
                    _ => {
                        let whole = call(mesh.address, request("PUT", "/x"), body.as_bytes(), None).unwrap();
                        let back = whole.head.headers.get_all("x-back").iter();
                        let back = back.map(|value| value.to_str().unwrap().to_owned()).collect();
                        (whole.head.status.as_u16(), back, String::from_utf8(whole.body).unwrap())
                    }
                };
                assert_eq!((status, back), (200, vec!["200".to_owned()]), "{body} {way}");
                assert!(["/x/x", "/x/x 1"].contains(&&*text), "{body} {way}: {text}");
            }
        }
        for mesh in meshes {
            assert_eq!(mesh.finish().retries.succeeded, 2, "{body}");
        }
        for request in origin.settle().iter().flat_map(|recorded| recorded.requests()) {
            assert_eq!((request.target(), request.all("x-more").len()), ("/x/x", 1), "{body}");
        }
    }
}

#[test]
fn a_request_with_a_body_goes_on_with_its_changes() {
    let both = Both::start(
        "service = \"app\"\nrewrite = { path = \"/new\" }\nrequest_headers = { set = { x-a = \"b\" } }",
    );
    for mesh in &both.meshes {
        let mut client = mesh.client();
        // All there, in pieces, and chunked.
        for body in
            ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
        {
            client.send(format!("POST /old HTTP/1.1\r\nHost: app.test\r\n{body}"));
            let response = client.response();
            assert_eq!(response.one("echo-target").unwrap(), "http://app.test/new");
            assert_eq!(response.one("echo-x-a").unwrap(), "b");
        }
        let whole = call(mesh.address, request("POST", "/old"), b"hello", None).unwrap();
        assert_eq!(
            (&whole.head.headers["echo-target"], &whole.head.headers["echo-x-a"]),
            (&"http://app.test/new".parse().unwrap(), &"b".parse().unwrap())
        );
    }
}

#[test]
fn callers_are_sent_elsewhere() {
    for (redirect, status, location) in [
        ("{ scheme = \"https\" }", 302, "https://app.test/old/x?q=1"),
        ("{ host = \"www.app.test\", status = 301 }", 301, "http://www.app.test/old/x?q=1"),
        ("{ scheme = \"https\", port = 8443, status = 308 }", 308, "https://app.test:8443/old/x?q=1"),
        ("{ path_prefix = \"/new\", status = 307 }", 307, "http://app.test/new/x?q=1"),
        ("{ path = \"/\", query = \"drop\", status = 303 }", 303, "http://app.test/"),
        ("{ path_regex = \"/old/(.*)\", path_to = \"/$1\" }", 302, "http://app.test/x?q=1"),
    ] {
        let both = Both::start(&format!(
            "path_prefix = \"/old\"\nredirect = {redirect}\nresponse_headers = {{ set = {{ x-a = \"%{{status}}\" }} }}"
        ));
        both.each("GET", "/old/x?q=1", &[], |answer| {
            assert_eq!((answer.status, answer.one("location")), (status, Some(location)), "{answer:?}");
            assert_eq!(
                (answer.one("content-length"), answer.one("x-a")),
                (Some("0"), Some(&*status.to_string()))
            );
            assert!(answer.one("date").is_some() && answer.body.is_empty());
        });
    }
    let both = Both::start(
        "path_template = \"/old/{kind}/{rest=**}\"\nredirect = { path_template = \"/{rest}/{kind}.html\" }",
    );
    both.each("GET", "/old/a//evil.test?q=1", &[], |answer| {
        let location = Some("http://app.test//evil.test/a.html?q=1");
        assert_eq!((answer.status, answer.one("location")), (302, location), "{answer:?}");
    });
    // Where it would send them to where they are, it does not: they would come back without end.
    let both = Both::start("redirect = { path_regex = \"/old/(.*)\", path_to = \"/$1\", status = 308 }");
    both.each("GET", "/old/x?q=1", &[], |answer| {
        assert_eq!((answer.status, answer.one("location")), (308, Some("http://app.test/x?q=1")));
    });
    both.each("GET", "/x?q=1", &[], |answer| {
        assert_eq!((answer.status, answer.one("location")), (404, None), "{answer:?}");
        assert!(answer.body.contains("would lead to itself"), "{answer:?}");
    });
}

#[test]
fn a_route_answers_by_itself_and_the_connection_goes_on() {
    let both = Both::start(
        "[route.respond]\nstatus = 503\nbody = \"closed for today\\n\"\ncontent_type = \"text/plain\"\nheaders = { retry-after = \
         \"3600\", x-path = \"%{path}\" }\n",
    );
    both.each("GET", "/x", &[], |answer| {
        assert_eq!((answer.status, &*answer.body), (503, "closed for today\n"));
        assert_eq!(
            (answer.one("content-type"), answer.one("content-length")),
            (Some("text/plain"), Some("17"))
        );
        assert_eq!((answer.one("retry-after"), answer.one("x-path")), (Some("3600"), Some("/x")));
        assert_eq!(answer.one("x-ringmesh-failure"), None, "no failure, but what was asked for");
    });
    both.each("HEAD", "/x", &[], |answer| {
        assert_eq!((answer.status, answer.one("content-length"), &*answer.body), (503, Some("17"), ""));
    });
    let mut client = both.meshes[0].client();
    for _ in 0..3 {
        assert_eq!(by_http1(&mut client, "GET", "/", &[]).status, 503);
    }
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!([client.response().status(), client.response().status()], [503, 503]);
    client.send("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    assert_eq!(client.response().status(), 503, "no tunnel, but the answer");
    // Nor is one agreed to by accident.
    let both = Both::start("respond = { status = 204 }\nupgrades = [\"connect\", \"websocket\"]");
    both.each("GET", "/x", &[], |answer| {
        assert_eq!((answer.status, answer.one("content-length")), (204, None), "{answer:?}");
    });
    let mut client = both.meshes[0].client();
    client.send("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    assert_eq!(client.response().status(), 405);
}

#[test]
fn a_grpc_caller_is_answered_as_one() {
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let both = Both::start("respond = { status = 503, body = \"closed for today\\n\" }");
    for mesh in &both.meshes {
        let answer = by_http2(mesh, "POST", "/shop.Cart/Get", &grpc);
        assert_eq!((answer.status, answer.one("grpc-status")), (200, Some("14")), "{answer:?}");
        assert_eq!(answer.one("grpc-message"), Some("closed for today"));
        assert_eq!((answer.one("content-type"), &*answer.body), (Some("application/grpc"), ""));
    }
    // A redirect means nothing to it.
    let both = Both::start("redirect = { scheme = \"https\" }");
    for mesh in &both.meshes {
        assert_eq!(by_http2(mesh, "POST", "/shop.Cart/Get", &grpc).one("grpc-status"), Some("2"));
    }
}

#[test]
fn browsers_learn_which_pages_may_read_what_is_answered() {
    let both = Both::start(
        "service = \"app\"\n[route.cors]\norigins = [\"https://shop.example\", \"https://*.shop.example\", { regex = \
         \"http://localhost:[0-9]+\" }]\nmethods = [\"GET\", \"PUT\"]\nheaders = [\"x-token\"]\nexpose = [\"x-total\"]\nmax_age = \
         \"10m\"\ncredentials = true\n",
    );
    for origin in ["https://shop.example", "https://www.shop.example", "http://localhost:3000"] {
        let preflight = [
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-token"),
        ];
        both.each("OPTIONS", "/", &preflight, |answer| {
            assert_eq!(
                (answer.status, answer.one("access-control-allow-origin")),
                (204, Some(origin)),
                "{answer:?}"
            );
            assert_eq!(answer.one("access-control-allow-methods"), Some("GET, PUT"));
            assert_eq!(answer.one("access-control-allow-headers"), Some("x-token"));
            assert_eq!(answer.one("access-control-allow-credentials"), Some("true"));
            assert_eq!(answer.one("access-control-max-age"), Some("600"));
            assert!(
                answer.one("vary").unwrap().contains("origin") && !answer.fields.contains_key("echo-method")
            );
        });
        both.each("GET", "/", &[("origin", origin)], |answer| {
            assert_eq!(answer.one("access-control-allow-origin"), Some(origin), "{answer:?}");
            assert_eq!(answer.one("access-control-expose-headers"), Some("x-total"));
            assert!(answer.fields["vary"].iter().any(|vary| vary == "origin"), "{answer:?}");
            assert_eq!(answer.one("echo-method"), Some("GET"));
        });
    }
    // Of others the answers go out without a word of CORS, be it the service's; an OPTIONS that is no preflight goes on.
    both.each(
        "OPTIONS",
        "/",
        &[("origin", "https://evil.test"), ("access-control-request-method", "PUT")],
        |answer| {
            assert_eq!((answer.status, answer.one("access-control-allow-origin")), (403, None), "{answer:?}");
        },
    );
    for (method, fields) in [("GET", &[("origin", "https://evil.test")][..]), ("GET", &[]), ("OPTIONS", &[])]
    {
        both.each(method, "/", fields, |answer| {
            assert_eq!((answer.status, answer.one("access-control-allow-origin")), (200, None), "{answer:?}");
            assert_eq!(answer.one("echo-method"), Some(method));
            assert!(answer.fields["vary"].iter().any(|vary| vary == "origin"));
        });
    }
    let any = Both::start("service = \"app\"\ncors = { origins = [\"*\"] }");
    any.each("GET", "/", &[("origin", "https://a.test")], |answer| {
        assert_eq!(answer.one("access-control-allow-origin"), Some("*"));
    });
}

#[test]
fn a_page_may_read_why_its_request_failed() {
    let mesh = Config::default()
        .service_at("app", &["unix:/nonexistent/ringmesh.sock"], "")
        .routes("[[route]]\nservice = \"app\"\ncors = { origins = [\"https://a.test\"] }\n")
        .start();
    let origin = [("origin", "https://a.test")];
    for answer in [by_http1(&mut mesh.client(), "GET", "/", &origin), by_http2(&mesh, "GET", "/", &origin)] {
        assert_eq!((answer.status, answer.one("access-control-allow-origin")), (503, Some("https://a.test")));
    }
}

/// A browser sends it by itself, with nothing that tells who asks.
#[test]
fn a_preflight_is_answered_before_rules_limits_and_faults_and_a_page_may_read_what_they_say() {
    let limits = "[[rate_limit]]\nname = \"few\"\nrate = 1\nper = \"1h\"\nburst = 1\nroutes = [\"shop\"]\n";
    // Of the second only the first that is no preflight comes as far as the fault.
    for (verdict, statuses) in [(Verdict::Deny, [403, 403, 403]), (Verdict::Allow, [418, 429, 429])] {
        let app = Origin::plain();
        let routes = format!(
            "[[route]]\nname = \"shop\"\nservice = \"app\"\ncors = {{ origins = [\"https://a.test\"], headers = [\"x-token\"] }}\n\
             fault = {{ abort = {{ status = 418 }} }}\n{limits}"
        );
        let config = Config::default().service("app", &[&app], "").routes(&routes);
        let mesh = config.authorization(Vec::new(), verdict).start();
        let mut client = mesh.client();
        let origin = ("origin", "https://a.test");
        let asks =
            [origin, ("access-control-request-method", "GET"), ("access-control-request-headers", "x-token")];
        for _ in 0..2 {
            for answer in
                [by_http1(&mut client, "OPTIONS", "/", &asks), by_http2(&mesh, "OPTIONS", "/", &asks)]
            {
                assert_eq!(
                    (answer.status, answer.one("access-control-allow-headers")),
                    (204, Some("x-token"))
                );
            }
        }
        let answers = [
            by_http1(&mut client, "GET", "/", &[origin]),
            by_http2(&mesh, "GET", "/", &[origin]),
            // It only looks like one.
            by_http1(&mut client, "OPTIONS", "/", &[origin]),
        ];
        for (answer, status) in answers.iter().zip(statuses) {
            let allowed = answer.one("access-control-allow-origin");
            assert_eq!((answer.status, allowed), (status, Some("https://a.test")), "{answer:?}");
        }
        drop(client);
        mesh.finish();
        assert!(app.settle().is_empty());
    }
}

#[test]
fn a_cookie_of_the_proxy_keeps_a_caller_with_one_service() {
    let name = |name: &'static str| {
        Origin::answering(move |_: &Message| {
            format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}").into_bytes()
        })
    };
    let (a, b) = (name("a"), name("b"));
    let mesh = Config::default()
        .service("a", &[&a], "")
        .service("b", &[&b], "")
        .routes(
            "[[route]]\nsplit = [{ service = \"a\" }, { service = \"b\" }]\n[route.sticky.set_cookie]\nname = \
             \"variant\"\nttl = \"24h\"\nsecure = true\nsame_site = \"strict\"\n",
        )
        .start();
    let mut seen = BTreeMap::<String, u32>::new();
    let mut client = mesh.client();
    for n in 0..40 {
        let first = if n % 2 == 0 {
            by_http1(&mut client, "GET", "/", &[])
        } else {
            by_http2(&mesh, "GET", "/", &[])
        };
        let cookie = first.one("set-cookie").unwrap();
        let (pair, rest) = cookie.split_once("; ").unwrap();
        assert_eq!(rest, "Path=/; Max-Age=86400; Secure; HttpOnly; SameSite=Strict");
        assert!(pair.strip_prefix("variant=").is_some_and(|value| value.len() == 16), "{pair}");
        *seen.entry(first.body.clone()).or_default() += 1;
        for again in [
            by_http1(&mut client, "GET", "/", &[("cookie", pair)]),
            by_http2(&mesh, "GET", "/", &[("cookie", pair)]),
        ] {
            assert_eq!((&again.body, again.one("set-cookie")), (&first.body, None));
        }
    }
    // All with one of the two: once in 2^39 runs.
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn rules_come_before_what_a_route_does() {
    let origin = echoing();
    let mesh = Config::new(&[&origin])
        .authorization(Vec::new(), Verdict::Deny)
        .routes("[[route]]\nrespond = { status = 200, body = \"secret\" }\n")
        .start();
    for answer in [by_http1(&mut mesh.client(), "GET", "/", &[]), by_http2(&mesh, "GET", "/", &[])] {
        assert_eq!(answer.status, 403);
        assert!(!answer.body.contains("secret"));
    }
}

#[test]
fn what_is_wrong_with_an_action_is_told_with_its_remedy() {
    let services = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"a\"\nendpoints = \
                    [\"127.0.0.1:1\"]\n[[route]]\n";
    let with = |route: &str| format!("service = \"a\"\n{route}");
    for (route, wants) in [
        (
            "service = \"a\"\nredirect = { scheme = \"https\" }".into(),
            &["either `service` or `redirect`"][..],
        ),
        ("redirect = { status = 304, scheme = \"https\" }".into(), &["304 does not send anybody anywhere"]),
        ("redirect = {}".into(), &["sends callers to where they are"]),
        ("redirect = { host = \"*.a\" }".into(), &["stands for several hosts"]),
        ("path = \"/x\"\nredirect = { path_prefix = \"/y\" }".into(), &["which it has not", "write `path`"]),
        (
            with("path_template = \"/x/{id}\"\nrewrite = { path_prefix = \"/y\" }"),
            &["which it has not", "found by this"],
        ),
        (
            with("path_regex = \"/x.*\"\nrewrite = { path_prefix = \"/y\" }"),
            &["which it has not", "`path_regex` with `path_to`"],
        ),
        ("redirect = { path = \"/a\", path_prefix = \"/b\" }".into(), &["either `path` or `path_prefix`"]),
        (
            "redirect = { scheme = \"https\" }\nrewrite = { host = \"b\" }".into(),
            &["`rewrite` does not go with `redirect`"],
        ),
        ("respond = { status = 100 }".into(), &["out of its bounds"]),
        ("respond = { status = 204, body = \"x\" }".into(), &["has no body"]),
        (format!("respond = {{ body = \"{}\" }}", "x".repeat(70_000)), &["at most 65536"]),
        (with("rewrite = {}"), &["this rewrite changes nothing"]),
        (
            with("rewrite = { path_regex = \"/(a\", path_to = \"/\" }"),
            &["it is no expression", "unclosed group"],
        ),
        (
            with("rewrite = { path_regex = \"/a\", path_to = \"/$1\" }"),
            &["`$1`, but path_regex has 0 groups"],
        ),
        (with("rewrite = { path_regex = \"/a\" }"), &["`path_regex` without `path_to`"]),
        (with("rewrite = { path_to = \"/a\" }"), &["`path_to` without `path_regex`"]),
        (
            with("path_prefix = \"/u\"\nrewrite = { path_template = \"/v2/{id}\" }"),
            &["the route's own path_template, which it has not", "find the route by path_template"],
        ),
        (
            with("path_template = \"/u/{user}/{rest=**}\"\nrewrite = { path_template = \"/v2/{id}\" }"),
            &["`{id}` stands for nothing", "no such variable in this", "there are: {user} {rest}"],
        ),
        (
            "path_template = \"/u/{user}\"\nredirect = { path_template = \"/v2/{id}\" }".into(),
            &["`{id}` stands for nothing"],
        ),
        (
            with("path_template = \"/u/{a=**}\"\nrewrite = { path_template = \"/v2/{a=**}\" }"),
            &["`=` in a variable", "write {a}: the route's own path_template says"],
        ),
        (
            with("path_template = \"/u/{a}/{b}\"\nrewrite = { path_template = \"/{a}{b}\" }"),
            &["`{b}` stands at once behind another variable"],
        ),
        (
            with("path_template = \"/u/{a}\"\nrewrite = { path_template = \"/x y/{a}\" }"),
            &["` ` is never sent in a path", "%20"],
        ),
        (
            with("path_template = \"/u/{a}\"\nrewrite = { path_template = \"/x\" }"),
            &["there is no variable in it", "write it as `path`"],
        ),
        (
            with("path_template = \"/u/{a}\"\nrewrite = { path = \"/x\", path_template = \"/x/{a}\" }"),
            &["either `path` or `path_template`"],
        ),
        (
            with("request_headers = { set = { host = \"b\" } }"),
            &["`host` cannot be changed", "rewrite = { host"],
        ),
        (
            with("request_headers = { set = { \"Content-Length\" = \"1\" } }"),
            &["`content-length` cannot be changed"],
        ),
        (with("response_headers = { remove = [\"connection\"] }"), &["`connection` cannot be changed"]),
        (
            with("request_headers = { set = { x = \"%{stattus}\" } }"),
            &["there is no value `stattus`", "%{status}"],
        ),
        (with("request_headers = { set = { x = \"%{status}\" } }"), &["a request has no %{status}"]),
        (with("request_headers = { set = { x = \"100%\" } }"), &["write %% for a percent sign"]),
        (with("request_headers = { set = { x = \"a\\r\\nb: c\" } }"), &["cannot stand in a field"]),
        (with("request_headers = { set = { \"x y\" = \"a\" } }"), &["cannot stand in the name of a field"]),
        (with("request_headers = { set = { x = \"1\" }, remove = [\"X\"] }"), &["`x` is removed and set"]),
        (with("cors = {}"), &["`cors` without `origins`"]),
        (with("cors = { origins = [\"*\"], credentials = true }"), &["every page could read"]),
        (with("cors = { origins = [\"shop.example\"] }"), &["has no scheme"]),
        (with("cors = { origins = [\"https://shop.example/\"] }"), &["has a path"]),
        (with("cors = { origins = [\"https://shop.example:443\"] }"), &["browsers leave out"]),
        (with("cors = { origins = [\"https://Shop.example\"] }"), &["not in lower case"]),
        (with("sticky = { set_cookie = { name = \"v\" } }"), &["`sticky` without `split`"]),
        (
            "split = [{ service = \"a\" }]\nsticky = { set_cookie = { name = \"v w\" } }".into(),
            &["cannot stand in the name of a cookie", "a word of letters"],
        ),
        (
            "split = [{ service = \"a\" }]\nsticky = { set_cookie = { name = \"v\", same_site = \"none\" } }"
                .into(),
            &["browsers drop"],
        ),
        ("split = [{ service = \"a\" }]\nsticky = { set_cookie = {} }".into(), &["a cookie needs `name`"]),
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
