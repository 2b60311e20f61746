//! Hedges: another attempt beside one that is not answered for long, on another endpoint. The first that brings what the caller
//! should have goes on; the other is ended, and that is no failure of its endpoint.
//!
//! A hedge is a task of its own, as a copy for a mirror is: no operation of either is dropped. It goes as far as the head of its
//! response, which it leaves in the [`Race`]. The exchange sees that while it waits for its own attempt ([`unless_won`]), hurries
//! that to its end, and takes the hedge over in place of its next attempt ([`Path::take_over`], `Call::take_over`); from there all is
//! as with any attempt. When the exchange goes on with its own attempt, or ends, it drops its end of the race, and that ends the hedge.
//!
//! Nothing of this costs anything where no policy hedges, and little before one does. Refuses what may not be done twice, what is not whole, and tunnels.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use http::{Response, header};

use super::account::Account;
use super::again::Missed;
use super::connect::To;
use super::from_h2::Call;
use super::kept::Whole;
use super::over_h2;
use super::relay::unless_reset;
use super::{Fate, Path, SHED, beside, idle, response};
use crate::downstream::{Asked, Downstream};
use crate::failure::{Cause, Failure, Stage};
use crate::http::body::Reframer;
use crate::http::edit::Edits;
use crate::http::grpc_web::Translation;
use crate::http::h1;
use crate::http::h2::{self as message, Origin};
use crate::http::{Framing, Method};
use crate::io::timed::Alarm;
use crate::io::{Connection, Control, Patience};
use crate::shard::buffers::Buffer;
use crate::shard::clock::{NEVER, ns};
use crate::shard::{Shard, View, task};
use crate::snapshot::Snapshot;
use crate::telemetry::retries::Refusal;
use crate::upstream::affinity::Affinity;
use crate::upstream::pool::Pooled;
use crate::upstream::retry::{Head as Told, Hedge, Policy, Reason};
use crate::upstream::service::{Attempt, Service};
use crate::upstream::shared::Lease;
use crate::upstream::{budget, limiter};

/// After a hedge has won, the attempt that lost is hurried again as often as this until it has ended: what it reads just then may
/// be a part of something.
const HURRY_AGAIN_NS: u64 = 10_000_000;

/// What an exchange and its hedge know of each other.
#[derive(Default)]
struct Race {
    standing: Cell<Standing>,
    /// What it left.
    reached: RefCell<Option<Box<Reached>>>,
    /// The exchange, when it waits.
    exchange: RefCell<Option<Waker>>,
    /// What the hedge waits for.
    waits: RefCell<Waits>,
    /// Whether no other attempt is in progress: then whatever comes of it is wanted.
    is_alone: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    #[default]
    Runs,
    /// It has something for the caller.
    Answered,
    /// It has nothing, because of that.
    Missed(Failure),
    /// Nobody wants it any more.
    Unwanted,
}

/// How what it waits for is ended.
#[derive(Default)]
enum Waits {
    #[default]
    Nothing,
    Connection(Control),
    Stream(Rc<Alarm>),
}

/// The exchange's end of a race. Dropped, it ends the hedge.
pub(super) struct Racing(Rc<Race>);

/// A hedge that was answered.
pub(super) struct Reached {
    attempt: Attempt,
    began: u64,
    first_byte_at: u64,
    /// Endpoints tried for it, the last one included.
    attempts: u16,
    answer: Answer,
}

enum Answer {
    /// The connection, and what was read of it: the whole head at least, and no interim one.
    H1(Pooled, Input),
    H2(Lease, Response<RecvStream>, Option<Translation>),
}

/// A buffer that is given back also where nobody wants what is in it any more: else the shard would count it for ever.
struct Input(Rc<Shard>, Buffer);

impl Input {
    fn take(mut self) -> Buffer {
        std::mem::take(&mut self.1)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.buffers.give(std::mem::take(&mut self.1));
    }
}

/// A request once more.
pub(super) struct Copied {
    /// Canonical.
    pub(super) head: Vec<u8>,
    pub(super) body: Bytes,
    pub(super) method: Method,
    pub(super) framing: Framing,
    /// By what it came, where that was not HTTP/2.
    pub(super) origin: Option<Origin>,
    /// Whether gRPC-Web is translated for its caller.
    pub(super) translates: bool,
}

impl Race {
    fn is_unwanted(&self) -> bool {
        self.standing.get() == Standing::Unwanted
    }

