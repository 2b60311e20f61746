//! A response head that is accepted is accepted by the next hop as the same, whatever the bytes; and is accepted in
//! pieces as it is in one.
#![no_main]

#[path = "heads.rs"]
mod heads;

use heads::{LIMITS, LIMITS_NEXT, check_written, count};
use libfuzzer_sys::fuzz_target;
use ringmesh::http::h1::{Parsed, ResponseOptions, read_response, write_response_head};
use ringmesh::http::{Method, Version};
use ringmesh::shard::clock::Clock;

const ADDED: &[&str] = &["content-length", "transfer-encoding", "connection", "date"];

fuzz_target!(|input: &[u8]| {
    // The first byte chooses the request and how the response is passed on.
    let Some((choice, wire)) = input.split_first() else { return };
    let method = if choice & 1 != 0 { Method::Head } else { Method::Idempotent };
    let version = if choice & 2 != 0 { Version::Http10 } else { Version::Http11 };
    let clock = Clock::new();
    let whole = read_response(wire, &LIMITS, method, |response| {
        let options = ResponseOptions { version, framing: response.framing, close: choice & 4 != 0 };
        let mut out = Vec::new();
        write_response_head(response, options, &clock, &mut out);
        ((response.status, response.framing), response.is_interim(), response.head_len, out)
    });
    let Parsed::Whole((seen, is_interim, head_len, out)) = whole else { return };
    check_written(&wire[..head_len], &out, ADDED);
    assert!(is_interim || count(&out, "date") >= 1);
    let again = read_response(&out, &LIMITS_NEXT, method, |response| {
        ((response.status, response.framing), response.head_len)
    });
    let Parsed::Whole(again) = again else {
        panic!("{} became {}: {again:?}", wire.escape_ascii(), out.escape_ascii())
    };
    assert_eq!((seen, out.len()), again, "{} became {}", wire.escape_ascii(), out.escape_ascii());
    for cut in [head_len / 3, head_len / 2, head_len - 1] {
        let piece = read_response(&wire[..cut], &LIMITS, method, |_| ());
        assert!(matches!(piece, Parsed::Partial), "{}: {piece:?}", wire[..cut].escape_ascii());
    }
});
