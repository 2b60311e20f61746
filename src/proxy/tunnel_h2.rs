//! Tunnels of which one end or both are streams of HTTP/2 connections (RFC 9113 §8.5, RFC 8441).
//!
//! A WebSocket comes as an extended CONNECT or as a handshake of HTTP/1.1 and goes on as what the next hop speaks: between
//! two ringmeshes always as the former, so it comes out as it went in. Where HTTP/1.1 follows, the key is made here and the
//! answer to it checked here; where it came from, the caller's own key is answered here. END_STREAM is the end of one
//! direction, RST_STREAM is a reset. A stream's window is opened again when what came was handed over, so a side that does
//! not read stops the other. Knows nothing of frames of WebSockets.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{Request, Response, StatusCode};

use super::again::Missed;
use super::connect::To;
use super::from_h2::Call;
use super::over_h1::Done;
use super::over_h2::Back;
use super::relay::unless_reset;
use super::tunnel::{Agreed, Cut, End, Far, Near, Sink, Source, through};
use super::{Path, SHED, Settled};
use crate::authorize::Policy;
use crate::downstream::{Asked, Downstream, Tunnel};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::h2::{self as message, Origin};
use crate::http::respond;
use crate::http::websocket;
use crate::io::idle::Idle;
use crate::io::{Connection, Fault, Patience, Waited};
use crate::route::Route;
use crate::shard::buffers::Buffer;
use crate::shard::live::{AskAgain, Ending, Kind, Open, With};
use crate::upstream::pool::Pooled;
use crate::upstream::service::Attempt;
use crate::upstream::shared::Lease;
use crate::upstream::spec;

/// Why a tunnel is not to be had, if one is asked for by HTTP/2: the route decides.
pub(super) fn refused(tunnel: Option<message::Tunnel>, route: Option<&Route>) -> Option<Failure> {
    let cause = match tunnel? {
        message::Tunnel::Unknown => return Some(Failure::downstream(Stage::Head, Cause::UpgradeRefused)),
        message::Tunnel::WebSocket if route.is_some_and(|route| !route.upgrades.websocket) => {
            Cause::UpgradeRefused
        }
        message::Tunnel::Plain if !route.is_some_and(|route| route.upgrades.connect) => Cause::MethodRefused,
        message::Tunnel::WebSocket | message::Tunnel::Plain => return None,
    };
    Some(Failure::local(Stage::Route, cause))
}

/// What rules say of a request that came by HTTP/2 and was served long ago.
fn ask_again(parts: Parts) -> AskAgain {
    Box::new(move |policy: &Policy, caller| {
        policy.decide(&message::call(caller, &parts, &message::Fields(&parts)), |_| {}).verdict
    })
}

/// What a service has said to a caller that speaks HTTP/2.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made")]
enum Said {
    /// It agrees, with this head.
    Yes(Response<()>, Far),
    /// Something else, which the caller has got as a response like others.
    Otherwise,
}

