//! Callers that speak HTTP/2: the connection, and each exchange on it as a task of its own.
//!
//! The connection's task accepts streams, pings, lets the connection run out when the proxy drains, and ends it when a
//! flood is seen. An exchange keeps its place among `streams_max` until all that it started upstream has ended, whether
//! or not the caller has reset it meanwhile: who resets early gains nothing (CVE-2023-44487, CVE-2025-8671).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{Request, Response};

use super::account::{Account, Shown};
use super::connect::{To, Tried};
use super::h2_io::{Floods, Keepalive, Lent};
use super::over_h2::{Head, give_up, head};
use super::relay::{Direction, unless_reset};
use super::{First, InProgress, Path, SHED, both};
use crate::authorize::{self, Decision, Verdict};
use crate::downstream::{Downstream, Edge};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::body::{Reframer, TAILROOM};
use crate::http::client_cert::ClientCert;
use crate::http::h1::{self, Parsed};
use crate::http::h2::{self as message, Facts, Tunnel};
use crate::http::respond::{self, Told};
use crate::http::{Framing, Method, grpc};
use crate::identity;
use crate::io::gather;
use crate::io::timed::OnDeadline;
use crate::io::tls::Tls;
use crate::io::{Connection, Patience};
use crate::shard::buffers::Buffer;
use crate::shard::clock::{NEVER, ns};
use crate::shard::{Shard, View, task};
use crate::upstream::pool::Pooled;
use crate::upstream::service::{Attempt, Service};
use crate::upstream::shared::Lease;

/// Who is at the other end of a connection.
pub(super) struct Caller {
    pub(super) peer: SocketAddr,
    pub(super) listener: Arc<str>,
    pub(super) port: u16,
    pub(super) identity: Option<Rc<identity::Peer>>,
    pub(super) encrypted: bool,
    pub(super) edge: Option<Edge<Box<str>>>,
}

