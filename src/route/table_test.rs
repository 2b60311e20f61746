//! The table against its description, and against the plainest implementation of it.

use std::cmp::Reverse;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use regex_automata::nfa::thompson::backtrack::BoundedBacktracker;

use super::*;
use crate::identity::{IdMatch, SpiffeId};
use crate::route::{Conditions, Judgement, Regex, Template, Test, What};

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
    let none = Conditions::default;
    let overlap = |other| Err(vec![Overlap { host: 0, other }]);
    let mut add = |host: &str, path: PathMatch, conditions: Conditions| {
        builder.add(Arc::new(RouteMatch { hosts: [host_match(host)].into(), path, conditions }))
    };
    assert_eq!(add("h", path_match("/a"), none()), Ok(0));
    assert_eq!(add("h", path_match("/a/*"), none()), Ok(1), "a prefix is not an exact path");
    assert_eq!(add("H.", path_match("/a"), none()), overlap(0));
    assert_eq!(add("h", path_match("/a//b/*"), none()), Ok(2), "an empty segment counts");
    let with_slash = PathMatch::Prefix("/a/".into());
    assert_eq!(add("h", with_slash, none()), overlap(1), "a final slash of a prefix does not count");
    assert_eq!(add("*", path_match("/*"), none()), Ok(3), "the refused ones were not counted");
    assert_eq!(add("*", path_match("/*"), none()), overlap(3));
    assert_eq!(add("*.h", path_match("/*"), none()), Ok(4));
    assert_eq!(add("*.H", path_match("/*"), none()), overlap(4));
    assert_eq!(add("h", path_match("/{x}/b"), none()), Ok(5));
    assert_eq!(add("h", path_match("/{y}/b"), none()), overlap(5), "names of variables do not count");
    assert_eq!(add("h", path_match("~/a.*"), none()), Ok(6));
    assert_eq!(add("h", path_match("~/a.*"), none()), overlap(6));
    for (n, value) in (7..).zip(["1", "2", "3"]) {
        assert_eq!(add("h", path_match("/a"), header("x", value)), Ok(n));
    }
    assert_eq!(add("h", path_match("/a"), header("x", "1")), overlap(7));
    assert_eq!(add("h", path_match("/a"), header("x", "3")), overlap(9));
    assert_eq!(add("h", path_match("/a"), none()), overlap(0));
    assert_eq!(add("i", path_match("/a"), header("x", "1")), Ok(10), "of another host");
    assert_eq!(builder.matches().len(), 11);
}

#[test]
fn each_host_that_overlaps_is_told() {
    let mut builder = TableBuilder::default();
    let mut add = |hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| host_match(host)).collect();
        let path = path_match("/*");
        builder.add(Arc::new(RouteMatch { hosts, path, conditions: Conditions::default() }))
    };
    assert_eq!(add(&["a"]), Ok(0));
    assert_eq!(add(&["b", "c"]), Ok(1));
    let overlaps = vec![Overlap { host: 0, other: 1 }, Overlap { host: 2, other: 0 }];
    assert_eq!(add(&["c", "d", "a"]), Err(overlaps));
    assert_eq!(add(&["d"]), Ok(2), "nothing of what was refused is left");
}

