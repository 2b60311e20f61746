//! Copies of requests for other services, beside the exchange that they are made of. Called where a request of a route with
//! `mirror` goes on, and where its body comes; a copy leaves when its request is whole, as a task of its own.
//!
//! Nothing of a copy comes back: what the service answers is read and dropped, how it fails is counted. A copy never waits for
//! a place, is never made twice, and is cut when its service's timeouts are over. A service whose endpoints are all passed over
//! gets none but those that find out whether one is well again. Copies in progress are counted from the moment
//! that something is kept for them, so that their number bounds their memory. Refuses tunnels.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use smallvec::SmallVec;

use super::account::Account;
use super::connect::To;
use super::from_h2::Call;
use super::{Path, SHED, beside};
use crate::downstream::{Asked, Downstream};
use crate::failure::{Cause, Failure, Stage};
use crate::http::body::{Reframer, TAILROOM};
use crate::http::edit::{self, Edits};
use crate::http::h1;
use crate::http::h2::{self as message, Origin};
use crate::http::{Framing, Method};
use crate::io::timed::OnDeadline;
use crate::io::{Connection, Patience, Reader};
use crate::route::Priority;
use crate::route::mirror::{Mirror, marked};
use crate::shard::buffers::Buffer;
use crate::shard::clock::ns;
use crate::shard::{Mirrored, Shard, View, task};
use crate::snapshot::Snapshot;
use crate::telemetry::mirrored::Unsent;
use crate::upstream::limiter::Entry;
use crate::upstream::pool::Pooled;
use crate::upstream::retry::Policy;
use crate::upstream::service::{Attempt, Service};
use crate::upstream::shared::Lease;

/// Services that are to have a copy, with its place. Most routes have one.
type Takers = SmallVec<[(Rc<Service>, Mirrored); 1]>;

/// A request that is to be copied, until it is whole.
pub(super) struct Pending {
    shard: Rc<Shard>,
    snapshot: Arc<Snapshot>,
    to: RefCell<Takers>,
    copy: Copied,
    body: RefCell<Body>,
}

/// What a copy is made of, besides its body.
#[derive(Clone)]
struct Copied {
    /// Canonical, with the host that marks it.
    head: Bytes,
    method: Method,
    framing: Framing,
    /// By what it came, where that was not HTTP/2.
    origin: Option<Origin>,
    /// Whether gRPC-Web is translated for its caller.
    translates: bool,
}

/// A body that is still coming.
enum Body {
    /// As it came behind a head by HTTP/1.1; there may be more behind it.
    Raw(Vec<u8>),
    /// Its octets.
    Content(Vec<u8>),
    /// It is too long, or all is said of it.
    Over,
}

impl Path<'_> {
    /// Copies a request that came by HTTP/1.1, where its route says so: now if its body lies there (that long), else when it has come.
    pub(super) fn mirror(&self, downstream: &Downstream, asked: &Asked, head: &[u8], body: Option<usize>) {
        // Looked up again: held over what was waited for, it would take room in the future of every connection.
        let route = asked.route.id().and_then(|id| asked.view.snapshot.routes.route(id));
        let Some(mirrors) = route.and_then(|route| route.mirror.as_deref()) else { return };
        if asked.tunnel.is_some() {
            return;
        }
        let make = || Copied {
            head: copied(self.account.with_trace(self.shard, head.to_vec())),
            method: asked.method,
            framing: asked.framing,
            origin: Some(Origin(asked.version)),
            translates: asked.view.snapshot.translates_grpc_web(&downstream.listener),
        };
        let Some(pending) = Pending::new(self.shard, &asked.view, mirrors, Body::Raw(Vec::new()), make)
        else {
            return;
        };
        let Some(length) = body else {
            self.account.mirrored(pending);
            return;
        };
        pending.read(&downstream.input[asked.head_len..asked.head_len + length]);
        pending.send();
    }
}

impl Call<'_> {
    /// Copies a request that came by HTTP/2, now if it has no body, else when that has come.
    pub(super) fn mirror(&self, mirrors: &[Mirror]) {
        let make = || {
            let mut head = Vec::with_capacity(2048);
            message::write_h1(self.parts, self.facts, &self.forwarding(), &mut head);
            if let Some(turn) = self.turn {
                turn.apply_to_request(&mut head);
            }
            Copied {
                head: copied(self.path.account.with_trace(self.path.shard, head)),
                method: self.facts.method,
                framing: self.facts.framing,
                origin: self.caller.origin(self.parts),
                translates: self.view.snapshot.translates_grpc_web(&self.caller.listener),
            }
        };
        let pending = Pending::new(self.path.shard, self.view, mirrors, Body::Content(Vec::new()), make);
        match pending {
            Some(pending) if self.facts.framing == Framing::None => pending.send(),
            Some(pending) => self.path.account.mirrored(pending),
            None => {}
        }
    }
}

/// The head of a copy: another host; and nobody is there who could wait for a 100.
fn copied(mut head: Vec<u8>) -> Bytes {
    if let Some(host) = edit::host_of_head(&head).map(marked) {
        edit::retarget_head(&mut head, None, Some(&host));
    }
    let mut edits = Edits::default();
    edits.remove(&header::EXPECT);
    edits.apply_to_head(&mut head, 0, 0);
    head.into()
}

