//! What a limit does with latencies that are given.

use super::*;

const MS: u64 = 1_000_000;
const SETTINGS: Settings =
    Settings { limit_min: 2, limit_max: 1000, limit_initial: 20, tolerance: 0.25, window_ns: 100 * MS };

/// So many windows of a service that bears `capacity` at a time, each for 10 ms, where as much is asked as is let in
/// (`asked` at the most).
fn run(estimator: &mut Estimator, now_ns: &mut u64, windows: u32, capacity: f64, asked: u32) {
    for _ in 0..windows * 40 {
        *now_ns += 100 * MS / 40;
        let taken = asked.min(estimator.limit());
        let latency_ns = (10.0 * MS as f64 * (f64::from(taken) / capacity).max(1.0)) as u64;
        estimator.learn(SETTINGS, Sample { since_ns: *now_ns - latency_ns, now_ns: *now_ns, taken });
    }
}

/// So many exchanges within a window, that took that long each, with so many in progress.
fn window(estimator: &mut Estimator, now_ns: &mut u64, latency_ns: u64, taken: u32, exchanges: u64) {
    for _ in 0..exchanges {
        *now_ns += 100 * MS / exchanges;
        estimator.learn(SETTINGS, Sample { since_ns: *now_ns - latency_ns, now_ns: *now_ns, taken });
    }
}

/// One that knows that 10 ms are usual where little is asked.
fn calm() -> (Estimator, u64) {
    let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
    for _ in 0..3 {
        window(&mut estimator, &mut now, 10 * MS, 5, 20);
    }
    assert_eq!((estimator.baseline_ns(), estimator.limit()), (Some(10 * MS), 20));
    (estimator, now)
}

#[test]
fn it_grows_where_it_is_full_and_by_less_the_nearer_it_comes_to_what_is_bearable() {
    // 12.5 ms are bearable: of the root of 20, which is 4.47, so much as there is room. On average 14 are in progress.
    for (latency_us, peak, limit) in
        [(10_000, 20, 24), (11_250, 20, 22), (12_000, 20, 20), (10_000, 18, 24), (10_000, 17, 20)]
    {
        let (mut estimator, mut now) = calm();
        mixed(&mut estimator, &mut now, |n| (if n == 0 { peak } else { 14 }, latency_us * 1000));
        assert_eq!(estimator.limit(), limit, "{latency_us} us, {peak} in progress");
    }
}

/// A window of a limit that keeps exchanges out, from when those are answered that were let in before it.
fn kept_out_window(estimator: &mut Estimator, now_ns: &mut u64, latency_us: u64) {
    *now_ns = estimator.began_ns.max(*now_ns);
    let taken = estimator.limit();
    window(estimator, now_ns, latency_us * 1000, taken, 40);
}

/// One whose limit keeps exchanges out, after windows of these latencies, us: the limits since.
fn kept_out(latencies_us: &[u64]) -> (Estimator, u64, Vec<u32>) {
    let (mut estimator, mut now) = calm();
    let limits = latencies_us
        .iter()
        .map(|&latency_us| {
            kept_out_window(&mut estimator, &mut now, latency_us);
            estimator.limit()
        })
        .collect();
    (estimator, now, limits)
}

#[test]
fn a_step_up_that_brings_nothing_is_taken_back_and_one_that_does_leads_to_the_next() {
    // Of 24 each takes 24/20 as long: the service answers no more of them in a second than of 20.
    assert_eq!(kept_out(&[10_000, 12_000]).2, [24, 20]);
    // Just less than the root of that: more are answered, of 24 in 11.2 ms half of 4.92 more are let in.
    assert_eq!(kept_out(&[10_000, 10_950]).2, [24, 27]);
    assert_eq!(kept_out(&[10_000, 10_960]).2, [24, 20]);
    // Beyond what is bearable, too: it is known where it was bearable.
    assert_eq!(kept_out(&[10_000, 13_000]).2, [24, 20]);
}

