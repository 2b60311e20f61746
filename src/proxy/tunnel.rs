//! Tunnels: a connection, or a stream of one that speaks HTTP/2, that is bytes from here on, after a WebSocket handshake
//! or CONNECT ([`upgraded`], [`connect`]; those that come by HTTP/2 begin in [`super::tunnel_h2`]).
//!
//! [`run`] carries the bytes, whatever the ends are: anything that has a [`Source`], a [`Sink`] and an [`End`]. Each
//! direction ends alone, so that half-close passes through; a reset of one side resets the other. The route's timeout and
//! the service's have no say any more: only silence in both directions ends a tunnel (`Route::tunnel_idle`), and rules or
//! trust that have changed. While the proxy drains a tunnel goes on until `timeouts.drain` ends it: no close frame is made
//! here, because that would need to know where frames begin. A tunnel at rest holds no buffer; one at work at most one per
//! direction, because what was read is written before more is read.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::account::Account;
use super::again::Missed;
use super::connect::To;
use super::tunnel_h2::{self, Stream};
use super::{Fate, Path, Settled, cause};
use crate::downstream::{self, Asked, Downstream};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::respond;
use crate::io::idle::Idle;
use crate::io::{Connection, Control, Fault, Patience, Reader, Waited, Writer};
use crate::shard::Shard;
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::clock::NEVER;
use crate::shard::live::{Ending, Kind};
use crate::upstream::pool::Pooled;
use crate::upstream::service::Attempt;
use crate::upstream::shared::Lease;

/// Serves a CONNECT that the route allows, to a service that is not of the mesh: a connection to it, whatever the target
/// says, and the answer once that stands. Nothing that the caller sent behind its head has left before. A service that is
/// spoken to by HTTP/2 gets the CONNECT itself.
pub(super) async fn connect(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    head: &[u8],
) -> Result<Settled, Failure> {
    let Path { shard, account, .. } = path;
    // Never a pooled one: what stands behind it may not be HTTP.
    let (attempt, to) = loop {
        let failure = match path.connect(true).await {
            Ok(connected) => break connected,
            Err(failure) => failure,
        };
        match path.missed(failure, false) {
            Missed::Failed(failure) => return Err(failure),
            Missed::Again => path.pause().await,
        }
    };
    let pooled = match to {
        To::H1(pooled) => pooled,
        To::H2(lease) => return tunnel_h2::ask(path, downstream, asked, head, attempt, lease).await,
    };
    attempt.answers(shard.clock.now());
    account.answered(shard.clock.now());
    let mut answer = shard.buffers.take_small().ok_or(SHED)?;
    respond::write_connected(&shard.clock, &mut answer);
    let stall = asked.view.snapshot.timeouts.body_stall;
    let patience = Patience { clock: &shard.clock, stall, until: path.deadline };
    path.in_time()?;
    account.status.set(200);
    let told = downstream.connection.writer.write_all(&mut answer, 0, patience).await;
    shard.buffers.give(answer);
    told.map_err(|fault| Failure::downstream(Stage::Body, cause(fault)))?;
    let far = Far::Connection { pooled, behind: Buffer::default() };
    Ok(Settled::Tunnel(Box::new(Agreed { attempt, far })))
}

/// What a tunnel begins with.
pub(super) struct Agreed {
    /// Lasts as long as the tunnel: its endpoint is busy.
    pub(super) attempt: Attempt,
    pub(super) far: Far,
}

/// The service's end.
pub(super) enum Far {
    /// A connection of its own, and what came behind the service's head, in a buffer of the shard.
    Connection { pooled: Pooled, behind: Buffer },
    /// A stream of a shared one.
    Stream { send: h2::SendStream<bytes::Bytes>, recv: h2::RecvStream, lease: Lease },
}

/// Both sides have agreed: bytes from here on. Those that came behind the caller's head lie in its input.
pub(super) async fn upgraded(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    agreed: Box<Agreed>,
) -> Result<Fate, Failure> {
    let snapshot = &asked.view.snapshot;
    let notice = Rc::new(Ending::default());
    let ask_again = downstream::ask_again(downstream.input[..asked.head_len].into(), snapshot.limits.clone());
    let _listed = path.shard.live.list(downstream.as_open(Kind::Tunnel(ask_again, Rc::clone(&notice))));
    // The log will want the head: a copy of its size, so that a tunnel does not hold a buffer for that.
    let mut head = Buffer::default();
    head.extend_from_slice(&downstream.input[..asked.head_len]);
    downstream.input.drain(..asked.head_len);
    let early = std::mem::replace(&mut downstream.input, head);
    let route = asked.route.id().and_then(|id| snapshot.routes.routes().get(id as usize));
    let idle = route.map_or(Duration::MAX, |route| route.tunnel_idle);
    let caller = downstream.connection.control();
    let Connection { reader, writer, .. } = &mut downstream.connection;
    let cut = if asked.is_connect() { Stream::CUT_PLAIN } else { Stream::CUT_WEBSOCKET };
    let near = Near { end: &caller, source: reader, sink: writer, early };
    through(path, near, *agreed, idle, &notice, cut).await.map(|()| Fate::Close)
}

