//! Which rules concern a request at all: by listener, then by action, then by the peer's exact identity.
//!
//! A mesh has many rules of the form "this identity may do that": those are found by one look-up, however many there
//! are. What names no exact identity is tried one by one, in the order of the files. Refuses to decide.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::matching::{PathTest, decoded};
use super::{Action, Rule, RuleId, TextMatch};
use crate::identity::{IdMatch, SpiffeId};

/// Rules by what leads to them.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Listeners that rules name, by name, each with the rules for all listeners among its own.
    named: Vec<(Arc<str>, Set)>,
    /// What holds on all others.
    others: Set,
    /// By rule.
    asked: Vec<Asked>,
}

/// The rules of one listener.
#[derive(Debug, Clone, Default)]
pub(super) struct Set {
    pub(super) deny: Group,
    pub(super) allow: Group,
    pub(super) audit: Group,
    has_paths: bool,
}

/// Rules of one listener and action; each list in the order of the files.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    /// Rules that name exact identities alone, under each of them. Who is asked for has proved its identity, so nobody
    /// chooses keys that collide.
    by_identity: HashMap<SpiffeId, Vec<RuleId>, RandomState>,
    rest: Vec<RuleId>,
}

/// What a rule asks of a request.
#[derive(Debug, Clone)]
struct Asked {
    /// Whether anything beside the caller.
    request: bool,
    /// Decoded, so that they compare with decoded paths; `None` for every path.
    paths: Option<Box<[PathTest]>>,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut named: BTreeMap<&Arc<str>, Set> =
            rules.iter().flat_map(|rule| &rule.listeners).map(|name| (name, Set::default())).collect();
        let mut index = Self::default();
        for (n, rule) in rules.iter().enumerate() {
            // There are at most `RULES_MAX`.
            let Some(id) = RuleId::at(n) else { break };
            let asked = Asked::new(rule);
            if rule.listeners.is_empty() {
                index.others.add(id, rule, &asked);
                named.values_mut().for_each(|set| set.add(id, rule, &asked));
            } else {
                let mut distinct: Vec<_> = rule.listeners.iter().collect();
                distinct.sort_unstable();
                distinct.dedup();
                for name in distinct {
                    if let Some(set) = named.get_mut(name) {
                        set.add(id, rule, &asked);
                    }
                }
            }
            index.asked.push(asked);
        }
        index.named = named.into_iter().map(|(name, set)| (Arc::clone(name), set)).collect();
        index
    }

    /// The rules for a listener; `None` if there are none.
    pub(super) fn of(&self, listener: &str) -> Option<&Set> {
        let set = match self.named.binary_search_by(|(name, _)| (**name).cmp(listener)) {
            Ok(at) => &self.named[at].1,
            Err(_) => &self.others,
        };
        (!set.is_empty()).then_some(set)
    }

    /// Whether a rule asks for anything beside the caller.
    pub(super) fn asks_request(&self, id: RuleId) -> bool {
        self.asked.get(id.index()).is_none_or(|asked| asked.request)
    }

    /// The paths that a rule asks for; `None` for every path.
    pub(super) fn paths(&self, id: RuleId) -> Option<&[PathTest]> {
        self.asked.get(id.index())?.paths.as_deref()
    }

    /// Whether a rule asks for paths.
    pub(super) fn has_paths(&self, id: RuleId) -> bool {
        self.paths(id).is_some()
    }
}

impl Set {
    /// Whether any of these rules asks for paths.
    pub(super) fn has_paths(&self) -> bool {
        self.has_paths
    }

    fn is_empty(&self) -> bool {
        [&self.deny, &self.allow, &self.audit].iter().all(|g| g.rest.is_empty() && g.by_identity.is_empty())
    }

    fn add(&mut self, id: RuleId, rule: &Rule, asked: &Asked) {
        self.has_paths |= asked.paths.is_some();
        match rule.action {
            Action::Allow => self.allow.add(id, rule),
            Action::Deny => self.deny.add(id, rule),
            Action::Audit => self.audit.add(id, rule),
        }
    }
}

impl Group {
    /// The first rule that `matches`; asked for with whether the peer's identity is met already.
    pub(super) fn first(
        &self,
        peer: Option<&SpiffeId>,
        mut matches: impl FnMut(RuleId, bool) -> bool,
    ) -> Option<RuleId> {
        if self.rest.is_empty() && self.by_identity.is_empty() {
            return None;
        }
        let own = self.own(peer).iter().copied().find(|id| matches(*id, true));
        let mut before = self.rest.iter().copied().take_while(|id| own.is_none_or(|own| *id < own));
        before.find(|id| matches(*id, false)).or(own)
    }

    /// Every rule that may match.
    pub(super) fn each(&self, peer: Option<&SpiffeId>, mut with: impl FnMut(RuleId, bool)) {
        self.own(peer).iter().for_each(|id| with(*id, true));
        self.rest.iter().for_each(|id| with(*id, false));
    }

    fn own(&self, peer: Option<&SpiffeId>) -> &[RuleId] {
        match peer {
            Some(peer) if !self.by_identity.is_empty() => {
                self.by_identity.get(peer).map(Vec::as_slice).unwrap_or_default()
            }
            _ => &[],
        }
    }

    fn add(&mut self, id: RuleId, rule: &Rule) {
        let exact = |from: &IdMatch| matches!(from, IdMatch::Exact(_));
        if rule.from.is_empty() || !rule.from.iter().all(exact) {
            self.rest.push(id);
            return;
        }
        for from in &rule.from {
            if let IdMatch::Exact(peer) = from {
                let rules = self.by_identity.entry(peer.clone()).or_default();
                // The same identity twice in one rule.
                if rules.last() != Some(&id) {
                    rules.push(id);
                }
            }
        }
    }
}

impl Asked {
    fn new(rule: &Rule) -> Self {
        let every = rule.paths.is_empty() || rule.paths.contains(&TextMatch::Any);
        let paths = (!every).then(|| {
            let test = |path: &TextMatch| match path {
                TextMatch::Exact(text) => PathTest::Exact(decoded(text.as_bytes()).collect()),
                TextMatch::Prefix(text) => PathTest::Prefix(decoded(text.as_bytes()).collect()),
                TextMatch::Any => PathTest::Prefix(Box::default()),
            };
            rule.paths.iter().map(test).collect()
        });
        Self { request: !rule.methods.is_empty() || paths.is_some() || !rule.headers.is_empty(), paths }
    }
}
