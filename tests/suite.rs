//! Black-box tests, in the order in which a request meets what they test. One binary, so that it links once.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "seeds are printed, so that a failure can be repeated")]
#![allow(clippy::disallowed_types, reason = "tests are ordinary threads, which may wait for each other")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests are ordinary threads with the system's clock as a guard"
)]

mod support;

#[path = "suite/config.rs"]
mod config; // TOML to checked values: every error at once, with its place and remedy
#[path = "suite/config_choice.rs"]
mod config_choice; // the same for the choice among endpoints
#[path = "suite/config_doubts.rs"]
mod config_doubts; // keys that mean nothing, everything, or contradict each other
#[path = "suite/config_mesh.rs"]
mod config_mesh; // the same for TLS, identity, authorization, HTTP/2

#[path = "suite/actions.rs"]
mod actions; // what a route changes and answers itself
#[path = "suite/body_faults.rs"]
mod body_faults; // bodies cut and slowed on purpose, silences, callers that leave meanwhile
#[path = "suite/canary.rs"]
mod canary; // a service that takes over from another, or not
#[path = "suite/faults.rs"]
mod faults; // what a route does to requests on purpose
#[path = "suite/mirror.rs"]
mod mirror; // copies of requests for other services
#[path = "suite/split.rs"]
mod split; // several services for one route: shares, who stays where

// HTTP/1.1 as an intermediary must do it. Tests are named by the rows h01 to h95 of a list of what sound proxies do and
// what attackers try. Rows that come with later features: h94 (TLS closed without close_notify), h96 (the PROXY protocol).
#[path = "suite/http1_around.rs"]
mod http1_around; // h87 to h95: loops, slow peers, what is added, what is never touched
#[path = "suite/http1_chunked.rs"]
mod http1_chunked; // h15 to h21
#[path = "suite/http1_connection.rs"]
mod http1_connection; // h63 to h67: pipelining, close, half-close, early answers
#[path = "suite/http1_expect.rs"]
mod http1_expect; // h57 to h62: 100-continue and other interim responses
#[path = "suite/http1_fields.rs"]
mod http1_fields; // h42 to h56
#[path = "suite/http1_framing.rs"]
mod http1_framing; // h01 to h14
#[path = "suite/http1_origin.rs"]
mod http1_origin; // h68 to h86: responses from a bad service
#[path = "suite/http1_request_line.rs"]
mod http1_request_line; // h22 to h41

#[path = "suite/h2_bodies.rs"]
mod h2_bodies; // through all four translations: whole, cut, early
#[path = "suite/h2_drain.rs"]
mod h2_drain; // shared connections to services, two proxies in a row
#[path = "suite/h2_frames.rs"]
mod h2_frames; // g01 to g11, g20, g25: what a caller may send
#[path = "suite/h2_messages.rs"]
mod h2_messages; // s3, g12 to g17, g24: malformed messages, and what translation makes of good ones
#[path = "suite/h2_services.rs"]
mod h2_services; // g18 to g23 and below a15: services that do it badly
#[path = "suite/h2_unsent.rs"]
mod h2_unsent; // g22: nothing has left for the service, or not all that may be
#[path = "suite/http2.rs"]
mod http2; // from callers and to services, and every translation
#[path = "suite/http2_floods.rs"]
mod http2_floods; // a01 to a15: what attackers send

#[path = "suite/tracing.rs"]
mod tracing; // contexts read, written and passed on; spans of exchanges and attempts
#[path = "suite/tracing_export.rs"]
mod tracing_export; // a whole proxy and a collector: what arrives, what is dropped, what comes back

#[path = "suite/explain.rs"]
mod explain; // what is told of a request that need not exist
#[path = "suite/explain_live.rs"]
mod explain_live; // the same against what becomes of it
#[path = "suite/routing.rs"]
mod routing; // which route a request takes, and mistakes in conditions

// What a connection can become.
#[path = "suite/tunnels.rs"]
mod tunnels; // w01 to w13 and g21, where one side or both speak HTTP/2
#[path = "suite/websocket.rs"]
mod websocket; // w01 to w13: handshakes, tunnels, CONNECT

#[path = "suite/grpc.rs"]
mod grpc; // r01 to r14, with tonic at both ends
#[path = "suite/grpc_health.rs"]
mod grpc_health; // the health service on the admin address, and what telemetry tells of calls
#[path = "suite/grpc_web.rs"]
mod grpc_web; // gRPC from browsers

#[path = "suite/access_log.rs"]
mod access_log; // what a line says, also of what was refused
#[path = "suite/authorize.rs"]
mod authorize; // who may do what: rules, spellings, what the caller, the log and the metrics are told
#[path = "suite/balance.rs"]
mod balance; // which endpoint: by key, subset, priority, zone; a cookie that is set
#[path = "suite/breaker.rs"]
mod breaker; // endpoints that are ill, and come back
#[path = "suite/caps.rs"]
mod caps; // how much a service is given at a time, who waits, who is turned away
#[path = "suite/docs.rs"]
mod docs; // the documents say what the code does
#[path = "suite/drain.rs"]
mod drain; // the last response says so, the thread ends
#[path = "suite/global_rate_limit.rs"]
mod global_rate_limit; // the same where a service counts for several proxies
#[path = "suite/hedging.rs"]
mod hedging; // two attempts at a time, of which one is heard
#[path = "suite/memory.rs"]
mod memory; // what is given up when memory is short
#[path = "suite/pool.rs"]
mod pool; // reuse, dead connections, replays, other endpoints
#[path = "suite/probes.rs"]
mod probes; // of all kinds; endpoints that drain
#[path = "suite/process.rs"]
mod process; // the real binary, from outside: ports, signals, files, exit codes, and the demo
#[path = "suite/rate_limit.rs"]
mod rate_limit; // how many requests there may be in a time
#[path = "suite/reload.rs"]
mod reload; // what a new snapshot changes and what it keeps
#[path = "suite/retries.rs"]
mod retries; // further attempts: worth it, safe, within the budget
#[path = "suite/runtime.rs"]
mod runtime; // what shards run on, where the operator chooses
#[path = "suite/timeouts.rs"]
mod timeouts; // exchanges on which nothing moves
#[path = "suite/wishes.rs"]
mod wishes; // what callers say of their own retries and timeouts

#[path = "suite/lanes.rs"]
mod lanes; // HTTP/1.1 over streams between two proxies
#[path = "suite/mesh_pair.rs"]
mod mesh_pair; // two proxies in a row: what they speak does not show

#[path = "suite/together.rs"]
mod together; // ceilings of the whole proxy, whatever the shard

// TLS: rows t01 to t34 of the same list. Which chains are good is shown by the unit tests of the verifier.
#[path = "suite/tls_inbound.rs"]
mod tls_inbound; // callers
#[path = "suite/tls_outbound.rs"]
mod tls_outbound; // services
#[path = "suite/tls_peers.rs"]
mod tls_peers; // curl and openssl
#[path = "suite/tls_revoked.rs"]
mod tls_revoked; // open connections that are not allowed any more
