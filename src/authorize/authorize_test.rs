//! Tables of what rules mean, and a model that decides the slow and obvious way.

use super::*;

/// Fields as they came.
struct Lines<'l>(&'l [(&'l str, &'l str)]);

impl Fields for Lines<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(n, _)| same_name(n, name)).map(|(_, value)| value.as_bytes())
    }
}

fn made(rules: Vec<Rule>, default: Verdict) -> Policy {
    Policy::new(rules, default).unwrap()
}

fn text(text: &str) -> TextMatch {
    match text.strip_suffix('*') {
        Some("") => TextMatch::Any,
        Some(prefix) => TextMatch::Prefix(prefix.into()),
        None => TextMatch::Exact(text.into()),
    }
}

fn rule(name: &str, action: Action) -> Rule {
    Rule {
        name: name.into(),
        action,
        listeners: Vec::new(),
        from: Vec::new(),
        sources: Vec::new(),
        ports: Vec::new(),
        methods: Vec::new(),
        paths: Vec::new(),
        headers: Vec::new(),
    }
}

fn paths(mut rule: Rule, paths: &[&str]) -> Rule {
    rule.paths = paths.iter().map(|path| text(path)).collect();
    rule
}

fn methods(mut rule: Rule, methods: &[&str]) -> Rule {
    rule.methods = methods.iter().map(|method| Box::from(*method)).collect();
    rule
}

fn from(mut rule: Rule, from: &[&str]) -> Rule {
    rule.from = from.iter().map(|id| IdMatch::parse(id).unwrap()).collect();
    rule
}

fn header(mut rule: Rule, name: &str, value: &str) -> Rule {
    rule.headers.push((name.into(), text(value)));
    rule
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn caller(peer: Option<&SpiffeId>) -> Caller<'_> {
    Caller { listener: "inbound", port: 8080, source: [127, 0, 0, 1].into(), peer }
}

/// The verdict and the name of the rule that decided.
fn decide(
    policy: &Policy,
    peer: Option<&SpiffeId>,
    method: &str,
    path: &str,
    lines: &[(&str, &str)],
) -> (bool, String) {
    let call = Call {
        caller: caller(peer),
        method: method.as_bytes(),
        path: path.as_bytes(),
        fields: &Lines(lines),
    };
    let decision = policy.decide(&call, |_| {});
    let rule = decision.rule.map_or("", |id| &policy.rule(id).unwrap().name);
    (decision.verdict == Verdict::Allow, rule.to_owned())
}

fn passes(policy: &Policy, path: &str) -> bool {
    decide(policy, None, "GET", path, &[]).0
}

#[test]
fn a_deny_wins_then_an_allow_then_the_default() {
    let allow = || paths(rule("allow", Action::Allow), &["/a*"]);
    let deny = || methods(rule("deny", Action::Deny), &["POST"]);
    for rules in [vec![allow(), deny()], vec![deny(), allow()]] {
        let policy = made(rules, Verdict::Deny);
        for (method, path, want) in [
            ("GET", "/a", (true, "allow")),
            ("POST", "/a", (false, "deny")),
            ("POST", "/b", (false, "deny")),
            ("GET", "/b", (false, "")),
        ] {
            assert_eq!(decide(&policy, None, method, path, &[]), (want.0, want.1.into()), "{method} {path}");
        }
    }
    assert!(passes(&made(Vec::new(), Verdict::Allow), "/"));
    assert!(!passes(&made(Vec::new(), Verdict::Deny), "/"));
    assert!(passes(&Policy::default(), "/"), "who configures nothing changes nothing");
}

