//! The proxies that are compared: where their binaries are, their configuration, and starting one of them.
//!
//! Called by `compare`. It refuses to guess: a binary that is not found is skipped with a message that says where it
//! was looked for.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::clock::{SECOND, now_ns};
use crate::guard::{self, Guarded};
use crate::idle;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Ringmesh,
    Haproxy,
    Nginx,
    Envoy,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ringmesh => "ringmesh",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// File name and text of its configuration.
    fn template(self) -> (&'static str, &'static str) {
        match self {
            Self::Ringmesh => ("ringmesh.toml", include_str!("../peers/ringmesh.toml")),
            Self::Haproxy => ("haproxy.cfg", include_str!("../peers/haproxy.cfg")),
            Self::Nginx => ("nginx.conf", include_str!("../peers/nginx.conf")),
            Self::Envoy => ("envoy.yaml", include_str!("../peers/envoy.yaml")),
        }
    }

    fn arguments(self, config: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Ringmesh => &["run", "--config", config],
            Self::Haproxy => &["-db", "-f", config],
            Self::Nginx => &["-e", "stderr", "-c", config],
            Self::Envoy => &["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c", config],
        };
        words.iter().map(|&w| w.to_owned()).collect()
    }

    /// The first line of what it says of its version that contains a digit.
    fn version(self, binary: &Path) -> String {
        let argument = if matches!(self, Self::Haproxy | Self::Nginx) { "-v" } else { "--version" };
        let Ok(output) = Command::new(binary).arg(argument).output() else { return "unknown".to_owned() };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|l| l.contains(|c: char| c.is_ascii_digit())).unwrap_or("unknown");
        // Envoy prints its own path first.
        let line = line.split_once("version:").map_or(line, |(_, version)| version);
        line.trim().chars().take(120).collect()
    }
}

/// A proxy that is there.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) binary: PathBuf,
    pub(crate) version: String,
}

impl Peer {
    /// `given` is a path that the command line names.
    pub(crate) fn find(kind: Kind, given: Option<&Path>) -> Result<Self, String> {
        let places = given.map_or_else(|| usual_places(kind), |path| vec![path.to_owned()]);
        let Some(binary) = places.iter().find(|path| path.is_file()) else {
            let tried: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            let remedy = match kind {
                Kind::Ringmesh => "cargo build --release",
                _ => "loadtest/peers/install.sh",
            };
            return Err(format!(
                "{} is not there (try {remedy}); looked for {}",
                kind.name(),
                tried.join(", ")
            ));
        };
        Ok(Self { kind, version: kind.version(binary), binary: binary.clone() })
    }
}

fn usual_places(kind: Kind) -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned()));
    let mut places = Vec::new();
    if kind == Kind::Ringmesh {
        places.extend(beside.map(|dir| dir.join("ringmesh")));
        return places;
    }
    // target/release/loadtest beside target/peers
    places.extend(beside.and_then(|dir| Some(dir.parent()?.join("peers").join(kind.name()))));
    places.push(Path::new("target/peers").join(kind.name()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/local/sbin"), PathBuf::from("/usr/sbin")]);
    places.extend(path.map(|dir| dir.join(kind.name())));
    places
}

/// What a proxy is started with.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) origin: SocketAddr,
    pub(crate) proxy_cpu: usize,
    /// For its configuration, its log, and what it likes to write.
    pub(crate) dir: &'a Path,
}

/// A proxy that answers; dropping it stops it.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// From just before exec to the first good response.
    pub(crate) start_ms: f64,
    process: Guarded,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }
}

const START_TIMEOUT: u64 = 10 * SECOND;
const ASK_EVERY: Duration = Duration::from_micros(250);

pub(crate) fn start(peer: &Peer, place: &Place<'_>) -> Result<Running, String> {
    let name = peer.kind.name();
    let (listen, admin) = (free_port()?, free_port()?);
    let (file, template) = peer.kind.template();
    let config = template
        .replace("{{listen_port}}", &listen.port().to_string())
        .replace("{{admin_port}}", &admin.port().to_string())
        .replace("{{origin_port}}", &place.origin.port().to_string())
        .replace("{{proxy_cpu}}", &place.proxy_cpu.to_string())
        .replace("{{dir}}", &place.dir.display().to_string());
    let path = place.dir.join(file);
    fs::write(&path, config).map_err(|e| format!("{}: {e}", path.display()))?;
    let log = place.dir.join(format!("{name}.log"));
    let mut command = vec![peer.binary.display().to_string()];
    command.extend(peer.kind.arguments(&path.display().to_string()));
    let mut process = guard::start(&command, place.proxy_cpu, &log)?;
    let deadline = now_ns() + START_TIMEOUT;
    loop {
        let asked = TcpStream::connect(listen).map_err(|e| e.to_string());
        match asked.and_then(|mut stream| idle::ask(&mut stream, "/size/1024")) {
            Ok(200) => break,
            _ if !process.is_running() => {
                return Err(format!("{name} ended while starting: {}", last_lines(&log)));
            }
            _ if now_ns() > deadline => return Err(format!("{name} does not answer: {}", last_lines(&log))),
            _ => std::thread::sleep(ASK_EVERY),
        }
    }
    let start_ms = (now_ns() - process.started_at) as f64 / 1e6;
    Ok(Running { address: listen, start_ms, process })
}

/// Free a moment ago; a configuration file needs a number.
fn free_port() -> Result<SocketAddr, String> {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| format!("no free port: {e}"))
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    if lines.is_empty() {
        "it said nothing".to_owned()
    } else {
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}
