//! One pinned thread and everything it owns: listeners, connections, pools, averages, buffers, telemetry.
//!
//! Nothing here is shared with another thread but the [`Link`](link::Link) to control. A shard never locks, never
//! touches the file system, never resolves a name and never waits for control.

pub mod blocks;
pub mod buffers;
pub mod clock;
pub mod cohort;
pub mod link;
pub mod live;
pub mod memory;
mod pressure;
mod runtime;
mod state;
pub(crate) mod task;
mod together;
pub mod watched;

pub use runtime::{Plan, RuntimeChoice, spawn};
pub use state::{Faulty, Gathered, Mirrored, Shard, View};
pub use together::Together;