#[test]
fn an_exact_path_beats_a_template_beats_an_expression_beats_a_prefix() {
    let table = table(&[
        ("h", "/*", "all"),
        ("h", "/users/7/*", "prefix"),
        ("h", "~/users/[0-9]+(?:/.*)?", "regex"),
        ("h", "/users/{id}", "one"),
        ("h", "/users/{id}/{what}", "two"),
        ("h", "/{kind}/7/orders", "orders"),
        ("h", "/users/{id}/orders", "of user"),
        ("h", "/files/{path=**}", "files"),
        ("h", "/files/{one}", "file"),
        ("h", "/users/8", "exact"),
        ("i", "~.*x", "x"),
        ("i", "~/a.*", "a"),
    ]);
    for (path, name) in [
        ("/users/8", "exact"),
        ("/users/9", "one"),
        ("/users/9/orders", "of user"),
        ("/shops/7/orders", "orders"),
        ("/users/9/carts", "two"),
        ("/users/9/a/b", "regex"),
        ("/users/7/", "regex"),
        ("/users/x/a/b", "all"),
        ("/files/", "files"),
        ("/files/a", "file"),
        ("/files/a/", "files"),
        ("/files", "all"),
        ("*", "all"),
    ] {
        assert_eq!(find(&table, "h", path), Some(name), "{path}");
    }
    assert_eq!(find(&table, "i", "/ax"), Some("x"), "expressions stand in the order of the files");
    assert_eq!(find(&table, "i", "/ay"), Some("a"));
    assert_eq!(find(&table, "i", "/b"), None);
}

#[test]
fn what_asks_for_more_is_asked_first_and_what_is_not_meant_falls_through() {
    let two = Conditions {
        headers: [header("x", "1").headers, header("y", "1").headers].concat(),
        ..header("", "")
    };
    let get = Conditions { methods: vec!["GET".into()], ..Conditions::default() };
    let post = Conditions { methods: vec!["POST".into()], ..Conditions::default() };
    let query = Conditions { query: header("v", "2").headers, ..Conditions::default() };
    let table = conditional(&[
        ("h", "/a", Conditions::default(), "plain"),
        ("h", "/a", query, "query"),
        ("h", "/a", header("x", "1"), "x"),
        ("h", "/a", header("z", "1"), "z"),
        ("h", "/a", two, "x and y"),
        ("h", "/a", get, "get"),
        ("h", "/b", post, "post b"),
        ("h", "/*", header("x", "1"), "x below"),
        ("*", "/*", Conditions::default(), "any"),
    ]);
    let find = |method: &str, path: &str, query: &str, lines: &[(&str, &str)]| {
        let asked = Asked { host: Some("h"), path, query, method, lines, peer: None };
        table.route(asked.find(&table).unwrap()).unwrap().name.to_string()
    };
    assert_eq!(find("GET", "/a", "", &[("x", "1"), ("y", "1")]), "get", "a method before all others");
    assert_eq!(find("PUT", "/a", "", &[("y", "1"), ("x", "1")]), "x and y", "then more fields");
    assert_eq!(find("PUT", "/a", "v=2", &[("z", "1"), ("x", "1")]), "x", "the first in the files");
    assert_eq!(find("PUT", "/a", "v=2", &[("z", "2")]), "query");
    assert_eq!(find("PUT", "/a", "v=3", &[]), "plain");
    assert_eq!(find("POST", "/b", "", &[]), "post b");
    assert_eq!(find("GET", "/b", "", &[("x", "1")]), "x below", "a shorter prefix");
    assert_eq!(find("GET", "/b", "", &[]), "any", "a less specific host");
}

