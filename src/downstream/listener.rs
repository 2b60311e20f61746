//! Accepting: one socket and one task per listener and shard.
//!
//! The accept operation is never dropped in flight (the runtime would leak the accepted socket): a listener is stopped
//! by shutting its socket down, upon which the operation ends by itself.
//!
//! Closing a listening socket resets the connections that wait in it, whose callers may have sent a request already. So
//! a listener that is to stop first lets no new ones in, and closes when those on their way have been accepted.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use monoio::net::TcpListener;

use crate::io::sys;
use crate::proxy;
use crate::shard::Shard;
use crate::shard::link::Notice;
use crate::shard::task;

/// The listeners of a shard.
pub struct Accepting {
    listeners: Vec<Listener>,
    /// How many have been told to stop and are not closed yet.
    stopping: Rc<Cell<usize>>,
    /// Whether the runtime wants non-blocking sockets.
    non_blocking: bool,
}

struct Listener {
    name: Arc<str>,
    /// Which rules may ask for.
    port: u16,
    socket: Rc<TcpListener>,
    stopped: Rc<Cell<bool>>,
}

impl Accepting {
    /// None yet.
    pub fn new(non_blocking: bool) -> Self {
        Self { listeners: Vec::new(), stopping: Rc::default(), non_blocking }
    }

    /// Begins to accept on a bound socket.
    ///
    /// # Errors
    /// When the runtime cannot take the socket.
    pub fn listen(
        &mut self,
        shard: &Rc<Shard>,
        name: Arc<str>,
        socket: std::net::TcpListener,
    ) -> io::Result<()> {
        socket.set_nonblocking(self.non_blocking)?;
        let port = socket.local_addr()?.port();
        let socket = Rc::new(TcpListener::from_std(socket)?);
        let listener = Listener { name, port, socket, stopped: Rc::default() };
        let accept = accept(
            Rc::clone(shard),
            Arc::clone(&listener.name),
            listener.port,
            Rc::clone(&listener.socket),
            Rc::clone(&listener.stopped),
        );
        task::spawn(shard, accept);
        self.listeners.push(listener);
        Ok(())
    }

    /// Stops accepting for the listener of that name.
    pub fn unlisten(&mut self, name: &str) {
        self.listeners.retain(|listener| {
            let stays = *listener.name != *name;
            if !stays {
                listener.stop(&self.stopping);
            }
            stays
        });
    }

    /// Stops accepting.
    pub fn unlisten_all(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.stop(&self.stopping);
        }
    }

    /// Whether a listener that was told to stop still accepts.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get() > 0
    }
}

impl Listener {
    /// From the last SYN let in to the close: time for its handshake to end. Most callers of a service are within some
    /// milliseconds; a continent is within fifty.
    const HANDSHAKE_MAX: Duration = Duration::from_millis(50);

    fn stop(&self, stopping: &Rc<Cell<usize>>) {
        sys::drop_new_connections(self.socket.as_raw_fd());
        stopping.set(stopping.get() + 1);
        let (socket, stopped, stopping) =
            (Rc::clone(&self.socket), Rc::clone(&self.stopped), Rc::clone(stopping));
        drop(monoio::spawn(async move {
            monoio::time::sleep(Self::HANDSHAKE_MAX).await;
            stopped.set(true);
            sys::shutdown_read(socket.as_raw_fd());
            stopping.set(stopping.get() - 1);
        }));
    }
}

/// Accepts until the listener is stopped.
async fn accept(
    shard: Rc<Shard>,
    name: Arc<str>,
    port: u16,
    socket: Rc<TcpListener>,
    stopped: Rc<Cell<bool>>,
) {
    // Out of descriptors or memory: others must end before a new one can begin.
    const PAUSE: Duration = Duration::from_millis(100);
    let mut told = false;
    loop {
        let accepted = socket.accept().await;
        if stopped.get() && accepted.is_err() {
            return;
        }
        match accepted {
            Ok((stream, peer)) => {
                told = false;
                let totals = &shard.totals;
                if shard.pressure().refuses_connections() {
                    totals.memory_refused.set(totals.memory_refused.get() + 1);
                    continue;
                }
                if !shard.lets_in() {
                    totals.downstream_refused.set(totals.downstream_refused.get() + 1);
                    continue; // Dropping the stream closes it.
                }
                totals.downstream_accepted.set(totals.downstream_accepted.get() + 1);
                // An IPv4 caller on an IPv6 socket is shown as what it is.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                task::spawn(&shard, proxy::serve(Rc::clone(&shard), stream, peer, Arc::clone(&name), port));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    shard.notice(Notice::Accept { listener: Arc::clone(&name), error: error.to_string() });
                }
                monoio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Errors that tell of one connection that went away before it was accepted, not of the listener (accept(2)).
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
    )
}
