//! Counts what comes in on an HTTP/2 connection, frame by frame, against budgets that no honest peer comes near. The h2
//! crate bounds what an attack can make it keep; this bounds what it can make us do, and says which attack it was.
//!
//! A budget is earned back by what is of use: a request (HEADERS that end) and octets of DATA; and by time, as one request a
//! second. So a long-lived connection never runs out, be it busy or one that is only pinged while a tunnel on it is silent,
//! and one that makes noise does. Looks at frame headers alone; refuses to judge
//! whether a frame is legal.

/// Which budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flood {
    /// PING, and answers to pings that were never sent (CVE-2019-9512).
    Ping,
    /// SETTINGS, and their acknowledgements (CVE-2019-9515).
    Settings,
    /// PRIORITY (CVE-2019-9513).
    Priority,
    /// RST_STREAM (CVE-2023-44487).
    Reset,
    /// CONTINUATION (CVE-2024-27316 and its like).
    Continuation,
    /// DATA without octets that ends nothing (CVE-2019-9518).
    EmptyData,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// Frames of unknown type, or that a peer should never send so many of.
    Unknown,
}

impl Flood {
    /// Every one, for tables.
    pub const ALL: [Self; 8] = [
        Self::Ping,
        Self::Settings,
        Self::Priority,
        Self::Reset,
        Self::Continuation,
        Self::EmptyData,
        Self::WindowUpdate,
        Self::Unknown,
    ];

    /// Frames that may come without anything of use, and how many a request earns back.
    const fn budget(self) -> (u32, u32) {
        match self {
            Self::Ping => (200, 4),
            Self::Settings => (50, 1),
            Self::Priority => (500, 8),
            // One request, one reset: rapid reset earns nothing, only an exchange that was answered does.
            Self::Reset => (200, 0),
            Self::Continuation => (32, 2),
            Self::EmptyData => (200, 4),
            Self::WindowUpdate => (2_000, 64),
            Self::Unknown => (200, 1),
        }
    }
}

/// Follows the frames of one connection in one direction.
#[derive(Debug)]
pub struct Watch {
    /// Octets of the preface still to come.
    preface: usize,
    head: [u8; 9],
    head_len: usize,
    /// Octets of the present frame's payload still to come.
    payload: usize,
    left: [u32; Flood::ALL.len()],
    /// When DATA was seen this many octets ago, something is earned back.
    data: usize,
    /// When octets were sent to the peer this many octets ago, it has earned a WINDOW_UPDATE.
    sent: u64,
    /// A field block has begun and not ended.
    in_block: bool,
    /// Field blocks that have ended.
    blocks: u64,
    /// Whether the first frame has come, and was SETTINGS as it must be (RFC 9113 §3.4).
    began: Option<bool>,
    /// That frame is whole.
    first_whole: bool,
    /// Our settings were acknowledged.
    acknowledged: bool,
    /// Answers to our pings that may come.
    pings: u32,
    /// Resets that the peer's HEADERS earn: a service's are answers, a caller's are not.
    resets_earned: u32,
    /// Until when time has earned something.
    earned_until: u64,
    /// Whether a budget may be less than whole: where none is, there is nothing to be earned back.
    spent: bool,
}

impl Watch {
    const PREFACE: usize = 24;
    /// Octets of DATA that earn as much as a request.
    const DATA_EARNS: usize = 16 * 1024;
    /// Octets sent that earn a WINDOW_UPDATE: less than any peer waits for.
    const SENT_EARNS: u64 = 512;

    /// Of a caller: begins with the preface.
    pub fn of_caller() -> Self {
        Self { preface: Self::PREFACE, resets_earned: 0, ..Self::of_service() }
    }

    /// Of a service: begins with a frame.
    pub fn of_service() -> Self {
        Self {
            preface: 0,
            head: [0; 9],
            head_len: 0,
            payload: 0,
            left: Flood::ALL.map(|flood| flood.budget().0),
            data: 0,
            sent: 0,
            in_block: false,
            blocks: 0,
            began: None,
            first_whole: false,
            acknowledged: false,
            pings: 0,
            resets_earned: 1,
            earned_until: 0,
            spent: false,
        }
    }

    /// The number of the field block that has begun and is not whole, if there is one: the peer owes us its end.
    pub fn owed_block(&self) -> Option<u64> {
        let in_part = self.payload > 0 && matches!(self.head[3], 1 | 9);
        (self.in_block || in_part).then_some(self.blocks)
    }