#[test]
fn of_many_routes_under_one_path_only_those_of_the_value_are_asked() {
    let tenant = |n: usize| Conditions {
        headers: [header("x-env", "prod").headers, header("x-tenant", &format!("t{n}")).headers].concat(),
        ..Conditions::default()
    };
    let mut rules: Vec<(&str, &str, Conditions, String)> =
        (0..10_000).map(|n| ("h", "/*", tenant(n), format!("tenant {n}"))).collect();
    let prefix = Test { what: What::Prefix("t7".into()), not: false };
    let of_prefix = Conditions {
        headers: vec![
            ("x-tenant".into(), prefix.clone()),
            ("x-env".into(), exact("prod")),
            ("x-b".into(), exact("1")),
        ],
        ..Conditions::default()
    };
    rules.push(("h", "/*", of_prefix, "beta".into()));
    rules.push((
        "h",
        "/*",
        Conditions { headers: vec![("x-tenant".into(), prefix)], ..Conditions::default() },
        "seven".into(),
    ));
    let rules: Vec<(&str, &str, Conditions, &str)> =
        rules.iter().map(|(h, p, c, n)| (*h, *p, c.clone(), &**n)).collect();
    let table = conditional(&rules);
    let counting = std::cell::Cell::new(0);
    let find = |lines: &[(&str, &str)]| {
        counting.set(0);
        let asked = Asked { host: Some("h"), path: "/", query: "", method: "GET", lines, peer: None };
        let found =
            asked.find_counting(&table, &counting).map(|id| table.route(id).unwrap().name.to_string());
        (found, counting.get())
    };
    let (found, looks) = find(&[("x-env", "prod"), ("x-tenant", "t777")]);
    assert_eq!(found.as_deref(), Some("tenant 777"));
    assert!(looks < 10, "{looks} looks at fields");
    assert_eq!(find(&[("x-env", "prod"), ("x-tenant", "t777"), ("x-b", "1")]).0.as_deref(), Some("beta"));
    assert_eq!(find(&[("x-env", "test"), ("x-tenant", "t777")]).0.as_deref(), Some("seven"));
    assert_eq!(find(&[("x-env", "test"), ("x-tenant", "t1")]).0, None);
    assert_eq!(find(&[]).0, None);
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
            let hosts = [HostMatch::Exact(host.into())].into();
            let path = PathMatch::Prefix(path.into());
            builder.add(Arc::new(RouteMatch { hosts, path, conditions: Conditions::default() })).unwrap();
        }
        let routes = (0..10_000).map(|_| route("r")).collect();
        let bytes = builder.build(routes).heap_bytes();
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
    let config = Config { cases: 250, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);

    let engines = Engines::new();
    let cases = (rules(&engines), prop::collection::vec(asked(), 1..40));
    TestRunner::new_with_rng(config, rng)
        .run(&cases, |(rules, asked)| {
            let mut builder = TableBuilder::default();
            let mut linear: Vec<Arc<RouteMatch>> = Vec::new();
            for rule in rules {
                let same = |other: &RouteMatch| {
                    same_path(&other.path, &rule.path)
                        && other.conditions == rule.conditions
                        && other.hosts().iter().any(|a| rule.hosts().iter().any(|b| same_host(a, b)))
                };
                let rule = Arc::new(rule.clone());
                let twin = linear.iter().any(|other| same(other));
                let added = builder.add(Arc::clone(&rule));
                prop_assert_eq!(added.is_err(), twin);
                if !twin {
                    linear.push(rule);
                }
            }
            let routes = (0..linear.len()).map(|n| route(&n.to_string())).collect();
            let table = builder.build(routes);
            for (host, path, method, headers, query, cookies, peer) in asked {
                let pairs = |pairs: &[(&str, &str)], with: &str| {
                    pairs.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(with)
                };
                let (query, cookie) = (pairs(&query, "&"), pairs(&cookies, "; "));
                let mut lines = headers;
                lines.push(("cookie", &cookie));
                let peer = peer.map(|peer| SpiffeId::parse(peer).unwrap());
                let asked = Asked {
                    host: host.as_deref(),
                    path: &path,
                    query: &query,
                    method,
                    lines: &lines,
                    peer: peer.as_ref(),
                };
                let rank = |(n, rule): (usize, &Arc<RouteMatch>)| {
                    let host = rule.hosts().iter().filter_map(|h| rank_host(h, host.as_deref())).max()?;
                    let path = rank_path(&rule.path, &path, &engines)?;
                    asked.meets(&rule.conditions).then(|| {
                        let c = &rule.conditions;
                        let counts = [c.headers.len(), c.query.len(), c.cookies.len()];
                        (
                            (host, path, !c.methods.is_empty(), counts, !c.from.is_empty(), Reverse(n)),
                            n as u32,
                        )
                    })
                };
                let expected = linear.iter().enumerate().filter_map(rank).max().map(|(_, n)| n);
                let found = asked.find(&table);
                prop_assert_eq!(found, expected, "{:?}", asked);
                // What explains one route after the other says the same.
                let judged = asked.with(|request| {
                    let meant = |(n, matching): (u32, &Arc<RouteMatch>)| match matching.judge(n, request) {
                        Judgement::Meant(rank) => Some(rank),
                        Judgement::Host | Judgement::Path | Judgement::Condition(_) => None,
                    };
                    (0..).zip(table.matches()).filter_map(meant).max().map(|rank| rank.order.0)
                });
                prop_assert_eq!(judged, expected, "{:?}", asked);
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("with RINGMESH_SEED={seed}: {failure}"));
}

/// Names of few letters, so that what is asked for is often there and often nearly there.
fn names() -> impl Strategy<Value = String> + Clone {
    let label = prop::sample::select(vec!["a", "b", "aB", "xn--long-label-that-does-not-fit-inline"]);
    prop::collection::vec(label, 1..4).prop_map(|labels| labels.join("."))
}

fn paths() -> impl Strategy<Value = String> + Clone {
    let segment = prop::sample::select(vec![
        "",
        "a",
        "b",
        "ab",
        "a-segment-that-makes-paths-longer-than-the-bits-of-lengths",
    ]);
    prop::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let test = (0..8_u8, any::<bool>()).prop_map(|(what, not)| Test {
        what: match what {
            0 => What::Present,
            1 => What::Prefix("1".into()),
            2 => What::Regex(Regex::parse("1|2").unwrap()),
            3 => What::Range(1, 3),
            n => What::Exact((n - 3).to_string().into()),
        },
        not: not && what < 5,
    });
    let tests = prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::btree_map(prop::sample::select(vec!["x", "y"]), test, 1..3)
            .prop_map(|tests| tests.into_iter().map(|(name, test)| (name.into(), test)).collect()),
    ];
    let conditions = (
        prop::sample::subsequence(vec!["GET", "PUT"], 0..2),
        tests.clone(),
        tests.clone(),
        tests,
        prop::sample::subsequence(vec!["spiffe://a/x", "spiffe://a/y", "spiffe://a/*"], 0..2),
    )
        .prop_map(|(methods, headers, query, cookies, from)| Conditions {
            methods: methods.into_iter().map(Box::from).collect(),
            headers,
            query,
            cookies,
            from: from.into_iter().map(|from| IdMatch::parse(from).unwrap()).collect(),
            ..Conditions::default()
        });
    prop_oneof![1 => Just(Conditions::default()), 2 => conditions]
}

