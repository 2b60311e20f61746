//! What the demo shows: the table while it runs, the summary when it ends. Numbers to lines; pure, draws nothing itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::client::{Look, Tally};
use super::sidecar::Usage;
use super::terminal::{Line, Style};
use super::trust::Trust;
use Style::{Bad, Bold, Curve, Dim, Good, Plain};

/// Seconds that a curve shows at most.
const CURVE_MAX: usize = 40;
/// A curve of fewer is left out.
const CURVE_MIN: usize = 6;

/// One way through a sidecar: what it sends to one service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    /// The workload that the sidecar stands beside.
    pub sidecar: &'static str,
    /// To it (in) or from it (out).
    pub way: &'static str,
    /// The service called.
    pub service: &'static str,
}

/// The five passes of one request, in its order.
pub(super) const PASSES: [Pass; 5] = [
    Pass { sidecar: "front", way: "in", service: "front" },
    Pass { sidecar: "front", way: "out", service: "orders" },
    Pass { sidecar: "orders", way: "in", service: "orders" },
    Pass { sidecar: "orders", way: "out", service: "stock" },
    Pass { sidecar: "stock", way: "in", service: "stock" },
];

/// All that is shown.
pub(super) struct Board {
    /// Requests a second that the client begins.
    pub rate: u32,
    /// How long it is to run.
    pub length: Option<Duration>,
    /// How long it has run.
    pub elapsed: Duration,
    /// Sidecars and their admin addresses.
    pub admins: Vec<(&'static str, SocketAddr)>,
    /// What the client calls.
    pub front: SocketAddr,
    /// Where the configurations are.
    pub folder: PathBuf,
    /// In the order of [`PASSES`].
    pub seen: [Seen; PASSES.len()],
    /// What the client saw in the last second.
    pub client: Look,
    /// Its 99th percentiles, newest last.
    pub client_curve: VecDeque<f64>,
    /// Identities, certificates, and what the taps saw.
    pub trust: Trust,
    /// What each sidecar has used, at the first look and at the last, with the exchanges until then.
    pub used: Vec<(&'static str, Spent, Spent)>,
}

/// What a sidecar has done until some moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    /// CPU and memory.
    pub usage: Usage,
    /// Exchanges, of all its passes.
    pub exchanges: u64,
    /// When, since the start of the demo.
    pub at: Duration,
}

/// What `/services` of a sidecar says of one pass. Times in seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Since the start.
    pub exchanges: u64,
    /// Since the start.
    pub errors: u64,
    /// In the last second, as all below.
    pub rate: Option<f64>,
    /// Median of the whole exchange.
    pub p50: Option<f64>,
    /// 99th percentile of the whole exchange.
    pub p99: Option<f64>,
    /// Median of the proxy's own time.
    pub own_p50: Option<f64>,
    /// Median of the proxy's own time since the start.
    pub own_p50_of_all: Option<f64>,
    /// 99th percentile of the proxy's own time since the start.
    pub own_p99_of_all: Option<f64>,
    /// The last values of `p99`, newest last.
    pub curve: VecDeque<f64>,
}

impl Seen {
    /// Takes in a page of the sidecar: `/services?format=json`.
    pub(super) fn learn(&mut self, page: &Value, service: &str) {
        let Some(found) = page["services"].as_array().into_iter().flatten().find(|s| s["name"] == service)
        else {
            return;
        };
        self.exchanges = found["exchanges"].as_u64().unwrap_or(0);
        self.errors = found["errors"].as_u64().unwrap_or(0);
        let second = &found["last_second"];
        self.rate = second["rate"].as_f64();
        self.p50 = second["whole_seconds"]["p50"].as_f64();
        self.p99 = second["whole_seconds"]["p99"].as_f64();
        self.own_p50 = second["own_seconds"]["p50"].as_f64();
        let all = &found["since_start"]["own_seconds"];
        (self.own_p50_of_all, self.own_p99_of_all) = (all["p50"].as_f64(), all["p99"].as_f64());
        remember(&mut self.curve, self.p99);
    }

    /// The sidecar did not answer.
    pub(super) fn miss(&mut self) {
        (self.rate, self.p50, self.p99, self.own_p50) = (None, None, None, None);
        remember(&mut self.curve, None);
    }
}

/// Adds to a curve.
pub(super) fn remember(curve: &mut VecDeque<f64>, value: Option<f64>) {
    if curve.is_empty() && value.is_none() {
        return;
    }
    if curve.len() == CURVE_MAX {
        curve.pop_front();
    }
    curve.push_back(value.unwrap_or(0.0));
}

