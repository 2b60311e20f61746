//! `/metrics`: everything that control knows, as OpenMetrics 1.0 or Prometheus text 0.0.4. Called by `admin`.
//!
//! Base units (seconds, bytes), names `ringmesh_*`. Histograms have fixed bounds: a dashboard survives a reload and can
//! add up proxies. Series exist for services that had traffic; `store` bounds their number and lets them expire.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::identity::Facts;
use super::latency::Latency;
use super::state::State;
use super::store::{Service, Store};
use crate::telemetry::{FLOODS, ShardTotals};

/// Bounds of latency histograms, ns: 1-2.5-5 from 500 µs (a healthy call on the same machine) to 30 s.
pub(super) const LATENCY_BOUNDS_NS: [u64; 15] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// Bounds of the proxy's own share, ns: it is some 10 µs, and 10 ms mean trouble.
pub(super) const OWN_BOUNDS_NS: [u64; 10] =
    [5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 10_000_000, 100_000_000];

/// The two text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Prometheus,
}

impl Format {
    /// The format that an Accept field prefers; Prometheus text where it says nothing.
    pub(super) fn accepted(accept: Option<&str>) -> Self {
        let quality = |kind: &str| {
            accept
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|range| range.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case(kind)))
                .map(|range| {
                    let q = range.split(';').skip(1).find_map(|p| p.trim().strip_prefix("q="));
                    q.map_or(1.0, |q| q.parse().unwrap_or(0.0))
                })
                .fold(0.0_f64, f64::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its Content-Type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// The whole page.
pub(super) fn metrics(state: &Arc<State>, format: Format) -> String {
    let mut registry = Registry::with_prefix("ringmesh");
    registry.register_collector(Box::new(Scrape(Arc::clone(state))));
    let mut page = String::new();
    // Writing into a String cannot fail.
    let _ = match format {
        Format::OpenMetrics => text::encode(&mut page, &registry),
        Format::Prometheus => prometheus_text::encode(&mut page, &registry),
    };
    page
}

struct Scrape(Arc<State>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(&mut encoder);
        let store = self.0.store();
        services(&mut page, &store)?;
        super::endpoints::metrics(&mut page, &self.0)?;
        super::caps::metrics(&mut page, &self.0)?;
        routes(&mut page, &store)?;
        super::quotas::metrics(&mut page, &self.0)?;
        authorization(&mut page, &store)?;
        shards(&mut page, &self.0, &store)?;
        let dropped_by_shards = store.shards().iter().map(|shard| shard.totals.spans_dropped).sum();
        drop(store);
        canaries(&mut page, &self.0)?;
        certificates(&mut page, &self.0)?;
        spans(&mut page, &self.0, dropped_by_shards)?;
        process(&mut page, &self.0)
    }
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

fn services(page: &mut Page<'_, '_>, store: &Store) -> fmt::Result {
    let all = || store.services();
    page.counter(
        "exchanges",
        "Exchanges ended, by class of the status sent downstream (none: nothing was sent)",
        None,
        all().flat_map(|(name, s)| {
            let classes = CLASSES.iter().zip(s.by_class).filter(|(_, n)| *n > 0);
            classes.map(move |(class, n)| ([("service", name), ("class", class)], n))
        }),
    )?;
    page.counter(
        "failures",
        "Exchanges that ended badly, by where on the path, on whose side and why",
        None,
        all().flat_map(|(name, s)| {
            let known = s.failures.iter().map(move |(f, n)| {
                let (stage, side, cause) = (f.stage.label(), f.side.label(), f.cause.label());
                ([("service", name), ("stage", stage), ("side", side), ("cause", cause)], *n)
            });
            let other = [("service", name), ("stage", "other"), ("side", "other"), ("cause", "other")];
            known.chain((s.failures_other > 0).then_some((other, s.failures_other)))
        }),
    )?;
    page.counter(
        "grpc_calls",
        "gRPC calls among the exchanges, by grpc-status as the caller understood it (absent: the service sent none)",
        None,
        all().flat_map(|(name, s)| {
            s.grpc.statuses().map(move |(status, n)| ([("service", name), ("grpc_status", status)], n))
        }),
    )?;
    let each = |value: fn(&Service) -> u64| all().map(move |(name, s)| ([("service", name)], value(s)));
    page.counter("further_attempts", "Attempts beyond the first", None, each(|s| s.further_attempts))?;
    page.counter(
        "retries",
        "Further attempts by a retry policy, by why",
        None,
        all().flat_map(|(name, s)| {
            s.retries.reasons().map(move |(reason, n)| ([("service", name), ("reason", reason)], n))
        }),
    )?;
    page.counter(
        "retries_refused",
        "Further attempts that were worth it and safe, but were not made, by why",
        None,
        all().flat_map(|(name, s)| {
            s.retries.refusals().map(move |(why, n)| ([("service", name), ("why", why)], n))
        }),
    )?;
    page.counter(
        "retries_succeeded",
        "Exchanges that ended well after a further attempt",
        None,
        each(|s| s.retries.succeeded),
    )?;
    page.counter(
        "hedges_won",
        "Further attempts that began beside another one and were sooner",
        None,
        each(|s| s.retries.hedges_won),
    )?;
    page.counter(
        "wishes",
        "Exchanges whose callers said something of retries or timeouts where they may, by what was made of it",
        None,
        all().flat_map(|(name, s)| {
            s.retries.wishes().map(move |(result, n)| ([("service", name), ("result", result)], n))
        }),
    )?;
    beside(page, store)?;
    page.counter(
        "request_body",
        "Bytes of request bodies taken from callers",
        Some(Unit::Bytes),
        each(|s| s.request_body_bytes),
    )?;
    page.counter(
        "response_body",
        "Bytes of response bodies sent to callers",
        Some(Unit::Bytes),
        each(|s| s.response_body_bytes),
    )?;
    let grpc = |value: fn(&Service) -> u64| {
        let callers = all().filter(|(_, s)| s.grpc.statuses().next().is_some());
        callers.map(move |(name, s)| ([("service", name)], value(s)))
    };
    page.counter(
        "grpc_request_messages",
        "Messages of gRPC calls taken from callers",
        None,
        grpc(|s| s.grpc.request_messages),
    )?;
    page.counter(
        "grpc_response_messages",
        "Messages of gRPC calls taken from services",
        None,
        grpc(|s| s.grpc.response_messages),
    )?;
    let spread = |latency: fn(&Service) -> &Latency| all().map(move |(name, s)| (name, latency(s)));
    page.histogram(
        "first_byte",
        "From the first byte of the request to the first byte of the response",
        &LATENCY_BOUNDS_NS,
        spread(|s| &s.first_byte),
    )?;
    page.histogram(
        "whole",
        "From the first byte of the request to the last byte of the response",
        &LATENCY_BOUNDS_NS,
        spread(|s| &s.whole),
    )?;
    page.histogram(
        "own",
        "The part of an exchange that this proxy itself took: the whole less the waits for either peer",
        &OWN_BOUNDS_NS,
        spread(|s| &s.own),
    )
}

/// What is counted apart from the exchanges of a service: copies for it, and what routes do on purpose.
fn beside(page: &mut Page<'_, '_>, store: &Store) -> fmt::Result {
    let all = || store.services();
    page.counter(
        "mirrored",
        "Copies of requests, by the service that got them and the class of its status",
        None,
        all().flat_map(|(name, s)| {
            s.mirrored.classes().map(move |(class, n)| ([("service", name), ("class", class)], n))
        }),
    )?;
    page.counter(
        "mirrored_unsent",
        "Copies of requests that were not sent, by the service that did not get them and why",
        None,
        all().flat_map(|(name, s)| {
            s.mirrored.reasons().map(move |(why, n)| ([("service", name), ("why", why)], n))
        }),
    )?;
    page.counter(
        "faults",
        "Exchanges to which a route did something on purpose, by what",
        None,
        all().flat_map(|(name, s)| {
            s.faults.kinds().map(move |(kind, n)| ([("service", name), ("kind", kind)], n))
        }),
    )?;
    page.counter(
        "faults_refused",
        "Faults that were not made: as many as there may be were going on",
        None,
        all().map(|(name, s)| ([("service", name)], s.faults.refused)),
    )
}

fn routes(page: &mut Page<'_, '_>, store: &Store) -> fmt::Result {
    let all = || store.routes();
    page.counter(
        "route_exchanges",
        "Exchanges ended, by route and class of the status sent downstream",
        None,
        all().flat_map(|(name, route)| {
            let classes = CLASSES.iter().zip(route.by_class).filter(|(_, n)| *n > 0);
            classes.map(move |(class, n)| ([("route", name), ("class", class)], n))
        }),
    )?;
    page.counter(
        "route_grpc_errors",
        "gRPC calls that failed although the status of HTTP does not say so, by route",
        None,
        all()
            .filter(|(_, route)| route.grpc_errors > 0)
            .map(|(name, route)| ([("route", name)], route.grpc_errors)),
    )?;
    page.counter(
        "route_failures",
        "Exchanges that ended badly, by route and failure",
        None,
        all().flat_map(|(name, route)| {
            let known = route.failures.iter().map(move |(f, n)| {
                let (stage, side, cause) = (f.stage.label(), f.side.label(), f.cause.label());
                ([("route", name), ("stage", stage), ("side", side), ("cause", cause)], *n)
            });
            let other = [("route", name), ("stage", "other"), ("side", "other"), ("cause", "other")];
            known.chain((route.failures_other > 0).then_some((other, route.failures_other)))
        }),
    )?;
    page.histogram_by(
        "route",
        "route_whole",
        "From the first byte of the request to the last byte of the response, by route, within an eighth",
        &LATENCY_BOUNDS_NS,
        all().map(|(name, route)| (name, &route.whole)),
    )
}

fn authorization(page: &mut Page<'_, '_>, store: &Store) -> fmt::Result {
    page.counter(
        "authorization",
        "Requests that a rule of [[authorization]] or the default refused, or that an audit rule met",
        None,
        store.rules().map(|(listener, rule, outcome, n)| {
            ([("action", outcome.label()), ("rule", rule), ("listener", listener)], n)
        }),
    )?;
    page.counter(
        "connections_revoked",
        "Open connections closed because what was allowed or trusted before is not any more",
        None,
        store.revoked().map(|(cause, n)| ([("cause", cause)], n)),
    )
}

/// A shard's numbers that only rise: name, meaning, value.
type Row = (&'static str, &'static str, fn(&ShardTotals) -> u64);

const SHARD_COUNTERS: [Row; 13] = [
    ("downstream_accepted", "Downstream connections accepted", |t| t.downstream_accepted),
    ("downstream_refused", "Downstream connections refused because of connections_max", |t| {
        t.downstream_refused
    }),
    ("memory_refused", "Downstream connections closed at once because memory was short", |t| {
        t.memory_refused
    }),
    ("memory_closed", "Idle connections, of both sides, closed because memory was short", |t| {
        t.memory_closed
    }),
    ("tls_handshakes", "TLS handshakes that succeeded, with callers and with services", |t| t.tls_handshakes),
    ("upstream_connected", "Upstream connections established", |t| t.upstream_connected),
    ("upstream_found_dead", "Pooled connections found dead when they were to be used", |t| {
        t.upstream_found_dead
    }),
    ("replays", "Exchanges replayed because a reused connection died before the first byte", |t| t.replays),
    ("stalls", "Times that one task kept the shard longer than stall_threshold", |t| t.stalls),
    ("panics", "Panics caught in the task of a connection", |t| t.panics),
    ("log_lines_dropped", "Access log lines dropped because they could not be written in time", |t| {
        t.log_lines_dropped
    }),
    ("notices_dropped", "Notices to control dropped because it could not keep up", |t| t.notices_dropped),
    ("intervals_merged", "Intervals of telemetry that were handed over late", |t| t.intervals_merged),
];

const SHARD_GAUGES: [Row; 5] = [
    ("downstream_connections", "Open downstream connections", |t| t.downstream_open),
    ("exchanges_open", "Exchanges in progress", |t| t.exchanges_open),
    ("tunnels_open", "Upgraded connections and CONNECT tunnels among them", |t| t.tunnels_open),
    ("upstream_connections", "Open upstream connections, idle ones included", |t| t.upstream_open),
    ("upstream_idle", "Idle upstream connections", |t| t.upstream_idle),
];

fn shards(page: &mut Page<'_, '_>, state: &State, store: &Store) -> fmt::Result {
    let (known, other) = store.connection_failures();
    page.counter(
        "connection_failures",
        "Connections that failed before there was an exchange, by where, on whose side and why",
        None,
        known
            .iter()
            .map(|(f, n)| {
                let (stage, side, cause) = (f.stage.label(), f.side.label(), f.cause.label());
                ([("stage", stage), ("side", side), ("cause", cause)], *n)
            })
            .chain(
                (other > 0).then_some(([("stage", "other"), ("side", "other"), ("cause", "other")], other)),
            ),
    )?;
    let numbers: Vec<String> = (0..state.links.len()).map(|n| n.to_string()).collect();
    let labelled = || numbers.iter().map(|n| [("shard", n.as_str())]);
    let totals = || labelled().zip(store.shards());
    for (name, help, value) in SHARD_COUNTERS {
        page.counter(name, help, None, totals().map(|(l, s)| (l, value(&s.totals))))?;
    }
    for (name, help, value) in SHARD_GAUGES {
        page.gauge(name, help, None, totals().map(|(l, s)| (l, value(&s.totals) as f64)))?;
    }
    page.counter(
        "http2_floods",
        "HTTP/2 connections ended because of a flood of frames",
        None,
        totals().flat_map(|([shard], s)| {
            FLOODS.into_iter().zip(s.totals.floods).map(move |(kind, n)| ([shard, ("kind", kind)], n))
        }),
    )?;
    page.gauge(
        "buffer",
        "Bytes of I/O buffers held",
        Some(Unit::Bytes),
        totals().map(|(l, s)| (l, s.totals.buffer_bytes as f64)),
    )?;
    page.gauge(
        "stall_max",
        "The longest time that one task kept the shard",
        Some(Unit::Seconds),
        totals().map(|(l, s)| (l, s.totals.stall_max_ns as f64 / 1e9)),
    )?;
    let measured = &state.memory;
    for (name, help, value) in [
        ("memory_resident", "Bytes of the process that are in memory", &measured.resident),
        ("memory_max", "The ceiling on them, 0 for none", &measured.ceiling),
    ] {
        page.gauge(
            name,
            help,
            Some(Unit::Bytes),
            std::iter::once(([], value.load(Ordering::Relaxed) as f64)),
        )?;
    }
    page.gauge(
        "memory_pressure",
        "How short memory is, in steps: 0 not, 1 idle connections are closed, 2 new ones too, 3 to 5 requests are refused",
        None,
        std::iter::once(([], measured.step.load(Ordering::Relaxed) as f64)),
    )?;
    let vitals = || labelled().zip(state.links.iter().map(|l| &l.vitals));
    page.gauge(
        "shard_generation",
        "Generation of the configuration that the shard runs",
        None,
        vitals().map(|(l, v)| (l, v.generation.load(Ordering::Relaxed) as f64)),
    )?;
    page.gauge(
        "shard_accepting",
        "1 when the shard accepts connections",
        None,
        vitals().map(|(l, v)| (l, v.accepting.load(Ordering::Relaxed) as f64)),
    )
}

fn canaries(page: &mut Page<'_, '_>, state: &State) -> fmt::Result {
    let canaries = state.canaries();
    if canaries.shares().next().is_none() {
        return Ok(());
    }
    page.gauge(
        "canary_share_ratio",
        "The share of a canary in what it and its baseline get, 0 to 1",
        None,
        canaries.shares().map(|(name, share)| ([("canary", name)], share / 100.0)),
    )?;
    page.gauge(
        "canary_phase",
        "1 for the phase that a canary is in: running, paused, promoted, rolled_back",
        None,
        canaries.phases().map(|(name, phase)| ([("canary", name), ("phase", phase)], 1.0)),
    )?;
    page.counter(
        "canary_moves",
        "Steps that canaries took, times that they were held in doubt, promoted and rolled back",
        None,
        canaries.moves().map(|(name, kind, n)| ([("canary", name), ("kind", kind)], n)),
    )?;
    page.counter(
        "canary_state_errors",
        "Times that it could not be kept where a canary stands",
        None,
        canaries.unkept().map(|(name, n)| ([("canary", name)], n)),
    )
}

/// Names stay the same from one leaf to the next, and so do the series: serial numbers are on `/identity`.
fn certificates(page: &mut Page<'_, '_>, state: &State) -> fmt::Result {
    let status = state.identity();
    if status.source.is_none() && status.terminations.is_empty() {
        return Ok(());
    }
    let chain = |scope: &str, all: &[Facts], top: &'static str| -> Vec<_> {
        let role = |n| if n == 0 { top } else { "issuer" };
        let one = |(n, one): (usize, &Facts)| {
            (role(n), scope.to_owned(), one.name.clone(), n.to_string(), one.not_after)
        };
        all.iter().enumerate().map(one).collect()
    };
    let mut all = chain("mesh", &status.chain, "leaf");
    for (domain, roots) in &status.bundles {
        let roots = chain(domain, roots, "root").into_iter();
        all.extend(roots.map(|(_, scope, name, n, ends)| ("root", scope, name, n, ends)));
    }
    for (listener, of) in &status.terminations {
        all.extend(chain(&format!("listener {listener}"), of, "termination"));
    }
    page.gauge(
        "certificate_expiry",
        "When a certificate ends (Unix time): what is presented to the mesh, leaf and issuers; the roots of each trust \
         domain; what listeners present",
        Some(Unit::Seconds),
        all.iter().map(|(role, scope, name, n, ends)| {
            ([("role", *role), ("scope", scope), ("subject", name), ("number", n)], *ends as f64)
        }),
    )?;
    page.counter(
        "identity_rotations",
        "Leaves taken into use, and times that there should have been one and was not",
        None,
        [([("result", "good")], status.rotations_good), ([("result", "failed")], status.rotations_bad)]
            .into_iter(),
    )
}

/// Of distributed tracing, where there is or was any.
fn spans(page: &mut Page<'_, '_>, state: &State, dropped_by_shards: u64) -> fmt::Result {
    let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let counts = &state.spans;
    let dropped = [
        ("full", dropped_by_shards),
        ("refused", of(&counts.refused)),
        ("rejected", of(&counts.rejected)),
        ("unsent", of(&counts.unsent)),
    ];
    let exported = of(&counts.exported);
    let failures = of(&counts.failures);
    let is_used = state.live().compiled.tracing.is_some()
        || exported + failures + dropped.iter().map(|(_, n)| n).sum::<u64>() > 0;
    if !is_used {
        return Ok(());
    }
    let to = [("collector", "otlp")];
    page.counter("spans_exported", "Spans that the collector has taken", None, [(to, exported)].into_iter())?;
    page.counter(
        "spans_dropped",
        "Spans that it did not get: full: nobody took them from the shard; refused, rejected: it did not want them; unsent: there was nowhere to send them",
        None,
        dropped.into_iter().map(|(reason, n)| ([("reason", reason)], n)),
    )?;
    page.counter(
        "span_export_failures",
        "Requests to the collector that failed or were refused",
        None,
        [(to, failures)].into_iter(),
    )?;
    page.one(
        "spans_waiting",
        "Spans that wait for the collector, or are under way",
        None,
        of(&counts.waiting) as f64,
    )
}

fn process(page: &mut Page<'_, '_>, state: &State) -> fmt::Result {
    let seconds = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let live = state.live();
    let (good, bad, generation) = (live.reloads_good, live.reloads_bad, live.snapshot.generation);
    let refused = live.refused.as_ref().map_or(0.0, |(when, _)| seconds(*when));
    let waiting = live.waiting.len();
    drop(live);
    let results = |good, bad| [([("result", "good")], good), ([("result", "refused")], bad)].into_iter();
    page.counter("config_reloads", "Configurations read since the start", None, results(good, bad))?;
    page.one("config_generation", "Generation of the configuration published last", None, generation as f64)?;
    page.one(
        "config_last_refused_time",
        "When a configuration was refused last (Unix time; 0: never)",
        Some(Unit::Seconds),
        refused,
    )?;
    page.one("config_restart_needed", "Settings whose new value waits for a restart", None, waiting as f64)?;
    let lookups = &state.lookups;
    let (good, bad) = (lookups.good.load(Ordering::Relaxed), lookups.bad.load(Ordering::Relaxed));
    page.counter("name_lookups", "Lookups of names in endpoints", None, results(good, bad))?;
    let errors = state.log().as_ref().map(super::log_writer::LogWriter::write_errors);
    page.counter(
        "access_log_write_errors",
        "Chunks of access log lines that could not be written",
        None,
        errors.into_iter().map(|n| ([("destination", "access_log")], n)),
    )?;
    let refused = state.admin_refused.load(Ordering::Relaxed);
    page.counter(
        "admin_connections_refused",
        "Connections to the admin address refused because there were too many",
        None,
        [([("listener", "admin")], refused)].into_iter(),
    )?;
    let draining = state.draining.load(Ordering::Relaxed);
    page.one("draining", "1 from SIGTERM on", None, f64::from(u8::from(draining)))?;
    page.one(
        "start_time",
        "When the process started (Unix time)",
        Some(Unit::Seconds),
        seconds(state.started.1),
    )?;
    let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", super::pages::COMMIT)];
    page.gauge("build_info", "What this binary was built from; always 1", None, [(build, 1.0)].into_iter())
}

/// Writes families, and leaves out those without a sample.
pub(super) struct Page<'a, 'b>(&'a mut DescriptorEncoder<'b>);

type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Page<'_, '_> {
    pub(super) fn counter<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let help = format!("{help}.");
        let mut family = self.0.encode_descriptor(name, &help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    pub(super) fn gauge<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels<'l, N>, f64)>,
    ) -> fmt::Result {
        let help = format!("{help}.");
        let mut family = self.0.encode_descriptor(name, &help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn one(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
        let help = format!("{help}.");
        self.0.encode_descriptor(name, &help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        bounds_ns: &[u64],
        samples: impl Iterator<Item = (&'l str, &'l Latency)>,
    ) -> fmt::Result {
        self.histogram_by("service", name, help, bounds_ns, samples)
    }

    fn histogram_by<'l>(
        &mut self,
        label: &'static str,
        name: &str,
        help: &str,
        bounds_ns: &[u64],
        samples: impl Iterator<Item = (&'l str, &'l Latency)>,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let help = format!("{help}.");
        let mut family =
            self.0.encode_descriptor(name, &help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (value, latency) in samples {
            family.encode_family(&[(label, value)])?.encode_histogram::<NoLabelSet>(
                latency.sum_seconds(),
                latency.count(),
                &latency.between(bounds_ns),
                None,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "export_test.rs"]
mod tests;
