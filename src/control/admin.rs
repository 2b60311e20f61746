//! HTTP on the admin address: probes, metrics, pages, and two orders. Served by the control thread, so it never costs
//! a shard anything, and answers slowly when a reload is compiling.
//!
//! Bounded: `CONNECTIONS_MAX` connections, a timeout for heads and for whole connections, no request body is read.
//! Refuses every method but GET and HEAD, and POST to `/drain` and `/reload`; refuses POST from a page in a browser
//! (Origin or Sec-Fetch-Site), since a browser on the machine would reach the loopback address too. It has no TLS and no
//! login: the address belongs on loopback or behind a network policy.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::export::{self, Format};
use super::pages::{self, Shown};
use super::run::Command;
use super::state::State;

/// Connections at a time; further ones are closed at once and counted. A node has some probes, scrapers and people.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// For the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole connection: a peer that reads slowly holds its page in memory.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of a head.
const HEAD_BYTES_MAX: usize = 16 << 10;

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves until the control thread ends.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>, commands: mpsc::Sender<Command>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "admin address cannot be served: raise the limit of open files");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, usually: later is better than a loop.
                tracing::warn!(%error, "admin connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            state.admin_refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (state, commands) = (Arc::clone(&state), commands.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let (state, commands) = (Arc::clone(&state), commands.clone());
                async move { Ok::<_, Infallible>(answer(&request, &state, &commands).await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_header_size(HEAD_BYTES_MAX)
                .max_buf_size(2 * HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), answer);
            // What a peer does wrong here is its own business.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
            drop(place);
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    state: &Arc<State>,
    commands: &mpsc::Sender<Command>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let order = matches!(path, "/drain" | "/reload");
    match *request.method() {
        Method::GET | Method::HEAD if !order => {}
        Method::POST if order => {
            let headers = request.headers();
            if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
                return page(StatusCode::FORBIDDEN, TEXT, "orders are not taken from web pages\n".into());
            }
        }
        _ => {
            let allowed = HeaderValue::from_static(if order { "POST" } else { "GET, HEAD" });
            let text = format!("use {}\n", allowed.to_str().unwrap_or_default());
            let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            refused.headers_mut().insert(ALLOW, allowed);
            return refused;
        }
    }
    let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok());
    let has = |wanted: &str| query.split('&').any(|p| p == wanted);
    let json = has("format=json") || accept.is_some_and(|a| a.contains("application/json"));
    let kind = if json { "application/json" } else { TEXT };
    let show = |shown: Shown| {
        let text = if json { format!("{:#}\n", shown.json) } else { shown.text };
        page(StatusCode::OK, kind, text)
    };
    match path {
        "/" => page(StatusCode::OK, TEXT, pages::INDEX.into()),
        "/live" => page(StatusCode::OK, TEXT, "live\n".into()),
        "/ready" => match state.ready().await {
            Ok(()) => page(StatusCode::OK, TEXT, "ready\n".into()),
            Err(reasons) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons.join("\n") + "\n"),
        },
        "/metrics" => {
            let format = Format::accepted(accept);
            page(StatusCode::OK, format.content_type(), export::metrics(state, format))
        }
        "/services" => {
            let all = has("all") || has("all=1");
            page(StatusCode::OK, kind, pages::services(state, all, json))
        }
        "/shards" => show(pages::shards(state)),
        "/config" => show(pages::config(state)),
        "/identity" => show(pages::identity(state)),
        "/build" => show(pages::build(state)),
        "/drain" => drain(commands),
        "/reload" => reload(commands).await,
        _ => page(StatusCode::NOT_FOUND, TEXT, format!("no such page\n\n{}", pages::INDEX)),
    }
}

fn drain(commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    match commands.try_send(Command::Drain) {
        Ok(()) => page(StatusCode::ACCEPTED, TEXT, "draining\n".into()),
        Err(_) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "control is busy; try again\n".into()),
    }
}

async fn reload(commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    tracing::info!("POST /reload: reading the configuration again");
    let (reply, answer) = oneshot::channel();
    let reply = Box::new(|result| {
        // Whoever asked may have gone.
        let _ = reply.send(result);
    });
    if commands.try_send(Command::Reload { text: None, reply }).is_err() {
        return page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "control is busy; try again\n".into());
    }
    match answer.await {
        Ok(Ok(generation)) => page(StatusCode::OK, TEXT, format!("generation {generation}\n")),
        Ok(Err(error)) => page(StatusCode::UNPROCESSABLE_ENTITY, TEXT, format!("{error}\n")),
        Err(_) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the process is ending\n".into()),
    }
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
