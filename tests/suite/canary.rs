//! Canaries over real sockets, with a whole proxy: one that is promoted, one that turns bad and is rolled back, a restart, and what a
//! person says in between. Their judgement has simulations beside it (src/control/canary).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ringmesh::config;
use ringmesh::control::{Proxy, Start};
use serde_json::Value;

use crate::support::GUARD;
use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::origin::Origin;
use crate::support::wire::Message;

/// A service that says who it is, and fails when it is told to.
fn service(name: &'static str, bad: &Arc<AtomicBool>) -> Origin {
    let bad = Arc::clone(bad);
    Origin::answering(move |_: &Message| {
        let status = if bad.load(Ordering::Acquire) { "500 Broken" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes()
    })
}

/// Services `a` and `b`, of which `b` may turn bad.
struct Two {
    a: Origin,
    b: Origin,
    bad: Arc<AtomicBool>,
    folder: Folder,
}

impl Two {
    fn new() -> Self {
        let bad = Arc::new(AtomicBool::new(false));
        let good = Arc::new(AtomicBool::new(false));
        Self { a: service("a", &good), b: service("b", &bad), bad, folder: Folder::new() }
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path("b.json")
    }

    fn start(&self, steps: &str, more: &str) -> Proxy {
        Proxy::start(Start::text(text(&self.a, &self.b, &self.state(), steps, more))).unwrap()
    }
}

/// Latencies of two processes on a busy machine differ by chance: only errors are judged here.
fn text(a: &Origin, b: &Origin, state: &Path, steps: &str, more: &str) -> String {
    format!(
        "shards = 2\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n[[service]]\nname = \
         \"a\"\nendpoints = [{:?}]\n[[service]]\nname = \"b\"\nendpoints = [{:?}]\n[[route]]\nname = \"ab\"\nsplit = [{{ service = \
         \"a\", weight = 1 }}, {{ service = \"b\", weight = 0 }}]\n[[canary]]\nname = \"b\"\nroute = \"ab\"\nbaseline = \
         \"a\"\ncanary = \"b\"\nsteps = {steps}\nsamples_min = 20\nlatency_tolerated = 10000\nstate = {:?}\n{more}\n",
        a.endpoint,
        b.endpoint,
        state.display().to_string()
    )
}

/// Sends requests until the canary is as wanted.
fn until(proxy: &Proxy, what: &str, ready: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    let mut client = Client::connect(proxy.listener("in").unwrap());
    loop {
        for _ in 0..50 {
            ask(&mut client);
        }
        let status = status(proxy);
        if ready(&status) {
            return status;
        }
        assert!(began.elapsed() < 2 * GUARD, "in vain until {what}: {status:#}");
    }
}

/// Who answers.
fn ask(client: &mut Client) -> String {
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.response().text()
}

fn status(proxy: &Proxy) -> Value {
    let page = http(proxy.admin().unwrap(), "GET", "/canary?format=json").1;
    serde_json::from_str::<Value>(&page).unwrap()["canaries"][0].clone()
}

fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn end(proxy: Proxy) {
    proxy.drain();
    proxy.join();
}

#[test]
fn one_that_is_no_worse_gets_all_requests_in_the_end_and_keeps_them_over_a_restart() {
    let two = Two::new();
    let proxy = two.start("[20, 60, 100]", "step_time = \"1s\"");
    assert_eq!(status(&proxy)["share_percent"], 20.0);
    let promoted = until(&proxy, "promoted", |status| status["phase"] == "promoted");
    assert_eq!(
        (&promoted["share_percent"], &promoted["moves"]["step"]),
        (&100.0.into(), &1.into()),
        "{promoted:#}"
    );
    let mut client = Client::connect(proxy.listener("in").unwrap());
    for _ in 0..50 {
        assert_eq!(ask(&mut client), "b");
    }
    let metrics = http(proxy.admin().unwrap(), "GET", "/metrics").1;
    for line in [
        "ringmesh_canary_share_ratio{canary=\"b\"} 1",
        "ringmesh_canary_phase{canary=\"b\",phase=\"promoted\"} 1",
        "ringmesh_canary_moves_total{canary=\"b\",kind=\"promoted\"} 1",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    // What the route saw is both services' together, and what they were sent is all of it.
    let page = http(proxy.admin().unwrap(), "GET", "/routes?format=json").1;
    let routes = &serde_json::from_str::<Value>(&page).unwrap()["routes"];
    assert!(routes[0]["name"] == "ab" && routes[0]["by_class"]["2xx"].as_u64() > Some(40), "{page}");
    assert!(routes[0]["whole"]["p50_seconds"].as_f64() > Some(0.0), "{page}");
    for line in [
        "ringmesh_route_exchanges_total{route=\"ab\",class=\"2xx\"} ",
        "ringmesh_route_whole_seconds_count{route=\"ab\"} ",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    drop(client);
    end(proxy);
    // Another process, the same file.
    let proxy = two.start("[20, 60, 100]", "step_time = \"1s\"");
    assert_eq!(status(&proxy)["phase"], "promoted");
    assert_eq!(ask(&mut Client::connect(proxy.listener("in").unwrap())), "b");
    end(proxy);
}

#[test]
fn one_that_turns_bad_is_rolled_back_and_stays_so_over_a_restart() {
    let two = Two::new();
    let proxy = two.start("[50, 60, 100]", "step_time = \"1h\"");
    until(&proxy, "there are numbers", |status| status["seen"]["canary"]["exchanges"].as_u64() > Some(50));
    assert_eq!(status(&proxy)["phase"], "running");
    two.bad.store(true, Ordering::Release);
    let back = until(&proxy, "rolled back", |status| status["phase"] == "rolled_back");
    assert!(back["reason"].as_str().unwrap().starts_with("errors: at least"), "{back:#}");
    let mut client = Client::connect(proxy.listener("in").unwrap());
    for _ in 0..50 {
        assert_eq!(ask(&mut client), "a");
    }
    drop(client);
    end(proxy);
    let proxy = two.start("[50, 60, 100]", "step_time = \"1h\"");
    assert_eq!(
        (&status(&proxy)["phase"], &status(&proxy)["share_percent"]),
        (&"rolled_back".into(), &0.0.into())
    );
    // A state that cannot be read sends nobody to the canary.
    end(proxy);
    std::fs::write(two.state(), "{").unwrap();
    let proxy = two.start("[50, 60, 100]", "step_time = \"1h\"");
    assert_eq!(status(&proxy)["phase"], "rolled_back");
    end(proxy);
}

#[test]
fn it_does_what_it_is_told_and_a_reload_changes_nothing_of_that() {
    let two = Two::new();
    let proxy = two.start("[1, 100]", "step_time = \"1h\"");
    let admin = proxy.admin().unwrap();
    let tell = |order: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringmesh"));
        let done = command.args(["canary", order, "b", "--admin", &admin.to_string()]).output().unwrap();
        let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        (done.status.code().unwrap(), said.trim().to_owned())
    };
    assert_eq!(tell("pause"), (0, "b is paused at 1 %".into()));
    assert_eq!(tell("pause").0, 1);
    assert_eq!(tell("resume"), (0, "b is running at 1 %".into()));
    assert_eq!(tell("promote"), (0, "b is promoted at 100 %".into()));
    assert_eq!(ask(&mut Client::connect(proxy.listener("in").unwrap())), "b");
    assert_eq!(tell("rollback"), (0, "b is rolled_back at 0 %".into()));
    assert_eq!(ask(&mut Client::connect(proxy.listener("in").unwrap())), "a");
    proxy.reload(&text(&two.a, &two.b, &two.state(), "[1, 50, 100]", "step_time = \"2h\"")).unwrap();
    assert_eq!(status(&proxy)["phase"], "rolled_back");
    assert_eq!(ask(&mut Client::connect(proxy.listener("in").unwrap())), "a");
    let (code, said) = tell("resume");
    assert!(code == 1 && said.contains("restart"), "{said}");
    assert_eq!(tell("restart"), (0, "b is running at 1 %".into()));
    assert_eq!(http(admin, "POST", "/canary/c/promote").0, 409);
    assert_eq!(http(admin, "POST", "/canary/b/dance").0, 404);
    assert!(http(admin, "POST", "/canary/b/dance").1.contains("promote, rollback, pause, resume, restart"));
    assert_eq!(http(admin, "GET", "/canary/b/promote").0, 405);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    let table = command.args(["canary", "status", "--admin", &admin.to_string()]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("running") && table.contains("told to begin anew"), "{table}");
    end(proxy);
}

#[test]
fn what_is_wrong_with_a_canary_is_told_with_its_remedy() {
    let before = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"a\"\nendpoints = \
                  [\"127.0.0.1:1\"]\n[[service]]\nname = \"b\"\nendpoints = [\"127.0.0.1:2\"]\n[[service]]\nname = \
                  \"c\"\nendpoints = [\"127.0.0.1:3\"]\n[[route]]\nname = \"ab\"\nsplit = [{ service = \"a\" }, { service = \
                  \"b\" }]\n[[route]]\nname = \"plain\"\npath = \"/c\"\nservice = \"c\"\n";
    let good = "name = \"b\"\nroute = \"ab\"\nbaseline = \"a\"\ncanary = \"b\"\n";
    let with = |more: &str| format!("{good}{more}");
    for (canary, want) in [
        (String::new(), "a canary needs `name`"),
        (good.replace("\"ab\"", "\"abc\""), "there is no route `abc`"),
        (good.replace("\"ab\"", "\"plain\""), "the route `plain` has no split"),
        (good.replace("canary = \"b\"", "canary = \"c\""), "service `c` is not in the split of route `ab`"),
        (good.replace("canary = \"b\"", "canary = \"a\""), "the same service"),
        (good.replace("canary = \"b\"", "canary = \"a\""), "let one be a service of its own"),
        (
            format!("{good}[[canary]]\n{}", good.replace("name = \"b\"", "name = \"other\"")),
            "two canaries for the route `ab`",
        ),
        (with("steps = [5, 1, 100]"), "do not rise"),
        (with("steps = [1, 5]"), "the last of them 100"),
        (with("steps = [100]"), "at least two"),
        (with("steps = [0, 100]"), "out of its bounds"),
        (with("errors_tolerated = 101"), "out of its bounds"),
        (with("errors_tolerated = \"1\""), "without quotes"),
        (with("false_alarms_max = 0"), "out of its bounds"),
        (with("samples_min = 1"), "from 20 to"),
        (with("state = \"file\""), "is not the path of a file"),
    ] {
        let report = match config::parse("bad.toml", &format!("{before}[[canary]]\n{canary}\n"), &|_| None) {
            Ok(_) => panic!("{canary}: no error"),
            Err(report) => report.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        assert!(report.contains(want), "{canary}: no `{want}` in\n{report}");
    }
}
