//! The Huffman code of HPACK (RFC 7541 appendix B), read only: peers send fields in it, the load generator writes them plain.
//!
//! Called by `hpack`. The code is canonical (codes of one length ascend with their symbols), so that the lengths say all.

/// Code lengths in bits by symbol; the last one is the end of string, which must not occur.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];
const BITS_MAX: usize = 30;
const END: u16 = 256;

struct Code {
    /// Symbols in the order of their codes.
    symbols: [u16; 257],
    /// By length: the first code, and where its symbol stands in `symbols`.
    first: [(u32, u16); BITS_MAX + 2],
    /// How many codes have that length.
    count: [u16; BITS_MAX + 2],
    /// By the next eight bits: symbol and length of the code that they begin with; length 0 if it is longer.
    short: [(u16, u8); 256],
}

static CODE: Code = build();

const fn build() -> Code {
    let mut code = Code {
        symbols: [0; 257],
        first: [(0, 0); BITS_MAX + 2],
        count: [0; BITS_MAX + 2],
        short: [(0, 0); 256],
    };
    let (mut next, mut at, mut bits) = (0u32, 0u16, 1usize);
    while bits <= BITS_MAX {
        next <<= 1;
        code.first[bits] = (next, at);
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == bits {
                code.symbols[at as usize] = symbol as u16;
                code.count[bits] += 1;
                if bits <= 8 {
                    let base = (next << (8 - bits)) as usize;
                    let mut i = 0;
                    while i < 1 << (8 - bits) {
                        code.short[base + i] = (symbol as u16, bits as u8);
                        i += 1;
                    }
                }
                next += 1;
                at += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    code
}

/// Appends what `bytes` stand for to `out`; false if they are no legal code.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let (mut window, mut bits, mut at) = (0u64, 0usize, 0usize);
    loop {
        while bits <= 32 && at < bytes.len() {
            window = window << 8 | u64::from(bytes[at]);
            at += 1;
            bits += 8;
        }
        // The next bits, padded with ones as the end of a string is.
        let peek = |n: usize| {
            if bits >= n {
                (window >> (bits - n)) as u32 & ((1 << n) - 1)
            } else {
                let have = (window as u32) & ((1u32 << bits) - 1);
                have << (n - bits) | ((1 << (n - bits)) - 1)
            }
        };
        let (symbol, length) = match CODE.short[peek(8) as usize] {
            (symbol, length) if length > 0 => (symbol, usize::from(length)),
            _ => {
                let found = (9..=BITS_MAX).find_map(|n| {
                    let (first, index) = CODE.first[n];
                    let offset = peek(n).checked_sub(first)?;
                    (offset < u32::from(CODE.count[n]))
                        .then(|| (CODE.symbols[usize::from(index) + offset as usize], n))
                });
                match found {
                    Some(found) => found,
                    None => return false,
                }
            }
        };
        if length > bits {
            // Only padding is left: fewer than eight ones.
            return bits < 8 && window & ((1 << bits) - 1) == (1 << bits) - 1;
        }
        if symbol == END {
            return false;
        }
        out.push(symbol as u8);
        bits -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        decode(bytes, &mut out).then(|| String::from_utf8(out).expect("ascii"))
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7541 C.4.1, C.4.2, C.6.1, C.6.3.
        let www = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(text(&www).as_deref(), Some("www.example.com"));
        assert_eq!(text(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).as_deref(), Some("no-cache"));
        assert_eq!(text(&[0x64, 0x02]).as_deref(), Some("302"));
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66,
            0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(text(&date).as_deref(), Some("Mon, 21 Oct 2013 20:13:21 GMT"));
        assert_eq!(text(&[]).as_deref(), Some(""));
    }

    #[test]
    fn rare_symbols_have_long_codes() {
        // `\\` has 19 bits, 0x7fff0, filled up with ones.
        assert_eq!(text(&[0xff, 0xfe, 0x1f]).as_deref(), Some("\\"));
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        assert_eq!(text(&[0x07]), Some("0".to_owned())); // 00000 and three ones
        assert_eq!(text(&[0x00]), None); // 00000 and three zeros
        assert_eq!(text(&[0x07, 0xff]), None); // eleven bits of padding
        assert_eq!(text(&[0xff, 0xff, 0xff, 0xff]), None); // the end of string
    }
}
