//! `loadtest compare`: ringmesh and other proxies under the same load, in turn, each alone on one CPU while origin and
//! client share another.
//!
//! Called by `main`. Rounds are interleaved and their order alternates, so that a machine that slows down slows all of
//! them; medians are quoted with their range; every round is kept. It refuses to compare where there are not two CPUs.

mod peer;
mod process;
mod summary;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::client::{self, Mark};
use crate::clock::{SECOND, now_ns};
use crate::target::{Place, Url};
use crate::{idle, plot, socket};
use peer::{Kind, Peer};
use process::{Cpu, Ticks};

/// Compares ringmesh with HAProxy, nginx and Envoy.
///
/// Each proxy runs with one shard, thread or process on one CPU, with the configuration of loadtest/peers/; an origin
/// (`loadtest server`) and the client share another CPU. Prints tables of medians [least–most] over the rounds, and
/// writes them with every round, the machine and plots into a folder. Exit code 1 if a request through ringmesh failed.
#[derive(Args)]
pub(crate) struct CompareArgs {
    /// What to measure.
    #[arg(long = "case", value_enum, value_delimiter = ',', default_value = "all")]
    cases: Vec<CaseName>,
    /// Times that each proxy is measured in each case.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds that each measurement takes, after one second of warm-up.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Which proxies, ringmesh among them.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ringmesh,haproxy,nginx,envoy")]
    peers: Vec<Kind>,
    /// The ringmesh to measure; the one beside this program if absent.
    #[arg(long, value_name = "PATH")]
    ringmesh: Option<PathBuf>,
    /// Folder for the results; loadtest/results/DATE-CPU if absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// CPU of the proxy.
    #[arg(long, default_value_t = 0)]
    proxy_cpu: usize,
    /// CPU of origin and client.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaseName {
    /// HTTP/1.1 keep-alive, 64 connections, closed loop, 1 KiB.
    A,
    /// As a, with 100 KiB.
    E,
    /// 5 000 requests/s, open loop, 64 connections, 1 KiB.
    Open,
    /// The client straight to the origin, as a further row of a, e and open.
    Direct,
    /// Resident memory idle and with 1 000 idle connections, and start time.
    Memory,
    /// All of them.
    All,
}

/// A case with load.
struct Case {
    name: CaseName,
    key: &'static str,
    title: &'static str,
    target: &'static str,
    rate: Option<f64>,
}

const CASES: [Case; 3] = [
    Case {
        name: CaseName::A,
        key: "a",
        title: "HTTP/1.1 keep-alive, 64 connections, closed loop, 1 KiB",
        target: "/size/1024",
        rate: None,
    },
    Case {
        name: CaseName::E,
        key: "e",
        title: "HTTP/1.1 keep-alive, 64 connections, closed loop, 100 KiB",
        target: "/size/102400",
        rate: None,
    },
    Case {
        name: CaseName::Open,
        key: "open",
        title: "HTTP/1.1 keep-alive, 64 connections, open loop at 5 000 requests/s, 1 KiB",
        target: "/size/1024",
        rate: Some(5000.0),
    },
];

const CONNECTIONS: usize = 64;
const IDLE_CONNECTIONS: usize = 1000;
const WARMUP: Duration = Duration::from_secs(1);
const DIRECT: &str = "no proxy";

/// One measurement as it is kept: case, round, proxy, then numbers by name.
type Row = Map<String, Value>;

pub(crate) fn run(args: &CompareArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    if !(args.seconds.is_finite() && args.seconds > 0.0) || args.rounds == 0 {
        return Err("--seconds and --rounds must be above zero".to_owned());
    }
    if args.proxy_cpu == args.load_cpu {
        return Err("proxy and load need a CPU each: --proxy-cpu and --load-cpu are the same".to_owned());
    }
    socket::pin(args.load_cpu)?;
    let scratch = Scratch::new()?;
    let origin = OriginProcess::start(args.load_cpu)?;
    let place = peer::Place { origin: origin.address, proxy_cpu: args.proxy_cpu, dir: &scratch.dir };
    let peers = find_peers(args, &place);
    if peers.is_empty() {
        return Err("no proxy to measure".to_owned());
    }
    let out = args.out.clone().unwrap_or_else(summary::default_folder);
    fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let raw = fs::File::create(out.join("raw.jsonl")).map_err(|e| format!("raw.jsonl: {e}"))?;
    write(&out.join("setup.md"), &summary::setup(args, &peers))?;
    let mut bench =
        Bench { args, stop, peers, scratch, origin, raw, rows: Vec::new(), latencies: BTreeMap::new() };

    let wanted = |name| args.cases.contains(&name) || args.cases.contains(&CaseName::All);
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        bench.load_case(case, wanted(CaseName::Direct))?;
        write(&out.join(format!("latency-{}.svg", case.key)), &bench.plot(case))?;
    }
    if wanted(CaseName::Memory) {
        bench.memory_case()?;
    }
    let titles: Vec<_> = CASES.iter().map(|c| (c.key, c.title)).collect();
    let text = summary::tables(&bench.rows, &titles);
    write(&out.join("summary.md"), &text)?;
    println!("{text}");
    eprintln!("results in {}", out.display());
    let is_ringmesh = |row: &&Row| row.get("who").and_then(Value::as_str) == Some(Kind::Ringmesh.name());
    let failed =
        bench.rows.iter().filter(is_ringmesh).any(|r| r.get("failed").and_then(Value::as_f64) > Some(0.0));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Those that are there and start; what is missing is said and left out.
