//! The request that is asked about: by the words of the command line, or by the query of the admin page. Pure.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::authorize::{Fields, same_name};
use crate::identity::SpiffeId;

/// A request that need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Question {
    pub(super) method: String,
    /// As it stands in the request line.
    target: String,
    /// Host and port, as they were written.
    pub(super) authority: Option<String>,
    pub(super) path: String,
    pub(super) query: String,
    /// Fields with names in lower case, `host` among them.
    pub(super) lines: Vec<(String, String)>,
    pub(super) from: Option<SpiffeId>,
    pub(super) source: IpAddr,
    pub(super) listener: Option<String>,
    pub(super) port: Option<u16>,
}

impl Question {
    /// A request by a method and a URL: `https://shop/cart?a=b`, `shop/cart`, `/cart`. A URL is sent as callers do: its path in
    /// the request line, its host in Host, its fragment not at all. What they never make of a URL (user information, another
    /// scheme, `*`, a fragment behind a path alone, what CONNECT asks for) is sent as it stands.
    ///
    /// # Errors
    /// What is wrong with them, and what to write instead.
    pub(in crate::control) fn new(method: &str, url: &str) -> Result<Self, String> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(format!("`{method}` is not a method: write one such as GET"));
        }
        if let Some(bad) = url.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(format!("`{}` is never sent in a URL: write it encoded", bad.escape_debug()));
        }
        let (target, authority) = sent(method, url);
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(Self {
            method: method.to_owned(),
            path: if authority.as_deref() == Some(&target) { String::new() } else { path.to_owned() },
            query: query.to_owned(),
            lines: authority.iter().map(|authority| ("host".to_owned(), authority.clone())).collect(),
            from: None,
            source: IpAddr::from([127, 0, 0, 1]),
            listener: None,
            port: None,
            target,
            authority,
        })
    }

    /// Adds a field, as `name: value`. `host` takes the place of the URL's.
    ///
    /// # Errors
    /// When it is none.
    pub(in crate::control) fn field(&mut self, line: &str) -> Result<(), String> {
        let Some((name, value)) = line.split_once(':') else {
            return Err(format!("`{line}` is not a field: write 'name: value'"));
        };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned());
        if name.is_empty() || name.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(format!("`{name}` is not the name of a field: write 'name: value'"));
        }
        if value.contains(['\r', '\n']) {
            return Err(format!("the value of `{name}` is more than one line: write each field by itself"));
        }
        if name == "host" {
            self.lines.retain(|(name, _)| name != "host");
            self.authority = Some(value.clone());
        }
        self.lines.push((name, value));
        Ok(())
    }

    /// Sets who calls.
    ///
    /// # Errors
    /// When it is no identity.
    pub(in crate::control) fn from(&mut self, id: &str) -> Result<(), String> {
        let id = SpiffeId::parse(id).map_err(|bad| {
            format!(
                "`{id}` is not a SPIFFE id: {}: write one such as spiffe://mesh.local/ns/shop/sa/web",
                bad.0
            )
        })?;
        self.from = Some(id);
        Ok(())
    }

    /// Sets where it comes from.
    ///
    /// # Errors
    /// When it is no address.
    pub(in crate::control) fn source(&mut self, address: &str) -> Result<(), String> {
        self.source = address.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
        Ok(())
    }

    /// Sets the listener by its name.
    pub(in crate::control) fn listener(&mut self, name: &str) {
        self.listener = Some(name.to_owned());
    }

    /// Sets the port of the listener.
    ///
    /// # Errors
    /// When it is none.
    pub(in crate::control) fn port(&mut self, port: &str) -> Result<(), String> {
        self.port = Some(port.parse().map_err(|_| format!("`{port}` is not a port"))?);
        Ok(())
    }

    /// By the query of the admin page: `method=GET&url=https://shop/cart&header=x-user:7&from=…&source=…&listener=…&port=…`.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub(in crate::control) fn of_query(query: &str) -> Result<Self, String> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (decoded(key), decoded(value)))
            .collect();
        let one = |wanted: &str| pairs.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
        for key in ["method", "url", "from", "source", "listener", "port", "format", "all"] {
            if pairs.iter().filter(|(other, _)| other == key).count() > 1 {
                return Err(format!("`{key}` stands there more than once: write it once"));
            }
        }
        let url = one("url").ok_or("what is asked for? Write /explain?url=https://shop.example/cart")?;
        let mut question = Self::new(one("method").unwrap_or("GET"), url)?;
        for (key, value) in &pairs {
            match key.as_str() {
                "header" => question.field(value)?,
                "from" => question.from(value)?,
                "source" => question.source(value)?,
                "listener" => question.listener(value),
                "port" => question.port(value)?,
                "format" if !["json", "text"].contains(&value.as_str()) => {
                    return Err(format!("`{value}` is not a format: write json or text"));
                }
                "all" if !["", "1"].contains(&value.as_str()) => {
                    return Err(format!("`all={value}` is not known: write all, or leave it out"));
                }
                "method" | "url" | "format" | "all" => {}
                other => {
                    return Err(format!(
                        "`{other}` is not known: there are method, url, header, from, source, listener, port, all, format"
                    ));
                }
            }
        }
        Ok(question)
    }

    /// The host without port, as routes are asked.
    pub(super) fn host(&self) -> Option<&str> {
        let authority = self.authority.as_deref()?;
        if authority.starts_with('[') {
            return Some(authority.split_inclusive(']').next().unwrap_or(authority));
        }
        Some(authority.split(':').next().unwrap_or(authority))
    }

    /// Its head, as it would come by HTTP/1.1. Without a host it has an empty one, as that version wants a line of it.
    pub(super) fn head(&self) -> Vec<u8> {
        let host = self.authority.as_deref().unwrap_or_default();
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.target);
        for (name, value) in self.lines.iter().filter(|(name, _)| name != "host") {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// In one line.
    pub(super) fn text(&self) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        let from = self.from.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
        let authority = self.authority.as_deref().unwrap_or_default();
        format!("{} {authority}{}{query}{from} at {}", self.method, self.path, self.source)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "method": self.method, "host": self.host(), "path": self.path, "query": self.query,
            "headers": self.lines, "from": self.from.as_ref().map(SpiffeId::as_str),
            "source": self.source.to_string(), "listener": self.listener, "port": self.port,
        })
    }
}

