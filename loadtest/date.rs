//! Calendar dates in UTC, for the Date field and for the name of a results folder.
//!
//! Called by `origin` and `compare`. It refuses time zones.

use std::time::{SystemTime, UNIX_EPOCH};

struct Civil {
    year: u64,
    month: usize,
    day: u64,
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (IMF-fixdate, RFC 9110 5.6.7).
pub(crate) fn http(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let c = civil(time);
    let (weekday, month) = (DAYS[c.weekday], MONTHS[c.month - 1]);
    format!("{weekday}, {:02} {month} {} {:02}:{:02}:{:02} GMT", c.day, c.year, c.hour, c.minute, c.second)
}

/// `1994-11-06T0849`, which sorts and is a legal file name.
pub(crate) fn compact(time: SystemTime) -> String {
    let c = civil(time);
    format!("{}-{:02}-{:02}T{:02}{:02}", c.year, c.month, c.day, c.hour, c.minute)
}

fn civil(time: SystemTime) -> Civil {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    Civil {
        year,
        month,
        day: left + 1,
        weekday: usize::try_from((days + 4) % 7).unwrap_or(0), // 1970-01-01 was a Thursday
        hour: rest / 3600,
        minute: rest / 60 % 60,
        second: rest % 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(http(at(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http(at(0)), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http(at(951_782_400)), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(compact(at(1_767_225_599)), "2025-12-31T2359");
    }
}
