//! HTTP/1.1 over the lanes of a connection between two ringmeshes: whether a request goes over one, what comes of it, and the far end, which
//! serves requests on a lane as on a connection.
//!
//! What goes over a lane is whole when it is sent, so that it never waits for a window in the middle, and is HTTP/1.1 at both ends. All else
//! (bodies that still come, tunnels, gRPC by HTTP/1.1, HTTP/1.0) goes as a stream of its own, as `over_h2` does it. Refuses to be asked
//! for by anybody but a ringmesh: see `http::h2::origin`.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};

use super::again::Missed;
use super::caller::Caller;
use super::connect::To;
use super::h2_io::{Place, Standing};
use super::response::Answered;
use super::{Fate, Path, exchange, over_h2, refuse};
use crate::downstream::{Asked, Downstream, Next};
use crate::failure::Failure;
use crate::http::grpc::Dialect;
use crate::http::{Method, Version};
use crate::io::Connection;
use crate::io::lane::Lane;
use crate::shard::Shard;
use crate::shard::clock::ns;
use crate::upstream::pool::Pooled;
use crate::upstream::service::Attempt;
use crate::upstream::shared::{Laned, Lease};

/// Larger requests have a stream of their own: no window need be so large, and h2 takes no more than 64 KiB at once.
const OCTETS_MAX: usize = 32 * 1024;

/// A new lane is waited for so long, until its connection has been driven: normally at the end of this turn. Later there is no room for the
/// connection's whole window is taken.
const OPENS_WITHIN: Duration = Duration::from_millis(10);

/// A lane for a request with a body of so many octets, where it is one for a lane and there is one. Else the place is given back, and where
/// there may be a new lane for it, that.
pub(super) fn at_hand(
    path: &Path<'_>,
    downstream: &Downstream,
    asked: &Asked,
    request: &[u8],
    body: usize,
    lease: Lease,
) -> Result<Used, (Lease, Option<Laned>)> {
    let is_grpc = || Dialect::of_head(&downstream.input[..asked.head_len]).is_some();
    if asked.version != Version::Http11 || request.len() > OCTETS_MAX || (body > 0 && is_grpc()) {
        return Err((lease, None));
    }
    match lease.lane(request.len(), &path.shard.deadlines, path.shard.clock.now()) {
        Some(laned) if !laned.is_new => Ok(Used::Lane(laned, lease)),
        new => Err((lease, new)),
    }
}

/// The new lane, once it has room for the request; without one, or when it gets none, the exchange itself, over a stream of its own: how that ended.
pub(super) async fn or_stream(
    path: &Path<'_>,
    downstream: &mut Downstream,
    asked: &Asked,
    (request, body): (&[u8], usize),
    attempt: &Attempt,
    lease: Lease,
    new: Option<Laned>,
) -> Result<Used, Result<Fate, Missed>> {
    if let Some(mut laned) = new {
        let deadline = path.shard.clock.after(OPENS_WITHIN).min(path.deadline);
        path.account.wait(path.shard.clock.now());
        let has_room = laned.connection.gets_room(request.len(), deadline).await;
        path.account.waited(path.shard.clock.now());
        if has_room {
            return Ok(Used::Lane(laned, lease));
        }
        lease.put_aside(laned, path.shard.clock.now());
    }
    Err(over_h2::carry(path, downstream, asked, request, Some(body), attempt, &lease).await)
}

/// What a request is sent on. One place in the future of every connection for all of it, one after the other.
pub(super) enum Used {
    /// A connection of its own.
    Pooled(Pooled),
    /// A place on a shared one: on the way to being a lane, or used up.
    Place(Lease),
    /// A lane of a shared one.
    Lane(Laned, Lease),
}

impl From<To> for Used {
    fn from(to: To) -> Self {
        match to {
            To::H1(pooled) => Self::Pooled(pooled),
            To::H2(lease) => Self::Place(lease),
        }
    }
}

impl Used {
    /// What is read and written.
    pub(super) fn connection(&mut self) -> &mut Connection {
        match self {
            Self::Pooled(pooled) => &mut pooled.connection,
            Self::Lane(laned, _) => &mut laned.connection,
            Self::Place(_) => unreachable!("became a lane, or was used up"),
        }
    }
}

impl Path<'_> {
    /// The exchange is over and all is well: what becomes of the lane and of the caller's connection.
    pub(super) fn done_with_lane(&self, laned: Laned, lease: &Lease, done: &Answered) -> Fate {
        if done.reusable {
            lease.keep(laned, self.shard.clock.now(), ns(self.service.spec.pool.idle_timeout));
        }
        if done.close { Fate::Close } else { Fate::Again }
    }

    /// What comes of an attempt over a lane that failed. `unsent`: before an octet of it was sent.
    pub(super) fn missed_by_lane(
        &self,
        lease: &Lease,
        attempt: &Attempt,
        method: Method,
        failure: Failure,
        unsent: bool,
    ) -> Missed {
        lease.leave_if_going(failure);
        let replays = self.replays_by_http2(failure, lease, attempt.has_answered(), method)
            || (unsent && lease.reused && self.replays_after_death());
        if replays { Missed::Again } else { self.missed(failure, unsent) }
    }
}

/// Serves the requests that come over a lane. Not an `async fn`, which would have room for its arguments twice.
pub(super) fn serve(
    shard: Rc<Shard>,
    caller: Rc<Caller>,
    standing: Rc<Standing>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> impl Future<Output = ()> {
    let send = respond.send_response(Response::new(()), false);
    let connection =
        send.map(|send| Connection::of_lane(Lane::accepted(request.into_body(), send), &shard.deadlines));
    let mut downstream = connection.map(|connection| caller.on_lane(connection));
    async move {
        // Else the peer is gone already.
        if let Ok(downstream) = &mut downstream {
            requests(&shard, downstream, &standing).await;
            shard.buffers.give(std::mem::take(&mut downstream.input));
        }
    }
}

/// Serves one after the other.
async fn requests(shard: &Rc<Shard>, downstream: &mut Downstream, standing: &Rc<Standing>) {
    loop {
        let next = downstream.next(shard, false).await;
        // While it is at rest the connection that carries it is, too, if all are.
        let place = Place::take(standing);
        let fate = match next {
            Next::Nothing | Next::Http2 => Fate::Close,
            Next::Refused(failure, started, waited_us) => {
                refuse(shard, downstream, failure, (started, waited_us)).await
            }
            Next::Request(mut asked) => {
                shard.cohort.regroup().await;
                let fate = exchange(shard, downstream, &mut asked).await;
                if fate == Fate::Again {
                    // Only what the caller let be answered lets it reset a lane: see `http::h2::watch`.
                    place.answered();
                }
                fate
            }
        };
        if fate != Fate::Again {
            return end(shard, downstream, fate).await;
        }
    }
}

/// Ends a connection as its last exchange says.
pub(super) async fn end(shard: &Rc<Shard>, downstream: &mut Downstream, fate: Fate) {
    match fate {
        Fate::Again => {}
        Fate::Close if !downstream.connection.has_unread() => {}
        Fate::Close | Fate::Linger => downstream.linger(shard).await,
        Fate::Reset => downstream.connection.reset(),
    }
}
