//! The way back by HTTP/1.1 of a request that is whole, and what watches over it where anything does: an exchange may not lie still for long
//! ([`idle`]), or may be hedged ([`hedge`]).
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
use crate::failure::Failure;
use crate::io::{Connection, Control, Reader, Writer};

pin_project! {
    /// The exchange, and who watches.
    pub(super) struct Watched<'x, E> {
        #[pin]
        exchange: E,
        by: Option<Box<By<'x>>>,
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
    Watched { exchange: response::carry(way, from, to), by }
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

impl<E: Future<Output = Result<Answered, Failure>>> Future for Watched<'_, E> {
    type Output = E::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<E::Output> {
        let mut this = self.project();
        let mut exchange = |cx: &mut Context<'_>| this.exchange.as_mut().poll(cx);
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
