//! `loadtest one-bad`: one of ten endpoints fails, hangs or goes away under load, and comes back. Callers must not notice,
//! and it must be out of use within a second.
//!
//! Called by `main`. Nine endpoints are one origin at nine addresses; the odd one is another, told to misbehave. Retries and
//! breaker are those that ringmesh has by default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Metrics, Raw, Stage, load};
use crate::client;
use crate::clock::{MILLISECOND, SECOND, now_ns, parse_duration};
use crate::compare::Scratch;
use crate::compare::peer::{Kind, Shape};
use crate::origin::conduct::{Behaviour, Conduct};
use crate::origin::{self, Origin};
use crate::socket;

/// Lets one of ten endpoints answer 500, hang, or refuse connections, while callers send at a constant rate.
///
/// Prints failures that callers saw, how long it took until the endpoint got no more than a fiftieth of its share (looked at
/// in steps of 100 ms), and how long until it was used again once it was well. Exit code 1 if more than 0.01 % of the
/// requests failed, or it took longer than a second.
#[derive(Args)]
pub(crate) struct OneBadArgs {
    /// What it does.
    #[arg(long = "fault", value_enum, value_delimiter = ',', default_value = "fail,hang,refuse")]
    faults: Vec<Fault>,
    /// Requests a second, open loop.
    #[arg(long, default_value_t = 5000.0)]
    rate: f64,
    /// Callers' connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// All are well for so long at first.
    #[arg(long, value_parser = parse_duration, default_value = "3s")]
    before: Duration,
    /// The fault lasts for so long.
    #[arg(long, value_parser = parse_duration, default_value = "20s")]
    during: Duration,
    /// And then all are well again.
    #[arg(long, value_parser = parse_duration, default_value = "20s")]
    after: Duration,
    /// Keep what was measured, a line of JSON for each fault.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    #[command(flatten)]
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// It answers 500 at once.
    Fail,
    /// It takes requests and never answers.
    Hang,
    /// Its port is closed, and so are its connections.
    Refuse,
}

/// Of all requests.
const FAILED_MAX: f64 = 0.0001;
const EJECT_MAX_MS: f64 = 1000.0;
const STEP: u64 = 100 * MILLISECOND;
const ENDPOINTS: f64 = 10.0;

