//! What an operator sees of the configuration: which files are taken, which are refused and with which words.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringmesh::config::{self, Destination, Loaded, Look, Origin, Report, Settings, Shards};
use ringmesh::shard::RuntimeChoice;
use ringmesh::snapshot::{AccessLogFormat, ForwardedFields, Snapshot};
use ringmesh::upstream::spec::{Address, Balance};

fn none(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> Result<Loaded, Report> {
    config::parse("test.toml", text, &none)
}

fn taken(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|report| panic!("{report}"))
}

/// Errors as single lines.
fn errors(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => panic!("taken: {text}"),
        Err(report) => report.lines().collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    taken(text).warnings.lines().collect()
}

fn snapshot(loaded: &Loaded) -> Snapshot {
    loaded.compiled.snapshot(1, &|_, _| Vec::new())
}

/// The least that is taken.
const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:15001\"\n";

/// A configuration without warnings, to which a test adds.
const SOUND: &str = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = \
                     [\"127.0.0.1:9000\"]\n[[route]]\nservice = \"app\"\n";

// --- files of the repository ---

#[test]
fn every_example_is_taken_without_warnings() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut found = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let loaded =
            config::load(std::slice::from_ref(&path), &none).unwrap_or_else(|report| panic!("{report}"));
        assert!(loaded.warnings.is_empty(), "{}: {}", path.display(), loaded.warnings);
        found += 1;
    }
    assert!(found >= 3);
}

#[test]
fn the_minimal_example_stays_short_and_says_what_it_promises() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml");
    assert!(std::fs::read_to_string(&path).unwrap().lines().count() < 15);
    let loaded = config::load(&[path], &none).unwrap();
    let snapshot = snapshot(&loaded);
    assert_eq!(snapshot.listeners[0].address, "127.0.0.1:15001".parse().unwrap());
    assert_eq!(&*snapshot.listeners[0].name, "listener-1");
    assert_eq!(snapshot.services[0].endpoints[0].address, Address::Ip("127.0.0.1:9000".parse().unwrap()));
    assert_eq!(loaded.compiled.route_count(), 1);
}

// --- values ---

#[test]
fn every_key_arrives_where_it_belongs() {
    let loaded = taken(
        r#"
shards = [0, 2]
runtime = "epoll"
stall_threshold = "5ms"
[admin]
address = "off"
[access_log]
path = "/var/log/ringmesh.log"
format = "text"
[limits]
head_bytes_max = "32KiB"
target_bytes_max = "8KiB"
fields_max = 0x40
body_bytes_max = "1.5MiB"
connections_max = 1_000
interim_responses_max = 0
[timeouts]
head = "1s"
idle = "1m"
body_stall = "2s"
drain = "0.5s"
[forwarding]
via = "edge-1"
forwarded = "replace"
failure_header = false
[[listener]]
name = "in"
address = "[::1]:8080"
[[service]]
name = "app"
balance = "round-robin"
endpoints = ["[::1]:9000", { address = "unix:/run/app.sock", weight = 7, zone = "a" }]
connect_attempts_max = 1
pool = { idle_max = 1, idle_timeout = "2s", connections_max = 3 }
timeouts = { connect = "4ms", response = "5ms", body_stall = "6ms" }
[[route]]
name = "r"
hosts = ["Shop.example", "*.shop.example"]
path_prefix = "/api/"
service = "app"
timeout = "1m"
"#,
    );
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let Settings { shards, runtime, stall_threshold, admin, access_log, drain } = &loaded.compiled.settings;
    assert_eq!(
        (shards, *runtime, *stall_threshold, *admin),
        (&Shards::Cpus(vec![0, 2]), RuntimeChoice::Epoll, Duration::from_millis(5), None)
    );
    let log = access_log.as_ref().unwrap();
    assert_eq!(log.path, Destination::File("/var/log/ringmesh.log".into()));
    assert_eq!((log.format, *drain), (AccessLogFormat::Text, Duration::from_millis(500)));
    let snapshot = snapshot(&loaded);
    let limits = &snapshot.limits;
    assert_eq!((limits.head_bytes_max, limits.target_bytes_max, limits.fields_max), (32_768, 8_192, 64));
    assert_eq!(
        (limits.body_bytes_max, limits.connections_max, limits.interim_responses_max),
        (1_572_864, 1_000, 0)
    );
    let timeouts = &snapshot.timeouts;
    assert_eq!((timeouts.head, timeouts.idle), (Duration::from_secs(1), Duration::from_secs(60)));
    assert_eq!((timeouts.body_stall, timeouts.drain), (Duration::from_secs(2), Duration::from_millis(500)));
    assert_eq!(snapshot.forwarding.via.as_deref(), Some("edge-1"));
    assert_eq!(
        (snapshot.forwarding.forwarded, snapshot.forwarding.failure_header),
        (ForwardedFields::Replace, false)
    );
    let service = &snapshot.services[0];
    assert_eq!((service.balance, service.connect_attempts_max), (Balance::RoundRobin, 1));
    assert_eq!((service.pool.idle_max, service.pool.connections_max), (1, 3));
    assert_eq!(service.pool.idle_timeout, Duration::from_secs(2));
    assert_eq!(service.timeouts.connect, Duration::from_millis(4));
    assert_eq!(service.timeouts.response, Duration::from_millis(5));
    assert_eq!(service.timeouts.body_stall, Duration::from_millis(6));
    assert_eq!(service.endpoints[0].weight, 1);
    assert_eq!((service.endpoints[1].weight, service.endpoints[1].zone.as_deref()), (7, Some("a")));
    assert_eq!(service.endpoints[1].address.to_string(), "unix:/run/app.sock");
}

