//! Bodies on their way between two connections of which at least one is HTTP/2: piece by piece, with the pressure of the
//! slower side passed back to the faster one.
//!
//! A piece is taken only when the one before it was handed over, and an HTTP/2 peer's window is opened again only then;
//! so what is held per exchange is one piece, whatever either side does. Refuses to hold back: what is there is sent.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use pin_project_lite::pin_project;

use super::account::Account;
use super::kept::{Kept, Pieces};
use super::shaped;
use crate::failure::{Cause, Failure};
use crate::http::body::{self, HEADROOM, Reframer, TAILROOM};
use crate::http::grpc::Messages;
use crate::http::grpc_web::{self, Decoder, Form, NotBase64};
use crate::http::{Framing, h2 as message};
use crate::io::timed::Alarm;
use crate::io::{Patience, Reader, Writer};
use crate::route::shape::Shape;
use crate::shard::Shard;
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::clock::ns;
use crate::snapshot::Limits;

/// What one direction of an exchange needs to know.
pub(super) struct Direction<'x> {
    pub(super) shard: &'x Shard,
    pub(super) account: &'x Account,
    pub(super) alarm: &'x Alarm,
    pub(super) limits: &'x Limits,
    /// When the exchange must have ended.
    pub(super) deadline: u64,
    /// How long the sender may send nothing.
    pub(super) read_stall: Duration,
    /// How long the receiver may take nothing.
    pub(super) write_stall: Duration,
    /// Octets passed on.
    pub(super) octets: &'x Cell<u64>,
    /// More than so many are refused; 0 for no limit.
    pub(super) octets_max: u64,
    /// Where messages are counted, of a gRPC call.
    pub(super) messages: Option<&'x Cell<Messages>>,
    /// How a gRPC-Web call is translated.
    pub(super) web: Web<'x>,
    /// What is done to the body on purpose.
    pub(super) shape: Option<&'x Shape>,
    /// The sender's failure, and the receiver's.
    pub(super) sender: fn(Cause) -> Failure,
    pub(super) receiver: fn(Cause) -> Failure,
}

/// What becomes of a body on its way between gRPC-Web and gRPC.
#[derive(Clone, Copy)]
pub(super) enum Web<'x> {
    /// It stays as it is.
    Same,
    /// A request in text form.
    Decode(&'x RefCell<Decoder>),
    /// A response, for a caller that wants it so.
    Encode(Form),
}

