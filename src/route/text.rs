//! Texts with values of the request in them: `%{source}`, `%{header.x-user}`. For fields that a route sets. Pure.
//!
//! The names are few and closed; an unknown one is an error of the configuration. A value that a request does not have is
//! empty. `%%` is a percent sign.

use std::fmt::Write as _;

use crate::authorize::{Call, Fields};

/// A text with values in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(Box<[Piece]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Plain(Box<str>),
    Value(Value),
}

/// What may stand in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Method,
    Path,
    Query,
    Target,
    Host,
    Scheme,
    Source,
    Identity,
    Listener,
    Route,
    Service,
    Header(Box<str>),
    Status,
}

/// How values are called, for messages and for the documents.
pub const VALUES: [&str; 13] = [
    "method",
    "path",
    "query",
    "target",
    "host",
    "scheme",
    "source",
    "identity",
    "listener",
    "route",
    "service",
    "status",
    "header.NAME",
];

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadText {
    /// `%` that begins neither `%{` nor `%%`.
    Percent,
    /// `%{` without `}`.
    Open,
    /// No such value.
    Unknown(Box<str>),
    /// A control character.
    Control(char),
}

/// A request, as far as texts and changes ask for it.
#[derive(Debug)]
pub struct Seen<'s, 'c, F> {
    /// Who calls, method, path, fields.
    pub call: &'s Call<'c, F>,
    /// Path and query as they came.
    pub target: &'s [u8],
    /// Host and port that it is for; empty for a request without them.
    pub host: &'s [u8],
    /// Whether it came encrypted.
    pub encrypted: bool,
    /// The route's name.
    pub route: &'s str,
    /// The service's name; empty where none was chosen.
    pub service: &'s str,
}

impl<F> Seen<'_, '_, F> {
    /// What stands behind the question mark.
    pub fn query(&self) -> Option<&[u8]> {
        memchr::memchr(b'?', self.target).map(|at| &self.target[at + 1..])
    }

    /// As URLs call it.
    pub fn scheme(&self) -> &'static str {
        if self.encrypted { "https" } else { "http" }
    }
}

impl Text {
    /// Reads a text.
    ///
    /// # Errors
    /// When it has a percent sign that begins no value, or a control character.
    pub fn parse(text: &str) -> Result<Self, BadText> {
        if let Some(bad) = text.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(BadText::Control(bad));
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('%') {
            plain.push_str(before);
            rest = if let Some(rest) = behind.strip_prefix('%') {
                plain.push('%');
                rest
            } else {
                let inside = behind.strip_prefix('{').ok_or(BadText::Percent)?;
                let (name, rest) = inside.split_once('}').ok_or(BadText::Open)?;
                let value = Value::named(name).ok_or_else(|| BadText::Unknown(name.into()))?;
                if !plain.is_empty() {
                    pieces.push(Piece::Plain(std::mem::take(&mut plain).into()));
                }
                pieces.push(Piece::Value(value));
                rest
            };
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Plain(plain.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// Whether the status of the response is in it.
    pub fn has_status(&self) -> bool {
        self.0.contains(&Piece::Value(Value::Status))
    }

    /// Writes it with its values; `status` in place of the status of the response, which is not known yet.
    pub fn write<F: Fields>(&self, seen: &Seen<'_, '_, F>, status: u8, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Plain(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Value(value) => value.write(seen, status, out),
            }
        }
    }
}

/// As it would be written in a file.
impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Plain(text) => f.write_str(&text.replace('%', "%%"))?,
                Piece::Value(Value::Header(name)) => write!(f, "%{{header.{name}}}")?,
                Piece::Value(value) => write!(f, "%{{{}}}", format!("{value:?}").to_ascii_lowercase())?,
            }
        }
        Ok(())
    }
}

