//! `ringmesh demo`: a small mesh to look at. Three workloads on threads of this process, a sidecar beside each as a process
//! of this same binary, and a client; a table while it runs, a summary when it ends.
//!
//! ```text
//! client → [front's sidecar] → front → [front's sidecar] → [orders' sidecar] → orders → [orders' sidecar]
//!        → [stock's sidecar] → stock
//! ```
//! Called by `main`. Needs nothing but the binary and free ports on 127.0.0.1, and leaves nothing behind: sidecars end with
//! this process however it ends (`sidecar`), files with it or with the next demo (`folder`). It stops from the outside
//! in: first the client, then each sidecar before the workloads that it could still call.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an ordinary program around the proxy: it may lock, look at the clock and wait"
)]

mod board;
mod call;
mod client;
mod folder;
mod sidecar;
mod terminal;
mod workload;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use board::{Board, PASSES, Spent, remember};
use call::Caller;
use client::{Client, Look, Tally};
use folder::Folder;
use sidecar::{Plan, Sidecar};
use terminal::{Line, Terminal};
use workload::{Role, Workload};

/// Requests a second that may be asked for. The workloads and the client share this machine with the mesh.
pub const RATE_MAX: u32 = 10_000;
/// Between two looks whether the sidecars live.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// Looks in a second.
const CHECKS_A_SECOND: u64 = 5;
/// Seconds between two tables where they cannot be redrawn in place.
const PLAIN_EVERY: u64 = 5;
/// A stop signal this soon after the first is the same one, told twice.
const TWICE_WITHIN: Duration = Duration::from_millis(100);

/// What to show.
pub struct Options {
    /// How long; `None`: until a signal.
    pub length: Option<Duration>,
    /// Requests a second.
    pub rate: u32,
}

/// Runs the demo. Gives the exit code: 0 when every request was answered with 200 and every process ended as it should,
/// else 1.
pub fn run(options: &Options) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}", Trouble::new(format!("cannot begin: {error}"), "raise `ulimit -n`"));
            return 1;
        }
    };
    let mut terminal = Terminal::of_stdout();
    let ended = runtime.block_on(play(options, &mut terminal));
    drop(terminal);
    runtime.shutdown_background();
    match ended {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(trouble) => {
            eprintln!("{trouble}");
            1
        }
    }
}

/// Why the demo cannot go on, and what to do about it.
#[derive(Debug)]
struct Trouble {
    what: String,
    help: &'static str,
}

impl Trouble {
    fn new(what: String, help: &'static str) -> Self {
        Self { what, help }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ringmesh demo: {}\n  help: {}", self.what, self.help)
    }
}

/// Whether all went well.
async fn play(options: &Options, terminal: &mut Terminal) -> Result<bool, Trouble> {
    let mut stop = Stop::take()
        .map_err(|error| Trouble::new(format!("cannot take over signals: {error}"), "raise `ulimit -n`"))?;
    let folder = Folder::new().map_err(|error| {
        let place = std::env::temp_dir();
        Trouble::new(
            format!("cannot make a folder in {}: {error}", place.display()),
            "make room there, or name another folder in TMPDIR",
        )
    })?;
    let mut mesh = tokio::select! {
        mesh = Mesh::start(&folder) => mesh?,
        () = stop.told() => return Ok(true),
    };
    let client = Client::start(mesh.front().inbound, options.rate)
        .map_err(|error| Trouble::new(format!("cannot start the client: {error}"), "raise `ulimit -n`"))?;
    let mut board = mesh.board(options, &folder);
    let shown = show(options, &mut mesh, &client, &mut board, terminal, &mut stop).await;
    let told_at = Instant::now();
    let finish = async {
        let tally = client.stop().await;
        (tally, mesh.stop().await)
    };
    tokio::select! {
        (tally, stopped) = finish => end(&board, &tally, [shown, stopped], terminal),
        () = stop.again(told_at) => {
            Err(Trouble::new("told to stop twice".to_owned(), "what was on the way was cut; Ctrl-C once lets it end"))
        }
    }
}

/// Shows the table until the time is over, a signal comes, a sidecar dies or nobody reads any more.
async fn show(
    options: &Options,
    mesh: &mut Mesh,
    client: &Client,
    board: &mut Board,
    terminal: &mut Terminal,
    stop: &mut Stop,
) -> Result<(), Trouble> {
    let began = Instant::now();
    let deadline = options.length.and_then(|length| tokio::time::Instant::now().checked_add(length));
    let mut recent = Tally::new().latency;
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !terminal.is_live() && terminal.print(&[board.places(), vec![Line::new()]].concat()).is_err() {
        return Ok(());
    }
    let mut count = 0;
    let ended = loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.told() => break Ok(()),
            () = until(deadline) => break Ok(()),
        }
        board.elapsed = began.elapsed();
        if let Err(trouble) = mesh.check().await {
            break Err(trouble);
        }
        let whole_second = count % CHECKS_A_SECOND == 0;
        count += 1;
        if !whole_second {
            continue;
        }
        mesh.look(board, client, &mut recent);
        let second = count / CHECKS_A_SECOND;
        let drawn = match terminal.is_live() {
            true => terminal.frame(&board.live(terminal.columns())),
            false if second > 0 && second.is_multiple_of(PLAIN_EVERY) => {
                terminal.print(&board.plain(terminal.columns()))
            }
            false => Ok(()),
        };
        if drawn.is_err() {
            break Ok(());
        }
    };
    board.elapsed = began.elapsed();
    ended
}

