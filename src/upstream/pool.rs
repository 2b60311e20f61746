//! Idle upstream connections of one endpoint on one shard.
//!
//! Newest first, because the newest is the least likely to be closed meanwhile and its buffers are warm. Bounded in
//! number and age. The age learns: when connections are found closed, the upstream evidently keeps them for less long
//! than configured, so the limit comes down below what was seen. It stays there for a while, ten seconds after the first
//! death (it may have been a restart) and up to ten minutes when deaths go on, then the configured age is tried again. What
//! an origin says in `Keep-Alive: timeout=` is believed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::berths::{Berth, Rest};
use super::spec;
use crate::io::Connection;
use crate::shard::clock::ns;
use crate::shard::live::Listed;

/// The idle connections of an endpoint, and how many are open.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    /// Shared with the connections, not the pool itself: idle ones lie in the pool, and a circle would never end.
    open: Rc<Cell<u32>>,
    /// How old an idle connection may be, as learned; 0 when nothing is.
    age_max_ns: Cell<u64>,
    /// How long what is learned holds, and until when.
    hold_ns: Cell<u64>,
    hold_until: Cell<u64>,
}

/// Open and idle connections, and what became of them: one for all pools of a shard.
#[derive(Default)]
pub struct Tally {
    /// Open upstream connections, idle ones included.
    pub open: Cell<u64>,
    /// Idle upstream connections.
    pub idle: Cell<u64>,
    /// Connections established.
    pub connected: Cell<u64>,
    /// Pooled connections found dead when they were to be used, or while they lay idle.
    pub found_dead: Cell<u64>,
}

/// A connection to an endpoint that counts as open until it is dropped.
pub struct Pooled {
    /// The socket.
    pub connection: Connection,
    /// Whether it has served an exchange before.
    pub reused: bool,
    /// How long it lay idle before this use, ns.
    pub idle_ns: u64,
    /// Boxed: most have none of it, and the future of every connection has room for one of these.
    held: Option<Box<Held>>,
    pool_open: Rc<Cell<u32>>,
    tally: Rc<Tally>,
}

/// What a connection holds as long as it lasts.
struct Held {
    /// Its place among those that end when they are not allowed any more.
    listed: Option<Listed>,
    /// Where the service's connections are counted.
    berth: Option<Berth>,
}

struct Idle {
    pooled: Pooled,
    since: u64,
}

impl Pool {
    /// A connection found closed at some age was closed before: the limit goes to this part of that age.
    const LEARN_NUMERATOR: u64 = 3;
    const LEARN_DENOMINATOR: u64 = 4;
    /// The limit never goes below this: an upstream that closes faster does not keep connections at all.
    const AGE_MIN_NS: u64 = 1_000_000;
    /// What was learned of the first death holds this long; twice as long after each further one, up to the other.
    const HOLD_MIN_NS: u64 = 10_000_000_000;
    const HOLD_MAX_NS: u64 = 600_000_000_000;

    /// The newest idle connection that is still open, or `None`. Closes those that are too old or dead.
    pub fn checkout(&self, limits: &spec::Pool, now: u64) -> Option<Pooled> {
        loop {
            let Idle { mut pooled, since } = self.idle.borrow_mut().pop()?;
            let tally = &pooled.tally;
            tally.idle.set(tally.idle.get() - 1);
            let age = now.saturating_sub(since);
            if age > self.age_max(limits) {
                // The older ones below it are too old as well; they are closed by the sweep.
                continue;
            }
            if pooled.is_revoked() || pooled.is_outlived(now) {
                continue;
            }
            if !pooled.connection.is_usable() {
                tally.found_dead.set(tally.found_dead.get() + 1);
                self.learn_death(age, now);
                continue;
            }
            pooled.reused = true;
            pooled.idle_ns = age;
            return Some(pooled);
        }
    }

