//! Open connections that must end when what was allowed or trusted at their beginning is not any more, with callers and
//! with services of the mesh, and tunnels. Looked through when a snapshot changes the rules, whom this proxy trusts, how callers of a
//! listener come, or who a service may be.
//!
//! Of a connection that carries requests only what holds for every request on it is asked here; each request is asked for
//! in `downstream` anyway. Of a tunnel the request that it began with is asked for again. The list is as long as there are
//! connections and tunnels, so `limits.connections_max` and `pool.connections_max` bound it, times `http2.streams_max` for
//! tunnels over HTTP/2. Verifying a chain takes some 100 µs, so it is done for one of several connections with
//! the same chain, and a few at a time: thousands of peers do not stop the shard.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use smallvec::SmallVec;

use super::link::Notice;
use super::state::Shard;
use crate::authorize::{Caller, Policy, Verdict};
use crate::failure::Cause;
use crate::identity::verify::still_trusted;
use crate::identity::{Credentials, IdMatch, Peer};
use crate::io::Control;
use crate::snapshot::{ListenerTls, Snapshot};
use crate::upstream::spec::Tls;

/// The connections of a shard that are looked through.
#[derive(Default)]
pub struct Live {
    slots: RefCell<Vec<Option<Open>>>,
    free: RefCell<Vec<u32>>,
    /// How often there was something new to judge by.
    round: Cell<u64>,
    /// Whether [`look_through`] is at it.
    looking: Cell<bool>,
}

/// An open connection.
pub struct Open {
    /// Who is on the other side, where that was verified.
    pub peer: Option<Rc<Peer>>,
    /// Which side that is.
    pub with: With,
    /// What it is, and with that what ends it.
    pub kind: Kind,
}

/// What an open connection is.
pub enum Kind {
    /// One that carries requests.
    Requests(Control),
    /// A caller's tunnel: what its request is answered by rules, and who ends it. The connection that it came on is in the
    /// list itself.
    Tunnel(AskAgain, Rc<Ending>),
}

