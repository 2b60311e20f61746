//! One request to the collector: connect where there is no connection, send, and understand what is said. OTLP over gRPC and over
//! HTTP (OpenTelemetry protocol specification 1.x), which differ in framing and in how a failure is told.

use std::time::{Duration, SystemTime};

use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Target;
use super::messages::{RETRY_INFO, Response, RetryDetail, Status};
use crate::config::CollectorProtocol;

/// Octets of an answer that are read.
const ANSWER_MAX: usize = 64 * 1024;
/// Characters of a collector's words that are told.
const WORDS_MAX: usize = 200;

/// A batch was taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    /// But for so many spans.
    pub(super) rejected: u64,
    /// In the collector's words, why.
    pub(super) words: String,
}

/// It was not, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It may be sent again, after so long if it says so.
    ForNow(Option<Duration>, String),
    /// It would be refused again.
    ForGood(String),
}

/// A connection.
pub(super) enum Sender {
    /// For OTLP over HTTP.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// For gRPC.
    Http2(http2::SendRequest<Full<Bytes>>),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Sends a message; the connection is kept in `sender` if it can be used again.
pub(super) async fn send(
    sender: &mut Option<Sender>,
    target: &Target,
    message: Bytes,
) -> Result<Accepted, Failed> {
    let answer = timeout(target.tracing.timeout, exchange(sender, target, message)).await;
    let (status, headers, body, trailers) = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(words)) => {
            *sender = None;
            return Err(Failed::ForNow(None, words));
        }
        Err(_) => {
            *sender = None;
            return Err(Failed::ForNow(None, format!("no answer within {:?}", target.tracing.timeout)));
        }
    };
    match target.tracing.protocol {
        CollectorProtocol::Grpc => understand_grpc(status, &headers, &body, trailers.as_ref()),
        CollectorProtocol::Http => understand_http(status, &headers, &body, SystemTime::now()),
    }
}

type Answer = (StatusCode, HeaderMap, Bytes, Option<HeaderMap>);

async fn exchange(sender: &mut Option<Sender>, target: &Target, message: Bytes) -> Result<Answer, String> {
    let is_open = match &sender {
        Some(Sender::Http1(http1)) => !http1.is_closed(),
        Some(Sender::Http2(http2)) => !http2.is_closed(),
        None => false,
    };
    let connection = match sender {
        Some(connection) if is_open => connection,
        _ => sender.insert(connect(target).await?),
    };
    let failed = |error: hyper::Error| format!("no answer: {}", with_cause(&error));
    let request = request(target, message)?;
    let response = match connection {
        Sender::Http1(http1) => {
            http1.ready().await.map_err(failed)?;
            http1.send_request(request).await
        }
        Sender::Http2(http2) => {
            http2.ready().await.map_err(failed)?;
            http2.send_request(request).await
        }
    };
    let (head, body) = response.map_err(failed)?.into_parts();
    let body =
        Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| format!("half an answer: {error}"))?;
    let trailers = body.trailers().cloned();
    Ok((head.status, head.headers, body.to_bytes(), trailers))
}

async fn connect(target: &Target) -> Result<Sender, String> {
    let endpoint = &target.tracing.endpoint;
    let plain = TcpStream::connect((&*endpoint.host, endpoint.port)).await;
    let plain = plain.map_err(|error| format!("no connection: {error}"))?;
    // Batches are single writes; nothing is gained by waiting.
    let _ = plain.set_nodelay(true);
    let stream: Box<dyn Stream> = match &target.tls {
        None if endpoint.encrypted => return Err("no TLS: there are no roots yet".into()),
        None => Box::new(plain),
        Some(tls) => {
            let connected = TlsConnector::from(tls.client.clone()).connect(tls.server_name.clone(), plain);
            Box::new(connected.await.map_err(|error| format!("no TLS: {error}"))?)
        }
    };
    let stream = TokioIo::new(stream);
    let failed = |error: hyper::Error| format!("no connection: {}", with_cause(&error));
    // Both tasks end with the connection, which ends when its sender is gone.
    Ok(match target.tracing.protocol {
        CollectorProtocol::Grpc => {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(failed)?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        }
        CollectorProtocol::Http => {
            let (sender, connection) = http1::handshake(stream).await.map_err(failed)?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        }
    })
}

