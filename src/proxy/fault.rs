//! Delays that a route makes on purpose. Called by both exchanges where the turn of a request says so; what ends a request on
//! purpose is an answer of its turn, or a reset.

use std::cell::RefCell;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;

use super::account::Account;
use super::relay::unless_reset;
use crate::downstream::Asked;
use crate::shard::Shard;
use crate::shard::clock::{NEVER, ns};

/// Lets a request that came by HTTP/1.1 wait, not beyond its deadline.
pub(super) async fn hold_up(shard: &Shard, account: &Account, asked: &Asked) {
    let delay = asked.turn.as_ref().and_then(|turn| turn.delay()).unwrap_or_default();
    let route = asked.route.id().and_then(|id| asked.view.snapshot.routes.route(id));
    let timeout = route.and_then(|route| route.timeout);
    let deadline = timeout.map_or(NEVER, |timeout| asked.started.saturating_add(ns(timeout)));
    let until = shard.clock.now().saturating_add(ns(delay)).min(deadline);
    account.wait(shard.clock.now());
    let _: Option<()> = shard.deadlines.alarm().until(until, pending()).await;
    account.waited(shard.clock.now());
}

/// The same for one that came by HTTP/2, until its caller resets it; whether it has.
pub(super) async fn hold_up_stream(
    shard: &Shard,
    account: &Account,
    respond: &RefCell<SendResponse<Bytes>>,
    delay: Duration,
    deadline: u64,
) -> bool {
    let until = shard.clock.now().saturating_add(ns(delay)).min(deadline);
    account.wait(shard.clock.now());
    let alarm = shard.deadlines.alarm();
    let wait = alarm.until(until, pending::<()>());
    let (_, was_reset) = unless_reset(|cx| respond.borrow_mut().poll_reset(cx), || alarm.by(0), wait).await;
    account.waited(shard.clock.now());
    was_reset
}
