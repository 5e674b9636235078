//! Downloads: files that are opened, and ranges of them that are read ahead of the connection.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Flow, Job, PIECE_HERE, drop_elsewhere, on_disk, take_back, unknown};
use crate::error::{Error, Result};
use crate::hash::{RangeHash, RangeHasher, Root, group_len};
use crate::limits::{self, BUFFERS_PER_CONNECTION, GROUP_LEN};
use crate::path::RemotePath;
use crate::protocol::{Breach, Finish, Get, Kind};
use crate::server::audited;
use crate::server::requests::{self, Opening};
use crate::server::spent::On;
use crate::storage;
use crate::transfer::check_recorded;

/// A range that is wanted, or what is left of one.
pub(super) struct Wanted {
    pub(super) transfer: u32,
    offset: u64,
    pub(super) len: usize,
    /// Of the whole range, when its beginning was sent, which is so of one at most. Should the rest be another by now, the
    /// client finds it by the root.
    hash: Option<Box<RangeHash>>,
}

/// A range, or what was left of one, that is read ahead.
pub(super) struct Slot {
    pub(super) id: u64,
    pub(super) transfer: u32,
    start: u64,
    pub(super) offset: u64,
    /// Bytes that are still to be sent.
    pub(super) rest: usize,
    pub(super) content: Option<Bytes>,
    /// Of the whole range, once it is read.
    pub(super) hash: Option<RangeHash>,
    /// The hash is that of an earlier reading, of which the beginning was sent.
    is_left_over: bool,
}

/// Ranges of a connection that are read and not yet taken, once its peer has shown that it takes them.
pub(super) const READ_AHEAD_MAX: usize = BUFFERS_PER_CONNECTION / 2;
/// The same where they are read by the connection itself: TLS and the socket hold enough to go on with meanwhile.
const READ_AHEAD_HERE: usize = 1;

impl Flow {
    /// Takes a request for a file.
    pub(in crate::server) fn get(&mut self, transfer: u32, get: Get) {
        self.gets.push_back((transfer, get));
    }

    /// Whether files wait to be opened and no job opens some.
    pub(in crate::server) fn has_gets(&self) -> bool {
        !self.getting && !self.gets.is_empty()
    }

    /// Opens the next files that were asked for, many in one job.
    pub(in crate::server) fn get_more(&mut self) {
        const BATCH_MAX: usize = 64;
        if !self.has_gets() {
            return;
        }
        self.getting = true;
        // Of one download at a time, so that what its client may want is bounded as ever.
        let mut may_send_first = self.downloads.is_empty();
        let batch: Vec<_> = self.gets.drain(..self.gets.len().min(BATCH_MAX)).collect();
        let spent = Arc::clone(&self.session.spent);
        self.spawn(move |shared, who| {
            let mut rest = limits::CONTROL_QUEUE_MAX;
            let mut opened = Vec::with_capacity(batch.len());
            let mut left = Vec::new();
            let mut parents = storage::Parents::default();
            for (transfer, get) in batch {
                if rest == 0 {
                    left.push((transfer, get));
                    continue;
                }
                let open = || requests::get(shared, who, &mut parents, transfer, &get, may_send_first);
                let opening = spent.during(On::Disk, open);
                may_send_first &= !opening.as_ref().is_ok_and(Opening::is_large);
                rest = rest.saturating_sub(opening.as_ref().map_or(0, Opening::len));
                opened.push((transfer, get.path, opening));
            }
            let contents: Vec<&[u8]> =
                opened.iter().map(|(.., opening)| opening.as_ref().map_or(&[][..], Opening::content)).collect();
            let roots = spent.during(On::Processor, || Root::of_each(&contents));
            let answer = |((transfer, path, opening), root): ((u32, RemotePath, Result<Opening>), Root)| {
                let finish = || opening.and_then(|opening| opening.finish(who, root));
                (transfer, audited::request(shared, who, "get", &path, finish))
            };
            let answers = opened.into_iter().zip(roots).map(answer).collect();
            Job::Got(answers, left)
        });
    }

    /// A batch of files is opened; those that there was no room for come next.
    pub(in crate::server) fn got_batch(&mut self, left: Vec<(u32, Get)>) {
        self.getting = false;
        left.into_iter().rev().for_each(|get| self.gets.push_front(get));
    }

    /// Takes the ranges that a client wants.
    pub(in crate::server) fn want(&mut self, transfer: u32, ranges: &[(u64, u64)]) -> Result<()> {
        if self.is_lane {
            self.borrow_download(transfer);
        }
        let Some(download) = self.downloads.get(&transfer) else {
            return self.has_ended(transfer).then_some(()).ok_or_else(|| unknown(Kind::Want));
        };
        let size = download.source.file.size();
        for &(offset, len) in ranges {
            let end = offset.checked_add(len).filter(|&end| len > 0 && end <= size);
            let end = end.ok_or(Breach::Data("a wanted range past the end of its file"))?;
            if offset / GROUP_LEN as u64 != (end - 1) / GROUP_LEN as u64 {
                return Err(Breach::Data("a wanted range across two groups").into());
            }
            self.wanted += len;
            let len = usize::try_from(len).unwrap_or(GROUP_LEN);
            self.wants.push_back(Wanted { transfer, offset, len, hash: None });
        }
        if self.wanted > limits::WANTED_MAX || self.wants.len() > limits::WANTED_RANGES_MAX {
            return Err(Breach::Excess("wanted content").into());
        }
        self.read_ahead();
        Ok(())
    }

    /// Sends the first group of a download, as its answer says.
    pub(in crate::server) fn send_first(&mut self, transfer: u32) {
        let Some(download) = self.downloads.get(&transfer) else { return };
        let len = group_len(download.source.file.size(), 0);
        self.wanted += len as u64;
        self.wants.push_back(Wanted { transfer, offset: 0, len, hash: None });
        self.read_ahead();
    }

