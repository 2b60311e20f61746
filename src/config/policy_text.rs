//! The grammar of what identity, TLS and authorization are written in: ids, trust domains, ranges of addresses, methods,
//! paths and fields of rules, files, server names. Text to value or a complaint that says what to write. Pure; called
//! by `decode`. Refuses to repair: two spellings of one thing would be two things to a rule.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use rustls::pki_types::ServerName;

use super::values::{self, Complaint};
use crate::authorize::TextMatch;
use crate::identity::{IdMatch, SpiffeId, TrustDomain};

fn complain<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Complaint> {
    Err(Complaint { message: message.into(), help: help.into() })
}

// --- identities ---

/// An id, as it stands in a certificate.
pub(super) fn id(text: &str) -> Result<SpiffeId, Complaint> {
    SpiffeId::parse(text).or_else(|bad| {
        complain(
            format!("`{}` is not a SPIFFE id: {}", super::reader::shortened(text), bad.0),
            "write it as it stands in the certificate, such as \"spiffe://mesh.local/ns/default/sa/shop\"",
        )
    })
}

/// Who may be at the other end of a connection to a service: an id, or all below one.
pub(super) fn identity_of_service(text: &str) -> Result<IdMatch, Complaint> {
    if text == "*" {
        return complain(
            "`*` would take anybody of any trust domain for the service",
            "leave `identities` out for anybody of our own trust domain, or write \"spiffe://mesh.local/*\"",
        );
    }
    id_match(
        text,
        "write \"spiffe://mesh.local/ns/default/sa/shop\", or \"spiffe://mesh.local/ns/default/*\"",
    )
}

/// Whom a rule means: an id, all below one, or anybody with one.
pub(super) fn from(text: &str) -> Result<IdMatch, Complaint> {
    id_match(
        text,
        "write \"spiffe://mesh.local/ns/default/sa/shop\", \"spiffe://mesh.local/ns/default/*\", or \"*\" for anybody \
         with a verified identity",
    )
}

fn id_match(text: &str, help: &str) -> Result<IdMatch, Complaint> {
    IdMatch::parse(text).or_else(|bad| {
        complain(format!("`{}` is not a SPIFFE id: {}", super::reader::shortened(text), bad.0), help)
    })
}

/// A trust domain, without scheme and path.
pub(super) fn trust_domain(text: &str) -> Result<TrustDomain, Complaint> {
    if let Some(rest) = text.strip_prefix("spiffe://") {
        let domain = rest.split('/').next().unwrap_or(rest);
        return complain("a trust domain has no scheme", format!("write \"{domain}\""));
    }
    TrustDomain::parse(text).or_else(|bad| {
        let shown = super::reader::shortened(text);
        complain(
            format!("`{shown}` is not a trust domain: {}", bad.0),
            "write a name in lower case, such as \"mesh.local\"",
        )
    })
}

/// The socket of a Workload API. Kept as it is written.
pub(super) fn workload_socket(text: &str) -> Result<String, Complaint> {
    let Some(path) = text.strip_prefix("unix:") else {
        let help = if text.starts_with('/') {
            format!("write \"unix:{text}\"")
        } else {
            "write \"unix:/run/spire/agent.sock\"".into()
        };
        return complain("the Workload API is asked on a Unix socket, which begins with `unix:`", help);
    };
    let path = if path.starts_with("///") { &path[2..] } else { path };
    match values::target(&format!("unix:{path}"))? {
        values::Target::Unix(_) => Ok(text.into()),
        values::Target::Ip(_) | values::Target::Name(..) => {
            complain("not a Unix socket", "write \"unix:/run/spire/agent.sock\"")
        }
    }
}

// --- TLS ---

/// The path of a file or folder that is read later.
pub(super) fn file(text: &str) -> Result<PathBuf, Complaint> {
    if text.is_empty() {
        return complain("the path is empty", "write where it lies, from the root");
    }
    if text.contains('\0') {
        return complain("a path cannot contain a NUL character", "take it out");
    }
    if text.contains("-----BEGIN") {
        return complain(
            "this is the content of a file, not its path",
            "put it into a file, and write where that lies",
        );
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let path = format!("/{}", rest.trim_start_matches('/'));
        return complain(format!("a path does not begin with `{scheme}://`"), format!("write \"{path}\""));
    }
    Ok(PathBuf::from(text))
}

