//! HPACK (RFC 7541): reading field sections whatever they use, writing them plain, with the dynamic table.
//!
//! Called by `http2` and its users. It refuses Huffman coding when writing: that would cost the load side CPU and tell
//! nothing about a proxy.

use std::collections::VecDeque;

use super::huffman;

/// Octets of each dynamic table: the default of HTTP/2, which neither side here changes.
pub(crate) const TABLE_BYTES: usize = 4096;
/// What an entry counts beyond its octets.
const ENTRY_OVERHEAD: usize = 32;
/// Octets of one decoded section, at most.
const SECTION_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

#[rustfmt::skip]
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// Newest first, as indices count.
#[derive(Default)]
struct Table {
    entries: VecDeque<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    bytes_max: usize,
}

impl Table {
    fn new() -> Self {
        Self { bytes_max: TABLE_BYTES, ..Self::default() }
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        self.shrink(self.bytes_max.saturating_sub(size));
        if size <= self.bytes_max {
            self.bytes += size;
            self.entries.push_front((name.to_vec(), value.to_vec()));
        }
    }

    fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes
            && let Some((name, value)) = self.entries.pop_back()
        {
            self.bytes -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }

    /// Index 1 to 61 is the static table, what follows the dynamic one.
    fn at(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let entry = match index.checked_sub(STATIC.len() + 1) {
            None => index.checked_sub(1).and_then(|i| STATIC.get(i)).copied(),
            Some(i) => self.entries.get(i).map(|(name, value)| (name.as_slice(), value.as_slice())),
        };
        entry.ok_or(Malformed("no such index"))
    }
}

/// Reads the sections that one peer sends on one connection.
pub(crate) struct Decoder {
    table: Table,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), name: Vec::new(), value: Vec::new() }
    }

    /// Tells `take` each field of a section in turn.
    pub(crate) fn decode(
        &mut self,
        mut block: &[u8],
        mut take: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Malformed> {
        let mut total = 0;
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.table.at(index)?;
                total += name.len() + value.len();
                take(name, value);
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut block, 5)?;
                if size > TABLE_BYTES {
                    return Err(Malformed("table larger than allowed"));
                }
                self.table.bytes_max = size;
                self.table.shrink(size);
            } else {
                let keeps = first & 0xc0 == 0x40;
                let index = integer(&mut block, if keeps { 6 } else { 4 })?;
                self.name.clear();
                if index == 0 {
                    string(&mut block, &mut self.name)?;
                } else {
                    self.name.extend_from_slice(self.table.at(index)?.0);
                }
                self.value.clear();
                string(&mut block, &mut self.value)?;
                total += self.name.len() + self.value.len();
                if keeps {
                    self.table.insert(&self.name, &self.value);
                }
                take(&self.name, &self.value);
            }
            if total > SECTION_BYTES_MAX {
                return Err(Malformed("section too long"));
            }
        }
        Ok(())
    }
}

fn integer(block: &mut &[u8], prefix_bits: u32) -> Result<usize, Malformed> {
    let mask = (1usize << prefix_bits) - 1;
    let (&first, mut rest) = block.split_first().ok_or(Malformed("section cut short"))?;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, tail) = rest.split_first().ok_or(Malformed("section cut short"))?;
            rest = tail;
            if shift > 21 {
                return Err(Malformed("number too large"));
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let coded = block.first().is_some_and(|b| b & 0x80 != 0);
    let length = integer(block, 7)?;
    if length > block.len() {
        return Err(Malformed("section cut short"));
    }
    let (text, rest) = block.split_at(length);
    *block = rest;
    if !coded {
        out.extend_from_slice(text);
    } else if !huffman::decode(text, out) {
        return Err(Malformed("no Huffman code"));
    }
    Ok(())
}

/// Writes the sections that one side sends on one connection.
pub(crate) struct Encoder {
    table: Table,
    /// The peer wants no table: said at the start of the next section.
    announce_none: bool,
}

/// Whether a field is likely to come again on this connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Likely,
    Never,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), announce_none: false }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. Less than the default turns the table off; more changes nothing.
    pub(crate) fn set_table_max(&mut self, bytes: u32) {
        if (bytes as usize) < TABLE_BYTES && self.table.bytes_max > 0 {
            self.table.bytes_max = 0;
            self.table.shrink(0);
            self.announce_none = true;
        }
    }

    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.announce_none) {
            out.push(0x20);
        }
    }

    pub(crate) fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], again: Again) {
        let mut name_index = 0;
        let known = STATIC.iter().copied();
        let kept = self.table.entries.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
        // What comes again is in the dynamic table: that one first.
        let indexed = kept.zip(STATIC.len() + 1..).chain(known.zip(1..));
        for ((n, v), index) in indexed {
            if n == name {
                if v == value {
                    return put_integer(out, 0x80, 7, index);
                }
                name_index = index;
            }
        }
        match again {
            Again::Likely if self.table.bytes_max > 0 => {
                put_integer(out, 0x40, 6, name_index);
                self.table.insert(name, value);
            }
            _ => put_integer(out, 0, 4, name_index),
        }
        if name_index == 0 {
            put_string(out, name);
        }
        put_string(out, value);
    }
}

fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix_bits: u32, value: usize) {
    let mask = (1usize << prefix_bits) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

#[cfg(test)]
#[path = "hpack_test.rs"]
mod tests;
