//! `loadtest mirror`: all requests are copied for a service that takes no connections. Callers must not notice.
//!
//! Called by `main`. One proxy with two routes, which differ in that; they are measured in turn, in another order each round.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{METRICS_LAG, Metrics, Raw, Stage, load, median};
use crate::clock::parse_duration;
use crate::compare::peer::{Kind, Shape};
use crate::target::Url;
use crate::{client, socket};

/// Compares callers' latency with and without copies of all requests for a service that is dead.
///
/// Exit code 1 if p99 with them is more than 1.1 times that without (medians over the rounds), or if a request failed.
#[derive(Args)]
pub(crate) struct MirrorArgs {
    /// Requests a second, open loop.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Callers' connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long each measurement takes, after a warm-up of a second.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    duration: Duration,
    /// Times that each route is measured.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Keep what was measured, a line of JSON for each measurement.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    #[command(flatten)]
    stage: Stage,
}

const RATIO_MAX: f64 = 1.1;
/// The host of the route with a mirror, as the proxy's configuration has it.
const MIRRORED: &str = "mirrored.test";

pub(crate) fn run(args: &MirrorArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    socket::pin(args.stage.load_cpu)?;
    let mut raw = Raw::create(args.raw.as_deref())?;
    let (scratch, origin) = args.stage.origin("mirror", &[])?;
    // Nobody listens there any more.
    let dead = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let dead = dead.map_err(|e| format!("a free port: {e}"))?;
    let running =
        args.stage.start(Kind::Ringmesh, Shape::Mirror, &scratch, (origin.address, Some(dead)), "24h")?;
    let admin = *running.admins.first().ok_or("no admin address")?;
    let (mut p50s, mut p99s, mut failed) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()], 0);
    for round in 0..args.rounds {
        for turn in 0..2 {
            let mirrored = (round + turn) % 2 == 1;
            let plain =
                load(running.address, "/size/1KiB", Some(args.rate), args.connections, args.stage.load_cpu);
            let authority = if mirrored { MIRRORED.to_owned() } else { plain.url.authority.clone() };
            let options = client::Options {
                duration: Some(args.duration),
                warmup: Duration::from_secs(1),
                url: Url { authority, ..plain.url.clone() },
                ..plain
            };
            let tally = client::run(&options, stop, false, &mut |_| {})?;
            let row = json!({
                "trial": "mirror", "round": round, "mirrored": mirrored, "rate": args.rate,
                "requests": tally.completed, "failed": tally.failed(),
                "p50_us": tally.micros(50.0), "p90_us": tally.micros(90.0), "p99_us": tally.micros(99.0),
                "p99_9_us": tally.micros(99.9),
            });
            eprintln!("{row}");
            raw.keep(&row)?;
            p50s[usize::from(mirrored)].push(tally.micros(50.0));
            p99s[usize::from(mirrored)].push(tally.micros(99.0));
            failed += tally.failed();
        }
    }
    std::thread::sleep(METRICS_LAG);
    let metrics = Metrics::read(admin)?;
    let tried = metrics.sum("ringmesh_mirrored_total", "");
    let left_out = metrics.sum("ringmesh_mirrored_unsent_total", "why=\"ejected\"");
    let mut ratio = 0.0;
    println!("{:<12} {:>16} {:>16} {:>8}", "ms", "without", "mirrored", "ratio");
    for (what, [without, with]) in [("p50", &mut p50s), ("p99", &mut p99s)] {
        let (without, with) = (median(without), median(with));
        ratio = with / without;
        println!("{what:<12} {:>16.3} {:>16.3} {ratio:>8.2}", without / 1e3, with / 1e3);
    }
    println!("failed {failed}; copies tried {tried}, left out {left_out}");
    let held = ratio <= RATIO_MAX && failed == 0;
    println!("{}", if held { "held" } else { "BROKE" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
