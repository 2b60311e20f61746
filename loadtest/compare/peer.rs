//! The proxies that are compared: where their binaries are, their configuration, and starting one of them.
//!
//! Called by `compare`. It refuses to guess: a binary that is not found is skipped with a message that says where it
//! was looked for.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use crate::certificates::Files;
use crate::clock::{SECOND, now_ns};
use crate::guard::{self, Guarded};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Ringmesh,
    /// The same program, built without the profile in loadtest/profile.
    Unprofiled,
    /// ringmesh with whatever decides or limits configured.
    Policies,
    /// A pair of ringmeshes that add one field to a request on each hop, as the peers do.
    OneField,
    Haproxy,
    /// The pair of a mesh, speaking HTTP/2 between its two.
    HaproxyH2,
    Nginx,
    Envoy,
}

/// What stands on either side of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// HTTP/1.1 on both sides.
    Plain,
    /// HTTP/2 in plain text on both sides.
    H2,
    /// HTTP/2 in plain text from callers, HTTP/1.1 to the origin.
    H2h1,
    /// HTTP/1.1 from callers, HTTP/2 in plain text to the origin.
    H1h2,
    /// TLS 1.3 from callers, HTTP/1.1 on both sides.
    Tls,
    /// Two proxies with mTLS between them, HTTP/1.1 in plain text around.
    Mesh,
    /// As plain, with ten endpoints: nine of the origin's, and an odd one.
    Endpoints,
    /// As plain, to a service that has too much to do; how much it bears is configured.
    Overload,
    /// The same, but how much it bears has to be found out.
    OverloadLearnt,
    /// As plain, and a route that copies its requests for a service that is dead.
    Mirror,
    /// As plain, with whatever decides or limits configured, and nothing of it having cause to.
    Policies,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ringmesh => "ringmesh",
            Self::Unprofiled => "ringmesh, unprofiled",
            Self::Policies => "ringmesh, all policies",
            Self::OneField => "ringmesh, one field",
            Self::Haproxy => "haproxy",
            Self::HaproxyH2 => "haproxy h2",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// File name and text of its configurations, in the order of the path, or why it takes no part.
    fn templates(self, shape: Shape) -> Result<Vec<(&'static str, &'static str)>, &'static str> {
        macro_rules! peers {
            ($($file:literal),+) => { vec![$(($file, include_str!(concat!("../peers/", $file)))),+] };
        }
        Ok(match (shape, self) {
            (Shape::Plain, Self::Ringmesh) => peers!["ringmesh.toml"],
            (Shape::Plain, Self::Haproxy) => peers!["haproxy.cfg"],
            (Shape::Plain, Self::Nginx) => peers!["nginx.conf"],
            (Shape::Plain, Self::Envoy) => peers!["envoy.yaml"],
            (Shape::H2, Self::Ringmesh) => peers!["h2/ringmesh.toml"],
            (Shape::H2, Self::Haproxy) => peers!["h2/haproxy.cfg"],
            (Shape::H2, Self::Nginx) => return Err("speaks no HTTP/2 to servers"),
            (Shape::H2, Self::Envoy) => peers!["h2/envoy.yaml"],
            (Shape::H2h1, Self::Ringmesh) => peers!["h2h1/ringmesh.toml"],
            (Shape::H2h1, Self::Haproxy) => peers!["h2h1/haproxy.cfg"],
            (Shape::H2h1, Self::Nginx) => peers!["h2h1/nginx.conf"],
            (Shape::H2h1, Self::Envoy) => peers!["h2h1/envoy.yaml"],
            (Shape::H1h2, Self::Ringmesh) => peers!["h2/ringmesh.toml"],
            (Shape::H1h2, Self::Haproxy) => peers!["h1h2/haproxy.cfg"],
            (Shape::H1h2, Self::Nginx) => return Err("speaks no HTTP/2 to servers"),
            (Shape::H1h2, Self::Envoy) => peers!["h1h2/envoy.yaml"],
            (Shape::Tls, Self::Ringmesh) => peers!["tls/ringmesh.toml"],
            (Shape::Tls, Self::Haproxy) => peers!["tls/haproxy.cfg"],
            (Shape::Tls, Self::Nginx) => peers!["tls/nginx.conf"],
            (Shape::Tls, Self::Envoy) => peers!["tls/envoy.yaml"],
            (Shape::Mesh, Self::Ringmesh) => peers!["mesh-a/ringmesh.toml", "mesh-b/ringmesh.toml"],
            (Shape::Mesh, Self::Haproxy) => peers!["mesh-a/haproxy.cfg", "mesh-b/haproxy.cfg"],
            (Shape::Mesh, Self::HaproxyH2) => peers!["mesh-a/haproxy-h2.cfg", "mesh-b/haproxy-h2.cfg"],
            (Shape::Mesh, Self::Nginx) => {
                return Err("is no data plane of a mesh: it is not compared as a pair");
            }
            (Shape::Mesh, Self::Envoy) => peers!["mesh-a/envoy.yaml", "mesh-b/envoy.yaml"],
            (Shape::Mesh, Self::OneField) => {
                peers!["mesh-a/ringmesh-one-field.toml", "mesh-b/ringmesh-one-field.toml"]
            }
            (_, Self::OneField) => return Err("stands for a pair that adds one field in the mesh alone"),
            (_, Self::HaproxyH2) => return Err("stands for HTTP/2 in the mesh alone"),
            (Shape::Endpoints, Self::Ringmesh) => peers!["endpoints/ringmesh.toml"],
            (Shape::Endpoints, Self::Haproxy) => peers!["endpoints/haproxy.cfg"],
            (Shape::Endpoints, Self::Envoy) => peers!["endpoints/envoy.yaml"],
            (Shape::Endpoints, Self::Nginx) => {
                return Err("takes no part: its least_conn looks at connections of one worker");
            }
            (Shape::Overload, Self::Ringmesh) => peers!["overload/ringmesh.toml"],
            (Shape::OverloadLearnt, Self::Ringmesh) => peers!["overload/learnt.toml"],
            (Shape::Mirror, Self::Ringmesh) => peers!["mirror/ringmesh.toml"],
            (Shape::Overload | Shape::OverloadLearnt | Shape::Mirror, _) => {
                return Err("is not asked for it");
            }
            (Shape::Policies, Self::Policies) => peers!["policies/ringmesh.toml"],
            (Shape::Policies, Self::Ringmesh) => peers!["ringmesh.toml"],
            (Shape::Policies, Self::Haproxy) => peers!["haproxy.cfg"],
            (Shape::Policies, Self::Nginx | Self::Envoy) => return Err("is not asked for it"),
            (_, Self::Policies) => return Err("stands for ringmesh with all policies alone"),
            (Shape::Policies, Self::Unprofiled) => return Err("is not asked for it"),
            (shape, Self::Unprofiled) => return Self::Ringmesh.templates(shape),
        })
    }

    /// Why it takes no part in a shape, if it does not.
    pub(crate) fn absent(self, shape: Shape) -> Option<&'static str> {
        self.templates(shape).err()
    }

    fn program(self) -> &'static str {
        match self {
            Self::HaproxyH2 => Self::Haproxy.name(),
            Self::Policies | Self::Unprofiled | Self::OneField => Self::Ringmesh.name(),
            _ => self.name(),
        }
    }

    /// Whether it is the ringmesh that is measured.
    pub(crate) fn is_ringmesh(self) -> bool {
        matches!(self, Self::Ringmesh | Self::Unprofiled | Self::Policies | Self::OneField)
    }

    fn arguments(self, config: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Ringmesh | Self::Unprofiled | Self::Policies | Self::OneField => {
                &["run", "--config", config]
            }
            Self::Haproxy | Self::HaproxyH2 => &["-db", "-f", config],
            Self::Nginx => &["-e", "stderr", "-c", config],
            Self::Envoy => &["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c", config],
        };
        words.iter().map(|&w| w.to_owned()).collect()
    }

    /// The first line of what it says of its version that contains a digit.
    fn version(self, binary: &Path) -> String {
        let argument =
            if matches!(self, Self::Haproxy | Self::HaproxyH2 | Self::Nginx) { "-v" } else { "--version" };
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
                Kind::Ringmesh | Kind::Policies | Kind::OneField => "cargo build --release",
                Kind::Unprofiled => {
                    "RINGMESH_PROFILE=off cargo build --release --target-dir target/unprofiled"
                }
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
    if kind == Kind::Unprofiled {
        // target/release/loadtest beside target/unprofiled/release
        places.extend(beside.and_then(|dir| Some(dir.parent()?.join("unprofiled/release/ringmesh"))));
        return places;
    }
    if kind.is_ringmesh() {
        places.extend(beside.map(|dir| dir.join("ringmesh")));
        return places;
    }
    // target/release/loadtest beside target/peers
    places.extend(beside.and_then(|dir| Some(dir.parent()?.join("peers").join(kind.program()))));
    places.push(Path::new("target/peers").join(kind.program()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/local/sbin"), PathBuf::from("/usr/sbin")]);
    places.extend(path.map(|dir| dir.join(kind.program())));
    places
}

/// What a proxy is started with.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) origin: SocketAddr,
    /// Where there is another: the odd one of ten endpoints.
    pub(crate) odd: Option<SocketAddr>,
    pub(crate) proxy_cpu: usize,
    /// For its configuration, its log, and what it likes to write.
    pub(crate) dir: &'a Path,
    pub(crate) files: &'a Files,
    /// How long ringmesh's certificates live in a mesh, as its configuration writes it.
    pub(crate) leaf_ttl: &'a str,
}

/// A proxy that answers, or a pair of them; dropping it stops it.
pub(crate) struct Running {
    /// Where callers go.
    pub(crate) address: SocketAddr,
    /// From just before exec to the first good response.
    pub(crate) start_ms: f64,
    /// Where each tells about itself, if it does; first the one that callers go to.
    pub(crate) admins: Vec<SocketAddr>,
    processes: Vec<Guarded>,
}

impl Running {
    /// First the one that callers go to.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(|p| p.pid).collect()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.processes.iter_mut().all(Guarded::is_running)
    }
}

