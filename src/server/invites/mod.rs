//! Invites: what is kept of each, who uses one, and how much of it is left.
//!
//! One use is one *run* of a command. It is reserved when the run first connects, spent before the first thing that it
//! stores (or the end of the first file that it reads) takes effect, and given back when the run ends without either.
//! What is decided is on the disk before it counts: a use that is reserved or spent, and bytes that are committed. So
//! a crash may cost the use of a run that was committing at that moment, and never gives one more than there are.
//!
//! Memory changes first, under a short lock, then the record; what could not be recorded is undone, or stays refused.
//! `requests` answers those who give invites, `record` is what a file holds.

mod attendance;
pub(super) mod giver;
mod record;
pub(super) mod requests;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq as _;
use tracing::{error, info};

pub(super) use self::attendance::{Attendance, Claim, Spending};
pub(super) use self::giver::Giver;
use self::record::{Record, RunRecord};
use crate::access;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{INVITE_GRACE, INVITE_KEPT, INVITE_LIFETIME_MAX, INVITE_RESERVED, INVITES_MAX};
use crate::protocol::{Bytes16, Bytes32, InviteFacts, InviteId, InviteState, List, Ticket, Verifier};
use crate::storage::Records;

/// The invites of a server.
pub(super) struct Invites {
    records: Arc<Records>,
    /// None: its record is damaged.
    table: Mutex<HashMap<InviteId, Option<Arc<Kept>>>>,
    /// `HOST:PORT` by which the server wants to be reached.
    public: Option<String>,
}

/// One invite.
struct Kept {
    terms: Arc<access::Invite>,
    verifier: [u8; 32],
    giver: Mutex<Giver>,
    issued: i64,
    expires: i64,
    uses: u32,
    max_size: Option<u64>,
    is_revoked: AtomicBool,
    records: Arc<Records>,
    /// Held while its record is written, so that a newer one is never replaced by an older.
    writing: Mutex<()>,
    state: Mutex<State>,
}

/// How far an invite is used.
#[derive(Default)]
struct State {
    revoked: Option<i64>,
    /// Spent uses of runs that are over.
    spent: u32,
    runs: HashMap<[u8; 16], Run>,
    /// Bytes that are stored or handed out.
    used: u64,
    /// Bytes of what is being committed.
    committing: u64,
    /// Bytes that may be handed out before the record must be written again.
    ahead: u64,
    /// Bytes that are used by the record on the disk.
    recorded: u64,
}

/// One run of a command.
struct Run {
    /// Something is committed.
    is_spent: bool,
    /// Commits that are under way.
    spending: u32,
    /// The number of its latest session; those before are superseded.
    session: Arc<AtomicU64>,
    connections: u32,
    /// When the last connection ended.
    left: Instant,
    /// Bytes that uploads of the latest session may come to.
    held: u64,
    /// Bytes that were handed out to it.
    sent: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two statements of its holders.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn whole(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// What nobody is told more of who does not hold a secret that was given.
fn unknown() -> Error {
    Error::new(
        ErrorKind::Rights,
        "there is no such invite here (any more): ask whoever gave you the link for a new one",
    )
}

fn refused(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Rights, why)
}

fn revoked() -> Error {
    refused("this invite was taken back: ask whoever gave you the link")
}

fn moment(seconds: i64) -> String {
    use time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| seconds.to_string())
}

impl Invites {
    /// Reads all that there is. Damaged ones are known as such, and can be redeemed by nobody.
    ///
    /// # Errors
    /// What reading can fail with.
    pub(super) fn open(records: Records, public: Option<String>) -> Result<Invites> {
        let records = Arc::new(records);
        let mut table = HashMap::new();
        let forgotten = seconds(SystemTime::now()).saturating_sub(whole(INVITE_KEPT));
        for (name, content) in records.read_all()? {
            let Ok(id) = name.parse::<InviteId>() else { continue };
            let kept = content.and_then(|content| Record::from_bytes(&content));
            let kept = kept.map(|record| Kept::of(record, &records)).filter(|kept| kept.terms.id == id);
            match kept {
                None => {
                    error!("the record of invite {id} is damaged: nobody can redeem it");
                    table.insert(id, None);
                }
                Some(kept) if kept.ended_at() < forgotten => records.remove(&name)?,
                Some(kept) => drop(table.insert(id, Some(Arc::new(kept)))),
            }
        }
        Ok(Invites { records, table: Mutex::new(table), public })
    }