#[test]
fn a_step_down_that_costs_nothing_stays_and_one_that_does_is_taken_back() {
    // What takes a fifth longer than usual is asked for five sixths. It takes as usual then, so as many are answered.
    assert_eq!(kept_out(&[12_000, 10_200, 10_200]).2, [17, 17, 17]);
    // It takes as long as before: fewer are answered.
    assert_eq!(kept_out(&[12_000, 12_000]).2, [17, 20]);
    // Just more than the root of 17/20 of that, and just less: that may be less than usual still.
    assert_eq!(kept_out(&[12_000, 11_070]).2, [17, 20]);
    assert_eq!(kept_out(&[12_000, 11_060]).2, [17, 15]);
    // What is not bearable is not let in again, whatever that costs.
    assert_eq!(kept_out(&[12_000, 13_000]).2, [17, 16]);
}

#[test]
fn a_step_down_is_not_tried_where_chance_makes_as_much_of_a_difference() {
    // 12 ms on average, of 2 and 22: the standard error is 1.6 ms, and a sixth less would be 2.
    let (mut estimator, mut now) = calm();
    mixed(&mut estimator, &mut now, |n| (20, [2, 22][(n % 2) as usize] * MS));
    assert_eq!(estimator.limit(), 21, "there is room for less than one");
}

#[test]
fn what_was_found_right_rests_for_seconds_and_is_tried_by_small_steps_then() {
    let (mut estimator, mut now, limits) = kept_out(&[10_000, 12_000, 10_000, 10_000]);
    assert_eq!(limits, [24, 20, 19, 20], "one up was in vain, one down costs");
    // Twice: then the baseline is doubted.
    for _ in 0..2 {
        let found_ns = now;
        while estimator.limit() == 20 {
            kept_out_window(&mut estimator, &mut now, 10_000);
            assert!(now < found_ns + 4_000 * MS, "it rests for ever");
        }
        assert!(now >= found_ns + 3_000 * MS, "after {} ms", (now - found_ns) / MS);
        assert_eq!(estimator.limit(), 21);
        // 21/20 as long: in vain once more, and down as well.
        let limits = [10_500, 10_000, 10_000].map(|latency_us| {
            kept_out_window(&mut estimator, &mut now, latency_us);
            estimator.limit()
        });
        assert_eq!(limits, [20, 19, 20]);
    }
}

#[test]
fn where_a_step_down_cost_something_the_next_one_is_up_though_it_takes_longer_than_usual() {
    let (mut estimator, mut now, limits) = kept_out(&[12_000, 12_000]);
    assert_eq!(limits, [17, 20]);
    while estimator.limit() == 20 {
        kept_out_window(&mut estimator, &mut now, 12_000);
    }
    assert_eq!(estimator.limit(), 21);
    // No longer, so more: one each time, as there is room for less.
    for limit in 22..30 {
        kept_out_window(&mut estimator, &mut now, 12_000);
        assert_eq!(estimator.limit(), limit);
    }
    // 12 ms x 29/28: the last one brought nothing.
    kept_out_window(&mut estimator, &mut now, 12_429);
    assert_eq!(estimator.limit(), 28);
}

#[test]
fn what_takes_longer_by_chance_does_not_take_a_step_back() {
    // 10 ms on average, then 11.5: of 24 that is more than half of what queueing makes of it, and may as well be chance.
    let (mut estimator, mut now) = calm();
    mixed(&mut estimator, &mut now, |n| (20, [2, 18][(n % 2) as usize] * MS));
    assert_eq!(estimator.limit(), 24);
    now = estimator.began_ns;
    mixed(&mut estimator, &mut now, |n| (24, [3, 20][(n % 2) as usize] * MS));
    assert_eq!(estimator.limit(), 26);
}

#[test]
fn what_is_answered_while_those_let_in_before_are_still_in_progress_says_nothing_of_a_new_limit() {
    let (mut estimator, mut now) = calm();
    window(&mut estimator, &mut now, 10 * MS, 20, 40);
    assert_eq!(estimator.limit(), 24);
    // 9 ms, less than they take: a thousand that took for ever, of 90 in progress.
    for _ in 0..1000 {
        now += 9_000;
        estimator.learn(SETTINGS, Sample { since_ns: now - 900 * MS, now_ns: now, taken: 90 });
    }
    kept_out_window(&mut estimator, &mut now, 10_000);
    assert_eq!(estimator.limit(), 29);
}

