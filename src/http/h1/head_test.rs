//! What tests of `request` and `response` agree on: the limits, and what every head that leaves looks like.

use crate::snapshot::Limits;

pub(super) const LIMITS: Limits = Limits {
    head_bytes_max: 4096,
    target_bytes_max: 1024,
    paths: crate::snapshot::Paths::Any,
    fields_max: 64,
    body_bytes_max: 0,
    connections_max: 1,
    interim_responses_max: 1,
    handshakes_max: 16,
    mirrored_max: 1,
    mirrored_body_bytes_max: 1,
    faults_max: 1,
};

/// The limits of the next hop: a head that leaves has more in it than when it came.
pub(in crate::http) const NEXT_LIMITS: Limits = Limits { head_bytes_max: 65_536, fields_max: 256, ..LIMITS };

/// Whole lines without control characters, an end, and one framing at most.
pub(super) fn assert_canonical(head: &[u8]) {
    let lines: Vec<&[u8]> = head.strip_suffix(b"\r\n\r\n").unwrap().split(|b| *b == b'\n').collect();
    assert!(lines_of(head, b"content-length:") + lines_of(head, b"transfer-encoding:") <= 1);
    for (n, line) in lines.iter().enumerate() {
        let line = if n + 1 < lines.len() { line.strip_suffix(b"\r").unwrap() } else { line };
        assert!(
            !line.is_empty() && !line.iter().any(|b| b.is_ascii_control() && *b != b'\t'),
            "{}",
            head.escape_ascii()
        );
    }
}

/// How many lines begin with these octets, in whatever case.
pub(super) fn lines_of(head: &[u8], beginning: &[u8]) -> usize {
    let begins =
        |line: &&[u8]| line.get(..beginning.len()).is_some_and(|b| b.eq_ignore_ascii_case(beginning));
    head.split(|b| *b == b'\n').filter(begins).count()
}