fn request(target: &Target, message: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let tracing = &target.tracing;
    let endpoint = &tracing.endpoint;
    let mut builder = Request::builder()
        .method(Method::POST)
        .header(header::USER_AGENT, concat!("ringmesh/", env!("CARGO_PKG_VERSION")));
    for (name, value) in &tracing.headers {
        builder = builder.header(&**name, &**value);
    }
    let request = match tracing.protocol {
        CollectorProtocol::Grpc => {
            let scheme = if endpoint.encrypted { "https" } else { "http" };
            let uri = format!(
                "{scheme}://{}/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                endpoint.authority
            );
            let mut framed = Vec::with_capacity(message.len() + 5);
            framed.push(0);
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
            framed.extend_from_slice(&message);
            builder
                .uri(uri)
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
                .header("grpc-timeout", format!("{}m", tracing.timeout.as_millis().min(99_999_999)))
                .body(Full::from(framed))
        }
        CollectorProtocol::Http => builder
            .uri(format!("{}/v1/traces", endpoint.path))
            .header(header::HOST, &*endpoint.authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Full::from(message)),
    };
    request.map_err(|error| error.to_string())
}

fn understand_grpc(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    trailers: Option<&HeaderMap>,
) -> Result<Accepted, Failed> {
    if status != StatusCode::OK {
        let words = format!("status {}, which is not gRPC", status.as_u16());
        // gRPC, http-grpc-status-mapping.md: these are UNAVAILABLE.
        return Err(match status.as_u16() {
            429 | 502 | 503 | 504 => Failed::ForNow(None, words),
            _ => Failed::ForGood(words),
        });
    }
    let told = |name: &str| {
        let value = headers.get(name).or_else(|| trailers?.get(name))?;
        value.to_str().ok()
    };
    let code = told("grpc-status").and_then(|code| code.parse::<u8>().ok());
    if code == Some(0) {
        return Ok(taken(body.get(5..).unwrap_or_default()));
    }
    let words = told("grpc-message").unwrap_or_default();
    let words = match code {
        Some(code) => cut(&format!("grpc-status {code} {words}")),
        None => "no grpc-status".into(),
    };
    let asked = told("grpc-status-details-bin").and_then(retry_info);
    Err(match code {
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; RESOURCE_EXHAUSTED where it says for how long.
        Some(1 | 4 | 10 | 11 | 14 | 15) | None => Failed::ForNow(asked.flatten(), words),
        Some(8) if let Some(asked) = asked => Failed::ForNow(asked, words),
        Some(_) => Failed::ForGood(words),
    })
}

/// Whether a failure says that it may be tried again, and after how long.
fn retry_info(value: &str) -> Option<Option<Duration>> {
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let details = engine.decode(value.trim_end_matches('=')).ok()?;
    let details = Status::decode(&*details).ok()?.details;
    let found = details.iter().find(|any| any.kind == RETRY_INFO)?;
    let delay = RetryDetail::decode(&*found.value).ok()?.delay;
    Some(delay.and_then(|delay| {
        Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?))
    }))
}

fn understand_http(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Result<Accepted, Failed> {
    if status.is_success() {
        return Ok(taken(body));
    }
    let words = format!("status {}", status.as_u16());
    match status.as_u16() {
        429 | 502 | 503 | 504 => {
            let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            Err(Failed::ForNow(after.and_then(|after| retry_after(after, now)), words))
        }
        _ => Err(Failed::ForGood(words)),
    }
}

/// Seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value.trim()).ok()?.duration_since(now).ok(),
    }
}

/// What is said of a batch that was taken; what cannot be understood says nothing.
fn taken(body: &[u8]) -> Accepted {
    match Response::decode(body).ok().and_then(|response| response.partial) {
        Some(partial) => Accepted {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            words: cut(&partial.words),
        },
        None => Accepted::default(),
    }
}

