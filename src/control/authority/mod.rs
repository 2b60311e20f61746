//! The certificate authority that ringmesh carries: root → issuer → leaf in a folder, for one trust domain.
//!
//! Used by the source `embedded`, by `ringmesh ca`, and by the Workload API that it serves; several processes may use one
//! folder at a time. Nothing is kept in memory: each call reads the folder as it is now, so that a leaf is never signed
//! under a root that another process has retired. What is handed out is first written down (`leaves_until`), then signed.
//! Refuses to change or to write over files that it cannot read, and to sign for another trust domain.

mod certificate;
pub mod command;
mod folder;
mod serve;
mod state;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::control::identity::SourceError;
use crate::identity::{SpiffeId, TrustDomain};
use certificate::Validity;
use folder::{Folder, Locked, refused};
use state::{Root, State};

pub use state::Phase;

/// An authority in its folder. Cheap to keep and to ask: some file reads a call, and a lock where something changes.
#[derive(Debug, Clone)]
pub struct Authority {
    folder: Folder,
    trust_domain: TrustDomain,
}

/// A leaf with its key.
pub struct Issued {
    /// Leaf, then issuer. The root is in the bundle.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// Seconds of the Unix time; a minute before it was asked for, as clocks differ.
    pub not_before: u64,
    /// Seconds of the Unix time.
    pub not_after: u64,
}

/// How long a new root is only announced before it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grace {
    /// Until every leaf has ended that was issued before the announcement: whoever still has a living leaf got it together
    /// with the new root.
    LeavesEnd,
    /// So long. Zero: at once.
    For(Duration),
}

/// What there is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whose authority this is.
    pub trust_domain: TrustDomain,
    /// Where.
    pub folder: PathBuf,
    /// Trusted roots, oldest first.
    pub roots: Vec<RootStatus>,
    /// When a root starts to sign or leaves the bundle, seconds of the Unix time.
    pub changes_at: Option<u64>,
}

/// A root and the issuer under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootStatus {
    /// Its number in the names of its files.
    pub number: u32,
    /// Where it is on its way.
    pub phase: Phase,
    /// The root's certificate.
    pub root: Summary,
    /// The issuer's, once there is one.
    pub issuer: Option<Summary>,
    /// From when on it signs, seconds of the Unix time.
    pub signs_from: u64,
    /// No leaf under it ends later, seconds of the Unix time; 0 before the first one.
    pub leaves_until: u64,
}

/// What tells one certificate from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
    /// Seconds of the Unix time.
    pub not_before: u64,
    /// Seconds of the Unix time.
    pub not_after: u64,
}

/// A certificate of the authority with its key.
struct Pair {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

const DAY: u64 = 24 * 60 * 60;

impl Authority {
    /// How long a leaf lives if nobody says otherwise (Istio, ztunnel and Linkerd: the same).
    pub const LEAF_TTL: Duration = Duration::from_secs(DAY);
    /// How long a leaf may live: an issuer in use has so much left.
    pub const LEAF_TTL_MAX: Duration = Duration::from_secs(Self::ISSUER_LIFE / 3);
    /// A year (Consul: the same). Renewed in its last third, so that no leaf is cut short.
    const ISSUER_LIFE: u64 = 365 * DAY;
    /// Ten years (Istio: the same). A rotation begins by itself in its last fifth.
    const ROOT_LIFE: u64 = 3650 * DAY;
    /// How far a verifier's clock may be behind.
    const BACKDATED: u64 = 60;

    /// Opens the authority of a folder, or makes one there if the folder is empty or missing.
    ///
    /// # Errors
    /// When the folder is another trust domain's, cannot be used, or has files that are broken or missing. Nothing is
    /// written over then.
    pub fn open_or_init(folder: &Path, trust_domain: &TrustDomain) -> Result<Self, SourceError> {
        Self::open_or_init_at(folder, trust_domain, unix_now())
    }

