//! What this proxy presents now: takes what the source sends, keeps what works, and tells the control loop when there is
//! something to publish. Also the certificates of edges, whose files it watches.
//!
//! A certificate that has ended stays presented: peers refuse it with a reason that names it, which helps more than no
//! certificate. The proxy is not ready then, as every handshake of the mesh would fail.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::edge::{self, Built};
use super::embedded::{Embedded, InFolder};
use super::facts::Facts;
use super::files::Files;
use super::rotation::{self, Standing};
use super::workload_api;
use super::{
    IdentitySource, Material, SourceError, TlsSettings, UPDATES_MAX, Update, pem, refused, seal, unix_now,
};
use crate::control::watch::Watch;
use crate::identity::credentials::mesh_protocols;
use crate::identity::{Bundles, Credentials, TrustDomain};
use crate::snapshot::Presented;

/// The certificates of one proxy.
pub(crate) struct Keyring {
    /// Whether HTTP/2 is offered.
    http2: bool,
    settings: TlsSettings,
    source: Option<Running>,
    /// The last that worked.
    material: Option<Arc<Material>>,
    /// Of each federated domain the roots that were read last.
    federated: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    credentials: Option<Arc<Credentials>>,
    built: Built,
    /// Of the files of federated domains and of edges.
    watch: Watch,
    status: Arc<Mutex<Status>>,
    /// How the leaf stood when that was last said.
    said: Standing,
    /// When that is looked at next.
    look: Instant,
}

/// What a new configuration needs, ready to be taken: nothing can fail any more.
pub(crate) struct Prepared {
    settings: TlsSettings,
    built: Built,
}

/// A source at work. It ends with this.
struct Running {
    task: JoinHandle<()>,
    updates: mpsc::Receiver<Update>,
}

