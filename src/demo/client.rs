//! The demo's client: an open loop. Requests begin at a constant rate, whatever the answers take, and a latency counts
//! from the moment at which its request was due: a server that stalls is not spared the requests that wait meanwhile.
//!
//! Runs on a thread of its own, and is told on time by a second one. At most [`IN_FLIGHT_MAX`] requests are on the way, further ones wait; beyond [`WAITING_MAX`] they count as failed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::call::{Answer, Caller};
use super::trust::Callers;

/// Requests on the way at once. Ten ends of connections of the demo's own process for each stay below 1 024, the usual
/// limit of open files.
pub(super) const IN_FLIGHT_MAX: usize = 96;
/// Requests that wait for one on the way to end.
const WAITING_MAX: usize = 10_000;
/// For one request. Everything here is on one machine and works for milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reasons told apart.
const REASONS_MAX: usize = 8;

/// A client at work. Dropped, it stops and forgets.
pub(super) struct Client {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
    tally: Arc<Mutex<Tally>>,
}

/// What became of the requests.
pub(super) struct Tally {
    /// Begun.
    pub sent: u64,
    /// Answered with 200.
    pub answered: u64,
    /// Not so.
    pub failed: u64,
    /// Why, and how often: at most [`REASONS_MAX`] and one for the rest.
    pub reasons: BTreeMap<String, u64>,
    /// µs, of those answered.
    pub latency: Histogram<u64>,
    /// Who called whom, as the answers say.
    pub callers: Callers,
}

/// All requests, and those of the time since the last look.
#[derive(Default)]
pub(super) struct Look {
    /// Answered since the last look.
    pub answered: u64,
    /// Median latency, s.
    pub p50: Option<f64>,
    /// 99th percentile, s.
    pub p99: Option<f64>,
    /// Failed since the start.
    pub failed: u64,
    /// Who called whom, since the start.
    pub callers: Callers,
}

impl Client {
    /// Begins to call, with this marker in each request.
    ///
    /// # Errors
    /// When the thread, its runtime or its timer cannot be made.
    pub(super) fn start(to: SocketAddr, rate: u32, marker: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (pace, due) = mpsc::channel(WAITING_MAX);
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let tally = Arc::new(Mutex::new(Tally::new()));
        let (shared, marker) = (Arc::clone(&tally), Arc::from(marker));
        std::thread::Builder::new().name("client".into()).spawn(move || {
            runtime.block_on(call(Caller::new(to, "front"), marker, due, stopped, shared));
            let _ = ending.send(());
        })?;
        std::thread::Builder::new().name("pace".into()).spawn(move || keep_pace(rate, &pace))?;
        Ok(Self { stop: Some(stop), ended, tally })
    }

    /// What happened since the last look; `recent` is the caller's, so that it need not be made anew.
    pub(super) fn look(&self, recent: &mut Histogram<u64>) -> Look {
        let tally = lock(&self.tally);
        let mut since = tally.latency.clone();
        let (failed, callers) = (tally.failed, tally.callers.clone());
        drop(tally);
        let now = since.clone();
        // Always a part of it: only counts are added.
        let _ = since.subtract(&*recent);
        *recent = now;
        let quantile = |q| (!since.is_empty()).then(|| since.value_at_quantile(q) as f64 / 1e6);
        Look { answered: since.len(), p50: quantile(0.5), p99: quantile(0.99), failed, callers }
    }

    /// Begins no more requests, waits for those on the way, and tells of all.
    pub(super) async fn stop(mut self) -> Tally {
        drop(self.stop.take());
        let _ = (&mut self.ended).await;
        std::mem::replace(&mut *lock(&self.tally), Tally::new())
    }
}

async fn call(
    caller: Caller,
    marker: Arc<str>,
    pace: mpsc::Receiver<Instant>,
    stopped: oneshot::Receiver<()>,
    tally: Arc<Mutex<Tally>>,
) {
    let caller = Arc::new(caller);
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    each(pace, stopped, |due| {
        let waits = {
            let mut tally = lock(&tally);
            tally.sent += 1;
            tally.sent - tally.answered - tally.failed
        };
        if waits > (IN_FLIGHT_MAX + WAITING_MAX) as u64 {
            lock(&tally).fail("too many requests wait in the client".to_owned());
            return None;
        }
        let (caller, places) = (Arc::clone(&caller), Arc::clone(&places));
        let (tally, marker) = (Arc::clone(&tally), Arc::clone(&marker));
        Some(async move {
            let _place = places.acquire_owned().await;
            let result = tokio::time::timeout(TIMEOUT, caller.call(Some(&marker))).await;
            let took = due.elapsed();
            let mut tally = lock(&tally);
            let judged = judge(result).and_then(|answer| tally.callers.learn(&answer));
            match judged {
                Ok(()) => tally.answer(took),
                Err(why) => tally.fail(why),
            }
        })
    })
    .await;
}

/// Begins a request at each moment that `pace` tells, until it is stopped, and ends when all of them have ended.
pub(super) async fn each<R: Future<Output = ()> + Send + 'static>(
    mut pace: mpsc::Receiver<Instant>,
    mut stopped: oneshot::Receiver<()>,
    mut request: impl FnMut(Instant) -> Option<R>,
) {
    // Every request holds a sender: when all are gone, all have ended.
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    loop {
        let due = tokio::select! {
            due = pace.recv() => due,
            _ = &mut stopped => break,
        };
        let Some(due) = due else { break };
        let Some(request) = request(due) else { continue };
        let alive = alive.clone();
        tokio::spawn(async move {
            request.await;
            drop(alive);
        });
    }
    drop(alive);
    let _ = all_ended.recv().await;
}

/// What the answer says, or why there is none that counts.
fn judge(result: Result<io::Result<Answer>, tokio::time::error::Elapsed>) -> Result<Value, String> {
    match result {
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) if answer.status == 200 => {
            serde_json::from_slice(&answer.body).map_err(|error| format!("the answer is no JSON: {error}"))
        }
        Ok(Ok(Answer { status, failure, body })) => {
            let said: Value = serde_json::from_slice(&body).unwrap_or_default();
            let why = failure.or_else(|| said["failed"].as_str().map(str::to_owned)).unwrap_or_default();
            Err(format!("{status} {why}"))
        }
    }
}

/// Tells the moments at which requests are due, each when it has come, until nobody listens. A thread of its own, since
/// the runtime's timer goes by milliseconds.
pub(super) fn keep_pace(rate: u32, due: &mpsc::Sender<Instant>) {
    let every = Duration::from_secs(1) / rate.max(1);
    let mut next = Instant::now() + every;
    loop {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        // Full: the client is far behind. It finds them all due when it comes to them.
        if due.blocking_send(next).is_err() {
            return;
        }
        next += every;
    }
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        // 1 µs to a minute, to a thousandth: constants that are accepted.
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds are valid");
        Self {
            sent: 0,
            answered: 0,
            failed: 0,
            reasons: BTreeMap::new(),
            latency,
            callers: Callers::default(),
        }
    }

    /// An answer, and how long it took.
    pub(super) fn answer(&mut self, took: Duration) {
        self.answered += 1;
        self.latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// A failure, and its reason.
    pub(super) fn fail(&mut self, why: String) {
        self.failed += 1;
        let full = self.reasons.len() >= REASONS_MAX && !self.reasons.contains_key(&why);
        *self.reasons.entry(if full { "other reasons".to_owned() } else { why }).or_default() += 1;
    }

    /// Latency (s) that a share of the answers does not exceed; `None` when there are none.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(q) as f64 / 1e6)
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
