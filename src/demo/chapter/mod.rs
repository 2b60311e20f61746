//! `ringmesh demo --chapter`: one proxy, a process of this same binary, before endpoints that do badly on purpose, and what
//! the proxy makes of that. A chapter is a script (`script`): phases, what changes in each, and what must hold, which is
//! judged by what callers and endpoints saw (`past`), never by what the proxy says of itself, but for who is passed over.
//!
//! ```text
//! client (load) → the proxy (Sidecar) → endpoints (endpoint), told by the script how to do
//! ```
//! Between two phases nothing is on the way: the client waits for all answers, then the endpoints are told what to do and the
//! proxy takes its new configuration by reload.
//!
//! Called by `main`. Leaves nothing behind, as the demo does.

mod breaker;
mod canary;
mod endpoint;
mod faults;
mod load;
mod overload;
mod past;
mod retries;
mod script;
mod show;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::folder::Folder;
use super::sidecar::Sidecar;
use super::terminal::{Line, Terminal};
use super::{CHECK_EVERY, CHECKS_A_SECOND, Stop, Trouble, program};
use endpoint::{Conduct, Endpoints};
use load::Load;
use past::{Past, Worked};
use script::{Phase, Script, Verdict};
use show::{Second, View};

/// How long a chapter is unless it is said.
const LENGTH: Duration = Duration::from_secs(60);
/// How long it may be: below, nothing has the time to show; above, too much is kept of it.
const LENGTHS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// Below this a canary has no time to go its way: it is looked at once a second.
const CANARY_MIN: Duration = Duration::from_secs(20);
/// The exit code for an argument that cannot be used, as of all commands.
const MISUSED: u8 = 2;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Chapter {
    /// Of five endpoints one answers 500, then hangs: it is passed over, and comes back when it is well
    Breaker,
    /// One answer of ten fails, then all do: further attempts hide the one, and their budget bounds the other
    Retries,
    /// A new version takes over step by step; one that fails or is slow is taken back
    Canary,
    /// Three times as much as the service can do, without and with caps: who is let in is served as usual, the rest hears no
    /// at once
    Overload,
    /// Requests are held up, answered, forgotten and cut on purpose, as many as were told, and within a budget
    Faults,
}

/// How it is shown.
pub struct Options {
    /// What.
    pub chapter: Chapter,
    /// How long; `None`: a minute.
    pub length: Option<Duration>,
    /// Without what the chapter is about, to see that it notices.
    pub without_it: bool,
}

/// Plays a chapter. Gives the exit code: 0 when all of it was played and all held that must, 2 when it cannot be so short or
/// so long, else 1.
pub fn run(options: &Options) -> u8 {
    let length = options.length.unwrap_or(LENGTH);
    let (shortest, help) = match options.chapter {
        Chapter::Canary => (CANARY_MIN, "give --for between 20s and 10m, or leave it out for a minute"),
        _ => (LENGTHS.0, "give --for between 10s and 10m, or leave it out for a minute"),
    };
    if length < shortest || length > LENGTHS.1 {
        let trouble = Trouble::new(format!("this chapter cannot last {} s", length.as_secs_f64()), help);
        eprintln!("{trouble}");
        return MISUSED;
    }
    super::perform(async |terminal| play(options, length, terminal).await)
}

impl Options {
    fn name(&self) -> &'static str {
        match self.chapter {
            Chapter::Breaker => "breaker",
            Chapter::Retries => "retries",
            Chapter::Canary => "canary",
            Chapter::Overload => "overload",
            Chapter::Faults => "faults",
        }
    }

    fn script(&self, length: Duration) -> Script {
        match self.chapter {
            Chapter::Breaker => breaker::script(length, self.without_it),
            Chapter::Retries => retries::script(self.without_it),
            Chapter::Canary => canary::script(length, self.without_it),
            Chapter::Overload => overload::script(self.without_it),
            Chapter::Faults => faults::script(self.without_it),
        }
    }
}

