//! THE PATH: one connection, one exchange, every branch.
