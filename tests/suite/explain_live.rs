//! `/explain` against what becomes of the request itself: routes, rules and requests are drawn from a few pieces each, so that they
//! often meet. What is told to be refused is, with that status and for that reason; what is told to be served is, by that route.
//!
//! The seed is printed: `RINGMESH_SEED=42 cargo test --test suite explain_live`.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use fastrand::Rng;
use ringmesh::control::{Proxy, Start};
use serde_json::Value;

use crate::support::GUARD;
use crate::support::origin::Origin;

const PROXIES: usize = 8;
const REQUESTS: usize = 150;

/// A route that a request may take; its answers say which one it was.
fn route(n: usize, rng: &mut Rng) -> String {
    let mut text = format!("[[route]]\nname = \"r{n}\"\n");
    let mut keys = String::new();
    let is_path_kept = match rng.u8(0..6) {
        0 => true,
        1 => {
            text += "path = \"/a\"\n";
            true
        }
        2 => {
            text += "path_prefix = \"/a\"\n";
            rng.bool()
        }
        3 => {
            text += "path_template = \"/a/{id}\"\n";
            true
        }
        4 => {
            text += "path_regex = \"/[ab]/.*\"\n";
            true
        }
        _ => {
            text += "path_prefix = \"/a/b\"\n";
            true
        }
    };
    match rng.u8(0..4) {
        0 => text += "hosts = [\"shop.example\"]\n",
        1 => text += "hosts = [\"*.example\"]\n",
        _ => {}
    }
    let mut conditions = Vec::new();
    if rng.u8(..) < 80 {
        conditions.push("methods = [\"GET\", \"POST\"]");
    }
    if rng.u8(..) < 60 {
        conditions.push("headers = { x-a = \"1\" }");
    }
    if rng.u8(..) < 60 {
        conditions.push("query = { q = { present = true } }");
    }
    if rng.u8(..) < 60 {
        conditions.push("cookies = { s = { prefix = \"1\", not = true } }");
    }
    if !conditions.is_empty() {
        writeln!(keys, "match = {{ {} }}", conditions.join(", ")).unwrap();
    }
    match rng.u8(0..8) {
        0 => keys += "respond = { status = 204 }\n",
        1 => keys += "redirect = { path = \"/a/b\" }\n",
        2 => keys += "redirect = { host = \"shop.example\" }\n",
        _ => {
            keys += "service = \"app\"\n";
            match rng.u8(0..4) {
                0 => keys += "upgrades = []\n",
                1 => keys += "upgrades = [\"websocket\", \"connect\"]\n",
                _ => {}
            }
            if !is_path_kept {
                keys += "rewrite = { path_prefix = \"/other\" }\n";
            }
        }
    }
    if rng.u8(..) < 80 {
        keys += "cors = { origins = [\"https://page.example\"], methods = [\"PUT\"] }\n";
    }
    writeln!(keys, "response_headers = {{ set = {{ x-route = \"r{n}\" }} }}").unwrap();
    text + &keys
}

fn configuration(origin: &Origin, rng: &mut Rng) -> String {
    let paths = ["any", "no_dot_segments", "one_meaning"][rng.usize(..3)];
    let mut text = format!(
        "shards = 1\n[admin]\naddress = \"127.0.0.1:0\"\n[limits]\nbody_bytes_max = \"1KiB\"\npaths = \"{paths}\"\n\
         [[listener]]\nname = \"in\"\naddress = \"127.0.0.1:0\"\n[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
        origin.endpoint
    );
    for n in 0..rng.usize(3..12) {
        text += &route(n, rng);
    }
    for (n, rule) in [
        "action = \"deny\"\npaths = [\"/a/secret\", \"/b/*\"]\n",
        "action = \"deny\"\nmethods = [\"PUT\"]\n",
        "action = \"deny\"\nheaders = { x-a = \"2\" }\n",
        "action = \"allow\"\npaths = [\"/a\", \"/a/*\"]\n",
    ]
    .into_iter()
    .enumerate()
    {
        if rng.u8(..) < 40 {
            write!(text, "[[authorization]]\nname = \"d{n}\"\n{rule}").unwrap();
        }
    }
    text
}