    /// What becomes of it, told once.
    fn settles(&self, standing: Standing) {
        self.waits.take();
        if !self.is_unwanted() {
            self.standing.set(standing);
            if let Some(waker) = self.exchange.take() {
                waker.wake();
            }
        }
    }

    /// Whether the hedge goes on; what it waits for can be ended from now on.
    fn begins_to_wait(&self, waits: Waits) -> bool {
        self.waits.replace(waits);
        !self.is_unwanted()
    }

    fn poll_settled(&self, cx: &Context<'_>) -> Poll<()> {
        if self.standing.get() != Standing::Runs {
            return Poll::Ready(());
        }
        *self.exchange.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Racing {
    /// Whether it may still bring something, or has.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.0.standing.get(), Standing::Runs | Standing::Answered)
    }

    /// Whether it has brought something.
    pub(super) fn has_won(&self) -> bool {
        self.0.standing.get() == Standing::Answered
    }

    /// The attempt beside it has ended without.
    pub(super) fn is_alone(&self) {
        self.0.is_alone.set(true);
    }
}

impl Drop for Racing {
    fn drop(&mut self) {
        self.0.standing.set(Standing::Unwanted);
        match self.0.waits.take() {
            Waits::Nothing => {}
            Waits::Connection(control) => control.shutdown(),
            Waits::Stream(alarm) => alarm.by(0),
        }
        if let Some(waker) = self.0.exchange.take() {
            waker.wake();
        }
        // Outside of the borrow: what is dropped here may end a stream.
        let reached = self.0.reached.take();
        drop(reached);
    }
}

/// Drives `exchange`, one attempt, to its end. When its request is `sent` and not answered for as long as the policy says, a hedge
/// of `copy` begins; when that has won, `hurry` must end what the attempt waits for.
pub(super) async fn unless_won<E: Future>(
    path: &Path<'_>,
    sent: &Cell<bool>,
    hurry: impl Fn(),
    copy: impl Fn() -> Option<Copied>,
    view: &View,
    mut exchange: Pin<&mut E>,
) -> E::Output {
    let Some(mut hedging) = Hedging::new(path, sent, view) else { return exchange.await };
    poll_fn(|cx| hedging.poll(&hurry, &copy, |cx| exchange.as_mut().poll(cx), cx)).await
}

/// The same for who polls by himself.
pub(super) struct Hedging<'x> {
    path: &'x Path<'x>,
    sent: &'x Cell<bool>,
    view: &'x View,
    alarm: Alarm,
    step: Step,
}

impl<'x> Hedging<'x> {
    /// `None` where there is no hedge whatever comes.
    pub(super) fn new(path: &'x Path<'x>, sent: &'x Cell<bool>, view: &'x View) -> Option<Self> {
        let alarm = || path.shard.deadlines.alarm();
        path.hedges().then(|| Self { path, sent, view, alarm: alarm(), step: Step::Sends })
    }

    /// As [`unless_won`].
    pub(super) fn poll<T>(
        &mut self,
        hurry: impl Fn(),
        copy: impl Fn() -> Option<Copied>,
        mut exchange: impl FnMut(&mut Context<'_>) -> Poll<T>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        let Self { path, sent, view, alarm, step } = self;
        if let Poll::Ready(output) = exchange(cx) {
            return Poll::Ready(output);
        }
        let clock = &path.shard.clock;
        match step {
            Step::Sends if sent.get() => {
                let due =
                    path.hedge_after_ns().map_or(NEVER, |after_ns| clock.now().saturating_add(after_ns));
                alarm.set(due, cx.waker());
                *step = Step::Waits;
            }
            Step::Waits if alarm.has_rung(cx.waker()) => {
                path.hedge(&copy, view);
                *step = Step::Races;
            }
            Step::Won if alarm.has_rung(cx.waker()) => {
                hurry();
                alarm.set(clock.now().saturating_add(HURRY_AGAIN_NS), cx.waker());
            }
            Step::Sends | Step::Waits | Step::Races | Step::Won => {}
        }
        if *step == Step::Races && path.poll_won(cx).is_ready() {
            hurry();
            alarm.set(clock.now().saturating_add(HURRY_AGAIN_NS), cx.waker());
            *step = Step::Won;
        }
        Poll::Pending
    }
}

/// How far an attempt is beside which there may be another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its request is not sent.
    Sends,
    /// It has the time that the policy gives it.
    Waits,
    /// That is over.
    Races,
    /// The hedge was sooner: what this one waits for is hurried to its end.
    Won,
}

