//! HTTP/2 connections of one endpoint on one shard, each shared by many exchanges.
//!
//! The connection that is busiest and still has room gets the next exchange, so that as few as possible are open and
//! what they carry leaves together. One is opened when all are full, up to a limit; beyond it an exchange waits for room,
//! for as long as it may wait for a connection. One that the peer is closing gets nothing new. Until the peer has said how
//! many it takes, a connection carries the one that it was opened for; nobody opens another meanwhile. Refuses to drive
//! connections: that is the task of `proxy::h2_client`.
//!
//! Where the peer is a ringmesh that takes them, requests of HTTP/1.1 go over lanes ([`Lane`]), which are kept open for the next one. A lane at
//! rest holds a stream of the connection, no place: it makes room when all streams are wanted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;

use super::berths::Berths;
use super::spec;
use super::waiter::{Crowd, Waits};
use crate::failure::{Cause, Failure, Stage};
use crate::http::h2 as message;
use crate::io::Connection;
use crate::io::lane::Lane;
use crate::io::timed::Deadlines;

/// The shared connections of an endpoint.
#[derive(Default)]
pub struct SharedPool {
    open: RefCell<Vec<Rc<Shared>>>,
    connecting: Cell<u32>,
    /// Who waits for a place.
    crowd: Crowd,
    /// Whether the endpoint chose HTTP/2 the last time that it could choose.
    speaks: Cell<bool>,
    /// How many could not be opened, and how the last of them failed.
    failed: Cell<(u32, Option<Failure>)>,
    /// How often the endpoint has ended a connection because of too many pings.
    too_many_pings: Rc<Cell<u8>>,
}

/// One shared connection.
pub struct Shared {
    /// Gone when it is being closed: without it h2 says GOAWAY and ends.
    send: RefCell<Option<SendRequest<Bytes>>>,
    exchanges: Cell<u32>,
    /// How many exchanges the peer takes, as of when the connection was driven last: only what comes in changes it.
    theirs: Cell<usize>,
    /// Requests sent: a connection has an end of numbers for them.
    sent: Cell<u32>,
    /// The peer, or we, let it run out.
    leaving: Cell<bool>,
    too_many_pings: Rc<Cell<u8>>,
    /// Whoever drives it: told when there is nothing more to be driven for.
    driver: RefCell<Option<Waker>>,
    /// Whether the peer is a ringmesh, which wants to know how a message came.
    pub mesh: bool,
    /// Whether it takes lanes.
    takes_lanes: bool,
    /// Lanes at rest, the one that was used last at the end, each with the time from which on it has rested.
    lanes: RefCell<VecDeque<(Connection, u64)>>,
    /// Whether the peer has said what it offers, and who waits for that.
    settled: Cell<bool>,
    unsettled: Crowd,
    /// Whether it is encrypted.
    encrypted: bool,
    /// Where the service's connections are counted, if they are.
    berths: Option<Rc<Berths>>,
    /// Which fields of what is sent on it repeat.
    repeats: RefCell<message::Repeats>,
    pool: Weak<SharedPool>,
}

/// A place on a shared connection for one exchange; given back when dropped.
pub struct Lease {
    shared: Rc<Shared>,
    pool: Rc<SharedPool>,
    /// Whether the connection was there before: it may turn out to be dead.
    pub reused: bool,
}

/// A lane in use.
pub struct Laned {
    /// Read and written as a socket of its own.
    pub connection: Connection,
    /// Whether it was just asked for.
    pub is_new: bool,
}

/// A connection being opened: those who wait are told when it is dropped.
pub struct Opening {
    pool: Rc<SharedPool>,
}

impl SharedPool {
    /// A place on a connection that is open.
    pub fn lease(self: &Rc<Self>, limits: &spec::Http2) -> Option<Lease> {
        let mut open = self.open.borrow_mut();
        open.retain(|shared| !shared.is_leaving());
        let busiest = open.iter().filter(|s| s.has_room(limits)).max_by_key(|s| s.exchanges.get())?;
        busiest.exchanges.set(busiest.exchanges.get() + 1);
        Some(Lease { shared: Rc::clone(busiest), pool: Rc::clone(self), reused: true })
    }

