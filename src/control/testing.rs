//! What the tests of control share: a shard without a data path, a folder that removes itself, a plain HTTP request, a name
//! server.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::shard::Plan;
use crate::shard::link::{Notice, Order};
use crate::telemetry::{Interval, ServiceCounts, ServiceInterval, ShardTotals};

/// A shard that obeys the link and serves nobody: accepts no connections, but holds the sockets. Once a second of its
/// own (every 20 ms) it hands over an interval with ten exchanges for every service.
pub(super) fn fake_shard(plan: Plan) -> std::io::Result<JoinHandle<()>> {
    fake(plan, Habit::Good)
}

/// One that does not answer pings.
pub(super) fn deaf_shard(plan: Plan) -> std::io::Result<JoinHandle<()>> {
    fake(plan, Habit::Deaf)
}

/// One that never finishes draining, until it is told to cut what is open.
pub(super) fn stubborn_shard(plan: Plan) -> std::io::Result<JoinHandle<()>> {
    fake(plan, Habit::Stubborn)
}

/// One that ends at the first ping.
pub(super) fn mortal_shard(plan: Plan) -> std::io::Result<JoinHandle<()>> {
    fake(plan, Habit::Mortal)
}

/// One whose thread ends before it accepts.
pub(super) fn stillborn_shard(plan: Plan) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().spawn(move || drop(plan))
}

/// One that gets no runtime.
pub(super) fn ringless_shard(plan: Plan) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().spawn(move || {
        let refused = "no ring: Operation not permitted".to_owned();
        let _ = plan.link.notices.push(Notice::Runtime { used: None, refused, cost: "" });
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Habit {
    Good,
    Deaf,
    Stubborn,
    Mortal,
}

fn fake(plan: Plan, habit: Habit) -> std::io::Result<JoinHandle<()>> {
    let Plan { shard, link, mut doorbell, .. } = plan;
    doorbell.set_read_timeout(Some(Duration::from_millis(20)))?;
    std::thread::Builder::new().name(format!("fake-shard-{shard}")).spawn(move || {
        let mut snapshot = None;
        let mut sockets = Vec::new();
        let mut bells = [0; 64];
        loop {
            let _ = doorbell.read(&mut bells);
            if let Some(next) = link.take_snapshot() {
                link.vitals.generation.store(next.generation, Ordering::Release);
                if let Some(old) = snapshot.replace(next) {
                    let _ = link.retired.push(old);
                }
            }
            while let Some(order) = link.take_order() {
                match order {
                    Order::Listen(name, socket) => sockets.push((name, socket)),
                    Order::Unlisten(name) => sockets.retain(|(n, _)| *n != name),
                    Order::Ping(_) if habit == Habit::Deaf => {}
                    Order::Ping(_) if habit == Habit::Mortal => return,
                    Order::Drain if habit == Habit::Stubborn => {}
                    Order::Cut => {
                        let _ = link.chunks.push(b"cut\n".to_vec());
                        link.vitals.ended.store(1, Ordering::Release);
                        return;
                    }
                    Order::Ping(number) => link.vitals.pong.store(number, Ordering::Release),
                    Order::Drain => {
                        drop(sockets);
                        link.vitals.ended.store(1, Ordering::Release);
                        return;
                    }
                }
            }
            link.vitals.accepting.store(1, Ordering::Release);
            if let Some(snapshot) = &snapshot {
                let services = snapshot
                    .services
                    .iter()
                    .map(|s| ServiceInterval { service: Arc::clone(&s.name), counts: ten_exchanges() });
                let shard_totals = ShardTotals { downstream_accepted: 1, ..ShardTotals::default() };
                let services = services.collect();
                let interval = match link.spent.pop() {
                    Some(mut spent) => {
                        let empty =
                            |s: &ServiceInterval| s.counts.exchanges() == 0 && s.counts.whole.is_empty();
                        assert!(spent.services.iter().all(empty), "what comes back is cleared");
                        *spent = Interval { services, shard_totals, ..Interval::new(shard) };
                        spent
                    }
                    None => Box::new(Interval { services, shard_totals, ..Interval::new(shard) }),
                };
                // Full: dropped here; a real shard would keep it.
                let _ = link.intervals.push(interval);
            }
        }
    })
}

fn ten_exchanges() -> Box<ServiceCounts> {
    let mut counts = Box::new(ServiceCounts::new());
    counts.by_class[2] = 10;
    for n in 1..=10 {
        counts.first_byte.saturating_record(n * 1_000_000);
        counts.whole.saturating_record(n * 2_000_000);
        counts.own.saturating_record(n * 2_000);
    }
    counts
}

/// A folder of the test's own, removed with it.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Under the system's folder for temporary files.
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringmesh-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A path in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file in it.
    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.0));
    }
}

/// Waits for something that must happen; only a failing test waits long.
pub(super) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Status and body of one request; `head` is the request line and further fields without Host.
pub(super) fn request(address: SocketAddr, head: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "{head}\r\nHost: admin\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (fields, body) = answer.split_once("\r\n\r\n").unwrap();
    (fields[9..12].parse().unwrap(), fields.to_lowercase(), body.to_owned())
}

/// As [`request`], for a page.
pub(super) fn page(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = request(address, &format!("GET {path} HTTP/1.1"));
    (status, body)
}

/// Names and their addresses, to be changed while a [`name_server`] serves them.
pub(super) type Zone = Arc<Mutex<BTreeMap<String, Vec<Ipv4Addr>>>>;

/// Answers A queries from the zone with TTL 0; a name that is not there gets SERVFAIL, other types an empty answer. Ends
/// soon after the zone is dropped.
pub(super) fn name_server(zone: &Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap();
    let zone = Arc::downgrade(zone);
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Some(zone) = zone.upgrade() {
            if let Ok((length, from)) = socket.recv_from(&mut query) {
                let answer = answer(&query[..length], &zone.lock().unwrap());
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    address
}

fn answer(query: &[u8], zone: &BTreeMap<String, Vec<Ipv4Addr>>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] > 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    let question = &query[12..at + 5];
    let wants_a = query[at + 2] == 1;
    let found = zone.get(&labels.join("."));
    let addresses = found.filter(|_| wants_a).cloned().unwrap_or_default();
    let mut out = query[..2].to_vec();
    out.extend([0x81, if found.is_some() { 0x80 } else { 0x82 }, 0, 1]);
    out.extend((addresses.len() as u16).to_be_bytes());
    out.extend([0; 4]);
    out.extend(question);
    for address in addresses {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        out.extend(address.octets());
    }
    out
}