    /// Starts reading the next wanted ranges.
    pub(super) fn read_ahead(&mut self) {
        while self.slots.len() < self.read_ahead_max
            && let Some(wanted) = self.wants.pop_front()
        {
            let Wanted { transfer, offset, len, hash } = wanted;
            let Some(download) = self.downloads.get(&transfer) else { continue };
            let file = Arc::clone(&download.source.file);
            let is_here = len > limits::UNASKED_FILE_MAX as usize && file.is_in_memory() && self.works_here(1);
            // What is handed out over an invite is recorded first, on a disk.
            let is_here = is_here && self.who.attendance().is_none();
            if is_here && self.slots.len() >= READ_AHEAD_HERE {
                self.wants.push_front(Wanted { transfer, offset, len, hash });
                break;
            }
            let (share, id) = (Arc::clone(&self.who.share), self.next_slot);
            let attendance = self.who.attendance().cloned();
            let spent = Arc::clone(&self.session.spent);
            self.next_slot += 1;
            let is_left_over = hash.is_some();
            let hash = hash.map(|hash| *hash);
            let slot = Slot { id, transfer, start: offset, offset, rest: len, content: None, hash, is_left_over };
            self.slots.push_back(slot);
            let tasks = self.shared.tasks.clone();
            let (leased, next) = oneshot::channel();
            let before = self.latest_lease.replace(next);
            self.jobs.spawn(async move {
                // One after the other: a later range that had the last buffer would wait for the first to be sent.
                if let Some(before) = before {
                    // Its sender is dropped when it has its buffer, or is gone.
                    let _ = before.await;
                }
                let mut buffer = share.lease(len).await;
                drop(leased);
                let read = move || {
                    let mut hasher = RangeHasher::new(file.size(), offset, len);
                    let mut at = offset;
                    for piece in buffer[..len].chunks_mut(if is_here { PIECE_HERE } else { GROUP_LEN }) {
                        spent.during(On::Disk, || file.read_at(at, piece))?;
                        spent.during(On::Processor, || hasher.update(piece));
                        at += piece.len() as u64;
                    }
                    let hash = hasher.finish();
                    if let Some(attendance) = attendance {
                        let is_end = offset + len as u64 == file.size();
                        attendance.hand_out(len as u64, is_end)?;
                    }
                    Ok((Bytes::from_owner(buffer), hash))
                };
                if is_here {
                    return Job::Read(id, read());
                }
                Job::Read(id, on_disk(&tasks, read).await)
            });
        }
    }

    /// A wanted range has been read.
    pub(in crate::server) fn read(&mut self, id: u64, result: Result<(Bytes, RangeHash)>) -> Result<(), (u32, Error)> {
        if self.slots.front().is_some_and(|slot| slot.id == id) {
            self.taken = Instant::now();
        }
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id) else {
            if let (Some(attendance), Ok((content, _))) = (self.who.attendance(), &result) {
                attendance.take_back(content.len() as u64);
            }
            return Ok(());
        };
        let transfer = slot.transfer;
        let (content, hash) = result.map_err(|error| (transfer, error))?;
        slot.content = Some(content);
        slot.hash.get_or_insert(hash);
        Ok(())
    }

    /// Gives back what was read for a peer that has not taken it in time; it is read again when there is room for it.
    /// Tells whether the connection should let go of its buffer too.
    pub(in crate::server) fn drop_unread(&mut self) -> bool {
        if self.taken.elapsed() < limits::LEASE_TIMEOUT {
            return false;
        }
        if self.slots.front().is_none_or(|slot| slot.content.is_none()) {
            return true;
        }
        self.read_ahead_max = 0;
        while let Some(slot) = self.slots.pop_back() {
            take_back(&self.who, &slot);
            let Slot { transfer, offset, rest, .. } = slot;
            let hash = slot.hash.filter(|_| slot.is_left_over || offset > slot.start).map(Box::new);
            self.wants.push_front(Wanted { transfer, offset, len: rest, hash });
        }
        true
    }

    /// Looks at a download of which all was sent, for what its client can be told ahead of the end. Of what would be
    /// a failure it is told at the end.
    pub(in crate::server) fn foretell(&mut self, transfer: u32) {
        let Some(download) = self.downloads.get(&transfer) else { return };
        let source = Arc::clone(&download.source);
        self.foretelling += 1;
        self.spawn(move |_, _| {
            let size = source.file.size();
            let root = source.root().filter(|&root| {
                // Unchanged after this, the record is that of the version that was opened.
                let recorded = source.file.recorded_root();
                source.file.check_unchanged().and_then(|()| check_recorded(recorded, root)).is_ok()
            });
            Job::Foretold(transfer, root.map(|root| Finish { size, root }))
        });
    }

    /// What that came to. The answer is what is to be told.
    pub(in crate::server) fn foretold(&mut self, transfer: u32, finish: Option<Finish>) -> Option<Finish> {
        self.foretelling -= 1;
        let download = self.downloads.get_mut(&transfer)?;
        download.foretold.clone_from(&finish);
        finish
    }

    /// Reads no more for a download.
    pub(in crate::server) fn end_reads(&mut self, transfer: u32) {
        if let Some(download) = self.downloads.remove(&transfer) {
            self.wanted -= self.slots_and_wants(transfer);
            let who = &self.who;
            self.slots.retain(|slot| {
                let is_other = slot.transfer != transfer;
                if !is_other {
                    take_back(who, slot);
                }
                is_other
            });
            self.wants.retain(|want| want.transfer != transfer);
            drop_elsewhere(&self.shared, download);
            // Others may have waited for its turns.
            self.read_ahead();
        }
    }
}
