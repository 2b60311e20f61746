//! Who may do what, over real sockets: what passes, what is refused, and who is told what. Rows t28, t30 and h95.

use ringmesh::authorize::{Action, Rule, TextMatch, Verdict};
use ringmesh::identity::IdMatch;

use crate::support::End;
use crate::support::mesh::Seen;
use crate::support::rig::Rig;
use crate::support::wire::Message;

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

fn text(text: &str) -> TextMatch {
    match text.strip_suffix('*') {
        Some("") => TextMatch::Any,
        Some(prefix) => TextMatch::Prefix(prefix.into()),
        None => TextMatch::Exact(text.into()),
    }
}

fn paths(paths: &[&str], rule: Rule) -> Rule {
    Rule { paths: paths.iter().map(|path| text(path)).collect(), ..rule }
}

fn with(rules: Vec<Rule>, default: Verdict) -> Rig {
    Rig::with(|config| config.authorization(rules, default).logged())
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// It says that it is denied, and not by what.
#[track_caller]
fn assert_denied(response: &Message) {
    assert_eq!(response.start, "HTTP/1.1 403 Forbidden", "{response:?}");
    assert_eq!(response.one("x-ringmesh-failure").unwrap(), "authorize.downstream.denied");
    assert_eq!(response.text(), "ringmesh: authorize.downstream.denied\n");
    assert!(!format!("{response:?}").contains("secret"), "the caller learns the rule: {response:?}");
}

fn lines(seen: &Seen) -> Vec<serde_json::Value> {
    seen.log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_denied_request_is_told_only_that_and_the_log_says_by_which_rule() {
    let rig = with(vec![paths(&["/admin", "/admin/*"], rule("secret-name", Action::Deny))], Verdict::Allow);
    let mut client = rig.client();
    client.send(get("/admin"));
    assert_denied(&client.response());
    // The connection goes on, and so does who asks for something else.
    client.send(format!("{}{}", get("/admin/x?y"), get("/public")));
    assert_denied(&client.response());
    assert_eq!(client.response().text(), "/public");
    // Whatever the method and its body, HEAD included.
    client.send("HEAD /admin HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response_to_head().status(), 403);
    client.send("POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_denied(&client.response());
    client.send(get("/public"));
    assert_eq!(client.response().status(), 200);
    drop(client);
    let done = rig.done();
    assert!(done.requests.iter().all(|request| request.target() == "/public"), "{:?}", done.requests);
    assert_eq!(done.requests.len(), 2);
    assert_eq!(done.seen.rules.iter().collect::<Vec<_>>(), [(&"inbound secret-name deny".to_owned(), &4)]);
    assert_eq!(done.seen.failures["authorize.downstream.denied"], 4);
    let lines = lines(&done.seen);
    let denied: Vec<_> = lines.iter().filter(|line| line["rule"] == "secret-name").collect();
    assert_eq!((lines.len(), denied.len()), (6, 4), "{lines:?}");
    for line in denied {
        assert_eq!((&line["status"], &line["failure"]), (&403.into(), &"authorize.downstream.denied".into()));
        assert!(line.get("endpoint").is_none() && line["attempts"] == 0, "{line}");
        assert!(line.get("peer_identity").is_none() && line.get("ambiguous_path").is_none(), "{line}");
    }
}

#[test]
fn a_body_that_is_not_there_yet_is_not_waited_for_and_nothing_of_it_goes_on() {
    let rig = with(vec![rule("secret", Action::Deny)], Verdict::Allow);
    for request in [
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ] {
        let mut client = rig.client();
        client.send(request);
        let response = client.response();
        assert_denied(&response);
        assert_eq!(response.one("connection").unwrap(), "close");
        assert_eq!(client.end(), End::Fin);
    }
    assert_eq!(rig.done().connections, 0);
}

#[test]
fn who_is_denied_does_not_learn_what_exists() {
    let rig = Rig::with(|config| {
        config
            .authorization(vec![paths(&["/*"], rule("secret", Action::Deny))], Verdict::Allow)
            .routes("[[route]]\nservice = \"app\"\npath_prefix = \"/there\"\n")
    });
    for request in [get("/there"), get("/nowhere")] {
        let mut client = rig.client();
        client.send(request);
        assert_denied(&client.response());
    }
    // Nor by asking the proxy itself, nor where the reason is not told at all.
    let mut client = rig.client();
    client.send("OPTIONS /there HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    assert_denied(&client.response());
    drop(client);
    rig.done_unseen();
    let rig = Rig::with(|config| {
        config
            .authorization(vec![rule("secret", Action::Deny)], Verdict::Allow)
            .forwarding("failure_header = false")
    });
    let mut client = rig.client();
    client.send(get("/"));
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (403, "ringmesh: Forbidden\n"));
    assert!(!response.has("x-ringmesh-failure"));
}

#[test]
fn where_nothing_is_allowed_by_default_a_rule_must_allow() {
    let allow = Rule { methods: vec!["GET".into()], ..paths(&["/a*"], rule("readers", Action::Allow)) };
    let rig = with(vec![allow], Verdict::Deny);
    let mut client = rig.client();
    for (method, path, status) in [
        ("GET", "/a/b", 200),
        ("GET", "/b", 403),
        ("PUT", "/a", 403),
        ("get", "/a", 403),
        ("HEAD", "/a", 403),
    ] {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        let response = if method == "HEAD" { client.response_to_head() } else { client.response() };
        assert_eq!(response.status(), status, "{method} {path}");
    }
    drop(client);
    let done = rig.done();
    assert_eq!(done.requests.len(), 1);
    assert_eq!(
        done.seen.rules.iter().collect::<Vec<_>>(),
        [(&"inbound (default) default-deny".to_owned(), &4)]
    );
    assert_eq!(lines(&done.seen).iter().filter(|line| line["rule"] == "(default)").count(), 4);
}

#[test]
fn who_has_no_identity_is_not_among_those_that_are_named() {
    let from = |id: &str| vec![IdMatch::parse(id).unwrap()];
    let rules = vec![
        Rule { from: from("spiffe://mesh.local/web"), ..rule("web", Action::Allow) },
        Rule { from: from("*"), ..rule("anybody-known", Action::Allow) },
    ];
    let rig = with(rules, Verdict::Deny);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: URI=spiffe://mesh.local/web\r\n\r\n");
    assert_denied(&client.response());
}

#[test]
fn an_audit_rule_is_counted_and_logged_and_changes_nothing() {
    let rules = vec![
        rule("everything", Action::Audit),
        paths(&["/a"], rule("would-deny", Action::Audit)),
        paths(&["/b"], rule("denies", Action::Deny)),
    ];
    let rig = with(rules, Verdict::Allow);
    let mut client = rig.client();
    for (path, status) in [("/a", 200), ("/b", 403), ("/c", 200)] {
        client.send(get(path));
        assert_eq!(client.response().status(), status, "{path}");
    }
    drop(client);
    let seen = rig.done().seen;
    let counts: Vec<_> = seen.rules.iter().map(|(key, n)| format!("{key} {n}")).collect();
    assert_eq!(counts, ["inbound denies deny 1", "inbound everything audit 3", "inbound would-deny audit 1"]);
    let audits: Vec<_> = lines(&seen).iter().map(|line| line["audit"].to_string()).collect();
    assert_eq!(audits, ["[\"everything\",\"would-deny\"]", "[\"everything\"]", "[\"everything\"]"]);
}

#[test]
fn no_spelling_of_a_path_gets_around_a_rule() {
    let targets = [
        "/admin/",
        "//admin",
        "/x/../admin",
        "/./admin",
        "/%61dmin",
        "/%2e/admin",
        "/x%2f..%2fadmin",
        "/x/%2e%2e/admin",
        "/x%5c..%5cadmin",
        "/x\\..\\admin",
        "/admin;a=b",
        "/;a/admin",
        "/admin%3b",
        "/%2561dmin",
        "/admin%00",
        "/admin%3fx",
        "/x/..%c0%afadmin",
        "/admin?x",
        "http://b/admin",
        "http://b//admin",
        "HTTP://b/%61dmin?x",
    ];
    let deny = with(vec![paths(&["/admin"], rule("no-admin", Action::Deny))], Verdict::Allow);
    let allow = with(vec![paths(&["/x/*", "/public*"], rule("public", Action::Allow))], Verdict::Deny);
    for target in targets {
        for rig in [&deny, &allow] {
            let mut client = rig.client();
            client.send(get(target));
            assert_denied(&client.response());
        }
    }
    // What has one meaning is judged by it, and goes on as it came.
    assert_eq!(deny.forwarded(get("/a%64min%20x/%C3%a4?//../")).target(), "/a%64min%20x/%C3%a4?//../");
    assert_eq!(allow.forwarded(get("/%70ublic")).target(), "/%70ublic");
    let seen = deny.done().seen;
    assert_eq!(seen.rules["inbound no-admin deny"], targets.len() as u64);
    let ambiguous = lines(&seen).iter().filter(|line| line["ambiguous_path"] == true).count();
    // All but the final slash, those that decode to it, and those with a query.
    assert_eq!(ambiguous, targets.len() - 5);
}

#[test]
fn no_repeated_or_disguised_field_gets_around_a_rule() {
    let header = |action| Rule { headers: vec![("x-role".into(), text("guest"))], ..rule("role", action) };
    let deny = with(vec![header(Action::Deny)], Verdict::Allow);
    let allow = with(vec![header(Action::Allow)], Verdict::Deny);
    for (fields, by_deny, by_allow) in [
        ("X-Role: guest", 403, 200),
        ("X-Role: admin\r\nX-Role: guest", 403, 403),
        ("x_role: guest", 403, 200),
        ("X-Role: guest\r\nX_Role: admin", 403, 403),
        ("X-Role: admin, guest", 403, 403),
        ("X-Role:  guest ", 403, 200),
        ("X-Role: admin", 200, 403),
        ("Other: guest", 200, 403),
    ] {
        for (rig, status) in [(&deny, by_deny), (&allow, by_allow)] {
            let mut client = rig.client();
            client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
            assert_eq!(client.response().status(), status, "{fields:?}");
        }
    }
}

#[test]
fn a_rule_about_the_host_sees_the_one_that_is_forwarded() {
    let deny = Rule { headers: vec![("host".into(), text("inner"))], ..rule("inner", Action::Deny) };
    let rig = with(vec![deny], Verdict::Allow);
    let mut client = rig.client();
    client.send("GET http://inner/ HTTP/1.1\r\nHost: outer\r\n\r\n");
    assert_denied(&client.response());
    client.send("GET http://outer/ HTTP/1.1\r\nHost: inner\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    drop(client);
    assert_eq!(rig.done().requests[0].one("host").unwrap(), "outer");
}

#[test]
fn listener_port_and_source_are_those_of_the_connection() {
    let own = |rig: &Rig| {
        let mut client = rig.client();
        client.send(
            "GET / HTTP/1.1\r\nHost: a:1\r\nX-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\n\r\n",
        );
        client.response().status()
    };
    let source = |range: &str| Rule { sources: vec![range.parse().unwrap()], ..rule("source", Action::Deny) };
    let listener = |name: &str| Rule { listeners: vec![name.into()], ..rule("listener", Action::Deny) };
    let port = |port| Rule { ports: vec![port], ..rule("port", Action::Deny) };
    for (rule, status) in [
        (source("127.0.0.1/32"), 403),
        (source("10.0.0.0/8"), 200),
        (listener("inbound"), 403),
        (listener("outbound"), 200),
        (port(1), 200),
    ] {
        assert_eq!(own(&with(vec![rule.clone()], Verdict::Allow)), status, "{rule:?}");
    }
    let mut rig = with(Vec::new(), Verdict::Allow);
    let deny = vec![port(rig.mesh.address.port())];
    rig.reload(|config| config.authorization(deny, Verdict::Allow));
    assert_eq!(own(&rig), 403);
}

/// What was allowed once is asked for again with every request.
#[test]
fn t28_the_next_request_of_an_open_connection_is_judged_by_the_new_rules() {
    let mut rig = with(Vec::new(), Verdict::Allow);
    let mut client = rig.client();
    client.send(get("/1"));
    assert_eq!(client.response().status(), 200);
    let only = |path: &str| vec![paths(&[path], rule("one", Action::Allow))];
    rig.reload(|config| config.authorization(only("/3"), Verdict::Deny));
    client.send(get("/2"));
    assert_denied(&client.response());
    client.send(get("/3"));
    assert_eq!(client.response().text(), "/3");
    rig.reload(|config| config.authorization(Vec::new(), Verdict::Deny));
    assert_eq!(client.end(), End::Fin, "where nothing is allowed any more, it ends");
    drop(client);
    let done = rig.done();
    assert_eq!(done.seen.totals.downstream_accepted, 1);
    assert_eq!(done.seen.revoked["denied"], 1);
    assert_eq!(done.requests.iter().map(Message::target).collect::<Vec<_>>(), ["/1", "/3"]);
}

#[test]
fn t30_h95_what_callers_say_of_their_certificate_is_removed_in_every_spelling() {
    let rig = Rig::plain();
    for name in [
        "X-Forwarded-Client-Cert",
        "x-forwarded-client-cert",
        "X-FORWARDED-CLIENT-CERT",
        "x_forwarded_client_cert",
        "X-Forwarded_Client-Cert",
    ] {
        let forged = format!("{name}: By=spiffe://a/b;URI=spiffe://a/admin\r\n");
        for fields in [
            forged.clone(),
            format!("{forged}{forged}"),
            format!("X-Forwarded-Client-Cert:\r\n{forged}"),
            format!("Connection: {name}\r\n{forged}"),
        ] {
            let seen = rig.forwarded(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}A: b\r\n\r\n"));
            assert!(seen.fields.iter().all(|(name, _)| !name.contains("client")), "{fields:?}: {seen:?}");
            assert!(seen.has("a"));
        }
        let body = format!("5\r\nhello\r\n0\r\n{forged}A: b\r\n\r\n");
        let seen =
            rig.forwarded(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        assert_eq!(seen.trailers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a"]);
    }
    rig.done();
}
