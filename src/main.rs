//! The `ringmesh` command: reads arguments, then calls the library. Refuses to do anything that a test could not call.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringmesh::config::{self, Look};
use ringmesh::control::{self, Proxy, Start};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    control::log();
    match arguments.command {
        Command::Run { config } => run(config),
        Command::Check { files } => check(&files),
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
}

const EXAMPLES: &str = "\
Examples:
  ringmesh check ringmesh.toml            is it right?
  ringmesh run --config ringmesh.toml     serve
  curl -s 127.0.0.1:15000/                what the admin address offers
  curl -s 127.0.0.1:15000/services        rate, latency, the proxy's own time, errors
  kill -HUP $(pidof ringmesh)             read the configuration again

Environment:
  RINGMESH_LOG      what is logged to standard error: error, warn, info (default), debug, or by module as in
                    `warn,ringmesh=debug`
  NO_COLOR          no colours in the log
  ${NAME}           in a string of the configuration stands for the variable NAME; ${NAME:-default} if it may be missing";

fn run(files: Vec<PathBuf>) -> ExitCode {
    match Proxy::start(Start::files(files)) {
        Ok(proxy) => proxy.join().exit_code().into(),
        Err(error) => {
            eprintln!("{}", error.render(Look::of(&std::io::stderr(), &config::process_environment)));
            error.exit_code().into()
        }
    }
}

fn check(files: &[PathBuf]) -> ExitCode {
    let look = Look::of(&std::io::stdout(), &config::process_environment);
    config::check_command(files, &config::process_environment, &mut std::io::stdout().lock(), look).into()
}
