//! What jobs have found, what the peer is told of it, and what is begun next.

use std::sync::Arc;

use tracing::{debug, info, warn};

use super::{Driver, LISTINGS_MAX, ListStage, MADE_DIRECTORIES_MAX, has_room};
use crate::access::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::protocol::{
    Done, Failed, FinishAhead, Holding, List, PutAnswer, Receipt, Stored, StoredBatch, StoredItem, VALUES_MAX, Values,
};
use crate::server::audited;
use crate::server::commit::{CommittedSmall, Opened, SmallAnswer};
use crate::server::flow::{Download, HashRun, Job, Purpose, drop_elsewhere};
use crate::server::offer::Offer;
use crate::server::outlet::Outlet;
use crate::server::requests::{self, Got, ListStep};
use crate::server::session;

impl<C: Outlet> Driver<C> {
    /// Takes what a job has found. An error is the end of the connection.
    pub(in crate::server) fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Opened(transfer, Ok(Opened::Upload(incoming)), _) => {
                let claimed = incoming.offer.as_ref().filter(|_| incoming.is_held);
                let claimed = claimed.map(|offer| offer.claimed()).unwrap_or_default();
                let answer = PutAnswer {
                    holding: match (incoming.is_held, &incoming.base) {
                        (true, _) => Holding::Held,
                        (false, Some(_)) => Holding::Base,
                        (false, None) => Holding::Fresh,
                    },
                    generation: incoming.generation,
                    held_size: match (incoming.is_held, &incoming.base) {
                        (false, Some(base)) => base.size(),
                        _ => claimed.iter().map(|&(_, len)| len).sum(),
                    },
                    compare_only: incoming.compare_only,
                    ranges: List(claimed),
                };
                if self.flow.is_open(transfer) {
                    self.connection.send(transfer, &answer);
                }
                self.flow.opened(transfer, *incoming);
            }
            Job::Opened(transfer, Ok(Opened::Ended(stored)), receipt)
            | Job::Committed(transfer, Ok(stored), receipt) => {
                if self.flow.is_open(transfer) {
                    self.stored(transfer, &stored, receipt.as_ref());
                }
            }
            Job::Opened(transfer, Err(error), _) => self.failed(transfer, &error),
            Job::Made(transfer, Ok(file)) => {
                self.flow.made(transfer, file);
                // Zeros may have waited for it.
                let committed = self.flow.commit_if_told(transfer);
                self.written(committed.map_err(|error| (transfer, error)))?;
            }
            Job::Zeroed(transfer, result) => {
                let zeroed = self.flow.zeroed(transfer, result);
                self.written(zeroed)?;
            }
            Job::Made(transfer, Err(error)) => self.failed(transfer, &error),
            Job::Written(transfer, group, result) => {
                let written = self.flow.written(transfer, group, result);
                self.written(written)?;
            }
            Job::Committed(transfer, Err(error), _) => self.failed(transfer, &error),
            Job::Spilled(transfer, group, result) => {
                let written = self.flow.spilled(transfer, group, result);
                self.written(written)?;
            }
            Job::CommittedSmall(committed) => self.stored_small(committed),
            Job::Read(slot, result) => {
                if let Err((transfer, error)) = self.flow.read(slot, result) {
                    self.failed(transfer, &error);
                }
                if !self.flow.is_reading() {
                    // Its client may not wait for what comes at the end.
                    self.meter.tell(&mut self.connection);
                }
            }
            Job::Foretold(transfer, finish) => {
                if let Some(finish) = self.flow.foretold(transfer, finish) {
                    // It may be the end for this client.
                    self.meter.tell(&mut self.connection);
                    self.connection.send(transfer, &FinishAhead { size: finish.size, root: finish.root });
                }
            }
            Job::OpenedToHash(transfer, Ok(run)) => self.hashed(transfer, run)?,
            Job::OpenedToHash(transfer, Err(error)) => self.failed(transfer, &error),
            Job::Hashed(transfer, result) => {
                self.flow.step_hashed();
                match result {
                    Ok(run) => self.hashed(transfer, run)?,
                    Err(error) => self.failed(transfer, &error),
                }
            }
            Job::Offered(transfer, result) => {
                self.flow.step_hashed();
                match result {
                    Ok(offer) => self.offered(transfer, offer)?,
                    Err(error) => self.failed(transfer, &error),
                }
            }
            Job::Answered(transfer, result) => {
                self.meter.tell(&mut self.connection);
                self.closing.remove(&transfer);
                if self.requests.remove(&transfer) {
                    match result {
                        Ok(frames) => frames.into_iter().for_each(|frame| self.connection.send_frame(frame)),
                        Err(error) => self.fail(transfer, &error),
                    }
                }
            }
            Job::MadeDirectory(transfer, path, made) => {
                let is_blind = !self.shared.pass(&self.flow.who).is_ok_and(|pass| pass.may(Action::List(&path)));
                let may_change =
                    || self.shared.pass(&self.flow.who).is_ok_and(|pass| pass.may(Action::Overwrite(&path)));
                if made.as_ref().is_ok_and(|&made| made) && self.made.len() < MADE_DIRECTORIES_MAX && !may_change() {
                    self.made.insert(path);
                }
                if self.requests.remove(&transfer) {
                    match made {
                        // Who sees no names is not told either whether one was taken.
                        Ok(made) => {
                            let told = made || is_blind;
                            self.connection.send(transfer, &requests::done(u64::from(told)));
                        }
                        Err(error) => self.fail(transfer, &error),
                    }
                }
            }
            Job::Listed(transfer, step) => {
                self.listing -= 1;
                self.listed(transfer, step);
            }
            Job::Got(answers, left) => {
                self.meter.tell(&mut self.connection);
                for (transfer, result) in answers {
                    self.got(transfer, result);
                }
                self.flow.got_batch(left);
            }
        }
        Ok(())
    }

    /// Content is written, or not: a breach ends the connection, all else the transfer.
    pub(super) fn written(&mut self, written: Result<(), (u32, Error)>) -> Result<()> {
        match written {
            Err((_, error)) if error.kind() == ErrorKind::Protocol => Err(error),
            Err((transfer, error)) => {
                self.failed(transfer, &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn listed(&mut self, transfer: u32, step: Result<ListStep>) {
        if !self.requests.contains(&transfer) {
            drop_elsewhere(&self.shared, step);
            return;
        }
        match step {
            Ok(ListStep { frames, rest }) => {
                frames.into_iter().for_each(|frame| self.connection.send_frame(frame));
                match rest {
                    Some(rest) => self.listings.push_front((transfer, ListStage::Begun(rest))),
                    None => drop(self.requests.remove(&transfer)),
                }
            }
            Err(error) => self.failed(transfer, &error),
        }
    }

    fn got(&mut self, transfer: u32, result: Result<Got>) {
        if !self.requests.remove(&transfer) {
            drop_elsewhere(&self.shared, result);
            return;
        }
        match result {
            Ok(Got { frames, file, first }) => {
                frames.into_iter().for_each(|frame| self.connection.send_frame(frame));
                match file {
                    Some((path, source)) => {
                        self.session.lend(transfer, session::Transfer::Download(Arc::clone(&source)));
                        self.flow.downloads.insert(transfer, Download::new(path, source));
                        if first {
                            self.flow.send_first(transfer);
                        }
                    }
                    None => self.sent_count += 1,
                }
            }
            Err(error) => self.fail(transfer, &error),
        }
    }

    /// Goes on with what waited for the peer to read, after each step.
    pub(in crate::server) fn go_on(&mut self) {
        self.begin_more();
        self.open.set(self.open_count());
    }

    fn begin_more(&mut self) {
        if !has_room(&self.connection) {
            return;
        }
        while self.listing < LISTINGS_MAX
            && let Some((transfer, stage)) = self.listings.pop_front()
        {
            self.listing += 1;
            self.flow.spawn(move |shared, who| {
                let step = match stage {
                    ListStage::Asked(request) => audited::request(shared, who, "list", &request.path, || {
                        requests::list(shared, who, transfer, &request)
                    }),
                    ListStage::Begun(rest) => requests::list_step(shared, who, transfer, rest),
                };
                Job::Listed(transfer, step)
            });
        }
        self.flow.hash_more();
        self.flow.get_more();
    }

    /// A step of a hash run is done.
    fn hashed(&mut self, transfer: u32, run: HashRun) -> Result<()> {
        let (size, end) = (run.file.size(), run.end());
        let is_wanted = match run.purpose {
            Purpose::Root(_) => self.requests.contains(&transfer),
            Purpose::Values(_) => self.flow.is_open(transfer),
        };
        if !is_wanted {
            drop_elsewhere(&self.shared, run.file);
            return Ok(());
        }
        if let Purpose::Root(is_read) = run.purpose {
            let recorded = if is_read { None } else { run.file.recorded_root() };
            if let Some(root) = recorded.or_else(|| run.tree.root(size)) {
                self.requests.remove(&transfer);
                match run.file.check_unchanged() {
                    Ok(()) => {
                        let done = Done { root: Some(root), size: Some(size), ..requests::done(1) };
                        self.connection.send(transfer, &done);
                    }
                    Err(error) => self.fail(transfer, &error),
                }
                drop_elsewhere(&self.shared, run.file);
            } else {
                self.flow.hash(transfer, run);
            }
            return Ok(());
        }
        let values: Vec<_> = (run.from..run.next.min(end)).filter_map(|group| run.tree.value(group)).collect();
        let mut first = run.from;
        for values in values.chunks(VALUES_MAX) {
            self.connection.send(transfer, &Values { first, values: List(values.to_vec()) });
            first += values.len() as u64;
        }
        if run.next < end {
            self.flow.hash(transfer, run);
        } else if let Some(download) = self.flow.downloads.get_mut(&transfer) {
            download.is_hashing = false;
        }
        Ok(())
    }

    /// Tells the values of what is there for an upload, as far as it was looked at.
    fn offered(&mut self, transfer: u32, offer: Box<Offer>) -> Result<()> {
        let values = self.flow.offered(transfer, offer);
        for run in values.chunk_by(|left, right| left.0 + 1 == right.0) {
            for run in run.chunks(VALUES_MAX) {
                let values = List(run.iter().map(|(_, value)| *value).collect());
                self.connection.send(transfer, &Values { first: run[0].0, values });
            }
        }
        let committed = self.flow.commit_if_told(transfer);
        self.written(committed.map_err(|error| (transfer, error)))
    }

    fn stored(&mut self, transfer: u32, stored: &Stored, receipt: Option<&Receipt>) {
        if let Some(upload) = self.flow.uploads.get(&transfer) {
            info!("{:?} {} ({} bytes)", stored.outcome, stored.path.as_ref().unwrap_or(&upload.put.path), stored.size);
        }
        self.stored_count += 1;
        let owes_finish = self.flow.uploads.get(&transfer).is_some_and(|upload| upload.owes_finish());
        self.flow.end(transfer);
        if !owes_finish {
            self.flow.forget_ended(transfer);
        }
        self.meter.tell(&mut self.connection);
        if let Some(receipt) = receipt {
            self.connection.send(transfer, receipt);
        }
        self.connection.send(transfer, stored);
    }

    fn stored_small(&mut self, CommittedSmall { answers, spare }: CommittedSmall) {
        let mut items = Vec::new();
        for SmallAnswer { transfer, size, stored, receipt, asked } in answers {
            self.flow.answered_unasked(size, asked);
            match stored {
                Ok(stored) => {
                    self.stored_count += 1;
                    if let Some(receipt) = receipt {
                        self.connection.send(transfer, &receipt);
                    }
                    items.push(StoredItem { transfer, stored });
                }
                Err(error) => self.fail(transfer, &error),
            }
        }
        // A renamed one carries a path of up to 4 KiB; all others are small.
        let mut batch = Vec::new();
        let mut len = 0;
        for item in items {
            let item_len = 96 + item.stored.path.as_ref().map_or(0, |path| path.len() + 3 * path.components().len());
            if batch.len() == 512 || len + item_len > limits::CONTROL_LEN_MAX / 2 {
                self.connection.send(0, &StoredBatch { items: List(std::mem::take(&mut batch)) });
                len = 0;
            }
            len += item_len;
            batch.push(item);
        }
        self.meter.tell(&mut self.connection);
        if !batch.is_empty() {
            self.connection.send(0, &StoredBatch { items: List(batch) });
        }
        self.flow.committed_small(spare);
    }

    /// Ends an open transfer or request by failure.
    pub(super) fn failed(&mut self, transfer: u32, error: &Error) {
        let was_open = self.flow.is_open(transfer) | self.requests.remove(&transfer);
        self.flow.end(transfer);
        if was_open {
            self.fail(transfer, error);
        }
    }

    pub(super) fn fail(&mut self, transfer: u32, error: &Error) {
        match error.kind() {
            ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::Internal => {
                warn!("transfer {transfer} failed: {}", error.chain());
            }
            // Clients look whether something is there before they store it.
            ErrorKind::NotFound => debug!("transfer {transfer}: {}", error.chain()),
            _ => info!("transfer {transfer} refused: {}", error.chain()),
        }
        let mut failed = Failed::from_error(error);
        // Others will close theirs.
        failed.retry = error.is_out_of_descriptors().then_some(true);
        self.connection.send(transfer, &failed);
    }
}
