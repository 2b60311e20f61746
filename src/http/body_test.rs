//! Tests of `body`: whatever the cuts, the content is the same, and what is refused is refused.

use super::*;
use proptest::prelude::*;

fn limits() -> Limits {
    Limits {
        head_bytes_max: 1024,
        target_bytes_max: 1024,
        paths: crate::snapshot::Paths::Any,
        fields_max: 16,
        body_bytes_max: 0,
        connections_max: 1,
        interim_responses_max: 1,
        handshakes_max: 16,
        mirrored_max: 1,
        mirrored_body_bytes_max: 1,
        faults_max: 1,
    }
}

/// The bytes that leave, the rest, and whether the body ended.
type Run = (Vec<u8>, Vec<u8>, bool);

/// Feeds `wire` in the given cuts.
fn run(from: Framing, to: Framing, wire: &[u8], cuts: &[usize]) -> Result<Run, Cause> {
    let mut reframer = Reframer::new(from, to);
    let (mut sent, mut rest, mut at) = (Vec::new(), Vec::new(), 0);
    let mut cuts = cuts.to_vec();
    cuts.push(wire.len());
    for cut in cuts {
        if reframer.is_ended() {
            break;
        }
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(&wire[at..cut.max(at)]);
        at = cut.max(at);
        let done = reframer.reframe(&mut buffer, HEADROOM, &limits())?;
        sent.extend_from_slice(&buffer[done.send.clone()]);
        rest.extend_from_slice(&buffer[done.rest.clone()]);
        assert_eq!(done.ended, reframer.is_ended());
    }
    if reframer.is_ended() {
        rest.extend_from_slice(&wire[at..]);
        reframer.take_trailers(&limits(), &mut sent)?;
    }
    Ok((sent, rest, reframer.is_ended()))
}

#[test]
fn one_chunk_leaves_as_one_chunk() {
    let (sent, rest, ended) =
        run(Framing::Chunked, Framing::Chunked, b"5\r\nhello\r\n0\r\n\r\nGET", &[]).unwrap();
    assert_eq!(
        (sent.as_slice(), rest.as_slice(), ended),
        (&b"5\r\nhello\r\n0\r\n\r\n"[..], &b"GET"[..], true)
    );
}

#[test]
fn chunks_of_one_read_leave_as_one() {
    let wire = b"1\r\na\r\n02;x=\"y;z\"\r\nbc\r\n000\r\n\r\n";
    let (sent, _, ended) = run(Framing::Chunked, Framing::Chunked, wire, &[]).unwrap();
    assert_eq!((sent.as_slice(), ended), (&b"3\r\nabc\r\n0\r\n\r\n"[..], true));
    let (sent, _, _) = run(Framing::Chunked, Framing::UntilClose, wire, &[]).unwrap();
    assert_eq!(sent, b"abc");
}

#[test]
fn a_length_is_kept_and_what_is_behind_it_stays() {
    let (sent, rest, ended) = run(Framing::Length(3), Framing::Length(3), b"abcGET", &[]).unwrap();
    assert_eq!((sent.as_slice(), rest.as_slice(), ended), (&b"abc"[..], &b"GET"[..], true));
    let (sent, _, ended) = run(Framing::Length(9), Framing::Length(9), b"abc", &[]).unwrap();
    assert_eq!((sent.as_slice(), ended), (&b"abc"[..], false));
}

#[test]
fn trailers_are_kept_apart_and_dangerous_ones_dropped() {
    let wire = b"1\r\na\r\n0\r\nX-Sum: 7\r\nContent-Length: 5\r\nHost: evil\r\nAuthorization: x\r\ngrpc-status: 0\r\n\r\n";
    let (sent, _, ended) = run(Framing::Chunked, Framing::Chunked, wire, &[]).unwrap();
    assert!(ended);
    assert_eq!(sent, b"1\r\na\r\n0\r\nX-Sum: 7\r\ngrpc-status: 0\r\n\r\n");
}

#[test]
fn what_breaks_the_grammar_is_refused() {
    for wire in [
        &b"0x5\r\nhello\r\n"[..],
        b"+5\r\nhello\r\n",
        b"-1\r\n",
        b"5_\r\nhello\r\n",
        b"g\r\n",
        b"\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\rhello",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n",
        b"5;a\0b\r\nhello\r\n",
        b"10000000000000000\r\n",
        b"00000000000000005\r\nhello\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\n\rX",
    ] {
        assert_eq!(
            run(Framing::Chunked, Framing::Chunked, wire, &[]),
            Err(Cause::BadChunk),
            "{:?}",
            wire.escape_ascii().to_string()
        );
    }
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let mut wire = b"5;".to_vec();
    wire.resize(70_000, b'x');
    assert_eq!(run(Framing::Chunked, Framing::Chunked, &wire, &[]), Err(Cause::HeadTooLarge));
    let many =
        b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(4000);
    assert_eq!(run(Framing::Chunked, Framing::Chunked, &many, &[]), Err(Cause::HeadTooLarge));
    let mut wire = b"0\r\nx: ".to_vec();
    wire.resize(4_000, b'x');
    assert_eq!(run(Framing::Chunked, Framing::Chunked, &wire, &[]), Err(Cause::HeadTooLarge));
}

proptest! {
    #[test]
    fn any_cuts_give_the_same_content(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
        mut cuts in proptest::collection::vec(0_usize..400, 0..12),
    ) {
        let mut wire = Vec::new();
        for piece in &pieces {
            wire.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
            wire.extend_from_slice(piece);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\nNEXT");
        cuts.sort_unstable();
        cuts.retain(|c| *c <= wire.len());
        let (plain, rest, ended) = run(Framing::Chunked, Framing::UntilClose, &wire, &cuts).unwrap();
        prop_assert!(ended);
        prop_assert_eq!(&plain, &pieces.concat());
        prop_assert_eq!(rest, b"NEXT");
        let (sent, _, _) = run(Framing::Chunked, Framing::Chunked, &wire, &cuts).unwrap();
        let (again, rest, ended) = run(Framing::Chunked, Framing::UntilClose, &sent, &[]).unwrap();
        prop_assert!(ended && rest.is_empty());
        prop_assert_eq!(again, pieces.concat());
    }

    #[test]
    fn no_bytes_make_it_panic(wire in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
        let _ = run(Framing::Chunked, Framing::Chunked, &wire, &[cut.min(wire.len())]);
    }
}
