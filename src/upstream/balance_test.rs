//! What one balancer promises, case by case. Distributions and behaviour over time: tests/simulation.rs.

use std::collections::HashSet;

use super::super::spec::former_places;
use super::super::spec::testing::{endpoint, service};
use super::*;

const ALL: [Balance; 4] = [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random];
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

#[test]
fn no_endpoint_and_no_endpoint_left_is_none() {
    for balance in ALL {
        for weights in [&[][..], &[1], &[1, 1, 1], &[1, 5, 1000]] {
            let mut balancer = Balancer::new(&service(balance, weights));
            let mut rng = Rng::with_seed(1);
            assert_eq!(balancer.pick(0, &mut rng, |_| true), None, "{balance:?} {weights:?}");
            assert_eq!(balancer.pick(0, &mut rng, |_| false).is_some(), !weights.is_empty());
        }
    }
}

#[test]
fn what_is_skipped_is_never_picked_and_the_rest_is_found() {
    for balance in ALL {
        for weights in [&[1, 1, 1, 1][..], &[1000, 1000, 1, 1000]] {
            let mut balancer = Balancer::new(&service(balance, weights));
            let mut rng = Rng::with_seed(2);
            for _ in 0..100 {
                assert_eq!(balancer.pick(0, &mut rng, |e| e != 2), Some(2), "{balance:?} {weights:?}");
            }
            let picked: HashSet<_> =
                (0..1000).filter_map(|_| balancer.pick(0, &mut rng, |e| e == 0)).collect();
            assert!(
                !picked.contains(&0) && picked.contains(&1) && picked.contains(&3),
                "{balance:?} {picked:?}"
            );
        }
    }
}

#[test]
fn the_alias_table_holds_exactly_the_weights() {
    for weights in [
        vec![1, 2],
        vec![1, 1000],
        vec![7; 3],
        vec![3, 1, 4, 1, 5, 9, 2, 6],
        (1..=1000).collect::<Vec<u16>>(),
    ] {
        let Shares::Unequal(shares) = Shares::unequal(&weights) else { panic!("unequal was asked for") };
        let mut parts = vec![0.0; weights.len()];
        for (n, share) in shares.iter().enumerate() {
            let own = f64::from(share.threshold) / 2f64.powi(32);
            parts[n] += own / weights.len() as f64;
            parts[share.alias as usize] += (1.0 - own) / weights.len() as f64;
        }
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for (part, &weight) in parts.iter().zip(&weights) {
            assert!((part - f64::from(weight) / total).abs() < 1e-8, "{weights:?}: {weight} has {part}");
        }
    }
}

#[test]
fn of_two_endpoints_the_one_with_fewer_in_flight_is_picked() {
    let mut balancer = Balancer::new(&service(Balance::LeastRequest, &[1, 1]));
    let mut rng = Rng::with_seed(3);
    balancer.started(0);
    assert!((0..50).all(|_| balancer.pick(0, &mut rng, |_| false) == Some(1)));
    balancer.started(1);
    balancer.started(1);
    assert!((0..50).all(|_| balancer.pick(0, &mut rng, |_| false) == Some(0)));
    balancer.ended(1, 0, Outcome::Cancelled);
    balancer.ended(1, 0, Outcome::Failed);
    assert_eq!((balancer.in_flight(0), balancer.in_flight(1)), (1, 0));
    assert!((0..50).all(|_| balancer.pick(0, &mut rng, |_| false) == Some(1)));
}

#[test]
fn a_request_weighs_less_on_an_endpoint_of_more_weight() {
    let mut rng = Rng::with_seed(9);
    for balance in [Balance::LeastRequest, Balance::PeakEwma] {
        let mut balancer = Balancer::new(&service(balance, &[4, 1]));
        for endpoint in [0, 0, 1] {
            balancer.started(endpoint);
        }
        // Two on four is less than one on one: the heavy one wins unless both draws are of the other (1/25). Were the
        // bare numbers compared, it would win only when both are of itself (16/25).
        let heavy = (0..10_000).filter(|_| balancer.pick(0, &mut rng, |_| false) == Some(0)).count();
        assert!((9_500..9_700).contains(&heavy), "{balance:?}: {heavy}");
    }
}

