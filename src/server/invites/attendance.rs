//! Who uses an invite at this moment: a connection's part in a run, room that its uploads hold, and what they spend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use super::{Giver, Kept, State, lock, revoked, seconds};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::INVITE_SIZE_STEP;
use crate::path::RemotePath;
use crate::server::shared::Who;

/// A connection's part in a run.
pub(in crate::server) struct Attendance {
    pub(super) kept: Arc<Kept>,
    pub(super) key: [u8; 16],
    /// Which session of the run it belongs to, and which is the latest.
    pub(super) number: u64,
    pub(super) session: Arc<AtomicU64>,
}

impl Attendance {
    /// The certificates of who gave the invite.
    pub(in crate::server) fn giver(&self) -> Giver {
        self.kept.giver()
    }

    fn is_latest(&self) -> bool {
        self.session.load(Ordering::SeqCst) == self.number
    }

    /// Whether this connection may go on: the invite was not taken back, its time is not over, and no newer connection
    /// goes on with the run.
    ///
    /// # Errors
    /// `Rights` or `Superseded`.
    pub(in crate::server) fn check(&self) -> Result<()> {
        if self.kept.is_revoked.load(Ordering::SeqCst) {
            return Err(revoked());
        }
        self.kept.check_time(seconds(SystemTime::now()))?;
        if self.is_latest() {
            return Ok(());
        }
        Err(Attendance::superseded())
    }

    fn superseded() -> Error {
        Error::new(ErrorKind::Superseded, "this command goes on over another connection, or has ended")
    }

    /// Calls `with` for the run, if this is the latest session of it.
    fn with_run<T>(&self, with: impl FnOnce(&mut State, [u8; 16]) -> Result<T>) -> Result<T> {
        let mut state = lock(&self.kept.state);
        if !self.is_latest() || !state.runs.contains_key(&self.key) {
            return Err(Attendance::superseded());
        }
        with(&mut state, self.key)
    }

    /// Room for an upload that may come to `size` bytes.
    ///
    /// # Errors
    /// `Limit` when there is not so much.
    pub(in crate::server) fn claim(self: &Arc<Attendance>, size: u64, shown: String) -> Result<Claim> {
        let mut claim = Claim(Some(Claimed { attendance: Arc::clone(self), amount: 0, shown }));
        claim.cover(size)?;
        Ok(claim)
    }

    /// Spends the use, and `size` bytes, before they are committed. Blocks, the first time.
    ///
    /// # Errors
    /// `Limit` when there is no room; `Superseded`; what writing fails with. Then nothing may be committed.
    pub(in crate::server) fn spend(self: &Arc<Attendance>, size: u64, claims: Vec<Claim>) -> Result<Spending> {
        // Room that was held for these very bytes.
        drop(claims);
        let kept = &self.kept;
        let is_due = self.with_run(|state, key| {
            kept.check_room(state, size, "store")?;
            state.committing = state.committing.saturating_add(size);
            let run = state.runs.get_mut(&key).ok_or_else(Attendance::superseded)?;
            run.spending += 1;
            Ok(!run.is_spent || kept.max_size.is_some() && size > 0)
        })?;
        let mut spending = Spending(Some(Spent { attendance: Arc::clone(self), bytes: size }));
        if is_due && let Err(error) = kept.save() {
            spending.undo(false);
            return Err(error);
        }
        Ok(spending)
    }

    /// Refuses a download of a file of this size when there is no room for it. What the run has had of files counts
    /// for it: it may be going on with this one.
    ///
    /// # Errors
    /// `Limit`.
    pub(in crate::server) fn check_download(&self, size: u64, shown: &str) -> Result<()> {
        self.with_run(|state, key| {
            let sent = state.runs.get(&key).map_or(0, |run| run.sent);
            self.kept.check_room(state, size.saturating_sub(sent), &format!("read {shown}"))
        })
    }

    /// Counts content that is about to be handed out. With the end of a file the use is spent. Blocks now and then.
    ///
    /// # Errors
    /// `Limit` when there is no room; `Superseded`; what writing fails with. Then it must not go out.
    pub(in crate::server) fn hand_out(self: &Arc<Attendance>, size: u64, is_end: bool) -> Result<()> {
        let kept = &self.kept;
        let is_due = self.with_run(|state, key| {
            kept.check_room(state, size, "read")?;
            state.used = state.used.saturating_add(size);
            if let Some(run) = state.runs.get_mut(&key) {
                run.sent = run.sent.saturating_add(size);
            }
            let is_due = kept.max_size.is_some() && state.used.saturating_add(state.committing) > state.recorded;
            if is_due {
                state.ahead = state.used.saturating_add(INVITE_SIZE_STEP).min(kept.max_size.unwrap_or(u64::MAX));
            }
            Ok(is_due)
        })?;
        if is_due && let Err(error) = kept.save() {
            self.take_back(size);
            return Err(error);
        }
        if is_end {
            self.spend(0, Vec::new())?.done(0);
        }
        Ok(())
    }

