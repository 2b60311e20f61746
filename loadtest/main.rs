//! `loadtest`: what ringmesh is measured with. An origin (`server`), an open- and closed-loop client (`client`), idle
//! connections (`idle`), and a fair comparison with other proxies (`compare`).
//!
//! Called by people and by `.ci/run`. It shares no HTTP code with the proxy, and refuses to run a proxy's code inside
//! its own process: what is measured is the binary that is shipped.

#![allow(
    clippy::disallowed_methods,
    reason = "this is no shard: it reads the clock, sleeps and resolves names as ordinary programs do"
)]
#![allow(clippy::print_stdout, reason = "its results go to standard output")]

mod certificates;
mod client;
mod clock;
mod compare;
mod date;
mod guard;
mod http2;
mod idle;
mod origin;
mod plot;
mod socket;
mod target;
mod tls;
mod trial;
mod wire;

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use clock::{MILLISECOND, nanos, now_ns, parse_duration, parse_size};
use socket::parse_cpus;
use target::Url;

/// Measures HTTP proxies: an origin, a load generator, and a comparison that runs both around a proxy.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Server(ServerArgs),
    Client(Box<ClientArgs>),
    Idle(IdleArgs),
    Compare(compare::CompareArgs),
    Rotation(trial::rotation::RotationArgs),
    SlowReader(trial::slow_reader::SlowReaderArgs),
    OneBad(trial::one_bad::OneBadArgs),
    OneSlow(trial::one_slow::OneSlowArgs),
    Overload(trial::overload::OverloadArgs),
    Mirror(trial::mirror::MirrorArgs),
    #[command(hide = true)]
    Guard(guard::GuardArgs),
}

/// Runs an origin: answers what the URL asks for, until interrupted.
///
/// URLs: /size/1024 (body bytes; KiB and MiB are understood), /delay/50ms, /status/503, /chunked/1, in any
/// combination: /delay/5ms/status/200/size/1KiB, or as a query: /?size=1KiB&delay=5ms. Anything else gives 1 KiB.
/// Request bodies are read and dropped; the field x-echo comes back as it was sent. HTTP/1.1 and HTTP/2, plain text and
/// TLS are told apart by what a client begins with, and by ALPN.
#[derive(Args)]
struct ServerArgs {
    /// Address to listen on; port 0 takes a free one, printed on the first line.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Also listen on this address, at the same port.
    #[arg(long, value_name = "IP")]
    also: Option<IpAddr>,
    /// Also listen on this Unix socket; a stale file is replaced.
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Event loops, one thread each.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// CPUs to pin the threads to, such as 1 or 0,2-3.
    #[arg(long, value_parser = parse_cpu_list)]
    cpus: Option<Cpus>,
    /// Say `connection: close` on every Nth response of a connection, and close it.
    #[arg(long, value_name = "N")]
    close_after: Option<u32>,
    /// Close connections without a word once they have been idle for this long.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    idle_close: Option<Duration>,
    /// Write each response at this many bytes a second.
    #[arg(long, value_name = "BYTES_PER_SECOND", value_parser = parse_size)]
    slow: Option<u64>,
    /// Read from each connection at this many bytes a second.
    #[arg(long, value_name = "BYTES_PER_SECOND", value_parser = parse_size)]
    slow_read: Option<u64>,
    /// Answer so many requests at a time (each thread), each for --service-time; the others wait in line. HTTP/1.1.
    #[arg(long, value_name = "N", requires = "service_time", value_parser = clap::value_parser!(u32).range(1..))]
    at_a_time: Option<u32>,
    /// How long each of them takes.
    #[arg(long, value_name = "DURATION", requires = "at_a_time", value_parser = parse_duration)]
    service_time: Option<Duration>,
    /// Speak TLS to whoever begins with it: a certificate, leaf first (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// End when standard input ends: for a parent that may die without a word.
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Sends requests and verifies each response; exit code 1 if any failed.
///
/// With --rate the loop is open: requests are due at a constant rate, whatever the answers do, and latency counts from
/// the moment a request was due. Without it the loop is closed: each connection sends its next request when it has its
/// answer, and latency counts from sending.
///
/// A response is right when its status is as expected, its framing is HTTP's, its body is as long as the URL asked
/// for, and its x-echo field is that of the request (--no-check leaves out the last two, for servers other than
/// `loadtest server`).
#[derive(Args)]
struct ClientArgs {
    /// http://host:port/path, https://host:port/path or unix:/socket/path:/request/path
    #[arg(value_parser = Url::parse)]
    url: Url,
    /// Requests a second, over all threads. Absent: closed loop.
    #[arg(long, value_name = "REQUESTS_PER_SECOND")]
    rate: Option<f64>,
    /// Connections, over all threads.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Event loops, one thread each.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// CPUs to pin the threads to, such as 1 or 0,2-3.
    #[arg(long, value_parser = parse_cpu_list)]
    cpus: Option<Cpus>,
    /// How long to measure; 10s unless --requests is given.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// How long to send before measuring begins; failures count here too.
    #[arg(long, value_parser = parse_duration)]
    warmup: Option<Duration>,
    /// Stop after this many requests, warm-up included.
    #[arg(long)]
    requests: Option<u64>,
    /// Request method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// Another request field, `name: value`; may be repeated.
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// Bytes of request body; KiB and MiB are understood.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    body: u64,
    /// A request that takes longer has failed.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// The status that counts as success; 200 to 399 if absent.
    #[arg(long)]
    status: Option<u16>,
    /// Send no x-echo and accept any body length.
    #[arg(long)]
    no_check: bool,
    /// Open loop: requests that wait for a free connection, at most; further ones fail as queue_full.
    #[arg(long, default_value_t = 100_000)]
    queue_max: usize,
    /// Open loop: do not sleep in the last 100 µs before a request is due. Only on a CPU of one's own.
    #[arg(long)]
    spin: bool,
    /// Speak HTTP/2: chosen by ALPN on https, by prior knowledge (h2c) on http and unix.
    #[arg(long)]
    http2: bool,
    /// Exchanges at a time on each HTTP/2 connection.
    #[arg(long, default_value_t = 1, requires = "http2", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,
    /// Make a connection for each request, with a full handshake on https; latency counts it too.
    #[arg(long)]
    new_connection: bool,
    /// Read at this many bytes a second from each connection.
    #[arg(long, value_name = "BYTES_PER_SECOND", value_parser = parse_size)]
    slow: Option<u64>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write latency by percentile as a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args)]
