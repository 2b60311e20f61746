//! Callers that speak HTTP/2: the connection, and each exchange on it as a task of its own.
//!
//! The connection's task accepts streams, pings, lets the connection run out when the proxy drains, and ends it when a
//! flood is seen. An exchange keeps its place among `streams_max` until all that it started upstream has ended, whether
//! or not the caller has reset it meanwhile: who resets early gains nothing (CVE-2023-44487, CVE-2025-8671).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{Request, Response};

use super::account::{Account, Shown};
use super::again::Missed;
use super::caller::{Caller, Judged, answer};
use super::connect::To;
use super::counted::InProgress;
use super::h2_io::{Floods, Keepalive, Lent, Place, SMALL_FRAMES_MAX, unless_stopped};
use super::kept::Upload;
use super::lane;
use super::over_h2::{Head, give_up, head};
use super::relay::{Direction, Web, unless_reset};
use super::shaped;
use super::traced::Said;
use super::tunnel_h2;
use super::{
    First, MEMORY_SHORT, Path, TOO_SOON, blamed, both, fault, global, hedge, idle, retry_of, told,
    without_service,
};
use crate::authorize::Verdict;
use crate::downstream::turn::Turn;
use crate::downstream::{Downstream, Edge, Protocol};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::client_cert::ClientCert;
use crate::http::grpc::Dialect;
use crate::http::grpc_web::{Form, Translation};
use crate::http::h2::{self as message, Facts, ORIGIN_FIELD};
use crate::http::{Framing, Method};
use crate::io::gather;
use crate::io::timed::Alarm;
use crate::io::tls::Tls;
use crate::shard::clock::{NEVER, ns};
use crate::shard::link::Pressure;
use crate::shard::{Shard, View, task};
use crate::upstream::service::Attempt;
use crate::upstream::shared::Lease;

