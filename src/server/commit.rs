//! What runs on the disk threads: opening uploads, writing their groups, committing them.
//!
//! Every function here blocks. A commit that has been entered runs to its end whatever becomes of the connection,
//! and its outcome is remembered under the upload id.

use std::sync::Arc;

use super::convert;
use super::held::{self, Begun, Right, Sink, partial_key, stored_otherwise};
use super::invites::{Claim, Spending};
use super::names;
use super::newest::{Described, Entered, Refused, Turn};
use super::offer::{Copying, Offer};
use super::outcomes::{Attempt, Begin};
use super::quota::{self, Reservation, Seat};
use super::receipts::receipt;
use super::shared::{Pass, Shared, Who};
use crate::access::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, GroupHasher, Root, Tree, group_count, group_len, group_offset};
use crate::limits::{FILE_SIZE_MAX, GROUP_LEN, KEPT_SIZE_MIN, UNASKED_FILE_MAX};
use crate::protocol::{Bytes16, Finish, IfExists, Outcome, Put, Receipt, Stored};
use crate::storage::{self, Kind, NewFile, StoredFile};
use crate::transfer::Receiver;

/// What a description meets.
pub(super) enum Opened {
    /// Content is to come.
    Upload(Box<Incoming>),
    /// Nothing is to come: it is done already, or left alone.
    Ended(Stored),
}

/// An upload that content may come for.
pub(super) struct Incoming {
    pub(super) attempt: Attempt,
    /// When it was asked for.
    turn: Turn,
    /// Makes that known for as long as it is under way; none when it replaces nothing.
    _described: Option<Described>,
    /// What happens to what is there, by the rights that the principal had at the beginning.
    pub(super) if_exists: IfExists,
    /// Its room in the principal's quota.
    pub(super) reservation: Reservation,
    /// Its room in what the principal's invite is good for.
    pub(super) claim: Claim,
    /// Where it is written; made with the first group when there is a base that may be the same.
    pub(super) file: Option<Arc<Sink>>,
    /// The right to make it.
    pub(super) right: Option<Right>,
    /// What need not come, as far as that is not told yet.
    pub(super) offer: Option<Box<Offer>>,
    /// Whether an earlier attempt has left something.
    pub(super) is_held: bool,
    /// The number of this attempt.
    pub(super) generation: u64,
    /// The version that is there, whose groups need not come.
    pub(super) base: Option<Arc<StoredFile>>,
    /// That version is what this very client has stored: it may be told of it without the right to read.
    pub(super) is_own: bool,
    /// The root of that version, once it has been hashed to its end. None when groups of an earlier attempt stand in
    /// for its own: the root of those says nothing of what has the name.
    pub(super) base_root: Option<Root>,
    /// Content may not come: the question is only whether it is the same.
    pub(super) compare_only: bool,
}

/// A small upload that came whole, before anything was opened for it.
pub(super) struct SmallUpload {
    pub(super) transfer: u32,
    pub(super) put: Put,
    pub(super) content: Vec<u8>,
    pub(super) finish: Finish,
    pub(super) seat: Seat,
    /// When its client surely was there.
    pub(super) turn: Turn,
}

/// Checks that the principal may store under this name, and says what happens to what is there.
fn admit(pass: &Pass, put: &Put) -> Result<IfExists> {
    pass.decide_new(Action::Create(&put.path), &put.path)?;
    if put.size.is_some_and(|size| size > FILE_SIZE_MAX) {
        return Err(Error::new(ErrorKind::Limit, format!("{} is larger than any file may be", put.path)));
    }
    pass.check_size(&put.path, put.size.unwrap_or(0))?;
    Ok(pass.if_exists(&put.path, put.if_exists))
}

/// As [`admit`], later.
fn admit_still(pass: &Pass, put: &Put, begun: IfExists) -> Result<IfExists> {
    check_still(pass, put, begun)?;
    admit(pass, put)
}

/// Checks that what was begun by some rights may go on: the principal has them still. Does not look at the disk.
pub(super) fn check_still(pass: &Pass, put: &Put, begun: IfExists) -> Result<()> {
    pass.decide(Action::Create(&put.path))?;
    if pass.if_exists(&put.path, put.if_exists) != begun {
        let message = format!("your rights to {} were changed while it was uploaded", put.path);
        return Err(Error::new(ErrorKind::Rights, message));
    }
    Ok(())
}

