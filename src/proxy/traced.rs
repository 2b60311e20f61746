//! What an exchange is to distributed tracing: the context that its caller sent, the one that each attempt is sent with, and its spans:
//! one of the exchange as a server, and one of each attempt as a client. Called where an exchange, an attempt begins and ends; `trace`
//! knows how all of it is written.
//!
//! Nothing of this costs more than a branch without `[tracing]`, and nothing is allocated for what is not recorded. A span is written
//! when it has ended, so that a tunnel has its own when that is over. Copies for mirrors are sent with the exchange's context and
//! have no span of their own; questions to those who count for several proxies are no part of the trace.

use std::cell::Cell;

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::account::{Account, Shown};
use super::{Path, told};
use crate::failure::{Failure, Side};
use crate::http::grpc::Status;
use crate::shard::{Shard, View};
use crate::telemetry::recorder::Ended;
use crate::trace::propagation::{B3_FIELDS, Fields, SpanId, TRACEPARENT, TRACESTATE, TraceId, TraceParent};
use crate::trace::span::{Frame, Kind, Writer, redacted, text};
use crate::trace::{Begun, Formats, Rules, unsampled};
use crate::upstream::service::Service;

/// What is known of an exchange in every case, in the one octet that there is room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mode(u8);

impl Mode {
    const ON: u8 = 1;
    const SAMPLED: u8 = 2;
    const B3: u8 = 4;

    fn is_on(self) -> bool {
        self.0 & Self::ON != 0
    }

    /// Whether it is recorded.
    fn is_sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }

    fn formats(self) -> Formats {
        Formats { b3: self.0 & Self::B3 != 0 }
    }
}

/// Fields of a message as they are at hand.
#[derive(Clone, Copy)]
pub(super) enum Said<'x> {
    /// A head of HTTP/1.1, as it came or canonical.
    Raw(&'x [u8]),
    /// Of HTTP/2.
    Typed(&'x HeaderMap),
}

impl<'x> Said<'x> {
    /// Those of them that matter here, where these formats are read.
    fn fields(self, formats: Formats) -> Fields<'x> {
        let mut fields = Fields::default();
        match self {
            Self::Raw(head) => {
                // An empty line may stand before a request; the one behind its head ends it.
                let head = head.trim_ascii_start();
                let of_head = told::lines(head).map(|line| &head[line]).take_while(|line| line.len() > 2);
                for line in of_head.skip(1) {
                    // Most fields are none of these.
                    if matches!(line[0] | 0x20, b't' | b'b' | b'x' | b'u')
                        && let Some(colon) = memchr::memchr(b':', line)
                    {
                        fields.see(&line[..colon], &line[colon + 1..]);
                    }
                }
            }
            Self::Typed(headers) => {
                // By name: each is found by its hash, where a walk would look at all.
                let of_b3 = if formats.b3 { &B3_FIELDS[..] } else { &[] };
                for name in [TRACEPARENT, TRACESTATE, "user-agent"].iter().chain(of_b3) {
                    for value in headers.get_all(*name) {
                        fields.see(name.as_bytes(), value.as_bytes());
                    }
                }
            }
        }
        fields
    }
}

/// An exchange that is recorded.
pub(super) struct Live {
    begun: Begun,
    /// What goes with the context, where the trace did not begin here.
    state: Box<str>,
    method: Box<str>,
    target: Box<str>,
    host: Box<str>,
    agent: Box<str>,
    /// The attempt in progress.
    attempt: Cell<Option<Attempted>>,
    /// The one beside it.
    hedge: Cell<Option<Attempted>>,
    /// Attempts that were sent.
    sent: Cell<u16>,
}

/// An attempt that has begun.
#[derive(Clone, Copy)]
struct Attempted {
    span: SpanId,
    at: u64,
    endpoint: u32,
    /// Whether the request was sent, and how many before it.
    sent: Option<u16>,
    is_hedge: bool,
}

/// How an attempt has ended.
#[derive(Clone, Copy, Default)]
struct Outcome {
    failure: Option<Failure>,
    status: u16,
    grpc: Option<Status>,
    /// Another one was sooner.
    was_outrun: bool,
}

impl Account {
    fn mode(&self) -> Mode {
        self.trace.get()
    }