#[test]
fn what_has_no_listener_is_refused_whatever_else_it_has() {
    let directory = Directory::new("empty-file");
    let rest = SOUND.split_once("[[service]]").unwrap().1;
    for text in ["", "# just being writ", "shards = 2\n", &format!("[[service]]{rest}")] {
        let lines = errors(text);
        assert!(lines.len() == 1 && lines[0].contains("there is no listener"), "{text}: {lines:#?}");
        assert!(lines[0].contains("Write it beside and rename it"), "{lines:#?}");
        let mut out = Vec::new();
        let file = directory.file("a.toml", text);
        assert_eq!(config::check_command(&[file], &none, &mut out, Look::default()), 2);
    }
    let mut out = Vec::new();
    assert_eq!(config::check_command(&["/dev/null".into()], &none, &mut out, Look::default()), 2);
    // A misspelt one is an error of its own, and the only one.
    let lines = errors("[[listner]]\naddress = \"127.0.0.1:15001\"\n");
    assert!(lines.len() == 1 && lines[0].contains("did you mean `listener`?"), "{lines:#?}");
}

#[test]
fn a_listener_alone_means_defaults_and_is_doubtful() {
    let loaded = taken(LISTENER);
    assert_eq!(loaded.compiled.settings.shards, Shards::Auto);
    assert_eq!(loaded.compiled.settings.admin, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!(loaded.compiled.settings.access_log, None);
    assert_eq!(loaded.warnings.warnings(), 1, "{}", loaded.warnings);
}

#[test]
fn the_automatic_pseudonym_is_a_token_and_stays_the_same_in_a_process() {
    let via = |loaded: &Loaded| snapshot(loaded).forwarding.via;
    let (first, second) = (via(&taken(SOUND)).unwrap(), via(&taken(LISTENER)).unwrap());
    assert_eq!(first, second);
    let digits = first.strip_prefix("ringmesh-").unwrap();
    assert!(digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
    assert_eq!(via(&taken(&format!("[forwarding]\nvia = \"off\"\n{LISTENER}"))), None);
}

// --- reports ---

const MISTAKES: &str = r#"shards = "two"
stall_treshold = "20ms"

[limits]
fields_max = 300
head_bytes_max = 65536
connections_max = "many"

[timeouts]
head = 10
idel = "5m"

[[listener]]
address = "localhost:15001"

[[service]]
name = "orders"
endpoints = ["127.0.0.1", { address = "10.0.0.1:80", wieght = 3 }]

[[service]]
name = "orders"
endpoints = ["unix:run/app.sock"]

[[route]]
service = "order"
path = "orders"

[[route]]
service = "orders"
timeout = true

[[route]]
service = "orders"

[identity]
source = "embedded"
trust_domain = "shop.local"
id = "spiffe://mesh.local/ns/shop/sa/orders"
socket = "unix:/run/spire/agent.sock"

[[authorization]]
action = "deny"
listeners = ["inbound"]
sources = ["10.1.0.0/8"]
methods = ["get"]
from = ["spiffe://shop.local/ns/shop/"]
"#;

#[test]
fn all_mistakes_are_shown_at_once_with_place_and_remedy() {
    let report = config::parse("bad.toml", MISTAKES, &none).unwrap_err();
    let shown = report.to_string();
    let expected = include_str!("config_mistakes.txt");
    assert_eq!(shown.trim_end(), expected.trim_end(), "\n{shown}");
    assert_eq!(report.lines().count(), report.errors());
}

#[test]
fn a_report_without_colour_has_no_escapes_and_one_with_colour_has() {
    let report = config::parse("bad.toml", MISTAKES, &none).unwrap_err();
    assert!(report.to_string().is_ascii());
    let boxes = report.render(Look { colour: false, unicode: true });
    assert!(!boxes.contains('\u{1b}') && boxes.contains('╭'));
    assert!(report.render(Look { colour: true, unicode: true }).contains('\u{1b}'));
}

#[test]
fn mistakes_of_syntax_are_shown_like_all_others() {
    let report =
        config::parse("bad.toml", "[limits\nfields_max = \n[[service]]\nname = app\n", &none).unwrap_err();
    let lines: Vec<String> = report.lines().collect();
    assert!(lines.len() >= 2, "{lines:#?}");
    assert!(lines[0].starts_with("bad.toml:1:"), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("error: not TOML: ")), "{lines:#?}");
    let twice = errors("[limits]\nfields_max = 1\nfields_max = 2\n");
    assert!(twice[0].starts_with("test.toml:3:1: error: not TOML: duplicate key"), "{twice:#?}");
}

#[test]
fn each_mistake_has_its_own_words() {
    for (text, expected) in [
        (
            "[limit]\nfields_max = 1",
            "unknown key `limit` at the top of the file, before the first [table]; did you mean `limits`?",
        ),
        ("head = \"1s\"", "before the first [table]; `head` belongs in [timeouts]"),
        ("[[cluster]]\nname = \"a\"", "before the first [table]; it is called `service` here"),
        ("[admin]\nxyzzy = 1", "unknown key `xyzzy` in [admin]; known here: address"),
        ("[timeouts]\nhead = 10", "timeouts.head needs a unit; write \"10s\""),
        ("[timeouts]\nhead = 1500", "timeouts.head needs a unit; write \"1500ms\""),
        ("[timeouts]\nhead = 1.5", "timeouts.head needs a unit; write \"1.5s\""),
        ("stall_threshold = 20", "stall_threshold needs a unit; write \"20ms\""),
        ("[timeouts]\nhead = \"10\"", "timeouts.head: `10` has no unit; write \"10s\""),
        ("[timeouts]\nhead = \"25h\"", "timeouts.head is \"25h\", out of its bounds; the most is \"24h\""),
        ("[timeouts]\nhead = \"0s\"", "timeouts.head is \"0s\", out of its bounds; the least is \"1ms\""),
        ("[timeouts]\nhead = true", "timeouts.head must be a string; write it in quotes, such as \"10s\""),
        ("[limits]\nhead_bytes_max = 65536", "limits.head_bytes_max needs a unit; write \"64KiB\""),
        ("[limits]\nhead_bytes_max = \"129KiB\"", "out of its bounds; the most is \"128KiB\""),
        ("[limits]\nbody_bytes_max = \"unlimitd\"", "`unlimitd` is not a size"),
        (
            "[limits]\nfields_max = 257",
            "limits.fields_max is 257, out of its bounds; write a number from 1 to 256",
        ),
        ("[limits]\nfields_max = -1", "limits.fields_max is -1, out of its bounds"),
        ("[limits]\nfields_max = 99999999999999999999999", "out of its bounds"),
        (
            "[limits]\nfields_max = \"128\"",
            "limits.fields_max must be a whole number; write 128 without quotes",
        ),
        ("[limits]\nfields_max = 1.0", "limits.fields_max must be a whole number; write one from 1 to 256"),
        ("[limits]\nhead_bytes_max = \"8KiB\"", "a target of 16KiB does not fit in a head of 8KiB"),
        ("[forwarding]\nfailure_header = \"true\"", "must be true or false; write true without quotes"),
        ("[forwarding]\nfailure_header = 1", "forwarding.failure_header must be true or false"),
        ("[forwarding]\nvia = \"a b\"", "forwarding.via: ` ` cannot stand in a token"),
        (
            "[forwarding]\nforwarded = \"apend\"",
            "did you mean \"append\"? Possible: \"keep\", \"append\" or \"replace\"",
        ),
        ("[access_log]\npath = \"stdot\"", "`stdot` is neither a stream nor the path of a file"),
        ("access_log = true", "access_log must be a table; write a table with some of: path, format"),
        ("[[limits]]\nfields_max = 1", "limits must be a table; write [limits] with one pair of brackets"),
        (
            "[listener]\naddress = \"[::]:1\"",
            "listener must be a list of tables; write [[listener]] with two pairs",
        ),
        ("listener = [1]", "listener must be a table; write [[listener]] once for each"),
        ("[[listener]]", "a listener needs `address`; add `address = \"127.0.0.1:15001\"`"),
        ("[[listener]]\naddress = \"unix:/x\"", "listening on Unix sockets is not supported"),
        ("[[service]]", "a service needs `name`; add `name = \"app\"`"),
        ("[[service]]\nname = \"a b\"", "service.name: ` ` cannot stand in a name"),
        ("[[service]]\nname = \"a\"\nendpoints = \"1.2.3.4:5\"", "write it in brackets: [\"1.2.3.4:5\"]"),
        ("[[service]]\nname = \"a\"\nendpoints = [5]", "an endpoint must be an address or a table"),
        ("[[service]]\nname = \"a\"\nendpoints = [{ weight = 1 }]", "an endpoint needs `address`"),
        (
            "[[service]]\nname = \"a\"\nendpoints = [{ address = \"a:1\", weight = 0 }]",
            "write a number from 1 to 1000",
        ),
        (
            "[[service]]\nname = \"a\"\npool = 5",
            "service.pool must be a table; write a table with some of: idle_max",
        ),
        ("[[service]]\nname = \"a\"\npool = { max = 5 }", "unknown key `max` in `pool` of a [[service]]"),
        (
            "[[service]]\nname = \"a\"\nbalance = \"ewma\"",
            "`ewma` is not known; write \"peak-ewma\", \"least-request\",",
        ),
        ("[[service]]\nname = \"a\"\nconnect_attempts_max = 0", "write a number from 1 to 32"),
        ("[[route]]", "a route needs `service`; add `service = \"app\"`"),
        ("[[route]]\nservice = \"a\"", "there is no service `a`; add one: [[service]]"),
        (
            "[[route]]\nservice = \"a\"\nhosts = [\"a:80\"]",
            "hosts are matched without their port; write \"a\"",
        ),
        (
            "[[route]]\nservice = \"a\"\nhosts = \"a\"",
            "route.hosts must be a list; write it in brackets: [\"a\"]",
        ),
        ("[[route]]\nservice = \"a\"\npath = \"/a\"\npath_prefix = \"/b\"", "either `path` or `path_prefix`"),
        ("[[route]]\nservice = \"a\"\ntimeout = \"0s\"", "route.timeout is \"0s\", out of its bounds"),
        ("shards = 0", "shards is 0, out of its bounds; write a number from 1 to 1024"),
        ("shards = []", "shards: an empty list of CPUs"),
        ("shards = [0, 0]", "shards: CPU 0 is listed twice"),
        ("shards = [-1]", "shards: not the number of a CPU"),
        ("shards = \"2\"", "shards must be a number; write 2 without quotes"),
        ("runtime = \"uring\"", "runtime: `uring` is not known; write \"auto\", \"io_uring\" or \"epoll\""),
        ("shards = true", "shards must be \"auto\", a number or a list"),
        ("[admin]\naddress = \"on\"", "admin.address: the port is missing"),
    ] {
        let lines = errors(text);
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{text}\nwanted: {expected}\nfound: {lines:#?}"
        );
    }
}

#[test]
fn what_does_not_fit_together_is_told_with_both_places() {
    let two = |extra: &str| errors(&format!("{SOUND}{extra}"));
    let lines = two("[[service]]\nname = \"app\"");
    assert!(lines[0].contains("two services are called `app`"), "{lines:#?}");
    let lines = two("[[listener]]\naddress = \"127.0.0.1:15001\"");
    assert!(lines[0].contains("two listeners on 127.0.0.1:15001"), "{lines:#?}");
    let lines = two("[[listener]]\naddress = \"0.0.0.0:15000\"");
    assert!(lines[0].contains("cannot be bound beside the admin server on 127.0.0.1:15000"), "{lines:#?}");
    let lines = two("[[route]]\nname = \"route-1\"\npath = \"/x\"\nservice = \"app\"");
    assert!(lines[0].contains("`route-1` is what route number 1 is called, which has no name"), "{lines:#?}");
    let lines = two("[[route]]\nservice = \"ap\"\npath = \"/x\"");
    assert!(lines[0].contains("there is no service `ap`; did you mean \"app\"?"), "{lines:#?}");
}

#[test]
fn routes_overlap_only_with_the_same_host_and_path() {
    let with = |route: &str| parse(&format!("{SOUND}[[route]]\nservice = \"app\"\n{route}"));
    for route in [
        "path = \"/\"",
        "path_prefix = \"/a\"",
        "hosts = [\"a.example\"]",
        "hosts = [\"*.example\"]",
        "hosts = [\"a.example\"]\npath = \"/\"",
    ] {
        assert!(with(route).is_ok(), "{route}");
    }
    for route in ["", "path_prefix = \"/\"", "path_prefix = \"//\""] {
        let report = with(route).unwrap_err();
        assert!(
            report.to_string().contains("two routes serve any host and path prefix /"),
            "{route}: {report}"
        );
    }
    let report = with(
        "hosts = [\"a.example\", \"b.example\"]\npath_prefix = \"/x\"\n[[route]]\nservice = \"app\"\nhosts = \
         [\"B.example\"]\npath_prefix = \"/x/\"",
    )
    .unwrap_err();
    assert!(report.to_string().contains("two routes serve host b.example and path prefix /x"), "{report}");
}

#[test]
fn an_error_casts_no_shadows() {
    // A service whose endpoint is wrong is still known; a route whose host is wrong overlaps with none.
    let lines = errors(
        "[[listener]]\naddress = \"1.2.3.4:5\"\n[[service]]\nname = \"a\"\nendpoints = [\"x\"]\n[[route]]\nservice = \
         \"a\"\n[[route]]\nservice = \"a\"\nhosts = [\"*\"]\n",
    );
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let lines = errors("[[service]]\nname = \"b d\"\n[[route]]\nservice = \"b d\"\n");
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

#[test]
fn thousands_of_mistakes_are_bounded() {
    let text: String =
        (0..20_000).map(|n| format!("[[route]]\nservice = \"nobody-{n}\"\npath = \"/{n}\"\n")).collect();
    let report = parse(&text).unwrap_err();
    assert_eq!(report.errors(), 20_000);
    assert!(report.lines().count() < 1000);
    assert!(report.to_string().contains("and 19800 more errors"));
}

// --- warnings ---

#[test]
fn what_is_legal_but_surely_unintended_is_told() {
    for (extra, expected) in [
        ("[[service]]\nname = \"b\"\nendpoints = [\"1.2.3.4:5\"]", "no route leads to service `b`"),
        (
            "[[service]]\nname = \"b\"\n[[route]]\nservice = \"b\"\npath = \"/b\"",
            "service `b` has no endpoints",
        ),
        ("[timeouts]\ndrain = \"0s\"", "SIGTERM cuts what is in flight"),
        ("[[route]]\nservice = \"app\"\npath = \"/a/../b\"", "clients resolve `.` and `..`"),
        ("[[route]]\nservice = \"app\"\npath = \"/a/*\"", "write path_prefix = \"/a\" for all below it"),
        (
            "[limits]\ntarget_bytes_max = \"64B\"\n[[route]]\nservice = \"app\"\npath = \"/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
          aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
            "no request can reach this route",
        ),
        ("[[route]]\nservice = \"app\"\nhosts = [\"a.b\", \"A.b\"]", "host a.b is listed twice"),
    ] {
        let lines = warnings(&format!("{SOUND}{extra}\n"));
        assert!(lines.len() == 1 && lines[0].contains(expected), "{extra}: {lines:#?}");
        assert!(lines[0].contains(": warning: "), "{lines:#?}");
    }
    for (listener, endpoint, own) in [
        ("0.0.0.0:15001", "127.0.0.1:15001", true),
        ("0.0.0.0:15001", "127.9.9.9:15001", true),
        ("[::]:15001", "[::1]:15001", true),
        ("0.0.0.0:15001", "127.0.0.1:15002", false),
        ("0.0.0.0:15001", "10.0.0.1:15001", false),
        // `[::]` takes no IPv4 here.
        ("[::]:15001", "127.0.0.1:15001", false),
    ] {
        let text = SOUND.replace("127.0.0.1:15001", listener).replace("127.0.0.1:9000", endpoint);
        let lines = warnings(&text);
        assert_eq!(
            lines.iter().any(|line| line.contains("is a listener of this proxy")),
            own,
            "{text}: {lines:#?}"
        );
    }
    for (keys, route, expected) in [
        ("endpoints = [\"a:1\", \"a:1\"]", "", "endpoint a:1 is listed twice"),
        ("endpoints = [\"127.0.0.1:15001\"]", "", "is a listener of this proxy"),
        ("endpoints = [\"0.0.0.0:80\"]", "", "is an address to listen on, not to call"),
        (
            "endpoints = [\"10.0.0.1:1\", \"10.0.0.2:1\", \"10.0.0.1:2\"]\nprobe = { kind = \"tcp\", port = 9 }",
            "",
            "endpoints of 10.0.0.1 are all probed at port 9",
        ),
        ("endpoints = [\"unix:/a.sock\"]\nprobe = { kind = \"tcp\", port = 9 }", "", "/a.sock has no port"),
        ("endpoints = [\"a:1\"]\npool = { idle_timeout = \"0s\" }", "", "no connection is used twice"),
        (
            "endpoints = [\"a:1\"]\npool = { idle_max = 9, connections_max = 8 }",
            "",
            "more idle connections than the 8",
        ),
        (
            "endpoints = [\"a:1\"]\ntimeouts = { response = \"9s\" }",
            "timeout = \"8s\"",
            "gives up after 8s, before",
        ),
    ] {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[route]]\nservice = \"b\"\n{route}\n[[service]]\nname = \"b\"\n{keys}\n"
        );
        let lines = warnings(&text);
        assert!(lines.len() == 1 && lines[0].contains(expected), "{keys}: {lines:#?}");
    }
    assert_eq!(
        warnings(&format!(
            "{SOUND}[[service]]\nname = \"c\"\nendpoints = [\"c:1\"]\npool = {{ idle_max = 0, \
                                  idle_timeout = \"0s\" }}\n[[route]]\npath = \"/c\"\nservice = \"c\"\ntimeout = \"1s\""
        )),
        Vec::<String>::new()
    );
}

