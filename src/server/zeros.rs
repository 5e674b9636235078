//! Groups of zeros that a client tells instead of sending them: hashed here, and made holes.
//!
//! They are made when the finish has come and all else is settled, because only then is it known what they replace.
//! Hashing zeros costs the server time that nobody sent bytes for, so it goes in steps that share the turns of
//! hashing stored files (`share.rs`).

use std::sync::Arc;

use super::flow::{Flow, Job, Phase, on_disk};
use crate::buffer::ZEROS;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, group_count, group_len, group_offset};
use crate::limits::ZERO_RUNS_MAX;
use crate::protocol::{Breach, Kind};

/// Groups that are made in one turn.
const STEP: u64 = 64;

impl Flow {
    /// Takes groups of zeros of an upload.
    ///
    /// # Errors
    /// A breach for an upload that takes no content now or has no known size, and for runs that cannot be.
    pub(super) fn take_zeros(&mut self, transfer: u32, runs: &[(u64, u64)]) -> Result<()> {
        let unexpected = |why| Err(Breach::Unexpected { kind: Kind::Zeros, why }.into());
        let has_ended = self.has_ended(transfer);
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            return if has_ended { Ok(()) } else { unexpected("no such transfer is open") };
        };
        match &upload.phase {
            Phase::Receiving(incoming) if !incoming.compare_only => {}
            _ => return unexpected("no content was asked for"),
        }
        let groups = upload.groups.lock();
        if groups.has_failed() || groups.is_over() {
            return Ok(());
        }
        if groups.receiver.finish().is_some() {
            return Err(Breach::Data("zeros after the finish of their file").into());
        }
        let Some(size) = groups.receiver.size() else { return unexpected("a stream has no groups that are told") };
        upload.zeros.extend(runs, group_count(size), ZERO_RUNS_MAX)?;
        Ok(())
    }

    /// Makes the next groups of zeros of a finished upload.
    pub(super) fn zero_more(&mut self, transfer: u32) {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        let Phase::Receiving(incoming) = &upload.phase else { return };
        let Some(file) = incoming.file.clone() else {
            // It goes on when there is a file.
            self.make_file(transfer);
            return;
        };
        let (groups, taken) = (Arc::clone(&upload.groups), upload.zeros.take(STEP));
        upload.writing += 1;
        let (share, tasks) = (Arc::clone(&self.who.share), self.shared.tasks.clone());
        self.jobs.spawn(async move {
            let turn = share.hash().await;
            let step = move || {
                let size = groups.lock().receiver.size();
                let size = size.ok_or_else(|| Error::new(ErrorKind::Internal, "a stream with groups of zeros"))?;
                for group in taken {
                    let content = ZEROS.get(..group_len(size, group)).unwrap_or(&ZEROS);
                    let hash = GroupHash::of(group, content);
                    if groups.lock().receiver.needs_no_zeros(group, &hash) {
                        continue;
                    }
                    file.loses(group);
                    file.write_at(group_offset(group), content)?;
                    file.holds(group, &hash, content.len());
                    groups.lock().receiver.zero(group, hash, content.len());
                }
                // Whoever commits must find nobody else holding the file.
                drop(file);
                Ok(())
            };
            let made = on_disk(&tasks, step).await;
            drop(turn);
            Job::Zeroed(transfer, made)
        });
    }

    /// Some groups of zeros are made.
    ///
    /// # Errors
    /// The end of the upload; a breach when content is missing.
    pub(super) fn zeroed(&mut self, transfer: u32, result: Result<()>) -> Result<(), (u32, Error)> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        upload.writing -= 1;
        result.map_err(|error| (transfer, error))?;
        self.commit_if_ready(transfer).map_err(|error| (transfer, error))
    }
}
