//! The admin pages for eyes and for programs: `/services`, `/shards`, `/config`, `/identity`, `/build`, each as a text table and as
//! JSON. Called by `admin`; they read `State` and change nothing.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::identity::{Facts, Status};
use super::latency::Latency;
use super::state::State;
use super::store::{Route, Service, Store, Window};
use super::{caps, endpoints};
use crate::config::Origin;
use crate::upstream::health::Health;
use crate::upstream::spec;

/// The commit this was built from, if the build said so (RINGMESH_COMMIT in its environment).
pub(super) const COMMIT: &str = match option_env!("RINGMESH_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The compiler, if the build said so (RINGMESH_RUSTC in its environment).
const RUSTC: &str = match option_env!("RINGMESH_RUSTC") {
    Some(version) => version,
    None => concat!("at least ", env!("CARGO_PKG_RUST_VERSION")),
};

/// Services shown unless all are asked for: those with traffic come first.
const SERVICES_SHOWN_MAX: usize = 200;

/// The index.
pub(super) const INDEX: &str = "\
ringmesh

  /ready      200 when every shard answers and accepts, 503 with the reasons otherwise
  /live       200 while the process can answer
  /metrics    Prometheus text, or OpenMetrics if asked for
  /services   what goes to each service: rate, latency, the proxy's own time, errors, endpoints
  /routes     what each route saw: exchanges, errors, latency
  /shards     what each shard does
  /config     the configuration in use, with where each value came from
  /canary     which service takes over from which, how far it is and why
  /explain    what becomes of a request, and why: ?method=GET&url=https://shop/cart&header=x-user:7&from=spiffe://...
  /identity   who this proxy is, whom it trusts, and until when
  /build      what this binary is

  grpc.health.v1.Health   what /ready says, by gRPC: Check and Watch, of \"\" or of a service

  POST /canary/NAME/ORDER   promote, rollback, pause, resume or restart a canary; as `ringmesh canary` does
  POST /reload   read the configuration again
  POST /drain    finish what is in flight, then end

/services, /routes, /shards, /config, /canary, /explain, /identity and /build answer in JSON to ?format=json or Accept: application/json.
/services and /routes show 200 unless ?all is given.
";

/// A small page in both forms.
pub(super) struct Shown {
    /// The table for eyes.
    pub text: String,
    /// The same for programs.
    pub json: Value,
}

/// `/services`, in one form only: with all of ten thousand services it is megabytes.
pub(super) fn services(state: &State, all: bool, json: bool) -> String {
    let snapshot = Arc::clone(&state.live().snapshot);
    let store = state.store();
    let mut rows: Vec<(&str, Option<Configured<'_>>)> =
        snapshot.services.iter().zip(&snapshot.health).map(|(s, h)| (&*s.name, Some((&**s, &**h)))).collect();
    let configured: HashSet<&str> = rows.iter().map(|(name, _)| *name).collect();
    let others = store.services().filter(|(name, _)| !configured.contains(name));
    rows.extend(others.map(|(name, _)| (name, None)));
    // Busy ones first, then by name.
    rows.sort_by_cached_key(|(name, _)| {
        let busy = store.service(name).map_or(0, |s| store.window(s, Store::WINDOW).exchanges);
        (Reverse(busy), *name)
    });
    let hidden = if all { 0 } else { rows.len().saturating_sub(SERVICES_SHOWN_MAX) };
    rows.truncate(rows.len() - hidden);
    let rows = rows.into_iter().map(|(name, configured)| (name, configured, store.service(name)));
    if json { services_json(&store, rows, hidden) } else { services_text(&store, rows, hidden) }
}

/// How a service is configured, and how its endpoints are.
type Configured<'a> = (&'a spec::Service, &'a Health);

/// A service's name, how it is configured (if it still is), and what it saw (if it saw anything).
type Row<'a> = (&'a str, Option<Configured<'a>>, Option<&'a Service>);

fn services_text<'a>(store: &Store, rows: impl Iterator<Item = Row<'a>>, hidden: usize) -> String {
    let mut table = Table::new(&[
        "service",
        "rate/s",
        "first p50",
        "p99",
        "p99.9",
        "whole p50",
        "p99",
        "p99.9",
        "own p50",
        "p99",
        "errors",
        "exchanges",
        "endpoints",
        "grpc",
    ]);
    for (name, configured, service) in rows {
        let ten = service.map_or_else(Window::default, |s| store.window(s, Store::WINDOW));
        let mut cells = vec![name.to_owned(), format!("{:.1}", ten.rate())];
        let columns: [(&Latency, &[f64]); 3] = [
            (&ten.first_byte, &[0.5, 0.99, 0.999]),
            (&ten.whole, &[0.5, 0.99, 0.999]),
            (&ten.own, &[0.5, 0.99]),
        ];
        for (latency, quantiles) in columns {
            let shown = |q: &f64| latency.quantile(*q).map_or_else(|| "-".to_owned(), duration);
            cells.extend(quantiles.iter().map(shown));
        }
        cells.push(service.map_or(0, Service::errors).to_string());
        cells.push(service.map_or(0, Service::exchanges).to_string());
        cells.push(configured.map_or_else(|| "-".to_owned(), |(s, health)| endpoints::cell(s, health)));
        cells.push(service.map_or_else(|| "-".to_owned(), grpc_cell));
        table.row(cells);
    }
    let mut text = table.text();
    let window = Store::WINDOW;
    let _ = writeln!(
        text,
        "\nlatencies and rate over the last {window} s; errors (5xx, or nothing answered) and exchanges since \
             the start; shards tell once a second, so all lags by up to two"
    );
    if hidden > 0 {
        let _ = writeln!(text, "{hidden} more services: /services?all");
    }
    text
}

