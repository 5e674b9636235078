//! The buffers that one principal can hold: a part of the server's budget, whatever number of connections it opens.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Principal;
use crate::buffer::{BUFFER_ALIGN, Buffer, Pool};
use crate::limits::BUFFER_SHARE;
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
    /// How fast its connections may be, together and with those of others.
    pub(super) limits: Limits,
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
        let pages = Arc::new(Semaphore::new(self.page_count));
        let share = Arc::new(Share { pool: self.pool.clone(), pages, limits });
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
