//! The origin's answers, built once per request target and kept.
//!
//! Called by the origin's event loop. It refuses targets that say something impossible with 400.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::SystemTime;

use super::Request;
use crate::clock::nanos;
use crate::date;
use crate::target::Answer;
use crate::wire::{ECHO_BLANK, Message};

/// Distinct targets whose answers one thread keeps; when a new one would exceed it, all are forgotten.
const ANSWERS_MAX: usize = 1024;

/// Replies built so far, by request target.
#[derive(Default)]
pub(super) struct Answers {
    known: HashMap<Vec<u8>, Replies>,
    nothing: Option<Rc<RefCell<Message>>>,
    parts: HashMap<Vec<u8>, Parts>,
    date: Option<String>,
}

/// What an answer over HTTP/2 is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) status: u16,
    /// Bytes of body.
    pub(super) size: u64,
    pub(super) with_length: bool,
    /// Nanoseconds.
    pub(super) delay: u64,
}

const REFUSED: Answer = Answer { status: 400, size: 0, delay: std::time::Duration::ZERO, chunked: false };

#[derive(Clone, Default)]
struct Replies {
    delay: u64,
    /// Index: 1 = to HEAD, 2 = closing.
    messages: [Option<Rc<RefCell<Message>>>; 4],
}

impl Answers {
    pub(super) fn find(&mut self, target: &[u8], is_head: bool, close: bool) -> (Rc<RefCell<Message>>, u64) {
        let variant = usize::from(is_head) + 2 * usize::from(close);
        if let Some(replies) = self.known.get(target)
            && let Some(message) = &replies.messages[variant]
        {
            return (Rc::clone(message), replies.delay);
        }
        if self.known.len() >= ANSWERS_MAX {
            self.known.clear();
        }
        let (answer, refused) = match Answer::parse(&String::from_utf8_lossy(target)) {
            Ok(answer) => (answer, false),
            Err(_) => (REFUSED, true),
        };
        let message = Rc::new(RefCell::new(reply(&answer, is_head, close, refused)));
        let replies = self.known.entry(target.to_vec()).or_default();
        replies.delay = nanos(answer.delay);
        replies.messages[variant] = Some(Rc::clone(&message));
        (message, replies.delay)
    }

    /// For HTTP/2, which has no use for messages in one piece.
    pub(super) fn find_parts(&mut self, target: &[u8]) -> Parts {
        if let Some(parts) = self.parts.get(target) {
            return *parts;
        }
        if self.parts.len() >= ANSWERS_MAX {
            self.parts.clear();
        }
        let answer = Answer::parse(&String::from_utf8_lossy(target)).unwrap_or(REFUSED);
        let bodiless = matches!(answer.status, 204 | 304);
        let parts = Parts {
            status: answer.status,
            size: if bodiless { 0 } else { answer.size },
            with_length: !bodiless && !answer.chunked,
            delay: nanos(answer.delay),
        };
        self.parts.insert(target.to_vec(), parts);
        parts
    }

    /// What a Date field says, made once: only its length matters.
    pub(super) fn date(&mut self) -> &str {
        self.date.get_or_insert_with(|| date::http(SystemTime::now()))
    }

    /// To what is no HTTP/1 request.
    pub(super) fn refusal(&self) -> Request {
        let reply = Rc::new(RefCell::new(reply(&REFUSED, false, true, true)));
        Request { reply, delay: 0, echo: *ECHO_BLANK, close: true }
    }

    /// Holds the place before the first request.
    pub(super) fn nothing(&mut self) -> Request {
        let reply = self.nothing.get_or_insert_with(|| Rc::new(RefCell::new(Message::new(b"", 0))));
        Request { reply: Rc::clone(reply), delay: 0, echo: *ECHO_BLANK, close: false }
    }
}

fn reply(answer: &Answer, is_head: bool, close: bool, refused: bool) -> Message {
    let reason = match answer.status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "As Asked",
    };
    let bodiless = matches!(answer.status, 204 | 304);
    let framing = match answer {
        _ if bodiless => String::new(),
        Answer { chunked: true, .. } => "transfer-encoding: chunked\r\n".to_owned(),
        Answer { size, .. } => format!("content-length: {size}\r\n"),
    };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ndate: {}\r\nserver: loadtest\r\ncontent-type: text/plain\r\n{framing}x-echo: {}\r\n{}{}\r\n",
        answer.status,
        date::http(SystemTime::now()),
        String::from_utf8_lossy(ECHO_BLANK),
        if close { "connection: close\r\n" } else { "" },
        if refused { "x-refused: see loadtest server --help for what a URL may say\r\n" } else { "" },
    );
    match answer {
        _ if is_head || bodiless => Message::new(head.as_bytes(), 0),
        Answer { chunked: true, size, .. } => {
            Message::chunked(head.as_bytes(), usize::try_from(*size).unwrap_or(0))
        }
        Answer { size, .. } => Message::new(head.as_bytes(), *size),
    }
}
