//! One real shard on a thread of this process: what a test puts between a client and an origin.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmesh::authorize::{Policy, Rule, Verdict};
use ringmesh::config;
use ringmesh::shard::link::{Link, Notice, Order};
use ringmesh::shard::{Plan, spawn};
use ringmesh::snapshot::Snapshot;
use ringmesh::telemetry::faults::FaultCounts;
use ringmesh::telemetry::mirrored::MirrorCounts;
use ringmesh::telemetry::retries::RetryCounts;
use ringmesh::telemetry::{GrpcCounts, ShardTotals};

use super::GUARD;
use super::client::Client;
use super::origin::Origin;

/// What the shard is configured with.
#[derive(Clone, Default)]
pub struct Config {
    limits: String,
    timeouts: String,
    forwarding: String,
    access_log: Option<String>,
    services: Vec<Service>,
    /// Routes, when not simply all to the first service.
    routes: String,
    /// What connections may become and how long tunnels may be silent: keys of the one route to the first service.
    tunnels: String,
    /// What keys do not say.
    change: Option<Change>,
    policy: Arc<Policy>,
    age_min: Duration,
}

type Change = Arc<dyn Fn(&mut Snapshot) + Send + Sync>;

#[derive(Clone)]
struct Service {
    name: String,
    endpoints: Vec<String>,
    /// Further keys of its table.
    keys: String,
}

/// A running shard.
pub struct Mesh {
    pub address: SocketAddr,
    pub link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
    generation: u64,
    before: Option<Arc<Snapshot>>,
    /// What the shard has now.
    compiled: Option<config::Compiled>,
    seen: Seen,
}

/// What the shard counted over its life.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Exchanges that ended badly, by `stage.side.cause`.
    pub failures: BTreeMap<String, u64>,
    /// Connections that failed before there was an exchange, by `stage.side.cause`.
    pub connection_failures: BTreeMap<String, u64>,
    /// What was told of handshakes: failure, peer and words.
    pub handshakes: Vec<(String, String)>,
    /// Open connections that were ended because they are not allowed any more, by cause.
    pub revoked: BTreeMap<String, u64>,
    /// What was told of those: cause, how many, one of them.
    pub revocations: Vec<(String, u64, String)>,
    /// Exchanges by status class.
    pub by_class: [u64; 6],
    /// Bytes of bodies and tunnels, from callers and to them.
    pub bytes: (u64, u64),
    /// How many latencies were recorded: to the first byte, and to the last.
    pub latencies: (u64, u64),
    /// gRPC calls.
    pub grpc: GrpcCounts,
    /// Further attempts.
    pub retries: RetryCounts,
    /// Copies of requests.
    pub mirrored: MirrorCounts,
    /// What was done on purpose.
    pub faults: FaultCounts,
    /// Totals at the end.
    pub totals: ShardTotals,
    /// Causes of panics.
    pub panics: Vec<String>,
    /// What rules did: `listener rule outcome`, and how often.
    pub rules: BTreeMap<String, u64>,
    /// Lines of the access log, if there is one.
    pub log: String,
}

impl Config {
    /// All to one service named `app` with these endpoints.
    pub fn new(origins: &[&Origin]) -> Self {
        Self::default().service("app", origins, "")
    }

    /// One more service, with further keys of its table.
    pub fn service(self, name: &str, origins: &[&Origin], keys: &str) -> Self {
        let endpoints: Vec<_> = origins.iter().map(|o| o.endpoint.as_str()).collect();
        self.service_at(name, &endpoints, keys)
    }

    /// One more service at any addresses.
    pub fn service_at(mut self, name: &str, endpoints: &[&str], keys: &str) -> Self {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        self.services.push(Service { name: name.to_owned(), endpoints, keys: keys.to_owned() });
        self
    }

    /// Further keys of the first service.
    pub fn keys(mut self, keys: &str) -> Self {
        self.services[0].keys += keys;
        self.services[0].keys += "\n";
        self
    }

    pub fn limits(mut self, keys: &str) -> Self {
        self.limits = keys.to_owned();
        self
    }

    pub fn timeouts(mut self, keys: &str) -> Self {
        self.timeouts = keys.to_owned();
        self
    }

    pub fn forwarding(mut self, keys: &str) -> Self {
        self.forwarding = keys.to_owned();
        self
    }

    /// Lines of the access log, in this format.
    pub fn log(mut self, format: &str) -> Self {
        self.access_log = Some(format.to_owned());
        self
    }

    /// Whole `[[route]]` tables in place of the one to the first service.
    pub fn routes(mut self, tables: &str) -> Self {
        self.routes = tables.to_owned();
        self
    }

