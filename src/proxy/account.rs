//! What is noted of an exchange while it goes on, and recorded when it has ended.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::rc::Rc;

use http::HeaderValue;

use super::again::Further;
use super::counted::Awaiting;
use super::mirror::Pending;
use super::told::Telling;
use super::traced::{Live, Mode, Said};
use crate::authorize::Decision;
use crate::downstream::{Asked, Downstream, Places};
use crate::failure::{Cause, Failure, Side};
use crate::http::grpc::{self, Code, Dialect, Messages, Status};
use crate::http::h1::{Glimpse, glimpse};
use crate::identity::SpiffeId;
use crate::route::fault::Made;
use crate::route::wish;
use crate::shard::clock::{NEVER, ns};
use crate::shard::{Gathered, Shard, View};
use crate::telemetry::access::Line;
use crate::telemetry::recorder::{Ended, GrpcEnded};
use crate::upstream::affinity::{Affinity, Minted};
use crate::upstream::balance::Wanted;
use crate::upstream::limiter::{Outcome, Pass};
use crate::upstream::service::{Attempt, Service};

/// An exchange's account. `Cell`s, because both directions of a streamed exchange write into it.
#[derive(Default)]
pub(super) struct Account {
    /// When the request's first byte was here.
    pub(super) started: u64,
    /// When the response's first byte was here; 0 before.
    pub(super) first_byte_at: Cell<u64>,
    /// Held while the first of the answer is waited for.
    awaits: Cell<Option<Awaiting>>,
    /// The status sent to the caller; 0 before.
    pub(super) status: Cell<u16>,
    /// Attempts made.
    pub(super) attempts: Cell<u16>,
    /// The endpoint of the last attempt, plus one: an `Option<u32>` takes twice the room, and there is one per connection.
    endpoint: Cell<Option<NonZeroU32>>,
    /// What is known of its attempts, once one has missed.
    pub(super) further: OnceCell<Box<Further>>,
    /// Whether the request may be done twice.
    pub(super) repeats: Cell<bool>,
    /// Whether there can be no attempt beside another one: not all of it was there when it was sent, or a tunnel is asked for.
    pub(super) stays_alone: Cell<bool>,
    /// What the service is told of attempts and deadlines.
    pub(super) telling: Telling,
    /// Whether something of its body is gone, so that it cannot be sent again.
    pub(super) body_is_gone: Cell<bool>,
    /// Bytes of the request's body that were passed on.
    pub(super) request_body_bytes: Cell<u64>,
    /// Bytes of the response's body that were passed on.
    pub(super) response_body_bytes: Cell<u64>,
    /// What is wanted of the endpoint, where something is.
    affinity: OnceCell<Box<Affinity>>,
    /// Whether it became a tunnel.
    tunnel: Cell<bool>,
    /// What only few exchanges have: one place for all of it, since there is an account per connection.
    seldom: OnceCell<Box<Seldom>>,
    /// Waits for either peer that are going on, since when there is at least one, and the sum of those that are over.
    waiting: Cell<u8>,
    /// Its place at a service that may be given so much at a time.
    pub(super) place: Cell<Pass>,
    waiting_since: Cell<u64>,
    waited_ns: Cell<u64>,
    /// Waits for either peer that are over: while this stays as it is, nothing moves. It wraps.
    pub(super) moves: Cell<u32>,
    /// Whether it was ended because nothing moved.
    pub(super) was_idle: Cell<bool>,
    /// What it is to distributed tracing.
    pub(super) trace: Cell<Mode>,
    /// 4 s at most.
    leaving_ns: Cell<u32>,
}

/// What only few exchanges have.
#[derive(Default)]
struct Seldom {
    /// Of a gRPC call.
    grpc: OnceCell<Tally>,
    /// A copy of its request that waits for the rest of it.
    mirror: OnceCell<Box<Pending>>,
    /// Of one that is recorded for distributed tracing.
    live: OnceCell<Box<Live>>,
}

/// What is noted of a gRPC call.
#[derive(Debug, Default)]
struct Tally {
    request_messages: Cell<Messages>,
    response_messages: Cell<Messages>,
    /// What the response said.
    status: Cell<Option<Status>>,
    /// How the service reset the stream last.
    reset: Cell<Option<h2::Reason>>,
}

impl Account {
    /// Of the time since `started` the caller was waited for so long.
    pub(super) fn new(started: u64, waited_us: u32) -> Self {
        Self { started, waited_ns: (u64::from(waited_us) * 1000).into(), ..Self::default() }
    }

