//! The `ringmesh` command: reads arguments, then calls the library. Refuses to do anything that a test could not call.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ringmesh::config::{self, Look};
use ringmesh::control::explain::command::{self, How};
use ringmesh::control::{self, Proxy, Start, authority, canary};
use ringmesh::demo;
use ringmesh::shard::blocks::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    control::log();
    match arguments.command {
        Command::Run { config, until_stdin_ends } => run(config, until_stdin_ends),
        Command::Check { files } => check(&files),
        Command::Explain { files, diff, json, all, request } => {
            explain(&files, &request, How { json, all, diff })
        }
        Command::Doctor { json } => doctor(json),
        Command::Ca { command } => ca(command),
        Command::Canary { command } => {
            canary::command::run(&command, &mut std::io::stdout().lock(), &mut std::io::stderr()).into()
        }
        Command::Demo { chapter: Some(chapter), length, without_it, .. } => {
            demo::chapter::run(&demo::chapter::Options { chapter, length, without_it }).into()
        }
        Command::Demo { chapter: None, length, rate, without_tls, .. } => {
            demo::run(&demo::Options { length, rate, without_tls }).into()
        }
    }
}

/// A service-mesh data plane: one io_uring shard per core, a configuration you can read.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT
    ///
    /// The first SIGTERM or SIGINT drains: not ready, no new connections, what is in flight is
    /// finished within timeouts.drain. A second one ends at once. SIGHUP reads the configuration
    /// again, as does a change of its files; one with errors changes nothing. SIGUSR1 opens the
    /// access log again.
    ///
    /// Exit code: 0 after a drain; 1 when the machine refuses something, or after a second
    /// signal; 2 when the configuration has errors.
    #[command(verbatim_doc_comment)]
    Run {
        /// TOML files, read together in this order; a directory stands for its *.toml
        #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
        config: Vec<PathBuf>,
        /// Also drain when standard input ends: a supervisor that holds its other end need only die
        ///
        /// Give it a pipe whose writing end only the supervisor has. However the supervisor ends,
        /// by SIGKILL too, the kernel closes the pipe and this process drains.
        #[arg(long, hide_short_help = true, verbatim_doc_comment)]
        until_stdin_ends: bool,
    },
    /// Read configuration files and report every error and doubt, without serving
    ///
    /// Exit code: 0 when they can be used (perhaps with warnings), 2 when they have errors.
    #[command(verbatim_doc_comment)]
    Check {
        /// TOML files, read together in this order; a directory stands for its *.toml
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Tell what becomes of a request that need not exist, and why
    ///
    /// Which listener, rule, route, service, timeouts and endpoints apply to it, and for each other route that is near what
    /// comes in the way. Reads the files as `run` would; needs no running proxy, opens no socket, resolves no name.
    /// A running proxy answers the same on its admin address: /explain.
    ///
    /// Behind `--`: METHOD URL, and -H 'name: value' (repeat it), --from SPIFFE_ID, --source IP, --listener NAME,
    /// --port NUMBER.
    ///
    /// Exit code: 0 when the request would be served, 1 when it would be refused here (its head, denied, no route); with
    /// --diff 0 when nothing changes for it, 1 when something does; 2 when files or request are wrong.
    #[command(verbatim_doc_comment)]
    Explain {
        /// TOML files, read together in this order; a directory stands for its *.toml
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Show only what would be otherwise with this file; repeat it for several, read together
        #[arg(long, value_name = "OTHER")]
        diff: Vec<PathBuf>,
        /// Print a JSON object in place of text
        #[arg(long)]
        json: bool,
        /// Also tell of routes that are far away
        #[arg(long)]
        all: bool,
        /// The request: METHOD URL [-H 'name: value'] [--from SPIFFE_ID] [--source IP] [--listener NAME] [--port NUMBER]
        #[arg(last = true, required = true, value_name = "REQUEST")]
        request: Vec<String>,
    },
    /// Tell what this machine offers, what is missing and how to fix it
    ///
    /// Changes nothing. Exit code: 0 when ringmesh can run here (perhaps more slowly than it could),
    /// 1 when it cannot.
    #[command(verbatim_doc_comment)]
    Doctor {
        /// Print a JSON object in place of the table
        #[arg(long)]
        json: bool,
    },
    /// Give identities: the certificate authority that ringmesh carries, and the SPIFFE Workload API
    ///
    /// Root, issuer and certificates of one trust domain, in a folder. Proxies with the source embedded
    /// use it without this command.
    #[command(verbatim_doc_comment, after_help = authority::command::EXAMPLES)]
    Ca {
        #[command(subcommand)]
        command: authority::command::Command,
    },
    /// Look at canaries of a running proxy, and tell them what to do
    ///
    /// A canary is a service that takes over from another step by step; [[canary]] of the configuration says how.
    ///
    /// Exit code: 0 when it was done, 1 when the proxy refuses or cannot be reached.
    #[command(verbatim_doc_comment)]
    Canary {
        #[command(subcommand)]
        command: canary::command::Command,
    },
    /// Show a small mesh at work: three workloads, a sidecar each, a client, and a live table
    ///
    /// The client calls front, front calls orders, orders calls stock, each through its own sidecar:
    /// five passes through ringmesh for one request. Everything listens on 127.0.0.1, on free ports.
    /// Nothing is left behind; what a demo that was killed leaves in the folder for temporary
    /// files is removed by the next one.
    ///
    /// The sidecars talk mTLS: from front to orders by HTTP/2, from orders to stock by HTTP/1.1.
    /// Their certificates live for six seconds and come from an authority of the demo's own; each
    /// workload sees who calls it. A tap on the way between two sidecars reads what anybody on the
    /// network could, and a stranger without a certificate tries his luck once a second.
    ///
    /// Exit code: 0 when all of this holds, 1 otherwise, with what does not:
    ///   - every request was answered with 200, and every workload was called by whom it should be
    ///   - no byte crossed between sidecars in plain text, nor the marker that each request carries
    ///   - certificates were renewed in time, and that dropped no connection
    ///   - the stranger was refused
    ///   - every process ended as it should
    ///
    /// With --chapter another piece is played: one proxy, endpoints that do badly on purpose, and a
    /// client that calls at a constant rate. Each second it shows what callers and endpoints see; at
    /// the end a table with a row for each phase, and whether held what must:
    ///   - breaker: one of five endpoints answers 500, is well, hangs, is well. After two seconds less
    ///     than 1 % of the requests fail, it is passed over, and it has its share again when it is well
    ///   - retries: one answer of ten is 503: a tenth of the requests fails without retries, next to
    ///     none with them. Then all are 503: retries without a budget triple what the service gets,
    ///     with the default budget it is at most 1.4 times as much
    ///   - canary: a new version takes over step by step; one that answers 500 to one of three and one that
    ///     is a hundred times as slow are taken back, and of all requests less than 3 % fail meanwhile
    ///   - overload: three times as much as the service can do. Without caps callers wait until the
    ///     timeout; with them the service does 80 % or more of what it can, and who is refused hears it at once
    ///   - faults: a route holds requests up, answers them, forgets them and cuts bodies on purpose: as many as it
    ///     was told, and no more than its budget has at a time; then none
    ///
    /// Exit code with --chapter: 0 when the chapter was played to its end and all of this held, 1
    /// otherwise, also after Ctrl-C, 2 when an argument cannot be used.
    #[command(verbatim_doc_comment)]
    Demo {
        /// Play a chapter about one capability, and judge what is seen
        #[arg(long, value_name = "NAME", value_enum)]
        chapter: Option<demo::chapter::Chapter>,
        /// End after so long [default: at Ctrl-C; a chapter: 1m, of 10s (canary 20s) to 10m, with phases in proportion]
        #[arg(long = "for", value_name = "DURATION", value_parser = config::duration_argument)]
        length: Option<Duration>,
        /// Requests a second, whatever the answers take
        #[arg(long, value_name = "NUMBER", default_value_t = 500, conflicts_with = "chapter", value_parser = clap::value_parser!(u32).range(1..=i64::from(demo::RATE_MAX)))]
        rate: u32,
        /// Leave out TLS between orders and stock: the demo must notice, and fail
        #[arg(long, conflicts_with = "chapter")]
        without_tls: bool,
        /// Leave out what the chapter is about (breaker, retries, caps, faults): it must notice, and fail
        #[arg(long, requires = "chapter")]
        without_it: bool,
    },
}

