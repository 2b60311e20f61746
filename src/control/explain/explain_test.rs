//! How a question is read, and that what is told of the route is what the table and the rules decide.

use super::*;
use crate::config;

fn compiled(text: &str) -> Compiled {
    config::parse("test.toml", text, &|_| None).unwrap().compiled
}

fn told(text: &str, url: &str, all: bool) -> Explanation {
    let compiled = compiled(text);
    let question = Question::new("GET", url).unwrap();
    explain(&compiled, &compiled.snapshot(1, &|_, _| Vec::new()), &question, all)
}

const BASE: &str = "[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = \
                    [\"127.0.0.1:9000\"]\n";

#[test]
fn a_question_is_read_by_both_ways_alike() {
    let mut words = Question::new("PUT", "https://shop.example:8443/a/b?x=1#f").unwrap();
    words.field("X-User:  7 ").unwrap();
    words.field("x-user: 8").unwrap();
    words.from("spiffe://mesh.local/a").unwrap();
    words.source("10.0.0.1").unwrap();
    words.listener("in");
    words.port("8080").unwrap();
    let query = Question::of_query(
        "method=PUT&url=https%3A//shop.example:8443/a/b%3Fx%3D1&header=x-user:+7&header=x-user:8&from=spiffe://mesh.local/a\
         &source=10.0.0.1&listener=in&port=8080&format=json",
    );
    assert_eq!(query.unwrap(), words);
    assert_eq!((words.host(), &*words.path, &*words.query), (Some("shop.example"), "/a/b", "x=1"));
    let host = |url: &str| Question::new("GET", url).unwrap().host().map(str::to_owned);
    assert_eq!(host("/a").as_deref(), None);
    assert_eq!(host("shop/cart").as_deref(), Some("shop"));
    assert_eq!(host("http://[::1]:80").as_deref(), Some("[::1]"));
    assert_eq!(host("shop?to=http://other").as_deref(), Some("shop"));
    assert_eq!(host("/a?to=http://other").as_deref(), None);
    let mut other = Question::new("GET", "http://a/").unwrap();
    other.field("Host: b:80").unwrap();
    assert_eq!((other.host(), other.lines.len()), (Some("b"), 1));
}

#[test]
fn what_is_no_question_is_refused_with_a_remedy() {
    for query in [
        "",
        "method=GET",
        "url=/&metod=GET",
        "url=/&from=x",
        "url=/&port=x",
        "url=/&source=x",
        "url=/&header=x",
        "url=/%20",
        "url=/&method=a%20b",
        "url=/&url=/",
        "url=/&format=xml",
        "url=/&all=0",
        "url=/&header=x:%0Dy",
    ] {
        let wrong = Question::of_query(query).unwrap_err();
        assert!(
            wrong.contains("rite") || wrong.contains("there are") || wrong.contains("is not"),
            "{query}: {wrong}"
        );
    }
}

#[test]
fn of_many_routes_the_nearest_are_told_and_the_rest_is_a_number() {
    let mut text = BASE.to_owned();
    for n in 0..200 {
        let hosts = if n < 100 { "hosts = [\"a\"]" } else { "hosts = [\"b\"]" };
        text += &format!("[[route]]\nname = \"r{n}\"\nservice = \"app\"\n{hosts}\npath = \"/{n}\"\n");
    }
    text += "[[route]]\nname = \"x\"\nservice = \"app\"\nmatch = { headers = { x = \"1\" } }\n";
    let near = told(&text, "http://a/7", false);
    assert_eq!((near.others.len(), near.left_out), (OTHERS_MAX, 200 - OTHERS_MAX));
    assert_eq!((&*near.others[0].route, near.others[0].by), ("x", "match.headers"));
    assert!(near.others[1..].iter().all(|other| other.by == "path"));
    let all = told(&text, "http://a/7", true);
    assert_eq!((all.others.len(), all.left_out), (200, 0));
}

#[test]
fn how_much_a_service_is_given_is_told_where_that_is_bounded() {
    let text = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n\
                caps = { exchanges_max = 30, retries_max = 3 }\nconcurrency = { limit_initial = 7 }\n\
                admission = { success_min_percent = 90 }\n[[service]]\nname = \"free\"\nendpoints = [\"127.0.0.1:9001\"]\n\
                [[route]]\nservice = \"app\"\npriority = \"sheddable\"\n[[route]]\npath_prefix = \"/free\"\nservice = \"free\"\n";
    let lines = |url| {
        let told = told(text, url, false);
        let lines = told
            .lines
            .into_iter()
            .filter(|line| ["priority", "caps", "concurrency", "admission"].contains(&line.name));
        lines.map(|line| format!("{}: {}", line.name, line.text)).collect::<Vec<_>>()
    };
    assert_eq!(
        lines("/"),
        [
            "priority: sheddable: gives way to everybody",
            "admission: when less than 90 % of 20 or more in 10s end well some are turned away, 80 % at most",
            "caps: 7 exchanges (0 now), then 1024 wait (0 now) for 100ms, or 5ms while too much comes; 3 retries",
            "concurrency: learnt: 2 to 1000 exchanges, while half of them take at most 25 % longer than when little is asked",
        ]
    );
    assert_eq!(lines("/free"), [""; 0]);
}

