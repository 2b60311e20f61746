//! A span as OpenTelemetry's protocol has it (opentelemetry/proto/trace/v1/trace.proto), written octet by octet as an entry of
//! `ScopeSpans.spans`: any number of them behind each other is a valid part of that message, so that whoever sends them only wraps them.
//!
//! By hand, because the types that are generated want a string of their own for each name and value: a span takes some thirty, and
//! here none. What comes from callers is cut to [`TEXT_MAX`] and is UTF-8 afterwards. Tests read it with the generated types.

use std::borrow::Cow;

use prost::encoding::{encode_varint, encoded_len_varint};

use super::propagation::{SpanId, TraceParent};

/// Octets of one value that comes from a caller; of a longer one the first. Envoy and most SDKs: none, or as configured.
pub const TEXT_MAX: usize = 1024;

/// Which side of a call a span is (`Span.SpanKind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// That of who is called.
    Server = 2,
    /// That of who calls.
    Client = 3,
}

/// What every span has.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'s> {
    /// Trace and span.
    pub context: TraceParent,
    /// The span above, and whether it is of another process.
    pub parent: Option<(SpanId, bool)>,
    /// `tracestate`, or nothing.
    pub state: &'s str,
    /// Which side it is.
    pub kind: Kind,
    /// When it began, ns since 1970.
    pub began_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Whether it ended badly.
    pub failed: bool,
}

/// Writes one span. Made by [`write()`].
pub struct Writer<'w> {
    out: &'w mut Vec<u8>,
}

/// `spans` of `ScopeSpans`.
const SPANS: u32 = 2;
/// Fields of `Span`.
const TRACE_ID: u32 = 1;
const SPAN_ID: u32 = 2;
const TRACE_STATE: u32 = 3;
const PARENT_SPAN_ID: u32 = 4;
const NAME: u32 = 5;
const KIND: u32 = 6;
const START: u32 = 7;
const END: u32 = 8;
const ATTRIBUTES: u32 = 9;
const STATUS: u32 = 15;
const FLAGS: u32 = 16;
/// Bits of `Span.flags`, beside W3C's: whether the next one says something, and that the parent is of another process.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;
/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// Adds a span to `out`; `attributes` adds the name and what else there is. `scratch` is room for one span, kept by the caller.
pub fn write(
    frame: &Frame<'_>,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
    attributes: impl FnOnce(&mut Writer<'_>),
) {
    scratch.clear();
    let mut writer = Writer { out: scratch };
    writer.frame(frame);
    attributes(&mut writer);
    key(SPANS, LENGTH, out);
    encode_varint(scratch.len() as u64, out);
    out.extend_from_slice(scratch);
}

fn key(field: u32, wire: u64, out: &mut Vec<u8>) {
    encode_varint(u64::from(field) << 3 | wire, out);
}

fn key_len(field: u32) -> usize {
    encoded_len_varint(u64::from(field) << 3)
}

/// Octets of a field with so many.
fn field_len(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

impl Writer<'_> {
    fn frame(&mut self, frame: &Frame<'_>) {
        self.octets(TRACE_ID, frame.context.trace.octets());
        self.octets(SPAN_ID, frame.context.span.octets());
        if !frame.state.is_empty() {
            self.octets(TRACE_STATE, frame.state.as_bytes());
        }
        let mut flags = u32::from(frame.context.flags()) | HAS_IS_REMOTE;
        if let Some((parent, is_remote)) = frame.parent {
            self.octets(PARENT_SPAN_ID, parent.octets());
            flags |= if is_remote { IS_REMOTE } else { 0 };
        }
        key(KIND, VARINT, self.out);
        encode_varint(frame.kind as u64, self.out);
        for (field, ns) in [(START, frame.began_ns), (END, frame.ended_ns)] {
            key(field, FIXED64, self.out);
            self.out.extend_from_slice(&ns.to_le_bytes());
        }
        if frame.failed {
            // `code`, ERROR. Semantic conventions want no description where an attribute says it.
            self.octets(STATUS, &[3 << 3, 2]);
        }
        key(FLAGS, FIXED32, self.out);
        self.out.extend_from_slice(&flags.to_le_bytes());
    }

    fn octets(&mut self, field: u32, octets: &[u8]) {
        key(field, LENGTH, self.out);
        encode_varint(octets.len() as u64, self.out);
        self.out.extend_from_slice(octets);
    }

    /// The span's name, in parts. Once.
    pub fn name(&mut self, parts: &[&str]) {
        key(NAME, LENGTH, self.out);
        encode_varint(parts.iter().map(|part| part.len() as u64).sum(), self.out);
        parts.iter().for_each(|part| self.out.extend_from_slice(part.as_bytes()));
    }

    /// An attribute that is a text, where there is one.
    pub fn text(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.attribute(name, field_len(1, value.len()));
        self.octets(1, value.as_bytes());
    }

    /// An attribute that is a whole number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.attribute(name, key_len(3) + encoded_len_varint(value));
        key(3, VARINT, self.out);
        encode_varint(value, self.out);
    }

    /// All of an attribute but its value, an `AnyValue` of so many octets.
    fn attribute(&mut self, name: &str, length: usize) {
        key(ATTRIBUTES, LENGTH, self.out);
        encode_varint((field_len(1, name.len()) + field_len(2, length)) as u64, self.out);
        self.octets(1, name.as_bytes());
        key(2, LENGTH, self.out);
        encode_varint(length as u64, self.out);
    }
}

