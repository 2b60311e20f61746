//! The file of `ringmesh ca serve`: TOML to checked values, each mistake with the key and what to write instead. Refuses
//! unknown keys, rules that would match everybody, and ids of another trust domain.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::Overrides;
use super::attest::Rule;
use crate::config;
use crate::control::authority::Authority;
use crate::identity::{SpiffeId, TrustDomain};

/// What is served, where, and to whom.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) socket: PathBuf,
    pub(super) socket_mode: u32,
    pub(super) state: PathBuf,
    pub(super) trust_domain: TrustDomain,
    pub(super) leaf_ttl: Duration,
    /// Connections at a time, and at most half of them of one user; more are closed at once.
    pub(super) connections_max: usize,
    /// Streams of one connection at a time; more are refused by HTTP/2.
    pub(super) streams_max: u32,
    pub(super) rules: Vec<Rule>,
}

/// Exactly the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    socket: Option<PathBuf>,
    socket_mode: Option<String>,
    state: Option<PathBuf>,
    trust_domain: Option<String>,
    leaf_ttl: Option<String>,
    connections_max: Option<usize>,
    streams_max: Option<u32>,
    #[serde(default)]
    workload: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    id: String,
    uid: Option<u32>,
    user: Option<String>,
    gid: Option<u32>,
    group: Option<String>,
    executable: Option<PathBuf>,
}

const RULES_MAX: usize = 10_000;

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// All that is wrong with it, as text for the operator.
    pub(super) fn load(path: &Path, overrides: &Overrides) -> Result<Self, String> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!("error: cannot read {name}: {error}\nhelp: name a file that this user may read")
        })?;
        let accounts = Accounts::system();
        Self::parse(&text, overrides, &accounts).map_err(|problems| {
            problems.iter().fold(String::new(), |mut all, (what, help)| {
                let _ = writeln!(all, "error: {name}: {}\nhelp: {help}", what.trim_end());
                all
            })
        })
    }

    fn parse(text: &str, overrides: &Overrides, accounts: &Accounts) -> Result<Self, Vec<(String, String)>> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            vec![(error.to_string(), "ringmesh ca serve --help shows every key of the file".to_owned())]
        })?;
        let mut problems = Vec::new();
        let mut wrong = |what: String, help: &str| problems.push((what, help.to_owned()));

        let trust_domain = match (&overrides.trust_domain, &raw.trust_domain) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(text)) => TrustDomain::parse(text)
                .map_err(|error| {
                    wrong(format!("trust_domain \"{text}\": {}", error.0), "such as \"mesh.local\"")
                })
                .ok(),
            (None, None) => {
                wrong("trust_domain is missing".to_owned(), "such as trust_domain = \"mesh.local\"");
                None
            }
        };
        let socket = overrides.socket.clone().or(raw.socket);
        if socket.is_none() {
            wrong("socket is missing".to_owned(), "such as socket = \"/run/ringmesh/workload.sock\"");
        }
        let socket_mode = match raw.socket_mode.as_deref() {
            None => 0o666,
            Some(text) => {
                u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).unwrap_or_else(|| {
                    wrong(
                        format!("socket_mode \"{text}\" is not a mode"),
                        "four octal digits, such as \"0660\"",
                    );
                    0
                })
            }
        };
        let leaf_ttl = match raw.leaf_ttl.as_deref().map(config::duration_argument) {
            None => Authority::LEAF_TTL,
            Some(Ok(ttl)) if (Duration::from_secs(2)..=Authority::LEAF_TTL_MAX).contains(&ttl) => ttl,
            Some(Ok(ttl)) => {
                wrong(format!("leaf_ttl is {ttl:?}"), "from \"2s\" to \"2920h\"; \"24h\" if it is left out");
                ttl
            }
            Some(Err(error)) => {
                wrong(format!("leaf_ttl: {error}"), "such as leaf_ttl = \"24h\"");
                Authority::LEAF_TTL
            }
        };
        let connections_max = raw.connections_max.unwrap_or(1024);
        if !(2..=100_000).contains(&connections_max) {
            wrong(format!("connections_max is {connections_max}"), "from 2 to 100000");
        }
        let streams_max = raw.streams_max.unwrap_or(16);
        if !(1..=1000).contains(&streams_max) {
            wrong(format!("streams_max is {streams_max}"), "from 1 to 1000");
        }
        if raw.workload.len() > RULES_MAX {
            wrong(format!("{} rules", raw.workload.len()), "at most 10000 [[workload]]");
        }
        if raw.workload.is_empty() {
            wrong("nobody would get an identity".to_owned(), "add a [[workload]] with id and user");
        }
        let mut rules = Vec::new();
        for (n, workload) in raw.workload.into_iter().take(RULES_MAX).enumerate() {
            match workload.check(trust_domain.as_ref(), accounts) {
                Ok(rule) => rules.push(rule),
                Err((what, help)) => wrong(format!("[[workload]] {}: {what}", n + 1), help),
            }
        }
        match (trust_domain, socket) {
            (Some(trust_domain), Some(socket)) if problems.is_empty() => Ok(Self {
                socket,
                socket_mode,
                state: overrides.state.clone().or(raw.state).unwrap_or_else(|| "/var/lib/ringmesh/ca".into()),
                trust_domain,
                leaf_ttl,
                connections_max,
                streams_max,
                rules,
            }),
            _ => Err(problems),
        }
    }
}

