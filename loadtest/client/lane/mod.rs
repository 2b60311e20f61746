//! One client thread: its event loop, its connections, its part of the schedule.
//!
//! Called by `client::run`. Steady state allocates nothing and makes one receive, one send and its share of an
//! epoll_wait per request. What is different about connections that exchanges share (HTTP/2) is in `shared`.

mod shared;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;

use mio::{Events, Poll, Token};

use super::exchanges::{Answer, Exchanges, Request};
use super::tally::{Failed, Tally};
use super::{Hook, Mark, Plan};
use crate::clock::{MILLISECOND, SECOND, Timer, nanos, now_ns};
use crate::socket::{Stream, not_now};
use crate::wire::{self, Chunked, ECHO_BLANK, Echo, Framing, Message};

const TIMER: Token = Token(usize::MAX);
const READ_BYTES: usize = 256 * 1024;
/// How often timeouts are looked for and refused connections tried again.
const TICK: u64 = 50 * MILLISECOND;
/// The wait after a refused connect, doubled each time.
const BACKOFF_MIN: u64 = 10 * MILLISECOND;
const BACKOFF_MAX: u64 = SECOND;
/// A slow reader takes a piece each such interval.
const SLOW_INTERVAL: u64 = 10 * MILLISECOND;
/// With `spin`, the loop does not sleep this close to a due request.
const SPIN: u64 = 100_000;

/// What one thread gets of a run.
pub(crate) struct Share {
    pub(crate) index: u64,
    pub(crate) threads: u64,
    pub(crate) connections: usize,
    pub(crate) requests: u64,
    pub(crate) message: Message,
    pub(crate) request: Request,
}

pub(crate) struct Lane<'a> {
    plan: &'a Plan,
    share: Share,
    poll: Poll,
    timer: Timer,
    connections: Vec<Connection>,
    /// Connections with nothing to do, longest idle first, so that an open loop keeps all of them in use. One of HTTP/2
    /// stands here once for each exchange that it could take.
    idle: VecDeque<usize>,
    /// Connections of HTTP/2 with something to write: frames of one turn leave together.
    unflushed: Vec<usize>,
    /// Intended send times of requests that wait for a connection.
    queue: VecDeque<u64>,
    queue_max: usize,
    /// Requests begun, whether sent, queued or refused; the open loop's schedule counts by it.
    begun: u64,
    busy: usize,
    sequence: u64,
    tally: Tally,
    /// Completed over the whole run, for the progress line.
    completed: u64,
    buffer: Vec<u8>,
    timeout: u64,
}

struct Connection {
    stream: Option<Stream>,
    link: Link,
    /// The kernel may hold bytes that were not read yet.
    readable: bool,
    peer_closed: bool,
    /// Bytes of the request that left already; the whole message when there is nothing more to write.
    sent: u64,
    echo: Echo,
    intended: u64,
    /// When the request, or the connect, began.
    since: u64,
    /// A response head that came in pieces.
    partial: Vec<u8>,
    reading: Reading,
    status: u16,
    echoed: bool,
    close: bool,
    body: u64,
    backoff: u64,
    /// Of HTTP/2, while connected.
    exchanges: Option<Box<Exchanges>>,
    unflushed: bool,
    /// When the request was due for which this is being connected, with --new-connection.
    waiting: Option<u64>,
    /// Bytes that a slow reader may take before the next interval.
    allowance: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    /// Not connected, and not to be tried before this moment.
    Down(u64),
    Connecting,
    Idle,
    Busy,
    /// Speaks HTTP/2: each exchange is idle or busy by itself.
    Shared,
}

enum Reading {
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(plan: &'a Plan, share: Share) -> Result<Self, String> {
        let poll = Poll::new().map_err(|e| format!("epoll: {e}"))?;
        let timer = Timer::register(poll.registry(), TIMER).map_err(|e| format!("timerfd: {e}"))?;
        let queue_max = plan.options.queue_max.div_ceil(usize::try_from(share.threads).unwrap_or(1));
        Ok(Self {
            poll,
            timer,
            connections: (0..share.connections).map(|_| Connection::new()).collect(),
            idle: VecDeque::with_capacity(share.connections * plan.options.streams()),
            unflushed: Vec::new(),
            queue: VecDeque::new(),
            queue_max,
            begun: 0,
            busy: 0,
            sequence: share.index << 48,
            tally: Tally::new()?,
            completed: 0,
            buffer: vec![0; READ_BYTES],
            timeout: nanos(plan.options.timeout),
            share,
            plan,
        })
    }

