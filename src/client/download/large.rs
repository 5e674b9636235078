//! Larger files: asked for by a window of groups, each hashed as it is written, kept when a connection breaks.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::here::{Compared, Here, look};
use super::{FileJob, Job, blocking, mtime_to_storage, panicked, policy_to_storage};
use super::{confirm, zeros};
use crate::buffer::Buffer;
use crate::client::api::{Item, random_id};
use crate::client::event::{Event, Outcome};
use crate::client::keep::{self, Found, Keeper};
use crate::client::lanes::{Pace, Report, Rest};
use crate::client::session::{Exchange, Reply, Session};
use crate::client::shelf::Shelf;
use crate::client::stalls::{Cause, Stalls};
use crate::client::workplace::{Room, Workplace};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, GroupHasher, Root, Tree, group_count, group_len, group_offset};
use crate::limits::{GROUP_LEN, KEPT_SIZE_MIN, NEAR_ROUND_TRIP, UNASKED_FILE_MAX};
use crate::path::RemotePath;
use crate::protocol::{Finish, Get, GetAnswer, IfExists};
use crate::storage::{self, FileMetadata, NewFile};
use crate::transfer::{Way, check_recorded};

/// Groups of one file that are asked for and have not come.
const WINDOW: usize = 32;

/// The same of a near server: enough to keep both sides busy. What comes faster than it is written waits in memory, and
/// gets cold there.
const WINDOW_NEAR: usize = 8;

/// The same where they are written by the connection's thread: one comes while another is written.
const WINDOW_HERE: usize = 2;

/// Groups of one file that are hashed and written at once.
const WRITES_MAX: usize = 4;

/// How a larger file ended.
enum End {
    Saved(u64, Root, storage::Published, Option<ErrorKind>),
    Unchanged(u64, Root),
    Kept,
}

/// A download as far as it came.
pub(super) struct Partial {
    pub(super) version: Vec<u8>,
    pub(super) size: u64,
    pub(super) tree: Tree,
    /// Whether some of it was here before this connection.
    pub(super) is_resumed: bool,
    /// What broken connections have brought of groups.
    pub(super) shelf: Shelf,
    /// How many groups were compared with the server's since: see `confirm`.
    pub(super) confirmed: u64,
    /// The next group to be asked for.
    pub(super) next: u64,
    pub(super) sink: Sink,
    /// None where nothing is kept for another run.
    pub(super) keeper: Option<Keeper>,
}

impl Partial {
    pub(super) fn insert(&mut self, group: u64, hash: GroupHash, len: usize) {
        self.tree.insert(group, hash);
        self.shelf.forget(group);
        if let Some(keeper) = &mut self.keeper {
            keeper.holds(group, hash.value, len);
        }
    }

    /// A group that came is hashed and written.
    fn saved(&mut self, group: u64, hash: GroupHash, item: &mut Item) {
        let len = group_len(self.size, group);
        self.insert(group, hash, len);
        item.advance_group(group, len, 0);
    }
}

/// Where groups go.
#[derive(Clone)]
pub(super) enum Sink {
    File(Arc<storage::Upload>),
    Output(Arc<Mutex<Box<dyn Write + Send>>>),
}

impl Sink {
    /// Whether groups must be written one after the other.
    fn is_ordered(&self) -> bool {
        matches!(self, Sink::Output(_))
    }

    /// Whether writing to it waits for no disk, and for nobody else.
    fn is_in_memory(&self) -> bool {
        match self {
            Sink::File(upload) => upload.is_in_memory(),
            Sink::Output(_) => false,
        }
    }

    fn write(&self, offset: u64, content: &Buffer) -> Result<()> {
        match self {
            Sink::File(upload) => upload.write_at(offset, content),
            Sink::Output(output) => {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                output.write_all(content).while_doing(|| "write to the output".to_owned())
            }
        }
    }
}

pub(super) fn mismatch(ours: Root, theirs: Root) -> Error {
    let message = format!("the content that arrived has the hash {ours}, the server says {theirs}");
    Error::new(ErrorKind::Mismatch, message)
}