impl Call<'_> {
    /// Serves a CONNECT, extended or plain, that the route allows. `body` is what the caller sends in the tunnel.
    pub(super) async fn tunnel(&self, body: RecvStream, route: &Route) -> Result<(), Failure> {
        let path = &self.path;
        let agreed = loop {
            let (attempt, to) = match self.connect().await {
                Ok(connected) => connected,
                Err(failure) => match path.missed(failure, false) {
                    Missed::Failed(failure) => return Err(failure),
                    Missed::Again => {
                        path.pause().await;
                        continue;
                    }
                },
            };
            let began = path.shard.clock.now();
            let (said, may_repeat) = match to {
                To::H1(pooled) if self.is_direct() => (Ok(self.directly(pooled)), false),
                To::H1(pooled) => {
                    let reused = pooled.reused;
                    let said = self.handshake(pooled, &attempt).await;
                    let stale = reused
                        && !attempt.has_answered()
                        && matches!(&said, Err(f) if f.side == Side::Upstream && matches!(f.cause, Cause::Closed | Cause::Reset));
                    (said, stale)
                }
                To::H2(lease) => {
                    let said = self.ask(lease, &attempt).await;
                    let unseen = matches!(&said, Err(failure) if failure.nothing_was_sent());
                    (said, unseen)
                }
            };
            path.judge(&attempt, began, said.as_ref().err());
            match said {
                Ok(Said::Yes(head, far)) => break (head, Agreed { attempt, far }),
                Ok(Said::Otherwise) => return Ok(()),
                // Nothing of the tunnel has left: what the caller sent in it waits.
                Err(_) if may_repeat && path.replays_unseen() => {}
                Err(failure) => return Err(failure),
            }
        };
        self.begin(agreed, body, route).await
    }

    /// Tells the caller that the tunnel stands, and carries it to its end.
    async fn begin(
        &self,
        (head, agreed): (Response<()>, Agreed),
        body: RecvStream,
        route: &Route,
    ) -> Result<(), Failure> {
        self.path.in_time()?;
        let told = self.respond.borrow_mut().send_response(head, false);
        let send = told.map_err(|_| Failure::downstream(Stage::Body, Cause::StreamReset))?;
        self.path.account.status.set(200);
        let notice = Rc::new(Ending::default());
        let open = Open {
            peer: self.caller.identity.clone(),
            with: With::Caller {
                source: self.caller.peer.ip(),
                listener: self.caller.listener.clone(),
                port: self.caller.port,
                encrypted: self.caller.encrypted,
            },
            kind: Kind::Tunnel(ask_again(self.parts.clone()), Rc::clone(&notice)),
        };
        let _listed = self.path.shard.live.list(open);
        let cut = if self.is_websocket() { Stream::CUT_WEBSOCKET } else { Stream::CUT_PLAIN };
        let end = Stream::new(send, cut);
        let near = Near { end: &end, source: end.source(body), sink: &end, early: Buffer::default() };
        through(&self.path, near, agreed, route.tunnel_idle, &notice, cut).await
    }

    fn is_websocket(&self) -> bool {
        self.facts.tunnel == Some(message::Tunnel::WebSocket)
    }

    /// Whether a connection to the service is the tunnel itself: where nobody is there who would understand CONNECT.
    fn is_direct(&self) -> bool {
        !self.is_websocket() && !matches!(self.path.service.spec.tls, spec::Tls::Mesh(_))
    }

    async fn connect(&self) -> Result<(Attempt, To), Failure> {
        let connect = async {
            match self.is_websocket() {
                // Boxed: rare, and larger than what is needed otherwise.
                true => Box::pin(self.path.connect_for_websocket()).await,
                false => self.path.connect(self.is_direct()).await,
            }
        };
        let (connected, reset) =
            unless_reset(|cx| self.respond.borrow_mut().poll_reset(cx), || {}, connect).await;
        if reset { Err(Failure::downstream(Stage::Request, Cause::StreamReset)) } else { connected }
    }

    fn directly(&self, pooled: Pooled) -> Said {
        self.path.account.answered(self.path.shard.clock.now());
        Said::Yes(self.agree(Response::new(())), Far::Connection { pooled, behind: Buffer::default() })
    }

    /// Asks a service that speaks HTTP/1.1.
    async fn handshake(&self, mut pooled: Pooled, attempt: &Attempt) -> Result<Said, Failure> {
        let buffers = &self.path.shard.buffers;
        let mut out = buffers.take_small().ok_or(SHED)?;
        let Some(mut input) = buffers.take_small() else {
            buffers.give(out);
            return Err(SHED);
        };
        let result = self.handshake_with(&mut pooled, attempt, &mut out, &mut input).await;
        buffers.give(out);
        let result = result.map(|said| match said {
            Ok(head) => {
                let far = Far::Connection { pooled, behind: std::mem::take(&mut input) };
                Said::Yes(self.agree(head), far)
            }
            Err(done) => {
                self.done_with_h1(done, pooled, attempt);
                Said::Otherwise
            }
        });
        buffers.give(input);
        result
    }

    /// The head that agrees; what came behind it is left in `input`. Anything else has been passed on, and is done with.
    async fn handshake_with(
        &self,
        pooled: &mut Pooled,
        attempt: &Attempt,
        out: &mut Buffer,
        input: &mut Buffer,
    ) -> Result<Result<Response<()>, Done>, Failure> {
        let shard = self.path.shard;
        let mut accept = None;
        if self.is_websocket() {
            let key = websocket::key_of(shard.rng(|rng| rng.u128(..)).to_ne_bytes());
            accept = websocket::accept_of(&key);
            message::write_h1_handshake(self.parts, self.facts, &self.forwarding(), &key, out);
        } else {
            let facts = message::Facts { framing: crate::http::Framing::None, ..self.facts.clone() };
            message::write_h1(self.parts, &facts, &self.forwarding(), out);
        }
        if let Some(turn) = self.turn {
            turn.apply_to_request(out);
        }
        let origin = pooled.connection.control();
        let Connection { reader, writer, .. } = &mut pooled.connection;
        let stall = self.path.service.spec.timeouts.body_stall;
        let patience = Patience { clock: &shard.clock, stall, until: self.path.deadline };
        let sent = writer.write_all(out, 0, patience).await;
        sent.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
        let (answer, reset) = unless_reset(
            |cx| self.respond.borrow_mut().poll_reset(cx),
            || origin.shutdown(),
            self.head_from_h1(reader, input, &Cell::new(true), attempt, accept.as_ref()),
        )
        .await;
        if reset {
            return Err(Failure::downstream(Stage::Response, Cause::StreamReset));
        }
        let mut answer = answer?;
        let status = answer.head.status();
        if status == StatusCode::SWITCHING_PROTOCOLS || (!self.is_websocket() && status.is_success()) {
            input.drain(..answer.head_len);
            return Ok(Ok(answer.head));
        }
        self.pass_on_from_h1(&mut answer, reader, &origin, input, &shard.deadlines.alarm()).await.map(Err)
    }

    /// Asks a service that speaks HTTP/2.
    async fn ask(&self, lease: Lease, attempt: &Attempt) -> Result<Said, Failure> {
        let parts = self.forwarded(&lease);
        let (mut response, mut send) = lease.send(Request::from_parts(parts, ()), false)?;
        let alarm = self.path.shard.deadlines.alarm();
        let result = self.head_from_h2(&mut response, &alarm, &Cell::new(true), attempt).await;
        if let Err(failure) = &result {
            lease.leave_if_going(*failure);
        }
        let response = result?;
        if response.status().is_success() {
            let (parts, recv) = response.into_parts();
            return Ok(Said::Yes(
                self.agree(Response::from_parts(parts, ())),
                Far::Stream { send, recv, lease },
            ));
        }
        // Nothing will follow on the way there.
        let _ = send.send_data(Bytes::new(), true);
        self.pass_on_from_h2(&mut Some(response), None, &alarm).await?;
        Ok(Said::Otherwise)
    }

    /// The head that tells the caller that the tunnel stands.
    fn agree(&self, head: Response<()>) -> Response<()> {
        let (mut parts, ()) = head.into_parts();
        message::agree(&mut parts, &self.path.shard.clock);
        Response::from_parts(parts, ())
    }
}

