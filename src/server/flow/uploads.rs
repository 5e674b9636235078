//! Uploads: from their description over the groups that come to their commit.

use std::sync::Arc;

use super::hashes::Run;
use super::{Flow, Job, LEASE_LEN_LEAST, OpenGroup, Phase, Upload, drop_elsewhere, unknown};
use crate::error::{Error, Result};
use crate::hash::{GroupHasher, GroupValue};
use crate::protocol::{Breach, Finish, FinishAhead, Kind, Put};
use crate::server::commit::{Incoming, SmallUpload};
use crate::server::groups::Groups;
use crate::server::held::Sink;
use crate::server::offer::Offer;
use crate::server::quota::Seat;
use crate::server::session::Transfer;
use crate::server::spent::On;
use crate::server::{audited, commit};
use crate::xattrs::Xattrs;
use crate::{limits, storage};

/// Bytes of the attributes that come with a description.
fn xattrs_len(put: &Put) -> usize {
    put.xattrs.as_ref().map_or(0, Xattrs::len)
}

impl Flow {
    /// Takes a description.
    pub(in crate::server) fn put(&mut self, transfer: u32, put: Put, seat: Seat) -> Result<()> {
        let mut phase = Phase::Opening;
        let turn = self.standing.turn(&put.upload_id, put.unasked);
        if put.unasked {
            let size = put.size.filter(|&size| size <= limits::UNASKED_FILE_MAX);
            let size = size.ok_or(Breach::Excess("unasked content for one file"))?;
            self.unasked += commit::unasked_len(&put, size);
            if self.unasked > limits::UNASKED_CONNECTION_MAX {
                return Err(Breach::Excess("unasked content").into());
            }
            phase = Phase::Unasked;
        } else {
            self.check_xattrs(&put)?;
            let put = put.clone();
            self.spawn(move |shared, who| {
                let (opened, receipt) = audited::open(shared, who, &put, turn);
                Job::Opened(transfer, opened, receipt)
            });
        }
        let groups = Groups::new(put.size, self.id);
        self.uploads.insert(transfer, Upload::new(put, groups, phase, turn, seat));
        Ok(())
    }

    /// Refuses attributes that would be too many over all uploads that are open here.
    fn check_xattrs(&self, put: &Put) -> Result<()> {
        let len = xattrs_len(put);
        let open = |upload: &Upload| if upload.put.unasked { 0 } else { xattrs_len(&upload.put) };
        if len > 0 && self.uploads.values().map(open).sum::<usize>() + len > limits::XATTRS_CONNECTION_MAX {
            return Err(Breach::Excess("extended attributes").into());
        }
        Ok(())
    }

