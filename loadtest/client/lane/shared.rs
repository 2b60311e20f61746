//! What the client's loop does for connections of HTTP/2, on which several exchanges are open at a time.
//!
//! Called by `lane`. Frames of one turn of the loop leave in one write.

use super::Lane;
use crate::client::exchanges::Outcome;
use crate::client::tally::Failed;
use crate::clock::now_ns;
use crate::socket::not_now;

impl Lane<'_> {
    pub(super) fn mark_unflushed(&mut self, index: usize) {
        if !std::mem::replace(&mut self.connections[index].unflushed, true) {
            self.unflushed.push(index);
        }
    }

    pub(super) fn flush_all(&mut self) {
        while let Some(index) = self.unflushed.pop() {
            self.connections[index].unflushed = false;
            self.flush_shared(index);
        }
    }

    /// Writes frames, and more of request bodies, until the socket or the windows are full.
    pub(super) fn flush_shared(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let (Some(stream), Some(exchanges)) = (&mut connection.stream, &mut connection.exchanges) else {
            return;
        };
        let _ = stream.flush(); // an error is met again below, or when reading
        loop {
            let pending = exchanges.framer.pending();
            if pending.is_empty() {
                if exchanges.pump(self.share.request.body) {
                    continue;
                }
                return;
            }
            match stream.write(pending) {
                Ok(n) => {
                    exchanges.framer.wrote(n);
                    self.tally.bytes_out += n as u64;
                }
                Err(error) if not_now(&error) => return,
                Err(_) => {
                    // Reading tells what came before the end, and that it ended.
                    exchanges.framer.wrote(exchanges.framer.pending().len());
                    connection.readable = true;
                    connection.peer_closed = true;
                    return;
                }
            }
        }
    }

    pub(super) fn take_shared(&mut self, index: usize, mut bytes: &[u8]) -> Result<(), Failed> {
        let mut now = 0; // read once for all exchanges that these bytes end
        loop {
            let Some(exchanges) = &mut self.connections[index].exchanges else { return Ok(()) };
            let Some((intended, outcome)) = exchanges.advance(&mut bytes).map_err(|_| Failed::Malformed)?
            else {
                break;
            };
            if now == 0 {
                now = now_ns();
            }
            self.busy -= 1;
            match outcome {
                Outcome::Answered(answer) => drop(self.judge(intended, answer, now)),
                Outcome::Failed(kind) => self.tally.fail(kind),
                Outcome::Untouched => self.queue.push_front(intended),
            }
            self.exchange_ended(index, now);
        }
        let Some(exchanges) = &self.connections[index].exchanges else { return Ok(()) };
        if exchanges.leaving {
            let last = exchanges.len() == 0;
            self.idle.retain(|i| *i != index);
            if last {
                self.lose_shared(index, Failed::Closed, now_ns());
                return Ok(());
            }
        }
        self.mark_unflushed(index);
        Ok(())
    }

    /// One exchange of a connection is free again.
    pub(super) fn exchange_ended(&mut self, index: usize, now: u64) {
        if self.plan.options.new_connection {
            return self.close(index, now);
        }
        if self.connections[index].exchanges.as_ref().is_some_and(|e| e.leaving) {
            return; // no more on this one
        }
        self.next_request(index, now);
    }

    pub(super) fn give_up_late(&mut self, index: usize, now: u64) {
        let moment = now.saturating_sub(self.timeout);
        while let Some(exchanges) = &mut self.connections[index].exchanges
            && exchanges.give_up_before(moment)
        {
            self.tally.fail(Failed::Timeout);
            self.busy -= 1;
            self.exchange_ended(index, now);
            self.mark_unflushed(index);
        }
    }

    /// The connection is gone: whatever was open on it has failed.
    pub(super) fn lose_shared(&mut self, index: usize, kind: Failed, now: u64) {
        let lost = self.connections[index].exchanges.take().map_or(0, |e| e.len());
        (0..lost).for_each(|_| self.tally.fail(kind));
        self.busy -= lost;
        self.idle.retain(|i| *i != index);
        self.reconnect(index, now);
    }
}
