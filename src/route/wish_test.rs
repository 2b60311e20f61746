use super::*;
use crate::upstream::budget::Budget;
use crate::upstream::retry::Reason;

struct Lines(Vec<(String, String)>);

impl Fields for Lines {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.lines(name)
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(line, _)| line == name).map(|(_, value)| value.as_bytes())
    }
}

const MS: fn(u64) -> Duration = Duration::from_millis;

fn read(may: May, lines: &[(&str, &str)]) -> Option<Wishes> {
    may.read(&Lines(lines.iter().map(|(name, value)| (format!("x-envoy-{name}"), (*value).into())).collect()))
}

/// Three attempts, after 503 and what the network does.
fn of_all() -> Policy {
    Policy {
        attempts_max: 3,
        on: Reasons::of(&[Reason::ConnectFailure]),
        statuses: Statuses::NONE.with(503, 503),
        budget: Budget { millionths: 200_000, floor: 10 },
        ..Policy::off()
    }
}

fn policy(may: May, base: &Policy, lines: &[(&str, &str)]) -> (Policy, Outcome) {
    let wishes = read(may, lines).unwrap();
    let policy = wishes.policy(base).clone();
    (policy, wishes.outcome(None))
}

const WIDE: May = May {
    attempts_max: Some(5),
    timeout_max: Some(Duration::from_secs(20)),
    attempt_timeout_max: Some(Duration::from_secs(2)),
};

#[test]
fn a_request_that_says_nothing_has_no_wishes() {
    assert!(read(WIDE, &[]).is_none());
    assert!(read(WIDE, &[("attempt-count", "3"), ("expected-rq-timeout-ms", "5")]).is_none());
    assert!(read(WIDE, &[("max-retries", "")]).is_some(), "what says it badly has to be taken out, too");
}

#[test]
fn what_is_worth_another_attempt_is_added_to_what_the_policy_says() {
    let base = of_all();
    let (said, outcome) = policy(
        WIDE,
        &base,
        &[
            ("retry-on", " retriable-4xx , reset,retriable-status-codes"),
            ("retry-on", "gateway-error,,"),
            ("retry-grpc-on", "cancelled"),
        ],
    );
    assert_eq!(outcome, Outcome::Taken);
    assert!(said.on.has_all(Reasons::NO_RESPONSE) && said.on.has(Reason::Cancelled), "{said:?}");
    assert!(!said.on.has(Reason::Unavailable));
    assert_eq!(said.statuses.iter().collect::<Vec<_>>(), [409, 502, 503, 504]);
    assert_eq!(said.attempts_max, 3);
}

#[test]
fn statuses_that_are_listed_count_where_it_is_said_that_such_a_list_counts() {
    let listed = ("retriable-status-codes", "404, 599");
    let said_so = ("retry-on", "retriable-status-codes");
    let base = of_all();
    let of_list = Policy { lists_statuses: true, ..base.clone() };
    for (base, lines) in
        [(&base, &[listed, said_so][..]), (&of_list, &[listed]), (&of_list, &[said_so, listed])]
    {
        let (said, outcome) = policy(WIDE, base, lines);
        assert_eq!(
            (said.statuses.iter().collect::<Vec<_>>(), outcome),
            (vec![404, 503, 599], Outcome::Taken)
        );
        // What stays is the policy's.
        assert_eq!(Policy { statuses: base.statuses, ..said }, *base);
    }
    assert_eq!(policy(WIDE, &base, &[listed]), (base.clone(), Outcome::Ignored));
    // Then they are no reason to be tried again, either.
    let off = Policy { attempts_max: 1, statuses: Statuses::NONE, on: Reasons::NONE, ..of_all() };
    for (lines, attempts, outcome) in [
        (&[listed, ("max-retries", "2")][..], 1, Outcome::Ignored),
        (&[listed, ("retry-on", "reset")], 2, Outcome::Ignored),
        (&[said_so, ("max-retries", "2")], 1, Outcome::Ignored),
        (&[listed, said_so], 2, Outcome::Taken),
    ] {
        let (said, told) = policy(WIDE, &off, lines);
        assert_eq!((said.attempts_max, told), (attempts, outcome), "{lines:?}");
        assert_eq!(said.statuses.has(404), outcome == Outcome::Taken, "{lines:?}");
    }
}

