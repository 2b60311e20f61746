//! The store under a clock of the test's own.

use super::*;
use crate::failure::{Cause, Stage};
use crate::telemetry::ServiceInterval;
use crate::telemetry::rules::RuleCount;
use crate::upstream::retry::Reason;

const SECOND: Duration = Duration::from_secs(1);

fn interval(shard: u16, service: &str, ok: u64, bad: u64, latency: Duration) -> Interval {
    let mut counts = Box::new(ServiceCounts::new());
    counts.by_class[2] = ok;
    counts.by_class[5] = bad;
    for _ in 0..ok + bad {
        counts.whole.saturating_record(latency.as_nanos() as u64);
        counts.first_byte.saturating_record(latency.as_nanos() as u64 / 2);
        counts.own.saturating_record(10_000);
    }
    for _ in 0..bad {
        counts.count_failure(Failure::upstream(Stage::Connect, Cause::Refused));
    }
    let totals = ShardTotals { downstream_accepted: 7, ..ShardTotals::default() };
    let services = vec![ServiceInterval { service: service.into(), counts }];
    Interval { services, shard_totals: totals, ..Interval::new(shard) }
}

#[test]
fn shards_are_summed_and_intervals_come_back_empty() {
    let now = Instant::now();
    let mut store = Store::new(2, now);
    store.configure(["app".into()].into_iter(), now);
    let mut a = interval(0, "app", 90, 0, Duration::from_millis(1));
    let mut b = interval(1, "app", 5, 5, Duration::from_millis(100));
    store.merge(&mut a, now);
    store.merge(&mut b, now);
    store.tick(now + SECOND);

    assert_eq!((a.services[0].counts.exchanges(), a.services[0].counts.whole.len()), (0, 0));
    assert_eq!(&*a.services[0].service, "app", "the name stays for the shard to use again");
    let app = store.service("app").unwrap();
    assert_eq!((app.exchanges(), app.errors(), app.whole.count()), (100, 5, 100));
    assert_eq!(app.failures[&Failure::upstream(Stage::Connect, Cause::Refused)], 5);
    let window = store.window(app, 1);
    assert_eq!((window.exchanges, window.errors, window.length), (100, 5, SECOND));
    assert_eq!(window.rate(), 100.0);
    let near = |ns: Option<u64>, ms: f64| (ns.unwrap() as f64 / 1e6 - ms).abs() < ms * 0.02;
    assert!(near(window.whole.quantile(0.5), 1.0));
    assert!(near(window.whole.quantile(0.99), 100.0));
    assert!(near(window.first_byte.quantile(0.99), 50.0));
    assert_eq!(store.shards()[1].totals.downstream_accepted, 7);
}

/// A service that gets nothing but copies is seen all the same.
#[test]
fn what_is_counted_apart_from_exchanges_is_not_lost_in_a_second_without_any() {
    let now = Instant::now();
    let mut store = Store::new(1, now);
    store.configure(["shadow".into(), "faulty".into(), "idle".into()].into_iter(), now);
    let empty = |service: &str| interval(0, service, 0, 0, SECOND).services.remove(0);
    let (mut shadow, mut faulty) = (empty("shadow"), empty("faulty"));
    shadow.counts.mirrored.record(200);
    faulty.counts.faults.refused = 3;
    let services = vec![shadow, faulty, empty("idle")];
    store.merge(&mut Interval { services, ..Interval::new(0) }, now);
    let classes: Vec<_> = store.service("shadow").unwrap().mirrored.classes().collect();
    assert_eq!(classes, [("2xx", 1)]);
    assert_eq!(store.service("faulty").unwrap().faults.refused, 3);
    assert!(store.service("idle").is_none(), "nothing is known of it");
}

#[test]
fn the_window_slides_and_idle_seconds_are_given_back() {
    let start = Instant::now();
    let mut store = Store::new(1, start);
    store.configure(["app".into()].into_iter(), start);
    for n in 1..=15u32 {
        if n <= 12 {
            store.merge(&mut interval(0, "app", 10, 0, Duration::from_millis(1)), start + SECOND * n);
        }
        store.tick(start + SECOND * n);
    }
    let app = store.service("app").unwrap();
    // Seconds 6 to 15: seven of them with traffic.
    let window = store.window(app, 10);
    assert_eq!((window.exchanges, window.length), (70, SECOND * 10));
    assert_eq!(store.window(app, 1).exchanges, 0);
    assert_eq!(app.exchanges(), 120);
    for n in 16..40u32 {
        store.tick(start + SECOND * n);
    }
    assert!(store.service("app").unwrap().seconds.is_empty());
}

