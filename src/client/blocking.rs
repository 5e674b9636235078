//! Work that may block, beside the tasks of a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{JoinHandle, JoinSet};

use crate::error::{Error, ErrorKind, Result};

/// Tells work that takes long and may block when nobody waits for it any more: when this is dropped. It belongs into
/// what a command itself does: the tasks of a runtime are dropped only after what blocks has ended.
#[derive(Default)]
pub(crate) struct Awaited(Arc<AtomicBool>);

/// The other end of an [`Awaited`].
#[derive(Clone)]
pub(crate) struct Waiter(Arc<AtomicBool>);

impl Awaited {
    pub(crate) fn waiter(&self) -> Waiter {
        Waiter(Arc::clone(&self.0))
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Waiter {
    /// # Errors
    /// `Interrupted` once nobody waits any more.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Interrupted, "nobody waits for this any more")),
            false => Ok(()),
        }
    }
}

/// Does something on a thread that may block.
#[cfg_attr(test, expect(clippy::disallowed_methods, reason = "what is simulated ends with its runtime"))]
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if crate::storage::simulated::is_on() {
        return tokio::spawn(crate::storage::simulated::on_disk(work));
    }
    tokio::task::spawn_blocking(work)
}

/// The same as one of a set.
pub(crate) fn spawn_blocking_in<T: Send + 'static>(set: &mut JoinSet<T>, work: impl FnOnce() -> T + Send + 'static) {
    #[cfg(test)]
    if crate::storage::simulated::is_on() {
        set.spawn(crate::storage::simulated::on_disk(work));
        return;
    }
    set.spawn_blocking(work);
}