/// The name in the certificate of a server outside of the mesh.
pub(super) fn server_name(text: &str) -> Result<ServerName<'static>, Complaint> {
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':']).next().unwrap_or(rest);
        return complain("a server name has no scheme", format!("write \"{host}\""));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && !host.contains(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return complain("a server name has no port", format!("write \"{host}\""));
    }
    let host = text.strip_suffix('.').unwrap_or(text);
    if host.len() < text.len() {
        return complain("a server name has no dot at its end", format!("write \"{host}\""));
    }
    ServerName::try_from(text.to_ascii_lowercase()).or_else(|_| {
        complain(
            format!("`{}` is neither a name nor an IP address", super::reader::shortened(text)),
            "write the name that its certificate has, such as \"api.example\"",
        )
    })
}

// --- conditions of rules ---

/// A range of addresses in CIDR notation, without bits behind the prefix.
pub(super) fn source(text: &str) -> Result<IpNet, Complaint> {
    let Ok(net) = text.parse::<IpNet>() else {
        return match text.parse::<IpAddr>() {
            Ok(address) => {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                complain("the length of the prefix is missing", format!("write \"{text}/{bits}\""))
            }
            Err(_) => complain(
                format!("`{}` is not a range of addresses", super::reader::shortened(text)),
                "write an address and the length of its prefix, such as \"10.0.0.0/8\" or \"fd00::/8\"",
            ),
        };
    };
    if net.trunc() != net {
        return complain(
            format!("`{text}` has bits set behind its prefix"),
            format!(
                "write \"{}\" for the range, or \"{}/{}\" for that address alone",
                net.trunc(),
                net.addr(),
                net.max_prefix_len()
            ),
        );
    }
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return complain(
            "callers by IPv4 are compared as IPv4 addresses",
            "write the range in IPv4, such as \"10.0.0.0/8\"",
        );
    }
    Ok(net)
}

/// A method, as it is sent.
pub(super) fn method(text: &str) -> Result<Box<str>, Complaint> {
    if text == "*" {
        return complain("`*` is not a method", "leave `methods` out for every method");
    }
    if text.is_empty() || !text.bytes().all(is_token_byte) {
        return complain(
            format!("`{}` is not a method", super::reader::shortened(text).escape_debug()),
            "write one such as \"GET\"",
        );
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        return complain(
            format!("`{}` is not `{}`: methods differ by case", text, text.to_ascii_uppercase()),
            format!("write \"{}\"", text.to_ascii_uppercase()),
        );
    }
    Ok(text.into())
}

/// A path, or with a star at the end all that begin so.
pub(super) fn path(text: &str) -> Result<TextMatch, Complaint> {
    if text == "*" {
        return complain("a path begins with `/`", "write \"/*\", or leave `paths` out for every path");
    }
    let before = text.strip_suffix('*').unwrap_or(text);
    if before.contains('*') {
        return complain(
            "a star may stand at the end only",
            format!("write \"{}*\" for all that begin so", before.split('*').next().unwrap_or("/")),
        );
    }
    values::path(before)?;
    Ok(if before.len() < text.len() {
        TextMatch::Prefix(before.into())
    } else {
        TextMatch::Exact(text.into())
    })
}

/// The name of a field, in lower case.
pub(super) fn field_name(text: &str) -> Result<Box<str>, Complaint> {
    if text.is_empty() || !text.bytes().all(is_token_byte) {
        let bad = text.chars().find(|&c| !u8::try_from(c).is_ok_and(is_token_byte));
        let message = match bad {
            Some(bad) => format!("`{}` cannot stand in the name of a field", bad.escape_debug()),
            None => "the name of a field is empty".into(),
        };
        return complain(message, "write a name such as x-tier");
    }
    Ok(text.to_ascii_lowercase().into())
}

/// The value of a field, with a star at the end all that begin so, or a star alone for a field that is there.
pub(super) fn field_value(text: &str) -> Result<TextMatch, Complaint> {
    if text == "*" {
        return Ok(TextMatch::Any);
    }
    let before = text.strip_suffix('*').unwrap_or(text);
    if before.contains('*') {
        return complain(
            "a star may stand alone or at the end only",
            format!("write \"{}*\" for all that begin so", before.split('*').next().unwrap_or("")),
        );
    }
    if let Some(bad) = text.chars().find(|&c| c.is_control() && c != '\t') {
        return complain(format!("`{}` is never sent in a field", bad.escape_debug()), "take it out");
    }
    if text.trim() != text {
        return complain(
            "blanks around a value are not part of it",
            format!("write {}", values::quoted(text.trim())),
        );
    }
    Ok(if before.len() < text.len() {
        TextMatch::Prefix(before.into())
    } else {
        TextMatch::Exact(text.into())
    })
}

/// How a match is written.
pub(super) fn match_text(text: &TextMatch) -> String {
    match text {
        TextMatch::Exact(exact) => exact.to_string(),
        TextMatch::Prefix(prefix) => format!("{prefix}*"),
        TextMatch::Any => "*".into(),
    }
}

fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}
