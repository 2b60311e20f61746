//! A whole proxy and a collector: what arrives there and what is said of who sends it, what becomes of spans while it is away, busy or
//! unwilling, and that traffic does not notice.

use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use ringmesh::control::{Proxy, Start};
use tonic::{Code, Status};

use crate::support::GUARD;
use crate::support::authority::Authority;
use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::mesh::until;
use crate::support::origin::Origin;
use crate::support::spans::{Collector, Span, only, read_http};

/// Everything to this service, recorded, with these keys of `[tracing]`.
fn text(app: &Origin, endpoint: &str, keys: &str) -> String {
    format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[tracing]\nendpoint = \"{endpoint}\"\nsample_percent = 100\n{keys}\n\
         [[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\n\
         name = \"all\"\nservice = \"app\"\n",
        app.endpoint
    )
}

fn start(app: &Origin, to: SocketAddr, keys: &str) -> Proxy {
    Proxy::start(Start::text(text(app, &format!("http://{to}"), keys))).unwrap()
}

fn ask(proxy: &Proxy, count: usize) {
    let mut client = Client::connect(proxy.listener("in").unwrap());
    for n in 0..count {
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.response().status(), 200);
    }
}

/// The value of a metric with these labels; 0 while there is none.
fn metric(proxy: &Proxy, name: &str) -> u64 {
    let mut client = Client::connect(proxy.admin().unwrap());
    client.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let page = client.response().text();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("ringmesh_{name} ")));
    line.map_or(0, |value| value.trim().parse::<f64>().unwrap() as u64)
}

fn wait_metric(proxy: &Proxy, name: &str, enough: impl Fn(u64) -> bool) -> u64 {
    let began = Instant::now();
    loop {
        let value = metric(proxy, name);
        if enough(value) {
            return value;
        }
        assert!(began.elapsed() < GUARD, "{name} is {value}");
        std::thread::yield_now();
    }
}