    /// Leave to open one more; `None` when as many as may be are open, or when one is being opened by another exchange or
    /// its peer has not yet said how many it takes (what it brings should be tried first).
    pub fn open_one(self: &Rc<Self>, limits: &spec::Http2) -> Option<Opening> {
        let open = self.open.borrow();
        let full = u32::try_from(open.len()).unwrap_or(u32::MAX) >= limits.connections_max;
        let begins = open.iter().any(|shared| !shared.settled.get() && !shared.leaving.get());
        if self.connecting.get() > 0 || full || begins {
            return None;
        }
        self.connecting.set(1);
        Some(Opening { pool: Rc::clone(self) })
    }

    /// Whether a connection is being opened.
    pub fn is_opening(&self) -> bool {
        self.connecting.get() > 0
    }

    /// Whether there is no connection that gets anything new, full or not.
    pub fn has_none(&self) -> bool {
        self.open.borrow().iter().all(|shared| shared.is_leaving())
    }

    /// One could not be opened. To be said before those who were woken by it run.
    pub fn failed_to_open(&self, failure: Failure) {
        self.failed.set((self.failed.get().0.wrapping_add(1), Some(failure)));
    }

    /// How many could not be opened, and how the last of them failed: told apart by the number from what failed before.
    pub fn failures(&self) -> (u32, Option<Failure>) {
        self.failed.get()
    }

    /// Waits until something has changed: a place is free, or an attempt to connect is over. May be dropped.
    pub fn changed(&self) -> Waits<'_> {
        self.crowd.wait()
    }

    /// Adds a connection that was just established, with a place for the exchange that wanted it.
    pub fn opened(
        self: &Rc<Self>,
        send: SendRequest<Bytes>,
        (mesh, takes_lanes): (bool, bool),
        encrypted: bool,
        berths: Option<Rc<Berths>>,
    ) -> (Rc<Shared>, Lease) {
        let shared = Rc::new(Shared {
            theirs: Cell::new(send.current_max_send_streams()),
            send: RefCell::new(Some(send)),
            exchanges: Cell::new(1),
            sent: Cell::new(0),
            leaving: Cell::new(false),
            too_many_pings: Rc::clone(&self.too_many_pings),
            driver: RefCell::default(),
            mesh,
            takes_lanes,
            lanes: RefCell::default(),
            settled: Cell::new(false),
            unsettled: Crowd::default(),
            encrypted,
            berths,
            repeats: RefCell::default(),
            pool: Rc::downgrade(self),
        });
        self.open.borrow_mut().push(Rc::clone(&shared));
        (Rc::clone(&shared), Lease { shared, pool: Rc::clone(self), reused: false })
    }

    /// Whether the endpoint is expected to choose HTTP/2.
    pub fn speaks(&self) -> bool {
        self.speaks.get()
    }

    /// What the endpoint chose.
    pub fn chose(&self, http2: bool) {
        self.speaks.set(http2);
    }

    /// Lets one that has no exchange run out, if there is one.
    pub fn leave_one(&self) -> bool {
        let open = self.open.borrow();
        let at_rest = open.iter().find(|shared| shared.exchanges.get() == 0 && !shared.is_leaving());
        at_rest.inspect(|shared| shared.leave()).is_some()
    }

    /// Whether one has no exchange.
    pub fn is_at_rest(&self) -> bool {
        self.open.borrow().iter().any(|shared| shared.exchanges.get() == 0 && !shared.is_leaving())
    }

    /// Lets all connections run out: they end with their last exchange.
    pub fn leave(&self) {
        for shared in self.open.borrow_mut().drain(..) {
            shared.leave();
        }
    }
}

