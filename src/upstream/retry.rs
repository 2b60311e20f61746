//! Whether a request is sent once more, and when. Asked by `proxy` after each attempt that brought nothing that may go to
//! the caller as it is.
//!
//! Pure: what was seen, how often, and random numbers are arguments. Three questions, one after the other:
//! - Is it worth it? [`Policy::reason_of_failure`], [`Policy::reason_of_head`]: only what the policy names.
//! - Is it safe? [`Reason::is_unprocessed`]: where the service may have done something, only what may be done twice.
//! - When? [`Policy::pause_ns`]: full jitter, so that those who failed together do not come back together.
//!
//! Whether the service can bear it is for `upstream::budget` to say. Refuses to know connections and heads.

use std::time::Duration;

use fastrand::Rng;

use super::budget::Budget;
use super::tail::Quantile;
use crate::failure::{Cause, Failure, Side, Stage};

/// What a service or a route says of further attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Attempts of one exchange, the first included: 1 for no other.
    pub attempts_max: u8,
    /// What is worth another attempt.
    pub on: Reasons,
    /// And answers with these statuses.
    pub statuses: Statuses,
    /// Whether some of them stand in a list of their own (`retriable-status-codes`, to Envoy), to which callers may add theirs.
    pub lists_statuses: bool,
    /// Methods that may be done twice although they are not idempotent by their name.
    pub methods: Box<[Box<str>]>,
    /// How long one attempt may take until the head of its response; `None` for no limit of its own.
    pub attempt_timeout: Option<Duration>,
    /// What the pause before the first further attempt is at most.
    pub backoff_base: Duration,
    /// What any pause is at most.
    pub backoff_max: Duration,
    /// A service that asks for a longer pause than this is not asked again.
    pub retry_after_max: Duration,
    /// Octets of a request's body that are kept for another attempt.
    pub body_bytes_max: u32,
    /// How many further attempts there may be at a time.
    pub budget: Budget,
    /// Whether services are told which attempt it is (`x-envoy-attempt-count`).
    pub attempt_field: bool,
    /// When there is another attempt beside one that is not answered; `None` for never.
    pub hedge: Option<Hedge>,
    /// Whether the time of an attempt is what its caller asked for, and less than others have: then nothing is wrong with an
    /// endpoint that takes longer.
    pub is_hurried: bool,
}

/// How long an attempt is waited for until there is another one beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// So long.
    After(Duration),
    /// As long as this part of the service's latest answers took at most.
    Quantile(Quantile),
    /// As long as an attempt may take, which is not ended then; where there can be no other beside it, it is.
    InPlace,
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident = $label:literal; )*) => {
        /// Why there is another attempt.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $( $(#[$doc])* $variant, )* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The word in metrics and log.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )* }
            }
        }
    };
}

reasons! {
    /// No connection could be made.
    ConnectFailure = "connect_failure";
    /// The service refused the stream, or had begun to close the connection before it took it (HTTP/2).
    RefusedStream = "refused_stream";
    /// The connection was reset before an octet of the request was written.
    ResetBeforeRequest = "reset_before_request";
    /// The connection or stream ended before there was a response.
    Reset = "reset";
    /// What came is no response.
    BadResponse = "bad_response";
    /// No response in time.
    Timeout = "timeout";
    /// 502, 503, 504.
    GatewayError = "gateway_error";
    /// Another 5xx.
    ServerError = "server_error";
    /// A 4xx.
    ClientError = "client_error";
    /// A response with `x-envoy-ratelimited`.
    RateLimited = "rate_limited";
    /// gRPC: cancelled (1).
    Cancelled = "grpc_cancelled";
    /// gRPC: deadline exceeded (4).
    DeadlineExceeded = "grpc_deadline_exceeded";
    /// gRPC: resource exhausted (8).
    ResourceExhausted = "grpc_resource_exhausted";
    /// gRPC: internal (13).
    Internal = "grpc_internal";
    /// gRPC: unavailable (14).
    Unavailable = "grpc_unavailable";
    /// It was not answered for long, and another attempt began beside it.
    Hedge = "hedge";
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the service has done nothing of what was asked, as far as one can know: then it may be asked again whatever
    /// the method. A status of gRPC in the head says that no message was answered; who names it in a policy knows the service.
    pub const fn is_unprocessed(self) -> bool {
        match self {
            Self::ConnectFailure | Self::RefusedStream | Self::ResetBeforeRequest | Self::RateLimited => true,
            Self::Cancelled
            | Self::DeadlineExceeded
            | Self::ResourceExhausted
            | Self::Internal
            | Self::Unavailable => true,
            Self::Reset | Self::BadResponse | Self::Timeout | Self::Hedge => false,
            Self::GatewayError | Self::ServerError | Self::ClientError => false,
        }
    }

    /// That of a status of gRPC.
    const fn of_grpc(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Cancelled),
            4 => Some(Self::DeadlineExceeded),
            8 => Some(Self::ResourceExhausted),
            13 => Some(Self::Internal),
            14 => Some(Self::Unavailable),
            _ => None,
        }
    }

    /// That of a status of HTTP.
    const fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayError,
            500..600 => Self::ServerError,
            _ => Self::ClientError,
        }
    }
}