/// Asks a service that speaks HTTP/2 for the tunnel that a caller by HTTP/1.1 wants; `head` is the canonical one. Also gives
/// the caller the answer.
///
/// # Errors
/// The failure. `StreamRefused` and `GoingAway` say that the service has seen nothing.
pub(super) async fn ask(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    head: &[u8],
    attempt: Attempt,
    lease: Lease,
) -> Result<Settled, Failure> {
    let began = path.shard.clock.now();
    let mut out = path.shard.buffers.take_small().ok_or(SHED)?;
    let said = ask_for_h1(path, downstream, asked, head, &lease, &attempt, &mut out).await;
    path.shard.buffers.give(out);
    if let Err(failure) = &said {
        lease.leave_if_going(*failure);
    }
    path.judge(&attempt, began, said.as_ref().err());
    Ok(match said? {
        Ok((send, recv)) => {
            Settled::Tunnel(Box::new(Agreed { attempt, far: Far::Stream { send, recv, lease } }))
        }
        Err(fate) => Settled::Fate(fate),
    })
}

/// The service's stream where it agrees; what becomes of the caller's connection where it does not.
async fn ask_for_h1(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    head: &[u8],
    lease: &Lease,
    attempt: &Attempt,
    out: &mut Buffer,
) -> Result<Result<(SendStream<Bytes>, RecvStream), super::Fate>, Failure> {
    let shard = path.shard;
    let origin = lease.is_mesh().then_some(Origin(asked.version));
    let mut request = message::from_canonical(head, origin, lease.is_encrypted())
        .map_err(|cause| Failure::local(Stage::Request, cause))?;
    let accept = match asked.tunnel.as_deref() {
        Some(Tunnel::WebSocket(accept)) => {
            message::extend_connect(&mut request);
            Some(accept)
        }
        Some(Tunnel::Connect) | None => None,
    };
    let (mut response, mut send) = lease.send(request, false)?;
    let alarm = shard.deadlines.alarm();
    let back = Back { path, asked, alarm: &alarm, attempt, sent: &Cell::new(true), web: None };
    let writer = &mut downstream.connection.writer;
    let response = back.head(&mut response, writer).await?;
    if !response.status().is_success() {
        // Nothing will follow on the way there.
        let _ = send.send_data(Bytes::new(), true);
        return back.pass_on(response, writer, out).await.map(Err);
    }
    path.in_time()?;
    let (mut parts, recv) = response.into_parts();
    match accept {
        Some(accept) => {
            message::write_h1_agreed(&mut parts, accept, &shard.clock, out);
            path.account.status.set(101);
        }
        None => {
            respond::write_connected(&shard.clock, out);
            path.account.status.set(200);
        }
    }
    back.send(writer, out).await?;
    Ok(Ok((send, recv)))
}

