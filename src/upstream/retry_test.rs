use super::*;

const MS: u64 = 1_000_000;

fn policy(on: Reasons, statuses: Statuses) -> Policy {
    Policy {
        attempts_max: 3,
        on,
        statuses,
        lists_statuses: false,
        methods: Box::new(["POST".into()]),
        attempt_timeout: None,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
        retry_after_max: Duration::from_secs(1),
        body_bytes_max: 0,
        budget: Budget { millionths: 0, floor: 0 },
        attempt_field: false,
        hedge: None,
        is_hurried: false,
    }
}

#[test]
fn what_failed_is_worth_another_attempt_for_what_it_was() {
    let all = policy(Reasons::NO_RESPONSE, Statuses::default());
    let upstream = Failure::upstream;
    let cases = [
        (upstream(Stage::Connect, Cause::Refused), false, Some(Reason::ConnectFailure)),
        (upstream(Stage::Connect, Cause::Timeout), false, Some(Reason::ConnectFailure)),
        (upstream(Stage::Handshake, Cause::CertificateExpired), false, Some(Reason::ConnectFailure)),
        (upstream(Stage::Connect, Cause::Overloaded), false, None),
        (upstream(Stage::Balance, Cause::NoEndpoint), false, None),
        (upstream(Stage::Request, Cause::StreamRefused), false, Some(Reason::RefusedStream)),
        (upstream(Stage::Response, Cause::GoingAway), false, Some(Reason::RefusedStream)),
        (upstream(Stage::Request, Cause::Reset), true, Some(Reason::ResetBeforeRequest)),
        (upstream(Stage::Request, Cause::Reset), false, Some(Reason::Reset)),
        (upstream(Stage::Response, Cause::Closed), false, Some(Reason::Reset)),
        (upstream(Stage::Response, Cause::StreamReset), false, Some(Reason::Reset)),
        (upstream(Stage::Response, Cause::Timeout), false, Some(Reason::Timeout)),
        (upstream(Stage::Response, Cause::BadStartLine), false, Some(Reason::BadResponse)),
        (upstream(Stage::Body, Cause::BadChunk), false, Some(Reason::BadResponse)),
        (Failure::downstream(Stage::Request, Cause::Reset), false, None),
        (Failure::local(Stage::Response, Cause::Overloaded), false, None),
    ];
    let none = policy(Reasons::NONE, Statuses::default());
    for (failure, unsent, reason) in cases {
        assert_eq!(all.reason_of_failure(failure, unsent), reason, "{failure}");
        assert_eq!(none.reason_of_failure(failure, unsent), None, "{failure}");
        if let Some(reason) = reason {
            let others: Vec<_> = Reason::ALL.iter().copied().filter(|other| *other != reason).collect();
            let others = policy(Reasons::of(&others), Statuses::default());
            assert_eq!(others.reason_of_failure(failure, unsent), None, "{failure}");
        }
    }
}

#[test]
fn a_limit_for_attempts_is_there_for_other_attempts() {
    let mut limited = policy(Reasons::NONE, Statuses::default());
    limited.attempt_timeout = Some(Duration::from_millis(1));
    let slow = Failure::upstream(Stage::Response, Cause::Timeout);
    assert_eq!(limited.reason_of_failure(slow, false), Some(Reason::Timeout));
}

#[test]
fn an_answer_is_worth_another_attempt_for_its_status() {
    let on = Reasons::of(&[Reason::Unavailable, Reason::Cancelled]);
    let some = policy(on, Statuses::default().with(500, 500).with(502, 504).with(409, 409));
    let head = |status, grpc| Head { status, grpc, ..Head::default() };
    for (status, reason) in [
        (200, None),
        (399, None),
        (400, None),
        (409, Some(Reason::ClientError)),
        (500, Some(Reason::ServerError)),
        (501, None),
        (502, Some(Reason::GatewayError)),
        (504, Some(Reason::GatewayError)),
        (505, None),
        (599, None),
        (600, None),
        (u16::MAX, None),
    ] {
        assert_eq!(some.reason_of_head(&head(status, None)), reason, "{status}");
    }
    for code in 0..=255 {
        let reason = match code {
            1 => Some(Reason::Cancelled),
            14 => Some(Reason::Unavailable),
            _ => None,
        };
        assert_eq!(some.reason_of_head(&head(200, Some(code))), reason, "{code}");
    }
    // Who limits is left alone, unless that is wanted.
    let limited = Head { rate_limited: true, ..head(503, None) };
    assert_eq!(some.reason_of_head(&limited), None);
    assert_eq!(some.reason_of_head(&Head { rate_limited: true, ..head(200, Some(14)) }), None);
    let asked = policy(Reasons::of(&[Reason::RateLimited]), Statuses::default());
    assert_eq!(asked.reason_of_head(&limited), Some(Reason::RateLimited));
}