/// The caller's end. `early` is a buffer of the shard with what came before the answer.
pub(super) struct Near<'x, E, S, K> {
    pub(super) end: &'x E,
    pub(super) source: S,
    pub(super) sink: K,
    pub(super) early: Buffer,
}

/// Carries bytes between the caller's end and whatever the service's is. `cut` is how a stream is told that it is cut.
pub(super) async fn through<E: End>(
    path: &Path<'_>,
    near: Near<'_, E, impl Source, impl Sink>,
    agreed: Agreed,
    idle: Duration,
    notice: &Ending,
    cut: h2::Reason,
) -> Result<(), Failure> {
    let Agreed { attempt, far } = agreed;
    attempt.goes_on();
    let Near { end: caller, source, sink, early } = near;
    match far {
        Far::Connection { mut pooled, behind } => {
            let service = pooled.connection.control();
            let tunnel = Tunnel::new(path, idle, notice, caller, &service);
            let Connection { reader, writer, .. } = &mut pooled.connection;
            let there = Way { from: source, to: writer, early };
            run(&tunnel, there, Way { from: reader, to: sink, early: behind }).await
        }
        Far::Stream { send, recv, lease: _lease } => {
            let service = Stream::new(send, cut);
            let tunnel = Tunnel::new(path, idle, notice, caller, &service);
            let there = Way { from: source, to: &service, early };
            run(&tunnel, there, Way { from: service.source(recv), to: sink, early: Buffer::default() }).await
        }
    }
}

/// There is no memory for one more buffer.
const SHED: Failure = Failure::local(Stage::Body, Cause::Overloaded);

/// Where the bytes of one direction come from.
pub(super) trait Source {
    /// Reads what is there, or waits for it with the buffer at hand until `hold_until`.
    async fn read(&mut self, buffer: &mut Buffer, hold_until: u64) -> Result<Waited, Fault>;

    /// Waits, holding nothing, until bytes, the end or a fault can be read; [`End::shutdown`] ends it.
    async fn readable(&mut self) -> Result<(), Fault>;
}

/// Where they go.
pub(super) trait Sink {
    /// Writes all of the buffer. A sink that cannot tell progress from a wait within it says [`Idle::write_begins`] and
    /// has a deadline of its own; one that can says [`Idle::moved`] at each step.
    async fn write(&mut self, buffer: &mut Buffer, idle: &Idle<'_>) -> Result<(), Fault>;

    /// Passes on that nothing more will come in this direction.
    async fn finish(&mut self);
}

/// One of the two ends, seen from outside of the operations on it.
pub(super) trait End {
    /// Ends it so that the peer knows that it is cut.
    fn reset(&self);

    /// Ends it, and all waits on it.
    fn shutdown(&self);

    /// All was passed on to it and its end was said; nothing that the peer might still send is of use.
    fn enough(&self);

    /// Something moved elsewhere: a write in flight that has a deadline of its own has until then.
    fn write_until(&self, deadline: u64);

    /// Whether the peer has cut it, where that is told to others than those who read or write, and how.
    fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut>;
}

/// How a peer has cut its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// As of now: nothing that it has sent counts.
    Reset,
    /// It takes no more; what it has sent before is good.
    Enough,
}

/// One direction. `early` is a buffer of the shard, or empty: bytes that go before all others.
struct Way<S, K> {
    from: S,
    to: K,
    early: Buffer,
}

/// What both directions share.
struct Tunnel<'x, C, S> {
    shard: &'x Rc<Shard>,
    account: &'x Account,
    /// Where bytes are counted while it lives.
    slot: u32,
    idle: Idle<'x>,
    /// When bytes were recorded last, and how many of each direction have been.
    recorded: Cell<(u64, u64, u64)>,
    /// What tells that it may not go on.
    notice: &'x Ending,
    caller: &'x C,
    service: &'x S,
}

