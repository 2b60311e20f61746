//! From a service to a connection for one attempt: an endpoint, then a pooled, shared or new connection to it.
//!
//! Endpoints that cannot be reached are passed over, which is safe for every method: nothing was sent.

use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Path, h2_client, handshake};
use crate::downstream::Protocol as Agreed;
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::h2 as message;
use crate::upstream::berths::{Berth, Turn};
use crate::upstream::pool::Pooled;
use crate::upstream::service::Attempt;
use crate::upstream::shared::{Lease, Opening};
use crate::upstream::spec::{Protocol, Tls};

/// Endpoints tried without success in this exchange.
pub(super) type Tried = SmallVec<[u32; 4]>;

/// A connection for one exchange.
pub(super) enum To {
    /// One of its own, HTTP/1.1.
    H1(Pooled),
    /// A place on a shared one, HTTP/2.
    H2(Lease),
}

/// What has come of opening a connection.
pub(super) enum Opened {
    /// It is there; or one has become free meanwhile.
    To(To),
    /// One to another endpoint has.
    Elsewhere(Attempt, To),
}

/// Which connections that come to rest meanwhile will do in place of a new one.
#[derive(Clone, Copy)]
pub(super) enum Instead<'t> {
    /// None: it is to be new, or will be shared.
    Nothing,
    /// One to the same endpoint.
    Same,
    /// One to any endpoint that was not tried.
    Any(&'t Tried),
}

/// Leave to open a connection.
enum Leave {
    /// Where it is counted, if it is.
    Open(Option<Berth>),
    /// There is one after all.
    No(Opened),
}

/// What there is for an attempt.
enum Found {
    Connection(To),
    /// A new connection may be opened; by nobody else meanwhile, where it will be shared.
    Room(Option<Opening>),
    Nothing(Cause),
}

