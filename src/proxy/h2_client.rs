//! Shared HTTP/2 connections to services: opened, driven, pinged, let go.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;

use super::h2_io::{Floods, Keepalive, Lent, SMALL_FRAMES_MAX, Standing};
use crate::io::Connection;
use crate::io::gather::{self, Gathered, Vital};
use crate::io::tls::Tls;
use crate::shard::buffers::Buffer;
use crate::shard::clock::{NEVER, ns};
use crate::shard::live::Listed;
use crate::shard::{Shard, task};
use crate::upstream::berths::Berth;
use crate::upstream::shared::Shared;
use crate::upstream::spec;

/// A connection that speaks HTTP/2 and is not driven yet.
pub(super) struct Opened {
    pub(super) send: SendRequest<Bytes>,
    connection: h2::client::Connection<Gathered<Lent>, Bytes>,
    vital: Vital<Lent>,
    standing: Rc<Standing>,
    leave_at: u64,
}

/// Exchanges that a connection takes before the service has said how many it wants: as few as RFC 9113 §6.5.2 advises a
/// service to allow. Without this h2 would take any number, and keep those above the limit waiting although another connection
/// could have them.
const STREAMS_BEFORE_SETTINGS: usize = 100;

/// Begins to speak HTTP/2 on a connection.
///
/// # Errors
/// When h2 refuses the settings, which it does not.
pub(super) async fn open(
    shard: &Rc<Shard>,
    connection: Connection,
    service: &spec::Service,
) -> Result<Opened, h2::Error> {
    let limits = &service.http2;
    let leave_at = connection.tls().map_or(NEVER, Tls::leave_at);
    let header_list = shard.view().snapshot.limits.head_bytes_max;
    let (floods, standing) = Floods::of_service(shard);
    let stall = service.timeouts.body_stall;
    let (io, inward, outward) =
        gather::gather(connection, Buffer::default(), Lent::new(shard), floods, stall);
    let vital = io.vital();
    task::spawn(shard, inward.run());
    task::spawn(shard, outward.run());
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(header_list)
        .max_send_buffer_size(64 * 1024)
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .data_frame_budget(SMALL_FRAMES_MAX);
    let (send, connection) = builder.handshake(io).await?;
    Ok(Opened { send, connection, vital, standing, leave_at })
}

impl Opened {
    /// Drives the connection as a task of its own, as long as it lives.
    pub(super) fn drive(
        self,
        shard: &Rc<Shard>,
        shared: Rc<Shared>,
        service: &spec::Service,
        (listed, berth): (Option<Listed>, Option<Berth>),
    ) {
        let Self { connection, vital, standing, leave_at, .. } = self;
        let driven = Driven { vital, standing, shared, limits: service.http2, leave_at };
        let (idle_ns, patience_ns) = (ns(service.pool.idle_timeout), ns(service.timeouts.response));
        let driven = drive(Rc::clone(shard), connection, driven, idle_ns, patience_ns);
        task::spawn(shard, async move {
            let _held = (listed, berth);
            driven.await;
        });
    }
}

/// What drives a connection needs to know of it.
struct Driven {
    vital: Vital<Lent>,
    standing: Rc<Standing>,
    shared: Rc<Shared>,
    limits: spec::Http2,
    /// When it gets nothing new any more.
    leave_at: u64,
}

/// `patience_ns` is how long the service may owe us the end of a head, or that it took our settings.
async fn drive(
    shard: Rc<Shard>,
    mut connection: h2::client::Connection<Gathered<Lent>, Bytes>,
    driven: Driven,
    idle_ns: u64,
    patience_ns: u64,
) {
    let Driven { vital, standing, shared, limits, leave_at } = driven;
    let _open = Counted::new(&shard);
    let watched = shard.watch.register();
    let ping_interval = shared.ping_interval(limits.ping_interval);
    let mut keepalive = Keepalive::new(&standing, connection.ping_pong(), ping_interval, limits.ping_timeout);
    let mut used_at = shard.clock.now();
    let (mut busy, mut closing) = (false, None);
    poll_fn(|cx| {
        let now = shard.clock.now();
        let is_over = standing.verdict(vital.was_stopped(), patience_ns, now).is_some();
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            if ended.is_err_and(|error| {
                error.is_remote() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
            }) {
                // Pings are all that comes from us unasked.
                shared.pinged_too_often();
            }
            return Poll::Ready(());
        }
        if is_over {
            return Poll::Ready(());
        }
        shared.was_driven();
        if vital.has_begun() {
            shared.settle();
        }
        if now >= leave_at {
            shared.leave();
        }
        if shared.exchanges() > 0 || std::mem::take(&mut busy) {
            used_at = now;
        }
        shared.driven_by(cx);
        let due = if shared.exchanges() > 0 {
            busy = true;
            match keepalive.poll(&vital, now, cx) {
                Some(due) => due,
                None => return Poll::Ready(()),
            }
        } else if let Some(until) = closing {
            if now >= until {
                return Poll::Ready(());
            }
            until
        } else if shared.is_leaving() || now >= used_at + idle_ns {
            // h2 says GOAWAY, so that the service need not wonder, and is ready once that is out.
            shared.close();
            cx.waker().wake_by_ref();
            *closing.insert(now + ns(limits.ping_timeout))
        } else {
            used_at + idle_ns
        };
        let due = due.min(standing.overdue_at(patience_ns));
        watched.look_at(if now < leave_at { due.min(leave_at) } else { due }, cx);
        Poll::Pending
    })
    .await;
    shared.leave();
    shared.settle();
}

/// Counts an open upstream connection until it is dropped.
struct Counted(Rc<Shard>);

impl Counted {
    fn new(shard: &Rc<Shard>) -> Self {
        let tally = &shard.tally;
        tally.open.set(tally.open.get() + 1);
        tally.connected.set(tally.connected.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tally.open.set(self.0.tally.open.get() - 1);
    }
}
