//! Finding a route among 10, 1 000 and 10 000, in all the shapes that tables have. The bar: the largest at most 1.5 times
//! the smallest, as far as caches let it; conditions and expressions may cost more than none, but not more with their number.
//! All routes are asked for, in random order, so that the table and not a cached part of it is measured;
//! what is asked for lies in one piece, as a request just read would be in the cache.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use ringmesh::authorize::{Call, Caller, Fields};
use ringmesh::route::{
    Conditions, HostMatch, PathMatch, Regex, Request, Route, RouteMatch, Table, TableBuilder, Template, Test,
    What,
};

criterion_group!(benches, one_host, many_hosts, wildcards, templates, expressions, rest, by_field, by_method);
criterion_main!(benches);

const COUNTS: [usize; 3] = [10, 1_000, 10_000];

/// Ten thousand prefixes under one host; asked for is something below each.
fn one_host(criterion: &mut Criterion) {
    for count in COUNTS {
        let table = table((0..count).map(|n| (exact("shop.example"), format!("/service-{n}/api"))));
        let asked = shuffled(count, |n| ("shop.example".into(), format!("/service-{n}/api/orders/17")));
        find(criterion, &format!("route/one host/{count}"), &table, &asked);
    }
}

/// One prefix `/` under each of ten thousand hosts, as a mesh has them.
fn many_hosts(criterion: &mut Criterion) {
    for count in COUNTS {
        let table = table((0..count).map(|n| (exact(&format!("service-{n}.prod")), "/".into())));
        let asked = shuffled(count, |n| (format!("service-{n}.prod"), "/api/orders/17".into()));
        find(criterion, &format!("route/many hosts/{count}"), &table, &asked);
    }
}

/// One suffix for each tenant, asked for with two labels before it.
fn wildcards(criterion: &mut Criterion) {
    for count in COUNTS {
        let suffix = |n| HostMatch::Suffix(format!(".tenant-{n}.example").into());
        let table = table((0..count).map(|n| (suffix(n), "/api".into())));
        let asked = shuffled(count, |n| (format!("eu.www.tenant-{n}.example"), "/api/orders/17".into()));
        find(criterion, &format!("route/wildcards/{count}"), &table, &asked);
    }
}

fn find(criterion: &mut Criterion, name: &str, table: &Table, asked: &Asked) {
    let mut next = 0;
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            let (host, path) = asked.at(next);
            next = if next + 1 == asked.ends.len() { 0 } else { next + 1 };
            let found = table.find(Some(black_box(host)), black_box(path)).map(|route| route.name.len());
            assert!(found.is_some());
            found
        });
    });
}

/// Hosts and paths in the order of asking, one behind the other.
struct Asked {
    bytes: Vec<u8>,
    /// Of each pair: where it begins, where its host ends, where its path ends.
    ends: Vec<[u32; 3]>,
}

impl Asked {
    fn at(&self, n: usize) -> (&[u8], &[u8]) {
        let [begin, host, path] = self.ends[n].map(|end| end as usize);
        (&self.bytes[begin..host], &self.bytes[host..path])
    }
}

fn shuffled(count: usize, pair: impl Fn(usize) -> (String, String)) -> Asked {
    let mut order: Vec<usize> = (0..count).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let mut asked = Asked { bytes: Vec::new(), ends: Vec::new() };
    for n in order {
        let (host, path) = pair(n);
        let begin = asked.bytes.len();
        asked.bytes.extend_from_slice(host.as_bytes());
        let middle = asked.bytes.len();
        asked.bytes.extend_from_slice(path.as_bytes());
        asked.ends.push([begin, middle, asked.bytes.len()].map(|end| end as u32));
    }
    asked
}

fn table(rules: impl Iterator<Item = (HostMatch, String)>) -> Table {
    conditional(rules.map(|(host, prefix)| (host, PathMatch::Prefix(prefix.into()), Conditions::default())))
}

fn conditional(rules: impl Iterator<Item = (HostMatch, PathMatch, Conditions)>) -> Table {
    let mut builder = TableBuilder::default();
    let mut routes = Vec::new();
    for (n, (host, path, conditions)) in rules.enumerate() {
        routes.push(Route::to(format!("route-{n}"), n as u32));
        let matching = RouteMatch { hosts: [host].into(), path, conditions };
        builder.add(Arc::new(matching)).expect("no two are alike");
    }
    builder.build(routes)
}

fn exact(host: &str) -> HostMatch {
    HostMatch::Exact(host.into())
}

