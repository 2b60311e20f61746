//! Who calls by HTTP/2, as the exchanges of one connection share it: judged by rules, and told what fails here.
//!
//! Refuses to carry anything: see `from_h2`.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::Response;
use http::request::Parts;

use super::account::Account;
use crate::authorize::{self, Decision, Verdict};
use crate::downstream::Edge;
use crate::failure::Failure;
use crate::http::grpc::Dialect;
use crate::http::h2::{self as message, Origin};
use crate::http::respond::{self, Told};
use crate::identity;
use crate::shard::{Shard, View};
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
    /// Whether it is a ringmesh.
    pub(super) mesh: bool,
    pub(super) edge: Option<Edge<Box<str>>>,
    /// Which fields of what it is answered repeat.
    pub(super) repeats: RefCell<message::Repeats>,
}

impl Caller {
    /// How a request came to the ringmesh that sends it, if that was not HTTP/2.
    pub(super) fn origin(&self, parts: &Parts) -> Option<Origin> {
        if self.mesh { Origin::of(&parts.headers) } else { None }
    }

    /// As rules and routes see it.
    pub(super) fn as_rules_see_it(&self) -> authorize::Caller<'_> {
        authorize::Caller {
            listener: &self.listener,
            port: self.port,
            source: self.peer.ip(),
            peer: self.identity.as_ref().map(|peer| &peer.id),
        }
    }

    /// Asks the rules, and counts what they say.
    pub(super) fn authorize(
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
        grpc: grpc.zip(failure.map(|failure| account.grpc_code(failure))),
    };
    if grpc.is_some() {
        account.begin_grpc();
    }
    let (response, text) = match failure {
        Some(failure) => respond::typed_failure(failure, told, &shard.clock),
        None => (Response::new(()), Bytes::new()),
    };
    account.status.set(response.status().as_u16());
    account.note_trailers(response.headers());
    // A caller that is gone needs no answer.
    if let Ok(mut stream) = respond.borrow_mut().send_response(response, text.is_empty())
        && !text.is_empty()
    {
        // A few octets: h2 holds them until the window lets them go.
        let _ = stream.send_data(text, true);
    }
}
