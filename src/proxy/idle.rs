//! Ends exchanges on which neither side moves: not a timeout of one side, because what one side waits for may be the other.
//!
//! Called by all who make attempts, around what they wait for. Nothing is noted when something moves but what is counted anyway
//! (waits and writes that are over): an exchange is looked at now and then. Refuses to drop an exchange: it is hurried, and ends
//! by itself.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Path;
use crate::io::Control;
use crate::io::timed::Alarm;
use crate::shard::clock::ns;

/// Drives `exchange` to its end. When neither it nor the connections have moved for `idle`, if that is anything, it is noted in its account, and
/// `hurry` must end what it waits for. While the request is `sent` and the head of its response is not there the service has its
/// own time.
pub(super) async fn unless_idle<E: Future>(
    path: &Path<'_>,
    idle: Option<Duration>,
    sent: &Cell<bool>,
    connections: &[&Control],
    hurry: impl Fn(),
    mut exchange: Pin<&mut E>,
) -> E::Output {
    let Some(mut watch) = Watch::new(path, idle, sent) else { return exchange.await };
    poll_fn(|cx| watch.poll(connections, &hurry, |cx| exchange.as_mut().poll(cx), cx)).await
}

/// The same for who polls by himself.
pub(super) struct Watch<'x> {
    path: &'x Path<'x>,
    sent: &'x Cell<bool>,
    alarm: Alarm,
    step_ns: u64,
    is_set: bool,
    quiet: Quiet,
}

impl<'x> Watch<'x> {
    /// `None` where it may be idle for as long as it likes.
    pub(super) fn new(path: &'x Path<'x>, idle: Option<Duration>, sent: &'x Cell<bool>) -> Option<Self> {
        let step_ns = ns(idle?) / u64::from(Quiet::LOOKS);
        let alarm = path.shard.deadlines.alarm();
        Some(Self { path, sent, alarm, step_ns, is_set: false, quiet: Quiet::default() })
    }

    /// As [`unless_idle`].
    pub(super) fn poll<T>(
        &mut self,
        connections: &[&Control],
        hurry: impl Fn(),
        mut exchange: impl FnMut(&mut Context<'_>) -> Poll<T>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        let Self { path, sent, alarm, step_ns, is_set, quiet } = self;
        loop {
            if let Poll::Ready(output) = exchange(cx) {
                return Poll::Ready(output);
            }
            if std::mem::replace(is_set, true) {
                if !alarm.has_rung(cx.waker()) {
                    return Poll::Pending;
                }
                let written =
                    connections.iter().fold(0_u32, |sum, connection| sum.wrapping_add(connection.writes()));
                let moves = path.account.moves.get().wrapping_add(written);
                if sent.get() && path.account.status.get() == 0 {
                    *quiet = Quiet { moves, looks: 0 };
                } else if quiet.look(moves) {
                    path.account.was_idle.set(true);
                    hurry();
                }
            }
            alarm.set(path.shard.clock.now().saturating_add(*step_ns), cx.waker());
        }
    }
}

/// What the looks at an exchange have shown.
#[derive(Debug, Default)]
struct Quiet {
    /// What was counted then.
    moves: u32,
    /// How many looks have shown nothing else since.
    looks: u32,
}

impl Quiet {
    /// So many make up the time: what comes of it is up to a quarter late.
    const LOOKS: u32 = 4;

    /// Whether it has been quiet for long enough. From then on it is with every look.
    fn look(&mut self, moves: u32) -> bool {
        if std::mem::replace(&mut self.moves, moves) == moves {
            self.looks += 1;
        } else {
            self.looks = 0;
        }
        self.looks >= Self::LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_when_so_many_looks_in_a_row_show_the_same() {
        let mut quiet = Quiet::default();
        // It moves between any two looks, then between every fourth, then not.
        let moves = [1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4];
        let shown: Vec<bool> = moves.iter().map(|moves| quiet.look(*moves)).collect();
        assert_eq!(shown.iter().position(|is| *is), Some(10));
        assert!(shown[11]);
        // What was hurried moves once more, and then waits for something else.
        assert!(!quiet.look(u32::MAX));
        assert!(!quiet.look(0));
    }
}
