//! How the parts of a request are compared with what a rule says: where one thing has several spellings, a deny takes
//! all of them for it and an allow none. The reasons stand in the page of the module above.

use super::{Fields, TextMatch};

/// How a rule reads what can be spelt in several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// In doubt it is meant: rules that deny or audit.
    Wide,
    /// In doubt it is not meant: rules that allow.
    Narrow,
}

/// What a rule says about a path, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathTest {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
}

/// A request's path, looked at once for all rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path<'p> {
    octets: &'p [u8],
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing in it is encoded.
    Plain,
    /// It must be decoded to be compared.
    Encoded,
    /// Servers understand it differently.
    Ambiguous,
}

impl Reading {
    pub(super) fn method(self, meant: &[u8], method: &[u8]) -> bool {
        match self {
            Self::Wide => meant.eq_ignore_ascii_case(method),
            Self::Narrow => meant == method,
        }
    }

    pub(super) fn field(self, fields: &impl Fields, name: &str, test: &TextMatch) -> bool {
        let mut values = fields.values(name);
        match self {
            Self::Wide => values.any(|value| {
                test.is_met(value)
                    || (memchr::memchr(b',', value).is_some()
                        && value.split(|b| *b == b',').any(|member| test.is_met(member.trim_ascii())))
            }),
            Self::Narrow => match values.next() {
                Some(first) => test.is_met(first) && values.all(|value| test.is_met(value)),
                None => false,
            },
        }
    }
}

impl TextMatch {
    fn is_met(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Any => true,
        }
    }
}

impl<'p> Path<'p> {
    /// Looks at a path.
    pub(super) fn of(octets: &'p [u8]) -> Self {
        let kind = match ambiguity(octets) {
            Some(_) => Kind::Ambiguous,
            None if memchr::memchr(b'%', octets).is_some() => Kind::Encoded,
            None => Kind::Plain,
        };
        Self { octets, kind }
    }

    /// Where no rule asks.
    pub(super) const fn unread() -> Self {
        Self { octets: &[], kind: Kind::Plain }
    }

    pub(super) fn is_ambiguous(self) -> bool {
        self.kind == Kind::Ambiguous
    }

    pub(super) fn is_meant(self, test: &PathTest, reading: Reading) -> bool {
        match (self.kind, test) {
            (Kind::Ambiguous, _) => reading == Reading::Wide,
            (kind, PathTest::Exact(text)) => {
                self.equals(text, kind)
                    || (reading == Reading::Wide
                        && match text.strip_suffix(b"/") {
                            Some(without) => self.equals(without, kind),
                            None => self
                                .octets
                                .strip_suffix(b"/")
                                .is_some_and(|octets| Self { octets, kind }.equals(text, kind)),
                        })
            }
            (kind, PathTest::Prefix(text)) => {
                self.starts_with(text, kind)
                    || (reading == Reading::Wide
                        && text.strip_suffix(b"/").is_some_and(|without| self.equals(without, kind)))
            }
        }
    }

    fn equals(self, text: &[u8], kind: Kind) -> bool {
        match kind {
            Kind::Plain => self.octets == text,
            _ => decoded(self.octets).eq(text.iter().copied()),
        }
    }

    fn starts_with(self, text: &[u8], kind: Kind) -> bool {
        match kind {
            Kind::Plain => self.octets.starts_with(text),
            _ => {
                let mut octets = decoded(self.octets);
                text.iter().all(|octet| octets.next() == Some(*octet))
            }
        }
    }
}

/// Whether two field names are one to any server: case does not count, nor does `_` for `-` (CGI turns both into `_`).
pub fn same_name(one: &str, other: &str) -> bool {
    let same = |a: &u8, b: &u8| match (a, b) {
        (b'_' | b'-', b'_' | b'-') => true,
        _ => a.eq_ignore_ascii_case(b),
    };
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| same(&a, &b))
}

/// Why servers may understand this path (without query) differently; `None` if it has one meaning. A rule cannot have
/// such a path: an allow would never match, a deny every such request.
pub fn ambiguity(path: &[u8]) -> Option<&'static str> {
    if path == b"*" {
        return None;
    }
    let Some(rest) = path.strip_prefix(b"/") else { return Some("does not begin with a slash") };
    if !needs_a_look(path) {
        return None;
    }
    ambiguity_below(rest)
}

