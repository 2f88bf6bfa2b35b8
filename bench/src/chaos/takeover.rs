//! What a master says of its takeover, one line of its log: where the time went.

use std::time::{Duration, SystemTime};

/// One takeover, as the master that made it tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Takeover {
    /// Wall clock of the line, in microseconds since 1970: when the new epoch had been announced.
    pub(crate) at_us: u64,
    pub(crate) epoch: String,
    /// From the last sign of the other master to the decision that it is gone.
    pub(crate) detect_us: u64,
    /// Writing the intent.
    pub(crate) intent_us: u64,
    /// The witness' word.
    pub(crate) claim_us: u64,
    /// Telling every server.
    pub(crate) announce_us: u64,
}

impl Takeover {
    /// Reads a line of the log; nothing if it tells of something else.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let line = without_colours(line);
        let (_, fields) = line.split_once("took over")?;
        let field = |name: &str| {
            let (_, rest) = fields.split_once(&format!(" {name}="))?;
            Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
        };
        let number = |name: &str| field(name)?.parse().ok();
        Some(Self {
            at_us: wall_us(line.split_whitespace().next()?)?,
            epoch: field("epoch")?,
            detect_us: number("detect_us").unwrap_or(0),
            intent_us: number("intent_us").unwrap_or(0),
            claim_us: number("claim_us").unwrap_or(0),
            announce_us: number("announce_us").unwrap_or(0),
        })
    }

    /// What it took from the decision to the announcement.
    pub(crate) const fn steps_us(&self) -> u64 {
        self.intent_us + self.claim_us + self.announce_us
    }
}

/// The wall clock, in microseconds since 1970.
pub(crate) fn wall_now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or(Duration::ZERO).as_micros()).unwrap_or(0)
}

/// Reads `2026-11-20T19:57:07.123456Z`.
fn wall_us(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    // Days from the civil calendar, counted from March so that the leap day comes last.
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for letter in line.chars() {
        match letter {
            '\u{1b}' => inside = true,
            'm' if inside => inside = false,
            _ if inside => {}
            _ => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_tells_where_the_time_went() {
        let line = "2026-11-20T19:57:07.123456Z  INFO greenroom_master::pair: took over epoch=0.12 detect_us=310 \
                    intent_us=1200 claim_us=2400 announce_us=90";
        let takeover = Takeover::read(line).unwrap();
        assert_eq!(takeover.epoch, "0.12");
        assert_eq!((takeover.detect_us, takeover.steps_us()), (310, 3_690));
        assert_eq!(takeover.at_us, 1_795_204_627_123_456);
    }

    #[test]
    fn other_lines_tell_of_no_takeover() {
        assert_eq!(Takeover::read("2026-11-20T19:57:07.1Z  INFO greenroom_master: a link"), None);
        assert_eq!(Takeover::read("took over"), None);
    }

    #[test]
    fn the_clock_of_the_log_is_the_clock_of_the_machine() {
        assert_eq!(wall_us("1970-01-01T00:00:00.000001Z"), Some(1));
        assert_eq!(wall_us("2000-03-01T00:00:00Z"), Some(951_868_800_000_000));
        assert_eq!(wall_us("2024-02-29T12:00:00.5Z"), Some(1_709_208_000_500_000));
        assert!(wall_now_us() > 1_700_000_000_000_000);
    }
}
