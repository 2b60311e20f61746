//! Which route a request takes, by real requests over HTTP/1.1 and HTTP/2: every kind of path, every condition, and what
//! comes first. What is asked is told by the access log. The words of mistakes in `match` stand at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use ringmesh::config;
use ringmesh::identity::Credentials;
use ringmesh::snapshot::ListenerTls;

use crate::support::authority::{Authority, TLS13};
use crate::support::client::Client;
use crate::support::http2::{call, request};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;

/// A route to the one service there is.
fn route(name: &str, keys: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\nservice = \"app\"\n{keys}\n")
}

/// Method, path with query, lines; and the route that must be taken, `-` for none.
type Case<'c> = (&'c str, &'c str, &'c [(&'c str, &'c str)], &'c str);

/// Asks each case over HTTP/1.1 and over HTTP/2.
#[track_caller]
fn check(config: &Config, cases: &[Case<'_>]) {
    let origin = Origin::plain();
    let mesh = config.clone().service("app", &[&origin], "").logged().start();
    let target = |n: usize, version: u8, path: &str| {
        format!("{path}{}case={n}-{version}", if path.contains('?') { '&' } else { '?' })
    };
    for (n, (method, path, lines, _)) in cases.iter().enumerate() {
        one_by_http1(&mesh, method, &target(n, 1, path), lines);
        let mut asked = request(method, &target(n, 2, path));
        for (name, value) in *lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            asked.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        call(mesh.address, asked, b"", None).unwrap();
    }
    let taken = taken(mesh);
    for (n, (method, path, lines, route)) in cases.iter().enumerate() {
        for version in [1, 2] {
            let found = taken.get(&format!("{n}-{version}")).map(String::as_str);
            assert_eq!(found, Some(*route), "{method} {path} {lines:?} by HTTP/{version}");
        }
    }
}

fn one_by_http1(mesh: &Mesh, method: &str, target: &str, lines: &[(&str, &str)]) {
    let mut client: Client = mesh.client();
    let lines: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("{method} {target} HTTP/1.1\r\nhost: app.test\r\n{lines}\r\n"));
    client.response();
}

/// By case, the route.
fn taken(mesh: Mesh) -> BTreeMap<String, String> {
    let lines = mesh.finish().lines();
    let case = |line: &serde_json::Value| {
        let target = line["target"].as_str().unwrap();
        let route = line["route"].as_str().unwrap_or("-").to_owned();
        (target.rsplit_once("case=").unwrap().1.to_owned(), route)
    };
    lines.iter().map(case).collect()
}

#[test]
fn every_kind_of_path_is_served_in_its_order() {
    let routes = [
        route("below", "path_prefix = \"/users\""),
        route("regex", "path_regex = '/users/[0-9]+/.*'"),
        route("template", "path_template = \"/users/{id}/orders\""),
        route("exact", "path = \"/users/7/orders\""),
        route("files", "path_template = \"/files/{path=**}\""),
    ];
    check(
        &Config::default().routes(&routes.concat()),
        &[
            ("GET", "/users/7/orders", &[], "exact"),
            ("GET", "/users/8/orders", &[], "template"),
            ("GET", "/users/8/orders/", &[], "regex"),
            ("GET", "/users/me/orders", &[], "template"),
            ("GET", "/users/me/carts", &[], "below"),
            ("GET", "/users", &[], "below"),
            ("GET", "/files/a/b", &[], "files"),
            ("GET", "/files", &[], "-"),
        ],
    );
}

