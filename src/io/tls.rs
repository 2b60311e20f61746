//! TLS on a connection: rustls does the records, this file carries them between it and the socket.
//!
//! No buffer is held for ciphertext. A read puts it into the caller's buffer and [`Tls::took`] decrypts it in place, which
//! fits because a record's plaintext is shorter than the record; a write encrypts up to [`SEALED_MAX`] at a time into one
//! buffer that is freed when the kernel has it. Both halves of a connection work at the same time: all that they share
//! lies behind one `RefCell` that is borrowed for single statements. What rustls wants to say by itself (an alert, new
//! keys, the end) leaves at once when nothing is being written, without a wait, else behind that.
//!
//! Refuses to know certificates: whom a peer may be is decided by the configurations and by whoever asks afterwards.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::RawFd;
use std::sync::Arc;

use monoio::buf::IoBuf;
use monoio::io::AsyncWriteRent;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, ServerConfig, ServerConnection};

use super::timed::OnDeadline;
use super::{Connection, Fault, WriteHalf, sys};
use crate::shard::clock::NEVER;

/// Plaintext that is encrypted for one write: four whole records, which is what rustls holds back at most and half of what
/// a socket takes at once.
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
    rustls: rustls::Connection,
    /// Ciphertext on its way to the socket, and how much of it is there already.
    out: Vec<u8>,
    out_at: usize,
    /// The kernel has `out`.
    sending: bool,
    /// Nothing may be sent any more: the stream of records is cut, or its end was said.
    mute: bool,
    /// How reading ended, once it has.
    end: Option<Result<(), Fault>>,
    /// Ciphertext that rustls had no room for; as good as never.
    stash: Vec<u8>,
}

impl Connection {
    /// Makes this the server's side of TLS. `seen` is what was read from the connection already.
    ///
    /// # Errors
    /// With the reason; the peer has been told it by an alert, if it still listens.
    pub async fn accept_tls(
        &mut self,
        config: Arc<ServerConfig>,
        seen: &[u8],
        deadline: u64,
    ) -> Result<(), TlsFault> {
        let rustls = ServerConnection::new(config).map_err(TlsFault::Tls)?;
        self.handshake(rustls::Connection::Server(rustls), seen, deadline).await
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
        let rustls = ClientConnection::new(config, name).map_err(TlsFault::Tls)?;
        self.handshake(rustls::Connection::Client(rustls), &[], deadline).await
    }

    /// The encrypted state, where there is one.
    pub fn tls(&self) -> Option<&Tls> {
        self.reader.joint.tls()
    }

