//! Limits that several proxies share, as a service counts them: what it is asked, what its answers do, and what becomes of requests that
//! it says nothing of. The service is tonic's, but where it does what tonic never would.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response as Answer};
use ringmesh::authorize::{Action, Rule, TextMatch, Verdict};
use ringmesh::control::{Proxy, Start};
use ringmesh::identity::IdMatch;
use ringmesh::quota::global::{Global, Why};
use ringmesh::quota::messages::{
    Descriptor, DescriptorStatus, Duration, Field, METHOD, RateLimit, Request, Response,
};
use ringmesh::upstream::spec::{EdgeTls, Tls};
use rustls::pki_types::ServerName;
use tonic::codegen::{BoxFuture, Service as Tower};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::server::Connected;
use tonic::{Code, Status};

use crate::support::Watched;
use crate::support::authority::{Authority, TLS13};
use crate::support::client::Client;
use crate::support::http2::{self, Service, call, request};
use crate::support::mesh::{Config, Mesh, Seen};
use crate::support::origin::Origin;

type Said = Pin<Box<dyn Future<Output = Result<Response, Status>> + Send>>;

/// A service that counts as a script says.
#[derive(Clone)]
struct Counting(Arc<dyn Fn(Request) -> Said + Send + Sync>);

impl NamedService for Counting {
    const NAME: &'static str = "envoy.service.ratelimit.v3.RateLimitService";
}

impl UnaryService<Request> for Counting {
    type Response = Response;
    type Future = BoxFuture<tonic::Response<Response>, Status>;

    fn call(&mut self, request: tonic::Request<Request>) -> Self::Future {
        let said = (self.0)(request.into_inner());
        Box::pin(async { said.await.map(tonic::Response::new) })
    }
}

impl Tower<http::Request<tonic::body::Body>> for Counting {
    type Response = Answer<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let counting = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("another method").into_http());
            }
            let codec = tonic_prost::ProstCodec::<Response, Request>::default();
            Ok(Grpc::new(codec).unary(counting, request).await)
        })
    }
}

#[derive(Default)]
struct Notes {
    asked: Vec<Request>,
    connections: usize,
    /// The leaves of those who showed one.
    peers: Vec<Vec<u8>>,
    /// Calls that ended before they were answered.
    left: usize,
}

/// A running one, and what it was asked.
struct Limits {
    service: Service,
    notes: Arc<Watched<Notes>>,
}

impl Limits {
    fn new<F: Future<Output = Result<Response, Status>> + Send + 'static>(
        answer: impl Fn(&Request) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::noting(Arc::default(), answer)
    }

    fn noting<F: Future<Output = Result<Response, Status>> + Send + 'static>(
        notes: Arc<Watched<Notes>>,
        answer: impl Fn(&Request) -> F + Send + Sync + 'static,
    ) -> Self {
        let (asked, connections) = (Arc::clone(&notes), Arc::clone(&notes));
        let counting = Counting(Arc::new(move |request| {
            let said = answer(&request);
            asked.change(|notes| notes.asked.push(request));
            Box::pin(said)
        }));
        let service = Service::by_connection(move |stream, _| {
            connections.change(|notes| notes.connections += 1);
            serve(counting.clone(), stream)
        });
        Self { service, notes }
    }

    /// As [`Limits::by_tenant`], by TLS. It notes whom it was asked by.
    fn encrypted(mut server: rustls::ServerConfig) -> Self {
        server.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let Self { notes, .. } = Self::by_tenant();
        let counting = Counting({
            let notes = Arc::clone(&notes);
            Arc::new(move |request| {
                let said = said_by_tenant(&request);
                notes.change(|notes| notes.asked.push(request));
                Box::pin(std::future::ready(Ok(said)))
            })
        });
        let theirs = Arc::clone(&notes);
        let service = Service::by_connection(move |stream, _| {
            let (acceptor, counting, notes) = (acceptor.clone(), counting.clone(), Arc::clone(&theirs));
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let peer = stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
                notes.change(|notes| {
                    notes.connections += 1;
                    notes.peers.extend(peer);
                });
                // tonic takes what it knows how to ask for its peer.
                let (mut near, far) = tokio::io::duplex(64 * 1024);
                tokio::task::spawn_local(async move {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut near).await;
                });
                serve(counting, far).await;
            }
        });
        Self { service, notes }
    }

    /// One that lets pass what is of no tenant called `greedy`.
    fn by_tenant() -> Self {
        Self::new(|request| std::future::ready(Ok(said_by_tenant(request))))
    }

    /// One that never answers, and notes when nobody waits any more.
    fn silent() -> Self {
        struct Left(Arc<Watched<Notes>>);
        impl Drop for Left {
            fn drop(&mut self) {
                self.0.change(|notes| notes.left += 1);
            }
        }
        let notes = Arc::new(Watched::<Notes>::default());
        let theirs = Arc::clone(&notes);
        Self::noting(notes, move |_| {
            let left = Left(Arc::clone(&theirs));
            async move {
                let _left = left;
                std::future::pending().await
            }
        })
    }

    fn asked(&self) -> Vec<Request> {
        self.notes.lock().asked.clone()
    }
}

