//! Bytes: the only code that knows the runtime's I/O traits, times out or cancels an operation.
//!
//! A [`Connection`] is a socket in two halves that can be used at the same time, each operation with a deadline. Reads
//! append to a buffer's spare capacity, writes take a buffer from a given offset; while the operation is in flight the
//! kernel owns the buffer and an empty one stands in its place. A connection can become encrypted ([`tls`]), and it can be a
//! stream among many that share a socket ([`lane`]): it is read and written as before, by the same code. Knows nothing of HTTP/1.

pub mod gather;
pub mod idle;
pub mod lane;
mod records;
pub(crate) mod sealed;
pub mod sni;
pub(crate) mod sys;
pub mod timed;
pub mod tls;

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut, SliceMut};
use monoio::io::{
    AsyncReadRent, AsyncWriteRent, CancelableAsyncReadRent, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{TcpStream, UnixStream};

use crate::shard::clock::Clock;
use crate::upstream::spec::Address;
use lane::Lane;
use timed::{Deadlines, OnDeadline, Ticket};
use tls::Tls;

/// A stream socket with deadlines.
pub struct Connection {
    /// What is read from the peer.
    pub reader: Reader,
    /// What is written to the peer.
    pub writer: Writer,
}

/// The receiving half of a [`Connection`].
pub struct Reader {
    joint: Rc<Joint>,
    half: ReadHalf,
}

/// The sending half of a [`Connection`].
pub struct Writer {
    // The last owner of the ticket and of the socket; fields are dropped in this order.
    joint: Rc<Joint>,
    half: WriteHalf,
}

/// What both halves share.
struct Joint {
    ticket: Ticket,
    /// Halves that are left. With the last one the socket's number may be another connection's.
    halves: Cell<u8>,
    /// Set once, by a handshake.
    tls: OnceCell<Box<Tls>>,
    /// In place of a socket.
    lane: Option<Box<Lane>>,
}

/// How long a write may take: as long as the peer takes something now and then, and not beyond the end.
#[derive(Clone, Copy)]
pub struct Patience<'c> {
    /// The shard's clock.
    pub clock: &'c Clock,
    /// Without any progress.
    pub stall: Duration,
    /// At the latest.
    pub until: u64,
}

impl Patience<'_> {
    fn deadline(&self) -> u64 {
        self.clock.after(self.stall).min(self.until)
    }
}

/// Ends waits on a connection from outside of the operation.
pub struct Control {
    joint: Rc<Joint>,
}

/// Why an operation did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its deadline came.
    Timeout,
    /// The peer has closed the connection where more was to come.
    Closed,
    /// The peer reset the connection, or what came is not decryptable.
    Reset,
    /// The peer has ended an encrypted connection with an alert.
    Alert,
    /// The peer had reset the connection before a byte was written to it: it cannot have seen any.
    Unsent,
    /// Nothing listens there.
    Refused,
    /// There is no way there.
    Unreachable,
    /// This side is out of something (descriptors, ports, memory).
    Exhausted,
    /// [`Control::cancel_read`] ended it.
    Cancelled,
    /// The peer of a lane has said that it took nothing of it: because it has no room, or because it is going.
    Untaken,
    /// See above.
    Going,
}

/// How the wait for a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// That many bytes came.
    Bytes(usize),
    /// The peer closed.
    Closed,
    /// Nothing came in the time that a buffer is held for.
    Quiet,
}

enum ReadHalf {
    Tcp(OwnedReadHalf<TcpStream>),
    Unix(OwnedReadHalf<UnixStream>),
    Lane,
}

enum WriteHalf {
    Tcp(OwnedWriteHalf<TcpStream>),
    Unix(OwnedWriteHalf<UnixStream>),
    Lane,
}

macro_rules! each {
    ($half:ident, $kind:expr, $inner:ident => $do:expr) => {
        match $kind {
            $half::Tcp($inner) => $do,
            $half::Unix($inner) => $do,
            // What a lane does is done before a socket is asked for.
            $half::Lane => unreachable!("a lane has no socket"),
        }
    };
}

