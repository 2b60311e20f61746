//! A whole control side with shards that obey the link and serve nobody.

use super::testing::{
    Folder, Zone, deaf_shard, eventually, fake_shard, mortal_shard, name_server, page, request,
    ringless_shard, stillborn_shard, stubborn_shard,
};
use super::*;
use crate::shard::link::Order;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering;
use std::time::Duration;

const TWO_SHARDS: &str = "shards = 2\n[admin]\naddress = \"127.0.0.1:0\"\n";
const INBOUND: &str = "[[listener]]\nname = \"inbound\"\naddress = \"127.0.0.1:0\"\n";
const OUTBOUND: &str = "[[listener]]\nname = \"outbound\"\naddress = \"127.0.0.1:0\"\n";
const REST: &str = "[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\", \"localhost:9001\"]\n\
                    [[route]]\nservice = \"app\"\n";

fn text(parts: &[&str]) -> String {
    parts.concat()
}

fn start_with(spawn: Spawn, text: String) -> Result<Proxy, StartError> {
    Proxy::start(Start { spawn, ..Start::text(text) })
}

fn started() -> Proxy {
    start_with(fake_shard, text(&[TWO_SHARDS, INBOUND, REST])).unwrap()
}

fn generations(proxy: &Proxy) -> Vec<u64> {
    proxy.links().iter().map(|l| l.vitals.generation.load(Ordering::Acquire)).collect()
}

/// How many sockets listen on an address.
fn sockets(address: SocketAddr) -> usize {
    let wanted = format!("0100007F:{:04X} 00000000:0000 0A", address.port());
    std::fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(|l| l.contains(&wanted)).count()
}

#[test]
fn an_address_in_use_stops_the_start_with_a_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listener = format!("[[listener]]\naddress = \"{address}\"\n");
    let error = start_with(fake_shard, text(&[TWO_SHARDS, INBOUND, &listener, REST])).err().unwrap();
    assert_eq!(error.exit_code(), 1);
    let said = error.to_string();
    assert!(said.contains("listener `listener-2`") && said.contains(&address.to_string()), "{said}");
    assert!(said.contains("help: another process listens there"), "{said}");
}

#[test]
fn a_configuration_with_errors_or_for_another_machine_is_exit_code_2() {
    assert_eq!(start_with(fake_shard, "no_such_key = 1\n".into()).err().unwrap().exit_code(), 2);
    let error = start_with(fake_shard, text(&["shards = [1000]\n", INBOUND, REST])).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("CPU 1000"), "{error}");
}

#[test]
fn a_shard_that_cannot_start_stops_the_start() {
    let config = text(&[TWO_SHARDS, INBOUND, REST]);
    let refuse: Spawn = |plan| match plan.shard {
        0 => fake_shard(plan),
        _ => Err(io::Error::other("no ring")),
    };
    let error = start_with(refuse, config.clone()).err().unwrap();
    assert_eq!((error.exit_code(), error.to_string().as_str()), (1, "cannot start shard 1: no ring"));
    let error = start_with(stillborn_shard, config).err().unwrap();
    assert!(error.to_string().contains(": its thread ended"), "{error}");
}

#[test]
fn a_shard_without_a_runtime_stops_the_start_and_says_why_and_what_to_do() {
    let config = text(&["runtime = \"io_uring\"\n", TWO_SHARDS, INBOUND, REST]);
    let error = start_with(ringless_shard, config).err().unwrap();
    assert_eq!(error.exit_code(), 1);
    let said = error.to_string();
    assert!(said.contains("no ring: Operation not permitted") && said.contains("help: "), "{said}");
    assert!(said.contains("runtime = \"auto\""), "{said}");
}

#[test]
fn every_shard_has_its_socket_before_the_start_returns() {
    let proxy = started();
    let inbound = proxy.listener("inbound").unwrap();
    assert_eq!((proxy.shards(), sockets(inbound)), (2, 2));
    assert_eq!(generations(&proxy), [1, 1]);
    assert!(proxy.listener("outbound").is_none());
    TcpStream::connect(inbound).unwrap();
    proxy.drain();
    assert_eq!(proxy.join(), Ended::Drained);
    eventually("the sockets are closed", || sockets(inbound) == 0);
}