impl Path<'_> {
    /// Whether a request that is answered late may be sent once more meanwhile.
    pub(super) fn hedges(&self) -> bool {
        self.retry.hedge.is_some()
            && self.account.repeats.get()
            && !self.account.stays_alone.get()
            && self.service.spec.endpoints.len() > 1
    }

    /// Whether an attempt that has had its time gets another one beside it and is not ended.
    pub(super) fn is_hedged_in_place(&self) -> bool {
        self.retry.hedge == Some(Hedge::InPlace) && self.hedges()
    }

    fn hedge_after_ns(&self) -> Option<u64> {
        match self.retry.hedge? {
            Hedge::After(after) => Some(ns(after)),
            Hedge::Quantile(quantile) => self.service.tail().at(quantile),
            Hedge::InPlace => self.retry.attempt_timeout.map(ns),
        }
    }

    /// Begins a hedge, if there may be one.
    fn hedge(&self, copy: &impl Fn() -> Option<Copied>, view: &View) {
        let Self { shard, account, service, retry, .. } = self;
        let Some(first) = account.last_endpoint() else { return };
        let now = shard.clock.now();
        if account.status.get() != 0 || account.was_idle.get() || shard.is_cut() || now >= self.deadline {
            return;
        }
        let (mut tried, _) = account.further().map_or_else(Default::default, |_| self.avoided());
        if !tried.contains(&first) {
            tried.push(first);
        }
        if tried.len() >= service.spec.endpoints.len() {
            return;
        }
        let refused = |why| shard.recorder.borrow_mut().record_retry_refused(service.recorder_slot, why);
        if self.attempts_left() == 0 {
            return refused(Refusal::Attempts);
        }
        let Some(place) = service.gauge.further(retry.budget) else { return refused(Refusal::Budget) };
        let capped = match &service.limiter {
            None => None,
            Some(limiter) => match limiter.retry() {
                None => return refused(Refusal::Caps),
                capped => capped,
            },
        };
        let wanted = account.wanted();
        // Where there is no other endpoint that is used there is no hedge.
        let picked = shard.rng(|rng| service.pick(now, rng, wanted, &tried));
        let Some(picked) = picked.filter(|picked| !tried.contains(&picked.endpoint)) else { return };
        let Some(mut copied) = copy().filter(|copied| copied.body.len() <= retry.body_bytes_max as usize)
        else {
            return refused(Refusal::Body);
        };
        tried.push(picked.endpoint);
        self.avoid(tried);
        let Some(further) = account.further() else { return };
        further.begins(Reason::Hedge);
        account.attempts.set(account.attempts.get() + 1);
        // Nobody is there who could wait for a 100.
        let mut edits = Edits::default();
        edits.remove(&header::EXPECT);
        edits.apply_to_head(&mut copied.head, 0, 0);
        let head = &mut copied.head;
        account.hedge_span_begins(shard, picked.endpoint, || self.tell_attempt(head, 0));
        shard.recorder.borrow_mut().record_retry(service.recorder_slot, Reason::Hedge);
        let mut policy = (*retry).clone();
        if policy.hedge.take() == Some(Hedge::InPlace) {
            // As the one beside it.
            policy.attempt_timeout = None;
        }
        let race = Rc::<Race>::default();
        further.races(Racing(Rc::clone(&race)));
        let runner = Runner {
            shard: Rc::clone(shard),
            snapshot: Arc::clone(&view.snapshot),
            service: Rc::clone(service),
            policy,
            deadline: self.deadline,
            affinity: Box::new(Affinity { subset: wanted.subset, key: wanted.key, minted: None }),
            _place: (place, capped),
            copied,
            race,
        };
        task::spawn(shard, Box::pin(runner.run(picked)));
    }

    /// Whether the hedge has brought something.
    fn poll_won(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(further) = self.account.further() else { return Poll::Pending };
        further
            .race(|racing| match racing.0.poll_settled(cx) {
                Poll::Ready(()) if racing.has_won() => Poll::Ready(()),
                _ => Poll::Pending,
            })
            .unwrap_or(Poll::Pending)
    }

    /// Waits until the hedge has been answered, or has failed.
    async fn reached(&self) -> Result<Box<Reached>, Failure> {
        let nobody = Failure::upstream(Stage::Response, Cause::Closed);
        // It stays where it can be ended.
        let race = self.account.further().and_then(|further| further.race(|racing| Rc::clone(&racing.0)));
        let Some(race) = race else { return Err(nobody) };
        self.account.wait(self.shard.clock.now());
        // It has a deadline of its own.
        poll_fn(|cx| race.poll_settled(cx)).await;
        self.account.waited(self.shard.clock.now());
        let reached = race.reached.take();
        let standing = race.standing.get();
        if let Some(further) = self.account.further() {
            further.ends_race();
        }
        match (standing, reached) {
            (Standing::Answered, Some(reached)) => {
                self.account.take_over(&reached.attempt, reached.first_byte_at, reached.attempts);
                self.shard.recorder.borrow_mut().record_hedge_won(self.service.recorder_slot);
                if let Some(further) = self.account.further() {
                    further.hedge_won();
                }
                Ok(reached)
            }
            (Standing::Missed(failure), _) => {
                self.hedge_span_ends(Some(failure));
                Err(failure)
            }
            _ => Err(nobody),
        }
    }

    /// Goes on with the hedge, for a caller that speaks HTTP/1.1.
    pub(super) async fn take_over(&self, downstream: &mut Downstream, asked: &Asked) -> Result<Fate, Missed> {
        let Reached { attempt, began, answer, .. } = match self.reached().await {
            Ok(reached) => *reached,
            Err(failure) => return Err(self.missed(failure, false)),
        };
        let sent = Cell::new(true);
        let limit = asked.view.snapshot.timeouts.stream_idle;
        let caller = downstream.connection.control();
        let result = match answer {
            Answer::H1(mut pooled, input) => {
                let origin = pooled.connection.control();
                let way = response::Way { path: self, asked, request_sent: &sent, attempt: &attempt };
                let hurry = || {
                    origin.read_by(0);
                    caller.shutdown_if(self.account.status.get() != 0);
                };
                let result = {
                    let (from, to) = (&mut pooled.connection.reader, &mut downstream.connection.writer);
                    let back = pin!(response::carry_with(&way, input.take(), from, to));
                    idle::unless_idle(self, limit, &sent, &[&caller, &origin], hurry, back).await
                };
                result.map_err(Missed::Failed).and_then(|done| {
                    let withheld = done.withheld;
                    let fate = self.done(pooled, &attempt, &done);
                    if withheld { Err(Missed::Again) } else { Ok(fate) }
                })
            }
            Answer::H2(_lease, response, web) => {
                let alarm = self.shard.deadlines.alarm();
                let back =
                    over_h2::Back { path: self, asked, alarm: &alarm, attempt: &attempt, sent: &sent, web };
                let hurry = || {
                    alarm.by(0);
                    caller.shutdown_if(self.account.status.get() != 0);
                };
                let back = pin!(back.carry_on(response, &mut downstream.connection.writer));
                idle::unless_idle(self, limit, &sent, &[&caller], hurry, back).await
            }
        };
        let failure = Missed::failure_of(&result);
        self.judge(&attempt, began, failure.as_ref());
        match failure {
            Some(failure) => Err(self.missed(failure, false)),
            None => result,
        }
    }
}

