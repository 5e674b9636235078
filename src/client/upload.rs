//! Uploads: from the walk of the local sources to the last durable answer.
//!
//! The walk feeds a bounded channel while the first files already move. Files that may be sent unasked are read and
//! hashed in batches, one hop to a blocking thread for each, and answered as the server's batches commit. Larger
//! ones are read a few groups ahead, hashed while they are hot, and sent as the server's answers want it.
//!
//! Invariants: a finish is sent only after the file was found to be the same as before its first byte was read, so
//! no mixture is ever committed; a source is removed only after its durable answer; memory does not grow with the
//! number of files, only with the directories that are being filled.

mod believe;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};

use crate::buffer::{Buffer, Pool};
use crate::client::api::{Client, Item, random_id};
use crate::client::compare::{Links, sent_mode};
use crate::client::event::{Event, ItemKind, Outcome};
use crate::client::filter::Filter;
use crate::client::lanes::Report;
use crate::client::names::{Lead, Met, Names, Turn};
use crate::client::plan::{Kind, PutItem, PutSource, check_target};
use crate::client::session::{Exchange, Reply, Session};
use crate::client::shelf::Shelf;
use crate::client::stalls::{Cause, Stalls};
use crate::client::upload::believe::{check_skipped, check_stored};
use crate::client::walk::{Attributes, Found, OpenSource, Source, SourceVersion, Walk};
use crate::client::xattrs::{Lost, check_server};
use crate::client::zeros;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, GroupHasher, GroupValue, Root, Tree, group_len, group_offset};
use crate::limits::{GROUP_LEN, MIB, SHARED_WAITING_MAX, UNASKED_FILE_MAX, ZERO_RUNS_MAX};
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::{
    self, Bytes16, Done, EntryKind, Finish, Holding, IfExists, MakeDirectory, MakeLink, Put, SetDirectory, Stat, Stored,
};
use crate::storage;
use crate::transfer::{Decision, Runs, Sender, Taken};
use crate::xattrs::Xattrs;

/// What was found and waits for its turn: about 300 bytes each.
const FOUND_MAX: usize = 512;
/// How long what was found waits for more before it is passed on.
const GULP_TIME: Duration = Duration::from_millis(1);
/// Small files of one batch: one hop to a blocking thread, one round of answers.
const BATCH_FILES: usize = 64;
/// Bytes of content in one batch, held until they are answered.
const BATCH_LEN: u64 = 2 * MIB as u64;
/// Batches at once: enough that the window of unasked content never runs dry while others are answered.
const BATCHES_MAX: usize = 8;
/// Larger files at once: their commits overlap, and so do the waits for answers.
const LARGE_MAX: usize = 8;
/// Links and directories at once.
const SMALL_REQUESTS_MAX: usize = 64;
/// Groups of one file that are read and hashed ahead of the connection.
const READ_AHEAD: usize = 4;

/// How a `put` treats what it finds.
#[derive(Debug)]
pub struct PutOptions {
    /// What to do when something of that name is there.
    pub if_exists: IfExists,
    /// Whether the destination was written as a directory, for what is said when it is none.
    pub into_directory: bool,
    /// Remove each file after its durable answer, unless it changed.
    pub remove_source: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// The size that the only file or stream must have.
    pub expect_size: Option<u64>,
    /// The hash that the only file or stream must have.
    pub expect_root: Option<Root>,
    /// Where the content of a stream comes from.
    pub stream: Option<StreamSource>,
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What becomes of links.
    pub links: Links,
    /// Ask for setuid, setgid, sticky and world-writable, which a server keeps only where it is told to.
    pub special_modes: bool,
    /// Move extended attributes of users (`user.*`) too.
    pub xattrs: bool,
}

impl Default for PutOptions {
    fn default() -> PutOptions {
        PutOptions {
            if_exists: IfExists::Overwrite,
            into_directory: false,
            remove_source: false,
            dry_run: false,
            expect_size: None,
            expect_root: None,
            stream: None,
            filter: Arc::default(),
            links: Links::Copy,
            special_modes: false,
            xattrs: false,
        }
    }
}

/// Content without a file: standard input, or what a command prints.
pub struct StreamSource {
    /// What the person calls it.
    pub name: String,
    /// Where it is read from, on a thread of its own.
    pub reader: Box<dyn io::Read + Send>,
    /// Asked after the end: whether it was the real one (a command must have succeeded).
    pub check: Box<dyn FnOnce() -> Result<()> + Send>,
    /// An empty file that it is written to before it is sent, so that it can be read once more.
    pub spool: Option<File>,
}

impl std::fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSource").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What all tasks of one `put` share.
struct Job {
    client: Client,
    if_exists: IfExists,
    into_directory: bool,
    remove_source: bool,
    expect_size: Option<u64>,
    expect_root: Option<Root>,
    special_modes: bool,
    xattrs: bool,
    /// Attributes that were not kept there.
    xattrs_lost: Lost,
    /// Names of one file here that are files of their own there.
    parted: AtomicU64,
}

/// A directory that is being filled. Whoever lets go of it last sets its mode and time.
struct Directory {
    parent: Option<Arc<Directory>>,
    target: RemotePath,
    attributes: Attributes,
    name: Vec<u8>,
    source: Source,
}

/// A file on its way.
struct FileJob {
    item: Item,
    target: RemotePath,
    source: Source,
    upload_id: UploadId,
    directory: Option<Arc<Directory>>,
    /// Which file it is, if that has several names.
    same: Option<Bytes16>,
    role: Role,
}

/// What a name is among those of its file.
enum Role {
    /// The only one that is known.
    Alone,
    /// The first; others wait for it.
    First(Lead<Landed>),
    /// A further one of what is there.
    Further(Landed),
}

/// Where the first name of a file is, durably.
#[derive(Clone)]
struct Landed {
    path: RemotePath,
    root: Option<Root>,
}

/// Under what id each version of a file is sent: the same in every attempt, so that a lost answer is found again,
/// and another for a file that has changed, so that the answer is never taken for one to what it is now.
#[derive(Default)]
struct UploadId(Option<(SourceVersion, Bytes16)>);

impl UploadId {
    fn of(&mut self, version: &SourceVersion) -> Result<Bytes16> {
        match &self.0 {
            Some((sent, id)) if sent == version => Ok(*id),
            _ => Ok(self.0.insert((*version, random_id()?)).1),
        }
    }
}

impl Client {
    /// Uploads everything that these items name. What becomes of each is told in events; one that fails does not
    /// keep the others from being stored.
    ///
    /// # Errors
    /// What ended the whole: no connection any more, or a breach of the protocol.
    ///
    /// # Cancel safety
    /// What was answered is stored; what was on its way is not, and leaves nothing on the server that anybody sees.
    pub async fn put(&self, items: Vec<PutItem>, options: PutOptions) -> Result<()> {
        let job = Arc::new(Job::new(self.clone(), &options));
        let mut walked = Vec::with_capacity(items.len());
        for item in items {
            if job.check_directory(&item).await? {
                walked.push(item);
            }
        }
        if options.dry_run {
            return self.foresee_put(walked, &options).await;
        }
        let tops = walked.iter().filter_map(|item| match &item.source {
            PutSource::Local(path) => Some((item.target.clone(), path.clone())),
            PutSource::Stream => None,
        });
        let tops: HashMap<_, _> = tops.collect();
        let (found_sender, found) = mpsc::channel(FOUND_MAX);
        let mut walk = JoinSet::new();
        let (filter, links) = (Arc::clone(&options.filter), options.links);
        walk.spawn_blocking(move || send_in_gulps(Walk::with(walked, filter, links), &found_sender));
        self.put_all(job, found, options, tops).await?;
        while let Some(walked) = walk.join_next().await {
            walked.map_err(panicked)?;
        }
        self.check_alive()
    }

