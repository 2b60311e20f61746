//! The way back: the response head, interim ones before it, and the body.

use std::cell::Cell;

use super::judge::{FAIL_AT_ONCE, take_wish_out};
use super::{Path, SHED};
use crate::downstream::{Asked, Tunnel};
use crate::failure::{Cause, Failure, Stage};
use crate::http::body::{HEADROOM, Reframer, TAILROOM};
use crate::http::h1::{self, Parsed, ResponseOptions};
use crate::http::{Framing, Method, Version, respond};
use crate::io::timed::OnDeadline;
use crate::io::{Fault, Patience, Reader, Writer};
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::clock::{NEVER, ns};
use crate::snapshot::Limits;
use crate::upstream::service::Attempt;

/// What both ends of the way back share.
pub(super) struct Way<'x> {
    pub(super) path: &'x Path<'x>,
    pub(super) asked: &'x Asked,
    /// Whether all of the request has been sent: a response before that ends the caller's connection.
    pub(super) request_sent: &'x Cell<bool>,
    /// Is told when the service has sent anything: then the request may not be replayed.
    pub(super) attempt: &'x Attempt,
}

/// What is known of a response when its head is there.
pub(super) struct Answer {
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    /// Seconds that the origin says it keeps an idle connection for.
    idle_seconds: Option<u32>,
    /// Whether the caller's connection ends after this response.
    close: bool,
    pub(super) status: u16,
    /// Whether the connection is a tunnel from here on: a 101 that was not asked for never gets here.
    upgrade: bool,
    /// Whether the caller does not get it: there is another attempt.
    withheld: bool,
    pub(super) head_len: u32,
    /// Trailers that concern the last hop only. In a word, because the future of every connection has room for them.
    nominated_trailers: Option<Box<Nominated>>,
}

/// Names of trailers.
struct Nominated(Vec<Box<str>>);

/// How the way back ended well. As little as is needed then: it is in the future of every connection.
pub(super) struct Answered {
    /// Seconds that the origin says it keeps an idle connection for.
    pub(super) idle_seconds: Option<u32>,
    /// Whether the caller's connection ends after this response.
    pub(super) close: bool,
    /// Whether the connection is a tunnel from here on.
    pub(super) upgrade: bool,
    /// Whether nothing of it has gone to the caller, because there is another attempt.
    pub(super) withheld: bool,
    /// Whether the upstream connection can serve another exchange.
    pub(super) reusable: bool,
    /// After an upgrade: a buffer with what came behind the head.
    pub(super) behind: Buffer,
}

/// Carries the response from the service to the caller, head and body.
///
/// # Errors
/// The failure; whether something was sent to the caller stands in the account.
#[expect(clippy::manual_async_fn, reason = "it would have room for its arguments twice")]
pub(super) fn carry<'x>(
    way: &'x Way<'x>,
    from: &'x mut Reader,
    to: &'x mut Writer,
) -> impl Future<Output = Result<Answered, Failure>> + 'x {
    async move {
        // A lane is waited for without one.
        let input = match from.is_lane() {
            true => Buffer::default(),
            false => way.path.shard.buffers.take_small().ok_or(SHED)?,
        };
        let mut held = Held { input, out: Buffer::default() };
        let result = way.carry(from, to, &mut held).await;
        way.path.shard.buffers.give(held.input);
        way.path.shard.buffers.give(held.out);
        result
    }
}

/// The same where so much was read already.
///
/// # Errors
/// As [`carry`].
pub(super) async fn carry_with(
    way: &Way<'_>,
    input: Buffer,
    from: &mut Reader,
    to: &mut Writer,
) -> Result<Answered, Failure> {
    // Without room for it the head would be written to a buffer that is not accounted for.
    let out = way.path.shard.buffers.take_small();
    let mut held = Held { input, out: out.unwrap_or_default() };
    let result = match held.out.capacity() {
        0 => Err(SHED),
        _ => way.carry(from, to, &mut held).await,
    };
    way.path.shard.buffers.give(held.input);
    way.path.shard.buffers.give(held.out);
    result
}

impl Answer {
    /// How long its body is, where that is told.
    pub(super) fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::None | Framing::Chunked | Framing::UntilClose => None,
        }
    }

    /// Names of trailers that concern the last hop only. Once.
    pub(super) fn nominated(&mut self) -> Vec<Box<str>> {
        self.nominated_trailers.take().map_or_else(Vec::new, |names| names.0)
    }

    fn ended(&self, reusable: bool, behind: Buffer) -> Answered {
        let Self { idle_seconds, close, upgrade, withheld, .. } = *self;
        Answered { idle_seconds, close, upgrade, withheld, reusable, behind }
    }
}

