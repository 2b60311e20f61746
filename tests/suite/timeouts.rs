//! Exchanges on which nothing moves, for callers and services of either protocol.

use std::time::Duration;

use crate::support::http2::{
    CANCEL, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, Raw, RawService, block, fields,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::{Origin, Visit};

/// Longer than any of the threads here keeps others waiting; nothing else runs out.
const IDLE: &str = "stream_idle = \"400ms\"\nbody_stall = \"1h\"";
const LONG: &str = "timeouts = { response = \"1h\", body_stall = \"1h\" }\n";

/// Runs `test` before services of both protocols, which begin to answer and say no more, or are silent.
fn before(begins: bool, test: impl Fn(&Mesh, u8)) {
    let origin = Origin::scripted(move |visit| {
        if visit.head().is_some() && begins {
            // Without a length: what ends with its connection must not look whole.
            visit.send("HTTP/1.1 200 OK\r\n\r\nhell");
        }
        visit.drain();
    });
    let mesh = Config::default().service("app", &[&origin], LONG).timeouts(IDLE).start();
    test(&mesh, 1);
    assert_eq!(idle_of(mesh), 1);
    // It has been told that nobody waits any more.
    origin.wait_end(0);
    let service = RawService::scripted(move |_, raw| {
        while let Some((stream, _)) = raw.request() {
            if begins {
                raw.head(0, stream, &[(":status", "200")]);
                raw.frame(DATA, 0, stream, b"hell");
            }
        }
    });
    let keys = format!("protocol = \"http2\"\n{LONG}");
    let mesh = Config::default().service_at("app", &[&service.endpoint], &keys).timeouts(IDLE).start();
    test(&mesh, 2);
    assert_eq!(idle_of(mesh), 1);
}

fn idle_of(mesh: Mesh) -> u64 {
    let seen = mesh.finish();
    assert_eq!(seen.failures.len(), 1, "{:?}", seen.failures);
    seen.of_cause("local.stream_idle")
}

const UPLOAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhel";

#[test]
fn an_upload_that_both_sides_have_forgotten_is_answered_with_408() {
    before(false, |mesh, _| {
        let mut client = mesh.client();
        client.send(UPLOAD);
        let response = client.response();
        assert_eq!(response.status(), 408);
        assert!(response.one("x-ringmesh-failure").unwrap().ends_with(".local.stream_idle"));
        client.end();
    });
    before(false, |mesh, _| {
        let mut raw = Raw::connect(mesh.address);
        raw.frame(HEADERS, END_HEADERS, 1, &block(&fields("POST", "/", &[])));
        raw.frame(DATA, 0, 1, b"hel");
        assert_eq!(raw.outcome(1), Outcome::Status(408));
    });
}

#[test]
fn a_response_on_which_nothing_moves_is_cut_whether_or_not_the_request_was_whole() {
    for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", UPLOAD] {
        before(true, |mesh, _| {
            let mut client = mesh.client();
            client.send(request);
            // Chunks without their end.
            client.cut();
        });
    }
    for flags in [END_STREAM, 0] {
        before(true, |mesh, to| {
            let mut raw = Raw::connect(mesh.address);
            raw.frame(HEADERS, END_HEADERS | flags, 1, &block(&fields("POST", "/", &[])));
            assert_eq!(raw.outcome(1), Outcome::Status(200), "{to}");
            let (body, code) = raw.body(1);
            assert_eq!(body, b"hell", "{to}");
            assert!(code.is_some_and(|code| code != CANCEL), "{to}: {code:?}");
        });
    }
}

#[test]
fn a_service_that_has_the_whole_request_has_its_own_time_to_answer() {
    // Ten times as long as an exchange may lie still: it is not a failure of that kind.
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.drain();
    });
    let keys = "timeouts = { response = \"300ms\" }\n";
    let mesh = Config::default().service("app", &[&origin], keys).timeouts("stream_idle = \"30ms\"").start();
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = mesh.client();
        client.send(request);
        assert_eq!(client.response().status(), 504);
    }
    assert_eq!(mesh.finish().failures["response.upstream.timeout"], 2);
}

