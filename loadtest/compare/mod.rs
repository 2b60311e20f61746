//! `loadtest compare`: ringmesh and other proxies under the same load, in turn, each alone on one CPU while origin and
//! client share another.
//!
//! Called by `main`. Rounds are interleaved and their order alternates, so that a machine that slows down slows all of
//! them; medians are quoted with their range; every round is kept. It refuses to compare where there are not two CPUs.

mod case;
pub(crate) mod peer;
pub(crate) mod process;
mod summary;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Add;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use rustls::pki_types::ServerName;

use crate::certificates::{self, Files};
use crate::client::{self, Mark};
use crate::clock::{SECOND, now_ns};
use crate::target::{Place, Url};
use crate::{idle, plot, socket, tls};
use case::{CASES, Case, CaseName};
use peer::{Kind, Peer, Shape};
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
    /// Which proxies, ringmesh among them. `unprofiled` is ringmesh built without the profile in loadtest/profile.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "ringmesh,policies,one-field,haproxy,haproxy-h2,nginx,envoy"
    )]
    peers: Vec<Kind>,
    /// The ringmesh to measure; the one beside this program if absent.
    #[arg(long, value_name = "PATH")]
    ringmesh: Option<PathBuf>,
    /// The one built without a profile; target/unprofiled/release/ringmesh if absent.
    #[arg(long, value_name = "PATH")]
    unprofiled: Option<PathBuf>,
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
    let scratch = Scratch::new("compare")?;
    let origin = OriginProcess::start(args.load_cpu, &scratch.files, &[])?;
    let wanted = |name| args.cases.contains(&name) || args.cases.contains(&CaseName::All);
    let cases: Vec<&Case> = CASES.iter().filter(|case| wanted(case.name)).collect();
    let peers = find_peers(args);
    if peers.is_empty() {
        return Err("no proxy to measure".to_owned());
    }
    let out = args.out.clone().unwrap_or_else(summary::default_folder);
    fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let raw = fs::File::create(out.join("raw.jsonl")).map_err(|e| format!("raw.jsonl: {e}"))?;
    write(&out.join("setup.md"), &summary::setup(args, &peers))?;
    let client = tls::ClientFiles { ca: Some(&scratch.files.ca), ..Default::default() };
    let tls = tls::client_config(&client, false)?;
    let unverified = tls::client_config(&tls::ClientFiles { insecure: true, ..client }, false)?;
    let mut bench = Bench {
        args,
        stop,
        peers,
        scratch,
        origin,
        tls,
        unverified,
        raw,
        rows: Vec::new(),
        latencies: BTreeMap::new(),
    };
    for case in cases {
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
    let ours =
        [Kind::Ringmesh, Kind::Unprofiled, Kind::Policies, Kind::OneField].map(|kind| Some(kind.name()));
    let is_ringmesh = |row: &&Row| ours.contains(&row.get("who").and_then(Value::as_str));
    let failed =
        bench.rows.iter().filter(is_ringmesh).any(|r| r.get("failed").and_then(Value::as_f64) > Some(0.0));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Those that are there; what is missing is said and left out.
fn find_peers(args: &CompareArgs) -> Vec<Peer> {
    let mut found = Vec::new();
    for &kind in &args.peers {
        let given = match kind {
            Kind::Unprofiled => args.unprofiled.as_deref(),
            kind => args.ringmesh.as_deref().filter(|_| kind.is_ringmesh()),
        };
        match Peer::find(kind, given) {
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
    tls: Arc<rustls::ClientConfig>,
    /// Where there is a handshake for each request: the client shares its CPU with the origin, and is not measured.
    unverified: Arc<rustls::ClientConfig>,
    raw: fs::File,
    rows: Vec<Row>,
    /// By case and proxy, over all rounds.
    latencies: BTreeMap<(&'static str, String), Histogram<u64>>,
}

impl Bench<'_> {
    fn load_case(&mut self, case: &Case, with_direct: bool) -> Result<(), String> {
        for peer in &self.peers {
            if let Some(why) = peer.kind.absent(case.shape) {
                eprintln!("case {}: {} {why}", case.key, peer.kind.name());
            }
        }
        for round in 0..self.args.rounds {
            for index in self.order(round, case.shape, with_direct) {
                let who = self.peers.get(index).map_or(DIRECT, |p| p.kind.name());
                eprint!("case {}, round {} of {}: {who:<10}", case.key, round + 1, self.args.rounds);
                let row = match self.load_turn(case, index) {
                    Ok(row) => row,
                    Err(why) if self.is_other(index) && !self.stop.load(Ordering::Relaxed) => {
                        eprintln!(" skipped: {why}");
                        continue;
                    }
                    Err(why) => return Err(why),
                };
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

    /// A proxy other than ringmesh: the comparison goes on without it, and says so.
    fn is_other(&self, index: usize) -> bool {
        self.peers.get(index).is_some_and(|peer| !peer.kind.is_ringmesh())
    }

    /// Indices of peers that take part; one past the last is the origin itself. Every second round runs backwards.
    fn order(&self, round: u32, shape: Shape, with_direct: bool) -> Vec<usize> {
        let absent = |i: &usize| self.peers.get(*i).is_some_and(|peer| peer.kind.absent(shape).is_some());
        let mut order: Vec<usize> =
            (0..self.peers.len() + usize::from(with_direct)).filter(|i| !absent(i)).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    fn load_turn(&mut self, case: &Case, index: usize) -> Result<Row, String> {
        let peer = self.peers.get(index);
        let running = peer.map(|peer| self.start(peer, case)).transpose()?;
        let address = running.as_ref().map_or(self.origin.address, |r| r.address);
        let options = client::Options {
            rate: case.rate,
            connections: case.connections,
            cpus: vec![self.args.load_cpu],
            duration: Some(Duration::from_secs_f64(self.args.seconds)),
            warmup: WARMUP,
            ..self.options(case, address)
        };
        let pids = running.as_ref().map(peer::Running::pids).unwrap_or_default();
        let (load_cpu, proxy_cpu) = (self.args.load_cpu, self.args.proxy_cpu);
        let sample = move || Sample {
            at: now_ns(),
            proxy: pids.iter().map(|pid| process::cpu(*pid)).fold(Cpu::default(), Add::add),
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

    /// The load of a case, but for how much of it.
    fn options(&self, case: &Case, address: SocketAddr) -> client::Options {
        let url = Url {
            place: Place::Tcp(address),
            tls: case.tls(),
            authority: address.to_string(),
            target: case.target.to_owned(),
        };
        client::Options {
            tls: case.tls().then(|| {
                let config = if case.new_connection { &self.unverified } else { &self.tls };
                (Arc::clone(config), ServerName::from(address.ip()))
            }),
            http2: case.streams.is_some(),
            streams_max: case.streams.unwrap_or(1),
            new_connection: case.new_connection,
            ..client::Options::new(url)
        }
    }

    /// Starts a proxy; it counts as started when it has answered a request of the case.
    fn start(&self, peer: &Peer, case: &Case) -> Result<peer::Running, String> {
        peer::start(peer, case.shape, &self.place(), |address| match case.shape {
            // Without a client's threads: this is where the start is timed.
            Shape::Plain | Shape::H1h2 | Shape::Mesh | Shape::Policies => TcpStream::connect(address)
                .and_then(|stream| stream.set_read_timeout(Some(Duration::from_secs(1))).map(|()| stream))
                .is_ok_and(|mut stream| idle::ask(&mut stream, case.target) == Ok(200)),
            _ => {
                let options = client::Options {
                    connections: 1,
                    requests: Some(1),
                    duration: None,
                    timeout: Duration::from_secs(1),
                    ..self.options(case, address)
                };
                client::run(&options, self.stop, false, &mut |_| {}).is_ok_and(|tally| tally.completed == 1)
            }
        })
    }

    fn memory_case(&mut self) -> Result<(), String> {
        for round in 0..self.args.rounds {
            for index in self.order(round, Shape::Plain, false) {
                let peer = &self.peers[index];
                let who = peer.kind.name();
                eprint!("case memory, round {} of {}: {who:<9}", round + 1, self.args.rounds);
                let mut row = Row::new();
                for (key, case, request) in [
                    ("fresh", CaseName::A, None),
                    ("used", CaseName::A, Some("/size/1024")),
                    ("tls", CaseName::Tls, Some("/size/1024")),
                ] {
                    let Some(case) = CASES.iter().find(|c| c.name == case) else { continue };
                    let running = self.start(peer, case)?;
                    self.pause(Duration::from_millis(1000))?;
                    let pid = running.pids()[0];
                    let idle = process::memory(pid);
                    let tls =
                        case.tls().then(|| (Arc::clone(&self.tls), ServerName::from(running.address.ip())));
                    let streams = idle::open(running.address, tls.as_ref(), IDLE_CONNECTIONS, request)?;
                    // Idle is what has been quiet for a while: buffers are held for a moment, for whoever comes again.
                    self.pause(Duration::from_millis(4000))?;
                    let held = process::memory(pid);
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
                    " {:>7.0} KiB idle, {:.2} KiB a connection, {:.2} after a request, {:.2} with TLS, start {:.1} ms",
                    number("idle_kib"),
                    number("fresh_per_connection_kib"),
                    number("used_per_connection_kib"),
                    number("tls_per_connection_kib"),
                    number("start_ms")
                );
                self.keep("memory", round, who.to_owned(), row)?;
            }
        }
        Ok(())
    }

    fn place(&self) -> peer::Place<'_> {
        let (dir, files) = (&self.scratch.dir, &self.scratch.files);
        peer::Place {
            origin: self.origin.address,
            odd: None,
            proxy_cpu: self.args.proxy_cpu,
            dir,
            files,
            leaf_ttl: "24h",
        }
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
pub(crate) struct OriginProcess {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl OriginProcess {
    pub(crate) fn start(cpu: usize, files: &Files, more: &[&str]) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
        let mut child = Command::new(own)
            .args(["server", "--listen", "127.0.0.1:0", "--also", "127.0.0.2", "--threads", "1"])
            .args(["--until-stdin-ends", "--cpus"])
            .arg(cpu.to_string())
            .arg("--tls-cert")
            .arg(&files.server.certificate)
            .arg("--tls-key")
            .arg(&files.server.key)
            .args(more)
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

/// A folder for configurations, certificates and logs, gone when dropped.
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
    pub(crate) files: Files,
}

impl Scratch {
    pub(crate) fn new(what: &str) -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("loadtest-{what}-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(Self { files: certificates::make(&dir)?, dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir); // left behind in the temporary folder at worst
    }
}
