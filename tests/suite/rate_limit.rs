//! How many requests there may be in a time: who passes, what those who come too soon are told, what is counted, and what several
//! shards do together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use ringmesh::authorize::{Action, Rule, TextMatch, Verdict};
use ringmesh::control::{Proxy, Start};

use crate::support::Watched;
use crate::support::client::Client;
use crate::support::http2::{call, request};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, ok};

/// Nothing comes back within a test.
const TWO_AN_HOUR: &str = "[[route]]\nname = \"all\"\nservice = \"app\"\n[[route]]\nname = \"free\"\npath_prefix = \"/free\"\n\
    service = \"app\"\n[[rate_limit]]\nname = \"per-tenant\"\nrate = 1\nper = \"1h\"\nburst = 2\nroutes = [\"all\"]\n\
    by = [{ header = \"x-tenant\" }]\n";

fn before(origin: &Origin, tables: &str) -> Mesh {
    Config::new(&[origin]).routes(tables).logged().start()
}

fn asking(client: &mut Client, target: &str, tenant: &str) -> u16 {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\n\r\n"));
    client.response().status()
}

#[test]
fn who_comes_too_soon_is_told_so_and_when_to_come_again_and_the_connection_lives() {
    let origin = Origin::plain();
    let mesh = before(&origin, TWO_AN_HOUR);
    let mut client = mesh.client();
    assert_eq!([asking(&mut client, "/a", "x"), asking(&mut client, "/a", "x")], [200, 200]);
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nX-Tenant: x\r\nContent-Length: 4\r\n\r\nbody");
    let refused = client.response();
    assert_eq!(refused.start, "HTTP/1.1 429 Too Many Requests");
    let field = |name: &str| refused.one(name).unwrap();
    assert_eq!(field("x-ringmesh-failure"), "quota.downstream.rate_limited");
    assert_eq!(field("ratelimit-policy"), "\"per-tenant\";q=2;w=7200");
    let wait: u64 = field("retry-after").parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
    assert_eq!(field("ratelimit"), format!("\"per-tenant\";r=0;t={wait}"));
    assert_eq!(field("x-envoy-ratelimited"), "true");
    // Others, and what is not limited, are not concerned; neither is the connection.
    assert_eq!(asking(&mut client, "/a", "y"), 200);
    assert_eq!(asking(&mut client, "/free", "x"), 200);
    assert_eq!(asking(&mut client, "/a", "x"), 429);
    drop(client);
    let seen = mesh.finish();
    assert_eq!(seen.failures["quota.downstream.rate_limited"], 2);
    let limited = seen.lines().iter().filter(|line| line["rate_limit"] == "per-tenant").count();
    assert_eq!(limited, 2);
    assert!(seen.lines().iter().all(|line| (line["status"] == 429) == line.get("rate_limit").is_some()));
    let asked: Vec<_> = origin.settle().iter().flat_map(|recorded| recorded.requests()).collect();
    assert_eq!(asked.len(), 4, "the service has seen nothing of those");
}

#[test]
fn by_http2_it_is_the_same_and_a_call_of_grpc_is_told_in_its_own_way() {
    let origin = Origin::plain();
    let mesh = before(&origin, TWO_AN_HOUR);
    let asking = |tenant: &'static str, kind: Option<&'static str>| {
        let mut asked = request("POST", "/a");
        asked.headers_mut().insert("x-tenant", HeaderValue::from_static(tenant));
        if let Some(kind) = kind {
            asked.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        }
        call(mesh.address, asked, b"some", None).unwrap()
    };
    assert_eq!([asking("x", None).head.status, asking("x", None).head.status], [200, 200]);
    let refused = asking("x", None).head;
    assert_eq!(refused.status, 429);
    let field = |name: &str| refused.headers[name].to_str().unwrap().to_owned();
    assert_eq!(field("x-ringmesh-failure"), "quota.downstream.rate_limited");
    assert_eq!(field("ratelimit-policy"), "\"per-tenant\";q=2;w=7200");
    assert_eq!(field("ratelimit"), format!("\"per-tenant\";r=0;t={}", field("retry-after")));
    assert_eq!(asking("y", None).head.status, 200);
    let grpc = asking("x", Some("application/grpc")).head;
    assert_eq!((grpc.status.as_u16(), &grpc.headers["grpc-status"]), (200, &HeaderValue::from_static("8")));
    assert!(grpc.headers.contains_key("retry-after"));
    let seen = mesh.finish();
    assert_eq!(seen.failures["quota.downstream.rate_limited"], 2);
    assert_eq!(seen.lines().iter().filter(|line| line["rate_limit"] == "per-tenant").count(), 2);
}

