//! Records of TLS: rustls, driven by hand with buffers that are not its own.
//!
//! Called by [`super::tls`] with what was read, and for what is to be written; does no I/O. Rustls is shown whole records
//! only, in the place where they were read, and keeps nothing of them but the plaintext of the last one, which is
//! taken from it at once. So a connection at rest holds keys and no buffer. What rustls has to say by itself lies in
//! [`Records::said`] until somebody takes it; it was encrypted before whatever is encrypted later, and has to leave before.
//!
//! Invariant: rustls sees in front of everything else what it wants to see again (`fragments`), in every call that may look
//! at input. Refuses to know sockets.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error, ProtocolVersion};

use super::{Fault, sealed};

/// Plaintext of a record at most (RFC 8446 §5.1).
const PLAIN_MAX: usize = 16 * 1024;

/// What a record's payload may be: RFC 5246 §6.2.3 allows this much around the plaintext, RFC 8446 less.
const PAYLOAD_MAX: usize = PLAIN_MAX + 2048;

const HEADER_LEN: usize = 5;

/// What a record adds to its plaintext: header, explicit nonce (TLS 1.2), tag, content type (TLS 1.3).
const RECORD_ADDS: usize = HEADER_LEN + 8 + 16 + 1;

/// Records kept because the handshake message that they begin is not whole.
const FRAGMENTS_MAX: usize = 64 * 1024;

/// The state of one side of a connection.
pub(super) struct Records {
    rustls: Side,
    /// What rustls has to say by itself, encrypted.
    pub(super) said: Vec<u8>,
    /// How reading ended, once it has.
    pub(super) end: Option<Result<(), Fault>>,
    /// The beginning of a record of which the rest has not come.
    partial: Vec<u8>,
    /// Records that rustls wants to see again.
    fragments: Vec<u8>,
    /// Plaintext that there was no room for, from `held_at` on.
    held: Vec<u8>,
    held_at: usize,
}

/// Which side of a connection.
pub(super) enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What rustls is asked to do when it has nothing else to do.
#[derive(Clone, Copy)]
enum Say<'p> {
    Nothing,
    Plain(&'p [u8]),
    Close,
}

/// What it came to.
enum Turn {
    /// There may be more to come of it.
    Again,
    /// Plaintext waits within rustls.
    Plain,
    /// The peer has said that nothing more comes.
    PeerClosed,
    /// What was asked for is encrypted.
    Said,
    /// No more without more input.
    Enough,
}

impl Records {
    pub(super) fn new(rustls: Side) -> Self {
        Self {
            rustls,
            said: Vec::new(),
            end: None,
            partial: Vec::new(),
            fragments: Vec::new(),
            held: Vec::new(),
            held_at: 0,
        }
    }

    /// What both sides agreed on.
    pub(super) fn agreed(&self) -> &CommonState {
        match &self.rustls {
            Side::Server(server) => server,
            Side::Client(client) => client,
        }
    }

