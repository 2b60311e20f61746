//! What is asked about a request, and what an answer means.

use super::super::Policy;
use super::super::messages::{Duration, RateLimit, Value32};
use super::*;
use crate::authorize::Caller;
use crate::identity::SpiffeId;

struct Lines(Vec<(&'static str, Vec<u8>)>);

impl Fields for Lines {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| &**value)
    }
}

fn limit(name: &str, domain: &str, entries: &[(&str, Of)]) -> Arc<Global> {
    let entries = entries.iter().map(|(key, of)| Entry { key: (*key).into(), of: of.clone() }).collect();
    let on_failure = if name.starts_with("strict") { OnFailure::Refuse } else { OnFailure::Pass };
    Arc::new(Global::new(Spec {
        name: name.into(),
        service: "limits".into(),
        domain: domain.into(),
        entries,
        hits: if name.ends_with("dear") { 10 } else { 1 },
        timeout_ns: if name.starts_with("strict") { 50 } else { 20 },
        on_failure,
    }))
}

fn tenant(name: &str) -> Arc<Global> {
    limit(name, "shop", &[("tenant", Of::Header("x-tenant".into()))])
}

fn ask(limits: &[Arc<Global>], source: &str, peer: Option<&str>, lines: &Lines) -> Option<Box<[Question]>> {
    let peer = peer.map(|id| SpiffeId::parse(id).unwrap());
    let caller = Caller { listener: "in", port: 1, source: source.parse().unwrap(), peer: peer.as_ref() };
    let call = Call { caller, method: b"GET", path: b"/", fields: lines };
    let asks = [Ask { service: 3, limits: (0..limits.len() as u32).collect() }];
    plan(limits, &asks, "orders", &call)
}

fn asked(limits: &[Arc<Global>], lines: &Lines) -> Request {
    let questions = ask(limits, "10.0.0.1", None, lines).unwrap();
    Request::decode(&*questions[0].message).unwrap()
}

fn entries(descriptor: &Descriptor) -> Vec<(&str, &str)> {
    descriptor.entries.iter().map(|entry| (&*entry.key, &*entry.value)).collect()
}

#[test]
fn a_descriptor_has_the_entries_in_their_order_with_what_the_request_says() {
    let all = [
        ("generic_key", Of::Constant("checkout".into())),
        ("tenant", Of::Header("x-tenant".into())),
        ("route", Of::Route),
        ("identity", Of::Identity),
        ("remote_address", Of::Source),
    ];
    let limits = [limit("all", "shop", &all)];
    let lines = Lines(vec![("x-tenant", b"a, b".to_vec()), ("x-tenant", b"c".to_vec())]);
    let of = |source: &str, peer| {
        let questions = ask(&limits, source, peer, &lines).unwrap();
        assert_eq!((questions.len(), questions[0].service), (1, 3));
        Request::decode(&*questions[0].message).unwrap()
    };
    let request = of("10.0.0.1", Some("spiffe://a/x"));
    assert_eq!((&*request.domain, request.hits_addend, request.descriptors.len()), ("shop", 1, 1));
    let mut wanted = vec![
        ("generic_key", "checkout"),
        ("tenant", "a, b"),
        ("route", "orders"),
        ("identity", "spiffe://a/x"),
        ("remote_address", "10.0.0.1"),
    ];
    assert_eq!(entries(&request.descriptors[0]), wanted);
    wanted[3].1 = "";
    for (source, shown) in [("::ffff:10.0.0.1", "10.0.0.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")] {
        wanted[4].1 = shown;
        assert_eq!(entries(&of(source, None).descriptors[0]), wanted);
    }
}

#[test]
fn a_limit_whose_field_is_missing_is_not_asked_and_an_empty_one_is_not_missing() {
    let limits =
        [tenant("one"), limit("two", "shop", &[("user", Of::Header("x-user".into()))]), tenant("three")];
    assert!(ask(&limits, "10.0.0.1", None, &Lines(vec![])).is_none());
    let lines = Lines(vec![("x-user", Vec::new())]);
    let questions = ask(&limits, "10.0.0.1", None, &lines).unwrap();
    assert_eq!(questions[0].limits.iter().map(|limit| &*limit.spec.name).collect::<Vec<_>>(), ["two"]);
    assert_eq!(entries(&asked(&limits, &lines).descriptors[0]), [("user", "")]);
}

