//! Field names that an intermediary must know, and the checks of their values (RFC 9110 §5, §7).

use smallvec::SmallVec;

use super::Framing;
use crate::authorize;
use crate::failure::Cause;

/// What an intermediary does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Connection,
    /// Concerns one hop only: never passed on, whether or not Connection names it (RFC 9110 §7.6.1).
    HopByHop,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    Host,
    KeepAlive,
    MaxForwards,
    /// The key of a WebSocket handshake.
    SecWebSocketKey,
    Te,
    TransferEncoding,
    Upgrade,
    Via,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    /// Says which hop failed; only this proxy may say so for itself.
    FailureReport,
    /// Says who called by which certificate; only this proxy may say so, to the service.
    ClientCert,
    Other,
}

/// Sorts a field by its name, whatever its case.
pub(super) fn known(name: &str) -> Known {
    let name = name.as_bytes();
    // The length alone tells most fields apart from all known ones, and where it does not, one comparison of a few words.
    let (is_it, it) = match name.len() {
        2 => (is(name, b"te"), Known::Te),
        3 => (is(name, b"via"), Known::Via),
        4 if is(name, b"host") => (true, Known::Host),
        4 => (is(name, b"date"), Known::Date),
        6 => (is(name, b"expect"), Known::Expect),
        7 => (is(name, b"upgrade"), Known::Upgrade),
        9 => (is(name, b"forwarded"), Known::Forwarded),
        10 if is(name, b"connection") => (true, Known::Connection),
        10 => (is(name, b"keep-alive"), Known::KeepAlive),
        12 => (is(name, b"max-forwards"), Known::MaxForwards),
        14 if is(name, b"content-length") => (true, Known::ContentLength),
        14 => (is(name, b"http2-settings"), Known::HopByHop),
        15 => (is(name, b"x-forwarded-for"), Known::XForwardedFor),
        16 if is(name, b"proxy-connection") => (true, Known::HopByHop),
        16 => (is(name, b"x-forwarded-host"), Known::XForwardedHost),
        17 if is(name, b"transfer-encoding") => (true, Known::TransferEncoding),
        17 if is(name, b"sec-websocket-key") => (true, Known::SecWebSocketKey),
        17 => (is(name, b"x-forwarded-proto"), Known::XForwardedProto),
        18 if is(name, b"x-ringmesh-failure") => (true, Known::FailureReport),
        18 => (is(name, b"proxy-authenticate"), Known::HopByHop),
        19 => (is(name, b"proxy-authorization"), Known::HopByHop),
        // With `_` for `-`, too: to CGI and what came of it that is the same field.
        23 => (is_client_cert(name), Known::ClientCert),
        _ => (false, Known::Other),
    };
    if is_it { it } else { Known::Other }
}

/// Whether a name is this one, of lower case letters, digits and `-`, whatever its case. All octets at once, where
/// `eq_ignore_ascii_case` takes sixteen instructions for each: every field of every message comes by here, some several times.
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let mut differs = 0;
    for (octet, lower) in name.iter().zip(lower) {
        // A letter has its case in 0x20, which all others that may stand there have set. Control octets would become these.
        let is_control = u8::from(octet & 0x60 == 0);
        differs |= ((octet | 0x20) ^ lower) | is_control;
    }
    differs == 0
}

#[cold]
fn is_client_cert(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| authorize::same_name("x-forwarded-client-cert", name))
}

