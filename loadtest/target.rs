//! What a URL asks for: where the client connects, and what the origin answers.
//!
//! Called by `client` (to know where to go and how long the answer must be) and by `origin`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::clock::{parse_duration, parse_size};

/// What the origin does for one request target. `/delay/5ms/status/200/size/1024`, `/?size=1KiB&delay=5ms` and
/// `/chunked/1` set it; segments that are no known word are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Bytes of body.
    pub(crate) size: u64,
    pub(crate) delay: Duration,
    pub(crate) chunked: bool,
}

impl Default for Answer {
    fn default() -> Self {
        Self { status: 200, size: 1024, delay: Duration::ZERO, chunked: false }
    }
}

/// A chunked answer is kept whole in memory.
const CHUNKED_BYTES_MAX: u64 = 4 << 20;

impl Answer {
    pub(crate) fn parse(target: &str) -> Result<Self, String> {
        let mut answer = Self::default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut segments = path.split('/').filter(|s| !s.is_empty());
        while let Some(word) = segments.next() {
            if matches!(word, "size" | "delay" | "status" | "chunked") {
                answer.set(word, segments.next().ok_or_else(|| format!("`/{word}` needs a value"))?)?;
            }
        }
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (word, value) = pair.split_once('=').unwrap_or((pair, ""));
            answer.set(word, value)?;
        }
        if answer.chunked && answer.size > CHUNKED_BYTES_MAX {
            return Err(format!("a chunked answer has at most {CHUNKED_BYTES_MAX} bytes"));
        }
        Ok(answer)
    }

    fn set(&mut self, word: &str, value: &str) -> Result<(), String> {
        match word {
            "size" => self.size = parse_size(value)?,
            "delay" => self.delay = parse_duration(value)?,
            "chunked" => self.chunked = value != "0",
            "status" => {
                self.status = value
                    .parse()
                    .ok()
                    .filter(|s| (200..=599).contains(s))
                    .ok_or_else(|| format!("`{value}` is no final status"))?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Where a client connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A URL taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) place: Place,
    /// https
    pub(crate) tls: bool,
    /// For the Host field.
    pub(crate) authority: String,
    pub(crate) target: String,
}

impl Url {
    /// `http://host:port/path`, `https://host:port/path`, or `unix:/socket/path:/request/path`. A host name is resolved once, its first address
    /// is taken.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("unix:") {
            let (socket, target) = rest.split_once(':').unwrap_or((rest, "/"));
            if socket.is_empty() || !target.starts_with('/') {
                return Err(format!("`{text}`: write unix:/socket/path:/request/path"));
            }
            return Ok(Self {
                place: Place::Unix(PathBuf::from(socket)),
                tls: false,
                authority: "localhost".to_owned(),
                target: target.to_owned(),
            });
        }
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(format!("`{text}` must start with http://, https:// or unix:")),
        };
        let slash = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(slash);
        let target = match target.chars().next() {
            Some('/') => target.to_owned(),
            _ => format!("/{target}"),
        };
        if target.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(format!("`{text}` contains white space or control characters"));
        }
        let place = Place::Tcp(resolve_with(authority, if tls { 443 } else { 80 })?);
        Ok(Self { place, tls, authority: authority.to_owned(), target })
    }

    /// The name or address that a certificate must have.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, String> {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(host).map_err(|e| format!("`{}`: {e}", self.authority))
    }
}

/// `127.0.0.1:80`, `[::1]:80`, `host:80`, or any of them without port for port 80.
pub(crate) fn resolve(authority: &str) -> Result<SocketAddr, String> {
    resolve_with(authority, 80)
}

fn resolve_with(authority: &str, port: u16) -> Result<SocketAddr, String> {
    let has_port =
        authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let with_port = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    with_port
        .to_socket_addrs()
        .map_err(|error| format!("`{authority}`: {error}"))?
        .next()
        .ok_or_else(|| format!("`{authority}` has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_combined_from_path_and_query() {
        let full = Answer { status: 503, size: 2048, delay: Duration::from_millis(5), chunked: false };
        assert_eq!(Answer::parse("/delay/5ms/status/503/size/2048"), Ok(full));
        assert_eq!(Answer::parse("/?size=2KiB&status=503&delay=5ms"), Ok(full));
        assert_eq!(Answer::parse("/size/2048/anything?delay=5ms&status=503&other"), Ok(full));
        assert_eq!(Answer::parse("/"), Ok(Answer::default()));
        assert_eq!(Answer::parse("/orders/17"), Ok(Answer::default()));
        assert!(Answer::parse("/chunked/1").expect("legal").chunked);
    }

    #[test]
    fn wrong_answers_are_refused() {
        for target in ["/size", "/size/x", "/delay/5", "/status/100", "/status/6000", "/chunked/1/size/1GiB"]
        {
            assert!(Answer::parse(target).is_err(), "{target}");
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("http://127.0.0.1:9000/size/1?x=y").expect("legal");
        assert_eq!(url.place, Place::Tcp("127.0.0.1:9000".parse().expect("address")));
        assert_eq!((url.authority.as_str(), url.target.as_str()), ("127.0.0.1:9000", "/size/1?x=y"));
        assert_eq!(Url::parse("http://127.0.0.1").expect("legal").target, "/");
        assert_eq!(Url::parse("http://127.0.0.1?a=b").expect("legal").target, "/?a=b");
        assert_eq!(
            Url::parse("http://[::1]:80/").expect("legal").place,
            Place::Tcp("[::1]:80".parse().expect("v6"))
        );
        let https = Url::parse("https://[::1]/x").expect("legal");
        assert!(https.tls && !url.tls);
        assert_eq!(https.place, Place::Tcp("[::1]:443".parse().expect("v6")));
        assert_eq!(https.server_name().expect("an address").to_str(), "::1");
        assert_eq!(url.server_name().expect("an address").to_str(), "127.0.0.1");
        let unix = Url::parse("unix:/run/app.sock:/size/5").expect("legal");
        assert_eq!(unix.place, Place::Unix("/run/app.sock".into()));
        assert_eq!(unix.target, "/size/5");
    }

    #[test]
    fn urls_that_could_not_be_meant_are_refused() {
        for text in
            ["ftp://127.0.0.1/", "127.0.0.1:80", "unix:", "http://127.0.0.1/a b", "http://127.0.0.1/\r\nx: y"]
        {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}