#[test]
fn what_a_message_cannot_carry_is_replaced_and_what_is_long_is_cut() {
    let limits = [tenant("one")];
    let value = |value: &[u8]| {
        asked(&limits, &Lines(vec![("x-tenant", value.to_vec())])).descriptors[0].entries[0].value.clone()
    };
    assert_eq!(value(b"caf\xe9"), "caf\u{fffd}");
    assert_eq!(value(&[b'x'; 5000]).len(), Of::VALUE_BYTES_MAX);
    // Not within a character.
    assert_eq!(value("\u{20ac}".repeat(500).as_bytes()).len(), 1023);
}

#[test]
fn for_how_many_it_counts_is_said_once_or_of_each() {
    let lines = Lines(vec![("x-tenant", b"a".to_vec())]);
    let request = asked(&[tenant("dear"), tenant("as-dear")], &lines);
    assert_eq!(request.hits_addend, 10);
    assert!(request.descriptors.iter().all(|descriptor| descriptor.hits_addend.is_none()));
    let request = asked(&[tenant("cheap"), tenant("dear")], &lines);
    let each: Vec<u64> = request.descriptors.iter().map(|of| of.hits_addend.unwrap().value).collect();
    assert_eq!((request.hits_addend, each), (1, vec![1, 10]));
}

fn status(code: i32, wait: Option<(i64, i32)>) -> DescriptorStatus {
    let limit = RateLimit { requests_per_unit: 7, unit: 2, unit_multiplier: None };
    let until = wait.map(|(seconds, nanos)| Duration { seconds, nanos });
    DescriptorStatus { code, current_limit: Some(limit), limit_remaining: 0, duration_until_reset: until }
}

fn question(names: &[&str]) -> Question {
    let limits: Vec<_> = names.iter().map(|name| tenant(name)).collect();
    let lines = Lines(vec![("x-tenant", b"a".to_vec())]);
    let questions = ask(&limits, "10.0.0.1", None, &lines).unwrap();
    questions.into_iter().next().unwrap()
}

fn counts(question: &Question) -> Vec<(u64, u64)> {
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    question.limits.iter().map(|limit| (of(&limit.counts.passed), of(&limit.counts.refused))).collect()
}

fn response(code: i32, statuses: Vec<DescriptorStatus>) -> Vec<u8> {
    let response = Response { overall_code: code, statuses, ..Response::default() };
    response.encode_to_vec()
}

#[test]
fn of_several_limits_that_are_met_the_one_that_lasts_longest_is_told() {
    let question = question(&["a", "b", "c"]);
    assert_eq!(question.read(&response(Response::OK, vec![])).unwrap().too_soon, None);
    assert_eq!(counts(&question), [(1, 0); 3]);
    let statuses = vec![status(1, Some((99, 0))), status(2, Some((3, 1))), status(2, Some((3, 0)))];
    let too_soon = question.read(&response(Response::OVER_LIMIT, statuses)).unwrap().too_soon.unwrap();
    let policy = Some(Policy { quota: 7, window_seconds: 60 });
    assert_eq!(too_soon, TooSoon { name: "b".into(), policy, wait_seconds: Some(4) });
    assert_eq!(counts(&question), [(1, 0), (1, 1), (1, 0)]);
    // Nothing is said of which: the first.
    let too_soon = question.read(&response(Response::OVER_LIMIT, vec![])).unwrap().too_soon.unwrap();
    assert_eq!(too_soon, TooSoon { name: "a".into(), policy: None, wait_seconds: None });
    // What the whole says decides, and statuses of nobody are passed over.
    let statuses = vec![status(2, None), status(2, None), status(2, None), status(2, Some((9, 0)))];
    assert_eq!(question.read(&response(Response::OK, statuses.clone())).unwrap().too_soon, None);
    let too_soon = question.read(&response(Response::OVER_LIMIT, statuses)).unwrap().too_soon.unwrap();
    assert_eq!((&*too_soon.name, too_soon.wait_seconds), ("a", None));
}

