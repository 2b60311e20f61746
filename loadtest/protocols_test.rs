//! Client and origin against each other over TLS and HTTP/2, in one process, over real sockets on free ports.

use std::fs;

use super::*;
use crate::client::tally::Tally;

/// A folder with certificates, gone when dropped.
struct Certified {
    dir: PathBuf,
    files: certificates::Files,
}

impl Certified {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("loadtest-{test}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        let files = certificates::make(&dir).expect("certificates");
        Self { dir, files }
    }

    fn client(&self, http2: bool) -> Arc<rustls::ClientConfig> {
        let files = tls::ClientFiles { ca: Some(&self.files.ca), ..Default::default() };
        tls::client_config(&files, http2).expect("a configuration")
    }

    fn origin(&self, options: origin::Options) -> origin::Origin {
        let pair = &self.files.server;
        let tls = Some(tls::server_config(&pair.certificate, &pair.key).expect("a configuration"));
        plain(origin::Options { tls, ..options })
    }
}

impl Drop for Certified {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn plain(options: origin::Options) -> origin::Origin {
    let listen = Some("127.0.0.1:0".parse().expect("an address"));
    origin::start(&origin::Options { listen, ..options }).expect("origin starts")
}

fn options_for(origin: &origin::Origin, scheme: &str, target: &str, http2: bool) -> client::Options {
    let authority = origin.address.expect("tcp");
    let url = Url::parse(&format!("{scheme}://{authority}{target}")).expect("legal");
    client::Options {
        connections: 4,
        threads: 2,
        requests: Some(400),
        duration: None,
        http2,
        streams_max: 8,
        ..client::Options::new(url)
    }
}

fn over_tls(mut options: client::Options, certified: &Certified) -> client::Options {
    options.tls = Some((certified.client(options.http2), options.url.server_name().expect("a name")));
    options
}

fn run(options: &client::Options) -> Tally {
    client::run(options, &Arc::new(AtomicBool::new(false)), false, &mut |_| {}).expect("the client runs")
}

fn succeeds(options: &client::Options) -> Tally {
    let tally = run(options);
    assert_eq!(tally.failures().collect::<Vec<_>>(), [], "{}", options.url.target);
    assert_eq!(tally.completed, 400, "{}", options.url.target);
    tally
}

const TARGETS: [&str; 7] =
    ["/", "/size/0", "/size/100KiB", "/size/3MiB", "/chunked/1/size/50000", "/delay/200us", "/status/204"];

#[test]
fn every_kind_of_answer_comes_whole_over_http2_in_plain_text() {
    let origin = plain(origin::Options::default());
    for target in TARGETS {
        let tally = succeeds(&options_for(&origin, "http", target, true));
        assert_eq!(tally.reconnects, 0);
    }
}

#[test]
fn every_kind_of_answer_comes_whole_over_tls() {
    let certified = Certified::new("tls");
    let origin = certified.origin(origin::Options::default());
    for http2 in [false, true] {
        for target in TARGETS {
            succeeds(&over_tls(options_for(&origin, "https", target, http2), &certified));
        }
    }
}

#[test]
fn one_port_takes_plain_text_and_tls_of_both_protocols() {
    let certified = Certified::new("port");
    let origin = certified.origin(origin::Options::default());
    for http2 in [false, true] {
        succeeds(&options_for(&origin, "http", "/", http2));
        succeeds(&over_tls(options_for(&origin, "https", "/", http2), &certified));
    }
}

#[test]
fn request_bodies_wait_for_windows_and_arrive() {
    let certified = Certified::new("bodies");
    let origin = certified.origin(origin::Options::default());
    let with_body = |mut options: client::Options| {
        (options.method, options.body) = ("POST".to_owned(), 300_000);
        options
    };
    let tally = succeeds(&with_body(options_for(&origin, "http", "/size/10", true)));
    assert!(tally.bytes_out > 400 * 300_000);
    succeeds(&over_tls(with_body(options_for(&origin, "https", "/size/10", true)), &certified));
    succeeds(&over_tls(with_body(options_for(&origin, "https", "/size/10", false)), &certified));
}

#[test]
fn a_new_connection_for_each_request_is_no_reconnect() {
    let certified = Certified::new("new");
    let origin = certified.origin(origin::Options::default());
    for (scheme, http2) in [("http", false), ("http", true), ("https", false), ("https", true)] {
        for rate in [None, Some(20_000.0)] {
            let mut options = options_for(&origin, scheme, "/size/1024", http2);
            (options.new_connection, options.rate) = (true, rate);
            if scheme == "https" {
                options = over_tls(options, &certified);
            }
            assert_eq!(succeeds(&options).reconnects, 0);
        }
    }
}

#[test]
fn an_open_loop_sends_all_that_was_due_over_http2() {
    let origin = plain(origin::Options::default());
    let mut options = options_for(&origin, "http", "/size/100", true);
    options.rate = Some(20_000.0);
    succeeds(&options);
}

#[test]
fn head_requests_have_no_body_over_http2() {
    let origin = plain(origin::Options::default());
    let mut options = options_for(&origin, "http", "/size/1MiB", true);
    options.method = "HEAD".to_owned();
    assert!(succeeds(&options).bytes_in < 400 * 1024);
}

#[test]
fn a_server_that_leaves_is_left_without_a_failure() {
    let origin = plain(origin::Options { close_after: Some(3), ..Default::default() });
    let tally = succeeds(&options_for(&origin, "http", "/", true));
    assert!(tally.reconnects > 10, "{}", tally.reconnects);
    // Its GOAWAY finds the socket full when the client reads slowly: it waits, and cuts no answer short.
    let mut options = options_for(&origin, "http", "/size/1MiB", true);
    (options.slow, options.requests) = (Some(200_000_000), Some(64));
    let tally = run(&options);
    assert_eq!((tally.failed(), tally.completed), (0, 64));
    assert!(tally.reconnects > 1, "{}", tally.reconnects);
}

#[test]
fn slow_sides_still_move_whole_bodies() {
    let slow = Some(20_000_000);
    let origin = plain(origin::Options { slow_read: slow, ..Default::default() });
    for http2 in [false, true] {
        let mut options = options_for(&origin, "http", "/size/10", http2);
        (options.method, options.body, options.requests) = ("POST".to_owned(), 500_000, Some(8));
        assert_eq!((run(&options).failed(), run(&options).completed), (0, 8));
        let mut options = options_for(&origin, "http", "/size/500000", http2);
        (options.slow, options.requests) = (slow, Some(8));
        assert_eq!((run(&options).failed(), run(&options).completed), (0, 8));
    }
    let origin = plain(origin::Options { slow, ..Default::default() });
    let mut options = options_for(&origin, "http", "/size/300000", true);
    options.requests = Some(8);
    assert_eq!((run(&options).failed(), run(&options).completed), (0, 8));
}

#[test]
fn who_is_not_believed_gets_no_request() {
    let (ours, other) = (Certified::new("believed"), Certified::new("unknown"));
    let origin = other.origin(origin::Options::default());
    let mut options = over_tls(options_for(&origin, "https", "/", true), &ours);
    (options.requests, options.connections, options.threads) = (Some(3), 1, 1);
    assert_eq!(run(&options).failures().collect::<Vec<_>>(), [("connect", 3)]);
    let insecure = tls::ClientFiles { insecure: true, ..Default::default() };
    options.tls = options.tls.map(|(_, name)| (tls::client_config(&insecure, true).expect("legal"), name));
    assert_eq!((run(&options).failed(), run(&options).completed), (0, 3));
}

#[test]
fn an_exchange_that_takes_too_long_is_given_up() {
    let origin = plain(origin::Options::default());
    let mut options = options_for(&origin, "http", "/delay/1s", true);
    (options.requests, options.timeout) = (Some(2), Duration::from_millis(1));
    (options.connections, options.threads) = (1, 1);
    assert_eq!(run(&options).failures().collect::<Vec<_>>(), [("timeout", 2)]);
}