/// A stream as the end of a tunnel.
pub(super) struct Stream {
    send: RefCell<SendStream<Bytes>>,
    /// Ended from here: nobody waits on it any more.
    over: Cell<bool>,
    /// How the peer is told that it is cut.
    cut: Reason,
}

impl Stream {
    /// How a WebSocket is cut (RFC 8441 §5).
    pub(super) const CUT_WEBSOCKET: Reason = Reason::CANCEL;
    /// How a plain CONNECT is cut (RFC 9113 §8.5).
    pub(super) const CUT_PLAIN: Reason = Reason::CONNECT_ERROR;

    pub(super) fn new(send: SendStream<Bytes>, cut: Reason) -> Self {
        Self { send: RefCell::new(send), over: Cell::new(false), cut }
    }

    /// What comes on it.
    pub(super) fn source(&self, recv: RecvStream) -> Incoming<'_> {
        Incoming { stream: self, recv, piece: Bytes::new(), taken: 0 }
    }

    fn end(&self, reason: Reason) {
        self.over.set(true);
        self.send.borrow_mut().send_reset(reason);
    }

    /// Waits until so much can be sent, or less; how much.
    async fn room(&self, wanted: usize) -> Result<usize, Fault> {
        poll_fn(|cx| {
            if self.over.get() {
                return Poll::Ready(Err(Fault::Closed));
            }
            let mut send = self.send.borrow_mut();
            send.reserve_capacity(wanted);
            if send.capacity() > 0 {
                return Poll::Ready(Ok(send.capacity().min(wanted)));
            }
            match send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(room))) => Poll::Ready(Ok(room.min(wanted))),
                Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Err(Fault::Reset)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// What comes on a stream.
pub(super) struct Incoming<'s> {
    stream: &'s Stream,
    recv: RecvStream,
    /// What came and was not taken yet.
    piece: Bytes,
    /// Octets that were taken and for which the window was not opened again yet.
    taken: usize,
}

