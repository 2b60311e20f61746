//! TLS handshakes: with a caller before its first request, with a service before the first to it.
//!
//! Which of TLS and plain text a caller speaks is told by its first octet. Credentials are those of the newest snapshot;
//! a connection keeps what it began with. A handshake with a caller that fails is no exchange: it is counted and logged
//! as a connection that failed. One with a service is a failure of the exchange that wanted it.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::{cause, tell};
use crate::downstream::{Downstream, Protocol};
use crate::failure::{Cause, Failure, Stage};
use crate::http::respond::{self, Told};
use crate::identity::{self, Credentials, IdMatch, Peer};
use crate::io::Connection;
use crate::io::tls::{Tls, TlsFault};
use crate::shard::Shard;
use crate::shard::live::{Kind, Listed, Open, With, leave_at, trusted_meanwhile};
use crate::snapshot::ListenerTls;
use crate::upstream::spec::{self, Address};

/// The first octet of every handshake (RFC 8446 §5.1), and of nothing that HTTP/1.1 begins with.
const HANDSHAKE_RECORD: u8 = 0x16;

/// How callers of a listener come; `None` where all speak plain text.
pub(super) fn mode(shard: &Shard, listener: &str) -> Option<ListenerTls> {
    mode_now(shard, listener).filter(|mode| *mode != ListenerTls::Off)
}

/// The same; `None` where the listener is gone.
fn mode_now(shard: &Shard, listener: &str) -> Option<ListenerTls> {
    let view = shard.view();
    view.snapshot.listeners.iter().find(|l| *l.name == *listener).map(|listener| listener.tls.clone())
}

/// Waits for the caller to begin and does the handshake if there is to be one; whether requests may follow.
pub(super) async fn with_caller(shard: &Rc<Shard>, downstream: &mut Downstream, mode: ListenerTls) -> bool {
    let view = shard.view();
    let timeouts = &view.snapshot.timeouts;
    let patience = match mode {
        // Whoever speaks plain text may take its time.
        ListenerTls::Off | ListenerTls::Permissive => timeouts.idle,
        ListenerTls::Strict | ListenerTls::Terminate(_) => timeouts.handshake,
    };
    if !downstream.first_bytes(shard, patience).await {
        return false;
    }
    // Whoever took his time comes as is demanded now.
    let mode = mode_now(shard, &downstream.listener).unwrap_or(mode);
    let failed = |failure, words: &dyn std::fmt::Display| {
        let peer = format_args!("{} at {}", downstream.peer, downstream.listener);
        shard.connection_failed(failure, peer, words);
    };
    if mode == ListenerTls::Off {
        return true;
    }
    if downstream.input.first() != Some(&HANDSHAKE_RECORD) {
        if matches!(mode, ListenerTls::Off | ListenerTls::Permissive) {
            return true;
        }
        let failure = Failure::downstream(Stage::Handshake, Cause::TlsRequired);
        failed(failure, &"plain text where TLS is required");
        refuse_plain(shard, downstream, failure).await;
        return false;
    }
    // The newest credentials: it may have been long since the view was taken.
    let view = shard.view();
    let own = view.snapshot.identity.clone();
    let mut shown = None;
    let (config, mutual) = match mode {
        ListenerTls::Terminate(termination) => {
            shown = Some(termination.leaf);
            (Some(termination.server), false)
        }
        ListenerTls::Off | ListenerTls::Permissive | ListenerTls::Strict => {
            (own.as_ref().map(|own| Arc::clone(&own.server)), true)
        }
    };
    let Some(config) = config else {
        let failure = Failure::local(Stage::Handshake, Cause::IdentityMissing);
        failed(failure, &"this proxy has no certificate (yet)");
        return false;
    };
    let Some(open) = Handshaking::begin(shard) else {
        let failure = Failure::local(Stage::Handshake, Cause::Overloaded);
        failed(failure, &"limits.handshakes_max is reached");
        return false;
    };
    let deadline = shard.clock.after(view.snapshot.timeouts.handshake);
    let done = downstream.connection.accept_tls(config, &mut downstream.input, deadline).await;
    drop(open);
    let peer = match done {
        Err(fault) => Err((why(&fault), fault.to_string())),
        Ok(()) if mutual => verified(shard, downstream.connection.tls(), own.as_deref()).map(Some),
        Ok(()) => Ok(None),
    };
    match peer {
        Ok(peer) => {
            if let Some(tls) = downstream.connection.tls() {
                if let (Some(peer), Some(own)) = (&peer, &own) {
                    tls.set_leave_at(leave_at(shard, peer, own));
                }
                shown.into_iter().for_each(|leaf| tls.set_shown(leaf));
            }
            shard.totals.tls_handshakes.set(shard.totals.tls_handshakes.get() + 1);
            downstream.identity = peer.map(Rc::new);
            true
        }
        Err((cause, words)) => {
            let peer = format_args!("{} at {}", downstream.peer, downstream.listener);
            shard.connection_failed(Failure::downstream(Stage::Handshake, cause), peer, words);
            // So that the caller reads the alert and not that it was reset.
            downstream.linger(shard).await;
            false
        }
    }
}