    /// Whether what is said now may leave with what is written next: it is about a handshake that is over for both sides.
    pub(super) fn may_wait(&self) -> bool {
        matches!(self.rustls, Side::Server(_))
            && !self.agreed().is_handshaking()
            && self.agreed().protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// Whether plaintext is held.
    pub(super) fn has_plaintext(&self) -> bool {
        !self.held.is_empty()
    }

    /// Hands plaintext that is held over to the end of `buffer`, `room` octets at most.
    pub(super) fn hand_over(&mut self, buffer: &mut Vec<u8>, room: usize) -> usize {
        let rest = &self.held[self.held_at..];
        let n = rest.len().min(room);
        buffer.extend_from_slice(&rest[..n]);
        self.held_at += n;
        if self.held_at == self.held.len() {
            self.held = Vec::new();
            self.held_at = 0;
        }
        n
    }

    /// Keeps plaintext for [`Records::hand_over`].
    pub(super) fn hold(&mut self, plain: &[u8]) {
        self.held.extend_from_slice(plain);
    }

    /// Decrypts what stands in `buffer` from `from` on into the same place. Plaintext that is longer than the ciphertext
    /// was (the first part of its record came before) is held, and what comes behind it.
    ///
    /// # Errors
    /// What rustls says; it is in `end`, too.
    pub(super) fn decrypt(&mut self, buffer: &mut Vec<u8>, from: usize) -> Result<(), Error> {
        let (mut at, mut plain) = (from, from);
        let mut done = Ok(());
        while at < buffer.len() && self.end.is_none() && done.is_ok() {
            if self.partial.is_empty()
                && self.fragments.is_empty()
                && let Some(len) = record_len(&buffer[at..])
            {
                let to = at + len;
                done = self.take(buffer, (&mut at, to), &mut plain);
                self.fragments.extend_from_slice(&buffer[at..to]); // nothing, but for handshakes
                at = to;
            } else {
                let (n, whole) = self.complete(&buffer[at..]);
                at += n;
                if whole {
                    done = self.take_completed(&mut buffer[plain..at], &mut plain);
                }
            }
        }
        buffer.truncate(plain);
        done
    }

    /// Takes in the records in `buffer` from `at` to `to`, and writes plaintext from `plain` on.
    fn take(
        &mut self,
        buffer: &mut [u8],
        (at, to): (&mut usize, usize),
        plain: &mut usize,
    ) -> Result<(), Error> {
        loop {
            let (taken, turn) = self.turn(&mut buffer[*at..to], Say::Nothing);
            *at += taken;
            match turn? {
                Turn::Again => {}
                Turn::Plain => *plain += self.take_plaintext(&mut buffer[*plain..*at]),
                Turn::PeerClosed | Turn::Said | Turn::Enough => return Ok(()),
            }
        }
    }

    /// Takes in the record that is whole now in `partial`, behind what rustls wants to see again; writes plaintext into
    /// `room`, as far as it goes.
    fn take_completed(&mut self, mut room: &mut [u8], plain: &mut usize) -> Result<(), Error> {
        let mut bytes = std::mem::take(&mut self.partial);
        if !self.fragments.is_empty() {
            let mut fragments = std::mem::take(&mut self.fragments);
            fragments.append(&mut bytes);
            bytes = fragments;
        }
        let mut at = 0;
        let done = loop {
            let (taken, turn) = self.turn(&mut bytes[at..], Say::Nothing);
            at += taken;
            match turn {
                Err(error) => break Err(error),
                Ok(Turn::Again) => {}
                Ok(Turn::Plain) => {
                    let n = self.take_plaintext(room);
                    room = &mut room[n..];
                    *plain += n;
                }
                Ok(Turn::PeerClosed | Turn::Said | Turn::Enough) => break Ok(()),
            }
        };
        if at < bytes.len() && done.is_ok() {
            bytes.drain(..at);
            self.fragments = bytes;
            if self.fragments.len() > FRAGMENTS_MAX {
                self.end = Some(Err(Fault::Reset));
                return Err(Error::PeerSentOversizedRecord);
            }
        }
        done
    }

    /// Adds to `partial` until it is a whole record: how many bytes that took, and whether it is.
    fn complete(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut n = 0;
        loop {
            if record_len(&self.partial).is_some() {
                return (n, true);
            }
            let wanted = match self.partial.first_chunk() {
                Some(header) => HEADER_LEN + payload_len(header),
                None => HEADER_LEN,
            };
            let more = (wanted - self.partial.len()).min(bytes.len() - n);
            if more == 0 {
                return (n, false);
            }
            self.partial.extend_from_slice(&bytes[n..n + more]);
            n += more;
        }
    }

    /// Moves the plaintext that waits within rustls into `room`, and what does not fit to what is held: how much fitted.
    fn take_plaintext(&mut self, room: &mut [u8]) -> usize {
        let room = if self.held.is_empty() { room } else { &mut [] };
        let held = &mut self.held;
        match &mut self.rustls {
            Side::Server(server) => plaintext(server.process_tls_records(&mut []), room, held),
            Side::Client(client) => plaintext(client.process_tls_records(&mut []), room, held),
        }
    }

    /// Encrypts behind what is said.
    ///
    /// # Errors
    /// `Reset` when the stream is broken or its keys are worn out.
    pub(super) fn encrypt(&mut self, plain: &[u8]) -> Result<(), Fault> {
        self.say(Say::Plain(plain))
    }

    /// Says that nothing more comes, behind what is said.
    pub(super) fn close(&mut self) {
        // Where it cannot be said, it is over already.
        let _ = self.say(Say::Close);
    }

    fn say(&mut self, say: Say<'_>) -> Result<(), Fault> {
        // Without its end the stream of the peer is cut; this side's is not.
        while !matches!(self.end, Some(Err(Fault::Reset | Fault::Alert))) {
            let mut fragments = std::mem::take(&mut self.fragments);
            let (taken, turn) = self.turn(&mut fragments, say);
            fragments.drain(..taken);
            self.fragments = fragments;
            match turn {
                Ok(Turn::Said) => return Ok(()),
                Ok(Turn::Again | Turn::PeerClosed) => {}
                Ok(Turn::Plain | Turn::Enough) | Err(_) => break,
            }
        }
        Err(Fault::Reset)
    }

    /// Lets rustls do one thing: how many bytes of the input it is done with, and what it came to.
    fn turn(&mut self, input: &mut [u8], say: Say<'_>) -> (usize, Result<Turn, Error>) {
        let said = &mut self.said;
        let (taken, turn) = match &mut self.rustls {
            Side::Server(server) => turn(server.process_tls_records(input), say, said),
            Side::Client(client) => turn(client.process_tls_records(input), say, said),
        };
        match &turn {
            Ok(Turn::PeerClosed) => self.end = Some(Ok(())),
            Ok(_) => {}
            Err(error) => {
                let fault =
                    if matches!(error, Error::AlertReceived(_)) { Fault::Alert } else { Fault::Reset };
                self.end = Some(Err(fault));
                self.take_said();
            }
        }
        (taken, turn)
    }

    /// Takes what rustls has to say: how a client begins, and why it goes no further. Input is not looked at.
    pub(super) fn take_said(&mut self) {
        while self.agreed().wants_write() {
            let said = &mut self.said;
            let (_, turn) = match &mut self.rustls {
                Side::Server(server) => turn(server.process_tls_records(&mut []), Say::Nothing, said),
                Side::Client(client) => turn(client.process_tls_records(&mut []), Say::Nothing, said),
            };
            if !matches!(turn, Ok(Turn::Again)) {
                return;
            }
        }
    }
}

#[cfg(test)]
impl Records {
    /// Says that new keys are used from here on, and asks the peer for new ones.
    pub(super) fn new_keys(&mut self) {
        fn refresh<D>(status: UnbufferedStatus<'_, '_, D>) {
            let Ok(ConnectionState::WriteTraffic(traffic)) = status.state else { panic!("cannot write") };
            traffic.refresh_traffic_keys().expect("TLS 1.3");
        }
        match &mut self.rustls {
            Side::Server(server) => refresh(server.process_tls_records(&mut self.fragments)),
            Side::Client(client) => refresh(client.process_tls_records(&mut self.fragments)),
        }
        self.take_said();
    }