#[test]
fn a_peak_counts_at_once_and_fades_by_time() {
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    answer(&mut balancer, 0, 0, MS);
    assert_eq!(balancer.latency_ns(0, 0), Some(MS));
    answer(&mut balancer, 0, 0, 50 * MS);
    assert_eq!(balancer.latency_ns(0, 0), Some(50 * MS), "slower: at once");
    answer(&mut balancer, 0, 10 * SECOND, MS);
    let averaged = 50.0 * (-1f64).exp() + (1.0 - (-1f64).exp());
    near(balancer.latency_ns(0, 10 * SECOND), averaged * 1e6);
    near(balancer.latency_ns(0, 30 * SECOND), averaged * 1e6 * (-2f64).exp());
    assert_eq!(balancer.latency_ns(0, 0), balancer.latency_ns(0, 10 * SECOND), "time does not go back");
    assert_eq!(balancer.latency_ns(1, 0), None, "it has not answered yet");
}

#[test]
fn the_short_form_of_the_decay_agrees_with_the_long_one() {
    for ms in 0..60_000 {
        let exact = (-(f64::from(ms) / 10_000.0)).exp();
        let ours = f64::from(decay(u64::from(ms as u32) * MS, FADE_NS));
        assert!((ours - exact).abs() < 2e-6, "{ms} ms: {ours} for {exact}");
    }
    assert_eq!(decay(u64::MAX, FADE_NS), 0.0);
}

#[test]
fn load_still_counts_after_a_quiet_night() {
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    let mut rng = Rng::with_seed(8);
    answer(&mut balancer, 0, 0, 4 * MS);
    answer(&mut balancer, 1, 0, 4 * MS);
    let morning = 12 * 3600 * SECOND;
    near(balancer.latency_ns(0, morning), 2e6);
    balancer.started(0);
    assert!((0..50).all(|_| balancer.pick(morning, &mut rng, |_| false) == Some(1)));
}

#[test]
fn an_endpoint_without_answers_counts_as_fast_as_the_service_usually_is() {
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    let mut rng = Rng::with_seed(4);
    answer(&mut balancer, 0, 0, 2 * MS);
    let picked = |balancer: &mut Balancer, rng: &mut Rng| {
        (0..1000).filter(|_| balancer.pick(0, rng, |_| false) == Some(1)).count()
    };
    let share = picked(&mut balancer, &mut rng);
    assert!((400..600).contains(&share), "even: {share}");
    balancer.started(1);
    assert_eq!(picked(&mut balancer, &mut rng), 0, "what is in flight to it counts from the first");
}

#[test]
fn refusing_fast_does_not_look_fast() {
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    let mut rng = Rng::with_seed(5);
    answer(&mut balancer, 0, 0, 100 * MS);
    balancer.started(1);
    balancer.ended(1, 0, Outcome::Failed);
    near(balancer.latency_ns(1, 0), 1e9);
    assert!((0..50).all(|_| balancer.pick(0, &mut rng, |_| false) == Some(0)));
    // exp(-2.5) × 1 s < 100 ms.
    answer(&mut balancer, 0, 25 * SECOND, 100 * MS);
    assert!((0..50).all(|_| balancer.pick(25 * SECOND, &mut rng, |_| false) == Some(1)), "it is tried again");
}

#[test]
fn a_failure_of_a_slow_service_counts_as_ten_times_the_usual() {
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    answer(&mut balancer, 0, 0, SECOND);
    balancer.started(1);
    balancer.ended(1, 0, Outcome::Failed);
    near(balancer.latency_ns(1, 0), 10e9);
}

#[test]
fn a_cancelled_attempt_says_nothing_of_the_endpoint() {
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    balancer.started(0);
    balancer.ended(0, SECOND, Outcome::Cancelled);
    assert_eq!((balancer.in_flight(0), balancer.latency_ns(0, SECOND)), (0, None));
}

#[test]
fn averages_survive_a_reload_by_address() {
    for count in [3, 40] {
        let old_service = service(Balance::PeakEwma, &vec![1; count]);
        let mut old = Balancer::new(&old_service);
        for e in 0..count {
            answer(&mut old, e, SECOND, (e as u64 + 1) * MS);
        }
        old.started(0);
        let mut new_service = old_service.clone();
        new_service.endpoints.remove(1);
        new_service.endpoints.insert(0, endpoint(999, 7));
        let mut new = Balancer::new(&new_service);
        let places = former_places(&old_service.endpoints, &new_service.endpoints);
        new.carry_over(&old, &places, SECOND);
        assert_eq!(new.latency_ns(0, SECOND), None, "a new one");
        near(new.latency_ns(1, SECOND), 1e6);
        near(new.latency_ns(2, SECOND), 3e6);
        near(new.latency_ns(count - 1, SECOND), count as f64 * 1e6);
        assert_eq!(new.in_flight(1), 0, "what is in flight ends on the old balancer");
        assert_eq!(
            new.seen.usual.latency_ns(),
            old.seen.usual.latency_ns(),
            "the new one is held to be as fast as the others"
        );

        let mut other = Balancer::new(&service(Balance::Random, &vec![1; count]));
        other.carry_over(&old, &places, SECOND);
        assert_eq!(other.latency_ns(1, SECOND), None, "it would not keep them fresh");
    }
}