#[test]
fn a_service_that_left_the_configuration_is_forgotten_after_five_minutes() {
    let start = Instant::now();
    let mut store = Store::new(1, start);
    store.configure(["old".into(), "new".into()].into_iter(), start);
    store.merge(&mut interval(0, "old", 1, 0, SECOND), start);
    store.merge(&mut interval(0, "new", 1, 0, SECOND), start);

    store.configure(["new".into()].into_iter(), start + SECOND);
    // Its last exchange ends after the reload, and another reload does not start the wait anew.
    store.merge(&mut interval(0, "old", 1, 0, SECOND), start + SECOND * 3);
    store.configure(["new".into()].into_iter(), start + SECOND * 100);
    store.tick(start + SECOND * 302);
    assert_eq!(store.service("old").map(Service::exchanges), Some(2));
    store.tick(start + SECOND * 303);
    assert!(store.service("old").is_none());
    assert!(store.service("new").is_some());

    // One that comes back in time keeps its counts.
    store.configure([].into_iter(), start + SECOND * 400);
    store.configure(["new".into()].into_iter(), start + SECOND * 500);
    store.tick(start + SECOND * 5000);
    assert!(store.service("new").is_some());
}

#[test]
fn services_and_failures_past_the_ceiling_are_counted_as_other() {
    let now = Instant::now();
    let mut store = Store::new(1, now);
    for n in 0..Store::SERVICES_MAX + 10 {
        let mut counts = Box::new(ServiceCounts::new());
        counts.by_class[2] = 1;
        let services = vec![ServiceInterval { service: format!("s{n}").into(), counts }];
        store.merge(&mut Interval { services, ..Interval::new(0) }, now);
    }
    assert_eq!(store.services().count(), Store::SERVICES_MAX + 1);
    assert_eq!(store.service(OVERFLOW_SERVICE).unwrap().exchanges(), 10);
    assert_eq!(store.services().map(|(_, s)| s.exchanges()).sum::<u64>(), Store::SERVICES_MAX as u64 + 10);

    let mut counts = Box::new(ServiceCounts::new());
    counts.by_class[0] = 1;
    for stage in [Stage::Head, Stage::Body, Stage::Route] {
        for &cause in Cause::ALL {
            counts.count_failure(Failure::local(stage, cause));
        }
    }
    let all = counts.failures.len() as u64;
    let services = vec![ServiceInterval { service: "s0".into(), counts }];
    store.merge(&mut Interval { services, ..Interval::new(0) }, now);
    let service = store.service("s0").unwrap();
    assert_eq!(service.failures.len(), Store::FAILURES_MAX);
    assert_eq!(service.failures.values().sum::<u64>() + service.failures_other, all);
}

#[test]
fn rules_are_summed_bounded_and_forgotten_when_they_are_gone() {
    let start = Instant::now();
    let mut store = Store::new(1, start);
    store.configure_rules(["kept".into()].into_iter());
    let of = |rule: &str, outcome| RuleCount { listener: "in".into(), rule: rule.into(), outcome, count: 2 };
    let interval =
        |rules| Interval { rules, revoked: [(Cause::Denied, 3)].into_iter().collect(), ..Interval::new(0) };
    let told = |store: &Store| -> Vec<String> {
        store.rules().map(|(_, rule, outcome, n)| format!("{rule} {} {n}", outcome.label())).collect()
    };
    let rules =
        vec![of("kept", Outcome::Deny), of("gone", Outcome::Audit), of("(default)", Outcome::DefaultDeny)];
    store.merge(&mut interval(rules), start);
    store.merge(&mut interval(vec![of("kept", Outcome::Deny)]), start);
    assert_eq!(told(&store), ["(default) default-deny 2", "gone audit 2", "kept deny 4"]);
    assert_eq!(store.revoked().collect::<Vec<_>>(), [("denied", 6)]);
    store.tick(start + Store::EXPIRY);
    assert_eq!(
        told(&store),
        ["(default) default-deny 2", "kept deny 4"],
        "counted for the last time 5 minutes ago"
    );
    let many = (0..2 * Store::RULES_MAX).map(|n| of(&format!("rule-{n:05}"), Outcome::Deny)).collect();
    store.merge(&mut interval(many), start);
    let told = told(&store);
    assert_eq!(told.len(), Store::RULES_MAX + 1);
    assert!(told.contains(&format!("(other) deny {}", 2 * (Store::RULES_MAX + 2))), "{}", told[1]);
}

#[test]
fn attempts_that_failed_and_had_another_in_their_place_are_told_for_a_window() {
    let now = Instant::now();
    let mut store = Store::new(1, now);
    store.configure(["app".into()].into_iter(), now);
    let mut seen = interval(0, "app", 10, 0, SECOND);
    for (reason, n) in [(Reason::ServerError, 3), (Reason::ConnectFailure, 2), (Reason::Hedge, 100)] {
        seen.services[0].counts.retries.by_reason[reason as usize] = n;
    }
    store.merge(&mut seen, now);
    store.tick(now + SECOND);
    let window = store.window(store.service("app").unwrap(), 1);
    assert_eq!((window.exchanges, window.errors, window.retried), (10, 0, 5));
}