/// The target of the request line, and the value of Host.
fn sent(method: &str, url: &str) -> (String, Option<String>) {
    if method == "CONNECT" {
        return (url.to_owned(), Some(url.to_owned()));
    }
    if url == "*" || url.starts_with('/') {
        return (url.to_owned(), None);
    }
    let is_scheme = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
        _ => ("http", url),
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let is_sent_apart = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    if !is_sent_apart || authority.contains('@') {
        return (format!("{scheme}://{rest}"), None);
    }
    let target = target.split('#').next().unwrap_or_default();
    let slash = if target.starts_with('/') { "" } else { "/" };
    (format!("{slash}{target}"), Some(authority.to_owned()).filter(|authority| !authority.is_empty()))
}

/// What a piece of a query stands for.
fn decoded(text: &str) -> String {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let encoded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, encoded) {
            (b'%', Some(octet)) => {
                octets.push(octet);
                rest = &after[2..];
            }
            (b'+', _) => {
                octets.push(b' ');
                rest = after;
            }
            _ => {
                octets.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

/// Its fields, as rules and routes ask for them: what callers say about their certificates is not there.
#[derive(Debug)]
pub(super) struct Lines<'q> {
    pub(super) all: &'q [(String, String)],
    /// Host and port, as the request was understood.
    pub(super) host: Option<&'q str>,
}

impl Fields for Lines<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.named(move |line| same_name(line, name))
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.named(move |line| line.eq_ignore_ascii_case(name))
    }
}

impl Lines<'_> {
    fn named(&self, is: impl Fn(&str) -> bool) -> impl Iterator<Item = &[u8]> {
        let there = |line: &str| !same_name(line, "x-forwarded-client-cert") && !same_name(line, "host");
        let host = self.host.filter(|_| is("host")).map(str::as_bytes);
        let others = self.all.iter().filter(move |(line, _)| is(line) && there(line));
        host.into_iter().chain(others.map(|(_, value)| value.as_bytes()))
    }
}
