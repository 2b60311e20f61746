//! HTTP/2 as frames (rows G-1 to G-11, G-20, G-25 of the list): what a caller may send, what it may not, and that a
//! window, however small, is kept.

use crate::support::http2::{
    ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY,
    HEADERS, NO_ERROR, Outcome, PADDED, PING, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM,
    RST_STREAM, Raw, RawService, SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, block, block_of_get, fields, forms,
    frame,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;

fn start() -> (Origin, Mesh) {
    let origin = Origin::plain();
    let mesh = Config::new(&[&origin]).start();
    (origin, mesh)
}

/// These frames end the connection with this code, and nobody else's.
#[track_caller]
fn ends(mesh: &Mesh, what: &str, code: u32, frames: &[Vec<u8>]) {
    let mut raw = Raw::connect(mesh.address);
    for frame in frames {
        raw.write(frame);
    }
    let told = raw.goaway();
    // h2 calls some of them PROTOCOL_ERROR, which any error may be called (RFC 9113 §7).
    assert!(told == Some(code) || told == Some(PROTOCOL_ERROR), "{what}: {told:?}");
}

/// These frames end stream 1 with this code, and the connection serves on.
#[track_caller]
fn resets(mesh: &Mesh, what: &str, code: u32, frames: &[Vec<u8>]) {
    let mut raw = Raw::connect(mesh.address);
    for frame in frames {
        raw.write(frame);
    }
    assert_eq!(raw.outcome(1), Outcome::Reset(code), "{what}");
    raw.frame(HEADERS, END_HEADERS | END_STREAM, 99, &block_of_get());
    assert_eq!(raw.outcome(99), Outcome::Status(200), "{what}: the connection lives");
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block_of_get())
}

/// A request whose body is still to come.
fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(&fields("POST", "/", &[])))
}

#[track_caller]
fn served(mesh: Mesh) {
    let mut bystander = mesh.client();
    bystander.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(bystander.response().status(), 200);
    drop(bystander);
    mesh.finish();
}

#[test]
fn g01_a_connection_begins_with_the_preface_and_settings() {
    let (_origin, mesh) = start();
    for first in [
        frame(PING, 0, 0, &[0; 8]),
        frame(SETTINGS, ACK, 0, &[]),
        get(1),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
    ] {
        let mut client = mesh.client();
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").send(&first);
        // The end; GOAWAY may be left out (RFC 9113 §3.4), and is where all comes in one read.
        client.wait_bytes(usize::MAX);
    }
    // Something like the preface is HTTP/1.1, and wrong there too.
    for like in [
        &b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\nhost: a\r\n\r\n",
        b"PRI / HTTP/2.0\r\n\r\n",
    ] {
        let mut client = mesh.client();
        client.send(like);
        // By whichever of the two it is refused.
        let refusal = client.wait_bytes(usize::MAX);
        assert!(!refusal.windows(12).any(|w| w == b"HTTP/1.1 200"), "{like:?}");
    }
    let mut bystander = mesh.client();
    bystander.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(bystander.response().status(), 200);
    drop(bystander);
    assert_eq!(mesh.finish().connection_failures["head.downstream.http2_protocol_error"], 4);
}

