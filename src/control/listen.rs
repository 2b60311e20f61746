//! Listening sockets: one per listener and shard, all bound before any shard starts, so that a bad address stops the
//! start (or the reload) while nothing has changed yet. Called by `start` and `reload`; accepting is the shards' part.
//!
//! SO_REUSEPORT lets any process of the same user join an address in silence, and the kernel would then give a part
//! of the connections to a forgotten second proxy. So an address is first tried without it, and refused when somebody
//! listens there.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::snapshot::Listener;

/// Connections that the kernel keeps until a shard accepts them. The kernel lowers it to net.core.somaxconn (4096 by
/// default since Linux 5.4); nginx asks for 511, HAProxy for maxconn, Envoy for somaxconn.
pub(super) const BACKLOG: i32 = 4096;

/// As [`BACKLOG`], for the admin address: probes, scrapes and people.
const ADMIN_BACKLOG: i32 = 128;

/// One listener's sockets, a shard each.
#[derive(Debug)]
pub(super) struct Bound {
    /// Its name.
    pub name: Arc<str>,
    /// The address that was configured.
    pub configured: SocketAddr,
    /// The address that it got: differs when port 0 was configured.
    pub address: SocketAddr,
    /// In the order of the shards.
    pub sockets: Vec<TcpListener>,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{who} cannot listen on {address}: {problem}\n  help: {hint}", who = self.who())]
pub struct BindError {
    /// The listener; `None` for the admin address.
    pub name: Option<Arc<str>>,
    /// The address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub problem: io::Error,
    hint: String,
}

/// How long an address that is in use is tried again: a proxy that was killed a moment ago has not given it back yet (the
/// kernel closes a ring and its sockets some 10 ms after the process), nor has a listener that a reload took out just now.
const IN_USE_MAX: Duration = Duration::from_millis(250);

/// Binds a listener's sockets for so many shards.
///
/// # Errors
/// When the address is in use, does not exist here, needs a privilege, or file descriptors have run out.
pub(super) fn bind(listener: &Listener, shards: usize) -> Result<Bound, BindError> {
    let failed = |problem| BindError::new(Some(&listener.name), listener.address, problem);
    // Tried without SO_REUSEPORT; with port 0 this also finds the port, and is kept until all others are bound.
    let probe = open_when_free(listener.address).map_err(failed)?;
    let address = match listener.address.port() {
        0 => probe.local_addr().map_err(failed)?.as_socket().unwrap_or(listener.address),
        _ => listener.address,
    };
    probe.set_reuse_port(true).map_err(failed)?;
    let mut bound = Vec::with_capacity(shards);
    for _ in 0..shards {
        bound.push(open(address, true).map_err(failed)?);
    }
    drop(probe);
    let mut sockets = Vec::with_capacity(shards);
    for socket in bound {
        socket.listen(BACKLOG).map_err(failed)?;
        sockets.push(socket.into());
    }
    Ok(Bound { name: Arc::clone(&listener.name), configured: listener.address, address, sockets })
}

/// Binds the one socket of the admin address, for tokio.
///
/// # Errors
/// As [`bind`].
pub(super) fn bind_admin(address: SocketAddr) -> Result<TcpListener, BindError> {
    let failed = |problem| BindError::new(None, address, problem);
    let socket = open_when_free(address).map_err(failed)?;
    socket.listen(ADMIN_BACKLOG).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket.into())
}