#[test]
fn a_few_that_take_for_ever_do_not_say_that_all_take_longer() {
    let mut latencies = Latencies::default();
    for n in 0..100 {
        latencies.push(if n % 20 == 0 { 1_000_000 * MS } else { 10 * MS });
    }
    // Three medians each: 95 x 10 and 5 x 30.
    assert_eq!(latencies.mean().ns.round(), 11.0 * MS as f64);
}

#[test]
fn what_varies_from_part_to_part_is_chance_and_what_varies_by_turns_is_not() {
    let of = |latency_ms: fn(u64) -> u64| {
        let mut latencies = Latencies::default();
        (0..80).for_each(|n| latencies.push(latency_ms(n) * MS));
        let mean = latencies.mean();
        [mean.ns, mean.error_ns].map(|ns| (ns * 1000.0 / MS as f64).round())
    };
    assert_eq!(of(|n| if n % 2 == 0 { 5 } else { 15 }), [10_000.0, 0.0]);
    // Eight parts of ten, which differ by 1 from their mean: the root of 8 / (8 x 7).
    assert_eq!(of(|n| if n / 10 % 2 == 0 { 9 } else { 11 }), [10_000.0, 378.0]);
}

#[test]
fn it_stays_within_its_bounds_however_long_everything_takes() {
    let (mut estimator, mut now) = calm();
    let bounded = Settings { limit_min: 15, limit_max: 30, ..SETTINGS };
    let mut seen = (u32::MAX, 0);
    for n in 0..40_u64 * 100 {
        now += 100 * MS / 40;
        // Ever longer, then as short as can be.
        let latency_ns = if n < 2_000 { 10 * MS + n * MS } else { MS };
        estimator
            .learn(bounded, Sample { since_ns: now - latency_ns, now_ns: now, taken: estimator.limit() });
        seen = (seen.0.min(estimator.limit()), seen.1.max(estimator.limit()));
    }
    assert_eq!(seen, (15, 30));
}

#[test]
fn what_is_usual_comes_down_at_once_and_goes_up_slowly() {
    let (mut estimator, mut now) = calm();
    window(&mut estimator, &mut now, 20 * MS, 5, 40);
    assert_eq!(estimator.baseline_ns(), Some(12 * MS));
    window(&mut estimator, &mut now, 5 * MS, 5, 40);
    assert_eq!(estimator.baseline_ns(), Some(8_500_000));
    // And slowly where that may be chance.
    window(&mut estimator, &mut now, 7 * MS, 5, 40);
    assert_eq!(estimator.baseline_ns(), Some(8_200_000));
}

#[test]
fn what_is_much_less_by_chance_alone_does_not_bring_down_at_once_what_is_usual() {
    // 5 ms on average both times: of parts that took 1 and 9 in turns, with a standard error of 1.5 ms, and of 5 each.
    for (latencies, baseline_us) in [([1, 9], 9_000), ([5, 5], 7_500)] {
        let (mut estimator, mut now) = calm();
        mixed(&mut estimator, &mut now, |n| (5, latencies[(n / 5 % 2) as usize] * MS));
        assert_eq!(estimator.baseline_ns(), Some(baseline_us * 1000), "{latencies:?}");
    }
}

#[test]
fn what_is_usual_is_doubted_where_little_is_never_asked_and_measured_by_what_begins_then() {
    let (mut estimator, mut now) = calm();
    // Ten seconds, and 15 % by chance.
    now += 12_000 * MS;
    window(&mut estimator, &mut now, 10 * MS, 20, 40);
    assert_eq!(estimator.limit(), 10, "half of it, for as long as is measured");
    // What was in progress before says nothing, however much of it ends now.
    window(&mut estimator, &mut now, 30 * MS, 20, 200);
    assert_eq!((estimator.limit(), estimator.baseline_ns()), (10, Some(10 * MS)));
    // Of these the first fifth began before there was as little as there should be.
    window(&mut estimator, &mut now, 20 * MS, 10, 125);
    assert_eq!(estimator.limit(), 20, "enough was measured");
    assert_eq!(estimator.baseline_ns(), Some(20 * MS), "by those that began then alone");
    // Too few in two seconds say nothing.
    now += 12_000 * MS;
    window(&mut estimator, &mut now, 20 * MS, 20, 40);
    assert_eq!(estimator.limit(), 10);
    for _ in 0..15 {
        window(&mut estimator, &mut now, 40 * MS, 10, 1);
        now += 50 * MS;
    }
    assert_eq!((estimator.limit(), estimator.baseline_ns()), (20, Some(20 * MS)));
}

