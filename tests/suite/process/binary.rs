//! The real binary as a child: started, asked, told by signals, waited for. It ends with the test, however that ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) use crate::support::folder::Folder;

/// How long anything may take before the test is called hung. Far more than any of it needs.
const HANG: Duration = Duration::from_secs(20);

/// Waits for something that must happen; only a failing test waits long.
pub(crate) fn eventually<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + HANG;
    loop {
        if let Some(found) = happened() {
            return found;
        }
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The binary, with these arguments. Its log says `info`, whatever the environment of the tests says.
pub(crate) fn ringmesh<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    command.args(arguments).env("RINGMESH_LOG", "info").stdin(Stdio::null());
    command
}

/// A process that runs.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            collect(child.stdout.take().unwrap(), &stdout),
            collect(child.stderr.take().unwrap(), &stderr),
        ];
        Self { stdin: child.stdin.take(), child, stdout, stderr, readers }
    }

    /// `run` with this configuration file, until it is ready. The process ends when the test's end of its pipe does.
    pub(crate) fn proxy(config: &Path) -> Self {
        let running =
            Self::start(ringmesh(["run", "--until-stdin-ends", "--config", config.to_str().unwrap()]));
        eventually("the proxy is ready", || {
            assert!(!running.has_ended(), "{}", running.stderr());
            running.stderr().contains("INFO ready\n").then_some(())
        });
        running
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Where a listener accepts, as the log says.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        self.address(&format!(" listening listener={name} "))
    }

    /// Where its admin pages are, as the log says.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.address(" admin ")
    }

    fn address(&self, what: &str) -> SocketAddr {
        let log = self.stderr();
        let line =
            log.lines().rfind(|line| line.contains(what)).unwrap_or_else(|| panic!("{what} in\n{log}"));
        line.split_whitespace().find_map(|word| word.strip_prefix("address=")).unwrap().parse().unwrap()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        // Not waited for yet, so the id is still its own.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Closes its standard input.
    pub(crate) fn end_stdin(&mut self) {
        drop(self.stdin.take());
    }

    /// Whether it has ended. It stays a zombie until [`Running::wait`], so that its id is not given to another.
    pub(crate) fn has_ended(&self) -> bool {
        !is_alive(self.pid())
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = eventually("the process ends", || self.child.try_wait().unwrap());
        // What it wrote last is read.
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    /// Status and body of an admin page.
    pub(crate) fn page(&self, path: &str) -> (u16, String) {
        page(self.admin(), path).unwrap()
    }

    /// An admin page as JSON.
    pub(crate) fn json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.page(path);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The generation of the configuration in use.
    pub(crate) fn generation(&self) -> u64 {
        self.json("/config?format=json")["generation"].as_u64().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of process {}\n{}", self.child.id(), self.stderr());
        }
    }
}

fn collect(from: impl Read + Send + 'static, to: &Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|length| length > 0) {
            to.lock().unwrap().push_str(&line);
            line.clear();
        }
    })
}

/// Whether a process runs: it exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

/// Processes whose parent is `parent`.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.to_owned()).unwrap_or_default();
        fields.split(' ').nth(1) == Some(&parent.to_string())
    })
    .collect()
}

/// The sockets that listen on an address: numbers that no other socket ever has, unlike the address.
pub(crate) fn listening(address: SocketAddr) -> Vec<u64> {
    let local = format!("0100007F:{:04X}", address.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = fields.filter(|fields| fields.len() > 9 && fields[1] == local && fields[3] == "0A");
    listening.map(|fields| fields[9].parse().unwrap()).collect()
}

/// Status and body of one GET on a connection of its own.
pub(crate) fn page(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(HANG))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}
