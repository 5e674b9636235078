//! Work that may block, beside the tasks of a client.

use tokio::task::{JoinHandle, JoinSet};

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
