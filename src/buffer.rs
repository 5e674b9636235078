//! Page-aligned byte buffers from a pool with a stated budget.
//!
//! A [`Buffer`] is what a group of a file is gathered in, hashed in and written from, so its start is aligned for
//! direct I/O. All buffers of a [`Pool`] together never hold more than its budget; who asks for more waits, or is
//! told that there is none. Memory of whole groups is kept for reuse, because touching new pages is dear.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{GROUP_LEN, MIB};

/// The alignment of a buffer's first byte, and the unit in which the budget is counted.
pub const BUFFER_ALIGN: usize = 4096;

/// A group of zeros, for whoever makes or sends them.
pub static ZEROS: [u8; GROUP_LEN] = [0; GROUP_LEN];

/// Whether this is the beginning of [`ZEROS`] itself: then nobody need look whether it is all zeros.
#[must_use]
pub fn is_of_zeros(bytes: &[u8]) -> bool {
    std::ptr::eq(bytes.as_ptr(), ZEROS.as_ptr()) && bytes.len() <= ZEROS.len()
}

/// Buffers of whole groups that are kept when nobody uses them: at most 64 MiB stay allocated.
const KEPT_MAX: usize = 64 * MIB / GROUP_LEN;

/// A source of buffers whose sizes together stay within a budget. Clones share it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    budget: Arc<Semaphore>,
    page_count: usize,
    kept: Mutex<Vec<Vec<u8>>>,
    /// How much work is under way that gives buffers back.
    emptying: AtomicUsize,
}

/// Work that gives buffers back at its end, while this lives: see [`Pool::emptying`].
pub struct Emptying(Arc<Inner>);

impl Drop for Emptying {
    fn drop(&mut self) {
        self.0.emptying.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool that hands out at most `budget` bytes at a time (rounded down to whole pages, at least one group).
    /// Each buffer also costs up to [`BUFFER_ALIGN`] bytes for its alignment, which the budget does not count.
    #[must_use]
    pub fn new(budget: usize) -> Pool {
        let page_count = (budget.max(GROUP_LEN) / BUFFER_ALIGN).min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let budget = Arc::new(Semaphore::new(page_count));
        Pool {
            inner: Arc::new(Inner { budget, page_count, kept: Mutex::new(Vec::new()), emptying: AtomicUsize::new(0) }),
        }
    }

    /// A buffer of `len` bytes, if the budget has room for it now. Its content is arbitrary: what an earlier user
    /// left there, so only what was filled since may leave the process.
    ///
    /// # Panics
    /// When `len` is more than the whole budget.
    #[must_use]
    pub fn try_lease(&self, len: usize) -> Option<Buffer> {
        let permit = Arc::clone(&self.inner.budget).try_acquire_many_owned(self.pages(len)).ok()?;
        Some(self.fill(len, permit))
    }

    /// A buffer of `len` bytes as soon as the budget has room for it, first come first served.
    /// Its content is arbitrary, as for [`Pool::try_lease`].
    ///
    /// # Panics
    /// When `len` is more than the whole budget: that wait would never end.
    ///
    /// # Cancel safety
    /// Safe: a dropped call has leased nothing and only loses its place in the queue.
    pub async fn lease(&self, len: usize) -> Buffer {
        let permit = Arc::clone(&self.inner.budget)
            .acquire_many_owned(self.pages(len))
            .await
            .expect("the budget is never closed");
        self.fill(len, permit)
    }

    /// Says that work is begun which gives buffers back at its end. Keep the answer until then.
    #[must_use]
    pub fn emptying(&self) -> Emptying {
        self.inner.emptying.fetch_add(1, Ordering::Relaxed);
        Emptying(Arc::clone(&self.inner))
    }

    /// Whether such work is under way.
    #[must_use]
    pub fn is_emptied(&self) -> bool {
        self.inner.emptying.load(Ordering::Relaxed) > 0
    }

    /// Bytes that are free now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.inner.budget.available_permits() * BUFFER_ALIGN
    }

    fn pages(&self, len: usize) -> u32 {
        let pages = len.div_ceil(BUFFER_ALIGN);
        assert!(pages <= self.inner.page_count, "a lease of {len} bytes is within the budget");
        u32::try_from(pages).expect("the budget counts its pages in 32 bits")
    }

    fn fill(&self, len: usize, permit: OwnedSemaphorePermit) -> Buffer {
        let kept = if len == GROUP_LEN { self.inner.lock_kept().pop() } else { None };
        let memory = kept.unwrap_or_else(|| vec![0; len + BUFFER_ALIGN]);
        let start = memory.as_ptr().align_offset(BUFFER_ALIGN);
        assert!(start < BUFFER_ALIGN, "bytes can be aligned to a page");
        Buffer { memory, start, len, lease: Some((Arc::clone(&self.inner), permit)) }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("available", &self.available()).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock_kept(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        // A list of spare memory is whole whatever its holder panicked over.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes whose first is aligned to [`BUFFER_ALIGN`]. Dropping it returns memory and budget to its pool.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    /// None when it is of no pool.
    lease: Option<(Arc<Inner>, OwnedSemaphorePermit)>,
}

impl Buffer {
    /// Zeros of no pool, aligned to nothing. How many there are of these is for the caller to bound.
    #[must_use]
    pub fn alone(len: usize) -> Buffer {
        Buffer { memory: vec![0; len], start: 0, len, lease: None }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((pool, _)) = self.lease.as_ref().filter(|_| self.len == GROUP_LEN) {
            let mut kept = pool.lock_kept();
            if kept.len() < KEPT_MAX {
                kept.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let pool = Pool::new(8 * MIB);
        for len in [0, 1, 4095, 4096, 4097, 256 * 1024, GROUP_LEN] {
            let mut buffer = pool.try_lease(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(BUFFER_ALIGN), 0, "len {len}");
            buffer.fill(7);
        }
        assert_eq!(pool.available(), 8 * MIB);
    }

    #[test]
    fn the_budget_holds_and_comes_back() {
        let pool = Pool::new(2 * MIB);
        let first = pool.try_lease(MIB).unwrap();
        let second = pool.try_lease(MIB).unwrap();
        assert!(pool.try_lease(1).is_none());
        drop(first);
        assert_eq!(pool.available(), MIB);
        drop(second);
        assert_eq!(pool.available(), 2 * MIB);
        assert_eq!(pool.inner.lock_kept().len(), 2, "memory is kept for the next");
    }

    #[tokio::test]
    async fn a_dropped_wait_takes_nothing() {
        let pool = Pool::new(MIB);
        let held = pool.lease(MIB).await;
        {
            let wait = pool.lease(MIB);
            tokio::pin!(wait);
            assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(wait.as_mut().poll(cx))).await.is_pending());
        }
        drop(held);
        assert_eq!(pool.lease(MIB).await.len(), MIB);
        assert_eq!(pool.available(), MIB);
    }

    use std::future::Future as _;
}
