//! How often somebody may try to check in.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use ecow::eco_format;
use greenroom_protocol::{Code, Moment, Refusal};
use serde::Deserialize;

/// The `attempts` table of the configuration: each limit is a bucket of that many attempts, which refills
/// evenly within a minute.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttemptLimits {
    /// Attempts from one address, or from one /64 of IPv6, whatever comes of them; 20.
    pub address_per_minute_max: NonZeroU32,
    /// Failures at one account, for schemes that know whose account an attempt is for; 5.
    pub account_failures_per_minute_max: NonZeroU32,
    /// Addresses and accounts that are remembered, 16 bytes each; 16,384. When there are more, those are
    /// forgotten whose bucket would be full again the soonest.
    pub entries_max: NonZeroUsize,
    /// Attempts from this machine count too; false.
    pub count_loopback: bool,
}

impl Default for AttemptLimits {
    fn default() -> Self {
        const fn some(number: u32) -> NonZeroU32 {
            NonZeroU32::new(number).expect("not zero")
        }
        Self {
            address_per_minute_max: some(20),
            account_failures_per_minute_max: some(5),
            entries_max: NonZeroUsize::new(16_384).expect("not zero"),
            count_loopback: false,
        }
    }
}

/// A bucket as one number (GCRA): when it will be full again. One that is full by now is as good as none.
#[derive(Clone, Copy, Default)]
struct Bucket {
    subject: u64,
    full_at: u64,
}

/// Buckets that are looked at for one subject. More make it less likely that a busy one is forgotten.
const WAYS: usize = 8;
/// What a bucket holds is one minute's worth, in milliseconds.
const MINUTE: u64 = 60_000;

/// Who tried how often: a table of fixed size, without lists to walk and without anything to clean up.
pub struct Attempts {
    limits: AttemptLimits,
    /// Keyed by chance, so that nobody can choose addresses or names that share a bucket.
    hasher: RandomState,
    sets: Vec<[Bucket; WAYS]>,
}

impl Attempts {
    /// A table that has seen nobody yet.
    pub fn new(limits: AttemptLimits) -> Self {
        let sets = limits.entries_max.get().div_ceil(WAYS).next_power_of_two();
        Self { limits, hasher: RandomState::new(), sets: vec![[Bucket::default(); WAYS]; sets] }
    }

    /// Counts an attempt from an address.
    ///
    /// # Errors
    /// [`Code::RateLimited`] when the address has no attempts left.
    pub fn address(&mut self, from: IpAddr, now: Moment) -> Result<(), Refusal> {
        let from = from.to_canonical();
        if from.is_loopback() && !self.limits.count_loopback {
            return Ok(());
        }
        let network = match from {
            IpAddr::V4(four) => u64::from(four.to_bits()),
            // A /64 is what one customer gets.
            IpAddr::V6(six) => (six.to_bits() >> 64) as u64,
        };
        let subject = self.hasher.hash_one((from.is_ipv4(), network));
        self.take(subject, self.limits.address_per_minute_max, now)
            .map_err(|wait| too_many("check-ins from this address", wait))
    }

    /// Counts an attempt at an account, before it is known how it ends, so that many at once don't slip
    /// through; [`Self::forgive`] takes it back.
    ///
    /// # Errors
    /// [`Code::RateLimited`] when the account has no failures left.
    pub fn account(&mut self, scheme: &str, account: &str, now: Moment) -> Result<(), Refusal> {
        let subject = self.hasher.hash_one((scheme, account));
        self.take(subject, self.limits.account_failures_per_minute_max, now)
            .map_err(|wait| too_many("failed check-ins for this account", wait))
    }

    /// The attempt at the account was no failure after all.
    pub fn forgive(&mut self, scheme: &str, account: &str) {
        let subject = self.hasher.hash_one((scheme, account));
        let refill = refill(self.limits.account_failures_per_minute_max);
        if let Some(bucket) = self.set(subject).iter_mut().find(|bucket| bucket.subject == subject)
        {
            bucket.full_at = bucket.full_at.saturating_sub(refill);
        }
    }