fn find_peers(args: &CompareArgs, place: &peer::Place<'_>) -> Vec<Peer> {
    let mut found = Vec::new();
    for &kind in &args.peers {
        let given = args.ringmesh.as_deref().filter(|_| kind == Kind::Ringmesh);
        let tried = Peer::find(kind, given).and_then(|peer| peer::start(&peer, place).map(|_| peer));
        match tried {
            Ok(peer) => found.push(peer),
            Err(why) => eprintln!("skipped: {why}"),
        }
    }
    found
}

/// Read at each end of a measurement.
struct Sample {
    at: u64,
    proxy: Cpu,
    load_cpu: Ticks,
    proxy_cpu: Ticks,
}

struct Bench<'a> {
    args: &'a CompareArgs,
    stop: &'a Arc<AtomicBool>,
    peers: Vec<Peer>,
    scratch: Scratch,
    origin: OriginProcess,
    raw: fs::File,
    rows: Vec<Row>,
    /// By case and proxy, over all rounds.
    latencies: BTreeMap<(&'static str, String), Histogram<u64>>,
}

impl Bench<'_> {
    fn load_case(&mut self, case: &Case, with_direct: bool) -> Result<(), String> {
        for round in 0..self.args.rounds {
            for index in self.order(round, with_direct) {
                let who = self.peers.get(index).map_or(DIRECT, |p| p.kind.name());
                eprint!("case {}, round {} of {}: {who:<9}", case.key, round + 1, self.args.rounds);
                let row = self.load_turn(case, index)?;
                let number = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
                eprintln!(
                    " {:>8.0} requests/s, {:>6.1} µs of CPU a request, p99 {:>7.0} µs, {} failed{}",
                    number("rate"),
                    number("cpu_us"),
                    number("p99_us"),
                    number("failed"),
                    if summary::is_disturbed(&row) {
                        " (disturbed: others used the proxy's CPU)"
                    } else {
                        ""
                    }
                );
                self.keep(case.key, round, who.to_owned(), row)?;
            }
        }
        Ok(())
    }

    /// Indices of peers; one past the last is the origin itself. Every second round runs backwards.
    fn order(&self, round: u32, with_direct: bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.peers.len() + usize::from(with_direct)).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    fn load_turn(&mut self, case: &Case, index: usize) -> Result<Row, String> {
        let peer = self.peers.get(index);
        let running = peer.map(|peer| peer::start(peer, &self.place())).transpose()?;
        let address = running.as_ref().map_or(self.origin.address, |r| r.address);
        let url = Url {
            place: Place::Tcp(address),
            tls: false,
            authority: address.to_string(),
            target: case.target.to_owned(),
        };
        let options = client::Options {
            rate: case.rate,
            connections: CONNECTIONS,
            cpus: vec![self.args.load_cpu],
            duration: Some(Duration::from_secs_f64(self.args.seconds)),
            warmup: WARMUP,
            ..client::Options::new(url)
        };
        let pid = running.as_ref().map(peer::Running::pid);
        let (load_cpu, proxy_cpu) = (self.args.load_cpu, self.args.proxy_cpu);
        let sample = move || Sample {
            at: now_ns(),
            proxy: pid.map(process::cpu).unwrap_or_default(),
            load_cpu: process::cpu_ticks(load_cpu),
            proxy_cpu: process::cpu_ticks(proxy_cpu),
        };
        let (mut from, mut to) = (sample(), sample());
        let tally = client::run(&options, self.stop, false, &mut |mark| match mark {
            Mark::From => from = sample(),
            Mark::To => to = sample(),
        })?;
        self.check_stop()?;
        let used = to.proxy - from.proxy;
        let (seconds, requests) =
            ((to.at - from.at) as f64 / SECOND as f64, (tally.completed as f64).max(1.0));
        let mut row = Row::new();
        let mut set =
            |name: &str, value: f64| row.insert(name.to_owned(), json!((value * 1e3).round() / 1e3));
        set("rate", tally.completed as f64 / self.args.seconds);
        set("requests", tally.completed as f64);
        set("failed", tally.failed() as f64);
        for (name, percentile) in [("p50_us", 50.0), ("p90_us", 90.0), ("p99_us", 99.0), ("p99_9_us", 99.9)] {
            set(name, tally.micros(percentile));
        }
        set("max_us", tally.latency.max() as f64 / 1e3);
        set("load_cpu_busy", to.load_cpu.busy_since(from.load_cpu));
        if let Some(running) = &running {
            set("cpu_us", used.total / requests);
            set("cpu_user_us", used.user / requests);
            set("cpu_system_us", used.system / requests);
            let share = used.total / 1e6 / seconds;
            set("proxy_cpu_busy", share);
            set("others_on_proxy_cpu", (to.proxy_cpu.busy_since(from.proxy_cpu) - share).max(0.0));
            set("start_ms", running.start_ms);
        }
        row.insert("failures".to_owned(), json!(tally.failures().collect::<BTreeMap<_, _>>()));
        let key = (case.key, peer.map_or(DIRECT, |p| p.kind.name()).to_owned());
        match self.latencies.get_mut(&key) {
            Some(sum) => sum.add(&tally.latency).map_err(|e| format!("histogram: {e}"))?,
            None => drop(self.latencies.insert(key, tally.latency)),
        }
        Ok(row)
    }

    fn memory_case(&mut self) -> Result<(), String> {
        for round in 0..self.args.rounds {
            for index in self.order(round, false) {
                let peer = &self.peers[index];
                let who = peer.kind.name();
                eprint!("case memory, round {} of {}: {who:<9}", round + 1, self.args.rounds);
                let mut row = Row::new();
                for (key, request) in [("fresh", None), ("used", Some("/size/1024"))] {
                    let running = peer::start(peer, &self.place())?;
                    self.pause(Duration::from_millis(1000))?;
                    let idle = process::memory(running.pid());
                    let streams = idle::open(running.address, IDLE_CONNECTIONS, request)?;
                    // Idle is what has been quiet for a while: buffers are held for a moment, for whoever comes again.
                    self.pause(Duration::from_millis(4000))?;
                    let held = process::memory(running.pid());
                    let open = idle::still_open(&streams);
                    if open < IDLE_CONNECTIONS {
                        eprintln!(" (closed {} of its idle connections)", IDLE_CONNECTIONS - open);
                    }
                    let mut set =
                        |name: String, value: f64| row.insert(name, json!((value * 1e3).round() / 1e3));
                    if request.is_none() {
                        set("idle_kib".to_owned(), idle.rss);
                        set("idle_pss_kib".to_owned(), idle.pss);
                        set("start_ms".to_owned(), running.start_ms);
                    }
                    set(format!("{key}_1000_kib"), held.rss);
                    set(format!("{key}_per_connection_kib"), (held.rss - idle.rss) / IDLE_CONNECTIONS as f64);
                    set(format!("{key}_closed"), (IDLE_CONNECTIONS - open) as f64);
                }
                let number = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
                eprintln!(
                    " {:>7.0} KiB idle, {:.2} KiB a connection, {:.2} after a request, start {:.1} ms",
                    number("idle_kib"),
                    number("fresh_per_connection_kib"),
                    number("used_per_connection_kib"),
                    number("start_ms")
                );
                self.keep("memory", round, who.to_owned(), row)?;
            }
        }
        Ok(())
    }

    fn place(&self) -> peer::Place<'_> {
        peer::Place { origin: self.origin.address, proxy_cpu: self.args.proxy_cpu, dir: &self.scratch.dir }
    }

    fn keep(&mut self, case: &str, round: u32, who: String, mut row: Row) -> Result<(), String> {
        row.insert("case".to_owned(), json!(case));
        row.insert("round".to_owned(), json!(round + 1));
        row.insert("who".to_owned(), json!(who));
        writeln!(self.raw, "{}", Value::Object(row.clone())).map_err(|e| format!("raw.jsonl: {e}"))?;
        self.rows.push(row);
        Ok(())
    }

    fn plot(&self, case: &Case) -> String {
        let mut names: Vec<&str> = self.peers.iter().map(|p| p.kind.name()).collect();
        names.push(DIRECT);
        let runs: Vec<(String, &Histogram<u64>)> = names
            .into_iter()
            .filter_map(|n| Some((n.to_owned(), self.latencies.get(&(case.key, n.to_owned()))?)))
            .collect();
        plot::svg(case.title, &runs)
    }

    fn pause(&self, time: Duration) -> Result<(), String> {
        std::thread::sleep(time); // a signal ends it early
        self.check_stop()
    }

    fn check_stop(&self) -> Result<(), String> {
        if self.stop.load(Ordering::Relaxed) { Err("interrupted".to_owned()) } else { Ok(()) }
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// `loadtest server` as a process of its own; it ends with this one, however that ends.
struct OriginProcess {
    address: SocketAddr,
    child: Child,
}

impl OriginProcess {
    fn start(cpu: usize) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
        let mut child = Command::new(own)
            .args(["server", "--listen", "127.0.0.1:0", "--threads", "1", "--until-stdin-ends", "--cpus"])
            .arg(cpu.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // Ctrl-C reaches this process only
            .spawn()
            .map_err(|e| format!("origin: {e}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("the origin has no output")?;
        let read = BufReader::new(stdout).read_line(&mut line);
        let address = line.trim().strip_prefix("listening on ").and_then(|a| a.parse().ok());
        match (read, address) {
            (Ok(_), Some(address)) => Ok(Self { address, child }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err("the origin does not start".to_owned())
            }
        }
    }
}

impl Drop for OriginProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A folder for configurations and logs, gone when dropped.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("loadtest-compare-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(Self { dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir); // left behind in the temporary folder at worst
    }
}
