//! HTTP/2 peers: a service and a caller on the h2 crate with tokio, and a caller that writes its own frames, for what no
//! library would send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};

use super::GUARD;

/// What a service does with a request.
type Script =
    Arc<dyn Fn(Request<RecvStream>, SendResponse<Bytes>) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync>;

/// A service that speaks HTTP/2 by prior knowledge, until it is dropped.
pub struct Service {
    pub endpoint: String,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A whole message as it came.
#[derive(Debug)]
pub struct Whole<H> {
    pub head: H,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Service {
    /// Runs `script` for every request.
    pub fn scripted<F: Future<Output = ()> + 'static>(
        script: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self {
        let script: Script = Arc::new(move |request, respond| Box::pin(script(request, respond)));
        Self::by_connection(move |stream, _| serve(stream, Arc::clone(&script)))
    }

    /// Runs `script` for every connection, which it is told the number of.
    pub fn by_connection<F: Future<Output = ()> + 'static>(
        script: impl Fn(tokio::net::TcpStream, usize) -> F + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            local(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accept = async {
                    for number in 0.. {
                        let (stream, _) = listener.accept().await.unwrap();
                        tokio::task::spawn_local(script(stream, number));
                    }
                };
                tokio::select! { _ = accept => {}, _ = stopped => {} }
            });
        });
        Self { endpoint, stop: Some(stop), thread: Some(thread) }
    }

    /// Answers with the request's head as text and its body and trailers as they came.
    pub fn echoing() -> Self {
        Self::scripted(|request, mut respond| async move {
            let whole = read(request).await;
            let mut response = Response::builder().status(200);
            for (name, value) in &whole.head.headers {
                response = response.header(format!("echo-{name}"), value);
            }
            response = response
                .header("echo-method", whole.head.method.as_str())
                .header("echo-target", whole.head.uri.to_string());
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            send(&mut stream, whole.body.into(), whole.trailers).await;
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            let _ = thread.join();
        }
    }
}

async fn serve(stream: tokio::net::TcpStream, script: Script) {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::task::spawn_local(script(request, respond));
    }
}

/// Reads a request whole.
pub async fn read(request: Request<RecvStream>) -> Whole<http::request::Parts> {
    let (head, body) = request.into_parts();
    let (body, trailers) = drain(body).await.unwrap();
    Whole { head, body, trailers }
}

async fn drain(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        bytes.extend_from_slice(&piece);
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok((bytes, body.trailers().await?))
}

/// Sends a body as the window lets it, then the end.
pub async fn send(stream: &mut h2::SendStream<Bytes>, mut body: Bytes, trailers: Option<HeaderMap>) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        let part = body.split_to(room.min(body.len()));
        if stream.send_data(part, body.is_empty() && trailers.is_none()).is_err() {
            return;
        }
    }
    match trailers {
        Some(trailers) => drop(stream.send_trailers(trailers)),
        // Fails where the last piece has ended the stream.
        None => drop(stream.send_data(Bytes::new(), true)),
    }
}

/// Sends one request on a connection of its own and reads the response.
pub fn call(
    address: SocketAddr,
    request: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<Whole<http::response::Parts>, h2::Error> {
    let body = Bytes::copy_from_slice(body);
    local(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (send_request, connection) = h2::client::handshake(stream).await?;
        tokio::task::spawn_local(connection);
        let mut send_request = send_request.ready().await?;
        let ended = body.is_empty() && trailers.is_none();
        let (response, mut stream) = send_request.send_request(request, ended)?;
        if !ended {
            tokio::task::spawn_local(async move { send(&mut stream, body, trailers).await });
        }
        let (head, body) = response.await?.into_parts();
        let (body, trailers) = drain(body).await?;
        Ok(Whole { head, body, trailers })
    })
}

/// A request for a path.
pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://app.test{path}")).body(()).unwrap()
}

/// Runs a future with tokio, for as long as a test may take.
pub fn local<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    runtime
        .block_on(tasks.run_until(async { tokio::time::timeout(GUARD, task).await }))
        .expect("took longer than any test may")
}

/// A caller that writes its own frames.
pub struct Raw {
    stream: TcpStream,
}

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Raw {
    /// Connects and says the preface with empty settings.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self { stream };
        raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.frame(4, 0, 0, &[]);
        raw
    }

    /// Whether the peer still takes octets.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// As [`Raw::write`], of one frame.
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// The next frame; `None` when the connection is over.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads to the end of the connection; the error code of the last GOAWAY.
    pub fn goaway(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next() {
            if frame.kind == 7 {
                code = frame.payload.get(4..8).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
            }
        }
        code
    }
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// A field block for `GET / HTTP/2`, of the static table alone, and `:authority: app`.
pub fn block_of_get() -> Vec<u8> {
    // :method GET, :scheme http, :path /, :authority literal without indexing.
    let mut block = vec![0x82, 0x86, 0x84, 0x01, 3];
    block.extend_from_slice(b"app");
    block
}
