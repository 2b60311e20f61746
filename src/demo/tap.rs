//! A tap on the wire between two sidecars: the calling one connects here, and everything is passed on to the called one
//! and back, byte by byte, and looked at on its way (`record`). It sees what anybody on the network would see.
//!
//! Runs on a thread of its own until it is dropped. Refuses to change, delay or end anything by itself: a connection lives
//! as long as both of its ends want it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::record::{Found, Records};

/// A connection on which nothing came for so long was idle when it ended: the caller closed what it needed no more. Well
/// below the time for which the sidecars keep idle ones.
const IDLE_MIN: Duration = Duration::from_millis(500);
/// How long the last words of an idle connection may take (close_notify, GOAWAY).
const LAST_WORDS_MAX: Duration = Duration::from_millis(250);
/// Bytes passed on at a time.
const PIECE: usize = 16 << 10;

/// A tap at work. Dropped, it ends with all its connections.
pub(super) struct Tap {
    /// Where the calling sidecar connects.
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What it has seen, both directions of all connections together.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Connections made.
    pub connections: u64,
    /// Those that ended while they were in use.
    pub dropped: u64,
    /// In their bytes.
    pub found: Found,
    /// Whether the mesh is being stopped: what ends now was not dropped.
    stopping: bool,
}

/// When something came on a connection.
struct Active {
    last: Instant,
    /// When something came after a time of silence.
    woke: Option<Instant>,
    ended: bool,
}

impl Active {
    fn since(now: Instant) -> Self {
        Self { last: now, woke: None, ended: false }
    }

    fn note(&mut self, now: Instant) {
        if now.duration_since(self.last) >= IDLE_MIN {
            self.woke = Some(now);
        }
        self.last = now;
    }

    /// Whether nothing came for a while, but for last words.
    fn was_idle(&self, now: Instant) -> bool {
        let last_words = self.woke.is_some_and(|woke| now.duration_since(woke) <= LAST_WORDS_MAX);
        last_words || now.duration_since(self.last) >= IDLE_MIN
    }
}

impl Tap {
    /// Between a sidecar and the inbound listener `to` of another one. Looks for `marker`.
    ///
    /// # Errors
    /// When there is no free port, thread or file descriptor.
    pub(super) fn start(name: &str, to: SocketAddr, marker: &str) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, marker) = (Arc::clone(&seen), marker.to_owned());
        let thread = std::thread::Builder::new().name(format!("{name}-tap")).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, to, marker, shared) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// What it has seen until now.
    pub(super) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Connections that end from now on were not dropped.
    pub(super) fn expect_ends(&self) {
        lock(&self.seen).stopping = true;
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, to: SocketAddr, marker: String, seen: Arc<Mutex<Seen>>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((caller, _)) = listener.accept().await else {
            // Out of descriptors, most likely: later is better than a loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(called) = TcpStream::connect(to).await else { continue };
        let _ = (caller.set_nodelay(true), called.set_nodelay(true));
        lock(&seen).connections += 1;
        let active = Arc::new(Mutex::new(Active::since(Instant::now())));
        let (from_caller, to_caller) = caller.into_split();
        let (from_called, to_called) = called.into_split();
        for (from, to) in [(from_caller, to_called), (from_called, to_caller)] {
            let way =
                Way { records: Records::new(&marker), active: Arc::clone(&active), seen: Arc::clone(&seen) };
            tokio::spawn(way.pass_on(from, to));
        }
    }
}

/// One direction of a connection.
struct Way {
    records: Records,
    active: Arc<Mutex<Active>>,
    seen: Arc<Mutex<Seen>>,
}

impl Way {
    async fn pass_on(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut piece = vec![0; PIECE];
        loop {
            let length = match from.read(&mut piece).await {
                Ok(length) if length > 0 => length,
                Ok(_) | Err(_) => break,
            };
            self.note(&piece[..length]);
            if to.write_all(&piece[..length]).await.is_err() {
                break;
            }
        }
        self.end();
        let _ = to.shutdown().await;
    }

    fn note(&mut self, bytes: &[u8]) {
        let found = self.records.see(bytes);
        lock(&self.seen).found.add(&found);
        lock(&self.active).note(Instant::now());
    }

    /// The first of the two directions to end tells that the connection has ended.
    fn end(&self) {
        let mut active = lock(&self.active);
        if std::mem::replace(&mut active.ended, true) {
            return;
        }
        let mut seen = lock(&self.seen);
        if !active.was_idle(Instant::now()) && !seen.stopping {
            seen.dropped += 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const MARKER: &str = "demo-5eed";

    /// A tap before a server that this test plays, and a connection through both.
    fn connected() -> (Tap, TcpStream, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap = Tap::start("test", server.local_addr().unwrap(), MARKER).unwrap();
        let caller = TcpStream::connect(tap.address).unwrap();
        let (called, _) = server.accept().unwrap();
        (tap, caller, called)
    }

    fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
        from.write_all(bytes).unwrap();
        let mut came = vec![0; bytes.len()];
        to.read_exact(&mut came).unwrap();
        assert_eq!(came, bytes);
    }

    #[test]
    fn everything_is_passed_on_and_looked_at_in_both_directions() {
        let (tap, mut caller, mut called) = connected();
        pass(&mut caller, &mut called, &[22, 3, 1, 0, 2, 1, 1]);
        pass(&mut called, &mut caller, &[22, 3, 3, 0, 1, 2]);
        let seen = tap.seen();
        assert!(!seen.found.is_readable() && seen.found.records == 2 && seen.connections == 1, "{seen:?}");
        pass(&mut called, &mut caller, format!("HTTP/1.1 200 OK\r\nx: {MARKER}").as_bytes());
        let found = tap.seen().found;
        assert_eq!((found.plain_bytes, found.markers), (29, 1), "{found:?}");
    }

    #[test]
    fn an_end_in_use_is_a_drop_unless_it_was_expected() {
        for expected in [false, true] {
            let (tap, mut caller, mut called) = connected();
            pass(&mut caller, &mut called, &[22, 3, 1, 0, 2, 1, 1]);
            if expected {
                tap.expect_ends();
            }
            drop(called);
            // The end was noted before it was passed on.
            assert_eq!(caller.read(&mut [0; 8]).unwrap_or(0), 0);
            assert_eq!(tap.seen().dropped, u64::from(!expected));
        }
    }

    #[test]
    fn a_connection_that_ends_after_a_silence_was_idle_whatever_its_last_words() {
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let mut active = Active::since(began);
        active.note(after(100));
        assert!(!active.was_idle(after(400)) && active.was_idle(after(600)));
        active.note(after(2100));
        active.note(after(2101));
        assert!(active.was_idle(after(2110)), "it said goodbye");
        active.note(after(2500));
        assert!(!active.was_idle(after(2510)), "it was in use again");
    }
}