// --- environment ---

#[test]
fn values_come_from_the_environment_and_say_so() {
    let environment = |name: &str| match name {
        "PORT" => Some("9000".to_owned()),
        "FIELDS" => Some("64".to_owned()),
        "SHARDS" => Some("3".to_owned()),
        _ => None,
    };
    let text = format!(
        "shards = \"${{SHARDS}}\"\n[limits]\nfields_max = \"${{FIELDS}}\"\nbody_bytes_max = \
         \"${{BODY:-unlimited}}\"\n[forwarding]\nfailure_header = \"${{NOTE:-false}}\"\n[timeouts]\nhead = \
         \"${{HEAD:-3s}}\"\n{}",
        SOUND.replace("9000", "${PORT}")
    );
    let loaded = config::parse("env.toml", &text, &environment).unwrap();
    let snapshot = snapshot(&loaded);
    assert_eq!(loaded.compiled.settings.shards, Shards::Count(3));
    assert_eq!((snapshot.limits.fields_max, snapshot.limits.body_bytes_max), (64, 0));
    assert_eq!((snapshot.timeouts.head, snapshot.forwarding.failure_header), (Duration::from_secs(3), false));
    assert_eq!(snapshot.services[0].endpoints[0].address.to_string(), "127.0.0.1:9000");
    let origin = |key: &str| {
        let effective = loaded.compiled.effective();
        effective.into_iter().find(|setting| setting.key == key).unwrap().origin
    };
    let environment =
        |name: &str, line| Origin::Environment { name: name.into(), file: "env.toml".into(), line };
    assert_eq!(origin("limits.fields_max"), environment("FIELDS", 3));
    assert_eq!(origin("service.app.endpoints"), environment("PORT", 13));
    assert_eq!(origin("listener.listener-1.address"), Origin::File { file: "env.toml".into(), line: 10 });
    assert_eq!(origin("timeouts.idle"), Origin::Default);
}

