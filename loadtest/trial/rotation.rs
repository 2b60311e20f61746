//! `loadtest rotation`: certificates that live for seconds, under load. No request may fail and no connection may be
//! lost because a certificate was renewed.
//!
//! Called by `main`. Plain text → A → mTLS, HTTP/2 → B → plain text, an open loop over all of it.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::{METRICS_LAG, Metrics, Stage};
use crate::client;
use crate::clock::parse_duration;
use crate::compare::peer::{Running, Shape};
use crate::target::{Place, Url};

/// Renews certificates under load, through two ringmesh with mTLS between them.
///
/// Exit code 1 if a request failed, if a connection was closed (callers' to A, or A's to B), or if a renewal failed.
#[derive(Args)]
pub(crate) struct RotationArgs {
    /// How long certificates live; they are renewed at half of it.
    #[arg(long, default_value = "10s")]
    leaf_ttl: String,
    /// Requests a second, open loop.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// How long.
    #[arg(long, value_parser = parse_duration, default_value = "3m")]
    duration: Duration,
    /// Callers' connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[command(flatten)]
    stage: Stage,
}

/// What the two proxies count, at one moment.
struct Counted {
    /// By A to B, and how many of them are open.
    connected: f64,
    open: f64,
    /// Found closed by B when they were to be used; requests that were sent again for it.
    found_dead: f64,
    replays: f64,
    /// By B.
    handshakes: f64,
    accepted: f64,
    accepted_open: f64,
    /// By both.
    renewals: [f64; 2],
    renewals_failed: f64,
    panics: f64,
}

impl Counted {
    fn read(running: &Running) -> Result<Self, String> {
        let read = |i: usize| -> Result<Metrics, String> {
            let admin: &SocketAddr = running.admins.get(i).ok_or("no admin address")?;
            Metrics::read(*admin)
        };
        let (a, b) = (read(0)?, read(1)?);
        let both = |name, label| a.sum(name, label) + b.sum(name, label);
        let good = |m: &Metrics| m.sum("ringmesh_identity_rotations_total", "result=\"good\"");
        Ok(Self {
            connected: a.sum("ringmesh_upstream_connected_total", ""),
            open: a.sum("ringmesh_upstream_connections", ""),
            found_dead: a.sum("ringmesh_upstream_found_dead_total", ""),
            replays: a.sum("ringmesh_replays_total", ""),
            handshakes: b.sum("ringmesh_tls_handshakes_total", ""),
            accepted: b.sum("ringmesh_downstream_accepted_total", ""),
            accepted_open: b.sum("ringmesh_downstream_connections", ""),
            renewals: [good(&a), good(&b)],
            renewals_failed: both("ringmesh_identity_rotations_total", "result=\"failed\""),
            panics: both("ringmesh_panics_total", ""),
        })
    }
}

pub(crate) fn run(args: &RotationArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    let (scratch, origin) = args.stage.origin("rotation", &[])?;
    let running = args.stage.ringmesh(Shape::Mesh, &args.leaf_ttl, &scratch, &origin)?;
    let url = Url {
        place: Place::Tcp(running.address),
        tls: false,
        authority: running.address.to_string(),
        target: "/size/1024".to_owned(),
    };
    let options = client::Options {
        rate: Some(args.rate),
        connections: args.connections,
        cpus: vec![args.stage.load_cpu],
        duration: Some(args.duration),
        ..client::Options::new(url)
    };
    // Connections are made, and what made sure that both had started is counted, before counting begins.
    let warm = client::Options { duration: Some(Duration::from_secs(1)), ..options.clone() };
    let warm = client::run(&warm, stop, false, &mut |_| {})?.failed();
    std::thread::sleep(METRICS_LAG);
    let before = Counted::read(&running)?;
    let tally = client::run(&options, stop, std::io::stderr().is_terminal(), &mut |_| {})?;
    std::thread::sleep(METRICS_LAG);
    let after = Counted::read(&running)?;

    let failures: Vec<String> = tally.failures().map(|(name, n)| format!("{name} {n}")).collect();
    let renewals = [after.renewals[0] - before.renewals[0], after.renewals[1] - before.renewals[1]];
    let later = after.connected - before.connected;
    // What was opened and is not open any more.
    let lost = (later - (after.open - before.open)).max(0.0);
    let lost_by_b =
        (after.accepted - before.accepted - (after.accepted_open - before.accepted_open)).max(0.0);
    println!("requests             {:>8}   {:.1}/s", tally.completed, args.rate);
    println!("failed               {:>8}   {}", tally.failed(), failures.join(", "));
    println!("p99, p99.9           {:>8.0} µs, {:.0} µs", tally.micros(99.0), tally.micros(99.9));
    println!("renewals of A, of B  {:>8}, {}, {} failed", renewals[0], renewals[1], after.renewals_failed);
    println!("callers reconnected  {:>8}", tally.reconnects);
    println!("A connected to B     {later:>8}   after the first {}; closed {lost}", before.connected);
    println!(
        "B: handshakes        {:>8}   connections closed {lost_by_b}",
        after.handshakes - before.handshakes
    );
    println!("found dead, replayed {:>8}, {}", after.found_dead, after.replays);
    println!("panics               {:>8}", after.panics);
    if renewals.contains(&0.0) {
        return Err(
            "nothing was renewed: the trial says nothing; make it longer, or certificates shorter".to_owned()
        );
    }
    let bad = (warm + tally.failed()) as f64
        + tally.reconnects as f64
        + lost.max(lost_by_b)
        + after.found_dead
        + after.replays
        + after.renewals_failed
        + after.panics;
    println!("{}", if bad > 0.0 { "BROKE" } else { "held" });
    Ok(if bad > 0.0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
