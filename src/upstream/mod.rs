//! Where it goes: the services that control declared, and what one shard knows of each (endpoints, averages, pools).

pub mod admission;
pub mod affinity;
pub mod balance;
pub mod berths;
pub mod breaker;
pub mod budget;
pub mod caps;
mod census;
pub mod concurrency;
pub mod consistent;
pub mod gate;
pub mod health;
pub mod limiter;
pub mod line;
pub mod plan;
pub mod pool;
pub mod retry;
mod rise;
pub mod service;
pub mod shared;
pub mod spec;
pub mod tail;
mod turns;
pub mod waiter;