/// What rules say of a request that was served long ago.
pub type AskAgain = Box<dyn Fn(&Policy, Caller<'_>) -> Verdict>;

/// Tells a tunnel that it may not go on.
#[derive(Default)]
pub struct Ending {
    cause: Cell<Option<Cause>>,
    waker: RefCell<Option<Waker>>,
}

impl Ending {
    /// Why the tunnel must end, once it must.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Cause> {
        if let Some(cause) = self.cause.get() {
            return Poll::Ready(cause);
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn give(&self, cause: Cause) {
        self.cause.set(Some(cause));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Whom a connection is with.
pub enum With {
    /// Somebody who calls.
    Caller {
        /// Its own source address.
        source: IpAddr,
        /// The listener that accepted it.
        listener: Arc<str>,
        /// The port of that listener.
        port: u16,
        /// Whether it is encrypted.
        encrypted: bool,
    },
    /// An endpoint of a service of the mesh.
    Service(Arc<str>),
}

/// A connection's place in the list, given back when dropped.
pub struct Listed {
    live: Rc<Live>,
    slot: u32,
}

/// What has been found of peers in this round, by the fingerprint of the leaf.
type Verified = HashMap<[u8; 32], (Rc<Peer>, Option<Cause>)>;

impl Live {
    /// Puts a connection on the list. What it was accepted by must be of the present snapshot: who took its time (a
    /// handshake) and finds other credentials now asks [`trusted_meanwhile`] before.
    pub fn list(self: &Rc<Self>, open: Open) -> Listed {
        let mut slots = self.slots.borrow_mut();
        let slot = match self.free.borrow_mut().pop() {
            Some(slot) => {
                slots[slot as usize] = Some(open);
                slot
            }
            None => {
                slots.push(Some(open));
                u32::try_from(slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        Listed { live: Rc::clone(self), slot }
    }

    /// There is something new to judge by. Whether [`look_through`] must be started: it is not at it and there is anybody.
    pub(super) fn renew(&self) -> bool {
        self.round.set(self.round.get() + 1);
        self.slots.borrow().len() > self.free.borrow().len() && !self.looking.replace(true)
    }
}

/// Whether a peer that was verified by `then` is still trusted by what is there `now`: a handshake may take as long as it
/// takes to shrink a bundle.
///
/// # Errors
/// With the reason why it is not.
pub fn trusted_meanwhile(peer: &Peer, then: &Credentials, now: Option<&Credentials>) -> Result<(), Cause> {
    match now {
        Some(now) if !Arc::ptr_eq(&now.bundles, &then.bundles) && !now.bundles.covers(&then.bundles) => {
            still_trusted(peer, &now.bundles, UnixTime::now())
        }
        _ => Ok(()),
    }
}

/// When a connection of the mesh gets nothing new any more, so that it has run out before the roots are gone by which the
/// two ends believed each other: when the first of the two leaves has ended. A root outlives every leaf under it, by
/// five minutes where the authority is ours. Until `Plan::age_min` it stays: who has leaves that live for seconds would
/// open connections all the time.
pub fn leave_at(shard: &Shard, peer: &Peer, own: &Credentials) -> u64 {
    let left = peer.not_after.min(own.not_after).saturating_sub(UnixTime::now().as_secs());
    shard.clock.after(Duration::from_secs(left).max(shard.age_min))
}

/// Whether callers or services may be judged differently by what the one snapshot says of listeners and trust, and the
/// other does not. What services may be is compared where services are.
pub(super) fn judges_differently(new: &Snapshot, old: &Snapshot) -> bool {
    let same_rules =
        Arc::ptr_eq(&new.authorization, &old.authorization) || new.authorization == old.authorization;
    let bundles = |snapshot: &Snapshot| snapshot.identity.as_ref().map(|own| Arc::clone(&own.bundles));
    // A new certificate of an edge is no other demand.
    let same_demand =
        |new: &ListenerTls, old: &ListenerTls| std::mem::discriminant(new) == std::mem::discriminant(old);
    let same_listeners = new.listeners.iter().all(|listener| {
        let before = old.listeners.iter().find(|before| before.name == listener.name);
        before.is_none_or(|before| same_demand(&listener.tls, &before.tls))
    });
    !same_rules || !same_listeners || bundles(new) != bundles(old)
}

/// Says that [`look_through`] is at it, until it ends, however that is.
struct Looking(Rc<Live>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.set(false);
    }
}

impl Listed {
    /// Whether the connection was ended because it is not allowed any more.
    pub fn is_revoked(&self) -> bool {
        self.live.slots.borrow()[self.slot as usize].is_none()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.live.slots.borrow_mut()[self.slot as usize] = None;
        self.live.free.borrow_mut().push(self.slot);
    }
}

/// Ends the connections that the present snapshot does not allow, counts them, and tells control.
pub(super) async fn look_through(shard: Rc<Shard>) {
    // What is done without letting others run: about a millisecond.
    const VERIFIED_MAX: usize = 8;
    const LOOKED_AT_MAX: usize = 256;
    let live = Rc::clone(&shard.live);
    let _looking = Looking(Rc::clone(&live));
    let mut verified = Verified::new();
    let mut revoked = Revoked::default();
    let (mut at, mut round) = (0, live.round.get());
    let mut more = true;
    while more {
        if round != live.round.get() {
            (at, round) = (0, live.round.get());
            verified.clear();
        }
        let view = shard.view();
        let now = UnixTime::now();
        let known = verified.len();
        for _ in 0..LOOKED_AT_MAX {
            let mut slots = live.slots.borrow_mut();
            more = at < slots.len();
            let Some(slot) = slots.get_mut(at) else { break };
            if let Some(open) = slot
                && let Some((cause, told_of)) = open.judge(&view.snapshot, &mut verified, now)
            {
                open.end(cause);
                if !told_of {
                    revoked.count(cause, open);
                    shard.recorder.borrow_mut().record_revoked(cause);
                }
                // Its place stays taken until it has ended, but it is judged and counted once.
                *slot = None;
            }
            at += 1;
            if verified.len() >= known + VERIFIED_MAX {
                break;
            }
        }
        drop(view);
        if more {
            let_others_run().await;
        }
    }
    for (cause, connections, one) in revoked.0 {
        shard.notice(Notice::Revoked { cause, connections, one });
    }
}

/// What was ended in one go: by cause how many, and one of them in words.
#[derive(Default)]
struct Revoked(SmallVec<[(Cause, u64, String); 2]>);

impl Revoked {
    fn count(&mut self, cause: Cause, open: &Open) {
        match self.0.iter_mut().find(|(c, ..)| *c == cause) {
            Some((_, connections, _)) => *connections += 1,
            None => self.0.push((cause, 1, open.to_string())),
        }
    }
}

impl Open {
    /// Why it may not go on, and whether that is also said of the connection that it came on.
    fn judge(&self, snapshot: &Snapshot, verified: &mut Verified, now: UnixTime) -> Option<(Cause, bool)> {
        let of_connection = self.judge_connection(snapshot, verified, now);
        match &self.kind {
            Kind::Requests(_) => of_connection.map(|cause| (cause, false)),
            Kind::Tunnel(ask_again, _) => of_connection.map(|cause| (cause, true)).or_else(|| {
                let verdict = ask_again(&snapshot.authorization, self.caller()?);
                (verdict == Verdict::Deny).then_some((Cause::Denied, false))
            }),
        }
    }

    fn end(&self, cause: Cause) {
        match &self.kind {
            Kind::Requests(control) => control.shutdown(),
            Kind::Tunnel(_, ending) => ending.give(cause),
        }
    }

    /// Who calls, as rules see it.
    fn caller(&self) -> Option<Caller<'_>> {
        let With::Caller { source, listener, port, .. } = &self.with else { return None };
        let peer = self.peer.as_ref().map(|peer| &peer.id);
        Some(Caller { listener, port: *port, source: *source, peer })
    }

    fn judge_connection(&self, snapshot: &Snapshot, verified: &mut Verified, now: UnixTime) -> Option<Cause> {
        let own = snapshot.identity.as_deref();
        // Without credentials there is nothing to judge peers by; a snapshot without them must not cut a mesh.
        let trust = self.peer.as_ref().zip(own).and_then(|(peer, own)| {
            if let Some((same, cause)) = verified.get(&peer.fingerprint)
                && same.chain == peer.chain
            {
                return *cause;
            }
            let cause = still_trusted(peer, &own.bundles, now).err();
            verified.insert(peer.fingerprint, (Rc::clone(peer), cause));
            cause
        });
        trust.or_else(|| match &self.with {
            With::Caller { listener, encrypted, .. } => {
                demanded(snapshot, listener, *encrypted, self.peer.is_some()).or_else(|| {
                    let decision = snapshot.authorization.decide_connection(&self.caller()?)?;
                    (decision.verdict == Verdict::Deny).then_some(Cause::Denied)
                })
            }
            With::Service(name) => {
                let service = &snapshot.services[snapshot.service_named(name)? as usize];
                match (&service.tls, &self.peer, own) {
                    (Tls::Mesh(ids), Some(peer), Some(own)) => {
                        (!IdMatch::expects(ids, &peer.id, &own.id)).then_some(Cause::WrongIdentity)
                    }
                    // What is spoken with it now is not for this connection: it gets nothing new, and runs out.
                    _ => None,
                }
            }
        })
    }
}

/// What a caller lacks that its listener demands now.
fn demanded(snapshot: &Snapshot, listener: &str, encrypted: bool, verified: bool) -> Option<Cause> {
    let listener = snapshot.listeners.iter().find(|l| *l.name == *listener)?;
    match &listener.tls {
        ListenerTls::Off | ListenerTls::Permissive => None,
        ListenerTls::Strict | ListenerTls::Terminate(_) if !encrypted => Some(Cause::TlsRequired),
        ListenerTls::Strict => (!verified).then_some(Cause::CertificateMissing),
        ListenerTls::Terminate(_) => None,
    }
}

impl std::fmt::Display for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.peer {
            Some(peer) => write!(f, "{}", peer.id)?,
            None => f.write_str("somebody without identity")?,
        }
        match &self.with {
            With::Caller { source, listener, .. } => write!(f, " from {source} at {listener}"),
            With::Service(name) => write!(f, ", an endpoint of service {name}"),
        }
    }
}

async fn let_others_run() {
    let mut told = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut told, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
#[path = "live_test.rs"]
mod tests;
