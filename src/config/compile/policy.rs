//! How identity, TLS and authorization fit together, and what becomes of them. Called by `compile`. Refuses what would
//! silently not be used: a key beside a value that it does not go with is an error, since who wrote it relies on it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::compiled::{Extra, Identity, IdentitySource, RuleMarks};
use super::super::decode::{LISTENER_TLS_WORDS, SERVICE_TLS_WORDS, SOURCE_WORDS};
use super::super::defaults;
use super::super::effective_choice::labels;
use super::super::nearest::did_you_mean;
use super::super::raw::{
    At, Has, ListenerTlsWord, Raw, RawAuthorization, RawIdentity, RawListener, RawWorkload, ServiceTlsWord,
    SourceWord,
};
use super::super::report::{Place, Problem, Problems};
use super::super::values::{self, quoted};
use super::{From, numbered_name, value_or};
use crate::authorize::Rule;
use crate::identity::TrustDomain;

/// All checks of this file.
pub(super) fn check(raw: &Raw, problems: &mut Problems) {
    check_identity(&raw.identity, problems);
    check_listeners(raw, problems);
    check_services(raw, problems);
    check_rules(raw, problems);
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word)
}

// --- identity ---

fn check_identity(raw: &RawIdentity, problems: &mut Problems) {
    let Some(place) = raw.place else { return };
    let Some(source) = raw.source else {
        if !raw.is_wrong {
            problems.error(|| {
                Problem::at(place, "[identity] needs `source`").help(
                    "add `source = \"embedded\"` for an authority of its own, or \"files\" or \"workload-api\"",
                )
            });
        }
        return;
    };
    use SourceWord::{Embedded, Files, WorkloadApi};
    let place_of = |place: Option<Place>, key, goes_with: &'static [SourceWord], needed: bool| {
        (key, place, goes_with, needed)
    };
    for (key, at, goes_with, needed) in [
        place_of(raw.trust_domain.as_ref().map(|at| at.place), "trust_domain", &[Embedded], false),
        place_of(
            raw.id.as_ref().map(|at| at.place),
            "id",
            &[Embedded, WorkloadApi],
            source.value == Embedded,
        ),
        place_of(raw.folder.as_ref().map(|at| at.place), "folder", &[Embedded], false),
        place_of(raw.leaf_ttl.as_ref().map(|at| at.place), "leaf_ttl", &[Embedded], false),
        place_of(raw.certificate.as_ref().map(|at| at.place), "certificate", &[Files], true),
        place_of(raw.key.as_ref().map(|at| at.place), "key", &[Files], true),
        place_of(raw.bundle.as_ref().map(|at| at.place), "bundle", &[Files], true),
        place_of(raw.socket.as_ref().map(|at| at.place), "socket", &[WorkloadApi], false),
    ] {
        let goes = goes_with.contains(&source.value);
        let said = word(&SOURCE_WORDS, &source.value);
        match at {
            Some(at) if !goes => problems.error(|| {
                let wanted = word(&SOURCE_WORDS, &goes_with[0]);
                Problem::at(at, format!("identity.{key} does not go with source = \"{said}\""))
                    .label("not used")
                    .other(source.place, "the source")
                    .help(format!("take it out, or write source = \"{wanted}\""))
            }),
            None if goes && needed && !raw.is_wrong => problems.error(|| {
                let example = match key {
                    "id" => "spiffe://mesh.local/ns/default/sa/shop".into(),
                    _ => format!("/etc/ringmesh/{key}.pem"),
                };
                Problem::at(place, format!("[identity] with source = \"{said}\" needs `{key}`"))
                    .help(format!("add `{key} = \"{example}\"`"))
            }),
            _ => {}
        }
    }
    check_domains(raw, source.value, problems);
}

