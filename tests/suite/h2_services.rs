//! Services that speak HTTP/2 and do it badly, or not at all any more: what they promise, push, refuse, flood, and leave
//! unfinished (rows G-18, G-20, G-22, G-23 of the list, and what stands below A-15). A caller is told, others are served,
//! and nothing that a service may have seen is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::Gate;
use crate::support::http2::{
    ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, NO_ERROR,
    Outcome, PING, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM, RST_STREAM, Raw, RawService, SETTINGS,
    block, call, fields, request,
};
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;

fn before(service: &RawService) -> Config {
    Config::default().service_at("app", &[&service.endpoint], "protocol = \"http2\"\n")
}

fn ok(raw: &mut Raw, stream: u32) {
    raw.head(0, stream, &[(":status", "200")]);
    raw.frame(DATA, END_STREAM, stream, b"ok");
}

/// A request by HTTP/1.1, and one by HTTP/2: statuses, and what the response says of the failure.
fn asked(mesh: &Mesh, method: &str) -> [(u16, String); 2] {
    let mut client = mesh.client();
    client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"));
    let h1 = client.response();
    let h2 = call(mesh.address, request(method, "/"), b"", None).unwrap();
    let failure = h2.head.headers.get("x-ringmesh-failure").map(|v| v.to_str().unwrap().to_owned());
    [
        (h1.status(), h1.one("x-ringmesh-failure").unwrap_or_default()),
        (h2.head.status.as_u16(), failure.unwrap_or_default()),
    ]
}

#[test]
fn g22_what_a_service_says_it_did_not_take_is_sent_once_more() {
    // Refused, or behind the last stream of a GOAWAY, whatever the reason for that.
    for (what, code) in [("refused", None), ("going", Some(NO_ERROR)), ("calm", Some(ENHANCE_YOUR_CALM))] {
        let requests = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&requests);
        let service = RawService::scripted(move |_, raw| {
            while let Some((stream, _)) = raw.request() {
                // Every other one.
                if theirs.fetch_add(1, Ordering::AcqRel) % 2 == 1 {
                    ok(raw, stream);
                    continue;
                }
                match code {
                    None => drop(raw.frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes())),
                    Some(code) => {
                        let mut payload = (stream - 1).to_be_bytes().to_vec();
                        payload.extend_from_slice(&code.to_be_bytes());
                        raw.frame(GOAWAY, 0, 0, &payload);
                    }
                }
            }
        });
        let mesh = before(&service).start();
        for method in ["GET", "POST"] {
            assert_eq!(asked(&mesh, method), [(200, String::new()), (200, String::new())], "{what} {method}");
        }
        let seen = mesh.finish();
        assert_eq!((seen.totals.replays, requests.load(Ordering::Acquire)), (4, 8), "{what}");
    }
}

#[test]
fn g22_what_a_service_may_have_seen_is_not_sent_again() {
    // Reset for another reason, the connection closed, or a GOAWAY that has this stream among those taken.
    for what in ["reset", "closed", "going"] {
        let requests = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&requests);
        let service = RawService::scripted(move |_, raw| {
            while let Some((stream, _)) = raw.request() {
                theirs.fetch_add(1, Ordering::AcqRel);
                match what {
                    "reset" => drop(raw.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())),
                    "going" => {
                        let mut payload = stream.to_be_bytes().to_vec();
                        payload.extend_from_slice(&NO_ERROR.to_be_bytes());
                        raw.frame(GOAWAY, 0, 0, &payload);
                        return;
                    }
                    _ => return,
                }
            }
        });
        let mesh = before(&service).start();
        for (status, _) in asked(&mesh, "POST") {
            assert_eq!(status, 502, "{what}");
        }
        let seen = mesh.finish();
        assert_eq!((seen.totals.replays, requests.load(Ordering::Acquire)), (0, 2), "{what}");
    }
}

#[test]
fn g22_a_service_that_always_refuses_is_asked_twice() {
    let requests = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&requests);
    let service = RawService::scripted(move |_, raw| {
        while let Some((stream, _)) = raw.request() {
            theirs.fetch_add(1, Ordering::AcqRel);
            raw.frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes());
        }
    });
    let mesh = before(&service).start();
    for (status, failure) in asked(&mesh, "GET") {
        assert_eq!((status, failure.as_str()), (503, "response.upstream.http2_stream_refused"));
    }
    assert_eq!(requests.load(Ordering::Acquire), 4);
    mesh.finish();
}

