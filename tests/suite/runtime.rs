//! What the shards run on, where the operator chooses: `runtime`. The same exchanges must come out of every runtime.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use ringmesh::control::{Ended, Proxy, Start};

/// Larger than the buffers of sockets and proxy together, so that a body needs many turns of the loop.
const BODY_BYTES: usize = 4 << 20;
/// A hung test fails; nothing is expected to take this long.
const GUARD: Duration = Duration::from_secs(20);

#[test]
fn on_epoll_bodies_pass_whole_in_both_directions_and_a_drain_ends() {
    exchanges_and_drain("epoll", "epoll");
}

#[test]
fn on_the_best_runtime_bodies_pass_whole_in_both_directions_and_a_drain_ends() {
    // Which one it is depends on the kernel.
    exchanges_and_drain("auto", "");
}

/// A GET, a POST with a length and one in chunks, then a drain while the connection is open. `runtime` is how the page of
/// the shards begins to call what they run on.
fn exchanges_and_drain(choice: &str, runtime: &str) {
    let origin = origin();
    let proxy = Proxy::start(Start::text(format!(
        "shards = 2\nruntime = \"{choice}\"\n[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"in\"\n\
         address = \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = [\"{origin}\"]\n[[route]]\n\
         service = \"app\"\n"
    )))
    .unwrap();
    let shards = shards_page(proxy.admin().unwrap());
    assert_eq!(shards.matches(&format!("\"runtime\":\"{runtime}")).count(), 2, "{shards}");

    let address = proxy.listener("in").unwrap();
    let mut connection = connect(address);
    connection.write_all(b"GET /download HTTP/1.1\r\nhost: app\r\n\r\n").unwrap();
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    assert!(read_message(&mut reader).1 == body(), "the download is not what the service sent");

    let sized = format!("POST /upload HTTP/1.1\r\nhost: app\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    connection.write_all(sized.as_bytes()).unwrap();
    connection.write_all(&body()).unwrap();
    assert_eq!(read_message(&mut reader).1, b"whole", "with a length");

    connection
        .write_all(b"POST /upload HTTP/1.1\r\nhost: app\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    for piece in body().chunks(100_000) {
        connection.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).unwrap();
        connection.write_all(piece).unwrap();
        connection.write_all(b"\r\n").unwrap();
    }
    connection.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut reader).1, b"whole", "in chunks");

    proxy.drain();
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "an idle connection is closed by the drain");
    assert_eq!(proxy.join(), Ended::Drained);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

/// A service: GET gives `body()`; POST tells whether `body()` came.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream));
        }
    });
    address
}

fn serve(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !reader.fill_buf().unwrap_or_default().is_empty() {
        let (head, received) = read_message(&mut reader);
        let answer: &[u8] = match (head.starts_with("GET "), received == body()) {
            (true, _) => &body(),
            (false, true) => b"whole",
            (false, false) => b"not what was sent",
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer)).is_err() {
            return; // The proxy has gone; the test says so if it should not have.
        }
    }
}

/// Octets that tell their place: a piece left out, doubled or moved is noticed.
fn body() -> Vec<u8> {
    (0..BODY_BYTES / 4).flat_map(|n| u32::try_from(n).unwrap().to_be_bytes()).collect()
}

/// Head and body, by length or in chunks.
fn read_message(reader: &mut impl BufRead) -> (String, Vec<u8>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "ended within the head {head:?}");
    }
    let lower = head.to_lowercase();
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let start = body.len();
            body.resize(start + size + 2, 0);
            reader.read_exact(&mut body[start..]).unwrap();
            body.truncate(start + size);
            if size == 0 {
                break;
            }
        }
    } else if let Some((_, rest)) = lower.split_once("content-length: ") {
        body.resize(rest.lines().next().unwrap().trim().parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
    }
    (head, body)
}

fn shards_page(admin: SocketAddr) -> String {
    let mut connection = connect(admin);
    connection
        .write_all(b"GET /shards?format=json HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    connection.read_to_string(&mut page).unwrap();
    page.replace("\": ", "\":")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.set_write_timeout(Some(GUARD)).unwrap();
    stream
}
