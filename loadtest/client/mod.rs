//! `loadtest client`: sends requests at a constant rate (open loop) or as fast as answers come (closed loop), verifies
//! every response and measures latency.
//!
//! Called by `main` and `compare`. In the open loop latency counts from the moment at which a request should have been
//! sent, so a stall of the proxy is charged to every request that it delayed (no coordinated omission). It speaks
//! HTTP/1.1 and HTTP/2, with and without TLS, and refuses redirects.

mod exchanges;
mod lane;
pub(crate) mod tally;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::clock::{MILLISECOND, SECOND, nanos, now_ns};
use crate::socket::pin;
use crate::target::{Answer, Url};
use crate::wire::{ECHO_BLANK, Message};
use exchanges::Request;
use lane::Lane;
use tally::Tally;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) url: Url,
    /// Requests a second over all threads; `None` is the closed loop.
    pub(crate) rate: Option<f64>,
    /// Over all threads.
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) cpus: Vec<usize>,
    /// `None`: until `requests` are sent.
    pub(crate) duration: Option<Duration>,
    pub(crate) warmup: Duration,
    /// Requests to send over all threads, warm-up included; `None`: until `duration` is over.
    pub(crate) requests: Option<u64>,
    pub(crate) method: String,
    /// `name: value`
    pub(crate) headers: Vec<String>,
    /// Bytes of request body.
    pub(crate) body: u64,
    pub(crate) timeout: Duration,
    /// What a successful response says; `None`: 200 to 399.
    pub(crate) status: Option<u16>,
    /// Send an echo mark, and demand it back along with the body length that the URL asks for.
    pub(crate) check: bool,
    /// Requests of the open loop that wait for a connection, at most, over all threads; further ones fail.
    pub(crate) queue_max: usize,
    /// Poll without sleeping in the last 100 µs before a request is due. Takes the CPU from whoever shares it.
    pub(crate) spin: bool,
    /// Whom to believe, and the name that the certificate must have; `None`: no TLS.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// HTTP/2: chosen by ALPN with TLS, by prior knowledge without.
    pub(crate) http2: bool,
    /// Exchanges at a time on each HTTP/2 connection.
    pub(crate) streams_max: usize,
    /// A connection for each request.
    pub(crate) new_connection: bool,
    /// Bytes a second that are read from each connection.
    pub(crate) slow: Option<u64>,
}

impl Options {
    /// Exchanges at a time on each connection.
    pub(crate) fn streams(&self) -> usize {
        if self.http2 && !self.new_connection { self.streams_max.max(1) } else { 1 }
    }

    pub(crate) fn new(url: Url) -> Self {
        Self {
            url,
            rate: None,
            connections: 64,
            threads: 1,
            cpus: Vec::new(),
            duration: Some(Duration::from_secs(10)),
            warmup: Duration::ZERO,
            requests: None,
            method: "GET".to_owned(),
            headers: Vec::new(),
            body: 0,
            timeout: Duration::from_secs(10),
            status: None,
            check: true,
            queue_max: 100_000,
            spin: false,
            tls: None,
            http2: false,
            streams_max: 1,
            new_connection: false,
            slow: None,
        }
    }

    /// The same as fields of HTTP/2. Only to be called when [`Options::message`] has found nothing wrong.
    fn request(&self) -> Request {
        let mut fields = vec![
            (":method".to_owned(), self.method.clone()),
            (":scheme".to_owned(), if self.url.tls { "https" } else { "http" }.to_owned()),
            (":authority".to_owned(), self.url.authority.clone()),
            (":path".to_owned(), self.url.target.clone()),
        ];
        if self.body > 0 || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH") {
            fields.push(("content-length".to_owned(), self.body.to_string()));
        }
        for header in &self.headers {
            let (name, value) = header.split_once(':').unwrap_or((header, ""));
            match name.trim().to_ascii_lowercase() {
                name if name == "host" => fields[2].1 = value.trim().to_owned(),
                name => fields.push((name, value.trim().to_owned())),
            }
        }
        Request { fields, body: self.body, check: self.check }
    }

    /// The request that is sent over and over.
    fn message(&self) -> Result<Message, String> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.url.target);
        let given = |name: &str| {
            self.headers
                .iter()
                .any(|h| h.split(':').next().is_some_and(|n| n.trim().eq_ignore_ascii_case(name)))
        };
        // Writing to a String cannot fail.
        if !given("host") {
            let _ = write!(head, "host: {}\r\n", self.url.authority);
        }
        if self.body > 0 || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH") {
            let _ = write!(head, "content-length: {}\r\n", self.body);
        }
        if self.check {
            let _ = write!(head, "x-echo: {}\r\n", String::from_utf8_lossy(ECHO_BLANK));
        }
        for header in &self.headers {
            if !header.contains(':') || header.bytes().any(|b| b < b' ' && b != b'\t') {
                return Err(format!("`{header}`: write --header 'name: value'"));
            }
            let _ = write!(head, "{header}\r\n");
        }
        if self.method.is_empty() || !self.method.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("`{}` is no method", self.method));
        }
        head.push_str("\r\n");
        Ok(Message::new(head.as_bytes(), self.body))
    }

    /// Bytes of body that a successful response must have, if that is known.
    fn expected_bytes(&self) -> Result<Option<u64>, String> {
        if !self.check || self.method == "HEAD" {
            return Ok(None);
        }
        let answer = Answer::parse(&self.url.target)?;
        Ok(Some(if matches!(answer.status, 204 | 304) { 0 } else { answer.size }))
    }
}

