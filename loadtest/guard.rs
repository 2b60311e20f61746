//! A small process between `compare` and each peer, so that no peer outlives the comparison, however it ends: when the
//! guard's standard input ends, it stops what it started.
//!
//! Called as `loadtest guard`, by [`start`] only. It refuses to look at what it guards.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_current_process_group, kill_process};

use crate::clock::now_ns;
use crate::socket::pin;

/// Runs a command on one CPU until standard input ends.
#[derive(Args)]
pub(crate) struct GuardArgs {
    /// CPU to pin it to.
    #[arg(long)]
    cpu: usize,
    /// Where its output goes.
    #[arg(long)]
    log: PathBuf,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How long a peer may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A guarded process; dropping this stops it and waits until it is gone.
pub(crate) struct Guarded {
    guard: Child,
    /// Kept open, so that the guard can always write to it.
    _stdout: BufReader<ChildStdout>,
    pub(crate) pid: u32,
    /// Just before it was started, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) started_at: u64,
}

pub(crate) fn start(command: &[String], cpu: usize, log: &Path) -> Result<Guarded, String> {
    let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let mut guard = Command::new(own)
        .args(["guard", "--cpu", &cpu.to_string(), "--log"])
        .arg(log)
        .arg("--")
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0) // Ctrl-C reaches the comparison only, which then ends this in order
        .spawn()
        .map_err(|e| format!("guard: {e}"))?;
    let stdout = guard.stdout.take().ok_or("the guard has no output")?;
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    let read = stdout.read_line(&mut line).map_err(|e| format!("guard: {e}"));
    let parsed =
        line.trim().split_once(' ').and_then(|(pid, at)| Some((pid.parse().ok()?, at.parse().ok()?)));
    match (read, parsed) {
        (Ok(_), Some((pid, started_at))) => Ok(Guarded { guard, _stdout: stdout, pid, started_at }),
        _ => {
            let _ = guard.kill();
            let _ = guard.wait();
            Err(format!("cannot start {}", command.first().map_or("nothing", String::as_str)))
        }
    }
}

impl Guarded {
    /// False once the guarded process has ended.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.guard.try_wait(), Ok(None))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// `loadtest guard`: prints process id and start time, waits for the end of its input, stops the process.
pub(crate) fn run(args: &GuardArgs) -> Result<ExitCode, String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (command, log, cpu) = (args.command.clone(), args.log.clone(), args.cpu);
    // Its own thread, because the process inherits the affinity of the thread that starts it.
    std::thread::spawn(move || match pin(cpu).and_then(|()| spawn_and_tell(&command, &log)) {
        Ok(mut child) => {
            let _ = sender.send(Ok(child.id()));
            let _ = child.wait();
            std::process::exit(0);
        }
        Err(error) => drop(sender.send(Err(error))),
    });
    let pid = receiver.recv().map_err(|_| "the starting thread is gone".to_owned())??;
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink()); // an error is an end too
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, Signal::TERM); // gone already is as good
    }
    std::thread::sleep(STOP_TIMEOUT); // the other thread ends this process as soon as the peer is gone
    let _ = kill_current_process_group(Signal::KILL);
    Ok(ExitCode::FAILURE)
}

/// Process id and start time are printed before anyone waits for the process, however soon it ends.
fn spawn_and_tell(command: &[String], log: &Path) -> Result<Child, String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let out = File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let err = out.try_clone().map_err(|e| e.to_string())?;
    let mut child = Command::new(program);
    child.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err);
    let at = now_ns();
    let child = child.spawn().map_err(|e| format!("{program}: {e}"))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{} {at}", child.id()).and_then(|()| stdout.flush()).map_err(|e| e.to_string())?;
    Ok(child)
}
