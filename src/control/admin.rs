//! HTTP on the admin address: probes, metrics, pages, and two orders; by HTTP/2 with prior knowledge also gRPC health. Served by the control thread, so it never costs
//! a shard anything, and answers slowly when a reload is compiling.
//!
//! Bounded: `CONNECTIONS_MAX` connections, a timeout for heads and for whole connections, no request body is read but the few
//! octets of a health check. HTTP/2 connections may last, since health is watched on them: there are fewer of them, so that
//! they leave room for others, and they are pinged.
//! Refuses every method but GET and HEAD, and POST to `/drain`, `/reload` and `/canary/…`; refuses POST from a page in a browser
//! (Origin or Sec-Fetch-Site), since a browser on the machine would reach the loopback address too. It has no TLS and no
//! login: the address belongs on loopback or behind a network policy.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::body::Body;

use super::canary;
use super::explain::{self, Question};
use super::export::{self, Format};
use super::health;
use super::pages::{self, Shown};
use super::run::Command;
use super::state::State;

/// Connections at a time; further ones are closed at once and counted. A node has some probes, scrapers and people.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Those among them that speak HTTP/2.
const HTTP2_CONNECTIONS_MAX: usize = CONNECTIONS_MAX / 2;
/// Calls at a time on one of those.
const STREAMS_MAX: u32 = 16;
/// Between two pings on one of those, and for the answer.
const PING_EVERY: Duration = Duration::from_secs(30);
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
    let lasting = Arc::new(Semaphore::new(HTTP2_CONNECTIONS_MAX));
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
        let lasting = Arc::clone(&lasting);
        tokio::spawn(async move {
            converse(stream, state, commands, &lasting).await;
            drop(place);
        });
    }
}

/// Serves one connection to its end. What a peer does wrong here is its own business.
async fn converse(
    mut stream: TcpStream,
    state: Arc<State>,
    commands: mpsc::Sender<Command>,
    lasting: &Arc<Semaphore>,
) {
    let Ok(Ok(seen)) = tokio::time::timeout(HEAD_TIMEOUT, first_octets(&mut stream)).await else { return };
    let http2 = seen == PREFACE;
    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(seen).chain(reader), writer));
    let refused = Arc::clone(&state);
    let answer = service_fn(move |request: Request<Incoming>| {
        let (state, commands) = (Arc::clone(&state), commands.clone());
        async move {
            let kind = request.headers().get(CONTENT_TYPE);
            let grpc = http2 && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
            Ok::<_, Infallible>(match grpc {
                true => health::answer(request, &state).await,
                false => answer(&request, &state, &commands).await.map(Body::new),
            })
        }
    });
    if !http2 {
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .serve_connection(io, answer);
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
    } else if let Ok(_place) = Arc::clone(lasting).try_acquire_owned() {
        let _ = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(16 << 10)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .serve_connection(io, answer)
            .await;
    } else {
        refused.admin_refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a peer says first if it speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads as much as tells whether it is the preface: all of it, or what differs.
async fn first_octets(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut seen = Vec::with_capacity(PREFACE.len());
    while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
        let left = PREFACE.len() - seen.len();
        if (&mut *stream).take(left as u64).read_buf(&mut seen).await? == 0 {
            break;
        }
    }
    Ok(seen)
}

async fn answer(
    request: &Request<Incoming>,
    state: &Arc<State>,
    commands: &mpsc::Sender<Command>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let canary = canary_order(path);
    let order = matches!(path, "/drain" | "/reload") || canary.is_some();
    match *request.method() {
        Method::GET | Method::HEAD if !order => {}
        Method::POST if order || path.starts_with("/canary/") => {
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
        "/routes" => {
            let all = has("all") || has("all=1");
            page(StatusCode::OK, kind, pages::routes(state, all, json))
        }
        "/shards" => show(pages::shards(state)),
        "/config" => show(pages::config(state)),
        "/explain" => explain(state, query, has("all") || has("all=1"), json),
        "/identity" => show(pages::identity(state)),
        "/build" => show(pages::build(state)),
        "/canary" => show(state.canaries().page()),
        "/drain" => drain(commands),
        "/reload" => reload(commands).await,
        _ if let Some((name, order)) = canary => tell_canary(commands, name, order).await,
        _ if path.starts_with("/canary/") => {
            let orders = canary::Order::ALL.map(canary::Order::word).join(", ");
            page(
                StatusCode::NOT_FOUND,
                TEXT,
                format!("no such order: POST /canary/NAME/ORDER, one of {orders}\n"),
            )
        }
        _ => page(StatusCode::NOT_FOUND, TEXT, format!("no such page\n\n{}", pages::INDEX)),
    }
}

/// What becomes of a request, by the snapshot that shards serve by.
fn explain(state: &State, query: &str, all: bool, json: bool) -> Response<Full<Bytes>> {
    let question = match Question::of_query(query) {
        Ok(question) => question,
        Err(wrong) => return page(StatusCode::BAD_REQUEST, TEXT, format!("{wrong}\n")),
    };
    let (compiled, snapshot) = {
        let live = state.live();
        (Arc::clone(&live.compiled), Arc::clone(&live.snapshot))
    };
    if let Err(wrong) = explain::check_listener(&snapshot, &question) {
        return page(StatusCode::BAD_REQUEST, TEXT, format!("{wrong}\n"));
    }
    let explanation = explain::explain(&compiled, &snapshot, &question, all);
    match json {
        true => page(StatusCode::OK, "application/json", format!("{:#}\n", explanation.json(&question))),
        false => page(StatusCode::OK, TEXT, explain::text(&question, &explanation)),
    }
}

fn drain(commands: &mpsc::Sender<Command>) -> Response<Full<Bytes>> {
    match commands.try_send(Command::Drain) {
        Ok(()) => page(StatusCode::ACCEPTED, TEXT, "draining\n".into()),
        Err(_) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "control is busy; try again\n".into()),
    }
}

/// `/canary/NAME/ORDER`; a name may contain slashes.
fn canary_order(path: &str) -> Option<(&str, canary::Order)> {
    let (name, word) = path.strip_prefix("/canary/")?.rsplit_once('/')?;
    Some((name, canary::Order::named(word)?))
}

async fn tell_canary(
    commands: &mpsc::Sender<Command>,
    name: &str,
    order: canary::Order,
) -> Response<Full<Bytes>> {
    tracing::info!(canary = name, ?order, "POST /canary");
    let (reply, answer) = oneshot::channel();
    if commands.try_send(Command::Canary { name: name.to_owned(), order, reply }).is_err() {
        return page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "control is busy; try again\n".into());
    }
    match answer.await {
        Ok(Ok(said)) => page(StatusCode::OK, TEXT, format!("{said}\n")),
        Ok(Err(problem)) => page(StatusCode::CONFLICT, TEXT, format!("{problem}\n")),
        Err(_) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the process is ending\n".into()),
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