#[test]
fn spans_arrive_with_who_sent_them() {
    let (app, collector) = (Origin::plain(), Collector::plain());
    let keys = "service_name = \"shop\"\nattributes = { \"deployment.environment.name\" = \"test\" }\nheaders = { x-key = \"k\" }";
    let proxy = start(&app, collector.address, keys);
    ask(&proxy, 3);
    let spans = collector.wait_spans(6);
    let servers: Vec<&Span> = spans.iter().filter(|span| span.kind == "server").collect();
    assert_eq!(servers.iter().map(|span| span.of("url.path")).collect::<Vec<_>>(), ["/0", "/1", "/2"]);
    {
        let got = collector.got.lock();
        assert_eq!(got.resource["service.name"], "shop");
        assert_eq!(got.resource["deployment.environment.name"], "test");
        assert_eq!(got.resource["service.instance.id"].len(), 36);
        assert_eq!((&*got.metadata["x-key"], &*got.metadata["grpc-timeout"]), ("k", "10000m"));
    }
    wait_metric(&proxy, "spans_exported_total{collector=\"otlp\"}", |n| n == 6);
    assert_eq!(metric(&proxy, "spans_waiting"), 0);
    let mut admin = Client::connect(proxy.admin().unwrap());
    admin.send("GET /config HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let config = admin.response().text();
    assert!(config.contains("tracing.sample_percent") && config.contains("x-key"), "{config}");
    assert!(!config.contains("\\\"k\\\"") && config.contains("(not shown)"), "{config}");

    // What was made last leaves before the end.
    ask(&proxy, 1);
    proxy.drain();
    proxy.join();
    assert_eq!(collector.wait_spans(8).len(), 8);
}

#[test]
fn spans_arrive_by_http_as_well_and_encrypted() {
    let app = Origin::plain();
    let answer = |_: &crate::support::wire::Message| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec();
    let collector = Origin::answering(answer);
    let endpoint = format!("http://{}/otlp", collector.endpoint);
    let proxy = Proxy::start(Start::text(text(&app, &endpoint, "protocol = \"http\""))).unwrap();
    ask(&proxy, 1);
    let request = collector.wait_requests(1).remove(0);
    assert_eq!(request.start, "POST /otlp/v1/traces HTTP/1.1");
    assert_eq!(request.one("content-type").unwrap(), "application/x-protobuf");
    let got = read_http(&request.body);
    assert_eq!(
        (only(&got.spans, "server").of("url.path"), &*got.resource["service.name"]),
        ("/0", "ringmesh")
    );
    proxy.drain();
    proxy.join();

    let authority = Authority::new("collector");
    let folder = Folder::new();
    let ca = folder.write("ca.pem", &authority.pem());
    let collector = Origin::tls(authority.host("localhost").server(), move |visit| {
        while let Some(request) = visit.request() {
            visit.send(answer(&request));
        }
    });
    let (_, port) = collector.endpoint.rsplit_once(':').unwrap();
    let keys = format!("protocol = \"http\"\nca = \"{}\"", ca.display());
    let proxy = Proxy::start(Start::text(text(&app, &format!("https://localhost:{port}"), &keys))).unwrap();
    ask(&proxy, 1);
    let request = collector.wait_requests(1).remove(0);
    assert_eq!(only(&read_http(&request.body).spans, "client").of("http.response.status_code"), "200");
    proxy.drain();
    proxy.join();
}

#[test]
fn while_the_collector_is_away_spans_are_kept_then_dropped_and_traffic_does_not_notice() {
    let app = Origin::plain();
    // Bound, and nobody accepts and answers; closed in a moment, and then there is nobody.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let proxy = start(&app, address, "waiting_bytes_max = \"128KiB\"");
    ask(&proxy, 5);
    wait_metric(&proxy, "span_export_failures_total{collector=\"otlp\"}", |n| n > 0);
    assert!(metric(&proxy, "spans_waiting") > 0);
    // More than the shard and control can keep: 1 MiB, and a little.
    let mut asked = 5;
    while metric(&proxy, "spans_dropped_total{reason=\"full\"}") == 0 {
        ask(&proxy, 500);
        asked += 500;
        assert!(asked < 100_000, "nothing is dropped");
    }
    assert_eq!(metric(&proxy, "spans_exported_total{collector=\"otlp\"}"), 0);

    // It is back: what was kept arrives, the first of all among it, and what comes now.
    let again = TcpListener::bind(address).unwrap();
    let collector = Collector::on(again, |_| Ok(ExportTraceServiceResponse::default()));
    let spans = collector.wait_spans(100);
    assert!(spans.iter().any(|span| span.of("url.path") == "/0"));
    wait_metric(&proxy, "spans_waiting", |n| n == 0);
    let before = collector.got.lock().spans.len();
    ask(&proxy, 1);
    collector.wait_spans(before + 2);
    let dropped = metric(&proxy, "spans_dropped_total{reason=\"full\"}");
    let exported = wait_metric(&proxy, "spans_exported_total{collector=\"otlp\"}", |n| {
        n + dropped == 2 * (asked as u64 + 1)
    });
    assert_eq!(exported, collector.got.lock().spans.len() as u64, "each once");
    proxy.drain();
    proxy.join();
}

#[test]
fn what_the_collector_cannot_take_now_is_sent_again_and_what_it_refuses_is_not() {
    let app = Origin::plain();
    let collector = Collector::answering(|n| match n {
        0 => Err(Status::unavailable("not yet")),
        1 => Ok(ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans: 1,
                error_message: "one is odd".into(),
            }),
        }),
        2 => Err(Status::new(Code::InvalidArgument, "no")),
        3 => Err(Status::resource_exhausted("without saying for how long")),
        _ => Ok(ExportTraceServiceResponse::default()),
    });
    let proxy = start(&app, collector.address, "");
    ask(&proxy, 1);
    // Refused for now, then taken but for one.
    wait_metric(&proxy, "spans_exported_total{collector=\"otlp\"}", |n| n == 1);
    assert_eq!(metric(&proxy, "spans_dropped_total{reason=\"rejected\"}"), 1);
    assert_eq!((collector.wait_spans(2).len(), collector.got.lock().requests), (2, 2));
    for (refused, requests) in [(2, 3), (4, 4)] {
        ask(&proxy, 1);
        wait_metric(&proxy, "spans_dropped_total{reason=\"refused\"}", |n| n == refused);
        assert_eq!(collector.got.lock().requests, requests, "once");
    }
    ask(&proxy, 1);
    wait_metric(&proxy, "spans_exported_total{collector=\"otlp\"}", |n| n == 3);
    assert_eq!(metric(&proxy, "span_export_failures_total{collector=\"otlp\"}"), 3);
    proxy.drain();
    proxy.join();
}

