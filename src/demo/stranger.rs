//! Somebody on the network who has no certificate: calls stock's inbound listener in plain text, once a second, past all
//! taps. What the demo provokes itself: such calls must fail, and are no failed requests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::call::Caller;

/// For one try.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What became of the tries.
#[derive(Debug, Clone, Default)]
pub(super) struct Strangers {
    /// Refused in words, or cut off.
    pub refused: u64,
    /// Got something from the workload.
    pub let_in: u64,
    /// Begun and not ended.
    pub waiting: u64,
}

/// Who tries.
pub(super) struct Stranger {
    caller: Arc<Caller>,
    tries: Arc<Mutex<Strangers>>,
}

impl Stranger {
    /// Calls nobody yet.
    pub(super) fn new(to: SocketAddr) -> Self {
        Self { caller: Arc::new(Caller::new(to, "stock")), tries: Arc::default() }
    }

    /// What became of the tries until now.
    pub(super) fn tries(&self) -> Strangers {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tries once, on a task; not while an earlier try goes on.
    pub(super) fn call(&self) {
        let (caller, tries) = (Arc::clone(&self.caller), Arc::clone(&self.tries));
        {
            let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
            if tries.waiting > 0 {
                return;
            }
            tries.waiting = 1;
        }
        tokio::spawn(async move {
            let result = tokio::time::timeout(TIMEOUT, caller.call(None)).await;
            let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
            tries.waiting = 0;
            match result {
                Ok(Ok(answer)) if answer.status < 400 => tries.let_in += 1,
                Ok(_) => tries.refused += 1,
                // Neither: a sidecar that is stuck is told of by other means.
                Err(_) => {}
            }
        });
    }
}