/// Whether all was played and held.
async fn play(options: &Options, length: Duration, terminal: &mut Terminal) -> Result<bool, Trouble> {
    let mut stop = Stop::take()
        .map_err(|error| Trouble::new(format!("cannot take over signals: {error}"), "raise `ulimit -n`"))?;
    let script = options.script(length);
    let folder = Folder::new().map_err(|error| {
        let place = std::env::temp_dir();
        Trouble::new(
            format!("cannot make a folder in {}: {error}", place.display()),
            "make room there, or name another folder in TMPDIR",
        )
    })?;
    let mut stage = tokio::select! {
        stage = Stage::build(&script, &folder) => stage?,
        () = stop.told() => return Ok(false),
    };
    let mut view = View {
        name: options.name(),
        script: &script,
        phase: 0,
        elapsed: Duration::ZERO,
        whole: length,
        inbound: stage.proxy.inbound,
        admin: stage.proxy.admin,
        config: stage.config.clone(),
        second: Second::default(),
        curve: VecDeque::new(),
    };
    let (mut pasts, mut verdicts) = (Vec::new(), Vec::new());
    let shown = perform(&script, &mut stage, &mut view, &mut pasts, &mut verdicts, terminal, &mut stop).await;
    let told_at = Instant::now();
    let stopped = tokio::select! {
        stopped = stage.strike() => stopped,
        () = stop.again(told_at) => return Err(cut()),
    };
    let (summary, mut well) = show::summary(&script, &pasts, &verdicts);
    // Nobody reads: the exit code still tells.
    let _ = terminal.print(&[vec![Line::new()], summary].concat());
    for trouble in [shown, stopped].into_iter().filter_map(Result::err) {
        well = false;
        eprintln!("\n{trouble}");
    }
    if !well && pasts.len() < script.phases.len() {
        eprintln!("\nringmesh demo: the chapter was not played to its end, so not all of it has been shown");
    }
    Ok(well)
}

fn cut() -> Trouble {
    Trouble::new("told to stop twice".to_owned(), "what was on the way was cut; Ctrl-C once lets it end")
}

/// Plays phase after phase, until the last is over, a signal comes, the proxy dies, or nobody looks any more.
async fn perform(
    script: &Script,
    stage: &mut Stage,
    view: &mut View<'_>,
    pasts: &mut Vec<Past>,
    verdicts: &mut Vec<Vec<Verdict>>,
    terminal: &mut Terminal,
    stop: &mut Stop,
) -> Result<(), Trouble> {
    let began = Instant::now();
    if !terminal.is_live() && terminal.print(&view.places()).is_err() {
        return Ok(());
    }
    for (n, phase) in script.phases.iter().enumerate() {
        stage.set(script, phase).await?;
        view.phase = n;
        if !terminal.is_live() && terminal.print(&view.begins()).is_err() {
            return Ok(());
        }
        let before = stage.endpoints.seen();
        let load = Load::start(stage.proxy.inbound, phase.rate).map_err(|error| {
            Trouble::new(format!("cannot start the client: {error}"), "raise `ulimit -n`")
        })?;
        let length = script.length_of(phase, view.whole);
        let watched = watch(stage, view, &load, length, began, terminal, stop).await;
        let passed_over = stage.passed_over();
        let told_at = Instant::now();
        let (length, outcomes) = tokio::select! {
            ended = load.stop() => ended,
            () = stop.again(told_at) => return Err(cut()),
        };
        let is_whole = watched?;
        let after = stage.endpoints.seen();
        let endpoints = before.into_iter().zip(after).map(|(before, after)| Worked::between(before, after));
        pasts.push(Past { length, outcomes, endpoints: endpoints.collect(), passed_over });
        if !is_whole {
            return Ok(());
        }
        verdicts.push(phase.claims.iter().map(|claim| (claim.judge)(pasts)).collect());
    }
    Ok(())
}

