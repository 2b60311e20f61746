//! The SPIFFE Workload API (X.509 part): two streams of full states, renewed at half life and pushed when trust or the
//! rules change. The messages have the field numbers of the SPIFFE specification; no compiler of protocols is needed for
//! that. Refuses callers without the mandatory metadata (a browser or a proxy that was tricked into asking cannot set it),
//! those for whom no rule matches, and everything about JWTs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{BoxFuture, http};
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use zeroize::Zeroize as _;

use super::attest::{Caller, Rule};
use crate::control::authority::Authority;
use crate::control::identity::SourceError;
use crate::identity::SpiffeId;

/// What a stream depends on; a change of it is pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Current {
    pub(super) rules: Arc<[Rule]>,
    pub(super) bundle: Vec<CertificateDer<'static>>,
}

/// The service as one connection sees it. A clone serves each call.
#[derive(Clone)]
pub(super) struct WorkloadApi {
    pub(super) caller: Arc<Caller>,
    pub(super) authority: Authority,
    pub(super) current: watch::Receiver<Current>,
    pub(super) leaf_ttl: Duration,
}

/// What a call of FetchX509SVID and of FetchX509Bundles says: nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ask {}

/// X509SVIDResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Identities {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

/// X509SVID.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    /// DER, leaf first, one behind the other.
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    /// PKCS #8, DER.
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    /// DER, one behind the other.
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

/// X509BundlesResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Bundles {
    #[prost(bytes = "vec", repeated, tag = "1")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "2")]
    bundles: HashMap<String, Vec<u8>>,
}

/// The identities of a caller, and when they are renewed.
struct Held {
    ids: Vec<SpiffeId>,
    svids: Vec<Svid>,
    renewed_at: Instant,
}

type Answers<T> = ReceiverStream<Result<T, Status>>;
type Answer<T> = Result<Response<Answers<T>>, Status>;

impl WorkloadApi {
    /// While renewing fails, the certificate in use lives on: every so often it is tried again, at least.
    const RETRY_MAX: Duration = Duration::from_secs(60);

