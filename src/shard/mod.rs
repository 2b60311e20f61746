//! One pinned thread and everything it owns.

pub mod buffers;
pub mod clock;
pub mod link;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use link::Link;

/// What a shard's thread is started with. Its first snapshot and its listeners' sockets are already in `link`.
pub struct Plan {
    /// Which shard, from 0.
    pub shard: u16,
    /// The CPU to pin the thread to; `None` leaves it where the scheduler puts it.
    pub cpu: Option<usize>,
    /// The connection to control.
    pub link: Arc<Link>,
    /// The shard's end of the doorbell.
    pub doorbell: UnixStream,
    /// A task that keeps the shard longer than this is counted and reported as a stall.
    pub stall_threshold: Duration,
}

/// Starts the shard's thread. It ends (and sets `Vitals::ended`) after `Order::Drain`, when all is done.
///
/// # Errors
/// When the thread cannot be made or no runtime can be built, not even the one on epoll.
pub fn spawn(_plan: Plan) -> io::Result<JoinHandle<()>> {
    Err(io::Error::other("not yet"))
}
