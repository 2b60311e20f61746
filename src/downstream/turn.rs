//! What a route makes of a request besides sending it on as it is: another head, another response head, an answer of its own.
//! The same for callers by HTTP/1.1 and by HTTP/2; made when the head is understood, so that nothing of it has to be kept.
//!
//! Refuses to exist for plain routes: these cost one branch and no allocation.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, header, request, response};

use crate::authorize::Fields;
use crate::failure::Cause;
use crate::http::edit::{self, Edits, STATUS};
use crate::http::grpc::{self, Dialect};
use crate::http::respond::Exceeded;
use crate::quota::TooSoon;
use crate::quota::global::{Answer as Counted, Question, Why};
use crate::route::changes::{Change, Rewrite, TooLong};
use crate::route::cors::Kind;
use crate::route::fault::{Drawn, How, Made};
use crate::route::shape::Shape;
use crate::route::split::{Chosen, Sticky};
use crate::route::text::Seen;
use crate::route::wish::{self, Outcome, Wishes};
use crate::route::{Action, Route};
use crate::shard::Faulty;
use crate::upstream::retry::Policy;

/// What is made of one request.
#[derive(Debug, Default)]
pub struct Turn {
    request: Edits,
    target: Option<Vec<u8>>,
    host: Option<Box<str>>,
    response: Edits,
    answer: Option<Answer>,
    /// The limit that it met: then nothing else is made of it but another response head.
    too_soon: Option<Box<TooSoon>>,
    /// What limits that are shared with other proxies make of it.
    shared: Option<Box<Shared>>,
    fault: Option<Fault>,
    /// What its caller says of retries and timeouts, where it may.
    wishes: Option<Box<Wishes>>,
}

/// A request whose route has limits that are shared with other proxies.
#[derive(Debug)]
struct Shared {
    /// What is to be asked, until it is.
    questions: Box<[Question]>,
    /// Why one of them was not answered.
    failed: Option<Why>,
    /// The limit that had it refused for that.
    refused_by: Option<Arc<str>>,
}

/// What is done to a request on purpose.
#[derive(Debug)]
struct Fault {
    drawn: Drawn,
    /// Of an abort that is an answer.
    answer: Option<Answer>,
    /// What becomes of the body of its response.
    shape: Option<Shape>,
    /// What becomes of its own body.
    request_shape: Option<Shape>,
    /// Its place among those that there may be at a time.
    place: Option<Faulty>,
}

/// A response of the route's own.
#[derive(Debug)]
struct Answer {
    status: u16,
    fields: Edits,
    body: Bytes,
    /// The code for callers who speak gRPC, where that is not the one of the status.
    code: Option<u8>,
}

impl Change for Edits {
    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn set(&mut self, name: &HeaderName, value: Vec<u8>) {
        Self::set(self, name, value);
    }

    fn add(&mut self, name: &HeaderName, value: Vec<u8>) {
        Self::add(self, name, value);
    }
}

