//! What is sent beside the exchange, from a head that is canonical and a body that is whole: how it is written, and how the answer is
//! read as far as its head, by both versions of HTTP. Called by hedges, copies for mirrors, and questions to those who count.
//!
//! Nothing of it goes to a caller from here. Refuses to choose connections and to judge endpoints.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{Request, Response};

use super::over_h2::{Head, head};
use super::relay::{Direction, Web};
use super::{Path, SHED};
use crate::failure::{Cause, Failure, Stage};
use crate::http::body::{TAILROOM, write_chunk};
use crate::http::grpc_web::{Decoder, Form, Translation};
use crate::http::h1::{self, Parsed};
use crate::http::h2::{self as message, Origin};
use crate::http::{Framing, Method};
use crate::io::Reader;
use crate::io::timed::{Alarm, OnDeadline};
use crate::shard::buffers::Buffer;
use crate::snapshot::Limits;
use crate::upstream::service::Attempt;
use crate::upstream::shared::Lease;

/// A request as it goes to a service by HTTP/2.
pub(super) struct Typed<'x> {
    pub(super) request: Request<()>,
    pub(super) body: Bytes,
    /// Of a gRPC-Web call that is translated.
    pub(super) web: Option<Translation>,
    /// With the time that a gRPC call has by its own word.
    pub(super) path: Path<'x>,
}

/// Head and body, as they are written to a service by HTTP/1.1.
pub(super) fn written(head: &[u8], body: &[u8], framing: Framing) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + body.len() + 32);
    out.extend_from_slice(head);
    if framing == Framing::Chunked {
        if !body.is_empty() {
            write_chunk(body, &mut out);
        }
        out.extend_from_slice(b"0\r\n\r\n");
    } else {
        out.extend_from_slice(body);
    }
    out
}

/// The same for HTTP/2. `origin` is by what it came, where that was not HTTP/2; a ringmesh is told.
pub(super) fn typed<'x>(
    path: &Path<'x>,
    head: &[u8],
    mut body: Bytes,
    origin: Option<Origin>,
    translates: bool,
    lease: &Lease,
) -> Result<Typed<'x>, Failure> {
    let local = |cause| Failure::local(Stage::Request, cause);
    let origin = origin.filter(|_| lease.is_mesh());
    let mut request = message::from_canonical(head, origin, lease.is_encrypted()).map_err(local)?;
    let web = translates.then(|| Translation::of_request(request.headers_mut())).flatten();
    let path = path.of_call(request.headers_mut());
    if let Some(Translation { request: Form::Text, .. }) = web {
        let mut decoder = Decoder::default();
        let decoded = decoder.decode(&body).and_then(|decoded| decoder.end().map(|()| decoded));
        body = decoded.map_err(|_| local(Cause::BadGrpcWeb))?;
    }
    Ok(Typed { request, body, web, path })
}