/// Serves one connection to its end. Its input are its first octets, the preface or a part of it.
pub(super) async fn serve(shard: Rc<Shard>, downstream: Downstream) {
    let Downstream { connection, input: seen, peer, listener, port, identity, .. } = downstream;
    let leave_at = connection.tls().map_or(NEVER, Tls::leave_at);
    let edge = Edge::of(&connection).map(Edge::kept);
    let encrypted = connection.tls().is_some();
    let spoken = Protocol::of(&connection);
    let (mesh, lanes) = (matches!(spoken, Protocol::Mesh { .. }), spoken == Protocol::Mesh { lanes: true });
    let began = shard.clock.now();
    let repeats = RefCell::default();
    let caller =
        Rc::new(Caller { began, peer, listener, port, identity, encrypted, mesh, lanes, edge, repeats });
    let view = shard.view();
    let snapshot = &view.snapshot;
    let settings = snapshot.http2;
    let (floods, standing) = Floods::of_caller(&shard);
    let stall = snapshot.timeouts.body_stall;
    let (io, inward, outward) = gather::gather(connection, seen, Lent::new(&shard), floods, stall);
    let vital = io.vital();
    task::spawn(&shard, inward.run());
    task::spawn(&shard, outward.run());
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.streams_max)
        // Those reset while they wait to be taken; how often that may be is counted by `Floods`.
        .max_pending_accept_reset_streams(settings.streams_max as usize)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_header_list_size(snapshot.limits.head_bytes_max)
        .max_send_buffer_size(64 * 1024)
        .data_frame_budget(SMALL_FRAMES_MAX);
    if snapshot.routes.takes_websockets() {
        builder.enable_connect_protocol();
    }
    let head_ns = ns(snapshot.timeouts.head);
    let deadline = shard.clock.now().saturating_add(head_ns);
    let handshake = pin!(unless_stopped(&vital, builder.handshake::<_, Bytes>(io)));
    let mut connection = match shard.deadlines.alarm().until(deadline, handshake).await {
        Some(Some(Ok(connection))) => connection,
        begun => {
            // Who goes away owes nothing: callers do that when they find another than they expected.
            let patience_ns = if begun.is_none() { 0 } else { NEVER };
            standing.tell(&shard, caller.peer, vital.was_stopped(), patience_ns);
            return;
        }
    };
    let idle_ns = ns(snapshot.timeouts.idle);
    drop(view);

    let watched = shard.watch.register();
    let mut keepalive =
        Keepalive::new(&standing, connection.ping_pong(), settings.ping_interval, settings.ping_timeout);
    let (mut leaving, mut calmed, mut busy) = (false, false, false);
    let mut used_at = shard.clock.now();
    loop {
        let next = poll_fn(|cx| {
            let stopped = vital.was_stopped();
            if !calmed && let Some(reason) = standing.tell(&shard, caller.peer, stopped, head_ns) {
                calmed = true;
                connection.abrupt_shutdown(reason);
            }
            // Quiet for as long as a caller by HTTP/1.1 is before it holds no buffer.
            let is_quiet = standing.exchanges() == 0 && shard.clock.now() >= used_at + Downstream::HOLD_NS;
            let is_short = shard.pressure() != Pressure::None && !leaving && is_quiet;
            if is_short {
                shard.closed_for_memory(1);
            }
            let to_go = shard.is_draining() || is_short || shard.clock.now() >= leave_at;
            if to_go && !std::mem::replace(&mut leaving, true) {
                connection.graceful_shutdown();
            }
            if let Poll::Ready(next) = connection.poll_accept(cx) {
                return Poll::Ready(next);
            }
            let now = shard.clock.now();
            if standing.exchanges() > 0 || std::mem::take(&mut busy) {
                used_at = now;
            }
            let due = if standing.exchanges() > 0 {
                busy = true;
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
            let due = due.min(standing.overdue_at(head_ns));
            watched.look_at(if leaving { due } else { due.min(leave_at) }, cx);
            Poll::Pending
        })
        .await;
        let Some(Ok((request, mut respond))) = next else { break };
        if standing.exchanges() >= settings.streams_max {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        if caller.lanes && message::is_lane_request(request.headers()) {
            let standing = Rc::clone(&standing);
            let begin = || lane::serve(Rc::clone(&shard), Rc::clone(&caller), standing, request, respond);
            task::spawn(&shard, task::boxed(begin));
            continue;
        }
        let place = Place::take(&standing);
        // Boxed: a task is moved several times until it is where it stays, and this one is large.
        let begin = || exchange(Rc::clone(&shard), Rc::clone(&caller), request, respond, place);
        task::spawn(&shard, task::boxed(begin));
    }
}

/// One request and its response. Not an `async fn`, which would have room for its arguments twice.
fn exchange(
    shard: Rc<Shard>,
    caller: Rc<Caller>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    place: Place,
) -> impl Future<Output = ()> {
    let counted = InProgress::count(&shard);
    let view = shard.view();
    // It came with the last octets; until now others had their turn. With the first ones, where the connection begins.
    let arrived_at = shard.gathered.arrived_at.get().max(caller.began);
    let account = Account::new(arrived_at.min(shard.clock.now()), 0);
    let respond = RefCell::new(respond);
    let (mut parts, body) = request.into_parts();
    async move {
        let _counted = &counted;
        served(&shard, &caller, &view, &account, &respond, &mut parts, body, &place).await;
    }
}

/// The exchange, from the judgement of its head to the line in the log.
#[expect(clippy::too_many_arguments, reason = "what an exchange is made of; kept by the frame above")]
async fn served(
    shard: &Rc<Shard>,
    caller: &Caller,
    view: &Rc<View>,
    account: &Account,
    respond: &RefCell<SendResponse<Bytes>>,
    parts: &mut Parts,
    mut body: RecvStream,
    place: &Place,
) {
    let was_reset = respond.borrow_mut().poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
    let limits = &view.snapshot.limits;
    let via = view.snapshot.forwarding.via.as_deref();
    // Crumbs of a cookie count as fields.
    let mut checked = message::check(parts, body.is_end_stream(), limits, via);
    message::join_cookies(&mut parts.headers);
    let parts = &*parts;
    let host = message::authority(parts).unwrap_or_default();
    if checked.is_ok()
        && let Err(cause) = Edge::check(caller.edge.as_ref(), Some(message::host_of(host)))
    {
        checked = Err(cause);
    }
    let grpc = checked.as_mut().ok().and_then(|facts| {
        let translates = || view.snapshot.translates_grpc_web(&caller.listener);
        facts.grpc = facts.grpc.filter(|dialect| *dialect == Dialect::Native || translates());
        facts.grpc
    });
    if grpc == Some(Dialect::Native) {
        account.begin_grpc();
    }
    let Judged { route, service, decision, mut turn, affinity } =
        caller.judge(shard, view, &mut checked, parts, host);
    let to = route.and_then(|id| view.snapshot.routes.route(id));
    account.want(affinity);
    if let Some(rules) = &view.snapshot.tracing {
        account.begin_trace(shard, rules, Said::Typed(&parts.headers), &caller.shown(parts, host));
    }
    let denied = decision.as_ref().is_some_and(|decision| decision.verdict == Verdict::Deny);
    let mut was_reset = was_reset;
    let sheds = shard.sheds(to);
    let mut unasked = None;
    if !was_reset && !sheds && turn.as_ref().is_some_and(|turn| turn.asks()) {
        // Boxed: few are asked about.
        unasked =
            Box::pin(global::ask_stream(shard, account, view, (to, &mut turn), respond, parts)).await.err();
    }
    if let Some(turn) = turn.as_deref().filter(|turn| !sheds && unasked.is_none() && turn.is_held_up()) {
        let timeout = Turn::timeout(Some(turn), to);
        let deadline = timeout.map_or(NEVER, |timeout| account.started.saturating_add(ns(timeout)));
        // Boxed: hardly any is held up.
        was_reset |=
            Box::pin(fault::hold_up_stream(shard, account, turn, respond, &mut body, deadline)).await;
        if fault::took_all(shard, turn, deadline) {
            unasked = Some(fault::HELD_UP);
        }
    }
    let answers = turn.as_ref().is_some_and(|turn| turn.is_answer());
    let result = match (&checked, &service) {
        (Err(cause), _) => Err(Some(Failure::downstream(Stage::Head, *cause))),
        _ if was_reset => Err(Some(Failure::downstream(Stage::Head, Cause::StreamReset))),
        _ if denied => Err(Some(Failure::downstream(Stage::Authorize, Cause::Denied))),
        _ if turn.as_ref().is_some_and(|turn| turn.is_too_soon()) => Err(Some(TOO_SOON)),
        _ if sheds => Err(Some(MEMORY_SHORT)),
        _ if let Some(failure) = unasked => Err(Some(failure)),
        _ if turn.as_ref().is_some_and(|turn| turn.resets()) => {
            respond.borrow_mut().send_reset(Reason::INTERNAL_ERROR);
            Ok(())
        }
        (Ok(facts), _) if facts.max_forwards == Some(0) || answers => Err(None),
        (Ok(facts), _) if let Some(failure) = tunnel_h2::refused(facts.tunnel, to) => Err(Some(failure)),
        (Ok(_), None) => Err(Some(without_service(to))),
        (Ok(facts), Some(_)) if is_too_large(facts, limits.body_bytes_max) => {
            Err(Some(Failure::downstream(Stage::Head, Cause::BodyTooLarge)))
        }
        (Ok(facts), Some(service)) => {
            let timeout = Turn::timeout(turn.as_deref(), to);
            let mut deadline = timeout.map_or(NEVER, |timeout| account.started.saturating_add(ns(timeout)));
            if facts.grpc.is_some() {
                deadline = deadline.min(account.grpc_deadline(&parts.headers));
            }
            if to.is_some_and(|route| route.deadline_field) {
                account.telling.tell_deadline();
                let value = parts.headers.get(told::DEADLINE).map(http::HeaderValue::as_bytes);
                deadline = deadline.min(told::deadline(account.started, value));
            }
            let retry = retry_of(turn.as_deref(), to, service);
            let repeats = facts.method != Method::Other || retry.allows(parts.method.as_str().as_bytes());
            account.repeats.set(repeats);
            account.stays_alone.set(facts.tunnel.is_some());
            let path = Path { shard, account, service, deadline, retry };
            let call = Call { path, caller, view, parts, facts, turn: turn.as_deref(), respond };
            let admitted = match call.path.admit(to) {
                Ok(None) => Ok(()),
                // Boxed: seldom needed.
                Ok(Some(waiting)) => Box::pin(call.wait_for_place(waiting)).await,
                Err(failure) => Err(failure),
            };
            if admitted.is_ok()
                && facts.tunnel.is_none()
                && let Some(mirrors) = to.and_then(|route| route.mirror.as_deref())
            {
                call.mirror(mirrors);
            }
            let result = match to.filter(|_| facts.tunnel.is_some()) {
                _ if let Err(failure) = admitted => Err(failure),
                None => call.carry(&mut body).await,
                // Boxed: a tunnel is rare, and large.
                Some(route) => Box::pin(call.tunnel(body, route)).await,
            };
            result.map_err(|failure| Some(blamed(shard, account, failure)))
        }
    };
    if account.status.get() != 0 {
        place.answered();
    }
    if let Err(failure) = &result {
        let head = parts.method == http::Method::HEAD;
        answer(shard, view, account, respond, service.as_deref(), *failure, grpc, turn.as_deref(), head);
    }
    let shown = Shown {
        route,
        decision: decision.as_ref(),
        fault: turn.as_ref().and_then(|turn| turn.fault()),
        rate_limit: turn.as_ref().and_then(|turn| turn.rate_limit()),
        rate_limit_failure: turn.as_ref().and_then(|turn| turn.rate_limit_failure()),
        wishes: turn.as_ref().and_then(|turn| turn.wishes(to)),
        ..caller.shown(parts, host)
    };
    account.leaves_later(&shard.gathered);
    // What ended on purpose is no failure.
    let on_purpose = turn.as_ref().is_some_and(|turn| turn.was_truncated());
    let failure = result.err().flatten().filter(|_| !on_purpose);
    account.close(shard, view, &shown, service.as_ref(), failure);
}

fn is_too_large(facts: &Facts, limit: u64) -> bool {
    matches!(facts.framing, Framing::Length(n) if limit > 0 && n > limit)
}

/// What the stages of one exchange share.
pub(super) struct Call<'x> {
    pub(super) path: Path<'x>,
    pub(super) caller: &'x Caller,
    pub(super) view: &'x View,
    pub(super) parts: &'x Parts,
    pub(super) facts: &'x Facts,
    pub(super) turn: Option<&'x Turn>,
    pub(super) respond: &'x RefCell<SendResponse<Bytes>>,
}

