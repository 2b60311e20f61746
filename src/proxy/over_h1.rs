//! A request that came by HTTP/2, to a service that speaks HTTP/1.1: the counterpart of `over_h2`.

use std::cell::{Cell, RefCell};
use std::pin::pin;

use http::{Response, StatusCode};

use super::again::Missed;
use super::from_h2::Call;
use super::judge::{self, note_wish};
use super::kept::Upload;
use super::relay::unless_reset;
use super::{First, SHED, both, hedge, idle};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::Framing;
use crate::http::body::{Reframer, TAILROOM};
use crate::http::h1::{self, Parsed};
use crate::http::h2 as message;
use crate::http::websocket::Accept;
use crate::io::timed::{Alarm, OnDeadline};
use crate::io::{Connection, Patience};
use crate::shard::buffers::Buffer;
use crate::shard::clock::NEVER;
use crate::upstream::pool::Pooled;
use crate::upstream::service::Attempt;

impl Call<'_> {
    /// To a service that speaks HTTP/1.1.
    pub(super) async fn to_h1(
        &self,
        body: &mut Upload<'_>,
        mut pooled: Pooled,
        attempt: &Attempt,
    ) -> Result<(), Missed> {
        let shard = self.path.shard;
        let shed = Failure::local(Stage::Request, Cause::Overloaded);
        let mut out = shard.buffers.take_small().ok_or(shed)?;
        message::write_h1(self.parts, self.facts, &self.forwarding(), &mut out);
        if let Some(turn) = self.turn {
            turn.apply_to_request(&mut out);
        }
        self.path.tell_attempt(&mut out, 0);
        let Some(mut input) = shard.buffers.take_small() else {
            shard.buffers.give(out);
            return Err(SHED.into());
        };
        let result = self.over_h1(body, &mut pooled, &mut out, &mut input, attempt).await;
        shard.buffers.give(out);
        shard.buffers.give(input);
        let done = result?;
        let withheld = done.withheld;
        self.done_with_h1(done, pooled, attempt);
        if withheld { Err(Missed::Again) } else { Ok(()) }
    }

    pub(super) fn done_with_h1(&self, done: Done, pooled: Pooled, attempt: &Attempt) {
        if done.reusable {
            let limits = &self.path.service.spec.pool;
            attempt.pool().checkin(pooled, limits, done.idle_seconds, self.path.shard.clock.now());
        }
    }

    async fn over_h1(
        &self,
        body: &mut Upload<'_>,
        pooled: &mut Pooled,
        out: &mut Buffer,
        input: &mut Buffer,
        attempt: &Attempt,
    ) -> Result<Done, Failure> {
        if self.facts.framing != Framing::None {
            // Boxed: two directions are much state, which most requests do not need.
            return Box::pin(self.both_h1(body, pooled, out, input, attempt)).await;
        }
        let shard = self.path.shard;
        let origin = pooled.connection.control();
        let Connection { reader, writer, .. } = &mut pooled.connection;
        let alarm = shard.deadlines.alarm();
        let stall = self.path.service.spec.timeouts.body_stall;
        let patience = Patience { clock: &shard.clock, stall, until: self.path.deadline };
        let sent = writer.write_all(out, 0, patience).await;
        // For others, while this one waits.
        shard.buffers.give(std::mem::take(out));
        sent.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
        match self.view.snapshot.timeouts.stream_idle {
            None if !self.path.hedges() => {
                self.back_from_h1(reader, &origin, input, &alarm, &Cell::new(true), attempt).await
            }
            // Boxed: seldom wanted.
            _ => Box::pin(self.back_unless_idle_h1(reader, &origin, input, &alarm, attempt)).await,
        }
    }

    /// The way back, where an exchange may not lie still for long, or may be hedged.
    async fn back_unless_idle_h1(
        &self,
        reader: &mut crate::io::Reader,
        origin: &crate::io::Control,
        input: &mut Buffer,
        alarm: &Alarm,
        attempt: &Attempt,
    ) -> Result<Done, Failure> {
        let sent = Cell::new(true);
        let back = pin!(self.back_from_h1(reader, origin, input, alarm, &sent, attempt));
        let hurry = || {
            origin.read_by(0);
            alarm.by(0);
        };
        let idle = self.view.snapshot.timeouts.stream_idle;
        let connections = [origin];
        let back = pin!(idle::unless_idle(&self.path, idle, &sent, &connections, hurry, back));
        let copy = || self.copied(None);
        hedge::unless_won(&self.path, &sent, hurry, copy, self.view, back).await
    }

    /// Both directions at once.
    async fn both_h1(
        &self,
        body: &mut Upload<'_>,
        pooled: &mut Pooled,
        out: &mut Buffer,
        input: &mut Buffer,
        attempt: &Attempt,
    ) -> Result<Done, Failure> {
        let shard = self.path.shard;
        let origin = pooled.connection.control();
        let Connection { reader, writer, .. } = &mut pooled.connection;
        let alarm = shard.deadlines.alarm();
        let there_alarm = shard.deadlines.alarm();
        let there = self.there(&there_alarm);
        let (sent, whole) = (Cell::new(false), Cell::new(None));
        attempt.uploads();
        let back = pin!(self.back_from_h1(reader, &origin, input, &alarm, &sent, attempt));
        let there = pin!(async {
            if !body.is_there() {
                // The head does not wait for the body: the service may have to say that it wants it.
                let patience =
                    Patience { clock: &shard.clock, stall: there.write_stall, until: self.path.deadline };
                let head = writer.write_all(out, 0, patience).await;
                out.clear();
                head.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
            }
            let result = there.h2_to_h1(body, writer, self.facts.framing, out).await;
            if result.is_ok() && self.path.hedges() {
                let body = body.whole();
                self.path.account.stays_alone.set(body.is_none());
                whole.set(body);
            }
            sent.set(result.is_ok());
            self.path.account.mirror_whole(result.is_ok());
            attempt.uploaded(shard.clock.now());
            result
        });
        let answer_by = || shard.clock.now().saturating_add(self.path.patience_ns());
        let both = pin!(both(there, back, |first| match first {
            First::There(Err(failure)) if failure.side != Side::Upstream => origin.shutdown(),
            First::There(_) if self.path.account.status.get() == 0 => origin.read_by(answer_by()),
            First::There(_) => {}
            First::Back => {
                there_alarm.by(0);
                origin.shutdown();
            }
        }));
        let idle = self.view.snapshot.timeouts.stream_idle;
        let hurry = || {
            origin.read_by(0);
            alarm.by(0);
            there_alarm.by(0);
        };
        let connections = [&origin];
        let both = pin!(idle::unless_idle(&self.path, idle, &sent, &connections, hurry, both));
        let copy = || self.copied(whole.take().as_ref());
        let (there_result, back_result, back_was_first) =
            hedge::unless_won(&self.path, &sent, || origin.read_by(0), copy, self.view, both).await;
        match (there_result, back_result) {
            (Ok(()), Ok(done)) if !back_was_first => Ok(done),
            (_, Ok(done)) => Ok(Done { reusable: false, ..done }),
            (there, Err(back)) => {
                let is_late = !sent.get() && shard.clock.now() >= self.path.deadline;
                Err(judge::of_both(&there, back, back_was_first, is_late))
            }
        }
    }

    pub(super) async fn back_from_h1(
        &self,
        from: &mut crate::io::Reader,
        origin: &crate::io::Control,
        input: &mut Buffer,
        alarm: &Alarm,
        sent: &Cell<bool>,
        attempt: &Attempt,
    ) -> Result<Done, Failure> {
        let (head, reset) = unless_reset(
            |cx| self.respond.borrow_mut().poll_reset(cx),
            || origin.shutdown(),
            self.head_from_h1(from, input, sent, attempt, None),
        )
        .await;
        if reset {
            return Err(Failure::downstream(Stage::Response, Cause::StreamReset));
        }
        let mut answer = head?;
        if self.path.withholds_typed(&answer.head) {
            return Ok(self.withheld(&answer, input));
        }
        self.pass_on_from_h1(&mut answer, from, origin, input, alarm).await
    }

    /// A response that is not passed on. Its connection can be used again when all of it has come, and nothing else: no time is
    /// spent on waiting for the rest.
    fn withheld(&self, answer: &Answer, input: &mut Buffer) -> Done {
        let mut reframer = Reframer::new(answer.framing, Framing::UntilClose);
        let there = reframer.reframe(input, answer.head_len, &self.view.snapshot.limits);
        let clean = there.is_ok_and(|there| there.ended && there.rest.is_empty());
        Done { reusable: clean && answer.keep_alive, withheld: true, idle_seconds: answer.idle_seconds }
    }

    /// Passes a response on, head and body.
    pub(super) async fn pass_on_from_h1(
        &self,
        answer: &mut Answer,
        from: &mut crate::io::Reader,
        origin: &crate::io::Control,
        input: &mut Buffer,
        alarm: &Alarm,
    ) -> Result<Done, Failure> {
        self.path.in_time()?;
        let (mut parts, ()) = std::mem::take(&mut answer.head).into_parts();
        let adopted = self.path.account.note_head(&mut parts, self.facts.grpc);
        answer.keep_alive &= !adopted;
        if let Some(turn) = self.turn {
            turn.apply_to_response_parts(&mut parts);
        }
        self.path.account.mint(&mut parts.headers);
        let status = parts.status.as_u16();
        let mut reframer = Reframer::new(answer.framing, Framing::UntilClose)
            .without_trailers(std::mem::take(&mut answer.nominated_trailers));
        let ended = adopted || matches!(answer.framing, Framing::None | Framing::Length(0));
        self.caller.repeats.borrow_mut().mark(&mut parts.headers);
        let begun = self.respond.borrow_mut().send_response(Response::from_parts(parts, ()), ended);
        let to = RefCell::new(begun.map_err(|_| Failure::downstream(Stage::Body, Cause::StreamReset))?);
        self.path.account.status.set(status);
        let mut clean = input.len() == answer.head_len;
        if !ended {
            let back = self.back(alarm);
            if let Some(shape) = back.shape {
                shape.begin(answer.length());
            }
            let (result, reset) = unless_reset(
                |cx| to.borrow_mut().poll_reset(cx),
                || {
                    origin.shutdown();
                    alarm.by(0);
                },
                back.h1_to_h2(from, (input, answer.head_len), &mut reframer, &to, None),
            )
            .await;
            clean = *result.as_ref().unwrap_or(&false);
            self.end(&to, result.map(drop), reset)?;
        }
        Ok(Done {
            reusable: clean && answer.keep_alive && answer.framing != Framing::UntilClose,
            withheld: false,
            idle_seconds: answer.idle_seconds,
        })
    }

    /// Reads the head of a response, and passes on the interim ones before it. With `accept` it answers a WebSocket handshake,
    /// and may be a 101.
    pub(super) async fn head_from_h1(
        &self,
        from: &mut crate::io::Reader,
        input: &mut Buffer,
        sent: &Cell<bool>,
        attempt: &Attempt,
        accept: Option<&Accept>,
    ) -> Result<Answer, Failure> {
        let shard = self.path.shard;
        let limits = &self.view.snapshot.limits;
        let mut interim = 0;
        loop {
            let then = |response: &h1::Response<'_>| {
                message::from_h1(response, &shard.clock).map(|head| Answer {
                    head,
                    head_len: response.head_len,
                    framing: response.framing,
                    keep_alive: response.keep_alive,
                    idle_seconds: response.idle_seconds,
                    nominated_trailers: response.nominated_trailers(),
                })
            };
            let parsed = match accept {
                _ if input.is_empty() => Parsed::Partial,
                Some(accept) => h1::read_handshake_response(input, limits, accept, then),
                None => h1::read_response(input, limits, self.facts.method, then),
            };
            let refused = |cause| Failure::upstream(Stage::Response, cause);
            match parsed {
                // A 101 that was not asked for never gets here.
                Parsed::Whole(Ok(answer)) if answer.head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Ok(answer);
                }
                Parsed::Whole(Ok(answer)) if answer.head.status().is_informational() => {
                    interim += 1;
                    if interim > limits.interim_responses_max {
                        return Err(refused(Cause::TooManyInterim));
                    }
                    input.drain(..answer.head_len);
                    let told = self.respond.borrow_mut().send_informational(answer.head);
                    told.map_err(|_| Failure::downstream(Stage::Response, Cause::StreamReset))?;
                    continue;
                }
                Parsed::Whole(Ok(mut answer)) => {
                    note_wish(attempt, answer.head.headers_mut());
                    return Ok(answer);
                }
                Parsed::Whole(Err(cause)) | Parsed::Refused(cause) => return Err(refused(cause)),
                Parsed::Partial => {}
            }
            if input.len() + TAILROOM >= input.capacity() {
                let mut large = shard.buffers.take_large().ok_or(SHED)?;
                if large.capacity() <= input.len() + TAILROOM {
                    shard.buffers.give(large);
                    return Err(refused(Cause::HeadTooLarge));
                }
                large.extend_from_slice(input);
                shard.buffers.give(std::mem::replace(input, large));
            }
            let patience = match sent.get() {
                true => shard.clock.now().saturating_add(self.path.patience_ns()),
                false => NEVER,
            };
            self.path.account.wait(shard.clock.now());
            let deadline = patience.min(self.path.deadline);
            let keep_free = shard.keeps_free(input, input.capacity()).max(TAILROOM);
            let read = from.read(input, keep_free, deadline, OnDeadline::Shutdown).await;
            let now = shard.clock.now();
            self.path.account.waited(now);
            match read {
                Ok(0) => return Err(refused(Cause::Closed)),
                Ok(_) if attempt.answers(now) => self.path.account.answered(now),
                Ok(_) => {}
                Err(fault) => return Err(refused(super::cause(fault))),
            }
        }
    }
}

/// The head of a response that came by HTTP/1.1.
pub(super) struct Answer {
    pub(super) head: Response<()>,
    pub(super) head_len: usize,
    framing: Framing,
    keep_alive: bool,
    idle_seconds: Option<u64>,
    nominated_trailers: Vec<Box<str>>,
}

impl Answer {
    /// How long its body is, where that is told.
    fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::None | Framing::Chunked | Framing::UntilClose => None,
        }
    }
}

/// What became of an upstream HTTP/1.1 connection.
pub(super) struct Done {
    reusable: bool,
    /// Whether nothing of the response has gone to the caller, because there is another attempt.
    pub(super) withheld: bool,
    idle_seconds: Option<u64>,
}