#[test]
fn statuses_are_those_that_were_put_in() {
    let set = Statuses::default().with(0, 401).with(463, 465).with(598, u16::MAX);
    assert_eq!(set.iter().collect::<Vec<_>>(), [400, 401, 463, 464, 465, 598, 599]);
}

#[test]
fn a_service_may_ask_for_a_pause_and_no_longer_one_than_allowed() {
    let retry_after = |value: &str| After::of_field(value.as_bytes(), Some(b"Sun, 06 Nov 1994 08:49:37 GMT"));
    let second = After::Pause(Duration::from_secs(1));
    for (value, after) in [
        ("1", second),
        (" 0 ", After::Pause(Duration::ZERO)),
        ("99999999999999999999", After::Pause(Duration::from_secs(u64::MAX))),
        ("Sun, 06 Nov 1994 08:49:38 GMT", second),
        ("Sun, 06 Nov 1994 08:49:00 GMT", After::Pause(Duration::ZERO)),
        ("", After::Unsaid),
        ("-1", After::Unsaid),
        ("1.5", After::Unsaid),
        ("soon", After::Unsaid),
    ] {
        assert_eq!(retry_after(value), after, "{value:?}");
    }
    assert_eq!(After::of_field(b"Sun, 06 Nov 1994 08:49:38 GMT", None), After::Never);
    assert_eq!(After::of_field(b"\xff", None), After::Unsaid);
    for (value, after) in [("1000", second), ("-1", After::Never), ("1s", After::Never), ("", After::Never)] {
        assert_eq!(After::of_pushback(value.as_bytes()), after, "{value:?}");
    }
    let policy = policy(Reasons::NONE, Statuses::default());
    let mut rng = Rng::with_seed(1);
    for _ in 0..1000 {
        let pause = policy.pause_ns(1, second, &mut rng).unwrap();
        assert!((1000 * MS..1025 * MS).contains(&pause), "{pause}");
    }
    assert_eq!(policy.pause_ns(1, After::Pause(Duration::from_millis(1001)), &mut rng), None);
    assert_eq!(policy.pause_ns(1, After::Never, &mut rng), None);
}

#[test]
fn pauses_are_even_between_nothing_and_what_doubles() {
    let policy = policy(Reasons::NONE, Statuses::default());
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    for (n, ceiling_ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (5, 250), (32, 250), (u32::MAX, 250)] {
        let ceiling = ceiling_ms * MS;
        let pauses: Vec<u64> =
            (0..10_000).map(|_| policy.pause_ns(n, After::Unsaid, &mut rng).unwrap()).collect();
        assert!(pauses.iter().all(|pause| *pause < ceiling), "seed {seed}, {n}");
        // The mean of 10 000 even values is within 0.5 ± 0.0029 × 5 of the ceiling in all but one of a million runs.
        let mean = pauses.iter().sum::<u64>() as f64 / 1e4 / ceiling as f64;
        assert!((0.485..0.515).contains(&mean), "seed {seed}, {n}: {mean}");
        // Each tenth has 1000 ± 5 × 30.
        let mut tenths = [0; 10];
        pauses.iter().for_each(|pause| tenths[(pause * 10 / ceiling) as usize] += 1);
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "seed {seed}, {n}: {tenths:?}");
    }
    let none = Policy { backoff_base: Duration::ZERO, ..policy };
    assert_eq!(none.pause_ns(3, After::Unsaid, &mut rng), Some(0));
}

#[test]
fn labels_are_unique_words() {
    let labels: std::collections::HashSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), Reason::COUNT);
}
