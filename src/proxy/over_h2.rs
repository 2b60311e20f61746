//! A request that came by HTTP/1.1, to a service that speaks HTTP/2.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::again::Missed;
use super::judge::note_wish;
use super::kept::Kept;
use super::relay::{Direction, Web};
use super::{Fate, First, Path, SHED, both, hedge, idle};
use crate::downstream::{Asked, Downstream};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::body::Reframer;
use crate::http::grpc::{self, Dialect};
use crate::http::grpc_web::{Decoder, Form, Translation};
use crate::http::h1::ResponseOptions;
use crate::http::h2::{self as message, Origin};
use crate::http::{Framing, Method, Version};
use crate::io::timed::Alarm;
use crate::io::{Connection, Control, Patience, Writer};
use crate::shard::buffers::Buffers;
use crate::shard::clock::NEVER;
use crate::upstream::service::Attempt;
use crate::upstream::shared::Lease;

/// Carries one exchange. `head` is the canonical head, `body` the length of the body where all of it is in the input.
///
/// # Errors
/// What comes of the attempt.
pub(super) async fn carry(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    head: &[u8],
    body: Option<usize>,
    attempt: &Attempt,
    lease: &Lease,
) -> Result<Fate, Missed> {
    let began = path.shard.clock.now();
    // A stream may be refused although some of it has been sent.
    let mut kept = Kept::new(path, asked.framing, body.is_none());
    let result = match Begun::new(path, downstream, asked, head, body, lease) {
        Err(missed) => Err(missed),
        // Boxed where there is a body: two directions are three times as much state as most exchanges need.
        Ok(begun) => match body {
            Some(0) => begun.without_body(downstream, asked, head, attempt).await,
            Some(length) => Box::pin(begun.with_body(downstream, asked, (head, length), attempt)).await,
            None => Box::pin(begun.streamed(downstream, asked, attempt, &mut kept)).await,
        },
    };
    let failure = Missed::failure_of(&result);
    path.judge(attempt, began, failure.as_ref());
    let missed = match (result, failure) {
        (Err(_), Some(failure)) => {
            lease.leave_if_going(failure);
            match path.replays_by_http2(failure, lease, attempt.has_answered(), asked.method) {
                true => Missed::Again,
                false => path.missed(failure, false),
            }
        }
        (result, _) => match result {
            Ok(fate) => return Ok(fate),
            Err(missed) => missed,
        },
    };
    Err(kept.put_back(missed, &mut downstream.input, asked.head_len))
}

/// An exchange whose head is sent.
struct Begun<'x> {
    path: Path<'x>,
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    web: Option<Translation>,
}

impl<'x> Begun<'x> {
    fn new(
        path: &Path<'x>,
        downstream: &Downstream,
        asked: &Asked,
        head: &[u8],
        body: Option<usize>,
        lease: &Lease,
    ) -> Result<Self, Missed> {
        let origin = lease.is_mesh().then_some(Origin(asked.version));
        let mut request = message::from_canonical(head, origin, lease.is_encrypted())
            .map_err(|cause| Failure::local(Stage::Request, cause))?;
        let web = match asked.view.snapshot.translates_grpc_web(&downstream.listener) {
            true => Translation::of_request(request.headers_mut()),
            false => None,
        };
        let path = path.of_call(request.headers_mut());
        let ended = matches!((asked.framing, body), (Framing::None, _) | (_, Some(0)));
        let (response, stream) = lease.send(request, ended)?;
        Ok(Self { path, response, stream, web })
    }

    /// A request that is sent with its head.
    async fn without_body(
        self,
        downstream: &mut Downstream,
        asked: &Asked,
        head: &[u8],
        attempt: &Attempt,
    ) -> Result<Fate, Missed> {
        let Self { path, response, stream: _stream, web } = self;
        path.account.request_body_bytes.set(0);
        let alarm = path.shard.deadlines.alarm();
        let (sent, caller) = (Cell::new(true), downstream.connection.control());
        let back = Back { path: &path, asked, alarm: &alarm, attempt, sent: &sent, web };
        let back = pin!(back.carry(response, &mut downstream.connection.writer));
        let copy = hedge::copying(&downstream.listener, asked, (head, &[]));
        let hurry = || hurry(&path, &[&alarm], &caller);
        let (idle, connections) = (asked.view.snapshot.timeouts.stream_idle, [&caller]);
        let back = pin!(idle::unless_idle(&path, idle, &sent, &connections, hurry, back));
        hedge::unless_won(&path, &sent, || alarm.by(0), copy, &asked.view, back).await
    }