    pub(crate) fn run(mut self, mut hook: Option<Hook<'_>>) -> io::Result<Tally> {
        let mut events = Events::with_capacity(256);
        let window = self.plan.window;
        let (mut tick_at, mut marks) =
            (0, [(window.from, Mark::From), (window.to, Mark::To)].into_iter().peekable());
        loop {
            let now = now_ns();
            while let Some((_, mark)) = marks.next_if(|(at, _)| *at <= now) {
                if let Some(hook) = &mut hook {
                    hook(mark);
                }
            }
            if now >= tick_at {
                tick_at = now + if self.plan.options.slow.is_some() { SLOW_INTERVAL } else { TICK };
                self.tick(now);
                if self.finished(now) {
                    break;
                }
            }
            self.begin_due(now);
            self.flush_all();
            let mut wake_at = tick_at.min(marks.peek().map_or(u64::MAX, |(at, _)| *at));
            if now < window.start {
                wake_at = wake_at.min(window.start);
            } else if let Some(due) = self.next_due() {
                wake_at = wake_at.min(due);
            }
            let spins = self.plan.options.spin && wake_at < now + SPIN;
            if !spins {
                self.timer.arm(wake_at, now)?;
            }
            match self.poll.poll(&mut events, spins.then_some(std::time::Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                let Token(index) = event.token();
                let Some(connection) = self.connections.get_mut(index) else { continue }; // the timer
                connection.readable |= event.is_readable();
                connection.peer_closed |= event.is_read_closed() || event.is_error();
                self.turn(index);
            }
            if self.busy == 0 && self.queue.is_empty() && self.finished(now) {
                break;
            }
        }
        if let Some(hook) = &mut hook {
            marks.for_each(|(_, mark)| hook(mark)); // a run cut short still ends its window
        }
        self.publish();
        Ok(self.tally)
    }

    // --- the schedule ---

    /// The intended time of the next request of the open loop.
    fn next_due(&self) -> Option<u64> {
        let rate = self.plan.options.rate?;
        let slot = self.begun * self.share.threads + self.share.index;
        let due = self.plan.window.start + (slot as f64 * (SECOND as f64 / rate)) as u64;
        (due < self.plan.window.to && self.begun < self.share.requests && !self.stopped()).then_some(due)
    }

    fn begin_due(&mut self, now: u64) {
        if self.plan.options.rate.is_none() {
            // Connections that were made before the start; later on a closed loop leaves none idle.
            while self.closed_loop_goes_on(now)
                && let Some(index) = self.idle.pop_front()
            {
                self.next_request(index, now);
            }
            return;
        }
        while let Some(due) = self.next_due()
            && due <= now
        {
            self.begun += 1;
            match self.idle.pop_front() {
                Some(index) => self.send(index, due),
                None if self.queue.len() < self.queue_max => self.queue.push_back(due),
                None => self.tally.fail(Failed::QueueFull),
            }
        }
    }

    /// Gives a connection that is free its next request, if there is one.
    fn next_request(&mut self, index: usize, now: u64) {
        if let Some(intended) = self.queue.pop_front() {
            return self.send(index, intended);
        }
        if self.plan.options.rate.is_none() && self.closed_loop_goes_on(now) {
            self.begun += 1;
            return self.send(index, now);
        }
        let connection = &mut self.connections[index];
        if connection.link != Link::Shared {
            connection.link = Link::Idle;
        }
        self.idle.push_back(index);
    }

    fn closed_loop_goes_on(&self, now: u64) -> bool {
        let window = self.plan.window;
        now >= window.start && now < window.to && self.begun < self.share.requests && !self.stopped()
    }

    fn stopped(&self) -> bool {
        self.plan.stop.load(Ordering::Relaxed)
    }

    fn finished(&self, now: u64) -> bool {
        let nothing_more = now >= self.plan.window.to || self.begun >= self.share.requests || self.stopped();
        nothing_more && (self.busy == 0 && self.queue.is_empty() || self.stopped())
    }

    /// Looks after what no event announces.
    fn tick(&mut self, now: u64) {
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let late = now > connection.since.saturating_add(self.timeout);
            match connection.link {
                // With --new-connection one is made when a request is due.
                Link::Down(until) if now >= until && self.plan.options.new_connection => {
                    self.next_request(index, now);
                }
                Link::Down(until) if now >= until => self.connect(index, now),
                Link::Busy if late => self.fail(index, Failed::Timeout, now),
                Link::Connecting if late => self.connect_failed(index, now),
                Link::Shared => self.give_up_late(index, now),
                _ => {}
            }
            if let Some(rate) = self.plan.options.slow {
                self.connections[index].allowance = (rate * SLOW_INTERVAL / SECOND).max(1);
                self.receive(index);
            }
        }
        while self.queue.front().is_some_and(|intended| now > intended.saturating_add(self.timeout)) {
            self.queue.pop_front();
            self.tally.fail(Failed::Timeout);
        }
        self.publish();
    }

