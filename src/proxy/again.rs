//! Further attempts of an exchange: what is known of those that were made, and whether and when there is another.
//!
//! There are two kinds. A *replay* follows at once, because the connection and not the service was at fault: it was dead when
//! it was used again, or was being closed. A *retry* follows when `upstream::retry` says that it is worth it and safe, when the
//! budget has room, and after a pause; it prefers an endpoint that was not tried. The decision falls when an attempt has failed
//! ([`Path::missed`]), or when the head of a response is there and nothing of it has gone to the caller
//! ([`Path::withholds`]); then the response is dropped. A response for which there is no further attempt goes on as it is.
//!
//! Nothing of this costs anything as long as first attempts go well: it lies in a box that is made when it is needed.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::pending;

use super::account::Account;
use super::connect::Tried;
use super::hedge::Racing;
use super::{Path, told};
use crate::failure::{Cause, Failure, Side};
use crate::http::grpc::{self, Status};
use crate::http::{Method, h1};
use crate::shard::clock::{NEVER, ns};
use crate::telemetry::retries::{HedgeEnd, Refusal};
use crate::upstream::retry::{After, Head, Reason};
use crate::upstream::shared::Lease;
use crate::upstream::{budget, limiter};

/// How an attempt ended that brought nothing to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missed {
    /// And there is no other.
    Failed(Failure),
    /// There is another one; all about it stands in the account.
    Again,
}

impl Missed {
    /// How an attempt failed, if it did.
    pub(super) fn failure_of<T>(result: &Result<T, Self>) -> Option<Failure> {
        match result {
            Err(Self::Failed(failure)) => Some(*failure),
            Err(Self::Again) | Ok(_) => None,
        }
    }
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What an exchange knows of its attempts, once one has missed.
#[derive(Default)]
pub(super) struct Further {
    /// Endpoints that missed.
    tried: RefCell<Tried>,
    /// Whether the next attempt wants a connection of its own.
    fresh: Cell<bool>,
    /// A replay because of a dead connection was made; one because a stream was refused; so many because one was closing.
    after_death: Cell<bool>,
    refused: Cell<bool>,
    going: Cell<u8>,
    /// All of them.
    replays: Cell<u16>,
    /// What the response said that was kept from the caller last: its status, and the code of a gRPC call.
    withheld: Cell<Option<(u16, Option<Status>)>>,
    /// Retries, the last reason, and when the next one is due.
    retries: Cell<u8>,
    reason: Cell<Option<Reason>>,
    at: Cell<u64>,
    /// The places, in the budget and among what the service may be given, of the one that is waiting or under way.
    place: Cell<Option<(budget::Further, Option<limiter::Retry>)>>,
    /// An attempt beside the one that is waited for, and whether the last one that there was has won.
    race: RefCell<Option<Racing>>,
    hedge: Cell<Option<HedgeEnd>>,
}

impl fmt::Debug for Further {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Further").field("retries", &self.retries).field("replays", &self.replays).finish()
    }
}

impl Further {
    /// How often a request is sent again because a connection was going away: the next one may do so, too.
    const GOING_MAX: u8 = 3;

    /// Why there was a retry last.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.get()
    }

    /// What became of the last hedge.
    pub(super) fn hedge(&self) -> Option<HedgeEnd> {
        self.hedge.get()
    }

    /// There is one more, for this reason.
    pub(super) fn begins(&self, reason: Reason) {
        self.retries.set(self.retries.get() + 1);
        self.reason.set(Some(reason));
    }

    /// It runs beside the present one.
    pub(super) fn races(&self, racing: Racing) {
        self.hedge.set(Some(HedgeEnd::Lost));
        *self.race.borrow_mut() = Some(racing);
    }

    pub(super) fn hedge_won(&self) {
        self.hedge.set(Some(HedgeEnd::Won));
    }

    /// Asks it, if there is one.
    pub(super) fn race<R>(&self, ask: impl FnOnce(&Racing) -> R) -> Option<R> {
        self.race.borrow().as_ref().map(ask)
    }

    pub(super) fn take_race(&self) -> Option<Racing> {
        self.race.borrow_mut().take()
    }

    /// Ends it, if there is one.
    pub(super) fn ends_race(&self) {
        let racing = self.take_race();
        drop(racing);
    }
}

