//! The state of a connection, without a socket: both sides in one thread, what one seals the other takes.

use super::*;
use std::io::Write;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, InvalidMessage, RootCertStore, SupportedProtocolVersion};

/// Where alerts go that nobody reads.
fn nowhere() -> RawFd {
    static PAIR: std::sync::OnceLock<(UnixStream, UnixStream)> = std::sync::OnceLock::new();
    PAIR.get_or_init(|| UnixStream::pair().unwrap()).0.as_raw_fd()
}

/// How the two sides of a test are made.
#[derive(Clone, Copy)]
struct Made {
    version: &'static SupportedProtocolVersion,
    tickets: bool,
    /// Octets of a record at most.
    record_max: Option<usize>,
}

const PLAIN: Made = Made { version: &rustls::version::TLS13, tickets: false, record_max: None };

fn pair() -> (Tls, Tls) {
    pair_of(PLAIN)
}

fn pair_of(made: Made) -> (Tls, Tls) {
    let (mut client, mut server) = begun(made);
    let mut records = 0;
    while client.records.agreed().is_handshaking() || server.records.agreed().is_handshaking() {
        server.take_in(&mut drained(&mut client)).unwrap();
        let mut wire = if server.records.may_wait() { Vec::new() } else { drained(&mut server) };
        records += usize::from(!wire.is_empty());
        client.take_in(&mut wire).unwrap();
        assert!(wire.is_empty() && records < 3);
    }
    (Tls::new(client), Tls::new(server))
}

