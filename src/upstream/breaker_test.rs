//! What one breaker promises, case by case. How long it takes, with one shard and with many: tests/simulation.rs.

use super::super::health::Probed;
use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// A breaker, and attempts on it that end at once.
struct Bench {
    breaker: Breaker,
    now_ns: u64,
}

const GOOD: Verdict = Verdict::Good { latency_ns: MS };

impl Bench {
    fn new(endpoints: usize, change: impl FnOnce(&mut spec::Breaker)) -> Self {
        Self::sharing(&Arc::default(), endpoints, change)
    }

    /// One more shard of the same service.
    fn sharing(health: &Arc<Health>, endpoints: usize, change: impl FnOnce(&mut spec::Breaker)) -> Self {
        Self::with(health, endpoints, &[], change)
    }

    /// One of which some endpoints drain.
    fn with(
        health: &Arc<Health>,
        endpoints: usize,
        drained: &[u32],
        change: impl FnOnce(&mut spec::Breaker),
    ) -> Self {
        let mut rules = spec::Breaker { ejection_jitter_percent: 0, ..spec::Breaker::default() };
        change(&mut rules);
        let rng = Rng::with_seed(7);
        let breaker = Breaker::new(Arc::new(rules), Arc::clone(health), endpoints, drained.into(), rng);
        Self { breaker, now_ns: SECOND }
    }

    /// What control says that probes have found.
    fn probed(&self, endpoint: usize, probed: Probed) {
        assert!(self.breaker.standing(endpoint).set_probed(probed));
        self.breaker.known().counts.changed();
    }

    /// The endpoints that the next attempt may go to, of which the first takes it.
    fn choices(&mut self, first: bool) -> Vec<usize> {
        let count = self.breaker.locals.len();
        let mut choices = Vec::new();
        let picked = self.breaker.choose(self.now_ns, first, &|_| false, |skip| {
            choices = (0..count).filter(|e| !skip(*e)).collect();
            choices.first().copied()
        });
        if choices.is_empty() { picked.into_iter().collect() } else { choices }
    }

    fn attempt(&mut self, endpoint: usize, verdict: Verdict) {
        let _ = self.breaker.is_troubled(self.now_ns);
        let begun = self.breaker.begin(endpoint, self.now_ns);
        self.end(endpoint, begun, verdict);
    }

    fn end(&mut self, endpoint: usize, begun: Begun, verdict: Verdict) {
        self.breaker.wait_no_more(endpoint, begun);
        if matches!(verdict, Verdict::Good { .. } | Verdict::Failure) {
            self.breaker.answered(endpoint, begun, self.now_ns);
        }
        self.breaker.ended(endpoint, begun, verdict, self.now_ns);
    }

    /// All are well.
    fn warm(&mut self) {
        for endpoint in 0..self.breaker.locals.len() {
            self.attempt(endpoint, GOOD);
        }
    }

    fn word(&self, endpoint: usize) -> Word {
        self.breaker.standing(endpoint).word()
    }

    fn reason(&self, endpoint: usize) -> Option<Reason> {
        self.word(endpoint).reason()
    }

