//! What each condition means, by examples; and which conditions include which.

use super::*;
use crate::authorize::{Caller, same_name};
use crate::identity::SpiffeId;

struct Lines<'l>(&'l [(&'l str, &'l str)]);

impl Fields for Lines<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(n, _)| same_name(n, name)).map(|(_, value)| value.as_bytes())
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }
}

fn unmet<'c>(conditions: &'c Conditions, query: &str, lines: &[(&str, &str)]) -> Option<Unmet<'c>> {
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap();
    let source = "::ffff:10.1.2.3".parse().unwrap();
    let caller = Caller { listener: "inbound", port: 8080, source, peer: Some(&peer) };
    let call = Call { caller, method: b"GET", path: b"/", fields: &Lines(lines) };
    let request = Request { host: Some(b"h"), path: b"/", query: query.as_bytes(), call: &call };
    conditions.first_unmet(&request)
}

fn test(what: What) -> Test {
    Test { what, not: false }
}

fn not(what: What) -> Test {
    Test { what, not: true }
}

fn exact(text: &str) -> What {
    What::Exact(text.into())
}

fn regex(text: &str) -> What {
    What::Regex(Regex::parse(text).unwrap())
}

fn header(what: Test) -> Conditions {
    Conditions { headers: vec![("x-a".into(), what)], ..Conditions::default() }
}

fn query(what: Test) -> Conditions {
    Conditions { query: vec![("a b".into(), what)], ..Conditions::default() }
}

fn cookie(what: Test) -> Conditions {
    Conditions { cookies: vec![("a".into(), what)], ..Conditions::default() }
}

#[test]
fn a_value_passes_its_test() {
    let prefix = |text: &str| What::Prefix(text.into());
    let suffix = |text: &str| What::Suffix(text.into());
    for (what, value, passes) in [
        (exact("7"), "7", true),
        (exact("7"), "77", false),
        (exact(""), "", true),
        (prefix("ab"), "abc", true),
        (prefix("ab"), "cab", false),
        (suffix("ab"), "cab", true),
        (suffix("ab"), "abc", false),
        (regex("a+"), "aaa", true),
        (regex("a+"), "baaa", false),
        (What::Present, "", true),
        (What::Range(-5, 10), "-5", true),
        (What::Range(-5, 10), "9", true),
        (What::Range(-5, 10), "10", false),
        (What::Range(-5, 10), "007", true),
        (What::Range(-5, 10), "+7", false),
        (What::Range(-5, 10), "7.0", false),
        (What::Range(-5, 10), "", false),
        (What::Range(-5, 10), "-", false),
        (What::Range(i64::MIN, i64::MAX), "99999999999999999999", false),
    ] {
        let lines = [("X-A", value)];
        assert_eq!(unmet(&header(test(what.clone())), "", &lines).is_none(), passes, "{what:?} {value:?}");
        assert_eq!(
            unmet(&header(not(what.clone())), "", &lines).is_none(),
            !passes,
            "not {what:?} {value:?}"
        );
    }
}

#[test]
fn what_is_not_there_passes_only_what_must_not_be() {
    for what in [exact(""), What::Prefix("a".into()), regex(".*"), What::Present, What::Range(0, 1)] {
        for conditions in [header, query, cookie] {
            assert!(
                unmet(&conditions(test(what.clone())), "b=1", &[("cookie", "b=1")]).is_some(),
                "{what:?}"
            );
            assert!(unmet(&conditions(not(what.clone())), "b=1", &[("cookie", "b=1")]).is_none(), "{what:?}");
        }
    }
}

#[test]
fn several_lines_of_a_field_are_joined_by_commas() {
    let lines = [("x-a", "1"), ("x-b", "9"), ("X-A", "2, 3")];
    assert_eq!(unmet(&header(test(exact("1,2, 3"))), "", &lines), None);
    assert!(unmet(&header(test(exact("1"))), "", &lines).is_some());
    assert!(unmet(&header(test(exact("1"))), "", &[("x_a", "1")]).is_some(), "another name");
    let long = "v".repeat(1000);
    assert_eq!(
        unmet(&header(test(exact(&format!("{long},{long}")))), "", &[("x-a", &long), ("x-a", &long)]),
        None
    );
}

#[test]
fn the_first_parameter_counts_decoded() {
    for (asked, value) in [
        ("a+b=1&a+b=2", "1"),
        ("c=1&a%20b=%31%2B+", "1+ "),
        ("%61+b=", ""),
        ("a+b", ""),
        ("&&a+b=%zz%4", "%zz%4"),
        ("a+b=1=2", "1=2"),
    ] {
        assert_eq!(unmet(&query(test(exact(value))), asked, &[]), None, "{asked}");
    }
    for asked in ["", "a=1", "A+B=1", "a+bc=1", "=1", "x=a+b"] {
        assert!(unmet(&query(test(What::Present)), asked, &[]).is_some(), "{asked}");
    }
}

#[test]
fn the_first_cookie_counts_as_it_was_sent() {
    for (line, value) in [
        ("a=1; a=2", "1"),
        ("b=2;a=\"1\"", "\"1\""),
        ("c;  a=1=2 ", "1=2"),
        ("ab=3; a=", ""),
        ("a=%31", "%31"),
    ] {
        assert_eq!(unmet(&cookie(test(exact(value))), "", &[("cookie", line)]), None, "{line}");
    }
    assert_eq!(unmet(&cookie(test(exact("1"))), "", &[("cookie", "b=2"), ("Cookie", "a=1")]), None);
    for line in ["A=1", "ab=1", "b=a=1", "a", ""] {
        assert!(unmet(&cookie(test(What::Present)), "", &[("cookie", line)]).is_some(), "{line}");
    }
}