#[test]
fn every_condition_on_a_request_is_asked() {
    let routes = [
        route("method", "path = \"/m\"\nmatch = { methods = [\"PUT\", \"DELETE\"] }"),
        route(
            "header",
            "path = \"/h\"\nmatch = { headers = { X-User = \"7\", x-env = { prefix = \"st\", not = true } } }",
        ),
        route(
            "regex",
            "path = \"/h\"\nmatch = { headers = { user-agent = { regex = \"(?i).*android.*\" } } }",
        ),
        route("host", "path = \"/h\"\nmatch = { headers = { host = { suffix = \".example\" } } }"),
        route("query", "path = \"/q\"\nmatch = { query = { v = { range = [2, 5] }, \"a b\" = \"c&d\" } }"),
        route("debug", "path = \"/q\"\nmatch = { query = { debug = { present = true } } }"),
        route("cookie", "path = \"/c\"\nmatch = { cookies = { group = \"beta\" } }"),
        route("no-cookie", "path = \"/c\"\nmatch = { cookies = { group = { present = false } } }"),
        route("port", "path = \"/p\"\nmatch = { ports = [15001], sources = [\"127.0.0.0/8\"] }"),
        route("elsewhere", "path = \"/s\"\nmatch = { sources = [\"10.0.0.0/8\"] }"),
        route("listener", "path = \"/l\"\nmatch = { listeners = [\"inbound\"] }"),
    ];
    check(
        &Config::default().routes(&routes.concat()),
        &[
            ("PUT", "/m", &[], "method"),
            ("GET", "/m", &[], "-"),
            ("GET", "/h", &[("x-user", "7")], "header"),
            ("GET", "/h", &[("x-user", "7"), ("x-env", "prod")], "header"),
            ("GET", "/h", &[("x-user", "7"), ("x-env", "staging")], "-"),
            ("GET", "/h", &[("x-user", "7"), ("x-user", "7")], "-"),
            ("GET", "/h", &[("user-agent", "Mozilla (Android 14)")], "regex"),
            ("GET", "/q?a+b=c%26d&v=4", &[], "query"),
            ("GET", "/q?a+b=c%26d&v=5", &[], "-"),
            ("GET", "/q?debug", &[], "debug"),
            ("GET", "/q?x=1&debug=0&v=2", &[], "debug"),
            ("GET", "/c", &[("cookie", "a=1; group=beta")], "cookie"),
            ("GET", "/c", &[("cookie", "group=alpha; group=beta")], "-"),
            ("GET", "/c", &[("cookie", "groups=beta")], "no-cookie"),
            ("GET", "/c", &[], "no-cookie"),
            ("GET", "/s", &[], "-"),
            ("GET", "/l", &[], "listener"),
        ],
    );
}

#[test]
fn crumbs_of_a_cookie_are_one_cookie() {
    let origin = Origin::plain();
    let routes = route("beta", "match = { cookies = { group = \"beta\" } }") + &route("all", "");
    let mesh = Config::new(&[&origin]).routes(&routes).logged().start();
    let mut asked = request("GET", "/?case=1");
    asked.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    asked.headers_mut().append("cookie", HeaderValue::from_static("group=beta"));
    call(mesh.address, asked, b"", None).unwrap();
    one_by_http1(&mesh, "GET", "/?case=2", &[("cookie", "a=1"), ("cookie", "group=beta")]);
    assert_eq!(taken(mesh).into_values().collect::<Vec<_>>(), ["beta", "beta"]);
}

/// A proxy that learns who calls, where a caller proves it.
fn knowing_callers(origin: &Origin, credentials: Arc<Credentials>, routes: &str) -> Mesh {
    let config = Config::new(&[origin]).routes(routes).logged();
    let with_identity = config.change(move |snapshot| {
        snapshot.listeners[0].tls = ListenerTls::Permissive;
        snapshot.identity = Some(Arc::clone(&credentials));
    });
    with_identity.start()
}

#[test]
fn who_calls_is_what_the_handshake_proved() {
    const SHOP: &str = "spiffe://mesh.local/ns/shop/sa/web";
    let origin = Origin::plain();
    let authority = Authority::new("mesh");
    let credentials = authority.credentials(SHOP, &authority.workload(SHOP), &[b"http/1.1"]);
    let routes = [
        route("shop", &format!("match = {{ from = [\"{SHOP}\"] }}")),
        route(
            "domain",
            "match = { from = [\"spiffe://mesh.local/*\"], headers = { x-domain = { present = true } } }",
        ),
        route("all", ""),
    ];
    let mesh = knowing_callers(&origin, credentials, &routes.concat());
    let other = "spiffe://mesh.local/ns/shop/sa/other";
    for (n, (id, line)) in [(SHOP, ""), (other, ""), (other, "x-domain: 1\r\n")].into_iter().enumerate() {
        let config = authority.anybody_client(Some(&authority.workload(id)), TLS13);
        let mut client = mesh.client().tls(config, "app.test");
        client.send(format!("GET /?case={n} HTTP/1.1\r\nhost: a\r\n{line}\r\n"));
        client.response();
    }
    one_by_http1(
        &mesh,
        "GET",
        "/?case=3",
        &[("x-domain", "1"), ("x-forwarded-client-cert", &format!("URI={SHOP}"))],
    );
    assert_eq!(taken(mesh).into_values().collect::<Vec<_>>(), ["shop", "all", "domain", "all"]);
}

