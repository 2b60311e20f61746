//! Those of one shard who wait for a place at a service, and who is next. Pure: time is an argument.
//!
//! Whose turn it is among those of different importance, here and on other shards, the `gate` says; among equals who has waited
//! longest comes first, and nobody waits longer than `timeout`. A line that
//! has not been empty for as long as that is not a burst but too much load, and then waiting only makes late what is
//! answered (as in Facebook's variant of CoDel): nobody waits longer than `target` then but the critical, and the newest come first,
//! whose callers still want the answer. It ends when for as long as `timeout` the line was empty now and then and nobody waited
//! longer than `target`: that it is empty alone says nothing, because letting people go empties it.
//!
//! Refuses to know who they are, and to count places.

use std::collections::VecDeque;

use crate::route::Priority;

/// How long they may wait, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// While it is a burst.
    pub timeout_ns: u64,
    /// While it is too much; as `timeout_ns`, it makes no difference.
    pub target_ns: u64,
}

impl Patience {
    fn longest_ns(&self, priority: Priority, standing: bool) -> u64 {
        match priority {
            Priority::Default | Priority::Sheddable if standing => self.target_ns,
            Priority::Critical | Priority::Default | Priority::Sheddable => self.timeout_ns,
        }
    }
}

/// A line.
#[derive(Debug)]
pub struct Line<T> {
    /// By priority, oldest first.
    waiting: [VecDeque<Entry<T>>; Priority::COUNT],
    next_number: u64,
    /// When it was empty last.
    busy_since_ns: u64,
    /// Until when it counts as too much at least.
    standing_until_ns: u64,
}

/// Where one stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    priority: Priority,
    number: u64,
}

#[derive(Debug)]
struct Entry<T> {
    number: u64,
    since_ns: u64,
    who: T,
}

impl<T> Line<T> {
    /// Nobody.
    pub const fn new() -> Self {
        Self {
            waiting: [const { VecDeque::new() }; Priority::COUNT],
            next_number: 0,
            busy_since_ns: 0,
            standing_until_ns: 0,
        }
    }

