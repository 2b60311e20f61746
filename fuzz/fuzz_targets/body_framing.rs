//! The reframer, fed in arbitrary cuts, understands a chunked body as a naive decoder of the whole does: the same
//! content, the same rest, refused where that refuses. What it writes, the naive decoder reads as the same content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmesh::http::Framing;
use ringmesh::http::body::{HEADROOM, Reframer};
use ringmesh::snapshot::Limits;

const LIMITS: Limits = Limits {
    head_bytes_max: 65_536,
    target_bytes_max: 1024,
    paths: ringmesh::snapshot::Paths::Any,
    fields_max: 256,
    body_bytes_max: 0,
    connections_max: 1,
    interim_responses_max: 1,
    handshakes_max: 1,
    mirrored_max: 1,
    mirrored_body_bytes_max: 1,
    faults_max: 1,
};

/// Below every limit of the reframer, of which the naive decoder knows nothing.
const INPUT_MAX: usize = 4096;

fuzz_target!(|input: &[u8]| {
    // One byte chooses the framings, eight the sizes of the pieces, in turn.
    let Some((choice, input)) = input.split_first() else { return };
    let Some((cuts, wire)) = input.split_first_chunk::<8>() else { return };
    if wire.len() > INPUT_MAX {
        return;
    }
    match choice % 4 {
        0 => chunked(wire, cuts, Framing::UntilClose),
        1 | 2 => chunked(wire, cuts, Framing::Chunked),
        _ => length(wire, cuts, u64::from(*choice)),
    }
});

fn chunked(wire: &[u8], cuts: &[u8], to: Framing) {
    let mut content = Vec::new();
    let naive = decode(wire, &mut content);
    let fed = feed(Reframer::new(Framing::Chunked, to), wire, cuts);
    let shown = || format!("{} in {cuts:?}: {naive:?}, {fed:?}", wire.escape_ascii());
    match (&naive, &fed) {
        (Naive::Bad, Err(())) => {}
        // Trailers are read more closely, as the fields that they are.
        (Naive::Whole { has_trailers: true, .. }, Err(())) => {}
        (Naive::Partial, Ok(fed)) => {
            assert!(!fed.ended && fed.rest.is_empty() && fed.content == content.len(), "{}", shown());
            let mut sent = Vec::new();
            match to {
                Framing::Chunked => {
                    assert!(matches!(decode(&fed.sent, &mut sent), Naive::Partial), "{}", shown());
                }
                _ => sent = fed.sent.clone(),
            }
            assert_eq!(sent, content, "{}", shown());
        }
        (Naive::Whole { used, .. }, Ok(fed)) => {
            assert!(fed.ended && fed.rest == wire[*used..] && fed.content == content.len(), "{}", shown());
            let mut sent = Vec::new();
            match to {
                Framing::Chunked => {
                    let again = decode(&fed.sent, &mut sent);
                    assert!(
                        matches!(again, Naive::Whole { used, .. } if used == fed.sent.len()),
                        "{}",
                        shown()
                    );
                }
                _ => sent = fed.sent.clone(),
            }
            assert_eq!(sent, content, "{}", shown());
        }
        _ => panic!("{}", shown()),
    }
}

fn length(wire: &[u8], cuts: &[u8], length: u64) {
    let fed = feed(Reframer::new(Framing::Length(length), Framing::Length(length)), wire, cuts).unwrap();
    let there = wire.len().min(length as usize);
    assert_eq!((fed.sent.as_slice(), fed.rest.as_slice()), wire.split_at(there));
    assert_eq!((fed.content, fed.ended), (there, there as u64 == length));
}

/// What the reframer made of a body.
#[derive(Debug)]
struct Fed {
    sent: Vec<u8>,
    rest: Vec<u8>,
    content: usize,
    ended: bool,
}

fn feed(mut reframer: Reframer, wire: &[u8], cuts: &[u8]) -> Result<Fed, ()> {
    let mut fed = Fed { sent: Vec::new(), rest: Vec::new(), content: 0, ended: reframer.is_ended() };
    let mut at = 0;
    for size in cuts.iter().cycle() {
        if fed.ended || at == wire.len() {
            break;
        }
        let end = wire.len().min(at + usize::from(*size).max(1));
        let mut buffer = vec![b'-'; HEADROOM];
        buffer.extend_from_slice(&wire[at..end]);
        at = end;
        let next = reframer.reframe(&mut buffer, HEADROOM, &LIMITS).map_err(drop)?;
        assert_eq!(next.ended, reframer.is_ended());
        fed.ended = next.ended;
        fed.content += next.content;
        fed.sent.extend_from_slice(&buffer[next.send]);
        fed.rest.extend_from_slice(&buffer[next.rest]);
    }
    if fed.ended {
        fed.rest.extend_from_slice(&wire[at..]);
        reframer.take_trailers(&LIMITS, &mut fed.sent).map_err(drop)?;
    }
    Ok(fed)
}

/// What the naive decoder says.
#[derive(Debug)]
enum Naive {
    Bad,
    Partial,
    Whole { used: usize, has_trailers: bool },
}

/// RFC 9112 §7.1, read from left to right. `content` gets what there is of it.
fn decode(wire: &[u8], content: &mut Vec<u8>) -> Naive {
    let mut at = 0;
    macro_rules! next {
        () => {{
            let Some(byte) = wire.get(at) else { return Naive::Partial };
            at += 1;
            *byte
        }};
    }
    macro_rules! expect {
        ($byte:expr) => {
            if next!() != $byte {
                return Naive::Bad;
            }
        };
    }
    loop {
        let mut digits = String::new();
        let mut byte = next!();
        while byte.is_ascii_hexdigit() {
            digits.push(byte.into());
            if digits.len() > 16 {
                return Naive::Bad;
            }
            byte = next!();
        }
        let Ok(size) = u64::from_str_radix(&digits, 16) else { return Naive::Bad };
        if byte == b';' {
            byte = next!();
            while byte != b'\r' {
                if byte.is_ascii_control() && byte != b'\t' {
                    return Naive::Bad;
                }
                byte = next!();
            }
        }
        if byte != b'\r' {
            return Naive::Bad;
        }
        expect!(b'\n');
        if size == 0 {
            break;
        }
        for _ in 0..size {
            content.push(next!());
        }
        expect!(b'\r');
        expect!(b'\n');
    }
    let mut has_trailers = false;
    loop {
        let mut byte = next!();
        if byte == b'\r' {
            expect!(b'\n');
            return Naive::Whole { used: at, has_trailers };
        }
        has_trailers = true;
        let mut before = 0;
        while byte != b'\n' {
            before = byte;
            byte = next!();
        }
        if before != b'\r' {
            return Naive::Bad;
        }
    }
}
