//! Who is calling: accepted connections, and the requests that come on them.

pub mod listener;
pub mod turn;

use std::cell::Cell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use monoio::net::TcpStream;
use rustls::pki_types::CertificateDer;

use crate::authorize::{self, Call, Caller, Decision, Fields, Verdict};
use crate::failure::{Cause, Failure, Stage};
use crate::http::client_cert::ClientCert;
use crate::http::h1::{self, Parsed, Target};
use crate::http::websocket::Accept;
use crate::http::{Framing, Method, Version};
use crate::identity::verify::is_for_host;
use crate::identity::{self, ALPN_MESH, ALPN_MESH_WITHOUT_LANES};
use crate::io::timed::OnDeadline;
use crate::io::tls::Tls;
use crate::io::{Connection, Fault, Waited};
use crate::quota::{self, global};
use crate::route::split::Chosen;
use crate::route::text::Seen;
use crate::route::{self, Route};
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::clock::ns;
use crate::shard::live::{AskAgain, Kind, Open, With};
use crate::shard::{Shard, View};
use crate::snapshot::Limits;
use crate::upstream::affinity::{Affinity, HashRule, affinity};
use turn::Turn;

/// A caller's connection. Between two requests it holds no buffer once it has been quiet for a moment.
pub struct Downstream {
    /// The socket.
    pub connection: Connection,
    /// What was read and not yet used up: from the front the head of the present request, which stays until the
    /// exchange has ended (the log shows parts of it).
    pub input: Buffer,
    /// The caller's address.
    pub peer: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// The port of that listener.
    pub port: u16,
    /// Who the caller is, where its certificate was verified.
    pub identity: Option<Rc<identity::Peer>>,
    /// What the endpoint of the present request is chosen by, with services that hash; until its exchange takes it.
    pub affinity: Cell<Option<Box<Affinity>>>,
}

/// For which hosts a connection to an edge was made: RFC 9110 §15.5.20 has a gateway refuse others, because it speaks for
/// the origin. A caller that named none (by SNI) is not held to any.
#[derive(Clone)]
pub struct Edge<N> {
    /// What the caller asked for, in lower case as DNS has it.
    sni: N,
    /// The certificate that it was shown: it may use the connection for all hosts of it (RFC 9113 §9.1.1).
    leaf: Arc<CertificateDer<'static>>,
}

impl<'c> Edge<&'c str> {
    /// That of a connection, where there is one.
    pub fn of(connection: &'c Connection) -> Option<Self> {
        let tls = connection.tls()?;
        Some(Self { sni: tls.sni()?, leaf: Arc::clone(tls.shown()?) })
    }

    /// The same, to keep.
    pub fn kept(self) -> Edge<Box<str>> {
        Edge { sni: self.sni.into(), leaf: self.leaf }
    }
}

impl<N: AsRef<str>> Edge<N> {
    /// Whether a request for this host is for this connection.
    ///
    /// # Errors
    /// `Misdirected` when it is not.
    pub fn check(edge: Option<&Self>, host: Option<&[u8]>) -> Result<(), Cause> {
        let (Some(edge), Some(host)) = (edge, host) else { return Ok(()) };
        let host = host.strip_suffix(b".").unwrap_or(host);
        let is_asked_for = host.eq_ignore_ascii_case(edge.sni.as_ref().as_bytes())
            || std::str::from_utf8(host).is_ok_and(|host| is_for_host(&edge.leaf, host));
        if is_asked_for { Ok(()) } else { Err(Cause::Misdirected) }
    }
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 (or 1.0): what is spoken where nothing else was agreed on.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2 between two ringmeshes.
    Mesh {
        /// Whether both know lanes.
        lanes: bool,
    },
}

impl Protocol {
    /// What was agreed on by ALPN.
    pub fn of(connection: &Connection) -> Self {
        match connection.tls().and_then(Tls::alpn) {
            Some(ALPN_MESH) => Self::Mesh { lanes: true },
            Some(ALPN_MESH_WITHOUT_LANES) => Self::Mesh { lanes: false },
            Some(b"h2") => Self::Http2,
            // Nothing is agreed on that a configuration does not offer.
            Some(_) | None => Self::Http1,
        }
    }
}