    /// One whose body, so many octets, lies behind its head in the input.
    async fn with_body(
        self,
        downstream: &mut Downstream,
        asked: &Asked,
        (head, length): (&[u8], usize),
        attempt: &Attempt,
    ) -> Result<Fate, Missed> {
        let Self { path, response, stream, web } = self;
        let (decoder, stream) = (RefCell::default(), RefCell::new(stream));
        let (alarm, there_alarm) = (path.shard.deadlines.alarm(), path.shard.deadlines.alarm());
        let octets = &downstream.input[asked.head_len..asked.head_len + length];
        path.account.request_body_bytes.set(length as u64);
        let (sent, caller) = (Cell::new(false), downstream.connection.control());
        let back = Back { path: &path, asked, alarm: &alarm, attempt, sent: &sent, web };
        let copy = hedge::copying(&downstream.listener, asked, (&head[..head.len() - length], octets));
        let back = pin!(back.carry(response, &mut downstream.connection.writer));
        let there = there(&path, asked, &there_alarm, web, &decoder);
        let translated = there.translate(Bytes::copy_from_slice(octets), true)?;
        let there = pin!(async {
            let result = there.put(&stream, translated, true).await;
            sent.set(result.is_ok());
            result
        });
        // The service may answer before it has taken the body, or refuse to take it.
        let both = pin!(both(there, back, |first| match first {
            First::There(Err(failure)) if failure.cause == Cause::Timeout => {}
            First::There(_) => wait(&path, &alarm),
            First::Back => {
                stream.borrow_mut().send_reset(h2::Reason::NO_ERROR);
                there_alarm.by(0);
            }
        }));
        let hurry = || hurry(&path, &[&alarm, &there_alarm], &caller);
        let (idle, connections) = (asked.view.snapshot.timeouts.stream_idle, [&caller]);
        let both = pin!(idle::unless_idle(&path, idle, &sent, &connections, hurry, both));
        let (there, back, _) = hedge::unless_won(&path, &sent, || alarm.by(0), copy, &asked.view, both).await;
        match (there, back) {
            // What it refused to take is gone from the connection: the next request may come.
            (_, Ok(fate)) => Ok(fate),
            (_, Err(Missed::Again)) => Err(Missed::Again),
            (Err(failure), Err(_)) if failure.cause == Cause::Timeout => Err(failure.into()),
            (_, Err(missed)) => Err(missed),
        }
    }

    /// One whose body is still coming.
    async fn streamed(
        self,
        downstream: &mut Downstream,
        asked: &Asked,
        attempt: &Attempt,
        kept: &mut Kept<'_>,
    ) -> Result<Fate, Missed> {
        let Self { path, response, stream, web } = self;
        let (decoder, stream) = (RefCell::default(), RefCell::new(stream));
        let (alarm, there_alarm) = (path.shard.deadlines.alarm(), path.shard.deadlines.alarm());
        let there = there(&path, asked, &there_alarm, web, &decoder);
        let sent = Cell::new(false);
        attempt.uploads();
        let back = Back { path: &path, asked, alarm: &alarm, attempt, sent: &sent, web };
        let behind = downstream.input.len() - asked.head_len;
        let taken = if behind <= Buffers::SMALL {
            path.shard.take_for_body(u64::MAX)
        } else {
            path.shard.buffers.take_large()
        };
        let mut input = taken.ok_or(SHED)?;
        kept.read(&downstream.input[asked.head_len..]);
        input.extend_from_slice(&downstream.input[asked.head_len..]);
        downstream.input.truncate(asked.head_len);
        let caller = downstream.connection.control();
        let mut reframer =
            Reframer::new(asked.framing, Framing::UntilClose).without_trailers(asked.nominated_trailers());
        let (there_result, back_result, back_was_first) = {
            let Connection { reader, writer, .. } = &mut downstream.connection;
            let there = pin!(async {
                let clean = there
                    .h1_to_h2(reader, (&mut input, 0), &mut reframer, &stream, Some(kept))
                    .await
                    .map(drop);
                sent.set(clean.is_ok());
                path.account.mirror_whole(clean.is_ok());
                attempt.uploaded(path.shard.clock.now());
                clean
            });
            let back = pin!(back.carry(response, writer));
            let both = pin!(both(there, back, |first| match first {
                First::There(Ok(())) => wait(&path, &alarm),
                First::There(Err(failure)) if failure.side == Side::Upstream => wait(&path, &alarm),
                // Nothing of this may look whole to the service; the reset ends the way back as well.
                First::There(Err(_)) => stream.borrow_mut().send_reset(h2::Reason::CANCEL),
                First::Back => {
                    stream.borrow_mut().send_reset(h2::Reason::NO_ERROR);
                    caller.cancel_read();
                }
            }));
            let hurry = || {
                caller.cancel_read();
                hurry(&path, &[&alarm, &there_alarm], &caller);
            };
            let idle = asked.view.snapshot.timeouts.stream_idle;
            idle::unless_idle(&path, idle, &sent, &[&caller], hurry, both).await
        };
        if reframer.is_untouched() && behind == 0 {
            // What is there was room for chunk sizes.
            input.clear();
        }
        downstream.input.append(&mut input);
        path.shard.buffers.give(input);
        match (there_result, back_result) {
            (Ok(()), Ok(fate)) if !back_was_first => Ok(fate),
            (_, Ok(_)) => Ok(Fate::Linger),
            (Err(there), Err(_)) if there.side != Side::Upstream && !back_was_first => Err(there.into()),
            (_, Err(back)) => Err(back),
        }
    }
}

