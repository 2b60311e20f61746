//! The way back by HTTP/1.1 of a request that is whole, and what watches over it where anything does: an exchange may not lie still for long
//! ([`idle`]), or may be hedged ([`hedge`]), or came over a lane, which says when nobody wants the answer any more.
//!
//! A future by hand, because all callers by HTTP/1.1 come by here and few are watched over: then the rest of the exchange stays where it is,
//! in the future of its connection, and only what watches has a box. To move the exchange there took 0.4 µs. Refuses to decide anything.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::response::{self, Answered, Way};
use super::{hedge, idle};
use crate::downstream::Downstream;
use crate::failure::{Cause, Failure, Stage};
use crate::io::{Connection, Control, Reader, Writer};

/// Nobody wants the answer any more.
const GIVEN_UP: Failure = Failure::downstream(Stage::Response, Cause::StreamReset);

pin_project! {
    /// The exchange, and who watches.
    pub(super) struct Watched<'x, E> {
        #[pin]
        exchange: E,
        by: Option<Box<By<'x>>>,
        lane: Option<Box<OnLane>>,
    }
}

/// What an exchange needs whose caller is on a lane.
struct OnLane {
    caller: Control,
    origin: Control,
    /// The caller has given it up.
    is_cut: bool,
}

impl OnLane {
    /// Gives the exchange up where the caller has.
    #[inline(never)]
    fn look(&mut self, cx: &mut Context<'_>) {
        if !self.is_cut && self.caller.poll_reset(cx).is_ready() {
            self.is_cut = true;
            self.origin.shutdown();
        }
    }
}

struct By<'x> {
    way: &'x Way<'x>,
    idle: Option<idle::Watch<'x>>,
    hedging: Option<hedge::Hedging<'x>>,
    caller: Control,
    origin: Control,
    listener: &'x str,
    /// Its head and its body, for a hedge.
    request: (&'x [u8], &'x [u8]),
}

/// The way back of `request`, which was sent.
pub(super) fn back<'x>(
    way: &'x Way<'x>,
    request: (&'x [u8], &'x [u8]),
    upstream: &'x mut Connection,
    downstream: &'x mut Downstream,
) -> Watched<'x, impl Future<Output = Result<Answered, Failure>> + 'x> {
    let Connection { reader: from, writer: there, .. } = upstream;
    let Connection { reader: here, writer: to, .. } = &mut downstream.connection;
    let by = By::of(way, request, (here, there), &downstream.listener);
    let on_lane = || Box::new(OnLane { caller: here.control(), origin: there.control(), is_cut: false });
    let lane = here.is_lane().then(on_lane);
    Watched { exchange: response::carry(way, from, to), by, lane }
}

impl<'x> By<'x> {
    fn of(
        way: &'x Way<'x>,
        request: (&'x [u8], &'x [u8]),
        (here, there): (&Reader, &Writer),
        listener: &'x str,
    ) -> Option<Box<Self>> {
        let Way { path, asked, request_sent, .. } = way;
        let idle = idle::Watch::new(path, asked.view.snapshot.timeouts.stream_idle, request_sent);
        let hedging = match asked.tunnel {
            None => hedge::Hedging::new(path, request_sent, &asked.view),
            Some(_) => None,
        };
        if idle.is_none() && hedging.is_none() {
            return None;
        }
        let (caller, origin) = (here.control(), there.control());
        Some(Box::new(Self { way, idle, hedging, caller, origin, listener, request }))
    }
}

/// Polls the exchange, in one place whoever watches over it: else its code is there several times, and what is there for those who are watched
/// over is compiled as what hardly happens (0.3 µs a request).
#[inline(never)]
fn poll_exchange<E: Future<Output = Result<Answered, Failure>>>(
    exchange: Pin<&mut E>,
    lane: &mut Option<Box<OnLane>>,
    cx: &mut Context<'_>,
) -> Poll<E::Output> {
    if let Some(lane) = lane {
        lane.look(cx);
    }
    let polled = exchange.poll(cx);
    if lane.as_ref().is_some_and(|lane| lane.is_cut) && matches!(polled, Poll::Ready(Err(_))) {
        // Not the service's doing.
        return Poll::Ready(Err(GIVEN_UP));
    }
    polled
}

impl<E: Future<Output = Result<Answered, Failure>>> Future for Watched<'_, E> {
    type Output = E::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<E::Output> {
        let mut this = self.project();
        let mut exchange = |cx: &mut Context<'_>| poll_exchange(this.exchange.as_mut(), this.lane, cx);
        let Some(by) = this.by else { return exchange(cx) };
        let By { way, idle, hedging, caller, origin, listener, request } = &mut **by;
        let mut watched = |cx: &mut Context<'_>| match idle {
            None => exchange(cx),
            Some(idle) => {
                let hurry = || {
                    origin.read_by(0);
                    caller.shutdown_if(way.path.account.status.get() != 0);
                };
                idle.poll(&[caller, origin], hurry, &mut exchange, cx)
            }
        };
        match hedging {
            None => watched(cx),
            Some(hedging) => {
                let copy = || hedge::copy_of(listener, way.asked, *request);
                hedging.poll(|| origin.read_by(0), copy, watched, cx)
            }
        }
    }
}