impl Turn {
    /// What a route makes of this request; `None` where it goes on as it is. `tunnel`: a CONNECT, which only a service may
    /// agree to.
    ///
    /// # Errors
    /// When its path would come out too long.
    pub fn of<F: Fields>(
        route: &Route,
        chosen: Option<&Chosen>,
        tunnel: bool,
        seen: &Seen<'_, '_, F>,
        random: impl FnMut() -> u64,
    ) -> Result<Option<Box<Self>>, Cause> {
        let fault = route.fault.as_ref().filter(|_| !route.answers_preflight(seen.call));
        let fault = fault.map(|fault| fault.draw(seen.call.fields, random));
        let fault = fault.and_then(Fault::of);
        let wishes = route.caller_may.as_ref().and_then(|may| may.read(seen.call.fields)).map(Box::new);
        if route.is_unchanged() && fault.is_none() && wishes.is_none() {
            return Ok(None);
        }
        let mut turn = Self { fault, wishes, ..Self::default() };
        if turn.wishes.is_some() {
            // They were said to this proxy.
            wish::FIELDS.iter().for_each(|name| turn.request.remove(name));
        }
        if let (Action::Split(split), Some(token)) = (&route.action, chosen.and_then(|chosen| chosen.cookie))
            && let Some(Sticky::SetCookie(cookie)) = split.sticky()
        {
            let mut value = Vec::with_capacity(128);
            cookie.write(token, &mut value);
            turn.response.add(&header::SET_COOKIE, value);
        }
        turn.answer = Answer::of(&route.action, seen).map_err(|TooLong| Cause::TargetTooLong)?;
        if let Some(changes) = &route.changes {
            if let Some(rewrite) = changes.rewrite.as_ref().filter(|_| turn.answer.is_none()) {
                turn.rewrite(rewrite, seen).map_err(|TooLong| Cause::TargetTooLong)?;
            }
            changes.request.tell(seen, STATUS, &mut turn.request);
            if let Some(cors) = &changes.cors {
                match cors.kind(seen) {
                    Kind::Plain => cors.tell(seen, &mut turn.response),
                    Kind::Preflight(allowed) => {
                        let mut fields = Edits::default();
                        let (status, body) = if allowed {
                            cors.tell_preflight(seen, &mut fields);
                            (204, Bytes::new())
                        } else {
                            crate::route::cors::Cors::tell_vary(&mut fields);
                            fields.set(&header::CONTENT_TYPE, b"text/plain; charset=utf-8".to_vec());
                            (403, Bytes::from_static(b"ringmesh: this origin may not read what is here\n"))
                        };
                        turn.answer = Some(Answer { status, fields, body, code: None });
                    }
                }
            }
            changes.response.tell(seen, STATUS, &mut turn.response);
        }
        // What a tunnel is answered with success is a tunnel.
        if tunnel && turn.answer.as_ref().is_some_and(|answer| (200..300).contains(&answer.status)) {
            turn.answer = None;
        }
        Ok(Some(Box::new(turn)))
    }

    /// What a page may read of the refusal of a request that is not allowed.
    pub fn of_refused<F: Fields>(route: &Route, seen: &Seen<'_, '_, F>) -> Option<Box<Self>> {
        let cors = route.changes.as_ref()?.cors.as_ref()?;
        let mut turn = Self::default();
        cors.tell(seen, &mut turn.response);
        Some(Box::new(turn))
    }

    fn rewrite<F: Fields>(&mut self, rewrite: &Rewrite, seen: &Seen<'_, '_, F>) -> Result<(), TooLong> {
        // `*` is no path.
        if seen.target.starts_with(b"/") {
            self.target = rewrite.target(seen)?;
        }
        if self.target.is_some() {
            self.request.set(&Rewrite::ORIGINAL_PATH, seen.target.to_vec());
        }
        // Where a plain CONNECT goes says its target.
        if !seen.call.path.is_empty() {
            self.host.clone_from(&rewrite.host);
        }
        Ok(())
    }

    /// How long an exchange may take: what its route says, or its caller where it may.
    pub fn timeout(turn: Option<&Self>, route: Option<&Route>) -> Option<Duration> {
        let of_route = route.and_then(|route| route.timeout);
        match turn.and_then(|turn| turn.wishes.as_deref()) {
            None => of_route,
            Some(wishes) => wishes.timeout(of_route),
        }
    }

    /// What holds of its further attempts, where that is what holds for all.
    pub fn retry<'x>(turn: Option<&'x Self>, of_all: &'x Policy) -> &'x Policy {
        match turn.and_then(|turn| turn.wishes.as_deref()) {
            None => of_all,
            Some(wishes) => wishes.policy(of_all),
        }
    }

    /// What was made of what its caller says, if it says anything.
    pub fn wishes(&self, route: Option<&Route>) -> Option<Outcome> {
        Some(self.wishes.as_ref()?.outcome(route.and_then(|route| route.timeout)))
    }

    /// Notes that it came too soon, if it did.
    pub fn note_quota(turn: &mut Option<Box<Self>>, too_soon: Option<Box<TooSoon>>) {
        if too_soon.is_some() {
            let turn = turn.get_or_insert_default();
            turn.too_soon = too_soon;
            // Nor is anything done to it on purpose.
            turn.fault = None;
        }
    }

    /// Notes what is to be asked of those who count for several proxies.
    pub fn note_questions(turn: &mut Option<Box<Self>>, questions: Option<Box<[Question]>>) {
        if let Some(questions) = questions {
            let shared = Shared { questions, failed: None, refused_by: None };
            turn.get_or_insert_default().shared = Some(Box::new(shared));
        }
    }