    /// Decides whether the exchange is recorded, and notes what its spans tell of the request.
    pub(super) fn begin_trace(&self, shard: &Shard, rules: &Rules, said: Said<'_>, shown: &Shown<'_>) {
        let fields = said.fields(rules.formats);
        let incoming = fields.read(rules.formats);
        let begun = Begun::new(&incoming, rules.sample, || shard.rng(|rng| rng.u64(..)));
        let b3 = if rules.formats.b3 { Mode::B3 } else { 0 };
        if !begun.context.sampled {
            self.trace.set(Mode(Mode::ON | b3));
            return;
        }
        self.trace.set(Mode(Mode::ON | Mode::SAMPLED | b3));
        let state = fields.state.filter(|_| incoming.is_w3c).unwrap_or_default();
        let owned = |octets: &[u8]| text(octets).into();
        self.note_live(Box::new(Live {
            begun,
            state: owned(state),
            method: owned(shown.method),
            target: owned(shown.target),
            host: owned(shown.host),
            agent: owned(fields.agent.unwrap_or_default()),
            attempt: Cell::new(None),
            hedge: Cell::new(None),
            sent: Cell::new(0),
        }));
    }

    /// The trace that the exchange belongs to, and whether it is recorded, as far as that is known here: one that is not recorded and
    /// began here has no name that anybody could look for.
    pub(super) fn trace_told(&self, said: Option<Said<'_>>) -> Option<(TraceId, bool)> {
        if let Some(live) = self.live() {
            return Some((live.begun.context.trace, true));
        }
        if !self.mode().is_on() {
            return None;
        }
        Some((said?.fields(self.mode().formats()).read(self.mode().formats()).parent?.trace, false))
    }

    /// Puts the exchange's own context in a head that is canonical, for a copy of its request.
    pub(super) fn with_trace(&self, shard: &Shard, mut head: Vec<u8>) -> Vec<u8> {
        if self.mode().is_on() {
            let context = self.live().map(|live| live.begun.context);
            self.write_raw(context, &mut head, 0, || shard.rng(|rng| rng.u64(..)));
        }
        head
    }

    /// The same that an attempt is sent with. So many octets stand behind the head.
    fn tell_trace(&self, shard: &Shard, request: &mut Vec<u8>, behind: usize) {
        let context = self.live().map(Live::sends);
        self.write_raw(context, request, behind, || shard.rng(|rng| rng.u64(..)));
    }

    fn write_raw(
        &self,
        context: Option<TraceParent>,
        head: &mut Vec<u8>,
        behind: usize,
        random: impl FnMut() -> u64,
    ) {
        let head_len = head.len() - behind;
        let told = match context {
            Some(context) => Some((context, self.live().is_some_and(Live::drops_state))),
            None => {
                let incoming =
                    Said::Raw(&head[..head_len]).fields(self.mode().formats()).read(self.mode().formats());
                unsampled(&incoming, self.mode().formats(), random)
            }
        };
        let Some((context, drops_state)) = told else { return };
        let formats = self.mode().formats();
        let goes = |name: &[u8]| {
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            is(TRACEPARENT)
                || (drops_state && is(TRACESTATE))
                || (formats.b3 && B3_FIELDS.iter().any(|known| is(known)))
        };
        put(head, head_len, goes, context, formats);
    }

    fn tell_trace_typed(&self, shard: &Shard, headers: &mut HeaderMap) {
        let formats = self.mode().formats();
        let told = match self.live() {
            Some(live) => Some((live.sends(), live.drops_state())),
            None => {
                let incoming = Said::Typed(headers).fields(formats).read(formats);
                unsampled(&incoming, formats, || shard.rng(|rng| rng.u64(..)))
            }
        };
        let Some((context, drops_state)) = told else { return };
        if drops_state {
            headers.remove(TRACESTATE);
        }
        if formats.b3 {
            B3_FIELDS.iter().for_each(|name| drop(headers.remove(*name)));
        }
        context.write(formats, |name, value| {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        });
    }

    /// An attempt begins, on that endpoint; one that was not sent has ended before.
    pub(super) fn span_begins(&self, shard: &Shard, endpoint: u32) {
        if let Some(live) = self.live() {
            live.attempt.set(Some(Attempted::new(shard, endpoint, false)));
        }
    }