    /// From here on an answer is waited for.
    pub(super) fn awaits(&self, shard: &Rc<Shard>) {
        self.awaits.set(Some(Awaiting::count(shard)));
    }

    /// The first of it is here.
    pub(super) fn answered(&self, now: u64) {
        self.first_byte_at.set(now);
        self.awaits.take();
    }

    fn grpc(&self) -> Option<&Tally> {
        self.seldom.get()?.grpc.get()
    }

    /// A copy of its request that waits for the rest of it.
    pub(super) fn mirror(&self) -> Option<&Pending> {
        Some(self.seldom.get()?.mirror.get()?)
    }

    /// A copy is to be made of this exchange's request when that is whole. There is one decision for each exchange.
    pub(super) fn mirrored(&self, pending: Box<Pending>) {
        let _ = self.seldom.get_or_init(Box::default).mirror.set(pending);
    }

    /// What is known of one that is recorded for distributed tracing.
    pub(super) fn noted_live(&self) -> Option<&Live> {
        Some(self.seldom.get()?.live.get()?)
    }

    /// Notes that. There is one decision for each exchange.
    pub(super) fn note_live(&self, live: Box<Live>) {
        let _ = self.seldom.get_or_init(Box::default).live.set(live);
    }

    /// Where the exchange is to go within its service, if that matters.
    pub(super) fn want(&self, affinity: Option<Box<Affinity>>) {
        if let Some(affinity) = affinity {
            self.affinity.get_or_init(|| affinity);
        }
    }

    /// The same, for the balancer.
    pub(super) fn wanted(&self) -> Wanted {
        let Some(affinity) = self.affinity.get() else { return Wanted::default() };
        Wanted { subset: affinity.subset, key: affinity.key }
    }

    /// The cookie that the response has to set, once: not in interim ones.
    pub(super) fn minted(&self) -> Option<&Minted> {
        self.affinity.get()?.minted.as_ref()
    }

    /// What the exchange wanted, empty, for the next one on its connection.
    pub(super) fn spent(self) -> Option<Box<Affinity>> {
        let mut affinity = self.affinity.into_inner()?;
        *affinity = Affinity::default();
        Some(affinity)
    }

    /// Sets the cookie in a response that goes on as fields.
    pub(super) fn mint(&self, headers: &mut http::HeaderMap) {
        if let Some(value) = self.minted().and_then(|minted| HeaderValue::from_str(minted.as_str()).ok()) {
            headers.append(http::header::SET_COOKIE, value);
        }
    }

    /// An attempt begins, on that endpoint. What was noted of the one before says nothing any more.
    pub(super) fn attempt(&self, endpoint: u32) {
        self.attempts.set(self.attempts.get() + 1);
        self.endpoint.set(NonZeroU32::new(endpoint.saturating_add(1)));
        if self.further.get().is_some() {
            self.forget_withheld();
            self.first_byte_at.set(0);
            self.request_body_bytes.set(0);
            if let Some(messages) = self.request_messages() {
                messages.take();
            }
        }
    }

    /// The attempt that has begun goes on to another endpoint than it was meant for.
    pub(super) fn goes_to(&self, endpoint: u32) {
        self.endpoint.set(NonZeroU32::new(endpoint.saturating_add(1)));
        self.span_goes_to(endpoint);
    }

    /// A hedge takes the place of the attempt that it began beside. It tried so many endpoints.
    pub(super) fn take_over(&self, hedge: &Attempt, first_byte_at: u64, attempts: u16) {
        self.forget_withheld();
        self.attempts.set(self.attempts.get() + attempts.saturating_sub(1));
        self.endpoint.set(NonZeroU32::new(hedge.endpoint.saturating_add(1)));
        self.answered(first_byte_at);
        self.hedge_span_takes_over(hedge.endpoint);
    }

    /// The endpoint of the last attempt.
    pub(super) fn last_endpoint(&self) -> Option<u32> {
        self.endpoint.get().map(|endpoint| endpoint.get() - 1)
    }

    /// A wait for a peer begins. Waits that overlap count once.
    pub(super) fn wait(&self, now: u64) {
        if self.waiting.replace(self.waiting.get() + 1) == 0 {
            self.waiting_since.set(now);
        }
    }

    /// A wait for a peer is over.
    pub(super) fn waited(&self, now: u64) {
        self.waiting.set(self.waiting.get() - 1);
        self.moves.set(self.moves.get().wrapping_add(1));
        if self.waiting.get() == 0 {
            self.waited_ns.set(self.waited_ns.get() + now.saturating_sub(self.waiting_since.get()));
        }
    }