#[test]
fn what_the_environment_lacks_is_an_error_at_its_place() {
    let lines = errors("[timeouts]\nhead = \"5${UNIT}\"\nidle = \"${IDLE:-5}\"\n");
    assert_eq!(
        lines,
        [
            "test.toml:2:10: error: timeouts.head: the environment variable `UNIT` is not set; set it, or write a default: \
             \"${UNIT:-default}\"",
            "test.toml:3:8: error: timeouts.idle: `5` has no unit; write \"5s\" (units: us, ms, s, m, h)",
        ]
    );
}

// --- files ---

/// A directory that goes when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringmesh-config-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_directory_is_all_its_toml_in_the_order_of_names() {
    let directory = Directory::new("order");
    directory.file("20.toml", "[[listener]]\naddress = \"127.0.0.1:2\"\n");
    directory.file("10.toml", "[[listener]]\naddress = \"127.0.0.1:1\"\n");
    directory.file(".hidden.toml", "nonsense");
    directory.file("notes.txt", "nonsense");
    std::fs::create_dir(directory.0.join("sub.toml")).unwrap();
    let more = Directory::new("more");
    let file = more.file("x.conf", "[[listener]]\naddress = \"127.0.0.1:3\"\n");
    let loaded = config::load(&[directory.0.clone(), file], &none).unwrap();
    let listeners: Vec<(String, u16)> = loaded
        .compiled
        .listeners()
        .map(|listener| (listener.name.to_string(), listener.address.port()))
        .collect();
    assert_eq!(listeners, [("listener-1".into(), 1), ("listener-2".into(), 2), ("listener-3".into(), 3)]);
}

