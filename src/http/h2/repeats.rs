//! Which fields of the heads that a connection carries repeat, so that HPACK's table is spent on those alone.
//!
//! The h2 crate enters nearly every field into the table of a connection (RFC 7541 §2.3.2) and, to see whether a value is in
//! it, compares with all that have its name, one by one. Where a value is another one in each head (a trace, a request's
//! number, a signature) that name fills the table: some seventy comparisons for the next one, all for nothing, and
//! whatever did repeat is pushed out. So this remembers the last values of each name, by their hash, and has a name whose
//! values turned out not to repeat sent as a literal that nobody indexes (§6.2.3), until they do repeat. A hash that is
//! wrong, by chance or by somebody's will, costs octets or time on one connection and never changes what is said.
//! Refuses to know any names: what repeats is seen, not listed.

use http::header::HeaderMap;

/// Names that are remembered; one that hashes to the place of another takes it. At most 1.2 KiB for a connection.
const NAMES: usize = 32;
/// Values remembered of each name: callers that share a connection to a service each have theirs.
const VALUES: usize = 8;
/// A name whose score is this is not indexed. Each value that was not among the last ones adds one, each that was takes
/// `AGAIN`: not indexed is what repeats less often than once in four times.
const UNWORTHY: u8 = 8;
const AGAIN: u8 = 3;

/// What one connection remembers.
#[derive(Default)]
pub struct Repeats {
    /// Nothing before the first head.
    names: Option<Box<[Name; NAMES]>>,
}

#[derive(Default, Clone, Copy)]
struct Name {
    name: u32,
    score: u8,
    /// Where the next value goes.
    next: u8,
    values: [u32; VALUES],
}

impl Repeats {
    /// Looks at a head that is about to be sent and marks the values that are not worth a place in the table.
    pub fn mark(&mut self, headers: &mut HeaderMap) {
        let names = self.names.get_or_insert_default();
        for (name, value) in headers.iter_mut() {
            let hashed = digest(name.as_str().as_bytes());
            let known = &mut names[hashed as usize % NAMES];
            if known.name != hashed {
                *known = Name { name: hashed, ..Name::default() };
            }
            if known.is_unworthy(digest(value.as_bytes())) {
                value.set_sensitive(true);
            }
        }
    }
}

impl Name {
    /// Notes a value; whether the name's values are, by now, not worth to be indexed.
    fn is_unworthy(&mut self, value: u32) -> bool {
        if self.values.contains(&value) {
            self.score = self.score.saturating_sub(AGAIN);
        } else {
            self.values[usize::from(self.next)] = value;
            self.next = (self.next + 1) % VALUES as u8;
            self.score = (self.score + 1).min(UNWORTHY);
        }
        self.score == UNWORTHY
    }
}

/// A hash of at most 24 of the octets: the first, the middle and the last eight, and how many there are. Never zero, which a
/// place that is empty has. Values that differ elsewhere only count as one, and are indexed as if nobody had looked.
pub(super) fn digest(octets: &[u8]) -> u32 {
    let eight =
        |at: usize| octets.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |o| u64::from_le_bytes(*o));
    let length = octets.len();
    let (first, middle, last) = if length >= 8 {
        (eight(0), eight((length - 8) / 2), eight(length - 8))
    } else {
        let few = octets.iter().fold(0, |all, octet| all << 8 | u64::from(*octet));
        (few, 0, 0)
    };
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product as u64) ^ (product >> 64) as u64
    };
    let hashed = fold(first ^ 0x9e37_79b9_7f4a_7c15, middle ^ 0xa076_1d64_78bd_642f)
        ^ fold(last ^ 0xe703_7ed1_a0b4_28db, length as u64 ^ 0x8ebc_6af0_9c88_c6e3);
    ((hashed ^ hashed >> 32) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Whether each field of a head with these values was marked, name by name.
    fn marked(repeats: &mut Repeats, head: &[(&'static str, &str)]) -> Vec<&'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in head {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        repeats.mark(&mut headers);
        head.iter().filter(|(name, _)| headers[*name].is_sensitive()).map(|(name, _)| *name).collect()
    }

    #[test]
    fn a_name_whose_values_never_repeat_is_marked_and_others_are_not() {
        let mut repeats = Repeats::default();
        for number in 0..100 {
            let number_text = number.to_string();
            let trace = format!("00-{number:032x}-{number:016x}-01");
            let agent = ["curl/8", "Mozilla/5.0 (X11; Linux x86_64)"][number % 2];
            let head = [
                ("user-agent", agent),
                ("x-request-id", &number_text),
                ("traceparent", &trace),
                ("accept", "*/*"),
                ("x-empty", ""),
            ];
            let told = marked(&mut repeats, &head);
            // The first eight are entered: who knows whether they come again.
            let expected: &[_] = if number < 7 { &[] } else { &["x-request-id", "traceparent"] };
            assert_eq!(told, expected, "head {number}");
        }
    }

    #[test]
    fn a_name_whose_values_begin_to_repeat_is_indexed_again() {
        let mut repeats = Repeats::default();
        for number in 0..50 {
            marked(&mut repeats, &[("etag-of-mine", &number.to_string())]);
        }
        // New once more, and from then on it was among the last ones.
        assert_eq!(marked(&mut repeats, &[("etag-of-mine", "same")]), ["etag-of-mine"]);
        assert!(marked(&mut repeats, &[("etag-of-mine", "same")]).is_empty());
        // One in four that is another one does not change that.
        for number in 0..200 {
            let value = if number % 4 == 0 { number.to_string() } else { "same".to_owned() };
            assert!(marked(&mut repeats, &[("etag-of-mine", &value)]).is_empty(), "{number}");
        }
    }

    #[test]
    fn more_names_than_are_remembered_push_out_each_other_and_nothing_else_happens() {
        let mut repeats = Repeats::default();
        for round in 0..20 {
            let names: Vec<String> = (0..200).map(|n| format!("x-{n}")).collect();
            let mut headers = HeaderMap::new();
            for name in &names {
                let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_str(&round.to_string()).unwrap());
            }
            repeats.mark(&mut headers);
            assert_eq!(headers.len(), 200);
            assert!(headers.values().all(|value| value == &round.to_string()));
        }
    }

    #[test]
    fn values_of_any_length_that_differ_have_different_digests() {
        let mut seen = std::collections::HashSet::new();
        for length in 0..64 {
            for octet in [b'a', b'b'] {
                assert!(length == 0 && octet == b'b' || seen.insert(digest(&vec![octet; length])));
            }
        }
        assert!(!seen.contains(&0));
    }
}
