//! What of a service's endpoints is chosen, over time: slow endpoints, slow start, zones, priorities, bounded loads.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use ringmesh::upstream::affinity::Key;
use ringmesh::upstream::balance::{Balancer, Outcome, Wanted};
use ringmesh::upstream::spec::{Balance, Choice, Service, SlowStart, former_places};

use super::{MS, SECOND, World, assert_follows, seeded, service};

#[test]
fn one_of_ten_endpoints_that_is_fifty_times_slower_does_not_show_in_p99() {
    // Ten servers of a millisecond each: 10 to 6 000 requests a second are up to six tenths of what they can do, of what nine
    // can two thirds.
    let mut rng = seeded();
    let mut worst: f64 = 0.0;
    for rate in [2.0_f64, 10.0, 100.0, 1_000.0, 3_000.0, 6_000.0] {
        // As many requests at each rate, but no less than a minute, so that beginnings do not count for more than they do.
        let time_ns = ((60_000.0 / rate).max(60.0) * 1e9) as u64;
        let run = |slow: bool, rng: &mut Rng| {
            let mut world = World::new(Balance::PeakEwma, &[1; 10], MS);
            if slow {
                world.servers[3].mean_ns = 50.0 * MS as f64;
            }
            world.run(rng, rate, time_ns);
            (
                world.latency_quantile(0.99) / 1e6,
                world.picks[3] as f64 / world.picks.iter().sum::<u64>() as f64,
            )
        };
        let ((without, _), (with, part)) = (run(false, &mut rng), run(true, &mut rng));
        eprintln!(
            "{rate}/s: p99 {without:.2} ms without, {with:.2} ms with it; it got {:.3} %",
            part * 100.0
        );
        worst = worst.max(with / without);
    }
    assert!(worst <= 1.5, "p99 is {worst} times that without it");
}

#[test]
fn a_new_endpoint_gets_its_part_by_and_by_as_the_formula_says() {
    let mut rng = seeded();
    let declared = SlowStart { window: Duration::from_secs(40), aggression: 100, weight_percent_min: 10 };
    for balance in
        [Balance::Random, Balance::RoundRobin, Balance::LeastRequest, Balance::RingHash, Balance::Maglev]
    {
        let declare = |count: usize| {
            let choice = Choice { slow_start: Some(declared.clone()), ..Choice::DEFAULT };
            Service { choice: Some(Box::new(choice)), ..service(balance, &vec![1; count]) }
        };
        let (before, after) = (declare(9), declare(10));
        let mut balancer = Balancer::new(&after);
        let places = former_places(&before.endpoints, &after.endpoints);
        balancer.carry_over(&Balancer::new(&before), &places, 100 * SECOND);
        // Where all have their part: with tables of hashing the share is not exactly a tenth.
        let part_at = |balancer: &mut Balancer, seconds: f64, rng: &mut Rng| {
            let now_ns = 100 * SECOND + (seconds * 1e9) as u64;
            let picks = 100_000;
            let of_new = (0..picks)
                .filter(|_| {
                    let wanted = Wanted { subset: 0, key: Key::new(rng.u64(1..)) };
                    balancer.pick_for(now_ns, rng, wanted, |_| false) == Some(9)
                })
                .count();
            of_new as f64 / f64::from(picks)
        };
        let whole = part_at(&mut balancer, 41.0, &mut rng);
        for (seconds, factor) in [(0.0, 0.1), (10.0, 0.25), (20.0, 0.5), (36.0, 0.9)] {
            let part = part_at(&mut balancer, seconds, &mut rng);
            let expected = match balance {
                // It takes a part of its own keys, nobody else's.
                Balance::RingHash | Balance::Maglev => whole * factor,
                _ => factor / (9.0 + factor),
            };
            // 100 000 picks of a part of a tenth: five standard deviations are 0.005.
            assert!((part - expected).abs() < 0.005, "{balance:?} {seconds} s: {part} for {expected}");
        }
        assert!((whole - 0.1).abs() < 0.03, "{balance:?}: {whole}");
    }
}

#[test]
fn a_key_that_a_rising_endpoint_has_taken_stays() {
    let declared = SlowStart { window: Duration::from_secs(40), aggression: 100, weight_percent_min: 10 };
    for balance in [Balance::RingHash, Balance::Maglev] {
        let declare = |count: usize| {
            let choice = Choice { slow_start: Some(declared.clone()), ..Choice::DEFAULT };
            Service { choice: Some(Box::new(choice)), ..service(balance, &vec![1; count]) }
        };
        let (before, after) = (declare(9), declare(10));
        let mut balancer = Balancer::new(&after);
        balancer.carry_over(
            &Balancer::new(&before),
            &former_places(&before.endpoints, &after.endpoints),
            SECOND,
        );
        let mut rng = Rng::with_seed(1);
        for key in (1..2_000).map(|n: u64| Key::new(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))) {
            let wanted = Wanted { subset: 0, key };
            let mut over_time = (0..=40).map(|second| {
                balancer.pick_for(SECOND + second * SECOND, &mut rng, wanted, |_| false).unwrap()
            });
            let first = over_time.next().unwrap();
            let rest: Vec<usize> = over_time.collect();
            // One move at most, and that to the new one.
            let moves = std::iter::once(&first).chain(&rest).zip(&rest).filter(|(a, b)| a != b).count();
            assert!(moves <= 1 && (moves == 0 || rest[39] == 9), "{balance:?}: {first} {rest:?}");
        }
    }
}

