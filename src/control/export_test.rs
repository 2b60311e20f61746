//! Both text formats, read by a parser that accepts nothing but what the formats allow.

use super::*;
use std::collections::BTreeMap;
use std::time::Instant;

use crate::config;
use crate::control::state::Live;
use crate::failure::{Cause, Failure, Stage};
use crate::shard::link::Link;
use crate::telemetry::{Interval, ServiceCounts, ServiceInterval, ShardTotals};

/// A sample's labels, as written, and its value.
type Samples = Vec<(String, BTreeMap<String, String>, f64)>;

#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: Option<String>,
    help: String,
    samples: Samples,
}

/// Reads a page. Panics with the line at whatever the format does not allow.
fn parse(page: &str, format: Format) -> BTreeMap<String, Family> {
    let open = format == Format::OpenMetrics;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    assert!(page.ends_with('\n'), "the last line has an end");
    let mut lines: Vec<&str> = page.lines().collect();
    if open {
        assert_eq!(lines.pop(), Some("# EOF"), "OpenMetrics ends with EOF");
    }
    for line in lines {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (kind, name, text) =
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or(""));
            metric_name(name, line);
            match kind {
                "HELP" => {
                    assert!(
                        families.insert(name.into(), Family::default()).is_none(),
                        "family twice: {line}"
                    );
                    assert!(!text.is_empty(), "{line}");
                    name.clone_into(&mut current);
                    families.get_mut(name).unwrap().help = text.into();
                }
                "TYPE" => {
                    assert_eq!(name, current, "TYPE follows HELP: {line}");
                    let known = ["counter", "gauge", "histogram"];
                    assert!(known.contains(&text), "unknown type: {line}");
                    families.get_mut(name).unwrap().kind = text.into();
                }
                "UNIT" => {
                    assert!(open, "0.0.4 has no UNIT: {line}");
                    assert!(name == current && name.ends_with(&format!("_{text}")), "{line}");
                    families.get_mut(name).unwrap().unit = Some(text.into());
                }
                _ => panic!("unknown comment: {line}"),
            }
            continue;
        }
        let (name, labels, value) = sample(line);
        let family = families.get_mut(&current).unwrap();
        assert!(!family.kind.is_empty(), "sample before TYPE: {line}");
        let suffix =
            name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("not of {current}: {line}"));
        match family.kind.as_str() {
            "counter" if open => assert_eq!(suffix, "_total", "{line}"),
            "counter" => assert!(suffix.is_empty() && name.ends_with("_total"), "{line}"),
            "gauge" => assert_eq!(suffix, "", "{line}"),
            _ => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
        }
        assert_eq!(labels.contains_key("le"), suffix == "_bucket", "{line}");
        assert!(family.kind == "gauge" || (value >= 0.0 && value.is_finite()), "{line}");
        family.samples.push((suffix.into(), labels, value));
    }
    for (name, family) in &families {
        assert!(!family.samples.is_empty(), "family without samples: {name}");
        let mut keys: Vec<_> = family.samples.iter().map(|(s, l, _)| (s, l)).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), family.samples.len(), "series twice in {name}");
        if family.kind == "histogram" {
            histogram(name, &family.samples);
        }
    }
    families
}

fn metric_name(name: &str, line: &str) {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(name.starts_with("ringmesh_") && name.chars().all(good), "bad name: {line}");
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    metric_name(&line[..end], line);
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("bad label: {line}"));
            assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "bad label name: {line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let close = loop {
                match chars.next() {
                    Some((at, '"')) => break at,
                    Some((_, '\\')) => match chars.next() {
                        Some((_, c @ ('\\' | '"'))) => value.push(c),
                        Some((_, 'n')) => value.push('\n'),
                        other => panic!("bad escape {other:?}: {line}"),
                    },
                    Some((_, c)) => value.push(c),
                    None => panic!("label without end: {line}"),
                }
            };
            assert!(labels.insert(key.to_owned(), value).is_none(), "label twice: {line}");
            rest = &after[close + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap_or_else(|| panic!("no }}: {line}"));
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space before the value: {line}"));
    assert!(!value.contains(' '), "no timestamps: {line}");
    (line[..end].into(), labels, value.parse().unwrap_or_else(|_| panic!("bad value: {line}")))
}

/// Buckets (bound, count), a bit for each of `_count` (1) and `_sum` (2), and the count.
type Parts = (Vec<(f64, f64)>, u8, f64);

fn histogram(name: &str, samples: &Samples) {
    let mut series: BTreeMap<BTreeMap<String, String>, Parts> = BTreeMap::new();
    for (suffix, labels, value) in samples {
        let mut labels = labels.clone();
        let le = labels.remove("le");
        let entry = series.entry(labels).or_default();
        match suffix.as_str() {
            "_bucket" => {
                let le = le.unwrap();
                let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
                entry.0.push((bound, *value));
            }
            "_count" => (entry.1, entry.2) = (entry.1 + 1, *value),
            _ => entry.1 += 2,
        }
    }
    for (labels, (buckets, parts, count)) in series {
        assert_eq!(parts, 3, "{name}{labels:?} has one _sum and one _count");
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}{labels:?}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{name}{labels:?}");
    }
}

fn state() -> Arc<State> {
    let loaded =
        config::parse("test", "shards = 2\n[[listener]]\naddress = \"127.0.0.1:1\"\n", &|_| None).unwrap();
    let snapshot = Arc::new(loaded.compiled.snapshot(3, &|_, _| Vec::new()));
    let live = Live {
        at_start: loaded.compiled.settings.clone(),
        refused_before: false,
        compiled: Arc::new(loaded.compiled),
        snapshot,
        listeners: Vec::new(),
        reloads_good: 2,
        reloads_bad: 1,
        refused: None,
        waiting: Vec::new(),
    };
    let links = (0..2).map(|n| Link::new(n).unwrap().0).collect();
    Arc::new(State::new(links, vec![None, Some(1)], live, None, None, Arc::default(), Arc::default()))
}

