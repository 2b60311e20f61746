//! The way there of a request whose body is not whole yet: head and body are passed on as they come.

use std::cell::Cell;

use super::account::Account;
use super::kept::Kept;
use super::shaped;
use crate::downstream::Asked;
use crate::failure::{Cause, Failure, Stage};
use crate::http::body::{HEADROOM, Reframer, TAILROOM};
use crate::io::{Patience, Reader, Writer};
use crate::route::shape::Shape;
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::shard::clock::ns;
use crate::upstream::spec;

/// What the way there needs.
pub(super) struct Way<'x> {
    pub(super) shard: &'x Shard,
    pub(super) asked: &'x Asked,
    pub(super) account: &'x Account,
    pub(super) service: &'x spec::Service,
    /// When the exchange must have ended.
    pub(super) deadline: u64,
    /// Set when all has been sent.
    pub(super) sent: &'x Cell<bool>,
    /// Set when the way back has ended: the rest of the request is of no use. Cancelling a read in flight does not tell
    /// whoever was just not reading.
    pub(super) over: &'x Cell<bool>,
}

/// Carries the request from the caller to the service. `input` holds the caller's bytes behind the head; what is left in
/// it afterwards belongs to the next request.
///
/// # Errors
/// The failure, and with it which side it is on: a service that takes no more may still have answered.
pub(super) async fn carry(
    way: &Way<'_>,
    from: &mut Reader,
    to: &mut Writer,
    head: &mut Vec<u8>,
    input: &mut Vec<u8>,
    kept: &mut Kept<'_>,
) -> Result<(), Failure> {
    let Some(mut held) = way.shard.take_for_body(u64::MAX) else {
        return Err(Failure::local(Stage::Request, Cause::Overloaded));
    };
    let result = way.carry(from, to, head, input, &mut held, kept).await;
    way.shard.buffers.give(held);
    result
}

impl Way<'_> {
    async fn carry(
        &self,
        from: &mut Reader,
        to: &mut Writer,
        head: &mut Vec<u8>,
        input: &mut Vec<u8>,
        held: &mut Buffer,
        kept: &mut Kept<'_>,
    ) -> Result<(), Failure> {
        // The head stays as it is, for another attempt.
        let head_len = head.len();
        let mut head_is_sent = false;
        let mut reframer = Reframer::new(self.asked.framing, self.asked.framing)
            .without_trailers(self.asked.nominated_trailers());
        let shape = self.asked.turn.as_ref().and_then(|turn| turn.request_shape());
        if input.is_empty() || shape.is_some() {
            // The caller may be waiting for a 100 before it sends more.
            head_is_sent = true;
            self.send(to, head, 0).await?;
        }
        while !reframer.is_ended() {
            self.shard.empty_for_body(held, reframer.left());
            held.resize(HEADROOM, 0);
            if self.over.get() {
                return Err(Failure::downstream(Stage::Request, Cause::Closed));
            }
            if input.is_empty() {
                self.more_body(from, held).await?;
                if self.over.get() {
                    // Came just when the read was cancelled: for another attempt.
                    input.extend_from_slice(&held[HEADROOM..]);
                    return Err(Failure::downstream(Stage::Request, Cause::Closed));
                }
                kept.read(&held[HEADROOM..]);
            } else {
                let there = input.len().min(held.capacity() - HEADROOM - TAILROOM);
                held.extend_from_slice(&input[..there]);
                input.drain(..there);
            }
            kept.passed_on();
            let start = self.reframe(&mut reframer, held, input)?;
            if !std::mem::replace(&mut head_is_sent, true) {
                let together = head.len() + (held.len() - start) <= head.capacity();
                if together {
                    head.extend_from_slice(&held[start..]);
                    held.clear();
                }
                let sent = self.send(to, head, 0).await;
                head.truncate(head_len);
                sent?;
                if together {
                    continue;
                }
            }
            match shape {
                None => self.send(to, held, start).await?,
                // Boxed: hardly any is.
                Some(shape) => Box::pin(self.send_shaped(shape, to, &held[start..])).await?,
            }
        }
        self.sent.set(true);
        self.account.mirror_whole(true);
        Ok(())
    }

    /// Reframes what is in `held` behind the headroom and leaves it to be sent from the offset returned; what belongs
    /// to the next request goes to the front of `input`.
    fn reframe(
        &self,
        reframer: &mut Reframer,
        held: &mut Vec<u8>,
        input: &mut Vec<u8>,
    ) -> Result<usize, Failure> {
        let limits = &self.asked.view.snapshot.limits;
        let broken = |cause| Failure::downstream(Stage::Request, cause);
        let next = reframer.reframe(held, HEADROOM, limits).map_err(broken)?;
        input.splice(0..0, held[next.rest.clone()].iter().copied());
        held.truncate(next.send.end);
        reframer.take_trailers(limits, held).map_err(broken)?;
        let bytes = self.account.request_body_bytes.get() + next.content as u64;
        self.account.request_body_bytes.set(bytes);
        if limits.body_bytes_max > 0 && bytes > limits.body_bytes_max {
            return Err(broken(Cause::BodyTooLarge));
        }
        Ok(next.send.start)
    }

    async fn more_body(&self, from: &mut Reader, held: &mut Vec<u8>) -> Result<(), Failure> {
        let stall = self.shard.clock.now().saturating_add(ns(self.asked.view.snapshot.timeouts.body_stall));
        self.account.wait(self.shard.clock.now());
        let keep_free = self.shard.keeps_free(held, held.capacity()).max(TAILROOM);
        let result = from.read_cancelable(held, keep_free, stall.min(self.deadline)).await;
        self.account.waited(self.shard.clock.now());
        let cause = match result {
            Ok(0) => Cause::Closed,
            Ok(_) => return Ok(()),
            Err(fault) => super::cause(fault),
        };
        Err(Failure::downstream(Stage::Request, cause))
    }

    /// Sends a part of the body as a fault lets it, octets of its framing included.
    async fn send_shaped(&self, shape: &Shape, to: &mut Writer, mut left: &[u8]) -> Result<(), Failure> {
        let Self { shard, account, deadline, .. } = *self;
        let alarm = shard.deadlines.alarm();
        let mut part = Vec::new();
        while !left.is_empty() {
            let count =
                shaped::grant(shape, shard, account, &alarm, deadline, Stage::Request, left.len()).await?;
            if self.over.get() {
                return Err(Failure::downstream(Stage::Request, Cause::Closed));
            }
            part.clear();
            part.extend_from_slice(&left[..count]);
            self.send(to, &mut part, 0).await?;
            shape.gone(count, shard.clock.now());
            left = &left[count..];
        }
        Ok(())
    }

    async fn send(&self, to: &mut Writer, out: &mut Vec<u8>, start: usize) -> Result<(), Failure> {
        let stall = self.service.timeouts.body_stall;
        let patience = Patience { clock: &self.shard.clock, stall, until: self.deadline };
        self.account.wait(self.shard.clock.now());
        let result = to.write_all(out, start, patience).await;
        self.account.waited(self.shard.clock.now());
        result.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))
    }
}