const START_TIMEOUT: u64 = 10 * SECOND;
const ASK_EVERY: Duration = Duration::from_micros(250);

/// Starts it, a pair from its end, and waits until `ask` has its answer from the address that callers go to.
pub(crate) fn start(
    peer: &Peer,
    shape: Shape,
    place: &Place<'_>,
    ask: impl Fn(SocketAddr) -> bool,
) -> Result<Running, String> {
    let name = peer.kind.name();
    let templates = peer.kind.templates(shape).map_err(|why| format!("{name} {why}"))?;
    let (mut processes, mut admins, mut next) = (Vec::new(), Vec::new(), place.origin);
    let mut logs = Vec::new();
    for (file, template) in templates.iter().rev() {
        let (listen, admin) = (free_port()?, free_port()?);
        // `mesh-a/envoy.yaml` becomes `mesh-a-envoy.yaml`.
        let path = place.dir.join(file.replace('/', "-"));
        let config = filled(template, place, listen, admin, next);
        fs::write(&path, config).map_err(|e| format!("{}: {e}", path.display()))?;
        let log = path.with_extension("log");
        let mut command = vec![peer.binary.display().to_string()];
        command.extend(peer.kind.arguments(&path.display().to_string()));
        let mut process = guard::start(&command, place.proxy_cpu, &log)?;
        if next == place.origin && templates.len() > 1 {
            wait(&mut process, name, &log, || TcpStream::connect(listen).is_ok())?;
        }
        processes.insert(0, process);
        admins.insert(0, admin);
        logs.insert(0, log);
        next = listen;
    }
    if !peer.kind.is_ringmesh() {
        admins.clear();
    }
    let address = next;
    wait(&mut processes[0], name, &logs[0], || ask(address))?;
    let start_ms = (now_ns() - processes[0].started_at) as f64 / 1e6;
    Ok(Running { address, start_ms, admins, processes })
}

