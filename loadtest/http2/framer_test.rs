use super::hpack::Again;
use super::*;

/// All events that `bytes` make, given in pieces of `piece`.
fn events(framer: &mut Framer, bytes: &[u8], piece: usize) -> Result<Vec<Event>, Malformed> {
    let mut events: Vec<Event> = Vec::new();
    for mut part in bytes.chunks(piece) {
        while let Some(event) = framer.next(&mut part)? {
            // A body may be told in any number of pieces.
            match (events.last_mut(), event) {
                (
                    Some(Event::Body { stream, bytes, flow, end }),
                    Event::Body { stream: other, bytes: more, flow: more_flow, end: ends },
                ) if *stream == other && !*end => {
                    (*bytes, *flow, *end) = (*bytes + more, *flow + more_flow, ends);
                }
                _ => events.push(event),
            }
        }
    }
    Ok(events)
}

fn drained(framer: &mut Framer) -> Vec<u8> {
    let bytes = framer.pending().to_vec();
    framer.wrote(bytes.len());
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut framer = Framer::new();
    framer.frame_head(payload.len(), kind, flags, stream);
    framer.out.extend_from_slice(payload);
    framer.out
}

#[test]
fn a_request_arrives_however_it_is_cut() {
    let mut client = Framer::client();
    client.send_head(1, false, |encoder, out| {
        encoder.field(out, b":method", b"POST", Again::Likely);
        encoder.field(out, b":path", b"/size/5", Again::Likely);
        encoder.field(out, b"x-echo", b"00000000000000ff", Again::Never);
    });
    client.send_body(1, &[b'x'; 3000], false);
    client.send_body(1, b"", true);
    let bytes = drained(&mut client);
    let more = i64::from(CONNECTION_WINDOW - WINDOW_DEFAULT);
    for piece in [1, 2, 7, 9, 10, 100, 1000, 100_000] {
        let mut server = Framer::server(100);
        let got = events(&mut server, &bytes, piece).expect("legal");
        let change = i64::from(STREAM_WINDOW) - i64::from(WINDOW_DEFAULT);
        let wanted = [
            Event::InitialWindow(change),
            Event::Window { stream: 0, more },
            Event::Head { stream: 1, end: false },
            Event::Body { stream: 1, bytes: 3000, flow: 3000, end: true },
        ];
        assert_eq!(got, wanted, "pieces of {piece}");
        assert_eq!(server.head.path, b"/size/5");
        assert_eq!(server.head.echo, Some(*b"00000000000000ff"));
        assert!(!server.head.is_head_method);
        assert_eq!(server.stream_window, i64::from(STREAM_WINDOW));
        assert_eq!(server.window, i64::from(CONNECTION_WINDOW));
    }
}

#[test]
fn padding_and_priority_are_passed_over_but_count_in_the_window() {
    let mut framer = Framer::new();
    let padded = frame(DATA, PADDED | END_STREAM, 3, &[2, b'a', 0, 0]);
    let got = events(&mut framer, &padded, 3).expect("legal");
    assert_eq!(got, [Event::Body { stream: 3, bytes: 1, flow: 4, end: true }]);
    let head = frame(HEADERS, PADDED | PRIORITY | END_HEADERS, 5, &[1, 0, 0, 0, 0, 9, 0x88, 0]);
    assert_eq!(events(&mut framer, &head, 100).expect("legal"), [Event::Head { stream: 5, end: false }]);
    assert_eq!(framer.head.status, 200);
}