#[test]
fn a_reload_sends_spans_elsewhere_and_ends_it() {
    let (app, first, second) = (Origin::plain(), Collector::plain(), Collector::plain());
    let config = |to: &Collector| text(&app, &format!("http://{}", to.address), "");
    let proxy = Proxy::start(Start::text(config(&first))).unwrap();
    ask(&proxy, 1);
    first.wait_spans(2);
    proxy.reload(&config(&second)).unwrap();
    ask(&proxy, 1);
    assert_eq!(only(&second.wait_spans(2), "server").of("url.path"), "/0");
    assert_eq!(first.got.lock().spans.len(), 2);
    let without = config(&second);
    let (before, rest) = without.split_once("[tracing]").unwrap();
    let (_, after) = rest.split_once("[[listener]]").unwrap();
    proxy.reload(&format!("{before}[[listener]]{after}")).unwrap();
    ask(&proxy, 5);
    proxy.drain();
    proxy.join();
    assert_eq!(second.got.lock().spans.len(), 2);
}

#[test]
fn the_name_is_that_of_the_identity_where_none_is_given() {
    let (app, collector) = (Origin::plain(), Collector::plain());
    let folder = Folder::new();
    let identity = format!(
        "[identity]\nsource = \"embedded\"\ntrust_domain = \"mesh.local\"\nid = \"spiffe://mesh.local/ns/shop/sa/web\"\nfolder = \"{}\"\n",
        folder.path("authority").display()
    );
    let text = text(&app, &format!("http://{}", collector.address), "") + &identity;
    let proxy = Proxy::start(Start::text(text)).unwrap();
    ask(&proxy, 1);
    collector.wait_spans(2);
    assert_eq!(collector.got.lock().resource["service.name"], "ns/shop/sa/web");
    until("all is counted", || metric(&proxy, "spans_waiting") == 0);
    proxy.drain();
    proxy.join();
}

#[test]
fn mistakes_in_the_table_are_told_with_what_to_write() {
    let errors = |table: &str| {
        let text = format!("[tracing]\n{table}\n[[listener]]\naddress = \"127.0.0.1:0\"\n");
        match ringmesh::config::parse("test.toml", &text, &|_| None) {
            Ok(_) => panic!("taken: {table}"),
            Err(report) => report.to_string(),
        }
    };
    let good = "endpoint = \"http://127.0.0.1:4317\"\n";
    for (table, told) in [
        ("", "[tracing] needs `endpoint`"),
        ("endpoint = \"127.0.0.1:4317\"", "begins with neither http:// nor https://"),
        ("endpoint = \"http://collector\"", "4317 is usual for gRPC"),
        ("endpoint = \"http://127.0.0.1:0\"", "port 0 cannot be connected to"),
        ("endpoint = \"http://127.0.0.1:4317/v1\"", "gRPC has no path of its own"),
        (&format!("{good}ca = \"/ca.pem\""), "the endpoint is not encrypted"),
        (&format!("{good}protocol = \"zipkin\""), "`zipkin` is not known"),
        (&format!("{good}sample_percent = 101"), "out of its bounds"),
        (&format!("{good}sample_percent = \"1\""), "a number of percent"),
        (&format!("{good}propagate = [\"b3\"]"), "write [\"w3c\"], or [\"w3c\", \"b3\"]"),
        (&format!("{good}propagate = [\"jaeger\"]"), "`jaeger` is not known"),
        (&format!("{good}attributes = {{ \"service.name\" = \"a\" }}"), "write it as `service_name`"),
        (&format!("{good}attributes = {{ a = \"\" }}"), "an empty text says nothing"),
        (&format!("{good}headers = {{ host = \"a\" }}"), "`host` is set by this proxy"),
        (&format!("{good}headers = {{ \"a b\" = \"a\" }}"), "is no name of a field"),
        (&format!("{good}timeout = \"1h\""), "tracing.timeout is \"1h\", out of its bounds"),
        (&format!("{good}waiting_bytes_max = \"1KiB\""), "out of its bounds"),
        (&format!("{good}sample = 1"), "unknown key `sample`"),
    ] {
        let errors = errors(table);
        assert!(errors.contains(told), "{table}: {told}\n{errors}");
    }
}