    /// Uploads what comes, in the order of a walk of the tree `top`, until no more does.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub(crate) async fn put_found(
        &self,
        found: mpsc::Receiver<Found>,
        options: PutOptions,
        top: (RemotePath, PathBuf),
    ) -> Result<()> {
        let job = Arc::new(Job::new(self.clone(), &options));
        self.put_all(job, found, options, HashMap::from([top])).await
    }

    async fn put_all(
        &self,
        job: Arc<Job>,
        mut found: mpsc::Receiver<Found>,
        mut options: PutOptions,
        tops: HashMap<RemotePath, PathBuf>,
    ) -> Result<()> {
        if options.special_modes {
            self.tell_masked_modes().await?;
        }
        if options.xattrs {
            check_server(self.session().await?.hello())?;
        }
        let mut run = Run {
            job,
            dry_run: options.dry_run,
            stream: options.stream.take(),
            tops,
            tasks: JoinSet::new(),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            large: Arc::new(Semaphore::new(LARGE_MAX)),
            requests: Arc::new(Semaphore::new(SMALL_REQUESTS_MAX)),
            directories: Vec::new(),
            batch: Vec::new(),
            batch_len: 0,
            names: Names::default(),
        };
        let mut some = Vec::new();
        while self.check_alive().is_ok() && found.recv_many(&mut some, BATCH_FILES).await > 0 {
            for found in some.drain(..) {
                run.take(found).await?;
            }
            // Nothing more just now: what there is does not wait for company.
            if found.is_empty() {
                run.send_batch().await?;
            }
            run.reap()?;
        }
        drop(found);
        run.send_batch().await?;
        run.directories.clear();
        self.events().tell(Event::FoundAll).await;
        run.put_names().await?;
        run.drain().await?;
        run.job.tell_parted().await;
        run.job.xattrs_lost.tell(self).await;
        self.check_alive()
    }
}

/// Sends what a walk finds, several at a time: waking the receiver for each file costs more than finding it.
fn send_in_gulps(walk: Walk, sender: &mpsc::Sender<Found>) {
    let mut gulp = Vec::with_capacity(BATCH_FILES);
    let mut begun = Instant::now();
    for found in walk {
        gulp.push(found);
        if gulp.len() < BATCH_FILES && begun.elapsed() < GULP_TIME {
            continue;
        }
        for found in gulp.drain(..) {
            if sender.blocking_send(found).is_err() {
                return;
            }
        }
        begun = Instant::now();
    }
    for found in gulp {
        if sender.blocking_send(found).is_err() {
            return;
        }
    }
}

impl Client {
    /// Says so when a server does not keep the modes that are asked for.
    async fn tell_masked_modes(&self) -> Result<()> {
        let session = self.session().await?;
        if session.hello().file_mode.is_none_or(|(_, max)| max & 0o7000 == 0) {
            let text = "the server masks setuid, setgid, sticky and world-writable (serve --allow-special-modes)";
            self.events().tell(Event::Warning(text.to_owned())).await;
        }
        Ok(())
    }
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the upload failed").with_source(error)
}

/// One `put` as it goes.
struct Run {
    job: Arc<Job>,
    dry_run: bool,
    stream: Option<StreamSource>,
    /// What was named, by where it goes.
    tops: HashMap<RemotePath, PathBuf>,
    tasks: JoinSet<()>,
    batches: Arc<Semaphore>,
    large: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// The directories that the walk is in, outermost first, each with whether anything was found in it.
    directories: Vec<(Arc<Directory>, bool)>,
    batch: Vec<FileJob>,
    batch_len: u64,
    names: Names<Landed, FileJob>,
}

impl Run {
    async fn take(&mut self, found: Found) -> Result<()> {
        let events = self.job.client.events().clone();
        match found {
            Found::Directory { target, attributes, source } => {
                self.leave_until(&target);
                let parent = self.parent();
                let name = self.local_name(&target);
                if !self.dry_run && attributes.mode & FILLABLE != FILLABLE {
                    self.job.make_fillable(&target, attributes.mode).await;
                }
                self.directories.push((Arc::new(Directory { parent, target, attributes, name, source }), false));
            }
            Found::DirectoryEnd { target, .. } => {
                self.leave_until(&target);
                self.end_directory(&target).await?;
            }
            Found::Known { target, same } => {
                if let Met::First(lead) = self.names.meet(same) {
                    lead.is_there(Landed { path: target, root: None });
                }
            }
            Found::File { target, source, version, ask, same, .. } => {
                self.leave_until(&target);
                let directory = self.parent();
                let item = self.job.client.item(source.path().into_os_string().as_bytes().to_vec());
                events.tell(Event::Found { files: 1, bytes: version.size }).await;
                if self.dry_run {
                    events.tell(planned(&item, ItemKind::File, version.size)).await;
                    return Ok(());
                }
                let role = Role::Alone;
                let mut file = FileJob { item, target, source, upload_id: UploadId::default(), directory, same, role };
                match same.map(|same| (same, self.names.meet(same))) {
                    None => {}
                    Some((_, Met::First(lead))) => file.role = Role::First(lead),
                    Some((same, Met::Further)) => {
                        self.names.wait(same, file);
                        if self.names.waiting() >= SHARED_WAITING_MAX {
                            self.put_names().await?;
                        }
                        return Ok(());
                    }
                    Some((_, Met::Unknown)) => self.job.part(),
                }
                if version.size <= self.job.client.unasked_file_max() && !ask && self.job.may_be_small() {
                    self.batch_len += version.size;
                    self.batch.push(file);
                    if self.batch.len() >= BATCH_FILES || self.batch_len >= BATCH_LEN {
                        self.send_batch().await?;
                    }
                } else {
                    let permit = permit(&self.large).await?;
                    let job = Arc::clone(&self.job);
                    self.tasks.spawn(async move { job.put_large(file, permit).await });
                }
            }
            Found::Link { target, points_to, attributes } => {
                self.leave_until(&target);
                let directory = self.parent();
                let item = self.job.client.item(self.local_name(&target));
                if self.dry_run {
                    events.tell(planned(&item, ItemKind::Link, 0)).await;
                    return Ok(());
                }
                let permit = permit(&self.requests).await?;
                let job = Arc::clone(&self.job);
                self.tasks
                    .spawn(async move { job.put_link(item, target, points_to, attributes, directory, permit).await });
            }
            Found::Stream { target } => {
                let Some(stream) = self.stream.take() else {
                    return Err(Error::new(ErrorKind::Usage, "standard input can be a source only once"));
                };
                let item = self.job.client.item(stream.name.clone().into_bytes());
                events.tell(Event::Found { files: 1, bytes: self.job.expect_size.unwrap_or(0) }).await;
                if self.dry_run {
                    events.tell(planned(&item, ItemKind::File, self.job.expect_size.unwrap_or(0))).await;
                    return Ok(());
                }
                let job = Arc::clone(&self.job);
                self.tasks.spawn(async move { job.put_stream(item, target, stream).await });
            }
            Found::LeftOut { rule } => events.tell(Event::LeftOut { rule, count: 1 }).await,
            Found::Skipped { path, why } => {
                events.tell(Event::Skipped { name: path.into_os_string().as_bytes().to_vec(), why }).await;
            }
            Found::Failed { path, error } => {
                self.mark_filled();
                let name = path.into_os_string().as_bytes().to_vec();
                events.tell(Event::Failed { item: None, name, error }).await;
            }
        }
        Ok(())
    }

