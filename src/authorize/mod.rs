//! Who may do what: the rules of `[[authorization]]`, compiled, and the decision. Pure: knows no socket, no clock.
//!
//! Of all rules that match, a deny wins; else an allow lets pass; else the default of the proxy holds. An audit rule that
//! matches is noted and decides nothing. Refuses to answer the caller: who is denied learns 403, not which rule it was.

use std::sync::Arc;

use crate::identity::IdMatch;

/// All rules of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// In the order of the files.
    pub rules: Vec<Rule>,
    /// What holds when no rule matches.
    pub default: Verdict,
}

/// What is decided in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// It passes.
    #[default]
    Allow,
    /// 403.
    Deny,
}

/// One rule: matches when every condition that is given matches; a condition with several values matches by one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name in log and metrics.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// Listeners (their names); empty: all.
    pub listeners: Vec<Arc<str>>,
    /// Verified identities of the peer; empty: anybody, also without one.
    pub from: Vec<IdMatch>,
    /// Ranges of the connection's own source address (no header counts); empty: all.
    pub sources: Vec<ipnet::IpNet>,
    /// Ports of the listener; empty: all.
    pub ports: Vec<u16>,
    /// Methods, exactly; empty: all.
    pub methods: Vec<Box<str>>,
    /// Paths without query; empty: all.
    pub paths: Vec<TextMatch>,
    /// Header fields, all of which must match. Names are lower case.
    pub headers: Vec<(Box<str>, TextMatch)>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Lets pass, unless another denies.
    Allow,
    /// Refuses.
    Deny,
    /// Is logged and counted.
    Audit,
}

/// Which texts are meant: `exact`, `prefix*`, or `*` (for a header: present).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// Octet for octet.
    Exact(Box<str>),
    /// That and everything that begins so (stored without the star). For a path that ends in `/*`: everything below.
    Prefix(Box<str>),
    /// Anything.
    Any,
}
