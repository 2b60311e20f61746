//! One sidecar of the demo: a process of this same binary, its configuration, and the end of it.
//!
//! It is started with `run --until-stdin-ends` and holds the reading end of a pipe: whatever becomes of the demo, SIGKILL
//! included, the pipe closes and the sidecar drains. It has a process group of its own, so that Ctrl-C reaches the demo
//! alone, which stops things in their order. Its ports are free ones, told in its log. It may be given another
//! configuration while it runs.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Trouble, trust};

/// From its start to `ready`: milliseconds, but not on a machine that swaps.
const START_MAX: Duration = Duration::from_secs(15);
/// For a drain without traffic. Longer than what its configuration grants.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether it has ended.
const PACE: Duration = Duration::from_millis(5);
/// For a page of its admin address.
const PAGE_MAX: Duration = Duration::from_millis(500);
/// For a new configuration to be read, and to be served by.
const RELOAD_MAX: Duration = Duration::from_secs(10);
/// Lines of its log that are kept to explain its end, and that may wait to be read.
const LINES_MAX: usize = 20;

/// What a sidecar serves.
pub(super) struct Plan<'p> {
    /// The workload that it stands beside.
    pub name: &'static str,
    /// Where that listens.
    pub workload: SocketAddr,
    /// Whether callers need a certificate of the mesh; otherwise they come in plain text.
    pub inbound_tls: bool,
    /// Whom the workload calls.
    pub calls: Option<Called>,
    /// The folder of the authority that all sidecars share.
    pub authority: &'p Path,
    /// The binary.
    pub program: &'p Path,
    /// Where its configuration is written to.
    pub config: &'p Path,
}

/// Whom a workload calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Called {
    /// The workload.
    pub name: &'static str,
    /// Where its sidecar listens, or the tap before it.
    pub address: SocketAddr,
    /// Whether it is called by mTLS.
    pub tls: bool,
    /// Whether by HTTP/1.1, on connections that come and go: each new one shows the newest certificate.
    pub short_lived: bool,
}

/// A sidecar that runs. Dropped, it is killed.
pub(super) struct Sidecar {
    /// The workload that it stands beside.
    pub name: &'static str,
    /// Where its admin pages are.
    pub admin: SocketAddr,
    /// Where it takes calls for its workload.
    pub inbound: SocketAddr,
    /// Where its workload calls out.
    pub outbound: Option<SocketAddr>,
    process: Process,
}

struct Process {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    last: VecDeque<String>,
    ended: bool,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// CPU time since its start, all threads.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_bytes: u64,
}

