//! What one exchange pays for balancing: pick, started, ended. The bar: 30 ns for each, where it is O(1) (round robin by
//! unequal weights among 1 000 is not).

use std::hint::black_box;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use fastrand::Rng;
use ringmesh::upstream::balance::{Balancer, Outcome, Wanted};
use ringmesh::upstream::budget::Shared;
use ringmesh::upstream::retry::Policy;
use ringmesh::upstream::spec::{
    Address, Balance, Choice, Endpoint, Http2, Planned, Pool, Protocol, Service, Timeouts, Tls,
};

criterion_group!(benches, pick, by_key, tables, parted, whole);
criterion_main!(benches);

const ALL: [Balance; 6] = [
    Balance::PeakEwma,
    Balance::LeastRequest,
    Balance::RoundRobin,
    Balance::Random,
    Balance::RingHash,
    Balance::Maglev,
];

/// The choice alone, among endpoints that have answered before.
fn pick(criterion: &mut Criterion) {
    for balance in ALL {
        for (name, endpoints, weight) in
            [("10", 10, 1), ("1000", 1000, 1), ("10 weighted", 10, 9), ("1000 weighted", 1000, 9)]
        {
            let mut balancer = Balancer::new(&service(balance, endpoints, weight));
            let mut rng = Rng::with_seed(1);
            for endpoint in 0..endpoints {
                balancer.started(endpoint);
                balancer.ended(endpoint, 0, Outcome::Answered { latency_ns: rng.u64(1_000_000..2_000_000) });
            }
            let mut now_ns = 0;
            criterion.bench_function(&format!("balance/pick/{balance:?}/{name}"), |bencher| {
                bencher.iter(|| {
                    now_ns = (now_ns + 10_000) % 1_000_000_000;
                    balancer.pick(black_box(now_ns), &mut rng, |_| false)
                });
            });
        }
    }
}

/// With a key of its own for each exchange, and by one that is passed over.
fn by_key(criterion: &mut Criterion) {
    for balance in [Balance::RingHash, Balance::Maglev] {
        for (name, endpoints) in [("10", 10), ("1000", 1000), ("10000", 10_000)] {
            let mut balancer = Balancer::new(&service(balance, endpoints, 1));
            let mut rng = Rng::with_seed(1);
            let mut key = 1_u64;
            for (what, skipped) in [("", usize::MAX), (" one of two passed over", 2)] {
                criterion.bench_function(&format!("balance/by_key/{balance:?}/{name}{what}"), |bencher| {
                    bencher.iter(|| {
                        key = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                        let wanted = Wanted { subset: 0, key: NonZeroU64::new(key) };
                        balancer.pick_for(0, &mut rng, black_box(wanted), |e| skipped == 2 && e % 2 == 0)
                    });
                });
            }
        }
    }
}

/// What control pays for a table.
fn tables(criterion: &mut Criterion) {
    for balance in [Balance::RingHash, Balance::Maglev] {
        for endpoints in [10, 1000] {
            let service = service(balance, endpoints, 1);
            criterion.bench_function(&format!("balance/table/{balance:?}/{endpoints}"), |bencher| {
                bencher
                    .iter(|| Service { planned: Planned::default(), ..service.clone() }.plan().table_bytes());
            });
        }
    }
}

/// What zones and priorities add to a choice.
fn parted(criterion: &mut Criterion) {
    let mut declared = service(Balance::PeakEwma, 30, 1);
    for (n, endpoint) in declared.endpoints.iter_mut().enumerate() {
        endpoint.zone = Some(["a", "b", "c"][n % 3].into());
        endpoint.priority = u8::from(n >= 24);
    }
    declared.choice = Some(Box::new(Choice { own_zone: Some("a".into()), ..Choice::DEFAULT }));
    let mut balancer = Balancer::new(&declared);
    let mut rng = Rng::with_seed(1);
    criterion.bench_function("balance/parted/PeakEwma/30", |bencher| {
        bencher.iter(|| balancer.pick(black_box(1_000_000), &mut rng, |_| false));
    });
}

/// All that is done for one exchange, one after the other.
fn whole(criterion: &mut Criterion) {
    for balance in ALL {
        let mut balancer = Balancer::new(&service(balance, 10, 1));
        let mut rng = Rng::with_seed(1);
        let mut now_ns = 0;
        criterion.bench_function(&format!("balance/whole/{balance:?}/10"), |bencher| {
            bencher.iter(|| {
                now_ns += 10_000;
                let endpoint = balancer.pick(black_box(now_ns), &mut rng, |_| false)?;
                balancer.started(endpoint);
                balancer.ended(
                    endpoint,
                    now_ns,
                    Outcome::Answered { latency_ns: 1_000_000 + (now_ns & 0xffff) },
                );
                Some(endpoint)
            });
        });
    }
}

/// Weights from 1 to `weight`.
fn service(balance: Balance, endpoints: usize, weight: u16) -> Service {
    let second = Duration::from_secs(1);
    let endpoint = |n: usize| Endpoint {
        weight: n as u16 % weight + 1,
        ..Endpoint::new(Address::Ip(SocketAddr::from(([127, 0, 0, 1], n as u16 + 1))))
    };
    Service {
        name: "bench".into(),
        balance,
        endpoints: (0..endpoints).map(endpoint).collect(),
        pool: Pool { idle_max: 1, idle_timeout: second, connections_max: 1 },
        timeouts: Timeouts { connect: second, response: second, body_stall: second },
        connect_attempts_max: 1,
        protocol: Protocol::Auto,
        tls: Tls::Off,
        http2: Http2::default(),
        choice: None,
        planned: Planned::default(),
        breaker: None,
        retry: Arc::new(Policy::off()),
        meter: Shared::default(),
        probe: None,
        caps: None,
    }
}