const EXAMPLES: &str = "\
Examples:
  ringmesh demo                           see it work, with nothing but this binary
  ringmesh demo --chapter breaker         see an endpoint fail, be passed over and come back
  ringmesh doctor                         what this machine offers, and what is missing
  ringmesh check ringmesh.toml            is it right?
  ringmesh explain ringmesh.toml -- GET https://shop/cart -H 'x-user: 7'   where would that go?
  ringmesh run --config ringmesh.toml     serve
  ringmesh ca init --trust-domain mesh.local   an authority for identities, see `ringmesh ca --help`
  curl -s 127.0.0.1:15000/                what the admin address offers
  curl -s 127.0.0.1:15000/services        rate, latency, the proxy's own time, errors
  kill -HUP $(pidof ringmesh)             read the configuration again

Environment:
  RINGMESH_LOG      what is logged to standard error: error, warn, info (default), debug, or by module as in
                    `warn,ringmesh=debug`
  NO_COLOR          no colours in the log
  ${NAME}           in a string of the configuration stands for the variable NAME; ${NAME:-default} if it may be missing";

fn run(files: Vec<PathBuf>, until_stdin_ends: bool) -> ExitCode {
    match Proxy::start(Start::files(files)) {
        Ok(proxy) => {
            if until_stdin_ends && let Err(error) = proxy.drain_after(stdin_ends) {
                eprintln!("cannot watch standard input: {error}");
                return ExitCode::FAILURE;
            }
            proxy.join().exit_code().into()
        }
        Err(error) => {
            let told = error.render(Look::of(&std::io::stderr(), &config::process_environment));
            eprintln!("{}\n{}", told.trim_end(), error.conclusion());
            error.exit_code().into()
        }
    }
}

/// Returns at the end of standard input, or when it cannot be read.
fn stdin_ends() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
}

fn explain(files: &[PathBuf], request: &[String], how: How) -> ExitCode {
    let look = Look::of(&std::io::stdout(), &config::process_environment);
    let out = &mut std::io::stdout().lock();
    command::run(files, request, &how, &config::process_environment, out, look).into()
}

fn doctor(json: bool) -> ExitCode {
    // Nobody reads any more: nothing to tell, and nobody to tell it to.
    control::doctor::run(json, &mut std::io::stdout().lock()).unwrap_or(1).into()
}

fn ca(command: authority::command::Command) -> ExitCode {
    // Standard error is not locked: the log goes there, too.
    authority::command::run(command, &mut std::io::stdout().lock(), &mut std::io::stderr()).into()
}

fn check(files: &[PathBuf]) -> ExitCode {
    let look = Look::of(&std::io::stdout(), &config::process_environment);
    config::check_command(files, &config::process_environment, &mut std::io::stdout().lock(), look).into()
}