/// Serves one connection to its end. Its input are its first octets, the preface or a part of it.
pub(super) async fn serve(shard: Rc<Shard>, downstream: Downstream) {
    let Downstream { connection, input: seen, peer, listener, port, identity } = downstream;
    let leave_at = connection.tls().map_or(NEVER, Tls::leave_at);
    let edge = Edge::of(&connection).map(Edge::kept);
    let encrypted = connection.tls().is_some();
    let caller = Rc::new(Caller { peer, listener, port, identity, encrypted, edge });
    let view = shard.view();
    let snapshot = &view.snapshot;
    let settings = snapshot.http2;
    let (io, inward, outward) = gather::gather(
        connection,
        seen,
        Lent::new(&shard),
        Floods::of_caller(&shard),
        snapshot.timeouts.body_stall,
    );
    let vital = io.vital();
    task::spawn(&shard, inward.run());
    task::spawn(&shard, outward.run());
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.streams_max)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_header_list_size(snapshot.limits.head_bytes_max)
        .max_send_buffer_size(64 * 1024)
        .enable_connect_protocol();
    let deadline = shard.clock.now().saturating_add(ns(snapshot.timeouts.head));
    let handshake = pin!(builder.handshake::<_, Bytes>(io));
    let Some(Ok(mut connection)) = shard.deadlines.alarm().until(deadline, handshake).await else { return };
    let idle_ns = ns(snapshot.timeouts.idle);
    drop(view);

    let exchanges = Rc::new(Cell::new(0_u32));
    let watched = shard.watch.register();
    let mut keepalive = Keepalive::new(connection.ping_pong(), settings.ping_interval, settings.ping_timeout);
    let (mut leaving, mut calmed) = (false, false);
    let mut used_at = shard.clock.now();
    loop {
        let next = poll_fn(|cx| {
            if vital.was_stopped() && !std::mem::replace(&mut calmed, true) {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            let to_go = shard.is_draining() || shard.clock.now() >= leave_at;
            if to_go && !std::mem::replace(&mut leaving, true) {
                connection.graceful_shutdown();
            }
            if let Poll::Ready(next) = connection.poll_accept(cx) {
                return Poll::Ready(next);
            }
            let now = shard.clock.now();
            let due = if exchanges.get() > 0 {
                used_at = now;
                match keepalive.poll(&vital, now, cx) {
                    Some(due) => due,
                    None => return Poll::Ready(None),
                }
            } else if now >= used_at + idle_ns && !std::mem::replace(&mut leaving, true) {
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
                now + idle_ns
            } else if leaving && now >= used_at + idle_ns + ns(settings.ping_timeout) {
                // It was told to go and did not.
                return Poll::Ready(None);
            } else {
                used_at + idle_ns
            };
            watched.look_at(if leaving { due } else { due.min(leave_at) }, cx);
            Poll::Pending
        })
        .await;
        let Some(Ok((request, mut respond))) = next else { break };
        if exchanges.get() >= settings.streams_max {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        let place = Place::take(&exchanges);
        task::spawn(&shard, exchange(Rc::clone(&shard), Rc::clone(&caller), request, respond, place));
    }
}

/// One request and its response.
async fn exchange(
    shard: Rc<Shard>,
    caller: Rc<Caller>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    _place: Place,
) {
    let _exchange = InProgress::count(&shard);
    let view = shard.view();
    let limits = &view.snapshot.limits;
    let account = Account::new(shard.clock.now());
    let respond = RefCell::new(respond);
    let (mut parts, body) = request.into_parts();
    message::join_cookies(&mut parts.headers);
    let via = view.snapshot.forwarding.via.as_deref();
    let host = message::authority(&parts).unwrap_or_default();
    let checked = message::check(&parts, body.is_end_stream(), limits, via).and_then(|facts| {
        Edge::check(caller.edge.as_ref(), Some(message::host_of(host)))?;
        Ok(facts)
    });
    let grpc = checked.as_ref().is_ok_and(|facts| facts.grpc);
    let path = parts.uri.path();
    let route = view.snapshot.routes.find_id(Some(message::host_of(host)), path.as_bytes());
    let service = route
        .and_then(|id| view.snapshot.routes.routes().get(id as usize))
        .map(|route| (route, shard.service(&view, route.service)));
    let decision = checked.is_ok().then(|| caller.authorize(&shard, &view.snapshot.authorization, &parts));
    let denied = decision.as_ref().is_some_and(|decision| decision.verdict == Verdict::Deny);
    let result = match (&checked, &service) {
        (Err(cause), _) => Err(Some(Failure::downstream(Stage::Head, *cause))),
        _ if denied => Err(Some(Failure::downstream(Stage::Authorize, Cause::Denied))),
        (Ok(facts), _) if facts.max_forwards == Some(0) => Err(None),
        (Ok(facts), _) if facts.tunnel == Some(Tunnel::Unknown) => {
            Err(Some(Failure::downstream(Stage::Head, Cause::UpgradeRefused)))
        }
        (Ok(facts), _) if facts.tunnel.is_some() => {
            Err(Some(Failure::downstream(Stage::Head, Cause::MethodRefused)))
        }
        (Ok(_), None) => Err(Some(Failure::local(Stage::Route, Cause::NoRoute))),
        (Ok(facts), Some(_)) if is_too_large(facts, limits.body_bytes_max) => {
            Err(Some(Failure::downstream(Stage::Head, Cause::BodyTooLarge)))
        }
        (Ok(facts), Some((route, service))) => {
            let mut deadline = route.timeout.map_or(NEVER, |t| account.started.saturating_add(ns(t)));
            if facts.grpc
                && let Some(timeout) =
                    parts.headers.get("grpc-timeout").and_then(|v| grpc::timeout(v.as_bytes()))
            {
                deadline = deadline.min(account.started.saturating_add(ns(timeout)));
            }
            let path = Path { shard: &shard, account: &account, service, deadline };
            let call = Call { path, caller: &caller, view: &view, parts: &parts, facts, respond: &respond };
            call.carry(body).await.map_err(Some)
        }
    };
    if let Err(failure) = &result {
        let service = service.as_ref().map(|(_, service)| &**service);
        answer(
            &shard,
            &view,
            &account,
            &respond,
            service,
            *failure,
            grpc,
            parts.method == http::Method::HEAD,
        );
    }
    let shown = Shown {
        peer: caller.peer,
        listener: &caller.listener,
        method: parts.method.as_str().as_bytes(),
        target: parts.uri.path_and_query().map_or(b"", |p| p.as_str().as_bytes()),
        host: host.as_bytes(),
        route,
        identity: caller.identity.as_ref().map(|peer| &peer.id),
        decision: decision.as_ref(),
    };
    account.close(&shard, &view, &shown, service.as_ref().map(|(_, s)| s), result.err().flatten());
}

impl Caller {
    /// Asks the rules, and counts what they say.
    fn authorize(&self, shard: &Shard, policy: &authorize::Policy, parts: &Parts) -> Decision {
        let path = match parts.uri.path_and_query() {
            // A plain CONNECT has none.
            None => "",
            Some(_) => parts.uri.path(),
        };
        let caller = authorize::Caller {
            listener: &self.listener,
            port: self.port,
            source: self.peer.ip(),
            peer: self.identity.as_ref().map(|peer| &peer.id),
        };
        let (method, path) = (parts.method.as_str().as_bytes(), path.as_bytes());
        let call = authorize::Call { caller, method, path, fields: &Fields(parts) };
        let decision = policy.decide(&call, |id| {
            shard.recorder.borrow_mut().record_audit(policy, &self.listener, id);
        });
        if decision.verdict == Verdict::Deny {
            shard.recorder.borrow_mut().record_denial(policy, &self.listener, decision.rule);
        }
        decision
    }
}

/// A head, as rules see it.
struct Fields<'p>(&'p Parts);

