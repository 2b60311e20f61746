//! The demo's three workloads: small HTTP servers that pretend to work for a moment, and call the next one through their
//! sidecar. Each runs on a thread of its own; they know nothing of the mesh but the address that they call and the
//! field that says who calls them (`x-forwarded-client-cert`).

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::call::{Caller, MARKER};

/// What a workload does.
pub(super) struct Role {
    /// Its name.
    pub name: &'static str,
    /// How long it works for a request: between these, ms.
    pub work_ms: (u64, u64),
    /// Whom it calls after that, by name and through which caller.
    pub calls: Option<(&'static str, Arc<Caller>)>,
}

/// A workload that serves. It ends when it is dropped.
pub(super) struct Workload {
    caller: Option<Arc<Caller>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A listening socket for a workload. Connections wait in it until [`Workload::start`].
///
/// # Errors
/// When there is no free port or file descriptor.
pub(super) fn bind() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Workload {
    /// Serves on `listener`.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub(super) fn start(role: Role, listener: TcpListener) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let caller = role.calls.as_ref().map(|(_, caller)| Arc::clone(caller));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(role.name.into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(role, listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { caller, stop: Some(stop), thread: Some(thread) })
    }

    /// Closes its kept connections to its sidecar, which is about to drain.
    pub(super) fn hang_up(&self) {
        if let Some(caller) = &self.caller {
            caller.hang_up();
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

async fn serve(role: Role, listener: TcpListener) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let role = Arc::new(role);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: later is better than a loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let role = Arc::clone(&role);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| async {
                Ok::<_, Infallible>(answer(&role, request).await)
            });
            // What a caller does wrong shows in the numbers.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// One request: work, then perhaps a call. The answer tells of both, and who called.
async fn answer(role: &Role, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let began = Instant::now();
    let text =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (marker, certificate) = (text(MARKER), text("x-forwarded-client-cert"));
    // Read to its end, so that the connection can be used again. A broken one shows in the numbers.
    let _ = request.into_body().collect().await;
    tokio::time::sleep(Duration::from_millis(fastrand::u64(role.work_ms.0..=role.work_ms.1))).await;
    let mut said = json!({ "service": role.name, "called_by": null });
    if let Some(certificate) = certificate {
        said["called_by"] = part(&certificate, "URI=").into();
        said["with_leaf"] =
            part(&certificate, "Hash=").map(|hash| hash.chars().take(12).collect::<String>()).into();
    }
    let mut status = StatusCode::OK;
    if let Some((called, caller)) = &role.calls {
        match called_by(caller, marker.as_deref()).await {
            Ok(answer) => said["calls"] = answer,
            Err(why) => {
                status = StatusCode::BAD_GATEWAY;
                said["failed"] = format!("{called}: {why}").into();
            }
        }
    }
    said["took_ms"] = ((began.elapsed().as_secs_f64() * 1e4).round() / 10.0).into();
    // Answers carry it, too: nothing of either direction may be readable.
    if let Some(marker) = &marker {
        said["marker"] = marker.as_str().into();
    }
    let mut response = Response::new(Full::new(Bytes::from(format!("{said}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(marker) = marker.and_then(|marker| HeaderValue::try_from(marker).ok()) {
        headers.insert(MARKER, marker);
    }
    response
}

/// What stands behind `name` in the one element of `x-forwarded-client-cert`.
fn part<'c>(certificate: &'c str, name: &str) -> Option<&'c str> {
    certificate.split(';').find_map(|part| part.strip_prefix(name))
}

async fn called_by(caller: &Caller, marker: Option<&str>) -> Result<Value, String> {
    let answer = caller.call(marker).await.map_err(|error| error.to_string())?;
    match (answer.status, answer.failure) {
        (200, _) => serde_json::from_slice(&answer.body).map_err(|error| error.to_string()),
        (status, Some(failure)) => Err(format!("{status} {failure}")),
        // The next workload says why in its own words.
        (status, None) => {
            let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            Err(said["failed"].as_str().map_or_else(|| status.to_string(), str::to_owned))
        }
    }
}
