//! TLS on a connection: [`super::records`] does the records, this file carries them between it and the socket.
//!
//! No buffer is held for ciphertext. A read puts it into the caller's buffer and [`Tls::took`] decrypts it in place, which
//! fits because a record's plaintext is shorter than the record; a write encrypts up to [`SEALED_MAX`] at a time into one
//! buffer that the shard has back ([`sealed`]) when the kernel has it. Both halves of a connection work at the same time: all that they share
//! lies behind one `RefCell` that is borrowed for single statements. What rustls wants to say by itself (an alert, new
//! keys, the end) leaves at once when nothing is being written, without a wait, else behind that; a session ticket leaves
//! with the first answer.
//!
//! Refuses to know certificates: whom a peer may be is decided by the configurations and by whoever asks afterwards.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use monoio::buf::IoBuf;
use monoio::io::AsyncWriteRent;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ProtocolVersion, ServerConfig};

use super::records::{Records, Side};
use super::timed::OnDeadline;
use super::{Connection, Fault, WriteHalf, sealed, sni, sys};
use crate::shard::clock::NEVER;

/// Plaintext that is encrypted for one write: four whole records, half of what a socket takes at once.
const SEALED_MAX: usize = 64 * 1024;

/// Why a handshake did not succeed.
#[derive(Debug, Clone)]
pub enum TlsFault {
    /// The connection failed, or its deadline came.
    Io(Fault),
    /// The two sides did not agree.
    Tls(rustls::Error),
}

/// The encrypted state of a connection.
pub struct Tls {
    alpn: Option<Box<[u8]>>,
    sni: Option<Box<str>>,
    version: Option<ProtocolVersion>,
    leave_at: Cell<u64>,
    shown: OnceCell<Arc<CertificateDer<'static>>>,
    state: RefCell<State>,
}

struct State {
    records: Records,
    /// Ciphertext on its way to the socket, and how much of it is there already.
    out: Vec<u8>,
    out_at: usize,
    /// The kernel has `out`.
    sending: bool,
    /// Nothing may be sent any more: the stream of records is cut, or its end was said.
    mute: bool,
    /// The name that a caller asked for.
    sni: Option<Box<str>>,
}

impl Connection {
    /// Makes this the server's side of TLS. `input` is what was read from the connection already; the handshake is read
    /// into it, and what is there in the end came behind it, decrypted.
    ///
    /// # Errors
    /// With the reason; the peer has been told it by an alert, if it still listens.
    pub async fn accept_tls(
        &mut self,
        config: Arc<ServerConfig>,
        input: &mut Vec<u8>,
        deadline: u64,
    ) -> Result<(), TlsFault> {
        let rustls = UnbufferedServerConnection::new(config).map_err(TlsFault::Tls)?;
        self.handshake(State::new(Side::Server(rustls)), input, deadline).await
    }

    /// Makes this the client's side of TLS with a server of that name.
    ///
    /// # Errors
    /// With the reason; the peer has been told it by an alert, if it still listens.
    pub async fn connect_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: u64,
    ) -> Result<(), TlsFault> {
        // A flight with a chain of two certificates; longer ones take more reads.
        const READ: usize = 4 * 1024;
        let rustls = UnbufferedClientConnection::new(config, name).map_err(TlsFault::Tls)?;
        let mut state = State::new(Side::Client(rustls));
        state.records.take_said();
        let mut input = Vec::with_capacity(READ);
        self.handshake(state, &mut input, deadline).await?;
        if let Some(tls) = self.tls() {
            tls.state.borrow_mut().records.hold(&input);
        }
        Ok(())
    }

    /// The encrypted state, where there is one.
    pub fn tls(&self) -> Option<&Tls> {
        self.reader.joint.tls()
    }

    async fn handshake(
        &mut self,
        mut state: State,
        input: &mut Vec<u8>,
        deadline: u64,
    ) -> Result<(), TlsFault> {
        loop {
            if let Err(error) = state.take_in(input) {
                state.say_now(self.reader.joint.ticket.socket());
                return Err(TlsFault::Tls(error));
            }
            if state.records.may_wait() {
                break;
            }
            while let Some((out, at)) = state.seal(&[], &mut 0).map_err(TlsFault::Io)? {
                let out = self.write_record(out, at, deadline, &mut state).await;
                out.map_err(TlsFault::Io)?;
            }
            if !state.records.agreed().is_handshaking() {
                break;
            }
            // An alert can still be sent when the deadline has come.
            let n = self.reader.read(input, 0, deadline, OnDeadline::ShutdownRead).await;
            if n.map_err(TlsFault::Io)? == 0 || state.records.end.is_some() {
                return Err(TlsFault::Io(Fault::Closed));
            }
        }
        self.reader.joint.set_tls(Tls::new(state));
        Ok(())
    }

    /// Writes ciphertext of the handshake once.
    async fn write_record(
        &mut self,
        out: Vec<u8>,
        at: usize,
        deadline: u64,
        state: &mut State,
    ) -> Result<(), Fault> {
        let ticket = &self.writer.joint.ticket;
        ticket.arm_write(deadline);
        let slice = out.slice(at..);
        let (written, slice) = match &mut self.writer.half {
            WriteHalf::Tcp(half) => half.write(slice).await,
            WriteHalf::Unix(half) => half.write(slice).await,
            // What carries it is encrypted already; nobody asks for more.
            WriteHalf::Lane => return Err(Fault::Reset),
        };
        let fired = ticket.disarm_write();
        match written {
            Ok(n) if n > 0 => {
                state.sent(slice.into_inner(), n);
                Ok(())
            }
            _ if fired => Err(Fault::Timeout),
            Ok(_) => Err(Fault::Reset),
            Err(error) => Err(Fault::of(&error)),
        }
    }
}