/// The statuses that there were, as in `0:210 14:3`.
fn grpc_cell(service: &Service) -> String {
    let all: Vec<String> = service.grpc.statuses().map(|(status, n)| format!("{status}:{n}")).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(" ") }
}

fn services_json<'a>(store: &Store, rows: impl Iterator<Item = Row<'a>>, hidden: usize) -> String {
    let mut text = "{\"services\": [".to_owned();
    for (n, (name, configured, service)) in rows.enumerate() {
        let failures = |s: &Service| {
            let mut all: Vec<_> = s.failures.iter().map(|(f, n)| (f.to_string(), json!(n))).collect();
            all.extend((s.failures_other > 0).then(|| ("other".to_owned(), json!(s.failures_other))));
            Value::Object(all.into_iter().collect())
        };
        let row = json!({
            "name": name,
            "configured": configured.is_some(),
            "exchanges": service.map_or(0, Service::exchanges),
            "errors": service.map_or(0, Service::errors),
            "by_class": service.map(|s| {
                let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(s.by_class);
                classes.map(|(class, n)| (class.to_owned(), json!(n))).collect::<serde_json::Map<_, _>>()
            }),
            "failures": service.map(failures),
            "grpc": service.map(|s| json!({
                "by_status": s.grpc.statuses().map(|(status, n)| (status.to_owned(), json!(n)))
                    .collect::<serde_json::Map<_, _>>(),
                "request_messages": s.grpc.request_messages,
                "response_messages": s.grpc.response_messages,
            })),
            "since_start": service.map(since_start),
            "last_second": service.map(|s| window(&store.window(s, 1))),
            "last_10_seconds": service.map(|s| window(&store.window(s, Store::WINDOW))),
            "endpoints": configured.map(|(s, health)| endpoints::json(s, health)),
            "subsets": configured.map(|(s, _)| endpoints::subsets(s)),
            "caps": configured.and_then(|(s, _)| s.caps.as_deref()).map(caps::json),
            "table_bytes": configured.map(|(s, _)| s.plan().table_bytes()),
        });
        // A service a line.
        let _ = write!(text, "{}\n  {row}", if n > 0 { "," } else { "" });
    }
    let _ = writeln!(text, "\n], \"hidden\": {hidden}}}");
    text
}

