//! The rates that a policy gives to its principals: each shared by all connections of the principal.
//!
//! A connection is bound at its hello, and again when the rules have changed: then it goes on with another limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::outlet::Outlet;
use super::shared::{Shared, Who};
use crate::access::Grant;
use crate::error::Result;
use crate::net::Limits;

/// Which limit: whose, and how many bytes per second up and down.
type Key = (String, Option<u64>, Option<u64>);

/// The limits of all principals that have one and are connected.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<Key, Weak<Limits>>>);

/// What a connection is bound by beside what holds for all.
#[derive(Default)]
pub(super) struct Bound(Mutex<Option<(Key, Arc<Limits>)>>);

impl Rates {
    /// The limits of this grant, the same for all its connections.
    fn of(&self, key: &Key) -> Arc<Limits> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limits) = table.get(key).and_then(Weak::upgrade) {
            return limits;
        }
        // As large as the crowd that is connected.
        table.retain(|_, limits| limits.strong_count() > 0);
        // What a client sends up the server receives.
        let limits = Arc::new(Limits::each_way(key.2, key.1));
        table.insert(key.clone(), Arc::downgrade(&limits));
        limits
    }
}

fn key(grant: &Grant) -> Key {
    (grant.meter.clone(), grant.limits.rate_up, grant.limits.rate_down)
}

impl Shared {
    /// Has a connection move no more than its principal may, by the rules that hold now.
    ///
    /// # Errors
    /// As [`Shared::pass`].
    pub(super) fn bind(&self, who: &Who, connection: &mut impl Outlet) -> Result<()> {
        let key = key(&self.pass(who)?.grant);
        let mut bound = who.bound.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bound.as_ref().is_none_or(|(before, _)| *before != key) {
            let limits = self.rates.of(&key);
            connection.set_limits(&who.share.limits.and(Limits::clone(&limits)));
            *bound = Some((key, limits));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RemotePath;
    use crate::protocol::Rights;

    #[test]
    fn connections_of_one_principal_share_and_others_do_not() {
        let rates = Rates::default();
        let grant = |name: &str, up| {
            let mut grant = Grant::new(name, RemotePath::root(), Rights::NONE);
            grant.limits.rate_up = Some(up);
            key(&grant)
        };
        let (first, second) = (rates.of(&grant("alice", 1 << 20)), rates.of(&grant("alice", 1 << 20)));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &rates.of(&grant("bob", 1 << 20))));
        assert!(!Arc::ptr_eq(&first, &rates.of(&grant("alice", 2 << 20))), "a changed rate");
        drop((first, second));
        rates.of(&grant("carol", 1 << 20));
        assert_eq!(rates.0.lock().unwrap().len(), 1, "only those that somebody holds");
    }
}