pub(crate) fn run(args: &OneBadArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    socket::pin(args.stage.load_cpu)?;
    let mut raw = Raw::create(args.raw.as_deref())?;
    let mut held = true;
    for &fault in &args.faults {
        held &= Trial::begin(args, fault)?.run(stop, &mut raw)?;
    }
    println!("{}", if held { "held" } else { "BROKE" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Trial<'a> {
    args: &'a OneBadArgs,
    fault: Fault,
    scratch: Scratch,
    well: Origin,
    odd: Option<Origin>,
    odd_address: SocketAddr,
    conduct: Arc<Conduct>,
}

impl<'a> Trial<'a> {
    fn begin(args: &'a OneBadArgs, fault: Fault) -> Result<Self, String> {
        let conduct = Arc::new(Conduct::default());
        // All of 127.0.0.0/8: the nine addresses.
        let well = origin::start(&options("0.0.0.0:0", args.stage.load_cpu, None)?)?;
        let odd = origin::start(&options("127.0.0.1:0", args.stage.load_cpu, Some(&conduct))?)?;
        let odd_address = odd.address.ok_or("the odd origin has no address")?;
        Ok(Self {
            args,
            fault,
            scratch: Scratch::new("one-bad")?,
            well,
            odd: Some(odd),
            odd_address,
            conduct,
        })
    }

    fn run(mut self, stop: &Arc<AtomicBool>, raw: &mut Raw) -> Result<bool, String> {
        let args = self.args;
        let origin = self.well.address.ok_or("the origin has no address")?;
        let places = (origin, Some(self.odd_address));
        let running = args.stage.start(Kind::Ringmesh, Shape::Endpoints, &self.scratch, places, "24h")?;
        let options = client::Options {
            duration: Some(args.before + args.during + args.after),
            ..load(running.address, "/size/1024", Some(args.rate), args.connections, args.stage.load_cpu)
        };
        let admin = *running.admins.first().ok_or("no admin address")?;
        let (tally, ejected, back) = std::thread::scope(|scope| {
            let loading = scope.spawn(|| client::run(&options, stop, false, &mut |_| {}));
            let watched = self.misbehave(stop);
            let tally = loading.join().map_err(|_| "the client panicked".to_owned())??;
            let (ejected, back) = watched?;
            Ok::<_, String>((tally, ejected, back))
        })?;
        std::thread::sleep(Duration::from_secs(2)); // shards report once a second
        let metrics = Metrics::read(admin)?;
        let failed = tally.failed() as f64 / (tally.completed + tally.failed()).max(1) as f64;
        let failures: Vec<String> = tally.failures().map(|(name, n)| format!("{name} {n}")).collect();
        let held = failed <= FAILED_MAX && ejected.is_none_or(|ms| ms <= EJECT_MAX_MS);
        let row = json!({
            "trial": "one-bad",
            "fault": format!("{:?}", self.fault).to_lowercase(),
            "rate": args.rate,
            "requests": tally.completed + tally.failed(),
            "failed": tally.failed(),
            "failures": failures.join(", "),
            "failed_share": failed,
            "ejected_after_ms": ejected,
            "back_after_ms": back,
            "p50_us": tally.micros(50.0),
            "p99_us": tally.micros(99.0),
            "p99_9_us": tally.micros(99.9),
            "max_us": tally.micros(100.0),
            "further_attempts": metrics.sum("ringmesh_further_attempts_total", ""),
            "held": held,
        });
        raw.keep(&row)?;
        println!("{row:#}");
        Ok(held)
    }

    /// Changes what the odd endpoint does at the right moments. How long until it got next to nothing, and until it got at
    /// least half of its share again, ms; `None`: that was not seen.
    fn misbehave(&mut self, stop: &AtomicBool) -> Result<(Option<f64>, Option<f64>), String> {
        let args = self.args;
        let share = args.rate / ENDPOINTS * STEP as f64 / SECOND as f64;
        std::thread::sleep(args.before);
        match self.fault {
            Fault::Fail => self.conduct.behave(Behaviour::Status(500)),
            Fault::Hang => self.conduct.behave(Behaviour::Hang),
            Fault::Refuse => drop(self.odd.take()),
        }
        // What is refused does not arrive: when connecting ends cannot be seen from here.
        let seen = self.fault != Fault::Refuse;
        let ejected = self.wait(args.during, stop, |arrivals| seen && arrivals <= share / 50.0);
        match self.fault {
            Fault::Fail | Fault::Hang => self.conduct.behave(Behaviour::Well),
            Fault::Refuse => {
                let at = self.odd_address.to_string();
                self.odd = Some(origin::start(&options(&at, args.stage.load_cpu, Some(&self.conduct))?)?);
            }
        }
        let back = self.wait(args.after, stop, |arrivals| arrivals >= share / 2.0);
        Ok((ejected, back))
    }

    /// Looks at arrivals step by step for so long: when the first step began of which `is_it` holds, ms after the beginning.
    fn wait(&self, time: Duration, stop: &AtomicBool, is_it: impl Fn(f64) -> bool) -> Option<f64> {
        let (began, mut before) = (now_ns(), self.conduct.arrivals());
        let mut found = None;
        while now_ns() < began + crate::clock::nanos(time) && !stop.load(Ordering::Relaxed) {
            let step_began = now_ns();
            std::thread::sleep(Duration::from_nanos(STEP));
            let arrivals = self.conduct.arrivals();
            if found.is_none() && is_it((arrivals - before) as f64) {
                found = Some((step_began - began) as f64 / MILLISECOND as f64);
            }
            before = arrivals;
        }
        found
    }
}

pub(super) fn options(
    listen: &str,
    cpu: usize,
    conduct: Option<&Arc<Conduct>>,
) -> Result<origin::Options, String> {
    Ok(origin::Options {
        listen: Some(listen.parse().map_err(|e| format!("{listen}: {e}"))?),
        cpus: vec![cpu],
        conduct: conduct.cloned(),
        ..origin::Options::default()
    })
}
