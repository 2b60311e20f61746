//! Spans, made by the shard that served the exchange: into a chunk of memory that control sends to the collector.
//!
//! Never waits: when control is behind and no chunk is free, the span is dropped and counted. That is so as well while the collector is
//! away: control stops taking chunks when it holds as many as it may, so that the newest are dropped, and all are counted in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::shard::clock::Clock;
use crate::shard::link::Link;
use crate::trace::span::{self, Frame, Writer};

/// Spans behind each other, each an entry of `ScopeSpans.spans`.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The octets.
    pub octets: Vec<u8>,
    /// How many spans that are.
    pub spans: u32,
}

/// A shard's spans that control has not taken yet.
#[derive(Debug, Default)]
pub struct Spans {
    chunk: Chunk,
    /// Chunks made so far: at most [`Link::SPAN_CHUNKS_MAX`] and the one in hand.
    made: usize,
    dropped: u64,
    /// Room to write one in.
    scratch: Vec<u8>,
    /// The wall clock minus the shard's clock, ns, and the second of the shard's clock when that was found.
    wall_offset_ns: u64,
    wall_seen: Option<u64>,
}

impl Spans {
    /// A chunk is handed over when it is this full, or at the tick.
    const CHUNK_OCTETS: usize = 64 * 1024;
    /// Room for the span that makes it full: what comes from callers is cut, and there are at most a dozen of such texts.
    const SPARE_OCTETS: usize = 16 * 1024;

    /// Spans dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes a span whose times are those of the shard's clock.
    pub fn write(
        &mut self,
        frame: Frame<'_>,
        clock: &Clock,
        link: &Link,
        attributes: impl FnOnce(&mut Writer<'_>),
    ) {
        if !self.has_room(link) {
            self.dropped += 1;
            return;
        }
        let second = clock.now() / 1_000_000_000;
        if self.wall_seen != Some(second) {
            // The wall clock may be set at any time; once a second is often enough to look.
            self.wall_seen = Some(second);
            self.wall_offset_ns = wall_ns().saturating_sub(clock.refresh());
        }
        let wall = |at: u64| self.wall_offset_ns.saturating_add(at);
        let frame = Frame { began_ns: wall(frame.began_ns), ended_ns: wall(frame.ended_ns), ..frame };
        span::write(&frame, &mut self.scratch, &mut self.chunk.octets, attributes);
        self.chunk.spans += 1;
        if self.chunk.octets.len() >= Self::CHUNK_OCTETS {
            self.flush(link);
        }
    }

    /// Hands over what there is: at the tick, and when a chunk is full.
    pub fn flush(&mut self, link: &Link) {
        if self.chunk.spans > 0
            && let Err(chunk) = link.spans.push(std::mem::take(&mut self.chunk))
        {
            // Control is behind: the spans stay until it is not, and new ones are dropped.
            self.chunk = chunk;
        }
    }

    fn has_room(&mut self, link: &Link) -> bool {
        if self.chunk.octets.capacity() == 0 {
            if let Some(chunk) = link.spent_spans.pop() {
                self.chunk = chunk;
            } else if self.made <= Link::SPAN_CHUNKS_MAX {
                self.made += 1;
                self.chunk.octets = Vec::with_capacity(Self::CHUNK_OCTETS + Self::SPARE_OCTETS);
            } else {
                return false;
            }
        }
        if self.chunk.octets.len() >= Self::CHUNK_OCTETS {
            self.flush(link);
            return self.chunk.spans == 0 && self.has_room(link);
        }
        true
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::ScopeSpans;
    use prost::Message;

    use super::*;
    use crate::trace::propagation::{SpanId, TraceId, TraceParent};
    use crate::trace::span::Kind;

    fn write(spans: &mut Spans, clock: &Clock, link: &Link) {
        let mut random = || 7;
        let (trace, span) = (TraceId::random(&mut random), SpanId::random(&mut random));
        let context = TraceParent { trace, span, sampled: true, random: true, debug: false };
        let (began_ns, ended_ns) = (clock.now(), clock.now() + 5);
        let frame =
            Frame { context, parent: None, state: "", kind: Kind::Server, began_ns, ended_ns, failed: false };
        let path = "x".repeat(1000);
        spans.write(frame, clock, link, |writer| {
            writer.name(&["GET"]);
            writer.text("url.path", &path);
        });
    }

    #[test]
    fn nobody_waits_for_control_and_what_finds_no_room_is_counted() {
        let (link, _bell) = Link::new(0).unwrap();
        let (mut spans, clock) = (Spans::default(), Clock::new());
        let mut written = 0;
        while spans.dropped() == 0 {
            written += 1;
            write(&mut spans, &clock, &link);
        }
        assert_eq!(link.spans.len(), Link::SPAN_CHUNKS_MAX);
        let bytes: usize = Spans::CHUNK_OCTETS * (Link::SPAN_CHUNKS_MAX + 1);
        assert!(written * 1000 < bytes + 2000 && written * 1100 > bytes, "{written} spans");

        // Control takes one, and gives it back: there is room for a chunk again, and for no more.
        let mut taken = link.spans.pop().unwrap();
        let read = ScopeSpans::decode(&*taken.octets).unwrap();
        assert_eq!(read.spans.len(), taken.spans as usize);
        let span = &read.spans[0];
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 5);
        let now = wall_ns();
        assert!(now.abs_diff(span.start_time_unix_nano) < 60_000_000_000, "by the clock on the wall");
        taken.octets.clear();
        taken.spans = 0;
        link.spent_spans.push(taken).unwrap();
        write(&mut spans, &clock, &link);
        assert_eq!(spans.dropped(), 1, "there was room");
        assert_eq!(link.spans.len(), Link::SPAN_CHUNKS_MAX);
    }
}
