//! The table that the h2 crate's encoder keeps for what it has said on a connection (RFC 7541 §2.3.2): not used, whatever the peer
//! offers, by changing what h2 reads of the peer's first SETTINGS.
//!
//! h2 puts all but a few fields into it. A value that is another one in each head (a trace, a request's number) then fills it with
//! one name, and for the next such value h2 compares with all of those: some seventy where fields are short. That was a tenth
//! of the CPU of an exchange. Smaller tables are no remedy: heads with more fields than they hold are entered anew each time. Without
//! one a field costs what its octets cost, as in the proxies that keep none. Refuses to touch what comes later.

/// The identifier of SETTINGS_HEADER_TABLE_SIZE (RFC 9113 §6.5.2).
const TABLE_SIZE: [u8; 2] = [0, 1];
/// A setting: identifier and value.
const SETTING: usize = 6;
const HEAD: usize = 9;
/// SETTINGS that are longer stay as they are: nobody has so many.
const LENGTH_MAX: usize = 1024;

/// Has the SETTINGS frame at `start` say that there is no table. `octets` came from the peer just now; where the frame is not all
/// there, or is none that sets anything, they stay as they are, which is right, too.
pub fn refuse(octets: &mut Vec<u8>, start: usize) {
    let Some([a, b, c, 4, flags, ..]) = octets.get(start..) else { return };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    let (payload, end) = (start + HEAD, start + HEAD + length);
    let acknowledges = flags & 1 != 0;
    if acknowledges || length > LENGTH_MAX || length % SETTING != 0 || octets.len() < end {
        return;
    }
    let mut found = false;
    for setting in octets[payload..end].chunks_exact_mut(SETTING).filter(|setting| setting[..2] == TABLE_SIZE)
    {
        setting[2..].fill(0);
        found = true;
    }
    if !found {
        octets.splice(end..end, TABLE_SIZE.into_iter().chain([0; 4]));
        // LENGTH_MAX and one more have two octets.
        let [.., b, c] = (length + SETTING).to_be_bytes();
        octets[start + 1..start + 3].copy_from_slice(&[b, c]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: u8, payload: &[u8]) -> Vec<u8> {
        let [.., b, c] = payload.len().to_be_bytes();
        let mut frame = vec![0, b, c, 4, flags, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame
    }

    fn refused(before: &[u8], octets: &[u8], behind: &[u8]) -> Vec<u8> {
        let mut all = [before, octets, behind].concat();
        refuse(&mut all, before.len());
        assert!(all.starts_with(before) && all.ends_with(behind), "{all:?}");
        all[before.len()..all.len() - behind.len()].to_vec()
    }

    #[test]
    fn settings_say_that_there_is_no_table_wherever_they_stand() {
        const NONE: [u8; 6] = [0, 1, 0, 0, 0, 0];
        const STREAMS: [u8; 6] = [0, 3, 0, 0, 0, 100];
        const OFFERED: [u8; 6] = [0, 1, 0, 0, 16, 0];
        for before in [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            for behind in [&b""[..], &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0]] {
                let refused = |payload: &[u8]| refused(before, &settings(0, payload), behind);
                assert_eq!(refused(&[]), settings(0, &NONE));
                assert_eq!(refused(&STREAMS), settings(0, &[STREAMS, NONE].concat()));
                assert_eq!(refused(&OFFERED), settings(0, &NONE));
                assert_eq!(refused(&NONE), settings(0, &NONE));
                // The last one counts.
                let twice = [NONE, STREAMS, OFFERED].concat();
                assert_eq!(refused(&twice), settings(0, &[NONE, STREAMS, NONE].concat()));
                let most = STREAMS.repeat(LENGTH_MAX / SETTING);
                assert_eq!(refused(&most), settings(0, &[&most[..], &NONE].concat()));
            }
        }
    }

    #[test]
    fn what_is_no_whole_frame_of_settings_stays_as_it_is() {
        let whole = settings(0, &[0, 3, 0, 0, 0, 100]);
        let cut = (0..whole.len()).map(|n| whole[..n].to_vec());
        let acknowledged = settings(1, &[]);
        let ping = vec![0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let odd = settings(0, &[0, 1, 0, 0, 16]);
        let many = settings(0, &[0, 3, 0, 0, 0, 100].repeat(LENGTH_MAX / SETTING + 1));
        for octets in cut.chain([acknowledged, ping, odd, many]) {
            let mut after = octets.clone();
            refuse(&mut after, 0);
            assert_eq!(after, octets);
            refuse(&mut after, octets.len() + 1);
            assert_eq!(after, octets);
        }
    }
}
