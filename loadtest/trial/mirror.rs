//! `loadtest mirror`: a copy of every request for a service that is dead. Callers must not notice.
//!
//! Called by `main`. Rounds with and without the copy are interleaved.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::one_bad::options;
use super::{Raw, Stage, load, median};
use crate::clock::parse_duration;
use crate::compare::Scratch;
use crate::compare::peer::{Kind, Shape};
use crate::origin::conduct::{Behaviour, Conduct};
use crate::{client, origin, socket};

/// Measures requests whose copies go to a service that refuses connections, or takes requests and never answers.
///
/// Exit code 1 if a request failed, or p99 with copies is more than 1.1 times that without (medians over the rounds).
#[derive(Args)]
pub(crate) struct MirrorArgs {
    /// How the other service is dead.
    #[arg(long = "dead", value_enum, value_delimiter = ',', default_value = "refuse,hang")]
    deaths: Vec<Death>,
    /// Requests a second, open loop.
    #[arg(long, default_value_t = 5000.0)]
    rate: f64,
    /// Callers' connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long each measurement takes, after a warm-up of a second.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    duration: Duration,
    /// Times that each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Keep what was measured, a line of JSON for each measurement.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    #[command(flatten)]
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Death {
    Refuse,
    Hang,
}

const RATIO_MAX: f64 = 1.1;

pub(crate) fn run(args: &MirrorArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    socket::pin(args.stage.load_cpu)?;
    let mut raw = Raw::create(args.raw.as_deref())?;
    let mut held = true;
    for &death in &args.deaths {
        let (mut without, mut with, mut failed) = (Vec::new(), Vec::new(), 0);
        for round in 0..args.rounds {
            let mut shapes = [Shape::Plain, Shape::Mirror];
            if round % 2 == 1 {
                shapes.reverse();
            }
            for shape in shapes {
                let (p99, failures) = measure(args, death, shape, round, stop, &mut raw)?;
                if shape == Shape::Plain {
                    without.push(p99)
                } else {
                    with.push(p99)
                }
                failed += failures;
            }
        }
        let (without, with) = (median(&mut without), median(&mut with));
        let good = failed == 0 && with <= without * RATIO_MAX;
        println!(
            "{death:?}: p99 {without:.0} µs without, {with:.0} µs with copies, ratio {:.2}, {failed} failed: {}",
            with / without,
            if good { "held" } else { "BROKE" }
        );
        held &= good;
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(
    args: &MirrorArgs,
    death: Death,
    shape: Shape,
    round: u32,
    stop: &Arc<AtomicBool>,
    raw: &mut Raw,
) -> Result<(f64, u64), String> {
    let scratch = Scratch::new("mirror")?;
    let conduct = Arc::new(Conduct::default());
    let well = origin::start(&options("127.0.0.1:0", args.stage.load_cpu, None)?)?;
    let mut dead = Some(origin::start(&options("127.0.0.1:0", args.stage.load_cpu, Some(&conduct))?)?);
    let odd = dead.as_ref().and_then(|dead| dead.address);
    match death {
        Death::Hang => conduct.behave(Behaviour::Hang),
        Death::Refuse => drop(dead.take()),
    }
    let origin = well.address.ok_or("the origin has no address")?;
    let running = args.stage.start(Kind::Ringmesh, shape, &scratch, (origin, odd), "24h")?;
    let options = client::Options {
        duration: Some(args.duration),
        warmup: Duration::from_secs(1),
        ..load(running.address, "/size/1024", Some(args.rate), args.connections, args.stage.load_cpu)
    };
    let tally = client::run(&options, stop, false, &mut |_| {})?;
    let row = json!({
        "trial": "mirror", "dead": format!("{death:?}").to_lowercase(), "round": round, "mirrored": shape == Shape::Mirror,
        "requests": tally.completed, "failed": tally.failed(), "copies_arrived": conduct.arrivals(),
        "p50_us": tally.micros(50.0), "p99_us": tally.micros(99.0), "p99_9_us": tally.micros(99.9),
    });
    eprintln!("{row}");
    raw.keep(&row)?;
    Ok((tally.micros(99.0), tally.failed()))
}
