//! The table against its description, and against the plainest implementation of it.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

#[test]
fn an_exact_host_beats_a_longer_suffix_beats_a_shorter_one_beats_any() {
    let table = table(&[
        ("*", "/*", "any"),
        ("*.example", "/*", "short"),
        ("*.shop.example", "/*", "long"),
        ("a.shop.example", "/*", "exact"),
    ]);
    assert_eq!(find(&table, "a.shop.example", "/"), Some("exact"));
    assert_eq!(find(&table, "b.shop.example", "/"), Some("long"));
    assert_eq!(find(&table, "x.b.shop.example", "/"), Some("long"), "one or more labels");
    assert_eq!(find(&table, "shop.example", "/"), Some("short"), "the suffix itself is not below itself");
    assert_eq!(find(&table, "example", "/"), Some("any"));
    assert_eq!(find(&table, ".example", "/"), Some("any"), "a label has at least one octet");
    assert_eq!(find(&table, "", "/"), Some("any"));
    assert_eq!(table.find(None, b"/").map(|r| &*r.name), Some("any"));
}

#[test]
fn an_exact_path_beats_a_longer_prefix_beats_a_shorter_one() {
    let table = table(&[
        ("h", "/*", "root"),
        ("h", "/a/*", "a"),
        ("h", "/a/b/c/*", "abc"),
        ("h", "/a/b/c", "exact"),
        ("h", "/", "exact root"),
    ]);
    for (path, name) in [
        ("/", "exact root"),
        ("/x", "root"),
        ("*", "root"),
        ("", "root"),
        ("/a", "a"),
        ("/a/", "a"),
        ("/ab", "root"),
        ("/a/b", "a"),
        ("/a/b/c", "exact"),
        ("/a/b/c/", "abc"),
        ("/a/b/c/d/e/f/g", "abc"),
        ("/a/b/cd", "a"),
        ("//a/b/c", "root"),
        ("/A", "root"),
        ("/%61", "root"),
    ] {
        assert_eq!(find(&table, "h", path), Some(name), "{path}");
    }
}

#[test]
fn a_path_without_route_under_its_host_falls_through_to_a_less_specific_host() {
    let table = table(&[
        ("a.example", "/own/*", "own"),
        ("*.example", "/wild/*", "wild"),
        ("*", "/any/*", "any"),
        ("closed.example", "/*", "closed"),
    ]);
    assert_eq!(find(&table, "a.example", "/own"), Some("own"));
    assert_eq!(find(&table, "a.example", "/wild"), Some("wild"));
    assert_eq!(find(&table, "a.example", "/any"), Some("any"));
    assert_eq!(find(&table, "a.example", "/none"), None);
    assert_eq!(find(&table, "closed.example", "/any"), Some("closed"), "a route for / closes the host");
}

#[test]
fn case_and_a_final_dot_of_a_host_do_not_count() {
    let table = table(&[("A.Example.", "/*", "exact"), ("*.B.Example.", "/*", "suffix")]);
    for host in ["a.example", "A.EXAMPLE", "a.example."] {
        assert_eq!(find(&table, host, "/"), Some("exact"), "{host}");
    }
    assert_eq!(find(&table, "X.b.eXample.", "/"), Some("suffix"));
    assert_eq!(find(&table, "a.example..", "/"), None);
}

#[test]
fn a_host_longer_than_names_can_be_has_no_route() {
    let table = table(&[("*", "/*", "any"), ("*.example", "/*", "suffix")]);
    let longest = format!("{}.example", "a".repeat(Table::HOST_BYTES_MAX - 8));
    assert_eq!(find(&table, &longest, "/"), Some("suffix"));
    assert_eq!(find(&table, &format!("{longest}."), "/"), Some("suffix"), "the final dot is not part of it");
    assert_eq!(find(&table, &format!("a{longest}"), "/"), None);
}

