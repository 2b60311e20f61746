//! Requests: judged, prepared for an HTTP/2 service, and written for an HTTP/1.1 one.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Uri, request};

use super::origin::ORIGIN_FIELD;
use crate::authorize;
use crate::failure::Cause;
use crate::http::client_cert;
use crate::http::fields::{self, Known, known, write_u64};
use crate::http::grpc::Dialect;
use crate::http::h1::{self, write_field};
use crate::http::{Framing, Method};
use crate::snapshot::{ForwardedFields, Limits};

/// What matters of a request that was found right.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What matters of the method.
    pub method: Method,
    /// How its body ends, as HTTP/1.1 would say it.
    pub framing: Framing,
    /// Whether the caller waits for `100 Continue`.
    pub expect_continue: bool,
    /// Whether it takes trailers.
    pub takes_trailers: bool,
    /// Max-Forwards of an OPTIONS request.
    pub max_forwards: Option<u64>,
    /// Whether and how it is gRPC.
    pub grpc: Option<Dialect>,
    /// What an extended CONNECT asks for (RFC 8441), or that it is a plain CONNECT.
    pub tunnel: Option<Tunnel>,
}

/// What a CONNECT asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// Octets both ways.
    Plain,
    /// WebSocket (RFC 8441).
    WebSocket,
    /// Another protocol: refused.
    Unknown,
}

/// What is added on the way to the next hop.
pub use h1::Forwarding as Forwarded;

/// Judges a request. `ended` is whether no body follows, `via` our own pseudonym.
///
/// # Errors
/// The cause why it may not go on.
pub fn check(
    parts: &request::Parts,
    ended: bool,
    limits: &Limits,
    via: Option<&str>,
) -> Result<Facts, Cause> {
    let mut facts = Facts {
        method: method(&parts.method)?,
        framing: if ended { Framing::None } else { Framing::Chunked },
        expect_continue: false,
        takes_trailers: false,
        max_forwards: None,
        grpc: None,
        tunnel: None,
    };
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    if parts.method == http::Method::CONNECT {
        facts.tunnel = Some(match protocol {
            None => Tunnel::Plain,
            Some(protocol) if protocol.as_str().eq_ignore_ascii_case("websocket") => Tunnel::WebSocket,
            Some(_) => Tunnel::Unknown,
        });
    }
    check_target(&parts.uri, facts.tunnel, limits)?;
    if parts.headers.len() > usize::from(limits.fields_max) {
        return Err(Cause::HeadTooLarge);
    }
    let (mut host, mut hosts, mut length, mut lengths) = (None, 0, None, 0);
    for (name, value) in &parts.headers {
        check_value(value)?;
        match known(name.as_str()) {
            Known::Host => (host, hosts) = (Some(value), hosts + 1),
            Known::ContentLength => (length, lengths) = (Some(value), lengths + 1),
            Known::Other if *name == header::CONTENT_TYPE => facts.grpc = Dialect::of(value.as_bytes()),
            Known::Via if via.is_some_and(|own| h1::has_pseudonym(value.as_bytes(), own)) => {
                return Err(Cause::Loop);
            }
            Known::Expect if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
                facts.expect_continue = !ended;
            }
            Known::Expect => return Err(Cause::ExpectationFailed),
            Known::Te => facts.takes_trailers = true,
            Known::MaxForwards if parts.method == http::Method::OPTIONS => {
                facts.max_forwards = Some(fields::parse_u64(value.as_bytes()).ok_or(Cause::BadFieldValue)?);
            }
            Known::Connection | Known::KeepAlive | Known::TransferEncoding | Known::Upgrade => {
                return Err(Cause::ProtocolError);
            }
            _ => {}
        }
    }
    if facts.tunnel.is_some() && length.is_some() {
        // What comes behind is the tunnel's: a body has no place (RFC 9110 §9.3.6).
        return Err(Cause::UpgradeWithBody);
    }
    if lengths > 1 {
        return Err(Cause::LengthRepeated);
    }
    if let Some(length) = length {
        let length = fields::parse_u64(length.as_bytes()).ok_or(Cause::BadLength)?;
        if ended && length > 0 {
            return Err(Cause::BadLength);
        }
        if !ended {
            facts.framing = Framing::Length(length);
        }
    }
    if hosts > 1 {
        return Err(Cause::HostRepeated);
    }
    check_host(parts, host)?;
    Ok(facts)
}

