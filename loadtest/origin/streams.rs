//! The exchanges of one HTTP/2 connection of the origin: requests in, answers out as windows allow.
//!
//! Called by the origin's event loop, which owns the socket and the time. It refuses to wait: what must wait is named in
//! `delayed` and `paced`, and goes on by [`Streams::go_on`].

use std::collections::VecDeque;

use super::answers::{Answers, Parts};
use crate::http2::hpack::{Again, Malformed};
use crate::http2::{Event, Framer, NO_ERROR, PROTOCOL_ERROR, STREAM_WINDOW};
use crate::wire::{Echo, pattern};

/// What is written at most before the socket must have taken it.
const PENDING_MAX: usize = 256 * 1024;

struct Stream {
    id: u32,
    parts: Parts,
    is_head_method: bool,
    echo: Option<Echo>,
    /// The head of the answer has left, and so many bytes of its body.
    begun: bool,
    sent: u64,
    window: i64,
    /// Of the request body, since the last update of this stream's window.
    taken: u32,
}

pub(super) struct Streams {
    pub(super) framer: Framer,
    open: Vec<Stream>,
    /// Those with something to write, in turn.
    writable: VecDeque<u32>,
    /// Those that wait for a window.
    blocked: Vec<u32>,
    /// Answers that are to begin after so many nanoseconds.
    pub(super) delayed: Vec<(u32, u64)>,
    /// Those that have written their piece of a slow answer.
    pub(super) paced: Vec<u32>,
    pub(super) served: u32,
    last: u32,
    /// The client was told to ask elsewhere.
    pub(super) leaving: bool,
}

impl Streams {
    pub(super) fn new(streams_max: u32) -> Self {
        Self {
            framer: Framer::server(streams_max),
            open: Vec::new(),
            writable: VecDeque::new(),
            blocked: Vec::new(),
            delayed: Vec::new(),
            paced: Vec::new(),
            served: 0,
            last: 0,
            leaving: false,
        }
    }

    /// Uses bytes of the client. On an error the reason lies among the frames to be written.
    pub(super) fn take(&mut self, mut bytes: &[u8], answers: &mut Answers) -> Result<(), Malformed> {
        loop {
            let event = match self.framer.next(&mut bytes) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(malformed) => {
                    self.framer.go_away(self.last, PROTOCOL_ERROR);
                    return Err(malformed);
                }
            };
            match event {
                Event::Head { stream, end } => self.head(stream, end, answers),
                Event::Body { stream, flow, end, .. } => {
                    let Some(open) = self.open.iter_mut().find(|s| s.id == stream) else { continue };
                    open.taken += flow;
                    if end {
                        self.requested(stream, answers);
                    } else if open.taken >= STREAM_WINDOW / 2 {
                        let taken = std::mem::take(&mut open.taken);
                        self.framer.window_update(stream, taken);
                    }
                }
                Event::Reset { stream, .. } => self.open.retain(|s| s.id != stream),
                Event::Window { stream, more } => {
                    if let Some(open) = self.open.iter_mut().find(|s| s.id == stream) {
                        open.window += more;
                    }
                    self.writable.extend(self.blocked.drain(..));
                }
                Event::InitialWindow(change) => {
                    self.open.iter_mut().for_each(|s| s.window += change);
                    self.writable.extend(self.blocked.drain(..));
                }
                Event::GoAway { .. } => {} // the client closes when it has its answers
            }
        }
    }

    fn head(&mut self, stream: u32, end: bool, answers: &mut Answers) {
        if stream <= self.last || self.leaving {
            // Trailers, which end a request; or a request after GOAWAY, which the client will send elsewhere.
            if end && stream <= self.last {
                self.requested(stream, answers);
            }
            return;
        }
        self.last = stream;
        let head = &self.framer.head;
        self.open.push(Stream {
            id: stream,
            parts: answers.find_parts(&head.path),
            is_head_method: head.is_head_method,
            echo: head.echo,
            begun: false,
            sent: 0,
            window: self.framer.stream_window,
            taken: 0,
        });
        if end {
            self.requested(stream, answers);
        }
    }

    /// The whole request is there.
    fn requested(&mut self, stream: u32, answers: &mut Answers) {
        let Some(open) = self.open.iter_mut().find(|s| s.id == stream) else { return };
        match std::mem::take(&mut open.parts.delay) {
            0 => self.go_on(stream, answers),
            delay => self.delayed.push((stream, delay)),
        }
    }

    /// Begins an answer that was delayed, or goes on with one that is paced.
    pub(super) fn go_on(&mut self, stream: u32, answers: &mut Answers) {
        let Some(at) = self.open.iter().position(|s| s.id == stream) else { return };
        let open = &mut self.open[at];
        if open.begun {
            return self.writable.push_back(stream);
        }
        open.begun = true;
        let parts = open.parts;
        let bodiless = open.is_head_method || parts.size == 0;
        let echo = open.echo;
        self.framer.send_head(stream, bodiless, |encoder, out| {
            let mut digits = [0; 20];
            encoder.field(out, b":status", decimal(u64::from(parts.status), &mut digits), Again::Likely);
            encoder.field(out, b"date", answers.date().as_bytes(), Again::Likely);
            encoder.field(out, b"server", b"loadtest", Again::Likely);
            encoder.field(out, b"content-type", b"text/plain", Again::Likely);
            if parts.with_length {
                encoder.field(out, b"content-length", decimal(parts.size, &mut digits), Again::Likely);
            }
            if let Some(echo) = echo {
                encoder.field(out, b"x-echo", &echo, Again::Never);
            }
        });
        if bodiless {
            self.open.swap_remove(at);
            self.served += 1;
        } else {
            self.writable.push_back(stream);
        }
    }

    /// Writes frames of bodies; at most `piece` bytes of each, for a slow origin. True if it wrote anything.
    pub(super) fn pump(&mut self, piece: Option<u64>) -> bool {
        let mut wrote = false;
        while self.framer.pending().len() < PENDING_MAX
            && let Some(stream) = self.writable.pop_front()
        {
            let Some(at) = self.open.iter().position(|s| s.id == stream) else { continue };
            let open = &mut self.open[at];
            let room = self.framer.room(open.window);
            if room == 0 {
                self.blocked.push(stream);
                continue;
            }
            let left = (open.parts.size - open.sent).min(piece.unwrap_or(u64::MAX));
            let bytes = pattern(open.sent, room.min(usize::try_from(left).unwrap_or(room)));
            open.sent += bytes.len() as u64;
            open.window -= bytes.len() as i64;
            wrote = true;
            let end = open.sent == open.parts.size;
            self.framer.send_body(stream, bytes, end);
            if end {
                self.open.swap_remove(at);
                self.served += 1;
            } else if piece.is_some() {
                self.paced.push(stream);
            } else {
                self.writable.push_back(stream);
            }
        }
        wrote
    }

    /// Tells the client to ask elsewhere; what it has asked here is answered.
    pub(super) fn leave(&mut self) {
        if !std::mem::replace(&mut self.leaving, true) {
            self.framer.go_away(self.last, NO_ERROR);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.framer.pending().is_empty()
    }
}