/// The way of a body to the service.
fn there<'x>(
    path: &'x Path<'x>,
    asked: &'x Asked,
    alarm: &'x Alarm,
    web: Option<Translation>,
    decoder: &'x RefCell<Decoder>,
) -> Direction<'x> {
    let limits = &asked.view.snapshot.limits;
    Direction {
        shard: path.shard,
        account: path.account,
        alarm,
        limits,
        deadline: path.deadline,
        read_stall: asked.view.snapshot.timeouts.body_stall,
        write_stall: path.service.spec.timeouts.body_stall,
        octets: &path.account.request_body_bytes,
        octets_max: limits.body_bytes_max,
        messages: path.account.request_messages(),
        web: match web {
            Some(Translation { request: Form::Text, .. }) => Web::Decode(decoder),
            _ => Web::Same,
        },
        shape: asked.turn.as_ref().and_then(|turn| turn.request_shape()),
        sender: |cause| Failure::downstream(Stage::Request, cause),
        receiver: |cause| Failure::upstream(Stage::Request, cause),
    }
}

/// Ends what an exchange waits for on which nothing moves.
fn hurry(path: &Path<'_>, alarms: &[&Alarm], caller: &Control) {
    for alarm in alarms {
        alarm.by(0);
    }
    caller.shutdown_if(path.account.status.get() != 0);
}

/// From now on the service has so long for its answer.
fn wait(path: &Path<'_>, alarm: &Alarm) {
    if path.account.status.get() == 0 {
        alarm.by(path.shard.clock.now().saturating_add(path.patience_ns()));
    }
}

/// The way back.
pub(super) struct Back<'x> {
    pub(super) path: &'x Path<'x>,
    pub(super) asked: &'x Asked,
    pub(super) alarm: &'x Alarm,
    pub(super) attempt: &'x Attempt,
    pub(super) sent: &'x Cell<bool>,
    /// Of a gRPC-Web call.
    pub(super) web: Option<Translation>,
}

