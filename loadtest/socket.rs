//! Sockets: TCP, Unix or TLS behind one type, listeners shared by threads, CPU pinning, and the file limit.
//!
//! Called by every event loop here. Reads and writes are plain system calls: no buffering, no interest changed after
//! the first registration.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::RecvFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use socket2::{Domain, Protocol, Socket, Type};

use crate::target::Place;
use crate::tls::TlsStream;

pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Starts to connect; the loop learns of the outcome by a writable event and [`Stream::connected`].
    pub(crate) fn connect(place: &Place) -> io::Result<Self> {
        match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(*address)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Place::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
        }
    }

    /// The same with TLS on it.
    pub(crate) fn connect_tls(
        place: &Place,
        config: &Arc<ClientConfig>,
        name: &ServerName<'static>,
    ) -> io::Result<Self> {
        match Self::connect(place)? {
            Self::Tcp(stream) => Ok(Self::Tls(Box::new(TlsStream::client(stream, config, name.clone())?))),
            _ => Err(io::Error::other("TLS is spoken over TCP only")),
        }
    }

    /// A stream that was accepted, with TLS on it if its first octet is that of a TLS handshake. Only to be called when
    /// there is something to read.
    pub(crate) fn sniff_tls(self, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let Self::Tcp(stream) = self else { return Ok(self) };
        let mut first = [0];
        match stream.peek(&mut first) {
            Ok(1) if first == [22] => Ok(Self::Tls(Box::new(TlsStream::server(stream, config)?))),
            _ => Ok(Self::Tcp(stream)),
        }
    }

    /// What ALPN chose.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        if let Self::Tls(stream) = self { stream.protocol() } else { None }
    }

    /// Writes what TLS keeps back, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if let Self::Tls(stream) = self { stream.flush() } else { Ok(()) }
    }

    /// The peer reads an end; what it sends can still be read.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls(stream) => stream.socket.shutdown(Shutdown::Write),
        }
    }

    /// Says that nothing more will come, where there is a word for that.
    pub(crate) fn say_goodbye(&mut self) {
        if let Self::Tls(stream) = self {
            stream.say_goodbye();
        }
    }

    /// Registers for both directions once and for all: edge-triggered epoll reports writability only after a write was
    /// refused, so the unused interest costs nothing.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => stream.register(registry, token, both),
            Self::Unix(stream) => stream.register(registry, token, both),
            Self::Tls(stream) => stream.socket.register(registry, token, both),
        }
    }

    /// Whether a connect, with its handshake, has succeeded, failed, or is still under way (`Ok(false)`).
    pub(crate) fn connected(&mut self) -> io::Result<bool> {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &mut stream.socket,
            Self::Unix(_) => return Ok(true),
        };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Self::Tls(stream) = self { stream.handshake() } else { Ok(true) }
    }

    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    /// Takes up to `bytes.len()` bytes off the stream. TCP can drop them inside the kernel (MSG_TRUNC), which saves
    /// copying bodies that nobody looks at; other streams read them into `bytes`.
    pub(crate) fn discard(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                Ok(rustix::net::recv(&*stream, bytes, RecvFlags::TRUNC | RecvFlags::DONTWAIT)?.1)
            }
            Self::Unix(stream) => stream.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
        }
    }
}

pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// One of several listeners on the same address: the kernel spreads connections over them.
    pub(crate) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(Self::Tcp(TcpListener::from_std(socket.into())))
    }

    /// A Unix socket for each thread: the first binds (a stale file is removed), the others share the descriptor.
    pub(crate) fn unix(path: &Path, threads: usize) -> io::Result<Vec<Self>> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let first = std::os::unix::net::UnixListener::bind(path)?;
        first.set_nonblocking(true)?;
        (0..threads).map(|_| Ok(Self::Unix(UnixListener::from_std(first.try_clone()?)))).collect()
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Self::Unix(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept()?.0)),
        }
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// Reads `1` or `0,2-3`.
pub(crate) fn parse_cpus(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |t: &str| t.parse::<usize>().ok().filter(|n| *n < 1024).ok_or_else(|| format!("`{t}` is no CPU"));
        cpus.extend(number(first)?..=number(last)?);
    }
    if cpus.is_empty() { Err(format!("`{text}` names no CPU")) } else { Ok(cpus) }
}

/// Pins the calling thread; children started by it inherit that.
pub(crate) fn pin(cpu: usize) -> Result<(), String> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(format!("cannot pin a thread to CPU {cpu}: it is absent or not in this process's affinity mask"))
    }
}

/// Raises the soft limit of open files to the hard one. Children inherit it.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused means that the old limit stays; running out of descriptors is reported where it happens.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Whether an error only says "not now". A call on a non-blocking socket is never interrupted.
pub(crate) fn not_now(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_lists_and_ranges() {
        assert_eq!(parse_cpus("1"), Ok(vec![1]));
        assert_eq!(parse_cpus("0,2-4"), Ok(vec![0, 2, 3, 4]));
        assert!(parse_cpus("").is_err());
        assert!(parse_cpus("3-1").is_err());
        assert!(parse_cpus("x").is_err());
        assert!(parse_cpus("1-99999999").is_err());
    }
}
