//! Who calls by HTTP/2, as the exchanges of one connection share it: judged by rules, and told what fails here.
//!
//! Refuses to carry anything: see `from_h2`.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::Response;
use http::request::Parts;

use super::account::{Account, Shown};
use super::traced::Said;
use crate::authorize::{self, Decision, Verdict};
use crate::downstream::turn::Turn;
use crate::downstream::{Downstream, Edge};
use crate::failure::{Cause, Failure};
use crate::http::grpc::Dialect;
use crate::http::h2::{self as message, Facts, Origin};
use crate::http::respond::{self, Told};
use crate::identity;
use crate::io::Connection;
use crate::quota::{self, global};
use crate::route::text::Seen;
use crate::route::{self, Route};
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::{Shard, View};
use crate::upstream::affinity::{Affinity, affinity};
use crate::upstream::service::Service;

/// Who is at the other end of a connection.
pub(super) struct Caller {
    /// When HTTP/2 began to be spoken.
    pub(super) began: u64,
    pub(super) peer: SocketAddr,
    pub(super) listener: Arc<str>,
    pub(super) port: u16,
    pub(super) identity: Option<Rc<identity::Peer>>,
    pub(super) encrypted: bool,
    /// Whether it is a ringmesh, and whether it may ask for lanes.
    pub(super) mesh: bool,
    pub(super) lanes: bool,
    pub(super) edge: Option<Edge<Box<str>>>,
    /// Which fields of what it is answered repeat.
    pub(super) repeats: RefCell<message::Repeats>,
}

impl Caller {
    /// How a request came to the ringmesh that sends it, if that was not HTTP/2.
    pub(super) fn origin(&self, parts: &Parts) -> Option<Origin> {
        if self.mesh { Origin::of(&parts.headers) } else { None }
    }

    /// The same caller on a lane of its connection.
    pub(super) fn on_lane(&self, connection: Connection) -> Downstream {
        Downstream {
            connection,
            input: Buffer::default(),
            peer: self.peer,
            listener: Arc::clone(&self.listener),
            port: self.port,
            identity: self.identity.clone(),
            affinity: Cell::default(),
        }
    }

    /// What is told of a request, before anything is decided about it.
    pub(super) fn shown<'x>(&'x self, parts: &'x Parts, host: &'x str) -> Shown<'x> {
        Shown {
            peer: self.peer,
            listener: &self.listener,
            encrypted: self.encrypted,
            method: parts.method.as_str().as_bytes(),
            target: parts.uri.path_and_query().map_or(host, |p| p.as_str()).as_bytes(),
            host: host.as_bytes(),
            route: None,
            identity: self.identity.as_ref().map(|peer| &peer.id),
            decision: None,
            fault: None,
            rate_limit: None,
            rate_limit_failure: None,
            wishes: None,
            protocol: self.origin(parts).map_or("HTTP/2", |origin| origin.0.name()),
            said: Some(Said::Typed(&parts.headers)),
        }
    }

    /// Where a request that was found right may go, and what its route makes of it.
    pub(super) fn judge(
        &self,
        shard: &Rc<Shard>,
        view: &View,
        checked: &mut Result<Facts, Cause>,
        parts: &Parts,
        host: &str,
    ) -> Judged {
        let snapshot = &view.snapshot;
        let fields = message::Fields(parts);
        let call = message::call(self.as_rules_see_it(), parts, &fields);
        let id = snapshot.routes.find_id(&route::Request {
            host: Some(message::host_of(host)),
            // A CONNECT has no path: routed by its host.
            path: parts.uri.path_and_query().map_or("/", |_| parts.uri.path()).as_bytes(),
            query: parts.uri.query().unwrap_or_default().as_bytes(),
            call: &call,
        });
        let route = id.and_then(|id| snapshot.routes.route(id));
        let chosen = route.and_then(|route| route.choose(&call, || shard.rng(|rng| rng.u64(..))));
        let service = chosen.map(|chosen| shard.service(view, chosen.service));
        let Ok(facts) = checked else {
            return Judged { route: id, service, decision: None, turn: None, affinity: None };
        };
        let is_preflight = route.is_some_and(|route| route.answers_preflight(&call));
        let decision = match is_preflight {
            true => Decision::default(),
            false => self.authorize(shard, &snapshot.authorization, &call),
        };
        let allowed = decision.verdict == Verdict::Allow;
        let too_soon = match route {
            Some(Route { quotas: Some(of), name, .. }) if allowed && !is_preflight => {
                quota::charge(&snapshot.quotas, of, name, &call, shard.clock.common())
            }
            _ => None,
        };
        let turns = route.filter(|route| !route.is_plain_to(call.fields) && (allowed || route.has_cors()));
        let turn = turns.map_or(Ok(None), |route| {
            let seen = Seen {
                call: &call,
                target: parts.uri.path_and_query().map_or(host, |target| target.as_str()).as_bytes(),
                host: host.as_bytes(),
                encrypted: self.encrypted,
                route: &route.name,
                service: service.as_ref().map_or("", |service| &service.spec.name),
            };
            if !allowed {
                return Ok(Turn::of_refused(route, &seen));
            }
            let random = || shard.rng(|rng| rng.u64(..));
            let mut turn = Turn::of(route, chosen.as_ref(), facts.tunnel.is_some(), &seen, random)?;
            if let Some(turn) = &mut turn {
                shard.admit_fault(view, chosen.map(|chosen| chosen.service), |place| turn.takes_place(place));
            }
            // As large as a head may be that goes on by HTTP/1.1.
            let came = || parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
            match &turn {
                Some(turn) if turn.request_bytes() + came().sum::<usize>() > Buffers::LARGE => {
                    Err(Cause::HeadTooLarge)
                }
                _ => Ok(turn),
            }
        });
        let mut turn = turn.unwrap_or_else(|cause| {
            *checked = Err(cause);
            None
        });
        let goes_on = allowed && too_soon.is_none() && !turn.as_ref().is_some_and(|turn| turn.is_answer());
        if let Some(Route { asks: Some(asks), name, .. }) = route
            && checked.is_ok()
            && allowed
            && !is_preflight
            && too_soon.is_none()
        {
            Turn::note_questions(&mut turn, global::plan(&snapshot.globals, asks, name, &call));
        }
        Turn::note_quota(&mut turn, too_soon);
        let affinity = chosen.zip(service.as_deref()).filter(|_| goes_on);
        let affinity = affinity
            .and_then(|(chosen, service)| self.affinity(shard, (service, chosen.subset), &call, parts));
        Judged { route: id, service, decision: Some(decision), turn, affinity }
    }

    /// As rules and routes see it.
    fn as_rules_see_it(&self) -> authorize::Caller<'_> {
        authorize::Caller {
            listener: &self.listener,
            port: self.port,
            source: self.peer.ip(),
            peer: self.identity.as_ref().map(|peer| &peer.id),
        }
    }

    /// What the endpoint of a request is chosen by, if that is anything in particular.
    fn affinity(
        &self,
        shard: &Shard,
        to: (&Service, u16),
        call: &authorize::Call<'_, message::Fields<'_>>,
        parts: &Parts,
    ) -> Option<Box<Affinity>> {
        let (service, subset) = to;
        let rules = service.spec.hash_rules();
        if rules.is_empty() && subset == 0 {
            return None;
        }
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let found = affinity(rules, call, query, self.encrypted, || shard.rng(|rng| rng.u64(..)));
        Some(Box::new(Affinity { subset, ..found }))
    }

    /// Asks the rules, and counts what they say.
    fn authorize(
        &self,
        shard: &Shard,
        policy: &authorize::Policy,
        call: &authorize::Call<'_, message::Fields<'_>>,
    ) -> Decision {
        let decision = policy.decide(call, |id| {
            shard.recorder.borrow_mut().record_audit(policy, &self.listener, id);
        });
        if decision.verdict == Verdict::Deny {
            shard.recorder.borrow_mut().record_denial(policy, &self.listener, decision.rule);
        }
        decision
    }
}

