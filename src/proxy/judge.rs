//! What an attempt says of its endpoint, told to balancer and breaker when it has ended. Called by all who make attempts.
//!
//! A status below 500 is an answer to what the caller asked, and good; so are 501 (it knows no such method) and, unless the
//! service is configured otherwise, 429. Of gRPC the codes count that a service makes when something is wrong with it:
//! UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS, no code at all; DEADLINE_EXCEEDED where the time was not short. What ends
//! because of the caller or of this proxy says nothing, and neither does a connection that was dead when it was used again,
//! or one whose end was announced.

use http::HeaderName;

use super::Path;
use super::account::Account;
use crate::failure::{Cause, Failure, Side, Stage};
use crate::http::edit::Edits;
use crate::http::grpc::Status;
use crate::shard::clock::ns;
use crate::upstream::breaker::Verdict;
use crate::upstream::service::Attempt;

/// What an endpoint says in an answer with which it wants to be left at once (Envoy's); believed of those that are probed.
pub(super) const FAIL_AT_ONCE: &str = "x-envoy-immediate-health-check-fail";

/// Looks for that in the head of an answer. It goes no further where it was believed: the next proxy would leave this one.
pub(super) fn note_wish(attempt: &Attempt, headers: &mut http::HeaderMap) {
    if attempt.is_probed() && headers.remove(FAIL_AT_ONCE).is_some() {
        attempt.wants_to_be_left();
    }
}

/// Takes it out of a head of HTTP/1.1 that has been written, from `start` on.
#[cold]
pub(super) fn take_wish_out(out: &mut Vec<u8>, start: usize) {
    let mut edits = Edits::default();
    edits.remove(&HeaderName::from_static(FAIL_AT_ONCE));
    edits.apply_to_head(out, start, 0);
}

/// What an exchange failed by whose way back has: where its request was not whole it may be its caller. `is_late`: the exchange had no
/// more time, and the request was still not whole.
pub(super) fn of_both(
    there: &Result<(), Failure>,
    back: Failure,
    back_was_first: bool,
    is_late: bool,
) -> Failure {
    match there {
        // What the caller did is why the way back failed, too.
        Err(there) if there.side != Side::Upstream && !back_was_first => *there,
        // Both wait for no longer than that, and which of them sees it first is chance: what was waited for was the caller.
        Err(there) if there.side == Side::Downstream && is_late && back.cause == Cause::Timeout => {
            Failure::downstream(Stage::Request, Cause::Timeout)
        }
        _ => back,
    }
}

impl Path<'_> {
    /// Tells balancer and breaker how the attempt went that began then. The account knows the status, if there was one.
    pub(super) fn judge(&self, attempt: &Attempt, began: u64, failure: Option<&Failure>) {
        let now = self.shard.clock.now();
        self.span_ends(failure.copied());
        match failure {
            // What it looks like was this proxy's doing.
            Some(_) if self.account.was_idle.get() => {}
            Some(_) if self.hedge_has_won() => attempt.was_outrun(now.saturating_sub(began), now),
            Some(failure) if failure.side == Side::Upstream => {
                attempt.failed(self.blamed_for(attempt, failure, now.saturating_sub(began)), now);
            }
            _ if attempt.has_answered() => {
                let first_byte_at = self.account.first_byte_at.get();
                let latency_ns = first_byte_at.saturating_sub(began);
                let verdict = said(self.account, attempt, failure.is_none(), latency_ns);
                attempt.answered(latency_ns, verdict, now);
            }
            _ => {}
        }
    }

    /// Whether the time that ends an attempt is what its caller asked for, and less than others have.
    fn is_hurried(&self) -> bool {
        self.retry.is_hurried && !self.is_hedged_in_place()
    }

    fn blamed_for(&self, attempt: &Attempt, failure: &Failure, after_ns: u64) -> Verdict {
        match failure.cause {
            Cause::GoingAway | Cause::StreamRefused => Verdict::Nothing,
            // It may be that the endpoint is gone: then there will be no new connection to it.
            _ if failure.is_end_of_connection() && attempt.reused.get() && !attempt.has_answered() => {
                Verdict::Nothing
            }
            Cause::Timeout
                // What came at the last moment has not gone on.
                if (!attempt.has_answered() || failure.stage == Stage::Response)
                    && (self.is_hurried() || self.shard.clock.now() >= self.deadline)
                    && after_ns < ns(self.service.spec.timeouts.response) =>
            {
                Verdict::OutOfTime { after_ns }
            }
            _ if attempt.has_answered() => Verdict::Failure,
            _ => Verdict::Unanswered,
        }
    }
}

fn said(account: &Account, attempt: &Attempt, ended_well: bool, latency_ns: u64) -> Verdict {
    let good = Verdict::Good { latency_ns };
    let too_many = |is: bool| if is && attempt.counts_too_many() { Verdict::Failure } else { good };
    let (status, code) = match account.withheld() {
        Some((status, code)) => (status, code),
        None => (account.status.get(), account.grpc_status()),
    };
    if let Some(status) = code {
        return match status.index() {
            // Who did not hear the end does not know.
            _ if status == Status::ABSENT && !ended_well => Verdict::Nothing,
            2 | 13 | 14 | 15 => Verdict::Failure,
            _ if status == Status::ABSENT => Verdict::Failure,
            4 => Verdict::OutOfTime { after_ns: latency_ns },
            8 => too_many(true),
            _ => good,
        };
    }
    match status {
        0 if !ended_well => Verdict::Nothing,
        501 => good,
        500.. => Verdict::Failure,
        status => too_many(status == 429),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_blamed_at_the_deadline_does_not_depend_on_which_way_sees_it_first() {
        let there = |side, cause| Err(Failure { stage: Stage::Request, side, cause });
        let back = Failure::upstream(Stage::Response, Cause::Timeout);
        let caller = Failure::downstream(Stage::Request, Cause::Timeout);
        // The caller was waited for: the way there saw it first, or was ended when the way back had.
        assert_eq!(of_both(&there(Side::Downstream, Cause::Timeout), back, false, true), caller);
        assert_eq!(of_both(&there(Side::Downstream, Cause::Closed), back, true, true), caller);
        // The service was waited for: it took no more of the request, or it is not the deadline that ended its time.
        assert_eq!(of_both(&there(Side::Upstream, Cause::Timeout), back, true, true), back);
        assert_eq!(of_both(&there(Side::Downstream, Cause::Closed), back, true, false), back);
        assert_eq!(of_both(&Ok(()), back, false, false), back);
        let reset = Failure::upstream(Stage::Response, Cause::Reset);
        assert_eq!(of_both(&there(Side::Downstream, Cause::Closed), reset, true, true), reset);
    }
}