#[test]
fn a_section_may_be_continued_but_not_interrupted() {
    let mut bytes = frame(HEADERS, END_STREAM, 1, &[0x88]);
    bytes.extend(frame(CONTINUATION, 0, 1, &[0x0f]));
    bytes.extend(frame(CONTINUATION, END_HEADERS, 1, &[0x0d, 1, b'7']));
    let mut framer = Framer::new();
    assert_eq!(events(&mut framer, &bytes, 4).expect("legal"), [Event::Head { stream: 1, end: true }]);
    assert_eq!((framer.head.status, framer.head.length), (200, Some(7)));

    let mut bytes = frame(HEADERS, 0, 1, &[0x88]);
    bytes.extend(frame(DATA, 0, 1, b"x"));
    assert!(events(&mut Framer::new(), &bytes, 100).is_err());
    assert!(events(&mut Framer::new(), &bytes, 1).is_err());
}

#[test]
fn long_sections_are_written_in_several_frames() {
    let value = "v".repeat(40_000);
    let mut client = Framer::new();
    client.send_head(1, true, |encoder, out| encoder.field(out, b"x-long", value.as_bytes(), Again::Never));
    let bytes = drained(&mut client);
    assert_eq!(
        events(&mut Framer::new(), &bytes, 1000).expect("legal"),
        [Event::Head { stream: 1, end: true }]
    );
}

#[test]
fn settings_and_pings_are_acknowledged() {
    let mut framer = Framer::new();
    let mut bytes = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 7, 0, 4, 0, 0, 0, 10]);
    bytes.extend(frame(PING, 0, 0, b"12345678"));
    bytes.extend(frame(SETTINGS, ACK, 0, &[]));
    bytes.extend(frame(99, 0, 0, b"what nobody knows"));
    assert_eq!(
        events(&mut framer, &bytes, 5).expect("legal"),
        [Event::InitialWindow(10 - i64::from(WINDOW_DEFAULT))]
    );
    assert_eq!((framer.streams_max, framer.room(framer.stream_window)), (7, 10));
    let mut answers = frame(SETTINGS, ACK, 0, &[]);
    answers.extend(frame(PING, ACK, 0, b"12345678"));
    assert_eq!(drained(&mut framer), answers);
}

#[test]
fn ends_are_told() {
    let mut bytes = frame(RST_STREAM, 0, 9, &8u32.to_be_bytes());
    bytes.extend(frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 2, b'w', b'h', b'y']));
    assert_eq!(
        events(&mut Framer::new(), &bytes, 1).expect("legal"),
        [Event::Reset { stream: 9, code: CANCEL }, Event::GoAway { last: 5, code: 2 }]
    );
}

#[test]
fn the_connection_window_is_opened_again_before_it_closes() {
    let mut framer = Framer::new();
    let piece = frame(DATA, 0, 1, &[0; FRAME_BYTES]);
    let mut updates = Vec::new();
    for _ in 0..CONNECTION_WINDOW as usize / FRAME_BYTES {
        events(&mut framer, &piece, 10_000).expect("legal");
        updates.extend(drained(&mut framer));
    }
    let update = frame(WINDOW_UPDATE, 0, 0, &(CONNECTION_WINDOW / 2).to_be_bytes());
    assert_eq!(updates, [update.clone(), update].concat());
}

#[test]
fn what_is_no_http2_is_refused() {
    assert!(events(&mut Framer::server(1), b"GET / HTTP/1.1\r\n\r\n", 3).is_err());
    for bytes in [
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 0, &[0x88]),
        frame(SETTINGS, 0, 1, &[]),
        frame(SETTINGS, 0, 0, &[0; 5]),
        frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4]),
        frame(CONTINUATION, END_HEADERS, 1, &[0x88]),
        frame(RST_STREAM, 0, 1, &[0; 3]),
        frame(DATA, PADDED, 1, &[9, 0]),
        frame(DATA, 0, 1, &[0; FRAME_BYTES + 1]),
        frame(
            HEADERS,
            END_HEADERS,
            1,
            &[0, 10, b'c', b'o', b'n', b'n', b'e', b'c', b't', b'i', b'o', b'n', 0],
        ),
    ] {
        for piece in [1, 100_000] {
            assert!(events(&mut Framer::new(), &bytes, piece).is_err(), "{:?}", &bytes[..9]);
        }
    }
}
