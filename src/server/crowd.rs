//! How many connections one address and one principal may have, so that a greedy one harms only itself.
//!
//! An IPv6 host has a network of 64 bits to itself, so that is what is counted. Who is over a bound before the hello is
//! closed without a word, which costs nothing; a client takes that for a cut and comes again.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::Principal;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;

/// The bounds of a server that its operator may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrowdLimits {
    /// Connections of one address at once, or of an IPv6 network of 64 bits.
    pub per_address: usize,
    /// Of these, how many may not have said hello.
    pub half_open_per_address: usize,
    /// Connections of one principal at once, or by one invite. Anonymous ones are counted by their address only.
    pub per_principal: usize,
}

impl Default for CrowdLimits {
    fn default() -> CrowdLimits {
        CrowdLimits {
            per_address: limits::CONNECTIONS_PER_ADDRESS_MAX,
            half_open_per_address: limits::HALF_OPEN_PER_ADDRESS_MAX,
            per_principal: limits::CONNECTIONS_PER_PRINCIPAL_MAX,
        }
    }
}

/// What counts as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Network {
    V4(Ipv4Addr),
    /// The first half of an IPv6 address.
    V6(u64),
}

impl Network {
    fn of(address: IpAddr) -> Network {
        match address.to_canonical() {
            IpAddr::V4(address) => Network::V4(address),
            IpAddr::V6(address) => Network::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Everybody who is connected.
pub(super) struct Crowd {
    limits: CrowdLimits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    addresses: HashMap<Network, usize>,
    half_open: HashMap<Network, usize>,
    principals: HashMap<Principal, usize>,
    /// Connections that were turned away.
    refused: u64,
}

/// A connection's place among the others; dropped, it is free.
pub(super) struct Seat {
    crowd: Arc<Crowd>,
    network: Network,
    is_half_open: bool,
    principal: Option<Principal>,
}

/// Counts one more, unless there are as many already.
fn add<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, max: usize) -> bool {
    let count = counts.entry(key).or_default();
    let fits = *count < max;
    *count += usize::from(fits);
    fits
}

/// Counts one less; who has none takes no memory.
fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Crowd {
    pub(super) fn new(limits: CrowdLimits) -> Arc<Crowd> {
        Arc::new(Crowd { limits, counts: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole between any two statements.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from this address. None: it has too many; the numbers are which refusal of all this
    /// is and what was reached.
    pub(super) fn enter(self: &Arc<Crowd>, address: IpAddr) -> Result<Seat, (u64, &'static str)> {
        let network = Network::of(address);
        let mut counts = self.lock();
        let fits = add(&mut counts.addresses, network, self.limits.per_address);
        if !fits || !add(&mut counts.half_open, network, self.limits.half_open_per_address) {
            if fits {
                subtract(&mut counts.addresses, &network);
            }
            counts.refused += 1;
            let what = if fits { "connections that have not said hello" } else { "connections" };
            return Err((counts.refused, what));
        }
        drop(counts);
        Ok(Seat { crowd: Arc::clone(self), network, is_half_open: true, principal: None })
    }
}

impl Seat {
    /// The peer has said hello and is this principal.
    ///
    /// # Errors
    /// `Busy` when that one has too many connections.
    pub(super) fn greeted(&mut self, principal: &Principal) -> Result<()> {
        let mut counts = self.crowd.lock();
        if *principal != Principal::Anonymous {
            let max = self.crowd.limits.per_principal;
            if !add(&mut counts.principals, principal.clone(), max) {
                counts.refused += 1;
                let message = format!("{principal} has {max} connections here, as many as one may have");
                return Err(Error::new(ErrorKind::Busy, message));
            }
            self.principal = Some(principal.clone());
        }
        if std::mem::take(&mut self.is_half_open) {
            subtract(&mut counts.half_open, &self.network);
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.crowd.lock();
        subtract(&mut counts.addresses, &self.network);
        if self.is_half_open {
            subtract(&mut counts.half_open, &self.network);
        }
        if let Some(principal) = &self.principal {
            subtract(&mut counts.principals, principal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn named(key: u8) -> Principal {
        Principal::Certified { name: Some("x".to_owned()), key: [key; 32] }
    }

    #[test]
    fn addresses_are_counted_as_their_owners_have_them() {
        for (left, right, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            assert_eq!(Network::of(ip(left)) == Network::of(ip(right)), same, "{left} {right}");
        }
    }

    #[test]
    fn every_bound_holds_and_every_place_comes_back() {
        let crowd = Crowd::new(CrowdLimits { per_address: 4, half_open_per_address: 2, per_principal: 3 });
        let enter = |address: &str| crowd.enter(ip(address));
        let (mut first, mut second) = (enter("::1").unwrap(), enter("::2").unwrap());
        assert!(enter("::3").is_err_and(|(_, what)| what.contains("hello")), "a third half-open one");
        let mut other = enter("10.0.0.1").unwrap();
        for seat in [&mut first, &mut second, &mut other] {
            seat.greeted(&named(1)).unwrap();
        }
        let (mut third, mut fourth) = (enter("::3").unwrap(), enter("::4").unwrap());
        assert_eq!(third.greeted(&named(1)).unwrap_err().kind(), ErrorKind::Busy, "a fourth of one principal");
        third.greeted(&named(2)).unwrap();
        fourth.greeted(&Principal::Anonymous).unwrap();
        assert!(enter("::5").is_err_and(|(_, what)| what == "connections"), "a fifth of one address");
        drop(first);
        let mut again = enter("::5").unwrap();
        again.greeted(&named(1)).unwrap();
        drop((second, other, third, fourth, again));
        let counts = crowd.lock();
        assert!(counts.addresses.is_empty() && counts.half_open.is_empty() && counts.principals.is_empty());
        assert_eq!(counts.refused, 3);
    }
}
