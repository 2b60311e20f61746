//! Proof that a warm shard allocates nothing for an exchange whose request is whole when its head is understood, and once
//! (the state of two directions) for one whose body is streamed: counted, not believed.
//!
//! One shard runs in this process as control would start it; its peers are blocking sockets on other threads. A
//! counting allocator looks only at the shard's thread, and only while exchanges are counted, which goes on over more
//! than one of the shard's ticks: the hand-over of telemetry allocates nothing either. A test binary of its own, because
//! a process has one allocator.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "the numbers are the proof")]
#![allow(unsafe_code, reason = "an allocator cannot be written without")]
#![allow(
    clippy::disallowed_methods,
    reason = "the peers and the test may block, and have a clock of their own"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmesh::authorize::{Action, Policy, Rule, TextMatch, Verdict};
use ringmesh::config;
use ringmesh::shard::link::{Link, Order};
use ringmesh::shard::{Plan, spawn};
use ringmesh::telemetry::Interval;

/// How long it goes on before and while allocations are counted: four of the shard's ticks, after which two sets of
/// counts circulate and the buffers have settled, and two or three. Exchanges go on beyond that until there are
/// `EXCHANGES_MIN` of each kind.
const WARM_UP_TIME: Duration = Duration::from_millis(4_500);
const COUNTED_TIME: Duration = Duration::from_millis(2_500);
const EXCHANGES_MIN: usize = 1000;

/// What a request is, and what is sent when its first bytes have been sent.
struct Kind {
    first: &'static str,
    then: &'static str,
}

const WHOLE: [Kind; 4] = [
    Kind { first: "GET /fixed HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\n\r\n", then: "" },
    Kind { first: "GET /chunked HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n\r\n", then: "" },
    Kind {
        first: "GET /long HTTP/1.1\r\nHost: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n\r\n",
        then: "",
    },
    Kind { first: "POST /fixed HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", then: "" },
];

const STREAMED: [Kind; 3] = [
    // Whether the first half is read alone is up to the kernel; all the ways are taken in the time.
    Kind { first: "POST /fixed HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello", then: "world" },
    Kind {
        first: "POST /fixed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        then: "lo\r\n0\r\n\r\n",
    },
    Kind {
        first: "POST /fixed HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        then: "hello",
    },
];

#[test]
fn a_warm_shard_allocates_nothing_for_a_whole_request_and_once_for_a_streamed_one() {
    let traced = std::env::var_os("RINGMESH_ALLOCATION_TRACE").is_some();
    let origin = Origin::start();
    for more in [
        "",
        "caller_may = { attempts_max = 5 }\n",
        "[access_log]\npath = \"stdout\"\nformat = \"json\"\n",
        // What is not recorded has a context written into it, and a line that says which one came.
        "[tracing]\nendpoint = \"http://127.0.0.1:4317\"\nsample_percent = 0\npropagate = [\"w3c\", \"b3\"]\n[access_log]\npath = \"stdout\"\n",
    ] {
        let proxy = Proxy::start(origin.address, more);
        let mut caller = Caller::connect(proxy.address);
        caller.exchange(&WHOLE[0]);
        // The thread has its name by now.
        WATCHED.store(proxy.thread(), Ordering::SeqCst);
        while more.contains("access_log") && !proxy.link.chunks.is_full() {
            // Control is late for once, so that all chunks of the log that there can be are there.
            caller.exchanges_for(Duration::ZERO, &WHOLE);
        }
        proxy.merges_log.store(true, Ordering::SeqCst);
        caller.exchanges_for(WARM_UP_TIME / 2, &STREAMED);
        caller.exchanges_for(WARM_UP_TIME, &WHOLE);
        assert!(
            SEEN.swap(0, Ordering::SeqCst) > 0,
            "a shard that warms up allocates: is the right thread watched?"
        );
        for (kinds, each) in [(&WHOLE[..], 0), (&STREAMED[..], 1)] {
            SEEN.store(0, Ordering::SeqCst);
            WATCHED.store(proxy.thread(), Ordering::SeqCst);
            TRACED.store(traced && each == 0, Ordering::SeqCst);
            let exchanges = caller.exchanges_for(COUNTED_TIME, kinds);
            WATCHED.store(0, Ordering::SeqCst);
            TRACED.store(false, Ordering::SeqCst);
            let seen = SEEN.load(Ordering::SeqCst);
            println!("{seen} allocations in {exchanges} exchanges {more:?}");
            assert!(
                seen <= each * exchanges as u64,
                "{seen} in {exchanges} exchanges, {each} allowed each; with RINGMESH_ALLOCATION_TRACE=1 the first one \
                 where none is allowed ends the process and says where it was"
            );
        }
        drop(caller);
        proxy.stop();
    }
}

