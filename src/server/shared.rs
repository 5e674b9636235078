//! What all connections of a server share, and what each of them is allowed now.
//!
//! The rules (who is let in, who may do what) are one value that is replaced as a whole ([`Rules`]). A connection
//! asks for its [`Pass`] at its hello and before every operation: by it alone it reaches the store, and the pass is
//! looked at anew when the rules have changed, and every second.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::audit::Audit;
use super::crowd::Crowd;
use super::held::Holds;
use super::invites::{Attendance, Found, Giver, Invites};
use super::movers::Movers;
use super::newest::Newest;
use super::outcomes::Outcomes;
use super::own::Own;
use super::quota::{self, Accounts, Amount, Reservation, Seat};
use super::rates::{Bound, Rates};
use super::session::Sessions;
use super::share::{Share, Shares};
use super::tree::Trees;
use crate::access::{self, Access, Action, Grant, Principal};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::net::{Congestion, SocketBuffers};
use crate::path::{Component, RemotePath};
use crate::protocol::{IfExists, InviteKind, Rights};
use crate::storage::{Kind, Outcome, PartialKey, Published, Store, Tree};
use crate::tls::{ServerTls, SigningKey};

/// Handles and counters; connections hold it in an `Arc`.
pub(super) struct Shared {
    store: Store,
    pub(super) rules: watch::Sender<Arc<Rules>>,
    pub(super) receipt_key: Option<Arc<SigningKey>>,
    pub(super) audit: Option<Audit>,
    /// None: it gives and takes none.
    pub(super) invites: Option<Arc<Invites>>,
    pub(super) shares: Shares,
    pub(super) socket_buffers: SocketBuffers,
    /// What is asked of the system for each connection.
    pub(super) congestion: Congestion,
    pub(super) outcomes: Outcomes,
    pub(super) own: Own,
    pub(super) accounts: Arc<Accounts>,
    pub(super) crowd: Arc<Crowd>,
    pub(super) rates: Rates,
    pub(super) holds: Holds,
    /// Turns of what is dropped on disk threads ([`limits::DROPS_MAX`]).
    pub(super) drops: Arc<Semaphore>,
    /// When which names were stored under.
    pub(super) newest: Newest,
    pub(super) trees: Trees,
    /// What further connections can join.
    pub(super) sessions: Sessions,
    /// Connections, and commits that outlive them.
    pub(super) tasks: TaskTracker,
    /// No new work: finish what runs.
    pub(super) draining: CancellationToken,
    /// End now.
    pub(super) stopping: CancellationToken,
    /// Connections that move large files.
    pub(super) movers: Arc<Movers>,
    pub(super) connection_count: AtomicUsize,
    pub(super) next_connection: AtomicU64,
}

/// Who is let in and who may do what, from one moment to the next.
pub(super) struct Rules {
    pub(super) tls: ServerTls,
    pub(super) access: Access,
}

/// For whom a connection acts.
pub(super) struct Who {
    pub(super) principal: Principal,
    /// What it showed in the handshake, its own certificate first.
    chain: Vec<CertificateDer<'static>>,
    /// Its part in a run, for the holder of an invite.
    attendance: Option<Arc<Attendance>>,
    pub(super) share: Arc<Share>,
    /// The number of the connection.
    pub(super) connection: u64,
    /// It asked for a receipt for each file.
    pub(super) wants_receipts: bool,
    /// What it may move by.
    pub(super) bound: Bound,
    /// What it builds, which its store shows in the place that it shall have.
    tree: Mutex<Option<Arc<Tree>>>,
    /// Ends the connection: a newer one has taken over what it builds.
    pub(super) superseded: Arc<CancellationToken>,
    pass: Mutex<Option<(Instant, Pass)>>,
}

/// What a connection may do: asked for before each operation, and not kept over it.
#[derive(Clone)]
pub(super) struct Pass {
    rules: Arc<Rules>,
    principal: Principal,
    pub(super) grant: Arc<Grant>,
    /// The principal's home: its paths and those of the store are the same.
    pub(super) store: Store,
    accounts: Arc<Accounts>,
}

