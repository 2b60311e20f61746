//! Messages of OpenTelemetry's protocol beside the spans themselves (opentelemetry/proto/collector/trace/v1/trace_service.proto), and
//! what gRPC adds to a failure (google/rpc). What is sent is wrapped around spans that are written already.

use prost::encoding::encode_varint;

use super::Target;

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) partial: Option<Partial>,
}

/// `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Partial {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) words: String,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Status {
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RetryDetail {
    #[prost(message, optional, tag = "1")]
    pub(super) delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Delay {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// The name that `Any` has for [`RetryDetail`].
pub(super) const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// What tells this process from others of the same service: a UUID of version 4 (RFC 9562 §5.4), one for each start.
pub(super) fn instance() -> String {
    let id = (fastrand::u128(..) & !(0xf000 << 64) & !(0xc << 60)) | (4 << 76) | (0x8 << 60);
    let hex = format!("{id:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `ExportTraceServiceRequest` of one resource and one scope, with these spans.
pub(super) fn request(target: &Target, instance: &str, spans: &[u8]) -> Vec<u8> {
    let mut resource = Vec::new();
    let own = [("service.name", &*target.service_name), ("service.instance.id", instance)];
    let given = target.tracing.attributes.iter().map(|(name, value)| (&**name, &**value));
    // What is given holds, also where it is what would be told anyway.
    let own =
        own.into_iter().filter(|(name, _)| !target.tracing.attributes.iter().any(|(n, _)| **n == **name));
    for (name, value) in own.chain(given) {
        let mut text = Vec::new();
        field(1, value.as_bytes(), &mut text);
        let mut pair = Vec::new();
        field(1, name.as_bytes(), &mut pair);
        field(2, &text, &mut pair);
        field(1, &pair, &mut resource);
    }
    let mut scope = Vec::new();
    field(1, b"ringmesh", &mut scope);
    field(2, env!("CARGO_PKG_VERSION").as_bytes(), &mut scope);
    let mut of_scope = Vec::with_capacity(spans.len() + scope.len() + 16);
    field(1, &scope, &mut of_scope);
    of_scope.extend_from_slice(spans);
    let mut of_resource = Vec::with_capacity(of_scope.len() + resource.len() + 16);
    field(1, &resource, &mut of_resource);
    field(2, &of_scope, &mut of_resource);
    let mut request = Vec::with_capacity(of_resource.len() + 16);
    field(1, &of_resource, &mut request);
    request
}

/// A field of octets: a text or a message.
fn field(number: u64, octets: &[u8], out: &mut Vec<u8>) {
    encode_varint(number << 3 | 2, out);
    encode_varint(octets.len() as u64, out);
    out.extend_from_slice(octets);
}