#[test]
fn what_is_set_in_two_files_is_shown_in_both() {
    let directory = Directory::new("twice");
    directory.file("a.toml", "[limits]\nfields_max = 1\n");
    directory.file("b.toml", "# second\n[limits]\nfields_max = 2\nhead_bytes_max = \"64KiB\"\n");
    let report = config::load(std::slice::from_ref(&directory.0), &none).unwrap_err();
    assert_eq!(report.errors(), 1);
    let shown = report.to_string();
    assert!(shown.contains("limits.fields_max is set twice"), "{shown}");
    assert!(shown.contains("b.toml:3:14]") && shown.contains("a.toml:2:14]"), "{shown}");
}

#[test]
fn files_that_cannot_be_read_are_told_of_together() {
    let directory = Directory::new("unreadable");
    let text = directory.file("latin.toml", b"a = 1\nname = \"\xe4\"\n");
    let missing = directory.0.join("missing.toml");
    let wrong = directory.file("wrong.toml", "[limits]\nfields_max = 0\n");
    let empty = Directory::new("empty");
    let report = config::load(&[text, missing, wrong, empty.0.clone()], &none).unwrap_err();
    let lines: Vec<String> = report.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("latin.toml is not UTF-8 text: the first bad byte is in line 2"))
    );
    assert!(lines.iter().any(|line| line.contains("cannot read") && line.contains("missing.toml")));
    assert!(lines.iter().any(|line| line.contains("there is no *.toml in")));
    assert!(
        lines
            .iter()
            .any(|line| line.contains("wrong.toml:2:14: error: limits.fields_max is 0, out of its bounds"))
    );
}

