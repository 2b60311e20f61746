//! The real binary, from outside: its ports, signals, files, exit codes and words.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests look at the clock to know a hang, and lock"
)]

#[path = "process/authority.rs"]
mod authority;
#[path = "process/binary.rs"]
mod binary;
#[path = "process/chapters.rs"]
mod chapters;
#[path = "process/demo.rs"]
mod demo;
#[path = "process/http2.rs"]
mod http2;
#[path = "process/mtls.rs"]
mod mtls;
#[path = "process/peers.rs"]
mod peers;
#[path = "process/wishes.rs"]
mod wishes;

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use binary::{Folder, Running, eventually, ringmesh};
use peers::{Caller, Load, Origin};

/// A listener on a free port, one service, and what else is given before them.
fn config(origin: SocketAddr, more: &str) -> String {
    format!(
        "shards = 2\n[admin]\naddress = \"127.0.0.1:0\"\n{more}\n[[listener]]\nname = \"inbound\"\naddress = \
         \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = [\"{origin}\"]\n[[route]]\nservice = \"app\"\n"
    )
}

/// Requests until it is certain that every caller and shard is busy.
const WARM: u64 = 500;

fn until_warm(load: &Load) {
    eventually("the load runs", || (load.answered() >= WARM).then_some(()));
}

/// The first answer of a new connection.
fn ask(to: SocketAddr, path: &str) -> peers::Answer {
    Caller::connect(to).unwrap().get(path).unwrap()
}

fn none(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} requests failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}

// --- start ---

#[test]
fn ports_that_the_kernel_chose_are_told_and_served() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let mut proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    assert_eq!(ask(proxy.listener("inbound"), "/").body, "hello");
    assert_eq!(proxy.page("/ready"), (200, "ready\n".into()));
    assert_eq!(proxy.json("/build?format=json")["pid"], proxy.pid());
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    assert_eq!(proxy.stdout(), "", "the log goes to standard error");
}

#[test]
fn a_bad_configuration_is_exit_code_2_and_a_report() {
    let folder = Folder::new();
    let file = folder.write("bad.toml", "[[listener]]\naddres = \"127.0.0.1:1\"\n[timeouts]\nhead = 10\n");
    let mut proxy = Running::start(ringmesh(["run", "--config", file.to_str().unwrap()]));
    assert_eq!(proxy.wait().code(), Some(2));
    let said = proxy.stderr();
    assert!(said.contains("bad.toml:2:1") && said.contains("`address`"), "{said}");
    assert!(said.contains("bad.toml:4:8") && said.contains("10s"), "all mistakes at once: {said}");
    assert!(said.ends_with("\nnot started: 3 errors in the configuration\n"), "{said}");
    let mut missing = Running::start(ringmesh(["run", "--config", "/nonexistent.toml"]));
    assert_eq!(missing.wait().code(), Some(2));
    assert!(missing.stderr().contains("/nonexistent.toml"), "{}", missing.stderr());
}

#[test]
fn a_port_in_use_is_exit_code_1_and_a_remedy() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text =
        config(address, "").replace("\"127.0.0.1:0\"\n[[service]]", &format!("\"{address}\"\n[[service]]"));
    let mut proxy =
        Running::start(ringmesh(["run", "--config", folder.write("a.toml", &text).to_str().unwrap()]));
    assert_eq!(proxy.wait().code(), Some(1));
    let said = proxy.stderr();
    assert!(
        said.contains("listener `inbound` cannot listen on") && said.contains(&address.to_string()),
        "{said}"
    );
    assert!(said.ends_with("\nnot started\n"), "{said}");
    assert!(
        said.contains(&format!(
            "help: another process listens there; find it with `ss -ltnp 'sport = :{}'`",
            address.port()
        )),
        "{said}"
    );
}

#[test]
fn doctor_tells_in_words_and_in_json() {
    let mut words = Running::start(ringmesh(["doctor"]));
    let mut json = Running::start(ringmesh(["doctor", "--json"]));
    let code = words.wait().code();
    assert_eq!(code, json.wait().code());
    let report: Value = serde_json::from_str(&json.stdout()).unwrap();
    assert_eq!(report["possible"], code == Some(0));
    assert!(words.stdout().contains("io_uring"), "{}", words.stdout());
}

