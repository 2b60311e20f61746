//! Slow start: an endpoint that is new, or came back, gets a part of its weight that grows to the whole.
//!
//! `factor = max(weight_percent_min, (elapsed / window) ^ (1 / aggression))`, as Envoy has it. One that is new in a service
//! that this shard used before is a new one; of a service that is used for the first time none is, and where all are new at
//! once none is, because to give all of them less changes nothing. Pure: time is an argument.

use super::spec::SlowStart;

/// What is rising of one service.
#[derive(Debug, Clone)]
pub(super) struct Rise {
    window_ns: u64,
    exponent: f32,
    factor_min: f32,
    /// By endpoint: since when; [`Rise::GROWN`] for one that has its whole part.
    since_ns: Box<[u64]>,
    /// When the last one will have grown up.
    until_ns: u64,
}

impl Rise {
    const GROWN: u64 = u64::MAX;

    pub(super) fn new(declared: &SlowStart, endpoints: usize) -> Self {
        Self {
            window_ns: u64::try_from(declared.window.as_nanos()).unwrap_or(u64::MAX).max(1),
            exponent: 100.0 / f32::from(declared.aggression.max(1)),
            factor_min: f32::from(declared.weight_percent_min) / 100.0,
            since_ns: vec![Self::GROWN; endpoints].into(),
            until_ns: 0,
        }
    }

    /// Whether there is anybody who does not have his whole part.
    pub(super) fn is_under_way(&self, now_ns: u64) -> bool {
        now_ns < self.until_ns
    }

    /// An endpoint begins.
    pub(super) fn begin(&mut self, endpoint: usize, now_ns: u64) {
        if let Some(since_ns) = self.since_ns.get_mut(endpoint) {
            *since_ns = now_ns;
            self.until_ns = self.until_ns.max(now_ns.saturating_add(self.window_ns));
        }
    }

    /// The part of its weight that an endpoint has now, above 0 and at most 1.
    pub(super) fn factor(&self, endpoint: usize, now_ns: u64) -> f32 {
        match self.since_ns.get(endpoint) {
            Some(&since_ns) if since_ns != Self::GROWN => {
                let elapsed = now_ns.saturating_sub(since_ns) as f32 / self.window_ns as f32;
                if elapsed >= 1.0 { 1.0 } else { elapsed.powf(self.exponent).max(self.factor_min) }
            }
            _ => 1.0,
        }
    }

    /// Takes over who was rising before; `places` as `spec::former_places` gives them. Who is new begins.
    pub(super) fn carry_over(&mut self, old: Option<&Self>, places: &[Option<usize>], now_ns: u64) {
        if places.iter().all(Option::is_none) {
            return;
        }
        for (endpoint, place) in places.iter().enumerate() {
            match place {
                None => self.begin(endpoint, now_ns),
                Some(place) => {
                    let since_ns = old.and_then(|old| old.since_ns.get(*place));
                    if let Some(&since_ns) = since_ns.filter(|since_ns| **since_ns != Self::GROWN) {
                        self.begin(endpoint, since_ns);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "rise_test.rs"]
mod tests;