    /// The wait since then for what came by HTTP/2 is over. It lasted from when the request had left until the answer came,
    /// not until it was the exchange's turn to see it: what lies between is this proxy's.
    pub(super) fn waited_for_http2(&self, since: u64, now: u64, gathered: &Gathered) {
        let arrived_at = gathered.arrived_at.get().clamp(since, now);
        self.waited(arrived_at);
        let leaving_ns = gathered.departing_ns.get().min(arrived_at - since);
        self.waited_ns.set(self.waited_ns.get().saturating_sub(leaving_ns));
    }

    /// What is sent to the caller by HTTP/2 leaves after the exchange has ended: so long after that, as far as one can tell.
    pub(super) fn leaves_later(&self, gathered: &Gathered) {
        self.leaving_ns.set(u32::try_from(gathered.departing_ns.get()).unwrap_or(u32::MAX));
    }

    /// It is a gRPC call.
    pub(super) fn begin_grpc(&self) {
        self.seldom.get_or_init(Box::default).grpc.get_or_init(Tally::default);
    }

    /// Whether it is one.
    pub(super) fn is_grpc(&self) -> bool {
        self.grpc().is_some()
    }

    /// When a gRPC call with these fields must have ended; [`NEVER`] where it does not say.
    pub(super) fn grpc_deadline(&self, fields: &http::HeaderMap) -> u64 {
        let timeout = fields.get("grpc-timeout").and_then(|value| grpc::timeout(value.as_bytes()));
        timeout.map_or(NEVER, |timeout| self.started.saturating_add(ns(timeout)))
    }

    /// Where the messages of the way there are counted.
    pub(super) fn request_messages(&self) -> Option<&Cell<Messages>> {
        self.grpc().map(|tally| &tally.request_messages)
    }

    /// Where the messages of the way back are counted.
    pub(super) fn response_messages(&self) -> Option<&Cell<Messages>> {
        self.grpc().map(|tally| &tally.response_messages)
    }

    /// Makes the answer to a gRPC call gRPC where it is not (whether it was not), and notes what it says.
    pub(super) fn note_head(&self, parts: &mut http::response::Parts, dialect: Option<Dialect>) -> bool {
        let dialect = dialect.unwrap_or(Dialect::Native);
        let adopted = self.grpc().is_some() && grpc::adopt(parts, dialect);
        self.note_trailers(&parts.headers);
        adopted
    }

    /// Notes what matters of a response's trailers, or of its head where that is all there is: the outcome of a gRPC call.
    pub(super) fn note_trailers(&self, trailers: &http::HeaderMap) {
        if let (Some(tally), Some(status)) = (self.grpc(), trailers.get("grpc-status")) {
            tally.status.set(Some(Status::read(status.as_bytes())));
        }
    }

    /// The exchange is a tunnel from here on: one long wait. Its bytes are recorded while it lives.
    pub(super) fn tunnel_begins(&self, now: u64) {
        self.tunnel.set(true);
        // How long it lasts is up to its ends: it counts as a connection, not as an exchange.
        let first_byte_at = self.first_byte_at.get();
        let answered_ns = (first_byte_at > 0).then_some(first_byte_at);
        self.give_place_back(Outcome { well: Some(true), answered_ns }, now);
        self.wait(now);
    }

    /// Gives its place at the service back, if it has one.
    fn give_place_back(&self, outcome: Outcome, now: u64) {
        self.place.take().end(outcome, now);
    }

    /// What the end of the exchange tells of the service: an error is no latency, however soon it came; that no answer came in
    /// time is one.
    fn outcome(&self, failure: Option<Failure>, now: u64) -> Outcome {
        let first_byte_at = self.first_byte_at.get();
        let answered_ns = (first_byte_at > 0).then_some(first_byte_at);
        match failure {
            Some(failure) if failure.side == Side::Upstream => {
                Outcome { well: Some(false), answered_ns: (failure.cause == Cause::Timeout).then_some(now) }
            }
            // The caller's doing, or ours.
            Some(_) => Outcome::default(),
            None => {
                let grpc = self.grpc().and_then(|tally| tally.status.get());
                let well = self.status.get() < 500 && !grpc.is_some_and(Status::is_overload_or_outage);
                Outcome { well: Some(well), answered_ns: answered_ns.filter(|_| well) }
            }
        }
    }

    /// Notes how a stream failed.
    pub(super) fn note_error(&self, error: &h2::Error) {
        if let Some(tally) = self.grpc()
            && error.is_remote()
            && error.is_reset()
        {
            tally.reset.set(error.reason());
        }
    }