impl authorize::Fields for Fields<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        message::values(self.0, name)
    }
}

fn is_too_large(facts: &Facts, limit: u64) -> bool {
    matches!(facts.framing, Framing::Length(n) if limit > 0 && n > limit)
}

/// Answers a request that the service did not answer, if nothing of a response was sent; else the stream was reset.
#[expect(clippy::too_many_arguments, reason = "what a response made here depends on")]
fn answer(
    shard: &Shard,
    view: &View,
    account: &Account,
    respond: &RefCell<SendResponse<Bytes>>,
    service: Option<&Service>,
    failure: Option<Failure>,
    grpc: bool,
    head: bool,
) {
    if account.status.get() != 0 {
        return;
    }
    let told = Told {
        service: service.map(|s| &*s.spec.name),
        failure_field: view.snapshot.forwarding.failure_header,
        head,
        close: false,
        http10: false,
    };
    let (response, text) = match failure {
        Some(failure) => respond::typed_failure(failure, told, grpc, &shard.clock),
        None => (Response::new(()), Bytes::new()),
    };
    account.status.set(response.status().as_u16());
    account.note_trailers(response.headers());
    // A caller that is gone needs no answer.
    if let Ok(mut stream) = respond.borrow_mut().send_response(response, text.is_empty())
        && !text.is_empty()
    {
        // A few octets: h2 holds them until the window lets them go.
        let _ = stream.send_data(text, true);
    }
}

/// What the stages of one exchange share.
struct Call<'x> {
    path: Path<'x>,
    caller: &'x Caller,
    view: &'x View,
    parts: &'x Parts,
    facts: &'x Facts,
    respond: &'x RefCell<SendResponse<Bytes>>,
}

