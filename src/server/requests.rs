//! Requests that are answered from the disk: what is there, and small changes of names. Every function blocks.

use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use super::convert;
use super::names;
use super::outcomes::Begin;
use super::quota::{self, Amount};
use super::shared::{Pass, Shared, Who};
use super::source::Source;
use crate::access::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{self, UNASKED_FILE_MAX};
use crate::path::{Component, RemotePath};
use crate::protocol::{
    Done, Entries, FRAME_HEADER_LEN, Finish, Get, GetAnswer, Header, IfExists, Kind, List, ListDirectory,
    MakeDirectory, MakeLink, Message, OFFSET_LEN, Outcome, Remove, Rename, SetDirectory, Space, Stat, Stored, Volume,
};
use crate::storage::{self, Cursor, Listing, StoredFile};
use crate::transfer::check_recorded;
use crate::xattrs::Xattrs;

/// A download that was opened: the frames of its answer, and the file if content is still to be asked for.
pub(super) struct Got {
    pub(super) frames: Vec<Bytes>,
    pub(super) file: Option<(RemotePath, Arc<Source>)>,
    /// Its first group follows, though it was not asked for.
    pub(super) first: bool,
}

/// A download that is being opened.
pub(super) enum Opening {
    Large(Got),
    /// All of it follows at once. It is read, and not yet known to be what was stored.
    Small(Box<Read>),
}

/// A small file that was read.
pub(super) struct Read {
    path: RemotePath,
    answer: Bytes,
    /// A frame, its header not yet filled in.
    data: Vec<u8>,
    recorded: Option<Root>,
    transfer: u32,
}

impl Opening {
    /// Whether it stays open.
    pub(super) fn is_large(&self) -> bool {
        matches!(self, Opening::Large(_))
    }

    /// Bytes of the frames that it has so far.
    pub(super) fn len(&self) -> usize {
        match self {
            Opening::Large(got) => got.frames.iter().map(Bytes::len).sum(),
            Opening::Small(read) => read.answer.len() + read.data.len(),
        }
    }

    /// The content whose root [`Opening::finish`] is to be told; none of a file that does not follow at once.
    pub(super) fn content(&self) -> &[u8] {
        match self {
            Opening::Large(_) => &[],
            Opening::Small(read) => &read.data[DATA_START..],
        }
    }

    /// The answer, once the content is hashed.
    ///
    /// # Errors
    /// `Rotten`; for an invite, what it does not allow.
    pub(super) fn finish(self, who: &Who, root: Root) -> Result<Got> {
        let Read { path, answer, mut data, recorded, transfer } = match self {
            Opening::Large(got) => return Ok(got),
            Opening::Small(read) => *read,
        };
        check_stored(&path, recorded, root)?;
        let len = data.len() - DATA_START;
        let size = len as u64;
        if let Some(attendance) = who.attendance() {
            // Others may have been handed out since it was opened.
            attendance.check_download(size, &path.to_string())?;
            attendance.hand_out(size, true)?;
        }
        let mut frames = vec![answer];
        if len > 0 {
            data[..FRAME_HEADER_LEN].copy_from_slice(&Header::new(Kind::Data, transfer, OFFSET_LEN + len).encode());
            frames.push(data.into());
        }
        frames.push(frame(transfer, &Finish { size, root }));
        Ok(Got { frames, file: None, first: false })
    }
}

/// Where in a data frame the content begins.
const DATA_START: usize = FRAME_HEADER_LEN + OFFSET_LEN;

/// A page of a listing: its frames, and the rest.
pub(super) struct ListStep {
    pub(super) frames: Vec<Bytes>,
    pub(super) rest: Option<Rest>,
}

/// What of a listing is still to come.
pub(super) type Rest = Box<Ongoing>;

/// A listing on its way.
pub(super) struct Ongoing {
    path: RemotePath,
    listing: Listing,
    /// An entry that did not fit the last page.
    held: Option<storage::Entry>,
    count: u64,
    count_max: u64,
    tells_xattrs: bool,
    hides_some: bool,
}