    /// Whether something is to be asked before it goes on.
    pub fn asks(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| !shared.questions.is_empty())
    }

    /// What is to be asked, once.
    pub fn take_questions(&mut self) -> Box<[Question]> {
        self.shared.as_mut().map(|shared| std::mem::take(&mut shared.questions)).unwrap_or_default()
    }

    /// Notes what came of that; the changes of the request are returned, too, for a head that is written already.
    pub fn note_answer(turn: &mut Option<Box<Self>>, answer: Counted) -> Edits {
        let Counted { too_soon, to_request, to_response } = answer;
        let mut edits = Edits::default();
        if let Some(turn) = turn {
            for (name, value) in to_request {
                turn.request.add(&name, value.clone());
                edits.add(&name, value);
            }
            to_response.into_iter().for_each(|(name, value)| turn.response.add(&name, value));
        }
        Self::note_quota(turn, too_soon.map(Box::new));
        edits
    }

    /// Notes that a question was not answered, and who had the request refused for that.
    pub fn note_unanswered(&mut self, why: Why, refused_by: Option<Arc<str>>) {
        if let Some(shared) = &mut self.shared {
            shared.failed.get_or_insert(why);
            shared.refused_by = refused_by;
        }
    }

    /// Why a limit that is shared with other proxies was not known.
    pub fn rate_limit_failure(&self) -> Option<&'static str> {
        self.shared.as_ref()?.failed.map(Why::label)
    }

    /// Whether it came too soon.
    pub fn is_too_soon(&self) -> bool {
        self.too_soon.is_some()
    }

    /// The limit that it met, or that had it refused because it was not known.
    pub fn rate_limit(&self) -> Option<&str> {
        match (&self.too_soon, &self.shared) {
            (Some(too_soon), _) => Some(&too_soon.name),
            (None, Some(shared)) => shared.refused_by.as_deref(),
            (None, None) => None,
        }
    }

    /// What the caller is told of that.
    pub fn exceeded(&self) -> Option<Exceeded<'_>> {
        let TooSoon { name, policy, wait_seconds } = &**self.too_soon.as_ref()?;
        let policy = policy.map(|policy| (policy.quota, policy.window_seconds));
        Some(Exceeded { name, policy, wait_seconds: *wait_seconds })
    }

    /// Whether the route answers the request itself.
    pub fn is_answer(&self) -> bool {
        self.answer.is_some() || self.fault.as_ref().is_some_and(|fault| fault.answer.is_some())
    }

    /// Takes a place for what is done on purpose, where something is; without one it is not done. Whether that is so.
    pub fn takes_place(&mut self, place: impl FnOnce() -> Option<Faulty>) -> bool {
        let Some(fault) = &mut self.fault else { return true };
        fault.place = place();
        let has_place = fault.place.is_some();
        if !has_place {
            self.fault = None;
        }
        has_place
    }

    /// For how long it is held up on purpose.
    pub fn delay(&self) -> Option<Duration> {
        self.fault.as_ref()?.drawn.delay
    }

    /// For how long nothing is heard of it on purpose, at most.
    pub fn silence(&self) -> Option<Duration> {
        match self.fault.as_ref()?.drawn.abort? {
            How::HalfOpen(most) => Some(most),
            How::Status(_) | How::Grpc(_) | How::Reset => None,
        }
    }

    /// Whether it is held up on purpose.
    pub fn is_held_up(&self) -> bool {
        self.delay().is_some() || self.silence().is_some()
    }

    /// Whether it is reset on purpose: at once, or after a silence.
    pub fn resets(&self) -> bool {
        self.fault
            .as_ref()
            .is_some_and(|fault| matches!(fault.drawn.abort, Some(How::Reset | How::HalfOpen(_))))
    }

    /// What becomes of the body of its response on purpose.
    pub fn shape(&self) -> Option<&Shape> {
        self.fault.as_ref()?.shape.as_ref()
    }

    /// What becomes of its own body on purpose.
    pub fn request_shape(&self) -> Option<&Shape> {
        self.fault.as_ref()?.request_shape.as_ref()
    }

    /// Whether the body of its response was ended too soon on purpose: no failure.
    pub fn was_truncated(&self) -> bool {
        self.shape().is_some_and(Shape::was_truncated)
    }

    /// What was done to it on purpose.
    pub fn fault(&self) -> Option<Made> {
        let Fault { drawn, shape, request_shape, .. } = self.fault.as_ref()?;
        let is_cut = shape.as_ref().is_some_and(Shape::was_truncated);
        let is_slow = shape.iter().chain(request_shape).any(Shape::was_slowed);
        Made::of(drawn.delay.is_some(), drawn.abort, is_cut, is_slow)
    }

    /// By how much the head of the request may grow.
    pub fn request_bytes(&self) -> usize {
        self.request.bytes()
            + self.target.as_ref().map_or(0, Vec::len)
            + self.host.as_ref().map_or(0, |host| host.len())
    }

    /// Changes the canonical head of the request.
    pub fn apply_to_request(&self, head: &mut Vec<u8>) {
        edit::retarget_head(head, self.target.as_deref(), self.host.as_deref().map(str::as_bytes));
        if !self.request.is_empty() {
            self.request.apply_to_head(head, 0, 0);
        }
    }

    /// Changes a request that goes on by HTTP/2.
    pub fn apply_to_parts(&self, parts: &mut request::Parts) {
        if self.target.is_some() || self.host.is_some() {
            edit::retarget(parts, self.target.as_deref(), self.host.as_deref().map(str::as_bytes));
        }
        self.request.apply(&mut parts.headers, 0);
    }

    /// Changes the head of the response, which lies in `out` from there on.
    pub fn apply_to_response(&self, out: &mut Vec<u8>, start: usize, status: u16) {
        if !self.response.is_empty() {
            self.response.apply_to_head(out, start, status);
        }
    }

    /// The same for a response that goes on by HTTP/2.
    pub fn apply_to_response_parts(&self, parts: &mut response::Parts) {
        self.response.apply(&mut parts.headers, parts.status.as_u16());
    }

    /// The route's own response without its length, and its body; as gRPC for a caller who speaks that. The changes of
    /// responses are made by whoever sends it.
    pub fn answer(&self, dialect: Option<Dialect>) -> Option<(response::Parts, Bytes)> {
        let on_purpose = self.fault.as_ref().and_then(|fault| fault.answer.as_ref());
        let Answer { status, fields, body, code } = on_purpose.or(self.answer.as_ref())?;
        let mut parts = Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(*status).unwrap_or_default();
        fields.apply(&mut parts.headers, *status);
        let Some(dialect) = dialect else { return Some((parts, body.clone())) };
        if !grpc::adopt(&mut parts, dialect) {
            return Some((parts, body.clone()));
        }
        if let Some(code) = code {
            parts.headers.insert("grpc-status", u16::from(*code).into());
        }
        // What a person would have read is what a program is told.
        if let Some(text) = std::str::from_utf8(body).ok().filter(|text| (1..=1024).contains(&text.len()))
            && let Ok(message) = grpc::encode_message(text.trim_end()).try_into()
        {
            parts.headers.insert("grpc-message", message);
        }
        Some((parts, Bytes::new()))
    }
}

