//! Looks at the bytes of one direction of a connection: are they TLS records and nothing else, and does the demo's marker
//! occur among them? Pure; keeps no bytes but the few that a marker cut in two needs. Refuses to decrypt anything.

use memchr::memmem::Finder;

/// Octets of a record's head: type, version (two), length (two).
const HEAD: usize = 5;
/// RFC 8446 section 5.2: a record's content is no longer.
const CONTENT_MAX: usize = (1 << 14) + 256;
/// Octets of the beginning of plain text that are shown.
const SHOWN_MAX: usize = 40;

/// One direction of a connection, as far as it has been seen.
pub(super) struct Records {
    marker: Finder<'static>,
    /// The last octets, one less than the marker has.
    tail: Vec<u8>,
    head: [u8; HEAD],
    head_length: usize,
    /// Octets of the present record that are still to come.
    left: usize,
    /// Whether a record has begun.
    has_begun: bool,
    /// Since something came that is no TLS record, all is plain text.
    is_plain: bool,
}

/// What was found in some bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes seen.
    pub bytes: u64,
    /// TLS records that began.
    pub records: u64,
    /// Bytes that were part of no TLS record.
    pub plain_bytes: u64,
    /// How often the marker occurred, in records or not.
    pub markers: u64,
    /// How the first plain text began, escaped.
    pub first: Option<String>,
}

impl Found {
    /// Adds what was found elsewhere.
    pub(super) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.records += other.records;
        self.plain_bytes += other.plain_bytes;
        self.markers += other.markers;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }

    /// Whether anything was readable.
    pub(super) fn is_readable(&self) -> bool {
        self.plain_bytes > 0 || self.markers > 0
    }
}

impl Records {
    /// Nothing seen yet.
    pub(super) fn new(marker: &str) -> Self {
        Self {
            marker: Finder::new(marker).into_owned(),
            tail: Vec::new(),
            head: [0; HEAD],
            head_length: 0,
            left: 0,
            has_begun: false,
            is_plain: false,
        }
    }

    /// Looks at the next bytes.
    pub(super) fn see(&mut self, bytes: &[u8]) -> Found {
        let mut found =
            Found { bytes: bytes.len() as u64, markers: self.count_markers(bytes), ..Found::default() };
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_plain {
                found.plain_bytes += rest.len() as u64;
                break;
            }
            let inside = self.left.min(rest.len());
            (self.left, rest) = (self.left - inside, &rest[inside..]);
            let Some((&octet, after)) = rest.split_first() else { break };
            self.head[self.head_length] = octet;
            if !self.fits() {
                self.is_plain = true;
                // The octets before it passed for the head of a record.
                found.plain_bytes += self.head_length as u64;
                let shown = self.head[..self.head_length].iter().chain(rest).take(SHOWN_MAX).copied();
                found.first = Some(shown.collect::<Vec<u8>>().escape_ascii().to_string());
                continue;
            }
            (self.head_length, rest) = (self.head_length + 1, after);
            if self.head_length == HEAD {
                (self.left, self.head_length, self.has_begun) = (self.length(), 0, true);
                found.records += 1;
            }
        }
        found
    }

    /// Whether the newest octet of the head can stand where it does.
    fn fits(&self) -> bool {
        // change_cipher_spec, alert, handshake, application_data.
        const TYPES: std::ops::RangeInclusive<u8> = 20..=23;
        const HANDSHAKE: u8 = 22;
        let octet = self.head[self.head_length];
        match self.head_length {
            0 if !self.has_begun => octet == HANDSHAKE,
            0 => TYPES.contains(&octet),
            1 => octet == 3,
            2 => octet <= 4,
            3 => true,
            _ => (1..=CONTENT_MAX).contains(&self.length()),
        }
    }

    fn length(&self) -> usize {
        u16::from_be_bytes([self.head[3], self.head[4]]).into()
    }

    fn count_markers(&mut self, bytes: &[u8]) -> u64 {
        let keep = self.marker.needle().len().saturating_sub(1);
        // One that began in what came before ends within as many octets of what comes now.
        let mut seam = std::mem::take(&mut self.tail);
        let before = seam.len();
        seam.extend_from_slice(&bytes[..bytes.len().min(keep)]);
        let count = self.marker.find_iter(&seam).count() + self.marker.find_iter(bytes).count();
        if bytes.len() >= keep {
            seam.clear();
            seam.extend_from_slice(&bytes[bytes.len() - keep..]);
        } else {
            seam.drain(..(before + bytes.len()).saturating_sub(keep));
        }
        self.tail = seam;
        count as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = "mark-0123456789abcdef";

    fn record(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3], &length[..], content].concat()
    }

    /// All of it in pieces of this size.
    fn seen(bytes: &[u8], piece: usize) -> Found {
        let (mut records, mut all) = (Records::new(MARKER), Found::default());
        for part in bytes.chunks(piece) {
            all.add(&records.see(part));
        }
        all
    }

    #[test]
    fn records_are_no_plain_text_however_they_are_cut() {
        let parts = [(22, 300), (20, 1), (23, CONTENT_MAX), (23, 19), (21, 2)];
        let all: Vec<u8> =
            parts.iter().flat_map(|(kind, length)| record(*kind, &vec![b'G'; *length])).collect();
        for piece in [1, 2, 3, 7, 299, 305, 1000, all.len()] {
            let found = seen(&all, piece);
            assert_eq!((found.records, found.plain_bytes, found.markers), (5, 0, 0), "{piece}");
            assert_eq!((found.bytes, found.first), (all.len() as u64, None));
        }
    }

    #[test]
    fn plain_text_is_found_at_the_beginning_and_behind_records() {
        let plain = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let tls = [record(22, b"hello"), record(23, b"secret")].concat();
        for (before, records) in [(&b""[..], 0), (&tls, 2)] {
            for piece in [1, 4, 1000] {
                let found = seen(&[before, plain].concat(), piece);
                assert_eq!((found.records, found.plain_bytes), (records, plain.len() as u64), "{piece}");
                assert!(found.is_readable());
            }
        }
        assert_eq!(seen(plain, 1000).first.unwrap(), r"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }

    #[test]
    fn what_only_begins_like_a_record_is_plain_text_with_all_its_octets() {
        let handshake = record(22, b"hello");
        let long = [&[23, 3, 3][..], &u16::try_from(CONTENT_MAX + 1).unwrap().to_be_bytes()].concat();
        for bad in [&[23, 3, 9, 0, 1, 0][..], &[23, 2, 3, 0], &[24, 3, 3, 0, 1], &[23, 3, 3, 0, 0], &long] {
            let found = seen(&[&handshake, bad].concat(), 1);
            assert_eq!((found.records, found.plain_bytes), (1, bad.len() as u64), "{bad:?}");
        }
        assert_eq!(
            seen(&record(23, b"no handshake"), 100).records,
            0,
            "a connection begins with a handshake"
        );
    }

    #[test]
    fn a_marker_is_found_wherever_it_is_cut_and_counted_once() {
        let hidden = record(22, format!("x{MARKER}y{MARKER}").as_bytes());
        for piece in 1..=hidden.len() {
            assert_eq!(seen(&hidden, piece).markers, 2, "{piece}");
        }
        assert_eq!(seen(&record(22, &MARKER.as_bytes()[1..]), 3).markers, 0);
    }
}
