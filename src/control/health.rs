//! `grpc.health.v1` on the admin address: what `/ready` says, for those who ask by gRPC. Check answers once, Watch whenever the
//! answer changes.
//!
//! The service `""` is this proxy. A configured service is served while the proxy is ready and there is an endpoint to send to;
//! whether endpoints are well is not asked yet. Refuses List (the crate does not have it) and every other gRPC service.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::state::State;

/// How often a watched answer is looked at anew; a drain is told at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Octets of a request: a service's name.
const ASK_BYTES_MAX: usize = 4 << 10;

/// Answers one gRPC call.
pub(super) async fn answer(request: Request<Incoming>, state: &Arc<State>) -> Response<Body> {
    if !request.uri().path().starts_with("/grpc.health.v1.Health/") {
        return Status::unimplemented("only grpc.health.v1.Health is served here").into_http();
    }
    let readiness = Readiness(Arc::clone(state));
    let mut server = HealthServer::new(readiness).max_decoding_message_size(ASK_BYTES_MAX);
    match server.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

#[derive(Clone)]
struct Readiness(Arc<State>);

impl Readiness {
    /// `ServiceUnknown` for what is not configured.
    async fn status(&self, service: &str) -> ServingStatus {
        if !service.is_empty() {
            let live = self.0.live();
            let known = live.snapshot.service_named(service);
            match known.and_then(|id| live.snapshot.services.get(id as usize)) {
                None => return ServingStatus::ServiceUnknown,
                Some(service) if service.endpoints.is_empty() => return ServingStatus::NotServing,
                Some(_) => {}
            }
        }
        match self.0.ready().await {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        }
    }

    /// Tells what there is, and each change, until whoever watches is gone.
    async fn watch(self, service: String, answers: mpsc::Sender<Result<HealthCheckResponse, Status>>) {
        let mut told = None;
        loop {
            // Before it is looked: a drain that begins meanwhile is not missed.
            let drained = self.0.drain_begins.notified();
            let mut drained = std::pin::pin!(drained);
            drained.as_mut().enable();
            let status = self.status(&service).await;
            if told.replace(status) != Some(status) && answers.send(Ok(said(status))).await.is_err() {
                return;
            }
            tokio::select! {
                () = answers.closed() => return,
                () = drained => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

fn said(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Readiness {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        match self.status(&request.get_ref().service).await {
            ServingStatus::ServiceUnknown => Err(Status::not_found("no such service is configured")),
            status => Ok(tonic::Response::new(said(status))),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (answers, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().watch(request.into_inner().service, answers));
        Ok(tonic::Response::new(ReceiverStream::new(receiver)))
    }
}
