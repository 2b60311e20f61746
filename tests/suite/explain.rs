//! `ringmesh explain` and `/explain`: what is told of a request, in words and as JSON, and with which exit code.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use ringmesh::config::Look;
use ringmesh::control::explain::command::{How, run};
use ringmesh::control::{Proxy, Start};
use serde_json::{Value, json};

use crate::support::folder::Folder;

const TEXT: &str = r#"
[identity]
source = "embedded"
id = "spiffe://mesh.local/ns/shop/sa/shop"
[[listener]]
name = "plain"
address = "127.0.0.1:15001"
[[listener]]
name = "mesh"
address = "127.0.0.1:15006"
tls = "permissive"
[[listener]]
name = "edge"
address = "127.0.0.1:15443"
tls = "terminate"
certificate = "/c.pem"
key = "/k.pem"
[[service]]
name = "shop"
endpoints = ["10.0.0.1:80", { address = "10.0.0.2:80", weight = 3, zone = "b" }]
timeouts = { connect = "1s", response = "5s" }
[[service]]
name = "named"
endpoints = ["shop.default.svc:80"]
[[route]]
name = "all"
service = "shop"
[[route]]
name = "users"
path_template = "/users/{id}"
service = "named"
timeout = "3s"
[[route]]
name = "gold"
service = "shop"
match = { headers = { x-tier = "gold" }, methods = ["GET"] }
[[route]]
name = "web"
service = "shop"
match = { from = ["spiffe://mesh.local/ns/shop/sa/web"] }
[[route]]
name = "elsewhere"
hosts = ["other.example"]
service = "shop"
[[authorization]]
name = "no-admin"
action = "deny"
paths = ["/admin/*"]
[[authorization]]
name = "seen"
action = "audit"
methods = ["PUT"]
"#;

struct Files(Folder);

impl Files {
    fn new(text: &str) -> Self {
        let folder = Folder::new();
        std::fs::write(folder.path("a.toml"), text).unwrap();
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.path("a.toml")
    }

    fn ask(&self, how: &How, words: &[&str]) -> (String, u8) {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let mut out = Vec::new();
        let look = Look { colour: false, unicode: false };
        let code = run(&[self.file()], &words, how, &|_| None, &mut out, look);
        (String::from_utf8(out).unwrap(), code)
    }

    fn text(&self, words: &[&str]) -> (String, u8) {
        self.ask(&How::default(), words)
    }

