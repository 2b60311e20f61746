//! Client and origin against each other, in one process, over real sockets on free ports.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;
use crate::client::tally::Tally;

fn origin(options: origin::Options) -> origin::Origin {
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    origin::start(&origin::Options { listen, ..options }).expect("origin starts")
}

fn options_for(authority: &str, target: &str, requests: u64) -> client::Options {
    let url = Url::parse(&format!("http://{authority}{target}")).expect("legal");
    client::Options {
        connections: 8,
        threads: 2,
        requests: Some(requests),
        duration: None,
        ..client::Options::new(url)
    }
}

fn run(options: &client::Options) -> Tally {
    client::run(options, &Arc::new(AtomicBool::new(false)), false, &mut |_| {}).expect("the client runs")
}

fn succeeds(origin_options: origin::Options, target: &str, change: impl Fn(&mut client::Options)) -> Tally {
    let origin = origin(origin_options);
    let mut options = options_for(&origin.address.expect("tcp").to_string(), target, 500);
    change(&mut options);
    let tally = run(&options);
    assert_eq!(tally.failures().collect::<Vec<_>>(), [], "{target}");
    assert_eq!(tally.completed, 500, "{target}");
    assert_eq!(tally.latency.len(), 500, "{target}");
    tally
}

#[test]
fn every_kind_of_answer_is_sent_whole_and_recognised() {
    for target in
        ["/", "/size/0", "/size/100KiB", "/size/1MiB", "/chunked/1/size/50000", "/delay/200us", "/status/204"]
    {
        succeeds(origin::Options::default(), target, |_| {});
    }
}

#[test]
fn request_bodies_are_read_and_dropped() {
    let tally = succeeds(origin::Options { threads: 2, ..Default::default() }, "/size/10", |o| {
        o.method = "POST".to_owned();
        o.body = 300_000;
    });
    assert!(tally.bytes_out > 500 * 300_000);
}

#[test]
fn head_requests_have_no_body() {
    let tally = succeeds(origin::Options::default(), "/size/1MiB", |o| o.method = "HEAD".to_owned());
    assert!(tally.bytes_in < 500 * 1024);
}

#[test]
fn an_open_loop_sends_all_that_was_due() {
    let tally = succeeds(origin::Options::default(), "/size/100", |o| o.rate = Some(20_000.0));
    assert_eq!(tally.reconnects, 0);
}

#[test]
fn announced_closes_are_no_failures() {
    let tally = succeeds(origin::Options { close_after: Some(3), ..Default::default() }, "/", |_| {});
    assert!(tally.reconnects >= 500 / 3 - 8, "{}", tally.reconnects);
}

#[test]
fn a_slow_origin_still_sends_whole_answers() {
    succeeds(origin::Options { slow: Some(10_000_000), ..Default::default() }, "/size/150000", |_| {});
}

#[test]
fn an_expected_status_is_a_success_and_another_is_not() {
    succeeds(origin::Options::default(), "/status/503", |o| o.status = Some(503));
    let origin = origin(origin::Options::default());
    let tally = run(&options_for(&origin.address.expect("tcp").to_string(), "/status/503", 50));
    assert_eq!(tally.failures().collect::<Vec<_>>(), [("status", 50)]);
    assert_eq!((tally.completed, tally.statuses[5]), (0, 50));
}

#[test]
fn unix_sockets_carry_the_same() {
    let path = std::env::temp_dir().join(format!("loadtest-{}.sock", std::process::id()));
    let _origin =
        origin::start(&origin::Options { unix: Some(path.clone()), ..Default::default() }).expect("starts");
    let mut options = options_for("127.0.0.1:1", "/", 500);
    options.url = Url::parse(&format!("unix:{}:/size/100KiB", path.display())).expect("legal");
    let tally = run(&options);
    let _ = std::fs::remove_file(&path);
    assert_eq!((tally.completed, tally.failed()), (500, 0));
}

#[test]
fn a_dead_server_is_a_failure_not_a_silence() {
    let free = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let mut options = options_for(&free.to_string(), "/", 6);
    options.connections = 2;
    assert_eq!(run(&options).failures().collect::<Vec<_>>(), [("connect", 6)]);
}

/// A server that gives the same bytes to every request of one connection after the other.
fn scripted(reply: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepts");
            let mut request = [0; 1024];
            while stream.read(&mut request).is_ok_and(|n| n > 0) && stream.write_all(reply).is_ok() {}
        }
    });
    address
}

#[test]
fn wrong_answers_are_told_apart() {
    let cases: [(&'static [u8], &str); 5] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-echo: 0000000000000000\r\n\r\nabc", "echo"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd", "unasked"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", "malformed"),
        (b"ICY 200 OK\r\n\r\n", "malformed"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "status"),
    ];
    for (reply, kind) in cases {
        let mut options = options_for(&scripted(reply), "/size/3", 4);
        (options.connections, options.threads) = (1, 1);
        let tally = run(&options);
        assert!(
            tally.failures().any(|(name, n)| name == kind && n == 4),
            "{kind}: {:?}",
            tally.failures().collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_short_body_is_noticed() {
    let mut options =
        options_for(&scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"), "/size/4", 4);
    (options.connections, options.threads) = (1, 1);
    assert!(run(&options).failed() >= 4);
}

#[test]
fn an_unfinished_answer_times_out() {
    let mut options =
        options_for(&scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\nabc"), "/size/30", 1);
    (options.connections, options.threads, options.timeout) = (1, 1, Duration::from_millis(1));
    assert_eq!(run(&options).failures().collect::<Vec<_>>(), [("timeout", 1)]);
}

#[test]
fn an_origin_misbehaves_from_the_moment_that_it_is_told_to() {
    use crate::origin::conduct::{Behaviour, Conduct};
    let conduct = Arc::new(Conduct::default());
    let origin = origin(origin::Options { conduct: Some(Arc::clone(&conduct)), ..Default::default() });
    let mut options = options_for(&origin.address.expect("tcp").to_string(), "/size/10", 20);
    let seen = |options: &client::Options| {
        let tally = run(options);
        (tally.completed, tally.failures().collect::<Vec<_>>())
    };
    assert_eq!(seen(&options), (20, vec![]));
    conduct.behave(Behaviour::Status(500));
    assert_eq!(seen(&options), (0, vec![("status", 20)]));
    conduct.behave(Behaviour::Hang);
    options.timeout = Duration::from_millis(1);
    assert_eq!(seen(&options), (0, vec![("timeout", 20)]));
    conduct.behave(Behaviour::Well);
    options.timeout = Duration::from_secs(10);
    assert_eq!(seen(&options), (20, vec![]));
    assert!(conduct.arrivals() >= 60, "{}", conduct.arrivals());
}

#[test]
fn an_origin_of_limited_capacity_answers_in_the_order_of_arrival() {
    use crate::origin::conduct::{Capacity, Conduct};
    let conduct = Arc::new(Conduct::default());
    let capacity = Capacity { at_a_time: 1, service_time: Duration::from_millis(1) };
    let origin = origin::Options {
        conduct: Some(Arc::clone(&conduct)),
        capacity: Some(capacity),
        ..Default::default()
    };
    let tally = succeeds(origin, "/size/10", |options| options.connections = 4);
    // One at a time for a millisecond each: the four that ask at once wait for each other, so that the 500 take 500 ms at least,
    // and nobody's answer comes sooner than its own millisecond.
    assert!(tally.latency.min() >= 990_000, "{}", tally.latency.min());
    assert!(conduct.take_waited_max() >= Duration::from_millis(1));
}
