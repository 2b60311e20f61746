//! The source `workload-api`: identities from a SPIFFE Workload API (SPIRE's agent, `ringmesh ca serve`) over its stream.
//!
//! Each message is the whole state: identities, our own bundle, those federated. When the stream ends or is refused it is
//! opened again, later each time; what was sent before stays in use meanwhile. Refuses identities that are not canonical,
//! and to choose when it was told whom to be.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context, X509Svid};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::{Material, SourceError, Update};
use crate::identity::{Bundles, SpiffeId, TrustDomain};

/// Follows the API until nobody listens to `updates` any more. `socket` is `unix:///path` or a path; without it
/// SPIFFE_ENDPOINT_SOCKET says where. Of several identities `want` is taken, or else the first.
pub async fn run(socket: Option<String>, want: Option<SpiffeId>, updates: mpsc::Sender<Update>) {
    let mut pause = PAUSE_MIN;
    loop {
        let error = tokio::select! {
            () = updates.closed() => return,
            ended = follow(socket.as_deref(), want.as_ref(), &updates, &mut pause) => ended,
        };
        // `None`: nobody listens.
        let Some(error) = error else { return };
        if updates.send(Err(error)).await.is_err() {
            return;
        }
        // Not all proxies of a machine come back in the same moment.
        let wait = pause.mul_f64(0.5 + 0.5 * fastrand::f64());
        pause = (pause * 2).min(PAUSE_MAX);
        tokio::select! {
            () = updates.closed() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One stream, to its end; gives why it ended.
async fn follow(
    socket: Option<&str>,
    want: Option<&SpiffeId>,
    updates: &mpsc::Sender<Update>,
    pause: &mut Duration,
) -> Option<SourceError> {
    let endpoint = match endpoint(socket, std::env::var(VARIABLE).ok()) {
        Ok(endpoint) => endpoint,
        Err(error) => return Some(error),
    };
    let open = async { WorkloadApiClient::connect_to(&endpoint).await?.stream_x509_contexts().await };
    let mut stream = match tokio::time::timeout(ANSWER_TIMEOUT, open).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Some(explained(&endpoint, &error)),
        Err(_) => return Some(silent(&endpoint)),
    };
    let mut answered = false;
    loop {
        // Only the first message is due; the others come when something changes.
        let message = if answered {
            stream.next().await
        } else {
            match tokio::time::timeout(ANSWER_TIMEOUT, stream.next()).await {
                Ok(message) => message,
                Err(_) => return Some(silent(&endpoint)),
            }
        };
        let update = match message {
            Some(Ok(state)) => material(&endpoint, &state, want),
            Some(Err(error)) => return Some(explained(&endpoint, &error)),
            None => {
                return Some(SourceError {
                    what: format!("the workload api at {endpoint} ended the stream"),
                    remedy: "it is asked again soon; look whether it is being started anew".to_owned(),
                });
            }
        };
        answered = true;
        if update.is_ok() {
            *pause = PAUSE_MIN;
        }
        if updates.send(update).await.is_err() {
            return None;
        }
    }
}

/// `unix:///path` of what was configured or stands in the environment.
fn endpoint(configured: Option<&str>, variable: Option<String>) -> Result<String, SourceError> {
    let text = configured.map(str::to_owned).or(variable).filter(|text| !text.is_empty());
    match text {
        Some(path) if path.starts_with('/') => Ok(format!("unix://{path}")),
        Some(text) => Ok(text),
        None => Err(SourceError {
            what: "it is not said where the workload api is".to_owned(),
            remedy: format!("name its socket in the configuration, or set {VARIABLE}=unix:///path"),
        }),
    }
}

/// What one message says.
fn material(endpoint: &str, state: &X509Context, want: Option<&SpiffeId>) -> Update {
    let svid = match want {
        None => state.default_svid(),
        Some(want) => state.svids().iter().find(|svid| svid.spiffe_id().to_string() == want.as_str()),
    };
    let Some(svid) = svid else {
        let offered: Vec<String> = state.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect();
        return Err(SourceError {
            what: format!(
                "the workload api at {endpoint} does not give {}, but {}",
                want.map_or("anybody", SpiffeId::as_str),
                offered.join(", ")
            ),
            remedy: "name one of those in the configuration, or register the other for this process"
                .to_owned(),
        });
    };
    let bad = |id: &str, why: &str| SourceError {
        what: format!("the workload api at {endpoint} gives {id}: {why}"),
        remedy: "register this process under a canonical id".to_owned(),
    };
    let id = svid.spiffe_id().to_string();
    let id = SpiffeId::parse(&id).map_err(|error| bad(&id, error.0))?;
    if id.path().is_empty() {
        return Err(bad(id.as_str(), "it names the trust domain itself"));
    }
    let bundles = bundles(state).map_err(|why| SourceError {
        what: format!("the workload api at {endpoint} gives a bundle that cannot be used: {why}"),
        remedy: "look at the bundles of the server that answers there".to_owned(),
    })?;
    Ok(Arc::new(Material { id, chain: chain(svid), key: key(svid), bundles }))
}

fn chain(svid: &X509Svid) -> Vec<CertificateDer<'static>> {
    svid.cert_chain()
        .iter()
        .map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()))
        .collect()
}