impl Connection {
    /// Takes an accepted TCP connection.
    pub fn accepted(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Self {
        // Heads and short bodies leave in one write, so waiting for more (Nagle) only delays; an error means that the
        // peer is gone already, which the first read will tell.
        let _ = stream.set_nodelay(true);
        Self::tcp(stream, deadlines)
    }

    /// Connects to an endpoint.
    ///
    /// # Errors
    /// `Timeout` after `timeout`, else what the kernel says.
    pub async fn connect(
        address: &Address,
        timeout: Duration,
        deadlines: &Rc<Deadlines>,
    ) -> Result<Self, Fault> {
        // Dropping a connect in flight is sound: no bytes can be lost and the runtime cancels it.
        #[expect(clippy::disallowed_methods, reason = "this is io, and a connect may be dropped")]
        let connected = match address {
            Address::Ip(address) => monoio::time::timeout(timeout, TcpStream::connect_addr(*address))
                .await
                .map(|r| r.map(|s| Self::accepted(s, deadlines))),
            Address::Unix(path) => monoio::time::timeout(timeout, UnixStream::connect(path))
                .await
                .map(|r| r.map(|s| Self::unix(s, deadlines))),
        };
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Fault::of_connect(&error)),
            Err(_) => Err(Fault::Timeout),
        }
    }

    /// Looks whether a connection at rest is still open and silent. One system call, no wait. What TLS has to say to
    /// itself is taken in.
    pub fn is_usable(&self) -> bool {
        if let Some(lane) = self.reader.joint.lane() {
            return lane.is_at_rest();
        }
        let socket = self.reader.joint.ticket.socket();
        match (sys::peek(socket), self.tls()) {
            (sys::Peek::Silent, None) => true,
            (sys::Peek::Silent, Some(tls)) => !tls.is_ready(),
            (sys::Peek::Bytes, Some(tls)) => tls.is_at_rest(socket),
            (sys::Peek::Bytes, None) | (sys::Peek::Closed, _) => false,
        }
    }

    /// Whether bytes wait to be read: closing now would reset the connection and could destroy what was sent last.
    pub fn has_unread(&self) -> bool {
        self.reader.joint.has_unread()
    }

    /// Resets the connection: the only way to tell the peer that a body that ends with it is cut.
    pub fn reset(&self) {
        self.reader.joint.reset();
    }

    /// Whether nobody on the way can read what is sent.
    pub fn is_encrypted(&self) -> bool {
        self.tls().is_some() || self.is_lane()
    }

    /// Whether it is a stream among many.
    pub fn is_lane(&self) -> bool {
        self.reader.joint.lane().is_some()
    }

    /// Whether so many octets can be written at once; else nothing is promised.
    pub fn has_room(&self, octets: usize) -> bool {
        let Some(lane) = self.reader.joint.lane() else { return true };
        let has = lane.room(octets) == Ok(octets);
        if !has {
            lane.give_back_room();
        }
        has
    }

    /// Waits until so many octets can be written at once; whether they can.
    pub async fn gets_room(&mut self, octets: usize, deadline: u64) -> bool {
        let joint = &self.writer.joint;
        let Some(lane) = joint.lane() else { return true };
        joint.ticket.arm_write(deadline);
        let has = poll_fn(|cx| match lane.poll_room_for_all(octets, cx) {
            Poll::Pending if joint.ticket.write_has_ended(cx.waker()) => Poll::Ready(false),
            polled => polled,
        });
        let has = has.await;
        joint.ticket.disarm_write();
        if !has {
            lane.give_back_room();
        }
        has
    }

    /// A lane as a connection. What carries it is encrypted.
    pub fn of_lane(lane: Lane, deadlines: &Rc<Deadlines>) -> Self {
        let ticket = deadlines.register_without_socket();
        Self::new(ticket, ReadHalf::Lane, WriteHalf::Lane, Some(Box::new(lane)))
    }

    /// The handle to end waits on this connection while its halves are in use.
    pub fn control(&self) -> Control {
        self.reader.control()
    }

    fn tcp(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Self {
        let ticket = deadlines.register(stream.as_raw_fd());
        let (read, write) = stream.into_split();
        Self::new(ticket, ReadHalf::Tcp(read), WriteHalf::Tcp(write), None)
    }

    fn unix(stream: UnixStream, deadlines: &Rc<Deadlines>) -> Self {
        let ticket = deadlines.register(stream.as_raw_fd());
        let (read, write) = stream.into_split();
        Self::new(ticket, ReadHalf::Unix(read), WriteHalf::Unix(write), None)
    }

    fn new(ticket: Ticket, read: ReadHalf, write: WriteHalf, lane: Option<Box<Lane>>) -> Self {
        let joint = Rc::new(Joint { ticket, halves: Cell::new(2), tls: OnceCell::new(), lane });
        Self {
            reader: Reader { half: read, joint: Rc::clone(&joint) },
            writer: Writer { half: write, joint },
        }
    }
}