/// The same of what is behind the first slash.
pub(super) fn ambiguity_below(rest: &[u8]) -> Option<&'static str> {
    let mut octets = rest.iter().copied();
    // Octets of the present segment, and how many of them are dots.
    let (mut length, mut dots) = (0_usize, 0_usize);
    let mut before = 0;
    while let Some(raw) = octets.next() {
        let octet = match raw {
            b'%' => {
                let two = octets.next().and_then(hex).zip(octets.next().and_then(hex));
                let Some((high, low)) = two else { return Some("has a broken percent-encoding") };
                let octet = high << 4 | low;
                if matches!(octet, b'/' | b'\\' | b'%' | b';' | b'?' | b'#') {
                    return Some("has an encoded delimiter");
                }
                octet
            }
            b'/' => {
                if length == 0 {
                    return Some("has an empty segment");
                }
                if is_dots(length, dots) {
                    return Some("has a dot segment");
                }
                (length, dots) = (0, 0);
                continue;
            }
            b';' => return Some("has a semicolon"),
            b'\\' => return Some("has a backslash"),
            octet => octet,
        };
        match (before, octet) {
            (_, ..0x20 | 0x7f) => return Some("has a control octet"),
            // What UTF-8 spells longer than it must: some decoders make dots and slashes of it.
            (_, 0xc0 | 0xc1) | (0xe0, 0x80..0xa0) | (0xf0, 0x80..0x90) => return Some("has overlong UTF-8"),
            _ => {}
        }
        before = octet;
        length += 1;
        dots += usize::from(octet == b'.');
    }
    is_dots(length, dots).then_some("has a dot segment")
}

/// Whether some server takes a segment of this path (without query) for `.` or `..`: encoded or not, between slashes or
/// backslashes, which may be encoded, too, and whatever parameters follow it (`/..;x/`).
pub fn has_dot_segment(path: &[u8]) -> bool {
    if !needs_a_look(path) {
        return false;
    }
    let (mut length, mut dots, mut has_parameters) = (0_usize, 0_usize, false);
    for octet in decoded(path) {
        match octet {
            b'/' | b'\\' if is_dots(length, dots) => return true,
            b'/' | b'\\' => (length, dots, has_parameters) = (0, 0, false),
            b';' => has_parameters = true,
            _ if has_parameters => {}
            octet => {
                length += 1;
                dots += usize::from(octet == b'.');
            }
        }
    }
    is_dots(length, dots)
}

/// What an octet of a path may be: one that makes it ambiguous, or one that does so behind a slash. A yes may be wrong, a no never is.
const LOOKS: [u8; 256] = {
    let mut looks = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        looks[octet] = match octet as u8 {
            ..0x20 | b'%' | b';' | b'\\' | 0x7f.. => ALWAYS,
            b'/' | b'.' => BEHIND_A_SLASH,
            _ => 0,
        };
        octet += 1;
    }
    looks
};
const ALWAYS: u8 = 1;
const BEHIND_A_SLASH: u8 = 2;

/// Whether a path is to be looked at closely; most are not.
fn needs_a_look(path: &[u8]) -> bool {
    let mut before = 0;
    let mut found = 0;
    for octet in path {
        let behind_a_slash = if before == b'/' { ALWAYS | BEHIND_A_SLASH } else { ALWAYS };
        found |= LOOKS[usize::from(*octet)] & behind_a_slash;
        before = *octet;
    }
    found != 0
}

fn is_dots(length: usize, dots: usize) -> bool {
    length == dots && matches!(length, 1 | 2)
}

/// The octets that a path stands for. What is no encoding stands for itself.
pub(super) fn decoded(path: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = path;
    std::iter::from_fn(move || {
        if let [b'%', high, low, after @ ..] = rest
            && let Some((high, low)) = hex(*high).zip(hex(*low))
        {
            rest = after;
            return Some(high << 4 | low);
        }
        let (first, after) = rest.split_first()?;
        rest = after;
        Some(*first)
    })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
