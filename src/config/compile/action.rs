//! What a `[[route]]` does with its requests: finds the services that it names, and puts its action together.

use std::sync::Arc;

use super::super::compiled::{Extra, Mark};
use super::super::raw::{At, RawRoute};
use super::super::values::quoted;
use super::From;
use crate::route::Action;
use crate::route::split::{Share, Split, Sticky};

/// The names of services that a route has, in the order of the file.
pub(super) fn services_of(route: &RawRoute) -> impl Iterator<Item = &At<Box<str>>> {
    let shares = route.action.split.as_ref().map_or(&[][..], |split| &split.value);
    route.service.iter().chain(shares.iter().map(|share| &share.service))
}

/// The action of a route whose services are these.
pub(super) fn action(raw: &RawRoute, found: &[u32], services: &[Arc<str>]) -> Action {
    let Some(split) = &raw.action.split else {
        return Action::Service(found.first().copied().unwrap_or(0));
    };
    let share = |(share, service): (&super::super::raw::RawShare, &u32)| {
        let name = services.get(*service as usize).map_or("", |name| name);
        Share::new(*service, name, share.weight)
    };
    let shares = split.value.iter().zip(found).map(share).collect();
    let sticky = raw.action.sticky.as_ref().map(|sticky| sticky.value.clone());
    match Split::new(shares, sticky) {
        Some(split) => Action::Split(Arc::new(split)),
        // Not of what `decode` lets pass: it wants a weight.
        None => Action::Service(found.first().copied().unwrap_or(0)),
    }
}

/// What is shown of it besides what every route has.
pub(super) fn shown(raw: &RawRoute, from: &From<'_>) -> Vec<Extra> {
    let mut extras = Vec::new();
    let mut add = |key, value: String, mark: Mark| extras.push(Extra { key, value, mark });
    if let Some(split) = &raw.action.split {
        let shares: Vec<String> = split
            .value
            .iter()
            .map(|share| {
                format!("{{ service = {}, weight = {} }}", quoted(&share.service.value), share.weight)
            })
            .collect();
        add("split", format!("[{}]", shares.join(", ")), from.mark_of(Some(split)));
    }
    if let Some(sticky) = &raw.action.sticky {
        let text = match &sticky.value {
            Sticky::Header(name) => format!("header = {}", quoted(name)),
            Sticky::Cookie(name) => format!("cookie = {}", quoted(name)),
            Sticky::Source => "source = true".into(),
            Sticky::Identity => "identity = true".into(),
            Sticky::SetCookie(set) => format!("set_cookie = {}", quoted(&set.name)),
        };
        add("sticky", format!("{{ {text} }}"), from.mark_of(Some(sticky)));
    }
    if let Some(at) = &raw.deadline_header {
        add("deadline_header", at.value.to_string(), from.mark_of(Some(at)));
    }
    extras
}
