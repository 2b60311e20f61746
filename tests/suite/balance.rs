//! Which endpoint a request goes to: by a key, within a subset, by priority and zone, for callers by HTTP/1.1 and HTTP/2 and
//! services that speak either. Distributions are shown by simulation (tests/simulation.rs).

use std::net::SocketAddr;

use crate::support::http2::{self, Service, call};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;

/// Services that answer with their number.
fn origins(count: usize) -> Vec<Origin> {
    let origin = |n: usize| {
        Origin::answering(move |_| format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{n}").into_bytes())
    };
    (0..count).map(origin).collect()
}

/// The same, which speak HTTP/2.
fn services(count: usize) -> Vec<Service> {
    let service = |n: usize| {
        Service::scripted(move |_, mut respond| async move {
            let response = http::Response::builder().status(200).body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            http2::send(&mut stream, n.to_string().into(), None).await;
        })
    };
    (0..count).map(service).collect()
}

fn endpoints(origins: &[Origin]) -> Vec<&str> {
    origins.iter().map(|origin| origin.endpoint.as_str()).collect()
}

/// Who answered, with which status, and what cookie was set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    by: String,
    cookie: Option<String>,
}

fn by_http1(mesh: &Mesh, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut client = mesh.client();
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    let response = client.response();
    Answer { status: response.status(), by: response.text(), cookie: response.one("set-cookie") }
}

