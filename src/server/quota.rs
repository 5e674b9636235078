//! What principals with a quota have stored, and what they hold open.
//!
//! A [`Ledger`] belongs to a home whose principals have a limit of bytes or files. It is counted once by a walk, and
//! from then on follows what is stored and removed below it, by whomever. An upload reserves what it will take before
//! its content comes, or as it comes where its size is not known, so that uploads side by side do not exceed together
//! what each alone would not. One that was cut goes on to count with what it takes on disk, as long as it rests.
//! Walks are repeated daily: what changed below a home by other ways than this server is
//! seen then. Until the first walk has ended nothing is stored there.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::shared::Shared;
use crate::access::{Access, Grant, Limits};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{GROUP_LEN, QUOTA_CHECK_INTERVAL, QUOTA_COUNT_INTERVAL};
use crate::path::{Component, RemotePath};
use crate::storage::{Kind, PartialKey, Store, now};

/// The ledgers of all homes that have one, and who holds what open.
#[derive(Default)]
pub(super) struct Accounts {
    ledgers: Mutex<HashMap<Vec<Component>, Arc<Ledger>>>,
    /// Whether there is none, which most servers never change.
    is_empty: AtomicBool,
    meters: Mutex<HashMap<String, Weak<Meter>>>,
    /// The room of each upload that runs, by what its attempts have in common.
    uploads: Mutex<HashMap<[u8; 32], Weak<Hold>>>,
}

/// What lies below one home.
struct Ledger {
    home: RemotePath,
    store: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the latest walk ended; none: it is not known yet what is there.
    counted: Option<Instant>,
    is_counting: bool,
    /// What is stored was changed in a way that was not followed.
    is_due: bool,
    stored: Amount,
    reserved: Amount,
    /// What came since the walk that runs began, and which it may not have seen.
    since: Amount,
    /// Uploads that have room here: what they have left when they were cut is in it.
    running: HashMap<PartialKey, u32>,
    /// Places of files that an upload is to replace which counts on their room. There is one upload for each.
    credited: HashSet<Vec<Component>>,
    /// Bytes of all that rests below the home, and when that was so ([`Store::resting_changes`]).
    resting: Option<(u64, u64)>,
}

/// Bytes of content, and names of every kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// What an upload may come to take. Dropping it gives back what was not stored.
#[derive(Default)]
pub(super) struct Reservation {
    file_size: Option<u64>,
    hold: Option<Arc<Hold>>,
    /// Bytes that become free when it takes its place.
    credit: u64,
    shown: String,
}

/// Which upload something is reserved for.
#[derive(Clone, Copy, Default)]
pub(super) struct Upload {
    /// What all attempts of one run at it have in common.
    pub(super) key: Option<[u8; 32]>,
    /// What is left of it when it is cut.
    pub(super) partial: Option<PartialKey>,
}

/// Room that is held in a ledger. A newer attempt at the same upload takes it from an older one, whose connection may
/// be dead without anyone having noticed.
struct Hold {
    ledger: Arc<Ledger>,
    limits: Limits,
    /// What it leaves when it is cut.
    partial: Option<PartialKey>,
    /// None: it was taken.
    amount: Mutex<Option<Amount>>,
    /// Whose room it counts on.
    credited: Mutex<Option<Vec<Component>>>,
}

/// One principal's open uploads and connections.
#[derive(Default)]
struct Meter(Mutex<Open>);

#[derive(Default)]
struct Open {
    counts: [u32; 2],
    /// The uploads among them that may have left something when they were cut before.
    running: HashMap<PartialKey, u32>,
}

/// What a principal holds open.
#[derive(Clone, Copy)]
enum Held {
    Upload,
    Connection,
}

