//! Distributed tracing: what a caller says of the trace that its request belongs to, what the service is told of it, and spans as a
//! collector takes them. Pure; called by `proxy`, which knows the exchange, and by `telemetry::spans`, which keeps what is written.
//!
//! Whoever decided first decides for all: a caller's decision is honoured, and where there is none it is made here, once, for the whole
//! chain. Refuses to repair what a caller says: a context that is not exactly as its specification has it is none.

pub mod propagation;
pub mod span;

use crate::route::percent::Percent;
use propagation::{Incoming, SpanId, TraceId, TraceParent};

/// What shards need to know of `[tracing]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How many of the requests are recorded for which nobody decided before.
    pub sample: Percent,
    /// Which formats are read and written.
    pub formats: Formats,
}

/// Ways to write a context down. W3C's is always among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// Zipkin's as well: `b3`, and the fields that begin with `x-b3-`.
    pub b3: bool,
}

/// What was decided of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The exchange's own: the trace that it belongs to, the id of its span, whether it is recorded.
    pub context: TraceParent,
    /// The caller's span.
    pub parent: Option<SpanId>,
}

impl Begun {
    /// Decides, with evenly distributed numbers.
    pub fn new(incoming: &Incoming, sample: Percent, mut random: impl FnMut() -> u64) -> Self {
        let sampled = incoming.decided.unwrap_or_else(|| sample.means(random()));
        let debug = incoming.debug && sampled;
        let span = SpanId::random(&mut random);
        match incoming.parent {
            Some(TraceParent { trace, span: parent, random: is_random, .. }) => {
                let context = TraceParent { trace, span, sampled, random: is_random, debug };
                Self { context, parent: Some(parent) }
            }
            None => {
                let trace = TraceId::random(&mut random);
                Self { context: TraceParent { trace, span, sampled, random: true, debug }, parent: None }
            }
        }
    }
}

/// What is to be written in place of what the caller said of a trace that is not recorded, so that all who come after agree on that; and
/// whether its `tracestate` goes. `None`: it goes on as it came.
pub fn unsampled(
    incoming: &Incoming,
    formats: Formats,
    mut random: impl FnMut() -> u64,
) -> Option<(TraceParent, bool)> {
    match incoming.parent {
        Some(_) if incoming.is_w3c && !formats.b3 => None,
        Some(parent) => Some((TraceParent { sampled: false, debug: false, ..parent }, !incoming.is_w3c)),
        None => {
            let (trace, span) = (TraceId::random(&mut random), SpanId::random(&mut random));
            Some((TraceParent { trace, span, sampled: false, random: true, debug: false }, true))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> impl FnMut() -> u64 {
        let mut rng = fastrand::Rng::with_seed(7);
        move || rng.u64(..)
    }

    #[test]
    fn who_decided_before_decides_and_else_the_percentage_does() {
        let said = |value: &[u8]| {
            let mut fields = propagation::Fields::default();
            fields.see(b"traceparent", value);
            fields.read(Formats { b3: false })
        };
        let parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let begun = Begun::new(&said(parent), Percent::new(0.0).unwrap(), numbers());
        assert!(begun.context.sampled && !begun.context.random);
        assert_eq!(begun.context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(begun.parent.unwrap().to_string(), "b7ad6b7169203331");
        assert_ne!(begun.context.span, begun.parent.unwrap());

        let no = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert!(!Begun::new(&said(no), Percent::ALL, numbers()).context.sampled);

        let fresh = Begun::new(&Incoming::default(), Percent::ALL, numbers());
        assert!(fresh.context.sampled && fresh.context.random && fresh.parent.is_none());
        let fresh = Begun::new(&Incoming::default(), Percent::new(0.0).unwrap(), numbers());
        assert!(!fresh.context.sampled && fresh.context.random);
    }

    #[test]
    fn what_is_not_recorded_is_passed_on_so_that_all_agree() {
        let said = |name: &str, value: &[u8], b3| {
            let mut fields = propagation::Fields::default();
            fields.see(name.as_bytes(), value);
            unsampled(&fields.read(Formats { b3 }), Formats { b3 }, numbers())
        };
        let w3c = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(said("traceparent", w3c, false), None, "as it came");
        let (context, drops) = said("traceparent", w3c, true).unwrap();
        assert_eq!((context.span.to_string(), drops), ("b7ad6b7169203331".into(), false));
        let (context, drops) =
            said("b3", b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", true).unwrap();
        assert_eq!((context.span.to_string(), context.flags(), drops), ("b7ad6b7169203331".into(), 0, true));
        let (context, drops) = said("traceparent", b"nonsense", false).unwrap();
        assert_eq!((context.flags(), drops), (2, true), "a trace of its own");
    }

    #[test]
    fn an_id_is_never_all_zeros() {
        let mut given = [0, 0, 0, 5].into_iter();
        assert_eq!(SpanId::random(&mut || given.next().unwrap()).to_string(), "0000000000000005");
        let mut given = [0, 0, 3, 0].into_iter();
        assert_eq!(
            TraceId::random(&mut || given.next().unwrap()).to_string(),
            "00000000000000030000000000000000"
        );
    }
}