/// What routes mean, often the same hosts and paths, so that cells grow.
fn rules(engines: &Engines) -> impl Strategy<Value = Vec<RouteMatch>> + use<> {
    let host = prop_oneof![
        1 => Just(HostMatch::Any),
        3 => names().prop_map(|n| HostMatch::Exact(n.into())),
        3 => names().prop_map(|n| HostMatch::Suffix(format!(".{n}").into())),
    ];
    let part = prop::sample::select(vec!["a", "b", "{v}", "", "{w}"]);
    let template =
        (prop::collection::vec(part, 0..4), prop::sample::select(vec!["{x}", "{r=**}", "{x}/a", "{x}/"]))
            .prop_map(|(parts, last)| format!("/{}", [&parts[..], &[last]].concat().join("/")));
    let regex = prop::sample::select(engines.0.iter().map(|(regex, _)| regex.clone()).collect::<Vec<_>>());

    let path_match = prop_oneof![
        2 => paths().prop_map(|path| PathMatch::Exact(path.into())),
        2 => paths().prop_map(|path| PathMatch::Prefix(path.into())),
        2 => template.prop_filter_map("no name stands twice", |t| Template::parse(&t).ok().map(PathMatch::Template)),
        2 => regex.prop_map(PathMatch::Regex),
    ];
    let hosts = prop::collection::vec(host, 0..3);
    // Often the same place, so that cells grow.
    let places = prop::collection::vec((hosts, path_match), 1..12);
    (places, prop::collection::vec((any::<prop::sample::Index>(), conditions()), 0..60)).prop_map(
        |(places, rules)| {
            let rule = |(at, conditions): (prop::sample::Index, Conditions)| {
                let (mut hosts, path) = at.get(&places).clone();
                hosts.sort_by_key(|host| format!("{:?}", normal_host(host)));
                hosts.dedup_by_key(|host| normal_host(host));
                RouteMatch { hosts: hosts.into(), path, conditions }
            };
            rules.into_iter().map(rule).collect::<Vec<_>>()
        },
    )
}

