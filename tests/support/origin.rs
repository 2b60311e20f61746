//! A scripted service: runs a script on each connection and remembers every byte that came.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::wire::{Kind, Message, Parse, parse, parse_all, shown};
use super::{End, GUARD, Gate, Watched};

/// A service that listens until it is dropped.
pub struct Origin {
    /// As it is written into a configuration.
    pub endpoint: String,
    log: Arc<Watched<Vec<Recorded>>>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    wake: Wake,
}

/// What came on one connection.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Everything, in order.
    pub bytes: Vec<u8>,
    /// How the proxy ended it, if it did.
    pub end: Option<End>,
    /// Whether the script is over.
    pub over: bool,
}

/// One connection, in the hands of a script.
pub struct Visit {
    /// Which one, from 0.
    pub number: usize,
    stream: Stream,
    input: Vec<u8>,
    log: Arc<Watched<Vec<Recorded>>>,
    ended: Option<End>,
    /// Whether it closes when nothing comes for a while.
    impatient: bool,
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
    Unix(UnixStream),
}

enum Wake {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Origin {
    /// Runs `script` on every connection, which is closed when it returns.
    pub fn scripted(script: impl Fn(&mut Visit) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, script)
    }

    /// As [`Origin::scripted`], on a listener that is there already.
    pub fn on(listener: TcpListener, script: impl Fn(&mut Visit) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let accept = move || listener.accept().map(|(stream, _)| Stream::Tcp(stream));
        Self::run(address.to_string(), Wake::Tcp(address), accept, script)
    }

    /// As [`Origin::scripted`], by TLS.
    pub fn tls(config: ServerConfig, script: impl Fn(&mut Visit) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(config);
        let accept = move || {
            listener.accept().map(|(stream, _)| {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                Stream::Tls(Box::new(StreamOwned::new(connection, stream)))
            })
        };
        Self::run(address.to_string(), Wake::Tcp(address), accept, script)
    }

    /// As [`Origin::scripted`], on a socket in the file system.
    pub fn unix(path: &Path, script: impl Fn(&mut Visit) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let accept = move || listener.accept().map(|(stream, _)| Stream::Unix(stream));
        Self::run(format!("unix:{}", path.display()), Wake::Unix(path.to_owned()), accept, script)
    }

    /// Answers every request with what `answer` makes of it, and keeps the connection.
    pub fn answering(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::scripted(move |visit| {
            while let Some(request) = visit.request() {
                visit.send(answer(&request));
            }
        })
    }

    /// As [`Origin::plain`], when the gate has been opened.
    pub fn gated() -> (Arc<Gate>, Self) {
        let gate = Arc::new(Gate::default());
        let theirs = Arc::clone(&gate);
        let origin = Self::answering(move |request| {
            theirs.pass();
            ok(request)
        });
        (gate, origin)
    }

    /// Answers every request with 200 and its target.
    pub fn plain() -> Self {
        Self::answering(ok)
    }