fn key(svid: &X509Svid) -> rustls::pki_types::PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()).into()
}

/// # Errors
/// With what is wrong with one of them, in words.
fn bundles(state: &X509Context) -> Result<Bundles, String> {
    let mut bundles = Bundles::default();
    for (domain, bundle) in state.bundle_set().iter() {
        let roots = bundle.authorities().iter();
        let roots = roots.map(|root| CertificateDer::from(root.as_bytes().to_vec())).collect();
        let domain = TrustDomain::parse(domain.as_str()).map_err(|bad| bad.0.to_owned())?;
        bundles.set(&domain, roots).map_err(|bad| bad.to_string())?;
    }
    Ok(bundles)
}

fn explained(endpoint: &str, error: &WorkloadApiError) -> SourceError {
    let remedy = match error {
        WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => {
            "register this process there: by its user, group or executable, as the log of the agent names them"
        }
        WorkloadApiError::Endpoint(_) => "write unix:///path/to/its.sock",
        WorkloadApiError::Transport(_) => {
            "look whether it runs and whether this user may connect to its socket: ls -l"
        }
        _ => "look at the log of the agent: what it sent cannot be used",
    };
    SourceError {
        what: format!("the workload api at {endpoint} gives no identity: {}", with_causes(error)),
        remedy: remedy.to_owned(),
    }
}

fn silent(endpoint: &str) -> SourceError {
    SourceError {
        what: format!("the workload api at {endpoint} has not answered for {} s", ANSWER_TIMEOUT.as_secs()),
        remedy: "look whether the agent is stuck or has not started yet".to_owned(),
    }
}

/// The crate's errors name their causes only through `source`.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..8 {
        let Some(error) = cause else { break };
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Where SPIFFE says that the address stands.
const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
/// SPIRE's agent syncs every 5 s: a second is soon enough, and half a minute is not too often for one that is down.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// An agent that has to ask its server first takes a few seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_the_configured_one_or_that_of_the_environment() {
        let at = |configured, variable: Option<&str>| endpoint(configured, variable.map(str::to_owned));
        assert_eq!(at(Some("/run/w.sock"), Some("unix:///other")).unwrap(), "unix:///run/w.sock");
        assert_eq!(at(Some("unix:///run/w.sock"), None).unwrap(), "unix:///run/w.sock");
        assert_eq!(at(None, Some("unix:///other")).unwrap(), "unix:///other");
        assert!(at(None, None).unwrap_err().remedy.contains(VARIABLE));
        assert!(at(None, Some("")).is_err());
    }

    #[test]
    fn nobody_there_is_told_with_its_cause_and_asked_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let (updates, mut received) = mpsc::channel(1);
            let running = tokio::spawn(run(Some("/nonexistent/w.sock".into()), None, updates));
            for _ in 0..2 {
                let error = received.recv().await.unwrap().map(|_| ()).unwrap_err();
                assert!(error.what.contains("unix:///nonexistent/w.sock"), "{error:?}");
                assert!(error.what.contains("No such file"), "{error:?}");
                assert!(error.remedy.contains("whether it runs"), "{error:?}");
            }
            drop(received);
            running.await.unwrap();
        });
    }
}