    fn count(&self, of: impl FnOnce(&super::super::health::Counts) -> &std::sync::atomic::AtomicU64) -> u64 {
        of(&self.breaker.known().counts).load(Ordering::Relaxed)
    }
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_them_ends_the_row() {
    for (verdict, reason) in [(Verdict::Failure, Reason::Failures), (Verdict::Unanswered, Reason::NoAnswer)] {
        let mut bench = Bench::new(3, |rules| rules.failure_percent = 0);
        bench.warm();
        for _ in 0..10 {
            for _ in 0..4 {
                bench.attempt(1, verdict);
            }
            bench.attempt(1, GOOD);
        }
        assert_eq!(bench.reason(1), None);
        for n in 0..5 {
            assert_eq!(bench.reason(1), None, "after {n}");
            bench.attempt(1, verdict);
        }
        assert_eq!(bench.reason(1), Some(reason));
        assert_eq!(bench.choices(true), [0, 2]);
        assert_eq!(bench.count(|counts| counts.ejections(reason)), 1);
    }
}

#[test]
fn the_two_kinds_of_failure_have_streaks_of_their_own() {
    let mut bench = Bench::new(3, |rules| rules.failure_percent = 0);
    for _ in 0..4 {
        bench.attempt(1, Verdict::Failure);
        bench.attempt(1, Verdict::Unanswered);
    }
    assert_eq!(bench.reason(1), None);
    bench.attempt(1, Verdict::Failure);
    assert_eq!(bench.reason(1), Some(Reason::Failures));
}

#[test]
fn a_row_is_one_for_all_shards() {
    let health = Arc::default();
    let mut shards: Vec<Bench> =
        (0..5).map(|_| Bench::sharing(&health, 2, |rules| rules.failure_percent = 0)).collect();
    for shard in &mut shards[..4] {
        shard.attempt(0, Verdict::Failure);
    }
    // On any shard.
    shards[4].attempt(0, GOOD);
    for shard in &mut shards {
        assert_eq!(shard.reason(0), None);
        shard.attempt(0, Verdict::Failure);
    }
    for shard in &mut shards {
        assert_eq!(shard.choices(true), [1], "all shards pass it over, without a look around");
    }
    assert_eq!(shards[0].count(|counts| counts.ejections(Reason::Failures)), 1);
    // It is told of by the one that found out.
    let told: Vec<usize> = shards.iter_mut().map(|shard| shard.breaker.take_changes().0.len()).collect();
    assert_eq!(told, [0, 0, 0, 0, 1]);
}

#[test]
fn a_part_of_the_answers_that_fails_ejects_when_they_are_enough() {
    // Every other one fails, which is never a row.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    let mut answers = 1;
    while bench.reason(1).is_none() {
        bench.attempt(1, GOOD);
        bench.attempt(1, Verdict::Failure);
        bench.attempt(1, Verdict::Failure);
        answers += 3;
        assert!(answers < 40);
    }
    assert_eq!(bench.reason(1), Some(Reason::FailureRate));
    assert!((20..=24).contains(&answers), "{answers}");

    // Four of ten are not half.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    for _ in 0..100 {
        for verdict in [GOOD, Verdict::Failure, GOOD, Verdict::Failure, GOOD] {
            bench.attempt(1, verdict);
        }
    }
    assert_eq!(bench.reason(1), None);
    // What is older than the window does not count.
    bench.now_ns += 11 * SECOND;
    for _ in 0..6 {
        bench.attempt(1, GOOD);
        for _ in 0..2 {
            bench.attempt(1, Verdict::Failure);
        }
    }
    assert_eq!(bench.reason(1), None, "18 answers are too few");
}

#[test]
fn no_connection_ejects_at_once_and_one_attempt_finds_out_for_all() {
    let mut bench = Bench::new(2, |_| {});
    let begun: Vec<Begun> = (0..50).map(|_| bench.breaker.begin(0, bench.now_ns)).collect();
    for begun in begun {
        bench.end(0, begun, Verdict::Unreachable);
    }
    assert_eq!(bench.reason(0), Some(Reason::Connect));
    assert_eq!(bench.word(0).level(), 1, "fifty that began together count once");
    bench.now_ns += SECOND / 2;
    assert_eq!(bench.choices(true), [1]);
    bench.now_ns += SECOND;
    assert_eq!(bench.choices(false), [1], "a second attempt of an exchange finds nothing out");
    assert_eq!(bench.choices(true), [0]);
    let begun = bench.breaker.begin(0, bench.now_ns);
    assert_eq!(bench.choices(true), [1], "the others wait for what it finds");
    bench.end(0, begun, Verdict::Unreachable);
    assert_eq!(bench.word(0).level(), 2);
    bench.now_ns += 3 * SECOND / 2;
    assert_eq!(bench.choices(true), [1], "twice as long now");
    bench.now_ns += SECOND;
    assert_eq!(bench.choices(true), [0]);
}

