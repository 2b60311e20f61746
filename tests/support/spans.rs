//! Spans: those that a shard has left for control, and a collector that is not ours (OpenTelemetry's own types and tonic's server).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span as Proto};
use prost::Message;
use ringmesh::shard::link::Link;
use tonic::{Request, Response, Status};

use super::Watched;

/// A span, as tests look at it.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty where it is the first of its trace.
    pub parent: String,
    pub name: String,
    /// `server` or `client`.
    pub kind: &'static str,
    pub is_error: bool,
    pub state: String,
    pub flags: u32,
    pub nanos: (u64, u64),
    pub attributes: BTreeMap<String, String>,
}

impl Span {
    /// The value of an attribute; empty where there is none.
    pub fn of(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", |value| value)
    }

    /// What a service is sent when this span calls it.
    pub fn traceparent(&self, flags: &str) -> String {
        format!("00-{}-{}-{flags}", self.trace, self.id)
    }
}

impl From<&Proto> for Span {
    fn from(span: &Proto) -> Self {
        let hex = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8), "{span:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        Self {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name.clone(),
            kind: match span.kind {
                2 => "server",
                3 => "client",
                other => panic!("kind {other}"),
            },
            is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
            state: span.trace_state.clone(),
            flags: span.flags,
            nanos: (span.start_time_unix_nano, span.end_time_unix_nano),
            attributes: attributes(&span.attributes),
        }
    }
}

/// Attributes as text; none may stand twice.
fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for pair in pairs {
        let value = match pair.value.clone().unwrap().value.unwrap() {
            Value::StringValue(value) => value,
            Value::IntValue(value) => value.to_string(),
            Value::BoolValue(value) => value.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(all.insert(pair.key.clone(), value).is_none(), "{} stands twice", pair.key);
    }
    all
}

/// The spans that a shard which has ended has left, in the order in which they ended.
pub fn left(link: &Arc<Link>) -> Vec<Span> {
    let mut all = Vec::new();
    while let Some(chunk) = link.spans.pop() {
        let read = ScopeSpans::decode(&*chunk.octets).unwrap();
        assert_eq!(read.spans.len(), chunk.spans as usize);
        all.extend(read.spans.iter().map(Span::from));
    }
    all
}

/// The only one of a kind.
#[track_caller]
pub fn only<'s>(spans: &'s [Span], kind: &str) -> &'s Span {
    let of_kind: Vec<&Span> = spans.iter().filter(|span| span.kind == kind).collect();
    assert_eq!(of_kind.len(), 1, "{spans:#?}");
    of_kind[0]
}

/// What a collector has got.
#[derive(Default)]
pub struct Got {
    pub spans: Vec<Span>,
    /// Of the resource of the last request.
    pub resource: BTreeMap<String, String>,
    /// Requests, those that were refused included.
    pub requests: usize,
    /// Metadata of the last request.
    pub metadata: BTreeMap<String, String>,
}

impl Got {
    fn take(&mut self, request: &ExportTraceServiceRequest) {
        for of_resource in &request.resource_spans {
            self.resource = attributes(&of_resource.resource.as_ref().unwrap().attributes);
            for of_scope in &of_resource.scope_spans {
                assert_eq!(of_scope.scope.as_ref().unwrap().name, "ringmesh");
                self.spans.extend(of_scope.spans.iter().map(Span::from));
            }
        }
    }
}

/// What becomes of request number n.
type Answer = dyn Fn(usize) -> Result<ExportTraceServiceResponse, Status> + Send + Sync;

/// A collector by gRPC.
pub struct Collector {
    pub address: SocketAddr,
    pub got: Arc<Watched<Got>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Receiver {
    got: Arc<Watched<Got>>,
    answer: Arc<Answer>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let n = self.got.change(|got| {
            got.requests += 1;
            got.requests - 1
        });
        let answer = (self.answer)(n)?;
        self.got.change(|got| {
            got.metadata = request
                .metadata()
                .clone()
                .into_headers()
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
                .collect();
            got.take(request.get_ref());
        });
        Ok(Response::new(answer))
    }
}

impl Collector {
    /// One that takes everything.
    pub fn plain() -> Self {
        Self::answering(|_| Ok(ExportTraceServiceResponse::default()))
    }

    /// One that does to request number n what is given.
    pub fn answering(
        answer: impl Fn(usize) -> Result<ExportTraceServiceResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, answer)
    }

    /// The same on a socket that listens already.
    pub fn on(
        listener: std::net::TcpListener,
        answer: impl Fn(usize) -> Result<ExportTraceServiceResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let got = Arc::<Watched<Got>>::default();
        let receiver = Receiver { got: Arc::clone(&got), answer: Arc::new(answer) };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder()
                    .add_service(TraceServiceServer::new(receiver))
                    .serve_with_incoming(incoming);
                tokio::select! { _ = server => {}, _ = stopped => {} }
            });
        });
        Self { address, got, stop: Some(stop), thread: Some(thread) }
    }

    /// Waits until so many spans are there.
    pub fn wait_spans(&self, count: usize) -> Vec<Span> {
        self.got.wait("spans", |got| (got.spans.len() >= count).then(|| got.spans.clone()))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            let _ = thread.join();
        }
    }
}

/// Reads the body of a request of OTLP over HTTP.
pub fn read_http(body: &[u8]) -> Got {
    let mut got = Got::default();
    got.take(&ExportTraceServiceRequest::decode(body).unwrap());
    got
}
