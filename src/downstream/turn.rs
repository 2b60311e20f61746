//! What a route makes of a request besides sending it on as it is: another head, another response head, an answer of its own.
//! The same for callers by HTTP/1.1 and by HTTP/2; made when the head is understood, so that nothing of it has to be kept.
//!
//! Refuses to exist for plain routes: these cost one branch and no allocation.

use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, header, request, response};

use crate::authorize::Fields;
use crate::failure::Cause;
use crate::http::edit::{self, Edits, STATUS};
use crate::http::grpc::{self, Dialect};
use crate::route::changes::{Change, Rewrite, TooLong};
use crate::route::cors::Kind;
use crate::route::split::{Chosen, Sticky};
use crate::route::text::Seen;
use crate::route::{Action, Route};

/// What is made of one request.
#[derive(Debug, Default)]
pub struct Turn {
    request: Edits,
    target: Option<Vec<u8>>,
    host: Option<Box<str>>,
    response: Edits,
    answer: Option<Answer>,
}

/// A response of the route's own.
#[derive(Debug)]
struct Answer {
    status: u16,
    fields: Edits,
    body: Bytes,
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
    ) -> Result<Option<Box<Self>>, Cause> {
        if route.is_plain() {
            return Ok(None);
        }
        let mut turn = Self::default();
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
                        turn.answer = Some(Answer { status, fields, body });
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

    /// Whether the route answers the request itself.
    pub fn is_answer(&self) -> bool {
        self.answer.is_some()
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
        let Answer { status, fields, body } = self.answer.as_ref()?;
        let mut parts = Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(*status).unwrap_or_default();
        fields.apply(&mut parts.headers, *status);
        let Some(dialect) = dialect else { return Some((parts, body.clone())) };
        if !grpc::adopt(&mut parts, dialect) {
            return Some((parts, body.clone()));
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

impl Answer {
    fn of<F: Fields>(action: &Action, seen: &Seen<'_, '_, F>) -> Result<Option<Self>, TooLong> {
        let mut fields = Edits::default();
        Ok(match action {
            Action::Service(_) | Action::Split(_) => None,
            Action::Redirect(redirect) => {
                fields.set(&header::LOCATION, redirect.location(seen)?);
                Some(Self { status: redirect.status, fields, body: Bytes::new() })
            }
            Action::Respond(respond) => {
                respond.tell(seen, STATUS, &mut fields);
                Some(Self { status: respond.status, fields, body: respond.body.clone() })
            }
        })
    }
}
