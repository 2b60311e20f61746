//! The documents say what the code does: causes with their statuses, metrics, fields of the access log, examples, links.

#![allow(clippy::disallowed_methods, reason = "no shard: it waits for the second in which shards hand over")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmesh::config;
use ringmesh::control::{Proxy, Start};
use ringmesh::failure::{Cause, Failure, Stage};

use crate::support::folder::Folder;

/// A hung test fails; nothing is expected to take this long.
const GUARD: Duration = Duration::from_secs(20);

#[test]
fn every_cause_has_a_row_with_its_statuses() {
    let operations = read("docs/operations.md");
    for &cause in Cause::ALL {
        let row = format!("| `{}` | ", cause.label());
        let line = operations.lines().find(|line| line.starts_with(&row));
        let Some(line) = line else { panic!("docs/operations.md has no row `{row}…`") };
        let cells: Vec<&str> = line.split(" | ").collect();
        // `–`: cannot be this side's.
        let mine = Failure::downstream(Stage::Head, cause).status();
        assert!(cells[1] == "–" || cells[1] == mine.to_string(), "{line}\nthe caller is answered {mine}");
        // What ends a handshake never ends a response.
        let theirs = [Stage::Response, Stage::Handshake]
            .map(|stage| Failure::upstream(stage, cause).status().to_string());
        let told = cells[2].rsplit(' ').next().unwrap();
        assert!(
            told == "–" || theirs.iter().any(|t| t == told),
            "{line}\nthe service's is answered {theirs:?}"
        );
        assert!(cells[1] != "–" || told != "–", "{line}\nit must be somebody's");
    }
}

/// The list of what proxies must refuse of TLS has rows t01 to t34; a test is named by the rows that it shows.
#[test]
fn every_row_about_tls_has_a_test() {
    let mut names = Vec::new();
    let mut folders = vec![PathBuf::from("src"), PathBuf::from("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap().flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let functions =
                    text.split("fn ").skip(1).map(|rest| rest.split('(').next().unwrap().to_owned());
                names.extend(functions.filter(|name| name.starts_with('t')));
            }
        }
    }
    let missing: Vec<String> = (1..=34)
        .map(|row| format!("t{row:02}"))
        .filter(|row| !names.iter().any(|name| name.split('_').any(|word| word == row)))
        .collect();
    assert_eq!(missing, [""; 0], "rows without a test");
}

#[test]
fn every_metric_and_every_field_of_the_access_log_is_told_of() {
    let operations = read("docs/operations.md");
    let folder = Folder::new();
    let log = folder.path("access.log");
    let proxy = Proxy::start(Start::text(format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[tracing]\nendpoint = \"http://127.0.0.1:1\"\nsample_percent = 100\n[access_log]\npath = \"{}\"\n[[listener]]\nname = \"in\"\naddress = \
         \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n[[route]]\npath_prefix = \"/app\"\nservice = \
         \"app\"\n[[service]]\nname = \"dead\"\nendpoints = [\"unix:/nonexistent/ringmesh.sock\"]\n[[route]]\npath_prefix = \
         \"/dead\"\nservice = \"dead\"\n",
        log.display(),
        origin()
    )))
    .unwrap();
    let listener = proxy.listener("in").unwrap();
    assert!(get(listener, "/app").starts_with("HTTP/1.1 200 "));
    assert!(get(listener, "/dead").starts_with("HTTP/1.1 503 "));
    let admin = proxy.admin().unwrap();
    // Shards hand over once a second.
    let began = Instant::now();
    let metrics = loop {
        let page = get(admin, "/metrics");
        if page.contains("ringmesh_exchanges_total{service=\"app\"")
            && page.contains("ringmesh_failures_total{")
        {
            break page;
        }
        assert!(began.elapsed() < GUARD, "no exchanges in\n{page}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut missing = String::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ringmesh_")) {
        let name = line.split(' ').next().unwrap();
        if !operations.contains(&format!("`{}`", name.trim_end_matches("_total"))) {
            writeln!(missing, "metric {name}").unwrap();
        }
    }
    proxy.drain();
    proxy.join();
    let lines = std::fs::read_to_string(&log).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for (name, _) in line.as_object().unwrap() {
            if !operations.contains(&format!("`{name}`")) {
                writeln!(missing, "field {name}").unwrap();
            }
        }
    }
    assert!(missing.is_empty(), "docs/operations.md does not tell of:\n{missing}");
}

