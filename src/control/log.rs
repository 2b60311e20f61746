//! Control's own log: one line per event on standard error, lower case, with fields and with a remedy. Set up once by
//! `main`; inside another program that program decides. The access log is another thing (`log_writer`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Not what the h2 crate has to say of each peer: it would say it on a shard's thread, as often as a peer wants. A filter
/// that names it wins.
const QUIET: &str = "h2=error";

/// Logs to standard error what RINGMESH_LOG says, `info` by default. A value that cannot be read counts as `info` and
/// is said so. Does nothing when a log is set up already.
pub fn log() {
    let wanted = std::env::var("RINGMESH_LOG").ok().filter(|w| !w.is_empty());
    let by_default = || EnvFilter::new(format!("{QUIET},info"));
    let (levels, wrong) = match wanted.as_deref().map(|w| EnvFilter::try_new(format!("{QUIET},{w}"))) {
        None => (by_default(), None),
        Some(Ok(levels)) => (levels, None),
        Some(Err(error)) => (by_default(), Some(error)),
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let set = tracing_subscriber::fmt()
        .with_env_filter(levels)
        .with_target(false)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .try_init();
    if let (Ok(()), Some(error)) = (set, wrong) {
        tracing::warn!(%error, "RINGMESH_LOG cannot be read; logging at info: use error, warn, info or debug");
    }
}
