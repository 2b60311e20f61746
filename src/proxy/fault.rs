//! Delays and silences that a route makes on purpose. Called by both exchanges where the turn of a request says so; what ends a
//! request on purpose is an answer of its turn, or a reset. A caller that leaves meanwhile is noticed at once.

use std::cell::RefCell;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;

use super::account::Account;
use super::leaving::{Meanwhile, unless_gone};
use super::relay::unless_reset;
use crate::downstream::turn::Turn;
use crate::downstream::{Asked, Downstream};
use crate::failure::{Cause, Failure, Stage};
use crate::io::timed::Alarm;
use crate::shard::Shard;
use crate::shard::clock::{NEVER, ns};

const LEFT: Failure = Failure::downstream(Stage::Head, Cause::Closed);

/// The delay took all the time that the exchange may take: this proxy's doing, and no service was asked.
pub(super) const HELD_UP: Failure = Failure::local(Stage::Route, Cause::Timeout);

/// Whether a delay has, of an exchange that is to end by then.
pub(super) fn took_all(shard: &Shard, turn: &Turn, deadline: u64) -> bool {
    turn.delay().is_some() && turn.silence().is_none() && shard.clock.now() >= deadline
}

/// Holds a request up that came by HTTP/1.1, for its delay (not beyond its deadline) and then its silence.
///
/// # Errors
/// When its caller has left meanwhile, or the delay took all its time.
pub(super) async fn hold_up(
    shard: &Shard,
    account: &Account,
    downstream: &mut Downstream,
    asked: &Asked,
) -> Result<(), Failure> {
    let Some(turn) = asked.turn.as_deref() else { return Ok(()) };
    let route = asked.route.id().and_then(|id| asked.view.snapshot.routes.route(id));
    if shard.sheds(route) {
        return Ok(());
    }
    let alarm = shard.deadlines.alarm();
    if let Some(delay) = turn.delay() {
        let timeout = Turn::timeout(Some(turn), route);
        let deadline = timeout.map_or(NEVER, |timeout| asked.started.saturating_add(ns(timeout)));
        let until = shard.clock.now().saturating_add(ns(delay)).min(deadline);
        account.wait(shard.clock.now());
        let wait = pin!(alarm.until(until, pending::<()>()));
        let stayed = unless_gone(downstream, Meanwhile::Keep, wait).await.is_some();
        account.waited(shard.clock.now());
        if !stayed {
            return Err(LEFT);
        }
        if took_all(shard, turn, deadline) {
            return Err(HELD_UP);
        }
    }
    let Some(most) = turn.silence() else { return Ok(()) };
    account.wait(shard.clock.now());
    let wait = pin!(silence(shard, &alarm, most));
    let stayed = unless_gone(downstream, Meanwhile::DropBehind(asked.head_len), wait).await.is_some();
    account.waited(shard.clock.now());
    if stayed { Ok(()) } else { Err(LEFT) }
}

/// The same for one that came by HTTP/2, until its caller resets it; whether it has.
pub(super) async fn hold_up_stream(
    shard: &Shard,
    account: &Account,
    turn: &Turn,
    respond: &RefCell<SendResponse<Bytes>>,
    body: &mut RecvStream,
    deadline: u64,
) -> bool {
    let alarm = shard.deadlines.alarm();
    let mut was_reset = false;
    let reset = |cx: &mut Context<'_>| respond.borrow_mut().poll_reset(cx);
    if let Some(delay) = turn.delay() {
        let until = shard.clock.now().saturating_add(ns(delay)).min(deadline);
        account.wait(shard.clock.now());
        let wait = alarm.until(until, pending::<()>());
        (_, was_reset) = unless_reset(reset, || alarm.by(0), wait).await;
        account.waited(shard.clock.now());
    }
    let Some(most) = turn.silence().filter(|_| !was_reset) else { return was_reset };
    account.wait(shard.clock.now());
    let (over, hurry) = (shard.deadlines.alarm(), std::cell::Cell::new(false));
    let mut wait = pin!(silence(shard, &over, most));
    let mut has_more = true;
    let wait = poll_fn(|cx| {
        // Taken, so that it holds no other stream of the connection up, and dropped.
        while has_more {
            match body.poll_data(cx) {
                Poll::Ready(Some(Ok(piece))) => {
                    let _ = body.flow_control().release_capacity(piece.len());
                }
                Poll::Ready(Some(Err(_)) | None) => has_more = false,
                Poll::Pending => break,
            }
        }
        if hurry.get() { Poll::Ready(()) } else { wait.as_mut().poll(cx) }
    });
    (_, was_reset) = unless_reset(reset, || hurry.set(true), wait).await;
    account.waited(shard.clock.now());
    was_reset
}

/// Waits for so long. A drain does not wait for what will never be answered.
async fn silence(shard: &Shard, alarm: &Alarm, most: Duration) {
    const LOOK: Duration = Duration::from_millis(500);
    let until = shard.clock.after(most);
    while !shard.is_draining() && shard.clock.now() < until && !alarm.is_cut() {
        let _: Option<()> = alarm.until(until.min(shard.clock.after(LOOK)), pending()).await;
    }
}
