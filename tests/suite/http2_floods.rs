//! Rows: what attackers send on HTTP/2. The proxy lives, a bystander is answered, the attacker's connection
//! ends with ENHANCE_YOUR_CALM (11) or another error, and what reaches the service is bounded.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::http2::{
    ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, HEADERS,
    Outcome, PING, RST_STREAM, Raw, SETTINGS, SETTINGS_TIMEOUT, WINDOW_UPDATE, block, block_of_get, fields,
    frame, literal,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, Recorded};

/// Sends `attack` again and again, at most `times`; then the proxy must have ended the connection, with `code` if it is
/// given, and somebody else must be served.
fn ends(mesh: Mesh, times: usize, code: Option<u32>, mut attack: impl FnMut(usize) -> Vec<u8>) {
    let mut raw = Raw::connect(mesh.address);
    let told = with_bystander(&mesh, || {
        for n in 0..times {
            if !raw.write(&attack(n)) {
                break;
            }
        }
        raw.goaway()
    });
    // Told by h2 or by our own count. A peer that goes on sending may lose the last words to a reset: the count stays.
    assert!(code.is_none() || told.is_none() || told == code, "GOAWAY {told:?}");
    let mut bystander = mesh.client();
    bystander.send("GET /bystander HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(bystander.response().status(), 200);
    drop(bystander);
    let seen = mesh.finish();
    assert!(
        code.is_none() || told == code || seen.totals.floods.iter().sum::<u64>() == 1,
        "{:?}",
        seen.totals.floods
    );
}

/// Runs an attack while somebody else asks all the time, on a connection that is kept, and is answered.
fn with_bystander<T>(mesh: &Mesh, attack: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bystander = mesh.client();
            while !over.load(Ordering::Acquire) {
                bystander.send("GET /bystander HTTP/1.1\r\nhost: a\r\n\r\n");
                assert_eq!(bystander.response().status(), 200);
            }
        });
        // Also when the attack panics: else the bystander would go on for ever.
        let _over = Over(&over);
        attack()
    })
}

struct Over<'x>(&'x AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What has reached a service, the bystander's aside.
fn reached(origin: Origin) -> usize {
    let all = origin.settle();
    all.iter().flat_map(Recorded::requests).filter(|request| request.target() == "/").count()
}

fn mesh() -> (Origin, Mesh) {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    (origin, mesh)
}

fn odd(n: usize) -> u32 {
    u32::try_from(2 * n + 1).unwrap()
}

#[test]
fn a02_a_flood_of_pings_ends_the_connection() {
    let (_origin, mesh) = mesh();
    ends(mesh, 5_000, Some(ENHANCE_YOUR_CALM), |_| frame(6, 0, 0, &[0; 8]));
}

#[test]
fn a02_a_flood_of_settings_ends_the_connection() {
    let (_origin, mesh) = mesh();
    ends(mesh, 5_000, Some(ENHANCE_YOUR_CALM), |_| frame(4, 0, 0, &[]));
}

#[test]
fn a02_answers_to_pings_and_settings_that_were_never_sent_end_the_connection() {
    for (kind, payload) in [(PING, &[7; 8][..]), (SETTINGS, &[][..])] {
        let (_origin, mesh) = mesh();
        // h2 itself refuses the second of the settings.
        let code = (kind == PING).then_some(ENHANCE_YOUR_CALM);
        ends(mesh, 5_000, code, |_| frame(kind, ACK, 0, payload));
    }
}

#[test]
fn a04_requests_that_must_be_reset_end_the_connection() {
    let (origin, mesh) = mesh();
    let bad = block(&fields("GET", "/", &[("te", "gzip")]));
    ends(mesh, 20_000, None, |n| frame(HEADERS, END_HEADERS | END_STREAM, odd(n), &bad));
    assert_eq!(reached(origin), 0);
}

#[test]
fn a05_fields_without_a_name_are_refused() {
    let (origin, mesh) = mesh();
    let mut bad = block_of_get();
    for form in [0x00, 0x40, 0x10] {
        literal(form, b"", b"", &mut bad);
    }
    ends(mesh, 20_000, None, |n| frame(HEADERS, END_HEADERS | END_STREAM, odd(n), &bad));
    assert_eq!(reached(origin), 0);
}

