//! The context of a trace in the fields of a message: W3C Trace Context (level 2), and Zipkin's B3 in both of its forms.
//!
//! `traceparent` of version 00 has exactly 55 octets, `ff` is no version, and a later version is read as far as 00 goes (W3C Trace
//! Context §3.2). Ids are lower-case hexadecimal and not all zeros. A field that should stand once and stands twice says nothing. What
//! is written is version 00. `tracestate` is passed on as it came, or not at all where the trace begins anew (§3.3); it is not read.

use std::fmt;

use super::Formats;

/// The field of W3C's form.
pub const TRACEPARENT: &str = "traceparent";
/// What vendors add to it.
pub const TRACESTATE: &str = "tracestate";
/// The single field of B3.
pub const B3: &str = "b3";
/// The several fields of B3.
pub const B3_TRACE: &str = "x-b3-traceid";
/// See [`B3_TRACE`].
pub const B3_SPAN: &str = "x-b3-spanid";
/// See [`B3_TRACE`].
pub const B3_PARENT: &str = "x-b3-parentspanid";
/// See [`B3_TRACE`].
pub const B3_SAMPLED: &str = "x-b3-sampled";
/// See [`B3_TRACE`].
pub const B3_FLAGS: &str = "x-b3-flags";

/// All fields of B3.
pub const B3_FIELDS: [&str; 6] = [B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];

/// Names a trace; not all zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

/// Names a span of a trace; not all zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// By numbers that are evenly distributed.
    pub fn random(mut random: impl FnMut() -> u64) -> Self {
        loop {
            let id = (u128::from(random()) << 64) | u128::from(random());
            if id != 0 {
                return Self(id.to_be_bytes());
            }
        }
    }

    /// Its octets.
    pub const fn octets(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    /// By numbers that are evenly distributed.
    pub fn random(mut random: impl FnMut() -> u64) -> Self {
        loop {
            let id = random();
            if id != 0 {
                return Self(id.to_be_bytes());
            }
        }
    }

    /// Its octets.
    pub const fn octets(&self) -> &[u8; 8] {
        &self.0
    }
}

fn hex(octets: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A place in a trace, as it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The span that what is called belongs below.
    pub span: SpanId,
    /// Whether it is recorded.
    pub sampled: bool,
    /// Whether the last seven octets of the trace's id are random (level 2, §3.2.3).
    pub random: bool,
    /// Whether it is recorded whatever else says so: B3's flag, which W3C's form does not have.
    pub debug: bool,
}

impl TraceParent {
    /// W3C's flags.
    pub const fn flags(self) -> u8 {
        (self.sampled as u8) | ((self.random as u8) << 1)
    }

    /// What is said of being recorded by B3.
    const fn b3_sampled(self) -> u8 {
        match (self.debug, self.sampled) {
            (true, _) => b'd',
            (false, true) => b'1',
            (false, false) => b'0',
        }
    }

    /// Calls `put` with each field that says this, and its value.
    pub fn write(self, formats: Formats, mut put: impl FnMut(&'static str, &[u8])) {
        let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&self.trace.0, &mut parent[3..35]);
        write_hex(&self.span.0, &mut parent[36..52]);
        write_hex(&[self.flags()], &mut parent[53..55]);
        put(TRACEPARENT, &parent);
        if !formats.b3 {
            return;
        }
        // In both forms, so that who reads only one of them is told.
        let mut single = *b"00000000000000000000000000000000-0000000000000000-0";
        single[..49].copy_from_slice(&parent[3..52]);
        single[50] = self.b3_sampled();
        put(B3, &single);
        put(B3_TRACE, &parent[3..35]);
        put(B3_SPAN, &parent[36..52]);
        if self.debug {
            put(B3_FLAGS, b"1");
        } else {
            put(B3_SAMPLED, if self.sampled { b"1" } else { b"0" });
        }
    }
}

fn write_hex(octets: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (octet, out) in octets.iter().zip(out.chunks_exact_mut(2)) {
        out[0] = DIGITS[usize::from(octet >> 4)];
        out[1] = DIGITS[usize::from(octet & 15)];
    }
}

/// A field that may stand once.
#[derive(Debug, Clone, Copy, Default)]
enum Once<'f> {
    #[default]
    Absent,
    One(&'f [u8]),
    More,
}

impl<'f> Once<'f> {
    fn see(&mut self, value: &'f [u8]) {
        *self = match self {
            Self::Absent => Self::One(value.trim_ascii()),
            Self::One(_) | Self::More => Self::More,
        };
    }

    fn one(self) -> Option<&'f [u8]> {
        match self {
            Self::One(value) => Some(value),
            Self::Absent | Self::More => None,
        }
    }
}

/// The fields of a message that matter here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fields<'f> {
    traceparent: Once<'f>,
    b3: Once<'f>,
    trace: Once<'f>,
    span: Once<'f>,
    sampled: Once<'f>,
    flags: Once<'f>,
    /// The first `tracestate`, as it came.
    pub state: Option<&'f [u8]>,
    /// The first `user-agent`, as it came.
    pub agent: Option<&'f [u8]>,
}

/// What a caller said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Where in a trace it is.
    pub parent: Option<TraceParent>,
    /// Whether it is recorded; `None` where nobody decided. B3 can say that without a trace.
    pub decided: Option<bool>,
    /// As [`TraceParent::debug`].
    pub debug: bool,
    /// Whether W3C's form said it, so that `tracestate` belongs to it.
    pub is_w3c: bool,
}

