//! A request head that is accepted is accepted by the next hop as the same, whatever the bytes; and is accepted in
//! pieces as it is in one.
#![no_main]

#[path = "heads.rs"]
mod heads;

use heads::{LIMITS, LIMITS_NEXT, check_written, count};
use libfuzzer_sys::fuzz_target;
use ringmesh::http::Framing;
use ringmesh::http::h1::{Forwarding, Parsed, Request, read_request};
use ringmesh::snapshot::ForwardedFields;

const ADDED: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "te",
    "connection",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "upgrade",
    "max-forwards",
];

fuzz_target!(|input: &[u8]| {
    // The first byte chooses what is added.
    let Some((choice, wire)) = input.split_first() else { return };
    let forwarding = Forwarding {
        via: Some("mesh").filter(|_| choice & 4 != 0),
        forwarded: match choice & 3 {
            0 | 3 => ForwardedFields::Keep,
            1 => ForwardedFields::Append,
            _ => ForwardedFields::Replace,
        },
        peer: "192.0.2.7:80".parse().unwrap(),
        encrypted: false,
        default_host: "app",
        client_cert: None,
    };
    let whole = read_request(wire, &LIMITS, forwarding.via, |request| {
        let mut out = Vec::new();
        request.write_head(&forwarding, &mut out);
        (Seen::of(request), request.head_len, out)
    });
    let Parsed::Whole((seen, head_len, out)) = whole else { return };
    check_written(&wire[..head_len], &out, ADDED);
    assert_eq!(count(&out, "host"), 1);
    let again =
        read_request(&out, &LIMITS_NEXT, Some("next"), |request| (Seen::of(request), request.head_len));
    let Parsed::Whole(again) = again else {
        panic!("{} became {}: {again:?}", wire.escape_ascii(), out.escape_ascii())
    };
    assert_eq!((seen, out.len()), again, "{} became {}", wire.escape_ascii(), out.escape_ascii());
    for cut in [head_len / 3, head_len / 2, head_len - 1] {
        let piece = read_request(&wire[..cut], &LIMITS, forwarding.via, |_| ());
        assert!(matches!(piece, Parsed::Partial), "{}: {piece:?}", wire[..cut].escape_ascii());
    }
});

/// What must survive a hop.
#[derive(Debug, PartialEq)]
struct Seen {
    method: String,
    host: Vec<u8>,
    path: Option<String>,
    framing: Framing,
    expect_continue: bool,
    takes_trailers: bool,
}

impl Seen {
    fn of(request: &Request<'_>) -> Self {
        Self {
            method: request.method_name.to_owned(),
            host: request.authority.unwrap_or(b"app").to_vec(),
            path: request.path().map(str::to_owned),
            framing: request.framing,
            expect_continue: request.expect_continue,
            takes_trailers: request.takes_trailers,
        }
    }
}