impl Board {
    /// The table, with what can be done meanwhile.
    pub(super) fn live(&self, columns: usize) -> Vec<Line> {
        let mut lines = vec![self.title(columns), Line::new()];
        lines.extend(self.table(columns));
        lines.push(Line::new());
        lines.extend(self.trust.table());
        lines.push(Line::new());
        lines.extend(self.places());
        lines
    }

    /// The table alone, under one line that says when.
    pub(super) fn plain(&self, columns: usize) -> Vec<Line> {
        let mut lines = vec![Line::new().add(Bold, self.time())];
        lines.extend(self.table(columns));
        lines.push(Line::new());
        lines.extend(self.trust.table());
        lines.push(Line::new());
        lines
    }

    /// Where everything is.
    pub(super) fn places(&self) -> Vec<Line> {
        let front = self.front;
        let mut lines = vec![place("call it", format!("curl http://{front}/"))];
        for (name, admin) in &self.admins {
            lines.push(place(&format!("sidecar of {name}"), format!("curl http://{admin}/services")));
        }
        lines.push(place("change it", format!("edit {}/orders.toml", self.folder.display())));
        lines
    }

    fn title(&self, columns: usize) -> Line {
        let name = Line::new().add(Bold, "ringmesh demo");
        let time = self.time();
        let what = format!("   client → front → orders → stock, {} requests/s{}", self.rate, unoptimized());
        // Where there is not room for all, the time matters more.
        let room = columns.min(TITLE_COLUMNS).saturating_sub(name.width() + time.chars().count());
        let title = if room >= what.chars().count() + 3 { name.add(Dim, what) } else { name };
        let gap = columns.min(TITLE_COLUMNS).saturating_sub(title.width() + time.chars().count());
        title.add(Plain, " ".repeat(gap)).add(Bold, time)
    }

    fn time(&self) -> String {
        let seconds = self.elapsed.as_secs();
        match self.length {
            Some(length) => format!("{seconds} s of {} s", length.as_secs_f64().ceil()),
            None => format!("{seconds} s, until Ctrl-C"),
        }
    }

    fn table(&self, columns: usize) -> Vec<Line> {
        let room = columns.saturating_sub(ROW_COLUMNS + 3);
        let room = if room < CURVE_MIN { 0 } else { room.min(CURVE_MAX) };
        let curve = match room {
            0 => "",
            1..20 => "   P99",
            _ => "   P99, BY SECONDS",
        };
        let head = ["SIDECAR", "TRAFFIC", "RATE/S", "P50", "P99", "ERRORS", "OWN P50"].map(String::from);
        let mut lines = vec![Line::new().add(Dim, row(head)).add(Dim, curve)];
        let mut before = "";
        for (pass, seen) in PASSES.iter().zip(&self.seen) {
            let name = if pass.sidecar == before { "" } else { pass.sidecar };
            before = pass.sidecar;
            let traffic = format!("{:<3} → {}", pass.way, pass.service);
            lines.push(table_row(
                [name.to_owned(), traffic],
                [
                    number(seen.rate),
                    time(seen.p50),
                    time(seen.p99),
                    seen.errors.to_string(),
                    time(seen.own_p50),
                ],
                seen.errors > 0,
                draw(&seen.curve, room),
            ));
        }
        let client = &self.client;
        lines.push(table_row(
            ["client".to_owned(), "→ front".to_owned()],
            [
                number(Some(client.answered as f64)),
                time(client.p50),
                time(client.p99),
                client.failed.to_string(),
                String::new(),
            ],
            client.failed > 0,
            draw(&self.client_curve, room),
        ));
        lines
    }

    /// What came of it all.
    pub(super) fn summary(&self, tally: &Tally) -> Vec<Line> {
        let seconds = self.elapsed.as_secs_f64();
        let mut lines = Vec::new();
        let Tally { sent, failed, .. } = tally;
        lines.push(
            Line::new()
                .add(Dim, label("requests"))
                .add(Bold, format!("{sent} in {seconds:.1} s, "))
                .add(if *failed > 0 { Bad } else { Good }, format!("{failed} failed")),
        );
        for (why, times) in &tally.reasons {
            lines.push(Line::new().add(Plain, label("")).add(Bad, format!("{times} × {why}")));
        }
        let quantiles = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")]
            .map(|(q, name)| format!("{name} {}", time(tally.quantile(q))));
        lines.push(
            Line::new()
                .add(Dim, label("latency"))
                .add(Bold, quantiles.join("   "))
                .add(Dim, "   from when each was due"),
        );
        lines.extend(self.trust.summary());
        lines.push(Line::new());
        lines.push(
            Line::new().add(Dim, format!("{:<8}{}", "SIDECAR", summary_row(SUMMARY_HEAD.map(String::from)))),
        );
        let mut before = "";
        for (pass, seen) in PASSES.iter().zip(&self.seen) {
            let first = pass.sidecar != before;
            before = pass.sidecar;
            let used = self.used.iter().find(|(name, ..)| first && *name == pass.sidecar);
            let [name, cells @ ..] = summary_cells(pass, seen, first, used);
            lines.push(Line::new().add(Bold, format!("{name:<8}")).add(Plain, summary_row(cells)));
        }
        let own: f64 = self.seen.iter().filter_map(|seen| seen.own_p50_of_all).sum();
        if let Some(p50) = tally.quantile(0.5).filter(|p50| *p50 > 0.0 && own > 0.0) {
            lines.push(Line::new());
            lines.push(Line::new().add(Dim, label("mesh tax")).add(Bold, time(Some(own))).add(
                Plain,
                format!(
                    " of {}, {:.1} %: the five medians of own time, added up",
                    time(Some(p50)),
                    own / p50 * 100.0
                ),
            ));
        }
        lines
    }
}

