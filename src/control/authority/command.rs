//! `ringmesh ca`: the authority by hand. Called by `main`; writes results to `out` and mistakes to `err`, each with its
//! remedy. Refuses to print a key.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::folder::{refused, write_whole};
use super::{
    Authority, Grace, Phase, RootStatus, Status, Summary, certificate, key_pem, pem, serve, unix_now,
};
use crate::config;
use crate::control::identity::SourceError;
use crate::identity::{SpiffeId, TrustDomain};

/// What `ringmesh ca` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an authority: a root (10 years) and an issuer (1 year)
    ///
    /// One that is there already is left as it is. `ringmesh run` makes one by itself where the
    /// configuration says identity.source = "embedded".
    ///
    /// Exit code: 0, or 1 when the folder cannot be used or is another trust domain's.
    #[command(verbatim_doc_comment)]
    Init {
        #[command(flatten)]
        state: StateFolder,
        /// The name that all identities begin with: spiffe://NAME/…; it cannot be changed later
        #[arg(long, value_name = "NAME", value_parser = trust_domain)]
        trust_domain: TrustDomain,
    },
    /// Show roots and issuers: fingerprint, when they end, which root signs
    ///
    /// Changes nothing. Exit code: 0, or 1 when there is none or a file is broken.
    #[command(verbatim_doc_comment)]
    Show {
        #[command(flatten)]
        authority: Existing,
        /// Print a JSON object in place of the text; times are seconds of the Unix time
        #[arg(long)]
        json: bool,
    },
    /// Write a certificate, its key and the bundle of trusted roots into a folder
    ///
    /// cert.pem (leaf, then issuer), key.pem (mode 0600), bundle.pem. Files of these names are replaced,
    /// so that the same command renews. Renew before half of the time to live is over; a bundle
    /// that is as old as that has every root that a living certificate needs.
    ///
    /// Exit code: 0, or 1 when something is refused.
    #[command(verbatim_doc_comment)]
    Issue {
        #[command(flatten)]
        authority: Existing,
        /// Who it is for
        #[arg(long, value_name = "SPIFFE_ID", value_parser = spiffe_id)]
        id: SpiffeId,
        /// How long it lives
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = config::duration_argument)]
        ttl: Duration,
        /// Folder for the three files; made if missing
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Replace the root, without a certificate that stops working
    ///
    /// Three phases, and time alone moves from one to the next:
    ///   announced  the new root is in the bundle, the old one signs. Until every certificate has ended
    ///              that was issued before: then everybody who has one has the new root, too
    ///   signs      the new root signs, the old one stays in the bundle
    ///   gone       the last certificate under the old root has ended; it leaves the bundle
    /// Run again with --grace or --now while a root is announced, it signs earlier (or later).
    ///
    /// Exit code: 0, or 1 when a rotation is under way or the folder cannot be used.
    #[command(verbatim_doc_comment)]
    RotateRoot {
        #[command(flatten)]
        authority: Existing,
        /// How long the new root is only announced [default: until the certificates of before have ended]
        ///
        /// Longer than the slowest takes to read a new bundle, or it refuses those who are faster. Proxies
        /// with the source embedded or workload-api learn it in seconds; files of `ca issue` when they are
        /// written anew.
        #[arg(long, value_name = "DURATION", value_parser = config::duration_argument, conflicts_with = "now", verbatim_doc_comment)]
        grace: Option<Duration>,
        /// Sign with the new root at once: the same as --grace 0s
        #[arg(long)]
        now: bool,
    },
    #[allow(rustdoc::broken_intra_doc_links, reason = "brackets of TOML, in the text of --help")]
    /// Serve the SPIFFE Workload API on a Unix socket: identities for programs of this machine
    ///
    /// Who asks is told by the kernel (user, group, executable), rules in the file say which identity
    /// that is, and nobody presents a secret. Certificates are renewed at half of their life and
    /// pushed, as is every change of the bundle. SIGHUP reads the rules again; SIGTERM ends.
    ///
    /// The file:
    ///   socket = "/run/ringmesh/workload.sock"
    ///   state = "/var/lib/ringmesh/ca"        # made on first use
    ///   trust_domain = "mesh.local"
    ///   [[workload]]                          # all that is given must match
    ///   id = "spiffe://mesh.local/cart"
    ///   user = "cart"                         # or uid = 1000
    ///   group = "cart"                        # or gid = 1000
    ///   executable = "/usr/bin/cart"
    /// Also: socket_mode = "0666", leaf_ttl = "24h", connections_max = 1024, streams_max = 16.
    ///
    /// Clients find it by SPIFFE_ENDPOINT_SOCKET=unix:///run/ringmesh/workload.sock.
    ///
    /// Exit code: 0 after SIGTERM or SIGINT, 1 when something cannot be served, 2 when the file has errors.
    #[command(verbatim_doc_comment)]
    Serve {
        /// TOML file with the rules
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where to listen, in place of `socket` in the file
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// Folder of the authority, in place of `state` in the file
        #[arg(long, value_name = "FOLDER")]
        state: Option<PathBuf>,
        /// In place of `trust_domain` in the file
        #[arg(long, value_name = "NAME", value_parser = trust_domain)]
        trust_domain: Option<TrustDomain>,
    },
}