impl Pending {
    /// For those services that are to have this one; `None` where there is none.
    fn new(
        shard: &Rc<Shard>,
        view: &View,
        mirrors: &[Mirror],
        body: Body,
        make: impl FnOnce() -> Copied,
    ) -> Option<Box<Self>> {
        let mut to = Takers::new();
        for mirror in mirrors {
            if !mirror.percent.means(shard.rng(|rng| rng.u64(..))) {
                continue;
            }
            let service = shard.service(view, mirror.service);
            if !service.takes_copies(shard.clock.now()) {
                unsent(shard, &service, Unsent::Ejected);
                continue;
            }
            match shard.mirror() {
                Some(place) => to.push((service, place)),
                None => unsent(shard, &service, Unsent::Busy),
            }
        }
        if to.is_empty() {
            return None;
        }
        let snapshot = Arc::clone(&view.snapshot);
        let (copy, body, to) = (make(), RefCell::new(body), RefCell::new(to));
        let pending = Box::new(Self { shard: Rc::clone(shard), snapshot, to, copy, body });
        // Known beforehand: nothing is kept in vain.
        if matches!(pending.copy.framing, Framing::Length(n) if n > pending.body_bytes_max()) {
            pending.give_up(Unsent::Body);
            return None;
        }
        Some(pending)
    }

    fn body_bytes_max(&self) -> u64 {
        self.snapshot.limits.mirrored_body_bytes_max.into()
    }

    /// These octets of its body, or behind it, have come.
    fn read(&self, octets: &[u8]) {
        let mut body = self.body.borrow_mut();
        let (Body::Raw(kept) | Body::Content(kept)) = &mut *body else { return };
        // What a caller writes around its chunks counts, too.
        if (kept.len() + octets.len()) as u64 > self.body_bytes_max() {
            drop(body);
            match self.copy.framing {
                // What is too much is not its.
                Framing::Length(n) => self.read_at_most(octets, n),
                _ => self.give_up(Unsent::Body),
            }
            return;
        }
        kept.extend_from_slice(octets);
    }

    fn read_at_most(&self, octets: &[u8], length: u64) {
        if let Body::Raw(kept) | Body::Content(kept) = &mut *self.body.borrow_mut() {
            let left = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(kept.len());
            kept.extend_from_slice(&octets[..left.min(octets.len())]);
        }
    }

    /// It is read from the front again.
    fn restart(&self) {
        if let Body::Raw(kept) = &mut *self.body.borrow_mut() {
            kept.clear();
        }
    }

    /// The request is whole.
    fn send(&self) {
        let framing = self.copy.framing;
        let octets = match self.body.replace(Body::Over) {
            Body::Over => return,
            Body::Content(octets) => Some(octets),
            Body::Raw(mut octets) => {
                let mut reframer = Reframer::new(framing, Framing::UntilClose);
                let read = reframer.reframe(&mut octets, 0, &self.snapshot.limits).ok();
                read.filter(|read| read.ended).map(|read| octets[read.send].to_vec())
            }
        };
        let Some(octets) = octets else {
            self.count(Unsent::Cut);
            return;
        };
        let body = Bytes::from(octets);
        for (service, place) in self.to.take() {
            let shadow = Shadow {
                shard: Rc::clone(&self.shard),
                snapshot: Arc::clone(&self.snapshot),
                service,
                _place: place,
                copy: self.copy.clone(),
                body: body.clone(),
            };
            task::spawn(&self.shard, Box::pin(shadow.run()));
        }
    }

    fn give_up(&self, why: Unsent) {
        if !matches!(self.body.replace(Body::Over), Body::Over) {
            self.count(why);
        }
    }

    fn count(&self, why: Unsent) {
        self.to.borrow().iter().for_each(|(service, _)| unsent(&self.shard, service, why));
    }
}

impl Account {
    /// What is to be copied is read from the front again.
    pub(super) fn mirror_again(&self) {
        if let Some(pending) = self.mirror() {
            pending.restart();
        }
    }

    /// More of what is to be copied.
    pub(super) fn mirror_read(&self, octets: &[u8]) {
        if let Some(pending) = self.mirror() {
            pending.read(octets);
        }
    }