#[test]
fn pages_and_metrics_tell_what_the_shards_have_seen() {
    let proxy = started();
    let admin = proxy.admin().unwrap();
    assert_eq!(page(admin, "/ready"), (200, "ready\n".into()));
    assert_eq!(page(admin, "/live").0, 200);
    assert!(page(admin, "/").1.contains("/metrics"));
    eventually("a merged interval", || {
        page(admin, "/metrics").1.contains("ringmesh_exchanges_total{service=\"app\"")
    });
    let json = |path: &str| serde_json::from_str::<serde_json::Value>(&page(admin, path).1).unwrap();

    let services = json("/services?format=json");
    let app = &services["services"][0];
    assert_eq!(app["name"], "app");
    assert!(app["by_class"]["2xx"].as_u64().unwrap() > 0 && app["by_class"]["none"] == 0, "{app}");
    assert!(app["last_10_seconds"]["rate"].as_f64().unwrap() > 0.0);
    let p50 = app["last_10_seconds"]["whole_seconds"]["p50"].as_f64().unwrap();
    assert!((p50 - 0.010).abs() < 0.0002, "{p50}");
    let endpoints: Vec<_> =
        app["endpoints"].as_array().unwrap().iter().map(|e| e["address"].as_str().unwrap()).collect();
    assert_eq!(endpoints, ["127.0.0.1:9000", "127.0.0.1:9001"], "localhost is resolved");
    let table = page(admin, "/services").1;
    assert!(table.starts_with("service") && table.contains("10.0 ms"), "{table}");

    assert_eq!(json("/shards?format=json")["shards"][1]["generation"], 1);
    assert!(page(admin, "/shards").1.contains("io_uring"));
    assert_eq!(json("/config?format=json")["generation"], 1);
    let config = page(admin, "/config").1;
    assert!(
        config.contains(&format!("listener inbound accepts on {}", proxy.listener("inbound").unwrap())),
        "{config}"
    );
    assert_eq!(json("/build?format=json")["pid"], std::process::id());
    let (_, fields, _) = request(admin, "GET /build HTTP/1.1\r\nAccept: application/json");
    assert!(fields.contains("content-type: application/json"), "{fields}");
    let (_, fields, body) = request(admin, "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text");
    assert!(
        fields.contains("application/openmetrics-text; version=1.0.0") && body.ends_with("# EOF\n"),
        "{fields}"
    );
    let (status, fields, body) = request(admin, "HEAD /metrics HTTP/1.1");
    assert!(status == 200 && body.is_empty() && fields.contains("content-length"), "{fields}");
    assert_eq!(page(admin, "/nothing").0, 404);
}

#[test]
fn orders_need_post_and_are_not_taken_from_web_pages() {
    let proxy = started();
    let admin = proxy.admin().unwrap();
    let (status, fields, _) = request(admin, "GET /drain HTTP/1.1");
    assert!(status == 405 && fields.contains("allow: post"), "{fields}");
    assert_eq!(request(admin, "POST /metrics HTTP/1.1\r\nContent-Length: 0").0, 405);
    assert_eq!(request(admin, "DELETE / HTTP/1.1").0, 405);
    let from_page = "POST /drain HTTP/1.1\r\nContent-Length: 0\r\nOrigin: http://evil.example";
    assert_eq!(request(admin, from_page).0, 403);
    assert_eq!(page(admin, "/ready").0, 200, "it did not drain");
    let reload = request(admin, "POST /reload HTTP/1.1\r\nContent-Length: 0");
    assert_eq!((reload.0, reload.2.as_str()), (200, "generation 2\n"));
    assert_eq!(request(admin, "POST /drain HTTP/1.1\r\nContent-Length: 0").0, 202);
    assert_eq!(proxy.join(), Ended::Drained);
}

#[test]
fn readiness_comes_from_the_data_path() {
    let proxy = start_with(deaf_shard, text(&[TWO_SHARDS, INBOUND, REST])).unwrap();
    let (status, reasons) = page(proxy.admin().unwrap(), "/ready");
    assert_eq!(status, 503);
    assert!(reasons.contains("shard 0: no answer") && reasons.contains("shard 1: no answer"), "{reasons}");
    assert_eq!(page(proxy.admin().unwrap(), "/live").0, 200);
    proxy.stop();
}