impl Call<'_> {
    /// Goes on with the hedge.
    pub(super) async fn take_over(&self) -> Result<(), Missed> {
        let path = &self.path;
        let (reached, reset) = unless_reset(
            |cx| self.respond.borrow_mut().poll_reset(cx),
            || path.account.further().into_iter().for_each(super::again::Further::ends_race),
            path.reached(),
        )
        .await;
        let reached = match reached {
            _ if reset => return Err(Failure::downstream(Stage::Response, Cause::StreamReset).into()),
            Ok(reached) => *reached,
            Err(failure) => return Err(path.missed(failure, false)),
        };
        let Reached { attempt, began, answer, .. } = reached;
        let alarm = path.shard.deadlines.alarm();
        let sent = Cell::new(true);
        let limit = self.view.snapshot.timeouts.stream_idle;
        let result = match answer {
            Answer::H1(mut pooled, input) => {
                let mut input = input.take();
                let origin = pooled.connection.control();
                let hurry = || {
                    origin.read_by(0);
                    alarm.by(0);
                };
                let done = {
                    let reader = &mut pooled.connection.reader;
                    let back = self.back_from_h1(reader, &origin, &mut input, &alarm, &sent, &attempt);
                    idle::unless_idle(path, limit, &sent, &[&origin], hurry, pin!(back)).await
                };
                path.shard.buffers.give(input);
                done.map_err(Missed::Failed).and_then(|done| {
                    let withheld = done.withheld;
                    self.done_with_h1(done, pooled, &attempt);
                    if withheld { Err(Missed::Again) } else { Ok(()) }
                })
            }
            Answer::H2(_lease, response, web) => {
                if path.withholds_typed(&response) {
                    Err(Missed::Again)
                } else {
                    let mut response = Some(response);
                    let back = self.pass_on_from_h2(&mut response, web, &alarm);
                    let done = idle::unless_idle(path, limit, &sent, &[], || alarm.by(0), pin!(back)).await;
                    done.map_err(Missed::Failed)
                }
            }
        };
        let failure = Missed::failure_of(&result);
        path.judge(&attempt, began, failure.as_ref());
        match failure {
            Some(failure) => Err(path.missed(failure, false)),
            None => result,
        }
    }

    /// The request once more, where its body is this.
    pub(super) fn copied(&self, body: Option<&Whole>) -> Option<Copied> {
        let mut head = Vec::with_capacity(2048);
        message::write_h1(self.parts, self.facts, &self.forwarding(), &mut head);
        if let Some(turn) = self.turn {
            turn.apply_to_request(&mut head);
        }
        Some(Copied {
            head,
            body: match self.facts.framing {
                Framing::None => Bytes::new(),
                _ => body?.octets(),
            },
            method: self.facts.method,
            framing: self.facts.framing,
            origin: self.caller.origin(self.parts),
            translates: self.view.snapshot.translates_grpc_web(&self.caller.listener),
        })
    }
}

