//! Content as it passes: into the buffers of uploads, out of what was read for downloads.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::time::Instant;

use super::downloads::READ_AHEAD_MAX;
use super::{Flow, Job, LEASE_LEN_FIRST, Leasing, OpenGroup, PIECE_HERE, Phase, unknown};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{group_len, group_offset};
use crate::limits::{self, BUFFERS_PER_CONNECTION, DATA_LEN_MAX, GROUP_LEN};
use crate::net::Handler;
use crate::protocol::{Breach, Kind};
use crate::server::commit::Incoming;
use crate::server::groups::Place;

impl Handler for Flow {
    fn poll_space(&mut self, cx: &mut Context<'_>, transfer: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>> {
        if self.is_lane && !self.uploads.contains_key(&transfer) {
            self.borrow_upload(transfer)?;
        }
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            return Poll::Ready(if self.has_ended(transfer) { Ok(&mut []) } else { Err(unknown(Kind::Data)) });
        };
        match &upload.phase {
            Phase::Unasked | Phase::Lent => {}
            Phase::Receiving(incoming) if !incoming.compare_only => {}
            // It came over a lane that died before it could tell.
            Phase::Committing if upload.owes_finish() => return Poll::Ready(Ok(&mut [])),
            _ => {
                let why = "no content was asked for";
                return Poll::Ready(Err(Breach::Unexpected { kind: Kind::Data, why }.into()));
            }
        }
        let mut groups = upload.groups.lock();
        let at = upload.open.as_ref().map(|open| group_offset(open.index) + (open.start + open.filled) as u64);
        let begun = upload.drained.or(at);
        let place = groups.place(cx, self.id, self.session.is_shared(), begun, (offset, len));
        let piece = match ready!(place)? {
            Place::Here(piece) => piece,
            Place::Nowhere => {
                drop(groups);
                upload.drained = Some(offset);
                self.let_go(transfer);
                return Poll::Ready(Ok(&mut []));
            }
        };
        if matches!(upload.phase, Phase::Lent) && groups.file.is_none() {
            self.session.news.notify_one();
            return groups.wait_for_file(cx);
        }
        drop(groups);
        if matches!(upload.phase, Phase::Receiving(Incoming { file: None, .. })) {
            self.make_file(transfer);
            return Poll::Pending;
        }
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Poll::Ready(Ok(&mut [])) };
        if matches!(upload.phase, Phase::Unasked) {
            // The memory follows the bytes that come.
            if upload.content.capacity() == 0 {
                // What an earlier upload has left in it is written over: setting it to zero first costs as much again.
                upload.content = self.spare.pop().unwrap_or_default();
            }
            let end = piece.start + len.min(LEASE_LEN_FIRST);
            upload.content.resize(end, 0);
            return Poll::Ready(Ok(&mut upload.content[piece.start..end]));
        }
        upload.drained = None;
        if upload.open.as_ref().is_some_and(|open| open.index != piece.group) {
            return Poll::Ready(Err(Breach::Data("pieces of two groups of one file in turn").into()));
        }
        if upload.open.is_none() {
            if self.begun >= limits::OPEN_GROUPS_MAX {
                // Each has content that nobody else can use.
                return Poll::Ready(Err(Breach::Excess("begun groups").into()));
            }
            self.begun += 1;
            let hasher = upload.groups.begin_group(piece)?;
            upload.open = Some(OpenGroup {
                index: piece.group,
                start: piece.start,
                hasher: Some(hasher),
                buffer: None,
                filled: 0,
                leased: Instant::now(),
            });
        }
        let Some(open) = &mut upload.open else { return Poll::Pending };
        if open.buffer.is_none() {
            // A job that comes back wakes this task.
            if self.writing >= BUFFERS_PER_CONNECTION || open.hasher.is_none() {
                return Poll::Pending;
            }
            let whole = upload.put.size.map_or(GROUP_LEN, |size| group_len(size, piece.group));
            let len = self.lease_len.min(whole - open.start);
            let lease = match self.leasing.take() {
                Some((_, leased, mut leasing)) if leased == len => match leasing.as_mut().poll(cx) {
                    Poll::Ready(lease) => lease,
                    Poll::Pending => {
                        self.leasing = Some((transfer, len, leasing));
                        return Poll::Pending;
                    }
                },
                _ => {
                    let mut leasing: Leasing = Box::pin(Arc::clone(&self.who.share).lease(len));
                    match leasing.as_mut().poll(cx) {
                        Poll::Ready(lease) => lease,
                        Poll::Pending => {
                            self.leasing = Some((transfer, len, leasing));
                            return Poll::Pending;
                        }
                    }
                }
            };
            open.buffer = Some(lease);
            self.holds_buffers = true;
            open.leased = Instant::now();
        }
        let (start, leased) = (piece.start - open.start, open.buffer.as_ref().map_or(0, |buffer| buffer.len()));
        let end = leased.min(start + len);
        let space = open.buffer.as_mut().and_then(|buffer| buffer.get_mut(start..end));
        Poll::Ready(space.ok_or_else(|| Error::new(ErrorKind::Internal, "a group buffer that is too small")))
    }

    fn filled(&mut self, transfer: u32, offset: u64, len: usize) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        let accepted =
            if upload.drained.is_some() { None } else { upload.groups.lock().accept(self.id, offset, len)? };
        let Some(piece) = accepted else {
            // Thrown away, or taken over by another connection while it came.
            self.let_go(transfer);
            return self.drained(transfer, offset + len as u64);
        };
        if matches!(upload.phase, Phase::Unasked) {
            upload.content.truncate(piece.start + len);
            return Ok(());
        }
        if upload.put.size.is_none()
            && let Phase::Receiving(incoming) = &mut upload.phase
            && !upload.is_over
            && let Err(error) = (incoming.reservation.cover(offset + len as u64))
                .and_then(|()| incoming.claim.cover(offset + len as u64))
        {
            // Its end, as soon as the connection's task hears of it, and that of nothing else.
            upload.is_over = true;
            self.jobs.spawn(async move { Job::Committed(transfer, Err(error), None) });
        }
        let Some(open) = &mut upload.open else { return Ok(()) };
        open.filled += len;
        let is_full = open.buffer.as_ref().is_some_and(|buffer| open.filled == buffer.len());
        if is_full && open.leased.elapsed() < limits::LEASE_TIMEOUT {
            self.lease_len = (self.lease_len * 4).min(GROUP_LEN);
        }
        if piece.completes {
            if let Some(open) = upload.open.take() {
                self.begun -= 1;
                self.write(transfer, open);
            }
        } else if is_full {
            self.spill(transfer);
        } else if open.filled >= PIECE_HERE
            && upload.groups.lock().file.as_ref().is_some_and(|file| file.is_in_memory())
            && self.writes_here()
        {
            self.write_piece(transfer);
        }
        Ok(())
    }

    fn nothing_came(&mut self, transfer: u32) {
        // What was only announced holds no memory.
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        if let Some(open) = upload.open.as_mut().filter(|open| open.filled == 0) {
            open.buffer = None;
        }
        if matches!(upload.phase, Phase::Unasked) {
            let received = upload.groups.lock().receiver.received();
            upload.content.truncate(usize::try_from(received).unwrap_or(usize::MAX));
            if upload.content.is_empty() {
                upload.content = Vec::new();
            }
        }
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        if self.read_ahead_max == 0 {
            // The peer has taken what was before.
            self.read_ahead_max = 1;
            self.read_ahead();
        }
        // A read that comes back wakes this task.
        let Some(slot) = self.slots.front_mut() else { return Poll::Pending };
        let Some(content) = &mut slot.content else { return Poll::Pending };
        let piece = content.split_to(content.len().min(DATA_LEN_MAX));
        let (transfer, offset) = (slot.transfer, slot.offset);
        self.taken = Instant::now();
        slot.offset += piece.len() as u64;
        slot.rest -= piece.len();
        self.wanted = self.wanted.saturating_sub(piece.len() as u64);
        if content.is_empty() {
            if let (Some(hash), Some(download)) = (slot.hash, self.downloads.get(&transfer))
                && download.source.sent(hash)
            {
                self.session.news.notify_one();
            }
            self.slots.pop_front();
            self.forget_lent(transfer);
            self.read_ahead_max = (self.read_ahead_max * 2).min(READ_AHEAD_MAX);
            self.read_ahead();
        }
        Poll::Ready((transfer, offset, piece))
    }
}