#[test]
fn each_time_it_is_longer_up_to_the_most_and_shorter_again_when_all_is_well() {
    let mut bench = Bench::new(2, |rules| rules.trial_requests = 1);
    let mut lengths = Vec::new();
    bench.attempt(0, Verdict::Unreachable);
    for _ in 0..8 {
        lengths.push(bench.word(0).at_ns().div_ceil(MS) - bench.now_ns / MS);
        bench.now_ns = bench.word(0).at_ns() + MS;
        assert_eq!(bench.choices(true), [0]);
        bench.attempt(0, Verdict::Unreachable);
    }
    assert_eq!(lengths.iter().map(|ms| ms / 1000).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 30, 30, 30]);
    bench.now_ns = bench.word(0).at_ns() + MS;
    assert_eq!(bench.choices(true), [0]);
    bench.attempt(0, GOOD);
    assert_eq!((bench.reason(0), bench.word(0).level()), (None, 9));
    assert_eq!(bench.count(|counts| &counts.returns), 1);
    // Nine windows later all is forgotten; five, and it is as the fifth time in a row.
    bench.now_ns += 51 * SECOND;
    bench.attempt(0, Verdict::Unreachable);
    assert_eq!(bench.word(0).level(), 5);
}

#[test]
fn it_comes_back_after_so_many_good_trials_in_a_row() {
    let mut bench = Bench::new(2, |_| {});
    bench.warm();
    bench.breaker.take_changes();
    for _ in 0..5 {
        bench.attempt(0, Verdict::Failure);
    }
    bench.now_ns += 2 * SECOND;
    for verdict in [GOOD, GOOD, Verdict::Failure] {
        assert_eq!(bench.choices(true), [0]);
        bench.attempt(0, verdict);
    }
    assert_eq!(bench.word(0).level(), 2, "the third failed");
    bench.now_ns += 3 * SECOND;
    for n in 0..3 {
        assert!(bench.reason(0).is_some(), "{n}");
        assert_eq!(bench.choices(true), [0]);
        // One that is broken off says nothing.
        bench.attempt(0, Verdict::Nothing);
        assert_eq!(bench.choices(true), [0]);
        bench.attempt(0, GOOD);
    }
    assert_eq!(bench.reason(0), None);
    assert_eq!(bench.choices(true), [0, 1]);
    assert_eq!(bench.breaker.take_returned(), [0]);
    let (changes, lost) = bench.breaker.take_changes();
    let ejected: Vec<_> = changes.iter().map(|change| change.ejected.map(|(reason, _)| reason)).collect();
    assert_eq!((ejected, lost), (vec![Some(Reason::Failures), None], 0));
}

#[test]
fn a_trial_that_streams_is_good_when_its_time_is_over() {
    let mut bench = Bench::new(2, |rules| rules.trial_requests = 1);
    bench.attempt(0, Verdict::Unreachable);
    bench.now_ns += 2 * SECOND;
    assert_eq!(bench.choices(true), [0]);
    let begun = bench.breaker.begin(0, bench.now_ns);
    bench.breaker.wait_no_more(0, begun);
    bench.breaker.answered(0, begun, bench.now_ns);
    assert_eq!(bench.choices(true), [1]);
    bench.now_ns += 2 * SECOND;
    assert_eq!(bench.choices(true), [0]);
    let next = bench.breaker.begin(0, bench.now_ns);
    assert_eq!(bench.reason(0), None);
    bench.end(0, next, GOOD);
    // What the stream says in the end is said of an endpoint that is used.
    bench.breaker.ended(0, begun, Verdict::Failure, bench.now_ns);
    assert_eq!(bench.reason(0), None);
}

#[test]
fn when_all_fail_alike_nobody_is_ejected() {
    for endpoints in [2, 3, 10] {
        let mut bench = Bench::new(endpoints, |_| {});
        bench.warm();
        for _ in 0..200 {
            for endpoint in 0..endpoints {
                bench.attempt(endpoint, Verdict::Failure);
            }
        }
        assert!((0..endpoints).all(|e| bench.reason(e).is_none()), "{endpoints}");
        assert!(bench.count(|counts| &counts.spared) > 0);
        assert_eq!(bench.choices(true).len(), endpoints);
    }
}