#[test]
fn who_is_denied_takes_nothing_and_a_retry_takes_nothing_more() {
    // The first answer of each request is a failure that is worth another attempt.
    let asked = AtomicUsize::new(0);
    let origin = Origin::answering(move |request| match asked.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec(),
        _ => ok(request),
    });
    let deny = Rule {
        name: "no-secrets".into(),
        action: Action::Deny,
        listeners: vec![],
        from: vec![],
        sources: vec![],
        ports: vec![],
        methods: vec![],
        paths: vec![TextMatch::Exact("/secret".into())],
        headers: vec![],
    };
    let mesh = Config::default()
        .service("app", &[&origin], "retry = { backoff_base = \"0s\" }\n")
        .routes(TWO_AN_HOUR)
        .authorization(vec![deny], Verdict::Allow)
        .start();
    let mut client = mesh.client();
    for _ in 0..10 {
        assert_eq!(asking(&mut client, "/secret", "x"), 403);
    }
    assert_eq!([(); 3].map(|()| asking(&mut client, "/a", "x")), [200, 200, 429]);
    drop(client);
    assert_eq!(mesh.finish().retries.succeeded, 2);
}

/// Four shards, a hundred callers, one bucket: not one more than there may be, nor one fewer.
#[test]
fn what_shards_let_pass_together_is_exact() {
    const CALLERS: usize = 100;
    let origin = Origin::plain();
    let text = format!(
        "shards = 4\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\nname = \"all\"\nservice = \"app\"\n\
         [[rate_limit]]\nname = \"all\"\nrate = 1\nper = \"24h\"\nburst = 33\nby = [\"source\", \"route\"]\n",
        origin.endpoint
    );
    let proxy = Proxy::start(Start::text(text)).unwrap();
    let address = proxy.listener("in").unwrap();
    let served = Arc::new(Watched::<(usize, usize)>::default());
    for _ in 0..CALLERS {
        let served = Arc::clone(&served);
        std::thread::spawn(move || {
            let mut client = Client::connect(address);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let status = client.response().status();
            assert!(matches!(status, 200 | 429), "{status}");
            served.change(|(all, passed)| {
                *all += 1;
                *passed += usize::from(status == 200);
            });
        });
    }
    let passed = served.wait("all callers", |(all, passed)| (*all == CALLERS).then_some(*passed));
    assert_eq!(passed, 33);
    proxy.drain();
    proxy.join();
}

#[test]
fn what_was_taken_is_remembered_over_a_reload_unless_the_limit_changes() {
    let origin = Origin::plain();
    let config = Config::new(&[&origin]).routes(TWO_AN_HOUR);
    let mut mesh = config.start();
    let mut client = mesh.client();
    assert_eq!([asking(&mut client, "/a", "x"), asking(&mut client, "/a", "x")], [200, 200]);
    mesh.reload(&config.clone().routes(&format!(
        "[[route]]\nname = \"new\"\npath_prefix = \"/new\"\nservice = \"app\"\n{TWO_AN_HOUR}"
    )));
    assert_eq!(asking(&mut client, "/a", "x"), 429);
    mesh.reload(&config.routes(&TWO_AN_HOUR.replace("burst = 2", "burst = 3")));
    assert_eq!(asking(&mut client, "/a", "x"), 200);
    drop(client);
    mesh.finish();
}
