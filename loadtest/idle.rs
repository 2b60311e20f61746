//! `loadtest idle`: opens connections and holds them, so that the memory which an idle connection costs can be read.
//!
//! Called by `main` and `compare`. It refuses to send more than one request on each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::wire;

/// Opens `count` connections one after the other; with `request`, each sends one and reads the whole answer first.
pub(crate) fn open(
    address: SocketAddr,
    count: usize,
    request: Option<&str>,
) -> Result<Vec<TcpStream>, String> {
    let mut streams = Vec::with_capacity(count);
    for i in 0..count {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .map_err(|e| format!("connection {} of {count}: {e}", i + 1))?;
        if let Some(target) = request {
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

/// How many of them the other side has not closed.
pub(crate) fn still_open(streams: &[TcpStream]) -> usize {
    let alive = |stream: &&TcpStream| {
        stream.set_nonblocking(true).is_ok()
            && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    streams.iter().filter(alive).count()
}

/// One request on a blocking connection: its status, once its body is read. Only bodies with a length are understood.
pub(crate) fn ask(stream: &mut TcpStream, target: &str) -> Result<u16, String> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
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
