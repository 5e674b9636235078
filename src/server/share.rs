//! The buffers that one principal can hold: a part of the server's budget, whatever number of connections it opens.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Principal;
use crate::buffer::{BUFFER_ALIGN, Buffer, Pool};
use crate::limits::{BUFFER_SHARE, HASHES_PER_PRINCIPAL_MAX};
use crate::net::Limits;

/// The shares of all principals that are connected.
pub(super) struct Shares {
    pool: Pool,
    page_count: usize,
    /// Of all principals together.
    limits: Limits,
    rate_of_one: Option<u64>,
    shares: Mutex<HashMap<Principal, Weak<Share>>>,
}

/// What one principal may lease from.
pub(super) struct Share {
    pool: Pool,
    pages: Arc<Semaphore>,
    /// Steps of hashing that may run.
    hashes: Arc<Semaphore>,
    /// Transfers and requests that are open.
    open: AtomicUsize,
    /// How fast its connections may be, together and with those of others.
    pub(super) limits: Limits,
}

/// What one connection adds to the open transfers and requests of its principal.
pub(super) struct OpenCount {
    share: Arc<Share>,
    count: usize,
}

/// A buffer that counts against its principal's share and the whole budget.
pub(super) struct Lease {
    buffer: Buffer,
    _pages: OwnedSemaphorePermit,
}

impl Shares {
    /// Shares of a budget in bytes, and of a rate in bytes per second beside the rate that each may have.
    pub(super) fn new(budget: usize, rate: Option<u64>, rate_of_one: Option<u64>) -> Shares {
        let page_count = budget / BUFFER_SHARE / BUFFER_ALIGN;
        let limits = Limits::of([rate]);
        Shares { pool: Pool::new(budget), page_count, limits, rate_of_one, shares: Mutex::default() }
    }

    /// The share of this principal, the same for all its connections.
    pub(super) fn of(&self, principal: &Principal) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(principal).and_then(Weak::upgrade) {
            return share;
        }
        // Those that nobody holds any more go when there is a new one, so the table is as large as the crowd.
        shares.retain(|_, share| share.strong_count() > 0);
        let limits = self.limits.and(Limits::of([self.rate_of_one]));
        let share = Arc::new(Share {
            pool: self.pool.clone(),
            pages: Arc::new(Semaphore::new(self.page_count)),
            hashes: Arc::new(Semaphore::new(HASHES_PER_PRINCIPAL_MAX)),
            open: AtomicUsize::new(0),
            limits,
        });
        shares.insert(principal.clone(), Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// A buffer of `len` bytes, as soon as the share and the budget have room for it.
    ///
    /// # Cancel safety
    /// Safe: a dropped call has leased nothing.
    pub(super) async fn lease(self: Arc<Share>, len: usize) -> Lease {
        let pages = u32::try_from(len.div_ceil(BUFFER_ALIGN)).expect("a lease is at most a group");
        let permit = Arc::clone(&self.pages).acquire_many_owned(pages).await.expect("the share is never closed");
        Lease { buffer: self.pool.lease(len).await, _pages: permit }
    }
}

impl Share {
    /// Leave to hash for a step, as soon as others of this principal have ended theirs.
    ///
    /// # Cancel safety
    /// Safe: a dropped call has taken nothing.
    pub(super) async fn hash(self: Arc<Share>) -> OwnedSemaphorePermit {
        Arc::clone(&self.hashes).acquire_owned().await.expect("the share is never closed")
    }

    /// The transfers and requests that are open over all connections.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl OpenCount {
    pub(super) fn new(share: Arc<Share>) -> OpenCount {
        OpenCount { share, count: 0 }
    }

    /// The connection has so many open now.
    pub(super) fn set(&mut self, count: usize) {
        // Each connection subtracts only what it added, so the sum is never below zero.
        if count > self.count {
            self.share.open.fetch_add(count - self.count, Ordering::Relaxed);
        } else {
            self.share.open.fetch_sub(self.count - count, Ordering::Relaxed);
        }
        self.count = count;
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connections_have_open_adds_up_for_their_principal() {
        let shares = Shares::new(1 << 24, None, None);
        let share = shares.of(&Principal::Anonymous);
        let (mut first, mut second) =
            (OpenCount::new(Arc::clone(&share)), OpenCount::new(shares.of(&Principal::Anonymous)));
        first.set(5);
        second.set(7);
        first.set(2);
        assert_eq!(share.open(), 9);
        drop(second);
        assert_eq!(share.open(), 2);
        drop(first);
        assert_eq!(share.open(), 0);
    }

    #[tokio::test]
    async fn hashing_for_one_principal_has_a_bound() {
        let shares = Shares::new(1 << 24, None, None);
        let share = shares.of(&Principal::Anonymous);
        let mut turns = Vec::new();
        for _ in 0..HASHES_PER_PRINCIPAL_MAX {
            turns.push(Arc::clone(&share).hash().await);
        }
        let another = tokio::time::timeout(std::time::Duration::from_millis(20), Arc::clone(&share).hash());
        assert!(another.await.is_err(), "one more");
        turns.pop();
        let _turn = share.hash().await;
    }
}