/// Shows a phase while it lasts. Whether it was played to its end.
async fn watch(
    stage: &mut Stage,
    view: &mut View<'_>,
    load: &Load,
    length: Duration,
    began: Instant,
    terminal: &mut Terminal,
    stop: &mut Stop,
) -> Result<bool, Trouble> {
    let deadline = tokio::time::Instant::now() + length;
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = stage.endpoints.seen();
    let (mut count, mut known, mut looked_at) = (0_u64, 0, Instant::now());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.told() => return Ok(false),
            () = tokio::time::sleep_until(deadline) => return Ok(true),
        }
        view.elapsed = began.elapsed();
        stage.proxy.check().await?;
        count += 1;
        if !count.is_multiple_of(CHECKS_A_SECOND) {
            continue;
        }
        let outcomes = load.since(known);
        known += outcomes.len();
        let now = stage.endpoints.seen();
        let arrived = seen.iter().zip(&now).map(|(before, now)| now.arrived - before.arrived).collect();
        seen.clone_from(&now);
        let length = looked_at.elapsed();
        looked_at = Instant::now();
        let (passed_over, open) = (stage.passed_over(), stage.open());
        view.learn(Second { length, outcomes, arrived, endpoints: now, passed_over, open });
        let drawn = match terminal.is_live() {
            true => terminal.frame(&view.live(terminal.columns())),
            false => terminal.print(&[view.plain()]),
        };
        if drawn.is_err() {
            return Ok(false);
        }
    }
}

/// The proxy and the endpoints behind it. Dropped, all of it ends at once.
struct Stage {
    proxy: Sidecar,
    endpoints: Endpoints,
    folder: PathBuf,
    config: PathBuf,
    /// What the proxy is configured by.
    text: String,
}

impl Stage {
    /// As the first phase wants it.
    async fn build(script: &Script, folder: &Folder) -> Result<Self, Trouble> {
        let endpoints =
            Endpoints::start(script.endpoints, script.places, Conduct::Well(1, 1)).map_err(|error| {
                Trouble::new(format!("cannot start the endpoints: {error}"), "raise `ulimit -n`")
            })?;
        let text = script.config(&script.phases[0], &endpoints.addresses(), folder.path());
        let config = folder.path().join("shop.toml");
        let proxy = Sidecar::launch("shop", &program()?, &config, &text).await?;
        Ok(Self { proxy, endpoints, folder: folder.path().to_owned(), config, text })
    }

    /// As this phase wants it.
    async fn set(&mut self, script: &Script, phase: &Phase) -> Result<(), Trouble> {
        self.endpoints.conduct(&phase.conducts);
        let text = script.config(phase, &self.endpoints.addresses(), &self.folder);
        if text != self.text {
            self.proxy.reload(&self.config, &text).await?;
            self.text = text;
        }
        Ok(())
    }

    /// Why each endpoint is passed over, as the proxy says.
    fn passed_over(&self) -> Vec<Option<String>> {
        let page = self.proxy.page("/services?format=json").unwrap_or_default();
        let service =
            page["services"].as_array().into_iter().flatten().find(|service| service["name"] == "shop");
        let known = service.and_then(|service| service["endpoints"].as_array());
        let reason = |address: String| {
            let endpoint = known.into_iter().flatten().find(|endpoint| endpoint["address"] == address)?;
            let state = endpoint["state"].as_str().filter(|state| *state != "used")?;
            Some(endpoint["reason"].as_str().unwrap_or(state).to_owned())
        };
        self.endpoints.addresses().iter().map(|address| reason(address.to_string())).collect()
    }

    /// Exchanges in progress in the proxy, as it last told.
    fn open(&self) -> u64 {
        let page = self.proxy.page("/shards?format=json").unwrap_or_default();
        page["shards"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|shard| shard["exchanges_open"].as_u64())
            .sum()
    }

    /// Lets the proxy drain, then ends the endpoints.
    async fn strike(self) -> Result<(), Trouble> {
        let Self { proxy, endpoints, .. } = self;
        let stopped = proxy.stop().await;
        drop(endpoints);
        stopped
    }
}