// --- end ---

#[test]
fn sigterm_under_load_fails_no_request_and_is_exit_code_0() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let mut proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    let inbound = proxy.listener("inbound");
    let mut slow = Caller::connect(inbound).unwrap();
    slow.send("/hold").unwrap();
    eventually("a slow request is in flight", || (origin.waiting() == 1).then_some(()));
    let load = Load::start(inbound, 8);
    until_warm(&load);

    proxy.signal(Signal::TERM);
    eventually("/ready says that it drains", || {
        let (status, said) = proxy.page("/ready");
        (status == 503).then(|| assert!(said.contains("draining"), "{said}"))
    });
    eventually("all callers find that nobody listens", || load.has_ended().then_some(()));
    none(&load.stop());
    assert!(!proxy.has_ended(), "it waits for the slow request");
    origin.release();
    let last = slow.receive().unwrap();
    assert_eq!((last.status, last.close), (200, true));
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let mut proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    let mut slow = Caller::connect(proxy.listener("inbound")).unwrap();
    slow.send("/hold").unwrap();
    eventually("a slow request is in flight", || (origin.waiting() == 1).then_some(()));
    proxy.signal(Signal::TERM);
    eventually("it drains", || (proxy.page("/ready").0 == 503).then_some(()));
    // The first ones may come so soon that they count as the same.
    eventually("it ends", || {
        proxy.signal(Signal::TERM);
        proxy.has_ended().then_some(())
    });
    assert_eq!(proxy.wait().code(), Some(1));
    assert!(slow.receive().is_err(), "what was in flight is cut");
    origin.release();
}

#[test]
fn a_proxy_ends_with_the_supervisor_that_holds_its_standard_input() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let mut proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    let load = Load::start(proxy.listener("inbound"), 2);
    until_warm(&load);
    proxy.end_stdin();
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.stderr());
    none(&load.stop());
}

// --- reload ---

#[test]
fn a_hundred_reloads_under_load_fail_no_request() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    let load = Load::start(proxy.listener("inbound"), 4);
    until_warm(&load);
    for number in 1..=100 {
        let before = proxy.generation();
        folder
            .write("a.toml", &config(origin.address, &format!("[timeouts]\nidle = \"{}s\"\n", 100 + number)));
        proxy.signal(Signal::HUP);
        eventually("the next generation", || (proxy.generation() > before).then_some(()));
    }
    let answered = load.answered();
    eventually("the load goes on", || (load.answered() > answered + WARM).then_some(()));
    none(&load.stop());
    assert!(proxy.generation() > 100);
    let (_, config) = proxy.page("/config");
    assert!(config.contains("200s") || config.contains("3m20s"), "{config}");
}

#[test]
fn a_file_that_is_renamed_into_place_is_taken_without_a_signal() {
    let folder = Folder::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let proxy = Running::proxy(&folder.write("a.toml", &config(one.address, "")));
    let inbound = proxy.listener("inbound");
    let mut caller = Caller::connect(inbound).unwrap();
    assert_eq!(caller.get("/").unwrap().body, "one");
    folder.write("a.toml", &config(two.address, ""));
    eventually("the new origin answers on the old connection", || {
        (caller.get("/").unwrap().body == "two").then_some(())
    });
}

#[test]
fn a_kubernetes_volume_that_swaps_its_link_is_taken_without_a_signal() {
    let folder = Folder::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let version = |name: &str, origin: SocketAddr| {
        std::fs::create_dir(folder.path(name)).unwrap();
        std::fs::write(folder.path(name).join("a.toml"), config(origin, "")).unwrap();
    };
    version("..2026_1", one.address);
    symlink("..2026_1", folder.path("..data")).unwrap();
    symlink("..data/a.toml", folder.path("a.toml")).unwrap();
    let proxy = Running::proxy(&folder.path("a.toml"));
    let inbound = proxy.listener("inbound");
    assert_eq!(ask(inbound, "/").body, "one");

    version("..2026_2", two.address);
    symlink("..2026_2", folder.path("..data_tmp")).unwrap();
    std::fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    std::fs::remove_dir_all(folder.path("..2026_1")).unwrap();
    eventually("the new origin answers", || (ask(inbound, "/").body == "two").then_some(()));
}