/// A place among those that a principal may hold open, until it is dropped.
#[derive(Default)]
pub(super) struct Seat(Option<(Arc<Meter>, Held, Option<PartialKey>)>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two statements of its holders.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Accounts {
    /// Keeps ledgers for the homes that need them by these rules; returns those that are new, to be counted.
    fn follow(&self, access: &Access, store: &Store) -> Vec<Arc<Ledger>> {
        let grants = access.grants();
        let needed = grants.iter().filter(|grant| grant.limits.bytes.is_some() || grant.limits.files.is_some());
        let mut ledgers = lock(&self.ledgers);
        let mut before = std::mem::take(&mut *ledgers);
        let mut new = Vec::new();
        for grant in needed {
            let home = grant.home.components().to_vec();
            ledgers.entry(home).or_insert_with_key(|home| {
                before.remove(home).unwrap_or_else(|| {
                    let ledger =
                        Arc::new(Ledger { home: grant.home.clone(), store: store.clone(), state: Mutex::default() });
                    new.push(Arc::clone(&ledger));
                    ledger
                })
            });
        }
        self.is_empty.store(ledgers.is_empty(), Ordering::Relaxed);
        new
    }

    /// Whether anything is counted for anyone.
    pub(super) fn count_any(&self) -> bool {
        !self.is_empty.load(Ordering::Relaxed)
    }

    /// Whether what lies at this place is counted for anyone.
    pub(super) fn counts(&self, place: &[Component]) -> bool {
        self.count_any() && !self.covering(place).is_empty()
    }

    fn covering(&self, place: &[Component]) -> Vec<Arc<Ledger>> {
        let ledgers = lock(&self.ledgers);
        (0..=place.len()).filter_map(|len| ledgers.get(&place[..len]).cloned()).collect()
    }

    /// Everything that there was below this place went elsewhere: homes in it are counted anew.
    pub(super) fn forget_below(&self, place: &[Component]) {
        for (home, ledger) in &*lock(&self.ledgers) {
            if home.len() > place.len() && home.starts_with(place) {
                lock(&ledger.state).counted = None;
            }
        }
    }

    /// Much was changed at once: everything is counted anew before long, and holds as it is until then.
    pub(super) fn count_soon(&self) {
        lock(&self.ledgers).values().for_each(|ledger| lock(&ledger.state).is_due = true);
    }

    /// What was stored at this place.
    pub(super) fn add(&self, place: &[Component], amount: Amount) {
        for ledger in self.covering(place) {
            let state = &mut *lock(&ledger.state);
            for sum in [&mut state.stored, &mut state.since] {
                sum.bytes = sum.bytes.saturating_add(amount.bytes);
                sum.files = sum.files.saturating_add(amount.files);
            }
        }
    }

    /// What was removed from this place.
    pub(super) fn subtract(&self, place: &[Component], amount: Amount) {
        for ledger in self.covering(place) {
            let stored = &mut lock(&ledger.state).stored;
            stored.bytes = stored.bytes.saturating_sub(amount.bytes);
            stored.files = stored.files.saturating_sub(amount.files);
        }
    }

    /// Reserves room for something of a principal's at this place, which `shown` names. `credit` are bytes that become
    /// free when it takes its place, which of several uploads to one place only the first counts on. An earlier attempt at the same upload (by its key) holds nothing from then on. What it has
    /// left when it was cut (`partial`) counts no more while it runs. Blocks.
    ///
    /// # Errors
    /// `Limit` when there is not so much; `Busy` while it is not known.
    pub(super) fn reserve(
        &self,
        grant: &Grant,
        upload: Upload,
        (place, shown): (&[Component], String),
        amount: Amount,
        credit: u64,
    ) -> Result<Reservation> {
        let limits = grant.limits;
        let has_quota = limits.bytes.is_some() || limits.files.is_some();
        let ledger = lock(&self.ledgers).get(grant.account.components()).filter(|_| has_quota).cloned();
        if has_quota && ledger.is_none() {
            // The rules changed this moment.
            return Err(Error::new(ErrorKind::Busy, format!("your quota is being changed: try {shown} again")));
        }
        let hold = ledger.map(|ledger| Arc::new(Hold::new(ledger, limits, upload.partial)));
        if let (Some(upload), Some(hold)) = (upload.key, &hold) {
            let mut uploads = lock(&self.uploads);
            if uploads.len() >= 1024 && uploads.len().is_power_of_two() {
                uploads.retain(|_, hold| hold.strong_count() > 0);
            }
            let before = uploads.insert(upload, Arc::downgrade(hold));
            drop(uploads);
            if let Some(before) = before.and_then(|before| before.upgrade()) {
                before.give_back();
            }
        }
        let has_credit = credit > 0 && hold.as_ref().is_some_and(|hold| hold.count_on(place));
        let credit = if has_credit { credit } else { 0 };
        let mut reservation = Reservation { file_size: limits.file_size, hold, credit, shown };
        let amount = Amount { bytes: amount.bytes.saturating_sub(credit), files: amount.files };
        if let Err(error) = reservation.hold(amount) {
            // What rests may be over.
            let store = reservation.hold.as_ref().map(|hold| &hold.ledger.store);
            if error.kind() != ErrorKind::Limit || store.is_none_or(|store| drop_over(store) == 0) {
                return Err(error);
            }
            reservation.hold(amount)?;
        }
        Ok(reservation)
    }

    /// A place among the connections that a principal may have at once.
    ///
    /// # Errors
    /// `Busy` when there is none left.
    pub(super) fn connection(&self, grant: &Grant) -> Result<Seat> {
        self.seat(&grant.key, Held::Connection, grant.limits.connections, None)
    }

    /// A place among the uploads that a principal may have open at once.
    ///
    /// # Errors
    /// `Busy` when there is none left.
    pub(super) fn upload(&self, grant: &Grant, partial: Option<PartialKey>) -> Result<Seat> {
        self.seat(&grant.meter, Held::Upload, grant.limits.uploads, partial)
    }

    /// Makes sure that what runs and what rests of a principal's uploads are not more than it may have open. Those
    /// that run, this one among them, have their places. Blocks.
    ///
    /// # Errors
    /// `Limit` when so much rests that there is no place for one more.
    pub(super) fn check_resting(&self, grant: &Grant, store: &Store) -> Result<()> {
        let Some(limit) = grant.limits.uploads else { return Ok(()) };
        let Some(meter) = lock(&self.meters).get(&grant.meter).and_then(Weak::upgrade) else { return Ok(()) };
        let resting = || {
            let open = lock(&meter.0);
            let resting = store.resting_count(&grant.key, |key| open.running.contains_key(key));
            let places = limit.saturating_sub(open.counts[Held::Upload as usize]);
            (resting > usize::try_from(places).unwrap_or(usize::MAX)).then_some(resting)
        };
        match resting() {
            Some(_) if drop_over(store) > 0 => resting(),
            resting => resting,
        }
        .map_or(Ok(()), |resting| {
            let message = format!(
                "{limit} open uploads are all that you may have at once here, and {resting} were cut and wait for you: \
                 run their commands again, or wait until they are given up"
            );
            Err(Error::new(ErrorKind::Limit, message))
        })
    }

    fn seat(&self, key: &str, held: Held, limit: Option<u32>, partial: Option<PartialKey>) -> Result<Seat> {
        let Some(limit) = limit else { return Ok(Seat(None)) };
        let mut meters = lock(&self.meters);
        let meter = meters.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
            meters.retain(|_, meter| meter.strong_count() > 0);
            let meter = Arc::new(Meter::default());
            meters.insert(key.to_owned(), Arc::downgrade(&meter));
            meter
        });
        drop(meters);
        let mut open = lock(&meter.0);
        let count = &mut open.counts[held as usize];
        if *count >= limit {
            let what = match held {
                Held::Upload => "open uploads",
                Held::Connection => "connections",
            };
            // They may be those of a connection that is dead and not known to be.
            return Err(Error::new(ErrorKind::Busy, format!("{limit} {what} are all that you may have at once here")));
        }
        *count += 1;
        if let Some(key) = partial {
            *open.running.entry(key).or_default() += 1;
        }
        drop(open);
        Ok(Seat(Some((meter, held, partial))))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((meter, held, partial)) = &self.0 {
            let open = &mut *lock(&meter.0);
            open.counts[*held as usize] -= 1;
            forget_one(&mut open.running, partial.as_ref());
        }
    }
}