    /// What the person calls what goes to `target`: everything is told under its name here.
    fn local_name(&self, target: &RemotePath) -> Vec<u8> {
        let (mut above, mut below) = (target.clone(), Vec::new());
        loop {
            if let Some(top) = self.tops.get(&above) {
                let mut path = top.clone();
                path.extend(below.iter().rev().map(|name: &Component| OsStr::from_bytes(name.as_bytes())));
                return path.into_os_string().into_vec();
            }
            let Some((parent, name)) = above.split() else { return target.to_bytes() };
            below.push(name.clone());
            above = parent;
        }
    }

    /// The directory that the walk is in, which now holds something.
    fn parent(&mut self) -> Option<Arc<Directory>> {
        self.mark_filled();
        self.directories.last().map(|(directory, _)| Arc::clone(directory))
    }

    fn mark_filled(&mut self) {
        if let Some((_, is_filled)) = self.directories.last_mut() {
            *is_filled = true;
        }
    }

    /// Leaves the directories that `target` is not in: the walk could not read them to their end.
    fn leave_until(&mut self, target: &RemotePath) {
        while self.directories.last().is_some_and(|(directory, _)| !target.starts_with(&directory.target)) {
            self.directories.pop();
        }
    }

    async fn end_directory(&mut self, target: &RemotePath) -> Result<()> {
        if self.directories.last().is_none_or(|(directory, _)| directory.target != *target) {
            return Ok(());
        }
        let Some((directory, is_filled)) = self.directories.pop() else { return Ok(()) };
        if self.dry_run {
            let event = directory_event(&directory, Outcome::Planned);
            self.job.client.events().tell(event).await;
            return Ok(());
        }
        if is_filled && Arc::strong_count(&directory) > 1 {
            // Whoever stores the last file in it sets its mode and time.
            let job = Arc::clone(&self.job);
            if let Some(directory) = Arc::into_inner(directory) {
                let permit = permit(&self.requests).await?;
                self.tasks.spawn(async move { job.settle_directory(directory, false, permit).await });
            }
            return Ok(());
        }
        let permit = permit(&self.requests).await?;
        let job = Arc::clone(&self.job);
        if let Some(directory) = Arc::into_inner(directory) {
            self.tasks.spawn(async move { job.settle_directory(directory, !is_filled, permit).await });
        }
        Ok(())
    }

    async fn send_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let permit = permit(&self.batches).await?;
        let files = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        let job = Arc::clone(&self.job);
        self.tasks.spawn(async move { job.put_batch(files, permit).await });
        Ok(())
    }

    /// Makes the further names that wait, once the first ones are there.
    async fn put_names(&mut self) -> Result<()> {
        self.send_batch().await?;
        while self.names.waiting() > 0 && self.job.client.check_alive().is_ok() {
            self.drain().await?;
            for (mut file, turn) in self.names.take() {
                let permits = match turn {
                    Turn::First(lead) => {
                        file.role = Role::First(lead);
                        &self.large
                    }
                    Turn::Further(landed) => {
                        file.role = Role::Further(landed);
                        &self.requests
                    }
                };
                let permit = permit(permits).await?;
                let job = Arc::clone(&self.job);
                self.tasks.spawn(async move { job.put_large(file, permit).await });
                self.reap()?;
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(panicked)?;
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(panicked)?;
        }
        Ok(())
    }
}

/// What a dry run tells instead of moving something.
fn planned(item: &Item, kind: ItemKind, size: u64) -> Event {
    let (name, outcome) = (item.name.clone(), Outcome::Planned);
    Event::Done { item: item.id, name, kind, size, root: None, outcome, renamed_to: None }
}

fn directory_event(directory: &Directory, outcome: Outcome) -> Event {
    let (name, kind) = (directory.name.clone(), ItemKind::Directory);
    Event::Done { item: 0, name, kind, size: 0, root: None, outcome, renamed_to: None }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.map_err(|_| Error::new(ErrorKind::Internal, "a limit of the upload was taken away"))
}

/// A small file that has been read.
struct Small {
    content: Bytes,
    root: Root,
    version: SourceVersion,
    attributes: Attributes,
    xattrs: Option<Xattrs>,
}

fn xattrs_len(small: &Small) -> usize {
    small.xattrs.as_ref().map_or(0, Xattrs::len)
}

/// How reading a small file went.
enum ReadSmall {
    Read(Small),
    /// It is large by now.
    Grown,
    Failed(Error),
}

/// Reads small files next to one another into buffers of the pool, as far as it has some to spare: fresh memory for
/// each file costs as much as reading it.
fn read_batch(sources: &[Source], pool: &Pool, stalls: &Stalls, xattrs: bool) -> Vec<ReadSmall> {
    let mut read = Vec::with_capacity(sources.len());
    let mut shared: Option<(Buffer, usize)> = None;
    let mut in_shared: Vec<(usize, Range<usize>)> = Vec::new();
    for source in sources {
        let open = match source.open() {
            Ok(open) => open,
            Err(error) => {
                read.push(ReadSmall::Failed(error));
                continue;
            }
        };
        let size = match usize::try_from(open.version.size) {
            Ok(size) if open.version.size <= UNASKED_FILE_MAX => size,
            _ => {
                read.push(ReadSmall::Grown);
                continue;
            }
        };
        if shared.as_ref().is_none_or(|(buffer, used)| buffer.len() - used < size) {
            share(&mut read, shared.take(), &mut in_shared);
            shared = pool.try_lease(GROUP_LEN).map(|buffer| (buffer, 0));
        }
        let (content, range) = match &mut shared {
            Some((buffer, used)) => {
                let range = *used..*used + size;
                let small = read_small(&open, &mut buffer[range.clone()], stalls, xattrs);
                *used += size;
                (small, Some(range))
            }
            None => {
                let mut own = vec![0; size];
                let small = read_small(&open, &mut own, stalls, xattrs);
                (small.map(|small| Small { content: own.into(), ..small }), None)
            }
        };
        match content {
            Ok(small) => {
                in_shared.extend(range.map(|range| (read.len(), range)));
                read.push(ReadSmall::Read(small));
            }
            Err(error) => read.push(ReadSmall::Failed(error)),
        }
    }
    share(&mut read, shared, &mut in_shared);
    read
}

/// Gives the files that lie in this buffer their pieces of it. It goes back to its pool with the last of them.
fn share(read: &mut [ReadSmall], shared: Option<(Buffer, usize)>, in_shared: &mut Vec<(usize, Range<usize>)>) {
    let Some((buffer, _)) = shared else { return };
    let whole = Bytes::from_owner(buffer);
    for (index, range) in in_shared.drain(..) {
        if let Some(ReadSmall::Read(small)) = read.get_mut(index) {
            small.content = whole.slice(range);
        }
    }
}