impl Path<'_> {
    /// A connection to an endpoint: pooled, shared, or a new one. `fresh` wants no pooled one.
    pub(super) async fn connect(&self, fresh: bool) -> Result<(Attempt, To), Failure> {
        match self.at_hand(fresh) {
            Ok(connected) => Ok(connected),
            // Boxed: seldom needed, and it would make every connection's future a third larger.
            Err(picked) => Box::pin(self.slowly(picked, fresh)).await,
        }
    }

    /// The same to the endpoint that was chosen, and to no other.
    pub(super) async fn connect_to(&self, picked: Attempt) -> Result<(Attempt, To), Failure> {
        match self.at_hand_of(picked, false) {
            Ok(connected) => Ok(connected),
            Err(attempt) => self.open_to(attempt).await,
        }
    }

    async fn open_to(&self, attempt: Attempt) -> Result<(Attempt, To), Failure> {
        let now = self.shard.clock.now();
        let found = if self.may_share(&attempt) {
            self.share(&attempt, now).await
        } else {
            self.pooled(&attempt, false, now)
        };
        match found {
            Found::Connection(to) => {
                attempt.reused.set(true);
                Ok((attempt, to))
            }
            Found::Nothing(cause) => Err(Failure::upstream(Stage::Connect, cause)),
            Found::Room(opening) => match self.open(&attempt, opening, Instead::Same).await {
                Ok(Opened::To(to)) => Ok((attempt, to)),
                Ok(Opened::Elsewhere(attempt, to)) => Ok((attempt, to)),
                Err(failure) => {
                    if failure.side != Side::Local {
                        attempt.shared().failed_to_open(failure);
                        attempt.unreachable(self.shard.clock.now());
                    }
                    Err(failure)
                }
            },
        }
    }

    /// What needs no wait; else the endpoint that was chosen, if there is one.
    fn at_hand(&self, fresh: bool) -> Result<(Attempt, To), Option<Attempt>> {
        let (tried, wants_fresh) = self.avoided();
        let attempt = self.pick(&tried, self.shard.clock.now()).ok_or(None)?;
        self.at_hand_of(attempt, fresh || wants_fresh).map_err(Some)
    }

    fn at_hand_of(&self, attempt: Attempt, fresh: bool) -> Result<(Attempt, To), Attempt> {
        let to = if self.may_share(&attempt) {
            attempt.shared().lease(&self.service.spec.http2).map(To::H2)
        } else if fresh || self.has_line() {
            None
        } else {
            attempt.pool().checkout(&self.service.spec.pool, self.shard.clock.now()).map(To::H1)
        };
        match to {
            Some(to) => {
                attempt.reused.set(true);
                Ok((attempt, to))
            }
            None => Err(attempt),
        }
    }

    async fn slowly(&self, mut picked: Option<Attempt>, fresh: bool) -> Result<(Attempt, To), Failure> {
        let Self { shard, service, .. } = self;
        let (mut tried, wants_fresh) = self.avoided();
        let fresh = fresh || wants_fresh;
        let mut failure = Failure::upstream(Stage::Balance, Cause::NoEndpoint);
        for _ in 0..service.spec.connect_attempts_max {
            let now = shard.clock.now();
            let Some(attempt) = picked.take().or_else(|| self.pick(&tried, now)) else { break };
            let found = if self.may_share(&attempt) {
                self.share(&attempt, now).await
            } else {
                self.pooled(&attempt, fresh, now)
            };
            match found {
                Found::Connection(to) => {
                    attempt.reused.set(true);
                    return Ok((attempt, to));
                }
                Found::Nothing(cause) => failure = Failure::upstream(Stage::Connect, cause),
                Found::Room(opening) => {
                    let instead = if fresh { Instead::Nothing } else { Instead::Any(&tried) };
                    match self.open(&attempt, opening, instead).await {
                        Ok(Opened::To(to)) => return Ok((attempt, to)),
                        Ok(Opened::Elsewhere(attempt, to)) => return Ok((attempt, to)),
                        // The same at every endpoint, and no fault of this one.
                        Err(ours) if ours.side == Side::Local => return Err(ours),
                        Err(why) => failure = why,
                    }
                    attempt.shared().failed_to_open(failure);
                    attempt.unreachable(shard.clock.now());
                }
            }
            self.span_ends(Some(failure));
            tried.push(attempt.endpoint);
            if shard.clock.now() >= self.deadline {
                break;
            }
        }
        self.avoid(tried);
        Err(failure)
    }

    fn pick(&self, tried: &Tried, now: u64) -> Option<Attempt> {
        let attempt = self.shard.rng(|rng| self.service.pick(now, rng, self.account.wanted(), tried))?;
        self.account.attempt(attempt.endpoint);
        self.account.span_begins(self.shard, attempt.endpoint);
        Some(attempt)
    }

    fn may_share(&self, attempt: &Attempt) -> bool {
        match self.service.spec.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            // Chosen by the endpoint at each handshake; believed to choose as the last time.
            Protocol::Auto => self.service.spec.tls != Tls::Off && attempt.shared().speaks(),
        }
    }

    fn pooled(&self, attempt: &Attempt, fresh: bool, now: u64) -> Found {
        let limits = &self.service.spec.pool;
        if !fresh
            && !self.has_line()
            && let Some(pooled) = attempt.pool().checkout(limits, now)
        {
            return Found::Connection(To::H1(pooled));
        }
        if attempt.pool().has_room(limits) { Found::Room(None) } else { Found::Nothing(Cause::Overloaded) }
    }

    /// Whether others wait for a connection to come to rest.
    fn has_line(&self) -> bool {
        self.service.berths.as_ref().is_some_and(|berths| berths.has_line())
    }

    /// A place on a shared connection, waited for as long as for a connection.
    async fn share(&self, attempt: &Attempt, now: u64) -> Found {
        let limits = &self.service.spec.http2;
        let deadline = now.saturating_add(crate::shard::clock::ns(self.connect_timeout(now)));
        let alarm = self.shard.deadlines.alarm();
        loop {
            if let Some(lease) = attempt.shared().lease(limits) {
                return Found::Connection(To::H2(lease));
            }
            if let Some(opening) = attempt.shared().open_one(limits) {
                return Found::Room(Some(opening));
            }
            self.account.wait(self.shard.clock.now());
            let changed = alarm.until(deadline, Box::pin(attempt.shared().changed())).await;
            self.account.waited(self.shard.clock.now());
            if changed.is_none() {
                return Found::Nothing(Cause::Overloaded);
            }
        }
    }

    /// Leave to have one more connection to the service, waited for where there are as many as may be.
    async fn leave_to_open(&self, attempt: &Attempt, instead: Instead<'_>) -> Result<Leave, Failure> {
        let Self { shard, account, service, .. } = self;
        let Some(berths) = &service.berths else { return Ok(Leave::Open(None)) };
        let refused = |cause| Failure::local(Stage::Connect, cause);
        let since = shard.clock.now();
        let patience_ns = service.spec.caps.as_ref().map_or(0, |caps| caps.patience.timeout_ns);
        let deadline = since.saturating_add(patience_ns).min(self.deadline);
        let alarm = shard.deadlines.alarm();
        let mut is_behind = berths.has_line();
        loop {
            if !std::mem::take(&mut is_behind) {
                if let Some(berth) = berths.take() {
                    return Ok(Leave::Open(Some(berth)));
                }
                if service.close_one() == Some(true)
                    && let Some(berth) = berths.take()
                {
                    return Ok(Leave::Open(Some(berth)));
                }
            }
            let waiting = berths.wait().map_err(refused)?;
            account.wait(shard.clock.now());
            let turn = alarm.until(deadline, waiting).await;
            let now = shard.clock.now();
            account.waited(now);
            match turn {
                None => return Err(refused(Cause::QueueTimeout)),
                Some(Turn::Berth(berth)) => return Ok(Leave::Open(Some(berth))),
                Some(Turn::Look) => {}
            }
            if matches!(instead, Instead::Nothing) {
                continue;
            }
            if let Some(pooled) = attempt.pool().checkout(&service.spec.pool, now) {
                attempt.reused.set(true);
                return Ok(Leave::No(Opened::To(To::H1(pooled))));
            }
            let wanted = account.wanted();
            let Instead::Any(tried) = instead else { continue };
            if wanted.key.is_some() {
                continue;
            }
            let other = shard.rng(|rng| service.pick_at_rest(now, rng, wanted, tried));
            let Some(other) = other else { continue };
            if let Some(pooled) = other.pool().checkout(&service.spec.pool, now) {
                account.goes_to(other.endpoint);
                other.reused.set(true);
                return Ok(Leave::No(Opened::Elsewhere(other, To::H1(pooled))));
            }
        }
    }

    /// A new connection to that endpoint.
    pub(super) async fn open(
        &self,
        attempt: &Attempt,
        opening: Option<Opening>,
        instead: Instead<'_>,
    ) -> Result<Opened, Failure> {
        let Self { shard, account, service, .. } = self;
        // A shared one that has room is found by who waits for it.
        let instead = if opening.is_some() { Instead::Nothing } else { instead };
        let berth = match self.leave_to_open(attempt, instead).await? {
            Leave::Open(berth) => berth,
            Leave::No(opened) => return Ok(opened),
        };
        let timeout = self.connect_timeout(shard.clock.now());
        account.wait(shard.clock.now());
        let protocol = service.spec.protocol;
        let connected =
            handshake::with_service(shard, &service.spec, protocol, attempt.address(), timeout).await;
        account.waited(shard.clock.now());
        let handshake::Connected { connection, agreed, listed } = connected?;
        attempt.shared().chose(agreed != Agreed::Http1);
        if agreed == Agreed::Http1 {
            return Ok(Opened::To(To::H1(attempt.pool().opened(connection, (listed, berth), &shard.tally))));
        }
        let refused = |error: h2::Error| Failure::upstream(Stage::Connect, message::cause(&error));
        let encrypted = connection.tls().is_some();
        let opened = h2_client::open(shard, connection, &service.spec).await.map_err(refused)?;
        let berths = berth.as_ref().map(|berth| Rc::clone(berth.berths()));
        let mesh = (matches!(agreed, Agreed::Mesh { .. }), agreed == Agreed::Mesh { lanes: true });
        let (shared, lease) = attempt.shared().opened(opened.send.clone(), mesh, encrypted, berths);
        drop(opening);
        opened.drive(shard, Rc::clone(&shared), &service.spec, (listed, berth));
        Ok(Opened::To(To::H2(lease)))
    }

    /// As [`Path::connect`], for a WebSocket handshake. An endpoint that has chosen HTTP/2 and takes no WebSockets by it gets
    /// a connection on which HTTP/1.1 is spoken, where the service leaves the choice.
    pub(super) async fn connect_for_websocket(&self) -> Result<(Attempt, To), Failure> {
        let mut failure = Failure::upstream(Stage::Balance, Cause::NoEndpoint);
        for _ in 0..self.service.spec.connect_attempts_max {
            let (attempt, to) = self.connect(false).await?;
            let To::H2(lease) = to else { return Ok((attempt, to)) };
            let now = self.shard.clock.now();
            let deadline = now.saturating_add(crate::shard::clock::ns(self.connect_timeout(now)));
            self.account.wait(now);
            let takes =
                self.shard.deadlines.alarm().until(deadline, Box::pin(lease.takes_websockets())).await;
            self.account.waited(self.shard.clock.now());
            failure = match takes {
                Some(true) => return Ok((attempt, To::H2(lease))),
                Some(false) if self.service.spec.protocol == Protocol::Auto => {
                    drop(lease);
                    match self.open_http1(&attempt).await {
                        Ok(pooled) => return Ok((attempt, To::H1(pooled))),
                        Err(failure) if failure.side == Side::Local => return Err(failure),
                        Err(failure) => failure,
                    }
                }
                Some(false) => return Err(Failure::upstream(Stage::Request, Cause::UpgradeRefused)),
                None => Failure::upstream(Stage::Connect, Cause::Timeout),
            };
            // Nothing was sent: the next endpoint may have it.
            if failure.cause != Cause::Overloaded {
                attempt.unreachable(self.shard.clock.now());
            }
            self.avoid_last();
            if self.shard.clock.now() >= self.deadline {
                break;
            }
        }
        Err(failure)
    }

    async fn open_http1(&self, attempt: &Attempt) -> Result<Pooled, Failure> {
        let Self { shard, account, service, .. } = self;
        let (_, fresh) = self.avoided();
        let now = shard.clock.now();
        match self.pooled(attempt, fresh, now) {
            Found::Connection(To::H1(pooled)) => return Ok(pooled),
            Found::Nothing(cause) => return Err(Failure::upstream(Stage::Connect, cause)),
            Found::Room(_) | Found::Connection(To::H2(_)) => {}
        }
        let instead = if fresh { Instead::Nothing } else { Instead::Same };
        let berth = match self.leave_to_open(attempt, instead).await? {
            Leave::Open(berth) => berth,
            Leave::No(Opened::To(To::H1(pooled))) => return Ok(pooled),
            Leave::No(_) => return Err(Failure::local(Stage::Connect, Cause::QueueTimeout)),
        };
        let now = shard.clock.now();
        let timeout = self.connect_timeout(now);
        account.wait(now);
        let opened =
            handshake::with_service(shard, &service.spec, Protocol::Http1, attempt.address(), timeout).await;
        account.waited(shard.clock.now());
        let handshake::Connected { connection, listed, .. } = opened?;
        Ok(attempt.pool().opened(connection, (listed, berth), &shard.tally))
    }

    fn connect_timeout(&self, now: u64) -> Duration {
        self.service.spec.timeouts.connect.min(Duration::from_nanos(self.deadline.saturating_sub(now)))
    }
}
