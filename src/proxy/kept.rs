//! The body of a request that is passed on as it comes, kept until it is known that no other attempt needs it: up to
//! `retry.body_bytes_max`, beyond which there is no other attempt.
//!
//! What came by HTTP/1.1 is kept as it came, so that another attempt reads it like the first ([`Kept`]); what came by HTTP/2 is
//! kept piece by piece, which copies nothing ([`Upload`]).

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use smallvec::SmallVec;

use super::Path;
use super::account::Account;
use super::again::Missed;
use crate::failure::{Cause, Failure, Stage};
use crate::http::Framing;
use crate::shard::Shard;
use crate::shard::buffers::{Buffer, Buffers};

/// What came behind a head by HTTP/1.1.
pub(super) struct Kept<'x> {
    shard: &'x Shard,
    account: &'x Account,
    octets: Buffer,
    /// 0 when nothing is kept (any more).
    max: usize,
}

impl<'x> Kept<'x> {
    /// Of a request whose body ends so, if it is `wanted`.
    pub(super) fn new(path: &Path<'x>, framing: Framing, wanted: bool) -> Self {
        let max = path.retry.body_bytes_max as usize;
        let fits = !matches!(framing, Framing::Length(n) if n > max as u64);
        let wanted = wanted && fits && !path.retry.is_off();
        path.account.mirror_again();
        Self {
            shard: path.shard,
            account: path.account,
            octets: Buffer::default(),
            max: if wanted { max } else { 0 },
        }
    }

    /// These were read.
    pub(super) fn read(&mut self, octets: &[u8]) {
        if octets.is_empty() {
            // A buffer is not made for nothing.
            return;
        }
        self.account.mirror_read(octets);
        let length = self.octets.len() + octets.len();
        if length > self.max {
            self.give_up();
            return;
        }
        if length > self.octets.capacity() {
            let larger = match length {
                ..=Buffers::SMALL => self.shard.buffers.take_small(),
                // Beyond that it grows by itself.
                _ if self.octets.capacity() < Buffers::LARGE => {
                    (!self.shard.is_tight()).then(|| self.shard.buffers.take_large()).flatten()
                }
                _ => Some(std::mem::take(&mut self.octets)),
            };
            let Some(mut larger) = larger else {
                self.give_up();
                return;
            };
            larger.extend_from_slice(&self.octets);
            self.shard.buffers.give(std::mem::replace(&mut self.octets, larger));
        }
        self.octets.extend_from_slice(octets);
    }

    /// Some of what was read is passed on.
    pub(super) fn passed_on(&self) {
        if self.max == 0 {
            self.account.body_is_gone.set(true);
        }
    }

    /// Where there is another attempt: puts all that was read behind the head again. There is none if something is missing, which
    /// came just when the attempt ended.
    pub(super) fn put_back(&mut self, missed: Missed, input: &mut Vec<u8>, head_len: usize) -> Missed {
        if missed != Missed::Again {
            return missed;
        }
        if self.account.body_is_gone.get() {
            return Missed::Failed(Failure::upstream(Stage::Response, Cause::Closed));
        }
        if self.max > 0 {
            input.truncate(head_len);
            input.append(&mut self.octets);
        }
        missed
    }

    fn give_up(&mut self) {
        self.max = 0;
        if !self.octets.is_empty() {
            self.account.body_is_gone.set(true);
        }
        self.shard.buffers.give(std::mem::take(&mut self.octets));
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.shard.buffers.give(std::mem::take(&mut self.octets));
    }
}

/// A body that comes by HTTP/2, in pieces.
pub(super) trait Pieces {
    /// The next piece.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>>;
    /// What comes behind the last one.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>>;
    /// Whether nothing comes any more, trailers included.
    fn is_over(&self) -> bool;
    /// So many octets of the last piece were passed on.
    fn release(&mut self, length: usize);
}

impl Pieces for RecvStream {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        self.poll_data(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.poll_trailers(cx)
    }

    fn is_over(&self) -> bool {
        self.is_end_stream()
    }

    fn release(&mut self, length: usize) {
        // Fails for a stream that has ended meanwhile only, and then there is nothing to release.
        let _ = self.flow_control().release_capacity(length);
    }
}

/// The body of a request that came by HTTP/2.
pub(super) struct Upload<'x> {
    from: &'x mut RecvStream,
    account: &'x Account,
    max: usize,
    /// Octets that were taken and not passed on yet.
    unreleased: usize,
    /// Made with the first piece; `None` when nothing is kept (any more).
    kept: Option<Box<Taken>>,
}