impl Value {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "method" => Self::Method,
            "path" => Self::Path,
            "query" => Self::Query,
            "target" => Self::Target,
            "host" => Self::Host,
            "scheme" => Self::Scheme,
            "source" => Self::Source,
            "identity" => Self::Identity,
            "listener" => Self::Listener,
            "route" => Self::Route,
            "service" => Self::Service,
            "status" => Self::Status,
            _ => {
                let field = name.strip_prefix("header.")?;
                http::HeaderName::from_bytes(field.as_bytes()).ok()?;
                Self::Header(field.to_ascii_lowercase().into())
            }
        })
    }

    fn write<F: Fields>(&self, seen: &Seen<'_, '_, F>, status: u8, out: &mut Vec<u8>) {
        let call = seen.call;
        match self {
            Self::Method => out.extend_from_slice(call.method),
            Self::Path => out.extend_from_slice(call.path),
            Self::Query => out.extend_from_slice(seen.query().unwrap_or_default()),
            Self::Target => out.extend_from_slice(seen.target),
            Self::Host => out.extend_from_slice(seen.host),
            Self::Scheme => out.extend_from_slice(seen.scheme().as_bytes()),
            Self::Source => {
                let mut text = String::with_capacity(48);
                // Writing to a String cannot fail.
                let _ = write!(text, "{}", call.caller.source.to_canonical());
                out.extend_from_slice(text.as_bytes());
            }
            Self::Identity => {
                out.extend_from_slice(call.caller.peer.map_or(&[][..], |peer| peer.as_str().as_bytes()))
            }
            Self::Listener => out.extend_from_slice(call.caller.listener.as_bytes()),
            Self::Route => out.extend_from_slice(seen.route.as_bytes()),
            Self::Service => out.extend_from_slice(seen.service.as_bytes()),
            // One value, as RFC 9110 §5.3 has it.
            Self::Header(name) => {
                for (n, value) in call.fields.values(name).enumerate() {
                    if n > 0 {
                        out.extend_from_slice(b", ");
                    }
                    out.extend_from_slice(value);
                }
            }
            Self::Status => out.push(status),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::authorize::Caller;

    /// Fields of a request.
    pub(in crate::route) struct Head(pub(in crate::route) Vec<(&'static str, String)>);

    impl Fields for Head {
        fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.0.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_bytes())
        }
    }

    /// A request by this method for this target with these fields.
    pub(in crate::route) fn with<R>(
        method: &str,
        target: &str,
        fields: &[(&'static str, &str)],
        then: impl FnOnce(&Seen<'_, '_, Head>) -> R,
    ) -> R {
        let head = Head(fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect());
        let caller = Caller { listener: "in", port: 80, source: "10.0.0.1".parse().unwrap(), peer: None };
        let path = target.split('?').next().unwrap();
        let call = Call { caller, method: method.as_bytes(), path: path.as_bytes(), fields: &head };
        then(&Seen {
            call: &call,
            target: target.as_bytes(),
            host: b"shop.example:8080",
            encrypted: false,
            route: "r",
            service: "s",
        })
    }

    #[test]
    fn values_of_the_request_stand_in_a_text() {
        let all = "%{method} %{path} %{query} %{target} %{host} %{scheme} %{source} [%{identity}] %{listener} %{route} \
                   %{service} %{header.X-User} %{header.x-none}100%%%{status}";
        let text = Text::parse(all).unwrap();
        assert_eq!(text.to_string(), all.replace("X-User", "x-user"));
        assert!(text.has_status() && !Text::parse("100%%").unwrap().has_status());
        let mut out = Vec::new();
        with("GET", "/a?b=c", &[("x-user", "u"), ("x-user", "v")], |seen| text.write(seen, b'#', &mut out));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "GET /a b=c /a?b=c shop.example:8080 http 10.0.0.1 [] in r s u, v 100%#"
        );
    }

    #[test]
    fn what_is_no_value_is_an_error() {
        for (text, bad) in [
            ("100% sure", BadText::Percent),
            ("%", BadText::Percent),
            ("%{method", BadText::Open),
            ("%{methods}", BadText::Unknown("methods".into())),
            ("%{header.}", BadText::Unknown("header.".into())),
            ("%{header.a b}", BadText::Unknown("header.a b".into())),
            ("a\r\nb", BadText::Control('\r')),
        ] {
            assert_eq!(Text::parse(text), Err(bad), "{text:?}");
        }
        for name in VALUES {
            assert!(Text::parse(&format!("%{{{name}}}")).is_ok(), "{name}");
        }
    }
}
