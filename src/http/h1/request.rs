//! A request head: taken apart, judged, and written anew for the next hop.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::Range;

use smallvec::SmallVec;

use super::{Parsed, cause_of, has_bare_line_ends};
use crate::authorize;
use crate::failure::Cause;
use crate::http::client_cert::ClientCert;
use crate::http::fields::{self, ConnectionOptions, FramingFields, Known, known, list, write_u64};
use crate::http::websocket::{self, Accept};
use crate::http::{Framing, Method, Version};
use crate::snapshot::{ForwardedFields, Limits};

/// A request head that broke no rule. Borrows from the buffer that it was read from.
#[derive(Debug)]
pub struct Request<'b> {
    /// What matters of the method.
    pub method: Method,
    /// The method as it came.
    pub method_name: &'b str,
    /// What is asked for.
    pub target: Target<'b>,
    /// Host and port: of the target if it has one, else of the Host field (RFC 9112 §3.2.2).
    pub authority: Option<&'b [u8]>,
    /// The version that it came with.
    pub version: Version,
    /// How the body ends; never `UntilClose`.
    pub framing: Framing,
    /// Whether the caller lets the connection live after the response.
    pub keep_alive: bool,
    /// Whether the caller may wait for a 100 before it sends the body.
    pub expect_continue: bool,
    /// Whether the caller takes trailers.
    pub takes_trailers: bool,
    /// What protocol the caller would like to change to.
    pub upgrade: Upgrade,
    /// The value of Max-Forwards.
    pub max_forwards: Option<u64>,
    /// Whether any line may have a name that begins with `x-envoy-`; a no is never wrong.
    pub may_have_envoys: bool,
    /// Bytes of the head in the buffer, what was skipped before it included.
    pub head_len: usize,
    base: &'b [u8],
    /// Octets of the target before the question mark: asked for several times.
    path_len: usize,
    connection: ConnectionOptions<'b>,
    parts: &'b [httparse::Header<'b>],
}

/// The forms of a request target that are served (RFC 9112 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'b> {
    /// Path and query, from origin-form or absolute-form. Starts with `/`, or is empty before a `?` or at the end,
    /// which is written as `/`.
    Path(&'b str),
    /// `*`, with OPTIONS only.
    Asterisk,
    /// Host and port, with CONNECT only.
    Authority(&'b str),
}

impl<'b> Target<'b> {
    /// As the log shows it.
    pub fn as_bytes(&self) -> &'b [u8] {
        match self {
            Self::Path(path) => path.as_bytes(),
            Self::Asterisk => b"*",
            Self::Authority(authority) => authority.as_bytes(),
        }
    }
}

/// What protocol a request would like to change to (RFC 9110 §7.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// None, or in HTTP/1.0, where it means nothing.
    No,
    /// One that may be ignored (`h2c`, unknown ones): the request is served as it is.
    Ignorable,
    /// `websocket`: without it the request makes no sense. What the service has to answer to its key.
    WebSocket(Accept),
}

/// The protocols that the Upgrade fields of a request name, counted.
#[derive(Debug, Default)]
struct Protocols {
    websocket: u16,
    others: u16,
}

impl Protocols {
    fn read(&mut self, value: &[u8]) {
        for protocol in list(value) {
            let count = if protocol.eq_ignore_ascii_case(b"websocket") {
                &mut self.websocket
            } else {
                &mut self.others
            };
            *count = count.saturating_add(1);
        }
    }
}

/// What is added to a request on its way.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding<'s> {
    /// The pseudonym for Via.
    pub via: Option<&'s str>,
    /// What becomes of `X-Forwarded-*`.
    pub forwarded: ForwardedFields,
    /// Who sent the request.
    pub peer: SocketAddr,
    /// Whether it came encrypted.
    pub encrypted: bool,
    /// The Host for a request without one (HTTP/1.0).
    pub default_host: &'s str,
    /// Who sent it, where its certificate was verified. What callers say of that themselves is removed in any case.
    pub client_cert: Option<ClientCert<'s>>,
}

impl Forwarding<'_> {
    /// The line that says by which scheme the request came.
    pub fn proto_line(&self) -> &'static [u8] {
        if self.encrypted { b"x-forwarded-proto: https\r\n" } else { b"x-forwarded-proto: http\r\n" }
    }
}