fn open_when_free(address: SocketAddr) -> io::Result<Socket> {
    let deadline = Instant::now() + IN_USE_MAX;
    loop {
        match open(address, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn open(address: SocketAddr, share: bool) -> io::Result<Socket> {
    // socket2 sets SOCK_CLOEXEC. The socket stays blocking, as io_uring wants it; a shard that fell back to epoll makes
    // its own non-blocking.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Or connections of the previous process in TIME_WAIT would keep the address for a minute.
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners: what is written is what is bound, whatever the sysctl says.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

impl BindError {
    /// In the words of the configuration.
    pub(super) fn who(&self) -> String {
        self.name.as_ref().map_or_else(|| "[admin] address".to_owned(), |name| format!("listener `{name}`"))
    }

    fn new(name: Option<&Arc<str>>, address: SocketAddr, problem: io::Error) -> Self {
        use io::ErrorKind as K;
        let port = address.port();
        let hint = match problem.kind() {
            K::AddrInUse if name.is_none() => format!(
                "another process listens there, perhaps another ringmesh; find it with `ss -ltnp 'sport = :{port}'`, or \
                 choose another `address` in [admin], \"off\" for none"
            ),
            K::AddrInUse => format!(
                "another process listens there; find it with `ss -ltnp 'sport = :{port}'`, stop it, or choose another address"
            ),
            K::AddrNotAvailable => format!(
                "no interface of this machine has {}; see `ip address`, or use 0.0.0.0 or [::] for all",
                address.ip()
            ),
            K::PermissionDenied => format!(
                "port {port} needs a privilege: choose one of 1024 or more, give the binary CAP_NET_BIND_SERVICE, or \
                 lower net.ipv4.ip_unprivileged_port_start"
            ),
            _ if problem.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                "raise the limit of open files (`ulimit -n`, or LimitNOFILE= of the systemd unit)".into()
            }
            _ => "choose another address".into(),
        };
        Self { name: name.cloned(), address, problem, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: SocketAddr) -> Listener {
        Listener { name: "inbound".into(), address, tls: crate::snapshot::ListenerTls::Off, grpc_web: false }
    }

    #[test]
    fn every_shard_gets_a_socket_of_one_port_that_the_kernel_chose() {
        let bound = bind(&listener("127.0.0.1:0".parse().unwrap()), 3).unwrap();
        assert_eq!(bound.sockets.len(), 3);
        assert_ne!(bound.address.port(), 0);
        for socket in &bound.sockets {
            assert_eq!(socket.local_addr().unwrap(), bound.address);
            let flags = rustix::io::fcntl_getfd(socket).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        std::net::TcpStream::connect(bound.address).unwrap();
    }

    #[test]
    fn an_address_in_use_is_refused_with_a_remedy_even_if_it_could_be_shared() {
        let first = bind(&listener("127.0.0.1:0".parse().unwrap()), 1).unwrap();
        let error = bind(&listener(first.address), 1).unwrap_err().to_string();
        assert!(error.contains("`inbound`") && error.contains(&first.address.to_string()), "{error}");
        assert!(error.contains("in use") && error.contains("ss -ltnp"), "{error}");
    }

    #[test]
    fn an_admin_address_in_use_is_named_as_in_the_configuration() {
        let first = bind(&listener("127.0.0.1:0".parse().unwrap()), 1).unwrap();
        let error = bind_admin(first.address).unwrap_err().to_string();
        assert!(error.starts_with("[admin] address cannot listen on 127.0.0.1:"), "{error}");
        assert!(error.contains("another `address` in [admin]"), "{error}");
    }

    #[test]
    fn an_address_that_is_about_to_be_free_is_waited_for() {
        let first = bind(&listener("127.0.0.1:0".parse().unwrap()), 1).unwrap();
        let address = first.address;
        let other = std::thread::spawn(move || bind(&listener(address), 1).map(|bound| bound.address));
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
        assert_eq!(other.join().unwrap().unwrap(), address);
    }

    #[test]
    fn an_address_of_another_machine_is_named_as_such() {
        // 192.0.2.0/24 is set aside for documentation (RFC 5737).
        let error = bind(&listener("192.0.2.1:80".parse().unwrap()), 1).unwrap_err().to_string();
        assert!(error.contains("no interface of this machine has 192.0.2.1"), "{error}");
    }

    #[test]
    fn an_address_is_free_again_at_once() {
        let bound = bind(&listener("127.0.0.1:0".parse().unwrap()), 2).unwrap();
        let client = std::net::TcpStream::connect(bound.address).unwrap();
        let address = bound.address;
        drop(bound);
        drop(client);
        bind(&listener(address), 2).unwrap();
    }
}
