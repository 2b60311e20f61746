//! By which fields a caller says when nobody waits for the response any more, and what they say. Pure; asked by `proxy`, and by
//! `explain`, which must understand them alike.

use std::time::Duration;

/// After how many milliseconds that is (Envoy's).
pub const EXPECTED_TIMEOUT: &str = "x-envoy-expected-rq-timeout-ms";
/// The same of a gRPC call.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What the first of them says; `None` for what is no number.
pub fn expected_timeout(value: &[u8]) -> Option<Duration> {
    std::str::from_utf8(value).ok()?.trim().parse().ok().map(Duration::from_millis)
}