#[test]
fn the_check_command_sums_up_and_gives_the_exit_code() {
    let check = |paths: &[PathBuf]| {
        let mut out = Vec::new();
        let code = config::check_command(paths, &none, &mut out, Look::default());
        (code, String::from_utf8(out).unwrap())
    };
    let directory = Directory::new("check");
    let good = directory.file("good.toml", SOUND);
    assert_eq!(
        check(std::slice::from_ref(&good)),
        (0, format!("{}: ok, 1 service, 1 route\n", good.display()))
    );
    let doubtful =
        directory.file("doubtful.toml", format!("{SOUND}[[service]]\nname = \"b\"\nendpoints = [\"b:1\"]\n"));
    let (code, out) = check(std::slice::from_ref(&doubtful));
    assert_eq!(code, 0);
    assert!(out.contains("no route leads to service `b`"), "{out}");
    assert!(out.ends_with(&format!("{}: ok, 2 services, 1 route, 1 warning\n", doubtful.display())), "{out}");
    let bad = directory.file("bad.toml", MISTAKES);
    let (code, out) = check(std::slice::from_ref(&bad));
    assert_eq!(code, 2);
    assert!(out.ends_with("errors\n") && out.contains("did you mean `stall_threshold`?"), "{out}");
    assert_eq!(check(&[directory.0.join("none.toml")]).0, 2);

    // Several files are one configuration, which those who want each checked do not expect.
    let (code, out) = check(&[good.clone(), doubtful]);
    assert_eq!(code, 2);
    assert!(
        out.contains(" errors in all of them, read as one configuration; check each alone if each is meant"),
        "{out}"
    );
    assert!(!check(std::slice::from_ref(&bad)).1.contains("as one configuration"));
    // The same twice is one error.
    let again = directory.0.join("../").join(directory.0.file_name().unwrap()).join("good.toml");
    let (code, out) = check(&[good, again]);
    assert_eq!(code, 2);
    assert!(out.contains("good.toml is named twice") && out.contains(": 1 error"), "{out}");

    // What only this machine knows.
    let log = directory
        .file("log.toml", format!("[access_log]\npath = \"{}/gone/a.log\"\n{SOUND}", directory.0.display()));
    let (code, out) = check(&[log]);
    assert_eq!(code, 0);
    assert!(out.contains("warning") || out.contains('!'), "{out}");
    assert!(out.contains("/gone is not a folder here") && out.ends_with(", 1 warning\n"), "{out}");
    assert_eq!(check(&[]).0, 2);
}

