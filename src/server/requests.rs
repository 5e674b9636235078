//! Requests that are answered from the disk: what is there, and small changes of names. Every function blocks.

use std::sync::Arc;

use bytes::Bytes;

use super::convert;
use super::outcomes::Begin;
use super::shared::{Shared, Who};
use crate::access::Verb;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{self, UNASKED_FILE_MAX};
use crate::path::RemotePath;
use crate::protocol::{
    Done, Entries, FRAME_HEADER_LEN, Finish, Get, GetAnswer, Header, IfExists, Kind, List, ListDirectory,
    MakeDirectory, MakeLink, Message, OFFSET_LEN, Outcome, Remove, Rename, SetDirectory, Space, Stat, Stored, Volume,
};
use crate::storage::{self, Cursor, Listing, StoredFile};

/// A download that was opened: the frames of its answer, and the file if content is still to be asked for.
pub(super) struct Got {
    pub(super) frames: Vec<Bytes>,
    pub(super) file: Option<Arc<StoredFile>>,
}

/// A page of a listing: its frames, and the rest.
pub(super) struct ListStep {
    pub(super) frames: Vec<Bytes>,
    pub(super) rest: Option<Rest>,
}

/// What of a listing is still to come.
pub(super) type Rest = Box<Ongoing>;

/// A listing on its way.
pub(super) struct Ongoing {
    listing: Listing,
    /// An entry that did not fit the last page.
    held: Option<storage::Entry>,
    count: u64,
    count_max: u64,
}

/// Answers that tell of nothing but success.
pub(super) fn done(count: u64) -> Done {
    Done { count, root: None, size: None, path: None, next: None }
}

fn frame(transfer: u32, message: &impl Message) -> Bytes {
    message.to_frame(transfer).into()
}

/// Opens a file for download; a small one is read at once.
pub(super) fn get(shared: &Shared, who: &Who, transfer: u32, get: &Get) -> Result<Got> {
    shared.access.decide(&who.principal, Verb::Read, &get.path)?;
    let file = shared.store.open_file(&get.path)?;
    let size = file.size();
    let unasked = size <= get.unasked_max.min(UNASKED_FILE_MAX);
    let answer = GetAnswer {
        size,
        mtime: convert::mtime(file.mtime()),
        mode: file.mode(),
        unasked,
        root: file.recorded_root(),
        version: version_name(&file),
    };
    let mut frames = vec![frame(transfer, &answer)];
    if !unasked {
        return Ok(Got { frames, file: Some(Arc::new(file)) });
    }
    let len = usize::try_from(size).map_err(|_| Error::new(ErrorKind::Internal, "a small file is not small"))?;
    let start = FRAME_HEADER_LEN + OFFSET_LEN;
    let mut data = vec![0; start + len];
    file.read_at(0, &mut data[start..])?;
    let root = crate::hash::Root::of(&data[start..]);
    file.check_unchanged()?;
    if len > 0 {
        data[..FRAME_HEADER_LEN].copy_from_slice(&Header::new(Kind::Data, transfer, OFFSET_LEN + len).encode());
        frames.push(data.into());
    }
    frames.push(frame(transfer, &Finish { size, root }));
    Ok(Got { frames, file: None })
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
    shared.access.decide(&who.principal, Verb::List, &request.path)?;
    let entry = convert::entry(shared.store.stat(&request.path)?);
    Ok(vec![frame(transfer, &entry)])
}

/// What space there is.
pub(super) fn space(shared: &Shared, who: &Who, transfer: u32, request: &Space) -> Result<Vec<Bytes>> {
    shared.access.decide(&who.principal, Verb::List, &request.path)?;
    let space = shared.store.space(&request.path)?;
    Ok(vec![frame(transfer, &Volume { free: space.free, total: space.total })])
}

/// Begins a listing.
pub(super) fn list(shared: &Shared, who: &Who, transfer: u32, request: &ListDirectory) -> Result<ListStep> {
    shared.access.decide(&who.principal, Verb::List, &request.path)?;
    let listing = shared.store.list(&request.path, request.after.map(Cursor))?;
    let count_max = request.count_max.unwrap_or(u64::MAX);
    list_step(transfer, Box::new(Ongoing { listing, held: None, count: 0, count_max }))
}

/// The next page of a listing.
pub(super) fn list_step(transfer: u32, mut rest: Rest) -> Result<ListStep> {
    // What an entry costs beside its name and target, at most.
    const ENTRY_OVERHEAD: usize = 64;
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
        len += ENTRY_OVERHEAD + entry.name.len() + entry.link_target.as_ref().map_or(0, Vec::len);
        if page.len() == limits::LIST_PAGE_MAX || len > limits::CONTROL_LEN_MAX {
            rest.held = Some(entry);
            return Ok(ListStep { frames: vec![frame(transfer, &Entries { entries: List(page) })], rest: Some(rest) });
        }
        page.push(convert::entry(entry));
        rest.count += 1;
    }
    let page = frame(transfer, &Entries { entries: List(page) });
    let done = Done { next, ..done(rest.count) };
    Ok(ListStep { frames: vec![page, frame(transfer, &done)], rest: None })
}