    fn publish(&mut self) {
        let (completed, failed) = (std::mem::take(&mut self.completed), self.tally.failed());
        self.plan.completed.fetch_add(completed, Ordering::Relaxed);
        // Each thread would have to subtract its last value; the largest is enough to see that something fails.
        self.plan.failed.fetch_max(failed, Ordering::Relaxed);
    }

    // --- connections ---

    fn connect(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        connection.reset_for_connect(now);
        let options = &self.plan.options;
        let opened = match &options.tls {
            Some((config, name)) => Stream::connect_tls(&options.url.place, config, name),
            None => Stream::connect(&options.url.place),
        };
        let opened = opened.and_then(|mut stream| {
            stream.register(self.poll.registry(), Token(index))?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => connection.stream = Some(stream),
            Err(_) => self.connect_failed(index, now),
        }
    }

    /// Each refused connect counts as a failure: a closed loop would otherwise show a dead proxy as no requests at all.
    fn connect_failed(&mut self, index: usize, now: u64) {
        self.tally.fail(Failed::Connect);
        let connection = &mut self.connections[index];
        if connection.waiting.take().is_some() {
            self.busy -= 1; // that was a request, begun already
        } else if self.plan.options.rate.is_none() && self.begun < self.share.requests {
            self.begun += 1;
        }
        connection.stream = None;
        connection.backoff = (connection.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        connection.link = Link::Down(now + connection.backoff);
    }

    fn reconnect(&mut self, index: usize, now: u64) {
        if self.plan.options.new_connection {
            return self.close(index, now);
        }
        self.tally.reconnects += 1;
        self.connect(index, now);
    }

    /// With --new-connection: ends one, and takes the next request for another.
    fn close(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        if let Some(mut stream) = connection.stream.take() {
            stream.say_goodbye();
        }
        connection.exchanges = None;
        connection.link = Link::Idle;
        self.next_request(index, now);
    }

    fn connected(&mut self, index: usize, now: u64) {
        let (options, connection) = (&self.plan.options, &mut self.connections[index]);
        connection.backoff = 0;
        if options.http2 {
            let chosen = connection.stream.as_ref().and_then(Stream::protocol);
            if options.tls.is_some() && chosen != Some(b"h2") {
                return self.connect_failed(index, now);
            }
            connection.exchanges = Some(Box::new(Exchanges::new()));
            connection.link = Link::Shared;
            self.mark_unflushed(index);
        }
        if let Some(intended) = self.connections[index].waiting.take() {
            self.busy -= 1;
            return self.send(index, intended);
        }
        for _ in 0..self.plan.options.streams() {
            self.next_request(index, now);
        }
    }

    /// Ends the request on a connection as failed, and the connection with it.
    fn fail(&mut self, index: usize, kind: Failed, now: u64) {
        self.tally.fail(kind);
        self.busy -= 1;
        self.reconnect(index, now);
    }

    /// Takes one connection as far as it goes after an event.
    fn turn(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return };
        match connection.link {
            Link::Down(_) => return,
            Link::Connecting => match stream.connected() {
                Ok(true) => self.connected(index, now_ns()),
                Ok(false) => return,
                Err(_) => return self.connect_failed(index, now_ns()),
            },
            Link::Busy => self.flush(index),
            Link::Shared => self.flush_shared(index),
            Link::Idle => {}
        }
        self.receive(index);
    }

    fn send(&mut self, index: usize, intended: u64) {
        let connection = &mut self.connections[index];
        if connection.stream.is_none() {
            connection.waiting = Some(intended);
            self.busy += 1;
            return self.connect(index, intended);
        }
        self.sequence += 1;
        let echo = if self.plan.options.check { wire::echo_of(self.sequence) } else { *ECHO_BLANK };
        if let Some(exchanges) = &mut connection.exchanges {
            exchanges.begin(&self.share.request, intended, echo);
            self.busy += 1;
            return self.mark_unflushed(index);
        }
        connection.link = Link::Busy;
        connection.echo = echo;
        connection.intended = intended;
        // In the open loop this may lie in the past by what the request waited: the timeout counts from there too.
        connection.since = intended;
        connection.sent = 0;
        connection.reading = Reading::Head;
        self.busy += 1;
        self.tally.bytes_out += self.share.message.total();
        self.flush(index);
    }

    fn flush(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return };
        while connection.sent < self.share.message.total() {
            match stream.write(self.share.message.rest(connection.sent, &connection.echo)) {
                Ok(n) => connection.sent += n as u64,
                Err(error) if not_now(&error) => return,
                // A response may have come before the peer closed its end; reading tells.
                Err(_) => {
                    connection.sent = self.share.message.total();
                    connection.readable = true;
                    connection.peer_closed = true;
                }
            }
        }
        let _ = stream.flush(); // as above
    }