impl Tls {
    fn new(mut state: State) -> Self {
        let agreed = state.records.agreed();
        Self {
            alpn: agreed.alpn_protocol().map(Into::into),
            version: agreed.protocol_version(),
            sni: state.sni.take(),
            leave_at: Cell::new(NEVER),
            shown: OnceCell::new(),
            state: RefCell::new(state),
        }
    }

    /// The protocol agreed on by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The name that a caller asked for by SNI, where its certificate was picked by [`sni::Noted`].
    pub fn sni(&self) -> Option<&str> {
        self.sni.as_deref()
    }

    /// The version of TLS.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.version
    }

    /// When the connection gets nothing new any more, as whoever did the handshake has said; never, where nobody has.
    pub fn leave_at(&self) -> u64 {
        self.leave_at.get()
    }

    /// Says when.
    pub fn set_leave_at(&self, leave_at: u64) {
        self.leave_at.set(leave_at);
    }

    /// The certificate that the peer was shown, where it matters which hosts it is for.
    pub fn shown(&self) -> Option<&Arc<CertificateDer<'static>>> {
        self.shown.get()
    }

    /// Notes it.
    pub fn set_shown(&self, leaf: Arc<CertificateDer<'static>>) {
        let _ = self.shown.set(leaf);
    }

    /// What the peer presented, leaf first; empty when it presented nothing.
    pub fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        let state = self.state.borrow();
        let chain = state.records.agreed().peer_certificates().unwrap_or_default();
        chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
    }

    /// What a read of plaintext gives without asking the socket.
    pub(super) fn ready(&self, buffer: &mut Vec<u8>, keep_free: usize) -> Option<Result<usize, Fault>> {
        self.state.borrow_mut().ready(buffer, keep_free)
    }

    /// Whether a read would give something without asking the socket.
    pub(super) fn is_ready(&self) -> bool {
        let records = &self.state.borrow().records;
        records.end.is_some() || records.has_plaintext()
    }

    /// Decrypts the last `n` bytes of `buffer` in place; `None` when more is needed for a whole record. No bytes are the
    /// end of the stream.
    pub(super) fn took(
        &self,
        buffer: &mut Vec<u8>,
        n: usize,
        keep_free: usize,
        socket: RawFd,
    ) -> Option<Result<usize, Fault>> {
        let mut state = self.state.borrow_mut();
        let from = buffer.len() - n;
        if n == 0 {
            // Without close_notify before it: cut, or somebody wants it to look whole.
            state.records.end.get_or_insert(Err(Fault::Closed));
        } else {
            let said = state.records.said.len();
            // Noted as its end.
            let _ = state.records.decrypt(buffer, from);
            if state.records.said.len() > said {
                state.say_now(socket);
            }
        }
        let there = buffer.len() - from;
        match state.ready(buffer, keep_free) {
            Some(Ok(more)) => Some(Ok(there + more)),
            other if there == 0 => other,
            // What came before the end first; the end is told the next time.
            _ => Some(Ok(there)),
        }
    }

    /// The next ciphertext to write, and from where on: of `plain` from `at` on, which moves, or what rustls has to say.
    /// `None` when all is written.
    pub(super) fn seal(&self, plain: &[u8], at: &mut usize) -> Result<Option<(Vec<u8>, usize)>, Fault> {
        self.state.borrow_mut().seal(plain, at)
    }

    /// Gives ciphertext back of which `n` more bytes were written.
    pub(super) fn sent(&self, out: Vec<u8>, n: usize) {
        self.state.borrow_mut().sent(out, n);
    }

    /// Says nothing more: the stream of records is cut.
    pub(super) fn mute(&self) {
        let mut state = self.state.borrow_mut();
        state.mute = true;
        state.sending = false;
        state.out = Vec::new();
    }

    /// Says that nothing more comes (close_notify), unless a record is just on its way.
    pub(super) fn close(&self, socket: RawFd) {
        let mut state = self.state.borrow_mut();
        if !state.mute && !state.sending {
            state.records.close();
            state.say_now(socket);
            state.mute = true;
        }
    }

    /// The connection is going to be idle: what waits to leave with an answer leaves now.
    pub(super) fn rest(&self, socket: RawFd) {
        self.state.borrow_mut().say_now(socket);
    }

    /// Whether what waits in the socket of a connection at rest is TLS's own business (session tickets, new keys), and
    /// nothing else is there.
    pub(super) fn is_at_rest(&self, socket: RawFd) -> bool {
        // A peer that has more to say than that while nothing is asked of it is not worth keeping.
        const READS_MAX: usize = 8;
        let mut state = self.state.borrow_mut();
        let mut bytes = Vec::new();
        for _ in 0..READS_MAX {
            bytes.resize(2048, 0);
            match sys::receive_now(socket, &mut bytes) {
                Ok(n) if n > 0 => {
                    bytes.truncate(n);
                    let fed = state.records.decrypt(&mut bytes, 0);
                    state.records.hold(&bytes);
                    if fed.is_err() || state.records.has_plaintext() || state.records.end.is_some() {
                        return false;
                    }
                    state.say_now(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return !state.records.has_plaintext() && state.records.end.is_none();
                }
                Ok(_) | Err(_) => return false,
            }
        }
        false
    }
}

