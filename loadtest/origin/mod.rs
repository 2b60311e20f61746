//! `loadtest server`: the origin behind the proxy under test. It answers what the URL asks for (see `target`), reads and
//! drops request bodies, and echoes the client's `x-echo` mark, so that a swapped response is seen. Plain text
//! and TLS, HTTP/1.1 and HTTP/2 are told apart by what a client begins with.
//!
//! Called by `main` and, as a child, by `compare`. One event loop per thread; nothing is allocated per request once a
//! target has been seen. It refuses what is not HTTP/1 with 400 and a close.

mod answers;
pub(crate) mod conduct;
mod streams;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};
use rustls::ServerConfig;

use crate::clock::{MILLISECOND, SECOND, Timer, nanos, now_ns};
use crate::socket::{Listener, Stream, not_now, pin};
use crate::wire::{self, Chunked, ECHO_BLANK, Echo, Framing, Head, Malformed, Message};
use answers::Answers;
use conduct::{Behaviour, Capacity, Conduct, Line};
use streams::Streams;

const TIMER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const LISTENER_FIRST: usize = usize::MAX - 8;

/// Open connections of one thread, at most; further ones are closed as soon as they are accepted.
const CONNECTIONS_MAX: usize = 20_000;
/// Unread bytes kept for a connection that is busy answering: reading stops beyond that.
const INPUT_BYTES_MAX: usize = 2 * wire::HEAD_BYTES_MAX;
const READ_BYTES: usize = 64 * 1024;
/// Slow mode writes one piece each such interval.
const SLOW_INTERVAL: u64 = 10 * MILLISECOND;
/// Exchanges at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1000;
/// Frames that wait for a slow client, at most: reading stops beyond that.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// What a slow reader or writer moves in one interval.
fn slow_piece(rate: u64) -> u64 {
    (rate * SLOW_INTERVAL / SECOND).max(1)
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) listen: Option<SocketAddr>,
    /// Another address of this machine to listen on, at the same port: a second endpoint that is the same origin.
    pub(crate) also: Option<IpAddr>,
    pub(crate) unix: Option<PathBuf>,
    pub(crate) threads: usize,
    pub(crate) cpus: Vec<usize>,
    /// Responses on one connection before the last of them says `connection: close`.
    pub(crate) close_after: Option<u32>,
    /// A connection that has been idle for this long is closed without a word.
    pub(crate) idle_close: Option<Duration>,
    /// Bytes a second that each response is written with.
    pub(crate) slow: Option<u64>,
    /// Bytes a second that are read from each connection.
    pub(crate) slow_read: Option<u64>,
    /// For clients that begin with a TLS handshake.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// What it does whatever URLs say.
    pub(crate) conduct: Option<Arc<Conduct>>,
    /// How much each thread can do, in place of delays that URLs ask for.
    pub(crate) capacity: Option<Capacity>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: None,
            also: None,
            unix: None,
            threads: 1,
            cpus: Vec::new(),
            close_after: None,
            idle_close: None,
            slow: None,
            slow_read: None,
            tls: None,
            conduct: None,
            capacity: None,
        }
    }
}

/// Running origin; dropping it stops its threads.
pub(crate) struct Origin {
    /// Where it listens, when it listens on TCP: the real port if port 0 was asked for.
    pub(crate) address: Option<SocketAddr>,
    stop: Arc<AtomicBool>,
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
}