/// Answers that tell of nothing but success.
pub(super) fn done(count: u64) -> Done {
    Done { count, ..Done::default() }
}

fn frame(transfer: u32, message: &impl Message) -> Bytes {
    message.to_frame(transfer).into()
}

/// Opens a file for download; a small one is read at once.
pub(super) fn get(
    shared: &Shared,
    who: &Who,
    parents: &mut storage::Parents,
    transfer: u32,
    get: &Get,
    may_send_first: bool,
) -> Result<Opening> {
    let pass = shared.pass(who)?;
    pass.decide(Action::Read(&get.path))?;
    let file = pass.store.open_file_in(parents, &get.path)?;
    let size = file.size();
    if let Some(attendance) = who.attendance() {
        attendance.check_download(size, &get.path.to_string())?;
    }
    let unasked = size <= get.unasked_max.min(UNASKED_FILE_MAX);
    let xattrs = if get.xattrs == Some(true) { Some(file.xattrs()?) } else { None };
    let recorded = file.recorded_root();
    // Of what is given by an invite every byte is asked for, because that is what counts.
    let is_counted = who.attendance().is_some();
    let zeros = if unasked || is_counted { None } else { zero_groups(&file, xattrs.as_ref()) };
    let is_first_zero = zeros.as_ref().is_some_and(|runs| runs.0.first().is_some_and(|&(start, _)| start == 0));
    let may_send_first = may_send_first && get.first_max.is_some_and(|max| size <= max);
    let first = may_send_first && !unasked && !is_counted && !is_first_zero;
    let answer = GetAnswer {
        size,
        mtime: convert::mtime(file.mtime()),
        mode: file.mode(),
        unasked,
        root: recorded,
        version: version_name(&file),
        zeros,
        first: first.then_some(true),
        xattrs,
    };
    let answer = frame(transfer, &answer);
    if !unasked {
        // What is handed out over an invite counts with the answer to `Close`, for which its client waits.
        let foretells = get.finish_ahead == Some(true) && !is_counted;
        let file = Some((get.path.clone(), Source::new(file, foretells)));
        return Ok(Opening::Large(Got { frames: vec![answer], file, first }));
    }
    let len = usize::try_from(size).map_err(|_| Error::new(ErrorKind::Internal, "a small file is not small"))?;
    let mut data = vec![0; DATA_START + len];
    file.read_at(0, &mut data[DATA_START..])?;
    file.check_unchanged()?;
    Ok(Opening::Small(Box::new(Read { path: get.path.clone(), answer, data, recorded, transfer })))
}

/// As [`check_recorded`], and whoever runs the server hears of it.
///
/// # Errors
/// `Rotten`.
pub(super) fn check_stored(path: &RemotePath, recorded: Option<Root>, found: Root) -> Result<()> {
    check_recorded(recorded, found).inspect_err(|error| warn!("{path} is rotten: {error}"))
}

/// Runs of groups of zeros, as many as fit beside the rest of an answer.
fn zero_groups(
    file: &StoredFile,
    xattrs: Option<&Xattrs>,
) -> Option<List<(u64, u64), { limits::ZERO_RUNS_IN_MESSAGE }>> {
    let mut runs = file.zero_groups()?;
    if xattrs.is_some_and(|xattrs| !xattrs.is_empty()) {
        runs.truncate(limits::ZERO_RUNS_WITH_XATTRS);
    }
    Some(List(runs))
}

fn version_name(file: &StoredFile) -> Vec<u8> {
    let version = file.version();
    let mut name = Vec::with_capacity(48);
    for number in [version.identity.device, version.identity.inode, version.size] {
        name.extend_from_slice(&number.to_be_bytes());
    }
    for time in [version.mtime, version.ctime] {
        name.extend_from_slice(&time.secs().to_be_bytes());
        name.extend_from_slice(&time.nanos().to_be_bytes());
    }
    name
}

