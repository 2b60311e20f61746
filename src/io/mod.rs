//! Bytes: the only code that knows the runtime's I/O traits, times out or cancels an operation.
