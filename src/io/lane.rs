//! A lane: one stream of an HTTP/2 connection that is read and written as if it were a socket of its own, by the same code.
//!
//! Two ringmeshes have many of them on one connection, and HTTP/1.1 goes over each: a head costs what its octets cost, where by HTTP/2 each
//! of its fields is put into a table, compressed, found again and taken out of a table at both ends. Nothing of HTTP/1 is known here. What is
//! written goes as far as the peer's window lets it; what is read opens ours again. Refuses to be told from a connection by anybody who
//! reads or writes it, but in that nobody need hold a buffer to wait for its first octet.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use super::Fault;

/// One stream.
pub struct Lane {
    send: RefCell<SendStream<Bytes>>,
    receive: RefCell<Receive>,
    /// What came and was not taken.
    rest: RefCell<Bytes>,
    /// All was said that will be.
    finished: Cell<bool>,
    /// It was ended from here: nothing is read or written any more.
    over: Cell<bool>,
}

/// Where octets come from.
enum Receive {
    /// The peer has not yet agreed to it. Boxed: soon over, and several times as large.
    Asked(Box<ResponseFuture>),
    /// It has.
    Open(RecvStream),
    /// Nothing more comes.
    Ended(Result<(), Fault>),
}

impl Lane {
    /// One that this side has asked for.
    pub fn asked(response: ResponseFuture, send: SendStream<Bytes>) -> Self {
        Self::new(send, Receive::Asked(Box::new(response)))
    }

    /// One that the peer has asked for.
    pub fn accepted(receive: RecvStream, send: SendStream<Bytes>) -> Self {
        Self::new(send, Receive::Open(receive))
    }

    fn new(send: SendStream<Bytes>, receive: Receive) -> Self {
        Self {
            send: RefCell::new(send),
            receive: RefCell::new(receive),
            rest: RefCell::default(),
            finished: Cell::new(false),
            over: Cell::new(false),
        }
    }

    /// Waits until something can be read, holding nothing to read it into.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.over.get() || !self.rest.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut receive = self.receive.borrow_mut();
        loop {
            let ended = match &mut *receive {
                Receive::Ended(how) => return Poll::Ready(*how),
                Receive::Asked(response) => match Pin::new(&mut **response).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(response)) if response.status() == http::StatusCode::OK => {
                        *receive = Receive::Open(response.into_body());
                        continue;
                    }
                    Poll::Ready(Ok(_)) => Err(Fault::Untaken),
                    Poll::Ready(Err(error)) => Err(not_agreed(&error)),
                },
                Receive::Open(stream) => match stream.poll_data(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(octets))) if octets.is_empty() => continue,
                    Poll::Ready(Some(Ok(octets))) => {
                        *self.rest.borrow_mut() = octets;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Some(Err(_))) => Err(Fault::Reset),
                    Poll::Ready(None) => Ok(()),
                },
            };
            *receive = Receive::Ended(ended);
        }
    }

    /// Reads at most so many octets; none at the end.
    pub(super) fn poll_read(
        &self,
        buffer: &mut Vec<u8>,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Fault>> {
        std::task::ready!(self.poll_readable(cx))?;
        Poll::Ready(Ok(self.take(buffer, most).unwrap_or(0)))
    }

    /// Reads what has come; `None` when that is nothing.
    pub(super) fn take(&self, buffer: &mut Vec<u8>, most: usize) -> Option<usize> {
        let mut rest = self.rest.borrow_mut();
        if self.over.get() || rest.is_empty() {
            return None;
        }
        let n = rest.len().min(most);
        buffer.extend_from_slice(&rest[..n]);
        if n == rest.len() {
            *rest = Bytes::new();
        } else {
            rest.advance(n);
        }
        if let Receive::Open(stream) = &mut *self.receive.borrow_mut() {
            // No more than has come: there is no error.
            let _ = stream.flow_control().release_capacity(n);
        }
        Some(n)
    }

    /// How many of so many octets may be written now.
    pub(super) fn room(&self, wanted: usize) -> Result<usize, Fault> {
        if self.over.get() || self.finished.get() {
            return Err(Fault::Reset);
        }
        let mut send = self.send.borrow_mut();
        send.reserve_capacity(wanted);
        Ok(send.capacity().min(wanted))
    }

    /// Waits until some of them may.
    pub(super) fn poll_room(&self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
        match self.room(wanted)? {
            0 => {}
            room => return Poll::Ready(Ok(room)),
        }
        match self.send.borrow_mut().poll_capacity(cx) {
            Poll::Ready(Some(Ok(room))) if room > 0 => Poll::Ready(Ok(room.min(wanted))),
            // It has become no more, and who waits is not told again.
            Poll::Ready(Some(Ok(_))) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Err(Fault::Reset)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Waits until all of so many may; whether it can come to that.
    pub(super) fn poll_room_for_all(&self, octets: usize, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.room(octets) {
                Ok(room) if room < octets => {}
                room => return Poll::Ready(room.is_ok()),
            }
            // Told of each change once.
            match self.send.borrow_mut().poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Writes what there is room for.
    pub(super) fn send(&self, octets: &[u8]) -> Result<(), Fault> {
        let sent = self.send.borrow_mut().send_data(Bytes::copy_from_slice(octets), false);
        sent.map_err(|_| Fault::Reset)
    }

    /// Gives back room that was asked for and is not used.
    pub(super) fn give_back_room(&self) {
        self.send.borrow_mut().reserve_capacity(0);
    }

    /// Says that nothing more will be sent.
    pub(super) fn finish(&self) {
        if !self.finished.replace(true) && !self.over.get() {
            // One that has ended need not be told.
            let _ = self.send.borrow_mut().send_data(Bytes::new(), true);
        }
    }

    /// Ends it, so that the peer knows that it is cut.
    pub(super) fn reset(&self) {
        if !self.over.replace(true) {
            self.send.borrow_mut().send_reset(Reason::CANCEL);
        }
    }

    /// Whether the peer has reset it; else the task is woken when it does.
    pub(super) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.borrow_mut().poll_reset(cx).map(drop)
    }

    /// Whether octets wait to be read.
    pub(super) fn has_unread(&self) -> bool {
        !self.over.get()
            && (!self.rest.borrow().is_empty()
                || match &mut *self.receive.borrow_mut() {
                    Receive::Open(stream) => stream.flow_control().used_capacity() > 0,
                    Receive::Asked(_) | Receive::Ended(_) => false,
                })
    }

    /// Whether it is open, and nothing has come.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.over.get()
            && !self.finished.get()
            && self.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

/// Why the peer has not agreed. Once it has, it may have seen whatever was sent.
fn not_agreed(error: &h2::Error) -> Fault {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => Fault::Untaken,
        // A stream that a closing peer says it did not take: h2 tells it of no other.
        Some(_) if error.is_go_away() && error.is_remote() => Fault::Going,
        _ => Fault::Reset,
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.finish();
    }
}