    /// The invite that this ticket is of. Whoever shows none that was given learns nothing else.
    ///
    /// # Errors
    /// `Rights`.
    pub(super) fn find(&self, ticket: &Ticket) -> Result<Found> {
        let verifier = ticket.verifier();
        // The name is a hash too: how long looking it up takes tells nothing of a ticket that was given.
        let kept = lock(&self.table).get(&verifier.id()).cloned();
        match kept {
            Some(Some(kept)) if bool::from(kept.verifier.ct_eq(&verifier.0)) => {
                if kept.is_revoked.load(Ordering::SeqCst) {
                    return Err(revoked());
                }
                kept.check_time(seconds(SystemTime::now()))?;
                Ok(Found(kept))
            }
            Some(None) => Err(refused(
                "what this server knows of the invite is damaged: ask whoever gave you the link for a new one",
            )),
            _ => Err(unknown()),
        }
    }

    /// Keeps a new invite, durably. Blocks.
    ///
    /// # Errors
    /// `Limit` when there are too many; `Exists` for a ticket that is known; what writing fails with.
    fn add(&self, record: Record) -> Result<()> {
        let kept = Arc::new(Kept::of(record, &self.records));
        let id = kept.terms.id;
        self.forget_old();
        {
            let mut table = lock(&self.table);
            if table.len() >= INVITES_MAX {
                let message = format!("this server keeps {INVITES_MAX} invites, as many as it may: take some back");
                return Err(Error::new(ErrorKind::Limit, message));
            }
            match table.entry(id) {
                Place::Occupied(_) => {
                    return Err(Error::new(ErrorKind::Exists, format!("there is an invite {id} already")));
                }
                Place::Vacant(place) => drop(place.insert(Some(Arc::clone(&kept)))),
            }
        }
        // Nobody has the link before the answer.
        kept.save().inspect_err(|_| drop(lock(&self.table).remove(&id)))
    }

    /// Removes those that ended long ago.
    fn forget_old(&self) {
        let forgotten = seconds(SystemTime::now()).saturating_sub(whole(INVITE_KEPT));
        let old: Vec<InviteId> = {
            let table = lock(&self.table);
            let is_old = |kept: &Arc<Kept>| kept.ended_at() < forgotten;
            table.iter().filter(|(_, kept)| kept.as_ref().is_some_and(is_old)).map(|(id, _)| *id).collect()
        };
        for id in old {
            match self.records.remove(&id.to_string()) {
                Ok(()) => drop(lock(&self.table).remove(&id)),
                Err(error) => error!("forget invite {id}: {}", error.chain()),
            }
        }
    }

    fn get(&self, id: InviteId) -> Option<Option<Arc<Kept>>> {
        lock(&self.table).get(&id).cloned()
    }

    /// All of them, by their names.
    fn all(&self) -> Vec<(InviteId, Option<Arc<Kept>>)> {
        let mut all: Vec<_> = lock(&self.table).iter().map(|(id, kept)| (*id, kept.clone())).collect();
        all.sort_by_key(|(id, _)| *id);
        all
    }
}

/// An invite whose ticket was shown. Nothing is reserved yet.
pub(super) struct Found(Arc<Kept>);

impl Found {
    /// Its terms.
    pub(super) fn terms(&self) -> &Arc<access::Invite> {
        &self.0.terms
    }

    /// The certificates of who gave it.
    pub(super) fn giver(&self) -> Giver {
        self.0.giver()
    }

    /// Takes part in the run of this number: reserves a use for one that is new, goes on with one that is not over.
    /// Blocks.
    ///
    /// # Errors
    /// `Rights` when the time is over; `Limit` when no use is left; what writing fails with.
    pub(super) fn take_part(self, run: Option<&Bytes16>) -> Result<Attendance> {
        let kept = self.0;
        let number = match run {
            Some(run) => run.0,
            None => {
                let mut number = [0; 16];
                getrandom::fill(&mut number).map_err(|error| {
                    Error::new(ErrorKind::Internal, "get random bytes from the system").with_source(error)
                })?;
                number
            }
        };
        let key = run_key(&number);
        let now = seconds(SystemTime::now());
        let (attendance, is_new) = {
            let state = &mut *lock(&kept.state);
            state.give_back_stale();
            let is_new = !state.runs.contains_key(&key);
            if is_new {
                if now >= kept.expires {
                    return Err(kept.expired());
                }
                if state.taken() >= u64::from(kept.uses) {
                    return Err(kept.used_up(state));
                }
                state.runs.insert(key, Run::new(false));
            }
            let Some(run) = state.runs.get_mut(&key) else { return Err(unknown()) };
            // What an earlier connection, which may be dead, has under way is not waited for.
            (run.held, run.connections) = (0, run.connections + 1);
            let number = run.session.fetch_add(1, Ordering::SeqCst) + 1;
            (Attendance { kept: Arc::clone(&kept), key, number, session: Arc::clone(&run.session) }, is_new)
        };
        if is_new && let Err(error) = kept.save() {
            // It may stand on the disk, where it is given back in time.
            lock(&kept.state).runs.remove(&key);
            return Err(error);
        }
        Ok(attendance)
    }