#[test]
fn no_more_than_the_most_are_ejected_for_what_they_answer_and_one_always_may_be() {
    for (endpoints, percent, most) in
        [(10, 50, 5), (10, 25, 2), (3, 50, 1), (2, 0, 1), (10, 0, 1), (4, 100, 3)]
    {
        let mut bench = Bench::new(endpoints, |rules| {
            rules.ejected_percent_max = percent;
            rules.panic_percent = 0;
        });
        bench.warm();
        // One after the other, while those that are left are well.
        for endpoint in 0..endpoints {
            for _ in 0..50 {
                bench.attempt(endpoint, Verdict::Failure);
            }
            for other in endpoint + 1..endpoints {
                bench.attempt(other, GOOD);
            }
        }
        let ejected = (0..endpoints).filter(|e| bench.reason(*e).is_some()).count();
        assert_eq!(ejected, most, "{endpoints} {percent}");
    }
}

#[test]
fn those_that_take_no_connections_have_no_bound_and_where_all_are_so_all_are_tried() {
    let mut bench = Bench::new(3, |_| {});
    for endpoint in 0..3 {
        bench.attempt(endpoint, Verdict::Unreachable);
        assert_eq!(bench.reason(endpoint), Some(Reason::Connect));
    }
    assert_eq!(bench.choices(true), [0, 1, 2]);
    // One that is reached then is used again when it has answered as often as in trials.
    for _ in 0..3 {
        bench.attempt(1, GOOD);
    }
    assert_eq!(bench.choices(true), [1]);
}

