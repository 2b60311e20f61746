//! Sends spans to the collector of `[tracing]`: takes what shards have left, puts batches together, sends one after the other. A task of
//! the control thread, started by `start`; told by reloads where to.
//!
//! ```text
//! shard: chunk of 64 KiB ──► Link::spans, 16 ──► waiting here, waiting_bytes_max ──► one batch under way
//!          full: dropped, counted ◄── not taken while as much waits
//! ```
//! A batch that the collector could not take for now is sent again with growing pauses until it is taken: what waits behind it stays,
//! and what comes then is dropped by the shards, so that the oldest spans, which tell how it began, are the ones that are kept. What
//! the collector refuses for good is dropped and counted. That it fails is logged once, and that it works again.

mod messages;
mod send;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Compiled, Tracing};
use crate::identity::Credentials;
use crate::shard::link::Link;
use crate::snapshot::Presented;
use crate::upstream::spec::EdgeTls;
use send::{Failed, Sender};

/// What has become of spans, since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Taken by the collector.
    pub(super) exported: AtomicU64,
    /// In a batch that it refused for good.
    pub(super) refused: AtomicU64,
    /// Of a batch that it took, those that it did not.
    pub(super) rejected: AtomicU64,
    /// There was nowhere to send them any more: tracing was turned off, or the process ended.
    pub(super) unsent: AtomicU64,
    /// Requests to the collector that failed, or were refused.
    pub(super) failures: AtomicU64,
    /// Waiting here, or under way.
    pub(super) waiting: AtomicU64,
}

/// Where spans go, and what is said of who sends them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    tracing: Tracing,
    tls: Option<EdgeTls>,
    service_name: Arc<str>,
}

impl Target {
    /// As it is configured; `None` where nothing is traced.
    pub(super) fn of(
        compiled: &Compiled,
        presented: &Presented,
        identity: Option<&Arc<Credentials>>,
    ) -> Option<Self> {
        let tracing = compiled.tracing.clone()?;
        let of_identity = || identity.map(|own| own.id.path().trim_start_matches('/').into());
        let service_name = tracing.service_name.clone().or_else(of_identity);
        let tls = presented.edges.get(Tracing::EDGE).cloned();
        Some(Self { tls, service_name: service_name.unwrap_or_else(|| "ringmesh".into()), tracing })
    }
}

/// The task's other ends.
pub(super) struct Collector {
    /// Where spans go from now on.
    pub(super) target: watch::Sender<Option<Target>>,
    /// How it is ended.
    pub(super) ending: Ending,
}

/// Ends the task.
pub(super) struct Ending {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    counts: Arc<Counts>,
}

impl Ending {
    /// Sends what is left, for so long at most. The shards have ended.
    pub(super) async fn finish(self, most: Duration) {
        self.stop.send_replace(true);
        let task = self.task;
        let abort = task.abort_handle();
        if timeout(most, task).await.is_err() {
            abort.abort();
        }
        let spans = self.counts.waiting.load(Ordering::Relaxed);
        if spans > 0 {
            tracing::warn!(spans, "spans were not exported before the end");
        }
    }
}

/// Starts the task.
pub(super) fn start(links: Vec<Arc<Link>>, counts: &Arc<Counts>, target: Option<Target>) -> Collector {
    let (target, of_target) = watch::channel(target);
    let (stop, stopped) = watch::channel(false);
    let stock = Stock { links, waiting: VecDeque::new(), octets: 0, since: None, counts: Arc::clone(counts) };
    let exporter = Exporter {
        stock,
        target: of_target,
        stopped,
        sender: None,
        connected_to: None,
        troubled: None,
        instance: messages::instance(),
        counts: Arc::clone(counts),
    };
    let task = tokio::spawn(exporter.run());
    Collector { target, ending: Ending { stop, task, counts: Arc::clone(counts) } }
}

