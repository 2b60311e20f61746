//! Deciding about a request by 0, 1, 10 and 1 000 rules on its listener: by exact identities (one look-up, whatever the
//! number), and by paths and methods, which are tried one by one: there the last of them is the one that is met.

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use ringmesh::authorize::{Action, Call, Caller, Fields, Policy, Rule, TextMatch, Verdict};
use ringmesh::identity::{IdMatch, SpiffeId};

criterion_group!(benches, decide);
criterion_main!(benches);

const COUNTS: [usize; 3] = [1, 10, 1_000];

/// What a request of a browser has, more or less.
struct Lines([(&'static str, &'static [u8]); 8]);

impl Fields for Lines {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0
            .iter()
            .filter(move |(line, _)| ringmesh::authorize::same_name(line, name))
            .map(|(_, value)| *value)
    }
}

fn decide(criterion: &mut Criterion) {
    let elsewhere = Rule { listeners: vec!["outbound".into()], ..rule(Action::Deny) };
    run(criterion, "authorize/none", &Policy::default());
    run(criterion, "authorize/none on this listener", &policy(vec![elsewhere], Verdict::Allow));
    for count in COUNTS {
        let rules = (0..count).map(|n| Rule { from: vec![id(n)], ..rule(Action::Allow) }).collect();
        run(criterion, &format!("authorize/identity/{count}"), &policy(rules, Verdict::Deny));
        let path = |n| TextMatch::Prefix(format!("/service-{n}/").into());
        let last = |n: usize| {
            TextMatch::Prefix(if n + 1 == count { "/api/".into() } else { format!("/x-{n}/").into() })
        };
        let rules = (0..count).map(|n| Rule { paths: vec![last(n)], ..rule(Action::Allow) }).collect();
        run(criterion, &format!("authorize/path, the last/{count}"), &policy(rules, Verdict::Deny));
        let rules = (0..count).map(|n| Rule {
            paths: vec![path(n)],
            methods: vec!["DELETE".into(), "PUT".into()],
            ..rule(Action::Deny)
        });
        run(
            criterion,
            &format!("authorize/method and path, none/{count}"),
            &policy(rules.collect(), Verdict::Allow),
        );
        let rules = (0..count).map(|_| Rule {
            headers: vec![("x-tenant".into(), TextMatch::Exact("none".into()))],
            ..rule(Action::Deny)
        });
        run(criterion, &format!("authorize/field, none/{count}"), &policy(rules.collect(), Verdict::Allow));
    }
}

fn run(criterion: &mut Criterion, name: &str, policy: &Policy) {
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/service-0").ok();
    let fields = Lines([
        ("Host", b"shop.example"),
        ("User-Agent", b"curl/8.5.0"),
        ("Accept", b"*/*"),
        ("Accept-Encoding", b"gzip, br"),
        ("X-Tenant", b"blue"),
        ("X-Request-Id", b"0c8e0a2b-6a9f-4f7e-9d7b-0f3a4ed3f5a1"),
        ("Traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("Content-Type", b"application/json"),
    ]);
    let source = IpAddr::from([127, 0, 0, 1]);
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            let caller = Caller { listener: black_box("inbound"), port: 15001, source, peer: peer.as_ref() };
            let path = black_box(&b"/api/orders/17"[..]);
            let decision = policy.decide(&Call { caller, method: b"GET", path, fields: &fields }, |_| {});
            assert!(decision.verdict == Verdict::Allow);
            decision
        });
    });
}

fn policy(rules: Vec<Rule>, default: Verdict) -> Policy {
    Policy::new(rules, default).unwrap_or_default()
}

fn id(n: usize) -> IdMatch {
    IdMatch::parse(&format!("spiffe://mesh.local/ns/shop/sa/service-{n}")).unwrap_or(IdMatch::Any)
}

fn rule(action: Action) -> Rule {
    Rule {
        name: "rule".into(),
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