/// Where the authority is.
#[derive(Debug, Args)]
pub struct StateFolder {
    /// Folder of the authority; readable by its owner only
    #[arg(long = "state", value_name = "FOLDER", default_value = "/var/lib/ringmesh/ca")]
    folder: PathBuf,
}

/// An authority that is there.
#[derive(Debug, Args)]
pub struct Existing {
    #[command(flatten)]
    state: StateFolder,
    /// Refuse another trust domain's authority [default: whichever it is]
    #[arg(long, value_name = "NAME", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
}

/// Examples for the end of `ringmesh ca --help`.
pub const EXAMPLES: &str = "\
Examples:
  ringmesh ca init --trust-domain mesh.local
  ringmesh ca show
  ringmesh ca issue --id spiffe://mesh.local/ns/shop/sa/cart --out /etc/cart/tls
  ringmesh ca rotate-root                      the new root signs when nobody can lack it
  ringmesh ca rotate-root --grace 10m          all proxies learn the bundle in seconds
  ringmesh ca serve --config workloads.toml    the SPIFFE Workload API for this machine

All take --state FOLDER, /var/lib/ringmesh/ca if it is not given. Several processes may use one folder at a time.
Keep a copy of the folder where nobody else reads it: whoever has root-N.key can be anybody.";

/// Does it; gives the exit code.
pub fn run(command: Command, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    // A core dump would have the keys. Refused only where prctl is forbidden, and then nothing is worse than before.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let done = match command {
        Command::Init { state, trust_domain } => init(&state.folder, &trust_domain, out),
        Command::Show { authority, json } => show(&authority, json, out),
        Command::Issue { authority, id, ttl, out: folder } => issue(&authority, &id, ttl, &folder, out),
        Command::RotateRoot { authority, grace, now } => {
            let grace = if now { Some(Duration::ZERO) } else { grace };
            rotate(&authority, grace.map_or(Grace::LeavesEnd, Grace::For), out)
        }
        Command::Serve { config, socket, state, trust_domain } => {
            return serve::run(&config, serve::Overrides { socket, state, trust_domain }, err);
        }
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            tell(&error, err);
            1
        }
    }
}

/// A mistake and its remedy. Nobody reads any more: the exit code still tells.
pub(super) fn tell(error: &SourceError, err: &mut dyn Write) {
    let _ = writeln!(err, "error: {}\nhelp: {}", error.what, error.remedy);
}

fn init(folder: &Path, trust_domain: &TrustDomain, out: &mut dyn Write) -> Result<(), SourceError> {
    let authority = Authority::open_or_init(folder, trust_domain)?;
    print(out, &text_of(&authority.status()?, unix_now()))
}

fn show(existing: &Existing, json: bool, out: &mut dyn Write) -> Result<(), SourceError> {
    let status = existing.open()?.status()?;
    if json {
        let text = serde_json::to_string_pretty(&Shown::of(&status))
            .map_err(|error| refused(format!("cannot write JSON: {error}"), "leave out --json"))?;
        return print(out, &(text + "\n"));
    }
    print(out, &text_of(&status, unix_now()))
}