#[test]
fn every_condition_must_hold_and_one_value_of_each() {
    let one = rule("r", Action::Allow);
    let one = methods(paths(from(one, &["spiffe://a/x", "spiffe://b/*"]), &["/p", "/q*"]), &["GET", "PUT"]);
    let mut one = header(header(one, "x-a", "1"), "x-b", "2*");
    one.sources = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    one.ports = vec![1, 8080];
    one.listeners = vec!["other".into(), "inbound".into()];
    let policy = made(vec![one], Verdict::Deny);
    let fields = [("X-A", "1"), ("x-b", "23")];
    let peer = id("spiffe://b/c");
    assert!(decide(&policy, Some(&peer), "PUT", "/q/r", &fields).0);
    assert!(decide(&policy, Some(&id("spiffe://a/x")), "GET", "/p", &fields).0);
    for (peer, method, path, fields) in [
        (Some("spiffe://a/y"), "PUT", "/q/r", &fields[..]),
        (None, "PUT", "/q/r", &fields[..]),
        (Some("spiffe://b/c"), "PATCH", "/q/r", &fields[..]),
        (Some("spiffe://b/c"), "put", "/q/r", &fields[..]),
        (Some("spiffe://b/c"), "PUT", "/p/r", &fields[..]),
        (Some("spiffe://b/c"), "PUT", "/q/r", &fields[..1]),
        (Some("spiffe://b/c"), "PUT", "/q/r", &[("x-a", "1"), ("x-b", "32")][..]),
    ] {
        let peer = peer.map(id);
        assert!(
            !decide(&policy, peer.as_ref(), method, path, fields).0,
            "{peer:?} {method} {path} {fields:?}"
        );
    }
    let elsewhere = [
        Caller { listener: "third", ..caller(Some(&peer)) },
        Caller { port: 80, ..caller(Some(&peer)) },
        Caller { source: [10, 0, 0, 1].into(), ..caller(Some(&peer)) },
    ];
    let fields = Lines(&fields);
    for caller in elsewhere {
        let call = Call { caller, method: b"PUT", path: b"/q", fields: &fields };
        assert_eq!(policy.decide(&call, |_| {}).verdict, Verdict::Deny, "{caller:?}");
    }
    // An IPv4 caller on an IPv6 socket is what it is.
    let caller = Caller { source: "::ffff:127.0.0.1".parse().unwrap(), ..caller(Some(&peer)) };
    assert_eq!(
        policy.decide(&Call { caller, method: b"PUT", path: b"/q", fields: &fields }, |_| {}).verdict,
        Verdict::Allow
    );
}

#[test]
fn who_proves_no_identity_meets_no_condition_on_it() {
    let policy = made(vec![from(rule("r", Action::Allow), &["*"])], Verdict::Deny);
    assert!(!decide(&policy, None, "GET", "/", &[]).0);
    assert!(decide(&policy, Some(&id("spiffe://any/one")), "GET", "/", &[]).0);
}

/// T-8: the right trust domain and the wrong account.
#[test]
fn t08_another_account_of_the_same_domain_is_not_the_one_allowed() {
    let policy = made(
        vec![from(rule("cart", Action::Allow), &["spiffe://mesh.local/ns/shop/sa/cart"])],
        Verdict::Deny,
    );
    assert!(decide(&policy, Some(&id("spiffe://mesh.local/ns/shop/sa/cart")), "GET", "/", &[]).0);
    for other in [
        "spiffe://mesh.local/ns/shop/sa/carts",
        "spiffe://mesh.local/ns/shop/sa/cart/x",
        "spiffe://mesh.local",
    ] {
        assert!(!decide(&policy, Some(&id(other)), "GET", "/", &[]).0, "{other}");
    }
}

const AMBIGUOUS: [&str; 30] = [
    "",
    "a",
    "//admin",
    "/admin//x",
    "/x/../admin",
    "/./admin",
    "/admin/..",
    "/admin/.",
    "/%2e%2E/admin",
    "/.%2e/admin",
    "/admin%2fx",
    "/admin%2Fx",
    "/x%5c..%5cadmin",
    "/x\\admin",
    "/admin;x=y/z",
    "/admin%3bx",
    "/%252e%252e/admin",
    "/admin%00.css",
    "/admin%0a",
    "/admin%3fx",
    "/admin%23x",
    "/admin%",
    "/admin%2",
    "/admin%zz",
    "/%c0%af/admin",
    "/%c0%ae%c0%ae/admin",
    "/%e0%80%af",
    "/%u002f",
    "/admin%7f",
    "/%f0%80%80%af",
];

#[test]
fn a_path_that_is_passed_over_quickly_has_one_meaning() {
    const OCTETS: &[u8] = b"/.%;\\?2ea\x1f\x7f\x80\xc0\xe0";
    let mut paths = vec![b"/".to_vec()];
    for _ in 0..4 {
        paths =
            paths.iter().flat_map(|path| OCTETS.iter().map(|octet| [path, &[*octet][..]].concat())).collect();
        for path in &paths {
            assert_eq!(ambiguity(path), matching::ambiguity_below(&path[1..]), "{}", path.escape_ascii());
            assert!(!has_dot_segment(path) || ambiguity(path).is_some(), "{}", path.escape_ascii());
        }
    }
}

