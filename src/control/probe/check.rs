//! One probe of one endpoint: connect, handshake, ask, read what is said. Called by `super`, which has the time for it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::course::Found;
use crate::identity::{self, Credentials, IdMatch};
use crate::upstream::spec::{Address, Probe, ProbeKind, Protocol, Tls};

/// What is probed.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The service's name: what Host says, unless told otherwise.
    pub(super) service: Arc<str>,
    /// Where.
    pub(super) address: Address,
    /// How.
    pub(super) rules: Arc<Probe>,
    /// Which HTTP the service speaks.
    pub(super) protocol: Protocol,
    /// Whether it is spoken to encrypted.
    pub(super) tls: Tls,
    /// Who we are.
    pub(super) own: Option<Arc<Credentials>>,
}

/// What an endpoint says with which it wants to be left at once; also in answers to requests.
pub(super) const FAIL_AT_ONCE: &str = "x-envoy-immediate-health-check-fail";
/// Octets of an answer that are read; of a longer one only the status counts.
const BODY_MAX: usize = 64 * 1024;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Opened = TokioIo<Box<dyn Stream>>;

/// Probes; what was found, and in words why it is not as it should be.
pub(super) async fn check(asked: &Asked) -> (Found, String) {
    if matches!(asked.tls, Tls::Mesh(_)) && asked.own.is_none() && asked.rules.kind != ProbeKind::Tcp {
        return (Found::Nothing, "this proxy has no certificate yet".to_owned());
    }
    match found(asked).await {
        Ok(None) => (Found::Passed, String::new()),
        Ok(Some(words)) => (Found::FailedAtOnce, words),
        Err(words) => (Found::Failed, words),
    }
}

/// `Some`: it wants to be left at once.
async fn found(asked: &Asked) -> Result<Option<String>, String> {
    let plain = connect(asked).await?;
    let http2_only = matches!(asked.rules.kind, ProbeKind::Grpc { .. }) || asked.protocol == Protocol::Http2;
    if asked.rules.kind == ProbeKind::Tcp {
        return Ok(None);
    }
    let protocols: &[&[u8]] = match asked.protocol {
        _ if http2_only => &[b"h2"],
        Protocol::Http1 => &[b"http/1.1"],
        Protocol::Http2 | Protocol::Auto => &[b"h2", b"http/1.1"],
    };
    let (stream, chosen) = handshake(asked, plain, protocols).await?;
    let is_http2 = http2_only || chosen.as_deref() == Some(b"h2");
    match &asked.rules.kind {
        ProbeKind::Tcp | ProbeKind::Tls => Ok(None),
        ProbeKind::Http { path, host, statuses } => {
            let host = host.as_deref().unwrap_or(&asked.service);
            let request = request(asked, Method::GET, is_http2, host, path)?;
            let request = request.body(Full::default()).map_err(|error| error.to_string())?;
            let response = ask(asked, stream, is_http2, request).await?;
            if response.headers.contains_key(FAIL_AT_ONCE) {
                return Ok(Some(format!("it says {FAIL_AT_ONCE}")));
            }
            let status = response.status.as_u16();
            let is_right = statuses.iter().any(|(from, to)| (*from..=*to).contains(&status));
            if is_right { Ok(None) } else { Err(format!("status {status}")) }
        }
        ProbeKind::Grpc { service } => grpc(asked, stream, service).await,
    }
}

async fn grpc(asked: &Asked, stream: Opened, service: &str) -> Result<Option<String>, String> {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(&message);
    let request = request(asked, Method::POST, true, &asked.service, "/grpc.health.v1.Health/Check")?
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::from(framed))
        .map_err(|error| error.to_string())?;
    let answer = ask(asked, stream, true, request).await?;
    if answer.headers.contains_key(FAIL_AT_ONCE) {
        return Ok(Some(format!("it says {FAIL_AT_ONCE}")));
    }
    if answer.status != StatusCode::OK {
        return Err(format!("status {}", answer.status.as_u16()));
    }
    let code = |fields: &http::HeaderMap| {
        fields.get("grpc-status").and_then(|code| code.to_str().ok()).map(str::to_owned)
    };
    match code(&answer.headers).or_else(|| answer.trailers.as_ref().and_then(code)).as_deref() {
        Some("0") => {}
        Some(code) => return Err(format!("grpc-status {code}")),
        None => return Err("no grpc-status".to_owned()),
    }
    let message = answer.body.get(5..).ok_or("no message")?;
    let message = HealthCheckResponse::decode(message).map_err(|error| error.to_string())?;
    match message.status() {
        ServingStatus::Serving => Ok(None),
        other => Err(other.as_str_name().to_owned()),
    }
}