/// Ten thousand forms of paths, as an interface description of a large service has them.
fn templates(criterion: &mut Criterion) {
    for count in COUNTS {
        let template =
            |n| PathMatch::Template(Template::parse(&format!("/r{n}/{{id}}/part/{{part}}")).expect("right"));
        let table =
            conditional((0..count).map(|n| (exact("shop.example"), template(n), Conditions::default())));
        let asked = shuffled(count, |n| ("shop.example".into(), format!("/r{n}/17/part/9")));
        find(criterion, &format!("route/templates/{count}"), &table, &asked);
    }
}

/// Expressions that begin differently.
fn expressions(criterion: &mut Criterion) {
    for count in COUNTS {
        let regex = |n| PathMatch::Regex(Regex::parse(&format!("/r{n}/v[0-9]+/.*")).expect("right"));
        let table = conditional((0..count).map(|n| (exact("shop.example"), regex(n), Conditions::default())));
        let asked = shuffled(count, |n| ("shop.example".into(), format!("/r{n}/v17/orders/9")));
        find(criterion, &format!("route/expressions/{count}"), &table, &asked);
    }
}

/// Expressions that begin with anything: found by one common automaton. Few have a thousand of those.
fn rest(criterion: &mut Criterion) {
    for count in [10, 100, 1_000] {
        let regex = |n| PathMatch::Regex(Regex::parse(&format!("/[^/]+/r{n}/v[0-9]+")).expect("right"));
        let table = conditional((0..count).map(|n| (exact("shop.example"), regex(n), Conditions::default())));
        let asked = shuffled(count, |n| ("shop.example".into(), format!("/orders/r{n}/v17")));
        find(criterion, &format!("route/expressions that begin alike/{count}"), &table, &asked);
    }
}

/// One path, told apart by the value of a field.
fn by_field(criterion: &mut Criterion) {
    for count in COUNTS {
        let tenant = |n: usize| Conditions {
            headers: vec![(
                "x-tenant".into(),
                Test { what: What::Exact(format!("t{n}").into()), not: false },
            )],
            ..Conditions::default()
        };
        let all = || PathMatch::Prefix("/".into());
        let table = conditional((0..count).map(|n| (exact("shop.example"), all(), tenant(n))));
        let tenants: Vec<String> = (0..count).map(|n| format!("t{n}")).collect();
        let asked = shuffled(count, |n| (tenants[n].clone(), "/api/orders/17".into()));
        let mut next = 0;
        criterion.bench_function(&format!("route/by field/{count}"), |bencher| {
            bencher.iter(|| {
                let (tenant, path) = asked.at(next);
                next = if next + 1 == asked.ends.len() { 0 } else { next + 1 };
                let found = find_with(&table, b"GET", black_box(path), black_box(tenant));
                assert!(found.is_some());
                found
            });
        });
    }
}

/// Ten thousand paths, each for reading and for writing.
fn by_method(criterion: &mut Criterion) {
    for count in COUNTS {
        let methods = [["GET", "HEAD"], ["POST", "PUT"]];
        let of = |n: usize| Conditions {
            methods: methods[n % 2].iter().map(|method| Box::from(*method)).collect(),
            ..Conditions::default()
        };
        let path = |n: usize| PathMatch::Prefix(format!("/service-{}/api", n / 2).into());
        let table = conditional((0..count).map(|n| (exact("shop.example"), path(n), of(n))));
        let asked = shuffled(count / 2, |n| ("PUT".into(), format!("/service-{n}/api/orders/17")));
        let mut next = 0;
        criterion.bench_function(&format!("route/by method/{count}"), |bencher| {
            bencher.iter(|| {
                let (method, path) = asked.at(next);
                next = if next + 1 == asked.ends.len() { 0 } else { next + 1 };
                let found = find_with(&table, black_box(method), black_box(path), b"");
                assert!(found.is_some());
                found
            });
        });
    }
}

/// What a request of a browser has, more or less, and the tenant last.
struct Lines<'l>(&'l [u8]);

impl Fields for Lines<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        const LINES: [&str; 8] = [
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
            "accept-language",
            "referer",
            "cookie",
            "priority",
        ];
        let others = LINES.iter().map(|line| (*line, &b"some value"[..]));
        others
            .chain([("x-tenant", self.0)])
            .filter(move |(line, _)| line.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

fn find_with(table: &Table, method: &[u8], path: &[u8], tenant: &[u8]) -> Option<u32> {
    let caller = Caller { listener: "in", port: 1, source: [127, 0, 0, 1].into(), peer: None };
    let call = Call { caller, method, path, fields: &Lines(tenant) };
    table.find_id(&Request { host: Some(b"shop.example"), path, query: b"", call: &call })
}