    /// It goes on to another endpoint.
    pub(super) fn span_goes_to(&self, endpoint: u32) {
        if let Some(live) = self.live()
            && let Some(attempt) = live.attempt.get()
        {
            live.attempt.set(Some(Attempted { endpoint, ..attempt }));
        }
    }

    /// An attempt begins beside the present one; `tell` writes into its request what it is sent with.
    pub(super) fn hedge_span_begins(&self, shard: &Shard, endpoint: u32, tell: impl FnOnce()) {
        let Some(live) = self.live() else { return tell() };
        let present = live.attempt.replace(Some(Attempted::new(shard, endpoint, true)));
        tell();
        live.hedge.set(live.attempt.replace(present));
    }

    /// It takes the place of the present one, on that endpoint.
    pub(super) fn hedge_span_takes_over(&self, endpoint: u32) {
        if let Some(live) = self.live() {
            live.attempt.set(live.hedge.take().map(|hedge| Attempted { endpoint, ..hedge }));
        }
    }

    fn live(&self) -> Option<&Live> {
        if self.mode().is_sampled() { self.noted_live() } else { None }
    }

    /// Writes what is left of the exchange's spans: its own, and that of an attempt that ended with it.
    pub(super) fn end_trace(
        &self,
        shard: &Shard,
        view: &View,
        shown: &Shown<'_>,
        service: Option<&Service>,
        ended: &Ended,
    ) {
        let Some(live) = self.live() else { return };
        let now = shard.clock.now();
        if let Some(service) = service {
            let grpc = ended.grpc.map(|grpc| grpc.status);
            // What was answered because of a failure was answered here.
            let status = if ended.failure.is_some() { 0 } else { ended.status };
            let outcome = Outcome { failure: ended.failure, status, grpc, was_outrun: false };
            if let Some(attempt) = live.attempt.take() {
                live.write_attempt(shard, service, attempt, (now, None), outcome);
            }
            live.lose_hedge(shard, service, None);
        }
        live.write_exchange(shard, view, shown, service, (self.started, now), ended);
    }
}

impl Path<'_> {
    /// Puts the context of the attempt in a canonical head, with so many octets behind it.
    pub(super) fn tell_trace(&self, request: &mut Vec<u8>, behind: usize) {
        if self.account.mode().is_on() {
            self.account.tell_trace(self.shard, request, behind);
        }
    }

    /// The same in a head for HTTP/2.
    pub(super) fn tell_trace_typed(&self, headers: &mut HeaderMap) {
        if self.account.mode().is_on() {
            self.account.tell_trace_typed(self.shard, headers);
        }
    }

    /// The attempt has ended.
    pub(super) fn span_ends(&self, failure: Option<Failure>) {
        let Some(live) = self.account.live() else { return };
        let Some(attempt) = live.attempt.take() else { return };
        let (status, grpc) = match self.account.withheld() {
            Some(withheld) => withheld,
            None => (self.account.status.get(), self.account.grpc_status()),
        };
        let was_outrun = self.hedge_has_won();
        let failure = failure.filter(|_| !was_outrun);
        let outcome = Outcome { failure, status, grpc, was_outrun };
        let why = self.why_again(&attempt);
        live.write_attempt(self.shard, self.service, attempt, (self.shard.clock.now(), why), outcome);
    }

    /// So has the one beside it, which was not sooner, or failed.
    pub(super) fn hedge_span_ends(&self, failure: Option<Failure>) {
        if let Some(live) = self.account.live() {
            live.lose_hedge(self.shard, self.service, failure);
        }
    }

    /// Why it is not the first one, where there is a word for it.
    fn why_again(&self, attempt: &Attempted) -> Option<&'static str> {
        let further = attempt.sent? > 0 && !attempt.is_hedge;
        let reason = self.account.further().and_then(super::again::Further::reason);
        further.then(|| reason.map_or("replay", |reason| reason.label()))
    }
}

impl Attempted {
    fn new(shard: &Shard, endpoint: u32, is_hedge: bool) -> Self {
        let span = SpanId::random(|| shard.rng(|rng| rng.u64(..)));
        Self { span, at: shard.clock.now(), endpoint, sent: None, is_hedge }
    }
}

impl Live {
    /// Whether what came as `tracestate` belongs to another trace.
    fn drops_state(&self) -> bool {
        self.state.is_empty()
    }