const SUMMARY_HEAD: [&str; 6] = ["TRAFFIC", "OWN P50", "OWN P99", "MEMORY", "CPU", "CPU/EXCHANGE"];

fn summary_cells(
    pass: &Pass,
    seen: &Seen,
    first: bool,
    used: Option<&(&'static str, Spent, Spent)>,
) -> [String; 7] {
    let name = if first { pass.sidecar } else { "" };
    let mut cells = [
        name.to_owned(),
        format!("{:<3} → {}", pass.way, pass.service),
        time(seen.own_p50_of_all),
        time(seen.own_p99_of_all),
        String::new(),
        String::new(),
        String::new(),
    ];
    if let Some((_, before, after)) = used {
        let cpu = after.usage.cpu.saturating_sub(before.usage.cpu).as_secs_f64();
        let exchanges = after.exchanges.saturating_sub(before.exchanges);
        let seconds = after.at.saturating_sub(before.at).as_secs_f64();
        let measured = exchanges > 0 && seconds > 0.0;
        cells[4] = match after.usage.resident_bytes {
            0 => "-".to_owned(),
            bytes => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        };
        cells[5] = if measured { format!("{:.1} %", cpu / seconds * 100.0) } else { "-".to_owned() };
        cells[6] = time(measured.then(|| cpu / exchanges as f64));
    }
    cells
}

/// The title is no wider than the table with its curve.
const TITLE_COLUMNS: usize = ROW_COLUMNS + 3 + CURVE_MAX;
/// Columns of a row of the table without its curve.
const ROW_COLUMNS: usize = 8 + 12 + 8 + 9 + 9 + 8 + 9;

fn row([sidecar, traffic, rate, p50, p99, errors, own]: [String; 7]) -> String {
    format!("{sidecar:<8}{traffic:<12}{rate:>8}{p50:>9}{p99:>9}{errors:>8}{own:>9}")
}

fn table_row(names: [String; 2], cells: [String; 5], errors: bool, curve: String) -> Line {
    let [sidecar, traffic] = names;
    let [rate, p50, p99, failed, own] = cells;
    Line::new()
        .add(Bold, format!("{sidecar:<8}"))
        .add(Plain, format!("{traffic:<12}{rate:>8}{p50:>9}{p99:>9}"))
        .add(if errors { Bad } else { Plain }, format!("{failed:>8}"))
        .add(Plain, format!("{own:>9}   "))
        .add(Curve, curve)
}

fn summary_row([traffic, own_p50, own_p99, memory, cpu, each]: [String; 6]) -> String {
    format!("{traffic:<12}{own_p50:>8}{own_p99:>9}{memory:>11}{cpu:>9}{each:>14}")
}

pub(super) fn place(what: &str, how: String) -> Line {
    Line::new().add(Dim, format!("{what:<18}")).add(Plain, how)
}

fn label(text: &str) -> String {
    format!("{text:<10}")
}

pub(super) fn unoptimized() -> &'static str {
    if cfg!(debug_assertions) { " (a debug build: slow)" } else { "" }
}