    /// As [`Authority::open_or_init`], at this moment (seconds of the Unix time).
    ///
    /// # Errors
    /// As there.
    pub fn open_or_init_at(folder: &Path, trust_domain: &TrustDomain, now: u64) -> Result<Self, SourceError> {
        let folder = Folder::open_or_create(folder)?;
        let authority = Self { folder, trust_domain: trust_domain.clone() };
        match authority.read_state()? {
            Some(state) if !state.roots.is_empty() => {}
            _ => authority.init(now)?,
        }
        authority.check(now)?;
        Ok(authority)
    }

    /// Opens the authority of a folder, whichever trust domain's it is.
    ///
    /// # Errors
    /// When there is none, or as [`Authority::open_or_init`].
    pub fn open(folder: &Path) -> Result<Self, SourceError> {
        if !folder.join(STATE).exists() {
            return Err(refused(
                format!("there is no authority in {}", folder.display()),
                format!(
                    "make one: ringmesh ca init --state {} --trust-domain mesh.local; or name the right folder",
                    folder.display()
                ),
            ));
        }
        let folder = Folder::open_or_create(folder)?;
        let text = folder.read(STATE)?.unwrap_or_default();
        let state = parse_state(&folder.file(STATE), &text)?;
        let trust_domain = TrustDomain::parse(&state.trust_domain)
            .map_err(|error| broken(&folder.file(STATE), &format!("its trust domain: {}", error.0)))?;
        let authority = Self { folder, trust_domain };
        authority.check(unix_now())?;
        Ok(authority)
    }

    /// Whose authority this is.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A new leaf with a new key.
    ///
    /// # Errors
    /// When the id is not of the trust domain or has no path, the time to live is out of bounds, or the folder cannot be
    /// used.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, SourceError> {
        self.issue_at(id, ttl, unix_now())
    }

    /// As [`Authority::issue`], at this moment (seconds of the Unix time).
    ///
    /// # Errors
    /// As there.
    pub fn issue_at(&self, id: &SpiffeId, ttl: Duration, now: u64) -> Result<Issued, SourceError> {
        self.check_request(id, ttl)?;
        let locked = self.folder.lock()?;
        let (mut state, signer) = self.advance(&locked, now)?;
        let issuer = self.issuer(&locked, &mut state, signer, now)?;
        let issuer_validity = self.validity(&issuer.certificate)?;
        if now < issuer_validity.not_before {
            return Err(refused(
                format!(
                    "the clock says {now} s of the Unix time, but the issuer in {} begins {} s later",
                    self.folder.path().display(),
                    issuer_validity.not_before - now
                ),
                "set this machine's clock",
            ));
        }
        let validity = Validity {
            not_before: now.saturating_sub(Self::BACKDATED).max(issuer_validity.not_before),
            not_after: now.saturating_add(ttl.as_secs()).min(issuer_validity.not_after),
        };
        self.remember(&locked, &mut state, signer, validity.not_after, ttl)?;
        let made = |error| self.cannot_make("leaf", error);
        let mut key = certificate::new_key().map_err(made)?;
        let leaf = certificate::leaf(id, &key, (&issuer.certificate, &issuer.key), validity).map_err(made)?;
        let issued = Issued {
            chain: vec![leaf, issuer.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before: validity.not_before,
            not_after: validity.not_after,
        };
        key.zeroize();
        Ok(issued)
    }

    /// The roots to trust: one, or two while a rotation is under way.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn bundle(&self) -> Result<Vec<CertificateDer<'static>>, SourceError> {
        self.bundle_at(unix_now())
    }

