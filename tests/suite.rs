//! Black-box tests, in the order in which a request meets what they test. One binary, so that it links once.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "seeds are printed, so that a failure can be repeated")]

#[path = "suite/config.rs"]
mod config; // TOML to checked values: every error at once, with its place and remedy
