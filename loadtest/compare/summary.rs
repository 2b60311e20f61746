//! What a comparison tells: tables of medians, ratios, and the setting in which they were measured.
//!
//! Called by `compare`. It refuses to name the machine: no host name and no path is written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use super::case::BARS;
use super::peer::{Kind, Peer};
use super::{CompareArgs, DIRECT, IDLE_CONNECTIONS, Row, WARMUP};
use crate::date;

/// A column: its name in a row, its heading, and how many decimals it is shown with.
type Column = (&'static str, &'static str, usize);

const LOAD_COLUMNS: [Column; 9] = [
    ("rate", "requests/s", 0),
    ("cpu_us", "CPU µs/request", 1),
    ("cpu_user_us", "user", 1),
    ("cpu_system_us", "system", 1),
    ("p50_us", "p50 µs", 0),
    ("p99_us", "p99 µs", 0),
    ("p99_9_us", "p99.9 µs", 0),
    ("load_cpu_busy", "load CPU busy", 2),
    ("failed", "failed", 0),
];
const MEMORY_COLUMNS: [Column; 6] = [
    ("idle_kib", "idle KiB", 0),
    ("idle_pss_kib", "idle KiB, shared pages divided", 0),
    ("fresh_per_connection_kib", "KiB per idle connection", 2),
    ("used_per_connection_kib", "KiB per idle connection after a request", 2),
    ("tls_per_connection_kib", "KiB per idle TLS connection after a request", 2),
    ("start_ms", "start ms", 1),
];
/// What ratios are given of; the third says whether more is better.
const RATIOS: [(&str, &str); 6] = [
    ("cpu_us", "CPU"),
    ("rate", "requests/s"),
    ("p50_us", "p50"),
    ("p99_us", "p99"),
    ("p99_9_us", "p99.9"),
    ("idle_kib", "idle KiB"),
];

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { median, least, most })
    }

    fn text(self, decimals: usize) -> String {
        let Self { median, least, most } = self;
        let (m, l, h) =
            (format!("{median:.decimals$}"), format!("{least:.decimals$}"), format!("{most:.decimals$}"));
        if l == h { m } else { format!("{m} [{l}–{h}]") }
    }
}

/// Share of the proxy's CPU that others may use before a measurement counts as disturbed.
const OTHERS_MAX: f64 = 0.05;

pub(super) fn is_disturbed(row: &Row) -> bool {
    row.get("others_on_proxy_cpu").and_then(Value::as_f64).is_some_and(|share| share > OTHERS_MAX)
}

/// One table and one list of ratios per case.
pub(super) fn tables(rows: &[Row], titles: &[(&'static str, &'static str)]) -> String {
    let memory_title = format!("Memory, resident, and start; {IDLE_CONNECTIONS} idle connections");
    let cases = titles.iter().map(|(key, title)| (*key, *title, &LOAD_COLUMNS[..])).chain([(
        "memory",
        memory_title.as_str(),
        &MEMORY_COLUMNS[..],
    )]);
    let mut out = String::from("Median [least–most] over the rounds.\n");
    for (key, title, columns) in cases {
        let spreads = spreads_of(rows, key);
        if spreads.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\n## {key}: {title}\n");
        let headings: Vec<&str> = columns.iter().map(|c| c.1).collect();
        let _ = writeln!(out, "| who | {} |\n|---|{}", headings.join(" | "), "---|".repeat(columns.len()));
        for (who, values) in &spreads {
            let cells: Vec<String> = columns
                .iter()
                .map(|(name, _, decimals)| {
                    values.get(*name).map_or_else(|| "–".to_owned(), |s| s.text(*decimals))
                })
                .collect();
            let _ = writeln!(out, "| {who} | {} |", cells.join(" | "));
        }
        ratios(&mut out, &spreads);
        let others = |row: &&Row| row.get("case").and_then(Value::as_str) == Some(key) && is_disturbed(row);
        let disturbed = rows.iter().filter(others).count();
        if disturbed > 0 {
            let _ = writeln!(
                out,
                "\nDisturbed: in {disturbed} measurements something else used the proxy's CPU too."
            );
        }
    }
    bars(&mut out, rows);
    out
}