#[test]
fn g22_connections_that_go_away_one_after_the_other_fail_no_request() {
    // Three in a row say that they have not taken it, each after a request that they did take.
    let connections = Arc::<AtomicUsize>::default();
    let theirs = Arc::clone(&connections);
    let service = RawService::scripted(move |_, raw| {
        let number = theirs.fetch_add(1, Ordering::AcqRel);
        while let Some((stream, _)) = raw.request() {
            if number == 3 {
                ok(raw, stream);
                continue;
            }
            let mut payload = (stream - 1).to_be_bytes().to_vec();
            payload.extend_from_slice(&NO_ERROR.to_be_bytes());
            raw.frame(GOAWAY, 0, 0, &payload);
        }
    });
    let mesh = before(&service).start();
    assert_eq!(asked(&mesh, "POST"), [(200, String::new()), (200, String::new())]);
    assert_eq!(mesh.finish().totals.replays, 3);
}

#[test]
fn g22_a_connection_that_was_dead_when_it_was_used_again_fails_no_idempotent_request() {
    for (method, status) in [("GET", 200), ("POST", 502)] {
        let connections = Arc::<AtomicUsize>::default();
        let theirs = Arc::clone(&connections);
        let service = RawService::scripted(move |_, raw| {
            let number = theirs.fetch_add(1, Ordering::AcqRel);
            let mut served = 0;
            while let Some((stream, _)) = raw.request() {
                // The first connection is closed without a word when it is used for the second time.
                if number == 0 && served == 1 {
                    return;
                }
                ok(raw, stream);
                served += 1;
            }
        });
        let mesh = before(&service).start();
        let statuses: Vec<u16> =
            (0..2).flat_map(|_| asked(&mesh, method)).map(|(status, _)| status).collect();
        assert_eq!(statuses, [200, status, 200, 200], "{method}");
        assert_eq!(mesh.finish().totals.replays, u64::from(method == "GET"));
    }
}

#[test]
fn who_waits_for_a_place_on_a_full_connection_is_told_after_the_time_to_connect_and_nobody_else_waits() {
    let service = RawService::scripted(|_, raw| {
        // Answered never, until the caller has gone.
        while raw.request().is_some() {}
    });
    let origin = Origin::plain();
    let mesh = Config::default()
        .service_at(
            "full",
            &[&service.endpoint],
            "protocol = \"http2\"\ntimeouts.connect = \"50ms\"\nhttp2 = { connections_max = 1, streams_max = 1 }",
        )
        .service("other", &[&origin], "")
        .routes(
            "[[route]]\npath_prefix = \"/full\"\nservice = \"full\"\n[[route]]\npath_prefix = \"/other\"\nservice = \"other\"\n",
        )
        .start();
    let mut first = mesh.client();
    first.send("GET /full HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut second = mesh.client();
    second.send("GET /full HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = second.response();
    assert_eq!(response.status(), 503);
    assert_eq!(response.one("x-ringmesh-failure").as_deref(), Some("connect.upstream.overloaded"));
    let mut other = mesh.client();
    other.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(other.response().status(), 200);
    drop((first, second, other));
    mesh.finish();
}

/// As many as a buffer holds, behind a head that needs a large one: whatever looks for the ends of a head's lines finds those of the
/// body, too.
#[test]
fn a_body_of_nothing_but_line_ends_is_a_body() {
    // No more than the windows that a connection begins with.
    for (head, body) in [(100, 4000), (20_000, 4000), (20_000, 60_000)] {
        let service = RawService::scripted(move |_, raw| {
            while let Some((stream, _)) = raw.request() {
                ok(raw, stream);
            }
        });
        let mesh = before(&service).start();
        let mut client = mesh.client();
        let (long, ends) = ("v".repeat(head), "\n".repeat(body));
        client.send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\nx-long: {long}\r\ncontent-length: {body}\r\n\r\n{ends}"
        ));
        assert_eq!(client.response().status(), 200, "{head} {body}");
        assert_eq!(mesh.finish().totals.panics, 0);
    }
}

#[test]
fn g23_misdirected_is_passed_on() {
    let service = RawService::scripted(|_, raw| {
        while let Some((stream, _)) = raw.request() {
            raw.head(END_STREAM, stream, &[(":status", "421")]);
        }
    });
    let mesh = before(&service).start();
    assert_eq!(asked(&mesh, "GET"), [(421, String::new()), (421, String::new())]);
    mesh.finish();
    let origin =
        Origin::answering(|_| b"HTTP/1.1 421 Misdirected Request\r\ncontent-length: 0\r\n\r\n".to_vec());
    let mesh = Config::new(&[&origin]).start();
    assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 421);
    mesh.finish();
}