/// For pages and metrics. No keys.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Where the identity comes from; `None` when none is configured.
    pub(crate) source: Option<String>,
    /// Who this proxy is, once that is known.
    pub(crate) id: Option<String>,
    /// Leaf first.
    pub(crate) chain: Vec<Facts>,
    /// By trust domain.
    pub(crate) bundles: Vec<(String, Vec<Facts>)>,
    /// By listener, leaf first.
    pub(crate) terminations: Vec<(String, Vec<Facts>)>,
    /// What went wrong since the last time that it went right.
    pub(crate) problem: Option<(SystemTime, SourceError)>,
    /// Leaves taken into use.
    pub(crate) rotations_good: u64,
    /// Times that there should have been something new and was not.
    pub(crate) rotations_bad: u64,
    next: Arc<AtomicU64>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keyring {
    /// With nothing on it.
    pub(crate) fn new(http2: bool) -> Self {
        Self {
            http2,
            settings: TlsSettings::default(),
            source: None,
            material: None,
            federated: BTreeMap::new(),
            credentials: None,
            built: Built::default(),
            watch: Watch::certificates(Vec::new()),
            status: Arc::default(),
            said: Standing::Young,
            look: Instant::now() + rotation::LOOK,
        }
    }

    /// How things are; read by the admin pages.
    pub(crate) fn status(&self) -> Arc<Mutex<Status>> {
        Arc::clone(&self.status)
    }

    /// Reads what a new configuration needs of files that must be there. Changes nothing.
    ///
    /// # Errors
    /// When a certificate, key or file of roots of an edge cannot be used.
    pub(crate) fn prepare(&self, settings: &TlsSettings) -> Result<Prepared, SourceError> {
        let (built, problems) = edge::build(settings, (&self.settings, &self.built), self.http2)?;
        for problem in problems {
            self.complain(problem);
        }
        Ok(Prepared { settings: settings.clone(), built })
    }

    /// Takes a new configuration into use. A source that is new is waited for, at most for `wait`; what it replaces stays
    /// in use until it has something.
    pub(crate) async fn adopt(&mut self, prepared: Prepared, wait: Duration) {
        let Prepared { settings, built } = prepared;
        let before = std::mem::replace(&mut self.settings, settings);
        self.built = built;
        let files = self.watched();
        // Before they are read, or a change in between would be missed.
        self.watch = Watch::certificates(files);
        self.read_federated();
        let (was, is) = (before.identity, self.settings.identity.clone());
        match (was.map(|was| was.source), is.map(|is| is.source)) {
            (_, None) => {
                self.source = None;
                self.material = None;
                self.credentials = None;
                *self.lock() = Status::default();
            }
            (Some(was), Some(is)) if was == is && self.source.is_some() => {
                self.combine();
            }
            (_, Some(is)) => {
                seal();
                self.begin(&is);
                self.first_update(wait).await;
            }
        }
        self.describe();
    }

    /// Returns when there is something new to publish. Nothing is lost when this future is dropped.
    pub(crate) async fn changed(&mut self) {
        loop {
            tokio::select! {
                Some(update) = next(&mut self.source) => {
                    if self.take(update, unix_now()) {
                        return;
                    }
                }
                () = self.watch.changed() => {
                    self.watch.mark();
                    if self.read_again() {
                        return;
                    }
                }
                () = sleep_until(self.look) => {
                    self.look = Instant::now() + rotation::LOOK;
                    self.say_standing(unix_now());
                }
            }
        }
    }

    /// For the next snapshot.
    pub(crate) fn presented(&self) -> Presented {
        let terminations = self.built.terminations.iter();
        Presented {
            identity: self.credentials.clone(),
            terminations: terminations.map(|(name, (one, _))| (Arc::clone(name), one.clone())).collect(),
            edges: self.built.edges.clone(),
        }
    }

    fn begin(&mut self, source: &IdentitySource) {
        let (sender, updates) = mpsc::channel(UPDATES_MAX);
        let next = Arc::<AtomicU64>::default();
        let (task, shown) = match source.clone() {
            IdentitySource::Embedded { folder, trust_domain, id, leaf_ttl } => {
                let shown = format!("embedded, authority in {}", folder.display());
                let asked = InFolder { folder, trust_domain };
                let embedded = Embedded { asked, id, ttl: leaf_ttl, next: Arc::clone(&next) };
                (tokio::spawn(embedded.run(sender)), shown)
            }
            IdentitySource::Files { certificate, key, bundle } => {
                let shown = format!("files, certificate {}", certificate.display());
                let files = Files { certificate, key, bundle };
                (tokio::spawn(files.run(sender)), shown)
            }
            IdentitySource::WorkloadApi { socket, id } => {
                let shown = match &socket {
                    Some(socket) => format!("workload-api, socket {socket}"),
                    None => "workload-api, socket by SPIFFE_ENDPOINT_SOCKET".to_owned(),
                };
                (tokio::spawn(workload_api::run(socket, id, sender)), shown)
            }
        };
        {
            let mut status = self.lock();
            status.source = Some(shown);
            status.problem = None;
            status.next = Arc::clone(&next);
        }
        self.source = Some(Running { task, updates });
    }

    async fn first_update(&mut self, wait: Duration) {
        let deadline = Instant::now() + wait;
        match timeout_at(deadline, next(&mut self.source)).await {
            Ok(Some(update)) => {
                self.take(update, unix_now());
            }
            Ok(None) | Err(_) => {
                tracing::warn!(?wait, "no identity yet; not ready until there is one: see /identity");
            }
        }
    }

    /// Whether there is something new.
    fn take(&mut self, update: Update, now: u64) -> bool {
        let taken = update.and_then(|material| {
            material.vet(now)?;
            Ok(material)
        });
        match taken {
            Ok(material) => {
                let new = self.material.as_ref().is_none_or(|old| old.chain != material.chain);
                let before = self.material.replace(Arc::clone(&material));
                if !self.combine() {
                    self.material = before;
                    return false;
                }
                self.said = Standing::Young;
                {
                    let mut status = self.lock();
                    status.problem = None;
                    status.rotations_good += u64::from(new);
                }
                self.describe();
                let leaf = material.chain.first().map(Facts::of);
                let not_after = leaf.as_ref().map_or(0, |leaf| leaf.not_after);
                let serial = leaf.map_or_else(String::new, |leaf| leaf.serial);
                let left = Duration::from_secs(not_after.saturating_sub(now));
                tracing::info!(id = %material.id, serial, ?left, "identity in use");
                true
            }
            Err(error) => {
                self.lock().rotations_bad += 1;
                self.complain(error);
                false
            }
        }
    }

    /// Builds the credentials from the material and the federated roots. Whether that was possible; if not, those before
    /// stay.
    fn combine(&mut self) -> bool {
        let Some(material) = self.material.clone() else { return true };
        let bundles = Arc::new(self.bundles(&material));
        let same = self
            .credentials
            .as_ref()
            .is_some_and(|credentials| credentials.chain == material.chain && credentials.bundles == bundles);
        if same {
            return true;
        }
        let protocols = mesh_protocols(self.http2);
        match Credentials::new(material.chain.clone(), &material.key, bundles, &protocols) {
            Ok(credentials) => {
                self.credentials = Some(Arc::new(credentials));
                true
            }
            Err(bad) => {
                self.complain(refused(bad, "this identity"));
                false
            }
        }
    }

    /// Those of the source, and those declared where the source says nothing.
    fn bundles(&self, material: &Material) -> Bundles {
        let mut bundles = material.bundles.clone();
        for (domain, roots) in &self.federated {
            if !bundles.roots(domain.as_str()).is_empty() {
                continue;
            }
            if let Err(bad) = bundles.set(domain, roots.clone()) {
                self.complain(SourceError {
                    what: format!("federated trust domain {domain}: {bad}"),
                    remedy: "its file must have the certificates of its root CAs, as PEM".into(),
                });
            }
        }
        bundles
    }

    /// Reads the bundles of the federated domains; one that cannot be used stays as it was.
    fn read_federated(&mut self) {
        let declared = self.settings.identity.as_ref().map_or(&[][..], |identity| &identity.federated);
        let mut read = BTreeMap::new();
        let mut problems = Vec::new();
        for (domain, path) in declared {
            let checked = pem::certificates(path).and_then(|roots| {
                let usable = Bundles::default().set(domain, roots.clone());
                usable.map(|()| roots).map_err(|bad| SourceError {
                    what: format!("{}: {bad}", path.display()),
                    remedy: "it must have the certificates of that domain's root CAs, as PEM".into(),
                })
            });
            match (checked, self.federated.get(domain)) {
                (Ok(roots), _) => {
                    read.insert(domain.clone(), roots);
                }
                (Err(problem), before) => {
                    problems.push(problem);
                    read.extend(before.map(|roots| (domain.clone(), roots.clone())));
                }
            }
        }
        self.federated = read;
        for problem in problems {
            self.complain(problem);
        }
    }

    /// A watched file has changed. Whether there is something new.
    fn read_again(&mut self) -> bool {
        let before = self.credentials.clone();
        self.read_federated();
        self.combine();
        let mut new = match (&before, &self.credentials) {
            (Some(before), Some(now)) => !Arc::ptr_eq(before, now),
            (before, now) => before.is_some() != now.is_some(),
        };
        if new {
            tracing::info!("federated trust has changed");
        }
        match edge::build(&self.settings, (&self.settings, &self.built), self.http2) {
            Ok((built, problems)) => {
                if !built.same(&self.built) {
                    tracing::info!("certificates of edges have changed");
                    new = true;
                }
                self.built = built;
                for problem in problems {
                    self.complain(problem);
                }
            }
            Err(problem) => self.complain(problem),
        }
        self.describe();
        new
    }

    fn watched(&self) -> Vec<PathBuf> {
        let federated = self.settings.identity.iter().flat_map(|identity| &identity.federated);
        let mut files = edge::files(&self.settings);
        files.extend(federated.map(|(_, path)| path.clone()));
        files
    }

    /// Says what went wrong, as loudly as the leaf is near its end.
    fn complain(&self, error: SourceError) {
        let standing = self.standing(unix_now());
        let SourceError { what, remedy } = &error;
        match standing {
            Some((Standing::Young, left)) => {
                tracing::info!(?left, "{what}; what works stays in use: {remedy}");
            }
            Some((Standing::Old, left)) => {
                tracing::warn!(?left, "{what}; what works stays in use: {remedy}");
            }
            Some((Standing::Last, left)) => {
                tracing::error!(?left, "{what}; the identity ends soon, and the mesh with it: {remedy}");
            }
            Some((Standing::Ended, _)) => {
                tracing::error!("{what}; the identity has ended and peers refuse it: {remedy}");
            }
            None => tracing::error!("{what}: {remedy}"),
        }
        self.lock().problem = Some((SystemTime::now(), error));
    }

    /// Says that the leaf grows old although nobody complains: once each time that it is worse.
    fn say_standing(&mut self, now: u64) {
        let Some((standing, left)) = self.standing(now) else { return };
        if standing <= self.said {
            return;
        }
        self.said = standing;
        let renew = "whoever renews it did not: see /identity";
        match standing {
            Standing::Young | Standing::Old => {}
            Standing::Last => tracing::error!(?left, "the identity ends soon; {renew}"),
            Standing::Ended => {
                tracing::error!(
                    "the identity has ended; peers refuse it, and this proxy is not ready; {renew}"
                );
            }
        }
    }

    fn standing(&self, now: u64) -> Option<(Standing, Duration)> {
        let status = self.lock();
        let leaf = status.chain.first().filter(|_| status.source.is_some())?;
        let left = Duration::from_secs(leaf.not_after.saturating_sub(now));
        Some((Standing::at(leaf.not_before, leaf.not_after, now), left))
    }

    /// Brings the status up to date.
    fn describe(&self) {
        let mut status = self.lock();
        let Status { id, chain, bundles, terminations, .. } = &mut *status;
        *id = self.credentials.as_ref().map(|credentials| credentials.id.to_string());
        *chain = self.credentials.as_ref().map_or_else(Vec::new, |c| Facts::all(&c.chain));
        *bundles = self.credentials.iter().flat_map(|credentials| credentials.bundles.iter()).fold(
            Vec::new(),
            |mut all, (domain, roots)| {
                all.push((domain.to_string(), Facts::all(roots)));
                all
            },
        );
        let built = self.built.terminations.iter();
        *terminations = built.map(|(name, (_, facts))| (name.to_string(), facts.clone())).collect();
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    /// When the leaf is renewed next, seconds of the Unix time; `None` where somebody else decides that.
    pub(crate) fn next_renewal(&self) -> Option<u64> {
        Some(self.next.load(Ordering::Acquire)).filter(|moment| *moment > 0)
    }

    /// Why traffic is not welcome, if it is not.
    pub(crate) fn unready(&self, now: u64) -> Option<String> {
        self.source.as_ref()?;
        let Some(leaf) = self.chain.first() else {
            let why = self.problem.as_ref().map_or_else(
                || "the source has not answered yet".to_owned(),
                |(_, error)| format!("{error}; {}", error.remedy),
            );
            return Some(format!("identity: none yet: {why}"));
        };
        (leaf.not_after < now).then(|| {
            format!(
                "identity: {} has ended at {} s of the Unix time; peers refuse it",
                leaf.name, leaf.not_after
            )
        })
    }
}

/// The next word of the source; `None` at once where there is none (any more).
async fn next(source: &mut Option<Running>) -> Option<Update> {
    source.as_mut()?.updates.recv().await
}
