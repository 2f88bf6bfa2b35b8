//! Lines of a log that would come as often as something fails.

use std::time::{Duration, Instant};

/// Says when a line is due that must not come more often than once in a while.
#[derive(Debug)]
pub struct Seldom {
    pause: Duration,
    /// When it was due last.
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// At most one line in each `pause`.
    pub const fn new(pause: Duration) -> Self {
        Self { pause, last: None, left_out: 0 }
    }

    /// Whether the line is due at `now`: then how many were left out since the one before.
    pub fn is_due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < self.pause) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_once_in_a_while_and_counts_those_that_were_left_out() {
        let (began, pause) = (Instant::now(), Duration::from_secs(10));
        let mut seldom = Seldom::new(pause);
        assert_eq!(seldom.is_due(began), Some(0));
        assert_eq!(seldom.is_due(began), None);
        assert_eq!(seldom.is_due(began + pause / 2), None);
        assert_eq!(seldom.is_due(began + pause), Some(2));
        assert_eq!(seldom.is_due(began + pause), None);
        assert_eq!(seldom.is_due(began + pause * 3), Some(1));
    }
}
