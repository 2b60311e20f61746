use super::*;
use crate::http2::hpack::Encoder;

const ECHO: Echo = *b"00000000000000ff";

fn request(body: u64) -> Request {
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")];
    Request { fields: fields.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(), body, check: true }
}

fn begun(count: u64) -> Exchanges {
    let mut exchanges = Exchanges::new();
    for intended in 0..count {
        exchanges.begin(&request(0), intended, ECHO);
    }
    exchanges
}

/// What a server that says this makes of them.
fn outcomes(
    exchanges: &mut Exchanges,
    say: impl FnOnce(&mut Framer),
) -> Result<Vec<(u64, Outcome)>, Malformed> {
    let mut server = Framer::server(100);
    say(&mut server);
    let bytes = server.pending().to_vec();
    let (mut rest, mut all) = (bytes.as_slice(), Vec::new());
    while let Some(ended) = exchanges.advance(&mut rest)? {
        all.push(ended);
    }
    Ok(all)
}

fn ok_head(encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.field(out, b":status", b"200", Again::Likely);
    encoder.field(out, b"x-echo", &ECHO, Again::Never);
}

#[test]
fn responses_find_their_requests_in_any_order() {
    let mut exchanges = begun(3);
    let ended = outcomes(&mut exchanges, |server| {
        server.send_head(5, false, ok_head);
        server.send_head(1, true, ok_head);
        server.send_body(5, b"abc", true);
    });
    let answer = |body| Outcome::Answered(Answer { status: 200, echoed: true, body });
    assert_eq!(ended.expect("legal"), [(0, answer(0)), (2, answer(3))]);
    assert_eq!(exchanges.len(), 1);
}

#[test]
fn trailers_and_interim_responses_are_no_answers() {
    let ended = outcomes(&mut begun(1), |server| {
        server.send_head(1, false, |encoder, out| encoder.field(out, b":status", b"103", Again::Never));
        server.send_head(1, false, ok_head);
        server.send_body(1, b"abc", false);
        server.send_head(1, true, |encoder, out| encoder.field(out, b"grpc-status", b"0", Again::Never));
    });
    assert_eq!(
        ended.expect("legal"),
        [(0, Outcome::Answered(Answer { status: 200, echoed: true, body: 3 }))]
    );
}

#[test]
fn what_the_peer_did_not_look_at_may_be_sent_again() {
    let mut exchanges = begun(3);
    let ended = outcomes(&mut exchanges, |server| server.go_away(1, 0)).expect("legal");
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|(intended, outcome)| *intended > 0 && *outcome == Outcome::Untouched));
    assert!(exchanges.leaving);
    assert_eq!(exchanges.len(), 1);
}

#[test]
fn a_reset_and_another_length_are_failures() {
    let ended = outcomes(&mut begun(2), |server| {
        server.reset(1, 2);
        server.send_head(3, false, |encoder, out| {
            ok_head(encoder, out);
            encoder.field(out, b"content-length", b"4", Again::Never);
        });
        server.send_body(3, b"abc", true);
    });
    let failed = [(0, Outcome::Failed(Failed::Reset)), (1, Outcome::Failed(Failed::Malformed))];
    assert_eq!(ended.expect("legal"), failed);
}

#[test]
fn bodies_wait_for_windows() {
    let mut exchanges = Exchanges::new();
    exchanges.begin(&request(200_000), 7, ECHO);
    let sent = |exchanges: &mut Exchanges| {
        let bytes = exchanges.framer.pending().to_vec();
        exchanges.framer.wrote(bytes.len());
        bytes.len()
    };
    assert!((65_535..66_500).contains(&sent(&mut exchanges)));
    assert!(!exchanges.pump(200_000));
    let more = |server: &mut Framer| {
        server.wrote(server.pending().len());
        server.window_update(0, 200_000);
        server.window_update(1, 200_000);
    };
    assert_eq!(outcomes(&mut exchanges, more).expect("legal"), []);
    assert!(exchanges.pump(200_000));
    assert!((134_465..135_000).contains(&sent(&mut exchanges)));
}

#[test]
fn what_nobody_asked_for_is_malformed() {
    assert!(outcomes(&mut begun(1), |server| server.send_head(3, true, ok_head)).is_err());
    assert!(outcomes(&mut begun(1), |server| server.send_head(2, true, ok_head)).is_err());
    assert!(outcomes(&mut begun(1), |server| server.send_body(1, b"x", true)).is_err());
    // What comes late, for an exchange that was given up, is not.
    let mut exchanges = begun(1);
    assert!(exchanges.give_up_before(1));
    assert_eq!(outcomes(&mut exchanges, |server| server.send_head(1, true, ok_head)).expect("legal"), []);
}