impl Reader {
    /// Reads into the spare capacity of `buffer` less `keep_free` bytes at its end; 0 is end of file (also when there is
    /// no spare capacity).
    ///
    /// # Errors
    /// `Timeout` at `deadline`, `Reset`.
    pub async fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        keep_free: usize,
        deadline: u64,
        on: OnDeadline,
    ) -> Result<usize, Fault> {
        if self.is_lane() {
            let read = self.joint.read_lane(buffer, keep_free, deadline).await;
            if read == Err(Fault::Timeout) && on != OnDeadline::ShutdownRead {
                self.joint.reset();
            }
            return read;
        }
        if let Some(ready) = self.joint.ready(buffer, keep_free) {
            return ready;
        }
        self.joint.ticket.arm_read(deadline, on);
        loop {
            let slice = spare(buffer, keep_free);
            let (result, slice) = each!(ReadHalf, &mut self.half, half => half.read(slice).await);
            *buffer = slice.into_inner();
            // Encrypted, it may take several reads.
            if let Some(result) = self.joint.took(buffer, keep_free, result) {
                return outcome(result, self.joint.ticket.disarm_read());
            }
        }
    }

    /// As [`Reader::read`], but [`Control::cancel_read`] can end it without hurting the connection.
    ///
    /// # Errors
    /// `Timeout` at `deadline`, `Cancelled`, `Reset`.
    pub async fn read_cancelable(
        &mut self,
        buffer: &mut Vec<u8>,
        keep_free: usize,
        deadline: u64,
    ) -> Result<usize, Fault> {
        if self.is_lane() {
            return self.joint.read_lane(buffer, keep_free, deadline).await;
        }
        if let Some(ready) = self.joint.ready(buffer, keep_free) {
            return ready;
        }
        let mut cancel = self.joint.ticket.arm_cancelable(deadline);
        loop {
            let slice = spare(buffer, keep_free);
            let (result, slice) =
                each!(ReadHalf, &mut self.half, half => half.cancelable_read(slice, cancel).await);
            *buffer = slice.into_inner();
            if let Some(result) = self.joint.took_unless_cancelled(buffer, keep_free, result) {
                let fired = self.joint.ticket.disarm_read();
                // Bytes that came in the same moment are not lost.
                return result.map_err(|fault| if fired { Fault::Timeout } else { fault });
            }
            cancel = self.joint.ticket.cancel_handle();
        }
    }

    /// Waits for the first bytes of a request with a buffer at hand, until `hold_until`.
    ///
    /// # Errors
    /// `Reset`.
    pub async fn read_or_quiet(&mut self, buffer: &mut Vec<u8>, hold_until: u64) -> Result<Waited, Fault> {
        let waited = |result| match result {
            Ok(0) | Err(Fault::Closed) => Ok(Waited::Closed),
            Ok(n) => Ok(Waited::Bytes(n)),
            Err(fault) => Err(fault),
        };
        if self.is_lane() {
            let read = self.joint.read_lane(buffer, 0, hold_until).await;
            return if read == Err(Fault::Timeout) { Ok(Waited::Quiet) } else { waited(read) };
        }
        if let Some(ready) = self.joint.ready(buffer, 0) {
            return waited(ready);
        }
        let mut cancel = self.joint.ticket.arm_idle(hold_until);
        loop {
            let slice = spare(buffer, 0);
            let (result, slice) =
                each!(ReadHalf, &mut self.half, half => half.cancelable_read(slice, cancel).await);
            *buffer = slice.into_inner();
            if let Some(result) = self.joint.took_unless_cancelled(buffer, 0, result) {
                let fired = self.joint.ticket.disarm_read();
                return if fired && result.is_err() { Ok(Waited::Quiet) } else { waited(result) };
            }
            cancel = self.joint.ticket.cancel_handle();
        }
    }

    /// As [`Connection::control`].
    pub fn control(&self) -> Control {
        Control { joint: Rc::clone(&self.joint) }
    }

    /// As [`Connection::is_lane`].
    pub fn is_lane(&self) -> bool {
        self.joint.lane().is_some()
    }

    /// Waits, holding nothing, until something can be read.
    ///
    /// # Errors
    /// `Timeout` at `deadline` (the connection is then shut down).
    pub async fn readable(&mut self, clock: &Clock, deadline: u64) -> Result<(), Fault> {
        if self.is_lane() {
            return self.lane_readable(clock, deadline).await.map(drop);
        }
        if self.joint.is_ready_before_rest() {
            return Ok(());
        }
        self.joint.ticket.arm_parked(clock, deadline);
        let result = each!(ReadHalf, &self.half, half => sys::stream(half).readable(false).await);
        let fired = self.joint.ticket.disarm_read();
        outcome(result.map_err(|error| Fault::of(&error)), fired)
    }
}