#[test]
fn g02_frames_have_the_size_that_they_must_have() {
    let (_origin, mesh) = start();
    for (what, bad) in [
        ("longer than allowed", frame(DATA, 0, 1, &[0; 16_385])),
        ("longer than allowed, unknown", frame(0x42, 0, 0, &[0; 16_385])),
        ("PING of 7", frame(PING, 0, 0, &[0; 7])),
        ("SETTINGS of 5", frame(SETTINGS, 0, 0, &[0; 5])),
        ("ACK of 6", frame(SETTINGS, ACK, 0, &[0; 6])),
        ("RST_STREAM of 3", frame(RST_STREAM, 0, 1, &[0; 3])),
        ("WINDOW_UPDATE of 3", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
    ] {
        ends(&mesh, what, FRAME_SIZE_ERROR, &[post(1), bad]);
    }
    ends(
        &mesh,
        "padding longer than the frame",
        PROTOCOL_ERROR,
        &[post(1), frame(DATA, PADDED, 1, &[5, 0, 0])],
    );
    served(mesh);
}

#[test]
fn g03_nothing_comes_between_the_pieces_of_a_field_block() {
    let (origin, mesh) = start();
    let begun = || frame(HEADERS, END_STREAM, 1, &block_of_get()[..3]);
    for (what, between) in [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("DATA", frame(DATA, 0, 1, b"x")),
        ("HEADERS", get(3)),
        ("an unknown frame", frame(0x42, 0, 1, b"x")),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("another stream's", frame(CONTINUATION, END_HEADERS, 3, &block_of_get()[3..])),
    ] {
        let end = frame(CONTINUATION, END_HEADERS, 1, &block_of_get()[3..]);
        ends(&mesh, what, PROTOCOL_ERROR, &[begun(), between, end]);
    }
    ends(&mesh, "CONTINUATION of nothing", PROTOCOL_ERROR, &[frame(CONTINUATION, END_HEADERS, 1, b"")]);
    ends(
        &mesh,
        "CONTINUATION behind the end",
        PROTOCOL_ERROR,
        &[post(1), frame(CONTINUATION, END_HEADERS, 1, b"")],
    );
    served(mesh);
    let requests: usize = origin.settle().iter().map(|recorded| recorded.requests().len()).sum();
    assert_eq!(requests, 1, "the bystander's");
}

#[test]
fn g04_streams_go_through_their_states() {
    let (_origin, mesh) = start();
    for (what, frames) in [
        ("DATA on an idle stream", vec![frame(DATA, END_STREAM, 1, b"x")]),
        ("RST_STREAM of an idle stream", vec![frame(RST_STREAM, 0, 1, &[0; 4])]),
        ("WINDOW_UPDATE of an idle stream", vec![frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])]),
        ("DATA of the connection", vec![post(1), frame(DATA, 0, 0, b"x")]),
        ("HEADERS of the connection", vec![frame(HEADERS, END_HEADERS, 0, &block_of_get())]),
        ("PING of a stream", vec![post(1), frame(PING, 0, 1, &[0; 8])]),
        ("SETTINGS of a stream", vec![post(1), frame(SETTINGS, 0, 1, &[])]),
    ] {
        ends(&mesh, what, PROTOCOL_ERROR, &frames);
    }
    // A stream that the caller has ended takes nothing more.
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.drain();
    });
    let held = Config::new(&[&origin]).start();
    for more in [frame(DATA, 0, 1, b"x"), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block_of_get())] {
        let mut raw = Raw::connect(held.address);
        raw.write(&get(1));
        raw.write(&more);
        let outcome = raw.outcome(1);
        assert!(
            [Outcome::Reset(STREAM_CLOSED), Outcome::Goaway(STREAM_CLOSED), Outcome::Goaway(PROTOCOL_ERROR)]
                .contains(&outcome),
            "{outcome:?}"
        );
    }
    held.finish();
    served(mesh);
}

#[test]
fn g05_ids_are_odd_and_rise() {
    let (_origin, mesh) = start();
    ends(&mesh, "an even id", PROTOCOL_ERROR, &[get(2)]);
    let mut raw = Raw::connect(mesh.address);
    raw.write(&get(5));
    assert_eq!(raw.outcome(5), Outcome::Status(200));
    raw.write(&get(3));
    // Closed since 5 was opened: RFC 9113 §5.1.1.
    let code = raw.goaway();
    assert!([Some(PROTOCOL_ERROR), Some(STREAM_CLOSED)].contains(&code), "{code:?}");
    served(mesh);
}