impl Shared {
    pub(super) fn new(
        store: Store,
        rules: Rules,
        shares: Shares,
        congestion: Congestion,
        receipt_key: Option<Arc<SigningKey>>,
        audit: Option<Audit>,
        crowd: Arc<Crowd>,
    ) -> Shared {
        Shared {
            store,
            rules: watch::Sender::new(Arc::new(rules)),
            receipt_key,
            audit,
            invites: None,
            shares,
            congestion,
            sessions: Sessions::default(),
            socket_buffers: SocketBuffers::new(),
            outcomes: Outcomes::default(),
            own: Own::default(),
            accounts: Arc::default(),
            crowd,
            rates: Rates::default(),
            holds: Holds::default(),
            drops: Arc::new(Semaphore::new(limits::DROPS_MAX)),
            newest: Newest::default(),
            trees: Trees::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            movers: Movers::new(1),
            connection_count: AtomicUsize::new(0),
            next_connection: AtomicU64::new(1),
        }
    }

    /// Puts other rules in the place of those that hold. Homes that are missing are made first.
    ///
    /// # Errors
    /// A home that cannot be one; then the old rules go on to hold.
    pub(super) fn replace(self: &Arc<Shared>, rules: Rules) -> Result<()> {
        prepare(&self.store, &rules.access)?;
        self.keep_accounts(&rules.access);
        self.rules.send_replace(Arc::new(rules));
        Ok(())
    }

    /// The whole tree, to look after it.
    pub(super) fn whole_store(&self) -> Store {
        self.store.clone()
    }

    /// The tree as seen from one home, for work that is nobody's.
    pub(super) fn store_within(&self, home: &RemotePath) -> Store {
        self.store.within(home)
    }

    /// What this connection may do now: its certificate is valid and not revoked, and its principal has a place here.
    /// The one way to the store.
    ///
    /// # Errors
    /// `Trust` when its certificate would not be let in any more; `Rights` when its principal would not, or when its
    /// home is another one by now.
    pub(super) fn pass(&self, who: &Who) -> Result<Pass> {
        let rules = Arc::clone(&self.rules.borrow());
        let mut kept = who.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, pass)) = &*kept
            && Arc::ptr_eq(&pass.rules, &rules)
            && seen.elapsed() < limits::PASS_LIFETIME
        {
            return Ok(pass.clone());
        }
        let grant = who.admit(&rules)?;
        if let Some((_, before)) = &*kept
            && before.grant.home != grant.home
        {
            return Err(Error::new(ErrorKind::Rights, "your place on this server was changed: connect again"));
        }
        let store = self.store.within(&grant.home);
        let store = match who.tree() {
            Some(tree) => store.grafted(&tree),
            None => store,
        };
        let accounts = Arc::clone(&self.accounts);
        let pass = Pass { rules, principal: who.principal.clone(), grant, store, accounts };
        *kept = Some((Instant::now(), pass.clone()));
        Ok(pass)
    }
}

impl Rules {
    /// What the holder of an invite has now: whoever gave it would be let in, and may share that.
    fn admit_invite(&self, principal: &Principal, giver: &Giver) -> Result<Arc<Grant>> {
        let ended = |_| Error::new(ErrorKind::Rights, "this invite has ended: who gave it may not share this any more");
        giver.verify(&self.tls, SystemTime::now()).map_err(ended)?;
        self.access.admit(principal)
    }
}

impl Shared {
    /// Whether the holder of an invite with these terms would be let in by the rules that hold now.
    pub(super) fn admits_invite(&self, terms: &Arc<access::Invite>, giver: &Giver) -> bool {
        let rules = Arc::clone(&self.rules.borrow());
        rules.admit_invite(&Principal::Invite(Arc::clone(terms)), giver).is_ok()
    }

    /// Refuses an invite that is over for its giver's sake, before anything is reserved.
    ///
    /// # Errors
    /// `Rights`.
    pub(super) fn check_invite(&self, found: &Found) -> Result<()> {
        let rules = Arc::clone(&self.rules.borrow());
        rules.admit_invite(&Principal::Invite(Arc::clone(found.terms())), &found.giver()).map(drop)
    }

    /// Has every connection look at once whether it may go on.
    pub(super) fn look_again(&self) {
        self.rules.send_modify(|rules| {
            *rules = Arc::new(Rules { tls: rules.tls.clone(), access: rules.access.clone() });
        });
    }
}

