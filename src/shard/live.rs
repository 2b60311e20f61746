//! Open connections that must end when what was allowed or trusted at their beginning is not any more: those of peers
//! with an identity, and tunnels. Looked through when a snapshot changes the rules or whom this proxy trusts.
//!
//! Of a connection that carries requests only what holds for every request on it is asked here; each request is asked for
//! in `downstream` anyway. Of a tunnel the request that it began with is asked for again. Plain HTTP connections are not in
//! the list and pay nothing. The list is as long as there are such connections and tunnels, so `limits.connections_max`
//! bounds it, times `http2.streams_max` for tunnels over HTTP/2. Verifying a chain takes some 100 µs, so it is done for one of
//! several connections with the same chain, and a few at a time: thousands of peers do not stop the shard.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustls::pki_types::UnixTime;

use super::state::Shard;
use crate::authorize::{Caller, Policy, Verdict};
use crate::failure::Cause;
use crate::identity::Peer;
use crate::identity::verify::still_trusted;
use crate::io::Control;
use crate::snapshot::Snapshot;

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
    /// Its own source address.
    pub source: IpAddr,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// The port of that listener.
    pub port: u16,
    /// What it is, and with that what ends it.
    pub kind: Kind,
}

/// What an open connection is.
pub enum Kind {
    /// One that carries requests.
    Requests(Control),
    /// A tunnel: what its request is answered by rules, and who ends it. The connection that it came on is in the list
    /// itself where its peer has an identity.
    Tunnel(AskAgain, Rc<Notice>),
}

/// What rules say of a request that was served long ago.
pub type AskAgain = Box<dyn Fn(&Policy, Caller<'_>) -> Verdict>;

/// Tells a tunnel that it may not go on.
#[derive(Default)]
pub struct Notice {
    cause: Cell<Option<Cause>>,
    waker: RefCell<Option<Waker>>,
}

impl Notice {
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

/// A connection's place in the list: gives it back when dropped, which must be before the connection itself is.
pub struct Listed {
    live: Rc<Live>,
    slot: u32,
}

/// What has been found of peers in this round, by the fingerprint of the leaf.
type Verified = HashMap<[u8; 32], (Rc<Peer>, Option<Cause>)>;

impl Live {
    /// Puts a connection on the list. What it was accepted by must be of the present snapshot: who took its time (a
    /// handshake) and finds other credentials now asks [`still_trusted`] itself.
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

/// Says that [`look_through`] is at it, until it ends, however that is.
struct Looking(Rc<Live>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.set(false);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.live.slots.borrow_mut()[self.slot as usize] = None;
        self.live.free.borrow_mut().push(self.slot);
    }
}

/// Ends the connections that the present snapshot does not allow, and counts them.
pub(super) async fn look_through(shard: Rc<Shard>) {
    // What is done without letting others run: about a millisecond.
    const VERIFIED_MAX: usize = 8;
    const LOOKED_AT_MAX: usize = 256;
    let live = Rc::clone(&shard.live);
    let _looking = Looking(Rc::clone(&live));
    let mut verified = Verified::new();
    let (mut at, mut round) = (0, live.round.get());
    loop {
        if round != live.round.get() {
            (at, round) = (0, live.round.get());
            verified.clear();
        }
        let view = shard.view();
        let now = UnixTime::now();
        let known = verified.len();
        for _ in 0..LOOKED_AT_MAX {
            let mut slots = live.slots.borrow_mut();
            let Some(slot) = slots.get_mut(at) else { return };
            if let Some(open) = slot
                && let Some((cause, told_of)) = open.judge(&view.snapshot, &mut verified, now)
            {
                open.end(cause);
                // Its place stays taken until it has ended, but it is judged and counted once.
                *slot = None;
                if !told_of {
                    shard.recorder.borrow_mut().record_revoked(cause);
                }
            }
            at += 1;
            if verified.len() >= known + VERIFIED_MAX {
                break;
            }
        }
        drop(view);
        let_others_run().await;
    }
}

impl Open {
    /// Why it may not go on, and whether that is also said of the connection that it came on.
    fn judge(&self, snapshot: &Snapshot, verified: &mut Verified, now: UnixTime) -> Option<(Cause, bool)> {
        let of_connection = self.judge_connection(snapshot, verified, now);
        match &self.kind {
            Kind::Requests(_) => of_connection.map(|cause| (cause, false)),
            Kind::Tunnel(ask_again, _) => {
                of_connection.map(|cause| (cause, self.peer.is_some())).or_else(|| {
                    let verdict = ask_again(&snapshot.authorization, self.caller());
                    (verdict == Verdict::Deny).then_some((Cause::Denied, false))
                })
            }
        }
    }

    fn end(&self, cause: Cause) {
        match &self.kind {
            Kind::Requests(control) => control.shutdown(),
            Kind::Tunnel(_, notice) => notice.give(cause),
        }
    }

    fn judge_connection(&self, snapshot: &Snapshot, verified: &mut Verified, now: UnixTime) -> Option<Cause> {
        // Without credentials there is nothing to judge peers by; a snapshot without them must not cut a mesh.
        let trust = self.peer.as_ref().zip(snapshot.identity.as_ref()).and_then(|(peer, credentials)| {
            if let Some((same, cause)) = verified.get(&peer.fingerprint)
                && same.chain == peer.chain
            {
                return *cause;
            }
            let cause = still_trusted(peer, &credentials.bundles, now).err();
            verified.insert(peer.fingerprint, (Rc::clone(peer), cause));
            cause
        });
        trust.or_else(|| {
            let decision = snapshot.authorization.decide_connection(&self.caller())?;
            (decision.verdict == Verdict::Deny).then_some(Cause::Denied)
        })
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            listener: &self.listener,
            port: self.port,
            source: self.source,
            peer: self.peer.as_ref().map(|peer| &peer.id),
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