    /// What is to be copied is whole, if it went on so.
    pub(super) fn mirror_whole(&self, is_whole: bool) {
        if let Some(pending) = self.mirror().filter(|_| is_whole) {
            pending.send();
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.give_up(Unsent::Cut);
    }
}

fn unsent(shard: &Shard, service: &Service, why: Unsent) {
    shard.recorder.borrow_mut().record_unsent(service.recorder_slot, why);
}

/// A copy on its way.
struct Shadow {
    shard: Rc<Shard>,
    snapshot: Arc<Snapshot>,
    service: Rc<Service>,
    _place: Mirrored,
    copy: Copied,
    body: Bytes,
}

impl Shadow {
    async fn run(self) {
        let Self { shard, service, .. } = &self;
        let now = shard.clock.now();
        // Another may have found out while the body came: then there is one trial at a time, as of requests.
        if !service.takes_copies(now) {
            return unsent(shard, service, Unsent::Ejected);
        }
        let (account, retry) = (Account::new(now, 0), Policy::off());
        if let Some(limiter) = &service.limiter {
            match limiter.enter(Priority::Sheddable, now, || shard.rng(fastrand::Rng::f64)) {
                Entry::In(pass) => account.place.set(pass),
                Entry::Wait(_) | Entry::Refused(_) => return unsent(shard, service, Unsent::Caps),
            }
        }
        let timeouts = &service.spec.timeouts;
        let most = timeouts.connect.saturating_add(timeouts.response).saturating_add(timeouts.body_stall);
        let deadline = now.saturating_add(ns(most));
        let path = Path { shard, account: &account, service, deadline, retry: &retry };
        let answered = self.attempt(&path).await;
        shard.recorder.borrow_mut().record_mirrored(service.recorder_slot, answered.unwrap_or(0));
    }

    /// The status that is answered.
    async fn attempt(&self, path: &Path<'_>) -> Result<u16, Failure> {
        let (attempt, to) = path.connect(false).await?;
        let began = path.shard.clock.now();
        let result = match to {
            To::H1(pooled) => self.by_http1(path, &attempt, pooled).await,
            To::H2(lease) => {
                let result = self.by_http2(path, &attempt, &lease).await;
                result.inspect_err(|failure| lease.leave_if_going(*failure))
            }
        };
        path.judge(&attempt, began, result.as_ref().err());
        result
    }

    async fn by_http1(&self, path: &Path<'_>, attempt: &Attempt, mut pooled: Pooled) -> Result<u16, Failure> {
        let shard = path.shard;
        let mut out = beside::written(&self.copy.head, &self.body, self.copy.framing);
        let Connection { reader, writer, .. } = &mut pooled.connection;
        let stall = path.service.spec.timeouts.body_stall;
        let patience = Patience { clock: &shard.clock, stall, until: path.deadline };
        let sent = writer.write_all(&mut out, 0, patience).await;
        sent.map_err(|fault| Failure::upstream(Stage::Request, super::cause(fault)))?;
        let mut input = shard.buffers.take_small().ok_or(SHED)?;
        let result = self.answer_by_http1(path, attempt, reader, &mut input).await;
        shard.buffers.give(input);
        let (status, idle_seconds) = result?;
        if let Some(idle_seconds) = idle_seconds {
            attempt.pool().checkin(pooled, &path.service.spec.pool, idle_seconds, shard.clock.now());
        }
        Ok(status)
    }

    /// The status, and for how long the connection may lie idle (what the service says) if it can be used again.
    async fn answer_by_http1(
        &self,
        path: &Path<'_>,
        attempt: &Attempt,
        from: &mut Reader,
        input: &mut Buffer,
    ) -> Result<(u16, Option<Option<u64>>), Failure> {
        let limits = &self.snapshot.limits;
        let then = |response: &h1::Response<'_>| {
            let h1::Response { status, framing, keep_alive, idle_seconds, .. } = *response;
            (status, framing, keep_alive, idle_seconds)
        };
        let head = beside::head_by_http1(path, attempt, limits, self.copy.method, (from, input), then);
        let (head_len, (status, framing, keep_alive, idle_seconds)) = head.await?;
        path.account.status.set(status);
        let broken = |cause| Failure::upstream(Stage::Body, cause);
        let mut reframer = Reframer::new(framing, Framing::UntilClose);
        let mut start = head_len;
        let clean = loop {
            if input.len() > start || reframer.is_ended() {
                let next = reframer.reframe(input, start, limits).map_err(broken)?;
                if next.ended {
                    break next.rest.is_empty();
                }
            }
            input.clear();
            start = 0;
            match from.read(input, TAILROOM, path.deadline, OnDeadline::Shutdown).await {
                Ok(0) if reframer.ends_with_connection() => break false,
                Ok(0) => return Err(broken(Cause::Closed)),
                Ok(_) => {}
                Err(fault) => return Err(broken(super::cause(fault))),
            }
        };
        Ok((status, (clean && keep_alive).then_some(idle_seconds)))
    }

    async fn by_http2(&self, path: &Path<'_>, attempt: &Attempt, lease: &Lease) -> Result<u16, Failure> {
        let Copied { head, origin, translates, .. } = &self.copy;
        let beside::Typed { request, body, path, .. } =
            beside::typed(path, head, self.body.clone(), *origin, *translates, lease)?;
        let sent = lease.send(request, body.is_empty())?;
        let alarm = path.shard.deadlines.alarm();
        let limits = &self.snapshot.limits;
        let head = beside::head_by_http2(&path, attempt, limits, &alarm, sent, body, || true).await?;
        let response = head.ok_or(Failure::upstream(Stage::Response, Cause::Closed))?;
        let status = response.status().as_u16();
        path.account.status.set(status);
        path.account.note_trailers(response.headers());
        beside::rest_by_http2(&path, &alarm, response.into_body(), |_| Ok(())).await?;
        Ok(status)
    }
}
