//! What a ringmesh tells another one beside a request that it carries by HTTP/2: by which version it came, or that the stream is a lane. All
//! else that HTTP/1 says comes out at the far end from what HTTP/2 says itself: lengths, chunked bodies, trailers, `*`.
//!
//! Refuses to be believed from anybody else: the field is removed from whatever comes, and read only on a connection whose
//! two ends agreed by ALPN that they are ringmeshes.

use http::{HeaderMap, HeaderValue, Method, Request, Uri};

use crate::http::Version;

/// The name of the field.
pub const ORIGIN_FIELD: &str = "ringmesh-origin";

/// What the field says of a stream that is a lane: HTTP/1.1 goes over it, one request after the other (see `io::lane`).
const LANE: &str = "lane";

/// What asks for a lane.
pub fn lane_request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("https://lane/");
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().insert(ORIGIN_FIELD, HeaderValue::from_static(LANE));
    request
}

/// Whether a request asks for one: to be asked of those that come from a ringmesh only.
pub fn is_lane_request(headers: &HeaderMap) -> bool {
    headers.get(ORIGIN_FIELD).is_some_and(|said| said == LANE)
}

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
