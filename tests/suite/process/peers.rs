//! The two sides of a proxy under test: an origin, and callers that keep their connections and count what goes wrong.
//! Plain blocking threads that share no code with the proxy.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// No read or write of these tests takes as long.
const HANG: Duration = Duration::from_secs(20);

/// An origin: answers every GET with its name; `/hold` when it is told to.
pub(crate) struct Origin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held {
    waiting: AtomicU64,
    released: Mutex<bool>,
    told: Condvar,
}

impl Origin {
    /// One that keeps connections for long.
    pub(crate) fn start(name: &'static str) -> Self {
        Self::closing_after(name, HANG)
    }

    /// One that closes a connection on which nothing came for so long.
    pub(crate) fn closing_after(name: &'static str, idle: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self { address: listener.local_addr().unwrap(), held: Arc::default() };
        let held = Arc::clone(&origin.held);
        // Ends with the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let held = Arc::clone(&held);
                std::thread::spawn(move || serve(stream, name, idle, &held));
            }
        });
        origin
    }

    /// Requests for `/hold` that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.held.waiting.load(Ordering::Acquire)
    }

    /// Lets them be answered.
    pub(crate) fn release(&self) {
        *self.held.released.lock().unwrap() = true;
        self.held.told.notify_all();
    }
}

fn serve(mut stream: TcpStream, name: &str, idle: Duration, held: &Held) -> Option<()> {
    stream.set_read_timeout(Some(idle)).ok()?;
    stream.set_nodelay(true).ok()?;
    let mut input = Vec::new();
    loop {
        let head = read_head(&mut stream, &mut input).ok()?;
        if head.starts_with("GET /hold ") {
            held.waiting.fetch_add(1, Ordering::AcqRel);
            let released = held.released.lock().unwrap();
            drop(held.told.wait_timeout_while(released, HANG, |released| !*released).unwrap());
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).ok()?;
    }
}

/// A caller's connection.
pub(crate) struct Caller {
    stream: TcpStream,
    input: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// The proxy will close the connection.
    pub(crate) close: bool,
}

impl Caller {
    pub(crate) fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// One exchange.
    pub(crate) fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.send(path)?;
        self.receive()
    }

    pub(crate) fn send(&mut self, path: &str) -> io::Result<()> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n").as_bytes())
    }

    pub(crate) fn receive(&mut self) -> io::Result<Answer> {
        let head = read_head(&mut self.stream, &mut self.input)?;
        let field = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
            line.map(|line| line[name.len() + 1..].trim().to_owned())
        };
        let length: usize = field("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        while self.input.len() < length {
            read_more(&mut self.stream, &mut self.input)?;
        }
        let body: Vec<u8> = self.input.drain(..length).collect();
        Ok(Answer {
            status: head
                .get(9..12)
                .and_then(|status| status.parse().ok())
                .ok_or(io::ErrorKind::InvalidData)?,
            body: String::from_utf8_lossy(&body).into_owned(),
            close: field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        })
    }
}

fn read_head(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head: Vec<u8> = input.drain(..end + 4).collect();
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
        read_more(stream, input)?;
    }
}

fn read_more(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<()> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            input.extend_from_slice(&bytes[..n]);
            Ok(())
        }
    }
}

/// Callers that send one request after the other until they are told to stop or nobody listens any more.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// So many callers, each with a connection that it keeps for as long as the proxy does, and with no pause.
    pub(crate) fn start(to: SocketAddr, callers: usize) -> Self {
        Self::with_pauses(to, callers, |_| || Duration::ZERO)
    }

    /// As [`Load::start`], with a pause before each request; callers have their number.
    pub(crate) fn with_pauses<P>(to: SocketAddr, callers: usize, pauses: impl Fn(usize) -> P) -> Self
    where
        P: FnMut() -> Duration + Send + 'static,
    {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let callers = (0..callers)
            .map(|number| {
                let (stop, answered, pause) = (Arc::clone(&stop), Arc::clone(&answered), pauses(number));
                std::thread::spawn(move || call(to, &stop, &answered, pause))
            })
            .collect();
        Self { stop, answered, callers }
    }

    /// Requests answered with 200.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Whether all callers have ended by themselves.
    pub(crate) fn has_ended(&self) -> bool {
        self.callers.iter().all(JoinHandle::is_finished)
    }

    /// Ends it; what went wrong.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Release);
        self.callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    }
}

/// What went wrong. A connection that is refused ends the caller and is no failure: nobody listens, so no request was
/// taken on.
fn call(
    to: SocketAddr,
    stop: &AtomicBool,
    answered: &AtomicU64,
    mut pause: impl FnMut() -> Duration,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut kept = None;
    let mut served = 0_u64;
    while !stop.load(Ordering::Acquire) && failures.len() < 10 {
        let mut caller = match kept.take().map_or_else(|| Caller::connect(to), Ok) {
            Ok(caller) => caller,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
            Err(error) => {
                failures.push(format!("connecting: {error}"));
                continue;
            }
        };
        std::thread::sleep(pause());
        match caller.get("/") {
            Ok(Answer { status: 200, close, .. }) => {
                answered.fetch_add(1, Ordering::AcqRel);
                served += 1;
                if !close {
                    kept = Some(caller);
                }
            }
            Ok(answer) => failures.push(format!("{} {}", answer.status, answer.body.trim())),
            Err(error) => failures.push(format!("after {served} answers: {error}")),
        }
    }
    failures
}