// --- whatever the file ---

/// One change to a text.
#[derive(Debug, Clone)]
enum Change {
    /// Takes out so many characters.
    Delete(usize, usize),
    /// Puts a text in.
    Insert(usize, String),
    /// Repeats so many characters elsewhere.
    Repeat(usize, usize, usize),
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for change in changes {
        let length = chars.len().max(1);
        match change {
            Change::Delete(at, count) => {
                let at = at % length;
                let end = (at + count).min(chars.len());
                chars.drain(at.min(end)..end);
            }
            Change::Insert(at, words) => {
                let at = (at % length).min(chars.len());
                chars.splice(at..at, words.chars());
            }
            Change::Repeat(from, count, to) => {
                let from = (from % length).min(chars.len());
                let part: Vec<char> = chars[from..(from + count).min(chars.len())].to_vec();
                let to = (to % length).min(chars.len());
                chars.splice(to..to, part);
            }
        }
    }
    chars.into_iter().collect()
}

#[test]
fn no_text_makes_the_parser_panic() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    let pieces = prop_oneof![
        "\\PC{0,12}",
        "[\\x00-\\x7f]{1,4}",
        prop::sample::select(vec![
            "\"",
            "'",
            "\"\"\"",
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            "=",
            ".",
            "#",
            "\n",
            "\r",
            "\r\n",
            "${",
            "${A}",
            "${A:-",
            "$$",
            "-1",
            "0x",
            "1e400",
            "nan",
            "-inf",
            "1979-05-27",
            "\\u0000",
            "\\",
            "\u{feff}",
            "ä",
            "true",
            "99999999999999999999",
            "a.b.c = 1\n",
            "[service.pool.x]\n",
            "service = 1\n",
            "*.",
            "/..",
            "unix:",
            "::1",
            "%",
            "\u{202e}",
        ])
        .prop_map(str::to_owned),
    ];
    let change = prop_oneof![
        (any::<usize>(), 1_usize..40).prop_map(|(at, count)| Change::Delete(at, count)),
        (any::<usize>(), pieces).prop_map(|(at, words)| Change::Insert(at, words)),
        (any::<usize>(), 1_usize..60, any::<usize>())
            .prop_map(|(from, count, to)| Change::Repeat(from, count, to)),
    ];
    let reference = include_str!("../../config/reference.toml");
    let sidecar = include_str!("../../config/sidecar.toml");
    let texts = prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        8 => (prop::bool::ANY, prop::collection::vec(change, 1..8))
            .prop_map(move |(which, changes)| changed(if which { reference } else { sidecar }, &changes)),
    ];

    let seed: u64 = match std::env::var("RINGMESH_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("RINGMESH_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let environment = |name: &str| (name == "A").then(|| "a\u{1b}\nb".to_owned());
    let outcome = runner.run(&texts, |text| {
        match config::parse("any.toml", &text, &environment) {
            Ok(loaded) => {
                let _ = (loaded.compiled.effective(), loaded.warnings.to_string());
                let _ = loaded.compiled.snapshot(1, &|_, _| Vec::new());
            }
            Err(report) => {
                prop_assert!(report.errors() > 0);
                let looks = [Look::default(), Look { colour: true, unicode: true }];
                prop_assert!(looks.iter().all(|look| !report.render(*look).is_empty()));
                prop_assert!(
                    report.lines().all(|line| !line.contains('\n') && !line.contains('\u{1b}')),
                    "{report}"
                );
            }
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("RINGMESH_SEED={seed}: {failure}");
    }
}

// --- names, sharing, size ---

#[test]
fn names_are_resolved_by_the_caller_and_other_services_are_shared() {
    let text = format!(
        "{SOUND}[[service]]\nname = \"named\"\nendpoints = [\"10.0.0.9:80\", {{ address = \"db.internal:80\", weight = 5 \
         }}, \"other.internal:81\"]\n[[route]]\nservice = \"named\"\npath = \"/n\"\n"
    );
    let loaded = taken(&text);
    let names: Vec<(&str, u16)> = loaded.compiled.names().collect();
    assert_eq!(names, [("db.internal", 80), ("other.internal", 81)]);
    let resolve = |host: &str, port: u16| -> Vec<SocketAddr> {
        match host {
            "db.internal" => vec![([10, 0, 0, 9], port).into(), ([10, 0, 0, 8], port).into()],
            _ => Vec::new(),
        }
    };
    let (first, second) = (loaded.compiled.snapshot(1, &resolve), loaded.compiled.snapshot(2, &resolve));
    assert_eq!((first.generation, second.generation), (1, 2));
    let endpoints: Vec<(String, u16)> =
        first.services[1].endpoints.iter().map(|one| (one.address.to_string(), one.weight)).collect();
    assert_eq!(endpoints, [("10.0.0.9:80".to_owned(), 1), ("10.0.0.8:80".to_owned(), 5)]);
    assert_eq!(first.services[1], second.services[1]);
    assert!(Arc::ptr_eq(&first.services[0], &second.services[0]));

    let mut reloaded = taken(&text);
    assert!(!Arc::ptr_eq(&snapshot(&reloaded).services[0], &first.services[0]));
    reloaded.compiled.share(&loaded.compiled);
    assert!(Arc::ptr_eq(&snapshot(&reloaded).services[0], &first.services[0]));
    assert!(reloaded.compiled.settings.need_restart(&loaded.compiled.settings).is_empty());
    let other = taken(&format!("shards = 2\nruntime = \"io_uring\"\n[admin]\naddress = \"off\"\n{LISTENER}"));
    assert_eq!(
        other.compiled.settings.need_restart(&loaded.compiled.settings),
        ["shards", "runtime", "admin.address"]
    );
}

#[test]
fn the_effective_configuration_is_toml_again_and_bounded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/reference.toml");
    let loaded = config::load(&[path], &none).unwrap();
    for setting in loaded.compiled.effective() {
        let parsed = format!("x = {}", setting.value).parse::<toml::Table>();
        assert!(parsed.is_ok(), "{setting:?}");
    }
    let many: String = (0..1500).map(|n| format!("[[service]]\nname = \"s{n}\"\n")).collect();
    let effective = taken(&format!("{LISTENER}{many}")).compiled.effective();
    assert!(effective.iter().any(|setting| setting.value == "# 500 more are not shown"));
    assert!(effective.len() < 60_000);
}

#[test]
fn ten_thousand_services_with_ten_endpoints_are_taken() {
    let loaded = taken(&large(10_000, 10));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let snapshot = snapshot(&loaded);
    assert_eq!(snapshot.services.len(), 10_000);
    assert_eq!(snapshot.services.iter().map(|service| service.endpoints.len()).sum::<usize>(), 100_000);
    assert_eq!(loaded.compiled.route_count(), 10_000);
}

fn large(services: usize, endpoints: usize) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("[[listener]]\naddress = \"127.0.0.1:15001\"\n");
    for service in 0..services {
        let _ = write!(text, "[[service]]\nname = \"service-{service}\"\nendpoints = [");
        for endpoint in 0..endpoints {
            let _ = write!(text, "\"10.{}.{}.{}:8080\", ", service / 250, service % 250, endpoint + 1);
        }
        let _ = write!(
            text,
            "]\n[[route]]\nhosts = [\"service-{service}.mesh.example\"]\npath_prefix = \"/api\"\nservice = \
             \"service-{service}\"\n"
        );
    }
    text
}
