//! What a `[[route]]` does with its requests: finds the services that it names, and puts its action together.

use std::sync::Arc;

use super::super::compiled::{CompiledService, Extra, Mark};
use super::super::raw::{At, Raw, RawAction, RawMirror, RawPath, RawRoute, RawService};
use super::super::values::quoted;
use super::{From, caller_may, shown};
use crate::route::Action;
use crate::route::answer::Redirect;
use crate::route::changes::{Changes, FieldChanges, Rewrite};
use crate::route::mirror::Mirror;
use crate::route::path::NewPath;
use crate::route::split::{Share, Split, Sticky};

/// The names of services that a route has: those that requests go to, then those that get copies.
pub(super) fn services_of(route: &RawRoute) -> impl Iterator<Item = &At<Box<str>>> {
    let shares = route.action.split.as_ref().map_or(&[][..], |split| &split.value);
    let mirrors = route.action.mirror.as_ref().map_or(&[][..], |mirror| &mirror.value);
    let to = route.service.iter().chain(shares.iter().map(|share| &share.service));
    to.chain(mirrors.iter().map(|mirror| &mirror.service))
}

/// The services that a route's requests go to, without those that get copies.
pub(in crate::config) fn serving<'r>(raw: &'r Raw, route: &RawRoute, found: &[u32]) -> Vec<&'r RawService> {
    let mirrors = route.action.mirror.as_ref().map_or(0, |mirror| mirror.value.len());
    let serving = found.iter().take(found.len().saturating_sub(mirrors));
    serving.filter_map(|service| raw.services.get(*service as usize)).collect()
}

/// The services that get copies; `None` where there are none. Those of [`services_of`] were found in its order.
pub(super) fn mirror(raw: &RawRoute, found: &[u32]) -> Option<Arc<[Mirror]>> {
    let mirrors = &raw.action.mirror.as_ref()?.value;
    let found = found.iter().skip(found.len().saturating_sub(mirrors.len()));
    let with = |(raw, service): (&RawMirror, &u32)| Mirror { service: *service, percent: raw.percent };
    Some(mirrors.iter().zip(found).map(with).collect()).filter(|mirrors: &Arc<[Mirror]>| !mirrors.is_empty())
}

/// The action of a route whose services are these.
pub(super) fn action(raw: &RawRoute, found: &[u32], services: &[CompiledService]) -> Action {
    if let Some(At { value: redirect, .. }) = &raw.action.redirect {
        return Action::Redirect(Arc::new(Redirect {
            status: redirect.status,
            scheme: redirect.scheme,
            host: redirect.host.clone(),
            port: redirect.port,
            path: redirect.path.as_ref().map(|path| new_path(raw, path)),
            keep_query: redirect.keep_query,
        }));
    }
    if let Some(respond) = &raw.action.respond {
        return Action::Respond(Arc::new(respond.value.clone()));
    }
    let Some(split) = &raw.action.split else {
        return Action::Service(found.first().copied().unwrap_or(0));
    };
    let share = |(share, service): (&super::super::raw::RawShare, &u32)| {
        let to = services.get(*service as usize).map(|to| &*to.service);
        let whole = Share::new(*service, to.map_or("", |to| &to.name), share.weight);
        match (&share.subset, to) {
            (Some(subset), Some(to)) => {
                whole.within(&subset.value, to.subset_named(&subset.value).unwrap_or(0))
            }
            (Some(_), None) | (None, _) => whole,
        }
    };
    let shares = split.value.iter().zip(found).map(share).collect();
    let sticky = raw.action.sticky.as_ref().map(|sticky| sticky.value.clone());
    match Split::new(shares, sticky) {
        Some(split) => Action::Split(Arc::new(split)),
        // Not of what `decode` lets pass: it wants a weight.
        None => Action::Service(found.first().copied().unwrap_or(0)),
    }
}

