//! Messages of `envoy.service.ratelimit.v3.RateLimitService`, as far as they are used: what is asked of a service that counts for
//! several proxies, and what it answers. Written and read by `global`.
//!
//! Fields that are not here are passed over when they come: a body (`raw_body`), metadata, and shares of a limit to be spent
//! without asking (`quota`).

use prost::Message;

use super::Policy;

/// The method.
pub const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// `RateLimitRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Which set of limits.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Those that are meant.
    #[prost(message, repeated, tag = "2")]
    pub descriptors: Vec<Descriptor>,
    /// For how many requests it counts.
    #[prost(uint32, tag = "3")]
    pub hits_addend: u32,
}

/// `RateLimitDescriptor`.
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    /// In their order.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<KeyValue>,
    /// In place of the request's.
    #[prost(message, optional, tag = "3")]
    pub hits_addend: Option<Value64>,
}

/// `RateLimitDescriptor.Entry`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// What is told apart.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Which of it.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `google.protobuf.UInt64Value`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Value64 {
    /// The number.
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

/// `google.protobuf.UInt32Value`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Value32 {
    /// The number.
    #[prost(uint32, tag = "1")]
    pub value: u32,
}

/// `RateLimitResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// What is decided: [`Self::OK`] or [`Self::OVER_LIMIT`].
    #[prost(int32, tag = "1")]
    pub overall_code: i32,
    /// Of each descriptor.
    #[prost(message, repeated, tag = "2")]
    pub statuses: Vec<DescriptorStatus>,
    /// `response_headers_to_add`.
    #[prost(message, repeated, tag = "3")]
    pub response_fields: Vec<Field>,
    /// `request_headers_to_add`.
    #[prost(message, repeated, tag = "4")]
    pub request_fields: Vec<Field>,
}

/// `RateLimitResponse.DescriptorStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct DescriptorStatus {
    /// As of the response.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What holds of it.
    #[prost(message, optional, tag = "2")]
    pub current_limit: Option<RateLimit>,
    /// How many there may be still.
    #[prost(uint32, tag = "3")]
    pub limit_remaining: u32,
    /// When there may be as many as ever.
    #[prost(message, optional, tag = "4")]
    pub duration_until_reset: Option<Duration>,
}

/// `RateLimitResponse.RateLimit`.
#[derive(Clone, PartialEq, Message)]
pub struct RateLimit {
    /// So many...
    #[prost(uint32, tag = "1")]
    pub requests_per_unit: u32,
    /// ...in one of these...
    #[prost(int32, tag = "2")]
    pub unit: i32,
    /// ...or in so many of them.
    #[prost(message, optional, tag = "4")]
    pub unit_multiplier: Option<Value32>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Duration {
    /// Whole ones.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// And so much of the next.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `envoy.config.core.v3.HeaderValue`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Field {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value, where that is text.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Its value else.
    #[prost(bytes = "vec", tag = "3")]
    pub raw_value: Vec<u8>,
}

impl Response {
    /// It may pass.
    pub const OK: i32 = 1;
    /// It may not.
    pub const OVER_LIMIT: i32 = 2;
}

impl DescriptorStatus {
    /// When one may come again: in so many seconds, at least one, where that is said.
    pub fn wait_seconds(&self) -> Option<u64> {
        let Duration { seconds, nanos } = self.duration_until_reset?;
        let whole = u64::try_from(seconds).ok()?;
        Some(whole.saturating_add(u64::from(nanos > 0)).max(1))
    }
}

impl RateLimit {
    /// What is told of it, where that can be said in seconds.
    pub fn policy(&self) -> Option<Policy> {
        let unit: u64 = match self.unit {
            1 => 1,
            2 => 60,
            3 => 3600,
            4 => 24 * 3600,
            // As long as they are at least: of months and years what the reference implementation takes.
            5 => 30 * 24 * 3600,
            6 => 365 * 24 * 3600,
            7 => 7 * 24 * 3600,
            _ => return None,
        };
        let units = self.unit_multiplier.map_or(1, |units| units.value.max(1));
        Some(Policy { quota: self.requests_per_unit, window_seconds: unit * u64::from(units) })
    }
}
