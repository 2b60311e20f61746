//! ringmesh: a service-mesh data plane. The modules stand in the order in which a request meets them; `ARCHITECTURE.md`
//! is the five-minute map.

pub mod authorize; //  who may do what: rules, compiled, and the decision
pub mod config; //     TOML to checked values: every error at once, with file, line and remedy
pub mod control; //    the one ordinary thread: sources, compile, publish, admin, export; may block
pub mod demo; //       three workloads, their sidecars and a client, to look at
pub mod downstream; // who is calling
pub mod failure; //    how an exchange ended badly: stage × side × cause
pub mod http; //       one message model and its wire format; knows nothing of routes or services
pub mod identity; //   who is who: SPIFFE ids, trust, what this proxy presents
pub mod io; //         bytes: the only code that knows the runtime's I/O traits, times out or cancels
pub mod proxy; //      THE PATH: one connection, one exchange, every branch
pub mod quota; //      how many requests there may be in a time, of one kind
pub mod route; //      which service was meant
pub mod shard; //      one pinned thread and everything it owns
pub mod snapshot; //   the immutable state that control gives to shards
pub mod telemetry; //  what is measured: written by shards, without lock or allocation
pub mod trace; //      what is said of a trace, and spans
pub mod upstream; //   where it goes: services, endpoints, balance, pools