#[test]
fn a_proxy_whose_shards_have_all_ended_fails() {
    let proxy = start_with(mortal_shard, text(&[TWO_SHARDS, INBOUND, REST])).unwrap();
    for link in proxy.links() {
        link.order(Order::Ping(1)).unwrap();
    }
    assert_eq!(proxy.join(), Ended::Failed);
    assert_eq!(Ended::Failed.exit_code(), 1);
}

#[test]
fn a_draining_proxy_is_not_ready_and_can_be_stopped() {
    let proxy = start_with(stubborn_shard, text(&[TWO_SHARDS, INBOUND, REST])).unwrap();
    let admin = proxy.admin().unwrap();
    proxy.drain();
    eventually("not ready", || page(admin, "/ready") == (503, "draining: told to stop\n".into()));
    assert!(matches!(proxy.reload(&text(&[TWO_SHARDS, INBOUND, REST])), Err(ReloadError::Busy)));
    proxy.stop();
    assert_eq!((proxy.join(), Ended::Stopped.exit_code()), (Ended::Stopped, 1));
}

#[test]
fn the_drain_timeout_ends_a_drain_with_exit_code_0() {
    let folder = Folder::new("control-cut");
    let log = folder.path("access.log");
    let keys = format!("[timeouts]\ndrain = \"50ms\"\n[access_log]\npath = \"{}\"\n", log.display());
    let proxy = start_with(stubborn_shard, text(&[TWO_SHARDS, &keys, INBOUND, REST])).unwrap();
    proxy.drain();
    let ended = proxy.join();
    assert_eq!((ended, ended.exit_code()), (Ended::DrainTimeout { connections: 0 }, 0));
    // What the shards say of what they cut is waited for, and written.
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "cut\ncut\n");
}

#[test]
fn a_reload_adds_and_removes_listeners_and_leaves_the_others_alone() {
    let proxy = started();
    let inbound = proxy.listener("inbound").unwrap();
    assert_eq!(proxy.reload(&text(&[TWO_SHARDS, INBOUND, OUTBOUND, REST])).unwrap(), 2);
    assert_eq!(generations(&proxy), [2, 2]);
    let outbound = proxy.listener("outbound").unwrap();
    assert_eq!(proxy.listener("inbound"), Some(inbound));
    assert_eq!((sockets(inbound), sockets(outbound)), (2, 2));
    assert_eq!(proxy.reload(&text(&[TWO_SHARDS, OUTBOUND, REST])).unwrap(), 3);
    eventually("the sockets are closed", || sockets(inbound) == 0);
    assert_eq!((proxy.listener("inbound"), sockets(outbound)), (None, 2));
    eventually("old snapshots are dropped by control", || proxy.links().iter().all(|l| l.retired.is_empty()));
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    let proxy = started();
    let admin = proxy.admin().unwrap();
    let inbound = proxy.listener("inbound").unwrap();
    let error = proxy.reload("no_such_key = 1\n").unwrap_err();
    assert!(matches!(error, ReloadError::Config(_)) && error.to_string().contains("no_such_key"), "{error}");

    // An address in use refuses the whole, also the listener that could be bound.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = format!("[[listener]]\nname = \"x\"\naddress = \"{}\"\n", taken.local_addr().unwrap());
    let error = proxy.reload(&text(&[TWO_SHARDS, OUTBOUND, &listener, REST])).unwrap_err();
    assert!(matches!(error, ReloadError::Bind(_)), "{error}");

    // So does one that this proxy holds itself.
    let own = format!("[[listener]]\nname = \"all\"\naddress = \"0.0.0.0:{}\"\n", inbound.port());
    let error = proxy.reload(&text(&[TWO_SHARDS, &own, REST])).unwrap_err().to_string();
    assert!(error.contains("this proxy listens on") && error.contains("`inbound`"), "{error}");

    assert_eq!((generations(&proxy), sockets(inbound)), (vec![1, 1], 2));
    assert!(proxy.listener("outbound").is_none());
    let config = page(admin, "/config").1;
    assert!(config.contains("last refused") && config.contains("this proxy listens on"), "{config}");
    assert!(page(admin, "/config?format=json").1.contains("\"superseded\": false"));
    assert!(page(admin, "/metrics").1.contains("ringmesh_config_reloads_total{result=\"refused\"} 3"));
    proxy.reload(&text(&[TWO_SHARDS, INBOUND, REST])).unwrap();
    let config = page(admin, "/config").1;
    assert!(config.contains("a good one has taken its place since"), "{config}");
    assert!(!config.contains("this proxy listens on"), "{config}");
    assert!(page(admin, "/config?format=json").1.contains("\"superseded\": true"));
    assert_eq!(page(admin, "/ready").0, 200);
}