#[test]
fn every_attribute_of_a_span_is_told_of() {
    let tracing = read("docs/tracing.md");
    let written = read("src/proxy/traced.rs");
    let calls = ["span.text(\"", "span.number(\""];
    let names = calls.iter().flat_map(|call| written.split(call).skip(1));
    let names: HashSet<&str> = names.map(|rest| rest.split('"').next().unwrap()).collect();
    let missing: Vec<&&str> = names.iter().filter(|name| !tracing.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/tracing.md does not tell of {missing:?}");
    assert!(names.len() > 25 && names.contains("ringmesh.fault"), "{names:?}");
}

/// Those that only show themselves with rules and certificates.
#[test]
fn what_authorization_tells_is_told_of() {
    let operations = read("docs/operations.md");
    for name in [
        "authorization",
        "connections_revoked",
        "peer_identity",
        "rule",
        "ambiguous_path",
        "audit",
        "default-deny",
    ] {
        assert!(operations.contains(&format!("`{name}`")), "docs/operations.md does not tell of {name}");
    }
}

#[test]
fn every_example_of_a_configuration_is_right() {
    let mut examples = 0;
    for file in documents() {
        let text = std::fs::read_to_string(&file).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let mut block = block.split("```").next().unwrap().to_owned();
            if !block.contains("[[listener]]") {
                // Only the part that is spoken of.
                block += "\n[identity]\nsource = \"embedded\"\ntrust_domain = \"mesh.local\"\nid = \
                          \"spiffe://mesh.local/doc\"\n[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:15006\"\ntls = \
                          \"permissive\"\n";
            }
            let checked = config::parse(&file.display().to_string(), &block, &|_| None);
            assert!(checked.is_ok(), "{}:\n{block}\n{}", file.display(), checked.unwrap_err());
            examples += 1;
        }
    }
    assert!(examples > 0, "README.md shows one at least");
}

/// Its tables name keys by their path, as in `service.breaker.window`; its examples are read by
/// [`every_example_of_a_configuration_is_right`].
#[test]
fn every_key_that_the_guide_to_migration_names_exists() {
    let reference: toml::Table = read("config/reference.toml").parse().unwrap();
    let mut known = HashSet::new();
    collect_keys("", &toml::Value::Table(reference), &mut known);
    let guide = read("docs/migration.md");
    let mut fenced = false;
    let (mut named, mut unknown) = (0, Vec::new());
    for line in guide.lines() {
        fenced ^= line.starts_with("```");
        let words = line.split('`').skip(1).step_by(2);
        for word in words.filter(|_| !fenced) {
            // `timeouts.request` and the like are words of others.
            let is_key = ["route.", "service.", "limits."].iter().any(|table| word.starts_with(table))
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c));
            named += usize::from(is_key);
            unknown.extend((is_key && !known.contains(word)).then_some(word));
        }
    }
    assert!(unknown.is_empty(), "docs/migration.md names keys that do not exist: {unknown:?}");
    assert!(named > 100, "it names {named} keys only");
    assert!(guide.matches("```toml").count() >= 6, "and shows too little of how they stand together");
}

/// Every key with the tables that it stands in, as `service.breaker.window`.
fn collect_keys(above: &str, value: &toml::Value, known: &mut HashSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
                collect_keys(&path, value, known);
                known.insert(path);
            }
        }
        toml::Value::Array(entries) => entries.iter().for_each(|entry| collect_keys(above, entry, known)),
        _ => {}
    }
}

#[test]
fn every_link_leads_somewhere() {
    for file in documents() {
        let text = std::fs::read_to_string(&file).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") || link.starts_with('#') {
                continue;
            }
            let target = link.split('#').next().unwrap();
            let there = file.parent().unwrap().join(target);
            assert!(there.exists(), "{} links to {target}, which does not exist", file.display());
        }
    }
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let all = files(root).into_iter().chain(files(&root.join("docs")));
    all.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A service that says 200 to everybody and closes.
fn origin() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.read(&mut head).and_then(|_| stream.write_all(answer));
        }
    });
    address
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
