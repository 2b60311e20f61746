//! The immutable state that control gives to shards: built by `config::compile` (building may fail), applied by a
//! shard (applying may not). Ids are indices into the snapshot's own lists and mean nothing in another generation;
//! what must be carried over from one generation to the next (pools, averages) is found by name and address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::failure::{Cause, Failure};
use crate::http::h1::{self, Parsed};
use crate::http::{Framing, grpc};
use crate::quota::Quota;
use crate::quota::global::Global;
use crate::{authorize, identity, io, route, trace, upstream};

/// Everything that a shard needs to know to serve.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up by one with every snapshot published.
    pub generation: u64,
    /// Where to listen.
    pub listeners: Vec<Listener>,
    /// Which route a request takes. Shared by all snapshots of one configuration.
    pub routes: Arc<route::Table>,
    /// All services; `route::Route::service` is an index into this list.
    pub services: Vec<Arc<upstream::spec::Service>>,
    /// Indices of `services` in the order of their names: how a service is found again in the next snapshot.
    pub by_name: Vec<u32>,
    /// By the index in `services`: what is known of the health of their endpoints. Written by shards.
    pub health: Vec<Arc<upstream::health::Health>>,
    /// What a caller may take.
    pub limits: Limits,
    /// How long a caller may take.
    pub timeouts: Timeouts,
    /// What is added to and removed from messages.
    pub forwarding: Forwarding,
    /// Whether and how exchanges are logged; the destination is control's business.
    pub access_log: Option<AccessLogFormat>,
    /// Whether and how exchanges are traced; where spans go is control's business.
    pub tracing: Option<trace::Rules>,
    /// What this proxy presents to the mesh and whom it trusts; `None` without `[identity]`, and until there is one.
    pub identity: Option<Arc<identity::Credentials>>,
    /// Who may do what.
    pub authorization: Arc<authorize::Policy>,
    /// What `[[rate_limit]]` declares, with what was taken: `route::Route::quotas` has indices into this list.
    pub quotas: Arc<[Arc<Quota>]>,
    /// Those of them that are shared with other proxies: `route::Route::asks` has indices into this list.
    pub globals: Arc<[Arc<Global>]>,
    /// How HTTP/2 is spoken with callers.
    pub http2: Http2,
}

impl Snapshot {
    /// What `by_name` must be for these services.
    pub fn order_by_name(services: &[Arc<upstream::spec::Service>]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..u32::try_from(services.len()).unwrap_or(u32::MAX)).collect();
        order.sort_unstable_by(|a, b| services[*a as usize].name.cmp(&services[*b as usize].name));
        order
    }

    /// Keeps what is known of the health of endpoints that were in the snapshot before, whatever else has changed.
    pub fn keep_health(&mut self, before: &Self) {
        for (service, health) in self.services.iter().zip(&mut self.health) {
            if let Some(id) = before.service_named(&service.name) {
                let (was, known) = (&before.services[id as usize], &before.health[id as usize]);
                *health = upstream::health::Health::kept(known, &was.endpoints, &service.endpoints);
            }
        }
    }

    /// Puts in what is presented. Names that there are not (any more) are passed over.
    pub fn present(&mut self, presented: &Presented) {
        self.identity.clone_from(&presented.identity);
        for listener in &mut self.listeners {
            if let Some(termination) = presented.terminations.get(&listener.name) {
                listener.tls = ListenerTls::Terminate(termination.clone());
            }
        }
        for service in &mut self.services {
            if let Some(edge) = presented.edges.get(&service.name) {
                let tls = upstream::spec::Tls::Edge(edge.clone());
                *service =
                    Arc::new(upstream::spec::Service { tls, ..upstream::spec::Service::clone(service) });
            }
        }
    }

    /// Whether the listener of that name translates gRPC-Web.
    pub fn translates_grpc_web(&self, listener: &str) -> bool {
        self.listeners.iter().any(|known| known.grpc_web && *known.name == *listener)
    }

    /// Whether a request with that content type that comes by this listener goes on as a call of gRPC: gRPC-Web does where it is
    /// translated.
    pub fn is_grpc(&self, listener: &str, content_type: &[u8]) -> bool {
        match grpc::Dialect::of(content_type) {
            Some(grpc::Dialect::Native) => true,
            Some(grpc::Dialect::Web(_)) => self.translates_grpc_web(listener),
            None => false,
        }
    }

    /// How long such a call may take, by its `grpc-timeout`; `None` for what it cannot say.
    pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
        grpc::timeout(value)
    }

    /// The status by which a call of gRPC is told of a failure.
    pub fn grpc_status(failure: Failure) -> u8 {
        grpc::code_of(failure) as u8
    }

    /// What shards would understand of a head that came by HTTP/1.1.
    ///
    /// # Errors
    /// Why they would refuse it.
    pub fn understand(&self, head: &[u8]) -> Result<Understood, Cause> {
        let words = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        let read =
            h1::read_request(head, &self.limits, self.forwarding.via.as_deref(), |request| Understood {
                target: words(request.target.as_bytes()),
                path: request.path().map(str::to_owned),
                query: request.query().to_owned(),
                authority: request.authority.map(words),
                host: request.host().map(words),
                connect: request.is_connect(),
                websocket: matches!(request.upgrade, h1::Upgrade::WebSocket(_)),
                ends_here: request.method_name == "OPTIONS" && request.max_forwards == Some(0),
                is_too_large: matches!(request.framing, Framing::Length(n)
                if self.limits.body_bytes_max > 0 && n > self.limits.body_bytes_max),
            });
        match read {
            Parsed::Whole(understood) => Ok(understood),
            Parsed::Refused(cause) => Err(cause),
            Parsed::Partial => Err(Cause::BadStartLine),
        }
    }

    /// The index of the service of that name.
    pub fn service_named(&self, name: &str) -> Option<u32> {
        let at = self.by_name.binary_search_by(|id| (*self.services[*id as usize].name).cmp(name)).ok()?;
        Some(self.by_name[at])
    }
}

