use std::time::Duration;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn rise(aggression: u16, endpoints: usize) -> Rise {
    let declared = SlowStart { window: Duration::from_secs(100), aggression, weight_percent_min: 10 };
    Rise::new(&declared, endpoints)
}

#[test]
fn the_part_grows_as_in_the_formula_of_envoy() {
    for (aggression, expected) in [
        // x ^ (1 / aggression), at least a tenth.
        (100, [0.1, 0.1, 0.25, 0.5, 0.9, 1.0]),
        (200, [0.1, 0.2236, 0.5, f32::sqrt(0.5), 0.9487, 1.0]),
        (50, [0.1, 0.1, 0.1, 0.25, 0.81, 1.0]),
    ] {
        let mut rise = rise(aggression, 2);
        rise.begin(1, 1000 * SECOND);
        for (seconds, expected) in [0, 5, 25, 50, 90, 100].into_iter().zip(expected) {
            let factor = rise.factor(1, (1000 + seconds) * SECOND);
            assert!((factor - expected).abs() < 1e-3, "{aggression} {seconds} s: {factor} for {expected}");
            assert_eq!(rise.factor(0, (1000 + seconds) * SECOND), 1.0, "the other has its whole part");
        }
        assert!(rise.is_under_way(1099 * SECOND) && !rise.is_under_way(1100 * SECOND));
    }
}

#[test]
fn who_is_new_begins_and_who_was_rising_goes_on() {
    let mut old = rise(100, 3);
    old.begin(1, 10 * SECOND);
    let mut new = rise(100, 4);
    new.carry_over(Some(&old), &[Some(1), None, Some(0), Some(2)], 60 * SECOND);
    let factors = [0, 1, 2, 3].map(|e| new.factor(e, 60 * SECOND));
    assert_eq!(factors, [0.5, 0.1, 1.0, 1.0]);
    assert!(new.is_under_way(159 * SECOND) && !new.is_under_way(160 * SECOND));
}

#[test]
fn where_all_are_new_none_is() {
    let mut new = rise(100, 2);
    new.carry_over(None, &[None, None], SECOND);
    assert!(!new.is_under_way(SECOND) && new.factor(0, SECOND) == 1.0);
}