/// Checks that what is there may go on to be told of, and to stand in for what does not come: the principal may read
/// it still.
pub(super) fn check_base(pass: &Pass, put: &Put, needs_read: bool) -> Result<()> {
    if needs_read { pass.decide(Action::Read(&put.path)) } else { Ok(()) }
}

fn may_read(pass: &Pass, put: &Put) -> bool {
    pass.may(Action::Read(&put.path))
}

/// Begins to store what was admitted, if the principal's quota has room for it.
fn begin(
    pass: &Pass,
    parents: &mut storage::Parents,
    put: &Put,
    key: [u8; 32],
    if_exists: IfExists,
) -> Result<(storage::Upload, Reservation)> {
    let upload = quota::Upload { key: Some(key), partial: None };
    let (mut reservation, directories) = pass.reserve(upload, &put.path, put.size.unwrap_or(0), if_exists)?;
    let file = pass.store.begin_in(parents, &put.path, new_file(put, if_exists))?;
    pass.made(&mut reservation, &put.path, directories);
    Ok((file, reservation))
}

fn new_file(put: &Put, if_exists: IfExists) -> NewFile {
    NewFile { size: put.size, if_exists: convert::if_exists(if_exists), make_parents: true, mode: put.mode }
}

/// The regular file of this name, if there is one.
fn existing_file(pass: &Pass, put: &Put) -> Result<Option<StoredFile>> {
    match pass.store.stat(&put.path) {
        Ok(entry) if entry.kind == Kind::File => match pass.store.open_file(&put.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        },
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The regular file of this name, if its content may be told of: to who may read it, or has stored it itself and
/// replaces nothing. The second is whether it is only the latter.
fn comparable(
    shared: &Shared,
    who: &Who,
    pass: &Pass,
    put: &Put,
    if_exists: IfExists,
) -> Result<Option<(StoredFile, bool)>> {
    let may_read = may_read(pass, put);
    if !may_read && if_exists == IfExists::Overwrite {
        return Ok(None);
    }
    let file = existing_file(pass, put)?;
    Ok(file.filter(|file| may_read || shared.own.is_own(who, put, file)).map(|file| (file, !may_read)))
}

/// Whether something of this name is there, of whatever kind.
fn is_taken(pass: &Pass, put: &Put) -> Result<bool> {
    match pass.store.stat(&put.path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

fn taken(pass: &Pass, put: &Put, if_exists: IfExists) -> Result<Stored> {
    if if_exists == IfExists::Skip {
        return Ok(Stored { outcome: Outcome::Skipped, root: None, size: 0, path: None, xattrs_lost: None });
    }
    if put.if_exists == IfExists::Overwrite {
        pass.decide(Action::Overwrite(&put.path)).map_err(|error| pass.with_hint(error))?;
    }
    Err(Error::new(ErrorKind::Exists, format!("{} is there already", put.path)))
}

/// Enters the commit of an upload as the newest of its owner to its name; none when it has no order to others: nobody
/// would know the owner again, or it gets a name of its own.
fn enter_newest(
    shared: &Shared,
    who: &Who,
    put: &Put,
    turn: Turn,
    if_exists: IfExists,
) -> Result<Option<Entered>, Refused> {
    let key = held::key(&who.principal, put).filter(|_| if_exists != IfExists::Rename);
    key.map(|(_, key)| shared.newest.enter(key, turn, &put.path, if_exists == IfExists::Overwrite)).transpose()
}

/// What is answered to an upload that is not the newest: the same content may be there for all that.
fn not_newest(pass: &Pass, put: &Put, finish: &Finish, error: Error) -> Result<Stored> {
    if finish.size < KEPT_SIZE_MIN
        && may_read(pass, put)
        && let Some(file) = existing_file(pass, put)?
        && file.size() == finish.size
        && root_of(&file)? == finish.root
    {
        // Mode and time are those that the newer one gave it.
        pass.store.sync_existing(&file, &put.path)?;
        return Ok(Stored {
            outcome: Outcome::Unchanged,
            root: Some(finish.root),
            size: file.size(),
            path: None,
            xattrs_lost: None,
        });
    }
    Err(error)
}

/// Opens an upload whose content will be asked for.
pub(super) fn open(shared: &Shared, who: &Who, put: &Put, turn: Turn) -> Result<Opened> {
    let pass = shared.pass(who)?;
    let if_exists = admit(&pass, put)?;
    let attempt = match shared.outcomes.begin(&who.principal, &put.upload_id, &put.path, turn.session())? {
        Begin::Known(stored) => return Ok(Opened::Ended(stored)),
        Begin::Go(attempt) => attempt,
    };
    if let Some(stored) = names::give(shared, who, &pass, put, if_exists, &attempt)? {
        attempt.ended(&stored);
        stored_otherwise(&pass.store, &who.principal, put);
        return Ok(Opened::Ended(stored));
    }
    let key = attempt.key();
    if if_exists == IfExists::Rename
        && let Some(stored) = known_renamed(&pass, put)?
    {
        return Ok(Opened::Ended(stored));
    }
    let described = held::key(&who.principal, put).filter(|_| if_exists == IfExists::Overwrite);
    let mut described = described.map(|(_, key)| shared.newest.describe(key, turn));
    let mut base = None;
    if if_exists == IfExists::Overwrite && !put.no_base {
        // What an earlier run has brought into the tree that this one builds counts like a version that is there.
        pass.store.bring_back(&put.path);
    }
    if if_exists != IfExists::Rename
        && let Some((file, is_own)) = comparable(shared, who, &pass, put, if_exists)?
    {
        if let Some(stored) = known_by_record(&pass, put, &file)? {
            return Ok(Opened::Ended(stored));
        }
        let same_size = put.size == Some(file.size());
        match if_exists {
            IfExists::Overwrite
                if put.size.is_some()
                    && !put.no_base
                    && (file.size() > UNASKED_FILE_MAX || file.size() > 0 && is_wanted(&pass, put, &file)) =>
            {
                base = Some(Arc::new(file));
            }
            IfExists::Skip | IfExists::Fail if same_size => {
                let base = Arc::new(file);
                let offer = Offer::of_base(&put.path, base.size(), Arc::clone(&base), Copying::Never, None);
                return Ok(Opened::Upload(Box::new(Incoming {
                    generation: attempt.generation(),
                    attempt,
                    turn,
                    _described: described.take(),
                    if_exists,
                    reservation: Reservation::default(),
                    claim: Claim::default(),
                    file: None,
                    right: None,
                    offer: Some(Box::new(offer)),
                    is_held: false,
                    base: Some(base),
                    is_own,
                    base_root: None,
                    compare_only: true,
                })));
            }
            // A stream is not compared: its content is not known before all of it has come.
            IfExists::Skip | IfExists::Fail => return taken(&pass, put, if_exists).map(Opened::Ended),
            IfExists::Overwrite | IfExists::Rename => {}
        }
    } else if matches!(if_exists, IfExists::Skip | IfExists::Fail) && is_taken(&pass, put)? {
        return taken(&pass, put, if_exists).map(Opened::Ended);
    }
    let claim = who.claim(put.size.unwrap_or(0), &put.path)?;
    spend_on_directories(&pass, who, put)?;
    // Room for all of it: what replaces a version of the same size needs none.
    let partial = partial_key(&who.principal, put);
    if partial.is_some() {
        pass.check_resting()?;
    }
    let upload = quota::Upload { key: Some(key), partial };
    let (reservation, directories) = pass.reserve(upload, &put.path, put.size.unwrap_or(0), if_exists)?;
    let mut incoming = Incoming {
        generation: attempt.generation(),
        attempt,
        turn,
        _described: described,
        if_exists,
        reservation,
        claim,
        file: None,
        right: None,
        offer: None,
        is_held: false,
        base,
        is_own: false,
        base_root: None,
        compare_only: false,
    };
    let right = match shared.holds.begin(&pass.store, &who.principal, &pass.owner_name(), put, if_exists)? {
        Some(Begun::Resumed(sink, held, proven)) => {
            let sink = Arc::new(*sink);
            incoming.generation = sink.generation().unwrap_or(incoming.generation);
            incoming.is_held = true;
            incoming.offer =
                Some(Box::new(Offer::of_held(&put.path, (held, proven), incoming.base.clone(), Arc::clone(&sink))));
            incoming.file = Some(sink);
            pass.made(&mut incoming.reservation, &put.path, directories);
            return Ok(Opened::Upload(Box::new(incoming)));
        }
        Some(Begun::Fresh(right)) => right,
        None => Right::without_key(&pass.store, &shared.holds),
    };
    incoming.generation = right.generation().unwrap_or(incoming.generation);
    let options = new_file(put, if_exists);
    let Some(base) = incoming.base.clone() else {
        let file = pass.store.begin_kept(&put.path, options)?;
        incoming.file = Some(Arc::new(right.with(file)));
        pass.made(&mut incoming.reservation, &put.path, directories);
        return Ok(Opened::Upload(Box::new(incoming)));
    };
    let (copying, file) = match pass.store.begin_clone(&put.path, options, &base)? {
        Some(file) => (Copying::Shared, Some(file)),
        // It is probably the same: nothing is written before that is found to be wrong.
        None if put.size == Some(base.size())
            && put.mtime == Some(convert::mtime(base.mtime()))
            && stays(put, &base) =>
        {
            (Copying::Never, None)
        }
        None => match pass.store.begin_kept(&put.path, options) {
            Ok(file) => (Copying::Along, Some(file)),
            // It may be the same, and then needs no room.
            Err(error) if error.kind() == ErrorKind::NoSpace => (Copying::Never, None),
            Err(error) => return Err(error),
        },
    };
    match file {
        Some(file) => incoming.file = Some(Arc::new(right.with(file))),
        None => incoming.right = Some(right),
    }
    let size = put.size.unwrap_or(0);
    let offer = Offer::of_base(&put.path, size, base, copying, incoming.file.clone());
    incoming.offer = Some(Box::new(offer));
    Ok(Opened::Upload(Box::new(incoming)))
}

/// Whether a small version that is there is worth comparing, though its content would come in no time: the client builds
/// a tree of what is there, or says itself that only attributes may differ.
fn is_wanted(pass: &Pass, put: &Put, file: &StoredFile) -> bool {
    let looks_same = put.size == Some(file.size()) && put.mtime == Some(convert::mtime(file.mtime()));
    pass.store.is_in_tree(&put.path) || put.xattrs.is_some() && looks_same
}

/// Directories that are made for an upload stay when it is given up: they use an invite like any other change.
fn spend_on_directories(pass: &Pass, who: &Who, put: &Put) -> Result<()> {
    let parent = put.path.split().map(|(parent, _)| parent).filter(|parent| !parent.is_root());
    match parent.filter(|_| who.attendance().is_some()).map(|parent| pass.store.stat(&parent)) {
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => {
            who.spend(0, Vec::new())?.done(0);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Under `rename`: whether this very upload was stored before the server forgot it, under whatever name it got.
fn known_renamed(pass: &Pass, put: &Put) -> Result<Option<Stored>> {
    let Some((path, file)) = pass.store.find_upload(&put.path, &put.upload_id.0)? else { return Ok(None) };
    pass.store.sync_existing(&file, &path)?;
    let (root, size) = (file.recorded_root(), file.size());
    let path = (path != put.path).then_some(path);
    Ok(Some(Stored { outcome: Outcome::Stored, root, size, path, xattrs_lost: None }))
}

/// Whether the version that is there was stored by this very upload, before the server forgot it.
fn known_by_record(pass: &Pass, put: &Put, file: &StoredFile) -> Result<Option<Stored>> {
    let Some(recorded) = file.recorded().filter(|recorded| recorded.upload_id == put.upload_id.0) else {
        return Ok(None);
    };
    pass.store.sync_existing(file, &put.path)?;
    Ok(Some(Stored {
        outcome: Outcome::Stored,
        root: Some(recorded.root),
        size: file.size(),
        path: None,
        xattrs_lost: None,
    }))
}

/// Makes the file for an upload that began with a base and differs from it.
pub(super) fn make_file(shared: &Shared, who: &Who, put: &Put, begun: IfExists) -> Result<storage::Upload> {
    let pass = shared.pass(who)?;
    let if_exists = admit_still(&pass, put, begun)?;
    pass.store.begin_kept(&put.path, new_file(put, if_exists))
}

/// Hashes the next bytes of a group while they are hot and writes them to their place, `start` bytes into the group.
pub(super) fn write_group(file: &Sink, hasher: &mut GroupHasher, start: usize, content: &[u8]) -> Result<()> {
    hasher.update(content);
    file.write_at(group_offset(hasher.group()) + start as u64, content)
}

/// Commits an upload whose content has come.
pub(super) fn commit(
    shared: &Shared,
    who: &Who,
    put: &Put,
    incoming: Incoming,
    mut receiver: Receiver,
) -> Result<Stored> {
    let Incoming {
        attempt,
        file,
        right,
        mut reservation,
        claim,
        base,
        is_own,
        base_root,
        if_exists,
        turn,
        _described,
        ..
    } = incoming;
    let pass = shared.pass(who)?;
    admit_still(&pass, put, if_exists)?;
    check_base(&pass, put, base.is_some() && !is_own)?;
    attempt.enter_commit(&put.path)?;
    let finish = receiver.finish().cloned().ok_or_else(|| Error::new(ErrorKind::Internal, "a commit unasked"))?;
    let entered = match enter_newest(shared, who, put, turn, if_exists) {
        Ok(entered) => entered,
        Err(refused) => {
            // Nobody goes on with it.
            file.iter().for_each(|file| file.discard());
            return not_newest(&pass, put, &finish, refused.error).inspect(|stored| attempt.ended(stored));
        }
    };
    let ended = |attempt: Attempt, stored: &Stored| {
        attempt.ended(stored);
        shared.own.stored(who, &pass, put, stored);
        entered.into_iter().for_each(Entered::stored);
    };
    if let (Some(base), Some(root)) = (&base, base_root)
        && (file.is_none() || receiver.received() == 0 && stays(put, base))
    {
        // Nothing came: the client found every group equal, and says which root that makes. What was there when they
        // were compared need not be there now.
        if let Some(file) = &file {
            file.discard();
        }
        if root != finish.root {
            return Err(mismatch(put, root, finish.root));
        }
        let stored = confirm_unchanged(&pass, put, base, &finish)?;
        ended(attempt, &stored);
        drop(right);
        return Ok(stored);
    }
    let file = file.ok_or_else(|| Error::new(ErrorKind::Internal, "a commit without a file"))?;
    receiver.take_held();
    if let Some(base) = &base {
        copy_missing(&file, base, &mut receiver, finish.size)?;
    }
    pass.settle_credit(&mut reservation, &put.path, finish.size)?;
    let file = Arc::into_inner(file).ok_or_else(|| Error::new(ErrorKind::Internal, "an upload still being written"))?;
    // Held until the end: nobody begins anew while this is being committed, and nothing is kept afterwards.
    let (file, _right) = file.enter_commit()?;
    let verdict = receiver.verdict().map_err(|error| error.context(&put.path));
    #[cfg(test)]
    let verdict = if super::sim::planted(super::sim::Planted::NoRootCheck) { Ok(finish.root) } else { verdict };
    let root = verdict?;
    let staged = file.finish(finish.size, metadata(put, root))?;
    let xattrs_lost = staged.xattrs_lost();
    let mut spending = who.spend(finish.size, vec![claim])?;
    let published = pass
        .store
        .publish(vec![staged])
        .pop()
        .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "a publication without an answer")));
    let stored = settle(&pass, put, root, finish.size, published, xattrs_lost)?;
    spent(&mut spending, &stored);
    ended(attempt, &stored);
    stored_otherwise(&pass.store, &who.principal, put);
    Ok(stored)
}

/// What was stored anew is what an invite is used for.
fn spent(spending: &mut Spending, stored: &Stored) {
    if stored.outcome == Outcome::Stored {
        spending.done(stored.size);
    }
}

/// Reads the groups that did not come from the base, hashes and writes that very buffer: a base that changes
/// underneath is found by the root.
fn copy_missing(file: &Sink, base: &StoredFile, receiver: &mut Receiver, size: u64) -> Result<()> {
    let missing: Vec<u64> = receiver.missing(size).collect();
    let mut buffer = vec![0; GROUP_LEN];
    for group in missing {
        let content = &mut buffer[..group_len(size, group)];
        base.read_at(group_offset(group), content)?;
        let mut hasher = GroupHasher::new(group);
        write_group(file, &mut hasher, 0, content)?;
        receiver.insert(group, hasher.finish());
    }
    Ok(())
}

fn mismatch(put: &Put, found: Root, claimed: Root) -> Error {
    Error::new(
        ErrorKind::Mismatch,
        format!("{}: the content has the hash {found}, the sender says {claimed}", put.path),
    )
}

fn confirm_unchanged(pass: &Pass, put: &Put, base: &StoredFile, finish: &Finish) -> Result<Stored> {
    let changed =
        || Error::new(ErrorKind::Changed, format!("{} was changed on the server while it was compared", put.path));
    if base.size() != finish.size {
        return Err(changed());
    }
    base.check_unchanged().map_err(|error| error.context(&put.path).with_kind(ErrorKind::Changed))?;
    let mut now = pass.store.open_file(&put.path)?;
    if now.version() != base.version() {
        return Err(changed());
    }
    match keep_unchanged(pass, put, &mut now, finish.root) {
        // It has other names, whose metadata must stay: the next attempt stores it anew.
        Err(error) if error.kind() == ErrorKind::Unsupported => Err(changed()),
        kept => kept,
    }
}

/// Whether an equal version that is there can get what was asked for. Otherwise it is stored anew, from what is there.
fn stays(put: &Put, base: &StoredFile) -> bool {
    let mtime = put.mtime.and_then(convert::mtime_to_storage);
    put.if_exists != IfExists::Overwrite || base.takes_metadata(put.mode, mtime, put.xattrs.as_ref())
}

/// Makes an equal version durable and gives it the metadata that were asked for.
fn keep_unchanged(pass: &Pass, put: &Put, file: &mut StoredFile, root: Root) -> Result<Stored> {
    let mut xattrs_lost = None;
    if pass.if_exists(&put.path, put.if_exists) == IfExists::Overwrite {
        let mtime = put.mtime.and_then(convert::mtime_to_storage);
        xattrs_lost = file.set_metadata(put.mode, mtime, put.xattrs.as_ref())?.map(ErrorKind::code);
    }
    file.record_anew(root)?;
    pass.store.sync_existing(file, &put.path)?;
    Ok(Stored { outcome: Outcome::Unchanged, root: Some(root), size: file.size(), path: None, xattrs_lost })
}

fn metadata(put: &Put, root: Root) -> storage::FileMetadata {
    storage::FileMetadata {
        mode: put.mode,
        mtime: put.mtime.and_then(convert::mtime_to_storage),
        root,
        upload_id: put.upload_id.0,
        xattrs: put.xattrs.clone(),
    }
}

/// Turns what publishing said into the answer. A name that was taken meanwhile, or already, is compared once more:
/// the same content is `unchanged` under every policy.
fn settle(
    pass: &Pass,
    put: &Put,
    root: Root,
    size: u64,
    published: Result<storage::Published>,
    xattrs_lost: Option<ErrorKind>,
) -> Result<Stored> {
    let left_alone = match published {
        Ok(published) if published.outcome == storage::Outcome::Skipped => None,
        Ok(published) => {
            pass.stored(&published, size);
            let path = (published.path != put.path).then_some(published.path);
            let xattrs_lost = xattrs_lost.map(ErrorKind::code);
            return Ok(Stored { outcome: Outcome::Stored, root: Some(root), size, path, xattrs_lost });
        }
        Err(error) if error.kind() == ErrorKind::Exists => Some(error),
        Err(error) => return Err(error),
    };
    if may_read(pass, put)
        && let Some(mut file) = existing_file(pass, put)?
        && file.size() == size
        && root_of(&file)? == root
    {
        return keep_unchanged(pass, put, &mut file, root);
    }
    match left_alone {
        None => taken(pass, put, IfExists::Skip),
        Some(error) => Err(taken(pass, put, IfExists::Fail).err().unwrap_or(error)),
    }
}

/// The root of a stored file, by reading it.
pub(super) fn root_of(file: &StoredFile) -> Result<Root> {
    let mut tree = Tree::new();
    let mut buffer = vec![0; GROUP_LEN.min(usize::try_from(file.size()).unwrap_or(GROUP_LEN))];
    for group in 0..group_count(file.size()) {
        let content = &mut buffer[..group_len(file.size(), group)];
        file.read_at(group_offset(group), content)?;
        tree.insert(group, GroupHash::of(group, content));
    }
    file.check_unchanged()?;
    tree.root(file.size()).ok_or_else(|| Error::new(ErrorKind::Internal, "a group was left out"))
}

/// What an unasked upload of this size counts: its content and its extended attributes.
pub(super) fn unasked_len(put: &Put, size: u64) -> u64 {
    size.saturating_add(put.xattrs.as_ref().map_or(0, |xattrs| xattrs.len() as u64))
}

/// How a small upload ended.
pub(super) struct SmallAnswer {
    pub(super) transfer: u32,
    /// What it counts among what is unasked.
    pub(super) size: u64,
    pub(super) stored: Result<Stored>,
    pub(super) receipt: Option<Receipt>,
    /// Its client is asked to say it again, since this moment.
    pub(super) asked: Option<(Bytes16, u64)>,
}

/// What became of a batch of small uploads.
pub(super) struct CommittedSmall {
    pub(super) answers: Vec<SmallAnswer>,
    /// The memory that their content came into, for what comes next.
    pub(super) spare: Vec<Vec<u8>>,
}

/// Commits small uploads, each with the root of its content, together: many writes, then one publication.
pub(super) fn commit_small(
    shared: &Shared,
    who: &Who,
    batch: Vec<(SmallUpload, Root)>,
    made: &Arc<storage::Made>,
) -> CommittedSmall {
    let answer = |transfer, put: &Put, size, stored: Result<Stored>| {
        let receipt = stored.as_ref().ok().and_then(|stored| receipt(shared, who, &put.path, stored));
        SmallAnswer { transfer, size: unasked_len(put, size), stored, receipt, asked: None }
    };
    let (answers, spare) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    let mut committed = CommittedSmall { answers, spare };
    let mut staged = Vec::with_capacity(batch.len());
    let mut waiting = Vec::with_capacity(batch.len());
    let mut seats = Vec::with_capacity(batch.len());
    let mut claims = Vec::with_capacity(batch.len());
    let mut parents = storage::Parents::of_sender(made);
    // What counts for an invite or a quota is counted by looking at what is there.
    if who.attendance().is_none() && !shared.accounts.count_any() {
        parents.build_aside(batch.iter().map(|(upload, _)| &upload.put.path));
    }
    for (SmallUpload { transfer, put, content, finish, seat, turn }, root) in batch {
        seats.push(seat);
        let mut asked = None;
        let small = shared.pass(who).and_then(|pass| {
            let small =
                stage_small(shared, who, &pass, &mut parents, &put, (&content, root), &finish, (turn, &mut asked))?;
            Ok((small, pass))
        });
        committed.spare.push(content);
        match small {
            Ok((Small::Ended(stored), _)) => committed.answers.push(answer(transfer, &put, finish.size, Ok(stored))),
            Ok((Small::Staged(file, attempt, entered, reservation, claim), pass)) => {
                claims.push(claim);
                let kept = (reservation, file.xattrs_lost());
                staged.push(file);
                waiting.push((transfer, put, finish, attempt, entered, kept, pass));
            }
            Err(error) if asked.is_some() => {
                let asked = asked.map(|moment| (put.upload_id, moment));
                committed.answers.push(SmallAnswer { asked, ..answer(transfer, &put, finish.size, Err(error)) });
            }
            Err(error) => committed.answers.push(answer(transfer, &put, finish.size, Err(error))),
        }
    }
    let Some((.., pass)) = waiting.first() else { return committed };
    let size = waiting.iter().map(|(_, _, finish, ..)| finish.size).fold(0, u64::saturating_add);
    let mut spending = match who.spend(size, claims) {
        Ok(spending) => spending,
        Err(error) => {
            let refuse = |(transfer, put, finish, ..): (_, Put, Finish, _, _, _, _)| {
                answer(transfer, &put, finish.size, Err(error.duplicate()))
            };
            committed.answers.extend(waiting.into_iter().map(refuse));
            return committed;
        }
    };
    let published = pass.store.publish(staged);
    for ((transfer, put, finish, attempt, entered, kept, pass), published) in waiting.into_iter().zip(published) {
        let (_reservation, xattrs_lost) = kept;
        let stored = settle(&pass, &put, finish.root, finish.size, published, xattrs_lost);
        if let Ok(stored) = &stored {
            spent(&mut spending, stored);
            attempt.ended(stored);
            shared.own.stored(who, &pass, &put, stored);
            entered.into_iter().for_each(Entered::stored);
            stored_otherwise(&pass.store, &who.principal, &put);
        }
        committed.answers.push(answer(transfer, &put, finish.size, stored));
    }
    committed
}

#[expect(clippy::large_enum_variant, reason = "it lives for a moment, and most are staged")]
enum Small {
    Staged(storage::Staged, Attempt, Option<Entered>, Reservation, Claim),
    Ended(Stored),
}

#[expect(clippy::too_many_arguments, reason = "one small upload, and what is common to its batch")]
fn stage_small(
    shared: &Shared,
    who: &Who,
    pass: &Pass,
    parents: &mut storage::Parents,
    put: &Put,
    (content, root): (&[u8], Root),
    finish: &Finish,
    (turn, asked): (Turn, &mut Option<u64>),
) -> Result<Small> {
    let if_exists = admit(pass, put)?;
    let attempt = match shared.outcomes.begin(&who.principal, &put.upload_id, &put.path, turn.session())? {
        Begin::Known(stored) => return Ok(Small::Ended(stored)),
        Begin::Go(attempt) => attempt,
    };
    attempt.enter_commit(&put.path)?;
    let entered = match enter_newest(shared, who, put, turn, if_exists) {
        Ok(entered) => entered,
        Err(refused) => {
            let stored = not_newest(pass, put, finish, refused.error).inspect_err(|_| *asked = refused.asked)?;
            attempt.ended(&stored);
            return Ok(Small::Ended(stored));
        }
    };
    let ended = |attempt: Attempt, entered: Option<Entered>, stored: Stored| {
        attempt.ended(&stored);
        entered.into_iter().for_each(Entered::stored);
        Ok(Small::Ended(stored))
    };
    if root != finish.root {
        return Err(mismatch(put, root, finish.root));
    }
    if if_exists == IfExists::Rename
        && let Some(stored) = known_renamed(pass, put)?
    {
        return ended(attempt, entered, stored);
    }
    let is_free = match if_exists {
        IfExists::Rename => true,
        IfExists::Overwrite => parents.lacks_or_replaces(&pass.store, &put.path),
        IfExists::Skip | IfExists::Fail => parents.lacks(&pass.store, &put.path),
    };
    if !is_free && let Some((mut file, _)) = comparable(shared, who, pass, put, if_exists)? {
        if let Some(stored) = known_by_record(pass, put, &file)? {
            return ended(attempt, entered, stored);
        }
        if file.size() == finish.size && root_of(&file)? == root {
            match keep_unchanged(pass, put, &mut file, root) {
                // It has other names, whose metadata must stay: it is stored anew.
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                kept => return ended(attempt, entered, kept?),
            }
        }
    }
    let claim = who.claim(finish.size, &put.path)?;
    let (file, reservation) = match begin(pass, parents, put, attempt.key(), if_exists) {
        Err(error) if error.kind() == ErrorKind::Exists => {
            return taken(pass, put, if_exists).map(Small::Ended);
        }
        begun => begun?,
    };
    if !content.is_empty() {
        file.write_at(0, content)?;
    }
    Ok(Small::Staged(file.finish(finish.size, metadata(put, root))?, attempt, entered, reservation, claim))
}
