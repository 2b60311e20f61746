//! HTTP/2 messages (RFC 9113 §8) as an intermediary must treat them, and their translation to and from HTTP/1.1.
//!
//! Frames, HPACK and flow control are the h2 crate's; it has refused upper-case names, misplaced and unknown
//! pseudo-fields, connection-specific fields and lengths that disagree with the DATA. What it lets through and must not go
//! on is refused here. Heads towards HTTP/1.1 are written anew, field by field, like all others.

mod canonical;
mod names;
mod origin;
mod repeats;
mod request;
mod response;
pub mod watch;

pub use canonical::from_canonical;
pub use origin::{ORIGIN_FIELD, Origin, is_lane_request, lane_request};
pub use repeats::Repeats;
pub(crate) use request::authority;
pub use request::{
    Facts, Fields, Forwarded, Tunnel, call, check, check_values, extend_connect, forward, host_of,
    join_cookies, set_scheme, values, write_h1, write_h1_handshake,
};
pub(crate) use response::framing;
pub use response::{agree, append_via, end_to_end, from_h1, write_h1_agreed, write_h1_response};

use http::{HeaderMap, HeaderName};

use crate::failure::Cause;

/// What an error of the h2 crate is called in a failure.
pub fn cause(error: &h2::Error) -> Cause {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Cause::StreamRefused,
        // A stream that a closing peer says it did not take, for whatever reason it closes: h2 tells it of no other.
        Some(_) if error.is_go_away() && error.is_remote() => Cause::GoingAway,
        Some(_) if error.is_reset() && error.is_remote() => Cause::StreamReset,
        Some(h2::Reason::ENHANCE_YOUR_CALM) if !error.is_remote() => Cause::Flood,
        Some(_) => Cause::ProtocolError,
        None if error.is_io() => Cause::Reset,
        None => Cause::ProtocolError,
    }
}

/// Removes the fields that are not wanted, most often none: one look at each name costs less than one search for each that
/// may not be there.
fn remove(headers: &mut HeaderMap, mut unwanted: impl FnMut(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