#[test]
fn proxies_that_prefer_their_own_zone_load_all_endpoints_alike() {
    // Three zones with 4, 10 and 16 endpoints, as many callers in each: the first sends most of its traffic away.
    let mut rng = seeded();
    let zones: Vec<&str> = [("a", 4), ("b", 10), ("c", 16)].iter().flat_map(|(z, n)| vec![*z; *n]).collect();
    for balance in [Balance::Random, Balance::RoundRobin, Balance::LeastRequest] {
        let mut picks = vec![0_u64; zones.len()];
        let mut at_home = [0_u64; 3];
        for (n, own) in ["a", "b", "c"].into_iter().enumerate() {
            let mut declared = service(balance, &vec![1; zones.len()]);
            for (endpoint, zone) in declared.endpoints.iter_mut().zip(&zones) {
                endpoint.zone = Some(Arc::from(*zone));
            }
            declared.choice = Some(Box::new(Choice { own_zone: Some(own.into()), ..Choice::DEFAULT }));
            let mut balancer = Balancer::new(&declared);
            for _ in 0..100_000 {
                let picked = balancer.pick(SECOND, &mut rng, |_| false).unwrap();
                picks[picked] += 1;
                at_home[n] += u64::from(zones[picked] == own);
            }
        }
        assert_eq!(at_home[1..], [100_000, 100_000], "{balance:?}");
        // 4 of 30 endpoints for a third of the callers: 0.4 stays; 100 000 draws vary by 0.0015.
        assert!((at_home[0] as f64 / 1e5 - 0.4).abs() < 0.008, "{balance:?}: {at_home:?}");
        // Each endpoint has 10 000; what goes elsewhere is drawn: a deviation of at most 100, of which five.
        assert!(picks.iter().all(|&n| (9_450..10_550).contains(&n)), "{balance:?}: {picks:?}");
    }
}

#[test]
fn the_next_priority_takes_over_in_proportion_and_gives_back() {
    let mut rng = seeded();
    for balance in
        [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random, Balance::Maglev]
    {
        let mut declared = service(balance, &[1; 20]);
        for endpoint in &mut declared.endpoints[10..] {
            endpoint.priority = 1;
        }
        let mut balancer = Balancer::new(&declared);
        let (mut now_ns, mut version) = (SECOND, 0);
        let share = |balancer: &mut Balancer, rng: &mut Rng, away: usize| {
            let picks = (0..20_000).filter_map(|_| balancer.pick(SECOND, rng, |e| e < away));
            picks.filter(|e| *e < 10).count() as f64 / 20_000.0
        };
        assert_eq!(share(&mut balancer, &mut rng, 0), 1.0, "{balance:?}");
        // One after the other is ejected: at three the first priority is not quite enough any more (1.4 × 7 / 10 = 0.98).
        for (away, expected) in [(2, 1.0), (3, 0.98), (5, 0.7), (9, 0.14), (10, 0.0), (0, 1.0)] {
            // The census is taken at most every 20 µs.
            now_ns += MS;
            version += 1;
            balancer.usable(now_ns, version, |e| e >= away);
            let part = share(&mut balancer, &mut rng, away);
            // 20 000 draws: five deviations of a half are 0.018.
            assert!((part - expected).abs() < 0.018, "{balance:?} {away} away: {part} for {expected}");
        }
    }
}

#[test]
fn with_bounded_loads_a_hot_key_spills_over_and_all_else_stays() {
    let mut rng = seeded();
    for balance in [Balance::RingHash, Balance::Maglev] {
        let run = |overload_percent, rng: &mut Rng| {
            let mut choice = Choice::DEFAULT;
            choice.consistent.overload_percent = overload_percent;
            let declared = Service { choice: Some(Box::new(choice)), ..service(balance, &[1; 10]) };
            let mut balancer = Balancer::new(&declared);
            let hot = Key::new(0x1234_5678_9abc_def0);
            let mut in_flight = std::collections::VecDeque::new();
            let mut most = 0;
            // Two hundred at a time, of which half have the same key.
            for n in 0..50_000 {
                let key = if rng.bool() { hot } else { Key::new(rng.u64(1..)) };
                let picked = balancer.pick_for(SECOND, rng, Wanted { subset: 0, key }, |_| false).unwrap();
                balancer.started(picked);
                in_flight.push_back(picked);
                if n >= 200 {
                    most = most.max(balancer.in_flight(picked));
                    balancer.ended(in_flight.pop_front().unwrap(), SECOND, Outcome::Cancelled);
                }
            }
            most
        };
        let (free, bounded) = (run(None, &mut rng), run(Some(125), &mut rng));
        eprintln!("{balance:?}: at most {free} in flight to one endpoint, {bounded} with bounds");
        // ⌈1.25 × 201 / 10⌉ = 26; without bounds half of all and a share of the rest.
        assert!(bounded <= 26 && free >= 90, "{balance:?}: {free} {bounded}");
    }
}

#[test]
fn picks_by_key_are_even_and_cost_no_more_than_their_share_when_endpoints_go() {
    let mut rng = seeded();
    let declared = service(Balance::Maglev, &[1, 2, 3, 4]);
    let mut balancer = Balancer::new(&declared);
    let mut picks = vec![0_u64; 4];
    for _ in 0..200_000 {
        picks[balancer.pick(0, &mut rng, |_| false).unwrap()] += 1;
    }
    // Random keys: as even as the places, 65 537 of them.
    assert_follows(&picks, &[1, 2, 3, 4]);
}