#[test]
fn a_dot_segment_is_found_however_it_is_spelt() {
    for path in [
        "/..",
        "/.",
        "/a/../b",
        "/a/./b",
        "/a/..",
        "/%2e%2E/a",
        "/.%2e/a",
        "/a/..%2fb",
        "/a%2F..%2Fb",
        "/a/..\\b",
        "/a\\..",
        "/x%5c..%5ca",
        "/a/..;x=y/b",
        "/a/..;",
        "/a/.;/b",
        "/a;x/%2e%2e;y",
        "/a/..%3bx/b",
    ] {
        assert!(has_dot_segment(path.as_bytes()), "{path}");
        assert!(ambiguity(path.as_bytes()).is_some(), "{path}");
    }
    for path in [
        "",
        "*",
        "/",
        "/a//b",
        "/...",
        "/.a/..b/c./d..",
        "/.well-known/x",
        "/a;x=../b",
        "/a;..",
        "/a%2fb",
        "/a\\b",
        "/%61.%2e.",
        "/a%2e",
        "/%",
        "/.%",
        "/..%zz",
        // Decoded once: that it may be decoded twice makes it ambiguous.
        "/%252e%252e/a",
    ] {
        assert!(!has_dot_segment(path.as_bytes()), "{path}");
    }
}

#[test]
fn a_path_of_several_meanings_meets_every_deny_and_no_allow() {
    let deny = made(vec![paths(rule("deny", Action::Deny), &["/admin", "/admin/*"])], Verdict::Allow);
    let allow = made(vec![paths(rule("allow", Action::Allow), &["/public/*", "/*"])], Verdict::Deny);
    for path in AMBIGUOUS {
        assert!(ambiguity(path.as_bytes()).is_some(), "{path:?}");
        assert!(!passes(&deny, path), "{path:?}");
        assert!(!passes(&allow, path), "{path:?}");
        assert!(
            !passes(&allow, &format!("/public{path}"))
                || ambiguity(format!("/public{path}").as_bytes()).is_none()
        );
        let call = Call { caller: caller(None), method: b"GET", path: path.as_bytes(), fields: &Lines(&[]) };
        assert!(deny.decide(&call, |_| {}).ambiguous_path, "{path:?}");
    }
    for path in [
        "/",
        "*",
        "/a",
        "/a/",
        "/a.b/..c/...",
        "/%41",
        "/a%20b",
        "/%C3%a4",
        "/a%40b",
        "/.well-known/x",
        "/a,b=c&d+e:@!$'()~",
    ] {
        assert_eq!(ambiguity(path.as_bytes()), None, "{path:?}");
        assert!(passes(&deny, path), "{path:?}");
        assert_eq!(passes(&allow, path), path != "*", "{path:?}");
    }
    // Where no rule asks for paths, they do not matter.
    let policy = made(vec![methods(rule("r", Action::Deny), &["PUT"])], Verdict::Allow);
    assert!(passes(&policy, "/a/../b") && passes(&policy, "/a%2fb"));
    // Nor for whom a rule does not mean.
    let policy = made(vec![methods(paths(rule("r", Action::Deny), &["/admin"]), &["PUT"])], Verdict::Allow);
    assert!(passes(&policy, "/a/../b"));
    // An allow that does not ask for the path holds.
    let rules = vec![paths(rule("one", Action::Allow), &["/a"]), rule("all", Action::Allow)];
    assert!(passes(&made(rules, Verdict::Deny), "/a/../b"));
}

