//! Who may do what: the rules of `[[authorization]]`, compiled, and the decision. Pure: knows no socket, no clock.
//!
//! Of all rules that match, a deny wins; else an allow lets pass; else the default of the proxy holds. An audit rule that
//! matches is noted and decides nothing. A rule matches when each of its conditions does, a condition with several
//! values by one of them. Of several denies (or allows) that match, the first in the order of the files is told.
//!
//! A caller may spell one thing in several ways, and the service may take them for the same. So a rule that denies (or
//! audits) reads widely and a rule that allows reads narrowly ([`matching`]); neither can be dodged by a spelling:
//! - **Path**: compared after percent-decoding, without query. A path that servers are known to understand differently
//!   (an empty segment, a dot segment, `;`, a backslash, an encoded slash, backslash, percent sign, semicolon, question
//!   mark or hash, an encoded control octet, overlong UTF-8, a broken encoding) matches every path condition of a deny and
//!   none of an allow; the log then says `ambiguous_path`. A final slash makes no difference to a deny. Upper and lower
//!   case do.
//! - **Method**: octet for octet; a deny ignores case, because frameworks exist that do.
//! - **Field**: a deny matches when one line does, or one member of a line that is a list; an allow when the field is
//!   there and all of its lines do, whole. `_` and `-` in names are the same, as they are to CGI and what came of it.
//!
//! Refuses to answer the caller: who is denied learns 403, not which rule it was. Refuses to trust what a caller says
//! about itself: the peer is what the handshake proved, the source is the connection's own address.

mod index;
mod matching;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::identity::{IdMatch, SpiffeId};
use index::{Index, Set};
use matching::{Path, Reading};
pub use matching::{ambiguity, has_dot_segment, same_name};

/// All rules of a proxy, compiled. Made by control; shards only ask.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    default: Verdict,
    index: Index,
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
    /// Paths without query; empty: all. None of them may be ambiguous ([`ambiguity`]).
    pub paths: Vec<TextMatch>,
    /// Header fields, all of which must match. Names are lower case.
    pub headers: Vec<(Box<str>, TextMatch)>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// Who calls, and where: all that is known when a connection has been accepted.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'c> {
    /// The name of the listener.
    pub listener: &'c str,
    /// Its port.
    pub port: u16,
    /// The connection's own source address.
    pub source: IpAddr,
    /// Who the handshake proved it to be.
    pub peer: Option<&'c SpiffeId>,
}

/// A request, as far as rules ask for it.
#[derive(Debug)]
pub struct Call<'c, F> {
    /// Who calls.
    pub caller: Caller<'c>,
    /// The method, as it came.
    pub method: &'c [u8],
    /// The path as it is forwarded, without query; `*` for OPTIONS of the whole server, empty where there is none (CONNECT).
    pub path: &'c [u8],
    /// Its header section.
    pub fields: &'c F,
}

/// A header section that rules can ask.
pub trait Fields {
    /// The values of all lines whose name is [the same](same_name), in their order. `host` is what the request is
    /// forwarded with; what is removed on the way (`x-forwarded-client-cert`) is not there.
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]>;

    /// As [`Self::values`], but of lines with just this name (in any case): for routes, which guard nothing.
    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.values(name)
    }

    /// Whether any line may have a name that begins with `x-envoy-`: asked once before each of those is looked for. A yes may be
    /// wrong, a no never is.
    fn may_have_envoys(&self) -> bool {
        true
    }
}

/// Whether this may be such a name, in any case and with `_` for `-`: few others have an `e` there.
pub fn may_be_envoys(name: &str) -> bool {
    matches!(name.as_bytes(), [b'x' | b'X', _, b'e' | b'E', b'n' | b'N', ..])
}

/// The number of a rule in its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(NonZeroU16);

/// More rules than [`Policy::RULES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRules;

/// What was decided, and why. Small, because every open connection has room for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Decision {
    /// Whether it passes.
    pub verdict: Verdict,
    /// The rule that decided; `None` for the default.
    pub rule: Option<RuleId>,
    /// The path was ambiguous and a deny with paths matched for that reason.
    pub ambiguous_path: bool,
    /// The first audit rules that matched; which they all are is told while it is decided.
    pub audited: [Option<RuleId>; 4],
}

impl Policy {
    /// More is an error of the configuration. Rules that name exact identities cost nothing by their number, others some
    /// 10 ns each.
    pub const RULES_MAX: usize = 10_000;

    /// Rules in the order of the files, and what holds when none matches.
    ///
    /// # Errors
    /// When there are more than [`Self::RULES_MAX`].
    pub fn new(rules: Vec<Rule>, default: Verdict) -> Result<Self, TooManyRules> {
        if rules.len() > Self::RULES_MAX {
            return Err(TooManyRules);
        }
        let index = Index::new(&rules);
        Ok(Self { rules, default, index })
    }