#[test]
fn who_calls_and_where_is_asked_for() {
    let none = Conditions::default;
    let from = |text: &str| Conditions { from: vec![IdMatch::parse(text).unwrap()], ..none() };
    let source = |text: &str| Conditions { sources: vec![text.parse().unwrap()], ..none() };
    let method = |text: &str| Conditions { methods: vec!["PUT".into(), text.into()], ..none() };
    let listener = |text: &str| Conditions { listeners: vec![text.into()], ..none() };
    let port = |port| Conditions { ports: vec![1, port], ..none() };
    for (conditions, expected) in [
        (from("spiffe://mesh.local/ns/shop/sa/web"), None),
        (from("spiffe://mesh.local/*"), None),
        (from("spiffe://other/*"), Some(Unmet::From)),
        (source("10.0.0.0/8"), None),
        (source("10.0.0.0/16"), Some(Unmet::Source)),
        (method("GET"), None),
        (method("get"), Some(Unmet::Method)),
        (listener("inbound"), None),
        (listener("outbound"), Some(Unmet::Listener)),
        (port(8080), None),
        (port(8081), Some(Unmet::Port)),
    ] {
        assert_eq!(unmet(&conditions, "", &[]), expected, "{conditions:?}");
    }
}

/// Labels that a workload has which is known by these, empty for not.
fn labelled(labels: &[(&str, &str)], from: &str, source: &str) -> Conditions {
    let labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let from = IdMatch::parse(from).ok().into_iter().collect();
    let sources = source.parse().ok().into_iter().collect();
    let workloads = vec![Workload { from, sources }];
    Conditions { labels: Some(Labelled { labels, workloads }), ..Conditions::default() }
}

#[test]
fn a_workload_is_known_by_its_identity_and_its_address_as_far_as_they_are_given() {
    const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";
    for (from, source, is) in [
        (WEB, "", true),
        ("spiffe://mesh.local/ns/shop/sa/other", "", false),
        ("", "10.1.0.0/16", true),
        ("", "10.2.0.0/16", false),
        (WEB, "10.1.0.0/16", true),
        (WEB, "10.2.0.0/16", false),
        ("spiffe://mesh.local/ns/shop/sa/other", "10.1.0.0/16", false),
    ] {
        let conditions = labelled(&[("app", "web")], from, source);
        assert_eq!(unmet(&conditions, "", &[]).is_none(), is, "{from} {source}");
    }
    let nobody = Labelled { labels: vec![("app".into(), "web".into())], workloads: Vec::new() };
    let conditions = Conditions { labels: Some(nobody.clone()), ..Conditions::default() };
    assert_eq!(unmet(&conditions, "", &[]), Some(Unmet::Labels(&nobody)));
}

#[test]
fn grpc_is_told_by_its_media_type() {
    let grpc = Conditions { grpc: true, ..Conditions::default() };
    for (kind, is) in [
        ("application/grpc", true),
        ("Application/gRPC+proto", true),
        ("application/grpc; charset=utf-8", true),
        ("application/grpc-web", true),
        ("application/grpc-web-text+proto", true),
        ("application/grpcx", false),
        ("application/grpc-webx", false),
        ("application/grpc-x", false),
        ("application/json", false),
        ("", false),
    ] {
        assert_eq!(unmet(&grpc, "", &[("content-type", kind)]).is_none(), is, "{kind}");
    }
}

#[test]
fn wider_conditions_include_narrower_ones_and_nothing_else() {
    let none = Conditions::default();
    let method = |methods: &[&str]| Conditions {
        methods: methods.iter().map(|m| Box::from(*m)).collect(),
        ..Conditions::default()
    };
    let from = |text: &str| Conditions { from: vec![IdMatch::parse(text).unwrap()], ..Conditions::default() };
    let prefix = |text: &str| What::Prefix(text.into());
    let range = What::Range;
    for (wide, narrow, includes) in [
        (none.clone(), header(test(exact("1"))), true),
        (header(test(exact("1"))), none, false),
        (method(&["GET", "PUT"]), method(&["GET"]), true),
        (method(&["GET"]), method(&["GET", "PUT"]), false),
        (from("*"), from("spiffe://a/*"), true),
        (from("spiffe://a/*"), from("spiffe://a/b"), true),
        (from("spiffe://a/b"), from("spiffe://a/*"), false),
        (labelled(&[("a", "1")], "*", ""), labelled(&[("a", "1"), ("b", "2")], "*", ""), true),
        (labelled(&[("a", "1"), ("b", "2")], "*", ""), labelled(&[("a", "1")], "*", ""), false),
        (labelled(&[("a", "1")], "*", ""), Conditions::default(), false),
        (header(test(What::Present)), header(test(exact("1"))), true),
        (header(test(prefix("1"))), header(test(prefix("12"))), true),
        (header(test(prefix("12"))), header(test(prefix("1"))), false),
        (header(test(regex("[0-9]+"))), header(test(exact("12"))), true),
        (header(test(regex("[0-9]+"))), header(test(prefix("12"))), false),
        (header(test(range(0, 10))), header(test(range(1, 10))), true),
        (header(test(range(0, 10))), header(test(range(1, 11))), false),
        (header(not(exact("1"))), header(test(exact("2"))), true),
        (header(not(exact("1"))), header(test(exact("1"))), false),
        (header(not(exact("1"))), header(not(What::Present)), true),
        (header(not(What::Present)), header(not(exact("1"))), false),
        (header(not(prefix("12"))), header(not(prefix("1"))), true),
        (header(not(prefix("1"))), header(not(prefix("12"))), false),
        (header(test(exact("1"))), query(test(exact("1"))), false),
    ] {
        assert_eq!(wide.include(&narrow), includes, "{wide:?} {narrow:?}");
    }
}