/// Writes the summary, and says what went wrong beside it.
fn end(
    board: &Board,
    tally: &Tally,
    results: [Result<(), Trouble>; 2],
    terminal: &mut Terminal,
) -> Result<bool, Trouble> {
    // Nobody reads: the exit code still tells.
    let gap = if terminal.is_live() { vec![Line::new()] } else { Vec::new() };
    let _ = terminal.print(&[gap, board.summary(tally)].concat());
    let mut well = tally.failed == 0;
    for trouble in results.into_iter().filter_map(Result::err) {
        well = false;
        eprintln!("\n{trouble}");
    }
    Ok(well)
}

/// Three sidecars and three workloads. Dropped, all of them end at once.
struct Mesh {
    /// Innermost first.
    sidecars: Vec<Sidecar>,
    workloads: Vec<Workload>,
}

impl Mesh {
    /// Starts them from the inside out, because each must know where the next one listens.
    async fn start(folder: &Folder) -> Result<Self, Trouble> {
        let program = program()?;
        let mut mesh = Self { sidecars: Vec::new(), workloads: Vec::new() };
        let mut next: Option<(&'static str, std::net::SocketAddr)> = None;
        // A call that takes some milliseconds, with a tail.
        for (name, work_ms) in [("stock", (1, 4)), ("orders", (1, 2)), ("front", (1, 2))] {
            let cannot = |error| Trouble::new(format!("cannot start {name}: {error}"), "raise `ulimit -n`");
            let (listener, workload) = workload::bind().map_err(cannot)?;
            let config = folder.path().join(format!("{name}.toml"));
            let plan = Plan { name, workload, calls: next, program: &program, config: &config };
            let sidecar = Sidecar::start(&plan).await?;
            let calls = match (next, sidecar.outbound) {
                (Some((called, _)), Some(outbound)) => {
                    Some((called, Arc::new(Caller::new(outbound, called))))
                }
                _ => None,
            };
            mesh.workloads.push(Workload::start(Role { name, work_ms, calls }, listener).map_err(cannot)?);
            next = Some((name, sidecar.inbound));
            mesh.sidecars.push(sidecar);
        }
        Ok(mesh)
    }

    /// The outermost sidecar.
    fn front(&self) -> &Sidecar {
        &self.sidecars[self.sidecars.len() - 1]
    }

    fn board(&self, options: &Options, folder: &Folder) -> Board {
        let outside_in = || self.sidecars.iter().rev();
        let spent = |sidecar: &Sidecar| Spent { usage: sidecar.usage(), ..Spent::default() };
        Board {
            rate: options.rate,
            length: options.length,
            elapsed: Duration::ZERO,
            admins: outside_in().map(|s| (s.name, s.admin)).collect(),
            front: self.front().inbound,
            folder: folder.path().to_owned(),
            seen: Default::default(),
            client: Look::default(),
            client_curve: std::collections::VecDeque::new(),
            used: outside_in().map(|s| (s.name, spent(s), spent(s))).collect(),
        }
    }

    async fn check(&mut self) -> Result<(), Trouble> {
        for sidecar in &mut self.sidecars {
            sidecar.check().await?;
        }
        Ok(())
    }

    /// Brings the board up to date.
    fn look(&self, board: &mut Board, client: &Client, recent: &mut Histogram<u64>) {
        board.client = client.look(recent);
        remember(&mut board.client_curve, board.client.p99);
        for sidecar in &self.sidecars {
            let page = sidecar.page("/services?format=json");
            let mut exchanges = 0;
            for (pass, seen) in PASSES.iter().zip(&mut board.seen) {
                if pass.sidecar == sidecar.name {
                    match &page {
                        Ok(page) => seen.learn(page, pass.service),
                        Err(_) => seen.miss(),
                    }
                    exchanges += seen.exchanges;
                }
            }
            let now = Spent { usage: sidecar.usage(), exchanges, at: board.elapsed };
            if let Some((_, first, last)) = board.used.iter_mut().find(|(name, ..)| *name == sidecar.name) {
                if first.exchanges == 0 {
                    *first = now;
                }
                *last = now;
            }
        }
    }

    /// Lets everything end, the outermost first.
    async fn stop(mut self) -> Result<(), Trouble> {
        let mut result = Ok(());
        while let Some(sidecar) = self.sidecars.pop() {
            let workload = self.workloads.pop();
            if let Some(workload) = &workload {
                workload.hang_up();
            }
            let stopped = sidecar.stop().await;
            result = result.and(stopped);
        }
        result
    }
}

/// This binary, to start the sidecars from.
fn program() -> Result<PathBuf, Trouble> {
    let trouble = |what| Trouble::new(what, "was it rebuilt or removed meanwhile? Start the demo again");
    let program =
        std::env::current_exe().map_err(|error| trouble(format!("cannot find this binary: {error}")))?;
    if !program.exists() {
        return Err(trouble(format!("this binary is not there any more: {}", program.display())));
    }
    Ok(program)
}

/// The signals that end the demo. SIGHUP, too: the terminal is gone.
struct Stop([Signal; 3]);

impl Stop {
    fn take() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [a, b, c] = kinds.map(signal);
        Ok(Self([a?, b?, c?]))
    }

    /// Waits for one.
    async fn told(&mut self) {
        std::future::poll_fn(|cx| match self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
    }

    /// Waits for another one than that of `first`.
    async fn again(&mut self, first: Instant) {
        loop {
            self.told().await;
            if first.elapsed() >= TWICE_WITHIN {
                return;
            }
        }
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
