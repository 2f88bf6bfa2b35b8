//! The right to run what may run only once. It runs out by itself, on this server's own clock.

use std::time::Duration;

/// Until when this server may run instances with a unique key, in microseconds since its start.
///
/// It is counted from when this server sent what the active master then confirmed: the master counts from when it
/// confirmed it, so that this server stops first, however late the word came. A word that comes after the lease ran out
/// does not prolong it: this process may have been stopped meanwhile, and then reads what was said long ago.
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
    /// A master has welcomed this server, which had answered it at `sent`: the lease begins then.
    pub(crate) fn begin(&mut self, sent: u64) {
        self.until = self.until.max(sent.saturating_add(self.span));
    }
    /// A master confirms what this server had sent at `sent`, as it reads at `now`.
    pub(crate) fn renew(&mut self, sent: u64, now: u64) {
        if !self.is_over(now) {
            self.begin(sent.min(now));
        }
    }
    pub(crate) const fn is_over(&self, now: u64) -> bool {
        now >= self.until
    }
    /// When it runs out if nothing is confirmed.
    pub(crate) const fn until(&self) -> u64 {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_lease_lasts_from_when_that_was_sent_which_the_master_confirmed() {
        let mut lease = Lease::new(Duration::from_secs(10));
        assert!(lease.is_over(0), "nobody has welcomed this server");
        lease.renew(SECOND, SECOND);
        assert!(lease.is_over(SECOND));
        lease.begin(2 * SECOND);
        lease.renew(9 * SECOND, 11 * SECOND);
        assert_eq!(lease.until(), 19 * SECOND);
        lease.renew(4 * SECOND, 12 * SECOND);
        assert_eq!(lease.until(), 19 * SECOND, "an older word takes nothing back");
        assert!(!lease.is_over(19 * SECOND - 1) && lease.is_over(19 * SECOND));
    }

    #[test]
    fn a_master_can_not_confirm_what_was_never_sent() {
        let mut lease = Lease::new(Duration::from_secs(10));
        lease.begin(0);
        lease.renew(u64::MAX, SECOND);
        assert_eq!(lease.until(), 11 * SECOND);
    }

    /// The process was stopped for a minute, and what the master confirmed in its first seconds waits to be read.
    #[test]
    fn what_was_confirmed_long_ago_does_not_bring_a_lease_back() {
        let mut lease = Lease::new(Duration::from_secs(10));
        lease.begin(0);
        lease.renew(59 * SECOND, 60 * SECOND);
        assert!(lease.is_over(60 * SECOND));
        lease.begin(50 * SECOND);
        assert!(
            lease.is_over(60 * SECOND),
            "a welcome that comes late begins a lease that is over"
        );
        lease.begin(61 * SECOND);
        assert!(!lease.is_over(70 * SECOND) && lease.is_over(71 * SECOND));
    }
}
