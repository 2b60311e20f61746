//! `loadtest one-slow`: one of ten endpoints takes fifty times as long as the others. What callers see of it, through
//! ringmesh (peak EWMA), Envoy (least request) and HAProxy (leastconn) in turn.
//!
//! Called by `main`. Rounds are interleaved; in each, every proxy is measured with all endpoints well and with a slow one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::one_bad::options;
use super::{Raw, Stage, load, median};
use crate::clock::parse_duration;
use crate::compare::Scratch;
use crate::compare::peer::{Kind, Peer, Shape};
use crate::origin::conduct::{Behaviour, Conduct};
use crate::{client, origin, socket};

/// Compares what a slow endpoint of ten does to callers' latency through ringmesh, Envoy and HAProxy.
///
/// Exit code 1 if ringmesh's p99 with it is more than 1.5 times that without it (medians over the rounds).
#[derive(Args)]
pub(crate) struct OneSlowArgs {
    /// Which proxies.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ringmesh,haproxy,envoy")]
    peers: Vec<Kind>,
    /// Requests a second, open loop.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Callers' connections.
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// How long an endpoint takes that is well; the slow one takes fifty times as long.
    #[arg(long, default_value = "2ms")]
    delay: String,
    /// How long each measurement takes, after a warm-up of two seconds in which proxies may learn.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    duration: Duration,
    /// Times that each proxy is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Keep what was measured, a line of JSON for each measurement.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    #[command(flatten)]
    stage: Stage,
}

const FACTOR: u16 = 50;
const RATIO_MAX: f64 = 1.5;

pub(crate) fn run(args: &OneSlowArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    socket::pin(args.stage.load_cpu)?;
    let mut raw = Raw::create(args.raw.as_deref())?;
    let kinds: Vec<Kind> = args
        .peers
        .iter()
        .copied()
        .filter(|kind| match (kind.absent(Shape::Endpoints), Peer::find(*kind, None)) {
            (None, Ok(_)) => true,
            (None, Err(_)) if kind.is_ringmesh() => true,
            (why, found) => {
                let why = why.map(str::to_owned).or_else(|| found.err()).unwrap_or_default();
                eprintln!("skipped: {} {why}", kind.name());
                false
            }
        })
        .collect();
    let mut p99s: Vec<[Vec<f64>; 2]> = kinds.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for round in 0..args.rounds {
        let mut order: Vec<usize> = (0..kinds.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            for (slow, seen) in [false, true].into_iter().zip(&mut p99s[index]) {
                seen.push(measure(args, kinds[index], slow, round, stop, &mut raw)?);
            }
        }
    }
    let mut held = true;
    println!("{:<12} {:>16} {:>16} {:>8}", "p99, ms", "all well", "one slow", "ratio");
    for (kind, [well, slow]) in kinds.iter().zip(&mut p99s) {
        let (well, slow) = (median(well), median(slow));
        println!("{:<12} {:>16.2} {:>16.2} {:>8.2}", kind.name(), well / 1e3, slow / 1e3, slow / well);
        held &= !kind.is_ringmesh() || slow <= well * RATIO_MAX;
    }
    println!("{}", if held { "held" } else { "BROKE" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One measurement: p99 in µs.
fn measure(
    args: &OneSlowArgs,
    kind: Kind,
    slow: bool,
    round: u32,
    stop: &Arc<AtomicBool>,
    raw: &mut Raw,
) -> Result<f64, String> {
    let scratch = Scratch::new("one-slow")?;
    let conduct = Arc::new(Conduct::default());
    let well = origin::start(&options("0.0.0.0:0", args.stage.load_cpu, None)?)?;
    let odd = origin::start(&options("127.0.0.1:0", args.stage.load_cpu, Some(&conduct))?)?;
    let origin = well.address.ok_or("the origin has no address")?;
    let running = args.stage.start(kind, Shape::Endpoints, &scratch, (origin, odd.address), "24h")?;
    if slow {
        conduct.behave(Behaviour::Slow(FACTOR));
    }
    let options = client::Options {
        duration: Some(args.duration),
        warmup: Duration::from_secs(2),
        ..load(
            running.address,
            &format!("/delay/{}/size/1KiB", args.delay),
            Some(args.rate),
            args.connections,
            args.stage.load_cpu,
        )
    };
    let tally = client::run(&options, stop, false, &mut |_| {})?;
    let row = json!({
        "trial": "one-slow", "round": round, "who": kind.name(), "slow": slow, "rate": args.rate, "delay": args.delay,
        "requests": tally.completed, "failed": tally.failed(), "to_the_odd_one": conduct.arrivals(),
        "p50_us": tally.micros(50.0), "p90_us": tally.micros(90.0), "p99_us": tally.micros(99.0), "p99_9_us": tally.micros(99.9),
    });
    eprintln!("{row}");
    raw.keep(&row)?;
    Ok(tally.micros(99.0))
}