/// `/routes`, in one form only, as `/services`.
pub(super) fn routes(state: &State, all: bool, as_json: bool) -> String {
    let store = state.store();
    let exchanges = |route: &Route| route.by_class.iter().sum::<u64>();
    let errors = |route: &Route| route.by_class[0] + route.by_class[5] + route.grpc_errors;
    let mut rows: Vec<(&str, &Route)> = store.routes().collect();
    rows.sort_by_cached_key(|(name, route)| (Reverse(exchanges(route)), *name));
    let hidden = if all { 0 } else { rows.len().saturating_sub(SERVICES_SHOWN_MAX) };
    rows.truncate(rows.len() - hidden);
    if as_json {
        let list: Vec<Value> = rows
            .into_iter()
            .map(|(name, route)| {
                let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(route.by_class);
                let seconds = |q| route.whole.quantile(q).map(|ns| ns as f64 / 1e9);
                json!({
                    "name": name, "exchanges": exchanges(route), "errors": errors(route),
                    "by_class": classes.map(|(class, n)| (class.to_owned(), json!(n))).collect::<serde_json::Map<_, _>>(),
                    "failures": route.failures.iter().map(|(f, n)| (f.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
                    "failures_other": route.failures_other, "grpc_errors": route.grpc_errors,
                    "whole": { "p50_seconds": seconds(0.5), "p99_seconds": seconds(0.99) },
                })
            })
            .collect();
        return format!("{:#}\n", json!({ "routes": list, "hidden": hidden }));
    }
    let mut table = Table::new(&["route", "exchanges", "errors", "failures", "whole p50", "p99"]);
    for (name, route) in rows {
        let mut cells = vec![name.to_owned(), exchanges(route).to_string(), errors(route).to_string()];
        cells.push((route.failures.values().sum::<u64>() + route.failures_other).to_string());
        for q in [0.5, 0.99] {
            cells.push(route.whole.quantile(q).map_or_else(|| "-".to_owned(), duration));
        }
        table.row(cells);
    }
    let mut text = table.text();
    text.push_str("\nsince the start; latencies within an eighth; routes without traffic are not shown\n");
    if hidden > 0 {
        let _ = writeln!(text, "{hidden} more routes: /routes?all");
    }
    text
}

/// `/shards`
pub(super) fn shards(state: &State) -> Shown {
    let store = state.store();
    let mut table = Table::new(&[
        "shard",
        "cpu",
        "runtime",
        "generation",
        "accepting",
        "connections",
        "accepted",
        "refused",
        "exchanges",
        "tunnels",
        "upstream",
        "idle",
        "stalls",
        "longest",
        "panics",
        "buffers",
        "refused by the kernel",
    ]);
    let mut list = Vec::new();
    for (n, (shard, link)) in store.shards().iter().zip(&state.links).enumerate() {
        let t = &shard.totals;
        let generation = link.vitals.generation.load(Ordering::Relaxed);
        let accepting = link.vitals.accepting.load(Ordering::Relaxed) != 0;
        let lost = state.lost.get(n).is_some_and(|l| l.load(Ordering::Relaxed));
        let cpu = state.cpus.get(n).copied().flatten();
        let (runtime, refused) =
            shard.runtime.as_ref().map_or(("io_uring", ""), |(used, why)| (*used, why.as_str()));
        table.row(vec![
            n.to_string(),
            cpu.map_or_else(|| "any".to_owned(), |c| c.to_string()),
            if lost { "ended".to_owned() } else { runtime.to_owned() },
            generation.to_string(),
            if accepting { "yes" } else { "no" }.to_owned(),
            t.downstream_open.to_string(),
            t.downstream_accepted.to_string(),
            t.downstream_refused.to_string(),
            t.exchanges_open.to_string(),
            t.tunnels_open.to_string(),
            t.upstream_open.to_string(),
            t.upstream_idle.to_string(),
            t.stalls.to_string(),
            duration(t.stall_max_ns),
            t.panics.to_string(),
            format!("{} KiB", t.buffer_bytes >> 10),
            refused.to_owned(),
        ]);
        list.push(json!({
            "shard": n, "cpu": cpu, "runtime": runtime, "runtime_refused": refused, "lost": lost,
            "generation": generation, "accepting": accepting,
            "downstream_open": t.downstream_open, "downstream_accepted": t.downstream_accepted,
            "downstream_refused": t.downstream_refused, "exchanges_open": t.exchanges_open,
            "tunnels_open": t.tunnels_open,
            "upstream_open": t.upstream_open, "upstream_idle": t.upstream_idle,
            "upstream_connected": t.upstream_connected, "upstream_found_dead": t.upstream_found_dead,
            "replays": t.replays, "stalls": t.stalls, "stall_max_seconds": t.stall_max_ns as f64 / 1e9,
            "panics": t.panics, "log_lines_dropped": t.log_lines_dropped, "notices_dropped": t.notices_dropped,
            "intervals_merged": t.intervals_merged, "buffer_bytes": t.buffer_bytes,
        }));
    }
    Shown { text: table.text(), json: json!({ "shards": list }) }
}

/// `/config`
pub(super) fn config(state: &State) -> Shown {
    let live = state.live();
    let mut settings = live.compiled.effective();
    let in_use = live.at_start.at_start();
    for setting in &mut settings {
        // What waits for a restart stands in the file already, but it is not in force.
        if let Some((_, value)) =
            in_use.iter().find(|(key, _)| *key == setting.key && live.waiting.contains(key))
        {
            let waiting = std::mem::replace(&mut setting.value, value.clone());
            setting.value.push_str(&format!(" # after a restart: {waiting}"));
        }
    }
    let mut text = String::new();
    let _ = writeln!(text, "generation {}", live.snapshot.generation);
    for place in &live.listeners {
        let _ = writeln!(text, "listener {} accepts on {}", place.name, place.address);
    }
    if !live.waiting.is_empty() {
        let _ = writeln!(text, "waiting for a restart: {}", live.waiting.join(", "));
    }
    if let Some((when, why)) = &live.refused {
        let age = when.elapsed().unwrap_or_default().as_secs();
        let _ = if live.refused_before {
            writeln!(text, "last refused {age} s ago; a good one has taken its place since")
        } else {
            writeln!(text, "\nlast refused {age} s ago, and it still is:\n{why}")
        };
    }
    text.push('\n');
    let mut table = Table::new(&["key", "value", "origin"]);
    for s in &settings {
        table.row(vec![s.key.clone(), s.value.clone(), origin(&s.origin)]);
    }
    text.push_str(&table.text());
    let json = json!({
        "generation": live.snapshot.generation,
        "listeners": live.listeners.iter().map(|p| json!({
            "name": &*p.name, "configured": p.configured.to_string(), "address": p.address.to_string(),
        })).collect::<Vec<_>>(),
        "waiting_for_restart": live.waiting,
        "last_refused": live.refused.as_ref().map(|(when, why)| json!({
            "unix_seconds": unix(*when), "superseded": live.refused_before, "report": why,
        })),
        "settings": settings.iter().map(|s| json!({
            "key": s.key, "value": s.value, "origin": origin(&s.origin),
        })).collect::<Vec<_>>(),
    });
    Shown { text, json }
}

/// `default`, `ringmesh.toml:12`, `ringmesh.toml:12 by ${NAME}`.
fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Default => "default".to_owned(),
        Origin::File { file, line } => format!("{file}:{line}"),
        Origin::Environment { name, file, line } => format!("{file}:{line} by ${{{name}}}"),
    }
}

