//! What a new path is put together from: text as it was written, and parts of the path that came. Pure; of `path` and `filled`.

use super::changes::{TARGET_BYTES_MAX, TooLong};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<V> {
    Plain(Box<str>),
    /// What a group of an expression, or a variable of a template, stands for.
    Of(V),
}

/// Writes all, one behind the other.
///
/// # Errors
/// When it would be longer than any target may be.
pub(super) fn fill<'p>(
    pieces: &[Piece<usize>],
    captured: impl Fn(usize) -> &'p [u8],
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    for piece in pieces {
        match piece {
            Piece::Plain(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Of(number) => out.extend_from_slice(captured(*number)),
        }
        if out.len() > TARGET_BYTES_MAX {
            return Err(TooLong);
        }
    }
    Ok(())
}
