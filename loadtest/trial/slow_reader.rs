//! `loadtest slow-reader`: large bodies to somebody who reads slowly. What the fast side sends must wait at its sender, not
//! in the proxy's memory.
//!
//! Called by `main`. Downloads are read slowly by the client, uploads by the origin.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustls::pki_types::ServerName;

use super::Stage;
use crate::clock::parse_size;
use crate::compare::peer::Shape;
use crate::compare::process;
use crate::target::{Place, Url};
use crate::{client, tls};

/// Moves large bodies through ringmesh to a slow reader, and looks at its memory.
///
/// Over HTTP/2 in plain text (h2), HTTP/2 over TLS (tls), and HTTP/1.1 through two ringmesh with mTLS and HTTP/2 between
/// them (mesh), each down and up. Exit code 1 if a transfer failed, or a process grew by more than --growth-max.
#[derive(Args)]
pub(crate) struct SlowReaderArgs {
    /// Through what.
    #[arg(long = "through", value_enum, value_delimiter = ',', default_value = "h2,tls,mesh")]
    through: Vec<Through>,
    /// Bytes of body.
    #[arg(long, value_parser = parse_size, default_value = "1GiB")]
    size: u64,
    /// What the slow reader reads in a second.
    #[arg(long, value_name = "BYTES_PER_SECOND", value_parser = parse_size, default_value = "64MiB")]
    slow: u64,
    /// What a process may grow by.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "4MiB")]
    growth_max: u64,
    #[command(flatten)]
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Through {
    H2,
    Tls,
    Mesh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) fn run(args: &SlowReaderArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    if args.slow == 0 {
        return Err("--slow must be above zero".to_owned());
    }
    let mut held = true;
    println!("{:<6} {:<5} {:>10} {:>9}   growth of each process, KiB", "", "", "MiB", "failed");
    for &through in &args.through {
        for way in [Way::Down, Way::Up] {
            held &= transfer(args, through, way, stop)?;
        }
    }
    println!("{}", if held { "held" } else { "BROKE" });
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One body; whether all was well.
fn transfer(
    args: &SlowReaderArgs,
    through: Through,
    way: Way,
    stop: &Arc<AtomicBool>,
) -> Result<bool, String> {
    let slow = args.slow.to_string();
    let slow_origin = ["--slow-read", slow.as_str()];
    let (scratch, origin) =
        args.stage.origin("slow-reader", if way == Way::Up { &slow_origin } else { &[] })?;
    let shape = match through {
        Through::H2 => Shape::H2,
        Through::Tls => Shape::Tls,
        Through::Mesh => Shape::Mesh,
    };
    let mut running = args.stage.ringmesh(shape, "24h", &scratch, &origin)?;
    let url = |target: String| Url {
        place: Place::Tcp(running.address),
        tls: through == Through::Tls,
        authority: running.address.to_string(),
        target,
    };
    let http2 = through != Through::Mesh;
    let believed = tls::ClientFiles { ca: Some(&scratch.files.ca), ..Default::default() };
    let tls = match through {
        Through::Tls => Some((tls::client_config(&believed, http2)?, ServerName::from(running.address.ip()))),
        _ => None,
    };
    let once = |target: String| client::Options {
        connections: 1,
        cpus: vec![args.stage.load_cpu],
        requests: Some(1),
        duration: None,
        tls: tls.clone(),
        http2,
        ..client::Options::new(url(target))
    };
    // What the first exchange costs, a body of a few windows included, is no growth.
    let warm = once("/size/1MiB".to_owned());
    if client::run(&warm, stop, false, &mut |_| {})?.failed() > 0 {
        return Err(format!("{through:?}: not even 1 MiB comes through"));
    }
    let mut options = match way {
        Way::Down => client::Options { slow: Some(args.slow), ..once(format!("/size/{}", args.size)) },
        Way::Up => {
            client::Options { method: "POST".to_owned(), body: args.size, ..once("/size/1024".to_owned()) }
        }
    };
    options.timeout = Duration::from_secs(60 + 4 * args.size / args.slow);

    let pids = running.pids();
    let resident = || pids.iter().map(|pid| process::memory(*pid).rss).collect::<Vec<f64>>();
    let before = resident();
    let done = AtomicBool::new(false);
    let (tally, most) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = before.clone();
            while !done.load(Ordering::Relaxed) {
                most.iter_mut().zip(resident()).for_each(|(most, now)| *most = most.max(now));
                std::thread::sleep(LOOK_EVERY);
            }
            most
        });
        let tally = client::run(&options, stop, false, &mut |_| {});
        done.store(true, Ordering::Relaxed);
        (tally, looking.join())
    });
    let tally = tally?;
    let most = most.map_err(|_| "the watching thread panicked".to_owned())?;
    let growth: Vec<f64> = most.iter().zip(&before).map(|(most, before)| most - before).collect();
    let failures: Vec<String> = tally.failures().map(|(name, n)| format!("{name} {n}")).collect();
    let failed = tally.failed() > 0 || tally.completed != 1 || !running.is_running();
    println!(
        "{:<6} {:<5} {:>10} {:>9}   {}   {}",
        format!("{through:?}").to_lowercase(),
        format!("{way:?}").to_lowercase(),
        args.size >> 20,
        u8::from(failed),
        growth.iter().map(|g| format!("{g:.0}")).collect::<Vec<_>>().join(", "),
        failures.join(", ")
    );
    Ok(!failed && growth.iter().all(|g| *g <= args.growth_max as f64 / 1024.0))
}