impl Back<'_> {
    #[expect(clippy::manual_async_fn, reason = "it would have room for its arguments twice")]
    fn carry<'b>(
        &'b self,
        mut response: ResponseFuture,
        to: &'b mut Writer,
    ) -> impl Future<Output = Result<Fate, Missed>> + 'b {
        async move {
            let response = self.head(&mut response, to).await?;
            self.path.shard.cohort.regroup().await;
            self.carry_on(response, to).await
        }
    }

    /// Goes on with a response whose head is there. The buffer that it is written to is taken now: of those who still wait each
    /// would hold one, and it would be cold when it is needed.
    #[expect(clippy::manual_async_fn, reason = "it would have room for its arguments twice")]
    pub(super) fn carry_on<'b>(
        &'b self,
        response: Response<RecvStream>,
        to: &'b mut Writer,
    ) -> impl Future<Output = Result<Fate, Missed>> + 'b {
        async move {
            if self.path.withholds_typed(&response) {
                // Dropped: h2 resets the stream if there is more to come.
                return Err(Missed::Again);
            }
            let mut out = self.path.shard.buffers.take_small().ok_or(SHED)?;
            let result = self.pass_on(response, to, &mut out).await;
            self.path.shard.buffers.give(out);
            Ok(result?)
        }
    }

    /// The head of the response that is not an interim one; those have been passed on.
    pub(super) async fn head(
        &self,
        response: &mut ResponseFuture,
        to: &mut Writer,
    ) -> Result<Response<RecvStream>, Failure> {
        let Self { path, asked, .. } = self;
        let mut interim = asked.view.snapshot.limits.interim_responses_max;
        loop {
            match head(path, self.alarm, response, self.sent.get(), self.attempt, &mut interim).await? {
                Head::Interim(_) if asked.version == Version::Http10 => {}
                Head::Interim(interim) => {
                    let (parts, ()) = interim.into_parts();
                    let options =
                        ResponseOptions { version: asked.version, framing: Framing::None, close: false };
                    path.in_time()?;
                    let mut out = path.shard.buffers.take_small().ok_or(SHED)?;
                    message::write_h1_response(&parts, options, &path.shard.clock, &mut out);
                    let sent = self.send(to, &mut out).await;
                    path.shard.buffers.give(out);
                    sent?;
                }
                Head::Final(response) => return Ok(response),
            }
        }
    }

    /// Passes a response on, head and body.
    pub(super) async fn pass_on(
        &self,
        response: Response<RecvStream>,
        to: &mut Writer,
        out: &mut Vec<u8>,
    ) -> Result<Fate, Failure> {
        let Self { path, asked, .. } = self;
        path.in_time()?;
        let (mut parts, mut body) = response.into_parts();
        let adopted = path.account.note_head(&mut parts, self.web.map(|web| Dialect::Web(web.response)));
        let web = self.web.and_then(|web| web.of_response(&mut parts.headers));
        let ended = adopted || body.is_end_stream();
        let refused = |cause| Failure::upstream(Stage::Response, cause);
        let framing =
            message::framing(&parts, ended, asked.method == Method::Head, asked.version).map_err(refused)?;
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::None | Framing::Chunked | Framing::UntilClose => None,
        };
        let close = !asked.keep_alive
            || !self.sent.get()
            // Sent in the hope of a tunnel: not to be read as a request.
            || (asked.tunnel.is_some() && to.has_unread())
            || path.shard.is_draining()
            || framing == Framing::UntilClose;
        let options = ResponseOptions { version: asked.version, framing, close };
        if let Some(turn) = &asked.turn {
            turn.apply_to_response_parts(&mut parts);
        }
        path.account.mint(&mut parts.headers);
        message::write_h1_response(&parts, options, &path.shard.clock, out);
        path.account.status.set(parts.status.as_u16());
        if ended || framing == Framing::None {
            if framing == Framing::Chunked {
                out.extend_from_slice(b"0\r\n\r\n");
            }
            self.send(to, out).await?;
        } else {
            let way = Direction {
                shard: path.shard,
                account: path.account,
                alarm: self.alarm,
                limits: &asked.view.snapshot.limits,
                deadline: path.deadline,
                read_stall: path.service.spec.timeouts.body_stall,
                write_stall: asked.view.snapshot.timeouts.body_stall,
                octets: &path.account.response_body_bytes,
                octets_max: 0,
                messages: path.account.response_messages(),
                web: web.map_or(Web::Same, Web::Encode),
                shape: asked.turn.as_ref().and_then(|turn| turn.shape()),
                sender: |cause| Failure::upstream(Stage::Body, cause),
                receiver: |cause| Failure::downstream(Stage::Body, cause),
            };
            if let Some(shape) = way.shape {
                shape.begin(length);
            }
            if !is_there(&mut body) {
                // The head does not wait for the body.
                self.send(to, out).await?;
            }
            way.h2_to_h1(&mut body, to, framing, out).await?;
        }
        Ok(if close { Fate::Close } else { Fate::Again })
    }

    pub(super) async fn send(&self, to: &mut Writer, out: &mut Vec<u8>) -> Result<(), Failure> {
        let stall = self.asked.view.snapshot.timeouts.body_stall;
        let patience = Patience { clock: &self.path.shard.clock, stall, until: self.path.deadline };
        let result = to.write_all(out, 0, patience).await;
        out.clear();
        result.map_err(|fault| Failure::downstream(Stage::Body, super::cause(fault)))
    }
}

/// A head that came from a service by HTTP/2.
pub(super) enum Head {
    Interim(Response<()>),
    Final(Response<RecvStream>),
}

