//! What an operator sees of TLS, identity, authorization and HTTP/2 in the configuration: which values arrive where, which
//! keys do not go together, and with which words they are refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringmesh::authorize::{Action, TextMatch, Verdict};
use ringmesh::config::{self, Identity, IdentitySource, Loaded, TlsVersion};
use ringmesh::identity::{IdMatch, SpiffeId, TrustDomain};
use ringmesh::route::Upgrades;
use ringmesh::snapshot::{ListenerTls, Snapshot};
use ringmesh::upstream::spec::{Protocol, Tls};

const EMBEDDED: &str = "[identity]\nsource = \"embedded\"\nid = \"spiffe://mesh.local/a\"\n";

/// What is read; a listener is added to a text without one, which would be an error.
fn taken(text: &str) -> Loaded {
    let listener =
        if text.contains("[[listener]]") { "" } else { "[[listener]]\naddress = \"127.0.0.1:1\"\n" };
    let text = &format!("{text}\n{listener}");
    config::parse("test.toml", text, &|_| None).unwrap_or_else(|report| panic!("{report}"))
}

fn errors(text: &str) -> Vec<String> {
    match config::parse("test.toml", text, &|_| None) {
        Ok(_) => panic!("taken: {text}"),
        Err(report) => report.lines().collect(),
    }
}

fn snapshot(loaded: &Loaded) -> Snapshot {
    loaded.compiled.snapshot(1, &|_, _| Vec::new())
}

