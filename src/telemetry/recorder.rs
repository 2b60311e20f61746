//! The shard's pen: counts exchanges per service, hands the interval over once a second.
//!
//! A service gets a slot at its first exchange. Its counts are allocated when they are needed and leave with the
//! interval; control sends them back cleared, so that two sets per active service circulate and an idle service holds
//! none. Never waits: when control is late the present interval goes on.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::mirrored::Unsent;
use super::retries::{HedgeEnd, Refusal};
use super::routes::{RouteSlot, Routes};
use super::rules::{Outcome, RuleCounts};
use super::{
    CONNECTION_FAILURES_MAX, DEFAULT_RULE, Interval, NO_SERVICE, OVERFLOW_SERVICE, SERVICES_MAX,
    ServiceCounts, ServiceInterval, ShardTotals,
};
use crate::authorize::{Policy, RuleId};
use crate::failure::{Cause, Failure};
use crate::http::grpc::Status;
use crate::route::fault::Made;
use crate::route::wish;
use crate::shard::link::Link;
use crate::upstream::retry::Reason;

/// A shard's recorder.
pub struct Recorder {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_name: HashMap<Arc<str>, u32>,
    /// Cleared counts, ready for use.
    #[expect(clippy::vec_box, reason = "they travel boxed: 30 KiB each")]
    spare: Vec<Box<ServiceCounts>>,
    /// Emptied intervals, ready for use.
    #[expect(clippy::vec_box, reason = "they travel boxed")]
    envelopes: Vec<Box<Interval>>,
    intervals_merged: u64,
    /// As in [`Interval`].
    connection_failures: Vec<(Failure, u64)>,
    connection_failures_other: u64,
    routes: Routes,
    rules: RuleCounts,
    default_rule: Arc<str>,
    revoked: SmallVec<[(Cause, u64); 4]>,
}

/// One ended exchange.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// The status sent to the caller; 0 when none was.
    pub status: u16,
    /// How it ended badly.
    pub failure: Option<Failure>,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last of them was made, where a retry policy did.
    pub retried: Option<Reason>,
    /// What became of the last one that was made beside another.
    pub hedge: Option<HedgeEnd>,
    /// What its route did to it on purpose.
    pub fault: Option<Made>,
    /// What was made of what its caller said of retries and timeouts.
    pub wishes: Option<wish::Outcome>,
    /// Bytes of the request's body.
    pub request_body_bytes: u64,
    /// Bytes of the response's body.
    pub response_body_bytes: u64,
    /// To the response's first byte, ns; `None` when there was no response from the service.
    pub first_byte_ns: Option<u64>,
    /// To the response's last byte, ns.
    pub whole_ns: u64,
    /// The proxy's own share, ns.
    pub own_ns: u64,
    /// Whether it was a tunnel: how long that lasted is not a latency.
    pub tunnel: bool,
    /// How it ended as a gRPC call, where it is one.
    pub grpc: Option<GrpcEnded>,
}

impl Ended {
    /// Whether the caller got what it wanted, as far as one can tell: no failure, no 5xx, no failure of gRPC.
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.status < 500 && !self.grpc.is_some_and(|grpc| grpc.status.is_error())
    }
}

/// One ended gRPC call.
#[derive(Debug, Clone, Copy)]
pub struct GrpcEnded {
    /// What the caller was told, or what its library makes of what it was told.
    pub status: Status,
    /// Messages that came from the caller.
    pub request_messages: u64,
    /// Messages that came from the service.
    pub response_messages: u64,
}

struct Slot {
    service: Arc<str>,
    counts: Option<Box<ServiceCounts>>,
    retired: bool,
}

/// The slot of requests that met no service.
pub const NO_SERVICE_SLOT: u32 = 0;
const OVERFLOW_SLOT: u32 = 1;