/// Both sides before anything is said.
fn begun(made: Made) -> (State, State) {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["app.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pair = CertifiedKey::from_der(
        vec![leaf.der().clone()],
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        &provider,
    );
    let mut certificates = ResolvesServerCertUsingSni::new();
    certificates.add("app.test", pair.unwrap()).unwrap();
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[made.version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(sni::Noted(Arc::new(certificates))));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    server.send_tls13_tickets = usize::from(made.tickets);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = Ticketer::new().unwrap();
    server.max_fragment_size = made.record_max;
    let mut roots = RootCertStore::empty();
    roots.add(leaf.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[made.version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    client.max_fragment_size = made.record_max;
    let name = ServerName::try_from("app.test").unwrap();
    let client = UnbufferedClientConnection::new(Arc::new(client), name).unwrap();
    let server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
    let mut client = State::new(Side::Client(client));
    client.records.take_said();
    (client, State::new(Side::Server(server)))
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
    client.state.borrow_mut().records.close();
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

/// What lies beside the future of a connection. With what rustls allocates it is 3.5 kB.
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
        state.records.new_keys();
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

#[test]
fn a_connection_that_has_read_and_written_all_holds_no_buffer() {
    let (client, server) = pair();
    for (from, to) in [(&client, &server), (&server, &client)] {
        let wire = sealed(from, &noise(100_000), usize::MAX);
        assert_eq!(read_all(to, &wire, 5000, 16_384).0.len(), 100_000);
    }
    for side in [&client, &server] {
        let state = side.state.borrow();
        assert_eq!((state.out.capacity(), state.records.held_bytes()), (0, 0));
    }
}

#[test]
fn handshakes_come_in_records_of_any_length_and_reads_of_any_length() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (client, server) = pair_of(Made { version, record_max: Some(64), ..PLAIN });
        let wire = sealed(&client, b"hello", usize::MAX);
        assert_eq!(read_all(&server, &wire, 1, 16_384).0, b"hello");

        let (mut client, mut server) = begun(Made { version, record_max: Some(64), ..PLAIN });
        while client.records.agreed().is_handshaking() || server.records.agreed().is_handshaking() {
            for octet in drained(&mut client) {
                server.take_in(&mut vec![octet]).unwrap();
            }
            for octet in drained(&mut server) {
                client.take_in(&mut vec![octet]).unwrap();
            }
        }
        let (client, server) = (Tls::new(client), Tls::new(server));
        assert_eq!(server.sni(), Some("app.test"));
        assert_eq!(client.state.borrow().records.held_bytes(), 0);
        let wire = sealed(&server, &noise(1000), usize::MAX);
        assert!(read_all(&client, &wire, usize::MAX, 16_384).0 == noise(1000));
    }
}

#[test]
fn what_comes_right_behind_a_handshake_is_left_in_the_buffer_decrypted() {
    let (mut client, mut server) = begun(PLAIN);
    server.take_in(&mut drained(&mut client)).unwrap();
    client.take_in(&mut drained(&mut server)).unwrap();
    let mut wire = drained(&mut client);
    wire.extend(sealed(&Tls::new(client), b"GET / HTTP/1.1", usize::MAX));
    let half = wire.split_off(wire.len() - 10);
    server.take_in(&mut wire).unwrap();
    assert!(wire.is_empty() && !server.records.agreed().is_handshaking());
    let server = Tls::new(server);
    assert_eq!(read_all(&server, &half, usize::MAX, 100).0, b"GET / HTTP/1.1");
}

#[test]
fn a_ticket_leaves_with_the_first_answer_or_when_the_connection_rests() {
    let (client, server) = pair_of(Made { tickets: true, ..PLAIN });
    let mut at = 0;
    let (out, from) = server.seal(b"hello", &mut at).unwrap().unwrap();
    let records = out[from..].windows(3).filter(|w| *w == [23, 3, 3]).count();
    assert!(records == 2 && at == 5, "{records} records");
    let mut wire = out.clone();
    server.sent(out, wire.len());
    assert!(server.seal(b"hello", &mut at).unwrap().is_none());
    // Both are right: the one behind the other.
    wire.extend(sealed(&server, b" and more", usize::MAX));
    assert_eq!(read_all(&client, &wire, 7, 16_384).0, b"hello and more");

    let (client, server) = pair_of(Made { tickets: true, ..PLAIN });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let asked = sealed(&client, b"hello", usize::MAX);
    let mut buffer = Vec::with_capacity(100);
    buffer.extend_from_slice(&asked);
    assert_eq!(server.took(&mut buffer, asked.len(), 0, ours.as_raw_fd()), Some(Ok(5)));
    assert_eq!(sys::peek(theirs.as_raw_fd()), sys::Peek::Silent, "it waits");
    server.rest(ours.as_raw_fd());
    assert!(client.is_at_rest(theirs.as_raw_fd()), "the client has taken the ticket");
    assert_eq!(sys::peek(theirs.as_raw_fd()), sys::Peek::Silent);
    assert_eq!(server.state.borrow().records.held_bytes(), 0);

    // What TLS 1.2 has to say in the end, the client waits for.
    let (mut client, mut server) = begun(Made { version: &rustls::version::TLS12, tickets: true, ..PLAIN });
    for _ in 0..2 {
        assert!(!server.records.may_wait());
        server.take_in(&mut drained(&mut client)).unwrap();
        client.take_in(&mut drained(&mut server)).unwrap();
    }
    assert!(!client.records.agreed().is_handshaking() && !server.records.may_wait());
}

#[test]
fn what_is_no_record_is_refused_by_its_header() {
    let refused = |bytes: &[u8]| begun(PLAIN).1.take_in(&mut bytes.to_vec()).unwrap_err();
    let wrong = rustls::Error::InvalidMessage;
    assert_eq!(refused(&[22, 3, 1, 0xff, 0xff]), wrong(InvalidMessage::MessageTooLarge));
    assert_eq!(refused(&[22, 9, 1, 0, 100]), wrong(InvalidMessage::UnknownProtocolVersion));
    assert_eq!(refused(&[99, 3, 1, 0, 100]), wrong(InvalidMessage::InvalidContentType));
    // Octet by octet as well.
    let mut server = begun(PLAIN).1;
    let fed: Vec<_> =
        [22, 3, 1, 0xff, 0xff].iter().map(|octet| server.take_in(&mut vec![*octet]).is_ok()).collect();
    assert_eq!(fed, [true, true, true, true, false]);
    // And the peer is told.
    let told = drained(&mut server);
    assert_eq!(told, [21, 3, 3, 0, 2, 2, u8::from(AlertDescription::DecodeError)]);
}

#[test]
fn a_handshake_message_that_does_not_end_is_bounded() {
    let mut server = begun(PLAIN).1;
    // Its length would be allowed; each octet of it comes in a record of its own.
    let mut message = vec![1, 0, 0xff, 0xfe];
    message.resize(60_000, 0);
    let mut most = 0;
    let refused = message.iter().position(|octet| {
        let fed = server.take_in(&mut vec![22, 3, 1, 0, 1, *octet]);
        most = most.max(server.records.held_bytes());
        fed.is_err()
    });
    assert!(refused.is_some() && most <= 2 * 64 * 1024 + 64, "{refused:?}, {most} bytes");
    assert_eq!(server.records.end, Some(Err(Fault::Reset)));
}

/// What a buffer was used for before must not be seen: neither behind a shorter message nor in place of one.
#[test]
fn buffers_are_written_over_and_used_again() {
    sealed::release();
    let (client, server) = pair();
    for len in [40_000, 1, 20_000, 17, 65_000, 16_384, 3] {
        let plain = noise(len);
        let wire = sealed(&client, &plain, usize::MAX);
        assert!(wire.len() < len + (1 + len / (16 * 1024)) * 64, "{} for {len}", wire.len());
        assert!(sealed::bytes() > 0, "back when it was sent");
        assert_eq!(read_all(&server, &wire, usize::MAX, 128 * 1024).0, plain);
    }
    sealed::trim();
    assert_eq!(sealed::bytes(), 0, "one was enough for all");
}