#[test]
fn every_key_of_the_mesh_arrives_where_it_belongs() {
    let loaded = taken(
        r#"
authorization_default = "deny"
[limits]
handshakes_max = 7
[timeouts]
handshake = "3s"
[http2]
streams_max = 5
stream_window = "64KiB"
connection_window = "128KiB"
ping_interval = "off"
ping_timeout = "4s"
[identity]
source = "embedded"
trust_domain = "shop.local"
id = "spiffe://shop.local/ns/a/sa/b"
folder = "/tmp/ca"
leaf_ttl = "1h"
federated = [{ trust_domain = "partner.example", bundle = "/etc/partner.pem" }]
[[listener]]
name = "in"
address = "127.0.0.1:1"
tls = "strict"
[[listener]]
address = "127.0.0.1:2"
tls = "permissive"
[[listener]]
name = "edge"
address = "127.0.0.1:3"
tls = "terminate"
certificate = "/c.pem"
key = "/k.pem"
tls_version_min = "1.2"
[[service]]
name = "mesh"
endpoints = ["127.0.0.1:9000"]
protocol = "http2"
tls = "mesh"
identities = ["spiffe://shop.local/a", "spiffe://shop.local/b/*"]
http2 = { connections_max = 2, streams_max = 3, stream_window = "65KiB", connection_window = "66KiB", ping_interval = "1m", ping_timeout = "2m" }
[[service]]
name = "out"
endpoints = ["127.0.0.1:443"]
tls = "edge"
server_name = "API.example"
ca = "/roots.pem"
[[route]]
service = "mesh"
upgrades = ["connect"]
tunnel_idle = "off"
[[route]]
service = "out"
path = "/out"
[[authorization]]
action = "allow"
listeners = ["in", "listener-2"]
from = ["*", "spiffe://shop.local/a/*"]
sources = ["10.0.0.0/8", "fd00::/8"]
ports = [1, 65535]
methods = ["GET"]
paths = ["/api/*", "/exact"]
headers = { X-Tier = "gold", "x-a" = "b*", "x-debug" = "*" }
"#,
    );
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let snapshot = snapshot(&loaded);
    assert_eq!((snapshot.limits.handshakes_max, snapshot.timeouts.handshake), (7, Duration::from_secs(3)));
    let http2 = snapshot.http2;
    assert_eq!((http2.streams_max, http2.stream_window, http2.connection_window), (5, 65_536, 131_072));
    assert_eq!((http2.ping_interval, http2.ping_timeout), (Duration::ZERO, Duration::from_secs(4)));
    let domain = |text| TrustDomain::parse(text).unwrap();
    let id = |text| SpiffeId::parse(text).unwrap();
    assert_eq!(
        loaded.compiled.identity,
        Some(Identity {
            source: IdentitySource::Embedded {
                folder: "/tmp/ca".into(),
                trust_domain: domain("shop.local"),
                id: id("spiffe://shop.local/ns/a/sa/b"),
                leaf_ttl: Duration::from_secs(3600),
            },
            federated: vec![(domain("partner.example"), PathBuf::from("/etc/partner.pem"))],
        })
    );
    // The third has no material yet, so that it lets nobody in.
    let tls: Vec<&ListenerTls> = snapshot.listeners.iter().map(|listener| &listener.tls).collect();
    assert_eq!(tls, [&ListenerTls::Strict, &ListenerTls::Permissive, &ListenerTls::Strict]);
    let terminations: Vec<_> = loaded.compiled.terminations().collect();
    assert_eq!(terminations.len(), 1);
    assert_eq!((terminations[0].listener, terminations[0].version_min), ("edge", TlsVersion::V1_2));
    assert_eq!(
        (terminations[0].certificate, terminations[0].key),
        (Path::new("/c.pem"), Path::new("/k.pem"))
    );
    let edges: Vec<_> = loaded.compiled.edges().collect();
    assert_eq!(edges.len(), 1);
    assert_eq!((edges[0].service, edges[0].ca), ("out", Some(Path::new("/roots.pem"))));
    assert_eq!(edges[0].server_name.to_str(), "api.example");
    let (mesh, out) = (&snapshot.services[0], &snapshot.services[1]);
    assert_eq!(mesh.protocol, Protocol::Http2);
    let ids = ["spiffe://shop.local/a", "spiffe://shop.local/b/*"].map(|text| IdMatch::parse(text).unwrap());
    assert_eq!(mesh.tls, Tls::Mesh(ids.to_vec()));
    assert_eq!((mesh.http2.connections_max, mesh.http2.streams_max), (2, 3));
    assert_eq!((mesh.http2.stream_window, mesh.http2.connection_window), (66_560, 67_584));
    assert_eq!(mesh.http2.ping_interval, Duration::from_secs(60));
    assert_eq!(mesh.http2.ping_timeout, Duration::from_secs(120));
    assert_ne!(out.tls, Tls::Off, "an edge service is never spoken to in plain text");
    let policy = &snapshot.authorization;
    assert_eq!(policy.default_verdict(), Verdict::Deny);
    let rule = &policy.rules()[0];
    assert_eq!((&*rule.name, rule.action), ("authorization-1", Action::Allow));
    assert_eq!(rule.listeners, ["in".into(), "listener-2".into()]);
    assert_eq!(rule.from, [IdMatch::Any, IdMatch::parse("spiffe://shop.local/a/*").unwrap()]);
    assert_eq!(rule.sources, ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    assert_eq!((&*rule.ports, &*rule.methods), (&[1, 65535][..], &["GET".into()][..]));
    assert_eq!(rule.paths, [TextMatch::Prefix("/api/".into()), TextMatch::Exact("/exact".into())]);
    let mut headers = rule.headers.clone();
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        headers,
        [
            ("x-a".into(), TextMatch::Prefix("b".into())),
            ("x-debug".into(), TextMatch::Any),
            ("x-tier".into(), TextMatch::Exact("gold".into())),
        ]
    );
    let effective = loaded.compiled.effective();
    let value = |key: &str| &*effective.iter().find(|setting| setting.key == key).unwrap().value;
    assert_eq!(value("route.route-1.upgrades"), "[\"connect\"]");
    assert_eq!(value("route.route-1.tunnel_idle"), "\"off\"");
    assert_eq!(value("listener.edge.tls"), "\"terminate\"");
    assert_eq!(value("service.out.tls"), "\"edge\"");
    assert_eq!(value("authorization.authorization-1.paths"), "[\"/api/*\", \"/exact\"]");
    assert_eq!(value("http2.ping_interval"), "\"off\"");
    for setting in &effective {
        assert!(format!("x = {}", setting.value).parse::<toml::Table>().is_ok(), "{setting:?}");
    }
    assert_eq!(Upgrades::default(), Upgrades { websocket: true, connect: false });
}

