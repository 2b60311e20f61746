//! What a ringmesh tells another one beside a request that it carries by HTTP/2: by which version it came. All else that
//! HTTP/1 says comes out at the far end from what HTTP/2 says itself: lengths, chunked bodies, trailers, `*`.
//!
//! Refuses to be believed from anybody else: the field is removed from whatever comes, and read only on a connection whose
//! two ends agreed by ALPN that they are ringmeshes.

use http::{HeaderMap, HeaderValue};

use crate::http::Version;

/// The name of the field.
pub const ORIGIN_FIELD: &str = "ringmesh-origin";

/// The version by which a request came. Absent for one that was HTTP/2 already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(pub Version);

impl Origin {
    /// As the value of the field.
    pub fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self.0 {
            Version::Http11 => "1.1",
            Version::Http10 => "1.0",
        })
    }

    /// What a request says of itself; what is not understood is as if it were absent.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        match headers.get(ORIGIN_FIELD)?.as_bytes() {
            b"1.1" => Some(Self(Version::Http11)),
            b"1.0" => Some(Self(Version::Http10)),
            _ => None,
        }
    }
}