/// What is understood of a head. Control asks for it about requests that need not exist; shards keep no such thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    /// As it came.
    pub target: String,
    /// Without query; `None` for `*` and for CONNECT.
    pub path: Option<String>,
    /// What stands behind the question mark.
    pub query: String,
    /// Host and port.
    pub authority: Option<String>,
    /// Host without port.
    pub host: Option<String>,
    /// Whether it is a CONNECT.
    pub connect: bool,
    /// Whether it is the handshake of a WebSocket.
    pub websocket: bool,
    /// Whether it may not go further (OPTIONS with Max-Forwards: 0).
    pub ends_here: bool,
    /// Whether it announces a body beyond the limit.
    pub is_too_large: bool,
}

/// What control has of certificates at a moment: it changes more often than the configuration, and apart from it.
#[derive(Debug, Clone, Default)]
pub struct Presented {
    /// To the mesh.
    pub identity: Option<Arc<identity::Credentials>>,
    /// To callers from outside, by listener as it is configured.
    pub terminations: BTreeMap<Arc<str>, Termination>,
    /// Whom services outside are verified by, by service.
    pub edges: BTreeMap<Arc<str>, upstream::spec::EdgeTls>,
}

/// One address to accept on. Each shard has a socket of its own for it (SO_REUSEPORT).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name in log and metrics.
    pub name: Arc<str>,
    /// Where it is bound. Port 0 asks the kernel for one (tests).
    pub address: SocketAddr,
    /// Whether callers come encrypted. Looked up by name when a connection is accepted, so that it can change without
    /// the socket.
    pub tls: ListenerTls,
    /// Whether gRPC-Web is translated for services that speak HTTP/2; looked up in the same way.
    pub grpc_web: bool,
}

/// Whether callers of a listener come encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListenerTls {
    /// Plain text only.
    #[default]
    Off,
    /// Plain text and mTLS, told apart by the first octet.
    Permissive,
    /// mTLS only.
    Strict,
    /// TLS with a certificate of the operator's, for edges; callers need none.
    Terminate(Termination),
}

/// TLS at an edge.
#[derive(Clone)]
pub struct Termination {
    /// Certificate, key, versions, ALPN.
    pub server: Arc<rustls::ServerConfig>,
    /// The certificate itself: which hosts it is for.
    pub leaf: Arc<CertificateDer<'static>>,
    /// What tells two of them apart: a hash of all that went in.
    pub digest: [u8; 32],
}

