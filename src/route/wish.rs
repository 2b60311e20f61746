//! What a caller may say of the retries and timeouts of its own request, by Envoy's fields: what a route allows ([`May`]), what a
//! request says ([`Wishes`]), and what becomes of the policy that holds for all. Pure; read once, with the head.
//!
//! Nothing that a caller says goes beyond what the configuration allows, adds to a budget or a cap, or makes sent again
//! what may not be done twice. What cannot be understood is passed over, and the rest holds.

use std::cell::OnceCell;
use std::time::Duration;

use http::HeaderName;

use crate::authorize::Fields;
use crate::upstream::retry::{Hedge, Policy, Reasons, Statuses, WORDS};

/// What callers of a route may ask for at most. Each is `None` for no more than what holds for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct May {
    /// Attempts of one exchange, the first included.
    pub attempts_max: Option<u8>,
    /// How long an exchange may take.
    pub timeout_max: Option<Duration>,
    /// How long one attempt may take until the head of its response; within what the service has for that in any case.
    pub attempt_timeout_max: Option<Duration>,
}

/// What was made of what a caller said; the greater one tells more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// It holds.
    Taken,
    /// Less than that holds: it was more than there may be.
    Capped,
    /// Some of it could not be understood, or says nothing here.
    Ignored,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Taken, Self::Capped, Self::Ignored];

    /// The word in log and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Capped => "capped",
            Self::Ignored => "ignored",
        }
    }

    const fn capped(is: bool) -> Self {
        if is { Self::Capped } else { Self::Taken }
    }
}

const RETRY_ON: &str = "x-envoy-retry-on";
const RETRY_GRPC_ON: &str = "x-envoy-retry-grpc-on";
const STATUSES: &str = "x-envoy-retriable-status-codes";
const MAX_RETRIES: &str = "x-envoy-max-retries";
const TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";
const ATTEMPT_TIMEOUT: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
const HEDGE: &str = "x-envoy-hedge-on-per-try-timeout";

/// The fields by which a caller says it: Envoy's. They end here where a route listens to them.
pub const FIELDS: [HeaderName; 7] = [
    HeaderName::from_static(RETRY_ON),
    HeaderName::from_static(RETRY_GRPC_ON),
    HeaderName::from_static(STATUSES),
    HeaderName::from_static(MAX_RETRIES),
    HeaderName::from_static(TIMEOUT),
    HeaderName::from_static(ATTEMPT_TIMEOUT),
    HeaderName::from_static(HEDGE),
];

/// What a request says.
#[derive(Debug)]
pub struct Wishes {
    may: May,
    /// Worth another attempt besides what the policy says.
    on: Reasons,
    statuses: Statuses,
    /// Statuses that it lists, and whether it says that they count.
    listed: Statuses,
    lists_count: bool,
    /// Attempts besides the first.
    retries: Option<u8>,
    /// Zero: as long as there may be.
    timeout: Option<Duration>,
    attempt_timeout: Option<Duration>,
    /// Whether there is another attempt beside one that has had its time, in place of its end.
    hedges: Option<bool>,
    /// Whether some of it was passed over.
    is_odd: bool,
    /// What has become of the policy by it.
    policy: OnceCell<(Option<Policy>, Outcome)>,
}

impl May {
    /// What a request says; `None` where it says nothing.
    pub fn read<F: Fields>(&self, fields: &F) -> Option<Wishes> {
        let says = |name: &HeaderName| fields.lines(name.as_str()).next().is_some();
        if !fields.may_have_envoys() || !FIELDS.iter().any(says) {
            return None;
        }
        let mut wishes = Wishes {
            may: *self,
            on: Reasons::NONE,
            statuses: Statuses::NONE,
            listed: Statuses::NONE,
            lists_count: false,
            retries: None,
            timeout: None,
            attempt_timeout: None,
            hedges: None,
            is_odd: false,
            policy: OnceCell::new(),
        };
        for (name, is_grpc) in [(RETRY_ON, false), (RETRY_GRPC_ON, true)] {
            for word in entries(fields, name) {
                // Which statuses is said by a field of its own.
                if !is_grpc && word == b"retriable-status-codes" {
                    wishes.lists_count = true;
                    continue;
                }
                match WORDS.iter().find(|known| known.is_grpc() == is_grpc && known.word.as_bytes() == word) {
                    Some(known) => {
                        wishes.on = wishes.on.and(known.reasons);
                        wishes.statuses = wishes.statuses.and(known.statuses);
                    }
                    None => wishes.is_odd = true,
                }
            }
        }
        for status in entries(fields, STATUSES) {
            match digits(status).and_then(|status| u16::try_from(status).ok()) {
                Some(status @ Statuses::MIN..=Statuses::MAX) => {
                    wishes.listed = wishes.listed.with(status, status);
                }
                _ => wishes.is_odd = true,
            }
        }
        let retries = wishes.the(fields, MAX_RETRIES, digits);
        wishes.retries = retries.map(|retries| u8::try_from(retries).unwrap_or(u8::MAX));
        wishes.timeout = wishes.the(fields, TIMEOUT, digits).map(Duration::from_millis);
        wishes.attempt_timeout = wishes.the(fields, ATTEMPT_TIMEOUT, digits).map(Duration::from_millis);
        wishes.hedges = wishes.the(fields, HEDGE, |value| match value {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        });
        Some(wishes)
    }
}