impl Reader {
    /// As [`Reader::readable`], of a lane.
    pub fn lane_readable(&mut self, clock: &Clock, deadline: u64) -> LaneRead<'_> {
        self.joint.ticket.arm_parked_lane(clock, deadline);
        LaneRead { joint: &self.joint, into: None }
    }

    /// As [`Reader::ready`], of a lane.
    pub fn lane_ready(&mut self, deadline: u64) -> LaneRead<'_> {
        self.joint.ticket.arm_lane(deadline);
        LaneRead { joint: &self.joint, into: None }
    }

    /// As [`Reader::readable`], but a drain does not cut it short: not idle, only quiet.
    ///
    /// # Errors
    /// `Timeout` at `deadline` (the connection is then shut down).
    pub async fn ready(&mut self, deadline: u64) -> Result<(), Fault> {
        if self.is_lane() {
            return self.lane_ready(deadline).await.map(drop);
        }
        if self.joint.is_ready_before_rest() {
            return Ok(());
        }
        self.joint.ticket.arm_read(deadline, OnDeadline::Shutdown);
        let result = each!(ReadHalf, &self.half, half => sys::stream(half).readable(false).await);
        let fired = self.joint.ticket.disarm_read();
        outcome(result.map_err(|error| Fault::of(&error)), fired)
    }
}

/// A wait for a lane that was armed, for octets or, without room for them, until there are any. By hand, as [`LaneWrite`] is: each is in the
/// futures of all connections, where an `async fn` would have room for its arguments twice and its code in the middle of theirs.
pub struct LaneRead<'w> {
    joint: &'w Joint,
    into: Option<(&'w mut Vec<u8>, usize)>,
}

impl Future for LaneRead<'_> {
    type Output = Result<usize, Fault>;

    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let joint = self.joint;
        let Some(lane) = joint.lane() else { return Poll::Ready(Ok(0)) };
        let polled = match &mut self.into {
            Some((buffer, room)) => lane.poll_read(buffer, *room, cx),
            None => lane.poll_readable(cx).map_ok(|()| 0),
        };
        if polled.is_pending() && !joint.ticket.has_ended(cx.waker()) {
            return Poll::Pending;
        }
        let fired = joint.ticket.disarm_read();
        let ended = Err(if fired { Fault::Timeout } else { Fault::Cancelled });
        if polled.is_pending() { Poll::Ready(ended) } else { polled }
    }
}

/// Writes octets from a place on to a lane.
struct LaneWrite<'w> {
    joint: &'w Joint,
    octets: &'w [u8],
    from: usize,
    at: usize,
    is_armed: bool,
    patience: Patience<'w>,
}

