//! The right to run what may run only once. It runs out by itself, on this server's own clock.

use std::time::Duration;

/// Until when this server may run instances with a unique key, in microseconds since its start.
///
/// It is counted from the last moment at which the active master was heard. What is heard after it ran out does not
/// prolong it: this process may have been stopped meanwhile, and then reads what was said long ago.
#[derive(Debug)]
pub(crate) struct Lease {
    span: u64,
    until: u64,
}

impl Lease {
    /// None yet.
    pub(crate) fn new(span: Duration) -> Self {
        Self { span: u64::try_from(span.as_micros()).unwrap_or(u64::MAX), until: 0 }
    }
    /// A master has welcomed this server: the lease begins.
    pub(crate) const fn begin(&mut self, now: u64) {
        self.until = now.saturating_add(self.span);
    }
    /// The master that welcomed this server was heard.
    pub(crate) const fn heard(&mut self, now: u64) {
        if !self.is_over(now) {
            self.begin(now);
        }
    }
    pub(crate) const fn is_over(&self, now: u64) -> bool {
        now >= self.until
    }
    /// When it runs out if nothing is heard.
    pub(crate) const fn until(&self) -> u64 {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_lease_begins_with_a_welcome_and_lasts_from_the_last_word() {
        let mut lease = Lease::new(Duration::from_secs(10));
        assert!(lease.is_over(0), "nobody has welcomed this server");
        lease.heard(SECOND);
        assert!(lease.is_over(SECOND));
        lease.begin(2 * SECOND);
        lease.heard(9 * SECOND);
        assert_eq!(lease.until(), 19 * SECOND);
        assert!(!lease.is_over(19 * SECOND - 1) && lease.is_over(19 * SECOND));
    }

    /// The process was stopped for a minute, and what the master said in its first seconds waits to be read.
    #[test]
    fn what_was_said_long_ago_does_not_bring_a_lease_back() {
        let mut lease = Lease::new(Duration::from_secs(10));
        lease.begin(0);
        lease.heard(60 * SECOND);
        assert!(lease.is_over(60 * SECOND));
        lease.begin(61 * SECOND);
        assert!(!lease.is_over(70 * SECOND));
    }
}