/// Reads a small file into a buffer of its size. The content is for the caller to fill in.
fn read_small(open: &OpenSource, content: &mut [u8], stalls: &Stalls, xattrs: bool) -> Result<Small> {
    let xattrs = if xattrs { Some(open.xattrs()?) } else { None };
    stalls.working(Cause::Reading, || read_exact_at(open, content, 0))?;
    open.check_unchanged()?;
    let root = stalls.working(Cause::Hashing, || Root::of(content));
    let (version, attributes) = (open.version, open.attributes);
    Ok(Small { content: Bytes::new(), root, version, attributes, xattrs })
}

/// Reads so many bytes; a file that ends before is another one than it was.
fn read_exact_at(open: &OpenSource, buffer: &mut [u8], offset: u64) -> Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match open.file.read_at(rest, offset + filled as u64) {
            Ok(0) => {
                open.check_unchanged()?;
                let message = format!("a file ended at {} bytes, before its size", offset + filled as u64);
                return Err(Error::new(ErrorKind::Changed, message));
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(format!("read at {offset}"), error)),
        }
    }
    Ok(())
}

impl Job {
    fn new(client: Client, options: &PutOptions) -> Job {
        Job {
            client,
            if_exists: options.if_exists,
            into_directory: options.into_directory,
            remove_source: options.remove_source,
            expect_size: options.expect_size,
            expect_root: options.expect_root,
            special_modes: options.special_modes,
            xattrs: options.xattrs,
            xattrs_lost: Lost::default(),
            parted: AtomicU64::new(0),
        }
    }

    /// Files whose content is checked beforehand take the way of the larger ones, where the check is.
    fn may_be_small(&self) -> bool {
        self.expect_size.is_none() && self.expect_root.is_none()
    }

    /// Whether a tree can go where it shall: something else there is told as its failure.
    async fn check_directory(&self, item: &PutItem) -> Result<bool> {
        let PutSource::Local(path) = &item.source else { return Ok(true) };
        let looked_at: PathBuf = path.clone();
        let is_directory = spawn_blocking(move || looked_at.is_dir()).await.map_err(panicked)?;
        if !is_directory || item.target.is_root() {
            return Ok(true);
        }
        let existing = match self.client.request(&Stat { path: item.target.clone(), xattrs: None }).await {
            Ok((Reply::Entry(entry), _)) => match entry.kind {
                EntryKind::Directory => Some(Kind::Directory),
                _ => Some(Kind::File),
            },
            Ok((other, session)) => return Err(session.unexpected(&other)),
            // Who may not look is told when the first file is refused.
            Err(_) => None,
        };
        self.client.check_alive()?;
        match check_target(Kind::Directory, existing, &item.target, self.into_directory) {
            Ok(()) => Ok(true),
            Err(error) => {
                let name = path.as_os_str().as_bytes().to_vec();
                self.client.events().tell(Event::Failed { item: None, name, error }).await;
                Ok(false)
            }
        }
    }

    /// A session with a server that knows what this upload needs: a connection that is made anew may lead to another.
    async fn session(&self) -> Result<Session> {
        let session = self.client.session().await?;
        if self.xattrs {
            check_server(session.hello())?;
        }
        Ok(session)
    }

    fn put_message(&self, target: &RemotePath, upload_id: Bytes16) -> Put {
        Put {
            path: target.clone(),
            size: None,
            mtime: None,
            mode: None,
            upload_id,
            if_exists: self.if_exists,
            unasked: false,
            no_base: false,
            resume: self.client.resume_key(),
            same_as: None,
            same_root: None,
            xattrs: None,
        }
    }

    /// Uploads small files: reads them all, sends them all, and takes the answers as they come.
    async fn put_batch(self: Arc<Job>, files: Vec<FileJob>, permit: OwnedSemaphorePermit) {
        let mut rest = files;
        let mut retry = self.client.retry();
        while !rest.is_empty() {
            let (again, error) = self.put_batch_once(rest).await;
            rest = again;
            let Some(error) = error else { continue };
            if let Err(error) = retry.after(error).await {
                for mut file in rest.drain(..) {
                    file.item.failed(error.duplicate()).await;
                    self.let_go(file.directory).await;
                }
            }
        }
        drop(permit);
    }

    /// One attempt at a batch. Returns what is to be tried again, and why.
    async fn put_batch_once(self: &Arc<Job>, files: Vec<FileJob>) -> (Vec<FileJob>, Option<Error>) {
        let session = match self.session().await {
            Ok(session) => session,
            Err(error) => return (files, Some(error)),
        };
        let sources: Vec<Source> = files.iter().map(|file| file.source.clone()).collect();
        let stalls = Arc::clone(self.client.stalls());
        let pool = self.client.pool().clone();
        let xattrs = self.xattrs;
        let read = spawn_blocking(move || read_batch(&sources, &pool, &stalls, xattrs));
        let read = self.client.stalls().during(Cause::Source, read).await;
        let read = match read {
            Ok(read) => read,
            Err(error) => return (files, Some(panicked(error))),
        };
        let mut again = Vec::new();
        let mut reason = None;
        let mut waiting: HashMap<u32, (FileJob, Small)> = HashMap::new();
        // Each file has one answer, so there is always room for it.
        let (replies, mut answers) = mpsc::channel(files.len().max(1));
        for (mut file, read) in files.into_iter().zip(read) {
            let mut small = match read {
                ReadSmall::Read(small) if session.takes_unasked(small.version.size, xattrs_len(&small)) => small,
                ReadSmall::Read(_) | ReadSmall::Grown => {
                    self.put_file(file).await;
                    continue;
                }
                ReadSmall::Failed(error) if error.kind() == ErrorKind::Changed => {
                    reason = Some(error);
                    again.push(file);
                    continue;
                }
                ReadSmall::Failed(error) => {
                    file.item.failed(error).await;
                    self.let_go(file.directory).await;
                    continue;
                }
            };
            file.item.started(Some(small.version.size)).await;
            let upload_id = match file.upload_id.of(&small.version) {
                Ok(id) => id,
                Err(error) => {
                    self.refused(file, error).await;
                    continue;
                }
            };
            let put = Put {
                size: Some(small.version.size),
                mtime: Some(small.attributes.mtime),
                mode: Some(sent_mode(small.attributes.mode, self.special_modes)),
                unasked: true,
                xattrs: small.xattrs.take(),
                ..self.put_message(&file.target, upload_id)
            };
            let finish = Finish { size: small.version.size, root: small.root };
            // Only what is not written yet holds its buffer.
            let content = std::mem::take(&mut small.content);
            match session.put_unasked(&put, content, &finish, replies.clone()).await {
                Ok(transfer) => {
                    waiting.insert(transfer, (file, small));
                }
                Err(error) => {
                    reason = Some(error);
                    again.push(file);
                }
            }
        }
        drop(replies);
        while let Some((transfer, reply)) = self.client.stalls().during(Cause::Answer, answers.recv()).await {
            let Some((mut file, small)) = waiting.remove(&transfer) else { continue };
            let size = small.version.size;
            match reply {
                Reply::Stored(stored) => {
                    if let Err(error) = check_stored(&stored, self.if_exists, small.root, size) {
                        self.refused(file, error).await;
                        continue;
                    }
                    file.item.advance(size, size);
                    self.stored(file, &stored, size, small.root, &small.version).await;
                }
                Reply::Failed(error) if error.kind().is_retryable() => {
                    reason = Some(error);
                    again.push(file);
                }
                Reply::Failed(error) => self.refused(file, error).await,
                other => {
                    reason = Some(session.unexpected(&other));
                    again.push(file);
                }
            }
        }
        // The session has ended without an answer for these.
        if !waiting.is_empty() {
            reason = Some(session.reason());
            again.extend(waiting.into_values().map(|(file, _)| file));
        }
        (again, reason)
    }

