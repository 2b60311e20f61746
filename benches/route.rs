//! Finding a route among 10, 1 000 and 10 000, in both shapes that tables have. The bar: the largest at most 1.5 times
//! the smallest. All routes are asked for, in random order, so that the table and not a cached part of it is measured;
//! what is asked for lies in one piece, as a request just read would be in the cache.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ringmesh::route::{HostMatch, PathMatch, Route, Table, TableBuilder};

criterion_group!(benches, one_host, many_hosts, wildcards);
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
    let mut builder = TableBuilder::default();
    for (n, (host, prefix)) in rules.enumerate() {
        let route = Route::to(format!("route-{n}"), n as u32);
        builder.add(host, PathMatch::Prefix(prefix.into()), route).expect("no two are alike");
    }
    builder.build()
}

fn exact(host: &str) -> HostMatch {
    HostMatch::Exact(host.into())
}
