//! Ids of events: ordered by time, and no two alike.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    time::{SystemTime, UNIX_EPOCH},
};

/// Crockford's base 32, in which ids order as their numbers do.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of an id: 128 bits.
pub(crate) const ID_CHARS: usize = 26;
/// Bytes of a time: `2026-11-28T09:30:10.123Z`.
const TIME_BYTES: usize = 24;

/// What names an event, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub ms: u64,
    /// What tells events of one millisecond apart, the same each time that the same event is said: 80 bits.
    pub distinct: u128,
}

impl Stamp {
    /// The id.
    pub(crate) fn id(self) -> [u8; ID_CHARS] {
        let mut value =
            u128::from(self.ms & 0xFFFF_FFFF_FFFF) << 80 | self.distinct & ((1 << 80) - 1);
        let mut text = [0; ID_CHARS];
        for place in text.iter_mut().rev() {
            *place = ALPHABET[usize::from((value & 31) as u8)];
            value >>= 5;
        }
        text
    }
}

/// The milliseconds since 1970 that an id begins with; nothing if it is none.
pub(crate) fn time_of_id(id: &str) -> Option<u64> {
    if id.len() != ID_CHARS {
        return None;
    }
    let mut value: u128 = 0;
    for byte in id.bytes() {
        let digit = ALPHABET.iter().position(|&letter| letter == byte)? as u128;
        value = value << 5 | digit;
    }
    u64::try_from(value >> 80).ok()
}

/// Stamps of a process: each is larger than the one before.
#[derive(Debug)]
pub(crate) struct Stamps {
    last_ms: u64,
    /// Counts over the life of the process.
    count: u32,
    /// Tells processes apart.
    process: u64,
    /// The second that was last printed, and how.
    printed: (u64, [u8; TIME_BYTES]),
}

impl Stamps {
    pub(crate) fn new() -> Self {
        // The standard library's hasher is keyed by the system's randomness, anew for each thread and use.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        let process = hasher.finish() & 0xFFFF_FFFF_FFFF;
        Self { last_ms: 0, count: 0, process, printed: (u64::MAX, [0; TIME_BYTES]) }
    }

    /// The next one: now, or as late as the last if the clock was set back.
    pub(crate) fn next(&mut self) -> Stamp {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_ms = self.last_ms.max(now_ms);
        self.count = self.count.wrapping_add(1);
        if self.count == 0 {
            self.last_ms += 1; // Or else the next would sort before this one.
        }
        let distinct = u128::from(self.count) << 48 | u128::from(self.process);
        Stamp { ms: self.last_ms, distinct }
    }

    /// A time as text, which costs little as long as the second is the same.
    pub(crate) fn text(&mut self, ms: u64) -> [u8; TIME_BYTES] {
        let (second, part) = (ms / 1_000, ms % 1_000);
        if self.printed.0 != second {
            self.printed = (second, time_text(second));
        }
        let mut text = self.printed.1;
        for (place, digit) in [(20, part / 100), (21, part / 10 % 10), (22, part % 10)] {
            text[place] = digit_of(digit);
        }
        text
    }
}

fn digit_of(digit: u64) -> u8 {
    b"0123456789"[usize::try_from(digit % 10).unwrap_or_default()]
}

/// A second since 1970 as RFC 3339 has it, with `.000Z` behind it. By the days of the Gregorian calendar, counted from
/// 1 March 0000 so that the leap day is the last of its year.
fn time_text(second: u64) -> [u8; TIME_BYTES] {
    let (days, of_day) = (second / 86_400 + 719_468, second % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = (era * 400 + year_of_era + u64::from(month <= 2)).min(9_999);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, digits: usize, mut value: u64| {
        for place in (at..at + digits).rev() {
            text[place] = digit_of(value);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, of_day / 3_600);
    put(14, 2, of_day / 60 % 60);
    put(17, 2, of_day % 60);
    text
}

/// A time as the log has it, from milliseconds since 1970.
pub fn time(ms: u64) -> String {
    String::from_utf8_lossy(&Stamps::new().text(ms)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_858_210_123, "2026-11-28T09:30:10.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn ids_rise_and_carry_their_time() {
        let mut stamps = Stamps::new();
        let mut last = String::new();
        for _ in 0..10_000 {
            let stamp = stamps.next();
            let id = String::from_utf8(stamp.id().to_vec()).unwrap();
            assert!(id > last, "{id} after {last}");
            assert_eq!(time_of_id(&id), Some(stamp.ms));
            last = id;
        }
        assert_eq!(time_of_id("not an id at all, but long"), None);
    }

    #[test]
    fn ids_rise_when_the_count_begins_anew() {
        let mut stamps = Stamps::new();
        stamps.count = u32::MAX - 1;
        let before = stamps.next().id();
        assert!(stamps.next().id() > before);
    }
}
