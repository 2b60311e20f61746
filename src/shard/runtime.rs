//! The thread of a shard: which runtime it gets, and the tasks that it begins with.
//!
//! The ring is asked for with SINGLE_ISSUER and DEFER_TASKRUN, which is worth a quarter of the CPU per request. Where
//! the kernel or a container's seccomp profile refuses, the next best is taken, and one notice says what was refused.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use monoio::io::AsyncReadRent;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::link::{Link, Notice, Order};
use super::state::Shard;
use super::task;
use crate::downstream::listener::Accepting;

/// What a shard's thread is started with. Its first snapshot and its listeners' sockets are already in `link`.
pub struct Plan {
    /// Which shard, from 0.
    pub shard: u16,
    /// How many there are: limits that are per proxy are shared by them.
    pub shards: u16,
    /// The CPU to pin the thread to; `None` leaves it where the scheduler puts it.
    pub cpu: Option<usize>,
    /// The connection to control.
    pub link: Arc<Link>,
    /// The shard's end of the doorbell.
    pub doorbell: UnixStream,
    /// A task that keeps the shard longer than this is counted and reported as a stall.
    pub stall_threshold: Duration,
}

/// The runtimes that a shard can have, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// io_uring, completions run when the shard asks for them.
    Deferred,
    /// io_uring, completions run without interrupting the shard.
    Cooperative,
    /// io_uring as old kernels have it.
    Plain,
    /// epoll.
    Epoll,
}

/// Starts the shard's thread. It ends (and sets `Vitals::ended`) after `Order::Drain`, when all is done.
///
/// # Errors
/// When the thread cannot be made. When no runtime can be built, not even the one on epoll, the thread says so in a
/// notice and ends.
pub fn spawn(plan: Plan) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("shard-{}", plan.shard)).spawn(move || {
        let link = Arc::clone(&plan.link);
        if let Some(id) = plan.cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            // Not fatal: the shard runs, only less steadily.
            let _ = link.notices.push(Notice::Failed { what: format!("pinning to cpu {id}") });
        }
        run(plan);
        link.vitals.ended.store(1, Ordering::Release);
    })
}

/// Builds the best runtime that the kernel grants, and runs the shard on it to its end.
fn run(plan: Plan) {
    let mut refused = String::new();
    for kind in [Kind::Deferred, Kind::Cooperative, Kind::Plain] {
        match RuntimeBuilder::<IoUringDriver>::new().uring_builder(kind.builder()).enable_timer().build() {
            Ok(mut runtime) => {
                plan.tell_runtime(kind, &refused);
                return runtime.block_on(serve(plan, kind));
            }
            Err(error) => refused.push_str(&format!("{}: {error}; ", kind.label())),
        }
    }
    match RuntimeBuilder::<LegacyDriver>::new().enable_timer().build() {
        Ok(mut runtime) => {
            plan.tell_runtime(Kind::Epoll, &refused);
            runtime.block_on(serve(plan, Kind::Epoll));
        }
        Err(error) => {
            let _ = plan
                .link
                .notices
                .push(Notice::Failed { what: format!("building any runtime: {refused}{error}") });
        }
    }
}

/// The shard's life: follows control until the drain is done.
async fn serve(plan: Plan, kind: Kind) {
    let Plan { link, doorbell, shards, stall_threshold, .. } = plan;
    // Control publishes before it starts a shard.
    let Some(snapshot) = link.take_snapshot() else {
        let _ = link.notices.push(Notice::Failed { what: "starting without a snapshot".to_owned() });
        return;
    };
    link.vitals.generation.store(snapshot.generation, Ordering::Release);
    let shard = Rc::new(Shard::new(Arc::clone(&link), shards, stall_threshold, snapshot));
    let listeners = Rc::new(RefCell::new(Accepting::new(kind == Kind::Epoll)));
    drop(monoio::spawn(Rc::clone(&shard.deadlines).run(Rc::clone(&shard.clock))));
    drop(monoio::spawn(tick(Rc::clone(&shard))));
    obey(&shard, &listeners);
    link.vitals.accepting.store(1, Ordering::Release);

    if kind == Kind::Epoll && doorbell.set_nonblocking(true).is_err() {
        return;
    }
    let Ok(mut doorbell) = monoio::net::UnixStream::from_std(doorbell) else {
        let _ = link.notices.push(Notice::Failed { what: "listening to control".to_owned() });
        return;
    };
    let mut rings = vec![0; 64];
    loop {
        let (result, buffer) = doorbell.read(rings).await;
        rings = buffer;
        shard.clock.refresh();
        match result {
            Ok(0) => break, // Control is gone: so is the process, in a moment.
            Ok(_) => obey(&shard, &listeners),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if shard.is_draining() {
            break;
        }
    }
    while shard.totals.downstream_open.get() > 0 || listeners.borrow().is_stopping() {
        monoio::time::sleep(Duration::from_millis(5)).await;
        // A drain can be followed by pings; the doorbell itself need not be read any more.
        shard.clock.refresh();
        obey(&shard, &listeners);
    }
    // Tasks that wait when the runtime ends are not dropped, and so nothing that they share: in a process that lives
    // on, services would never see their idle connections end.
    shard.close_idle();
    // Closing is an operation like others: the runtime must turn once more for it.
    monoio::time::sleep(Duration::from_millis(1)).await;
    shard.tick();
}

/// Does what control left in the link.
fn obey(shard: &Rc<Shard>, listeners: &Rc<RefCell<Accepting>>) {
    if let Some(snapshot) = shard.link.take_snapshot() {
        shard.apply(snapshot);
    }
    while let Some(order) = shard.link.take_order() {
        match order {
            Order::Listen(name, socket) => {
                if let Err(error) = listeners.borrow_mut().listen(shard, Arc::clone(&name), socket) {
                    shard.notice(Notice::Accept { listener: name, error: error.to_string() });
                }
            }
            Order::Unlisten(name) => listeners.borrow_mut().unlisten(&name),
            Order::Drain => {
                listeners.borrow_mut().unlisten_all();
                shard.drain();
            }
            Order::Ping(number) => shard.link.vitals.pong.store(number, Ordering::Release),
        }
    }
}

/// What a shard does once a second.
async fn tick(shard: Rc<Shard>) {
    let mut interval = monoio::time::interval(Duration::from_secs(1));
    interval.tick().await;
    loop {
        interval.tick().await;
        task::framed(&shard, || shard.tick());
    }
}

impl Kind {
    fn builder(self) -> io_uring::Builder {
        let mut builder = io_uring::IoUring::builder();
        match self {
            Self::Deferred => builder.setup_single_issuer().setup_defer_taskrun(),
            Self::Cooperative => builder.setup_coop_taskrun(),
            Self::Plain | Self::Epoll => &mut builder,
        };
        builder
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Deferred => "io_uring (single issuer, deferred task run)",
            Self::Cooperative => "io_uring (cooperative task run)",
            Self::Plain => "io_uring (no flags)",
            Self::Epoll => "epoll",
        }
    }
}

impl Plan {
    fn tell_runtime(&self, kind: Kind, refused: &str) {
        if kind != Kind::Deferred {
            let notice =
                Notice::Runtime { used: kind.label(), refused: refused.trim_end_matches("; ").to_owned() };
            let _ = self.link.notices.push(notice);
        }
    }
}