#[test]
fn a_path_means_what_it_decodes_to() {
    let both = |path: &str, asked: &str| {
        let deny = made(vec![paths(rule("r", Action::Deny), &[path])], Verdict::Allow);
        let allow = made(vec![paths(rule("r", Action::Allow), &[path])], Verdict::Deny);
        (!passes(&deny, asked), passes(&allow, asked))
    };
    for (path, asked, denied, allowed) in [
        ("/admin", "/admin", true, true),
        ("/admin", "/%61dmin", true, true),
        ("/admin", "/%61%64%6D%69%6e", true, true),
        ("/a@b", "/a%40b", true, true),
        ("/a%40b", "/a@b", true, true),
        ("/%C3%A4", "/%c3%a4", true, true),
        ("/admin", "/admins", false, false),
        ("/admin", "/Admin", false, false),
        ("/admin", "/admin/", true, false),
        ("/admin/", "/admin", true, false),
        ("/admin", "/admin/x", false, false),
        ("/admin/*", "/admin/x", true, true),
        ("/admin/*", "/admin/", true, true),
        ("/admin/*", "/admin", true, false),
        ("/admin/*", "/administrator", false, false),
        ("/admin*", "/administrator", true, true),
        ("/admin*", "/%61dministrator", true, true),
        ("*", "/anything", true, true),
        ("*", "*", true, true),
        ("/", "*", false, false),
    ] {
        assert_eq!(both(path, asked), (denied, allowed), "{path} for {asked}");
    }
}

#[test]
fn fields_that_come_twice_or_in_disguise_decide_nothing_in_the_callers_favour() {
    let deny = made(vec![header(rule("r", Action::Deny), "x-role", "guest")], Verdict::Allow);
    let allow = made(vec![header(rule("r", Action::Allow), "x-role", "admin")], Verdict::Deny);
    for (lines, denied, allowed) in [
        (&[("x-role", "guest")][..], true, false),
        (&[("X-Role", "admin")], false, true),
        (&[("x-role", "admin"), ("x-role", "guest")], true, false),
        (&[("x-role", "guest"), ("x-role", "admin")], true, false),
        (&[("x-role", "admin"), ("X_ROLE", "guest")], true, false),
        (&[("x-role", "admin, guest")], true, false),
        (&[("x-role", "admin,admin")], false, false),
        (&[("x-role", "admin"), ("x-role", "admin")], false, true),
        (&[("x-role", "Admin")], false, false),
        (&[("x-role", "")], false, false),
        (&[("x-roles", "guest")], false, false),
        (&[], false, false),
    ] {
        assert_eq!(!decide(&deny, None, "GET", "/", lines).0, denied, "{lines:?}");
        assert_eq!(decide(&allow, None, "GET", "/", lines).0, allowed, "{lines:?}");
    }
    let present = made(vec![header(rule("r", Action::Deny), "x-debug", "*")], Verdict::Allow);
    assert!(!decide(&present, None, "GET", "/", &[("x-debug", "")]).0);
    assert!(decide(&present, None, "GET", "/", &[]).0);
}

#[test]
fn a_method_is_allowed_as_it_is_written_and_denied_in_any_case() {
    let deny = made(vec![methods(rule("r", Action::Deny), &["POST"])], Verdict::Allow);
    let allow = made(vec![methods(rule("r", Action::Allow), &["POST"])], Verdict::Deny);
    for (method, denied, allowed) in [("POST", true, true), ("post", true, false), ("POSTS", false, false)] {
        assert_eq!(!decide(&deny, None, method, "/", &[]).0, denied, "{method}");
        assert_eq!(decide(&allow, None, method, "/", &[]).0, allowed, "{method}");
    }
}

#[test]
fn audit_rules_are_noted_whatever_is_decided() {
    let rules = vec![
        rule("first", Action::Audit),
        methods(rule("deny", Action::Deny), &["PUT"]),
        paths(rule("other", Action::Audit), &["/x"]),
        from(rule("known", Action::Audit), &["spiffe://a/b"]),
    ];
    let policy = made(rules, Verdict::Allow);
    let audited = |peer: Option<&SpiffeId>, method: &str| {
        let call = Call { caller: caller(peer), method: method.as_bytes(), path: b"/", fields: &Lines(&[]) };
        let mut names = Vec::new();
        let decision = policy.decide(&call, |id| names.push(policy.rule(id).unwrap().name.to_string()));
        let first = decision.audited.iter().flatten().map(|id| policy.rule(*id).unwrap().name.to_string());
        assert_eq!(first.collect::<Vec<_>>(), names);
        (decision.verdict, names)
    };
    assert_eq!(audited(None, "GET"), (Verdict::Allow, vec!["first".into()]));
    assert_eq!(audited(None, "PUT"), (Verdict::Deny, vec!["first".into()]));
    let (verdict, mut names) = audited(Some(&id("spiffe://a/b")), "GET");
    names.sort();
    assert_eq!((verdict, names), (Verdict::Allow, vec!["first".into(), "known".into()]));
}