    /// What the attempt is sent with; notes that it is.
    fn sends(&self) -> TraceParent {
        let Some(mut attempt) = self.attempt.get() else { return self.begun.context };
        if attempt.sent.is_none() {
            attempt.sent = Some(self.sent.get());
            self.sent.set(self.sent.get().saturating_add(1));
            self.attempt.set(Some(attempt));
        }
        TraceParent { span: attempt.span, ..self.begun.context }
    }

    fn lose_hedge(&self, shard: &Shard, service: &Service, failure: Option<Failure>) {
        if let Some(hedge) = self.hedge.take() {
            let outcome = Outcome { failure, was_outrun: failure.is_none(), ..Outcome::default() };
            self.write_attempt(shard, service, hedge, (shard.clock.now(), None), outcome);
        }
    }

    fn write_attempt(
        &self,
        shard: &Shard,
        service: &Service,
        attempt: Attempted,
        (now, why): (u64, Option<&str>),
        outcome: Outcome,
    ) {
        let Outcome { failure, status, grpc, was_outrun } = outcome;
        let is_grpc = grpc.is_some();
        let grpc = grpc.filter(|_| failure.is_none() && !was_outrun);
        let failed = failure.is_some() || status >= 400 || grpc.is_some_and(|status| status.index() != 0);
        let frame = Frame {
            context: TraceParent { span: attempt.span, ..self.begun.context },
            parent: Some((self.begun.context.span, false)),
            state: &self.state,
            kind: Kind::Client,
            began_ns: attempt.at,
            ended_ns: now,
            failed,
        };
        let endpoint = service.spec.endpoints.get(attempt.endpoint as usize).map(|e| e.address.to_string());
        shard.spans.borrow_mut().write(frame, &shard.clock, &shard.link, |span| {
            self.write_request(span, Some(&service.spec.name), is_grpc);
            if let Some(endpoint) = &endpoint {
                span.text("ringmesh.endpoint", endpoint);
                match endpoint.parse::<std::net::SocketAddr>() {
                    Ok(address) => {
                        span.text("network.peer.address", &address.ip().to_string());
                        span.number("network.peer.port", address.port().into());
                    }
                    Err(_) => span.text("network.peer.address", endpoint.trim_start_matches("unix:")),
                }
            }
            span.text("ringmesh.service", &service.spec.name);
            if status > 0 {
                span.number("http.response.status_code", status.into());
            }
            if let Some(status) = grpc {
                write_grpc_status(span, status);
            }
            if let Some(sent) = attempt.sent.filter(|sent| *sent > 0) {
                span.number("http.request.resend_count", sent.into());
            }
            if let Some(why) = why {
                span.text("ringmesh.retry", why);
            }
            match (attempt.is_hedge, was_outrun) {
                (true, false) if failure.is_none() => span.text("ringmesh.hedge", "won"),
                (true, _) => span.text("ringmesh.hedge", "lost"),
                (false, true) => span.text("ringmesh.hedge", "outrun"),
                (false, false) => {}
            }
            write_failure(span, failure, failed, status, grpc);
        });
    }