#[test]
fn the_other_sources_of_an_identity_are_taken() {
    let source = |text: &str| taken(text).compiled.identity.unwrap().source;
    assert_eq!(
        source("[identity]\nsource = \"files\"\ncertificate = \"/c\"\nkey = \"/k\"\nbundle = \"/b\"\n"),
        IdentitySource::Files { certificate: "/c".into(), key: "/k".into(), bundle: "/b".into() }
    );
    assert_eq!(
        source("[identity]\nsource = \"workload-api\"\n"),
        IdentitySource::WorkloadApi { socket: None, id: None }
    );
    for socket in ["unix:/run/a.sock", "unix:///run/a.sock"] {
        assert_eq!(
            source(&format!("[identity]\nsource = \"workload-api\"\nsocket = \"{socket}\"\n")),
            IdentitySource::WorkloadApi { socket: Some(socket.into()), id: None }
        );
    }
    assert_eq!(taken("").compiled.identity, None);
}

#[test]
fn each_mistake_of_the_mesh_has_its_own_words() {
    let listener =
        |keys: &str| format!("[[listener]]\naddress = \"127.0.0.1:1\"\nname = \"inbound\"\n{keys}\n");
    let service = |keys: &str| format!("[[service]]\nname = \"a\"\n{keys}\n");
    let rule = |keys: &str| format!("{}[[authorization]]\naction = \"deny\"\n{keys}\n", listener(""));
    let identity = |keys: &str| format!("[identity]\n{keys}\n");
    for (text, expected) in [
        (identity(""), "[identity] needs `source`; add `source = \"embedded\"`"),
        (identity("source = \"file\""), "did you mean \"files\"?"),
        (identity("source = \"embedded\""), "source = \"embedded\" needs `id`"),
        (
            identity("source = \"files\"\nkey = \"/k\"\nbundle = \"/b\""),
            "source = \"files\" needs `certificate`",
        ),
        (format!("{EMBEDDED}socket = \"unix:/a\""), "identity.socket does not go with source = \"embedded\""),
        (
            identity(
                "source = \"files\"\ncertificate = \"/c\"\nkey = \"/k\"\nbundle = \"/b\"\nid = \"spiffe://a/b\"",
            ),
            "identity.id does not go with source = \"files\"",
        ),
        (
            format!("{EMBEDDED}trust_domain = \"other.local\""),
            "`spiffe://mesh.local/a` is outside of the trust domain other.local; write \"spiffe://other.local/a\"",
        ),
        (
            identity("source = \"embedded\"\nid = \"spiffe://mesh.local/a/\""),
            "it has an empty segment or ends in a slash",
        ),
        (
            identity("source = \"embedded\"\nid = \"SPIFFE://mesh.local/a\""),
            "it does not begin with spiffe://",
        ),
        (
            format!("{EMBEDDED}leaf_ttl = \"721h\""),
            "identity.leaf_ttl is \"721h\", out of its bounds; the most is \"720h\"",
        ),
        (
            format!("{EMBEDDED}federated = [{{ trust_domain = \"mesh.local\", bundle = \"/b\" }}]"),
            "is our own trust domain",
        ),
        (
            format!(
                "{EMBEDDED}federated = [{{ trust_domain = \"p\", bundle = \"/b\" }}, {{ trust_domain = \"p\", bundle = \"/c\" }}]"
            ),
            "p is federated twice",
        ),
        (
            format!("{EMBEDDED}federated = [{{ trust_domain = \"p\" }}]"),
            "a federated trust domain needs `bundle`",
        ),
        (identity("source = \"workload-api\"\nsocket = \"/run/a\""), "write \"unix:/run/a\""),
        (
            identity(
                "source = \"files\"\ncertificate = \"-----BEGIN CERTIFICATE-----\"\nkey = \"/k\"\nbundle = \"/b\"",
            ),
            "this is the content of a file, not its path",
        ),
        (
            listener("tls = \"strict\""),
            "a listener with tls = \"strict\" needs an identity, and there is no [identity]",
        ),
        (listener("tls = \"permissive\""), "a listener with tls = \"permissive\" needs an identity"),
        (
            listener("tls = \"terminate\"\nkey = \"/k\""),
            "a listener with tls = \"terminate\" needs `certificate`",
        ),
        (listener("certificate = \"/c\""), "`certificate` goes with tls = \"terminate\" only"),
        (
            listener("tls = \"off\"\ntls_version_min = \"1.3\""),
            "`tls_version_min` goes with tls = \"terminate\" only",
        ),
        (listener("tls = \"strikt\""), "did you mean \"strict\"?"),
        (service("tls = \"mesh\""), "a service with tls = \"mesh\" needs an identity"),
        (service("tls = \"edge\""), "a service with tls = \"edge\" needs `server_name`"),
        (service("identities = [\"spiffe://a/b\"]"), "`identities` goes with tls = \"mesh\" only"),
        (service("tls = \"off\"\nca = \"/c\""), "`ca` goes with tls = \"edge\" only"),
        (service("tls = \"mesh\"\nidentities = [\"*\"]"), "`*` would take anybody of any trust domain"),
        (
            service("tls = \"edge\"\nserver_name = \"https://a.b/c\""),
            "a server name has no scheme; write \"a.b\"",
        ),
        (service("protocol = \"h2\""), "service.protocol: `h2` is not known"),
        (
            service("http2 = { stream_window = 65536 }"),
            "service.http2.stream_window needs a unit; write \"64KiB\"",
        ),
        ("[http2]\nstream_window = \"1KiB\"".into(), "http2.stream_window is \"1KiB\", out of its bounds"),
        ("[http2]\nping_interval = \"of\"".into(), "http2.ping_interval: `of` is not a duration"),
        ("[[authorization]]".into(), "a rule needs `action`; add `action = \"allow\"`"),
        (rule("listeners = [\"inbond\"]"), "there is no listener `inbond`; did you mean \"inbound\"?"),
        (rule("from = []"), "authorization.from is empty, so that it would mean all, not none"),
        (rule("from = [\"spiffe://a/*/b\"]"), "a star may stand alone or behind the last slash only"),
        (rule("sources = [\"10.0.0.1/8\"]"), "has bits set behind its prefix; write \"10.0.0.0/8\""),
        (rule("sources = [\"10.0.0.1\"]"), "the length of the prefix is missing; write \"10.0.0.1/32\""),
        (rule("sources = [\"::ffff:10.0.0.0/104\"]"), "callers by IPv4 are compared as IPv4 addresses"),
        (rule("ports = [0]"), "authorization.ports is 0, out of its bounds"),
        (rule("methods = [\"get\"]"), "methods differ by case; write \"GET\""),
        (rule("paths = [\"api\"]"), "authorization.paths: a path begins with `/`; write \"/api\""),
        (rule("paths = [\"/a/*/b\"]"), "a star may stand at the end only"),
        (rule("headers = { \"x tier\" = \"a\" }"), "` ` cannot stand in the name of a field"),
        (rule("headers = { x-a = \"a\", X-A = \"b\" }"), "`x-a` is written twice, in different case"),
        (rule("headers = { x-a = \" b\" }"), "blanks around a value are not part of it; write \"b\""),
        (
            rule("name = \"r\"\n[[authorization]]\nname = \"r\"\naction = \"deny\""),
            "two authorizations are called `r`",
        ),
    ] {
        let lines = errors(&text);
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{text}\nwanted: {expected}\nfound: {lines:#?}"
        );
    }
}

