//! The client of one phase of a chapter: an open loop. Requests begin at a constant rate, whatever the answers take, and a
//! latency counts from the moment at which its request was due.
//!
//! A phase has a client of its own, which is stopped before anything changes: it begins no more requests and waits for those
//! on the way. So no request belongs to two phases.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::demo::call::{Answer, Caller};
use crate::demo::client::{each, keep_pace};

/// Requests on the way at once; further ones wait in the client. Two ends of connections of the demo's own process for each
/// stay below 1 024, the usual limit of open files.
const IN_FLIGHT_MAX: usize = 400;
/// For one request. Longer than anything that a chapter lets the proxy wait.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that are due and not begun.
const DUE_MAX: usize = 1_000;

/// A client at work. Dropped, it stops and forgets.
pub(super) struct Load {
    began: Instant,
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// When it was due, since the phase began.
    pub due: Duration,
    /// From then to the end of the answer, or of the wait for one.
    pub took: Duration,
    /// The endpoint that answered, by number.
    pub by: Option<usize>,
    /// What came.
    pub end: End,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// With 200.
    Answered,
    /// The proxy said itself that it does not take it, with 503.
    Refused,
    /// Otherwise: why.
    Failed(Arc<str>),
}

impl Load {
    /// Begins to call.
    ///
    /// # Errors
    /// When the threads or the runtime cannot be made.
    pub(super) fn start(to: SocketAddr, rate: u32) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (pace, due) = mpsc::channel(DUE_MAX);
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let outcomes: Arc<Mutex<Vec<Outcome>>> = Arc::default();
        let shared = Arc::clone(&outcomes);
        let began = Instant::now();
        let asked = Asked { caller: Caller::new(to, "shop"), began, outcomes: shared };
        std::thread::Builder::new().name("client".into()).spawn(move || {
            runtime.block_on(call(asked, due, stopped));
            let _ = ending.send(());
        })?;
        std::thread::Builder::new().name("pace".into()).spawn(move || keep_pace(rate, &pace))?;
        Ok(Self { began, stop: Some(stop), ended, outcomes })
    }

    /// How long it has been at work.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What has come, but for the first so many.
    pub(super) fn since(&self, first: usize) -> Vec<Outcome> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.get(first..).unwrap_or_default().to_vec()
    }

    /// Begins no more requests, waits for those on the way, and tells of all, with the time in which they were begun.
    pub(super) async fn stop(mut self) -> (Duration, Vec<Outcome>) {
        let length = self.elapsed();
        drop(self.stop.take());
        let _ = (&mut self.ended).await;
        let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        (length, outcomes)
    }
}

struct Asked {
    caller: Caller,
    began: Instant,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

async fn call(asked: Asked, pace: mpsc::Receiver<Instant>, stopped: oneshot::Receiver<()>) {
    let asked = Arc::new(asked);
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    each(pace, stopped, |due| {
        let (asked, places) = (Arc::clone(&asked), Arc::clone(&places));
        Some(async move {
            let result = tokio::time::timeout(TIMEOUT, async {
                let _place = places.acquire().await;
                asked.caller.call(None).await
            });
            let result = result.await;
            let took = due.elapsed();
            let (by, end) = judge(result);
            let outcome = Outcome { due: due.saturating_duration_since(asked.began), took, by, end };
            asked.outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        })
    })
    .await;
}

/// Who answered, and what.
fn judge(result: Result<io::Result<Answer>, tokio::time::error::Elapsed>) -> (Option<usize>, End) {
    let failed = |why: String| End::Failed(why.into());
    match result {
        Err(_) => (None, failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
        Ok(Err(error)) => (None, failed(error.to_string())),
        Ok(Ok(Answer { status, failure: Some(failure), .. })) => {
            // stage.side.cause: `local` is the proxy itself.
            let itself = failure.split('.').nth(1) == Some("local");
            (None, if status == 503 && itself { End::Refused } else { failed(format!("{status} {failure}")) })
        }
        Ok(Ok(Answer { status, failure: None, body })) => {
            let by = std::str::from_utf8(&body).ok().and_then(|body| body.parse().ok());
            (by, if status == 200 { End::Answered } else { failed(status.to_string()) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_proxy_refuses_itself_is_told_from_what_fails() {
        let answer = |status, failure: Option<&str>, body: &str| {
            let failure = failure.map(str::to_owned);
            judge(Ok(Ok(Answer { status, failure, body: body.into() })))
        };
        let failed = |why: &str| End::Failed(why.into());
        assert_eq!(answer(200, None, "3"), (Some(3), End::Answered));
        assert_eq!(answer(500, None, "0"), (Some(0), failed("500")));
        assert_eq!(answer(503, Some("admit.local.queue_full"), "x"), (None, End::Refused));
        let hung = "response.upstream.timeout";
        assert_eq!(answer(504, Some(hung), "x"), (None, failed("504 response.upstream.timeout")));
        assert_eq!(
            answer(503, Some("connect.upstream.refused"), "").1,
            failed("503 connect.upstream.refused")
        );
    }
}