#[test]
fn of_many_audits_the_first_four_are_told_and_all_are_counted() {
    let policy = made((0..9).map(|n| rule(&n.to_string(), Action::Audit)).collect(), Verdict::Allow);
    let call = Call { caller: caller(None), method: b"GET", path: b"/", fields: &Lines(&[]) };
    let mut noted = 0;
    let decision = policy.decide(&call, |_| noted += 1);
    assert_eq!((noted, decision.audited.map(|id| id.unwrap().index())), (9, [0, 1, 2, 3]));
    assert!(size_of::<Decision>() <= 12, "there is one in every connection's future");
}

#[test]
fn there_are_not_more_rules_than_can_be_told_apart() {
    let of = |count| Policy::new(vec![rule("r", Action::Deny); count], Verdict::Allow);
    assert_eq!(of(Policy::RULES_MAX + 1), Err(TooManyRules));
    let policy = of(Policy::RULES_MAX).unwrap();
    assert!(RuleId::at(Policy::RULES_MAX - 1).is_some_and(|last| policy.rule(last).is_some()));
    assert!(!passes(&policy, "/"));
}

#[test]
fn a_connection_is_decided_when_no_request_can_change_it() {
    let peer = id("spiffe://a/b");
    let on = |rules: Vec<Rule>, default| {
        let decided = made(rules, default).decide_connection(&caller(Some(&peer)));
        decided.map(|decision| decision.verdict)
    };
    use Action::{Allow, Audit, Deny};
    let all = |action| rule("all", action);
    let some = |action| paths(rule("some", action), &["/a"]);
    let others = |action| from(rule("others", action), &["spiffe://a/other"]);
    for (rules, with_allow, with_deny) in [
        (vec![], Some(Verdict::Allow), Some(Verdict::Deny)),
        (vec![all(Audit), some(Audit)], Some(Verdict::Allow), Some(Verdict::Deny)),
        (vec![all(Allow)], Some(Verdict::Allow), Some(Verdict::Allow)),
        (vec![all(Deny)], Some(Verdict::Deny), Some(Verdict::Deny)),
        (vec![all(Allow), all(Deny)], Some(Verdict::Deny), Some(Verdict::Deny)),
        (vec![some(Allow)], Some(Verdict::Allow), None),
        (vec![some(Deny)], None, Some(Verdict::Deny)),
        (vec![some(Deny), all(Allow)], None, None),
        (vec![some(Deny), some(Allow)], None, None),
        (vec![others(Allow)], Some(Verdict::Allow), Some(Verdict::Deny)),
        (vec![others(Deny)], Some(Verdict::Allow), Some(Verdict::Deny)),
        (vec![paths(all(Deny), &["*"])], Some(Verdict::Deny), Some(Verdict::Deny)),
    ] {
        assert_eq!(on(rules.clone(), Verdict::Allow), with_allow, "{rules:#?}");
        assert_eq!(on(rules.clone(), Verdict::Deny), with_deny, "{rules:#?}");
    }
}

/// Decides by the letter: every rule, every condition, on strings.
mod model {
    use super::*;