impl Future for LaneWrite<'_> {
    type Output = Result<(), Fault>;

    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { joint, octets, from, at, is_armed, patience } = &mut *self;
        let ticket = &joint.ticket;
        let Some(lane) = joint.lane() else { return Poll::Ready(Ok(())) };
        while *at < octets.len() {
            let room = match lane.poll_room(octets.len() - *at, cx) {
                Poll::Ready(room) => room,
                Poll::Pending => {
                    if !std::mem::replace(is_armed, true) {
                        ticket.arm_write(patience.deadline());
                    }
                    if !ticket.write_has_ended(cx.waker()) {
                        return Poll::Pending;
                    }
                    Err(Fault::Timeout)
                }
            };
            let sent = room.and_then(|room| lane.send(&octets[*at..*at + room]).map(|()| room));
            // Also where none was armed: it counts what was written.
            ticket.disarm_write();
            *is_armed = false;
            match sent {
                Ok(n) => *at += n,
                Err(fault) => {
                    // What is cut must not look whole.
                    joint.reset();
                    let untouched = fault == Fault::Reset && *at == *from;
                    return Poll::Ready(Err(if untouched { Fault::Unsent } else { fault }));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Joint {
    fn tls(&self) -> Option<&Tls> {
        self.tls.get().map(|tls| &**tls)
    }

    /// From now on everything is encrypted. Once: a handshake on top of another is not made.
    fn set_tls(&self, tls: Tls) {
        let _ = self.tls.set(Box::new(tls));
    }

    /// What a read gives without asking the socket: decrypted before.
    fn ready(&self, buffer: &mut Vec<u8>, keep_free: usize) -> Option<Result<usize, Fault>> {
        self.tls()?.ready(buffer, keep_free)
    }

    /// What a read of the socket came to; `None` when it was not enough.
    fn took(
        &self,
        buffer: &mut Vec<u8>,
        keep_free: usize,
        result: io::Result<usize>,
    ) -> Option<Result<usize, Fault>> {
        match (self.tls(), result) {
            (None, Ok(n)) => Some(Ok(n)),
            (Some(tls), Ok(n)) => tls.took(buffer, n, keep_free, self.ticket.socket()),
            (_, Err(error)) => Some(Err(Fault::of(&error))),
        }
    }

    /// As [`Joint::took`], but a read that was cancelled while it came is not begun again.
    fn took_unless_cancelled(
        &self,
        buffer: &mut Vec<u8>,
        keep_free: usize,
        result: io::Result<usize>,
    ) -> Option<Result<usize, Fault>> {
        self.took(buffer, keep_free, result)
            .or_else(|| self.ticket.is_cancelled().then_some(Err(Fault::Cancelled)))
    }

    fn lane(&self) -> Option<&Lane> {
        self.lane.as_deref()
    }

    /// A read of a lane into the spare capacity of `buffer` less `keep_free`. May be cancelled; what came in the same moment is not lost.
    fn read_lane<'w>(&'w self, buffer: &'w mut Vec<u8>, keep_free: usize, deadline: u64) -> LaneRead<'w> {
        let room = buffer.capacity().saturating_sub(keep_free).saturating_sub(buffer.len());
        self.ticket.arm_lane(deadline);
        LaneRead { joint: self, into: Some((buffer, room)) }
    }

    /// Ends the connection so that the peer knows that it is cut.
    fn reset(&self) {
        if let Some(lane) = self.lane() {
            lane.reset();
            return self.ticket.wake();
        }
        if let Some(tls) = self.tls() {
            tls.mute();
        }
        sys::reset(self.ticket.socket());
    }

    /// Ends the connection, and all waits on it.
    fn shutdown(&self) {
        match self.lane() {
            Some(_) => self.reset(),
            None => sys::shutdown_both(self.ticket.socket()),
        }
    }

    /// Whether bytes wait to be read, in the socket or decrypted already.
    fn has_unread(&self) -> bool {
        if let Some(lane) = self.lane() {
            return lane.has_unread();
        }
        sys::peek(self.ticket.socket()) == sys::Peek::Bytes || self.tls().is_some_and(Tls::is_ready)
    }

    /// Whether something is there that the socket does not know of; else nothing is held that can be given back.
    fn is_ready_before_rest(&self) -> bool {
        self.tls().is_some_and(|tls| {
            let ready = tls.is_ready();
            if !ready {
                tls.rest(self.ticket.socket());
            }
            ready
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.joint.halves.set(self.joint.halves.get() - 1);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.joint.halves.set(self.joint.halves.get() - 1);
        if let Some(lane) = self.joint.lane() {
            lane.finish();
        }
        if let Some(tls) = self.joint.tls()
            && !std::thread::panicking()
        {
            tls.close(self.joint.ticket.socket());
        }
    }
}

impl Control {
    /// Resets the connection, whoever waits on it. A Unix socket, which knows no reset, is shut down.
    pub fn reset(&self) {
        self.joint.reset();
        self.joint.shutdown();
    }

    /// Puts the deadline of a write in flight, if there is one, off to `deadline`.
    pub fn write_until(&self, deadline: u64) {
        self.joint.ticket.write_until(deadline);
    }

    /// Ends a [`Reader::read_cancelable`] in flight.
    pub fn cancel_read(&self) {
        self.joint.ticket.cancel_read();
    }

    /// Ends all waits on the connection, and the connection, if it still is one.
    pub fn shutdown(&self) {
        if self.joint.halves.get() > 0 {
            self.joint.shutdown();
        }
    }

    /// The same where `is_to`.
    pub fn shutdown_if(&self, is_to: bool) {
        if is_to {
            self.shutdown();
        }
    }

    /// Whether the peer has reset a lane, where it is one; else the task is woken when it does.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.joint.lane().map_or(Poll::Pending, |lane| lane.poll_reset(cx))
    }

    /// How many writes are over, parts of long ones included: while that stays as it is, the peer takes nothing. It wraps.
    pub fn writes(&self) -> u32 {
        self.joint.ticket.writes()
    }

    /// Brings the deadline of a read in flight forward to `deadline`.
    pub fn read_by(&self, deadline: u64) {
        self.joint.ticket.read_by(deadline);
    }
}

impl Writer {
    /// Writes all of `buffer` from `from` on.
    ///
    /// # Errors
    /// `Timeout` when patience ends, `Reset` or `Unsent` when the peer takes nothing (more).
    pub async fn write_all(
        &mut self,
        buffer: &mut Vec<u8>,
        from: usize,
        patience: Patience<'_>,
    ) -> Result<(), Fault> {
        if self.joint.lane().is_some() {
            return LaneWrite {
                joint: &self.joint,
                octets: buffer,
                from,
                at: from,
                is_armed: false,
                patience,
            }
            .await;
        }
        let mut at = from;
        let mut untouched = true;
        loop {
            let slice = match self.joint.tls() {
                None if at < buffer.len() => std::mem::take(buffer).slice(at..),
                None => return Ok(()),
                Some(tls) => match tls.seal(buffer, &mut at)? {
                    Some((sealed, from)) => sealed.slice(from..),
                    None => return Ok(()),
                },
            };
            self.joint.ticket.arm_write(patience.deadline());
            let (written, slice) = each!(WriteHalf, &mut self.half, half => half.write(slice).await);
            let fired = self.joint.ticket.disarm_write();
            let n = *written.as_ref().unwrap_or(&0);
            match self.joint.tls() {
                None => {
                    *buffer = slice.into_inner();
                    at += n;
                }
                Some(tls) if n > 0 => tls.sent(slice.into_inner(), n),
                // A record may be cut.
                Some(tls) => tls.mute(),
            }
            let fault = match written {
                Ok(n) if n > 0 => {
                    untouched = false;
                    continue;
                }
                _ if fired => Fault::Timeout,
                Ok(_) => Fault::Reset,
                Err(error) => Fault::of(&error),
            };
            return Err(if untouched && fault == Fault::Reset { Fault::Unsent } else { fault });
        }
    }

    /// As [`Connection::control`].
    pub fn control(&self) -> Control {
        Control { joint: Rc::clone(&self.joint) }
    }

    /// As [`Connection::has_unread`].
    pub fn has_unread(&self) -> bool {
        self.joint.has_unread()
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        if let Some(lane) = self.joint.lane() {
            return lane.finish();
        }
        if let Some(tls) = self.joint.tls() {
            tls.close(self.joint.ticket.socket());
        }
        sys::shutdown_write(self.joint.ticket.socket());
    }
}

impl Fault {
    fn of(error: &io::Error) -> Self {
        if error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) {
            return Self::Cancelled;
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::OutOfMemory => Self::Exhausted,
            _ => Self::Reset,
        }
    }

    fn of_connect(error: &io::Error) -> Self {
        use rustix::io::Errno;
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            // No such socket file, or nobody accepts on it: what ECONNREFUSED is for TCP.
            Some(Errno::CONNREFUSED | Errno::NOENT | Errno::ACCESS) => Self::Refused,
            Some(Errno::TIMEDOUT) => Self::Timeout,
            Some(Errno::CONNRESET) => Self::Reset,
            Some(
                Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::ADDRNOTAVAIL
                | Errno::AGAIN,
            ) => Self::Exhausted,
            _ => Self::Unreachable,
        }
    }
}

/// The spare capacity of a buffer less some bytes at its end, for the kernel to write into; the buffer goes with it.
fn spare(buffer: &mut Vec<u8>, keep_free: usize) -> SliceMut<Vec<u8>> {
    let from = buffer.len();
    let to = buffer.capacity().saturating_sub(keep_free).max(from);
    std::mem::take(buffer).slice_mut(from..to)
}

fn outcome<T>(result: Result<T, Fault>, fired: bool) -> Result<T, Fault> {
    // The deadline shuts the socket down, which a read sees as end of file.
    if fired { Err(Fault::Timeout) } else { result }
}

/// The peer's address, for log and `X-Forwarded-For`.
pub type Peer = SocketAddr;