/// End-to-end fields that a Connection field may not remove (RFC 9110 §7.6.1 lets a sender name only hop-by-hop ones;
/// naming these is an attack on what the next hop relies on).
const PROTECTED: &[&str] = &[
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "max-forwards",
    "range",
    "set-cookie",
    "traceparent",
    "tracestate",
    "via",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// What the Connection fields of a message say.
#[derive(Debug, Default)]
pub(super) struct ConnectionOptions<'b> {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Fields that concern this hop only.
    nominated: SmallVec<[&'b str; 4]>,
}

impl<'b> ConnectionOptions<'b> {
    /// Fields that one message may nominate: each costs a comparison per field.
    const NOMINATED_MAX: usize = 32;

    /// Reads one Connection field's value.
    pub(super) fn read(&mut self, value: &'b [u8]) -> Result<(), Cause> {
        for option in list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else {
                self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                let name = std::str::from_utf8(option).map_err(|_| Cause::BadFieldValue)?;
                if !is_token(option) {
                    return Err(Cause::BadFieldValue);
                }
                if self.nominated.len() == Self::NOMINATED_MAX {
                    return Err(Cause::HeadTooLarge);
                }
                if !PROTECTED.iter().any(|p| p.eq_ignore_ascii_case(name)) {
                    self.nominated.push(name);
                }
            }
        }
        Ok(())
    }

    /// Those nominated names that would be passed on as trailers. Few messages have any.
    pub(super) fn nominated_trailers(&self) -> Vec<Box<str>> {
        let may_be = |name: &&&str| matches!(known(name), Known::Other | Known::Date);
        self.nominated.iter().filter(may_be).map(|name| Box::from(*name)).collect()
    }

    /// Whether a field was nominated, so that it is not passed on.
    pub(super) fn nominates(&self, name: &str) -> bool {
        !self.nominated.is_empty() && self.nominated.iter().any(|n| n.eq_ignore_ascii_case(name))
    }
}

/// What Content-Length and Transfer-Encoding of a message say, read line by line and judged at the end.
#[derive(Debug, Default)]
pub(super) struct FramingFields {
    length: Option<u64>,
    chunked: bool,
}

impl FramingFields {
    /// Reads a Content-Length line: one decimal number, once (RFC 9112 §6.3 lets equal repeats pass; we refuse them).
    pub(super) fn length(&mut self, value: &[u8]) -> Result<(), Cause> {
        if self.length.is_some() {
            return Err(Cause::LengthRepeated);
        }
        if value.contains(&b',') {
            return Err(if list(value).all(|v| parse_u64(v).is_some()) {
                Cause::LengthRepeated
            } else {
                Cause::BadLength
            });
        }
        self.length = Some(parse_u64(value).ok_or(Cause::BadLength)?);
        Ok(())
    }

    /// Reads a Transfer-Encoding line: exactly `chunked`, once.
    pub(super) fn encoding(&mut self, value: &[u8]) -> Result<(), Cause> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Cause::BadEncoding);
        }
        self.chunked = true;
        Ok(())
    }

    /// The framing, or `without` where no field says any.
    pub(super) fn framing(&self, is_http10: bool, without: Framing) -> Result<Framing, Cause> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Cause::LengthAndEncoding),
            (None, true) if is_http10 => Err(Cause::EncodingInOld),
            (None, true) => Ok(Framing::Chunked),
            (Some(n), false) => Ok(Framing::Length(n)),
            (None, false) => Ok(without),
        }
    }

    /// The Content-Length as it came.
    pub(super) fn length_value(&self) -> Option<u64> {
        self.length
    }
}

/// The members of a comma-separated list, without white space, empty ones left out (RFC 9110 §5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|v| !v.is_empty())
}

/// `1*DIGIT` that fits (RFC 9110 §8.6): no sign, no white space, no other digits.
pub(super) fn parse_u64(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 {
        return None;
    }
    value.iter().try_fold(0_u64, |n, b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// Writes a number in decimal.
pub(super) fn write_u64(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// `1*tchar` (RFC 9110 §5.6.2).
pub(super) fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|b| TABLE[usize::from(*b)] & TOKEN != 0)
}

/// Octets that may stand in a request target here: visible ASCII without `#` (RFC 9112 §3.2, RFC 3986).
pub(super) fn is_target(value: &[u8]) -> bool {
    value.iter().all(|b| TABLE[usize::from(*b)] & TARGET != 0)
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2), without `,` in names although the grammar has it: a list is an attack.
pub(super) fn is_authority(value: &[u8]) -> bool {
    let (host, rest) = if value.first() == Some(&b'[') {
        let Some(end) = memchr::memchr(b']', value) else { return false };
        let inner = &value[1..end];
        if inner.is_empty() || !inner.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
            return false;
        }
        (inner, &value[end + 1..])
    } else {
        let end = memchr::memchr(b':', value).unwrap_or(value.len());
        let host = &value[..end];
        if !host.iter().all(|b| TABLE[usize::from(*b)] & HOST != 0) {
            return false;
        }
        (host, &value[end..])
    };
    match rest.split_first() {
        None => !host.is_empty(),
        Some((b':', port)) => !host.is_empty() && port.len() <= 5 && parse_port(port),
        Some(_) => false,
    }
}