impl<'f> Fields<'f> {
    /// Looks at one field, whose name may be in any case.
    pub fn see(&mut self, name: &[u8], value: &'f [u8]) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is(B3) => self.b3.see(value),
            10 if is(TRACESTATE) => drop(self.state.get_or_insert_with(|| value.trim_ascii())),
            10 if is("user-agent") => drop(self.agent.get_or_insert_with(|| value.trim_ascii())),
            10 if is(B3_FLAGS) => self.flags.see(value),
            11 if is(TRACEPARENT) => self.traceparent.see(value),
            11 if is(B3_SPAN) => self.span.see(value),
            12 if is(B3_TRACE) => self.trace.see(value),
            12 if is(B3_SAMPLED) => self.sampled.see(value),
            _ => {}
        }
    }

    /// What they say together: the first format that says something valid.
    pub fn read(&self, formats: Formats) -> Incoming {
        if let Some(parent) = self.traceparent.one().and_then(traceparent) {
            return Incoming {
                parent: Some(parent),
                decided: Some(parent.sampled),
                debug: false,
                is_w3c: true,
            };
        }
        if !formats.b3 {
            return Incoming::default();
        }
        match self.b3.one().and_then(b3_single) {
            Some(incoming) => incoming,
            None => self.b3_multi(),
        }
    }

    fn b3_multi(&self) -> Incoming {
        let debug = self.flags.one() == Some(b"1");
        let decided = match self.sampled.one() {
            _ if debug => Some(true),
            // The words are of the time before the specification.
            Some(b"1" | b"true") => Some(true),
            Some(b"0" | b"false") => Some(false),
            Some(_) | None => None,
        };
        let ids = self.trace.one().and_then(trace_id).zip(self.span.one().and_then(span_id));
        Incoming::of_b3(ids, decided, debug)
    }
}

impl Incoming {
    fn of_b3(ids: Option<(TraceId, SpanId)>, decided: Option<bool>, debug: bool) -> Self {
        let sampled = decided.unwrap_or(false);
        let parent = ids.map(|(trace, span)| TraceParent { trace, span, sampled, random: false, debug });
        Self { parent, decided, debug, is_w3c: false }
    }
}

/// `version "-" trace-id "-" parent-id "-" flags`.
fn traceparent(value: &[u8]) -> Option<TraceParent> {
    let (head, rest) = value.split_at_checked(55)?;
    let version = octet(&head[..2])?;
    if version == 0xff || head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
        return None;
    }
    match (version, rest.first()) {
        (_, None) => {}
        (1.., Some(b'-')) => {}
        _ => return None,
    }
    let (trace, span, flags) = (lower_hex(&head[3..35])?, lower_hex(&head[36..52])?, octet(&head[53..])?);
    Some(TraceParent {
        trace: TraceId(trace),
        span: SpanId(span),
        sampled: flags & 1 != 0,
        // What a later version means by it is not known here.
        random: version == 0 && flags & 2 != 0,
        debug: false,
    })
}

/// `trace-id "-" span-id [ "-" state [ "-" parent-id ] ]`, or `state` alone.
fn b3_single(value: &[u8]) -> Option<Incoming> {
    let state = |word: &[u8]| match word {
        b"d" => Some((Some(true), true)),
        b"1" => Some((Some(true), false)),
        b"0" => Some((Some(false), false)),
        _ => None,
    };
    let parts: smallvec::SmallVec<[&[u8]; 5]> = value.split(|octet| *octet == b'-').take(5).collect();
    let (trace, span, (decided, debug)) = match parts[..] {
        [word] => {
            let (decided, debug) = state(word)?;
            return Some(Incoming::of_b3(None, decided, debug));
        }
        [trace, span] => (trace, span, (None, false)),
        [trace, span, word] => (trace, span, state(word)?),
        [trace, span, word, parent] => {
            span_id(parent)?;
            (trace, span, state(word)?)
        }
        _ => return None,
    };
    Some(Incoming::of_b3(Some((trace_id(trace)?, span_id(span)?)), decided, debug))
}

/// That of B3: of 64 bits it is padded with zeros on the left.
fn trace_id(text: &[u8]) -> Option<TraceId> {
    match text.len() {
        32 => lower_hex(text).map(TraceId),
        16 => {
            let mut id = [0; 16];
            id[8..].copy_from_slice(&lower_hex::<8>(text)?);
            Some(TraceId(id))
        }
        _ => None,
    }
}

fn span_id(text: &[u8]) -> Option<SpanId> {
    lower_hex(text).map(SpanId)
}

/// Exactly so many octets, not all zero.
fn lower_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut octets = [0; N];
    for (pair, out) in text.chunks_exact(2).zip(&mut octets) {
        *out = octet(pair)?;
    }
    octets.iter().any(|octet| *octet != 0).then_some(octets)
}

fn octet(pair: &[u8]) -> Option<u8> {
    let digit = |octet: u8| match octet {
        b'0'..=b'9' => Some(octet - b'0'),
        b'a'..=b'f' => Some(octet - b'a' + 10),
        _ => None,
    };
    let [high, low] = pair else { return None };
    Some(digit(*high)? << 4 | digit(*low)?)
}

#[cfg(test)]
#[path = "propagation_test.rs"]
mod tests;