    /// The code for a call that ends with this failure.
    pub(super) fn grpc_code(&self, failure: Failure) -> Code {
        self.reset_of(failure).map_or_else(|| grpc::code_of(failure), grpc::code_of_reset)
    }

    /// How a response that broke off is reset: as the service did it where that has a meaning in gRPC (and does not say that
    /// nothing was done), so that the caller comes to the same code.
    pub(super) fn reset(&self, failure: Failure) -> h2::Reason {
        use h2::Reason;
        let telling = [Reason::CANCEL, Reason::ENHANCE_YOUR_CALM, Reason::INADEQUATE_SECURITY];
        self.reset_of(failure).filter(|reason| telling.contains(reason)).unwrap_or(Reason::INTERNAL_ERROR)
    }

    /// How the service reset the stream, if that is what failed.
    fn reset_of(&self, failure: Failure) -> Option<h2::Reason> {
        let by_reset = matches!(failure.cause, Cause::StreamReset | Cause::StreamRefused);
        self.grpc()?.reset.get().filter(|_| by_reset && failure.side == Side::Upstream)
    }

    /// What the service has said of a gRPC call; [`Status::ABSENT`] where it has said nothing. `None` where it is none.
    pub(super) fn grpc_status(&self) -> Option<Status> {
        Some(self.grpc()?.status.get().unwrap_or(Status::ABSENT))
    }

    /// How the call ended: what the service said, else what the caller's library makes of what came.
    fn grpc_ended(&self, failure: Option<Failure>) -> Option<GrpcEnded> {
        let tally = self.grpc()?;
        let ended = || failure.map_or(Status::ABSENT, |failure| self.grpc_code(failure).into());
        let status = tally.status.get().unwrap_or_else(ended);
        Some(GrpcEnded {
            status,
            request_messages: tally.request_messages.get().whole(),
            response_messages: tally.response_messages.get().whole(),
        })
    }

    /// What has become of it.
    fn ended(&self, failure: Option<Failure>, now: u64) -> Ended {
        let whole_ns = now - self.started + u64::from(self.leaving_ns.get());
        let first_byte_ns = match self.first_byte_at.get() {
            0 => None,
            at => Some(at - self.started),
        };
        Ended {
            status: self.status.get(),
            failure,
            attempts: self.attempts.get().into(),
            retried: self.further().and_then(Further::reason),
            hedge: self.further().and_then(Further::hedge),
            fault: None,
            wishes: None,
            request_body_bytes: self.request_body_bytes.get(),
            response_body_bytes: self.response_body_bytes.get(),
            first_byte_ns,
            whole_ns,
            own_ns: whole_ns.saturating_sub(self.waited_ns.get()),
            tunnel: self.tunnel.get(),
            grpc: self.grpc_ended(failure),
        }
    }

    /// Records one of this proxy's own, which nobody called for: it has no route and no line in the access log.
    pub(super) fn close_own(&self, shard: &Shard, service: &Service, failure: Option<Failure>) {
        let now = shard.clock.now();
        self.give_place_back(self.outcome(failure, now), now);
        if let Some(failure) =
            failure.filter(|failure| failure.side != Side::Downstream && self.status.get() == 0)
        {
            // As one of a caller would have been answered.
            self.status.set(failure.status());
        }
        shard.recorder.borrow_mut().record(service.recorder_slot, &self.ended(failure, now));
    }

    /// Records the exchange in telemetry and access log.
    pub(super) fn close(
        &self,
        shard: &Shard,
        view: &View,
        shown: &Shown<'_>,
        service: Option<&Rc<Service>>,
        failure: Option<Failure>,
    ) {
        let now = shard.clock.now();
        self.give_place_back(self.outcome(failure, now), now);
        let ended = Ended { fault: shown.fault, wishes: shown.wishes, ..self.ended(failure, now) };
        let slot = service.map_or(View::NO_SERVICE, |s| s.recorder_slot);
        let counted = if ended.tunnel {
            Ended { request_body_bytes: 0, response_body_bytes: 0, ..ended }
        } else {
            ended
        };
        let route = shown.route.and_then(|r| view.snapshot.routes.routes().get(r as usize));
        {
            let mut recorder = shard.recorder.borrow_mut();
            recorder.record(slot, &counted);
            if let (Some(route), Some(known)) = (route, shown.route.and_then(|id| view.route_slot(id))) {
                known.set(recorder.record_route(known.get(), &route.name, &counted));
            }
        }
        if let Some(format) = view.snapshot.access_log {
            let line = Line {
                started: self.started,
                peer: shown.peer,
                identity: shown.identity,
                decided: shown.decision.map(|decision| (decision, &*view.snapshot.authorization)),
                listener: shown.listener,
                protocol: shown.protocol,
                method: shown.method,
                target: shown.target,
                host: shown.host,
                route: route.map(|r| &*r.name),
                service: service.map(|s| &*s.spec.name),
                endpoint: service
                    .zip(self.last_endpoint())
                    .and_then(|(s, e)| s.spec.endpoints.get(e as usize))
                    .map(|e| &e.address),
                rate_limit: shown.rate_limit,
                rate_limit_failure: shown.rate_limit_failure,
                trace: self.trace_told(shown.said),
                ended: &ended,
            };
            shard.access_log.borrow_mut().write(format, &line, &shard.clock, &shard.link);
        }
        self.end_trace(shard, view, shown, service.map(|service| &**service), &ended);
    }
}