/// Which of the project's aims these measurements reach.
fn bars(out: &mut String, rows: &[Row]) {
    let lines: Vec<String> = BARS
        .iter()
        .filter_map(|bar| {
            let spreads = spreads_of(rows, bar.case);
            let median = |kind: &Kind| {
                let (_, values) = spreads.iter().find(|(who, _)| who == kind.name())?;
                Some(values.get(bar.number)?.median)
            };
            let own = median(&bar.of)?;
            let (against, measured) = if bar.relative_to.is_empty() {
                (String::new(), own)
            } else {
                let best = bar.relative_to.iter().filter_map(|kind| Some((kind, median(kind)?)));
                let (kind, best) = best.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, best)| *best > 0.0)?;
                (format!(" / {}", kind.name()), own / best)
            };
            let verdict = if measured <= bar.at_most { "reached" } else { "missed" };
            let (case, what, at_most) = (bar.case, bar.what, bar.at_most);
            Some(format!("| {case} | {what}{against} | ≤ {at_most} | {measured:.2} | {verdict} |"))
        })
        .collect();
    if !lines.is_empty() {
        // Writing to a String cannot fail.
        let _ =
            writeln!(out, "\n## Aims\n\n| case | of ringmesh | aim | measured | |\n|---|---|---|---|---|");
        let _ = writeln!(out, "{}", lines.join("\n"));
    }
}

type Values = BTreeMap<String, Vec<f64>>;
type Spreads = Vec<(String, BTreeMap<String, Spread>)>;

/// By proxy, in the order of first appearance.
fn spreads_of(rows: &[Row], case: &str) -> Spreads {
    let text = |row: &Row, name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut values: Vec<(String, Values)> = Vec::new();
    for row in rows.iter().filter(|row| text(row, "case") == case) {
        let who = text(row, "who");
        let at = values.iter().position(|(name, _)| *name == who).unwrap_or_else(|| {
            values.push((who, Values::new()));
            values.len() - 1
        });
        for (name, value) in row {
            if let Some(value) = value.as_f64() {
                values[at].1.entry(name.clone()).or_default().push(value);
            }
        }
    }
    let spread = |(name, values)| Some((name, Spread::of(values)?));
    values.into_iter().map(|(who, columns)| (who, columns.into_iter().filter_map(spread).collect())).collect()
}

/// ringmesh over each other one, of medians.
fn ratios(out: &mut String, spreads: &Spreads) {
    let Some((_, own)) = spreads.iter().find(|(who, _)| who == Kind::Ringmesh.name()) else { return };
    let others: Vec<_> =
        spreads.iter().filter(|(who, _)| who != Kind::Ringmesh.name() && who != DIRECT).collect();
    let names: Vec<_> = RATIOS.iter().filter(|(name, _)| own.contains_key(*name)).collect();
    if others.is_empty() || names.is_empty() {
        return;
    }
    let headings: Vec<&str> = names.iter().map(|n| n.1).collect();
    let _ = writeln!(out, "\n| ringmesh / | {} |\n|---|{}", headings.join(" | "), "---|".repeat(names.len()));
    for (who, values) in others {
        let cells: Vec<String> = names
            .iter()
            .map(|(name, _)| match (own.get(*name), values.get(*name)) {
                (Some(own), Some(other)) if other.median > 0.0 => format!("{:.2}", own.median / other.median),
                _ => "–".to_owned(),
            })
            .collect();
        let _ = writeln!(out, "| {who} | {} |", cells.join(" | "));
    }
}