    /// Keeps a connection for the next exchange, unless the pool is full: then it is closed. `hint_seconds` is what the
    /// origin said of how long it keeps it.
    pub fn checkin(&self, pooled: Pooled, limits: &spec::Pool, hint_seconds: Option<u64>, now: u64) {
        if let Some(seconds) = hint_seconds {
            // Half a second, or half of one second, for what is on the way.
            let hinted = seconds.saturating_mul(1_000_000_000).saturating_sub(500_000_000);
            if hinted < self.age_max(limits) {
                self.age_max_ns.set(hinted.max(Self::AGE_MIN_NS));
                self.hold_until.set(now + Self::HOLD_MAX_NS);
            }
        }
        if pooled.is_outlived(now) {
            return;
        }
        let berth = pooled.held.as_ref().and_then(|held| held.berth.as_ref());
        let berths = berth.map(|berth| Rc::clone(berth.berths()));
        if berths.as_ref().is_some_and(|berths| berths.comes_to_rest(now) == Rest::Close) {
            return;
        }
        if self.idle.borrow().len() >= limits.idle_max as usize {
            return;
        }
        pooled.tally.idle.set(pooled.tally.idle.get() + 1);
        self.idle.borrow_mut().push(Idle { pooled, since: now });
        if let Some(berths) = berths {
            berths.rests();
        }
    }

    /// Counts a connection that was just established, unless `connections_max` are open already: see
    /// [`Pool::has_room`], which is asked before connecting.
    pub fn opened(
        &self,
        connection: Connection,
        (listed, berth): (Option<Listed>, Option<Berth>),
        tally: &Rc<Tally>,
    ) -> Pooled {
        self.open.set(self.open.get() + 1);
        tally.open.set(tally.open.get() + 1);
        tally.connected.set(tally.connected.get() + 1);
        Pooled {
            connection,
            reused: false,
            idle_ns: 0,
            held: (listed.is_some() || berth.is_some()).then(|| Box::new(Held { listed, berth })),
            pool_open: Rc::clone(&self.open),
            tally: Rc::clone(tally),
        }
    }

    /// Whether one more connection may be opened.
    pub fn has_room(&self, limits: &spec::Pool) -> bool {
        self.open.get() < limits.connections_max
    }

    /// Open connections, idle ones included.
    pub fn open(&self) -> u32 {
        self.open.get()
    }

    /// A connection was found dead, or died in use before it answered, after it had lain idle for `idle_ns`: the upstream
    /// closed it.
    pub fn learn_death(&self, idle_ns: u64, now: u64) {
        let learned = (idle_ns / Self::LEARN_DENOMINATOR * Self::LEARN_NUMERATOR).max(Self::AGE_MIN_NS);
        let present = self.age_max_ns.get();
        if present == 0 || learned < present {
            self.age_max_ns.set(learned);
        }
        if now >= self.hold_until.get() {
            // What was learned before had been forgotten, and it was true.
            self.hold_ns.set((self.hold_ns.get() * 2).clamp(Self::HOLD_MIN_NS, Self::HOLD_MAX_NS));
        }
        self.hold_until.set(now + self.hold_ns.get());
    }

    /// Once a second: closes what is too old or dead. Looks into at most as many sockets as are idle for a second.
    pub fn sweep(&self, limits: &spec::Pool, now: u64) {
        const LOOK_AFTER_NS: u64 = 1_000_000_000;
        let age_max = self.age_max(limits);
        let mut oldest_death = None;
        self.idle.borrow_mut().retain(|idle| {
            let age = now.saturating_sub(idle.since);
            let revoked = idle.pooled.is_revoked() || idle.pooled.is_outlived(now);
            let dead = !revoked && age >= LOOK_AFTER_NS && !idle.pooled.connection.is_usable();
            let tally = &idle.pooled.tally;
            if dead {
                tally.found_dead.set(tally.found_dead.get() + 1);
                oldest_death = oldest_death.max(Some(age));
            }
            let keep = !dead && !revoked && age <= age_max;
            if !keep {
                tally.idle.set(tally.idle.get() - 1);
            }
            keep
        });
        if let Some(age) = oldest_death {
            self.learn_death(age, now);
        } else if now >= self.hold_until.get() {
            self.age_max_ns.set(0);
            if now >= self.hold_until.get() + 4 * self.hold_ns.get() {
                self.hold_ns.set(0);
            }
        }
    }

