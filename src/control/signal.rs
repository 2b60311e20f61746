//! What signals mean. The first SIGTERM or SIGINT drains, the second ends at once with exit code 1 (not 128 + 15: the
//! process ends by itself, and with work undone), unless it comes with the first: `timeout` tells the process and then
//! its whole group, and so do some init programs of containers. SIGHUP reloads; SIGUSR1 reopens the access log. Used by the control
//! loop; the decision is pure, so that it can be tested without killing the test.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How far the process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Serving.
    Serving,
    /// Finishing what is in flight, for so long.
    Draining(Duration),
}

/// A stop signal this soon after the first is the same one, told twice: no person is as quick.
const TWICE_WITHIN: Duration = Duration::from_millis(100);

/// A signal that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Hangup,
    /// SIGUSR1.
    User1,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Start draining.
    Drain,
    /// End now, exit code 1.
    EndNow,
    /// Read the configuration again.
    Reload,
    /// Open the access log again.
    Reopen,
    /// Nothing.
    Nothing,
}

/// What a signal means in a phase.
pub(super) fn act(phase: Phase, told: Told) -> Action {
    match (phase, told) {
        (Phase::Serving, Told::Stop) => Action::Drain,
        (Phase::Draining(since), Told::Stop) if since < TWICE_WITHIN => Action::Nothing,
        (Phase::Draining(_), Told::Stop) => Action::EndNow,
        (Phase::Serving, Told::Hangup) => Action::Reload,
        // New listeners and services are of no use to a proxy that is going away.
        (Phase::Draining(_), Told::Hangup) => Action::Nothing,
        (_, Told::User1) => Action::Reopen,
    }
}

/// The process's signals, or none (tests, a proxy inside another program).
pub(super) struct Signals(Option<[(Signal, Told); 4]>);

impl Signals {
    /// No signals: [`Signals::next`] never returns.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Takes over the four signals.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self(Some([
            (signal(SignalKind::terminate())?, Told::Stop),
            (signal(SignalKind::interrupt())?, Told::Stop),
            (signal(SignalKind::hangup())?, Told::Hangup),
            (signal(SignalKind::user_defined1())?, Told::User1),
        ])))
    }

    /// The next signal. Nothing is lost when this future is dropped.
    pub(super) async fn next(&mut self) -> Told {
        std::future::poll_fn(|cx| {
            for (signal, told) in self.0.iter_mut().flatten() {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*told);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: Phase = Phase::Draining(Duration::from_secs(1));

    #[test]
    fn the_second_sigterm_ends_at_once() {
        assert_eq!(act(Phase::Serving, Told::Stop), Action::Drain);
        assert_eq!(act(LONG_AGO, Told::Stop), Action::EndNow);
    }

    #[test]
    fn a_sigterm_that_is_told_twice_is_one() {
        assert_eq!(act(Phase::Draining(Duration::from_millis(1)), Told::Stop), Action::Nothing);
        assert_eq!(act(Phase::Draining(TWICE_WITHIN), Told::Stop), Action::EndNow);
    }

    #[test]
    fn a_draining_proxy_does_not_reload_but_still_reopens_its_log() {
        assert_eq!(act(Phase::Serving, Told::Hangup), Action::Reload);
        assert_eq!(act(LONG_AGO, Told::Hangup), Action::Nothing);
        assert_eq!(act(LONG_AGO, Told::User1), Action::Reopen);
    }
}