/// What came next on a connection.
pub enum Next {
    /// A request, and the head to be sent upstream.
    Request(Asked),
    /// Bytes that cannot be served, since when, and how long of that the caller was waited for (µs).
    Refused(Failure, u64, u32),
    /// The preface of HTTP/2, which lies in the input: the connection speaks that from now on.
    Http2,
    /// Nothing: the caller has closed, or was idle for too long.
    Nothing,
}

/// A request whose head was understood. The head itself stays at the front of [`Downstream::input`].
pub struct Asked {
    /// The state of the configuration that the request is served by.
    pub view: Rc<View>,
    /// When its first byte was here.
    pub started: u64,
    /// How long the caller was waited for since then, until the head was whole, µs. Fits where a `u64` would not.
    pub head_waited_us: u32,
    /// Bytes of the head in the input.
    pub head_len: usize,
    /// The head for the next hop, with room for a short body; empty when there is no route.
    pub head: Buffer,
    /// Index of its route.
    pub route: Index,
    /// Index of the service that it goes to.
    pub service: Index,
    /// What its route makes of it, where that is more than to send it on.
    pub turn: Option<Box<Turn>>,
    /// What matters of the method.
    pub method: Method,
    /// The version that it came with.
    pub version: Version,
    /// How its body ends.
    pub framing: Framing,
    /// Trailers that concern this hop only.
    nominated_trailers: Option<Box<Nominated>>,
    /// Whether the caller lets the connection live.
    pub keep_alive: bool,
    /// Whether it may be served, and which rules say so.
    pub decision: Decision,
    /// The tunnel that it would like the connection to become. Boxed: few requests ask for one.
    pub tunnel: Option<Box<Tunnel>>,
    /// Whether any field of it may have a name that begins with `x-envoy-`.
    pub may_have_envoys: bool,
    /// Whether it may not go further (OPTIONS with Max-Forwards: 0).
    pub answer_here: bool,
    /// Where the log finds what it shows.
    pub places: Places,
}

/// Names of trailers. Boxed where they are, because the future of every connection has room for them.
struct Nominated(Vec<Box<str>>);
/// An index, or none, in four bytes: the future of every connection has room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index(u32);

impl Index {
    /// The index.
    pub fn id(self) -> Option<u32> {
        (self.0 != u32::MAX).then_some(self.0)
    }
}

impl From<Option<u32>> for Index {
    /// There are far fewer routes and services than 32 bits can count.
    fn from(id: Option<u32>) -> Self {
        Self(id.unwrap_or(u32::MAX))
    }
}

/// What a connection may be asked to become.
#[derive(Debug)]
pub enum Tunnel {
    /// A WebSocket, if the service answers the handshake with this.
    WebSocket(Accept),
    /// A tunnel to the service of the route (CONNECT).
    Connect,
}

impl Asked {
    /// Names of trailers that concern this hop only.
    pub fn nominated_trailers(&self) -> Vec<Box<str>> {
        self.nominated_trailers.as_ref().map_or_else(Vec::new, |names| names.0.clone())
    }

    /// Whether it is a CONNECT.
    pub fn is_connect(&self) -> bool {
        matches!(self.tunnel.as_deref(), Some(Tunnel::Connect))
    }

    /// Whether the body is known to be larger than the limit.
    pub fn is_too_large(&self) -> bool {
        let limit = self.view.snapshot.limits.body_bytes_max;
        matches!(self.framing, Framing::Length(n) if limit > 0 && n > limit)
    }
}

/// What a connection begins with (RFC 9113 §3.4).
enum Preface {
    Whole,
    Partial,
    Other,
}

impl Preface {
    fn of(input: &[u8]) -> Self {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let common = input.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
        match common {
            _ if common == PREFACE.len() => Self::Whole,
            _ if common >= b"PRI".len() && common == input.len() => Self::Partial,
            _ => Self::Other,
        }
    }
}

/// Where parts of a head lie in the input.
pub struct Places {
    /// The method.
    pub method: Range<u32>,
    /// The target.
    pub target: Range<u32>,
    /// Host and port.
    pub host: Range<u32>,
}