type Pairs = Vec<(&'static str, &'static str)>;

/// Host, path, method, fields, query, cookies, peer.
fn asked()
-> impl Strategy<Value = (Option<String>, String, &'static str, Pairs, Pairs, Pairs, Option<&'static str>)> {
    let value = prop::sample::select(vec!["", "1", "2", "3", "4", "12"]);
    let pair = (prop::sample::select(vec!["x", "y"]), value);
    (
        prop_oneof![
            1 => Just(None),
            9 => (names(), prop::sample::select(vec!["", "."])).prop_map(|(n, dot)| Some(format!("{n}{dot}"))),
        ],
        prop_oneof![1 => Just("*".to_owned()), 9 => paths()],
        prop::sample::select(vec!["GET", "PUT", "POST"]),
        prop::collection::vec(pair.clone(), 0..3),
        prop::collection::vec(pair.clone(), 0..3),
        prop::collection::vec(pair, 0..3),
        prop::sample::select(vec![None, Some("spiffe://a/x"), Some("spiffe://a/y"), Some("spiffe://b/x")]),
    )
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

fn rank_path(path: &PathMatch, asked: &str, engines: &Engines) -> Option<(u8, usize, Vec<u8>)> {
    match path {
        PathMatch::Exact(path) => (**path == *asked).then_some((3, 0, Vec::new())),
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            let matches = prefix.is_empty() || asked == prefix || asked.starts_with(&format!("{prefix}/"));
            matches.then_some((0, prefix.len(), Vec::new()))
        }
        PathMatch::Regex(regex) => engines.matches(regex, asked).then_some((1, 0, Vec::new())),
        PathMatch::Template(template) => {
            let segments: Vec<&str> = asked.split('/').collect();
            let parts: Vec<&str> = template.as_str().split('/').collect();
            let mut exactness = Vec::new();
            for (n, part) in parts.iter().enumerate() {
                match *part {
                    "{r=**}" if segments.len() > n => {
                        exactness.push(0);
                        return Some((2, 0, exactness));
                    }
                    part if part.starts_with('{') => {
                        exactness.push(1);
                        segments.get(n).filter(|segment| !segment.is_empty())?;
                    }
                    part => {
                        exactness.push(2);
                        segments.get(n).filter(|segment| **segment == part)?;
                    }
                }
            }
            (parts.len() == segments.len()).then_some((2, 0, exactness))
        }
    }
}

/// Expressions, each with another engine, that follows the expression itself.
struct Engines(Vec<(Regex, BoundedBacktracker)>);

impl Engines {
    fn new() -> Self {
        const PATTERNS: [&str; 11] = [
            "/a.*",
            "/a/.*",
            "/a/b",
            "/a/[ab]+",
            "/.*b",
            ".*",
            "/[^/]*/b",
            "/a(?:/.*)?",
            "/b/a.*",
            "/b/a/.*",
            "//.*",
        ];
        let engine = |text: &str| BoundedBacktracker::new(&format!(r"\A(?:{text})\z")).unwrap();
        Self(PATTERNS.map(|text| (Regex::parse(text).unwrap(), engine(text))).into())
    }

