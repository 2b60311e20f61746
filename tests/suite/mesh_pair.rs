//! Caller, proxy, proxy, service: what the two proxies speak with each other does not show at either end.

use std::sync::Arc;

use ringmesh::identity::{ALPN_MESH, ALPN_MESH_WITHOUT_LANES, IdMatch};
use ringmesh::snapshot::ListenerTls;
use ringmesh::upstream::spec::Tls;

use crate::support::authority::Authority;
use crate::support::mesh::{Config, Mesh};
use crate::support::origin::Origin;
use crate::support::wire::Message;

const NEAR: &str = "spiffe://mesh.local/ns/shop/sa/near";
const FAR: &str = "spiffe://mesh.local/ns/shop/sa/far";

/// Two proxies that agree on the first of `alpn`, the near one first; it expects that identity at the far one.
fn pair(authority: &Authority, alpn: &[&[u8]], expected: &str, origin: &Origin) -> (Mesh, Mesh) {
    let expected = expected.to_owned();
    let theirs = authority.credentials(FAR, &authority.workload(FAR), alpn);
    let far = Config::new(&[origin]).forwarding("via = \"far\"\n").logged().change(move |snapshot| {
        snapshot.listeners[0].tls = ListenerTls::Strict;
        snapshot.identity = Some(Arc::clone(&theirs));
    });
    let far = far.start();
    let ours = authority.credentials(NEAR, &authority.workload(NEAR), alpn);
    let near = Config::default().service_at("app", &[&far.address.to_string()], "").change(move |snapshot| {
        Arc::make_mut(&mut snapshot.services[0]).tls = Tls::Mesh(vec![IdMatch::parse(&expected).unwrap()]);
        snapshot.identity = Some(Arc::clone(&ours));
    });
    (near.start(), far)
}

#[test]
fn who_leaves_because_it_finds_another_identity_is_not_said_to_owe_anything() {
    let authority = Authority::new("mesh");
    for alpn in [&b"h2"[..], ALPN_MESH, ALPN_MESH_WITHOUT_LANES] {
        let origin = Origin::plain();
        let (near, far) = pair(&authority, &[alpn], "spiffe://mesh.local/ns/shop/sa/other", &origin);
        let mut client = near.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        assert_eq!(response.one("x-ringmesh-failure").as_deref(), Some("handshake.upstream.wrong_identity"));
        drop(client);
        // Both ends have ended when they have finished.
        near.finish();
        let far = far.finish();
        assert!(far.connection_failures.is_empty(), "{:?}", far.connection_failures);
        assert!(origin.settle().is_empty());
    }
}

/// Start line and framing, fields, body, trailers.
type Seen = (String, Vec<String>, Vec<u8>, Vec<(String, Vec<u8>)>);

/// Without what two connections may differ in: the order of fields, the date, by which versions it came.
fn seen(message: &Message) -> Seen {
    let shown = |(name, value): &(String, Vec<u8>)| format!("{name}: {}", value.escape_ascii());
    let differs = ["via", "date", "x-forwarded-client-cert"];
    let mut fields: Vec<String> =
        message.fields.iter().filter(|(n, _)| !differs.contains(&n.as_str())).map(shown).collect();
    fields.sort();
    let mut trailers = message.trailers.clone();
    trailers.sort();
    (format!("{} {:?}", message.start, message.framing), fields, message.body.clone(), trailers)
}

const REQUESTS: &[&str] = &[
    "GET /a?b HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\nCookie: a=1; b=2\r\n\r\n",
    "GET /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "DELETE /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
];

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nhi",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"x\"\r\n\r\n",
    "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
];

#[test]
fn what_came_by_http11_comes_out_as_it_went_in() {
    let authority = Authority::new("mesh");
    // The same exchanges between proxies that speak HTTP/1.1 with each other, and HTTP/2 with lanes and without.
    let protocols = [&b"http/1.1"[..], ALPN_MESH, ALPN_MESH_WITHOUT_LANES];
    let [by_http11, by_lanes, by_streams] = protocols.map(|protocol| {
        let origin = Origin::scripted(|visit| {
            while let Some(request) = visit.request() {
                let n: usize = request.one("x-answer").unwrap().parse().unwrap();
                let answer = RESPONSES[n];
                if request.method() == "HEAD" {
                    visit.send(&answer[..answer.find("\r\n\r\n").unwrap() + 4]);
                } else {
                    visit.send(answer);
                }
                if answer.contains("close") {
                    return visit.finish();
                }
            }
        });
        let (near, far) = pair(&authority, &[protocol], FAR, &origin);
        let mut answers = Vec::new();
        for request in REQUESTS {
            for (n, answer) in RESPONSES.iter().enumerate() {
                let mut client = near.client();
                client.send(request.replacen("\r\n", &format!("\r\nX-Answer: {n}\r\n"), 1));
                let response = match request.starts_with("HEAD") {
                    true => client.response_to_head(),
                    false => client.response(),
                };
                answers.push(format!("{request:?} {answer:?} {:?}", seen(&response)));
            }
        }
        let (far, near) = (far.finish(), near.finish());
        assert!(near.failures.is_empty() && far.failures.is_empty(), "{:?}", (near.failures, far.failures));
        let spoken: Vec<_> = far.lines().iter().map(|line| line["protocol"].clone()).collect();
        let requests: Vec<_> =
            origin.settle().iter().flat_map(|came| came.requests()).map(|r| seen(&r)).collect();
        (answers, requests, spoken)
    });
    let sorted = |requests: &Vec<Seen>| {
        let mut requests = requests.clone();
        requests.sort();
        requests
    };
    for by_mesh in [by_lanes, by_streams] {
        assert_eq!(by_http11.0.len(), by_mesh.0.len());
        for (left, right) in by_http11.0.iter().zip(&by_mesh.0) {
            assert_eq!(left, right);
        }
        assert_eq!(
            (by_http11.1.len(), by_mesh.1.len()),
            (by_mesh.0.len(), by_mesh.0.len()),
            "each request came"
        );
        for (left, right) in sorted(&by_http11.1).iter().zip(&sorted(&by_mesh.1)) {
            assert_eq!(left, right);
        }
        // The far one logs what the caller spoke; by HTTP/1.1 it sees the near one only.
        let of_1_0 = by_mesh.2.iter().filter(|p| *p == "HTTP/1.0").count();
        assert_eq!((of_1_0, by_mesh.2.len()), (RESPONSES.len(), REQUESTS.len() * RESPONSES.len()));
        assert!(by_mesh.2.iter().all(|p| p == "HTTP/1.0" || p == "HTTP/1.1"), "{:?}", by_mesh.2);
    }
}