#[test]
fn below_the_panic_threshold_all_that_take_connections_are_used() {
    let mut bench = Bench::new(10, |rules| rules.ejected_percent_max = 60);
    bench.warm();
    for endpoint in 0..3 {
        bench.attempt(endpoint, Verdict::Unreachable);
    }
    for endpoint in 3..7 {
        assert!(bench.choices(true).iter().all(|e| *e >= endpoint));
        for _ in 0..5 {
            bench.attempt(endpoint, Verdict::Failure);
        }
        bench.attempt(9, GOOD);
    }
    // Of the seven that take connections three are left.
    assert_eq!(bench.choices(true), [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(bench.count(|counts| &counts.panics), 1);
    assert!(bench.breaker.known().counts.panicking.load(Ordering::Relaxed));
    // Failures then make nothing worse, successes bring back.
    bench.attempt(3, Verdict::Failure);
    assert_eq!(bench.word(3).level(), 1);
    for _ in 0..3 {
        bench.attempt(3, GOOD);
    }
    assert_eq!(bench.reason(3), None);
    assert_eq!(bench.choices(true), [3, 7, 8, 9]);
    assert!(!bench.breaker.known().counts.panicking.load(Ordering::Relaxed));
}

#[test]
fn attempts_that_wait_while_others_are_answered_eject_before_any_timeout() {
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    let waiting: Vec<Begun> = (0..3).map(|_| bench.breaker.begin(0, bench.now_ns)).collect();
    let began_ns = bench.now_ns;
    while bench.reason(0).is_none() {
        assert!(bench.now_ns - began_ns <= SECOND / 2, "still not");
        bench.now_ns += 10 * MS;
        bench.attempt(1, GOOD);
        bench.attempt(2, GOOD);
    }
    assert!(bench.now_ns - began_ns >= 250 * MS, "{}", bench.now_ns - began_ns);
    assert_eq!(bench.reason(0), Some(Reason::Pending));
    assert_eq!(bench.breaker.standing(0).stuck(), 3);
    for begun in waiting {
        bench.end(0, begun, Verdict::Nothing);
    }
    assert_eq!(bench.breaker.standing(0).stuck(), 0);
}

#[test]
fn who_waits_is_no_fault_where_one_waits_or_nobody_is_answered_or_this_one_answers() {
    // Two may have asked for something that takes long.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    let _two = [0; 2].map(|e| bench.breaker.begin(e, bench.now_ns));
    for _ in 0..200 {
        bench.now_ns += 10 * MS;
        bench.attempt(1, GOOD);
    }
    assert_eq!(bench.reason(0), None);

    // All hang.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    for endpoint in [0, 1, 2, 0, 1, 2, 0, 1, 2] {
        let _ = bench.breaker.begin(endpoint, bench.now_ns);
    }
    for _ in 0..200 {
        bench.now_ns += 10 * MS;
        let _ = bench.breaker.is_troubled(bench.now_ns);
    }
    assert!((0..3).all(|e| bench.reason(e).is_none()));

    // It answers others meanwhile: long polls.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    for _ in 0..5 {
        let _ = bench.breaker.begin(0, bench.now_ns);
    }
    for _ in 0..200 {
        bench.now_ns += 10 * MS;
        (0..3).for_each(|e| bench.attempt(e, GOOD));
    }
    assert_eq!(bench.reason(0), None);

    // One that began later has been answered; nobody calls after that.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    let waiting: Vec<Begun> = (0..5).map(|_| bench.breaker.begin(0, bench.now_ns)).collect();
    bench.now_ns += SECOND / 5;
    bench.attempt(0, GOOD);
    for _ in 0..200 {
        bench.now_ns += 10 * MS;
        bench.attempt(1, GOOD);
    }
    assert_eq!((bench.reason(0), bench.breaker.standing(0).stuck()), (None, 0));
    // They are still known by name: what ends is not taken from those that began since.
    let _three = [0; 3].map(|e| bench.breaker.begin(e, bench.now_ns));
    waiting.into_iter().for_each(|begun| bench.end(0, begun, Verdict::Nothing));
    for _ in 0..200 {
        bench.now_ns += 10 * MS;
        bench.attempt(1, GOOD);
    }
    assert_eq!(bench.reason(0), Some(Reason::Pending));

    // What is uploaded slowly is not waited for; what has been uploaded is.
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    let mut uploads: Vec<Begun> = (0..5).map(|_| bench.breaker.begin(0, bench.now_ns)).collect();
    uploads.iter().for_each(|begun| bench.breaker.wait_no_more(0, *begun));
    let answers = |bench: &mut Bench, looks: usize| {
        for _ in 0..looks {
            bench.now_ns += 10 * MS;
            bench.attempt(1, GOOD);
        }
    };
    answers(&mut bench, 200);
    assert_eq!(bench.reason(0), None);
    let now_ns = bench.now_ns;
    uploads.iter_mut().for_each(|begun| *begun = bench.breaker.wait(0, *begun, now_ns));
    answers(&mut bench, 200);
    assert_eq!(bench.reason(0), Some(Reason::Pending));
}

#[test]
fn an_answer_on_one_shard_overtakes_what_waits_since_before_on_another() {
    // Three shards wait for one each; what a fourth asked after that is answered at once, and nobody asks any more, as peak EWMA
    // does not while it waits.
    let health = Arc::default();
    let mut shards: Vec<Bench> = (0..4).map(|_| Bench::sharing(&health, 3, |_| {})).collect();
    shards.iter_mut().for_each(Bench::warm);
    let mut run = |late: bool| {
        let began_ns = shards[0].now_ns;
        let waiting: Vec<Begun> =
            shards[..3].iter_mut().map(|shard| shard.breaker.begin(0, began_ns)).collect();
        for step in 1..=200 {
            for (n, shard) in shards.iter_mut().enumerate() {
                shard.now_ns = began_ns + step * 10 * MS;
                shard.attempt(1, GOOD);
                // After 200 ms, or at first: the others began no earlier.
                if n == 3 && step == if late { 20 } else { 1 } {
                    shard.attempt(0, GOOD);
                }
            }
        }
        let found = (shards[0].reason(0), shards[0].breaker.standing(0).stuck());
        for (shard, begun) in shards.iter_mut().zip(waiting) {
            shard.end(0, begun, Verdict::Nothing);
        }
        assert_eq!(shards[0].breaker.standing(0).stuck(), 0);
        found
    };
    assert_eq!(run(true), (None, 0));
    assert_eq!(run(false), (Some(Reason::Pending), 3));
}