    fn matches(&self, regex: &Regex, text: &str) -> bool {
        let (_, engine) = self.0.iter().find(|(known, _)| known == regex).unwrap();
        engine.try_is_match(&mut engine.create_cache(), text).unwrap()
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
        (PathMatch::Prefix(a), PathMatch::Prefix(b)) => {
            a.strip_suffix('/').unwrap_or(a) == b.strip_suffix('/').unwrap_or(b)
        }
        (PathMatch::Template(a), PathMatch::Template(b)) => {
            let normal = |t: &Template| {
                let variable = |part: &str| match part {
                    part if part.ends_with("=**}") => "**".to_owned(),
                    part if part.starts_with('{') => "*".to_owned(),
                    part => format!("={part}"),
                };
                t.as_str().split('/').map(variable).collect::<Vec<_>>()
            };
            normal(a) == normal(b)
        }
        _ => a == b,
    }
}

fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// A request.
#[derive(Debug)]
struct Asked<'a> {
    host: Option<&'a str>,
    path: &'a str,
    query: &'a str,
    method: &'a str,
    lines: &'a [(&'a str, &'a str)],
    peer: Option<&'a SpiffeId>,
}

struct Lines<'a>(&'a [(&'a str, &'a str)], Option<&'a std::cell::Cell<usize>>);

impl Fields for Lines<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        if let Some(count) = self.1 {
            count.set(count.get() + 1);
        }
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }
}

impl Asked<'_> {
    fn find(&self, table: &Table) -> Option<u32> {
        self.with(|request| table.find_id(request))
    }

    fn find_counting(&self, table: &Table, count: &std::cell::Cell<usize>) -> Option<u32> {
        self.with_lines(Lines(self.lines, Some(count)), |request| table.find_id(request))
    }

    fn meets(&self, conditions: &Conditions) -> bool {
        self.with(|request| conditions.first_unmet(request).is_none())
    }

    fn with<R>(&self, with: impl FnOnce(&Request<'_, '_, Lines<'_>>) -> R) -> R {
        self.with_lines(Lines(self.lines, None), with)
    }

    fn with_lines<R>(&self, lines: Lines<'_>, with: impl FnOnce(&Request<'_, '_, Lines<'_>>) -> R) -> R {
        let caller = Caller { listener: "in", port: 1, source: [127, 0, 0, 1].into(), peer: self.peer };
        let call =
            Call { caller, method: self.method.as_bytes(), path: self.path.as_bytes(), fields: &lines };
        with(&Request {
            host: self.host.map(str::as_bytes),
            path: self.path.as_bytes(),
            query: self.query.as_bytes(),
            call: &call,
        })
    }
}

fn exact(value: &str) -> Test {
    Test { what: What::Exact(value.into()), not: false }
}

/// One exact field.
fn header(name: &str, value: &str) -> Conditions {
    Conditions { headers: vec![(name.into(), exact(value))], ..Conditions::default() }
}

/// Hosts as `*`, `*.suffix` or a name; paths as `/exact`, `/prefix/*`, `/{template}` or `~expression`.
fn table(rules: &[(&str, &str, &str)]) -> Table {
    let rules: Vec<_> =
        rules.iter().map(|(host, path, name)| (*host, *path, Conditions::default(), *name)).collect();
    conditional(&rules)
}

fn conditional(rules: &[(&str, &str, Conditions, &str)]) -> Table {
    let mut builder = TableBuilder::default();
    for (host, path, conditions, _) in rules {
        let mut conditions = conditions.clone();
        conditions.headers.retain(|(name, _)| !name.is_empty());
        conditions.normalize();
        let hosts = [host_match(host)].into();
        builder.add(Arc::new(RouteMatch { hosts, path: path_match(path), conditions })).unwrap();
    }
    builder.build(rules.iter().map(|(.., name)| route(name)).collect())
}

fn host_match(host: &str) -> HostMatch {
    match host.strip_prefix('*') {
        Some("") => HostMatch::Any,
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(host.into()),
    }
}

fn path_match(path: &str) -> PathMatch {
    if let Some(regex) = path.strip_prefix('~') {
        return PathMatch::Regex(Regex::parse(regex).unwrap());
    }
    if path.contains('{') {
        return PathMatch::Template(Template::parse(path).unwrap());
    }
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