fn check_domains(raw: &RawIdentity, source: SourceWord, problems: &mut Problems) {
    let own: Option<&str> = match source {
        SourceWord::Embedded => {
            Some(raw.trust_domain.as_ref().map_or(defaults::TRUST_DOMAIN, |at| at.value.as_str()))
        }
        SourceWord::WorkloadApi => raw.id.as_ref().map(|at| at.value.trust_domain()),
        SourceWord::Files => None,
    };
    if let (SourceWord::Embedded, Some(id), Some(own)) = (source, &raw.id, own)
        && id.value.trust_domain() != own
    {
        problems.error(|| {
            let problem =
                Problem::at(id.place, format!("`{}` is outside of the trust domain {own}", id.value))
                    .label("the id");
            let problem = match &raw.trust_domain {
                Some(domain) => problem.other(domain.place, "the trust domain"),
                None => problem,
            };
            problem.help(format!(
                "write \"spiffe://{own}{}\", or trust_domain = \"{}\"",
                id.value.path(),
                id.value.trust_domain()
            ))
        });
    }
    let mut first: HashMap<&TrustDomain, Place> = HashMap::new();
    for one in raw.federated.iter().flat_map(|at| &at.value) {
        if own == Some(one.trust_domain.as_str()) {
            problems.error(|| {
                Problem::at(one.place, format!("{} is our own trust domain", one.trust_domain))
                    .help("take it out: who belongs to it is trusted already")
            });
        }
        match first.get(&one.trust_domain) {
            Some(&other) => problems.error(|| {
                Problem::at(one.place, format!("{} is federated twice", one.trust_domain))
                    .label("again here")
                    .other(other, "first here")
                    .help("put all its roots into one bundle")
            }),
            None => drop(first.insert(&one.trust_domain, one.place)),
        }
    }
}

// --- TLS ---

/// Reports each of `keys` that stands in the file although `tls` is not what it goes with.
fn check_goes(has: &Has, keys: &[&str], wanted: &str, said: &str, problems: &mut Problems) {
    let tls = has.iter().find(|(key, _)| *key == "tls").map(|&(_, place)| place);
    for &(key, place) in has.iter().filter(|(key, _)| keys.contains(key)) {
        problems.error(|| {
            let problem = Problem::at(place, format!("`{key}` goes with tls = \"{wanted}\" only"));
            let problem = match tls {
                Some(tls) => problem.label("not used").other(tls, "what `tls` is"),
                None => problem.label("not used"),
            };
            problem.help(format!("write tls = \"{wanted}\", which is \"{said}\" here, or take `{key}` out"))
        });
    }
}

fn needs_identity(raw: &Raw, what: &str, place: Place, problems: &mut Problems) {
    if raw.identity.place.is_none() {
        problems.error(|| {
            Problem::at(place, format!("{what} needs an identity, and there is no [identity]")).help(
                "add [identity] with source = \"embedded\" and id = \"spiffe://mesh.local/ns/default/sa/shop\", or \
                 take `tls` out",
            )
        });
    }
}

fn check_listeners(raw: &Raw, problems: &mut Problems) {
    for listener in &raw.listeners {
        let named = listener.has.iter().any(|(key, _)| *key == "tls");
        // A word that is wrong is reported already.
        if named && listener.tls.is_none() {
            continue;
        }
        let tls = value_or(listener.tls, ListenerTlsWord::Off);
        let said = word(&LISTENER_TLS_WORDS, &tls);
        if tls == ListenerTlsWord::Terminate {
            for key in ["certificate", "key"] {
                if !listener.has.iter().any(|(has, _)| *has == key) {
                    problems.error(|| {
                        Problem::at(
                            listener.place,
                            format!("a listener with tls = \"terminate\" needs `{key}`"),
                        )
                        .help(format!("add `{key} = \"/etc/ringmesh/shop.example.{key}.pem\"`"))
                    });
                }
            }
        } else {
            let keys = ["certificate", "key", "tls_version_min"];
            check_goes(&listener.has, &keys, "terminate", said, problems);
        }
        if let (ListenerTlsWord::Permissive | ListenerTlsWord::Strict, Some(at)) = (tls, listener.tls) {
            needs_identity(raw, &format!("a listener with tls = \"{said}\""), at.place, problems);
        }
    }
}

