//! What both targets of heads share: limits, and a reading of heads that is independent of the one under test.

use std::collections::HashMap;

use ringmesh::snapshot::Limits;

pub const LIMITS: Limits = Limits {
    head_bytes_max: 8192,
    target_bytes_max: 2048,
    paths: ringmesh::snapshot::Paths::Any,
    fields_max: 64,
    body_bytes_max: 0,
    connections_max: 1,
    interim_responses_max: 1,
    handshakes_max: 1,
    mirrored_max: 1,
    mirrored_body_bytes_max: 1,
    faults_max: 1,
};

/// The next hop's: what was added must not be what it refuses.
pub const LIMITS_NEXT: Limits =
    Limits { head_bytes_max: 65_536, fields_max: 256, target_bytes_max: 4096, ..LIMITS };

/// Checks that a head leaves no room for doubt, and that every field in it is one of `added` or came in `wire`, no more
/// often than there. Lines by CRLF, names up to the first colon, nothing else: a reader without opinions.
pub fn check_written(wire: &[u8], out: &[u8], added: &[&str]) {
    let shown = || format!("{} became {}", wire.escape_ascii(), out.escape_ascii());
    let head = out.strip_suffix(b"\r\n\r\n").unwrap_or_else(|| panic!("no end: {}", shown()));
    let mut came: HashMap<(Vec<u8>, Vec<u8>), usize> = HashMap::new();
    for (name, value) in fields(wire) {
        *came.entry((name, value)).or_default() += 1;
    }
    let mut framing = 0;
    for (n, line) in lines(head).enumerate() {
        let is_clean = !line.is_empty() && line.iter().all(|b| !b.is_ascii_control() || *b == b'\t');
        assert!(is_clean, "line {n}: {}", shown());
        if n == 0 {
            continue;
        }
        let (name, value) = field(line).unwrap_or_else(|| panic!("line {n}: {}", shown()));
        let text = std::str::from_utf8(&name).unwrap();
        framing += usize::from(matches!(text, "content-length" | "transfer-encoding"));
        if !added.contains(&text) {
            let left =
                came.get_mut(&(name, value)).unwrap_or_else(|| panic!("invented line {n}: {}", shown()));
            *left = left.checked_sub(1).unwrap_or_else(|| panic!("doubled line {n}: {}", shown()));
        }
    }
    assert!(framing <= 1, "framed twice: {}", shown());
}

/// How often a field stands in a head.
pub fn count(head: &[u8], name: &str) -> usize {
    fields(head).filter(|(n, _)| n == name.as_bytes()).count()
}

fn fields(head: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    lines(head).skip(1).filter_map(field)
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(head);
    std::iter::from_fn(move || {
        let head = rest?;
        let end = head.windows(2).position(|pair| pair == b"\r\n");
        rest = end.map(|end| &head[end + 2..]);
        Some(&head[..end.unwrap_or(head.len())])
    })
}

fn field(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let colon = line.iter().position(|b| *b == b':')?;
    Some((line[..colon].to_ascii_lowercase(), line[colon + 1..].trim_ascii().to_vec()))
}
