//! The state of a connection, without a socket: both sides in one thread, what one seals the other takes.

use super::*;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;

/// Where alerts go that nobody reads.
fn nowhere() -> RawFd {
    static PAIR: std::sync::OnceLock<(UnixStream, UnixStream)> = std::sync::OnceLock::new();
    PAIR.get_or_init(|| UnixStream::pair().unwrap()).0.as_raw_fd()
}

fn pair() -> (Tls, Tls) {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["app.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(leaf.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("app.test").unwrap();
    let client = ClientConnection::new(Arc::new(client), name).unwrap();
    let server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut client = State::new(rustls::Connection::Client(client));
    let mut server = State::new(rustls::Connection::Server(server));
    while client.rustls.is_handshaking() || server.rustls.is_handshaking() {
        server.feed(&drained(&mut client)).unwrap();
        client.feed(&drained(&mut server)).unwrap();
    }
    (Tls::new(client), Tls::new(server))
}

fn drained(state: &mut State) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some((out, at)) = state.seal(&[], &mut 0).unwrap() {
        all.extend_from_slice(&out[at..]);
        let n = out.len() - at;
        state.sent(out, n);
    }
    all
}

/// All ciphertext of `plain`, written in pieces of `piece` bytes.
fn sealed(tls: &Tls, plain: &[u8], piece: usize) -> Vec<u8> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some((out, from)) = tls.seal(plain, &mut at).unwrap() {
        assert!(out.len() <= SEALED_MAX + 256, "{} bytes for one write", out.len());
        let n = piece.min(out.len() - from);
        all.extend_from_slice(&out[from..from + n]);
        tls.sent(out, n);
    }
    assert_eq!(at, plain.len());
    all
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Reads all of `wire` in reads of at most `read` bytes into a buffer of `capacity`, as `Reader::read` does.
fn read_all(
    tls: &Tls,
    mut wire: &[u8],
    read: usize,
    capacity: usize,
) -> (Vec<u8>, Option<Result<usize, Fault>>) {
    const KEEP_FREE: usize = 7;
    let mut all = Vec::new();
    loop {
        let mut buffer = Vec::with_capacity(capacity);
        buffer.extend_from_slice(b"front");
        let room = buffer.capacity() - KEEP_FREE;
        let mut result = tls.ready(&mut buffer, KEEP_FREE);
        while result.is_none() {
            let n = read.min(room - buffer.len()).min(wire.len());
            if n == 0 {
                assert_eq!(buffer, b"front");
                return (all, None);
            }
            buffer.extend_from_slice(&wire[..n]);
            wire = &wire[n..];
            result = tls.took(&mut buffer, n, KEEP_FREE, nowhere());
        }
        assert!(buffer.starts_with(b"front") && buffer.len() <= room);
        match result {
            Some(Ok(n)) if n > 0 => assert_eq!(n, buffer.len() - 5),
            ended => return (all, ended),
        }
        all.extend_from_slice(&buffer[5..]);
    }
}

#[test]
fn what_is_sealed_comes_out_whatever_the_sizes_of_reads_writes_and_buffers() {
    let (client, server) = pair();
    let plain = noise(300_000);
    for (piece, read, capacity) in [
        (usize::MAX, usize::MAX, 16_384),
        (1000, 1, 16_384),
        (usize::MAX, 131_072, 131_072),
        (77, 5000, 40),
        (1, 16_384, 13),
    ] {
        let wire = sealed(&client, &plain, piece);
        let (got, end) = read_all(&server, &wire, read, capacity);
        assert!(got == plain && end.is_none(), "{piece} {read} {capacity}: {} {end:?}", got.len());
    }
    let wire = sealed(&server, &plain, 4096);
    assert!(read_all(&client, &wire, 3000, 20_000).0 == plain);
}

#[test]
fn the_end_is_good_only_when_it_was_said() {
    let (client, server) = pair();
    let mut wire = sealed(&client, b"hello", usize::MAX);
    client.state.borrow_mut().rustls.send_close_notify();
    wire.extend(drained(&mut client.state.borrow_mut()));
    wire.extend_from_slice(b"and what comes behind is nothing");
    assert_eq!(read_all(&server, &wire, usize::MAX, 16_384), (b"hello".to_vec(), Some(Ok(0))));

    let (client, server) = pair();
    let wire = sealed(&client, b"hello", usize::MAX);
    assert_eq!(read_all(&server, &wire, usize::MAX, 16_384), (b"hello".to_vec(), None));
    let mut buffer = Vec::with_capacity(100);
    assert_eq!(server.took(&mut buffer, 0, 0, nowhere()), Some(Err(Fault::Closed)));
    assert!(server.is_ready(), "and it stays so");
}

#[test]
fn what_came_before_a_broken_record_is_handed_over_first() {
    let (client, server) = pair();
    let mut wire = sealed(&client, b"hello", usize::MAX);
    wire.extend(sealed(&client, b"world", usize::MAX));
    *wire.last_mut().unwrap() ^= 1;
    let (got, end) = read_all(&server, &wire, usize::MAX, 16_384);
    assert_eq!((got.as_slice(), end), (&b"hello"[..], Some(Err(Fault::Reset))));
    let mut at = 0;
    assert_eq!(server.seal(b"more", &mut at).err(), Some(Fault::Reset));
}

#[test]
fn a_connection_agrees_on_what_both_sides_offer() {
    let (client, server) = pair();
    assert_eq!((client.alpn(), server.alpn()), (Some(&b"http/1.1"[..]), Some(&b"http/1.1"[..])));
    assert_eq!((client.sni(), server.sni()), (None, Some("app.test")));
    assert_eq!(server.version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!((client.peer_certificates().len(), server.peer_certificates().len()), (1, 0));
}

/// What lies beside the future of a connection. With what rustls allocates it is 7 kB at rest, 19 kB after a long record
/// until it rests.
#[test]
fn the_state_itself_stays_small() {
    assert!(size_of::<Tls>() <= 2048, "{} bytes", size_of::<Tls>());
}

#[test]
fn what_tls_says_to_itself_does_not_make_a_connection_at_rest_unusable() {
    let (client, server) = pair();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let new_keys = |from: &Tls| {
        let mut state = from.state.borrow_mut();
        state.rustls.refresh_traffic_keys().unwrap();
        drained(&mut state)
    };
    theirs.write_all(&new_keys(&server)).unwrap();
    assert!(client.is_at_rest(ours.as_raw_fd()));
    // And the connection goes on with them.
    let wire = sealed(&server, b"hello", usize::MAX);
    assert_eq!(read_all(&client, &wire, usize::MAX, 16_384).0, b"hello");
    theirs.write_all(&new_keys(&server)).unwrap();
    theirs.write_all(&sealed(&server, b"more than that", usize::MAX)).unwrap();
    assert!(!client.is_at_rest(ours.as_raw_fd()));

    let (client, server) = pair();
    theirs.write_all(&new_keys(&server)).unwrap();
    drop(theirs);
    assert!(!client.is_at_rest(ours.as_raw_fd()), "closed behind it");
}
