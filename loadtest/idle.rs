//! `loadtest idle`: opens connections and holds them, so that the memory which an idle connection costs can be read.
//!
//! Called by `main` and `compare`. It refuses to send more than one request on each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::wire;

/// Opens `count` connections one after the other; with `request`, each sends one and reads the whole answer first.
pub(crate) fn open(
    address: SocketAddr,
    tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    count: usize,
    request: Option<&str>,
) -> Result<Vec<Held>, String> {
    let mut streams = Vec::with_capacity(count);
    for i in 0..count {
        let named = |what: &str| format!("connection {} of {count}: {what}", i + 1);
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .map_err(|e| named(&e.to_string()))?;
        let mut stream = match tls {
            Some((config, name)) => Held::Tls(Box::new(
                handshaken(stream, config, name.clone()).map_err(|e| named(&e.to_string()))?,
            )),
            None => Held::Tcp(stream),
        };
        if let Some(target) = request {
            stream
                .socket()
                .set_read_timeout(Some(Duration::from_secs(5)))
                .map_err(|e| named(&e.to_string()))?;
            let status =
                ask(&mut stream, target).map_err(|e| format!("request on connection {}: {e}", i + 1))?;
            if status != 200 {
                return Err(format!("request on connection {}: status {status}", i + 1));
            }
        }
        streams.push(stream);
    }
    Ok(streams)
}

/// A connection that is held.
pub(crate) enum Held {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Held {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Held {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

fn handshaken(
    mut stream: TcpStream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(tls, stream))
}

/// How many of them the other side has not closed.
pub(crate) fn still_open(streams: &[Held]) -> usize {
    let alive = |held: &&Held| {
        let stream = held.socket();
        stream.set_nonblocking(true).is_ok()
            && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    };
    streams.iter().filter(alive).count()
}

/// One request on a blocking connection: its status, once its body is read. Only bodies with a length are understood.
pub(crate) fn ask(stream: &mut (impl Read + Write), target: &str) -> Result<u16, String> {
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).map_err(|e| e.to_string())?;
        if n == 0 {
            return Err("closed before the answer".to_owned());
        }
        bytes.extend_from_slice(&piece[..n]);
        let Some(head) = wire::parse_head(&bytes).map_err(|e| e.0.to_owned())? else { continue };
        let body = (bytes.len() - head.len) as u64;
        let whole = match head.framing {
            wire::Framing::Length(length) => body >= length,
            _ => true,
        };
        if whole {
            return wire::parse_status(head.first_line).map_err(|e| e.0.to_owned());
        }
    }
}