#[test]
fn g06_streams_beyond_the_limit_are_refused_and_taken_when_there_is_room() {
    let (gate, origin) = Origin::gated();
    let mesh = Config::new(&[&origin]).change(|snapshot| snapshot.http2.streams_max = 4).start();
    let mut raw = Raw::connect(mesh.address);
    let settings = raw.until(SETTINGS);
    assert!(settings.payload.chunks(6).any(|one| one == [0, 3, 0, 0, 0, 4]), "it says so: {settings:?}");
    raw.frame(SETTINGS, ACK, 0, &[]);
    for n in 0..5 {
        raw.write(&get(2 * n + 1));
    }
    assert_eq!(raw.outcome(9), Outcome::Reset(REFUSED_STREAM));
    origin.wait_connections(4);
    gate.open();
    for n in 0..4 {
        // In any order; the last that is asked for has come when all have.
        raw.until(HEADERS);
        let _ = n;
    }
    raw.write(&get(11));
    assert_eq!(raw.outcome(11), Outcome::Status(200));
    drop(raw);
    mesh.finish();
    let requests: usize = origin.settle().iter().map(|recorded| recorded.requests().len()).sum();
    assert_eq!(requests, 5);
}

#[test]
fn g07_a_caller_that_sends_more_than_its_window_is_refused() {
    // The service takes nothing of the body, so that the window is not opened again.
    let origin = Origin::scripted(|visit| {
        visit.head();
        // Kept open until the test is over: nothing of the body is read.
        visit.send("HTTP/1.1 100 Continue\r\n\r\n");
        std::thread::park_timeout(crate::support::GUARD);
    });
    let mesh = Config::new(&[&origin])
        .change(|snapshot| {
            snapshot.http2.stream_window = 65_536;
            snapshot.http2.connection_window = 65_536;
        })
        .start();
    let mut raw = Raw::connect(mesh.address);
    let mut refused = None;
    raw.write(&post(1));
    raw.until(HEADERS);
    for _ in 0..4_000 {
        // Far more than sockets hold.
        if !raw.frame(DATA, 0, 1, &[0; 16_384]) {
            break;
        }
    }
    while let Some(frame) = raw.next() {
        if matches!(frame.kind, RST_STREAM | GOAWAY) {
            refused = Some(frame.code());
            break;
        }
    }
    // What is lost to a reset is lost; a connection that goes on would hang here.
    assert!(refused.is_none_or(|code| code == FLOW_CONTROL_ERROR), "{refused:?}");
    drop(raw);
    drop(mesh.client());
    assert_eq!(mesh.link.vitals.ended.load(std::sync::atomic::Ordering::Acquire), 0);
}

#[test]
fn g07_padding_is_counted_and_given_back() {
    let (origin, mesh) = start();
    let mut raw = Raw::connect(mesh.address);
    raw.write(&post(1));
    let (mut window, mut connection) = (65_535_i64, 65_535_i64);
    let mut payload = vec![255];
    payload.extend_from_slice(b"x");
    payload.extend_from_slice(&[0; 255]);
    let mut first = true;
    // Each frame is an octet of body and 256 of padding: 2.5 MB that come to nothing.
    for _ in 0..10_000 {
        while window < 257 || connection < 257 {
            let frame = raw.next().expect("a window that is opened again");
            match frame.kind {
                SETTINGS if first && frame.flags & ACK == 0 => {
                    let told = frame.payload.chunks(6).find(|one| one[1] == 4).unwrap();
                    window += i64::from(u32::from_be_bytes(told[2..].try_into().unwrap())) - 65_535;
                    raw.frame(SETTINGS, ACK, 0, &[]);
                    first = false;
                }
                WINDOW_UPDATE => {
                    let opened = i64::from(u32::from_be_bytes(frame.payload.try_into().unwrap()));
                    *if frame.stream == 0 { &mut connection } else { &mut window } += opened;
                }
                _ => {}
            }
        }
        window -= 257;
        connection -= 257;
        raw.frame(DATA, PADDED, 1, &payload);
    }
    raw.frame(DATA, END_STREAM, 1, b"");
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(origin.wait_requests(1)[0].body.len(), 10_000);
    drop(raw);
    mesh.finish();
}