/// A set of reasons. Statuses of HTTP are in [`Statuses`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reasons(u16);

impl Reasons {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// There was no response: whatever the network or HTTP did.
    pub const NO_RESPONSE: Self = Self::of(&[
        Reason::ConnectFailure,
        Reason::RefusedStream,
        Reason::ResetBeforeRequest,
        Reason::Reset,
        Reason::BadResponse,
        Reason::Timeout,
    ]);

    /// These.
    pub const fn of(reasons: &[Reason]) -> Self {
        let (mut set, mut n) = (0, 0);
        while n < reasons.len() {
            set |= 1 << reasons[n] as u16;
            n += 1;
        }
        Self(set)
    }

    /// These and those of `other`.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it is among them.
    pub const fn has(self, reason: Reason) -> bool {
        self.0 & (1 << reason as u16) != 0
    }

    /// Whether all of `other` are among them.
    pub const fn has_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

const _: () = assert!(Reason::COUNT <= u16::BITS as usize, "a bit for each");

/// A set of statuses from 400 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statuses([u64; 4]);

impl Statuses {
    /// None.
    pub const NONE: Self = Self([0; 4]);
    /// The least that can be in it.
    pub const MIN: u16 = 400;
    /// The greatest.
    pub const MAX: u16 = 599;

    /// Adds those from `first` to `last`, as far as they can be in it.
    #[must_use]
    pub const fn with(mut self, first: u16, last: u16) -> Self {
        let mut status = if first < Self::MIN { Self::MIN } else { first };
        while status <= last && status <= Self::MAX {
            let at = (status - Self::MIN) as usize;
            self.0[at / 64] |= 1 << (at % 64);
            status += 1;
        }
        self
    }

    /// These and those of `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] | other.0[n]))
    }

    /// Whether it is in it.
    pub const fn has(self, status: u16) -> bool {
        if status < Self::MIN || status > Self::MAX {
            return false;
        }
        let at = (status - Self::MIN) as usize;
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    /// All that are in it, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (Self::MIN..=Self::MAX).filter(move |status| self.has(*status))
    }
}

/// A word by which it is said what is worth another attempt, by whoever may say so.
#[derive(Debug)]
pub struct Word {
    /// As it is written.
    pub word: &'static str,
    /// What it stands for.
    pub reasons: Reasons,
    /// And answers with these statuses.
    pub statuses: Statuses,
}

impl Word {
    const fn because(word: &'static str, reasons: Reasons) -> Self {
        Self { word, reasons, statuses: Statuses::NONE }
    }

    const fn answered(word: &'static str, reasons: Reasons, first: u16, last: u16) -> Self {
        Self { word, reasons, statuses: Statuses::NONE.with(first, last) }
    }

    /// Whether it is a status of gRPC.
    pub const fn is_grpc(&self) -> bool {
        const GRPC: Reasons = Reasons::of(&[
            Reason::Cancelled,
            Reason::DeadlineExceeded,
            Reason::ResourceExhausted,
            Reason::Internal,
            Reason::Unavailable,
        ]);
        self.reasons.0 & GRPC.0 != 0
    }
}

/// All words. They are Envoy's, with Envoy's meaning; `timeout` and `reset-before-answer` are ours.
pub static WORDS: [Word; 15] = [
    Word::because("reset", Reasons::NO_RESPONSE),
    Word::answered("gateway-error", Reasons::NO_RESPONSE, 502, 504),
    Word::answered("5xx", Reasons::NO_RESPONSE, 500, 599),
    Word::because(
        "reset-before-answer",
        Reasons::of(&[Reason::ResetBeforeRequest, Reason::Reset, Reason::BadResponse]),
    ),
    Word::because("reset-before-request", Reasons::of(&[Reason::ResetBeforeRequest])),
    Word::because("connect-failure", Reasons::of(&[Reason::ConnectFailure])),
    Word::because("refused-stream", Reasons::of(&[Reason::RefusedStream])),
    Word::because("timeout", Reasons::of(&[Reason::Timeout])),
    Word::answered("retriable-4xx", Reasons::NONE, 409, 409),
    Word::because("envoy-ratelimited", Reasons::of(&[Reason::RateLimited])),
    Word::because("cancelled", Reasons::of(&[Reason::Cancelled])),
    Word::because("deadline-exceeded", Reasons::of(&[Reason::DeadlineExceeded])),
    Word::because("internal", Reasons::of(&[Reason::Internal])),
    Word::because("resource-exhausted", Reasons::of(&[Reason::ResourceExhausted])),
    Word::because("unavailable", Reasons::of(&[Reason::Unavailable])),
];

/// What matters of the head of a response.
#[derive(Debug, Clone, Copy, Default)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The status of a gRPC call, where the head has it or stands for it.
    pub grpc: Option<u8>,
    /// Whether it has `x-envoy-ratelimited`.
    pub rate_limited: bool,
    /// What the service says of when to come back.
    pub after: After,
}