async fn connect(asked: &Asked) -> Result<Box<dyn Stream>, String> {
    let failed = |error: std::io::Error| format!("no connection: {error}");
    match &asked.address {
        Address::Ip(address) => {
            let mut address = *address;
            if let Some(port) = asked.rules.port {
                address.set_port(port);
            }
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
    }
}

/// Encrypts it where the service is spoken to so; what was agreed on by ALPN.
async fn handshake(
    asked: &Asked,
    plain: Box<dyn Stream>,
    protocols: &[&[u8]],
) -> Result<(Opened, Option<Vec<u8>>), String> {
    let (config, name, expected) = match &asked.tls {
        Tls::Off => return Ok((TokioIo::new(plain), None)),
        Tls::Mesh(ids) => {
            let own = asked.own.as_ref().ok_or("this proxy has no certificate")?;
            // Neither sent nor compared: who the peer is stands in its certificate.
            let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            (&own.client, name, Some((own, ids)))
        }
        Tls::Edge(edge) => (&edge.client, edge.server_name.clone(), None),
    };
    let mut config = rustls::ClientConfig::clone(config);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, plain)
        .await
        .map_err(|error| format!("no TLS: {error}"))?;
    let session = stream.get_ref().1;
    if let Some((own, ids)) = expected {
        let peer = identity::verify::peer(session.peer_certificates().unwrap_or_default())
            .map_err(|cause| format!("its certificate is refused: {}", cause.label()))?;
        if !IdMatch::expects(ids, &peer.id, &own.id) {
            return Err(format!("it is {}", peer.id));
        }
    }
    let chosen = session.alpn_protocol().map(<[u8]>::to_vec);
    let stream: Box<dyn Stream> = Box::new(stream);
    Ok((TokioIo::new(stream), chosen))
}

fn request(
    asked: &Asked,
    method: Method,
    is_http2: bool,
    host: &str,
    path: &str,
) -> Result<http::request::Builder, String> {
    let builder = Request::builder().method(method).header(header::USER_AGENT, "ringmesh-probe");
    if !is_http2 {
        return Ok(builder.uri(path).header(header::HOST, host));
    }
    let scheme = if asked.tls == Tls::Off { "http" } else { "https" };
    let uri = http::Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
    Ok(builder.uri(uri.map_err(|error| error.to_string())?))
}

/// What was answered.
struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
    trailers: Option<http::HeaderMap>,
}

async fn ask(
    asked: &Asked,
    stream: Opened,
    is_http2: bool,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let failed = |error: hyper::Error| format!("no answer: {error}");
    // Both tasks end with the connection, which ends when its sender is gone; or a little later, if the peer does not care.
    let most = asked.rules.timeout.saturating_mul(2);
    let (head, body) = if is_http2 {
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), stream).await.map_err(failed)?;
        tokio::spawn(timeout(most, connection));
        sender.send_request(request).await.map_err(failed)?.into_parts()
    } else {
        let (mut sender, connection) = http1::handshake(stream).await.map_err(failed)?;
        tokio::spawn(timeout(most, connection));
        sender.send_request(request).await.map_err(failed)?.into_parts()
    };
    let (trailers, body) = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => (body.trailers().cloned(), body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => (None, Bytes::new()),
        Err(error) => return Err(format!("half an answer: {error}")),
    };
    Ok(Answer { status: head.status, headers: head.headers, body, trailers })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_has_no_certificate_yet_knows_nothing_of_who_wants_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let asked = |kind: ProbeKind| Asked {
            service: "app".into(),
            address: Address::Ip(listener.local_addr().unwrap()),
            rules: Arc::new(Probe {
                kind,
                interval: Duration::from_secs(10),
                interval_unhealthy: Duration::from_secs(1),
                timeout: Duration::from_secs(5),
                healthy: 2,
                unhealthy: 3,
                jitter_percent: 0,
                waits: false,
                port: None,
            }),
            protocol: Protocol::Auto,
            tls: Tls::Mesh(Vec::new()),
            own: None,
        };
        assert_eq!(check(&asked(ProbeKind::Tls)).await.0, Found::Nothing);
        assert_eq!(check(&asked(ProbeKind::Tcp)).await.0, Found::Passed, "which needs none");
    }
}