impl RawRule {
    fn check(
        self,
        trust_domain: Option<&TrustDomain>,
        accounts: &Accounts,
    ) -> Result<Rule, (String, &'static str)> {
        let id = SpiffeId::parse(&self.id).map_err(|error| {
            (format!("id \"{}\": {}", self.id, error.0), "such as \"spiffe://mesh.local/cart\"")
        })?;
        if trust_domain.is_some_and(|domain| domain.as_str() != id.trust_domain()) {
            return Err((format!("{id} is not of the trust domain"), "an authority signs for its own only"));
        }
        if id.path().is_empty() {
            return Err((
                format!("{id} has no path"),
                "name a workload, such as \"spiffe://mesh.local/cart\"",
            ));
        }
        let uid = pick("user", "uid", self.uid, self.user, &accounts.users)?;
        let gid = pick("group", "gid", self.gid, self.group, &accounts.groups)?;
        if let Some(path) = self.executable.as_ref().filter(|path| !path.is_absolute()) {
            return Err((
                format!("executable \"{}\" is not a whole path", path.display()),
                "begin it with a slash; find it with `command -v NAME`",
            ));
        }
        if uid.is_none() && gid.is_none() && self.executable.is_none() {
            return Err((
                format!("every program would be {id}"),
                "say which: user (or uid), group (or gid), executable",
            ));
        }
        Ok(Rule { id, uid, gid, executable: self.executable })
    }
}

fn pick(
    by_name: &str,
    by_number: &str,
    number: Option<u32>,
    name: Option<String>,
    known: &[(String, u32)],
) -> Result<Option<u32>, (String, &'static str)> {
    match (number, name) {
        (number, None) => Ok(number),
        (Some(_), Some(_)) => {
            Err((format!("{by_name} and {by_number} are both given"), "leave one of them out"))
        }
        (None, Some(name)) => match known.iter().find(|(known, _)| *known == name) {
            Some((_, number)) => Ok(Some(*number)),
            None => Err((
                format!("{by_name} \"{name}\" is not known here"),
                "names are looked up in /etc/passwd and /etc/group; for others write uid or gid with a number",
            )),
        },
    }
}

/// Names of users and groups.
#[derive(Debug, Default)]
struct Accounts {
    users: Vec<(String, u32)>,
    groups: Vec<(String, u32)>,
}

impl Accounts {
    fn system() -> Self {
        let read = |path| numbered(&std::fs::read_to_string(path).unwrap_or_default());
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }
}

/// `name:password:number:…`, the form of both files.
fn numbered(text: &str) -> Vec<(String, u32)> {
    let entry = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "socket = \"/run/w.sock\"\ntrust_domain = \"mesh.local\"\n";

    fn parse(text: &str) -> Result<Settings, Vec<(String, String)>> {
        let accounts = Accounts {
            users: numbered("root:x:0:0:root:/root:/bin/sh\ncart:x:1001:1002::/:/bin/false\n"),
            groups: numbered("shop:x:2000:\n"),
        };
        Settings::parse(text, &Overrides::default(), &accounts)
    }

    fn wrong(text: &str) -> String {
        format!("{:?}", parse(&format!("{HEAD}{text}")).unwrap_err())
    }

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let settings = parse(&format!(
            "{HEAD}[[workload]]\nid = \"spiffe://mesh.local/cart\"\nuser = \"cart\"\ngroup = \"shop\"\n[[workload]]\nid \
             = \"spiffe://mesh.local/web\"\nuid = 7\nexecutable = \"/usr/bin/web\"\n"
        ))
        .unwrap();
        assert_eq!((settings.socket_mode, settings.leaf_ttl), (0o666, Authority::LEAF_TTL));
        assert_eq!((settings.connections_max, settings.streams_max), (1024, 16));
        assert_eq!((settings.rules[0].uid, settings.rules[0].gid), (Some(1001), Some(2000)));
        assert_eq!((settings.rules[1].uid, settings.rules[1].gid), (Some(7), None));
        assert_eq!(settings.rules[1].executable.as_deref(), Some(Path::new("/usr/bin/web")));
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        let rule = |more: &str| wrong(&format!("[[workload]]\nid = \"spiffe://mesh.local/a\"\n{more}"));
        assert!(rule("").contains("every program would be"));
        assert!(rule("user = \"nobody-here\"").contains("/etc/passwd"));
        assert!(rule("user = \"cart\"\nuid = 1").contains("both given"));
        assert!(rule("executable = \"cart\"").contains("whole path"));
        assert!(rule("uids = 1").contains("uids"));
        assert!(wrong("").contains("nobody would get an identity"));
        assert!(
            wrong("[[workload]]\nid = \"spiffe://other.local/a\"\nuid = 1")
                .contains("not of the trust domain")
        );
        assert!(wrong("[[workload]]\nid = \"spiffe://mesh.local\"\nuid = 1").contains("has no path"));
        assert!(wrong("[[workload]]\nid = \"mesh.local/a\"\nuid = 1").contains("spiffe://"));
        assert!(wrong("socket_mode = \"rw\"").contains("octal"));
        assert!(wrong("leaf_ttl = \"9999h\"").contains("leaf_ttl"));
        assert!(wrong("connections_max = 0").contains("connections_max"));
        let both =
            format!("{:?}", parse("[[workload]]\nid = \"spiffe://mesh.local/a\"\nuid = 1").unwrap_err());
        assert!(both.contains("socket is missing") && both.contains("trust_domain is missing"), "{both}");
    }
}