#[test]
fn g07_small_pieces_that_come_quickly_are_no_flood() {
    let (origin, mesh) = start();
    let mut raw = Raw::connect(mesh.address);
    raw.write(&post(1));
    // As many as the window lets in, in one write.
    let mut all = Vec::new();
    for n in 0..60_000_u32 {
        all.extend(frame(DATA, 0, 1, &[n as u8]));
    }
    all.extend(frame(DATA, END_STREAM, 1, b""));
    raw.write(&all);
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    assert_eq!(origin.wait_requests(1)[0].body.len(), 60_000);
    drop(raw);
    mesh.finish();
}

#[test]
fn g07_a_response_keeps_to_the_window() {
    let body: Vec<u8> = (0..1_000_u32).map(|n| n as u8).collect();
    let theirs = body.clone();
    let origin = Origin::answering(move |_| {
        let mut out = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", theirs.len()).into_bytes();
        out.extend_from_slice(&theirs);
        out
    });
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect_with(mesh.address, &[(4, 10)]);
    raw.write(&get(1));
    raw.until(HEADERS);
    let mut got = raw.until(DATA).payload;
    assert_eq!(got.len(), 10);
    raw.settle();
    // The window of what is open shrinks below zero, and nothing may come until it is above.
    raw.settings(&[(4, 0)]);
    raw.frame(WINDOW_UPDATE, 0, 1, &10_u32.to_be_bytes());
    raw.settle();
    raw.frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
    let piece = raw.until(DATA).payload;
    assert_eq!(piece.len(), 1);
    got.extend(piece);
    raw.settings(&[(4, 100)]);
    let piece = raw.until(DATA).payload;
    assert_eq!(piece.len(), 100);
    got.extend(piece);
    raw.frame(WINDOW_UPDATE, 0, 1, &10_000_u32.to_be_bytes());
    got.extend(raw.body(1).0);
    assert_eq!(got, body);
    drop(raw);
    mesh.finish();
}

#[test]
fn g07_windows_do_not_overflow() {
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.drain();
    });
    let mesh = Config::new(&[&origin]).start();
    let most = 0x7fff_ffff_u32.to_be_bytes();
    ends(&mesh, "the connection's", FLOW_CONTROL_ERROR, &[frame(WINDOW_UPDATE, 0, 0, &most)]);
    ends(&mesh, "by nothing", PROTOCOL_ERROR, &[frame(WINDOW_UPDATE, 0, 0, &[0; 4])]);
    ends(&mesh, "a stream's, by nothing", PROTOCOL_ERROR, &[get(1), frame(WINDOW_UPDATE, 0, 1, &[0; 4])]);
    let mut raw = Raw::connect(mesh.address);
    raw.write(&get(1));
    raw.frame(WINDOW_UPDATE, 0, 1, &most);
    assert_eq!(raw.outcome(1), Outcome::Reset(FLOW_CONTROL_ERROR));
    raw.settle();
    drop(raw);
    mesh.finish();
}

#[test]
fn g08_settings_are_acknowledged_and_judged() {
    let (_origin, mesh) = start();
    let setting = |id: u16, value: u32| {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(&value.to_be_bytes());
        frame(SETTINGS, 0, 0, &payload)
    };
    ends(&mesh, "ENABLE_PUSH 2", PROTOCOL_ERROR, &[setting(2, 2)]);
    ends(&mesh, "INITIAL_WINDOW_SIZE 2^31", FLOW_CONTROL_ERROR, &[setting(4, 1 << 31)]);
    ends(&mesh, "MAX_FRAME_SIZE 16383", PROTOCOL_ERROR, &[setting(5, 16_383)]);
    ends(&mesh, "MAX_FRAME_SIZE 2^24", PROTOCOL_ERROR, &[setting(5, 1 << 24)]);
    let mut raw = Raw::connect(mesh.address);
    raw.write(&setting(0x4242, 7));
    let mut acknowledged = 0;
    while acknowledged < 2 {
        acknowledged += usize::from(raw.until(SETTINGS).flags & ACK != 0);
    }
    raw.write(&get(1));
    assert_eq!(raw.outcome(1), Outcome::Status(200));
    drop(raw);
    served(mesh);
}

