//! What is noted of an exchange while it goes on, and recorded when it has ended.

use std::cell::Cell;
use std::rc::Rc;

use crate::downstream::{Asked, Downstream};
use crate::failure::Failure;
use crate::shard::{Shard, View};
use crate::telemetry::access::Line;
use crate::telemetry::recorder::Ended;
use crate::upstream::service::Service;

/// An exchange's account. `Cell`s, because both directions of a streamed exchange write into it.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// When the request's first byte was here.
    pub(super) started: u64,
    /// When the response's first byte was here; 0 before.
    pub(super) first_byte_at: Cell<u64>,
    /// The status sent to the caller; 0 before.
    pub(super) status: Cell<u16>,
    /// Attempts made.
    pub(super) attempts: Cell<u16>,
    /// The endpoint of the last attempt.
    pub(super) endpoint: Cell<Option<u32>>,
    /// Bytes of the request's body that were passed on.
    pub(super) request_body_bytes: Cell<u64>,
    /// Bytes of the response's body that were passed on.
    pub(super) response_body_bytes: Cell<u64>,
    /// Waits for either peer that are going on, since when there is at least one, and the sum of those that are over.
    waiting: Cell<u32>,
    waiting_since: Cell<u64>,
    waited_ns: Cell<u64>,
}

impl Account {
    pub(super) fn new(started: u64) -> Self {
        Self { started, ..Self::default() }
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
        if self.waiting.get() == 0 {
            self.waited_ns.set(self.waited_ns.get() + (now - self.waiting_since.get()));
        }
    }

    /// Records the exchange in telemetry and access log.
    pub(super) fn close(
        &self,
        shard: &Shard,
        view: &View,
        downstream: &Downstream,
        asked: Option<&Asked>,
        service: Option<&Rc<Service>>,
        failure: Option<Failure>,
    ) {
        let now = shard.clock.now();
        let whole_ns = now - self.started;
        let first_byte_ns = match self.first_byte_at.get() {
            0 => None,
            at => Some(at - self.started),
        };
        let ended = Ended {
            status: self.status.get(),
            failure,
            attempts: self.attempts.get().into(),
            request_body_bytes: self.request_body_bytes.get(),
            response_body_bytes: self.response_body_bytes.get(),
            first_byte_ns,
            whole_ns,
            own_ns: whole_ns.saturating_sub(self.waited_ns.get()),
        };
        let slot = service.map_or(View::NO_SERVICE, |s| s.recorder_slot);
        shard.recorder.borrow_mut().record(slot, &ended);
        if let Some(format) = view.snapshot.access_log {
            let part = |place: Option<&std::ops::Range<u32>>| -> &[u8] {
                place.and_then(|p| downstream.input.get(p.start as usize..p.end as usize)).unwrap_or_default()
            };
            let route =
                asked.and_then(|a| a.route).and_then(|r| view.snapshot.routes.routes().get(r as usize));
            let line = Line {
                started: self.started,
                peer: downstream.peer,
                identity: downstream.identity.as_ref().map(|peer| &peer.id),
                decided: asked.map(|asked| (&asked.decision, &*view.snapshot.authorization)),
                listener: &downstream.listener,
                method: part(asked.map(|a| &a.places.method)),
                target: part(asked.map(|a| &a.places.target)),
                host: part(asked.map(|a| &a.places.host)),
                route: route.map(|r| &*r.name),
                service: service.map(|s| &*s.spec.name),
                endpoint: service
                    .zip(self.endpoint.get())
                    .and_then(|(s, e)| s.spec.endpoints.get(e as usize))
                    .map(|e| &e.address),
                ended: &ended,
            };
            shard.access_log.borrow_mut().write(format, &line, &shard.clock, &shard.link);
        }
    }
}
