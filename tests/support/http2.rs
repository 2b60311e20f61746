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

/// A peer that writes its own frames.
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

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Status(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection ends with this code.
    Goaway(u32),
    /// The connection is over.
    End,
}

// Types and flags of frames (RFC 9113 §6), and codes of errors (§7).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const SETTINGS_TIMEOUT: u32 = 4;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

impl Raw {
    /// Connects and says the preface with settings that keep the peer's header compression simple.
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// As [`Raw::connect`], with further settings.
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::of(TcpStream::connect(address).unwrap());
        raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.settings(settings);
        raw
    }

    /// The other end: reads the preface, and sends settings, where there are any.
    fn accepted(stream: TcpStream, settings: Option<&[(u16, u32)]>) -> Option<Self> {
        let mut raw = Self::of(stream);
        let mut preface = [0; 24];
        raw.stream.read_exact(&mut preface).ok()?;
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        if let Some(settings) = settings {
            raw.settings(settings);
        }
        Some(raw)
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Sends settings; without a table for header compression, so that [`Frame::status`] is all that must be read.
    pub fn settings(&mut self, settings: &[(u16, u32)]) -> bool {
        let mut payload = Vec::new();
        for (id, value) in [(1, 0)].iter().chain(settings) {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.frame(SETTINGS, 0, 0, &payload)
    }

    /// Whether the peer still takes octets.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// As [`Raw::write`], of one frame.
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// Sends a head whole; `flags` beside END_HEADERS.
    pub fn head(&mut self, flags: u8, stream: u32, fields: &[(&str, &str)]) -> bool {
        self.frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
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

    /// The next frame that concerns a stream, or GOAWAY; settings and pings are answered meanwhile.
    pub fn event(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(self.frame(SETTINGS, ACK, 0, &[])),
                PING if frame.flags & ACK == 0 => drop(self.frame(PING, ACK, 0, &frame.payload)),
                SETTINGS | PING | WINDOW_UPDATE => {}
                _ => return Some(frame),
            }
        }
    }

    /// The next frame of this kind; panics when the connection ends before.
    #[track_caller]
    pub fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame =
                if matches!(kind, SETTINGS | PING | WINDOW_UPDATE) { self.next() } else { self.event() };
            let frame = frame.unwrap_or_else(|| panic!("the connection ended before a frame of kind {kind}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The stream of the next request, and whether it has ended; `None` when the connection is over.
    pub fn request(&mut self) -> Option<(u32, bool)> {
        loop {
            let frame = self.event()?;
            if frame.kind == HEADERS {
                return Some((frame.stream, frame.flags & END_STREAM != 0));
            }
        }
    }

    /// Waits until the peer has dealt with all that was sent before: it answers a ping.
    pub fn settle(&mut self) {
        self.frame(PING, 0, 0, b"settled?");
        loop {
            let frame = self.next().expect("a connection that is still there");
            match frame.kind {
                PING if frame.flags & ACK != 0 && frame.payload == b"settled?" => return,
                SETTINGS if frame.flags & ACK == 0 => drop(self.frame(SETTINGS, ACK, 0, &[])),
                _ => {}
            }
        }
    }

    /// What becomes of a request.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.event() {
            match frame.kind {
                HEADERS if frame.stream == stream && frame.status() >= 200 => {
                    return Outcome::Status(frame.status());
                }
                RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                GOAWAY if frame.code() != NO_ERROR => return Outcome::Goaway(frame.code()),
                _ => {}
            }
        }
        Outcome::End
    }

    /// What of a response's body comes until its end; the code of a reset in place of that.
    pub fn body(&mut self, stream: u32) -> (Vec<u8>, Option<u32>) {
        let mut body = Vec::new();
        while let Some(frame) = self.event() {
            match frame.kind {
                DATA if frame.stream == stream => body.extend_from_slice(&frame.payload),
                RST_STREAM if frame.stream == stream => return (body, Some(frame.code())),
                GOAWAY if frame.code() != NO_ERROR => return (body, Some(frame.code())),
                _ => {}
            }
            if frame.stream == stream && frame.flags & END_STREAM != 0 && matches!(frame.kind, DATA | HEADERS)
            {
                return (body, None);
            }
        }
        panic!("the connection ended; so far {} octets", body.len());
    }

    /// Reads to the end of the connection; the error code of the last GOAWAY.
    pub fn goaway(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }

    /// Sends no more.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

impl Frame {
    /// The status of a response's head. Reads what h2 writes for a peer without a table.
    pub fn status(&self) -> u16 {
        let mut at = 0;
        while self.payload[at] & 0xe0 == 0x20 {
            at += 1; // The size of the table.
        }
        match self.payload[at] {
            0x88 => 200,
            0x89 => 204,
            0x8a => 206,
            0x8b => 304,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            0x08 | 0x18 | 0x48 => digits(&self.payload[at + 1..]),
            other => panic!("a status that begins with {other:#x}"),
        }
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The last stream of GOAWAY.
    pub fn last_stream(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// Three digits, as a string of HPACK.
fn digits(string: &[u8]) -> u16 {
    let (length, text) = (usize::from(string[0] & 0x7f), &string[1..]);
    let text = &text[..length];
    if string[0] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let bits = text.iter().fold(0_u64, |bits, b| bits << 8 | u64::from(*b));
    let mut left = 8 * length;
    let mut take = |n: usize| {
        left -= n;
        (bits >> left) & ((1 << n) - 1)
    };
    (0..3).fold(0, |number, _| {
        // 0 to 2 have five bits, 3 to 9 have six (RFC 7541, appendix B).
        let five = take(5);
        let digit = if five <= 2 { five } else { (five << 1 | take(1)) - 0x19 + 3 };
        number * 10 + u16::try_from(digit).unwrap()
    })
}

/// A service that writes its own frames: runs a script on each connection.
pub struct RawService {
    pub endpoint: String,
    address: SocketAddr,
    stopping: Arc<std::sync::atomic::AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl RawService {
    /// Runs `script` with the number of the connection, from 0, and the connection, which is closed when it returns.
    pub fn scripted(script: impl Fn(usize, &mut Raw) + Send + Sync + 'static) -> Self {
        Self::with(&[], script)
    }

    /// As [`RawService::scripted`], with settings.
    pub fn with(
        settings: &'static [(u16, u32)],
        script: impl Fn(usize, &mut Raw) + Send + Sync + 'static,
    ) -> Self {
        Self::run(Some(settings), script)
    }

    /// As [`RawService::scripted`], but settings are the script's business.
    pub fn without_settings(script: impl Fn(usize, &mut Raw) + Send + Sync + 'static) -> Self {
        Self::run(None, script)
    }

    fn run(
        settings: Option<&'static [(u16, u32)]>,
        script: impl Fn(usize, &mut Raw) + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::<std::sync::atomic::AtomicBool>::default();
        let theirs = Arc::clone(&stopping);
        let script = Arc::new(script);
        let accepting = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if theirs.load(std::sync::atomic::Ordering::Acquire) {
                    return;
                }
                let script = Arc::clone(&script);
                std::thread::spawn(move || {
                    if let Some(mut raw) = Raw::accepted(stream.unwrap(), settings) {
                        script(number, &mut raw);
                    }
                });
            }
        });
        Self { endpoint: address.to_string(), address, stopping, accepting: Some(accepting) }
    }
}

impl Drop for RawService {
    fn drop(&mut self) {
        self.stopping.store(true, std::sync::atomic::Ordering::Release);
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
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

/// A field block of literals that are not indexed, whatever they are.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        literal(0x00, name.as_bytes(), value.as_bytes(), &mut out);
    }
    out
}

/// One literal field; `form` is 0x00 for one that is not indexed, 0x40 for one that is.
pub fn literal(form: u8, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(form);
    for string in [name, value] {
        let mut length = string.len();
        if length < 0x7f {
            out.push(length as u8);
        } else {
            out.push(0x7f);
            length -= 0x7f;
            while length >= 0x80 {
                out.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
        }
        out.extend_from_slice(string);
    }
}

/// How each field of a block is coded (RFC 7541 §6), as the bits that say so: 0x80 by its index, 0x40 a literal that enters the table,
/// 0x10 one that nobody may index, 0x00 one that is not; a change of the table's size counts for none.
pub fn forms(mut block: &[u8]) -> Vec<u8> {
    fn integer(block: &mut &[u8], bits: u32) -> usize {
        let most = (1 << bits) - 1;
        let (first, mut rest) = block.split_first().expect("an integer");
        let mut value = usize::from(*first) & most;
        if value == most {
            for shift in (0..).step_by(7) {
                let (octet, behind) = rest.split_first().expect("more of an integer");
                rest = behind;
                value += usize::from(octet & 0x7f) << shift;
                if octet & 0x80 == 0 {
                    break;
                }
            }
        }
        *block = rest;
        value
    }
    let mut forms = Vec::new();
    while let Some(first) = block.first().copied() {
        let (form, bits) = match first {
            0x80.. => (0x80, 7),
            0x40.. => (0x40, 6),
            0x20.. => (0x20, 5),
            0x10.. => (0x10, 4),
            _ => (0x00, 4),
        };
        let named = integer(&mut block, bits) > 0;
        if form == 0x20 {
            continue;
        }
        forms.push(form);
        if form != 0x80 {
            for _ in usize::from(named)..2 {
                let length = integer(&mut block, 7);
                block = &block[length..];
            }
        }
    }
    forms
}

/// The pseudo-fields of a request to `app`, and further fields.
pub fn fields<'x>(method: &'x str, path: &'x str, more: &[(&'x str, &'x str)]) -> Vec<(&'x str, &'x str)> {
    let mut fields = vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", "app")];
    fields.extend_from_slice(more);
    fields
}

/// A field block for `GET / HTTP/2`, of the static table alone, and `:authority: app`.
pub fn block_of_get() -> Vec<u8> {
    // :method GET, :scheme http, :path /, :authority literal without indexing.
    let mut block = vec![0x82, 0x86, 0x84, 0x01, 3];
    block.extend_from_slice(b"app");
    block
}