struct TlsArgs {
    /// https: the roots to believe (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// https: believe anybody.
    #[arg(long)]
    insecure: bool,
    /// https: a certificate to show, leaf first (PEM).
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl TlsArgs {
    fn config(&self, http2: bool) -> Result<Arc<rustls::ClientConfig>, String> {
        let files = tls::ClientFiles {
            ca: self.ca.as_deref(),
            insecure: self.insecure,
            pair: self.cert.as_deref().zip(self.key.as_deref()),
        };
        tls::client_config(&files, http2)
    }
}

/// Opens idle connections and holds them; exit code 1 if any could not be opened or was closed by the other side.
#[derive(Args)]
struct IdleArgs {
    /// host:port
    #[arg(value_parser = target::resolve)]
    address: SocketAddr,
    /// How many.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// How long to hold them.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    hold: Duration,
    /// Send one request on each first, and read its answer.
    #[arg(long)]
    after_request: bool,
    /// What that request asks for.
    #[arg(long, default_value = "/size/1024")]
    target: String,
    /// Speak TLS; the certificate must have this name.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
}

#[derive(Clone)]
struct Cpus(Vec<usize>);

fn parse_cpu_list(text: &str) -> Result<Cpus, String> {
    parse_cpus(text).map(Cpus)
}

fn main() -> ExitCode {
    let command = Command::parse();
    socket::raise_file_limit();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process at once, should the first not be noticed.
        let armed = signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)));
        if let Err(error) = armed {
            eprintln!("loadtest: signals: {error}");
            return ExitCode::from(2);
        }
    }
    let done = match command.what {
        What::Server(args) => server(args, &stop),
        What::Client(args) => client(*args, &stop),
        What::Idle(args) => hold_idle(&args, &stop),
        What::Compare(args) => compare::run(&args, &stop),
        What::Rotation(args) => trial::rotation::run(&args, &stop),
        What::SlowReader(args) => trial::slow_reader::run(&args, &stop),
        What::OneBad(args) => trial::one_bad::run(&args, &stop),
        What::OneSlow(args) => trial::one_slow::run(&args, &stop),
        What::Overload(args) => trial::overload::run(&args, &stop),
        What::Mirror(args) => trial::mirror::run(&args, &stop),
        What::Guard(args) => guard::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

fn server(args: ServerArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    let origin = origin::start(&origin::Options {
        listen: Some(args.listen),
        also: args.also,
        unix: args.unix,
        threads: args.threads,
        cpus: args.cpus.map_or(Vec::new(), |c| c.0),
        close_after: args.close_after,
        idle_close: args.idle_close,
        slow: args.slow,
        slow_read: args.slow_read,
        tls: match (&args.tls_cert, &args.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::server_config(certificate, key)?),
            _ => None,
        },
        conduct: None,
        capacity: args
            .at_a_time
            .zip(args.service_time)
            .map(|(at_a_time, service_time)| origin::conduct::Capacity { at_a_time, service_time }),
    })?;
    if let Some(address) = origin.address {
        println!("listening on {address}");
    }
    if args.until_stdin_ends {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink()); // an error is an end too
            stop.store(true, Ordering::Relaxed);
        });
    }
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(origin);
    Ok(ExitCode::SUCCESS)
}