#[test]
fn g18_interim_responses_pass_from_http2_to_both() {
    let service = RawService::scripted(|_, raw| {
        while let Some((stream, _)) = raw.request() {
            for n in ["1", "2"] {
                raw.head(0, stream, &[(":status", "103"), ("link", n)]);
            }
            ok(raw, stream);
        }
    });
    let mesh = before(&service).start();
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let all = client.responses();
    let statuses: Vec<_> = all.iter().map(|response| (response.status(), response.one("link"))).collect();
    assert_eq!(statuses, [(103, Some("1".into())), (103, Some("2".into())), (200, None)]);
    let mut raw = Raw::connect(mesh.address);
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    let statuses: Vec<_> = (0..3).map(|_| raw.until(HEADERS).status()).collect();
    assert_eq!(statuses, [103, 103, 200]);
    drop((raw, client));
    mesh.finish();
}

#[test]
fn also_a_flood_of_interim_responses_is_bounded() {
    let h2 = RawService::scripted(|_, raw| {
        while let Some((stream, _)) = raw.request() {
            for _ in 0..10_000 {
                if !raw.head(0, stream, &[(":status", "103")]) {
                    return;
                }
            }
            ok(raw, stream);
        }
    });
    let h1 = Origin::scripted(|visit| {
        visit.request();
        while visit.send("HTTP/1.1 103 Early Hints\r\n\r\n") {}
    });
    let (to_h2, to_h1) = (before(&h2).start(), Config::new(&[&h1]).start());
    let mut client = to_h2.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let all = client.responses();
    assert!(all.len() <= 17, "{}", all.len());
    assert_eq!(
        all.last().unwrap().one("x-ringmesh-failure").as_deref(),
        Some("response.upstream.too_many_interim_responses")
    );
    for mesh in [&to_h2, &to_h1] {
        let mut raw = Raw::connect(mesh.address);
        raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
        let mut interim = 0;
        while raw.until(HEADERS).status() != 502 {
            interim += 1;
        }
        assert!(interim <= 16, "{interim}");
    }
    drop(client);
    to_h2.finish();
    to_h1.finish();
}

#[test]
fn also_a_service_that_pushes_although_it_was_told_not_to_loses_its_connection() {
    let told = Arc::new(crate::support::Watched::<Vec<Option<u32>>>::default());
    let theirs = Arc::clone(&told);
    let service = RawService::scripted(move |number, raw| {
        while let Some((stream, _)) = raw.request() {
            if number % 2 == 1 {
                ok(raw, stream);
                continue;
            }
            let mut payload = 2_u32.to_be_bytes().to_vec();
            payload.extend(block(&fields("GET", "/pushed", &[])));
            raw.frame(PUSH_PROMISE, END_HEADERS, stream, &payload);
            raw.head(END_STREAM, 2, &[(":status", "200")]);
            ok(raw, stream);
            let code = raw.goaway();
            theirs.change(|told| told.push(code));
            return;
        }
    });
    let mesh = before(&service).start();
    let [(status, _), (after, _)] = asked(&mesh, "GET");
    assert_eq!((status, after), (502, 200));
    assert_eq!(told.wait("the end", |told| told.first().copied()), Some(PROTOCOL_ERROR));
    mesh.finish();
}

#[test]
fn also_a_service_that_never_acknowledges_settings_or_never_ends_a_head_loses_its_connection() {
    for what in ["settings", "head", "continuation"] {
        let ended = Arc::new(Gate::default());
        let theirs = Arc::clone(&ended);
        let service = RawService::scripted(move |number, raw| {
            if number > 0 {
                while let Some((stream, _)) = raw.request() {
                    ok(raw, stream);
                }
                return;
            }
            while let Some(frame) = raw.next() {
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 && what != "settings" => {
                        raw.frame(SETTINGS, ACK, 0, &[]);
                    }
                    // Never answered: the ping is not what ends the connection here.
                    HEADERS if what == "head" => {
                        raw.frame(HEADERS, END_STREAM, frame.stream, &block(&[(":status", "200")]));
                    }
                    HEADERS if what == "continuation" => {
                        raw.frame(HEADERS, END_STREAM, frame.stream, &block(&[(":status", "200")]));
                        raw.frame(CONTINUATION, 0, frame.stream, &block(&[("x", "y")]));
                    }
                    _ => {}
                }
            }
            theirs.open();
        });
        // The first request waits for ever; the connection is what ends, and with it the wait.
        let mesh = before(&service).keys("timeouts = { response = \"100ms\" }").start();
        let mut client = mesh.client();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!([502, 504].contains(&client.response().status()), "{what}");
        ended.pass();
        assert_eq!(call(mesh.address, request("GET", "/"), b"", None).unwrap().head.status, 200, "{what}");
        drop(client);
        mesh.finish();
    }
}

