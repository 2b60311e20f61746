//! Identity from PEM files that somebody else renews (cert-manager, an operator, a script). Watched, also through the
//! swapped links of a Kubernetes volume.
//!
//! Files are replaced one after the other: between the first and the last the pair is wrong. Whatever a peer would refuse
//! is not sent on but said, and looked at again by itself, so that what works stays in use until all of the new is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{Material, SourceError, Update, pem, refused, rotation, unfit, unix_now};
use crate::control::watch::Watch;
use crate::identity::{Bundles, TrustDomain, verify};

/// Where they are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) bundle: PathBuf,
}

impl Files {
    /// Sends what the files say now, and again whenever that has changed, until nobody listens.
    pub(super) async fn run(self, updates: mpsc::Sender<Update>) {
        let paths = vec![self.certificate.clone(), self.key.clone(), self.bundle.clone()];
        let mut watch = Watch::certificates(paths);
        let mut sent: Option<Arc<Material>> = None;
        let mut failures = 0;
        loop {
            watch.mark();
            let failed = failures > 0;
            let update = match self.load(unix_now()) {
                Ok(material) => {
                    failures = 0;
                    let same = sent
                        .as_ref()
                        .is_some_and(|sent| sent.chain == material.chain && sent.bundles == material.bundles);
                    let material = Arc::new(material);
                    sent = Some(Arc::clone(&material));
                    // Also when nothing is new: what was wrong a moment ago is right again.
                    (!same || failed).then_some(Ok(material))
                }
                Err(error) => {
                    failures += 1;
                    Some(Err(error))
                }
            };
            if let Some(update) = update
                && updates.send(update).await.is_err()
            {
                return;
            }
            // The life of the certificate is not ours to know here; a day's pauses fit all.
            let pause = rotation::retry_after(failures, 24 * 3600, fastrand::f64());
            tokio::select! {
                () = watch.changed() => {}
                () = sleep(pause), if failures > 0 => {}
                () = updates.closed() => return,
            }
        }
    }

    /// What the files say, if a peer would take it at this moment.
    pub(super) fn load(&self, now: u64) -> Result<Material, SourceError> {
        let chain = pem::certificates(&self.certificate)?;
        let id = match chain.first().map(verify::leaf_id) {
            Some(Ok(id)) => id,
            Some(Err(cause)) => return Err(of(&self.certificate, unfit(cause))),
            None => return Err(refused(crate::identity::credentials::BadPair::Missing, "the identity")),
        };
        let mut bundles = Bundles::default();
        let roots = pem::certificates(&self.bundle)?;
        let domain = TrustDomain::parse(id.trust_domain()).map_err(|bad| SourceError {
            what: format!("{}: {}", self.certificate.display(), bad.0),
            remedy: "have it issued with a canonical id".into(),
        })?;
        bundles.set(&domain, roots).map_err(|bad| SourceError {
            what: format!("{}: {bad}", self.bundle.display()),
            remedy: "it must have the roots of the certificate's trust domain, and nothing else".into(),
        })?;
        // The key last: from here on it is wiped whatever happens.
        let material = Material { id, chain, key: pem::key(&self.key)?, bundles };
        crate::identity::credentials::pair(material.chain.clone(), &material.key).map_err(|bad| {
            refused(bad, &format!("{} and {}", self.certificate.display(), self.key.display()))
        })?;
        material.vet(now).map_err(|error| of(&self.certificate, error))?;
        Ok(material)
    }
}

fn of(path: &Path, error: SourceError) -> SourceError {
    SourceError { what: format!("{}: {}", path.display(), error.what), remedy: error.remedy }
}