    /// How many wait that are as important.
    pub fn len(&self, priority: Priority) -> usize {
        self.waiting[priority as usize].len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// One more; until when he waits at the longest.
    pub fn push(&mut self, who: T, priority: Priority, patience: Patience, now_ns: u64) -> (Ticket, u64) {
        if self.is_empty() {
            self.busy_since_ns = now_ns;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.waiting[priority as usize].push_back(Entry { number, since_ns: now_ns, who });
        let longest_ns = patience.longest_ns(priority, self.is_standing(patience, now_ns));
        (Ticket { priority, number }, now_ns.saturating_add(longest_ns))
    }

    /// Who is next of those that are as important. All who have waited too long are given to `late` first.
    pub fn next(
        &mut self,
        priority: Priority,
        patience: Patience,
        now_ns: u64,
        late: impl FnMut(T),
    ) -> Option<T> {
        let standing = self.is_standing(patience, now_ns);
        if self.drop_late(patience, standing, now_ns, late) {
            self.standing_until_ns = now_ns.saturating_add(patience.timeout_ns);
        }
        let waiting = &mut self.waiting[priority as usize];
        if standing { waiting.pop_back() } else { waiting.pop_front() }.map(|entry| entry.who)
    }

    /// Takes one out, if he still waits.
    pub fn remove(&mut self, ticket: Ticket, patience: Patience, now_ns: u64) -> Option<T> {
        let waiting = &mut self.waiting[ticket.priority as usize];
        let at = waiting.binary_search_by_key(&ticket.number, |entry| entry.number).ok()?;
        let entry = waiting.remove(at)?;
        let waited_ns = now_ns.saturating_sub(entry.since_ns);
        let may_ns = patience.longest_ns(ticket.priority, now_ns < self.standing_until_ns);
        // About as long as it may: who leaves knows the time a little later than the line does.
        if waited_ns >= may_ns / 4 * 3 {
            self.standing_until_ns = now_ns.saturating_add(patience.timeout_ns);
        }
        Some(entry.who)
    }

    /// Takes out the newest of the least important, if he is less important than that: in a full line he makes room.
    pub fn displace(&mut self, priority: Priority) -> Option<T> {
        let less = &mut self.waiting[priority as usize + 1..];
        less.iter_mut().rev().find_map(VecDeque::pop_back).map(|entry| entry.who)
    }

    /// Whether it is too much, and not a burst.
    pub fn is_standing(&mut self, patience: Patience, now_ns: u64) -> bool {
        if !self.is_empty() && now_ns.saturating_sub(self.busy_since_ns) >= patience.timeout_ns {
            self.standing_until_ns = now_ns.saturating_add(patience.timeout_ns);
        }
        now_ns < self.standing_until_ns
    }

    /// Whether there was one.
    fn drop_late(
        &mut self,
        patience: Patience,
        standing: bool,
        now_ns: u64,
        mut late: impl FnMut(T),
    ) -> bool {
        let mut any = false;
        for (waiting, priority) in self.waiting.iter_mut().zip(Priority::ALL) {
            let longest_ns = patience.longest_ns(priority, standing);
            while waiting.front().is_some_and(|entry| now_ns.saturating_sub(entry.since_ns) > longest_ns) {
                if let Some(entry) = waiting.pop_front() {
                    any = true;
                    late(entry.who);
                }
            }
        }
        any
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PATIENCE: Patience = Patience { timeout_ns: 100 * MS, target_ns: 5 * MS };

    fn push(line: &mut Line<u32>, who: u32, priority: Priority, now_ns: u64) -> (Ticket, u64) {
        line.push(who, priority, PATIENCE, now_ns)
    }

    fn remove(line: &mut Line<u32>, ticket: Ticket) -> Option<u32> {
        line.remove(ticket, PATIENCE, 0)
    }

    fn next(line: &mut Line<u32>, now_ns: u64) -> (Option<u32>, Vec<u32>) {
        let mut late = Vec::new();
        let next = |priority| line.next(priority, PATIENCE, now_ns, |who| late.push(who));
        (Priority::ALL.into_iter().find_map(next), late)
    }

    #[test]
    fn the_oldest_comes_first_of_those_that_are_as_important() {
        let mut line = Line::new();
        let priorities = [
            Priority::Sheddable,
            Priority::Default,
            Priority::Critical,
            Priority::Default,
            Priority::Critical,
        ];
        for (who, priority) in (0..).zip(priorities) {
            push(&mut line, who, priority, 0);
        }
        let mut of = |priority| line.next(priority, PATIENCE, MS, |_| {});
        assert_eq!([(); 3].map(|()| of(Priority::Default)), [Some(1), Some(3), None]);
        assert_eq!([(); 2].map(|()| of(Priority::Sheddable)), [Some(0), None]);
        assert_eq!([(); 3].map(|()| of(Priority::Critical)), [Some(2), Some(4), None]);
    }

    #[test]
    fn a_burst_may_wait_for_the_whole_timeout_and_nobody_longer() {
        let mut line = Line::new();
        assert_eq!(push(&mut line, 1, Priority::Default, 0).1, 100 * MS);
        push(&mut line, 2, Priority::Default, 50 * MS);
        assert_eq!(next(&mut line, 99 * MS), (Some(1), vec![]));
        assert_eq!(next(&mut line, 99 * MS), (Some(2), vec![]));
        assert_eq!(next(&mut line, 99 * MS), (None, vec![]));
        // It was empty meanwhile: a new burst.
        assert_eq!(push(&mut line, 3, Priority::Default, 120 * MS).1, 220 * MS);
        assert_eq!(next(&mut line, 221 * MS), (None, vec![3]));
        // It was no burst.
        assert_eq!(push(&mut line, 4, Priority::Default, 222 * MS).1, 227 * MS);
    }

    #[test]
    fn in_a_line_that_stands_the_newest_come_first_and_the_old_are_let_go() {
        let mut line = Line::new();
        push(&mut line, 1, Priority::Default, 0);
        push(&mut line, 2, Priority::Sheddable, 97 * MS);
        assert_eq!(push(&mut line, 3, Priority::Default, 100 * MS).1, 105 * MS);
        push(&mut line, 4, Priority::Default, 101 * MS);
        assert_eq!(next(&mut line, 102 * MS), (Some(4), vec![1]));
        assert_eq!(next(&mut line, 104 * MS), (Some(3), vec![2]));
        // That it is empty is the doing of those who were let go.
        assert_eq!(push(&mut line, 5, Priority::Default, 150 * MS).1, 155 * MS);
        assert_eq!(next(&mut line, 152 * MS).0, Some(5));
        // 100 ms later all is well.
        assert_eq!(push(&mut line, 6, Priority::Default, 204 * MS).1, 304 * MS);
    }

    #[test]
    fn who_leaves_is_gone_and_who_is_gone_cannot_leave() {
        let mut line = Line::new();
        let tickets: Vec<Ticket> = (0..5).map(|who| push(&mut line, who, Priority::Default, 0).0).collect();
        assert_eq!(remove(&mut line, tickets[2]), Some(2));
        assert_eq!(remove(&mut line, tickets[2]), None);
        assert_eq!(next(&mut line, 0).0, Some(0));
        assert_eq!(remove(&mut line, tickets[0]), None);
        assert_eq!((remove(&mut line, tickets[4]), line.len(Priority::Default)), (Some(4), 2));
    }

    #[test]
    fn only_the_less_important_make_room_the_least_and_newest_first() {
        let mut line = Line::new();
        for (who, priority) in [(0, Priority::Sheddable), (1, Priority::Sheddable), (2, Priority::Default)] {
            push(&mut line, who, priority, 0);
        }
        assert_eq!(line.displace(Priority::Sheddable), None);
        assert_eq!(line.displace(Priority::Default), Some(1));
        assert_eq!(line.displace(Priority::Critical), Some(0));
        assert_eq!(line.displace(Priority::Default), None);
        assert_eq!(line.displace(Priority::Critical), Some(2));
        assert_eq!(line.displace(Priority::Critical), None);
    }
}