impl Shared {
    /// Requests on one connection: half of the numbers of 31 bits are a client's (RFC 9113 §5.1.1). Less than that by more than
    /// the exchanges that may have a place when it is reached.
    const SENT_MAX: u32 = (1 << 30) - (1 << 20);

    /// Gets nothing new from now on. Its driver, which may be the one that calls, is told once.
    pub fn leave(&self) {
        if !self.leaving.replace(true) {
            self.end_lanes();
            self.tell_driver();
        }
    }

    /// Ends the lanes at rest: to the peer they are reset, since h2 does not wait for its word.
    fn end_lanes(&self) {
        let lanes = self.lanes.take();
        drop(lanes);
    }

    /// Begins to close it. Nobody has a place on it, and nobody gets one any more.
    pub fn close(&self) {
        self.leaving.set(true);
        self.end_lanes();
        drop(self.send.borrow_mut().take());
    }

    /// Whom to tell when it is to leave, and when the last exchange of one that leaves has ended.
    pub fn driven_by(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
    }

    /// Its last exchange has ended.
    fn comes_to_rest(&self) {
        if self.leaving.get() {
            return self.tell_driver();
        }
        match &self.berths {
            Some(berths) if berths.is_wanted() => self.leave(),
            Some(berths) => berths.offer(),
            None => {}
        }
    }

    fn tell_driver(&self) {
        let driver = self.driver.borrow_mut().take();
        if let Some(waker) = driver {
            waker.wake();
        }
    }

    /// The peer has said what it offers, or never will.
    pub fn settle(&self) {
        if !self.settled.replace(true) {
            self.unsettled.tell();
            // There may be room now.
            self.pool.upgrade().into_iter().for_each(|pool| pool.crowd.tell());
        }
    }

    /// The endpoint has ended the connection because of too many pings. Only from now on: others of its connections were made
    /// before.
    pub fn pinged_too_often(&self) {
        self.too_many_pings.set(self.too_many_pings.get().saturating_add(1));
    }

    /// How often to ping a new connection: half as often each time that it was too often (gRPC, A8), down to a thousandth.
    pub fn ping_interval(&self, configured: Duration) -> Duration {
        configured.saturating_mul(1 << self.too_many_pings.get().min(10))
    }

    /// Exchanges in progress.
    pub fn exchanges(&self) -> u32 {
        self.exchanges.get()
    }

    /// Whether it gets nothing new.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// It was driven: what came in may have changed how many exchanges the peer takes, or have been a GOAWAY. To be asked then
    /// costs less than for each exchange.
    pub fn was_driven(&self) {
        let mut send = self.send.borrow_mut();
        let Some(send) = send.as_mut() else { return };
        self.theirs.set(send.current_max_send_streams());
        let mut cx = Context::from_waker(Waker::noop());
        if matches!(send.poll_ready(&mut cx), Poll::Ready(Err(_))) {
            self.leaving.set(true);
            self.end_lanes();
        }
    }

    /// There is to be one more stream: a lane at rest makes room for it where there is none.
    fn make_room(&self) {
        // With its own place.
        if self.exchanges.get() as usize + self.lanes.borrow().len() > self.theirs.get() {
            let oldest = self.lanes.borrow_mut().pop_front();
            drop(oldest);
        }
    }

    fn has_room(&self, limits: &spec::Http2) -> bool {
        // Before it has said so, more would wait within h2 if it turns out that it takes fewer, although others could have them.
        let theirs = if self.settled.get() { self.theirs.get() } else { 1 };
        let most = usize::try_from(limits.streams_max).unwrap_or(usize::MAX).min(theirs);
        (self.exchanges.get() as usize) < most
    }
}