fn wait(process: &mut Guarded, name: &str, log: &Path, ready: impl Fn() -> bool) -> Result<(), String> {
    let deadline = now_ns() + START_TIMEOUT;
    while !ready() {
        if !process.is_running() {
            return Err(format!("{name} ended while starting: {}", last_lines(log)));
        }
        if now_ns() > deadline {
            return Err(format!("{name} does not answer: {}", last_lines(log)));
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(())
}

/// `next` is where requests go: the origin, or the second proxy of a pair.
fn filled(
    template: &str,
    place: &Place<'_>,
    listen: SocketAddr,
    admin: SocketAddr,
    next: SocketAddr,
) -> String {
    let Files { ca, server, a, b } = place.files;
    let mut text = template
        .replace("{{listen_port}}", &listen.port().to_string())
        .replace("{{admin_port}}", &admin.port().to_string())
        .replace("{{origin_port}}", &place.origin.port().to_string())
        .replace("{{next_port}}", &next.port().to_string())
        .replace("{{odd_port}}", &place.odd.map_or(0, |odd| odd.port()).to_string())
        .replace("{{proxy_cpu}}", &place.proxy_cpu.to_string())
        .replace("{{leaf_ttl}}", place.leaf_ttl)
        .replace("{{ca}}", &ca.display().to_string())
        .replace("{{dir}}", &place.dir.display().to_string());
    for (name, pair) in [("server", server), ("a", a), ("b", b)] {
        text = text
            .replace(&format!("{{{{{name}_certificate}}}}"), &pair.certificate.display().to_string())
            .replace(&format!("{{{{{name}_key}}}}"), &pair.key.display().to_string())
            .replace(&format!("{{{{{name}_both}}}}"), &pair.both.display().to_string());
    }
    text
}

/// A port that was free a moment ago, for a configuration file, which needs a number; and that no other `loadtest` chooses before whoever it is for listens there: two may run at the same time
/// (loadtest/beside.sh). The claim is a socket without a file, held until this process ends.
fn free_port() -> Result<SocketAddr, String> {
    let failed = |error: io::Error| format!("no free port: {error}");
    loop {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(failed)?;
        let name = format!("ringmesh-loadtest-{}", address.port());
        match UnixAddr::from_abstract_name(name).and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(claim) => {
                std::mem::forget(claim);
                return Ok(address);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed(error)),
        }
    }
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

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::certificates::Pair;

    #[test]
    fn a_port_is_chosen_once_although_nobody_listens_there_yet() {
        // Few ports would be needed twice; the claim of one is all that keeps it from another process.
        let chosen: Vec<_> = (0..200).map(|_| free_port().expect("a port")).collect();
        let different: std::collections::HashSet<_> = chosen.iter().collect();
        assert_eq!(different.len(), chosen.len());
        let name =
            UnixAddr::from_abstract_name(format!("ringmesh-loadtest-{}", chosen[0].port())).expect("a name");
        let again = UnixListener::bind_addr(&name).expect_err("it is claimed");
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn configurations_are_whole_once_they_are_filled() {
        let pair = || Pair { certificate: "c".into(), key: "k".into(), both: "ck".into() };
        let files = Files { ca: "ca".into(), server: pair(), a: pair(), b: pair() };
        let at: SocketAddr = "127.0.0.1:7777".parse().expect("an address");
        let place = Place {
            origin: at,
            odd: Some(at),
            proxy_cpu: 0,
            dir: Path::new("dir"),
            files: &files,
            leaf_ttl: "24h",
        };
        let mut filled_ones = 0;
        let (before, since) = (
            [Shape::Plain, Shape::H2, Shape::H2h1, Shape::H1h2, Shape::Tls, Shape::Mesh],
            [Shape::Endpoints, Shape::Overload, Shape::OverloadLearnt, Shape::Mirror, Shape::Policies],
        );
        for shape in before.into_iter().chain(since) {
            for kind in Kind::value_variants() {
                for (file, template) in kind.templates(shape).unwrap_or_default() {
                    let text = filled(template, &place, at, at, at);
                    assert!(!text.contains("{{") && text.contains("7777"), "{file}: {text}");
                    filled_ones += 1;
                }
            }
        }
        let of_unprofiled = 1 + 1 + 1 + 1 + 1 + 2 + 1;
        assert_eq!(filled_ones, 4 + 3 + 4 + 3 + 4 + 10 + 3 + 2 + 1 + 3 + of_unprofiled);
        assert!(Kind::Ringmesh.absent(Shape::Mesh).is_none());
        assert!(Kind::Nginx.absent(Shape::H2).is_some());
    }
}
