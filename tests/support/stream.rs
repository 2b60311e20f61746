//! A caller that speaks HTTP/2 and has one stream of it, as a blocking byte stream: a tunnel, seen from its end.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use bytes::{Buf, Bytes};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use http::response::Parts;
use tokio::runtime::Runtime;

use super::GUARD;

/// A connection.
pub struct Caller {
    runtime: Runtime,
    request: SendRequest<Bytes>,
}

/// The stream of an answered request, and the connection that it is on.
pub struct Stream {
    caller: Caller,
    pub head: Parts,
    send: SendStream<Bytes>,
    recv: RecvStream,
    piece: Bytes,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The peer has ended its side.
    Fin,
    /// The peer has reset it.
    Reset(Reason),
    /// The connection is over.
    Gone,
}

/// The request for a WebSocket, with fields.
pub fn websocket(path: &str) -> http::request::Builder {
    Request::builder()
        .method("CONNECT")
        .uri(format!("http://app.test{path}"))
        .extension(h2::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
}

/// A plain CONNECT.
pub fn connect(authority: &str) -> Request<()> {
    Request::builder().method("CONNECT").uri(authority).body(()).unwrap()
}

impl Caller {
    pub fn new(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let request = within(&runtime, async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut builder = h2::client::Builder::new();
            // What comes while the test does something else is kept, in however many pieces.
            builder.data_frame_budget(64 << 20);
            let (request, connection) = builder.handshake(stream).await.unwrap();
            tokio::spawn(connection);
            request.ready().await.unwrap()
        });
        Self { runtime, request }
    }

    /// Sends the head of a request, and these octets behind it before the answer; the answer's head.
    pub fn ask(self, request: Request<()>, early: &[u8]) -> Result<Stream, h2::Error> {
        let early = Bytes::copy_from_slice(early);
        let mut requests = self.request.clone();
        let (head, recv, send) = within(&self.runtime, async move {
            let (response, mut send) = requests.send_request(request, false)?;
            if !early.is_empty() {
                send.send_data(early, false)?;
            }
            let (head, recv) = response.await?.into_parts();
            Ok::<_, h2::Error>((head, recv, send))
        })?;
        Ok(Stream { caller: self, head, send, recv, piece: Bytes::new() })
    }
}

impl Stream {
    pub fn open(address: SocketAddr, request: Request<()>) -> Self {
        Caller::new(address).ask(request, b"").unwrap()
    }

    /// Sends octets as the window lets it; whether the peer took them.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let mut left = Bytes::copy_from_slice(bytes.as_ref());
        let send = &mut self.send;
        within(&self.caller.runtime, async move {
            while !left.is_empty() {
                send.reserve_capacity(left.len());
                let Some(Ok(room)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else {
                    return false;
                };
                if send.send_data(left.split_to(room.min(left.len())), false).is_err() {
                    return false;
                }
            }
            flushed().await;
            true
        })
    }

    pub fn finish(&mut self) {
        let _ = self.send.send_data(Bytes::new(), true);
        within(&self.caller.runtime, flushed());
    }

    pub fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
        within(&self.caller.runtime, flushed());
    }

    /// Takes exactly so many octets; panics when the stream ends before.
    #[track_caller]
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            if self.piece.is_empty()
                && let Err(ended) = self.more()
            {
                panic!("{ended:?} behind {} octets of {len}", out.len());
            }
            let part = self.piece.split_to(self.piece.len().min(len - out.len()));
            out.extend_from_slice(&part);
        }
        out
    }

    /// How it ends, and what comes before.
    pub fn end(&mut self) -> (Vec<u8>, Ended) {
        let mut out = Vec::new();
        loop {
            out.extend_from_slice(&std::mem::take(&mut self.piece));
            if let Err(ended) = self.more() {
                return (out, ended);
            }
        }
    }

    /// The rest as text: the body of an ordinary response.
    pub fn text(&mut self) -> String {
        String::from_utf8(self.end().0).unwrap()
    }

    /// Another request on the same connection, without a body: the answer's status.
    pub fn other(&self, request: Request<()>) -> u16 {
        let mut requests = self.caller.request.clone();
        within(&self.caller.runtime, async move {
            requests.send_request(request, true).unwrap().0.await.unwrap().status().as_u16()
        })
    }

    fn more(&mut self) -> Result<(), Ended> {
        let recv = &mut self.recv;
        let piece = within(&self.caller.runtime, async move {
            let piece = recv.data().await;
            if let Some(Ok(piece)) = &piece {
                recv.flow_control().release_capacity(piece.len()).unwrap();
            }
            piece
        });
        self.piece = match piece {
            Some(Ok(piece)) => piece,
            None => return Err(Ended::Fin),
            Some(Err(error)) if error.is_reset() => return Err(Ended::Reset(error.reason().unwrap())),
            Some(Err(_)) => return Err(Ended::Gone),
        };
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.more() {
                Ok(()) => {}
                Err(Ended::Fin) => return Ok(0),
                Err(ended) => return Err(io::Error::other(format!("{ended:?}"))),
            }
        }
        let n = self.piece.len().min(to.len());
        self.piece.copy_to_slice(&mut to[..n]);
        Ok(n)
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.say(from) { Ok(from.len()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets the connection's task write what it has: it runs in between only.
async fn flushed() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

fn within<T>(runtime: &Runtime, task: impl Future<Output = T>) -> T {
    runtime
        .block_on(async { tokio::time::timeout(GUARD, task).await })
        .expect("took longer than any test may")
}
