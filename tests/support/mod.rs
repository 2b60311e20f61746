//! What the black-box tests stand on: a real shard in this process ([`mesh`]), a scripted service behind it
//! ([`origin`]), a scripted caller before it ([`client`]), and a strict parser of its own ([`wire`]) that shares no
//! code with the proxy. Nothing here sleeps; [`GUARD`] only ends a test that would hang.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of test binaries, which export nothing")]

pub mod authority;
pub mod client;
pub mod folder;
pub mod http2;
pub mod mesh;
pub mod origin;
pub mod rig;
pub mod spans;
pub mod stream;
pub mod wire;

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long anything may take before a test gives up: far more than it takes on a busy machine.
pub const GUARD: Duration = Duration::from_secs(120);

/// A value that threads wait on.
#[derive(Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    /// Looks at it. A test that panicked meanwhile does not matter.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes it and wakes all who wait.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` gives something.
    pub fn wait<R>(&self, what: &str, mut ready: impl FnMut(&mut T) -> Option<R>) -> R {
        let mut value = self.lock();
        loop {
            if let Some(result) = ready(&mut value) {
                return result;
            }
            let (back, timeout) =
                self.changed.wait_timeout(value, GUARD).unwrap_or_else(|poisoned| poisoned.into_inner());
            assert!(!timeout.timed_out(), "waited in vain for {what}");
            value = back;
        }
    }
}

/// A door that is closed until somebody opens it: how a test makes the two ends wait for each other.
#[derive(Default)]
pub struct Gate(Watched<bool>);

impl Gate {
    pub fn open(&self) {
        self.0.change(|open| *open = true);
    }

    pub fn pass(&self) {
        self.0.wait("a gate", |open| open.then_some(()));
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer closed its side.
    Fin,
    /// The peer reset the connection.
    Reset,
    /// The peer closed its side of an encrypted connection without saying so.
    Cut,
    /// TLS failed: the peer sent an alert, for instance.
    Tls,
}
