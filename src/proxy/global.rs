//! Limits that several proxies share: the service that counts them is asked before a request goes on, by calls of gRPC over the
//! connections that this proxy has with it as with any service. Called by both exchanges where the turn of a request has questions;
//! what is asked and what an answer means is known to `quota::global`.
//!
//! All that a call waits for may be dropped: when its time is over, or its caller leaves, it is, and h2 resets its stream. Only
//! a new connection is opened by a task of its own, which goes on after that, so that the next call finds it.
//!
//! Breaker, balancer and caps of that service hold as for requests, and an endpoint that cannot be reached is passed over for the next.
//! Nothing is asked twice that may have been counted. Refuses to decide what becomes of a request that nothing was said of: the limit says so.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Uri, header};

use super::account::Account;
use super::connect::{Instead, Tried};
use super::leaving::{Meanwhile, unless_gone};
use super::relay::unless_reset;
use super::{Path, beside, told};
use crate::downstream::turn::Turn;
use crate::downstream::{Asked, Downstream};
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::edit::Edits;
use crate::http::grpc::{self, Messages, Status};
use crate::http::h2 as message;
use crate::io::timed::Alarm;
use crate::quota::global::{Answer, Question, Why};
use crate::quota::messages::METHOD;
use crate::route::Route;
use crate::shard::buffers::Buffers;
use crate::shard::clock::{NEVER, ns};
use crate::shard::{Shard, View, task};
use crate::snapshot::Limits;
use crate::upstream::retry::Policy;
use crate::upstream::service::{Attempt, Service};
use crate::upstream::shared::{Lease, Opening};

/// Nobody said whether it may pass.
const UNKNOWN: Failure = Failure::local(Stage::Quota, Cause::RateLimitUnknown);

/// What is in front of a message of gRPC: whether it is compressed, and its length.
const PREFIX_LEN: usize = 5;

/// Asks about a request that came by HTTP/1.1. What was said is in its turn, and in the head that goes on.
///
/// # Errors
/// When it does not go on because nothing was said, its time is over, or its caller has left.
pub(super) async fn ask(
    shard: &Rc<Shard>,
    account: &Account,
    downstream: &mut Downstream,
    asked: &mut Asked,
) -> Result<(), Failure> {
    let view = Rc::clone(&asked.view);
    let route = asked.route.id().and_then(|id| view.snapshot.routes.route(id));
    let Some(turn) = asked.turn.as_mut().filter(|_| !shard.sheds(route)) else { return Ok(()) };
    let questions = turn.take_questions();
    let timeout = Turn::timeout(Some(turn), route);
    let told = || told::value(&downstream.input[..asked.head_len], told::DEADLINE);
    let deadline = deadline(route, timeout, asked.started, told);
    account.wait(shard.clock.now());
    let said = {
        let all = pin!(all(shard, &view, &questions, deadline));
        unless_gone(downstream, Meanwhile::Keep, all).await
    };
    account.waited(shard.clock.now());
    let said = said.ok_or(Failure::downstream(Stage::Quota, Cause::Closed))?;
    let edits = said.note(&mut asked.turn)?;
    if !edits.is_empty() && !asked.head.is_empty() {
        edits.apply_to_head(&mut asked.head, 0, 0);
        if asked.head.len() > Buffers::LARGE {
            return Err(Failure::downstream(Stage::Head, Cause::HeadTooLarge));
        }
    }
    Ok(())
}

/// The same about one that came by HTTP/2, until its caller resets it.
pub(super) async fn ask_stream(
    shard: &Rc<Shard>,
    account: &Account,
    view: &View,
    (route, turn): (Option<&Route>, &mut Option<Box<Turn>>),
    respond: &RefCell<SendResponse<Bytes>>,
    parts: &Parts,
) -> Result<(), Failure> {
    let Some(questions) = turn.as_mut().map(|turn| turn.take_questions()) else { return Ok(()) };
    let told = || parts.headers.get(told::DEADLINE).map(HeaderValue::as_bytes);
    let timeout = Turn::timeout(turn.as_deref(), route);
    let mut deadline = deadline(route, timeout, account.started, told);
    if account.is_grpc() {
        deadline = deadline.min(account.grpc_deadline(&parts.headers));
    }
    account.wait(shard.clock.now());
    let said = {
        let has_left = Cell::new(false);
        let mut all = pin!(all(shard, view, &questions, deadline));
        let said = poll_fn(|cx| match has_left.get() {
            true => Poll::Ready(None),
            false => all.as_mut().poll(cx).map(Some),
        });
        let reset = |cx: &mut Context<'_>| respond.borrow_mut().poll_reset(cx);
        unless_reset(reset, || has_left.set(true), said).await.0
    };
    account.waited(shard.clock.now());
    let said = said.ok_or(Failure::downstream(Stage::Quota, Cause::StreamReset))?;
    let edits = said.note(turn)?;
    // As large as a head may be that goes on by HTTP/1.1.
    let came =
        || parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    let adds = turn.as_ref().map_or(0, |turn| turn.request_bytes());
    if !edits.is_empty() && adds + came() > Buffers::LARGE {
        return Err(Failure::downstream(Stage::Head, Cause::HeadTooLarge));
    }
    Ok(())
}