#[test]
fn a_response_that_comes_as_the_time_runs_out_is_passed_on_whole_or_answered_with_504() {
    // Around the deadline and for as long behind it as it may take to be noticed, a quarter of a millisecond apart: whatever
    // the machine makes of that, nobody sees half of an answer, or none.
    const TIMES: u32 = 40;
    let routes = "[[route]]\nservice = \"app\"\ntimeout = \"20ms\"\n";
    let late =
        |n: usize| std::thread::sleep(Duration::from_micros(18_000 + 250 * (n as u64 % u64::from(TIMES))));
    let counts = |n: &std::sync::atomic::AtomicUsize| n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    for begins in ["", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let origin = Origin::scripted(move |visit: &mut Visit| {
            while visit.request().is_some() {
                late(counts(&asked));
                visit.send(format!("{begins}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"));
            }
        });
        let mesh = Config::new(&[&origin]).routes(routes).start();
        at_the_deadline(&mesh, TIMES, "done");
        mesh.finish();
    }
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let service = RawService::scripted(move |_, raw| {
        while let Some((stream, _)) = raw.request() {
            late(counts(&asked));
            raw.head(END_STREAM, stream, &[(":status", "200")]);
        }
    });
    let mesh = Config::default()
        .service_at("app", &[&service.endpoint], "protocol = \"http2\"\n")
        .routes(routes)
        .start();
    at_the_deadline(&mesh, TIMES, "");
    mesh.finish();
}

fn at_the_deadline(mesh: &Mesh, times: u32, body: &str) {
    let mut in_time = 0;
    for _ in 0..times {
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut response = client.response();
        while response.status() == 103 {
            response = client.response();
        }
        match response.status() {
            200 => {
                assert_eq!(response.text(), body);
                in_time += 1;
            }
            status => assert_eq!(status, 504),
        }
    }
    for stream in (1..2 * times).step_by(2) {
        let mut raw = Raw::connect(mesh.address);
        raw.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields("GET", "/", &[])));
        match raw.outcome(stream) {
            Outcome::Status(200) => {
                if !body.is_empty() {
                    assert_eq!(raw.body(stream), (body.as_bytes().to_vec(), None));
                }
                in_time += 1;
            }
            outcome => assert_eq!(outcome, Outcome::Status(504)),
        }
    }
    eprintln!("{in_time} of {} in time", 2 * times);
}

#[test]
fn an_exchange_on_which_only_the_answer_moves_is_not_cut() {
    // An octet now and then, for longer than an exchange may lie still; a pause as long as that would be the machine's.
    const OCTETS: usize = 45;
    const PAUSE: Duration = Duration::from_millis(80);
    let origin = Origin::scripted(|visit| {
        visit.request();
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n");
        for _ in 0..OCTETS {
            visit.send("x");
            std::thread::sleep(PAUSE);
        }
        visit.drain();
    });
    let service = RawService::scripted(|_, raw| {
        while let Some((stream, _)) = raw.request() {
            raw.head(0, stream, &[(":status", "200")]);
            for n in 1..=OCTETS {
                raw.frame(DATA, if n == OCTETS { END_STREAM } else { 0 }, stream, b"x");
                std::thread::sleep(PAUSE);
            }
        }
    });
    let to = |endpoint: &str, protocol: &str| {
        let keys = format!("protocol = \"{protocol}\"\n{LONG}");
        let timeouts = "stream_idle = \"2500ms\"\nbody_stall = \"1h\"";
        Config::default().service_at("app", &[endpoint], &keys).timeouts(timeouts).start()
    };
    let meshes = [to(&origin.endpoint, "http1"), to(&service.endpoint, "http2")];
    let callers: Vec<_> = meshes
        .iter()
        .map(|mesh| {
            let address = mesh.address;
            std::thread::spawn(move || {
                let mut raw = Raw::connect(address);
                raw.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields("GET", "/", &[])));
                assert_eq!(raw.outcome(1), Outcome::Status(200));
                raw.body(1)
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.join().unwrap(), (vec![b'x'; OCTETS], None));
    }
    meshes.into_iter().for_each(|mesh| assert!(mesh.finish().failures.is_empty()));
}