    /// How many lie idle.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    /// Closes the one that has been idle for longest, if there is one.
    pub fn close_oldest(&self) -> bool {
        // Its end may make somebody else look here.
        let oldest = match self.idle.borrow_mut() {
            idle if idle.is_empty() => return false,
            mut idle => idle.remove(0),
        };
        let tally = &oldest.pooled.tally;
        tally.idle.set(tally.idle.get() - 1);
        true
    }

    /// Closes all idle connections.
    pub fn close_idle(&self) {
        for idle in self.idle.borrow_mut().drain(..) {
            let tally = &idle.pooled.tally;
            tally.idle.set(tally.idle.get() - 1);
        }
    }

    /// Closes those that have been idle since before then; how many.
    pub fn close_quiet(&self, before: u64) -> u64 {
        let mut closed = 0;
        self.idle.borrow_mut().retain(|idle| {
            let keep = idle.since > before;
            if !keep {
                let tally = &idle.pooled.tally;
                tally.idle.set(tally.idle.get() - 1);
                closed += 1;
            }
            keep
        });
        closed
    }

    fn age_max(&self, limits: &spec::Pool) -> u64 {
        match self.age_max_ns.get() {
            0 => ns(limits.idle_timeout),
            learned => learned.min(ns(limits.idle_timeout)),
        }
    }
}

impl Pooled {
    /// Whether it gets nothing new any more.
    fn is_outlived(&self, now: u64) -> bool {
        self.connection.tls().is_some_and(|tls| now >= tls.leave_at())
    }

    /// Whether it was ended from here: nobody is to blame.
    fn is_revoked(&self) -> bool {
        let listed = self.held.as_ref().and_then(|held| held.listed.as_ref());
        listed.is_some_and(Listed::is_revoked)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool_open.set(self.pool_open.get() - 1);
        self.tally.open.set(self.tally.open.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits() -> spec::Pool {
        spec::Pool { idle_max: 2, idle_timeout: Duration::from_secs(60), connections_max: 3 }
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_age_comes_down_below_what_was_seen_and_is_tried_again_later_and_later() {
        let pool = Pool::default();
        assert_eq!(pool.age_max(&limits()), 60 * SECOND);
        pool.learn_death(4 * SECOND, 100 * SECOND);
        assert_eq!(pool.age_max(&limits()), 3 * SECOND);
        pool.learn_death(8 * SECOND, 101 * SECOND);
        assert_eq!(pool.age_max(&limits()), 3 * SECOND, "a longer life says nothing new");
        pool.sweep(&limits(), 110 * SECOND);
        assert_eq!(pool.age_max(&limits()), 3 * SECOND, "it holds for ten seconds after the last death");
        let mut now = 111 * SECOND;
        for hold in [20, 40, 80, 160, 320, 600, 600] {
            pool.sweep(&limits(), now);
            assert_eq!(pool.age_max(&limits()), 60 * SECOND, "forgotten at {now}");
            pool.learn_death(4 * SECOND, now);
            now += hold * SECOND;
            pool.sweep(&limits(), now - 1);
            assert_eq!(pool.age_max(&limits()), 3 * SECOND, "it holds for {hold} s");
        }
    }

    #[test]
    fn a_restart_long_ago_is_forgotten() {
        let pool = Pool::default();
        pool.learn_death(SECOND, SECOND);
        pool.sweep(&limits(), 51 * SECOND);
        pool.learn_death(SECOND, 1000 * SECOND);
        pool.sweep(&limits(), 1010 * SECOND);
        assert_eq!(pool.age_max(&limits()), 60 * SECOND);
    }

    #[test]
    fn a_death_at_once_does_not_end_pooling() {
        let pool = Pool::default();
        pool.learn_death(0, SECOND);
        assert_eq!(pool.age_max(&limits()), Pool::AGE_MIN_NS);
    }
}