    /// Answers one call.
    pub(super) fn call<B>(
        self,
        request: http::Request<B>,
    ) -> BoxFuture<http::Response<tonic::body::Body>, Infallible>
    where
        B: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        match request.uri().path() {
            "/SpiffeWorkloadAPI/FetchX509SVID" => Box::pin(async move {
                Ok(Grpc::new(ProstCodec::default())
                    .max_decoding_message_size(ASK_BYTES_MAX)
                    .server_streaming(FetchIdentities(self), request)
                    .await)
            }),
            "/SpiffeWorkloadAPI/FetchX509Bundles" => Box::pin(async move {
                Ok(Grpc::new(ProstCodec::default())
                    .max_decoding_message_size(ASK_BYTES_MAX)
                    .server_streaming(FetchBundles(self), request)
                    .await)
            }),
            _ => Box::pin(async {
                let status = Status::unimplemented("only X.509: FetchX509SVID and FetchX509Bundles");
                Ok(status.into_http())
            }),
        }
    }

    fn identities(self, request: &Request<Ask>) -> Answer<Identities> {
        admit(request)?;
        let ids = self.attest()?;
        let held = self.issue(ids).map_err(|error| unavailable(&error))?;
        let first = self.answer(&held).map_err(|error| unavailable(&error))?;
        tracing::info!(caller = %self.caller, ids = held.ids.len(), first = %held.ids[0], "identities given");
        let (answers, receiver) = mpsc::channel(1);
        // One place, and it is free.
        let _ = answers.try_send(Ok(first));
        tokio::spawn(self.push_identities(held, answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn push_identities(mut self, mut held: Held, answers: mpsc::Sender<Result<Identities, Status>>) {
        self.current.mark_unchanged();
        loop {
            let due = tokio::select! {
                () = answers.closed() => return,
                changed = self.current.changed() => match changed {
                    Ok(()) => false,
                    // The server is ending.
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(held.renewed_at) => true,
            };
            let ids = match self.attest() {
                Ok(ids) => ids,
                Err(denied) => {
                    let _ = answers.send(Err(denied)).await;
                    return;
                }
            };
            if due || ids != held.ids {
                match self.issue(ids.clone()) {
                    Ok(renewed) => held = renewed,
                    // Somebody who is somebody else now must not go on as before.
                    Err(error) if ids != held.ids => {
                        let _ = answers.send(Err(unavailable(&error))).await;
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(caller = %self.caller, error = %error.what, remedy = %error.remedy, "cannot renew");
                        held.renewed_at = Instant::now() + (self.leaf_ttl / 20).min(Self::RETRY_MAX);
                        continue;
                    }
                }
            }
            match self.answer(&held) {
                Ok(answer) => {
                    if answers.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error.what, remedy = %error.remedy, "cannot read the bundle");
                    held.renewed_at =
                        held.renewed_at.min(Instant::now() + (self.leaf_ttl / 20).min(Self::RETRY_MAX));
                }
            }
        }
    }

    fn bundles(self, request: &Request<Ask>) -> Answer<Bundles> {
        admit(request)?;
        self.attest()?;
        let (answers, receiver) = mpsc::channel(1);
        tokio::spawn(self.push_bundles(answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn push_bundles(mut self, answers: mpsc::Sender<Result<Bundles, Status>>) {
        let mut sent = None;
        loop {
            if let Err(denied) = self.attest() {
                let _ = answers.send(Err(denied)).await;
                return;
            }
            let bundle = concatenated(&self.current.borrow_and_update().bundle);
            if sent.as_ref() != Some(&bundle) {
                let id = format!("spiffe://{}", self.authority.trust_domain());
                let answer = Bundles { crl: Vec::new(), bundles: HashMap::from([(id, bundle.clone())]) };
                sent = Some(bundle);
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = answers.closed() => return,
                changed = self.current.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Who the caller is by the rules of now.
    fn attest(&self) -> Result<Vec<SpiffeId>, Status> {
        let caller = &self.caller;
        if caller.has_ended() {
            tracing::warn!(caller = %caller, "denied: the process that connected has ended, another one has its socket");
            return Err(Status::permission_denied("the process that connected has ended"));
        }
        let ids = caller.identities(&self.current.borrow().rules);
        if ids.is_empty() {
            tracing::warn!(caller = %caller, "denied: no [[workload]] matches");
            return Err(Status::permission_denied("no identity issued"));
        }
        Ok(ids)
    }

    fn issue(&self, ids: Vec<SpiffeId>) -> Result<Held, SourceError> {
        let mut svids = Vec::with_capacity(ids.len());
        for id in &ids {
            let issued = self.authority.issue(id, self.leaf_ttl)?;
            svids.push(Svid {
                spiffe_id: id.to_string(),
                x509_svid: concatenated(&issued.chain),
                x509_svid_key: issued.key.secret_der().to_vec(),
                bundle: Vec::new(),
                hint: String::new(),
            });
        }
        // At half life; not all who came at once come back at once.
        let life = self.leaf_ttl.mul_f64(0.45 + 0.1 * fastrand::f64());
        Ok(Held { ids, svids, renewed_at: Instant::now() + life })
    }

    /// All of a caller's identities with the bundle of now: read after the leaves were signed, so that it has their root.
    fn answer(&self, held: &Held) -> Result<Identities, SourceError> {
        let bundle = concatenated(&self.authority.bundle()?);
        let svids = held.svids.iter().map(|svid| Svid {
            spiffe_id: svid.spiffe_id.clone(),
            x509_svid: svid.x509_svid.clone(),
            x509_svid_key: svid.x509_svid_key.clone(),
            bundle: bundle.clone(),
            hint: String::new(),
        });
        Ok(Identities { svids: svids.collect(), crl: Vec::new(), federated_bundles: HashMap::new() })
    }
}

struct FetchIdentities(WorkloadApi);

impl ServerStreamingService<Ask> for FetchIdentities {
    type Response = Identities;
    type ResponseStream = Answers<Identities>;
    type Future = std::future::Ready<Answer<Identities>>;

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        std::future::ready(self.0.clone().identities(&request))
    }
}

struct FetchBundles(WorkloadApi);

impl ServerStreamingService<Ask> for FetchBundles {
    type Response = Bundles;
    type ResponseStream = Answers<Bundles>;
    type Future = std::future::Ready<Answer<Bundles>>;

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        std::future::ready(self.0.clone().bundles(&request))
    }
}

/// Wiped, as far as copies of it are ours.
impl Drop for Svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

fn admit(request: &Request<Ask>) -> Result<(), Status> {
    if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
        return Err(Status::invalid_argument("metadata `workload.spiffe.io: true` is missing"));
    }
    Ok(())
}

fn unavailable(error: &SourceError) -> Status {
    tracing::error!(error = %error.what, remedy = %error.remedy, "cannot sign");
    // What is wrong with the files is not the caller's business.
    Status::unavailable("the authority cannot sign now")
}

fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

/// What is asked is empty; clients of later versions may say a little.
const ASK_BYTES_MAX: usize = 4096;