    pub(super) struct Asked<'a> {
        pub(super) caller: Caller<'a>,
        pub(super) method: &'a str,
        pub(super) path: &'a str,
        pub(super) lines: &'a [(&'a str, &'a str)],
    }

    pub(super) fn decide(
        rules: &[Rule],
        default: Verdict,
        asked: &Asked<'_>,
    ) -> (Verdict, Option<usize>, Vec<usize>) {
        let of = |action| {
            let mut found = Vec::new();
            for (n, rule) in rules.iter().enumerate() {
                if rule.action == action && is_met(rule, asked) {
                    found.push(n);
                }
            }
            found
        };
        let audited = of(Action::Audit);
        match (of(Action::Deny).first(), of(Action::Allow).first()) {
            (Some(n), _) => (Verdict::Deny, Some(*n), audited),
            (None, Some(n)) => (Verdict::Allow, Some(*n), audited),
            (None, None) => (default, None, audited),
        }
    }

    fn is_met(rule: &Rule, asked: &Asked<'_>) -> bool {
        let wide = rule.action != Action::Allow;
        let caller = &asked.caller;
        if !rule.listeners.is_empty() && !rule.listeners.iter().any(|l| **l == *caller.listener) {
            return false;
        }
        if !rule.from.is_empty() {
            let Some(peer) = caller.peer else { return false };
            let met = |from: &IdMatch| match from.to_string().strip_suffix('*') {
                Some("") => true,
                Some(before) => peer.as_str().starts_with(before),
                None => from.to_string() == peer.as_str(),
            };
            if !rule.from.iter().any(met) {
                return false;
            }
        }
        if !rule.sources.is_empty() && !rule.sources.iter().any(|range| range.contains(&caller.source)) {
            return false;
        }
        if !rule.ports.is_empty() && !rule.ports.contains(&caller.port) {
            return false;
        }
        let same = |meant: &str| {
            if wide { meant.to_lowercase() == asked.method.to_lowercase() } else { meant == asked.method }
        };
        if !rule.methods.is_empty() && !rule.methods.iter().any(|m| same(m)) {
            return false;
        }
        if !rule.paths.is_empty() && !rule.paths.iter().any(|path| path_is_met(path, asked.path, wide)) {
            return false;
        }
        rule.headers.iter().all(|(name, test)| field_is_met(name, test, asked.lines, wide))
    }

    fn path_is_met(test: &TextMatch, path: &str, wide: bool) -> bool {
        if *test == TextMatch::Any {
            return true;
        }
        let Some(path) = unescaped(path) else { return wide };
        match test {
            TextMatch::Exact(text) => {
                let text = unescaped(text).unwrap();
                path == text || wide && (path == format!("{text}/") || format!("{path}/") == text)
            }
            TextMatch::Prefix(text) => {
                let text = unescaped(text).unwrap();
                path.starts_with(&text) || wide && format!("{path}/") == text
            }
            TextMatch::Any => true,
        }
    }

    /// Nothing for what has several meanings. The random paths have few kinds of those.
    fn unescaped(path: &str) -> Option<String> {
        if path == "*" {
            return Some(path.into());
        }
        let simple = path.replace("%61", "a").replace("%41", "A").replace("%20", " ");
        let bad = ["%", ";", "\\"].iter().any(|bad| simple.contains(bad));
        let mut segments = simple.split('/');
        if bad || segments.next() != Some("") {
            return None;
        }
        let segments: Vec<_> = segments.collect();
        let last = segments.len() - 1;
        let sound = |(n, s): (usize, &&str)| !matches!(*s, "." | "..") && (n == last || !s.is_empty());
        segments.iter().enumerate().all(sound).then_some(simple)
    }

    fn field_is_met(name: &str, test: &TextMatch, lines: &[(&str, &str)], wide: bool) -> bool {
        let met = |value: &str| match test {
            TextMatch::Exact(text) => **text == *value,
            TextMatch::Prefix(text) => value.starts_with(&**text),
            TextMatch::Any => true,
        };
        let canonical = |name: &str| name.to_lowercase().replace('_', "-");
        let own: Vec<&str> =
            lines.iter().filter(|(n, _)| canonical(n) == canonical(name)).map(|(_, v)| *v).collect();
        if wide {
            own.iter().any(|v| met(v) || v.split(',').any(|member| met(member.trim())))
        } else {
            !own.is_empty() && own.iter().all(|v| met(v))
        }
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "seeds are printed, so that a failure can be repeated")]
fn the_index_decides_as_a_model_that_asks_every_rule() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = variable("RINGMESH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cases = variable("RINGMESH_CASES").map_or(3_000, |cases| usize::try_from(cases).unwrap());
    println!("RINGMESH_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut denied, mut by_rule, mut audits) = (0, 0, 0);
    for _ in 0..cases {
        let rules: Vec<Rule> = (0..rng.usize(0..12)).map(|n| random_rule(&mut rng, n)).collect();
        let default = if rng.bool() { Verdict::Allow } else { Verdict::Deny };
        let policy = made(rules.clone(), default);
        for _ in 0..8 {
            let peer = (rng.u8(..4) > 0).then(|| id(pick(&mut rng, &IDS)));
            let caller = Caller {
                listener: pick(&mut rng, &LISTENERS),
                port: pick(&mut rng, &PORTS),
                source: pick(&mut rng, &ADDRESSES).parse().unwrap(),
                peer: peer.as_ref(),
            };
            let lines: Vec<_> = (0..rng.usize(0..4))
                .map(|_| (pick(&mut rng, &["x-a", "X_A", "x-b", "x-c"]), pick(&mut rng, &VALUES)))
                .collect();
            let (method, path) = (pick(&mut rng, &METHODS), pick(&mut rng, &PATHS));
            let call =
                Call { caller, method: method.as_bytes(), path: path.as_bytes(), fields: &Lines(&lines) };
            let mut noted = Vec::new();
            let decision = policy.decide(&call, |id| noted.push(id.index()));
            let asked = model::Asked { caller, method, path, lines: &lines };
            let (verdict, rule, mut audited) = model::decide(&rules, default, &asked);
            noted.sort_unstable();
            audited.sort_unstable();
            let rule_told = decision.rule.map(RuleId::index);
            assert_eq!(
                (decision.verdict, rule_told, &noted),
                (verdict, rule, &audited),
                "{caller:?} {method} {path} {lines:?}\n{rules:#?}"
            );
            if let Some(surely) = policy.decide_connection(&caller) {
                assert_eq!(surely.verdict, verdict, "{caller:?} {method} {path} {lines:?}\n{rules:#?}");
            }
            denied += usize::from(verdict == Verdict::Deny);
            by_rule += usize::from(rule.is_some());
            audits += audited.len();
        }
    }
    let all = cases * 8;
    println!("of {all}: {denied} denied, {by_rule} by a rule, {audits} audits");
    assert!(
        denied > all / 5 && denied < all * 4 / 5 && by_rule > all / 5 && audits > all / 5,
        "the cases are lopsided"
    );
}

const LISTENERS: [&str; 3] = ["inbound", "outbound", "third"];
const IDS: [&str; 4] = ["spiffe://a/x", "spiffe://a/y", "spiffe://a/y/z", "spiffe://b/x"];
const PORTS: [u16; 3] = [80, 443, 8080];
const ADDRESSES: [&str; 4] = ["127.0.0.1", "10.1.2.3", "10.9.9.9", "::1"];
const METHODS: [&str; 4] = ["GET", "get", "POST", "DELETE"];
const VALUES: [&str; 6] = ["1", "12", "2", "1, 2", "", "2,1"];
const PATHS: [&str; 14] = [
    "/", "/a", "/a/", "/a/b", "/%61", "/%61/b", "/ab", "/A", "/a/../b", "//a", "/a;b", "/a%2fb", "/a%20b",
    "*",
];

fn pick<T: Copy>(rng: &mut fastrand::Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn random_rule(rng: &mut fastrand::Rng, n: usize) -> Rule {
    let mut random =
        rule(&format!("rule-{n}"), pick(rng, &[Action::Allow, Action::Deny, Action::Audit, Action::Allow]));
    let some = |rng: &mut fastrand::Rng| if rng.u8(..3) == 0 { rng.usize(1..4) } else { 0 };
    random.listeners = (0..some(rng)).map(|_| Arc::from(pick(rng, &LISTENERS[..2]))).collect();
    let ids = [&IDS[..], &["spiffe://a/*", "spiffe://a/y/*", "*"]].concat();
    random.from = (0..some(rng)).map(|_| IdMatch::parse(pick(rng, &ids)).unwrap()).collect();
    random.sources =
        (0..some(rng)).map(|_| pick(rng, &["127.0.0.0/8", "10.1.0.0/16", "::/0"]).parse().unwrap()).collect();
    random.ports = (0..some(rng)).map(|_| pick(rng, &PORTS)).collect();
    random.methods = (0..some(rng)).map(|_| Box::from(pick(rng, &["GET", "POST"]))).collect();
    random.paths = (0..some(rng))
        .map(|_| text(pick(rng, &["/a", "/a/", "/a/*", "/a*", "/%61*", "/*", "*", "/ab"])))
        .collect();
    if rng.u8(..4) == 0 {
        random = header(random, pick(rng, &["x-a", "x-b"]), pick(rng, &["1", "1*", "*", "2"]));
    }
    random
}