    /// Takes one from the subject's bucket, or says how long until there is one.
    fn take(&mut self, subject: u64, max: NonZeroU32, now: Moment) -> Result<(), Duration> {
        let set = self.set(subject);
        let place = set.iter().position(|bucket| bucket.subject == subject).unwrap_or_else(|| {
            (0..WAYS).min_by_key(|&place| set[place].full_at).unwrap_or_default()
        });
        let before = if set[place].subject == subject { set[place].full_at } else { 0 };
        let full_at = before.max(now.0) + refill(max);
        if full_at > now.0 + MINUTE {
            return Err(Duration::from_millis(full_at - now.0 - MINUTE));
        }
        set[place] = Bucket { subject, full_at };
        Ok(())
    }

    fn set(&mut self, subject: u64) -> &mut [Bucket; WAYS] {
        let place = (subject >> 32) as usize & (self.sets.len() - 1);
        &mut self.sets[place]
    }
}

impl std::fmt::Debug for Attempts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Attempts").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Milliseconds until one more attempt is free.
fn refill(max: NonZeroU32) -> u64 {
    MINUTE / u64::from(max.get())
}

fn too_many(what: &str, wait: Duration) -> Refusal {
    let seconds = wait.as_millis().div_ceil(1000);
    Refusal::new(Code::RateLimited, eco_format!("too many {what}; try again in {seconds} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
    fn attempts_until_refused(table: &mut Attempts, from: &str, now: Moment) -> usize {
        (0..1000).take_while(|_| table.address(address(from), now).is_ok()).count()
    }

    #[test]
    fn an_address_has_twenty_attempts_and_one_more_every_three_seconds() {
        let mut table = Attempts::new(AttemptLimits::default());
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(7)), 20);
        let refusal = table.address(address("192.0.2.1"), Moment(7)).unwrap_err();
        assert_eq!(refusal.code, Code::RateLimited);
        assert!(refusal.message.contains("try again in 3 s"), "{refusal}");
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(3_006)), 0);
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(3_007)), 1);
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(200_000)), 20);
    }

    #[test]
    fn one_address_costs_another_nothing() {
        let mut table = Attempts::new(AttemptLimits::default());
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(0)), 20);
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.2", Moment(0)), 20);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_its_ipv4() {
        let mut table = Attempts::new(AttemptLimits::default());
        assert_eq!(attempts_until_refused(&mut table, "2001:db8::1", Moment(0)), 20);
        assert_eq!(attempts_until_refused(&mut table, "2001:db8::ffff:2", Moment(0)), 0);
        assert_eq!(attempts_until_refused(&mut table, "2001:db8:0:1::1", Moment(0)), 20);
        assert_eq!(attempts_until_refused(&mut table, "::ffff:192.0.2.1", Moment(0)), 20);
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(0)), 0);
    }

    #[test]
    fn this_machine_is_not_limited_unless_asked_for() {
        let mut table = Attempts::new(AttemptLimits::default());
        assert_eq!(attempts_until_refused(&mut table, "127.0.0.1", Moment(0)), 1000);
        assert_eq!(attempts_until_refused(&mut table, "::1", Moment(0)), 1000);
        let mut table =
            Attempts::new(AttemptLimits { count_loopback: true, ..AttemptLimits::default() });
        assert_eq!(attempts_until_refused(&mut table, "127.0.0.1", Moment(0)), 20);
    }

    #[test]
    fn an_account_has_five_failures_and_successes_are_free() {
        let mut table = Attempts::new(AttemptLimits::default());
        for _ in 0..100 {
            table.account("http", "ann", Moment(0)).unwrap();
            table.forgive("http", "ann");
        }
        for _ in 0..5 {
            table.account("http", "ann", Moment(0)).unwrap();
        }
        assert_eq!(table.account("http", "ann", Moment(0)).unwrap_err().code, Code::RateLimited);
        table.account("http", "bo", Moment(0)).unwrap();
        table.account("steam", "ann", Moment(0)).unwrap();
        table.account("http", "ann", Moment(12_000)).unwrap();
    }

    #[test]
    fn a_full_table_forgets_the_least_busy_and_keeps_its_size() {
        let limits = AttemptLimits { entries_max: NonZeroUsize::MIN, ..AttemptLimits::default() };
        let mut table = Attempts::new(limits);
        assert_eq!(attempts_until_refused(&mut table, "192.0.2.1", Moment(0)), 20);
        for other in 0..=255 {
            assert!(table.address(IpAddr::from([198, 51, 100, other]), Moment(0)).is_ok());
        }
        assert_eq!(table.sets.len(), 1);
        assert!(table.address(address("192.0.2.1"), Moment(0)).is_err(), "the worst is kept");
    }
}