impl Fault {
    fn of(drawn: Drawn) -> Option<Self> {
        drawn.made()?;
        let (status, code) = match drawn.abort {
            Some(How::Status(status)) => (status, None),
            Some(How::Grpc(code)) => (503, Some(code)),
            Some(How::Reset | How::HalfOpen(_)) | None => {
                let (shape, request_shape) = (Shape::of(&drawn), Shape::of_request(&drawn));
                return Some(Self { drawn, answer: None, shape, request_shape, place: None });
            }
        };
        let mut fields = Edits::default();
        fields.set(&header::CONTENT_TYPE, b"text/plain; charset=utf-8".to_vec());
        let body = Bytes::from_static(b"ringmesh: a fault that is made on purpose\n");
        let answer = Some(Answer { status, fields, body, code });
        Some(Self { drawn, answer, shape: None, request_shape: None, place: None })
    }
}

impl Answer {
    fn of<F: Fields>(action: &Action, seen: &Seen<'_, '_, F>) -> Result<Option<Self>, TooLong> {
        let mut fields = Edits::default();
        Ok(match action {
            Action::Service(_) | Action::Split(_) => None,
            Action::Redirect(redirect) => {
                let Some(location) = redirect.elsewhere(seen)? else {
                    fields.set(&header::CONTENT_TYPE, b"text/plain; charset=utf-8".to_vec());
                    let body = Bytes::from_static(b"ringmesh: this redirect would lead to itself\n");
                    return Ok(Some(Self { status: 404, fields, body, code: None }));
                };
                fields.set(&header::LOCATION, location);
                Some(Self { status: redirect.status, fields, body: Bytes::new(), code: None })
            }
            Action::Respond(respond) => {
                respond.tell(seen, STATUS, &mut fields);
                Some(Self { status: respond.status, fields, body: respond.body.clone(), code: None })
            }
        })
    }
}
