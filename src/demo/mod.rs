//! `ringmesh demo`: a small mesh to look at. Three workloads on threads of this process, a sidecar beside each as a process
//! of this same binary, and a client; a table while it runs, a summary when it ends.
//!
//! ```text
//! client → [front's sidecar] → front → [front's sidecar] → [orders' sidecar] → orders → [orders' sidecar]
//!        → [stock's sidecar] → stock
//! ```
//! Between two sidecars is mTLS with certificates that live for seconds, and a tap (`tap`) that reads what anybody on the
//! network could. The demo fails when that is anything but TLS records, when a renewal comes late or drops a connection,
//! or when somebody is called by another one than he should (`trust`).
//!
//! `ringmesh demo --chapter` plays another piece: one proxy, endpoints that do badly on purpose, and what must hold (`chapter`).
//!
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
pub mod chapter;
mod client;
mod folder;
mod record;
mod sidecar;
mod stranger;
mod tap;
mod terminal;
mod trust;
mod workload;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use board::{Board, PASSES, Spent, remember};
use call::Caller;
use client::{Client, Look, Tally};
use folder::Folder;
use sidecar::{Called, Plan, Sidecar};
use stranger::Stranger;
use tap::Tap;
use terminal::{Line, Terminal};
use trust::{HOPS, Hop, Trust};
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
    /// Whether orders and stock talk without TLS, to see that the demo notices.
    pub without_tls: bool,
}

/// Runs the demo. Gives the exit code: 0 when every request was answered with 200 by those who should, nothing of it could
/// be read between sidecars, no renewal of a certificate was late or dropped a connection, and every process ended as it
/// should; else 1.
pub fn run(options: &Options) -> u8 {
    perform(async |terminal| play(options, terminal).await)
}

/// Plays on a runtime and a terminal of its own. Gives the exit code.
fn perform(piece: impl AsyncFnOnce(&mut Terminal) -> Result<bool, Trouble>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}", Trouble::new(format!("cannot begin: {error}"), "raise `ulimit -n`"));
            return 1;
        }
    };
    let mut terminal = Terminal::of_stdout();
    let ended = runtime.block_on(piece(&mut terminal));
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
    // Not a word that could occur by chance.
    let marker = format!("demo-{:032x}", fastrand::u128(..));
    let mut mesh = tokio::select! {
        mesh = Mesh::start(&folder, &marker, options.without_tls) => mesh?,
        () = stop.told() => return Ok(true),
    };
    let client = Client::start(mesh.front().inbound, options.rate, &marker)
        .map_err(|error| Trouble::new(format!("cannot start the client: {error}"), "raise `ulimit -n`"))?;
    let mut board = mesh.board(options, &folder);
    let shown = show(options, &mut mesh, &client, &mut board, terminal, &mut stop).await;
    let told_at = Instant::now();
    let finish = async {
        let tally = client.stop().await;
        mesh.look_at_trust(&mut board);
        (tally, mesh.stop(&mut board).await)
    };
    tokio::select! {
        (tally, stopped) = finish => end(&mut board, &tally, [shown, stopped], terminal),
        () = stop.again(told_at) => {
            Err(Trouble::new("told to stop twice".to_owned(), "what was on the way was cut; Ctrl-C once lets it end"))
        }
    }
}