    // --- responses ---

    fn receive(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while self.connections[index].readable && self.receive_once(index, &mut buffer) {}
        self.buffer = buffer;
    }

    /// One read; false when the connection is done with for now.
    fn receive_once(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return false };
        if connection.link == Link::Connecting {
            return false; // the handshake reads for itself
        }
        let mut asked = buffer.len();
        if self.plan.options.slow.is_some() {
            asked = asked.min(usize::try_from(connection.allowance).unwrap_or(asked));
            if asked == 0 {
                return false; // until the next interval
            }
        }
        let read = match connection.reading {
            Reading::Length(left) if connection.link == Link::Busy => {
                asked = usize::try_from(left).unwrap_or(usize::MAX).min(asked);
                stream.discard(&mut buffer[..asked])
            }
            _ => stream.read(&mut buffer[..asked]),
        };
        match read {
            Ok(0) => {
                let now = now_ns();
                self.peer_closed(index, now);
                false
            }
            Ok(n) => {
                // A short read has emptied the socket; only a close may be behind it.
                connection.readable = n == asked || connection.peer_closed;
                connection.allowance = connection.allowance.saturating_sub(n as u64);
                self.tally.bytes_in += n as u64;
                if connection.link == Link::Shared {
                    return match self.take_shared(index, &buffer[..n]) {
                        Ok(()) => true,
                        Err(kind) => {
                            self.broken(index, kind);
                            false
                        }
                    };
                }
                if let Reading::Length(left) = &mut connection.reading
                    && connection.link == Link::Busy
                {
                    *left -= n as u64;
                    connection.body += n as u64;
                    if *left == 0 {
                        // What came before this event was at most the body; what comes later is a new event.
                        connection.readable = connection.peer_closed;
                        self.complete(index);
                    }
                    return true;
                }
                match self.take(index, &buffer[..n]) {
                    Ok(()) => true,
                    Err(kind) => {
                        self.broken(index, kind);
                        false
                    }
                }
            }
            Err(error) if not_now(&error) => {
                connection.readable = false;
                false
            }
            Err(_) => {
                self.broken(index, Failed::Closed);
                false
            }
        }
    }

    fn peer_closed(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        match (connection.link, &connection.reading) {
            (Link::Shared, _) => self.lose_shared(index, Failed::Closed, now),
            (Link::Busy, Reading::UntilClose) => self.complete(index),
            (Link::Busy, _) => self.fail(index, Failed::Closed, now),
            // An idle keep-alive connection may be closed at any time.
            _ => {
                self.idle.retain(|i| *i != index);
                self.reconnect(index, now);
            }
        }
    }

    fn broken(&mut self, index: usize, kind: Failed) {
        let now = now_ns();
        if self.connections[index].link == Link::Busy {
            return self.fail(index, kind, now);
        }
        if self.connections[index].link == Link::Shared {
            return self.lose_shared(index, kind, now);
        }
        self.idle.retain(|i| *i != index);
        if kind != Failed::Closed {
            self.tally.fail(kind);
        }
        self.reconnect(index, now);
    }

    /// Walks bytes of a response, wherever in it they are.
    fn take(&mut self, index: usize, bytes: &[u8]) -> Result<(), Failed> {
        let connection = &mut self.connections[index];
        if connection.link != Link::Busy {
            return Err(Failed::Unasked);
        }
        if connection.partial.is_empty() {
            let used = self.take_from(index, bytes)?;
            if used < bytes.len() {
                self.connections[index].partial.extend_from_slice(&bytes[used..]);
            }
            return Ok(());
        }
        let mut whole = std::mem::take(&mut connection.partial);
        whole.extend_from_slice(bytes);
        let used = self.take_from(index, &whole)?;
        whole.drain(..used);
        self.connections[index].partial = whole;
        Ok(())
    }

    /// Returns how many bytes were used; the rest is the beginning of a head.
    fn take_from(&mut self, index: usize, bytes: &[u8]) -> Result<usize, Failed> {
        let mut at = 0;
        while at < bytes.len() {
            let connection = &mut self.connections[index];
            let rest = &bytes[at..];
            match &mut connection.reading {
                Reading::Head => match self.take_head(index, rest)? {
                    0 => return Ok(at),
                    n => at += n,
                },
                Reading::Length(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    at += here;
                    *left -= here as u64;
                    connection.body += here as u64;
                }
                Reading::Chunked(chunked) => {
                    let (used, body) = chunked.advance(rest).map_err(|_| Failed::Malformed)?;
                    at += used;
                    connection.body += body;
                }
                Reading::UntilClose => {
                    connection.body += rest.len() as u64;
                    at = bytes.len();
                }
            }
            let connection = &self.connections[index];
            let whole = match &connection.reading {
                Reading::Length(0) => true,
                Reading::Chunked(chunked) => chunked.done(),
                _ => false,
            };
            if whole {
                if at < bytes.len() {
                    return Err(Failed::Unasked);
                }
                self.complete(index);
            }
        }
        Ok(at)
    }

    fn take_head(&mut self, index: usize, bytes: &[u8]) -> Result<usize, Failed> {
        let Some(head) = wire::parse_head(bytes).map_err(|_| Failed::Malformed)? else { return Ok(0) };
        let status = wire::parse_status(head.first_line).map_err(|_| Failed::Malformed)?;
        if (100..200).contains(&status) {
            return Ok(head.len); // interim: the final one follows
        }
        let connection = &mut self.connections[index];
        connection.status = status;
        connection.close = head.close || head.first_line.starts_with(b"HTTP/1.0");
        connection.echoed = head.echo == Some(connection.echo);
        connection.body = 0;
        connection.reading = match head.framing {
            _ if matches!(status, 204 | 304) || self.plan.options.method == "HEAD" => Reading::Length(0),
            Framing::Length(n) => Reading::Length(n),
            Framing::Chunked => Reading::Chunked(Chunked::default()),
            Framing::None => {
                connection.close = true;
                Reading::UntilClose
            }
        };
        Ok(head.len)
    }

    /// A whole response is there: judges it and goes on.
    fn complete(&mut self, index: usize) {
        let now = now_ns();
        let connection = &self.connections[index];
        let answer = Answer { status: connection.status, echoed: connection.echoed, body: connection.body };
        let failure = self.judge(connection.intended, answer, now);
        self.busy -= 1;
        let connection = &self.connections[index];
        // An answer to an unfinished request, or to another one, leaves the connection in no known state.
        let unsure = connection.sent < self.share.message.total() || failure == Some(Failed::Echo);
        if connection.close || unsure || self.plan.options.new_connection {
            self.reconnect(index, now);
        } else {
            self.next_request(index, now);
        }
    }

    /// Counts an answer as what it is.
    fn judge(&mut self, intended: u64, answer: Answer, now: u64) -> Option<Failed> {
        let options = &self.plan.options;
        let as_expected = match options.status {
            Some(status) => answer.status == status,
            None => (200..400).contains(&answer.status),
        };
        self.tally.statuses[usize::from(answer.status / 100).min(5)] += 1;
        self.completed += 1;
        let failure = if !as_expected {
            Some(Failed::Status)
        } else if options.check && !answer.echoed {
            Some(Failed::Echo)
        } else if self.plan.expected_bytes.is_some_and(|n| n != answer.body) {
            Some(Failed::Length)
        } else {
            None
        };
        let counted_at = if options.rate.is_some() { intended } else { now };
        match failure {
            Some(kind) => self.tally.fail(kind),
            None if (self.plan.window.from..self.plan.window.to).contains(&counted_at) => {
                self.tally.record(intended, now);
            }
            None => {}
        }
        failure
    }
}

impl Connection {
    fn new() -> Self {
        Self {
            stream: None,
            link: Link::Down(0),
            readable: false,
            peer_closed: false,
            sent: 0,
            echo: *ECHO_BLANK,
            intended: 0,
            since: 0,
            partial: Vec::new(),
            reading: Reading::Head,
            status: 0,
            echoed: false,
            close: false,
            body: 0,
            backoff: 0,
            exchanges: None,
            unflushed: false,
            waiting: None,
            allowance: u64::MAX,
        }
    }

    fn reset_for_connect(&mut self, now: u64) {
        self.stream = None; // closes it
        self.exchanges = None;
        self.link = Link::Connecting;
        self.readable = false;
        self.peer_closed = false;
        self.partial.clear();
        self.reading = Reading::Head;
        self.since = now;
    }
}
