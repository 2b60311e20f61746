//! What becomes of a request that a route has taken.

use std::sync::Arc;

use super::answer::{Redirect, Respond};
use super::cors::Cors;
use super::split::{Chosen, Split, Sticky};
use super::{Priority, Route, Upgrades};
use crate::authorize::{Call, Fields};

/// What a route does with its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// They go to this service: an index into `Snapshot::services`.
    Service(u32),
    /// They go to one of several.
    Split(Arc<Split>),
    /// Callers are sent elsewhere.
    Redirect(Arc<Redirect>),
    /// They are answered here.
    Respond(Arc<Respond>),
}

impl Action {
    /// The services that requests may go to.
    pub fn services(&self) -> impl Iterator<Item = u32> {
        let (one, several) = match self {
            Self::Service(service) => (Some(*service), &[][..]),
            Self::Split(split) => (None, split.shares()),
            Self::Redirect(_) | Self::Respond(_) => (None, &[][..]),
        };
        one.into_iter().chain(several.iter().map(|share| share.service))
    }
}

impl Route {
    /// A route to one service, with the defaults of everything else.
    pub fn to(name: impl Into<Arc<str>>, service: u32) -> Self {
        Self {
            name: name.into(),
            action: Action::Service(service),
            subset: 0,
            changes: None,
            fault: None,
            mirror: None,
            timeout: None,
            upgrades: Upgrades::default(),
            tunnel_idle: std::time::Duration::from_secs(3600),
            retry: None,
            caller_may: None,
            deadline_field: false,
            priority: Priority::Default,
            quotas: None,
            asks: None,
        }
    }

    /// Where this request goes; `None` where the route answers it. `random` gives evenly distributed numbers; it is asked only
    /// where it is needed.
    pub fn choose<F: Fields>(&self, call: &Call<'_, F>, random: impl FnOnce() -> u64) -> Option<Chosen> {
        match &self.action {
            Action::Service(service) => Some(Chosen { service: *service, subset: self.subset, cookie: None }),
            Action::Split(split) => Some(split.choose(call, random)),
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// Whether requests with these fields go on as they came, and at once, and responses too.
    pub fn is_plain_to(&self, fields: &impl Fields) -> bool {
        self.is_unchanged() && self.fault.as_ref().is_none_or(|fault| fault.is_asked_for()) && {
            // What callers ask for they say in such fields.
            let may_ask = self.fault.is_some() || self.caller_may.is_some();
            !(may_ask && fields.may_have_envoys())
        }
    }

    /// Whether pages of other origins are told what they may read.
    pub fn has_cors(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| changes.cors.is_some())
    }

    /// Whether that is a preflight, which is answered here: before rules, limits and faults, which are for what comes after it.
    pub fn answers_preflight<F: Fields>(&self, call: &Call<'_, F>) -> bool {
        self.has_cors() && Cors::is_preflight(call)
    }

    /// Whether requests go on as they came, and responses too.
    pub fn is_unchanged(&self) -> bool {
        let is_only_sent_on = match &self.action {
            Action::Service(_) => true,
            // Responses may get a cookie.
            Action::Split(split) => !matches!(split.sticky(), Some(Sticky::SetCookie(_))),
            Action::Redirect(_) | Action::Respond(_) => false,
        };
        is_only_sent_on && self.changes.is_none()
    }
}
