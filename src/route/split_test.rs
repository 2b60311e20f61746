#![allow(clippy::print_stdout, reason = "seeds are printed, so that a failure can be repeated")]

use std::collections::BTreeMap;

use super::*;
use crate::authorize::Caller;

struct Head(Vec<(&'static str, String)>);

impl Fields for Head {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_bytes())
    }
}

fn call<'c>(head: &'c Head, source: &str) -> Call<'c, Head> {
    let caller = Caller { listener: "in", port: 80, source: source.parse().unwrap(), peer: None };
    Call { caller, method: b"GET", path: b"/", fields: head }
}

fn split(weights: &[(&str, u32)], sticky: Option<Sticky>) -> Split {
    let shares = (0..).zip(weights).map(|(id, (name, weight))| Share::new(id, name, *weight)).collect();
    Split::new(shares, sticky).unwrap()
}

fn seed() -> u64 {
    let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
    println!("RINGMESH_SEED={seed}");
    seed
}

/// The upper tail of the chi-squared distribution with one degree of freedom: erfc(sqrt(x / 2)), by Abramowitz and Stegun 7.1.26.
fn p_of_chi_squared(x: f64) -> f64 {
    let z = (x / 2.0).sqrt();
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    poly * (-z * z).exp()
}

/// 90/10 over 100 000 requests, on two and on eight shards with a generator each: within 0.5 %, and p > 0.01 for this seed.
#[test]
fn by_chance_the_shares_are_those_of_the_weights_however_many_shards_there_are() {
    let seed = seed();
    let split = split(&[("a", 90), ("b", 10)], None);
    for shards in [1, 2, 8] {
        let mut generators: Vec<_> = (0..shards).map(|n| fastrand::Rng::with_seed(seed + n)).collect();
        let head = Head(Vec::new());
        let mut counts = [0_u64; 2];
        for n in 0..100_000_usize {
            let rng = &mut generators[n % shards as usize];
            let chosen = split.choose(&call(&head, "10.0.0.1"), || rng.u64(..));
            assert_eq!(chosen.cookie, None);
            counts[chosen.service as usize] += 1;
        }
        let expected = [90_000.0, 10_000.0];
        let chi: f64 = counts.iter().zip(expected).map(|(n, e)| (*n as f64 - e).powi(2) / e).sum();
        let p = p_of_chi_squared(chi);
        println!("{shards} shards: {counts:?}, chi-squared {chi:.3}, p {p:.3}");
        assert!((counts[1] as f64 / 100_000.0 - 0.1).abs() < 0.005, "{counts:?}");
        assert!(p > 0.01, "{shards} shards: {counts:?}: p = {p}");
    }
}

#[test]
fn a_weight_of_zero_gets_nothing_and_a_sum_of_zero_is_none() {
    let split = split(&[("a", 0), ("b", 1), ("c", 0)], None);
    for random in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
        assert_eq!(split.by_chance(random), 1);
        assert_eq!(split.by_key(&random.to_le_bytes()), 1);
    }
    assert_eq!(Split::new(vec![Share::new(0, "a", 0)], None), None);
    assert_eq!(Split::new(Vec::new(), None), None);
    assert_eq!(split.weighted(&[0, 0, 0], Pair { baseline: 0, canary: 1 }), None);
}

#[test]
fn by_chance_the_borders_of_the_shares_are_exact() {
    let split = split(&[("a", 1), ("b", 2), ("c", 1)], None);
    let quarter = 1_u64 << 62;
    let at = |random| split.by_chance(random);
    assert_eq!(
        [at(0), at(quarter - 1), at(quarter), at(3 * quarter - 1), at(3 * quarter), at(u64::MAX)],
        [0, 0, 1, 1, 2, 2]
    );
}

/// Of 50 000 keys; a share that is right is missed by 5 standard deviations (1.1 % for a half) in one of a million runs.
#[test]
fn by_key_the_shares_are_those_of_the_weights() {
    for weights in [&[("a", 90), ("b", 10)][..], &[("a", 1), ("b", 1)], &[("a", 50), ("b", 30), ("c", 20)]] {
        let split = split(weights, None);
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let mut counts = vec![0_u32; weights.len()];
        for n in 0..50_000 {
            counts[split.by_key(format!("user-{n}").as_bytes()) as usize] += 1;
        }
        for ((name, weight), count) in weights.iter().zip(&counts) {
            let (got, want) = (f64::from(*count) / 50_000.0, f64::from(*weight) / f64::from(total));
            assert!(
                (got - want).abs() < 5.0 * (want * (1.0 - want) / 50_000.0).sqrt(),
                "{name}: {got}, not {want}"
            );
        }
    }
}

