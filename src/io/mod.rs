//! Bytes: the only code that knows the runtime's I/O traits, times out or cancels an operation.
//!
//! A [`Connection`] is a socket in two halves that can be used at the same time, each operation with a deadline. Reads
//! append to a buffer's spare capacity, writes take a buffer from a given offset; while the operation is in flight the
//! kernel owns the buffer and an empty one stands in its place. Knows nothing of HTTP.

pub mod gather;
pub(crate) mod sys;
pub mod timed;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut, SliceMut};
use monoio::io::{
    AsyncReadRent, AsyncWriteRent, CancelableAsyncReadRent, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{TcpStream, UnixStream};

use crate::shard::clock::Clock;
use crate::upstream::spec::Address;
use timed::{Deadlines, OnDeadline, Ticket};

/// A stream socket with deadlines.
pub struct Connection {
    /// What is read from the peer.
    pub reader: Reader,
    /// What is written to the peer.
    pub writer: Writer,
}

/// The receiving half of a [`Connection`].
pub struct Reader {
    ticket: Rc<Ticket>,
    half: ReadHalf,
}

/// The sending half of a [`Connection`].
pub struct Writer {
    // The last owner of the ticket and of the socket; fields are dropped in this order.
    ticket: Rc<Ticket>,
    half: WriteHalf,
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
    ticket: Rc<Ticket>,
}

/// Why an operation did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its deadline came.
    Timeout,
    /// The peer has closed the connection where more was to come.
    Closed,
    /// The peer reset the connection.
    Reset,
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
}

enum WriteHalf {
    Tcp(OwnedWriteHalf<TcpStream>),
    Unix(OwnedWriteHalf<UnixStream>),
}