impl Lease {
    /// Sends a request; `ended` is whether it has no body.
    ///
    /// # Errors
    /// `GoingAway` when the connection is over, or the peer is closing it: nothing of the request has left.
    pub fn send(
        &self,
        request: Request<()>,
        ended: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Failure> {
        self.shared.make_room();
        self.begin(request, ended)
    }

    /// A lane for a request of so many octets: one at rest, whose window has room for all of them now, or a new one, whose window is not known
    /// before the connection is driven. `None` where the peer takes none, or the window has no room.
    pub fn lane(&self, octets: usize, deadlines: &Rc<Deadlines>, now: u64) -> Option<Laned> {
        if !self.shared.takes_lanes {
            return None;
        }
        loop {
            let at_rest = self.shared.lanes.borrow_mut().pop_back();
            let Some((connection, _)) = at_rest else {
                let (response, send) = self.begin(message::lane_request(), false).ok()?;
                let connection = Connection::of_lane(Lane::asked(response, send), deadlines);
                return Some(Laned { connection, is_new: true });
            };
            if !connection.is_usable() {
                // The peer has ended it, or what came on it was not asked for.
                continue;
            }
            let laned = Laned { connection, is_new: false };
            if laned.connection.has_room(octets) {
                return Some(laned);
            }
            self.put_aside(laned, now);
            return None;
        }
    }

    /// Keeps a lane that could not be used for want of room.
    pub fn put_aside(&self, lane: Laned, now: u64) {
        self.shared.lanes.borrow_mut().push_front((lane.connection, now));
    }

    /// Keeps a lane for the next exchange. Those that were not needed for `idle_ns` are ended, one at a time.
    pub fn keep(&self, lane: Laned, now: u64, idle_ns: u64) {
        if self.shared.is_leaving() {
            return;
        }
        let mut lanes = self.shared.lanes.borrow_mut();
        lanes.push_back((lane.connection, now));
        let oldest = lanes.pop_front_if(|(_, since)| now.saturating_sub(*since) > idle_ns);
        drop(lanes);
        drop(oldest);
    }

    fn begin(
        &self,
        mut request: Request<()>,
        ended: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Failure> {
        let failed = |cause| Failure::upstream(Stage::Request, cause);
        let mut send = self.shared.send.borrow_mut();
        let Some(send) = send.as_mut() else { return Err(failed(Cause::GoingAway)) };
        self.shared.sent.set(self.shared.sent.get() + 1);
        if self.shared.sent.get() >= Shared::SENT_MAX {
            self.shared.leave();
        }
        self.shared.repeats.borrow_mut().mark(request.headers_mut());
        let sent = match send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => send.send_request(request, ended),
            Poll::Ready(Err(_)) => {
                self.shared.leave();
                return Err(failed(Cause::GoingAway));
            }
            // By a handle of its own: h2 refuses a request while the one before it on the same handle waits for a place of
            // the peer's, which it does where a stream that was reset still counts. The queue is as long as there are leases.
            Poll::Pending => send.clone().send_request(request, ended),
        };
        sent.map_err(|error| failed(message::cause(&error)))
    }

    /// Whether the peer takes WebSockets (RFC 8441 §3). Waits until it has said what it offers; may be dropped.
    pub async fn takes_websockets(&self) -> bool {
        if !self.shared.settled.get() {
            self.shared.unsettled.wait().await;
        }
        self.shared.send.borrow().as_ref().is_some_and(SendRequest::is_extended_connect_protocol_enabled)
    }

    /// Whether the peer is a ringmesh.
    pub fn is_mesh(&self) -> bool {
        self.shared.mesh
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.shared.encrypted
    }

    /// After an exchange that failed so: whether to give the connection nothing more.
    pub fn leave_if_going(&self, failure: Failure) {
        if failure.cause == Cause::GoingAway {
            self.leave();
        }
    }

    /// The connection turned out to be unusable for new exchanges.
    pub fn leave(&self) {
        self.shared.leave();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.exchanges.set(self.shared.exchanges.get() - 1);
        if self.shared.exchanges.get() == 0 {
            self.shared.comes_to_rest();
        }
        self.pool.crowd.tell();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.pool.connecting.set(0);
        self.pool.crowd.tell();
    }
}