fn by_http2(mesh: &Mesh, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = http2::request("GET", path);
    for (name, value) in fields {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let response = call(mesh.address, request, b"", None).unwrap();
    let cookies: Vec<_> = response.head.headers.get_all("set-cookie").iter().collect();
    assert!(cookies.len() <= 1, "{cookies:?}");
    Answer {
        status: response.head.status.as_u16(),
        by: String::from_utf8(response.body).unwrap(),
        cookie: cookies.first().map(|cookie| cookie.to_str().unwrap().to_owned()),
    }
}

type Ask = fn(&Mesh, &str, &[(&str, &str)]) -> Answer;
const BOTH: [Ask; 2] = [by_http1, by_http2];

#[test]
fn a_key_leads_to_one_endpoint_by_either_http_through_any_proxy() {
    let origins = origins(5);
    let backward: Vec<&str> = endpoints(&origins).into_iter().rev().collect();
    for balance in ["ring-hash", "maglev"] {
        let keys = format!(
            "balance = {balance:?}\nhash = [{{ header = \"x-user\", terminal = true }}, {{ query = \"user\" }}]\n"
        );
        let one = Config::default().service_at("app", &endpoints(&origins), &keys).start();
        let other = Config::default().service_at("app", &backward, &keys).start();
        let mut met = std::collections::BTreeSet::new();
        for user in 0..24 {
            let user = user.to_string();
            let field = [("x-user", user.as_str())];
            let first = by_http1(&one, "/?user=not-asked", &field);
            assert_eq!((first.status, first.cookie.as_deref()), (200, None));
            for _ in 0..2 {
                assert_eq!(by_http1(&one, "/", &field), first, "{balance} {user}");
                assert_eq!(by_http2(&one, "/", &field), first, "{balance} {user}");
                assert_eq!(by_http1(&other, "/a", &field).by, first.by, "{balance} {user}");
            }
            // The same value from elsewhere is the same key.
            for ask in BOTH {
                assert_eq!(ask(&other, &format!("/?a=b&user={user}"), &[]).by, first.by, "{balance} {user}");
            }
            met.insert(first.by);
        }
        // 24 users miss three of five with a chance of 10 × (2/5)²⁴ < 10⁻⁸; but ports are random, and with them the parts.
        assert!(met.len() >= 3, "{balance}: {met:?}");
        one.finish();
        other.finish();
    }
}

#[test]
fn without_a_key_a_request_goes_anywhere() {
    let origins = origins(4);
    let keys = "balance = \"maglev\"\nhash = [{ header = \"x-user\" }]\n";
    let mesh = Config::default().service_at("app", &endpoints(&origins), keys).start();
    for ask in BOTH {
        let met: std::collections::BTreeSet<_> = (0..40).map(|_| ask(&mesh, "/", &[]).by).collect();
        // 40 requests miss one of four with a chance of 4 × (3/4)⁴⁰ = 4 × 10⁻⁵, two with 6 × 2⁻⁴⁰.
        assert!(met.len() >= 3, "{met:?}");
    }
    mesh.finish();
}

#[test]
fn a_cookie_is_set_once_and_leads_back_through_all_four_translations() {
    let origins = origins(4);
    let services = services(4);
    let by_h2: Vec<&str> = services.iter().map(|service| service.endpoint.as_str()).collect();
    for (endpoints, protocol) in [(endpoints(&origins), "http1"), (by_h2, "http2")] {
        let keys = format!(
            "balance = \"ring-hash\"\nprotocol = {protocol:?}\nhash = [{{ cookie = \"sid\", ttl = \"2h\", path = \"/shop\" }}]\n"
        );
        let mesh = Config::default().service_at("app", &endpoints, &keys).start();
        for ask in BOTH {
            for _ in 0..8 {
                let first = ask(&mesh, "/", &[("cookie", "other=1")]);
                let set = first.cookie.unwrap_or_else(|| panic!("{protocol}: no cookie is set"));
                let (pair, attributes) = set.split_once("; ").unwrap();
                assert_eq!(attributes, "Path=/shop; Max-Age=7200; HttpOnly");
                assert!(pair.strip_prefix("sid=").is_some_and(|value| value.len() == 16), "{pair}");
                for again in BOTH {
                    let cookies = format!("other=1; {pair}");
                    let back = again(&mesh, "/", &[("cookie", &cookies)]);
                    assert_eq!((back.by, back.cookie), (first.by.clone(), None), "{protocol} {pair}");
                }
            }
        }
        mesh.finish();
    }
}

#[test]
fn a_cookie_of_our_own_is_set_although_the_route_takes_out_those_of_the_service() {
    let origins = origins(2);
    let services = services(2);
    let by_h2: Vec<&str> = services.iter().map(|service| service.endpoint.as_str()).collect();
    for (endpoints, protocol) in [(endpoints(&origins), "http1"), (by_h2, "http2")] {
        let keys = format!(
            "balance = \"ring-hash\"\nprotocol = {protocol:?}\nhash = [{{ cookie = \"sid\", ttl = \"2h\" }}]\n"
        );
        let mesh = Config::default()
            .service_at("app", &endpoints, &keys)
            .routes("[[route]]\nservice = \"app\"\nresponse_headers = { remove = [\"set-cookie\"] }\n")
            .start();
        for (ask, caller) in BOTH.into_iter().zip(["http1", "http2"]) {
            assert!(ask(&mesh, "/", &[]).cookie.is_some(), "{caller} to {protocol}");
        }
        mesh.finish();
    }
}

#[test]
fn an_endpoint_that_is_gone_hands_its_keys_to_the_same_others() {
    let origins = origins(3);
    // Nobody listens there.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone_at: SocketAddr = gone.local_addr().unwrap();
    drop(gone);
    let gone_at = gone_at.to_string();
    let mut all = endpoints(&origins);
    all.push(&gone_at);
    for balance in ["ring-hash", "maglev"] {
        let keys = format!("balance = {balance:?}\nhash = [{{ header = \"x-user\" }}]\n");
        let mesh = Config::default().service_at("app", &all, &keys).start();
        let ask = |ask: Ask, user: usize| ask(&mesh, "/", &[("x-user", &user.to_string())]);
        let first: Vec<Answer> = (0..20).map(|user| ask(by_http1, user)).collect();
        assert!(first.iter().all(|answer| answer.status == 200), "{first:?}");
        for (user, first) in first.iter().enumerate() {
            assert_eq!(ask(by_http2, user), *first, "{balance}: user {user}");
        }
        mesh.finish();
    }
}

#[test]
fn a_subset_is_what_its_route_goes_to() {
    let origins = origins(3);
    let labelled: Vec<String> = origins
        .iter()
        .zip(["v1", "v1", "v2"])
        .map(|(origin, version)| {
            format!("{{ address = {:?}, labels = {{ version = {version:?} }} }}", origin.endpoint)
        })
        .collect();
    let labelled: Vec<&str> = labelled.iter().map(String::as_str).collect();
    for balance in ["peak-ewma", "round-robin", "random", "least-request"] {
        let keys = format!(
            "balance = {balance:?}\n[[service.subset]]\nname = \"v1\"\nlabels = {{ version = \"v1\" }}\n[[service.subset]]\nname = \"v2\"\nlabels = \
             {{ version = \"v2\" }}\n[[service.subset]]\nname = \"v3\"\nlabels = {{ version = \"v3\" }}\n[[service.subset]]\nname = \"v4\"\nlabels = {{ \
             version = \"v4\" }}\nfallback = \"v2\"\n[[service.subset]]\nname = \"v5\"\nlabels = {{ version = \"v5\" }}\nfallback = \"any\"\n"
        );
        let routes: String = (1..=5)
            .map(|n| format!("[[route]]\npath_prefix = \"/v{n}\"\nservice = \"app\"\nsubset = \"v{n}\"\n"))
            .collect();
        let routes = routes + "[[route]]\nservice = \"app\"\n";
        let mesh = Config::default().service_at("app", &labelled, &keys).routes(&routes).start();
        for ask in BOTH {
            let met = |path: &str| -> std::collections::BTreeSet<String> {
                (0..30)
                    .map(|_| {
                        let answer = ask(&mesh, path, &[]);
                        assert_eq!(answer.status, 200, "{path}");
                        answer.by
                    })
                    .collect()
            };
            // 30 requests miss one of two with a chance of 2⁻²⁹, and one of three with 3 × (2/3)³⁰ = 1.6 × 10⁻⁵: so two
            // are enough of those. By peak EWMA the slower of two is met at times only.
            let v1 = met("/v1");
            assert!(v1.iter().all(|by| by == "0" || by == "1"), "{balance}: {v1:?}");
            assert!(balance == "peak-ewma" || v1.len() == 2, "{balance}: {v1:?}");
            for path in ["/v2", "/v4"] {
                assert_eq!(met(path).into_iter().collect::<Vec<_>>(), ["2"], "{balance} {path}");
            }
            for path in ["/", "/v5"] {
                assert!(met(path).len() >= 2, "{balance} {path}");
            }
            assert_eq!(ask(&mesh, "/v3", &[]).status, 503);
        }
        let seen = mesh.finish();
        assert_eq!(seen.failures["balance.upstream.no_endpoint"], 2, "{:?}", seen.failures);
    }
}

#[test]
fn the_next_priority_stands_in_for_one_that_is_away_and_gives_back() {
    let origins = origins(2);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone_at = gone.local_addr().unwrap().to_string();
    drop(gone);
    for (first, expected) in [(&origins[0].endpoint, "0"), (&gone_at, "1")] {
        let endpoints = [first.clone(), format!("{{ address = {:?}, priority = 1 }}", origins[1].endpoint)];
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        for balance in ["peak-ewma", "round-robin", "random", "least-request"] {
            let keys = format!("balance = {balance:?}\n");
            let mesh = Config::default().service_at("app", &endpoints, &keys).start();
            for ask in BOTH {
                for _ in 0..20 {
                    let answer = ask(&mesh, "/", &[]);
                    assert_eq!((answer.status, answer.by.as_str()), (200, expected), "{balance}");
                }
            }
            mesh.finish();
        }
    }
}

#[test]
fn the_own_zone_is_used_where_it_has_its_share() {
    let origins = origins(6);
    let placed: Vec<String> = origins
        .iter()
        .enumerate()
        .map(|(n, origin)| {
            format!("{{ address = {:?}, zone = {:?} }}", origin.endpoint, ["a", "b", "c"][n % 3])
        })
        .collect();
    let placed: Vec<&str> = placed.iter().map(String::as_str).collect();
    let routes = "[zone]\nname = \"b\"\n[[route]]\nservice = \"app\"\n";
    let met = |keys: &str| -> std::collections::BTreeSet<String> {
        let mesh = Config::default().service_at("app", &placed, keys).routes(routes).start();
        let met = BOTH.iter().flat_map(|ask| (0..20).map(|_| ask(&mesh, "/", &[]).by).collect::<Vec<_>>());
        let met = met.collect();
        mesh.finish();
        met
    };
    assert_eq!(met("balance = \"round-robin\"").into_iter().collect::<Vec<_>>(), ["1", "4"]);
    assert_eq!(met("balance = \"round-robin\"\nzones = { prefer_own = false }").len(), 6);
    assert_eq!(met("balance = \"round-robin\"\nzones = { endpoints_min = 7 }").len(), 6);
}

#[test]
fn a_reload_of_subsets_takes_effect_with_the_next_request() {
    let origins = origins(2);
    let labelled: Vec<String> = origins
        .iter()
        .zip(["v1", "v2"])
        .map(|(origin, version)| {
            format!("{{ address = {:?}, labels = {{ version = {version:?} }} }}", origin.endpoint)
        })
        .collect();
    let labelled: Vec<&str> = labelled.iter().map(String::as_str).collect();
    let config = |version: &str| {
        let keys = format!("[[service.subset]]\nname = \"live\"\nlabels = {{ version = {version:?} }}\n");
        let routes = "[[route]]\nservice = \"app\"\nsubset = \"live\"\n";
        Config::default().service_at("app", &labelled, &keys).routes(routes)
    };
    let mut mesh = config("v1").start();
    for (version, expected) in [("v1", "0"), ("v2", "1"), ("v1", "0")] {
        mesh.reload(&config(version));
        for ask in BOTH {
            for _ in 0..5 {
                assert_eq!(ask(&mesh, "/", &[]).by, expected, "{version}");
            }
        }
    }
    mesh.finish();
}

#[test]
fn a_split_goes_to_subsets_of_one_service() {
    let origins = origins(2);
    let labelled: Vec<String> = origins
        .iter()
        .zip(["v1", "v2"])
        .map(|(origin, version)| {
            format!("{{ address = {:?}, labels = {{ version = {version:?} }} }}", origin.endpoint)
        })
        .collect();
    let labelled: Vec<&str> = labelled.iter().map(String::as_str).collect();
    let keys = "[[service.subset]]\nname = \"v1\"\nlabels = { version = \"v1\" }\n[[service.subset]]\nname = \"v2\"\nlabels = { version = \
                \"v2\" }\n";
    let routes = "[[route]]\nsplit = [{ service = \"app\", subset = \"v1\", weight = 0 }, { service = \"app\", subset = \"v2\" }]\n[[route]]\npath_prefix = \
                  \"/sticky\"\nsplit = [{ service = \"app\", subset = \"v1\" }, { service = \"app\", subset = \"v2\" }]\nsticky = { header = \"x-user\" }\n";
    let mesh = Config::default().service_at("app", &labelled, keys).routes(routes).start();
    for ask in BOTH {
        for _ in 0..10 {
            assert_eq!(ask(&mesh, "/", &[]).by, "1");
        }
    }
    // A user stays with a version, and versions have their users: of 30 all with one is 2⁻²⁹.
    let mut met = std::collections::BTreeSet::new();
    for user in 0..30 {
        let user = user.to_string();
        let by = by_http1(&mesh, "/sticky", &[("x-user", &user)]).by;
        assert_eq!(by_http2(&mesh, "/sticky", &[("x-user", &user)]).by, by);
        met.insert(by);
    }
    assert_eq!(met.len(), 2);
    mesh.finish();
}
