//! `config/reference.toml` and the code say the same: every key that the decoder knows is shown, every key shown is
//! known, its value is the default, and it is explained.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::schema::SECTIONS;
use super::{Loaded, Origin, Setting};

fn reference() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/reference.toml")).unwrap()
}

fn parse(text: &str) -> Loaded {
    super::parse("test.toml", text, &|_| None).unwrap()
}

#[test]
fn every_key_is_shown_and_every_key_shown_is_known() {
    let known: BTreeSet<String> = SECTIONS
        .iter()
        .flat_map(|section| section.keys.iter().map(|key| format!("{}.{key}", section.path)))
        .map(|key| key.trim_start_matches('.').to_owned())
        .collect();
    // Keys that do not go with what is shown stand behind `#:`.
    let text = reference().replace("federated = []\n", "").replace("\n#: ", "\n");
    let document = DeTable::parse(&text).unwrap();
    let mut shown = BTreeSet::new();
    collect(document.get_ref(), "", &mut shown);
    assert_eq!(shown, known);
}

fn collect(table: &DeTable<'_>, path: &str, shown: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = format!("{path}.{}", key.get_ref()).trim_start_matches('.').to_owned();
        match value.get_ref() {
            DeValue::Table(inner) => collect(inner, &path, shown),
            DeValue::Array(entries) => {
                for entry in entries {
                    if let DeValue::Table(inner) = entry.get_ref() {
                        collect(inner, &path, shown);
                    }
                }
            }
            _ => {}
        }
        // Names of fields are not keys of ours, nor are labels.
        let fields = [
            "authorization.headers.",
            "route.respond.headers.",
            ".set.",
            ".add.",
            "endpoints.labels.",
            "workload.labels.",
            "route.match.labels.",
            "subset.labels.",
            "tracing.headers.",
            "tracing.attributes.",
        ];
        // Nor what is asked of fields, parameters and cookies.
        let asked = ["route.match.headers.", "route.match.query.", "route.match.cookies."];
        if !fields.iter().any(|fields| path.contains(fields))
            && !asked.iter().any(|asked| path.starts_with(asked))
        {
            shown.insert(path);
        }
    }
}

#[test]
fn every_value_shown_is_the_default() {
    let bare = "[access_log]\n[tracing]\nendpoint = \"http://127.0.0.1:4317\"\n[identity]\nsource = \"embedded\"\nid = \"spiffe://mesh.local/ns/default/sa/shop\"\n[[listener]]\nname = \"inbound\"\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\n\
                endpoints = [\"127.0.0.1:9000\", \"unix:/run/app.sock\"]\n[[route]]\nname = \"app\"\nservice = \"app\"\n";
    let shown: BTreeMap<String, Setting> = settings(&parse(&reference()));
    let mut defaults = settings(&parse(bare));
    // Weight and zone of an endpoint have no keys of their own among the settings; the zone is an example.
    defaults.get_mut("service.app.endpoints").unwrap().value =
        "[\"127.0.0.1:9000\", { address = \"unix:/run/app.sock\", weight = 1, zone = \"a\", labels = { version = \"v2\" } }]".into();
    for (key, default) in &defaults {
        assert_eq!(shown[key].value, default.value, "{key}");
        assert!(matches!(shown[key].origin, Origin::File { .. }), "{key} is not set in the reference");
    }
    // Entries that show the keys which the first of their kind cannot have.
    let more = [
        "route.app-health.",
        "route.app-orders.",
        "route.app-wishes.",
        "route.app-by-regex.",
        "route.app-grpc.",
        "route.app-split.",
        "route.app-split-by-cookie.",
        "route.app-split-by-source.",
        "route.app-split-by-identity.",
        "route.app-split-by-own-cookie.",
        "route.app-changed.",
        "route.app-changed-by-regex.",
        "route.app-changed-by-template.",
        "route.app-changed-whole.",
        "route.app-faults",
        "route.app-redirect.",
        "route.app-redirect-by-regex.",
        "route.app-redirect-by-template.",
        "route.app-redirect-whole.",
        "route.app-respond.",
        "route.app-in-mesh.",
        "route.app-learnt.",
        "route.app-outside.",
        "route.app-by-key.",
        "route.app-by-version.",
        "service.by-key.",
        "service.by-version.",
        // Shown where something is said of it; that it is the default has a test of its own.
        "service.app.retry.",
        "route.app.deadline_header",
        "service.in-mesh.",
        "service.learnt.",
        "service.outside.",
        "listener.edge.",
        "listener.mesh.",
        "authorization.note-writers.",
        "workload.web-v2.",
        "rate_limit.per-tenant.",
        "rate_limit.of-all-proxies.",
        "service.limits.",
        "canary.app-next.",
    ];
    let only_shown: Vec<&String> = shown.keys().filter(|key| !defaults.contains_key(*key)).collect();
    assert!(only_shown.iter().all(|key| more.iter().any(|entry| key.starts_with(entry))), "{only_shown:?}");
    assert_eq!(shown["listener.edge.tls_version_min"].value, defaults_of_edge());
}

fn defaults_of_edge() -> String {
    let text = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"\ntls = \"terminate\"\ncertificate = \"/c\"\nkey = \"/k\"\n";
    settings(&parse(text)).remove("listener.edge.tls_version_min").unwrap().value
}

fn settings(loaded: &Loaded) -> BTreeMap<String, Setting> {
    loaded.compiled.effective().into_iter().map(|setting| (setting.key.clone(), setting)).collect()
}

#[test]
fn every_key_shown_is_explained() {
    let text = reference();
    let mut explained = false;
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        let comment = line.starts_with('#');
        if let Some((key, _)) = line.split_once(" = ")
            && !comment
            && !line.starts_with(' ')
        {
            // A key is explained where it is shown first; the second route shows only what differs.
            assert!(explained || keys.contains(key), "{key} is not explained");
            keys.insert(key.to_owned());
        }
        explained = comment;
    }
}

#[test]
fn the_reference_has_nothing_doubtful() {
    let warnings = parse(&reference()).warnings;
    assert!(warnings.is_empty(), "{warnings}");
}

#[test]
fn what_the_reference_shows_of_retries_is_the_default() {
    let of = |loaded: &Loaded, name: &str| {
        let snapshot = loaded.compiled.snapshot(1, &|_, _| Vec::new());
        let service = snapshot.service_named(name).unwrap();
        std::sync::Arc::clone(&snapshot.services[service as usize].retry)
    };
    let reference = parse(&reference());
    // Says nothing of it.
    assert_eq!(of(&reference, "app"), of(&reference, "in-mesh"));
}