impl Incoming<'_> {
    /// The next piece, empty at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        if self.stream.over.get() {
            return Poll::Ready(Err(Fault::Closed));
        }
        self.recv.poll_data(cx).map(|piece| piece.transpose().map_err(|_| Fault::Reset))
    }

    async fn piece_at_hand(&mut self) -> Poll<Result<Option<Bytes>, Fault>> {
        poll_fn(|cx| Poll::Ready(self.poll_piece(cx))).await
    }
}

impl Source for Incoming<'_> {
    /// Takes what is there, pieces together. Never waits: nothing is gained by holding a buffer for a stream.
    async fn read(&mut self, buffer: &mut Buffer, _: u64) -> Result<Waited, Fault> {
        // All of the last read has been handed over. Fails for a stream that has ended only.
        let _ = self.recv.flow_control().release_capacity(std::mem::take(&mut self.taken));
        let before = buffer.len();
        while buffer.len() < buffer.capacity() {
            if self.piece.is_empty() {
                match self.piece_at_hand().await {
                    Poll::Ready(Ok(Some(piece))) => self.piece = piece,
                    // Told again by the next read.
                    Poll::Ready(_) | Poll::Pending if buffer.len() > before => break,
                    Poll::Ready(Ok(None)) => return Ok(Waited::Closed),
                    Poll::Ready(Err(fault)) => return Err(fault),
                    Poll::Pending => return Ok(Waited::Quiet),
                }
            }
            let n = self.piece.len().min(buffer.capacity() - buffer.len());
            buffer.extend_from_slice(&self.piece[..n]);
            self.piece.advance(n);
            self.taken += n;
        }
        Ok(Waited::Bytes(buffer.len() - before))
    }

    async fn readable(&mut self) -> Result<(), Fault> {
        if !self.piece.is_empty() {
            return Ok(());
        }
        // The end is told again by the next read.
        let piece = poll_fn(|cx| self.poll_piece(cx)).await?;
        self.piece = piece.unwrap_or_default();
        Ok(())
    }
}

impl Sink for &Stream {
    async fn write(&mut self, buffer: &mut Buffer, idle: &Idle<'_>) -> Result<(), Fault> {
        let mut at = 0;
        while at < buffer.len() {
            let room = self.room(buffer.len() - at).await?;
            if room > 0 {
                let part = Bytes::copy_from_slice(&buffer[at..at + room]);
                self.send.borrow_mut().send_data(part, false).map_err(|_| Fault::Reset)?;
                at += room;
                idle.moved();
            }
        }
        Ok(())
    }

    async fn finish(&mut self) {
        // Fails for a stream that has been reset only, which the other direction is told.
        let _ = self.send.borrow_mut().send_data(Bytes::new(), true);
    }
}

impl End for Stream {
    fn reset(&self) {
        self.end(self.cut);
    }

    fn shutdown(&self) {
        self.end(Reason::CANCEL);
    }

    fn enough(&self) {
        // Not a reset of our own: that would throw away what waits for the window. h2 says it behind that, when the stream
        // is dropped.
        self.over.set(true);
    }

    fn write_until(&self, _: u64) {
        // A write has no deadline but the tunnel's own.
    }

    fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        if self.over.get() {
            return Poll::Pending;
        }
        self.send.borrow_mut().poll_reset(cx).map(|reason| match reason {
            Ok(Reason::NO_ERROR) => Cut::Enough,
            Ok(_) | Err(_) => Cut::Reset,
        })
    }
}
