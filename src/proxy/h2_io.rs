//! What the gathered I/O of HTTP/2 needs of a shard: buffers, time, and the counting of floods; and what is known of the
//! peer of such a connection, its [`Standing`].

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong, Reason};

use crate::failure::{Cause, Failure, Stage};
use crate::http::h2::watch::{Flood, Watch};
use crate::io::gather::{Inspect, Lender, Vital};
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::shard::clock::{Clock, NEVER, ns};
use crate::telemetry::FLOODS;

/// What h2 may spend on keeping small DATA frames apart until they are passed on, 256 octets each: more than two reads full
/// of frames with one octet. Its own default ends connections that do nothing wrong but send small messages quickly.
pub(super) const SMALL_FRAMES_MAX: usize = 8 * 1024 * 1024;

const _: () = assert!(Flood::ALL.len() == FLOODS.len(), "each has a label");

/// A shard as lender.
#[derive(Clone)]
pub(super) struct Lent(Rc<Shard>);

impl Lent {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        Self(Rc::clone(shard))
    }
}

impl Lender for Lent {
    type Buffer = Buffer;

    fn small(&self) -> Option<Buffer> {
        self.0.buffers.take_small()
    }

    fn large(&self) -> Option<Buffer> {
        self.0.take_for_body(u64::MAX)
    }

    fn give(&self, buffer: Buffer) {
        self.0.buffers.give(buffer);
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn arrived(&self) {
        self.0.gathered.arrived_at.set(self.0.clock.now());
    }

    fn departed(&self, took_ns: u64) {
        // A peer that does not read is waited for; that is not what leaving takes.
        const LEAVING_MAX_NS: u64 = 10_000_000;
        if took_ns < LEAVING_MAX_NS {
            self.0.gathered.departing_ns.set(took_ns);
        }
    }
}

/// How a peer stands with us: what it owes, what it has earned.
pub(super) struct Standing {
    watch: RefCell<Watch>,
    /// Exchanges in progress.
    exchanges: Cell<u32>,
    /// When the connection began.
    began: u64,
    /// The field block whose end is owed, and since when.
    block: Cell<Option<(u64, u64)>>,
}

/// Counts frames against their budgets, and what went over them.
pub(super) struct Floods {
    shard: Rc<Shard>,
    standing: Rc<Standing>,
}

/// A place among the exchanges of a connection.
pub(super) struct Place(Rc<Standing>);

impl Floods {
    pub(super) fn of_caller(shard: &Rc<Shard>) -> (Self, Rc<Standing>) {
        Self::of(shard, Watch::of_caller())
    }

    pub(super) fn of_service(shard: &Rc<Shard>) -> (Self, Rc<Standing>) {
        Self::of(shard, Watch::of_service())
    }

    fn of(shard: &Rc<Shard>, watch: Watch) -> (Self, Rc<Standing>) {
        let standing = Rc::new(Standing {
            watch: RefCell::new(watch),
            exchanges: Cell::new(0),
            began: shard.clock.now(),
            block: Cell::new(None),
        });
        (Self { shard: Rc::clone(shard), standing: Rc::clone(&standing) }, standing)
    }
}

impl Inspect for Floods {
    fn sent(&mut self, octets: u64) {
        self.standing.watch.borrow_mut().sent(octets);
    }