/// What is known of a request before it goes anywhere.
pub(super) struct Judged {
    /// Index of its route.
    pub(super) route: Option<u32>,
    pub(super) service: Option<Rc<Service>>,
    pub(super) decision: Option<Decision>,
    pub(super) turn: Option<Box<Turn>>,
    /// What its endpoint is chosen by.
    pub(super) affinity: Option<Box<Affinity>>,
}

/// Answers a request that the service did not answer, if nothing of a response was sent; else the stream was reset.
#[expect(clippy::too_many_arguments, reason = "what a response made here depends on")]
pub(super) fn answer(
    shard: &Shard,
    view: &View,
    account: &Account,
    respond: &RefCell<SendResponse<Bytes>>,
    service: Option<&Service>,
    failure: Option<Failure>,
    grpc: Option<Dialect>,
    turn: Option<&Turn>,
    head: bool,
) {
    if account.status.get() != 0 {
        return;
    }
    let told = Told {
        service: service.map(|s| &*s.spec.name),
        failure_field: view.snapshot.forwarding.failure_header,
        head,
        close: false,
        http10: false,
        quota: turn.and_then(Turn::exceeded),
        grpc: grpc.zip(failure.map(|failure| account.grpc_code(failure))),
    };
    if grpc.is_some() {
        account.begin_grpc();
    }
    let (mut response, text) = match failure {
        Some(failure) => respond::typed_failure(failure, told, &shard.clock),
        None => match turn.and_then(|turn| turn.answer(grpc)) {
            Some((parts, body)) => respond::typed_made(parts, body, head, &shard.clock),
            None => (Response::new(()), Bytes::new()),
        },
    };
    if let Some(turn) = turn {
        let (mut parts, ()) = response.into_parts();
        turn.apply_to_response_parts(&mut parts);
        response = Response::from_parts(parts, ());
    }
    let status = response.status().as_u16();
    account.note_trailers(response.headers());
    // A caller that is gone needs no answer, and has none.
    let Ok(mut stream) = respond.borrow_mut().send_response(response, text.is_empty()) else { return };
    account.status.set(status);
    if !text.is_empty() {
        // A few octets: h2 holds them until the window lets them go.
        let _ = stream.send_data(text, true);
    }
}