/// What a service says of when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// Nothing.
    #[default]
    Unsaid,
    /// After so long.
    Pause(Duration),
    /// Not at all, or nobody knows when.
    Never,
}

impl After {
    /// That of a `Retry-After` (RFC 9110 §10.2.3): seconds, or a date, which is held against the response's own `Date`, because
    /// only that is by the same clock; without one nobody knows when it will be. What is neither says nothing.
    pub fn of_field(value: &[u8], date: Option<&[u8]>) -> Self {
        let text = |value| std::str::from_utf8(value).ok().map(str::trim);
        let Some(value) = text(value) else { return Self::Unsaid };
        if !value.is_empty() && value.bytes().all(|octet| octet.is_ascii_digit()) {
            return Self::Pause(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
        }
        let moment = |value: &str| httpdate::parse_http_date(value).ok();
        match (moment(value), date.and_then(text).and_then(moment)) {
            (Some(then), Some(now)) => Self::Pause(then.duration_since(now).unwrap_or_default()),
            (Some(_), None) => Self::Never,
            (None, _) => Self::Unsaid,
        }
    }

    /// That of a `grpc-retry-pushback-ms` (gRPC, A6): what is no number of milliseconds says not to come back.
    pub fn of_pushback(value: &[u8]) -> Self {
        let ms = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
        ms.map_or(Self::Never, |ms| Self::Pause(Duration::from_millis(ms)))
    }
}

impl Policy {
    /// One attempt, whatever comes of it.
    pub fn off() -> Self {
        Self {
            attempts_max: 1,
            on: Reasons::NONE,
            statuses: Statuses::default(),
            lists_statuses: false,
            methods: Box::default(),
            attempt_timeout: None,
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            retry_after_max: Duration::ZERO,
            body_bytes_max: 0,
            budget: Budget { millionths: 0, floor: 0 },
            attempt_field: false,
            hedge: None,
            is_hurried: false,
        }
    }

    /// Whether there is ever another attempt.
    pub const fn is_off(&self) -> bool {
        self.attempts_max <= 1
    }

    /// Whether a request with this method may be done twice because the policy says so.
    pub fn allows(&self, method: &[u8]) -> bool {
        self.methods.iter().any(|allowed| allowed.as_bytes() == method)
    }

    /// Why an attempt that failed so is worth another one, if it is. `unsent`: the connection was reset before an octet of the
    /// request was written to it.
    pub fn reason_of_failure(&self, failure: Failure, unsent: bool) -> Option<Reason> {
        if failure.side != Side::Upstream {
            return None;
        }
        let reason = match (failure.stage, failure.cause) {
            // A ceiling of this proxy, or nobody there to be asked: to come back does not help.
            (_, Cause::Overloaded | Cause::NoEndpoint | Cause::UpgradeRefused) => return None,
            (Stage::Connect | Stage::Handshake, _) => Reason::ConnectFailure,
            (_, Cause::StreamRefused | Cause::GoingAway) => Reason::RefusedStream,
            (_, Cause::Closed | Cause::Reset) if unsent => Reason::ResetBeforeRequest,
            (_, Cause::Closed | Cause::Reset | Cause::StreamReset | Cause::PingTimeout) => Reason::Reset,
            // An attempt has a limit of its own so that there can be another one.
            (_, Cause::Timeout) if self.attempt_timeout.is_some() => return Some(Reason::Timeout),
            (_, Cause::Timeout) => Reason::Timeout,
            _ => Reason::BadResponse,
        };
        self.on.has(reason).then_some(reason)
    }

    /// Why a response with this head is worth another attempt, if it is.
    pub fn reason_of_head(&self, head: &Head) -> Option<Reason> {
        if head.rate_limited {
            // Whoever limits wants to be asked less, not more, unless the policy says otherwise; by whatever status it says so.
            return self.on.has(Reason::RateLimited).then_some(Reason::RateLimited);
        }
        if let Some(reason) = head.grpc.and_then(Reason::of_grpc)
            && self.on.has(reason)
        {
            return Some(reason);
        }
        self.statuses.has(head.status).then(|| Reason::of_status(head.status))
    }

    /// How long to wait before the `n`-th further attempt (from 1): evenly between nothing and `backoff_base * (2^n - 1)`, at
    /// most `backoff_max`, and behind what the service asked for. `None` when it asked for more than there may be.
    pub fn pause_ns(&self, n: u32, after: After, rng: &mut Rng) -> Option<u64> {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let asked = match after {
            After::Unsaid => 0,
            After::Pause(pause) if pause <= self.retry_after_max => ns(pause),
            After::Pause(_) | After::Never => return None,
        };
        let doubled = (1_u64 << n.min(32)) - 1;
        let ceiling = ns(self.backoff_base).saturating_mul(doubled).min(ns(self.backoff_max));
        let jitter = if ceiling == 0 { 0 } else { rng.u64(..ceiling) };
        Some(asked.saturating_add(jitter))
    }
}

#[cfg(test)]
#[path = "retry_test.rs"]
mod tests;