/// The buffers of the way back, given back however it ends.
pub(super) struct Held {
    /// What came from the service.
    pub(super) input: Buffer,
    /// What goes to the caller; taken when the service has answered, so that a waiting exchange holds one buffer less.
    pub(super) out: Buffer,
}

impl Way<'_> {
    #[expect(clippy::manual_async_fn, reason = "it would have room for its arguments twice")]
    fn carry<'x>(
        &'x self,
        from: &'x mut Reader,
        to: &'x mut Writer,
        held: &'x mut Held,
    ) -> impl Future<Output = Result<Answered, Failure>> + 'x {
        async move {
            let mut answer = self.head(from, to, held).await?;
            if answer.upgrade {
                self.path.in_time()?;
                self.path.account.status.set(answer.status);
                self.send(to, &mut held.out).await?;
                held.input.drain(..answer.head_len as usize);
                return Ok(answer.ended(false, std::mem::take(&mut held.input)));
            }
            if answer.withheld {
                return Ok(answer.ended(self.is_all_here(held, &answer), Buffer::default()));
            }
            let reusable = match self.shape(&answer) {
                None => self.body(from, to, held, &mut answer).await?,
                // Boxed: hardly any is.
                Some(shape) => Box::pin(self.shaped_body(shape, from, to, held, &mut answer)).await?,
            };
            Ok(answer.ended(reusable, Buffer::default()))
        }
    }

    /// Reads the response head and writes the one for the caller into `held.out`, where it waits for the body.
    async fn head(&self, from: &mut Reader, to: &mut Writer, held: &mut Held) -> Result<Answer, Failure> {
        let limits = &self.asked.view.snapshot.limits;
        let mut interim = 0;
        loop {
            let parsed = if held.input.is_empty() { Parsed::Partial } else { self.read_head(to, held) };
            match parsed {
                Parsed::Whole(answer) if answer.status < 200 && !answer.upgrade => {
                    interim += 1;
                    if interim > limits.interim_responses_max {
                        return Err(Failure::upstream(Stage::Response, Cause::TooManyInterim));
                    }
                    held.input.drain(..answer.head_len as usize);
                    // HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
                    if self.asked.version == Version::Http11 {
                        self.path.in_time()?;
                        self.send(to, &mut held.out).await?;
                    }
                    held.out.clear();
                }
                Parsed::Whole(answer) => return Ok(answer),
                Parsed::Refused(cause) => return Err(Failure::upstream(Stage::Response, cause)),
                // A lane: see `carry`.
                Parsed::Partial if held.input.capacity() == 0 => self.first_of_lane(from, held).await?,
                Parsed::Partial => self.more_head(from, held).await?,
            }
        }
    }

    /// How the caller is told the end of a body that ends for the service in this way.
    pub(super) fn framing_out(&self, framing: Framing) -> Framing {
        match (framing, self.asked.version) {
            (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
            (framing, _) => framing,
        }
    }

    fn read_head(&self, to: &Writer, held: &mut Held) -> Parsed<Answer> {
        // Sent in the hope of a tunnel, before the answer to that: not to be read as a request.
        let hoped = self.asked.tunnel.is_some() && to.has_unread();
        let limits = &self.asked.view.snapshot.limits;
        let Held { input, out } = held;
        let then = |response: &h1::Response<'_>| {
            let has_wish = self.attempt.is_probed() && response.has_field(FAIL_AT_ONCE);
            if has_wish {
                self.attempt.wants_to_be_left();
            }
            let framing_out = self.framing_out(response.framing);
            let close = !self.asked.keep_alive
                || hoped
                || !self.request_sent.get()
                || self.path.shard.is_draining()
                || framing_out == Framing::UntilClose;
            let connected = self.asked.is_connect() && (200..300).contains(&response.status);
            let head_at = out.len();
            let withheld = self.asked.tunnel.is_none() && self.path.withholds_h1(response);
            if withheld {
                // Nothing is written.
            } else if connected {
                respond::write_connected(&self.path.shard.clock, out);
            } else {
                let options = ResponseOptions { version: self.asked.version, framing: framing_out, close };
                h1::write_response_head(response, options, &self.path.shard.clock, out);
                if has_wish {
                    take_wish_out(out, head_at);
                }
                if let Some(turn) =
                    self.asked.turn.as_ref().filter(|_| matches!(response.status, 101 | 200..))
                {
                    turn.apply_to_response(out, head_at, response.status);
                }
                if let Some(minted) = self.path.account.minted().filter(|_| !response.is_interim()) {
                    h1::add_field("set-cookie", minted.as_str().as_bytes(), out);
                }
            }
            Answer {
                framing: response.framing,
                keep_alive: response.keep_alive,
                idle_seconds: response.idle_seconds.map(|s| u32::try_from(s).unwrap_or(u32::MAX)),
                close,
                status: if connected { 200 } else { response.status },
                upgrade: connected || response.status == 101,
                withheld,
                // Never more than a large buffer.
                head_len: response.head_len as u32,
                nominated_trailers: Some(response.nominated_trailers())
                    .filter(|names| !names.is_empty())
                    .map(|names| Box::new(Nominated(names))),
            }
        };
        match self.asked.tunnel.as_deref() {
            Some(Tunnel::WebSocket(accept)) => h1::read_handshake_response(input, limits, accept, then),
            Some(Tunnel::Connect) | None => h1::read_response(input, limits, self.asked.method, then),
        }
    }

    async fn more_head(&self, from: &mut Reader, held: &mut Held) -> Result<(), Failure> {
        let mut keep_free = TAILROOM;
        if held.input.len() + TAILROOM >= held.input.capacity() {
            if held.input.capacity() < Buffers::LARGE {
                // A head larger than a small buffer: rare enough to be moved.
                let mut large = self.path.shard.buffers.take_large().ok_or(SHED)?;
                large.extend_from_slice(&held.input);
                self.path.shard.buffers.give(std::mem::replace(&mut held.input, large));
            } else if held.input.len() < held.input.capacity() {
                // The largest head fills the buffer. A chunk's end that comes with it makes the buffer grow.
                keep_free = 0;
            } else {
                return Err(Failure::upstream(Stage::Response, Cause::HeadTooLarge));
            }
        }
        match self.read(from, &mut held.input, keep_free, self.patience()).await {
            Ok(0) => Err(Failure::upstream(Stage::Response, Cause::Closed)),
            Ok(_) => {
                let now = self.path.shard.clock.now();
                if self.attempt.answers(now) {
                    self.path.account.answered(now);
                }
                if held.out.capacity() == 0 {
                    held.out = self.path.shard.buffers.take_small().ok_or(SHED)?;
                }
                Ok(())
            }
            Err(fault) => Err(Failure::upstream(Stage::Response, super::cause(fault))),
        }
    }

    /// Until when the service may be waited for.
    fn patience(&self) -> u64 {
        match self.request_sent.get() {
            true => self.path.shard.clock.now().saturating_add(self.path.patience_ns()),
            // Begins when the request has been sent: see `Control::read_by`.
            false => NEVER,
        }
    }

    /// Waits, without a buffer, until a lane has brought something.
    async fn first_of_lane(&self, from: &mut Reader, held: &mut Held) -> Result<(), Failure> {
        self.path.account.wait(self.path.shard.clock.now());
        let ready = from.lane_ready(self.patience().min(self.path.deadline)).await;
        self.path.account.waited(self.path.shard.clock.now());
        ready.map_err(|fault| Failure::upstream(Stage::Response, super::cause(fault)))?;
        self.path.shard.cohort.regroup().await;
        held.input = self.path.shard.buffers.take_small().ok_or(SHED)?;
        Ok(())
    }

    /// What a body is held against, and what is wrong with one that does not hold.
    pub(super) fn of_body(&self) -> (&Limits, fn(Cause) -> Failure) {
        (&self.asked.view.snapshot.limits, |cause| Failure::upstream(Stage::Body, cause))
    }

    /// Sends the head that waits in `held.out` with as much of the body as is there, then the rest. Whether the
    /// upstream connection can serve another exchange.
    async fn body(
        &self,
        from: &mut Reader,
        to: &mut Writer,
        held: &mut Held,
        answer: &mut Answer,
    ) -> Result<bool, Failure> {
        let (limits, broken) = self.of_body();
        let mut reframer = Reframer::new(answer.framing, self.framing_out(answer.framing))
            .without_trailers(answer.nominated());
        let first = reframer.reframe(&mut held.input, answer.head_len as usize, limits).map_err(broken)?;
        let together = held.out.len() + first.send.len() <= held.out.capacity();
        if together {
            // Head and short body leave in one write.
            held.out.extend_from_slice(&held.input[first.send.clone()]);
        }
        if !together {
            held.input.truncate(first.send.end);
        }
        reframer
            .take_trailers(limits, if together { &mut held.out } else { &mut held.input })
            .map_err(broken)?;
        // Only now: what is wrong with the front of the body can still be answered with 502, and what comes too late with 504.
        self.path.in_time()?;
        self.path.account.status.set(answer.status);
        self.send(to, &mut held.out).await?;
        if !together {
            self.send_waiting(to, &mut held.input, first.send.start).await?;
        }
        self.count(first.content);
        let mut clean = first.rest.is_empty();
        if !reframer.is_ended() {
            self.path.shard.buffers.give(std::mem::take(&mut held.out));
            clean &= self.rest_of_body(from, to, &mut held.input, &mut reframer).await?;
        }
        Ok(clean && answer.keep_alive && answer.framing != Framing::UntilClose)
    }

    /// Whether all of a response that is not passed on has come, and nothing else, so that its connection can be used again: no
    /// time is spent on waiting for the rest.
    fn is_all_here(&self, held: &mut Held, answer: &Answer) -> bool {
        let limits = &self.asked.view.snapshot.limits;
        let mut reframer = Reframer::new(answer.framing, Framing::UntilClose);
        let there = reframer.reframe(&mut held.input, answer.head_len as usize, limits);
        there.is_ok_and(|there| there.ended && there.rest.is_empty()) && answer.keep_alive
    }

    /// Carries what is left of a body; whether nothing came behind it.
    async fn rest_of_body(
        &self,
        from: &mut Reader,
        to: &mut Writer,
        held: &mut Buffer,
        reframer: &mut Reframer,
    ) -> Result<bool, Failure> {
        let (limits, broken) = self.of_body();
        loop {
            self.path.shard.empty_for_body(held, reframer.left());
            held.resize(HEADROOM, 0);
            let stall =
                self.path.shard.clock.now().saturating_add(ns(self.path.service.spec.timeouts.body_stall));
            match self.read(from, held, TAILROOM, stall).await {
                Ok(0) if reframer.ends_with_connection() => {
                    held.clear();
                    reframer.finish(held);
                    self.send_waiting(to, held, 0).await?;
                    return Ok(false);
                }
                Ok(0) => return Err(broken(Cause::Closed)),
                Ok(_) => {}
                Err(fault) => return Err(broken(super::cause(fault))),
            }
            let next = reframer.reframe(held, HEADROOM, limits).map_err(broken)?;
            let clean = next.rest.is_empty();
            held.truncate(next.send.end);
            reframer.take_trailers(limits, held).map_err(broken)?;
            self.send_waiting(to, held, next.send.start).await?;
            self.count(next.content);
            if next.ended {
                return Ok(clean);
            }
        }
    }

    /// Reads from the service: a wait for a peer. Bytes of a body need [`TAILROOM`] kept free behind them.
    pub(super) async fn read(
        &self,
        from: &mut Reader,
        buffer: &mut Vec<u8>,
        keep_free: usize,
        patience: u64,
    ) -> Result<usize, Fault> {
        self.path.account.wait(self.path.shard.clock.now());
        let deadline = patience.min(self.path.deadline);
        let keep_free = self.path.shard.keeps_free(buffer, buffer.capacity()).max(keep_free);
        let read = from.read(buffer, keep_free, deadline, OnDeadline::Shutdown).await;
        self.path.account.waited(self.path.shard.clock.now());
        read
    }

    /// Sends a head (with what is there of the body): the proxy's own time.
    pub(super) async fn send(&self, to: &mut Writer, out: &mut Vec<u8>) -> Result<(), Failure> {
        let stall = self.asked.view.snapshot.timeouts.body_stall;
        let patience = Patience { clock: &self.path.shard.clock, stall, until: self.path.deadline };
        let result = to.write_all(out, 0, patience).await;
        result.map_err(|fault| Failure::downstream(Stage::Body, super::cause(fault)))
    }

    /// Sends a part of a long body: how long that takes is the caller's doing.
    pub(super) async fn send_waiting(
        &self,
        to: &mut Writer,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), Failure> {
        let stall = self.asked.view.snapshot.timeouts.body_stall;
        let patience = Patience { clock: &self.path.shard.clock, stall, until: self.path.deadline };
        self.path.account.wait(self.path.shard.clock.now());
        let result = to.write_all(out, start, patience).await;
        self.path.account.waited(self.path.shard.clock.now());
        result.map_err(|fault| Failure::downstream(Stage::Body, super::cause(fault)))
    }

    pub(super) fn count(&self, content: usize) {
        let bytes = &self.path.account.response_body_bytes;
        bytes.set(bytes.get() + content as u64);
    }
}

/// Whether a cut body is recognised as cut when the connection just closes: not when it ends with the connection.
pub(super) fn needs_reset(asked: &Asked) -> bool {
    asked.version == Version::Http10 && asked.method != Method::Head
}