/// The body of a request that was kept whole.
pub(super) struct Whole(SmallVec<[Bytes; 4]>);

impl Whole {
    pub(super) fn octets(&self) -> Bytes {
        match self.0.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            pieces => pieces.concat().into(),
        }
    }
}

/// What was taken of a body.
#[derive(Default)]
struct Taken {
    pieces: SmallVec<[Bytes; 4]>,
    octets: usize,
    /// Trailers, once they are known.
    end: Option<Option<HeaderMap>>,
    /// How many pieces the present attempt has had again; all, when it takes new ones.
    again: usize,
    /// Whether it has had the trailers, too.
    ended_again: bool,
}

impl<'x> Upload<'x> {
    pub(super) fn new(from: &'x mut RecvStream, path: &Path<'x>) -> Self {
        let max = if path.retry.is_off() { 0 } else { path.retry.body_bytes_max as usize };
        Self { from, account: path.account, max, unreleased: 0, kept: None }
    }

    /// Another attempt begins: from the front.
    pub(super) fn rewind(&mut self) {
        if let Some(kept) = &mut self.kept {
            (kept.again, kept.ended_again) = (0, false);
        }
    }

    /// All of it, where all has come, was kept, and nothing came behind it.
    pub(super) fn whole(&self) -> Option<Whole> {
        if self.account.body_is_gone.get() {
            return None;
        }
        match self.kept.as_deref() {
            None if self.from.is_end_stream() => Some(Whole(SmallVec::new())),
            Some(Taken { end: Some(Some(_)), .. }) | None => None,
            Some(kept) => {
                let has_ended = kept.end.is_some() || self.from.is_end_stream();
                has_ended.then(|| Whole(kept.pieces.clone()))
            }
        }
    }

    /// Whether a piece lies ready.
    pub(super) fn is_there(&mut self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.again < kept.pieces.len())
            || self.from.flow_control().used_capacity() > 0
    }

    fn keep(&mut self, piece: &Bytes) {
        // Each piece costs its place, too.
        const PIECES_MAX: usize = 1024;
        let gone = self.account.body_is_gone.get();
        let (octets, pieces) = self.kept.as_ref().map_or((0, 0), |kept| (kept.octets, kept.pieces.len()));
        if gone || octets + piece.len() > self.max || pieces == PIECES_MAX {
            self.account.body_is_gone.set(true);
            self.kept = None;
            return;
        }
        let kept = self.kept.get_or_insert_default();
        kept.octets += piece.len();
        kept.pieces.push(piece.clone());
        kept.again = kept.pieces.len();
    }
}

impl Pieces for Upload<'_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(kept) = &mut self.kept {
            if let Some(piece) = kept.pieces.get(kept.again) {
                kept.again += 1;
                return Poll::Ready(Some(Ok(piece.clone())));
            }
            if kept.end.is_some() {
                return Poll::Ready(None);
            }
        }
        let next = self.from.poll_data(cx);
        if let Poll::Ready(Some(Ok(piece))) = &next {
            self.unreleased += piece.len();
            self.account.mirror_read(piece);
            self.keep(piece);
        }
        next
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        if let Some(kept) = &mut self.kept
            && let Some(end) = &kept.end
        {
            kept.ended_again = true;
            return Poll::Ready(Ok(end.clone()));
        }
        let end = self.from.poll_trailers(cx);
        if let (Poll::Ready(Ok(trailers)), false) = (&end, self.account.body_is_gone.get()) {
            let kept = self.kept.get_or_insert_default();
            (kept.end, kept.ended_again) = (Some(trailers.clone()), true);
        }
        end
    }

    fn is_over(&self) -> bool {
        match self.kept.as_deref() {
            Some(kept) if kept.again < kept.pieces.len() => false,
            Some(Taken { end: Some(Some(_)), ended_again, .. }) => *ended_again,
            Some(Taken { end: Some(None), .. }) => true,
            _ => self.from.is_end_stream(),
        }
    }

    fn release(&mut self, length: usize) {
        // A piece that is taken again was released before, unless its first attempt ended while it was passed on. What is kept
        // does not close the window: that stands for what cannot be passed on.
        let length = length.min(self.unreleased);
        self.unreleased -= length;
        self.from.release(length);
    }
}