/// Binds every socket, then starts the threads.
pub(crate) fn start(options: &Options) -> Result<Origin, String> {
    let threads = options.threads.max(1);
    let mut listeners: Vec<Vec<Listener>> = (0..threads).map(|_| Vec::new()).collect();
    let mut address = options.listen;
    if let Some(wanted) = options.listen {
        for own in &mut listeners {
            // With port 0 the first one decides and the others join it.
            let listener = Listener::tcp(address.unwrap_or(wanted))
                .map_err(|e| format!("cannot listen on {wanted}: {e}"))?;
            address = listener.address();
            own.push(listener);
        }
        if let (Some(also), Some(address)) = (options.also, address) {
            let also = SocketAddr::new(also, address.port());
            for own in &mut listeners {
                own.push(Listener::tcp(also).map_err(|e| format!("cannot listen on {also}: {e}"))?);
            }
        }
    }
    if let Some(path) = &options.unix {
        let shared =
            Listener::unix(path, threads).map_err(|e| format!("cannot listen on {}: {e}", path.display()))?;
        for (own, listener) in listeners.iter_mut().zip(shared) {
            own.push(listener);
        }
    }
    let mut origin = Origin { address, stop: Arc::default(), wakers: Vec::new(), threads: Vec::new() };
    for (i, own) in listeners.into_iter().enumerate() {
        let poll = Poll::new().map_err(|e| format!("epoll: {e}"))?;
        origin.wakers.push(Waker::new(poll.registry(), WAKER).map_err(|e| format!("eventfd: {e}"))?);
        let (options, stop) = (options.clone(), Arc::clone(&origin.stop));
        let cpu = (!options.cpus.is_empty()).then(|| options.cpus[i % options.cpus.len()]);
        let thread = std::thread::Builder::new().name(format!("origin-{i}")).spawn(move || {
            let pinned = cpu.map_or(Ok(()), pin);
            let ran = pinned
                .and_then(|()| EventLoop::new(poll, own, options)?.run(&stop).map_err(|e| e.to_string()));
            if let Err(error) = ran {
                eprintln!("loadtest server: {error}");
                std::process::exit(1);
            }
        });
        origin.threads.push(thread.map_err(|e| format!("cannot start a thread: {e}"))?);
    }
    Ok(origin)
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for waker in &self.wakers {
            let _ = waker.wake(); // fails only when the loop is gone already
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Time, index, the number of the connection because an index is used again, and what goes on: a stream of HTTP/2, or
/// one of the following.
type Due = Reverse<(u64, usize, u64, u32)>;
/// The answer of a connection of HTTP/1.
const ANSWER: u32 = 0;
/// Reading, slowly.
const READING: u32 = u32::MAX;

struct EventLoop {
    poll: Poll,
    timer: Timer,
    listeners: Vec<Listener>,
    options: Options,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: Answers,
    line: Option<Line>,
    /// When which connection goes on.
    due: BinaryHeap<Due>,
    accepted: u64,
    idle_scan_at: u64,
    buffer: Vec<u8>,
}

struct Connection {
    stream: Stream,
    number: u64,
    /// Bytes read and not looked at, of pipelined requests or half a head; empty nearly always.
    input: Vec<u8>,
    /// The kernel may hold bytes that were not read yet.
    readable: bool,
    peer_closed: bool,
    phase: Phase,
    request: Request,
    /// Once the connection speaks HTTP/2; the phase stays `Head`.
    streams: Option<Box<Streams>>,
    /// Whether its first bytes have been looked at, and a handshake that followed is done.
    greeting: Greeting,
    /// Bytes that a slow reader may take before the next interval.
    allowance: u64,
    sent: u64,
    served: u32,
    /// Its answer will never come.
    hangs: bool,
    idle_since: u64,
}

enum Greeting {
    Awaited,
    Handshake,
    Done,
}

enum Phase {
    Head,
    Body(Body),
    /// Waits for a moment in `due`, then writes.
    Wait,
    Write,
}

enum Body {
    Length(u64),
    Chunked(Chunked),
}

/// What is to be answered.
struct Request {
    reply: Rc<RefCell<Message>>,
    delay: u64,
    echo: Echo,
    close: bool,
}

/// What a turn on a connection came to.
enum Turn {
    Blocked,
    Close,
}

impl EventLoop {
    fn new(poll: Poll, mut listeners: Vec<Listener>, options: Options) -> Result<Self, String> {
        let timer = Timer::register(poll.registry(), TIMER).map_err(|e| format!("timerfd: {e}"))?;
        for (i, listener) in listeners.iter_mut().enumerate() {
            listener
                .register(poll.registry(), Token(LISTENER_FIRST + i))
                .map_err(|e| format!("epoll: {e}"))?;
        }
        Ok(Self {
            poll,
            timer,
            listeners,
            line: options.capacity.map(Line::new),
            options,
            connections: Vec::new(),
            free: Vec::new(),
            answers: Answers::default(),
            due: BinaryHeap::new(),
            accepted: 0,
            idle_scan_at: 0,
            buffer: vec![0; READ_BYTES],
        })
    }

    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        self.arm_timer()?;
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    TIMER => self.timer_fired(),
                    WAKER => {}
                    Token(token) if token >= LISTENER_FIRST => self.accept_all(token - LISTENER_FIRST),
                    Token(index) => {
                        if let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) {
                            connection.readable |= event.is_readable();
                            connection.peer_closed |= event.is_read_closed() || event.is_error();
                            self.turn(index);
                        }
                    }
                }
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.arm_timer()?;
        }
    }

    fn accept_all(&mut self, listener: usize) {
        loop {
            let mut stream = match self.listeners[listener].accept() {
                Ok(stream) => stream,
                Err(error) if not_now(&error) => return,
                // Aborted before it was taken, or out of descriptors: nothing to answer with.
                Err(error) => return eprintln!("loadtest server: accept: {error}"),
            };
            if self.connections.len() - self.free.len() >= CONNECTIONS_MAX {
                continue;
            }
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            if let Err(error) = stream.register(self.poll.registry(), Token(index)) {
                self.free.push(index);
                return eprintln!("loadtest server: epoll: {error}");
            }
            self.accepted += 1;
            self.connections[index] = Some(Connection {
                stream,
                number: self.accepted,
                input: Vec::new(),
                readable: false,
                peer_closed: false,
                phase: Phase::Head,
                request: self.answers.nothing(),
                streams: None,
                greeting: if self.options.tls.is_some() { Greeting::Awaited } else { Greeting::Done },
                allowance: self.options.slow_read.map_or(u64::MAX, slow_piece),
                sent: 0,
                served: 0,
                hangs: false,
                idle_since: now_ns(),
            });
        }
    }

    /// Takes one connection as far as it goes.
    fn turn(&mut self, index: usize) {
        let Some(mut connection) = self.connections[index].take() else { return };
        if !matches!(connection.greeting, Greeting::Done) {
            connection = match self.greet(connection) {
                Ok(connection) => connection,
                Err(_) => return self.free.push(index), // no TLS after all: dropping the stream closes it
            };
            if !matches!(connection.greeting, Greeting::Done) {
                self.connections[index] = Some(connection);
                return;
            }
        }
        let turn = match connection.stream.flush() {
            Ok(()) if connection.streams.is_some() => self.advance_streams(index, &mut connection),
            Ok(()) => self.advance(index, &mut connection),
            Err(_) => Turn::Close,
        };
        match turn {
            Turn::Blocked => self.connections[index] = Some(connection),
            Turn::Close => self.free.push(index), // dropping the stream closes it
        }
    }

    /// Tells TLS from plain text by the first octet, and goes on with a handshake.
    fn greet(&self, mut connection: Connection) -> io::Result<Connection> {
        if let (Greeting::Awaited, Some(config), true) =
            (&connection.greeting, &self.options.tls, connection.readable)
        {
            connection.stream = connection.stream.sniff_tls(config)?;
            connection.greeting = Greeting::Handshake;
        }
        if matches!(connection.greeting, Greeting::Handshake) && connection.stream.connected()? {
            connection.greeting = Greeting::Done;
        }
        Ok(connection)
    }

    fn advance(&mut self, index: usize, connection: &mut Connection) -> Turn {
        loop {
            if connection.streams.is_some() {
                return self.advance_streams(index, connection);
            }
            match connection.phase {
                // Who hangs would keep the connections of all who gave up.
                Phase::Wait if connection.peer_closed && connection.hangs => return Turn::Close,
                Phase::Wait => return Turn::Blocked,
                Phase::Write => match self.write(index, connection) {
                    Ok(true) => {}
                    Ok(false) => return Turn::Blocked,
                    Err(_) => return Turn::Close, // the client went away; nobody to tell
                },
                Phase::Head | Phase::Body(_) => {
                    if !connection.input.is_empty() {
                        let mut input = std::mem::take(&mut connection.input);
                        let used = self.take(connection, &input);
                        input.drain(..used);
                        let waits_for_more = used == 0;
                        connection.input = input;
                        if connection.streams.is_some() {
                            continue;
                        }
                        if !waits_for_more || !matches!(connection.phase, Phase::Head | Phase::Body(_)) {
                            self.begin_wait(index, connection);
                            continue;
                        }
                    }
                    if !connection.readable || connection.input.len() > INPUT_BYTES_MAX {
                        return Turn::Blocked;
                    }
                    let Some(mut asked) = self.may_read(index, connection) else { return Turn::Blocked };
                    let mut buffer = std::mem::take(&mut self.buffer);
                    asked = asked.min(buffer.len());
                    let read = connection.stream.read(&mut buffer[..asked]);
                    let turn = self.took(index, connection, &buffer[..asked], read);
                    self.buffer = buffer;
                    if let Some(turn) = turn {
                        return turn;
                    }
                }
            }
        }
    }

    /// The same for HTTP/2.
    fn advance_streams(&mut self, index: usize, connection: &mut Connection) -> Turn {
        loop {
            if self.write_streams(index, connection).is_err() {
                return Turn::Close; // the client went away, or was told to
            }
            let Some(streams) = &mut connection.streams else { return Turn::Close };
            let kept = std::mem::take(&mut connection.input); // what came before HTTP/2 was recognised
            if !kept.is_empty() {
                if streams.take(&kept, &mut self.answers).is_err() {
                    return Turn::Close;
                }
                continue;
            }
            if !connection.readable || streams.framer.pending().len() > OUTPUT_BYTES_MAX {
                return Turn::Blocked;
            }
            let Some(mut asked) = self.may_read(index, connection) else { return Turn::Blocked };
            let Some(streams) = &mut connection.streams else { return Turn::Close };
            asked = asked.min(self.buffer.len());
            match connection.stream.read(&mut self.buffer[..asked]) {
                Ok(0) => return Turn::Close,
                Ok(n) => {
                    connection.readable = n == asked || connection.peer_closed;
                    connection.allowance = connection.allowance.saturating_sub(n as u64);
                    if streams.take(&self.buffer[..n], &mut self.answers).is_err() {
                        let _ = connection.stream.write(streams.framer.pending()); // says why, if it can
                        return Turn::Close;
                    }
                }
                Err(error) if not_now(&error) => connection.readable = false,
                Err(_) => return Turn::Close,
            }
        }
    }

    fn write_streams(&mut self, index: usize, connection: &mut Connection) -> io::Result<()> {
        let Some(streams) = &mut connection.streams else { return Ok(()) };
        for (stream, delay) in streams.delayed.drain(..) {
            self.due.push(Reverse((now_ns() + delay, index, connection.number, stream)));
        }
        loop {
            if self.options.close_after.is_some_and(|after| streams.served >= after) {
                streams.leave();
            }
            let wrote = streams.pump(self.options.slow.map(slow_piece));
            for stream in streams.paced.drain(..) {
                self.due.push(Reverse((now_ns() + SLOW_INTERVAL, index, connection.number, stream)));
            }
            if streams.framer.pending().is_empty() {
                if wrote {
                    continue;
                }
                break;
            }
            while !streams.framer.pending().is_empty() {
                match connection.stream.write(streams.framer.pending()) {
                    Ok(n) => streams.framer.wrote(n),
                    Err(error) if not_now(&error) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }
        if self.options.idle_close.is_some() {
            connection.idle_since = now_ns();
        }
        if streams.leaving && streams.is_idle() {
            // What the client has sent meanwhile is still read: closing on it would reset the connection, and take answers
            // back that the client has not read yet.
            connection.stream.say_goodbye();
            connection.stream.end_writing()?;
        }
        Ok(())
    }

    /// How much may be read now; `None` for a slow reader that has had its piece, who is woken later.
    fn may_read(&mut self, index: usize, connection: &Connection) -> Option<usize> {
        if self.options.slow_read.is_some() && connection.allowance == 0 {
            self.due.push(Reverse((now_ns() + SLOW_INTERVAL, index, connection.number, READING)));
            return None;
        }
        Some(usize::try_from(connection.allowance).unwrap_or(usize::MAX))
    }

    /// Deals with the outcome of one read into `buffer`.
    fn took(
        &mut self,
        index: usize,
        connection: &mut Connection,
        buffer: &[u8],
        read: io::Result<usize>,
    ) -> Option<Turn> {
        match read {
            Ok(0) => Some(Turn::Close),
            Ok(n) => {
                // A short read has emptied the socket; only a close may be behind it.
                connection.readable = n == buffer.len() || connection.peer_closed;
                connection.allowance = connection.allowance.saturating_sub(n as u64);
                if connection.input.is_empty() {
                    let used = self.take(connection, &buffer[..n]);
                    connection.input.extend_from_slice(&buffer[used..n]);
                } else {
                    connection.input.extend_from_slice(&buffer[..n]);
                }
                self.begin_wait(index, connection);
                None
            }
            Err(error) if not_now(&error) => {
                connection.readable = false;
                Some(Turn::Blocked)
            }
            Err(_) => Some(Turn::Close),
        }
    }

    /// Uses bytes up to the end of at most one request; returns how many.
    fn take(&mut self, connection: &mut Connection, bytes: &[u8]) -> usize {
        let mut at = 0;
        if matches!(connection.phase, Phase::Head) {
            if connection.served == 0 && (bytes.starts_with(b"PRI ") || b"PRI ".starts_with(bytes)) {
                if bytes.len() >= 4 {
                    connection.streams = Some(Box::new(Streams::new(STREAMS_MAX)));
                }
                return 0; // kept, and read again as what it is
            }
            let parsed = match wire::parse_head(bytes) {
                Ok(None) => return 0,
                Ok(Some(head)) => self.request(connection, &head).map(|()| head),
                Err(malformed) => Err(malformed),
            };
            match parsed {
                Ok(head) => at = head.len,
                Err(_) => {
                    connection.request = self.answers.refusal();
                    connection.phase = Phase::Write;
                    return bytes.len();
                }
            }
        }
        let rest = &bytes[at..];
        match &mut connection.phase {
            Phase::Body(Body::Length(left)) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= here as u64;
                at += here;
                if *left == 0 {
                    connection.phase = Phase::Write;
                }
            }
            Phase::Body(Body::Chunked(chunked)) => match chunked.advance(rest) {
                Ok((used, _)) => {
                    at += used;
                    if chunked.done() {
                        connection.phase = Phase::Write;
                    }
                }
                Err(_) => {
                    connection.request = self.answers.refusal();
                    connection.phase = Phase::Write;
                    at = bytes.len();
                }
            },
            Phase::Head | Phase::Wait | Phase::Write => {}
        }
        at
    }

    /// Decides the answer to a head and what follows it.
    fn request(&mut self, connection: &mut Connection, head: &Head<'_>) -> Result<(), Malformed> {
        let mut words = head.first_line.split(|&b| b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Malformed("request line is not three words"));
        };
        if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
            return Err(Malformed("not HTTP/1"));
        }
        let last = self.options.close_after.is_some_and(|n| connection.served + 1 >= n);
        let close = last || head.close || version == b"HTTP/1.0";
        let conduct = self.options.conduct.as_deref();
        let behaviour = conduct.map_or(Behaviour::Well, Conduct::arrived);
        let failing;
        let target = match behaviour {
            Behaviour::Status(status) => {
                failing = format!("/status/{status}/size/64");
                failing.as_bytes()
            }
            _ => target,
        };
        let (reply, mut delay) = self.answers.find(target, method == b"HEAD", close);
        if let Some(line) = &mut self.line {
            delay = line.join(now_ns(), conduct);
        }
        match behaviour {
            Behaviour::Well | Behaviour::Status(_) => {}
            Behaviour::Hang => delay = conduct::NEVER,
            Behaviour::Slow(factor) => delay *= u64::from(factor),
        }
        connection.hangs = behaviour == Behaviour::Hang;
        connection.request = Request { reply, delay, echo: head.echo.unwrap_or(*ECHO_BLANK), close };
        connection.phase = match head.framing {
            Framing::None | Framing::Length(0) => Phase::Write,
            Framing::Length(n) => Phase::Body(Body::Length(n)),
            Framing::Chunked => Phase::Body(Body::Chunked(Chunked::default())),
        };
        if head.expect && matches!(connection.phase, Phase::Body(_)) {
            // Twenty-five bytes into an empty socket buffer; a client that is gone is noticed by the next read.
            let _ = connection.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        Ok(())
    }

    /// Turns "about to write" into "wait first" when the answer is delayed.
    fn begin_wait(&mut self, index: usize, connection: &mut Connection) {
        if matches!(connection.phase, Phase::Write) && connection.request.delay > 0 && connection.sent == 0 {
            let delay = std::mem::take(&mut connection.request.delay);
            self.wait(index, connection, delay);
        }
    }

    fn wait(&mut self, index: usize, connection: &mut Connection, delay: u64) {
        connection.phase = Phase::Wait;
        self.due.push(Reverse((now_ns() + delay, index, connection.number, ANSWER)));
    }

    /// Writes what is left of the answer; true when the connection may go on to its next request.
    fn write(&mut self, index: usize, connection: &mut Connection) -> io::Result<bool> {
        let mut reply = connection.request.reply.borrow_mut();
        let total = reply.total();
        while connection.sent < total {
            let mut rest = reply.rest(connection.sent, &connection.request.echo);
            if let Some(rate) = self.options.slow {
                rest = &rest[..usize::try_from(slow_piece(rate)).unwrap_or(usize::MAX).min(rest.len())];
            }
            match connection.stream.write(rest) {
                Ok(n) => connection.sent += n as u64,
                Err(error) if not_now(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            if let Some(rate) = self.options.slow
                && connection.sent < total
            {
                drop(reply);
                self.wait(index, connection, SLOW_INTERVAL.max(SECOND / rate.max(1)));
                return Ok(true);
            }
        }
        connection.stream.flush()?;
        if connection.request.close {
            connection.stream.say_goodbye();
            return Err(io::ErrorKind::ConnectionAborted.into()); // told so in the head; the caller drops the stream
        }
        connection.sent = 0;
        connection.served += 1;
        connection.phase = Phase::Head;
        if self.options.idle_close.is_some() {
            connection.idle_since = now_ns();
        }
        Ok(true)
    }

    fn timer_fired(&mut self) {
        let now = now_ns();
        while let Some(&Reverse((at, index, number, what))) = self.due.peek() {
            if at > now {
                break;
            }
            self.due.pop();
            let Some(connection) = self.connections[index].as_mut().filter(|c| c.number == number) else {
                continue;
            };
            match (what, &mut connection.streams) {
                (READING, _) => connection.allowance = self.options.slow_read.map_or(u64::MAX, slow_piece),
                (ANSWER, _) if matches!(connection.phase, Phase::Wait) => connection.phase = Phase::Write,
                (stream, Some(streams)) => streams.go_on(stream, &mut self.answers),
                _ => continue,
            }
            self.turn(index);
        }
        let Some(idle) = self.options.idle_close.map(nanos) else { return };
        if now < self.idle_scan_at {
            return;
        }
        self.idle_scan_at = now + (idle / 8).clamp(MILLISECOND, 100 * MILLISECOND);
        for (index, slot) in self.connections.iter_mut().enumerate() {
            let is_idle = |c: &Connection| {
                matches!(c.phase, Phase::Head)
                    && c.streams.as_ref().is_none_or(|s| s.is_idle())
                    && c.input.is_empty()
                    && !c.readable
                    && now > c.idle_since + idle
            };
            if slot.as_ref().is_some_and(is_idle) {
                *slot = None;
                self.free.push(index);
            }
        }
    }

    fn arm_timer(&mut self) -> io::Result<()> {
        let due = self.due.peek().map(|Reverse((at, ..))| *at);
        let scan = self.options.idle_close.is_some().then_some(self.idle_scan_at);
        match [due, scan].into_iter().flatten().min() {
            Some(at) => self.timer.arm(at, now_ns()),
            None => Ok(()),
        }
    }
}
