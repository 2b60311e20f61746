//! Tunnels: a connection that is bytes from here on, after a WebSocket handshake ([`upgraded`]) or CONNECT ([`connect`]).
//!
//! [`run`] carries the bytes, whatever the ends are: anything that has a [`Source`], a [`Sink`] and an [`End`]. Each
//! direction ends alone, so that half-close passes through; a reset of one side resets the other. The route's timeout and
//! the service's have no say any more: only silence in both directions ends a tunnel (`Route::tunnel_idle`). While the
//! proxy drains a tunnel goes on until `timeouts.drain` ends the process: no close frame is made here, because that would
//! need to know where frames begin. A tunnel at rest holds no buffer; one at work at most one per direction, because
//! what was read is written before more is read.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use super::account::Account;
use super::connect::{To, Tried};
use super::{Fate, Path, Settled, cause};
use crate::downstream::{self, Asked, Downstream};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::respond;
use crate::io::idle::Idle;
use crate::io::{Connection, Control, Fault, Patience, Reader, Waited, Writer};
use crate::shard::Shard;
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::clock::NEVER;
use crate::shard::live::{Kind, Notice};
use crate::upstream::pool::Pooled;
use crate::upstream::service::Attempt;

/// Serves a CONNECT that the route allows: a connection to the service, whatever the target says, and the answer once
/// that stands. Nothing that the caller sent behind its head has left before.
pub(super) async fn connect(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
) -> Result<Settled, Failure> {
    let Path { shard, account, .. } = path;
    // Never a pooled one: what stands behind it may not be HTTP.
    let (attempt, to) = path.connect(&mut Tried::new(), true).await?;
    let pooled = match to {
        To::H1(pooled) => pooled,
        To::H2(_) => return Err(Failure::upstream(Stage::Connect, Cause::MethodRefused)),
    };
    account.first_byte_at.set(shard.clock.now());
    let mut answer = shard.buffers.take_small().ok_or(SHED)?;
    respond::write_connected(&shard.clock, &mut answer);
    let stall = asked.view.snapshot.timeouts.body_stall;
    let patience = Patience { clock: &shard.clock, stall, until: path.deadline };
    account.status.set(200);
    let told = downstream.connection.writer.write_all(&mut answer, 0, patience).await;
    shard.buffers.give(answer);
    told.map_err(|fault| Failure::downstream(Stage::Body, cause(fault)))?;
    Ok(Settled::Tunnel(Box::new(Agreed { attempt, pooled, behind: Buffer::default() })))
}

/// What a tunnel begins with.
pub(super) struct Agreed {
    /// Lasts as long as the tunnel: its endpoint is busy.
    pub(super) attempt: Attempt,
    pub(super) pooled: Pooled,
    /// What came behind the service's head, in a buffer of the shard.
    pub(super) behind: Buffer,
}

/// Both sides have agreed: bytes from here on. Those that came behind the caller's head lie in its input.
pub(super) async fn upgraded(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    agreed: Box<Agreed>,
) -> Result<Fate, Failure> {
    let Agreed { attempt, mut pooled, behind } = *agreed;
    attempt.goes_on(path.shard.clock.now());
    // The log will want the head: a copy of its size, so that a tunnel does not hold a buffer for that.
    let notice = Rc::new(Notice::default());
    let ask_again =
        downstream::ask_again(downstream.input[..asked.head_len].into(), asked.view.snapshot.limits.clone());
    let _listed = path.shard.live.list(downstream.as_open(Kind::Tunnel(ask_again, Rc::clone(&notice))));
    let mut head = Buffer::default();
    head.extend_from_slice(&downstream.input[..asked.head_len]);
    downstream.input.drain(..asked.head_len);
    let early = std::mem::replace(&mut downstream.input, head);
    let (caller, service) = (downstream.connection.control(), pooled.connection.control());
    let idle = asked.route.and_then(|id| asked.view.snapshot.routes.routes().get(id as usize));
    let tunnel = Tunnel {
        shard: path.shard,
        account: path.account,
        slot: path.service.recorder_slot,
        idle: Idle::new(
            &path.shard.clock,
            path.shard.deadlines.alarm(),
            idle.map_or(std::time::Duration::MAX, |route| route.tunnel_idle),
        ),
        recorded: Cell::default(),
        notice: &notice,
        caller: &caller,
        service: &service,
    };
    let Connection { reader, writer, .. } = &mut downstream.connection;
    let Connection { reader: upstream_reader, writer: upstream_writer, .. } = &mut pooled.connection;
    let there = Way { from: reader, to: upstream_writer, early };
    let back = Way { from: upstream_reader, to: writer, early: behind };
    run(&tunnel, there, back).await.map(|()| Fate::Close)
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

    /// Something moved elsewhere: a write in flight that has a deadline of its own has until then.
    fn write_until(&self, deadline: u64);
}