    /// As [`Authority::bundle`], at this moment (seconds of the Unix time).
    ///
    /// # Errors
    /// As there.
    pub fn bundle_at(&self, now: u64) -> Result<Vec<CertificateDer<'static>>, SourceError> {
        self.unlocked(|state| {
            state.trusted(now).map(|(root, _)| self.certificate(&root_name(root.number))).collect()
        })
    }

    /// What there is.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn status(&self) -> Result<Status, SourceError> {
        self.status_at(unix_now())
    }

    /// As [`Authority::status`], at this moment (seconds of the Unix time).
    ///
    /// # Errors
    /// As there.
    pub fn status_at(&self, now: u64) -> Result<Status, SourceError> {
        self.unlocked(|state| {
            let roots = state.trusted(now).map(|(root, phase)| {
                let issuer = root.issuer.map(|number| self.summary(&issuer_name(number))).transpose()?;
                Ok(RootStatus {
                    number: root.number,
                    phase,
                    root: self.summary(&root_name(root.number))?,
                    issuer,
                    signs_from: root.signs_from,
                    leaves_until: root.leaves_until,
                })
            });
            Ok(Status {
                trust_domain: self.trust_domain.clone(),
                folder: self.folder.path().to_owned(),
                roots: roots.collect::<Result<_, SourceError>>()?,
                changes_at: state.changes_at(now),
            })
        })
    }

    /// Begins to replace the root, or changes when an announced one begins to sign. What follows happens by time.
    ///
    /// # Errors
    /// When the root before is still trusted, when one is announced and no other grace is given, or when the folder cannot
    /// be used.
    pub fn rotate_root(&self, grace: Grace) -> Result<Status, SourceError> {
        self.rotate_root_at(grace, unix_now())
    }

    /// As [`Authority::rotate_root`], at this moment (seconds of the Unix time).
    ///
    /// # Errors
    /// As there.
    pub fn rotate_root_at(&self, grace: Grace, now: u64) -> Result<Status, SourceError> {
        {
            let locked = self.folder.lock()?;
            let (mut state, signer) = self.advance(&locked, now)?;
            match (state.roots.get_mut(signer + 1), grace) {
                (Some(announced), Grace::For(grace)) => {
                    announced.signs_from = now.saturating_add(grace.as_secs());
                    self.write_state(&locked, &state)?;
                }
                (Some(announced), Grace::LeavesEnd) => {
                    return Err(refused(
                        format!(
                            "a rotation is under way: root {} signs in {} s",
                            announced.number,
                            announced.signs_from.saturating_sub(now)
                        ),
                        "wait, or let it sign earlier with --grace or --now",
                    ));
                }
                (None, _) if signer > 0 => {
                    let old = &state.roots[0];
                    return Err(refused(
                        format!(
                            "root {} is still trusted, for {} s: leaves under it are in use",
                            old.number,
                            old.trusted_until().saturating_sub(now)
                        ),
                        "begin the next rotation after that; a root whose key was stolen is no more trusted when all \
                         proxies are given a new folder",
                    ));
                }
                (None, _) => self.announce(&locked, &mut state, grace, now)?,
            }
        }
        self.status_at(now)
    }

    /// When a root begins to sign or leaves the bundle, if nobody does anything before (seconds of the Unix time).
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn changes_at(&self, now: u64) -> Result<Option<u64>, SourceError> {
        self.unlocked(|state| Ok(state.changes_at(now)))
    }

    // --- under the lock ---

    fn init(&self, now: u64) -> Result<(), SourceError> {
        let locked = self.folder.lock()?;
        let mut state = match self.read_state()? {
            // Another process was faster.
            Some(state) if !state.roots.is_empty() => return Ok(()),
            // An interrupted one: nothing was signed under what it left, which stays where it is.
            Some(state) => state,
            None => {
                let others: Vec<String> =
                    self.folder.names()?.into_iter().filter(|name| is_ours(name)).collect();
                if !others.is_empty() {
                    return Err(refused(
                        format!("{} has no {STATE}, but {}", self.folder.path().display(), others.join(", ")),
                        format!(
                            "put {STATE} back from a copy, or move the files away to begin anew (then nobody trusts what \
                             the old root has signed)"
                        ),
                    ));
                }
                let state = State::new(self.trust_domain.as_str());
                self.write_state(&locked, &state)?;
                state
            }
        };
        let root = self.make_root(&locked, &state, now, now)?;
        state.roots.push(root);
        self.issuer(&locked, &mut state, 0, now)?;
        tracing::info!(
            trust_domain = %self.trust_domain,
            folder = %self.folder.path().display(),
            "a certificate authority was made"
        );
        Ok(())
    }

    /// The state as it is at this moment, with the index of the root that signs.
    fn advance(&self, locked: &Locked, now: u64) -> Result<(State, usize), SourceError> {
        let mut state = self.state()?;
        let gone = state.take_gone(now);
        if !gone.is_empty() {
            self.write_state(locked, &state)?;
        }
        for root in gone {
            tracing::info!(
                root = root.number,
                "the last leaf under it has ended; the root is no more trusted"
            );
            self.remove(&root_name(root.number));
            root.issuer.into_iter().for_each(|number| self.remove(&issuer_name(number)));
        }
        // `state` refuses a file without roots.
        let signer = state.signer(now).unwrap_or(0);
        if state.roots.len() == 1 {
            let root = self.validity(&self.certificate(&root_name(state.roots[signer].number))?)?;
            if now > root.not_after.saturating_sub(Self::ROOT_LIFE / 5) {
                tracing::warn!(
                    "the root is in its last years: it is being replaced, as by `ringmesh ca rotate-root`"
                );
                self.announce(locked, &mut state, Grace::LeavesEnd, now)?;
            }
        }
        let signer = state.signer(now).unwrap_or(signer);
        Ok((state, signer))
    }

    fn announce(
        &self,
        locked: &Locked,
        state: &mut State,
        grace: Grace,
        now: u64,
    ) -> Result<(), SourceError> {
        let leaves_until = state.roots.iter().map(Root::trusted_until).max().unwrap_or(0);
        let signs_from = match grace {
            Grace::LeavesEnd => leaves_until.max(now),
            Grace::For(grace) => now.saturating_add(grace.as_secs()),
        };
        let root = self.make_root(locked, state, now, signs_from)?;
        tracing::info!(root = root.number, signs_in = signs_from - now, "a new root is trusted");
        state.roots.push(root);
        self.write_state(locked, state)
    }

    fn make_root(
        &self,
        locked: &Locked,
        state: &State,
        now: u64,
        signs_from: u64,
    ) -> Result<Root, SourceError> {
        let number = self.free_number("root-", state.roots.iter().map(|root| root.number).max())?;
        let made = |error| self.cannot_make("root", error);
        let key = certificate::new_key().map_err(made)?;
        let validity = Validity {
            not_before: now.saturating_sub(Self::BACKDATED),
            not_after: now.saturating_add(Self::ROOT_LIFE),
        };
        let certificate = certificate::root(&self.trust_domain, number, &key, validity).map_err(made)?;
        self.write_pair(locked, &root_name(number), Pair { certificate, key })?;
        Ok(Root { number, issuer: None, signs_from, leaves_until: 0 })
    }

    /// The issuer under the root that signs; a new one when there is none or it is in its last third.
    fn issuer(
        &self,
        locked: &Locked,
        state: &mut State,
        signer: usize,
        now: u64,
    ) -> Result<Pair, SourceError> {
        let before = state.roots[signer].issuer;
        if let Some(number) = before {
            let pair = self.pair(&issuer_name(number))?;
            let validity = self.validity(&pair.certificate)?;
            let life = validity.not_after.saturating_sub(validity.not_before);
            if now < validity.not_after.saturating_sub(life / 3) {
                return Ok(pair);
            }
        }
        let root = self.pair(&root_name(state.roots[signer].number))?;
        let root_validity = self.validity(&root.certificate)?;
        if now >= root_validity.not_after {
            return Err(refused(
                format!("root {} has ended", state.roots[signer].number),
                "nothing that it signed is trusted any more: begin anew in another folder",
            ));
        }
        let number = self.free_number("issuer-", before)?;
        let made = |error| self.cannot_make("issuer", error);
        let key = certificate::new_key().map_err(made)?;
        let validity = Validity {
            not_before: now.saturating_sub(Self::BACKDATED).max(root_validity.not_before),
            not_after: now.saturating_add(Self::ISSUER_LIFE).min(root_validity.not_after),
        };
        let signing = (&root.certificate, &root.key);
        let certificate =
            certificate::issuer(&self.trust_domain, number, &key, signing, validity).map_err(made)?;
        let name = issuer_name(number);
        self.write_pair(locked, &name, Pair { certificate, key })?;
        state.roots[signer].issuer = Some(number);
        self.write_state(locked, state)?;
        // Leaves carry its certificate; its key signs nothing any more.
        before.into_iter().for_each(|number| self.remove(&issuer_name(number)));
        self.pair(&name)
    }

    /// Writes down until when leaves under a root live, before one is handed out.
    fn remember(
        &self,
        locked: &Locked,
        state: &mut State,
        signer: usize,
        not_after: u64,
        ttl: Duration,
    ) -> Result<(), SourceError> {
        let root = &mut state.roots[signer];
        if not_after <= root.leaves_until {
            return Ok(());
        }
        // A little more than needed, so that not every leaf costs a write to the disk.
        root.leaves_until = not_after.saturating_add((ttl.as_secs() / 8).min(60 * 60));
        self.write_state(locked, state)
    }

    fn write_pair(&self, _: &Locked, name: &str, mut pair: Pair) -> Result<(), SourceError> {
        let key = Zeroizing::new(pair.key.serialize_pem());
        pair.key.zeroize();
        self.folder.write_new(&format!("{name}.key"), key.as_bytes())?;
        self.folder.write_new(&format!("{name}.pem"), pem(&pair.certificate).as_bytes())
    }

    fn write_state(&self, _: &Locked, state: &State) -> Result<(), SourceError> {
        let text = serde_json::to_string_pretty(state)
            .map_err(|error| broken(&self.folder.file(STATE), &error.to_string()))?;
        self.folder.replace(STATE, text.as_bytes())
    }

    fn free_number(&self, prefix: &str, used: Option<u32>) -> Result<u32, SourceError> {
        let names = self.folder.names()?;
        let number = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse::<u32>().ok();
        let there = names.iter().filter_map(number).max();
        Ok(there.max(used).unwrap_or(0).saturating_add(1))
    }

    // --- without it ---

    /// Looks at the state without the lock. A root that another process retires meanwhile is missing then: once more.
    fn unlocked<T>(&self, look: impl Fn(&State) -> Result<T, SourceError>) -> Result<T, SourceError> {
        let state = self.state()?;
        match look(&state) {
            Err(error) => {
                let after = self.state()?;
                if after == state { Err(error) } else { look(&after) }
            }
            found => found,
        }
    }

    fn state(&self) -> Result<State, SourceError> {
        match self.read_state()? {
            Some(state) if !state.roots.is_empty() => Ok(state),
            _ => Err(refused(
                format!("{} is no more the folder of an authority", self.folder.path().display()),
                format!("put {STATE} back from a copy, with the files that it names"),
            )),
        }
    }

    fn read_state(&self) -> Result<Option<State>, SourceError> {
        let path = self.folder.file(STATE);
        let Some(text) = self.folder.read(STATE)? else { return Ok(None) };
        let state = parse_state(&path, &text)?;
        if state.trust_domain != self.trust_domain.as_str() {
            return Err(refused(
                format!(
                    "{} is the authority of trust domain {}, not of {}",
                    self.folder.path().display(),
                    state.trust_domain,
                    self.trust_domain
                ),
                "name another folder, or the trust domain that this one was made for: an authority has one for ever",
            ));
        }
        Ok(Some(state))
    }

    /// Whether what is needed to sign can be read, so that it is known at the start and not when a leaf ends.
    fn check(&self, now: u64) -> Result<(), SourceError> {
        self.unlocked(|state| {
            for (root, _) in state.trusted(now) {
                self.certificate(&root_name(root.number))?;
                root.issuer.map(|number| self.pair(&issuer_name(number))).transpose()?;
            }
            Ok(())
        })
    }

    fn check_request(&self, id: &SpiffeId, ttl: Duration) -> Result<(), SourceError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(refused(
                format!("{id} is not of trust domain {}", self.trust_domain),
                "an authority signs for its own trust domain only; others are trusted by their bundles",
            ));
        }
        if id.path().is_empty() {
            return Err(refused(
                format!("{id} has no path: it names the trust domain itself"),
                format!("name a workload, as in {id}/ns/shop/sa/cart"),
            ));
        }
        if ttl < Duration::from_secs(1) || ttl > Self::LEAF_TTL_MAX {
            return Err(refused(
                format!("a leaf cannot live for {ttl:?}"),
                format!("from 1s to {}h", Self::LEAF_TTL_MAX.as_secs() / 3600),
            ));
        }
        Ok(())
    }

    fn pair(&self, name: &str) -> Result<Pair, SourceError> {
        let certificate = self.certificate(name)?;
        let path = self.folder.file(&format!("{name}.key"));
        let text = self.folder.read_key(&format!("{name}.key"))?.ok_or_else(|| missing(&path))?;
        let key = KeyPair::from_pem(&text).map_err(|error| broken(&path, &error.to_string()))?;
        match certificate::belongs(&key, &certificate) {
            Ok(true) => Ok(Pair { certificate, key }),
            _ => Err(broken(&path, &format!("it is not the key of {name}.pem"))),
        }
    }

    fn certificate(&self, name: &str) -> Result<CertificateDer<'static>, SourceError> {
        let path = self.folder.file(&format!("{name}.pem"));
        let text = self.folder.read(&format!("{name}.pem"))?.ok_or_else(|| missing(&path))?;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| broken(&path, &error.to_string()))?;
        certificate::validity(&certificate).map_err(|error| broken(&path, &error.to_string()))?;
        Ok(certificate)
    }

    fn validity(&self, certificate: &CertificateDer<'_>) -> Result<Validity, SourceError> {
        certificate::validity(certificate).map_err(|error| broken(self.folder.path(), &error.to_string()))
    }

    fn summary(&self, name: &str) -> Result<Summary, SourceError> {
        let certificate = self.certificate(name)?;
        let Validity { not_before, not_after } = self.validity(&certificate)?;
        Ok(Summary { fingerprint: certificate::fingerprint(&certificate), not_before, not_after })
    }

    fn remove(&self, name: &str) {
        // The key first: it must not stay behind alone.
        self.folder.remove(&format!("{name}.key"));
        self.folder.remove(&format!("{name}.pem"));
    }

    fn cannot_make(&self, what: &str, error: certificate::CertificateError) -> SourceError {
        refused(
            format!("cannot make a new {what} in {}: {error}", self.folder.path().display()),
            "look whether its files are whole: ringmesh ca show",
        )
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Now, seconds of the Unix time.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A certificate as PEM.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    armour("CERTIFICATE", certificate)
}

