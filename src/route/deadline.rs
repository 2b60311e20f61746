//! By which fields a caller says when nobody waits for the response any more, and what they say. Pure; asked by `proxy`, and by
//! `explain`, which must understand them alike.

use std::time::Duration;

use crate::http::grpc::{self, Dialect};

/// After how many milliseconds that is (Envoy's).
pub const EXPECTED_TIMEOUT: &str = "x-envoy-expected-rq-timeout-ms";
/// The same of a gRPC call.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What the first says; `None` for what is no number.
pub fn expected_timeout(value: &[u8]) -> Option<Duration> {
    std::str::from_utf8(value).ok()?.trim().parse().ok().map(Duration::from_millis)
}

/// What the second says; `None` for what it cannot say.
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    grpc::timeout(value)
}

/// Whether a request with that content type goes on as a call of gRPC: gRPC-Web does where it is translated.
pub fn is_grpc(content_type: &[u8], translates: bool) -> bool {
    match Dialect::of(content_type) {
        Some(Dialect::Native) => true,
        Some(Dialect::Web(_)) => translates,
        None => false,
    }
}