/// A request that came by HTTP/1.1 once more, by its canonical head and its body, which is whole.
pub(super) fn copy_of(listener: &str, asked: &Asked, (head, body): (&[u8], &[u8])) -> Option<Copied> {
    asked.tunnel.is_none().then(|| Copied {
        head: head.to_vec(),
        body: Bytes::copy_from_slice(body),
        method: asked.method,
        framing: asked.framing,
        origin: Some(Origin(asked.version)),
        translates: asked.view.snapshot.translates_grpc_web(listener),
    })
}

/// Makes such copies.
pub(super) fn copying<'x>(
    listener: &'x str,
    asked: &'x Asked,
    request: (&'x [u8], &'x [u8]),
) -> impl Fn() -> Option<Copied> + 'x {
    move || copy_of(listener, asked, request)
}

/// A hedge on its way.
struct Runner {
    shard: Rc<Shard>,
    snapshot: Arc<Snapshot>,
    service: Rc<Service>,
    policy: Policy,
    deadline: u64,
    affinity: Box<Affinity>,
    _place: (budget::Further, Option<limiter::Retry>),
    copied: Copied,
    race: Rc<Race>,
}

impl Runner {
    async fn run(mut self, picked: Attempt) {
        let account = Account::new(self.shard.clock.now(), 0);
        account.want(Some(std::mem::take(&mut self.affinity)));
        account.attempt(picked.endpoint);
        let path = Path {
            shard: &self.shard,
            account: &account,
            service: &self.service,
            deadline: self.deadline,
            retry: &self.policy,
        };
        match self.attempt(&path, picked).await {
            Ok(reached) => {
                let reached = Box::new(Reached {
                    first_byte_at: account.first_byte_at.get(),
                    attempts: account.attempts.get(),
                    ..reached
                });
                if !self.race.is_unwanted() {
                    self.race.reached.replace(Some(reached));
                }
                self.race.settles(Standing::Answered);
            }
            Err(failure) => self.race.settles(Standing::Missed(failure)),
        }
    }

    async fn attempt(&self, path: &Path<'_>, picked: Attempt) -> Result<Reached, Failure> {
        let (attempt, to) = path.connect_to(picked).await?;
        let began = path.shard.clock.now();
        let result = match to {
            To::H1(pooled) => self.by_http1(path, &attempt, pooled).await,
            To::H2(lease) => match self.by_http2(path, &attempt, &lease).await {
                Ok((response, web)) => Ok(Answer::H2(lease, response, web)),
                Err(missed) => Err(missed.inspect(|failure| lease.leave_if_going(*failure))),
            },
        };
        match result {
            Ok(answer) => Ok(Reached { attempt, began, first_byte_at: 0, attempts: 0, answer }),
            Err(failure) => {
                // What was ended from here says nothing of its endpoint.
                if !self.race.is_unwanted() {
                    path.judge(&attempt, began, failure.as_ref());
                }
                Err(failure.unwrap_or(Failure::upstream(Stage::Response, Cause::Closed)))
            }
        }
    }