    /// Joins the run of this number, which is under way.
    ///
    /// # Errors
    /// `Session` when it is not.
    pub(super) fn join(self, run: Option<&Bytes16>) -> Result<Attendance> {
        let none = || Error::new(ErrorKind::Session, "no session that this connection could join has that token");
        let key = run_key(&run.ok_or_else(none)?.0);
        let kept = self.0;
        let mut state = lock(&kept.state);
        let run = state.runs.get_mut(&key).filter(|run| run.connections > 0).ok_or_else(none)?;
        run.connections += 1;
        let (number, session) = (run.session.load(Ordering::SeqCst), Arc::clone(&run.session));
        drop(state);
        Ok(Attendance { kept, key, number, session })
    }
}

/// Who runs the same command twice has reason to be calm.
const AFTER_USE: &str = ": if by you, what you were told is stored is there; for more, ask whoever gave you the link";

/// A run's number is a secret of its client's: what is kept of it is a hash.
fn run_key(number: &[u8; 16]) -> [u8; 16] {
    let hash = blake3::derive_key("sealift 2026-11 invite run", number);
    let mut key = [0; 16];
    key.copy_from_slice(&hash[..16]);
    key
}

impl State {
    /// Uses that nobody else can have.
    fn taken(&self) -> u64 {
        u64::from(self.spent) + self.runs.len() as u64
    }

    /// Uses that are spent, for who asks.
    fn spent(&self) -> u32 {
        let running = self.runs.values().filter(|run| run.is_spent || run.spending > 0).count();
        self.spent.saturating_add(u32::try_from(running).unwrap_or(u32::MAX))
    }

    /// Gives back what was reserved for runs that have gone away without a word.
    fn give_back_stale(&mut self) {
        self.runs.retain(|_, run| !run.is_stale());
    }

    /// Bytes that nobody else can have.
    fn charged(&self) -> u64 {
        let held = self.runs.values().map(|run| run.held).fold(0, u64::saturating_add);
        self.used.saturating_add(self.committing).saturating_add(held)
    }
}

impl Run {
    fn new(is_spent: bool) -> Run {
        Run { is_spent, spending: 0, session: Arc::default(), connections: 0, left: Instant::now(), held: 0, sent: 0 }
    }

    fn is_stale(&self) -> bool {
        !self.is_spent && self.spending == 0 && self.connections == 0 && self.left.elapsed() >= INVITE_RESERVED
    }
}