#[test]
fn less_than_what_is_usual_is_believed_by_half_each_time_it_is_measured_and_less_than_half_of_it_at_once() {
    for (latency_ms, baselines_us) in [(6, [8_000, 7_000]), (4, [4_000, 4_000])] {
        let (mut estimator, mut now) = calm();
        // Ten seconds, and 15 % by chance; then 200 of what is usual.
        for (later_ms, baseline_us) in [(12_000, baselines_us[0]), (1_900, baselines_us[1])] {
            now += later_ms * MS;
            window(&mut estimator, &mut now, 10 * MS, 20, 40);
            assert_eq!(estimator.limit(), 10, "half of it, for as long as is measured");
            while estimator.limit() == 10 {
                now += MS;
                let since_ns = now - latency_ms * MS;
                estimator.learn(SETTINGS, Sample { since_ns, now_ns: now, taken: 10 });
            }
            assert_eq!((estimator.limit(), estimator.baseline_ns()), (20, Some(baseline_us * 1000)));
        }
    }
}

#[test]
fn a_limit_that_keeps_nobody_out_is_not_halved_whatever_is_doubted() {
    // Of 20: never all, or all for a moment only.
    for (usual, most) in [(19, 19), (14, 20)] {
        let (mut estimator, mut now) = calm();
        now += 12_000 * MS;
        for _ in 0..100 {
            // More than is bearable, so that it does not grow, and not so smooth that it shrinks.
            window(&mut estimator, &mut now, 12_500_000, usual, 39);
            window(&mut estimator, &mut now, 12_500_000, most, 1);
            assert_eq!(estimator.limit(), 20, "{usual} and {most} in progress");
        }
        // What was doubted still is.
        window(&mut estimator, &mut now, 12_500_000, 20, 40);
        window(&mut estimator, &mut now, 12_500_000, 20, 40);
        assert_eq!(estimator.limit(), 10);
    }
    // Nor where nothing is known yet.
    let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
    window(&mut estimator, &mut now, 10 * MS, 15, 40);
    assert_eq!((estimator.limit(), estimator.baseline_ns()), (20, Some(10 * MS)));
}

/// A window of 40 exchanges, of which each `taken` and latency is told by its number.
fn mixed(estimator: &mut Estimator, now_ns: &mut u64, of: impl Fn(u64) -> (u32, u64)) {
    for n in 0..40 {
        *now_ns += 100 * MS / 40;
        let (taken, latency_ns) = of(n);
        estimator.learn(SETTINGS, Sample { since_ns: *now_ns - latency_ns, now_ns: *now_ns, taken });
    }
}

#[test]
fn it_does_not_shrink_where_less_than_half_of_it_is_in_use() {
    // 12.5 ms are bearable. Of 20 at most 12 are in use each time: 9 on average, then 11.
    for (usual, limit) in [(8, 20), (11, 16)] {
        let (mut estimator, mut now) = calm();
        mixed(&mut estimator, &mut now, |n| (if n % 4 == 0 { 12 } else { usual }, 20 * MS));
        assert_eq!((estimator.limit(), estimator.baseline_ns()), (limit, Some(10 * MS)), "{usual}");
    }
}

#[test]
fn it_does_not_shrink_by_what_may_be_chance() {
    // The mean is 13 ms, and 12.5 are bearable. Where a half of all takes 4 ms and the others 22 it may as well be 11.5.
    for (latencies, limit) in [([4 * MS, 22 * MS], 20), ([13 * MS; 2], 19)] {
        let (mut estimator, mut now) = calm();
        mixed(&mut estimator, &mut now, |n| (20, latencies[(n % 2) as usize]));
        assert_eq!(estimator.limit(), limit, "{latencies:?}");
    }
}

