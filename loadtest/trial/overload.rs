//! `loadtest overload`: three times as much as a service can do. What it can do must still be done, and fast; and when the
//! load is gone, so must be its traces.
//!
//! Called by `main`. The origin answers so many requests at a time and lets the others wait in line for as long as it takes,
//! which is what makes overload harmful: who waits too long gives up, and the work is done for nobody.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{METRICS_LAG, Metrics, Raw, Stage, load};
use crate::clock::parse_duration;
use crate::compare::Scratch;
use crate::compare::peer::{Kind, Shape};
use crate::origin::conduct::{Capacity, Conduct};
use crate::{client, origin, socket};

/// Offers half of what the service can do, three times as much, and half again.
///
/// Exit code 1 if goodput under overload is below 90 % of capacity, p99 of what was served above twice that without overload,
/// the line at the service longer than its p99 allows, or the last phase, from its second second on, not as the first.
#[derive(Args)]
pub(crate) struct OverloadArgs {
    /// How long each takes.
    #[arg(long, value_parser = parse_duration, default_value = "10ms")]
    service_time: Duration,
    /// How often its capacity is offered.
    #[arg(long, default_value_t = 3.0)]
    times: f64,
    /// How long each phase lasts.
    #[arg(long, value_parser = parse_duration, default_value = "15s")]
    phase: Duration,
    /// How long callers wait for an answer.
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    timeout: Duration,
    /// Callers' connections under overload; a sixteenth of them when it is calm.
    #[arg(long, default_value_t = 512)]
    connections: usize,
    /// Whether the proxy is told how much the service bears, or finds it out.
    #[arg(long, value_enum, default_value_t = Limit::Fixed)]
    limit: Limit,
    /// Keep what was measured, a line of JSON for each phase.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    #[command(flatten)]
    stage: Stage,
}

/// How the proxy knows how much the service bears.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Limit {
    /// `caps.exchanges_max`.
    Fixed,
    /// `[service.concurrency]`.
    Learnt,
}

/// Requests that the service answers at a time; what the proxy's configuration lets in.
const AT_A_TIME: u32 = 10;
const GOODPUT_MIN: f64 = 0.9;
const P99_RATIO_MAX: f64 = 2.0;

pub(crate) fn run(args: &OverloadArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    socket::pin(args.stage.load_cpu)?;
    let mut raw = Raw::create(args.raw.as_deref())?;
    let capacity = Capacity { at_a_time: AT_A_TIME, service_time: args.service_time };
    let conduct = Arc::new(Conduct::default());
    let origin = origin::start(&origin::Options {
        capacity: Some(capacity),
        ..super::one_bad::options("127.0.0.1:0", args.stage.load_cpu, Some(&conduct))?
    })?;
    let address = origin.address.ok_or("the origin has no address")?;
    let scratch = Scratch::new("overload")?;
    let shape = match args.limit {
        Limit::Fixed => Shape::Overload,
        Limit::Learnt => Shape::OverloadLearnt,
    };
    let running = args.stage.start(Kind::Ringmesh, shape, &scratch, (address, None), "24h")?;
    let mut phase = |name: &str, times: f64, warmup: Duration| -> Result<Phase, String> {
        conduct.take_waited_max();
        // To open all of them at once takes the CPU that the origin runs on, too, for longer than a request may wait for its turn.
        let connections = if times < 1.0 { args.connections.div_ceil(16) } else { args.connections };
        let options = client::Options {
            duration: Some(args.phase - warmup),
            warmup,
            timeout: args.timeout,
            // What is refused is a failure, and what is answered an answer.
            status: Some(200),
            ..load(
                running.address,
                "/size/1KiB",
                Some(capacity.rate() * times),
                connections,
                args.stage.load_cpu,
            )
        };
        let tally = client::run(&options, stop, false, &mut |_| {})?;
        let phase = Phase {
            goodput: tally.completed as f64 / (args.phase - warmup).as_secs_f64() / capacity.rate(),
            p50_us: tally.micros(50.0),
            p99_us: tally.micros(99.0),
            failed: tally.failed(),
            line_max: conduct.take_waited_max(),
        };
        let failures: serde_json::Map<String, Value> =
            tally.failures().map(|(name, n)| (name.to_owned(), json!(n))).collect();
        let row = json!({
            "trial": "overload", "limit": format!("{:?}", args.limit).to_lowercase(), "phase": name, "offered_of_capacity": times, "goodput_of_capacity": phase.goodput,
            "served": tally.completed, "not_served": phase.failed, "failures": failures,
            "p50_us": phase.p50_us, "p99_us": phase.p99_us, "p99_9_us": tally.micros(99.9),
            "line_max_ms": phase.line_max.as_secs_f64() * 1e3,
        });
        println!("{row}");
        raw.keep(&row)?;
        if times < 1.0 && phase.failed > 0 {
            // Nothing is too much then. Whether the proxy stood still, or its line was too short, is in its metrics.
            std::thread::sleep(METRICS_LAG);
            let says = Metrics::read(*running.admins.first().ok_or("no admin address")?)?;
            let row = json!({ "trial": "overload", "phase": name, "proxy_says": says.lines(&["failures_total", "stall", "capped"]) });
            println!("{row}");
            raw.keep(&row)?;
        }
        Ok(phase)
    };
    let calm = phase("calm", 0.5, Duration::from_secs(1))?;
    let over = phase("overload", args.times, Duration::from_secs(1))?;
    // A second to recover in; what fails in it is counted all the same, as nothing may.
    let after = phase("after", 0.5, Duration::from_secs(1))?;
    let verdicts = [
        ("goodput of capacity, at least 0.9", over.goodput, over.goodput >= GOODPUT_MIN),
        (
            "p99 over calm p99, at most 2",
            over.p99_us / calm.p99_us,
            over.p99_us <= calm.p99_us * P99_RATIO_MAX,
        ),
        (
            "longest wait in line over calm p99, at most 2",
            over.line_max.as_secs_f64() * 1e6 / calm.p99_us,
            over.line_max.as_secs_f64() * 1e6 <= calm.p99_us * P99_RATIO_MAX,
        ),
        (
            "p99 a second after, over calm p99, at most 1.2",
            after.p99_us / calm.p99_us,
            after.p99_us <= calm.p99_us * 1.2,
        ),
        ("goodput a second after, of what is offered", after.goodput / 0.5, after.goodput >= 0.5 * 0.99),
        ("failed when calm", calm.failed as f64, calm.failed == 0),
    ];
    for (what, measured, held) in verdicts {
        println!("{what:<52} {measured:>8.2}   {}", if held { "held" } else { "BROKE" });
    }
    let held = verdicts.iter().all(|(_, _, held)| *held);
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Phase {
    /// Of capacity.
    goodput: f64,
    p50_us: f64,
    p99_us: f64,
    failed: u64,
    /// The longest that a request waited for its turn at the service.
    line_max: Duration,
}