/// Makes the homes that are missing, and so finds those that cannot be any.
pub(super) fn prepare(store: &Store, access: &Access) -> Result<()> {
    for grant in access.grants() {
        let what = || format!("the home of `{}`", grant.name);
        store.make_directory(&grant.home, None, true).map_err(|error| error.context(what()))?;
    }
    Ok(())
}

impl Who {
    pub(super) fn new(
        principal: Principal,
        chain: Vec<CertificateDer<'static>>,
        shares: &Shares,
        connection: u64,
    ) -> Who {
        let share = shares.of(&principal);
        Who {
            principal,
            chain,
            attendance: None,
            share,
            connection,
            wants_receipts: false,
            bound: Bound::default(),
            tree: Mutex::default(),
            superseded: Arc::default(),
            pass: Mutex::default(),
        }
    }

    /// From now on it acts for the holder of an invite.
    pub(super) fn attends(&mut self, terms: &Arc<access::Invite>, attendance: Attendance, shares: &Shares) {
        self.principal = Principal::Invite(Arc::clone(terms));
        self.attendance = Some(Arc::new(attendance));
        self.share = shares.of(&self.principal);
    }

    /// What it showed in the handshake, its own certificate first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Its part in a run, for the holder of an invite.
    pub(super) fn attendance(&self) -> Option<&Arc<Attendance>> {
        self.attendance.as_ref()
    }

    /// What it has by these rules, now.
    fn admit(&self, rules: &Rules) -> Result<Arc<Grant>> {
        match (&self.principal, &self.attendance) {
            (Principal::Invite(_), None) => {
                Err(Error::new(ErrorKind::Internal, "the holder of an invite who takes no part in a run"))
            }
            (principal, Some(attendance)) => {
                attendance.check()?;
                rules.admit_invite(principal, &attendance.giver())
            }
            (principal, None) => {
                rules.tls.verify_client(&self.chain, SystemTime::now())?;
                rules.access.admit(principal)
            }
        }
    }

    /// What this connection builds.
    pub(super) fn tree(&self) -> Option<Arc<Tree>> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From the next request on this is built.
    pub(super) fn set_tree(&self, tree: Option<Arc<Tree>>) {
        *self.tree.lock().unwrap_or_else(PoisonError::into_inner) = tree;
        *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Pass {
    /// Decides whether the principal may do this.
    ///
    /// # Errors
    /// As [`Access::decide`].
    pub(super) fn decide(&self, action: Action<'_>) -> Result<()> {
        self.rules.access.decide(&self.principal, action)
    }

    /// Decides whether the principal may give an invite of this kind.
    ///
    /// # Errors
    /// As [`Access::decide_invite`].
    pub(super) fn decide_invite(&self, path: &RemotePath, kind: InviteKind) -> Result<()> {
        self.rules.access.decide_invite(&self.principal, path, kind)
    }

    /// A refusal to replace, with what can be done about it by who cannot be given the right.
    pub(super) fn with_hint(&self, error: Error) -> Error {
        match &self.principal {
            Principal::Invite(_) => {
                let message = format!("{error}: an invite replaces nothing; `--if-exists rename` stores it beside");
                Error::new(error.kind(), message)
            }
            _ => error,
        }
    }

    pub(super) fn may(&self, action: Action<'_>) -> bool {
        self.decide(action).is_ok()
    }

    /// What the client is told that it is called here.
    pub(super) fn name(&self) -> Option<String> {
        match &self.principal {
            Principal::Certified { name, .. } => self.rules.access.label(&self.grant).or_else(|| name.clone()),
            Principal::Invite(_) => Some(self.principal.to_string()),
            Principal::Anonymous => None,
        }
    }

    /// The rights at the principal's `/`.
    pub(super) fn rights(&self) -> Rights {
        self.rules.access.rights(&self.principal, &RemotePath::root()).unwrap_or_default()
    }

    /// As [`Pass::decide`] for what gives `path` to something: directories above it that may not be made are there.
    ///
    /// # Errors
    /// `Rights` also for a missing one; what looking for it can fail with.
    pub(super) fn decide_new(&self, action: Action<'_>, path: &RemotePath) -> Result<()> {
        self.decide(action)?;
        let Some(needed) = self.rules.access.needed_parent(&self.principal, path) else { return Ok(()) };
        match self.store.stat(&needed) {
            Ok(entry) if entry.kind == Kind::Directory => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::NotDirectory, format!("{needed} is not a directory"))),
            Err(error) if error.kind() == ErrorKind::NotFound => self.decide(Action::Create(&needed)),
            Err(error) => Err(error),
        }
    }