#[test]
fn a_probe_errs_to_the_side_of_letting_in() {
    let (mut estimator, mut now) = calm();
    now += 12_000 * MS;
    window(&mut estimator, &mut now, 10 * MS, 20, 40);
    assert_eq!(estimator.limit(), 10, "half of it, for as long as is measured");
    estimator.learn(SETTINGS, Sample { since_ns: now - MS, now_ns: now, taken: 10 });
    now += 100 * MS;
    for n in 0..100_u64 {
        now += MS;
        let latency_ns = [5, 5, 5, 10, 10, 10, 10, 25, 25, 25][(n % 10) as usize] * MS;
        estimator.learn(SETTINGS, Sample { since_ns: now - latency_ns, now_ns: now, taken: 10 });
    }
    // The mean is 13 ms, its standard error 0.42; and the mean of that and what was known.
    assert_eq!((estimator.limit(), estimator.baseline_ns().map(|ns| ns / 10_000)), (20, Some(1_171)));
}

#[test]
fn it_finds_what_a_service_bears_from_below_and_from_above() {
    for capacity in [8.0, 50.0, 300.0] {
        let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
        run(&mut estimator, &mut now, 400, capacity, u32::MAX);
        let part = f64::from(estimator.limit()) / capacity;
        assert!((0.6..=1.7).contains(&part), "{} for {capacity}: {estimator:?}", estimator.limit());
    }
}

#[test]
fn it_neither_grows_nor_shrinks_while_little_is_asked() {
    let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
    run(&mut estimator, &mut now, 400, 50.0, 5);
    assert_eq!(estimator.limit(), 20);
    assert_eq!(estimator.baseline_ns(), Some(10 * MS));
}

#[test]
fn a_service_that_becomes_slower_for_good_is_not_strangled() {
    let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
    run(&mut estimator, &mut now, 200, 50.0, u32::MAX);
    // From now on each takes 40 ms, whatever is asked: the limit comes down, in vain, and goes up again.
    let mut least = u32::MAX;
    for _ in 0..200 * 40 {
        now += 100 * MS / 40;
        let taken = estimator.limit();
        least = least.min(taken);
        estimator.learn(SETTINGS, Sample { since_ns: now - 40 * MS, now_ns: now, taken });
    }
    assert!(estimator.limit() > 100, "{estimator:?}");
    assert!(least >= 10, "{least}");
}

/// Of a service that takes as long whatever is asked of it, by chance shorter or longer, and of which too short a latency is
/// believed to be usual: until that is measured again some windows seem bearable and some do not, and each would take a step
/// from the one before.
#[test]
fn what_is_bearable_by_chance_in_between_does_not_let_it_come_down_in_vain_step_by_step() {
    for seed in 0..50 {
        let mut rng = Rng::with_seed(seed);
        let (mut estimator, mut now) = calm();
        let mut least = u32::MAX;
        // Less than ten seconds, after which it is measured.
        let until = now + 9_000 * MS;
        while now < until {
            let taken = estimator.limit();
            least = least.min(taken);
            // 13 ms on average and at the most three medians, of which 12.5 are bearable.
            let latency_ns = (15.1 * MS as f64 * -(1.0 - rng.f64()).ln()) as u64;
            now += 15_100_000 / u64::from(taken);
            estimator
                .learn(SETTINGS, Sample { since_ns: now.saturating_sub(latency_ns), now_ns: now, taken });
        }
        // It is found in vain after a quarter; that it has come down as far is by chance as well.
        assert!(least >= 10, "down to {least} with seed {seed}");
    }
}

#[test]
fn settings_that_change_hold_at_once() {
    let (mut estimator, mut now) = (Estimator::new(SETTINGS, 1), 1000 * MS);
    run(&mut estimator, &mut now, 100, 300.0, u32::MAX);
    let lower = Settings { limit_max: 7, ..SETTINGS };
    estimator.learn(lower, Sample { since_ns: now - MS, now_ns: now, taken: 1 });
    assert!(estimator.limit() <= 7);
}