fn client(args: ClientArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode, String> {
    if args.rate.is_some_and(|r| !r.is_finite() || r <= 0.0) {
        return Err("--rate must be above zero".to_owned());
    }
    let tls = match args.url.tls {
        true => Some((args.tls.config(args.http2)?, args.url.server_name()?)),
        false => None,
    };
    let options = client::Options {
        tls,
        http2: args.http2,
        streams_max: args.streams as usize,
        new_connection: args.new_connection,
        slow: args.slow,
        rate: args.rate,
        connections: args.connections.max(1),
        threads: args.threads,
        cpus: args.cpus.map_or(Vec::new(), |c| c.0),
        duration: args.duration.or_else(|| args.requests.is_none().then_some(Duration::from_secs(10))),
        warmup: args.warmup.unwrap_or_default(),
        requests: args.requests,
        method: args.method,
        headers: args.headers,
        body: args.body,
        timeout: args.timeout,
        status: args.status,
        check: !args.no_check,
        queue_max: args.queue_max,
        spin: args.spin,
        url: args.url,
    };
    let (mut from, mut to) = (0, 0);
    let tally = client::run(&options, stop, std::io::stderr().is_terminal(), &mut |mark| match mark {
        client::Mark::From => from = now_ns(),
        client::Mark::To => to = now_ns(),
    })?;
    let seconds = tally.seconds(&client::Window {
        start: from,
        from,
        to: if options.duration.is_some() { to } else { u64::MAX },
    });
    println!("{}", tally.text(&options, seconds));
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    if let Some(path) = &args.json {
        write(path, format!("{:#}\n", tally.json(&options, seconds)))?;
    }
    if let Some(path) = &args.svg {
        let title = format!("Latency by percentile, {}", options.url.target);
        write(path, plot::svg(&title, &[(options.url.authority, &tally.latency)]))?;
    }
    Ok(if tally.failed() > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn hold_idle(args: &IdleArgs, stop: &AtomicBool) -> Result<ExitCode, String> {
    let request = args.after_request.then_some(args.target.as_str());
    let tls = match &args.server_name {
        Some(name) => {
            let name = rustls::pki_types::ServerName::try_from(name.clone())
                .map_err(|e| format!("`{name}`: {e}"))?;
            Some((args.tls.config(false)?, name))
        }
        None => None,
    };
    let streams = idle::open(args.address, tls.as_ref(), args.connections, request)?;
    println!("{} connections open", streams.len());
    let until = now_ns() + nanos(args.hold);
    while now_ns() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_nanos((until - now_ns().min(until)).min(20 * MILLISECOND)));
    }
    let open = idle::still_open(&streams);
    println!("{open} still open");
    Ok(if open == streams.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
#[path = "loadtest_test.rs"]
mod tests;

#[cfg(test)]
#[path = "protocols_test.rs"]
mod protocols_tests;