#[test]
fn the_same_host_and_path_twice_is_an_overlap_with_the_first() {
    let mut builder = TableBuilder::default();
    let mut add = |host: &str, path: &str| builder.add(host_match(host), path_match(path), route("r"));
    assert_eq!(add("h", "/a"), Ok(()));
    assert_eq!(add("h", "/a/*"), Ok(()), "a prefix is not an exact path");
    assert_eq!(add("H.", "/a"), Err(TableError::Overlap(0)));
    assert_eq!(add("h", "/a//b/*"), Ok(()), "an empty segment counts");
    assert_eq!(
        builder.add(HostMatch::Exact("h".into()), PathMatch::Prefix("/a/".into()), route("r")),
        Err(TableError::Overlap(1)),
        "a final slash of a prefix does not count"
    );
    let mut add = |host: &str, path: &str| builder.add(host_match(host), path_match(path), route("r"));
    assert_eq!(add("*", "/*"), Ok(()), "the refused ones were not counted");
    assert_eq!(add("*", "/*"), Err(TableError::Overlap(3)));
    assert_eq!(add("*.h", "/*"), Ok(()));
    assert_eq!(add("*.H", "/*"), Err(TableError::Overlap(4)));
    assert_eq!(builder.build().len(), 5);
}

#[test]
fn ten_thousand_routes_take_less_than_five_megabytes_in_either_shape() {
    for shape in ["one host", "many hosts"] {
        let mut builder = TableBuilder::default();
        for n in 0..10_000 {
            let (host, path) = match shape {
                "one host" => ("shop.example".to_owned(), format!("/service-{n}/api/v1")),
                _ => (format!("service-{n}.default.svc.cluster.local"), "/".to_owned()),
            };
            builder.add(HostMatch::Exact(host.into()), PathMatch::Prefix(path.into()), route("r")).unwrap();
        }
        let bytes = builder.build().heap_bytes();
        assert!(bytes < 5_000_000, "{shape}: {bytes} bytes");
        assert!(bytes > 10_000 * size_of::<Route>(), "{shape}: {bytes} bytes cannot be all");
    }
    assert_eq!(size_of::<Host>(), 64, "one cache line");
}

#[test]
fn of_a_long_path_no_more_is_looked_at_than_prefixes_have() {
    let table = table(&[("h", "/a/*", "a"), ("h", "/a/bb/*", "abb"), ("i", "/*", "all")]);
    let paths = |host: &str| table.look_up_host(&table.exact, host.as_bytes()).unwrap().paths;
    let long = format!("/a/{}", "/".repeat(1 << 20));
    assert_eq!(paths("h").reach(long.as_bytes()), 4, "two segments and the slash that ends the second");
    assert_eq!(paths("h").reach("/".repeat(1 << 20).as_bytes()), 3);
    assert_eq!(paths("h").reach("x".repeat(1 << 20).as_bytes()), 6, "the octets of the longest and one more");
    assert_eq!(paths("i").reach(long.as_bytes()), 0, "the prefix / needs no look");
    assert_eq!(find(&table, "h", &long), Some("a"));
}