/// Shows the table until the time is over, a signal comes, a sidecar dies, something can be read between them, or nobody
/// looks any more.
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
        if mesh.is_readable() {
            // Nothing is worse: the end, which tells of it.
            break Ok(());
        }
        let whole_second = count % CHECKS_A_SECOND == 0;
        count += 1;
        if !whole_second {
            continue;
        }
        mesh.stranger.call();
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
    board: &mut Board,
    tally: &Tally,
    results: [Result<(), Trouble>; 2],
    terminal: &mut Terminal,
) -> Result<bool, Trouble> {
    board.trust.callers.clone_from(&tally.callers);
    // Nobody reads: the exit code still tells.
    let gap = if terminal.is_live() { vec![Line::new()] } else { Vec::new() };
    let _ = terminal.print(&[gap, board.summary(tally)].concat());
    let mut well = tally.failed == 0;
    let faults = board.trust.faults(board.elapsed);
    for trouble in results.into_iter().filter_map(Result::err).chain(faults) {
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
    /// In the order of [`HOPS`].
    taps: Vec<Tap>,
    stranger: Stranger,
}

impl Mesh {
    /// Starts them from the inside out, because each must know where the next one listens.
    async fn start(folder: &Folder, marker: &str, without_tls: bool) -> Result<Self, Trouble> {
        let program = program()?;
        let authority = folder.path().join("ca");
        let (mut sidecars, mut workloads, mut taps) = (Vec::<Sidecar>::new(), Vec::new(), Vec::new());
        // A call that takes some milliseconds, with a tail.
        for (name, work_ms) in [("stock", (1, 4)), ("orders", (1, 2)), ("front", (1, 2))] {
            let cannot = |error| Trouble::new(format!("cannot start {name}: {error}"), "raise `ulimit -n`");
            let (listener, workload) = workload::bind().map_err(cannot)?;
            let config = folder.path().join(format!("{name}.toml"));
            let is_plain = |hop: &Hop| without_tls && hop.called == "stock";
            let called = match (HOPS.iter().find(|hop| hop.caller == name), sidecars.last()) {
                (Some(hop), Some(next)) => {
                    let tap = Tap::start(hop.called, next.inbound, marker).map_err(cannot)?;
                    let address = tap.address;
                    taps.insert(0, tap);
                    let (tls, short_lived) = (!is_plain(hop), hop.called == "stock");
                    Some(Called { name: hop.called, address, tls, short_lived })
                }
                _ => None,
            };
            let plan = Plan {
                name,
                workload,
                inbound_tls: HOPS.iter().any(|hop| hop.called == name && !is_plain(hop)),
                calls: called,
                authority: &authority,
                program: &program,
                config: &config,
            };
            let sidecar = Sidecar::start(&plan).await?;
            let calls = match (called, sidecar.outbound) {
                (Some(Called { name, .. }), Some(outbound)) => {
                    Some((name, Arc::new(Caller::new(outbound, name))))
                }
                _ => None,
            };
            workloads.push(Workload::start(Role { name, work_ms, calls }, listener).map_err(cannot)?);
            sidecars.push(sidecar);
        }
        let stranger = Stranger::new(sidecars[0].inbound);
        Ok(Self { sidecars, workloads, taps, stranger })
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
            trust: Trust::new(outside_in().map(|s| s.name), options.without_tls),
            used: outside_in().map(|s| (s.name, spent(s), spent(s))).collect(),
        }
    }

    async fn check(&mut self) -> Result<(), Trouble> {
        for sidecar in &mut self.sidecars {
            sidecar.check().await?;
        }
        Ok(())
    }

    /// Whether anything could be read between the sidecars.
    fn is_readable(&self) -> bool {
        self.taps.iter().any(|tap| tap.seen().found.is_readable())
    }

    /// Brings the board up to date.
    fn look(&self, board: &mut Board, client: &Client, recent: &mut Histogram<u64>) {
        board.client = client.look(recent);
        board.trust.callers.clone_from(&board.client.callers);
        self.look_at_trust(board);
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

    /// What concerns identity and secrecy, except what the answers say.
    fn look_at_trust(&self, board: &mut Board) {
        let trust = &mut board.trust;
        trust.strangers = self.stranger.tries();
        for (seen, tap) in trust.taps.iter_mut().zip(&self.taps) {
            *seen = tap.seen();
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        for (leaf, sidecar) in trust.leaves.iter_mut().zip(self.sidecars.iter().rev()) {
            // One that does not answer keeps what is known of it.
            if let Ok(page) = sidecar.page("/identity?format=json") {
                leaf.learn(&page, now);
            }
        }
    }

    /// Lets everything end, the outermost first. What the taps see of that is on the board, too.
    async fn stop(mut self, board: &mut Board) -> Result<(), Trouble> {
        let mut result = Ok(());
        for tap in &self.taps {
            tap.expect_ends();
        }
        while let Some(sidecar) = self.sidecars.pop() {
            let workload = self.workloads.pop();
            if let Some(workload) = &workload {
                workload.hang_up();
            }
            let stopped = sidecar.stop().await;
            result = result.and(stopped);
        }
        for (seen, tap) in board.trust.taps.iter_mut().zip(&self.taps) {
            *seen = tap.seen();
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