impl Kept {
    fn of(record: Record, records: &Arc<Records>) -> Kept {
        let terms = access::Invite {
            id: Verifier(record.verifier.0).id(),
            place: record.place,
            kind: record.kind,
            issuer_name: record.issuer_name,
            issuer_key: record.issuer_key.0,
        };
        let chain = |list: List<minicbor::bytes::ByteVec, 16>| {
            list.0.into_iter().map(|certificate| Vec::from(certificate).into()).collect()
        };
        let giver = Giver::of(chain(record.chain), record.latest.map(chain).unwrap_or_default());
        let runs = record.runs.0.into_iter().map(|run| (run.key.0, Run::new(run.is_spent)));
        let state = State {
            revoked: record.revoked,
            spent: record.spent,
            runs: runs.collect(),
            used: record.used,
            recorded: record.used,
            ..State::default()
        };
        Kept {
            terms: Arc::new(terms),
            verifier: record.verifier.0,
            giver: Mutex::new(giver),
            issued: record.issued,
            expires: record.expires,
            uses: record.uses,
            max_size: record.max_size,
            is_revoked: AtomicBool::new(record.revoked.is_some()),
            records: Arc::clone(records),
            writing: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    /// Writes what holds now. Blocks.
    fn save(&self) -> Result<()> {
        let _turn = lock(&self.writing);
        let record = {
            let giver = lock(&self.giver).clone();
            let state = lock(&self.state);
            let run = |(key, run): (&[u8; 16], &Run)| RunRecord {
                key: Bytes16(*key),
                is_spent: run.is_spent || run.spending > 0,
            };
            Record {
                verifier: Bytes32(self.verifier),
                place: self.terms.place.clone(),
                kind: self.terms.kind,
                issuer_name: self.terms.issuer_name.clone(),
                issuer_key: Bytes32(self.terms.issuer_key),
                chain: listed(&giver.first),
                latest: giver.latest.as_deref().map(|latest| listed(latest)),
                issued: self.issued,
                expires: self.expires,
                uses: self.uses,
                max_size: self.max_size,
                revoked: state.revoked,
                spent: state.spent,
                used: state.used.saturating_add(state.committing).max(state.ahead),
                runs: List(state.runs.iter().map(run).collect()),
                ..Record::empty()
            }
        };
        self.records.replace(&self.terms.id.to_string(), &record.to_bytes())?;
        lock(&self.state).recorded = record.used;
        Ok(())
    }

    /// As [`Kept::save`], where what is on the disk is at worst too strict.
    fn save_later(&self) {
        if let Err(error) = self.save() {
            error!("invite {}: {}", self.terms.id, error.chain());
        }
    }

    /// When it ends, or was taken back.
    fn ended_at(&self) -> i64 {
        lock(&self.state).revoked.unwrap_or(self.expires).min(self.expires)
    }

    fn expired(&self) -> Error {
        let message =
            format!("this invite expired at {}: ask whoever gave you the link for a new one", moment(self.expires));
        refused(message)
    }

    /// Whether even a run that began in time may not go on.
    fn check_time(&self, now: i64) -> Result<()> {
        if now >= self.expires.saturating_add(whole(INVITE_GRACE)) { Err(self.expired()) } else { Ok(()) }
    }

    fn used_up(&self, state: &State) -> Error {
        let uses = self.uses;
        let reserved = state.taken().saturating_sub(u64::from(state.spent()));
        let message = match reserved {
            0 if uses == 1 => format!("this invite was good for one use, and has been used{AFTER_USE}"),
            0 => format!("this invite was good for {uses} uses, and all of them have been used{AFTER_USE}"),
            _ => format!(
                "all uses of this invite are taken ({uses}): {reserved} by commands that are running, or were cut less \
                 than {} minutes ago, and may become free if these store nothing",
                INVITE_RESERVED.as_secs() / 60
            ),
        };
        Error::new(ErrorKind::Limit, message)
    }

    fn no_room(&self, state: &State, more: u64, shown: &str) -> Error {
        let max = self.max_size.unwrap_or(u64::MAX);
        let left = max.saturating_sub(state.charged());
        let message = format!("{shown}: this invite is good for {max} bytes in all, and {left} are left, not {more}");
        Error::new(ErrorKind::Limit, message)
    }

    /// Whether there is room for so many bytes more.
    fn check_room(&self, state: &State, more: u64, shown: &str) -> Result<()> {
        match self.max_size {
            Some(max) if state.charged().saturating_add(more) > max => Err(self.no_room(state, more, shown)),
            _ => Ok(()),
        }
    }

    /// Ends it, and durably. Blocks.
    fn revoke(&self) -> Result<()> {
        {
            let mut state = lock(&self.state);
            let now = seconds(SystemTime::now());
            state.revoked.get_or_insert(now);
            self.is_revoked.store(true, Ordering::SeqCst);
        }
        self.save()
    }

    fn facts(&self, path: crate::path::RemotePath, is_ended: bool) -> InviteFacts {
        let mut state = lock(&self.state);
        state.give_back_stale();
        let (spent, taken) = (state.spent(), state.taken());
        let is_used_up = spent >= self.uses;
        let state_now = match () {
            () if state.revoked.is_some() => InviteState::Revoked,
            () if seconds(SystemTime::now()) >= self.expires => InviteState::Expired,
            () if is_used_up => InviteState::UsedUp,
            () if is_ended => InviteState::Ended,
            () => InviteState::Open,
        };
        InviteFacts {
            id: self.terms.id,
            state: state_now,
            path,
            kind: self.terms.kind,
            issuer: self.terms.issuer().to_string(),
            issued: self.issued,
            expires: self.expires,
            uses: self.uses,
            spent,
            reserved: u32::try_from(taken.saturating_sub(u64::from(spent))).unwrap_or(u32::MAX),
            max_size: self.max_size,
            used_size: state.used.saturating_add(state.committing),
        }
    }
}

fn listed(chain: &[CertificateDer<'_>]) -> List<minicbor::bytes::ByteVec, 16> {
    List(chain.iter().map(|certificate| certificate.to_vec().into()).collect())
}

/// A record that gives an invite, with how it will be known.
fn new_record(
    terms: access::Invite,
    verifier: Bytes32,
    chain: &[CertificateDer<'static>],
    (seconds_good, uses, max_size): (u64, u32, Option<u64>),
) -> Record {
    let now = seconds(SystemTime::now());
    let good = i64::try_from(seconds_good.min(INVITE_LIFETIME_MAX.as_secs())).unwrap_or(i64::MAX);
    info!("invite {} for {} of {}", terms.id, terms.kind, terms.issuer());
    Record {
        verifier,
        place: terms.place,
        kind: terms.kind,
        issuer_name: terms.issuer_name,
        issuer_key: Bytes32(terms.issuer_key),
        chain: listed(chain),
        issued: now,
        expires: now.saturating_add(good),
        uses,
        max_size,
        ..Record::empty()
    }
}

#[cfg(test)]
mod tests;