/// One entry.
pub(super) fn stat(shared: &Shared, who: &Who, transfer: u32, request: &Stat) -> Result<Vec<Bytes>> {
    let pass = shared.pass(who)?;
    pass.decide(Action::List(&request.path))?;
    let mut entry = convert::entry(pass.store.stat(&request.path)?);
    if request.xattrs == Some(true) {
        pass.decide(Action::Read(&request.path))?;
        entry.xattrs = Some(Box::new(pass.store.xattrs(&request.path)?));
    }
    Ok(vec![frame(transfer, &entry)])
}

/// What space there is.
pub(super) fn space(shared: &Shared, who: &Who, transfer: u32, request: &Space) -> Result<Vec<Bytes>> {
    let pass = shared.pass(who)?;
    pass.decide(Action::List(&request.path))?;
    let space = pass.store.space(&request.path)?;
    Ok(vec![frame(transfer, &Volume { free: space.free, total: space.total })])
}

/// Begins a listing.
pub(super) fn list(shared: &Shared, who: &Who, transfer: u32, request: &ListDirectory) -> Result<ListStep> {
    let pass = shared.pass(who)?;
    pass.decide(Action::List(&request.path))?;
    let mut listing = pass.store.list(&request.path, request.after.map(Cursor))?;
    // A place in one directory is anywhere in another.
    if request.after.is_some() && request.directory.is_some() && request.directory != names::listed(&listing) {
        let text = format!("{} is another directory than the one whose listing began", request.path);
        return Err(Error::new(ErrorKind::Changed, text));
    }
    let tells_xattrs = request.xattrs == Some(true);
    if tells_xattrs {
        listing.tell_xattrs();
    }
    let (path, count_max) = (request.path.clone(), request.count_max.unwrap_or(u64::MAX));
    list_step(
        shared,
        who,
        transfer,
        Box::new(Ongoing { path, listing, held: None, count: 0, count_max, tells_xattrs, hides_some: false }),
    )
}

/// The next page of a listing: what the principal may see of it.
pub(super) fn list_step(shared: &Shared, who: &Who, transfer: u32, mut rest: Rest) -> Result<ListStep> {
    let pass = shared.pass(who)?;
    pass.decide(Action::List(&rest.path))?;
    let hides_some = pass.hides_some(&rest.path);
    rest.hides_some |= hides_some;
    // What an entry costs beside its name and target, at most.
    const ENTRY_OVERHEAD: usize = 96;
    let mut page = Vec::new();
    let mut len = ENTRY_OVERHEAD;
    let mut next = None;
    loop {
        if rest.count == rest.count_max {
            // Nothing is held here, so this is the place behind the entry that was sent last.
            next = Some(rest.listing.cursor().0);
            break;
        }
        let entry = match rest.held.take() {
            Some(entry) => entry,
            None => match rest.listing.next() {
                Some(entry) => entry?,
                None => break,
            },
        };
        if hides_some && !is_seen(&pass, &rest.path, &entry.name) {
            continue;
        }
        len += ENTRY_OVERHEAD + entry.name.len() + entry.link_target.as_ref().map_or(0, Vec::len);
        if page.len() == limits::LIST_PAGE_MAX || len > limits::CONTROL_LEN_MAX {
            rest.held = Some(entry);
            return Ok(ListStep { frames: vec![frame(transfer, &Entries { entries: List(page) })], rest: Some(rest) });
        }
        let mut entry = convert::entry(entry);
        if rest.tells_xattrs && !may_read(&pass, &rest.path, &entry.name) {
            entry.xattrs_digest = None;
        }
        page.push(entry);
        rest.count += 1;
    }
    let page = frame(transfer, &Entries { entries: List(page) });
    let directory = next.and_then(|_| names::listed(&rest.listing));
    // As the rules are, not as the directory is: whether there is anything that is hidden is nobody's to know.
    let done = Done { next, directory, hidden: rest.hides_some.then_some(true), ..done(rest.count) };
    Ok(ListStep { frames: vec![page, frame(transfer, &done)], rest: None })
}