impl Wishes {
    /// The only value of a field, if it can be understood.
    fn the<F: Fields, T>(
        &mut self,
        fields: &F,
        name: &str,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let mut lines = fields.lines(name);
        let first = lines.next()?;
        let value = if lines.next().is_none() { read(first.trim_ascii()) } else { None };
        self.is_odd |= value.is_none();
        value
    }

    /// How long the exchange may take, where the route says so much.
    pub fn timeout(&self, of_route: Option<Duration>) -> Option<Duration> {
        self.timeout_of(of_route).0
    }

    fn timeout_of(&self, of_route: Option<Duration>) -> (Option<Duration>, Outcome) {
        within(self.timeout, of_route, self.may.timeout_max)
    }

    /// What holds of further attempts for this request, where the policy for all is that.
    pub fn policy<'p>(&'p self, of_all: &'p Policy) -> &'p Policy {
        let (own, _) = self.policy.get_or_init(|| self.policy_of(of_all));
        own.as_ref().unwrap_or(of_all)
    }

    fn policy_of(&self, of_all: &Policy) -> (Option<Policy>, Outcome) {
        let counts = self.lists_count || of_all.lists_statuses;
        let statuses = if counts { self.statuses.and(self.listed) } else { self.statuses };
        let is_passed_over = !counts && self.listed != Statuses::NONE;
        let taken = if is_passed_over { Outcome::Ignored } else { Outcome::Taken };
        let names = self.on != Reasons::NONE || statuses != Statuses::NONE;
        if !names && self.retries.is_none() && self.attempt_timeout.is_none() && self.hedges.is_none() {
            return (None, taken);
        }
        let mut policy = of_all.clone();
        policy.on = policy.on.and(self.on);
        policy.statuses = policy.statuses.and(statuses);
        let has_any = policy.on != Reasons::NONE || policy.statuses != Statuses::NONE;
        let asked = match self.retries {
            Some(retries) if has_any => retries.saturating_add(1),
            // Who says after what wants one further attempt at least.
            None if names => of_all.attempts_max.max(2),
            _ => of_all.attempts_max,
        };
        let most = self.may.attempts_max.map_or(of_all.attempts_max, |max| max.max(of_all.attempts_max));
        policy.attempts_max = asked.min(most);
        let mut outcome = taken.max(Outcome::capped(asked > most));
        if self.retries.is_some() && !has_any {
            // After what?
            outcome = Outcome::Ignored;
        }
        if self.attempt_timeout.is_some() {
            let (timeout, of_timeout) =
                within(self.attempt_timeout, of_all.attempt_timeout, self.may.attempt_timeout_max);
            policy.attempt_timeout = timeout;
            policy.is_hurried =
                timeout.is_some_and(|timeout| of_all.attempt_timeout.is_none_or(|all| timeout < all));
            outcome = outcome.max(of_timeout);
        }
        match (self.hedges, policy.attempt_timeout) {
            (Some(true), Some(_)) => policy.hedge = Some(Hedge::InPlace),
            // After how long?
            (Some(true), None) => outcome = Outcome::Ignored,
            (Some(false), _) => policy.hedge = None,
            (None, _) => {}
        }
        (Some(policy), outcome)
    }

    /// What was made of it, as far as that is known yet.
    pub fn outcome(&self, timeout_of_route: Option<Duration>) -> Outcome {
        let odd = if self.is_odd { Outcome::Ignored } else { Outcome::Taken };
        let of_policy = self.policy.get().map_or(Outcome::Taken, |(_, outcome)| *outcome);
        odd.max(of_policy).max(self.timeout_of(timeout_of_route).1)
    }
}

/// A length that was asked for, zero for as long as there may be, where all have so long and may ask for that at most: never for
/// less than all have, and where all have as long as they like, for that or for as long as all.
fn within(
    asked: Option<Duration>,
    of_all: Option<Duration>,
    max: Option<Duration>,
) -> (Option<Duration>, Outcome) {
    let Some(asked) = asked else { return (of_all, Outcome::Taken) };
    let asked = Some(asked).filter(|asked| !asked.is_zero());
    let most = match (of_all, asked) {
        (Some(all), _) => Some(max.map_or(all, |max| max.max(all))),
        (None, Some(_)) => max,
        (None, None) => None,
    };
    match (asked, most) {
        (Some(asked), Some(most)) => (Some(asked.min(most)), Outcome::capped(asked > most)),
        (None, Some(most)) => (Some(most), Outcome::Capped),
        (asked, None) => (asked, Outcome::Taken),
    }
}

/// The entries of a list, whatever lines it stands on.
fn entries<'f, F: Fields>(fields: &'f F, name: &'f str) -> impl Iterator<Item = &'f [u8]> {
    let entries = fields.lines(name).flat_map(|line| line.split(|octet| *octet == b','));
    entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty())
}

/// A whole number; what does not fit is the greatest that does.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |number: u64, octet: &u8| number.saturating_mul(10).saturating_add(u64::from(octet - b'0'));
    Some(text.iter().fold(0, digit))
}

#[cfg(test)]
#[path = "wish_test.rs"]
mod tests;
