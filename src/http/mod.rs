//! One message model and its wire format; knows nothing of routes or services.

pub mod body;
pub mod client_cert;
pub mod edit;
pub mod fields;
pub mod grpc;
pub mod grpc_web;
pub mod h1;
pub mod h2;
pub mod respond;
pub mod websocket;

/// The version that a message came with (RFC 9112 §2.3). Later 1.x count as 1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    /// As a log says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// That many bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// All until the connection ends (responses only).
    UntilClose,
}

/// What matters of a method to an intermediary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Safe, and the response has no body.
    Head,
    /// Idempotent (RFC 9110 §9.2.2): may be sent again when it is not known whether it was processed.
    Idempotent,
    /// May not be sent again.
    Other,
}