/// Reads on until the whole head of a response that is no interim one is there: its length, and what `then` makes of it.
pub(super) async fn head_by_http1<T>(
    path: &Path<'_>,
    attempt: &Attempt,
    limits: &Limits,
    method: Method,
    (from, input): (&mut Reader, &mut Buffer),
    then: impl Fn(&h1::Response<'_>) -> T,
) -> Result<(usize, T), Failure> {
    let refused = |cause| Failure::upstream(Stage::Response, cause);
    let head_by = path.shard.clock.now().saturating_add(path.patience_ns()).min(path.deadline);
    let mut interim = limits.interim_responses_max;
    loop {
        let parsed = match input.is_empty() {
            true => Parsed::Partial,
            false => h1::read_response(input, limits, method, |response| {
                (response.is_interim(), response.head_len, then(response))
            }),
        };
        match parsed {
            Parsed::Whole((true, head_len, _)) => {
                interim = interim.checked_sub(1).ok_or_else(|| refused(Cause::TooManyInterim))?;
                input.drain(..head_len);
            }
            Parsed::Whole((false, head_len, made)) => return Ok((head_len, made)),
            Parsed::Refused(cause) => return Err(refused(cause)),
            Parsed::Partial if input.len() + TAILROOM >= input.capacity() => {
                let mut large = path.shard.buffers.take_large().ok_or(SHED)?;
                if large.capacity() <= input.len() + TAILROOM {
                    path.shard.buffers.give(large);
                    return Err(refused(Cause::HeadTooLarge));
                }
                large.extend_from_slice(input);
                path.shard.buffers.give(std::mem::replace(input, large));
            }
            Parsed::Partial => {
                let keep_free = path.shard.keeps_free(input, input.capacity()).max(TAILROOM);
                let read = from.read(input, keep_free, head_by, OnDeadline::Shutdown).await;
                let now = path.shard.clock.now();
                match read {
                    Ok(0) => return Err(refused(Cause::Closed)),
                    Ok(_) if attempt.answers(now) => path.account.answered(now),
                    Ok(_) => {}
                    Err(fault) => return Err(refused(super::cause(fault))),
                }
            }
        }
    }
}

/// Sends a body by HTTP/2, if there is one, and waits for the head of a response that is no interim one. `None` once nobody
/// wants it any more.
pub(super) async fn head_by_http2(
    path: &Path<'_>,
    attempt: &Attempt,
    limits: &Limits,
    alarm: &Alarm,
    (mut response, stream): (ResponseFuture, SendStream<Bytes>),
    body: Bytes,
    is_wanted: impl Fn() -> bool,
) -> Result<Option<Response<RecvStream>>, Failure> {
    if !body.is_empty() {
        let stall = path.service.spec.timeouts.body_stall;
        let there = Direction {
            shard: path.shard,
            account: path.account,
            alarm,
            limits,
            deadline: path.deadline,
            read_stall: stall,
            write_stall: stall,
            octets: &path.account.request_body_bytes,
            octets_max: 0,
            messages: None,
            web: Web::Same,
            shape: None,
            sender: |cause| Failure::local(Stage::Request, cause),
            receiver: |cause| Failure::upstream(Stage::Request, cause),
        };
        there.put(&RefCell::new(stream), body, true).await?;
    }
    let mut interim = limits.interim_responses_max;
    while is_wanted() {
        if let Head::Final(response) = head(path, alarm, &mut response, true, attempt, &mut interim).await? {
            return Ok(Some(response));
        }
    }
    Ok(None)
}

/// Hands what comes of a body by HTTP/2 to `take` until the end, and notes what the trailers say.
pub(super) async fn rest_by_http2(
    path: &Path<'_>,
    alarm: &Alarm,
    mut body: RecvStream,
    mut take: impl FnMut(Bytes) -> Result<(), Failure>,
) -> Result<(), Failure> {
    path.account.wait(path.shard.clock.now());
    let rest = alarm.until(path.deadline, poll_fn(|cx| poll_rest(&mut body, &mut take, cx))).await;
    path.account.waited(path.shard.clock.now());
    let trailers = rest.unwrap_or(Err(Failure::upstream(Stage::Body, Cause::Timeout)))?;
    trailers.iter().for_each(|trailers| path.account.note_trailers(trailers));
    Ok(())
}

/// Left before the end, h2 resets the stream.
fn poll_rest(
    body: &mut RecvStream,
    take: &mut impl FnMut(Bytes) -> Result<(), Failure>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<http::HeaderMap>, Failure>> {
    let broken = |error: h2::Error| Failure::upstream(Stage::Body, message::cause(&error));
    while let Some(piece) = ready!(body.poll_data(cx)) {
        let piece = piece.map_err(broken)?;
        let length = piece.len();
        take(piece)?;
        // Fails for a stream that has ended only.
        let _ = body.flow_control().release_capacity(length);
    }
    body.poll_trailers(cx).map_err(broken)
}