#[test]
fn an_answer_on_one_shard_overtakes_what_another_that_does_nothing_else_has_said() {
    let health = Arc::default();
    let mut shards: Vec<Bench> = (0..2).map(|_| Bench::sharing(&health, 3, |_| {})).collect();
    shards.iter_mut().for_each(Bench::warm);
    let (first, second) = shards.split_at_mut(1);
    let (quiet, busy) = (&mut first[0], &mut second[0]);
    let waiting: Vec<Begun> = (0..3).map(|_| quiet.breaker.begin(0, quiet.now_ns)).collect();
    // They have waited for too long, which is said while nobody answers, so that it is not the endpoint; and nothing more happens
    // on that shard.
    for _ in 0..50 {
        quiet.now_ns += 10 * MS;
        let _ = quiet.breaker.is_troubled(quiet.now_ns);
    }
    assert_eq!(busy.breaker.standing(0).stuck(), 3);
    // The other one has begun something later, and has its answer. After that it asks the others for a while.
    busy.now_ns = quiet.now_ns;
    busy.attempt(1, GOOD);
    busy.attempt(0, GOOD);
    assert_eq!(busy.breaker.standing(0).stuck(), 0, "they say nothing any more");
    for _ in 0..200 {
        busy.now_ns += 10 * MS;
        busy.attempt(1, GOOD);
        busy.attempt(2, GOOD);
    }
    assert_eq!((busy.reason(0), busy.breaker.standing(0).stuck()), (None, 0));
    // What that shard begins later and waits for counts.
    quiet.now_ns = busy.now_ns;
    let later: Vec<Begun> = (0..3).map(|_| quiet.breaker.begin(0, quiet.now_ns)).collect();
    for _ in 0..50 {
        quiet.now_ns += 10 * MS;
        quiet.attempt(1, GOOD);
    }
    assert_eq!((quiet.reason(0), busy.breaker.standing(0).stuck()), (Some(Reason::Pending), 3));
    waiting.into_iter().chain(later).for_each(|begun| quiet.end(0, begun, Verdict::Nothing));
    assert_eq!(busy.breaker.standing(0).stuck(), 0);
}

#[test]
fn an_attempt_that_began_just_now_does_not_look_old_after_a_quiet_time() {
    let mut bench = Bench::new(3, |_| {});
    bench.warm();
    for _ in 0..50 {
        bench.now_ns += 10 * SECOND;
        bench.attempt(1, GOOD);
        bench.attempt(2, GOOD);
        let begun: Vec<Begun> = (0..3).map(|_| bench.breaker.begin(0, bench.now_ns)).collect();
        for _ in 0..20 {
            bench.now_ns += 10 * MS;
            bench.attempt(1, GOOD);
        }
        assert_eq!(bench.breaker.standing(0).stuck(), 0, "200 ms old");
        begun.into_iter().for_each(|begun| bench.end(0, begun, GOOD));
    }
    assert_eq!(bench.reason(0), None);
}

#[test]
fn answers_that_are_far_slower_than_the_others_eject_and_those_that_are_fast_enough_anyway_do_not() {
    for (slow_ms, expected) in [(300, Some(Reason::Slow)), (240, None)] {
        let mut bench = Bench::new(5, |_| {});
        bench.warm();
        for _ in 0..60 {
            bench.now_ns += 20 * MS;
            for endpoint in 0..5 {
                let latency_ns = if endpoint == 2 { slow_ms * MS } else { 2 * MS };
                bench.attempt(endpoint, Verdict::Good { latency_ns });
            }
        }
        assert_eq!(bench.reason(2), expected, "{slow_ms} ms");
        if expected.is_some() {
            // A trial that is as slow as before is none.
            bench.now_ns = bench.word(2).at_ns() + MS;
            assert_eq!(bench.choices(true), [2]);
            bench.attempt(2, Verdict::Good { latency_ns: slow_ms * MS });
            assert_eq!((bench.reason(2), bench.word(2).level()), (expected, 2));
        }
    }
    // Where all are as slow it is what the service is like.
    let mut bench = Bench::new(3, |_| {});
    for _ in 0..60 {
        bench.now_ns += 20 * MS;
        (0..3).for_each(|e| bench.attempt(e, Verdict::Good { latency_ns: SECOND }));
    }
    assert!((0..3).all(|e| bench.reason(e).is_none()));
}