/// Carries bytes both ways until both are done.
///
/// # Errors
/// What ended it before that: a fault of either side (both ends have been reset), silence (both are shut down), no memory.
async fn run<C: End, S: End>(
    tunnel: &Tunnel<'_, C, S>,
    there: Way<impl Source, impl Sink>,
    back: Way<impl Source, impl Sink>,
) -> Result<(), Failure> {
    let _open = Counted::count(tunnel.shard);
    tunnel.account.tunnel_begins(tunnel.shard.clock.now());
    let mut there = pin!(tunnel.carry(there, Side::Downstream));
    let mut back = pin!(tunnel.carry(back, Side::Upstream));
    let mut silence = pin!(tunnel.idle.run_out());
    let (mut there_result, mut back_result, mut over) = (None, None, None);
    // No direction is dropped in flight: what must end is ended from outside, and then awaited.
    poll_fn(|cx| {
        if over.is_none() {
            let ended = (there_result.is_some(), back_result.is_some());
            over = tunnel.poll_over(silence.as_mut(), ended, cx);
        }
        // Twice, because what ends the second direction may be the first.
        for _ in 0..2 {
            tunnel.step(there.as_mut(), &mut there_result, back_result, &mut over, cx);
            tunnel.step(back.as_mut(), &mut back_result, there_result, &mut over, cx);
        }
        if there_result.is_some() && back_result.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    tunnel.account.waited(tunnel.shard.clock.now());
    tunnel.record(true);
    over.unwrap_or(Ok(()))
}

/// Nothing has moved for `tunnel_idle`.
const SILENT: Failure = Failure::local(Stage::Body, Cause::Timeout);

/// Whether one end has been cut by its peer, and how; the other has been told then. `ended` is whether all that came on the
/// first was read and has been passed on with its end: that is good, whatever came later, and must not be lost on its way.
fn cut_by(end: &impl End, ended: bool, other: &impl End, cx: &mut Context<'_>) -> Option<Result<(), Cause>> {
    let Poll::Ready(cut) = end.poll_cut(cx) else { return None };
    match (cut, ended) {
        // What was sent before is still read.
        (Cut::Enough, false) => return None,
        (Cut::Enough | Cut::Reset, true) => other.enough(),
        (Cut::Reset, false) => other.reset(),
    }
    end.shutdown();
    Some(if cut == Cut::Enough { Ok(()) } else { Err(Cause::Reset) })
}

impl<'x, C: End, S: End> Tunnel<'x, C, S> {
    fn new(path: &Path<'x>, idle: Duration, notice: &'x Ending, caller: &'x C, service: &'x S) -> Self {
        let shard = path.shard;
        Self {
            shard,
            account: path.account,
            slot: path.service.recorder_slot,
            idle: Idle::new(&shard.clock, shard.deadlines.alarm(), idle),
            recorded: Cell::default(),
            notice,
            caller,
            service,
        }
    }

    /// What ends it from outside of both directions; they have been told then.
    fn poll_over(
        &self,
        silence: std::pin::Pin<&mut impl Future<Output = ()>>,
        (there_ended, back_ended): (bool, bool),
        cx: &mut Context<'_>,
    ) -> Option<Result<(), Failure>> {
        if silence.poll(cx).is_ready() {
            self.shutdown();
            return Some(Err(SILENT));
        }
        if let Poll::Ready(cause) = self.notice.poll(cx) {
            self.shutdown();
            return Some(Err(Failure::downstream(Stage::Authorize, cause)));
        }
        cut_by(self.caller, there_ended, self.service, cx)
            .map(|cut| cut.map_err(|cause| Failure::downstream(Stage::Body, cause)))
            .or_else(|| {
                cut_by(self.service, back_ended, self.caller, cx)
                    .map(|cut| cut.map_err(|cause| Failure::upstream(Stage::Body, cause)))
            })
    }

    /// Polls a direction that has not ended; if it has failed now, ends what is left.
    fn step(
        &self,
        direction: std::pin::Pin<&mut impl Future<Output = Result<(), Failure>>>,
        result: &mut Option<Result<(), Failure>>,
        other: Option<Result<(), Failure>>,
        over: &mut Option<Result<(), Failure>>,
        cx: &mut Context<'_>,
    ) {
        if result.is_some() {
            return;
        }
        let Poll::Ready(ended) = direction.poll(cx) else { return };
        *result = Some(ended);
        if let (Err(ended), None) = (ended, &over) {
            *over = Some(Err(ended));
            match other {
                // The other direction has been told its end in order: a reset now could destroy what was sent last.
                Some(Ok(())) => {}
                _ if ended.cause == Cause::Timeout => self.shutdown(),
                _ => {
                    self.caller.reset();
                    self.service.reset();
                }
            }
        }
    }

    fn shutdown(&self) {
        self.caller.shutdown();
        self.service.shutdown();
    }

    /// One direction, to its end.
    async fn carry(&self, way: Way<impl Source, impl Sink>, from: Side) -> Result<(), Failure> {
        let Way { from: mut source, to: mut sink, early: mut buffer } = way;
        let result = self.pump(&mut source, &mut sink, &mut buffer, from).await;
        self.shard.buffers.give(buffer);
        result
    }

    async fn pump(
        &self,
        source: &mut impl Source,
        sink: &mut impl Sink,
        buffer: &mut Buffer,
        from: Side,
    ) -> Result<(), Failure> {
        let (to, bytes) = match from {
            Side::Upstream => (Side::Downstream, &self.account.response_body_bytes),
            Side::Downstream | Side::Local => (Side::Upstream, &self.account.request_body_bytes),
        };
        let broken = |side, fault| Failure { stage: Stage::Body, side, cause: cause(fault) };
        loop {
            if buffer.is_empty() && !self.fill(source, buffer, from).await? {
                sink.finish().await;
                return Ok(());
            }
            self.moved();
            let was_full = buffer.len() == buffer.capacity();
            sink.write(buffer, &self.idle).await.map_err(|fault| broken(to, fault))?;
            self.moved();
            bytes.set(bytes.get() + buffer.len() as u64);
            self.record(false);
            self.resize(buffer, was_full);
        }
    }

    /// Waits for bytes; `false` at their end. Holds no buffer once it has been quiet for a moment.
    async fn fill(&self, source: &mut impl Source, buffer: &mut Buffer, from: Side) -> Result<bool, Failure> {
        loop {
            if buffer.capacity() == 0 {
                *buffer = self.shard.buffers.take_small().ok_or(SHED)?;
            }
            let hold_until = self.shard.clock.now() + Downstream::HOLD_NS;
            let read = match source.read(buffer, hold_until).await {
                Ok(Waited::Bytes(_)) => return Ok(true),
                Ok(Waited::Closed) => return Ok(false),
                Ok(Waited::Quiet) => {
                    self.shard.buffers.give(std::mem::take(buffer));
                    source.readable().await
                }
                Err(fault) => Err(fault),
            };
            read.map_err(|fault| Failure { stage: Stage::Body, side: from, cause: cause(fault) })?;
        }
    }

    /// Empties a buffer that was written: a large one next when a small one was not enough, and back.
    fn resize(&self, buffer: &mut Buffer, was_full: bool) {
        let is_large = buffer.capacity() >= Buffers::LARGE;
        let other = match (is_large, was_full) {
            // Without memory for that, small and many.
            (false, true) if !self.shard.is_tight() => self.shard.buffers.take_large(),
            (true, _) if buffer.len() <= Buffers::SMALL / 2 || self.shard.is_tight() => {
                self.shard.buffers.take_small()
            }
            _ => None,
        };
        buffer.clear();
        if let Some(other) = other {
            self.shard.buffers.give(std::mem::replace(buffer, other));
        }
    }

    fn moved(&self) {
        let end = self.idle.moved();
        self.caller.write_until(end);
        self.service.write_until(end);
    }

    /// Records bytes about once a second, and those that are left at the end.
    fn record(&self, at_end: bool) {
        const PACE_NS: u64 = 1_000_000_000;
        let (at, request, response) = self.recorded.get();
        let now = self.shard.clock.now();
        if !at_end && now.saturating_sub(at) < PACE_NS {
            return;
        }
        let (request_now, response_now) =
            (self.account.request_body_bytes.get(), self.account.response_body_bytes.get());
        self.recorded.set((now, request_now, response_now));
        self.shard.recorder.borrow_mut().record_bytes(
            self.slot,
            request_now - request,
            response_now - response,
        );
    }
}

impl Source for &mut Reader {
    async fn read(&mut self, buffer: &mut Buffer, hold_until: u64) -> Result<Waited, Fault> {
        self.read_or_quiet(buffer, hold_until).await
    }

    async fn readable(&mut self) -> Result<(), Fault> {
        // Not never: that is what a drain does not cut short.
        self.ready(NEVER - 1).await
    }
}

impl Sink for &mut Writer {
    async fn write(&mut self, buffer: &mut Buffer, idle: &Idle<'_>) -> Result<(), Fault> {
        idle.write_begins();
        let patience = Patience { clock: idle.clock, stall: idle.timeout, until: NEVER - 1 };
        let written = self.write_all(buffer, 0, patience).await;
        idle.write_ends();
        written
    }

    async fn finish(&mut self) {
        Writer::finish(self);
    }
}

impl End for Control {
    fn reset(&self) {
        Self::reset(self);
    }

    fn shutdown(&self) {
        Self::shutdown(self);
    }

    fn enough(&self) {
        Self::shutdown(self);
    }

    fn write_until(&self, deadline: u64) {
        Self::write_until(self, deadline);
    }

    fn poll_cut(&self, _: &mut Context<'_>) -> Poll<Cut> {
        Poll::Pending
    }
}

/// Counts an open tunnel until it is dropped.
struct Counted(Rc<Shard>);

impl Counted {
    fn count(shard: &Rc<Shard>) -> Self {
        shard.totals.tunnels_open.set(shard.totals.tunnels_open.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.totals.tunnels_open.set(self.0.totals.tunnels_open.get() - 1);
    }
}