    /// Whether the caller should not have it as long as there may be something else.
    fn is_unwelcome(&self, path: &Path<'_>, told: &Told) -> bool {
        let unwelcome = !self.race.is_alone.get() && path.retry.reason_of_head(told).is_some();
        if unwelcome {
            // What its endpoint is judged by.
            path.account.status.set(told.status);
        }
        unwelcome
    }

    /// The error is empty where there was an answer that nobody should have.
    async fn by_http1(
        &self,
        path: &Path<'_>,
        attempt: &Attempt,
        mut pooled: Pooled,
    ) -> Result<Answer, Option<Failure>> {
        let shard = path.shard;
        let Copied { head, body, framing, .. } = &self.copied;
        let mut out = beside::written(head, body, *framing);
        if !self.race.begins_to_wait(Waits::Connection(pooled.connection.control())) {
            // It was not used yet.
            attempt.pool().checkin(pooled, &path.service.spec.pool, None, shard.clock.now());
            return Err(None);
        }
        let stall = path.service.spec.timeouts.body_stall;
        let patience = Patience { clock: &shard.clock, stall, until: path.deadline };
        let sent = pooled.connection.writer.write_all(&mut out, 0, patience).await;
        sent.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
        let mut input = shard.buffers.take_small().ok_or(SHED)?;
        let result = self.head_by_http1(path, attempt, &mut pooled.connection, &mut input).await;
        match result {
            Ok(None) => Ok(Answer::H1(pooled, Input(Rc::clone(shard), input))),
            Ok(Some(idle_seconds)) => {
                shard.buffers.give(input);
                if let Some(idle_seconds) = idle_seconds {
                    attempt.pool().checkin(pooled, &path.service.spec.pool, idle_seconds, shard.clock.now());
                }
                Err(None)
            }
            Err(failure) => {
                shard.buffers.give(input);
                Err(Some(failure))
            }
        }
    }

    /// Reads on until the whole head of the response is there. `Some` where nobody should have it, and within that for how long its
    /// connection may lie idle if it can be used again.
    async fn head_by_http1(
        &self,
        path: &Path<'_>,
        attempt: &Attempt,
        connection: &mut Connection,
        input: &mut Buffer,
    ) -> Result<Option<Option<Option<u64>>>, Failure> {
        let limits = &self.snapshot.limits;
        let then = |response: &h1::Response<'_>| {
            let h1::Response { framing, keep_alive, idle_seconds, .. } = *response;
            (framing, keep_alive, idle_seconds, super::again::told_by_h1(response))
        };
        let from = (&mut connection.reader, &mut *input);
        let head = beside::head_by_http1(path, attempt, limits, self.copied.method, from, then).await?;
        let (head_len, (framing, keep_alive, idle_seconds, told)) = head;
        if !self.is_unwelcome(path, &told) {
            return Ok(None);
        }
        let mut reframer = Reframer::new(framing, Framing::UntilClose);
        let there = reframer.reframe(input, head_len, limits);
        let clean = there.is_ok_and(|there| there.ended && there.rest.is_empty());
        Ok(Some((clean && keep_alive).then_some(idle_seconds)))
    }

    /// As [`Runner::by_http1`]. What is dropped when it is not wanted, h2 resets.
    async fn by_http2(
        &self,
        path: &Path<'_>,
        attempt: &Attempt,
        lease: &Lease,
    ) -> Result<(Response<RecvStream>, Option<Translation>), Option<Failure>> {
        let Copied { head, body, origin, translates, .. } = &self.copied;
        let beside::Typed { request, body, web, path } =
            beside::typed(path, head, body.clone(), *origin, *translates, lease)?;
        let path = &path;
        let alarm = Rc::new(path.shard.deadlines.alarm());
        if !self.race.begins_to_wait(Waits::Stream(Rc::clone(&alarm))) {
            return Err(None);
        }
        let sent = lease.send(request, body.is_empty())?;
        let (limits, is_wanted) = (&self.snapshot.limits, || !self.race.is_unwanted());
        let head = beside::head_by_http2(path, attempt, limits, &alarm, sent, body, is_wanted).await?;
        let Some(response) = head else { return Err(None) };
        let (told, _) = path.told_by_typed(&response);
        if self.is_unwelcome(path, &told) {
            path.account.note_trailers(response.headers());
            return Err(None);
        }
        Ok((response, web))
    }
}
