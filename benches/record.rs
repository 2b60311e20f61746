//! What one exchange pays for being measured: three histograms and the counters beside them; and what control pays for
//! merging an interval of one service.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use fastrand::Rng;
use ringmesh::failure::{Cause, Failure, Stage};
use ringmesh::telemetry::ServiceCounts;

criterion_group!(benches, exchange, failure, merge);
criterion_main!(benches);

fn exchange(criterion: &mut Criterion) {
    let mut counts = ServiceCounts::new();
    let mut rng = Rng::with_seed(1);
    // Latencies as they come: most around a millisecond, some far above. Drawn beforehand, not in what is measured.
    let latencies: Vec<u64> = (0..4096).map(|_| (-(1.0 - rng.f64()).ln() * 1e6) as u64 + 100_000).collect();
    let mut next = 0;
    criterion.bench_function("record/exchange", |bencher| {
        bencher.iter(|| {
            let whole_ns = black_box(latencies[next]);
            next = (next + 1) % latencies.len();
            record(&mut counts, 200, whole_ns);
        });
    });
}

fn failure(criterion: &mut Criterion) {
    let mut counts = ServiceCounts::new();
    let failures = [
        Failure::upstream(Stage::Response, Cause::Timeout),
        Failure::upstream(Stage::Connect, Cause::Refused),
        Failure::downstream(Stage::Body, Cause::Closed),
    ];
    let mut next = 0;
    criterion.bench_function("record/failed exchange", |bencher| {
        bencher.iter(|| {
            record(&mut counts, 504, black_box(15_000_000_000));
            counts.count_failure(black_box(failures[next]));
            next = (next + 1) % failures.len();
        });
    });
}

fn merge(criterion: &mut Criterion) {
    let (mut total, mut interval) = (ServiceCounts::new(), ServiceCounts::new());
    let mut rng = Rng::with_seed(1);
    for _ in 0..10_000 {
        record(&mut interval, 200, rng.u64(100_000..10_000_000));
    }
    criterion.bench_function("record/merge", |bencher| bencher.iter(|| total.add(black_box(&interval))));
}

/// What a shard does at the end of an exchange.
fn record(counts: &mut ServiceCounts, status: usize, whole_ns: u64) {
    counts.by_class[status / 100] += 1;
    counts.response_body_bytes += 1024;
    counts.first_byte.saturating_record(whole_ns - whole_ns / 8);
    counts.whole.saturating_record(whole_ns);
    counts.own.saturating_record(whole_ns / 64);
}