macro_rules! each {
    ($half:ident, $kind:expr, $inner:ident => $do:expr) => {
        match $kind {
            $half::Tcp($inner) => $do,
            $half::Unix($inner) => $do,
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

    /// Looks whether a connection at rest is still open and silent. One system call, no wait.
    pub fn is_usable(&self) -> bool {
        sys::peek(self.reader.ticket.socket()) == sys::Peek::Silent
    }

    /// Whether bytes wait to be read: closing now would reset the connection and could destroy what was sent last.
    pub fn has_unread(&self) -> bool {
        sys::peek(self.reader.ticket.socket()) == sys::Peek::Bytes
    }

    /// Resets the connection: the only way to tell the peer that a body that ends with it is cut.
    pub fn reset(&self) {
        sys::reset(self.reader.ticket.socket());
    }

    /// The handle to end waits on this connection while its halves are in use.
    pub fn control(&self) -> Control {
        Control { ticket: Rc::clone(&self.reader.ticket) }
    }

    fn tcp(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Self {
        let ticket = Rc::new(deadlines.register(stream.as_raw_fd()));
        let (read, write) = stream.into_split();
        Self::new(ticket, ReadHalf::Tcp(read), WriteHalf::Tcp(write))
    }

    fn unix(stream: UnixStream, deadlines: &Rc<Deadlines>) -> Self {
        let ticket = Rc::new(deadlines.register(stream.as_raw_fd()));
        let (read, write) = stream.into_split();
        Self::new(ticket, ReadHalf::Unix(read), WriteHalf::Unix(write))
    }

    fn new(ticket: Rc<Ticket>, read: ReadHalf, write: WriteHalf) -> Self {
        Self {
            reader: Reader { half: read, ticket: Rc::clone(&ticket) },
            writer: Writer { half: write, ticket },
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
        let slice = spare(buffer, keep_free);
        self.ticket.arm_read(deadline, on);
        let (result, slice) = each!(ReadHalf, &mut self.half, half => half.read(slice).await);
        *buffer = slice.into_inner();
        outcome(result, self.ticket.disarm_read())
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
        let slice = spare(buffer, keep_free);
        let cancel = self.ticket.arm_cancelable(deadline);
        let (result, slice) =
            each!(ReadHalf, &mut self.half, half => half.cancelable_read(slice, cancel).await);
        *buffer = slice.into_inner();
        let fired = self.ticket.disarm_read();
        match result {
            // Bytes that came in the same moment are not lost.
            Ok(n) => Ok(n),
            Err(_) if fired => Err(Fault::Timeout),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) => {
                Err(Fault::Cancelled)
            }
            Err(error) => Err(Fault::of(&error)),
        }
    }

    /// Waits for the first bytes of a request with a buffer at hand, until `hold_until`.
    ///
    /// # Errors
    /// `Reset`.
    pub async fn read_or_quiet(&mut self, buffer: &mut Vec<u8>, hold_until: u64) -> Result<Waited, Fault> {
        let slice = spare(buffer, 0);
        let cancel = self.ticket.arm_idle(hold_until);
        let (result, slice) =
            each!(ReadHalf, &mut self.half, half => half.cancelable_read(slice, cancel).await);
        *buffer = slice.into_inner();
        let fired = self.ticket.disarm_read();
        match result {
            Ok(0) => Ok(Waited::Closed),
            Ok(n) => Ok(Waited::Bytes(n)),
            Err(_) if fired => Ok(Waited::Quiet),
            Err(error) => Err(Fault::of(&error)),
        }
    }

    /// Waits, holding nothing, until something can be read.
    ///
    /// # Errors
    /// `Timeout` at `deadline` (the connection is then shut down).
    pub async fn readable(&mut self, clock: &Clock, deadline: u64) -> Result<(), Fault> {
        self.ticket.arm_parked(clock, deadline);
        let result = each!(ReadHalf, &self.half, half => sys::stream(half).readable(false).await);
        let fired = self.ticket.disarm_read();
        outcome(result, fired)
    }
}

impl Reader {
    /// As [`Reader::readable`], but a drain does not cut it short: not idle, only quiet.
    ///
    /// # Errors
    /// `Timeout` at `deadline` (the connection is then shut down).
    pub async fn ready(&mut self, deadline: u64) -> Result<(), Fault> {
        self.ticket.arm_read(deadline, OnDeadline::Shutdown);
        let result = each!(ReadHalf, &self.half, half => sys::stream(half).readable(false).await);
        let fired = self.ticket.disarm_read();
        outcome(result, fired)
    }
}

impl Control {
    /// Ends a [`Reader::read_cancelable`] in flight.
    pub fn cancel_read(&self) {
        self.ticket.cancel_read();
    }

    /// Ends all waits on the connection, and the connection.
    pub fn shutdown(&self) {
        sys::shutdown_both(self.ticket.socket());
    }

    /// Brings the deadline of a read in flight forward to `deadline`.
    pub fn read_by(&self, deadline: u64) {
        self.ticket.read_by(deadline);
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
        let mut at = from;
        while at < buffer.len() {
            self.ticket.arm_write(patience.deadline());
            let slice = std::mem::take(buffer).slice(at..);
            let (written, slice) = each!(WriteHalf, &mut self.half, half => half.write(slice).await);
            *buffer = slice.into_inner();
            let fired = self.ticket.disarm_write();
            let fault = match written {
                Ok(n) if n > 0 => {
                    at += n;
                    continue;
                }
                _ if fired => Fault::Timeout,
                Ok(_) => Fault::Reset,
                Err(error) => Fault::of(&error),
            };
            return Err(if at == from && fault == Fault::Reset { Fault::Unsent } else { fault });
        }
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        sys::shutdown_write(self.ticket.socket());
    }
}

impl Fault {
    fn of(error: &io::Error) -> Self {
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

fn outcome<T>(result: io::Result<T>, fired: bool) -> Result<T, Fault> {
    match result {
        // The deadline shuts the socket down, which a read sees as end of file.
        _ if fired => Err(Fault::Timeout),
        Ok(value) => Ok(value),
        Err(error) => Err(Fault::of(&error)),
    }
}

/// The peer's address, for log and `X-Forwarded-For`.
pub type Peer = SocketAddr;
