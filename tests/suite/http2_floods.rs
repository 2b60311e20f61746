//! Rows: what attackers send on HTTP/2. The proxy lives, a bystander is answered, the attacker's connection
//! ends with ENHANCE_YOUR_CALM (11) or another error, and what reaches the service is bounded.

use crate::support::http2::{Raw, block_of_get, frame};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;

const ENHANCE_YOUR_CALM: u32 = 11;

/// Sends `attack` again and again, at most `times`; then the proxy must have ended the connection, with `code` if it is
/// given, and somebody else must be served.
fn ends(mesh: Mesh, times: usize, code: Option<u32>, mut attack: impl FnMut(usize) -> Vec<u8>) {
    let mut raw = Raw::connect(mesh.address);
    for n in 0..times {
        if !raw.write(&attack(n)) {
            break;
        }
    }
    let told = raw.goaway();
    // Told by h2 or by our own count. A peer that goes on sending may lose the last words to a reset: the count stays.
    assert!(code.is_none() || told.is_none() || told == code, "GOAWAY {told:?}");
    let mut bystander = mesh.client();
    bystander.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(bystander.response().status(), 200);
    drop(bystander);
    let seen = mesh.finish();
    assert!(
        code.is_none() || told == code || seen.totals.floods.iter().sum::<u64>() == 1,
        "{:?}",
        seen.totals.floods
    );
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
    let reached: usize = origin.settle().iter().map(|connection| connection.requests().len()).sum();
    assert!(reached <= 100 + 200 + 2, "{reached} requests reached the service");
}

#[test]
fn a10_made_you_reset_ends_the_connection() {
    let (_origin, mesh) = mesh();
    // A window update of zero is a stream error that the proxy must answer with a reset.
    ends(mesh, 20_000, None, |n| {
        let mut both = frame(1, 5, odd(n), &block_of_get());
        both.extend(frame(8, 0, odd(n), &[0; 4]));
        both
    });
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