/// When the request must have ended.
fn deadline<'h>(
    route: Option<&Route>,
    timeout: Option<Duration>,
    started: u64,
    says: impl FnOnce() -> Option<&'h [u8]>,
) -> u64 {
    let timeout = timeout.map_or(NEVER, |timeout| started.saturating_add(ns(timeout)));
    match route {
        Some(route) if route.deadline_field => timeout.min(told::deadline(started, says())),
        _ => timeout,
    }
}

/// What was said to all questions.
#[derive(Default)]
struct Said {
    answer: Answer,
    /// Why one of them was not answered.
    failed: Option<Why>,
    /// The limit that had it refused for that.
    refused_by: Option<Arc<str>>,
    /// The request's own time is over.
    is_over: bool,
}

impl Said {
    /// Puts it into the turn; what changes of the request's head.
    fn note(self, turn: &mut Option<Box<Turn>>) -> Result<Edits, Failure> {
        let Self { answer, failed, refused_by, is_over } = self;
        if is_over {
            return Err(Failure::upstream(Stage::Quota, Cause::Timeout));
        }
        let is_refused = refused_by.is_some();
        if let (Some(turn), Some(why)) = (turn.as_mut(), failed) {
            turn.note_unanswered(why, refused_by);
        }
        let edits = Turn::note_answer(turn, answer);
        if is_refused { Err(UNKNOWN) } else { Ok(edits) }
    }
}

/// Asks all, one after the other; no more once the request is refused.
async fn all(shard: &Rc<Shard>, view: &View, questions: &[Question], deadline: u64) -> Said {
    let mut said = Said::default();
    for question in questions {
        match one(shard, view, question, deadline).await {
            Ok(answer) => {
                let Answer { too_soon, to_request, to_response } = answer;
                said.answer.to_request.extend(to_request);
                said.answer.to_response.extend(to_response);
                if too_soon.is_some() {
                    said.answer.too_soon = too_soon;
                    break;
                }
            }
            // No failure of who was asked.
            Err(Why::Timeout) if shard.clock.now() >= deadline => {
                said.is_over = true;
                break;
            }
            Err(why) => {
                said.failed.get_or_insert(why);
                if let Some(limit) = question.failed(why) {
                    said.refused_by = Some(Arc::clone(&limit.spec.name));
                    break;
                }
            }
        }
    }
    said
}

async fn one(shard: &Rc<Shard>, view: &View, question: &Question, deadline: u64) -> Result<Answer, Why> {
    let service = shard.service(view, question.service);
    let now = shard.clock.now();
    let until = now.saturating_add(question.timeout_ns).min(deadline);
    let (account, retry) = (Account::new(now, 0), Policy::off());
    account.begin_grpc();
    let path = Path { shard, account: &account, service: &service, deadline: until, retry: &retry };
    let limits = &view.snapshot.limits;
    let call = Call { path, alarm: shard.deadlines.alarm(), limits, is_over: Cell::new(false) };
    let result = call.ask(question).await;
    call.ends(result.as_ref().err().and_then(|unsaid| unsaid.failure));
    result.map_err(|unsaid| unsaid.why)
}

/// Nothing was said.
struct Unsaid {
    why: Why,
    /// How the call failed; none that was answered has.
    failure: Option<Failure>,
}

impl From<Failure> for Unsaid {
    fn from(failure: Failure) -> Self {
        Self { why: why(failure), failure: Some(failure) }
    }
}