#[test]
fn it_agrees_with_a_linear_search() {
    let seed = match std::env::var("RINGMESH_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    eprintln!("RINGMESH_SEED={seed}");
    let config = Config { cases: 1000, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);

    // Few letters, so that what is asked for is often there and often nearly there.
    let label = prop::sample::select(vec!["a", "b", "aB", "xn--long-label-that-does-not-fit-inline"]);
    let name = prop::collection::vec(label, 1..4).prop_map(|labels| labels.join("."));
    let host = prop_oneof![
        1 => Just(HostMatch::Any),
        3 => name.clone().prop_map(|n| HostMatch::Exact(n.into())),
        3 => name.clone().prop_map(|n| HostMatch::Suffix(format!(".{n}").into())),
    ];
    let segment = prop::sample::select(vec![
        "",
        "a",
        "b",
        "ab",
        "a-segment-that-makes-paths-longer-than-the-bits-of-lengths",
    ]);
    let path = prop::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")));
    let rule = (host, path.clone(), any::<bool>()).prop_map(|(host, path, exact)| {
        (host, if exact { PathMatch::Exact(path.into()) } else { PathMatch::Prefix(path.into()) })
    });
    let asked = (
        prop_oneof![
            1 => Just(None),
            9 => (name, prop::sample::select(vec!["", "."])).prop_map(|(n, dot)| Some(format!("{n}{dot}"))),
        ],
        prop_oneof![1 => Just("*".to_owned()), 9 => path],
    );
    let cases = (prop::collection::vec(rule, 0..40), prop::collection::vec(asked, 1..40));
    TestRunner::new_with_rng(config, rng)
        .run(&cases, |(rules, asked)| {
            let mut builder = TableBuilder::default();
            let mut linear: Vec<(HostMatch, PathMatch)> = Vec::new();
            for (host, path) in rules {
                let twin = linear.iter().position(|(h, p)| same_host(h, &host) && same_path(p, &path));
                let added = builder.add(host.clone(), path.clone(), route(&linear.len().to_string()));
                prop_assert_eq!(added, twin.map_or(Ok(()), |n| Err(TableError::Overlap(n))));
                if twin.is_none() {
                    linear.push((host, path));
                }
            }
            let table = builder.build();
            for (host, path) in asked {
                let expected = linear
                    .iter()
                    .enumerate()
                    .filter_map(|(n, (h, p))| {
                        Some(((rank_host(h, host.as_deref())?, rank_path(p, &path)?), n))
                    })
                    .max()
                    .map(|(_, n)| n.to_string());
                let found = table.find(host.as_deref().map(str::as_bytes), path.as_bytes());
                prop_assert_eq!(found.map(|r| r.name.to_string()), expected, "{:?} {}", host, path);
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("with RINGMESH_SEED={seed}: {failure}"));
}

/// How specific the match is, or `None` where there is none: written from the description, not from the table.
fn rank_host(host: &HostMatch, asked: Option<&str>) -> Option<(u8, usize)> {
    let asked = asked.map(normal);
    match (host, asked) {
        (HostMatch::Any, _) => Some((0, 0)),
        (_, None) => None,
        (HostMatch::Exact(name), Some(asked)) => (normal(name) == asked).then_some((2, name.len())),
        (HostMatch::Suffix(suffix), Some(asked)) => {
            (asked.ends_with(&normal(suffix)) && asked.len() > suffix.len()).then_some((1, suffix.len()))
        }
    }
}

fn rank_path(path: &PathMatch, asked: &str) -> Option<(u8, usize)> {
    match path {
        PathMatch::Exact(path) => (**path == *asked).then_some((1, 0)),
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            let matches = prefix.is_empty() || asked == prefix || asked.starts_with(&format!("{prefix}/"));
            matches.then_some((0, prefix.len()))
        }
    }
}

fn same_host(a: &HostMatch, b: &HostMatch) -> bool {
    match (a, b) {
        (HostMatch::Any, HostMatch::Any) => true,
        (HostMatch::Exact(a), HostMatch::Exact(b)) | (HostMatch::Suffix(a), HostMatch::Suffix(b)) => {
            normal(a) == normal(b)
        }
        _ => false,
    }
}

fn same_path(a: &PathMatch, b: &PathMatch) -> bool {
    match (a, b) {
        (PathMatch::Exact(a), PathMatch::Exact(b)) => a == b,
        (PathMatch::Prefix(a), PathMatch::Prefix(b)) => {
            a.strip_suffix('/').unwrap_or(a) == b.strip_suffix('/').unwrap_or(b)
        }
        _ => false,
    }
}

fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Hosts as `*`, `*.suffix` or a name; paths as `/exact` or `/prefix/*`.
fn table(rules: &[(&str, &str, &str)]) -> Table {
    let mut builder = TableBuilder::default();
    for (host, path, name) in rules {
        builder.add(host_match(host), path_match(path), route(name)).unwrap();
    }
    builder.build()
}

fn host_match(host: &str) -> HostMatch {
    match host.strip_prefix('*') {
        Some("") => HostMatch::Any,
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(host.into()),
    }
}

fn path_match(path: &str) -> PathMatch {
    match path.strip_suffix("/*") {
        Some("") => PathMatch::Prefix("/".into()),
        Some(prefix) => PathMatch::Prefix(prefix.into()),
        None => PathMatch::Exact(path.into()),
    }
}

fn route(name: &str) -> Route {
    Route::to(name, 0)
}

fn find<'t>(table: &'t Table, host: &str, path: &str) -> Option<&'t str> {
    table.find(Some(host.as_bytes()), path.as_bytes()).map(|route| &*route.name)
}
