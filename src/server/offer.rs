//! What a server offers of a file that is to be uploaded: groups that it holds from an earlier attempt, and those of
//! the version that is there. They are read, hashed and told in order, some at a time, while others already come.
//!
//! What was held is read from the disk and compared with its record: a group that is another one counts as absent.
//! What is of the version that is there is copied to its place with the very read that hashes it, or is there
//! already as a shared copy, so that only values of bytes that lie in place make the root of the whole.

use std::sync::Arc;

use tracing::warn;

use super::held::Sink;
use super::proven::Proven;
use crate::buffer::BUFFER_ALIGN;
use crate::error::{ErrorKind, Result};
use crate::hash::{GroupHash, GroupHasher, GroupValue, Root, Tree, group_count, group_len, group_offset};
use crate::limits::GROUP_LEN;
use crate::path::RemotePath;
use crate::storage::StoredFile;
use crate::transfer::{Claim, Ledger};

/// Groups of one step that are read, so that a disk thread is not held for long.
const STEP_GROUPS: u64 = 64;
/// Groups of one step in all: what is proven costs only its telling.
const STEP_PROVEN: usize = 8192;

/// What becomes of the version that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copying {
    /// It is only compared, for now.
    Never,
    /// Its groups are written to their places as they are hashed.
    Along,
    /// What is staged began as a copy of it that shares its blocks.
    Shared,
}

/// What is offered of one upload.
pub(super) struct Offer {
    path: RemotePath,
    /// The size of the file that is to be.
    size: u64,
    sink: Option<Arc<Sink>>,
    base: Option<Arc<StoredFile>>,
    copying: Copying,
    held: Ledger,
    /// What of it need not be read once more.
    proven: Proven,
    /// What the client was told: ascending ranges of offset and end.
    ranges: Vec<(u64, u64)>,
    is_reread: bool,
    /// The first group that is not told yet.
    pub(super) next: u64,
    /// What the latest step found, in order.
    pub(super) found: Vec<(u64, Found)>,
    tree: Tree,
}

/// What was found of a claimed group.
pub(super) enum Found {
    /// It is where it belongs.
    InPlace(GroupHash),
    /// It is in the version that is there, and is copied when the upload is committed.
    InBase(GroupHash),
    /// So much of its beginning is where it belongs.
    Begun(usize, Box<GroupHasher>),
    /// Nothing that is of use.
    Nothing,
}

impl Found {
    /// The value that is told.
    pub(super) fn value(&self) -> GroupValue {
        match self {
            Found::InPlace(hash) | Found::InBase(hash) => hash.value,
            Found::Begun(_, hasher) => hasher.finish().value,
            Found::Nothing => GroupValue::NONE,
        }
    }
}

impl Offer {
    /// All of the version that is there.
    pub(super) fn of_base(
        path: &RemotePath,
        size: u64,
        base: Arc<StoredFile>,
        copying: Copying,
        sink: Option<Arc<Sink>>,
    ) -> Offer {
        let ranges = vec![(0, base.size())];
        let (path, held) = (path.clone(), Ledger::new(size));
        let base = Some(base);
        Offer {
            path,
            size,
            sink,
            base,
            copying,
            held,
            proven: Proven::default(),
            ranges,
            is_reread: true,
            next: 0,
            found: Vec::new(),
            tree: Tree::new(),
        }
    }

    /// What an earlier attempt has left, and for the rest the version that is there.
    pub(super) fn of_held(
        path: &RemotePath,
        (held, proven): (Ledger, Proven),
        base: Option<Arc<StoredFile>>,
        sink: Arc<Sink>,
    ) -> Offer {
        let size = held.size();
        let in_base = |group| base.as_ref().is_some_and(|base| group_len(base.size(), group) == group_len(size, group));
        let ranges = held.ranges(in_base).into_iter().map(|(offset, len)| (offset, offset + len)).collect();
        Offer {
            path: path.clone(),
            size,
            sink: Some(sink),
            base,
            copying: Copying::Along,
            held,
            proven,
            ranges,
            is_reread: false,
            next: 0,
            found: Vec::new(),
            tree: Tree::new(),
        }
    }

    /// What is claimed, as it is told: ranges of offset and length.
    pub(super) fn claimed(&self) -> Vec<(u64, u64)> {
        self.ranges.iter().map(|&(offset, end)| (offset, end - offset)).collect()
    }

    /// The same as ranges of offset and end.
    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether all is told.
    pub(super) fn is_over(&self) -> bool {
        self.next_claimed().is_none()
    }

    /// The root of the version that is there, when all of it was read and it is all there is: what an earlier attempt
    /// has left is not of that version, though it may be all of another of the same size.
    pub(super) fn base_root(&self) -> Option<Root> {
        let is_all_of_base = self.is_over() && self.held.bytes() == 0;
        self.base.as_ref().filter(|_| is_all_of_base).and_then(|base| self.tree.root(base.size()))
    }