    /// What came so far.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.log.lock().clone()
    }

    /// Waits until `count` whole requests have come on all connections together.
    pub fn wait_requests(&self, count: usize) -> Vec<Message> {
        self.log.wait("requests", |log| {
            let all: Vec<_> = log.iter().flat_map(Recorded::requests).collect();
            (all.len() >= count).then_some(all)
        })
    }

    /// Waits until some connection has received these bytes.
    pub fn wait_bytes(&self, bytes: &[u8]) {
        self.log.wait("bytes", |log| {
            log.iter().any(|r| r.bytes.windows(bytes.len()).any(|w| w == bytes)).then_some(())
        });
    }

    /// Waits until `count` connections have come.
    pub fn wait_connections(&self, count: usize) {
        self.log.wait("connections", |log| (log.len() >= count).then_some(()));
    }

    /// Waits until the proxy has ended that connection.
    pub fn wait_end(&self, number: usize) -> End {
        self.log.wait("an end", |log| log.get(number).and_then(|r| r.end))
    }

    /// Waits until the proxy has ended all connections (or scripts have), and gives all that came.
    pub fn settle(self) -> Vec<Recorded> {
        self.log.wait("the end of all connections", |log| log.iter().all(|r| r.over).then(|| log.clone()))
    }

    fn run(
        endpoint: String,
        wake: Wake,
        mut accept: impl FnMut() -> std::io::Result<Stream> + Send + 'static,
        script: impl Fn(&mut Visit) + Send + Sync + 'static,
    ) -> Self {
        let log: Arc<Watched<Vec<Recorded>>> = Arc::default();
        let stopping = Arc::new(AtomicBool::new(false));
        let script = Arc::new(script);
        let (their_log, their_stopping) = (Arc::clone(&log), Arc::clone(&stopping));
        let accepting = std::thread::spawn(move || {
            while let Ok(stream) = accept() {
                if their_stopping.load(Ordering::Acquire) {
                    return;
                }
                let log = Arc::clone(&their_log);
                let number = log.change(|log| {
                    log.push(Recorded::default());
                    log.len() - 1
                });
                let script = Arc::clone(&script);
                std::thread::spawn(move || {
                    let mut visit = Visit::new(number, stream, log);
                    script(&mut visit);
                });
            }
        });
        Self { endpoint, log, stopping, accepting: Some(accepting), wake }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        match &self.wake {
            Wake::Tcp(address) => drop(TcpStream::connect(address)),
            Wake::Unix(path) => {
                drop(UnixStream::connect(path));
                let _ = std::fs::remove_file(path);
            }
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Recorded {
    /// The whole requests that came.
    pub fn requests(&self) -> Vec<Message> {
        parse_all(Kind::Request, &self.bytes).0
    }

    /// Panics unless all that came are whole requests and, at the end, the front of one.
    #[track_caller]
    pub fn assert_sound(&self) {
        if let (_, Parse::Bad(why)) = parse_all(Kind::Request, &self.bytes) {
            panic!("the service got {why}; all: {}", shown(&self.bytes));
        }
    }
}

impl Visit {
    fn new(number: usize, stream: Stream, log: Arc<Watched<Vec<Recorded>>>) -> Self {
        if let Stream::Tcp(stream) = &stream {
            stream.set_nodelay(true).unwrap();
        }
        if let Stream::Tls(stream) = &stream {
            stream.sock.set_nodelay(true).unwrap();
        }
        let timeout = Some(GUARD);
        match &stream {
            Stream::Tls(s) => {
                s.sock.set_read_timeout(timeout).and_then(|()| s.sock.set_write_timeout(timeout))
            }
            Stream::Tcp(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
            Stream::Unix(s) => s.set_read_timeout(timeout).and_then(|()| s.set_write_timeout(timeout)),
        }
        .unwrap();
        Self { number, stream, input: Vec::new(), log, ended: None, impatient: false }
    }

    /// From now on, to wait for so long counts as the end of the connection: a service with an idle timeout.
    pub fn waits_for(&mut self, idle: Duration) {
        self.impatient = true;
        match &self.stream {
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(idle)),
            Stream::Tcp(stream) => stream.set_read_timeout(Some(idle)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(idle)),
        }
        .unwrap();
    }

    /// The next whole request; `None` at the end of the connection or at bytes that are none (they are recorded).
    pub fn request(&mut self) -> Option<Message> {
        loop {
            match parse(Kind::Request, &self.input, false) {
                Parse::Whole(message, len) => {
                    self.input.drain(..len);
                    return Some(message);
                }
                Parse::Bad(_) => {
                    self.drain();
                    return None;
                }
                Parse::Partial(_) if self.ended.is_some() => return None,
                Parse::Partial(_) => self.more(),
            }
        }
    }

    /// The head of the next request, whose body stays where it is.
    pub fn head(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") {
                let mut head = match parse(Kind::Request, &self.input, false) {
                    Parse::Whole(message, _) | Parse::Partial(Some(message)) => message,
                    Parse::Partial(None) | Parse::Bad(_) => return None,
                };
                head.body.clear();
                self.input.drain(..end + 4);
                return Some(head);
            }
            if self.ended.is_some() {
                return None;
            }
            self.more();
        }
    }

    /// Exactly so many bytes of what comes next; fewer at the end.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.input.len() < len && self.ended.is_none() {
            self.more();
        }
        self.input.drain(..len.min(self.input.len())).collect()
    }

    /// What has come, at least one byte; none at the end.
    pub fn some(&mut self) -> Vec<u8> {
        while self.input.is_empty() && self.ended.is_none() {
            self.more();
        }
        std::mem::take(&mut self.input)
    }

    /// Takes in all that comes until the proxy ends the connection.
    pub fn drain(&mut self) -> End {
        loop {
            if let Some(end) = self.ended {
                return end;
            }
            self.more();
            self.input.clear();
        }
    }

    /// Sends bytes; whether the proxy took them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match &mut self.stream {
            Stream::Tls(stream) => stream.write_all(bytes.as_ref()).and_then(|()| stream.flush()),
            Stream::Tcp(stream) => stream.write_all(bytes.as_ref()),
            Stream::Unix(stream) => stream.write_all(bytes.as_ref()),
        }
        .is_ok()
    }

    /// Sends no more.
    pub fn finish(&self) {
        let _ = match &self.stream {
            Stream::Tls(stream) => stream.sock.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Says by TLS that nothing more will be sent.
    pub fn close_notify(&mut self) {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    }

    /// The state of TLS.
    pub fn rustls(&mut self) -> &mut ServerConnection {
        match &mut self.stream {
            Stream::Tls(stream) => &mut stream.conn,
            _ => panic!("not encrypted"),
        }
    }

    /// Makes the end of the script a reset.
    pub fn reset(&self) {
        if let Stream::Tcp(stream) = &self.stream {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    fn more(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        let read = match &mut self.stream {
            Stream::Tls(stream) => stream.read(&mut buffer),
            Stream::Tcp(stream) => stream.read(&mut buffer),
            Stream::Unix(stream) => stream.read(&mut buffer),
        };
        let end = match read {
            Ok(0) => Some(End::Fin),
            Ok(n) => {
                self.input.extend_from_slice(&buffer[..n]);
                let number = self.number;
                self.log.change(|log| log[number].bytes.extend_from_slice(&buffer[..n]));
                None
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if self.impatient {
                    self.ended = Some(End::Fin);
                    return;
                }
                panic!("the service waited in vain; so far: {}", shown(&self.input))
            }
            Err(_) => Some(End::Reset),
        };
        if let Some(end) = end {
            self.ended = Some(end);
            let number = self.number;
            self.log.change(|log| log[number].end = Some(end));
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let number = self.number;
        self.log.change(|log| log[number].over = true);
    }
}

/// A response with status 200, and the request's target as its body.
pub fn ok(request: &Message) -> Vec<u8> {
    let body = if request.method() == "HEAD" { "" } else { request.target() };
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", request.target().len()).into_bytes()
}