impl Termination {
    /// What is shown to callers. Which name they ask for is noted: a connection is for that host, and those of `leaf`.
    pub fn new(
        mut server: rustls::ServerConfig,
        leaf: Arc<CertificateDer<'static>>,
        digest: [u8; 32],
    ) -> Self {
        server.cert_resolver = Arc::new(io::sni::Noted(server.cert_resolver));
        Self { server: Arc::new(server), leaf, digest }
    }
}

impl PartialEq for Termination {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Termination {}

impl std::fmt::Debug for Termination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Termination")
    }
}

/// How HTTP/2 is spoken with callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// Exchanges at a time on one connection.
    pub streams_max: u32,
    /// Octets of request body on the way per stream.
    pub stream_window: u32,
    /// Octets of request body on the way per connection.
    pub connection_window: u32,
    /// A ping after this long without a frame; zero for none.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_timeout: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            streams_max: 100,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
        }
    }
}

/// Ceilings on what one peer may take. All are inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head (request or response line and all fields). At most [`Limits::HEAD_CEILING`].
    pub head_bytes_max: u32,
    /// Bytes of a request target.
    pub target_bytes_max: u32,
    /// Which paths are taken.
    pub paths: Paths,
    /// Fields in a head, and fields in a trailer section. At most [`Limits::FIELDS_CEILING`].
    pub fields_max: u16,
    /// Bytes of a request body; 0 for no limit.
    pub body_bytes_max: u64,
    /// Open downstream connections exactly, of the whole proxy.
    pub connections_max: u32,
    /// Interim (1xx) responses before the final one.
    pub interim_responses_max: u16,
    /// TLS handshakes with callers in progress at a time, exactly, of the whole proxy.
    pub handshakes_max: u32,
    /// Copies of requests in progress at a time, exactly, of the whole proxy.
    pub mirrored_max: u32,
    /// Bytes of a request's body that are kept for its copies; a longer one is not copied.
    pub mirrored_body_bytes_max: u32,
    /// Exchanges to which something is done on purpose at a time, exactly, of the whole proxy.
    pub faults_max: u32,
}

impl Limits {
    /// The largest head that any configuration may allow: what a large buffer takes, because a head is read into one.
    pub const HEAD_CEILING: u32 = 128 * 1024;
    /// The most fields that any configuration may allow: the size of the table that a head is split into.
    pub const FIELDS_CEILING: u16 = 256;
}

/// Which paths are taken of callers. What is taken goes on as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paths {
    /// All that may stand in a target.
    #[default]
    Any,
    /// None that a server might leave a directory by ([`authorize::has_dot_segment`]).
    NoDotSegments,
    /// None that servers understand differently ([`authorize::ambiguity`]).
    OneMeaning,
}

impl Paths {
    /// Whether this one (without query) is taken.
    pub fn take(self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::NoDotSegments => !authorize::has_dot_segment(path),
            Self::OneMeaning => authorize::ambiguity(path).is_none(),
        }
    }
}

/// How long each wait on a caller may last. A service has its own for its side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request head to its last.
    pub head: Duration,
    /// Between two requests on a connection, and before the first.
    pub idle: Duration,
    /// Between two reads of a request body, or two writes of a response body: a peer that makes no progress at all.
    pub body_stall: Duration,
    /// How long an exchange may go on without an octet moving on either side; `None` for ever.
    pub stream_idle: Option<Duration>,
    /// From SIGTERM to the end of what is in flight.
    pub drain: Duration,
    /// For a TLS handshake.
    pub handshake: Duration,
}

/// What the proxy adds to and removes from the messages that it passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// The pseudonym in `Via` and in loop detection; `None` adds no `Via` (and detects no loops).
    pub via: Option<Arc<str>>,
    /// What becomes of `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host` from the caller.
    pub forwarded: ForwardedFields,
    /// Whether answers made by the proxy say in `x-ringmesh-failure` which hop failed and why.
    pub failure_header: bool,
}

/// What becomes of the caller's `X-Forwarded-*` fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedFields {
    /// Passed on as they are; nothing is added.
    Keep,
    /// The caller's address is appended to `X-Forwarded-For`; `X-Forwarded-Proto` and `X-Forwarded-Host` (host and port
    /// that the request is for) are set if missing.
    Append,
    /// What the caller sent is removed (also `Forwarded`), then the three are set anew: for edges.
    Replace,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object per line.
    Json,
    /// One line of words, for eyes.
    Text,
}