impl Path<'_> {
    /// How long the service may take from the whole request to the head of its response, in this attempt.
    pub(super) fn patience_ns(&self) -> u64 {
        let response = self.service.spec.timeouts.response;
        let attempt = self.retry.attempt_timeout.filter(|_| !self.is_hedged_in_place());
        ns(attempt.map_or(response, |attempt| attempt.min(response)))
    }

    /// Endpoints not to be chosen, and whether no pooled connection is wanted.
    pub(super) fn avoided(&self) -> (Tried, bool) {
        let Some(further) = self.account.further() else { return (Tried::new(), false) };
        let mut tried = further.tried.borrow_mut();
        if tried.len() >= self.service.spec.endpoints.len() {
            // All were: a second chance for each is better than none.
            tried.clear();
        }
        (tried.clone(), further.fresh.get())
    }

    /// Endpoints that were tried in vain, besides those before.
    pub(super) fn avoid(&self, tried: Tried) {
        *self.account.make_further().tried.borrow_mut() = tried;
    }

    /// The endpoint of the last attempt, besides those before.
    pub(super) fn avoid_last(&self) {
        let mut tried = self.account.make_further().tried.borrow_mut();
        if let Some(endpoint) = self.account.last_endpoint()
            && !tried.contains(&endpoint)
        {
            tried.push(endpoint);
        }
    }

    /// Whether to send a request again because its connection was dead when it was used again: once.
    pub(super) fn replays_after_death(&self) -> bool {
        let further = self.account.make_further();
        !further.after_death.replace(true) && self.replay(further)
    }

    /// Whether to send a request again at once that failed so by HTTP/2 (RFC 9113 §8.7, RFC 9110 §9.2.2).
    pub(super) fn replays_by_http2(
        &self,
        failure: Failure,
        lease: &Lease,
        answered: bool,
        method: Method,
    ) -> bool {
        if failure.cause == Cause::GoingAway {
            let further = self.account.make_further();
            further.going.set(further.going.get() + 1);
            return further.going.get() <= Further::GOING_MAX && self.replay(further);
        }
        if failure.nothing_was_sent() {
            // Once: who refuses for want of room should not be asked more often for it.
            let further = self.account.make_further();
            return !further.refused.replace(true) && self.replay(further);
        }
        lease.reused
            && !answered
            && method != Method::Other
            && failure.is_end_of_connection()
            && self.replays_after_death()
    }

    /// Whether a tunnel that the service has not seen is asked for again: once.
    pub(super) fn replays_unseen(&self) -> bool {
        let further = self.account.make_further();
        further.replays.get() == 0 && self.replay(further)
    }

    fn replay(&self, further: &Further) -> bool {
        if self.account.body_is_gone.get() || self.account.was_idle.get() {
            return false;
        }
        further.replays.set(further.replays.get() + 1);
        further.fresh.set(true);
        further.at.set(0);
        let totals = &self.shard.totals;
        totals.replays.set(totals.replays.get() + 1);
        true
    }

    /// What comes of an attempt that failed, and with nothing of which anything has gone to the caller. `unsent`: the connection
    /// was reset before an octet of the request was written.
    pub(super) fn missed(&self, failure: Failure, unsent: bool) -> Missed {
        if self.retry.is_off() || self.account.status.get() != 0 || self.account.was_idle.get() {
            return Missed::Failed(failure);
        }
        if failure.side == Side::Upstream && self.leaves_it_to_hedge() {
            return Missed::Again;
        }
        match self.retry.reason_of_failure(failure, unsent) {
            Some(reason) if self.is_to_retry(reason, After::Unsaid) => Missed::Again,
            _ => Missed::Failed(failure),
        }
    }

    /// Whether a response of HTTP/1.1 is kept from the caller, because there is to be another attempt.
    pub(super) fn withholds_h1(&self, response: &h1::Response<'_>) -> bool {
        self.has_answered();
        if response.is_interim() {
            return false;
        }
        if response.status < 400 || self.retry.is_off() {
            return self.was_outrun(response.status, None);
        }
        self.withholds(&told_by_h1(response), None)
    }

    /// The same of a response with this head.
    pub(super) fn withholds_typed<B>(&self, response: &http::Response<B>) -> bool {
        self.has_answered();
        let is_said = self.account.is_grpc() && response.headers().contains_key("grpc-status");
        if (response.status().as_u16() < 400 && !is_said) || self.retry.is_off() {
            return self.was_outrun(response.status().as_u16(), None);
        }
        let (head, code) = self.told_by_typed(response);
        self.withholds(&head, code)
    }

    /// What matters of such a head, and the code of a gRPC call.
    pub(super) fn told_by_typed<B>(&self, response: &http::Response<B>) -> (Head, Option<Status>) {
        let (status, headers) = (response.status().as_u16(), response.headers());
        let said = self.account.is_grpc().then(|| headers.get("grpc-status")).flatten();
        let code = match said {
            Some(code) => Some(Status::read(code.as_bytes())),
            // What the caller's library would make of it.
            None if self.account.is_grpc() && status >= 400 => Some(grpc::code_of_status(status).into()),
            None => None,
        };
        let grpc = code.and_then(|code| u8::try_from(code.index()).ok());
        let field = |name| headers.get(name).map(http::HeaderValue::as_bytes);
        let after = match (field("grpc-retry-pushback-ms"), field("retry-after")) {
            (Some(pushback), _) if grpc.is_some() => After::of_pushback(pushback),
            (_, Some(value)) => After::of_field(value, field("date")),
            _ => After::Unsaid,
        };
        let rate_limited = headers.contains_key("x-envoy-ratelimited");
        (Head { status, grpc, rate_limited, after }, code)
    }

    /// The service has decided: what follows may last, and is not what the budget is for.
    fn has_answered(&self) {
        if let Some(further) = self.account.further() {
            further.place.set(None);
        }
    }

    fn withholds(&self, head: &Head, code: Option<Status>) -> bool {
        let Some(reason) = self.retry.reason_of_head(head) else { return self.was_outrun(head.status, code) };
        let withheld = self.leaves_it_to_hedge() || self.is_to_retry(reason, head.after);
        if withheld {
            self.account.make_further().withheld.set(Some((head.status, code)));
        }
        withheld
    }

    /// Of a response that the caller should have: whether a hedge has brought another one before. If not it ends.
    fn was_outrun(&self, status: u16, code: Option<Status>) -> bool {
        let Some(further) = self.account.further() else { return false };
        let was_outrun = self.hedge_has_won();
        if was_outrun {
            further.withheld.set(Some((status, code)));
        } else {
            further.ends_race();
            self.hedge_span_ends(None);
        }
        was_outrun
    }

    /// Of an attempt that brings nothing: whether a hedge may bring something, or has.
    fn leaves_it_to_hedge(&self) -> bool {
        let ask = |racing: &Racing| {
            racing.is_alone();
            racing.goes_on()
        };
        self.account.further().and_then(|further| further.race(ask)).unwrap_or(false)
    }

    /// Whether there is another attempt in progress, with which to go on.
    pub(super) fn is_hedged(&self) -> bool {
        self.account.further().and_then(|further| further.race(Racing::goes_on)).unwrap_or(false)
    }

    /// Whether a hedge has brought something, so that what ends the present attempt is this proxy's doing.
    pub(super) fn hedge_has_won(&self) -> bool {
        self.account.further().and_then(|further| further.race(Racing::has_won)).unwrap_or(false)
    }

    /// How many more attempts there may be.
    pub(super) fn attempts_left(&self) -> u16 {
        let replays = self.account.further().map_or(0, |further| further.replays.get());
        u16::from(self.retry.attempts_max).saturating_sub(self.account.attempts.get().saturating_sub(replays))
    }

    /// Whether there is to be another attempt for this reason; then its place in the budget is taken and its time is set.
    fn is_to_retry(&self, reason: Reason, after: After) -> bool {
        let Self { shard, account, service, .. } = self;
        if !reason.is_unprocessed() && !account.repeats.get() {
            return false;
        }
        let refused = |why| {
            shard.recorder.borrow_mut().record_retry_refused(service.recorder_slot, why);
            false
        };
        let retries = account.further().map_or(0, |further| further.retries.get());
        if self.attempts_left() == 0 {
            return refused(Refusal::Attempts);
        }
        if account.body_is_gone.get() {
            return refused(Refusal::Body);
        }
        let pause_ns = shard.rng(|rng| self.retry.pause_ns(u32::from(retries) + 1, after, rng));
        let Some(pause_ns) = pause_ns else { return refused(Refusal::Asked) };
        let at = shard.clock.now().saturating_add(pause_ns);
        if at >= self.deadline || shard.is_cut() {
            return refused(Refusal::Deadline);
        }
        let further = account.make_further();
        // That of the attempt before, which is over.
        further.place.set(None);
        let Some(place) = service.gauge.further(self.retry.budget) else { return refused(Refusal::Budget) };
        let capped = match &service.limiter {
            None => None,
            Some(limiter) => match limiter.retry() {
                None => return refused(Refusal::Caps),
                capped => capped,
            },
        };
        further.place.set(Some((place, capped)));
        further.begins(reason);
        further.at.set(at);
        further.fresh.set(false);
        self.avoid_last();
        shard.recorder.borrow_mut().record_retry(service.recorder_slot, reason);
        true
    }

    /// Which attempt this is, from 1, for a service that is to be told.
    pub(super) fn attempt_told(&self) -> Option<u8> {
        let retries = self.account.further().map_or(0, |further| further.retries.get());
        self.retry.attempt_field.then_some(retries + 1)
    }

    /// Says in a canonical head which attempt it is and what is left of its time, where the service is to be told. So many octets
    /// stand behind it.
    pub(super) fn tell_attempt(&self, request: &mut Vec<u8>, behind: usize) {
        let fields =
            [(told::ATTEMPT, self.attempt_told().map(u64::from)), (told::DEADLINE, self.left_told())];
        let is_first = self.account.telling.is_none();
        for (name, value) in fields {
            let Some(value) = value else { continue };
            let mut head_len = request.len() - behind;
            if !is_first {
                head_len = told::take_out(request, head_len, name);
            }
            told::put(request, head_len, name, value);
            self.account.telling.note_none(false);
        }
        self.tell_trace(request, behind);
    }

    /// The same in a head for HTTP/2.
    pub(super) fn tell_attempt_typed(&self, headers: &mut http::HeaderMap) {
        if let Some(number) = self.attempt_told() {
            headers.insert(told::ATTEMPT, u16::from(number).into());
        }
        if let Some(left_ms) = self.left_told() {
            headers.insert(told::DEADLINE, left_ms.into());
        }
        self.tell_trace_typed(headers);
    }

    /// What is left of the time of this exchange, or of this attempt if that is less, ms, for a service that is to be told.
    fn left_told(&self) -> Option<u64> {
        if !self.account.telling.tells_deadline() || self.deadline == NEVER {
            return None;
        }
        let left_ns = self.deadline.saturating_sub(self.shard.clock.now()).min(self.patience_ns());
        // Never 0, which others take for as long as it likes.
        Some((left_ns / 1_000_000).max(1))
    }

    /// Whether the next attempt is not due yet.
    pub(super) fn is_to_pause(&self) -> bool {
        self.account.further().is_some_and(|further| further.at.get() > self.shard.clock.now())
    }

    /// Waits until the next attempt is due. May be dropped.
    pub(super) async fn pause(&self) {
        if !self.is_to_pause() {
            return;
        }
        let at = self.account.further().map_or(0, |further| further.at.get());
        self.account.wait(self.shard.clock.now());
        let _: Option<()> = self.shard.deadlines.alarm().until(at, pending()).await;
        self.account.waited(self.shard.clock.now());
    }
}

/// What matters of a head of HTTP/1.1.
pub(super) fn told_by_h1(response: &h1::Response<'_>) -> Head {
    let after = response.field("retry-after");
    Head {
        status: response.status,
        grpc: None,
        rate_limited: response.field("x-envoy-ratelimited").is_some(),
        after: after.map_or(After::Unsaid, |value| After::of_field(value, response.field("date"))),
    }
}

impl Account {
    /// What is known of its attempts, once one has missed.
    pub(super) fn further(&self) -> Option<&Further> {
        self.further.get().map(|further| &**further)
    }

    /// What a response said that is kept from the caller: nobody else notes it, and it tells of its endpoint like any other.
    pub(super) fn withheld(&self) -> Option<(u16, Option<Status>)> {
        self.further().and_then(|further| further.withheld.get())
    }

    /// Another attempt begins.
    pub(super) fn forget_withheld(&self) {
        if let Some(further) = self.further() {
            further.withheld.set(None);
        }
    }

    fn make_further(&self) -> &Further {
        self.further.get_or_init(Box::default)
    }
}