impl Plan<'_> {
    /// Its configuration.
    fn text(&self) -> String {
        let Self { name, workload, calls, .. } = self;
        let (id, authority, ttl) = (trust::id(name), self.authority.display(), trust::LEAF_TTL.as_secs());
        let trust_domain = trust::TRUST_DOMAIN;
        let inbound_tls = match (self.inbound_tls, self.is_outermost()) {
            (true, _) => "tls = \"strict\"       # who has no certificate of the mesh is refused",
            (false, true) => "tls = \"off\"          # callers come from outside of the mesh",
            (false, false) => "tls = \"off\"          # for once: to see that the demo notices",
        };
        let mut text = format!(
            "\
# The sidecar of {name} in `ringmesh demo`. Change something and save: it takes effect at once.
shards = 1

[admin]
address = \"127.0.0.1:0\"

[timeouts]
drain = \"5s\"

# Who it is. The authority is one for all sidecars of the demo; certificates are renewed at half of their life.
[identity]
source = \"embedded\"
folder = \"{authority}\"
trust_domain = \"{trust_domain}\"
id = \"{id}\"
leaf_ttl = \"{ttl}s\"

# What others send to {name}.
[[listener]]
name = \"inbound\"
address = \"127.0.0.1:0\"
{inbound_tls}

[[service]]
name = \"{name}\"
endpoints = [\"{workload}\"]

[[route]]
name = \"{name}\"
service = \"{name}\"
"
        );
        if let Some(Called { name: called, address, tls, short_lived }) = calls {
            let _ = write!(
                text,
                "
# What {name} sends to others: it calls this listener and names them in Host.
[[listener]]
name = \"outbound\"
address = \"127.0.0.1:0\"

# The sidecar of {called}, behind a tap that looks whether anything can be read on the way.
[[service]]
name = \"{called}\"
endpoints = [\"{address}\"]
"
            );
            if *tls {
                let id = trust::id(called);
                let _ = write!(
                    text,
                    "tls = \"mesh\"\nidentities = [\"{id}\"]   # whoever else answers gets nothing\n"
                );
            }
            if *short_lived {
                let _ = write!(
                    text,
                    "\
# HTTP/1.1 on connections that come and go, so that each new one shows the newest certificate. Without these two lines: a few
# HTTP/2 connections that outlive their certificates, as between front and orders.
protocol = \"http1\"
pool = {{ idle_timeout = \"2s\" }}
"
                );
            }
            let _ = write!(
                text,
                "
[[route]]
name = \"{called}\"
hosts = [\"{called}\"]
service = \"{called}\"
"
            );
        }
        text
    }

    /// Whether callers come from outside of the mesh.
    fn is_outermost(&self) -> bool {
        !trust::HOPS.iter().any(|hop| hop.called == self.name)
    }
}

impl Sidecar {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When its configuration cannot be written, or it does not become ready: with what it said.
    pub(super) async fn start(plan: &Plan<'_>) -> Result<Self, Trouble> {
        Self::launch(plan.name, plan.program, plan.config, &plan.text()).await
    }

    /// Starts one with this configuration, which must have a listener `inbound` and ask for free ports, and waits until it is
    /// ready.
    ///
    /// # Errors
    /// As [`Sidecar::start`].
    pub(super) async fn launch(
        name: &'static str,
        program: &Path,
        config: &Path,
        text: &str,
    ) -> Result<Self, Trouble> {
        write(config, text)?;
        let mut process = Process::start(name, program, config)?;
        let mut known = Known::default();
        let all_told = async {
            while let Some(line) = process.lines.recv().await {
                let is_ready = known.learn(&line);
                process.keep(line);
                if is_ready {
                    return true;
                }
            }
            false
        };
        match timeout(START_MAX, all_told).await {
            Ok(true) => {}
            Ok(false) => return Err(process.explain_end("before it was ready").await),
            Err(_) => {
                let (seconds, said) = (START_MAX.as_secs(), process.said());
                return Err(Trouble::new(
                    format!("the sidecar of {name} is not ready after {seconds} s{said}"),
                    "is the machine very busy? Try again, or see `ringmesh doctor`",
                ));
            }
        }
        match known {
            Known { admin: Some(admin), inbound: Some(inbound), outbound } => {
                Ok(Self { name, admin, inbound, outbound, process })
            }
            _ => Err(Trouble::new(
                format!("the sidecar of {name} does not say where it listens{}", process.said()),
                "please report this",
            )),
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Looks whether it runs as it should.
    ///
    /// # Errors
    /// When it has ended: how, and with what it said.
    pub(super) async fn check(&mut self) -> Result<(), Trouble> {
        while let Ok(line) = self.process.lines.try_recv() {
            self.process.keep(line);
        }
        match self.process.child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(self.process.explain_end("in the middle of the demo").await),
        }
    }

    /// A page of its admin address.
    ///
    /// # Errors
    /// When it does not answer within half a second.
    pub(super) fn page(&self, path: &str) -> std::io::Result<Value> {
        let (_, body) = self.ask("GET", path, PAGE_MAX)?;
        Ok(serde_json::from_str(&body)?)
    }

    /// Gives it another configuration, and waits until every shard serves by it.
    ///
    /// # Errors
    /// When it cannot be written, or is not taken: with what the sidecar says of it.
    pub(super) async fn reload(&self, config: &Path, text: &str) -> Result<(), Trouble> {
        let trouble = |what: String| {
            Trouble::new(
                format!("the sidecar of {} did not take its new configuration: {what}", self.name),
                "is the machine very busy? If not, please report this",
            )
        };
        write(config, text)?;
        let (status, said) =
            self.ask("POST", "/reload", RELOAD_MAX).map_err(|error| trouble(error.to_string()))?;
        let generation =
            said.trim().strip_prefix("generation ").and_then(|number| number.parse::<u64>().ok());
        let Some(generation) = generation.filter(|_| status == 200) else {
            return Err(trouble(said));
        };
        let all_serve_by_it = async {
            loop {
                let shards = self.page("/shards?format=json").unwrap_or_default();
                let shards = shards["shards"].as_array().map_or(&[][..], Vec::as_slice);
                let serves = |shard: &Value| shard["generation"].as_u64().is_some_and(|g| g >= generation);
                if !shards.is_empty() && shards.iter().all(serves) {
                    return;
                }
                sleep(PACE).await;
            }
        };
        timeout(RELOAD_MAX, all_serve_by_it)
            .await
            .map_err(|_| trouble(format!("no shard serves by it after {} s", RELOAD_MAX.as_secs())))
    }

    /// Status and body of an answer of its admin address, within this time.
    fn ask(&self, method: &str, path: &str, within: Duration) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        stream.write_all(
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin)
                .as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
    }

    /// What it has used since its start.
    pub(super) fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }

    /// Lets it drain, and waits for its end.
    ///
    /// # Errors
    /// When it does not end, or not with exit code 0. It has ended in any case.
    pub(super) async fn stop(mut self) -> Result<(), Trouble> {
        let Self { name, process, .. } = &mut self;
        drop(process.stdin.take());
        let Ok(status) = timeout(STOP_MAX, process.end()).await else {
            process.kill();
            return Err(Trouble::new(
                format!("the sidecar of {name} did not drain within {} s and was killed", STOP_MAX.as_secs()),
                "is the machine very busy? If not, please report this",
            ));
        };
        if status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        Err(process.explain_end("when it was to drain").await)
    }
}

impl Process {
    fn start(name: &'static str, program: &Path, config: &Path) -> Result<Self, Trouble> {
        let mut child = Command::new(program)
            .args(["run", "--until-stdin-ends", "--config"])
            .arg(config)
            // What is read from its log must be there, in any environment.
            .env("RINGMESH_LOG", "info")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Trouble::new(
                    format!("cannot start {} for the sidecar of {name}: {error}", program.display()),
                    match error.kind() {
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::ExecutableFileBusy => {
                            "was the binary moved or rebuilt meanwhile? Start the demo again"
                        }
                        _ => "raise the limits of files and processes: `ulimit -n 1024`, `ulimit -u`",
                    },
                )
            })?;
        let (sender, lines) = mpsc::channel(10 * LINES_MAX);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let process = Self { name, child, stdin, lines, last: VecDeque::new(), ended: false };
        if let Some(stderr) = stderr {
            // Ends with the process, whose end of the pipe it reads.
            std::thread::Builder::new()
                .name(format!("{name}-log"))
                .spawn(move || read_lines(stderr, &sender))
                .map_err(|error| {
                    Trouble::new(format!("cannot start a thread: {error}"), "raise `ulimit -u`")
                })?;
        }
        Ok(process)
    }

    fn keep(&mut self, line: String) {
        if self.last.len() == LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Waits for its end; `None` when that cannot be known.
    async fn end(&mut self) -> Option<ExitStatus> {
        loop {
            match self.child.try_wait() {
                Ok(None) => sleep(PACE).await,
                Ok(Some(status)) => {
                    self.ended = true;
                    return Some(status);
                }
                Err(_) => return None,
            }
        }
    }

    async fn explain_end(&mut self, when: &str) -> Trouble {
        let status = timeout(Duration::from_secs(1), self.end()).await.ok().flatten();
        // Its last words may still be on the way; its pipe closes with it.
        while let Ok(Some(line)) = timeout(Duration::from_secs(1), self.lines.recv()).await {
            self.keep(line);
        }
        let how = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("ended with exit code {code}"),
            Some((None, Some(signal))) => format!("was ended by signal {signal}"),
            _ => "closed its log".to_owned(),
        };
        let help = match status.and_then(|status| status.signal()) {
            Some(9) => "signal 9 is SIGKILL: from another program, or because memory ran out (see `dmesg`)",
            Some(_) => "start the demo again; if it happens again, please report it with the lines above",
            None => "its own words above say why; `ringmesh doctor` tells what this machine lacks",
        };
        Trouble::new(format!("the sidecar of {} {how} {when}{}", self.name, self.said()), help)
    }

    /// Its last words, indented.
    fn said(&self) -> String {
        if self.last.is_empty() {
            return String::new();
        }
        self.last.iter().fold("; it said:".to_owned(), |text, line| text + "\n    " + line)
    }

    fn kill(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = true;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Puts a configuration into its place: it is there whole or not at all, whenever a sidecar looks.
fn write(config: &Path, text: &str) -> Result<(), Trouble> {
    let written = config.with_extension("new");
    std::fs::write(&written, text).and_then(|()| std::fs::rename(&written, config)).map_err(|error| {
        Trouble::new(
            format!("cannot write {}: {error}", config.display()),
            "make room there, or name another folder in TMPDIR",
        )
    })
}

/// What its log has told so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    admin: Option<SocketAddr>,
    inbound: Option<SocketAddr>,
    outbound: Option<SocketAddr>,
}

impl Known {
    /// Whether the line says that it is ready.
    fn learn(&mut self, line: &str) -> bool {
        let mut words = line.split_whitespace().skip(2);
        let said = words.next();
        let field = |name: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|value| value.parse().ok())
        };
        match said {
            Some("listening") if line.contains("listener=inbound ") => self.inbound = field("address"),
            Some("listening") if line.contains("listener=outbound ") => self.outbound = field("address"),
            Some("admin") => self.admin = field("address"),
            Some("ready") => return true,
            _ => {}
        }
        false
    }
}