/// The host of an authority that [`is_authority`] accepted, without port and brackets kept.
pub(super) fn host_of(authority: &[u8]) -> &[u8] {
    if authority.first() == Some(&b'[') {
        let end = memchr::memchr(b']', authority).map_or(authority.len(), |end| end + 1);
        return &authority[..end];
    }
    &authority[..memchr::memchr(b':', authority).unwrap_or(authority.len())]
}

fn parse_port(port: &[u8]) -> bool {
    // An empty port is legal (RFC 3986 §3.2.3).
    port.is_empty() || parse_u64(port).is_some_and(|n| n <= 65_535)
}

const TOKEN: u8 = 1;
const TARGET: u8 = 2;
const HOST: u8 = 4;

static TABLE: [u8; 256] = table();

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        let c = b as u8;
        let alphanumeric = c.is_ascii_alphanumeric();
        if alphanumeric
            || matches!(
                c,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            table[b] |= TOKEN;
        }
        if c > b' ' && c < 0x7f && c != b'#' {
            table[b] |= TARGET;
        }
        if alphanumeric
            || matches!(
                c,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'%'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b';'
                    | b'='
            )
        {
            table[b] |= HOST;
        }
        b += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_in_any_case_and_no_other_octet_makes_it_another() {
        const NAMES: [(&str, Known); 22] = [
            ("te", Known::Te),
            ("via", Known::Via),
            ("host", Known::Host),
            ("date", Known::Date),
            ("expect", Known::Expect),
            ("upgrade", Known::Upgrade),
            ("forwarded", Known::Forwarded),
            ("connection", Known::Connection),
            ("keep-alive", Known::KeepAlive),
            ("max-forwards", Known::MaxForwards),
            ("content-length", Known::ContentLength),
            ("http2-settings", Known::HopByHop),
            ("x-forwarded-for", Known::XForwardedFor),
            ("proxy-connection", Known::HopByHop),
            ("x-forwarded-host", Known::XForwardedHost),
            ("transfer-encoding", Known::TransferEncoding),
            ("sec-websocket-key", Known::SecWebSocketKey),
            ("x-forwarded-proto", Known::XForwardedProto),
            ("x-ringmesh-failure", Known::FailureReport),
            ("proxy-authenticate", Known::HopByHop),
            ("proxy-authorization", Known::HopByHop),
            ("x-forwarded-client-cert", Known::ClientCert),
        ];
        for (name, expected) in NAMES {
            assert_eq!(known(name), expected, "{name}");
            assert_eq!(known(&name.to_ascii_uppercase()), expected, "{name}");
            for at in 0..name.len() {
                for octet in (0..0x80).map(char::from) {
                    let mut other = name.to_owned();
                    other.replace_range(at..=at, octet.encode_utf8(&mut [0; 4]));
                    let is_same = other.eq_ignore_ascii_case(name)
                        || (expected == Known::ClientCert && authorize::same_name(&other, name));
                    let wanted = if is_same { expected } else { Known::Other };
                    assert_eq!(known(&other), wanted, "{other:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_digits_only_and_do_not_wrap() {
        for (text, want) in [
            ("0", Some(0)),
            ("005", Some(5)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("+5", None),
            ("-5", None),
            ("0x5", None),
            ("5 ", None),
            ("5_0", None),
            ("٥", None),
            ("000000000000000000005", None),
        ] {
            assert_eq!(parse_u64(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for n in [0, 1, 9, 10, 99, 100, 65_535, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            write_u64(n, &mut out);
            assert_eq!((String::from_utf8(out.clone()).unwrap(), parse_u64(&out)), (n.to_string(), Some(n)));
        }
    }

    #[test]
    fn lists_have_no_empty_members() {
        let members = |value: &'static str| list(value.as_bytes()).collect::<Vec<_>>();
        assert_eq!(members(" a ,, b\t,"), [b"a", b"b"]);
        assert!(members(" , ,").is_empty() && members("").is_empty());
    }

    #[test]
    fn what_connection_says_is_gathered_over_its_lines() {
        let mut options = ConnectionOptions::default();
        for value in ["Close, x-a", "", "UPGRADE,keep-alive", "Host, X-B ,via"] {
            options.read(value.as_bytes()).unwrap();
        }
        assert!(options.close && options.keep_alive && options.upgrade);
        for (name, nominated) in [("X-A", true), ("x-b", true), ("x", false), ("close", false)] {
            assert_eq!(options.nominates(name), nominated, "{name:?}");
        }
        for name in PROTECTED {
            let value = name.to_ascii_uppercase();
            let mut options = ConnectionOptions::default();
            options.read(value.as_bytes()).unwrap();
            assert!(!options.nominates(name), "{name:?}");
        }
        for bad in ["a b", "a;b", "\"a\"", "\u{fc}"] {
            let mut options = ConnectionOptions::default();
            assert_eq!(options.read(bad.as_bytes()), Err(Cause::BadFieldValue), "{bad:?}");
        }
    }

    #[test]
    fn authorities() {
        for good in ["a", "a.b:80", "A-b_c", "127.0.0.1:1", "[::1]", "[::1]:80", "a:", "xn--a", "a.b."] {
            assert!(is_authority(good.as_bytes()), "{good:?}");
        }
        for bad in [
            "", ":80", "a b", "a/b", "a,b", "a@b", "a#b", "a?b", "a\\b", "a:99999", "a:b", "a:80:80", "[::1",
            "[]", "[::1]x", "a\tb", "é",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad:?}");
        }
        assert_eq!(host_of(b"[::1]:80"), b"[::1]");
        assert_eq!(host_of(b"a.b:80"), b"a.b");
    }

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for (name, want) in [
            ("Host", Known::Host),
            ("DATE", Known::Date),
            ("Connection", Known::Connection),
            ("Keep-Alive", Known::KeepAlive),
            ("content-LENGTH", Known::ContentLength),
            ("HTTP2-Settings", Known::HopByHop),
            ("Transfer-Encoding", Known::TransferEncoding),
            ("X-Forwarded-Proto", Known::XForwardedProto),
            ("SEC-WebSocket-Key", Known::SecWebSocketKey),
            ("Transfer_Encoding", Known::Other),
            ("Content_Length", Known::Other),
            ("Proxy-Authorization", Known::HopByHop),
            ("X-Ringmesh-Failure", Known::FailureReport),
            ("X-Forwarded-Client-Cert", Known::ClientCert),
            ("X_FORWARDED-client_cert", Known::ClientCert),
            ("x-forwarded-client-cerT", Known::ClientCert),
            ("x-forwarded-client-dent", Known::Other),
            ("", Known::Other),
        ] {
            assert_eq!(known(name), want, "{name:?}");
        }
    }

    #[test]
    fn framing_is_refused_where_two_readers_could_differ() {
        let read = |fields: &[(&str, &str)]| {
            let mut framing = FramingFields::default();
            for (name, value) in fields {
                match *name {
                    "cl" => framing.length(value.as_bytes())?,
                    _ => framing.encoding(value.as_bytes())?,
                }
            }
            framing.framing(false, Framing::None)
        };
        assert_eq!(read(&[]), Ok(Framing::None));
        assert_eq!(read(&[("cl", "5")]), Ok(Framing::Length(5)));
        assert_eq!(read(&[("te", "ChUnKeD")]), Ok(Framing::Chunked));
        assert_eq!(read(&[("cl", "5"), ("te", "chunked")]), Err(Cause::LengthAndEncoding));
        assert_eq!(read(&[("cl", "5"), ("cl", "5")]), Err(Cause::LengthRepeated));
        assert_eq!(read(&[("cl", "5, 5")]), Err(Cause::LengthRepeated));
        assert_eq!(read(&[("cl", "5,")]), Err(Cause::LengthRepeated));
        assert_eq!(read(&[("te", "chunked"), ("te", "chunked")]), Err(Cause::BadEncoding));
        for bad in
            ["chunked, chunked", "gzip, chunked", "identity", "xchunked", "chunked;q=1", "\"chunked\"", ""]
        {
            assert_eq!(read(&[("te", bad)]), Err(Cause::BadEncoding), "{bad:?}");
        }
    }
}