/// `/identity`. Keys are not here: control does not show what it has of them.
pub(super) fn identity(state: &State) -> Shown {
    let status = state.identity();
    let mut text = String::new();
    let Some(source) = &status.source else {
        text.push_str("no identity is configured\n");
        let terminations = terminations(&status, &mut text);
        return Shown { text, json: json!({ "source": null, "terminations": terminations }) };
    };
    let _ = writeln!(text, "id      {}", status.id.as_deref().unwrap_or("none yet"));
    let _ = writeln!(text, "source  {source}");
    let now = unix(SystemTime::now());
    if let Some(next) = status.next_renewal() {
        let _ = writeln!(text, "renewal in {} s", next.saturating_sub(now));
    }
    if let Some((when, problem)) = &status.problem {
        let age = when.elapsed().unwrap_or_default().as_secs();
        let _ = writeln!(text, "\n{age} s ago: {problem}\n  help: {}", problem.remedy);
    }
    text.push_str("\npresented, leaf first\n");
    text.push_str(&certificates(&status.chain, now));
    for (domain, roots) in &status.bundles {
        let _ = writeln!(text, "\ntrusted for {domain}");
        text.push_str(&certificates(roots, now));
    }
    let terminations = terminations(&status, &mut text);
    let list = |all: &[Facts]| all.iter().map(Facts::json).collect::<Vec<_>>();
    let bundles = status.bundles.iter().map(|(domain, roots)| (domain.clone(), json!(list(roots))));
    let json = json!({
        "id": status.id, "source": source, "chain": list(&status.chain),
        "bundles": Value::Object(bundles.collect()), "terminations": terminations,
        "next_renewal_unix_seconds": status.next_renewal(),
        "last_error": status.problem.as_ref().map(|(when, problem)| json!({
            "unix_seconds": unix(*when), "what": problem.what, "remedy": problem.remedy,
        })),
        "rotations": { "good": status.rotations_good, "failed": status.rotations_bad },
    });
    Shown { text, json }
}

