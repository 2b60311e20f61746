//! The memory of an endpoint that could not be connected to: it is passed over for a second, then for twice as long after
//! each further trial that fails, up to half a minute. One attempt at a time tries whether it is back; the first
//! connection forgets all. Pure: time is an argument.
//!
//! Refuses to judge answers: an endpoint that takes connections is never away, whatever it says.

/// What is remembered of one endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Away {
    /// It is passed over until then.
    until_ns: u64,
    /// Trials that failed in a row, the first included; 0 when all is well.
    refusals: u8,
    /// Whether an attempt is finding out.
    on_trial: bool,
}

impl Away {
    /// How long it is passed over at first.
    const FIRST_NS: u64 = 1_000_000_000;
    /// And at most.
    const LONGEST_NS: u64 = 30_000_000_000;

    pub(super) fn is_away(&self, now_ns: u64) -> bool {
        now_ns < self.until_ns
    }

    /// An attempt begins: if the time is over, it finds out for all others, which go on passing the endpoint over.
    /// Until when they do.
    pub(super) fn started(&mut self, now_ns: u64) -> u64 {
        if self.refusals > 0 && !self.is_away(now_ns) {
            self.on_trial = true;
            self.until_ns = now_ns.saturating_add(self.length_ns());
        }
        self.until_ns
    }

    /// No connection could be made. Of many attempts that began before the first of them failed, one counts. Until when
    /// it is passed over.
    pub(super) fn refused(&mut self, now_ns: u64) -> u64 {
        if self.refusals == 0 || self.on_trial {
            self.refusals = self.refusals.saturating_add(1);
            self.on_trial = false;
            self.until_ns = now_ns.saturating_add(self.length_ns());
        }
        self.until_ns
    }

    /// A connection was made.
    pub(super) fn reached(&mut self) {
        *self = Self::default();
    }

    fn length_ns(&self) -> u64 {
        let doublings = u32::from(self.refusals.saturating_sub(1)).min(16);
        (Self::FIRST_NS << doublings).min(Self::LONGEST_NS)
    }
}