/// Method, target and fields, `host` among them where there is one.
fn request(rng: &mut Rng) -> (&'static str, &'static str, Vec<&'static str>) {
    const FIELDS: [&[&str]; 14] = [
        &["x-a: 1"],
        &["x-a: 2"],
        &["x-a: 1", "x-a: 1"],
        &["cookie: s=12"],
        &["cookie: t=1; s=2"],
        &["origin: https://page.example"],
        &["origin: https://page.example", "access-control-request-method: PUT"],
        &["origin: https://other.example", "access-control-request-method: PUT"],
        &["upgrade: websocket", "connection: upgrade", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="],
        &["content-length: 5000"],
        &["content-length: 1", "content-length: 2"],
        &["max-forwards: 0"],
        &["content-type: application/grpc"],
        &["x(y: 1"],
    ];
    const TARGETS: [&str; 16] = [
        "/",
        "/a",
        "/a?q=1",
        "/a/",
        "/a/b",
        "/a/b?q",
        "/a/b/c",
        "/ab",
        "/b/x",
        "/a/secret",
        "/a/../b/x",
        "/a/%2e%2e",
        "/a//b",
        "/a;x",
        "/%61/b",
        "*",
    ];
    const HOSTS: [&str; 5] =
        ["host: shop.example", "host: shop.example:8080", "host: a.example", "host: elsewhere", "host: a b"];
    let method = ["GET", "GET", "GET", "POST", "PUT", "HEAD", "OPTIONS", "OPTIONS", "TRACE", "CONNECT"]
        [rng.usize(..10)];
    let mut fields: Vec<&str> = Vec::new();
    for _ in 0..rng.usize(..3) {
        fields.extend(FIELDS[rng.usize(..FIELDS.len())]);
    }
    // No browser says so of a preflight; whoever does is told of it as gRPC is.
    fields.retain(|field| method != "OPTIONS" || !field.starts_with("content-type"));
    if method == "CONNECT" {
        return (method, ["shop.example:443", "elsewhere:1"][rng.usize(..2)], fields);
    }
    fields.push(HOSTS[rng.usize(..12) % HOSTS.len()]);
    (method, TARGETS[rng.usize(..TARGETS.len())], fields)
}

/// The head of the answer: its status, and its fields in lower case.
fn asked(address: SocketAddr, head: &str) -> (u64, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{head}: ends after {}", answer.escape_ascii());
        answer.extend_from_slice(&piece[..read]);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer[9..12].parse().unwrap(), answer)
}

fn explained(admin: SocketAddr, method: &str, target: &str, fields: &[&str]) -> Value {
    let encoded = |text: &str| text.bytes().map(|octet| format!("%{octet:02x}")).collect::<String>();
    let mut query = format!("/explain?format=json&method={method}&url={}", encoded(target));
    fields.iter().for_each(|field| write!(query, "&header={}", encoded(field)).unwrap());
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    write!(stream, "GET {query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{query}: {answer}");
    serde_json::from_str(body).unwrap()
}

#[test]
fn what_is_told_of_a_request_is_what_becomes_of_it() {
    let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("RINGMESH_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let origin = Origin::plain();
    let (mut served, mut refused) = (0, 0);
    for _ in 0..PROXIES {
        // Two routes that mean the same are refused: then others are drawn.
        let (text, proxy) = (0..100)
            .find_map(|_| {
                let text = configuration(&origin, &mut rng);
                Some((text.clone(), Proxy::start(Start::text(text)).ok()?))
            })
            .unwrap();
        let (admin, inbound) = (proxy.admin().unwrap(), proxy.listener("in").unwrap());
        for _ in 0..REQUESTS {
            let (method, target, fields) = request(&mut rng);
            let told = explained(admin, method, target, &fields);
            let mut head = format!("{method} {target} HTTP/1.1\r\n");
            if method == "CONNECT" {
                write!(head, "host: {target}\r\n").unwrap();
            }
            fields.iter().for_each(|field| head.extend([field, "\r\n"]));
            let (status, answer) = asked(inbound, &format!("{head}\r\n"));
            let of = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let (failure, by) = (of("x-ringmesh-failure: "), of("x-route: "));
            let shown = || format!("{text}\n{head}\n{told:#}\n{answer}");
            if told["served"] == true {
                served += 1;
                assert_eq!(failure, None, "{}", shown());
                assert!(status < 400 || told.to_string().contains("404"), "{}", shown());
                // OPTIONS that goes no further is nobody's answer.
                if let Some(by) = by {
                    assert_eq!(told["route"]["name"], by, "{}", shown());
                }
            } else {
                refused += 1;
                assert_eq!(told["refused"]["status"], status, "{}", shown());
                let grpc = of("grpc-status: ").map(|status| status.parse::<u64>().unwrap());
                assert_eq!(told["refused"]["grpc_status"].as_u64(), grpc, "{}", shown());
                assert_eq!(told["refused"]["failure"].as_str(), failure.as_deref(), "{}", shown());
            }
        }
        proxy.drain();
        proxy.join();
    }
    eprintln!("{served} served, {refused} refused");
    assert!(served > 100 && refused > 100, "{served} served, {refused} refused");
}