    /// Decides about a request, and tells `audited` each audit rule that matched. On a listener without rules it costs a
    /// look at the listener's name. Never allocates.
    pub fn decide<F: Fields>(&self, call: &Call<'_, F>, mut audited: impl FnMut(RuleId)) -> Decision {
        let Some(set) = self.set(call.caller.listener) else { return self.by_default() };
        let path = if set.has_paths() { Path::of(call.path) } else { Path::unread() };
        let peer = call.caller.peer;
        let mut decision = self.by_default();
        let mut free = decision.audited.iter_mut();
        set.audit.each(peer, |id, from_is_met| {
            if self.matches(id, from_is_met, call, path, Reading::Wide) {
                audited(id);
                if let Some(free) = free.next() {
                    *free = Some(id);
                }
            }
        });
        let matches = |reading| move |id, from_is_met| self.matches(id, from_is_met, call, path, reading);
        if let Some(id) = set.deny.first(peer, matches(Reading::Wide)) {
            decision.verdict = Verdict::Deny;
            decision.rule = Some(id);
            decision.ambiguous_path = path.is_ambiguous() && self.index.has_paths(id);
        } else if let Some(id) = set.allow.first(peer, matches(Reading::Narrow)) {
            decision.verdict = Verdict::Allow;
            decision.rule = Some(id);
        }
        decision
    }

    /// Decides about a connection, as far as that is certain for everything that may come on it; `None` where it depends
    /// on the request. Audit rules are not asked.
    pub fn decide_connection(&self, caller: &Caller<'_>) -> Option<Decision> {
        let Some(set) = self.set(caller.listener) else { return Some(self.by_default()) };
        let meets = |id, from_is_met| self.meets(id, from_is_met, caller);
        let surely = |id, from_is_met| !self.index.asks_request(id) && self.meets(id, from_is_met, caller);
        let by = |verdict, id| Decision { verdict, rule: Some(id), ..Decision::default() };
        if let Some(id) = set.deny.first(caller.peer, surely) {
            return Some(by(Verdict::Deny, id));
        }
        let may_be_allowed = self.default == Verdict::Allow || set.allow.first(caller.peer, meets).is_some();
        if !may_be_allowed {
            return Some(self.by_default());
        }
        if set.deny.first(caller.peer, meets).is_some() {
            return None;
        }
        match set.allow.first(caller.peer, surely) {
            Some(id) => Some(by(Verdict::Allow, id)),
            None => (self.default == Verdict::Allow).then(|| self.by_default()),
        }
    }

    /// A rule of this policy.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.index())
    }

    /// All rules, in the order of the files.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What holds when no rule matches.
    pub fn default_verdict(&self) -> Verdict {
        self.default
    }

    fn by_default(&self) -> Decision {
        Decision { verdict: self.default, ..Decision::default() }
    }

    fn set(&self, listener: &str) -> Option<&Set> {
        if self.rules.is_empty() { None } else { self.index.of(listener) }
    }

    /// Whether a request is meant by a rule of its listener.
    fn matches<F: Fields>(
        &self,
        id: RuleId,
        from_is_met: bool,
        call: &Call<'_, F>,
        path: Path<'_>,
        reading: Reading,
    ) -> bool {
        if !self.meets(id, from_is_met, &call.caller) {
            return false;
        }
        let Some(rule) = self.rule(id).filter(|_| self.index.asks_request(id)) else { return true };
        (rule.methods.is_empty() || rule.methods.iter().any(|m| reading.method(m.as_bytes(), call.method)))
            && self.index.paths(id).is_none_or(|paths| paths.iter().any(|test| path.is_meant(test, reading)))
            && rule.headers.iter().all(|(name, test)| reading.field(call.fields, name, test))
    }

    /// Whether a caller is meant by a rule of its listener, as far as it does not ask for the request. `from_is_met`: the
    /// peer was what led to this rule.
    fn meets(&self, id: RuleId, from_is_met: bool, caller: &Caller<'_>) -> bool {
        let Some(rule) = self.rule(id) else { return false };
        let from = from_is_met
            || rule.from.is_empty()
            || caller.peer.is_some_and(|peer| rule.from.iter().any(|from| from.matches(peer)));
        from && (rule.ports.is_empty() || rule.ports.contains(&caller.port))
            && (rule.sources.is_empty() || {
                let source = caller.source.to_canonical();
                rule.sources.iter().any(|range| range.contains(&source))
            })
    }
}

impl RuleId {
    /// By its place in the policy; `None` beyond [`Policy::RULES_MAX`].
    fn at(index: usize) -> Option<Self> {
        u16::try_from(index + 1).ok().and_then(NonZeroU16::new).map(Self)
    }

    fn index(self) -> usize {
        usize::from(self.0.get() - 1)
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        // The index follows from these.
        self.rules == other.rules && self.default == other.default
    }
}

impl Eq for Policy {}

impl Action {
    /// The word in log, metrics and configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

#[cfg(test)]
#[path = "authorize_test.rs"]
mod tests;