#[test]
fn when_there_is_another_attempt_beside_one_is_told() {
    let text = "[[listener]]\naddress = \"127.0.0.1:15001\"\n[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\", \
                \"127.0.0.1:9001\"]\n[[service]]\nname = \"lone\"\nendpoints = [\"127.0.0.1:9002\"]\n[[route]]\nservice = \"app\"\n\
                [[route]]\npath = \"/soon\"\nservice = \"app\"\nretry = { hedge_after = \"p99.5\", methods = [\"POST\"] }\n\
                [[route]]\npath = \"/lone\"\nservice = \"lone\"\nretry = { hedge_after = \"1ms\" }\n\
                [[route]]\npath = \"/asked\"\nservice = \"app\"\ncaller_may = {}\n\
                [[route]]\npath = \"/asked/lone\"\nservice = \"lone\"\ncaller_may = {}\n";
    let compiled = compiled(text);
    let snapshot = compiled.snapshot(1, &|_, _| Vec::new());
    let line = |url| {
        let mut question = Question::new("GET", url).unwrap();
        for field in ["x-envoy-upstream-rq-per-try-timeout-ms: 80", "x-envoy-hedge-on-per-try-timeout: true"]
        {
            question.field(field).unwrap();
        }
        let told = explain(&compiled, &snapshot, &question, false);
        told.lines.into_iter().find(|line| line.name == "attempts").map(|line| line.text).unwrap()
    };
    assert!(!line("/lone").contains("beside"), "there is nobody else: {}", line("/lone"));
    assert!(
        line("/asked").ends_with("; another one beside it where it is not answered after 80ms"),
        "{}",
        line("/asked")
    );
    assert!(!line("/asked").contains("each has"), "it is not ended: {}", line("/asked"));
    assert!(line("/asked/lone").ends_with("; each has 80ms until it is answered"), "{}", line("/asked/lone"));
    assert!(!line("/").contains("beside"));
    let soon = line("/soon");
    assert!(
        soon.ends_with(
            "; another one beside it where it is not answered after p99.5; POST may be sent twice, too"
        ),
        "{soon}"
    );
}

#[test]
fn of_all_who_say_how_long_an_exchange_may_take_the_sooner_is_told() {
    let text = "[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:15001\"\ngrpc_web = true\n[[listener]]\nname = \"other\"\naddress = \
                \"127.0.0.1:15002\"\n[[service]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n[[route]]\npath_prefix = \"/plain\"\n\
                service = \"app\"\n[[route]]\nservice = \"app\"\ntimeout = \"2s\"\ndeadline_header = true\ncaller_may = {}\n";
    let compiled = compiled(text);
    let snapshot = compiled.snapshot(1, &|_, _| Vec::new());
    const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
    let tells = "; a service is told what is left by x-envoy-expected-rq-timeout-ms";
    let off = "off for the whole exchange";
    for (url, listener, lines, wants) in [
        ("/", "in", &[][..], format!("2s for the whole exchange{tells}")),
        (
            "/",
            "in",
            &["x-envoy-expected-rq-timeout-ms: 250"],
            format!("250ms for the whole exchange, by {EXPECTED}{tells}"),
        ),
        // The first line counts.
        (
            "/",
            "in",
            &["x-envoy-expected-rq-timeout-ms: 300", "x-envoy-expected-rq-timeout-ms: 1"],
            format!("300ms for the whole exchange, by {EXPECTED}{tells}"),
        ),
        (
            "/",
            "in",
            &["x-envoy-expected-rq-timeout-ms: 2000"],
            format!("2s for the whole exchange; {EXPECTED} changes nothing: it is no sooner{tells}"),
        ),
        (
            "/",
            "in",
            &["x-envoy-expected-rq-timeout-ms: 1s"],
            format!("2s for the whole exchange; {EXPECTED} changes nothing: it cannot be understood{tells}"),
        ),
        ("/", "in", &["x-envoy-upstream-rq-timeout-ms: 700"], format!("700ms for the whole exchange{tells}")),
        (
            "/",
            "in",
            &["content-type: application/grpc", "grpc-timeout: 100m", "x-envoy-expected-rq-timeout-ms: 250"],
            format!(
                "100ms for the whole exchange, by grpc-timeout; {EXPECTED} changes nothing: it is no sooner{tells} and grpc-timeout"
            ),
        ),
        (
            "/plain",
            "in",
            &["x-envoy-expected-rq-timeout-ms: 250", "grpc-timeout: 1S"],
            format!(
                "{off}; {EXPECTED} changes nothing: the route has no deadline_header; grpc-timeout changes nothing: \
                 content-type does not say that this is gRPC"
            ),
        ),
        (
            "/plain",
            "in",
            &["content-type: application/grpc-web+proto", "grpc-timeout: 1S"],
            "1s for the whole exchange, by grpc-timeout; a service is told what is left by grpc-timeout"
                .into(),
        ),
        // Where it is not translated it is not gRPC.
        (
            "/plain",
            "other",
            &["content-type: application/grpc-web+proto", "grpc-timeout: 1S"],
            format!("{off}; grpc-timeout changes nothing: content-type does not say that this is gRPC"),
        ),
    ] {
        let mut question = Question::new("POST", url).unwrap();
        question.listener(listener);
        lines.iter().for_each(|line| question.field(line).unwrap());
        let told = explain(&compiled, &snapshot, &question, false);
        let line = told.lines.into_iter().find(|line| line.name == "timeout").unwrap();
        assert_eq!(line.text, wants, "{url} {listener} {lines:?}");
    }
}