fn check_services(raw: &Raw, problems: &mut Problems) {
    for service in &raw.services {
        let of = &service.tls;
        if of.has.is_empty() || (of.tls.is_none() && of.has.iter().any(|(key, _)| *key == "tls")) {
            continue;
        }
        let tls = value_or(of.tls, ServiceTlsWord::Off);
        let said = word(&SERVICE_TLS_WORDS, &tls);
        if tls != ServiceTlsWord::Mesh {
            check_goes(&of.has, &["identities"], "mesh", said, problems);
        }
        if tls != ServiceTlsWord::Edge {
            check_goes(&of.has, &["server_name", "ca"], "edge", said, problems);
        } else if !of.has.iter().any(|(key, _)| *key == "server_name") {
            problems.error(|| {
                Problem::at(service.place, "a service with tls = \"edge\" needs `server_name`")
                    .help("add the name that its certificate has: `server_name = \"api.example\"`")
            });
        }
        if let (ServiceTlsWord::Mesh, Some(at)) = (tls, of.tls) {
            needs_identity(raw, "a service with tls = \"mesh\"", at.place, problems);
        }
    }
}

// --- authorization ---

fn check_rules(raw: &Raw, problems: &mut Problems) {
    let names = listener_names(raw);
    let listeners = raw.authorizations.iter().filter_map(|rule| rule.listeners.as_ref());
    check_listener_names(&names, listeners.flat_map(|at| &at.value), problems);
}

/// What the listeners are called, in their order.
pub(super) fn listener_names(raw: &Raw) -> Vec<Arc<str>> {
    let name = |(index, listener): (usize, &RawListener)| {
        listener.name.as_ref().map_or_else(|| numbered_name("listener", index), |at| Arc::clone(&at.value))
    };
    raw.listeners.iter().enumerate().map(name).collect()
}

/// Reports each name that no listener has.
pub(super) fn check_listener_names<'r>(
    names: &[Arc<str>],
    meant: impl Iterator<Item = &'r At<Arc<str>>>,
    problems: &mut Problems,
) {
    for name in meant.filter(|name| !names.contains(&name.value)) {
        problems.error(|| {
            let help = did_you_mean(&name.value, names.iter().map(|name| &**name)).unwrap_or_else(|| {
                match names.len() {
                    0 => "add one: [[listener]]".into(),
                    _ => format!("there are: {}", names.join(", ")),
                }
            });
            let shown = super::super::reader::shortened(&name.value);
            Problem::at(name.place, format!("there is no listener `{shown}`"))
                .label("not declared")
                .help(help)
        });
    }
}

// --- assembly ---

/// `None` without `[identity]`.
pub(super) fn identity(raw: RawIdentity, from: &mut From<'_>) -> Option<Identity> {
    let word = from.value("identity.source", Some(raw.source?), || SourceWord::Embedded);
    let path = |from: &mut From<'_>, name, at: Option<At<PathBuf>>| from.value(name, at, PathBuf::new);
    let source = match word {
        SourceWord::Embedded => {
            let id = raw.id?;
            let default = TrustDomain::parse(defaults::TRUST_DOMAIN).ok()?;
            IdentitySource::Embedded {
                folder: from.value("identity.folder", raw.folder, || defaults::FOLDER.into()),
                trust_domain: from.value("identity.trust_domain", raw.trust_domain, || default),
                leaf_ttl: from.key(&defaults::LEAF_TTL, raw.leaf_ttl),
                id: {
                    let mark = from.mark(id.place, id.variable);
                    from.origins.marks.insert("identity.id", mark);
                    id.value
                },
            }
        }
        SourceWord::Files => IdentitySource::Files {
            certificate: path(from, "identity.certificate", raw.certificate),
            key: path(from, "identity.key", raw.key),
            bundle: path(from, "identity.bundle", raw.bundle),
        },
        SourceWord::WorkloadApi => IdentitySource::WorkloadApi {
            socket: from.value("identity.socket", raw.socket.map(some), || None),
            id: from.value("identity.id", raw.id.map(some), || None),
        },
    };
    let federated = from.value("identity.federated", raw.federated, Vec::new);
    let federated = federated.into_iter().map(|one| (one.trust_domain, one.bundle)).collect();
    Some(Identity { source, federated })
}

fn some<T>(at: At<T>) -> At<Option<T>> {
    At { value: Some(at.value), place: at.place, variable: at.variable }
}