/// A connection to an endpoint that requests may be sent on.
pub(super) struct Connected {
    pub(super) connection: Connection,
    /// What is spoken on it.
    pub(super) agreed: Protocol,
    /// Its place among those that end when they are not allowed any more; `None` outside of the mesh.
    pub(super) listed: Option<Listed>,
}

/// Opens a connection to an endpoint, with the handshake that the service wants, for `protocol`, all within `timeout`.
///
/// # Errors
/// The failure; nothing of a request was sent. Those on the side of this proxy are the same for all endpoints.
pub(super) async fn with_service(
    shard: &Rc<Shard>,
    service: &spec::Service,
    protocol: spec::Protocol,
    address: &Address,
    timeout: Duration,
) -> Result<Connected, Failure> {
    let deadline = shard.clock.after(timeout);
    let own = shard.view().snapshot.identity.clone();
    let missing = Failure::local(Stage::Handshake, Cause::IdentityMissing);
    let wanted = match &service.tls {
        spec::Tls::Off => None,
        spec::Tls::Mesh(ids) => {
            let own = own.as_ref().ok_or(missing)?;
            // Neither sent nor compared: who the peer is stands in its certificate.
            let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            Some((Arc::clone(&own.client), name, Some((own, ids))))
        }
        spec::Tls::Edge(edge) => Some((Arc::clone(&edge.client), edge.server_name.clone(), None)),
    };
    let mut connection = Connection::connect(address, timeout, &shard.deadlines)
        .await
        .map_err(|fault| Failure::upstream(Stage::Connect, cause(fault)))?;
    let Some((mut config, name, expected)) = wanted else {
        // By prior knowledge, or not at all.
        let http2 = protocol == spec::Protocol::Http2;
        let agreed = if http2 { Protocol::Http2 } else { Protocol::Http1 };
        return Ok(Connected { connection, agreed, listed: None });
    };
    if protocol == spec::Protocol::Http1 {
        Arc::make_mut(&mut config).alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    let failed = |cause, words: &dyn std::fmt::Display| {
        let failure = Failure::upstream(Stage::Handshake, cause);
        shard.tell_handshake(failure, format_args!("{address} of service {}", service.name), words);
        failure
    };
    connection.connect_tls(config, name, deadline).await.map_err(|fault| failed(why(&fault), &fault))?;
    let mut listed = None;
    if let Some((own, ids)) = expected {
        let peer =
            verified(shard, connection.tls(), Some(own)).map_err(|(cause, words)| failed(cause, &words))?;
        if !IdMatch::expects(ids, &peer.id, &own.id) {
            return Err(failed(Cause::WrongIdentity, &format_args!("it is {}", peer.id)));
        }
        connection.tls().into_iter().for_each(|tls| tls.set_leave_at(leave_at(shard, &peer, own)));
        let (peer, with) = (Some(Rc::new(peer)), With::Service(Arc::clone(&service.name)));
        listed = Some(shard.live.list(Open { peer, with, kind: Kind::Requests(connection.control()) }));
    }
    shard.totals.tls_handshakes.set(shard.totals.tls_handshakes.get() + 1);
    match (protocol, Protocol::of(&connection)) {
        (spec::Protocol::Http2, Protocol::Http1) => {
            Err(failed(Cause::BadHandshake, &"the endpoint does not agree on HTTP/2"))
        }
        (_, agreed) => Ok(Connected { connection, agreed, listed }),
    }
}

/// Answers a caller that speaks plain text where it may not: whoever tries it with curl shall see why.
async fn refuse_plain(shard: &Rc<Shard>, downstream: &mut Downstream, failure: Failure) {
    let told = Told {
        service: None,
        failure_field: shard.view().snapshot.forwarding.failure_header,
        head: downstream.input.starts_with(b"HEAD "),
        close: true,
        http10: false,
        quota: None,
        grpc: None,
    };
    if let Some(mut out) = shard.buffers.take_small() {
        respond::write_failure(failure, told, &shard.clock, &mut out);
        tell(shard, downstream, out).await;
    }
    downstream.linger(shard).await;
}

/// Who a peer is whose certificate a handshake has verified by `own`; what is trusted may have changed since it began.
fn verified(shard: &Shard, tls: Option<&Tls>, own: Option<&Credentials>) -> Result<Peer, (Cause, String)> {
    let chain = tls.map(Tls::peer_certificates).unwrap_or_default();
    let view = shard.view();
    let now = view.snapshot.identity.as_deref();
    identity::verify::peer(&chain)
        .and_then(|peer| own.map_or(Ok(()), |own| trusted_meanwhile(&peer, own, now)).map(|()| peer))
        .map_err(|cause| (cause, format!("the peer's certificate is refused: {}", cause.label())))
}

fn why(fault: &TlsFault) -> Cause {
    match fault {
        TlsFault::Io(fault) => cause(*fault),
        TlsFault::Tls(error) => identity::handshake::cause(error),
    }
}

/// Counts a handshake in progress until it is dropped.
struct Handshaking<'s>(&'s Shard);

impl<'s> Handshaking<'s> {
    /// `None` where there are as many as may be.
    fn begin(shard: &'s Shard) -> Option<Self> {
        shard.begins_handshake().then(|| Self(shard))
    }
}

impl Drop for Handshaking<'_> {
    fn drop(&mut self) {
        self.0.ends_handshake();
    }
}