    fn write_exchange(
        &self,
        shard: &Shard,
        view: &View,
        shown: &Shown<'_>,
        service: Option<&Service>,
        (began_ns, ended_ns): (u64, u64),
        ended: &Ended,
    ) {
        let grpc = ended.grpc.map(|grpc| grpc.status);
        // As semantic conventions have it for servers: what a caller did wrong is no error of whom it called.
        let failed = ended.status >= 500
            || grpc.is_some_and(Status::is_error)
            || ended.failure.is_some_and(|failure| match failure.side {
                Side::Downstream => false,
                Side::Upstream => true,
                Side::Local => ended.status == 0,
            });
        let frame = Frame {
            context: self.begun.context,
            parent: self.begun.parent.map(|parent| (parent, true)),
            state: &self.state,
            kind: Kind::Server,
            began_ns,
            ended_ns,
            failed,
        };
        let route = shown.route.and_then(|r| view.snapshot.routes.routes().get(r as usize));
        shard.spans.borrow_mut().write(frame, &shard.clock, &shard.link, |span| {
            self.write_request(span, route.map(|route| &*route.name), grpc.is_some());
            let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
            span.text("url.path", path);
            span.text("url.query", &redacted(query));
            span.text("url.scheme", if shown.encrypted { "https" } else { "http" });
            span.text("client.address", &shown.peer.ip().to_string());
            span.number("client.port", shown.peer.port().into());
            span.text("network.protocol.version", shown.protocol.trim_start_matches("HTTP/"));
            span.text("user_agent.original", &self.agent);
            if ended.status > 0 {
                span.number("http.response.status_code", ended.status.into());
            }
            if let Some(status) = grpc {
                write_grpc_status(span, status);
            }
            span.text("ringmesh.listener", shown.listener);
            span.text("ringmesh.route", route.map_or("", |route| &route.name));
            span.text("ringmesh.service", service.map_or("", |service| &service.spec.name));
            if let Some(identity) = shown.identity {
                span.text("ringmesh.peer_identity", &identity.to_string());
            }
            span.text("ringmesh.fault", ended.fault.map_or("", |made| made.label()));
            span.text("ringmesh.retry", ended.retried.map_or("", |reason| reason.label()));
            span.text("ringmesh.hedge", ended.hedge.map_or("", |end| end.label()));
            span.text("ringmesh.rate_limit", shown.rate_limit.unwrap_or_default());
            span.text("ringmesh.rate_limit_failure", shown.rate_limit_failure.unwrap_or_default());
            if ended.attempts > 0 {
                span.number("ringmesh.attempts", ended.attempts.into());
            }
            write_failure(span, ended.failure, failed, ended.status, grpc);
        });
    }

    /// What both kinds tell of the request. `of` is what a span is named after beside the method: what there are few of.
    fn write_request(&self, span: &mut Writer<'_>, of: Option<&str>, is_grpc: bool) {
        // Semantic conventions: what is no method that is known is called HTTP.
        const KNOWN: [&str; 10] =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];
        let is_known = KNOWN.contains(&&*self.method);
        let call = self.target.strip_prefix('/').and_then(|path| path.split_once('/')).filter(|_| is_grpc);
        match (call, if is_known { &*self.method } else { "HTTP" }, of) {
            (Some((service, method)), _, Some(_)) => span.name(&[service, "/", method]),
            (_, method, Some(of)) => span.name(&[method, " ", of]),
            (_, method, None) => span.name(&[method]),
        }
        span.text("http.request.method", if is_known { &self.method } else { "_OTHER" });
        if !is_known {
            span.text("http.request.method_original", &self.method);
        }
        let (host, port) = host_and_port(&self.host);
        span.text("server.address", host);
        if let Some(port) = port {
            span.number("server.port", port.into());
        }
        if let Some((service, method)) = call {
            span.text("rpc.system", "grpc");
            span.text("rpc.service", service);
            span.text("rpc.method", method);
        }
    }
}

fn write_grpc_status(span: &mut Writer<'_>, status: Status) {
    // The others are none that it sent.
    if status.index() <= 16 {
        span.number("rpc.grpc.status_code", status.index() as u64);
    }
}

/// What went wrong, if anything did: a failure, else the code of a call or the status.
fn write_failure(
    span: &mut Writer<'_>,
    failure: Option<Failure>,
    failed: bool,
    status: u16,
    grpc: Option<Status>,
) {
    if let Some(failure) = failure {
        span.text("ringmesh.failure", &failure.to_string());
    }
    match (failure, grpc) {
        _ if !failed => {}
        (Some(failure), _) => span.text("error.type", failure.cause.label()),
        (None, Some(grpc)) if status < 400 => span.text("error.type", grpc.label()),
        (None, _) => span.text("error.type", &status.to_string()),
    }
}

/// Takes out the fields that go, and puts the context at the end of the head. What is behind the head stays there.
fn put(
    request: &mut Vec<u8>,
    mut head_len: usize,
    goes: impl Fn(&[u8]) -> bool,
    context: TraceParent,
    formats: Formats,
) {
    let mut from = 0;
    while let Some(line) = {
        let rest = &request[from..head_len];
        told::lines(rest).find(|line| {
            let line = &rest[line.clone()];
            matches!(line[0] | 0x20, b't' | b'b' | b'x')
                && memchr::memchr(b':', line).is_some_and(|colon| goes(&line[..colon]))
        })
    } {
        head_len -= line.len();
        request.drain(from + line.start..from + line.end);
        from += line.start;
    }
    // Room for W3C's field, or for all.
    let mut added = SmallVec::<[u8; 320]>::new();
    context.write(formats, |name, value| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            added.extend_from_slice(part);
        }
    });
    // Before the empty line that ends the head.
    let (end, behind) = (head_len.saturating_sub(2), request.len());
    request.resize(behind + added.len(), 0);
    request.copy_within(end..behind, end + added.len());
    request[end..end + added.len()].copy_from_slice(&added);
}

