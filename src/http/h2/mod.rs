//! HTTP/2 messages (RFC 9113 §8) as an intermediary must treat them, and their translation to and from HTTP/1.1.
//!
//! Frames, HPACK and flow control are the h2 crate's; it has refused upper-case names, misplaced and unknown
//! pseudo-fields, connection-specific fields and lengths that disagree with the DATA. What it lets through and must not go
//! on is refused here. Heads towards HTTP/1.1 are written anew, field by field, like all others.

mod request;
mod response;
pub mod watch;

pub(crate) use request::authority;
pub use request::{
    Facts, Forwarded, Tunnel, check, check_values, forward, from_canonical, host_of, join_cookies, values,
    write_h1,
};
pub(crate) use response::framing;
pub use response::{append_via, end_to_end, from_h1, write_h1_response};

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

/// The name under which two ringmeshes tell each other how a message came; removed at the far end, and from anybody else.
pub const ORIGIN_FIELD: &str = "ringmesh-origin";
