//! System calls that no safe wrapper offers for a raw descriptor. One of the two files with `unsafe`.
//!
//! Every function here takes a descriptor that its caller keeps open for the length of the call: `io::Connection` owns
//! the socket, and its slot in `io::timed::Deadlines` is given back before the socket is closed.
#![allow(
    unsafe_code,
    reason = "borrowing a raw descriptor is unsafe; the invariant is stated above and kept by io"
)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::net::{RecvFlags, SendFlags, Shutdown};

/// What waits in a socket that nothing should wait in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Nothing: the connection is open and silent.
    Silent,
    /// Bytes that nobody asked for.
    Bytes,
    /// The peer has closed or reset it.
    Closed,
}

/// Looks into a socket without waiting and without taking anything.
pub(crate) fn peek(socket: RawFd) -> Peek {
    let mut byte = [0_u8; 1];
    match rustix::net::recv(borrow(socket), &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Peek::Closed,
        Ok(_) => Peek::Bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Peek::Silent,
        Err(_) => Peek::Closed,
    }
}

/// Takes what is there without waiting.
pub(crate) fn receive_now(socket: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    let (n, _) = rustix::net::recv(borrow(socket), bytes, RecvFlags::DONTWAIT)?;
    Ok(n)
}

/// Sends as much as goes without waiting.
pub(crate) fn send_now(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(borrow(socket), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Ends the waits on one or both directions: a pending receive returns what is there, then end of file.
pub(crate) fn shutdown_read(socket: RawFd) {
    let _ = rustix::net::shutdown(borrow(socket), Shutdown::Read);
}

/// Lets no new connection into a listening socket; those that the kernel has begun go on to be accepted. Callers whose
/// SYN is dropped here send it again after a second, and are refused then.
pub(crate) fn drop_new_connections(listener: RawFd) {
    use socket2::SockFilter;
    // Classic BPF on the TCP header: of the flags (octet 13) look at SYN and ACK; SYN alone is dropped. Accepted sockets
    // inherit it, which does no harm: nobody sends SYN on a connection that exists.
    const ONLY_SYN: [SockFilter; 5] = [
        SockFilter::new(0x30, 0, 0, 13),       // load octet 13
        SockFilter::new(0x54, 0, 0, 0x12),     // and SYN | ACK
        SockFilter::new(0x15, 0, 1, 0x02),     // equal to SYN?
        SockFilter::new(0x06, 0, 0, 0),        // drop
        SockFilter::new(0x06, 0, 0, u32::MAX), // keep
    ];
    // Refused by the kernel: new ones come in until the listener is closed, and one or the other is reset.
    let _ = socket2::SockRef::from(&borrow(listener)).attach_filter(&ONLY_SYN);
}

/// As [`shutdown_read`], and a pending send fails.
pub(crate) fn shutdown_both(socket: RawFd) {
    let _ = rustix::net::shutdown(borrow(socket), Shutdown::Both);
}

/// Sends FIN; reading goes on.
pub(crate) fn shutdown_write(socket: RawFd) {
    let _ = rustix::net::shutdown(borrow(socket), Shutdown::Write);
}

/// Resets the connection, so that the peer cannot take a cut message for a whole one. At once and not at the close
/// (SO_LINGER of zero), because dropping the runtime's sending half says FIN before it.
pub(crate) fn reset(socket: RawFd) {
    let _ = rustix::net::connect_unspec(borrow(socket));
}

/// The stream behind a half, to wait on its readiness.
pub(super) fn stream<T>(half: &monoio::io::OwnedReadHalf<T>) -> &T {
    // SAFETY: the halves form `&mut T` only to start an operation, within one call on this thread, and none of their
    // operations touches the stream's own fields afterwards (they hold a counted descriptor). The caller has the read
    // half borrowed, so it starts no operation meanwhile.
    unsafe { &*half.0.get() }
}

fn borrow<'fd>(socket: RawFd) -> BorrowedFd<'fd> {
    // SAFETY: the caller owns the open socket (see the head of this file) and the borrow does not outlive its call.
    unsafe { BorrowedFd::borrow_raw(socket) }
}