    async fn handshake(
        &mut self,
        mut rustls: rustls::Connection,
        seen: &[u8],
        deadline: u64,
    ) -> Result<(), TlsFault> {
        // A flight with a chain of two certificates; longer ones take more reads.
        const READ: usize = 4 * 1024;
        rustls.set_buffer_limit(Some(SEALED_MAX));
        let mut state = State::new(rustls);
        let mut fed = state.feed(seen);
        let mut buffer = Vec::with_capacity(READ);
        loop {
            if let Err(error) = fed {
                state.say_now(self.reader.joint.ticket.socket());
                return Err(TlsFault::Tls(error));
            }
            while let Some((out, at)) = state.seal(&[], &mut 0).map_err(TlsFault::Io)? {
                let out = self.write_record(out, at, deadline, &mut state).await;
                out.map_err(TlsFault::Io)?;
            }
            if !state.rustls.is_handshaking() {
                break;
            }
            buffer.clear();
            // An alert can still be sent when the deadline has come.
            let n = self.reader.read(&mut buffer, 0, deadline, OnDeadline::ShutdownRead).await;
            match n.map_err(TlsFault::Io)? {
                0 => return Err(TlsFault::Io(Fault::Closed)),
                _ => fed = state.feed(&buffer),
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
    fn new(state: State) -> Self {
        let sni = match &state.rustls {
            rustls::Connection::Server(server) => server.server_name().map(Into::into),
            rustls::Connection::Client(_) => None,
        };
        Self {
            alpn: state.rustls.alpn_protocol().map(Into::into),
            sni,
            version: state.rustls.protocol_version(),
            leave_at: Cell::new(NEVER),
            shown: OnceCell::new(),
            state: RefCell::new(state),
        }
    }

    /// The protocol agreed on by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The name that a caller asked for by SNI.
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
        let chain = state.rustls.peer_certificates().unwrap_or_default();
        chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
    }

    /// What a read of plaintext gives without asking the socket.
    pub(super) fn ready(&self, buffer: &mut Vec<u8>, keep_free: usize) -> Option<Result<usize, Fault>> {
        self.state.borrow_mut().ready(buffer, keep_free)
    }

    /// Whether a read would give something without asking the socket.
    pub(super) fn is_ready(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.end.is_some() || state.has_plaintext()
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
            state.end.get_or_insert(Err(Fault::Closed));
        } else {
            state.decrypt(buffer, from);
            state.say_now(socket);
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
            state.rustls.send_close_notify();
            state.say_now(socket);
            state.mute = true;
        }
    }

    /// The connection is going to be idle: what is held for the next record is given back but for a small read.
    pub(super) fn rest(&self) {
        // rustls shrinks its buffer when it is about to read.
        let _ = self.state.borrow_mut().rustls.read_tls(&mut NotNow);
    }

    /// Whether what waits in the socket of a connection at rest is TLS's own business (session tickets, new keys), and
    /// nothing else is there.
    pub(super) fn is_at_rest(&self, socket: RawFd) -> bool {
        // A peer that has more to say than that while nothing is asked of it is not worth keeping.
        const READS_MAX: usize = 8;
        let mut state = self.state.borrow_mut();
        let mut bytes = [0; 2048];
        for _ in 0..READS_MAX {
            match sys::receive_now(socket, &mut bytes) {
                Ok(n) if n > 0 => {
                    if state.feed(&bytes[..n]).is_err() || state.has_plaintext() || state.end.is_some() {
                        return false;
                    }
                    state.say_now(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return !state.has_plaintext() && state.end.is_none();
                }
                Ok(_) | Err(_) => return false,
            }
        }
        false
    }
}

impl State {
    fn new(rustls: rustls::Connection) -> Self {
        Self { rustls, out: Vec::new(), out_at: 0, sending: false, mute: false, end: None, stash: Vec::new() }
    }

    /// Hands plaintext over that rustls holds, or the end of the stream.
    fn ready(&mut self, buffer: &mut Vec<u8>, keep_free: usize) -> Option<Result<usize, Fault>> {
        let before = buffer.len();
        loop {
            let room = buffer.capacity().saturating_sub(keep_free).saturating_sub(buffer.len());
            if room == 0 {
                return Some(Ok(buffer.len() - before));
            }
            match self.rustls.reader().fill_buf() {
                Ok(chunk) if !chunk.is_empty() => {
                    let n = chunk.len().min(room);
                    buffer.extend_from_slice(&chunk[..n]);
                    self.rustls.reader().consume(n);
                }
                _ if !self.stash.is_empty() && self.end.is_none() => {
                    let stash = std::mem::take(&mut self.stash);
                    let _ = self.feed(&stash);
                }
                _ if buffer.len() > before => return Some(Ok(buffer.len() - before)),
                _ => return self.end.map(|end| end.map(|()| 0)),
            }
        }
    }

    fn has_plaintext(&mut self) -> bool {
        !self.stash.is_empty() || self.rustls.reader().fill_buf().is_ok_and(|chunk| !chunk.is_empty())
    }

    /// Decrypts what stands in `buffer` from `from` on into the same place. Plaintext that is longer than the ciphertext
    /// was (the first half of its record came before) stays in rustls.
    fn decrypt(&mut self, buffer: &mut Vec<u8>, from: usize) {
        let (mut at, mut plain) = (from, from);
        while at < buffer.len() && self.end.is_none() {
            match self.feed_once(&buffer[at..]) {
                Ok(Some(n)) => at += n,
                Ok(None) => {
                    self.stash.extend_from_slice(&buffer[at..]);
                    at = buffer.len();
                }
                // Noted in `end`.
                Err(_) => at = buffer.len(),
            }
            if plain < at {
                // Nothing to read is an error to it, and so is a cut stream: both are known.
                plain += self.rustls.reader().read(&mut buffer[plain..at]).unwrap_or(0);
            }
        }
        buffer.truncate(plain);
    }

    /// Takes all of some ciphertext in.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), rustls::Error> {
        while !bytes.is_empty() && self.end.is_none() {
            match self.feed_once(bytes)? {
                Some(n) => bytes = &bytes[n..],
                None => {
                    self.stash.extend_from_slice(bytes);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes some ciphertext in; how much, or `None` when rustls has no room before its plaintext is read.
    fn feed_once(&mut self, mut bytes: &[u8]) -> Result<Option<usize>, rustls::Error> {
        match self.rustls.read_tls(&mut bytes) {
            Ok(n) if n > 0 => {
                match self.rustls.process_new_packets() {
                    Ok(state) if state.peer_has_closed() => self.end = Some(Ok(())),
                    Ok(_) => {}
                    Err(error) => {
                        let fault = match error {
                            rustls::Error::AlertReceived(_) => Fault::Alert,
                            _ => Fault::Reset,
                        };
                        self.end = Some(Err(fault));
                        return Err(error);
                    }
                }
                Ok(Some(n))
            }
            Err(error) if error.kind() == io::ErrorKind::Other => Ok(None),
            // A message that is longer than any may be.
            Ok(_) | Err(_) => {
                self.end = Some(Err(Fault::Reset));
                Err(rustls::Error::PeerSentOversizedRecord)
            }
        }
    }

    fn seal(&mut self, plain: &[u8], at: &mut usize) -> Result<Option<(Vec<u8>, usize)>, Fault> {
        if self.mute {
            return Err(Fault::Reset);
        }
        if self.out_at >= self.out.len() {
            self.out.clear();
            self.out_at = 0;
            if *at < plain.len() {
                let part = &plain[*at..plain.len().min(*at + SEALED_MAX)];
                match self.rustls.writer().write(part) {
                    Ok(n) if n > 0 => *at += n,
                    // Reading has found that the stream is broken.
                    Ok(_) | Err(_) => return Err(Fault::Reset),
                }
                // A header and a tag for each record.
                self.out.reserve(part.len() + part.len() / 256 + 64);
            }
            self.take_records();
        }
        if self.out_at >= self.out.len() {
            self.out = Vec::new();
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
        self.take_records();
        if self.out_at < self.out.len() {
            match sys::send_now(socket, &self.out[self.out_at..]) {
                Ok(n) => self.out_at += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.mute = true,
            }
        }
        if self.out_at >= self.out.len() {
            self.out = Vec::new();
            self.out_at = 0;
        }
    }

    fn take_records(&mut self) {
        while self.rustls.wants_write() {
            // Writing into a Vec cannot fail.
            let _ = self.rustls.write_tls(&mut self.out);
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

/// A source that has nothing yet.
struct NotNow;

impl Read for NotNow {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
#[path = "tls_test.rs"]
mod tests;