fn issue(
    existing: &Existing,
    id: &SpiffeId,
    ttl: Duration,
    folder: &Path,
    out: &mut dyn Write,
) -> Result<(), SourceError> {
    let authority = existing.open()?;
    let cannot = |path: &Path, error: &io::Error| {
        refused(
            format!("cannot write {}: {error}", path.display()),
            "name a folder that this user may write to",
        )
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .map_err(|error| cannot(folder, &error))?;
    let issued = authority.issue(id, ttl)?;
    let joined = |certificates: &[_]| certificates.iter().map(pem).collect::<String>();
    // The bundle first: whoever sees the new certificate trusts what is above it.
    let (bundle, key, chain) = (joined(&authority.bundle()?), key_pem(&issued.key), joined(&issued.chain));
    for (name, text, mode) in [
        ("bundle.pem", bundle.as_str(), 0o644),
        ("key.pem", key.as_str(), 0o600),
        ("cert.pem", &chain, 0o644),
    ] {
        let path = folder.join(name);
        write_whole(&path, text.as_bytes(), mode).map_err(|error| cannot(&path, &error))?;
    }
    print(out, &format!("{id} until {}, in {}\n", date(issued.not_after), folder.display()))
}

fn rotate(existing: &Existing, grace: Grace, out: &mut dyn Write) -> Result<(), SourceError> {
    let status = existing.open()?.rotate_root(grace)?;
    print(out, &text_of(&status, unix_now()))
}

impl Existing {
    fn open(&self) -> Result<Authority, SourceError> {
        let authority = Authority::open(&self.state.folder)?;
        match &self.trust_domain {
            Some(wanted) if wanted != authority.trust_domain() => Err(refused(
                format!(
                    "{} is the authority of trust domain {}, not of {wanted}",
                    self.state.folder.display(),
                    authority.trust_domain()
                ),
                "name the right folder with --state, or leave out --trust-domain",
            )),
            _ => Ok(authority),
        }
    }
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), SourceError> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| refused(format!("cannot write to standard output: {error}"), "let it be read"))
}

fn text_of(status: &Status, now: u64) -> String {
    let mut text = format!("trust domain {}, in {}\n", status.trust_domain, status.folder.display());
    let mut line = |of: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{of}");
    };
    for root in &status.roots {
        let phase = match root.phase {
            Phase::Announced => format!("announced: trusted, signs from {}", date(root.signs_from)),
            Phase::Signs => "signs".to_owned(),
            Phase::Retiring => "retiring: trusted until the last leaf under it has ended".to_owned(),
        };
        line(format_args!("\nroot {}  {phase}", root.number));
        line(format_args!("  sha256 {}", certificate::hex(&root.root.fingerprint)));
        line(format_args!("  {}", lifetime(root.root, now)));
        if let Some(issuer) = root.issuer {
            line(format_args!("  issuer"));
            line(format_args!("    sha256 {}", certificate::hex(&issuer.fingerprint)));
            line(format_args!("    {}", lifetime(issuer, now)));
        }
        match root.leaves_until {
            0 => line(format_args!("  no leaf was signed under it")),
            until => line(format_args!("  no leaf under it lives longer than {}", date(until))),
        }
    }
    if let Some(moment) = status.changes_at {
        line(format_args!("\nnext change by itself: {}", date(moment)));
    }
    text
}

fn lifetime(certificate: Summary, now: u64) -> String {
    let Summary { not_before, not_after, .. } = certificate;
    let left = match not_after.checked_sub(now) {
        None => "ENDED".to_owned(),
        Some(seconds) if seconds < 2 * super::DAY => format!("{} h left", seconds / 3600),
        Some(seconds) => format!("{} days left", seconds / super::DAY),
    };
    format!("from {} to {} ({left})", date(not_before), date(not_after))
}

fn date(seconds: u64) -> String {
    // As far as a date of HTTP goes; nothing of ours does.
    let latest = 253_402_300_799;
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(latest)))
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text)
        .map_err(|error| format!("{}; write a name such as mesh.local, without spiffe://", error.0))
}

fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text)
        .map_err(|error| format!("{}; write an id such as spiffe://mesh.local/ns/shop/sa/cart", error.0))
}

/// What `show --json` prints.
#[derive(Serialize)]
struct Shown<'s> {
    trust_domain: &'s str,
    folder: String,
    roots: Vec<ShownRoot>,
    changes_at: Option<u64>,
}

#[derive(Serialize)]
struct ShownRoot {
    number: u32,
    phase: Phase,
    #[serde(flatten)]
    certificate: ShownCertificate,
    signs_from: u64,
    leaves_until: u64,
    issuer: Option<ShownCertificate>,
}

#[derive(Serialize)]
struct ShownCertificate {
    sha256: String,
    not_before: u64,
    not_after: u64,
}

impl<'s> Shown<'s> {
    fn of(status: &'s Status) -> Self {
        Self {
            trust_domain: status.trust_domain.as_str(),
            folder: status.folder.display().to_string(),
            roots: status.roots.iter().map(ShownRoot::of).collect(),
            changes_at: status.changes_at,
        }
    }
}

impl ShownRoot {
    fn of(root: &RootStatus) -> Self {
        Self {
            number: root.number,
            phase: root.phase,
            certificate: ShownCertificate::of(root.root),
            signs_from: root.signs_from,
            leaves_until: root.leaves_until,
            issuer: root.issuer.map(ShownCertificate::of),
        }
    }
}

impl ShownCertificate {
    fn of(certificate: Summary) -> Self {
        Self {
            sha256: certificate::hex(&certificate.fingerprint),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        }
    }
}