/// `[::1]:80`, `name:80`, `name`.
fn host_and_port(host: &str) -> (&str, Option<u16>) {
    let port = |text: &str| text.parse::<u16>().ok();
    match host.rsplit_once(':') {
        Some((name, after)) if !name.contains(':') || name.ends_with(']') => match port(after) {
            Some(after) => (name, Some(after)),
            None => (host, None),
        },
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_context_takes_the_place_of_what_stands_there() {
        let head = "GET /traceparent: HTTP/1.1\r\nhost: a\r\nTraceParent: 00-x\r\ntracestate: a=1\r\nb3: 0\r\nx-b3-sampled: 1\r\nTRACEPARENT: y\r\nz: 1\r\n\r\n";
        let body = "traceparent: z\r\n";
        let mut fields = Fields::default();
        fields.see(b"traceparent", format!("00-{TRACE}-{SPAN}-01").as_bytes().to_vec().leak());
        let context = fields.read(Formats { b3: false }).parent.unwrap();
        let with = |formats, goes: &dyn Fn(&[u8]) -> bool| {
            let mut request = format!("{head}{body}").into_bytes();
            put(&mut request, head.len(), goes, context, formats);
            String::from_utf8(request).unwrap()
        };
        let w3c = with(Formats { b3: false }, &|name| name.eq_ignore_ascii_case(b"traceparent"));
        assert_eq!(
            w3c,
            format!(
                "GET /traceparent: HTTP/1.1\r\nhost: a\r\ntracestate: a=1\r\nb3: 0\r\nx-b3-sampled: 1\r\nz: 1\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\n\r\n{body}"
            )
        );
        let all = with(Formats { b3: true }, &|_| true);
        assert_eq!(
            all,
            format!(
                "GET /traceparent: HTTP/1.1\r\nhost: a\r\nz: 1\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\nb3: {TRACE}-{SPAN}-1\r\nx-b3-traceid: {TRACE}\r\nx-b3-spanid: {SPAN}\r\nx-b3-sampled: 1\r\n\r\n{body}"
            )
        );
    }

    #[test]
    fn fields_are_those_of_the_head_and_of_no_body() {
        let head = format!(
            "\r\nGET / HTTP/1.1\r\nhost: a\r\nUser-Agent: me \r\ntraceparent:00-{TRACE}-{SPAN}-01\r\n\r\ntraceparent: again\r\n"
        );
        let fields = Said::Raw(head.as_bytes()).fields(Formats { b3: false });
        assert_eq!(fields.agent, Some(&b"me"[..]));
        assert!(fields.read(Formats { b3: false }).parent.is_some());
        let mut headers = HeaderMap::new();
        headers.append("traceparent", HeaderValue::from_str(&format!("00-{TRACE}-{SPAN}-01")).unwrap());
        assert!(
            Said::Typed(&headers).fields(Formats { b3: false }).read(Formats { b3: false }).parent.is_some()
        );
        headers.append("traceparent", HeaderValue::from_str(&format!("00-{TRACE}-{SPAN}-01")).unwrap());
        assert!(
            Said::Typed(&headers).fields(Formats { b3: false }).read(Formats { b3: false }).parent.is_none(),
            "twice"
        );
    }

    #[test]
    fn a_host_is_parted_from_its_port() {
        assert_eq!(host_and_port("a.example:80"), ("a.example", Some(80)));
        assert_eq!(host_and_port("a.example"), ("a.example", None));
        assert_eq!(host_and_port("[::1]:80"), ("[::1]", Some(80)));
        assert_eq!(host_and_port("[::1]"), ("[::1]", None));
        assert_eq!(host_and_port("a:b"), ("a:b", None));
    }
}