#[test]
fn a_word_of_the_other_field_and_what_is_no_status_are_passed_over() {
    for (name, value) in [
        ("retry-on", "5xx,unavailable"),
        ("retry-grpc-on", "5xx"),
        ("retry-on", "5XX"),
        ("retry-on", "5xx reset"),
        ("retry-on", "retriable-headers"),
        ("retry-grpc-on", "retriable-status-codes"),
        ("retriable-status-codes", "399"),
        ("retriable-status-codes", "600"),
        ("retriable-status-codes", "99999999999999999999"),
        ("retriable-status-codes", "+404"),
        ("retriable-status-codes", "404;405"),
    ] {
        let (said, outcome) = policy(WIDE, &of_all(), &[(name, value)]);
        assert_eq!(outcome, Outcome::Ignored, "{name}: {value}");
        let has_5xx = said.statuses.has(500);
        assert_eq!(has_5xx, value == "5xx,unavailable", "what is understood holds: {value}");
        assert!(!said.on.has(Reason::Unavailable), "{name}: {value}");
    }
}

#[test]
fn attempts_are_those_that_are_asked_for_up_to_the_ceiling() {
    let none = May::default();
    let off = Policy { attempts_max: 1, ..of_all() };
    for (may, base, retries, attempts, outcome) in [
        (WIDE, of_all(), "0", 1, Outcome::Taken),
        (WIDE, of_all(), "1", 2, Outcome::Taken),
        (WIDE, of_all(), "4", 5, Outcome::Taken),
        (WIDE, of_all(), "5", 5, Outcome::Capped),
        (WIDE, of_all(), "255", 5, Outcome::Capped),
        (WIDE, of_all(), "99999999999999999999", 5, Outcome::Capped),
        // No ceiling: only fewer.
        (none, of_all(), "1", 2, Outcome::Taken),
        (none, of_all(), "7", 3, Outcome::Capped),
        (none, off.clone(), "7", 1, Outcome::Capped),
        (WIDE, off.clone(), "2", 3, Outcome::Taken),
        // A ceiling below what holds for all takes nothing away.
        (May { attempts_max: Some(2), ..none }, of_all(), "7", 3, Outcome::Capped),
        // After nothing.
        (WIDE, Policy { on: Reasons::NONE, statuses: Statuses::NONE, ..of_all() }, "4", 3, Outcome::Ignored),
        (WIDE, of_all(), "two", 3, Outcome::Ignored),
        (WIDE, of_all(), "-1", 3, Outcome::Ignored),
        (WIDE, of_all(), "", 3, Outcome::Ignored),
    ] {
        let (said, told) = policy(may, &base, &[("max-retries", retries)]);
        assert_eq!((said.attempts_max, told), (attempts, outcome), "{may:?} {retries}");
    }
    // Who says after what and not how often gets one retry at least, as far as that may be.
    for (may, attempts) in [(WIDE, 2), (none, 1)] {
        assert_eq!(policy(may, &off, &[("retry-on", "5xx")]).0.attempts_max, attempts);
    }
    // Twice is not once.
    let (said, told) = policy(WIDE, &of_all(), &[("max-retries", "0"), ("max-retries", "1")]);
    assert_eq!((said.attempts_max, told), (3, Outcome::Ignored));
}