#[test]
fn a07_a_bomb_of_references_to_a_large_field_is_refused() {
    let (origin, mesh) = mesh();
    with_bystander(&mesh, || {
        let mut raw = Raw::connect(mesh.address);
        for n in 0..20 {
            let mut bomb = block_of_get();
            literal(0x40, b"x", &[b'y'; 3_900], &mut bomb);
            // 12 000 references to what was just put into the table: 47 MB of fields.
            bomb.resize(bomb.len() + 12_000, 0xbe);
            if !raw.frame(HEADERS, END_HEADERS | END_STREAM, odd(n), &bomb) {
                break;
            }
            let outcome = raw.outcome(odd(n));
            let refused = matches!(outcome, Outcome::Status(431) | Outcome::Reset(_));
            if !refused {
                assert!(matches!(outcome, Outcome::Goaway(_) | Outcome::End), "{outcome:?}");
                return;
            }
        }
        // The table is still what both think it is.
        let mut block = block_of_get();
        block.push(0xbe);
        raw.frame(HEADERS, END_HEADERS | END_STREAM, 99, &block);
        assert_eq!(raw.outcome(99), Outcome::Status(200));
    });
    let seen = mesh.finish();
    assert!(seen.totals.buffer_bytes < 64 << 20, "{}", seen.totals.buffer_bytes);
    assert!(reached(origin) <= 1);
}

#[test]
fn a08_a_bomb_of_references_to_a_tiny_field_is_refused_and_pins_nothing() {
    for name in [&b"a"[..], b"cookie"] {
        let (origin, mesh) = mesh();
        with_bystander(&mesh, || {
            let mut raw = Raw::connect_with(mesh.address, &[(4, 0)]);
            for n in 0..90 {
                let mut bomb = block_of_get();
                literal(0x40, name, b"", &mut bomb);
                // Under the limit of octets (33 or 38 each are counted): only their number tells.
                bomb.resize(bomb.len() + 1_500, 0xbe);
                if !raw.frame(HEADERS, END_HEADERS | END_STREAM, odd(n), &bomb) {
                    break;
                }
                let outcome = raw.outcome(odd(n));
                assert!(matches!(outcome, Outcome::Status(431) | Outcome::Reset(_)), "{outcome:?}");
            }
            raw.settle();
        });
        mesh.finish();
        assert_eq!(reached(origin), 0);
    }
}

#[test]
fn a03_a_flood_of_priorities_ends_the_connection() {
    let (_origin, mesh) = mesh();
    ends(mesh, 20_000, Some(ENHANCE_YOUR_CALM), |n| frame(2, 0, odd(n % 100), &[0, 0, 0, 0, 16]));
}

#[test]
fn a06_a_flood_of_empty_data_ends_the_connection() {
    let (_origin, mesh) = mesh();
    ends(mesh, 20_000, None, |n| match n {
        0 => {
            let mut block = block_of_get();
            block[0] = 0x83; // :method POST
            frame(1, 4, 1, &block)
        }
        _ => frame(0, 0, 1, &[]),
    });
}

#[test]
fn a09_rapid_reset_reaches_the_service_a_bounded_number_of_times() {
    let (origin, mesh) = mesh();
    ends(mesh, 20_000, Some(ENHANCE_YOUR_CALM), |n| {
        let mut both = frame(1, 5, odd(n), &block_of_get());
        both.extend(frame(3, 0, odd(n), &8_u32.to_be_bytes()));
        both
    });
    let reached = reached(origin);
    assert!(reached <= 100 + 200 + 2, "{reached} requests reached the service");
}

#[test]
fn a09_whoever_lets_its_requests_be_answered_may_reset_others() {
    // A client with deadlines: over the life of a connection far more resets than a flood may have.
    let (_origin, mesh) = mesh();
    let mut raw = Raw::connect(mesh.address);
    for n in 0..1_000 {
        let (kept, given_up) = (odd(2 * n), odd(2 * n + 1));
        raw.frame(HEADERS, END_HEADERS | END_STREAM, kept, &block_of_get());
        raw.frame(HEADERS, END_HEADERS | END_STREAM, given_up, &block_of_get());
        raw.frame(RST_STREAM, 0, given_up, &CANCEL.to_be_bytes());
        assert_eq!(raw.outcome(kept), Outcome::Status(200), "after {n}");
    }
    drop(raw);
    mesh.finish();
}

