//! Groups of transfers of a session that come and go over a connection which has joined it.

use super::{Download, Flow, Phase, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::GROUP_LEN;
use crate::path::RemotePath;
use crate::protocol::{Breach, Bytes16, IfExists, Kind, Put};
use crate::server::newest::Turn;
use crate::server::quota::Seat;
use crate::server::session::Transfer;

impl Flow {
    /// Takes up an upload of the session's first connection, if content may come for it.
    pub(super) fn borrow_upload(&mut self, transfer: u32) -> Result<()> {
        let Some(Transfer::Upload(groups)) = self.session.borrow(transfer) else { return Ok(()) };
        let Some(size) = groups.lock().receiver.size() else {
            // Its groups come in their order, so they come over one connection.
            return Err(Breach::Unexpected { kind: Kind::Data, why: "a stream comes over one connection" }.into());
        };
        let put = Put {
            path: RemotePath::root(),
            size: Some(size),
            mtime: None,
            mode: None,
            upload_id: Bytes16([0; 16]),
            if_exists: IfExists::Fail,
            unasked: false,
            no_base: false,
            resume: None,
            same_as: None,
            same_root: None,
            xattrs: None,
        };
        // Its seat is taken, and its rights are looked at, on the first connection.
        let upload = Upload::new(put, groups, Phase::Lent, Turn::default(), Seat::default());
        self.uploads.insert(transfer, upload);
        Ok(())
    }

    /// Takes up a download of the session's first connection, if it is open.
    pub(super) fn borrow_download(&mut self, transfer: u32) {
        if !self.downloads.contains_key(&transfer)
            && let Some(Transfer::Download(source)) = self.session.borrow(transfer)
        {
            // Whether it may still be read is looked at on the first connection.
            self.downloads.insert(transfer, Download::new(RemotePath::root(), source));
        }
    }

    /// Some of a group was thrown away. At its end its sender may be told that it is there.
    ///
    /// # Errors
    /// On a lane, when that was a group that another connection took over and has not brought whole: that one may die
    /// before it does, and this peer would wait in vain to be told. It sends anew what it was not told of.
    pub(super) fn drained(&mut self, transfer: u32, end: u64) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        let size = upload.put.size.unwrap_or(u64::MAX);
        if end < size && !end.is_multiple_of(GROUP_LEN as u64) {
            upload.drained = Some(end);
            return Ok(());
        }
        upload.drained = None;
        let group = (end - 1) / GROUP_LEN as u64;
        let groups = upload.groups.lock();
        let (is_whole, is_over) = (groups.is_whole(group), groups.is_over());
        drop(groups);
        if is_whole {
            self.tell_written(transfer, group);
        }
        self.forget_lent(transfer);
        if self.is_lane && !is_whole && !is_over {
            return Err(Error::new(ErrorKind::Session, "another connection has begun a group that came over this one"));
        }
        Ok(())
    }

    /// The peer of a lane may forget a group.
    pub(super) fn tell_written(&mut self, transfer: u32, group: u64) {
        if self.is_lane {
            self.untold.push((transfer, group));
        }
    }

    /// Whether there is something to tell.
    pub(in crate::server) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// What the peer of a lane is to be told: the groups of each transfer that it need not send again.
    pub(in crate::server) fn take_untold(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.untold)
    }

    /// Lets go of what was lent when nothing of it is in hand.
    pub(super) fn forget_lent(&mut self, transfer: u32) {
        if !self.is_lane {
            return;
        }
        let is_free = |upload: &mut Upload| upload.open.is_none() && upload.writing == 0 && upload.drained.is_none();
        if self.uploads.get_mut(&transfer).is_some_and(is_free) {
            self.uploads.remove(&transfer);
        }
        if self.downloads.contains_key(&transfer) && self.slots_and_wants(transfer) == 0 {
            self.downloads.remove(&transfer);
        }
    }

    /// On a lane: lets go of what is over on the first connection.
    pub(in crate::server) fn forget_over(&mut self) {
        if !self.is_lane {
            return;
        }
        let over: Vec<u32> = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.groups.lock().is_over())
            .map(|(&number, _)| number)
            .collect();
        for transfer in over {
            self.let_go(transfer);
            // A write of it may still run, which is counted there.
            if self.uploads.get(&transfer).is_some_and(|upload| upload.writing == 0) {
                self.uploads.remove(&transfer);
            }
        }
        let over: Vec<u32> = self.downloads.keys().copied().filter(|&number| !self.session.is_lent(number)).collect();
        over.into_iter().for_each(|transfer| self.end_reads(transfer));
        if self.uploads.is_empty() && self.downloads.is_empty() {
            self.mover = None;
        }
    }
}