    /// Content that was counted did not go out.
    pub(in crate::server) fn take_back(&self, size: u64) {
        let mut state = lock(&self.kept.state);
        state.used = state.used.saturating_sub(size);
        if let Some(run) = state.runs.get_mut(&self.key) {
            run.sent = run.sent.saturating_sub(size);
        }
    }

    /// The client has ended its run in order: it is not gone on with, and a use that was not spent is given back.
    /// Blocks.
    pub(in crate::server) fn end(&self) {
        let is_ended = {
            let state = &mut *lock(&self.kept.state);
            let is_over = self.is_latest() && state.runs.get(&self.key).is_some_and(|run| run.spending == 0);
            match is_over.then(|| state.runs.remove(&self.key)).flatten() {
                Some(run) => {
                    run.session.store(u64::MAX, Ordering::SeqCst);
                    state.spent = state.spent.saturating_add(u32::from(run.is_spent));
                    if state.runs.values().all(|run| run.connections == 0) {
                        state.ahead = 0;
                    }
                    true
                }
                None => false,
            }
        };
        if is_ended {
            self.kept.save_later();
        }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        if let Some(run) = lock(&self.kept.state).runs.get_mut(&self.key) {
            run.connections = run.connections.saturating_sub(1);
            run.left = Instant::now();
        }
    }
}

/// Room for an upload in what an invite is good for; dropped, it is free. Nothing for everybody else.
#[derive(Default)]
pub(in crate::server) struct Claim(Option<Claimed>);

struct Claimed {
    attendance: Arc<Attendance>,
    amount: u64,
    shown: String,
}

impl Claim {
    /// Makes sure of room for so many bytes in all.
    ///
    /// # Errors
    /// `Limit` when there is not so much; `Superseded`.
    pub(in crate::server) fn cover(&mut self, size: u64) -> Result<()> {
        let Some(Claimed { attendance, amount, shown }) = &mut self.0 else { return Ok(()) };
        let more = size.saturating_sub(*amount);
        if more == 0 || attendance.kept.max_size.is_none() {
            return Ok(());
        }
        let kept = Arc::clone(&attendance.kept);
        attendance.with_run(|state, key| {
            kept.check_room(state, more, &format!("store {shown}"))?;
            if let Some(run) = state.runs.get_mut(&key) {
                run.held = run.held.saturating_add(more);
            }
            Ok(())
        })?;
        *amount += more;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(Claimed { attendance, amount, .. }) = self.0.take().filter(|claimed| claimed.amount > 0) {
            // Of a superseded session nothing is held any more.
            let _ = attendance.with_run(|state, key| {
                if let Some(run) = state.runs.get_mut(&key) {
                    run.held = run.held.saturating_sub(amount);
                }
                Ok(())
            });
        }
    }
}

/// A use, and bytes, that are spent on what is about to be committed. Dropped, what was not committed is given back.
#[derive(Default)]
#[must_use = "dropped, it is given back"]
pub(in crate::server) struct Spending(Option<Spent>);

struct Spent {
    attendance: Arc<Attendance>,
    /// Of what is not committed yet.
    bytes: u64,
}

impl Spending {
    /// So many of the bytes are committed.
    pub(in crate::server) fn done(&mut self, size: u64) {
        let Some(Spent { attendance, bytes }) = &mut self.0 else { return };
        let size = size.min(*bytes);
        *bytes -= size;
        let state = &mut *lock(&attendance.kept.state);
        state.committing = state.committing.saturating_sub(size);
        state.used = state.used.saturating_add(size);
        if let Some(run) = state.runs.get_mut(&attendance.key) {
            run.is_spent = true;
        }
    }

    fn undo(&mut self, save: bool) {
        let Some(Spent { attendance, bytes }) = self.0.take() else { return };
        let kept = &attendance.kept;
        let is_due = {
            let state = &mut *lock(&kept.state);
            state.committing = state.committing.saturating_sub(bytes);
            let run = state.runs.get_mut(&attendance.key).map(|run| {
                run.spending = run.spending.saturating_sub(1);
                !run.is_spent && run.spending == 0
            });
            run == Some(true) || bytes > 0 && kept.max_size.is_some()
        };
        if is_due && save {
            kept.save_later();
        }
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        self.undo(true);
    }
}

impl Who {
    /// Room for an upload in what this principal's invite is good for.
    ///
    /// # Errors
    /// As [`Attendance::claim`].
    pub(in crate::server) fn claim(&self, size: u64, path: &RemotePath) -> Result<Claim> {
        self.attendance().map_or_else(|| Ok(Claim::default()), |attendance| attendance.claim(size, path.to_string()))
    }

    /// Spends what this principal's invite is good for, before something is committed.
    ///
    /// # Errors
    /// As [`Attendance::spend`].
    pub(in crate::server) fn spend(&self, size: u64, claims: Vec<Claim>) -> Result<Spending> {
        self.attendance().map_or_else(|| Ok(Spending::default()), |attendance| attendance.spend(size, claims))
    }
}