/// When measuring begins and ends, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Told to the hook of [`run`] by the first thread as it passes the ends of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    From,
    To,
}

pub(crate) type Hook<'a> = &'a mut (dyn FnMut(Mark) + Send);

/// What all threads of one run share.
pub(crate) struct Plan {
    pub(crate) options: Options,
    pub(crate) window: Window,
    pub(crate) expected_bytes: Option<u64>,
    pub(crate) stop: Arc<AtomicBool>,
    /// For the progress line.
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
    running: AtomicU64,
}

/// Runs to the end, or until `stop` is set, and returns what all threads saw.
pub(crate) fn run(
    options: &Options,
    stop: &Arc<AtomicBool>,
    progress: bool,
    hook: Hook<'_>,
) -> Result<Tally, String> {
    options.message()?;
    let threads = options.threads.clamp(1, options.connections.max(1));
    let start = now_ns() + 5 * MILLISECOND; // all threads are there by then
    let from = start + nanos(options.warmup);
    let to = options.duration.map_or(u64::MAX, |d| from.saturating_add(nanos(d)));
    let plan = Plan {
        options: options.clone(),
        window: Window { start, from, to },
        expected_bytes: options.expected_bytes()?,
        stop: Arc::clone(stop),
        completed: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        running: AtomicU64::new(threads as u64),
    };
    let mut hook = Some(hook);
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for i in 0..threads {
            let (plan, hook) = (&plan, if i == 0 { hook.take() } else { None });
            let thread =
                std::thread::Builder::new().name(format!("client-{i}")).spawn_scoped(scope, move || {
                    let result = run_lane(plan, i, threads, hook);
                    plan.running.fetch_sub(1, Ordering::Relaxed);
                    result
                });
            running.push(thread.map_err(|e| format!("cannot start a thread: {e}"))?);
        }
        if progress {
            show_progress(&plan);
        }
        let mut sum = Tally::new()?;
        for thread in running {
            sum.add(&thread.join().map_err(|_| "a client thread panicked".to_owned())??)?;
        }
        Ok(sum)
    })
}

fn run_lane(plan: &Plan, index: usize, threads: usize, hook: Option<Hook<'_>>) -> Result<Tally, String> {
    let options = &plan.options;
    if !options.cpus.is_empty() {
        pin(options.cpus[index % options.cpus.len()])?;
    }
    let share = |total: u64| total / threads as u64 + u64::from((index as u64) < total % threads as u64);
    let lane = Lane::new(
        plan,
        lane::Share {
            index: index as u64,
            threads: threads as u64,
            connections: usize::try_from(share(options.connections as u64)).unwrap_or(0).max(1),
            requests: options.requests.map_or(u64::MAX, share),
            message: options.message()?,
            request: options.request(),
        },
    )?;
    lane.run(hook).map_err(|e| format!("client: {e}"))
}

fn show_progress(plan: &Plan) {
    let (mut before, mut next) = (0, plan.window.start + SECOND);
    while plan.running.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(50));
        if now_ns() < next {
            continue;
        }
        next += SECOND;
        let (completed, failed) =
            (plan.completed.load(Ordering::Relaxed), plan.failed.load(Ordering::Relaxed));
        let phase = if now_ns() < plan.window.from { "warm-up" } else { "measure" };
        eprint!("\r{phase}: {:>9} requests/s, {completed} done, {failed} failed   ", completed - before);
        before = completed;
    }
    eprintln!();
}