/// Host and port that a request is for.
pub(crate) fn authority(parts: &request::Parts) -> Option<&str> {
    let of_host = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    parts.uri.authority().map(Authority::as_str).or_else(of_host)
}

/// The host of an authority, without port: for routing.
pub fn host_of(authority: &str) -> &[u8] {
    fields::host_of(authority.as_bytes())
}

/// Makes one field of the crumbs that a cookie may come in (RFC 9113 §8.2.3), so that whoever looks at it sees what a server
/// will.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    let mut cookie = first.as_bytes().to_vec();
    // An empty one says nothing, and at the end would leave white space there.
    for crumb in headers.get_all(header::COOKIE).iter().skip(1).filter(|crumb| !crumb.is_empty()) {
        if !cookie.is_empty() {
            cookie.extend_from_slice(b"; ");
        }
        cookie.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(cookie) = HeaderValue::from_bytes(&cookie) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// The values of all lines of a field, for rules: `_` in a name is `-`, `host` is what the request is forwarded with, and
/// what is always removed is not there.
pub fn values<'p>(parts: &'p request::Parts, name: &str) -> impl Iterator<Item = &'p [u8]> {
    let asked = known(name);
    let own = if asked == Known::Host { authority(parts).map(str::as_bytes) } else { None };
    let elsewhere = matches!(asked, Known::Host | Known::ClientCert);
    own.into_iter().chain(
        parts
            .headers
            .iter()
            .filter(move |(field, _)| !elsewhere && authorize::same_name(field.as_str(), name))
            .map(|(_, value)| value.as_bytes()),
    )
}

/// As [`values`], but of lines with just this name, for routes.
fn lines<'p>(parts: &'p request::Parts, name: &str) -> impl Iterator<Item = &'p [u8]> {
    let asked = known(name);
    let own = if asked == Known::Host { authority(parts).map(str::as_bytes) } else { None };
    let elsewhere = matches!(asked, Known::Host | Known::ClientCert);
    let lines = (!elsewhere).then(|| parts.headers.get_all(name).into_iter().map(HeaderValue::as_bytes));
    own.into_iter().chain(lines.into_iter().flatten())
}

/// A request, as rules see it: a WebSocket as the handshake that its extended CONNECT stands for, so that no rule can be got
/// around by the version of HTTP.
pub fn call<'c, 'p>(
    caller: authorize::Caller<'c>,
    parts: &'c request::Parts,
    fields: &'c Fields<'p>,
) -> authorize::Call<'c, Fields<'p>> {
    let path = match parts.uri.path_and_query() {
        // A plain CONNECT has none.
        None => "",
        Some(_) => parts.uri.path(),
    };
    let extended = parts.extensions.get::<h2::ext::Protocol>().is_some();
    let method = if extended { http::Method::GET.as_str() } else { parts.method.as_str() };
    authorize::Call { caller, method: method.as_bytes(), path: path.as_bytes(), fields }
}

/// A head, as rules see it.
#[derive(Debug)]
pub struct Fields<'p>(pub &'p request::Parts);

impl authorize::Fields for Fields<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        values(self.0, name)
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        lines(self.0, name)
    }

    fn may_have_envoys(&self) -> bool {
        self.0.headers.keys().any(|name| authorize::may_be_envoys(name.as_str()))
    }
}