/// The next head of a response. `sent` is whether the request is: before that the service has all the time. So many
/// `interim` ones may come.
pub(super) async fn head(
    path: &Path<'_>,
    alarm: &Alarm,
    response: &mut ResponseFuture,
    sent: bool,
    attempt: &Attempt,
    interim: &mut u16,
) -> Result<Head, Failure> {
    let shard = path.shard;
    let patience = match sent {
        true => shard.clock.now().saturating_add(path.patience_ns()),
        false => NEVER,
    };
    let since = shard.clock.now();
    path.account.wait(since);
    let next = alarm.until(patience.min(path.deadline), poll_fn(|cx| poll_head(response, cx))).await;
    let now = shard.clock.now();
    path.account.waited_for_http2(since, now, &shard.gathered);
    match next {
        Some(Ok(mut head)) => {
            if attempt.answers(now) {
                path.account.answered(now);
            }
            let refused = |cause| Failure::upstream(Stage::Response, cause);
            if matches!(head, Head::Interim(_)) {
                *interim = interim.checked_sub(1).ok_or_else(|| refused(Cause::TooManyInterim))?;
            }
            let (status, headers) = match &mut head {
                Head::Interim(head) => (head.status(), head.headers_mut()),
                Head::Final(head) => (head.status(), head.headers_mut()),
            };
            if status == StatusCode::SWITCHING_PROTOCOLS {
                // HTTP/2 has none (RFC 9113 §8.6); an HTTP/1.1 caller would take what follows for another protocol.
                return Err(refused(Cause::UnexpectedUpgrade));
            }
            message::check_values(headers).map_err(refused)?;
            note_wish(attempt, headers);
            Ok(head)
        }
        Some(Err(error)) => {
            path.account.note_error(&error);
            Err(Failure::upstream(Stage::Response, message::cause(&error)))
        }
        None => Err(Failure::upstream(Stage::Response, Cause::Timeout)),
    }
}

fn poll_head(response: &mut ResponseFuture, cx: &mut Context<'_>) -> Poll<Result<Head, h2::Error>> {
    match response.poll_informational(cx) {
        Poll::Ready(Some(interim)) => Poll::Ready(interim.map(Head::Interim)),
        // The final one is there, or there will be none.
        Poll::Ready(None) => Pin::new(response).poll(cx).map(|response| response.map(Head::Final)),
        Poll::Pending => Poll::Pending,
    }
}

/// Whether the first piece of a body has come with its head.
fn is_there(body: &mut RecvStream) -> bool {
    // Octets that count against the window are those that have come and were not released.
    body.flow_control().used_capacity() > 0
}

/// A stream that ends with a reset when the exchange is given up.
pub(super) fn give_up(stream: &RefCell<SendStream<Bytes>>, reason: h2::Reason) {
    stream.borrow_mut().send_reset(reason);
}

impl Path<'_> {
    /// The same for a request that goes on by HTTP/2 with these fields: if it is a gRPC call it is counted as one, and ends by
    /// its own deadline if that is sooner; what is left of it is what the service is told.
    pub(super) fn of_call(&self, headers: &mut HeaderMap) -> Self {
        let mut deadline = self.deadline;
        let kind = headers.get(http::header::CONTENT_TYPE).and_then(|kind| Dialect::of(kind.as_bytes()));
        if kind == Some(Dialect::Native) {
            self.account.begin_grpc();
            deadline = deadline.min(self.account.grpc_deadline(headers));
            if deadline != NEVER {
                let left = Duration::from_nanos(deadline.saturating_sub(self.shard.clock.now()));
                if let Ok(value) = HeaderValue::from_str(&grpc::write_timeout(left)) {
                    headers.insert("grpc-timeout", value);
                }
            }
        }
        Self { shard: self.shard, account: self.account, service: self.service, deadline, retry: self.retry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One per request, and moved once: 4800 bytes were, when each way of sending a body had its way back here. Far too small fails as well,
    /// so that the bound stays a bound.
    #[test]
    fn the_future_of_an_exchange_over_http2_stays_small() {
        let size = size_of_output(&carry);
        assert!((1400..=2400).contains(&size), "{size} bytes");
    }

    fn size_of_output<A, B, C, D, E, G, H, F: Future>(_: &impl Fn(A, B, C, D, E, G, H) -> F) -> usize {
        size_of::<F>()
    }
}
