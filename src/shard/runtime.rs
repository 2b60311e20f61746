//! The thread of a shard: which runtime it gets, and the tasks that it begins with.
//!
//! The ring is asked for with SINGLE_ISSUER and DEFER_TASKRUN, which is worth a quarter of the CPU per request. Where
//! the kernel or a container's seccomp profile refuses, the next best that the operator's choice allows is taken, and one
//! notice says what was refused. Where nothing is left, the notice says that and the thread ends.

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
use super::{blocks, live, task};
use crate::downstream::listener::Accepting;

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
    /// A connection of the mesh is kept at least so long, also when the leaf has ended that it began with:
    /// [`Plan::AGE_MIN`], but in tests.
    pub age_min: Duration,
    /// Which runtimes may be tried.
    pub runtime: RuntimeChoice,
}

impl Plan {
    /// Under the five minutes that a root outlives the last leaf under it (`control::authority`), by a minute for what is
    /// in flight then.
    pub const AGE_MIN: Duration = Duration::from_secs(4 * 60);
}

/// What a shard may run on: the key `runtime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// The best that the kernel grants: io_uring in three ways, then epoll.
    Auto,
    /// io_uring in any of the three ways, or not at all.
    IoUring,
    /// epoll; no ring is asked for.
    Epoll,
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
/// When the thread cannot be made. When no runtime can be built, the thread says so in a notice and ends.
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

/// Builds the best runtime that is allowed and granted, and runs the shard on it to its end.
fn run(plan: Plan) {
    let _kept = blocks::keep();
    let mut refused = String::new();
    for &kind in Kind::of(plan.runtime) {
        let failed = if kind == Kind::Epoll {
            match RuntimeBuilder::<LegacyDriver>::new().enable_timer().build() {
                Ok(mut runtime) => {
                    plan.tell_runtime(Some(kind), &refused);
                    return runtime.block_on(serve(plan, kind));
                }
                Err(error) => error,
            }
        } else {
            match RuntimeBuilder::<IoUringDriver>::new().uring_builder(kind.builder()).enable_timer().build()
            {
                Ok(mut runtime) => {
                    plan.tell_runtime(Some(kind), &refused);
                    return runtime.block_on(serve(plan, kind));
                }
                Err(error) => error,
            }
        };
        refused.push_str(&format!("{}: {failed}; ", kind.label()));
    }
    plan.tell_runtime(None, &refused);
}

/// The shard's life: follows control until the drain is done.
async fn serve(plan: Plan, kind: Kind) {
    let Plan { link, doorbell, stall_threshold, age_min, .. } = plan;
    // Control publishes before it starts a shard.
    let Some(snapshot) = link.take_snapshot() else {
        let _ = link.notices.push(Notice::Failed { what: "starting without a snapshot".to_owned() });
        return;
    };
    link.vitals.generation.store(snapshot.generation, Ordering::Release);
    let shard = Rc::new(Shard::new(Arc::clone(&link), stall_threshold, age_min, snapshot));
    let listeners = Rc::new(RefCell::new(Accepting::new(kind == Kind::Epoll)));
    drop(monoio::spawn(Rc::clone(&shard.deadlines).run(Rc::clone(&shard.clock))));
    drop(monoio::spawn(tick(Rc::clone(&shard))));
    drop(monoio::spawn(Rc::clone(&shard.cohort).lead()));
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
    shard.doors.serve(shard.clock.now());
    shard.yield_connections();
    shard.relieve(false);
    if let Some(snapshot) = shard.link.take_snapshot()
        && shard.apply(snapshot)
    {
        task::spawn(shard, live::look_through(Rc::clone(shard)));
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
            Order::Cut => shard.deadlines.cut(&shard.clock),
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
    /// What may be tried, in this order.
    const fn of(choice: RuntimeChoice) -> &'static [Self] {
        match choice {
            RuntimeChoice::Auto => &[Self::Deferred, Self::Cooperative, Self::Plain, Self::Epoll],
            RuntimeChoice::IoUring => &[Self::Deferred, Self::Cooperative, Self::Plain],
            RuntimeChoice::Epoll => &[Self::Epoll],
        }
    }

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

    /// What it costs: CPU per request on the reference machine (1 KiB answers, keep-alive, 64 connections).
    const fn cost(self) -> &'static str {
        match self {
            Self::Deferred => "13.4 µs of CPU per request",
            Self::Cooperative => "as much CPU per request as the best, within what can be measured",
            Self::Plain => "17.4 µs of CPU per request in place of 13.4",
            Self::Epoll => "13 to 15 µs of CPU per request in place of 13.4",
        }
    }
}

impl Plan {
    fn tell_runtime(&self, used: Option<Kind>, refused: &str) {
        if used == Some(Kind::Deferred) {
            return;
        }
        let notice = Notice::Runtime {
            used: used.map(Kind::label),
            refused: refused.trim_end_matches("; ").to_owned(),
            cost: used.map_or("", Kind::cost),
        };
        let _ = self.link.notices.push(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_kept_to_and_steps_down_from_the_best() {
        assert_eq!(
            Kind::of(RuntimeChoice::Auto),
            [Kind::Deferred, Kind::Cooperative, Kind::Plain, Kind::Epoll]
        );
        assert!(!Kind::of(RuntimeChoice::IoUring).contains(&Kind::Epoll), "never falls back to epoll");
        assert_eq!(Kind::of(RuntimeChoice::Epoll), [Kind::Epoll], "asks for no ring");
    }
}
