//! What a run counted: latencies, failures by kind, bytes; and how that is told as text and JSON.
//!
//! Written by `lane`, merged by `client`, read by `main`, `compare` and `plot`.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Options, Window};
use crate::clock::SECOND;

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The connection could not be made.
    Connect,
    /// It ended, or was reset, before the response was whole.
    Closed,
    Timeout,
    /// Another status than expected.
    Status,
    /// Not HTTP, or not framed as HTTP demands.
    Malformed,
    /// Well framed, but not as long as the URL asked for.
    Length,
    /// Not the answer to this request: its echo mark is absent or another one.
    Echo,
    /// Bytes came that no request asked for.
    Unasked,
    /// The queue of the open loop was full.
    QueueFull,
    /// Its HTTP/2 stream was reset.
    Reset,
}

const KINDS: [(Failed, &str); 10] = [
    (Failed::Connect, "connect"),
    (Failed::Closed, "closed"),
    (Failed::Timeout, "timeout"),
    (Failed::Status, "status"),
    (Failed::Malformed, "malformed"),
    (Failed::Length, "length"),
    (Failed::Echo, "echo"),
    (Failed::Unasked, "unasked"),
    (Failed::QueueFull, "queue_full"),
    (Failed::Reset, "reset"),
];

/// The longest latency that is told apart, in nanoseconds; longer ones count as this.
const LATENCY_MAX: u64 = 3600 * SECOND;
const PERCENTILES: [(f64, &str); 6] =
    [(50.0, "p50"), (75.0, "p75"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99_9"), (99.99, "p99_99")];

#[derive(Clone)]
pub(crate) struct Tally {
    /// Nanoseconds, of successful requests inside the window.
    pub(crate) latency: Histogram<u64>,
    /// Successful requests inside the window.
    pub(crate) completed: u64,
    /// Over the whole run: a failure in the warm-up is one too.
    failures: [u64; KINDS.len()],
    /// Over the whole run, by first digit.
    pub(crate) statuses: [u64; 6],
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Connections opened after the first ones; not failures by themselves.
    pub(crate) reconnects: u64,
    /// When the last request of the window was done, for runs bounded by their number of requests.
    last_done: u64,
}

impl Tally {
    pub(crate) fn new() -> Result<Self, String> {
        let latency =
            Histogram::new_with_bounds(1_000, LATENCY_MAX, 3).map_err(|e| format!("histogram: {e}"))?;
        Ok(Self {
            latency,
            completed: 0,
            failures: [0; KINDS.len()],
            statuses: [0; 6],
            bytes_in: 0,
            bytes_out: 0,
            reconnects: 0,
            last_done: 0,
        })
    }

    /// A success inside the window; `latency` counts from the intended send time.
    pub(crate) fn record(&mut self, intended: u64, now: u64) {
        self.latency.saturating_record(now.saturating_sub(intended).max(1));
        self.completed += 1;
        self.last_done = now;
    }

    pub(crate) fn fail(&mut self, kind: Failed) {
        self.failures[kind as usize] += 1;
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<(), String> {
        self.latency.add(&other.latency).map_err(|e| format!("histogram: {e}"))?;
        self.completed += other.completed;
        for (sum, n) in self.failures.iter_mut().zip(other.failures) {
            *sum += n;
        }
        for (sum, n) in self.statuses.iter_mut().zip(other.statuses) {
            *sum += n;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.reconnects += other.reconnects;
        self.last_done = self.last_done.max(other.last_done);
        Ok(())
    }

    /// Seconds that the completed requests took together.
    pub(crate) fn seconds(&self, window: &Window) -> f64 {
        let to = if window.to == u64::MAX { self.last_done } else { window.to };
        to.saturating_sub(window.from).max(1) as f64 / SECOND as f64
    }

    /// Microseconds at a percentile.
    pub(crate) fn micros(&self, percentile: f64) -> f64 {
        self.latency.value_at_percentile(percentile) as f64 / 1e3
    }

    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.iter().map(|(kind, name)| (*name, self.failures[*kind as usize])).filter(|(_, n)| *n > 0)
    }

    pub(crate) fn json(&self, options: &Options, seconds: f64) -> Value {
        let mut latency = json!({
            "min": self.latency.min() as f64 / 1e3,
            "mean": self.latency.mean() / 1e3,
            "max": self.latency.max() as f64 / 1e3,
        });
        for (percentile, name) in PERCENTILES {
            latency[name] = json!(self.micros(percentile));
        }
        json!({
            "target": options.url.target,
            "loop": if options.rate.is_some() { "open" } else { "closed" },
            "rate_wanted": options.rate,
            "protocol": if options.http2 { "http2" } else { "http1" },
            "tls": options.tls.is_some(),
            "connections": options.connections,
            "streams": options.streams(),
            "new_connection": options.new_connection,
            "threads": options.threads,
            "seconds": seconds,
            "requests": self.completed,
            "rate": self.completed as f64 / seconds,
            "failed": self.failed(),
            "failures": self.failures().collect::<std::collections::BTreeMap<_, _>>(),
            "statuses": { "2xx": self.statuses[2], "3xx": self.statuses[3], "4xx": self.statuses[4], "5xx": self.statuses[5] },
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "reconnects": self.reconnects,
            "latency_us": latency,
        })
    }

    pub(crate) fn text(&self, options: &Options, seconds: f64) -> String {
        let mut out = String::new();
        let kind =
            options.rate.map_or_else(|| "closed loop".to_owned(), |r| format!("open loop at {r} requests/s"));
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{kind}, {}{}, {} connections{}, {} threads, {seconds:.2} s\n",
            if options.http2 { "HTTP/2" } else { "HTTP/1.1" },
            if options.tls.is_some() { " over TLS 1.3" } else { "" },
            options.connections,
            match options.streams() {
                _ if options.new_connection => " at a time, one for each request".to_owned(),
                1 => String::new(),
                streams => format!(" of {streams} streams"),
            },
            options.threads
        );
        let _ = writeln!(out, "requests   {:>12}   {:.1}/s", self.completed, self.completed as f64 / seconds);
        let failed = self.failed();
        let kinds: Vec<String> = self.failures().map(|(name, n)| format!("{name} {n}")).collect();
        let _ = writeln!(out, "failed     {failed:>12}   {}", kinds.join(", "));
        let _ = writeln!(out, "reconnects {:>12}", self.reconnects);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(
            out,
            "received   {:>9.1} MiB   sent {:.1} MiB\n",
            mib(self.bytes_in),
            mib(self.bytes_out)
        );
        let from = if options.rate.is_some() { "from the intended send time" } else { "from sending" };
        let _ = writeln!(out, "latency in µs, {from}");
        for (percentile, _) in PERCENTILES {
            let _ = writeln!(out, "  {:<7} {:>12.1}", format!("p{percentile}"), self.micros(percentile));
        }
        let _ = write!(out, "  {:<7} {:>12.1}", "max", self.latency.max() as f64 / 1e3);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_in_their_own_order() {
        for (i, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, i);
        }
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        // A server that stalls for 100 ms while requests are due each millisecond delays all of them, not only one.
        let mut tally = Tally::new().expect("bounds are legal");
        let stall_ends = 100 * 1_000_000;
        for i in 0..100 {
            tally.record(i * 1_000_000, stall_ends);
        }
        assert!((tally.micros(50.0) - 50_000.0).abs() < 1_100.0, "{}", tally.micros(50.0));
        assert!((tally.micros(99.0) - 99_000.0).abs() < 1_100.0, "{}", tally.micros(99.0));
    }

    #[test]
    fn tallies_add_up() {
        let (mut a, mut b) = (Tally::new().expect("legal"), Tally::new().expect("legal"));
        a.record(0, 1_000_000);
        b.record(0, 3_000_000);
        b.fail(Failed::Echo);
        a.add(&b).expect("same bounds");
        assert_eq!((a.completed, a.failed()), (2, 1));
        assert_eq!(a.failures().collect::<Vec<_>>(), [("echo", 1)]);
        let window = Window { start: 0, from: 1_000_000, to: u64::MAX };
        assert!((a.seconds(&window) - 0.002).abs() < 1e-9);
    }
}