impl Call<'_> {
    async fn carry(&self, mut body: RecvStream) -> Result<(), Failure> {
        let mut tried = Tried::new();
        let mut again = false;
        let whole = self.facts.framing == Framing::None;
        loop {
            let connect = self.path.connect(&mut tried, again);
            let (connected, reset) =
                unless_reset(|cx| self.respond.borrow_mut().poll_reset(cx), || {}, connect).await;
            let (attempt, to) = connected?;
            if reset {
                return Err(Failure::downstream(Stage::Request, Cause::StreamReset));
            }
            let began = self.path.shard.clock.now();
            let answered = Cell::new(false);
            let (result, may_repeat) = match to {
                To::H1(pooled) => {
                    let (reused, idle_ns) = (pooled.reused, pooled.idle_ns);
                    let result = self.to_h1(&mut body, pooled, &attempt, &answered).await;
                    let stale = reused
                        && !answered.get()
                        && matches!(&result, Err(f) if f.side == Side::Upstream && matches!(f.cause, Cause::Closed | Cause::Reset));
                    if stale {
                        attempt.pool().learn_death(idle_ns, self.path.shard.clock.now());
                    }
                    (result, stale && self.facts.method != Method::Other)
                }
                To::H2(lease) => {
                    let result = self.to_h2(&mut body, &lease, &answered).await;
                    let unseen = matches!(&result, Err(failure) if failure.nothing_was_sent());
                    if unseen {
                        lease.leave_if_going(&result);
                    }
                    (result, unseen)
                }
            };
            self.path.judge(&attempt, began, answered.get(), result.as_ref().err());
            if !(may_repeat && whole && !again) {
                return result;
            }
            again = true;
            let totals = &self.path.shard.totals;
            totals.replays.set(totals.replays.get() + 1);
        }
    }

    fn forwarding(&self) -> message::Forwarded<'_> {
        let forwarding = &self.view.snapshot.forwarding;
        message::Forwarded {
            via: forwarding.via.as_deref(),
            forwarded: forwarding.forwarded,
            peer: self.caller.peer,
            encrypted: self.caller.encrypted,
            default_host: &self.path.service.spec.name,
            client_cert: self.caller.identity.as_ref().map(|peer| ClientCert {
                by: self.view.snapshot.identity.as_ref().map(|credentials| &credentials.id),
                peer,
            }),
        }
    }

    /// The way there.
    fn there<'x>(&'x self, alarm: &'x crate::io::timed::Alarm) -> Direction<'x> {
        let limits = &self.view.snapshot.limits;
        Direction {
            shard: self.path.shard,
            account: self.path.account,
            alarm,
            limits,
            deadline: self.path.deadline,
            read_stall: self.view.snapshot.timeouts.body_stall,
            write_stall: self.path.service.spec.timeouts.body_stall,
            octets: &self.path.account.request_body_bytes,
            octets_max: limits.body_bytes_max,
            sender: |cause| Failure::downstream(Stage::Request, cause),
            receiver: |cause| Failure::upstream(Stage::Request, cause),
        }
    }

    /// The way back.
    fn back<'x>(&'x self, alarm: &'x crate::io::timed::Alarm) -> Direction<'x> {
        Direction {
            read_stall: self.path.service.spec.timeouts.body_stall,
            write_stall: self.view.snapshot.timeouts.body_stall,
            octets: &self.path.account.response_body_bytes,
            octets_max: 0,
            sender: |cause| Failure::upstream(Stage::Body, cause),
            receiver: |cause| Failure::downstream(Stage::Body, cause),
            ..self.there(alarm)
        }
    }

    /// To a service that speaks HTTP/2.
    async fn to_h2(
        &self,
        body: &mut RecvStream,
        lease: &Lease,
        answered: &Cell<bool>,
    ) -> Result<(), Failure> {
        let whole = self.facts.framing == Framing::None;
        let mut parts = self.parts.clone();
        message::forward(&mut parts, self.facts, &self.forwarding());
        message::set_scheme(&mut parts.uri, lease.is_encrypted());
        if self.facts.grpc && self.path.deadline != NEVER {
            let left = self.path.deadline.saturating_sub(self.path.shard.clock.now());
            let left = grpc::write_timeout(std::time::Duration::from_nanos(left));
            if let Ok(value) = http::HeaderValue::from_str(&left) {
                parts.headers.insert("grpc-timeout", value);
            }
        }
        let sent = lease.send().send_request(Request::from_parts(parts, ()), whole);
        let (mut response, stream) =
            sent.map_err(|error| Failure::upstream(Stage::Request, message::cause(&error)))?;
        let stream = RefCell::new(stream);
        let (there_alarm, alarm) = (self.path.shard.deadlines.alarm(), self.path.shard.deadlines.alarm());
        let sent = Cell::new(whole);
        let back = pin!(self.back_from_h2(&mut response, &alarm, &sent, answered));
        if whole {
            return back.await;
        }
        let there = self.there(&there_alarm);
        let there = pin!(async {
            let result = there.h2_to_h2(body, &stream).await;
            sent.set(result.is_ok());
            result
        });
        let (there_result, back_result, back_was_first) = both(there, back, |first| match first {
            First::There(Err(failure)) if failure.side != Side::Upstream => {
                stream.borrow_mut().send_reset(Reason::CANCEL);
            }
            First::There(_) if self.path.account.status.get() == 0 => {
                let timeout = ns(self.path.service.spec.timeouts.response);
                alarm.by(self.path.shard.clock.now().saturating_add(timeout));
            }
            First::There(_) => {}
            // Nobody wants the rest: ends the way there, whatever it waits for.
            First::Back => {
                stream.borrow_mut().send_reset(Reason::NO_ERROR);
                there_alarm.by(0);
            }
        })
        .await;
        match (there_result, back_result) {
            (Err(there), Err(_)) if there.side != Side::Upstream && !back_was_first => Err(there),
            (_, back) => back,
        }
    }

    async fn back_from_h2(
        &self,
        response: &mut h2::client::ResponseFuture,
        alarm: &crate::io::timed::Alarm,
        sent: &Cell<bool>,
        answered: &Cell<bool>,
    ) -> Result<(), Failure> {
        let gone = |_| Failure::downstream(Stage::Body, Cause::StreamReset);
        let response = loop {
            let next = head(&self.path, alarm, response, sent.get(), answered);
            // Hurried by the alarm: h2 needs no more than to be left.
            let (next, reset) =
                unless_reset(|cx| self.respond.borrow_mut().poll_reset(cx), || alarm.by(0), next).await;
            if reset {
                return Err(Failure::downstream(Stage::Response, Cause::StreamReset));
            }
            match next? {
                Head::Interim(interim) => {
                    self.respond.borrow_mut().send_informational(interim).map_err(gone)?;
                }
                Head::Final(response) => break response,
            }
        };
        let (mut parts, mut from) = response.into_parts();
        message::end_to_end(&mut parts, &self.path.shard.clock);
        self.path.account.note_trailers(&parts.headers);
        let status = parts.status.as_u16();
        let ended = from.is_end_stream();
        let begun = self.respond.borrow_mut().send_response(Response::from_parts(parts, ()), ended);
        let to = RefCell::new(begun.map_err(gone)?);
        self.path.account.status.set(status);
        if ended {
            return Ok(());
        }
        let back = self.back(alarm);
        let (result, reset) =
            unless_reset(|cx| to.borrow_mut().poll_reset(cx), || alarm.by(0), back.h2_to_h2(&mut from, &to))
                .await;
        self.end(&to, result, reset)
    }

    /// To a service that speaks HTTP/1.1.
    async fn to_h1(
        &self,
        body: &mut RecvStream,
        mut pooled: Pooled,
        attempt: &Attempt,
        answered: &Cell<bool>,
    ) -> Result<(), Failure> {
        let shard = self.path.shard;
        let shed = Failure::local(Stage::Request, Cause::Overloaded);
        let mut out = shard.buffers.take_small().ok_or(shed)?;
        message::write_h1(self.parts, self.facts, &self.forwarding(), &mut out);
        let Some(mut input) = shard.buffers.take_small() else {
            shard.buffers.give(out);
            return Err(SHED);
        };
        let result = self.over_h1(body, &mut pooled, &mut out, &mut input, answered).await;
        shard.buffers.give(out);
        shard.buffers.give(input);
        let done = result?;
        if done.reusable {
            let limits = &self.path.service.spec.pool;
            attempt.pool().checkin(pooled, limits, done.idle_seconds, shard.clock.now());
        }
        Ok(())
    }

    async fn over_h1(
        &self,
        body: &mut RecvStream,
        pooled: &mut Pooled,
        out: &mut Buffer,
        input: &mut Buffer,
        answered: &Cell<bool>,
    ) -> Result<Done, Failure> {
        let shard = self.path.shard;
        let origin = pooled.connection.control();
        let Connection { reader, writer, .. } = &mut pooled.connection;
        let alarm = shard.deadlines.alarm();
        let there_alarm = shard.deadlines.alarm();
        let there = self.there(&there_alarm);
        if self.facts.framing == Framing::None {
            let patience =
                Patience { clock: &shard.clock, stall: there.write_stall, until: self.path.deadline };
            let sent = writer.write_all(out, 0, patience).await;
            sent.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
            return self.back_from_h1(reader, &origin, input, &alarm, &Cell::new(true), answered).await;
        }
        let sent = Cell::new(false);
        let back = pin!(self.back_from_h1(reader, &origin, input, &alarm, &sent, answered));
        let there = pin!(async {
            if body.flow_control().used_capacity() == 0 {
                // The head does not wait for the body: the service may have to say that it wants it.
                let patience =
                    Patience { clock: &shard.clock, stall: there.write_stall, until: self.path.deadline };
                let head = writer.write_all(out, 0, patience).await;
                out.clear();
                head.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
            }
            let result = there.h2_to_h1(body, writer, self.facts.framing, out).await;
            sent.set(result.is_ok());
            result
        });
        let answer_by = || shard.clock.now().saturating_add(ns(self.path.service.spec.timeouts.response));
        let (there_result, back_result, back_was_first) = both(there, back, |first| match first {
            First::There(Err(failure)) if failure.side != Side::Upstream => origin.shutdown(),
            First::There(_) if self.path.account.status.get() == 0 => origin.read_by(answer_by()),
            First::There(_) => {}
            First::Back => {
                there_alarm.by(0);
                origin.shutdown();
            }
        })
        .await;
        match (there_result, back_result) {
            (Ok(()), Ok(done)) if !back_was_first => Ok(done),
            (_, Ok(done)) => Ok(Done { reusable: false, ..done }),
            (Err(there), Err(_)) if there.side != Side::Upstream && !back_was_first => Err(there),
            (_, Err(back)) => Err(back),
        }
    }

    async fn back_from_h1(
        &self,
        from: &mut crate::io::Reader,
        origin: &crate::io::Control,
        input: &mut Buffer,
        alarm: &crate::io::timed::Alarm,
        sent: &Cell<bool>,
        answered: &Cell<bool>,
    ) -> Result<Done, Failure> {
        let (head, reset) = unless_reset(
            |cx| self.respond.borrow_mut().poll_reset(cx),
            || origin.shutdown(),
            self.head_from_h1(from, input, sent, answered),
        )
        .await;
        if reset {
            return Err(Failure::downstream(Stage::Response, Cause::StreamReset));
        }
        let answer = head?;
        let status = answer.head.status().as_u16();
        let mut reframer =
            Reframer::new(answer.framing, Framing::UntilClose).without_trailers(answer.nominated_trailers);
        let ended = matches!(answer.framing, Framing::None | Framing::Length(0));
        self.path.account.note_trailers(answer.head.headers());
        let begun = self.respond.borrow_mut().send_response(answer.head, ended);
        let to = RefCell::new(begun.map_err(|_| Failure::downstream(Stage::Body, Cause::StreamReset))?);
        self.path.account.status.set(status);
        input.drain(..answer.head_len);
        let mut clean = input.is_empty();
        if !ended {
            let back = self.back(alarm);
            let (result, reset) = unless_reset(
                |cx| to.borrow_mut().poll_reset(cx),
                || {
                    origin.shutdown();
                    alarm.by(0);
                },
                back.h1_to_h2(from, input, &mut reframer, &to),
            )
            .await;
            clean = *result.as_ref().unwrap_or(&false);
            self.end(&to, result.map(drop), reset)?;
        }
        Ok(Done {
            reusable: clean && answer.keep_alive && answer.framing != Framing::UntilClose,
            idle_seconds: answer.idle_seconds,
        })
    }

    /// Reads the head of a response, and passes on the interim ones before it.
    async fn head_from_h1(
        &self,
        from: &mut crate::io::Reader,
        input: &mut Buffer,
        sent: &Cell<bool>,
        answered: &Cell<bool>,
    ) -> Result<Answer, Failure> {
        let shard = self.path.shard;
        let limits = &self.view.snapshot.limits;
        let mut interim = 0;
        loop {
            let parsed = match input.is_empty() {
                true => Parsed::Partial,
                false => h1::read_response(input, limits, self.facts.method, |response| {
                    message::from_h1(response, &shard.clock).map(|head| Answer {
                        head,
                        head_len: response.head_len,
                        framing: response.framing,
                        keep_alive: response.keep_alive,
                        idle_seconds: response.idle_seconds,
                        nominated_trailers: response.nominated_trailers(),
                    })
                }),
            };
            let refused = |cause| Failure::upstream(Stage::Response, cause);
            match parsed {
                Parsed::Whole(Ok(answer)) if answer.head.status().is_informational() => {
                    interim += 1;
                    if interim > limits.interim_responses_max {
                        return Err(refused(Cause::TooManyInterim));
                    }
                    input.drain(..answer.head_len);
                    let told = self.respond.borrow_mut().send_informational(answer.head);
                    told.map_err(|_| Failure::downstream(Stage::Response, Cause::StreamReset))?;
                    continue;
                }
                Parsed::Whole(Ok(answer)) => return Ok(answer),
                Parsed::Whole(Err(cause)) | Parsed::Refused(cause) => return Err(refused(cause)),
                Parsed::Partial => {}
            }
            if input.len() + TAILROOM >= input.capacity() {
                let mut large = shard.buffers.take_large().ok_or(SHED)?;
                if large.capacity() <= input.len() + TAILROOM {
                    shard.buffers.give(large);
                    return Err(refused(Cause::HeadTooLarge));
                }
                large.extend_from_slice(input);
                shard.buffers.give(std::mem::replace(input, large));
            }
            let patience = match sent.get() {
                true => shard.clock.now().saturating_add(ns(self.path.service.spec.timeouts.response)),
                false => NEVER,
            };
            self.path.account.wait(shard.clock.now());
            let deadline = patience.min(self.path.deadline);
            let read = from.read(input, TAILROOM, deadline, OnDeadline::Shutdown).await;
            let now = shard.clock.now();
            self.path.account.waited(now);
            match read {
                Ok(0) => return Err(refused(Cause::Closed)),
                Ok(_) if !answered.replace(true) => self.path.account.first_byte_at.set(now),
                Ok(_) => {}
                Err(fault) => return Err(refused(super::cause(fault))),
            }
        }
    }

    /// A response that has begun ends whole, or with a reset.
    fn end(
        &self,
        to: &RefCell<h2::SendStream<Bytes>>,
        result: Result<(), Failure>,
        reset: bool,
    ) -> Result<(), Failure> {
        match result {
            Ok(()) => Ok(()),
            Err(_) if reset => Err(Failure::downstream(Stage::Body, Cause::StreamReset)),
            Err(failure) => {
                give_up(to);
                Err(failure)
            }
        }
    }
}

/// The head of a response that came by HTTP/1.1.
struct Answer {
    head: Response<()>,
    head_len: usize,
    framing: Framing,
    keep_alive: bool,
    idle_seconds: Option<u64>,
    nominated_trailers: Vec<Box<str>>,
}

/// What became of an upstream HTTP/1.1 connection.
struct Done {
    reusable: bool,
    idle_seconds: Option<u64>,
}

/// A place among the exchanges of a connection.
struct Place(Rc<Cell<u32>>);

impl Place {
    fn take(exchanges: &Rc<Cell<u32>>) -> Self {
        exchanges.set(exchanges.get() + 1);
        Self(Rc::clone(exchanges))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