/// Reads a request head from the front of `buffer` and calls `then` with it.
///
/// `via` is this proxy's pseudonym: a request that carries it has been here.
pub fn read_request<R>(
    buffer: &[u8],
    limits: &Limits,
    via: Option<&str>,
    then: impl FnOnce(&Request<'_>) -> R,
) -> Parsed<R> {
    // One empty line before a request is forgiven (RFC 9112 §2.2).
    let skipped = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
    let bytes = &buffer[skipped..];
    match bytes.first() {
        None => return Parsed::Partial,
        Some(b'\r') if bytes.len() == 1 && skipped == 0 => return Parsed::Partial,
        Some(first) if !fields::is_token(std::slice::from_ref(first)) => {
            return Parsed::Refused(Cause::BadStartLine);
        }
        Some(_) => {}
    }
    let mut parts = [const { MaybeUninit::uninit() }; Limits::FIELDS_CEILING as usize];
    let fields_max = usize::from(limits.fields_max.min(Limits::FIELDS_CEILING));
    let mut parsed = httparse::Request::new(&mut []);
    let result = parsed.parse_with_uninit_headers(bytes, &mut parts[..fields_max]);
    match result {
        Ok(httparse::Status::Complete(len)) => {
            // First, because a long target makes a long head, too: which of the two it was must not depend on how much
            // came in one read.
            let target = parsed.path.unwrap_or_default();
            if target.len() > limits.target_bytes_max as usize {
                return Parsed::Refused(Cause::TargetTooLong);
            }
            if skipped + len > limits.head_bytes_max as usize {
                return Parsed::Refused(Cause::HeadTooLarge);
            }
            if has_bare_line_ends(&bytes[..len]) {
                return Parsed::Refused(Cause::BareCrOrLf);
            }
            match Request::judge(parsed, buffer, skipped + len, via) {
                Ok(request) if request.path().is_some_and(|path| !limits.paths.take(path.as_bytes())) => {
                    Parsed::Refused(Cause::AmbiguousPath)
                }
                Ok(request) => Parsed::Whole(then(&request)),
                Err(cause) => Parsed::Refused(cause),
            }
        }
        Ok(httparse::Status::Partial) => partial(bytes, limits),
        Err(httparse::Error::Version) if let Some(as_http11) = later_minor_version(buffer) => {
            read_request(&as_http11, limits, via, then)
        }
        Err(error) => Parsed::Refused(cause_of(error, bytes)),
    }
}

/// What is not whole yet may be too large already.
fn partial<R>(bytes: &[u8], limits: &Limits) -> Parsed<R> {
    let target = bytes.splitn(3, |b| matches!(b, b' ' | b'\n')).nth(1).unwrap_or_default();
    if target.len() > limits.target_bytes_max as usize {
        Parsed::Refused(Cause::TargetTooLong)
    } else if bytes.len() >= limits.head_bytes_max as usize {
        Parsed::Refused(Cause::HeadTooLarge)
    } else {
        Parsed::Partial
    }
}

/// A copy of the head (or of what is there of it) in which `HTTP/1.2` to `HTTP/1.9` is `HTTP/1.1`, as which it is to be
/// served (RFC 9110 §2.5).
fn later_minor_version(buffer: &[u8]) -> Option<Vec<u8>> {
    let start = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
    let line_end = memchr::memchr(b'\n', &buffer[start..]).map_or(buffer.len(), |at| start + at);
    let line = &buffer[start..line_end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let digit = (start + line.len()).checked_sub(1)?;
    let (_, version) = line.split_last_chunk::<9>()?;
    if !(version.starts_with(b" HTTP/1.") && matches!(version[8], b'2'..=b'9')) {
        return None;
    }
    let mut copy = buffer.to_vec();
    copy[digit] = b'1';
    Some(copy)
}

/// Which of the fields that are added to a request it has already, apart from those that are taken out.
#[derive(Debug, Clone, Copy, Default)]
struct Has {
    forwarded_for: bool,
    proto: bool,
    host: bool,
}

impl<'b> Request<'b> {
    /// Judges what httparse took apart.
    fn judge(
        parsed: httparse::Request<'b, 'b>,
        base: &'b [u8],
        head_len: usize,
        via: Option<&str>,
    ) -> Result<Self, Cause> {
        let method_name = parsed.method.ok_or(Cause::BadStartLine)?;
        let version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
        // Before the target: the one of CONNECT has a form of its own.
        let method = method_of(method_name)?;
        let (target, mut authority) = read_target(method_name, parsed.path.ok_or(Cause::BadStartLine)?)?;
        let mut request = Self {
            method,
            method_name,
            target,
            authority: None,
            version,
            framing: Framing::None,
            keep_alive: true,
            expect_continue: false,
            takes_trailers: false,
            upgrade: Upgrade::No,
            max_forwards: None,
            may_have_envoys: false,
            head_len,
            base,
            path_len: memchr::memchr(b'?', target.as_bytes()).unwrap_or(target.as_bytes().len()),
            connection: ConnectionOptions::default(),
            parts: parsed.headers,
        };
        let mut framing = FramingFields::default();
        let mut host = None;
        let mut protocols = Protocols::default();
        let mut websocket_keys = SmallVec::<[&[u8]; 1]>::new();
        for part in request.parts {
            request.may_have_envoys |= authorize::may_be_envoys(part.name);
            match known(part.name) {
                Known::Other | Known::Date | Known::Forwarded | Known::HopByHop | Known::KeepAlive => {}
                Known::XForwardedFor
                | Known::XForwardedHost
                | Known::XForwardedProto
                | Known::ClientCert
                | Known::FailureReport => {}
                Known::Connection => request.connection.read(part.value)?,
                Known::ContentLength => framing.length(part.value)?,
                Known::TransferEncoding => framing.encoding(part.value)?,
                Known::Host if host.is_some() => return Err(Cause::HostRepeated),
                Known::Host => host = Some(part.value),
                Known::Expect if version == Version::Http10 => {}
                Known::Expect if part.value.eq_ignore_ascii_case(b"100-continue") => {
                    request.expect_continue = true
                }
                Known::Expect => return Err(Cause::ExpectationFailed),
                Known::Te => {
                    request.takes_trailers |= list(part.value).any(|v| v.eq_ignore_ascii_case(b"trailers"));
                }
                Known::Upgrade => protocols.read(part.value),
                Known::SecWebSocketKey => websocket_keys.push(part.value),
                Known::MaxForwards => {
                    request.max_forwards = Some(fields::parse_u64(part.value).ok_or(Cause::BadFieldValue)?);
                }
                Known::Via if via.is_some_and(|own| has_pseudonym(part.value, own)) => {
                    return Err(Cause::Loop);
                }
                Known::Via => {}
            }
        }
        request.framing = framing.framing(version == Version::Http10, Framing::None)?;
        match host {
            Some(b"") => {}
            Some(host) if !fields::is_authority(host) => return Err(Cause::BadHost),
            Some(host) => authority = authority.or(Some(host)),
            None if version == Version::Http11 => return Err(Cause::HostMissing),
            None => {}
        }
        request.authority = authority;
        request.keep_alive = match version {
            Version::Http11 => !request.connection.close,
            Version::Http10 => request.connection.keep_alive && !request.connection.close,
        };
        request.expect_continue &= request.has_body();
        if version == Version::Http11 && request.connection.upgrade {
            request.upgrade = request.judge_upgrade(&protocols, &websocket_keys)?;
        }
        if request.is_connect() && request.has_body() {
            // What comes behind is the tunnel's: a body has no place (RFC 9110 §9.3.6).
            return Err(Cause::UpgradeWithBody);
        }
        Ok(request)
    }

    /// A WebSocket is taken for one when nothing about its handshake can be understood in two ways (RFC 6455 §4.1).
    fn judge_upgrade(&self, protocols: &Protocols, keys: &[&[u8]]) -> Result<Upgrade, Cause> {
        match (protocols, keys) {
            (Protocols { websocket: 0, others: 0 }, _) => Ok(Upgrade::No),
            (Protocols { websocket: 0, .. }, _) => Ok(Upgrade::Ignorable),
            _ if self.has_body() => Err(Cause::UpgradeWithBody),
            // A choice of protocols would be the service's, and this proxy could not follow it to all of them.
            (Protocols { websocket: 1, others: 0 }, keys) if self.method_name == "GET" => match keys {
                [key] => websocket::accept_of(key).map(Upgrade::WebSocket).ok_or(Cause::BadFieldValue),
                _ => Err(Cause::BadFieldValue),
            },
            _ => Err(Cause::UpgradeRefused),
        }
    }

    /// Whether a tunnel is asked for.
    pub fn is_connect(&self) -> bool {
        matches!(self.target, Target::Authority(_))
    }

    /// Whether a body is announced, be it an empty one.
    pub fn has_body(&self) -> bool {
        !matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// Trailers that Connection nominates: they concern this hop only, like the fields of these names.
    pub fn nominated_trailers(&self) -> Vec<Box<str>> {
        if self.framing == Framing::Chunked { self.connection.nominated_trailers() } else { Vec::new() }
    }

    /// Path without query, for routing; `None` for `*`.
    pub fn path(&self) -> Option<&'b str> {
        match self.target {
            Target::Path(path) => {
                let path = &path[..self.path_len];
                Some(if path.is_empty() { "/" } else { path })
            }
            Target::Asterisk | Target::Authority(_) => None,
        }
    }

    /// What stands behind the question mark, for routing; empty where there is none.
    pub fn query(&self) -> &'b str {
        match self.target {
            Target::Path(path) => path.get(self.path_len + 1..).unwrap_or_default(),
            Target::Asterisk | Target::Authority(_) => "",
        }
    }

    /// The host without port, for routing.
    pub fn host(&self) -> Option<&'b [u8]> {
        self.authority.map(fields::host_of)
    }

    /// The values of all lines of a field, for rules: `_` in a name is `-`, `host` is what the request is forwarded with,
    /// and what is always removed is not there.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let asked = known(name);
        let own = if asked == Known::Host { self.authority } else { None };
        let parts = if matches!(asked, Known::Host | Known::ClientCert) { &[] } else { self.parts };
        own.into_iter()
            .chain(parts.iter().filter(move |p| authorize::same_name(p.name, name)).map(|part| part.value))
    }

    /// As [`Self::values`], but of lines with just this name, for routes.
    pub fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let (own, parts) = match known(name) {
            Known::Host => (self.authority, &[][..]),
            Known::ClientCert => (None, &[][..]),
            _ => (None, self.parts),
        };
        own.into_iter()
            .chain(parts.iter().filter(move |p| p.name.eq_ignore_ascii_case(name)).map(|part| part.value))
    }

    /// Where a part of the head lies in the buffer that it was read from, to find it again later.
    pub fn place(&self, part: &[u8]) -> Range<u32> {
        let base = self.base.as_ptr() as usize;
        let start = (part.as_ptr() as usize).wrapping_sub(base);
        match (u32::try_from(start), u32::try_from(start.wrapping_add(part.len()))) {
            (Ok(start), Ok(end)) if end as usize <= self.base.len() => start..end,
            _ => 0..0,
        }
    }

    /// Writes the head for the next hop: HTTP/1.1, canonical, without what concerned only the last hop.
    pub fn write_head(&self, forwarding: &Forwarding<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method_name.as_bytes());
        out.push(b' ');
        match self.target {
            Target::Asterisk => out.push(b'*'),
            // Where the next hop is to open the tunnel.
            Target::Authority(authority) => out.extend_from_slice(authority.as_bytes()),
            Target::Path(path) => {
                if !path.starts_with('/') {
                    out.push(b'/');
                }
                out.extend_from_slice(path.as_bytes());
            }
        }
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        out.extend_from_slice(self.authority.unwrap_or(forwarding.default_host.as_bytes()));
        out.extend_from_slice(b"\r\n");
        let mut has = Has::default();
        for part in self.parts {
            match known(part.name) {
                Known::Connection | Known::HopByHop | Known::KeepAlive | Known::Upgrade | Known::Te => {
                    continue;
                }
                Known::TransferEncoding | Known::ContentLength | Known::Host | Known::FailureReport => {
                    continue;
                }
                Known::ClientCert => continue,
                Known::Expect if !self.expect_continue => continue,
                Known::MaxForwards if self.method_name == "OPTIONS" => continue,
                Known::XForwardedFor | Known::XForwardedHost | Known::XForwardedProto | Known::Forwarded
                    if forwarding.forwarded == ForwardedFields::Replace =>
                {
                    continue;
                }
                Known::XForwardedFor if forwarding.forwarded == ForwardedFields::Append => {
                    has.forwarded_for = true;
                    continue;
                }
                Known::XForwardedProto => has.proto = true,
                Known::XForwardedHost => has.host = true,
                Known::Other | Known::Date | Known::Expect | Known::MaxForwards | Known::Via => {}
                Known::XForwardedFor | Known::Forwarded | Known::SecWebSocketKey => {}
            }
            if self.connection.nominates(part.name) {
                continue;
            }
            write_field(part.name, part.value, out);
        }
        self.write_added(forwarding, has, out);
        if let Upgrade::WebSocket(_) = self.upgrade {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n");
            return;
        }
        match self.framing {
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

    fn write_added(&self, forwarding: &Forwarding<'_>, has: Has, out: &mut Vec<u8>) {
        if forwarding.forwarded != ForwardedFields::Keep {
            out.extend_from_slice(b"x-forwarded-for: ");
            if has.forwarded_for {
                // One line, because many readers look at the first line only.
                for part in self.parts.iter().filter(|p| known(p.name) == Known::XForwardedFor) {
                    if !part.value.is_empty() {
                        out.extend_from_slice(part.value);
                        out.extend_from_slice(b", ");
                    }
                }
            }
            write_ip(forwarding.peer, out);
            out.extend_from_slice(b"\r\n");
            if !has.proto {
                out.extend_from_slice(forwarding.proto_line());
            }
            if !has.host
                && let Some(authority) = self.authority
            {
                write_field("x-forwarded-host", authority, out);
            }
        }
        if let Some(client_cert) = &forwarding.client_cert {
            out.extend_from_slice(b"x-forwarded-client-cert: ");
            client_cert.write(out);
            out.extend_from_slice(b"\r\n");
        }
        if let Some(via) = forwarding.via {
            out.extend_from_slice(match self.version {
                Version::Http10 => b"via: 1.0 ",
                Version::Http11 => b"via: 1.1 ",
            });
            out.extend_from_slice(via.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // A handshake has no trailers, and one Connection field is enough.
        if self.takes_trailers && !matches!(self.upgrade, Upgrade::WebSocket(_)) {
            out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
        }
        if self.method_name == "OPTIONS"
            && let Some(n) = self.max_forwards
        {
            // At 0 the request is answered here and never written (RFC 9110 §7.6.2).
            out.extend_from_slice(b"max-forwards: ");
            write_u64(n.saturating_sub(1), out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

pub(in crate::http) fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A target, and the authority in it.
type Targeted<'b> = (Target<'b>, Option<&'b [u8]>);

/// Form and authority of a target (RFC 9112 §3.2), or why it is refused.
fn read_target<'b>(method: &str, target: &'b str) -> Result<Targeted<'b>, Cause> {
    if !fields::is_target(target.as_bytes()) {
        return Err(Cause::BadTarget);
    }
    if method == "CONNECT" {
        // Host and port, both (RFC 9112 §3.2.3).
        let port = memchr::memrchr(b':', target.as_bytes()).map(|at| &target.as_bytes()[at + 1..]);
        let has_port = port.is_some_and(|port| fields::parse_u64(port).is_some_and(|n| n > 0));
        return if has_port && fields::is_authority(target.as_bytes()) {
            Ok((Target::Authority(target), Some(target.as_bytes())))
        } else if target.contains('@') {
            Err(Cause::UserInfo)
        } else {
            Err(Cause::BadTarget)
        };
    }
    if target.starts_with('/') {
        return Ok((Target::Path(target), None));
    }
    if target == "*" {
        return if method == "OPTIONS" { Ok((Target::Asterisk, None)) } else { Err(Cause::BadTarget) };
    }
    let scheme_end = target.find("://").ok_or(Cause::BadTarget)?;
    let scheme = &target[..scheme_end];
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Cause::BadTarget);
    }
    let rest = &target[scheme_end + 3..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err(Cause::UserInfo);
    }
    if !fields::is_authority(authority.as_bytes()) {
        return Err(Cause::BadTarget);
    }
    let form = if path.is_empty() && method == "OPTIONS" { Target::Asterisk } else { Target::Path(path) };
    Ok((form, Some(authority.as_bytes())))
}

/// Methods are case-sensitive tokens; unknown ones are passed on (RFC 9110 §9.1).
fn method_of(name: &str) -> Result<Method, Cause> {
    Ok(match name {
        "GET" | "OPTIONS" | "PUT" | "DELETE" => Method::Idempotent,
        "HEAD" => Method::Head,
        "TRACE" => return Err(Cause::MethodRefused),
        _ if !fields::is_token(name.as_bytes()) => return Err(Cause::BadMethod),
        _ => Method::Other,
    })
}

/// Whether a Via value has a hop received by `own` (RFC 9110 §7.6.3).
pub(in crate::http) fn has_pseudonym(value: &[u8], own: &str) -> bool {
    list(value).any(|hop| {
        let mut words = hop.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty());
        words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(own.as_bytes()))
    })
}

pub(in crate::http) fn write_ip(peer: SocketAddr, out: &mut Vec<u8>) {
    match peer {
        SocketAddr::V4(v4) => {
            for (n, octet) in v4.ip().octets().into_iter().enumerate() {
                if n > 0 {
                    out.push(b'.');
                }
                write_octet(octet, out);
            }
        }
        SocketAddr::V6(v6) => {
            use std::io::Write as _;
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{}", v6.ip());
        }
    }
}

/// Writes an octet in decimal: four for each request.
fn write_octet(octet: u8, out: &mut Vec<u8>) {
    let digits = [b'0' + octet / 100, b'0' + octet / 10 % 10, b'0' + octet % 10];
    let leading = usize::from(octet < 100) + usize::from(octet < 10);
    out.extend_from_slice(&digits[leading..]);
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
