//! One HTTP/1.1 request after the other over connections that are kept: what the demo's client and its workloads call with.
//!
//! Reads answers that carry a Content-Length, which is all that the workloads and the sidecars send. Refuses the rest.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Idle connections kept; more are closed. As many as can be in use at once.
const IDLE_MAX: usize = super::client::IN_FLIGHT_MAX;
/// Bytes of a head, and of a body.
const PART_MAX: usize = 64 << 10;

/// The field that carries the marker: a word that is the demo's own, to be looked for where nobody may read it.
pub(super) const MARKER: &str = "x-demo-marker";

/// Calls one address under one name.
pub(super) struct Caller {
    to: SocketAddr,
    host: &'static str,
    idle: Mutex<Vec<TcpStream>>,
}

/// What came back.
pub(super) struct Answer {
    /// The status code.
    pub status: u16,
    /// What `x-ringmesh-failure` says: which hop failed, and why.
    pub failure: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why nothing came back.
enum Broken {
    /// The connection ended before the first byte of an answer.
    Unanswered(io::Error),
    /// It ended in the middle of one, or the answer cannot be read.
    Cut(io::Error),
}

impl Caller {
    /// Connects at the first call.
    pub(super) fn new(to: SocketAddr, host: &'static str) -> Self {
        Self { to, host, idle: Mutex::default() }
    }

    /// Closes the connections that are kept. The other side need not wait then for what might still come on them.
    pub(super) fn hang_up(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// One exchange. With a marker, field and body of the request carry it. A kept connection that turns out to be closed
    /// is replaced once: a GET or a PUT may be sent again (RFC 9110 §9.2.2).
    ///
    /// # Errors
    /// When no connection can be made, or it ends before the answer is whole.
    pub(super) async fn call(&self, marker: Option<&str>) -> io::Result<Answer> {
        let request = self.request(marker);
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(stream) = kept {
            match self.exchange(stream, &request).await {
                Ok(answer) => return Ok(answer),
                Err(Broken::Cut(error)) => return Err(error),
                Err(Broken::Unanswered(_)) => {}
            }
        }
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        let (Broken::Unanswered(error) | Broken::Cut(error)) = match self.exchange(stream, &request).await {
            Ok(answer) => return Ok(answer),
            Err(broken) => broken,
        };
        Err(error)
    }

    fn request(&self, marker: Option<&str>) -> String {
        let always = format!("Host: {}\r\nUser-Agent: ringmesh-demo\r\n", self.host);
        let Some(marker) = marker else { return format!("GET / HTTP/1.1\r\n{always}\r\n") };
        let body = format!("{{\"marker\":\"{marker}\"}}\n");
        let length = body.len();
        format!("PUT / HTTP/1.1\r\n{always}{MARKER}: {marker}\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    async fn exchange(&self, mut stream: TcpStream, request: &str) -> Result<Answer, Broken> {
        stream.write_all(request.as_bytes()).await.map_err(Broken::Unanswered)?;
        let mut input = Vec::with_capacity(1024);
        let head = loop {
            if let Some(head) = Head::of(&input).map_err(Broken::Cut)? {
                break head;
            }
            match stream.read_buf(&mut input).await {
                Ok(0) if input.is_empty() => {
                    return Err(Broken::Unanswered(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(0) => return Err(Broken::Cut(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if input.is_empty() => return Err(Broken::Unanswered(error)),
                Err(error) => return Err(Broken::Cut(error)),
            }
        };
        let mut body = input.split_off(head.length);
        while body.len() < head.body_length {
            match stream.read_buf(&mut body).await {
                Ok(0) => return Err(Broken::Cut(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(Broken::Cut(error)),
            }
        }
        if head.keep_alive && body.len() == head.body_length {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(stream);
            }
        }
        Ok(Answer { status: head.status, failure: head.failure, body })
    }
}

/// The head of an answer.
struct Head {
    length: usize,
    status: u16,
    body_length: usize,
    keep_alive: bool,
    failure: Option<String>,
}

impl Head {
    /// `None` while it is not whole.
    fn of(input: &[u8]) -> io::Result<Option<Self>> {
        let broken = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(input) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if input.len() < PART_MAX => return Ok(None),
            Ok(httparse::Status::Partial) => return broken("the head of the answer has no end"),
            Err(error) => return broken(&format!("the answer is not HTTP: {error}")),
        };
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let body_length = field("content-length").and_then(|text| text.parse().ok());
        match body_length {
            Some(body_length) if body_length <= PART_MAX => Ok(Some(Self {
                length,
                status: response.code.unwrap_or(0),
                body_length,
                keep_alive: !field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
                failure: field("x-ringmesh-failure").map(str::to_owned),
            })),
            _ => broken("the answer has no length that can be used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// A server that gives these bytes to the requests of one connection after the other, each followed by its end.
    fn server(connections: Vec<Vec<&'static [u8]>>) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answers in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in answers {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).unwrap();
                    stream.write_all(answer).unwrap();
                }
            }
        });
        address
    }

    fn get(caller: &Caller) -> io::Result<(u16, String)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The pool belongs to one runtime: two calls in one.
        runtime.block_on(async {
            caller.call(None).await?;
            let answer = caller.call(None).await?;
            Ok((answer.status, String::from_utf8(answer.body).unwrap()))
        })
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    #[test]
    fn a_kept_connection_is_used_again() {
        assert_eq!(get(&Caller::new(server(vec![vec![OK, OK]]), "a")).unwrap(), (200, "ok".into()));
    }

    #[test]
    fn a_kept_connection_that_was_closed_is_replaced() {
        assert_eq!(get(&Caller::new(server(vec![vec![OK], vec![OK]]), "a")).unwrap(), (200, "ok".into()));
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error_and_not_asked_for_again() {
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf";
        let caller = Caller::new(server(vec![vec![OK, cut], vec![OK]]), "a");
        assert_eq!(get(&caller).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_marker_is_in_a_field_and_in_the_body() {
        let request = Caller::new(SocketAddr::from(([127, 0, 0, 1], 1)), "a").request(Some("m-1"));
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nx-demo-marker: m-1\r\n"), "{head}");
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())) && body.contains("m-1"), "{body}");
    }

    #[test]
    fn a_refusal_says_which_hop_failed() {
        let head = Head::of(
            b"HTTP/1.1 503 x\r\nContent-Length: 0\r\nConnection: close\r\nX-Ringmesh-Failure: a.b.c\r\n\r\n",
        );
        let head = head.unwrap().unwrap();
        assert_eq!((head.status, head.keep_alive, head.failure.as_deref()), (503, false, Some("a.b.c")));
        assert!(Head::of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(Head::of(b"HTTP/1.1 200").unwrap().is_none());
    }
}