#[test]
fn what_only_a_restart_changes_is_kept_and_said() {
    let proxy = started();
    let admin = proxy.admin().unwrap();
    let other = "shards = 1\n[admin]\naddress = \"off\"\n";
    proxy.reload(&text(&[other, INBOUND, REST])).unwrap();
    let config = page(admin, "/config").1;
    assert!(config.contains("waiting for a restart: shards, admin.address\n"), "{config}");
    // What is in force stands in the table, whatever the file says.
    let shards = config.lines().find(|line| line.starts_with("shards ")).unwrap();
    assert!(shards.contains(" 2 # after a restart: 1"), "{shards}");
    proxy.reload(&text(&[TWO_SHARDS, INBOUND, REST])).unwrap();
    assert!(!page(admin, "/config").1.contains("waiting"));
}

#[test]
fn a_changed_file_is_taken_whichever_way_it_was_changed() {
    let folder = Folder::new("control-files");
    let with =
        |service: &str| text(&[TWO_SHARDS, INBOUND, &REST.replace("\"app\"", &format!("\"{service}\""))]);
    for n in 1..=2 {
        std::fs::create_dir(folder.path(&format!("..{n}"))).unwrap();
    }
    folder.write("..1/ringmesh.toml", &with("one"));
    folder.write("..2/ringmesh.toml", &with("two"));
    symlink("..1", folder.path("..data")).unwrap();
    let file = folder.path("ringmesh.toml");
    symlink("..data/ringmesh.toml", &file).unwrap();

    let start = Start { spawn: fake_shard, signals: false, ..Start::files(vec![file.clone()]) };
    let proxy = Proxy::start(start).unwrap();
    let admin = proxy.admin().unwrap();
    let serves = |service: &str| {
        eventually(service, || {
            page(admin, "/services?format=json").1.contains(&format!("\"name\":\"{service}\""))
        });
    };
    serves("one");
    // A Kubernetes volume: the link is swapped by rename.
    symlink("..2", folder.path("..new")).unwrap();
    std::fs::rename(folder.path("..new"), folder.path("..data")).unwrap();
    serves("two");
    // An editor: a new file is renamed over the old one.
    std::fs::rename(folder.write("new", &with("three")), &file).unwrap();
    serves("three");
    // A bad one is refused and the next good one taken.
    std::fs::write(&file, "no_such_key = 1\n").unwrap();
    eventually("refused", || page(admin, "/config").1.contains("no_such_key"));
    assert_eq!(page(admin, "/ready").0, 200);
    // So is one that is only just being written: the listener stays.
    let generation = || {
        serde_json::from_str::<serde_json::Value>(&page(admin, "/config?format=json").1).unwrap()["generation"].as_u64()
    };
    let (inbound, before) = (proxy.listener("inbound").unwrap(), generation());
    std::fs::write(&file, "").unwrap();
    eventually("refused", || page(admin, "/config").1.contains("there is no listener"));
    assert_eq!((generation(), sockets(inbound)), (before, 2));
    std::fs::write(&file, with("four")).unwrap();
    serves("four");
    // Touched without a change: only an explicit order reloads it.
    let before = generation().unwrap();
    assert_eq!(proxy.reload_source().unwrap(), before + 1);
}

#[test]
fn the_access_log_is_written_and_finished() {
    let folder = Folder::new("control-log");
    let log = folder.path("access.log");
    let table = format!("[access_log]\npath = \"{}\"\n", log.display());
    let proxy = start_with(fake_shard, text(&[TWO_SHARDS, &table, INBOUND, REST])).unwrap();
    proxy.links()[1].chunks.push(b"{}\n".to_vec()).unwrap();
    eventually("a line", || std::fs::read_to_string(&log).unwrap() == "{}\n");
    proxy.links()[0].chunks.push(b"{\"last\":true}\n".to_vec()).unwrap();
    proxy.drain();
    proxy.join();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "{}\n{\"last\":true}\n");
}