fn is_seen(pass: &Pass, directory: &RemotePath, name: &[u8]) -> bool {
    let path = Component::new(name).and_then(|name| directory.join(name));
    path.is_ok_and(|path| pass.may(Action::List(&path)))
}

fn may_read(pass: &Pass, directory: &RemotePath, name: &[u8]) -> bool {
    let path = Component::new(name).and_then(|name| directory.join(name));
    path.is_ok_and(|path| pass.may(Action::Read(&path)))
}

/// A directory and its parents; tells whether it was made.
pub(super) fn make_directory(shared: &Shared, who: &Who, request: &MakeDirectory) -> Result<bool> {
    let pass = shared.pass(who)?;
    pass.decide_new(Action::Create(&request.path), &request.path)?;
    let (mut reservation, count) = pass.reserve_directories(&request.path)?;
    let mut spending = who.spend(0, Vec::new())?;
    let made = pass.store.make_directory(&request.path, None, true)?;
    if made {
        spending.done(0);
    }
    pass.made(&mut reservation, &request.path, count);
    Ok(made)
}

/// The final mode and time of a directory. Who may not replace may not change what was there before either; for
/// such a principal this is done only where it made the directory (`made_here`), and otherwise left alone.
pub(super) fn set_directory(
    shared: &Shared,
    who: &Who,
    transfer: u32,
    request: &SetDirectory,
    made_here: bool,
) -> Result<Vec<Bytes>> {
    let pass = shared.pass(who)?;
    let path = &request.path;
    match pass.decide(if made_here { Action::Create(path) } else { Action::Overwrite(path) }) {
        Ok(()) => {
            let mtime = request.mtime.and_then(convert::mtime_to_storage);
            let lost = pass.store.set_directory(path, request.mode, mtime, request.xattrs.as_ref())?;
            Ok(vec![frame(transfer, &Done { xattrs_lost: lost.map(ErrorKind::code), ..done(1) })])
        }
        Err(_) => {
            pass.decide(Action::Create(path))?;
            Ok(vec![frame(transfer, &done(0))])
        }
    }
}