#[test]
fn a10_made_you_reset_ends_the_connection() {
    // A window update of zero; one that overflows the window; and octets behind the end: each a reset by the proxy, or
    // the end of the connection at once.
    let overflow = 0x7fff_ffff_u32.to_be_bytes();
    for (kind, payload) in [(WINDOW_UPDATE, &[0; 4][..]), (WINDOW_UPDATE, &overflow[..]), (DATA, &b"x"[..])] {
        let (origin, mesh) = mesh();
        ends(mesh, 20_000, None, |n| {
            let mut both = frame(1, 5, odd(n), &block_of_get());
            both.extend(frame(kind, 0, odd(n), payload));
            both
        });
        // h2 counts 1024 resets of its own; those in progress hold their places until the service has answered.
        let reached = reached(origin);
        assert!(reached <= 1_024 + 100, "{reached} requests reached the service");
    }
}

#[test]
fn a10_what_the_proxy_resets_ends_at_the_service_before_its_place_is_free() {
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.drain();
    });
    let mesh = Config::new(&[&origin]).change(|snapshot| snapshot.http2.streams_max = 1).start();
    let mut raw = Raw::connect(mesh.address);
    for n in 0..50 {
        raw.frame(HEADERS, END_HEADERS | END_STREAM, odd(n), &block_of_get());
        origin.wait_connections(n + 1);
        raw.frame(WINDOW_UPDATE, 0, odd(n), &0x7fff_ffff_u32.to_be_bytes());
        assert_eq!(raw.outcome(odd(n)), Outcome::Reset(FLOW_CONTROL_ERROR));
        origin.wait_end(n);
        raw.settle();
    }
    drop(raw);
    mesh.finish();
}

#[test]
fn a11_a_flood_of_continuations_ends_the_connection() {
    for payload in [vec![], vec![0x40; 1_000]] {
        let (_origin, mesh) = mesh();
        ends(mesh, 20_000, None, |n| match n {
            0 => frame(1, 0, 1, &block_of_get()),
            _ => frame(9, 0, 1, &payload),
        });
    }
}

#[test]
fn a12_a_flood_of_unknown_frames_or_window_updates_ends_the_connection() {
    for kind in [0x42, 8] {
        let (_origin, mesh) = mesh();
        ends(mesh, 50_000, Some(ENHANCE_YOUR_CALM), |_| frame(kind, 0, 0, &1_u32.to_be_bytes()));
    }
}

#[test]
fn a13_streams_beyond_the_limit_are_refused_and_then_the_connection_ends() {
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.drain();
    });
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect(mesh.address);
    for n in 0..5_000 {
        if !raw.frame(1, 5, odd(n), &block_of_get()) {
            break;
        }
    }
    // The service never answers, so that nothing else ends the connection.
    raw.goaway();
    assert!(origin.recorded().len() <= 100, "as many as may be open");
    mesh.finish();
}

#[test]
fn a14_a_header_list_that_is_too_large_is_refused() {
    let (origin, mesh) = mesh();
    let mut raw = Raw::connect(mesh.address);
    let mut block = block_of_get();
    for _ in 0..40 {
        // A literal of 8 KiB that is not indexed.
        block.extend_from_slice(&[0x00, 1, b'a', 0x7f, 0x81, 0x3f]);
        block.extend_from_slice(&[b'x'; 0x7f + 0x1f81]);
    }
    let mut pieces = block.chunks(16_000);
    raw.frame(1, 0, 1, pieces.next().unwrap());
    let last = pieces.len() - 1;
    for (n, piece) in pieces.enumerate() {
        raw.frame(9, if n == last { 4 } else { 0 }, 1, piece);
    }
    raw.frame(7, 0, 0, &[0; 8]);
    while let Some(frame) = raw.next() {
        if matches!(frame.kind, 3 | 7) || (frame.kind == 1 && frame.stream == 1) {
            break;
        }
    }
    drop(raw);
    mesh.finish();
    let reached: usize = origin.settle().iter().map(|connection| connection.requests().len()).sum();
    assert_eq!(reached, 0);
}

