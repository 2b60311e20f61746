//! Writes the access log: takes the shards' chunks of whole lines, writes them to stdout, stderr or a file, and gives
//! the empty chunks back. A thread of its own, because a pipe that nobody reads or a full disk blocks: then chunks pile
//! up in the link, the shards drop and count lines, and neither they nor control wait. Started by the control loop only
//! when a log is configured.
//!
//! A file is opened again on SIGUSR1 and within a second after it was renamed or deleted, so both ways of rotating
//! work. A chunk that cannot be written is lost and counted (`write_errors`), and said so once a minute.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::Destination;
use crate::shard::link::Link;

/// The running writer.
pub(super) struct LogWriter {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    reopen: AtomicBool,
    stop: AtomicBool,
    write_errors: AtomicU64,
}

impl LogWriter {
    /// Between two looks at the links when there is nothing to write.
    const PACE: Duration = Duration::from_millis(100);
    /// The same when chunks were found: at full speed a shard fills its 1 MiB of chunks in about this.
    const PACE_BUSY: Duration = Duration::from_millis(5);
    /// Between two looks whether the file is still the one of that name.
    const RENAME_PACE: Duration = Duration::from_secs(1);
    /// How long `finish` waits for a destination that blocks.
    const FINISH_MAX: Duration = Duration::from_secs(1);

    /// Opens the destination and starts writing.
    ///
    /// # Errors
    /// When the file cannot be opened for appending, or the thread cannot be made.
    pub(super) fn start(destination: Destination, links: Vec<Arc<Link>>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            out: Out::open(&destination)?,
            destination,
            links,
            shared: Arc::clone(&shared),
            said: None,
            looked: Instant::now(),
        };
        let thread = thread::Builder::new()
            .name("ringmesh-log".into())
            .stack_size(256 << 10)
            .spawn(|| writer.run())?;
        Ok(Self { thread: Some(thread), shared })
    }

    /// Has the file opened again.
    pub(super) fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// Chunks that could not be written.
    pub(super) fn write_errors(&self) -> u64 {
        self.shared.write_errors.load(Ordering::Relaxed)
    }

    /// Writes what is in the links and ends; gives up on a destination that blocks after `FINISH_MAX`.
    pub(super) fn finish(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        let deadline = Instant::now() + Self::FINISH_MAX;
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(2));
        }
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// Ends the thread when it has written what is there; does not wait for it.
impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
    }
}

struct Writer {
    destination: Destination,
    out: Out,
    links: Vec<Arc<Link>>,
    shared: Arc<Shared>,
    /// When an error was last said, and how many there had been by then.
    said: Option<(Instant, u64)>,
    looked: Instant,
}

impl Writer {
    /// Between two log lines about errors.
    const SAY_PACE: Duration = Duration::from_secs(60);

    fn run(mut self) {
        loop {
            // Read before the chunks, so that whatever was there when `finish` was called is written.
            let stop = self.shared.stop.load(Ordering::Acquire);
            self.reopen_if_needed();
            let found = self.pass();
            if stop {
                return;
            }
            thread::park_timeout(if found { LogWriter::PACE_BUSY } else { LogWriter::PACE });
        }
    }

    /// One chunk of each link in turn until none is left.
    fn pass(&mut self) -> bool {
        let mut found = false;
        loop {
            let mut more = false;
            for n in 0..self.links.len() {
                let Some(mut chunk) = self.links[n].chunks.pop() else { continue };
                if let Err(error) = self.out.write_all(&chunk) {
                    self.failed("written", &error);
                }
                chunk.clear();
                // Full only if the shard made more chunks than the queue holds; then this one is one too many.
                let _ = self.links[n].spent_chunks.push(chunk);
                more = true;
            }
            if !more {
                return found;
            }
            found = true;
        }
    }