    /// One route to the first service, with tunnels of this kind.
    pub fn tunnels(mut self, websocket: bool, connect: bool, idle: Duration) -> Self {
        let kinds = [(websocket, "websocket"), (connect, "connect")];
        let kinds: Vec<_> = kinds.iter().filter(|(allowed, _)| *allowed).map(|(_, kind)| *kind).collect();
        let idle = if idle == Duration::MAX { "off".to_owned() } else { format!("{}ms", idle.as_millis()) };
        self.tunnels = format!("upgrades = {kinds:?}\ntunnel_idle = {idle:?}\n");
        self
    }

    /// Changes what the keys make.
    pub fn change(mut self, change: impl Fn(&mut Snapshot) + Send + Sync + 'static) -> Self {
        self.change = Some(Arc::new(change));
        self
    }

    /// Who may do what, in place of everybody everything.
    pub fn authorization(mut self, rules: Vec<Rule>, default: Verdict) -> Self {
        self.policy = Arc::new(Policy::new(rules, default).unwrap());
        self
    }

    /// With an access log, as JSON: in [`Seen::log`] at the end.
    pub fn logged(self) -> Self {
        self.log("json")
    }

    /// Connections of the mesh are kept so long at least; not at all when nothing is said.
    pub fn age_min(mut self, age_min: Duration) -> Self {
        self.age_min = age_min;
        self
    }

    pub fn start(&self) -> Mesh {
        Mesh::start(self)
    }

    /// As TOML.
    pub fn text(&self) -> String {
        let mut text = format!("[limits]\n{}\n[timeouts]\n{}\n[forwarding]\n", self.limits, self.timeouts);
        if !self.forwarding.contains("via") {
            text += "via = \"hop\"\n";
        }
        text += &self.forwarding;
        if let Some(format) = &self.access_log {
            text += &format!("\n[access_log]\nformat = {format:?}");
        }
        text += "\n[[listener]]\nname = \"inbound\"\naddress = \"127.0.0.1:15001\"\n";
        for Service { name, endpoints, keys } in &self.services {
            // A table stands as it is.
            let written = |e: &String| if e.starts_with('{') { e.clone() } else { format!("{e:?}") };
            let endpoints: Vec<_> = endpoints.iter().map(written).collect();
            let endpoints = endpoints.join(", ");
            text += &format!("[[service]]\nname = {name:?}\nendpoints = [{endpoints}]\n");
            if !keys.contains("retry") {
                // What a service is asked is asked once, so that it can be counted; tests of retries say what they want.
                text += "retry = \"off\"\n";
            }
            text += keys;
            text += "\n";
        }
        if self.routes.is_empty() {
            text += &format!("[[route]]\nservice = {:?}\n{}", self.services[0].name, self.tunnels);
        }
        text + &self.routes
    }
}