impl Direction<'_> {
    /// From HTTP/2 to HTTP/2, trailers included.
    pub(super) async fn h2_to_h2(
        &self,
        from: &mut impl Pieces,
        to: &RefCell<SendStream<Bytes>>,
    ) -> Result<(), Failure> {
        while let Some(piece) = self.piece(from).await? {
            let ended = from.is_over();
            let length = piece.len();
            self.put(to, self.translate(piece, ended)?, ended).await?;
            from.release(length);
            if ended {
                return Ok(());
            }
        }
        match self.trailers(from).await? {
            Some(mut trailers) => {
                body::clean_trailers(&mut trailers);
                self.account.note_trailers(&trailers);
                if let Web::Encode(form) = self.web {
                    return self.put(to, grpc_web::trailer_frame(form, &trailers), true).await;
                }
                to.borrow_mut().send_trailers(trailers)
            }
            None => {
                let rest = self.translate(Bytes::new(), true)?;
                to.borrow_mut().send_data(rest, true)
            }
        }
        .map_err(|error| (self.receiver)(message::cause(&error)))
    }

    /// From HTTP/2 to HTTP/1.1. `out` has what is to be sent before: the head, maybe.
    pub(super) async fn h2_to_h1(
        &self,
        from: &mut impl Pieces,
        to: &mut Writer,
        framing: Framing,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        while let Some(piece) = self.piece(from).await? {
            let piece = self.with_what_follows(piece, from)?;
            let ended = from.is_over();
            let length = piece.len();
            let mut piece = self.translate(piece, ended)?;
            if let Some(shape) = self.shape {
                // Boxed: hardly any is.
                Box::pin(self.write_shaped(shape, std::mem::take(&mut piece), framing, to, out)).await?;
            }
            match framing {
                Framing::Chunked if !piece.is_empty() => body::write_chunk(&piece, out),
                Framing::Chunked => {}
                _ => out.extend_from_slice(&piece),
            }
            if ended {
                if framing == Framing::Chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                self.write(to, out).await?;
                from.release(length);
                return Ok(());
            }
            self.write(to, out).await?;
            from.release(length);
        }
        let mut trailers = self.trailers(from).await?;
        if let Some(trailers) = &trailers {
            self.account.note_trailers(trailers);
        }
        if let Web::Encode(form) = self.web
            && let Some(trailers) = trailers.take()
        {
            let frame = grpc_web::trailer_frame(form, &trailers);
            match framing {
                Framing::Chunked => body::write_chunk(&frame, out),
                _ => out.extend_from_slice(&frame),
            }
        }
        if framing == Framing::Chunked {
            match &trailers {
                Some(trailers) => body::write_typed_trailers(trailers, out),
                None => out.extend_from_slice(b"0\r\n\r\n"),
            }
        }
        self.write(to, out).await
    }

    /// From HTTP/1.1 to HTTP/2. `input` holds what was read already, from `start` on; what is left in it afterwards came behind the
    /// body. Whether nothing did. Of a request what is read is `kept`.
    pub(super) async fn h1_to_h2(
        &self,
        from: &mut Reader,
        (input, mut start): (&mut Buffer, usize),
        reframer: &mut Reframer,
        to: &RefCell<SendStream<Bytes>>,
        mut kept: Option<&mut Kept<'_>>,
    ) -> Result<bool, Failure> {
        let sender = |cause| (self.sender)(cause);
        loop {
            if input.len() > start {
                if let Some(kept) = &mut kept {
                    kept.passed_on();
                }
                let next = reframer.reframe(input, start, self.limits).map_err(sender)?;
                let trailers = reframer.typed_trailers(self.limits).map_err(sender)?;
                self.count(next.content)?;
                let rest = next.rest.clone();
                let ended = next.ended;
                let piece = Bytes::copy_from_slice(&input[next.send.clone()]);
                let piece = self.translate(piece, ended)?;
                if !piece.is_empty() || ended {
                    self.put(to, piece, ended && trailers.is_none()).await?;
                }
                if let Some(trailers) = trailers {
                    self.account.note_trailers(&trailers);
                    to.borrow_mut()
                        .send_trailers(trailers)
                        .map_err(|error| (self.receiver)(message::cause(&error)))?;
                }
                if ended {
                    let clean = rest.is_empty();
                    input.drain(..rest.start);
                    return Ok(clean);
                }
            }
            self.shard.empty_for_body(input, reframer.left());
            input.resize(HEADROOM, 0);
            start = HEADROOM;
            let stall = self.shard.clock.now().saturating_add(ns(self.read_stall));
            self.account.wait(self.shard.clock.now());
            let keep_free = self.shard.keeps_free(input, input.capacity()).max(TAILROOM);
            let read = from.read_cancelable(input, keep_free, stall.min(self.deadline)).await;
            self.account.waited(self.shard.clock.now());
            match read {
                Ok(0) if reframer.ends_with_connection() => {
                    to.borrow_mut()
                        .send_data(Bytes::new(), true)
                        .map_err(|error| (self.receiver)(message::cause(&error)))?;
                    input.clear();
                    return Ok(false);
                }
                Ok(0) => return Err(sender(Cause::Closed)),
                Ok(_) => {
                    if let Some(kept) = &mut kept {
                        kept.read(&input[start..]);
                    }
                }
                Err(fault) => return Err(sender(super::cause(fault))),
            }
        }
    }

    /// The next piece of a body that comes by HTTP/2; `None` at its end (trailers may follow).
    async fn piece(&self, from: &mut impl Pieces) -> Result<Option<Bytes>, Failure> {
        let stall = self.shard.clock.now().saturating_add(ns(self.read_stall));
        self.account.wait(self.shard.clock.now());
        let data = self.alarm.until(stall.min(self.deadline), poll_fn(|cx| from.poll_piece(cx))).await;
        self.account.waited(self.shard.clock.now());
        match data {
            Some(Some(Ok(piece))) => {
                self.count(piece.len())?;
                Ok(Some(piece))
            }
            Some(None) => Ok(None),
            Some(Some(Err(error))) => Err(self.broken(&error)),
            None => Err((self.sender)(Cause::Timeout)),
        }
    }

    /// A piece and those behind it that are there already, as one: a peer may cut a body into pieces of one octet, and
    /// a write for each would be slower than they come.
    fn with_what_follows(&self, piece: Bytes, from: &mut impl Pieces) -> Result<Bytes, Failure> {
        let mut all = BytesMut::new();
        // Whoever waits for more asks again, with a waker.
        let mut cx = Context::from_waker(Waker::noop());
        while piece.len().max(all.len()) < Buffers::SMALL && !from.is_over() {
            match from.poll_piece(&mut cx) {
                Poll::Ready(Some(Ok(next))) => {
                    self.count(next.len())?;
                    if all.is_empty() {
                        all.extend_from_slice(&piece);
                    }
                    all.extend_from_slice(&next);
                }
                Poll::Ready(Some(Err(error))) => return Err((self.sender)(message::cause(&error))),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Ok(if all.is_empty() { piece } else { all.freeze() })
    }

    async fn trailers(&self, from: &mut impl Pieces) -> Result<Option<http::HeaderMap>, Failure> {
        let stall = self.shard.clock.now().saturating_add(ns(self.read_stall));
        let trailers = self.alarm.until(stall.min(self.deadline), poll_fn(|cx| from.poll_end(cx))).await;
        match trailers {
            Some(Ok(trailers)) => {
                trailers.as_ref().map_or(Ok(()), message::check_values).map_err(self.sender)?;
                Ok(trailers)
            }
            Some(Err(error)) => Err(self.broken(&error)),
            None => Err((self.sender)(Cause::Timeout)),
        }
    }

    fn broken(&self, error: &h2::Error) -> Failure {
        self.account.note_error(error);
        (self.sender)(message::cause(error))
    }

    /// Counts the messages of a piece, and makes of it what the receiver wants.
    pub(super) fn translate(&self, piece: Bytes, ended: bool) -> Result<Bytes, Failure> {
        let piece = match self.web {
            Web::Decode(decoder) => {
                let bad = |NotBase64| (self.sender)(Cause::BadGrpcWeb);
                let mut decoder = decoder.borrow_mut();
                let piece = decoder.decode(&piece).map_err(bad)?;
                if ended {
                    decoder.end().map_err(bad)?;
                }
                piece
            }
            Web::Same | Web::Encode(_) => piece,
        };
        if let Some(messages) = self.messages {
            let mut counted = messages.get();
            counted.feed(&piece);
            messages.set(counted);
        }
        Ok(match self.web {
            Web::Encode(form) => grpc_web::encode(form, piece),
            Web::Same | Web::Decode(_) => piece,
        })
    }

    /// Sends a piece by HTTP/2 as the peer's window lets it.
    pub(super) async fn put(
        &self,
        to: &RefCell<SendStream<Bytes>>,
        mut piece: Bytes,
        ended: bool,
    ) -> Result<(), Failure> {
        let refused = |error: h2::Error| (self.receiver)(message::cause(&error));
        loop {
            if piece.is_empty() {
                return if ended { to.borrow_mut().send_data(piece, true).map_err(refused) } else { Ok(()) };
            }
            let most = match self.shape {
                None => piece.len(),
                // Boxed: hardly any is.
                Some(shape) => Box::pin(self.may_put(shape, piece.len())).await?,
            };
            let mut room = {
                let mut to = to.borrow_mut();
                to.reserve_capacity(most);
                to.capacity()
            };
            if room == 0 {
                let stall = self.shard.clock.now().saturating_add(ns(self.write_stall));
                self.account.wait(self.shard.clock.now());
                let capacity = poll_fn(|cx| to.borrow_mut().poll_capacity(cx));
                let capacity = self.alarm.until(stall.min(self.deadline), capacity).await;
                self.account.waited(self.shard.clock.now());
                room = match capacity {
                    Some(Some(Ok(room))) => room,
                    Some(Some(Err(error))) => return Err(refused(error)),
                    Some(None) => return Err((self.receiver)(Cause::StreamReset)),
                    None => {
                        to.borrow_mut().send_reset(Reason::CANCEL);
                        return Err((self.receiver)(Cause::Timeout));
                    }
                };
            }
            let part = piece.split_to(room.min(most));
            if part.is_empty() {
                continue;
            }
            let last = ended && piece.is_empty();
            if let Some(shape) = self.shape {
                shape.gone(part.len(), self.shard.clock.now());
            }
            to.borrow_mut().send_data(part, last).map_err(refused)?;
            if piece.is_empty() {
                return Ok(());
            }
        }
    }

    async fn grant(&self, shape: &Shape, want: usize) -> Result<usize, Failure> {
        let stage = (self.sender)(Cause::Timeout).stage;
        shaped::grant(shape, self.shard, self.account, self.alarm, self.deadline, stage, want).await
    }

    /// How much of a body that something is done to may go next.
    async fn may_put(&self, shape: &Shape, want: usize) -> Result<usize, Failure> {
        let granted = self.grant(shape, want).await;
        if shape.was_truncated() {
            self.octets.set(shape.passed());
            shaped::let_leave(self.shard, self.alarm).await;
        }
        granted
    }

    /// Sends a piece of such a body by HTTP/1.1, with what is in `out` before it.
    async fn write_shaped(
        &self,
        shape: &Shape,
        mut piece: Bytes,
        framing: Framing,
        to: &mut Writer,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        while !piece.is_empty() {
            let granted = self.grant(shape, piece.len()).await;
            if shape.was_truncated() {
                self.octets.set(shape.passed());
                // The head, where nothing of the body was to go.
                self.write(to, out).await?;
            }
            let part = piece.split_to(granted?);
            match framing {
                Framing::Chunked => body::write_chunk(&part, out),
                _ => out.extend_from_slice(&part),
            }
            self.write(to, out).await?;
            shape.gone(part.len(), self.shard.clock.now());
        }
        Ok(())
    }

    async fn write(&self, to: &mut Writer, out: &mut Vec<u8>) -> Result<(), Failure> {
        if out.is_empty() {
            return Ok(());
        }
        let patience = Patience { clock: &self.shard.clock, stall: self.write_stall, until: self.deadline };
        self.account.wait(self.shard.clock.now());
        let written = to.write_all(out, 0, patience).await;
        self.account.waited(self.shard.clock.now());
        out.clear();
        written.map_err(|fault| (self.receiver)(super::cause(fault)))
    }

    fn count(&self, octets: usize) -> Result<(), Failure> {
        let all = self.octets.get() + octets as u64;
        self.octets.set(all);
        if self.octets_max > 0 && all > self.octets_max {
            return Err((self.sender)(Cause::BodyTooLarge));
        }
        Ok(())
    }
}

/// Runs `exchange` to its end; tells `on_reset` once when the peer resets the stream meanwhile, so that it can hurry it.
/// Not an `async fn`, which would have room for the exchange twice.
pub(super) fn unless_reset<R, H, E>(reset: R, on_reset: H, exchange: E) -> UnlessReset<R, H, E>
where
    R: FnMut(&mut Context<'_>) -> Poll<Result<Reason, h2::Error>>,
    H: FnMut(),
    E: Future,
{
    UnlessReset { reset, on_reset, was_reset: false, exchange }
}

pin_project! {
    /// See [`unless_reset`]. Its output is the exchange's, and whether there was a reset.
    pub(super) struct UnlessReset<R, H, E> {
        reset: R,
        on_reset: H,
        was_reset: bool,
        #[pin]
        exchange: E,
    }
}

impl<R, H, E> Future for UnlessReset<R, H, E>
where
    R: FnMut(&mut Context<'_>) -> Poll<Result<Reason, h2::Error>>,
    H: FnMut(),
    E: Future,
{
    type Output = (E::Output, bool);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(done) = this.exchange.as_mut().poll(cx) {
            return Poll::Ready((done, *this.was_reset));
        }
        if !*this.was_reset && (this.reset)(cx).is_ready() {
            *this.was_reset = true;
            (this.on_reset)();
            // What it did may have ended the wait at once.
            if let Poll::Ready(done) = this.exchange.as_mut().poll(cx) {
                return Poll::Ready((done, true));
            }
        }
        Poll::Pending
    }
}