/// Makes a request that came by HTTP/2 ready for a service that speaks it: without what concerned only the last hop.
pub fn forward(parts: &mut request::Parts, facts: &Facts, forwarding: &Forwarded<'_>) {
    // Before a default takes its place; made only where it is told.
    let host = if forwarding.forwarded == ForwardedFields::Append {
        authority(parts).and_then(|host| HeaderValue::from_str(host).ok())
    } else {
        None
    };
    if parts.uri.authority().is_none() {
        let host = authority(parts).unwrap_or(forwarding.default_host).to_owned();
        set_authority(parts, &host);
    }
    parts.version = http::Version::HTTP_2;
    let headers = &mut parts.headers;
    super::remove(headers, |name| {
        matches!(
            known(name.as_str()),
            Known::Host | Known::HopByHop | Known::FailureReport | Known::ClientCert
        ) || *name == ORIGIN
            // Means nothing over HTTP/2 (RFC 8441 §5).
            || (facts.tunnel.is_some() && *name == header::SEC_WEBSOCKET_KEY)
    });
    if let Some(client_cert) = &forwarding.client_cert {
        let mut value = Vec::with_capacity(client_cert.value_len());
        client_cert.write(&mut value);
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert(client_cert::NAME, value);
        }
    }
    match forwarding.forwarded {
        ForwardedFields::Keep => {}
        ForwardedFields::Append => {
            let mut list = Vec::with_capacity(48);
            for value in headers.get_all(FOR).iter().filter(|v| !v.is_empty()) {
                list.extend_from_slice(value.as_bytes());
                list.extend_from_slice(b", ");
            }
            add_forwarded(headers, list, host, forwarding);
        }
        ForwardedFields::Replace => {
            for name in [HOST_OF, PROTO] {
                headers.remove(name);
            }
            headers.remove(header::FORWARDED);
            add_forwarded(headers, Vec::new(), host, forwarding);
        }
    }
    if let Some(via) = forwarding.via {
        super::append_via(headers, "2.0", via);
    }
    if let Some(n) = facts.max_forwards {
        headers.insert(header::MAX_FORWARDS, HeaderValue::from(n.saturating_sub(1)));
    }
}