impl From<Why> for Unsaid {
    fn from(why: Why) -> Self {
        Self { why, failure: None }
    }
}

fn why(failure: Failure) -> Why {
    match (failure.cause, failure.stage) {
        (Cause::Timeout, _) => Why::Timeout,
        (Cause::BodyTooLarge, _) => Why::Garbage,
        (_, Stage::Balance | Stage::Connect | Stage::Handshake) => Why::Unreachable,
        (_, Stage::Admit) => Why::NotAdmitted,
        _ => Why::Broken,
    }
}

/// One question on its way.
struct Call<'x> {
    path: Path<'x>,
    alarm: Alarm,
    limits: &'x Limits,
    /// It is counted.
    is_over: Cell<bool>,
}

impl Call<'_> {
    fn now(&self) -> u64 {
        self.path.shard.clock.now()
    }

    async fn ask(&self, question: &Question) -> Result<Answer, Unsaid> {
        self.place().await?;
        let mut has_gone = false;
        loop {
            let (attempt, lease) = self.connection().await?;
            let began = self.now();
            let result = self.attempt(&attempt, &lease, &question.message).await;
            self.path.judge(&attempt, began, result.as_ref().err());
            let failure = match result {
                Ok(body) => return Ok(self.read(&body).and_then(|message| question.read(message))?),
                Err(failure) => failure,
            };
            lease.leave_if_going(failure);
            // Once more where it was certainly not read.
            if !failure.nothing_was_sent() || std::mem::replace(&mut has_gone, true) {
                return Err(failure.into());
            }
        }
    }

    /// Counts it as an exchange of the service.
    fn ends(&self, failure: Option<Failure>) {
        if !self.is_over.replace(true) {
            self.path.account.close_own(self.path.shard, self.path.service, failure);
        }
    }

    /// A place at the service, where it is given so much at a time.
    async fn place(&self) -> Result<(), Unsaid> {
        let Some(waiting) = self.path.admit(None)? else { return Ok(()) };
        self.path.account.wait(self.now());
        let place = self.alarm.until(waiting.until_ns.min(self.path.deadline), waiting).await;
        self.path.account.waited(self.now());
        self.path.took(place).map_err(|failure| match self.now() < self.path.deadline {
            true => Unsaid { why: Why::NotAdmitted, failure: Some(failure) },
            false => Unsaid { why: Why::Timeout, failure: Some(failure) },
        })
    }

    /// An endpoint, and a place on a connection with it.
    async fn connection(&self) -> Result<(Attempt, Lease), Unsaid> {
        let Path { shard, service, account, .. } = &self.path;
        let limits = &service.spec.http2;
        let (mut tried, mut opened) = (Tried::new(), 0);
        // How the last one failed that was waited for, whoever wanted it.
        let failed = Cell::<Option<Failure>>::default();
        let unreachable = || {
            let none = Failure::upstream(Stage::Balance, Cause::NoEndpoint);
            Unsaid { why: Why::Unreachable, failure: Some(failed.get().unwrap_or(none)) }
        };
        loop {
            let now = self.now();
            let attempt = shard.rng(|rng| service.pick(now, rng, account.wanted(), &tried));
            let attempt =
                attempt.filter(|attempt| !tried.contains(&attempt.endpoint)).ok_or_else(unreachable)?;
            let (endpoint, shared) = (attempt.endpoint, Rc::clone(attempt.shared()));
            if let Some(lease) = shared.lease(limits) {
                attempt.reused.set(lease.reused);
                account.attempt(attempt.endpoint);
                return Ok((attempt, lease));
            }
            match shared.open_one(limits) {
                Some(_) if opened == service.spec.connect_attempts_max => return Err(unreachable()),
                Some(opening) => {
                    opened += 1;
                    let opens = open(Rc::clone(shard), Rc::clone(service), attempt, opening);
                    task::spawn(shard, Box::pin(opens));
                }
                None => drop(attempt),
            }
            let (before, _) = shared.failures();
            let changed = Box::pin(shared.changed());
            account.wait(now);
            let changed = self.alarm.until(self.path.deadline, changed).await;
            account.waited(self.now());
            changed.ok_or(Failure::upstream(Stage::Connect, Cause::Timeout))?;
            // All who waited for it learn of it at once: none of them tries it again. One that nobody wants any more, because the
            // exchange that it was opened for is over, is no failure.
            let (after, failure) = shared.failures();
            if after != before && shared.has_none() {
                failed.set(failure);
                tried.push(endpoint);
            }
        }
    }

    /// Sends the question; the message of gRPC that came back, prefix included.
    async fn attempt(&self, attempt: &Attempt, lease: &Lease, question: &[u8]) -> Result<Vec<u8>, Failure> {
        let request = self.request(lease)?;
        let mut body = BytesMut::with_capacity(PREFIX_LEN + question.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(question.len()).unwrap_or(u32::MAX));
        body.put_slice(question);
        let account = self.path.account;
        feed(account.request_messages(), &body);
        let sent = lease.send(request, false)?;
        let head =
            beside::head_by_http2(&self.path, attempt, self.limits, &self.alarm, sent, body.freeze(), || {
                true
            });
        let response = head.await?.ok_or(Failure::upstream(Stage::Response, Cause::Closed))?;
        account.status.set(response.status().as_u16());
        account.note_trailers(response.headers());
        let mut came = Vec::new();
        let take = |piece: Bytes| {
            if came.len() + piece.len() > Question::ANSWER_BYTES_MAX {
                return Err(Failure::upstream(Stage::Body, Cause::BodyTooLarge));
            }
            account.response_body_bytes.set(account.response_body_bytes.get() + piece.len() as u64);
            feed(account.response_messages(), &piece);
            came.extend_from_slice(&piece);
            Ok(())
        };
        beside::rest_by_http2(&self.path, &self.alarm, response.into_body(), take).await?;
        Ok(came)
    }

    fn request(&self, lease: &Lease) -> Result<Request<()>, Failure> {
        let bad = |_| Failure::local(Stage::Request, Cause::BadTarget);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(self.path.service.spec.name.parse().map_err(bad)?);
        uri.path_and_query = Some(http::uri::PathAndQuery::from_static(METHOD));
        let mut uri = Uri::from_parts(uri).map_err(|_| Failure::local(Stage::Request, Cause::BadTarget))?;
        message::set_scheme(&mut uri, lease.is_encrypted());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        let fields = request.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        let left = Duration::from_nanos(self.path.deadline.saturating_sub(self.now()));
        if let Ok(value) = HeaderValue::from_str(&grpc::write_timeout(left)) {
            fields.insert("grpc-timeout", value);
        }
        Ok(request)
    }

    /// The one message of an answer.
    fn read<'b>(&self, body: &'b [u8]) -> Result<&'b [u8], Why> {
        let account = self.path.account;
        if account.status.get() != 200 {
            return Err(Why::Status);
        }
        match account.grpc_status().map(Status::index) {
            Some(0) => {}
            // It knows for how long it is waited for, and ends the call when that is over.
            Some(4) => return Err(Why::Timeout),
            Some(1) if self.now() >= self.path.deadline => return Err(Why::Timeout),
            _ => return Err(Why::Status),
        }
        match body.split_first_chunk::<PREFIX_LEN>() {
            // Not compressed, as nothing was agreed on.
            Some(([0, length @ ..], message)) if u32::from_be_bytes(*length) as usize == message.len() => {
                Ok(message)
            }
            _ => Err(Why::Garbage),
        }
    }
}

/// Its caller has left before it was answered, unless it is over.
impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.ends(Some(Failure::downstream(Stage::Response, Cause::Closed)));
    }
}

fn feed(messages: Option<&Cell<Messages>>, octets: &[u8]) {
    if let Some(messages) = messages {
        let mut counted = messages.get();
        counted.feed(octets);
        messages.set(counted);
    }
}

/// Opens a connection for whoever asks next, also when nobody waits for it any more.
async fn open(shard: Rc<Shard>, service: Rc<Service>, attempt: Attempt, opening: Opening) {
    let now = shard.clock.now();
    let (account, retry) = (Account::new(now, 0), Policy::off());
    let deadline = now.saturating_add(ns(service.spec.timeouts.connect));
    let path = Path { shard: &shard, account: &account, service: &service, deadline, retry: &retry };
    // Who waits for it was woken just now, and runs later.
    if let Err(failure) = path.open(&attempt, Some(opening), Instead::Nothing).await {
        attempt.shared().failed_to_open(failure);
        if failure.side != Side::Local {
            attempt.unreachable(shard.clock.now());
        }
    }
}