    async fn put_large(self: Arc<Job>, file: FileJob, permit: OwnedSemaphorePermit) {
        self.put_file(file).await;
        drop(permit);
    }

    /// Uploads one file with asking.
    async fn put_file(self: &Arc<Job>, mut file: FileJob) {
        let mut retry = self.client.retry();
        let mut no_base = false;
        let mut is_started = false;
        // What was hashed of it, and of which version.
        let mut hashed = (None, Tree::new());
        loop {
            let source = file.source.clone();
            let with_xattrs = self.xattrs;
            let open = move || {
                let open = source.open()?;
                let xattrs = if with_xattrs { Some(open.xattrs()?) } else { None };
                Ok((open, xattrs))
            };
            let opened = match spawn_blocking(open).await {
                Ok(opened) => opened,
                Err(error) => Err(panicked(error)),
            };
            let error = match opened {
                Err(error) => error,
                Ok((open, xattrs)) => {
                    if !is_started {
                        file.item.started(Some(open.version.size)).await;
                        is_started = true;
                    }
                    let (version, attributes) = (open.version, open.attributes);
                    let upload_id = match file.upload_id.of(&version) {
                        Ok(id) => id,
                        Err(error) => {
                            self.refused(file, error).await;
                            return;
                        }
                    };
                    let mut put = Put {
                        size: Some(version.size),
                        mtime: Some(attributes.mtime),
                        mode: Some(sent_mode(attributes.mode, self.special_modes)),
                        no_base,
                        xattrs,
                        ..self.put_message(&file.target, upload_id)
                    };
                    if let Role::Further(Landed { path, root }) = &file.role
                        && file.same == Some(version.file())
                    {
                        (put.same_as, put.same_root) = (Some(path.clone()), *root);
                    }
                    if hashed.0.replace(version) != Some(version) {
                        hashed.1 = Tree::new();
                    }
                    let content = Content::File(Arc::new(open));
                    match self.send_known(&put, &content, &mut file.item, &mut hashed.1).await {
                        Ok(Known::Stored(stored, root)) => {
                            if put.same_as.is_some() {
                                file.role = Role::Alone;
                                // What is left alone may well be a name of that file.
                                let is_left = stored.outcome != protocol::Outcome::Stored;
                                if !is_left || self.if_exists == IfExists::Overwrite {
                                    self.part();
                                }
                            }
                            self.stored(file, &stored, version.size, root, &version).await;
                            return;
                        }
                        Ok(Known::Named(stored)) => {
                            let root = stored.root.or(put.same_root).unwrap_or(UNKNOWN);
                            self.stored(file, &stored, version.size, root, &version).await;
                            return;
                        }
                        Ok(Known::Unexpected(error)) => {
                            self.refused(file, error).await;
                            return;
                        }
                        Err(error) => error,
                    }
                }
            };
            file.item.restart();
            if matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Changed) {
                hashed.0 = None;
                no_base |= error.is_from_peer();
            }
            if let Err(error) = retry.after(error).await {
                self.refused(file, error).await;
                return;
            }
        }
    }

    /// One attempt at sending content of known size. What was read is judged before it is finished. `hashed` is what
    /// earlier attempts have hashed of the same version, and what this one has when it returns.
    async fn send_known(&self, put: &Put, content: &Content, item: &mut Item, hashed: &mut Tree) -> Result<Known> {
        let mut sender = Sender::knowing(put.size.unwrap_or(0), std::mem::take(hashed));
        let known = self.send_by(&mut sender, put, content, item).await;
        *hashed = sender.into_tree();
        known
    }

    async fn send_by(&self, sender: &mut Sender, put: &Put, content: &Content, item: &mut Item) -> Result<Known> {
        let size = put.size.unwrap_or(0);
        if let Some(expected) = self.expect_size.filter(|&expected| expected != size) {
            return Ok(Known::Unexpected(expectation_failed(format!(
                "it has {size} bytes, not the {expected} expected"
            ))));
        }
        let session = self.session().await?;
        let mut exchange = session.open_put(put).await?;
        match exchange.next().await? {
            Reply::Stored(stored) => {
                if put.same_as.is_some() {
                    self.check_named(&stored, put.same_root, content).await?;
                    item.advance(size, 0);
                    return Ok(Known::Named(stored));
                }
                let root = self.check_early(&stored, content).await?;
                item.advance(size, 0);
                return Ok(Known::Stored(stored, root));
            }
            Reply::PutAnswer(answer) => match answer.holding {
                Holding::Fresh => {}
                Holding::Base => sender.set_base(answer.held_size, answer.compare_only),
                Holding::Held => sender.set_held(&answer.ranges.0)?,
            },
            other => return Err(exchange.unexpected(&other)),
        }
        let (finish, zeros) = match self.send_groups(&mut exchange, sender, content, item).await? {
            Sent::Finished(finish, zeros) => (finish, zeros),
            Sent::Stored(stored) => {
                let root = self.check_early(&stored, content).await?;
                return Ok(Known::Stored(stored, root));
            }
            Sent::Differs => {
                let error = Error::new(ErrorKind::Exists, format!("{} is there with other content", put.path));
                exchange.abort(&error);
                return match self.if_exists {
                    IfExists::Skip => {
                        let stored = Stored {
                            outcome: protocol::Outcome::Skipped,
                            root: None,
                            size,
                            path: None,
                            xattrs_lost: None,
                        };
                        Ok(Known::Stored(stored, UNKNOWN))
                    }
                    _ => Err(error),
                };
            }
        };
        content.check_unchanged().await?;
        if let Some(expected) = self.expect_root.filter(|&expected| expected != finish.root) {
            let error = expectation_failed(format!("it has the hash {}, not {expected} as expected", finish.root));
            exchange.abort(&error);
            return Ok(Known::Unexpected(error));
        }
        exchange.zeros(&zeros);
        exchange.finish(&finish);
        loop {
            match self.client.stalls().during(Cause::Answer, exchange.next()).await? {
                Reply::Stored(stored) => {
                    check_stored(&stored, self.if_exists, finish.root, size)?;
                    return Ok(Known::Stored(stored, finish.root));
                }
                // Values of groups that were not needed any more.
                Reply::Values(_) => {}
                other => return Err(exchange.unexpected(&other)),
            }
        }
    }

    /// Reads, hashes and sends the groups that the other side has not.
    async fn send_groups(
        &self,
        exchange: &mut Exchange,
        sender: &mut Sender,
        content: &Content,
        item: &mut Item,
    ) -> Result<Sent> {
        let mut reads: JoinSet<Result<Read>> = JoinSet::new();
        let mut carrier = exchange.carry(&Shelf::default());
        self.client.widen(exchange.session(), content.size());
        // Of each group that is on its way, where what is sent of it begins.
        let mut under_way = HashMap::new();
        let workplace = exchange.session().workplace(content.is_in_memory());
        let takes_zeros = exchange.session().hello().zeros == Some(true);
        let mut zeros = Runs::default();
        loop {
            while let Some(group) = sender.keep_known() {
                let len = group_len(content.size(), group);
                item.advance_group(group, len, len);
            }
            while reads.len() < workplace.at_once(READ_AHEAD) {
                // Who holds buffers does not wait for more: several files that did would wait for one another.
                let buffer = match self.client.pool().try_lease(GROUP_LEN) {
                    Some(buffer) => buffer,
                    None if reads.is_empty() => self.client.pool().lease(GROUP_LEN).await,
                    None => break,
                };
                let Some(taken) = sender.take() else { break };
                let (content, stalls) = (content.clone(), Arc::clone(self.client.stalls()));
                workplace.spawn(&mut reads, move || content.read(taken, buffer, &stalls));
            }
            if reads.is_empty()
                && let Some(finish) = sender.finish()
            {
                return Ok(Sent::Finished(finish, zeros));
            }
            let begun = Instant::now();
            tokio::select! {
                Some(read) = reads.join_next() => {
                    self.client.stalls().since(Cause::Source, begun);
                    let Read { group, bytes, hash, prefix, is_zero } = read.map_err(panicked)??;
                    let from = match sender.judge(group, hash, prefix) {
                        Decision::Keep => bytes.len(),
                        Decision::Differs => return Ok(Sent::Differs),
                        Decision::Send => 0,
                        Decision::SendFrom(len) => len,
                    };
                    let len = bytes.len();
                    if from < len && is_zero && takes_zeros && zeros.insert(group, ZERO_RUNS_MAX) {
                        sender.sent(group);
                        item.advance_group(group, len, len);
                    } else if from < len {
                        let sent = carrier.send(group, group_offset(group) + from as u64, bytes.slice(from..));
                        self.client.stalls().during(Cause::Room, sent).await.map_err(|_| exchange.reason())?;
                        under_way.insert(group, from);
                    } else {
                        item.advance_group(group, len, from);
                    }
                }
                report = carrier.next() => match report {
                    Report::Sent(group) => {
                        sender.sent(group);
                        let from = under_way.remove(&group).unwrap_or(0);
                        item.advance_group(group, group_len(content.size(), group), from);
                    }
                    Report::Lost(group) => sender.give_back(group),
                    Report::Wider(count) => self.client.widen_to(exchange.session(), count),
                    Report::Joined | Report::Came(..) => {}
                },
                reply = exchange.next() => match reply? {
                    Reply::Values(values) => sender.add_values(values.first, &values.values.0)?,
                    Reply::Stored(stored) => return Ok(Sent::Stored(stored)),
                    other => return Err(exchange.unexpected(&other)),
                },
            }
        }
    }

    /// Uploads a stream. One that ends within its first group has a known size, and is sent like a file.
    async fn put_stream(self: Arc<Job>, mut item: Item, target: RemotePath, stream: StreamSource) {
        item.started(self.expect_size).await;
        match self.send_stream(&target, stream, &mut item).await {
            Ok((stored, root, size)) => self.told_stored(item, &stored, size, root, false).await,
            Err(error) => item.failed(self.explain(error, &target)).await,
        }
    }

    async fn send_stream(
        &self,
        target: &RemotePath,
        stream: StreamSource,
        item: &mut Item,
    ) -> Result<(Stored, Root, u64)> {
        let put = self.put_message(target, random_id()?);
        if stream.spool.is_some() {
            let spooled = spawn_blocking(move || spool(stream)).await.map_err(panicked)??;
            return self.send_again_and_again(put, Content::File(Arc::new(spooled)), item).await;
        }
        let (mut blocks, check) = read_stream(stream)?;
        let first = self.client.stalls().during(Cause::Source, next_block(&mut blocks)).await?;
        if first.is_last {
            self.check_stream_end(check).await?;
            return self.send_again_and_again(put, Content::Memory(first.content), item).await;
        }
        // Until the first byte has left it can be tried again; then it cannot, as nobody can read it once more.
        let mut retry = self.client.retry();
        let mut exchange = loop {
            match self.open_stream(&put).await {
                Ok(Opened::Exchange(exchange)) => break exchange,
                Ok(Opened::Skipped(stored)) => {
                    let size = stored.size;
                    return Ok((stored, UNKNOWN, size));
                }
                Err(error) => retry.after(error).await?,
            }
        };
        let (mut tree, mut size, mut block) = (Tree::new(), 0_u64, first);
        loop {
            let (index, content) = (size / GROUP_LEN as u64, block.content);
            size += content.len() as u64;
            if let Some(expected) = self.expect_size.filter(|&expected| size > expected) {
                let error = expectation_failed(format!("it has more than the {expected} bytes expected"));
                exchange.abort(&error);
                return Err(error);
            }
            if !content.is_empty() {
                tree.insert(index, block.hash);
                let len = content.len() as u64;
                exchange.send_content(group_offset(index), content).await?;
                item.advance(len, len);
            }
            if block.is_last {
                break;
            }
            tokio::select! {
                next = self.client.stalls().during(Cause::Source, next_block(&mut blocks)) => block = next?,
                reply = exchange.next() => {
                    let reply = reply?;
                    return Err(exchange.unexpected(&reply));
                }
            }
        }
        let root =
            tree.root(size).ok_or_else(|| Error::new(ErrorKind::Internal, "a group of the stream was not hashed"))?;
        let fit = self.check_stream_end(check).await.and_then(|()| self.check_expected(size, root));
        if let Err(error) = fit {
            exchange.abort(&error);
            return Err(error);
        }
        exchange.finish(&Finish { size, root });
        match self.client.stalls().during(Cause::Answer, exchange.next()).await? {
            Reply::Stored(stored) => {
                check_stored(&stored, self.if_exists, root, size)?;
                Ok((stored, root, size))
            }
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Sends what a stream has brought, until it is there or will not be.
    async fn send_again_and_again(
        &self,
        mut put: Put,
        content: Content,
        item: &mut Item,
    ) -> Result<(Stored, Root, u64)> {
        let size = content.size();
        put.size = Some(size);
        let mut retry = self.client.retry();
        let mut hashed = Tree::new();
        loop {
            match self.send_known(&put, &content, item, &mut hashed).await {
                Ok(Known::Stored(stored, root)) => return Ok((stored, root, size)),
                Ok(Known::Named(_)) => {
                    return Err(Error::new(ErrorKind::Internal, "a stream is no further name of a file"));
                }
                Ok(Known::Unexpected(error)) => return Err(error),
                Err(error) => {
                    item.restart();
                    if error.kind() == ErrorKind::Mismatch {
                        hashed = Tree::new();
                        put.no_base |= error.is_from_peer();
                    }
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn open_stream(&self, put: &Put) -> Result<Opened> {
        let session = self.client.session().await?;
        let mut exchange = session.open_put(put).await?;
        match exchange.next().await? {
            Reply::PutAnswer(answer) if answer.holding == Holding::Fresh => Ok(Opened::Exchange(exchange)),
            // Nothing of it was sent, so nothing of it can be stored.
            Reply::Stored(stored) if check_skipped(&stored, self.if_exists)? => Ok(Opened::Skipped(stored)),
            other => Err(exchange.unexpected(&other)),
        }
    }

    async fn check_stream_end(&self, check: StreamCheck) -> Result<()> {
        spawn_blocking(check).await.map_err(panicked)?
    }

    fn check_expected(&self, size: u64, root: Root) -> Result<()> {
        if let Some(expected) = self.expect_size.filter(|&expected| expected != size) {
            return Err(expectation_failed(format!("it has {size} bytes, not the {expected} expected")));
        }
        if let Some(expected) = self.expect_root.filter(|&expected| expected != root) {
            return Err(expectation_failed(format!("it has the hash {root}, not {expected} as expected")));
        }
        Ok(())
    }

    async fn put_link(
        self: Arc<Job>,
        mut item: Item,
        target: RemotePath,
        points_to: Vec<u8>,
        attributes: Attributes,
        directory: Option<Arc<Directory>>,
        permit: OwnedSemaphorePermit,
    ) {
        let request = MakeLink {
            path: target.clone(),
            target: points_to,
            mtime: Some(attributes.mtime),
            if_exists: self.if_exists,
        };
        match self.client.request(&request).await {
            Ok((Reply::Stored(stored), _)) => {
                let event = done_event(&item, ItemKind::Link, &stored, 0, None);
                self.client.events().tell(event).await;
            }
            Ok((other, session)) => item.failed(session.unexpected(&other)).await,
            Err(error) => item.failed(error).await,
        }
        drop(permit);
        self.let_go(directory).await;
    }

    /// Sets the mode and time of a directory that is filled, then lets go of the one that it is in.
    async fn settle_directory(self: Arc<Job>, directory: Directory, is_empty: bool, permit: OwnedSemaphorePermit) {
        self.settle(directory, is_empty).await;
        drop(permit);
    }

    async fn settle(&self, directory: Directory, is_empty: bool) {
        let mut next = Some((directory, is_empty));
        while let Some((directory, is_empty)) = next.take() {
            let event = match self.set_directory(&directory, is_empty).await {
                Ok(()) => directory_event(&directory, Outcome::Stored),
                Err(error) => Event::Failed { item: None, name: directory.name.clone(), error },
            };
            if self.client.check_alive().is_ok() {
                self.client.events().tell(event).await;
            }
            next = directory.parent.and_then(Arc::into_inner).map(|parent| (parent, false));
        }
    }

    async fn set_directory(&self, directory: &Directory, is_empty: bool) -> Result<()> {
        if directory.target.is_root() {
            return Ok(());
        }
        let make = MakeDirectory { path: directory.target.clone() };
        let xattrs = match self.xattrs {
            true => {
                let source = directory.source.clone();
                Some(spawn_blocking(move || source.directory_xattrs()).await.map_err(panicked)??)
            }
            false => None,
        };
        let has_xattrs = xattrs.as_ref().is_some_and(|xattrs| !xattrs.is_empty());
        let set = SetDirectory {
            path: directory.target.clone(),
            mode: Some(sent_mode(directory.attributes.mode, self.special_modes)),
            mtime: Some(directory.attributes.mtime),
            xattrs,
        };
        if is_empty {
            self.done(&make).await?;
        }
        let done = match self.done(&set).await {
            // None of its files could be stored, so nothing has made it.
            Err(error) if error.kind() == ErrorKind::NotFound && !is_empty => {
                self.done(&make).await?;
                self.done(&set).await
            }
            result => result,
        }?;
        match done.count {
            // Who may not replace leaves a directory as it is that was there.
            0 if has_xattrs => self.xattrs_lost.add(ErrorKind::Rights),
            _ => self.xattrs_lost.add_code(done.xattrs_lost),
        }
        Ok(())
    }

    /// Makes sure that a directory which its owner may not write to can be filled until it gets its final mode: an
    /// earlier run may have given it that already.
    async fn make_fillable(&self, target: &RemotePath, mode: u32) {
        let make = MakeDirectory { path: target.clone() };
        let set = SetDirectory {
            path: target.clone(),
            mode: Some(sent_mode(mode, self.special_modes) | 0o700),
            mtime: None,
            xattrs: None,
        };
        if !target.is_root() && self.done(&make).await.is_ok() {
            // If it cannot be filled, its files say so, each by its name.
            let _ = self.done(&set).await;
        }
    }

    async fn done<M: protocol::Message>(&self, request: &M) -> Result<Done> {
        match self.client.request(request).await? {
            (Reply::Done(done), _) => Ok(done),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// A file's task is over: the last one in a directory settles it.
    async fn let_go(&self, directory: Option<Arc<Directory>>) {
        if let Some(directory) = directory.and_then(Arc::into_inner) {
            self.settle(directory, false).await;
        }
    }

    /// A file is there, durably.
    async fn stored(&self, file: FileJob, stored: &Stored, size: u64, root: Root, version: &SourceVersion) {
        let FileJob { item, source, directory, target, same, role, .. } = file;
        let name = item.name.clone();
        self.xattrs_lost.add_code(stored.xattrs_lost);
        if let Role::First(lead) = &role
            && stored.outcome != protocol::Outcome::Skipped
        {
            let path = stored.path.clone().unwrap_or(target);
            lead.is_there(Landed { path, root: stored.root.or((root != UNKNOWN).then_some(root)) });
        }
        self.told_stored(item, stored, size, root, matches!(role, Role::Further(_))).await;
        if self.remove_source && stored.outcome != protocol::Outcome::Skipped {
            let (version, has_several) = (*version, same.is_some());
            let removed = spawn_blocking(move || source.remove(&version, has_several)).await;
            if let Err(error) = removed.map_err(panicked).and_then(|removed| removed) {
                let error = error.context("it is stored, and was not removed here");
                self.client.events().tell(Event::Failed { item: None, name, error }).await;
            }
        }
        self.let_go(directory).await;
    }

    /// A name of a file with several is moved as a file of its own.
    fn part(&self) {
        self.parted.fetch_add(1, Ordering::Relaxed);
    }

    async fn tell_parted(&self) {
        let count = self.parted.load(Ordering::Relaxed);
        if count > 0 && self.client.check_alive().is_ok() {
            let text = format!(
                "hard links: {count} of the names that share a file here are files of their own there, because the \
                 server cannot link them, or not for this client"
            );
            self.client.events().tell(Event::Warning(text)).await;
        }
    }

    async fn told_stored(&self, mut item: Item, stored: &Stored, size: u64, root: Root, is_linked: bool) {
        if stored.outcome != protocol::Outcome::Skipped {
            item.held_rest(size);
        }
        item.settle().await;
        let is_known = stored.outcome != protocol::Outcome::Skipped && (stored.root.is_some() || root != UNKNOWN);
        let root = is_known.then_some(stored.root.unwrap_or(root));
        self.client.progressed();
        let mut event = done_event(&item, ItemKind::File, stored, size, root);
        if let Event::Done { outcome: outcome @ Outcome::Stored, .. } = &mut event
            && is_linked
        {
            *outcome = Outcome::Linked;
        }
        self.client.events().tell(event).await;
    }

    /// A file failed for good.
    async fn refused(&self, mut file: FileJob, error: Error) {
        let error = self.explain(error, &file.target);
        file.item.failed(error).await;
        self.let_go(file.directory).await;
    }

    /// Says what to write instead, where a file met a directory.
    fn explain(&self, error: Error, target: &RemotePath) -> Error {
        if error.kind() != ErrorKind::IsDirectory {
            return error;
        }
        check_target(Kind::File, Some(Kind::Directory), target, self.into_directory).err().unwrap_or(error)
    }
}

/// What the owner of a directory needs to put something into it.
const FILLABLE: u32 = 0o300;

fn expectation_failed(message: String) -> Error {
    Error::new(ErrorKind::Expectation, message)
}

fn done_event(item: &Item, kind: ItemKind, stored: &Stored, size: u64, root: Option<Root>) -> Event {
    let outcome = match stored.outcome {
        protocol::Outcome::Stored if stored.path.is_some() => Outcome::Renamed,
        protocol::Outcome::Stored => Outcome::Stored,
        protocol::Outcome::Unchanged => Outcome::Unchanged,
        protocol::Outcome::Skipped => Outcome::Kept,
    };
    let renamed_to = stored.path.as_ref().map(RemotePath::to_bytes);
    Event::Done { item: item.id, name: item.name.clone(), kind, size, root, outcome, renamed_to }
}

/// Stands for a hash that neither side has said.
const UNKNOWN: Root = Root([0; 32]);

/// How sending content of known size ended.
enum Known {
    /// It is there as a further name of a file that is there.
    Named(Stored),
    /// It is there; this is the root of what was read.
    Stored(Stored, Root),
    /// It is not what was expected, and reading it again would not change that.
    Unexpected(Error),
}

/// How the sending of groups ended.
enum Sent {
    /// All is sent or there, but for these groups of zeros.
    Finished(Finish, Runs),
    /// The server knows already how it ends.
    Stored(Stored),
    /// What is there is something else, and must stay.
    Differs,
}

enum Opened {
    Exchange(Exchange),
    Skipped(Stored),
}

/// A group that was read.
struct Read {
    group: u64,
    bytes: Bytes,
    hash: GroupHash,
    /// The value of its beginning, if that was asked for.
    prefix: Option<GroupValue>,
    is_zero: bool,
}

/// Where groups are read from.
#[derive(Clone)]
enum Content {
    File(Arc<OpenSource>),
    Memory(Bytes),
}

impl Content {
    /// Reads and hashes a group while it is hot.
    fn read(&self, Taken { group, prefix }: Taken, mut buffer: Buffer, stalls: &Stalls) -> Result<Read> {
        let bytes = match self {
            Content::File(open) => {
                let len = group_len(open.version.size, group);
                let space = buffer.get_mut(..len).ok_or_else(|| Error::new(ErrorKind::Internal, "a group too long"))?;
                if zeros::is_hole(&open.file, group_offset(group), len) {
                    zeros::content(len)
                } else {
                    stalls.working(Cause::Reading, || read_exact_at(open, space, group_offset(group)))?;
                    Bytes::from_owner(buffer).slice(..len)
                }
            }
            Content::Memory(bytes) => bytes.clone(),
        };
        let hash = || {
            let mut hasher = GroupHasher::new(group);
            let begun = bytes.split_at_checked(prefix.unwrap_or(0)).filter(|(begun, _)| !begun.is_empty());
            let (prefix, rest) = match begun {
                Some((begun, rest)) => {
                    hasher.update(begun);
                    (Some(hasher.finish().value), rest)
                }
                None => (None, &*bytes),
            };
            hasher.update(rest);
            (hasher.finish(), prefix)
        };
        let (hash, prefix) = stalls.working(Cause::Hashing, hash);
        Ok(Read { group, hash, prefix, is_zero: zeros::is_zero(&bytes), bytes })
    }

    /// Fills `space` from a place on.
    fn read_into(&self, space: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Content::File(open) => read_exact_at(open, space, offset),
            Content::Memory(bytes) => {
                let from =
                    usize::try_from(offset).ok().and_then(|from| bytes.get(from..from.checked_add(space.len())?));
                let from = from.ok_or_else(|| Error::new(ErrorKind::Internal, "a group behind the end"))?;
                space.copy_from_slice(from);
                Ok(())
            }
        }
    }

    /// Whether reading it waits for no disk.
    fn is_in_memory(&self) -> bool {
        match self {
            Content::File(open) => storage::is_in_memory(&open.file),
            Content::Memory(_) => true,
        }
    }

    /// Bytes in all.
    fn size(&self) -> u64 {
        match self {
            Content::File(open) => open.version.size,
            Content::Memory(bytes) => bytes.len() as u64,
        }
    }

    async fn check_unchanged(&self) -> Result<()> {
        match self {
            Content::Memory(_) => Ok(()),
            Content::File(open) => {
                let open = Arc::clone(open);
                spawn_blocking(move || open.check_unchanged()).await.map_err(panicked)?
            }
        }
    }
}

type StreamCheck = Box<dyn FnOnce() -> Result<()> + Send>;

/// A group of a stream.
struct Block {
    content: Bytes,
    hash: GroupHash,
    is_last: bool,
}

/// Writes a stream to its file, and makes sure that it came to its real end. Blocks.
fn spool(stream: StreamSource) -> Result<OpenSource> {
    let StreamSource { name, mut reader, check, spool } = stream;
    let mut file = spool.ok_or_else(|| Error::new(ErrorKind::Internal, "a stream without a file to spool it to"))?;
    let what = || format!("write {} to a temporary file", Escaped(name.as_bytes()));
    io::copy(&mut reader, &mut file).while_doing(what)?;
    check()?;
    OpenSource::of(file, PathBuf::from(name))
}

/// Reads a stream on a thread of its own, two groups ahead. The thread is not waited for: a read that nobody
/// answers (a terminal, a silent pipe) cannot be called off, and ends with the process.
fn read_stream(stream: StreamSource) -> Result<(mpsc::Receiver<Result<Block>>, StreamCheck)> {
    let StreamSource { name, mut reader, check, .. } = stream;
    let (sender, receiver) = mpsc::channel(2);
    std::thread::Builder::new()
        .name("stream".to_owned())
        .spawn(move || {
            // A group is known to be the last only when nothing follows it.
            let mut held = match read_block(&mut reader, 0, &name) {
                Ok(block) => block,
                Err(error) => return drop(sender.blocking_send(Err(error))),
            };
            let mut index = 0;
            loop {
                if held.is_last {
                    return drop(sender.blocking_send(Ok(held)));
                }
                index += 1;
                let next = read_block(&mut reader, index, &name);
                match next {
                    Ok(next) if next.content.is_empty() => held.is_last = true,
                    Ok(next) => {
                        if sender.blocking_send(Ok(std::mem::replace(&mut held, next))).is_err() {
                            return;
                        }
                    }
                    Err(error) => return drop(sender.blocking_send(Err(error))),
                }
            }
        })
        .while_doing(|| "start a thread for the stream".to_owned())?;
    Ok((receiver, check))
}

fn read_block(reader: &mut impl io::Read, index: u64, name: &str) -> Result<Block> {
    let mut content = vec![0; GROUP_LEN];
    let mut filled = 0;
    while let Some(rest) = content.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(format!("read {}", Escaped(name.as_bytes())), error)),
        }
    }
    content.truncate(filled);
    let hash = if filled == 0 { GroupHash::of(index, &[0]) } else { GroupHash::of(index, &content) };
    Ok(Block { content: content.into(), hash, is_last: filled < GROUP_LEN })
}

async fn next_block(blocks: &mut mpsc::Receiver<Result<Block>>) -> Result<Block> {
    let gone = || Error::new(ErrorKind::Internal, "the thread that reads the stream has ended");
    blocks.recv().await.ok_or_else(gone)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Mtime;

    #[test]
    fn an_upload_id_is_of_one_version() {
        let time = |nanos| Mtime { seconds: 1, nanos };
        let version = |ctime| SourceVersion { device: 1, inode: 2, size: 3, mtime: time(4), ctime: time(ctime) };
        let mut id = UploadId::default();
        let first = id.of(&version(1)).unwrap();
        assert_eq!(id.of(&version(1)).unwrap(), first, "the next attempt");
        let second = id.of(&version(2)).unwrap();
        assert_ne!(second, first, "a file that changed between two attempts");
        assert_eq!(id.of(&version(2)).unwrap(), second);
    }
}