/// A rule and where its conditions came from.
pub(super) fn rule(raw: RawAuthorization, index: usize, from: &From<'_>) -> Option<(Rule, RuleMarks)> {
    let action = raw.action?;
    let marks = [
        from.mark(action.place, action.variable),
        from.mark_of(raw.listeners.as_ref()),
        from.mark_of(raw.from.as_ref()),
        from.mark_of(raw.sources.as_ref()),
        from.mark_of(raw.ports.as_ref()),
        from.mark_of(raw.methods.as_ref()),
        from.mark_of(raw.paths.as_ref()),
        from.mark_of(raw.headers.as_ref()),
    ];
    let listeners = raw.listeners.map(|at| at.value).unwrap_or_default();
    let rule = Rule {
        name: raw.name.map_or_else(|| numbered_name("authorization", index), |at| at.value),
        action: action.value,
        listeners: listeners.into_iter().map(|at| at.value).collect(),
        from: value_or(raw.from, Vec::new()),
        sources: value_or(raw.sources, Vec::new()),
        ports: value_or(raw.ports, Vec::new()),
        methods: value_or(raw.methods, Vec::new()),
        paths: value_or(raw.paths, Vec::new()),
        headers: value_or(raw.headers, Vec::new()),
    };
    Some((rule, marks))
}

/// A workload's name, and how it would be written: what it means has gone into the conditions of routes.
pub(super) fn workload(raw: RawWorkload, index: usize, from: &From<'_>) -> (Arc<str>, Vec<Extra>) {
    fn texts<T: ToString>(values: &[T]) -> String {
        let texts: Vec<String> = values.iter().map(|value| quoted(&value.to_string())).collect();
        format!("[{}]", texts.join(", "))
    }
    let name = raw.name.map_or_else(|| numbered_name("workload", index), |at| at.value);
    let shown = [
        ("from", raw.from.as_ref().map(|at| texts(&at.value)), from.mark_of(raw.from.as_ref())),
        ("sources", raw.sources.as_ref().map(|at| texts(&at.value)), from.mark_of(raw.sources.as_ref())),
        ("labels", raw.labels.as_ref().map(|at| labels(&at.value)), from.mark_of(raw.labels.as_ref())),
    ];
    let extras = shown.into_iter().filter_map(|(key, value, mark)| Some(Extra { key, value: value?, mark }));
    (name, extras.collect())
}

/// What is legal but surely unintended. Called by `warn`.
pub(in crate::config) fn warn(raw: &Raw, problems: &mut Problems) {
    use crate::authorize::{Action, Verdict};
    let allows = |rule: &&RawAuthorization| rule.action.is_some_and(|at| at.value == Action::Allow);
    let allow = raw.authorizations.iter().find(allows).and_then(|rule| rule.action);
    let default = raw.authorization_default;
    let denies = default.is_some_and(|at| at.value == Verdict::Deny);
    match (denies, allow, default) {
        (true, None, Some(default)) => problems.warn(|| {
            Problem::at(default.place, "no rule allows anything: every request is answered with 403")
                .help("add one: [[authorization]] with action = \"allow\"")
        }),
        (false, Some(allow), _) => problems.warn(|| {
            Problem::at(
                allow.place,
                "what no rule denies is allowed anyway, so that this rule changes nothing",
            )
            .help("write authorization_default = \"deny\" at the top of the file, or take the rule out")
        }),
        _ => {}
    }
    for service in &raw.services {
        let Some(http2) = &service.http2 else { continue };
        of_windows(http2.stream_window, http2.connection_window, problems);
    }
    of_windows(raw.http2.stream_window, raw.http2.connection_window, problems);
}

fn of_windows(stream: Option<At<u64>>, connection: Option<At<u64>>, problems: &mut Problems) {
    let whole = connection.map_or(defaults::CONNECTION_WINDOW.default, |at| at.value);
    let one = stream.map_or(defaults::STREAM_WINDOW.default, |at| at.value);
    if let Some(place) = stream.or(connection).map(|at| at.place).filter(|_| one > whole) {
        problems.warn(|| {
            let (one, whole) = (values::size_text(one), values::size_text(whole));
            Problem::at(
                place,
                format!("a stream_window of {one} is never used up: the connection has {whole}"),
            )
            .help("let connection_window be no less than stream_window")
        });
    }
}