impl Call<'_> {
    async fn carry(&self, body: &mut RecvStream) -> Result<(), Failure> {
        let mut body = Upload::new(body, &self.path);
        loop {
            match self.attempt(&mut body).await {
                Ok(()) => return Ok(()),
                Err(Missed::Failed(failure)) => return Err(failure),
                Err(Missed::Again) => body.rewind(),
            }
            if self.path.is_to_pause() {
                Box::pin(self.path.pause()).await;
            }
        }
    }

    async fn attempt(&self, body: &mut Upload<'_>) -> Result<(), Missed> {
        if self.path.is_hedged() {
            return Box::pin(self.take_over()).await;
        }
        let connect = self.path.connect(false);
        let (connected, reset) =
            unless_reset(|cx| self.respond.borrow_mut().poll_reset(cx), || {}, connect).await;
        if reset {
            return Err(Failure::downstream(Stage::Request, Cause::StreamReset).into());
        }
        let (attempt, to) = connected.map_err(|failure| self.path.missed(failure, false))?;
        let began = self.path.shard.clock.now();
        let (result, replays) = match to {
            To::H1(pooled) => {
                let (reused, idle_ns) = (pooled.reused, pooled.idle_ns);
                let result = self.to_h1(body, pooled, &attempt).await;
                let dead =
                    |failure: Failure| reused && !attempt.has_answered() && failure.is_end_of_connection();
                let stale = Missed::failure_of(&result).is_some_and(dead);
                if stale {
                    attempt.pool().learn_death(idle_ns, self.path.shard.clock.now());
                }
                (result, stale && self.facts.method != Method::Other && self.path.replays_after_death())
            }
            To::H2(lease) => {
                let result = self.to_h2(body, &lease, &attempt).await;
                let replays = Missed::failure_of(&result).is_some_and(|failure| {
                    lease.leave_if_going(failure);
                    self.path.replays_by_http2(failure, &lease, attempt.has_answered(), self.facts.method)
                });
                (result, replays)
            }
        };
        let failure = Missed::failure_of(&result);
        self.path.judge(&attempt, began, failure.as_ref());
        match failure {
            Some(_) if replays => Err(Missed::Again),
            Some(failure) => Err(self.path.missed(failure, false)),
            None => result,
        }
    }

    pub(super) fn forwarding(&self) -> message::Forwarded<'_> {
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

    /// The head of the request for a service that speaks HTTP/2.
    pub(super) fn forwarded(&self, lease: &Lease) -> Parts {
        let mut parts = self.parts.clone();
        message::forward(&mut parts, self.facts, &self.forwarding());
        if let Some(turn) = self.turn {
            turn.apply_to_parts(&mut parts);
        }
        message::set_scheme(&mut parts.uri, lease.is_encrypted());
        self.path.tell_attempt_typed(&mut parts.headers);
        if lease.is_mesh()
            && let Some(origin) = self.caller.origin(self.parts)
        {
            parts.headers.insert(ORIGIN_FIELD, origin.value());
        }
        parts
    }

    /// The way there.
    pub(super) fn there<'x>(&'x self, alarm: &'x Alarm) -> Direction<'x> {
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
            messages: self.path.account.request_messages(),
            web: Web::Same,
            shape: self.turn.and_then(Turn::request_shape),
            sender: |cause| Failure::downstream(Stage::Request, cause),
            receiver: |cause| Failure::upstream(Stage::Request, cause),
        }
    }

    /// The way back.
    pub(super) fn back<'x>(&'x self, alarm: &'x Alarm) -> Direction<'x> {
        Direction {
            read_stall: self.path.service.spec.timeouts.body_stall,
            write_stall: self.view.snapshot.timeouts.body_stall,
            octets: &self.path.account.response_body_bytes,
            octets_max: 0,
            messages: self.path.account.response_messages(),
            shape: self.turn.and_then(Turn::shape),
            sender: |cause| Failure::upstream(Stage::Body, cause),
            receiver: |cause| Failure::downstream(Stage::Body, cause),
            ..self.there(alarm)
        }
    }

    /// To a service that speaks HTTP/2.
    async fn to_h2(&self, body: &mut Upload<'_>, lease: &Lease, attempt: &Attempt) -> Result<(), Missed> {
        let whole = self.facts.framing == Framing::None;
        let mut parts = self.forwarded(lease);
        let is_web = matches!(self.facts.grpc, Some(Dialect::Web(_)));
        let web = if is_web { Translation::of_request(&mut parts.headers) } else { None };
        self.path.of_call(&mut parts.headers);
        let (mut response, stream) = lease.send(Request::from_parts(parts, ()), whole)?;
        let alarm = self.path.shard.deadlines.alarm();
        if whole {
            return match self.view.snapshot.timeouts.stream_idle {
                None if !self.path.hedges() => {
                    self.back_from_h2(&mut response, web, &alarm, &Cell::new(true), attempt).await
                }
                // Boxed: seldom wanted.
                _ => Box::pin(self.back_unless_idle(&mut response, web, &alarm, attempt)).await,
            };
        }
        // Boxed: two directions are much state, which most requests do not need.
        Box::pin(self.both_h2(body, stream, &mut response, web, &alarm, attempt)).await
    }

    /// The way back, where an exchange may not lie still for long, or may be hedged.
    async fn back_unless_idle(
        &self,
        response: &mut h2::client::ResponseFuture,
        web: Option<Translation>,
        alarm: &Alarm,
        attempt: &Attempt,
    ) -> Result<(), Missed> {
        let sent = Cell::new(true);
        let back = pin!(self.back_from_h2(response, web, alarm, &sent, attempt));
        let idle = self.view.snapshot.timeouts.stream_idle;
        let back = pin!(idle::unless_idle(&self.path, idle, &sent, &[], || alarm.by(0), back));
        let copy = || self.copied(None);
        hedge::unless_won(&self.path, &sent, || alarm.by(0), copy, self.view, back).await
    }

    /// Both directions at once.
    async fn both_h2(
        &self,
        body: &mut Upload<'_>,
        stream: h2::SendStream<Bytes>,
        response: &mut h2::client::ResponseFuture,
        web: Option<Translation>,
        alarm: &Alarm,
        attempt: &Attempt,
    ) -> Result<(), Missed> {
        let stream = RefCell::new(stream);
        let there_alarm = self.path.shard.deadlines.alarm();
        let (sent, whole) = (Cell::new(false), Cell::new(None));
        attempt.uploads();
        let back = pin!(self.back_from_h2(response, web, alarm, &sent, attempt));
        let decoder = RefCell::default();
        let mut there = self.there(&there_alarm);
        if web.is_some_and(|web| web.request == Form::Text) {
            there.web = Web::Decode(&decoder);
        }
        let there = pin!(async {
            let result = there.h2_to_h2(body, &stream).await;
            if result.is_ok() && self.path.hedges() {
                let body = body.whole();
                self.path.account.stays_alone.set(body.is_none());
                whole.set(body);
            }
            sent.set(result.is_ok());
            self.path.account.mirror_whole(result.is_ok());
            attempt.uploaded(self.path.shard.clock.now());
            result
        });
        let both = pin!(both(there, back, |first| match first {
            First::There(Err(failure)) if failure.side != Side::Upstream => {
                stream.borrow_mut().send_reset(Reason::CANCEL);
            }
            First::There(_) if self.path.account.status.get() == 0 => {
                alarm.by(self.path.shard.clock.now().saturating_add(self.path.patience_ns()));
            }
            First::There(_) => {}
            // Nobody wants the rest: ends the way there, whatever it waits for.
            First::Back => {
                stream.borrow_mut().send_reset(Reason::NO_ERROR);
                there_alarm.by(0);
            }
        }));
        let idle = self.view.snapshot.timeouts.stream_idle;
        let hurry = || {
            alarm.by(0);
            there_alarm.by(0);
        };
        let both = pin!(idle::unless_idle(&self.path, idle, &sent, &[], hurry, both));
        let copy = || self.copied(whole.take().as_ref());
        let (there_result, back_result, back_was_first) =
            hedge::unless_won(&self.path, &sent, || alarm.by(0), copy, self.view, both).await;
        match (there_result, back_result) {
            (Err(there), Err(_)) if there.side != Side::Upstream && !back_was_first => Err(there.into()),
            (_, back) => back,
        }
    }

    async fn back_from_h2(
        &self,
        response: &mut h2::client::ResponseFuture,
        web: Option<Translation>,
        alarm: &Alarm,
        sent: &Cell<bool>,
        attempt: &Attempt,
    ) -> Result<(), Missed> {
        let mut response = Some(self.head_from_h2(response, alarm, sent, attempt).await?);
        if response.as_ref().is_some_and(|response| self.path.withholds_typed(response)) {
            // Dropped: h2 resets the stream if there is more to come.
            return Err(Missed::Again);
        }
        Ok(self.pass_on_from_h2(&mut response, web, alarm).await?)
    }

    /// The head of the response that is not an interim one; those have been passed on.
    pub(super) async fn head_from_h2(
        &self,
        response: &mut h2::client::ResponseFuture,
        alarm: &Alarm,
        sent: &Cell<bool>,
        attempt: &Attempt,
    ) -> Result<Response<RecvStream>, Failure> {
        let gone = |_| Failure::downstream(Stage::Body, Cause::StreamReset);
        let mut interim = self.view.snapshot.limits.interim_responses_max;
        loop {
            let next = head(&self.path, alarm, response, sent.get(), attempt, &mut interim);
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
                Head::Final(response) => return Ok(response),
            }
        }
    }

    /// Passes a response on, head and body.
    pub(super) async fn pass_on_from_h2(
        &self,
        response: &mut Option<Response<RecvStream>>,
        web: Option<Translation>,
        alarm: &Alarm,
    ) -> Result<(), Failure> {
        let gone = |_| Failure::downstream(Stage::Body, Cause::StreamReset);
        // Taken out of its place: as an argument it would have a second one in the future.
        let Some(response) = response.take() else { return Ok(()) };
        self.path.in_time()?;
        let (mut parts, mut from) = response.into_parts();
        message::end_to_end(&mut parts, &self.path.shard.clock);
        let adopted = self.path.account.note_head(&mut parts, self.facts.grpc);
        if let Some(turn) = self.turn {
            turn.apply_to_response_parts(&mut parts);
        }
        let web = web.and_then(|web| web.of_response(&mut parts.headers));
        let status = parts.status.as_u16();
        let length = self.turn.and_then(Turn::shape).and_then(|_| shaped::length_told(&parts.headers));
        self.path.account.mint(&mut parts.headers);
        // What comes behind a head without a body is no part of the response: left, h2 resets the stream.
        let ended = adopted || from.is_end_stream() || matches!(status, 204 | 304);
        self.caller.repeats.borrow_mut().mark(&mut parts.headers);
        let begun = self.respond.borrow_mut().send_response(Response::from_parts(parts, ()), ended);
        let to = RefCell::new(begun.map_err(gone)?);
        self.path.account.status.set(status);
        if ended {
            return Ok(());
        }
        let back = Direction { web: web.map_or(Web::Same, Web::Encode), ..self.back(alarm) };
        if let Some(shape) = back.shape {
            shape.begin(length);
        }
        let (result, reset) =
            unless_reset(|cx| to.borrow_mut().poll_reset(cx), || alarm.by(0), back.h2_to_h2(&mut from, &to))
                .await;
        self.end(&to, result, reset)
    }

    /// A response that has begun ends whole, or with a reset.
    pub(super) fn end(
        &self,
        to: &RefCell<h2::SendStream<Bytes>>,
        result: Result<(), Failure>,
        reset: bool,
    ) -> Result<(), Failure> {
        match result {
            Ok(()) => Ok(()),
            Err(_) if reset => Err(Failure::downstream(Stage::Body, Cause::StreamReset)),
            Err(failure) => {
                give_up(to, self.path.account.reset(failure));
                Err(failure)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One per request, and moved once: far larger costs half a microsecond (4100 bytes did). Far too small fails as well, so
    /// that the bound stays a bound.
    #[test]
    fn the_future_of_an_exchange_stays_small() {
        let size = size_of_output(&exchange);
        assert!((2300..=2944).contains(&size), "{size} bytes");
    }

    fn size_of_output<A, B, C, D, E, F: Future>(_: &impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }
}