#[test]
fn waits_and_windows_are_whole_seconds() {
    let wait = |seconds, nanos| status(2, Some((seconds, nanos))).wait_seconds();
    assert_eq!(
        [wait(0, 0), wait(0, 1), wait(5, 0), wait(5, 999_999_999), wait(-1, 0), wait(i64::MAX, i32::MAX)],
        [Some(1), Some(1), Some(5), Some(6), None, Some(i64::MAX as u64 + 1)]
    );
    let window = |unit, multiplier: Option<u32>| {
        let unit_multiplier = multiplier.map(|value| Value32 { value });
        RateLimit { requests_per_unit: 1, unit, unit_multiplier }.policy().map(|policy| policy.window_seconds)
    };
    assert_eq!(
        [0, 1, 2, 3, 4, 7].map(|unit| window(unit, None)),
        [None, Some(1), Some(60), Some(3600), Some(86400), Some(604_800)]
    );
    assert_eq!(
        (window(2, Some(5)), window(2, Some(0)), window(6, Some(u32::MAX)).is_some(), window(99, None)),
        (Some(300), Some(60), true, None)
    );
}

#[test]
fn what_is_no_answer_is_none() {
    let question = question(&["a"]);
    let fields = |count: usize, length: usize| {
        let field = Field { key: "x-a".into(), value: "v".repeat(length), raw_value: Vec::new() };
        let response =
            Response { overall_code: 1, request_fields: vec![field; count], ..Response::default() };
        question.read(&response.encode_to_vec()).map(|answer| answer.to_request.len())
    };
    for garbage in [&b""[..], b"\x08\x00", b"\x08\x03", b"<html>", &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
        assert_eq!(question.read(garbage).map(|_| ()), Err(Why::Garbage), "{garbage:?}");
    }
    assert_eq!((fields(32, 1), fields(33, 1)), (Ok(32), Err(Why::Garbage)));
    assert_eq!((fields(1, 8 * 1024 - 3), fields(1, 8 * 1024 - 2)), (Ok(1), Err(Why::Garbage)));
    // Neither passed nor refused.
    let read = u64::from(fields(1, 1).is_ok());
    assert_eq!(counts(&question)[0], (2 + read, 0));
}

#[test]
fn fields_that_frame_a_message_or_concern_a_hop_are_left_out() {
    let field = |key: &str, value: &str, raw: &[u8]| Field {
        key: key.into(),
        value: value.into(),
        raw_value: raw.into(),
    };
    let told = vec![
        field("X-Left", "3", b""),
        field("x-raw", "", b"\xff"),
        field("Content-Length", "0", b""),
        field("transfer-encoding", "chunked", b""),
        field("connection", "close", b""),
        field("host", "other", b""),
        field(":path", "/other", b""),
        field("not a name", "x", b""),
    ];
    let response = Response { overall_code: 1, response_fields: told, ..Response::default() };
    let answer = question(&["a"]).read(&response.encode_to_vec()).unwrap();
    let named: Vec<_> = answer.to_response.iter().map(|(name, value)| (name.as_str(), &**value)).collect();
    assert_eq!(named, [("x-left", &b"3"[..]), ("x-raw", b"\xff")]);
}

#[test]
fn without_an_answer_each_limit_says_for_itself_and_one_that_refuses_decides() {
    let lenient = question(&["a", "b"]);
    assert!(lenient.failed(Why::Timeout).is_none());
    let strict = question(&["a", "strict-b"]);
    assert_eq!(&*strict.failed(Why::Status).unwrap().spec.name, "strict-b");
    assert_eq!((lenient.timeout_ns, strict.timeout_ns), (20, 50));
    for limit in &strict.limits {
        let failed = limit.counts.failed.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert_eq!(failed, [0, 0, 0, 0, 1, 0]);
    }
}
