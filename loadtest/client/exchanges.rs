//! The exchanges of one HTTP/2 connection of the client: requests out, responses judged apart by stream.
//!
//! Called by `lane`, which owns the socket and the schedule. It refuses to know time.

use super::tally::Failed;
use crate::http2::hpack::{Again, Malformed};
use crate::http2::{CANCEL, Event, Framer, STREAM_WINDOW};
use crate::wire::{Echo, pattern};

/// What is written at most before the socket must have taken it.
const PENDING_MAX: usize = 256 * 1024;
/// The last stream of a connection: beyond it a new connection is needed (RFC 9113 5.1.1).
const STREAM_MAX: u32 = 0x7fff_fffe;

/// What every request says, but for its mark.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Pseudo-fields first, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    /// Bytes of body.
    pub(crate) body: u64,
    /// Send a mark.
    pub(crate) check: bool,
}

/// A whole response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) echoed: bool,
    /// Bytes of body.
    pub(super) body: u64,
}

/// What became of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered(Answer),
    Failed(Failed),
    /// The peer said that it has not looked at it: it may be sent again elsewhere.
    Untouched,
}

struct Stream {
    id: u32,
    /// When it was due.
    intended: u64,
    echo: Echo,
    /// Bytes of request body yet to be sent.
    unsent: u64,
    window: i64,
    answer: Answer,
    /// What the response said of its length.
    length: Option<u64>,
    /// Taken in since the last update of this stream's window.
    taken: u32,
}

pub(super) struct Exchanges {
    pub(super) framer: Framer,
    open: Vec<Stream>,
    next_id: u32,
    /// The peer wants no more requests here.
    pub(super) leaving: bool,
    /// Streams above it were not looked at.
    last: u32,
}

impl Exchanges {
    pub(super) fn new() -> Self {
        Self { framer: Framer::client(), open: Vec::new(), next_id: 1, leaving: false, last: u32::MAX }
    }

    pub(super) fn begin(&mut self, request: &Request, intended: u64, echo: Echo) {
        let id = self.next_id;
        self.next_id += 2;
        self.leaving |= self.next_id > STREAM_MAX;
        self.framer.send_head(id, request.body == 0, |encoder, out| {
            for (name, value) in &request.fields {
                encoder.field(out, name.as_bytes(), value.as_bytes(), Again::Likely);
            }
            if request.check {
                encoder.field(out, b"x-echo", &echo, Again::Never);
            }
        });
        self.open.push(Stream {
            id,
            intended,
            echo,
            unsent: request.body,
            window: self.framer.stream_window,
            answer: Answer { status: 0, echoed: false, body: 0 },
            length: None,
            taken: 0,
        });
        self.pump(request.body);
    }

    /// Writes request bodies as far as windows go. True if it wrote anything.
    pub(super) fn pump(&mut self, total: u64) -> bool {
        let mut wrote = false;
        for stream in self.open.iter_mut().filter(|s| s.unsent > 0) {
            while stream.unsent > 0 && self.framer.pending().len() < PENDING_MAX {
                let room = self.framer.room(stream.window);
                if room == 0 {
                    break;
                }
                let piece =
                    pattern(total - stream.unsent, room.min(usize::try_from(stream.unsent).unwrap_or(room)));
                stream.unsent -= piece.len() as u64;
                stream.window -= piece.len() as i64;
                self.framer.send_body(stream.id, piece, stream.unsent == 0);
                wrote = true;
            }
        }
        wrote
    }

    /// Uses `bytes` up to the end of one exchange: when it was due, and what became of it.
    pub(super) fn advance(&mut self, bytes: &mut &[u8]) -> Result<Option<(u64, Outcome)>, Malformed> {
        if let Some(untouched) = self.untouched() {
            return Ok(Some(untouched));
        }
        while let Some(event) = self.framer.next(bytes)? {
            if let Some(ended) = self.event(event)? {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    fn event(&mut self, event: Event) -> Result<Option<(u64, Outcome)>, Malformed> {
        match event {
            Event::Head { stream, end } => {
                let Some(at) = self.find(stream)? else { return Ok(None) };
                let (open, head) = (&mut self.open[at], &self.framer.head);
                if open.answer.status == 0 {
                    match head.status {
                        100..200 if !end => return Ok(None),
                        200..1000 => {}
                        _ => return Err(Malformed("a response without a final status")),
                    }
                    open.answer.status = head.status;
                    open.answer.echoed = head.echo == Some(open.echo);
                    open.length = head.length;
                } else if !end || head.status != 0 {
                    return Err(Malformed("a second head"));
                }
                Ok(if end { Some(self.ended(at)) } else { None })
            }
            Event::Body { stream, bytes, flow, end } => {
                let Some(at) = self.find(stream)? else { return Ok(None) };
                let open = &mut self.open[at];
                if open.answer.status == 0 {
                    return Err(Malformed("a body before its head"));
                }
                open.answer.body += bytes;
                open.taken += flow;
                if end {
                    return Ok(Some(self.ended(at)));
                }
                if open.taken >= STREAM_WINDOW / 2 {
                    self.framer.window_update(stream, std::mem::take(&mut open.taken));
                }
                Ok(None)
            }
            Event::Reset { stream, .. } => {
                let Some(at) = self.find(stream)? else { return Ok(None) };
                Ok(Some((self.open.swap_remove(at).intended, Outcome::Failed(Failed::Reset))))
            }
            Event::Window { stream, more } => {
                if stream != 0
                    && let Some(at) = self.find(stream)?
                {
                    self.open[at].window += more;
                }
                Ok(None)
            }
            Event::InitialWindow(change) => {
                self.open.iter_mut().for_each(|s| s.window += change);
                Ok(None)
            }
            Event::GoAway { last, .. } => {
                self.leaving = true;
                self.last = self.last.min(last);
                Ok(self.untouched())
            }
        }
    }

    /// `None`: it is over, and the peer could not know that yet.
    fn find(&self, stream: u32) -> Result<Option<usize>, Malformed> {
        if stream.is_multiple_of(2) || stream >= self.next_id {
            return Err(Malformed("a stream that nobody opened"));
        }
        Ok(self.open.iter().position(|s| s.id == stream))
    }

    fn ended(&mut self, at: usize) -> (u64, Outcome) {
        let stream = self.open.swap_remove(at);
        if stream.unsent > 0 {
            self.framer.reset(stream.id, CANCEL); // answered early: the rest is not wanted
        }
        let whole = stream.length.is_none_or(|n| n == stream.answer.body || stream.answer.body == 0);
        let outcome =
            if whole { Outcome::Answered(stream.answer) } else { Outcome::Failed(Failed::Malformed) };
        (stream.intended, outcome)
    }

    fn untouched(&mut self) -> Option<(u64, Outcome)> {
        let at = self.open.iter().position(|s| s.id > self.last)?;
        Some((self.open.swap_remove(at).intended, Outcome::Untouched))
    }

    /// Gives up exchanges that were due before `moment`, one at a time.
    pub(super) fn give_up_before(&mut self, moment: u64) -> bool {
        let Some(at) = self.open.iter().position(|s| s.intended < moment) else { return false };
        let stream = self.open.swap_remove(at);
        self.framer.reset(stream.id, CANCEL);
        true
    }

    /// How many exchanges are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
#[path = "exchanges_test.rs"]
mod tests;