#[test]
fn a_reload_leads_the_access_log_elsewhere_and_off_and_on() {
    let folder = Folder::new("control-log-reload");
    let to = |name: &str| format!("[access_log]\npath = \"{}\"\n", folder.path(name).display());
    let proxy = started();
    let with = |log: &str| proxy.reload(&text(&[TWO_SHARDS, log, INBOUND, REST]));
    let reads = |name: &str, want: &str| {
        eventually(want, || std::fs::read_to_string(folder.path(name)).is_ok_and(|t| t == want));
    };
    with(&to("a.log")).unwrap();
    proxy.links()[0].chunks.push(b"one\n".to_vec()).unwrap();
    reads("a.log", "one\n");
    with(&to("b.log")).unwrap();
    eventually("the old writer has ended", || {
        proxy.links()[0].chunks.push(b"two\n".to_vec()).unwrap();
        eventually("written", || proxy.links()[0].chunks.is_empty());
        std::fs::read_to_string(folder.path("b.log")).is_ok_and(|t| t.ends_with("two\n"))
    });
    with("").unwrap();
    with(&to("b.log")).unwrap();
    let error = with(&to("nonexistent/c.log")).unwrap_err().to_string();
    assert!(error.contains("access log") && error.contains("help:"), "{error}");
    proxy.links()[0].chunks.push(b"three\n".to_vec()).unwrap();
    eventually("the last good one is written", || {
        std::fs::read_to_string(folder.path("b.log")).is_ok_and(|t| t.ends_with("three\n"))
    });
}

#[test]
fn an_access_log_that_cannot_be_opened_stops_the_start() {
    let nowhere = "[access_log]\npath = \"/nonexistent/access.log\"\n";
    let error = start_with(fake_shard, text(&[TWO_SHARDS, nowhere, INBOUND, REST])).err().unwrap();
    assert!(error.to_string().contains("cannot open the access log /nonexistent/access.log"), "{error}");
}

#[test]
fn no_more_admin_connections_than_the_ceiling() {
    let proxy = started();
    let admin = proxy.admin().unwrap();
    let held: Vec<_> = (0..admin::CONNECTIONS_MAX).map(|_| TcpStream::connect(admin).unwrap()).collect();
    let refused = || proxy.state.admin_refused.load(Ordering::Relaxed) > 0;
    eventually("a refusal", || {
        let mut one_more = TcpStream::connect(admin).unwrap();
        one_more.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let _ = io::Read::read(&mut one_more, &mut [0]);
        refused()
    });
    drop(held);
    eventually("room again", || {
        let mut stream = TcpStream::connect(admin).unwrap();
        let _ = io::Write::write_all(&mut stream, b"GET /live HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        io::Read::read_to_string(&mut stream, &mut answer).is_ok() && answer.contains("200")
    });
}

#[test]
fn a_name_that_moves_is_published_to_every_shard_without_a_reload() {
    let zone = Zone::default();
    zone.lock().unwrap().insert("app.internal".into(), vec![[10, 0, 0, 1].into()]);
    let rest =
        REST.replace("localhost:9001", "app.internal:80").replace("127.0.0.1:9000", "missing.internal:80");
    let config = text(&[TWO_SHARDS, INBOUND, &rest]);
    let name_servers = vec![name_server(&zone)];
    let proxy = Proxy::start(Start { spawn: fake_shard, name_servers, ..Start::text(config) }).unwrap();
    let admin = proxy.admin().unwrap();
    let endpoints = || {
        let page: serde_json::Value = serde_json::from_str(&page(admin, "/services?format=json").1).unwrap();
        let app = page["services"].as_array().unwrap().iter().find(|s| s["name"] == "app").cloned().unwrap();
        app["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["address"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        endpoints(),
        ["10.0.0.1:80"],
        "a name that cannot be resolved is an endpoint less, not an error"
    );
    zone.lock().unwrap().insert("app.internal".into(), vec![[10, 0, 0, 3].into(), [10, 0, 0, 2].into()]);
    eventually("the new addresses", || endpoints() == ["10.0.0.2:80", "10.0.0.3:80"]);
    eventually("the new generation", || generations(&proxy) == [2, 2]);
    assert!(page(admin, "/metrics").1.contains("ringmesh_name_lookups_total{result=\"good\"}"));
    assert_eq!(page(admin, "/ready").0, 200);
}