impl State {
    fn new(side: Side) -> Self {
        let records = Records::new(side);
        Self { records, out: Vec::new(), out_at: 0, sending: false, mute: false, sni: None }
    }

    /// Takes in what came of the handshake; what is left in `input` came behind it.
    fn take_in(&mut self, input: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let done = self.records.decrypt(input, 0);
        self.sni = sni::take().or_else(|| self.sni.take());
        done
    }

    /// Hands plaintext over that is held, or the end of the stream.
    fn ready(&mut self, buffer: &mut Vec<u8>, keep_free: usize) -> Option<Result<usize, Fault>> {
        let room = buffer.capacity().saturating_sub(keep_free).saturating_sub(buffer.len());
        if room == 0 {
            return Some(Ok(0));
        }
        if self.records.has_plaintext() {
            return Some(Ok(self.records.hand_over(buffer, room)));
        }
        self.records.end.map(|end| end.map(|()| 0))
    }

    fn seal(&mut self, plain: &[u8], at: &mut usize) -> Result<Option<(Vec<u8>, usize)>, Fault> {
        if self.mute {
            return Err(Fault::Reset);
        }
        if self.out_at >= self.out.len() {
            if *at < plain.len() {
                let to = plain.len().min(*at + SEALED_MAX);
                // Reading may have found that the stream is broken.
                self.records.encrypt(&plain[*at..to])?;
                *at = to;
            }
            sealed::give(std::mem::replace(&mut self.out, std::mem::take(&mut self.records.said)));
            self.out_at = 0;
        }
        if self.out_at >= self.out.len() {
            sealed::give(std::mem::take(&mut self.out));
            return Ok(None);
        }
        self.sending = true;
        Ok(Some((std::mem::take(&mut self.out), self.out_at)))
    }

    fn sent(&mut self, out: Vec<u8>, n: usize) {
        self.sending = false;
        self.out = out;
        self.out_at += n;
    }

    /// Sends what rustls has to say by itself, as far as the socket takes it without a wait and nothing is being written.
    fn say_now(&mut self, socket: RawFd) {
        if self.sending || self.mute {
            return;
        }
        if self.out_at >= self.out.len() {
            sealed::give(std::mem::replace(&mut self.out, std::mem::take(&mut self.records.said)));
            self.out_at = 0;
        } else {
            self.out.append(&mut self.records.said);
        }
        if self.out_at < self.out.len() {
            match sys::send_now(socket, &self.out[self.out_at..]) {
                Ok(n) => self.out_at += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.mute = true,
            }
        }
        if self.out_at >= self.out.len() {
            sealed::give(std::mem::take(&mut self.out));
            self.out_at = 0;
        }
    }
}

impl std::fmt::Display for TlsFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(Fault::Timeout) => f.write_str("the handshake took too long"),
            Self::Io(Fault::Closed) => f.write_str("the peer closed the connection within the handshake"),
            Self::Io(_) => f.write_str("the peer reset the connection within the handshake"),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
#[path = "tls_test.rs"]
mod tests;