#[test]
fn a_short_time_of_the_caller_is_no_fault_of_the_endpoint() {
    let mut bench = Bench::new(2, |_| {});
    bench.warm();
    for _ in 0..100 {
        bench.attempt(0, Verdict::OutOfTime { after_ns: 10 * MS });
    }
    assert_eq!(bench.reason(0), None);
    for _ in 0..5 {
        bench.attempt(0, Verdict::OutOfTime { after_ns: 300 * MS });
    }
    assert_eq!(bench.reason(0), Some(Reason::NoAnswer));
}

#[test]
fn what_is_switched_off_ejects_nobody() {
    let mut bench = Bench::new(3, |rules| {
        rules.consecutive_failures = 0;
        rules.consecutive_unanswered = 0;
        rules.failure_percent = 0;
        rules.slow_factor = 0;
    });
    bench.warm();
    let _four = [0; 4].map(|e| bench.breaker.begin(e, bench.now_ns));
    for _ in 0..200 {
        bench.now_ns += 10 * MS;
        bench.attempt(1, GOOD);
        bench.attempt(2, GOOD);
    }
    for _ in 0..200 {
        bench.attempt(0, Verdict::Failure);
        bench.attempt(0, Verdict::Unanswered);
        bench.attempt(1, GOOD);
        bench.attempt(2, GOOD);
    }
    assert_eq!(bench.reason(0), None);
}

#[test]
fn a_reload_forgets_nothing() {
    let health: Arc<Health> = Arc::default();
    let mut old = Bench::sharing(&health, 3, |_| {});
    old.warm();
    let late = old.breaker.begin(1, old.now_ns);
    (0..5).for_each(|_| old.attempt(1, Verdict::Failure));
    let list = |ports: &[u16]| -> Vec<spec::Endpoint> {
        ports.iter().map(|port| spec::testing::endpoint(*port, 1)).collect()
    };
    let kept = Health::kept(&health, &list(&[1, 2, 3]), &list(&[2, 9, 3, 4]));
    let mut new = Bench::sharing(&kept, 4, |_| {});
    assert_eq!(new.choices(true), [1, 2, 3]);
    // What ends under the old list is told under the new one.
    new.now_ns += 2 * SECOND;
    old.now_ns = new.now_ns;
    assert_eq!(new.choices(true), [0]);
    (0..3).for_each(|_| new.attempt(0, GOOD));
    assert_eq!(new.choices(true), [0, 1, 2, 3]);
    old.end(1, late, Verdict::Unreachable);
    assert_eq!(new.choices(true), [1, 2, 3]);
}