/// Seconds in three digits and a unit; `-` for nothing.
pub(super) fn time(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    let (value, unit) = match seconds {
        s if s < 999.5e-6 => (s * 1e6, "µs"),
        s if s < 999.5e-3 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    match value {
        v if v < 9.995 => format!("{v:.2} {unit}"),
        v if v < 99.95 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

/// A curve of blocks, the newest value at the right, the last `room` values. What is usual (the median) is half high, so
/// that what is not stands out.
pub(super) fn draw(curve: &VecDeque<f64>, room: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown: Vec<f64> = curve.iter().skip(curve.len().saturating_sub(room)).take(room).copied().collect();
    let mut sorted: Vec<f64> = shown.iter().copied().filter(|value| *value > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted.get(sorted.len() / 2).copied().unwrap_or(1.0);
    let block = |value: f64| match (value / usual * 4.0).round() {
        _ if value <= 0.0 => ' ',
        eighths => BLOCKS[(eighths as usize).clamp(1, 8) - 1],
    };
    shown.into_iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_have_three_digits() {
        let shown = [0.0, 12.34e-6, 0.000_999_9, 0.001_5, 0.012_34, 0.999_6, 2.0].map(|s| time(Some(s)));
        assert_eq!(shown, ["0.00 µs", "12.3 µs", "1.00 ms", "1.50 ms", "12.3 ms", "1.00 s", "2.00 s"]);
        assert_eq!(time(None), "-");
    }

    #[test]
    fn a_curve_shows_the_newest_values_and_what_is_unusual() {
        let curve = VecDeque::from([9.0, 1.0, 0.0, 4.0, 4.1, 8.0, 100.0]);
        assert_eq!(draw(&curve, 6), "▁ ▄▄██");
        assert_eq!(draw(&curve, 0), "");
        assert_eq!(draw(&VecDeque::from([0.0]), 4), " ");
    }

    #[test]
    fn the_table_has_a_row_for_every_pass_and_fits_a_narrow_terminal() {
        let page = json!({ "services": [{
            "name": "front", "exchanges": 1000, "errors": 3,
            "since_start": { "own_seconds": { "p50": 30e-6, "p99": 90e-6 } },
            "last_second": {
                "rate": 499.7, "whole_seconds": { "p50": 0.006, "p99": 0.012 }, "own_seconds": { "p50": 31e-6 },
            },
        }] });
        let mut board = board();
        board.seen[0].learn(&page, "front");
        let lines: Vec<String> = board.live(80).iter().map(|line| line.render(false, 80)).collect();
        assert_eq!(lines[3], "front   in  → front      500  6.00 ms  12.0 ms       3  31.0 µs   ▄");
        assert_eq!(lines[4], "        out → orders       -        -        -       0        -");
        assert!(lines.iter().all(|line| line.chars().count() <= 80));
        assert!(lines.len() <= 23, "a terminal of 24 rows shows all of it");
        assert!(lines.iter().any(|line| line.contains("curl http://127.0.0.1:3/services")));
        assert!(board.live(70)[2].width() <= 70, "no room for a curve");
        assert!(board.live(50)[0].render(false, 50).ends_with("3 s, until Ctrl-C"), "the time has room");
        board.seen[0].miss();
        assert_eq!(board.seen[0].p50, None);
        assert_eq!(board.seen[0].exchanges, 1000);
    }

    #[test]
    fn the_summary_tells_the_tax() {
        let mut board = board();
        let all = json!({ "p50": 20e-6, "p99": 50e-6 });
        for (pass, seen) in PASSES.iter().zip(&mut board.seen) {
            let service = json!({ "name": pass.service, "since_start": { "own_seconds": all } });
            seen.learn(&json!({ "services": [service] }), pass.service);
        }
        let first = Spent { at: Duration::from_secs(1), ..Spent::default() };
        let usage = Usage { cpu: Duration::from_millis(100), resident_bytes: 6 << 20 };
        board.used = vec![("front", first, Spent { usage, exchanges: 1000, at: Duration::from_secs(3) })];
        let mut tally = Tally::new();
        tally.sent = 2;
        tally.answer(Duration::from_millis(10));
        tally.fail("503 route.local.no_route".to_owned());
        let lines: Vec<String> = board.summary(&tally).iter().map(|line| line.render(false, 100)).collect();
        let text = lines.join("\n");
        assert!(
            text.contains("2 in 3.0 s, 1 failed") && text.contains("1 × 503 route.local.no_route"),
            "{text}"
        );
        assert!(
            text.contains("front   in  → front  20.0 µs  50.0 µs    6.0 MiB    5.0 %        100 µs"),
            "{text}"
        );
        assert!(text.contains("100 µs of 10.0 ms, 1.0 %"), "{text}");
    }

    fn board() -> Board {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Board {
            rate: 500,
            length: None,
            elapsed: Duration::from_secs(3),
            admins: vec![("front", address(3))],
            front: address(4),
            folder: "/tmp/x".into(),
            seen: Default::default(),
            client: Look::default(),
            client_curve: VecDeque::new(),
            trust: Trust::new(["front", "orders", "stock"].into_iter(), false),
            used: Vec::new(),
        }
    }
}