#[test]
fn a_wrong_value_of_the_mesh_casts_no_shadows() {
    for text in [
        "[identity]\nsource = \"embedded\"\nid = \"nobody\"\n",
        "[identity]\nsource = \"embeded\"\ncertificate = \"/c\"\n",
        "[[listener]]\naddress = \"127.0.0.1:1\"\ntls = \"terminat\"\ncertificate = \"/c\"\n",
        "[[service]]\nname = \"a\"\ntls = \"edgy\"\nca = \"/c\"\n",
    ] {
        let lines = errors(text);
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }
}

#[test]
fn a_policy_that_decides_nothing_or_lets_nobody_in_is_told() {
    let sound = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = \
                 [\"127.0.0.1:9000\"]\n[[route]]\nservice = \"app\"\n";
    let rule = |action: &str| format!("{sound}[[authorization]]\naction = \"{action}\"\n");
    for (text, expected) in [
        (rule("allow"), Some("what no rule denies is allowed anyway")),
        (format!("authorization_default = \"deny\"\n{}", rule("audit")), Some("no rule allows anything")),
        (format!("authorization_default = \"deny\"\n{}", rule("allow")), None),
        (rule("deny"), None),
        (
            format!("{sound}[http2]\nstream_window = \"2MiB\"\n"),
            Some("a stream_window of 2MiB is never used up"),
        ),
    ] {
        let lines: Vec<String> = taken(&text).warnings.lines().collect();
        match expected {
            Some(expected) => assert!(lines.len() == 1 && lines[0].contains(expected), "{text}: {lines:#?}"),
            None => assert!(lines.is_empty(), "{text}: {lines:#?}"),
        }
    }
}
