//! A scripted caller: sends any bytes, and judges what comes back strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::wire::{Kind, Message, Parse, parse, shown};
use super::{End, GUARD};

pub struct Client {
    stream: Stream,
    /// What has come and was not yet taken.
    input: Vec<u8>,
    end: Option<End>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// What came in place of a whole response.
#[derive(Debug)]
pub enum Cut {
    /// The front of a response.
    Truncated(Option<Message>, End),
    /// Nothing at all.
    Nothing(End),
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        Self { stream: Stream::Plain(stream), input: Vec::new(), end: None }
    }

    /// Begins TLS on what was connected; the handshake is done with the first bytes that are sent.
    pub fn tls(self, config: ClientConfig, name: &str) -> Self {
        let Stream::Plain(stream) = self.stream else { panic!("encrypted already") };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        Self { stream: Stream::Tls(Box::new(StreamOwned::new(connection, stream))), ..self }
    }

    /// The client's state of TLS.
    pub fn rustls(&mut self) -> &mut ClientConnection {
        match &mut self.stream {
            Stream::Tls(stream) => &mut stream.conn,
            Stream::Plain(_) => panic!("not encrypted"),
        }
    }

    /// The socket, past any encryption.
    pub fn socket(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &mut stream.sock,
        }
    }

    /// Sends bytes. That the proxy has closed meanwhile is seen by reading.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes.as_ref()),
            Stream::Tls(stream) => stream.write_all(bytes.as_ref()).and_then(|()| stream.flush()),
        };
        match sent {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            // Also that it refused the handshake.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {}
            Err(error) => panic!("sending: {error}"),
        }
        self
    }

    /// Sends bytes in pieces of the given size, each in a packet of its own.
    pub fn send_in_pieces(&mut self, bytes: &[u8], size: usize) -> &mut Self {
        for piece in bytes.chunks(size) {
            self.send(piece);
        }
        self
    }

    /// Sends no more.
    pub fn finish(&mut self) -> &mut Self {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
        self
    }

    /// Resets the connection.
    pub fn reset(mut self) {
        socket2::SockRef::from(&*self.socket()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// The response to a request that was not HEAD, whole.
    #[track_caller]
    pub fn response(&mut self) -> Message {
        self.try_response(false).unwrap_or_else(|cut| panic!("no whole response: {cut:?}"))
    }

    /// The response to HEAD.
    #[track_caller]
    pub fn response_to_head(&mut self) -> Message {
        self.try_response(true).unwrap_or_else(|cut| panic!("no whole response: {cut:?}"))
    }

    /// The response that is not an interim one, and those.
    #[track_caller]
    pub fn responses(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            all.push(self.response());
            if all.last().unwrap().status() >= 200 {
                return all;
            }
        }
    }

    /// A response that is cut, or none.
    #[track_caller]
    pub fn cut(&mut self) -> Cut {
        match self.try_response(false) {
            Ok(response) => panic!("a whole response: {response:?}"),
            Err(cut) => cut,
        }
    }

    /// The next response. Panics on what no proxy may ever send.
    #[track_caller]
    pub fn try_response(&mut self, head: bool) -> Result<Message, Cut> {
        loop {
            // A body that ends with the connection is whole only if the connection ended well.
            let ended = self.end == Some(End::Fin);
            match parse(Kind::Response { head }, &self.input, ended) {
                Parse::Whole(message, len) => {
                    self.input.drain(..len);
                    return Ok(message);
                }
                Parse::Bad(why) => panic!("not a response: {why}"),
                Parse::Partial(message) => match self.end {
                    Some(end) if self.input.is_empty() => return Err(Cut::Nothing(end)),
                    Some(end) => return Err(Cut::Truncated(message, end)),
                    None => self.more(),
                },
            }
        }
    }

    /// Waits until so many bytes are there that have not been taken.
    pub fn wait_bytes(&mut self, len: usize) -> &[u8] {
        while self.input.len() < len && self.end.is_none() {
            self.more();
        }
        &self.input
    }

    /// Takes exactly so many bytes; panics when the connection ends before.
    #[track_caller]
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let there = self.wait_bytes(len).len();
        assert!(there >= len, "{there} of {len} bytes, then {:?}", self.end);
        self.input.drain(..len).collect()
    }

    /// Takes a head and leaves what comes behind it, whatever its framing fields say.
    #[track_caller]
    pub fn take_head(&mut self) -> String {
        loop {
            if let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") {
                return String::from_utf8(self.take(end + 4)).unwrap();
            }
            assert!(self.end.is_none(), "no head: {}, then {:?}", shown(&self.input), self.end);
            self.more();
        }
    }

    /// Waits for the end of the connection; panics when anything comes before it.
    #[track_caller]
    pub fn end(&mut self) -> End {
        while self.end.is_none() && self.input.is_empty() {
            self.more();
        }
        assert!(self.input.is_empty(), "more came: {}", shown(&self.input));
        self.end.unwrap()
    }

    fn more(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        let read = match &mut self.stream {
            Stream::Plain(stream) => stream.read(&mut buffer),
            Stream::Tls(stream) => stream.read(&mut buffer),
        };
        match read {
            Ok(0) => self.end = Some(End::Fin),
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.end = Some(End::Reset),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.end = Some(End::Cut),
            Err(error) if error.kind() == ErrorKind::InvalidData => self.end = Some(End::Tls),
            Err(error) => panic!("receiving: {error}; so far: {}", shown(&self.input)),
        }
    }
}