/// What a route changes; `None` where that is nothing.
pub(super) fn changes(raw: &RawRoute) -> Option<Box<Changes>> {
    let RawAction { rewrite, request_headers, response_headers, cors, .. } = &*raw.action;
    let fields =
        |at: &Option<At<FieldChanges>>| at.as_ref().map_or_else(FieldChanges::default, |at| at.value.clone());
    let changes = Changes {
        request: fields(request_headers),
        response: fields(response_headers),
        rewrite: rewrite.as_ref().map(|At { value, .. }| Rewrite {
            path: value.path.as_ref().map(|path| new_path(raw, path)),
            keep_query: value.keep_query,
            host: value.host.clone(),
        }),
        cors: cors.as_ref().map(|at| Box::new(at.value.clone())),
    };
    (changes != Changes::default()).then(|| Box::new(changes))
}

pub(super) fn new_path(route: &RawRoute, path: &RawPath) -> NewPath {
    match path {
        RawPath::Made(path) => path.clone(),
        RawPath::Form(form) => {
            let filled = route.path_template.as_ref().and_then(|from| form.value.of(&from.value).ok());
            // Always: `decode` lets no other pass.
            filled.map_or_else(|| NewPath::Whole("/".into()), NewPath::Filled)
        }
        RawPath::Prefix(to) => {
            let grpc = route.matching.as_ref().and_then(|matching| matching.grpc.as_ref());
            let from = match (&route.path_prefix, grpc.map(|at| (&at.value.service, &at.value.method))) {
                (Some(prefix), _) => prefix.value.to_string(),
                // All methods of a service are what is below it.
                (None, Some((Some(service), _))) => format!("/{service}"),
                (None, _) => "/".into(),
            };
            NewPath::Prefix { from: from.trim_end_matches('/').into(), to: to.clone() }
        }
    }
}

/// What is shown of it besides what every route has.
pub(super) fn extras(raw: &RawRoute, from: &From<'_>) -> Vec<Extra> {
    let mut extras = Vec::new();
    let mut add = |key, value: String, mark: Mark| extras.push(Extra { key, value, mark });
    if let Some(subset) = &raw.subset {
        add("subset", quoted(&subset.value), from.mark_of(Some(subset)));
    }
    if let Some(split) = &raw.action.split {
        let shares: Vec<String> = split
            .value
            .iter()
            .map(|share| {
                let subset = share.subset.as_ref();
                let subset =
                    subset.map_or_else(String::new, |at| format!(", subset = {}", quoted(&at.value)));
                format!("{{ service = {}{subset}, weight = {} }}", quoted(&share.service.value), share.weight)
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
            Sticky::SetCookie(set) => shown::cookie(set),
        };
        add("sticky", format!("{{ {text} }}"), from.mark_of(Some(sticky)));
    }
    if let Some(mirror) = &raw.action.mirror {
        let entry = |RawMirror { service, percent }: &RawMirror| {
            format!("{{ service = {}, percent = {percent} }}", quoted(&service.value))
        };
        let entries: Vec<String> = mirror.value.iter().map(entry).collect();
        add("mirror", format!("[{}]", entries.join(", ")), from.mark_of(Some(mirror)));
    }
    if let Some(at) = &raw.action.fault {
        add("fault", shown::fault(&at.value), from.mark_of(Some(at)));
    }
    if let Some(at) = &raw.deadline_header {
        add("deadline_header", at.value.to_string(), from.mark_of(Some(at)));
    }
    if let Some(at) = &raw.caller_may {
        add("caller_may", caller_may::text(&at.value), from.mark_of(Some(at)));
    }
    let RawAction { redirect, respond, rewrite, request_headers, response_headers, cors, .. } = &*raw.action;
    if let Some(at) = redirect {
        add("redirect", shown::redirect(&at.value), from.mark_of(Some(at)));
    }
    if let Some(at) = respond {
        add("respond", shown::respond(&at.value), from.mark_of(Some(at)));
    }
    if let Some(at) = rewrite {
        add("rewrite", shown::rewrite(&at.value), from.mark_of(Some(at)));
    }
    for (key, at) in [("request_headers", request_headers), ("response_headers", response_headers)] {
        if let Some(at) = at {
            add(key, shown::fields(&at.value), from.mark_of(Some(at)));
        }
    }
    if let Some(at) = cors {
        add("cors", shown::cors(&at.value), from.mark_of(Some(at)));
    }
    extras
}