    /// Whether the peer began with another frame than SETTINGS, which h2 lets pass.
    pub fn began_wrongly(&self) -> bool {
        self.began == Some(false)
    }

    /// Whether the peer has acknowledged our settings.
    pub fn has_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// One more ping was sent, whose answer may come.
    pub fn pinged(&mut self) {
        self.pings = self.pings.saturating_add(1);
    }

    /// Whether the first frame is there, which must be SETTINGS (RFC 9113 §3.4): what a peer offers is known from then on.
    pub fn has_begun(&self) -> bool {
        self.first_whole
    }

    /// It is now so late on the shard's clock.
    pub fn at(&mut self, now: u64) {
        const SECOND: u64 = 1_000_000_000;
        // Enough to earn every budget back.
        const SECONDS_MAX: u64 = 64;
        let seconds = now.saturating_sub(self.earned_until) / SECOND;
        if seconds > 0 {
            self.earned_until = now;
            (0..seconds.min(SECONDS_MAX)).for_each(|_| self.earn());
        }
    }

    /// Follows `bytes`.
    ///
    /// # Errors
    /// The budget that is used up.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.payload > 0 {
                let n = self.payload.min(bytes.len());
                self.payload -= n;
                bytes = &bytes[n..];
                self.first_whole |= self.payload == 0;
                continue;
            }
            if self.head_len == 0
                && let Some((head, rest)) = bytes.split_first_chunk()
            {
                // All of it at once, as nearly always.
                self.head = *head;
                bytes = rest;
                self.frame()?;
                self.first_whole |= self.payload == 0;
                continue;
            }
            let n = (9 - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + n].copy_from_slice(&bytes[..n]);
            self.head_len += n;
            bytes = &bytes[n..];
            if self.head_len == 9 {
                self.head_len = 0;
                self.frame()?;
                self.first_whole |= self.payload == 0;
            }
        }
        Ok(())
    }

    /// A frame's head is whole.
    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.payload = length;
        let end_stream = flags & 1 != 0;
        let end_headers = flags & 4 != 0;
        self.began.get_or_insert(kind == 4 && flags & 1 == 0);
        match kind {
            0 if length == 0 && !end_stream => self.spend(Flood::EmptyData),
            0 => {
                self.data += length;
                if self.data >= Self::DATA_EARNS {
                    self.data = 0;
                    self.earn();
                }
                Ok(())
            }
            1 => {
                self.in_block = !end_headers;
                if end_headers {
                    self.blocks += 1;
                    self.earn();
                }
                Ok(())
            }
            2 => self.spend(Flood::Priority),
            3 => self.spend(Flood::Reset),
            4 if flags & 1 != 0 && !std::mem::replace(&mut self.acknowledged, true) => Ok(()),
            4 => self.spend(Flood::Settings),
            6 if flags & 1 != 0 && self.pings > 0 => {
                self.pings -= 1;
                Ok(())
            }
            6 => self.spend(Flood::Ping),
            8 => self.spend(Flood::WindowUpdate),
            9 => {
                self.in_block = !end_headers;
                self.blocks += u64::from(end_headers);
                self.spend(Flood::Continuation)
            }
            5 | 7 => Ok(()),
            _ => self.spend(Flood::Unknown),
        }
    }

    /// So many octets were sent to the peer, which gives back their window in updates of any size: of a stream and of the
    /// connection, for each piece that its application reads.
    pub fn sent(&mut self, octets: u64) {
        self.sent += octets;
        let earned = self.sent / Self::SENT_EARNS;
        self.sent %= Self::SENT_EARNS;
        let left = &mut self.left[Flood::WindowUpdate as usize];
        *left = (*left)
            .saturating_add(u32::try_from(earned).unwrap_or(u32::MAX))
            .min(Flood::WindowUpdate.budget().0);
    }

    /// A request was answered: what it took in resets of its own kind is forgiven.
    pub fn answered(&mut self) {
        let reset = &mut self.left[Flood::Reset as usize];
        *reset = (*reset + 1).min(Flood::Reset.budget().0);
    }

    fn spend(&mut self, flood: Flood) -> Result<(), Flood> {
        let left = &mut self.left[flood as usize];
        *left = left.checked_sub(1).ok_or(flood)?;
        self.spent = true;
        Ok(())
    }

    fn earn(&mut self) {
        if !self.spent {
            return;
        }
        self.spent = false;
        for flood in Flood::ALL {
            let (most, earned) = flood.budget();
            let earned = if flood == Flood::Reset { self.resets_earned } else { earned };
            let left = &mut self.left[flood as usize];
            *left = (*left + earned).min(most);
            self.spent |= *left < most;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0x40, 0];

    #[test]
    fn requests_that_are_reset_end_the_connection_unless_others_are_answered() {
        // A request that is whole, and its reset.
        const BOTH: [u8; 23] = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x82, 0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
        let caller = || {
            let mut watch = Watch::of_caller();
            assert_eq!(watch.feed(&[0; Watch::PREFACE]), Ok(()));
            watch
        };
        let mut watch = caller();
        let ended = (0..1_000).map(|_| watch.feed(&BOTH)).enumerate().find(|(_, fed)| fed.is_err());
        assert_eq!(ended, Some((200, Err(Flood::Reset))));
        let mut watch = caller();
        for _ in 0..10_000 {
            watch.answered();
            assert_eq!(watch.feed(&BOTH), Ok(()));
        }
        // A service that resets what it has answered earns it by that.
        let mut watch = Watch::of_service();
        assert!((0..10_000).all(|_| watch.feed(&BOTH).is_ok()));
    }

    #[test]
    fn a_ping_now_and_then_is_no_flood_however_long_it_goes_on() {
        const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let mut watch = Watch::of_service();
        for second in 0..10_000 {
            watch.at(second * 1_000_000_000);
            watch.feed(&PING).unwrap();
            watch.feed(&PING).unwrap();
        }
        let mut flood = Watch::of_service();
        let taken = (0..10_000_u64).take_while(|n| {
            flood.at(n * 1_000_000);
            flood.feed(&PING).is_ok()
        });
        let taken = taken.count();
        assert!((200..220).contains(&taken), "a thousand a second are: {taken}");
    }

    #[test]
    fn where_octets_are_cut_between_reads_makes_no_difference() {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let mut octets = Vec::new();
            for _ in 0..rng.usize(1..60) {
                let (kind, length) = (rng.u8(0..11), rng.usize(0..40));
                octets.extend([0, 0, u8::try_from(length).unwrap(), kind, rng.u8(..), 0, 0, 0, 1]);
                octets.extend(std::iter::repeat_n(0, length));
            }
            let mut whole = Watch::of_service();
            let result = whole.feed(&octets);
            let mut cut = Watch::of_service();
            let mut rest = &octets[..];
            let mut result_cut = Ok(());
            while !rest.is_empty() && result_cut.is_ok() {
                let (now, then) = rest.split_at(rng.usize(1..=rest.len().min(12)));
                result_cut = cut.feed(now);
                rest = then;
            }
            assert_eq!(result, result_cut, "seed {seed}");
            // Of a flood the octets behind it are not looked at.
            if result.is_ok() {
                assert_eq!(format!("{whole:?}"), format!("{cut:?}"), "seed {seed}");
            }
        }
    }

    #[test]
    fn what_was_spent_is_earned_back_by_requests_and_no_more() {
        const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        const HEADERS: [u8; 9] = [0, 0, 0, 1, 5, 0, 0, 0, 1];
        let mut watch = Watch::of_service();
        // However many requests there were before: what is whole stays as it is.
        (0..1000).for_each(|_| watch.feed(&HEADERS).unwrap());
        (0..200).for_each(|_| watch.feed(&PING).unwrap());
        watch.feed(&HEADERS).unwrap();
        (0..4).for_each(|_| watch.feed(&PING).unwrap());
        assert_eq!(watch.feed(&PING), Err(Flood::Ping));
    }

    #[test]
    fn window_updates_are_earned_by_what_was_sent() {
        let mut watch = Watch::of_service();
        // Half a GiB, of which the peer gives back each 16 KiB for the stream and for the connection.
        for _ in 0..32 * 1024 {
            watch.sent(16 * 1024);
            watch.feed(&UPDATE).unwrap();
            watch.feed(&UPDATE).unwrap();
        }
        let mut idle = Watch::of_service();
        let taken = (0..10_000).take_while(|_| idle.feed(&UPDATE).is_ok()).count();
        assert_eq!(taken, 2_000, "without anything sent they are noise");
    }
}