    fn inspect(&mut self, bytes: &[u8]) -> bool {
        let mut watch = self.standing.watch.borrow_mut();
        watch.at(self.shard.clock.now());
        let result = watch.feed(bytes);
        let block = &self.standing.block;
        block.set(match (watch.owed_block(), block.get()) {
            (Some(now), Some((before, since))) if now == before => Some((before, since)),
            (owed, _) => owed.map(|number| (number, self.shard.clock.now())),
        });
        match result {
            Ok(()) => !watch.began_wrongly(),
            Err(flood) => {
                let count = &self.shard.totals.floods[flood as usize];
                count.set(count.get() + 1);
                false
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.standing.watch.borrow().has_begun()
    }
}

impl Standing {
    /// Exchanges in progress.
    pub(super) fn exchanges(&self) -> u32 {
        self.exchanges.get()
    }

    /// Until when the peer may owe us what no exchange waits for: the end of a field block, before which nothing else
    /// may come (RFC 9113 §6.10), and that it has taken our settings (§6.5.3). `NEVER` when it owes nothing.
    pub(super) fn overdue_at(&self, patience_ns: u64) -> u64 {
        let settings = if self.watch.borrow().has_acknowledged() { NEVER } else { self.began };
        let block = self.block.get().map_or(NEVER, |(_, since)| since);
        block.min(settings).saturating_add(patience_ns)
    }

    /// Why the connection should end: what the peer owes for too long, how it began, or a flood, which is counted.
    /// `stopped` is whether [`Inspect`] has.
    pub(super) fn verdict(
        &self,
        stopped: bool,
        patience_ns: u64,
        now: u64,
    ) -> Option<(Reason, Option<Cause>)> {
        if stopped {
            return Some(match self.watch.borrow().began_wrongly() {
                true => (Reason::PROTOCOL_ERROR, Some(Cause::ProtocolError)),
                false => (Reason::ENHANCE_YOUR_CALM, None),
            });
        }
        (self.overdue_at(patience_ns) <= now).then(|| match self.block.get() {
            Some(_) => (Reason::ENHANCE_YOUR_CALM, Some(Cause::Timeout)),
            None => (Reason::SETTINGS_TIMEOUT, Some(Cause::Timeout)),
        })
    }
}

impl Standing {
    /// The verdict on a caller; counted, and told to control, where it is not a flood, which is counted already.
    pub(super) fn tell(
        &self,
        shard: &Shard,
        peer: SocketAddr,
        stopped: bool,
        patience_ns: u64,
    ) -> Option<Reason> {
        let (reason, cause) = self.verdict(stopped, patience_ns, shard.clock.now())?;
        if let Some(cause) = cause {
            let failure = Failure::downstream(Stage::Head, cause);
            shard.connection_failed(failure, peer, reason.description());
        }
        Some(reason)
    }
}

impl Place {
    pub(super) fn take(standing: &Rc<Standing>) -> Self {
        standing.exchanges.set(standing.exchanges.get() + 1);
        Self(Rc::clone(standing))
    }

    /// The caller has seen an answer: it may reset as many exchanges as it lets be answered.
    pub(super) fn answered(&self) {
        self.0.watch.borrow_mut().answered();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.exchanges.set(self.0.exchanges.get() - 1);
    }
}

/// Waits for `begun`, the first octets of a connection, unless what comes in was stopped: then they never come.
pub(super) async fn unless_stopped<T>(vital: &Vital<Lent>, begun: impl Future<Output = T>) -> Option<T> {
    let mut begun = pin!(begun);
    poll_fn(|cx| match vital.was_stopped() {
        true => Poll::Ready(None),
        false => begun.as_mut().poll(cx).map(Some),
    })
    .await
}

/// Pings a connection that is silent although exchanges are open on it.
pub(super) struct Keepalive {
    standing: Rc<Standing>,
    ping: Option<PingPong>,
    interval_ns: u64,
    timeout_ns: u64,
    pinged_at: Option<u64>,
}

impl Keepalive {
    pub(super) fn new(
        standing: &Rc<Standing>,
        ping: Option<PingPong>,
        interval: Duration,
        timeout: Duration,
    ) -> Self {
        let standing = Rc::clone(standing);
        Self { standing, ping, interval_ns: ns(interval), timeout_ns: ns(timeout), pinged_at: None }
    }

    /// When to look again; `None` when the peer did not answer in time.
    pub(super) fn poll(&mut self, vital: &Vital<Lent>, now: u64, cx: &mut Context<'_>) -> Option<u64> {
        let Some(ping) = self.ping.as_mut().filter(|_| self.interval_ns > 0) else { return Some(NEVER) };
        if self.pinged_at.is_some() && matches!(ping.poll_pong(cx), Poll::Ready(Ok(_))) {
            self.pinged_at = None;
        }
        match self.pinged_at {
            Some(at) if now >= at + self.timeout_ns => None,
            Some(at) => Some(at + self.timeout_ns),
            None if now >= vital.last_read_at() + self.interval_ns => {
                if ping.send_ping(Ping::opaque()).is_ok() {
                    self.standing.watch.borrow_mut().pinged();
                    self.pinged_at = Some(now);
                    // Sent by the next poll of the connection, which shall be now.
                    cx.waker().wake_by_ref();
                }
                Some(now + self.timeout_ns)
            }
            None => Some(vital.last_read_at() + self.interval_ns),
        }
    }
}