#[test]
fn turns_stay_in_order_when_their_time_wraps_around() {
    let mut balancer = Balancer::new(&service(Balance::RoundRobin, &[1, 2, 3]));
    let mut rng = Rng::with_seed(6);
    balancer.pick(0, &mut rng, |_| false);
    let Turns::Due { heap, .. } = &mut balancer.turns[0] else { panic!("unequal weights") };
    for turn in &mut **heap {
        turn.due = turn.due.wrapping_add(u64::MAX - 10 * crate::upstream::turns::Turn::STRIDE);
    }
    let mut picks = [0i32; 3];
    for _ in 0..600 {
        picks[balancer.pick(0, &mut rng, |_| false).unwrap()] += 1;
    }
    for (n, expected) in [100, 200, 300].into_iter().enumerate() {
        assert!((picks[n] - expected).abs() <= 1, "{picks:?}");
    }
}

#[test]
fn an_endpoint_that_was_skipped_for_long_gets_no_burst() {
    for weights in [[1, 1, 1], [3, 2, 1]] {
        let mut balancer = Balancer::new(&service(Balance::RoundRobin, &weights));
        let mut rng = Rng::with_seed(7);
        for _ in 0..10_000 {
            assert_ne!(balancer.pick(0, &mut rng, |e| e == 0), Some(0));
        }
        let first: Vec<_> = (0..6).map(|_| balancer.pick(0, &mut rng, |_| false).unwrap()).collect();
        let zeros = first.iter().filter(|&&e| e == 0).count();
        assert!((2..=4).contains(&zeros), "{weights:?}: {first:?}");
    }
}

#[test]
fn an_endpoint_costs_sixteen_bytes() {
    // 10 000 services of ten endpoints: 1.6 MB per shard, and balancers themselves about as much.
    assert_eq!(size_of::<Load>(), 16);
    assert!(size_of::<Balancer>() <= 128, "{}", size_of::<Balancer>());
}

fn answer(balancer: &mut Balancer, endpoint: usize, now_ns: u64, latency_ns: u64) {
    balancer.started(endpoint);
    balancer.ended(endpoint, now_ns, Outcome::Answered { latency_ns });
}

fn near(latency_ns: Option<u64>, expected: f64) {
    let latency_ns = latency_ns.unwrap() as f64;
    assert!((latency_ns / expected - 1.0).abs() < 1e-3, "{latency_ns} ns for {expected}");
}

#[test]
fn a_service_that_is_seldom_called_forgets_by_answers() {
    let fade_after = |interval_ns: u64| {
        let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
        for n in 0..1000 {
            answer(&mut balancer, 0, SECOND + n * interval_ns, MS);
        }
        balancer.seen.usual.fade_ns / 1e9
    };
    for (interval_ms, seconds) in [(1, 10.0), (100, 10.0), (500, 50.0), (900, 90.0), (5_000, 100.0)] {
        let fade = fade_after(interval_ms * MS);
        assert!((fade / seconds - 1.0).abs() < 0.01, "{interval_ms} ms: {fade} s for {seconds} s");
    }
    // One long pause does not count for more than a short one.
    let mut balancer = Balancer::new(&service(Balance::PeakEwma, &[1, 1]));
    for n in 0..1000 {
        answer(&mut balancer, 0, SECOND + n * MS, MS);
    }
    answer(&mut balancer, 0, 12 * 3600 * SECOND, MS);
    assert!(balancer.seen.usual.fade_ns <= 10e9);
}