    /// Memory of all buffers.
    pub(super) fn held_bytes(&self) -> usize {
        [&self.said, &self.partial, &self.fragments, &self.held].iter().map(|buffer| buffer.capacity()).sum()
    }
}

/// The first record of `bytes`, its length; `None` while it is not whole. What cannot become a record is all of it: rustls
/// says what is wrong with it.
fn record_len(bytes: &[u8]) -> Option<usize> {
    let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
    let payload = payload_len(header);
    let is_record = matches!(header[0], 20..=23) && header[1] == 3 && payload <= PAYLOAD_MAX;
    if !is_record {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER_LEN + payload).then_some(HEADER_LEN + payload)
}

fn payload_len(header: &[u8; HEADER_LEN]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

fn turn<D>(
    status: UnbufferedStatus<'_, '_, D>,
    say: Say<'_>,
    said: &mut Vec<u8>,
) -> (usize, Result<Turn, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let turn = state.and_then(|state| match state {
        // Stays there: its place is known when the input is not borrowed any more.
        ConnectionState::ReadTraffic(_) => Ok(Turn::Plain),
        ConnectionState::EncodeTlsData(mut data) => encode(&mut data, said).map(|()| Turn::Again),
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Turn::Again)
        }
        ConnectionState::PeerClosed => Ok(Turn::PeerClosed),
        ConnectionState::WriteTraffic(mut traffic) => match say {
            Say::Nothing => Ok(Turn::Enough),
            Say::Plain(plain) => {
                let room = plain.len() + plain.len().div_ceil(PLAIN_MAX) * RECORD_ADDS;
                encrypt(said, room, |out| traffic.encrypt(plain, out))
            }
            Say::Close => encrypt(said, 2 + RECORD_ADDS, |out| traffic.queue_close_notify(out)),
        },
        ConnectionState::BlockedHandshake | ConnectionState::Closed => Ok(Turn::Enough),
        // Neither offered nor accepted.
        ConnectionState::ReadEarlyData(_) | _ => Err(Error::General("not asked for".to_owned())),
    });
    (discard, turn)
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, said: &mut Vec<u8>) -> Result<(), Error> {
    let at = said.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => return Ok(()),
    };
    said.resize(at + needed, 0);
    let n = data.encode(&mut said[at..]).map_err(|error| Error::General(error.to_string()))?;
    said.truncate(at + n);
    Ok(())
}

/// Encrypts to the end of `said`, for which `room` should be enough: new keys may have to be said before.
fn encrypt(
    said: &mut Vec<u8>,
    mut room: usize,
    mut into: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<Turn, Error> {
    let at = said.len();
    if said.capacity() == 0 {
        // What is in it means nothing, and need not be zeroed to be written over.
        *said = sealed::take();
    }
    loop {
        if said.len() < at + room {
            said.resize(at + room, 0);
        }
        let written = into(&mut said[at..at + room]);
        said.truncate(at + *written.as_ref().unwrap_or(&0));
        match written {
            Ok(_) => return Ok(Turn::Said),
            Err(EncryptError::InsufficientSize(needed)) if needed.required_size > room => {
                room = needed.required_size;
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}

fn plaintext<D>(status: UnbufferedStatus<'_, '_, D>, room: &mut [u8], held: &mut Vec<u8>) -> usize {
    let Ok(ConnectionState::ReadTraffic(mut traffic)) = status.state else { return 0 };
    let mut at = 0;
    while let Some(Ok(record)) = traffic.next_record() {
        let n = record.payload.len().min(room.len() - at);
        room[at..at + n].copy_from_slice(&record.payload[..n]);
        held.extend_from_slice(&record.payload[n..]);
        at += n;
    }
    at
}
