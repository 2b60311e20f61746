//! What heads cost: read and written anew, against httparse alone, which only takes them apart.

use std::hint::black_box;
use std::mem::MaybeUninit;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringmesh::http::h1::{Forwarding, ResponseOptions, read_request, read_response, write_response_head};
use ringmesh::http::{Method, Version};
use ringmesh::shard::clock::Clock;
use ringmesh::snapshot::{ForwardedFields, Limits};

const LIMITS: Limits = Limits {
    head_bytes_max: 64 * 1024,
    target_bytes_max: 16 * 1024,
    paths: ringmesh::snapshot::Paths::Any,
    fields_max: 128,
    body_bytes_max: 0,
    connections_max: 1,
    interim_responses_max: 16,
    handshakes_max: 16,
    mirrored_max: 1,
    mirrored_body_bytes_max: 1,
    faults_max: 1,
};

/// A call between services: ten fields, some 500 bytes.
const REQUEST: &str = "GET /api/v1/orders/4711?expand=items HTTP/1.1\r\n\
    Host: orders.shop.svc.cluster.local:8080\r\n\
    User-Agent: Go-http-client/1.1\r\n\
    Accept: application/json\r\n\
    Accept-Encoding: gzip\r\n\
    Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJmcm9udCJ9.c2lnbmF0dXJl\r\n\
    Connection: keep-alive\r\n\
    X-Forwarded-For: 10.1.2.3\r\n\
    X-Forwarded-Proto: https\r\n\
    X-Request-Id: 6f1c1b0e-8a44-4d3b-9d8e-0b6a6cbb2f01\r\n\
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";

const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Content-Length: 1024\r\n\
    Date: Tue, 24 Nov 2026 13:49:35 GMT\r\n\
    Cache-Control: no-store\r\n\
    ETag: \"5f3e-1a2b\"\r\n\
    Vary: Accept-Encoding\r\n\
    Server: orders\r\n\
    X-Request-Id: 6f1c1b0e-8a44-4d3b-9d8e-0b6a6cbb2f01\r\n\r\n";

/// As a browser behind several proxies sends it.
fn with_40_fields() -> String {
    let mut head = REQUEST.strip_suffix("\r\n").unwrap_or_default().to_owned();
    for n in 10..40 {
        head += &format!("X-Custom-Field-{n}: some value that is neither long nor short\r\n");
    }
    head + "\r\n"
}

fn requests(criterion: &mut Criterion) {
    let many = with_40_fields();
    for (name, head) in [("request_10_fields", REQUEST), ("request_40_fields", &many)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(head.len() as u64));
        let forwarding = Forwarding {
            via: Some("ringmesh-a1b2c3"),
            forwarded: ForwardedFields::Append,
            peer: ([10, 0, 0, 7], 40_000).into(),
            encrypted: false,
            default_host: "orders",
            client_cert: None,
        };
        let mut out = Vec::with_capacity(16 * 1024);
        group.bench_function("read_and_write", |bencher| {
            bencher.iter(|| {
                out.clear();
                let read = read_request(black_box(head.as_bytes()), &LIMITS, forwarding.via, |request| {
                    request.write_head(&forwarding, &mut out);
                    request.head_len
                });
                black_box((&read, &out));
            });
        });
        group.bench_function("read", |bencher| {
            bencher.iter(|| {
                black_box(read_request(black_box(head.as_bytes()), &LIMITS, forwarding.via, |r| r.head_len))
            });
        });
        group.bench_function("httparse_alone", |bencher| {
            bencher.iter(|| {
                let mut fields = [const { MaybeUninit::uninit() }; Limits::FIELDS_CEILING as usize];
                let mut parsed = httparse::Request::new(&mut []);
                black_box(parsed.parse_with_uninit_headers(black_box(head.as_bytes()), &mut fields))
            });
        });
        group.finish();
    }
}

fn responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("response_8_fields");
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    let clock = Clock::new();
    let mut out = Vec::with_capacity(16 * 1024);
    group.bench_function("read_and_write", |bencher| {
        bencher.iter(|| {
            out.clear();
            let wire = black_box(RESPONSE.as_bytes());
            let read = read_response(wire, &LIMITS, Method::Idempotent, |response| {
                let options =
                    ResponseOptions { version: Version::Http11, framing: response.framing, close: false };
                write_response_head(response, options, &clock, &mut out);
                response.head_len
            });
            black_box((&read, &out));
        });
    });
    group.bench_function("httparse_alone", |bencher| {
        bencher.iter(|| {
            let mut fields = [const { MaybeUninit::uninit() }; Limits::FIELDS_CEILING as usize];
            let mut parsed = httparse::Response::new(&mut []);
            black_box(httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut parsed,
                black_box(RESPONSE.as_bytes()),
                &mut fields,
            ))
            .is_ok()
        });
    });
    group.finish();
}

criterion_group!(benches, requests, responses);
criterion_main!(benches);