#[test]
fn a_timeout_is_the_one_that_is_asked_for_up_to_the_ceiling() {
    let none = May::default();
    for (may, of_route, asked, wants, outcome) in [
        (none, Some(MS(500)), "100", Some(MS(100)), Outcome::Taken),
        (none, Some(MS(500)), "501", Some(MS(500)), Outcome::Capped),
        (none, Some(MS(500)), "0", Some(MS(500)), Outcome::Capped),
        (none, None, "0", None, Outcome::Taken),
        (none, None, "700", Some(MS(700)), Outcome::Taken),
        (WIDE, Some(MS(500)), "20000", Some(MS(20_000)), Outcome::Taken),
        (WIDE, Some(MS(500)), "20001", Some(MS(20_000)), Outcome::Capped),
        (WIDE, Some(MS(500)), "0", Some(MS(20_000)), Outcome::Capped),
        (WIDE, Some(MS(30_000)), "40000", Some(MS(30_000)), Outcome::Capped),
        (WIDE, Some(MS(500)), "1s", Some(MS(500)), Outcome::Ignored),
        (WIDE, Some(MS(500)), " 7 ", Some(MS(7)), Outcome::Taken),
    ] {
        let wishes = read(may, &[("upstream-rq-timeout-ms", asked)]).unwrap();
        assert_eq!((wishes.timeout(of_route), wishes.outcome(of_route)), (wants, outcome), "{may:?} {asked}");
        let base = of_all();
        assert!(
            std::ptr::eq(wishes.policy(&base), &base),
            "what is not about retries changes nothing of them"
        );
    }
}

#[test]
fn the_time_of_an_attempt_is_its_callers_doing_where_it_is_shorter() {
    let tight = Policy { attempt_timeout: Some(MS(300)), ..of_all() };
    for (may, base, asked, wants, hurried, outcome) in [
        (WIDE, of_all(), "100", Some(MS(100)), true, Outcome::Taken),
        (WIDE, of_all(), "0", None, false, Outcome::Taken),
        (WIDE, of_all(), "10000", Some(MS(2000)), true, Outcome::Capped),
        (May::default(), of_all(), "10000", Some(MS(10_000)), true, Outcome::Taken),
        (WIDE, tight.clone(), "100", Some(MS(100)), true, Outcome::Taken),
        (WIDE, tight.clone(), "1000", Some(MS(1000)), false, Outcome::Taken),
        (WIDE, tight.clone(), "0", Some(MS(2000)), false, Outcome::Capped),
        (May::default(), tight, "1000", Some(MS(300)), false, Outcome::Capped),
    ] {
        let (said, told) = policy(may, &base, &[("upstream-rq-per-try-timeout-ms", asked)]);
        assert_eq!((said.attempt_timeout, said.is_hurried, told), (wants, hurried, outcome), "{asked}");
    }
}

#[test]
fn an_attempt_that_had_its_time_is_hedged_where_that_is_asked_for() {
    let timeout = ("upstream-rq-per-try-timeout-ms", "80");
    let hedge = |value| ("hedge-on-per-try-timeout", value);
    let (said, told) = policy(WIDE, &of_all(), &[timeout, hedge("true")]);
    assert_eq!((said.hedge, said.attempt_timeout), (Some(Hedge::InPlace), Some(MS(80))));
    assert!(said.is_hurried && told == Outcome::Taken);
    let tight = Policy { attempt_timeout: Some(MS(300)), hedge: None, ..of_all() };
    let (said, _) = policy(WIDE, &tight, &[hedge("true")]);
    assert_eq!((said.hedge, said.attempt_timeout), (Some(Hedge::InPlace), Some(MS(300))));
    assert_eq!(policy(WIDE, &tight, &[timeout, hedge("false")]).0.hedge, None);
    let hedging = Policy { hedge: Some(Hedge::After(MS(50))), ..of_all() };
    assert_eq!(policy(WIDE, &hedging, &[hedge("false")]).0.hedge, None);
    for odd in ["true", "TRUE", "1", ""] {
        let (said, told) = policy(WIDE, &hedging, &[hedge(odd)]);
        assert_eq!((said.hedge, told), (hedging.hedge, Outcome::Ignored), "{odd}");
    }
}