    fn place<'a>(&self, path: &'a RemotePath) -> Cow<'a, [Component]> {
        self.grant.place(path)
    }

    /// How many of the names in this path are not there; 0 where nobody counts.
    fn missing(&self, path: &RemotePath) -> u64 {
        let mut count = 0;
        let mut path = path.clone();
        while self.accounts.counts(&self.place(&path))
            && !path.is_root()
            && self.store.stat(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            count += 1;
            path = path.split().map(|(parent, _)| parent).unwrap_or_default();
        }
        count
    }

    /// Refuses a file of this size if it is larger than one of the principal's may be.
    ///
    /// # Errors
    /// `Limit`.
    pub(super) fn check_size(&self, path: &RemotePath, size: u64) -> Result<()> {
        quota::check_size(self.grant.limits.file_size, &path.to_string(), size)
    }

    /// Whether what goes from this place is gone. Where a tree is built, the old one stays until that takes its place.
    fn frees(&self, path: &RemotePath) -> bool {
        !self.store.is_in_tree(path)
    }

    /// Bytes that become free when the file of this name goes, if the principal's quota counts them.
    fn counted_size(&self, path: &RemotePath) -> Option<u64> {
        // Nothing is looked at for who has no quota: this is asked for each file.
        self.grant.limits.bytes.filter(|_| self.frees(path))?;
        let entry = self.store.stat(path).ok()?;
        (entry.kind == Kind::File).then_some(entry.size)
    }

    /// Room for a new file or link of `size` bytes, and for the directories above it that are missing. The second
    /// number is how many these are: they are counted by [`Pass::made`] once they are there.
    ///
    /// # Errors
    /// `Limit` when the quota has not so much left; `Busy` while it is not known.
    pub(super) fn reserve(
        &self,
        upload: quota::Upload,
        path: &RemotePath,
        size: u64,
        if_exists: IfExists,
    ) -> Result<(Reservation, u64)> {
        let missing = self.missing(path);
        let (new, above) = (missing.min(1), missing.saturating_sub(1));
        let (credit, new) = match if_exists {
            IfExists::Overwrite => (self.counted_size(path).unwrap_or(0), new),
            // It gets another name.
            IfExists::Rename => (0, 1),
            IfExists::Fail | IfExists::Skip => (0, new),
        };
        let amount = Amount { bytes: size, files: new + above };
        let place = self.place(path);
        let named = (&*place, path.to_string());
        Ok((self.accounts.reserve(&self.grant, upload, named, amount, credit)?, above))
    }

    /// Room for the directories above this path that are missing, and how many these are.
    ///
    /// # Errors
    /// As [`Pass::reserve`].
    pub(super) fn reserve_parents(&self, path: &RemotePath) -> Result<(Reservation, u64)> {
        self.reserve_directories(&path.split().map(|(parent, _)| parent).unwrap_or_default())
    }

    /// Room for the directories of this path that are missing, and how many these are.
    ///
    /// # Errors
    /// As [`Pass::reserve`].
    pub(super) fn reserve_directories(&self, path: &RemotePath) -> Result<(Reservation, u64)> {
        let files = self.missing(path);
        let amount = Amount { bytes: 0, files };
        let place = self.place(path);
        let named = (&*place, path.to_string());
        Ok((self.accounts.reserve(&self.grant, quota::Upload::default(), named, amount, 0)?, files))
    }

    /// Makes sure that there is room for a file of `size` though what it replaces has changed since it was begun.
    ///
    /// # Errors
    /// As [`Pass::reserve`].
    pub(super) fn settle_credit(&self, reservation: &mut Reservation, path: &RemotePath, size: u64) -> Result<()> {
        reservation.set_credit(self.counted_size(path).unwrap_or(0), size)
    }

    /// Directories that were made above or at this path are counted from now on, and need no reservation.
    pub(super) fn made(&self, reservation: &mut Reservation, path: &RemotePath, count: u64) {
        if count > 0 {
            self.accounts.add(&self.place(path), Amount { bytes: 0, files: count });
            reservation.release_files(count);
        }
    }

    /// A file of `size` bytes, or a link, has its name now.
    pub(super) fn stored(&self, published: &Published, size: u64) {
        let place = self.place(&published.path);
        if self.accounts.counts(&place) && published.outcome != Outcome::Skipped {
            let is_new = published.outcome != Outcome::Replaced;
            self.accounts.add(&place, Amount { bytes: size, files: u64::from(is_new) });
            if self.frees(&published.path) {
                self.accounts.subtract(&place, Amount { bytes: published.replaced_size, files: 0 });
            }
        }
    }

    /// What something comes to with all below it; nothing where nobody counts. Blocks.
    ///
    /// # Errors
    /// What looking at it can fail with.
    pub(super) fn measure(&self, path: &RemotePath) -> Result<Amount> {
        if self.accounts.counts(&self.place(path)) { quota::measure(&self.store, path) } else { Ok(Amount::default()) }
    }

    /// So much was removed there.
    pub(super) fn removed(&self, path: &RemotePath, amount: Amount) {
        let place = self.place(path);
        self.accounts.forget_below(&place);
        if self.frees(path) {
            self.accounts.subtract(&place, amount);
        }
    }

    /// So much was moved there.
    pub(super) fn moved(&self, from: &RemotePath, published: &Published, amount: Amount) {
        if published.outcome != Outcome::Skipped {
            let (from, to) = (self.place(from), self.place(&published.path));
            self.accounts.forget_below(&from);
            self.accounts.forget_below(&to);
            self.accounts.subtract(&from, amount);
            self.accounts.add(&to, amount);
            if self.frees(&published.path) {
                let was_there = u64::from(published.outcome == Outcome::Replaced);
                self.accounts.subtract(&to, Amount { bytes: published.replaced_size, files: was_there });
            }
        }
    }

    /// How many transfers and requests its client should have open.
    pub(super) fn open_max(&self) -> u32 {
        let all = u32::try_from(limits::OPEN_TRANSFERS_MAX).unwrap_or(u32::MAX);
        self.grant.limits.uploads.map_or(all, |uploads| uploads.clamp(1, all))
    }

    /// A place among the uploads that the principal may have open.
    ///
    /// # Errors
    /// `Busy` when there is none left.
    pub(super) fn upload_seat(&self, partial: Option<PartialKey>) -> Result<Seat> {
        self.accounts.upload(&self.grant, partial)
    }

    /// Makes sure that the principal has a place for one more upload though others of its rest.
    ///
    /// # Errors
    /// `Limit` when there is none.
    pub(super) fn check_resting(&self) -> Result<()> {
        self.accounts.check_resting(&self.grant, &self.store)
    }

    /// What whom this is about is called where unfinished uploads are recorded.
    pub(super) fn owner_name(&self) -> String {
        let has_names = self.rules.access.label(&self.grant).is_some();
        if has_names { self.grant.key.clone() } else { self.principal.to_string() }
    }

    /// A place among the connections that the principal may have.
    ///
    /// # Errors
    /// `Busy` when there is none left.
    pub(super) fn connection_seat(&self) -> Result<Seat> {
        self.accounts.connection(&self.grant)
    }

    /// What happens to something that is at `path` already.
    pub(super) fn if_exists(&self, path: &RemotePath, asked: IfExists) -> IfExists {
        self.rules.access.if_exists(&self.principal, path, asked)
    }

    /// Whether nothing at this place or below is hidden from the principal.
    pub(super) fn sees_all(&self, path: &RemotePath) -> bool {
        self.rules.access.sees_all(&self.principal, path)
    }

    /// Whether some entries of this directory must be left out of its listing.
    pub(super) fn hides_some(&self, directory: &RemotePath) -> bool {
        self.rules.access.hides_some(&self.principal, directory)
    }
}