/// Machine, versions and command.
pub(super) fn setup(args: &CompareArgs, peers: &[Peer]) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = cpus.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut out = String::from("# Setup\n\n");
    // Writing to a String cannot fail.
    let _ = writeln!(out, "- date: {}", date::http(SystemTime::now()));
    let _ = writeln!(out, "- machine: {cpus} × {}", cpu_model());
    let _ = writeln!(out, "- kernel: Linux {}", kernel.trim());
    let _ = writeln!(out, "- commit: {}", commit());
    let _ = writeln!(out, "- command: {}", command_line());
    let _ = writeln!(out, "- proxy on CPU {}, origin and client on CPU {}", args.proxy_cpu, args.load_cpu);
    let _ = writeln!(
        out,
        "- {} rounds of {} s after {} s of warm-up, each with a freshly started proxy, order alternating",
        args.rounds,
        args.seconds,
        WARMUP.as_secs()
    );
    let _ = writeln!(out, "- configurations: loadtest/peers/");
    let _ = writeln!(
        out,
        "- TLS 1.3 everywhere, certificates with ECDSA P-256, TLS_AES_128_GCM_SHA256 (callers offer nothing else; the pairs of a \
         mesh agree on it by themselves), X25519 (ringmesh with itself: X25519MLKEM768, once per connection)"
    );
    let _ = writeln!(
        out,
        "- nothing is resumed; tickets a handshake: ringmesh 1, HAProxy 2 short ones, nginx and Envoy none"
    );
    for peer in peers {
        let _ = writeln!(out, "- {}: {}", peer.kind.name(), peer.version);
    }
    out
}

/// `loadtest/results/2026-01-31T1200-amd-epyc`
pub(super) fn default_folder() -> PathBuf {
    let name = format!("{}-{}", date::compact(SystemTime::now()), slug(&cpu_model()));
    Path::new("loadtest/results").join(name)
}

fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.take(4).collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name") || l.starts_with("CPU part"));
    line.and_then(|l| l.split_once(':'))
        .map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.trim().to_owned())
}

fn commit() -> String {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    // Results of earlier runs do not make a build another one.
    let changed = git(&["status", "--porcelain", "--", ":!loadtest/results"]).is_some_and(|s| !s.is_empty());
    if changed { format!("{commit} and uncommitted changes") } else { commit }
}

/// The words of the command, absolute paths cut down to their last part.
fn command_line() -> String {
    let words = std::env::args().map(|word| match Path::new(&word).file_name() {
        Some(name) if word.starts_with('/') => name.to_string_lossy().into_owned(),
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spreads_are_medians_with_their_range() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).expect("values");
        assert_eq!(spread, Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of(vec![1.0, 2.0]).expect("values").median, 1.5);
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(spread.text(1), "2.0 [1.0–3.0]");
        assert_eq!(Spread::of(vec![0.0, 0.0]).expect("values").text(0), "0");
    }

    #[test]
    fn tables_give_each_proxy_a_row_and_each_other_one_a_ratio() {
        let row = |who: &str, cpu: f64| match json!({"case": "a", "who": who, "rate": 1000.0, "cpu_us": cpu})
        {
            Value::Object(row) => row,
            _ => Row::new(),
        };
        let rows = [row("ringmesh", 9.0), row("haproxy", 18.0), row("ringmesh", 11.0), row(DIRECT, 0.0)];
        let text = tables(&rows, &[("a", "a title")]);
        assert!(text.contains("| ringmesh | 1000 | 10.0 [9.0–11.0] |"), "{text}");
        assert!(text.contains("| haproxy | 0.56 | 1.00 |"), "{text}");
        assert!(!text.contains("memory"), "{text}");
    }

    #[test]
    fn aims_are_judged_against_the_better_of_a_peers_ways() {
        let row = |case: &str, who: &str, name: &str, value: f64| match json!({"case": case, "who": who, name: value})
        {
            Value::Object(row) => row,
            _ => Row::new(),
        };
        let rows = [
            row("mesh", "ringmesh", "cpu_us", 17.0),
            row("mesh", "haproxy", "cpu_us", 25.0),
            row("mesh", "haproxy h2", "cpu_us", 20.0),
            row("mesh", "envoy", "cpu_us", 60.0),
            row("memory", "ringmesh", "tls_per_connection_kib", 9.5),
        ];
        let text = tables(&rows, &[]);
        assert!(text.contains("| mesh | CPU µs/request / haproxy h2 | ≤ 0.85 | 0.85 | reached |"), "{text}");
        assert!(text.contains("| mesh | CPU µs/request / envoy | ≤ 0.25 | 0.28 | missed |"), "{text}");
        assert!(
            text.contains("| memory | KiB per idle TLS connection after a request | ≤ 10 | 9.50 | reached |"),
            "{text}"
        );
        assert!(!text.contains("handshake"), "{text}");
    }

    #[test]
    fn folder_names_are_plain() {
        assert_eq!(slug("AMD EPYC 9B14 (96-Core)"), "amd-epyc-9b14-96");
    }
}