    fn reopen_if_needed(&mut self) {
        let now = Instant::now();
        let asked = self.shared.reopen.swap(false, Ordering::AcqRel);
        let moved = now.saturating_duration_since(self.looked) >= LogWriter::RENAME_PACE && {
            self.looked = now;
            self.out.moved(&self.destination)
        };
        if asked || moved {
            match Out::open(&self.destination) {
                Ok(out) => self.out = out,
                Err(error) => self.failed("opened again", &error),
            }
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        let errors = self.shared.write_errors.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        if let Some((when, _)) = self.said
            && now.saturating_duration_since(when) < Self::SAY_PACE
        {
            return;
        }
        let since = errors - self.said.map_or(0, |s| s.1);
        self.said = Some((now, errors));
        tracing::error!(
            destination = shown(&self.destination), %error, errors = since,
            "access log cannot be {what}; lines are lost: check space and rights, then send SIGUSR1"
        );
    }
}

enum Out {
    Stdout,
    Stderr,
    File { file: File, id: (u64, u64) },
}

impl Out {
    fn open(destination: &Destination) -> io::Result<Self> {
        Ok(match destination {
            Destination::Stdout => Self::Stdout,
            Destination::Stderr => Self::Stderr,
            Destination::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path)?;
                let found = file.metadata()?;
                Self::File { file, id: (found.dev(), found.ino()) }
            }
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::File { file, .. } => file.write_all(bytes),
        }
    }

    /// Whether the name now belongs to another file, or to none.
    fn moved(&self, destination: &Destination) -> bool {
        let (Self::File { id, .. }, Destination::File(path)) = (self, destination) else { return false };
        std::fs::metadata(path).map_or(true, |found| (found.dev(), found.ino()) != *id)
    }
}

/// As it is written in the configuration.
pub(super) fn shown(destination: &Destination) -> String {
    match destination {
        Destination::Stdout => "stdout".to_owned(),
        Destination::Stderr => "stderr".to_owned(),
        Destination::File(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{Folder, eventually};

    #[test]
    fn chunks_are_written_in_order_and_come_back_empty() {
        let folder = Folder::new("log-order");
        let path = folder.path("access.log");
        let (link, _bell) = Link::new(0).unwrap();
        let mut writer = LogWriter::start(Destination::File(path.clone()), vec![Arc::clone(&link)]).unwrap();
        for n in 0..10 {
            link.chunks.push(format!("line {n}\n").into_bytes()).unwrap();
        }
        writer.finish();
        let want: String = (0..10).map(|n| format!("line {n}\n")).collect();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), want);
        assert_eq!(link.spent_chunks.len(), 10);
        assert!(link.spent_chunks.pop().is_some_and(|c| c.is_empty() && c.capacity() > 0));
    }

    #[test]
    fn a_renamed_or_rotated_file_is_opened_again() {
        let folder = Folder::new("log-rotate");
        let path = folder.path("access.log");
        let (link, _bell) = Link::new(0).unwrap();
        let mut writer = LogWriter::start(Destination::File(path.clone()), vec![Arc::clone(&link)]).unwrap();
        let reads = |path: &std::path::Path, want: &str| {
            eventually(want, || std::fs::read_to_string(path).is_ok_and(|t| t == want));
        };
        link.chunks.push(b"one\n".to_vec()).unwrap();
        reads(&path, "one\n");

        std::fs::rename(&path, folder.path("access.log.1")).unwrap();
        eventually("a new file", || path.exists());
        link.chunks.push(b"two\n".to_vec()).unwrap();
        reads(&path, "two\n");
        reads(&folder.path("access.log.1"), "one\n");

        std::fs::remove_file(&path).unwrap();
        writer.reopen();
        eventually("a new file", || path.exists());
        link.chunks.push(b"three\n".to_vec()).unwrap();
        reads(&path, "three\n");
        writer.finish();
    }

    #[test]
    fn a_destination_that_fails_is_counted_and_chunks_still_come_back() {
        let (link, _bell) = Link::new(0).unwrap();
        let full = Destination::File("/dev/full".into());
        let mut writer = LogWriter::start(full, vec![Arc::clone(&link)]).unwrap();
        link.chunks.push(b"lost\n".to_vec()).unwrap();
        link.chunks.push(b"lost\n".to_vec()).unwrap();
        writer.finish();
        assert_eq!((writer.write_errors(), link.spent_chunks.len()), (2, 2));
        let missing = Destination::File("/nonexistent/access.log".into());
        assert!(LogWriter::start(missing, vec![link]).is_err());
    }
}