#[test]
fn a15_a_head_that_is_never_finished_ends_the_connection_although_others_on_it_are_served() {
    let block = block_of_get();
    for (what, rest) in [
        // In the middle of the frame; without the frame that would end it; behind one more that does not.
        ("a part", frame(HEADERS, END_STREAM, 3, &block)[..12].to_vec()),
        ("no end", frame(HEADERS, END_STREAM, 3, &block)),
        (
            "continued",
            [frame(HEADERS, END_STREAM, 3, &block[..2]), frame(CONTINUATION, 0, 3, &block[2..])].concat(),
        ),
    ] {
        let (gate, origin) = Origin::gated();
        let mesh = Config::new(&[&origin]).timeouts("head = \"200ms\"\nidle = \"1h\"").start();
        let mut raw = Raw::connect(mesh.address);
        raw.until(SETTINGS);
        raw.frame(SETTINGS, ACK, 0, &[]);
        // In progress: the connection is not idle.
        raw.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        origin.wait_connections(1);
        raw.write(&rest);
        assert_eq!(raw.goaway(), Some(ENHANCE_YOUR_CALM), "{what}");
        gate.open();
        let seen = mesh.finish();
        assert_eq!(seen.connection_failures["head.downstream.timeout"], 1, "{what}");
        assert_eq!(seen.handshakes.len(), 1, "it is logged: {what}");
    }
}

#[test]
fn a15_a_stream_without_data_ends() {
    let (origin, mesh) =
        (Origin::plain(), |origin: &Origin| Config::new(&[origin]).timeouts("body_stall = \"100ms\""));
    let mesh = mesh(&origin).start();
    let mut raw = Raw::connect(mesh.address);
    raw.frame(HEADERS, END_HEADERS, 1, &block(&fields("POST", "/", &[])));
    raw.frame(DATA, 0, 1, b"hel");
    assert_eq!(raw.outcome(1), Outcome::Status(408));
    drop(raw);
    let seen = mesh.finish();
    assert_eq!(seen.failures["request.downstream.timeout"], 1);
    assert_eq!(reached(origin), 0);
}

#[test]
fn also_settings_that_are_never_acknowledged_end_the_connection() {
    let (gate, origin) = Origin::gated();
    let mesh = Config::new(&[&origin]).timeouts("head = \"200ms\"\nidle = \"1h\"").start();
    let mut raw = Raw::connect(mesh.address);
    raw.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block_of_get());
    origin.wait_connections(1);
    assert_eq!(raw.goaway(), Some(SETTINGS_TIMEOUT));
    gate.open();
    assert_eq!(mesh.finish().connection_failures["head.downstream.timeout"], 1);
}

#[test]
fn also_a_response_that_is_not_taken_ends_with_its_stream() {
    // The window stays closed; others on the connection are served.
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).timeouts("body_stall = \"100ms\"").start();
    let mut raw = Raw::connect_with(mesh.address, &[(4, 0)]);
    raw.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block_of_get());
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(raw.body(1), (vec![], Some(CANCEL)));
    raw.frame(HEADERS, END_HEADERS | END_STREAM, 3, &block_of_get());
    raw.frame(WINDOW_UPDATE, 0, 3, &100_u32.to_be_bytes());
    assert_eq!(raw.outcome(3), Outcome::Status(200));
    assert_eq!(raw.body(3), (b"/".to_vec(), None));
    drop(raw);
    assert_eq!(mesh.finish().failures["body.downstream.timeout"], 1);
}

#[test]
fn also_a_connection_from_which_nothing_is_read_ends() {
    let body = vec![7; 8 << 20];
    let origin = Origin::answering(move |request| {
        if request.target() == "/bystander" {
            return crate::support::origin::ok(request);
        }
        let mut out = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        out.extend_from_slice(&body);
        out
    });
    let mut mesh = Config::new(&[&origin]).timeouts("body_stall = \"200ms\"").start();
    let mut raw = Raw::connect_with(mesh.address, &[(4, 0x7fff_ffff)]);
    raw.frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    for n in 0..20 {
        raw.frame(HEADERS, END_HEADERS | END_STREAM, odd(n), &block_of_get());
    }
    origin.wait_requests(20);
    // All windows are open; it is the connection that takes nothing.
    let totals = mesh.wait_totals(|totals| totals.downstream_open == 0);
    assert!(totals.buffer_bytes < 32 << 20, "{}", totals.buffer_bytes);
    drop(raw);
    mesh.finish();
}