#[test]
fn a_change_of_weights_moves_only_what_it_must() {
    let moves = |before: &[(&str, u32)], after: &[(&str, u32)]| {
        let (before, after) = (split(before, None), split(after, None));
        let mut moves: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for n in 0..20_000 {
            let key = format!("user-{n}");
            let (from, to) = (before.by_key(key.as_bytes()), after.by_key(key.as_bytes()));
            if from != to {
                *moves.entry((from, to)).or_default() += 1;
            }
        }
        moves
    };
    // 10 % from the one whose share falls, nobody else. 2000 of 20 000, ± 5 standard deviations.
    let two = moves(&[("a", 90), ("b", 10)], &[("a", 80), ("b", 20)]);
    assert_eq!(two.keys().collect::<Vec<_>>(), [&(0, 1)], "{two:?}");
    assert!((1788..=2212).contains(&two[&(0, 1)]), "{two:?}");
    // A step of a canary never sends anybody back.
    for (before, after) in [(1, 5), (5, 25), (25, 50), (50, 100)] {
        let step = moves(&[("a", 100 - before), ("b", before)], &[("a", 100 - after), ("b", after)]);
        assert_eq!(step.keys().collect::<Vec<_>>(), [&(0, 1)], "{before} to {after}: {step:?}");
    }
    // One more service takes from all and moves nobody else; one that goes leaves its own behind only.
    let more = moves(&[("a", 50), ("b", 50), ("c", 0)], &[("a", 50), ("b", 50), ("c", 25)]);
    assert!(more.keys().all(|(_, to)| *to == 2) && more.len() == 2, "{more:?}");
    let less = moves(&[("a", 50), ("b", 50), ("c", 25)], &[("a", 50), ("b", 50), ("c", 0)]);
    assert!(less.keys().all(|(from, _)| *from == 2), "{less:?}");
    // The order of the files and the size of the numbers do not matter.
    let same = split(&[("b", 100), ("a", 900)], None);
    let before = split(&[("a", 90), ("b", 10)], None);
    for n in 0..1000 {
        let key = format!("user-{n}");
        assert_eq!(before.by_key(key.as_bytes()), 1 - same.by_key(key.as_bytes()));
    }
}

/// Proxies of several versions share a mesh: these numbers may never change.
/// Of a canary: 45 of a and 5 of b, which takes over step by step, and 50 of c, which has nothing to do with it.
#[test]
fn a_canary_takes_keys_from_its_baseline_alone_and_gives_none_back() {
    let whole = split(&[("a", 45), ("b", 5), ("c", 50)], Some(Sticky::Header("x-user".into())));
    let pair = Pair { baseline: 0, canary: 1 };
    let steps = [[50, 0, 50], [49, 1, 50], [40, 10, 50], [20, 30, 50], [0, 50, 50]];
    let by_step = steps.map(|weights| {
        let split = whole.weighted(&weights, pair).unwrap();
        (0..20_000_u32).map(|n| split.by_key(&n.to_le_bytes())).collect::<Vec<u32>>()
    });
    for (weights, chosen) in steps.iter().zip(&by_step) {
        for (service, weight) in (0..).zip(weights) {
            let part = chosen.iter().filter(|chosen| **chosen == service).count() as f64 / 20_000.0;
            // Five standard deviations of 20 000 are below 0.018.
            assert!((part - f64::from(*weight) / 100.0).abs() < 0.018, "{service} has {part} of {weights:?}");
        }
    }
    for (before, after) in by_step.iter().zip(&by_step[1..]) {
        let moved = before.iter().zip(after).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|moved| moved == (&0, &1)), "only from the baseline to the canary");
        assert!(moved.count() > 0);
    }
    // Two shares of either, by subsets: none of the other is touched.
    let shares = vec![
        Share::new(0, "a", 20),
        Share::new(0, "a", 20).within("old", 1),
        Share::new(1, "b", 10),
        Share::new(2, "c", 50),
    ];
    let whole = Split::new(shares, None).unwrap();
    let [before, after] = [[20, 20, 10, 50], [5, 5, 40, 50]].map(|weights| {
        let split = whole.weighted(&weights, pair).unwrap();
        (0..5_000_u32).map(|n| split.by_key(&n.to_le_bytes())).collect::<Vec<u32>>()
    });
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || (*before, *after) == (0, 1)));
}

