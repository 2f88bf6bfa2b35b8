//! What a client may send: token buckets, in the connection's own state.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use greenroom_protocol::{Moment, wire::client_session::Request};

/// What one connection, and one address, may do. All are settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Messages a second; twice as many in a burst.
    pub messages_per_second: u32,
    /// Bytes a second; twice as many in a burst.
    pub bytes_per_second: u32,
    /// Cost of requests to the directory a second (a search costs 2, a join 2, making an instance or a live search
    /// 10); four times as much in a burst.
    pub requests_per_second: u32,
    /// New connections a second from one address; three times as many in a burst. Not for loopback.
    pub connects_per_second: u32,
    /// Open connections from one address (of IPv6: one /64). Not for loopback.
    pub connections_per_address: u32,
    /// How often a client may go over its limits before its connection is closed; one is forgiven each 10 s.
    pub strikes_max: u8,
}

impl Default for ClientLimits {
    /// The limits of a cluster that strangers can reach (`limits = default`).
    fn default() -> Self {
        Self {
            messages_per_second: 60,
            bytes_per_second: 64 * 1024,
            requests_per_second: 10,
            connects_per_second: 20,
            connections_per_address: 256,
            strikes_max: 3,
        }
    }
}

impl ClientLimits {
    /// For benchmarks and load tests (`limits = load`): the rates of a connection are lifted, all bounds on sizes stay.
    pub const LOAD: Self = Self {
        messages_per_second: u32::MAX,
        bytes_per_second: u32::MAX,
        requests_per_second: u32::MAX,
        connects_per_second: u32::MAX,
        connections_per_address: u32::MAX,
        strikes_max: 3,
    };
}

/// A bucket of tokens that fills by itself: 8 bytes and no allocation.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Thousandths of tokens spent, decaying.
    spent: u64,
    at: Moment,
}

impl Bucket {
    /// A full bucket.
    pub const fn new(now: Moment) -> Self {
        Self { spent: 0, at: now }
    }

    /// Takes `cost` tokens if there are so many; `rate` come back each second, up to `burst`.
    pub fn take(&mut self, now: Moment, cost: u32, rate: u32, burst: u32) -> bool {
        if rate == u32::MAX {
            return true;
        }
        let elapsed = now.0.saturating_sub(self.at.0);
        // Tokens per second are thousandths of tokens per millisecond.
        self.spent = self.spent.saturating_sub(elapsed.saturating_mul(u64::from(rate)));
        self.at = now;
        let after = self.spent + u64::from(cost) * 1_000;
        let fits = after <= u64::from(burst) * 1_000;
        if fits {
            self.spent = after;
        }
        fits
    }
}

/// What a request to the directory costs.
pub(crate) const fn cost(request: &Request) -> u32 {
    match request {
        Request::Create(_) | Request::JoinOrCreate(_) | Request::Watch(_) => 10,
        Request::Join(_) | Request::Search(_) | Request::Rank(_) => 2,
        Request::Leave(_) | Request::Destroy(_) | Request::Unwatch(_) | Request::Unknown(_) => 1,
    }
}

/// Entries of [`Addresses`] at most: what is known of an address that has no connection may be forgotten.
const ADDRESSES_MAX: usize = 65_536;
/// A bucket is full again after this time: its burst is three times what comes back in a second.
const RECOVERED_MS: u64 = 3_000;

/// Connections by address.
#[derive(Debug, Default)]
pub(crate) struct Addresses(BTreeMap<IpAddr, Address>);

#[derive(Debug)]
struct Address {
    open: u32,
    connects: Bucket,
}

/// Why an address gets no connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooMany {
    Open,
    AtOnce,
    Addresses,
}

