//! Shared HTTP/2 connections to services: opened, driven, pinged, let go.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;

use super::h2_io::{Floods, Keepalive, Lent};
use crate::io::Connection;
use crate::io::gather::{self, Gathered, Vital};
use crate::io::tls::Tls;
use crate::shard::buffers::Buffer;
use crate::shard::clock::{NEVER, ns};
use crate::shard::live::Listed;
use crate::shard::{Shard, task};
use crate::upstream::shared::Shared;
use crate::upstream::spec;

/// A connection that speaks HTTP/2 and is not driven yet.
pub(super) struct Opened {
    pub(super) send: SendRequest<Bytes>,
    connection: h2::client::Connection<Gathered<Lent>, Bytes>,
    vital: Vital<Lent>,
    leave_at: u64,
}

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
    let (io, inward, outward) = gather::gather(
        connection,
        Buffer::default(),
        Lent::new(shard),
        Floods::of_service(shard),
        service.timeouts.body_stall,
    );
    let vital = io.vital();
    task::spawn(shard, inward.run());
    task::spawn(shard, outward.run());
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(header_list)
        .max_send_buffer_size(64 * 1024);
    let (send, connection) = builder.handshake(io).await?;
    Ok(Opened { send, connection, vital, leave_at })
}

impl Opened {
    /// Drives the connection as a task of its own, as long as it lives.
    pub(super) fn drive(
        self,
        shard: &Rc<Shard>,
        shared: Rc<Shared>,
        service: &spec::Service,
        listed: Option<Listed>,
    ) {
        let Self { connection, vital, leave_at, .. } = self;
        let (limits, idle_ns) = (service.http2, ns(service.pool.idle_timeout));
        let driven = drive(Rc::clone(shard), connection, vital, shared, limits, idle_ns, leave_at);
        task::spawn(shard, async move {
            let _listed = listed;
            driven.await;
        });
    }
}

async fn drive(
    shard: Rc<Shard>,
    mut connection: h2::client::Connection<Gathered<Lent>, Bytes>,
    vital: Vital<Lent>,
    shared: Rc<Shared>,
    limits: spec::Http2,
    idle_ns: u64,
    leave_at: u64,
) {
    let _open = Counted::new(&shard);
    let watched = shard.watch.register();
    let mut keepalive = Keepalive::new(connection.ping_pong(), limits.ping_interval, limits.ping_timeout);
    let mut used_at = shard.clock.now();
    poll_fn(|cx| {
        if Pin::new(&mut connection).poll(cx).is_ready() || vital.was_stopped() {
            return Poll::Ready(());
        }
        let now = shard.clock.now();
        if now >= leave_at {
            shared.leave();
        }
        let due = if shared.exchanges() > 0 {
            used_at = now;
            match keepalive.poll(&vital, now, cx) {
                Some(due) => due,
                None => return Poll::Ready(()),
            }
        } else if shared.is_leaving() || now >= used_at + idle_ns {
            return Poll::Ready(());
        } else {
            used_at + idle_ns
        };
        watched.look_at(if now < leave_at { due.min(leave_at) } else { due }, cx);
        Poll::Pending
    })
    .await;
    shared.leave();
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