/// Writes a request that came by HTTP/2 for a service that speaks HTTP/1.1.
pub fn write_h1(parts: &request::Parts, facts: &Facts, forwarding: &Forwarded<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    match parts.uri.path_and_query() {
        Some(path) if path.as_str() != "*" => {
            if !path.as_str().starts_with('/') {
                out.push(b'/');
            }
            out.extend_from_slice(path.as_str().as_bytes());
        }
        Some(_) => out.push(b'*'),
        // Of a plain CONNECT: host and port, as it came.
        None if parts.method == http::Method::CONNECT => {
            out.extend_from_slice(authority(parts).unwrap_or_default().as_bytes());
        }
        None => out.push(b'/'),
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(authority(parts).unwrap_or(forwarding.default_host).as_bytes());
    out.extend_from_slice(b"\r\n");
    let (mut has_proto, mut has_host, mut has_length) = (false, false, false);
    for (name, value) in &parts.headers {
        match known(name.as_str()) {
            Known::Connection | Known::HopByHop | Known::KeepAlive | Known::Upgrade | Known::Te => continue,
            Known::ContentLength => {
                has_length = true;
                continue;
            }
            Known::TransferEncoding | Known::Host | Known::FailureReport | Known::ClientCert => continue,
            Known::Expect if !facts.expect_continue => continue,
            Known::MaxForwards if facts.max_forwards.is_some() => continue,
            Known::XForwardedFor | Known::XForwardedHost | Known::XForwardedProto | Known::Forwarded
                if forwarding.forwarded == ForwardedFields::Replace =>
            {
                continue;
            }
            Known::XForwardedFor if forwarding.forwarded == ForwardedFields::Append => continue,
            Known::XForwardedProto => has_proto = true,
            Known::XForwardedHost => has_host = true,
            Known::Other if name.as_str() == ORIGIN_FIELD => continue,
            _ => {}
        }
        write_field(name.as_str(), value.as_bytes(), out);
    }
    write_added(parts, facts, forwarding, (has_proto, has_host), out);
    match facts.framing {
        // Services refuse (411) methods that have a meaning for content when nothing says that there is none.
        Framing::None if has_length || means_content(&parts.method) => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Framing::None | Framing::UntilClose => {}
        Framing::Length(n) => {
            out.extend_from_slice(b"content-length: ");
            write_u64(n, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a request without content says so (RFC 9110 §8.6).
fn means_content(method: &http::Method) -> bool {
    matches!(*method, http::Method::POST | http::Method::PUT | http::Method::PATCH)
}

/// Writes the WebSocket handshake that an extended CONNECT stands for, with this key (RFC 8441 §5).
pub fn write_h1_handshake(
    parts: &request::Parts,
    facts: &Facts,
    forwarding: &Forwarded<'_>,
    key: &[u8; 24],
    out: &mut Vec<u8>,
) {
    let mut parts = parts.clone();
    parts.method = http::Method::GET;
    parts.headers.remove(header::SEC_WEBSOCKET_KEY);
    let facts = Facts {
        method: Method::Idempotent,
        framing: Framing::None,
        expect_continue: false,
        takes_trailers: false,
        ..facts.clone()
    };
    write_h1(&parts, &facts, forwarding, out);
    // In place of the empty line.
    out.truncate(out.len() - 2);
    out.extend_from_slice(b"sec-websocket-key: ");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
}

/// Makes the extended CONNECT of a WebSocket handshake that was read from a canonical head (RFC 8441 §4). Its key stays here.
pub fn extend_connect(request: &mut Request<()>) {
    *request.method_mut() = http::Method::CONNECT;
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    request.headers_mut().remove(header::UPGRADE);
    request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
}

/// Says how the next hop is spoken to: `https` over TLS, `http` else, whatever the caller's hop was (that stands in
/// `x-forwarded-proto`). Servers exist that refuse another scheme than their connection's, as RFC 9113 §8.3.1 has it mean
/// the scheme of the target, and RFC 8164 §2 forbids `http` over TLS without having asked.
pub fn set_scheme(uri: &mut Uri, encrypted: bool) {
    let scheme = scheme(encrypted);
    // A plain CONNECT has none; most others have the right one.
    if uri.scheme().is_none_or(|present| *present == scheme) {
        return;
    }
    let mut parts = std::mem::take(uri).into_parts();
    parts.scheme = Some(scheme);
    // Of parts that were one a moment ago.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

pub(super) fn scheme(encrypted: bool) -> http::uri::Scheme {
    if encrypted { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP }
}

pub(super) const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const HOST_OF: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const ORIGIN: HeaderName = HeaderName::from_static(ORIGIN_FIELD);

fn method(method: &http::Method) -> Result<Method, Cause> {
    match *method {
        http::Method::GET | http::Method::OPTIONS | http::Method::PUT | http::Method::DELETE => {
            Ok(Method::Idempotent)
        }
        http::Method::HEAD => Ok(Method::Head),
        http::Method::TRACE => Err(Cause::MethodRefused),
        _ => Ok(Method::Other),
    }
}

fn check_target(uri: &Uri, tunnel: Option<Tunnel>, limits: &Limits) -> Result<(), Cause> {
    if let Some(authority) = uri.authority() {
        if authority.as_str().contains('@') {
            return Err(Cause::UserInfo);
        }
        if !fields::is_authority(authority.as_str().as_bytes()) {
            return Err(Cause::BadHost);
        }
    }
    if tunnel == Some(Tunnel::Plain) {
        return if uri.authority().is_some() { Ok(()) } else { Err(Cause::HostMissing) };
    }
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if target.len() > limits.target_bytes_max as usize {
        return Err(Cause::TargetTooLong);
    }
    if !fields::is_target(target.as_bytes()) {
        return Err(Cause::BadTarget);
    }
    if !limits.paths.take(uri.path().as_bytes()) {
        return Err(Cause::AmbiguousPath);
    }
    Ok(())
}

/// `:authority` and Host are the same, or one of them is missing (RFC 9113 §8.3.1).
fn check_host(parts: &request::Parts, host: Option<&HeaderValue>) -> Result<(), Cause> {
    let Some(host) = host else {
        return if parts.uri.authority().is_some() { Ok(()) } else { Err(Cause::HostMissing) };
    };
    if !fields::is_authority(host.as_bytes()) {
        return Err(Cause::BadHost);
    }
    match parts.uri.authority() {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(Cause::BadHost)
        }
        _ => Ok(()),
    }
}

/// Judges all values of a head or of trailers.
///
/// # Errors
/// When one of them may not stand in HTTP/2.
pub fn check_values(headers: &HeaderMap) -> Result<(), Cause> {
    headers.values().try_for_each(check_value)
}

/// A value neither begins nor ends with white space (RFC 9113 §8.2.1); the http crate has refused control characters.
fn check_value(value: &HeaderValue) -> Result<(), Cause> {
    let white = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    if white(bytes.first()) || white(bytes.last()) { Err(Cause::ProtocolError) } else { Ok(()) }
}

/// The one Content-Length.
pub(super) fn length(headers: &HeaderMap) -> Result<Option<u64>, Cause> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(Cause::LengthRepeated);
    }
    fields::parse_u64(length.as_bytes()).map(Some).ok_or(Cause::BadLength)
}

fn set_authority(parts: &mut request::Parts, host: &str) {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme.get_or_insert(http::uri::Scheme::HTTP);
    uri.authority = host.parse().ok();
    // A checked host is an authority; a service's name may be none, and then the request goes without.
    if uri.authority.is_none() {
        uri.scheme = None;
    }
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

fn add_forwarded(
    headers: &mut HeaderMap,
    mut list: Vec<u8>,
    host: Option<HeaderValue>,
    forwarding: &Forwarded<'_>,
) {
    h1::write_ip(forwarding.peer, &mut list);
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(FOR, value);
    }
    if !headers.contains_key(PROTO) {
        headers.insert(PROTO, HeaderValue::from_static(if forwarding.encrypted { "https" } else { "http" }));
    }
    if let Some(host) = host.filter(|_| !headers.contains_key(HOST_OF)) {
        headers.insert(HOST_OF, host);
    }
}

fn write_added(
    parts: &request::Parts,
    facts: &Facts,
    forwarding: &Forwarded<'_>,
    (has_proto, has_host): (bool, bool),
    out: &mut Vec<u8>,
) {
    if forwarding.forwarded != ForwardedFields::Keep {
        out.extend_from_slice(b"x-forwarded-for: ");
        if forwarding.forwarded == ForwardedFields::Append {
            for value in parts.headers.get_all(FOR).iter().filter(|v| !v.is_empty()) {
                out.extend_from_slice(value.as_bytes());
                out.extend_from_slice(b", ");
            }
        }
        h1::write_ip(forwarding.peer, out);
        out.extend_from_slice(b"\r\n");
        if !has_proto {
            out.extend_from_slice(forwarding.proto_line());
        }
        if !has_host && let Some(authority) = authority(parts) {
            write_field("x-forwarded-host", authority.as_bytes(), out);
        }
    }
    if let Some(client_cert) = &forwarding.client_cert {
        out.extend_from_slice(b"x-forwarded-client-cert: ");
        client_cert.write(out);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(via) = forwarding.via {
        // What came over HTTP/2 from another ringmesh came to that one by another version, which it has said itself.
        out.extend_from_slice(b"via: 2.0 ");
        out.extend_from_slice(via.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if facts.takes_trailers {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    if let Some(n) = facts.max_forwards {
        out.extend_from_slice(b"max-forwards: ");
        write_u64(n.saturating_sub(1), out);
        out.extend_from_slice(b"\r\n");
    }
}