    fn json(&self, words: &[&str]) -> Value {
        let (text, _) = self.ask(&How { json: true, ..How::default() }, words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

#[test]
fn what_applies_and_what_does_not_is_told_in_words() {
    let files = Files::new(TEXT);
    let (told, code) =
        files.text(&["GET", "https://shop/cart?a=b", "-H", "x-tier: silver", "--listener", "mesh"]);
    assert_eq!(code, 0, "{told}");
    for line in [
        "GET shop/cart?a=b at 127.0.0.1",
        "listener    mesh on 127.0.0.1:15006, tls permissive",
        "access      allowed, by authorization_default: no rule decides",
        "route       all: path_prefix = \"/\"",
        "a.toml:27",
        "service     shop",
        "timeout     off for the whole exchange",
        "timeouts    connect 1s, response 5s, body without progress 30s",
        "attempts    up to 3 endpoints until one takes the connection; up to 3 attempts in all, after connect_failure, refused_stream, ",
        ", 500, 502-504; after pauses of up to 25ms, 75ms, 250ms at most; as many at a time as 20 % of those in progress, or 10",
        "endpoints   10.0.0.1:80, 10.0.0.2:80 weight 3 in b, by peak-ewma",
        "  gold  field x-tier = \"gold\": it is \"silver\"",
        "  web   serves spiffe://mesh.local/ns/shop/sa/web, this is nobody known",
        "  users path_template = \"/users/{id}\" does not mean this path",
        "1 more route is further away",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let (told, _) = files.text(&["GET", "/users/7", "-H", "x-tier: gold"]);
    for line in [
        "listener    plain on 127.0.0.1:15001, tls off; the first one, as none was named",
        "route       users: path_template = \"/users/{id}\"",
        "endpoints   what shop.default.svc resolves to",
        "  all  means it as well, by a prefix, which comes last",
        "  gold means it as well, by a prefix, which comes last",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let (told, _) = files.text(&["GET", "http://shop/", "--port", "5"]);
    assert!(told.contains("\nnote        no listener has port 5: what follows"), "{told}");
    assert!(!files.text(&["GET", "http://shop/", "--port", "15006"]).0.contains("\nnote"));
    let (told, _) = files.ask(&How { all: true, ..How::default() }, &["GET", "http://shop/"]);
    assert!(told.contains("  elsewhere serves other.example"), "{told}");
}

#[test]
fn labels_that_are_asked_of_who_calls_are_told_with_who_has_them() {
    let files = Files::new(
        "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"shop\"\nendpoints = [\"10.0.0.1:80\"]\n\
         [[workload]]\nsources = [\"10.0.2.0/24\"]\nlabels = { app = \"web\", version = \"v2\" }\n\
         [[route]]\nname = \"all\"\nservice = \"shop\"\n\
         [[route]]\nname = \"web\"\nservice = \"shop\"\nmatch = { labels = { app = \"web\" } }\n\
         [[route]]\nname = \"none\"\nservice = \"shop\"\nmatch = { labels = { app = \"cart\" } }\n",
    );
    let (told, _) = files.text(&["GET", "/", "--source", "10.0.2.7"]);
    for line in [
        "route       web: path_prefix = \"/\", match.labels = { app = \"web\" }",
        "  none serves app = \"cart\" (no workload has them), this is nobody known from 10.0.2.7",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let (told, _) = files.text(&["GET", "/", "--source", "10.0.3.7"]);
    let line = "  web  serves app = \"web\" (of one workload), this is nobody known from 10.0.3.7";
    assert!(told.contains(line), "{told}");
}

#[test]
fn the_retries_that_are_told_are_those_of_the_route_where_it_has_some() {
    let files = Files::new(
        "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:15001\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"10.0.0.1:80\"]\nconnect_attempts_max = 1\n\
         retry = { attempts_max = 2, on = [\"connect-failure\"], statuses = [503, 504, 429], attempt_timeout = \"1s\", methods = [\"POST\"] }\n\
         [[route]]\nservice = \"app\"\n\
         [[route]]\npath = \"/once\"\nservice = \"app\"\nretry = \"off\"\n",
    );
    let (told, _) = files.text(&["GET", "http://app/"]);
    let line = "attempts    up to 1 endpoint until one takes the connection; up to 2 attempts in all, after connect_failure, 429, \
                503-504; after pauses of up to 25ms, 250ms at most; as many at a time as 20 % of those in progress, or \
                10; each has 1s until it is answered; POST may be sent twice, too\n";
    assert!(told.contains(line), "{told}");
    let (told, _) = files.text(&["GET", "http://app/once"]);
    assert!(told.contains("takes the connection; one attempt, whatever comes of it\n"), "{told}");
}

#[test]
fn what_is_refused_here_is_told_by_the_exit_code_too() {
    let files = Files::new(TEXT);
    let (told, code) = files.text(&["PUT", "http://shop/admin/x"]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("access      denied with 403, by rule no-admin; noted by seen"), "{told}");
    let closed = Files::new(&TEXT.replacen("name = \"all\"\n", "name = \"all\"\npath = \"/\"\n", 1));
    let (told, code) = closed.text(&["GET", "http://shop/x"]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("route       none: answered with 404 (route.local.no_route)"), "{told}");
    for words in [
        &["GET"][..],
        &["G T", "/"],
        &["GET", "/", "--from", "web"],
        &["GET", "/", "--source", "nowhere"],
        &["GET", "/", "--listener", "none"],
        &["GET", "/", "--port", "none"],
        &["GET", "/", "-H", "x"],
        &["GET", "/", "--unknown"],
    ] {
        let (told, code) = files.text(words);
        assert_eq!(code, 2, "{words:?}: {told}");
    }
    let (told, code) = Files::new("[[listener]]\nadress = 1\n").text(&["GET", "/"]);
    assert!(code == 2 && told.contains("did you mean `address`?"), "{told}");
}

#[test]
fn an_identity_counts_only_where_a_listener_learns_it() {
    let files = Files::new(TEXT);
    let web = "spiffe://mesh.local/ns/shop/sa/web";
    let route = |listener: &str| {
        let told = files.json(&["GET", "http://shop/", "--from", web, "--listener", listener]);
        (
            told["route"]["name"].clone(),
            told["notes"].as_array().unwrap().len(),
            told["listener"]["tls"].clone(),
        )
    };
    assert_eq!(route("mesh"), (json!("web"), 0, json!("permissive")));
    assert_eq!(route("plain"), (json!("all"), 1, json!("off")));
    assert_eq!(route("edge"), (json!("all"), 1, json!("terminate")));
}

#[test]
fn programs_get_the_same_as_json() {
    let files = Files::new(TEXT);
    let told = files.json(&["GET", "http://shop/", "-H", "x-tier: gold", "--port", "15006"]);
    assert_eq!(
        (&told["version"], &told["served"], &told["listener"]["name"]),
        (&json!(1), &json!(true), &json!("mesh"))
    );
    assert_eq!(told["route"]["name"], "gold");
    assert_eq!(told["route"]["match"][1], "match.methods = [\"GET\"]");
    assert!(told["place"].as_str().unwrap().contains("a.toml:"), "{told:#}");
    let shop = &told["services"]["shop"];
    assert_eq!(shop["timeouts"]["response_seconds"], 5.0);
    let second = &shop["endpoints"]["endpoints"][1];
    assert_eq!(
        (&second["address"], &second["weight"], &second["zone"]),
        (&json!("10.0.0.2:80"), &json!(3), &json!("b"))
    );
    assert_eq!(second["state"], "used");
    assert_eq!(
        told["others"][0],
        json!({
            "route": "all", "by": "match", "why": "means it as well, and asks for less in `match`",
        })
    );
    assert_eq!(told["others_left_out"], 1);
}

#[test]
fn of_a_split_all_services_are_told_unless_a_key_decides() {
    let split = TEXT.replacen(
        "name = \"all\"\nservice = \"shop\"\n",
        "name = \"all\"\nsplit = [{ service = \"shop\", weight = 3 }, { service = \"named\" }]\nsticky = { header = \"x-key\" }\n",
        1,
    );
    let files = Files::new(&split);
    let (told, code) = files.text(&["GET", "http://shop/"]);
    assert_eq!(code, 0, "{told}");
    for line in [
        "service     by chance, as it has no field x-key: shop 75 %, named 25 %",
        "timeouts    shop: connect 1s, response 5s",
        "endpoints   named: what shop.default.svc resolves to",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let mut chosen = std::collections::BTreeSet::new();
    for key in 0..50 {
        let told = files.json(&["GET", "http://shop/", "-H", &format!("x-key: {key}")]);
        let name = told["service"]["name"].as_str().unwrap().to_owned();
        let services: Vec<&String> = told["services"].as_object().unwrap().keys().collect();
        assert_eq!(services, [&name]);
        chosen.insert(name);
    }
    assert_eq!(chosen.len(), 2, "keys decide");
}

#[test]
fn probes_and_endpoints_that_drain_are_told() {
    let text = TEXT.replacen(
        "timeouts = { connect",
        "probe = { kind = \"http\", path = \"/up\", statuses = [204, \"300-301\"], start = \"wait\" }\ntimeouts = { connect",
        1,
    );
    let files = Files::new(&text.replacen("weight = 3, zone", "drain = true, weight = 3, zone", 1));
    let (told, _) = files.text(&["GET", "http://shop/"]);
    for line in [
        "probe       GET /up of shop, answered with 204, 300-301, every 10s, or 1s while in doubt; within 1s; out after 3, \
         back after 2; waits for the first",
        "10.0.0.2:80 weight 3 in b draining, by peak-ewma",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let told = files.json(&["GET", "http://shop/"]);
    assert_eq!(told["services"]["shop"]["probe"]["kind"], "http");
    assert_eq!(told["services"]["shop"]["endpoints"]["endpoints"][1]["state"], "draining");
    assert!(Files::new(TEXT).json(&["GET", "http://shop/"])["services"]["shop"]["probe"].is_null());
}

#[test]
fn subsets_zones_priorities_and_keys_are_told() {
    let text = r#"
[zone]
name = "a"
[[listener]]
address = "127.0.0.1:15001"
[[service]]
name = "shop"
endpoints = [
  { address = "10.0.0.1:80", zone = "a", labels = { version = "v1" } },
  { address = "10.0.0.2:80", zone = "b", labels = { version = "v2" } },
  { address = "10.0.0.3:80", priority = 1, labels = { version = "v2" } },
]
slow_start = { window = "30s" }
[[service.subset]]
name = "v1"
labels = { version = "v1" }
[[service.subset]]
name = "v2"
labels = { version = "v2" }
[[service]]
name = "carts"
endpoints = ["10.0.1.1:80"]
balance = "maglev"
hash = [{ header = "x-user" }]
[[route]]
path_prefix = "/new"
service = "shop"
subset = "v2"
[[route]]
path_prefix = "/both"
split = [{ service = "shop", subset = "v1", weight = 3 }, { service = "shop", subset = "v2", weight = 1 }]
[[route]]
path_prefix = "/carts"
service = "carts"
"#;
    let files = Files::new(text);
    for (url, lines) in [
        (
            "http://shop/new",
            &[
                "service     shop subset v2",
                "choice      shop: subset v2 (2 endpoints), this proxy is in zone a, zones.prefer_own = true",
                "slow_start.window = \"30s\"",
                "endpoints   shop: 10.0.0.2:80 in b, 10.0.0.3:80 priority 1, by peak-ewma",
            ][..],
        ),
        (
            "http://shop/both",
            &[
                "service     by chance: shop subset v1 75 %, shop subset v2 25 %",
                "choice      shop: subset v1 (1 endpoint), subset v2 (2 endpoints), this proxy",
                "endpoints   shop: 10.0.0.1:80 in a, 10.0.0.2:80 in b, 10.0.0.3:80 priority 1, by peak-ewma",
            ],
        ),
        (
            "http://shop/carts",
            &[
                "hash = [{ header = \"x-user\" }], consistent.maglev_places = 65537",
                "endpoints   carts: 10.0.1.1:80, by maglev",
            ],
        ),
        ("http://shop/", &["route       none"]),
    ] {
        let (told, _) = files.text(&["GET", url]);
        for line in lines {
            let line = line.replace("shop: ", "").replace("carts: ", "");
            let told = told.replace("shop: ", "").replace("carts: ", "");
            assert!(told.contains(&line), "{line}\n{told}");
        }
    }
    let told = files.json(&["GET", "http://shop/new"]);
    assert_eq!(told["services"]["shop"]["choice"]["subsets"], json!([{ "name": "v2", "endpoints": 2 }]));
    assert_eq!(told["services"]["shop"]["endpoints"]["endpoints"].as_array().unwrap().len(), 2);
}

#[test]
fn two_configurations_are_compared_for_one_request() {
    let (files, other) = (
        Files::new(TEXT),
        Files::new(&TEXT.replace("\"gold\" }", "\"silver\" }").replace("\"5s\"", "\"6s\"")),
    );
    let diff = How { diff: vec![other.file()], ..How::default() };
    let (told, code) = files.ask(&diff, &["GET", "http://shop/", "-H", "x-tier: gold"]);
    assert_eq!(code, 1);
    let lines: Vec<&str> = told.lines().skip(2).collect();
    assert!(lines[0].starts_with("- route       gold: "), "{told}");
    assert!(lines[1].starts_with("+ route       all: "), "{told}");
    assert!(
        lines[2].starts_with("- timeouts ") && lines[3].contains("shop: connect 1s, response 6s"),
        "{told}"
    );
    assert_eq!(lines.len(), 4, "{told}");
    let same = Files::new(TEXT);
    let diff = How { diff: vec![same.file()], json: true, all: false };
    let (told, code) = files.ask(&diff, &["GET", "http://shop/users/7"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["changes"]), (0, &json!([])), "{told:#}");
}

#[test]
fn a_running_proxy_answers_by_what_it_serves_by() {
    let text = |route: &str| {
        format!(
            "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9\"]\n[[route]]\nname = \"{route}\"\nservice = \"app\"\n\
             [[route]]\nname = \"seven\"\nservice = \"app\"\nmatch = {{ headers = {{ x-user = \"7\" }} }}\n"
        )
    };
    let proxy = Proxy::start(Start::text(text("first"))).unwrap();
    let get = |target: &str| {
        let mut stream = TcpStream::connect(proxy.admin().unwrap()).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/explain?url=http://shop/").contains("\nroute       first: "));
    let seven = get("/explain?method=GET&url=http://shop/cart&header=x-user:%207&format=json");
    let (_, body) = seven.split_once("\r\n\r\n").unwrap();
    let told: Value = serde_json::from_str(body).unwrap();
    assert_eq!(told["route"]["name"], "seven", "{told:#}");
    assert!(get("/explain").starts_with("HTTP/1.1 400 "));
    let trace = get("/explain?method=TRACE&url=/x&format=json");
    assert!(
        trace.starts_with("HTTP/1.1 200 ") && trace.contains("head.downstream.method_refused"),
        "{trace}"
    );
    for (query, remedy) in [
        ("format=xml", "write json or text"),
        ("method=GET&method=PUT", "`method` stands there more than once"),
        ("listener=nope", "there is no listener `nope`: there are in"),
    ] {
        let answer = get(&format!("/explain?url=/x&{query}"));
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(remedy), "{answer}");
    }
    proxy.reload(&text("second")).unwrap();
    assert!(get("/explain?url=http://shop/").contains("\nroute       second: "));
    proxy.drain();
    proxy.join();
}

#[test]
fn what_a_route_changes_and_answers_itself_is_told_as_it_would_come_out() {
    let more = r#"
[[route]]
name = "new"
path_prefix = "/old"
split = [{ service = "shop", weight = 9 }, { service = "named", weight = 1 }]
rewrite = { path_prefix = "/new", host = "inner.example" }
request_headers = { set = { x-way = "%{path} by %{route}" }, add = { x-more = "1" }, remove = ["x-gone"] }
response_headers = { set = { x-status = "was %{status}" } }
cors = { origins = ["https://*.shop.example"], methods = ["PUT"], expose = ["x-total"], max_age = "5m" }
mirror = [{ service = "named", percent = 0.5 }]
[[route]]
name = "filled"
path_template = "/of/{user}/{rest=**}"
service = "shop"
rewrite = { path_template = "/v2/{rest}/{user}" }
[[route]]
name = "wished"
path = "/wished"
service = "shop"
timeout = "2s"
retry = { attempts_max = 2 }
caller_may = { attempts_max = 4, timeout_max = "10s" }
[[route]]
name = "away"
path = "/away"
redirect = { scheme = "https", port = 8443, path = "/here" }
[[route]]
name = "stop"
path = "/stop"
respond = { status = 503, body = "not now" }
[[canary]]
name = "next"
route = "new"
baseline = "shop"
canary = "named"
steps = [1, 12.5, 100]
"#;
    let files = Files::new(&format!("{TEXT}{more}"));
    let (told, code) =
        files.text(&["GET", "http://shop/old/x?a=b", "-H", "origin: https://www.shop.example"]);
    assert_eq!(code, 0, "{told}");
    for line in [
        "service     by chance: shop 99 %, named 1 %",
        "canary      next: named takes over from shop by 1, 12.5, 100 %; the shares are those that a proxy begins with",
        "rewrite     goes on as /new/x?a=b, for host inner.example",
        "head        without x-gone, x-way: /old/x by new, one more x-more: 1",
        "response    x-status: was %{status}",
        "mirror      copied, and answers dropped: 0.5 % to named (what shop.default.svc resolves to, by peak-ewma); not with a body of more \
         than 64KiB\n",
        "cors        pages of https://www.shop.example may read the response; access-control-allow-origin: https://www.shop.example; \
         access-control-expose-headers: x-total; vary: origin\n",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let ask =
        ["OPTIONS", "/old/x", "-H", "origin: https://evil.test", "-H", "access-control-request-method: PUT"];
    let told = files.json(&ask);
    assert_eq!(
        (&told["cors"]["preflight"], &told["cors"]["allowed"], &told["served"]),
        (&json!(true), &json!(false), &json!(false)),
        "{told:#}"
    );
    assert_eq!(told["refused"], json!({ "status": 403, "failure": null }));
    let (told, code) = files.text(&ask.map(|word| match word {
        "origin: https://evil.test" => "origin: https://www.shop.example",
        word => word,
    }));
    for line in [
        "answer      by cors, with 204\n",
        "access-control-allow-methods: PUT; access-control-max-age: 300; vary: origin, access-control-request-method, ",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    for word in ["\nservice", "\nendpoints", "\nrewrite", "\nhead ", "\nmirror", "\ncanary", "\ntimeout"] {
        assert!(!told.contains(word), "nothing goes anywhere: {word}\n{told}");
    }
    assert_eq!(code, 0);
    let (told, _) = files.text(&["GET", "http://shop/of/7/a/b?c=d"]);
    assert!(told.contains("rewrite     goes on as /v2/a/b/7?c=d\n"), "{told}");
    let (told, _) = files.text(&["GET", "http://shop/wished"]);
    assert!(told.contains("an attempt's up to what holds for all; this one says nothing\n"), "{told}");
    assert!(told.contains("2s for the whole exchange") && told.contains("up to 2 attempts"), "{told}");
    let says = [
        "-H",
        "x-envoy-upstream-rq-timeout-ms: 7000",
        "-H",
        "x-envoy-max-retries: 5",
        "-H",
        "x-envoy-retry-on: retriable-4xx",
    ];
    let (told, _) = files.text(&[&["GET", "http://shop/wished"][..], &says].concat());
    assert!(told.contains("attempts up to 4, time up to 10s") && told.contains("says is capped\n"), "{told}");
    assert!(told.contains("7s for the whole exchange") && told.contains("up to 4 attempts"), "{told}");
    assert!(told.contains("409"), "{told}");
    let (told, code) = files.text(&["GET", "http://shop/away"]);
    assert!(told.contains("answer      by the route, with 302 to https://shop:8443/here"), "{told}");
    assert!(!told.contains("\ntimeout") && !told.contains("\nendpoints"), "nothing goes anywhere: {told}");
    assert_eq!(code, 0);
    let told = files.json(&["GET", "http://shop/stop"]);
    assert_eq!(
        told["answer"],
        json!({
            "by": "respond", "status": 503, "body_bytes": 7, "body": "not now", "body_sha256": "95643984",
            "fields": ["content-type: text/plain; charset=utf-8"],
        }),
        "{told:#}"
    );
}

#[test]
fn a_host_that_is_rewritten_alone_and_a_value_that_comes_out_empty_are_told_as_what_they_are() {
    let more = r#"
[[route]]
name = "host"
path = "/host"
service = "shop"
rewrite = { host = "app.internal" }
request_headers = { set = { x-id = "%{header.x-none}" }, add = { x-more = "%{header.x-none}" } }
"#;
    let (told, _) = Files::new(&format!("{TEXT}{more}")).text(&["GET", "http://shop/host"]);
    assert!(told.contains("\nrewrite     goes on for host app.internal\n"), "{told}");
    assert!(told.contains("\nhead        without x-id\n"), "{told}");
}

#[test]
fn a_breaker_is_told_where_an_endpoint_may_be_passed_over_for_another() {
    let files = Files::new(&TEXT.replacen(r#", { address = "10.0.0.2:80", weight = 3, zone = "b" }"#, "", 1));
    assert!(!files.text(&["GET", "http://shop/"]).0.contains("\nbreaker"), "there is one");
    assert!(files.text(&["GET", "/users/7"]).0.contains("\nbreaker"), "a name may resolve to several");
    assert!(Files::new(TEXT).text(&["GET", "http://shop/"]).0.contains("\nbreaker"));
}

/// A configuration whose behaviour differs in what each of [`DIFFERENCES`] changes.
const DIFFERENT: &str = r#"
[limits]
body_bytes_max = "1MiB"
mirrored_body_bytes_max = "32KiB"
[[listener]]
address = "127.0.0.1:15001"
[[service]]
name = "app"
endpoints = ["10.0.0.1:80"]
pool = { connections_max = 70 }
[[service]]
name = "copies"
endpoints = ["10.0.0.9:80"]
[[route]]
service = "app"
mirror = [{ service = "copies", percent = 1 }]
[[route]]
name = "said"
path = "/said"
respond = { status = 200, body = "BODY", content_type = "text/html", headers = { x-said = "1" } }
[[route]]
name = "sticky"
path = "/sticky"
split = [{ service = "app" }, { service = "copies" }]
sticky = { set_cookie = { name = "way", ttl = "1h", secure = true, same_site = "strict", path = "/s" } }
[[route]]
name = "pages"
path = "/pages"
service = "app"
cors = { origins = ["https://a.example"], methods = ["PUT"], headers = ["x-a"], expose = ["x-total"], credentials = true, max_age = "5m" }
"#;

/// The target, what is written, and what in its place.
const DIFFERENCES: [(&str, &str, &str); 18] = [
    ("/", "body_bytes_max = \"1MiB\"", "body_bytes_max = \"2MiB\""),
    ("/", "mirrored_body_bytes_max = \"32KiB\"", "mirrored_body_bytes_max = \"16KiB\""),
    ("/", "10.0.0.9:80", "10.0.0.8:80"),
    ("/", "connections_max = 70", "connections_max = 71"),
    ("/said", "BODY\"", "BODZ\""),
    ("/said", "text/html", "text/plain"),
    ("/said", "x-said = \"1\"", "x-said = \"2\""),
    ("/sticky", "ttl = \"1h\"", "ttl = \"2h\""),
    ("/sticky", "secure = true", "secure = false"),
    ("/sticky", "\"strict\"", "\"lax\""),
    ("/sticky", "path = \"/s\"", "path = \"/\""),
    ("/pages", "expose = [\"x-total\"]", "expose = []"),
    ("/pages", "credentials = true", "credentials = false"),
    ("/pages OPTIONS", "methods = [\"PUT\"]", "methods = [\"PATCH\"]"),
    ("/pages OPTIONS", "[\"x-a\"]", "[\"x-b\"]"),
    ("/pages OPTIONS", "max_age = \"5m\"", "max_age = \"6m\""),
    ("/pages OPTIONS", "credentials = true", "credentials = false"),
    ("/pages OPTIONS", "https://a.example", "https://b.example"),
];

#[test]
fn whatever_changes_what_becomes_of_a_request_is_a_difference() {
    let text = DIFFERENT.replace("BODY", &format!("{}BODY", "x".repeat(1000)));
    let files = Files::new(&text);
    for (target, before, after) in DIFFERENCES {
        assert_eq!(text.matches(before).count(), 1, "{before}");
        let other = Files::new(&text.replacen(before, after, 1));
        let mut words = vec!["GET", target, "-H", "origin: https://a.example"];
        if let Some(path) = target.strip_suffix(" OPTIONS") {
            words[..2].copy_from_slice(&["OPTIONS", path]);
            words.extend(["-H", "access-control-request-method: PUT"]);
        }
        let diff = How { diff: vec![other.file()], ..How::default() };
        let (told, code) = files.ask(&diff, &words);
        let lines: Vec<&str> = told.lines().skip(2).collect();
        assert!(code == 1 && !lines.is_empty(), "{before}: {told}");
        for pair in lines.chunks(2) {
            assert_ne!(
                pair.first().map(|line| &line[1..]),
                pair.get(1).map(|line| &line[1..]),
                "{before}: {told}"
            );
        }
    }
}

#[test]
fn what_the_proxy_does_not_take_is_told_as_it_answers_it() {
    let more = "[[route]]\nname = \"pages\"\nhosts = [\"shop.example\"]\npath = \"/pages\"\nservice = \"app\"\ncors = { origins = [\"https://a.example\"] }\n\
                [[route]]\nname = \"stop\"\nhosts = [\"shop.example\"]\npath = \"/stop\"\nrespond = { status = 204 }\n\
                [[authorization]]\nname = \"no-admin\"\naction = \"deny\"\npaths = [\"/admin\"]\nmethods = [\"GET\"]\n";
    let text = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[limits]\nbody_bytes_max = \"1KiB\"\npaths = \"no_dot_segments\"\n[[listener]]\nname = \"in\"\n\
         address = \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9\"]\n[[route]]\nname = \"all\"\n\
         hosts = [\"shop.example\", \"h\"]\nservice = \"app\"\nupgrades = []\n{more}"
    );
    let files = Files::new(&text);
    let proxy = Proxy::start(Start::text(text)).unwrap();
    let inbound = proxy.listener("in").unwrap();
    let (long, large) = (format!("/{}", "a".repeat(17_000)), format!("x-large: {}", "a".repeat(70_000)));
    let host = "host: shop.example";
    let handshake =
        ["upgrade: websocket", "connection: upgrade", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="];
    let preflight = [host, "origin: https://evil.test", "access-control-request-method: PUT"];
    for (method, url, fields, label) in [
        ("TRACE", "/x", &[host][..], "head.downstream.method_refused"),
        ("CONNECT", "h:443", &[], "route.local.method_refused"),
        ("CONNECT", "h", &[], "head.downstream.bad_target"),
        ("CONNECT", "h:443/stop", &[], "head.downstream.bad_target"),
        ("GET", "http://u:p@h/x", &[], "head.downstream.userinfo_in_target"),
        ("GET", "ftp://h/x", &[], "head.downstream.bad_target"),
        ("GET", "/x#f", &[host], "head.downstream.bad_target"),
        ("GET", "*", &[host], "head.downstream.bad_target"),
        ("GET", "/stop/%2e%2e/x", &[host], "head.downstream.ambiguous_path"),
        ("GET", "/", &["host: shop.example:99999"], "head.downstream.bad_host"),
        ("GET", &*long, &[host], "head.downstream.target_too_long"),
        ("GET", "/", &[host, &*large], "head.downstream.head_too_large"),
        ("GET", "/", &[host, "x(y: 1"], "head.downstream.bad_field_name"),
        ("GET", "/", &[host, "expect: much"], "head.downstream.expectation_failed"),
        ("POST", "/", &[host, "content-length: 1025"], "head.downstream.body_too_large"),
        (
            "POST",
            "/",
            &[host, "content-length: 1", "transfer-encoding: chunked"],
            "head.downstream.content_length_and_transfer_encoding",
        ),
        ("GET", "/", &[&[host][..], &handshake].concat(), "route.local.upgrade_refused"),
        ("GET", "/admin", &[host], "authorize.downstream.denied"),
        ("GET", "/", &["host: elsewhere"], "route.local.no_route"),
        ("OPTIONS", "/pages", &preflight, ""),
        ("GET", "/stop", &[host], "served"),
        ("OPTIONS", "*", &[host, "max-forwards: 0"], "served"),
    ] {
        let mut words = vec![method, url];
        fields.iter().for_each(|field| words.extend(["-H", field]));
        let told = files.json(&words);
        let (_, code) = files.text(&words);
        // As it stands there, or as callers send it.
        let mut head = format!("{method} {url} HTTP/1.1\r\n");
        if !fields.iter().any(|field| field.starts_with("host:")) {
            head += "host: h\r\n";
        }
        fields.iter().for_each(|field| head.extend([field, "\r\n"]));
        let mut stream = TcpStream::connect(inbound).unwrap();
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A large head may be reset behind its answer.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let status: u64 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let found = answer.lines().find_map(|line| line.strip_prefix("x-ringmesh-failure: "));
        let name = format!("{method} {:.40} {:.60}", url, fields.concat());
        if label == "served" {
            assert_eq!((code, &told["served"], found), (0, &json!(true), None), "{name}: {answer}");
            assert!(status < 300, "{name}: {answer}");
            continue;
        }
        let label = Some(label).filter(|label| !label.is_empty());
        assert_eq!((code, &told["served"]), (1, &json!(false)), "{name}: {told:#}");
        assert_eq!(told["refused"], json!({ "status": status, "failure": label }), "{name}: {answer}");
        assert_eq!(found, label, "{name}");
    }
    proxy.drain();
    proxy.join();
}

#[test]
fn how_long_an_exchange_may_take_is_told_with_what_its_caller_says() {
    let more = "[[route]]\nname = \"told\"\npath = \"/told\"\nservice = \"shop\"\ntimeout = \"4s\"\ndeadline_header = true\n";
    let files = Files::new(&format!("{TEXT}{more}"));
    let ask = [
        "POST",
        "http://shop/told",
        "-H",
        "X-Envoy-Expected-Rq-Timeout-Ms: 1500",
        "-H",
        "grpc-timeout: 900m",
    ];
    let (told, _) = files.text(&ask);
    assert!(
        told.contains(
            "timeout     1500ms for the whole exchange, by x-envoy-expected-rq-timeout-ms; grpc-timeout changes"
        ),
        "{told}"
    );
    let ask = [&ask[..], &["-H", "content-type: application/grpc"]].concat();
    let told = files.json(&ask);
    assert_eq!(
        told["timeout"],
        json!({
            "exchange_seconds": 0.9, "by": "grpc-timeout",
            "unheard": [{ "field": "x-envoy-expected-rq-timeout-ms", "why": "it is no sooner" }],
            "tells": ["x-envoy-expected-rq-timeout-ms", "grpc-timeout"],
        }),
        "{told:#}"
    );
}

#[test]
fn who_decides_whether_it_is_recorded_is_told() {
    let files =
        Files::new(&format!("{TEXT}[tracing]\nendpoint = \"http://127.0.0.1:4317\"\nsample_percent = 2.5\n"));
    let (told, _) = files.text(&["GET", "http://shop/"]);
    let line = "trace       a new trace; its caller says nothing: 2.5 % are recorded; spans go to http://127.0.0.1:4317";
    assert!(told.contains(line), "{told}");
    let parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let (told, _) = files.text(&["GET", "http://shop/", "-H", parent]);
    let line = "trace       trace 0af7651916cd43dd8448eb211c80319c; its caller says that it is not recorded";
    assert!(told.contains(line), "{told}");
    let told = files.json(&["GET", "http://shop/", "-H", &parent.replace("331-00", "331-01")]);
    assert_eq!(told["trace"]["recorded_percent"], 100.0, "{told}");
    assert!(!Files::new(TEXT).text(&["GET", "http://shop/"]).0.contains("trace "));
}