impl Recorder {
    /// A recorder with nothing in it.
    pub fn new() -> Self {
        let slot = |name: &str| Slot { service: name.into(), counts: None, retired: false };
        Self {
            slots: vec![slot(NO_SERVICE), slot(OVERFLOW_SERVICE)],
            free: Vec::new(),
            by_name: HashMap::new(),
            spare: Vec::new(),
            envelopes: Vec::new(),
            intervals_merged: 0,
            connection_failures: Vec::new(),
            connection_failures_other: 0,
            routes: Routes::default(),
            rules: RuleCounts::default(),
            default_rule: DEFAULT_RULE.into(),
            revoked: SmallVec::new(),
        }
    }

    /// The slot of a service; past [`SERVICES_MAX`] all share one.
    pub fn slot(&mut self, service: &Arc<str>) -> u32 {
        if let Some(slot) = self.by_name.get(service) {
            self.slots[*slot as usize].retired = false;
            return *slot;
        }
        let new = Slot { service: Arc::clone(service), counts: None, retired: false };
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = new;
            slot
        } else if self.slots.len() < SERVICES_MAX {
            self.slots.push(new);
            u32::try_from(self.slots.len() - 1).unwrap_or(OVERFLOW_SLOT)
        } else {
            return OVERFLOW_SLOT;
        };
        self.by_name.insert(Arc::clone(service), slot);
        slot
    }

    /// The service of a slot is gone and its last exchange has ended: the slot is free once its counts are handed over.
    pub fn retire(&mut self, slot: u32) {
        if slot != NO_SERVICE_SLOT && slot != OVERFLOW_SLOT {
            self.slots[slot as usize].retired = true;
        }
    }

    /// Counts an exchange.
    pub fn record(&mut self, slot: u32, ended: &Ended) {
        let slot = &mut self.slots[slot as usize];
        let counts = slot.counts.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        let class = usize::from(ended.status / 100);
        counts.by_class[if class < 6 { class } else { 0 }] += 1;
        if let Some(failure) = ended.failure {
            counts.count_failure(failure);
        }
        if let Some(grpc) = &ended.grpc {
            counts.count_grpc(grpc, class);
        }
        if let Some(made) = ended.fault {
            counts.faults.made[made as usize] += 1;
        }
        if let Some(outcome) = ended.wishes {
            counts.retries.wishes[outcome as usize] += 1;
        }
        counts.further_attempts += u64::from(ended.attempts.saturating_sub(1));
        if ended.retried.is_some() && ended.is_good() {
            counts.retries.succeeded += 1;
        }
        counts.request_body_bytes += ended.request_body_bytes;
        counts.response_body_bytes += ended.response_body_bytes;
        if let Some(first_byte_ns) = ended.first_byte_ns {
            counts.first_byte.saturating_record(first_byte_ns);
        }
        if !ended.tunnel {
            counts.whole.saturating_record(ended.whole_ns);
            counts.own.saturating_record(ended.own_ns);
        }
    }

    /// Counts a further attempt.
    pub fn record_retry(&mut self, slot: u32, reason: Reason) {
        self.counts(slot).retries.by_reason[reason as usize] += 1;
    }

    /// Counts a further attempt that there was not.
    pub fn record_retry_refused(&mut self, slot: u32, refusal: Refusal) {
        self.counts(slot).retries.refused[refusal as usize] += 1;
    }

    /// Counts an attempt that began beside another one and was sooner.
    pub fn record_hedge_won(&mut self, slot: u32) {
        self.counts(slot).retries.hedges_won += 1;
    }

    /// Counts a fault that was not made.
    pub fn record_fault_refused(&mut self, slot: u32) {
        self.counts(slot).faults.refused += 1;
    }

    /// Counts a copy of a request that was answered with this status; 0: it was not.
    pub fn record_mirrored(&mut self, slot: u32, status: u16) {
        self.counts(slot).mirrored.record(status);
    }

    /// Counts a copy of a request that was not sent.
    pub fn record_unsent(&mut self, slot: u32, why: Unsent) {
        self.counts(slot).mirrored.unsent[why as usize] += 1;
    }

    fn counts(&mut self, slot: u32) -> &mut ServiceCounts {
        let slot = &mut self.slots[slot as usize];
        slot.counts.get_or_insert_with(|| self.spare.pop().unwrap_or_default())
    }

    /// Counts an exchange of a route, of which a view knows the slot or not; gives the slot.
    pub fn record_route(&mut self, known: RouteSlot, route: &Arc<str>, ended: &Ended) -> RouteSlot {
        let whole_ns = (!ended.tunnel).then_some(ended.whole_ns);
        let at = self.routes.record(known, route, ended.status, ended.failure, whole_ns);
        // As of services: where the status of HTTP says so already it is counted by that.
        if ended.grpc.is_some_and(|grpc| grpc.status.is_error()) && (100..500).contains(&ended.status) {
            self.routes.note_grpc_error(at);
        }
        at
    }

    /// Counts bytes of an exchange that goes on: of a tunnel, which may last for days.
    pub fn record_bytes(&mut self, slot: u32, request: u64, response: u64) {
        let slot = &mut self.slots[slot as usize];
        let counts = slot.counts.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        counts.request_body_bytes += request;
        counts.response_body_bytes += response;
    }

    /// Counts a connection that failed before there was an exchange.
    pub fn connection_failed(&mut self, failure: Failure) {
        let kinds = self.connection_failures.len();
        match self.connection_failures.iter_mut().find(|(f, _)| *f == failure) {
            Some((_, n)) => *n += 1,
            None if kinds < CONNECTION_FAILURES_MAX => self.connection_failures.push((failure, 1)),
            None => self.connection_failures_other += 1,
        }
    }

    /// Counts an audit rule that was met.
    pub fn record_audit(&mut self, policy: &Policy, listener: &Arc<str>, id: RuleId) {
        if let Some(rule) = policy.rule(id) {
            self.rules.count(listener, &rule.name, Outcome::Audit);
        }
    }

    /// Counts a refusal by a rule, or by the default.
    pub fn record_denial(&mut self, policy: &Policy, listener: &Arc<str>, id: Option<RuleId>) {
        match id.and_then(|id| policy.rule(id)) {
            Some(rule) => self.rules.count(listener, &rule.name, Outcome::Deny),
            None => self.rules.count(listener, &self.default_rule, Outcome::DefaultDeny),
        }
    }

    /// Counts an open connection that was closed because it is not allowed any more.
    pub fn record_revoked(&mut self, cause: Cause) {
        match self.revoked.iter_mut().find(|(c, _)| *c == cause) {
            Some((_, n)) => *n += 1,
            None => self.revoked.push((cause, 1)),
        }
    }

    /// Hands the interval over, if control has taken the ones before.
    pub fn hand_over(&mut self, link: &Link, mut totals: ShardTotals) {
        while let Some(mut envelope) = link.spent.pop() {
            self.spare.extend(envelope.services.drain(..).map(|s| s.counts));
            self.routes.take_back(&mut envelope.routes);
            envelope.rules.clear();
            envelope.revoked.clear();
            self.envelopes.push(envelope);
        }
        if link.intervals.is_full() {
            self.intervals_merged += 1;
            return;
        }
        totals.intervals_merged = self.intervals_merged;
        let mut interval = self.envelopes.pop().unwrap_or_else(|| Box::new(Interval::new(link.shard)));
        interval.shard_totals = totals;
        // The emptied one comes back for the next interval.
        std::mem::swap(&mut interval.connection_failures, &mut self.connection_failures);
        self.connection_failures.clear();
        interval.connection_failures_other = std::mem::take(&mut self.connection_failures_other);
        self.routes.hand_over(&mut interval.routes);
        self.rules.drain_into(&mut interval.rules);
        interval.revoked.extend(self.revoked.drain(..));
        for (n, slot) in self.slots.iter_mut().enumerate() {
            if let Some(counts) = slot.counts.take() {
                interval.services.push(ServiceInterval { service: Arc::clone(&slot.service), counts });
            }
            if slot.retired {
                slot.retired = false;
                self.by_name.remove(&slot.service);
                slot.service = NO_SERVICE.into();
                self.free.push(u32::try_from(n).unwrap_or(OVERFLOW_SLOT));
            }
        }
        // As many as were used in the last second are enough for the next; the rest is given back.
        self.spare.truncate(interval.services.len());
        // Full is impossible: only this shard pushes, and there was room.
        let _ = link.intervals.push(interval);
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}