fn cut(words: &str) -> String {
    words.trim().chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

/// hyper says what failed; the error below it, why.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{Any, Delay, Partial};
    use super::*;

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn details(delay: Option<Delay>) -> String {
        let info = RetryDetail { delay }.encode_to_vec();
        let status = Status { details: vec![Any { kind: RETRY_INFO.into(), value: info }] };
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(status.encode_to_vec())
    }

    /// The table of the specification, "Failures" of OTLP/gRPC.
    #[test]
    fn codes_of_grpc_say_whether_a_batch_may_be_sent_again() {
        for code in 1..=17 {
            let code = code.to_string();
            let told = understand_grpc(StatusCode::OK, &fields(&[("grpc-status", &code)]), b"", None);
            let again = matches!(told, Err(Failed::ForNow(None, _)));
            assert_eq!(again, ["1", "4", "10", "11", "14", "15"].contains(&&*code), "{code}: {told:?}");
        }
        let exhausted = |details: &str| {
            let trailers = fields(&[("grpc-status", "8"), ("grpc-status-details-bin", details)]);
            understand_grpc(StatusCode::OK, &HeaderMap::new(), b"", Some(&trailers))
        };
        let after = Failed::ForNow(Some(Duration::from_millis(1500)), "grpc-status 8".into());
        assert_eq!(exhausted(&details(Some(Delay { seconds: 1, nanos: 500_000_000 }))), Err(after));
        assert!(matches!(exhausted(&details(None)), Err(Failed::ForNow(None, _))));
        assert!(matches!(exhausted("AAAA"), Err(Failed::ForGood(_))));
        let gone = understand_grpc(StatusCode::OK, &HeaderMap::new(), b"", None);
        assert!(matches!(gone, Err(Failed::ForNow(..))), "it broke off");
        let other =
            |status| understand_grpc(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), b"", None);
        assert!(matches!(other(503), Err(Failed::ForNow(..))));
        assert!(matches!(other(404), Err(Failed::ForGood(_))));
    }

    #[test]
    fn statuses_of_http_say_whether_a_batch_may_be_sent_again() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let told = |status, after: &[(&'static str, &str)]| {
            understand_http(StatusCode::from_u16(status).unwrap(), &fields(after), b"", now)
        };
        for status in [400, 401, 404, 413, 500, 501, 505] {
            assert!(matches!(told(status, &[("retry-after", "1")]), Err(Failed::ForGood(_))), "{status}");
        }
        for status in [429, 502, 503, 504] {
            assert!(matches!(told(status, &[]), Err(Failed::ForNow(None, _))), "{status}");
            let after = told(status, &[("retry-after", "7")]);
            assert!(matches!(after, Err(Failed::ForNow(Some(after), _)) if after == Duration::from_secs(7)));
        }
        let after = told(503, &[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")]);
        assert!(matches!(after, Err(Failed::ForNow(Some(after), _)) if after == Duration::from_secs(3)));
        assert_eq!(told(200, &[]), Ok(Accepted::default()));
    }

    #[test]
    fn what_a_collector_takes_in_part_is_told() {
        let partial = Partial { rejected_spans: 3, words: "too old\n".into() };
        let body = Response { partial: Some(partial) }.encode_to_vec();
        let want = Accepted { rejected: 3, words: "too old".into() };
        let now = SystemTime::now();
        assert_eq!(understand_http(StatusCode::OK, &HeaderMap::new(), &body, now).unwrap(), want);
        let mut framed = vec![0, 0, 0, 0, body.len() as u8];
        framed.extend_from_slice(&body);
        let trailers = fields(&[("grpc-status", "0")]);
        let told = understand_grpc(StatusCode::OK, &HeaderMap::new(), &framed, Some(&trailers));
        assert_eq!(told.unwrap(), want);
        assert_eq!(taken(b"\xff\xff"), Accepted::default(), "what cannot be read says nothing");
    }
}