fn decimal(number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(streams: &mut Streams, say: impl FnOnce(&mut Framer)) -> Result<(), Malformed> {
        let mut client = Framer::client();
        say(&mut client);
        streams.take(client.pending(), &mut Answers::default())
    }

    fn get(client: &mut Framer, stream: u32, path: &str) {
        client.send_head(stream, true, |encoder, out| {
            encoder.field(out, b":method", b"GET", Again::Likely);
            encoder.field(out, b":path", path.as_bytes(), Again::Likely);
        });
    }

    #[test]
    fn answers_take_turns_and_wait_for_windows() {
        let mut streams = Streams::new(10);
        asked(&mut streams, |client| {
            get(client, 1, "/size/2MiB");
            get(client, 3, "/size/40000");
            get(client, 5, "/delay/7ms");
        })
        .expect("legal");
        assert_eq!(streams.delayed, [(5, 7_000_000)]);
        streams.framer.wrote(streams.framer.pending().len());
        let mut total = 0;
        while streams.pump(None) {
            total += streams.framer.pending().len();
            streams.framer.wrote(streams.framer.pending().len());
        }
        // The short one is done; the long one has used up its stream's window.
        assert_eq!((streams.served, streams.blocked.as_slice()), (1, [1].as_slice()));
        let bodies = STREAM_WINDOW as usize + 40_000;
        assert!((bodies..bodies + 2_000).contains(&total), "{total}");
    }

    #[test]
    fn a_slow_answer_goes_piece_by_piece() {
        let mut streams = Streams::new(10);
        asked(&mut streams, |client| get(client, 1, "/size/100")).expect("legal");
        assert!(streams.pump(Some(60)));
        assert_eq!((std::mem::take(&mut streams.paced), streams.served), (vec![1], 0));
        streams.go_on(1, &mut Answers::default());
        assert!(streams.pump(Some(60)));
        assert_eq!((streams.paced.len(), streams.served), (0, 1));
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 200, 1024, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn what_is_no_http2_is_told_so() {
        let mut streams = Streams::new(10);
        assert!(asked(&mut streams, |client| client.reset(0, 0)).is_err());
    }
}
