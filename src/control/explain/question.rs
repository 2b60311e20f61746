//! The request that is asked about: by the words of the command line, or by the query of the admin page. Pure.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::authorize::{Fields, same_name};
use crate::identity::SpiffeId;

/// A request that need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Question {
    pub(super) method: String,
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
    /// A request by a method and a URL: `https://shop/cart?a=b`, `shop/cart`, `/cart`.
    ///
    /// # Errors
    /// What is wrong with them, and what to write instead.
    pub(in crate::control) fn new(method: &str, url: &str) -> Result<Self, String> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(format!("`{method}` is not a method: write one such as GET"));
        }
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let (authority, target) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let target = target.split('#').next().unwrap_or(target);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if let Some(bad) = target.chars().chain(authority.chars()).find(|c| !c.is_ascii_graphic()) {
            return Err(format!("`{}` is never sent in a URL: write it encoded", bad.escape_debug()));
        }
        let authority = authority.rsplit('@').next().filter(|authority| !authority.is_empty());
        Ok(Self {
            method: method.to_owned(),
            authority: authority.map(str::to_owned),
            path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
            query: query.to_owned(),
            lines: authority.map(|authority| ("host".to_owned(), authority.to_owned())).into_iter().collect(),
            from: None,
            source: IpAddr::from([127, 0, 0, 1]),
            listener: None,
            port: None,
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
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        if name.is_empty() || name.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(format!("`{name}` is not the name of a field: write 'name: value'"));
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
        let url = one("url").ok_or("what is asked for? Write /explain?url=https://shop.example/cart")?;
        let mut question = Self::new(one("method").unwrap_or("GET"), url)?;
        for (key, value) in &pairs {
            match key.as_str() {
                "header" => question.field(value)?,
                "from" => question.from(value)?,
                "source" => question.source(value)?,
                "listener" => question.listener(value),
                "port" => question.port(value)?,
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
pub(super) struct Lines<'q>(pub(super) &'q [(String, String)]);

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
        let there = |line: &str| !same_name(line, "x-forwarded-client-cert");
        self.0.iter().filter(move |(line, _)| is(line) && there(line)).map(|(_, value)| value.as_bytes())
    }
}