/// A key as PEM, wiped after use.
pub fn key_pem(key: &PrivateKeyDer<'_>) -> Zeroizing<String> {
    Zeroizing::new(armour("PRIVATE KEY", key.secret_der()))
}

fn armour(what: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    // Made once at its full length: a text that grows leaves copies behind.
    let mut armoured = String::with_capacity(text.len() + text.len() / 64 + 2 * what.len() + 40);
    armoured.push_str("-----BEGIN ");
    armoured.push_str(what);
    armoured.push_str("-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        armoured.push_str(line);
        armoured.push('\n');
        rest = after;
    }
    armoured.push_str("-----END ");
    armoured.push_str(what);
    armoured.push_str("-----\n");
    armoured
}

fn parse_state(path: &Path, text: &str) -> Result<State, SourceError> {
    let state: State = serde_json::from_str(text).map_err(|error| broken(path, &error.to_string()))?;
    if state.version != State::VERSION {
        return Err(refused(
            format!("{} is of version {}, this is {}", path.display(), state.version, State::VERSION),
            "use the ringmesh that wrote it, or a later one",
        ));
    }
    Ok(state)
}

fn broken(path: &Path, why: &str) -> SourceError {
    refused(
        format!("{} is broken: {why}", path.display()),
        "put it back from a copy; nothing was changed. Without a copy: begin anew in another folder",
    )
}

fn missing(path: &Path) -> SourceError {
    refused(
        format!("{} is missing", path.display()),
        "put it back from a copy; nothing was changed. Without a copy: begin anew in another folder",
    )
}

fn is_ours(name: &str) -> bool {
    (name.starts_with("root-") || name.starts_with("issuer-"))
        && (name.ends_with(".pem") || name.ends_with(".key"))
}

fn root_name(number: u32) -> String {
    format!("root-{number}")
}

fn issuer_name(number: u32) -> String {
    format!("issuer-{number}")
}

/// The state's file.
const STATE: &str = "authority.json";

#[cfg(test)]
#[path = "authority_test.rs"]
mod tests;
