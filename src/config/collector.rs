//! `[tracing]` as it is compiled: where spans go and what is told with them. Shards are given `trace::Rules`; this is for control.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::compile::pairs_text;
use super::decode::TRACING_PROTOCOL_WORDS;
use super::values::{duration_text, quoted, size_text};
use crate::trace::Rules;

/// Attributes, and fields of HTTP, that may be given.
pub(super) const PAIRS_MAX: usize = 32;
/// Octets of one name or value of them.
pub(super) const TEXT_MAX: usize = 1024;
/// Fields that frame the message, or that the protocol sets.
pub(super) const OWN_FIELDS: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-encoding",
    "host",
    "te",
    "transfer-encoding",
    "user-agent",
];

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectorProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP/1.1, as binary protobuf.
    Http,
}

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it is spoken to by TLS.
    pub encrypted: bool,
    /// An address without brackets, or a name.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
    /// Both, as they are written.
    pub authority: Box<str>,
    /// What stands before `/v1/traces`; empty, or with a leading slash and none at its end.
    pub path: Box<str>,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// A checked `[tracing]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// What shards do.
    pub rules: Rules,
    /// Where spans are sent.
    pub endpoint: Endpoint,
    /// How.
    pub protocol: CollectorProtocol,
    /// The roots by which it is verified; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Fields of its own in each request, such as a key.
    pub headers: Box<[(Box<str>, Box<str>)]>,
    /// How long one request may take, the connection to it included.
    pub timeout: Duration,
    /// Octets of spans that wait for it.
    pub waiting_bytes_max: u64,
    /// `service.name`; `None`: by the identity.
    pub service_name: Option<Arc<str>>,
    /// Further attributes of the resource.
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

impl Tracing {
    /// What stands for it among the servers outside of the mesh. No service can have this name.
    pub const EDGE: &'static str = "[tracing]";

    /// Its keys and values, as they would be written. Values of `headers` are not shown: they are keys, as a rule.
    pub(super) fn shown(&self) -> Vec<(&'static str, String)> {
        let Self { rules, endpoint, protocol, ca, headers, timeout, .. } = self;
        let protocol = TRACING_PROTOCOL_WORDS.iter().find(|(_, known)| known == protocol);
        let formats = if rules.formats.b3 { "[\"w3c\", \"b3\"]" } else { "[\"w3c\"]" };
        let hidden: Vec<_> =
            headers.iter().map(|(name, _)| (name.clone(), Box::from("(not shown)"))).collect();
        let mut shown = vec![
            ("tracing.endpoint", quoted(&endpoint.to_string())),
            ("tracing.protocol", quoted(protocol.map_or("", |(word, _)| word))),
            ("tracing.timeout", quoted(&duration_text(*timeout))),
            ("tracing.waiting_bytes_max", quoted(&size_text(self.waiting_bytes_max))),
            ("tracing.sample_percent", rules.sample.to_string()),
            ("tracing.propagate", formats.to_owned()),
            ("tracing.headers", pairs_text(&hidden)),
            ("tracing.attributes", pairs_text(&self.attributes)),
        ];
        shown.extend(ca.iter().map(|path| ("tracing.ca", quoted(&path.display().to_string()))));
        shown.extend(self.service_name.iter().map(|name| ("tracing.service_name", quoted(name))));
        shown
    }
}