/// Spans, and how many of them.
struct Spans {
    octets: Vec<u8>,
    count: u64,
}

/// What waits.
struct Stock {
    links: Vec<Arc<Link>>,
    waiting: VecDeque<Spans>,
    /// Of all that waits.
    octets: usize,
    /// Since when the oldest does.
    since: Option<Instant>,
    counts: Arc<Counts>,
}

impl Stock {
    /// Spans of a batch: as OpenTelemetry's SDKs.
    const BATCH_SPANS: u64 = 512;
    /// Octets of one; a chunk more at most. Collectors take 4 MiB by default.
    const BATCH_OCTETS: usize = 1 << 20;
    /// A batch that is not full waits as long for more. Shards hand over once a second.
    const LINGER: Duration = Duration::from_millis(200);

    /// Takes from each shard in turn what there is, as far as there is room.
    fn gather(&mut self, octets_max: usize) {
        loop {
            let mut found = false;
            for link in &self.links {
                if self.octets >= octets_max {
                    return;
                }
                let Some(mut chunk) = link.spans.pop() else { continue };
                found = true;
                self.octets += chunk.octets.len();
                self.since.get_or_insert_with(Instant::now);
                let count = u64::from(chunk.spans);
                self.counts.waiting.fetch_add(count, Ordering::Relaxed);
                // Copied, so that the shard's is free again, and nothing larger than needed waits.
                self.waiting.push_back(Spans { octets: chunk.octets.as_slice().to_vec(), count });
                chunk.octets.clear();
                chunk.spans = 0;
                // Full only if the shard made more chunks than the queue holds; then this one is one too many.
                let _ = link.spent_spans.push(chunk);
            }
            if !found {
                return;
            }
        }
    }

    /// The next batch, if there is one to be sent now.
    fn batch(&mut self, now: Instant, stopping: bool) -> Option<Spans> {
        let since = self.since?;
        let is_full = self.octets >= Self::BATCH_OCTETS
            || self.waiting.iter().map(|spans| spans.count).sum::<u64>() >= Self::BATCH_SPANS;
        if !is_full && !stopping && now < since + Self::LINGER {
            return None;
        }
        let mut batch = Spans { octets: Vec::new(), count: 0 };
        while batch.count < Self::BATCH_SPANS && batch.octets.len() < Self::BATCH_OCTETS {
            let Some(spans) = self.waiting.pop_front() else { break };
            self.octets -= spans.octets.len();
            batch.octets.extend_from_slice(&spans.octets);
            batch.count += spans.count;
        }
        self.since = (!self.waiting.is_empty()).then_some(now);
        Some(batch)
    }
}

struct Exporter {
    stock: Stock,
    target: watch::Receiver<Option<Target>>,
    stopped: watch::Receiver<bool>,
    /// The connection, while it lasts, and what it leads to.
    sender: Option<Sender>,
    connected_to: Option<Target>,
    /// Since when nothing was taken.
    troubled: Option<Instant>,
    instance: String,
    counts: Arc<Counts>,
}

impl Exporter {
    /// Between two looks at what shards have left.
    const PACE: Duration = Duration::from_millis(100);
    /// Before a batch is sent again for the first time, and at most; OpenTelemetry's SDKs 1 s and 5 s, its collector 5 s and 30 s.
    const PAUSE: Duration = Duration::from_millis(500);
    const PAUSE_MAX: Duration = Duration::from_secs(30);
    /// How long the collector may ask for.
    const ASKED_MAX: Duration = Duration::from_secs(120);

    async fn run(mut self) {
        loop {
            let stopping = *self.stopped.borrow_and_update();
            let target = self.target.borrow_and_update().clone();
            self.stock.gather(octets_max(target.as_ref()));
            match self.stock.batch(Instant::now(), stopping) {
                Some(batch) => self.deliver(batch).await,
                None if stopping => return,
                None => self.wait(Self::PACE).await,
            }
        }
    }