fn record(state: &State, service: &str) {
    let mut counts = Box::new(ServiceCounts::new());
    counts.by_class = [1, 0, 95, 0, 0, 4];
    counts.count_failure(Failure::upstream(Stage::Response, Cause::Timeout));
    counts.count_failure(Failure::downstream(Stage::Body, Cause::Closed));
    counts.response_body_bytes = 12_345;
    for n in 1..=100u64 {
        counts.first_byte.saturating_record(n * 100_000);
        counts.whole.saturating_record(n * 1_000_000_000);
        counts.own.saturating_record(n * 1_000);
    }
    let services = vec![ServiceInterval { service: service.into(), counts }];
    let shard_totals = ShardTotals { downstream_open: 7, stall_max_ns: 1_500_000, ..ShardTotals::default() };
    let now = Instant::now();
    state.store().merge(&mut Interval { services, shard_totals, ..Interval::new(1) }, now);
}

/// Sorted, with bounds as numbers: OpenMetrics writes `1.0` where the older format writes `1`.
fn by_value(samples: &Samples) -> Vec<String> {
    let bound = |l: &BTreeMap<String, String>| {
        l.get("le").map(|le| le.replace("+Inf", "inf").parse::<f64>().unwrap())
    };
    let mut all: Vec<_> =
        samples.iter().map(|(s, l, v)| format!("{s} {} {:?} {v}", l["service"], bound(l))).collect();
    all.sort();
    all
}

fn value<'a>(samples: &'a Samples, labels: &[(&str, &str)]) -> Option<&'a f64> {
    let all = |l: &BTreeMap<String, String>| labels.iter().all(|(k, v)| l.get(*k).is_some_and(|x| x == v));
    samples.iter().find(|(_, l, _)| all(l)).map(|(.., value)| value)
}

#[test]
fn both_formats_are_valid_and_say_the_same() {
    let state = state();
    record(&state, "app");
    record(&state, "a \"quoted\"\\\nname");
    let open = parse(&metrics(&state, Format::OpenMetrics), Format::OpenMetrics);
    let plain = parse(&metrics(&state, Format::Prometheus), Format::Prometheus);

    let exchanges = &open["ringmesh_exchanges"].samples;
    assert_eq!(value(exchanges, &[("service", "app"), ("class", "2xx")]), Some(&95.0));
    assert_eq!(value(exchanges, &[("service", "app"), ("class", "none")]), Some(&1.0));
    assert_eq!(value(exchanges, &[("service", "app"), ("class", "3xx")]), None);
    assert_eq!(value(exchanges, &[("service", "a \"quoted\"\\\nname"), ("class", "5xx")]), Some(&4.0));
    let failure = [("stage", "response"), ("side", "upstream"), ("cause", "timeout")];
    assert_eq!(value(&open["ringmesh_failures"].samples, &failure), Some(&1.0));
    assert_eq!(value(&plain["ringmesh_failures_total"].samples, &failure), Some(&1.0));

    let first = &open["ringmesh_first_byte_seconds"];
    assert_eq!((first.kind.as_str(), first.unit.as_deref()), ("histogram", Some("seconds")));
    assert_eq!(value(&first.samples, &[("service", "app"), ("le", "0.001")]), Some(&10.0));
    assert_eq!(value(&first.samples, &[("service", "app"), ("le", "0.01")]), Some(&100.0));
    assert_eq!(by_value(&first.samples), by_value(&plain["ringmesh_first_byte_seconds"].samples));
    // One minute and longer counts as one minute, but counts.
    let whole = &open["ringmesh_whole_seconds"].samples;
    assert_eq!(value(whole, &[("service", "app"), ("le", "30.0")]), Some(&30.0));
    assert_eq!(value(whole, &[("service", "app"), ("le", "+Inf")]), Some(&100.0));

    assert_eq!(open["ringmesh_response_body_bytes"].unit.as_deref(), Some("bytes"));
    let connections = &open["ringmesh_downstream_connections"].samples;
    assert_eq!(value(connections, &[("shard", "1")]), Some(&7.0));
    assert_eq!(value(connections, &[("shard", "0")]), Some(&0.0));
    assert_eq!(open["ringmesh_stall_max_seconds"].samples[1].2, 0.0015);
    assert_eq!(open["ringmesh_config_generation"].samples[0].2, 3.0);
    let reloads = &open["ringmesh_config_reloads"].samples;
    assert_eq!(value(reloads, &[("result", "refused")]), Some(&1.0));
    assert!(value(&open["ringmesh_build_info"].samples, &[("version", env!("CARGO_PKG_VERSION"))]).is_some());
}

#[test]
fn a_proxy_without_traffic_has_a_valid_page_too() {
    let state = state();
    for format in [Format::OpenMetrics, Format::Prometheus] {
        let families = parse(&metrics(&state, format), format);
        assert!(!families.keys().any(|name| name.contains("exchanges_total") || name.contains("whole")));
    }
}

#[test]
fn the_format_is_negotiated() {
    use Format::{OpenMetrics, Prometheus};
    // What Prometheus 2 sends.
    let scraper = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                   text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, wanted) in [
        (None, Prometheus),
        (Some("*/*"), Prometheus),
        (Some(scraper), OpenMetrics),
        (Some("application/openmetrics-text; version=1.0.0"), OpenMetrics),
        (Some("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.1"), Prometheus),
        (Some("application/openmetrics-text;q=0"), Prometheus),
    ] {
        assert_eq!(Format::accepted(accept), wanted, "{accept:?}");
    }
}
