//! The distribution over priorities and zones, against the tables in Envoy's documentation and by its own promise.

use super::super::spec::testing::service;
use super::super::spec::{Balance, Choice, Service, Zones};
use super::*;

const SECOND: u64 = 1_000_000_000;

/// The parts of the first set's groups, when these endpoints are usable.
fn parts(service: &Service, usable: impl Fn(usize) -> bool) -> Vec<f64> {
    let plan = service.plan();
    let mut census = Census::new(plan);
    census.refresh(plan, SECOND, 1, usable);
    let groups = plan.set(0).unwrap().groups.clone();
    groups.map(|group| census.counted[group as usize].part).collect()
}

/// A hundred endpoints in each priority.
fn by_priority(priorities: u8) -> Service {
    let mut service = service(Balance::Random, &vec![1; 100 * usize::from(priorities)]);
    for (n, endpoint) in service.endpoints.iter_mut().enumerate() {
        endpoint.priority = (n / 100) as u8;
    }
    service
}

#[test]
fn priorities_share_as_in_the_tables_of_envoy() {
    // docs/root/intro/arch_overview/upstream/load_balancing/priority.rst: health of each priority, traffic of each, in
    // percent. Envoy rounds to whole ones; 72 % is where its table begins to fail over because 1 / 1.4 is 71.4 %.
    let tables: [(&[u32], &[f64]); 17] = [
        (&[100, 100], &[100.0, 0.0]),
        (&[72, 100], &[100.0, 0.0]),
        (&[71, 100], &[99.0, 1.0]),
        (&[50, 100], &[70.0, 30.0]),
        (&[25, 100], &[35.0, 65.0]),
        (&[0, 100], &[0.0, 100.0]),
        (&[72, 72], &[100.0, 0.0]),
        (&[71, 71], &[99.0, 1.0]),
        (&[50, 50], &[70.0, 30.0]),
        (&[25, 25], &[50.0, 50.0]),
        (&[100, 100, 100], &[100.0, 0.0, 0.0]),
        (&[72, 72, 100], &[100.0, 0.0, 0.0]),
        (&[71, 71, 100], &[99.0, 1.0, 0.0]),
        (&[50, 50, 100], &[70.0, 30.0, 0.0]),
        (&[25, 100, 100], &[35.0, 65.0, 0.0]),
        (&[25, 25, 100], &[35.0, 35.0, 30.0]),
        (&[25, 25, 20], &[36.0, 36.0, 28.0]),
    ];
    for (health, expected) in tables {
        let service = by_priority(health.len() as u8);
        let got = parts(&service, |e| e % 100 < health[e / 100] as usize);
        for (part, expected) in got.iter().zip(expected) {
            assert!((part * 100.0 - expected).abs() <= 1.0, "{health:?}: {got:?} for {expected:?}");
        }
    }
}

#[test]
fn where_no_endpoint_is_usable_the_first_priority_stands_for_all() {
    assert_eq!(parts(&by_priority(3), |_| false), [1.0, 0.0, 0.0]);
}

#[test]
fn weights_count_for_health() {
    let mut service = service(Balance::Random, &[1, 9, 1]);
    service.endpoints[2].priority = 1;
    assert_eq!(parts(&service, |e| e != 0), [1.0, 0.0]);
    let without_the_heavy_one = parts(&service, |e| e != 1);
    assert!((without_the_heavy_one[0] - 0.14).abs() < 1e-9, "{without_the_heavy_one:?}");
}

/// Endpoints in the zones a, b, c, …, seen from one of them.
fn by_zone(counts: &[usize], own: &str, zones: Zones) -> Service {
    let total: usize = counts.iter().sum();
    let mut service = service(Balance::Random, &vec![1; total]);
    let mut endpoints = service.endpoints.iter_mut();
    for (n, &count) in counts.iter().enumerate() {
        for endpoint in endpoints.by_ref().take(count) {
            endpoint.zone = Some(zone(n).into());
        }
    }
    service.choice = Some(Box::new(Choice { own_zone: Some(own.into()), zones, ..Choice::DEFAULT }));
    service
}