#[test]
fn labels_are_those_of_the_workload_that_handshake_and_address_tell() {
    const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";
    let origin = Origin::plain();
    let authority = Authority::new("mesh");
    let credentials = authority.credentials(WEB, &authority.workload(WEB), &[b"http/1.1"]);
    let workloads = format!(
        "[[workload]]\nfrom = [\"{WEB}\"]\nsources = [\"127.0.0.0/8\"]\nlabels = {{ app = \"web\", version = \"v2\" }}\n\
         [[workload]]\nfrom = [\"spiffe://mesh.local/ns/shop/sa/far\"]\nsources = [\"10.0.0.0/8\"]\nlabels = {{ app = \"web\" }}\n\
         [[workload]]\nsources = [\"127.0.0.1/32\"]\nlabels = {{ place = \"here\" }}\n"
    );
    let labelled = |name: &str, labels: &str| route(name, &format!("match = {{ labels = {{ {labels} }} }}"));
    let routes = [
        labelled("here", "place = \"here\""),
        labelled("web-v2", "version = \"v2\", app = \"web\""),
        labelled("web-v1", "app = \"web\", version = \"v1\""),
        // Not of one workload together, though who has both identity and address is known by two.
        labelled("web-here", "app = \"web\", place = \"here\""),
    ];
    let mesh = knowing_callers(&origin, credentials, &(workloads + &routes.concat()));
    for (n, id) in [WEB, "spiffe://mesh.local/ns/shop/sa/far"].into_iter().enumerate() {
        let config = authority.anybody_client(Some(&authority.workload(id)), TLS13);
        let mut client = mesh.client().tls(config, "app.test");
        client.send(format!("GET /?case={n} HTTP/1.1\r\nhost: a\r\n\r\n"));
        client.response();
    }
    // Who proves nothing has the labels of his address alone, whatever he says.
    let said = format!("URI={WEB}");
    one_by_http1(&mesh, "GET", "/?case=2", &[("x-forwarded-client-cert", &said), ("version", "v2")]);
    assert_eq!(taken(mesh).into_values().collect::<Vec<_>>(), ["web-v2", "here", "here"]);
}

#[test]
fn the_same_tables_lead_both_versions_the_same_way_when_there_are_many() {
    let mut routes = route("all", "");
    for n in 0..300 {
        routes +=
            &route(&format!("tenant-{n}"), &format!("match = {{ headers = {{ x-tenant = \"t{n}\" }} }}"));
        routes += &route(&format!("regex-{n}"), &format!("path_regex = \"/r{n}/v[0-9]+/.*\""));
        routes += &route(&format!("template-{n}"), &format!("path_template = \"/t{n}/{{x}}\""));
    }
    check(
        &Config::default().routes(&routes),
        &[
            ("GET", "/", &[("x-tenant", "t299")], "tenant-299"),
            ("GET", "/", &[("x-tenant", "t300")], "all"),
            ("GET", "/r123/v1/", &[], "regex-123"),
            ("GET", "/r123/v/", &[("x-tenant", "t0")], "tenant-0"),
            ("GET", "/t77/a", &[("x-tenant", "t0")], "template-77"),
        ],
    );
}

// --- mistakes ---

const SOUND: &str = "[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = \
                     [\"127.0.0.1:9000\"]\n";

fn told(routes: &str) -> String {
    match config::parse("test.toml", &format!("{SOUND}{routes}"), &|_| None) {
        Ok(loaded) => loaded.warnings.to_string(),
        Err(report) => report.to_string(),
    }
}