#[test]
fn g09_a_ping_is_answered_with_its_octets_whatever_else_waits() {
    let (gate, origin) = Origin::gated();
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect_with(mesh.address, &[(4, 0)]);
    raw.write(&get(1));
    origin.wait_connections(1);
    for n in 0..100_u64 {
        raw.frame(PING, 0, 0, &n.to_be_bytes());
        loop {
            let answer = raw.until(PING);
            if answer.flags & ACK != 0 {
                assert_eq!(answer.payload, n.to_be_bytes());
                break;
            }
        }
    }
    gate.open();
    drop(raw);
    mesh.finish();
}

#[test]
fn g10_a_drain_tells_twice_which_streams_are_taken() {
    let (gate, origin) = Origin::gated();
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect(mesh.address);
    raw.write(&get(1));
    origin.wait_connections(1);
    mesh.order(ringmesh::shard::link::Order::Drain);
    let first = raw.until(GOAWAY);
    assert_eq!((first.last_stream(), first.code()), (0x7fff_ffff, NO_ERROR), "first, that it will end");
    // On its way while that was said: taken.
    raw.write(&get(3));
    origin.wait_connections(2);
    let ping = raw.until(PING);
    raw.frame(PING, ACK, 0, &ping.payload);
    let second = raw.until(GOAWAY);
    assert_eq!((second.last_stream(), second.code()), (3, NO_ERROR), "then, what was taken");
    gate.open();
    let mut answered = 0;
    while let Some(frame) = raw.event() {
        answered += u32::from(frame.kind == HEADERS && frame.status() == 200);
    }
    assert_eq!(answered, 2, "and the connection ends");
    mesh.finish();
}

#[test]
fn g11_frames_of_a_stream_that_was_reset_are_ignored_for_a_while() {
    let origin = Origin::scripted(|visit| {
        visit.head();
        visit.drain();
    });
    let mesh = Config::new(&[&origin]).start();
    let mut raw = Raw::connect(mesh.address);
    // Reset by us: what is on its way counts against the connection's window only.
    raw.write(&post(1));
    raw.frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes());
    assert_eq!(raw.outcome(1), Outcome::Reset(FLOW_CONTROL_ERROR));
    raw.frame(DATA, 0, 1, b"on its way");
    raw.frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
    raw.head(END_STREAM, 1, &[("x", "y")]);
    raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    raw.settle();
    // Reset by the caller.
    raw.write(&post(3));
    raw.frame(RST_STREAM, 0, 3, &CANCEL.to_be_bytes());
    raw.frame(WINDOW_UPDATE, 0, 3, &1_u32.to_be_bytes());
    raw.frame(RST_STREAM, 0, 3, &CANCEL.to_be_bytes());
    raw.frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 16]);
    raw.settle();
    drop(raw);
    mesh.finish();
}

#[test]
fn g20_nobody_pushes_to_a_server() {
    let (_origin, mesh) = start();
    let mut payload = 2_u32.to_be_bytes().to_vec();
    payload.extend(block_of_get());
    ends(&mesh, "PUSH_PROMISE", PROTOCOL_ERROR, &[post(1), frame(PUSH_PROMISE, END_HEADERS, 1, &payload)]);
    served(mesh);
}

