//! Identity from ringmesh's own authority: asks it for a leaf, and again at half its life. Looks at its bundle in between,
//! since another process may rotate the root. The authority reads files and waits for a lock, so it is asked on a thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Material, SourceError, Update, rotation, unix_now};
use crate::control::authority::{Authority, Issued};
use crate::identity::{Bundles, SpiffeId, TrustDomain};

/// Who is asked for leaves. One there is; tests have their own.
pub(super) trait Asked: Send + 'static {
    /// A new leaf with a new key.
    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, SourceError>;
    /// The roots to trust now.
    fn bundle(&self) -> Result<Vec<CertificateDer<'static>>, SourceError>;
}

/// The authority of a folder, opened anew each time: nothing is lost when the folder is put there later.
pub(super) struct InFolder {
    pub(super) folder: PathBuf,
    pub(super) trust_domain: TrustDomain,
}

impl Asked for InFolder {
    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, SourceError> {
        Authority::open_or_init(&self.folder, &self.trust_domain)?.issue(id, ttl)
    }

    fn bundle(&self) -> Result<Vec<CertificateDer<'static>>, SourceError> {
        Authority::open_or_init(&self.folder, &self.trust_domain)?.bundle()
    }
}

/// What is asked for.
pub(super) struct Embedded<A> {
    pub(super) asked: A,
    pub(super) id: SpiffeId,
    pub(super) ttl: Duration,
    /// Where the moment of the next renewal is told, seconds of the Unix time.
    pub(super) next: Arc<AtomicU64>,
}

/// The most between two looks at the bundle. A new root is announced long before it signs, by the life of a leaf.
const BUNDLE_LOOK: Duration = Duration::from_secs(5);

impl<A: Asked> Embedded<A> {
    /// Sends a leaf now, and the next ones in time, until nobody listens.
    pub(super) async fn run(self, updates: mpsc::Sender<Update>) {
        let Self { mut asked, id, ttl, next } = self;
        let look = BUNDLE_LOOK.min(ttl / 10).max(Duration::from_millis(200));
        let mut failures = 0;
        let mut sent: Option<Arc<Material>> = None;
        loop {
            let request = id.clone();
            let (back, made) = on_thread(asked, move |asked| obtain(asked, &request, ttl)).await;
            let Some(back) = back else {
                let _ = updates.send(Err(panicked())).await;
                return;
            };
            asked = back;
            let now = unix_now();
            let (update, pause) = match made {
                Ok((material, not_after)) => {
                    failures = 0;
                    let material = Arc::new(material);
                    sent = Some(Arc::clone(&material));
                    (Ok(material), rotation::renew_after(now, not_after, fastrand::f64()))
                }
                Err(error) => {
                    failures += 1;
                    (Err(error), rotation::retry_after(failures, ttl.as_secs(), fastrand::f64()))
                }
            };
            let due = now.saturating_add(pause.as_secs());
            next.store(due, Ordering::Release);
            if updates.send(update).await.is_err() {
                return;
            }

            let moment = Instant::now() + pause;
            // By both clocks: the machine may sleep, or be told another time.
            while Instant::now() < moment && unix_now() <= due {
                tokio::select! {
                    () = sleep_until(moment.min(Instant::now() + look.min(rotation::LOOK))) => {}
                    () = updates.closed() => return,
                }
                let Some(last) = &sent else { continue };
                let (back, bundle) = on_thread(asked, |asked| asked.bundle()).await;
                let Some(back) = back else { return };
                asked = back;
                // An error here is told by the next renewal, which meets it too.
                let Ok(roots) = bundle else { continue };
                if roots != last.bundles.roots(id.trust_domain()) {
                    // A bundle is not worth a key that stays around: a new leaf goes with it.
                    break;
                }
            }
        }
    }
}

/// A leaf with the bundle, and when it ends.
fn obtain(asked: &impl Asked, id: &SpiffeId, ttl: Duration) -> Result<(Material, u64), SourceError> {
    let Issued { chain, key, not_after, .. } = asked.issue(id, ttl)?;
    let mut material = Material { id: id.clone(), chain, key, bundles: Bundles::default() };
    let bad = |what: String| SourceError {
        what: format!("the authority's bundle: {what}"),
        remedy: "look at it with ringmesh ca show".into(),
    };
    let domain = TrustDomain::parse(id.trust_domain()).map_err(|error| bad(error.0.to_owned()))?;
    material.bundles.set(&domain, asked.bundle()?).map_err(|error| bad(error.to_string()))?;
    Ok((material, not_after))
}

async fn on_thread<A: Asked, R: Send + 'static>(
    asked: A,
    ask: impl FnOnce(&A) -> Result<R, SourceError> + Send + 'static,
) -> (Option<A>, Result<R, SourceError>) {
    let answer = tokio::task::spawn_blocking(move || {
        let answer = ask(&asked);
        (asked, answer)
    });
    match answer.await {
        Ok((asked, answer)) => (Some(asked), answer),
        Err(_) => (None, Err(panicked())),
    }
}

fn panicked() -> SourceError {
    SourceError {
        what: "the authority panicked".into(),
        remedy: "please report this with the log above; restart to ask it again".into(),
    }
}