/// What the access log shows of a request.
pub(super) struct Shown<'x> {
    pub(super) peer: SocketAddr,
    pub(super) listener: &'x str,
    /// Whether its connection is encrypted.
    pub(super) encrypted: bool,
    /// Empty where it cannot be made out, as the two below.
    pub(super) method: &'x [u8],
    pub(super) target: &'x [u8],
    pub(super) host: &'x [u8],
    pub(super) route: Option<u32>,
    pub(super) identity: Option<&'x SpiffeId>,
    pub(super) decision: Option<&'x Decision>,
    /// What its route did to it on purpose.
    pub(super) fault: Option<Made>,
    /// The limit by which it came too soon, or that had it refused because it was not known.
    pub(super) rate_limit: Option<&'x str>,
    /// Why a limit that is shared with other proxies was not known.
    pub(super) rate_limit_failure: Option<&'static str>,
    /// What was made of what its caller said of retries and timeouts.
    pub(super) wishes: Option<wish::Outcome>,
    /// What the caller spoke; a ringmesh says what its own caller did.
    pub(super) protocol: &'static str,
    /// Its fields, where they are at hand.
    pub(super) said: Option<Said<'x>>,
}

impl<'x> Shown<'x> {
    /// Of a request that came by HTTP/1.1: parts of the head, which still lies in the input. Of one that was refused:
    /// what can be made out.
    pub(super) fn of(downstream: &'x Downstream, asked: Option<&'x Asked>) -> Self {
        let input = &downstream.input;
        let part = |p: &Range<u32>| input.get(p.start as usize..p.end as usize).unwrap_or_default();
        let Glimpse { method, target, host } = match asked.map(|a| &a.places) {
            Some(Places { method, target, host }) => {
                Glimpse { method: part(method), target: part(target), host: part(host) }
            }
            None => glimpse(input),
        };
        Self {
            peer: downstream.peer,
            listener: &downstream.listener,
            encrypted: downstream.connection.is_encrypted(),
            method,
            target,
            host,
            route: asked.and_then(|a| a.route.id()),
            identity: downstream.identity.as_ref().map(|peer| &peer.id),
            fault: asked.and_then(|asked| asked.turn.as_ref()?.fault()),
            decision: asked.map(|a| &a.decision),
            rate_limit: asked.and_then(|a| a.turn.as_ref()?.rate_limit()),
            rate_limit_failure: asked.and_then(|a| a.turn.as_ref()?.rate_limit_failure()),
            wishes: asked.and_then(|asked| {
                let route = asked.route.id().and_then(|id| asked.view.snapshot.routes.route(id));
                asked.turn.as_ref()?.wishes(route)
            }),
            protocol: asked.map_or("", |a| a.version.name()),
            said: Some(Said::Raw(asked.and_then(|a| input.get(..a.head_len)).unwrap_or(input))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_by_http2_lasts_from_the_leaving_of_the_request_to_the_coming_of_the_answer() {
        let gathered = Gathered { arrived_at: Cell::new(1800), departing_ns: Cell::new(300) };
        let waited = |since, now| {
            let account = Account::new(0, 0);
            account.wait(since);
            account.waited_for_http2(since, now, &gathered);
            account.waited_ns.get()
        };
        // Handed over at 1000 and gone at 1300; come at 1800, seen at 1900.
        assert_eq!(waited(1000, 1900), 500);
        // What was read last came before the wait, or leaving took longer than the answer: no wait.
        assert_eq!(waited(1850, 1900), 0);
        assert_eq!(waited(1700, 1900), 0);
        // Not beyond what is known.
        assert_eq!(waited(1000, 1500), 200);
    }
}