#[test]
fn g25_limits_are_told_and_kept() {
    let (origin, mesh) = start();
    let mut raw = Raw::connect(mesh.address);
    let settings = raw.until(SETTINGS).payload;
    let told = |id: u8| {
        let one = settings.chunks(6).find(|one| one[..2] == [0, id])?;
        Some(u32::from_be_bytes(one[2..].try_into().unwrap()))
    };
    assert_eq!((told(3), told(6)), (Some(100), Some(64 * 1024)), "streams, and the size of a head");
    raw.frame(SETTINGS, ACK, 0, &[]);
    let many: Vec<_> = (0..129).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
    raw.head(END_STREAM, 1, &fields("GET", "/", &many));
    assert_eq!(raw.outcome(1), Outcome::Status(431), "too many fields");
    let long = format!("/{}", "x".repeat(17_000));
    let long = block(&fields("GET", &long, &[]));
    raw.frame(HEADERS, END_STREAM, 3, &long[..16_000]);
    raw.frame(CONTINUATION, END_HEADERS, 3, &long[16_000..]);
    assert_eq!(raw.outcome(3), Outcome::Status(414), "too long a target");
    raw.write(&get(5));
    assert_eq!(raw.outcome(5), Outcome::Status(200));
    drop(raw);
    served(mesh);
    let requests: usize = origin.settle().iter().map(|recorded| recorded.requests().len()).sum();
    assert_eq!(requests, 2);
}

#[test]
fn resets_are_for_streams_and_the_connection_serves_on() {
    let (_origin, mesh) = start();
    resets(
        &mesh,
        "a field of a connection",
        PROTOCOL_ERROR,
        &[frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields("GET", "/", &[("te", "gzip")])))],
    );
    served(mesh);
}

/// What h2 has put into its table it compares, one by one, with each new value of the same name.
#[test]
fn fields_whose_values_never_repeat_stop_entering_the_table_of_a_connection_and_others_stay_in_it() {
    const HEADS: u32 = 20;
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let service = RawService::with(&[(1, 4096)], move |_, raw| {
        for number in 0_u32.. {
            let Some(head) = raw.event() else { return };
            tell.lock().unwrap().send(forms(&head.payload)).unwrap();
            let number = number.to_string();
            let kept = "a value of some length that is always the same";
            raw.head(END_STREAM, head.stream, &[(":status", "200"), ("x-number", &number), ("x-kept", kept)]);
        }
    });
    let mesh = Config::default()
        .service_at("raw", &[&service.endpoint], "protocol = \"http2\"")
        .routes("[[route]]\nservice = \"raw\"\n")
        .start();
    let mut raw = Raw::connect_with(mesh.address, &[(1, 4096)]);
    let mut answers = Vec::new();
    for number in 0..HEADS {
        let trace = format!("{number:032}");
        let stream = 2 * number + 1;
        let own =
            fields("GET", "/", &[("x-trace", &trace), ("x-agent", "one of a kind, and always the same")]);
        raw.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&own));
        let head = raw.until(HEADERS);
        assert_eq!(head.stream, stream);
        answers.push(forms(&head.payload));
    }
    let requests: Vec<_> = told.iter().take(HEADS as usize).collect();
    let count = |forms: &[u8], form| forms.iter().filter(|f| **f == form).count();
    for (number, heads) in requests.iter().zip(&answers).enumerate().map(|(n, (a, b))| (n, [a, b])) {
        for head in heads {
            if number < 7 {
                assert_eq!(count(head, 0x10), 0, "it may come again: {number} {head:x?}");
            } else {
                assert_eq!(count(head, 0x10), 1, "{number} {head:x?}");
                // A date enters it once a second.
                assert!(count(head, 0x40) <= 1, "{number} {head:x?}");
            }
            assert!(number == 0 || count(head, 0x80) >= 2, "what repeats is found: {number} {head:x?}");
        }
    }
    drop(raw);
    mesh.finish();
}