    /// Takes what the finish of an upload will say. It is committed as soon as all of it is there.
    pub(in crate::server) fn finish_ahead(&mut self, transfer: u32, ahead: FinishAhead) -> Result<()> {
        let unexpected = |why| Breach::Unexpected { kind: Kind::FinishAhead, why };
        let has_ended = self.has_ended(transfer);
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            return if has_ended { Ok(()) } else { Err(unknown(Kind::FinishAhead)) };
        };
        if !matches!(&upload.phase, Phase::Receiving(incoming) if !incoming.compare_only) {
            return Err(unexpected("no content was asked for").into());
        }
        let finish = Finish { size: ahead.size, root: ahead.root };
        {
            let mut groups = upload.groups.lock();
            if groups.has_failed() {
                return Ok(());
            }
            groups.receiver.foretell_finish(finish.clone())?;
        }
        upload.foretold = Some(finish);
        self.commit_if_ready(transfer)
    }

    /// Takes a finish.
    pub(in crate::server) fn finish(&mut self, transfer: u32, finish: Finish) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            return self.ended.forget(transfer).then_some(()).ok_or_else(|| unknown(Kind::Finish));
        };
        let foretold = upload.foretold.take();
        match &upload.phase {
            Phase::Unasked | Phase::Receiving(_) => {}
            Phase::Committing if foretold.is_some() => {
                let is_same = foretold == Some(finish);
                return if is_same {
                    Ok(())
                } else {
                    Err(Breach::Data("a finish that is not as it was foretold").into())
                };
            }
            Phase::Opening | Phase::Committing | Phase::Lent => {
                return Err(Breach::Unexpected { kind: Kind::Finish, why: "no content was asked for" }.into());
            }
        }
        {
            let mut groups = upload.groups.lock();
            if groups.has_failed() {
                // A disk thread knows already; its word ends the transfer. What came since then was not counted.
                return Ok(());
            }
            groups.receiver.set_finish(finish.clone())?;
        }
        if matches!(upload.phase, Phase::Unasked) {
            if upload.groups.lock().receiver.received() != finish.size {
                return Err(Breach::Unexpected { kind: Kind::Finish, why: "content is missing" }.into());
            }
            let Some(upload) = self.uploads.remove(&transfer) else { return Ok(()) };
            let Upload { put, content, seat, turn, .. } = upload;
            self.small.push(SmallUpload { transfer, put, content, finish, seat, turn });
            self.commit_small();
            return Ok(());
        }
        if upload.is_last_open()
            && let Some(open) = upload.open.take_if(|open| open.hasher.is_some())
        {
            self.begun -= 1;
            self.write(transfer, open);
        }
        self.commit_if_ready(transfer)
    }

    /// The server has looked at what is there.
    pub(in crate::server) fn opened(&mut self, transfer: u32, mut incoming: Incoming) {
        if let Some(upload) = self.uploads.get_mut(&transfer) {
            if let Some(file) = &incoming.file {
                upload.groups.set_file(Arc::clone(file));
            }
            if !incoming.compare_only {
                self.session.lend(transfer, Transfer::Upload(Arc::clone(&upload.groups)));
            }
            if let Some(base) = &incoming.base {
                upload.groups.lock().receiver.set_base(base.size());
            }
            let offer = incoming.offer.take();
            upload.phase = Phase::Receiving(incoming);
            if let Some(offer) = offer {
                upload.groups.claim(offer.ranges().to_vec());
                self.hash_runs.push_back((transfer, Run::Offer(offer)));
            }
        } else {
            // The client gave up meanwhile: dropping it removes what was staged.
            drop_elsewhere(&self.shared, incoming);
        }
    }

    /// Some more of what is there was hashed. Tells the values that are to be told.
    pub(in crate::server) fn offered(&mut self, transfer: u32, mut offer: Box<Offer>) -> Vec<(u64, GroupValue)> {
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            drop_elsewhere(&self.shared, offer);
            return Vec::new();
        };
        let found = std::mem::take(&mut offer.found);
        let values = found.iter().map(|(group, found)| (*group, found.value())).collect();
        let next = (!offer.is_over()).then_some(offer.next);
        let root = offer.base_root();
        if next.is_some() {
            self.hash_runs.push_back((transfer, Run::Offer(offer)));
        } else {
            if let Phase::Receiving(incoming) = &mut upload.phase {
                incoming.base_root = root;
            }
            // Not elsewhere: the commit needs the file for itself. Nothing of this is the last handle.
            drop(offer);
        }
        upload.groups.told(found, next);
        values
    }

    /// Has the file of an upload with a base made, once its first content comes.
    pub(in crate::server) fn make_file(&mut self, transfer: u32) {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        if !std::mem::replace(&mut upload.making, true) {
            let Phase::Receiving(Incoming { if_exists, .. }) = &upload.phase else { return };
            let (put, begun) = (upload.put.clone(), *if_exists);
            self.spawn(move |shared, who| Job::Made(transfer, commit::make_file(shared, who, &put, begun)));
        }
    }

    /// The file of an upload with a base is made: its content can be taken.
    pub(in crate::server) fn made(&mut self, transfer: u32, file: storage::Upload) {
        if let Some(Upload { phase: Phase::Receiving(incoming), making, groups, .. }) = self.uploads.get_mut(&transfer)
            && let Some(right) = incoming.right.take()
        {
            let file = Arc::new(right.with(file));
            groups.set_file(Arc::clone(&file));
            incoming.file = Some(file);
            *making = false;
        } else {
            drop_elsewhere(&self.shared, file);
        }
    }

    /// Has the rest of a whole group hashed and written.
    pub(super) fn write(&mut self, transfer: u32, open: OpenGroup) {
        let OpenGroup { index, start, hasher, buffer, filled, .. } = open;
        let Some(mut hasher) = hasher else { return };
        #[cfg(test)]
        let is_lane = self.is_lane;
        let spent = Arc::clone(&self.session.spent);
        self.write_job(transfer, index, move |groups, file| {
            let content = buffer.as_deref().and_then(|buffer| buffer.get(..filled)).unwrap_or(&[]);
            #[cfg(test)]
            let content = if is_lane && crate::server::sim::planted(crate::server::sim::Planted::LaneUnwritten) {
                hasher.update(content);
                &[][..]
            } else {
                content
            };
            let written = spent.write_group(&file, &mut hasher, start, content).map(|()| {
                let hash = hasher.finish();
                file.holds(index, &hash, content.len());
                hash
            });
            // Whoever commits must find nobody else holding the file.
            drop(file);
            groups.written(index, written.as_ref().map(|hash| Some(*hash)));
            Job::Written(transfer, index, written.map(drop))
        });
    }

    /// Has what has come of a group hashed and written, and gives its buffer back.
    pub(super) fn spill(&mut self, transfer: u32) {
        let Some(open) = self.uploads.get_mut(&transfer).and_then(|upload| upload.open.as_mut()) else { return };
        let (Some(buffer), Some(mut hasher)) = (open.buffer.take(), open.hasher.take()) else { return };
        let (index, start, filled) = (open.index, open.start, std::mem::take(&mut open.filled));
        open.start += filled;
        let spent = Arc::clone(&self.session.spent);
        let has_begun = self.write_job(transfer, index, move |groups, file| {
            let written = spent.write_group(&file, &mut hasher, start, &buffer[..filled]);
            if written.is_ok() {
                file.holds_prefix(index, start + filled, filled);
            }
            drop(file);
            groups.written(index, written.as_ref().map(|()| None));
            Job::Spilled(transfer, index, written.map(|()| hasher))
        });
        if !has_begun {
            self.let_go(transfer);
        }
    }

    /// Hashes and writes what has come of a group, and goes on filling its buffer from the start.
    pub(super) fn write_piece(&mut self, transfer: u32) {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        let Some(open) = upload.open.as_mut() else { return };
        let (Some(buffer), Some(hasher)) = (&open.buffer, open.hasher.as_deref_mut()) else { return };
        let Some(content) = buffer.get(..open.filled) else { return };
        let Some(file) = upload.groups.begin_write(self.id, open.index) else { return self.let_go(transfer) };
        let (index, end) = (open.index, open.start + open.filled);
        let written = self.session.spent.write_group(&file, hasher, open.start, content);
        if written.is_ok() {
            file.holds_prefix(index, end, content.len());
        }
        drop(file);
        upload.groups.written(index, written.as_ref().map(|()| None));
        (open.start, open.filled) = (end, 0);
        if let Err(error) = written {
            // As if a disk thread had told it.
            self.writing += 1;
            upload.writing += 1;
            self.jobs.spawn(async move { Job::Spilled(transfer, index, Err(error)) });
        }
    }

    /// Runs a job that writes into a group, if that group is still this connection's.
    fn write_job(
        &mut self,
        transfer: u32,
        group: u64,
        job: impl FnOnce(&Groups, Arc<Sink>) -> Job + Send + 'static,
    ) -> bool {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return false };
        let Some(file) = upload.groups.begin_write(self.id, group) else { return false };
        let (groups, session) = (Arc::clone(&upload.groups), Arc::clone(&self.session));
        self.writing += 1;
        upload.writing += 1;
        let is_here = file.is_in_memory() && self.writes_here();
        let write = move || {
            let done = job(&groups, file);
            if groups.failure().is_some() || groups.lock().receiver.finish().is_some() {
                session.news.notify_one();
            }
            done
        };
        if is_here {
            let done = write();
            self.jobs.spawn(async move { done });
        } else {
            // To its end though the connection be gone: what came is there, and others may rely on that.
            self.spawn_commit(move |_, _| write());
        }
        true
    }

    /// Forgets what has come of a group that is another connection's by now, or of no use.
    pub(super) fn let_go(&mut self, transfer: u32) {
        // Nobody would take it, and others wait.
        self.leasing.take_if(|(waiting, ..)| *waiting == transfer);
        if let Some(upload) = self.uploads.get_mut(&transfer)
            && upload.open.take().is_some()
        {
            self.begun -= 1;
        }
    }

    /// The beginning of a group is written.
    pub(in crate::server) fn spilled(
        &mut self,
        transfer: u32,
        group: u64,
        result: Result<Box<GroupHasher>>,
    ) -> Result<(), (u32, Error)> {
        self.writing -= 1;
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        upload.writing -= 1;
        let hasher = result.map_err(|error| (transfer, error))?;
        if let Some(open) = upload.open.as_mut().filter(|open| open.index == group && open.hasher.is_none()) {
            open.hasher = Some(hasher);
        }
        if upload.is_last_open()
            && let Some(open) = upload.open.take()
        {
            self.begun -= 1;
            self.write(transfer, open);
        }
        self.forget_lent(transfer);
        // A finish may have come too early, which nothing else would notice.
        self.commit_if_ready(transfer).map_err(|error| (transfer, error))
    }

    /// Gives back the buffers that were not filled in time: their beginnings go to their places.
    pub(in crate::server) fn spill_slow(&mut self) {
        let is_slow = |upload: &Upload| {
            upload.open.as_ref().is_some_and(|open| open.filled > 0 && open.leased.elapsed() >= limits::LEASE_TIMEOUT)
        };
        let slow: Vec<u32> = self.uploads.iter().filter(|(_, upload)| is_slow(upload)).map(|(id, _)| *id).collect();
        self.holds_buffers = self.uploads.values().any(|upload| upload.open.is_some());
        for transfer in slow {
            self.lease_len = LEASE_LEN_LEAST;
            self.spill(transfer);
        }
        self.forget_over();
    }

    /// A group is written, and recorded by who wrote it.
    pub(in crate::server) fn written(
        &mut self,
        transfer: u32,
        group: u64,
        result: Result<()>,
    ) -> Result<(), (u32, Error)> {
        self.writing -= 1;
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        upload.writing -= 1;
        result.map_err(|error| (transfer, error))?;
        self.tell_written(transfer, group);
        self.forget_lent(transfer);
        self.commit_if_ready(transfer).map_err(|error| (transfer, error))
    }

    /// Uploads that are finished, and may have waited for what lanes have brought.
    pub(in crate::server) fn finished(&self) -> Vec<u32> {
        let is_finished = |upload: &Upload| {
            matches!(upload.phase, Phase::Receiving(_)) && upload.groups.lock().receiver.finish().is_some()
        };
        self.uploads.iter().filter(|(_, upload)| is_finished(upload)).map(|(&transfer, _)| transfer).collect()
    }

    /// All values may be told now, which a finish may have waited for.
    pub(in crate::server) fn commit_if_told(&mut self, transfer: u32) -> Result<()> {
        self.commit_if_ready(transfer)
    }

    pub(in crate::server) fn commit_if_ready(&mut self, transfer: u32) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        if upload.writing > 0
            || !matches!(upload.phase, Phase::Receiving(_))
            || upload.groups.lock().receiver.finish().is_none()
        {
            return Ok(());
        }
        let (is_offering, is_written) = {
            let groups = upload.groups.lock();
            (groups.is_offering(), groups.is_written())
        };
        if is_offering || !is_written {
            // The client was faster with its copy than we are with ours; or what a lane has brought is being written.
            return Ok(());
        }
        if !upload.zeros.is_empty() {
            self.zero_more(transfer);
            return Ok(());
        }
        let (is_ready, is_coming) = {
            let groups = upload.groups.lock();
            let receiver = &groups.receiver;
            // All of a group has come over a lane that has not begun to write it: that wakes whoever asks here.
            (receiver.is_ready(), receiver.is_foretold() || receiver.has_unhashed())
        };
        if !is_ready && is_coming {
            return Ok(());
        }
        if !is_ready {
            return Err(Breach::Unexpected { kind: Kind::Finish, why: "content is missing" }.into());
        }
        let Phase::Receiving(incoming) = std::mem::replace(&mut upload.phase, Phase::Committing) else {
            return Ok(());
        };
        let receiver = upload.groups.take_receiver();
        self.session.end(transfer);
        let put = upload.put.clone();
        let spent = Arc::clone(&self.session.spent);
        self.spawn_commit(move |shared, who| {
            let (stored, receipt) = spent.during(On::Disk, || audited::commit(shared, who, &put, incoming, receiver));
            Job::Committed(transfer, stored, receipt)
        });
        Ok(())
    }
}