    fn next_claimed(&self) -> Option<u64> {
        next_claimed(&self.ranges, self.next)
    }

    /// Reads and hashes the next groups. Blocks.
    ///
    /// # Errors
    /// `Busy` when what was held cannot be trusted any more: the next attempt begins anew; `Superseded`; what
    /// reading the version that is there, and writing, can fail with.
    pub(super) fn step(&mut self) -> Result<()> {
        self.found.clear();
        if !self.is_reread
            && let Some(sink) = &self.sink
        {
            sink.reread().map_err(|error| match error.kind() {
                ErrorKind::Superseded => error,
                _ => error.context("what was held is given up").with_kind(ErrorKind::Busy),
            })?;
            self.is_reread = true;
        }
        // Aligned, so that it can be read and written past the page cache.
        let mut memory = vec![0; GROUP_LEN + BUFFER_ALIGN];
        let start = memory.as_ptr().align_offset(BUFFER_ALIGN);
        let buffer = &mut memory[start..start + GROUP_LEN];
        let mut count = 0;
        while let Some(group) = self.next_claimed().filter(|_| count < STEP_GROUPS && self.found.len() < STEP_PROVEN) {
            let known = self.known(group);
            count += u64::from(known.is_none());
            let found = match known {
                Some(hash) => Found::InPlace(hash),
                None => self.look(group, buffer)?,
            };
            if let Found::InPlace(hash) | Found::InBase(hash) = &found {
                self.tree.insert(group, *hash);
            }
            self.found.push((group, found));
            self.next = group + 1;
        }
        Ok(())
    }

    /// The hash of a group that was proven by an earlier attempt. The first is always read: its hash as that of a whole
    /// file is not recorded.
    fn known(&self, group: u64) -> Option<GroupHash> {
        match self.held.claim(group) {
            Some(Claim::Whole(value)) if group > 0 && self.proven.contains(group) => {
                Some(GroupHash { value, alone: None })
            }
            _ => None,
        }
    }

    fn look(&self, group: u64, buffer: &mut [u8]) -> Result<Found> {
        let whole = group_len(self.size, group);
        match (self.held.claim(group), &self.sink) {
            (Some(Claim::Whole(value)), Some(sink)) => {
                let content = &mut buffer[..whole];
                let hash = sink.read_at(group_offset(group), content).map(|()| GroupHash::of(group, content));
                #[cfg(test)]
                if super::sim::planted(super::sim::Planted::HeldBelieved) {
                    return Ok(Found::InPlace(GroupHash { value, ..hash? }));
                }
                match hash {
                    Ok(hash) if hash.value == value => {
                        sink.proves(group);
                        return Ok(Found::InPlace(hash));
                    }
                    Ok(_) => warn!("group {group} of what was held of {} is damaged", self.path),
                    Err(error) => warn!("group {group} of what was held of {}: {}", self.path, error.chain()),
                }
                sink.loses(group);
                return Ok(Found::Nothing);
            }
            (Some(Claim::Prefix(len)), Some(sink)) => {
                let mut hasher = Box::new(GroupHasher::new(group));
                let content = &mut buffer[..len];
                if let Err(error) = sink.read_at(group_offset(group), content) {
                    warn!("group {group} of what was held of {}: {}", self.path, error.chain());
                    sink.loses(group);
                    return Ok(Found::Nothing);
                }
                hasher.update(content);
                return Ok(Found::Begun(len, hasher));
            }
            _ => {}
        }
        let Some(base) = &self.base else { return Ok(Found::Nothing) };
        let len = group_len(base.size(), group);
        if group >= group_count(self.size) {
            return Ok(Found::Nothing);
        }
        let content = &mut buffer[..len];
        match (self.copying, &self.sink) {
            (Copying::Shared, Some(sink)) if len == whole => {
                sink.read_at(group_offset(group), content)?;
                let hash = GroupHash::of(group, content);
                sink.holds_copy(group, &hash, len);
                Ok(Found::InPlace(hash))
            }
            (Copying::Along, Some(sink)) if len == whole => {
                base.read_at(group_offset(group), content)?;
                let hash = GroupHash::of(group, content);
                sink.write_at(group_offset(group), content)?;
                sink.holds_copy(group, &hash, len);
                Ok(Found::InPlace(hash))
            }
            _ => {
                base.read_at(group_offset(group), content)?;
                Ok(Found::InBase(GroupHash::of(group, content)))
            }
        }
    }
}

/// The first group from this one on that is claimed.
pub(super) fn next_claimed(ranges: &[(u64, u64)], group: u64) -> Option<u64> {
    let start = group_offset(group);
    let range = ranges.get(ranges.partition_point(|range| range.1 <= start))?;
    Some(range.0.max(start) / GROUP_LEN as u64)
}