fn read_lines(stderr: ChildStderr, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stderr).lines() {
        let Ok(line) = line else { return };
        // Full: nobody has looked for a while. The pipe must be emptied all the same, or the sidecar would wait.
        let _ = sender.try_send(line);
    }
}

impl Usage {
    /// From /proc; zeros when the process is gone.
    fn of(pid: u32) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        Self {
            cpu: cpu(&read("stat")).unwrap_or_default(),
            resident_bytes: resident(&read("status")).unwrap_or(0),
        }
    }
}

/// Fields 14 and 15 of /proc/PID/stat, user and system. The name before them may contain anything but ends with the last
/// `)`.
fn cpu(stat: &str) -> Option<Duration> {
    // A constant of Linux's interface to user space.
    const TICKS_PER_SECOND: u64 = 100;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_where_it_listens() {
        let mut known = Known::default();
        for line in [
            "2026-11-24T13:57:33.660110Z  INFO listening listener=inbound address=127.0.0.1:42793 shards=1",
            "2026-11-24T13:57:33.660110Z  INFO listening listener=outbound address=127.0.0.1:42794 shards=1",
            "2026-11-24T13:57:33.660156Z  INFO admin address=127.0.0.1:41665",
        ] {
            assert!(!known.learn(line));
        }
        assert!(known.learn("2026-11-24T13:57:33.660163Z  INFO ready"));
        assert!(!known.learn(""));
        let at = |port: u16| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(known, Known { admin: at(41665), inbound: at(42793), outbound: at(42794) });
    }

    #[test]
    fn every_configuration_is_one_without_errors_or_warnings() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let called = |tls, short_lived| Called { name: "stock", address, tls, short_lived };
        for (inbound_tls, calls) in
            [(true, None), (true, Some(called(true, true))), (false, Some(called(false, false)))]
        {
            let plan = Plan {
                name: "orders",
                workload: address,
                inbound_tls,
                calls,
                authority: Path::new("/tmp/ca"),
                program: Path::new("/"),
                config: Path::new("/"),
            };
            let loaded = crate::config::parse("orders.toml", &plan.text(), &|_| None).unwrap();
            assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
        }
    }

    #[test]
    fn usage_is_read_from_the_kernels_files() {
        let stat = "12 (a) b) R 1 1 1 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 4 0 100 1000 100";
        assert_eq!(cpu(stat), Some(Duration::from_millis(120)));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    6140 kB\n"), Some(6140 << 10));
        assert!(Usage::of(std::process::id()).resident_bytes > 0);
    }
}