/// One less runs under this key.
fn forget_one(running: &mut HashMap<PartialKey, u32>, key: Option<&PartialKey>) {
    if let Some(key) = key
        && let Some(count) = running.get_mut(key)
    {
        *count -= 1;
        if *count == 0 {
            running.remove(key);
        }
    }
}

impl Hold {
    fn new(ledger: Arc<Ledger>, limits: Limits, partial: Option<PartialKey>) -> Hold {
        if let Some(key) = partial {
            *lock(&ledger.state).running.entry(key).or_default() += 1;
        }
        Hold { ledger, limits, partial, amount: Mutex::new(Some(Amount::default())), credited: Mutex::default() }
    }

    /// Counts on the room of the file at this place. False when another upload does.
    fn count_on(&self, place: &[Component]) -> bool {
        let is_first = lock(&self.ledger.state).credited.insert(place.to_vec());
        if is_first {
            *lock(&self.credited) = Some(place.to_vec());
        }
        is_first
    }

    fn give_back(&self) {
        if let Some(amount) = lock(&self.amount).take() {
            let state = &mut *lock(&self.ledger.state);
            state.reserved.bytes -= amount.bytes;
            state.reserved.files -= amount.files;
            forget_one(&mut state.running, self.partial.as_ref());
            if let Some(place) = lock(&self.credited).take() {
                state.credited.remove(&place);
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Ledger {
    /// Bytes of what rests below the home and is not running again.
    fn resting(&self, state: &mut State) -> u64 {
        let changes = self.store.resting_changes();
        let all = match state.resting {
            Some((bytes, at)) if at == changes => bytes,
            _ => self.store.resting_bytes(self.home.components()),
        };
        state.resting = Some((all, changes));
        if all == 0 {
            return 0;
        }
        let running = state.running.keys().map(|key| self.store.resting_size(key));
        all.saturating_sub(running.fold(0, u64::saturating_add))
    }
}

impl Reservation {
    /// Holds more.
    fn hold(&mut self, more: Amount) -> Result<()> {
        let Some(hold) = &self.hold else { return Ok(()) };
        let mut held = lock(&hold.amount);
        let Some(held) = &mut *held else {
            let message = format!("a newer attempt has taken over the upload of {}", self.shown);
            return Err(Error::new(ErrorKind::Superseded, message));
        };
        let state = &mut *lock(&hold.ledger.state);
        if state.counted.is_none() {
            let message = format!("what you have stored here is still being counted: try {} again", self.shown);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let check = |what: &str, limit: Option<u64>, more: u64, taken: u64, resting: u64| {
            let Some(limit) = limit else { return Ok(()) };
            let free = limit.saturating_sub(taken).saturating_sub(resting);
            if more <= free {
                return Ok(());
            }
            let why = if resting == 0 {
                String::new()
            } else {
                format!(" ({resting} are taken by uploads that were cut: run their commands again, or wait)")
            };
            let message =
                format!("store {}: your quota is {limit} {what}, and {free} are left, not {more}{why}", self.shown);
            Err(Error::new(ErrorKind::Limit, message))
        };
        // What is not limited need not be held: such sizes are only somebody's word.
        let limits = hold.limits;
        let more =
            Amount { bytes: limits.bytes.map_or(0, |_| more.bytes), files: limits.files.map_or(0, |_| more.files) };
        let resting = limits.bytes.map_or(0, |_| hold.ledger.resting(state));
        let taken = |of: fn(&Amount) -> u64| of(&state.stored).saturating_add(of(&state.reserved));
        check("bytes", limits.bytes, more.bytes, taken(|amount| amount.bytes), resting)?;
        check("files and directories", limits.files, more.files, taken(|amount| amount.files), 0)?;
        for sum in [&mut state.reserved, held] {
            sum.bytes += more.bytes;
            sum.files += more.files;
        }
        Ok(())
    }

    /// Makes sure of room for a file of so many bytes, holding more where it must.
    ///
    /// # Errors
    /// `Limit` when there is not so much, or no file may be so large.
    pub(super) fn cover(&mut self, size: u64) -> Result<()> {
        check_size(self.file_size, &self.shown, size)?;
        let Some(hold) = &self.hold else { return Ok(()) };
        let held = lock(&hold.amount).map_or(0, |held| held.bytes);
        let needed = size.saturating_sub(self.credit).saturating_sub(held);
        if needed == 0 {
            return Ok(());
        }
        // In large steps while there is room, so that not every piece takes the lock.
        let step = Amount { bytes: needed.next_multiple_of(GROUP_LEN as u64), files: 0 };
        self.hold(step).or_else(|_| self.hold(Amount { bytes: needed, files: 0 }))
    }

    /// Less becomes free by it than was thought.
    ///
    /// # Errors
    /// `Limit` when there is no room for a file of `size` without it.
    pub(super) fn set_credit(&mut self, credit: u64, size: u64) -> Result<()> {
        self.credit = self.credit.min(credit);
        self.cover(size)
    }

    /// Gives back some names, which were counted otherwise.
    pub(super) fn release_files(&mut self, count: u64) {
        let Some(hold) = &self.hold else { return };
        if let Some(held) = &mut *lock(&hold.amount) {
            let count = count.min(held.files);
            held.files -= count;
            lock(&hold.ledger.state).reserved.files -= count;
        }
    }
}

/// Forgets what rests and has been removed by somebody, or has rested too long; tells how much.
fn drop_over(store: &Store) -> usize {
    store.forget_removed() + store.expire_partials(now())
}

/// Refuses a file that is larger than this principal's may be.
pub(super) fn check_size(limit: Option<u64>, shown: &str, size: u64) -> Result<()> {
    match limit {
        Some(limit) if size > limit => Err(Error::new(
            ErrorKind::Limit,
            format!("store {shown}: {size} bytes are more than a file of yours may have here, which is {limit}"),
        )),
        _ => Ok(()),
    }
}

/// What something comes to, with all that is below it. Blocks.
///
/// # Errors
/// `NotFound` when it is not there; what listing can fail with.
pub(super) fn measure(store: &Store, path: &RemotePath) -> Result<Amount> {
    let top = store.stat(path)?;
    let mut sum = Amount { bytes: if top.kind == Kind::File { top.size } else { 0 }, files: 1 };
    let mut waiting = if top.kind == Kind::Directory { vec![path.clone()] } else { Vec::new() };
    while let Some(directory) = waiting.pop() {
        let listing = match store.list(&directory, None) {
            Ok(listing) => listing,
            // It went, or became something else, since it was seen.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory | ErrorKind::Link) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in listing {
            let entry = entry?;
            sum.files += 1;
            match entry.kind {
                Kind::File => sum.bytes = sum.bytes.saturating_add(entry.size),
                Kind::Directory => {
                    let below = Component::new(&entry.name).and_then(|name| directory.join(name));
                    // Deeper than any peer can name: nobody stored it through here.
                    waiting.extend(below.ok());
                }
                Kind::Link | Kind::Special => {}
            }
        }
    }
    Ok(sum)
}

impl Shared {
    /// Has the ledgers kept that these rules need. New ones are counted on a disk thread.
    pub(super) fn keep_accounts(self: &Arc<Shared>, access: &Access) {
        for ledger in self.accounts.follow(access, &self.whole_store()) {
            self.count(ledger);
        }
    }

    fn count(self: &Arc<Shared>, ledger: Arc<Ledger>) {
        let shared = Arc::clone(self);
        self.tasks.spawn_blocking(move || {
            {
                let mut state = lock(&ledger.state);
                if std::mem::replace(&mut state.is_counting, true) {
                    return;
                }
                state.since = Amount::default();
                state.is_due = false;
            }
            let counted = match measure(&shared.store_within(&ledger.home), &RemotePath::root()) {
                // Somebody has removed the home, and with it all that was in it.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Amount::default()),
                counted => counted,
            };
            // What is built to take the place of something there takes room as well.
            let (built, files) = shared.whole_store().unfinished_trees(ledger.home.components());
            let counted = counted.map(|counted| Amount {
                bytes: counted.bytes.saturating_add(built),
                files: counted.files.saturating_add(files),
            });
            let state = &mut *lock(&ledger.state);
            state.is_counting = false;
            match counted {
                Ok(counted) => {
                    let bytes = counted.bytes.saturating_add(state.since.bytes);
                    // The home itself is not counted.
                    let files = counted.files.saturating_sub(1).saturating_add(state.since.files);
                    state.stored = Amount { bytes, files };
                    state.counted = Some(Instant::now());
                    debug!("{}: {bytes} bytes in {files} files and directories", ledger.home);
                }
                Err(error) => warn!("count what lies in {}: {}", ledger.home, error.chain()),
            }
        });
    }

    /// Counts again what was counted long ago, or could not be. Never returns.
    pub(super) async fn count_again(self: Arc<Shared>) {
        loop {
            sleep(QUOTA_CHECK_INTERVAL).await;
            let ledgers: Vec<_> = lock(&self.accounts.ledgers).values().cloned().collect();
            for ledger in ledgers {
                let is_due = {
                    let state = lock(&ledger.state);
                    state.is_due || state.counted.is_none_or(|at| at.elapsed() >= QUOTA_COUNT_INTERVAL)
                };
                if is_due {
                    self.count(ledger);
                }
            }
        }
    }
}
