//! What an operator is told of keys about the choice among endpoints.

use ringmesh::config;

fn told(text: &str) -> Vec<String> {
    let text = format!("[[listener]]\naddress = \"127.0.0.1:1\"\n{text}\n[[route]]\nservice = \"app\"\n");
    match config::parse("test.toml", &text, &|_| None) {
        Ok(loaded) => loaded.warnings.lines().map(|line| format!("warning: {line}")).collect(),
        Err(report) => report.lines().collect(),
    }
}

fn service(keys: &str) -> String {
    format!(
        "[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9\", {{ address = \"127.0.0.1:8\", labels = {{ version = \"v1\" }} }}]\n{keys}"
    )
}

#[test]
fn mistakes_are_told_with_their_remedy() {
    for (keys, expected) in [
        ("balance = \"maglev\"", "a balancer that hashes needs `hash`"),
        ("hash = [{ source = true }]", "hash goes with balance"),
        ("balance = \"maglev\"\nhash = []", "hash is empty"),
        ("balance = \"maglev\"\nhash = [{}]", "goes by one thing"),
        ("balance = \"maglev\"\nhash = [{ header = \"a\", query = \"b\" }]", "goes by one thing"),
        ("balance = \"maglev\"\nhash = [{ header = \"a b\" }]", "cannot stand in the name of a field"),
        ("balance = \"maglev\"\nhash = [{ cookie = \"a;b\" }]", "cannot be the name of a cookie"),
        ("balance = \"maglev\"\nhash = [{ cookie = \"a\", ttl = \"-1s\" }]", "ttl"),
        ("balance = \"maglev\"\nhash = [{ cookie = \"a\", path = \"/x;y\", ttl = \"1s\" }]", "cookie's path"),
        ("balance = \"maglev\"\nhash = [{ query = \"a=b\" }]", "cannot be the name of a parameter"),
        ("balance = \"maglev\"\nhash = [{ source = false }]", "says nothing"),
        ("balance = \"maglev\"\nhash = [{ source = true, ttl = \"1h\" }]", "goes with `cookie` only"),
        (
            "balance = \"maglev\"\nhash = [{ cookie = \"a\", ttl = \"1h\" }, { cookie = \"b\", ttl = \"1h\" }]",
            "two cookies with a `ttl`",
        ),
        ("balance = \"maglev\"\nhash = \"x-user\"", "must be a list"),
        (
            "balance = \"maglev\"\nhash = [{ source = true }]\nconsistent = { maglev_places = 65536 }",
            "is no prime",
        ),
        (
            "balance = \"maglev\"\nhash = [{ source = true }]\nconsistent = { overload_percent = 99 }",
            "overload_percent",
        ),
        ("consistent = { ring_points = 5 }", "`consistent` does nothing"),
        ("zones = { prefer_own = false }", "`zones` does nothing"),
        ("zones = { callers_percent = 100.5 }", "out of its bounds"),
        ("zones = { callers_percent = 33.333 }", "out of its bounds"),
        ("slow_start = {}", "needs `window`"),
        ("slow_start = { window = \"1s\", aggression = 0 }", "out of its bounds"),
        ("slow_start = \"30s\"", "must be a table"),
        ("[[service.subset]]\nname = \"v1\"", "needs `labels`"),
        ("[[service.subset]]\nname = \"any\"\nlabels = { a = \"b\" }", "cannot be called `any`"),
        ("[[service.subset]]\nname = \"v1\"\nlabels = {}", "0 labels"),
        (
            "[[service.subset]]\nname = \"v1\"\nlabels = { version = \"v1\" }\nfallback = \"v1\"",
            "cannot stand in for itself",
        ),
        (
            "[[service.subset]]\nname = \"v1\"\nlabels = { version = \"v1\" }\nfallback = \"v2\"",
            "no subset `v2` to fall back to",
        ),
        (
            "[[service.subset]]\nname = \"v1\"\nlabels = { version = \"v1\" }\n[[service.subset]]\nname = \"v1\"\nlabels = { version = \"v1\" }",
            "two subsets are called `v1`",
        ),
        (
            "[[service.subset]]\nname = \"v2\"\nlabels = { version = \"v2\" }",
            "test.toml:8:10: warning: no endpoint has the labels of subset `v2`: its requests are answered with 503",
        ),
        ("[[route]]\npath_prefix = \"/a\"\nservice = \"app\"\nsubset = \"v9\"", "has no subset `v9`"),
        (
            "[[route]]\npath_prefix = \"/a\"\nsplit = [{ service = \"app\", subset = \"v9\" }]",
            "has no subset `v9`",
        ),
        (
            "[[route]]\npath_prefix = \"/a\"\nsubset = \"v1\"\nsplit = [{ service = \"app\" }]",
            "`subset` beside `split`",
        ),
        (
            "[[route]]\npath_prefix = \"/a\"\nsubset = \"v1\"\nredirect = { path = \"/b\" }",
            "`subset` does not go with `redirect`",
        ),
        ("[zone]", "needs `name`"),
    ] {
        let told = told(&service(keys));
        assert!(told.iter().any(|line| line.contains(expected)), "{keys}: {told:#?} without {expected}");
    }
}

#[test]
fn what_is_right_is_shown_as_it_is_in_force() {
    let text = "[zone]\nname = \"${ZONE}\"\n[[listener]]\naddress = \"127.0.0.1:1\"\n[[service]]\nname = \"app\"\nendpoints = [{ address = \
                \"127.0.0.1:9\", zone = \"a\", priority = 2, labels = { version = \"v1\", \"k8s/app\" = \"shop\" } }]\nzones = { callers_percent = 12.5 \
                }\nslow_start = { window = \"1m\", aggression = 1.5 }\n[[service.subset]]\nname = \"v1\"\nlabels = { version = \"v1\" }\nfallback = \
                \"any\"\n[[route]]\nservice = \"app\"\nsubset = \"v1\"\n";
    let zone = |name: &str| (name == "ZONE").then(|| "a".to_owned());
    let loaded = config::parse("test.toml", text, &zone).unwrap_or_else(|report| panic!("{report}"));
    let shown: std::collections::BTreeMap<String, String> =
        loaded.compiled.effective().into_iter().map(|setting| (setting.key, setting.value)).collect();
    for (key, value) in [
        ("zone.name", "\"a\""),
        (
            "service.app.endpoints",
            "[{ address = \"127.0.0.1:9\", weight = 1, zone = \"a\", priority = 2, labels = { \"k8s/app\" = \"shop\", version = \"v1\" } }]",
        ),
        ("service.app.zones.prefer_own", "true"),
        ("service.app.zones.endpoints_min", "6"),
        ("service.app.zones.callers_percent", "12.5"),
        ("service.app.slow_start.window", "\"1m\""),
        ("service.app.slow_start.aggression", "1.5"),
        ("service.app.slow_start.weight_percent_min", "10"),
        ("service.app.subset", "[{ name = \"v1\", labels = { version = \"v1\" }, fallback = \"any\" }]"),
        ("route.route-1.subset", "\"v1\""),
    ] {
        assert_eq!(shown.get(key).map(String::as_str), Some(value), "{key}");
    }
    let snapshot = loaded.compiled.snapshot(1, &|_, _| Vec::new());
    assert_eq!(snapshot.services[0].plan().endpoints_of(1), 1);
}