#[test]
fn an_endpoint_that_came_back_and_one_that_is_new_start_slowly() {
    use super::super::spec::{Choice, SlowStart};
    let declared = |count: usize| {
        let slow_start = Some(SlowStart {
            window: std::time::Duration::from_secs(10),
            aggression: 100,
            weight_percent_min: 10,
        });
        let mut service = service(Balance::Random, &vec![1; count]);
        service.choice = Some(Box::new(Choice { slow_start, ..Choice::DEFAULT }));
        service
    };
    let mut rng = Rng::with_seed(12);
    let mut part = |balancer: &mut Balancer, of: usize, now_ns: u64| {
        (0..20_000).filter(|_| balancer.pick(now_ns, &mut rng, |_| false) == Some(of)).count() as f64
            / 20_000.0
    };
    let mut balancer = Balancer::new(&declared(2));
    assert!((part(&mut balancer, 0, SECOND) - 0.5).abs() < 0.02, "the first ones are nobody's successors");
    balancer.returned(0, 3 * SECOND);
    assert!((part(&mut balancer, 0, 3 * SECOND) - 0.1 / 1.1).abs() < 0.01);
    assert!((part(&mut balancer, 0, 8 * SECOND) - 0.5 / 1.5).abs() < 0.02);
    assert!((part(&mut balancer, 0, 13 * SECOND) - 0.5).abs() < 0.02);

    let mut more = Balancer::new(&declared(3));
    let places = former_places(&declared(2).endpoints, &declared(3).endpoints);
    more.carry_over(&balancer, &places, 20 * SECOND);
    assert!((part(&mut more, 2, 20 * SECOND) - 0.1 / 2.1).abs() < 0.01);
    assert!((part(&mut more, 2, 30 * SECOND) - 1.0 / 3.0).abs() < 0.02);
}

#[test]
fn the_same_key_leads_to_the_same_endpoint_and_comes_back_to_it() {
    for balance in [Balance::RingHash, Balance::Maglev] {
        let service = service(balance, &[1; 8]);
        let (mut one, mut other) = (Balancer::new(&service), Balancer::new(&service));
        let mut rng = Rng::with_seed(13);
        for key in 1..500_u64 {
            let wanted = Wanted { subset: 0, key: Key::new(avalanche(key)) };
            let first = one.pick_for(SECOND, &mut rng, wanted, |_| false).unwrap();
            assert_eq!(other.pick_for(9 * SECOND, &mut rng, wanted, |_| false), Some(first));
            let second = one.pick_for(SECOND, &mut rng, wanted, |e| e == first).unwrap();
            assert_ne!(first, second);
            // Another proxy has the same substitute.
            assert_eq!(
                other.pick_for(9 * SECOND, &mut rng, wanted, |e| e == first),
                Some(second),
                "{balance:?}"
            );
            assert_eq!(other.pick_for(9 * SECOND, &mut rng, wanted, |_| false), Some(first), "{balance:?}");
        }
    }
}

#[test]
fn what_is_in_flight_weighs_more_on_an_endpoint_that_is_rising() {
    use super::super::spec::{Choice, SlowStart};
    let slow_start = Some(SlowStart {
        window: std::time::Duration::from_secs(10),
        aggression: 100,
        weight_percent_min: 10,
    });
    let mut service = service(Balance::LeastRequest, &[1, 1]);
    service.choice = Some(Box::new(Choice { slow_start, ..Choice::DEFAULT }));
    let mut balancer = Balancer::new(&service);
    balancer.returned(0, SECOND);
    // One on the new one is as much as ten on the other.
    balancer.started(0);
    (0..5).for_each(|_| balancer.started(1));
    let mut rng = Rng::with_seed(17);
    let picks = (0..20_000).filter(|_| balancer.pick(SECOND, &mut rng, |_| false) == Some(0)).count();
    // Only where both draws are it: (0.1 / 1.1)² = 0.8 %.
    assert!(picks < 400, "{picks}");
}

#[test]
fn a_key_has_its_priority_too() {
    let mut service = service(Balance::Maglev, &[1; 8]);
    for (n, endpoint) in service.endpoints.iter_mut().enumerate() {
        endpoint.priority = u8::from(n >= 4);
    }
    let mut balancer = Balancer::new(&service);
    // Two of the first four: 70 % of the keys stay there.
    let usable = |e: usize| e >= 2;
    balancer.usable(SECOND, 1, usable);
    let mut rng = Rng::with_seed(18);
    let (mut firsts, mut others) = (0, 0);
    for key in 1..2_000_u64 {
        let wanted = Wanted { subset: 0, key: Key::new(avalanche(key)) };
        let mut pick = || balancer.pick_for(SECOND, &mut rng, wanted, |e| !usable(e)).unwrap();
        let endpoint = pick();
        assert!((0..5).all(|_| pick() == endpoint), "the same each time");
        *(if endpoint < 4 { &mut firsts } else { &mut others }) += 1;
    }
    assert!((1_300..1_500).contains(&firsts), "{firsts} and {others}");
}