impl Addresses {
    pub(crate) fn connect(
        &mut self,
        address: IpAddr,
        now: Moment,
        limits: &ClientLimits,
    ) -> Result<(), TooMany> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Ok(());
        }
        if self.0.len() >= ADDRESSES_MAX {
            self.0.retain(|_, known| known.open > 0);
            if self.0.len() >= ADDRESSES_MAX {
                return Err(TooMany::Addresses);
            }
        }
        let known = self
            .0
            .entry(net(address))
            .or_insert_with(|| Address { open: 0, connects: Bucket::new(now) });
        if known.open >= limits.connections_per_address {
            return Err(TooMany::Open);
        }
        let rate = limits.connects_per_second;
        if !known.connects.take(now, 1, rate, rate.saturating_mul(3)) {
            return Err(TooMany::AtOnce);
        }
        known.open += 1;
        Ok(())
    }

    pub(crate) fn disconnect(&mut self, address: IpAddr) {
        if let Some(known) = self.0.get_mut(&net(address)) {
            known.open = known.open.saturating_sub(1);
        }
    }

    /// Forgets addresses that have no connection, and of whose burst nothing is missing any more.
    pub(crate) fn tick(&mut self, now: Moment) {
        self.0.retain(|_, known| {
            known.open > 0 || now.0.saturating_sub(known.connects.at.0) < RECOVERED_MS
        });
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// An IPv6 host has a whole /64 to itself: it counts as one. An IPv4 address stays one, also where a socket for both
/// gives it as an IPv6 address: those are all in one /64.
fn net(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(Moment(0));
        let mut taken =
            |at: u64| (0..1_000).filter(|_| bucket.take(Moment(at), 1, 60, 120)).count();
        assert_eq!(taken(0), 120);
        assert_eq!(taken(0), 0);
        assert_eq!(taken(500), 30);
        assert_eq!(taken(60_000), 120);
    }

    #[test]
    fn one_address_can_not_take_all_connections_but_others_still_can() {
        let (mut addresses, limits) = (Addresses::default(), ClientLimits::default());
        let (greedy, other): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut open = 0;
        for at in 0..60_000 {
            open += u32::from(addresses.connect(greedy, Moment(at), &limits).is_ok());
        }
        assert_eq!(open, 256);
        assert_eq!(addresses.connect(greedy, Moment(90_000), &limits), Err(TooMany::Open));
        assert_eq!(addresses.connect(other, Moment(90_000), &limits), Ok(()));
        addresses.disconnect(greedy);
        assert_eq!(addresses.connect(greedy, Moment(90_000), &limits), Ok(()));
    }

    #[test]
    fn players_on_ipv4_are_not_one_when_a_socket_for_both_accepts_them() {
        let (mut addresses, limits) = (Addresses::default(), ClientLimits::default());
        for host in 0..1_000u32 {
            let address = IpAddr::V6(std::net::Ipv4Addr::from_bits(host << 8 | 1).to_ipv6_mapped());
            assert_eq!(addresses.connect(address, Moment(0), &limits), Ok(()));
        }
        let loopback: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        for _ in 0..1_000 {
            assert_eq!(addresses.connect(loopback, Moment(0), &limits), Ok(()));
        }
    }

    #[test]
    fn an_address_is_forgotten_once_it_has_no_connection_and_its_burst_back() {
        let (mut addresses, limits) = (Addresses::default(), ClientLimits::default());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(addresses.connect(address, Moment(0), &limits), Ok(()));
        addresses.tick(Moment(60_000));
        assert_eq!(addresses.len(), 1);
        addresses.disconnect(address);
        addresses.tick(Moment(2_999));
        assert_eq!(addresses.len(), 1);
        addresses.tick(Moment(3_000));
        assert_eq!(addresses.len(), 0);
    }

    #[test]
    fn neighbours_in_one_ipv6_net_count_as_one() {
        let (mut addresses, limits) = (Addresses::default(), ClientLimits::default());
        let at_once = (0..100u128)
            .filter(|host| {
                let address = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | host));
                addresses.connect(address, Moment(0), &limits).is_ok()
            })
            .count();
        assert_eq!(at_once, 60);
    }
}