#[test]
fn also_a_service_that_floods_loses_its_connection_and_others_are_served() {
    for kind in [PING, SETTINGS] {
        let service = RawService::scripted(move |number, raw| {
            while let Some((stream, _)) = raw.request() {
                if number > 0 {
                    ok(raw, stream);
                    continue;
                }
                let payload: &[u8] = if kind == PING { &[0; 8] } else { &[] };
                for _ in 0..5_000 {
                    if !raw.frame(kind, 0, 0, payload) {
                        break;
                    }
                }
                return;
            }
        });
        let mesh = before(&service).start();
        let [(status, _), (after, _)] = asked(&mesh, "GET");
        assert_eq!((status, after), (502, 200));
        let seen = mesh.finish();
        assert_eq!(seen.totals.floods.iter().sum::<u64>(), 1, "{:?}", seen.totals.floods);
    }
}

#[test]
fn a_service_may_reset_as_many_streams_as_it_answers() {
    // As servers do that answer before they have read the body (RFC 9113 §8.1).
    let service = RawService::scripted(|_, raw| {
        while let Some((stream, _)) = raw.request() {
            raw.head(0, stream, &[(":status", "413")]);
            raw.frame(DATA, END_STREAM, stream, b"no");
            raw.frame(RST_STREAM, 0, stream, &NO_ERROR.to_be_bytes());
        }
    });
    let mut mesh = before(&service).start();
    let mut client = mesh.client();
    for n in 0..1_000 {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (413, "no"), "{n}");
    }
    drop(client);
    let totals = mesh.wait_totals(|totals| totals.upstream_connected > 0);
    assert_eq!(totals.upstream_connected, 1);
    mesh.finish();
}

#[test]
fn an_early_answer_reaches_the_caller_although_the_service_takes_nothing_of_the_body() {
    // No window at all, and in the end a reset that says that the rest is not wanted.
    let service = RawService::with(&[(4, 0)], |_, raw| {
        while let Some((stream, _)) = raw.request() {
            raw.head(0, stream, &[(":status", "403")]);
            raw.frame(DATA, END_STREAM, stream, b"no");
            raw.frame(RST_STREAM, 0, stream, &NO_ERROR.to_be_bytes());
        }
    });
    let mesh = before(&service).start();
    for length in [5, 100_000, 3_000_000] {
        let body = vec![b'x'; length];
        let mut client = mesh.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n")).send(&body);
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (403, "no"), "{length}");
        // By HTTP/2: no flow of the body, so no octet of it must be sent for the answer to come.
        let mut raw = Raw::connect(mesh.address);
        raw.head(0, 1, &fields("POST", "/", &[]));
        raw.frame(DATA, 0, 1, &body[..length.min(16_000)]);
        assert_eq!(raw.outcome(1), Outcome::Status(403), "{length}");
        assert_eq!(raw.body(1).0, b"no");
    }
    mesh.finish();
}

#[test]
fn a_service_that_lets_few_streams_be_open_is_never_sent_more() {
    // Places on a connection that were given back by resets are not free at the service yet.
    let open = Arc::<AtomicUsize>::default();
    let most = Arc::<AtomicUsize>::default();
    let (theirs, highest) = (Arc::clone(&open), Arc::clone(&most));
    let service = RawService::with(&[(3, 2)], move |_, raw| {
        while let Some(frame) = raw.event() {
            match frame.kind {
                HEADERS => {
                    let now = theirs.fetch_add(1, Ordering::AcqRel) + 1;
                    highest.fetch_max(now, Ordering::AcqRel);
                }
                RST_STREAM => drop(theirs.fetch_sub(1, Ordering::AcqRel)),
                GOAWAY => return,
                _ => {}
            }
        }
    });
    let mesh =
        before(&service).keys("http2 = { connections_max = 1 }\ntimeouts = { connect = \"50ms\" }").start();
    let mut raw = Raw::connect(mesh.address);
    // Settings are in force once they came.
    raw.head(END_STREAM, 1, &fields("GET", "/", &[]));
    while open.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    raw.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    raw.settle();
    let mut all = Vec::new();
    for n in 1..40 {
        all.extend(crate::support::http2::frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            2 * n + 1,
            &block(&fields("GET", "/", &[])),
        ));
        if n > 2 {
            all.extend(crate::support::http2::frame(RST_STREAM, 0, 2 * (n - 2) + 1, &CANCEL.to_be_bytes()));
        }
    }
    raw.write(&all);
    raw.settle();
    drop(raw);
    let seen = mesh.finish();
    assert!(most.load(Ordering::Acquire) <= 2, "{most:?}");
    assert_eq!(seen.of_cause("http2_protocol_error"), 0, "{:?}", seen.failures);
}
