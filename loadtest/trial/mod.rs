//! What rates and latencies do not show, each as a command of its own: `loadtest rotation`, `slow-reader`, `one-bad`,
//! `one-slow`, `overload` and `mirror`. They start ringmesh and origins, load them, look at ringmesh's own metrics, its memory
//! and what came to the origins, and exit 1 if a bar was missed.
//!
//! Called by `main`. What is asked here is whether ringmesh keeps its promises; where a promise is relative to other
//! proxies (`one-slow`), they run too.

pub(crate) mod mirror;
pub(crate) mod one_bad;
pub(crate) mod one_slow;
pub(crate) mod overload;
pub(crate) mod rotation;
pub(crate) mod slow_reader;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::compare::peer::{self, Kind, Peer, Running, Shape};
use crate::compare::{OriginProcess, Scratch};
use crate::target::{Place, Url};
use crate::{client, idle, socket};

/// Where a trial runs.
#[derive(Args)]
pub(crate) struct Stage {
    /// The ringmesh to try; the one beside this program if absent.
    #[arg(long, value_name = "PATH")]
    ringmesh: Option<PathBuf>,
    /// CPU of ringmesh.
    #[arg(long, default_value_t = 0)]
    proxy_cpu: usize,
    /// CPU of origin and client.
    #[arg(long, default_value_t = 1)]
    pub(crate) load_cpu: usize,
}

impl Stage {
    /// `what` names the folder of the run; `origin` are further arguments of `loadtest server`.
    fn origin(&self, what: &str, origin: &[&str]) -> Result<(Scratch, OriginProcess), String> {
        socket::pin(self.load_cpu)?;
        let scratch = Scratch::new(what)?;
        let origin = OriginProcess::start(self.load_cpu, &scratch.files, origin)?;
        Ok((scratch, origin))
    }

    fn ringmesh(
        &self,
        shape: Shape,
        leaf_ttl: &str,
        scratch: &Scratch,
        origin: &OriginProcess,
    ) -> Result<Running, String> {
        self.start(Kind::Ringmesh, shape, scratch, (origin.address, None), leaf_ttl)
    }

    /// Starts a proxy before an origin, and perhaps an odd one beside it.
    fn start(
        &self,
        kind: Kind,
        shape: Shape,
        scratch: &Scratch,
        (origin, odd): (SocketAddr, Option<SocketAddr>),
        leaf_ttl: &str,
    ) -> Result<Running, String> {
        let place = peer::Place {
            origin,
            odd,
            proxy_cpu: self.proxy_cpu,
            dir: &scratch.dir,
            files: &scratch.files,
            leaf_ttl,
        };
        let peer = Peer::find(kind, self.ringmesh.as_deref().filter(|_| kind.is_ringmesh()))?;
        // Where only TLS is understood, an accepted connection has to do.
        peer::start(&peer, shape, &place, |address| {
            TcpStream::connect(address).is_ok_and(|mut stream| match shape {
                Shape::Tls => true,
                _ => {
                    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
                        && idle::ask(&mut stream, "/size/1024") == Ok(200)
                }
            })
        })
    }
}

/// What happened is in /metrics after this: shards report once a second.
const METRICS_LAG: Duration = Duration::from_secs(2);

/// Keeps what was measured, a line of JSON each.
struct Raw(Option<std::fs::File>);

impl Raw {
    fn create(path: Option<&std::path::Path>) -> Result<Self, String> {
        let create = |path: &std::path::Path| {
            std::fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()))
        };
        path.map(create).transpose().map(Self)
    }

    fn keep(&mut self, row: &serde_json::Value) -> Result<(), String> {
        self.0.as_mut().map_or(Ok(()), |file| writeln!(file, "{row}")).map_err(|e| format!("raw data: {e}"))
    }
}

/// An open loop, or a closed one without a rate, of `connections` to a proxy.
fn load(
    address: SocketAddr,
    target: &str,
    rate: Option<f64>,
    connections: usize,
    cpu: usize,
) -> client::Options {
    let url = Url {
        place: Place::Tcp(address),
        tls: false,
        authority: address.to_string(),
        target: target.to_owned(),
    };
    client::Options { rate, connections, cpus: vec![cpu], ..client::Options::new(url) }
}

/// The middle one; zero of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// One reading of a proxy's /metrics.
struct Metrics(String);

impl Metrics {
    fn read(admin: SocketAddr) -> Result<Self, String> {
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        ask().map(Self).map_err(|e: std::io::Error| format!("/metrics: {e}"))
    }

    /// The sum of a metric over its labels; with `label`, over those that have it. Zero if there is none.
    fn sum(&self, name: &str, label: &str) -> f64 {
        let of_line = |line: &str| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
            let (labels, value) = rest.rsplit_once(' ')?;
            labels.contains(label).then(|| value.trim().parse::<f64>().ok()).flatten()
        };
        self.0.lines().filter_map(of_line).sum()
    }

    /// The samples whose names have one of these in them.
    fn lines(&self, names: &[&str]) -> Vec<&str> {
        let is_wanted = |line: &&str| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            name.starts_with("ringmesh_") && names.iter().any(|wanted| name.contains(wanted))
        };
        self.0.lines().filter(is_wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "HTTP/1.0 200 OK\r\n\r\n# HELP a_total What.\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4.5\n\
                    a_total_more{shard=\"0\"} 9\nb 2\nc{x=\"y z\"} 1\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("a_total", ""), 7.5);
        assert_eq!(metrics.sum("a_total", "shard=\"1\""), 4.5);
        assert_eq!((metrics.sum("b", ""), metrics.sum("c", ""), metrics.sum("d", "")), (2.0, 1.0, 0.0));
        let text = "# HELP ringmesh_a What.\nringmesh_a 1\nringmesh_b_total{x=\"_a\"} 2\nother_a 3\n";
        assert_eq!(Metrics(text.to_owned()).lines(&["_a", "c"]), ["ringmesh_a 1"]);
    }
}