#[test]
fn the_same_key_goes_to_the_same_service_for_ever() {
    let split = split(&[("a", 50), ("b", 50)], None);
    let of: String =
        (0..32).map(|n| if split.by_key(format!("user-{n}").as_bytes()) == 0 { 'a' } else { 'b' }).collect();
    assert_eq!(of, EVER);
    assert_eq!(&written(0x0123_4567_89ab_cdef), b"0123456789abcdef");
}

const EVER: &str = "aabaaaaabbbaaabbaaababbbabbaabab";

#[test]
fn a_caller_is_told_by_what_is_configured_and_goes_by_chance_without_it() {
    let never = || -> u64 { panic!("by chance") };
    let of = |sticky: Sticky, head: &Head, source: &str| {
        let split = split(&[("a", 50), ("b", 50)], Some(sticky));
        split.choose(&call(head, source), never)
    };
    let header = || Sticky::Header("x-user".into());
    let head = Head(vec![("x-user", "user-1".into()), ("cookie", "a=1; user=user-1".into())]);
    let by_key = split(&[("a", 50), ("b", 50)], None).by_key(b"user-1");
    assert_eq!(of(header(), &head, "10.0.0.1"), Chosen { service: by_key, subset: 0, cookie: None });
    assert_eq!(of(Sticky::Cookie("user".into()), &head, "10.0.0.1").service, by_key);
    assert_eq!(
        of(Sticky::Source, &head, "::ffff:10.0.0.7").service,
        of(Sticky::Source, &head, "10.0.0.7").service,
        "a mapped address is the same caller"
    );
    let sources: Vec<u32> =
        (0..64).map(|n| of(Sticky::Source, &head, &format!("10.0.0.{n}")).service).collect();
    assert!(sources.contains(&0) && sources.contains(&1));
    let nobody = Head(vec![("x-user", String::new())]);
    for sticky in [header(), Sticky::Cookie("user".into()), Sticky::Identity] {
        let split = split(&[("a", 50), ("b", 50)], Some(sticky));
        let call = call(&nobody, "10.0.0.1");
        assert_eq!([split.choose(&call, || 0).service, split.choose(&call, || u64::MAX).service], [0, 1]);
    }
}

#[test]
fn a_cookie_of_ours_is_set_once_and_keeps_the_caller_where_it_is() {
    let set = SetCookie {
        name: "variant".into(),
        ttl: Some(Duration::from_secs(3600)),
        path: "/".into(),
        secure: true,
        http_only: true,
        same_site: SameSite::Lax,
    };
    let split = split(&[("a", 50), ("b", 50)], Some(Sticky::SetCookie(Box::new(set.clone()))));
    let mut counts = [0; 2];
    for n in 0..200_u64 {
        let token = mixed(n);
        let first = split.choose(&call(&Head(Vec::new()), "10.0.0.1"), || token);
        assert_eq!(first.cookie, Some(token));
        counts[first.service as usize] += 1;
        let mut value = Vec::new();
        set.write(token, &mut value);
        let value = String::from_utf8(value).unwrap();
        let (pair, rest) = value.split_once("; ").unwrap();
        assert_eq!(rest, "Path=/; Max-Age=3600; Secure; HttpOnly; SameSite=Lax");
        let again = Head(vec![("cookie", format!("x=y; {pair}"))]);
        let never = || -> u64 { panic!("by chance") };
        assert_eq!(
            split.choose(&call(&again, "10.0.0.2"), never),
            Chosen { service: first.service, subset: 0, cookie: None }
        );
    }
    assert!(counts[0] > 50 && counts[1] > 50, "{counts:?}");
}

#[test]
fn two_subsets_of_one_service_are_two_places_for_a_key() {
    let of_subset = |name: &str, subset| Share::new(0, "shop", 1).within(name, subset);
    let split = Split::new(vec![of_subset("v1", 1), of_subset("v2", 2)], None).unwrap();
    let mut met = [0_u32; 3];
    for n in 0..1000 {
        met[usize::from(split.share_by_key(format!("user-{n}").as_bytes()).subset)] += 1;
    }
    // A half, and five standard deviations of 16.
    assert!(met[0] == 0 && met[1].abs_diff(500) < 80, "{met:?}");
    assert_eq!(split.share_by_chance(0).subset, 1);
    assert_eq!(split.share_by_chance(u64::MAX).subset, 2);
}