#[test]
fn a_mistake_in_a_condition_is_told_with_its_remedy() {
    let matching = |keys: &str| route("r", &format!("match = {{ {keys} }}"));
    let workload = |keys: &str| {
        format!("[[workload]]\n{}\n", keys.replace("], ", "]\n").replace("}, ", "}\n")) + &route("r", "")
    };
    for (routes, message) in [
        (route("r", "path_regex = '/a(b'"), "`/a(b` is no expression: unclosed group at character 3"),
        (route("r", "path_regex = 'a.*'"), "`a.*` matches no path: each begins with `/`"),
        (route("r", "path_regex = '/.*a.{30}'"), "takes more than 1024 KiB"),
        (route("r", "path_regex = '/(?=a)'"), "look-around"),
        (route("r", "path_template = '/a/b'"), "there is no variable in it"),
        (route("r", "path_template = '/a/{b}.png'"), "`{b}.png` is a variable and more"),
        (route("r", "path_template = '/a b/{b}'"), "` ` is never sent in a path"),
        (route("r", "path = '/a'\npath_regex = '/b'"), "a route has either `path` or `path_regex`"),
        (route("r", "match = {}"), "route.match is empty"),
        (matching("methods = []"), "route.match.methods is empty"),
        (matching("headers = {}"), "route.match.headers is empty"),
        (matching("methods = ['get']"), "methods differ by case"),
        (matching("labels = {}"), "route.match.labels is empty"),
        (matching("labels = 'app'"), "must be a table"),
        (workload("from = ['spiffe://a/*']"), "a workload needs `labels`"),
        (workload("labels = { a = 'b' }"), "nothing tells that this workload calls"),
        (workload("labels = { a = 'b' }, sources = []"), "workload.sources is empty"),
        (
            workload("labels = { a = 'b' }, sources = ['10.0.0.0/8'], idenity = 'x'"),
            "unknown key `idenity` in [[workload]]",
        ),
        (matching("headers = { 'x y' = '1' }"), "` ` cannot stand in the name of a field"),
        (matching("headers = { x = '1', X = '2' }"), "`x` is written twice"),
        (matching("headers = { x = { range = [5, 5] } }"), "no number is from 5 to before 5"),
        (matching("headers = { x = { range = [5] } }"), "not a range of numbers"),
        (matching("headers = { x = { prefix = '' } }"), "every value has an empty part"),
        (matching("headers = { x = { exact = 'a', prefix = 'b' } }"), "a value has one test, this one 2"),
        (matching("headers = { x = { not = true } }"), "nothing is asked of the value"),
        (matching("headers = { x = { present = false, not = true } }"), "not absent is present"),
        (matching("headers = { x = { regex = '[' } }"), "is no expression"),
        (matching("headers = { x = 7 }"), "must be a text or a table"),
        (matching("headers = { x = { exakt = 'a' } }"), "did you mean `exact`?"),
        (matching("cookies = { 'a=b' = '1' }"), "`=` cannot stand in the name of a cookie"),
        (matching("listeners = ['im']"), "there is no listener `im`"),
        (matching("grpc = { service = 'shop.v1.Cart/Add' }"), "this is more than the name of a service"),
        (matching("grpc = { service = 'shop..Cart' }"), "is not the name of a gRPC service"),
        (
            route("r", "path = '/x'\nmatch = { grpc = { method = 'Add' } }"),
            "the service and the method of a gRPC call are its path",
        ),
        (matching("grpc = {}, methods = ['GET']"), "every gRPC call is a POST"),
        // Doubts.
        (matching("headers = { x = 'a*' }"), "`*` in a value is matched as the character itself"),
        (matching("headers = { x-forwarded-client-cert = { present = true } }"), "callers' own are removed"),
        (matching("labels = { app = 'x' }"), "no [[workload]] has all of these labels"),
        (matching("ports = [1]"), "none of the listeners has such a port"),
        (matching("from = ['spiffe://a/*']"), "no listener learns who calls"),
    ] {
        let told = told(&routes);
        assert!(told.contains(message), "{routes}\n{message}\n{told}");
    }
}

#[test]
fn routes_with_the_same_conditions_are_an_error_and_those_never_reached_a_doubt() {
    let twice = |keys: &str, other: &str| told(&(route("a", keys) + &route("b", other)));
    let same = [
        ("match = { methods = ['GET', 'PUT'] }", "match = { methods = ['PUT', 'GET', 'PUT'] }"),
        (
            "match = { headers = { a = '1', b = '2' } }",
            "match = { headers = { B = { exact = '2' }, a = '1' } }",
        ),
        ("path_template = '/a/{x}'", "path_template = '/a/{y}'"),
        ("path_regex = '/a.*'", "path_regex = '/a.*'"),
        ("match = { grpc = { service = 's.S', method = 'M' } }", "path = '/s.S/M'\nmatch = { grpc = {} }"),
    ];
    for (one, other) in same {
        let told = twice(one, other);
        assert!(told.contains("two routes serve any host and path"), "{one}\n{other}\n{told}");
    }
    let shadowed = [
        ("match = { methods = ['GET', 'PUT'] }", "match = { methods = ['PUT'] }"),
        ("match = { headers = { a = { present = true } } }", "match = { headers = { a = '1' } }"),
        ("match = { headers = { a = { prefix = 'x' } } }", "match = { headers = { a = 'xy' } }"),
        ("path_regex = '/a.*'", "path_prefix = '/a'"),
        ("path_regex = '/a.*'", "path_regex = '/a/b[0-9]'"),
        ("path_regex = '.*'", "path_prefix = '/'\nmatch = { methods = ['GET'] }"),
    ];
    for (one, other) in shadowed {
        let told = twice(one, other);
        assert!(told.contains("no request reaches this route"), "{one}\n{other}\n{told}");
    }
    let apart = [
        ("match = { methods = ['PUT'] }", "match = { methods = ['GET', 'PUT'] }"),
        ("match = { headers = { a = '1' } }", "match = { headers = { a = { present = true } } }"),
        ("match = { headers = { a = { present = true } } }", "match = { headers = { a = '1', b = '1' } }"),
        ("path_regex = '/a.+'", "path_prefix = '/a'"),
        ("path_regex = '/a.*'", "path = '/a'"),
        ("hosts = ['a']\npath_regex = '/a.*'", "path_prefix = '/a'"),
        ("path_regex = '/a.*'\nmatch = { methods = ['GET'] }", "path_prefix = '/a'"),
    ];
    for (one, other) in apart {
        assert_eq!(twice(one, other), "", "{one}\n{other}");
    }
}