/// A symbolic link.
pub(super) fn make_link(shared: &Shared, who: &Who, transfer: u32, request: &MakeLink) -> Result<Vec<Bytes>> {
    let pass = shared.pass(who)?;
    pass.decide_new(Action::Create(&request.path), &request.path)?;
    let if_exists = pass.if_exists(&request.path, request.if_exists);
    let mtime = request.mtime.and_then(convert::mtime_to_storage);
    // What is there already stays: replacing it would change nothing.
    if if_exists != IfExists::Rename && is_same_link(&pass, request, if_exists == IfExists::Overwrite) {
        pass.store.sync_link(&request.path)?;
        return Ok(vec![frame(
            transfer,
            &Stored { outcome: Outcome::Unchanged, root: None, size: 0, path: None, xattrs_lost: None },
        )]);
    }
    let (mut reservation, directories) = pass.reserve(quota::Upload::default(), &request.path, 0, if_exists)?;
    let mut spending = who.spend(0, Vec::new())?;
    let made = pass.store.make_link(&request.path, &request.target, mtime, convert::if_exists(if_exists));
    if made.is_ok() {
        pass.made(&mut reservation, &request.path, directories);
    }
    let stored = match made {
        Ok(published) if published.outcome == storage::Outcome::Skipped => {
            Stored { outcome: Outcome::Skipped, root: None, size: 0, path: None, xattrs_lost: None }
        }
        Ok(published) => {
            spending.done(0);
            pass.stored(&published, 0);
            let path = (published.path != request.path).then_some(published.path);
            Stored { outcome: Outcome::Stored, root: None, size: 0, path, xattrs_lost: None }
        }
        Err(error) if error.kind() == ErrorKind::Exists => {
            if is_same_link(&pass, request, false) {
                // Who made it may not have synced it.
                pass.store.sync_link(&request.path)?;
                Stored { outcome: Outcome::Unchanged, root: None, size: 0, path: None, xattrs_lost: None }
            } else {
                if request.if_exists == IfExists::Overwrite {
                    pass.decide(Action::Overwrite(&request.path))?;
                }
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    };
    Ok(vec![frame(transfer, &stored)])
}

fn is_same_link(pass: &Pass, request: &MakeLink, with_time: bool) -> bool {
    pass.may(Action::Read(&request.path))
        && pass.store.stat(&request.path).is_ok_and(|entry| {
            let is_same_time = request.mtime.is_none_or(|mtime| mtime == convert::mtime(entry.mtime));
            entry.link_target.as_deref() == Some(request.target.as_slice()) && (is_same_time || !with_time)
        })
}

/// A removal.
pub(super) fn remove(shared: &Shared, who: &Who, transfer: u32, request: &Remove) -> Result<Vec<Bytes>> {
    let pass = shared.pass(who)?;
    pass.decide(Action::Remove(&request.path))?;
    let before = pass.measure(&request.path)?;
    let removed = pass.store.remove(&request.path, request.recursive);
    if removed.is_ok() {
        pass.removed(&request.path, before);
    } else if before != Amount::default() {
        // Part of it may be gone.
        let left = pass.measure(&request.path).unwrap_or_default();
        let bytes = before.bytes.saturating_sub(left.bytes);
        pass.removed(&request.path, Amount { bytes, files: before.files.saturating_sub(left.files) });
    }
    let count = removed?;
    Ok(vec![frame(transfer, &done(count))])
}

/// A renaming.
pub(super) fn rename(shared: &Shared, who: &Who, transfer: u32, request: &Rename) -> Result<Vec<Bytes>> {
    let pass = shared.pass(who)?;
    pass.decide_new(Action::Rename { from: &request.from, to: &request.to }, &request.to)?;
    if pass.store.is_in_tree(&request.from) != pass.store.is_in_tree(&request.to) {
        // It would stay where it was: in the old tree, until the new one takes its place.
        let message =
            format!("move {} to {}: what is built as a whole is moved inside it only", request.from, request.to);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    // A client whose answer was lost asks again, and finds the old name gone.
    let attempt = match shared.outcomes.begin(&who.principal, &request.id, &request.to, u64::MAX)? {
        Begin::Known(stored) => return Ok(vec![frame(transfer, &renamed(stored))]),
        Begin::Go(attempt) => attempt,
    };
    attempt.enter_commit(&request.to)?;
    let if_exists = pass.if_exists(&request.to, request.if_exists);
    let amount = pass.measure(&request.from)?;
    let (mut reservation, directories) = pass.reserve_parents(&request.to)?;
    let published = pass.store.rename(&request.from, &request.to, convert::if_exists(if_exists))?;
    pass.made(&mut reservation, &request.to, directories);
    pass.moved(&request.from, &published, amount);
    let is_skipped = published.outcome == storage::Outcome::Skipped;
    let outcome = if is_skipped { Outcome::Skipped } else { Outcome::Stored };
    let path = (!is_skipped && published.path != request.to).then_some(published.path);
    let stored = Stored { outcome, root: None, size: 0, path, xattrs_lost: None };
    attempt.ended(&stored);
    Ok(vec![frame(transfer, &renamed(stored))])
}

fn renamed(stored: Stored) -> Done {
    let count = u64::from(stored.outcome != Outcome::Skipped);
    Done { path: stored.path, ..done(count) }
}

/// Opens a file whose root is asked for.
pub(super) fn open_to_hash(shared: &Shared, who: &Who, path: &RemotePath) -> Result<StoredFile> {
    let pass = shared.pass(who)?;
    pass.decide(Action::Read(path))?;
    pass.store.open_file(path)
}