// --- the counting allocator ---

/// The thread whose allocations are counted; 0 for none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
/// What was counted.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// Whether the first one counted ends the process.
static TRACED: AtomicBool = AtomicBool::new(false);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn count() {
        let watched = WATCHED.load(Ordering::Relaxed);
        if watched != 0 && rustix::thread::gettid().as_raw_nonzero().get() == watched {
            SEEN.fetch_add(1, Ordering::Relaxed);
            if TRACED.load(Ordering::Relaxed) {
                // Looking for the place allocates, too.
                WATCHED.store(0, Ordering::Relaxed);
                eprintln!("{}", std::backtrace::Backtrace::force_capture());
                std::process::exit(1);
            }
        }
    }
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches two atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: `at` came from `System` by one of these functions; the caller keeps the rest of the contract.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` by one of these functions, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

// --- the shard, as control starts it ---

struct Proxy {
    address: SocketAddr,
    link: Arc<Link>,
    shard: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    merges_log: Arc<AtomicBool>,
    merging: JoinHandle<()>,
}

impl Proxy {
    fn start(origin: SocketAddr, more: &str) -> Self {
        let text = format!(
            "[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:15001\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{origin}\"]\n\
             [[route]]\nservice = \"app\"\n{more}"
        );
        let loaded = config::parse("test.toml", &text, &|_| None).unwrap();
        let mut snapshot = loaded.compiled.snapshot(1, &|_, _| Vec::new());
        snapshot.authorization = Arc::new(rules());
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (link, doorbell) = Link::new(0).unwrap();
        link.publish(Arc::new(snapshot));
        link.order(Order::Listen("in".into(), socket)).unwrap();
        let plan = Plan {
            shard: 0,
            cpu: None,
            link: Arc::clone(&link),
            doorbell,
            runtime: ringmesh::shard::RuntimeChoice::Auto,
            age_min: Plan::AGE_MIN,
            stall_threshold: Duration::from_secs(10),
        };
        let shard = spawn(plan).unwrap();
        let (stop, merges_log) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let merging = {
            let (link, stop, merges_log) = (Arc::clone(&link), Arc::clone(&stop), Arc::clone(&merges_log));
            std::thread::spawn(move || merge(&link, &stop, &merges_log))
        };
        Self { address, link, shard, stop, merges_log, merging }
    }

    /// The kernel's number of the shard's thread.
    fn thread(&self) -> i32 {
        let name = self.shard.thread().name().unwrap().to_owned();
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .map(|entry| entry.unwrap())
            .find(|entry| std::fs::read_to_string(entry.path().join("comm")).unwrap().trim() == name)
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    fn stop(self) {
        self.link.order(Order::Drain).unwrap();
        self.shard.join().unwrap();
        self.stop.store(true, Ordering::SeqCst);
        self.merging.join().unwrap();
    }
}

/// Rules of every kind, all of which are asked for each request and one of which is to be noted.
fn rules() -> Policy {
    let rule = |action, path: &str| Rule {
        name: format!("{action:?} {path}").into(),
        action,
        listeners: vec!["in".into()],
        from: Vec::new(),
        sources: vec!["127.0.0.0/8".parse().unwrap()],
        ports: Vec::new(),
        methods: vec!["GET".into(), "POST".into()],
        paths: vec![TextMatch::Prefix(path.into())],
        headers: vec![("host".into(), TextMatch::Any)],
    };
    let rules = vec![rule(Action::Deny, "/no"), rule(Action::Audit, "/"), rule(Action::Allow, "/")];
    Policy::new(rules, Verdict::Deny).unwrap()
}

/// What control does with intervals and log lines: takes them, clears them, sends them back.
fn merge(link: &Link, stop: &AtomicBool, merges_log: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        while merges_log.load(Ordering::SeqCst)
            && let Some(mut chunk) = link.chunks.pop()
        {
            chunk.clear();
            let _ = link.spent_chunks.push(chunk);
        }
        while let Some(mut interval) = link.intervals.pop() {
            let Interval { services, .. } = &mut *interval;
            services.iter_mut().for_each(|service| service.counts.clear());
            let _ = link.spent.push(interval);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

// --- its peers ---

/// Answers every request on every connection until the process ends.
struct Origin {
    address: SocketAddr,
}

impl Origin {
    fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in socket.incoming() {
                std::thread::spawn(move || Self::serve(stream.unwrap()));
            }
        });
        Self { address }
    }

    /// `Date` is left out, so that the proxy has to write it.
    fn serve(mut stream: TcpStream) {
        let fixed =
            message("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n", 1024);
        let long = message("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", 300_000);
        let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..4 {
            chunked.extend_from_slice(&message("80\r\n", 128));
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        let mut incoming = Incoming::default();
        while let Some(head) = incoming.head(&mut stream) {
            if head.to_ascii_lowercase().contains("expect: 100-continue") {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            }
            incoming.body(&mut stream, &head);
            let answer = match head.split(' ').nth(1).unwrap() {
                "/chunked" => &chunked,
                "/long" => &long,
                _ => &fixed,
            };
            stream.write_all(answer).unwrap();
        }
    }
}

/// Sends one request after the other on one connection, and reads every answer to its end.
struct Caller {
    stream: TcpStream,
    incoming: Incoming,
}

impl Caller {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, incoming: Incoming::default() }
    }

    /// One exchange of each kind in turn; how many there were.
    fn exchanges_for(&mut self, time: Duration, kinds: &[Kind]) -> usize {
        let began = Instant::now();
        let mut rounds = 0;
        while rounds < EXCHANGES_MIN || began.elapsed() < time {
            kinds.iter().for_each(|kind| self.exchange(kind));
            rounds += 1;
        }
        rounds * kinds.len()
    }

    fn exchange(&mut self, kind: &Kind) {
        self.stream.write_all(kind.first.as_bytes()).unwrap();
        if kind.first.contains("Expect: 100-continue") {
            let head = self.incoming.head(&mut self.stream).unwrap();
            assert!(head.starts_with("HTTP/1.1 100 "), "{head}");
        }
        self.stream.write_all(kind.then.as_bytes()).unwrap();
        let head = self.incoming.head(&mut self.stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        self.incoming.body(&mut self.stream, &head);
    }
}

/// What was read and not used yet.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
}

impl Incoming {
    /// The next head, or `None` when the peer has closed before it.
    fn head(&mut self, stream: &mut TcpStream) -> Option<String> {
        self.until(stream, b"\r\n\r\n").map(|head| String::from_utf8(head).unwrap())
    }

    /// Reads over the body that belongs to `head`.
    fn body(&mut self, stream: &mut TcpStream, head: &str) {
        if !head.contains("transfer-encoding: chunked") {
            return self.skip(stream, length(head));
        }
        while let size @ 1.. = self.chunk_size(stream) {
            self.skip(stream, size + 2);
        }
        self.skip(stream, 2);
    }

    fn chunk_size(&mut self, stream: &mut TcpStream) -> usize {
        let line = self.until(stream, b"\r\n").unwrap();
        usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap()
    }

    fn until(&mut self, stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|window| window == end) {
                return Some(self.bytes.drain(..at + end.len()).collect());
            }
            if !self.more(stream) {
                return None;
            }
        }
    }

    fn skip(&mut self, stream: &mut TcpStream, mut bytes: usize) {
        while bytes > self.bytes.len() {
            bytes -= self.bytes.len();
            self.bytes.clear();
            assert!(self.more(stream), "closed within a body");
        }
        self.bytes.drain(..bytes);
    }

    fn more(&mut self, stream: &mut TcpStream) -> bool {
        let mut piece = [0; 16 * 1024];
        let n = stream.read(&mut piece).unwrap();
        self.bytes.extend_from_slice(&piece[..n]);
        n > 0
    }
}

fn message(head: &str, body: usize) -> Vec<u8> {
    let mut message = head.as_bytes().to_vec();
    message.resize(message.len() + body, b'x');
    message
}

fn length(head: &str) -> usize {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap())
}