#[test]
fn a_bad_file_changes_nothing_and_is_explained() {
    let folder = Folder::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let proxy = Running::proxy(&folder.write("a.toml", &config(one.address, "")));
    let inbound = proxy.listener("inbound");
    let bad = config(two.address, "").replace("service = \"app\"", "service = \"ap\"");
    folder.write("a.toml", &bad);
    let said = eventually("the refusal", || {
        let said = proxy.stderr();
        said.contains("configuration refused; nothing has changed").then_some(said)
    });
    assert!(
        said.contains("a.toml:") && said.contains("`ap`") && said.contains("did you mean \"app\"?"),
        "{said}"
    );
    assert_eq!((proxy.generation(), ask(inbound, "/").body.as_str()), (1, "one"));
    assert!(proxy.page("/config").1.contains("last refused"));
    folder.write("a.toml", &config(two.address, ""));
    eventually("the corrected file is taken", || (ask(inbound, "/").body == "two").then_some(()));
}

// --- what it tells ---

#[test]
fn every_request_is_a_line_of_the_access_log() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let log = folder.path("access.log");
    let table = format!("[access_log]\npath = \"{}\"\n", log.display());
    let proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, &table)));
    let inbound = proxy.listener("inbound");
    let lines = |log: &std::path::Path| -> Vec<Value> {
        let text = std::fs::read_to_string(log).unwrap();
        // The last one may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    };
    for connection in 0..10 {
        let mut caller = Caller::connect(inbound).unwrap();
        for request in 0..10 {
            assert_eq!(caller.get(&format!("/{connection}/{request}?\"quoted\"")).unwrap().status, 200);
        }
    }
    let written = eventually("all lines", || {
        let written = lines(&log);
        (written.len() >= 100).then_some(written)
    });
    assert_eq!(written.len(), 100);
    let mut targets: Vec<&str> = written.iter().map(|line| line["target"].as_str().unwrap()).collect();
    targets.sort_unstable();
    targets.dedup();
    assert_eq!((targets.len(), targets[0]), (100, "/0/0?\"quoted\""));
    assert!(written.iter().all(|line| line["status"] == 200 && line["service"] == "app"));

    // Rotated: the lines before are in the old file, those after in the new one.
    let old = folder.path("access.log.1");
    std::fs::rename(&log, &old).unwrap();
    proxy.signal(Signal::USR1);
    eventually("the log is opened again", || log.exists().then_some(()));
    assert_eq!(ask(inbound, "/after").status, 200);
    eventually("a line in the new file", || (lines(&log).len() == 1).then_some(()));
    assert_eq!((lines(&log)[0]["target"].as_str(), lines(&old).len()), (Some("/after"), 100));
}

#[test]
fn an_access_log_on_standard_output_is_not_mixed_with_the_log() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let table = "[access_log]\npath = \"stdout\"\n";
    let mut proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, table)));
    let inbound = proxy.listener("inbound");
    assert_eq!((0..20).map(|_| ask(inbound, "/").status).filter(|status| *status == 200).count(), 20);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    let out = proxy.stdout();
    assert_eq!(out.lines().count(), 20, "those of the last moment, too");
    assert!(out.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{out}");
}

#[test]
fn metrics_add_up_to_the_requests() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    let proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    let inbound = proxy.listener("inbound");
    for _ in 0..20 {
        let mut caller = Caller::connect(inbound).unwrap();
        assert!((0..10).all(|_| caller.get("/").unwrap().status == 200));
    }
    let sum = |metrics: &str, start: &str| -> f64 {
        let found = metrics.lines().filter(|line| line.starts_with(start));
        found.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    let metrics = eventually("200 exchanges", || {
        let metrics = proxy.page("/metrics").1;
        (sum(&metrics, "ringmesh_exchanges_total{service=\"app\"") >= 200.0).then_some(metrics)
    });
    for (start, wanted) in [
        ("ringmesh_exchanges_total{service=\"app\"", 200.0),
        ("ringmesh_whole_seconds_count{service=\"app\"", 200.0),
        ("ringmesh_own_seconds_count{service=\"app\"", 200.0),
        ("ringmesh_response_body_bytes_total{service=\"app\"", 200.0 * "hello".len() as f64),
        ("ringmesh_downstream_accepted_total", 20.0),
        ("ringmesh_failures_total", 0.0),
    ] {
        assert_eq!(sum(&metrics, start), wanted, "{start} in\n{metrics}");
    }
}