/// One direction. `early` is a buffer of the shard, or empty: bytes that go before all others.
pub(super) struct Way<S, K> {
    pub(super) from: S,
    pub(super) to: K,
    pub(super) early: Buffer,
}

/// What both directions share.
pub(super) struct Tunnel<'x, C, S> {
    pub(super) shard: &'x Rc<Shard>,
    pub(super) account: &'x Account,
    /// Where bytes are counted while it lives.
    pub(super) slot: u32,
    pub(super) idle: Idle<'x>,
    /// When bytes were recorded last, and how many of each direction have been.
    pub(super) recorded: Cell<(u64, u64, u64)>,
    /// What tells that it may not go on.
    pub(super) notice: &'x Notice,
    pub(super) caller: &'x C,
    pub(super) service: &'x S,
}

/// Carries bytes both ways until both are done.
///
/// # Errors
/// What ended it before that: a fault of either side (both ends have been reset), silence (both are shut down), no memory.
pub(super) async fn run<C: End, S: End>(
    tunnel: &Tunnel<'_, C, S>,
    there: Way<impl Source, impl Sink>,
    back: Way<impl Source, impl Sink>,
) -> Result<(), Failure> {
    let _open = Counted::count(tunnel.shard);
    tunnel.account.tunnel_begins(tunnel.shard.clock.now());
    let mut there = pin!(tunnel.carry(there, Side::Downstream));
    let mut back = pin!(tunnel.carry(back, Side::Upstream));
    let mut silence = pin!(tunnel.idle.run_out());
    let (mut there_result, mut back_result, mut failure) = (None, None, None);
    // No direction is dropped in flight: what must end is ended from outside, and then awaited.
    poll_fn(|cx| {
        if failure.is_none() && silence.as_mut().poll(cx).is_ready() {
            failure = Some(SILENT);
            tunnel.shutdown();
        }
        if failure.is_none()
            && let Poll::Ready(cause) = tunnel.notice.poll(cx)
        {
            failure = Some(Failure::downstream(Stage::Authorize, cause));
            tunnel.shutdown();
        }
        // Twice, because what ends the second direction may be the first.
        for _ in 0..2 {
            tunnel.step(there.as_mut(), &mut there_result, back_result, &mut failure, cx);
            tunnel.step(back.as_mut(), &mut back_result, there_result, &mut failure, cx);
        }
        if there_result.is_some() && back_result.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    tunnel.account.waited(tunnel.shard.clock.now());
    tunnel.record(true);
    failure.map_or(Ok(()), Err)
}

/// Nothing has moved for `tunnel_idle`.
const SILENT: Failure = Failure::local(Stage::Body, Cause::Timeout);

impl<C: End, S: End> Tunnel<'_, C, S> {
    /// Polls a direction that has not ended; if it has failed now, ends what is left.
    fn step(
        &self,
        direction: std::pin::Pin<&mut impl Future<Output = Result<(), Failure>>>,
        result: &mut Option<Result<(), Failure>>,
        other: Option<Result<(), Failure>>,
        failure: &mut Option<Failure>,
        cx: &mut std::task::Context<'_>,
    ) {
        if result.is_some() {
            return;
        }
        let Poll::Ready(ended) = direction.poll(cx) else { return };
        *result = Some(ended);
        if let (Err(ended), None) = (ended, &failure) {
            *failure = Some(ended);
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
            (false, true) => self.shard.buffers.take_large(),
            (true, false) if buffer.len() <= Buffers::SMALL / 2 => self.shard.buffers.take_small(),
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

    fn write_until(&self, deadline: u64) {
        Self::write_until(self, deadline);
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