    /// Waits, unless something is told meanwhile.
    async fn wait(&mut self, most: Duration) {
        tokio::select! {
            () = sleep(most) => {}
            Ok(()) = self.target.changed() => {}
            Ok(()) = self.stopped.changed() => {}
        }
    }

    /// Sends a batch, again and again until something has become of it.
    async fn deliver(&mut self, batch: Spans) {
        let mut pause = Self::PAUSE;
        let mut wrapped: Option<(Target, Bytes)> = None;
        loop {
            let Some(target) = self.target.borrow().clone() else {
                return self.settled(&self.counts.unsent, batch.count);
            };
            let message = match wrapped.take().filter(|(of, _)| *of == target) {
                Some((_, message)) => message,
                None => messages::request(&target, &self.instance, &batch.octets).into(),
            };
            let result = self.send(&target, message.clone()).await;
            let (asked, words) = match result {
                Ok(accepted) => {
                    self.recovered();
                    let rejected = accepted.rejected.min(batch.count);
                    if rejected > 0 {
                        self.counts.rejected.fetch_add(rejected, Ordering::Relaxed);
                        tracing::warn!(
                            spans = rejected,
                            reason = accepted.words,
                            "the collector rejected spans"
                        );
                    }
                    self.counts.waiting.fetch_sub(rejected, Ordering::Relaxed);
                    return self.settled(&self.counts.exported, batch.count - rejected);
                }
                Err(Failed::ForGood(words)) => {
                    self.failed(&target, &words);
                    return self.settled(&self.counts.refused, batch.count);
                }
                Err(Failed::ForNow(asked, words)) => (asked, words),
            };
            self.failed(&target, &words);
            if *self.stopped.borrow() {
                return self.settled(&self.counts.unsent, batch.count);
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            let until =
                Instant::now() + asked.map_or(jittered, |asked| asked.min(Self::ASKED_MAX).max(jittered));
            pause = (pause * 2).min(Self::PAUSE_MAX);
            while Instant::now() < until
                && !*self.stopped.borrow()
                && self.target.borrow().as_ref() == Some(&target)
            {
                self.stock.gather(octets_max(Some(&target)));
                let left = until.saturating_duration_since(Instant::now());
                self.wait(left.min(Self::PACE)).await;
            }
            wrapped = Some((target, message));
        }
    }

    /// Sends it once, and takes from the shards meanwhile.
    async fn send(&mut self, target: &Target, message: Bytes) -> Result<send::Accepted, Failed> {
        if self.connected_to.as_ref() != Some(target) {
            self.sender = None;
            self.connected_to = Some(target.clone());
        }
        let Self { sender, stock, .. } = self;
        let mut sending = Box::pin(send::send(sender, target, message));
        loop {
            tokio::select! {
                result = &mut sending => return result,
                () = sleep(Self::PACE) => stock.gather(octets_max(Some(target))),
            }
        }
    }

    fn settled(&self, count: &AtomicU64, spans: u64) {
        count.fetch_add(spans, Ordering::Relaxed);
        self.counts.waiting.fetch_sub(spans, Ordering::Relaxed);
    }

    fn failed(&mut self, target: &Target, words: &str) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        if self.troubled.is_none() {
            self.troubled = Some(Instant::now());
            tracing::warn!(
                endpoint = %target.tracing.endpoint,
                reason = words,
                "spans cannot be exported; they are kept as far as there is room: is the collector there, and what it should be?"
            );
        }
    }

    fn recovered(&mut self) {
        if let Some(since) = self.troubled.take() {
            tracing::info!(after = ?since.elapsed(), "spans are exported again");
        }
    }
}

fn octets_max(target: Option<&Target>) -> usize {
    target
        .map_or(usize::MAX, |target| usize::try_from(target.tracing.waiting_bytes_max).unwrap_or(usize::MAX))
}

#[cfg(test)]
#[path = "collector_test.rs"]
mod tests;
