//! Bodies that a fault makes slow, and those of responses that it ends too soon: waits until their octets may go. What may go is decided by
//! `route::shape`; which way they go is `relay`'s matter where one side speaks HTTP/2, and is done here where none does.
//!
//! The ordinary way back knows nothing of it but one branch. Refuses to be fast: every part is a write of its own.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::account::Account;
use super::response::{Answer, Held, Way};
use crate::failure::{Cause, Failure, Stage};
use crate::http::Framing;
use crate::http::body::{self, Reframer, TAILROOM};
use crate::io::timed::Alarm;
use crate::io::{Reader, Writer};
use crate::route::shape::{Next, Shape};
use crate::shard::Shard;
use crate::shard::buffers::Buffers;
use crate::shard::clock::ns;

/// Ends a body that is to end too soon. Whoever records the exchange knows that it is no failure.
const TRUNCATED: Failure = Failure::local(Stage::Body, Cause::Closed);

/// Waits until something of a body may go, and says how many octets of `want`.
///
/// # Errors
/// When it ends here, or its time does.
pub(super) async fn grant(
    shape: &Shape,
    shard: &Shard,
    account: &Account,
    alarm: &Alarm,
    deadline: u64,
    stage: Stage,
    want: usize,
) -> Result<usize, Failure> {
    let out_of_time = Failure::local(stage, Cause::Timeout);
    let now = shard.clock.now();
    if now >= deadline {
        return Err(out_of_time);
    }
    match shape.next(want, now) {
        Next::Truncated => Err(TRUNCATED),
        Next::Octets(count, at) if at <= now => Ok(count),
        Next::Octets(count, at) => {
            account.wait(now);
            let _: Option<()> = alarm.until(at.min(deadline), pending()).await;
            let now = shard.clock.now();
            account.waited(now);
            // Hurried, or out of time. Whoever is woken too late is not sent anything that would be cut: the time is ours.
            if now < at || now >= deadline { Err(out_of_time) } else { Ok(count) }
        }
    }
}

/// Lets what was handed to an HTTP/2 connection leave: a reset takes back what has not. The connection's own task has its turn
/// before any timer has.
pub(super) async fn let_leave(shard: &Shard, alarm: &Alarm) {
    const LEAVE: Duration = Duration::from_millis(20);
    let _: Option<()> = alarm.until(shard.clock.after(LEAVE), pending()).await;
}

/// How long a body is, where these fields tell that.
pub(super) fn length_told(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Way<'_> {
    /// What is done on purpose to the body of a response that has one.
    pub(super) fn shape(&self, answer: &Answer) -> Option<&Shape> {
        let shape = self.asked.turn.as_ref()?.shape()?;
        (!matches!(answer.framing, Framing::None | Framing::Length(0))).then_some(shape)
    }

    /// Sends the head that waits in `held.out`, and the body as `shape` lets it. Whether the upstream connection can serve another
    /// exchange.
    pub(super) async fn shaped_body(
        &self,
        shape: &Shape,
        from: &mut Reader,
        to: &mut Writer,
        held: &mut Held,
        answer: &mut Answer,
    ) -> Result<bool, Failure> {
        let (limits, broken) = self.of_body();
        let framing = self.framing_out(answer.framing);
        let alarm = self.path.shard.deadlines.alarm();
        shape.begin(answer.length());
        // The content alone: it is framed part by part.
        let mut reframer =
            Reframer::new(answer.framing, Framing::UntilClose).without_trailers(answer.nominated());
        self.path.in_time()?;
        self.path.account.status.set(answer.status);
        self.send(to, &mut held.out).await?;
        held.out.clear();
        let mut start = answer.head_len as usize;
        loop {
            if held.input.len() > start {
                let next = reframer.reframe(&mut held.input, start, limits).map_err(broken)?;
                let trailers = reframer.typed_trailers(limits).map_err(broken)?;
                let mut piece = Bytes::copy_from_slice(&held.input[next.send]);
                while !piece.is_empty() {
                    let Self { path, .. } = self;
                    // A part and its framing fit a small buffer.
                    let want = piece.len().min(Buffers::SMALL / 2);
                    let granted =
                        grant(shape, path.shard, path.account, &alarm, path.deadline, Stage::Body, want)
                            .await?;
                    let part = piece.split_to(granted);
                    match framing {
                        Framing::Chunked => body::write_chunk(&part, &mut held.out),
                        _ => held.out.extend_from_slice(&part),
                    }
                    self.send_waiting(to, &mut held.out, 0).await?;
                    held.out.clear();
                    self.count(part.len());
                    shape.gone(part.len(), path.shard.clock.now());
                }
                if next.ended {
                    if framing == Framing::Chunked {
                        body::write_typed_trailers(&trailers.unwrap_or_default(), &mut held.out);
                        self.send_waiting(to, &mut held.out, 0).await?;
                    }
                    return Ok(next.rest.is_empty() && answer.keep_alive);
                }
            }
            held.input.clear();
            start = 0;
            let now = self.path.shard.clock.now();
            let stall = now.saturating_add(ns(self.path.service.spec.timeouts.body_stall));
            match self.read(from, &mut held.input, TAILROOM, stall).await {
                Ok(0) if reframer.ends_with_connection() => {
                    if framing == Framing::Chunked {
                        body::write_typed_trailers(&HeaderMap::new(), &mut held.out);
                        self.send_waiting(to, &mut held.out, 0).await?;
                    }
                    return Ok(false);
                }
                Ok(0) => return Err(broken(Cause::Closed)),
                Ok(_) => {}
                Err(fault) => return Err(broken(super::cause(fault))),
            }
        }
    }
}