#[test]
fn who_fails_probes_gets_nothing_and_no_trial_until_it_passes_them() {
    let mut bench = Bench::new(4, |_| {});
    bench.warm();
    for (probed, is_out) in [
        (Probed::Unknown, false),
        (Probed::Awaited, true),
        (Probed::Passing, false),
        (Probed::Failing, true),
        (Probed::Unprobed, false),
    ] {
        bench.probed(1, probed);
        let expected: &[usize] = if is_out { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        for first in [true, false] {
            assert_eq!(bench.choices(first), expected, "{probed:?}");
        }
    }
    // Ejected as well, its time is over, and still nobody tries it.
    for _ in 0..5 {
        bench.attempt(1, Verdict::Failure);
    }
    bench.probed(1, Probed::Failing);
    bench.now_ns += 60 * SECOND;
    assert_eq!(bench.choices(true), [0, 2, 3]);
    bench.probed(1, Probed::Passing);
    assert_eq!(bench.choices(true), [1], "now it may be tried");
}

#[test]
fn when_too_many_fail_probes_all_are_used() {
    let mut bench = Bench::new(4, |_| {});
    bench.warm();
    bench.probed(0, Probed::Failing);
    bench.probed(1, Probed::Failing);
    assert_eq!(bench.choices(true), [2, 3], "half are well, which is enough");
    bench.probed(2, Probed::Failing);
    assert_eq!(bench.choices(true), [0, 1, 2, 3]);
    assert_eq!(bench.count(|counts| &counts.panics), 1);
    // Those that take no connections do not count among those that could be well.
    bench.probed(1, Probed::Passing);
    bench.attempt(0, Verdict::Unreachable);
    assert_eq!(bench.choices(false), [1, 3]);
}

#[test]
fn who_drains_gets_nothing_new_unless_nobody_else_is_left() {
    let mut bench = Bench::with(&Arc::default(), 3, &[1], |_| {});
    for first in [true, false] {
        assert_eq!(bench.choices(first), [0, 2]);
    }
    // No panic: it does not count.
    bench.probed(0, Probed::Failing);
    assert_eq!(bench.choices(true), [2]);
    bench.attempt(2, Verdict::Unreachable);
    bench.probed(0, Probed::Passing);
    bench.attempt(0, Verdict::Unreachable);
    let skipped = bench.breaker.choose(bench.now_ns, true, &|e| e != 1, |skip| (0..3).find(|e| !skip(*e)));
    assert_eq!(skipped, Some(1), "nobody else");
    // It was ejected before it was to drain: no trial.
    let health = Arc::default();
    let mut before = Bench::sharing(&health, 3, |_| {});
    before.attempt(1, Verdict::Unreachable);
    let mut bench = Bench::with(&health, 3, &[1], |_| {});
    bench.now_ns += 60 * SECOND;
    assert_eq!(bench.choices(true), [0, 2]);
    // Nor does it count for a panic as one that is well: of three others two are out.
    let mut bench = Bench::with(&Arc::default(), 5, &[3, 4], |_| {});
    bench.probed(0, Probed::Failing);
    bench.probed(1, Probed::Failing);
    assert_eq!(bench.choices(true), [0, 1, 2]);
}

#[test]
fn a_probe_that_reaches_it_brings_back_who_took_no_connections_and_nobody_else() {
    let mut bench = Bench::new(4, |_| {});
    bench.warm();
    bench.attempt(1, Verdict::Unreachable);
    for _ in 0..5 {
        bench.attempt(2, Verdict::Failure);
    }
    assert_eq!((bench.reason(1), bench.reason(2)), (Some(Reason::Connect), Some(Reason::Failures)));
    let level = bench.word(1).level();
    assert!(bench.breaker.standing(1).bring_back() && !bench.breaker.standing(2).bring_back());
    assert!(!bench.breaker.standing(1).bring_back(), "it is back");
    bench.breaker.known().counts.changed();
    assert_eq!(bench.choices(true), [0, 1, 3]);
    assert_eq!(bench.word(1).level(), level, "what is remembered stays");
    assert_eq!(bench.breaker.take_returned(), [1]);
}

#[test]
fn as_many_connections_must_fail_in_a_row_as_is_configured() {
    let mut bench = Bench::new(3, |rules| rules.consecutive_unreachable = 3);
    bench.warm();
    for _ in 0..4 {
        bench.attempt(1, Verdict::Unreachable);
        bench.attempt(1, Verdict::Unreachable);
        bench.attempt(1, GOOD);
    }
    assert_eq!(bench.reason(1), None);
    for _ in 0..3 {
        assert_eq!(bench.reason(1), None);
        bench.attempt(1, Verdict::Unreachable);
    }
    assert_eq!(bench.reason(1), Some(Reason::Connect));
    let mut never = Bench::new(3, |rules| {
        rules.consecutive_unreachable = 0;
        rules.failure_percent = 0;
    });
    never.warm();
    for _ in 0..100 {
        never.attempt(1, Verdict::Unreachable);
    }
    assert_eq!(never.reason(1), None);
}