/// A directory and its parents; tells whether it was made.
pub(super) fn make_directory(shared: &Shared, who: &Who, request: &MakeDirectory) -> Result<bool> {
    shared.access.decide(&who.principal, Verb::Create, &request.path)?;
    shared.store.make_directory(&request.path, None, true)
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
    let verb = if made_here { Verb::Create } else { Verb::Overwrite };
    match shared.access.decide(&who.principal, verb, &request.path) {
        Ok(()) => {
            let mtime = request.mtime.and_then(convert::mtime_to_storage);
            shared.store.set_directory_metadata(&request.path, request.mode, mtime)?;
            Ok(vec![frame(transfer, &done(1))])
        }
        Err(_) => {
            shared.access.decide(&who.principal, Verb::Create, &request.path)?;
            Ok(vec![frame(transfer, &done(0))])
        }
    }
}

/// A symbolic link.
pub(super) fn make_link(shared: &Shared, who: &Who, transfer: u32, request: &MakeLink) -> Result<Vec<Bytes>> {
    shared.access.decide(&who.principal, Verb::Create, &request.path)?;
    let if_exists = shared.access.if_exists(&who.principal, request.if_exists);
    let mtime = request.mtime.and_then(convert::mtime_to_storage);
    // What is there already stays: replacing it would change nothing.
    if if_exists != IfExists::Rename && is_same_link(shared, who, request, if_exists == IfExists::Overwrite) {
        shared.store.sync_link(&request.path)?;
        return Ok(vec![frame(transfer, &Stored { outcome: Outcome::Unchanged, root: None, size: 0, path: None })]);
    }
    let made = shared.store.make_link(&request.path, &request.target, mtime, convert::if_exists(if_exists));
    let stored = match made {
        Ok(published) if published.outcome == storage::Outcome::Skipped => {
            Stored { outcome: Outcome::Skipped, root: None, size: 0, path: None }
        }
        Ok(published) => {
            let path = (published.path != request.path).then_some(published.path);
            Stored { outcome: Outcome::Stored, root: None, size: 0, path }
        }
        Err(error) if error.kind() == ErrorKind::Exists => {
            if is_same_link(shared, who, request, false) {
                // Who made it may not have synced it.
                shared.store.sync_link(&request.path)?;
                Stored { outcome: Outcome::Unchanged, root: None, size: 0, path: None }
            } else {
                if request.if_exists == IfExists::Overwrite {
                    shared.access.decide(&who.principal, Verb::Overwrite, &request.path)?;
                }
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    };
    Ok(vec![frame(transfer, &stored)])
}

fn is_same_link(shared: &Shared, who: &Who, request: &MakeLink, with_time: bool) -> bool {
    shared.access.decide(&who.principal, Verb::Read, &request.path).is_ok()
        && shared.store.stat(&request.path).is_ok_and(|entry| {
            let is_same_time = request.mtime.is_none_or(|mtime| mtime == convert::mtime(entry.mtime));
            entry.link_target.as_deref() == Some(request.target.as_slice()) && (is_same_time || !with_time)
        })
}

/// A removal.
pub(super) fn remove(shared: &Shared, who: &Who, transfer: u32, request: &Remove) -> Result<Vec<Bytes>> {
    shared.access.decide(&who.principal, Verb::Delete, &request.path)?;
    let count = shared.store.remove(&request.path, request.recursive)?;
    Ok(vec![frame(transfer, &done(count))])
}

/// A renaming.
pub(super) fn rename(shared: &Shared, who: &Who, transfer: u32, request: &Rename) -> Result<Vec<Bytes>> {
    shared.access.decide(&who.principal, Verb::Rename, &request.from)?;
    shared.access.decide(&who.principal, Verb::Create, &request.to)?;
    // A client whose answer was lost asks again, and finds the old name gone.
    let attempt = match shared.outcomes.begin(&who.principal, &request.id, &request.to)? {
        Begin::Known(stored) => return Ok(vec![frame(transfer, &renamed(stored))]),
        Begin::Go(attempt) => attempt,
    };
    attempt.enter_commit(&request.to)?;
    let if_exists = shared.access.if_exists(&who.principal, request.if_exists);
    let published = shared.store.rename(&request.from, &request.to, convert::if_exists(if_exists))?;
    let is_skipped = published.outcome == storage::Outcome::Skipped;
    let outcome = if is_skipped { Outcome::Skipped } else { Outcome::Stored };
    let path = (!is_skipped && published.path != request.to).then_some(published.path);
    let stored = Stored { outcome, root: None, size: 0, path };
    attempt.ended(&stored);
    Ok(vec![frame(transfer, &renamed(stored))])
}

fn renamed(stored: Stored) -> Done {
    let count = u64::from(stored.outcome != Outcome::Skipped);
    Done { path: stored.path, ..done(count) }
}

/// Opens a file whose root is asked for.
pub(super) fn open_to_hash(shared: &Shared, who: &Who, path: &RemotePath) -> Result<StoredFile> {
    shared.access.decide(&who.principal, Verb::Read, path)?;
    shared.store.open_file(path)
}