fn terminations(status: &Status, text: &mut String) -> Value {
    let now = unix(SystemTime::now());
    let mut all = serde_json::Map::new();
    for (listener, chain) in &status.terminations {
        let _ = writeln!(text, "\npresented by listener {listener} to callers from outside");
        text.push_str(&certificates(chain, now));
        all.insert(listener.clone(), chain.iter().map(Facts::json).collect());
    }
    Value::Object(all)
}

fn certificates(all: &[Facts], now: u64) -> String {
    let mut table = Table::new(&["subject", "ends in", "serial", "sha-256"]);
    for one in all {
        let ends = match one.not_after.checked_sub(now) {
            Some(left) => format!("{left} s"),
            None => "has ended".to_owned(),
        };
        let shown = [&one.name, &ends, &one.serial, &one.fingerprint].map(Clone::clone);
        table.row(shown.into());
    }
    table.text()
}

/// `/build`
pub(super) fn build(state: &State) -> Shown {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let uptime = state.started.0.elapsed().as_secs();
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let json = json!({
        "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT, "rustc": RUSTC, "profile": profile,
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "kernel": kernel, "pid": std::process::id(), "uptime_seconds": uptime,
        "started_unix_seconds": unix(state.started.1), "shards": state.links.len(),
    });
    let mut text = String::new();
    for (key, value) in json.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(text, "{key:<21} {value}");
    }
    Shown { text, json }
}

fn quantiles(latency: &Latency) -> Value {
    let seconds = |q| latency.quantile(q).map(|ns| ns as f64 / 1e9);
    json!({ "p50": seconds(0.5), "p90": seconds(0.9), "p99": seconds(0.99), "p99.9": seconds(0.999), "max": seconds(1.0) })
}

fn since_start(service: &Service) -> Value {
    json!({
        "first_byte_seconds": quantiles(&service.first_byte), "whole_seconds": quantiles(&service.whole),
        "own_seconds": quantiles(&service.own),
    })
}

fn window(window: &Window) -> Value {
    json!({
        "seconds": window.length.as_secs_f64(), "exchanges": window.exchanges, "errors": window.errors,
        "rate": window.rate(), "first_byte_seconds": quantiles(&window.first_byte),
        "whole_seconds": quantiles(&window.whole), "own_seconds": quantiles(&window.own),
    })
}

/// Three digits and a unit.
pub(super) fn duration(ns: u64) -> String {
    let ns = ns as f64;
    let (value, unit) = match ns {
        n if n < 1e6 => (ns / 1e3, "µs"),
        n if n < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    match value {
        v if v < 10.0 => format!("{v:.2} {unit}"),
        v if v < 100.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Columns as wide as their widest cell; numbers to the right.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn text(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let number = |s: &str| s.starts_with(|c: char| c.is_ascii_digit()) || s == "-";
        let right: Vec<bool> = (0..columns)
            .map(|c| {
                self.rows.len() > 1 && self.rows.iter().skip(1).all(|r| r.get(c).is_some_and(|s| number(s)))
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, (&width, &right)) in row.iter().zip(widths.iter().zip(&right)) {
                let _ =
                    if right { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        let shown = [1_234, 45_678, 999_000, 1_500_000, 25_000_000, 2_000_000_000].map(duration);
        assert_eq!(shown, ["1.23 µs", "45.7 µs", "999 µs", "1.50 ms", "25.0 ms", "2.00 s"]);
    }

    #[test]
    fn a_table_is_aligned() {
        let mut table = Table::new(&["name", "n"]);
        table.row(vec!["a".into(), "1".into()]);
        table.row(vec!["longer".into(), "100".into()]);
        assert_eq!(table.text(), "name      n\na         1\nlonger  100\n");
    }
}