/// Hashes and writes a group that came in these parts. Blocks.
fn save(sink: &Sink, stalls: &Stalls, index: u64, parts: &[Buffer]) -> Result<GroupHash> {
    let hash = stalls.working(Cause::Hashing, || match parts {
        [whole] => GroupHash::of(index, whole),
        parts => {
            let mut hasher = GroupHasher::new(index);
            parts.iter().for_each(|part| hasher.update(part));
            hasher.finish()
        }
    });
    #[cfg(test)]
    if index > 0 && storage::simulated::planted(storage::simulated::Planted::DownloadUnwritten) {
        return Ok(hash);
    }
    let mut offset = group_offset(index);
    for part in parts {
        stalls.working(Cause::Writing, || sink.write(offset, part))?;
        offset += part.len() as u64;
    }
    Ok(hash)
}

const _: () = assert!(WINDOW * GROUP_LEN <= crate::limits::WANTED_MAX as usize, "one file may fill its window");

impl Job {
    pub(super) async fn get_file(&self, mut file: FileJob) {
        file.item.started(Some(file.size)).await;
        let mut partial = None;
        let mut retry = self.client.retry();
        loop {
            match self.get_file_once(&mut file, &mut partial).await {
                Ok(End::Saved(size, root, published, lost)) => {
                    self.tell_published(file, size, root, &published, lost).await;
                    return;
                }
                Ok(End::Unchanged(size, root)) => {
                    file.role.is_there(&file.place, None, root);
                    self.tell_done(file.item, size, Some(root), Outcome::Unchanged, None).await;
                    return;
                }
                Ok(End::Kept) => {
                    self.tell_done(file.item, file.size, None, Outcome::Kept, None).await;
                    return;
                }
                Err(error) => {
                    // What came of another version is compared with the next; wrong content is of no use.
                    if matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Rotten | ErrorKind::Changed) {
                        let keeper = partial.take().and_then(|partial: Partial| partial.keeper);
                        if let Some(keeper) = keeper.filter(|_| error.kind() != ErrorKind::Changed) {
                            keeper.end().await;
                        }
                        file.item.restart();
                    }
                    if let Err(error) = retry.after(error).await {
                        file.item.failed(error).await;
                        return;
                    }
                }
            }
        }
    }

    /// One attempt at a file. What it got stays in `partial` when the connection breaks.
    async fn get_file_once(&self, file: &mut FileJob, partial: &mut Option<Partial>) -> Result<End> {
        let mut exchange = match file.opened.take() {
            Some(opened) => opened,
            None => self.session().await?.open_get(&self.get_message(&file.remote, 0)).await?,
        };
        let session = exchange.session().clone();
        self.widen_early(&session, file).await?;
        let answer = match exchange.next().await? {
            // It was opened early, and has become small since: all of it follows.
            Reply::GetAnswer(answer) if answer.unasked && answer.size > 0 => {
                return Err(Error::new(ErrorKind::Changed, format!("{} is smaller than it was listed", file.remote)));
            }
            Reply::GetAnswer(answer) => answer,
            other => return Err(exchange.unexpected(&other)),
        };
        (file.size, file.metadata) = (answer.size, (answer.mode, answer.mtime));
        let xattrs = self.told_xattrs(&answer)?;
        let known = partial.as_mut().filter(|partial| partial.version == answer.version);
        let is_known = known.map(|partial| partial.is_resumed = true).is_some();
        if !is_known {
            *partial = None;
            file.item.restart();
            let (place, size, policy) = (file.place.clone(), answer.size, self.if_exists);
            match blocking(move || Ok(look(&place, size, policy, &mut storage::Parents::default()))).await? {
                Here::Kept => return Ok(End::Kept),
                Here::Refused(error) => return Err(error),
                Here::Free => {}
                Here::SameSize(local) => {
                    let (theirs, size) = match answer.root {
                        Some(root) => (root, answer.size),
                        None => self.client.hash(&file.remote).await?,
                    };
                    match self.compare(file, local, theirs, size, xattrs.as_ref()).await? {
                        Compared::Same(root) => {
                            file.item.advance(size, 0);
                            return Ok(End::Unchanged(size, root));
                        }
                        Compared::Other(Here::Kept) => return Ok(End::Kept),
                        Compared::Other(Here::Refused(error)) => return Err(error),
                        Compared::Other(_) => {}
                    }
                }
            }
            let mut begun = self.begin(&mut exchange, file, &answer).await?;
            zeros::make(&mut begun, &answer, &mut file.item).await?;
            *partial = Some(begun);
        }
        let Some(known) = partial else {
            return Err(Error::new(ErrorKind::Internal, "a download without a place"));
        };
        let root = self.fetch(&session, exchange, &answer, known, &file.remote, &mut file.item).await?;
        let Some(Partial { sink: Sink::File(upload), keeper, .. }) = partial.take() else {
            return Err(Error::new(ErrorKind::Internal, "a download without a file"));
        };
        if let Some(keeper) = keeper {
            // It gets its name now, or begins anew.
            keeper.end().await;
        }
        let (store, upload_id) = (file.place.store.clone(), random_id()?);
        let published = self.saving(blocking(move || {
            let upload = Arc::into_inner(upload)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a file is still written when it is whole"))?;
            let metadata = FileMetadata {
                mode: Some(answer.mode & 0o7777),
                mtime: mtime_to_storage(answer.mtime),
                root,
                upload_id: upload_id.0,
                xattrs,
            };
            let staged = upload.finish(answer.size, metadata)?;
            let lost = staged.xattrs_lost();
            let missing = || Err(Error::new(ErrorKind::Internal, "a commit without an answer"));
            Ok((store.publish(vec![staged]).pop().unwrap_or_else(missing)?, lost))
        }));
        let (published, lost) = published.await?;
        Ok(End::Saved(file.size, root, published, lost))
    }

    /// Opens further connections while the server opens the file, if its content will surely be needed.
    async fn widen_early(&self, session: &Session, file: &FileJob) -> Result<()> {
        if self.client.widens_early(session, file.size) {
            let (place, size, policy) = (file.place.clone(), file.size, self.if_exists);
            if matches!(
                blocking(move || Ok(look(&place, size, policy, &mut storage::Parents::default()))).await?,
                Here::Free
            ) {
                self.client.widen(session, file.size, Way::Down);
            }
        }
        Ok(())
    }

    /// Begins to save an open download, with what is here of it.
    async fn begin(&self, exchange: &mut Exchange, file: &mut FileJob, answer: &GetAnswer) -> Result<Partial> {
        let (place, policy, size) = (file.place.clone(), self.if_exists, answer.size);
        let key = keep::key(self.client.server_name(), &file.remote, &file.place.path);
        let (upload, kept, record, old) = blocking(move || {
            let if_exists = policy_to_storage(policy);
            let options = NewFile { size: Some(size), if_exists, make_parents: true, mode: None };
            let found = if size >= KEPT_SIZE_MIN { place.store.begin_found(&place.path, options, &key)? } else { None };
            let (upload, kept, record) = match found {
                Some((upload, kept, record)) => (upload, Some(kept), record),
                None => (place.store.begin(&place.path, options)?, None, None),
            };
            // Asked here once, where it may wait.
            let _ = upload.is_in_memory();
            let is_base = policy == IfExists::Overwrite && size > UNASKED_FILE_MAX;
            let old = if is_base { place.store.open_file(&place.path).ok() } else { None };
            Ok((upload, kept, record, old.filter(|old| old.size() > UNASKED_FILE_MAX)))
        })
        .await?;
        let upload = Arc::new(upload);
        let mut record = record.unwrap_or_else(|| keep::new_record(&file.place.path, size));
        record.held.resize(size);
        let is_same = record.owner == keep::version_hash(&answer.version);
        let held = (record.held.count() > 0).then(|| (record.held.clone(), is_same));
        let mut keeper = kept.map(|kept| Keeper::new(&upload, kept, record));
        let found = match answer.first {
            // Nothing was here when it was asked for, and it comes from its beginning.
            Some(true) => Found { held: None, old: None },
            _ => Found { held, old: old.map(Arc::new) },
        };
        let tree = keep::fill(exchange, size, found, &upload, &mut file.item).await?;
        if let Some(keeper) = &mut keeper {
            keeper.restart(&answer.version, size);
            let there = (0..group_count(size)).filter_map(|group| Some((group, tree.value(group)?)));
            there.for_each(|(group, value)| keeper.holds(group, value, group_len(size, group)));
        }
        let (version, sink) = (answer.version.clone(), Sink::File(upload));
        let is_resumed = tree.first_known().is_some();
        let shelf = exchange.shelf(self.client.progress());
        Ok(Partial { version, size, tree, is_resumed, shelf, confirmed: 0, next: 0, sink, keeper })
    }

    /// Waits for work that writes and syncs.
    pub(super) async fn saving<F: Future>(&self, work: F) -> F::Output {
        let begun = Instant::now();
        let done = self.client.stalls().during(Cause::Saving, work).await;
        self.client.stalls().since(Cause::Writing, begun.into_std());
        done
    }

    /// Gets what is missing of an open download, and compares its hash with the server's.
    async fn fetch(
        &self,
        session: &Session,
        mut exchange: Exchange,
        answer: &GetAnswer,
        partial: &mut Partial,
        remote: &RemotePath,
        item: &mut Item,
    ) -> Result<Root> {
        partial.next = partial.tree.first_missing(0, group_count(partial.size)).unwrap_or(group_count(partial.size));
        if !answer.unasked {
            self.fetch_groups(session, &mut exchange, partial, item).await?;
            if partial.is_resumed && answer.root.is_none() {
                confirm::confirm(&self.client, &mut exchange, partial).await?;
            }
        }
        let root = partial
            .tree
            .root(partial.size)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a group of a download was not hashed"))?;
        // Only an empty file comes unasked here.
        let end = if answer.unasked {
            exchange.next().await?
        } else {
            // What is here has the very hash that was recorded of the version that was opened, so it is that version,
            // whole: the server could only add that the file has changed since, which is of no concern. From far away
            // that word is not waited for. Over an invite it is, because what is handed out counts.
            if answer.root == Some(root) && session.round_trip() >= NEAR_ROUND_TRIP && !self.client.redeems_invite() {
                exchange.leave();
                return Ok(root);
            }
            exchange.end_download(&Finish { size: partial.size, root }).await?
        };
        let theirs = match end {
            Reply::Finish(finish) if finish.size == partial.size => finish.root,
            // Of what an earlier attempt got, this connection has sent nothing.
            Reply::Done(_) => match answer.root {
                Some(root) => root,
                None if partial.confirmed == group_count(partial.size) => root,
                None => self.client.hash(remote).await?.0,
            },
            other => return Err(exchange.unexpected(&other)),
        };
        if root != theirs {
            return Err(mismatch(root, theirs));
        }
        check_recorded(answer.root, root)?;
        Ok(root)
    }

    async fn fetch_groups(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        partial: &mut Partial,
        item: &mut Item,
    ) -> Result<()> {
        let mut asked: VecDeque<(u64, OwnedSemaphorePermit, Instant)> = VecDeque::new();
        let mut writes: JoinSet<Result<(u64, GroupHash)>> = JoinSet::new();
        let is_ordered = partial.sink.is_ordered();
        let workplace = session.workplace(partial.sink.is_in_memory());
        let writes_max = if is_ordered { 1 } else { workplace.at_once(WRITES_MAX) };
        let count = group_count(partial.size);
        let mut carrier = exchange.carry(&partial.shelf);
        if !is_ordered && session.round_trip() >= NEAR_ROUND_TRIP {
            carrier.let_split(self.client.pool(), session.round_trip());
        }
        let mut room = if is_ordered { None } else { session.room(workplace, Way::Down) };
        if room.is_some() {
            let (sink, stalls) = (partial.sink.clone(), Arc::clone(self.client.stalls()));
            carrier.let_work(Arc::new(move |index, buffer| save(&sink, &stalls, index, std::slice::from_ref(&buffer))));
            self.client.share_out(session, &carrier, partial.size, Way::Down, None);
        }
        if !is_ordered {
            self.client.widen(session, partial.size, Way::Down);
        }
        // Groups that lanes owe, and those that one of them owed when it died.
        // What was begun over a connection that broke comes first: it holds buffers.
        let begun: Vec<u64> = if is_ordered { Vec::new() } else { partial.shelf.groups() };
        let mut again: VecDeque<u64> = begun.iter().copied().collect();
        let mut elsewhere = 0;
        if let Some(permit) = exchange.take_first() {
            asked.push_back((0, permit, Instant::now()));
            partial.next = partial.tree.first_missing(1, count).unwrap_or(count);
        }
        let mut pace = Pace::new();
        let mut is_beginning = true;
        let write = |writes: &mut JoinSet<Result<(u64, GroupHash)>>, sink: Sink, index: u64, parts: Vec<Buffer>| {
            let (stalls, emptying) = (Arc::clone(self.client.stalls()), self.client.pool().emptying());
            workplace.spawn(writes, move || {
                let _emptying = emptying;
                Ok((index, save(&sink, &stalls, index, &parts)?))
            });
        };
        let result = 'moving: loop {
            let Partial { size, tree, next, shelf, .. } = &mut *partial;
            let left = again.len() as u64 + (count - *next);
            let mut take = || {
                again.pop_front().or_else(|| {
                    while *next < count {
                        let group = *next;
                        *next = tree.first_missing(group + 1, count).unwrap_or(count);
                        if begun.binary_search(&group).is_err() {
                            return Some(group);
                        }
                    }
                    None
                })
            };
            let mut is_end = false;
            if !is_ordered {
                let asked = carrier.ask(*size, left, &mut take);
                elsewhere += asked.groups;
                is_end = asked.is_end;
            }
            // Where the system does not tell, it is zero.
            let round_trip = session.round_trip();
            let is_near = !round_trip.is_zero() && round_trip < NEAR_ROUND_TRIP;
            let lanes = session.lanes().count();
            let window = match workplace {
                Workplace::Here if is_near => WINDOW_HERE,
                // At the beginning no more than its part, and at least one.
                _ if lanes > 0 && !is_ordered && is_beginning => {
                    pace.groups().min(usize::try_from(left / (1 + lanes as u64)).unwrap_or(usize::MAX)).max(1)
                }
                _ if lanes > 0 && !is_ordered => pace.groups(),
                Workplace::DiskThreads if is_near => WINDOW_NEAR,
                _ => WINDOW,
            };
            let mut ranges = Vec::new();
            is_beginning = false;
            while asked.len() < window && (!is_end || asked.is_empty() && elsewhere == 0) {
                // Only who has nothing on its way waits: what is on its way needs nobody's leave to arrive.
                let permit = match session.try_want() {
                    Some(permit) => permit,
                    None if asked.is_empty() && elsewhere == 0 => match session.want().await {
                        Ok(permit) => permit,
                        Err(error) => break 'moving Err(error),
                    },
                    None => break,
                };
                let Some(group) = take() else { break };
                let begun = shelf.begun(group) as u64;
                ranges.push((group_offset(group) + begun, group_len(*size, group) as u64 - begun));
                asked.push_back((group, permit, Instant::now()));
            }
            exchange.want(&ranges);
            if asked.is_empty() && elsewhere == 0 && writes.is_empty() {
                break Ok(());
            }
            let begun = Instant::now();
            let is_full = asked.is_empty() && elsewhere == 0 || writes.len() >= writes_max;
            tokio::select! {
                reply = exchange.next(), if (!asked.is_empty() || elsewhere > 0) && writes.len() < writes_max => {
                    match reply {
                        Ok(Reply::Group(index, buffer)) => {
                            match asked.pop_front() {
                                Some((group, _, since)) if group == index => pace.came_after(since.elapsed()),
                                _ => break Err(exchange.unexpected(&Reply::Group(index, buffer))),
                            }
                            write(&mut writes, partial.sink.clone(), index, vec![buffer]);
                        }
                        Ok(other) => break Err(exchange.unexpected(&other)),
                        Err(error) => break Err(error),
                    }
                }
                report = carrier.next(), if writes.len() < writes_max => match report {
                    Report::Came(index, parts) => {
                        elsewhere -= 1;
                        write(&mut writes, partial.sink.clone(), index, parts);
                    }
                    Report::Worked(index, worked) => {
                        elsewhere -= 1;
                        match worked {
                            Ok(hash) => partial.saved(index, hash, item),
                            Err(error) => break Err(error),
                        }
                    }
                    Report::Lost(index) => {
                        elsewhere -= 1;
                        again.push_back(index);
                    }
                    Report::Wider(count) => {
                        // A stream keeps to the first connection.
                        if !is_ordered {
                            self.client.widen_to(session, partial.size, count);
                        }
                    }
                    Report::MayAsk | Report::Sent(_) => {}
                },
                Some(written) = writes.join_next() => {
                    match written.map_err(panicked).and_then(|written| written) {
                        Ok((index, hash)) => {
                            partial.saved(index, hash, item);
                            if let Some(has_room) = room.as_mut().and_then(Room::look) {
                                self.client.share_out(session, &carrier, partial.size, Way::Down, Some(has_room));
                            }
                        }
                        Err(error) => break Err(error),
                    }
                }
            }
            self.client.stalls().since(if is_full { Cause::Saving } else { Cause::Content }, begun.into_std());
        };
        // What came before a failure is kept: the next attempt goes on from there. Where it was the failure of a
        // write, nothing is written any more.
        let is_written = result.as_ref().is_err_and(|error| error.kind().is_retryable());
        while let Some(rest) = carrier.next_of_rest().await {
            match rest {
                Rest::Came(index, parts) if is_written => write(&mut writes, partial.sink.clone(), index, parts),
                Rest::Came(..) => {}
                Rest::Worked(index, worked) => {
                    if let Ok(hash) = worked {
                        partial.saved(index, hash, item);
                    }
                }
            }
        }
        while let Some(written) = writes.join_next().await {
            if let Ok(Ok((index, hash))) = written {
                partial.saved(index, hash, item);
            }
        }
        result
    }

    /// Fetches a file to a stream. What was written cannot be taken back: a wrong hash is told at the end.
    pub(super) async fn get_stream(&self, remote: RemotePath, output: Box<dyn Write + Send>) {
        let mut item = self.client.item(remote.to_bytes());
        let output = Arc::new(Mutex::new(output));
        let mut partial = None;
        let mut retry = self.client.retry();
        loop {
            match self.get_stream_once(&remote, &output, &mut partial, &mut item).await {
                Ok((size, root)) => {
                    self.tell_done(item, size, Some(root), Outcome::Stored, None).await;
                    return;
                }
                Err(error) => {
                    let is_final = matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Changed)
                        && partial.as_ref().is_some_and(|partial: &Partial| partial.tree.value(0).is_some());
                    let retried = if is_final { Err(error) } else { retry.after(error).await };
                    if let Err(error) = retried {
                        item.failed(error).await;
                        return;
                    }
                }
            }
        }
    }

    async fn get_stream_once(
        &self,
        remote: &RemotePath,
        output: &Arc<Mutex<Box<dyn Write + Send>>>,
        partial: &mut Option<Partial>,
        item: &mut Item,
    ) -> Result<(u64, Root)> {
        let session = self.client.session().await?;
        let is_first = partial.is_none() && !self.dry_run && !self.client.redeems_invite();
        let first_max = is_first.then_some(u64::MAX);
        let mut exchange = session.open_get(&Get { first_max, xattrs: None, ..self.get_message(remote, 0) }).await?;
        let answer = match exchange.next().await? {
            Reply::GetAnswer(answer) => answer,
            other => return Err(exchange.unexpected(&other)),
        };
        match partial {
            None => {
                self.client.events().tell(Event::Found { files: 1, bytes: answer.size }).await;
                item.started(Some(answer.size)).await;
                if self.dry_run {
                    return Ok((answer.size, answer.root.unwrap_or(Root([0; 32]))));
                }
                let sink = Sink::Output(Arc::clone(output));
                let (version, size) = (answer.version.clone(), answer.size);
                let shelf = exchange.shelf(self.client.progress());
                *partial = Some(Partial {
                    version,
                    size,
                    tree: Tree::new(),
                    is_resumed: false,
                    shelf,
                    confirmed: 0,
                    next: 0,
                    sink,
                    keeper: None,
                });
            }
            Some(known) if known.version == answer.version => {}
            Some(_) => {
                let message = format!("{remote} became another one while it was being read");
                return Err(Error::new(ErrorKind::Changed, message));
            }
        }
        let Some(known) = partial else {
            return Err(Error::new(ErrorKind::Internal, "a download without a place"));
        };
        let root = self.fetch(&session, exchange, &answer, known, remote, item).await?;
        let output = Arc::clone(output);
        blocking(move || {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.flush().while_doing(|| "write to the output".to_owned())
        })
        .await?;
        Ok((answer.size, root))
    }
}
