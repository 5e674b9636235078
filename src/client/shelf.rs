//! Beginnings of groups that a download got before a connection broke.
//!
//! A connection that shares a thin link with others may never live long enough for a whole group. What it brought of
//! one is laid on the shelf of its file, and whoever is asked for that group next is asked for the rest only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;

use crate::buffer::Buffer;
use crate::hash::group_offset;
use crate::limits::{GROUP_LEN, JOINS_MAX};

/// Groups that are kept: one for each connection that there can be. They hold buffers of the client, and are the first
/// that are asked for again.
const GROUPS_MAX: usize = JOINS_MAX + 1;

/// The shelf of one file. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Inner>);

#[derive(Default)]
struct Inner {
    groups: Mutex<HashMap<u64, (Buffer, usize)>>,
    /// Told when something is laid here.
    progress: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shelf {
    /// Has this called whenever something is laid here, if nothing is yet.
    pub(crate) fn tell(&self, progress: impl Fn() + Send + Sync + 'static) {
        self.0.progress.get_or_init(|| Box::new(progress));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (Buffer, usize)>> {
        // Each statement that holds the lock leaves the table whole.
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of the beginning of a group are here.
    pub(crate) fn begun(&self, group: u64) -> usize {
        self.lock().get(&group).map_or(0, |&(_, filled)| filled)
    }

    /// The groups of which something is here, ascending.
    pub(crate) fn groups(&self) -> Vec<u64> {
        let mut groups: Vec<u64> = self.lock().keys().copied().collect();
        groups.sort_unstable();
        groups
    }

    /// A group is whole by now: what is here of it is of no use.
    pub(crate) fn forget(&self, group: u64) {
        self.lock().remove(&group);
    }

    fn put(&self, group: u64, buffer: Buffer, filled: usize) {
        let mut groups = self.lock();
        let is_more = groups.get(&group).map_or(groups.len() < GROUPS_MAX, |&(_, before)| filled > before);
        if !is_more {
            return;
        }
        groups.insert(group, (buffer, filled));
        drop(groups);
        if let Some(progress) = self.0.progress.get() {
            progress();
        }
    }

    /// Goes on with the group of which what comes begins at `offset`, where its beginning is here; begins it otherwise,
    /// in the buffer that `lease` gives.
    pub(crate) fn poll_filling(&self, offset: u64, lease: impl FnOnce() -> Poll<Buffer>) -> Poll<Filling> {
        let group = offset / GROUP_LEN as u64;
        let begun = usize::try_from(offset - group_offset(group)).unwrap_or(GROUP_LEN);
        match self.go_on(group, begun) {
            Some(filling) => Poll::Ready(filling),
            None => lease().map(|buffer| self.begin(group, buffer)),
        }
    }

    /// Goes on with a group of which the first `filled` bytes are here; none when they are not.
    fn go_on(&self, group: u64, filled: usize) -> Option<Filling> {
        let mut groups = self.lock();
        groups.get(&group).filter(|&&(_, there)| there >= filled && filled > 0)?;
        let (buffer, _) = groups.remove(&group)?;
        Some(Filling { group, start: 0, filled, buffer: Some(buffer), shelf: Some(self.clone()) })
    }

    /// Begins a group.
    pub(crate) fn begin(&self, group: u64, buffer: Buffer) -> Filling {
        Filling { group, start: 0, filled: 0, buffer: Some(buffer), shelf: Some(self.clone()) }
    }
}

/// A group, or a part of one, that is being received. Dropped before it is whole, a group is laid on its shelf.
pub(crate) struct Filling {
    group: u64,
    /// Where in the group it begins.
    start: usize,
    filled: usize,
    /// None once it is whole and given away.
    buffer: Option<Buffer>,
    /// None for a part.
    shelf: Option<Shelf>,
}

impl Filling {
    /// Begins a part of a group, for whoever keeps it.
    pub(crate) fn part(group: u64, start: usize, buffer: Buffer) -> Filling {
        Filling { group, start, filled: 0, buffer: Some(buffer), shelf: None }
    }

    /// Where in its group it begins, when it is a part.
    pub(crate) fn part_start(&self) -> Option<usize> {
        self.shelf.is_none().then_some(self.start)
    }

    /// The offset in the file of what comes next.
    pub(crate) fn next_offset(&self) -> u64 {
        group_offset(self.group) + (self.start + self.filled) as u64
    }

    /// The index of its group.
    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    /// Where the next bytes go; none when they do not fit.
    pub(crate) fn space(&mut self, len: usize) -> Option<&mut [u8]> {
        let start = self.filled;
        self.buffer.as_mut()?.get_mut(start..start.checked_add(len)?)
    }

    /// So many more bytes are there. Whether it is whole now.
    pub(crate) fn advance(&mut self, len: usize) -> bool {
        self.filled += len;
        self.buffer.as_ref().is_some_and(|buffer| self.filled >= buffer.len())
    }

    /// The buffer, whole or not.
    pub(crate) fn into_buffer(mut self) -> Option<Buffer> {
        self.buffer.take()
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(shelf) = &self.shelf
            && let Some(buffer) = self.buffer.take().filter(|_| self.filled > 0)
        {
            shelf.put(self.group, buffer, self.filled);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::buffer::Pool;
    use crate::limits::GROUP_LEN;

    #[test]
    fn what_was_begun_goes_on_where_it_ended() {
        let pool = Pool::new(4 * GROUP_LEN);
        let told = Arc::new(AtomicUsize::new(0));
        let telling = Arc::clone(&told);
        let shelf = Shelf::default();
        shelf.tell(move || {
            telling.fetch_add(1, Ordering::SeqCst);
        });
        let mut filling = shelf.begin(7, pool.try_lease(10).unwrap());
        filling.space(4).unwrap().copy_from_slice(b"abcd");
        assert!(!filling.advance(4));
        drop(filling);
        drop(shelf.begin(8, pool.try_lease(10).unwrap()));
        assert_eq!((shelf.groups(), shelf.begun(7), shelf.begun(8)), (vec![7], 4, 0));
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert!(shelf.go_on(7, 5).is_none() && shelf.go_on(8, 1).is_none() && shelf.go_on(7, 0).is_none());
        let mut filling = shelf.go_on(7, 4).unwrap();
        assert_eq!((filling.group(), filling.filled, shelf.begun(7)), (7, 4, 0));
        assert!(filling.space(7).is_none());
        filling.space(6).unwrap().copy_from_slice(b"efghij");
        assert!(filling.advance(6));
        assert_eq!(filling.into_buffer().unwrap()[..], b"abcdefghij"[..]);
        assert!(shelf.groups().is_empty());
    }

    #[test]
    fn the_longer_beginning_stays_and_there_are_not_too_many() {
        let pool = Pool::new(100 * GROUP_LEN);
        let shelf = Shelf::default();
        let lay = |group, len| {
            let mut filling = shelf.begin(group, pool.try_lease(10).unwrap());
            filling.advance(len);
        };
        lay(1, 6);
        lay(1, 3);
        assert_eq!(shelf.begun(1), 6);
        // Whoever asked when less was here goes on from there.
        assert_eq!(shelf.go_on(1, 3).map(|filling| filling.filled), Some(3));
        shelf.forget(1);
        for group in 0..2 * GROUPS_MAX as u64 {
            lay(group, 1);
        }
        assert_eq!(shelf.groups().len(), GROUPS_MAX);
    }
}