/// What a caller wrote, as a text: its first octets, with a mark in place of what is none.
pub fn text(octets: &[u8]) -> Cow<'_, str> {
    let cut = &octets[..octets.len().min(TEXT_MAX)];
    match std::str::from_utf8(cut) {
        Ok(text) => Cow::Borrowed(text),
        // Cut within a character.
        Err(error) if error.error_len().is_none() => String::from_utf8_lossy(&cut[..error.valid_up_to()]),
        Err(_) => String::from_utf8_lossy(cut),
    }
}

/// Parameters of a query whose values are hidden, in lower case: those that OpenTelemetry's conventions name (`url.query`), and words
/// that stand for secrets with most others.
const HIDDEN: [&str; 20] = [
    "access_token",
    "api_key",
    "apikey",
    "auth",
    "authorization",
    "awsaccesskeyid",
    "client_secret",
    "code",
    "id_token",
    "jwt",
    "key",
    "password",
    "passwd",
    "refresh_token",
    "secret",
    "sig",
    "signature",
    "token",
    "x-amz-signature",
    "x-goog-signature",
];

/// A query without the values of parameters that may be secrets.
pub fn redacted(query: &str) -> Cow<'_, str> {
    let is_hidden = |parameter: &str| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            !value.is_empty() && HIDDEN.iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
        })
    };
    if !query.split('&').any(is_hidden) {
        return Cow::Borrowed(query);
    }
    let mut out = String::with_capacity(query.len());
    for (n, parameter) in query.split('&').enumerate() {
        if n > 0 {
            out.push('&');
        }
        match parameter.split_once('=') {
            Some((name, _)) if is_hidden(parameter) => {
                out.push_str(name);
                out.push_str("=REDACTED");
            }
            _ => out.push_str(parameter),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, span};
    use prost::Message;

    use super::*;
    use crate::trace::propagation::{Fields, TraceId};

    fn context() -> TraceParent {
        let mut random = || 0x0102_0304_0506_0708;
        let (trace, span) = (TraceId::random(&mut random), SpanId::random(&mut random));
        TraceParent { trace, span, sampled: true, random: true, debug: false }
    }

    #[test]
    fn what_is_written_is_what_the_protocols_own_types_read() {
        let frame = Frame {
            context: context(),
            parent: Some((context().span, true)),
            state: "a=1",
            kind: Kind::Server,
            began_ns: 1_700_000_000_000_000_001,
            ended_ns: 1_700_000_000_000_000_002,
            failed: true,
        };
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        let long = "x".repeat(300);
        write(&frame, &mut scratch, &mut out, |writer| {
            writer.name(&["GET", " ", "app"]);
            writer.text("url.path", "/a");
            writer.text("absent", "");
            writer.text("long", &long);
            writer.number("http.response.status_code", 503);
        });
        let plain = Frame { parent: None, state: "", kind: Kind::Client, failed: false, ..frame };
        write(&plain, &mut scratch, &mut out, |writer| writer.name(&["POST"]));

        let read = ScopeSpans::decode(&*out).unwrap();
        let [first, second] = &read.spans[..] else { panic!("{read:?}") };
        assert_eq!(first.trace_id, context().trace.octets());
        assert_eq!(first.span_id, context().span.octets());
        assert_eq!(first.parent_span_id, context().span.octets());
        assert_eq!((&*first.trace_state, &*first.name), ("a=1", "GET app"));
        assert_eq!(first.kind(), span::SpanKind::Server);
        assert_eq!(first.start_time_unix_nano, 1_700_000_000_000_000_001);
        assert_eq!(first.end_time_unix_nano, 1_700_000_000_000_000_002);
        assert_eq!((first.status.as_ref().unwrap().code, first.flags), (2, 0x303));
        let attributes: Vec<(&str, Value)> = first
            .attributes
            .iter()
            .map(|one| (&*one.key, one.value.clone().unwrap().value.unwrap()))
            .collect();
        let want = [
            ("url.path", Value::StringValue("/a".into())),
            ("long", Value::StringValue(long)),
            ("http.response.status_code", Value::IntValue(503)),
        ];
        assert_eq!(attributes, want);
        assert!(second.parent_span_id.is_empty() && second.status.is_none() && second.flags == 0x103);
        assert_eq!((second.kind(), &*second.name), (span::SpanKind::Client, "POST"));
    }

    #[test]
    fn a_text_is_utf8_and_no_longer_than_it_may_be() {
        assert_eq!(text(b"/a"), "/a");
        assert_eq!(text(b"/\xff/"), "/\u{fffd}/");
        let long = "\u{e4}".repeat(TEXT_MAX);
        let cut = format!("a{long}");
        assert_eq!(text(cut.as_bytes()).len(), TEXT_MAX - 1, "not within a character");
        assert!(text(&[0xff; 5000]).len() <= 3 * TEXT_MAX);
    }

    #[test]
    fn values_that_may_be_secrets_are_hidden() {
        assert_eq!(redacted("a=1&b=2"), "a=1&b=2");
        assert_eq!(
            redacted("a=1&Token=xyz&b&sig=&X-Amz-Signature=00ff&key=k=k"),
            "a=1&Token=REDACTED&b&sig=&X-Amz-Signature=REDACTED&key=REDACTED"
        );
        assert!(Fields::default().agent.is_none());
    }
}