impl Places {
    /// Where the method lies.
    pub fn method(&self) -> Range<usize> {
        self.method.start as usize..self.method.end as usize
    }
}

impl Downstream {
    /// How long a quiet connection holds its buffer: busy connections never give theirs back.
    pub const HOLD_NS: u64 = 1_000_000_000;

    /// Takes an accepted connection.
    pub fn new(shard: &Shard, stream: TcpStream, peer: SocketAddr, listener: Arc<str>, port: u16) -> Self {
        let connection = Connection::accepted(stream, &shard.deadlines);
        let (input, affinity) = (Buffer::default(), Cell::default());
        Self { connection, input, peer, listener, port, identity: None, affinity }
    }

    /// Who calls, as rules see it.
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            listener: &self.listener,
            port: self.port,
            source: self.peer.ip(),
            peer: self.identity.as_ref().map(|peer| &peer.id),
        }
    }

    /// As one of the connections that end when they are not allowed any more, of that kind.
    pub fn as_open(&self, kind: Kind) -> Open {
        Open {
            peer: self.identity.clone(),
            with: With::Caller {
                source: self.peer.ip(),
                listener: Arc::clone(&self.listener),
                port: self.port,
                encrypted: self.connection.is_encrypted(),
            },
            kind,
        }
    }

    /// Waits for the next request head; for the `first` one, it may turn out that HTTP/2 is spoken.
    pub async fn next(&mut self, shard: &Rc<Shard>, first: bool) -> Next {
        let idle = match self.connection.is_lane() {
            false => shard.view().snapshot.timeouts.idle,
            // It ends with what carries it, or when the peer has no more use for it: who ended it could do so just when it is used.
            true => Duration::MAX,
        };
        if self.input.is_empty() && !self.first_bytes(shard, idle).await {
            return Next::Nothing;
        }
        let started = shard.clock.now();
        let (mut parsed_len, mut waited_us) = (0, 0);
        if first {
            // The two have `P` in common with POST and its like, not more.
            loop {
                match Preface::of(&self.input) {
                    Preface::Whole => return Next::Http2,
                    Preface::Other => break,
                    Preface::Partial => {
                        if let Err(failure) = self.more_head(shard, started, &mut waited_us).await {
                            return Next::Refused(failure, started, waited_us);
                        }
                    }
                }
            }
        }
        loop {
            // A head that comes in pieces is parsed again when its end is there or it has doubled, not at each piece.
            if parsed_len == 0
                || self.input.len() >= 2 * parsed_len
                || h1::head_end(&self.input, parsed_len).is_some()
            {
                match self.read_head(shard, started, waited_us) {
                    Parsed::Whole(Ok(asked)) => return Next::Request(asked),
                    Parsed::Whole(Err(failure)) => return Next::Refused(failure, started, waited_us),
                    Parsed::Refused(cause) => {
                        return Next::Refused(Failure::downstream(Stage::Head, cause), started, waited_us);
                    }
                    Parsed::Partial => parsed_len = self.input.len(),
                }
            }
            if let Err(failure) = self.more_head(shard, started, &mut waited_us).await {
                return match failure.cause {
                    // Only the empty line that may precede a request: the caller has closed between two requests.
                    Cause::Closed if self.input.iter().all(u8::is_ascii_whitespace) => Next::Nothing,
                    _ => Next::Refused(failure, started, waited_us),
                };
            }
        }
    }

    /// What is left behind the present request becomes the front.
    pub fn used_up(&mut self, shard: &Shard, len: usize) {
        if len >= self.input.len() {
            self.input.clear();
        } else {
            self.input.drain(..len);
        }
        if self.input.is_empty() && self.input.capacity() > Buffers::SMALL {
            shard.buffers.give(std::mem::take(&mut self.input));
        }
    }

    /// Ends the connection in such a way that the caller gets the response although it may still be sending: says that
    /// nothing more comes, and takes in what does for a while (RFC 9112 §9.6).
    pub async fn linger(&mut self, shard: &Shard) {
        const LINGER_NS: u64 = 2_000_000_000;
        const LINGER_BYTES: usize = 64 * 1024 * 1024;
        self.connection.writer.finish();
        let deadline = shard.clock.now() + LINGER_NS;
        let mut bytes = 0;
        if self.input.capacity() == 0 {
            let Some(taken) = shard.buffers.take_small() else { return };
            self.input = taken;
        }
        loop {
            self.input.clear();
            let reader = &mut self.connection.reader;
            match reader.read(&mut self.input, 0, deadline, OnDeadline::Shutdown).await {
                Ok(n) if n > 0 && bytes < LINGER_BYTES => bytes += n,
                Ok(_) | Err(_) => break,
            }
        }
    }

    /// Waits for so long, at the end without a buffer, for anything to come; `false` when the connection is over.
    pub async fn first_bytes(&mut self, shard: &Shard, idle: Duration) -> bool {
        let deadline = shard.clock.after(idle);
        if self.connection.is_lane()
            && self.connection.reader.lane_readable(&shard.clock, deadline).await.is_err()
        {
            return false;
        }
        loop {
            let mut expected = None;
            if self.input.capacity() == 0 {
                // Without memory for a head this connection cannot be served.
                let Some(taken) = shard.buffers.take_small() else { return false };
                self.input = taken;
                expected = Some(shard.expect_head());
            }
            let hold_until = deadline.min(shard.clock.now() + Self::HOLD_NS);
            let reader = &mut self.connection.reader;
            let waited = reader.read_or_quiet(&mut self.input, hold_until).await;
            drop(expected);
            match waited {
                Ok(Waited::Bytes(_)) => return true,
                Ok(Waited::Closed) | Err(_) => return false,
                Ok(Waited::Quiet) => {
                    shard.buffers.give(std::mem::take(&mut self.input));
                    if shard.clock.now() >= deadline || reader.readable(&shard.clock, deadline).await.is_err()
                    {
                        return false;
                    }
                    if !shard.rouses() {
                        return false;
                    }
                }
            }
        }
    }

    /// Reads more of a head, and adds to `waited_us` how long the caller was waited for.
    async fn more_head(&mut self, shard: &Shard, started: u64, waited_us: &mut u32) -> Result<(), Failure> {
        if self.input.len() == self.input.capacity() {
            if self.input.capacity() >= Buffers::LARGE {
                // Full, and no end in sight: more than the largest limit that can be configured.
                return Err(Failure::downstream(Stage::Head, Cause::HeadTooLarge));
            }
            let Some(mut large) = shard.buffers.take_large() else {
                return Err(Failure::local(Stage::Head, Cause::Overloaded));
            };
            large.extend_from_slice(&self.input);
            shard.buffers.give(std::mem::replace(&mut self.input, large));
        }
        let deadline = started.saturating_add(ns(shard.view().snapshot.timeouts.head));
        let waits_since = shard.clock.now();
        let reader = &mut self.connection.reader;
        let read = reader.read(&mut self.input, 0, deadline, OnDeadline::ShutdownRead).await;
        let waited_ns = shard.clock.now() - waits_since;
        *waited_us = u32::try_from(waited_ns / 1000).map_or(u32::MAX, |us| us.saturating_add(*waited_us));
        let cause = match read {
            Ok(0) => Cause::Closed,
            Ok(_) => return Ok(()),
            Err(Fault::Timeout) => Cause::Timeout,
            Err(_) => Cause::Reset,
        };
        Err(Failure::downstream(Stage::Head, cause))
    }

    /// Reads the head, finds its route, decides whether it may go there, and writes the head to be sent upstream: all that
    /// needs the head's parts, in one step without a wait.
    fn read_head(
        &self,
        shard: &Rc<Shard>,
        started: u64,
        head_waited_us: u32,
    ) -> Parsed<Result<Asked, Failure>> {
        let view: Rc<View> = shard.view();
        let snapshot = &view.snapshot;
        let via = snapshot.forwarding.via.as_deref();
        h1::read_request(&self.input, &snapshot.limits, via, |request| {
            let refused = |cause| Failure::downstream(Stage::Head, cause);
            let host = request.host();
            Edge::check(Edge::of(&self.connection).as_ref(), host).map_err(refused)?;
            let call = call(self.caller(), request);
            let id = snapshot.routes.find_id(&route::Request {
                host,
                path: request.path().unwrap_or("/").as_bytes(),
                query: request.query().as_bytes(),
                call: &call,
            });
            let route = id.and_then(|id| snapshot.routes.route(id));
            let is_preflight = route.is_some_and(|route| route.answers_preflight(&call));
            let decision = match is_preflight {
                true => Decision::default(),
                false => self.authorize(shard, &snapshot.authorization, &call),
            };
            let chosen = route.and_then(|route| route.choose(&call, || shard.rng(|rng| rng.u64(..))));
            let allowed = decision.verdict == Verdict::Allow;
            let mut turn = match route
                .filter(|route| !route.is_plain_to(request) && (allowed || route.has_cors()))
            {
                Some(route) => self.turn(shard, &view, (route, allowed), chosen.as_ref(), &call, request)?,
                None => None,
            };
            let goes_on = allowed && !turn.as_ref().is_some_and(|turn| turn.is_answer());
            let mut head = Buffer::default();
            let too_soon = match route {
                Some(Route { quotas: Some(of), name, .. }) if allowed && !is_preflight => {
                    quota::charge(&snapshot.quotas, of, name, &call, shard.clock.common())
                }
                _ => None,
            };
            let goes_on = goes_on && too_soon.is_none();
            if let Some(Route { asks: Some(asks), name, .. }) = route
                && allowed
                && !is_preflight
                && too_soon.is_none()
            {
                Turn::note_questions(&mut turn, global::plan(&snapshot.globals, asks, name, &call));
            }
            Turn::note_quota(&mut turn, too_soon);
            if let Some(chosen) = chosen.filter(|_| goes_on) {
                let by = snapshot.identity.as_ref().map(|credentials| &credentials.id);
                let client_cert = self.identity.as_ref().map(|peer| ClientCert { by, peer });
                // Room for what is added to the head, and for a short body behind it.
                let needed = request.head_len
                    + request.authority.map_or(0, <[u8]>::len)
                    + client_cert.map_or(0, |client_cert| client_cert.value_len())
                    + turn.as_ref().map_or(0, |turn| turn.request_bytes())
                    + 1024;
                head = if needed <= Buffers::SMALL {
                    shard.buffers.take_small()
                } else {
                    shard.buffers.take_large()
                }
                .ok_or(Failure::local(Stage::Head, Cause::Overloaded))?;
                let forwarding = h1::Forwarding {
                    via,
                    forwarded: snapshot.forwarding.forwarded,
                    peer: self.peer,
                    encrypted: self.connection.is_encrypted(),
                    default_host: &snapshot.services[chosen.service as usize].name,
                    client_cert,
                };
                request.write_head(&forwarding, &mut head);
                if let Some(turn) = &turn {
                    turn.apply_to_request(&mut head);
                    if head.len() > Buffers::LARGE {
                        shard.buffers.give(head);
                        return Err(Failure::downstream(Stage::Head, Cause::HeadTooLarge));
                    }
                }
                let rules = snapshot.services[chosen.service as usize].hash_rules();
                if chosen.subset != 0 || !rules.is_empty() {
                    self.want(shard, chosen.subset, rules, (&call, request));
                }
            }
            Ok(Asked {
                view: Rc::clone(&view),
                started,
                head_waited_us,
                head_len: request.head_len,
                head,
                route: id.into(),
                service: chosen.map(|chosen| chosen.service).into(),
                turn,
                method: request.method,
                version: request.version,
                framing: request.framing,
                nominated_trailers: Some(request.nominated_trailers())
                    .filter(|names| !names.is_empty())
                    .map(|names| Box::new(Nominated(names))),
                keep_alive: request.keep_alive
                    && self.connection.tls().is_none_or(|tls| started < tls.leave_at()),
                decision,
                tunnel: match request.upgrade {
                    _ if request.is_connect() => Some(Box::new(Tunnel::Connect)),
                    h1::Upgrade::WebSocket(accept) => Some(Box::new(Tunnel::WebSocket(accept))),
                    h1::Upgrade::No | h1::Upgrade::Ignorable => None,
                },
                may_have_envoys: request.may_have_envoys,
                answer_here: request.method_name == "OPTIONS" && request.max_forwards == Some(0),
                places: Places {
                    method: request.place(request.method_name.as_bytes()),
                    target: request.place(request.target.as_bytes()),
                    host: request.authority.map_or(0..0, |a| request.place(a)),
                },
            })
        })
    }

    /// Notes what the endpoint of a request is chosen by.
    fn want(
        &self,
        shard: &Shard,
        subset: u16,
        rules: &[HashRule],
        (call, request): (&Call<'_, h1::Request<'_>>, &h1::Request<'_>),
    ) {
        let query = request.query().as_bytes();
        let encrypted = self.connection.is_encrypted();
        let found = affinity(rules, call, query, encrypted, || shard.rng(|rng| rng.u64(..)));
        // The one that the last exchange left, or the connection's first.
        let mut wanted = self.affinity.take().unwrap_or_default();
        *wanted = Affinity { subset, ..found };
        self.affinity.set(Some(wanted));
    }

    /// What a route that is not plain makes of a request.
    fn turn(
        &self,
        shard: &Rc<Shard>,
        view: &View,
        (route, allowed): (&Route, bool),
        chosen: Option<&Chosen>,
        call: &Call<'_, h1::Request<'_>>,
        request: &h1::Request<'_>,
    ) -> Result<Option<Box<Turn>>, Failure> {
        let snapshot = &view.snapshot;
        let service = chosen.map_or("", |chosen| &*snapshot.services[chosen.service as usize].name);
        let seen = Seen {
            call,
            target: request.target.as_bytes(),
            host: request.authority.unwrap_or_default(),
            encrypted: self.connection.is_encrypted(),
            route: &route.name,
            service,
        };
        if !allowed {
            return Ok(Turn::of_refused(route, &seen));
        }
        let turn = Turn::of(route, chosen, request.is_connect(), &seen, || shard.rng(|rng| rng.u64(..)));
        let mut turn = turn.map_err(|cause| Failure::downstream(Stage::Head, cause))?;
        if let Some(turn) = &mut turn {
            shard.admit_fault(view, chosen.map(|chosen| chosen.service), |place| turn.takes_place(place));
        }
        Ok(turn)
    }

    /// Asks the rules, and counts what they say.
    fn authorize(
        &self,
        shard: &Shard,
        policy: &authorize::Policy,
        call: &Call<'_, h1::Request<'_>>,
    ) -> Decision {
        let decision = policy.decide(call, |id| {
            shard.recorder.borrow_mut().record_audit(policy, &self.listener, id);
        });
        if decision.verdict == Verdict::Deny {
            shard.recorder.borrow_mut().record_denial(policy, &self.listener, decision.rule);
        }
        decision
    }
}

/// A request, as rules see it.
fn call<'c, 'b>(caller: Caller<'c>, request: &'c h1::Request<'b>) -> Call<'c, h1::Request<'b>> {
    let path = match request.target {
        Target::Asterisk => "*",
        // A CONNECT has no path.
        Target::Path(_) | Target::Authority(_) => request.path().unwrap_or_default(),
    };
    Call { caller, method: request.method_name.as_bytes(), path: path.as_bytes(), fields: request }
}

/// Asks rules about a request that was served before, by its head.
pub fn ask_again(head: Box<[u8]>, limits: Limits) -> AskAgain {
    Box::new(move |policy, caller| {
        let verdict = h1::read_request(&head, &limits, None, |request| {
            policy.decide(&call(caller, request), |_| {}).verdict
        });
        // It was understood before, by the same limits.
        if let Parsed::Whole(verdict) = verdict { verdict } else { Verdict::Deny }
    })
}

impl Fields for h1::Request<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        h1::Request::values(self, name)
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        h1::Request::lines(self, name)
    }

    fn may_have_envoys(&self) -> bool {
        self.may_have_envoys
    }
}