async fn serve<S>(counting: Counting, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Send + Unpin + 'static,
{
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
    let server = tonic::transport::Server::builder().add_service(counting);
    let _ = server.serve_with_incoming(incoming).await;
}

fn said_by_tenant(request: &Request) -> Response {
    let is_greedy = |of: &Descriptor| of.entries.iter().any(|entry| entry.value == "greedy");
    let statuses: Vec<_> = request.descriptors.iter().map(|of| status(is_greedy(of))).collect();
    let is_over = request.descriptors.iter().any(is_greedy);
    let overall_code = if is_over { Response::OVER_LIMIT } else { Response::OK };
    Response {
        overall_code,
        statuses,
        response_fields: vec![field("x-counted", "yes"), field("content-length", "0")],
        request_fields: vec![field("x-tier", "gold"), field("connection", "close")],
    }
}

fn status(is_over: bool) -> DescriptorStatus {
    DescriptorStatus {
        code: if is_over { Response::OVER_LIMIT } else { Response::OK },
        current_limit: Some(RateLimit { requests_per_unit: 5, unit: 2, unit_multiplier: None }),
        limit_remaining: u32::from(!is_over),
        duration_until_reset: Some(Duration { seconds: 41, nanos: 5 }),
    }
}

fn field(name: &str, value: &str) -> Field {
    Field { key: name.into(), value: value.into(), raw_value: Vec::new() }
}

/// Long enough on any machine: only tests of lateness shorten it.
const LIMIT: &str = "[[rate_limit]]\nname = \"per-tenant\"\nservice = \"limits\"\ndomain = \"shop\"\ntimeout = \"60s\"\n\
    by = [{ header = \"x-tenant\", key = \"tenant\" }]\n";

fn asking(origin: &Origin, endpoint: &str, tables: &str) -> Config {
    let routes = format!("[[route]]\nname = \"all\"\nservice = \"app\"\n{tables}");
    Config::new(&[origin]).service_at("limits", &[endpoint], "protocol = \"http2\"").routes(&routes).logged()
}

fn before(origin: &Origin, limits: &Limits, tables: &str) -> Mesh {
    asking(origin, &limits.service.endpoint, tables).start()
}

fn get(client: &mut Client, tenant: &str) -> crate::support::wire::Message {
    client.send(format!("GET /a HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\n\r\n"));
    client.response()
}

fn of_tenant(tenant: &'static str) -> http::Request<()> {
    let mut asked = request("POST", "/a");
    asked.headers_mut().insert("x-tenant", HeaderValue::from_static(tenant));
    asked
}

fn entries(of: &Descriptor) -> Vec<(&str, &str)> {
    of.entries.iter().map(|entry| (&*entry.key, &*entry.value)).collect()
}

fn words(seen: &Seen, key: &str) -> Vec<String> {
    let lines = seen.lines();
    lines.iter().filter_map(|line| Some(line.get(key)?.as_str()?.to_owned())).collect()
}

fn requests(origin: Origin) -> Vec<crate::support::wire::Message> {
    origin.settle().iter().flat_map(|recorded| recorded.requests()).collect()
}

#[test]
fn a_request_that_may_pass_goes_on_with_what_the_service_adds_and_its_response_too() {
    let (origin, limits) = (Origin::plain(), Limits::by_tenant());
    let mesh = before(&origin, &limits, LIMIT);
    let mut client = mesh.client();
    for _ in 0..2 {
        let passed = get(&mut client, "a");
        assert_eq!((passed.status(), passed.one("x-counted").as_deref()), (200, Some("yes")));
        assert!(passed.one("ratelimit").is_none());
    }
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    let passed = call(mesh.address, of_tenant("a"), b"some", None).unwrap().head;
    assert_eq!(
        (passed.status.as_u16(), &passed.headers["x-counted"]),
        (200, &HeaderValue::from_static("yes"))
    );
    drop(client);
    let seen = mesh.finish();
    assert_eq!((words(&seen, "rate_limit"), words(&seen, "rate_limit_failure")), (vec![], vec![]));
    let asked = limits.asked();
    assert_eq!(asked.len(), 4);
    for request in asked {
        assert_eq!((&*request.domain, request.hits_addend, request.descriptors.len()), ("shop", 1, 1));
        assert_eq!(entries(&request.descriptors[0]), [("tenant", "a")]);
    }
    assert_eq!(limits.notes.lock().connections, 1, "calls share a connection");
    let came = requests(origin);
    assert_eq!(came.len(), 4);
    for request in came {
        assert_eq!((request.one("x-tier").as_deref(), request.one("connection")), (Some("gold"), None));
    }
}

#[test]
fn who_comes_too_soon_is_told_so_and_what_holds_and_the_connection_lives() {
    let (origin, limits) = (Origin::plain(), Limits::by_tenant());
    let mesh = before(&origin, &limits, LIMIT);
    let mut client = mesh.client();
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nX-Tenant: greedy\r\nContent-Length: 4\r\n\r\nbody");
    let refused = client.response();
    assert_eq!(refused.start, "HTTP/1.1 429 Too Many Requests");
    let wanted = [
        ("x-ringmesh-failure", "quota.downstream.rate_limited"),
        ("ratelimit-policy", "\"per-tenant\";q=5;w=60"),
        ("ratelimit", "\"per-tenant\";r=0;t=42"),
        ("retry-after", "42"),
        ("x-envoy-ratelimited", "true"),
        ("x-counted", "yes"),
    ];
    for (name, value) in wanted {
        assert_eq!(refused.one(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(get(&mut client, "a").status(), 200);
    let refused = call(mesh.address, of_tenant("greedy"), b"some", None).unwrap().head;
    assert_eq!(refused.status, 429);
    for (name, value) in wanted {
        assert_eq!(refused.headers[name], value, "{name}");
    }
    let mut grpc = of_tenant("greedy");
    grpc.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let refused = call(mesh.address, grpc, b"some", None).unwrap().head;
    assert_eq!(
        (refused.status.as_u16(), &refused.headers["grpc-status"]),
        (200, &HeaderValue::from_static("8"))
    );
    assert_eq!(refused.headers["retry-after"], "42");
    drop(client);
    let seen = mesh.finish();
    assert_eq!(seen.failures["quota.downstream.rate_limited"], 3);
    assert_eq!(words(&seen, "rate_limit"), ["per-tenant"; 3]);
    assert_eq!(requests(origin).len(), 1, "the service has seen nothing of those");
}

#[test]
fn limits_of_one_service_and_domain_are_asked_by_one_call_and_others_after_it() {
    let (origin, limits) = (Origin::plain(), Limits::by_tenant());
    let tables = format!(
        "{LIMIT}[[rate_limit]]\nname = \"other\"\nservice = \"limits\"\ndomain = \"elsewhere\"\ntimeout = \"60s\"\nby = [{{ header = \"x-tenant\" }}]\n\
         [[rate_limit]]\nname = \"dear\"\nservice = \"limits\"\ndomain = \"shop\"\ntimeout = \"60s\"\nhits = 3\n\
         by = [{{ value = \"checkout\" }}, \"route\", \"source\", \"identity\"]\n\
         [[rate_limit]]\nname = \"elsewhere\"\nservice = \"limits\"\ndomain = \"shop\"\nby = [\"route\"]\nroutes = [\"none\"]\n\
         [[route]]\nname = \"none\"\npath = \"/none\"\nservice = \"app\"\n"
    );
    let mesh = before(&origin, &limits, &tables);
    let mut client = mesh.client();
    assert_eq!(get(&mut client, "a").status(), 200);
    let asked = limits.asked();
    let domains: Vec<_> = asked.iter().map(|request| &*request.domain).collect();
    assert_eq!(domains, ["shop", "elsewhere"]);
    let shop = &asked[0].descriptors;
    assert_eq!(entries(&shop[0]), [("tenant", "a")]);
    assert_eq!(
        entries(&shop[1]),
        [("generic_key", "checkout"), ("route", "all"), ("remote_address", "127.0.0.1"), ("identity", "")]
    );
    let hits: Vec<_> = shop.iter().map(|of| of.hits_addend.map(|hits| hits.value)).collect();
    assert_eq!((shop.len(), hits), (2, vec![Some(1), Some(3)]));
    assert_eq!(entries(&asked[1].descriptors[0]), [("x-tenant", "a")]);
    // Once it is refused nobody else is asked.
    assert_eq!(get(&mut client, "greedy").status(), 429);
    assert_eq!(limits.asked().len(), 3);
    // Without the field its limits are not asked, and the others are.
    client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    let asked = limits.asked();
    assert_eq!((asked.len(), asked[3].descriptors.len(), asked[3].hits_addend), (4, 1, 3));
    drop(client);
    mesh.finish();
}

#[test]
fn who_is_denied_or_met_a_limit_of_this_proxy_is_not_asked_about() {
    let (origin, limits) = (Origin::plain(), Limits::by_tenant());
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
    let tables = format!(
        "[[route]]\nname = \"here\"\npath = \"/here\"\nrespond = {{ status = 204 }}\n{LIMIT}\
         [[rate_limit]]\nname = \"local\"\nrate = 1\nper = \"1h\"\nburst = 1\nroutes = [\"all\"]\n"
    );
    let mesh =
        asking(&origin, &limits.service.endpoint, &tables).authorization(vec![deny], Verdict::Allow).start();
    let mut client = mesh.client();
    let mut status = |path: &str, tenant: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\n\r\n"));
        client.response().status()
    };
    assert_eq!((status("/secret", "a"), status("/a", "a"), status("/a", "a")), (403, 200, 429));
    assert_eq!(limits.asked().len(), 1);
    // What the route answers itself is limited like the rest.
    assert_eq!((status("/here", "a"), status("/here", "greedy")), (204, 429));
    assert_eq!(limits.asked().len(), 3);
    let mut of = of_tenant("a");
    *of.uri_mut() = "http://app.test/secret".parse().unwrap();
    assert_eq!(call(mesh.address, of, b"", None).unwrap().head.status, 403);
    assert_eq!(limits.asked().len(), 3);
    mesh.finish();
}

/// What a service may do that is no answer, what is told of it, and whether it is a failure of the call.
fn failing() -> Vec<(&'static str, bool, Service)> {
    fn answer(body: &'static [u8], status: u16, grpc_status: &'static str) -> Service {
        Service::scripted(move |request, mut respond| async move {
            http2::read(request).await;
            let head = Answer::builder().status(status).header("content-type", "application/grpc");
            let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
            let mut trailers = HeaderMap::new();
            if !grpc_status.is_empty() {
                trailers.insert("grpc-status", HeaderValue::from_static(grpc_status));
            }
            http2::send(&mut stream, Bytes::from_static(body), Some(trailers)).await;
        })
    }
    vec![
        ("timeout", true, Limits::silent().service),
        (
            "status",
            false,
            Limits::new(|_| std::future::ready(Err(Status::new(Code::Unavailable, "not now")))).service,
        ),
        (
            "status",
            false,
            Limits::new(|_| std::future::ready(Err(Status::new(Code::PermissionDenied, "no")))).service,
        ),
        // An answer, but of another kind of service.
        ("status", false, answer(b"\0\0\0\0\x02\x08\x01", 503, "0")),
        // One without its end.
        ("status", false, answer(b"\0\0\0\0\x02\x08\x01", 200, "")),
        ("garbage", false, answer(b"", 200, "0")),
        ("garbage", false, answer(b"\0\0\0\0\0", 200, "0")),
        ("garbage", false, answer(b"<html>", 200, "0")),
        // Compressed, which was not offered; two messages; more than it says; an unknown code.
        ("garbage", false, answer(b"\x01\0\0\0\x02\x08\x01", 200, "0")),
        ("garbage", false, answer(b"\0\0\0\0\x02\x08\x01\0\0\0\0\x02\x08\x01", 200, "0")),
        ("garbage", false, answer(b"\0\0\0\0\x01\x08\x01", 200, "0")),
        ("garbage", false, answer(b"\0\0\0\0\x02\x08\x07", 200, "0")),
        // Longer than any answer is read.
        ("garbage", true, answer(&[b'x'; 100_000], 200, "0")),
        (
            "broken",
            true,
            Service::scripted(|request, mut respond| async move {
                http2::read(request).await;
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }),
        ),
        // Connections that are closed at once.
        ("broken", true, Service::by_connection(|stream, _| async move { drop(stream) })),
    ]
}

#[test]
fn without_an_answer_the_limit_says_what_becomes_of_a_request() {
    let origin = Origin::plain();
    for (why, calls_fail, service) in failing() {
        for (on_failure, status) in [("pass", 200), ("refuse", 500)] {
            let late = if why == "timeout" { "1ms" } else { "60s" };
            let tables = LIMIT.replace("60s", late) + &format!("on_failure = \"{on_failure}\"\n");
            let mesh = asking(&origin, &service.endpoint, &tables).start();
            let mut client = mesh.client();
            let answered = get(&mut client, "a");
            assert_eq!(answered.status(), status, "{why} {on_failure}");
            assert_eq!(get(&mut client, "a").status(), status, "{why} {on_failure}: the connection lives");
            let by_http2 = call(mesh.address, of_tenant("a"), b"some", None).unwrap().head;
            assert_eq!(by_http2.status, status, "{why} {on_failure}");
            let mut grpc = of_tenant("a");
            grpc.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let grpc = call(mesh.address, grpc, b"some", None).unwrap().head;
            drop(client);
            let seen = mesh.finish();
            let whys = words(&seen, "rate_limit_failure");
            assert!(whys.len() == 4 && whys.iter().all(|said| said == why), "{why} {on_failure}: {whys:?}");
            // Besides those of callers, which end well or are refused.
            let of_calls: u64 = seen.failures.values().sum::<u64>() - seen.of_cause("rate_limit_unknown");
            // The service knows the time that a call has, too, and may be sooner to say that it is over.
            let least = if calls_fail && why != "timeout" { 4 } else { 0 };
            let most = if calls_fail { 4 } else { 0 };
            assert!((least..=most).contains(&of_calls), "{why} {on_failure}: {:?}", seen.failures);
            let named = words(&seen, "rate_limit");
            if on_failure == "refuse" {
                let field = answered.one("x-ringmesh-failure");
                assert_eq!(field.as_deref(), Some("quota.local.rate_limit_unknown"));
                assert_eq!(grpc.headers["grpc-status"], "14");
                assert_eq!(seen.failures["quota.local.rate_limit_unknown"], 4);
                assert_eq!(named, ["per-tenant"; 4]);
                assert!(answered.one("ratelimit").is_none() && answered.one("x-envoy-ratelimited").is_none());
            } else {
                assert!(named.is_empty() && seen.of_cause("rate_limit_unknown") == 0, "{why}");
            }
        }
    }
}

/// Of a mesh that begins with it: its limits as they are counted.
fn counted(config: Config) -> (Config, Arc<Watched<Vec<Arc<Global>>>>) {
    let globals = Arc::new(Watched::<Vec<Arc<Global>>>::default());
    let theirs = Arc::clone(&globals);
    let config = config.change(move |snapshot| theirs.change(|globals| *globals = snapshot.globals.to_vec()));
    (config, globals)
}

fn failed(global: &Global, why: Why) -> u64 {
    global.counts.failed[why as usize].load(Ordering::Relaxed)
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over_and_without_another_nothing_is_waited_for() {
    let origin = Origin::plain();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (config, globals) = counted(asking(&origin, &gone, LIMIT));
    let mesh = config.start();
    // Many at once, who wait for the same connection.
    let mut clients: Vec<_> = (0..50).map(|_| mesh.client()).collect();
    for client in &mut clients {
        client.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Tenant: greedy\r\n\r\n");
    }
    assert!(clients.iter_mut().all(|client| client.response().status() == 200));
    assert_eq!(failed(&globals.lock()[0], Why::Unreachable), 50);
    drop(clients);
    mesh.finish();
    let limits = Limits::by_tenant();
    // Whichever is chosen, and whatever is known of it: were the other not chosen next, one of these requests would choose the one that is
    // gone four times in a row (but for a chance of (15/16)^300).
    let keys = "protocol = \"http2\"\nbalance = \"random\"\nbreaker = { enabled = false }\n";
    let config = Config::new(&[&origin]).service_at("limits", &[&gone, &limits.service.endpoint], keys);
    let routes = format!("[[route]]\nname = \"all\"\nservice = \"app\"\n{LIMIT}");
    let (config, globals) = counted(config.routes(&routes));
    let mesh = config.start();
    let mut client = mesh.client();
    for _ in 0..300 {
        assert_eq!(get(&mut client, "greedy").status(), 429);
    }
    drop(client);
    assert_eq!(Why::ALL.map(|why| failed(&globals.lock()[0], why)), [0; Why::ALL.len()]);
    mesh.finish();
}

#[test]
fn a_question_that_waits_for_a_connection_wanted_by_another_fails_as_that_one_failed() {
    let origin = Origin::plain();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\nname = \"all\"\nservice = \"app\"\n\
         [[service]]\nname = \"gone\"\nendpoints = [\"{gone}\"]\nprotocol = \"http2\"\nbreaker = {{ enabled = false }}\n\
         [[rate_limit]]\nname = \"lost\"\nservice = \"gone\"\ndomain = \"shop\"\nby = [\"route\"]\ntimeout = \"60s\"\n",
        origin.endpoint
    );
    let proxy = Proxy::start(Start::text(text)).unwrap();
    let address = proxy.listener("in").unwrap();
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    assert!(clients.iter_mut().all(|client| client.response().status() == 200));
    // Shards tell of them once a second.
    let lines = loop {
        let mut admin = Client::connect(proxy.admin().unwrap());
        admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        let metrics = String::from_utf8(admin.response().body).unwrap();
        let failures =
            metrics.lines().filter(|line| line.starts_with("ringmesh_failures_total{service=\"gone\""));
        let lines: Vec<String> = failures.filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect();
        let count = |line: &String| line.rsplit_once(' ').and_then(|(_, n)| n.parse::<u32>().ok()).unwrap();
        if lines.iter().map(count).sum::<u32>() >= 50 {
            break lines;
        }
    };
    let refused =
        "ringmesh_failures_total{service=\"gone\",stage=\"connect\",side=\"upstream\",cause=\"refused\"} 50";
    assert_eq!(lines, [refused]);
    proxy.stop();
}

#[test]
fn the_service_is_asked_by_tls_and_only_if_it_is_who_it_should_be() {
    const PROXY: &str = "spiffe://mesh.local/ns/shop/sa/proxy";
    const LIMITS: &str = "spiffe://mesh.local/ns/shop/sa/limits";
    let authority = Authority::new("mesh");
    let (ours, theirs) = (authority.workload(PROXY), authority.workload(LIMITS));
    let mesh_of = |id: &str| Tls::Mesh(vec![IdMatch::parse(id).unwrap()]);
    let edge = |name: &'static str| {
        let mut client = authority.host_client();
        client.alpn_protocols = vec![b"h2".to_vec()];
        Tls::Edge(EdgeTls {
            client: Arc::new(client),
            server_name: ServerName::try_from(name).unwrap(),
            digest: [1; 32],
        })
    };
    for (tls, peer, cause) in [
        (mesh_of(LIMITS), Some(&ours.chain[0]), None),
        (mesh_of("spiffe://mesh.local/ns/shop/*"), Some(&ours.chain[0]), None),
        (mesh_of("spiffe://mesh.local/ns/shop/sa/other"), None, Some("handshake.upstream.wrong_identity")),
        (edge("limits.test"), None, None),
        (edge("other.test"), None, Some("handshake.upstream.wrong_identity")),
    ] {
        let limits = Limits::encrypted(match &tls {
            Tls::Edge(_) => authority.host("limits.test").server(),
            _ => authority.mutual_server(&theirs, TLS13),
        });
        let origin = Origin::plain();
        let credentials = authority.credentials(PROXY, &ours, &[b"h2"]);
        let tables = format!("{LIMIT}on_failure = \"refuse\"\n");
        let config = asking(&origin, &limits.service.endpoint, &tables).change(move |snapshot| {
            let id = snapshot.service_named("limits").unwrap();
            Arc::make_mut(&mut snapshot.services[id as usize]).tls = tls.clone();
            snapshot.identity = Some(Arc::clone(&credentials));
        });
        let mesh = config.start();
        let mut client = mesh.client();
        let by_http2 = |tenant| call(mesh.address, of_tenant(tenant), b"some", None).unwrap().head.status;
        let answered: Vec<_> = ["a", "greedy"].map(|tenant| get(&mut client, tenant).status()).into();
        let answered = [answered, vec![by_http2("a").as_u16(), by_http2("greedy").as_u16()]].concat();
        drop(client);
        let seen = mesh.finish();
        let notes = limits.notes.lock();
        match cause {
            None => {
                assert_eq!(answered, [200, 429, 200, 429]);
                assert_eq!((notes.asked.len(), notes.connections), (4, 1));
                assert_eq!(notes.peers, Vec::from_iter(peer.map(|leaf| leaf.to_vec())), "who asks");
            }
            Some(cause) => {
                assert_eq!((answered, notes.asked.len()), (vec![500; 4], 0), "{cause}");
                assert_eq!(words(&seen, "rate_limit_failure"), ["unreachable"; 4]);
                assert!(seen.failures.contains_key(cause), "{cause}: {:?}", seen.failures);
            }
        }
    }
}

#[test]
fn a_request_whose_time_is_over_ends_by_its_own_deadline() {
    let (origin, limits) = (Origin::plain(), Limits::silent());
    let config =
        Config::new(&[&origin]).service_at("limits", &[&limits.service.endpoint], "protocol = \"http2\"");
    let (config, globals) = counted(
        config
            .routes(&format!("[[route]]\nname = \"all\"\nservice = \"app\"\ntimeout = \"20ms\"\n{LIMIT}"))
            .logged(),
    );
    let mesh = config.start();
    let mut client = mesh.client();
    let late = get(&mut client, "a");
    assert_eq!(
        (late.status(), late.one("x-ringmesh-failure").as_deref()),
        (504, Some("quota.upstream.timeout"))
    );
    assert_eq!(call(mesh.address, of_tenant("a"), b"some", None).unwrap().head.status, 504);
    drop(client);
    let seen = mesh.finish();
    assert_eq!(seen.failures["quota.upstream.timeout"], 2);
    assert_eq!(failed(&globals.lock()[0], Why::Timeout), 0, "no failure of who was asked");
    assert!(requests(origin).is_empty());
}

#[test]
fn a_caller_that_leaves_meanwhile_leaves_nothing_behind() {
    let (origin, limits) = (Origin::plain(), Limits::silent());
    let mesh = before(&origin, &limits, LIMIT);
    let wait = |what: &str, of: fn(&Notes) -> usize, count: usize| {
        limits.notes.wait(what, |notes| (of(notes) == count).then_some(()));
    };
    let mut client = mesh.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\n\r\n");
    wait("a call", |notes| notes.asked.len(), 1);
    drop(client);
    wait("the call is ended", |notes| notes.left, 1);
    let mut raw = http2::Raw::connect(mesh.address);
    raw.head(0x5, 1, &http2::fields("GET", "/a", &[("x-tenant", "a")]));
    wait("another call", |notes| notes.asked.len(), 2);
    raw.frame(http2::RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    wait("that is ended", |notes| notes.left, 2);
    raw.finish();
    assert_eq!(limits.notes.lock().connections, 1, "the connection is of use to others");
    let seen = mesh.finish();
    let failures: Vec<_> = seen.failures.iter().map(|(failure, count)| (&**failure, *count)).collect();
    let of_calls = ("response.downstream.closed_early", 2);
    let of_callers = [("quota.downstream.closed_early", 1), ("quota.downstream.http2_stream_reset", 1)];
    assert_eq!(failures, [&of_callers[..], &[of_calls]].concat());
    assert!(requests(origin).is_empty());
}

#[test]
fn a_reload_that_takes_a_limit_out_ends_the_questions_and_those_that_are_out_are_answered() {
    let gate = Arc::new(Watched::<bool>::default());
    let (opened, origin) = (Arc::clone(&gate), Origin::plain());
    let limits = Limits::new(move |_| {
        let opened = Arc::clone(&opened);
        async move {
            while !*opened.lock() {
                tokio::task::yield_now().await;
            }
            Ok(Response { overall_code: Response::OVER_LIMIT, ..Response::default() })
        }
    });
    let config = asking(&origin, &limits.service.endpoint, LIMIT);
    let (config, globals) = counted(config);
    let mut mesh = config.start();
    let mut client = mesh.client();
    client.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\n\r\n");
    limits.notes.wait("a call", |notes| (notes.asked.len() == 1).then_some(()));
    let first = Arc::clone(&globals.lock()[0]);
    mesh.reload(&config.clone().routes("[[route]]\nname = \"all\"\nservice = \"app\"\n"));
    assert!(globals.lock().is_empty());
    gate.change(|opened| *opened = true);
    let refused = client.response();
    // Nothing was said of what holds.
    let told = |name: &str| refused.one(name);
    assert_eq!((refused.status(), told("ratelimit").as_deref()), (429, Some("\"per-tenant\";r=0")));
    assert_eq!((told("retry-after"), told("ratelimit-policy")), (None, None));
    assert_eq!(get(&mut client, "a").status(), 200);
    mesh.reload(&config);
    assert_eq!(get(&mut client, "a").status(), 429);
    assert_eq!(limits.asked().len(), 2);
    drop(client);
    mesh.reload(&config.clone().routes(&format!("[[route]]\nname = \"more\"\npath = \"/more\"\nservice = \"app\"\n[[route]]\nname = \"all\"\nservice = \"app\"\n{LIMIT}")));
    // What was counted goes on where the limit has not changed.
    assert_eq!(globals.lock()[0].counts.refused.load(Ordering::Relaxed), 1);
    assert_eq!(first.counts.refused.load(Ordering::Relaxed), 1);
    mesh.finish();
}

#[test]
fn what_the_service_may_be_given_at_a_time_holds_for_questions_too() {
    let (origin, limits) = (Origin::plain(), Limits::silent());
    let keys = "protocol = \"http2\"\ncaps = { exchanges_max = 1, pending_max = 0 }\n";
    let config = Config::new(&[&origin]).service_at("limits", &[&limits.service.endpoint], keys);
    let routes = format!("[[route]]\nname = \"all\"\nservice = \"app\"\n{LIMIT}");
    let mesh = config.routes(&routes).logged().start();
    let mut first = mesh.client();
    first.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\n\r\n");
    limits.notes.wait("a call", |notes| (notes.asked.len() == 1).then_some(()));
    assert_eq!(get(&mut mesh.client(), "a").status(), 200);
    // The place is given back with the call.
    drop(first);
    limits.notes.wait("its end", |notes| (notes.left == 1).then_some(()));
    let mut third = mesh.client();
    third.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Tenant: a\r\n\r\n");
    limits.notes.wait("another call", |notes| (notes.asked.len() == 2).then_some(()));
    drop(third);
    limits.notes.wait("its end", |notes| (notes.left == 2).then_some(()));
    let seen = mesh.finish();
    assert_eq!(words(&seen, "rate_limit_failure"), ["not_admitted"]);
}

#[test]
fn a_tunnel_is_asked_about_like_any_request() {
    let (origin, limits) = (Origin::plain(), Limits::by_tenant());
    let tables = format!("upgrades = [\"websocket\", \"connect\"]\n{LIMIT}");
    let mesh = before(&origin, &limits, &tables);
    for head in [
        "GET /a HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "CONNECT a:1 HTTP/1.1",
    ] {
        let mut client = mesh.client();
        client.send(format!("{head}\r\nHost: a:1\r\nX-Tenant: greedy\r\n\r\n"));
        assert_eq!(client.response().status(), 429, "{head}");
    }
    assert_eq!(limits.asked().len(), 2);
    mesh.finish();
    assert!(requests(origin).is_empty());
}

#[test]
fn metrics_and_settings_tell_of_it() {
    let (origin, limits) = (Origin::plain(), Limits::by_tenant());
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let text = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\nname = \"all\"\nservice = \"app\"\n\
         [[service]]\nname = \"limits\"\nendpoints = [\"{}\"]\nprotocol = \"http2\"\n\
         [[service]]\nname = \"gone\"\nendpoints = [\"{gone}\"]\nprotocol = \"http2\"\n{LIMIT}\
         [[rate_limit]]\nname = \"lost\"\nservice = \"gone\"\ndomain = \"shop\"\nby = [\"route\"]\ntimeout = \"60s\"\n",
        origin.endpoint, limits.service.endpoint
    );
    let proxy = Proxy::start(Start::text(text)).unwrap();
    let mut client = Client::connect(proxy.listener("in").unwrap());
    assert_eq!(["a", "a", "greedy"].map(|tenant| get(&mut client, tenant).status()), [200, 200, 429]);
    let page = |path: &str| {
        let mut admin = Client::connect(proxy.admin().unwrap());
        admin.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        String::from_utf8(admin.response().body).unwrap()
    };
    let metrics = page("/metrics");
    for line in [
        "ringmesh_rate_limit_requests_total{limit=\"per-tenant\",outcome=\"passed\"} 2",
        "ringmesh_rate_limit_requests_total{limit=\"per-tenant\",outcome=\"refused\"} 1",
        "ringmesh_rate_limit_requests_total{limit=\"lost\",outcome=\"passed\"} 0",
        "ringmesh_rate_limit_failures_total{limit=\"lost\",why=\"unreachable\",outcome=\"passed\"} 2",
        "ringmesh_rate_limit_failures_total{limit=\"per-tenant\",why=\"garbage\",outcome=\"passed\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    // The calls themselves are exchanges of the services that they go to; shards tell of them once a second.
    let metrics = loop {
        let metrics = page("/metrics");
        if metrics.contains("ringmesh_exchanges_total{service=\"gone\"") {
            break metrics;
        }
    };
    for line in [
        "ringmesh_exchanges_total{service=\"limits\",class=\"2xx\"} 3",
        "ringmesh_grpc_calls_total{service=\"limits\",grpc_status=\"0\"} 3",
        "ringmesh_grpc_request_messages_total{service=\"limits\"} 3",
        "ringmesh_grpc_response_messages_total{service=\"limits\"} 3",
        "ringmesh_whole_seconds_count{service=\"limits\"} 3",
        "ringmesh_first_byte_seconds_count{service=\"limits\"} 3",
        "ringmesh_exchanges_total{service=\"gone\",class=\"5xx\"} 2",
        "ringmesh_failures_total{service=\"gone\",stage=\"connect\",side=\"upstream\",cause=\"refused\"} ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let settings = page("/config");
    for (key, value) in [
        ("service", "\"limits\""),
        ("domain", "\"shop\""),
        ("by", "[{ header = \"x-tenant\", key = \"tenant\" }]"),
        ("timeout", "\"1m\""),
        ("on_failure", "\"pass\""),
    ] {
        let line = settings.lines().find(|line| line.starts_with(&format!("rate_limit.per-tenant.{key} ")));
        assert!(line.is_some_and(|line| line.contains(&format!(" {value} "))), "{key}: {line:?}");
    }
    let explained = page("/explain?method=GET&url=http://a/a&header=x-tenant:7");
    let told = "shared      per-tenant: limits is asked about tenant=7 of shop, and without an answer in 1m it passes; lost: gone is asked about route=all of shop,";
    assert!(explained.contains(told), "{explained}");
    let explained = page("/explain?method=GET&url=http://a/a");
    assert!(explained.contains("per-tenant: not asked, because it needs x-tenant"), "{explained}");
    let explained: serde_json::Value =
        serde_json::from_str(&page("/explain?method=GET&url=http://a/a&header=x-tenant:7&format=json"))
            .unwrap();
    let shown = explained.to_string();
    let told = "\"asked\":true,\"descriptor\":[{\"key\":\"tenant\",\"value\":\"7\"}],\"domain\":\"shop\"";
    assert!(shown.contains(told), "{shown}");
    drop(client);
    proxy.drain();
    proxy.join();
}

// --- configuration ---

fn told(limit: &str) -> Vec<String> {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:1\"\n[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9\"]\n[[route]]\nname = \"all\"\n\
         service = \"app\"\n[[service]]\nname = \"limits\"\nendpoints = [\"127.0.0.1:8\"]\nprotocol = \"http2\"\n{limit}"
    );
    match ringmesh::config::parse("test.toml", &text, &|_| None) {
        Ok(loaded) => loaded.warnings.lines().map(|line| format!("warning: {line}")).collect(),
        Err(report) => report.lines().collect(),
    }
}

#[test]
fn mistakes_are_told_with_their_remedy() {
    let global = "[[rate_limit]]\nservice = \"limits\"\ndomain = \"shop\"\nby = [\"route\"]\n";
    assert_eq!(told(global), [""; 0], "a service that is asked is used");
    for (keys, expected) in [
        ("rate = 5", "`rate` cannot be said here: the service of this limit counts"),
        ("per = \"1m\"", "`per` cannot be said here"),
        ("burst = 5", "`burst` cannot be said here"),
        ("keys_max = 5", "take it out and write it in the configuration of that service"),
        ("hits = 0", "rate_limit.hits is 0, out of its bounds; write a number from 1 to 1000000"),
        ("timeout = \"2m\"", "rate_limit.timeout is \"2m\", out of its bounds; the most is \"1m\""),
        ("timeout = 20", "rate_limit.timeout needs a unit; write \"20ms\""),
        ("on_failure = \"deny\"", "`deny` is not known; write \"pass\" or \"refuse\""),
        ("routes = [\"al\"]", "there is no route `al`; did you mean \"all\"?"),
        ("domian = \"x\"", "unknown key `domian` in [[rate_limit]]; did you mean `domain`?"),
    ] {
        let lines = told(&format!("{global}{keys}\n"));
        assert!(lines.len() == 1 && lines[0].contains(expected), "{keys}: {lines:#?}");
    }
    for (limit, expected) in [
        (
            "service = \"limits\"\nby = [\"route\"]",
            "a rate limit that a service counts needs `domain`; add `domain = \"shop\"`",
        ),
        ("service = \"limits\"\ndomain = \"shop\"", "a rate limit that a service counts needs `by`"),
        ("service = \"limits\"\ndomain = \"\"\nby = [\"route\"]", "rate_limit.domain: `` is not a word"),
        (
            "service = \"limit\"\ndomain = \"shop\"\nby = [\"route\"]",
            "there is no service `limit`; did you mean \"limits\"?",
        ),
        (
            "service = \"app\"\ndomain = \"shop\"\nby = [\"route\"]",
            "service `app` is not said to speak HTTP/2",
        ),
        ("service = \"limits\"\ndomain = \"shop\"\nby = []", "rate_limit.by is empty"),
        ("service = \"limits\"\ndomain = \"shop\"\nby = [{}]", "such an entry needs `header` or `value`"),
        (
            "service = \"limits\"\ndomain = \"shop\"\nby = [{ header = \"a\", value = \"b\" }]",
            "either `header` or `value`",
        ),
        (
            "service = \"limits\"\ndomain = \"shop\"\nby = [{ header = \"a b\" }]",
            "cannot stand in the name of a field",
        ),
        (
            "service = \"limits\"\ndomain = \"shop\"\nby = [{ value = \"b\", key = \"\" }]",
            "rate_limit.by.key: `` is not a word",
        ),
        (
            "service = \"limits\"\ndomain = \"shop\"\nby = [\"tenant\"]",
            "`tenant` is not known; write \"route\", \"identity\"",
        ),
        ("rate = 5\ndomain = \"shop\"", "`domain` is of limits that a service counts; name that service"),
        ("rate = 5\non_failure = \"pass\"", "`on_failure` is of limits that a service counts"),
        (
            "rate = 5\nby = [{ header = \"a\", key = \"b\" }]",
            "`key` is for a service that counts, and this limit has none",
        ),
    ] {
        let lines = told(&format!("[[rate_limit]]\n{limit}\n"));
        assert!(lines.iter().any(|line| line.contains(expected)), "{limit}: {lines:#?}");
    }
    let of_all = global.repeat(32);
    assert_eq!(told(&of_all), [""; 0]);
    let expected = "more than 32 limits that services count concern one route";
    for more in [global.to_owned(), format!("{global}routes = [\"all\"]\n")] {
        let lines = told(&format!("{of_all}{more}"));
        assert!(lines.len() == 1 && lines[0].contains(expected), "{lines:#?}");
    }
}