// --- limits and peers ---

#[test]
fn connections_over_the_limit_are_closed_until_there_is_room() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    // However the kernel divides them between the two shards.
    let text = config(origin.address, "[limits]\nconnections_max = 8\n");
    let proxy = Running::proxy(&folder.write("a.toml", &text));
    let inbound = proxy.listener("inbound");
    let mut callers: Vec<Caller> = (0..8).map(|_| Caller::connect(inbound).unwrap()).collect();
    assert!(callers.iter_mut().all(|caller| caller.get("/").unwrap().status == 200));
    for _ in 0..3 {
        assert!(Caller::connect(inbound).unwrap().get("/").is_err(), "the ninth connection is closed");
    }
    assert!(callers.iter_mut().all(|caller| caller.get("/").unwrap().status == 200), "the others are not");
    callers.pop();
    eventually("there is room again", || Caller::connect(inbound).unwrap().get("/").ok());
    eventually("refusals are counted", || {
        let metrics = proxy.page("/metrics").1;
        let lines = metrics.lines().filter(|line| line.starts_with("ringmesh_downstream_refused_total{"));
        let refused: f64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        (refused >= 3.0).then_some(())
    });
}

#[test]
fn a_process_that_is_short_of_memory_refuses_and_says_so_until_it_is_not() {
    let (folder, origin) = (Folder::new(), Origin::start("hello"));
    // No process is so small.
    let short = config(origin.address, "[overload]\nmemory_max = \"1MiB\"\n");
    let proxy = Running::proxy(&folder.write("a.toml", &short));
    let inbound = proxy.listener("inbound");
    let value = |name: &str| {
        let metrics = proxy.page("/metrics").1;
        // Of all shards.
        let values = metrics.lines().filter(|line| line.starts_with(name));
        values.map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<Option<f64>>()
    };
    eventually("it is short", || (value("ringmesh_memory_pressure") == Some(5.0)).then_some(()));
    assert_eq!(value("ringmesh_memory_max_bytes"), Some(1_048_576.0));
    assert!(value("ringmesh_memory_resident_bytes") > Some(1_048_576.0));
    eventually("connections are refused", || {
        Caller::connect(inbound).unwrap().get("/").is_err().then_some(())
    });
    // The admin address answers throughout, and the process is alive and ready: taken out of use it would be of no help.
    assert_eq!((proxy.page("/live").0, proxy.page("/ready").0), (200, 200));
    assert!(proxy.stderr().contains("memory is short: all new requests are refused"), "{}", proxy.stderr());
    folder.write("a.toml", &short.replace("1MiB", "off"));
    eventually("it serves", || {
        Caller::connect(inbound).unwrap().get("/").ok().filter(|answer| answer.status == 200)
    });
    assert_eq!(value("ringmesh_memory_pressure"), Some(0.0));
    assert!(proxy.stderr().contains("nothing is refused any more"), "{}", proxy.stderr());
    eventually("refusals are counted", || (value("ringmesh_memory_refused_total") > Some(0.0)).then_some(()));
}

#[test]
fn an_origin_that_closes_idle_connections_early_fails_no_request() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let folder = Folder::new();
    let origin = Origin::closing_after("hello", Duration::from_millis(100));
    let proxy = Running::proxy(&folder.write("a.toml", &config(origin.address, "")));
    // About when the origin closes, so that many requests meet the close on their way.
    let load = Load::with_pauses(proxy.listener("inbound"), 16, |number| {
        let mut rng = fastrand::Rng::with_seed(seed ^ number as u64);
        move || Duration::from_micros(rng.u64(50_000..150_000))
    });
    eventually("a thousand requests", || (load.answered() >= 1000).then_some(()));
    none(&load.stop());
    let shards = proxy.json("/shards?format=json");
    let dead: u64 =
        shards["shards"].as_array().unwrap().iter().map(|s| s["upstream_found_dead"].as_u64().unwrap()).sum();
    println!("pooled connections found dead: {dead}");
}