impl Mesh {
    pub fn start(config: &Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (link, doorbell) = Link::new(0).unwrap();
        let mut mesh = Self {
            address,
            link,
            thread: None,
            generation: 0,
            before: None,
            compiled: None,
            seen: Seen::default(),
        };
        mesh.give(config);
        mesh.order(Order::Listen("inbound".into(), listener));
        let plan = Plan {
            shard: 0,
            cpu: None,
            link: Arc::clone(&mesh.link),
            doorbell,
            runtime: ringmesh::shard::RuntimeChoice::Auto,
            stall_threshold: Duration::from_secs(60),
            age_min: config.age_min,
        };
        mesh.thread = Some(spawn(plan).unwrap());
        mesh
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Puts a new configuration in place and waits until the shard has it.
    pub fn reload(&mut self, config: &Config) {
        self.give(config);
        let generation = self.generation;
        until("the shard takes a snapshot", || self.link.runs(generation));
    }

    pub fn order(&self, order: Order) {
        self.link.order(order).unwrap_or_else(|order| panic!("{order:?} not taken"));
    }

    /// Waits until the shard has done all that was ordered before.
    pub fn settle(&self, number: u64) {
        self.order(Order::Ping(number));
        until("a pong", || self.link.vitals.pong.load(Ordering::Acquire) == number);
    }

    /// Waits until the shard's own count of open connections, told once a second, is `count`.
    pub fn wait_open(&self, count: u64) {
        until("connections", || self.link.vitals.downstream_open.load(Ordering::Acquire) == count);
    }

    /// Waits for the totals of a tick that `ready` likes.
    pub fn wait_totals(&mut self, mut ready: impl FnMut(&ShardTotals) -> bool) -> ShardTotals {
        let mut totals = ShardTotals::default();
        until("totals", || {
            self.seen.take(&self.link);
            totals = self.seen.totals;
            ready(&totals)
        });
        totals
    }

    /// Waits until what was counted so far is as `ready` likes.
    pub fn wait_seen(&mut self, mut ready: impl FnMut(&Seen) -> bool) -> Seen {
        until("counts", || {
            self.seen.take(&self.link);
            ready(&self.seen)
        });
        self.seen.clone()
    }

    /// Drains the shard, waits for its end, and gives what it counted. Panics if a task panicked.
    pub fn finish(mut self) -> Seen {
        self.end();
        let seen = std::mem::take(&mut self.seen);
        assert!(seen.panics.is_empty(), "panics on the shard: {:?}", seen.panics);
        seen
    }

    fn give(&mut self, config: &Config) {
        let text = config.text();
        let mut loaded = config::parse("test.toml", &text, &|_| None)
            .unwrap_or_else(|report| panic!("{report}\nin:\n{text}"));
        self.generation += 1;
        if let Some(running) = &self.compiled {
            loaded.compiled.share(running);
        }
        let mut snapshot = loaded.compiled.snapshot(self.generation, &|_, _| Vec::new());
        // It is found by its name when a connection comes.
        snapshot.listeners[0].name = "inbound".into();
        snapshot.authorization = Arc::clone(&config.policy);
        if let Some(change) = &config.change {
            change(&mut snapshot);
        }
        if let Some(before) = &self.before {
            snapshot.keep_health(before);
        }
        let snapshot = Arc::new(snapshot);
        self.before = Some(Arc::clone(&snapshot));
        self.compiled = Some(loaded.compiled);
        self.link.publish(snapshot);
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.seen.take(&self.link);
        // Full of orders: the shard is gone, which the next line says.
        let _ = self.link.order(Order::Drain);
        until("the shard ends", || {
            self.seen.take(&self.link);
            thread.is_finished()
        });
        self.seen.take(&self.link);
        thread.join().unwrap();
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The thread ends with the process; waiting for it would hide why the test failed.
            let _ = self.link.order(Order::Drain);
        } else {
            self.end();
        }
    }
}

impl Seen {
    fn take(&mut self, link: &Link) {
        while let Some(interval) = link.intervals.pop() {
            self.totals = interval.shard_totals;
            for (failure, count) in &interval.connection_failures {
                *self.connection_failures.entry(failure.to_string()).or_default() += count;
            }
            for (cause, count) in &interval.revoked {
                *self.revoked.entry(cause.label().to_owned()).or_default() += count;
            }
            for counted in &interval.rules {
                let key = format!("{} {} {}", counted.listener, counted.rule, counted.outcome.label());
                *self.rules.entry(key).or_default() += counted.count;
            }
            for service in &interval.services {
                for (failure, count) in &service.counts.failures {
                    *self.failures.entry(failure.to_string()).or_default() += count;
                }
                self.bytes.0 += service.counts.request_body_bytes;
                self.bytes.1 += service.counts.response_body_bytes;
                self.latencies.0 += service.counts.first_byte.len();
                self.latencies.1 += service.counts.whole.len();
                self.grpc.add(&service.counts.grpc);
                self.retries.add(&service.counts.retries);
                self.mirrored.add(&service.counts.mirrored);
                self.faults.add(&service.counts.faults);
                for (mine, theirs) in self.by_class.iter_mut().zip(service.counts.by_class) {
                    *mine += theirs;
                }
            }
        }
        while let Some(chunk) = link.chunks.pop() {
            self.log += &String::from_utf8(chunk).unwrap();
        }
        while let Some(notice) = link.notices.pop() {
            match notice {
                Notice::Panic { cause } => self.panics.push(cause),
                Notice::Handshake { failure, words, .. } => {
                    self.handshakes.push((failure.to_string(), words));
                }
                Notice::Revoked { cause, connections, one } => {
                    self.revocations.push((cause.label().to_owned(), connections, one));
                }
                _ => {}
            }
        }
    }

    /// gRPC calls by status, as in `0:2 14:1`.
    pub fn grpc_statuses(&self) -> String {
        let all: Vec<String> = self.grpc.statuses().map(|(status, n)| format!("{status}:{n}")).collect();
        all.join(" ")
    }

    /// The lines of the access log, which are JSON.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        self.log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many exchanges ended with this cause, wherever it was.
    pub fn of_cause(&self, cause: &str) -> u64 {
        self.failures.iter().filter(|(label, _)| label.ends_with(&format!(".{cause}"))).map(|(_, n)| n).sum()
    }
}

/// Waits until something is so that only the shard's atomics tell. Yields in between; the guard is not a measure.
/// Looks again and again until it is so.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < GUARD, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