fn zone(n: usize) -> String {
    char::from(b'a' + n as u8).to_string()
}

#[test]
fn all_stays_in_a_zone_with_its_fair_share_and_the_rest_goes_where_there_is_more() {
    let usual = || Choice::DEFAULT.zones;
    let near = |got: Vec<f64>, expected: [f64; 3]| {
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?} for {expected:?}");
    };
    near(parts(&by_zone(&[10, 10, 10], "b", usual()), |_| true), [0.0, 1.0, 0.0]);
    near(parts(&by_zone(&[2, 20, 8], "b", usual()), |_| true), [0.0, 1.0, 0.0]);
    // a has 5 of 30, and a third of the callers: half stays. b has 15: all beyond a third is there.
    near(parts(&by_zone(&[5, 15, 10], "a", usual()), |_| true), [0.5, 0.5, 0.0]);
    // Half of its ten are away: 5 of 25.
    near(parts(&by_zone(&[10, 10, 10], "a", usual()), |e| e >= 5), [0.6, 0.2, 0.2]);
    // All of them.
    near(parts(&by_zone(&[10, 10, 10], "a", usual()), |e| e >= 10), [0.0, 0.5, 0.5]);
    // Two thirds of the callers are here, it is said.
    let callers = Zones { callers_percent: Some(66_67), ..usual() };
    let got = parts(&by_zone(&[10, 10, 10], "a", callers), |_| true);
    assert!((got[0] - 0.5).abs() < 1e-4, "{got:?}");
    // Too few, switched off, or elsewhere: all zones alike.
    assert_eq!(parts(&by_zone(&[2, 2, 1], "a", usual()), |_| true), [1.0]);
    let off = Zones { prefer_own: false, ..usual() };
    assert_eq!(parts(&by_zone(&[10, 10, 10], "a", off), |_| true), [1.0]);
    assert_eq!(parts(&by_zone(&[10, 10, 10], "z", usual()), |_| true), [1.0]);
}

#[test]
fn where_callers_are_spread_as_declared_every_usable_endpoint_has_the_same_load() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..500 {
        let zones = rng.usize(2..6);
        let counts: Vec<usize> = (0..zones).map(|_| rng.usize(3..20)).collect();
        let total: usize = counts.iter().sum();
        let away: Vec<bool> = (0..total).map(|_| rng.u8(..4) == 0).collect();
        let usable = away.iter().filter(|away| !**away).count();
        if usable == 0 {
            continue;
        }
        let mut loads = vec![0.0; zones];
        for from in 0..zones {
            let service = by_zone(&counts, &zone(from), Choice::DEFAULT.zones);
            for (to, part) in parts(&service, |e| !away[e]).into_iter().enumerate() {
                loads[to] += part / zones as f64;
            }
        }
        let mut first = 0;
        for (zone, count) in counts.iter().enumerate() {
            let here = (first..first + count).filter(|e| !away[*e]).count();
            first += count;
            let even = here as f64 / usable as f64;
            assert!(
                (loads[zone] - even).abs() < 1e-9,
                "{counts:?} {away:?}: {loads:?}, {even} of zone {zone}"
            );
        }
    }
}

#[test]
fn it_is_counted_anew_when_something_changed_and_not_too_often() {
    let service = by_priority(2);
    let plan = service.plan();
    let mut census = Census::new(plan);
    let share = |census: &Census| census.counted[0].part;
    assert_eq!(share(&census), 1.0, "all are usable until somebody says otherwise");
    census.refresh(plan, SECOND, 7, |_| true);
    census.refresh(plan, SECOND + 1, 7, |e| e >= 100);
    assert_eq!(share(&census), 1.0, "nothing has changed");
    census.refresh(plan, SECOND + 1, 8, |e| e >= 100);
    assert_eq!(share(&census), 1.0, "200 endpoints: at most every 200 µs");
    census.refresh(plan, SECOND + 200_000, 8, |e| e >= 100);
    assert_eq!(share(&census), 0.0);
}
